//! Catch-v0: a ball falls through a grid of pixels; be under it when it lands.
//!
//! Osband et al., "Behaviour Suite for Reinforcement Learning" (bsuite, 2020), arXiv:1908.03568,
//! whose `catch` this is. The smallest task on images: perfect play returns 1, and any policy that
//! does not look at the ball returns −0.6 on average.

use crate::env::expect_len;
use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, invalid};
use rand::RngExt;

const ROWS: usize = 10;
const COLUMNS: usize = 5;
/// The paddle moves in the lowest row.
const PADDLE_ROW: usize = ROWS - 1;

/// The ball starts in a random column of the top row and falls one row a step; the paddle starts
/// in the middle of the lowest row. Actions: 0 moves the paddle left, 1 not at all, 2 right, each
/// before the ball falls. The episode ends after 9 steps, when the ball reaches the paddle's row:
/// reward 1 if the paddle is there, −1 if not, 0 until then.
///
/// Observation: `[10, 5, 1]`, row from the top, column from the left, 1 where the ball or the
/// paddle is. State: the ball's column and row, the paddle's column.
pub struct Catch {
    spec: Spec,
    ball_column: usize,
    ball_row: usize,
    paddle: usize, // its column
}

impl Catch {
    /// The ball at the top of the middle column. [`Env::reset`] begins an episode.
    pub fn new() -> Self {
        let shape = vec![ROWS, COLUMNS, 1];
        let (low, high) = (vec![0.0; ROWS * COLUMNS], vec![1.0; ROWS * COLUMNS]);
        let spec = Spec {
            id: "Catch-v0".into(),
            observation_space: Space::Box { shape, low, high },
            action_space: Space::Discrete { n: 3 },
            max_episode_steps: None,
            reward_threshold: None,
        };
        Self { spec, ball_column: COLUMNS / 2, ball_row: 0, paddle: COLUMNS / 2 }
    }
}

impl Default for Catch {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for Catch {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        (self.ball_column, self.ball_row) = (rng.random_range(0..COLUMNS), 0);
        self.paddle = COLUMNS / 2;
        Ok(())
    }

    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        self.paddle = match action.index() {
            0 => self.paddle.saturating_sub(1),
            1 => self.paddle,
            _ => (self.paddle + 1).min(COLUMNS - 1),
        };
        self.ball_row = (self.ball_row + 1).min(PADDLE_ROW);
        if self.ball_row < PADDLE_ROW {
            return Ok(Step::default());
        }
        let reward = if self.ball_column == self.paddle { 1.0 } else { -1.0 };
        Ok(Step { reward, terminated: true, truncated: false })
    }

    fn observe(&self, observation: &mut [f32]) {
        observation.fill(0.0);
        observation[self.ball_row * COLUMNS + self.ball_column] = 1.0;
        observation[PADDLE_ROW * COLUMNS + self.paddle] = 1.0;
    }

    fn state(&self) -> Result<State> {
        Ok(State([self.ball_column, self.ball_row, self.paddle].map(|x| x as f64).to_vec()))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        let id = &self.spec.id;
        expect_len(id, state, 3)?;
        for (x, (name, n)) in
            state.0.iter().zip([("ball column", COLUMNS), ("ball row", ROWS), ("paddle column", COLUMNS)])
        {
            if x.fract() != 0.0 || !(0.0..n as f64).contains(x) {
                return invalid(format!("{id}: {name} {x}; it is an integer from 0 to {}", n - 1));
            }
        }
        self.ball_column = state.0[0] as usize;
        self.ball_row = state.0[1] as usize;
        self.paddle = state.0[2] as usize;
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        canvas.clear(palette::GREY);
        canvas.fit(0.0, 0.0, COLUMNS as f64, ROWS as f64);
        canvas.rectangle(0.0, 0.0, COLUMNS as f64, ROWS as f64, palette::WHITE);
        let y = |row: usize| (PADDLE_ROW - row) as f64;
        canvas.rectangle(self.paddle as f64, y(PADDLE_ROW), 1.0, 0.4, palette::BLUE);
        canvas.circle(self.ball_column as f64 + 0.5, y(self.ball_row) + 0.5, 0.4, palette::VERMILLION);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    /// Rewards of an episode whose ball falls in `column`, with the paddle moved by `policy`.
    fn play(column: usize, policy: impl Fn(&Catch) -> usize) -> Vec<f64> {
        let mut env = Catch::new();
        env.ball_column = column;
        let mut rewards = Vec::new();
        loop {
            let step = env.step(Action::Discrete(policy(&env)), &mut rng(0, 0)).unwrap();
            rewards.push(step.reward);
            assert!(!step.truncated);
            if step.terminated {
                return rewards;
            }
        }
    }

    #[test]
    fn the_last_of_nine_steps_is_rewarded() {
        let follow = |env: &Catch| {
            1 + usize::from(env.ball_column > env.paddle) - usize::from(env.ball_column < env.paddle)
        };
        for column in 0..COLUMNS {
            assert_eq!(play(column, follow), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        }
    }

    #[test]
    fn a_policy_that_does_not_look_catches_one_ball_in_five() {
        for (action, caught) in [(0, 0), (1, 2), (2, 4)] {
            for column in 0..COLUMNS {
                let reward = if column == caught { 1.0 } else { -1.0 };
                assert_eq!(play(column, |_| action).last(), Some(&reward), "column {column}");
            }
        }
    }

    #[test]
    fn the_ball_falls_and_the_paddle_moves_in_the_picture() {
        let mut env = Catch::new();
        env.ball_column = 4;
        let pixels = |env: &Catch| {
            let mut observation = [f32::NAN; ROWS * COLUMNS];
            env.observe(&mut observation);
            (0..ROWS * COLUMNS).filter(|&i| observation[i] == 1.0).collect::<Vec<_>>()
        };
        assert_eq!(pixels(&env), [4, 47]);
        env.step(Action::Discrete(0), &mut rng(0, 0)).unwrap();
        assert_eq!(pixels(&env), [9, 46]);
        for _ in 0..8 {
            env.step(Action::Discrete(2), &mut rng(0, 0)).unwrap();
        }
        assert_eq!(pixels(&env), [49]); // caught: both in one pixel
    }
}
