//! Asterix: collect gold and avoid enemies that cross the board in eight lanes.

use super::{Color, Draws, Fields, Frame, Game, Move, Result, SIDE, Step, palette};

const LANES: usize = 8; // rows 1 to 8, one object in each at most
const SPAWN_INTERVAL: i32 = 10; // steps
const MOVE_INTERVAL: i32 = 5; // steps
const RAMP_INTERVAL: i32 = 100; // steps
const GOLD_PROBABILITY: f64 = 1.0 / 3.0;

/// What crosses the board in a lane.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Object {
    x: i32,
    dx: i32, // −1 to the left, +1 to the right
    gold: bool,
}

/// The state, as numbers: the player's column and row; for each lane whether it is empty (0) or
/// holds an enemy (1) or gold (2), its column and heading; then the spawn and the move interval
/// and countdown, the ramp countdown and level.
#[derive(Debug, Clone)]
pub struct Asterix {
    x: i32,
    y: i32,
    lanes: [Option<Object>; LANES], // lane i is row i + 1
    spawn_interval: i32,
    spawn_countdown: i32,
    move_interval: i32,
    move_countdown: i32,
    ramp_countdown: i32,
    ramp_level: i32,
}

impl Asterix {
    fn spawn(&mut self, draws: &mut impl Draws) {
        let from_left = draws.uniform() < 0.5;
        let gold = draws.uniform() < GOLD_PROBABILITY;
        let empty = self.lanes.iter().filter(|lane| lane.is_none()).count();
        if empty > 0 {
            let place = draws.below(empty as i32) as usize;
            let (x, dx) = if from_left { (0, 1) } else { (SIDE - 1, -1) };
            if let Some(lane) = self.lanes.iter_mut().filter(|lane| lane.is_none()).nth(place) {
                *lane = Some(Object { x, dx, gold });
            }
        }
        self.spawn_countdown = self.spawn_interval;
    }

    /// What an object in the player's cell does; only the player's own lane can hold one.
    fn contact(&mut self, step: &mut Step) {
        let lane = &mut self.lanes[self.y as usize - 1];
        match lane {
            Some(object) if object.x == self.x => {
                if object.gold {
                    *lane = None;
                    step.reward += 1.0;
                } else {
                    step.terminated = true;
                }
            }
            _ => {}
        }
    }

    fn move_objects(&mut self) {
        for lane in &mut self.lanes {
            if let Some(object) = lane {
                object.x += object.dx;
                if !(0..SIDE).contains(&object.x) {
                    *lane = None;
                }
            }
        }
    }

    fn ramp(&mut self) {
        if self.spawn_interval == 1 && self.move_interval == 1 {
            return;
        }
        if self.ramp_countdown >= 0 {
            self.ramp_countdown -= 1;
            return;
        }
        // Every ramp brings more objects, every other one faster ones.
        if self.ramp_level % 2 == 1 && self.move_interval > 1 {
            self.move_interval -= 1;
        }
        if self.spawn_interval > 1 {
            self.spawn_interval -= 1;
        }
        self.ramp_level += 1;
        self.ramp_countdown = RAMP_INTERVAL;
    }
}

impl Game for Asterix {
    const NAME: &'static str = "Asterix";
    const MINIMAL_ACTIONS: &'static [Move] = &[Move::Stay, Move::Left, Move::Up, Move::Right, Move::Down];
    // player, enemy, trail, gold
    const COLORS: &'static [Color] = &[palette::BLUE, palette::VERMILLION, palette::GREY, palette::YELLOW];

    fn new() -> Self {
        Self {
            x: 5,
            y: 5,
            lanes: [None; LANES],
            spawn_interval: SPAWN_INTERVAL,
            spawn_countdown: SPAWN_INTERVAL,
            move_interval: MOVE_INTERVAL,
            move_countdown: MOVE_INTERVAL,
            ramp_countdown: RAMP_INTERVAL,
            ramp_level: 0,
        }
    }

    fn reset(&mut self, _draws: &mut impl Draws) {
        *self = Self::new();
    }

    fn step(&mut self, action: Move, ramping: bool, draws: &mut impl Draws) -> Step {
        let mut step = Step::default();
        if self.spawn_countdown == 0 {
            self.spawn(draws);
        }
        match action {
            Move::Left => self.x = (self.x - 1).max(0),
            Move::Right => self.x = (self.x + 1).min(SIDE - 1),
            Move::Up => self.y = (self.y - 1).max(1),
            Move::Down => self.y = (self.y + 1).min(LANES as i32),
            Move::Stay | Move::Fire => {}
        }
        self.contact(&mut step);
        if self.move_countdown == 0 {
            self.move_countdown = self.move_interval;
            self.move_objects();
            self.contact(&mut step);
        }
        self.spawn_countdown -= 1;
        self.move_countdown -= 1;
        if ramping {
            self.ramp();
        }
        step
    }

    fn paint(&self, frame: &mut Frame<'_>) {
        frame.set(0, self.x, self.y);
        for (y, lane) in (1..).zip(&self.lanes) {
            if let Some(object) = lane {
                frame.set(if object.gold { 3 } else { 1 }, object.x, y);
                frame.set_if_on_board(2, object.x - object.dx, y);
            }
        }
    }

    fn fields(&mut self, _terminated: bool, fields: &mut Fields<'_>) -> Result<()> {
        fields.integer("player column", &mut self.x, 0..=SIDE - 1)?;
        fields.integer("player row", &mut self.y, 1..=LANES as i32)?;
        for lane in &mut self.lanes {
            let mut kind = lane.map_or(0, |object| 1 + i32::from(object.gold));
            let mut object = lane.unwrap_or(Object { x: 0, dx: 1, gold: false });
            fields.integer("kind of object", &mut kind, 0..=2)?;
            fields.integer("object column", &mut object.x, 0..=SIDE - 1)?;
            fields.direction("object heading", &mut object.dx)?;
            object.gold = kind == 2;
            *lane = (kind > 0).then_some(object);
        }
        fields.integer("spawn interval", &mut self.spawn_interval, 1..=SPAWN_INTERVAL)?;
        fields.integer("spawn countdown", &mut self.spawn_countdown, 0..=SPAWN_INTERVAL)?;
        fields.integer("move interval", &mut self.move_interval, 1..=MOVE_INTERVAL)?;
        fields.integer("move countdown", &mut self.move_countdown, 0..=MOVE_INTERVAL)?;
        fields.integer("ramp countdown", &mut self.ramp_countdown, -1..=RAMP_INTERVAL)?;
        fields.integer("ramp level", &mut self.ramp_level, 0..=SPAWN_INTERVAL - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{channel, play, step};
    use super::*;

    const ENEMY: Object = Object { x: 0, dx: 1, gold: false };

    #[test]
    fn a_spawn_with_all_lanes_full_draws_no_lane() {
        let mut game = Asterix { lanes: [Some(ENEMY); LANES], spawn_countdown: 0, ..Asterix::new() };
        play(&mut game, Move::Stay, &[0.9, 0.1]);
        assert_eq!(game.lanes, [Some(ENEMY); LANES]);
        assert_eq!(game.spawn_countdown, SPAWN_INTERVAL - 1);
    }

    #[test]
    fn a_spawn_takes_the_drawn_one_of_the_empty_lanes() {
        let mut game = Asterix { spawn_countdown: 0, ..Asterix::new() };
        game.lanes[0] = Some(ENEMY);
        game.lanes[2] = Some(ENEMY);
        // Empty are rows 2, 4, 5, …: place 1 is row 4. Not below 1/2: from the right.
        play(&mut game, Move::Stay, &[0.5, 0.33, 1.0]);
        assert_eq!(game.lanes[3], Some(Object { x: 9, dx: -1, gold: true }));
        assert_eq!(channel(&game, 3), [(9, 4)]);
    }

    #[test]
    fn objects_meet_the_player_before_and_after_they_move() {
        let gold = Object { x: 4, dx: 1, gold: true };
        let mut game = Asterix { move_countdown: 0, ..Asterix::new() };
        game.lanes[4] = Some(gold);
        assert_eq!(play(&mut game, Move::Stay, &[]), step(1.0, false));
        assert_eq!(game.lanes[4], None);

        let mut game = Asterix { move_countdown: 0, ..Asterix::new() };
        game.lanes[4] = Some(Object { x: 4, ..ENEMY });
        // The enemy is met at (4, 5), and then moves on.
        assert_eq!(play(&mut game, Move::Left, &[]), step(0.0, true));
        assert_eq!(channel(&game, 1), [(5, 5)]);
    }

    #[test]
    fn ramps_come_in_steps_102_204_and_so_on_down_to_intervals_of_one() {
        let mut game = Asterix { y: 1, ..Asterix::new() };
        let mut intervals = Vec::new();
        for n in 1..=1500 {
            let before = (game.spawn_interval, game.move_interval);
            game.spawn_countdown = 10; // nothing enters
            play(&mut game, Move::Stay, &[]);
            if (game.spawn_interval, game.move_interval) != before {
                intervals.push((n, game.spawn_interval, game.move_interval));
            }
        }
        let expected = [
            (102, 9, 5),
            (204, 8, 4),
            (306, 7, 4),
            (408, 6, 3),
            (510, 5, 3),
            (612, 4, 2),
            (714, 3, 2),
            (816, 2, 1),
            (918, 1, 1),
        ];
        assert_eq!(intervals, expected);

        let mut game = Asterix { spawn_countdown: 1, ramp_countdown: -1, ..Asterix::new() };
        game.step(Move::Stay, false, &mut super::super::tests::Script(&[]));
        assert_eq!((game.spawn_interval, game.ramp_countdown), (10, -1), "ramping is off");
    }
}
