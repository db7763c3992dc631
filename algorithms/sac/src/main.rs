//! # Soft actor-critic (SAC)
//!
//! Haarnoja, Zhou, Hartikainen, Tucker, Ha, Tan, Kumar, Zhu, Gupta, Abbeel & Levine (2018), "Soft
//! actor-critic algorithms and applications", arXiv:1812.05905.
//!
//! The agent is paid for the entropy H of its policy as well as by the environment, so it keeps
//! every way to succeed open and explores where it does not know better. Because the policy is
//! stochastic and its samples are a differentiable function of noise, it learns off-policy by
//! following the critics' gradient through its actions. How much entropy is worth, the temperature
//! α, is itself learned: it rises when the policy is more certain than wanted, and falls otherwise.
//!
//! ```text
//! maximised     Σ_t E[ r_t + α H(π(·|s_t)) ]
//! target        y = r + γ (1 − terminated) ( min_i Q_θ̄i(s', a') − α ln π(a'|s') ),   a' ~ π(·|s')
//! critics       J(θ_i) = E[ (Q_θi(s, a) − y)² ],   i = 1, 2
//! actor         J(φ) = E[ α ln π_φ(ã|s) − min_i Q_θi(s, ã) ],   ã = f_φ(ε; s),  ε ~ N(0, I)
//! temperature   J(α) = E[ −α ( ln π(ã|s) + H̄ ) ],   H̄ = −dim(A)
//! averages      θ̄_i ← (1 − τ) θ̄_i + τ θ_i
//! ```
//!
//! The policy f_φ is a Gaussian squashed into the actions' bounds b ± c, which changes its density
//! by the derivative of the squashing:
//!
//! ```text
//! u = μ_φ(s) + σ_φ(s) ε        ã = b + c tanh u
//! ln π(ã|s) = Σ_j [ ln N(u_j; μ_j, σ_j²) − ln(1 − tanh² u_j) − ln c_j ]
//! ```
//!
//! The smaller of two critics is used because the actor seeks out whatever one critic overrates
//! (van Hasselt 2010; Fujimoto et al. 2018, arXiv:1802.09477).
//!
//! Run `cargo run -p sac`: about -150 on Pendulum-v1 after 20,000 steps in a minute (the RL Zoo's
//! trained SAC reaches -157 ± 89 there: DLR-RM/rl-baselines3-zoo, benchmark.md).

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, Space, Spec, VecEnv, invalid, rng};
use common::model::Model;
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
        let relu = Activation::Relu;
        Ok(Self {
            hidden1: linear(inputs, hidden_size, vb.pp("hidden1"))?.with_activation(relu),
            hidden2: linear(hidden_size, hidden_size, vb.pp("hidden2"))?.with_activation(relu),
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
        let output = self.network.forward(observations)?;
        let action_dim = output.dim(1)? / 2;
        let mean = output.narrow(1, 0, action_dim)?;
        // ln σ ∈ [-5, 2]. The paper's code clips; tanh gets there without losing the gradient
        // (CleanRL's `sac_continuous_action.py`, after Yarats's `pytorch_sac`).
        let log_std = output.narrow(1, action_dim, action_dim)?.tanh()?.affine(3.5, -1.5)?;
        Ok((mean, log_std))
    }

    /// Actions b + c tanh u, `[batch, action_dim]`.
    fn squash(&self, u: &Tensor) -> Result<Tensor> {
        Ok(u.tanh()?.broadcast_mul(&self.scale)?.broadcast_add(&self.middle)?)
    }

    /// ã = f_φ(ε; s), `[batch, action_dim]`, and ln π(ã|s), `[batch, 1]`, for observations
    /// `[batch, observation_dim]`. Both are differentiable in φ, because the noise is not.
    fn sample(&self, observations: &Tensor, rng: &mut Rng) -> Result<(Tensor, Tensor)> {
        let (mean, log_std) = self.distribution(observations)?;
        let noise: Vec<f32> = StandardNormal.sample_iter(rng).take(mean.elem_count()).collect();
        let noise = Tensor::from_vec(noise, mean.shape(), mean.device())?;
        // u = μ + σ ε
        let u = (mean + (log_std.exp()? * &noise)?)?;
        Ok((self.squash(&u)?, squashed_log_prob(&u, &log_std, &noise, &self.scale)?))
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

/// y, `[batch]`, from the averaged critics' values of (s', a') and from ln π(a'|s'), all `[batch]`.
fn td_targets(
    batch: &Batch,
    next_values: &[Vec<f32>; 2],
    next_log_probs: &[f32],
    alpha: f32,
    gamma: f32,
) -> Vec<f32> {
    let row = |i: usize| {
        let soft_value = next_values[0][i].min(next_values[1][i]) - alpha * next_log_probs[i];
        // Nothing lies beyond termination. A truncated episode would have gone on: s' is its true
        // last observation, and the target bootstraps from it.
        let continues = if batch.terminated[i] { 0.0 } else { 1.0 };
        // y = r + γ (1 − terminated) ( min_i Q_θ̄i(s', a') − α ln π(a'|s') )
        batch.rewards[i] + gamma * continues * soft_value
    };
    (0..batch.rewards.len()).map(row).collect()
}

/// J(φ) = E[ α ln π_φ(ã|s) − min_i Q_θi(s, ã) ], from tensors `[batch, 1]`.
fn actor_loss(log_probs: &Tensor, values: &[Tensor; 2], alpha: f64) -> Result<Tensor> {
    Ok(((log_probs * alpha)? - values[0].minimum(&values[1])?)?.mean_all()?)
}

/// J(α) = E[ −α ( ln π(ã|s) + H̄ ) ], a scalar, from ln α `[1]` and the batch's mean of ln π(ã|s).
/// The step is taken in ln α, which keeps α positive.
fn temperature_loss(log_alpha: &Tensor, mean_log_prob: f64, target_entropy: f64) -> Result<Tensor> {
    Ok((log_alpha.exp()? * -(mean_log_prob + target_entropy))?.sum_all()?)
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
    rewards: Vec<f32>,         // r, [batch]
    terminated: Vec<bool>,     // [batch]
}

impl ReplayBuffer {
    fn width(&self) -> usize {
        2 * self.observation_dim + self.action_dim + 2
    }

    fn add(&mut self, s: &[f32], a: &[f32], next_s: &[f32], reward: f32, terminated: bool) {
        let terminated = if terminated { 1.0 } else { 0.0 };
        let scalars = [reward, terminated];
        let row = [s, a, next_s, &scalars].into_iter().flatten().copied();
        let start = self.next_row * self.width();
        let end = (start + self.width()).min(self.rows.len()); // the rows grow until they are full
        self.rows.splice(start..end, row);
        self.next_row = (self.next_row + 1) % self.capacity;
    }

    /// `batch_size` transitions, uniformly and with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<Batch> {
        let (n, observation_dim, width) = (batch_size, self.observation_dim, self.width());
        let input_dim = observation_dim + self.action_dim;
        let mut observations = Vec::with_capacity(n * observation_dim);
        let mut inputs = Vec::with_capacity(n * input_dim);
        let mut next_observations = Vec::with_capacity(n * observation_dim);
        let (mut rewards, mut terminated) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for _ in 0..n {
            let row = &self.rows[rng.random_range(0..self.rows.len() / width) * width..][..width];
            observations.extend_from_slice(&row[..observation_dim]);
            inputs.extend_from_slice(&row[..input_dim]);
            next_observations.extend_from_slice(&row[input_dim..width - 2]);
            rewards.push(row[width - 2]);
            terminated.push(row[width - 1] == 1.0);
        }
        Ok(Batch {
            observations: Tensor::from_vec(observations, (n, observation_dim), device)?,
            inputs: Tensor::from_vec(inputs, (n, input_dim), device)?,
            next_observations: Tensor::from_vec(next_observations, (n, observation_dim), device)?,
            rewards,
            terminated,
        })
    }
}

/// Runs `operation` for critic 0 and critic 1, side by side where `threads` allows. Neither changes
/// what the other reads, so the results are the same either way.
fn for_both<T: Send>(threads: usize, operation: impl Fn(usize) -> Result<T> + Sync) -> Result<[T; 2]> {
    if threads == 1 {
        return Ok([operation(0)?, operation(1)?]);
    }
    std::thread::scope(|scope| {
        let second = scope.spawn(|| operation(1));
        let first = operation(0);
        let second = second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok([first?, second?])
    })
}

/// Middle b and half width c of the actions' bounds, `[action_dim]` each.
fn action_range(spec: &Spec) -> Result<(Vec<f32>, Vec<f32>)> {
    let Space::Box { low, high, .. } = &spec.action_space else { return Ok(Default::default()) };
    if let Some(bound) = low.iter().chain(high).find(|bound| !bound.is_finite()) {
        return invalid(format!("--env-id {}: sac needs bounded actions, a bound is {bound}", spec.id));
    }
    Ok(low.iter().zip(high).map(|(low, high)| ((high + low) / 2.0, (high - low) / 2.0)).unzip())
}

/// Q_θ1 and Q_θ2, each `[batch, inputs]` to `[batch, 1]`.
fn twin_critics(inputs: usize, args: &Args, parameters: &VarMap, device: &Device) -> Result<[Mlp; 2]> {
    let vb = VarBuilder::from_varmap(parameters, DType::F32, device);
    let critic = |name| Mlp::new(inputs, args.hidden_size, 1, vb.pp(name));
    Ok([critic("qf1")?, critic("qf2")?])
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, action_dim) = envs.spec().box_to_box("sac")?;
    let (middle, scale) = action_range(envs.spec())?;
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
    // Both critics are drawn from one generator: twins born equal would stay equal.
    let mut critic_parameters = VarMap::new(rng.random());
    let mut target_parameters = VarMap::new(0);
    let critics = twin_critics(observation_dim + action_dim, &args, &critic_parameters, &device)?;
    let frozen = critics.each_ref().map(Mlp::detach); // for the actor to differentiate
    let targets = twin_critics(observation_dim + action_dim, &args, &target_parameters, &device)?;
    let targets = targets.each_ref().map(Mlp::detach);
    copy_parameters(&target_parameters, &critic_parameters)?;
    let mut critic_optimizer = Adam::new(&critic_parameters, args.q_lr)?;
    let mut temperature = VarMap::new(0);
    let log_alpha = VarBuilder::from_varmap(&temperature, DType::F32, &device).get_with_hints(
        (),
        "log_alpha",
        Init::Const(0.0),
    )?;
    let mut temperature_optimizer = Adam::new(&temperature, args.q_lr)?;
    let target_entropy = -(action_dim as f64); // H̄
    let mut alpha = if args.autotune { 1.0 } else { args.alpha };

    let capacity = args.buffer_size;
    let mut buffer = ReplayBuffer { capacity, observation_dim, action_dim, next_row: 0, rows: Vec::new() };
    let mut observation = vec![0.0; observation_dim];
    let tensor = |observations: &[f32]| {
        Tensor::from_slice(observations, (observations.len() / observation_dim, observation_dim), &device)
    };

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
        observation.copy_from_slice(envs.observations());
        let action: Vec<f32> = if global_step < args.learning_starts {
            middle.iter().zip(&scale).map(|(b, c)| b + c * rng.random_range(-1.0..=1.0)).collect()
        } else {
            acting.sample(&tensor(&observation)?, &mut rng)?.0.flatten_all()?.to_vec1()?
        };

        // Step, and store. After a reset `envs.observations()` are those of the next episode: s'
        // is the old one's last observation.
        envs.step(&action)?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        let next_observation = envs.final_observations();
        buffer.add(&observation, &action, next_observation, envs.rewards()[0], envs.terminated()[0]);
        if global_step <= args.learning_starts {
            continue;
        }
        let update = global_step - args.learning_starts;

        // Update the critics, towards targets that carry no gradient.
        let batch = buffer.sample(args.batch_size, &mut rng, &device)?;
        let (next_actions, next_log_probs) = acting.sample(&batch.next_observations, &mut rng)?;
        let next_inputs = Tensor::cat(&[&batch.next_observations, &next_actions], 1)?;
        let next_values = for_both(args.run.threads, |i| {
            Ok(targets[i].forward(&next_inputs)?.flatten_all()?.to_vec1()?)
        })?;
        let next_log_probs: Vec<f32> = next_log_probs.flatten_all()?.to_vec1()?;
        let td_targets = td_targets(&batch, &next_values, &next_log_probs, alpha as f32, args.gamma as f32);
        let td_targets = Tensor::from_vec(td_targets, (args.batch_size, 1), &device)?;
        let [first, second] = for_both(args.run.threads, |i| {
            let values = critics[i].forward(&batch.inputs)?;
            let loss = critic_loss(&values, &td_targets)?;
            Ok((loss.backward()?, loss.to_scalar::<f32>()?, values.mean_all()?.to_scalar::<f32>()?))
        })?;
        let (mut gradients, qf1_loss, qf1_values) = first;
        let (more_gradients, qf2_loss, qf2_values) = second;
        gradients.extend(more_gradients)?;
        critic_optimizer.step(&gradients)?;

        // Update the actor through the critics, and the temperature by the entropy it finds.
        if update.is_multiple_of(args.policy_frequency) {
            for _ in 0..args.policy_frequency {
                let (actions, log_probs) = actor.sample(&batch.observations, &mut rng)?;
                let inputs = Tensor::cat(&[&batch.observations, &actions], 1)?;
                let values = for_both(args.run.threads, |i| frozen[i].forward(&inputs))?;
                let loss = actor_loss(&log_probs, &values, alpha)?;
                actor_optimizer.backward_step(&loss)?;
                if (update / args.policy_frequency).is_multiple_of(100) {
                    run.log(global_step, "losses/actor_loss", loss.to_scalar::<f32>()?)?;
                }
                if args.autotune {
                    let mean_log_prob = f64::from(log_probs.mean_all()?.to_scalar::<f32>()?);
                    let loss = temperature_loss(&log_alpha, mean_log_prob, target_entropy)?;
                    temperature_optimizer.backward_step(&loss)?;
                    alpha = f64::from(log_alpha.to_scalar::<f32>()?).exp();
                }
            }
        }
        if update.is_multiple_of(args.target_network_frequency) {
            soft_update(&target_parameters, &critic_parameters, args.tau)?;
        }
        if update.is_multiple_of(100) {
            run.log(global_step, "losses/qf1_values", qf1_values)?;
            run.log(global_step, "losses/qf2_values", qf2_values)?;
            run.log(global_step, "losses/qf1_loss", qf1_loss)?;
            run.log(global_step, "losses/qf2_loss", qf2_loss)?;
            run.log(global_step, "losses/qf_loss", (qf1_loss + qf2_loss) / 2.0)?;
            run.log(global_step, "losses/alpha", alpha)?;
        }
    }

    run.save_or_load_model(&mut [
        ("actor", &mut actor_parameters as &mut dyn Model),
        ("critics", &mut critic_parameters),
    ])?;
    run.evaluate(|observations| acting.greedy(&tensor(observations)?))?;
    Ok(())
}
