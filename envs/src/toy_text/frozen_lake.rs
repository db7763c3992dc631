//! FrozenLake-v1: cross a frozen lake to the goal without falling into a hole, on slippery ice.
//!
//! Maps, order of outcomes and probabilities as in Gymnasium's FrozenLake-v1.

use super::{Game, Tabular, draw_flag};
use crate::{Canvas, Outcome, Result, TransitionModel, canvas::palette, invalid};

const MAP_4X4: [&str; 4] = ["SFFF", "FHFH", "FFFH", "HFFG"];
const MAP_8X8: [&str; 8] =
    ["SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"];

/// The lake: `S` start, `F` frozen, `H` hole, `G` goal. State `row · columns + column`; actions
/// 0 left, 1 down, 2 right, 3 up; reward 1 at the goal, else 0.
pub struct FrozenLake {
    map: Vec<Vec<u8>>, // [rows][columns]
}

impl FrozenLake {
    /// FrozenLake-v1 on a map of one's own, a text a row. On slippery ice one goes in the wanted
    /// direction or either one beside it, a third of the time each.
    ///
    /// # Errors
    /// Rows of different lengths, other letters than `SFHG`, and a map without a start.
    pub fn new(map: &[impl AsRef<str>], is_slippery: bool) -> Result<Tabular<Self>> {
        let id = if is_slippery { "FrozenLake-v1" } else { "FrozenLake-v1-deterministic" };
        build(id, map, is_slippery, 100, 0.7)
    }

    /// FrozenLake-v1: the lake of 4 × 4 fields.
    pub fn small(is_slippery: bool) -> Result<Tabular<Self>> {
        Self::new(&MAP_4X4, is_slippery)
    }

    /// FrozenLake8x8-v1: the lake of 8 × 8 fields.
    pub fn large(is_slippery: bool) -> Result<Tabular<Self>> {
        let id = if is_slippery { "FrozenLake8x8-v1" } else { "FrozenLake8x8-v1-deterministic" };
        build(id, &MAP_8X8, is_slippery, 200, 0.85)
    }

    /// The map, one text a row.
    pub fn map(&self) -> Vec<String> {
        self.map.iter().map(|row| String::from_utf8_lossy(row).into_owned()).collect()
    }
}

fn build(
    id: &str,
    map: &[impl AsRef<str>],
    is_slippery: bool,
    max_episode_steps: u32,
    reward_threshold: f64,
) -> Result<Tabular<FrozenLake>> {
    let map: Vec<Vec<u8>> = map.iter().map(|row| row.as_ref().as_bytes().to_vec()).collect();
    let fields = map.concat();
    if map.iter().any(|row| row.len() != map[0].len())
        || fields.iter().any(|field| !b"SFHG".contains(field))
        || !fields.contains(&b'S')
    {
        return invalid(format!("{id}: a map has rows of equal length over S, F, H, G and at least one S"));
    }
    let model = model(&map, is_slippery);
    Ok(Tabular::new(FrozenLake { map }, id, model, Some(max_episode_steps), Some(reward_threshold)))
}

fn model(map: &[Vec<u8>], is_slippery: bool) -> TransitionModel {
    let (rows, columns) = (map.len(), map[0].len());
    let moved = |row: usize, column: usize, direction: usize| match direction {
        0 => (row, column.saturating_sub(1)),
        1 => ((row + 1).min(rows - 1), column),
        2 => (row, (column + 1).min(columns - 1)),
        _ => (row.saturating_sub(1), column),
    };
    // The original computes the chance to slip to one side as half the rest, which is rounded
    // differently from a third.
    const SUCCESS: f64 = 1.0 / 3.0;
    const SLIP: f64 = (1.0 - SUCCESS) / 2.0;

    let outcomes_of = |row: usize, column: usize, action: usize| -> Vec<Outcome> {
        if b"HG".contains(&map[row][column]) {
            let next_state = row * columns + column;
            return vec![Outcome { probability: 1.0, next_state, reward: 0.0, terminated: true }];
        }
        let outcome = |direction: usize, probability: f64| {
            let (row, column) = moved(row, column, direction);
            let field = map[row][column];
            Outcome {
                probability,
                next_state: row * columns + column,
                reward: if field == b'G' { 1.0 } else { 0.0 },
                terminated: b"HG".contains(&field),
            }
        };
        if is_slippery {
            let (before, after) = ((action + 3) % 4, (action + 1) % 4);
            vec![outcome(before, SLIP), outcome(action, SUCCESS), outcome(after, SLIP)]
        } else {
            vec![outcome(action, 1.0)]
        }
    };
    let fields = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let starts = map.iter().flatten().filter(|&&field| field == b'S').count() as f64;
    TransitionModel {
        outcomes: fields
            .map(|(row, column)| (0..4).map(|action| outcomes_of(row, column, action)).collect())
            .collect(),
        initial: map.iter().flatten().map(|&field| if field == b'S' { 1.0 / starts } else { 0.0 }).collect(),
    }
}

impl Game for FrozenLake {
    fn draw(&self, state: usize, canvas: &mut Canvas) {
        let (rows, columns) = (self.map.len(), self.map[0].len());
        canvas.clear(palette::WHITE);
        canvas.fit(0.0, 0.0, columns as f64, rows as f64);
        for (row, fields) in self.map.iter().enumerate() {
            for (column, field) in fields.iter().enumerate() {
                let (x, y) = (column as f64, (rows - 1 - row) as f64);
                canvas.rectangle(x + 0.02, y + 0.02, 0.96, 0.96, palette::LIGHT_GREY);
                match field {
                    b'S' => canvas.rectangle(x + 0.15, y + 0.15, 0.7, 0.7, palette::WHITE),
                    b'H' => canvas.circle(x + 0.5, y + 0.5, 0.38, palette::BLUE),
                    b'G' => draw_flag(canvas, (x + 0.35, y + 0.12), 0.75, palette::GREEN),
                    _ => {}
                }
            }
        }
        let (x, y) = ((state % columns) as f64, (rows - 1 - state / columns) as f64);
        canvas.circle(x + 0.5, y + 0.5, 0.22, palette::VERMILLION);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_maps_are_refused() {
        for map in [vec!["SF", "G"], vec!["SFX"], vec!["FFG"], vec![]] {
            let error = FrozenLake::new(&map, true).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains("a map has rows of equal length"), "{map:?}: {error}");
        }
    }
}
