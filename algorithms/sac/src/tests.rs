//! SAC's update against PyTorch's, its policy's density against integrals, its buffer against what
//! happened, and a run against its pin.

use super::*;
use approx::assert_abs_diff_eq;
use candle_core::Var;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded::values, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["sac"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

/// For two observed numbers, and actions b ± c for (b, c) in `bounds`.
fn sac(bounds: (&[f32], &[f32]), flags: &[&str]) -> Sac {
    let flags = [&["--hidden-size=16"], flags].concat();
    Sac::new(2, bounds, &args(&flags), &mut rng(3, 0)).unwrap()
}

fn tensor(values: &[f32], columns: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const ACTOR: Layers =
    &[("hidden1", &["actor/fc1"]), ("hidden2", &["actor/fc2"]), ("output", &["actor/mean", "actor/log_std"])];
const CRITICS: Layers = &[
    ("qf1.hidden1", &["critic_1/fc1"]),
    ("qf1.hidden2", &["critic_1/fc2"]),
    ("qf1.output", &["critic_1/fc3"]),
    ("qf2.hidden1", &["critic_2/fc1"]),
    ("qf2.hidden2", &["critic_2/fc2"]),
    ("qf2.output", &["critic_2/fc3"]),
];
const TARGETS: Layers = &[
    ("qf1.hidden1", &["target_critic_1/fc1"]),
    ("qf1.hidden2", &["target_critic_1/fc2"]),
    ("qf1.output", &["target_critic_1/fc3"]),
    ("qf2.hidden1", &["target_critic_2/fc1"]),
    ("qf2.hidden2", &["target_critic_2/fc2"]),
    ("qf2.output", &["target_critic_2/fc3"]),
];
const TEMPERATURE: Layers = &[("log_alpha", &["temperature/log_alpha"])];

/// SAC with the recording's sizes, bounds, hyper-parameters and parameters, and its batch.
fn recorded(recording: &Recording) -> (Sac, Batch) {
    let numbers = |name: &str| recording.numbers(name);
    let (low, high) = (numbers("low"), numbers("high"));
    let middle: Vec<f32> = low.iter().zip(&high).map(|(l, h)| ((l + h) / 2.0) as f32).collect();
    let half: Vec<f32> = low.iter().zip(&high).map(|(l, h)| ((h - l) / 2.0) as f32).collect();
    let number = |name: &str| recording.number(name);
    let args = args(&[
        "--hidden-size=32",
        &format!("--gamma={}", number("gamma")),
        &format!("--tau={}", number("tau")),
        &format!("--policy-lr={}", number("actor_lr")),
        &format!("--q-lr={}", number("critic_lr")),
    ]);
    let sac = Sac::new(3, (&middle, &half), &args, &mut rng(1, 0)).unwrap();
    assert_eq!(sac.target_entropy, number("target_entropy"));
    recording.set(&sac.actor_parameters, ACTOR);
    recording.set(&sac.critic_parameters, CRITICS);
    recording.set(&sac.target_parameters, TARGETS);
    recording.set(&sac.temperature, TEMPERATURE);
    let batch = Batch {
        observations: recording.tensor("batch/observations"),
        actions: recording.tensor("batch/actions"),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        terminated: recording.column("batch/terminated"),
    };
    (sac, batch)
}

#[test]
fn recorded_update() {
    let mut recording = Recording::open("sac");
    let (mut sac, batch) = recorded(&recording);
    let target_noise = recording.tensor("noise/normal_target_actions");
    let actor_noise = recording.tensor("noise/normal_actor_actions");

    let (next_actions, next_log_probs) = sac.actor.sample(&batch.next_observations, &target_noise).unwrap();
    recording.close("expected/next_actions", &next_actions);
    recording.close("expected/next_log_probs", &next_log_probs);
    recording.close("expected/targets", sac.td_targets(&batch, &target_noise).unwrap());

    let [(loss1, mean1), (loss2, mean2)] = sac.update_critics(&batch, &target_noise).unwrap();
    recording.close("expected/loss/critic_1", loss1);
    recording.close("expected/loss/critic_2", loss2);
    for (name, mean) in [("expected/q_values_1", mean1), ("expected/q_values_2", mean2)] {
        let expected = recording.floats(name);
        assert_abs_diff_eq!(mean, expected.iter().sum::<f32>() / expected.len() as f32, epsilon = 1e-5);
    }
    recording.unmoved(&sac.actor_parameters, ACTOR);
    recording.unmoved(&sac.target_parameters, TARGETS);
    let gradients = first_gradients(&sac.critic_optimizer);
    recording.gradients("expected/gradients", &sac.critic_parameters, CRITICS, gradients);
    let step = recording.number("critic_lr");
    recording.parameters("expected/parameters", &sac.critic_parameters, CRITICS, step);

    let critics = values(&sac.critic_parameters);
    recording.close("expected/actions", &sac.actor.sample(&batch.observations, &actor_noise).unwrap().0);
    let (loss, log_probs) = sac.update_actor(&batch, &actor_noise).unwrap();
    recording.close("expected/loss/actor", loss);
    recording.close("expected/log_probs", &log_probs);
    assert!(values(&sac.critic_parameters) == critics, "the actor's update moved the critics");
    recording.unmoved(&sac.temperature, TEMPERATURE);
    let gradients = first_gradients(&sac.actor_optimizer);
    recording.gradients("expected/gradients", &sac.actor_parameters, ACTOR, gradients);
    let step = recording.number("actor_lr");
    recording.parameters("expected/parameters", &sac.actor_parameters, ACTOR, step);

    let actor = values(&sac.actor_parameters);
    recording.close("expected/loss/temperature", sac.update_temperature(&log_probs).unwrap());
    assert!(values(&sac.actor_parameters) == actor, "the temperature's update moved the actor");
    let gradients = first_gradients(&sac.temperature_optimizer);
    recording.gradients("expected/gradients", &sac.temperature, TEMPERATURE, gradients);
    let step = recording.number("temperature_lr");
    recording.parameters("expected/parameters", &sac.temperature, TEMPERATURE, step);

    recording.unmoved(&sac.target_parameters, TARGETS);
    sac.update_targets().unwrap();
    recording.parameters_close("expected/parameters", &sac.target_parameters, TARGETS, 1e-5);
    recording.finish();
}

#[test]
fn recorded_update_ten_times() {
    let mut recording = Recording::open("sac");
    let (mut sac, batch) = recorded(&recording);
    let target_noise = recording.tensor("noise/normal_target_actions");
    let actor_noise = recording.tensor("noise/normal_actor_actions");
    let [mut critic1, mut critic2, mut actor, mut temperature] = [const { Vec::<f32>::new() }; 4];
    for _ in 0..10 {
        let [(loss1, _), (loss2, _)] = sac.update_critics(&batch, &target_noise).unwrap();
        let (loss, log_probs) = sac.update_actor(&batch, &actor_noise).unwrap();
        temperature.push(sac.update_temperature(&log_probs).unwrap());
        sac.update_targets().unwrap();
        critic1.push(loss1);
        critic2.push(loss2);
        actor.push(loss);
    }
    recording.losses("expected/losses_over_updates_critic_1", &critic1);
    recording.losses("expected/losses_over_updates_critic_2", &critic2);
    recording.losses("expected/losses_over_updates_actor", &actor);
    recording.losses("expected/losses_over_updates_temperature", &temperature);
    recording.finish();
}

#[test]
fn sampled_actions_have_the_probabilities_that_they_claim() {
    // E[ 1[a ∈ I] / π(a) ] over the policy's own samples is the length of the interval I, here 0.6.
    let sac = sac((&[1.0], &[2.0]), &[]);
    let observations = tensor(&[0.5, -1.0].repeat(20_000), 2);
    let noise = sac.noise(20_000, &mut rng(5, 0)).unwrap();
    let (actions, log_probs) = sac.actor.sample(&observations, &noise).unwrap();
    let (actions, log_probs) = (floats(&actions), floats(&log_probs));
    assert!(actions.iter().all(|action| (-1.0..=3.0).contains(action)));
    let inside = |action: f32| (0.7..1.3).contains(&action);
    let kept = actions.iter().zip(&log_probs).filter(|(action, _)| inside(**action));
    let width = kept.map(|(_, log_prob)| f64::from(-log_prob).exp()).sum::<f64>() / 20_000.0;
    assert!((width - 0.6).abs() < 0.02, "{width}");
}

#[test]
fn the_density_stays_finite_at_the_bounds() {
    let sac = sac((&[0.0, 1.0], &[2.0, 0.5]), &[]);
    // u = μ + σ ε with ε = ±1e4: tanh u is 1 in f32, ln(1 − tanh² u) tends to 2 ln 2 − 2 |u|.
    let observation = tensor(&[0.3, -0.2], 2);
    let (mean, log_std) = sac.actor.forward(&observation).unwrap();
    let (mean, std) = (floats(&mean), floats(&log_std.exp().unwrap()));
    let (_, log_prob) = sac.actor.sample(&observation, &tensor(&[1e4, -1e4], 2)).unwrap();
    let of = |i: usize, noise: f64, scale: f64| {
        let (mean, std) = (f64::from(mean[i]), f64::from(std[i]));
        let gaussian = -0.5 * noise * noise - std.ln() - 0.5 * (2.0 * PI).ln();
        gaussian - (2.0 * LN_2 - 2.0 * (mean + std * noise).abs()) - scale.ln()
    };
    let expected = of(0, 1e4, 2.0) + of(1, -1e4, 0.5);
    assert!((f64::from(floats(&log_prob)[0]) / expected - 1.0).abs() < 1e-5);
}

#[test]
fn greedy_actions_are_those_without_noise_and_reach_the_bounds() {
    let sac = sac((&[1.0, -3.0], &[2.0, 0.5]), &[]);
    let extreme = sac.actor.squash(&tensor(&[-50.0, 50.0, 0.0, 0.0], 2)).unwrap();
    assert_eq!(floats(&extreme), [-1.0, -2.5, 1.0, -3.0]);
    let (without_noise, _) = sac.actor.sample(&tensor(&[0.1, 0.2], 2), &tensor(&[0.0, 0.0], 2)).unwrap();
    assert_eq!(sac.act_greedily(&[0.1, 0.2]).unwrap(), floats(&without_noise));
}

#[test]
fn log_std_stays_within_its_bounds() {
    let sac = sac((&[0.0], &[1.0]), &[]);
    for size in [0.0, 1.0, 1e6] {
        let (_, log_std) = sac.actor.forward(&tensor(&[size, -size, -size, size], 2)).unwrap();
        assert!(floats(&log_std).iter().all(|log_std| (-5.0..=2.0).contains(log_std)));
    }
}

#[test]
fn the_temperature_rises_when_the_policy_is_too_certain() {
    for (log_prob, rises) in [(3.0, true), (-3.0, false)] {
        let mut sac = sac((&[0.0], &[1.0]), &[]); // H̄ = −1
        let before = sac.alpha().unwrap();
        assert_eq!(before, 1.0);
        sac.update_temperature(&tensor(&[log_prob, log_prob], 1)).unwrap();
        assert_eq!(sac.alpha().unwrap() > before, rises);
    }
    let fixed = sac((&[0.0], &[1.0]), &["--autotune=false", "--alpha=0.3"]);
    assert_abs_diff_eq!(fixed.alpha().unwrap(), 0.3, epsilon = 1e-6);
}

#[test]
fn twins_are_born_different_and_targets_equal() {
    let sac = sac((&[0.0], &[1.0]), &[]);
    let x = Var::randn(0.0_f32, 1.0, (4, 3), &Device::Cpu).unwrap();
    let q = |network: &Mlp| floats(&network.forward(&x).unwrap());
    assert_ne!(q(&sac.critics[0]), q(&sac.critics[1]));
    for i in 0..2 {
        assert_eq!(q(&sac.critics[i]), q(&sac.target_critics[i]));
    }
}

#[test]
fn the_buffer_holds_what_happened_and_overwrites_its_oldest() {
    const CAPACITY: usize = 7;
    let actions = Space::bounded(&[-1.0], &[3.0]);
    let (mut envs, log) = scripted(1, View::Vector, actions, SCRIPT);
    let sac = Sac::new(3, (&[1.0], &[2.0]), &args(&["--hidden-size=8"]), &mut rng(1, 0)).unwrap();
    let mut buffer = ReplayBuffer { capacity: CAPACITY, ..Default::default() };
    let mut rng = learner_rng(1);
    let mut kinds = [false; 3]; // a termination, a truncation, both
    for steps in 1..=20 {
        let observation = envs.observations().to_vec();
        let action = sac.act(&observation, &mut rng).unwrap();
        envs.step(&action).unwrap();
        buffer.store(&observation, &action, &envs);
        let happened = log.transitions();
        let kept = steps.min(CAPACITY);
        assert_eq!(buffer.rewards.len(), kept);
        for (i, t) in happened.iter().enumerate().skip(steps - kept) {
            let row = i % CAPACITY;
            assert_eq!(buffer.observations[3 * row..3 * (row + 1)], t.observation, "{t:?}");
            assert_eq!(buffer.actions[row..row + 1], t.action, "{t:?}");
            assert_eq!(buffer.rewards[row], t.reward, "{t:?}");
            assert_eq!(buffer.next_observations[3 * row..3 * (row + 1)], t.next_observation, "{t:?}");
            assert_eq!(buffer.terminated[row] == 1.0, t.terminated, "{t:?}");
            kinds[0] |= t.terminated && !t.truncated;
            kinds[1] |= t.truncated && !t.terminated;
            kinds[2] |= t.terminated && t.truncated;
        }
    }
    assert_eq!(kinds, [true; 3]);

    // A sample is whole transitions, each row of the buffer about as often.
    let batch = buffer.sample(700, &mut rng, &Device::Cpu).unwrap();
    let mut seen = [0; CAPACITY];
    let column = |tensor: &Tensor, i: usize| floats(&tensor.get(i).unwrap());
    for i in 0..700 {
        let row = buffer.rewards.iter().position(|&r| r == column(&batch.rewards, i)[0]).unwrap();
        seen[row] += 1;
        assert_eq!(column(&batch.observations, i), buffer.observations[3 * row..3 * (row + 1)]);
        assert_eq!(column(&batch.actions, i), buffer.actions[row..row + 1]);
        assert_eq!(column(&batch.next_observations, i), buffer.next_observations[3 * row..3 * (row + 1)]);
        assert_eq!(column(&batch.terminated, i), buffer.terminated[row..row + 1]);
    }
    assert!(seen.iter().all(|count| (60..140).contains(count)), "{seen:?}");
}

/// Fifty random actions, then two hundred updates of everything; every hundredth logs the losses.
#[test]
fn pinned_run() {
    let flags = [
        "--total-timesteps=250",
        "--learning-starts=50",
        "--hidden-size=16",
        "--batch-size=16",
        "--eval-episodes=2",
        "--gamma=0.9",
        "--tau=0.05",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// The actor delayed, the averages too, a fixed temperature, an odd batch, a buffer that overflows.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--total-timesteps=340",
        "--learning-starts=40",
        "--hidden-size=16",
        "--batch-size=15",
        "--policy-frequency=3",
        "--target-network-frequency=2",
        "--autotune=false",
        "--alpha=0.1",
        "--buffer-size=100",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
