//! Replays recordings of kind "tabular": the whole transition model, entry by entry, and episodes
//! whose recorded random numbers go through the environment's own sampling.

use super::control::{check_id, check_limits, flag};
use super::{Outcome, array, index, number, numbers};
use anyhow::{Context, Result, bail, ensure};
use envs::toy_text::{CliffWalking, FrozenLake, Game, Tabular, Taxi};
use envs::wrappers::TimeLimit;
use envs::{Action, Env, State, TransitionModel, rng};
use serde_json::Value;

/// Replays one recording of this kind.
pub fn replay(doc: &Value) -> Result<Outcome> {
    let id = doc["env_id"].as_str().context("env_id")?;
    let mut is_slippery = matches!(id, "FrozenLake-v1" | "FrozenLake8x8-v1" | "CliffWalkingSlippery-v1");
    for (name, value) in doc["kwargs"].as_object().context("kwargs")? {
        match name.as_str() {
            "is_slippery" if id != "Taxi-v4" => is_slippery = flag(value)?,
            "map_name" | "desc" if id.starts_with("FrozenLake") => {} // the map itself is recorded
            _ => bail!("{id}: keyword argument {name} = {value} is unknown"),
        }
    }
    match id {
        "FrozenLake-v1" | "FrozenLake8x8-v1" => {
            let rows = array(&doc["map"])?.iter().map(|row| row.as_str().context("map"));
            let map = rows.collect::<Result<Vec<_>>>()?;
            let build = || match id {
                "FrozenLake-v1" => FrozenLake::new(&map, is_slippery),
                _ => FrozenLake::large(is_slippery),
            };
            let built = build()?.game().map();
            ensure!(built == map, "map is {built:?}, recorded {map:?}");
            replay_with(doc, build)
        }
        "CliffWalking-v1" | "CliffWalkingSlippery-v1" => {
            replay_with(doc, || Ok(CliffWalking::new(is_slippery)))
        }
        "Taxi-v4" => replay_with(doc, || Ok(Taxi::new())),
        _ => bail!("environment {id} is unknown"),
    }
}

fn replay_with<G: Game>(doc: &Value, build: impl Fn() -> Result<Tabular<G>>) -> Result<Outcome> {
    let mut env = build()?;
    let id = &env.spec().id.clone();
    check_id(doc, env.spec())?;
    check_limits(doc, env.spec())?;
    let model = env.model().context("no transition model")?.clone();
    check_model(doc, &model)?;
    if doc["kwargs"].get("map_name").or(doc["kwargs"].get("desc")).is_none() {
        let registered = envs::make(id)?;
        ensure!(registered.spec() == env.spec(), "{id} is registered with another specification");
        ensure!(registered.model() == Some(&model), "{id} is registered with another model");
    }

    let mut limited = TimeLimit::new(build()?);
    let mut steps = 0;
    for (k, episode) in array(&doc["episodes"])?.iter().enumerate() {
        let mut state = number(&episode["init"])?;
        let first = index(&episode["init"], model.initial.len())?;
        ensure!(model.initial[first] > 0.0, "episode {k}: begins in state {state}");
        env.set_state(&State(vec![state]))?;
        check_mask(episode, 0, state).with_context(|| format!("episode {k}, step 0"))?;
        for (t, action) in array(&episode["actions"])?.iter().enumerate() {
            let place = || format!("episode {k}, step {t}");
            let action = index(action, model.outcomes[state as usize].len()).with_context(place)?;
            let uniform = number(&episode["uniform"][t])?;
            let outcome = env.sample_outcome(action, uniform);
            ensure!(outcome as f64 == number(&episode["outcome"][t])?, "{}: outcome {outcome}", place());
            let step = env.step_with(action, uniform);

            // Only the time limit of this copy is looked at: its outcome is drawn anew.
            limited.set_state(&State(vec![state, t as f64]))?;
            let truncated = limited.step(Action::Discrete(action), &mut rng(0, 0))?.truncated;
            ensure!(truncated == flag(&episode["truncated"][t])?, "{}: truncated", place());

            let mut observation = [0.0];
            env.observe(&mut observation);
            state = number(&episode["obs"][t])?;
            ensure!(f64::from(observation[0]) == state, "{}: observed {}", place(), observation[0]);
            ensure!(env.state()?.0 == [state], "{}: state {:?}", place(), env.state()?);
            ensure!(step.reward == number(&episode["rewards"][t])?, "{}: reward {}", place(), step.reward);
            ensure!(step.terminated == flag(&episode["terminated"][t])?, "{}: terminated", place());
            check_mask(episode, t + 1, state).with_context(place)?;
            steps += 1;
        }
    }
    Ok(Outcome::Replayed { steps, error: 0.0 })
}

/// Holds every entry of the transition model, and their order, against the recorded table.
fn check_model(doc: &Value, model: &TransitionModel) -> Result<()> {
    let initial = numbers(&doc["initial_state_distribution"])?;
    ensure!(model.initial == initial, "first states are {:?}, recorded {initial:?}", model.initial);
    let table = array(&doc["table"])?;
    ensure!(model.outcomes.len() == table.len(), "{} states, recorded {}", model.outcomes.len(), table.len());
    for (s, (actions, recorded)) in model.outcomes.iter().zip(table).enumerate() {
        let recorded = array(recorded)?;
        ensure!(actions.len() == recorded.len(), "state {s}: {} actions", actions.len());
        for (a, (outcomes, recorded)) in actions.iter().zip(recorded).enumerate() {
            let actual: Vec<Vec<f64>> = outcomes
                .iter()
                .map(|o| {
                    vec![o.probability, o.next_state as f64, o.reward, if o.terminated { 1.0 } else { 0.0 }]
                })
                .collect();
            let recorded = array(recorded)?.iter().map(numbers).collect::<Result<Vec<_>>>()?;
            ensure!(actual == recorded, "P[{s}][{a}] is {actual:?}, recorded {recorded:?}");
        }
    }
    Ok(())
}

/// Holds Taxi's action mask in `state` against the one recorded before step `t`.
fn check_mask(episode: &Value, t: usize, state: f64) -> Result<()> {
    let Some(masks) = episode.get("action_mask") else { return Ok(()) };
    let mask = Taxi::action_mask(state as usize);
    let recorded = numbers(&masks[t])?.into_iter().map(|x| x == 1.0).collect::<Vec<_>>();
    ensure!(mask == *recorded, "action mask is {mask:?}, recorded {recorded:?}");
    Ok(())
}
