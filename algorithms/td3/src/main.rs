//! # Twin delayed deep deterministic policy gradient (TD3)
//!
//! Fujimoto, van Hoof & Meger (2018), arXiv:1802.09477.
//!
//! A deterministic actor climbs its critic, and so finds whatever the critic overrates; those
//! errors then feed back through the critic's own targets. TD3 is DDPG (Lillicrap et al. 2015,
//! arXiv:1509.02971) with three remedies: the targets take the smaller of two critics' values;
//! they take it at an action with a little noise, so that no narrow peak is worth anything; and
//! the actor and all averages move less often than the critics, once these have settled a little.
//!
//! ```text
//! target     y = r + γ (1 − terminated) min_i Q_θ̄i(s', ã'),   ã' = clip( μ_φ̄(s') + c ε, b − c, b + c )
//!            ε = clip( N(0, σ̃²), −d, d )      the actions' bounds are b ± c
//! critics    J(θ_i) = E[ (Q_θi(s, a) − y)² ],   i = 1, 2
//! actor      J(φ) = −E[ Q_θ1(s, μ_φ(s)) ],   μ_φ(s) = b + c tanh f_φ(s)
//! averages   θ̄_i ← (1 − τ) θ̄_i + τ θ_i,   φ̄ ← (1 − τ) φ̄ + τ φ     with the actor's updates only
//! explore    a = clip( μ_φ(s) + c N(0, σ²), b − c, b + c )
//! ```
//!
//! The gradient of J(φ) is the deterministic policy gradient (Silver et al. 2014):
//! `∇_φ J(φ) = −E[ ∇_a Q_θ1(s, a)|_{a = μ_φ(s)} ∇_φ μ_φ(s) ]`.
//!
//! Run `cargo run -p td3`: about -150 on Pendulum-v1 after 30,000 steps in a minute (-152 is what
//! the trained TD3 of RL Baselines3 Zoo reaches: its benchmark.md).

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, rng};
use common::nn::{Activation, Adam, Linear, VarBuilder, VarMap, copy_parameters, join, linear, soft_update};
use common::run::Run;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Twin delayed deep deterministic policy gradient
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("30000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of the actor and of the critics (the paper has 1e-3, its authors' code 3e-4)
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Transitions that the replay buffer holds
    #[arg(long, default_value_t = 1_000_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Share of the networks that enters their averages in each update, τ
    #[arg(long, default_value_t = 0.005, value_parser = cli::unit_interval)]
    tau: f64,
    /// Transitions in an update
    #[arg(long, default_value_t = 256, value_parser = cli::positive)]
    batch_size: usize,
    /// Standard deviation of the targets' noise, σ̃, where an action's range is [-1, 1]
    #[arg(long, default_value_t = 0.2, value_parser = cli::non_negative)]
    policy_noise: f64,
    /// Largest size of the targets' noise, d, where an action's range is [-1, 1]
    #[arg(long, default_value_t = 0.5, value_parser = cli::non_negative)]
    noise_clip: f64,
    /// Standard deviation of the exploration noise, σ, where an action's range is [-1, 1]
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    exploration_noise: f64,
    /// Steps with uniformly random actions before the first update
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Critic updates between updates of the actor and of the averages
    #[arg(long, default_value_t = 2, value_parser = cli::positive)]
    policy_frequency: usize,
    /// Units in each of the two hidden layers
    #[arg(long, default_value_t = 256, value_parser = cli::positive)]
    hidden_size: usize,
}

/// Two hidden layers of ReLU units.
#[derive(Clone)]
struct Mlp {
    hidden1: Linear, // [inputs] → [hidden_size]
    hidden2: Linear, // [hidden_size] → [hidden_size]
    output: Linear,  // [hidden_size] → [outputs]
}

impl Mlp {
    fn new(inputs: usize, hidden_size: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            hidden1: linear(inputs, hidden_size, vb.pp("hidden1"))?.with_activation(Activation::Relu),
            hidden2: linear(hidden_size, hidden_size, vb.pp("hidden2"))?.with_activation(Activation::Relu),
            output: linear(hidden_size, outputs, vb.pp("output"))?,
        })
    }

    /// `[batch, inputs]` to `[batch, outputs]`.
    fn forward(&self, inputs: &Tensor) -> Result<Tensor> {
        let hidden = self.hidden2.forward(&self.hidden1.forward(inputs)?)?;
        Ok(self.output.forward(&hidden)?)
    }

    /// The same network with its parameters held constant: it follows their updates and lets
    /// gradients through to its inputs, but none are computed for the parameters.
    fn detach(&self) -> Self {
        let Self { hidden1, hidden2, output } = self;
        Self { hidden1: hidden1.detach(), hidden2: hidden2.detach(), output: output.detach() }
    }
}

/// The policy μ_φ(s) = b + c tanh f_φ(s).
#[derive(Clone)]
struct Actor {
    network: Mlp,   // f_φ, [observation_dim] → [action_dim]
    middle: Tensor, // b of the actions' bounds b ± c, [1, action_dim]
    scale: Tensor,  // c, [1, action_dim]
}

impl Actor {
    /// Actions b + c x for x in [-1, 1], `[batch, action_dim]`.
    fn rescale(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_mul(&self.scale)?.broadcast_add(&self.middle)?)
    }

    /// μ_φ(s), `[batch, action_dim]`, of observations `[batch, observation_dim]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        self.rescale(&self.network.forward(observations)?.tanh()?)
    }

    /// clip( μ_φ(s) + c ε, b − c, b + c ) with ε = clip( N(0, std²), −clip, clip ), shapes as above.
    fn noisy(&self, observations: &Tensor, std: f64, clip: f64, rng: &mut Rng) -> Result<Tensor> {
        let x = self.network.forward(observations)?.tanh()?;
        let epsilon: Vec<f32> = clipped_noise(x.elem_count(), std, clip, rng);
        let epsilon = Tensor::from_vec(epsilon, x.shape(), x.device())?;
        self.rescale(&(x + epsilon)?.clamp(-1.0, 1.0)?)
    }
}

/// ε = clip( N(0, std²), −clip, clip ), `n` times.
fn clipped_noise(n: usize, std: f64, clip: f64, rng: &mut Rng) -> Vec<f32> {
    let normal = StandardNormal.sample_iter(rng).take(n);
    normal.map(|z: f64| (std * z).clamp(-clip, clip) as f32).collect()
}

/// J(θ) = E[ (Q_θ(s, a) − y)² ], from tensors `[batch, 1]`.
fn critic_loss(values: &Tensor, td_targets: &Tensor) -> Result<Tensor> {
    Ok((values - td_targets)?.sqr()?.mean_all()?)
}

/// y = r + γ (1 − terminated) min_i Q_θ̄i(s', ã'), from the averaged critics' values of (s', ã');
/// all `[batch, 1]`.
fn td_targets(batch: &Batch, next_values: &[Tensor; 2], gamma: f64) -> Result<Tensor> {
    // γ (1 − terminated): nothing lies beyond termination.
    let discounts = batch.terminated.affine(-gamma, gamma)?;
    Ok((&batch.rewards + discounts * next_values[0].minimum(&next_values[1])?)?)
}

/// J(φ) = −E[ Q_θ1(s, μ_φ(s)) ], from values `[batch, 1]`.
fn actor_loss(values: &Tensor) -> Result<Tensor> {
    Ok(values.mean_all()?.neg()?)
}

/// The last `capacity` transitions, the oldest overwritten first.
#[derive(Serialize, Deserialize)]
struct ReplayBuffer {
    capacity: usize,
    observation_dim: usize,
    action_dim: usize,
    next_row: usize, // where the next transition goes
    rows: Vec<f32>,  // s, a, s', r, terminated: [len, 2 observation_dim + action_dim + 2]
}

/// Transitions drawn from the buffer.
struct Batch {
    observations: Tensor,      // s, [batch, observation_dim]
    inputs: Tensor,            // (s, a), [batch, observation_dim + action_dim]
    next_observations: Tensor, // s', the true one also where an episode ended, [batch, observation_dim]
    rewards: Tensor,           // r, [batch, 1]
    terminated: Tensor,        // 1 or 0, [batch, 1]
}

impl ReplayBuffer {
    fn width(&self) -> usize {
        2 * self.observation_dim + self.action_dim + 2
    }

    /// Stores the step that `envs`, a single environment, has just made from `s` by `a`.
    fn add(&mut self, s: &[f32], a: &[f32], envs: &VecEnv) {
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's,
        // s' is the true last. It still has a value where a time limit merely cut the episode.
        let next_s = envs.final_observations();
        let reward_terminated = [envs.rewards()[0], f32::from(u8::from(envs.terminated()[0]))];
        let row = [s, a, next_s, &reward_terminated].into_iter().flatten().copied();
        let start = self.next_row * self.width();
        let end = (start + self.width()).min(self.rows.len()); // the rows grow until they are full
        self.rows.splice(start..end, row);
        self.next_row = (self.next_row + 1) % self.capacity;
    }

    /// `batch_size` transitions, uniformly and with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<Batch> {
        let width = self.width();
        let mut rows = Vec::with_capacity(batch_size * width);
        for _ in 0..batch_size {
            let row = rng.random_range(0..self.rows.len() / width);
            rows.extend_from_slice(&self.rows[row * width..][..width]);
        }
        let rows = Tensor::from_vec(rows, (batch_size, width), device)?;
        let columns = |start, len| rows.narrow(1, start, len)?.contiguous();
        let input_dim = self.observation_dim + self.action_dim;
        Ok(Batch {
            observations: columns(0, self.observation_dim)?,
            inputs: columns(0, input_dim)?,
            next_observations: columns(input_dim, self.observation_dim)?,
            rewards: columns(width - 2, 1)?,
            terminated: columns(width - 1, 1)?,
        })
    }
}

/// Runs `operation` for critic 0 and critic 1, side by side where `--threads` allows.
fn for_both<T: Send>(operation: impl Fn(usize) -> Result<T> + Sync) -> Result<[T; 2]> {
    let (first, second) = join(|| operation(0), || operation(1));
    Ok([first?, second?])
}

#[cfg(test)]
mod tests;

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, action_dim) = envs.spec().box_to_box("td3")?;
    let (middle, scale) = envs.spec().action_range("td3")?;
    let device = args.run.device()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = rng(args.run.seed, u64::MAX);
    let new_actor = |parameters: &VarMap| -> Result<Actor> {
        let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
        Ok(Actor {
            network: Mlp::new(observation_dim, args.hidden_size, action_dim, vb)?,
            middle: Tensor::from_slice(&middle, (1, action_dim), &device)?,
            scale: Tensor::from_slice(&scale, (1, action_dim), &device)?,
        })
    };
    let new_critics = |parameters: &VarMap| -> Result<[Mlp; 2]> {
        let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
        let critic = |name| Mlp::new(observation_dim + action_dim, args.hidden_size, 1, vb.pp(name));
        Ok([critic("qf1")?, critic("qf2")?]) // of one generator: twins born equal would stay equal
    };
    let mut actor_parameters = VarMap::new(rng.random());
    let mut critic_parameters = VarMap::new(rng.random());
    let (actor, critics) = (new_actor(&actor_parameters)?, new_critics(&critic_parameters)?);
    let mut actor_optimizer = Adam::new(&actor_parameters, args.learning_rate)?;
    let mut critic_optimizer = Adam::new(&critic_parameters, args.learning_rate)?;
    // The averages, and the actor where it only acts, never need a gradient.
    let acting = Actor { network: actor.network.detach(), ..actor.clone() };
    let (mut target_actor_parameters, mut target_critic_parameters) = (VarMap::new(0), VarMap::new(0));
    let target_actor = new_actor(&target_actor_parameters)?;
    let target_actor = Actor { network: target_actor.network.detach(), ..target_actor };
    let target_critics = new_critics(&target_critic_parameters)?.map(|critic| critic.detach());
    copy_parameters(&target_actor_parameters, &actor_parameters)?;
    copy_parameters(&target_critic_parameters, &critic_parameters)?;

    let capacity = args.buffer_size;
    let mut buffer = ReplayBuffer { capacity, observation_dim, action_dim, next_row: 0, rows: Vec::new() };
    let tensor = |observations: &[f32]| {
        Tensor::from_slice(observations, (observations.len() / observation_dim, observation_dim), &device)
    };

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut actor_parameters),
                ("actor_optimizer", &mut actor_optimizer),
                ("target_actor", &mut target_actor_parameters),
                ("critics", &mut critic_parameters),
                ("critic_optimizer", &mut critic_optimizer),
                ("target_critics", &mut target_critic_parameters),
                ("buffer", &mut buffer),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        // Act: at random until there is something to learn from, then as the policy does, with noise.
        let observation = envs.observations().to_vec();
        let action: Vec<f32> = if global_step < args.learning_starts {
            middle.iter().zip(&scale).map(|(b, c)| b + c * rng.random_range(-1.0..=1.0)).collect()
        } else {
            let noisy =
                acting.noisy(&tensor(&observation)?, args.exploration_noise, f64::INFINITY, &mut rng)?;
            noisy.flatten_all()?.to_vec1()?
        };

        envs.step(&action)?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        buffer.add(&observation, &action, &envs);
        if global_step <= args.learning_starts {
            continue;
        }
        let update = global_step - args.learning_starts;

        // Update the critics, towards targets that carry no gradient.
        let batch = buffer.sample(args.batch_size, &mut rng, &device)?;
        let next_actions =
            target_actor.noisy(&batch.next_observations, args.policy_noise, args.noise_clip, &mut rng)?;
        let next_inputs = Tensor::cat(&[&batch.next_observations, &next_actions], 1)?;
        let next_values = for_both(|i| target_critics[i].forward(&next_inputs))?;
        let td_targets = td_targets(&batch, &next_values, args.gamma)?;
        let [(mut gradients, qf1_loss, qf1_values), (gradients2, qf2_loss, qf2_values)] = for_both(|i| {
            let values = critics[i].forward(&batch.inputs)?;
            let loss = critic_loss(&values, &td_targets)?;
            Ok((loss.backward()?, loss.to_scalar::<f32>()?, values.mean_all()?.to_scalar::<f32>()?))
        })?;
        gradients.extend(gradients2)?;
        critic_optimizer.step(&gradients)?;

        // Now and then update the actor through the first critic, and the averages.
        if update.is_multiple_of(args.policy_frequency) {
            let actions = actor.forward(&batch.observations)?;
            let inputs = Tensor::cat(&[&batch.observations, &actions], 1)?;
            let loss = actor_loss(&critics[0].detach().forward(&inputs)?)?;
            actor_optimizer.backward_step(&loss)?;
            soft_update(&target_actor_parameters, &actor_parameters, args.tau)?;
            soft_update(&target_critic_parameters, &critic_parameters, args.tau)?;
            if (update / args.policy_frequency).is_multiple_of(100) {
                run.log(global_step, "losses/actor_loss", loss.to_scalar::<f32>()?)?;
            }
        }
        if update.is_multiple_of(100) {
            run.log(global_step, "losses/qf1_values", qf1_values)?;
            run.log(global_step, "losses/qf2_values", qf2_values)?;
            run.log(global_step, "losses/qf1_loss", qf1_loss)?;
            run.log(global_step, "losses/qf2_loss", qf2_loss)?;
            run.log(global_step, "losses/qf_loss", (qf1_loss + qf2_loss) / 2.0)?;
        }
    }

    run.save_or_load_model(&mut actor_parameters)?;
    run.evaluate(|observations| {
        Ok(acting.forward(&tensor(observations)?)?.flatten_all()?.to_vec1::<f32>()?)
    })?;
    Ok(())
}
