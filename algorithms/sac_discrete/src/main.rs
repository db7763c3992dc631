//! # Soft actor-critic for discrete actions (SAC-Discrete)
//!
//! Christodoulou (2019), "Soft actor-critic for discrete action settings", arXiv:1910.07207.
//!
//! Soft actor-critic (`sac` explains it) is paid for its policy's entropy as well as by the environment.
//! Where actions can be counted, the policy is a probability of each and a critic values all of them at
//! once, so that every expectation over actions is a sum: no action is sampled in an update, none has to
//! be differentiated, and the estimates have less variance.
//!
//! ```text
//! maximised     Σ_t E[ r_t + α H(π(·|s_t)) ]
//! target        y = r + γ (1 − terminated) Σ_a' π(a'|s') ( min_i Q_θ̄i(s', a') − α ln π(a'|s') )
//! critics       J(θ_i) = E[ (Q_θi(s, a) − y)² ],   i = 1, 2                       ∇_θ y = 0
//! actor         J(φ) = E[ Σ_a π_φ(a|s) ( α ln π_φ(a|s) − min_i Q_θi(s, a) ) ]
//! temperature   J(α) = E[ Σ_a π(a|s) ( −α ( ln π(a|s) + H̄ ) ) ],   H̄ = k ln |A|
//! averages      θ̄_i ← (1 − τ) θ̄_i + τ θ_i
//! ```
//!
//! ln |A| is the greatest entropy that a policy can have, that of uniform actions, and k the share of it
//! that is wanted. In J(φ) critics are constants: the gradient reaches the policy through its
//! probabilities, not through an action.
//!
//! Deviations from the paper:
//! - k is 0.15, not 0.98: a policy that has to stay nearly uniform cannot balance a pole for long, and the
//!   temperature grows without bound where it tries (CleanRL's `sac_atari.py` has 0.89, for stability in longer runs);
//! - the critics' loss has no ½, and θ̄ are averages of every update, where the paper copies the critics
//!   once in 8,000 steps (its settings: `--tau 1 --target-network-frequency 8000`). One update in
//!   four steps is the paper's, and so few in 100,000 steps that averages and step sizes must be quick;
//! - vectors, or small images behind the single convolution of MinAtar's authors (Young & Tian 2019,
//!   arXiv:1903.03176), instead of Atari's;
//! - at first 1,000 steps are random, not 20,000; Adam's steps are 1e-3 and 2e-3, not 3e-4; batches are of
//!   128, not 64; the replay buffer holds 100,000 transitions, not 1,000,000.
//!
//! Run `cargo run -p sac_discrete`: 500 on CartPole-v1 after 100,000 steps with fourteen seeds of fifteen
//! (475 is the return at which Gymnasium registers the task as solved). Images: `cargo run -p sac_discrete --
//! --env-id MinAtar/Breakout-v1 --total-timesteps 1000000 --hidden-sizes 128 --learning-starts 5000`.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, Space, VecEnv, learner_rng};
use common::nn::{self, Adam, Categorical, Conv2d, Init, Linear, VarBuilder, VarMap, conv2d, minimum};
use common::nn::{copy_parameters, linear, soft_update};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Soft actor-critic for discrete actions, with a learned temperature
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("100000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Sizes of the hidden layers
    #[arg(long, default_value = "64,64", value_delimiter = ',', value_parser = cli::positive)]
    hidden_sizes: Vec<usize>,
    /// Transitions that the replay buffer holds
    #[arg(long, default_value_t = 100_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Share of the critics that enters their averages in each update of these, τ
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    tau: f64,
    /// Transitions in an update
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    batch_size: usize,
    /// Steps with uniformly random actions before learning starts
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Step size of the actor
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the critics and of the temperature
    #[arg(long, default_value_t = 2e-3, value_parser = cli::non_negative)]
    q_lr: f64,
    /// Environment steps between updates
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    update_frequency: usize,
    /// Environment steps between updates of the averages
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    target_network_frequency: usize,
    /// What a unit of entropy is worth, α, where it is not learned (--autotune=false)
    #[arg(long, default_value_t = 0.2, value_parser = cli::above_zero)]
    alpha: f64,
    /// Learn α
    #[arg(long, default_value_t = true)]
    autotune: bool,
    /// Share of the greatest entropy that is wanted, k
    #[arg(long, default_value_t = 0.15, value_parser = cli::unit_interval)]
    target_entropy_scale: f64,
}

/// A number for each action: layers of rectified linear units; images go through a convolution first (16
/// filters of 3 × 3 are what MinAtar's authors use).
struct Network {
    convolution: Option<Conv2d>, // [height, width, channels] → [height − 2, width − 2, 16]
    hidden: Vec<Linear>,         // → hidden_sizes[0] → …
    output: Linear,              // → [num_actions]
    shape: Vec<usize>,           // of one observation
    scale: f64,                  // of an image's numbers, to bring them to 0 to 1
}

impl Network {
    fn new(space: &Space, hidden_sizes: &[usize], num_actions: usize, vb: VarBuilder) -> Result<Self> {
        let (mut convolution, mut inputs, mut scale) = (None, space.size(), 1.0);
        if let Space::Box { shape, high, .. } = space
            && let [height, width, channels] = shape[..]
        {
            convolution = Some(conv2d(channels, 16, 3, Default::default(), vb.pp("convolution"))?);
            inputs = (height - 2) * (width - 2) * 16;
            scale = 1.0 / f64::from(high[0]);
        }
        let mut hidden = Vec::new();
        for (i, &size) in hidden_sizes.iter().enumerate() {
            hidden.push(linear(inputs, size, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        let output = linear(inputs, num_actions, vb.pp("output"))?;
        Ok(Self { convolution, hidden, output, shape: space.shape(), scale })
    }

    /// Observations `[batch, observation_dim]` to `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        if let Some(convolution) = &self.convolution {
            let images = (x * self.scale)?.reshape([&[observations.dim(0)?], &self.shape[..]].concat())?;
            x = convolution.forward_relu(&images)?.flatten_from(1)?;
        }
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

/// Actor, twin critics, their averages, the temperature, and how they learn.
struct SacDiscrete {
    actor: Network,               // logits of π_φ(·|s)
    critics: [Network; 2],        // Q_θ1(s, ·), Q_θ2(s, ·)
    target_critics: [Network; 2], // Q_θ̄1, Q_θ̄2
    log_alpha: Tensor,            // ln α, which may take any value, []
    actor_parameters: VarMap,     // φ
    critic_parameters: VarMap,    // θ1, θ2
    target_parameters: VarMap,    // θ̄1, θ̄2
    temperature: VarMap,          // ln α
    actor_optimizer: Adam,
    critic_optimizer: Adam,
    temperature_optimizer: Adam,
    target_entropy: f64, // H̄
    num_actions: usize,
    args: Args,
    device: Device,
}

impl SacDiscrete {
    fn new(space: &Space, num_actions: usize, args: &Args, rng: &mut Rng) -> Result<Self> {
        let device = args.run.device()?;
        let network = |vb| Network::new(space, &args.hidden_sizes, num_actions, vb);
        let twins = |parameters: &VarMap| -> Result<[Network; 2]> {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            Ok([network(vb.pp("qf1"))?, network(vb.pp("qf2"))?]) // one by one: twins born equal would stay equal
        };
        let (actor_parameters, critic_parameters) = (VarMap::new(rng.random()), VarMap::new(rng.random()));
        let (target_parameters, temperature) = (VarMap::new(0), VarMap::new(0));
        let actor = network(VarBuilder::from_varmap(&actor_parameters, DType::F32, &device))?;
        let (critics, target_critics) = (twins(&critic_parameters)?, twins(&target_parameters)?);
        copy_parameters(&target_parameters, &critic_parameters)?;
        let vb = VarBuilder::from_varmap(&temperature, DType::F32, &device);
        let log_alpha = Init::Const(if args.autotune { 0.0 } else { args.alpha.ln() as f32 });
        Ok(Self {
            actor,
            critics,
            target_critics,
            log_alpha: vb.get_with_hints((), "log_alpha", log_alpha)?,
            actor_optimizer: Adam::new(&actor_parameters, args.policy_lr)?,
            critic_optimizer: Adam::new(&critic_parameters, args.q_lr)?,
            temperature_optimizer: Adam::new(&temperature, args.q_lr)?,
            actor_parameters,
            critic_parameters,
            target_parameters,
            temperature,
            target_entropy: args.target_entropy_scale * (num_actions as f64).ln(), // H̄ = k ln |A|
            num_actions,
            args: args.clone(),
            device,
        })
    }

    /// α, what a unit of entropy is worth.
    fn alpha(&self) -> Result<f64> {
        Ok(f64::from(self.log_alpha.to_scalar::<f32>()?).exp())
    }

    /// Logits of π_φ(·|s), `[batch, num_actions]`, for observations one after the other.
    fn logits(&self, observations: &[f32]) -> Result<Tensor> {
        let shape = ((), self.actor.shape.iter().product::<usize>());
        self.actor.forward(&Tensor::from_slice(observations, shape, &self.device)?)
    }

    /// a ~ π_φ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        Ok(Categorical::new(&self.logits(observations)?)?.sample(rng)?.to_vec1()?)
    }

    /// argmax_a π_φ(a|s) for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(self.logits(observations)?.argmax(D::Minus1)?.to_vec1()?)
    }

    /// ln π_φ(·|s), `[batch, num_actions]`, the logarithm of the logits' softmax.
    fn log_probs(&self, observations: &Tensor) -> Result<Tensor> {
        let logits = self.actor.forward(observations)?;
        // ln softmax(x) = x − ln Σ_a exp(x_a)
        Ok(logits.broadcast_sub(&logits.log_sum_exp(D::Minus1)?.unsqueeze(D::Minus1)?)?)
    }

    /// Σ_a π(a|s') ( min_i Q_θ̄i(s', a) − α ln π(a|s') ), `[batch, 1]`.
    fn next_values(&self, next_observations: &Tensor) -> Result<Tensor> {
        // Easy to miss: π is the current policy. It has no average.
        let log_probs = self.log_probs(next_observations)?; // [batch, num_actions]
        let [q1, q2] = nn::both(|i| self.target_critics[i].forward(next_observations))?;
        let soft_values = (minimum(&q1, &q2)? - (&log_probs * self.alpha()?)?)?;
        Ok((log_probs.exp()? * soft_values)?.sum_keepdim(1)?)
    }

    /// y, `[batch, 1]`.
    fn td_targets(&self, batch: &Batch) -> Result<Tensor> {
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?; // γ (1 − terminated)
        // y = r + γ (1 − terminated) Σ_a' π(a'|s') ( min_i Q_θ̄i(s', a') − α ln π(a'|s') )
        Ok((&batch.rewards + discounts * self.next_values(&batch.next_observations)?)?.detach())
    }

    /// One step of both critics towards y. The actor and the target critics stay as they are. Returns
    /// J(θ_i) and E[ Q_θi(s, a) ] of each, from before the step.
    fn update_critics(&mut self, batch: &Batch) -> Result<[(f32, f32); 2]> {
        let y = self.td_targets(batch)?;
        // J(θ_i) = E[ (Q_θi(s, a) − y)² ]
        let [(loss1, q1), (loss2, q2)] = nn::both(|i| {
            let q = self.critics[i].forward(&batch.observations)?.gather(&batch.actions, 1)?; // [batch, 1]
            Ok(((&q - &y)?.sqr()?.mean_all()?, q))
        })?;
        self.critic_optimizer.backward_step_of_both([&loss1, &loss2])?;
        let (q1, q2) = (q1.mean_all()?.to_scalar()?, q2.mean_all()?.to_scalar()?);
        Ok([(loss1.to_scalar()?, q1), (loss2.to_scalar()?, q2)])
    }

    /// One step of the actor; the critics stay as they are. Returns J(φ) and ln π(·|s), from before the
    /// step, `[batch, num_actions]`.
    fn update_actor(&mut self, batch: &Batch) -> Result<(f32, Tensor)> {
        let log_probs = self.log_probs(&batch.observations)?;
        let [q1, q2] = nn::both(|i| self.critics[i].forward(&batch.observations))?;
        let q = minimum(&q1, &q2)?.detach(); // min_i Q_θi(s, ·), [batch, num_actions]
        // J(φ) = E[ Σ_a π_φ(a|s) ( α ln π_φ(a|s) − min_i Q_θi(s, a) ) ]
        let loss = (log_probs.exp()? * ((&log_probs * self.alpha()?)? - q)?)?.sum(1)?.mean_all()?;
        self.actor_optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, log_probs.detach()))
    }

    /// One step of ln α: up while the policy's entropy is below H̄, down while it is above. Returns J(α)
    /// and E[ H(π(·|s)) ].
    fn update_temperature(&mut self, log_probs: &Tensor) -> Result<(f32, f32)> {
        let log_probs = log_probs.detach(); // the policy is held constant
        let entropy = (log_probs.exp()? * &log_probs)?.sum(1)?.mean_all()?.neg()?; // E[ −Σ_a π ln π ]
        // J(α) = E[ Σ_a π(a|s) ( −α ( ln π(a|s) + H̄ ) ) ] = α ( E[ H(π(·|s)) ] − H̄ ), as Σ_a π(a|s) = 1
        let loss = (self.log_alpha.exp()? * (&entropy - self.target_entropy)?)?;
        self.temperature_optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, entropy.to_scalar()?))
    }

    /// θ̄_i ← (1 − τ) θ̄_i + τ θ_i
    fn update_targets(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.critic_parameters, self.args.tau)?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (_, num_actions) = envs.spec().box_or_image_to_discrete("sac_discrete")?;
    let space = &envs.spec().observation_space;
    let mut rng = learner_rng(args.run.seed);
    let mut sac = SacDiscrete::new(space, num_actions, &args, &mut rng)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut sac.actor_parameters),
                ("actor_optimizer", &mut sac.actor_optimizer),
                ("critics", &mut sac.critic_parameters),
                ("critic_optimizer", &mut sac.critic_optimizer),
                ("targets", &mut sac.target_parameters),
                ("temperature", &mut sac.temperature),
                ("temperature_optimizer", &mut sac.temperature_optimizer),
                ("buffer", &mut buffer),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        // Act: at random until there is something to learn from, then as the policy does.
        let observation = envs.observations().to_vec(); // [observation_dim]
        let action = if global_step < args.learning_starts {
            rng.random_range(0..sac.num_actions as u32)
        } else {
            sac.act(&observation, &mut rng)?[0]
        };
        envs.step(&[action])?;
        buffer.store(&observation, action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if global_step <= args.learning_starts {
            continue;
        }

        // Learn: the critics, the actor by the critics as they now are, the temperature, the averages.
        if global_step.is_multiple_of(args.update_frequency) {
            let batch = buffer.sample(args.batch_size, &mut rng, &sac.device)?;
            let [(qf1_loss, qf1_values), (qf2_loss, qf2_values)] = sac.update_critics(&batch)?;
            let (actor_loss, log_probs) = sac.update_actor(&batch)?;
            let temperature = if args.autotune { Some(sac.update_temperature(&log_probs)?) } else { None };
            if (global_step / args.update_frequency).is_multiple_of(100) {
                run.log(global_step, "losses/qf1_values", qf1_values)?;
                run.log(global_step, "losses/qf2_values", qf2_values)?;
                run.log(global_step, "losses/qf1_loss", qf1_loss)?;
                run.log(global_step, "losses/qf2_loss", qf2_loss)?;
                run.log(global_step, "losses/qf_loss", (qf1_loss + qf2_loss) / 2.0)?;
                run.log(global_step, "losses/actor_loss", actor_loss)?;
                run.log(global_step, "losses/alpha", sac.alpha()?)?;
                if let Some((alpha_loss, entropy)) = temperature {
                    run.log(global_step, "losses/alpha_loss", alpha_loss)?;
                    run.log(global_step, "losses/entropy", entropy)?;
                }
            }
        }
        if global_step.is_multiple_of(args.target_network_frequency) {
            sac.update_targets()?;
        }
    }

    run.save_or_load_model(&mut sac.actor_parameters)?;
    run.evaluate(|observations| sac.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
