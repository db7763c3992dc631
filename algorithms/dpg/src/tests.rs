//! Both forms of the compatible critic against PyTorch's, the tile coding, and what a step stores.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::rng;
use regression::{Recording, SCRIPT, View, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["dpg"].iter().chain(flags).map(Into::into)).unwrap()
}

/// A learner of observations from `low` to `high` and actions within b ± c.
fn learner(low: &[f32], high: &[f32], bias: &[f32], scale: &[f32], flags: &[&str]) -> Dpg {
    let args = args(flags);
    let tile_coding = TileCoding::new(&Space::bounded(low, high), &args).unwrap();
    Dpg::new(tile_coding, bias.to_vec(), scale.to_vec(), &args)
}

/// Takes all recorded steps, one after the other; actions are unbounded in the recording.
fn recorded_update(name: &str) {
    let mut recording = Recording::open(name);
    let on_policy = format!("--on-policy={}", recording.flag("on_policy"));
    let gamma = format!("--gamma={}", recording.number("gamma"));
    // Five tiles and one that sticks out, of one grid: six features, as many as were recorded.
    let flags = ["--tilings=1", "--tiles=5", &on_policy, &gamma];
    let mut dpg = learner(&[0.0], &[1.0], &[0.0, 0.0], &[f32::INFINITY; 2], &flags);
    let number = |name: &str| recording.number(name);
    dpg.alphas = (number("alpha_theta"), number("alpha_w"), number("alpha_v"));
    let doubles = |name: &str| -> Vec<f64> { recording.floats(name).into_iter().map(f64::from).collect() };
    dpg.theta = doubles("parameters/actor/theta.weight");
    dpg.w = doubles("parameters/critic/w.weight");
    dpg.v = doubles("parameters/critic/v.weight");
    let (features, next_features) = (doubles("batch/features"), doubles("batch/next_features"));
    let (actions, next_actions) = (recording.floats("batch/actions"), recording.floats("batch/next_actions"));
    let (rewards, terminated) = (doubles("batch/rewards"), recording.flags("batch/terminated"));

    let (mut q_values, mut next_q_values, mut td_errors) = (Vec::new(), Vec::new(), Vec::new());
    let (mut changes, mut thetas, mut ws, mut vs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for t in 0..rewards.len() {
        let step = Transition {
            features: features[6 * t..6 * (t + 1)].to_vec(),
            action: actions[2 * t..2 * (t + 1)].to_vec(),
            reward: rewards[t],
            next_features: next_features[6 * t..6 * (t + 1)].to_vec(),
            next_action: next_actions[2 * t..2 * (t + 1)].to_vec(),
            terminated: terminated[t],
        };
        let theta = dpg.theta.clone();
        q_values.push(dpg.q_value(&step.features, &step.action));
        next_q_values.push(dpg.next_q_value(&step));
        td_errors.push(dpg.update(&step));
        changes.extend(dpg.theta.iter().zip(theta).map(|(after, before)| after - before));
        thetas.extend(dpg.theta.clone());
        ws.extend(dpg.w.clone());
        vs.extend(dpg.v.clone());
    }
    recording.close("expected/q_values", q_values);
    recording.close("expected/next_q_values", next_q_values);
    recording.close("expected/td_errors", td_errors);
    recording.close("expected/over_steps/actor/theta.change", changes);
    recording.close("expected/over_steps/actor/theta.weight", thetas);
    recording.close("expected/over_steps/critic/w.weight", ws);
    recording.close("expected/over_steps/critic/v.weight", vs);
    recording.close("expected/parameters/actor/theta.weight", &dpg.theta);
    recording.close("expected/parameters/critic/w.weight", &dpg.w);
    recording.close("expected/parameters/critic/v.weight", &dpg.v);
    recording.finish();
}

#[test]
fn recorded_update_off_policy() {
    recorded_update("dpg");
}

#[test]
fn recorded_update_on_policy() {
    recorded_update("dpg__on_policy");
}

#[test]
fn each_grid_has_one_tile_and_each_is_displaced() {
    let args = args(&["--tilings=4", "--tiles=2"]);
    let tile_coding = TileCoding::new(&Space::bounded(&[-1.0, 0.0], &[1.0, 4.0]), &args).unwrap();
    assert_eq!(tile_coding.num_features(), 4 * 3 * 3);
    let tiles = |observation: &[f32]| -> Vec<usize> {
        let features = tile_coding.features(observation);
        assert!(features.iter().all(|phi| *phi == 0.0 || *phi == 1.0));
        (0..features.len()).filter(|&i| features[i] == 1.0).collect()
    };
    // Grid k is displaced by (k, 3 k mod 4) quarters of a tile: (0, 0), (1, 3), (2, 2), (3, 1).
    assert_eq!(tiles(&[-1.0, 0.0]), [0, 9, 18, 27]);
    // A quarter of a tile further along the first dimension, grid 3 has another tile; …
    assert_eq!(tiles(&[-0.75, 0.0]), [0, 9, 18, 27 + 3]);
    // … along the second, grid 1, …
    assert_eq!(tiles(&[-1.0, 0.5]), [0, 9 + 1, 18, 27]);
    // … and at the upper bounds all are in their last.
    assert_eq!(tiles(&[1.0, 4.0]), [8, 9 + 8, 18 + 8, 27 + 8]);
    // What is outside counts as the nearest that is inside.
    assert_eq!(tiles(&[7.0, -7.0]), tiles(&[1.0, 0.0]));
    assert_eq!(tiles(&[-7.0, 7.0]), tiles(&[-1.0, 4.0]));
}

#[test]
fn observations_without_bounds_and_too_many_tiles_are_refused() {
    let refused = |space: &Space, flags: &[&str]| match TileCoding::new(space, &args(flags)) {
        Ok(_) => panic!("accepted"),
        Err(error) => format!("{error:#}"),
    };
    assert!(refused(&Space::uniform(3, 0.0, f32::INFINITY), &[]).contains("needs bounded observations"));
    let six = Space::uniform(6, 0.0, 1.0);
    assert!(refused(&six, &["--tiles=20"]).contains("--tiles 20: 686128968 features"));
    assert!(TileCoding::new(&six, &args(&["--tiles=8"])).is_ok());
}

#[test]
fn the_policy_is_an_action_however_steep_the_critic() {
    let mut dpg = learner(&[0.0], &[1.0], &[-0.5, 3.0], &[1.5, 2.0], &[]);
    let features = dpg.tile_coding.features(&[0.3]);
    for (slope, expected) in [(1e6, [1.0, 1.0]), (-1e6, [-2.0, 5.0])] {
        dpg.w = vec![slope; 9 * 8].into_iter().chain(vec![-slope; 9 * 8]).collect();
        let step = Transition {
            features: features.clone(),
            action: vec![0.0, 0.0],
            reward: 0.0,
            next_features: features.clone(),
            next_action: vec![0.0, 0.0],
            terminated: true,
        };
        dpg.update(&step);
        assert_abs_diff_eq!(dpg.act_greedily(&[0.3])[..], expected[..], epsilon = 1e-6);
        // Elsewhere nothing has changed.
        assert_abs_diff_eq!(dpg.act_greedily(&[0.9])[..], [-0.5, 3.0], epsilon = 1e-6);
    }
}

#[test]
fn step_sizes_are_shared_among_the_grids() {
    // V(s) moves by its step size's share of the error, whatever the number of grids.
    for tilings in ["--tilings=1", "--tilings=16"] {
        let flags = [tilings, "--value-lr=0.25", "--advantage-lr=0.125", "--policy-lr=0.5"];
        let mut dpg = learner(&[0.0], &[1.0], &[0.0], &[2.0], &flags);
        let features = dpg.tile_coding.features(&[0.4]);
        let step = Transition {
            features: features.clone(),
            action: vec![1.0],
            reward: 8.0,
            next_features: features.clone(),
            next_action: vec![0.0],
            terminated: true,
        };
        assert_eq!(dpg.update(&step), 8.0);
        assert_abs_diff_eq!(dpg.q_value(&features, &[0.0]), 2.0, epsilon = 1e-9);
        // w φ = 0.125 · 8 · (1 − 0), which is what an action of 1 is worth more …
        assert_abs_diff_eq!(dpg.q_value(&features, &[1.0]), 3.0, epsilon = 1e-9);
        // … and which the policy follows by 0.5.
        dpg.update(&step);
        assert_abs_diff_eq!(f64::from(dpg.act_greedily(&[0.4])[0]), 0.5, epsilon = 1e-6);
    }
}

#[test]
fn noise_is_in_units_of_the_range_and_leaves_no_bound() {
    let dpg = learner(&[0.0], &[1.0], &[-0.5, 3.0], &[1.5, 2.0], &["--exploration-noise=0.2"]);
    // As long as nothing is learned, the policy's action is the middle of the bounds.
    assert_abs_diff_eq!(dpg.act(&[0.3], &[0.0, 0.0])[..], [-0.5, 3.0], epsilon = 1e-6);
    assert_abs_diff_eq!(dpg.act(&[0.3], &[1.0, -2.0])[..], [-0.2, 2.2], epsilon = 1e-6);
    assert_eq!(dpg.act(&[0.3], &[99.0, -99.0]), [1.0, 1.0]);
    assert_eq!(dpg.act(&[0.3], &[-99.0, 99.0]), [-2.0, 5.0]);
}

#[test]
fn steps_are_what_happened() {
    let space = Space::bounded(&[-2.0, -1.0], &[1.0, 1.5]);
    let (mut envs, log) = scripted(1, View::Vector, space, SCRIPT);
    // Fine enough to tell all observations, (0, episode, step), apart.
    let flags = ["--tilings=2", "--tiles=10"];
    let mut dpg = learner(&[0.0; 3], &[10.0; 3], &[-0.5, 0.25], &[1.5, 1.25], &flags);
    // A policy that tells states apart.
    dpg.theta.iter_mut().enumerate().for_each(|(i, theta)| *theta += (i % 7) as f64 * 0.05);
    let mut rng = rng(1, 0);
    let mut epsilon = || normal(2, &mut rng).unwrap();
    let mut action = dpg.act(envs.observations(), &epsilon());
    for t in 0..12 {
        let observation = envs.observations().to_vec();
        envs.step(&action).unwrap();
        let noise = epsilon();
        let step = dpg.last_step(&observation, &action, &envs, &noise);
        let happened = &log.of(0)[t];
        assert_eq!(step.features, dpg.tile_coding.features(&happened.observation));
        assert_eq!(step.action, happened.action);
        assert_eq!(step.reward, f64::from(happened.reward));
        assert_eq!(step.next_features, dpg.tile_coding.features(&happened.next_observation));
        assert_eq!(step.terminated, happened.terminated);
        // a' belongs to the true next state, at an episode's end too.
        assert_eq!(step.next_action, dpg.act(&happened.next_observation, &noise));
        action = step.next_action;
    }
    let distinct: std::collections::HashSet<_> =
        log.of(0).iter().map(|s| format!("{:?}", dpg.tile_coding.features(&s.observation))).collect();
    assert_eq!(distinct.len(), 12);
    assert!(log.of(0).iter().any(|step| step.truncated && !step.terminated));
}

/// Episodes that reach the goal, and large steps, so that the policy shows in what is logged.
const PINNED: [&str; 4] =
    ["--total-timesteps=6000", "--policy-lr=0.05", "--exploration-noise=0.6", "--eval-episodes=2"];

#[test]
fn pinned_run() {
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "off_policy", &PINNED, train);
}

#[test]
fn pinned_run_on_policy() {
    let args = [&PINNED[..], &["--on-policy=true", "--gamma=0.98", "--tilings=5", "--tiles=6"]].concat();
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "on_policy", &args, train);
}
