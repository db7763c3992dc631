//! # Categorical deep Q-network (C51)
//!
//! Bellemare, Dabney & Munos (2017), "A distributional perspective on reinforcement learning",
//! arXiv:1707.06887.
//!
//! The return from a state is a random number, and DQN (Mnih et al. 2015, Nature 518) learns no more of
//! it than its mean. C51 learns its whole distribution: the network gives for each action the
//! probabilities p_i of N fixed returns z_i, its atoms. Bellman's equation holds for distributions as it
//! does for means: the return is the reward and γ times the next return, so that the target is the next
//! state's distribution, moved and shrunk; it then lies between the atoms and is brought back to them.
//!
//! ```text
//! z_i     = v_min + i Δz,   Δz = (v_max − v_min) / (N − 1),   i = 0 … N − 1
//! Q(s, a) = Σ_i z_i p_i(s, a; θ)                                    p = softmax(logits)
//! a*      = argmax_a' Σ_i z_i p_i(s', a'; θ⁻)
//! T z_j   = clip( r + γ (1 − terminated) z_j, v_min, v_max )
//! m_i     = Σ_j clip( 1 − |T z_j − z_i| / Δz, 0, 1 ) p_j(s', a*; θ⁻)    the projection Φ
//! L(θ)    = E_{(s, a, r, s') ~ replay}[ − Σ_i m_i ln p_i(s, a; θ) ]     ∇_θ m = 0
//! θ⁻      ← (1 − τ) θ⁻ + τ θ     every target_network_frequency steps (τ = 1: a plain copy)
//! ```
//!
//! The cross-entropy L is the divergence KL(m ‖ p) and a constant. A step that was merely truncated by a
//! time limit is not terminal: its next state has returns. Returns beyond v_min or v_max count as these, and
//! what happens within Δz is hardly seen: the range must be that of the environment's discounted returns.
//!
//! Deviations from the paper:
//! - a moved atom that falls on an atom gives its whole mass to that one; the paper's Algorithm 1 shares it
//!   out by its distances from ⌊b⌋ and ⌈b⌉, which are then both 0, and loses it;
//! - vectors, or small images behind the single convolution of MinAtar's authors (Young & Tian 2019,
//!   arXiv:1903.03176), instead of Atari's screens, and the 51 atoms from 0 to 100 instead of −10 to 10: an
//!   episode of CartPole is worth up to 100. From −100 to 100, CleanRL's range, one seed in four fails;
//! - as in `dqn`, with its reasons, a step size that falls to zero and θ⁻ that follows in small steps;
//! - ε falls over half of the run, as CleanRL has it, and the buffer holds all of the run: without failures
//!   in it all returns come to look like v_max.
//!
//! Run `cargo run -p c51`: 450 or more on CartPole-v1, in twenty seconds (CleanRL's `c51.py`: 481), and
//! `return_distribution.png` for its last state. Other returns need another range:
//! `cargo run -p c51 -- --env-id Acrobot-v1 --v-min=-100 --v-max=0`, MinAtar's games `--v-min=-10 --v-max=10`.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, Space, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Conv2d, Linear, VarBuilder, VarMap, conv2d, copy_parameters, linear, soft_update};
use common::{Run, cli, cli::RunArgs, plot::Chart, plot::Curve};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{path::Path, process::ExitCode};

/// Deep Q-network of distributions of returns
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("100000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam
    #[arg(long, default_value_t = 1.5e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Term that keeps Adam from dividing by zero (the paper's: 0.01 / batch size)
    #[arg(long, default_value_t = 1.5e-4, value_parser = cli::above_zero)]
    adam_eps: f64,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Sizes of the hidden layers
    #[arg(long, default_value = "120,84", value_delimiter = ',', value_parser = cli::positive)]
    hidden_sizes: Vec<usize>,
    /// Returns that a distribution consists of, N
    #[arg(long, default_value_t = 51, value_parser = cli::positive)]
    n_atoms: usize,
    /// The smallest of them: no return should lie below
    #[arg(long, default_value_t = 0.0, value_parser = cli::finite)]
    v_min: f64,
    /// The largest of them: nor above
    #[arg(long, default_value_t = 100.0, value_parser = cli::finite)]
    v_max: f64,
    /// Steps that the replay buffer holds
    #[arg(long, default_value_t = 100_000, value_parser = cli::positive)]
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
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    batch_size: usize,
    /// Probability of a random action at the start, ε
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    start_e: f64,
    /// Probability of a random action once exploration has ended
    #[arg(long, default_value_t = 0.04, value_parser = cli::unit_interval)]
    end_e: f64,
    /// Fraction of the run over which ε falls from its start to its end
    #[arg(long, default_value_t = 0.5, value_parser = cli::unit_interval)]
    exploration_fraction: f64,
    /// Environment steps before learning starts
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Environment steps between updates
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    train_frequency: usize,
}

/// Logits of p(s, ·): rectified linear layers; an image first goes through MinAtar's authors' 16 filters.
struct Network {
    convolution: Option<Conv2d>, // [height, width, channels] → [height − 2, width − 2, 16]
    hidden: Vec<Linear>,         // → hidden_sizes[0] → …
    output: Linear,              // → [num_actions · n_atoms]
    shape: Vec<usize>,           // of one observation
    scale: f64,                  // of an image's numbers, to bring them to 0 to 1
    n_atoms: usize,
}

impl Network {
    fn new(space: &Space, num_actions: usize, args: &Args, vb: VarBuilder) -> Result<Self> {
        let (mut convolution, mut inputs, mut scale) = (None, space.size(), 1.0);
        if let Space::Box { shape, high, .. } = space
            && let [height, width, channels] = shape[..]
        {
            convolution = Some(conv2d(channels, 16, 3, Default::default(), vb.pp("convolution"))?);
            inputs = (height - 2) * (width - 2) * 16;
            scale = 1.0 / f64::from(high[0]);
        }
        let mut hidden = Vec::new();
        for (i, &size) in args.hidden_sizes.iter().enumerate() {
            hidden.push(linear(inputs, size, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        let output = linear(inputs, num_actions * args.n_atoms, vb.pp("output"))?;
        Ok(Self { convolution, hidden, output, shape: space.shape(), scale, n_atoms: args.n_atoms })
    }

    /// Observations `[batch, observation_dim]` to logits `[batch, num_actions, n_atoms]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let batch = observations.dim(0)?;
        let mut x = observations.clone();
        if let Some(convolution) = &self.convolution {
            let images = (x * self.scale)?.reshape([&[batch], &self.shape[..]].concat())?;
            x = convolution.forward_relu(&images)?.flatten_from(1)?;
        }
        for layer in &self.hidden {
            x = layer.forward_relu(&x)?;
        }
        Ok(self.output.forward(&x)?.reshape((batch, (), self.n_atoms))?)
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
    /// Stores the step that `envs`, a single environment, has just made.
    fn store(&mut self, observation: &[f32], action: u32, envs: &VecEnv) {
        let row = self.next_row;
        write_row(&mut self.observations, row, observation);
        write_row(&mut self.actions, row, &[action]);
        write_row(&mut self.rewards, row, envs.rewards());
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
        write_row(&mut self.next_observations, row, envs.final_observations());
        write_row(&mut self.terminated, row, &[f32::from(u8::from(envs.terminated()[0]))]);
        self.next_row = (row + 1) % self.capacity;
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

/// The projection Φ: the distribution of `reward` + `discount` · Z on the atoms, `[n_atoms]`, where Z has
/// the distribution `probabilities` on them. Each moved atom's mass goes to its two neighbours.
fn project(probabilities: &[f32], reward: f32, discount: f64, args: &Args) -> Vec<f32> {
    let Args { n_atoms, v_min, v_max, .. } = *args;
    let delta_z = (v_max - v_min) / (n_atoms - 1) as f64; // Δz
    let mut projected = vec![0.0; n_atoms]; // m
    for (j, &p) in probabilities.iter().enumerate() {
        // T z_j = clip( r + γ (1 − terminated) z_j, v_min, v_max )
        let z = v_min + j as f64 * delta_z;
        let moved = (f64::from(reward) + discount * z).clamp(v_min, v_max);
        // b_j = (T z_j − v_min) / Δz, its place among the atoms; l = min(⌊b_j⌋, N − 2), u = l + 1
        let b = (moved - v_min) / delta_z;
        // Easy to miss: with u = ⌈b_j⌉ the mass would be lost where b_j is an atom (there l = u).
        let lower = (b as usize).min(n_atoms - 2);
        // m_l += p_j (u − b_j),   m_u += p_j (b_j − l)
        let share = (b - lower as f64) as f32;
        projected[lower] += p * (1.0 - share);
        projected[lower + 1] += p * share;
    }
    projected
}

/// ln softmax(x) = x − ln Σ_i exp(x_i) along the last dimension.
fn log_softmax(x: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_sub(&x.log_sum_exp(D::Minus1)?.unsqueeze(D::Minus1)?)?)
}

/// What `x` `[batch, num_actions, n_atoms]` has for the actions `[batch, 1]`, `[batch, n_atoms]`.
fn of_actions(x: &Tensor, actions: &Tensor) -> Result<Tensor> {
    let indices = actions.unsqueeze(2)?.expand((x.dim(0)?, 1, x.dim(2)?))?.contiguous()?;
    Ok(x.gather(&indices, 1)?.squeeze(1)?)
}

/// Online network, target network and how they learn.
struct C51 {
    network: Network,          // p(s, ·; θ)
    target_network: Network,   // p(s, ·; θ⁻)
    parameters: VarMap,        // θ
    target_parameters: VarMap, // θ⁻: a map of its own, for a clone would follow θ
    optimizer: Adam,
    support: Tensor, // z, [n_atoms]
    num_actions: usize,
    args: Args,
    device: Device,
}

impl C51 {
    fn new(space: &Space, num_actions: usize, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let network = |parameters: &VarMap| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            Network::new(space, num_actions, args, vb)
        };
        let (network, target_network) = (network(&parameters)?, network(&target_parameters)?);
        copy_parameters(&target_parameters, &parameters)?;
        let optimizer = Adam::new(&parameters, args.learning_rate)?.with_eps(args.adam_eps);
        let delta_z = (args.v_max - args.v_min) / (args.n_atoms - 1) as f64;
        let support: Vec<_> = (0..args.n_atoms).map(|i| (args.v_min + i as f64 * delta_z) as f32).collect();
        Ok(Self {
            network,
            target_network,
            parameters,
            target_parameters,
            optimizer,
            support: Tensor::new(support, &device)?,
            num_actions,
            args: args.clone(),
            device,
        })
    }

    /// Q = Σ_i z_i p_i: `[…, n_atoms]` to `[…]`.
    fn means(&self, probabilities: &Tensor) -> Result<Tensor> {
        Ok(probabilities.broadcast_mul(&self.support)?.sum(D::Minus1)?)
    }

    /// argmax_a Q(s, a; θ) for each of `[num_envs, observation_dim]` observations.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        let size = self.network.shape.iter().product::<usize>();
        let logits = self.network.forward(&Tensor::from_slice(observations, ((), size), &self.device)?)?;
        Ok(self.means(&log_softmax(&logits)?.exp()?)?.argmax(D::Minus1)?.to_vec1()?)
    }

    /// The same, but for each observation with probability ε a uniformly random action.
    fn act(&self, observations: &[f32], epsilon: f64, rng: &mut Rng) -> Result<Vec<u32>> {
        let mut actions = self.act_greedily(observations)?;
        for action in &mut actions {
            if rng.random::<f64>() < epsilon {
                *action = rng.random_range(0..self.num_actions as u32);
            }
        }
        Ok(actions)
    }

    /// Draws p(s, a; θ) over the returns z, a curve for each action a, for one observation.
    fn draw_returns(&self, observation: &[f32], path: &Path) -> Result<()> {
        let observation = Tensor::from_slice(observation, (1, observation.len()), &self.device)?;
        let probabilities = log_softmax(&self.network.forward(&observation)?)?.exp()?.squeeze(0)?;
        let rows: Vec<Vec<f64>> = probabilities.to_dtype(DType::F64)?.to_vec2()?; // [num_actions, n_atoms]
        let xs: Vec<f64> = self.support.to_dtype(DType::F64)?.to_vec1()?;
        let curve = |(a, p): (usize, Vec<f64>)| Curve {
            label: format!("action {a}"),
            xs: xs.clone(),
            low: p.clone(),
            high: p.clone(),
            mean: p,
        };
        let curves: Vec<_> = rows.into_iter().enumerate().map(curve).collect();
        let (title, x_label, y_label) =
            ("What may come of one state", "discounted return z", "probability p");
        Chart { title, x_label, y_label, curves: &curves, ..Chart::default() }.draw(path)
    }

    /// m, `[batch, n_atoms]`.
    fn target_distributions(&self, batch: &Batch) -> Result<Tensor> {
        // a* = argmax_a' Σ_i z_i p_i(s', a'; θ⁻)
        let next = log_softmax(&self.target_network.forward(&batch.next_observations)?)?.exp()?;
        let best_actions = self.means(&next)?.argmax_keepdim(D::Minus1)?; // [batch, 1]
        let next_probabilities = of_actions(&next, &best_actions)?.to_vec2::<f32>()?;
        let to_vec = |column: &Tensor| column.flatten_all()?.to_vec1::<f32>();
        let (rewards, terminated) = (to_vec(&batch.rewards)?, to_vec(&batch.terminated)?);
        // m = Φ( r + γ (1 − terminated) z, p(s', a*; θ⁻) )
        let mut targets = Vec::new();
        for (i, p) in next_probabilities.iter().enumerate() {
            // Easy to miss and fatal: nothing lies beyond a terminal state.
            let discount = self.args.gamma * (1.0 - f64::from(terminated[i]));
            targets.extend(project(p, rewards[i], discount, &self.args));
        }
        Ok(Tensor::from_vec(targets, (rewards.len(), self.args.n_atoms), &self.device)?.detach())
    }

    /// One step of the online network towards m; the target network stays as it is. Returns L(θ) and
    /// E[ Q(s, a; θ) ] from before the step.
    fn update(&mut self, batch: &Batch) -> Result<(f32, f32)> {
        let m = self.target_distributions(batch)?;
        let logits = of_actions(&self.network.forward(&batch.observations)?, &batch.actions)?;
        let log_p = log_softmax(&logits)?; // ln p(s, a), [batch, n_atoms]
        // L(θ) = E[ − Σ_i m_i ln p_i(s, a; θ) ]
        let loss = (m * &log_p)?.sum(D::Minus1)?.mean_all()?.neg()?;
        self.optimizer.backward_step(&loss)?;
        let q_values = self.means(&log_p.exp()?)?; // Q(s, a), [batch]
        Ok((loss.to_scalar()?, q_values.mean_all()?.to_scalar()?))
    }

    /// θ⁻ ← (1 − τ) θ⁻ + τ θ
    fn update_target(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.parameters, self.args.tau)?)
    }
}

/// ε after `step` steps: from `start` to `end` in a straight line over `duration` steps, then `end`.
fn linear_schedule(start: f64, end: f64, duration: f64, step: usize) -> f64 {
    start + (end - start) * (step as f64 / duration.max(1.0)).min(1.0)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let Args { n_atoms, v_min, v_max, .. } = args;
    if n_atoms < 2 || v_min >= v_max {
        return invalid(format!(
            "--n-atoms {n_atoms}: at least 2; --v-min {v_min}: less than --v-max, {v_max}"
        ));
    }
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (_, num_actions) = envs.spec().box_or_image_to_discrete("c51")?;
    let mut rng = learner_rng(args.run.seed);
    let mut c51 = C51::new(&envs.spec().observation_space, num_actions, &args)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut c51.parameters),
                ("target_parameters", &mut c51.target_parameters),
                ("optimizer", &mut c51.optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("buffer", &mut buffer),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            c51.optimizer.learning_rate = remaining * args.learning_rate;
        }

        // Act ε-greedily and store what happened.
        let duration = args.exploration_fraction * run.total_timesteps as f64;
        let epsilon = linear_schedule(args.start_e, args.end_e, duration, global_step);
        let observation = envs.observations().to_vec(); // [observation_dim]
        let action = c51.act(&observation, epsilon, &mut rng)?;
        envs.step(&action)?;
        buffer.store(&observation, action[0], &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if global_step <= args.learning_starts {
            continue;
        }

        // Learn.
        if global_step.is_multiple_of(args.train_frequency) {
            let batch = buffer.sample(args.batch_size, &mut rng, &c51.device)?;
            let (loss, q_values) = c51.update(&batch)?;
            if global_step.is_multiple_of(100) {
                run.log(global_step, "losses/loss", loss)?;
                run.log(global_step, "losses/q_values", q_values)?;
                run.log(global_step, "charts/epsilon", epsilon)?;
                run.log(global_step, "charts/learning_rate", c51.optimizer.learning_rate)?;
            }
        }
        if global_step.is_multiple_of(args.target_network_frequency) {
            c51.update_target()?;
        }
    }

    run.save_or_load_model(&mut c51.parameters)?;
    if !run.eval_only() {
        c51.draw_returns(envs.observations(), &run.dir().join("return_distribution.png"))?;
    }
    run.evaluate(|observations| c51.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
