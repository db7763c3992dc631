//! Breakout: bounce a ball off a paddle to knock out three rows of bricks.

use super::{Cells, Color, Draws, Fields, Frame, Game, Move, Result, SIDE, Step, palette};

const BOTTOM: i32 = SIDE - 1; // the paddle's row
const WALL: Cells = Cells::block((0, SIDE - 1), (1, 3));

/// The state, as numbers: the ball's column and row, its headings along x and y, the trail's
/// column and row, the paddle's column, the bricks of rows 1 to 3, and whether the ball is inside
/// the bricks.
#[derive(Debug, Clone)]
pub struct Breakout {
    ball_x: i32,
    ball_y: i32,
    dx: i32, // −1 to the left, +1 to the right
    dy: i32, // −1 up, +1 down
    trail_x: i32,
    trail_y: i32,
    paddle: i32,
    bricks: Cells,
    /// The ball hit a brick in the previous step or has not left the bricks since; it then passes
    /// through them.
    inside_bricks: bool,
}

impl Game for Breakout {
    const NAME: &'static str = "Breakout";
    const MINIMAL_ACTIONS: &'static [Move] = &[Move::Stay, Move::Left, Move::Right];
    // paddle, ball, trail, brick
    const COLORS: &'static [Color] = &[palette::BLUE, palette::VERMILLION, palette::GREY, palette::ORANGE];

    fn new() -> Self {
        Self {
            ball_x: 0,
            ball_y: 3,
            dx: 1,
            dy: 1,
            trail_x: 0,
            trail_y: 3,
            paddle: 4,
            bricks: WALL,
            inside_bricks: false,
        }
    }

    fn reset(&mut self, draws: &mut impl Draws) {
        *self = Self::new();
        if draws.below(2) == 1 {
            (self.ball_x, self.trail_x, self.dx) = (SIDE - 1, SIDE - 1, -1);
        }
    }

    fn step(&mut self, action: Move, _ramping: bool, _draws: &mut impl Draws) -> Step {
        let mut step = Step::default();
        match action {
            Move::Left => self.paddle = (self.paddle - 1).max(0),
            Move::Right => self.paddle = (self.paddle + 1).min(SIDE - 1),
            _ => {}
        }
        let (old_x, old_y) = (self.ball_x, self.ball_y);
        (self.trail_x, self.trail_y) = (old_x, old_y);
        let (mut x, mut y) = (old_x + self.dx, old_y + self.dy);
        if !(0..SIDE).contains(&x) {
            x = x.clamp(0, SIDE - 1);
            self.dx = -self.dx;
        }

        let in_brick = y >= 0 && self.bricks.meets(Cells::cell(x, y));
        if y < 0 {
            y = 0;
            self.dy = -self.dy;
        } else if in_brick {
            // Of bricks hit one right after the other only the first is knocked out.
            if !self.inside_bricks {
                self.bricks.remove(Cells::cell(x, y));
                step.reward += 1.0;
                y = old_y;
                self.dy = -self.dy;
            }
        } else if y == BOTTOM {
            if self.bricks.is_empty() {
                self.bricks = WALL;
            }
            if old_x == self.paddle {
                y = old_y;
                self.dy = -self.dy;
            } else if x == self.paddle {
                // Off the paddle's corner, back where the ball came from.
                y = old_y;
                (self.dx, self.dy) = (-self.dx, -self.dy);
            } else {
                step.terminated = true;
            }
        }
        self.inside_bricks = in_brick;
        (self.ball_x, self.ball_y) = (x, y);
        step
    }

    fn paint(&self, frame: &mut Frame<'_>) {
        frame.set(0, self.paddle, BOTTOM);
        frame.set(1, self.ball_x, self.ball_y);
        frame.set(2, self.trail_x, self.trail_y);
        frame.set_all(3, self.bricks);
    }

    fn fields(&mut self, terminated: bool, fields: &mut Fields<'_>) -> Result<()> {
        // Only a lost ball is in the paddle's row.
        let lowest = if terminated { BOTTOM } else { BOTTOM - 1 };
        fields.integer("ball column", &mut self.ball_x, 0..=SIDE - 1)?;
        fields.integer("ball row", &mut self.ball_y, 0..=lowest)?;
        fields.direction("ball heading along x", &mut self.dx)?;
        fields.direction("ball heading along y", &mut self.dy)?;
        fields.integer("trail column", &mut self.trail_x, 0..=SIDE - 1)?;
        fields.integer("trail row", &mut self.trail_y, 0..=BOTTOM - 1)?;
        fields.integer("paddle column", &mut self.paddle, 0..=SIDE - 1)?;
        fields.cells("bricks", &mut self.bricks, 1..=3)?;
        fields.flag("inside bricks", &mut self.inside_bricks)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{channel, play, step};
    use super::*;

    #[test]
    fn bricks_come_back_when_the_ball_reaches_the_bottom_without_any() {
        let empty = Breakout { bricks: Cells::NONE, ball_x: 4, ball_y: 8, ..Breakout::new() };
        for (paddle, lost) in [(4, false), (5, false), (8, true)] {
            let mut game = Breakout { paddle, ..empty.clone() };
            assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, lost));
            assert_eq!(channel(&game, 3).len(), 30, "paddle in column {paddle}");
        }
        let mut game = Breakout { ball_y: 7, ..empty };
        play(&mut game, Move::Stay, &[]);
        assert!(game.bricks.is_empty());
    }

    #[test]
    fn a_ball_inside_the_bricks_passes_through_the_next_one() {
        // Up into the middle row, with the flag on: the ball enters and the brick stays.
        let up = Breakout { ball_x: 2, ball_y: 3, dy: -1, inside_bricks: true, ..Breakout::new() };
        let mut game = up.clone();
        assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, false));
        assert_eq!((game.ball_x, game.ball_y, game.dy), (3, 2, -1));
        assert_eq!((game.bricks, game.inside_bricks), (WALL, true));
        // The flag stays on through the top row and goes off above it.
        play(&mut game, Move::Stay, &[]);
        assert_eq!((game.ball_y, game.inside_bricks), (1, true));
        play(&mut game, Move::Stay, &[]);
        assert_eq!((game.ball_y, game.inside_bricks), (0, false));
        // The ceiling sends it sideways in row 0, then it knocks out a brick of row 1.
        play(&mut game, Move::Stay, &[]);
        assert_eq!((game.ball_x, game.ball_y, game.dy), (6, 0, 1));
        assert_eq!(play(&mut game, Move::Stay, &[]), step(1.0, false));
        assert_eq!((game.ball_x, game.ball_y, game.dy, game.inside_bricks), (7, 0, -1, true));

        let mut game = Breakout { inside_bricks: false, ..up };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(1.0, false));
        assert_eq!((game.ball_x, game.ball_y, game.dy), (3, 3, 1));
        assert_eq!(game.bricks.len(), 29);
    }

    #[test]
    fn the_paddle_returns_the_ball_below_it_and_at_its_corner() {
        let near = Breakout { ball_x: 4, ball_y: 8, ..Breakout::new() };
        let mut game = Breakout { paddle: 3, ..near.clone() };
        play(&mut game, Move::Right, &[]);
        assert_eq!((game.ball_x, game.ball_y, game.dx, game.dy), (5, 8, 1, -1));
        let mut game = Breakout { paddle: 4, ..near.clone() };
        play(&mut game, Move::Right, &[]);
        assert_eq!((game.ball_x, game.ball_y, game.dx, game.dy), (5, 8, -1, -1));
        let mut game = Breakout { paddle: 5, ..near };
        assert_eq!(play(&mut game, Move::Right, &[]), step(0.0, true));
        assert_eq!(channel(&game, 1), [(5, 9)]);
    }
}
