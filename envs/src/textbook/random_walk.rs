//! RandomWalk5-v0, RandomWalk19-v0 and RandomWalk1000-v0: states in a row, the ends of which end the
//! episode.
//!
//! Sutton & Barto (2018), "Reinforcement Learning": example 6.2 (5 states), example 7.1 (19) and example
//! 9.1 (1000). The book's walks are drawn, not steered: they are these under the policy that goes left
//! and right equally often.

use crate::toy_text::{Game, Tabular, draw_flag};
use crate::{Canvas, Outcome, TransitionModel, canvas::palette};
use std::sync::{Arc, OnceLock};

/// States 1 to n from left to right; 0 and n + 1 are the ends. Actions: 0 left, 1 right, by a number of
/// states drawn from 1 to the longest jump; whoever would jump over an end lands on it. An episode begins
/// in the middle.
///
/// | id | n | longest jump | reward at the left end | at the right end |
/// |---|---|---|---|---|
/// | RandomWalk5-v0 | 5 | 1 | 0 | 1 |
/// | RandomWalk19-v0 | 19 | 1 | −1 | 1 |
/// | RandomWalk1000-v0 | 1000 | 100 | −1 | 1 |
///
/// All other rewards are 0. Undiscounted, state s of the first two is worth `s/6` and `(s − 10)/10`
/// where left and right are equally likely.
pub struct RandomWalk {
    length: usize, // n
}

impl RandomWalk {
    /// RandomWalk5-v0.
    pub fn five() -> Tabular<Self> {
        Self::new("RandomWalk5-v0", 5, model(5, 3, 1, 0.0))
    }

    /// RandomWalk19-v0.
    pub fn nineteen() -> Tabular<Self> {
        Self::new("RandomWalk19-v0", 19, model(19, 10, 1, -1.0))
    }

    /// RandomWalk1000-v0.
    pub fn thousand() -> Tabular<Self> {
        // Megabytes, which all copies share.
        static MODEL: OnceLock<Arc<TransitionModel>> = OnceLock::new();
        let model = MODEL.get_or_init(|| Arc::new(model(1000, 500, 100, -1.0)));
        Self::new("RandomWalk1000-v0", 1000, model.clone())
    }

    fn new(id: &str, length: usize, model: impl Into<Arc<TransitionModel>>) -> Tabular<Self> {
        Tabular::new(RandomWalk { length }, id, model, None, None)
    }
}

fn model(length: usize, start: usize, longest_jump: usize, left_reward: f64) -> TransitionModel {
    let right_end = length + 1;
    let outcomes_of = |state: usize, action: usize| -> Vec<Outcome> {
        if state == 0 || state == right_end {
            return vec![Outcome { probability: 1.0, next_state: state, reward: 0.0, terminated: true }];
        }
        // How many jumps end the walk, and those that do not.
        let room = if action == 0 { state - 1 } else { length - state };
        let over = longest_jump.saturating_sub(room);
        let probability = |jumps: usize| jumps as f64 / longest_jump as f64;
        let mut outcomes: Vec<Outcome> = (1..=room.min(longest_jump))
            .map(|jump| {
                let next_state = if action == 0 { state - jump } else { state + jump };
                Outcome { probability: probability(1), next_state, reward: 0.0, terminated: false }
            })
            .collect();
        if over > 0 {
            let (next_state, reward) = if action == 0 { (0, left_reward) } else { (right_end, 1.0) };
            outcomes.push(Outcome { probability: probability(over), next_state, reward, terminated: true });
        }
        outcomes
    };
    TransitionModel {
        outcomes: (0..=right_end).map(|s| (0..2).map(|a| outcomes_of(s, a)).collect()).collect(),
        initial: (0..=right_end).map(|state| if state == start { 1.0 } else { 0.0 }).collect(),
    }
}

impl Game for RandomWalk {
    fn draw(&self, state: usize, canvas: &mut Canvas) {
        let fields = self.length + 2;
        canvas.clear(palette::WHITE);
        if fields > 100 {
            // A line on which the agent is a dot.
            canvas.view(-0.05, -0.5, 1.05, 0.5);
            canvas.line(&[(0.0, 0.0), (1.0, 0.0)], 0.01, palette::GREY);
            canvas.circle(state as f64 / (fields - 1) as f64, 0.0, 0.02, palette::VERMILLION);
            return;
        }
        canvas.fit(-0.1, -0.1, fields as f64 + 0.1, 1.1);
        for field in 0..fields {
            let end = field == 0 || field == fields - 1;
            let color = if end { palette::GREY } else { palette::LIGHT_GREY };
            canvas.rectangle(field as f64 + 0.02, 0.02, 0.96, 0.96, color);
        }
        draw_flag(canvas, (fields as f64 - 0.65, 0.12), 0.75, palette::GREEN);
        canvas.circle(state as f64 + 0.5, 0.5, 0.25, palette::VERMILLION);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Env;

    /// What the states are worth where left and right are equally likely.
    fn values(walk: &Tabular<RandomWalk>, sweeps: usize) -> Vec<f64> {
        let model = walk.model().unwrap();
        let mut values = vec![0.0; model.outcomes.len()];
        for _ in 0..sweeps {
            for state in 0..values.len() {
                let of = |o: &Outcome| {
                    0.5 * o.probability * (o.reward + if o.terminated { 0.0 } else { values[o.next_state] })
                };
                values[state] = model.outcomes[state].iter().flatten().map(of).sum();
            }
        }
        values
    }

    #[test]
    fn the_values_are_the_books() {
        for (state, value) in values(&RandomWalk::five(), 500).iter().enumerate().skip(1).take(5) {
            approx::assert_abs_diff_eq!(*value, state as f64 / 6.0, epsilon = 1e-9);
        }
        for (state, value) in values(&RandomWalk::nineteen(), 3000).iter().enumerate().skip(1).take(19) {
            approx::assert_abs_diff_eq!(*value, (state as f64 - 10.0) / 10.0, epsilon = 1e-9);
        }
        // Figure 9.1: nearly a straight line, a little flatter than (s − 500.5)/500 since jumps are cut off
        // at the ends, and flattest near them.
        let values = values(&RandomWalk::thousand(), 1500);
        for state in 1..=1000 {
            approx::assert_abs_diff_eq!(values[state], -values[1001 - state], epsilon = 1e-6);
            assert!(state == 1 || values[state] > values[state - 1]);
            assert!((values[state] - (state as f64 - 500.5) / 500.0).abs() < 0.12, "{state}");
        }
        assert!((-0.95..-0.85).contains(&values[1]), "{}", values[1]);
    }

    #[test]
    fn jumps_that_would_pass_an_end_land_on_it() {
        let walk = RandomWalk::thousand();
        let outcomes = &walk.model().unwrap().outcomes;
        // From 30, 29 jumps to the left stay among the states and 71 end the walk.
        assert_eq!(outcomes[30][0].len(), 30);
        assert_eq!(
            outcomes[30][0][29],
            Outcome { probability: 0.71, next_state: 0, reward: -1.0, terminated: true }
        );
        assert_eq!(outcomes[30][1].len(), 100);
        assert_eq!(outcomes[500].iter().map(Vec::len).collect::<Vec<_>>(), [100, 100]);
        assert_eq!(
            outcomes[1000][1],
            [Outcome { probability: 1.0, next_state: 1001, reward: 1.0, terminated: true }]
        );
        assert_eq!(RandomWalk::five().model().unwrap().outcomes[1][0][0].reward, 0.0);
    }
}
