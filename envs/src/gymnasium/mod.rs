//! Any environment of Python's Gymnasium, run in a Python process: `--env-id gym:LunarLander-v3`.

use crate::{Actions, Env, Result, Spec, invalid};

/// `num_envs` copies of a Gymnasium environment in one Python process.
pub struct Bridge {
    spec: Spec,
}

/// One Gymnasium environment in a Python process of its own.
pub fn make(id: &str) -> Result<Box<dyn Env>> {
    invalid(format!("gym:{id}: not available"))
}

impl Bridge {
    /// Starts Python with `num_envs` copies of `id`.
    pub fn new(id: &str, _num_envs: usize) -> Result<Self> {
        invalid(format!("gym:{id}: not available"))
    }

    /// Id, spaces and limits.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Resets all copies, writing `[num_envs, observation_dim]` observations.
    pub fn reset(&mut self, _seed: u64, _observations: &mut [f32]) -> Result<()> {
        unimplemented!()
    }

    /// Steps all copies, resetting those that end; returns the rewards, `[num_envs]`.
    pub fn step(
        &mut self,
        _actions: Actions<'_>,
        _observations: &mut [f32],
        _final_observations: &mut [f32],
        _terminated: &mut [bool],
        _truncated: &mut [bool],
    ) -> Result<&[f64]> {
        unimplemented!()
    }

    /// The state of all copies, for a checkpoint.
    pub fn snapshot(&self) -> Result<Vec<u8>> {
        unimplemented!()
    }

    /// Takes on what [`Bridge::snapshot`] gave.
    pub fn restore(&mut self, _bytes: &[u8]) -> Result<()> {
        unimplemented!()
    }
}
