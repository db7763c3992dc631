//! Adam with public state, and clipping of gradients by their global norm.

use super::parallel::{join, threads};
use super::{VarMap, backward, simd};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var, bail};
use envs::persist::Persist;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

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
    Host(Mutex<(Vec<f32>, Vec<f32>)>),
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
                    true => Moments::Host(Mutex::new((zeros(), zeros()))),
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

    /// Takes a step along `grads`. Parameters without a gradient stay as they are.
    ///
    /// # Errors
    /// A gradient that is not finite, or whose square is not; no parameter has then changed.
    pub fn step(&mut self, grads: &GradStore) -> Result<()> {
        let norm = global_norm(&self.vars, grads)?;
        let scale = clip_scale(norm, self.max_grad_norm.unwrap_or(f64::INFINITY))?;
        self.step += 1;
        let t = self.step.min(i32::MAX as u64) as i32;
        let correction1 = 1.0 - self.beta1.powi(t);
        let correction2 = 1.0 - self.beta2.powi(t);
        for (var, moments) in self.vars.iter().zip(&mut self.moments) {
            let Some(grad) = grads.get(var) else { continue };
            match moments {
                Moments::Host(moments) => {
                    let op = AdamStep {
                        moments,
                        learning_rate: (self.learning_rate / correction1) as f32,
                        beta1: self.beta1 as f32,
                        beta2: self.beta2 as f32,
                        // Not from the rounded β: next to β₂ = 0.999 that is 1e-5 of the difference.
                        rest1: (1.0 - self.beta1) as f32,
                        rest2: (1.0 - self.beta2) as f32,
                        eps: self.eps as f32,
                        correction2: (1.0 / correction2) as f32,
                        scale: scale as f32,
                    };
                    var.as_tensor().inplace_op2(&grad.contiguous()?, &op)?;
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
                    Moments::Host(pair) => pair.lock().unwrap_or_else(PoisonError::into_inner).clone(),
                    Moments::Device(m, v) => (m.flatten_all()?.to_vec1()?, v.flatten_all()?.to_vec1()?),
                })
            })
            .collect()
    }
}

struct AdamStep<'a> {
    moments: &'a Mutex<(Vec<f32>, Vec<f32>)>,
    learning_rate: f32, // α / (1 − β₁ᵗ)
    beta1: f32,
    beta2: f32,
    rest1: f32, // 1 − β₁
    rest2: f32, // 1 − β₂
    eps: f32,
    correction2: f32, // 1 / (1 − β₂ᵗ)
    scale: f32,
}

impl InplaceOp2 for AdamStep<'_> {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn cpu_fwd(
        &self,
        p: &mut CpuStorage,
        p_layout: &Layout,
        g: &CpuStorage,
        g_layout: &Layout,
    ) -> Result<()> {
        let CpuStorage::F32(p) = p else { bail!("Adam wants f32 parameters") };
        let (start, end) = (p_layout.start_offset(), p_layout.start_offset() + p_layout.shape().elem_count());
        let p = &mut p[start..end];
        let g = super::dense::slice(g, g_layout)?;
        let (m, v) = &mut *self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let Self { learning_rate, beta1, beta2, rest1, rest2, eps, correction2, scale, .. } = *self;
        simd::vectorize(
            #[inline(always)]
            || {
                for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    let g = flush(g * scale, 1e-18);
                    *m = flush(beta1 * *m + rest1 * g, 1e-30);
                    *v = flush(beta2 * *v + rest2 * g * g, 1e-30);
                    *p -= learning_rate * *m / ((*v * correction2).sqrt() + eps);
                }
            },
        );
        Ok(())
    }
}

/// 0 in place of a number below `tiny`. Moments of units that get no gradient decay into subnormal
/// numbers, on which a CPU is a hundred times slower; next to ε = 1e-8 they are nothing.
#[inline(always)]
fn flush(x: f32, tiny: f32) -> f32 {
    if x.abs() < tiny { 0.0 } else { x }
}

/// √(Σ g²) over all parameters that have a gradient.
fn global_norm(vars: &[Var], grads: &GradStore) -> Result<f64> {
    let mut sum = 0.0;
    for grad in vars.iter().filter_map(|var| grads.get(var)) {
        let grad = grad.contiguous()?;
        let (storage, layout) = grad.storage_and_layout();
        sum += match &*storage {
            candle_core::Storage::Cpu(storage) => {
                let g = super::dense::slice(storage, layout)?;
                f64::from(simd::sum(g, |g| g * g))
            }
            _ => f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?),
        };
    }
    Ok(sum.sqrt())
}

fn clip_scale(norm: f64, max_norm: f64) -> Result<f64> {
    if !norm.is_finite() {
        bail!("the gradient is not finite (its norm is {norm})");
    }
    // PyTorch's clip_grad_norm_, its 1e-6 included.
    Ok((max_norm / (norm + 1e-6)).min(1.0))
}

/// Scales the gradients of `vars` down to the global norm `max_norm`; returns the norm they had.
///
/// # Errors
/// A gradient that is not finite.
pub fn clip_grad_norm(vars: &[Var], grads: &mut GradStore, max_norm: f64) -> Result<f64> {
    let norm = global_norm(vars, grads)?;
    let scale = clip_scale(norm, max_norm)?;
    if scale < 1.0 {
        for var in vars {
            if let Some(grad) = grads.remove(var) {
                grads.insert(var, (grad * scale)?);
            }
        }
    }
    Ok(norm)
}

#[derive(Serialize, Deserialize)]
struct Saved {
    step: u64,
    learning_rate: f64,
    moments: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Persist for Adam {
    fn save(&self) -> anyhow::Result<Vec<u8>> {
        Saved { step: self.step, learning_rate: self.learning_rate, moments: self.moments()? }.save()
    }

    fn load(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut saved = Saved { step: 0, learning_rate: 0.0, moments: Vec::new() };
        saved.load(bytes)?;
        anyhow::ensure!(saved.moments.len() == self.vars.len(), "optimiser of other parameters");
        for ((var, slot), (m, v)) in self.vars.iter().zip(&mut self.moments).zip(saved.moments) {
            let len = var.elem_count();
            anyhow::ensure!(m.len() == len && v.len() == len, "optimiser of other parameters");
            *slot = match slot {
                Moments::Host(_) => Moments::Host(Mutex::new((m, v))),
                Moments::Device(..) => Moments::Device(
                    Tensor::from_vec(m, var.shape(), var.device())?,
                    Tensor::from_vec(v, var.shape(), var.device())?,
                ),
            };
        }
        self.step = saved.step;
        self.learning_rate = saved.learning_rate;
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
        anyhow::ensure!(vars.len() == values.len(), "parameters of another network");
        for ((name, var), (saved, values)) in vars.iter().zip(values) {
            anyhow::ensure!(
                *name == saved && values.len() == var.elem_count(),
                "parameters of another network"
            );
            var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
        }
        Ok(())
    }
}
