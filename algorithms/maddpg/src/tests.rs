//! The formulas against naive versions of them.

use super::*;
use candle_core::Var;
use common::envs::persist::Persist;

const GAMMA: f64 = 0.9;

/// Agents of `env_id` with their parameters.
fn agents(env_id: &str, seed: u64) -> (Vec<Agent>, VarMap, ParallelVecEnv) {
    let envs = ParallelVecEnv::make(env_id, true, 1, 1).unwrap();
    let parameters = VarMap::new(seed);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let agents = (0..envs.num_agents()).map(|i| Agent::new(i, &envs, &vb).unwrap()).collect();
    (agents, parameters, envs)
}

/// A batch of `n` made-up transitions, the first of which terminated.
fn batch(envs: &ParallelVecEnv, n: usize) -> Batch {
    let mut rng = rng(5, 0);
    let mut random = |width: usize| {
        let values: Vec<f32> = (0..n * width).map(|_| rng.random::<f32>() - 0.5).collect();
        Tensor::from_vec(values, (n, width), &Device::Cpu).unwrap()
    };
    let terminated: Vec<f32> = (0..n).map(|row| if row == 0 { 1.0 } else { 0.0 }).collect();
    Batch {
        observations: random(envs.observation_dim()),
        actions: random(envs.action_dim()),
        rewards: random(envs.num_agents()),
        next_observations: random(envs.observation_dim()),
        terminated: Tensor::from_vec(terminated, (n, 1), &Device::Cpu).unwrap(),
    }
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

/// The output of a network for one input, computed by hand.
fn by_hand(network: &Mlp, input: &[f32]) -> Vec<f32> {
    let layer = |layer: &Linear, input: &[f32], relu: bool| -> Vec<f32> {
        let (weight, bias) = (rows(layer.weight()), layer.bias().to_vec1::<f32>().unwrap());
        let dot = |row: &Vec<f32>| row.iter().zip(input).map(|(w, x)| w * x).sum::<f32>();
        let outputs = weight.iter().zip(bias).map(|(row, b)| dot(row) + b);
        outputs.map(|z| if relu { z.max(0.0) } else { z }).collect()
    };
    let hidden = layer(&network.hidden2, &layer(&network.hidden1, input, true), true);
    layer(&network.output, &hidden, false)
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b} to within {tolerance}");
    }
}

#[test]
fn a_relaxed_choice_is_a_gumbel_softmax() {
    let (agents, ..) = agents("simple_reference_v3", 1);
    let logits: Vec<f32> = (0..15).map(|k| (k as f32 - 7.0) / 5.0).collect();
    let softmax = |z: &[f32]| -> Vec<f32> {
        let total: f32 = z.iter().map(|z| z.exp()).sum();
        z.iter().map(|z| z.exp() / total).collect()
    };
    let row = Tensor::from_slice(&logits, (1, 15), &Device::Cpu).unwrap();
    // Without noise: the softmax of the movement's five logits, and that of the ten words'.
    let greedy = rows(&agents[0].relax(&row, None).unwrap()).concat();
    close(&greedy, &[softmax(&logits[..5]), softmax(&logits[5..])].concat(), 1e-6);

    // With it: the option with the largest weight is distributed as the softmax says (Gumbel 1954).
    let n = 200_000;
    let many = row.broadcast_as((n, 15)).unwrap();
    let drawn = rows(&agents[0].relax(&many, Some(&mut rng(1, 0))).unwrap());
    let mut frequencies = vec![0.0_f32; 15];
    for row in &drawn {
        for choice in [0..5, 5..15] {
            assert!((row[choice.clone()].iter().sum::<f32>() - 1.0).abs() < 1e-5, "{row:?}");
            let best = choice.max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            frequencies[best] += 1.0 / n as f32;
        }
    }
    close(&frequencies, &greedy, 0.004); // 3.5 standard errors
    // At temperature 1 the log-ratio of two weights is logistic around that of their probabilities.
    let logistic: Vec<f32> = drawn.iter().map(|w| (w[4] / w[3]).ln() - (logits[4] - logits[3])).collect();
    let mean = logistic.iter().sum::<f32>() / n as f32;
    let variance = logistic.iter().map(|l| (l - mean).powi(2)).sum::<f32>() / n as f32;
    close(&[mean, variance], &[0.0, std::f32::consts::PI.powi(2) / 3.0], 0.04);
}

#[test]
fn targets_are_those_of_the_equation() {
    let (targets, _, envs) = agents("simple_speaker_listener_v4", 2);
    let batch = batch(&envs, 4);
    let got = rows(&td_targets(&targets, &batch, GAMMA, &mut rng(3, 0)).unwrap());
    // The same draws again, so that a' is the same.
    let next_actions = rows(&act(&targets, &batch.next_observations, Some(&mut rng(3, 0))).unwrap());
    let (next, rewards) = (rows(&batch.next_observations), rows(&batch.rewards));
    for row in 0..4 {
        let joint = [next[row].clone(), next_actions[row].clone()].concat();
        for agent in 0..2 {
            let value = by_hand(&targets[agent].critic, &joint)[0];
            let bootstrap = if row == 0 { 0.0 } else { GAMMA as f32 * value };
            close(&[got[row][agent]], &[rewards[row][agent] + bootstrap], 1e-5);
        }
    }
}

#[test]
fn each_actor_sees_its_own_observation_alone() {
    let (agents, _, envs) = agents("simple_speaker_listener_v4", 2);
    let batch = batch(&envs, 3);
    let all = rows(&act(&agents, &batch.observations, None).unwrap());
    for (row, actions) in rows(&batch.observations).iter().zip(all) {
        for agent in &agents {
            let z = by_hand(&agent.actor, &row[agent.observation.clone()]);
            let total: f32 = z.iter().map(|z| z.exp()).sum();
            let softmax: Vec<f32> = z.iter().map(|z| z.exp() / total).collect();
            close(&actions[agent.action.clone()], &softmax, 1e-5);
        }
    }
}

#[test]
fn targets_follow_target_networks_only() {
    let (_, parameters, envs) = agents("simple_speaker_listener_v4", 2);
    let (targets, target_parameters, _) = agents("simple_speaker_listener_v4", 2);
    copy_parameters(&target_parameters, &parameters).unwrap();
    let batch = batch(&envs, 8);
    let now = || rows(&td_targets(&targets, &batch, GAMMA, &mut rng(3, 0)).unwrap());
    let change = |map: &VarMap, name: &str| {
        let (_, var) = map.named_vars().into_iter().find(|(n, _)| n == name).unwrap();
        var.set(&(var.as_detached_tensor() + 1.0).unwrap()).unwrap();
    };
    let before = now();
    // The online copies share no storage with the targets.
    for (name, _) in parameters.named_vars() {
        change(&parameters, &name);
    }
    assert_eq!(now(), before);
    // Each agent's target is moved by any target actor: all act in x'.
    for name in ["actor0.output.weight", "actor1.output.weight"] {
        let before = now();
        change(&target_parameters, name);
        for agent in 0..2 {
            assert!(now().iter().zip(&before).any(|(now, before)| now[agent] != before[agent]), "{name}");
        }
    }
    // But a critic moves its own agent's target alone, and none of what terminated.
    let before = now();
    change(&target_parameters, "critic1.output.bias");
    for (row, (now, before)) in now().iter().zip(&before).enumerate() {
        close(now, &[before[0], before[1] + if row == 0 { 0.0 } else { GAMMA as f32 }], 1e-5);
    }
}

#[test]
fn the_critics_loss_is_the_sum_of_their_mean_squared_errors() {
    let (agents, _, envs) = agents("simple_spread_v3", 4);
    let batch = batch(&envs, 5);
    let got = critic_loss(&agents, &batch, &batch.rewards).unwrap().to_scalar::<f32>().unwrap();
    let (observations, actions, targets) =
        (rows(&batch.observations), rows(&batch.actions), rows(&batch.rewards));
    let mut wanted = 0.0;
    for (agent, networks) in agents.iter().enumerate() {
        for row in 0..5 {
            let joint = [observations[row].clone(), actions[row].clone()].concat();
            wanted += (by_hand(&networks.critic, &joint)[0] - targets[row][agent]).powi(2) / 5.0;
        }
    }
    close(&[got], &[wanted], 1e-5);
}

#[test]
fn an_actors_loss_is_minus_its_value_plus_the_penalty() {
    let (agents, _, envs) = agents("simple_spread_v3", 4);
    let batch = batch(&envs, 5);
    let (observations, actions) = (rows(&batch.observations), rows(&batch.actions));
    for agent in &agents {
        let got = actor_loss(agent, &batch, 0.3, &mut rng(8, 0)).unwrap().to_scalar::<f32>().unwrap();
        // The same draws again, so that the own actions are the same.
        let logits = agent.logits(&batch.observations).unwrap();
        let own = rows(&agent.relax(&logits, Some(&mut rng(8, 0))).unwrap());
        let mut wanted = 0.0;
        for row in 0..5 {
            let mut joint = [observations[row].clone(), actions[row].clone()].concat();
            let start = observations[row].len() + agent.action.start;
            joint[start..start + agent.action.len()].copy_from_slice(&own[row]);
            let z = by_hand(&agent.actor, &observations[row][agent.observation.clone()]);
            let penalty = z.iter().map(|z| z * z).sum::<f32>() / z.len() as f32;
            wanted += (0.3 * penalty - by_hand(&agent.critic, &joint)[0]) / 5.0;
        }
        close(&[got], &[wanted], 1e-5);
    }
}

#[test]
fn the_actors_gradient_is_through_its_own_action_in_its_own_critic() {
    let (agents, parameters, envs) = agents("simple_speaker_listener_v4", 6);
    let batch = batch(&envs, 16);
    let loss = |agent: usize| actor_loss(&agents[agent], &batch, 0.01, &mut rng(8, 0)).unwrap();
    for (agent, actor) in ["actor0.", "actor1."].into_iter().enumerate() {
        let grads = loss(agent).backward().unwrap();
        for (name, var) in parameters.named_vars() {
            let Some(grad) = grads.get(&var) else {
                assert!(!name.starts_with(actor), "{name} has no gradient");
                continue;
            };
            assert!(name.starts_with(actor), "{name} has a gradient of the loss of {actor}");
            // Central differences along the gradient itself.
            let norm = grad.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
            let (start, epsilon) = (var.as_detached_tensor().copy().unwrap(), 1e-2);
            let at = |step: f64| {
                let direction = (grad.detach() * (step / f64::from(norm))).unwrap();
                var.set(&(&start + direction).unwrap()).unwrap();
                f64::from(loss(agent).to_scalar::<f32>().unwrap())
            };
            let slope = (at(epsilon) - at(-epsilon)) / (2.0 * epsilon);
            at(0.0);
            assert!(
                (slope - f64::from(norm)).abs() < 0.02 * f64::from(norm) + 1e-5,
                "{name}: {slope} {norm}"
            );
        }
    }
    // The other's action is the one that was replayed, and it counts.
    let before = loss(0).to_scalar::<f32>().unwrap();
    let other = Batch { actions: (&batch.actions + 1.0).unwrap(), ..batch };
    let after = actor_loss(&agents[0], &other, 0.01, &mut rng(8, 0)).unwrap().to_scalar::<f32>().unwrap();
    assert_ne!(before, after);
}

#[test]
fn a_constant_network_passes_gradients_to_its_input_only() {
    let (agents, parameters, envs) = agents("simple_v3", 6);
    let joint = Var::ones((1, envs.observation_dim() + envs.action_dim()), DType::F32, &Device::Cpu).unwrap();
    let grads = agents[0].critic.detach().forward(&joint).unwrap().sum_all().unwrap().backward().unwrap();
    let input = grads.get(&joint).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(input > 0.0);
    assert!(parameters.all_vars().iter().all(|var| grads.get(var).is_none()));
}

#[test]
fn the_replay_buffer_keeps_the_newest_transitions_whole() {
    let mut buffer = ReplayBuffer { rows: Vec::new(), widths: [2, 1, 2, 2, 1], capacity: 3, next: 0 };
    for t in 0..5 {
        let t = t as f32;
        buffer.push([&[t, t + 0.1], &[t + 0.2], &[t + 0.3, t + 0.4], &[t + 0.5, t + 0.6], &[t + 0.7]]);
    }
    let batch = buffer.sample(64, &mut rng(1, 0), &Device::Cpu).unwrap();
    let parts = [batch.observations, batch.actions, batch.rewards, batch.next_observations, batch.terminated];
    let parts = parts.map(|part| rows(&part));
    let mut seen = [false; 5];
    for row in 0..64 {
        let whole: Vec<f32> = parts.iter().flat_map(|part| part[row].clone()).collect();
        seen[whole[0] as usize] = true;
        close(&whole, &std::array::from_fn::<_, 8, _>(|k| whole[0] + 0.1 * k as f32), 1e-5);
    }
    assert_eq!(seen, [false, false, true, true, true]);
    assert!(buffer.save().unwrap().len() < 3 * 8 * 4 + 16);
}
