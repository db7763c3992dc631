use super::*;

/// The policy of Sutton & Barto's short corridor: two parameters, which are the two preferences.
fn corridor_policy(preferences: [f32; 2]) -> (VarMap, Policy) {
    let parameters = VarMap::new(1);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let policy = Policy::new(1, 2, 0, vb).unwrap();
    parameters.all_vars()[0]
        .set(&Tensor::new(&[[preferences[0]], [preferences[1]]], &Device::Cpu).unwrap())
        .unwrap();
    (parameters, policy)
}

/// Minus ∇ policy_loss of a batch: the estimate of ∇J.
fn estimate(parameters: &VarMap, policy: &Policy, batch: &Batch) -> Vec<f32> {
    let n = batch.actions.len();
    let actions = Tensor::from_slice(&batch.actions, n, &Device::Cpu).unwrap();
    let weights = Tensor::from_slice(&batch.weights, n, &Device::Cpu).unwrap();
    let log_probs =
        Categorical::new(&policy.forward(&batch.observations).unwrap()).unwrap().log_prob(&actions).unwrap();
    let gradients = policy_loss(&log_probs, &weights, batch.episodes).unwrap().backward().unwrap();
    let gradient = gradients.get(&parameters.all_vars()[0]).unwrap();
    gradient.neg().unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn weights_are_the_discounted_sums_of_their_own_episode() {
    let episodes = [vec![1.0, -2.0, 0.5, 3.0], vec![4.0], vec![-1.0, 2.0]];
    let gamma = 0.9_f32;
    for discount_gradient in [false, true] {
        let mut batch = Batch::default();
        let mut expected = Vec::new();
        for rewards in &episodes {
            batch.rewards.extend(rewards);
            batch.end_episode(gamma, discount_gradient);
            for t in 0..rewards.len() {
                // G_t = Σ_{k ≥ t} γ^{k−t} r_k, times γᵗ
                let g: f32 = (t..rewards.len()).map(|k| gamma.powi((k - t) as i32) * rewards[k]).sum();
                expected.push(if discount_gradient { gamma.powi(t as i32) * g } else { g });
            }
        }
        assert_eq!((batch.episodes, batch.weights.len()), (3, expected.len()));
        for (weight, expected) in batch.weights.iter().zip(expected) {
            assert!((weight - expected).abs() < 1e-5, "{weight} is not {expected}");
        }
    }
}

#[test]
fn the_gradient_is_the_eligibility_vector_of_the_book() {
    let (parameters, policy) = corridor_policy([0.3, -0.4]);
    let batch = Batch {
        observations: vec![1.0, 1.0, 1.0, 1.0],
        actions: vec![1, 0, 1, 1],
        rewards: vec![],
        weights: vec![-3.0, -2.0, -1.0, -5.0],
        episodes: 2,
    };
    // ∇ ln π(a|s) = x(s, a) − Σ_b π(b|s) x(s, b)   (Sutton & Barto, equation 13.9)
    let left = 1.0 / (1.0 + (-0.7_f32).exp());
    let mut expected = [0.0_f32; 2];
    for (&action, weight) in batch.actions.iter().zip(&batch.weights) {
        for (b, pi) in [left, 1.0 - left].into_iter().enumerate() {
            let x = if b == action as usize { 1.0 } else { 0.0 };
            expected[b] += weight * (x - pi) / batch.episodes as f32;
        }
    }
    let actual = estimate(&parameters, &policy, &batch);
    for (actual, expected) in actual.iter().zip(expected) {
        assert!((actual - expected).abs() < 1e-5, "{actual} is not {expected}");
    }
}

#[test]
fn the_estimate_is_unbiased() {
    // On the short corridor ∇J is known: J(p) = (2p − 4) / (p (1 − p)).
    let value = |p: f64| (2.0 * p - 4.0) / (p * (1.0 - p));
    let (parameters, policy) = corridor_policy([0.5, -0.5]);
    let p = 1.0 / (1.0 + 1.0_f64.exp());
    let dp = 1e-5;
    // dp / dθ_right = p (1 − p), and θ_left moves it the other way.
    let slope = (value(p + dp) - value(p - dp)) / (2.0 * dp) * p * (1.0 - p);

    let mut envs = VecEnv::make("ShortCorridor-v0", 1, 1).unwrap();
    let mut rng = rng(1, 1);
    let mut batch = Batch::default();
    let logits = policy.logits(&[1.0]).unwrap();
    let (mut sum, mut sum_of_squares, episodes) = ([0.0; 2], [0.0; 2], 10_000);
    for _ in 0..episodes {
        while batch.episodes == 0 {
            let actions = sample(&logits, 2, &mut rng);
            batch.observations.extend_from_slice(envs.observations());
            envs.step(&actions).unwrap();
            batch.actions.extend_from_slice(&actions);
            batch.rewards.extend_from_slice(envs.rewards());
            if envs.terminated()[0] {
                batch.end_episode(1.0, false);
            }
        }
        for (b, g) in estimate(&parameters, &policy, &batch).into_iter().enumerate() {
            sum[b] += f64::from(g);
            sum_of_squares[b] += f64::from(g).powi(2);
        }
        batch.clear();
    }
    for (b, expected) in [-slope, slope].into_iter().enumerate() {
        let mean = sum[b] / f64::from(episodes);
        let error = ((sum_of_squares[b] / f64::from(episodes) - mean.powi(2)) / f64::from(episodes)).sqrt();
        assert!(error < expected.abs() / 10.0, "{error} is too coarse to tell");
        assert!((mean - expected).abs() < 4.0 * error, "∂J/∂θ_{b}: {mean} ± {error}, not {expected}");
    }
}

#[test]
fn actions_are_drawn_with_their_probabilities() {
    let logits = [0.5_f32, -1.0, 2.0];
    let total: f32 = logits.iter().map(|z| z.exp()).sum();
    let n = 40_000;
    let drawn = sample(&logits.repeat(n), 3, &mut rng(1, 0));
    for (a, z) in logits.iter().enumerate() {
        let p = f64::from(z.exp() / total);
        let share = drawn.iter().filter(|&&b| b as usize == a).count() as f64 / n as f64;
        assert!((share - p).abs() < 4.0 * (p * (1.0 - p) / n as f64).sqrt(), "{a}: {share}, not {p}");
    }
}

#[test]
fn plain_ascent_moves_along_the_estimate() {
    let (parameters, policy) = corridor_policy([0.0, 0.0]);
    let log_prob = Categorical::new(&policy.forward(&[1.0]).unwrap())
        .unwrap()
        .log_prob(&Tensor::new(&[1_u32], &Device::Cpu).unwrap());
    let weights = Tensor::new(&[-4.0_f32], &Device::Cpu).unwrap();
    sgd_step(&parameters, &policy_loss(&log_prob.unwrap(), &weights, 1).unwrap(), 0.1).unwrap();
    // θ + α G (1[b = a] − π(b)): the action that was followed by −4 becomes less probable.
    assert_eq!(policy.logits(&[1.0]).unwrap(), [0.2, -0.2]);
}
