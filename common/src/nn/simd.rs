//! Loops over slices, compiled for the widest vectors that the CPU at hand has.

use candle_core::{CpuStorage, Layout, Result, bail};

/// The values of a contiguous f32 tensor.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        (CpuStorage::F32(_), None) => bail!("a fused layer wants contiguous tensors, got {layout:?}"),
        _ => bail!("a fused layer wants f32 tensors"),
    }
}

/// Runs `operation` compiled for the CPU's best instruction set. The closure must be
/// `#[inline(always)]`, or its body is not compiled with those instructions.
#[inline(always)]
pub fn vectorize<R>(operation: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(operation)
}

/// Σ f(x). Sixteen sums side by side vectorise; one running sum would not, and would lose more to
/// rounding.
#[inline(always)]
pub fn sum(values: &[f32], f: impl Fn(f32) -> f32 + Copy) -> f32 {
    vectorize(
        #[inline(always)]
        || {
            let (chunks, rest) = values.as_chunks::<16>();
            let mut sums = [0.0_f32; 16];
            for chunk in chunks {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *sum += f(*x);
                }
            }
            sums.iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>()
        },
    )
}

/// tanh as a ratio of polynomials (an approximation of the same form that Eigen uses), accurate
/// to 1e-6 and, unlike `f32::tanh`, free of branches, so that loops over it vectorise.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    // Beyond this the ratio of polynomials no longer holds; tanh is within 3e-7 of 1 there.
    let x = x.clamp(-7.905_311, 7.905_311);
    let x2 = x * x;
    // Minimax coefficients: x (p0 + p1 x² + … + p6 x¹²) / (q0 + q1 x² + q2 x⁴ + q3 x⁶).
    let mut p = -2.760_768_5e-16_f32;
    for coefficient in
        [2.000_188e-13, -8.604_672e-11, 5.122_297e-8, 1.485_722_4e-5, 6.372_619e-4, 4.893_524_6e-3]
    {
        p = p.mul_add(x2, coefficient); // one instruction where the loop is vectorised
    }
    let mut q = 1.198_258_4e-6_f32;
    for coefficient in [1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3] {
        q = q.mul_add(x2, coefficient);
    }
    x * p / q
}

#[cfg(test)]
mod tests {
    #[test]
    fn tanh_is_accurate_to_1e_6() {
        for i in -20_000..=20_000 {
            let x = i as f32 * 1e-3;
            assert!((f64::from(super::tanh(x)) - f64::from(x).tanh()).abs() < 1e-6, "tanh({x})");
        }
    }
}
