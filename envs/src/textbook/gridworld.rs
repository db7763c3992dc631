//! Gridworld-v0: 4 × 4 fields, two corners of which end the episode.
//!
//! Sutton & Barto (2018), "Reinforcement Learning", example 4.1 and figure 4.1.

use super::draw_grid;
use crate::toy_text::{Game, Tabular};
use crate::{Canvas, Outcome, TransitionModel};

const SIDE: usize = 4;
const LAST: usize = SIDE * SIDE - 1;

/// State `row · 4 + column` from the top left; states 0 and 15 are the ends. Actions: 0 up, 1 right, 2
/// down, 3 left; whoever would leave the grid stays. Reward: −1 a step. An episode begins in any of the
/// fourteen other states (the book does not say where).
pub struct Gridworld;

impl Gridworld {
    /// In state 1.
    pub fn new() -> Tabular<Self> {
        let outcome = |state: usize, action: usize| {
            if state == 0 || state == LAST {
                return Outcome { probability: 1.0, next_state: state, reward: 0.0, terminated: true };
            }
            let (row, column) = (state / SIDE, state % SIDE);
            let (row, column) = match action {
                0 => (row.saturating_sub(1), column),
                1 => (row, (column + 1).min(SIDE - 1)),
                2 => ((row + 1).min(SIDE - 1), column),
                _ => (row, column.saturating_sub(1)),
            };
            let next_state = row * SIDE + column;
            let terminated = next_state == 0 || next_state == LAST;
            Outcome { probability: 1.0, next_state, reward: -1.0, terminated }
        };
        let model = TransitionModel {
            outcomes: (0..=LAST).map(|s| (0..4).map(|a| vec![outcome(s, a)]).collect()).collect(),
            initial: (0..=LAST).map(|s| if s == 0 || s == LAST { 0.0 } else { 1.0 / 14.0 }).collect(),
        };
        Tabular::new(Gridworld, "Gridworld-v0", model, None, None)
    }
}

impl Game for Gridworld {
    fn draw(&self, state: usize, canvas: &mut Canvas) {
        draw_grid(canvas, (SIDE, SIDE), |_| false, &[0, LAST], state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Env, textbook::optimal_values};

    #[test]
    fn the_optimal_values_are_the_distances() {
        let values = optimal_values(Gridworld::new().model().unwrap(), 1.0, 10);
        assert_eq!(values, [0, -1, -2, -3, -1, -2, -3, -2, -2, -3, -2, -1, -3, -2, -1, 0].map(f64::from));
    }

    #[test]
    fn the_random_policys_values_are_the_figures() {
        let env = Gridworld::new();
        let outcomes = &env.model().unwrap().outcomes;
        let mut values = [0.0; 16];
        for sweep in 1..=2000 {
            let before = values;
            for state in 1..LAST {
                let of = |o: &Outcome| 0.25 * (o.reward + before[o.next_state]);
                values[state] = outcomes[state].iter().flatten().map(of).sum();
            }
            if sweep == 10 {
                // Figure 4.1, k = 10.
                let figure = [-6.1, -8.4, -9.0, -6.1, -7.7, -8.4, -8.4];
                for (value, wanted) in values[1..8].iter().zip(figure) {
                    approx::assert_abs_diff_eq!(*value, wanted, epsilon = 0.06);
                }
            }
        }
        let book = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0];
        for (value, wanted) in values.iter().zip(book) {
            approx::assert_abs_diff_eq!(*value, f64::from(wanted), epsilon = 1e-6);
        }
    }
}
