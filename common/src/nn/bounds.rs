//! The lesser, the greater, and numbers kept within bounds.
//!
//! They are candle's own. Candle's methods accept tensors and numbers alike and are therefore compiled
//! again, with their loops over every type of number, into each program that calls them, for a third of
//! its compile time. These are compiled once. PPO's files keep candle's, for the sake of the formula that
//! everyone searches for.

use candle_core::{Result, Tensor};

/// min(a, b) element by element, as `torch.minimum`; both have the same shape. The gradient goes to the
/// lesser, and to both by halves where they are equal.
///
/// # Errors
/// Shapes that differ.
pub fn minimum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.minimum(b)
}

/// max(a, b) element by element, as `torch.maximum`; both have the same shape. The gradient goes to the
/// greater, and to both by halves where they are equal.
///
/// # Errors
/// Shapes that differ.
pub fn maximum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.maximum(b)
}

/// min(max(x, low), high) element by element, as `torch.clamp`; a bound may be infinite. There is no
/// gradient where a bound is passed, and half of it on a bound.
///
/// # Errors
/// What candle reports.
pub fn clamp(x: &Tensor, low: f64, high: f64) -> Result<Tensor> {
    let mut x = x.clone();
    if low > f64::NEG_INFINITY {
        x = x.maximum(low)?;
    }
    if high < f64::INFINITY {
        x = x.minimum(high)?;
    }
    Ok(x)
}
