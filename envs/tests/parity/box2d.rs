//! Replays recordings of kind "box2d": the real environment, through the bridge to Gymnasium,
//! must go the recorded way when its random draws are the recorded ones.
//!
//! That holds for the versions that made the recording only, so others are skipped.

use super::{Outcome, array, number, numbers};
use anyhow::{Context, Result, bail, ensure};
use envs::gymnasium::{Bridge, Python};
use envs::{Actions, Space, Spec};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;

/// Replays one recording of this kind.
pub fn replay(doc: &Value) -> Result<Outcome> {
    let mut python = Python::from_env()?;
    if let Some(reason) = unmet(doc, &python)? {
        return Ok(Outcome::Skipped(reason));
    }
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("recorded_box2d.py"), include_str!("recorded_box2d.py"))?;
    std::fs::write(folder.path().join("recording.json"), doc.to_string())?;
    python.module_paths.push(folder.path().into());
    let mut bridge = Bridge::start("recorded_box2d:Recorded-v0", 1, &python)?;
    check_spec(doc, bridge.spec())?;

    let mut steps = 0;
    for (k, episode) in array(&doc["episodes"])?.iter().enumerate() {
        steps += replay_episode(&mut bridge, k, episode).with_context(|| format!("episode {k}"))?;
    }
    // Any difference has been an error.
    Ok(Outcome::Replayed { steps, error: 0.0 })
}

/// Why this recording cannot be replayed here, and what would help.
fn unmet(doc: &Value, python: &Python) -> Result<Option<String>> {
    let recorded = doc["versions"].as_object().context("no versions")?;
    let packages: BTreeMap<&str, &str> = recorded
        .iter()
        .filter(|(name, _)| *name != "python")
        .filter_map(|(name, version)| Some((name.as_str(), version.as_str()?)))
        .collect();
    let wanted: Vec<_> = packages.iter().map(|(name, version)| format!("{name}=={version}")).collect();
    let interpreter = python.interpreter.display();
    let mend = format!(
        "{interpreter} -m pip install {} (PLAINRL_PYTHON names another interpreter)",
        wanted.join(" ")
    );

    let script = "import importlib.metadata as m, sys\n\
                  for name in sys.argv[1:]:\n    try: print(m.version(name))\n    except m.PackageNotFoundError: print('none')";
    let output = match Command::new(&python.interpreter).args(["-c", script]).args(packages.keys()).output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => return Ok(Some(format!("{interpreter} ended with {}; {mend}", output.status))),
        Err(error) => return Ok(Some(format!("{interpreter}: {error}; {mend}"))),
    };
    let installed = String::from_utf8(output.stdout)?;
    for ((name, version), installed) in packages.iter().zip(installed.lines()) {
        if installed != *version {
            return Ok(Some(format!("needs {name} {version}, installed: {installed}; {mend}")));
        }
    }
    Ok(None)
}

fn check_spec(doc: &Value, spec: &Spec) -> Result<()> {
    let spaces = [("observation_space", &spec.observation_space), ("action_space", &spec.action_space)];
    for (name, space) in spaces {
        let recorded = read_space(&doc[name]).context(name)?;
        ensure!(*space == recorded, "{name}: {space:?}, recorded {recorded:?}");
    }
    let limit = serde_json::to_value(spec.max_episode_steps)?;
    ensure!(limit == doc["max_episode_steps"], "max_episode_steps: {limit}");
    let threshold = doc["reward_threshold"].as_f64();
    ensure!(spec.reward_threshold == threshold, "reward_threshold: {:?}", spec.reward_threshold);
    Ok(())
}

fn read_space(recorded: &Value) -> Result<Space> {
    match recorded["type"].as_str() {
        Some("discrete") => Ok(Space::Discrete { n: number(&recorded["n"])? as usize }),
        Some("box") => Ok(Space::Box {
            shape: numbers(&recorded["shape"])?.iter().map(|&length| length as usize).collect(),
            low: floats(&recorded["low"])?,
            high: floats(&recorded["high"])?,
        }),
        _ => bail!("space type {}", recorded["type"]),
    }
}

/// Numbers that were float32 in Python.
fn floats(value: &Value) -> Result<Vec<f32>> {
    Ok(numbers(value)?.iter().map(|&x| x as f32).collect())
}

/// Replays episode `k` and returns the number of its steps.
fn replay_episode(bridge: &mut Bridge, k: usize, episode: &Value) -> Result<usize> {
    let mut observation = vec![0.0; bridge.spec().observation_space.size()];
    let mut last_observation = observation.clone();
    bridge.reset(k as u64, &mut observation)?;
    let first = floats(&episode["obs0"])?;
    compare("obs0", &observation, &first)?;

    let actions = array(&episode["actions"])?;
    let (rewards, terminated, truncated) =
        (numbers(&episode["rewards"])?, numbers(&episode["terminated"])?, numbers(&episode["truncated"])?);
    let observations = array(&episode["obs"])?;
    let lengths = [rewards.len(), terminated.len(), truncated.len(), observations.len()];
    ensure!(lengths == [actions.len(); 4], "{} actions, but {lengths:?} results", actions.len());
    for (t, action) in actions.iter().enumerate() {
        let mut step = || -> Result<()> {
            let (index, vector);
            let action = if action.is_array() {
                vector = floats(action)?;
                Actions::Continuous(&vector)
            } else {
                index = [number(action)? as u32];
                Actions::Discrete(&index)
            };
            let (mut ends, mut cuts) = ([false], [false]);
            let reward =
                bridge.step(action, &mut observation, &mut last_observation, &mut ends, &mut cuts)?[0];
            let flags = [f64::from(u8::from(ends[0])), f64::from(u8::from(cuts[0]))];
            ensure!(reward == rewards[t], "reward {reward}, recorded {}", rewards[t]);
            ensure!(
                flags == [terminated[t], truncated[t]],
                "terminated and truncated are {flags:?}, recorded {:?}",
                [terminated[t], truncated[t]]
            );
            if ends[0] || cuts[0] {
                compare("observation after the reset", &observation, &first)?;
            }
            compare("observation", &last_observation, &floats(&observations[t])?)
        };
        step().with_context(|| format!("step {t}"))?;
    }
    Ok(actions.len())
}

fn compare(what: &str, found: &[f32], recorded: &[f32]) -> Result<()> {
    ensure!(found == recorded, "{what} {found:?}, recorded {recorded:?}");
    Ok(())
}
