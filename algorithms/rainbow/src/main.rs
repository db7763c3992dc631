//! # Rainbow: combining improvements in deep reinforcement learning
//!
//! Hessel, Modayil, van Hasselt, Schaul, Ostrovski, Dabney, Horgan, Piot, Azar & Silver (2018), arXiv:1710.02298.
//!
//! Six improvements of DQN (Mnih et al. 2015, Nature 518) in one agent, and the flags that leave them out:
//! - `--double false`: the online network chooses a*, the target network values it (arXiv:1509.06461);
//! - `--dueling false`: a stream V for the state, one A for its actions (arXiv:1511.06581);
//! - `--prioritized false`: what fits badly is replayed more often (arXiv:1511.05952);
//! - `--n-step 1`: n rewards before the next value, so that news travels n steps an update;
//! - `--distributional false`: returns have probabilities p_i of values z_i (see `c51`; arXiv:1707.06887);
//! - `--noisy false`: random weights explore, not ε (see `noisy_dqn`; arXiv:1706.10295).
//!
//! ```text
//! w    = μ_w + σ_w ⊙ f(ε_out) f(ε_in)ᵀ,   b = μ_b + σ_b ⊙ f(ε_out),   f(x) = sgn(x) √|x|
//! p    = softmax_i( V_i(s) + A_i(s, a) − mean_a' A_i(s, a') ),   Q(s, a) = Σ_i z_i p_i(s, a)
//! R_t  = Σ_{l<k} γ^l r_{t+l}                 k = n, or fewer where the episode ends
//! a*   = argmax_a' Q(s_{t+k}, a'; θ)
//! T_j  = clip( R_t + γ^k (1 − terminated) z_j, v_min, v_max )
//! m_i  = Σ_j max( 1 − |T_j − z_i| / Δz, 0 ) p_j(s_{t+k}, a*; θ⁻)
//! ℓ    = − Σ_i m_i ln p_i(s_t, a_t; θ)       the window's priority; ∇_θ m = 0
//! P(j) = ℓ_j^α / Σ ℓ^α,   w_j = (N P(j))^−β / max w,   α = 0.5,   β from 0.4 to 1
//! L(θ) = E_{j ~ P}[ w_j ℓ_j ],   θ⁻ ← (1 − τ) θ⁻ + τ θ
//! ```
//!
//! Deviations from the paper: a priority is ℓ, its KL(m ‖ p) plus the entropy of m; one draw of noise serves
//! p and a*; MinAtar's one convolution for images; a dense layer without noise comes first; a step size of
//! 4e-3 (6.25e-5) that falls to zero, 64 (32) windows every 8 (4) steps, and θ⁻ that follows in small steps
//! (reasons: `dqn`); no noise in the evaluation. Parts left out: ε = 0.05 without noise, ℓ = δ² without p.
//!
//! Run `cargo run -p rainbow`: 450 or more (what RLlib's CI asks for) on CartPole-v1 with 29 of 30 seeds, in 25
//! seconds. MinAtar: `cargo run -p rainbow -- --config algorithms/rainbow/configs/MinAtar-Breakout-v1.toml`.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, Space, VecEnv, invalid, learner_rng};
use common::nn::{self, Adam, Conv2d, Init, Linear, VarBuilder, VarMap, clamp, conv2d, linear, matmul};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, process::ExitCode};

/// Deep Q-network with six improvements
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("100000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam at the start; it falls linearly to zero
    #[arg(long, default_value_t = 4e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Units of the first layer and of the hidden layer of each stream
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    hidden_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// How far the target network moves to the online one in a step, τ
    #[arg(long, default_value_t = 0.01, value_parser = cli::unit_interval)]
    tau: f64,
    /// Windows that the replay buffer holds
    #[arg(long, default_value_t = 100_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Windows drawn from it for one update
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    batch_size: usize,
    /// Environment steps before learning starts
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Environment steps between updates
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    train_frequency: usize,
    /// The online network chooses the next action
    #[arg(long, default_value_t = true)]
    double: bool,
    /// A stream for the state and one for the actions
    #[arg(long, default_value_t = true)]
    dueling: bool,
    /// Replay by priority
    #[arg(long, default_value_t = true)]
    prioritized: bool,
    /// Steps of a window, n
    #[arg(long, default_value_t = 3, value_parser = cli::positive)]
    n_step: usize,
    /// Learn the distribution of returns instead of their mean
    #[arg(long, default_value_t = true)]
    distributional: bool,
    /// Returns that a distribution consists of
    #[arg(long, default_value_t = 51, value_parser = cli::positive)]
    n_atoms: usize,
    /// The smallest of them: no return should lie below (Acrobot-v1: -100)
    #[arg(long, default_value_t = 0.0, value_parser = cli::finite)]
    v_min: f64,
    /// The largest of them: nor above (Acrobot-v1: 0)
    #[arg(long, default_value_t = 100.0, value_parser = cli::finite)]
    v_max: f64,
    /// Explore by noise in the parameters
    #[arg(long, default_value_t = true)]
    noisy: bool,
}

/// A dense layer each of whose parameters has a mean μ and a scale σ.
struct NoisyLinear {
    mu: Linear,    // μ_w [outputs, inputs], μ_b [outputs]
    sigma: Linear, // σ_w and σ_b, shaped alike
}

impl NoisyLinear {
    /// μ is uniform in ±1/√inputs, σ = 0.5/√inputs.
    fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        let (sigma, init) = (vb.pp("sigma"), Init::Const(0.5 / (inputs as f32).sqrt()));
        let weight = sigma.get_with_hints((outputs, inputs), "weight", init)?;
        let sigma = Linear::new(weight, sigma.get_with_hints(outputs, "bias", init)?);
        Ok(Self { mu: linear(inputs, outputs, vb.pp("mu"))?, sigma })
    }

    /// The dense layer that it is with noise: f(ε_in) `[inputs]`, then f(ε_out) `[outputs]`.
    fn perturbed(&self, noise: &mut impl Iterator<Item = f32>) -> Result<Linear> {
        let ((outputs, inputs), device) = (self.mu.weight().dims2()?, self.mu.weight().device());
        let mut column = |size| Tensor::from_iter(noise.by_ref().take(size), device)?.unsqueeze(1);
        let (f_in, f_out) = (column(inputs)?, column(outputs)?); // [inputs, 1], [outputs, 1]
        // w = μ_w + σ_w ⊙ f(ε_out) f(ε_in)ᵀ,   b = μ_b + σ_b ⊙ f(ε_out)
        let weight = (self.mu.weight() + (self.sigma.weight() * f_out.matmul(&f_in.t()?)?)?)?;
        let bias = (self.mu.bias() + (self.sigma.bias() * f_out.squeeze(1)?)?)?;
        Ok(Linear::new(weight, bias))
    }
}

/// ln p(s, ·), or Q(s, ·) where `n_atoms` is 1.
struct Network {
    convolution: Option<Conv2d>, // of an image: [height, width, channels] → [height − 2, width − 2, 16]
    first: Linear,               // → [hidden_size]
    advantage: [NoisyLinear; 2], // A: → [hidden_size] → [num_actions · n_atoms]
    value: Option<[NoisyLinear; 2]>, // V: → [hidden_size] → [n_atoms]
    space: Space,                // of observations
    n_atoms: usize,
    noisy: bool,
}

impl Network {
    fn new(space: &Space, num_actions: usize, args: &Args, vb: VarBuilder) -> Result<Self> {
        let (mut convolution, mut inputs) = (None, space.size());
        if let [height, width, channels] = space.shape()[..] {
            convolution = Some(conv2d(channels, 16, 3, Default::default(), vb.pp("convolution"))?);
            inputs = (height - 2) * (width - 2) * 16;
        }
        let (hidden, n_atoms) = (args.hidden_size, if args.distributional { args.n_atoms } else { 1 });
        let stream = |outputs, vb: VarBuilder| -> Result<_> {
            let output = NoisyLinear::new(hidden, outputs, vb.pp("output"))?;
            Ok([NoisyLinear::new(hidden, hidden, vb.pp("hidden"))?, output])
        };
        let first = linear(inputs, hidden, vb.pp("first"))?;
        let advantage = stream(num_actions * n_atoms, vb.pp("advantage"))?;
        let value = if args.dueling { Some(stream(n_atoms, vb.pp("value"))?) } else { None };
        Ok(Self { convolution, first, advantage, value, space: space.clone(), n_atoms, noisy: args.noisy })
    }

    /// Standard normal numbers for all noisy layers.
    fn sample_noise(&self, rng: &mut Rng) -> Vec<f32> {
        let layers = self.advantage.iter().chain(self.value.iter().flatten()).filter(|_| self.noisy);
        let len = layers.map(|layer| layer.mu.weight().dims().iter().sum::<usize>()).sum();
        StandardNormal.sample_iter(rng).take(len).collect()
    }

    /// Observations `[batch, observation_dim]` to `[batch, num_actions, n_atoms]`, with noise or none, `&[]`.
    fn forward(&self, observations: &Tensor, noise: &[f32]) -> Result<Tensor> {
        // f(x) = sgn(x) √|x|; without noise zeros, which leave μ
        let mut noise = noise.iter().map(|x| x.signum() * x.abs().sqrt()).chain(std::iter::repeat(0.0));
        let (batch, mut x) = (observations.dim(0)?, observations.clone());
        if let (Some(convolution), Space::Box { shape, high, .. }) = (&self.convolution, &self.space) {
            let images = (x / f64::from(high[0]))?.reshape([&[batch], &shape[..]].concat())?; // of 0 to 1
            x = convolution.forward_relu(&images)?.flatten_from(1)?;
        }
        let x = self.first.forward_relu(&x)?;
        let mut stream = |[hidden, output]: &[NoisyLinear; 2]| -> Result<Tensor> {
            let x = hidden.perturbed(&mut noise)?.forward_relu(&x)?;
            Ok(output.perturbed(&mut noise)?.forward(&x)?.reshape((batch, (), self.n_atoms))?)
        };
        let mut x = stream(&self.advantage)?; // [batch, num_actions, n_atoms]
        if let Some(value) = &self.value {
            // V(s) + A(s, a) − mean_a' A(s, a')
            x = x.broadcast_sub(&x.mean_keepdim(1)?)?.broadcast_add(&stream(value)?)?;
        }
        // ln softmax(x) = x − ln Σ_i exp(x_i)
        Ok(if self.n_atoms == 1 { x } else { x.broadcast_sub(&x.log_sum_exp(D::Minus1)?.unsqueeze(2)?)? })
    }
}

/// The last `buffer_size` windows of up to n steps, the oldest overwritten first.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    next_row: usize,                        // where the next window goes
    observations: Vec<f32>,                 // s_t, [len, observation_dim]
    actions: Vec<u32>,                      // a_t, [len]
    returns: Vec<f32>,                      // R_t, [len]
    next_observations: Vec<f32>, // s_{t+k}, an episode's true last one at its end, [len, observation_dim]
    discounts: Vec<f32>,         // γ^k (1 − terminated), [len]
    sums: Vec<f64>,              // a tree: i is the sum of 2 i and 2 i + 1, the second half are priorities^α
    max_priority: f64,           // the largest priority so far
    recent: VecDeque<(Vec<f32>, u32, f32)>, // s, a and r of the steps whose windows are incomplete
}

/// Windows drawn from the buffer.
struct Batch {
    rows: Vec<usize>,          // their places in the buffer
    weights: Tensor,           // w, [batch, 1]
    observations: Tensor,      // s_t, [batch, observation_dim]
    actions: Tensor,           // a_t, [batch, 1], u32
    returns: Tensor,           // R_t, [batch, 1]
    next_observations: Tensor, // s_{t+k}, [batch, observation_dim]
    discounts: Tensor,         // γ^k (1 − terminated), [batch, 1]
}

impl ReplayBuffer {
    /// Takes the step that `envs`, a single environment, has just made; stores the windows that end with it.
    fn store(&mut self, observation: &[f32], action: u32, envs: &VecEnv, args: &Args) {
        let (terminated, truncated) = (envs.terminated()[0], envs.truncated()[0]);
        self.recent.push_back((observation.to_vec(), action, envs.rewards()[0]));
        while self.recent.len() == args.n_step || terminated || truncated {
            // R_t = Σ_{l<k} γ^l r_{t+l}
            let add = |sum, (_, _, reward): &(_, _, f32)| f64::from(*reward) + args.gamma * sum;
            let n_step_return = self.recent.iter().rfold(0.0, add);
            let discount = if terminated { 0.0 } else { args.gamma.powi(self.recent.len() as i32) };
            let Some((observation, action, _)) = self.recent.pop_front() else { break };
            let row = self.next_row;
            write_row(&mut self.observations, row, &observation);
            write_row(&mut self.actions, row, &[action]);
            write_row(&mut self.returns, row, &[n_step_return as f32]);
            // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
            write_row(&mut self.next_observations, row, envs.final_observations());
            write_row(&mut self.discounts, row, &[discount as f32]);
            self.set_priority(row, self.max_priority, args); // so that it is soon drawn
            self.next_row = (row + 1) % args.buffer_size;
        }
    }

    /// Writes ℓ^α of a window into its leaf and into the sums above it.
    fn set_priority(&mut self, row: usize, priority: f64, args: &Args) {
        self.max_priority = self.max_priority.max(priority);
        let mut node = self.sums.len() / 2 + row;
        let alpha = if args.distributional { 0.5 } else { 0.25 }; // (δ²)^¼ = |δ|^½
        self.sums[node] = if args.prioritized { (priority + 1e-6).powf(alpha) } else { 1.0 }; // never 0
        while node > 1 {
            node /= 2;
            self.sums[node] = self.sums[2 * node] + self.sums[2 * node + 1];
        }
    }

    /// As many windows as there are `uniforms`, numbers from 0 to 1: one from each equal share of Σ ℓ^α.
    fn sample(&self, uniforms: &[f64], beta: f64, device: &Device) -> Result<Batch> {
        let (batch_size, len, sums) = (uniforms.len(), self.returns.len(), &self.sums);
        let mut rows = Vec::new();
        for (k, u) in uniforms.iter().enumerate() {
            // Down to the first row that with all before it has more than this:
            let (mut node, mut at) = (1, (k as f64 + u) * sums[1] / batch_size as f64);
            while node < sums.len() / 2 {
                node *= 2;
                // To the right, but never, by a rounding error, to where there is nothing.
                let right = at >= sums[node] && sums[node + 1] > 0.0;
                (node, at) = if right { (node + 1, at - sums[node]) } else { (node, at) };
            }
            rows.push(node - sums.len() / 2);
        }
        // P(j) = ℓ_j^α / Σ ℓ^α,   w_j = (N P(j))^−β / max w
        let w = |&j: &usize| (len as f64 * sums[sums.len() / 2 + j] / sums[1]).powf(-beta);
        let max_w = rows.iter().map(w).fold(0.0, f64::max);
        let gather = |column: &[f32]| {
            let width = column.len() / len;
            let values = rows.iter().flat_map(|row| &column[row * width..(row + 1) * width]);
            Tensor::from_vec(values.copied().collect(), (batch_size, width), device)
        };
        Ok(Batch {
            weights: Tensor::from_iter(rows.iter().map(|j| (w(j) / max_w) as f32), device)?.unsqueeze(1)?,
            observations: gather(&self.observations)?,
            actions: Tensor::from_iter(rows.iter().map(|&j| self.actions[j]), device)?.unsqueeze(1)?,
            returns: gather(&self.returns)?,
            next_observations: gather(&self.next_observations)?,
            discounts: gather(&self.discounts)?,
            rows,
        })
    }
}

/// Writes `values` to a row of a column, which grows until it is full.
fn write_row<T: Copy>(column: &mut Vec<T>, row: usize, values: &[T]) {
    let (start, end) = (row * values.len(), (row + 1) * values.len());
    column.resize(column.len().max(end), values[0]);
    column[start..end].copy_from_slice(values);
}

/// What `x` `[batch, num_actions, n_atoms]` has for the actions `[batch, 1]`, `[batch, n_atoms]`.
fn of_actions(x: &Tensor, actions: &Tensor) -> Result<Tensor> {
    let indices = actions.unsqueeze(2)?.expand((x.dim(0)?, 1, x.dim(2)?))?.contiguous()?;
    Ok(x.gather(&indices, 1)?.squeeze(1)?)
}

/// Online network, target network and how they learn.
struct Rainbow {
    network: Network,          // of θ
    target_network: Network,   // of θ⁻
    parameters: VarMap,        // θ
    target_parameters: VarMap, // θ⁻: a map of its own, for a clone would follow θ
    optimizer: Adam,
    support: Tensor, // z, [1, n_atoms]
    args: Args,
}

impl Rainbow {
    fn new(space: &Space, num_actions: usize, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let vb = |parameters: &VarMap| VarBuilder::from_varmap(parameters, DType::F32, &device);
        let network = |parameters: &VarMap| Network::new(space, num_actions, args, vb(parameters));
        let (network, target_network) = (network(&parameters)?, network(&target_parameters)?);
        nn::copy_parameters(&target_parameters, &parameters)?;
        let optimizer = Adam::new(&parameters, args.learning_rate)?.with_eps(1.5e-4); // the paper's
        let delta_z = (args.v_max - args.v_min) / (args.n_atoms - 1) as f64;
        let support = Tensor::arange(0, args.n_atoms as u32, &device)?.to_dtype(DType::F32)?.unsqueeze(0)?;
        let (support, args) = (support.affine(delta_z, args.v_min)?, args.clone());
        Ok(Self { network, target_network, parameters, target_parameters, optimizer, support, args })
    }

    /// Q of what a network says, `[batch, num_actions, n_atoms]` to `[batch, num_actions]`.
    fn q_values(&self, outputs: &Tensor) -> Result<Tensor> {
        // Q(s, a) = Σ_i z_i p_i(s, a)
        let mean = || outputs.exp()?.broadcast_mul(&self.support)?.sum(D::Minus1);
        Ok(if self.args.distributional { mean() } else { outputs.squeeze(2) }?)
    }

    /// argmax_a Q(s, a; θ) for each of `[num_envs, observation_dim]` observations.
    fn act(&self, observations: &[f32], noise: &[f32]) -> Result<Vec<u32>> {
        let x = Tensor::from_slice(observations, ((), self.network.space.size()), self.support.device())?;
        Ok(self.q_values(&self.network.forward(&x, noise)?)?.argmax(D::Minus1)?.to_vec1()?)
    }

    /// m, `[batch, n_atoms]`, or without distributions y, `[batch, 1]`.
    fn targets(&self, batch: &Batch, [noise, target_noise]: &[Vec<f32>; 2]) -> Result<Tensor> {
        let Args { n_atoms, v_min, v_max, .. } = self.args;
        let next = self.target_network.forward(&batch.next_observations, target_noise)?;
        let online_next = self.network.forward(&batch.next_observations, noise)?;
        // a* = argmax_a' Q(s_{t+k}, a'; θ)
        let chooser = if self.args.double { &online_next } else { &next };
        let next = of_actions(&next, &self.q_values(chooser)?.argmax_keepdim(D::Minus1)?)?; // [batch, n_atoms]
        if !self.args.distributional {
            // y = R_t + γ^k (1 − terminated) Q(s_{t+k}, a*; θ⁻)
            return Ok((&batch.returns + &batch.discounts * next)?.detach());
        }
        // T_j = clip( R_t + γ^k (1 − terminated) z_j, v_min, v_max ), [batch, n_atoms]
        let t = clamp(&batch.discounts.matmul(&self.support)?.broadcast_add(&batch.returns)?, v_min, v_max)?;
        // m_i = Σ_j max( 1 − |T_j − z_i| / Δz, 0 ) p_j(s_{t+k}, a*; θ⁻)
        let distances = t.unsqueeze(1)?.broadcast_sub(&self.support.t()?)?.abs()?; // [batch, i, j]
        let shares = distances.affine(-((n_atoms - 1) as f64) / (v_max - v_min), 1.0)?.relu()?;
        Ok(matmul(&shares, &next.exp()?.unsqueeze(2)?)?.squeeze(2)?.detach())
    }

    /// One step of θ towards the targets. L(θ), E[ Q(s_t, a_t; θ) ] and ℓ `[batch]` from before it.
    fn update(&mut self, batch: &Batch, noise: &[Vec<f32>; 2]) -> Result<(f32, f32, Vec<f32>)> {
        let targets = self.targets(batch, noise)?;
        let outputs = self.network.forward(&batch.observations, &noise[0])?; // [batch, num_actions, n_atoms]
        let q_values = self.q_values(&outputs)?.gather(&batch.actions, 1)?; // Q(s_t, a_t; θ), [batch, 1]
        let losses = match self.args.distributional {
            // ℓ = − Σ_i m_i ln p_i(s_t, a_t; θ), [batch, 1]
            true => (targets * of_actions(&outputs, &batch.actions)?)?.sum_keepdim(D::Minus1)?.neg()?,
            false => (targets - &q_values)?.sqr()?, // ℓ = (y − Q(s_t, a_t; θ))², without distributions
        };
        // L(θ) = E[ w ℓ ]
        let loss = (&batch.weights * &losses)?.mean_all()?;
        self.optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, q_values.mean_all()?.to_scalar()?, losses.flatten_all()?.to_vec1()?))
    }

    /// θ⁻ ← (1 − τ) θ⁻ + τ θ
    fn update_target(&self) -> Result<()> {
        Ok(nn::soft_update(&self.target_parameters, &self.parameters, self.args.tau)?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let Args { n_atoms, v_min, v_max, n_step, learning_starts, .. } = args;
    if n_atoms < 2 || v_min >= v_max {
        return invalid(format!("--n-atoms {n_atoms}: at least 2; --v-min {v_min}: below --v-max, {v_max}"));
    }
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (_, num_actions) = envs.spec().box_or_image_to_discrete("rainbow")?;
    let mut rainbow = Rainbow::new(&envs.spec().observation_space, num_actions, &args)?;
    let (mut rng, sums) = (learner_rng(args.run.seed), vec![0.0; 2 * args.buffer_size.next_power_of_two()]);
    let mut buffer = ReplayBuffer { sums, max_priority: 1.0, ..Default::default() };
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut rainbow.parameters),
                ("target_parameters", &mut rainbow.target_parameters),
                ("optimizer", &mut rainbow.optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("buffer", &mut buffer),
            ],
        )?;
        let progress = global_step as f64 / run.total_timesteps as f64;
        rainbow.optimizer.learning_rate = (1.0 - progress) * args.learning_rate;
        // Act with noisy parameters, or else ε-greedily with ε = 0.05, and store what happened.
        let observation = envs.observations().to_vec(); // [observation_dim]
        let mut action = rainbow.act(&observation, &rainbow.network.sample_noise(&mut rng))?; // [1]
        if !args.noisy && rng.random::<f64>() < 0.05 {
            action[0] = rng.random_range(0..num_actions as u32);
        }
        envs.step(&action)?;
        buffer.store(&observation, action[0], &envs, &args);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;

        // Learn, as soon as there is a window, and replay more often what fits badly.
        if global_step > learning_starts.max(n_step) && global_step.is_multiple_of(args.train_frequency) {
            let beta = 0.4 + 0.6 * progress;
            let uniforms: Vec<f64> = (0..args.batch_size).map(|_| rng.random()).collect();
            let batch = buffer.sample(&uniforms, beta, rainbow.support.device())?;
            let noise = [(); 2].map(|()| rainbow.network.sample_noise(&mut rng)); // of θ, of θ⁻
            let (loss, q_values, window_losses) = rainbow.update(&batch, &noise)?;
            for (&row, &window_loss) in batch.rows.iter().zip(&window_losses) {
                buffer.set_priority(row, window_loss.into(), &args);
            }
            if global_step.is_multiple_of(100) {
                run.log(global_step, "losses/loss", loss)?;
                run.log(global_step, "losses/q_values", q_values)?;
                run.log(global_step, "charts/beta", beta)?;
                run.log(global_step, "charts/learning_rate", rainbow.optimizer.learning_rate)?;
            }
        }
        rainbow.update_target()?;
    }

    run.save_or_load_model(&mut rainbow.parameters)?;
    run.evaluate(|observations| rainbow.act(observations, &[]))?;
    Ok(())
}

#[cfg(test)]
mod tests;
