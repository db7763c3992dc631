//! # Double DQN
//!
//! van Hasselt, Guez & Silver (2016), "Deep reinforcement learning with double Q-learning", AAAI,
//! arXiv:1509.06461; after van Hasselt (2010), "Double Q-learning", NeurIPS.
//!
//! The maximum over action values that are wrong by chance is on average too large: it picks whatever is
//! overrated, and Q-learning's targets carry that on from state to state. Double Q-learning chooses the
//! action with one set of parameters and asks another what it is worth, so that an error must be in both
//! to count. DQN has a second set already: the online network chooses, the target network values, and
//! nothing else changes.
//!
//! ```text
//! DQN          y    = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)
//! Double DQN   y    = r + γ (1 − terminated) Q(s', argmax_a' Q(s', a'; θ); θ⁻)
//!              L(θ) = E_{(s, a, r, s') ~ replay}[ (y − Q(s, a; θ))² ]        ∇_θ y = 0
//!              θ⁻   ← (1 − τ) θ⁻ + τ θ     every target_network_frequency steps (τ = 1: a plain copy)
//! ```
//!
//! A step that was merely truncated by a time limit is not terminal: its next state has a value.
//!
//! Whenever an episode ends, the value of its first state, max_a Q(s_0, a; θ), is logged as
//! `charts/start_value` beside what came of it, Σ_t γ^t r_t, as `charts/discounted_return`. Values that
//! stay above the returns, and not for a truncation that the values look beyond, are overestimated;
//! `--double false` shows DQN's.
//!
//! Deviations from the paper:
//! - vectors instead of images, and hyper-parameters of their size: batches of 64 (the paper: 32), a last ε
//!   of 0.04 (0.1, tuned 0.01), learning after 1,000 steps (50,000) and a buffer of 25,000 (a million);
//! - Adam instead of RMSProp, its step size falling to zero, and an update at every step, where the paper
//!   has one in four (`dqn` gives the reasons); Adam's ε is large, as is RMSProp's (0.01 in a mean of
//!   squares), so that parameters with small gradients take small steps: with 1e-8 three seeds of ten miss
//!   475;
//! - θ⁻ follows θ in many small steps (Lillicrap et al. 2015, arXiv:1509.02971) where the paper copies θ
//!   every 10,000 steps (or 30,000, tuned): a run of 50,000 is too short for that. θ⁻ is then seldom far
//!   from θ, so that the two choose alike more often than the paper's;
//! - errors are squared as they are, where the paper clips them to [−1, 1] (`--clip-error`): a clipped
//!   error pulls values to the median of their targets, which in CartPole leaves out the rare falls;
//! - the paper's figure 3 sets the mean value over all states of evaluations beside the discounted return
//!   of the final policy. Here values are of first states, and returns of the policy as it is, which
//!   explores, and without what lies beyond a truncation.
//!
//! Run `cargo run -p double_dqn`: 475 or more on CartPole-v1 after 50,000 steps in 8 seconds, with 37
//! seeds of 40 (475 is the return at which Gymnasium registers the task as solved); the others drift off
//! the track.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{Adam, Linear, VarBuilder, VarMap, clamp, copy_parameters, linear, soft_update};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Double DQN
#[derive(Parser, Serialize, Debug, Clone)]
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
    /// Added to the root of the mean squared gradient by which Adam divides, ε
    #[arg(long, default_value_t = 1e-3, value_parser = cli::above_zero)]
    adam_eps: f64,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Parallel environments
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    num_envs: usize,
    /// Sizes of the hidden layers
    #[arg(long, default_value = "120,84", value_delimiter = ',', value_parser = cli::positive)]
    hidden_sizes: Vec<usize>,
    /// Steps that the replay buffer holds
    #[arg(long, default_value_t = 25_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// How far the target network moves to the online one, τ
    #[arg(long, default_value_t = 0.01, value_parser = cli::unit_interval)]
    tau: f64,
    /// Environment steps between updates of the target network
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
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
    #[arg(long, default_value_t = 0.3, value_parser = cli::unit_interval)]
    exploration_fraction: f64,
    /// Environment steps before learning starts
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Clip the errors of an update to [−1, 1], as the paper does
    #[arg(long, default_value_t = false)]
    clip_error: bool,
    /// Environment steps between updates
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    train_frequency: usize,
    /// The online network chooses the action of the target; otherwise the target network does, as in DQN
    #[arg(long, default_value_t = true)]
    double: bool,
}

/// Q(s, ·): hidden layers of rectified linear units.
struct QNetwork {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [num_actions]
}

impl QNetwork {
    fn new(
        observation_dim: usize,
        hidden_sizes: &[usize],
        num_actions: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let (mut hidden, mut inputs) = (Vec::new(), observation_dim);
        for (i, &size) in hidden_sizes.iter().enumerate() {
            hidden.push(linear(inputs, size, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        Ok(Self { hidden, output: linear(inputs, num_actions, vb.pp("output"))? })
    }

    /// Observations `[batch, observation_dim]` to action values `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_relu(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }
}

/// The last `capacity` transitions, the oldest overwritten first.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    capacity: usize,
    next_row: usize,             // where the next transition goes
    observations: Vec<f32>,      // s, [len, observation_dim]
    actions: Vec<u32>,           // a, [len]
    rewards: Vec<f32>,           // r, [len]
    next_observations: Vec<f32>, // s', an episode's true last one at its end, [len, observation_dim]
    terminated: Vec<f32>,        // 1 where nothing lies beyond s', 0 elsewhere, truncation included, [len]
}

/// Transitions drawn from the buffer.
struct Batch {
    observations: Tensor,      // s, [batch, observation_dim]
    actions: Tensor,           // a, [batch, 1], u32
    rewards: Tensor,           // r, [batch, 1]
    next_observations: Tensor, // s', [batch, observation_dim]
    terminated: Tensor,        // 1 or 0, [batch, 1]
}

impl ReplayBuffer {
    /// Stores the step that each of `envs` has just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], actions: &[u32], envs: &VecEnv) {
        let dim = envs.observation_dim();
        for (env, &action) in actions.iter().enumerate() {
            let (row, own) = (self.next_row, env * dim..(env + 1) * dim);
            write_row(&mut self.observations, row, &observations[own.clone()]);
            write_row(&mut self.actions, row, &[action]);
            write_row(&mut self.rewards, row, &[envs.rewards()[env]]);
            // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
            write_row(&mut self.next_observations, row, &envs.final_observations()[own]);
            write_row(&mut self.terminated, row, &[f32::from(u8::from(envs.terminated()[env]))]);
            self.next_row = (row + 1) % self.capacity;
        }
    }

    /// `batch_size` transitions, uniformly and with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<Batch> {
        let len = self.rewards.len();
        let rows: Vec<usize> = (0..batch_size).map(|_| rng.random_range(0..len)).collect();
        let gather = |column: &[f32]| {
            let width = column.len() / len;
            let values = rows.iter().flat_map(|row| &column[row * width..(row + 1) * width]);
            Tensor::from_vec(values.copied().collect(), (batch_size, width), device)
        };
        let actions: Vec<u32> = rows.iter().map(|&row| self.actions[row]).collect();
        Ok(Batch {
            observations: gather(&self.observations)?,
            actions: Tensor::from_vec(actions, (batch_size, 1), device)?,
            rewards: gather(&self.rewards)?,
            next_observations: gather(&self.next_observations)?,
            terminated: gather(&self.terminated)?,
        })
    }
}

/// Writes `values` to a row of a column, which grows until it is full.
fn write_row<T: Copy>(column: &mut Vec<T>, row: usize, values: &[T]) {
    let start = row * values.len();
    if start == column.len() {
        column.extend_from_slice(values);
    } else {
        column[start..start + values.len()].copy_from_slice(values);
    }
}

/// The running episode of each environment: where it began and what has come of it.
#[derive(Serialize, Deserialize)]
struct RunningEpisodes {
    start_observations: Vec<f32>, // s_0, [num_envs, observation_dim]
    discounted_returns: Vec<f64>, // Σ_t γ^t r_t so far, [num_envs]
    discounts: Vec<f64>,          // γ^t of the next reward, [num_envs]
}

impl RunningEpisodes {
    fn new(envs: &VecEnv) -> Self {
        let num_envs = envs.num_envs();
        Self {
            start_observations: envs.observations().to_vec(),
            discounted_returns: vec![0.0; num_envs],
            discounts: vec![1.0; num_envs],
        }
    }

    /// Adds the step that `envs` has just made. Of each episode that it ended: s_0 and Σ_t γ^t r_t.
    fn add_step(&mut self, envs: &VecEnv, gamma: f64) -> Vec<(Vec<f32>, f64)> {
        let mut ended = Vec::new();
        for env in 0..envs.num_envs() {
            self.discounted_returns[env] += self.discounts[env] * f64::from(envs.rewards()[env]);
            self.discounts[env] *= gamma;
            if envs.terminated()[env] || envs.truncated()[env] {
                let own = env * envs.observation_dim()..(env + 1) * envs.observation_dim();
                let start = self.start_observations[own.clone()].to_vec();
                ended.push((start, self.discounted_returns[env]));
                // `envs.observations()` are the first of the next episode by now.
                self.start_observations[own.clone()].copy_from_slice(&envs.observations()[own]);
                self.discounted_returns[env] = 0.0;
                self.discounts[env] = 1.0;
            }
        }
        ended
    }
}

/// Online network, target network and how they learn.
struct DoubleDqn {
    q_network: QNetwork,       // Q(s, ·; θ)
    target_network: QNetwork,  // Q(s, ·; θ⁻)
    parameters: VarMap,        // θ
    target_parameters: VarMap, // θ⁻: a map of its own, for a clone would follow θ
    optimizer: Adam,
    num_actions: usize,
    args: Args,
    device: Device,
}

impl DoubleDqn {
    fn new(observation_dim: usize, num_actions: usize, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let network = |parameters: &VarMap| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            QNetwork::new(observation_dim, &args.hidden_sizes, num_actions, vb)
        };
        let (q_network, target_network) = (network(&parameters)?, network(&target_parameters)?);
        copy_parameters(&target_parameters, &parameters)?;
        let optimizer = Adam::new(&parameters, args.learning_rate)?.with_eps(args.adam_eps);
        let args = args.clone();
        Ok(Self {
            q_network,
            target_network,
            parameters,
            target_parameters,
            optimizer,
            num_actions,
            args,
            device,
        })
    }

    /// argmax_a Q(s, a; θ) for each of `num_envs` observations.
    fn act_greedily(&self, observations: &[f32], num_envs: usize) -> Result<Vec<u32>> {
        let shape = (num_envs, observations.len() / num_envs);
        let q_values = self.q_network.forward(&Tensor::from_slice(observations, shape, &self.device)?)?;
        Ok(q_values.argmax(D::Minus1)?.to_vec1()?)
    }

    /// The same, but for each observation with probability ε a uniformly random action.
    fn act(&self, observations: &[f32], num_envs: usize, epsilon: f64, rng: &mut Rng) -> Result<Vec<u32>> {
        let mut actions = self.act_greedily(observations, num_envs)?;
        for action in &mut actions {
            if rng.random::<f64>() < epsilon {
                *action = rng.random_range(0..self.num_actions as u32);
            }
        }
        Ok(actions)
    }

    /// max_a Q(s, a; θ) of one observation.
    fn greedy_value(&self, observation: &[f32]) -> Result<f32> {
        let observation = Tensor::from_slice(observation, (1, observation.len()), &self.device)?;
        Ok(self.q_network.forward(&observation)?.max_all()?.to_scalar()?)
    }

    /// y, `[batch, 1]`.
    fn td_targets(&self, batch: &Batch) -> Result<Tensor> {
        // The idea, and easy to swap: a' = argmax_a' Q(s', a'; θ) is the online network's choice, …
        let chooser = if self.args.double { &self.q_network } else { &self.target_network };
        let next_actions = chooser.forward(&batch.next_observations)?.argmax_keepdim(D::Minus1)?; // [batch, 1], u32
        // … and the target network says what it is worth: Q(s', a'; θ⁻), [batch, 1]
        let next_values = self.target_network.forward(&batch.next_observations)?.gather(&next_actions, 1)?;
        // y = r + γ (1 − terminated) Q(s', argmax_a' Q(s', a'; θ); θ⁻)
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((&batch.rewards + discounts * next_values)?.detach())
    }

    /// One step of the online network towards y; the target network stays as it is. Returns L(θ) and
    /// E[ Q(s, a; θ) ] from before the step.
    fn update(&mut self, batch: &Batch) -> Result<(f32, f32)> {
        let y = self.td_targets(batch)?;
        let q_values = self.q_network.forward(&batch.observations)?.gather(&batch.actions, 1)?; // Q(s, a), [batch, 1]
        let error = (&y - &q_values)?; // δ
        let losses = if self.args.clip_error {
            // The gradient of Huber's loss is the clipped error: ℓ(δ) = m (|δ| − ½ m), m = min(|δ|, 1).
            let magnitude = error.abs()?;
            let inside = clamp(&magnitude, 0.0, 1.0)?.detach(); // ∇ℓ = m ∇|δ|: that of ℓ with m held constant
            (&inside * (&magnitude - (&inside * 0.5)?)?)?
        } else {
            error.sqr()?
        };
        // L(θ) = E[ (y − Q(s, a; θ))² ]
        let loss = losses.mean_all()?;
        self.optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, q_values.mean_all()?.to_scalar()?))
    }

    /// θ⁻ ← (1 − τ) θ⁻ + τ θ
    fn update_target(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.parameters, self.args.tau)?)
    }
}

/// ε after `step` steps: from `start` to `end` in a straight line over `duration` steps, then `end`.
fn linear_schedule(start: f64, end: f64, duration: f64, step: usize) -> f64 {
    let progress = (step as f64 / duration.max(1.0)).min(1.0);
    start + (end - start) * progress
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let num_envs = args.num_envs;
    let mut envs = VecEnv::make(&args.run.env_id, num_envs, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("double_dqn")?;
    let mut rng = learner_rng(args.run.seed);
    let mut dqn = DoubleDqn::new(observation_dim, num_actions, &args)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
    let mut running_episodes = RunningEpisodes::new(&envs);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut dqn.parameters),
                ("target_parameters", &mut dqn.target_parameters),
                ("optimizer", &mut dqn.optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("buffer", &mut buffer),
                ("running_episodes", &mut running_episodes),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            dqn.optimizer.learning_rate = remaining * args.learning_rate;
        }

        // Act ε-greedily, one step in each environment, and store what happened.
        let duration = args.exploration_fraction * run.total_timesteps as f64;
        let epsilon = linear_schedule(args.start_e, args.end_e, duration, global_step);
        let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
        let actions = dqn.act(&observations, num_envs, epsilon, &mut rng)?;
        envs.step(&actions)?;
        buffer.store(&observations, &actions, &envs);
        run.episodes(global_step + num_envs, envs.episodes())?;
        for (start, discounted_return) in running_episodes.add_step(&envs, args.gamma) {
            run.log(global_step + num_envs, "charts/start_value", dqn.greedy_value(&start)?)?;
            run.log(global_step + num_envs, "charts/discounted_return", discounted_return)?;
        }

        // Learn. Every environment's step counts, one after the other.
        for _ in 0..num_envs {
            global_step += 1;
            if global_step <= args.learning_starts {
                continue;
            }
            if global_step.is_multiple_of(args.train_frequency) {
                let batch = buffer.sample(args.batch_size, &mut rng, &dqn.device)?;
                let (td_loss, q_values) = dqn.update(&batch)?;
                if global_step.is_multiple_of(100) {
                    run.log(global_step, "losses/td_loss", td_loss)?;
                    run.log(global_step, "losses/q_values", q_values)?;
                    run.log(global_step, "charts/epsilon", epsilon)?;
                    run.log(global_step, "charts/learning_rate", dqn.optimizer.learning_rate)?;
                }
            }
            if global_step.is_multiple_of(args.target_network_frequency) {
                dqn.update_target()?;
            }
        }
    }

    run.save_or_load_model(&mut dqn.parameters)?;
    run.evaluate(|observations| dqn.act_greedily(observations, observations.len() / observation_dim))?;
    Ok(())
}

#[cfg(test)]
mod tests;
