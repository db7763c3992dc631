//! Truncation after a number of steps (Gymnasium's `TimeLimit`).

use crate::{Action, Canvas, Env, Result, Rng, Spec, State, Step, TransitionModel, invalid};

/// Truncates episodes after `spec().max_episode_steps` steps. Its state is the inner state
/// followed by the steps elapsed.
pub struct TimeLimit<E> {
    env: E,
    limit: u32,
    elapsed: u32,
}

impl<E: Env> TimeLimit<E> {
    /// Wraps `env`; one without a limit is never truncated.
    pub fn new(env: E) -> Self {
        let limit = env.spec().max_episode_steps.unwrap_or(u32::MAX);
        Self { env, limit, elapsed: 0 }
    }
}

impl<E: Env> Env for TimeLimit<E> {
    fn spec(&self) -> &Spec {
        self.env.spec()
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.elapsed = 0;
        self.env.reset(rng)
    }

    fn forget(&mut self) {
        self.env.forget();
    }

    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        let step = self.env.step(action, rng)?;
        self.elapsed = self.elapsed.saturating_add(1);
        // As in Gymnasium, the last step of the limit may be both terminated and truncated.
        Ok(Step { truncated: step.truncated || self.elapsed >= self.limit, ..step })
    }

    fn observe(&self, observation: &mut [f32]) {
        self.env.observe(observation);
    }

    fn state(&self) -> Result<State> {
        let mut state = self.env.state()?;
        state.0.push(self.elapsed.into());
        Ok(state)
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        let Some((&elapsed, inner)) = state.0.split_last() else {
            return invalid(format!("{}: a state cannot be empty", self.spec().id));
        };
        if !(0.0..=f64::from(u32::MAX)).contains(&elapsed) || elapsed.fract() != 0.0 {
            return invalid(format!("{}: {elapsed} steps elapsed", self.spec().id));
        }
        self.env.set_state(&State(inner.to_vec()))?;
        self.elapsed = elapsed as u32;
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        self.env.draw(canvas)
    }

    fn model(&self) -> Option<&TransitionModel> {
        self.env.model()
    }
}
