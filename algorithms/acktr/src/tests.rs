//! The update against PyTorch's, the Kronecker factors against the Fisher matrix that they stand for, the
//! rollout against what happened, and runs against their pins.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::{Space, rng};
use rand::RngExt;
use regression::{Layers, Recording, SCRIPT, View, scripted};

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["acktr"].iter().chain(flags).map(Into::into)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn normal(n: usize, seed: u64) -> Tensor {
    Init::Randn { mean: 0.0, stdev: 1.0 }.tensor(n, &mut rng(seed, 0), &Device::Cpu).unwrap()
}

/// One layer of three inputs and two outputs.
fn network() -> Network {
    let vb = |map| VarBuilder::from_varmap(map, DType::F32, &Device::Cpu);
    Network::new(&[3, 2], 1.0, vb(&VarMap::new(1)), vb(&VarMap::new(2))).unwrap()
}

const LAYERS: Layers = &[
    ("actor.0", &["actor/0"]),
    ("actor.1", &["actor/1"]),
    ("actor.2", &["actor/2"]),
    ("critic.0", &["critic/0"]),
    ("critic.1", &["critic/1"]),
];

/// One update with factors of its batch alone. Where `product`, the recording damps the Kronecker product
/// itself, (G ⊗ X + λ I)⁻¹, and this file its factors, as the paper: all but the inverses is compared, and
/// the step is taken along the recorded natural gradients.
fn recorded_update(name: &str, product: bool) {
    let mut recording = Recording::open(name);
    assert_eq!(recording.number("value_coefficient"), 0.5);
    assert_eq!(recording.text("damping_form").starts_with("of the Kronecker product"), product);
    let number = |name: &str| recording.number(name);
    let args = args(&[
        "--num-envs=4",
        &format!("--num-steps={}", number("n")),
        &format!("--gamma={}", number("gamma")),
        &format!("--ent-coef={}", number("entropy_coefficient")),
        &format!("--learning-rate={}", number("largest_step")),
        &format!("--kl-clip={}", number("delta")),
        &format!("--vf-kl-clip={}", number("delta")),
        &format!("--damping={}", number("damping")),
    ]);
    let mut acktr = Acktr::new([&[4, 24, 16, 2], &[4, 24, 1]], &args).unwrap();
    recording.set(&acktr.parameters, LAYERS);
    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
        rewards: recording.floats("batch/rewards"),
        next_observations: recording.floats("batch/next_observations"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
    };

    let fisher_actions = recording.integers("expected/fisher_actions");
    let noise = recording.tensor("noise/normal");
    acktr.update_factors(&rollout.observations, &fisher_actions, &noise).unwrap();
    for (network, name) in [(&acktr.actor, "actor"), (&acktr.critic, "critic")] {
        for (l, layer) in network.layers.iter().enumerate() {
            recording.close(&format!("expected/factor_a/{name}/{l}"), layer.x.as_tensor());
            recording.close(&format!("expected/factor_g/{name}/{l}"), layer.g.as_tensor());
        }
    }
    recording.unmoved(&acktr.parameters, LAYERS);

    let (loss, losses) = acktr.loss(&rollout).unwrap();
    recording.close("expected/loss/total", &loss);
    recording.close("expected/loss/policy", losses.policy_loss);
    recording.close("expected/loss/value", losses.value_loss);
    recording.close("expected/loss/entropy", losses.entropy);
    let values = |observations| floats(&acktr.critic.forward(&acktr.tensor(observations).unwrap()).unwrap());
    let returns = rollout.returns(&values(&rollout.next_observations), 4, args.gamma as f32);
    recording.close("expected/returns", &returns);
    let advantages: Vec<f32> =
        returns.iter().zip(values(&rollout.observations)).map(|(r, v)| r - v).collect();
    recording.close("expected/advantages", &advantages);
    let variance = |x: &[f32]| {
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        x.iter().map(|x| f64::from(x - mean).powi(2)).sum::<f64>()
    };
    let explained = 1.0 - variance(&advantages) / variance(&returns);
    assert_relative_eq!(f64::from(losses.explained_variance), explained, max_relative = 1e-4, epsilon = 1e-5);
    let store = backward(&loss).unwrap();
    recording.gradients("expected/gradients", &acktr.parameters, LAYERS, &store);

    let mut step_sizes = [0.0; 2];
    for (i, (network, name)) in [(&acktr.actor, "actor"), (&acktr.critic, "critic")].into_iter().enumerate() {
        let (natural_gradients, quadratic) = network.natural_gradients(&store).unwrap();
        if product {
            let quadratic = recording.floats(&format!("expected/quadratic/{name}"))[0];
            step_sizes[i] = acktr.step_size(f64::from(quadratic), args.kl_clip).unwrap();
            let recorded = |l| recording.tensor(&format!("expected/natural_gradient/{name}/{l}"));
            let recorded: Vec<Tensor> = (0..network.layers.len()).map(recorded).collect();
            network.descend(&recorded, step_sizes[i]).unwrap();
        } else {
            recording.close(&format!("expected/quadratic/{name}"), quadratic);
            for (l, u) in natural_gradients.iter().enumerate() {
                // Differences of large numbers, in single precision.
                recording.within(&format!("expected/natural_gradient/{name}/{l}"), u, 1e-4, 1e-5);
            }
        }
    }
    if !product {
        step_sizes = acktr.update(&rollout).unwrap().1;
    }
    let clipped = name == "acktr__largest_step";
    for (step_size, name) in step_sizes.into_iter().zip(["actor", "critic"]) {
        recording.close(&format!("expected/step_size/{name}"), step_size);
        assert_eq!(step_size == args.learning_rate, clipped, "{name}: {step_size}");
    }
    recording.parameters_close("expected/parameters", &acktr.parameters, LAYERS, 2e-6);
    recording.finish();
}

#[test]
fn recorded_update_with_damped_factors() {
    recorded_update("acktr__factored_damping", false);
}

#[test]
fn recorded_update_of_a_given_natural_gradient() {
    recorded_update("acktr", true);
}

#[test]
fn recorded_update_of_the_largest_step() {
    recorded_update("acktr__largest_step", true);
}

/// (G' ⊗ X') vec(u) = vec(∇L) with G' and X' damped, for factors of many batches; κ balances them.
#[test]
fn a_natural_gradient_solves_for_the_damped_product() {
    let network = network();
    let layer = &network.layers[0];
    let rows = |n: usize, seed| (normal(20 * n, seed).reshape((20, n)).unwrap() * 0.1).unwrap();
    network.update_factors(&[rows(3, 1)], rows(2, 2), 0.0).unwrap();
    network.update_factors(&[rows(3, 3)], rows(2, 4), 0.5).unwrap();
    let damping = 0.01;
    layer.invert(damping).unwrap();
    let (x, g) = (layer.x.to_vec2::<f32>().unwrap(), layer.g.to_vec2::<f32>().unwrap());
    // The last row and column of X are means of x and of 1.
    assert_abs_diff_eq!(x[3][3], 1.0, epsilon = 1e-6);
    let means = (rows(3, 1).mean(0).unwrap() + rows(3, 3).mean(0).unwrap()).unwrap();
    for (i, mean) in floats(&means).iter().enumerate() {
        assert_abs_diff_eq!(x[i][3], 0.5 * mean, epsilon = 1e-6);
        assert_eq!(x[3][i], x[i][3]);
    }
    let trace = |m: &[Vec<f32>]| (0..m.len()).map(|i| m[i][i]).sum::<f32>() / m.len() as f32;
    let kappa = (trace(&x) / trace(&g)).sqrt();
    assert!(kappa > 2.0, "{kappa}");
    let gradient = normal(8, 5).reshape((2, 4)).unwrap();
    let u = layer.g_inverse.matmul(&gradient).unwrap().matmul(&layer.x_inverse).unwrap();
    let u = u.to_vec2::<f32>().unwrap();
    let root = (damping as f32).sqrt();
    for (i, row) in gradient.to_vec2::<f32>().unwrap().iter().enumerate() {
        for (j, expected) in row.iter().enumerate() {
            let mut found = 0.0; // (G' u X')_ij
            for k in 0..2 {
                for l in 0..4 {
                    let g = g[i][k] + if i == k { root / kappa } else { 0.0 };
                    let x = x[l][j] + if l == j { root * kappa } else { 0.0 };
                    found += g * u[k][l] * x;
                }
            }
            assert_abs_diff_eq!(found, *expected, epsilon = 1e-4);
        }
    }
}

#[test]
fn a_damped_inverse_is_one() {
    let matrix = vec![vec![4.0, 2.0, 0.4], vec![2.0, 2.0, 0.5], vec![0.4, 0.5, 1.0]];
    let inverse = damped_inverse(matrix.clone(), 0.5).unwrap();
    for i in 0..3 {
        for j in 0..3 {
            let damped = |k: usize| matrix[i][k] + if i == k { 0.5 } else { 0.0 };
            let product = (0..3).map(|k| damped(k) * inverse[k][j]).sum::<f64>();
            assert_abs_diff_eq!(product, f64::from(u8::from(i == j)), epsilon = 1e-12);
        }
    }
    let singular = damped_inverse(vec![vec![1.0, 2.0], vec![2.0, 1.0]], 0.1).unwrap_err().to_string();
    assert!(singular.contains("--damping"), "{singular}");
}

/// A policy that has become certain has g = 0 everywhere, and its factors still have inverses.
#[test]
fn a_fisher_matrix_that_vanishes_is_damped() {
    let network = network();
    let layer = &network.layers[0];
    let inputs = normal(60, 1).reshape((20, 3)).unwrap();
    let g = Tensor::zeros((20, 2), DType::F32, &Device::Cpu).unwrap();
    network.update_factors(&[inputs], g, 0.0).unwrap();
    layer.invert(0.01).unwrap();
    let ones = Tensor::ones((2, 4), DType::F32, &Device::Cpu).unwrap();
    let u = layer.g_inverse.matmul(&ones).unwrap().matmul(&layer.x_inverse).unwrap();
    // Where G = 0 and κ √λ is far more than X, u = ∇L / λ.
    assert!(floats(&u).iter().all(|u| (u - 100.0).abs() < 0.1), "{u:?}");
}

/// After k batches the averages are their means, until 1 − 1/k is more than the decay.
#[test]
fn factors_are_means_at_first() {
    let mut acktr = Acktr::new([&[4, 8, 2], &[4, 8, 1]], &args(&["--stat-decay=0.6"])).unwrap();
    let observations: Vec<Vec<f32>> = (0..4).map(|k| floats(&normal(5 * 4, k))).collect();
    let of = |x: &[f32]| x.chunks(4).map(|x| x[0] * x[1]).sum::<f32>() / 5.0;
    let mut expected = 0.0;
    for (k, observations) in observations.iter().enumerate() {
        acktr.update_factors(observations, &[0, 1, 0, 1, 1], &normal(5, 9)).unwrap();
        expected += (of(observations) - expected) * [1.0, 0.5, 0.4, 0.4][k];
        for network in [&acktr.actor, &acktr.critic] {
            let x = network.layers[0].x.to_vec2::<f32>().unwrap();
            assert_abs_diff_eq!(x[0][1], expected, epsilon = 1e-6);
            assert_abs_diff_eq!(x[4][4], 1.0, epsilon = 1e-6);
        }
    }
    assert_eq!(acktr.updates, 4);
}

/// What the Fisher matrix is for: the KL divergence of a step that it bounds is δ, nearly, whatever the scale
/// of the loss. One linear layer and one state, where G ⊗ X is the Fisher matrix itself.
#[test]
fn a_step_moves_the_policy_by_delta() {
    let observations: Vec<f32> = [0.5, -1.0, 0.3, 0.8].repeat(4000);
    for scale in [1.0, 100.0] {
        let flags = ["--num-envs=4000", "--ent-coef=0", "--damping=1e-8", "--kl-clip=1e-4"];
        let mut acktr = Acktr::new([&[4, 2], &[4, 1]], &args(&flags)).unwrap();
        let probs = |acktr: &Acktr| {
            let logits = floats(&acktr.actor.forward(&acktr.tensor(&observations[..4]).unwrap()).unwrap());
            1.0 / (1.0 + f64::from(logits[1] - logits[0]).exp())
        };
        let fisher_actions = acktr.act(&observations, &mut rng(3, 0)).unwrap();
        acktr.update_factors(&observations, &fisher_actions, &normal(4000, 4)).unwrap();
        let rollout = Rollout {
            observations: observations.clone(),
            actions: vec![1; 4000],
            rewards: vec![scale; 4000],
            next_observations: observations.clone(),
            terminated: vec![true; 4000],
            truncated: vec![false; 4000],
        };
        let before = probs(&acktr);
        acktr.update(&rollout).unwrap();
        let after = probs(&acktr);
        let kl = before * (before / after).ln() + (1.0 - before) * ((1.0 - before) / (1.0 - after)).ln();
        assert_relative_eq!(kl, 1e-4, max_relative = 0.1);
        assert!(after < before, "action 1 was good: {before} → {after} of action 0");
    }
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
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let acktr = Acktr::new([&[3, 8, 3], &[3, 8, 1]], &args(&["--num-envs=3"])).unwrap();
    let (mut rollout, mut rng) = (Rollout::default(), rng(1, 0));
    for _ in 0..20 {
        let observations = envs.observations().to_vec();
        let actions = acktr.act(&observations, &mut rng).unwrap();
        envs.step(&actions).unwrap();
        rollout.store(&observations, &actions, &envs);
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
    }
    assert!((0..3).all(|action| rollout.actions.contains(&action)));
}

#[test]
fn the_greedy_action_is_the_most_probable() {
    let acktr = Acktr::new([&[4, 8, 3], &[4, 8, 1]], &args(&[])).unwrap();
    let observations = floats(&normal(400, 1));
    let greedy = acktr.act_greedily(&observations).unwrap();
    let logits =
        acktr.actor.forward(&acktr.tensor(&observations).unwrap()).unwrap().to_vec2::<f32>().unwrap();
    for (action, logits) in greedy.iter().zip(logits) {
        assert!(logits.iter().all(|logit| *logit <= logits[*action as usize]));
    }
    assert!(greedy.iter().any(|action| *action != greedy[0]));
}

/// What the defaults do.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=4000", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Steps bounded by η_max alone, factors that are inverted seldom, and what else the defaults leave out.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Acrobot-v1",
        "--num-envs=3",
        "--num-steps=7",
        "--total-timesteps=1500",
        "--learning-rate=0.001",
        "--kl-clip=0.1",
        "--vf-kl-clip=0.01",
        "--damping=0.1",
        "--stat-decay=0.5",
        "--kfac-update=7",
        "--gamma=0.9",
        "--ent-coef=0.1",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
