//! RMSProp with public state.

use super::gradients::{Pass, clip_scale, flush, global_norm, of_store, split};
use super::{VarMap, backward, simd};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};
use envs::persist::Persist;
use serde::{Deserialize, Serialize};

/// RMSProp (Tieleman & Hinton 2012, lecture 6.5 of "Neural networks for machine learning"), without
/// momentum and not centred, with PyTorch's defaults:
///
/// ```text
/// v ← α v + (1 − α) g²           0 at first
/// θ ← θ − η g / (√v + ε)
/// ```
///
/// TensorFlow's has ε within the root, `θ ← θ − η g / √(v + ε)`, and v = 1 at first; so have programs
/// that were written with it, such as OpenAI's baselines. Mnih et al. (2016), arXiv:1602.01783, print
/// ε within the root, too. That is [`RmsProp::with_eps_inside_root`] and [`RmsProp::with_mean_square`].
///
/// On a CPU one fused in-place pass a parameter; elsewhere candle's operations.
pub struct RmsProp {
    /// Learning rate η; may be changed between steps.
    pub learning_rate: f64,
    /// Decay α of the mean of the squared gradients.
    pub alpha: f64,
    /// ε, above 0: it keeps the step finite where v is 0.
    pub eps: f64,
    /// Whether ε is added to v, within the root, or to √v.
    pub eps_inside_root: bool,
    /// If set, gradients are scaled down to this global norm first.
    pub max_grad_norm: Option<f64>,
    vars: Vec<Var>,
    mean_squares: Vec<MeanSquare>,
}

/// v of one parameter.
enum MeanSquare {
    Host(Vec<f32>),
    Device(Tensor),
}

impl RmsProp {
    /// An optimiser of every parameter that `parameters` holds now.
    pub fn new(parameters: &VarMap, learning_rate: f64) -> Result<Self> {
        Self::from_vars(parameters.all_vars(), learning_rate)
    }

    /// An optimiser of the parameters given.
    pub fn from_vars(vars: Vec<Var>, learning_rate: f64) -> Result<Self> {
        let this = Self {
            learning_rate,
            alpha: 0.99,
            eps: 1e-8,
            eps_inside_root: false,
            max_grad_norm: None,
            vars,
            mean_squares: Vec::new(),
        };
        this.with_mean_square(0.0)
    }

    /// The same with gradients clipped to the global norm `max_grad_norm`.
    pub fn with_max_grad_norm(mut self, max_grad_norm: f64) -> Self {
        self.max_grad_norm = Some(max_grad_norm);
        self
    }

    /// The same with another decay α.
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }

    /// The same with another ε, added to √v.
    pub fn with_eps(mut self, eps: f64) -> Self {
        (self.eps, self.eps_inside_root) = (eps, false);
        self
    }

    /// The same with another ε, added to v within the root.
    pub fn with_eps_inside_root(mut self, eps: f64) -> Self {
        (self.eps, self.eps_inside_root) = (eps, true);
        self
    }

    /// The same with v = `value` everywhere.
    pub fn with_mean_square(mut self, value: f32) -> Result<Self> {
        let values = self.vars.iter().map(|var| vec![value; var.elem_count()]).collect();
        self.set_mean_squares(values)?;
        Ok(self)
    }

    /// Computes the gradients of `loss` and takes a step.
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.step(&backward(loss)?)
    }

    /// Takes a step along `grads`. Parameters without a gradient stay as they are, and so does their v.
    ///
    /// # Errors
    /// A gradient that is not finite, or whose square is not; no parameter has then changed.
    pub fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.step_along(&of_store(&self.vars, grads))
    }

    /// Takes a step along gradients that were computed elsewhere, as [`VarMap::gradients`] gives them.
    ///
    /// # Errors
    /// As [`RmsProp::step`], and another number of them than of parameters.
    pub fn step_values(&mut self, gradients: &[f32]) -> Result<()> {
        self.step_along(&split(&self.vars, gradients)?)
    }

    fn step_along(&mut self, grads: &[Option<Tensor>]) -> Result<()> {
        let scale = clip_scale(global_norm(grads)?, self.max_grad_norm.unwrap_or(f64::INFINITY))?;
        // ε is 0 at one of the two places.
        let (inside, outside) = if self.eps_inside_root { (self.eps, 0.0) } else { (0.0, self.eps) };
        for ((var, grad), mean_square) in self.vars.iter().zip(grads).zip(&mut self.mean_squares) {
            let Some(grad) = grad else { continue };
            match mean_square {
                MeanSquare::Host(v) => {
                    let (alpha, rest) = (self.alpha as f32, (1.0 - self.alpha) as f32);
                    let (inside, outside) = (inside as f32, outside as f32);
                    let (learning_rate, scale) = (self.learning_rate as f32, scale as f32);
                    let pass = Pass::new(|p, g| {
                        simd::vectorize(
                            #[inline(always)]
                            || {
                                for ((p, g), v) in p.iter_mut().zip(g).zip(&mut *v) {
                                    let g = flush(g * scale, 1e-18);
                                    *v = flush(alpha * *v + rest * g * g, 1e-30);
                                    *p -= learning_rate * g / ((*v + inside).sqrt() + outside);
                                }
                            },
                        );
                    });
                    var.as_tensor().inplace_op2(&grad.contiguous()?, &pass)?;
                }
                MeanSquare::Device(v) => {
                    let grad = (grad.detach() * scale)?;
                    *v = ((&*v * self.alpha)? + (grad.sqr()? * (1.0 - self.alpha))?)?;
                    let denominator = ((&*v + inside)?.sqrt()? + outside)?;
                    let update = (grad * self.learning_rate)?.div(&denominator)?;
                    var.set(&(var.as_detached_tensor() - update)?)?;
                }
            }
        }
        Ok(())
    }

    /// v of every parameter, in the parameters' order.
    pub fn mean_squares(&self) -> Result<Vec<Vec<f32>>> {
        let values = |v: &MeanSquare| match v {
            MeanSquare::Host(v) => Ok(v.clone()),
            MeanSquare::Device(v) => v.flatten_all()?.to_vec1(),
        };
        self.mean_squares.iter().map(values).collect()
    }

    /// Sets v of every parameter, in the parameters' order.
    ///
    /// # Errors
    /// Those of other parameters.
    pub fn set_mean_squares(&mut self, values: Vec<Vec<f32>>) -> Result<()> {
        let (found, wanted) = (values.len(), self.vars.len());
        if found != wanted {
            bail!("it holds moments of {found} parameters, not of {wanted}");
        }
        for (i, (var, v)) in self.vars.iter().zip(&values).enumerate() {
            let (found, wanted) = (v.len(), var.elem_count());
            if found != wanted {
                bail!("its parameter {i} has {found} moments, not {wanted}");
            }
        }
        let state = |(var, v): (&Var, Vec<f32>)| {
            Ok(match var.device().is_cpu() && var.is_contiguous() {
                true => MeanSquare::Host(v),
                false => MeanSquare::Device(Tensor::from_vec(v, var.shape(), var.device())?),
            })
        };
        self.mean_squares = self.vars.iter().zip(values).map(state).collect::<Result<_>>()?;
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    mean_squares: Vec<Vec<f32>>,
}

impl Persist for RmsProp {
    fn save(&self) -> anyhow::Result<Vec<u8>> {
        Saved { mean_squares: self.mean_squares()? }.save()
    }

    fn load(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut saved = Saved { mean_squares: Vec::new() };
        saved.load(bytes)?;
        self.set_mean_squares(saved.mean_squares)?;
        Ok(())
    }
}
