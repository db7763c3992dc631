//! Taxi-v4: fetch a passenger at one of four stands and set them down at another.
//!
//! Dietterich, "Hierarchical reinforcement learning with the MAXQ value function decomposition"
//! (2000); numbering, rewards and first states as in Gymnasium's Taxi-v4.

use super::{Game, Tabular, draw_flag};
use crate::{Canvas, Outcome, TransitionModel, canvas::Color, canvas::palette};

const SIDE: usize = 5;
/// Row and column of each stand: red, green, yellow, blue.
const STANDS: [(usize, usize); 4] = [(0, 0), (0, 4), (4, 0), (4, 3)];
const STAND_COLORS: [Color; 4] = [palette::VERMILLION, palette::GREEN, palette::YELLOW, palette::BLUE];
/// Fields, as row and column, with a wall on their right.
const WALLS: [(usize, usize); 6] = [(0, 1), (1, 1), (3, 0), (4, 0), (3, 2), (4, 2)];
/// In place of a stand: the passenger sits in the taxi.
const IN_TAXI: usize = 4;
const NUM_STATES: usize = SIDE * SIDE * 5 * 4;
const NUM_ACTIONS: usize = 6;

/// State `((row · 5 + column) · 5 + passenger) · 4 + destination`, where the passenger is at stand
/// 0 to 3 or, 4, in the taxi. Actions: 0 down, 1 up, 2 right, 3 left, 4 pick up, 5 set down.
/// Reward −1 a step, −10 for a pick-up or set-down that cannot be, 20 for arriving.
pub struct Taxi;

/// A state, taken apart.
#[derive(Clone, Copy)]
struct Place {
    taxi: (usize, usize), // row, column
    passenger: usize,
    destination: usize,
}

impl Place {
    fn decode(state: usize) -> Self {
        let taxi = state / 20;
        Self { taxi: (taxi / SIDE, taxi % SIDE), passenger: state / 4 % 5, destination: state % 4 }
    }

    fn encode(self) -> usize {
        ((self.taxi.0 * SIDE + self.taxi.1) * 5 + self.passenger) * 4 + self.destination
    }

    /// The stand that the taxi is at.
    fn stand(self) -> Option<usize> {
        STANDS.iter().position(|&stand| stand == self.taxi)
    }

    fn can_go_right(self) -> bool {
        self.taxi.1 + 1 < SIDE && !WALLS.contains(&self.taxi)
    }

    fn can_go_left(self) -> bool {
        self.taxi.1 > 0 && !WALLS.contains(&(self.taxi.0, self.taxi.1 - 1))
    }

    fn can_pick_up(self) -> bool {
        // The passenger in the taxi is at no stand.
        self.stand() == Some(self.passenger)
    }

    fn can_set_down(self) -> bool {
        self.passenger == IN_TAXI && self.stand().is_some()
    }
}

impl Taxi {
    /// In the first of the 300 states in which a passenger waits at a stand that is not their
    /// destination; [`crate::Env::reset`] draws one of them.
    pub fn new() -> Tabular<Self> {
        let starts = |state: usize| {
            let place = Place::decode(state);
            place.passenger != IN_TAXI && place.passenger != place.destination
        };
        let count = (0..NUM_STATES).filter(|&state| starts(state)).count() as f64;
        let model = TransitionModel {
            outcomes: (0..NUM_STATES)
                .map(|state| (0..NUM_ACTIONS).map(|action| vec![outcome(state, action)]).collect())
                .collect(),
            initial: (0..NUM_STATES).map(|state| if starts(state) { 1.0 / count } else { 0.0 }).collect(),
        };
        Tabular::new(Taxi, "Taxi-v4", model, Some(200), Some(8.0))
    }

    /// Which actions change `state`, the others being wasted or punished; Gymnasium reports it
    /// with each observation.
    pub fn action_mask(state: usize) -> [bool; NUM_ACTIONS] {
        let place = Place::decode(state);
        [
            place.taxi.0 + 1 < SIDE,
            place.taxi.0 > 0,
            place.can_go_right(),
            place.can_go_left(),
            place.can_pick_up(),
            place.can_set_down(),
        ]
    }
}

fn outcome(state: usize, action: usize) -> Outcome {
    let place = Place::decode(state);
    let mut next = place;
    let (mut reward, mut terminated) = (-1.0, false);
    match action {
        0 => next.taxi.0 = (place.taxi.0 + 1).min(SIDE - 1),
        1 => next.taxi.0 = place.taxi.0.saturating_sub(1),
        2 if place.can_go_right() => next.taxi.1 += 1,
        3 if place.can_go_left() => next.taxi.1 -= 1,
        4 if place.can_pick_up() => next.passenger = IN_TAXI,
        4 => reward = -10.0,
        5 => match place.stand() {
            Some(stand) if place.passenger == IN_TAXI => {
                next.passenger = stand;
                if stand == place.destination {
                    (reward, terminated) = (20.0, true);
                }
            }
            _ => reward = -10.0,
        },
        _ => {} // against a wall
    }
    Outcome { probability: 1.0, next_state: next.encode(), reward, terminated }
}

impl Game for Taxi {
    fn draw(&self, state: usize, canvas: &mut Canvas) {
        let Place { taxi, passenger, destination } = Place::decode(state);
        let corner = |(row, column): (usize, usize)| (column as f64, (SIDE - 1 - row) as f64);
        let side = SIDE as f64;
        canvas.clear(palette::WHITE);
        canvas.fit(-0.1, -0.1, side + 0.1, side + 0.1);
        for field in 0..SIDE * SIDE {
            let (x, y) = corner((field / SIDE, field % SIDE));
            canvas.rectangle(x + 0.02, y + 0.02, 0.96, 0.96, palette::LIGHT_GREY);
        }
        for (&stand, color) in STANDS.iter().zip(STAND_COLORS) {
            let (x, y) = corner(stand);
            canvas.rectangle(x + 0.06, y + 0.06, 0.88, 0.88, color);
        }
        let (x, y) = corner(STANDS[destination]);
        draw_flag(canvas, (x + 0.15, y + 0.2), 0.7, palette::BLACK);

        let (x, y) = corner(taxi);
        canvas.rectangle(x + 0.15, y + 0.28, 0.7, 0.22, palette::ORANGE);
        canvas.polygon(
            &[(x + 0.25, y + 0.5), (x + 0.75, y + 0.5), (x + 0.66, y + 0.7), (x + 0.34, y + 0.7)],
            palette::ORANGE,
        );
        canvas.rectangle(x + 0.37, y + 0.5, 0.26, 0.14, palette::WHITE);
        for wheel in [0.3, 0.7] {
            canvas.circle(x + wheel, y + 0.27, 0.09, palette::BLACK);
        }
        if passenger == IN_TAXI {
            canvas.circle(x + 0.5, y + 0.57, 0.06, palette::PURPLE);
        } else {
            let (x, y) = corner(STANDS[passenger]);
            canvas
                .polygon(&[(x + 0.62, y + 0.15), (x + 0.9, y + 0.15), (x + 0.76, y + 0.6)], palette::PURPLE);
            canvas.circle(x + 0.76, y + 0.62, 0.11, palette::PURPLE);
        }

        canvas.line(&[(0.0, 0.0), (side, 0.0), (side, side), (0.0, side), (0.0, 0.0)], 0.06, palette::BLACK);
        for wall in WALLS {
            let (x, y) = corner(wall);
            canvas.line(&[(x + 1.0, y), (x + 1.0, y + 1.0)], 0.06, palette::BLACK);
        }
    }
}
