//! Freeway: walk a chicken across eight lanes of traffic, over and over.

use super::{Color, Draws, Fields, Frame, Game, Move, Result, SIDE, Step, palette};

const CARS: usize = 8; // in rows 1 to 8
const CHICKEN_X: i32 = 4;
const START: i32 = SIDE - 1; // the chicken's first row
const MOVE_INTERVAL: i32 = 3; // steps between two moves of the chicken
const TIME_LIMIT: i32 = 2500; // the episode ends in the step after this many
const SLOWEST: i32 = 5; // speed number, in steps that a car waits between two moves

#[derive(Debug, Clone, Copy, PartialEq)]
struct Car {
    x: i32,
    dx: i32, // −1 to the left, +1 to the right
    speed: i32,
    countdown: i32,
}

/// The state, as numbers: the chicken's row and move countdown, the steps left, and for each car
/// its column, heading, speed number and countdown.
#[derive(Debug, Clone)]
pub struct Freeway {
    chicken: i32,
    move_countdown: i32,
    steps_left: i32,
    cars: [Car; CARS], // car i is in row i + 1
}

impl Freeway {
    /// New speeds and headings for all cars, where they stand.
    fn roll(&mut self, draws: &mut impl Draws) {
        let (mut speeds, mut sides) = ([0; CARS], [0.0; CARS]);
        draws.between_batch(1, SLOWEST + 1, &mut speeds);
        draws.uniform_batch(&mut sides);
        for ((car, speed), side) in self.cars.iter_mut().zip(speeds).zip(sides) {
            let dx = if side < 0.5 { -1 } else { 1 };
            *car = Car { x: car.x, dx, speed, countdown: speed };
        }
    }
}

impl Game for Freeway {
    const NAME: &'static str = "Freeway";
    const MINIMAL_ACTIONS: &'static [Move] = &[Move::Stay, Move::Up, Move::Down];
    // chicken, car, and the trails of cars with speed number 1 to 5
    const COLORS: &'static [Color] = &[
        palette::ORANGE,
        palette::BLACK,
        palette::VERMILLION,
        palette::PURPLE,
        palette::BLUE,
        palette::SKY,
        palette::GREEN,
    ];

    fn new() -> Self {
        Self {
            chicken: START,
            move_countdown: MOVE_INTERVAL,
            steps_left: TIME_LIMIT,
            cars: [Car { x: 0, dx: 1, speed: 1, countdown: 1 }; CARS],
        }
    }

    fn reset(&mut self, draws: &mut impl Draws) {
        *self = Self::new();
        self.roll(draws);
    }

    fn step(&mut self, action: Move, _ramping: bool, draws: &mut impl Draws) -> Step {
        let mut step = Step::default();
        if self.move_countdown == 0 {
            match action {
                Move::Up => {
                    self.move_countdown = MOVE_INTERVAL;
                    self.chicken = (self.chicken - 1).max(0);
                }
                Move::Down => {
                    self.move_countdown = MOVE_INTERVAL;
                    self.chicken = (self.chicken + 1).min(START);
                }
                _ => {}
            }
        }
        if self.chicken == 0 {
            step.reward += 1.0;
            self.roll(draws);
            self.chicken = START;
        }
        for (y, car) in (1..).zip(&mut self.cars) {
            if (car.x, y) == (CHICKEN_X, self.chicken) {
                self.chicken = START;
            }
            if car.countdown > 0 {
                car.countdown -= 1;
                continue;
            }
            car.countdown = car.speed;
            car.x = (car.x + car.dx).rem_euclid(SIDE);
            if (car.x, y) == (CHICKEN_X, self.chicken) {
                self.chicken = START;
            }
        }
        if self.move_countdown > 0 {
            self.move_countdown -= 1;
        }
        self.steps_left -= 1;
        step.terminated = self.steps_left < 0;
        step
    }

    fn paint(&self, frame: &mut Frame<'_>) {
        frame.set(0, CHICKEN_X, self.chicken);
        for (y, car) in (1..).zip(&self.cars) {
            frame.set(1, car.x, y);
            frame.set(1 + car.speed as usize, (car.x - car.dx).rem_euclid(SIDE), y);
        }
    }

    fn fields(&mut self, terminated: bool, fields: &mut Fields<'_>) -> Result<()> {
        let fewest = if terminated { -1 } else { 0 };
        fields.integer("chicken row", &mut self.chicken, 1..=START)?;
        fields.integer("move countdown", &mut self.move_countdown, 0..=MOVE_INTERVAL)?;
        fields.integer("steps left", &mut self.steps_left, fewest..=TIME_LIMIT)?;
        for car in &mut self.cars {
            fields.integer("car column", &mut car.x, 0..=SIDE - 1)?;
            fields.direction("car heading", &mut car.dx)?;
            fields.integer("car speed", &mut car.speed, 1..=SLOWEST)?;
            fields.integer("car countdown", &mut car.countdown, 0..=SLOWEST)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Script, channel, play, step};
    use super::*;

    #[test]
    fn a_crossing_rolls_the_cars_where_they_stand() {
        let mut game = Freeway { chicken: 1, move_countdown: 0, ..Freeway::new() };
        for car in &mut game.cars {
            car.x = 7;
        }
        let script = [1., 2., 3., 4., 5., 1., 2., 3., 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9];
        assert_eq!(play(&mut game, Move::Up, &script), step(1.0, false));
        assert_eq!((game.chicken, game.move_countdown), (START, MOVE_INTERVAL - 1));
        // The countdowns of the new speeds already run in this step.
        assert_eq!(game.cars[0], Car { x: 7, dx: -1, speed: 1, countdown: 0 });
        assert_eq!(game.cars[3], Car { x: 7, dx: 1, speed: 4, countdown: 3 });
    }

    #[test]
    fn a_car_sends_the_chicken_back_by_standing_there_and_by_driving_into_it() {
        for (x, countdown) in [(4, 1), (4, 0), (3, 0), (3, 1)] {
            let mut game = Freeway { chicken: 5, ..Freeway::new() };
            game.cars[4] = Car { x, countdown, ..game.cars[4] };
            assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, false));
            let hit = (x, countdown) != (3, 1);
            assert_eq!(game.chicken, if hit { START } else { 5 }, "{x} {countdown}");
        }
    }

    #[test]
    fn cars_wrap_around_and_so_do_their_trails() {
        let mut game = Freeway::new();
        game.cars[0] = Car { x: 9, dx: 1, speed: 2, countdown: 0 };
        play(&mut game, Move::Stay, &[]);
        assert_eq!(channel(&game, 1)[0], (0, 1));
        assert_eq!(channel(&game, 3), [(9, 1)]);
    }

    #[test]
    fn the_chicken_moves_at_most_every_third_step_and_the_episode_ends_in_step_2501() {
        let mut game = Freeway::new();
        game.reset(&mut Script(&[[5.0; 8], [0.9; 8]].concat()));
        for n in 1..=2501 {
            // Down in the last row takes a move as well, so up comes too early in step 5.
            let action = if n == 5 { Move::Up } else { Move::Down };
            assert_eq!(play(&mut game, action, &[]), step(0.0, n == 2501));
            assert_eq!(game.chicken, START);
        }
    }
}
