//! TD3's learning step against PyTorch's, each of its three remedies, and what it stores.

use super::*;
use approx::assert_abs_diff_eq;
use candle_core::Var;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};
use std::collections::HashMap;

const BIAS: [f32; 2] = [-0.5, 0.25];
const SCALE: [f32; 2] = [1.5, 1.25];

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["td3"].iter().chain(flags).map(Into::into)).unwrap()
}

/// A learner of observations `[3]` and actions within b ± c.
fn learner(flags: &[&str], bounds: (&[f32], &[f32])) -> Td3 {
    let args = args(&[&["--hidden-size=32"], flags].concat());
    Td3::new(3, bounds, &args, &mut rng(1, 0)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn column(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, (values.len(), 1), &Device::Cpu).unwrap()
}

const ACTOR: Layers = &[("hidden1", &["actor/fc1"]), ("hidden2", &["actor/fc2"]), ("output", &["actor/fc3"])];
const TARGET_ACTOR: Layers = &[
    ("hidden1", &["target_actor/fc1"]),
    ("hidden2", &["target_actor/fc2"]),
    ("output", &["target_actor/fc3"]),
];
const CRITICS: Layers = &[
    ("qf1.hidden1", &["critic_1/fc1"]),
    ("qf1.hidden2", &["critic_1/fc2"]),
    ("qf1.output", &["critic_1/fc3"]),
    ("qf2.hidden1", &["critic_2/fc1"]),
    ("qf2.hidden2", &["critic_2/fc2"]),
    ("qf2.output", &["critic_2/fc3"]),
];
const TARGET_CRITICS: Layers = &[
    ("qf1.hidden1", &["target_critic_1/fc1"]),
    ("qf1.hidden2", &["target_critic_1/fc2"]),
    ("qf1.output", &["target_critic_1/fc3"]),
    ("qf2.hidden1", &["target_critic_2/fc1"]),
    ("qf2.hidden2", &["target_critic_2/fc2"]),
    ("qf2.output", &["target_critic_2/fc3"]),
];

/// A learner with the recorded parameters, the recorded batch, and the noise of two critic updates.
fn recorded_learner(recording: &Recording) -> (Td3, Batch, [Tensor; 2]) {
    let flags: Vec<String> = ["gamma", "tau", "policy_noise", "noise_clip", "policy_frequency"]
        .iter()
        .map(|name| format!("--{}={}", name.replace('_', "-"), recording.number(name)))
        .collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let bounds = recording.numbers("low").into_iter().zip(recording.numbers("high"));
    let (bias, scale): (Vec<f32>, Vec<f32>) =
        bounds.map(|(low, high)| ((high + low) as f32 / 2.0, (high - low) as f32 / 2.0)).unzip();
    let mut td3 = learner(&flags, (&bias, &scale));
    // The file has one step size, the recording two.
    td3.actor_optimizer.learning_rate = recording.number("actor_lr");
    td3.critic_optimizer.learning_rate = recording.number("critic_lr");
    recording.set(&td3.actor_parameters, ACTOR);
    recording.set(&td3.target_actor_parameters, TARGET_ACTOR);
    recording.set(&td3.critic_parameters, CRITICS);
    recording.set(&td3.target_critic_parameters, TARGET_CRITICS);
    let batch = Batch {
        observations: recording.tensor("batch/observations"),
        actions: recording.tensor("batch/actions"),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        terminated: recording.column("batch/terminated"),
    };
    let noise = recording.tensor("noise/normal_target_actions");
    let noise = [0, 1].map(|i| noise.get(i).unwrap());
    (td3, batch, noise)
}

#[test]
fn recorded_update() {
    let mut recording = Recording::open("td3");
    let (mut td3, batch, noise) = recorded_learner(&recording);
    let inputs = Tensor::cat(&[&batch.observations, &batch.actions], 1).unwrap();
    // Twice the critics, which learn from targets of networks that do not move …
    for (noise, suffix) in noise.iter().zip(["", "_update_2"]) {
        let next_actions = td3.smoothed_actions(&batch.next_observations, noise).unwrap();
        recording.close(&format!("expected/next_actions{suffix}"), next_actions);
        recording.close(&format!("expected/targets{suffix}"), td3.td_targets(&batch, noise).unwrap());
        let mut means = Vec::new();
        for (i, critic) in td3.critics.iter().enumerate() {
            let q = critic.forward(&inputs).unwrap();
            means.push(q.mean_all().unwrap().to_scalar::<f32>().unwrap());
            recording.close(&format!("expected/q_values_{}{suffix}", i + 1), q);
        }
        let [(loss1, q1), (loss2, q2)] = td3.update_critics(&batch, noise).unwrap();
        recording.close(&format!("expected/loss/critic{suffix}"), loss1 + loss2);
        assert_eq!([q1, q2], means[..]);
        if suffix.is_empty() {
            let gradients = first_gradients(&td3.critic_optimizer);
            recording.gradients("expected/gradients", &td3.critic_parameters, CRITICS, gradients);
        }
        recording.unmoved(&td3.actor_parameters, ACTOR);
        recording.unmoved(&td3.target_actor_parameters, TARGET_ACTOR);
        recording.unmoved(&td3.target_critic_parameters, TARGET_CRITICS);
    }
    // … then the actor, through the critic as it now is, …
    let (actor_lr, critic_lr) = (recording.number("actor_lr"), recording.number("critic_lr"));
    recording.close("expected/actions", td3.actor.forward(&batch.observations).unwrap());
    recording.close("expected/loss/actor", td3.update_actor(&batch).unwrap());
    let gradients = first_gradients(&td3.actor_optimizer);
    recording.gradients("expected/gradients", &td3.actor_parameters, ACTOR, gradients);
    recording.parameters("expected/parameters", &td3.actor_parameters, ACTOR, actor_lr);
    recording.parameters("expected/parameters", &td3.critic_parameters, CRITICS, critic_lr);
    recording.unmoved(&td3.target_actor_parameters, TARGET_ACTOR);
    recording.unmoved(&td3.target_critic_parameters, TARGET_CRITICS);
    // … then the averages.
    td3.update_targets().unwrap();
    let folder = "expected/parameters";
    recording.parameters_close(folder, &td3.target_actor_parameters, TARGET_ACTOR, 1e-7);
    recording.parameters_close(folder, &td3.target_critic_parameters, TARGET_CRITICS, 1e-7);
    recording.parameters("expected/parameters", &td3.actor_parameters, ACTOR, actor_lr);
    recording.parameters("expected/parameters", &td3.critic_parameters, CRITICS, critic_lr);
    recording.finish();
}

#[test]
fn recorded_update_over_ten_updates() {
    let mut recording = Recording::open("td3");
    let (mut td3, batch, noise) = recorded_learner(&recording);
    let (mut critic_losses, mut actor_losses) = (Vec::new(), Vec::new());
    for update in 1..=10 {
        let [(loss1, _), (loss2, _)] = td3.update_critics(&batch, &noise[(update - 1) % 2]).unwrap();
        critic_losses.push(loss1 + loss2);
        if update % td3.args.policy_frequency == 0 {
            actor_losses.push(td3.update_actor(&batch).unwrap());
            td3.update_targets().unwrap();
        }
    }
    recording.losses("expected/losses_over_updates", critic_losses);
    recording.losses("expected/losses_over_updates_actor", actor_losses);
    recording.finish();
}

/// Sets parameters by name; all others are zero.
fn set(parameters: &VarMap, values: &[(&str, &[f32])]) {
    let values: HashMap<&str, &[f32]> = values.iter().copied().collect();
    for (name, var) in parameters.named_vars() {
        let mut numbers = vec![0.0; var.elem_count()];
        if let Some(given) = values.get(name.as_str()) {
            numbers[..given.len()].copy_from_slice(given);
        }
        var.set(&Tensor::from_vec(numbers, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

/// A batch in which only rewards and terminations differ.
fn batch(rewards: &[f32], terminated: &[f32]) -> Batch {
    let observations = Tensor::zeros((rewards.len(), 3), DType::F32, &Device::Cpu).unwrap();
    Batch {
        observations: observations.clone(),
        actions: Tensor::zeros((rewards.len(), 2), DType::F32, &Device::Cpu).unwrap(),
        rewards: column(rewards),
        next_observations: observations,
        terminated: column(terminated),
    }
}

#[test]
fn first_remedy_a_target_takes_the_smaller_of_two_values() {
    let td3 = learner(&["--gamma=0.9"], (&BIAS, &SCALE));
    let batch = batch(&[1.0, -2.0], &[0.0, 1.0]);
    let noise = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    for (q1, q2) in [(3.0, 100.0), (100.0, 3.0)] {
        set(&td3.target_critic_parameters, &[("qf1.output.bias", &[q1]), ("qf2.output.bias", &[q2])]);
        // What one critic overrates is in no target; nothing lies beyond termination.
        let targets = floats(&td3.td_targets(&batch, &noise).unwrap());
        assert_abs_diff_eq!(targets[..], [1.0 + 0.9 * 3.0, -2.0], epsilon = 1e-6);
    }
}

/// Both target critics rate an action by a tent of height 1 and half width 0.05 c over the middle of
/// the first action's bounds, which is what the target actor does.
fn with_a_narrow_peak(flags: &[&str]) -> Td3 {
    let td3 = learner(flags, (&[0.0], &[2.0]));
    set(&td3.target_actor_parameters, &[]);
    // Q = ( relu(a + w) − 2 relu(a) + relu(a − w) ) / w, with w = 0.1; inputs are (s, a), `[4]`.
    let hidden1: Vec<f32> = [0.0, 0.0, 0.0, 1.0].repeat(3);
    let mut hidden2 = vec![0.0; 2 * 32 + 3];
    (0..3).for_each(|unit| hidden2[33 * unit] = 1.0);
    let mut values = Vec::new();
    for critic in ["qf1", "qf2"] {
        values.push((format!("{critic}.hidden1.weight"), hidden1.clone()));
        values.push((format!("{critic}.hidden1.bias"), vec![0.1, 0.0, -0.1]));
        values.push((format!("{critic}.hidden2.weight"), hidden2.clone()));
        values.push((format!("{critic}.output.weight"), vec![10.0, -20.0, 10.0]));
    }
    let values: Vec<(&str, &[f32])> = values.iter().map(|(name, v)| (name.as_str(), v.as_slice())).collect();
    set(&td3.target_critic_parameters, &values);
    td3
}

#[test]
fn second_remedy_no_target_trusts_a_narrow_peak() {
    let n = 20_000;
    let batch = batch(&vec![0.0; n], &vec![0.0; n]);
    let mean_target = |flags: &[&str]| {
        let td3 = with_a_narrow_peak(&[&["--gamma=1"], flags].concat());
        let noise = td3.noise(n, &mut rng(1, 0)).unwrap();
        td3.td_targets(&batch, &noise).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
    };
    assert_abs_diff_eq!(mean_target(&["--policy-noise=0"]), 1.0, epsilon = 1e-5);
    // E[ tent(ε) ] ≈ density of N(0, 0.2²) at 0 times the tent's area: 1.995 · 0.05
    assert_abs_diff_eq!(mean_target(&[]), 0.0990, epsilon = 0.006); // four standard errors
    // Clipped to a tenth of the tent's half width, noise costs at most a tenth of its height.
    assert!(mean_target(&["--noise-clip=0.005"]) > 0.9);
}

#[test]
fn the_noise_of_targets_is_normal_clipped_and_in_units_of_the_range() {
    let td3 = learner(&["--policy-noise=0.2", "--noise-clip=0.5"], (&BIAS, &SCALE));
    set(&td3.target_actor_parameters, &[]);
    let noise = Tensor::new(&[[0.5_f32, -1.0], [2.6, -2.4], [-9.0, 9.0]], &Device::Cpu).unwrap();
    let observations = Tensor::zeros((3, 3), DType::F32, &Device::Cpu).unwrap();
    let actions = floats(&td3.smoothed_actions(&observations, &noise).unwrap());
    let epsilon = [0.1, -0.2, 0.5, -0.48, -0.5, 0.5];
    let expected: Vec<f32> = (0..6).map(|i| BIAS[i % 2] + SCALE[i % 2] * epsilon[i]).collect();
    assert_abs_diff_eq!(actions[..], expected[..], epsilon = 1e-6);
    // Beyond a bound an action is that bound.
    set(&td3.target_actor_parameters, &[("output.bias", &[0.8_f32.atanh(), -0.9_f32.atanh()])]);
    let actions = floats(&td3.smoothed_actions(&observations, &noise).unwrap());
    let x = [0.9, -1.0, 1.0, -1.0, 0.3, -0.4];
    let expected: Vec<f32> = (0..6).map(|i| BIAS[i % 2] + SCALE[i % 2] * x[i]).collect();
    assert_abs_diff_eq!(actions[..], expected[..], epsilon = 1e-6);
}

/// Trains for `updates` critic updates with `--policy-frequency 5` and returns how far the actor's
/// parameters have moved at most, in steps of its optimiser.
fn actor_steps(updates: usize) -> f32 {
    let scratch = regression::learning::scratch();
    let run_dir = scratch.path().join("run");
    let total_timesteps = format!("--total-timesteps={}", 40 + updates);
    let args = args(&[
        "--run-dir",
        run_dir.to_str().unwrap(),
        &total_timesteps,
        "--learning-starts=40",
        "--policy-frequency=5",
        "--hidden-size=16",
        "--eval-episodes=1",
    ]);
    let mut rng = learner_rng(args.run.seed);
    let before = Td3::new(3, (&[0.0], &[2.0]), &args, &mut rng).unwrap(); // Pendulum's
    train(args.clone()).unwrap();
    let after = candle_core::safetensors::load(run_dir.join("model.safetensors"), &Device::Cpu).unwrap();
    let moved = |(name, var): (String, Var)| {
        let difference = (var.as_tensor() - &after[&name]).unwrap().abs().unwrap();
        difference.max_all().unwrap().to_scalar::<f32>().unwrap()
    };
    let largest = before.actor_parameters.named_vars().into_iter().map(moved).fold(0.0, f32::max);
    largest / args.learning_rate as f32
}

#[test]
fn third_remedy_the_actor_waits_for_the_critics() {
    assert_eq!(actor_steps(4), 0.0);
    // Adam's first steps are as long as its learning rate.
    assert_abs_diff_eq!(actor_steps(5), 1.0, epsilon = 0.01);
    assert_abs_diff_eq!(actor_steps(9), 1.0, epsilon = 0.01);
    assert_abs_diff_eq!(actor_steps(10), 2.0, epsilon = 0.2);
}

#[test]
fn exploration_adds_noise_in_units_of_the_range_and_leaves_no_bound() {
    let observations = [0.5, -1.0, 0.2].repeat(2000);
    let calm = learner(&["--exploration-noise=0"], (&BIAS, &SCALE));
    let mean = calm.act_greedily(&observations[..3]).unwrap();
    assert_abs_diff_eq!(calm.act(&observations[..3], &mut rng(1, 0)).unwrap()[..], mean[..], epsilon = 1e-6);
    let noisy = learner(&["--exploration-noise=0.1", "--policy-noise=9"], (&BIAS, &SCALE));
    let actions = noisy.act(&observations, &mut rng(1, 0)).unwrap();
    for j in 0..2 {
        let squares = actions.chunks(2).map(|action| ((action[j] - mean[j]) / SCALE[j]).powi(2));
        let std = (squares.sum::<f32>() / 2000.0).sqrt();
        assert_abs_diff_eq!(std, 0.1, epsilon = 0.007); // four standard errors
    }
    let wild = learner(&["--exploration-noise=5"], (&BIAS, &SCALE));
    let mut met = [false; 4];
    for action in wild.act(&observations, &mut rng(1, 0)).unwrap().chunks(2) {
        assert!((-2.0..=1.0).contains(&action[0]) && (-1.0..=1.5).contains(&action[1]), "{action:?}");
        let bounds = [action[0] == -2.0, action[0] == 1.0, action[1] == -1.0, action[1] == 1.5];
        met.iter_mut().zip(bounds).for_each(|(met, at)| *met |= at);
    }
    assert_eq!(met, [true; 4]);
}

#[test]
fn the_buffer_holds_what_happened_and_overwrites_its_oldest() {
    let actions = Space::bounded(&[-2.0, -1.0], &[1.0, 1.5]);
    let (mut envs, log) = scripted(1, View::Vector, actions, SCRIPT);
    let td3 = learner(&["--exploration-noise=1"], (&BIAS, &SCALE));
    let (mut buffer, mut rng) = (ReplayBuffer { capacity: 8, ..Default::default() }, rng(1, 0));
    for step in 1..=12 {
        let observation = envs.observations().to_vec();
        let action = td3.act(&observation, &mut rng).unwrap();
        envs.step(&action).unwrap();
        buffer.store(&observation, &action, &envs);
        // Row i holds the last step t with t mod 8 = i.
        let happened = log.of(0);
        let rows: Vec<_> =
            (0..step.min(8)).map(|i| &happened[(i..step).step_by(8).next_back().unwrap()]).collect();
        assert_eq!(buffer.rewards, rows.iter().map(|row| row.reward).collect::<Vec<_>>());
        assert_eq!(
            buffer.observations,
            rows.iter().flat_map(|row| row.observation.clone()).collect::<Vec<_>>()
        );
        assert_eq!(buffer.actions, rows.iter().flat_map(|row| row.action.clone()).collect::<Vec<_>>());
        let next_observations: Vec<_> = rows.iter().flat_map(|row| row.next_observation.clone()).collect();
        assert_eq!(buffer.next_observations, next_observations);
        let terminated: Vec<_> = rows.iter().map(|row| f32::from(u8::from(row.terminated))).collect();
        assert_eq!(buffer.terminated, terminated);
    }
    assert!(log.of(0).iter().any(|step| step.truncated && !step.terminated));

    // What is drawn are whole transitions, each about as often.
    let batch = buffer.sample(400, &mut rng, &Device::Cpu).unwrap();
    let mut seen = [0; 12];
    for drawn in 0..400 {
        let of = |tensor: &Tensor| floats(&tensor.get(drawn).unwrap());
        let t = log.of(0).iter().position(|step| step.observation == of(&batch.observations)).unwrap();
        let step = &log.of(0)[t];
        seen[t] += 1;
        assert_eq!(of(&batch.actions), step.action);
        assert_eq!(of(&batch.rewards), [step.reward]);
        assert_eq!(of(&batch.next_observations), step.next_observation);
        assert_eq!(of(&batch.terminated), [f32::from(u8::from(step.terminated))]);
    }
    assert!(seen[..4] == [0; 4] && seen[4..].iter().all(|count| *count > 25), "{seen:?}");
}

#[test]
fn an_episode_is_held_against_its_start() {
    const GAMMA: f64 = 0.5;
    let actions = Space::bounded(&[-2.0, -1.0], &[1.0, 1.5]);
    let (mut envs, log) = scripted(1, View::Vector, actions, SCRIPT);
    let mut running_episode = RunningEpisode::new(&envs);
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        envs.step(&vec![0.0_f32, 0.0]).unwrap();
        let ended = running_episode.add_step(&envs, GAMMA);
        found.extend(ended.map(|episode| (episode.start_observation, episode.discounted_return)));
        let happened = log.of(0);
        let last = happened.last().unwrap();
        if last.terminated || last.truncated {
            let episode = happened.iter().filter(|t| t.episode == last.episode);
            let discounted = episode.map(|t| GAMMA.powi(t.step as i32) * f64::from(t.reward)).sum::<f64>();
            expected.push((View::Vector.observation(0, last.episode, 0), discounted));
        }
    }
    assert!(expected.len() > 10);
    assert_eq!(found, expected);
}

#[test]
fn the_value_of_a_state_is_the_first_critics_of_the_policys_action_there() {
    let td3 = learner(&[], (&BIAS, &SCALE));
    // The averages have no say in it.
    set(&td3.target_actor_parameters, &[]);
    set(&td3.target_critic_parameters, &[]);
    let observation = [0.5, -1.0, 0.2];
    let action = td3.act_greedily(&observation).unwrap();
    let inputs = Tensor::new(&[[0.5, -1.0, 0.2, action[0], action[1]]], &Device::Cpu).unwrap();
    assert_eq!([td3.value(&observation).unwrap()], floats(&td3.critics[0].forward(&inputs).unwrap())[..]);
}

/// Two hundred actor updates, and a buffer that is full before.
#[test]
fn pinned_run() {
    let args = [
        "--total-timesteps=500",
        "--learning-starts=100",
        "--buffer-size=300",
        "--hidden-size=16",
        "--batch-size=16",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "pendulum", &args, train);
}
