//! DDPG's learning step against PyTorch's, its two kinds of noise, and what it stores.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

const BIAS: [f32; 2] = [-0.5, 0.25];
const SCALE: [f32; 2] = [1.5, 1.25];

/// A learner of observations `[3]` and actions within b ± c, with the default hyper-parameters but for
/// `flags`.
fn learner(flags: &[&str], bounds: (&[f32], &[f32])) -> Ddpg {
    let flags = ["ddpg", "--hidden-size=32"].iter().chain(flags).map(Into::into);
    Ddpg::new(3, bounds, &cli::parse_from(flags).unwrap(), &mut rng(1, 0)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const ACTOR: Layers = &[("hidden1", &["actor/fc1"]), ("hidden2", &["actor/fc2"]), ("output", &["actor/fc3"])];
const TARGET_ACTOR: Layers = &[
    ("hidden1", &["target_actor/fc1"]),
    ("hidden2", &["target_actor/fc2"]),
    ("output", &["target_actor/fc3"]),
];
const CRITIC: Layers =
    &[("hidden1", &["critic/fc1"]), ("hidden2", &["critic/fc2"]), ("output", &["critic/fc3"])];
const TARGET_CRITIC: Layers = &[
    ("hidden1", &["target_critic/fc1"]),
    ("hidden2", &["target_critic/fc2"]),
    ("output", &["target_critic/fc3"]),
];

/// A learner with the recorded parameters, and the recorded batch.
fn recorded_learner(recording: &Recording) -> (Ddpg, Batch) {
    let flags: Vec<String> =
        ["gamma", "tau"].iter().map(|name| format!("--{name}={}", recording.number(name))).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let bounds = recording.numbers("low").into_iter().zip(recording.numbers("high"));
    let (bias, scale): (Vec<f32>, Vec<f32>) =
        bounds.map(|(low, high)| ((high + low) as f32 / 2.0, (high - low) as f32 / 2.0)).unzip();
    let mut ddpg = learner(&flags, (&bias, &scale));
    // The file has one step size, the recording two.
    ddpg.actor_optimizer.learning_rate = recording.number("actor_lr");
    ddpg.critic_optimizer.learning_rate = recording.number("critic_lr");
    recording.set(&ddpg.actor_parameters, ACTOR);
    recording.set(&ddpg.target_actor_parameters, TARGET_ACTOR);
    recording.set(&ddpg.critic_parameters, CRITIC);
    recording.set(&ddpg.target_critic_parameters, TARGET_CRITIC);
    let batch = Batch {
        observations: recording.tensor("batch/observations"),
        actions: recording.tensor("batch/actions"),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        terminated: recording.column("batch/terminated"),
    };
    (ddpg, batch)
}

#[test]
fn recorded_update() {
    let mut recording = Recording::open("ddpg");
    let (mut ddpg, batch) = recorded_learner(&recording);
    let (actor_lr, critic_lr) = (recording.number("actor_lr"), recording.number("critic_lr"));
    // The critic, which learns from targets of networks that do not move …
    let next_actions = ddpg.target_actor.forward(&batch.next_observations).unwrap();
    recording.close("expected/next_actions", next_actions);
    recording.close("expected/targets", ddpg.td_targets(&batch).unwrap());
    let inputs = Tensor::cat(&[&batch.observations, &batch.actions], 1).unwrap();
    let q_values = ddpg.critic.forward(&inputs).unwrap();
    let mean = q_values.mean_all().unwrap().to_scalar::<f32>().unwrap();
    recording.close("expected/q_values", q_values);
    let (loss, q) = ddpg.update_critic(&batch).unwrap();
    recording.close("expected/loss/critic", loss);
    assert_eq!(q, mean);
    let gradients = first_gradients(&ddpg.critic_optimizer);
    recording.gradients("expected/gradients", &ddpg.critic_parameters, CRITIC, gradients);
    recording.parameters("expected/parameters", &ddpg.critic_parameters, CRITIC, critic_lr);
    recording.unmoved(&ddpg.actor_parameters, ACTOR);
    recording.unmoved(&ddpg.target_actor_parameters, TARGET_ACTOR);
    recording.unmoved(&ddpg.target_critic_parameters, TARGET_CRITIC);
    // … then the actor, through the critic as it now is, …
    recording.close("expected/actions", ddpg.actor.forward(&batch.observations).unwrap());
    recording.close("expected/loss/actor", ddpg.update_actor(&batch).unwrap());
    let gradients = first_gradients(&ddpg.actor_optimizer);
    recording.gradients("expected/gradients", &ddpg.actor_parameters, ACTOR, gradients);
    recording.parameters("expected/parameters", &ddpg.actor_parameters, ACTOR, actor_lr);
    recording.parameters("expected/parameters", &ddpg.critic_parameters, CRITIC, critic_lr);
    recording.unmoved(&ddpg.target_actor_parameters, TARGET_ACTOR);
    recording.unmoved(&ddpg.target_critic_parameters, TARGET_CRITIC);
    // … then the averages.
    ddpg.update_targets().unwrap();
    let folder = "expected/parameters";
    recording.parameters_close(folder, &ddpg.target_actor_parameters, TARGET_ACTOR, 1e-7);
    recording.parameters_close(folder, &ddpg.target_critic_parameters, TARGET_CRITIC, 1e-7);
    recording.parameters(folder, &ddpg.actor_parameters, ACTOR, actor_lr);
    recording.parameters(folder, &ddpg.critic_parameters, CRITIC, critic_lr);
    recording.finish();
}

#[test]
fn recorded_update_over_ten_updates() {
    let mut recording = Recording::open("ddpg");
    let (mut ddpg, batch) = recorded_learner(&recording);
    let (mut critic_losses, mut actor_losses) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        critic_losses.push(ddpg.update_critic(&batch).unwrap().0);
        actor_losses.push(ddpg.update_actor(&batch).unwrap());
        ddpg.update_targets().unwrap();
    }
    recording.losses("expected/losses_over_updates", critic_losses.clone());
    recording.losses("expected/losses_over_updates_critic", critic_losses);
    recording.losses("expected/losses_over_updates_actor", actor_losses);
    recording.finish();
}

#[test]
fn the_averages_begin_as_copies_and_share_nothing() {
    let ddpg = learner(&["--tau=0"], (&BIAS, &SCALE));
    let observations = Tensor::new(&[[0.3_f32, -0.2, 1.0]], &Device::Cpu).unwrap();
    let action = |actor: &Actor| floats(&actor.forward(&observations).unwrap());
    assert_eq!(action(&ddpg.actor), action(&ddpg.target_actor));
    for (_, var) in ddpg.actor_parameters.named_vars() {
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    ddpg.update_targets().unwrap(); // by nothing
    assert_eq!(action(&ddpg.actor), BIAS);
    assert_ne!(action(&ddpg.actor), action(&ddpg.target_actor));
}

#[test]
fn noise_is_in_units_of_the_range_and_leaves_no_bound() {
    let observation = [0.5, -1.0, 0.2];
    let mut ddpg = learner(&["--exploration-noise=0.1"], (&BIAS, &SCALE));
    let mean = ddpg.act_greedily(&observation).unwrap();
    assert_abs_diff_eq!(ddpg.act(&observation, &[0.0, 0.0]).unwrap()[..], mean[..], epsilon = 1e-6);
    // Gaussian noise keeps nothing of what it was.
    for epsilon in [[0.5, -1.0], [-0.3, 0.7]] {
        let action = ddpg.act(&observation, &epsilon).unwrap();
        let expected: Vec<f32> = (0..2).map(|j| mean[j] + SCALE[j] * 0.1 * epsilon[j]).collect();
        assert_abs_diff_eq!(action[..], expected[..], epsilon = 1e-6);
    }
    assert_eq!(ddpg.act(&observation, &[99.0, -99.0]).unwrap(), [1.0, -1.0]);
    assert_eq!(ddpg.act(&observation, &[-99.0, 99.0]).unwrap(), [-2.0, 1.5]);
}

#[test]
fn ornstein_uhlenbeck_noise_returns_to_zero_by_and_by() {
    let flags = ["--ornstein-uhlenbeck=true", "--ou-rate=0.25", "--exploration-noise=0.2"];
    let mut ddpg = learner(&flags, (&BIAS, &SCALE));
    let observation = [0.5, -1.0, 0.2];
    let mean = ddpg.act_greedily(&observation).unwrap();
    // n ← 0.75 n + 0.2 ε
    let steps: [([f32; 2], [f32; 2]); 3] =
        [([1.0, -2.0], [0.2, -0.4]), ([0.0, 0.5], [0.15, -0.2]), ([-0.5, 0.0], [0.0125, -0.15])];
    for (epsilon, n) in steps {
        let action = ddpg.act(&observation, &epsilon).unwrap();
        let expected: Vec<f32> = (0..2).map(|j| mean[j] + SCALE[j] * n[j]).collect();
        assert_abs_diff_eq!(action[..], expected[..], epsilon = 1e-6);
    }
    ddpg.reset_noise();
    assert_abs_diff_eq!(ddpg.act(&observation, &[0.0, 0.0]).unwrap()[..], mean[..], epsilon = 1e-6);
}

#[test]
fn ornstein_uhlenbeck_noise_has_the_variance_and_the_memory_of_its_process() {
    let mut ddpg = learner(&["--ornstein-uhlenbeck=true", "--exploration-noise=0.2"], (&[0.0], &[1e6]));
    let (mut rng, mut series) = (rng(3, 0), Vec::new());
    for _ in 0..20_000 {
        let epsilon = normal(1, &mut rng).unwrap();
        ddpg.act(&[0.0, 0.0, 0.0], &epsilon).unwrap();
        series.push(f64::from(ddpg.noise[0]));
    }
    let covariance = |lag: usize| {
        let products = series.iter().zip(&series[lag..]).map(|(x, y)| x * y);
        products.sum::<f64>() / (series.len() - lag) as f64
    };
    // An autoregressive process: variance σ² / (1 − (1 − κ)²), correlation (1 − κ)^lag, κ = 0.15.
    let variance = 0.04 / (1.0 - 0.85_f64.powi(2));
    assert_abs_diff_eq!(covariance(0), variance, epsilon = 0.018); // four standard errors
    assert_abs_diff_eq!(covariance(5) / covariance(0), 0.85_f64.powi(5), epsilon = 0.06);
}

#[test]
fn the_buffer_holds_what_happened_and_overwrites_its_oldest() {
    let actions = Space::bounded(&[-2.0, -1.0], &[1.0, 1.5]);
    let (mut envs, log) = scripted(1, View::Vector, actions, SCRIPT);
    let mut ddpg = learner(&["--exploration-noise=1"], (&BIAS, &SCALE));
    let (mut buffer, mut rng) = (ReplayBuffer { capacity: 8, ..Default::default() }, rng(1, 0));
    for step in 1..=12 {
        let observation = envs.observations().to_vec();
        let action = ddpg.act(&observation, &normal(2, &mut rng).unwrap()).unwrap();
        envs.step(&action).unwrap();
        buffer.store(&observation, &action, &envs);
        // Row i holds the last step t with t mod 8 = i.
        let happened = log.of(0);
        let rows: Vec<_> =
            (0..step.min(8)).map(|i| &happened[(i..step).step_by(8).next_back().unwrap()]).collect();
        assert_eq!(buffer.rewards, rows.iter().map(|row| row.reward).collect::<Vec<_>>());
        let observations: Vec<_> = rows.iter().flat_map(|row| row.observation.clone()).collect();
        assert_eq!(buffer.observations, observations);
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
fn the_value_of_a_state_is_that_of_the_policys_action_there() {
    let ddpg = learner(&[], (&BIAS, &SCALE));
    // The averages have no say in it.
    for parameters in [&ddpg.target_actor_parameters, &ddpg.target_critic_parameters] {
        for (_, var) in parameters.named_vars() {
            var.set(&var.zeros_like().unwrap()).unwrap();
        }
    }
    let observation = [0.5, -1.0, 0.2];
    let action = ddpg.act_greedily(&observation).unwrap();
    let inputs = Tensor::new(&[[0.5, -1.0, 0.2, action[0], action[1]]], &Device::Cpu).unwrap();
    assert_eq!([ddpg.value(&observation).unwrap()], floats(&ddpg.critic.forward(&inputs).unwrap())[..]);
}

/// An actor that waits for the critic, and a buffer that is full before.
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

/// Strong noise that has to start again in the middle of the run, at the end of an episode.
#[test]
fn pinned_run_ornstein_uhlenbeck() {
    let args = [
        "--ornstein-uhlenbeck=true",
        "--ou-rate=0.05",
        "--exploration-noise=0.3",
        "--policy-frequency=1",
        "--total-timesteps=500",
        "--learning-starts=100",
        "--hidden-size=16",
        "--batch-size=16",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "ornstein_uhlenbeck", &args, train);
}
