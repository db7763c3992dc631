//! Discrete SAC's update against PyTorch's, its fixed points, what it stores, and images.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::rng;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// A learner of observations `[3]` with the default hyper-parameters but for `flags`.
fn learner(num_actions: usize, flags: &[&str]) -> SacDiscrete {
    let argv = ["sac_discrete", "--hidden-sizes=32,32"].iter().chain(flags).map(Into::into);
    let space = Space::uniform(3, 0.0, f32::INFINITY);
    SacDiscrete::new(&space, num_actions, &cli::parse_from(argv).unwrap(), &mut rng(1, 0)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const ACTOR: Layers = &[("hidden0", &["actor/fc1"]), ("hidden1", &["actor/fc2"]), ("output", &["actor/fc3"])];
const CRITICS: Layers = &[
    ("qf1.hidden0", &["critic_1/fc1"]),
    ("qf1.hidden1", &["critic_1/fc2"]),
    ("qf1.output", &["critic_1/fc3"]),
    ("qf2.hidden0", &["critic_2/fc1"]),
    ("qf2.hidden1", &["critic_2/fc2"]),
    ("qf2.output", &["critic_2/fc3"]),
];
const TARGETS: Layers = &[
    ("qf1.hidden0", &["target_critic_1/fc1"]),
    ("qf1.hidden1", &["target_critic_1/fc2"]),
    ("qf1.output", &["target_critic_1/fc3"]),
    ("qf2.hidden0", &["target_critic_2/fc1"]),
    ("qf2.hidden1", &["target_critic_2/fc2"]),
    ("qf2.output", &["target_critic_2/fc3"]),
];
const TEMPERATURE: Layers = &[("log_alpha", &["temperature/log_alpha"])];

/// A learner with the recorded hyper-parameters and parameters, and the recorded batch.
fn recorded_learner(recording: &Recording) -> (SacDiscrete, Batch) {
    let number = |name: &str| recording.number(name);
    assert_eq!(number("critic_lr"), number("temperature_lr"));
    let flags = [
        &format!("--gamma={}", number("gamma")),
        &format!("--tau={}", number("tau")),
        &format!("--policy-lr={}", number("actor_lr")),
        &format!("--q-lr={}", number("critic_lr")),
        "--target-entropy-scale=0.98",
    ];
    let sac = learner(4, &flags);
    assert_abs_diff_eq!(sac.target_entropy, number("target_entropy"), epsilon = 1e-7);
    recording.set(&sac.actor_parameters, ACTOR);
    recording.set(&sac.critic_parameters, CRITICS);
    recording.set(&sac.target_parameters, TARGETS);
    recording.set(&sac.temperature, TEMPERATURE);
    let actions = recording.integers("batch/actions");
    let batch = Batch {
        observations: recording.tensor("batch/observations"),
        actions: Tensor::from_vec(actions, (32, 1), &Device::Cpu).unwrap(),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        terminated: recording.column("batch/terminated"),
    };
    (sac, batch)
}

#[test]
fn recorded_update() {
    let mut recording = Recording::open("sac_discrete");
    let (mut sac, batch) = recorded_learner(&recording);
    let (actor_lr, q_lr) = (recording.number("actor_lr"), recording.number("critic_lr"));
    let folder = "expected/parameters";

    recording.close("expected/next_values", sac.next_values(&batch.next_observations).unwrap());
    recording.close("expected/targets", sac.td_targets(&batch).unwrap());
    let mut means = Vec::new();
    for (name, critic) in ["expected/q_values_1", "expected/q_values_2"].iter().zip(&sac.critics) {
        let q = critic.forward(&batch.observations).unwrap().gather(&batch.actions, 1).unwrap();
        means.push(q.mean_all().unwrap().to_scalar::<f32>().unwrap());
        recording.close(name, q);
    }
    let [(loss1, q1), (loss2, q2)] = sac.update_critics(&batch).unwrap();
    recording.close("expected/loss/critic", loss1 + loss2);
    assert_eq!([q1, q2], means[..]);
    let gradients = first_gradients(&sac.critic_optimizer);
    recording.gradients("expected/gradients", &sac.critic_parameters, CRITICS, gradients);
    recording.parameters(folder, &sac.critic_parameters, CRITICS, q_lr);
    recording.unmoved(&sac.actor_parameters, ACTOR);
    recording.unmoved(&sac.target_parameters, TARGETS);
    recording.unmoved(&sac.temperature, TEMPERATURE);

    let (loss, log_probs) = sac.update_actor(&batch).unwrap();
    recording.close("expected/loss/actor", loss);
    recording.close("expected/log_probs", &log_probs);
    let gradients = first_gradients(&sac.actor_optimizer);
    recording.gradients("expected/gradients", &sac.actor_parameters, ACTOR, gradients);
    recording.parameters(folder, &sac.actor_parameters, ACTOR, actor_lr);
    recording.parameters(folder, &sac.critic_parameters, CRITICS, q_lr);
    recording.unmoved(&sac.target_parameters, TARGETS);
    recording.unmoved(&sac.temperature, TEMPERATURE);

    let entropies = recording.floats("expected/entropies");
    let (loss, entropy) = sac.update_temperature(&log_probs).unwrap();
    recording.close("expected/loss/temperature", loss);
    assert_abs_diff_eq!(entropy, entropies.iter().sum::<f32>() / 32.0, epsilon = 1e-6);
    let gradients = first_gradients(&sac.temperature_optimizer);
    recording.gradients("expected/gradients", &sac.temperature, TEMPERATURE, gradients);
    recording.parameters(folder, &sac.temperature, TEMPERATURE, q_lr);
    recording.parameters(folder, &sac.actor_parameters, ACTOR, actor_lr);

    sac.update_targets().unwrap();
    recording.parameters_close(folder, &sac.target_parameters, TARGETS, 2e-7); // single precision
    recording.parameters(folder, &sac.critic_parameters, CRITICS, q_lr);
    recording.finish();
}

#[test]
fn recorded_update_over_ten_updates() {
    let mut recording = Recording::open("sac_discrete");
    let (mut sac, batch) = recorded_learner(&recording);
    let (mut critic, mut actor, mut temperature) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..10 {
        let [(loss1, _), (loss2, _)] = sac.update_critics(&batch).unwrap();
        critic.push(loss1 + loss2);
        let (loss, log_probs) = sac.update_actor(&batch).unwrap();
        actor.push(loss);
        temperature.push(sac.update_temperature(&log_probs).unwrap().0);
        sac.update_targets().unwrap();
    }
    recording.losses("expected/losses_over_updates", critic.clone());
    recording.losses("expected/losses_over_updates_critic", critic);
    recording.losses("expected/losses_over_updates_actor", actor);
    recording.losses("expected/losses_over_updates_temperature", temperature);
    recording.finish();
}

/// With critics that do not move, the best policy is known: π(a|s) = softmax_a( min_i Q_i(s, a) / α ).
#[test]
fn the_actor_settles_at_the_softmax_of_the_smaller_values() {
    let mut sac = learner(3, &["--autotune=false", "--alpha=0.5", "--policy-lr=0.01"]);
    for (_, var) in sac.critic_parameters.named_vars() {
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    for (name, bias) in [("qf1.output.bias", [1.0_f32, 0.0, 9.0]), ("qf2.output.bias", [4.0, 0.5, 0.25])] {
        let (_, var) = sac.critic_parameters.named_vars().into_iter().find(|(n, _)| n == name).unwrap();
        var.set(&Tensor::new(&bias, &Device::Cpu).unwrap()).unwrap();
    }
    let observations = Tensor::new(&[[0.5_f32, -1.0, 2.0], [0.1, 0.3, -0.4]], &Device::Cpu).unwrap();
    let column = Tensor::zeros((2, 1), DType::F32, &Device::Cpu).unwrap();
    let batch = Batch {
        observations: observations.clone(),
        actions: column.to_dtype(DType::U32).unwrap(),
        rewards: column.clone(),
        next_observations: observations,
        terminated: column,
    };
    let mut loss = 0.0;
    for _ in 0..600 {
        loss = sac.update_actor(&batch).unwrap().0;
    }
    // Smaller values 1, 0 and 0.25 at a temperature of 0.5
    let weights = [2.0_f32.exp(), 1.0, 0.5_f32.exp()];
    let sum: f32 = weights.iter().sum();
    let probs = floats(&sac.log_probs(&batch.observations).unwrap().exp().unwrap());
    for (i, p) in probs.iter().enumerate() {
        assert_abs_diff_eq!(*p, weights[i % 3] / sum, epsilon = 2e-3);
    }
    // There J(φ) = −α ln Σ_a exp( Q(s, a) / α ).
    assert_abs_diff_eq!(loss, -0.5 * sum.ln(), epsilon = 1e-4);
    assert_eq!(sac.act_greedily(&[0.5, -1.0, 2.0, 0.1, 0.3, -0.4]).unwrap(), [0, 0]);
    // Actions are drawn as often as the policy says.
    let drawn = sac.act(&[0.5, -1.0, 2.0].repeat(6000), &mut rng(5, 0)).unwrap();
    for action in 0..3 {
        let share = drawn.iter().filter(|a| **a == action).count() as f32 / 6000.0;
        assert_abs_diff_eq!(share, weights[action as usize] / sum, epsilon = 0.026); // four standard errors
    }
}

#[test]
fn the_temperature_rises_below_the_wanted_entropy_and_falls_above() {
    let log_probs = |p: f64| {
        let p = [p, 1.0 - p].map(|p| p.ln() as f32);
        Tensor::new(&[p, p], &Device::Cpu).unwrap()
    };
    // Of ln 2 = 0.693, 0.6 are wanted: H(0.5) = 0.693 is above, H(0.9) = 0.325 below.
    for (p, rises) in [(0.5, false), (0.9, true)] {
        let mut sac = learner(2, &["--target-entropy-scale=0.6"]);
        assert_eq!(sac.alpha().unwrap(), 1.0);
        let (_, entropy) = sac.update_temperature(&log_probs(p)).unwrap();
        assert_abs_diff_eq!(f64::from(entropy), -p * p.ln() - (1.0 - p) * (1.0 - p).ln(), epsilon = 1e-6);
        assert_eq!(sac.alpha().unwrap() > 1.0, rises);
    }
    assert_abs_diff_eq!(
        learner(2, &["--autotune=false", "--alpha=0.3"]).alpha().unwrap(),
        0.3,
        epsilon = 1e-7
    );
}

#[test]
fn the_buffer_holds_what_happened_and_overwrites_its_oldest() {
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let sac = learner(3, &[]);
    let (mut buffer, mut rng) = (ReplayBuffer { capacity: 8, ..Default::default() }, rng(1, 0));
    for step in 1..=12 {
        let observation = envs.observations().to_vec();
        let action = sac.act(&observation, &mut rng).unwrap()[0];
        envs.step(&[action]).unwrap();
        buffer.store(&observation, action, &envs);
        // Row i holds the last step t with t mod 8 = i.
        let happened = log.of(0);
        let rows: Vec<_> =
            (0..step.min(8)).map(|i| &happened[(i..step).step_by(8).next_back().unwrap()]).collect();
        assert_eq!(buffer.rewards, rows.iter().map(|row| row.reward).collect::<Vec<_>>());
        let observations: Vec<_> = rows.iter().flat_map(|row| row.observation.clone()).collect();
        assert_eq!(buffer.observations, observations);
        assert_eq!(buffer.actions, rows.iter().map(|row| row.action[0] as u32).collect::<Vec<_>>());
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
        assert_eq!(batch.actions.get(drawn).unwrap().to_vec1::<u32>().unwrap(), [step.action[0] as u32]);
        assert_eq!(of(&batch.rewards), [step.reward]);
        assert_eq!(of(&batch.next_observations), step.next_observation);
        assert_eq!(of(&batch.terminated), [f32::from(u8::from(step.terminated))]);
    }
    assert!(seen[..4] == [0; 4] && seen[4..].iter().all(|count| *count > 25), "{seen:?}");
}

/// A buffer that is full before the end, and frequencies that differ.
#[test]
fn pinned_run() {
    let args = [
        "--total-timesteps=2000",
        "--learning-starts=300",
        "--buffer-size=1200",
        "--hidden-sizes=16",
        "--batch-size=16",
        "--update-frequency=2",
        "--target-network-frequency=5",
        "--tau=0.2",
        "--target-entropy-scale=0.8",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "cartpole", &args, train);
}

/// Images, and a temperature that stays what it is.
#[test]
fn pinned_run_images() {
    let args = [
        "--env-id=MinAtar/Breakout-v1",
        "--total-timesteps=1000",
        "--learning-starts=100",
        "--hidden-sizes=16",
        "--batch-size=8",
        "--autotune=false",
        "--alpha=0.05",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "breakout", &args, train);
}

#[test]
fn images_are_seen_in_numbers_from_zero_to_one_whatever_their_largest() {
    let logits = |high: f32| {
        let space = Space::Box { shape: vec![4, 5, 2], low: vec![0.0; 40], high: vec![high; 40] };
        let args = cli::parse_from(["sac_discrete", "--hidden-sizes=8"].iter().map(Into::into)).unwrap();
        let sac = SacDiscrete::new(&space, 3, &args, &mut rng(1, 0)).unwrap();
        assert_eq!(sac.actor.hidden[0].weight().dims(), [8, 2 * 3 * 16]);
        let pixels: Vec<f32> = (0..80).map(|i| high * (i % 7) as f32 / 7.0).collect();
        floats(&sac.logits(&pixels).unwrap())
    };
    assert_eq!(logits(1.0).len(), 2 * 3);
    assert_abs_diff_eq!(logits(1.0)[..], logits(255.0)[..], epsilon = 1e-5);
}
