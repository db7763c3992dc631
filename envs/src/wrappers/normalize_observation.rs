//! Observations scaled to mean 0 and variance 1 (Gymnasium's `NormalizeObservation`).

use super::RunningMeanStd;
use serde::{Deserialize, Serialize};

/// Keeps the division away from zero (Gymnasium's `epsilon`).
const EPSILON: f64 = 1e-8;

/// `clip((observation − mean) / √(var + 1e-8), −clip, clip)` with running statistics of every
/// observation seen by any copy of the environment.
///
/// The statistics go on across episodes, however these end: terminated and truncated steps are
/// samples like any other, and nothing is reset. An episode's true final observation, which only
/// the bootstrap of a truncated episode reads, is not fed to the statistics: pass it through
/// [`NormalizeObservation::apply`]. Evaluation uses `apply` throughout.
///
/// The policy knows observations through these statistics only, so save them with the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NormalizeObservation {
    /// Mean and variance of the observations so far, `[observation_dim]`.
    pub statistics: RunningMeanStd,
    /// Normalised values lie in `[-clip, clip]`.
    pub clip: f32,
}

impl NormalizeObservation {
    /// For observations of `observation_dim` numbers, clipped to ±10 as CleanRL does
    /// (`ppo_continuous_action.py`).
    pub fn new(observation_dim: usize) -> Self {
        Self { statistics: RunningMeanStd::new(observation_dim), clip: 10.0 }
    }

    /// Takes `observations`, `[num_envs, observation_dim]` flattened, into the statistics and
    /// writes their normalised values to `out`.
    ///
    /// # Panics
    /// When the lengths differ or are not a multiple of `observation_dim`.
    pub fn normalize(&mut self, observations: &[f32], out: &mut [f32]) {
        self.statistics.update(observations);
        self.apply(observations, out);
    }

    /// Writes the normalised values of `observations`, `[num_envs, observation_dim]` flattened,
    /// and leaves the statistics as they are.
    ///
    /// # Panics
    /// When the lengths differ or are not a multiple of `observation_dim`.
    pub fn apply(&self, observations: &[f32], out: &mut [f32]) {
        let RunningMeanStd { mean, var, .. } = &self.statistics;
        assert_eq!(observations.len(), out.len(), "observations and normalised observations");
        assert_eq!(observations.len() % mean.len(), 0, "observations of {} numbers", mean.len());
        for (row, out) in observations.chunks_exact(mean.len()).zip(out.chunks_exact_mut(mean.len())) {
            for (((x, out), mean), var) in row.iter().zip(out).zip(mean).zip(var) {
                let normalized = (f64::from(*x) - mean) / (var + EPSILON).sqrt();
                *out = (normalized as f32).clamp(-self.clip, self.clip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persist::Persist;
    use approx::assert_relative_eq;

    #[test]
    fn agrees_with_gymnasium() {
        // (x − mean) / sqrt(var + 1e-8) with RunningMeanStd of Gymnasium 1.4.0.
        let mut normalize = NormalizeObservation::new(2);
        let mut out = [0.0; 6];
        normalize.normalize(&[1.0, -2.0, 0.5, 4.0, 2.0, 100.0], &mut out);
        let expected: [f32; 6] = [-0.26717624, -0.7703107, -1.0688921, -0.6419215, 1.3362557, 1.412305];
        out.iter().zip(expected).for_each(|(o, e)| assert_relative_eq!(*o, e, max_relative = 1e-6));
        normalize.normalize(&[3.0, -2.5, 0.25, 7.0, -1.0, 0.125], &mut out);
        let expected: [f32; 6] = [1.5973645, -0.54897815, -0.55417085, -0.29169378, -1.5321414, -0.4778864];
        out.iter().zip(expected).for_each(|(o, e)| assert_relative_eq!(*o, e, max_relative = 1e-6));
    }

    #[test]
    fn values_far_out_are_clipped() {
        let mut normalize = NormalizeObservation::new(1);
        let mut out = [0.0; 2];
        normalize.normalize(&[0.0, 1.0], &mut out);
        normalize.apply(&[1e6, -1e6], &mut out);
        assert_eq!(out, [10.0, -10.0]);
    }

    #[test]
    fn the_frozen_form_and_a_saved_copy_give_the_same() {
        let mut normalize = NormalizeObservation::new(2);
        let (mut out, mut frozen) = ([0.0; 4], [0.0; 4]);
        let batch = [0.3, -7.0, 1.5, 2.0];
        normalize.normalize(&batch, &mut out);
        let before = normalize.clone();
        normalize.apply(&batch, &mut frozen);
        assert_eq!(out, frozen);
        assert_eq!(normalize, before);

        let mut loaded = NormalizeObservation::new(2);
        loaded.load(&normalize.save().unwrap()).unwrap();
        assert_eq!(loaded, normalize);
    }
}
