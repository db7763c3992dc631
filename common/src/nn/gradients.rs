//! Gradients of parameters without the detour through zeros.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
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
