//! The target and the buffer against naive versions.

use super::*;

fn step(reward: f32, terminated: bool) -> Batch {
    Batch {
        observations: vec![0.0],
        actions: vec![0],
        rewards: vec![reward],
        next_observations: vec![0.0],
        terminated: vec![terminated],
    }
}

#[test]
fn targets_take_the_best_next_action() {
    // 1 + 0.5 · max(3, 7, −2)
    assert_eq!(td_targets(&step(1.0, false), &[3.0, 7.0, -2.0], 0.5), [4.5]);
}

#[test]
fn targets_do_not_look_beyond_a_terminal_state() {
    assert_eq!(td_targets(&step(1.0, true), &[3.0, 7.0, -2.0], 0.5), [1.0]);
}

#[test]
fn a_step_on_the_loss_moves_q_towards_the_target() {
    let parameters = VarMap::new(3);
    let network =
        QNetwork::new(&[2, 8, 2], VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu)).unwrap();
    let mut optimizer = Adam::new(&parameters, 1e-2).unwrap();
    let q = || network.forward(&[0.3, -0.4], 1).unwrap().get(0).unwrap().narrow(0, 1, 1).unwrap();
    let value = || q().to_vec1::<f32>().unwrap()[0];
    let before = value();
    let target = Tensor::new(&[before + 1.0], &Device::Cpu).unwrap();
    for _ in 0..5 {
        optimizer.backward_step(&td_loss(&q(), &target, true).unwrap()).unwrap();
    }
    assert!(value() > before && value() < before + 1.5, "{before} → {}", value());
}

/// ℓ(δ) = ½ δ² up to |δ| = 1 and |δ| − ½ beyond, so that the gradient is the error, clipped.
#[test]
fn the_loss_is_quadratic_near_zero_and_linear_beyond() {
    let errors = [-3.0_f32, -0.5, 0.0, 0.25, 2.0];
    let q_values = candle_core::Var::zeros(errors.len(), DType::F32, &Device::Cpu).unwrap();
    let targets = Tensor::new(&errors, &Device::Cpu).unwrap();
    let squared = td_loss(&q_values, &targets, false).unwrap().to_scalar::<f32>().unwrap();
    assert!((squared - (9.0 + 0.25 + 0.0 + 0.0625 + 4.0) / 5.0).abs() < 1e-6);
    let loss = td_loss(&q_values, &targets, true).unwrap();
    let expected = (2.5 + 0.125 + 0.0 + 0.03125 + 1.5) / 5.0;
    assert!((loss.to_scalar::<f32>().unwrap() - expected).abs() < 1e-6);
    let gradients = loss.backward().unwrap();
    let gradient = gradients.get(&q_values).unwrap().to_vec1::<f32>().unwrap();
    for (error, gradient) in errors.iter().zip(gradient) {
        assert!((gradient + error.clamp(-1.0, 1.0) / 5.0).abs() < 1e-6, "{error}: {gradient}");
    }
}

#[test]
fn the_buffer_overwrites_its_oldest_steps() {
    let mut buffer = ReplayBuffer::new(3, 1);
    for i in 0..5 {
        buffer.add(&[i as f32], i, i as f32, &[i as f32 + 1.0], false);
    }
    let mut held = buffer.actions.clone();
    held.sort_unstable();
    assert_eq!(held, [2, 3, 4]);
    let batch = buffer.sample(100, &mut rng(1, 0));
    for i in 0..100 {
        assert_eq!(batch.observations[i], batch.actions[i] as f32);
        assert_eq!(batch.next_observations[i], batch.observations[i] + 1.0);
    }
}

#[test]
fn epsilon_falls_in_a_straight_line_and_stays() {
    assert_eq!(epsilon(1.0, 0.1, 100.0, 0), 1.0);
    approx::assert_abs_diff_eq!(epsilon(1.0, 0.1, 100.0, 50), 0.55, epsilon = 1e-12);
    approx::assert_abs_diff_eq!(epsilon(1.0, 0.1, 100.0, 100_000), 0.1, epsilon = 1e-12);
}
