//! # Deep Q-network with noisy layers (NoisyNet-DQN)
//!
//! Fortunato, Azar, Piot, Menick, Osband, Graves, Mnih, Munos, Hassabis, Pietquin, Blundell & Legg
//! (2017), "Noisy networks for exploration", arXiv:1706.10295.
//!
//! An ε-greedy agent explores by single random actions, as often in a state that it knows well as in
//! one that it has never seen. Here the weights themselves are random: each has a mean μ and a scale σ,
//! both learned by gradient descent, and an agent that acts greedily with weights drawn anew tries other
//! actions where the noise exceeds the differences of their values, which depends on the state. Where the
//! loss has no use for noise, σ shrinks, and with it exploration: there is no ε and no schedule.
//!
//! A noisy layer of p inputs and q outputs computes, with ⊙ the product of elements,
//!
//! ```text
//! h = (μ_w + σ_w ⊙ ε_w) x + μ_b + σ_b ⊙ ε_b
//! ε_w = f(ε_out) f(ε_in)ᵀ,   ε_b = f(ε_out),   f(x) = sgn(x) √|x|        ε_in ~ N(0, I_p), ε_out ~ N(0, I_q)
//! ```
//!
//! (factorised noise: p + q random numbers where independent noise takes p q + q). It begins with μ
//! uniform in ±1/√p and σ = σ0/√p. The parameters ζ = (μ, σ) of the online network are moved by DQN's
//! rule (Mnih et al. 2015, Nature 518), noise ε for them and other noise ε' for the target network's ζ⁻,
//! one draw of each for the whole batch:
//!
//! ```text
//! y    = r + γ (1 − terminated) max_a' Q(s', a', ε'; ζ⁻)
//! L(ζ) = E_{(s, a, r, s') ~ replay}[ (y − Q(s, a, ε; ζ))² ]        ∇_ζ y = 0
//! ζ⁻   ← (1 − τ) ζ⁻ + τ ζ     every target_network_frequency steps (τ = 1: a plain copy)
//! ```
//!
//! With the same noise in both networks the target and what is moved towards it would be correlated, which
//! biases the update. A step that was merely truncated by a time limit is not terminal: its next state has a
//! value.
//!
//! Deviations from the paper:
//! - vectors instead of images; the first dense layer is where the paper has its convolutions, and has
//!   no noise as they have none;
//! - those of `dqn`, whose header gives the reasons: Adam instead of RMSProp, its step size falling to
//!   zero, ζ⁻ that follows in many small steps, squared errors (`--clip-error` clips them as the paper
//!   does);
//! - batches of 512 transitions (the paper: 32), steps that begin at 4e-3, and 1e-3 where Adam divides. Of
//!   seeds that fail the values have climbed, to one and a half times any possible return with some, for the
//!   maximum over noisy actions is too high; with batches of 64 one seed in eight failed;
//! - new noise before every action also where `--train-frequency` is above 1 (the paper has one update for
//!   each action), and one draw for all parallel environments;
//! - the evaluation plays with the means, σ left out.
//!
//! Run `cargo run -p noisy_dqn`: 475 or more on CartPole-v1 after 50,000 steps in ten seconds, with 51
//! of 55 seeds (475 is the return at which Gymnasium registers the task as solved).

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{Adam, Init, Linear, VarBuilder, VarMap, clamp, copy_parameters, linear, soft_update};
use common::run::Run;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Deep Q-network that explores by noise in its parameters
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
    #[arg(long, default_value_t = 512, value_parser = cli::positive)]
    batch_size: usize,
    /// Scale of the noise at the start, σ0
    #[arg(long, default_value_t = 0.5, value_parser = cli::non_negative)]
    sigma0: f64,
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

/// Standard normal numbers for one noisy layer.
struct LayerNoise {
    inputs: Tensor,  // ε_in, [inputs]
    outputs: Tensor, // ε_out, [outputs]
}

/// A dense layer each of whose parameters has a mean μ and a scale σ.
struct NoisyLinear {
    mu: Linear,    // μ_w [outputs, inputs], μ_b [outputs]
    sigma: Linear, // σ_w and σ_b, shaped alike
}

impl NoisyLinear {
    fn new(inputs: usize, outputs: usize, sigma0: f64, vb: VarBuilder) -> Result<Self> {
        let mu = linear(inputs, outputs, vb.pp("mu"))?; // weights and biases uniform in ±1/√inputs
        let (vb, init) = (vb.pp("sigma"), Init::Const((sigma0 / (inputs as f64).sqrt()) as f32));
        let weight = vb.get_with_hints((outputs, inputs), "weight", init)?;
        let bias = vb.get_with_hints(outputs, "bias", init)?;
        Ok(Self { mu, sigma: Linear::new(weight, bias) })
    }

    /// The dense layer that `noise` makes of it; without noise the one of the means.
    fn perturbed(&self, noise: Option<&LayerNoise>) -> Result<Linear> {
        let Some(noise) = noise else { return Ok(self.mu.clone()) };
        // f(x) = sgn(x) √|x|
        let f = |x: &Tensor| x.sign()? * x.abs()?.sqrt()?;
        // ε_w = f(ε_out) f(ε_in)ᵀ, [outputs, inputs];  ε_b = f(ε_out), [outputs]
        let bias_noise = f(&noise.outputs)?;
        let weight_noise = bias_noise.unsqueeze(1)?.matmul(&f(&noise.inputs)?.unsqueeze(0)?)?;
        // μ + σ ⊙ ε
        let weight = (self.mu.weight() + (self.sigma.weight() * weight_noise)?)?;
        let bias = (self.mu.bias() + (self.sigma.bias() * bias_noise)?)?;
        Ok(Linear::new(weight, bias))
    }
}

/// Q(s, ·): layers of rectified linear units, all noisy but the first.
struct QNetwork {
    first: Linear,            // [observation_dim] → hidden_sizes[0]
    hidden: Vec<NoisyLinear>, // → hidden_sizes[1] → …
    output: NoisyLinear,      // → [num_actions]
}

impl QNetwork {
    fn new(observation_dim: usize, num_actions: usize, args: &Args, vb: VarBuilder) -> Result<Self> {
        let sizes = &args.hidden_sizes;
        let first = linear(observation_dim, sizes[0], vb.pp("first"))?;
        let noisy = |inputs, outputs, name: &str| NoisyLinear::new(inputs, outputs, args.sigma0, vb.pp(name));
        let mut hidden = Vec::new();
        for (i, pair) in sizes.windows(2).enumerate() {
            hidden.push(noisy(pair[0], pair[1], &format!("hidden{i}"))?);
        }
        let output = noisy(sizes[sizes.len() - 1], num_actions, "output")?;
        Ok(Self { first, hidden, output })
    }

    /// The noisy layers from the first to the last.
    fn noisy_layers(&self) -> impl Iterator<Item = &NoisyLinear> {
        self.hidden.iter().chain([&self.output])
    }

    /// Fresh noise for every noisy layer.
    fn sample_noise(&self, rng: &mut Rng) -> Result<Vec<LayerNoise>> {
        let mut normal = |layer: &Linear, dim: usize| {
            let size = layer.weight().dim(dim)?;
            let values: Vec<f32> = StandardNormal.sample_iter(&mut *rng).take(size).collect();
            Tensor::from_vec(values, size, layer.weight().device())
        };
        self.noisy_layers()
            .map(|layer| Ok(LayerNoise { inputs: normal(&layer.mu, 1)?, outputs: normal(&layer.mu, 0)? }))
            .collect()
    }

    /// Observations `[batch, observation_dim]` to action values `[batch, num_actions]`, with `noise` for
    /// each noisy layer, or with none, `&[]`, the means.
    fn forward(&self, observations: &Tensor, noise: &[LayerNoise]) -> Result<Tensor> {
        let mut x = self.first.forward_relu(observations)?;
        for (i, layer) in self.hidden.iter().enumerate() {
            x = layer.perturbed(noise.get(i))?.forward_relu(&x)?;
        }
        Ok(self.output.perturbed(noise.last())?.forward(&x)?)
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

/// Online network, target network and how they learn.
struct NoisyDqn {
    q_network: QNetwork,       // Q(s, ·, ε; ζ)
    target_network: QNetwork,  // Q(s, ·, ε; ζ⁻)
    parameters: VarMap,        // ζ: every μ and σ, and the first layer
    target_parameters: VarMap, // ζ⁻: a map of its own, for a clone would follow ζ
    optimizer: Adam,
    args: Args,
    device: Device,
}

impl NoisyDqn {
    fn new(observation_dim: usize, num_actions: usize, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let network = |parameters: &VarMap| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            QNetwork::new(observation_dim, num_actions, args, vb)
        };
        let (q_network, target_network) = (network(&parameters)?, network(&target_parameters)?);
        copy_parameters(&target_parameters, &parameters)?;
        let optimizer = Adam::new(&parameters, args.learning_rate)?.with_eps(args.adam_eps);
        let args = args.clone();
        Ok(Self { q_network, target_network, parameters, target_parameters, optimizer, args, device })
    }

    /// argmax_a Q(s, a, ε; ζ) for each of `num_envs` observations; for `noise` see [`QNetwork::forward`].
    fn act(&self, observations: &[f32], num_envs: usize, noise: &[LayerNoise]) -> Result<Vec<u32>> {
        let shape = (num_envs, observations.len() / num_envs);
        let observations = Tensor::from_slice(observations, shape, &self.device)?;
        Ok(self.q_network.forward(&observations, noise)?.argmax(D::Minus1)?.to_vec1()?)
    }

    /// y, `[batch, 1]`.
    fn td_targets(&self, batch: &Batch, target_noise: &[LayerNoise]) -> Result<Tensor> {
        // max_a' Q(s', a', ε'; ζ⁻)
        let next_q_values = self.target_network.forward(&batch.next_observations, target_noise)?;
        let next_values = next_q_values.max_keepdim(D::Minus1)?;
        // y = r + γ (1 − terminated) max_a' Q(s', a', ε'; ζ⁻)
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((&batch.rewards + discounts * next_values)?.detach())
    }

    /// One step of the online network towards y; the target network stays as it is. Returns L(ζ) and
    /// E[ Q(s, a, ε; ζ) ] from before the step.
    fn update(
        &mut self,
        batch: &Batch,
        noise: &[LayerNoise],
        target_noise: &[LayerNoise],
    ) -> Result<(f32, f32)> {
        let y = self.td_targets(batch, target_noise)?;
        let q_values = self.q_network.forward(&batch.observations, noise)?; // [batch, num_actions]
        let q_values = q_values.gather(&batch.actions, 1)?; // Q(s, a, ε), [batch, 1]
        let error = (&y - &q_values)?; // δ
        let losses = if self.args.clip_error {
            // The gradient of Huber's loss is the clipped error: ℓ(δ) = m (|δ| − ½ m), m = min(|δ|, 1).
            let magnitude = error.abs()?;
            let inside = clamp(&magnitude, 0.0, 1.0)?.detach(); // ∇ℓ = m ∇|δ|: that of ℓ with m held constant
            (&inside * (&magnitude - (&inside * 0.5)?)?)?
        } else {
            error.sqr()?
        };
        // L(ζ) = E[ (y − Q(s, a, ε; ζ))² ]
        let loss = losses.mean_all()?;
        self.optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, q_values.mean_all()?.to_scalar()?))
    }

    /// ζ⁻ ← (1 − τ) ζ⁻ + τ ζ
    fn update_target(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.parameters, self.args.tau)?)
    }

    /// Mean |σ_w| of each noisy layer (the paper's Σ̄): how much the agent still explores.
    fn mean_sigmas(&self) -> Result<Vec<f32>> {
        let mean = |layer: &NoisyLinear| layer.sigma.weight().abs()?.mean_all()?.to_scalar();
        Ok(self.q_network.noisy_layers().map(mean).collect::<candle_core::Result<_>>()?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let num_envs = args.num_envs;
    let mut envs = VecEnv::make(&args.run.env_id, num_envs, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("noisy_dqn")?;
    let mut rng = learner_rng(args.run.seed);
    let mut dqn = NoisyDqn::new(observation_dim, num_actions, &args)?;
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

        // Act greedily with noisy parameters, one step in each environment, and store what happened.
        let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
        let noise = dqn.q_network.sample_noise(&mut rng)?;
        let actions = dqn.act(&observations, num_envs, &noise)?;
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
                // Easy to miss: the two networks have noise of their own.
                let noise = dqn.q_network.sample_noise(&mut rng)?;
                let target_noise = dqn.target_network.sample_noise(&mut rng)?;
                let (td_loss, q_values) = dqn.update(&batch, &noise, &target_noise)?;
                if global_step.is_multiple_of(100) {
                    run.log(global_step, "losses/td_loss", td_loss)?;
                    run.log(global_step, "losses/q_values", q_values)?;
                    run.log(global_step, "charts/learning_rate", dqn.optimizer.learning_rate)?;
                    for (i, sigma) in dqn.mean_sigmas()?.into_iter().enumerate() {
                        run.log(global_step, &format!("losses/mean_sigma_{i}"), sigma)?;
                    }
                }
            }
            if global_step.is_multiple_of(args.target_network_frequency) {
                dqn.update_target()?;
            }
        }
    }

    run.save_or_load_model(&mut dqn.parameters)?;
    run.evaluate(|observations| dqn.act(observations, observations.len() / observation_dim, &[]))?;
    Ok(())
}

#[cfg(test)]
mod tests;
