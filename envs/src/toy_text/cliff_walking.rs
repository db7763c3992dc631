//! CliffWalking-v1: walk along a cliff to the goal; stepping over its edge costs 100 and leads
//! back to the start.
//!
//! Sutton & Barto, "Reinforcement Learning", example 6.6; state and action numbers and the order
//! of outcomes as in Gymnasium's CliffWalking-v1.

use super::{Game, Tabular, draw_diamond, draw_flag};
use crate::{Canvas, Outcome, TransitionModel, canvas::palette};

const ROWS: usize = 4;
const COLUMNS: usize = 12;
const START: usize = (ROWS - 1) * COLUMNS;
const GOAL: usize = ROWS * COLUMNS - 1;

/// State `row · 12 + column` from the top left; actions 0 up, 1 right, 2 down, 3 left; reward −1
/// a step. The cliff lies between the start and the goal in the lowest row.
pub struct CliffWalking;

impl CliffWalking {
    /// At the start. On a slippery floor (CliffWalkingSlippery-v1) one goes in the wanted
    /// direction or either one beside it, a third of the time each.
    pub fn new(is_slippery: bool) -> Tabular<Self> {
        let id = if is_slippery { "CliffWalkingSlippery-v1" } else { "CliffWalking-v1" };
        let outcomes_of = |state: usize, action: usize| -> Vec<Outcome> {
            if is_slippery {
                // The direction before the wanted one, itself, the one after.
                let directions = [(action + 3) % 4, action, (action + 1) % 4];
                directions.map(|direction| outcome(state, direction, 1.0 / 3.0)).to_vec()
            } else {
                vec![outcome(state, action, 1.0)]
            }
        };
        let model = TransitionModel {
            outcomes: (0..ROWS * COLUMNS)
                .map(|state| (0..4).map(|action| outcomes_of(state, action)).collect())
                .collect(),
            initial: (0..ROWS * COLUMNS).map(|state| if state == START { 1.0 } else { 0.0 }).collect(),
        };
        Tabular::new(CliffWalking, id, model, None, None)
    }
}

fn outcome(state: usize, direction: usize, probability: f64) -> Outcome {
    let (row, column) = (state / COLUMNS, state % COLUMNS);
    let (row, column) = match direction {
        0 => (row.saturating_sub(1), column),
        1 => (row, (column + 1).min(COLUMNS - 1)),
        2 => ((row + 1).min(ROWS - 1), column),
        _ => (row, column.saturating_sub(1)),
    };
    let next_state = row * COLUMNS + column;
    if next_state > START && next_state < GOAL {
        return Outcome { probability, next_state: START, reward: -100.0, terminated: false };
    }
    Outcome { probability, next_state, reward: -1.0, terminated: next_state == GOAL }
}

impl Game for CliffWalking {
    fn draw(&self, state: usize, canvas: &mut Canvas) {
        let place = |state: usize| ((state % COLUMNS) as f64, (ROWS - 1 - state / COLUMNS) as f64);
        canvas.clear(palette::WHITE);
        canvas.fit(0.0, 0.0, COLUMNS as f64, ROWS as f64);
        for field in 0..ROWS * COLUMNS {
            let (x, y) = place(field);
            if field > START && field < GOAL {
                canvas.rectangle(x, y, 1.0, 0.9, palette::BLACK);
                // Rocks.
                draw_diamond(canvas, (x + 0.3, y + 0.35), 0.15, palette::GREY);
                draw_diamond(canvas, (x + 0.7, y + 0.55), 0.2, palette::GREY);
            } else {
                canvas.rectangle(x + 0.02, y + 0.02, 0.96, 0.96, palette::LIGHT_GREY);
            }
        }
        let (x, y) = place(GOAL);
        draw_flag(canvas, (x + 0.35, y + 0.12), 0.75, palette::GREEN);
        let (x, y) = place(state);
        canvas.circle(x + 0.5, y + 0.5, 0.25, palette::VERMILLION);
    }
}
