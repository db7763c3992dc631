//! Gambler-v0: stake on coin flips until there are 100 or nothing.
//!
//! Sutton & Barto (2018), "Reinforcement Learning", example 4.3; the book's coin comes up heads with
//! probability 0.4.

use crate::toy_text::{Game, Tabular};
use crate::{Canvas, Outcome, TransitionModel, canvas::palette};

const GOAL: usize = 100;

/// State: the capital, 0 to 100; an episode begins with 50 (the book does not say with what). Action a
/// stakes a + 1, 1 to 50, but no more than there is and than is needed for 100. Heads wins the stake,
/// tails loses it. Reward: 1 on reaching 100, otherwise 0, so that undiscounted a state's value is the
/// probability to win. The book also allows to stake nothing, which gains nothing.
pub struct Gambler;

impl Gambler {
    /// With 50. `heads` is the probability of heads.
    pub fn new(heads: f64) -> Tabular<Self> {
        let outcomes_of = |capital: usize, action: usize| -> Vec<Outcome> {
            if capital == 0 || capital == GOAL {
                return vec![Outcome {
                    probability: 1.0,
                    next_state: capital,
                    reward: 0.0,
                    terminated: true,
                }];
            }
            let stake = (action + 1).min(capital).min(GOAL - capital);
            let outcome = |probability: f64, next_state: usize| {
                let won = next_state == GOAL;
                let reward = if won { 1.0 } else { 0.0 };
                Outcome { probability, next_state, reward, terminated: won || next_state == 0 }
            };
            vec![outcome(heads, capital + stake), outcome(1.0 - heads, capital - stake)]
        };
        let model = TransitionModel {
            outcomes: (0..=GOAL).map(|s| (0..50).map(|a| outcomes_of(s, a)).collect()).collect(),
            initial: (0..=GOAL).map(|capital| if capital == 50 { 1.0 } else { 0.0 }).collect(),
        };
        Tabular::new(Gambler, "Gambler-v0", model, None, None)
    }
}

impl Game for Gambler {
    /// A column of coins as high as the capital, beside a mark at 100.
    fn draw(&self, state: usize, canvas: &mut Canvas) {
        canvas.clear(palette::WHITE);
        canvas.view(-1.0, -5.0, 2.0, 110.0);
        canvas.line(&[(-0.2, 100.0), (1.2, 100.0)], 0.02, palette::GREEN);
        canvas.line(&[(-0.2, 0.0), (1.2, 0.0)], 0.02, palette::GREY);
        canvas.rectangle(0.2, 0.0, 0.6, state as f64, palette::ORANGE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Env, textbook::optimal_values};

    #[test]
    fn the_probabilities_to_win_are_the_known_ones() {
        let values = |heads: f64| optimal_values(Gambler::new(heads).model().unwrap(), 1.0, 2000);
        let unfair = values(0.4);
        // All or nothing: v(50) = 0.4, v(25) = 0.4 v(50), v(75) = 0.4 + 0.6 v(50).
        let known = [(50, 0.4), (25, 0.16), (75, 0.64), (1, 0.00206562), (51, 0.40309844), (99, 0.96433297)];
        for (capital, value) in known {
            approx::assert_abs_diff_eq!(unfair[capital], value, epsilon = 1e-8);
        }
        approx::assert_abs_diff_eq!(values(0.25)[50], 0.25, epsilon = 1e-8);
        // With a coin on the gambler's side the smallest stake is best: the gambler's ruin.
        let r = 0.45_f64 / 0.55;
        approx::assert_abs_diff_eq!(
            values(0.55)[50],
            (1.0 - r.powi(50)) / (1.0 - r.powi(100)),
            epsilon = 1e-6
        );
    }
}
