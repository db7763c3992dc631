//! The formulas of SAC against numerical integration, finite differences and plain loops.

use super::*;
use candle_core::Var;
use common::envs::invalid;
use common::nn::with_threads;

fn tensor(values: &[f32], columns: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Standard normal numbers, `[rows, 1]`.
fn noise(rows: usize, seed: u64) -> Tensor {
    let noise: Vec<f32> = StandardNormal.sample_iter(rng(seed, 0)).take(rows).collect();
    tensor(&noise, 1)
}

/// ln π of the action `a` by the change of variables, in f64 and through the inverse of the squashing.
fn log_density(a: f64, mean: f64, std: f64, middle: f64, scale: f64) -> f64 {
    let y = (a - middle) / scale;
    let z = (y.atanh() - mean) / std;
    -0.5 * z * z - (std * (2.0 * PI).sqrt()).ln() - (scale * (1.0 - y * y)).ln()
}

/// [`squashed_log_prob`] of one action, given u.
fn log_prob(u: f64, mean: f64, std: f64, scale: f64) -> f64 {
    let t = |x: f64| tensor(&[x as f32], 1);
    let noise = t((u - mean) / std);
    f64::from(floats(&squashed_log_prob(&t(u), &t(std.ln()), &noise, &t(scale)).unwrap())[0])
}

#[test]
fn log_prob_is_the_change_of_variables() {
    for (mean, std, scale) in [(0.0, 1.0, 1.0), (0.7, 0.3, 2.0), (-1.5, 0.8, 0.4), (0.2, 0.01, 3.0)] {
        for z in [-2.0, -0.5, 0.0, 0.3, 1.9] {
            let u: f64 = mean + std * z;
            let expected = log_density(5.0 + scale * u.tanh(), mean, std, 5.0, scale);
            let got = log_prob(u, mean, std, scale);
            assert!((got - expected).abs() < 1e-4, "u = {u}: {got}, not {expected}");
        }
    }
}

#[test]
fn the_density_integrates_to_one_over_the_actions() {
    for (mean, std, scale) in [(0.0, 1.0, 1.0), (0.7, 0.3, 2.0), (-0.5, 0.5, 0.25)] {
        // Midpoints of equal cells of the action interval (-scale, scale).
        let cells = 20_000;
        let width = 2.0 * scale / f64::from(cells);
        let density = |cell: i32| {
            let action = -scale + (f64::from(cell) + 0.5) * width;
            log_prob((action / scale).atanh(), mean, std, scale).exp()
        };
        let integral: f64 = (0..cells).map(density).sum::<f64>() * width;
        assert!((integral - 1.0).abs() < 1e-3, "mean {mean}, std {std}, scale {scale}: {integral}");
    }
}

#[test]
fn log_prob_sums_over_dimensions_and_stays_finite_at_the_bounds() {
    let (u, log_std, noise) = ([0.3, -0.8], [-0.5, 0.1], [1.2, -0.4]);
    let both =
        squashed_log_prob(&tensor(&u, 2), &tensor(&log_std, 2), &tensor(&noise, 2), &tensor(&[2.0, 0.5], 2));
    let one = |i: usize, scale: f32| {
        let t = |values: [f32; 2]| tensor(&[values[i]], 1);
        floats(&squashed_log_prob(&t(u), &t(log_std), &t(noise), &tensor(&[scale], 1)).unwrap())[0]
    };
    assert!((floats(&both.unwrap())[0] - one(0, 2.0) - one(1, 0.5)).abs() < 1e-6);

    // tanh 40 is 1 in f32; ln(1 − tanh² u) tends to 2 ln 2 − 2|u|.
    for u in [-40.0, 40.0] {
        let expected = -0.5 * (2.0 * PI).ln() - 2.0 * LN_2 + 80.0;
        assert!((log_prob(u, u, 1.0, 1.0) - expected).abs() < 1e-4);
    }
}

#[test]
fn log_prob_has_the_right_gradient() {
    // With the noise held, u = μ + σ ε, as the actor's update sees it.
    let (mean, log_std, noise, scale) = (0.4_f64, -0.7_f64, 1.3_f64, 2.0_f64);
    let value = |mean: f64, log_std: f64| {
        let u = mean + log_std.exp() * noise;
        log_density(scale * u.tanh(), mean, log_std.exp(), 0.0, scale)
    };
    let var = |x: f64| Var::from_tensor(&tensor(&[x as f32], 1)).unwrap();
    let (mean_var, log_std_var, noise_tensor) = (var(mean), var(log_std), tensor(&[noise as f32], 1));
    let u = (mean_var.as_tensor() + (log_std_var.exp().unwrap() * &noise_tensor).unwrap()).unwrap();
    let log_prob = squashed_log_prob(&u, &log_std_var, &noise_tensor, &tensor(&[scale as f32], 1)).unwrap();
    let gradients = log_prob.backward().unwrap();
    let h = 1e-5;
    let by_mean = (value(mean + h, log_std) - value(mean - h, log_std)) / (2.0 * h);
    let by_log_std = (value(mean, log_std + h) - value(mean, log_std - h)) / (2.0 * h);
    for (var, expected) in [(&mean_var, by_mean), (&log_std_var, by_log_std)] {
        let got = f64::from(floats(gradients.get(var).unwrap())[0]);
        assert!((got - expected).abs() < 1e-4, "{got}, not {expected}");
    }
}

fn actor(middle: &[f32], scale: &[f32]) -> Actor {
    let parameters = VarMap::new(3);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let n = scale.len();
    Actor { network: Mlp::new(2, 16, 2 * n, vb).unwrap(), middle: tensor(middle, n), scale: tensor(scale, n) }
}

#[test]
fn sampled_actions_have_the_probabilities_that_they_claim() {
    // E[ 1[a ∈ I] / π(a) ] over the policy's own samples is the length of the interval I, here 0.6.
    let actor = actor(&[1.0], &[2.0]);
    let observations = tensor(&[0.5, -1.0].repeat(20_000), 2);
    let (actions, log_probs) = actor.sample(&observations, &noise(20_000, 5)).unwrap();
    let (actions, log_probs) = (floats(&actions), floats(&log_probs));
    assert!(actions.iter().all(|action| (-1.0..=3.0).contains(action)));
    let inside = |action: f32| (0.7..1.3).contains(&action);
    let kept = actions.iter().zip(&log_probs).filter(|(action, _)| inside(**action));
    let width = kept.map(|(_, log_prob)| f64::from(-log_prob).exp()).sum::<f64>() / 20_000.0;
    assert!((width - 0.6).abs() < 0.02, "{width}");
}

#[test]
fn greedy_actions_reach_the_bounds_and_no_further() {
    let actor = actor(&[1.0, -3.0], &[2.0, 0.5]);
    let extreme = actor.squash(&tensor(&[-50.0, 50.0, 0.0, 0.0], 2)).unwrap();
    assert_eq!(floats(&extreme), [-1.0, -2.5, 1.0, -3.0]);
    let observations = tensor(&[0.1, 0.2], 2);
    let (mean, _) = actor.distribution(&observations).unwrap();
    assert_eq!(actor.greedy(&observations).unwrap(), floats(&actor.squash(&mean).unwrap()));
}

#[test]
fn log_std_stays_within_its_bounds() {
    let actor = actor(&[0.0], &[1.0]);
    for size in [0.0, 1.0, 1e6] {
        let (_, log_std) = actor.distribution(&tensor(&[size, -size, -size, size], 2)).unwrap();
        assert!(floats(&log_std).iter().all(|log_std| (-5.0..=2.0).contains(log_std)));
    }
}

fn batch(rewards: &[f32], terminated: &[f32]) -> Batch {
    let nothing = tensor(&[0.0], 1);
    Batch {
        observations: nothing.clone(),
        inputs: nothing.clone(),
        next_observations: nothing,
        rewards: tensor(rewards, 1),
        terminated: tensor(terminated, 1),
    }
}

#[test]
fn targets_bootstrap_through_truncation_but_not_through_termination() {
    let (rewards, terminated) = ([1.0, -2.0, 0.5], [0.0, 1.0, 0.0]);
    let (q1, q2, log_probs) = ([3.0, 4.0, -1.0], [2.0, 5.0, 1.0], [-0.5, 0.7, 1.5]);
    let (alpha, gamma) = (0.3, 0.9);
    let q = [tensor(&q1, 1), tensor(&q2, 1)];
    let targets =
        td_targets(&batch(&rewards, &terminated), &q, &tensor(&log_probs, 1), alpha, gamma).unwrap();
    for (i, target) in floats(&targets).into_iter().enumerate() {
        let smaller = if q1[i] < q2[i] { q1[i] } else { q2[i] };
        let soft_value = smaller - alpha as f32 * log_probs[i];
        let expected = if terminated[i] == 1.0 { rewards[i] } else { rewards[i] + gamma as f32 * soft_value };
        assert!((target - expected).abs() < 1e-6, "row {i}: {target}, not {expected}");
    }
}

#[test]
fn losses_are_the_means_they_claim_to_be() {
    let t = |values: &[f32]| tensor(values, 1);
    let scalar = |loss: Tensor| loss.to_scalar::<f32>().unwrap();
    assert_eq!(scalar(critic_loss(&t(&[1.0, 4.0]), &t(&[3.0, 3.0])).unwrap()), 2.5);
    let loss = actor_loss(&t(&[1.0, -2.0]), &[t(&[5.0, 1.0]), t(&[3.0, 2.0])], 0.5).unwrap();
    assert_eq!(scalar(loss), ((0.5 - 3.0) + (-1.0 - 1.0)) / 2.0);
}

#[test]
fn the_temperature_rises_when_the_policy_is_too_certain() {
    // dJ/d(ln α) = −α (E[ln π] + H̄): entropy −E[ln π] below H̄ must raise α, above must lower it.
    for (log_prob, rises) in [(3.0, true), (-3.0, false)] {
        let log_alpha = Var::new(0.5_f32, &Device::Cpu).unwrap();
        let loss = temperature_loss(&log_alpha, &tensor(&[log_prob, log_prob], 1), -1.0).unwrap();
        let gradient = loss.backward().unwrap().get(&log_alpha).unwrap().to_scalar::<f32>().unwrap();
        let expected = -0.5_f32.exp() * (log_prob - 1.0);
        assert!((gradient - expected).abs() < 1e-5, "{gradient}, not {expected}");
        assert_eq!(gradient < 0.0, rises);
    }
}

#[test]
fn the_actor_is_updated_through_critics_that_stay_as_they_are() {
    let (actor, parameters) = (actor(&[0.0], &[2.0]), VarMap::new(4));
    let critic = Mlp::new(3, 16, 1, VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu)).unwrap();
    let observations = tensor(&[0.5, -1.0, 2.0, 0.3], 2);
    let (actions, log_probs) = actor.sample(&observations, &noise(2, 1)).unwrap();
    let inputs = Tensor::cat(&[&observations, &actions], 1).unwrap();
    let gradients = |critic: &Mlp| {
        let values = [critic.forward(&inputs).unwrap(), critic.forward(&inputs).unwrap()];
        actor_loss(&log_probs, &values, 0.2).unwrap().backward().unwrap()
    };
    let (held, free) = (gradients(&critic.detach()), gradients(&critic));
    let weight = actor.network.hidden1.weight();
    assert_eq!(floats(held.get(weight).unwrap()), floats(free.get(weight).unwrap()));
    assert!(floats(held.get(weight).unwrap()).iter().any(|gradient| *gradient != 0.0));
    assert!(parameters.all_vars().iter().all(|var| held.get(var).is_none() && free.get(var).is_some()));
}

#[test]
fn the_gradients_of_two_halves_add_up_to_that_of_the_batch() {
    let actor = actor(&[0.0], &[2.0]);
    let (observations, noise) = (tensor(&[0.5, -1.0, 2.0, 0.3, -0.7, 0.1, 1.4, -0.2], 2), noise(4, 1));
    let gradients = |start, rows, share: f64| {
        let rows = |all: &Tensor| all.narrow(0, start, rows).unwrap();
        let (actions, log_probs) = actor.sample(&rows(&observations), &rows(&noise)).unwrap();
        let values = [actions.sqr().unwrap(), (actions * 0.3).unwrap()];
        (actor_loss(&log_probs, &values, 0.2).unwrap() * share).unwrap().backward().unwrap()
    };
    let (whole, mut halves) = (gradients(0, 4, 1.0), gradients(0, 2, 0.5));
    halves.extend(gradients(2, 2, 0.5)).unwrap();
    let of = |gradients: &candle_core::backprop::GradStore| {
        floats(gradients.get(actor.network.hidden2.weight()).unwrap())
    };
    for (whole, halves) in of(&whole).iter().zip(of(&halves)) {
        assert!((whole - halves).abs() < 1e-6, "{whole}, not {halves}");
    }
}

#[test]
fn averages_follow_slowly() {
    let (target, source) = (VarMap::new(1), VarMap::new(2));
    for map in [&target, &source] {
        Mlp::new(2, 3, 1, VarBuilder::from_varmap(map, DType::F32, &Device::Cpu)).unwrap();
    }
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
