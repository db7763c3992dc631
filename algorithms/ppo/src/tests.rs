//! PPO's update against PyTorch's, its rollout against what happened, and a run against its pin.

use super::*;
use approx::assert_abs_diff_eq;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["ppo"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

/// Networks for observations of four numbers and two actions.
fn ppo(flags: &[&str]) -> Ppo {
    Ppo::new(&Space::uniform(4, -1.0, 1.0), 2, &[64, 64], &args(flags)).unwrap()
}

const LAYERS: Layers = &[
    ("actor.hidden0", &["actor/0"]),
    ("actor.hidden1", &["actor/1"]),
    ("actor.output", &["actor/2"]),
    ("critic.hidden0", &["critic/0"]),
    ("critic.hidden1", &["critic/1"]),
    ("critic.output", &["critic/2"]),
];

/// Two minibatches after the advantages of a rollout with terminations and truncations.
fn recorded_update(name: &str, clip_vloss: bool) {
    let mut recording = Recording::open(name);
    let number = |name: &str| recording.number(name).to_string();
    assert_eq!(recording.flag("clip_value_loss"), clip_vloss);
    let mut ppo = ppo(&[
        "--num-envs=4",
        &format!("--gamma={}", number("gamma")),
        &format!("--gae-lambda={}", number("lambda")),
        &format!("--clip-coef={}", number("clip")),
        &format!("--vf-coef={}", number("value_coefficient")),
        &format!("--ent-coef={}", number("entropy_coefficient")),
        &format!("--max-grad-norm={}", number("gradient_clip")),
        &format!("--learning-rate={}", number("learning_rate")),
        &format!("--clip-vloss={clip_vloss}"),
    ]);
    assert_eq!(ppo.optimizer.eps, recording.number("adam_epsilon"));
    recording.set(&ppo.parameters, LAYERS);

    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
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
    batch.values = Tensor::from_vec(values, 48, &Device::Cpu).unwrap();
    batch.returns = (&batch.advantages + &batch.values).unwrap();
    recording.close("expected/returns", &batch.returns);

    let indices = recording.integers("batch/minibatch_indices");
    let minibatches = [0, 24].map(|start| batch.select(&indices[start..start + 24]).unwrap());
    recording.close("expected/normalised_advantages", normalise(&minibatches[0].advantages).unwrap());
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
fn recorded_update_of_two_minibatches() {
    recorded_update("ppo", false);
}

#[test]
fn recorded_update_with_a_clipped_value_loss() {
    recorded_update("ppo__clip_vloss", true);
}

#[test]
fn the_rollout_holds_what_happened() {
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let space = envs.spec().observation_space.clone();
    let ppo = Ppo::new(&space, 2, &[8], &args(&["--num-envs=3"])).unwrap();
    let (mut rollout, mut rng) = (Rollout::default(), learner_rng(1));
    for _ in 0..20 {
        let observations = envs.observations().to_vec();
        let (actions, log_probs) = ppo.act(&observations, &mut rng).unwrap();
        envs.step(&actions).unwrap();
        rollout.store(&observations, &actions, &log_probs, &envs);
    }
    let happened = log.transitions();
    assert_eq!(rollout.rewards.len(), happened.len());
    assert!(happened.iter().any(|t| t.terminated && !t.truncated));
    assert!(happened.iter().any(|t| !t.terminated && t.truncated));
    assert!(happened.iter().any(|t| t.terminated && t.truncated));
    for (i, t) in happened.iter().enumerate() {
        assert_eq!(rollout.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
        assert_eq!(rollout.actions[i] as f32, t.action[0], "{t:?}");
        assert_eq!(rollout.rewards[i], t.reward, "{t:?}");
        assert_eq!(rollout.next_observations[3 * i..3 * (i + 1)], t.next_observation, "{t:?}");
        assert_eq!((rollout.terminated[i], rollout.truncated[i]), (t.terminated, t.truncated), "{t:?}");
        // ln π of the action that was taken, by the policy that took it
        let policy = Categorical::new(&ppo.actor.forward(&ppo.tensor(&t.observation).unwrap()).unwrap());
        let action = Tensor::new(&[t.action[0] as u32], &Device::Cpu).unwrap();
        let log_prob = policy.unwrap().log_prob(&action).unwrap().to_vec1::<f32>().unwrap()[0];
        assert_abs_diff_eq!(rollout.log_probs[i], log_prob, epsilon = 1e-5);
    }
    // What is learned from is the same, with the critic's own values.
    let batch = ppo.batch(&rollout).unwrap();
    let values = ppo.values(&rollout.observations).unwrap();
    let next_values = ppo.values(&rollout.next_observations).unwrap();
    assert_eq!(batch.values.to_vec1::<f32>().unwrap(), values);
    let advantages = rollout.advantages(&values, &next_values, &ppo.args);
    assert_eq!(batch.advantages.to_vec1::<f32>().unwrap(), advantages);
    let returns: Vec<f32> = advantages.iter().zip(&values).map(|(a, v)| a + v).collect();
    assert_eq!(batch.returns.to_vec1::<f32>().unwrap(), returns);
    assert_eq!(batch.actions.to_vec1::<u32>().unwrap(), rollout.actions);
    assert_eq!(batch.log_probs.to_vec1::<f32>().unwrap(), rollout.log_probs);
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
    let column = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
    let of = |values: &[f32]| {
        let x = column(&[0.0; 4]);
        let batch = Batch {
            observations: x.clone(),
            actions: x.clone(),
            log_probs: x.clone(),
            advantages: x,
            returns: column(&[1.0, 2.0, 3.0, 4.0]),
            values: column(values),
        };
        explained_variance(&batch).unwrap()
    };
    assert_abs_diff_eq!(of(&[6.0, 7.0, 8.0, 9.0]), 1.0, epsilon = 1e-6);
    assert_abs_diff_eq!(of(&[5.0; 4]), 0.0, epsilon = 1e-6);
    assert_abs_diff_eq!(of(&[1.0, 2.0, 3.0, 2.0]), 1.0 - 0.75 / 1.25, epsilon = 1e-6);
}

#[test]
fn an_image_is_scaled_and_goes_through_a_convolution() {
    let parameters = VarMap::new(2);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let space = |high| Space::Box { shape: vec![10, 10, 4], low: vec![0.0; 400], high: vec![high; 400] };
    let image = Tensor::full(0.5_f32, (2, 10, 10, 4), &Device::Cpu).unwrap();
    let network = Network::new(&space(1.0), &[128], 3, 1.0, vb.clone()).unwrap();
    let outputs = network.forward(&image).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!((outputs.len(), outputs[0].len()), (2, 3));
    assert!(parameters.named_vars().iter().any(|(name, _)| name == "convolution.weight"));
    // The same picture in bytes, seen by the same network.
    let network = Network::new(&space(255.0), &[128], 3, 1.0, vb).unwrap();
    let of_bytes = network.forward(&(image * 255.0).unwrap()).unwrap().to_vec2::<f32>().unwrap();
    for (of_bytes, output) in of_bytes[0].iter().zip(&outputs[0]) {
        assert_abs_diff_eq!(of_bytes, output, epsilon = 1e-5);
    }
}

#[test]
fn a_matrix_is_seen_as_one_row() {
    let of = |shape: &[usize]| {
        let space = Space::Box { shape: shape.to_vec(), low: vec![-1.0; 6], high: vec![1.0; 6] };
        let ppo = Ppo::new(&space, 2, &[8], &args(&[])).unwrap();
        ppo.values(&[0.1, -0.2, 0.3, -0.4, 0.5, -0.6]).unwrap()
    };
    assert_eq!(of(&[2, 3]), of(&[6]));
}

/// Everything that the defaults do, over four updates, with a step size that falls.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=1024", "--num-steps=64", "--eval-episodes=3", "--gae-lambda=0.9"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: an early end of the epochs, raw advantages, a clipped critic, a step
/// size that stays.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--total-timesteps=768",
        "--num-envs=3",
        "--num-steps=32",
        "--num-minibatches=2",
        "--target-kl=0.002",
        "--norm-adv=false",
        "--clip-vloss",
        "--anneal-lr=false",
        "--eval-episodes=2",
        "--env-id=Acrobot-v1",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
