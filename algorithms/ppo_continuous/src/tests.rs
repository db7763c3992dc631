//! PPO's update against PyTorch's, its rollout and statistics against what happened, and runs against
//! their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::rng;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["ppo_continuous"].iter().chain(flags).map(Into::into)).unwrap()
}

/// Networks for observations of three numbers and actions of two in [-1, 1].
fn learner(hidden_size: usize, flags: &[&str]) -> Ppo {
    Ppo::new(3, hidden_size, &Space::uniform(2, -1.0, 1.0), &args(flags)).unwrap()
}

const LAYERS: Layers = &[
    ("actor.hidden1", &["actor/0"]),
    ("actor.hidden2", &["actor/1"]),
    ("actor.output", &["actor/2"]),
    ("log_std", &["actor/log_std"]),
    ("critic.hidden1", &["critic/0"]),
    ("critic.hidden2", &["critic/1"]),
    ("critic.output", &["critic/2"]),
];

/// A learner with the recorded parameters, and the recorded rollout with its advantages as a batch.
fn recorded_learner(recording: &mut Recording) -> (Ppo, Batch) {
    let number = |name: &str| recording.number(name).to_string();
    let ppo = learner(
        64,
        &[
            "--num-envs=4",
            &format!("--gamma={}", number("gamma")),
            &format!("--gae-lambda={}", number("lambda")),
            &format!("--clip-coef={}", number("clip")),
            &format!("--vf-coef={}", number("value_coefficient")),
            &format!("--ent-coef={}", number("entropy_coefficient")),
            &format!("--max-grad-norm={}", number("gradient_clip")),
            &format!("--learning-rate={}", number("learning_rate")),
        ],
    );
    assert_eq!(ppo.optimizer.eps, recording.number("adam_epsilon"));
    recording.set(&ppo.parameters, LAYERS);
    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.floats("batch/actions"),
        log_probs: recording.floats("batch/log_probabilities"),
        rewards: recording.floats("batch/rewards"),
        next_observations: recording.floats("batch/next_observations"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
    };
    let values = recording.floats("batch/values");
    let advantages = rollout.advantages(&values, &recording.floats("batch/next_values"), &ppo.args);
    recording.close("expected/advantages", &advantages);
    // The recorded values are not those of the recorded networks: put them into the batch.
    let mut batch = ppo.batch(&rollout).unwrap();
    batch.advantages = Tensor::from_vec(advantages, 48, &Device::Cpu).unwrap();
    batch.returns = (&batch.advantages + Tensor::from_vec(values, 48, &Device::Cpu).unwrap()).unwrap();
    recording.close("expected/returns", &batch.returns);
    (ppo, batch)
}

#[test]
fn recorded_update_of_two_minibatches() {
    let mut recording = Recording::open("ppo_continuous");
    let (mut ppo, batch) = recorded_learner(&mut recording);
    let indices = recording.integers("batch/minibatch_indices");
    let minibatches = [0, 24].map(|start| batch.select(&indices[start..start + 24]).unwrap());
    recording.close("expected/normalised_advantages", normalise(&minibatches[0].advantages).unwrap());
    let mean = ppo.actor.forward(&minibatches[0].observations).unwrap();
    let log_probs = ppo.log_prob(&mean, &minibatches[0].actions).unwrap();
    recording.close("expected/log_probabilities", &log_probs);
    recording.close("expected/ratios", (log_probs - &minibatches[0].log_probs).unwrap().exp().unwrap());
    for (i, minibatch) in minibatches.iter().enumerate() {
        let losses = ppo.update(minibatch).unwrap();
        let folder = ["expected/loss", "expected/loss_second"][i];
        recording.close(&format!("{folder}/policy"), losses.policy_loss);
        recording.close(&format!("{folder}/value"), losses.value_loss);
        recording.close(&format!("{folder}/entropy"), losses.entropy);
        recording.close(&format!("{folder}/approximate_kl"), losses.approx_kl);
        recording.close(&format!("{folder}/clip_fraction"), losses.clipfrac);
        let step = ppo.optimizer.learning_rate;
        if i == 0 {
            // Recorded before they are clipped to the norm.
            let norm = f64::from(recording.floats("expected/gradient_norm")[0]);
            let scale = (norm / norm.min(recording.number("gradient_clip"))) as f32;
            let mut gradients = first_gradients(&ppo.optimizer);
            gradients.iter_mut().flatten().for_each(|gradient| *gradient *= scale);
            recording.gradients("expected/gradients", &ppo.parameters, LAYERS, gradients);
            recording.parameters("expected/parameters_after_first", &ppo.parameters, LAYERS, step);
        } else {
            recording.parameters_within("expected/parameters", &ppo.parameters, LAYERS, step, 4e-3);
        }
    }
    recording.finish();
}

#[test]
fn recorded_update_ten_times() {
    let mut recording = Recording::open("ppo_continuous");
    let (mut ppo, batch) = recorded_learner(&mut recording);
    let indices = recording.integers("batch/minibatch_indices");
    let minibatch = batch.select(&indices[..24]).unwrap();
    let (vf_coef, ent_coef) = (ppo.args.vf_coef as f32, ppo.args.ent_coef as f32);
    let losses: Vec<f32> = (0..10)
        .map(|_| ppo.update(&minibatch).unwrap())
        .map(|losses| losses.policy_loss + vf_coef * losses.value_loss - ent_coef * losses.entropy)
        .collect();
    recording.losses("expected/losses_over_updates", losses);
    recording.finish();
}

/// The statistics of observations, and of rewards where an episode is truncated. At a termination the
/// recording keeps γ G + r, but the file, like Gymnasium, drops G: the difference is computed.
#[test]
fn recorded_update_of_the_statistics() {
    let mut recording = Recording::open("ppo_continuous__normalisation");
    let gamma = recording.number("gamma");
    let flags = ["--num-envs=1".to_string(), format!("--gamma={gamma}")];
    let mut ppo = learner(8, &[&flags[0], &flags[1]]);
    assert_eq!(f64::from(ppo.normalize_observation.clip), recording.number("clip"));
    assert_eq!(ppo.normalize_observation.statistics.count, recording.number("count_at_start"));
    let observations: Vec<f32> = recording
        .floats("batch/observations")
        .chunks(3)
        .flat_map(|observation| {
            ppo.normalize_observation.statistics.update(observation);
            ppo.normalised(observation)
        })
        .collect();
    recording.close("expected/observations", observations);
    recording.close("expected/observation_mean", &ppo.normalize_observation.statistics.mean);
    recording.close("expected/observation_variance", &ppo.normalize_observation.statistics.var);

    let (rewards, ended) = (recording.floats("batch/rewards"), recording.flags("batch/ended"));
    let normalised = |terminated: bool| {
        let mut normalize = learner(8, &[&flags[0], &flags[1]]).normalize_reward;
        let normalised = rewards.iter().zip(&ended).map(|(reward, &ended)| {
            let mut normalised = [0.0];
            let (terminated, truncated) = (ended && terminated, ended && !terminated);
            normalize.normalize(&[*reward], &[terminated], &[truncated], &mut normalised);
            normalised[0]
        });
        (normalised.collect::<Vec<f32>>(), normalize.statistics.var)
    };
    let (truncated, variance) = normalised(false);
    recording.close("expected/rewards", truncated);
    recording.close("expected/return_variance", variance);
    // Mean and variance of all G so far, the initial 0 and 1 with a weight of 1e-4.
    let (mut g, mut all, mut expected) = (0.0, Vec::new(), Vec::new());
    for (&reward, &ended) in rewards.iter().zip(&ended) {
        g = if ended { f64::from(reward) } else { gamma * g + f64::from(reward) };
        all.push(g);
        let count = all.len() as f64 + 1e-4;
        let mean = all.iter().sum::<f64>() / count;
        let squares = all.iter().map(|g| (g - mean).powi(2)).sum::<f64>() + 1e-4 * (1.0 + mean * mean);
        expected.push((f64::from(reward) / (squares / count + 1e-8).sqrt()).clamp(-10.0, 10.0));
        g = if ended { 0.0 } else { g };
    }
    recording.computed("rewards with terminations", normalised(true).0, expected, 1e-4, 1e-6);
    recording.finish();
}

#[test]
fn the_rollout_holds_what_happened_as_the_statistics_of_the_moment_normalise_it() {
    let actions = Space::bounded(&[-0.5, -1.0], &[1.0, 0.25]);
    let (mut envs, log) = scripted(3, View::Vector, actions.clone(), SCRIPT);
    let mut ppo = Ppo::new(3, 8, &actions, &args(&["--num-envs=3"])).unwrap();
    let (mut rollout, mut rng) = (Rollout::default(), rng(1, 0));
    ppo.normalize_observation.statistics.update(envs.observations());
    let mut seen = envs.observations().to_vec(); // all that the statistics are of
    let mut expected_next = Vec::new();
    for _ in 0..20 {
        let observations = ppo.normalised(envs.observations());
        let (actions, log_probs) = ppo.act(&observations, &mut rng).unwrap();
        let mut clipped = actions.clone();
        ppo.action_space.clip(&mut clipped);
        envs.step(&clipped).unwrap();
        ppo.store(&mut rollout, &observations, &actions, &log_probs, &envs);
        seen.extend_from_slice(envs.observations());
        // The true last observations are normalised, but are no part of the statistics.
        for (i, x) in envs.final_observations().iter().enumerate() {
            let column = || seen.iter().skip(i % 3).step_by(3).map(|&x| f64::from(x));
            let mean = column().sum::<f64>() / column().count() as f64;
            let variance = column().map(|x| (x - mean).powi(2)).sum::<f64>() / column().count() as f64;
            expected_next.push((f64::from(*x) - mean) / (variance + 1e-8).sqrt());
        }
    }
    let happened = log.transitions();
    assert_eq!(rollout.rewards.len(), happened.len());
    assert!(happened.iter().any(|t| t.terminated && !t.truncated));
    assert!(happened.iter().any(|t| !t.terminated && t.truncated));
    assert!(happened.iter().any(|t| t.terminated && t.truncated));
    let mut beyond = 0;
    for (i, t) in happened.iter().enumerate() {
        assert_eq!((rollout.terminated[i], rollout.truncated[i]), (t.terminated, t.truncated), "{t:?}");
        let next_observation = &rollout.next_observations[3 * i..3 * (i + 1)];
        for (found, expected) in next_observation.iter().zip(&expected_next[3 * i..]) {
            assert_abs_diff_eq!(f64::from(*found), expected.clamp(-10.0, 10.0), epsilon = 2e-3);
        }
        if i + 3 < happened.len() && !t.terminated && !t.truncated {
            assert_eq!(next_observation, &rollout.observations[3 * (i + 3)..3 * (i + 4)], "{t:?}");
        }
        // The action is the one that was drawn, and so is its probability.
        let action = &rollout.actions[2 * i..2 * (i + 1)];
        let mut clipped = action.to_vec();
        ppo.action_space.clip(&mut clipped);
        assert_eq!(clipped, t.action, "{t:?}");
        beyond += usize::from(clipped != action);
        let observation = ppo.tensor(&rollout.observations[3 * i..3 * (i + 1)]).unwrap();
        let mean = ppo.actor.forward(&observation).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // σ = 1: ln π = Σ_j −½ (a_j − μ_j)² − ½ ln 2π
        let squares: f32 = action.iter().zip(mean).map(|(a, mean)| (a - mean).powi(2)).sum();
        assert_abs_diff_eq!(rollout.log_probs[i], -0.5 * squares - (2.0 * PI).ln() as f32, epsilon = 1e-5);
    }
    assert!(beyond > 20, "{beyond} actions were beyond their bounds");
    // Rewards, by an instance of their own of what the recording holds.
    let mut normalize = NormalizeReward::new(3, ppo.args.gamma);
    let mut rewards = [0.0; 3];
    for (t, step) in happened.chunks(3).enumerate() {
        let of = |f: fn(&regression::scripted::Transition) -> bool| step.iter().map(f).collect::<Vec<_>>();
        let raw: Vec<f32> = step.iter().map(|t| t.reward).collect();
        normalize.normalize(&raw, &of(|t| t.terminated), &of(|t| t.truncated), &mut rewards);
        assert_eq!(rollout.rewards[3 * t..3 * (t + 1)], rewards);
    }

    // What is learned from is the same, with the critic's own values.
    let batch = ppo.batch(&rollout).unwrap();
    let value = |observations: &[f32]| {
        let values = ppo.critic.forward(&ppo.tensor(observations).unwrap()).unwrap();
        values.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let values = value(&rollout.observations);
    let advantages = rollout.advantages(&values, &value(&rollout.next_observations), &ppo.args);
    assert_eq!(batch.advantages.to_vec1::<f32>().unwrap(), advantages);
    let returns: Vec<f32> = advantages.iter().zip(&values).map(|(a, v)| a + v).collect();
    assert_eq!(batch.returns.to_vec1::<f32>().unwrap(), returns);
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(flat(&batch.observations), rollout.observations);
    assert_eq!(flat(&batch.actions), rollout.actions);
    assert_eq!(batch.actions.dims(), [60, 2]);
    assert_eq!(flat(&batch.log_probs), rollout.log_probs);
}

#[test]
fn advantages_with_lambda_1_are_returns_minus_values() {
    // One environment: a truncation after two steps, a termination after one more, one step of a third.
    let rollout = Rollout {
        rewards: vec![1.0, 2.0, 4.0, 8.0],
        terminated: vec![false, false, true, false],
        truncated: vec![false, true, false, false],
        ..Rollout::default()
    };
    let (values, next_values) = ([0.1, 0.2, 0.3, 0.4], [0.2, 10.0, 20.0, 30.0]);
    let args = args(&["--num-envs=1", "--gamma=0.5", "--gae-lambda=1"]);
    let advantages = rollout.advantages(&values, &next_values, &args);
    let expected =
        [1.0 + 0.5 * (2.0 + 0.5 * 10.0) - 0.1, 2.0 + 0.5 * 10.0 - 0.2, 4.0 - 0.3, 8.0 + 0.5 * 30.0 - 0.4];
    for (advantage, expected) in advantages.iter().zip(expected) {
        assert_abs_diff_eq!(*advantage, expected, epsilon = 1e-5);
    }
}

/// Sets ln σ and leaves the means as they are.
fn with_log_std(ppo: &Ppo, log_std: &[f32]) {
    for (name, var) in ppo.parameters.named_vars() {
        if name == "log_std" {
            var.set(&Tensor::new(log_std, &Device::Cpu).unwrap()).unwrap();
        }
    }
}

#[test]
fn actions_are_drawn_with_the_mean_and_the_spread_and_evaluated_without() {
    let ppo = learner(8, &[]);
    with_log_std(&ppo, &[0.5_f32.ln(), 0.1_f32.ln()]);
    let n = 20_000;
    let observation = [0.3, -1.0, 2.0];
    let mean = ppo.actor.forward(&ppo.tensor(&observation).unwrap()).unwrap();
    let mean = mean.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (actions, _) = ppo.act(&observation.repeat(n), &mut rng(1, 0)).unwrap();
    for (j, std) in [0.5, 0.1].into_iter().enumerate() {
        let column = || actions[j..].iter().step_by(2).map(|&a| f64::from(a - mean[j]));
        // Four standard errors.
        assert_abs_diff_eq!(column().sum::<f64>() / n as f64, 0.0, epsilon = 4.0 * std / (n as f64).sqrt());
        let spread = (column().map(|a| a * a).sum::<f64>() / n as f64).sqrt();
        assert_abs_diff_eq!(spread, std, epsilon = 4.0 * std / (2.0 * n as f64).sqrt());
    }
    assert_eq!(ppo.act_greedily(&observation).unwrap(), mean);
    // Bounds that the mean is beyond.
    let actions = Space::bounded(&[0.5, -1.0], &[1.0, -0.5]);
    let ppo = Ppo::new(3, 8, &actions, &args(&[])).unwrap();
    assert_eq!(ppo.act_greedily(&observation).unwrap(), [0.5, -0.5]);
}

#[test]
fn the_density_integrates_to_1_and_its_logarithm_to_minus_the_entropy() {
    let mut ppo = learner(8, &[]);
    with_log_std(&ppo, &[-0.3, 0.2]);
    let cell = 0.08; // of 200 × 200 over [-8, 8]²
    let axis = || (0..200).map(|i| -8.0 + (i as f32 + 0.5) * 0.08);
    let actions: Vec<f32> = axis().flat_map(|x| axis().flat_map(move |y| [x, y])).collect();
    let means = Tensor::from_vec([0.4_f32, -1.0].repeat(40_000), (40_000, 2), &Device::Cpu).unwrap();
    let actions = Tensor::from_vec(actions, (40_000, 2), &Device::Cpu).unwrap();
    let log_probs = ppo.log_prob(&means, &actions).unwrap().to_vec1::<f32>().unwrap();
    let log_probs = || log_probs.iter().map(|&l| f64::from(l));
    assert_abs_diff_eq!(log_probs().map(f64::exp).sum::<f64>() * cell * cell, 1.0, epsilon = 1e-4);
    let entropy = -log_probs().map(|l| l * l.exp()).sum::<f64>() * cell * cell;
    let x = Tensor::new(&[0.5_f32, 1.0], &Device::Cpu).unwrap();
    let batch = Batch {
        observations: Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap(),
        actions: Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap(),
        log_probs: x.clone(),
        advantages: x.clone(),
        returns: x,
    };
    assert_abs_diff_eq!(f64::from(ppo.update(&batch).unwrap().entropy), entropy, epsilon = 1e-4);
}

/// The recording has no entropy bonus: a large one raises σ, whatever the advantages.
#[test]
fn the_entropy_is_a_bonus() {
    let mut ppo = learner(8, &["--ent-coef=10"]);
    let x = Tensor::new(&[0.5_f32, -1.0], &Device::Cpu).unwrap();
    let batch = Batch {
        observations: Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap(),
        actions: Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap(),
        log_probs: x.clone(),
        advantages: x.clone(),
        returns: x,
    };
    ppo.update(&batch).unwrap();
    assert!(ppo.log_std.to_vec1::<f32>().unwrap().iter().all(|log_std| *log_std > 0.0));
}

#[test]
fn normalised_advantages_have_mean_0_and_deviation_1() {
    let x = Tensor::new(&[1.0_f32, 2.0, 3.0, 10.0], &Device::Cpu).unwrap();
    let x = normalise(&x).unwrap().to_vec1::<f32>().unwrap();
    assert_abs_diff_eq!(x.iter().sum::<f32>(), 0.0, epsilon = 1e-6);
    assert_abs_diff_eq!(x.iter().map(|x| x * x).sum::<f32>() / 3.0, 1.0, epsilon = 1e-5);
    let one = Tensor::new(&[3.0_f32], &Device::Cpu).unwrap();
    assert_eq!(normalise(&one).unwrap().to_vec1::<f32>().unwrap(), [3.0]);
}

#[test]
fn explained_variance_does_not_count_a_constant_error() {
    let of = |values: [f32; 4]| {
        let returns = Tensor::new(&[1.0_f32, 2.0, 3.0, 4.0], &Device::Cpu).unwrap();
        let advantages = (&returns - Tensor::new(&values, &Device::Cpu).unwrap()).unwrap();
        let x = returns.clone();
        let batch = Batch { observations: x.clone(), actions: x.clone(), log_probs: x, advantages, returns };
        explained_variance(&batch).unwrap()
    };
    assert_abs_diff_eq!(of([6.0, 7.0, 8.0, 9.0]), 1.0, epsilon = 1e-6);
    assert_abs_diff_eq!(of([5.0; 4]), 0.0, epsilon = 1e-6);
    assert_abs_diff_eq!(of([1.0, 2.0, 3.0, 2.0]), 1.0 - 0.75 / 1.25, epsilon = 1e-6);
}

/// Everything that the defaults do, over four updates, with a step size that falls and actions beyond
/// their bounds; the statistics are in the model.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=512", "--num-steps=128", "--num-minibatches=4", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: several environments, an entropy bonus, an early end of
/// the epochs, raw advantages, a step size that stays.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=MountainCarContinuous-v0",
        "--total-timesteps=384",
        "--num-envs=3",
        "--num-steps=32",
        "--num-minibatches=2",
        "--update-epochs=4",
        "--target-kl=0.0005",
        "--norm-adv=false",
        "--anneal-lr=false",
        "--ent-coef=0.05",
        "--learning-rate=0.001",
        "--gamma=0.95",
        "--gae-lambda=0.8",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
