//! Actions that sometimes stick (Gymnasium's `StickyAction`).

use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, invalid};
use rand::RngExt;

/// With probability `p` the action executed in the step before is executed again, whatever the
/// agent chose: Machado et al., "Revisiting the Arcade Learning Environment" (2018), section 5,
/// who propose 0.25 so that no sequence of actions can be learned by heart. An episode's first
/// action never sticks.
///
/// Its state is the inner state followed by 1 or 0, whether there was a step before, and that
/// step's action.
pub struct StickyAction<E> {
    env: E,
    probability: f64,
    sticks: bool,     // whether an action has been executed in this episode
    index: usize,     // the last action executed, where actions are Discrete
    vector: Vec<f32>, // [action_dim], the last action executed, where they are a Box
}

impl<E: Env> StickyAction<E> {
    /// Wraps `env`; each action repeats the one before with `probability`, in `[0, 1)`.
    ///
    /// # Errors
    /// A probability outside of that, and actions that are neither Discrete nor a Box.
    pub fn new(env: E, probability: f64) -> Result<Self> {
        let id = &env.spec().id;
        if !(0.0..1.0).contains(&probability) {
            return invalid(format!("{id}: StickyAction with probability {probability}: 0 to below 1"));
        }
        let action_dim = match &env.spec().action_space {
            Space::Discrete { .. } => 0,
            space @ Space::Box { .. } => space.size(),
            space => {
                return invalid(format!("{id}: StickyAction needs Discrete or Box actions, not {space}"));
            }
        };
        Ok(Self { env, probability, sticks: false, index: 0, vector: vec![0.0; action_dim] })
    }
}

impl<E: Env> Env for StickyAction<E> {
    fn spec(&self) -> &Spec {
        self.env.spec()
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.sticks = false;
        self.index = 0;
        self.vector.fill(0.0);
        self.env.reset(rng)
    }

    fn forget(&mut self) {
        self.env.forget();
    }

    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        let repeat = self.sticks && rng.random_bool(self.probability);
        self.sticks = true;
        match action {
            Action::Discrete(index) => {
                if !repeat {
                    self.index = index;
                }
                self.env.step(Action::Discrete(self.index), rng)
            }
            Action::Continuous(vector) => {
                if !repeat {
                    self.vector.copy_from_slice(vector);
                }
                self.env.step(Action::Continuous(&self.vector), rng)
            }
        }
    }

    fn observe(&self, observation: &mut [f32]) {
        self.env.observe(observation);
    }

    fn state(&self) -> Result<State> {
        let mut state = self.env.state()?;
        state.0.push(self.sticks.into());
        match self.env.spec().action_space {
            Space::Discrete { .. } => state.0.push(self.index as f64),
            _ => state.0.extend(self.vector.iter().map(|&x| f64::from(x))),
        }
        Ok(state)
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        let id = &self.env.spec().id;
        let space = &self.env.spec().action_space;
        let Some(inner) = state.0.len().checked_sub(1 + space.size()) else {
            return invalid(format!("{id}: a state of {} numbers is too short", state.0.len()));
        };
        let (inner, own) = state.0.split_at(inner);
        let action = &own[1..];
        let fits = match *space {
            Space::Discrete { n } => action[0] >= 0.0 && action[0] < n as f64 && action[0].fract() == 0.0,
            _ => action.iter().all(|x| x.is_finite()),
        };
        if !(own[0] == 0.0 || own[0] == 1.0) || !fits {
            return invalid(format!("{id}: {own:?} are not whether an action sticks and an action"));
        }
        self.env.set_state(&State(inner.to_vec()))?;
        self.sticks = own[0] == 1.0;
        self.index = action[0] as usize;
        for (x, value) in self.vector.iter_mut().zip(action) {
            *x = *value as f32;
        }
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        self.env.draw(canvas)
    }
}

#[cfg(test)]
mod tests {
    use super::super::toy::{Echo, observation};
    use super::*;
    use crate::rng;

    #[test]
    fn repeats_with_the_probability_given() {
        let mut env = StickyAction::new(Echo::discrete(2), 0.25).unwrap();
        let mut rng = rng(1, 0);
        env.reset(&mut rng).unwrap();
        let (mut repeated, mut executed) = (0, usize::MAX);
        let steps: u32 = 40_000;
        for _ in 0..steps {
            // The other action than the last one executed, so that a repeat shows.
            let action = usize::from(executed == 0);
            env.step(Action::Discrete(action), &mut rng).unwrap();
            executed = observation(&env)[0] as usize;
            repeated += u32::from(executed != action);
        }
        // Standard deviation of the rate: √(0.25 · 0.75 / 40000) = 0.0022.
        let rate = f64::from(repeated) / f64::from(steps);
        assert!((rate - 0.25).abs() < 0.01, "{rate}");
    }

    #[test]
    fn the_first_action_of_an_episode_never_sticks() {
        let mut env = StickyAction::new(Echo::discrete(3), 0.99).unwrap();
        let mut rng = rng(2, 0);
        for episode in 0..50 {
            env.reset(&mut rng).unwrap();
            env.step(Action::Discrete(episode % 3), &mut rng).unwrap();
            assert_eq!(observation(&env), [(episode % 3) as f32]);
        }
    }

    #[test]
    fn the_state_holds_the_action_that_sticks() {
        let mut env = StickyAction::new(Echo::new(&[2], -9.0, 9.0), 0.9).unwrap();
        let mut generator = rng(3, 0);
        env.reset(&mut generator).unwrap();
        env.step(Action::Continuous(&[1.0, 2.0]), &mut generator).unwrap();
        let state = env.state().unwrap();
        assert_eq!(state.0, [1.0, 2.0, 1.0, 1.0, 2.0]);

        let run = |env: &mut StickyAction<Echo>| -> Vec<f32> {
            let mut generator = rng(4, 0);
            let mut seen = Vec::new();
            for i in 0..50 {
                env.step(Action::Continuous(&[i as f32 / 10.0, 0.0]), &mut generator).unwrap();
                seen.extend(observation(env));
            }
            seen
        };
        let first = run(&mut env);
        assert_eq!(first[..2], [1.0, 2.0], "the first action of the state sticks");
        env.set_state(&state).unwrap();
        assert_eq!(env.state().unwrap(), state);
        assert_eq!(run(&mut env), first);

        for bad in [vec![1.0, 2.0, 0.5, 1.0, 2.0], vec![1.0, 2.0, 1.0, f64::NAN, 2.0], vec![1.0]] {
            assert!(env.set_state(&State(bad)).is_err());
        }
        let mut discrete = StickyAction::new(Echo::discrete(2), 0.5).unwrap();
        assert!(discrete.set_state(&State(vec![0.0, 1.0, 2.0])).is_err());
        assert!(discrete.set_state(&State(vec![0.0, 1.0, 1.0])).is_ok());
    }

    #[test]
    fn a_probability_of_one_is_refused() {
        let message = StickyAction::new(Echo::discrete(2), 1.0).err().unwrap().to_string();
        assert_eq!(message, "Echo-v0: StickyAction with probability 1: 0 to below 1");
    }
}
