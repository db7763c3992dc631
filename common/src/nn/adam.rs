//! Adam with public state.

use super::gradients::{Pass, clip_scale, flush, global_norm, of_store, split};
use super::parallel::{join, threads};
use super::{VarMap, backward, simd};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use envs::persist::Persist;
use serde::{Deserialize, Serialize};

/// Adam (Kingma & Ba 2014, arXiv:1412.6980), with PyTorch's defaults:
///
/// ```text
/// m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
/// θ ← θ − α m̂ / (√v̂ + ε)         m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
/// ```
///
/// On a CPU one fused in-place pass a parameter; elsewhere candle's operations.
pub struct Adam {
    /// Learning rate α; may be changed between steps.
    pub learning_rate: f64,
    /// Decay β₁ of the mean of the gradients.
    pub beta1: f64,
    /// Decay β₂ of the mean of the squared gradients.
    pub beta2: f64,
    /// ε, added to √v̂.
    pub eps: f64,
    /// If set, gradients are scaled down to this global norm first.
    pub max_grad_norm: Option<f64>,
    /// Number of steps taken, t.
    pub step: u64,
    vars: Vec<Var>,
    moments: Vec<Moments>,
}

/// m and v of one parameter.
enum Moments {
    Host(Vec<f32>, Vec<f32>),
    Device(Tensor, Tensor),
}

impl Adam {
    /// An optimiser of every parameter that `parameters` holds now.
    pub fn new(parameters: &VarMap, learning_rate: f64) -> Result<Self> {
        Self::from_vars(parameters.all_vars(), learning_rate)
    }

    /// An optimiser of the parameters given.
    pub fn from_vars(vars: Vec<Var>, learning_rate: f64) -> Result<Self> {
        let moments = vars
            .iter()
            .map(|var| {
                let zeros = || vec![0.0; var.elem_count()];
                Ok(match var.device().is_cpu() && var.is_contiguous() {
                    true => Moments::Host(zeros(), zeros()),
                    false => Moments::Device(var.zeros_like()?, var.zeros_like()?),
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            max_grad_norm: None,
            step: 0,
            vars,
            moments,
        })
    }

    /// The same with gradients clipped to the global norm `max_grad_norm`.
    pub fn with_max_grad_norm(mut self, max_grad_norm: f64) -> Self {
        self.max_grad_norm = Some(max_grad_norm);
        self
    }

    /// The same with another ε.
    pub fn with_eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// Computes the gradients of `loss` and takes a step.
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.step(&backward(loss)?)
    }

    /// [`Adam::backward_step`] on the sum of two losses that have no parameter in common, such as
    /// those of twin critics: `--threads` may compute their gradients side by side.
    pub fn backward_step_of_both(&mut self, losses: [&Tensor; 2]) -> Result<()> {
        let (first, second) = join(|| backward(losses[0]), || backward(losses[1]));
        let mut gradients = first?;
        gradients.extend(second?)?;
        self.step(&gradients)
    }

    /// [`Adam::backward_step`] on the mean of `f(inputs)`, a loss for each row, `[batch]` or
    /// `[batch, 1]`, of inputs `[batch, …]`. `--threads` may compute it in two parts of the batch,
    /// side by side, since each row's loss comes from that row alone. Returns the mean, and without
    /// gradient what else `f` returns for each row.
    pub fn backward_step_by_rows<const N: usize>(
        &mut self,
        inputs: [&Tensor; N],
        f: impl Fn([Tensor; N]) -> anyhow::Result<(Tensor, Tensor)> + Sync,
    ) -> anyhow::Result<(f32, Tensor)> {
        let batch = inputs[0].dim(0)?;
        let part = |start: usize, len: usize| {
            let mut rows = Vec::with_capacity(N);
            for input in inputs {
                rows.push(input.narrow(0, start, len)?);
            }
            let Ok(rows) = rows.try_into() else { unreachable!("N inputs give N") };
            let (losses, others) = f(rows)?;
            let share = (losses.sum_all()? / batch as f64)?;
            Ok::<_, anyhow::Error>((share.to_scalar::<f32>()?, others.detach(), backward(&share)?))
        };
        if threads() == 1 || batch < 2 {
            let (loss, others, gradients) = part(0, batch)?;
            self.step(&gradients)?;
            return Ok((loss, others));
        }
        let half = batch / 2;
        let (first, second) = join(|| part(0, half), || part(half, batch - half));
        let ((loss1, others1, mut gradients), (loss2, others2, gradients2)) = (first?, second?);
        gradients.extend(gradients2)?; // adds them up
        self.step(&gradients)?;
        Ok((loss1 + loss2, Tensor::cat(&[others1, others2], 0)?))
    }

    /// Takes a step along `grads`. Parameters without a gradient stay as they are. Unlike PyTorch's, t
    /// counts the steps of all parameters together, also those in which one has no gradient.
    ///
    /// # Errors
    /// A gradient that is not finite, or whose square is not; no parameter has then changed.
    pub fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.step_along(&of_store(&self.vars, grads))
    }

    /// Takes a step along gradients that were computed elsewhere, as [`VarMap::gradients`] gives them.
    ///
    /// # Errors
    /// As [`Adam::step`], and another number of them than of parameters.
    pub fn step_values(&mut self, gradients: &[f32]) -> Result<()> {
        self.step_along(&split(&self.vars, gradients)?)
    }

    fn step_along(&mut self, grads: &[Option<Tensor>]) -> Result<()> {
        let scale = clip_scale(global_norm(grads)?, self.max_grad_norm.unwrap_or(f64::INFINITY))?;
        self.step += 1;
        let t = self.step.min(i32::MAX as u64) as i32;
        let correction1 = 1.0 - self.beta1.powi(t);
        let correction2 = 1.0 - self.beta2.powi(t);
        for ((var, grad), moments) in self.vars.iter().zip(grads).zip(&mut self.moments) {
            let Some(grad) = grad else { continue };
            match moments {
                Moments::Host(m, v) => {
                    let (beta1, beta2, eps) = (self.beta1 as f32, self.beta2 as f32, self.eps as f32);
                    // Not from the rounded β: next to β₂ = 0.999 that is 1e-5 of the difference.
                    let (rest1, rest2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
                    let learning_rate = (self.learning_rate / correction1) as f32; // α / (1 − β₁ᵗ)
                    let correction2 = (1.0 / correction2) as f32; // 1 / (1 − β₂ᵗ)
                    let scale = scale as f32;
                    let pass = Pass::new(|p, g| {
                        simd::vectorize(
                            #[inline(always)]
                            || {
                                for (((p, g), m), v) in p.iter_mut().zip(g).zip(&mut *m).zip(&mut *v) {
                                    let g = flush(g * scale, 1e-18);
                                    *m = flush(beta1 * *m + rest1 * g, 1e-30);
                                    *v = flush(beta2 * *v + rest2 * g * g, 1e-30);
                                    *p -= learning_rate * *m / ((*v * correction2).sqrt() + eps);
                                }
                            },
                        );
                    });
                    var.as_tensor().inplace_op2(&grad.contiguous()?, &pass)?;
                }
                Moments::Device(m, v) => {
                    let grad = (grad.detach() * scale)?;
                    *m = ((&*m * self.beta1)? + (&grad * (1.0 - self.beta1))?)?;
                    *v = ((&*v * self.beta2)? + (grad.sqr()? * (1.0 - self.beta2))?)?;
                    let denominator = ((&*v / correction2)?.sqrt()? + self.eps)?;
                    let update = ((&*m / correction1)? * self.learning_rate)?.div(&denominator)?;
                    var.set(&(var.as_detached_tensor() - update)?)?;
                }
            }
        }
        Ok(())
    }

    /// m and v of every parameter, in the parameters' order.
    pub fn moments(&self) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        self.moments
            .iter()
            .map(|moments| {
                Ok(match moments {
                    Moments::Host(m, v) => (m.clone(), v.clone()),
                    Moments::Device(m, v) => (m.flatten_all()?.to_vec1()?, v.flatten_all()?.to_vec1()?),
                })
            })
            .collect()
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    step: u64,
    moments: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Persist for Adam {
    fn save(&self) -> anyhow::Result<Vec<u8>> {
        Saved { step: self.step, moments: self.moments()? }.save()
    }

    fn load(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut saved = Saved { step: 0, moments: Vec::new() };
        saved.load(bytes)?;
        let (found, wanted) = (saved.moments.len(), self.vars.len());
        anyhow::ensure!(found == wanted, "it holds moments of {found} parameters, not of {wanted}");
        for (i, (var, (m, v))) in self.vars.iter().zip(&saved.moments).enumerate() {
            let wanted = var.elem_count();
            for len in [m.len(), v.len()] {
                anyhow::ensure!(len == wanted, "its parameter {i} has {len} moments, not {wanted}");
            }
        }
        for ((var, slot), (m, v)) in self.vars.iter().zip(&mut self.moments).zip(saved.moments) {
            *slot = match slot {
                Moments::Host(..) => Moments::Host(m, v),
                Moments::Device(..) => Moments::Device(
                    Tensor::from_vec(m, var.shape(), var.device())?,
                    Tensor::from_vec(v, var.shape(), var.device())?,
                ),
            };
        }
        self.step = saved.step;
        Ok(())
    }
}

impl Persist for VarMap {
    fn save(&self) -> anyhow::Result<Vec<u8>> {
        let values: Vec<(String, Vec<f32>)> = self
            .named_vars()
            .into_iter()
            .map(|(name, var)| Ok((name, var.flatten_all()?.to_vec1()?)))
            .collect::<Result<_>>()?;
        values.save()
    }

    fn load(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut values: Vec<(String, Vec<f32>)> = Vec::new();
        values.load(bytes)?;
        let vars = self.named_vars();
        let (found, wanted) = (values.len(), vars.len());
        anyhow::ensure!(found == wanted, "it holds {found} parameters, not {wanted}");
        for ((name, var), (saved, values)) in vars.iter().zip(&values) {
            let (found, wanted) = (values.len(), var.elem_count());
            anyhow::ensure!(
                name == saved && found == wanted,
                "its parameter {saved} has {found} numbers, {name} takes {wanted}"
            );
        }
        for ((_, var), (_, values)) in vars.iter().zip(values) {
            var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
        }
        Ok(())
    }
}
