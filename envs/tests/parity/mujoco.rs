//! Replays recordings of kind "mujoco".
//!
//! With the version of libmujoco that a recording was made with, observations, rewards and
//! states agree to the last bit or nearly so. Where MuJoCo is not installed the recordings are
//! skipped, visibly; `REQUIRE_MUJOCO=1` makes that a failure.

use super::{Outcome, array, max_difference, number, numbers};
use anyhow::{Context, Result, bail, ensure};
use envs::mujoco::{MujocoEnv, available};
use envs::{Action, Env, InvalidInput, Space, rng};
use serde_json::Value;

/// Largest difference of an observation, reward or state: a few roundings of `f64`.
const TOLERANCE: f64 = 1e-12;

/// Replays one recording of this kind.
///
/// # Errors
/// The first difference, and a missing MuJoCo where `REQUIRE_MUJOCO=1` asks for it.
pub fn replay(doc: &Value) -> Result<Outcome> {
    if let Err(error) = available() {
        let required = std::env::var("REQUIRE_MUJOCO").is_ok_and(|value| value == "1");
        if error.is::<InvalidInput>() && !required {
            return Ok(Outcome::Skipped(error.to_string()));
        }
        return Err(error);
    }
    let id = doc["env_id"].as_str().context("env_id is not a string")?;
    ensure!(
        doc["kwargs"].as_object().is_none_or(|kwargs| kwargs.is_empty()),
        "{id} takes no arguments, the recording has {}",
        doc["kwargs"]
    );
    let mut env = MujocoEnv::new(id)?;
    check_header(&env, doc)?;
    check_reset(&mut env, &doc["reset_stats"])?;

    let (mut steps, mut error) = (0, 0.0_f64);
    for (index, episode) in array(&doc["episodes"])?.iter().enumerate() {
        let (replayed, largest) =
            replay_episode(&mut env, episode).with_context(|| format!("episode {index}"))?;
        steps += replayed;
        error = error.max(largest);
    }
    Ok(Outcome::Replayed { steps, error })
}

/// Holds `found` against the recorded `value`; returns the largest difference.
fn compare(what: &str, found: &[f64], value: &Value) -> Result<f64> {
    let recorded = numbers(value)?;
    let difference = max_difference(found, &recorded);
    ensure!(
        difference <= TOLERANCE,
        "{what} differs by {difference:e}\n  here     {found:?}\n  recorded {recorded:?}"
    );
    Ok(difference)
}

/// Spaces, limits and sizes.
fn check_header(env: &MujocoEnv, doc: &Value) -> Result<()> {
    let spec = env.spec();
    check_space("observation_space", &spec.observation_space, &doc["observation_space"])?;
    check_space("action_space", &spec.action_space, &doc["action_space"])?;
    let recorded = doc["max_episode_steps"].as_u64();
    ensure!(
        spec.max_episode_steps.map(u64::from) == recorded,
        "max_episode_steps is {:?}, not {recorded:?}",
        spec.max_episode_steps
    );
    let recorded = doc["reward_threshold"].as_f64();
    ensure!(
        spec.reward_threshold == recorded,
        "reward_threshold is {:?}, not {recorded:?}",
        spec.reward_threshold
    );
    compare("timestep", &[env.timestep()], &doc["timestep"])?;
    let sizes = [
        ("frame_skip", env.frame_skip(), &doc["frame_skip"]),
        ("nq", env.qpos().len(), &doc["sizes"]["nq"]),
        ("nv", env.qvel().len(), &doc["sizes"]["nv"]),
        ("nu", spec.action_space.size(), &doc["sizes"]["nu"]),
        ("nbody", env.num_bodies(), &doc["sizes"]["nbody"]),
    ];
    for (name, found, recorded) in sizes {
        ensure!(recorded.as_u64() == Some(found as u64), "{name} is {found}, not {recorded}");
    }
    let mut recorded = numbers(&doc["init_qpos"])?;
    if spec.id == "Pusher-v5" {
        // Gymnasium's Pusher overwrites the object's place in its init_qpos at every reset.
        recorded[7..9].copy_from_slice(&env.rest()[7..9]);
    }
    ensure!(env.rest() == recorded, "init_qpos is {:?}, not {recorded:?}", env.rest());
    Ok(())
}

fn check_space(what: &str, space: &Space, recorded: &Value) -> Result<()> {
    let Space::Box { shape, low, high } = space else { bail!("{what} is {space}, not a Box") };
    ensure!(recorded["type"] == "box", "{what} is a Box, not {}", recorded["type"]);
    let f32s =
        |value: &Value| -> Result<Vec<f32>> { Ok(numbers(value)?.into_iter().map(|x| x as f32).collect()) };
    let lengths: Vec<f64> = shape.iter().map(|&n| n as f64).collect();
    ensure!(lengths == numbers(&recorded["shape"])?, "{what} has shape {shape:?}, not {}", recorded["shape"]);
    ensure!(*low == f32s(&recorded["low"])?, "{what} has low {low:?}, not {}", recorded["low"]);
    ensure!(*high == f32s(&recorded["high"])?, "{what} has high {high:?}, not {}", recorded["high"]);
    Ok(())
}

/// Holds the distribution of the beginning of an episode against recorded moments of qpos and
/// qvel, within what chance explains.
fn check_reset(env: &mut MujocoEnv, recorded: &Value) -> Result<()> {
    const SAMPLES: usize = 5000;
    /// Standard errors that a mean or a standard deviation may be off by.
    const SIGMAS: f64 = 6.0;
    let mut random = rng(0, 0);
    let mut samples = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        env.reset(&mut random)?;
        samples.push([env.qpos(), env.qvel()].concat());
    }
    let n = SAMPLES as f64;
    let noise = (1.0 / n + 1.0 / number(&recorded["n"])?).sqrt();
    let [min, max, mean, std] = ["min", "max", "mean", "std"].map(|name| numbers(&recorded[name]));
    let (min, max, mean, std) = (min?, max?, mean?, std?);
    let dim = env.qpos().len() + env.qvel().len();
    ensure!([&min, &max, &mean, &std].iter().all(|row| row.len() == dim), "reset_stats: not {dim} numbers");
    for i in 0..dim {
        let column = || samples.iter().map(|sample| sample[i]);
        let our_min = column().fold(f64::INFINITY, f64::min);
        let our_max = column().fold(f64::NEG_INFINITY, f64::max);
        let our_mean = column().sum::<f64>() / n;
        let our_std = (column().map(|x| (x - our_mean).powi(2)).sum::<f64>() / n).sqrt();
        // Rounding in a mean of equal numbers; a normal distribution's standard error of the
        // standard deviation, σ √(1/2n), is above that of a uniform one.
        let rounding = 1e-12 * (1.0 + mean[i].abs());
        let far_mean = (our_mean - mean[i]).abs() > SIGMAS * std[i] * noise + rounding;
        let far_std = (our_std - std[i]).abs() > SIGMAS * std[i] * noise / 2.0_f64.sqrt() + rounding;
        // The extremes of a bounded distribution are sharp, those of a normal one are not. What
        // tells them apart is how many standard deviations lie between the extremes: 3.5 for a
        // uniform distribution, 4 on a disc, 6 and more for a normal one.
        let range = max[i] - min[i];
        let slack = if range < 4.5 * std[i] { 0.1 * range } else { 0.5 * range } + rounding;
        let far_bounds = (our_min - min[i]).abs() > slack || (our_max - max[i]).abs() > slack;
        ensure!(
            !far_mean && !far_std && !far_bounds,
            "reset, number {i} of qpos and qvel: min {our_min}, max {our_max}, mean {our_mean}, std {our_std}, \
             recorded {}, {}, {}, {}",
            min[i],
            max[i],
            mean[i],
            std[i]
        );
    }
    Ok(())
}

/// Replays one episode, which runs on after termination; returns steps and largest difference.
fn replay_episode(env: &mut MujocoEnv, episode: &Value) -> Result<(usize, f64)> {
    let mut random = rng(0, 0); // steps draw nothing
    env.begin(&numbers(&episode["init"]["qpos"])?, &numbers(&episode["init"]["qvel"])?)?;
    let mut error = compare("obs0", env.observation(), &episode["obs0"])?;
    let actions = array(&episode["actions"])?;
    let (rewards, terminated) = (array(&episode["rewards"])?, array(&episode["terminated"])?);
    ensure!(
        rewards.len() == actions.len() && terminated.len() == actions.len(),
        "{} actions, {} rewards, {} terminated",
        actions.len(),
        rewards.len(),
        terminated.len()
    );
    let mut observations = rows(episode, "obs_steps", "obs")?.peekable();
    let mut states = rows(episode, "state_steps", "state")?.peekable();
    for (t, action) in actions.iter().enumerate() {
        let action: Vec<f32> = numbers(action)?.into_iter().map(|x| x as f32).collect();
        let step = env.step(Action::Continuous(&action), &mut random)?;
        let at_step = || format!("step {t}");
        if let Some((_, row)) = observations.next_if(|(at, _)| *at == t) {
            error = error.max(compare("obs", env.observation(), row).with_context(at_step)?);
        }
        if let Some((_, row)) = states.next_if(|(at, _)| *at == t) {
            let state = [env.qpos(), env.qvel()].concat();
            error = error.max(compare("state", &state, row).with_context(at_step)?);
        }
        error = error.max(compare("reward", &[step.reward], &rewards[t]).with_context(at_step)?);
        let recorded = number(&terminated[t])? != 0.0;
        ensure!(step.terminated == recorded, "step {t}: terminated is {}, not {recorded}", step.terminated);
        ensure!(!step.truncated, "step {t}: truncated without a time limit");
    }
    ensure!(observations.next().is_none() && states.next().is_none(), "rows of steps that do not exist");
    Ok((actions.len(), error))
}

/// The rows of `values` with the steps they were recorded at.
fn rows<'a>(
    episode: &'a Value,
    steps: &str,
    values: &str,
) -> Result<impl Iterator<Item = (usize, &'a Value)>> {
    let (at, rows) = (numbers(&episode[steps])?, array(&episode[values])?);
    ensure!(at.len() == rows.len(), "{} {steps} and {} {values}", at.len(), rows.len());
    Ok(at.into_iter().map(|t| t as usize).zip(rows))
}
