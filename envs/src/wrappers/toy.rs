//! An environment for the wrappers' tests.

use crate::{Action, Env, Result, Rng, Space, Spec, State, Step, env::expect_len};

/// Observes the action of the last step, or zeros at the start of an episode; never ends.
pub struct Echo {
    spec: Spec,
    last: Vec<f32>,
}

impl Echo {
    /// Box actions and observations of `shape`, `low` and `high` bounding the actions.
    pub fn new(shape: &[usize], low: f32, high: f32) -> Self {
        let size = shape.iter().product();
        let space =
            |low, high| Space::Box { shape: shape.to_vec(), low: vec![low; size], high: vec![high; size] };
        Self::with_actions(space(low, high), space(-100.0, 100.0))
    }

    /// `n` discrete actions; the observation is the index.
    pub fn discrete(n: usize) -> Self {
        Self::with_actions(Space::Discrete { n }, Space::uniform(1, 0.0, n as f32))
    }

    fn with_actions(action_space: Space, observation_space: Space) -> Self {
        let last = vec![0.0; observation_space.size()];
        let spec = Spec {
            id: "Echo-v0".into(),
            observation_space,
            action_space,
            max_episode_steps: None,
            reward_threshold: None,
        };
        Self { spec, last }
    }
}

impl Env for Echo {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        self.last.fill(0.0);
        Ok(())
    }

    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        match action {
            Action::Discrete(index) => self.last[0] = index as f32,
            Action::Continuous(vector) => self.last.copy_from_slice(vector),
        }
        Ok(Step::default())
    }

    fn observe(&self, observation: &mut [f32]) {
        observation.copy_from_slice(&self.last);
    }

    fn state(&self) -> Result<State> {
        Ok(State(self.last.iter().map(|&x| x.into()).collect()))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, self.last.len())?;
        self.last = state.0.iter().map(|&x| x as f32).collect();
        Ok(())
    }
}

/// The observation as a vector.
pub fn observation(env: &impl Env) -> Vec<f32> {
    let mut observation = vec![f32::NAN; env.spec().observation_space.size()];
    env.observe(&mut observation);
    observation
}
