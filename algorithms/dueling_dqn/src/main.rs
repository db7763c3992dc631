//! # Dueling DQN
//!
//! Wang, Schaul, Hessel, van Hasselt, Lanctot & de Freitas (2016), "Dueling network architectures for deep
//! reinforcement learning", ICML, arXiv:1511.06581.
//!
//! In most states it hardly matters what is done next, and a network that has an output for each action
//! learns of one action at a time what is true of all of them. A dueling network has two streams on a
//! common trunk: the value of the state, which every update moves whatever the action was, and the
//! advantage of each action. Their sum does not say which part is whose, since a constant can go back and
//! forth, so the mean advantage is subtracted: V is then the mean of the action values, not the value of the
//! greedy policy, which the maximum in place of the mean would make it (equation 8; the mean is steadier).
//!
//! ```text
//! Q(s, a; θ) = V(s; θ) + A(s, a; θ) − 1/|𝒜| Σ_a' A(s, a'; θ)                       equation 9
//! y    = r + γ (1 − terminated) Q(s', argmax_a' Q(s', a'; θ); θ⁻)          Double DQN
//! y    = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)                       DQN, with --double=false
//! L(θ) = E_{(s, a, r, s') ~ replay}[ (y − Q(s, a; θ))² ]        ∇_θ y = 0
//! θ⁻   ← (1 − τ) θ⁻ + τ θ     every target_network_frequency steps (τ = 1: a plain copy)
//! ```
//!
//! A step that was merely truncated by a time limit is not terminal: its next state has a value. As in the
//! paper the targets are Double DQN's (van Hasselt et al. 2016, arXiv:1509.06461) unless told otherwise.
//!
//! Deviations from the paper:
//! - each stream is one linear layer on the trunk, where the paper's have a hidden layer of 512 units each;
//! - the gradient that enters the trunk is not divided by √2, on which Adam's steps hardly depend, and no
//!   gradient is clipped to a norm of 10;
//! - vectors instead of images, and hyper-parameters of their size: a buffer of 50,000 steps (the paper: a
//!   million), batches of 64 (32), a last ε of 0.04 and learning after 1,000 steps (50,000);
//! - Adam instead of RMSProp, its step size falling to zero, and an update at every step instead of every
//!   fourth (`dqn` gives the reasons);
//! - θ⁻ follows θ in many small steps (Lillicrap et al. 2015, arXiv:1509.02971) instead of rare copies, for
//!   which a run of 50,000 steps is too short;
//! - errors are squared as they are, where DQN clips them to [−1, 1] (`--clip-error`): a clipped error
//!   pulls values to the median of their targets, which in CartPole leaves out the rare falls.
//!
//! Run `cargo run -p dueling_dqn`: 475 or more on CartPole-v1 after 50,000 steps in 15 seconds
//! (475 is the return at which Gymnasium registers the task as solved).

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

/// Dueling deep Q-network
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
    /// Sizes of the hidden layers that both streams share
    #[arg(long, default_value = "120,84", value_delimiter = ',', value_parser = cli::positive)]
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
    /// Let the online network choose the action that the target network values, as Double DQN does
    #[arg(long, default_value_t = true)]
    double: bool,
    /// Environment steps between updates
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    train_frequency: usize,
}

/// Q(s, ·): a trunk of rectified linear units, and two streams on it.
struct QNetwork {
    trunk: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    value: Linear,      // → [1]
    advantage: Linear,  // → [num_actions]
}

impl QNetwork {
    fn new(
        observation_dim: usize,
        hidden_sizes: &[usize],
        num_actions: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let (mut trunk, mut inputs) = (Vec::new(), observation_dim);
        for (i, &size) in hidden_sizes.iter().enumerate() {
            trunk.push(linear(inputs, size, vb.pp(format!("trunk{i}")))?);
            inputs = size;
        }
        let value = linear(inputs, 1, vb.pp("value"))?;
        Ok(Self { trunk, value, advantage: linear(inputs, num_actions, vb.pp("advantage"))? })
    }

    /// Observations `[batch, observation_dim]` to V(s) and the centred A(s, ·).
    fn streams(&self, observations: &Tensor) -> Result<Streams> {
        let mut x = observations.clone();
        for layer in &self.trunk {
            x = layer.forward_relu(&x)?;
        }
        let advantages = self.advantage.forward(&x)?; // A(s, a), [batch, num_actions]
        // A(s, a) − 1/|𝒜| Σ_a' A(s, a')
        // Easy to miss: the mean is over the actions of one state, not over the batch.
        let centred = advantages.broadcast_sub(&advantages.mean_keepdim(D::Minus1)?)?;
        Ok(Streams { values: self.value.forward(&x)?, advantages: centred })
    }

    /// Observations `[batch, observation_dim]` to action values `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        self.streams(observations)?.q_values()
    }
}

/// What the two streams say of a batch of states.
struct Streams {
    values: Tensor,     // V(s), [batch, 1]
    advantages: Tensor, // A(s, a) − mean_a' A(s, a'), [batch, num_actions]
}

impl Streams {
    /// Q(s, a) = V(s) + ( A(s, a) − mean_a' A(s, a') ), `[batch, num_actions]`.
    fn q_values(&self) -> Result<Tensor> {
        Ok(self.values.broadcast_add(&self.advantages)?)
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

/// What an update says of itself.
struct Losses {
    td_loss: f32,      // L(θ)
    q_values: f32,     // E[ Q(s, a) ]
    state_values: f32, // E[ V(s) ]
    advantages: f32,   // E[ |A(s, a) − mean_a' A(s, a')| ], over all actions
}

/// Online network, target network and how they learn.
struct DuelingDqn {
    q_network: QNetwork,       // Q(s, ·; θ)
    target_network: QNetwork,  // Q(s, ·; θ⁻)
    parameters: VarMap,        // θ
    target_parameters: VarMap, // θ⁻: a map of its own, for a clone would follow θ
    optimizer: Adam,
    num_actions: usize,
    args: Args,
    device: Device,
}

impl DuelingDqn {
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
        let target_values = self.target_network.forward(&batch.next_observations)?; // Q(s', ·; θ⁻), [batch, num_actions]
        // argmax_a' Q(s', a'; θ), or with DQN's targets argmax_a' Q(s', a'; θ⁻)
        let next_actions = if self.args.double {
            self.q_network.forward(&batch.next_observations)?.argmax_keepdim(D::Minus1)?
        } else {
            target_values.argmax_keepdim(D::Minus1)?
        };
        let next_values = target_values.gather(&next_actions, 1)?; // [batch, 1]
        // y = r + γ (1 − terminated) Q(s', a'; θ⁻)
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((&batch.rewards + discounts * next_values)?.detach())
    }

    /// One step of the online network towards y; the target network stays as it is. What it returns is
    /// from before the step.
    fn update(&mut self, batch: &Batch) -> Result<Losses> {
        let y = self.td_targets(batch)?;
        let streams = self.q_network.streams(&batch.observations)?;
        let q_values = streams.q_values()?.gather(&batch.actions, 1)?; // Q(s, a), [batch, 1]
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
        Ok(Losses {
            td_loss: loss.to_scalar()?,
            q_values: q_values.mean_all()?.to_scalar()?,
            state_values: streams.values.mean_all()?.to_scalar()?,
            advantages: streams.advantages.abs()?.mean_all()?.to_scalar()?,
        })
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
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("dueling_dqn")?;
    let mut rng = learner_rng(args.run.seed);
    let mut dqn = DuelingDqn::new(observation_dim, num_actions, &args)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
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

        // Act ε-greedily, one step in each environment, and store what happened.
        let duration = args.exploration_fraction * run.total_timesteps as f64;
        let epsilon = linear_schedule(args.start_e, args.end_e, duration, global_step);
        let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
        let actions = dqn.act(&observations, num_envs, epsilon, &mut rng)?;
        envs.step(&actions)?;
        buffer.store(&observations, &actions, &envs);
        run.episodes(global_step + num_envs, envs.episodes())?;

        // Learn. Every environment's step counts, one after the other.
        for _ in 0..num_envs {
            global_step += 1;
            if global_step <= args.learning_starts {
                continue;
            }
            if global_step.is_multiple_of(args.train_frequency) {
                let batch = buffer.sample(args.batch_size, &mut rng, &dqn.device)?;
                let losses = dqn.update(&batch)?;
                if global_step.is_multiple_of(100) {
                    run.log(global_step, "losses/td_loss", losses.td_loss)?;
                    run.log(global_step, "losses/q_values", losses.q_values)?;
                    run.log(global_step, "losses/state_values", losses.state_values)?;
                    run.log(global_step, "losses/advantages", losses.advantages)?;
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
