//! Gradients of parameters: computed without a detour through zeros, as plain numbers that travel, and
//! clipped by their global norm; and what optimisers do with them in one pass.

use super::simd;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, Var, bail};
use std::cell::RefCell;

thread_local! {
    /// Gradients that fused layers found since [`backward`] began on this thread, if it has.
    static COLLECTED: RefCell<Option<Vec<(Tensor, Tensor)>>> = const { RefCell::new(None) };
}

/// The same as `loss.backward()`. Candle makes a tensor of zeros for every parameter and adds its
/// gradient to that, which for a small network takes a tenth of a training step; fused layers hand
/// theirs over as they are here.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    COLLECTED.set(Some(Vec::new()));
    let gradients = loss.backward();
    let collected = COLLECTED.take().unwrap_or_default();
    let mut gradients = gradients?;
    for (parameter, gradient) in collected {
        // A layer that was used twice has two.
        let sum = match gradients.remove(&parameter) {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        gradients.insert(&parameter, sum);
    }
    Ok(gradients)
}

/// The gradient of `parameter`, for candle to add up; `None` if [`backward`] does that.
pub(super) fn of_parameter(parameter: &Tensor, gradient: Tensor) -> Option<Tensor> {
    COLLECTED.with_borrow_mut(|collected| match collected {
        // Candle wants the gradient itself of what was computed from parameters.
        Some(collected) if parameter.is_variable() => {
            collected.push((parameter.clone(), gradient.detach()));
            None
        }
        _ => Some(gradient),
    })
}

/// The gradients in `grads` in the order of `vars`; `None` for a parameter that has none.
pub(super) fn of_store(vars: &[Var], grads: &GradStore) -> Vec<Option<Tensor>> {
    vars.iter().map(|var| grads.get(var).cloned()).collect()
}

/// The gradients in `grads` as numbers, one parameter of `vars` after the other; 0 where there is none.
pub(super) fn flatten(vars: &[Var], grads: &GradStore) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(vars.iter().map(|var| var.elem_count()).sum());
    for var in vars {
        match grads.get(var) {
            Some(grad) => values.extend(grad.flatten_all()?.to_vec1::<f32>()?),
            None => values.resize(values.len() + var.elem_count(), 0.0),
        }
    }
    Ok(values)
}

/// Numbers, one parameter of `vars` after the other, in the shapes of the parameters.
///
/// # Errors
/// Another number of them than of parameters.
pub(super) fn split(vars: &[Var], mut values: &[f32]) -> Result<Vec<Option<Tensor>>> {
    let (len, expected) = (values.len(), vars.iter().map(|var| var.elem_count()).sum::<usize>());
    if len != expected {
        bail!("{len} numbers for {expected} parameters");
    }
    let mut tensors = Vec::with_capacity(vars.len());
    for var in vars {
        let (own, rest) = values.split_at(var.elem_count());
        tensors.push(Some(Tensor::from_slice(own, var.shape(), var.device())?));
        values = rest;
    }
    Ok(tensors)
}

/// √(Σ g²) over all gradients.
pub(super) fn global_norm(grads: &[Option<Tensor>]) -> Result<f64> {
    let mut sum = 0.0;
    for grad in grads.iter().flatten() {
        let grad = grad.contiguous()?;
        let (storage, layout) = grad.storage_and_layout();
        sum += match &*storage {
            candle_core::Storage::Cpu(storage) => {
                let g = simd::slice(storage, layout)?;
                f64::from(simd::sum(g, |g| g * g))
            }
            _ => f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?),
        };
    }
    Ok(sum.sqrt())
}

/// The factor that clips gradients of this norm to `max_norm`.
///
/// # Errors
/// A norm that is not finite.
pub(super) fn clip_scale(norm: f64, max_norm: f64) -> Result<f64> {
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
    let norm = global_norm(&of_store(vars, grads))?;
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

/// One pass of an optimiser over a parameter on a CPU, which it changes in place, and its gradient.
pub(super) struct Pass<F>(RefCell<F>);

impl<F: FnMut(&mut [f32], &[f32])> Pass<F> {
    /// `update(parameter, gradient)`
    pub(super) fn new(update: F) -> Self {
        Self(RefCell::new(update))
    }
}

impl<F: FnMut(&mut [f32], &[f32])> InplaceOp2 for Pass<F> {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn cpu_fwd(
        &self,
        p: &mut CpuStorage,
        p_layout: &Layout,
        g: &CpuStorage,
        g_layout: &Layout,
    ) -> Result<()> {
        let CpuStorage::F32(p) = p else { bail!("optimisers want f32 parameters") };
        let (start, end) = (p_layout.start_offset(), p_layout.start_offset() + p_layout.shape().elem_count());
        let g = simd::slice(g, g_layout)?;
        (self.0.borrow_mut())(&mut p[start..end], g);
        Ok(())
    }
}

/// 0 in place of a number below `tiny`. Moments of units that get no gradient decay into subnormal
/// numbers, on which a CPU is a hundred times slower; next to ε = 1e-8 they are nothing.
#[inline(always)]
pub(super) fn flush(x: f32, tiny: f32) -> f32 {
    if x.abs() < tiny { 0.0 } else { x }
}
