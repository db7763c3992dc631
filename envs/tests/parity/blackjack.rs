//! Replays recordings of kind "blackjack": whole rounds with the recorded cards.

use super::control::{check_id, check_limits, flag};
use super::{Outcome, array, number, numbers};
use anyhow::{Context, Result, bail, ensure};
use envs::Env;
use envs::toy_text::Blackjack;
use serde_json::Value;

/// Replays one recording of this kind.
pub fn replay(doc: &Value) -> Result<Outcome> {
    let (mut natural, mut sab) = (false, true); // as registered
    for (name, value) in doc["kwargs"].as_object().context("kwargs")? {
        match name.as_str() {
            "natural" => natural = flag(value)?,
            "sab" => sab = flag(value)?,
            _ => bail!("keyword argument {name} = {value} is unknown"),
        }
    }
    let mut env = Blackjack::new(natural, sab);
    check_id(doc, env.spec())?;
    check_limits(doc, env.spec())?;
    ensure!(envs::make(&env.spec().id)?.spec() == env.spec(), "{} is registered as another", env.spec().id);

    let mut steps = 0;
    for (k, episode) in array(&doc["episodes"])?.iter().enumerate() {
        with_cards(&episode["draws"][0], |draw| env.deal(draw))
            .with_context(|| format!("episode {k}, deal"))?;
        check_observation(&env, &episode["obs"][0]).with_context(|| format!("episode {k}, deal"))?;
        for (t, action) in array(&episode["actions"])?.iter().enumerate() {
            let place = || format!("episode {k}, step {t}");
            let hit = flag(action)?;
            let step =
                with_cards(&episode["draws"][t + 1], |draw| env.play(hit, draw)).with_context(place)?;
            check_observation(&env, &episode["obs"][t + 1]).with_context(place)?;
            ensure!(step.reward == number(&episode["rewards"][t])?, "{}: reward {}", place(), step.reward);
            ensure!(step.terminated == flag(&episode["terminated"][t])?, "{}: terminated", place());
            steps += 1;
        }
    }
    Ok(Outcome::Replayed { steps, error: 0.0 })
}

/// Lets `play` draw the recorded cards, which it must use up exactly.
fn with_cards<T>(cards: &Value, play: impl FnOnce(&mut dyn FnMut() -> Result<u8>) -> Result<T>) -> Result<T> {
    let mut cards = numbers(cards)?.into_iter();
    let result = play(&mut || cards.next().map(|card| card as u8).context("more cards drawn than recorded"))?;
    ensure!(cards.len() == 0, "{} recorded cards are left", cards.len());
    Ok(result)
}

fn check_observation(env: &Blackjack, expected: &Value) -> Result<()> {
    let mut observation = [0.0; 3];
    env.observe(&mut observation);
    let expected = numbers(expected)?;
    ensure!(observation.map(f64::from) == *expected, "observed {observation:?}, recorded {expected:?}");
    Ok(())
}
