//! Objectives, kernel and Stein gradient against PyTorch's, returns against their definition, the episodes
//! against what happened, and runs against their pins.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["svpg"].iter().chain(flags).map(Into::into)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const LAYERS: Layers = &[
    ("particle0000.hidden0", &["particle_0/0"]),
    ("particle0000.output", &["particle_0/1"]),
    ("particle0001.hidden0", &["particle_1/0"]),
    ("particle0001.output", &["particle_1/1"]),
    ("particle0002.hidden0", &["particle_2/0"]),
    ("particle0002.output", &["particle_2/1"]),
    ("particle0003.hidden0", &["particle_3/0"]),
    ("particle0003.output", &["particle_3/1"]),
];

/// The particles and their episodes as recorded, with critics whose values are all 0: the recording's
/// REINFORCE has none, and nothing follows where an episode is truncated.
fn recorded(recording: &Recording, flags: &[&str]) -> (Svpg, Vec<Rollout>) {
    let number = |flag: &str, name: &str| format!("--{flag}={}", recording.number(name));
    let recorded =
        [number("temperature", "alpha"), number("num-particles", "particles"), number("gamma", "gamma")];
    let flags: Vec<&str> = recorded.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    let svpg = Svpg::new(4, &[8], 2, &args(&flags)).unwrap();
    recording.set(&svpg.parameters, LAYERS);
    let zeros = vec![0.0; svpg.critic_parameters.num_parameters()];
    svpg.critic_parameters.set_values(&zeros).unwrap();
    let rollouts = (0..4).map(|i| Rollout {
        observations: recording.floats(&format!("batch/particle_{i}/observations")),
        actions: recording.integers(&format!("batch/particle_{i}/actions")),
        rewards: recording.floats(&format!("batch/particle_{i}/rewards")),
        next_observations: recording.floats(&format!("batch/particle_{i}/next_observations")),
        terminated: recording.flags(&format!("batch/particle_{i}/terminated")),
        truncated: recording.flags(&format!("batch/particle_{i}/truncated")),
    });
    let rollouts = rollouts.collect();
    (svpg, rollouts)
}

/// Numbers, one parameter after the other, by parameter.
fn split(svpg: &Svpg, mut values: &[f32]) -> Vec<Vec<f32>> {
    let mut parts = Vec::new();
    for parameter in svpg.parameters.all_vars() {
        let (own, others) = values.split_at(parameter.elem_count());
        parts.push(own.to_vec());
        values = others;
    }
    parts
}

/// The recorded order of a particle's numbers, weight before bias, as the order here, bias before weight.
fn reordered(recorded: &[f32]) -> Vec<f32> {
    let (mut reordered, mut rest) = (Vec::new(), recorded);
    while !rest.is_empty() {
        for (inputs, outputs) in [(4, 8), (8, 2)] {
            let (weight, others) = rest.split_at(inputs * outputs);
            let (bias, others) = others.split_at(outputs);
            reordered.extend([bias, weight].concat());
            rest = others;
        }
    }
    reordered
}

#[test]
fn recorded_update() {
    let mut recording = Recording::open("svpg");
    let (mut svpg, rollouts) = recorded(&recording, &[]);
    let mut objectives = Vec::new();
    for (j, rollout) in rollouts.iter().enumerate() {
        assert_eq!(rollout.num_episodes(), 2);
        let (objective, _) = svpg.objective(j, rollout).unwrap();
        recording.close(&format!("expected/loss/particle_{j}"), objective.neg().unwrap());
        objectives.push(objective);
    }
    let objective = objectives.into_iter().reduce(|a, b| (a + b).unwrap()).unwrap();
    let gradients = svpg.parameters.gradients(&objective).unwrap();
    recording.gradients("expected/gradients", &svpg.parameters, LAYERS, split(&svpg, &gradients));

    let theta = svpg.parameters.values().unwrap();
    let bandwidth = svpg.bandwidth(&theta);
    recording.close("expected/bandwidth", bandwidth);
    let phi = svpg.stein_gradient(&theta, &gradients, bandwidth);
    recording.gradients("expected/stein_gradient", &svpg.parameters, LAYERS, split(&svpg, &phi));
    // Without gradients there is only the repulsion; with the flag there is none.
    let repulsion = svpg.stein_gradient(&theta, &vec![0.0; theta.len()], bandwidth);
    let expected = reordered(&recording.floats("expected/repulsion"));
    recording.computed("the repulsion", &repulsion, &expected, 1e-4, 1e-6);
    svpg.args.repulsion = false;
    let attraction = svpg.stein_gradient(&theta, &gradients, bandwidth);
    let expected: Vec<f32> = phi.iter().zip(&repulsion).map(|(phi, repulsion)| phi - repulsion).collect();
    recording.computed("what is shared", attraction, expected, 1e-3, 1e-5);
    svpg.args.repulsion = true;
    recording.unmoved(&svpg.parameters, LAYERS);

    // Recorded is a plain step along φ; here Adam descends −φ.
    let losses = svpg.update_particles(&rollouts).unwrap();
    let minus_phi: Vec<Vec<f32>> =
        split(&svpg, &phi).iter().map(|phi| phi.iter().map(|phi| -phi).collect()).collect();
    for (found, expected) in first_gradients(&svpg.optimizer).iter().zip(minus_phi) {
        recording.computed("what Adam descends", found, expected, 1e-4, 1e-6);
    }
    let moved = svpg.parameters.values().unwrap();
    for i in 0..theta.len() {
        let step = f64::from(moved[i] - theta[i]);
        let expected = svpg.args.learning_rate.copysign(f64::from(phi[i]));
        assert!(phi[i].abs() < 1e-4 || (step - expected).abs() < 0.01 * svpg.args.learning_rate, "{i}");
    }
    let mean: f32 =
        (0..4).map(|j| recording.floats(&format!("expected/loss/particle_{j}"))[0]).sum::<f32>() / 4.0;
    assert_relative_eq!(losses.policy_loss, mean, max_relative = 1e-4);
    // All critics are 0, and stay so.
    assert!(svpg.critic_parameters.values().unwrap().iter().all(|&value| value == 0.0));
    recording.finish();
}

/// The recording's median counts the distance of each particle to itself; given its h, all else is the same.
#[test]
fn recorded_update_with_the_diagonal_in_the_median() {
    let mut recording = Recording::open("svpg__median_with_the_diagonal");
    let (svpg, rollouts) = recorded(&recording, &[]);
    let theta = svpg.parameters.values().unwrap();
    let bandwidth = f64::from(recording.floats("expected/bandwidth")[0]);
    let mut all = svpg.distances(&theta).repeat(2);
    all.extend([0.0; 4]);
    all.sort_by(f64::total_cmp);
    recording.computed("h", (all[7] + all[8]) / 2.0 / 5.0_f64.ln(), bandwidth, 1e-4, 0.0);
    assert!(svpg.bandwidth(&theta) > 1.05 * bandwidth);
    let objectives: Vec<Tensor> =
        rollouts.iter().enumerate().map(|(j, rollout)| svpg.objective(j, rollout).unwrap().0).collect();
    let objective = Tensor::stack(&objectives, 0).unwrap().sum_all().unwrap();
    let gradients = svpg.parameters.gradients(&objective).unwrap();
    let phi = svpg.stein_gradient(&theta, &gradients, bandwidth);
    recording.gradients("expected/stein_gradient", &svpg.parameters, LAYERS, split(&svpg, &phi));
    recording.finish();
}

/// A learner for three observations and three actions.
fn learner(flags: &[&str]) -> Svpg {
    Svpg::new(3, &[8], 3, &args(flags)).unwrap()
}

#[test]
fn the_bandwidth_is_of_the_median_distance() {
    // Three particles on a line of one number each: distances² 1, 4, 9.
    let svpg = learner(&["--num-particles=3"]);
    assert_eq!(svpg.distances(&[0.0, 1.0, 3.0]), [1.0, 4.0, 9.0]);
    assert_relative_eq!(svpg.bandwidth(&[0.0, 1.0, 3.0]), 4.0 / 4.0_f64.ln());
    // Of four, 6 pairs: 1, 1, 1, 4, 4, 9.
    let svpg = learner(&["--num-particles=4"]);
    assert_relative_eq!(svpg.bandwidth(&[0.0, 1.0, 2.0, 3.0]), 2.5 / 5.0_f64.ln());
    // Particles that are equal, and one alone: plain gradients.
    let svpg = learner(&["--num-particles=2", "--temperature=2"]);
    assert_eq!(svpg.stein_gradient(&[1.0, 1.0], &[4.0, 8.0], svpg.bandwidth(&[1.0, 1.0])), [3.0, 3.0]);
    let svpg = learner(&["--num-particles=1", "--temperature=2"]);
    assert_eq!(svpg.stein_gradient(&[1.0, 5.0], &[4.0, 8.0], svpg.bandwidth(&[1.0, 5.0])), [2.0, 4.0]);
}

/// φ without ∇J is what makes the particles' mean distance grow, and `--repulsion` is what that hangs on.
#[test]
fn particles_repel_each_other() {
    for repulsion in [true, false] {
        let svpg = learner(&[&format!("--repulsion={repulsion}")]);
        let theta = svpg.parameters.values().unwrap();
        let phi = svpg.stein_gradient(&theta, &vec![0.0; theta.len()], svpg.bandwidth(&theta));
        let moved: Vec<f32> = theta.iter().zip(&phi).map(|(theta, phi)| theta + 0.1 * phi).collect();
        let sum = |theta: &[f32]| svpg.distances(theta).iter().sum::<f64>();
        assert_eq!(sum(&moved) > sum(&theta) + 1e-3, repulsion);
    }
}

#[test]
fn returns_follow_their_definition() {
    // A truncation after two steps, a termination after one more, both at once after two.
    let rollout = Rollout {
        rewards: vec![1.0, 2.0, 4.0, 8.0, 16.0],
        terminated: vec![false, false, true, false, true],
        truncated: vec![false, true, false, false, true],
        ..Rollout::default()
    };
    assert_eq!(rollout.num_episodes(), 3);
    let returns = rollout.returns(&[100.0; 5], 0.5);
    assert_eq!(returns, [1.0 + 0.5 * 52.0, 2.0 + 0.5 * 100.0, 4.0, 8.0 + 0.5 * 16.0, 16.0]);
}

#[test]
fn the_rollout_holds_what_happened() {
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let svpg = learner(&[]);
    let (mut rollout, mut rng) = (Rollout::default(), rng(1, 0));
    while rollout.num_episodes() < 6 {
        let observation = envs.observations().to_vec();
        let action = svpg.act(1, &observation, &mut rng).unwrap();
        envs.step(&action).unwrap();
        rollout.store(&observation, &action, &envs);
    }
    let happened = log.transitions();
    assert_eq!(rollout.rewards.len(), happened.len());
    assert!(happened.iter().any(|t| t.terminated && !t.truncated));
    assert!(happened.iter().any(|t| !t.terminated && t.truncated));
    assert!(happened.iter().any(|t| t.terminated && t.truncated));
    assert!(happened.last().is_some_and(|t| t.terminated || t.truncated));
    for (i, t) in happened.iter().enumerate() {
        assert_eq!(rollout.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
        assert_eq!([rollout.actions[i] as f32], t.action[..], "{t:?}");
        assert_eq!(rollout.rewards[i], t.reward, "{t:?}");
        assert_eq!(rollout.next_observations[3 * i..3 * (i + 1)], t.next_observation, "{t:?}");
        assert_eq!((rollout.terminated[i], rollout.truncated[i]), (t.terminated, t.truncated), "{t:?}");
    }
    // The critic's value of the true last state follows a truncation, and its own baseline is taken off.
    let value = |s: &[f32]| floats(&svpg.critics[1].forward(&svpg.tensor(s).unwrap()).unwrap());
    let expected = rollout.returns(&value(&rollout.next_observations), 0.99);
    assert_eq!(floats(&svpg.returns(1, &rollout).unwrap()), expected);
    let values = value(&rollout.observations);
    let logits = svpg.policies[1].forward(&svpg.tensor(&rollout.observations).unwrap()).unwrap();
    let (mut objective, mut entropy) = (0.0, 0.0);
    for (t, logits) in floats(&logits).chunks(3).enumerate() {
        let total: f32 = logits.iter().map(|z| z.exp()).sum();
        let log_prob = |action: usize| logits[action] - total.ln();
        objective += (expected[t] - values[t]) * log_prob(rollout.actions[t] as usize) / 6.0;
        entropy -= (0..3).map(|a| log_prob(a) * log_prob(a).exp()).sum::<f32>() / values.len() as f32;
    }
    let (found, found_entropy) = svpg.objective(1, &rollout).unwrap();
    assert_relative_eq!(found.to_scalar::<f32>().unwrap(), objective, max_relative = 1e-4);
    assert_relative_eq!(found_entropy.to_scalar::<f32>().unwrap(), entropy, max_relative = 1e-4);
}

#[test]
fn actions_are_drawn_from_the_particle_that_plays_and_the_best_is_the_one_that_is_kept() {
    let svpg = learner(&["--num-particles=11"]);
    let noise = common::nn::Init::Randn { mean: 0.0, stdev: 1.0 };
    let len = svpg.parameters.num_parameters();
    let theta: Vec<f32> = noise.tensor(len, &mut rng(1, 0), &Device::Cpu).unwrap().to_vec1().unwrap();
    svpg.parameters.set_values(&theta).unwrap();
    let (state, n) = ([0.3, -1.0, 2.0], 4000);
    for i in [0, 2, 10] {
        let logits = floats(&svpg.policies[i].forward(&svpg.tensor(&state).unwrap()).unwrap());
        let total: f32 = logits.iter().map(|z| z.exp()).sum();
        let drawn = svpg.act(i, &state.repeat(n), &mut rng(1, 0)).unwrap();
        for (action, logit) in logits.iter().enumerate() {
            let share = drawn.iter().filter(|&&a| a == action as u32).count() as f32 / n as f32;
            assert_abs_diff_eq!(share, logit.exp() / total, epsilon = 0.03);
        }
        svpg.keep(i).unwrap();
        assert_eq!(floats(&svpg.best.forward(&svpg.tensor(&state).unwrap()).unwrap()), logits);
        let best = (0..3).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert_eq!(svpg.act_greedily(&state).unwrap(), [best as u32]);
    }
}

#[test]
fn the_particle_that_is_kept_is_the_one_whose_latest_episodes_were_the_best() {
    let mut svpg = learner(&["--num-particles=3"]);
    // Of negative returns the first one is the mean, not a tenth of it; every later one weighs a tenth.
    for (i, episodic_return) in [(0, -100.0), (1, -50.0), (1, -20.0), (2, -48.0)] {
        svpg.update_mean_return(i, episodic_return);
    }
    assert_eq!(svpg.mean_returns, [-100.0, -47.0, -48.0]);
    let kept = |svpg: &Svpg| {
        svpg.keep_best().unwrap();
        let (theta, best) = (svpg.parameters.values().unwrap(), svpg.best_parameters.values().unwrap());
        theta.chunks(best.len()).position(|particle| particle == best)
    };
    assert_eq!(kept(&svpg), Some(1));
    svpg.update_mean_return(1, -70.0); // −49.3
    assert_eq!(kept(&svpg), Some(2));
    // One that has not yet ended an episode is not the best.
    svpg.mean_returns[2] = f64::NEG_INFINITY;
    assert_eq!(kept(&svpg), Some(1));
}

#[test]
fn every_critic_follows_its_own_particles_returns() {
    let mut svpg = learner(&["--num-particles=2", "--value-lr=0.01", "--n-critic-updates=1"]);
    let rollouts = [1.0, -1.0].map(|reward| Rollout {
        observations: vec![0.1, 0.2, 0.3],
        actions: vec![0],
        rewards: vec![reward],
        next_observations: vec![0.0; 3],
        terminated: vec![true],
        truncated: vec![false],
    });
    let theta = svpg.parameters.values().unwrap();
    let state = svpg.tensor(&[0.1, 0.2, 0.3]).unwrap();
    let values = |svpg: &Svpg| [0, 1].map(|i| floats(&svpg.critics[i].forward(&state).unwrap())[0]);
    let before = values(&svpg);
    let loss = svpg.update_critics(&rollouts).unwrap();
    let expected = ((before[0] - 1.0).powi(2) + (before[1] + 1.0).powi(2)) / 2.0;
    assert_relative_eq!(loss, expected, max_relative = 1e-4);
    svpg.args.n_critic_updates = 300;
    svpg.update_critics(&rollouts).unwrap();
    assert_abs_diff_eq!(values(&svpg)[0], 1.0, epsilon = 0.05);
    assert_abs_diff_eq!(values(&svpg)[1], -1.0, epsilon = 0.05);
    assert_eq!(svpg.parameters.values().unwrap(), theta);
}

/// What the defaults do, the step size falling.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=900", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// None of the defaults but the repulsion, beside which gradients show at this temperature, and episodes that are
/// truncated.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Acrobot-v1",
        "--num-particles=3",
        "--temperature=300",
        "--batch-episodes=1",
        "--total-timesteps=4000",
        "--anneal-lr=false",
        "--learning-rate=0.01",
        "--gamma=0.9",
        "--value-lr=0.02",
        "--n-critic-updates=3",
        "--eval-episodes=1",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
