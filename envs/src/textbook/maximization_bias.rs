//! MaximizationBias-v0: a choice that looks good as long as luck is taken for skill.
//!
//! Sutton & Barto (2018), "Reinforcement Learning", example 6.7 and figure 6.5. The book speaks of "many"
//! actions in B; these are ten, with which its curves come out.

use crate::canvas::palette;
use crate::{
    Action, Canvas, Env, Outcome, Result, Rng, Space, Spec, State, Step, TransitionModel, env::expect_len,
    invalid,
};
use rand::RngExt;
use rand_distr::StandardNormal;

const A: usize = 0;
const B: usize = 1;
const END: usize = 2;
/// Actions in B, all of the same worth.
const NUM_ACTIONS: usize = 10;
/// Mean of their rewards; the standard deviation is 1.
const MEAN: f64 = -0.1;

/// States: 0 is A, in which an episode begins, 1 is B and 2 the end. Action 0 goes from A left to B, any
/// other one right to the end; both for a reward of 0. Each of the ten actions in B ends the episode with
/// a reward drawn from N(−0.1, 1). To go left is worth −0.1 and lasts two steps, to go right 0 and one
/// step: undiscounted `v*(A) = 0` and `v*(B) = −0.1`.
///
/// In its model A has two actions only, as in the book, where a random one goes left half of the time;
/// rewards there are expectations.
pub struct MaximizationBias {
    spec: Spec,
    model: TransitionModel,
    state: usize,
}

impl MaximizationBias {
    /// In A.
    pub fn new() -> Self {
        let to = |next_state: usize, reward: f64| {
            vec![Outcome { probability: 1.0, next_state, reward, terminated: next_state == END }]
        };
        let model = TransitionModel {
            outcomes: vec![
                vec![to(B, 0.0), to(END, 0.0)],
                vec![to(END, MEAN); NUM_ACTIONS],
                vec![to(END, 0.0); 2], // nobody acts there
            ],
            initial: vec![1.0, 0.0, 0.0],
        };
        let spec = Spec {
            id: "MaximizationBias-v0".into(),
            observation_space: Space::Discrete { n: 3 },
            action_space: Space::Discrete { n: NUM_ACTIONS },
            max_episode_steps: None,
            reward_threshold: None,
        };
        Self { spec, model, state: A }
    }
}

impl Default for MaximizationBias {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for MaximizationBias {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        self.state = A;
        Ok(())
    }

    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        let noise: f64 = if self.state == B { rng.sample(StandardNormal) } else { 0.0 };
        let actions = &self.model.outcomes[self.state];
        let outcome = actions[action.index().min(actions.len() - 1)][0];
        self.state = outcome.next_state;
        Ok(Step { reward: outcome.reward + noise, terminated: outcome.terminated, truncated: false })
    }

    fn observe(&self, observation: &mut [f32]) {
        observation[0] = self.state as f32;
    }

    fn state(&self) -> Result<State> {
        Ok(State(vec![self.state as f64]))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, 1)?;
        let states = [A, B, END];
        let Some(&known) = states.iter().find(|&&known| known as f64 == state.0[0]) else {
            return invalid(format!("{}: state {}; states are 0, 1 and 2", self.spec.id, state.0[0]));
        };
        self.state = known;
        Ok(())
    }

    /// B and A in a row between two ends.
    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        canvas.clear(palette::WHITE);
        canvas.fit(-0.1, -0.6, 4.1, 1.6);
        for (field, color) in
            [palette::GREY, palette::LIGHT_GREY, palette::LIGHT_GREY, palette::GREY].into_iter().enumerate()
        {
            canvas.rectangle(field as f64 + 0.02, 0.02, 0.96, 0.96, color);
        }
        // The end is the one on the right: where an episode has ended does not show in its state.
        let field = match self.state {
            A => 2.5,
            B => 1.5,
            _ => 3.5,
        };
        // The ways out of B, one an action.
        for action in 0..NUM_ACTIONS {
            let y = (action as f64 + 0.5) / NUM_ACTIONS as f64;
            canvas.line(&[(1.0, y), (0.85, y)], 0.03, palette::BLUE);
        }
        canvas.circle(field, 0.5, 0.25, palette::VERMILLION);
        Ok(())
    }

    fn model(&self) -> Option<&TransitionModel> {
        Some(&self.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rng, textbook::optimal_values};

    #[test]
    fn to_go_left_is_worth_a_tenth_less() {
        assert_eq!(optimal_values(MaximizationBias::new().model().unwrap(), 1.0, 5), [0.0, MEAN, 0.0]);
    }

    #[test]
    fn the_first_action_goes_left_and_all_others_right() {
        let (mut env, rng) = (MaximizationBias::new(), &mut rng(1, 0));
        for action in 0..NUM_ACTIONS {
            env.reset(rng).unwrap();
            let step = env.step(Action::Discrete(action), rng).unwrap();
            let (next_state, terminated) = if action == 0 { (B, false) } else { (END, true) };
            assert_eq!((step.reward, step.terminated, env.state), (0.0, terminated, next_state));
        }
    }

    #[test]
    fn rewards_in_b_are_normal_whatever_one_does() {
        let (mut env, rng) = (MaximizationBias::new(), &mut rng(2, 0));
        for action in 0..NUM_ACTIONS {
            let rewards: Vec<f64> = (0..10_000)
                .map(|_| {
                    env.set_state(&State(vec![1.0])).unwrap();
                    let step = env.step(Action::Discrete(action), rng).unwrap();
                    assert!(step.terminated && env.state == END);
                    step.reward
                })
                .collect();
            let mean = rewards.iter().sum::<f64>() / 1e4;
            let variance = rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>() / 1e4;
            // Four standard errors: 0.01 of the mean, √2 % of the variance.
            assert!((mean - MEAN).abs() < 0.04, "action {action}: {mean}");
            assert!((variance - 1.0).abs() < 0.057, "action {action}: {variance}");
        }
    }

    #[test]
    fn states_that_are_none_are_refused() {
        let mut env = MaximizationBias::new();
        for state in [3.0, -1.0, 0.5] {
            assert!(env.set_state(&State(vec![state])).is_err(), "{state}");
        }
    }
}
