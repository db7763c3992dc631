//! The update against PyTorch's, the three gradients' means and variances, what a rollout holds, and runs
//! against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::Space;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["all_actions_pg"].iter().chain(flags).map(Into::into)).unwrap()
}

fn learner(dims: [usize; 2], hidden_sizes: &[usize], flags: &[&str]) -> AllActions {
    AllActions::new(dims, hidden_sizes, &args(flags), &mut learner_rng(1)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const ACTOR: Layers = &[("hidden0", &["actor/0"]), ("output", &["actor/1"])];
const CRITIC: Layers = &[("hidden0", &["critic/0"]), ("output", &["critic/1"])];

fn recorded_rollout(recording: &Recording) -> Rollout {
    Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
        rewards: recording.floats("batch/rewards"),
        next_observations: recording.floats("batch/next_observations"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
    }
}

/// A learner with the recording's parameters and hyper-parameters, without an entropy bonus.
fn recorded_learner(recording: &Recording) -> AllActions {
    let recorded = [
        format!("--gamma={}", recording.number("gamma")),
        format!("--policy-lr={}", recording.number("learning_rate_actor")),
        format!("--q-lr={}", recording.number("learning_rate_critic")),
    ];
    let recorded: Vec<&str> = recorded.iter().map(String::as_str).collect();
    let learner = learner([4, 3], &[24], &[&recorded[..], &["--ent-coef=0", "--critic-updates=1"]].concat());
    recording.set(&learner.actor.parameters, ACTOR);
    recording.set(&learner.critic.parameters, CRITIC);
    learner
}

#[test]
fn recorded_update() {
    let mut recording = Recording::open("all_actions_pg");
    let mut learner = recorded_learner(&recording);
    assert_eq!(learner.actor.adam.eps, recording.number("adam_epsilon"));
    let batch = recorded_rollout(&recording).batch(&Device::Cpu).unwrap();
    let targets = learner.targets(&batch).unwrap();
    recording.close("expected/targets", &targets);

    let losses = learner.update(&batch).unwrap();
    recording.close("expected/loss/policy", losses.policy_loss);
    recording.close("expected/loss/value", losses.qf_loss);
    recording.close("expected/loss/total", losses.policy_loss + losses.qf_loss);
    let (actor, critic) = (&learner.actor, &learner.critic);
    for (network, layers, name) in [(actor, ACTOR, "actor"), (critic, CRITIC, "critic")] {
        recording.gradients(
            "expected/gradients",
            &network.parameters,
            layers,
            first_gradients(&network.adam),
        );
        let step = recording.number(&format!("learning_rate_{name}"));
        recording.parameters("expected/parameters", &network.parameters, layers, step);
    }

    // Over the ten updates the targets, and Q_w of the policy's loss, are those of the first critic.
    let mut again = recorded_learner(&recording);
    let action_values = again.critic.forward(&batch.observations).unwrap();
    let total = |_| {
        let (policy_loss, _) = again.update_actor(&batch, &action_values).unwrap();
        policy_loss + again.update_critic(&batch, &targets).unwrap().0
    };
    let losses: Vec<f32> = (0..10).map(total).collect();
    recording.losses("expected/losses_over_updates", losses);
    recording.finish();
}

/// Steps from nowhere, of 24 rows, and a learner whose policy is far from uniform.
fn drawn(flags: &[&str]) -> (Batch, AllActions) {
    let mut rng = learner_rng(5);
    let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| 2.0 * rng.random::<f32>() - 1.0).collect() };
    let rollout = Rollout {
        observations: numbers(96),
        actions: (0..24).map(|i| i % 3).collect(),
        rewards: numbers(24),
        next_observations: numbers(96),
        terminated: (0..24).map(|i| i % 7 == 0).collect(),
        truncated: (0..24).map(|i| i % 5 == 0).collect(),
    };
    let mut learner = learner([4, 3], &[24], flags);
    learner.actor = Network::new(&[4, 24, 3], 1.0, learner.args.policy_lr, 5, &Device::Cpu).unwrap();
    (rollout.batch(&Device::Cpu).unwrap(), learner)
}

/// What the recorded update leaves out: more steps of the critic, towards targets of its own, and the bonus.
#[test]
fn the_critic_makes_more_steps_towards_targets_of_its_own_after_the_policys() {
    let (batch, mut learner) = drawn(&["--critic-updates=3"]);
    let losses = learner.update(&batch).unwrap();

    let (_, mut by_hand) = drawn(&[]);
    // Targets of the policy from before its step, then of the one after it.
    let (first, values) =
        (by_hand.targets(&batch).unwrap(), by_hand.critic.forward(&batch.observations).unwrap());
    by_hand.update_actor(&batch, &values).unwrap();
    let (qf_loss, qf_values) = by_hand.update_critic(&batch, &first).unwrap();
    for _ in 0..2 {
        let targets = by_hand.targets(&batch).unwrap();
        by_hand.update_critic(&batch, &targets).unwrap();
    }
    assert_eq!((losses.qf_loss, losses.qf_values), (qf_loss, qf_values));
    let taken = values.gather(&batch.actions.unsqueeze(1).unwrap(), 1).unwrap();
    assert_abs_diff_eq!(losses.qf_values, taken.mean_all().unwrap().to_scalar().unwrap(), epsilon = 1e-5);
    let values = |learner: &AllActions| {
        [&learner.actor, &learner.critic].map(|network| recorded::values(&network.parameters))
    };
    assert_eq!(values(&learner), values(&by_hand));
}

#[test]
fn the_bonus_makes_a_policy_more_random() {
    let (batch, mut learner) = drawn(&["--ent-coef=0.5"]);
    let no_values = Tensor::zeros((24, 3), DType::F32, &Device::Cpu).unwrap();
    let entropies: Vec<f32> = (0..20).map(|_| learner.update_actor(&batch, &no_values).unwrap().1).collect();
    assert!(entropies.windows(2).all(|pair| pair[1] > pair[0]), "{entropies:?}");
    // 0.5 of it: the gradient is that of −½ H.
    let gradients = |learner: &AllActions| {
        let entropy = learner.policy(&batch.observations).unwrap().entropy().unwrap();
        learner.actor.parameters.gradients(&entropy.mean_all().unwrap()).unwrap()
    };
    let (_, mut learner) = drawn(&["--ent-coef=0.5"]);
    let of_entropy = gradients(&learner);
    learner.update_actor(&batch, &no_values).unwrap();
    for (found, expected) in first_gradients(&learner.actor.adam).concat().iter().zip(of_entropy) {
        assert_abs_diff_eq!(*found, -0.5 * expected, epsilon = 1e-6);
    }
}

/// A learner of three actions in one state, where all is known: its policy, and Q = (1, −2, 4).
fn bandit() -> (AllActions, [f64; 3], [f64; 3]) {
    let learner = learner([1, 3], &[], &[]);
    let set = |network: &Network, bias: [f32; 3]| {
        for (parameter, (name, _)) in
            network.parameters.all_vars().iter().zip(recorded::values(&network.parameters))
        {
            let values = if name.ends_with("bias") {
                Tensor::new(&bias, &Device::Cpu).unwrap()
            } else {
                Tensor::zeros((3, 1), DType::F32, &Device::Cpu).unwrap()
            };
            parameter.set(&values).unwrap();
        }
    };
    set(&learner.actor, [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()]);
    set(&learner.critic, [1.0, -2.0, 4.0]);
    (learner, [0.5, 0.3, 0.2], [1.0, -2.0, 4.0])
}

#[test]
fn all_three_have_one_mean_and_the_sum_has_no_variance_of_actions() {
    let (learner, probs, q) = bandit();
    // Each action as often as the policy takes it: means over the batch are the exact ones.
    let actions: Vec<u32> = [[0].repeat(5), [1].repeat(3), [2].repeat(2)].concat();
    let rollout = Rollout {
        observations: vec![1.0; 10],
        rewards: vec![0.0; 10],
        next_observations: vec![1.0; 10],
        terminated: vec![true; 10],
        truncated: vec![false; 10],
        actions: actions.clone(),
    };
    let batch = rollout.batch(&Device::Cpu).unwrap();
    let policy = learner.policy(&batch.observations).unwrap();
    let action_values = learner.critic.forward(&batch.observations).unwrap();
    let value: f64 = (0..3).map(|a| probs[a] * q[a]).sum();
    assert_abs_diff_eq!(
        f64::from(floats(&expectation(&policy, &action_values).unwrap())[0]),
        value,
        epsilon = 1e-6
    );
    // ∂/∂h_k Σ_a π(a) Q(a) = π(k) (Q(k) − V), of each of weight and bias: the observation is 1.
    let exact: Vec<f64> = (0..3).map(|k| probs[k] * (q[k] - value)).collect();
    // Σ_k Var[ w(a) (1[a = k] − π(k)) ], once for the weight and once for the bias, over n − 1
    let variance = |w: [f64; 3]| {
        let deviation = |a: usize, k: usize| w[a] * (f64::from(u8::from(a == k)) - probs[k]) - exact[k];
        let of_action = |a: &u32| (0..3).map(|k| deviation(*a as usize, k).powi(2)).sum::<f64>();
        2.0 * actions.iter().map(of_action).sum::<f64>() / 9.0
    };
    for (gradient, expected) in [
        (Gradient::AllActions, 0.0),
        (Gradient::Sampled, variance(q)),
        (Gradient::Advantage, variance(q.map(|q| q - value))),
    ] {
        let objectives = objectives(&policy, &batch.actions, &action_values, gradient).unwrap();
        let found = learner.actor.parameters.gradients(&objectives.mean_all().unwrap()).unwrap();
        for (i, found) in found.iter().enumerate() {
            assert_abs_diff_eq!(f64::from(*found), exact[i % 3], epsilon = 1e-5);
        }
        let found = learner.gradient_variance(&batch, gradient).unwrap();
        assert_abs_diff_eq!(found, expected, epsilon = 1e-4);
        assert_eq!(expected > 1.0, gradient != Gradient::AllActions);
    }
}

#[test]
fn the_gradient_is_the_one_asked_for() {
    for (flag, gradient) in [
        ("all-actions", Gradient::AllActions),
        ("sampled", Gradient::Sampled),
        ("advantage", Gradient::Advantage),
    ] {
        let (batch, mut learner) = drawn(&[&format!("--gradient={flag}"), "--ent-coef=0"]);
        let policy = learner.policy(&batch.observations).unwrap();
        let action_values = learner.critic.forward(&batch.observations).unwrap();
        let objective =
            objectives(&policy, &batch.actions, &action_values, gradient).unwrap().mean_all().unwrap();
        let expected = learner.actor.parameters.gradients(&objective).unwrap();
        let (loss, entropy) = learner.update_actor(&batch, &action_values).unwrap();
        assert_abs_diff_eq!(loss, -objective.to_scalar::<f32>().unwrap(), epsilon = 1e-6);
        assert_abs_diff_eq!(
            entropy,
            policy.entropy().unwrap().mean_all().unwrap().to_scalar().unwrap(),
            epsilon = 1e-6
        );
        for (found, expected) in first_gradients(&learner.actor.adam).concat().iter().zip(expected) {
            assert_abs_diff_eq!(*found, -expected, epsilon = 1e-5);
        }
    }
}

#[test]
fn a_rollout_holds_what_happened() {
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let learner = learner([3, 3], &[8], &[]);
    let mut rng = learner_rng(1);
    let mut ends = Vec::new();
    for first in [0, 12] {
        let mut rollout = Rollout::default();
        for _ in 0..12 {
            let observations = envs.observations().to_vec();
            let actions = learner.act(&observations, &mut rng).unwrap();
            envs.step(&actions).unwrap();
            rollout.store(&observations, &actions, &envs);
        }
        let batch = rollout.batch(&Device::Cpu).unwrap();
        let (observations, next) = (floats(&batch.observations), floats(&batch.next_observations));
        let (rewards, continues) = (floats(&batch.rewards), floats(&batch.continues));
        let actions = batch.actions.to_vec1::<u32>().unwrap();
        assert_eq!(rewards.len(), 36);
        for env in 0..3 {
            for (t, happened) in log.of(env)[first..].iter().enumerate() {
                let i = 3 * t + env;
                assert_eq!(observations[3 * i..3 * (i + 1)], happened.observation, "{happened:?}");
                assert_eq!(next[3 * i..3 * (i + 1)], happened.next_observation, "{happened:?}");
                assert_eq!(actions[i] as f32, happened.action[0]);
                assert_eq!(rewards[i], happened.reward);
                assert_eq!(continues[i], if happened.terminated { 0.0 } else { 1.0 });
                assert_eq!(rollout.terminated[i], happened.terminated);
                assert_eq!(rollout.truncated[i], happened.truncated);
                ends.push((happened.terminated, happened.truncated));
            }
        }
    }
    assert!([(true, false), (false, true), (true, true)].iter().all(|end| ends.contains(end)));
    assert!((0..3).all(|action| log.of(0).iter().any(|t| t.action[0] == action as f32)));
}

#[test]
fn networks_are_born_apart_and_the_first_policy_is_almost_uniform() {
    let learner = learner([3, 3], &[16, 8], &[]);
    let hidden = |network: &Network| recorded::values(&network.parameters)[1].clone();
    assert_ne!(hidden(&learner.actor), hidden(&learner.critic));
    let observations = Tensor::new(&[[0.5_f32, -0.5, 1.0]], &Device::Cpu).unwrap();
    assert!(floats(&learner.policy(&observations).unwrap().entropy().unwrap())[0] > 3.0_f32.ln() - 1e-3);
    let policy = learner.policy(&observations).unwrap();
    assert_eq!(
        policy.mode().unwrap().to_vec1::<u32>().unwrap(),
        learner.act_greedily(&[0.5, -0.5, 1.0]).unwrap()
    );
}

/// What the defaults do but for a faster critic, and each gradient's variance.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=2560", "--variance-every=10", "--q-lr=0.002", "--eval-episodes=3"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: other gradients, sizes and step sizes that stay.
#[test]
fn pinned_runs_of_sampled_gradients() {
    for gradient in ["sampled", "advantage"] {
        let flags = [
            &*format!("--gradient={gradient}"),
            "--total-timesteps=1200",
            "--num-envs=2",
            "--num-steps=5",
            "--critic-updates=1",
            "--anneal-lr=false",
            "--gamma=0.9",
            "--ent-coef=0.1",
            "--policy-lr=0.004",
            "--q-lr=0.002",
            "--eval-episodes=2",
        ];
        regression::pinned(env!("CARGO_MANIFEST_DIR"), gradient, &flags, train);
    }
}
