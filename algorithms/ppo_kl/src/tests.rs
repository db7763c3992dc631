//! The update against PyTorch's with either divergence, how β adapts, the rollout against what happened, and
//! runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::Space;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["ppo_kl"].iter().chain(flags).map(Into::into)).unwrap()
}

const LAYERS: Layers = &[
    ("actor.hidden0", &["actor/0"]),
    ("actor.hidden1", &["actor/1"]),
    ("actor.output", &["actor/2"]),
    ("critic.hidden0", &["critic/0"]),
    ("critic.output", &["critic/1"]),
];

/// The recorded step is of the actor alone: without entropy and without the critic, which it leaves alone.
fn recorded_update(name: &str, direction: &str) {
    let mut recording = Recording::open(name);
    let flag = |flag: &str, name: &str| format!("--{flag}={}", recording.number(name));
    let flags = [
        "--num-envs=4".to_string(),
        "--ent-coef=0".to_string(),
        "--vf-coef=0".to_string(),
        format!("--kl-direction={direction}"),
        flag("gamma", "gamma"),
        flag("gae-lambda", "lambda"),
        flag("beta", "beta"),
        flag("target-kl", "target_kl"),
        flag("max-grad-norm", "gradient_clip"),
        flag("learning-rate", "learning_rate"),
    ];
    let args = args(&flags.each_ref().map(|flag| &**flag));
    let make = || {
        let ppo = PpoKl::new(&[4, 64, 64, 2], &[4, 32, 1], &args).unwrap();
        recording.set(&ppo.parameters, LAYERS);
        ppo
    };
    let (mut ppo, mut again) = (make(), make());
    assert_eq!(ppo.optimizer.eps, recording.number("adam_epsilon"));

    let logits = recording.tensor("batch/logits").reshape(((), 2)).unwrap();
    let old = logits.broadcast_sub(&logits.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap()).unwrap();
    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
        log_policy: old.flatten_all().unwrap().to_vec1().unwrap(),
        rewards: recording.floats("batch/rewards"),
        next_observations: recording.floats("batch/next_observations"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
    };
    let values = recording.floats("batch/values");
    let advantages = rollout.advantages(&values, &recording.floats("batch/next_values"), &args);
    recording.close("expected/advantages", &advantages);
    // The recorded values are not those of the recorded critic: put their advantages into the batch.
    let mut batch = ppo.batch(&rollout).unwrap();
    batch.advantages = Tensor::from_vec(advantages, 40, &Device::Cpu).unwrap();
    recording.close("expected/normalised_advantages", normalise(&batch.advantages).unwrap());
    let of_actions = batch.log_policy.gather(&batch.actions.unsqueeze(1).unwrap(), 1).unwrap();
    recording.close("batch/log_probabilities", of_actions);

    let new = ppo.log_policy(&batch.observations).unwrap();
    let kl_direction = args.kl_direction;
    let by_row: Vec<Tensor> = (0..40)
        .map(|row| {
            let row = |x: &Tensor| x.narrow(0, row, 1).unwrap();
            kl_divergence(&row(&batch.log_policy), &row(&new), kl_direction).unwrap()
        })
        .collect();
    recording.close("expected/kl_by_row", by_row);
    let kl = kl_divergence(&batch.log_policy, &new, kl_direction).unwrap();
    recording.close("expected/loss/kl", &kl);

    let critic_before = critic_values(&ppo);
    let losses = ppo.update(&batch).unwrap();
    recording.close("expected/loss/policy", losses.policy_loss);
    let total = f64::from(losses.policy_loss) + args.beta * f64::from(kl.to_scalar::<f32>().unwrap());
    recording.close("expected/loss/total", total);
    // Recorded before they are clipped to the norm.
    let norm = f64::from(recording.floats("expected/gradient_norm")[0]);
    let scale = (norm / norm.min(args.max_grad_norm)) as f32;
    let mut gradients = first_gradients(&ppo.optimizer);
    gradients.iter_mut().flatten().for_each(|gradient| *gradient *= scale);
    let names = ppo.parameters.named_vars();
    let step = ppo.optimizer.learning_rate;
    for ((name, var), gradient) in names.iter().zip(gradients) {
        let Some(layer) = name.strip_prefix("actor.") else {
            assert!(gradient.iter().all(|&g| g == 0.0), "{name} has a gradient");
            continue;
        };
        let layer = layer.replace("hidden", "").replace("output", "2");
        let recorded = format!("expected/gradients/actor/{layer}");
        recording.close(&recorded, gradient);
        recording.stepped(&format!("expected/parameters/actor/{layer}"), &recorded, var.as_tensor(), step);
    }
    assert_eq!(critic_values(&ppo), critic_before);

    let kl_after = ppo.update_beta(&batch).unwrap();
    recording.close("expected/kl_after", kl_after);
    recording.close("expected/beta_after", ppo.beta);
    let mut total = || {
        let new = again.log_policy(&batch.observations).unwrap();
        let kl = kl_divergence(&batch.log_policy, &new, kl_direction).unwrap().to_scalar::<f32>().unwrap();
        again.update(&batch).unwrap().policy_loss + args.beta as f32 * kl
    };
    let losses: Vec<f32> = (0..10).map(|_| total()).collect();
    recording.losses("expected/losses_over_updates", losses);
    recording.finish();
}

/// Every parameter of the critic.
fn critic_values(ppo: &PpoKl) -> Vec<(String, Vec<f32>)> {
    recorded::values(&ppo.parameters).into_iter().filter(|(name, _)| name.starts_with("critic")).collect()
}

#[test]
fn recorded_update_with_the_forward_divergence() {
    recorded_update("ppo_kl", "forward");
}

#[test]
fn recorded_update_with_the_reverse_divergence() {
    recorded_update("ppo_kl__reverse", "reverse");
}

#[test]
fn beta_follows_the_recorded_rule() {
    let mut recording = Recording::open("ppo_kl");
    let rule: Vec<f32> = recording.floats("expected/beta_rule"); // rows of KL, its target and the new β
    let mut found = Vec::new();
    for row in rule.chunks_exact(3) {
        let flags = [format!("--beta={}", recording.number("beta")), format!("--target-kl={}", row[1])];
        let args = args(&flags.each_ref().map(|flag| &**flag));
        let mut ppo = PpoKl::new(&[1, 8, 2], &[1, 8, 1], &args).unwrap();
        // An old policy whose divergence from the present one, which is uniform but for 0.01, is the row's.
        let observations = Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap();
        let new = ppo.log_policy(&observations).unwrap();
        let batch_of = |logit: f32| {
            let old = Tensor::new(&[[logit, 0.0]], &Device::Cpu).unwrap();
            let total = old.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
            let x = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
            Batch {
                observations: observations.clone(),
                actions: x.clone(),
                log_policy: old.broadcast_sub(&total).unwrap(),
                advantages: x.clone(),
                returns: x.clone(),
                values: x,
            }
        };
        let (mut low, mut high) = (0.05_f32, 5.0_f32);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            let kl = kl_divergence(&batch_of(middle).log_policy, &new, KlDirection::Forward).unwrap();
            if kl.to_scalar::<f32>().unwrap() < row[0] { low = middle } else { high = middle }
        }
        let kl = ppo.update_beta(&batch_of(low)).unwrap();
        assert_abs_diff_eq!(kl, f64::from(row[0]), epsilon = 1e-4 * f64::from(row[0]) + 1e-6);
        found.extend([f64::from(row[0]), f64::from(row[1]), ppo.beta]);
    }
    recording.close("expected/beta_rule", found);
    recording.finish();
}

#[test]
fn divergences_are_expectations_of_their_own_policy() {
    let log = |p: [f32; 2]| Tensor::new(&[[p[0].ln(), p[1].ln()]], &Device::Cpu).unwrap();
    let (old, new) = ([0.9_f32, 0.1], [0.6_f32, 0.4]);
    let of = |direction| kl_divergence(&log(old), &log(new), direction).unwrap().to_scalar::<f32>().unwrap();
    let forward = 0.9 * (0.9_f32 / 0.6).ln() + 0.1 * (0.1_f32 / 0.4).ln();
    let reverse = 0.6 * (0.6_f32 / 0.9).ln() + 0.4 * (0.4_f32 / 0.1).ln();
    assert_abs_diff_eq!(of(KlDirection::Forward), forward, epsilon = 1e-6);
    assert_abs_diff_eq!(of(KlDirection::Reverse), reverse, epsilon = 1e-6);
}

#[test]
fn entropy_and_value_loss_are_weighed_as_the_flags_say() {
    // Losses are those of the parameters before the step.
    let make = |flags: &[&str]| {
        let flags = [&["--num-envs=1", "--learning-rate=1e-4"], flags].concat();
        PpoKl::new(&[4, 8, 2], &[4, 8, 1], &args(&flags)).unwrap()
    };
    let batch = |ppo: &PpoKl| {
        let rollout = Rollout {
            observations: (0..20).map(|i| (i as f32).sin()).collect(),
            actions: vec![0, 1, 1, 0, 1],
            log_policy: vec![0.5_f32.ln(); 10],
            rewards: vec![1.0, 2.0, -1.0, 0.5, 1.0],
            next_observations: (0..20).map(|i| (i as f32).cos()).collect(),
            terminated: vec![false, false, true, false, false],
            truncated: vec![false, true, false, false, false],
        };
        ppo.batch(&rollout).unwrap()
    };
    let mut ppo = make(&[]);
    let data = batch(&ppo);
    let losses = ppo.update(&data).unwrap();
    let values: Vec<f32> = data.values.to_vec1().unwrap();
    let returns: Vec<f32> = data.returns.to_vec1().unwrap();
    let squares = values.iter().zip(&returns).map(|(v, r)| (v - r).powi(2));
    assert_abs_diff_eq!(losses.value_loss, 0.5 * squares.sum::<f32>() / 5.0, epsilon = 1e-5);
    assert!(losses.entropy > 0.69 && losses.entropy <= 2.0_f32.ln() + 1e-6, "{}", losses.entropy);
    // Gradients of the critic and of the entropy grow with their weights.
    let gradients = |flags: &[&str], part: &str| -> Vec<f32> {
        let mut ppo = make(&[&["--max-grad-norm=1e9", "--norm-adv=false", "--beta=0"], flags].concat());
        let mut data = batch(&ppo);
        data.advantages = data.advantages.zeros_like().unwrap(); // no gradient from the surrogate
        ppo.update(&data).unwrap();
        let names = ppo.parameters.named_vars();
        let of = first_gradients(&ppo.optimizer).into_iter().zip(names);
        of.filter(|(_, (name, _))| name.starts_with(part)).flat_map(|(gradient, _)| gradient).collect()
    };
    for (flag, part) in [("vf-coef", "critic"), ("ent-coef", "actor")] {
        let [one, three] = [1, 3].map(|weight| gradients(&[&format!("--{flag}={weight}")], part));
        assert!(one.iter().any(|g| g.abs() > 1e-6));
        for (one, three) in one.iter().zip(&three) {
            assert_abs_diff_eq!(3.0 * one, *three, epsilon = 1e-5);
        }
    }
    // More entropy makes the loss smaller: a step makes the policy more random.
    let mut ppo =
        make(&["--ent-coef=10", "--beta=0", "--vf-coef=0", "--norm-adv=false", "--learning-rate=0.01"]);
    for (name, var) in ppo.parameters.named_vars() {
        if name == "actor.output.bias" {
            var.set(&Tensor::new(&[1.0_f32, -1.0], &Device::Cpu).unwrap()).unwrap();
        }
    }
    let mut data = batch(&ppo);
    data.advantages = data.advantages.zeros_like().unwrap();
    let entropies: Vec<f32> = (0..3).map(|_| ppo.update(&data).unwrap().entropy).collect();
    assert!(entropies.is_sorted() && entropies[2] > entropies[0] + 1e-3, "{entropies:?}");
}

#[test]
fn the_rollout_holds_what_happened() {
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let ppo = PpoKl::new(&[3, 8, 2], &[3, 8, 1], &args(&["--num-envs=3"])).unwrap();
    let (mut rollout, mut rng) = (Rollout::default(), learner_rng(1));
    for _ in 0..20 {
        let observations = envs.observations().to_vec();
        let (actions, log_policy) = ppo.act(&observations, &mut rng).unwrap();
        envs.step(&actions).unwrap();
        rollout.store(&observations, &actions, &log_policy, &envs);
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
        // ln π of all actions, by the policy that acted
        let log_policy = ppo.log_policy(&ppo.tensor(&t.observation).unwrap()).unwrap();
        let log_policy = log_policy.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, expected) in log_policy.iter().enumerate() {
            assert_abs_diff_eq!(rollout.log_policy[2 * i + a], *expected, epsilon = 1e-5);
        }
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
    assert_eq!(batch.log_policy.to_vec2::<f32>().unwrap().concat(), rollout.log_policy);
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
            log_policy: x.clone(),
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

/// Everything that the defaults do, over four updates, with a step size that falls and a β that adapts.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=1024", "--num-steps=64", "--eval-episodes=3", "--gae-lambda=0.9"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: the reverse divergence, raw advantages, a step size that stays.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--total-timesteps=768",
        "--num-envs=3",
        "--num-steps=32",
        "--num-minibatches=2",
        "--update-epochs=2",
        "--kl-direction=reverse",
        "--beta=0.3",
        "--target-kl=0.002",
        "--norm-adv=false",
        "--anneal-lr=false",
        "--eval-episodes=2",
        "--env-id=Acrobot-v1",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
