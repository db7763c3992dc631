//! Replays recordings of kind "minatar": every frame, reward and end, and every random number
//! that the original drew.

use super::{Outcome, array, number, numbers};
use anyhow::{Context, Result, bail, ensure};
use envs::minatar::{
    ActionSet, Asterix, Breakout, Draws, Freeway, Game, MinAtar, Move, Seaquest, SpaceInvaders,
};
use envs::{Env, Step};
use serde_json::{Value, json};

/// Replays one recording of this kind.
pub fn replay(doc: &Value) -> Result<Outcome> {
    match doc["env_id"].as_str() {
        Some("asterix") => replay_game::<Asterix>(doc),
        Some("breakout") => replay_game::<Breakout>(doc),
        Some("freeway") => replay_game::<Freeway>(doc),
        Some("seaquest") => replay_game::<Seaquest>(doc),
        Some("space_invaders") => replay_game::<SpaceInvaders>(doc),
        _ => bail!("game {} is unknown", doc["env_id"]),
    }
}

fn replay_game<G: Game>(doc: &Value) -> Result<Outcome> {
    let channels = G::COLORS.len();
    ensure!(doc["channels"] == json!(channels), "{} channels, here {channels}", doc["channels"]);
    let minimal: Vec<_> = G::MINIMAL_ACTIONS.iter().map(|&action| action as usize).collect();
    let recorded = &doc["minimal_action_set"];
    ensure!(*recorded == json!(minimal), "minimal action set {recorded}, here {minimal:?}");
    let mut steps = 0;
    for (i, episode) in array(&doc["episodes"])?.iter().enumerate() {
        steps += replay_episode::<G>(episode).with_context(|| format!("episode {i}"))?;
    }
    Ok(Outcome::Replayed { steps, error: 0.0 })
}

/// Replays one episode twice side by side: in `env`, and in `twin`, which before every step is set
/// to the state of `env` and so proves that the state is complete.
fn replay_episode<G: Game>(episode: &Value) -> Result<usize> {
    let sticky = number(&episode["sticky_action_prob"])?;
    let ramping = flag(&episode["difficulty_ramping"])?;
    let [random, frames, frame_steps, actions, rewards, ends] =
        ["random", "obs", "obs_steps", "actions", "rewards", "terminated"].map(|key| array(&episode[key]));
    let (random, frames, actions, rewards, ends) = (random?, frames?, actions?, rewards?, ends?);
    let frame_steps = indices(frame_steps?)?;
    let steps = actions.len();
    ensure!(
        random.len() == steps + 1 && rewards.len() == steps && ends.len() == steps,
        "{steps} actions, but {} lists of draws, {} rewards and {} ends",
        random.len(),
        rewards.len(),
        ends.len()
    );
    ensure!(frames.len() == frame_steps.len(), "{} frames at {} steps", frames.len(), frame_steps.len());
    ensure!(
        frame_steps.is_sorted_by(|a, b| a < b) && frame_steps.iter().all(|&at| at <= steps),
        "frames out of order"
    );
    let mut frames = frame_steps.iter().zip(frames).peekable();

    let mut env = MinAtar::<G>::new(ActionSet::Full, sticky, ramping)?;
    let mut twin = MinAtar::<G>::new(ActionSet::Full, sticky, ramping)?;
    let mut observation = vec![f32::NAN; env.spec().observation_space.size()];
    for t in 0..=steps {
        let at = if t == 0 { "reset".into() } else { format!("step {t}") };
        let mut tape = Tape::new(array(&random[t])?);
        if t == 0 {
            env.reset_with(&mut tape);
            tape.finish().with_context(|| at.clone())?;
        } else {
            let action = indices(&actions[t - 1..t])?[0];
            ensure!(action < Move::ALL.len(), "{at}: action {action}");
            let mut twin_tape = tape.clone();
            twin.set_state(&env.state()?)?;
            let played = env.step_with(action, &mut tape)?;
            tape.finish().with_context(|| at.clone())?;
            let (reward, terminated) = (number(&rewards[t - 1])?, flag(&ends[t - 1])?);
            let recorded = Step { reward, terminated, truncated: false };
            ensure!(played == recorded, "{at}: {played:?}, recorded {recorded:?}");
            let resumed = twin.step_with(action, &mut twin_tape)?;
            twin_tape.finish().with_context(|| format!("{at}, resumed"))?;
            ensure!(resumed == played, "{at}: {resumed:?} when resumed, {played:?} before");
            ensure!(twin.state()? == env.state()?, "{at}: another state when resumed");
        }
        if let Some((_, frame)) = frames.next_if(|(frame_step, _)| **frame_step == t) {
            let recorded = indices(array(frame)?)?;
            env.observe(&mut observation);
            ensure!(
                env.spec().observation_space.contains(&observation),
                "{at}: the frame is outside the observation space"
            );
            let set: Vec<_> = (0..observation.len()).filter(|&i| observation[i] == 1.0).collect();
            ensure!(set == recorded, "{at}: frame {set:?}, recorded {recorded:?}");
        }
    }
    Ok(steps)
}

/// The draws of one reset or step, as `[method, arguments, result]`. Hands out the results while
/// the game asks for what was recorded; the first disagreement is kept for [`Tape::finish`].
#[derive(Clone)]
struct Tape<'a> {
    calls: &'a [Value],
    fault: Option<String>,
}

impl<'a> Tape<'a> {
    fn new(calls: &'a [Value]) -> Self {
        Self { calls, fault: None }
    }

    /// `len` results of the next call, which must be `method(arguments)` and lie in `low..high`.
    fn next(&mut self, method: &str, arguments: &[usize], len: usize, (low, high): (f64, f64)) -> Vec<f64> {
        let wanted = format!("{method}{arguments:?}");
        let mut fault = None;
        match self.calls.split_first() {
            None => fault = Some(format!("the game draws {wanted}, nothing more is recorded")),
            Some((call, rest)) => {
                self.calls = rest;
                let results = numbers(&call[2]).unwrap_or_default();
                if call[0] != json!(method) || call[1] != json!(arguments) {
                    fault = Some(format!("the game draws {wanted}, recorded is {call}"));
                } else if results.len() != len || !results.iter().all(|x| (low..high).contains(x)) {
                    fault = Some(format!("{call} cannot be"));
                } else if self.fault.is_none() {
                    return results;
                }
            }
        }
        self.fault = self.fault.take().or(fault);
        vec![low; len]
    }

    /// Fails if the game asked for anything else than was recorded, or for less.
    fn finish(self) -> Result<()> {
        match (self.fault, self.calls) {
            (Some(fault), _) => bail!("{fault}"),
            (None, []) => Ok(()),
            (None, calls) => bail!("the game did not draw {}", json!(calls)),
        }
    }
}

const UNIT: (f64, f64) = (0.0, 1.0);

impl Draws for Tape<'_> {
    fn uniform(&mut self) -> f64 {
        self.next("rand", &[], 1, UNIT)[0]
    }

    fn between(&mut self, low: i32, high: i32) -> i32 {
        self.next("randint", &[low as usize, high as usize], 1, (low.into(), high.into()))[0] as i32
    }

    fn below(&mut self, n: i32) -> i32 {
        self.next("randint", &[n as usize], 1, (0.0, n.into()))[0] as i32
    }

    fn uniform_batch(&mut self, out: &mut [f64]) {
        out.copy_from_slice(&self.next("rand", &[out.len()], out.len(), UNIT));
    }

    fn between_batch(&mut self, low: i32, high: i32, out: &mut [i32]) {
        let arguments = [low as usize, high as usize, out.len()];
        let results = self.next("randint", &arguments, out.len(), (low.into(), high.into()));
        out.iter_mut().zip(results).for_each(|(out, result)| *out = result as i32);
    }
}

/// 0 or 1.
fn flag(value: &Value) -> Result<bool> {
    match number(value)? {
        0.0 => Ok(false),
        1.0 => Ok(true),
        other => bail!("{other} is neither 0 nor 1"),
    }
}

/// Integers that are not negative.
fn indices(values: &[Value]) -> Result<Vec<usize>> {
    let index = |value: &Value| {
        value.as_u64().map(|index| index as usize).with_context(|| format!("{value} is not an index"))
    };
    values.iter().map(index).collect()
}
