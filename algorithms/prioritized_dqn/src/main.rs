//! # Deep Q-network with prioritised experience replay
//!
//! Schaul, Quan, Antonoglou & Silver (2016), "Prioritized experience replay", ICLR, arXiv:1511.05952.
//!
//! Most of what lies in a replay buffer is known already, and uniform draws repeat it. Here a transition
//! is drawn in proportion to a power of its temporal-difference error when it was last seen; a new one has
//! the greatest priority so far, so that each is seen soon. What is drawn more often would bias the mean
//! that an update estimates, so it is weighted down for it, more and more fully as the run goes on. A step
//! that was merely truncated by a time limit is not terminal: its next state has a value.
//!
//! ```text
//! P(i) = p_i^α / Σ_j p_j^α           α = 0: uniform
//! w_i  = (N P(i))^−β / max_j w_j     over the batch; β rises from β_0 to 1
//! y    = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)        δ = y − Q(s, a; θ)
//! L(θ) = 1/batch Σ_i w_i δ_i²,  i ~ P                       ∇_θ y = 0
//! p_i  ← |δ_i| + ε                   for what was drawn;   max_{j so far} p_j for a new transition
//! θ⁻   ← (1 − τ) θ⁻ + τ θ            every target_network_frequency steps (τ = 1: a plain copy)
//! ```
//!
//! The powers are the leaves of a binary tree whose inner nodes are the sums of their children: a new
//! priority changes only the path to the root, and one descent finds the leaf into which a number from
//! [0, Σ_j p_j^α) falls, both in O(log N). Each row of a batch is drawn from its own equal part of that range.
//!
//! Deviations from the paper:
//! - DQN's targets, so that the replay is all that is new: algorithm 1 has Double DQN's (see `double_dqn`);
//! - proportional priorities only, none by rank; of the largest weights that the paper may mean, the batch's;
//! - vectors, not images; batches of 256, not 32; Adam, not RMSProp, with 0.01 added to its root and a step size that
//!   falls to zero from more than DQN's, not from a quarter; for rare copies a run of 50,000 steps is too short: θ⁻
//!   follows θ in many small steps (Lillicrap et al. 2015, arXiv:1509.02971);
//! - errors are squared as they are, where the paper clips them to [−1, 1] (`--clip-error`, never for p): a
//!   clipped error pulls values to the median of their targets, which in CartPole leaves out the rare falls.
//!
//! Run `cargo run -p prioritized_dqn`: 475 or more on CartPole-v1 after 50,000 steps in five seconds, with
//! 36 seeds of 40 (475 is the return at which Gymnasium registers the task as solved).

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Linear, VarBuilder, VarMap, clamp, copy_parameters, linear, soft_update};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Deep Q-network with prioritised experience replay
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("50000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam
    #[arg(long, default_value_t = 4e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Added to the root of the mean squared gradient by which Adam divides
    #[arg(long, default_value_t = 1e-2, value_parser = cli::above_zero)]
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
    #[arg(long, default_value_t = 256, value_parser = cli::positive)]
    batch_size: usize,
    /// Power of the priorities in the probability of being drawn, α
    #[arg(long, default_value_t = 0.6, value_parser = cli::unit_interval)]
    prioritized_replay_alpha: f64,
    /// Power of the importance weights at the start, β_0; it rises to 1
    #[arg(long, default_value_t = 0.4, value_parser = cli::unit_interval)]
    prioritized_replay_beta: f64,
    /// What is added to an error, so that none makes a transition disappear, ε
    #[arg(long, default_value_t = 1e-6, value_parser = cli::above_zero)]
    prioritized_replay_eps: f64,
    /// Probability of a random action at the start
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    start_e: f64,
    /// Probability of a random action once exploration has ended
    #[arg(long, default_value_t = 0.04, value_parser = cli::unit_interval)]
    end_e: f64,
    /// Fraction of the run over which that probability falls from its start to its end
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    exploration_fraction: f64,
    /// Environment steps before learning starts
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Clip the errors of an update to [−1, 1], as the paper does
    #[arg(long, default_value_t = false)]
    clip_error: bool,
    /// Environment steps between updates
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    train_frequency: usize,
}

/// Q(s, ·): hidden layers of rectified linear units.
struct QNetwork {
    hidden: Vec<Linear>, // [observation_dim] → sizes[0] → …
    output: Linear,      // → [num_actions]
}

impl QNetwork {
    fn new(observation_dim: usize, sizes: &[usize], num_actions: usize, vb: VarBuilder) -> Result<Self> {
        let (mut hidden, mut inputs) = (Vec::new(), observation_dim);
        for (i, &size) in sizes.iter().enumerate() {
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

/// Numbers p_i^α ≥ 0 and their sums: a binary tree, root first, the children of node n at 2n + 1 and 2n + 2.
#[derive(Serialize, Deserialize, Default)]
pub(crate) struct SumTree {
    sums: Vec<f64>, // [2 · leaves − 1], the sum of all first, the leaves last
}

impl SumTree {
    /// `len` numbers, all 0.
    pub(crate) fn new(len: usize) -> Self {
        Self { sums: vec![0.0; 2 * len.next_power_of_two() - 1] }
    }

    /// Changes number `i` and the sums above it.
    pub(crate) fn set(&mut self, i: usize, number: f64) {
        let mut node = self.sums.len() / 2 + i; // half of the nodes are inner ones
        self.sums[node] = number;
        while node > 0 {
            node = (node - 1) / 2;
            // Added up anew: differences would gather rounding errors.
            self.sums[node] = self.sums[2 * node + 1] + self.sums[2 * node + 2];
        }
    }

    /// The i into whose part of [0, total) `mass` falls, Σ_{j<i} p_j^α ≤ mass < Σ_{j≤i} p_j^α, and p_i^α.
    pub(crate) fn find(&self, mut mass: f64) -> (usize, f64) {
        let mut node = 0;
        while node < self.sums.len() / 2 {
            node = 2 * node + 1; // to the left, …
            // … or to the right, but never into nothing, where rounding may leave too large a mass.
            if mass >= self.sums[node] && self.sums[node + 1] > 0.0 {
                mass -= self.sums[node];
                node += 1;
            }
        }
        (node - self.sums.len() / 2, self.sums[node])
    }
}

/// The last `capacity` transitions, the oldest overwritten first, and their priorities.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    capacity: usize,
    next_row: usize,             // where the next transition goes
    observations: Vec<f32>,      // s, [len, observation_dim]
    actions: Vec<u32>,           // a, [len]
    rewards: Vec<f32>,           // r, [len]
    next_observations: Vec<f32>, // s', an episode's true last one at its end, [len, observation_dim]
    terminated: Vec<f32>,        // 1 where nothing lies beyond s', 0 elsewhere, truncation included, [len]
    priorities: SumTree,         // p^α, [len] and zeros
    max_priority: f64,           // the greatest p so far
    alpha: f64,
    eps: f64,
}

/// Transitions drawn from the buffer.
struct Batch {
    rows: Vec<usize>,          // where they lie in the buffer, [batch]
    observations: Tensor,      // s, [batch, observation_dim]
    actions: Tensor,           // a, [batch, 1], u32
    rewards: Tensor,           // r, [batch, 1]
    next_observations: Tensor, // s', [batch, observation_dim]
    terminated: Tensor,        // 1 or 0, [batch, 1]
    weights: Tensor,           // w, [batch, 1]
}

impl ReplayBuffer {
    fn new(capacity: usize, alpha: f64, eps: f64) -> Self {
        let priorities = SumTree::new(capacity);
        Self { capacity, priorities, max_priority: 1.0, alpha, eps, ..Default::default() }
    }

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
            // Nothing is known of its error yet: p = max_{j so far} p_j
            self.priorities.set(row, self.max_priority.powf(self.alpha));
            self.next_row = (row + 1) % self.capacity;
        }
    }

    /// A transition for each of `uniforms`, from [0, 1), in proportion to p^α, with weights of power β.
    fn sample(&self, uniforms: &[f64], beta: f64, device: &Device) -> Result<Batch> {
        let (len, batch_size, total) = (self.rewards.len(), uniforms.len(), self.priorities.sums[0]);
        let (mut rows, mut weights) = (Vec::new(), Vec::new());
        for (k, uniform) in uniforms.iter().enumerate() {
            // Row k is from the k-th of batch_size equal parts of [0, Σ_j p_j^α).
            let (row, number) = self.priorities.find((k as f64 + uniform) * total / batch_size as f64);
            let probability = number / total; // P(i) = p_i^α / Σ_j p_j^α
            rows.push(row);
            weights.push((len as f64 * probability).powf(-beta) as f32); // (N P(i))^−β
        }
        // w_i = (N P(i))^−β / max_j w_j: at most 1, so that no step is longer than without priorities.
        let largest = weights.iter().copied().fold(0.0, f32::max);
        weights.iter_mut().for_each(|weight| *weight /= largest);
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
            weights: Tensor::from_vec(weights, (batch_size, 1), device)?,
            rows,
        })
    }

    /// Gives the transitions in `rows` the priorities that follow from their errors δ.
    fn update_priorities(&mut self, rows: &[usize], errors: &[f32]) {
        for (&row, &error) in rows.iter().zip(errors) {
            // p_i = |δ_i| + ε
            let priority = f64::from(error.abs()) + self.eps;
            self.priorities.set(row, priority.powf(self.alpha));
            self.max_priority = self.max_priority.max(priority);
        }
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
struct PrioritizedDqn {
    q_network: QNetwork,       // Q(s, ·; θ)
    target_network: QNetwork,  // Q(s, ·; θ⁻)
    parameters: VarMap,        // θ
    target_parameters: VarMap, // θ⁻: a map of its own, for a clone would follow θ
    optimizer: Adam,
    num_actions: usize,
    args: Args,
    device: Device,
}

impl PrioritizedDqn {
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
        Ok(Self {
            q_network,
            target_network,
            parameters,
            target_parameters,
            optimizer,
            num_actions,
            args: args.clone(),
            device,
        })
    }

    /// argmax_a Q(s, a; θ) for each of `num_envs` observations.
    fn act_greedily(&self, observations: &[f32], num_envs: usize) -> Result<Vec<u32>> {
        let shape = (num_envs, observations.len() / num_envs);
        let q_values = self.q_network.forward(&Tensor::from_slice(observations, shape, &self.device)?)?;
        Ok(q_values.argmax(D::Minus1)?.to_vec1()?)
    }

    /// The same, but for each observation with probability `epsilon` a uniformly random action.
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
        // max_a' Q(s', a'; θ⁻)
        let next_values = self.target_network.forward(&batch.next_observations)?.max_keepdim(D::Minus1)?;
        // y = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((&batch.rewards + discounts * next_values)?.detach())
    }

    /// One step of the online network towards y; the target network stays as it is. Returns L(θ),
    /// E[ Q(s, a; θ) ] and every δ from before the step.
    fn update(&mut self, batch: &Batch) -> Result<(f32, f32, Vec<f32>)> {
        let q_values = self.q_network.forward(&batch.observations)?.gather(&batch.actions, 1)?; // Q(s, a), [batch, 1]
        let error = (self.td_targets(batch)? - &q_values)?; // δ = y − Q(s, a; θ)
        let losses = if self.args.clip_error {
            // The gradient of Huber's loss is the clipped error: ℓ(δ) = m (|δ| − ½ m), m = min(|δ|, 1).
            let magnitude = error.abs()?;
            let inside = clamp(&magnitude, 0.0, 1.0)?.detach(); // ∇ℓ = m ∇|δ|: that of ℓ with m held constant
            (&inside * (&magnitude - (&inside * 0.5)?)?)?
        } else {
            error.sqr()?
        };
        // L(θ) = 1/batch Σ_i w_i δ_i²
        let loss = (&batch.weights * losses)?.mean_all()?;
        self.optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, q_values.mean_all()?.to_scalar()?, error.flatten_all()?.to_vec1()?))
    }

    /// θ⁻ ← (1 − τ) θ⁻ + τ θ
    fn update_target(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.parameters, self.args.tau)?)
    }
}

/// From `start` to `end` in a straight line over `duration` steps, then `end`: its value after `step`.
fn linear_schedule(start: f64, end: f64, duration: f64, step: usize) -> f64 {
    start + (end - start) * (step as f64 / duration.max(1.0)).min(1.0)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let Args { num_envs, buffer_size, prioritized_replay_alpha: alpha, .. } = args;
    if buffer_size > 1 << 27 {
        return invalid(format!("--buffer-size {buffer_size}: at most {} transitions are accepted", 1 << 27));
    }
    let mut envs = VecEnv::make(&args.run.env_id, num_envs, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("prioritized_dqn")?;
    let mut rng = learner_rng(args.run.seed);
    let mut dqn = PrioritizedDqn::new(observation_dim, num_actions, &args)?;
    let mut buffer = ReplayBuffer::new(buffer_size, alpha, args.prioritized_replay_eps);
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

        // Act greedily or at random, one step in each environment, and store what happened.
        let total = run.total_timesteps as f64;
        let beta = linear_schedule(args.prioritized_replay_beta, 1.0, total, global_step);
        let epsilon =
            linear_schedule(args.start_e, args.end_e, args.exploration_fraction * total, global_step);
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
                let uniforms: Vec<f64> = (0..args.batch_size).map(|_| rng.random()).collect();
                let batch = buffer.sample(&uniforms, beta, &dqn.device)?;
                let (td_loss, q_values, td_errors) = dqn.update(&batch)?;
                buffer.update_priorities(&batch.rows, &td_errors);
                if global_step.is_multiple_of(100) {
                    run.log(global_step, "losses/td_loss", td_loss)?;
                    run.log(global_step, "losses/q_values", q_values)?;
                    run.log(global_step, "charts/beta", beta)?;
                    run.log(global_step, "charts/max_priority", buffer.max_priority)?;
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
