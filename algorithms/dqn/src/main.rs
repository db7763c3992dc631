//! # Deep Q-network (DQN)
//!
//! Mnih et al. (2015), "Human-level control through deep reinforcement learning", Nature 518, and
//! Mnih et al. (2013), arXiv:1312.5602.
//!
//! Q-learning with a neural network for the action values Q(s, a) is unstable when it learns from
//! each step as it comes: consecutive steps resemble each other, and every update also moves the
//! target that it aims at. DQN adds two things: a replay buffer, from which it draws old steps at
//! random, and a target network, a copy of the online network that is held still for a while and
//! supplies the targets. Actions are ε-greedy, with ε falling from one to a few per cent.
//!
//! The optimal action values satisfy Bellman's equation
//!
//! ```text
//! Q*(s, a) = E[ r + γ max_a' Q*(s', a') ]
//! ```
//!
//! and the online parameters θ are moved towards its right-hand side, computed with the target
//! parameters θ⁻, by stochastic gradient descent on
//!
//! ```text
//! y    = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)
//! L(θ) = E_{(s, a, r, s') ~ replay}[ ℓ(y − Q(s, a; θ)) ]        ∇_θ y = 0
//! ℓ(δ) = ½ δ² where |δ| ≤ 1, |δ| − ½ elsewhere                  errors count as at most 1
//! θ⁻   ← (1 − τ) θ⁻ + τ θ     every target_network_frequency steps (τ = 1: a plain copy)
//! ```
//!
//! The paper copies θ every 10,000 steps. Here θ⁻ follows θ in many small steps (Lillicrap et al.
//! 2015, arXiv:1509.02971): in 50,000 steps rare copies leave the values short of the returns.
//!
//! A step that was merely truncated by a time limit is not terminal: its next state has a value.
//!
//! Run `cargo run -p dqn`: 475 or more on CartPole-v1 after 50,000 steps in a few seconds
//! (475 is the return at which Gymnasium registers the task as solved).

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, rng};
use common::nn::{Activation, Adam, Linear, VarBuilder, VarMap, copy_parameters, linear, soft_update};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Deep Q-network
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("50000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Parallel environments
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    num_envs: usize,
    /// Sizes of the hidden layers
    #[arg(long, default_value = "256,256", value_delimiter = ',', value_parser = cli::positive)]
    hidden_sizes: Vec<usize>,
    /// Steps that the replay buffer holds
    #[arg(long, default_value_t = 50_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// How far the target network moves to the online one, τ
    #[arg(long, default_value_t = 0.01, value_parser = cli::unit_interval)]
    tau: f64,
    /// Environment steps between updates of the target network
    #[arg(long, default_value_t = 2, value_parser = cli::positive)]
    target_network_frequency: usize,
    /// Steps drawn from the replay buffer for one update
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    batch_size: usize,
    /// Probability of a random action at the start, ε
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    start_e: f64,
    /// Probability of a random action once exploration has ended
    #[arg(long, default_value_t = 0.04, value_parser = cli::unit_interval)]
    end_e: f64,
    /// Fraction of the run over which ε falls from its start to its end
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    exploration_fraction: f64,
    /// Environment steps before learning starts
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Clip the errors of an update to [−1, 1]; otherwise their squares are minimised
    #[arg(long, default_value_t = true)]
    clip_error: bool,
    /// Environment steps between updates
    #[arg(long, default_value_t = 2, value_parser = cli::positive)]
    train_frequency: usize,
}

/// Q(s, ·): hidden layers of rectified linear units.
struct QNetwork {
    layers: Vec<Linear>, // [observation_dim] → hidden sizes → [num_actions]
    device: Device,
}

impl QNetwork {
    fn new(sizes: &[usize], vb: VarBuilder) -> Result<Self> {
        let mut layers = Vec::with_capacity(sizes.len() - 1);
        for (i, pair) in sizes.windows(2).enumerate() {
            let activation = if i + 2 < sizes.len() { Activation::Relu } else { Activation::Identity };
            layers.push(linear(pair[0], pair[1], vb.pp(format!("layer{i}")))?.with_activation(activation));
        }
        Ok(Self { layers, device: vb.device().clone() })
    }

    /// Observations `[batch, observation_dim]`, flattened, to action values `[batch, num_actions]`.
    fn forward(&self, observations: &[f32], batch: usize) -> Result<Tensor> {
        let shape = (batch, observations.len() / batch);
        let mut hidden = Tensor::from_slice(observations, shape, &self.device)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden)?;
        }
        Ok(hidden)
    }

    /// The action of greatest value in each of `batch` observations.
    fn greedy(&self, observations: &[f32], batch: usize) -> Result<Vec<u32>> {
        let q_values: Vec<f32> = self.forward(observations, batch)?.flatten_all()?.to_vec1()?;
        let best = |row: &[f32]| (0..row.len()).fold(0, |best, a| if row[a] > row[best] { a } else { best });
        Ok(q_values.chunks_exact(q_values.len() / batch).map(|row| best(row) as u32).collect())
    }
}

/// The last `capacity` steps, the oldest overwritten first.
#[derive(Serialize, Deserialize)]
struct ReplayBuffer {
    capacity: usize,
    observation_dim: usize,
    observations: Vec<f32>,      // [len, observation_dim], s
    actions: Vec<u32>,           // [len], a
    rewards: Vec<f32>,           // [len], r
    next_observations: Vec<f32>, // [len, observation_dim], s': the episode's true last one at its end
    terminated: Vec<bool>,       // [len]; truncation does not count
    oldest: usize,
}

/// Steps drawn from the buffer, `[batch]` each.
struct Batch {
    observations: Vec<f32>, // [batch, observation_dim]
    actions: Vec<u32>,
    rewards: Vec<f32>,
    next_observations: Vec<f32>, // [batch, observation_dim]
    terminated: Vec<bool>,
}

impl ReplayBuffer {
    fn new(capacity: usize, observation_dim: usize) -> Self {
        Self {
            capacity,
            observation_dim,
            observations: Vec::new(),
            actions: Vec::new(),
            rewards: Vec::new(),
            next_observations: Vec::new(),
            terminated: Vec::new(),
            oldest: 0,
        }
    }

    fn add(
        &mut self,
        observation: &[f32],
        action: u32,
        reward: f32,
        next_observation: &[f32],
        terminated: bool,
    ) {
        if self.actions.len() < self.capacity {
            self.observations.extend_from_slice(observation);
            self.actions.push(action);
            self.rewards.push(reward);
            self.next_observations.extend_from_slice(next_observation);
            self.terminated.push(terminated);
            return;
        }
        let (i, dim) = (self.oldest, self.observation_dim);
        self.observations[i * dim..(i + 1) * dim].copy_from_slice(observation);
        self.actions[i] = action;
        self.rewards[i] = reward;
        self.next_observations[i * dim..(i + 1) * dim].copy_from_slice(next_observation);
        self.terminated[i] = terminated;
        self.oldest = (i + 1) % self.capacity;
    }

    /// Draws `batch_size` steps uniformly, with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng) -> Batch {
        let (len, dim) = (self.actions.len(), self.observation_dim);
        let indices: Vec<usize> = (0..batch_size).map(|_| rng.random_range(0..len)).collect();
        let rows = |values: &[f32]| -> Vec<f32> {
            let mut rows = Vec::with_capacity(batch_size * dim);
            indices.iter().for_each(|&i| rows.extend_from_slice(&values[i * dim..(i + 1) * dim]));
            rows
        };
        Batch {
            observations: rows(&self.observations),
            actions: indices.iter().map(|&i| self.actions[i]).collect(),
            rewards: indices.iter().map(|&i| self.rewards[i]).collect(),
            next_observations: rows(&self.next_observations),
            terminated: indices.iter().map(|&i| self.terminated[i]).collect(),
        }
    }
}

/// y = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻), `[batch]`, from `next_q_values`
/// `[batch, num_actions]` of the target network. Plain numbers: no gradient flows into a target.
fn td_targets(batch: &Batch, next_q_values: &[f32], gamma: f32) -> Vec<f32> {
    let rows = next_q_values.chunks_exact(next_q_values.len() / batch.rewards.len());
    rows.zip(&batch.rewards)
        .zip(&batch.terminated)
        .map(|((row, &reward), &terminated)| {
            let next_value = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // Easy to miss and fatal: nothing lies beyond a terminal state.
            reward + if terminated { 0.0 } else { gamma * next_value }
        })
        .collect()
}

/// E[ ℓ(y − Q(s, a; θ)) ], from Q(s, a; θ) `[batch]` and y `[batch]`. The paper clips the error of
/// the update to [−1, 1], which is the gradient of Huber's loss ℓ: one surprising step cannot
/// throw the network far. But it pulls values to the median of their targets instead of the mean,
/// so that rare ends of episodes count too little while actions are random for long: there the
/// square, ℓ(δ) = δ², does better.
fn td_loss(q_values: &Tensor, targets: &Tensor, clip_error: bool) -> Result<Tensor> {
    if !clip_error {
        return Ok((targets - q_values)?.sqr()?.mean_all()?);
    }
    // With m = min(|δ|, 1), ℓ(δ) = m (|δ| − ½ m) and ∇ℓ = m ∇|δ|: the one of ℓ with m held constant.
    // At δ = 0, where |δ| has no gradient, that is 0.
    let error = (targets - q_values)?.abs()?;
    let inside = error.minimum(1.0)?.detach();
    Ok((&inside * (&error - (&inside * 0.5)?)?)?.mean_all()?)
}

/// ε after `step` steps: from `start` to `end` in a straight line over `duration` steps.
fn epsilon(start: f64, end: f64, duration: f64, step: usize) -> f64 {
    let progress = (step as f64 / duration.max(1.0)).min(1.0);
    start + (end - start) * progress
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let num_envs = args.num_envs;
    let mut envs = VecEnv::make(&args.run.env_id, num_envs, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("dqn")?;
    let device = args.run.device()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = rng(args.run.seed, u64::MAX);
    let sizes = [&[observation_dim], args.hidden_sizes.as_slice(), &[num_actions]].concat();
    let mut parameters = VarMap::new(args.run.seed);
    let q_network = QNetwork::new(&sizes, VarBuilder::from_varmap(&parameters, DType::F32, &device))?;
    // θ⁻ has storage of its own: a clone of the layers would follow θ.
    let mut target_parameters = VarMap::new(args.run.seed);
    let target_network =
        QNetwork::new(&sizes, VarBuilder::from_varmap(&target_parameters, DType::F32, &device))?;
    copy_parameters(&target_parameters, &parameters)?;
    let mut optimizer = Adam::new(&parameters, args.learning_rate)?;
    let mut buffer = ReplayBuffer::new(args.buffer_size, observation_dim);

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut parameters),
                ("target_parameters", &mut target_parameters),
                ("optimizer", &mut optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("buffer", &mut buffer),
            ],
        )?;

        // Act: ε-greedy, one step in each environment.
        let duration = args.exploration_fraction * run.total_timesteps as f64;
        let epsilon = epsilon(args.start_e, args.end_e, duration, global_step);
        let explores: Vec<bool> = (0..num_envs).map(|_| rng.random::<f64>() < epsilon).collect();
        let mut actions = match explores.iter().all(|&explores| explores) {
            true => vec![0; num_envs], // nobody asks the network
            false => q_network.greedy(envs.observations(), num_envs)?,
        };
        for (action, _) in actions.iter_mut().zip(&explores).filter(|(_, explores)| **explores) {
            *action = rng.random_range(0..num_actions as u32);
        }
        let observations = envs.observations().to_vec();
        envs.step(&actions)?;

        // Store. The next observation of a finished episode is its last, not the reset one.
        for (env, &action) in actions.iter().enumerate() {
            let row = env * observation_dim..(env + 1) * observation_dim;
            let next_observation = &envs.final_observations()[row.clone()];
            let (reward, terminated) = (envs.rewards()[env], envs.terminated()[env]);
            buffer.add(&observations[row], action, reward, next_observation, terminated);
        }
        let previous_step = global_step;
        global_step += num_envs;
        run.episodes(global_step, envs.episodes())?;

        // Learn: whenever a multiple of the frequency was reached in this step.
        let reached = |frequency: usize| global_step / frequency > previous_step / frequency;
        if global_step <= args.learning_starts {
            continue;
        }
        if reached(args.train_frequency) {
            if args.anneal_lr {
                let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
                optimizer.learning_rate = remaining.max(0.0) * args.learning_rate;
            }
            let batch = buffer.sample(args.batch_size, &mut rng);
            let next_q_values = target_network.forward(&batch.next_observations, args.batch_size)?;
            let targets = td_targets(&batch, &next_q_values.flatten_all()?.to_vec1()?, args.gamma as f32);
            let targets = Tensor::from_vec(targets, args.batch_size, &device)?;
            let actions = Tensor::from_slice(&batch.actions, (args.batch_size, 1), &device)?;
            let q_values = q_network.forward(&batch.observations, args.batch_size)?;
            let q_values = q_values.gather(&actions, 1)?.flatten_all()?; // Q(s, a), [batch]
            let loss = td_loss(&q_values, &targets, args.clip_error)?;
            optimizer.backward_step(&loss)?;
            if reached(100) {
                run.log(global_step, "losses/td_loss", loss.to_scalar::<f32>()?)?;
                run.log(global_step, "losses/q_values", q_values.mean_all()?.to_scalar::<f32>()?)?;
                run.log(global_step, "charts/epsilon", epsilon)?;
            }
        }
        if reached(args.target_network_frequency) {
            soft_update(&target_parameters, &parameters, args.tau)?;
        }
    }

    run.save_or_load_model(&mut parameters)?;
    run.evaluate(|observations| q_network.greedy(observations, observations.len() / observation_dim))?;
    Ok(())
}

#[cfg(test)]
mod tests;
