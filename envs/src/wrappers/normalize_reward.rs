//! Rewards scaled by the spread of the discounted return (Gymnasium's `NormalizeReward`).

use super::RunningMeanStd;
use serde::{Deserialize, Serialize};

/// Keeps the division away from zero (Gymnasium's `epsilon`).
const EPSILON: f64 = 1e-8;

/// `clip(reward / √(Var[R] + 1e-8), −clip, clip)`, where each copy of the environment keeps a
/// discounted sum of its rewards so far, and `Var[R]` is the running variance of these sums over
/// all copies and steps:
///
/// ```text
/// R ← γ R (1 − terminated) + reward
/// ```
///
/// The mean is not subtracted: that would change which episodes are worth prolonging.
///
/// At an episode's end: `R` starts again from zero after a terminated or truncated step, and the
/// step of a termination itself counts with its reward alone, as in Gymnasium 1.4's vector
/// wrapper when environments reset in the same step. The variance goes on across episodes.
/// Evaluation reports raw rewards and needs none of this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NormalizeReward {
    /// Mean and variance of the discounted sums so far, `dim = 1`.
    pub statistics: RunningMeanStd,
    /// The running discounted sums `R`, `[num_envs]`.
    pub returns: Vec<f64>,
    /// Discount γ of the sums.
    pub gamma: f64,
    /// Normalised rewards lie in `[-clip, clip]`.
    pub clip: f32,
}

impl NormalizeReward {
    /// For `num_envs` copies and the discount `gamma`, clipped to ±10 as CleanRL does
    /// (`ppo_continuous_action.py`).
    pub fn new(num_envs: usize, gamma: f64) -> Self {
        Self { statistics: RunningMeanStd::new(1), returns: vec![0.0; num_envs], gamma, clip: 10.0 }
    }

    /// Takes the rewards of one step of every copy into the statistics and writes the scaled
    /// rewards to `out`; all slices are `[num_envs]`.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn normalize(&mut self, rewards: &[f32], terminated: &[bool], truncated: &[bool], out: &mut [f32]) {
        let lengths = [rewards.len(), terminated.len(), truncated.len(), out.len()];
        assert_eq!(lengths, [self.returns.len(); 4], "rewards of {} environments", self.returns.len());
        for ((sum, &reward), &terminated) in self.returns.iter_mut().zip(rewards).zip(terminated) {
            let before = if terminated { 0.0 } else { *sum };
            *sum = self.gamma * before + f64::from(reward);
        }
        self.statistics.update(&self.returns);
        for ((sum, terminated), truncated) in self.returns.iter_mut().zip(terminated).zip(truncated) {
            if *terminated || *truncated {
                *sum = 0.0;
            }
        }
        self.apply(rewards, out);
    }

    /// Writes the scaled rewards and leaves everything else as it is.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn apply(&self, rewards: &[f32], out: &mut [f32]) {
        assert_eq!(rewards.len(), out.len(), "rewards and scaled rewards");
        let scale = (self.statistics.var[0] + EPSILON).sqrt();
        for (reward, out) in rewards.iter().zip(out) {
            *out = ((f64::from(*reward) / scale) as f32).clamp(-self.clip, self.clip);
        }
    }

    /// Starts every sum from zero, when all environments were reset outside of a step; the
    /// statistics stay.
    pub fn reset(&mut self) {
        self.returns.fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persist::Persist;
    use approx::assert_relative_eq;

    #[test]
    fn agrees_with_gymnasium() {
        // Two environments, gamma 0.9: printed by gymnasium.wrappers.vector.NormalizeReward,
        // version 1.4.0, around an environment with AutoresetMode.SAME_STEP. The second one
        // terminates in the second step, the first is truncated in the third.
        let rewards = [[1.0, 2.0], [0.5, -1.0], [3.0, 0.0], [1.0, 1.0], [-2.0, 4.0]];
        let scaled = [
            [1.9994003_f32, 3.9988006],
            [0.4441136, -0.8882272],
            [1.8185534, 0.0],
            [0.6975124, 0.6975124],
            [-1.0658466, 2.1316932],
        ];
        let returns = [[1.0, 2.0], [1.4, 0.0], [0.0, 0.0], [1.0, 1.0], [-1.1, 4.9]];
        let mut normalize = NormalizeReward::new(2, 0.9);
        for t in 0..5 {
            let mut out = [0.0; 2];
            normalize.normalize(&rewards[t], &[false, t == 1], &[t == 2, false], &mut out);
            for i in 0..2 {
                // Gymnasium keeps the sums in float32.
                assert_relative_eq!(out[i], scaled[t][i], max_relative = 1e-6);
                assert_relative_eq!(normalize.returns[i], returns[t][i], max_relative = 1e-12);
            }
        }
        assert_relative_eq!(normalize.statistics.var[0], 3.5210370846047345, max_relative = 1e-6);
    }

    #[test]
    fn the_frozen_form_clips_and_changes_nothing() {
        let mut normalize = NormalizeReward::new(1, 0.99);
        let mut out = [0.0];
        normalize.normalize(&[0.5], &[false], &[false], &mut out);
        let before = normalize.clone();
        normalize.apply(&[-1e9], &mut out);
        assert_eq!(out, [-10.0]);
        assert_eq!(normalize, before);
        let mut loaded = NormalizeReward::new(3, 0.5);
        loaded.load(&normalize.save().unwrap()).unwrap();
        assert_eq!(loaded, normalize);
        normalize.reset();
        assert_eq!((normalize.returns, normalize.statistics), (vec![0.0], before.statistics));
    }
}
