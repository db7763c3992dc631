//! Replays recordings of kind "mpe": episodes of the multi-agent particle environments.

use super::{Outcome, array, index, max_difference, number, numbers};
use anyhow::{Context, Result, bail, ensure};
use envs::mpe::{self, ParallelEnv, ParticleEnv};
use envs::{Action, Space, State};
use serde_json::{Map, Value};

/// The arithmetic is the original's, operation by operation, so nothing may differ at all, but for
/// one thing: prey that leaves the field of simple_tag_v3 is fined an exponential, and NumPy's
/// `exp` is the C library's on some processors and its own on those with AVX-512, which is off by
/// one unit in the last place for about one argument in twenty. The fine is at most 10 an axis.
const EXP_TOLERANCE: f64 = 1e-13;

/// Replays one recording of this kind.
pub fn replay(doc: &Value) -> Result<Outcome> {
    let (mut steps, mut error) = (0, 0.0);
    for (k, episode) in array(&doc["episodes"])?.iter().enumerate() {
        let (episode_steps, episode_error) =
            replay_episode(doc, episode).with_context(|| format!("episode {k}"))?;
        steps += episode_steps;
        error = f64::max(error, episode_error);
    }
    Ok(Outcome::Replayed { steps, error })
}

/// Replays one episode; gives the number of its steps and the largest difference.
fn replay_episode(doc: &Value, episode: &Value) -> Result<(usize, f64)> {
    let mut env = build(doc, number(&episode["continuous"])? == 1.0)?;
    check_spec(&*env, doc, episode)?;
    check_bodies(&*env, episode)?;
    env.set_state(&initial_state(&*env, episode)?)?;
    check_observations(&*env, &episode["obs0"]).context("obs0")?;

    let num_steps = array(&episode["actions"])?.len();
    for per_step in ["obs", "rewards", "terminated", "truncated", "state"] {
        ensure!(array(&episode[per_step])?.len() == num_steps, "{per_step}: not one for each action");
    }
    let mut error = 0.0;
    for t in 0..num_steps {
        let step_error = replay_step(&mut *env, episode, t).with_context(|| format!("step {t}"))?;
        error = f64::max(error, step_error);
    }
    Ok((num_steps, error))
}

/// Takes step `t` and compares everything that was recorded after it; gives the difference.
fn replay_step(env: &mut dyn ParallelEnv, episode: &Value, t: usize) -> Result<f64> {
    let actions = array(&episode["actions"][t])?.iter().map(float32).collect::<Result<Vec<_>>>()?;
    let actions: Vec<Action<'_>> = (actions.iter().zip(&env.spec().action_spaces))
        .map(|(values, space)| match (space, values.as_slice()) {
            (Space::Discrete { .. }, [index]) => Action::Discrete(*index as usize),
            _ => Action::Continuous(values),
        })
        .collect();

    let mut rewards = vec![f64::NAN; actions.len()];
    let step = env.step(&actions, &mut envs::rng(0, 0), &mut rewards)?;
    check_observations(env, &episode["obs"][t])?;
    let everybody = |ended: bool| vec![f64::from(u8::from(ended)); rewards.len()];
    same("terminated", &everybody(step.terminated), &numbers(&episode["terminated"][t])?)?;
    same("truncated", &everybody(step.truncated), &numbers(&episode["truncated"][t])?)?;
    // Position and velocity of each agent, with which our state begins.
    let state = env.state()?.0;
    same("state", &state[..4 * actions.len()], &numbers(&episode["state"][t])?)?;

    let recorded = numbers(&episode["rewards"][t])?;
    let prey_fled = (env.world().agents.iter().zip(env.world().agent_bodies()))
        .any(|(agent, body)| !agent.adversary && body.position.iter().any(|x| x.abs() >= 1.0));
    let tolerance = if env.spec().id == "simple_tag_v3" && prey_fled { EXP_TOLERANCE } else { 0.0 };
    let difference = max_difference(&rewards, &recorded);
    ensure!(difference <= tolerance, "rewards {rewards:?}, recorded {recorded:?}: {difference:e} apart");
    Ok(difference)
}

/// The environment that the recording was made with.
fn build(doc: &Value, continuous: bool) -> Result<Box<dyn ParallelEnv>> {
    let id = doc["env_id"].as_str().context("no env_id")?;
    let mut options = doc["kwargs"].as_object().cloned().unwrap_or_default();
    let max_cycles = match options.remove("max_cycles") {
        Some(cycles) => number(&cycles)? as u32,
        None => number(&doc["max_cycles"])? as u32,
    };
    if options.is_empty() && max_cycles == mpe::DEFAULT_MAX_CYCLES {
        return mpe::make(id, continuous);
    }
    let mut take = Options(options);
    let env: Box<dyn ParallelEnv> = match id {
        "simple_v3" => Box::new(ParticleEnv::new(mpe::Simple, max_cycles, continuous)?),
        "simple_adversary_v3" => {
            let task = mpe::SimpleAdversary { num_good: take.count("N", 2)? };
            Box::new(ParticleEnv::new(task, max_cycles, continuous)?)
        }
        "simple_reference_v3" => {
            let task = mpe::SimpleReference { local_ratio: take.number("local_ratio", 0.5)? };
            Box::new(ParticleEnv::new(task, max_cycles, continuous)?)
        }
        "simple_speaker_listener_v4" => {
            Box::new(ParticleEnv::new(mpe::SimpleSpeakerListener, max_cycles, continuous)?)
        }
        "simple_spread_v3" => {
            let task = mpe::SimpleSpread {
                num_agents: take.count("N", 3)?,
                local_ratio: take.number("local_ratio", 0.5)?,
                terminate_on_success: take.number("terminate_on_success", 0.0)? == 1.0,
            };
            Box::new(ParticleEnv::new(task, max_cycles, continuous)?)
        }
        "simple_tag_v3" => {
            let task = mpe::SimpleTag {
                num_good: take.count("num_good", 1)?,
                num_adversaries: take.count("num_adversaries", 3)?,
                num_obstacles: take.count("num_obstacles", 2)?,
                terminate_on_success: take.number("terminate_on_success", 0.0)? == 1.0,
            };
            Box::new(ParticleEnv::new(task, max_cycles, continuous)?)
        }
        _ => bail!("{id} is unknown"),
    };
    ensure!(take.0.is_empty(), "{id}: kwargs {:?} are unknown", take.0.keys().collect::<Vec<_>>());
    Ok(env)
}

/// Constructor arguments that nobody has asked for yet.
struct Options(Map<String, Value>);

impl Options {
    fn number(&mut self, name: &str, default: f64) -> Result<f64> {
        self.0.remove(name).map_or(Ok(default), |value| number(&value))
    }

    fn count(&mut self, name: &str, default: usize) -> Result<usize> {
        // More than any recording has of anything.
        self.0.remove(name).map_or(Ok(default), |value| index(&value, 100))
    }
}

/// Compares names, spaces and limits.
fn check_spec(env: &dyn ParallelEnv, doc: &Value, episode: &Value) -> Result<()> {
    let spec = env.spec();
    ensure!(doc["obs_dtype"] == "float32", "obs_dtype {} is not float32", doc["obs_dtype"]);
    let names: Vec<&str> = array(&episode["agents"])?.iter().filter_map(Value::as_str).collect();
    ensure!(spec.agents == names, "agents {:?}, recorded {names:?}", spec.agents);
    for (name, space) in spec.agents.iter().zip(&spec.action_spaces) {
        let recorded = &episode["action_spaces"][name];
        let equal = match space {
            Space::Discrete { n } => recorded["type"] == "discrete" && number(&recorded["n"])? == *n as f64,
            Space::Box { shape, low, high } => {
                recorded["type"] == "box"
                    && recorded["dtype"] == "float32"
                    && numbers(&recorded["shape"])? == shape.iter().map(|n| *n as f64).collect::<Vec<_>>()
                    && &float32(&recorded["low"])? == low
                    && &float32(&recorded["high"])? == high
            }
            Space::Tuple(_) => false,
        };
        ensure!(equal, "{name}: action space {space}, recorded {recorded}");
    }
    Ok(())
}

/// Compares what never changes about the bodies: size, weight, what they can do.
fn check_bodies(env: &dyn ParallelEnv, episode: &Value) -> Result<()> {
    let (world, init) = (env.world(), array(&episode["init"])?);
    ensure!(world.bodies.len() == init.len(), "{} bodies, recorded {}", world.bodies.len(), init.len());
    for (i, (body, entity)) in world.bodies.iter().zip(init).enumerate() {
        let acceleration = |i: usize| world.agents.get(i).map(|agent| agent.acceleration);
        let optional = |value: &Value| (!value.is_null()).then(|| number(value)).transpose();
        let recorded_acceleration = match optional(&entity["accel"])? {
            None if i < world.agents.len() => Some(mpe::world::DEFAULT_ACCELERATION),
            recorded => recorded,
        };
        let flag = |value: bool| f64::from(u8::from(value));
        let equal = number(&entity["size"])? == body.radius
            && number(&entity["movable"])? == flag(body.movable)
            && number(&entity["collide"])? == flag(body.collides)
            && number(&entity["mass"])? == 1.0
            && optional(&entity["max_speed"])? == body.max_speed
            && recorded_acceleration == acceleration(i);
        ensure!(equal, "{body:?}, recorded {entity}");
    }
    Ok(())
}

/// The recorded start of the episode: nobody has spoken and no step has been taken.
fn initial_state(env: &dyn ParallelEnv, episode: &Value) -> Result<State> {
    let (world, mut state) = (env.world(), Vec::new());
    for (i, entity) in array(&episode["init"])?.iter().enumerate() {
        let (position, velocity) = (numbers(&entity["pos"])?, numbers(&entity["vel"])?);
        ensure!(position.len() == 2 && velocity.len() == 2, "{entity} is not in the plane");
        state.extend(position);
        match i < world.agents.len() {
            true => state.extend(velocity),
            false => ensure!(velocity == [0.0; 2], "{entity}: a landmark moves"),
        }
    }
    let speakers = world.agents.iter().filter(|agent| agent.speaks);
    state.extend(speakers.flat_map(|agent| vec![0.0; agent.utterance.len()]));

    // Goals that are landmarks; those that are agents are the same in every episode.
    let goal = |name: &String| {
        let entries = ["goal_a", "goal_b"].map(|kind| &episode["goals"][format!("{name}.{kind}")]);
        entries.into_iter().find_map(Value::as_f64)
    };
    let mut goals: Vec<f64> = env.spec().agents.iter().filter_map(goal).collect();
    if world.goals.len() == 1 {
        ensure!(goals.windows(2).all(|pair| pair[0] == pair[1]), "goals {goals:?} differ");
        goals.truncate(1);
    }
    state.extend(goals);
    state.push(0.0); // steps elapsed
    Ok(State(state))
}

/// Compares what every agent sees, in float32.
fn check_observations(env: &dyn ParallelEnv, recorded: &Value) -> Result<()> {
    let (spec, recorded) = (env.spec(), array(recorded)?);
    ensure!(recorded.len() == spec.agents.len(), "{} observations were recorded", recorded.len());
    for (agent, recorded) in recorded.iter().enumerate() {
        let mut observation = vec![f32::NAN; spec.observation_spaces[agent].size()];
        env.observe(agent, &mut observation);
        let widen = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
        let what = format!("observation of {}", spec.agents[agent]);
        same(&what, &widen(observation), &widen(float32(recorded)?))?;
    }
    Ok(())
}

/// Numbers that were float32 in the original.
fn float32(value: &Value) -> Result<Vec<f32>> {
    Ok(numbers(value)?.into_iter().map(|x| x as f32).collect())
}

/// Refuses any difference.
fn same(what: &str, ours: &[f64], recorded: &[f64]) -> Result<()> {
    let difference = max_difference(ours, recorded);
    ensure!(difference == 0.0, "{what} {ours:?}, recorded {recorded:?}: {difference:e} apart");
    Ok(())
}
