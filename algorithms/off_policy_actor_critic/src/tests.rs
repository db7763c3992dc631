//! The update against PyTorch's, actions against the policy they are drawn from, the gradient's mean against
//! its definition, the buffer against what happened, and runs against their pins.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded, scripted};

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["off_policy_actor_critic"].iter().chain(flags).map(Into::into)).unwrap()
}

/// For observations of four numbers and three actions.
fn learner(hidden_sizes: &[usize], args: &Args) -> OffPolicyActorCritic {
    let (envs, _) = scripted(1, View::Image([2, 2, 1]), Space::Discrete { n: 3 }, SCRIPT);
    OffPolicyActorCritic::new(&envs, hidden_sizes, args, &mut rng(1, 0)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// π(·|s) of logits, both `[batch, num_actions]`.
fn probabilities(logits: &Tensor) -> Tensor {
    let exponentials = logits.exp().unwrap();
    exponentials.broadcast_div(&exponentials.sum_keepdim(1).unwrap()).unwrap()
}

const POLICY: Layers = &[("hidden0", &["actor/0"]), ("output", &["actor/1"])];
const CRITIC: Layers = &[("hidden0", &["critic/0"]), ("output", &["critic/1"])];

fn recorded_batch(recording: &Recording) -> Batch {
    Batch {
        observations: recording.tensor("batch/observations"),
        actions: Tensor::from_vec(recording.integers("batch/actions"), (24, 1), &Device::Cpu).unwrap(),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        terminated: recording.column("batch/terminated"),
    }
}

/// The recorded learner: the notes' algorithm, but for `flags`.
fn recorded_learner(recording: &Recording, flags: &[&str]) -> OffPolicyActorCritic {
    let number = |name: &str| recording.number(name);
    let hyperparameters = [
        format!("--gamma={}", number("gamma")),
        format!("--policy-lr={}", number("learning_rate_actor")),
        format!("--q-lr={}", number("learning_rate_critic")),
    ];
    let mut argv = vec!["--tau=1", "--baseline=false", "--ent-coef=0"];
    argv.extend(hyperparameters.iter().map(String::as_str));
    argv.extend(flags);
    let learner = learner(&[24], &args(&argv));
    recording.set(&learner.policy_parameters, POLICY);
    recording.set(&learner.critic_parameters, CRITIC);
    recording.set(&learner.target_parameters, CRITIC);
    learner
}

#[test]
fn recorded_update() {
    let mut recording = Recording::open("off_policy_actor_critic");
    let mut learner = recorded_learner(&recording, &[]);
    let batch = recorded_batch(&recording);
    let (next, current) = (recording.tensor("noise/gumbel_next"), recording.tensor("noise/gumbel_current"));
    recording.equal(
        "expected/next_actions",
        floats(&to_f32(&learner.draw(&batch.next_observations, &next).unwrap())),
    );
    recording.close("expected/targets", learner.td_targets(&batch, &next).unwrap());
    let (value_loss, q_values) = learner.update_critic(&batch, &next).unwrap();
    recording.close("expected/loss/value", value_loss);
    recording.gradients(
        "expected/gradients",
        &learner.critic_parameters,
        CRITIC,
        first_gradients(&learner.critic_optimizer),
    );
    let step = learner.args.q_lr;
    recording.parameters("expected/parameters", &learner.critic_parameters, CRITIC, step);
    recording.unmoved(&learner.policy_parameters, POLICY);
    recording.unmoved(&learner.target_parameters, CRITIC);
    // E[ Q(s, a) ] was that from before the step.
    let before =
        learner.target_critic.forward(&batch.observations).unwrap().gather(&batch.actions, 1).unwrap();
    assert_relative_eq!(q_values, floats(&before).iter().sum::<f32>() / 24.0, max_relative = 1e-5);

    let drawn = learner.draw(&batch.observations, &current).unwrap();
    recording.equal("expected/resampled_actions", floats(&to_f32(&drawn)));
    let judged = learner.critic.forward(&batch.observations).unwrap().gather(&drawn, 1).unwrap();
    recording.close("expected/resampled_values", judged);
    let critic = recorded::values(&learner.critic_parameters);
    let (policy_loss, entropy) = learner.update_policy(&batch, &current).unwrap();
    recording.close("expected/loss/policy", policy_loss);
    recording.gradients(
        "expected/gradients",
        &learner.policy_parameters,
        POLICY,
        first_gradients(&learner.policy_optimizer),
    );
    let step = learner.args.policy_lr;
    recording.parameters("expected/parameters", &learner.policy_parameters, POLICY, step);
    assert_eq!(recorded::values(&learner.critic_parameters), critic, "the policy's update moved the critic");
    assert!(entropy > 0.0 && entropy < 3_f32.ln());
    learner.update_target().unwrap();
    assert_eq!(recorded::values(&learner.target_parameters), critic);
    recording.finish();
}

fn to_f32(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F32).unwrap()
}

/// Targets ask the target critic, and follow it by τ; a baseline and an entropy bonus add to the recorded
/// gradient what they should: by a logit j, Σ over rows of V (1[ã = j] − π_j) and c_e ∂H/∂logit_j.
#[test]
fn recorded_update_with_what_the_notes_lack() {
    let mut recording = Recording::open("off_policy_actor_critic");
    let batch = recorded_batch(&recording);
    let noise = recording.tensor("noise/gumbel_current");
    let flags = ["--tau=0.25", "--baseline=true", "--ent-coef=0.3"];
    let mut learner = recorded_learner(&recording, &flags);

    // The gradient by the last layer's bias is the mean over rows of that by the logits.
    let logits = learner.policy.forward(&batch.observations).unwrap();
    let pi = probabilities(&logits).to_vec2::<f32>().unwrap();
    let q = learner.critic.forward(&batch.observations).unwrap().to_vec2::<f32>().unwrap();
    let drawn =
        learner.draw(&batch.observations, &noise).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
    let mut expected = [0.0; 3];
    for ((pi, q), &drawn) in pi.iter().zip(&q).zip(&drawn) {
        let value: f32 = pi.iter().zip(q).map(|(p, q)| p * q).sum();
        let entropy: f32 = -pi.iter().map(|p| p * p.ln()).sum::<f32>();
        for j in 0..3 {
            let score = f32::from(u8::from(drawn as usize == j)) - pi[j];
            let of_entropy = -pi[j] * (pi[j].ln() + entropy);
            expected[j] -= ((q[drawn as usize] - value) * score + 0.3 * of_entropy) / 24.0;
        }
    }
    let mean_entropy = -pi.iter().flatten().map(|p| p * p.ln()).sum::<f32>() / 24.0;
    let (_, entropy) = learner.update_policy(&batch, &noise).unwrap();
    assert_relative_eq!(entropy, mean_entropy, max_relative = 1e-4);
    recording.unmoved(&learner.critic_parameters, CRITIC);
    let names = recorded::values(&learner.policy_parameters);
    let bias = names.iter().position(|(name, _)| name == "output.bias").unwrap();
    for (found, expected) in first_gradients(&learner.policy_optimizer)[bias].iter().zip(expected) {
        assert_abs_diff_eq!(*found, expected, epsilon = 1e-5);
    }

    // Another target critic, other targets, and τ of the way to the critic.
    let before = floats(&learner.td_targets(&batch, &noise).unwrap());
    learner.update_critic(&batch, &noise).unwrap();
    let [target, critic] =
        [&learner.target_parameters, &learner.critic_parameters].map(|p| p.values().unwrap());
    assert_eq!(floats(&learner.td_targets(&batch, &noise).unwrap()), before, "targets moved with the critic");
    learner.update_target().unwrap();
    assert_ne!(floats(&learner.td_targets(&batch, &noise).unwrap()), before);
    for ((found, target), critic) in
        learner.target_parameters.values().unwrap().iter().zip(target).zip(critic)
    {
        assert_abs_diff_eq!(*found, 0.75 * target + 0.25 * critic, epsilon = 1e-6);
    }
    recording.finish();
}

#[test]
fn replayed_actions_are_the_buffer_s() {
    let mut recording = Recording::open("off_policy_actor_critic");
    let batch = recorded_batch(&recording);
    let noise = recording.tensor("noise/gumbel_current");
    let mut learner = recorded_learner(&recording, &["--replayed-actions"]);
    let policy = Categorical::new(&learner.policy.forward(&batch.observations).unwrap()).unwrap();
    let log_probs = floats(&policy.log_prob(&batch.actions.squeeze(1).unwrap()).unwrap());
    let q = floats(&learner.critic.forward(&batch.observations).unwrap().gather(&batch.actions, 1).unwrap());
    let expected = -log_probs.iter().zip(q).map(|(log_prob, q)| log_prob * q).sum::<f32>() / 24.0;
    assert_relative_eq!(learner.update_policy(&batch, &noise).unwrap().0, expected, max_relative = 1e-4);
    recording.unmoved(&learner.critic_parameters, CRITIC);
    recording.finish();
}

#[test]
fn actions_are_drawn_from_the_policy() {
    let learner = learner(&[8], &args(&[]));
    let bias =
        learner.policy_parameters.named_vars().into_iter().find(|(name, _)| name == "output.bias").unwrap().1;
    bias.set(&Tensor::new(&[0.0_f32, 1.0, 0.5], &Device::Cpu).unwrap()).unwrap();
    let observations = vec![0.0; 4 * 4000];
    assert_eq!(learner.act_greedily(&observations).unwrap(), vec![1; 4000]);
    let actions = learner.act(&observations, &mut rng(1, 0)).unwrap();
    let pi = floats(&probabilities(&Tensor::new(&[[0.0_f32, 1.0, 0.5]], &Device::Cpu).unwrap()));
    assert_abs_diff_eq!(pi[1], 1_f32.exp() / (1.0 + 1_f32.exp() + 0.5_f32.exp()), epsilon = 1e-6);
    for (action, pi) in pi.into_iter().enumerate() {
        let share = actions.iter().filter(|&&a| a as usize == action).count() as f32 / 4000.0;
        assert!((share - pi).abs() < 0.032, "{share} of {pi}"); // four standard errors
    }
}

#[test]
fn the_buffer_holds_what_happened_and_overwrites_its_oldest() {
    const CAPACITY: usize = 7;
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let mut rng = rng(1, 0);
    let learner = OffPolicyActorCritic::new(&envs, &[8], &args(&[]), &mut rng).unwrap();
    let mut buffer = ReplayBuffer { capacity: CAPACITY, ..Default::default() };
    let mut kinds = [false; 3]; // a termination, a truncation, both
    for _ in 0..20 {
        let observations = envs.observations().to_vec();
        let actions = learner.act(&observations, &mut rng).unwrap();
        envs.step(&actions).unwrap();
        buffer.store(&observations, &actions, &envs);
        let happened = log.transitions();
        let kept = happened.len().min(CAPACITY);
        assert_eq!(buffer.rewards.len(), kept);
        for (i, t) in happened.iter().enumerate().skip(happened.len() - kept) {
            let row = i % CAPACITY;
            assert_eq!(buffer.observations[3 * row..3 * (row + 1)], t.observation, "{t:?}");
            assert_eq!(buffer.actions[row] as f32, t.action[0], "{t:?}");
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
        assert_eq!(batch.actions.get(i).unwrap().to_vec1::<u32>().unwrap(), buffer.actions[row..row + 1]);
        assert_eq!(column(&batch.next_observations, i), buffer.next_observations[3 * row..3 * (row + 1)]);
        assert_eq!(column(&batch.terminated, i), buffer.terminated[row..row + 1]);
    }
    assert!(seen.iter().all(|count| (60..140).contains(count)), "{seen:?}");
}

/// What the defaults do, with step sizes that fall.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=4000", "--learning-starts=200", "--batch-size=16", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Another environment, an overflowing buffer, the notes' form of the update, step sizes that stay.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Acrobot-v1",
        "--num-envs=3",
        "--total-timesteps=900",
        "--learning-starts=99",
        "--buffer-size=100",
        "--batch-size=8",
        "--policy-lr=0.0003",
        "--q-lr=0.002",
        "--anneal-lr=false",
        "--gamma=0.9",
        "--tau=0.3",
        "--baseline=false",
        "--ent-coef=1",
        "--replayed-actions",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
