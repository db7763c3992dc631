//! The lesser, the greater, and numbers kept within bounds.
//!
//! They are candle's own. Candle's methods accept tensors and numbers alike and are therefore compiled
//! again, with their loops over every type of number, into each program that calls them. These are
//! compiled once. PPO's files keep candle's, for the sake of the formula that everyone searches for.

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

/// min(max(x, low), high) element by element; a bound may be infinite. There is no gradient where a bound
/// is passed, and half of it on a bound, where `torch.clamp` passes all of it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn numbers_and_gradients_stay_within_bounds() {
        let inf = f64::INFINITY;
        for (low, high, values, gradients) in [
            (-1.0, 2.0, [-1.0, -1.0, 0.5, 2.0, 2.0], [0.0, 0.5, 1.0, 0.5, 0.0]),
            (-inf, 2.0, [-3.0, -1.0, 0.5, 2.0, 2.0], [1.0, 1.0, 1.0, 0.5, 0.0]),
            (-1.0, inf, [-1.0, -1.0, 0.5, 2.0, 7.0], [0.0, 0.5, 1.0, 1.0, 1.0]),
            (-inf, inf, [-3.0, -1.0, 0.5, 2.0, 7.0], [1.0; 5]),
        ] {
            let x = Var::new(&[-3.0_f32, -1.0, 0.5, 2.0, 7.0], &Device::Cpu).unwrap();
            let y = clamp(&x, low, high).unwrap();
            assert_eq!(y.to_vec1::<f32>().unwrap(), values);
            let gradient = y.sum_all().unwrap().backward().unwrap();
            assert_eq!(gradient.get(&x).unwrap().to_vec1::<f32>().unwrap(), gradients, "{low} to {high}");
        }
    }
}
