//! Games with few states and a known transition model, sampled as Gymnasium samples them.

use crate::{
    Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, TransitionModel, env::expect_len, invalid,
};
use rand::RngExt;
use std::sync::Arc;

/// What a tabular game adds to its transition model: how it looks.
pub trait Game: Send {
    /// Draws `state`.
    fn draw(&self, state: usize, canvas: &mut Canvas);
}

/// A game that is its transition model. State: the index of the state, as observed.
pub struct Tabular<G> {
    game: G,
    spec: Spec,
    model: Arc<TransitionModel>, // a large one can be shared between copies
    state: usize,
}

impl<G: Game> Tabular<G> {
    /// The game in the first state an episode can begin in. Spaces follow from the model.
    pub(crate) fn new(
        game: G,
        id: &str,
        model: impl Into<Arc<TransitionModel>>,
        max_episode_steps: Option<u32>,
        reward_threshold: Option<f64>,
    ) -> Self {
        let model = model.into();
        let spec = Spec {
            id: id.into(),
            observation_space: Space::Discrete { n: model.outcomes.len() },
            action_space: Space::Discrete { n: model.outcomes[0].len() },
            max_episode_steps,
            reward_threshold,
        };
        let mut this = Self { game, spec, model, state: 0 };
        this.state = this.start();
        this
    }

    /// The first state that an episode can begin in.
    pub fn start(&self) -> usize {
        categorical_sample(self.model.initial.iter().copied(), 0.0)
    }

    /// The game itself.
    pub fn game(&self) -> &G {
        &self.game
    }

    /// Begins an episode in the state that `uniform`, a number in [0, 1), chooses.
    pub fn reset_with(&mut self, uniform: f64) {
        self.state = categorical_sample(self.model.initial.iter().copied(), uniform);
    }

    /// Which of the outcomes of `action` in the current state `uniform`, a number in [0, 1),
    /// chooses.
    pub fn sample_outcome(&self, action: usize, uniform: f64) -> usize {
        let outcomes = &self.model.outcomes[self.state][action];
        categorical_sample(outcomes.iter().map(|outcome| outcome.probability), uniform)
    }

    /// Takes `action`, whose outcome `uniform`, a number in [0, 1), chooses.
    pub fn step_with(&mut self, action: usize, uniform: f64) -> Step {
        let outcome = self.model.outcomes[self.state][action][self.sample_outcome(action, uniform)];
        self.state = outcome.next_state;
        Step { reward: outcome.reward, terminated: outcome.terminated, truncated: false }
    }
}

/// The first index whose cumulative probability exceeds `uniform`; 0 where rounding leaves none,
/// as in Gymnasium.
fn categorical_sample(probabilities: impl Iterator<Item = f64>, uniform: f64) -> usize {
    let mut cumulative = 0.0;
    probabilities
        .map(|probability| {
            cumulative += probability;
            cumulative
        })
        .position(|cumulative| cumulative > uniform)
        .unwrap_or(0)
}

impl<G: Game> Env for Tabular<G> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.reset_with(rng.random());
        Ok(())
    }

    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        Ok(self.step_with(action.index(), rng.random()))
    }

    fn observe(&self, observation: &mut [f32]) {
        observation[0] = self.state as f32;
    }

    fn state(&self) -> Result<State> {
        Ok(State(vec![self.state as f64]))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, 1)?;
        let (state, n) = (state.0[0], self.model.outcomes.len());
        if state.fract() != 0.0 || !(0.0..n as f64).contains(&state) {
            return invalid(format!("{}: state {state}; states are 0 to {}", self.spec.id, n - 1));
        }
        self.state = state as usize;
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        self.game.draw(self.state, canvas);
        Ok(())
    }

    fn model(&self) -> Option<&TransitionModel> {
        Some(&self.model)
    }
}

#[cfg(test)]
mod tests {
    use super::categorical_sample;

    #[test]
    fn the_first_index_beyond_the_number_is_chosen() {
        let choose = |uniform| categorical_sample([0.25, 0.0, 0.5, 0.25].into_iter(), uniform);
        // A number equal to a cumulative probability belongs to the next index with any.
        let chosen = [0.0, 0.2, 0.25, 0.7, 0.75, 0.99].map(choose);
        assert_eq!(chosen, [0, 0, 2, 2, 3, 3]);
    }

    #[test]
    fn probabilities_that_fall_short_of_one_choose_the_first() {
        assert_eq!(categorical_sample([0.5, 0.25].into_iter(), 0.9), 0);
    }
}
