//! Initial values of parameters, drawn from the run's own generator.

use candle_core::{Device, Result, Shape, Tensor};
use envs::Rng;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

/// How a parameter begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Every element the same.
    Const(f32),
    /// Uniform in `[lo, up)`.
    Uniform {
        /// Lower bound.
        lo: f32,
        /// Upper bound.
        up: f32,
    },
    /// Normal.
    Randn {
        /// Mean.
        mean: f32,
        /// Standard deviation.
        stdev: f32,
    },
    /// Rows (or columns, whichever are fewer) orthonormal, times `gain` (Saxe et al. 2014,
    /// arXiv:1312.6120). The first dimension is the output, the others are flattened.
    Orthogonal {
        /// Scale of the singular values.
        gain: f32,
    },
}

impl Init {
    /// Draws a tensor of `shape`.
    pub fn tensor(self, shape: impl Into<Shape>, rng: &mut Rng, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let len = shape.elem_count();
        let values: Vec<f32> = match self {
            Init::Const(value) => vec![value; len],
            Init::Uniform { lo, up } => (0..len).map(|_| lo + (up - lo) * rng.random::<f32>()).collect(),
            Init::Randn { mean, stdev } => (0..len)
                .map(|_| {
                    let z: f32 = StandardNormal.sample(rng);
                    mean + stdev * z
                })
                .collect(),
            Init::Orthogonal { gain } => {
                let rows = shape.dims().first().copied().unwrap_or(1);
                orthogonal(rows, len / rows.max(1), gain, rng)
            }
        };
        Tensor::from_vec(values, shape, device)
    }
}

/// A `rows` × `cols` matrix, row-major, whose shorter side is orthonormal times `gain`: Gaussian
/// vectors made orthogonal one after the other (modified Gram-Schmidt, in f64).
fn orthogonal(rows: usize, cols: usize, gain: f32, rng: &mut Rng) -> Vec<f32> {
    let (short, long) = (rows.min(cols), rows.max(cols));
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(short);
    while basis.len() < short {
        let mut vector: Vec<f64> = (0..long).map(|_| StandardNormal.sample(rng)).collect();
        for other in &basis {
            let dot: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
            vector.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
        }
        let norm = vector.iter().map(|a| a * a).sum::<f64>().sqrt();
        // A vector that (almost) lies in the span of the others is drawn again.
        if norm > 1e-6 {
            vector.iter_mut().for_each(|a| *a /= norm);
            basis.push(vector);
        }
    }
    let element = |r: usize, c: usize| if rows <= cols { basis[r][c] } else { basis[c][r] };
    (0..rows * cols).map(|i| gain * element(i / cols, i % cols) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_rows_or_columns_are_orthonormal() {
        for (rows, cols) in [(3, 7), (7, 3), (5, 5), (1, 4)] {
            let m = orthogonal(rows, cols, 2.0, &mut envs::rng(1, 0));
            let (short, long) = (rows.min(cols), rows.max(cols));
            let at =
                |i: usize, j: usize| f64::from(if rows <= cols { m[i * cols + j] } else { m[j * cols + i] });
            for a in 0..short {
                for b in 0..short {
                    let dot: f64 = (0..long).map(|j| at(a, j) * at(b, j)).sum();
                    approx::assert_abs_diff_eq!(dot, if a == b { 4.0 } else { 0.0 }, epsilon = 1e-5);
                }
            }
        }
    }
}
