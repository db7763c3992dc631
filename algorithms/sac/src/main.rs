//! # Soft actor-critic (SAC)
//!
//! Haarnoja, Zhou, Hartikainen, Tucker, Ha, Tan, Kumar, Zhu, Gupta, Abbeel & Levine (2018),
//! arXiv:1812.05905.
//!
//! The agent is paid for the entropy H of its policy as well as by the environment, so it keeps
//! every way to succeed open and goes on exploring. A sampled action is a differentiable function
//! of noise, so the policy learns off-policy, by following the critics' gradient through its
//! actions. What entropy is worth, the temperature α, is learned too: it rises while the policy is
//! more certain than wanted and falls while it is less.
//!
//! ```text
//! maximised     Σ_t E[ r_t + α H(π(·|s_t)) ]
//! target        y = r + γ (1 − terminated) ( min_i Q_θ̄i(s', a') − α ln π(a'|s') ),   a' ~ π(·|s')
//! critics       J(θ_i) = E[ (Q_θi(s, a) − y)² ],   i = 1, 2
//! actor         J(φ) = E[ α ln π_φ(ã|s) − min_i Q_θi(s, ã) ],   ã = f_φ(ε; s),  ε ~ N(0, I)
//! temperature   J(α) = E[ −α ( ln π(ã|s) + H̄ ) ],   H̄ = −dim(A)
//! averages      θ̄_i ← (1 − τ) θ̄_i + τ θ_i
//! policy        f_φ(ε; s) = b + c tanh u,   u = μ_φ(s) + σ_φ(s) ε
//!               ln π(ã|s) = Σ_j [ ln N(u_j; μ_j, σ_j²) − ln(1 − tanh² u_j) − ln c_j ]
//! ```
//!
//! An actor seeks out whatever its critic overrates, hence the smaller of two (Fujimoto et al.
//! 2018, arXiv:1802.09477). The policy is a Gaussian squashed into the actions' bounds b ± c,
//! which changes its density by the derivative of the squashing.
//!
//! Run `cargo run -p sac`: about -150 on Pendulum-v1 after 20,000 steps in a minute (-157 is what
//! the trained SAC of RL Baselines3 Zoo reaches: its benchmark.md).

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, rng};
use common::nn::{Activation, Adam, Init, Linear, VarBuilder, VarMap, copy_parameters, linear, soft_update};
use common::run::Run;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use std::f64::consts::{LN_2, PI};
use std::process::ExitCode;

/// Soft actor-critic with twin critics and a learned temperature
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("20000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Transitions that the replay buffer holds
    #[arg(long, default_value_t = 1_000_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Share of the critics that enters their averages in each update, τ
    #[arg(long, default_value_t = 0.005, value_parser = cli::unit_interval)]
    tau: f64,
    /// Transitions in an update
    #[arg(long, default_value_t = 256, value_parser = cli::positive)]
    batch_size: usize,
    /// Steps with uniformly random actions before the first update
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Step size of the actor
    #[arg(long, default_value_t = 3e-4, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the critics and of the temperature (CleanRL's 1e-3; the paper has 3e-4)
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    q_lr: f64,
    /// Critic updates between actor updates; the actor then makes as many at once
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    policy_frequency: usize,
    /// Critic updates between those of their averages
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    target_network_frequency: usize,
    /// What a unit of entropy is worth, α, where it is not learned
    #[arg(long, default_value_t = 0.2, value_parser = cli::non_negative)]
    alpha: f64,
    /// Learn the temperature α
    #[arg(long, default_value_t = true)]
    autotune: bool,
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

/// The policy π_φ: a Gaussian, squashed by tanh and scaled to the actions' bounds.
#[derive(Clone)]
struct Actor {
    network: Mlp,   // [observation_dim] → [2 action_dim]: μ, and ln σ before it is bounded
    middle: Tensor, // b of the actions' bounds b ± c, [1, action_dim]
    scale: Tensor,  // c, [1, action_dim]
}

impl Actor {
    /// μ and ln σ, each `[batch, action_dim]`, from observations `[batch, observation_dim]`.
    fn distribution(&self, observations: &Tensor) -> Result<(Tensor, Tensor)> {
        let outputs = self.network.forward(observations)?.chunk(2, 1)?;
        // ln σ ∈ [-5, 2]: the paper's code clips; tanh keeps a gradient everywhere (CleanRL's
        // `sac_continuous_action.py`, after Yarats's `pytorch_sac`).
        Ok((outputs[0].clone(), outputs[1].tanh()?.affine(3.5, -1.5)?))
    }

    /// Actions b + c tanh u, `[batch, action_dim]`.
    fn squash(&self, u: &Tensor) -> Result<Tensor> {
        Ok(u.tanh()?.broadcast_mul(&self.scale)?.broadcast_add(&self.middle)?)
    }

    /// ã = f_φ(ε; s), `[batch, action_dim]`, and ln π(ã|s), `[batch, 1]`, for observations
    /// `[batch, observation_dim]` and noise ε `[batch, action_dim]`, both differentiable in φ.
    fn sample(&self, observations: &Tensor, noise: &Tensor) -> Result<(Tensor, Tensor)> {
        let (mean, log_std) = self.distribution(observations)?;
        let u = (mean + (log_std.exp()? * noise)?)?; // μ + σ ε
        Ok((self.squash(&u)?, squashed_log_prob(&u, &log_std, noise, &self.scale)?))
    }

    /// The actions b + c tanh μ of the policy without its noise, `[batch, action_dim]` flattened.
    fn greedy(&self, observations: &Tensor) -> Result<Vec<f32>> {
        Ok(self.squash(&self.distribution(observations)?.0)?.flatten_all()?.to_vec1()?)
    }
}

/// ln π of the action b + c tanh u, `[batch, 1]`, where u = μ + σ ε. All `[batch, action_dim]`, but
/// for `scale`, c, which is `[1, action_dim]`.
fn squashed_log_prob(u: &Tensor, log_std: &Tensor, noise: &Tensor, scale: &Tensor) -> Result<Tensor> {
    // ln N(u; μ, σ²) = −½ ε² − ln σ − ½ ln 2π
    let gaussian = (noise.sqr()?.affine(-0.5, -0.5 * (2.0 * PI).ln())? - log_std)?;
    // ln(1 − tanh² u) = 2 (ln 2 − |u| − ln(1 + e^(−2|u|))), where 1 − tanh² u itself would round to
    // 0 once |u| exceeds 9 and its logarithm become −∞.
    let magnitude = u.abs()?;
    let tail = ((&magnitude * -2.0)?.exp()? + 1.0)?.log()?;
    let squashing = (magnitude + tail)?.affine(-2.0, 2.0 * LN_2)?;
    // ln π = Σ_j [ ln N(u_j; μ_j, σ_j²) − ln(1 − tanh² u_j) − ln c_j ]
    Ok((gaussian - squashing)?.broadcast_sub(&scale.log()?)?.sum_keepdim(1)?)
}

/// J(θ) = E[ (Q_θ(s, a) − y)² ], from tensors `[batch, 1]`.
fn critic_loss(values: &Tensor, td_targets: &Tensor) -> Result<Tensor> {
    Ok((values - td_targets)?.sqr()?.mean_all()?)
}

/// y = r + γ (1 − terminated) ( min_i Q_θ̄i(s', a') − α ln π(a'|s') ), from the averaged critics'
/// values of (s', a') and ln π(a'|s'); all `[batch, 1]`.
fn td_targets(batch: &Batch, q: &[Tensor; 2], log_probs: &Tensor, alpha: f64, gamma: f64) -> Result<Tensor> {
    let soft_values = (q[0].minimum(&q[1])? - (log_probs * alpha)?)?;
    // γ (1 − terminated): nothing lies beyond termination.
    let discounts = batch.terminated.affine(-gamma, gamma)?;
    Ok((&batch.rewards + discounts * soft_values)?)
}

/// J(φ) = E[ α ln π_φ(ã|s) − min_i Q_θi(s, ã) ], from tensors `[batch, 1]`.
fn actor_loss(log_probs: &Tensor, values: &[Tensor; 2], alpha: f64) -> Result<Tensor> {
    Ok(((log_probs * alpha)? - values[0].minimum(&values[1])?)?.mean_all()?)
}

/// J(α) = E[ −α ( ln π(ã|s) + H̄ ) ], from ln α, which may take any value, and ln π(ã|s) `[batch, 1]`.
fn temperature_loss(log_alpha: &Tensor, log_probs: &Tensor, target_entropy: f64) -> Result<Tensor> {
    Ok((log_alpha.exp()? * (log_probs.detach().mean_all()? + target_entropy)?)?.neg()?)
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

/// `operation` on 0 and on 1, two critics or two halves, side by side where `--threads` allows.
fn for_both<T: Send>(operation: impl Fn(usize) -> Result<T> + Sync) -> Result<[T; 2]> {
    let (first, second) = common::nn::join(|| operation(0), || operation(1));
    Ok([first?, second?])
}

#[cfg(test)]
mod tests;

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, action_dim) = envs.spec().box_to_box("sac")?;
    let (middle, scale) = envs.spec().action_range("sac")?;
    let device = args.run.device()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = rng(args.run.seed, u64::MAX);
    let mut actor_parameters = VarMap::new(rng.random());
    let vb = VarBuilder::from_varmap(&actor_parameters, DType::F32, &device);
    let actor = Actor {
        network: Mlp::new(observation_dim, args.hidden_size, 2 * action_dim, vb)?,
        middle: Tensor::from_slice(&middle, (1, action_dim), &device)?,
        scale: Tensor::from_slice(&scale, (1, action_dim), &device)?,
    };
    let acting = Actor { network: actor.network.detach(), ..actor.clone() }; // keeps no graph
    let mut actor_optimizer = Adam::new(&actor_parameters, args.policy_lr)?;
    let twins = |parameters: &VarMap| -> Result<[Mlp; 2]> {
        let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
        let critic = |name| Mlp::new(observation_dim + action_dim, args.hidden_size, 1, vb.pp(name));
        Ok([critic("qf1")?, critic("qf2")?]) // of one generator: twins born equal would stay equal
    };
    let mut critic_parameters = VarMap::new(rng.random());
    let mut target_parameters = VarMap::new(0);
    let critics = twins(&critic_parameters)?;
    let targets = twins(&target_parameters)?.map(|target| target.detach());
    copy_parameters(&target_parameters, &critic_parameters)?;
    let mut critic_optimizer = Adam::new(&critic_parameters, args.q_lr)?;
    let mut temperature = VarMap::new(0);
    let vb = VarBuilder::from_varmap(&temperature, DType::F32, &device);
    let log_alpha = vb.get_with_hints((), "log_alpha", Init::Const(0.0))?;
    let mut temperature_optimizer = Adam::new(&temperature, args.q_lr)?;
    let target_entropy = -(action_dim as f64); // H̄
    let mut alpha = if args.autotune { 1.0 } else { args.alpha };

    let capacity = args.buffer_size;
    let mut buffer = ReplayBuffer { capacity, observation_dim, action_dim, next_row: 0, rows: Vec::new() };
    let tensor = |observations: &[f32]| {
        Tensor::from_slice(observations, (observations.len() / observation_dim, observation_dim), &device)
    };
    let noise = |rows: usize, rng: &mut Rng| {
        let noise: Vec<f32> = StandardNormal.sample_iter(rng).take(rows * action_dim).collect(); // ε
        Tensor::from_vec(noise, (rows, action_dim), &device)
    };
    // The middle of an odd batch is in both halves.
    let half = |all: &Tensor, i| all.narrow(0, i * (args.batch_size / 2), args.batch_size.div_ceil(2));
    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut actor_parameters),
                ("actor_optimizer", &mut actor_optimizer),
                ("critics", &mut critic_parameters),
                ("critic_optimizer", &mut critic_optimizer),
                ("targets", &mut target_parameters),
                ("temperature", &mut temperature),
                ("temperature_optimizer", &mut temperature_optimizer),
                ("alpha", &mut alpha),
                ("buffer", &mut buffer),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        // Act: at random until there is something to learn from, then as the policy does.
        let observation = envs.observations().to_vec();
        let action: Vec<f32> = if global_step < args.learning_starts {
            middle.iter().zip(&scale).map(|(b, c)| b + c * rng.random_range(-1.0..=1.0)).collect()
        } else {
            acting.sample(&tensor(&observation)?, &noise(1, &mut rng)?)?.0.flatten_all()?.to_vec1()?
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
        let (next_actions, next_log_probs) =
            acting.sample(&batch.next_observations, &noise(args.batch_size, &mut rng)?)?;
        let next_inputs = Tensor::cat(&[&batch.next_observations, &next_actions], 1)?;
        let next_values = for_both(|i| targets[i].forward(&next_inputs))?;
        let td_targets = td_targets(&batch, &next_values, &next_log_probs, alpha, args.gamma)?;
        let [(mut gradients, qf1_loss, qf1_values), (gradients2, qf2_loss, qf2_values)] = for_both(|i| {
            let values = critics[i].forward(&batch.inputs)?;
            let loss = critic_loss(&values, &td_targets)?;
            Ok((loss.backward()?, loss.to_scalar::<f32>()?, values.mean_all()?.to_scalar::<f32>()?))
        })?;
        gradients.extend(gradients2)?;
        critic_optimizer.step(&gradients)?;

        // Update the actor through the critics, in two halves, and the temperature by the entropy found.
        let rounds = if update.is_multiple_of(args.policy_frequency) { args.policy_frequency } else { 0 };
        for _ in 0..rounds {
            let noise = noise(args.batch_size, &mut rng)?;
            let [(mut gradients, loss, log_probs), (gradients2, loss2, log_probs2)] = for_both(|i| {
                let observations = half(&batch.observations, i)?;
                let (actions, log_probs) = actor.sample(&observations, &half(&noise, i)?)?;
                let inputs = Tensor::cat(&[&observations, &actions], 1)?;
                let values = [critics[0].detach().forward(&inputs)?, critics[1].detach().forward(&inputs)?];
                let loss = (actor_loss(&log_probs, &values, alpha)? * 0.5)?;
                Ok((loss.backward()?, loss.to_scalar::<f32>()?, log_probs.detach()))
            })?;
            gradients.extend(gradients2)?; // adds them up
            actor_optimizer.step(&gradients)?;
            if (update / args.policy_frequency).is_multiple_of(100) {
                run.log(global_step, "losses/actor_loss", loss + loss2)?;
            }
            if args.autotune {
                let log_probs = Tensor::cat(&[log_probs, log_probs2], 0)?;
                let loss = temperature_loss(&log_alpha, &log_probs, target_entropy)?;
                temperature_optimizer.backward_step(&loss)?;
                alpha = f64::from(log_alpha.to_scalar::<f32>()?).exp();
            }
        }
        if update.is_multiple_of(args.target_network_frequency) {
            soft_update(&target_parameters, &critic_parameters, args.tau)?;
        }
        if update.is_multiple_of(100) {
            run.log(global_step, "losses/qf1_values", qf1_values)?;
            run.log(global_step, "losses/qf2_values", qf2_values)?;
            run.log(global_step, "losses/qf_loss", (qf1_loss + qf2_loss) / 2.0)?;
            run.log(global_step, "losses/alpha", alpha)?;
        }
    }

    run.save_or_load_model(&mut actor_parameters)?;
    run.evaluate(|observations| acting.greedy(&tensor(observations)?))?;
    Ok(())
}
