//! CarRental-v0: move cars overnight between two locations that rent them out by day.
//!
//! Sutton & Barto (2018), "Reinforcement Learning", example 4.2 (Jack's car rental).

use crate::toy_text::{Game, Tabular};
use crate::{Canvas, Outcome, TransitionModel, canvas::palette};
use std::sync::{Arc, OnceLock};

/// Most cars at a location: more go back to the company.
const MAX_CARS: usize = 20;
/// Most cars moved in a night.
const MAX_MOVED: i32 = 5;
const INCOME: f64 = 10.0; // of a car rented out
const COST: f64 = 2.0; // of a car moved
/// Means of the Poisson distributions of requests and returns at the first location, at the second.
const REQUESTS: [f64; 2] = [3.0, 4.0];
const RETURNS: [f64; 2] = [3.0, 2.0];
/// The book has no first state and no end; both are ours. A year's quarter says enough at its γ = 0.9.
const START: usize = 10 * (MAX_CARS + 1) + 10;
const MAX_EPISODE_STEPS: u32 = 100;

/// State `21 · (cars at the first location) + (cars at the second)` in the evening, 0 to 20 each. Action
/// a moves a − 5 cars from the first to the second location, −5 to 5 of them. Whoever asks for more cars
/// to be moved than there are pays for all of them, so that it never pays (the book forbids it). The
/// next day each location rents out what is requested of the cars it has, and cars that come back can
/// be rented out the day after. Reward: 10 a car rented out (its expectation: the model knows no other)
/// less 2 a car to be moved. An episode begins with 10 cars each and is cut off after 100 days.
pub struct CarRental;

impl CarRental {
    /// With 10 cars at each location.
    pub fn new() -> Tabular<Self> {
        // Two million outcomes, which all copies share.
        static MODEL: OnceLock<Arc<TransitionModel>> = OnceLock::new();
        let model = MODEL.get_or_init(|| Arc::new(model()));
        Tabular::new(CarRental, "CarRental-v0", model.clone(), Some(MAX_EPISODE_STEPS), None)
    }
}

/// Poisson probabilities of 0 to 199: together 1 to within rounding.
fn poisson(mean: f64) -> Vec<f64> {
    let mut probabilities = vec![(-mean).exp()];
    for n in 1..200 {
        probabilities.push(probabilities[n - 1] * mean / f64::from(n as u32));
    }
    probabilities
}

/// A location's day from `cars` in the morning: the distribution of the cars in the evening `[21]`, and
/// the expected income.
fn day(cars: usize, requests: &[f64], returns: &[f64]) -> (Vec<f64>, f64) {
    let (mut evening, mut income) = (vec![0.0; MAX_CARS + 1], 0.0);
    for (requested, p_requested) in requests.iter().enumerate() {
        let rented = requested.min(cars);
        income += INCOME * p_requested * rented as f64;
        for (returned, p_returned) in returns.iter().enumerate() {
            evening[(cars - rented + returned).min(MAX_CARS)] += p_requested * p_returned;
        }
    }
    (evening, income)
}

fn model() -> TransitionModel {
    let days: [Vec<(Vec<f64>, f64)>; 2] = [0, 1].map(|location| {
        let (requests, returns) = (poisson(REQUESTS[location]), poisson(RETURNS[location]));
        (0..=MAX_CARS).map(|cars| day(cars, &requests, &returns)).collect()
    });
    let outcomes_of = |state: usize, action: i32| -> Vec<Outcome> {
        let (first, second) = ((state / (MAX_CARS + 1)) as i32, (state % (MAX_CARS + 1)) as i32);
        let asked = action - MAX_MOVED;
        let moved = asked.clamp(-second, first);
        let morning = |cars: i32| (cars as usize).min(MAX_CARS);
        let (evening1, income1) = &days[0][morning(first - moved)];
        let (evening2, income2) = &days[1][morning(second + moved)];
        let reward = income1 + income2 - COST * f64::from(asked.abs());
        let pairs = evening1.iter().flat_map(|p1| evening2.iter().map(move |p2| p1 * p2));
        pairs
            .enumerate()
            .map(|(next_state, probability)| Outcome { probability, next_state, reward, terminated: false })
            .collect()
    };
    let states = (MAX_CARS + 1) * (MAX_CARS + 1);
    TransitionModel {
        outcomes: (0..states).map(|s| (0..=2 * MAX_MOVED).map(|a| outcomes_of(s, a)).collect()).collect(),
        initial: (0..states).map(|state| if state == START { 1.0 } else { 0.0 }).collect(),
    }
}

impl Game for CarRental {
    /// Two parking lots, a rectangle a car.
    fn draw(&self, state: usize, canvas: &mut Canvas) {
        canvas.clear(palette::WHITE);
        canvas.fit(-0.5, -0.5, 11.5, 5.0);
        for (cars, left) in [(state / (MAX_CARS + 1), 0.0), (state % (MAX_CARS + 1), 6.5)] {
            canvas.rectangle(left - 0.2, -0.2, 5.0, 4.9, palette::LIGHT_GREY);
            for car in 0..cars {
                let (x, y) = (left + 1.2 * (car % 4) as f64, 0.95 * (car / 4) as f64);
                canvas.rectangle(x, y, 0.95, 0.65, palette::BLUE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Env;

    #[test]
    fn days_are_as_the_poisson_distributions_say() {
        let env = CarRental::new();
        let outcomes = &env.model().unwrap().outcomes;
        let mean = |outcomes: &[Outcome], of: fn(usize) -> usize| -> f64 {
            outcomes.iter().map(|o| o.probability * of(o.next_state) as f64).sum()
        };
        // With 10 cars each hardly a request is refused: 3 go and 3 come, 4 go and 2 come.
        let stay = &outcomes[START][5];
        approx::assert_abs_diff_eq!(mean(stay, |s| s / 21), 10.0, epsilon = 0.01);
        approx::assert_abs_diff_eq!(mean(stay, |s| s % 21), 8.0, epsilon = 0.02);
        assert!((69.5..70.0).contains(&stay[0].reward), "{}", stay[0].reward);
        // Three cars from the first to the second, and two of them back.
        approx::assert_abs_diff_eq!(mean(&outcomes[START][8], |s| s / 21), 7.0, epsilon = 0.03);
        approx::assert_abs_diff_eq!(mean(&outcomes[START][3], |s| s % 21), 6.0, epsilon = 0.08);
        // Nothing to move is paid for all the same, and the lots hold 20.
        assert_eq!(outcomes[0][5][0].reward - outcomes[0][10][0].reward, 10.0);
        // Of full lots what comes is lost unless as much goes: 20 − E|requests − returns| / 2, which for
        // two Poisson variables of mean 3 is 20 − 3 e⁻⁶ (I₀(6) + I₁(6)) (Skellam 1946).
        approx::assert_abs_diff_eq!(mean(&outcomes[440][5], |s| s / 21), 19.0439, epsilon = 1e-4);
    }
}
