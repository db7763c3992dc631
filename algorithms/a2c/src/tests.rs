//! The update against PyTorch's, returns against their definition, the rollout against what happened, both
//! kinds of policy against their formulas, and runs against their pins.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::rng;
use rand::RngExt;
use regression::{Layers, Recording, SCRIPT, View, scripted};

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["a2c"].iter().chain(flags).map(Into::into)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const LAYERS: Layers = &[
    ("actor.hidden0", &["actor/0"]),
    ("actor.hidden1", &["actor/1"]),
    ("actor.output", &["actor/2"]),
    ("critic.hidden0", &["critic/0"]),
    ("critic.hidden1", &["critic/1"]),
    ("critic.output", &["critic/2"]),
];

#[test]
fn recorded_update() {
    let mut recording = Recording::open("a2c");
    let number = |name: &str| recording.number(name);
    let args = args(&[
        "--num-envs=4",
        &format!("--num-steps={}", number("n")),
        &format!("--gamma={}", number("gamma")),
        &format!("--vf-coef={}", number("value_coefficient")),
        &format!("--ent-coef={}", number("entropy_coefficient")),
        &format!("--max-grad-norm={}", number("gradient_clip")),
        &format!("--learning-rate={}", number("learning_rate")),
        &format!("--rms-alpha={}", number("rmsprop_alpha")),
        &format!("--rms-eps={}", number("rmsprop_epsilon")),
    ]);
    let mut a2c = A2c::new(&VecEnv::make("CartPole-v1", 4, 1).unwrap(), &[64, 64], &args).unwrap();
    recording.set(&a2c.parameters, LAYERS);
    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions").iter().map(|&action| action as f32).collect(),
        rewards: recording.floats("batch/rewards"),
        next_observations: recording.floats("batch/next_observations"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
    };
    let values = |observations| floats(&a2c.critic.forward(&a2c.tensor(observations).unwrap()).unwrap());
    let (values, next_values) = (values(&rollout.observations), values(&rollout.next_observations));
    let returns = rollout.returns(&next_values, 4, args.gamma as f32);
    let advantages: Vec<f32> = returns.iter().zip(&values).map(|(r, v)| r - v).collect();
    recording.close("expected/values", &values);
    recording.close("expected/next_values", next_values);
    recording.close("expected/returns", &returns);
    recording.close("expected/advantages", &advantages);

    let (loss, losses) = a2c.loss(&rollout).unwrap();
    recording.close("expected/loss/total", &loss);
    recording.close("expected/loss/policy", losses.policy_loss);
    recording.close("expected/loss/value", losses.value_loss);
    recording.close("expected/loss/entropy", losses.entropy);
    let variance = |x: &[f32]| {
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        x.iter().map(|x| f64::from(x - mean).powi(2)).sum::<f64>()
    };
    let explained = 1.0 - variance(&advantages) / variance(&returns);
    assert_relative_eq!(losses.explained_variance, explained, max_relative = 1e-4, epsilon = 1e-5);
    let flat = a2c.parameters.gradients(&loss).unwrap();
    recording.close("expected/gradient_norm", flat.iter().map(|g| g * g).sum::<f32>().sqrt());
    let mut rest = &flat[..];
    let mut gradients = Vec::new();
    for parameter in a2c.parameters.all_vars() {
        let (own, others) = rest.split_at(parameter.elem_count());
        gradients.push(own.to_vec());
        rest = others;
    }
    recording.gradients("expected/gradients", &a2c.parameters, LAYERS, gradients);
    recording.unmoved(&a2c.parameters, LAYERS);

    // Recorded are ten updates whose returns stay those of the first; here each has its own.
    let first = recording.floats("expected/losses_over_updates")[0];
    recording.computed("the first of losses_over_updates", &loss, first, 2e-5, 1e-6);
    let losses = a2c.update(&rollout).unwrap();
    recording.close("expected/loss/policy", losses.policy_loss);
    // The first step of RMSProp is ten times the step size, but for ε.
    recording.parameters("expected/parameters", &a2c.parameters, LAYERS, 10.0 * args.learning_rate);
    recording.finish();
}

/// R_t as the sum that defines it.
#[test]
fn returns_follow_their_definition() {
    const NUM_ENVS: usize = 3;
    const LEN: usize = 6 * NUM_ENVS;
    let mut rng = rng(5, 0);
    let mut uniform = |scale: f32| -> Vec<f32> { (0..LEN).map(|_| scale * rng.random::<f32>()).collect() };
    let (rewards, next_values) = (uniform(1.0), uniform(10.0));
    let (terminated, truncated): (Vec<bool>, Vec<bool>) =
        (0..LEN).map(|i| (matches!(i, 7 | 12), matches!(i, 5 | 12))).unzip();
    let rollout = Rollout { rewards, terminated, truncated, ..Rollout::default() };
    let returns = rollout.returns(&next_values, NUM_ENVS, 0.9);
    for start in 0..LEN {
        // Σ_k γᵏ r_{t+k} + γⁿ V(s_{t+n}), without the last term after termination
        let (mut expected, mut discount, mut last) = (0.0, 1.0, start);
        for i in (start..LEN).step_by(NUM_ENVS) {
            expected += discount * rollout.rewards[i];
            discount *= 0.9;
            last = i;
            if rollout.terminated[i] || rollout.truncated[i] {
                break;
            }
        }
        if !rollout.terminated[last] {
            expected += discount * next_values[last];
        }
        assert_relative_eq!(returns[start], expected, max_relative = 1e-5);
    }
}

#[test]
fn the_rollout_holds_what_happened() {
    for (continuous, flags) in [(false, &["--num-envs=3"][..]), (true, &["--num-envs=3", "--norm-reward"])] {
        let actions = match continuous {
            true => Space::uniform(2, -0.5, 0.5),
            false => Space::Discrete { n: 3 },
        };
        let (mut envs, log) = scripted(3, View::Vector, actions, SCRIPT);
        let mut a2c = A2c::new(&envs, &[8], &args(flags)).unwrap();
        let (mut rollout, mut rng) = (Rollout::default(), rng(1, 0));
        for _ in 0..20 {
            let observations = envs.observations().to_vec();
            let actions = a2c.act(&observations, &mut rng).unwrap();
            a2c.step(&mut envs, &actions).unwrap();
            rollout.store(&observations, &actions, &a2c.rewards(&envs), &envs);
        }
        let happened = log.transitions();
        // Rewards as they were, or over the spread of what they sum to, one step of all environments at a time.
        let mut rewards: Vec<f32> = happened.iter().map(|t| t.reward).collect();
        let (raw, mut normalize) = (rewards.clone(), NormalizeReward::new(3, 0.99));
        for (step, scaled) in happened.chunks(3).zip(rewards.chunks_mut(3)).filter(|_| a2c.args.norm_reward) {
            let reward: Vec<f32> = step.iter().map(|t| t.reward).collect();
            let terminated: Vec<bool> = step.iter().map(|t| t.terminated).collect();
            let truncated: Vec<bool> = step.iter().map(|t| t.truncated).collect();
            normalize.normalize(&reward, &terminated, &truncated, scaled);
        }
        assert_eq!(rewards != raw, a2c.args.norm_reward);
        assert_eq!(rollout.rewards.len(), happened.len());
        assert!(happened.iter().any(|t| t.terminated && !t.truncated));
        assert!(happened.iter().any(|t| !t.terminated && t.truncated));
        assert!(happened.iter().any(|t| t.terminated && t.truncated));
        let width = happened[0].action.len();
        for (i, t) in happened.iter().enumerate() {
            assert_eq!(rollout.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
            let drawn = &rollout.actions[width * i..width * (i + 1)];
            // What is taken lies within the bounds, what is stored is as drawn.
            let taken: Vec<f32> =
                drawn.iter().map(|a| if continuous { a.clamp(-0.5, 0.5) } else { *a }).collect();
            assert_eq!(taken, t.action, "{t:?}");
            assert_eq!(rollout.rewards[i], rewards[i], "{t:?}");
            assert_eq!(rollout.next_observations[3 * i..3 * (i + 1)], t.next_observation, "{t:?}");
            assert_eq!((rollout.terminated[i], rollout.truncated[i]), (t.terminated, t.truncated), "{t:?}");
        }
        let beyond = rollout.actions.iter().filter(|action| action.abs() > 0.5).count();
        assert!(beyond > 10 && beyond < rollout.actions.len(), "{beyond}");
        assert!(rollout.actions.iter().any(|action| *action != rollout.actions[0]));
    }
}

/// A learner on scripted environments whose policy is the same in every state: logits or means `outputs`.
fn learner(actions: Space, outputs: &[f32], log_std: &[f32]) -> A2c {
    let (envs, _) = scripted(1, View::Vector, actions, SCRIPT);
    let a2c = A2c::new(&envs, &[8], &args(&[])).unwrap();
    for (name, parameter) in a2c.parameters.named_vars() {
        let value = match name.as_str() {
            "actor.output.weight" => parameter.zeros_like().unwrap(),
            "actor.output.bias" => Tensor::new(outputs, &Device::Cpu).unwrap(),
            "log_std" => Tensor::new(log_std, &Device::Cpu).unwrap(),
            _ => continue,
        };
        parameter.set(&value).unwrap();
    }
    a2c
}

#[test]
fn a_gaussian_is_its_formula() {
    let (means, stds) = ([0.3_f32, -0.2], [0.5_f32, 2.0]);
    let a2c = learner(Space::uniform(2, -1.0, 1.0), &means, &stds.map(f32::ln));
    let states = a2c.tensor(&[0.0; 6]).unwrap(); // two of them
    let policy = a2c.policy(&states).unwrap();
    let actions = [0.1_f32, 1.5, -0.7, -3.0];
    let log_probs = floats(&policy.log_prob(&actions).unwrap());
    for (action, found) in actions.chunks(2).zip(log_probs) {
        let density = |j: usize| {
            let z = (action[j] - means[j]) / stds[j];
            (-0.5 * z * z).exp() / (stds[j] * (2.0 * PI as f32).sqrt())
        };
        assert_abs_diff_eq!(found, (density(0) * density(1)).ln(), epsilon = 1e-5);
    }
    assert_eq!(policy.mode().unwrap(), [0.3, -0.2, 0.3, -0.2]);
    // −E[ln π(a)] is the entropy; means and spreads of what is drawn are μ and σ.
    let n = 20_000;
    let states = a2c.tensor(&vec![0.0; 3 * n]).unwrap();
    let policy = a2c.policy(&states).unwrap();
    let drawn = policy.sample(&mut rng(1, 0)).unwrap();
    let surprise = -floats(&policy.log_prob(&drawn).unwrap()).iter().sum::<f32>() / n as f32;
    assert_abs_diff_eq!(surprise, policy.entropy().unwrap().to_scalar::<f32>().unwrap(), epsilon = 0.03);
    for j in 0..2 {
        let own = || drawn.iter().skip(j).step_by(2);
        let mean = own().sum::<f32>() / n as f32;
        let variance = own().map(|a| (a - mean).powi(2)).sum::<f32>() / n as f32;
        assert_abs_diff_eq!(mean, means[j], epsilon = 4.0 * stds[j] / (n as f32).sqrt());
        assert_relative_eq!(variance.sqrt(), stds[j], max_relative = 0.02);
    }
    // Greedy actions keep within the bounds.
    let a2c = learner(Space::uniform(2, -1.0, 1.0), &[0.3, -7.0], &[0.0; 2]);
    assert_eq!(a2c.act_greedily(&[0.0; 3]).unwrap(), [0.3, -1.0]);
}

#[test]
fn a_softmax_is_its_formula() {
    let a2c = learner(Space::Discrete { n: 3 }, &[0.0, 1.0, -1.0], &[]);
    let n = 5000;
    let policy = a2c.policy(&a2c.tensor(&vec![0.0; 3 * n]).unwrap()).unwrap();
    let total = 1.0 + 1.0_f32.exp() + (-1.0_f32).exp();
    let probs = [1.0 / total, 1.0_f32.exp() / total, (-1.0_f32).exp() / total];
    let drawn = policy.sample(&mut rng(1, 0)).unwrap();
    for (action, prob) in probs.iter().enumerate() {
        let share = drawn.iter().filter(|&&drawn| drawn == action as f32).count() as f32 / n as f32;
        assert_abs_diff_eq!(share, prob, epsilon = 0.03);
    }
    let log_probs = floats(&policy.log_prob(&drawn).unwrap());
    assert!(drawn.iter().zip(log_probs).all(|(&a, found)| (found - probs[a as usize].ln()).abs() < 1e-5));
    let entropy = -probs.iter().map(|p| p * p.ln()).sum::<f32>();
    assert_abs_diff_eq!(policy.entropy().unwrap().to_scalar::<f32>().unwrap(), entropy, epsilon = 1e-5);
    assert!(policy.mode().unwrap().iter().all(|&action| action == 1.0));
}

/// σ learns with the rest: a continuous action that was better than expected becomes more probable.
#[test]
fn an_update_of_a_gaussian_favours_what_was_good() {
    let (mut envs, _) = scripted(4, View::Vector, Space::uniform(2, -9.0, 9.0), SCRIPT);
    let flags = ["--num-envs=4", "--num-steps=1", "--ent-coef=0", "--vf-coef=0", "--max-grad-norm=1000"];
    let mut a2c = A2c::new(&envs, &[8], &args(&flags)).unwrap();
    let observations = envs.observations().to_vec();
    let actions = a2c.act(&observations, &mut rng(1, 0)).unwrap();
    a2c.step(&mut envs, &actions).unwrap();
    let mut rollout = Rollout::default();
    rollout.store(&observations, &actions, envs.rewards(), &envs);
    rollout.rewards = vec![100.0, -1.0, -1.0, -1.0];
    rollout.terminated = vec![true; 4];
    let log_probs = |a2c: &A2c| {
        floats(&a2c.policy(&a2c.tensor(&observations).unwrap()).unwrap().log_prob(&actions).unwrap())
    };
    let (before, spread) = (log_probs(&a2c)[0], floats(a2c.log_std.as_ref().unwrap()));
    a2c.update(&rollout).unwrap();
    assert!(log_probs(&a2c)[0] > before);
    assert_ne!(floats(a2c.log_std.as_ref().unwrap()), spread);
}

#[test]
fn observations_are_scaled_only_where_it_is_asked_for() {
    let states = [100.0, -2.0, 0.5, 300.0, -4.0, 2.0];
    for (flags, norm_obs) in [(&["--norm-obs"][..], true), (&[][..], false)] {
        let (envs, _) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
        let mut a2c = A2c::new(&envs, &[8], &args(flags)).unwrap();
        a2c.normalize_observation.statistics.update(&states);
        // Of the first column mean and standard deviation are 200 and 100, and so on. What Gymnasium's
        // statistics begin with, a 1e-4th of a sample at 0 with variance 1, is hardly to be seen.
        let scaled = [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0];
        let expected = if norm_obs { scaled } else { states };
        for (found, expected) in floats(&a2c.tensor(&states).unwrap()).iter().zip(expected) {
            assert_abs_diff_eq!(*found, expected, epsilon = 5e-3);
        }
    }
}

/// What the defaults do, the step size falling.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=3000", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Continuous actions, and what the defaults leave out.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Pendulum-v1",
        "--num-envs=3",
        "--num-steps=7",
        "--total-timesteps=3000",
        "--anneal-lr=false",
        "--learning-rate=0.002",
        "--rms-alpha=0.9",
        "--rms-eps=0.001",
        "--gamma=0.9",
        "--ent-coef=0.1",
        "--vf-coef=0.3",
        "--max-grad-norm=2",
        "--norm-obs",
        "--norm-reward",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
