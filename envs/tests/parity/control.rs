//! Replays recordings of kind "control": classic control, whole episodes from their first state,
//! single transitions from states all over the state space, and the spread of first states.

use super::{Outcome, array, index, max_difference, number, numbers};
use anyhow::{Context, Result, bail, ensure};
use envs::{Action, Env, Space, Spec, State, Step, rng};
use serde_json::Value;

/// NumPy squares with C's `pow`, and its sines and cosines are its own: their last bits may differ
/// from ours. Everything else is the same arithmetic.
const TOLERANCE: f64 = 1e-9;

/// More first states than any recording has statistics of.
const MAX_SAMPLES: usize = 1_000_000;

/// Replays one recording of this kind.
pub fn replay(doc: &Value) -> Result<Outcome> {
    let id = doc["env_id"].as_str().context("env_id")?;
    ensure!(doc["kwargs"].as_object().is_some_and(|k| k.is_empty()), "kwargs {}", doc["kwargs"]);
    let mut env = envs::make(id)?;
    check_id(doc, env.spec())?;
    check_limits(doc, env.spec())?;
    check_reset(doc, &mut *env)?;
    // The shortest digits of a float32 are not yet the number: it has to be rounded.
    let single = match doc["state_dtype"].as_str() {
        Some("float64") => false,
        Some("float32 after a step") => true,
        _ => bail!("state_dtype {} is unknown", doc["state_dtype"]),
    };
    let state = |value: &Value| -> Result<Vec<f64>> {
        let round = |x: f64| if single { f64::from(x as f32) } else { x };
        Ok(numbers(value)?.into_iter().map(round).collect())
    };

    let (mut steps, mut error) = (0, 0.0_f64);
    for (k, episode) in array(&doc["episodes"])?.iter().enumerate() {
        set(&mut *env, numbers(&episode["init"])?, 0)?;
        let e = compare_observation(&*env, &episode["obs0"])?;
        ensure!(e <= TOLERANCE, "episode {k}: first observation is off by {e:.1e}");
        for (t, action) in array(&episode["actions"])?.iter().enumerate() {
            let place = || format!("episode {k}, step {t}");
            let step = act(&mut *env, action).with_context(place)?;
            let e = compare(
                &*env,
                step,
                &state(&episode["state"][t])?,
                &episode["obs"][t],
                &episode["rewards"][t],
            )
            .with_context(place)?;
            ensure!(e <= TOLERANCE, "{}: off by {e:.1e}", place());
            ensure!(step.terminated == flag(&episode["terminated"][t])?, "{}: terminated", place());
            ensure!(step.truncated == flag(&episode["truncated"][t])?, "{}: truncated", place());
            error = error.max(e);
            steps += 1;
            if e > 0.0 {
                // The acrobot is chaotic: a last bit would grow beyond any tolerance.
                set(&mut *env, state(&episode["state"][t])?, t + 1)?;
            }
        }
    }
    for (k, row) in array(&doc["transitions"])?.iter().enumerate() {
        let place = || format!("transition {k}");
        set(&mut *env, state(&row["s"])?, 0).with_context(place)?;
        let step = act(&mut *env, &row["a"]).with_context(place)?;
        let e = compare(&*env, step, &state(&row["s2"])?, &row["obs"], &row["r"]).with_context(place)?;
        ensure!(e <= TOLERANCE, "{}: off by {e:.1e}", place());
        ensure!(step.terminated == flag(&row["term"])?, "{}: terminated", place());
        error = error.max(e);
        steps += 1;
    }
    Ok(Outcome::Replayed { steps, error })
}

/// Sets a recorded state, which the time limit's counter follows.
fn set(env: &mut dyn Env, mut state: Vec<f64>, elapsed: usize) -> Result<()> {
    state.push(elapsed as f64);
    env.set_state(&State(state))
}

/// Takes a recorded action. All randomness of these environments is in `reset`.
fn act(env: &mut dyn Env, action: &Value) -> Result<Step> {
    let mut unused = rng(0, 0);
    match env.spec().action_space {
        Space::Discrete { n } => env.step(Action::Discrete(index(action, n)?), &mut unused),
        _ => {
            let action: Vec<f32> = numbers(action)?.into_iter().map(|x| x as f32).collect();
            let wanted = env.spec().action_space.size();
            ensure!(action.len() == wanted, "an action of {} numbers, not {wanted}", action.len());
            env.step(Action::Continuous(&action), &mut unused)
        }
    }
}

/// The largest difference of the environment's state, observation and reward from the recorded.
fn compare(env: &dyn Env, step: Step, state: &[f64], observation: &Value, reward: &Value) -> Result<f64> {
    let mut actual = env.state()?.0;
    actual.pop(); // the time limit's counter
    Ok(max_difference(&actual, state)
        .max(max_difference(&[step.reward], &[number(reward)?]))
        .max(compare_observation(env, observation)?))
}

/// The largest difference of the observation from the recorded one; differences of one unit in
/// the last place of a float32, which a float64 difference below the tolerance can round to, are
/// forgiven and count as none.
fn compare_observation(env: &dyn Env, expected: &Value) -> Result<f64> {
    let mut actual = vec![0.0_f32; env.spec().observation_space.size()];
    env.observe(&mut actual);
    let expected = numbers(expected)?;
    ensure!(actual.len() == expected.len(), "{} numbers observed, {} recorded", actual.len(), expected.len());
    let difference = |(&a, &e): (&f32, &f64)| {
        let e = e as f32;
        if a.next_up() == e || a.next_down() == e { 0.0 } else { max_difference(&[a.into()], &[e.into()]) }
    };
    Ok(actual.iter().zip(&expected).map(difference).fold(0.0, f64::max))
}

/// Holds first states against the recording's statistics of them. They are drawn uniformly, or
/// are constant.
fn check_reset(doc: &Value, env: &mut dyn Env) -> Result<()> {
    let stats = &doc["reset_stats"];
    let n = index(&stats["n"], MAX_SAMPLES)?;
    let recorded = [&stats["min"], &stats["max"], &stats["mean"], &stats["std"]].map(numbers);
    let [min, max, mean, std] = recorded;
    let (min, max, mean, std) = (min?, max?, mean?, std?);

    let mut generator = rng(0, 0);
    let mut states = Vec::with_capacity(n);
    for _ in 0..n {
        env.reset(&mut generator)?;
        states.push(env.state()?.0);
    }
    let dim = states.first().map_or(0, |state| state.len() - 1); // without the time limit's counter
    ensure!([&min, &max, &mean, &std].iter().all(|row| row.len() == dim), "reset_stats: not {dim} numbers");
    for i in 0..dim {
        let column: Vec<f64> = states.iter().map(|state| state[i]).collect();
        let count = n as f64;
        let m = column.iter().sum::<f64>() / count;
        let s = (column.iter().map(|x| (x - m).powi(2)).sum::<f64>() / count).sqrt();
        let low = column.iter().copied().fold(f64::INFINITY, f64::min);
        let high = column.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Each comparison allows six standard errors of the difference of two samples. For a
        // uniform distribution of standard deviation σ the mean's is σ √(2/n), the standard
        // deviation's σ √(2/n) / √5, and the gap between the extreme and the bound is close to
        // exponential with mean √12 σ / n (one in e²⁰ is longer than twenty of these).
        let six = 6.0 * std[i] * (2.0 / count).sqrt();
        let gap = 20.0 * 12.0_f64.sqrt() * std[i] / count;
        for (what, actual, expected, allowed) in [
            ("mean", m, mean[i], six),
            ("standard deviation", s, std[i], six / 5.0_f64.sqrt()),
            ("minimum", low, min[i], gap),
            ("maximum", high, max[i], gap),
        ] {
            ensure!(
                (actual - expected).abs() <= allowed,
                "first states: {what} of component {i} is {actual}, recorded {expected} ± {allowed}"
            );
        }
    }
    Ok(())
}

/// Holds the id against the recording's. Ours has a suffix where keyword arguments were given.
pub(super) fn check_id(doc: &Value, spec: &Spec) -> Result<()> {
    let recorded = doc["env_id"].as_str().context("env_id")?;
    let has_kwargs = doc["kwargs"].as_object().is_some_and(|kwargs| !kwargs.is_empty());
    let agrees = if has_kwargs { spec.id.starts_with(recorded) } else { spec.id == recorded };
    ensure!(agrees, "id is {}, recorded {recorded}", spec.id);
    Ok(())
}

/// Holds spaces and limits against the recording's.
pub(super) fn check_limits(doc: &Value, spec: &Spec) -> Result<()> {
    let (observations, actions) = (space(&doc["observation_space"])?, space(&doc["action_space"])?);
    ensure!(
        spec.observation_space == observations,
        "observation space is {:?}, recorded {observations:?}",
        spec.observation_space
    );
    ensure!(spec.action_space == actions, "action space is {:?}, recorded {actions:?}", spec.action_space);
    let limit = optional(&doc["max_episode_steps"])?;
    ensure!(
        spec.max_episode_steps.map(f64::from) == limit,
        "max_episode_steps is {:?}, recorded {limit:?}",
        spec.max_episode_steps
    );
    let threshold = optional(&doc["reward_threshold"])?;
    ensure!(
        spec.reward_threshold == threshold,
        "reward_threshold is {:?}, recorded {threshold:?}",
        spec.reward_threshold
    );
    Ok(())
}

fn space(value: &Value) -> Result<Space> {
    let floats =
        |value: &Value| -> Result<Vec<f32>> { Ok(numbers(value)?.into_iter().map(|x| x as f32).collect()) };
    Ok(match value["type"].as_str() {
        Some("discrete") => Space::Discrete { n: number(&value["n"])? as usize },
        Some("box") => Space::Box {
            shape: numbers(&value["shape"])?.into_iter().map(|x| x as usize).collect(),
            low: floats(&value["low"])?,
            high: floats(&value["high"])?,
        },
        Some("tuple") => Space::Tuple(array(&value["spaces"])?.iter().map(space).collect::<Result<_>>()?),
        _ => bail!("{value} is not a space"),
    })
}

fn optional(value: &Value) -> Result<Option<f64>> {
    if value.is_null() { Ok(None) } else { number(value).map(Some) }
}

/// A boolean, written as 0 or 1.
pub(super) fn flag(value: &Value) -> Result<bool> {
    match number(value)? {
        0.0 => Ok(false),
        1.0 => Ok(true),
        other => bail!("{other} is not 0 or 1"),
    }
}
