//! Actions of any size, clipped to the environment's bounds (Gymnasium's `ClipAction`).

use super::action_bounds;
use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, TransitionModel};

/// Accepts any vector as an action and clips it to the bounds of `env`, for policies with an
/// unbounded distribution such as PPO's Gaussian. Its own action space is unbounded; its state is
/// the inner state.
pub struct ClipAction<E> {
    env: E,
    spec: Spec,
    low: Vec<f32>,     // [action_dim]
    high: Vec<f32>,    // [action_dim]
    clipped: Vec<f32>, // [action_dim]
}

impl<E: Env> ClipAction<E> {
    /// Wraps `env`.
    ///
    /// # Errors
    /// Actions that are not a Box.
    pub fn new(env: E) -> Result<Self> {
        let (low, high) = action_bounds(&env, "ClipAction")?;
        let mut spec = env.spec().clone();
        if let Space::Box { low, high, .. } = &mut spec.action_space {
            low.fill(f32::NEG_INFINITY);
            high.fill(f32::INFINITY);
        }
        Ok(Self { env, spec, clipped: vec![0.0; low.len()], low, high })
    }
}

impl<E: Env> Env for ClipAction<E> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.env.reset(rng)
    }

    fn forget(&mut self) {
        self.env.forget();
    }

    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        let bounds = self.low.iter().zip(&self.high);
        for ((clipped, action), (low, high)) in self.clipped.iter_mut().zip(action.vector()).zip(bounds) {
            *clipped = action.clamp(*low, *high);
        }
        self.env.step(Action::Continuous(&self.clipped), rng)
    }

    fn observe(&self, observation: &mut [f32]) {
        self.env.observe(observation);
    }

    fn state(&self) -> Result<State> {
        self.env.state()
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        self.env.set_state(state)
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        self.env.draw(canvas)
    }

    fn model(&self) -> Option<&TransitionModel> {
        self.env.model()
    }
}

#[cfg(test)]
mod tests {
    use super::super::toy::{Echo, observation};
    use super::*;
    use crate::rng;

    #[test]
    fn actions_are_clipped_to_the_bounds() {
        let mut env = ClipAction::new(Echo::new(&[3], -2.0, 0.5)).unwrap();
        assert!(env.spec().action_space.contains(&[1e30, -1e30, 0.0]));
        env.step(Action::Continuous(&[7.0, -7.0, 0.25]), &mut rng(0, 0)).unwrap();
        assert_eq!(observation(&env), [0.5, -2.0, 0.25]);
        env.set_state(&env.state().unwrap()).unwrap();
        assert_eq!(observation(&env), [0.5, -2.0, 0.25]);
    }

    #[test]
    fn discrete_actions_are_refused() {
        let error = ClipAction::new(Echo::discrete(2)).err().unwrap();
        assert_eq!(
            error.to_string(),
            "Echo-v0: ClipAction needs Box actions, this environment has Discrete(2)"
        );
    }
}
