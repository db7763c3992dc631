//! ShortCorridor-v0: a corridor in which one of three fields turns left and right around, and
//! nothing tells the fields apart.
//!
//! Sutton & Barto (2018), "Reinforcement Learning", example 13.1: the only policy that is any good
//! is stochastic. The actions are the book's; the time limit is ours, for without one a
//! deterministic policy would never end its first episode.

use super::draw_flag;
use crate::{
    Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, env::expect_len, invalid,
};

/// Fields 0, 1 and 2, and the goal.
const GOAL: usize = 3;
/// Here left leads right and right leads left.
const SWITCHED: usize = 1;
/// Long enough to bias nothing: a policy that goes right 5 % of the time, the worst in the book's
/// figure 13.1, takes 82 steps on average.
const MAX_EPISODE_STEPS: u32 = 1000;

/// State: the field, 0 at the left end (where an episode begins) to 3, the goal. Actions: 0 left,
/// 1 right. Reward: −1 a step. The observation is the number 1, always.
///
/// A policy that goes right with probability p has, from the first field, the value
///
/// ```text
/// v(p) = (2p − 4) / (p (1 − p))      at most −6 − 4√2 ≈ −11.66, at p = 2 − √2 ≈ 0.586
/// ```
pub struct ShortCorridor {
    spec: Spec,
    field: usize,
}

impl ShortCorridor {
    /// At the left end.
    pub fn new() -> Self {
        Self {
            spec: Spec {
                id: "ShortCorridor-v0".into(),
                observation_space: Space::bounded(&[1.0], &[1.0]),
                action_space: Space::Discrete { n: 2 },
                max_episode_steps: Some(MAX_EPISODE_STEPS),
                reward_threshold: None,
            },
            field: 0,
        }
    }
}

impl Default for ShortCorridor {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for ShortCorridor {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        self.field = 0;
        Ok(())
    }

    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let leads_right = (action.index() == 1) != (self.field == SWITCHED);
        self.field = if leads_right { (self.field + 1).min(GOAL) } else { self.field.saturating_sub(1) };
        Ok(Step { reward: -1.0, terminated: self.field == GOAL, truncated: false })
    }

    fn observe(&self, observation: &mut [f32]) {
        observation[0] = 1.0;
    }

    fn state(&self) -> Result<State> {
        Ok(State(vec![self.field as f64]))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, 1)?;
        let field = state.0[0];
        if field.fract() != 0.0 || !(0.0..=GOAL as f64).contains(&field) {
            return invalid(format!("{}: field {field}; fields are 0 to {GOAL}", self.spec.id));
        }
        self.field = field as usize;
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        canvas.clear(palette::WHITE);
        canvas.fit(-0.1, -0.1, GOAL as f64 + 1.1, 1.1);
        for field in 0..=GOAL {
            let color = if field == SWITCHED { palette::SKY } else { palette::LIGHT_GREY };
            canvas.rectangle(field as f64 + 0.02, 0.02, 0.96, 0.96, color);
        }
        draw_flag(canvas, (GOAL as f64 + 0.35, 0.12), 0.75, palette::GREEN);
        canvas.circle(self.field as f64 + 0.5, 0.5, 0.25, palette::VERMILLION);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::RngExt;

    #[test]
    fn the_middle_field_switches_left_and_right() {
        let mut env = ShortCorridor::new();
        let rng = &mut rng(1, 0);
        // (field, action) → next field
        for (field, action, next) in [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 0), (2, 0, 1), (2, 1, 3)] {
            env.set_state(&State(vec![f64::from(field)])).unwrap();
            let step = env.step(Action::Discrete(action), rng).unwrap();
            assert_eq!(env.state().unwrap(), State(vec![f64::from(next)]), "{field}, {action}");
            assert_eq!(step, Step { reward: -1.0, terminated: next == 3, truncated: false });
        }
    }

    #[test]
    fn a_policy_has_the_value_of_the_formula() {
        let mut env = ShortCorridor::new();
        let rng = &mut rng(1, 0);
        for p in [0.2, 2.0 - 2.0_f64.sqrt(), 0.9] {
            let episodes = 40_000;
            let returns: Vec<f64> = (0..episodes)
                .map(|_| {
                    env.reset(rng).unwrap();
                    let mut total = 0.0;
                    loop {
                        let right = rng.random::<f64>() < p;
                        let step = env.step(Action::Discrete(right.into()), rng).unwrap();
                        total += step.reward;
                        if step.terminated {
                            return total;
                        }
                    }
                })
                .collect();
            let n = f64::from(episodes);
            let mean = returns.iter().sum::<f64>() / n;
            let variance = returns.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / n;
            let value = (2.0 * p - 4.0) / (p * (1.0 - p));
            assert!((mean - value).abs() < 5.0 * (variance / n).sqrt(), "v({p}) is {mean}, not {value}");
        }
    }
}
