//! The formulas of TD3 against plain loops.

use super::*;
use common::envs::invalid;
use common::nn::with_threads;

fn tensor(values: &[f32], columns: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn actor(middle: &[f32], scale: &[f32]) -> (Actor, VarMap) {
    let parameters = VarMap::new(3);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let n = scale.len();
    let network = Mlp::new(2, 16, n, vb).unwrap();
    (Actor { network, middle: tensor(middle, n), scale: tensor(scale, n) }, parameters)
}

#[test]
fn smoothing_noise_is_normal_and_clipped() {
    let noise = clipped_noise(50_000, 0.2, 0.5, &mut rng(1, 0));
    assert!(noise.iter().all(|epsilon| epsilon.abs() <= 0.5));
    // P(|N(0, 0.2²)| > 0.5) = 2 Φ(−2.5) = 0.0124, half of it at each bound.
    for bound in [-0.5, 0.5] {
        let share = noise.iter().filter(|epsilon| **epsilon == bound).count() as f64 / 50_000.0;
        assert!((share - 0.0062).abs() < 0.0015, "{share}");
    }
    // P(|N(0, 0.2²)| < 0.2) = 0.6827
    let share = noise.iter().filter(|epsilon| epsilon.abs() < 0.2).count() as f64 / 50_000.0;
    assert!((share - 0.6827).abs() < 0.01, "{share}");
    let unclipped = clipped_noise(1000, 3.0, f64::INFINITY, &mut rng(1, 0));
    assert!(unclipped.iter().any(|epsilon| epsilon.abs() > 3.0));
}

#[test]
fn noise_is_in_units_of_the_range_and_leaves_no_bound() {
    let (actor, _) = actor(&[1.0, -3.0], &[2.0, 0.5]);
    let observations = tensor(&[0.5, -1.0].repeat(2000), 2);
    let mean = floats(&actor.forward(&tensor(&[0.5, -1.0], 2)).unwrap());
    for row in floats(&actor.noisy(&observations, 0.2, 0.1, &mut rng(1, 0)).unwrap()).chunks(2) {
        // c ε with |ε| ≤ 0.1
        assert!((row[0] - mean[0]).abs() <= 0.2 + 1e-6 && (row[1] - mean[1]).abs() <= 0.05 + 1e-6);
    }
    let wild = floats(&actor.noisy(&observations, 5.0, f64::INFINITY, &mut rng(1, 0)).unwrap());
    let mut met = [false; 4];
    for row in wild.chunks(2) {
        assert!((-1.0..=3.0).contains(&row[0]) && (-3.5..=-2.5).contains(&row[1]), "{row:?}");
        for (met, at) in met.iter_mut().zip([row[0] == -1.0, row[0] == 3.0, row[1] == -3.5, row[1] == -2.5]) {
            *met |= at;
        }
    }
    assert_eq!(met, [true; 4]);
    let calm = actor.noisy(&observations, 0.0, 0.5, &mut rng(1, 0)).unwrap();
    assert_eq!(floats(&calm)[..2], mean);
}

#[test]
fn targets_bootstrap_through_truncation_but_not_through_termination() {
    let (rewards, terminated) = ([1.0, -2.0, 0.5], [0.0, 1.0, 0.0]);
    let (q1, q2) = ([3.0_f32, 4.0, -1.0], [2.0, 5.0, 1.0]);
    let nothing = tensor(&[0.0], 1);
    let batch = Batch {
        observations: nothing.clone(),
        inputs: nothing.clone(),
        next_observations: nothing,
        rewards: tensor(&rewards, 1),
        terminated: tensor(&terminated, 1),
    };
    let targets = floats(&td_targets(&batch, &[tensor(&q1, 1), tensor(&q2, 1)], 0.9).unwrap());
    for (i, target) in targets.into_iter().enumerate() {
        let smaller = if q1[i] < q2[i] { q1[i] } else { q2[i] };
        let expected = if terminated[i] == 1.0 { rewards[i] } else { rewards[i] + 0.9 * smaller };
        assert!((target - expected).abs() < 1e-6, "row {i}: {target}, not {expected}");
    }
}

#[test]
fn losses_are_the_means_they_claim_to_be() {
    let t = |values: &[f32]| tensor(values, 1);
    let scalar = |loss: Tensor| loss.to_scalar::<f32>().unwrap();
    assert_eq!(scalar(critic_loss(&t(&[1.0, 4.0]), &t(&[3.0, 3.0])).unwrap()), 2.5);
    assert_eq!(scalar(actor_loss(&t(&[1.0, -2.0, 7.0])).unwrap()), -2.0);
}

#[test]
fn the_actors_gradient_is_the_deterministic_policy_gradient() {
    let (actor, actor_parameters) = actor(&[0.5], &[2.0]);
    let critic_parameters = VarMap::new(4);
    let vb = VarBuilder::from_varmap(&critic_parameters, DType::F32, &Device::Cpu);
    let critic = Mlp::new(3, 16, 1, vb).unwrap();
    let observations = tensor(&[0.5, -1.0, 2.0, 0.3], 2);
    let loss = || {
        let inputs = Tensor::cat(&[&observations, &actor.forward(&observations).unwrap()], 1).unwrap();
        actor_loss(&critic.detach().forward(&inputs).unwrap()).unwrap()
    };
    let gradients = loss().backward().unwrap();
    assert!(critic_parameters.all_vars().iter().all(|var| gradients.get(var).is_none()));
    // ∇_φ J by central differences, of the actor's last weights and bias.
    for (name, var) in actor_parameters.named_vars() {
        if !name.starts_with("output") {
            continue;
        }
        let values = floats(&var);
        let gradient = floats(gradients.get(&var).unwrap());
        for i in 0..values.len() {
            let at = |h: f32| {
                let mut moved = values.clone();
                moved[i] += h;
                var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
                loss().to_scalar::<f32>().unwrap()
            };
            let expected = (at(1e-2) - at(-1e-2)) / 2e-2;
            at(0.0);
            assert!((gradient[i] - expected).abs() < 1e-3, "{name} {i}: {}, not {expected}", gradient[i]);
        }
    }
}

#[test]
fn averages_follow_slowly() {
    let ((_, target), source) = (actor(&[0.0], &[1.0]), VarMap::new(2));
    Mlp::new(2, 16, 1, VarBuilder::from_varmap(&source, DType::F32, &Device::Cpu)).unwrap();
    let values = |map: &VarMap| map.all_vars().iter().flat_map(|var| floats(var)).collect::<Vec<_>>();
    let (before, theta) = (values(&target), values(&source));
    soft_update(&target, &source, 0.005).unwrap();
    for ((after, before), theta) in values(&target).iter().zip(before).zip(theta) {
        assert!((after - (0.995 * before + 0.005 * theta)).abs() < 1e-7);
    }
}

/// Steps `env_id` with `policy` for `steps`, storing every step; what was stored, row by row.
fn recorded(env_id: &str, steps: usize, capacity: usize, policy: fn(&[f32]) -> f32) -> ReplayBuffer {
    let mut envs = VecEnv::make(env_id, 1, 1).unwrap();
    let (observation_dim, action_dim) = envs.spec().box_to_box("test").unwrap();
    let mut buffer = ReplayBuffer { capacity, observation_dim, action_dim, next_row: 0, rows: Vec::new() };
    for _ in 0..steps {
        let observation = envs.observations().to_vec();
        let action = [policy(&observation)];
        envs.step(&action[..]).unwrap();
        buffer.add(&observation, &action, &envs);
    }
    buffer
}

#[test]
fn a_truncated_episode_keeps_its_true_last_observation_and_is_not_terminated() {
    let buffer = recorded("Pendulum-v1", 201, 1000, |_| 0.5);
    let rows: Vec<&[f32]> = buffer.rows.chunks_exact(9).collect(); // s (3), a, s' (3), r, terminated
    assert_eq!(rows.len(), 201);
    for t in 0..199 {
        assert_eq!(rows[t][4..7], rows[t + 1][..3], "step {t}");
    }
    // The time limit is 200 steps: row 199 is the last of its episode.
    let (last, first) = (rows[199], rows[200]);
    assert_ne!(last[4..7], first[..3]);
    // s' follows from s by the pendulum's own dynamics: θ̇' = θ̇ + (15 sin θ + 3 u) 0.05.
    let theta_dot = (last[2] + (15.0 * last[1] + 3.0 * last[3]) * 0.05).clamp(-8.0, 8.0);
    assert!((last[6] - theta_dot).abs() < 1e-5, "{} after {last:?}", last[6]);
    assert!(rows.iter().all(|row| row[8] == 0.0));
}

#[test]
fn a_terminated_episode_is_marked() {
    // Pushing along with the velocity takes the car to its goal.
    let push = |observation: &[f32]| if observation[1] < 0.0 { -1.0 } else { 1.0 };
    let buffer = recorded("MountainCarContinuous-v0", 300, 1000, push);
    let rows: Vec<&[f32]> = buffer.rows.chunks_exact(7).collect(); // s (2), a, s' (2), r, terminated
    assert!(rows.iter().any(|row| row[6] == 1.0));
    for row in rows {
        assert_eq!(row[6] == 1.0, row[3] >= 0.45, "{row:?}"); // the goal is at 0.45
        assert_eq!(row[6] == 1.0, row[5] > 50.0, "{row:?}"); // and pays 100
    }
}

#[test]
fn the_buffer_overwrites_its_oldest_and_samples_whole_transitions() {
    let all = recorded("Pendulum-v1", 5, 100, |observation| observation[0]);
    let buffer = recorded("Pendulum-v1", 5, 3, |observation| observation[0]);
    let row = |i: usize| &all.rows[9 * i..9 * (i + 1)];
    assert_eq!(buffer.rows, [row(3), row(4), row(2)].concat());
    let batch = buffer.sample(200, &mut rng(1, 0), &Device::Cpu).unwrap();
    let mut seen = [0; 5];
    for drawn in 0..200 {
        let of = |tensor: &Tensor| floats(&tensor.get(drawn).unwrap());
        let i = (0..5).find(|&i| row(i)[..3] == of(&batch.observations)).unwrap();
        seen[i] += 1;
        assert_eq!(of(&batch.inputs), row(i)[..4]);
        assert_eq!(of(&batch.next_observations), row(i)[4..7]);
        assert_eq!(of(&batch.rewards), row(i)[7..8]);
        assert_eq!(of(&batch.terminated), row(i)[8..]);
    }
    assert!(seen[..2] == [0, 0] && seen[2..].iter().all(|count| *count > 40), "{seen:?}");
}

#[test]
fn threads_change_no_result() {
    let operation = |i: usize| Ok(i * 10);
    assert_eq!(for_both(operation).unwrap(), [0, 10]);
    assert_eq!(with_threads(2, || for_both(operation)).unwrap().unwrap(), [0, 10]);
    assert!(for_both(|i| if i == 1 { invalid("second") } else { Ok(()) }).is_err());
}
