//! WindyGridworld-v0: walk to a goal through columns in which a wind blows upwards.
//!
//! Sutton & Barto (2018), "Reinforcement Learning", example 6.5, and exercises 6.9 (king's moves) and
//! 6.10 (stochastic wind).

use super::draw_grid;
use crate::toy_text::{Game, Tabular};
use crate::{Canvas, Outcome, TransitionModel, canvas::palette};

const ROWS: usize = 7;
const COLUMNS: usize = 10;
const START: usize = 3 * COLUMNS;
const GOAL: usize = 3 * COLUMNS + 7;
/// Fields by which a column's wind moves upwards.
const WIND: [isize; COLUMNS] = [0, 0, 0, 1, 1, 1, 2, 2, 1, 0];

/// Up, right, down, left, then the diagonals, clockwise from up and right: rows downwards and columns to
/// the right.
const DIRECTIONS: [(isize, isize); 8] =
    [(-1, 0), (0, 1), (1, 0), (0, -1), (-1, 1), (1, 1), (1, -1), (-1, -1)];

/// Which steps there are, and whether the wind varies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// WindyGridworld-v0: up, right, down, left.
    Four,
    /// WindyGridworld-v0-kings: the four diagonals too.
    Kings,
    /// WindyGridworld-v0-stochastic: king's moves; where there is wind, it blows a field more or a field
    /// less than it should a third of the time each.
    KingsInVaryingWind,
}

/// State `row · 10 + column` from the top left. Actions: 0 up, 1 right, 2 down, 3 left, then 4 up and
/// right, 5 down and right, 6 down and left, 7 up and left; on the way the wind of the column that one
/// leaves blows one upwards, and the grid's border stops one. Reward: −1 a step until the goal is
/// reached. The shortest way takes 15 steps, of a king 7.
pub struct WindyGridworld;

impl WindyGridworld {
    /// At the start.
    pub fn new(moves: Moves) -> Tabular<Self> {
        let (id, num_actions) = match moves {
            Moves::Four => ("WindyGridworld-v0", 4),
            Moves::Kings => ("WindyGridworld-v0-kings", 8),
            Moves::KingsInVaryingWind => ("WindyGridworld-v0-stochastic", 8),
        };
        let outcome = |state: usize, action: usize, gust: isize, probability: f64| {
            let (row, column) = ((state / COLUMNS) as isize, (state % COLUMNS) as isize);
            let (down, right) = DIRECTIONS[action];
            let row = (row + down - WIND[state % COLUMNS] - gust).clamp(0, ROWS as isize - 1);
            let column = (column + right).clamp(0, COLUMNS as isize - 1);
            let next_state = row as usize * COLUMNS + column as usize;
            Outcome { probability, next_state, reward: -1.0, terminated: next_state == GOAL }
        };
        let outcomes_of = |state: usize, action: usize| -> Vec<Outcome> {
            if state == GOAL {
                return vec![Outcome { probability: 1.0, next_state: GOAL, reward: 0.0, terminated: true }];
            }
            match moves == Moves::KingsInVaryingWind && WIND[state % COLUMNS] > 0 {
                true => [-1, 0, 1].map(|gust| outcome(state, action, gust, 1.0 / 3.0)).to_vec(),
                false => vec![outcome(state, action, 0, 1.0)],
            }
        };
        let model = TransitionModel {
            outcomes: (0..ROWS * COLUMNS)
                .map(|state| (0..num_actions).map(|action| outcomes_of(state, action)).collect())
                .collect(),
            initial: (0..ROWS * COLUMNS).map(|state| if state == START { 1.0 } else { 0.0 }).collect(),
        };
        Tabular::new(WindyGridworld, id, model, None, None)
    }
}

impl Game for WindyGridworld {
    fn draw(&self, state: usize, canvas: &mut Canvas) {
        draw_grid(canvas, (ROWS, COLUMNS), |_| false, &[GOAL], state);
        // An arrow in the lowest row for each field that the wind blows.
        for (column, &wind) in WIND.iter().enumerate() {
            for arrow in 0..wind {
                let (x, y) = (column as f64 + 0.5, 0.1 + 0.25 * arrow as f64);
                canvas.polygon(&[(x - 0.15, y), (x + 0.15, y), (x, y + 0.2)], palette::SKY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Env, textbook::optimal_values};

    #[test]
    fn the_shortest_ways_are_the_known_ones() {
        for (moves, steps) in [(Moves::Four, 15.0), (Moves::Kings, 7.0)] {
            let values = optimal_values(WindyGridworld::new(moves).model().unwrap(), 1.0, 200);
            assert_eq!(values[START], -steps, "{moves:?}");
        }
        // Computed exactly by dynamic programming, independently.
        let env = WindyGridworld::new(Moves::KingsInVaryingWind);
        let values = optimal_values(env.model().unwrap(), 1.0, 2000);
        approx::assert_abs_diff_eq!(values[START], -10.965, epsilon = 5e-4);
    }

    #[test]
    fn the_wind_is_that_of_the_column_one_leaves() {
        let env = WindyGridworld::new(Moves::Four);
        let next = |row: usize, column: usize, action: usize| {
            let state = env.model().unwrap().outcomes[row * COLUMNS + column][action][0].next_state;
            (state / COLUMNS, state % COLUMNS)
        };
        // The book's example: left from beside the goal leads to just above it.
        assert_eq!(next(3, 8, 3), (2, 7));
        assert_eq!(next(3, 2, 1), (3, 3));
        assert_eq!(next(3, 3, 1), (2, 4));
        // The border holds what move and wind together lead to.
        assert_eq!((next(0, 6, 2), next(1, 6, 1), next(6, 0, 2)), ((0, 6), (0, 7), (6, 0)));
    }
}
