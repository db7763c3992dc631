//! BlackjackState-v0: Blackjack whose rounds all begin in one state.
//!
//! Sutton & Barto (2018), "Reinforcement Learning", example 5.4: an ace and a two against the dealer's two,
//! a state that importance sampling is tried on.

use crate::toy_text::Blackjack;
use crate::{Action, Canvas, Env, Result, Rng, Spec, State, Step};
use rand::RngExt;

/// Blackjack by the textbook's rules, `Blackjack-v1` but for the deal: the player has an ace and a two, 13
/// with an ace that counts 11, and the dealer shows a two; the dealer's other card is any. Under the
/// policy that sticks on 20 and 21 alone that is worth −0.2772.
pub struct BlackjackState {
    spec: Spec,
    game: Blackjack,
}

impl BlackjackState {
    /// Before any card is dealt; [`Env::reset`] begins a round.
    pub fn new() -> Self {
        let game = Blackjack::new(false, true);
        Self { spec: Spec { id: "BlackjackState-v0".into(), ..game.spec().clone() }, game }
    }
}

impl Default for BlackjackState {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for BlackjackState {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        // Jack, queen and king count 10 as well.
        let hidden = rng.random_range(1..=13_u8).min(10);
        let mut cards = [2, hidden, 1, 2].into_iter();
        self.game.deal(|| Ok(cards.next().unwrap_or(hidden))) // four cards are dealt
    }

    /// Actions: 0 sticks, 1 hits.
    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        self.game.step(action, rng)
    }

    fn observe(&self, observation: &mut [f32]) {
        self.game.observe(observation);
    }

    fn state(&self) -> Result<State> {
        self.game.state()
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        self.game.set_state(state)
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        self.game.draw(canvas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn every_round_begins_with_the_same_cards_but_one() {
        let (mut env, rng) = (BlackjackState::new(), &mut rng(1, 0));
        let mut counts = [0; 11];
        for _ in 0..13_000 {
            env.reset(rng).unwrap();
            let mut observation = [0.0; 3];
            env.observe(&mut observation);
            assert_eq!(observation, [13.0, 2.0, 1.0]);
            let cards = env.state().unwrap().0;
            assert_eq!(cards[..5], [2.0, 1.0, 2.0, 2.0, 2.0]);
            counts[cards[5] as usize] += 1;
        }
        // A thirteenth each and four thirteenths, to within five standard deviations.
        assert!(counts[1..10].iter().all(|count| (848..=1152).contains(count)), "{counts:?}");
        assert!((3737..=4263).contains(&counts[10]) && counts[0] == 0, "{counts:?}");
    }

    #[test]
    fn the_policy_of_the_book_wins_and_loses_as_is_known() {
        let (mut env, rng) = (BlackjackState::new(), &mut rng(2, 0));
        let (rounds, mut sum, mut squares) = (100_000, 0.0, 0.0);
        for _ in 0..rounds {
            env.reset(rng).unwrap();
            let reward = loop {
                let mut observation = [0.0; 3];
                env.observe(&mut observation);
                let action = if observation[0] >= 20.0 { 0 } else { 1 };
                let step = env.step(Action::Discrete(action), rng).unwrap();
                if step.terminated {
                    break step.reward;
                }
            };
            sum += reward;
            squares += reward * reward;
        }
        // Computed exactly with other code: −0.277204; the book's estimate is −0.27726.
        let mean = sum / f64::from(rounds);
        let error = ((squares / f64::from(rounds) - mean * mean) / f64::from(rounds)).sqrt();
        assert!((mean + 0.277204).abs() < 3.0 * error, "{mean} ± {error}");
    }
}
