//! The update against PyTorch's with each kind of weights, what weights do to the gradient's mean, what a
//! rollout holds, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["off_policy_pg"].iter().chain(flags).map(Into::into)).unwrap()
}

fn learner(observation_dim: usize, num_actions: usize, flags: &[&str]) -> OffPolicyPg {
    OffPolicyPg::new(observation_dim, num_actions, &args(flags)).unwrap()
}

const POLICY: Layers = &[("hidden", &["actor/0"]), ("output", &["actor/1"])];

fn recorded_update(name: &str, kind: Weights) {
    let mut recording = Recording::open(name);
    let learning_rate = recording.number("learning_rate");
    let flags = [
        format!("--gamma={}", recording.number("gamma")),
        format!("--learning-rate={learning_rate}"),
        format!("--weights={}", kind.to_possible_value().unwrap().get_name()),
        "--hidden-size=24".to_string(),
        "--updates-per-batch=1".to_string(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let make = || {
        let learner = learner(4, 2, &flags);
        recording.set(&learner.policy.parameters, POLICY);
        learner
    };
    let (mut learner, mut again) = (make(), make());
    assert_eq!(learner.policy.adam.eps, recording.number("adam_epsilon"));
    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
        log_probs: recording.floats("batch/behaviour_log_probabilities"),
        rewards: recording.floats("batch/rewards"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
    };
    let lengths: Vec<f32> = rollout.episodes().iter().map(|episode| episode.len() as f32).collect();
    let recorded_lengths = recording.integers("batch/episode_lengths");
    assert_eq!(lengths, recorded_lengths.iter().map(|&n| n as f32).collect::<Vec<_>>());

    let weights = learner.weights(&rollout).unwrap();
    recording.close("expected/ratios", &weights.ratios);
    let importance = rollout.importance_weights(&weights.ratios, kind);
    recording.close("expected/importance_weights", &importance);
    recording.close("expected/returns", rollout.weighted_returns(&[1.0; 33], learner.args.gamma as f32));
    recording.close("expected/weights", &weights.x);
    // (Σ w)² / (n Σ w²) of the episodes, where each is one sample, or else of the steps
    let samples: Vec<f32> = match kind {
        Weights::Trajectory => rollout.episodes().iter().map(|e| importance[e.end - 1]).collect(),
        _ => importance,
    };
    let (sum, squares) = (samples.iter().sum::<f32>(), samples.iter().map(|w| w * w).sum::<f32>());
    let share = f64::from(sum * sum / squares) / samples.len() as f64;
    assert_abs_diff_eq!(weights.effective_share, share, epsilon = 1e-5);
    assert!(share < 0.99);

    let (losses, updates) = learner.update(&rollout).unwrap();
    assert_eq!((updates, losses.effective_share), (1, weights.effective_share));
    recording.close("expected/loss/total", losses.policy_loss);
    let policy = &learner.policy;
    recording.gradients("expected/gradients", &policy.parameters, POLICY, first_gradients(&policy.adam));
    recording.parameters("expected/parameters", &policy.parameters, POLICY, learning_rate);
    // Over the ten updates the weights are those of the first policy.
    let total = |_| again.update_policy(&rollout, &weights).unwrap().policy_loss;
    let losses: Vec<f32> = (0..10).map(total).collect();
    recording.losses("expected/losses_over_updates", losses);
    recording.finish();
}

#[test]
fn recorded_update_with_weights_of_whole_trajectories() {
    recorded_update("off_policy_pg", Weights::Trajectory);
}

#[test]
fn recorded_update_with_weights_of_each_decision() {
    recorded_update("off_policy_pg__per_decision", Weights::PerDecision);
}

#[test]
fn recorded_update_with_weights_of_each_decision_and_reward() {
    recorded_update("off_policy_pg__per_decision_rewards", Weights::PerDecisionRewards);
}

/// An episode of three steps that terminates, one of two that is cut off, and one of one that is both.
fn short_rollout() -> Rollout {
    Rollout {
        observations: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        actions: vec![0, 1, 1, 0, 1, 0],
        log_probs: vec![0.5_f32.ln(); 6],
        rewards: vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
        terminated: vec![false, false, true, false, false, true],
        truncated: vec![false, false, false, false, true, true],
    }
}

/// What is not recorded: states as they were met, and no weights at all.
#[test]
fn weights_and_returns_are_by_hand() {
    let (rollout, ratios) = (short_rollout(), [2.0, 3.0, 0.5, 4.0, 0.25, 7.0]);
    assert_eq!(rollout.episodes(), [0..3, 3..5, 5..6]);
    let weights = |kind| rollout.importance_weights(&ratios, kind);
    assert_eq!(weights(Weights::Trajectory), [3.0, 3.0, 3.0, 1.0, 1.0, 7.0]);
    assert_eq!(weights(Weights::PerDecision), [2.0, 6.0, 3.0, 4.0, 1.0, 7.0]);
    assert_eq!(weights(Weights::PerDecisionRewards), weights(Weights::PerDecision));
    assert_eq!(weights(Weights::PerStep), ratios);
    assert_eq!(weights(Weights::None), [1.0; 6]);
    // 1 + 0.5 · 3 · (2 + 0.5 · 0.5 · 4), …
    assert_eq!(rollout.weighted_returns(&ratios, 0.5), [5.5, 3.0, 4.0, 10.0, 16.0, 32.0]);
    assert_eq!(rollout.weighted_returns(&[1.0; 6], 0.5), [3.0, 4.0, 4.0, 16.0, 16.0, 32.0]);
    assert_abs_diff_eq!(effective_share(&[2.0, 2.0, 2.0]), 1.0);
    assert_abs_diff_eq!(effective_share(&[0.0, 5.0, 0.0, 0.0]), 0.25);
    assert_abs_diff_eq!(effective_share(&[1.0, 3.0]), 16.0 / 20.0);
    assert_eq!(effective_share(&[0.0, 0.0]), 0.0);
    assert_eq!(effective_share(&[f32::INFINITY, 1.0]), 0.0);
    let half = 0.5_f64;
    let expected = ((2.0 - 1.0 - 2.0_f64.ln()) + (half - 1.0 - half.ln())) / 2.0;
    assert_abs_diff_eq!(approx_kl(&[2.0, 0.5]), expected, epsilon = 1e-6);
    assert!((80.0..90.0).contains(&approx_kl(&[0.0])));
}

#[test]
fn each_kind_weighs_its_own_returns() {
    let rollout = short_rollout();
    for (kind, returns) in [
        ("trajectory", [3.0_f32, 3.0, 3.0, 16.0, 16.0, 32.0]),
        ("per-decision", [3.0, 4.0, 4.0, 16.0, 16.0, 32.0]),
        ("per-step", [3.0, 4.0, 4.0, 16.0, 16.0, 32.0]),
        ("none", [3.0, 4.0, 4.0, 16.0, 16.0, 32.0]),
    ] {
        let learner = learner(1, 2, &[&format!("--weights={kind}"), "--gamma=0.5"]);
        let found = learner.weights(&rollout).unwrap();
        let importance = rollout.importance_weights(&found.ratios, learner.args.weights);
        let expected: Vec<f32> = importance.iter().zip(returns).map(|(w, g)| w * g).collect();
        assert_eq!(found.x, expected, "{kind}");
        // The policy is not quite the uniform one that played.
        assert_eq!(found.effective_share == 1.0, kind == "none", "{kind}");
    }
}

/// A policy of the short corridor with these first parameters: every state looks alike.
fn corridor(kind: &str, preference: f32) -> OffPolicyPg {
    let learner = learner(1, 2, &[&format!("--weights={kind}"), "--gamma=1", "--hidden-size=1"]);
    for (name, var) in learner.policy.parameters.named_vars() {
        let values = match &*name {
            "output.bias" => Tensor::new(&[-preference, preference], &Device::Cpu).unwrap(),
            _ => var.zeros_like().unwrap(),
        };
        var.set(&values).unwrap();
    }
    learner
}

#[test]
fn weights_make_the_gradient_that_of_the_other_policy() {
    // J(p) = (2p − 4) / (p (1 − p)), and p is the logistic function of twice the preference.
    let (behaviour, target) = (0.0, -0.1_f32);
    let value = |h: f64| {
        let p = 1.0 / (1.0 + (-2.0 * h).exp());
        (2.0 * p - 4.0) / (p * (1.0 - p))
    };
    // By the output's bias of the right alone: half of dJ/dh, for the left moves it as well.
    let slope = |h: f64| (value(h + 1e-5) - value(h - 1e-5)) / 2e-5 / 2.0;
    let (mut envs, mut rng) = (VecEnv::make("ShortCorridor-v0", 1, 1).unwrap(), rng(1, 1));
    let player = corridor("none", behaviour);
    let mut rollout = Rollout::default();
    let n = 20_000;
    let mut played = 0;
    while played < n {
        let observation = envs.observations().to_vec();
        let (action, log_prob) = player.act(&observation, &mut rng).unwrap();
        envs.step(&action).unwrap();
        rollout.store(&observation, &action, &log_prob, &envs);
        played += envs.episodes().len();
    }
    let estimate = |kind: &str| {
        let learner = corridor(kind, target);
        let x = learner.weights(&rollout).unwrap().x;
        let p = 1.0 / (1.0 + (-2.0 * f64::from(target)).exp());
        // ∂ ln π(a) / ∂h_right = 1[a = right] − p, one estimate for each episode
        let score = |t: usize| f64::from(x[t]) * (f64::from(rollout.actions[t]) - p);
        let each: Vec<f64> = rollout.episodes().into_iter().map(|episode| episode.map(score).sum()).collect();
        let mean = each.iter().sum::<f64>() / n as f64;
        let variance = each.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
        (mean, (variance / n as f64).sqrt())
    };
    let expected = slope(f64::from(target));
    // What the others leave out is to be seen, most where nothing is weighed.
    let off = ["per-decision", "per-step", "none"].map(|kind| (estimate(kind).0 - expected).abs());
    assert!(off[0] < off[1] && 0.5 < off[1] && off[1] < off[2], "{off:?}");
    let mut errors = Vec::new();
    for kind in ["trajectory", "per-decision-rewards"] {
        let (mean, error) = estimate(kind);
        assert!((mean - expected).abs() < 4.0 * error, "{kind}: {mean} ± {error}, not {expected}");
        assert!(error < expected.abs() / 4.0, "{kind}: {error} is too coarse to tell");
        errors.push(error);
    }
    // Rewards weighed by what came before them alone have less variance: of ten seeds the error is 0.48 to 0.76
    // times that of whole trajectories, 0.54 on average (standard deviation 0.08).
    assert!(errors[1] < 0.9 * errors[0], "{errors:?}");
}

#[test]
fn updates_go_on_until_the_weights_leave_too_little() {
    let rollout = short_rollout();
    let run = |flags: &[&str]| {
        let all = [&["--weights=trajectory", "--learning-rate=0.1", "--updates-per-batch=9"], flags].concat();
        let mut learner = learner(1, 2, &all);
        let (losses, updates) = learner.update(&rollout).unwrap();
        (losses, updates, learner.weights(&rollout).unwrap().effective_share)
    };
    let (_, updates, _) = run(&["--min-effective-share=0"]);
    assert_eq!(updates, 9);
    let (losses, updates, left) = run(&["--min-effective-share=0.9"]);
    assert!((1..9).contains(&updates), "{updates}");
    assert!(losses.effective_share >= 0.9 && left < 0.9, "{} {left}", losses.effective_share);
    let (losses, updates, _) = run(&["--updates-per-batch=3", "--min-effective-share=0"]);
    assert_eq!(updates, 3);
    // The last one's weights are of a policy that has moved.
    assert!(losses.approx_kl > 1e-3 && losses.effective_share < 1.0);
}

#[test]
fn a_rollout_holds_what_happened() {
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let learner = learner(3, 3, &[]);
    let (mut rollout, mut rng) = (Rollout::default(), learner_rng(1));
    for _ in 0..20 {
        let observation = envs.observations().to_vec();
        let (action, log_prob) = learner.act(&observation, &mut rng).unwrap();
        envs.step(&action).unwrap();
        rollout.store(&observation, &action, &log_prob, &envs);
    }
    for (t, happened) in log.of(0).iter().enumerate() {
        assert_eq!(rollout.observations[3 * t..3 * (t + 1)], happened.observation, "{happened:?}");
        assert_eq!(rollout.actions[t] as f32, happened.action[0]);
        assert_eq!(rollout.rewards[t], happened.reward);
        assert_eq!((rollout.terminated[t], rollout.truncated[t]), (happened.terminated, happened.truncated));
        assert_eq!(rollout.done(t), happened.terminated || happened.truncated);
    }
    // The policy has not moved, so all of its ratios are 1.
    rollout.terminated[19] = true;
    assert!(learner.weights(&rollout).unwrap().ratios.iter().all(|ratio| (ratio - 1.0).abs() < 1e-6));
    let ends: Vec<_> = log.of(0).iter().map(|t| (t.terminated, t.truncated)).collect();
    assert_eq!(ends.len(), rollout.rewards.len());
    assert!([(true, false), (false, true), (true, true)].iter().all(|end| ends.contains(end)));
    assert!((0..3).all(|action| log.of(0).iter().any(|t| t.action[0] == action as f32)));
}

#[test]
fn the_first_policy_is_almost_uniform() {
    let learner = learner(3, 3, &[]);
    let policy = learner.distribution(&[0.5, -0.5, 1.0]).unwrap();
    assert!(policy.entropy().unwrap().to_vec1::<f32>().unwrap()[0] > 3.0_f32.ln() - 1e-3);
    assert!(recorded::values(&learner.policy.parameters).iter().any(|(_, v)| v.iter().any(|x| *x != 0.0)));
    let mode = policy.mode().unwrap().to_vec1::<u32>().unwrap();
    assert_eq!(mode, learner.act_greedily(&[0.5, -0.5, 1.0]).unwrap());
}

/// What the defaults do, over a few batches.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=1000", "--batch-episodes=4", "--eval-episodes=3"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Each kind of weights, and step sizes that stay.
#[test]
fn pinned_runs_of_each_kind_of_weights() {
    for kind in ["trajectory", "per-decision", "per-step", "none"] {
        let flags = [
            &*format!("--weights={kind}"),
            "--total-timesteps=600",
            "--batch-episodes=3",
            "--updates-per-batch=6",
            "--min-effective-share=0.8",
            "--learning-rate=0.004",
            "--anneal-lr=false",
            "--gamma=0.95",
            "--hidden-size=32",
            "--eval-episodes=2",
        ];
        regression::pinned(env!("CARGO_MANIFEST_DIR"), kind, &flags, train);
    }
}
