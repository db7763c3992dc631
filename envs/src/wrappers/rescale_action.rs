//! Actions in a range of the caller's choice (Gymnasium's `RescaleAction`).

use super::action_bounds;
use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, TransitionModel, invalid};

/// Accepts actions in `[min, max]`, most often `[-1, 1]`, and maps them linearly to the bounds of
/// `env`: `low + (high − low) (action − min) / (max − min)`. An action outside of its range is
/// mapped outside of the environment's; put a [`super::ClipAction`] around this wrapper where that can
/// happen. Its state is the inner state.
pub struct RescaleAction<E> {
    env: E,
    spec: Spec,
    min: f64,
    max: f64,
    low: Vec<f32>,      // [action_dim]
    high: Vec<f32>,     // [action_dim]
    rescaled: Vec<f32>, // [action_dim]
}

impl<E: Env> RescaleAction<E> {
    /// Wraps `env`, so that its actions run from `min` to `max` in each dimension.
    ///
    /// # Errors
    /// Actions that are not a bounded Box, and a range that is empty or not finite.
    pub fn new(env: E, min: f32, max: f32) -> Result<Self> {
        let (low, high) = action_bounds(&env, "RescaleAction")?;
        if let Some(bound) = low.iter().chain(&high).find(|bound| !bound.is_finite()) {
            let id = &env.spec().id;
            return invalid(format!("{id}: RescaleAction needs bounded actions, a bound is {bound}"));
        }
        if !(min < max && min.is_finite() && max.is_finite()) {
            return invalid(format!("RescaleAction from {min} to {max}: finite numbers, the first smaller"));
        }
        let mut spec = env.spec().clone();
        if let Space::Box { low, high, .. } = &mut spec.action_space {
            low.fill(min);
            high.fill(max);
        }
        let rescaled = vec![0.0; low.len()];
        Ok(Self { env, spec, min: min.into(), max: max.into(), low, high, rescaled })
    }
}

impl<E: Env> Env for RescaleAction<E> {
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
        for ((rescaled, action), (low, high)) in self.rescaled.iter_mut().zip(action.vector()).zip(bounds) {
            // In f64, where a difference of two f32 is exact enough for `max` to meet `high`.
            let (low, high) = (f64::from(*low), f64::from(*high));
            let fraction = (f64::from(*action) - self.min) / (self.max - self.min);
            *rescaled = (low + (high - low) * fraction) as f32;
        }
        self.env.step(Action::Continuous(&self.rescaled), rng)
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
    use crate::{rng, wrappers::ClipAction};

    #[test]
    fn the_range_is_mapped_to_the_bounds() {
        let mut env = RescaleAction::new(Echo::new(&[3], -0.4, 0.1), -1.0, 1.0).unwrap();
        assert!(env.spec().action_space.contains(&[-1.0, 0.0, 1.0]));
        assert!(!env.spec().action_space.contains(&[-1.0, 0.0, 1.1]));
        env.step(Action::Continuous(&[-1.0, 0.0, 1.0]), &mut rng(0, 0)).unwrap();
        assert_eq!(observation(&env), [-0.4, -0.15, 0.1]);
    }

    #[test]
    fn clipping_goes_around_it() {
        let inner = RescaleAction::new(Echo::new(&[2], 0.0, 8.0), -1.0, 1.0).unwrap();
        let mut env = ClipAction::new(inner).unwrap();
        env.step(Action::Continuous(&[-5.0, 0.5]), &mut rng(0, 0)).unwrap();
        assert_eq!(observation(&env), [0.0, 6.0]);
    }

    #[test]
    fn what_cannot_be_rescaled_is_refused() {
        let unbounded = Echo::new(&[1], f32::NEG_INFINITY, 1.0);
        let message = |result: Result<RescaleAction<Echo>>| result.err().unwrap().to_string();
        assert_eq!(
            message(RescaleAction::new(unbounded, -1.0, 1.0)),
            "Echo-v0: RescaleAction needs bounded actions, a bound is -inf"
        );
        assert!(message(RescaleAction::new(Echo::new(&[1], 0.0, 1.0), 1.0, 1.0)).contains("from 1 to 1"));
        assert!(message(RescaleAction::new(Echo::discrete(3), -1.0, 1.0)).contains("Discrete(3)"));
    }
}
