//! TicTacToe-v0: three in a row on a board of three by three, against an opponent who moves at random.
//!
//! The game is as old as its rules: X begins, who has three in a row, column or diagonal wins, and a full
//! board without is a draw. 5478 positions can come up, in 255,168 games, and whoever plays well does not
//! lose.

use crate::{
    Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, env::expect_len, invalid,
};
use rand::RngExt;

/// Rows, columns and diagonals; fields are counted row by row from the top left.
const LINES: [[usize; 3]; 8] =
    [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]];

/// What a field holds.
const FREE: u8 = 0;
const X: u8 = 1;
const O: u8 = 2;

/// Which marks the actions place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// TicTacToe-v0: X, who begins. O is placed on a free field by chance, in the same step.
    First,
    /// TicTacToe-v0-second: O. X is placed on a free field by chance.
    Second,
    /// TicTacToe-v0-both: X and O in turn, one a step. What a planner that reckons with a good opponent
    /// tries its moves in.
    Both,
}

/// State: what each field holds, 0 nothing, 1 X, 2 O. Action: the field to mark, 0 to 8 row by row from
/// the top left. Who names a field that is taken marks a free one by chance: no rule can be broken, a
/// better move is never missed by it, and actions by chance are moves by chance. Reward: 1 for a game
/// won, −1 for one lost, 0 for a draw and on the way, to the side that the agent plays; with both sides,
/// to the one that moved. A step in a game that is over changes nothing.
pub struct TicTacToe {
    spec: Spec,
    side: Side,
    board: [u8; 9],
}

impl TicTacToe {
    /// With an empty board; as second player, before X has moved, which [`Env::reset`] sees to.
    pub fn new(side: Side) -> Self {
        let id = match side {
            Side::First => "TicTacToe-v0",
            Side::Second => "TicTacToe-v0-second",
            Side::Both => "TicTacToe-v0-both",
        };
        let spec = Spec {
            id: id.into(),
            observation_space: Space::uniform(9, -1.0, 1.0),
            action_space: Space::Discrete { n: 9 },
            max_episode_steps: None,
            reward_threshold: None,
        };
        Self { spec, side, board: [FREE; 9] }
    }

    /// Puts `mark` on a free field by chance.
    fn mark_any(&mut self, mark: u8, rng: &mut Rng) {
        let free: Vec<usize> = (0..9).filter(|&field| self.board[field] == FREE).collect();
        self.board[free[rng.random_range(0..free.len())]] = mark;
    }

    /// The mark that the agent places next.
    fn own(&self) -> u8 {
        match self.side {
            Side::First => X,
            Side::Second => O,
            Side::Both => next_mark(&self.board),
        }
    }
}

/// Whose turn it is.
fn next_mark(board: &[u8; 9]) -> u8 {
    if count(board, X) == count(board, O) { X } else { O }
}

fn count(board: &[u8; 9], mark: u8) -> usize {
    board.iter().filter(|&&held| held == mark).count()
}

/// Whether `mark` has three in a row.
fn wins(board: &[u8; 9], mark: u8) -> bool {
    LINES.iter().any(|line| line.iter().all(|&field| board[field] == mark))
}

fn is_over(board: &[u8; 9]) -> bool {
    wins(board, X) || wins(board, O) || count(board, FREE) == 0
}

/// Whether a game can come to it: X and O in turn, and none after a win.
fn is_legal(board: &[u8; 9]) -> bool {
    let (xs, os) = (count(board, X), count(board, O));
    (xs == os || xs == os + 1)
        && !(wins(board, X) && (xs == os || wins(board, O)))
        && !(wins(board, O) && xs > os)
}

impl Env for TicTacToe {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.board = [FREE; 9];
        if self.side == Side::Second {
            self.mark_any(X, rng);
        }
        Ok(())
    }

    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        if is_over(&self.board) {
            return Ok(Step { reward: 0.0, terminated: true, truncated: false });
        }
        let (field, own) = (action.index(), self.own());
        match self.board[field] {
            FREE => self.board[field] = own,
            _ => self.mark_any(own, rng),
        }
        if self.side != Side::Both && !is_over(&self.board) {
            self.mark_any(next_mark(&self.board), rng);
        }
        let reward = match (wins(&self.board, own), wins(&self.board, X + O - own)) {
            (true, _) => 1.0,
            (_, true) => -1.0,
            _ => 0.0,
        };
        Ok(Step { reward, terminated: is_over(&self.board), truncated: false })
    }

    /// Each field, `[9]`: 1 where the agent's mark is, −1 where the other one is, 0 where it is free. With
    /// both sides the agent is who moves next.
    fn observe(&self, observation: &mut [f32]) {
        let own = self.own();
        for (seen, &held) in observation.iter_mut().zip(&self.board) {
            *seen = match held {
                FREE => 0.0,
                mark if mark == own => 1.0,
                _ => -1.0,
            };
        }
    }

    fn state(&self) -> Result<State> {
        Ok(State(self.board.iter().map(|&held| held.into()).collect()))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        let id = &self.spec.id;
        expect_len(id, state, 9)?;
        let mut board = [FREE; 9];
        for (field, &held) in board.iter_mut().zip(&state.0) {
            *field = match held {
                0.0 => FREE,
                1.0 => X,
                2.0 => O,
                _ => return invalid(format!("{id}: a field that holds {held}; 0 is free, 1 is X, 2 is O")),
            };
        }
        if !is_legal(&board) {
            return invalid(format!("{id}: no game comes to the board {board:?}"));
        }
        let turn = next_mark(&board);
        if !is_over(&board)
            && (self.side == Side::First && turn == O || self.side == Side::Second && turn == X)
        {
            return invalid(format!("{id}: on the board {board:?} it is the opponent's turn"));
        }
        self.board = board;
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        canvas.clear(palette::WHITE);
        canvas.fit(-0.1, -0.1, 3.1, 3.1);
        for edge in [1.0, 2.0] {
            canvas.line(&[(edge, 0.05), (edge, 2.95)], 0.05, palette::GREY);
            canvas.line(&[(0.05, edge), (2.95, edge)], 0.05, palette::GREY);
        }
        for (field, &held) in self.board.iter().enumerate() {
            let (x, y) = ((field % 3) as f64 + 0.5, 2.5 - (field / 3) as f64);
            if held == X {
                canvas.line(&[(x - 0.28, y - 0.28), (x + 0.28, y + 0.28)], 0.12, palette::VERMILLION);
                canvas.line(&[(x - 0.28, y + 0.28), (x + 0.28, y - 0.28)], 0.12, palette::VERMILLION);
            } else if held == O {
                canvas.circle(x, y, 0.36, palette::BLUE);
                canvas.circle(x, y, 0.24, palette::WHITE);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use std::collections::HashMap;

    type Board = [u8; 9];

    /// What marking the free `field` leads to, through the environment: the board and the mover's reward
    /// where the game is over.
    fn moved(env: &mut TicTacToe, board: &Board, field: usize) -> (Board, Option<f64>) {
        env.set_state(&State(board.map(f64::from).to_vec())).unwrap();
        let step = env.step(Action::Discrete(field), &mut rng(1, 0)).unwrap();
        (env.board, step.terminated.then_some(step.reward))
    }

    /// What follows from a board for who moves next.
    #[derive(Debug, Clone, Copy, Default, PartialEq)]
    struct Position {
        games: [u64; 3],     // that the mover wins, that are drawn, that the other wins
        value: f64,          // if both play well
        by_chance: [f64; 3], // probabilities of the same, if both move by chance
        safe: [f64; 3],      // if the mover never gives value away and else wins most; the other by chance
        greedy: [f64; 3],    // if the mover has the best mean reward; the other by chance
    }

    /// Every position that can come up, and what it is worth: wins, draws and losses of the mover.
    fn positions() -> HashMap<Board, Position> {
        let (mut env, mut known) = (TicTacToe::new(Side::Both), HashMap::new());
        solve(&mut env, [FREE; 9], &mut known);
        known
    }

    fn swapped([wins, draws, losses]: [f64; 3]) -> [f64; 3] {
        [losses, draws, wins]
    }

    fn solve(env: &mut TicTacToe, board: Board, known: &mut HashMap<Board, Position>) -> Position {
        if let Some(position) = known.get(&board) {
            return *position;
        }
        let mut position = Position { value: f64::NEG_INFINITY, ..Position::default() };
        let free: Vec<usize> = (0..9).filter(|&field| board[field] == FREE).collect();
        let mut moves = Vec::new(); // of each: its value, and how games go on where the other moves by chance
        for &field in &free {
            let (next, reward) = moved(env, &board, field);
            let (games, value, by_chance, safe, greedy) = match reward {
                Some(reward) => {
                    let outcome = if reward == 1.0 { [1.0, 0.0, 0.0] } else { [0.0, 1.0, 0.0] };
                    known.insert(next, Position::default());
                    (outcome.map(|x| x as u64), reward, outcome, outcome, outcome)
                }
                None => {
                    let after = solve(env, next, known);
                    let replies: Vec<usize> = (0..9).filter(|&reply| next[reply] == FREE).collect();
                    let (mut safe, mut greedy) = ([0.0; 3], [0.0; 3]);
                    for &reply in &replies {
                        let (board, reward) = moved(env, &next, reply);
                        let of = match reward {
                            Some(1.0) => Position { safe: [0., 0., 1.], greedy: [0., 0., 1.], ..after },
                            Some(_) => Position { safe: [0., 1., 0.], greedy: [0., 1., 0.], ..after },
                            None => solve(env, board, known),
                        };
                        for i in 0..3 {
                            safe[i] += of.safe[i] / replies.len() as f64;
                            greedy[i] += of.greedy[i] / replies.len() as f64;
                        }
                    }
                    let [won, drawn, lost] = after.games;
                    ([lost, drawn, won], -after.value, swapped(after.by_chance), safe, greedy)
                }
            };
            for i in 0..3 {
                position.games[i] += games[i];
                position.by_chance[i] += by_chance[i] / free.len() as f64;
            }
            position.value = position.value.max(value);
            moves.push((value, safe, greedy));
        }
        type Move = (f64, [f64; 3], [f64; 3]);
        let best = |of: &dyn Fn(&Move) -> f64| *moves.iter().max_by(|a, b| of(a).total_cmp(&of(b))).unwrap();
        position.safe = best(&|m| if m.0 == position.value { m.1[0] } else { -1.0 }).1;
        position.greedy = best(&|m| m.2[0] - m.2[2]).2;
        known.insert(board, position);
        position
    }

    #[test]
    fn as_many_positions_and_games_as_is_known() {
        let positions = positions();
        assert_eq!(positions.len(), 5478);
        assert!(positions.keys().all(is_legal));
        let all = (0..3_u32.pow(9)).map(|code| {
            let held: Vec<u8> = (0..9).map(|field| (code / 3_u32.pow(field) % 3) as u8).collect();
            Board::try_from(held).unwrap()
        });
        assert_eq!(all.filter(is_legal).count(), 5478);
        // X wins 131,184, O 77,904.
        assert_eq!(positions[&[FREE; 9]].games, [131_184, 46_080, 77_904]);
        assert_eq!(positions[&[FREE; 9]].games.iter().sum::<u64>(), 255_168);
    }

    #[test]
    fn good_play_draws_and_values_are_symmetric() {
        let positions = positions();
        assert_eq!(positions[&[FREE; 9]].value, 0.0);
        let turn: [usize; 9] = [6, 3, 0, 7, 4, 1, 8, 5, 2]; // by a quarter
        let mirror: [usize; 9] = [2, 1, 0, 5, 4, 3, 8, 7, 6];
        for (board, position) in &positions {
            for moved in [turn, mirror] {
                let other = positions[&moved.map(|field| board[field])];
                assert_eq!((other.value, other.games), (position.value, position.games), "{board:?}");
            }
        }
    }

    #[test]
    fn play_by_chance_and_against_it_goes_as_computed_elsewhere() {
        let close = |actual: [f64; 3], expected: [f64; 3]| {
            for (actual, expected) in actual.into_iter().zip(expected) {
                approx::assert_abs_diff_eq!(actual, expected, epsilon = 5e-6);
            }
        };
        let positions = positions();
        let empty = positions[&[FREE; 9]];
        // Computed independently, by minimax and exact expectations.
        close(empty.by_chance, [0.58492, 0.12698, 0.28810]);
        close(empty.safe, [0.99479, 0.00521, 0.0]);
        // Who begins loses nothing by expecting random moves; who comes second would take risks.
        close(empty.greedy, empty.safe);
        let (mut second, mut second_greedy) = ([0.0; 3], [0.0; 3]); // after a first move by chance
        for field in 0..9 {
            let mut board = [FREE; 9];
            board[field] = X;
            for i in 0..3 {
                second[i] += positions[&board].safe[i] / 9.0;
                second_greedy[i] += positions[&board].greedy[i] / 9.0;
            }
        }
        close(second, [0.91640, 0.08360, 0.0]);
        close(second_greedy, [0.932275, 0.060317, 0.007407]);
    }

    #[test]
    fn actions_by_chance_are_moves_by_chance() {
        // With reward 1 for X: 0.58492 − 0.28810 on average; its standard error here is 0.006.
        for (side, expected) in [(Side::First, 0.29682), (Side::Second, -0.29682)] {
            let (mut env, mut rng, mut total) = (TicTacToe::new(side), rng(1, 0), 0.0);
            for _ in 0..20_000 {
                env.reset(&mut rng).unwrap();
                let mut step = Step::default();
                while !step.terminated {
                    let action = rng.random_range(0..9);
                    step = env.step(Action::Discrete(action), &mut rng).unwrap();
                    assert!(is_legal(&env.board) && step.terminated == is_over(&env.board));
                }
                total += step.reward;
            }
            approx::assert_abs_diff_eq!(total / 20_000.0, expected, epsilon = 0.025);
        }
    }

    #[test]
    fn a_taken_field_gives_a_free_one_by_chance() {
        let (mut env, mut rng, mut counts) = (TicTacToe::new(Side::Both), rng(1, 0), [0; 9]);
        let board = State([1, 2, 1, 2, 0, 0, 0, 0, 0].map(f64::from).to_vec());
        for _ in 0..5000 {
            env.set_state(&board).unwrap();
            env.step(Action::Discrete(1), &mut rng).unwrap();
            counts[(4..9).find(|&field| env.board[field] == X).unwrap()] += 1;
        }
        assert!(counts[..4] == [0; 4] && counts[4..].iter().all(|n| (900..1100).contains(n)), "{counts:?}");
    }

    #[test]
    fn rewards_and_observations_are_of_the_side_that_is_played() {
        let board = [1, 1, 0, 2, 2, 0, 0, 0, 0];
        let state = |board: Board| State(board.map(f64::from).to_vec());
        let mut seen = [0.0; 9];
        let mut env = TicTacToe::new(Side::Both);
        env.set_state(&state(board)).unwrap();
        env.observe(&mut seen);
        assert_eq!(seen, [1., 1., 0., -1., -1., 0., 0., 0., 0.]);
        assert_eq!(moved(&mut env, &board, 2), ([1, 1, 1, 2, 2, 0, 0, 0, 0], Some(1.0)));
        let (next, reward) = moved(&mut env, &board, 8);
        env.observe(&mut seen);
        assert_eq!((reward, seen), (None, [-1., -1., 0., 1., 1., 0., 0., 0., -1.]));
        assert_eq!(moved(&mut env, &next, 5).1, Some(1.0), "O's row is O's win");

        // The opponent completes the row by chance: −1. In a game that is over nothing happens.
        let (mut first, mut rng) = (TicTacToe::new(Side::First), rng(1, 0));
        let (mut won, mut lost) = (0, 0);
        for _ in 0..1000 {
            first.set_state(&state(board)).unwrap();
            let step = first.step(Action::Discrete(8), &mut rng).unwrap();
            first.observe(&mut seen);
            assert_eq!((seen[0], seen[3], seen[8]), (1.0, -1.0, 1.0));
            match step.terminated {
                true => assert_eq!((step.reward, first.board[5]), (-1.0, O)),
                false => assert_eq!((step.reward, first.board[5]), (0.0, FREE)),
            }
            lost += usize::from(step.terminated);
            first.set_state(&state([1, 2, 2, 2, 1, 1, 0, 0, 0])).unwrap();
            let step = first.step(Action::Discrete(8), &mut rng).unwrap();
            won += usize::from(step.reward == 1.0 && step.terminated && first.board[7] == FREE);
            let after = first.board;
            let step = first.step(Action::Discrete(7), &mut rng).unwrap();
            assert_eq!((step.reward, step.terminated, first.board), (0.0, true, after));
        }
        assert!((200..300).contains(&lost) && won == 1000, "{lost}, {won}");
    }

    #[test]
    fn boards_that_no_game_comes_to_are_refused() {
        let refused = |side: Side, board: [f64; 9], why: &str| {
            let error = TicTacToe::new(side).set_state(&State(board.to_vec())).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refused(Side::Both, [3., 0., 0., 0., 0., 0., 0., 0., 0.], "holds 3");
        refused(Side::Both, [1., 1., 0., 0., 0., 0., 0., 0., 0.], "no game");
        refused(Side::Both, [2., 0., 0., 0., 0., 0., 0., 0., 0.], "no game");
        refused(Side::Both, [1., 1., 1., 2., 2., 2., 0., 0., 0.], "no game");
        refused(Side::Both, [1., 1., 1., 2., 2., 0., 2., 0., 0.], "no game");
        refused(Side::Both, [1., 1., 0., 2., 2., 2., 1., 0., 1.], "no game");
        refused(Side::First, [1., 0., 0., 0., 0., 0., 0., 0., 0.], "opponent's turn");
        refused(Side::Second, [0., 0., 0., 0., 0., 0., 0., 0., 0.], "opponent's turn");
    }

    #[test]
    fn marks_are_drawn_where_they_are() {
        let mut env = TicTacToe::new(Side::Both);
        env.set_state(&State([1, 0, 0, 0, 0, 0, 0, 0, 2].map(f64::from).to_vec())).unwrap();
        let mut canvas = Canvas::new(310, 310);
        env.draw(&mut canvas).unwrap();
        let picture = canvas.rgb();
        let at = |x: usize, y: usize| {
            [picture[3 * (310 * y + x)], picture[3 * (310 * y + x) + 1], picture[3 * (310 * y + x) + 2]]
        };
        assert_eq!(
            (at(58, 58), at(155, 155), at(252, 281)),
            (palette::VERMILLION, palette::WHITE, palette::BLUE)
        );
    }
}
