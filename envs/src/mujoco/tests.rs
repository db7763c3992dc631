//! Properties of all tasks. Where MuJoCo is not installed they are skipped with a line that says
//! so; `REQUIRE_MUJOCO=1` makes that a failure.

use super::*;
use crate::{InvalidInput, VecEnv, make, rng};
use std::io::Write as _;

/// The tasks, or none and a line why.
fn tasks() -> Vec<MujocoEnv> {
    match available() {
        Ok(()) => DEFINITIONS.iter().map(|definition| MujocoEnv::build(definition).unwrap()).collect(),
        Err(error) => {
            let required = std::env::var("REQUIRE_MUJOCO").is_ok_and(|value| value == "1");
            assert!(error.is::<InvalidInput>() && !required, "{error:#}");
            // Not `println`, which the harness keeps to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {error}");
            Vec::new()
        }
    }
}

/// Actions over the whole action space and beyond.
fn actions(env: &MujocoEnv, steps: usize, rng: &mut Rng) -> Vec<Vec<f32>> {
    let nu = env.spec.action_space.size();
    (0..steps).map(|_| (0..nu).map(|_| rng.random_range(-3.0..3.0)).collect()).collect()
}

/// Every quantity that an observation, a reward or a drawing may read, as bits.
fn everything(env: &MujocoEnv) -> Vec<u64> {
    let s = &env.simulation;
    [
        env.observation(),
        s.qpos(),
        s.qvel(),
        s.body_positions().as_flattened(),
        s.mass_centers().as_flattened(),
        s.site_positions().as_flattened(),
        s.geom_positions().as_flattened(),
        s.geom_rotations().as_flattened(),
        s.inertias().as_flattened(),
        s.velocities().as_flattened(),
        s.actuator_forces(),
        s.constraint_forces(),
        s.contact_forces().as_flattened(),
    ]
    .concat()
    .iter()
    .map(|x| x.to_bits())
    .collect()
}

#[test]
fn setting_the_state_restores_every_quantity_and_the_future_to_the_bit() {
    for mut env in tasks() {
        let mut random = rng(7, 0);
        let mut other = MujocoEnv::new(&env.spec.id).unwrap();
        for steps in [0, 1, 30] {
            env.reset(&mut random).unwrap();
            for action in actions(&env, steps, &mut random) {
                env.step(Action::Continuous(&action), &mut random).unwrap();
            }
            let (state, before) = (env.state().unwrap(), everything(&env));
            // On itself a no-op; on another that is somewhere else, a copy.
            env.set_state(&state).unwrap();
            assert!(everything(&env) == before, "{} after {steps} steps", env.spec.id);
            assert_eq!(env.state().unwrap(), state);
            other.set_state(&state).unwrap();
            assert!(everything(&other) == before, "{} after {steps} steps, copied", env.spec.id);
            for action in actions(&env, 20, &mut random) {
                let action = Action::Continuous(&action);
                let (a, b) =
                    (env.step(action, &mut random).unwrap(), other.step(action, &mut random).unwrap());
                assert_eq!(a.reward.to_bits(), b.reward.to_bits(), "{}", env.spec.id);
                assert_eq!(a.terminated, b.terminated);
            }
            assert!(everything(&env) == everything(&other), "{} after {steps} steps, later", env.spec.id);
        }
    }
}

#[test]
fn states_and_actions_that_cannot_be_are_refused() {
    for mut env in tasks() {
        let mut random = rng(1, 0);
        env.reset(&mut random).unwrap();
        let (state, before) = (env.state().unwrap(), everything(&env));
        let mut refuse = |state: Vec<f64>| {
            let error = env.set_state(&State(state)).unwrap_err();
            assert!(error.is::<InvalidInput>() && error.to_string().starts_with(&env.spec.id), "{error}");
        };
        refuse(Vec::new());
        refuse(state.0[1..].to_vec());
        for (index, value) in [(0, 0.5), (2, f64::NAN), (2, f64::INFINITY), (3, 1e11)] {
            let mut state = state.0.clone();
            state[index] = value;
            refuse(state);
        }
        let short = vec![0.0; env.spec.action_space.size() - 1];
        assert!(env.step(Action::Continuous(&short), &mut random).unwrap_err().is::<InvalidInput>());
        assert!(env.begin(&[], &[]).unwrap_err().is::<InvalidInput>());
        assert!(everything(&env) == before, "{}: a refusal changed something", env.spec.id);
    }
}

#[test]
fn copies_share_one_model_and_run_on_any_thread() {
    for env in tasks() {
        let id = env.spec.id.clone();
        let first = VecEnv::make(&id, 64, 3).unwrap();
        let second = std::thread::spawn(move || VecEnv::make(&id, 64, 3).unwrap()).join().unwrap();
        assert_eq!(first.observations(), second.observations());
        let model = Library::get().unwrap().model(definition(&env).model).unwrap();
        assert!(std::ptr::eq(env.simulation.model(), &*model), "{}", env.spec.id);
    }
}

fn definition(env: &MujocoEnv) -> &'static Definition {
    DEFINITIONS.iter().find(|definition| definition.id == env.spec.id).unwrap()
}

#[test]
fn registered_tasks_end_at_their_time_limit() {
    if tasks().is_empty() {
        return;
    }
    let mut random = rng(0, 0);
    for (id, limit) in [("Reacher-v5", 50), ("Pusher-v5", 100)] {
        let mut env = make(id).unwrap();
        env.reset(&mut random).unwrap();
        let action = vec![0.0; env.spec().action_space.size()];
        for t in 1..=limit {
            let step = env.step(Action::Continuous(&action), &mut random).unwrap();
            assert_eq!((step.terminated, step.truncated), (false, t == limit), "{id}, step {t}");
        }
    }
}

#[test]
fn a_simulation_that_explodes_stays_finite() {
    for mut env in tasks() {
        let mut random = rng(5, 0);
        env.reset(&mut random).unwrap();
        let qpos = env.qpos().to_vec();
        let qvel = vec![1e9; env.qvel().len()];
        env.begin(&qpos, &qvel).unwrap();
        let action = vec![0.0; env.spec.action_space.size()];
        for _ in 0..5 {
            let step = env.step(Action::Continuous(&action), &mut random).unwrap();
            assert!(step.reward.is_finite(), "{}", env.spec.id);
        }
        assert!(env.observation().iter().all(|x| x.is_finite()), "{}", env.spec.id);
    }
}

#[test]
fn every_task_draws_something_that_moves() {
    for mut env in tasks() {
        let mut random = rng(2, 0);
        let picture = |env: &MujocoEnv| {
            let mut canvas = Canvas::new(60, 40);
            env.draw(&mut canvas).unwrap();
            canvas.rgb()
        };
        env.reset(&mut random).unwrap();
        let first = picture(&env);
        for action in actions(&env, 20, &mut random) {
            env.step(Action::Continuous(&action), &mut random).unwrap();
        }
        assert!(first != picture(&env), "{}", env.spec.id);
    }
}

#[test]
fn sums_are_those_of_every_term() {
    for n in 0..=40 {
        assert_eq!(sum(n, |i| i as f64 + 1.0), (n * (n + 1) / 2) as f64, "{n} terms");
    }
    assert_eq!(sum_of_squares(&[3.0_f32, 4.0]), 25.0);
    assert_eq!(distance([1.0, 2.0, 3.0], [3.0, 5.0, 9.0]), 7.0);
}
