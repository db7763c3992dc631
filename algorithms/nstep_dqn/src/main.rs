//! # Deep Q-network with n-step returns
//!
//! Sutton (1988), "Learning to predict by the methods of temporal differences", Machine Learning 3; in
//! deep Q-networks: Hessel, Modayil, van Hasselt, Schaul, Ostrovski, Dabney, Horgan, Piot, Azar & Silver
//! (2018), "Rainbow", arXiv:1710.02298, section "Multi-step learning".
//!
//! A one-step target knows a single reward and leaves the rest to the target network, so that what
//! happened travels back by one step in each round of updates, and at first rests on values that mean
//! nothing. An n-step target adds up n rewards before it asks the network: they arrive n times as fast
//! and the network's errors count γⁿ instead of γ, for more variance, since n rewards vary more than one.
//!
//! ```text
//! k    = min(n, steps from t to the end of the episode)
//! R_t  = Σ_{i<k} γ^i r_{t+i}
//! y    = R_t + γ^k (1 − terminated_{t+k−1}) max_a' Q(s_{t+k}, a'; θ⁻)
//! L(θ) = E_{t ~ replay}[ (y − Q(s_t, a_t; θ))² ]        ∇_θ y = 0
//! θ⁻   ← (1 − τ) θ⁻ + τ θ     every target_network_frequency steps (τ = 1: a plain copy)
//! ```
//!
//! A window never reaches into the next episode. If the episode terminates within it, nothing lies beyond
//! its rewards; if a time limit truncates it, the true last observation has a value, discounted by the k
//! steps that were taken and not by n.
//!
//! Deviations from the paper:
//! - nothing corrects for actions 2 to n having been those of an older, exploring policy, where the target
//!   is meant to be the greedy one's. Rainbow does not correct either; here the buffer holds only the last
//!   10,000 steps, whose policies are near: with all 50,000 four seeds of four stayed below 350;
//! - of Rainbow's six additions to DQN only this one;
//! - vectors instead of images, and hyper-parameters of their size: the buffer, batches of 64 (Rainbow: 32),
//!   a step size of 1e-3 (6.25e-5) and learning after 1,000 steps (20,000);
//! - Adam's step size falls to zero, and an update is made at every step instead of every fourth (`dqn`
//!   gives the reasons);
//! - θ⁻ follows θ in many small steps (Lillicrap et al. 2015, arXiv:1509.02971) instead of rare copies, for
//!   which a run of 50,000 steps is too short;
//! - errors are squared as they are, where DQN clips them to [−1, 1] (`--clip-error`): a clipped error
//!   pulls values to the median of their targets, which in CartPole leaves out the rare falls.
//!
//! Run `cargo run -p nstep_dqn`: 475 or more on CartPole-v1 after 50,000 steps in ten seconds
//! (475 is the return at which Gymnasium registers the task as solved).

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Linear, VarBuilder, VarMap, clamp, copy_parameters, linear, soft_update};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::process::ExitCode;

/// Deep Q-network with n-step returns
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
    #[arg(long, default_value_t = 10_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Rewards in a return before the target network is asked, n
    #[arg(long, default_value_t = 3, value_parser = cli::positive)]
    n_step: usize,
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
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    exploration_fraction: f64,
    /// Environment steps before learning starts
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Clip the errors of an update to [−1, 1], as DQN's paper does
    #[arg(long, default_value_t = false)]
    clip_error: bool,
    /// Environment steps between updates
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    train_frequency: usize,
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

/// The last `capacity` n-step transitions, the oldest overwritten first.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    capacity: usize,
    next_row: usize,             // where the next transition goes
    observations: Vec<f32>,      // s_t, [len, observation_dim]
    actions: Vec<u32>,           // a_t, [len]
    n_step_returns: Vec<f32>,    // R_t, [len]
    next_observations: Vec<f32>, // s_{t+k}, an episode's true last one at its end, [len, observation_dim]
    discounts: Vec<f32>,         // γ^k, [len]
    terminated: Vec<f32>,        // 1 where nothing lies beyond s_{t+k}, 0 elsewhere, [len]
    /// Of each environment the steps whose returns are not complete yet, fewer than n.
    windows: Vec<VecDeque<PendingStep>>,
}

/// A step that waits for the rewards of those that follow.
#[derive(Serialize, Deserialize, Clone)]
struct PendingStep {
    observation: Vec<f32>, // s, [observation_dim]
    action: u32,
    reward: f32,
}

/// Transitions drawn from the buffer.
struct Batch {
    observations: Tensor,      // s_t, [batch, observation_dim]
    actions: Tensor,           // a_t, [batch, 1], u32
    n_step_returns: Tensor,    // R_t, [batch, 1]
    next_observations: Tensor, // s_{t+k}, [batch, observation_dim]
    discounts: Tensor,         // γ^k, [batch, 1]
    terminated: Tensor,        // 1 or 0, [batch, 1]
}

impl ReplayBuffer {
    fn new(capacity: usize, num_envs: usize) -> Self {
        Self { capacity, windows: vec![VecDeque::new(); num_envs], ..Default::default() }
    }

    /// Takes in the step that each of `envs` has just made from `observations` by `actions`, and stores
    /// the transitions that it completes.
    fn store(&mut self, observations: &[f32], actions: &[u32], envs: &VecEnv, n_step: usize, gamma: f64) {
        let dim = envs.observation_dim();
        for (env, &action) in actions.iter().enumerate() {
            let own = env * dim..(env + 1) * dim;
            let (observation, reward) = (observations[own.clone()].to_vec(), envs.rewards()[env]);
            self.windows[env].push_back(PendingStep { observation, action, reward });
            let ended = envs.terminated()[env] || envs.truncated()[env];
            // A full window completes its first step. Easy to miss: an episode's end completes all of its
            // steps; otherwise nothing would be learned of the last n − 1 states.
            while self.windows[env].len() >= n_step || (ended && !self.windows[env].is_empty()) {
                let window = &self.windows[env];
                // R_t = Σ_{i<k} γ^i r_{t+i}, from the last reward backwards
                let n_step_return =
                    window.iter().rev().fold(0.0, |sum, step| f64::from(step.reward) + gamma * sum);
                let discount = gamma.powi(window.len() as i32); // γ^k
                let row = self.next_row;
                write_row(&mut self.observations, row, &window[0].observation);
                write_row(&mut self.actions, row, &[window[0].action]);
                write_row(&mut self.n_step_returns, row, &[n_step_return as f32]);
                // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
                write_row(&mut self.next_observations, row, &envs.final_observations()[own.clone()]);
                write_row(&mut self.discounts, row, &[discount as f32]);
                write_row(&mut self.terminated, row, &[f32::from(u8::from(envs.terminated()[env]))]);
                self.next_row = (row + 1) % self.capacity;
                self.windows[env].pop_front();
            }
        }
    }

    /// `batch_size` transitions, uniformly and with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<Batch> {
        let len = self.n_step_returns.len();
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
            n_step_returns: gather(&self.n_step_returns)?,
            next_observations: gather(&self.next_observations)?,
            discounts: gather(&self.discounts)?,
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

/// Online network, target network and how they learn.
struct NStepDqn {
    q_network: QNetwork,       // Q(s, ·; θ)
    target_network: QNetwork,  // Q(s, ·; θ⁻)
    parameters: VarMap,        // θ
    target_parameters: VarMap, // θ⁻: a map of its own, for a clone would follow θ
    optimizer: Adam,
    num_actions: usize,
    args: Args,
    device: Device,
}

impl NStepDqn {
    fn new(observation_dim: usize, num_actions: usize, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let network = |parameters: &VarMap| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            QNetwork::new(observation_dim, &args.hidden_sizes, num_actions, vb)
        };
        let (q_network, target_network) = (network(&parameters)?, network(&target_parameters)?);
        copy_parameters(&target_parameters, &parameters)?;
        let optimizer = Adam::new(&parameters, args.learning_rate)?;
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

    /// y, `[batch, 1]`.
    fn td_targets(&self, batch: &Batch) -> Result<Tensor> {
        // max_a' Q(s_{t+k}, a'; θ⁻)
        let next_values = self.target_network.forward(&batch.next_observations)?.max_keepdim(D::Minus1)?;
        // y = R_t + γ^k (1 − terminated) max_a' Q(s_{t+k}, a'; θ⁻)
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let continues = batch.terminated.affine(-1.0, 1.0)?; // 1 − terminated
        Ok((&batch.n_step_returns + (&batch.discounts * continues)? * next_values)?.detach())
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
    let Args { num_envs, n_step, learning_starts, .. } = args;
    if learning_starts < n_step.saturating_sub(1).saturating_mul(num_envs) {
        return invalid(format!(
            "--learning-starts {learning_starts}: at least (--n-step − 1) × --num-envs, so that there is \
             something to draw"
        ));
    }
    let mut envs = VecEnv::make(&args.run.env_id, num_envs, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("nstep_dqn")?;
    let mut rng = learner_rng(args.run.seed);
    let mut dqn = NStepDqn::new(observation_dim, num_actions, &args)?;
    let mut buffer = ReplayBuffer::new(args.buffer_size, num_envs);
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
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            dqn.optimizer.learning_rate = remaining * args.learning_rate;
        }

        // Act ε-greedily, one step in each environment, and store the returns that it completes.
        let duration = args.exploration_fraction * run.total_timesteps as f64;
        let epsilon = linear_schedule(args.start_e, args.end_e, duration, global_step);
        let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
        let actions = dqn.act(&observations, num_envs, epsilon, &mut rng)?;
        envs.step(&actions)?;
        buffer.store(&observations, &actions, &envs, n_step, args.gamma);
        run.episodes(global_step + num_envs, envs.episodes())?;

        // Learn. Every environment's step counts, one after the other.
        for _ in 0..num_envs {
            global_step += 1;
            if global_step <= learning_starts {
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
