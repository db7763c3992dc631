//! Blackjack-v1: draw cards towards 21 without going over, against a dealer who draws to 17.
//!
//! Sutton & Barto, "Reinforcement Learning", example 5.1 (cards from an infinite deck); rules and
//! order of draws as in Gymnasium's Blackjack-v1.

use super::draw_diamond;
use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, invalid};
use rand::RngExt;

/// The cards, each as likely as the others: an ace counts 1 or 11, jack, queen and king 10.
const DECK: [u8; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10];
const MAX_SUM: u32 = 21;
/// The dealer draws below this sum.
const DEALER_STANDS: u32 = 17;

/// State: the number of the player's cards and those cards, then the same of the dealer.
pub struct Blackjack {
    spec: Spec,
    natural: bool,
    sab: bool,
    player: Hand,
    dealer: Hand,
}

/// Cards in the order in which they were drawn, each 1 to 10.
#[derive(Default)]
struct Hand(Vec<u8>);

impl Hand {
    /// An ace counts 11 unless that would go over.
    fn usable_ace(&self) -> bool {
        self.0.contains(&1) && self.hard_sum() + 10 <= MAX_SUM
    }

    fn hard_sum(&self) -> u32 {
        self.0.iter().map(|&card| u32::from(card)).sum()
    }

    fn sum(&self) -> u32 {
        self.hard_sum() + if self.usable_ace() { 10 } else { 0 }
    }

    fn is_bust(&self) -> bool {
        self.sum() > MAX_SUM
    }

    /// What counts in the comparison: nothing once bust.
    fn score(&self) -> u32 {
        if self.is_bust() { 0 } else { self.sum() }
    }

    /// An ace and a ten: 21 in the first two cards.
    fn is_natural(&self) -> bool {
        matches!(self.0[..], [1, 10] | [10, 1])
    }
}

impl Blackjack {
    /// Before any card is dealt; [`Env::reset`] begins a round.
    ///
    /// A win with a natural pays 1.5 instead of 1 with `natural`; with `sab`, the rules of Sutton
    /// & Barto, which go before, it wins against all but the dealer's natural and pays 1.
    pub fn new(natural: bool, sab: bool) -> Self {
        let id = match (natural, sab) {
            (_, true) => "Blackjack-v1",
            (true, false) => "Blackjack-v1-natural",
            (false, false) => "Blackjack-v1-simple",
        };
        // The player draws at 21 at most, the dealer at 16.
        let hand = || Hand(Vec::with_capacity(MAX_SUM as usize + 1));
        Self {
            spec: Spec {
                id: id.into(),
                // The player's sum, the dealer's first card, whether an ace counts 11.
                observation_space: Space::Tuple(vec![
                    Space::Discrete { n: 32 },
                    Space::Discrete { n: 11 },
                    Space::Discrete { n: 2 },
                ]),
                action_space: Space::Discrete { n: 2 },
                max_episode_steps: None,
                reward_threshold: None,
            },
            natural,
            sab,
            player: hand(),
            dealer: hand(),
        }
    }

    /// Begins a round: two cards for the dealer, then two for the player. `draw` gives the next
    /// card, 1 to 10.
    pub fn deal(&mut self, mut draw: impl FnMut() -> Result<u8>) -> Result<()> {
        for hand in [&mut self.dealer, &mut self.player] {
            hand.0.clear();
            hand.0.push(draw()?);
            hand.0.push(draw()?);
        }
        Ok(())
    }

    /// Draws a card for the player (`hit`), or else plays out the dealer's hand and compares.
    pub fn play(&mut self, hit: bool, mut draw: impl FnMut() -> Result<u8>) -> Result<Step> {
        if hit {
            self.player.0.push(draw()?);
            let terminated = self.player.is_bust();
            return Ok(Step { reward: if terminated { -1.0 } else { 0.0 }, terminated, truncated: false });
        }
        while self.dealer.sum() < DEALER_STANDS {
            self.dealer.0.push(draw()?);
        }
        let (player, dealer) = (self.player.score(), self.dealer.score());
        let reward = if self.sab && self.player.is_natural() && !self.dealer.is_natural() {
            1.0
        } else if player > dealer {
            if !self.sab && self.natural && self.player.is_natural() { 1.5 } else { 1.0 }
        } else if player < dealer {
            -1.0
        } else {
            0.0
        };
        Ok(Step { reward, terminated: true, truncated: false })
    }
}

fn draw_card(rng: &mut Rng) -> Result<u8> {
    Ok(DECK[rng.random_range(0..DECK.len())])
}

impl Env for Blackjack {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.deal(|| draw_card(rng))
    }

    /// Actions: 0 sticks, 1 hits.
    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        self.play(action.index() == 1, || draw_card(rng))
    }

    fn observe(&self, observation: &mut [f32]) {
        let shown = self.dealer.0.first().copied().unwrap_or(0);
        let ace = if self.player.usable_ace() { 1.0 } else { 0.0 };
        observation.copy_from_slice(&[self.player.sum() as f32, f32::from(shown), ace]);
    }

    fn state(&self) -> Result<State> {
        let numbers = |hand: &Hand| {
            std::iter::once(hand.0.len() as f64)
                .chain(hand.0.iter().map(|&card| f64::from(card)))
                .collect::<Vec<f64>>()
        };
        Ok(State([numbers(&self.player), numbers(&self.dealer)].concat()))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        let refuse = || {
            invalid(format!(
                "{}: state {:?}; it is each hand's number of cards and the cards, 1 to 10, of at most 31 in all",
                self.spec.id, state.0
            ))
        };
        let hand = |numbers: &[f64]| -> Option<(Hand, usize)> {
            let count = *numbers.first()?;
            let cards = (0.0..=32.0).contains(&count).then(|| numbers.get(1..=count as usize))??;
            let is_card = |card: &f64| card.fract() == 0.0 && (1.0..=10.0).contains(card);
            let hand = Hand(cards.iter().map(|&card| card as u8).collect());
            let valid = count.fract() == 0.0 && cards.iter().all(is_card) && hand.sum() <= MAX_SUM + 10;
            valid.then_some((hand, 1 + cards.len()))
        };
        let Some((player, read)) = hand(&state.0) else { return refuse() };
        let Some((dealer, rest)) = hand(&state.0[read..]) else { return refuse() };
        if read + rest != state.0.len() {
            return refuse();
        }
        // Copied into the hands there are, which have room for every card that can follow.
        self.player.0.clone_from(&player.0);
        self.dealer.0.clone_from(&dealer.0);
        Ok(())
    }

    /// The dealer's cards above, the player's below, a card's worth in pips.
    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        canvas.clear(palette::GREEN);
        let cards = self.player.0.len().max(self.dealer.0.len()).max(5) as f64;
        canvas.fit(-0.2, -0.2, cards, 3.2);
        for (hand, y) in [(&self.dealer, 1.7), (&self.player, 0.0)] {
            for (i, &card) in hand.0.iter().enumerate() {
                draw_face(canvas, (i as f64, y), card);
            }
        }
        Ok(())
    }
}

/// A card with its lower left corner at `(x, y)`: an ace is one large diamond, any other card as
/// many small ones as it counts.
fn draw_face(canvas: &mut Canvas, (x, y): (f64, f64), card: u8) {
    canvas.rectangle(x, y, 0.85, 1.3, palette::BLACK);
    canvas.rectangle(x + 0.02, y + 0.02, 0.81, 1.26, palette::WHITE);
    if card == 1 {
        return draw_diamond(canvas, (x + 0.425, y + 0.65), 0.28, palette::VERMILLION);
    }
    for pip in 0..card {
        let (column, row) = (f64::from(pip % 2), f64::from(pip / 2));
        // The last of an odd number stands in the middle.
        let column = if pip + 1 == card && card % 2 == 1 { 0.5 } else { column };
        draw_diamond(canvas, (x + 0.245 + 0.36 * column, y + 1.13 - 0.24 * row), 0.1, palette::BLUE);
    }
}
