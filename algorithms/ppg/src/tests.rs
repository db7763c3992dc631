//! Both phases against PyTorch's, the rollout against what happened, and runs against their pins.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use regression::{Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["ppg"].iter().chain(flags).map(Into::into)).unwrap()
}

fn ppg(observation_dim: usize, num_actions: usize, hidden: &[usize], flags: &[&str]) -> Ppg {
    let space = Space::uniform(observation_dim, -1.0, 1.0);
    Ppg::new(&space, num_actions, hidden, &args(flags), &mut learner_rng(1)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Of a parameter the recorded tensor in `folder`. There the logits' and the auxiliary head's layers are one.
fn recorded(recording: &Recording, folder: &str, parameter: &str) -> Tensor {
    let (layer, kind) = parameter.rsplit_once('.').unwrap();
    let (recorded, rows) = match layer {
        "actor.hidden0" => ("policy/0", 0..32),
        "actor.hidden1" => ("policy/1", 0..32),
        "actor.output" => ("policy/2", 0..2),
        "auxiliary" => ("policy/2", 2..3),
        "critic.hidden0" => ("critic/0", 0..32),
        "critic.hidden1" => ("critic/1", 0..32),
        "critic.output" => ("critic/2", 0..1),
        _ => panic!("{parameter}"),
    };
    let tensor = recording.tensor(&format!("{folder}/{recorded}.{kind}"));
    tensor.narrow(0, rows.start, rows.len()).unwrap()
}

fn set(recording: &Recording, ppg: &Ppg) {
    for parameters in [&ppg.actor_parameters, &ppg.critic_parameters] {
        for (name, var) in parameters.named_vars() {
            var.set(&recorded(recording, "parameters", &name)).unwrap();
        }
    }
}

/// Gradients of the first step, and parameters after it.
fn compare(recording: &mut Recording, parameters: &VarMap, adam: &Adam) {
    for ((name, var), gradient) in parameters.named_vars().into_iter().zip(first_gradients(adam)) {
        let expected = floats(&recorded(recording, "expected/gradients", &name));
        recording.computed(&format!("gradient of {name}"), &gradient, &expected, 1e-4, 1e-6);
        let after = floats(&recorded(recording, "expected/parameters", &name));
        // Below 1e-5 Adam turns rounding into whole steps.
        let share = |i: usize| if expected[i].abs() > 1e-5 { 2e-3 } else { 2.0 };
        for (i, found) in floats(&var).iter().enumerate() {
            let what = format!("{name}[{i}] after the step");
            recording.computed(&what, *found, after[i], 1e-7, share(i) * adam.learning_rate);
        }
    }
}

fn rollout(recording: &Recording) -> Rollout {
    Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
        log_probs: recording.floats("batch/log_probabilities"),
        rewards: recording.floats("batch/rewards"),
        next_observations: recording.floats("batch/next_observations"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
    }
}

fn recorded_ppg(recording: &Recording) -> Ppg {
    let number = |name: &str| recording.number(name);
    let ppg = ppg(
        4,
        2,
        &[32, 32],
        &[
            "--num-envs=4",
            &format!("--gamma={}", number("gamma")),
            &format!("--gae-lambda={}", number("lambda")),
            &format!("--clip-coef={}", number("clip")),
            &format!("--ent-coef={}", number("entropy_coefficient")),
            &format!("--beta-clone={}", number("beta_clone")),
            &format!("--learning-rate={}", number("learning_rate")),
        ],
    );
    for adam in [&ppg.actor_optimizer, &ppg.auxiliary_optimizer, &ppg.critic_optimizer] {
        assert_eq!(adam.eps, number("adam_epsilon"));
    }
    set(recording, &ppg);
    ppg
}

#[test]
fn recorded_update_of_the_policy_phase() {
    let mut recording = Recording::open("ppg");
    let mut ppg = recorded_ppg(&recording);
    let rollout = rollout(&recording);
    let ([observations, actions, log_probs, advantages, returns], explained) = ppg.columns(&rollout).unwrap();
    recording.close("expected/normalised_advantages", &advantages);
    recording.close("expected/returns", &returns);
    let (values, next_values) = (recording.floats("batch/values"), recording.floats("batch/next_values"));
    let raw = rollout.advantages(&values, &next_values, &ppg.args);
    recording.close("expected/advantages", &raw);
    let variance = |x: &[f32]| {
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        x.iter().map(|x| (x - mean).powi(2)).sum::<f32>()
    };
    assert_relative_eq!(explained, 1.0 - variance(&raw) / variance(&floats(&returns)), epsilon = 1e-4);

    let auxiliary = floats(ppg.auxiliary.weight());
    let entropy_coefficient = recording.number("entropy_coefficient") as f32;
    let mut totals = Vec::new();
    for i in 0..10 {
        let columns = [&observations, &actions, &log_probs, &advantages].map(Tensor::clone);
        let losses = ppg.update_policy(&columns).unwrap();
        let value_loss = ppg.update_critic(&[observations.clone(), returns.clone()]).unwrap();
        totals.push(losses.policy_loss - entropy_coefficient * losses.entropy + value_loss);
        if i == 0 {
            recording.close("expected/loss/policy", losses.policy_loss);
            recording.close("expected/loss/entropy", losses.entropy);
            recording.close("expected/loss/value", value_loss);
            recording.close("expected/loss/total", totals[0]);
            compare(&mut recording, &ppg.actor_parameters, &ppg.actor_optimizer);
            compare(&mut recording, &ppg.critic_parameters, &ppg.critic_optimizer);
        }
    }
    recording.losses("expected/losses_over_updates", &totals);
    assert_eq!(floats(ppg.auxiliary.weight()), auxiliary);
    recording.finish();
}

#[test]
fn recorded_update_of_the_auxiliary_phase() {
    let mut recording = Recording::open("ppg__auxiliary");
    let mut ppg = recorded_ppg(&recording);
    let rollout = rollout(&recording);
    let ([observations, _, _, advantages, returns], _) = ppg.columns(&rollout).unwrap();
    recording.close("expected/normalised_advantages", &advantages);
    recording.close("expected/returns", &returns);
    let logits = recording.tensor("batch/logits").reshape((40, 2)).unwrap();
    let log_policy = log_softmax(&logits).unwrap();
    let mut totals = Vec::new();
    for i in 0..10 {
        let minibatch = [&observations, &returns, &log_policy].map(Tensor::clone);
        let (auxiliary_loss, kl) = ppg.update_auxiliary(&minibatch).unwrap();
        let value_loss = ppg.update_critic(&[observations.clone(), returns.clone()]).unwrap();
        totals.push(auxiliary_loss + recording.number("beta_clone") as f32 * kl + value_loss);
        if i == 0 {
            recording.close("expected/loss/auxiliary_value", auxiliary_loss);
            recording.close("expected/loss/kl", kl);
            recording.close("expected/loss/value", value_loss);
            recording.close("expected/loss/total", totals[0]);
            compare(&mut recording, &ppg.actor_parameters, &ppg.auxiliary_optimizer);
            compare(&mut recording, &ppg.critic_parameters, &ppg.critic_optimizer);
        }
    }
    recording.losses("expected/losses_over_updates", &totals);
    recording.finish();
}

/// β weighs the clone alone: without it the policy is free, with much of it nothing but the head may move.
#[test]
fn the_auxiliary_phase_keeps_the_policy_as_beta_says() {
    let kl_after = |beta: &str| {
        let flag = format!("--beta-clone={beta}");
        let mut ppg = ppg(4, 2, &[16], &[&flag, "--learning-rate=0.01"]);
        let observations: Vec<f32> = (0..80).map(|i| (i as f32 * 0.7).sin()).collect();
        let observations = ppg.tensor(&observations).unwrap();
        let returns = Tensor::arange(0.0_f32, 20.0, &Device::Cpu).unwrap();
        let old = ppg.old_log_policy(&observations).unwrap();
        let before = floats(&old);
        let minibatch = [observations.clone(), returns, old];
        let losses = (0..300).map(|_| ppg.update_auxiliary(&minibatch).unwrap()).last().unwrap();
        // The old policy is what it was, while the policy has moved away from it.
        assert_eq!(floats(&minibatch[2]), before);
        assert_ne!(floats(&ppg.old_log_policy(&observations).unwrap()), before);
        losses
    };
    let ((free_loss, free_kl), (held_loss, held_kl)) = (kl_after("0"), kl_after("1000"));
    assert!(free_kl > 1e-6 && held_kl < 0.2 * free_kl, "{free_kl}, {held_kl}");
    // The head learned more than the mean of the returns, which would leave ½ Var = 16.6.
    assert!(free_loss < 16.0 && held_loss < 16.0, "{free_loss}, {held_loss}");
}

#[test]
fn ratios_beyond_the_clip_are_counted() {
    let mut ppg = ppg(4, 2, &[8], &["--learning-rate=0", "--clip-coef=0.2"]);
    let observations = ppg.tensor(&[0.3; 16]).unwrap(); // four times the same state
    let actions = Tensor::new(&[0_u32, 0, 0, 0], &Device::Cpu).unwrap();
    let policy = Categorical::new(&ppg.actor.forward(&observations).unwrap()).unwrap();
    let ratios = [1.0_f32, 1.1, 1.3, 0.7];
    let shift = Tensor::new(&ratios.map(f32::ln), &Device::Cpu).unwrap();
    let log_probs = (policy.log_prob(&actions).unwrap() - shift).unwrap();
    let advantages = Tensor::new(&[1.0_f32, 1.0, 1.0, -1.0], &Device::Cpu).unwrap();
    let losses = ppg.update_policy(&[observations, actions, log_probs, advantages]).unwrap();
    assert_abs_diff_eq!(losses.clipfrac, 0.5);
    let kl = ratios.iter().map(|ratio| ratio - 1.0 - ratio.ln()).sum::<f32>() / 4.0;
    assert_abs_diff_eq!(losses.approx_kl, kl, epsilon = 1e-5);
    // min(ρ Â, clip(ρ) Â): 1, 1.1, 1.2 and −0.8
    assert_abs_diff_eq!(losses.policy_loss, -(1.0 + 1.1 + 1.2 - 0.8) / 4.0, epsilon = 1e-5);
}

#[test]
fn a_minibatch_has_the_rows_asked_for() {
    let column = Tensor::arange(0.0_f32, 4.0, &Device::Cpu).unwrap();
    let matrix = Tensor::arange(0_u32, 8, &Device::Cpu).unwrap().reshape((4, 2)).unwrap();
    let [column, matrix] = select([&column, &matrix], &[2, 0]).unwrap();
    assert_eq!(floats(&column), [2.0, 0.0]);
    assert_eq!(matrix.to_vec2::<u32>().unwrap(), [[4, 5], [0, 1]]);
}

#[test]
fn the_rollout_holds_what_happened() {
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let ppg = ppg(3, 2, &[8], &["--num-envs=3"]);
    let (mut rollout, mut rng) = (Rollout::default(), learner_rng(1));
    for _ in 0..20 {
        let observations = envs.observations().to_vec();
        let (actions, log_probs) = ppg.act(&observations, &mut rng).unwrap();
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
        let policy = Categorical::new(&ppg.actor.forward(&ppg.tensor(&t.observation).unwrap()).unwrap());
        let action = Tensor::new(&[t.action[0] as u32], &Device::Cpu).unwrap();
        let log_prob = floats(&policy.unwrap().log_prob(&action).unwrap())[0];
        assert_abs_diff_eq!(rollout.log_probs[i], log_prob, epsilon = 1e-5);
    }
    assert!(rollout.actions.contains(&0) && rollout.actions.contains(&1));
    let ([observations, actions, log_probs, advantages, _], _) = ppg.columns(&rollout).unwrap();
    assert_eq!(floats(&observations), rollout.observations);
    assert_eq!(actions.to_vec1::<u32>().unwrap(), rollout.actions);
    assert_eq!(floats(&log_probs), rollout.log_probs);
    let advantages = floats(&advantages);
    assert_abs_diff_eq!(advantages.iter().sum::<f32>(), 0.0, epsilon = 1e-4);
    assert_abs_diff_eq!(advantages.iter().map(|a| a * a).sum::<f32>() / 59.0, 1.0, epsilon = 1e-4);
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
fn the_greedy_action_is_the_most_probable() {
    let ppg = ppg(4, 3, &[8], &[]);
    let observations: Vec<f32> = (0..400).map(|i| (i as f32 * 0.7).sin()).collect();
    let greedy = ppg.act_greedily(&observations).unwrap();
    let logits = ppg.actor.forward(&ppg.tensor(&observations).unwrap()).unwrap().to_vec2::<f32>().unwrap();
    for (action, logits) in greedy.iter().zip(logits) {
        assert!(logits.iter().all(|logit| *logit <= logits[*action as usize]));
    }
    assert!(greedy.iter().any(|action| *action != greedy[0]));
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
        let ppg = Ppg::new(&space, 2, &[8], &args(&[]), &mut learner_rng(1)).unwrap();
        let observation = ppg.tensor(&[0.1, -0.2, 0.3, -0.4, 0.5, -0.6]).unwrap();
        floats(&ppg.critic.forward(&observation).unwrap())
    };
    assert_eq!(of(&[2, 3]), of(&[6]));
}

/// Everything that the defaults do, with two auxiliary phases.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=1024", "--num-steps=16", "--eval-episodes=3"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Images, minibatches of different sizes, several passes, a step size that stays.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=MinAtar/Breakout-v1",
        "--total-timesteps=384",
        "--num-envs=3",
        "--num-steps=16",
        "--num-minibatches=5",
        "--n-iteration=3",
        "--e-policy=2",
        "--e-auxiliary=2",
        "--beta-clone=0.5",
        "--gamma=0.9",
        "--gae-lambda=0.8",
        "--clip-coef=0.1",
        "--ent-coef=0.1",
        "--anneal-lr=false",
        "--learning-rate=0.001",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
