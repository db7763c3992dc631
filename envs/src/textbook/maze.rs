//! DynaMaze-v0, BlockingMaze-v0 and ShortcutMaze-v0: find the way to the goal, and another one where the
//! walls have changed.
//!
//! Sutton & Barto (2018), "Reinforcement Learning", examples 8.1, 8.2 and 8.3.

use super::draw_grid;
use crate::toy_text::{Game, Tabular};
use crate::{
    Action, Canvas, Env, Outcome, Result, Rng, Spec, State, Step, TransitionModel, env::expect_len, invalid,
};

const ROWS: usize = 6;
const COLUMNS: usize = 9;
const GOAL: usize = 8;

/// `S` start, `G` goal, `#` wall.
const DYNA: [&str; ROWS] = [
    ".......#G", //
    "..#....#.", //
    "S.#....#.", //
    "..#......", //
    ".....#...", //
    ".........",
];
/// One wall lies across the changing mazes, and their ways lead round its ends.
const OPEN_ON_THE_RIGHT: &str = "########.";
const OPEN_ON_THE_LEFT: &str = ".########";
const OPEN_ON_BOTH_SIDES: &str = ".#######.";

/// State `row · 9 + column` from the top left. Actions: 0 up, 1 right, 2 down, 3 left; whoever would
/// walk into a wall or leave the maze stays. Reward: 1 at the goal, which ends the episode, otherwise 0.
/// The shortest way through DynaMaze-v0 takes 14 steps.
pub struct Maze {
    walls: Vec<bool>, // [rows · columns]
}

impl Maze {
    /// DynaMaze-v0, at the start.
    pub fn dyna() -> Tabular<Self> {
        Self::playable("DynaMaze-v0", &DYNA)
    }

    fn playable(id: &str, map: &[&str; ROWS]) -> Tabular<Self> {
        let fields = map.concat().into_bytes();
        let walls: Vec<bool> = fields.iter().map(|&field| field == b'#').collect();
        let outcome = |state: usize, action: usize| {
            if state == GOAL {
                return Outcome { probability: 1.0, next_state: GOAL, reward: 0.0, terminated: true };
            }
            let (row, column) = (state / COLUMNS, state % COLUMNS);
            let (row, column) = match action {
                0 => (row.saturating_sub(1), column),
                1 => (row, (column + 1).min(COLUMNS - 1)),
                2 => ((row + 1).min(ROWS - 1), column),
                _ => (row, column.saturating_sub(1)),
            };
            let ahead = row * COLUMNS + column;
            let next_state = if walls[ahead] { state } else { ahead };
            let reward = if next_state == GOAL { 1.0 } else { 0.0 };
            Outcome { probability: 1.0, next_state, reward, terminated: next_state == GOAL }
        };
        let model = TransitionModel {
            outcomes: (0..fields.len()).map(|s| (0..4).map(|a| vec![outcome(s, a)]).collect()).collect(),
            initial: fields.iter().map(|&field| if field == b'S' { 1.0 } else { 0.0 }).collect(),
        };
        Tabular::new(Maze { walls }, id, model, None, None)
    }
}

impl Game for Maze {
    fn draw(&self, state: usize, canvas: &mut Canvas) {
        draw_grid(canvas, (ROWS, COLUMNS), |field| self.walls[field], &[GOAL], state);
    }
}

/// A maze whose wall changes after a number of steps, counted over all episodes. State: the field, and
/// the steps taken since the maze was made. It has no transition model, for what an action does depends
/// on the time; whoever stands where the wall has moved to can walk out of it.
pub struct ChangingMaze {
    spec: Spec,
    before: Tabular<Maze>,
    after: Tabular<Maze>,
    changes_at: u64,
    field: usize,
    steps: u64,
}

impl ChangingMaze {
    /// BlockingMaze-v0: after 1000 steps the way, of 10 steps, is blocked; another one, of 16, opens.
    pub fn blocking() -> Self {
        Self::new("BlockingMaze-v0", OPEN_ON_THE_RIGHT, OPEN_ON_THE_LEFT, 1000)
    }

    /// ShortcutMaze-v0: after 3000 steps a way of 10 steps opens beside the one of 16.
    pub fn shortcut() -> Self {
        Self::new("ShortcutMaze-v0", OPEN_ON_THE_LEFT, OPEN_ON_BOTH_SIDES, 3000)
    }

    fn new(id: &str, before: &str, after: &str, changes_at: u64) -> Self {
        let maze = |wall: &str| {
            Maze::playable(id, &["........G", ".........", ".........", wall, ".........", "...S....."])
        };
        let before = maze(before);
        let field = before.start();
        Self { spec: before.spec().clone(), before, after: maze(after), changes_at, field, steps: 0 }
    }

    /// The maze as it is now.
    fn now(&mut self) -> &mut Tabular<Maze> {
        if self.steps < self.changes_at { &mut self.before } else { &mut self.after }
    }
}

impl Env for ChangingMaze {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Back to the start. Time goes on.
    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        self.field = self.before.start();
        Ok(())
    }

    fn forget(&mut self) {
        self.steps = 0; // the maze as it was
    }

    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        let field = self.field;
        let maze = self.now();
        maze.set_state(&State(vec![field as f64]))?;
        let step = maze.step(action, rng)?;
        self.field = maze.state()?.0[0] as usize;
        self.steps += 1;
        Ok(step)
    }

    fn observe(&self, observation: &mut [f32]) {
        observation[0] = self.field as f32;
    }

    fn state(&self) -> Result<State> {
        Ok(State(vec![self.field as f64, self.steps as f64]))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, 2)?;
        let (field, steps) = (state.0[0], state.0[1]);
        let fields = 0.0..(ROWS * COLUMNS) as f64;
        if field.fract() != 0.0 || steps.fract() != 0.0 || !fields.contains(&field) || steps < 0.0 {
            return invalid(format!(
                "{}: field {field} after {steps} steps; fields are 0 to 53, steps whole and at least 0",
                self.spec.id
            ));
        }
        (self.field, self.steps) = (field as usize, steps as u64);
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        let maze = if self.steps < self.changes_at { &self.before } else { &self.after };
        maze.game().draw(self.field, canvas);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rng, textbook::optimal_values};

    /// Steps of the shortest way from the start: V* = γ^(steps − 1).
    fn shortest(maze: &Tabular<Maze>) -> f64 {
        let values = optimal_values(maze.model().unwrap(), 0.9, 100);
        1.0 + values[maze.start()].ln() / 0.9_f64.ln()
    }

    #[test]
    fn the_shortest_ways_are_the_books() {
        let (blocking, shortcut) = (ChangingMaze::blocking(), ChangingMaze::shortcut());
        let mazes = [&Maze::dyna(), &blocking.before, &blocking.after, &shortcut.before, &shortcut.after];
        for (maze, steps) in mazes.into_iter().zip([14.0, 10.0, 16.0, 16.0, 10.0]) {
            approx::assert_abs_diff_eq!(shortest(maze), steps, epsilon = 1e-9);
        }
    }

    #[test]
    fn walls_and_borders_stop_and_the_goal_ends() {
        let maze = Maze::dyna();
        let go = |row: usize, column: usize, action: usize| {
            let outcome = maze.model().unwrap().outcomes[row * COLUMNS + column][action][0];
            (outcome.next_state / COLUMNS, outcome.next_state % COLUMNS, outcome.reward, outcome.terminated)
        };
        assert_eq!(go(2, 1, 1), (2, 1, 0.0, false)); // the wall right of the start
        assert_eq!(go(0, 0, 0), (0, 0, 0.0, false));
        assert_eq!(go(5, 8, 1), (5, 8, 0.0, false));
        assert_eq!(go(1, 8, 0), (0, 8, 1.0, true));
        assert_eq!(go(3, 5, 2), (3, 5, 0.0, false)); // the single wall
    }

    #[test]
    fn the_wall_moves_after_so_many_steps_whatever_the_episodes() {
        let rng = &mut rng(1, 0);
        let mut maze = ChangingMaze::blocking();
        // Below the opening on the right: up leads through until time 1000, then no more.
        let below = (4 * COLUMNS + 8) as f64;
        for (steps, through) in [(0.0, true), (999.0, true), (1000.0, false)] {
            maze.reset(rng).unwrap();
            maze.set_state(&State(vec![below, steps])).unwrap();
            maze.step(Action::Discrete(0), rng).unwrap();
            let field = if through { below - COLUMNS as f64 } else { below };
            assert_eq!(maze.state().unwrap().0, [field, steps + 1.0]);
        }
        maze.reset(rng).unwrap();
        assert_eq!(maze.state().unwrap().0, [(5 * COLUMNS + 3) as f64, 1001.0]);
        // Who stands in the new wall walks out of it.
        maze.set_state(&State(vec![(3 * COLUMNS + 8) as f64, 1000.0])).unwrap();
        maze.step(Action::Discrete(0), rng).unwrap();
        assert_eq!(maze.state().unwrap().0[0], (2 * COLUMNS + 8) as f64);
        assert!(maze.set_state(&State(vec![54.0, 0.0])).is_err());
        assert!(maze.set_state(&State(vec![0.0, -1.0])).is_err());
        assert!(maze.model().is_none());
    }
}
