//! Mean and variance of a stream of vectors, kept without keeping the stream.

use serde::{Deserialize, Serialize};

/// The weight that the initial guess, mean 0 and variance 1, has among the samples: Gymnasium's
/// `RunningMeanStd(epsilon=1e-4)`. It keeps the variance positive after a single sample.
const INITIAL_COUNT: f64 = 1e-4;

/// Running mean and population variance of each of `dim` numbers, updated a batch at a time.
///
/// A batch with mean `m_b`, variance `v_b` and count `n_b` joins the statistics `m`, `v`, `n` by
/// the parallel rule of Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for
/// computing sample variances" (1979), whose batches of one are Welford's (1962):
///
/// ```text
/// δ = m_b − m,   n' = n + n_b,   m' = m + δ n_b / n',   v' = (v n + v_b n_b + δ² n n_b / n') / n'
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunningMeanStd {
    /// Mean of each number, `[dim]`.
    pub mean: Vec<f64>,
    /// Population variance of each number, `[dim]`.
    pub var: Vec<f64>,
    /// Samples seen, plus the weight 1e-4 of the initial guess.
    pub count: f64,
}

impl RunningMeanStd {
    /// Mean 0 and variance 1 in each of `dim` numbers, until samples say otherwise.
    pub fn new(dim: usize) -> Self {
        Self { mean: vec![0.0; dim], var: vec![1.0; dim], count: INITIAL_COUNT }
    }

    /// Takes in a batch `[batch_size, dim]`, flattened; an empty one changes nothing.
    ///
    /// # Panics
    /// When the batch is not a whole number of samples.
    pub fn update<T: Copy + Into<f64>>(&mut self, batch: &[T]) {
        let dim = self.mean.len();
        assert_eq!(batch.len() % dim, 0, "{} numbers are not samples of {dim} numbers", batch.len());
        if batch.is_empty() {
            return;
        }
        let batch_count = (batch.len() / dim) as f64;
        let count = self.count + batch_count;
        for (i, (mean, var)) in self.mean.iter_mut().zip(&mut self.var).enumerate() {
            let column = || batch[i..].iter().step_by(dim).map(|&x| x.into());
            let batch_mean = column().sum::<f64>() / batch_count;
            let batch_var = column().map(|x| (x - batch_mean).powi(2)).sum::<f64>() / batch_count;
            let delta = batch_mean - *mean;
            *mean += delta * batch_count / count;
            *var = (*var * self.count
                + batch_var * batch_count
                + delta * delta * self.count * batch_count / count)
                / count;
        }
        self.count = count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn agrees_with_gymnasium() {
        // Printed by gymnasium.wrappers.utils.RunningMeanStd, version 1.4.0, for float64 batches.
        let mut statistics = RunningMeanStd::new(2);
        statistics.update(&[1.0_f32, -2.0, 0.5, 4.0, 2.0, 100.0]);
        assert_relative_eq!(statistics.mean[0], 1.1666277790740307, max_relative = 1e-14);
        assert_relative_eq!(statistics.mean[1], 33.99886670444318, max_relative = 1e-14);
        assert_relative_eq!(statistics.var[0], 0.38895462592609975, max_relative = 1e-14);
        assert_relative_eq!(statistics.var[1], 2183.965766523381, max_relative = 1e-14);
        statistics.update(&[3.0_f32, -2.5, 0.25, 7.0, -1.0, 0.125]);
        assert_relative_eq!(statistics.mean[0], 0.9583173613773103, max_relative = 1e-14);
        assert_relative_eq!(statistics.mean[1], 17.770537157714035, max_relative = 1e-14);
        assert_relative_eq!(statistics.var[0], 1.6336853005917344, max_relative = 1e-14);
        assert_relative_eq!(statistics.var[1], 1363.3909769101751, max_relative = 1e-14);
        assert_eq!(statistics.count, 6.0001);
    }

    #[test]
    fn batches_of_any_size_come_to_the_same() {
        let samples: Vec<f64> = (0..60).map(|i| f64::from(i * i % 17) * 0.3 + 1e3).collect();
        let mut whole = RunningMeanStd::new(3);
        whole.update(&samples);
        let mut single = RunningMeanStd::new(3);
        samples.chunks(3).for_each(|sample| single.update(sample));
        single.update::<f64>(&[]);
        for i in 0..3 {
            assert_relative_eq!(whole.mean[i], single.mean[i], max_relative = 1e-12);
            assert_relative_eq!(whole.var[i], single.var[i], max_relative = 1e-9);
        }
    }

    #[test]
    #[should_panic(expected = "4 numbers are not samples of 3 numbers")]
    fn refuses_a_part_of_a_sample() {
        RunningMeanStd::new(3).update(&[0.0_f32; 4]);
    }
}
