//! The formulas against naive versions, numerical integration and finite differences, and the
//! signs of the losses.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use candle_core::{Device, Var};
use rand::RngExt;

/// A tensor `[n, width]`.
fn rows(values: &[f32], width: usize) -> Tensor {
    Tensor::from_slice(values, ((), width), &Device::Cpu).unwrap()
}

/// ln σ, `[action_dim]`.
fn log_std(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The middles of `n` cells of [-8, 8], and their width.
fn grid(n: usize) -> (Vec<f32>, f64) {
    let width = 16.0 / n as f64;
    ((0..n).map(|i| (-8.0 + (i as f64 + 0.5) * width) as f32).collect(), width)
}

#[test]
fn the_density_integrates_to_1_and_its_logarithm_to_minus_the_entropy() {
    // One dimension.
    let (actions, width) = grid(2000);
    let log_std_1 = log_std(&[-0.3]);
    let log_probs = log_prob(&rows(&vec![0.4; actions.len()], 1), &log_std_1, &rows(&actions, 1)).unwrap();
    let integral = |f: &dyn Fn(f64) -> f64, log_probs: &Tensor, cell: f64| -> f64 {
        numbers(log_probs).iter().map(|&l| f64::from(l)).map(|l| l.exp() * f(l) * cell).sum()
    };
    assert_abs_diff_eq!(integral(&|_| 1.0, &log_probs, width), 1.0, epsilon = 1e-5);
    let h = f64::from(entropy(&log_std_1).unwrap().to_scalar::<f32>().unwrap());
    assert_abs_diff_eq!(integral(&|l| -l, &log_probs, width), h, epsilon = 1e-5);

    // Two dimensions of different means and spreads.
    let (axis, width) = grid(200);
    let actions: Vec<f32> = axis.iter().flat_map(|&x| axis.iter().flat_map(move |&y| [x, y])).collect();
    let means = [0.4, -1.0].repeat(actions.len() / 2);
    let log_std_2 = log_std(&[-0.3, 0.2]);
    let log_probs = log_prob(&rows(&means, 2), &log_std_2, &rows(&actions, 2)).unwrap();
    assert_abs_diff_eq!(integral(&|_| 1.0, &log_probs, width * width), 1.0, epsilon = 1e-5);
    let h = f64::from(entropy(&log_std_2).unwrap().to_scalar::<f32>().unwrap());
    assert_abs_diff_eq!(integral(&|l| -l, &log_probs, width * width), h, epsilon = 1e-5);
}

#[test]
fn log_probabilities_agree_with_the_closed_form_and_with_those_of_sampling() {
    let (means, stds) = ([0.5_f32, -2.0, 3.0, 0.0], [0.5_f32, 2.0]);
    let log_stds = stds.map(f32::ln);
    let (actions, sampled) = sample(&means, &log_stds, &mut rng(3, 0));
    let computed = log_prob(&rows(&means, 2), &log_std(&log_stds), &rows(&actions, 2)).unwrap();
    assert_eq!(computed.dims(), [2, 1]);
    for (row, log_prob) in numbers(&computed).into_iter().enumerate() {
        // Π_d exp(−(a − μ)² / 2σ²) / √(2πσ²)
        let density = |d: usize| {
            let (a, mean, std) =
                (f64::from(actions[2 * row + d]), f64::from(means[2 * row + d]), f64::from(stds[d]));
            (-(a - mean).powi(2) / (2.0 * std * std)).exp() / (2.0 * PI * std * std).sqrt()
        };
        assert_abs_diff_eq!(f64::from(log_prob), (density(0) * density(1)).ln(), epsilon = 1e-5);
        assert_abs_diff_eq!(log_prob, sampled[row], epsilon = 1e-5);
    }
}

#[test]
fn gradients_of_the_log_probability_agree_with_finite_differences() {
    let (means, log_stds, actions) = ([0.3_f32, -0.5], [0.1_f32, -0.4], rows(&[1.0, -1.5], 2));
    let value = |means: &[f32], log_stds: &[f32]| {
        numbers(&log_prob(&rows(means, 2), &log_std(log_stds), &actions).unwrap())[0]
    };
    let means_var = Var::from_tensor(&rows(&means, 2)).unwrap();
    let log_std_var = Var::from_tensor(&log_std(&log_stds)).unwrap();
    let grads = log_prob(&means_var, &log_std_var, &actions).unwrap().backward().unwrap();
    let grad = |var: &Var| numbers(grads.get(var).unwrap());
    for d in 0..2 {
        let difference = |f: &dyn Fn(f32) -> f32| (f(1e-2) - f(-1e-2)) / 2e-2;
        let by_mean = difference(&|h| {
            let mut moved = means;
            moved[d] += h;
            value(&moved, &log_stds)
        });
        let by_log_std = difference(&|h| {
            let mut moved = log_stds;
            moved[d] += h;
            value(&means, &moved)
        });
        assert_abs_diff_eq!(grad(&means_var)[d], by_mean, epsilon = 2e-3);
        assert_abs_diff_eq!(grad(&log_std_var)[d], by_log_std, epsilon = 2e-3);
    }
}

#[test]
fn sampled_actions_have_the_mean_and_the_spread() {
    let n = 20_000;
    let (actions, _) = sample(&[1.0, -3.0].repeat(n), &[0.0, f32::ln(0.1)], &mut rng(1, 0));
    for (d, (mean, std)) in [(1.0, 1.0), (-3.0, 0.1)].into_iter().enumerate() {
        let column: Vec<f64> = actions[d..].iter().step_by(2).map(|&a| f64::from(a)).collect();
        let found = column.iter().sum::<f64>() / n as f64;
        let spread = (column.iter().map(|a| (a - found).powi(2)).sum::<f64>() / n as f64).sqrt();
        assert_abs_diff_eq!(found, mean, epsilon = 4.0 * std / (n as f64).sqrt()); // four standard errors
        assert_abs_diff_eq!(spread, std, epsilon = 4.0 * std / (2.0 * n as f64).sqrt());
    }
}

#[test]
fn advantages_are_discounted_sums_of_td_errors() {
    const GAMMA: f32 = 0.9;
    const LAMBDA: f32 = 0.8;
    // Two environments, five steps: environment 0 terminates at step 2, environment 1 is
    // truncated at step 3.
    let mut rng = rng(5, 0);
    let mut draw = |n: usize| (0..n).map(|_| rng.random::<f32>()).collect::<Vec<_>>();
    let mut rollout = Rollout { rewards: draw(10), values: draw(12), ..Rollout::default() };
    rollout.final_values = vec![None; 10];
    (rollout.final_values[4], rollout.final_values[7]) = (Some(0.0), Some(0.7));
    let advantages = rollout.advantages(2, GAMMA, LAMBDA);
    for env in 0..2 {
        for step in 0..5 {
            // Â_t = Σ_k (γλ)^k δ_{t+k}, up to the end of the episode
            let (mut sum, mut weight) = (0.0, 1.0);
            for t in (step..5).map(|s| s * 2 + env) {
                let next_value = rollout.final_values[t].unwrap_or(rollout.values[t + 2]);
                sum += weight * (rollout.rewards[t] + GAMMA * next_value - rollout.values[t]);
                weight *= GAMMA * LAMBDA;
                if rollout.final_values[t].is_some() {
                    break;
                }
            }
            assert_abs_diff_eq!(advantages[step * 2 + env], sum, epsilon = 1e-6);
        }
    }
    // Environment 0 at step 2 terminates: its reward is all there is.
    assert_abs_diff_eq!(advantages[4], rollout.rewards[4] - rollout.values[4], epsilon = 1e-6);
    // At its last step the rollout is cut off, and bootstraps from the state after it.
    let last = rollout.rewards[8] + GAMMA * rollout.values[10] - rollout.values[8];
    assert_abs_diff_eq!(advantages[8], last, epsilon = 1e-6);
}

fn critic(observation_dim: usize) -> Mlp {
    let parameters = VarMap::new(1);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    Mlp::new(observation_dim, 1, 1.0, vb).unwrap()
}

/// Steps `env_id` with `action` until an episode ends; returns what [`final_values`] gave in that
/// step, V of the normalised final observations, and the environments.
fn until_an_episode_ends(env_id: &str, action: fn(&[f32]) -> f32) -> (Vec<Option<f32>>, Vec<f32>, VecEnv) {
    let mut envs = VecEnv::make(env_id, 2, 1).unwrap();
    let dim = envs.observation_dim();
    let critic = critic(dim);
    let mut normalize = NormalizeObservation::new(dim);
    let mut observations = vec![0.0; 2 * dim];
    normalize.normalize(envs.observations(), &mut observations);
    loop {
        let actions: Vec<f32> = envs.observations().chunks(dim).map(action).collect();
        envs.step(&actions).unwrap();
        normalize.normalize(envs.observations(), &mut observations);
        let before = normalize.clone();
        let found = final_values(&critic, &envs, &normalize).unwrap();
        assert_eq!(normalize, before, "the bootstrap must not change the statistics");
        if envs.episodes().is_empty() {
            assert_eq!(found, [None, None]);
            continue;
        }
        let (mean, var) = (&normalize.statistics.mean, &normalize.statistics.var);
        let normalised: Vec<f32> = envs
            .final_observations()
            .iter()
            .enumerate()
            .map(|(i, &x)| ((f64::from(x) - mean[i % dim]) / (var[i % dim] + 1e-8).sqrt()) as f32)
            .collect();
        return (found, critic.apply(&normalised).unwrap(), envs);
    }
}

#[test]
fn truncated_episodes_bootstrap_from_the_normalised_final_observation() {
    let (found, last, envs) = until_an_episode_ends("Pendulum-v1", |_| 0.5);
    assert_eq!((envs.truncated(), envs.terminated()), (&[true; 2][..], &[false; 2][..]));
    for env in 0..2 {
        assert_relative_eq!(found[env].unwrap(), last[env], max_relative = 1e-5);
    }
}

#[test]
fn terminated_episodes_have_no_value_left() {
    // Pushing along with the velocity takes the car up the hill.
    let along = |observation: &[f32]| if observation[1] >= 0.0 { 1.0 } else { -1.0 };
    let (found, _, envs) = until_an_episode_ends("MountainCarContinuous-v0", along);
    assert!(envs.terminated().contains(&true) && !envs.truncated().contains(&true));
    let expected: Vec<_> = envs.terminated().iter().map(|&terminated| terminated.then_some(0.0)).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_surrogate_is_the_pessimistic_bound() {
    for (ratio, advantage, expected) in [
        (1.1, 2.0, 2.2),   // inside the range
        (1.5, 2.0, 2.4),   // clipped at 1.2: no more to gain
        (0.5, 2.0, 1.0),   // the bad direction is not clipped
        (0.5, -2.0, -1.6), // clipped at 0.8
        (1.5, -2.0, -3.0), // the bad direction is not clipped
    ] {
        let loss = policy_loss(&rows(&[f32::ln(ratio)], 1), &rows(&[advantage], 1), 0.2).unwrap();
        assert_abs_diff_eq!(loss.to_scalar::<f32>().unwrap(), -expected, epsilon = 1e-5);
    }
}

#[test]
fn a_step_makes_good_actions_likelier_and_bad_ones_rarer() {
    for advantage in [1.0, -1.0] {
        let parameters = VarMap::new(1);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
        let actor = Mlp::new(3, 2, 0.01, vb.pp("actor")).unwrap();
        let log_std = vb.get_with_hints(2, "log_std", Init::Const(0.0)).unwrap();
        let (observation, action) = (rows(&[0.1, -0.2, 0.3], 3), rows(&[2.0, -0.1], 2));
        let log_prob = || log_prob(&actor.forward(&observation).unwrap(), &log_std, &action).unwrap();
        let before = log_prob().detach();
        let loss = policy_loss(&(log_prob() - &before).unwrap(), &rows(&[advantage], 1), 0.2).unwrap();
        Adam::new(&parameters, 1e-3).unwrap().backward_step(&loss).unwrap();
        let change = numbers(&(log_prob() - before).unwrap())[0];
        assert!(change * advantage > 0.0, "advantage {advantage}: ln π changed by {change}");

        // σ grows where a good action lay beyond it (2 > σ), shrinks where it lay within (0.1 < σ).
        let log_std_after = numbers(&log_std);
        assert!(log_std_after[0] * advantage > 0.0 && log_std_after[1] * advantage < 0.0);
    }
}

#[test]
fn the_value_loss_is_half_the_mean_square() {
    let loss = value_loss(&rows(&[1.0, -2.0], 1), &rows(&[0.0, 1.0], 1)).unwrap();
    assert_abs_diff_eq!(loss.to_scalar::<f32>().unwrap(), 2.5, epsilon = 1e-6); // ½ (1 + 9) / 2
}

#[test]
fn normalised_values_have_mean_0_and_deviation_1() {
    let mut values = [1.0, 2.0, 3.0, 10.0];
    normalise(&mut values);
    let mean = values.iter().sum::<f32>() / 4.0;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 3.0;
    assert_abs_diff_eq!(mean, 0.0, epsilon = 1e-6);
    assert_abs_diff_eq!(variance, 1.0, epsilon = 1e-5);
}
