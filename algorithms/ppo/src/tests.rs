//! The formulas against naive versions, and the signs of the losses.

use super::*;
use approx::assert_abs_diff_eq;

const GAMMA: f32 = 0.9;
const LAMBDA: f32 = 0.8;

/// Two environments, five steps: environment 0 terminates at step 2, environment 1 is truncated
/// at step 3.
fn rollout() -> Rollout {
    let mut rng = rng(5, 0);
    let mut random = |len| (0..len).map(|_| rng.random::<f32>()).collect::<Vec<_>>();
    let (rewards, values) = (random(10), random(12));
    let mut rollout = Rollout { rewards, values, final_values: vec![None; 10], ..Rollout::default() };
    rollout.final_values[4] = Some(0.0); // step 2 of environment 0
    rollout.final_values[7] = Some(0.7); // step 3 of environment 1
    rollout
}

/// V(s_{t+1}): row t + 1 of the values, or that of the state the episode ended in.
fn next_value(rollout: &Rollout, t: usize) -> f32 {
    rollout.final_values[t].unwrap_or(rollout.values[t + 2])
}

#[test]
fn advantages_are_discounted_sums_of_td_errors() {
    let rollout = rollout();
    let advantages = rollout.advantages(2, GAMMA, LAMBDA);
    for env in 0..2 {
        for step in 0..5 {
            // Â_t = Σ_k (γλ)^k δ_{t+k}, up to the end of the episode
            let (mut sum, mut weight) = (0.0, 1.0);
            for t in (step..5).map(|s| s * 2 + env) {
                sum += weight * (rollout.rewards[t] + GAMMA * next_value(&rollout, t) - rollout.values[t]);
                weight *= GAMMA * LAMBDA;
                if rollout.final_values[t].is_some() {
                    break;
                }
            }
            assert_abs_diff_eq!(advantages[step * 2 + env], sum, epsilon = 1e-6);
        }
    }
}

#[test]
fn advantages_with_lambda_1_are_returns_minus_values() {
    let rollout = rollout();
    let advantages = rollout.advantages(2, GAMMA, 1.0);
    // Environment 1 from step 1: r + γ r + γ² (r + γ V(last state)) − V
    let (r, v) = (&rollout.rewards, &rollout.values);
    let truncated = r[3] + GAMMA * (r[5] + GAMMA * (r[7] + GAMMA * 0.7));
    assert_abs_diff_eq!(advantages[3], truncated - v[3], epsilon = 1e-5);
    // Environment 0 at step 2 terminates: its reward is all there is.
    assert_abs_diff_eq!(advantages[4], r[4] - v[4], epsilon = 1e-6);
    // At its last step the rollout is cut off, and bootstraps from the states after it.
    assert_abs_diff_eq!(advantages[8], r[8] + GAMMA * v[10] - v[8], epsilon = 1e-6);
}

fn tensor(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
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
        let loss = policy_loss(&tensor(&[f32::ln(ratio)]), &tensor(&[advantage]), 0.2).unwrap();
        assert_abs_diff_eq!(loss.to_scalar::<f32>().unwrap(), -expected, epsilon = 1e-5);
    }
}

#[test]
fn a_step_makes_good_actions_likelier_and_bad_ones_rarer() {
    for advantage in [1.0, -1.0] {
        let parameters = VarMap::new(1);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
        let actor = Network::new(&Space::uniform(3, -1.0, 1.0), 2, 0.01, vb).unwrap();
        let observation = [0.1, -0.2, 0.3];
        let actions = Tensor::new(&[1_u32], &Device::Cpu).unwrap();
        let log_prob =
            || Categorical::new(&actor.forward(&observation).unwrap()).unwrap().log_prob(&actions).unwrap();
        let before = log_prob().detach();
        let loss = policy_loss(&(log_prob() - &before).unwrap(), &tensor(&[advantage]), 0.2).unwrap();
        Adam::new(&parameters, 1e-3).unwrap().backward_step(&loss).unwrap();
        let change = (log_prob() - before).unwrap().to_vec1::<f32>().unwrap()[0];
        assert!(change * advantage > 0.0, "advantage {advantage}: ln π changed by {change}");
    }
}

#[test]
fn the_clipped_value_loss_is_the_larger_one() {
    let loss = |value: f32, clip| {
        value_loss(&tensor(&[value]), &tensor(&[1.0]), &tensor(&[0.0]), clip)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
    };
    assert_abs_diff_eq!(loss(0.9, None), 0.005, epsilon = 1e-6);
    // Moved from 0 to 0.9, of which 0.2 count: ½ (0.2 − 1)²
    assert_abs_diff_eq!(loss(0.9, Some(0.2)), 0.32, epsilon = 1e-6);
    assert_abs_diff_eq!(loss(-0.5, Some(0.2)), 1.125, epsilon = 1e-6);
}

#[test]
fn sampled_actions_follow_the_softmax() {
    let logits: Vec<f32> = [0.5, -1.0, 2.0].repeat(20_000);
    let (actions, log_probs) = sample(&logits, 3, &mut rng(1, 0));
    let total: f32 = [0.5_f32, -1.0, 2.0].iter().map(|z| z.exp()).sum();
    for (action, logit) in [0.5_f32, -1.0, 2.0].iter().enumerate() {
        let probability = logit.exp() / total;
        let count = actions.iter().filter(|&&a| a as usize == action).count();
        assert_abs_diff_eq!(count as f32 / 20_000.0, probability, epsilon = 0.015); // four standard errors
        let i = actions.iter().position(|&a| a as usize == action).unwrap();
        assert_abs_diff_eq!(log_probs[i], probability.ln(), epsilon = 1e-5);
    }
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

#[test]
fn values_are_bootstrapped_from_the_true_last_state_of_a_truncated_episode_only() {
    let parameters = VarMap::new(2);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let mut envs = VecEnv::make("CartPole-v1", 2, 1).unwrap();
    let critic = Network::new(&envs.spec().observation_space, 1, 1.0, vb).unwrap();
    // Environment 0 falls over, environment 1 reaches the time limit.
    let mut snapshot = envs.snapshot().unwrap();
    snapshot.set_state(0, &[2.39, 5.0, 0.0, 0.0, 10.0]);
    snapshot.set_state(1, &[0.0, 0.0, 0.0, 0.0, 499.0]);
    envs.restore(&snapshot).unwrap();
    envs.step(&[0, 0]).unwrap();
    assert_eq!((envs.terminated(), envs.truncated()), (&[true, false][..], &[false, true][..]));
    let values = final_values(&critic, &envs).unwrap();
    assert_eq!(values[0], Some(0.0));
    assert_eq!(values[1], Some(critic.apply(&envs.final_observations()[4..]).unwrap()[0]));
    assert_ne!(values[1], Some(critic.apply(envs.observations()).unwrap()[1])); // of the new episodes
    envs.step(&[0, 0]).unwrap();
    assert_eq!(final_values(&critic, &envs).unwrap(), [None, None]);
}

#[test]
fn an_image_goes_through_a_convolution() {
    let parameters = VarMap::new(2);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let space = Space::Box { shape: vec![10, 10, 4], low: vec![0.0; 400], high: vec![1.0; 400] };
    let network = Network::new(&space, 3, 1.0, vb).unwrap();
    assert_eq!(network.forward(&vec![1.0; 800]).unwrap().dims(), [2, 3]);
    assert!(parameters.named_vars().iter().any(|(name, _)| name == "convolution.weight"));
}
