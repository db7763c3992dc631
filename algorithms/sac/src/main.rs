//! # Soft actor-critic (SAC)
//!
//! Haarnoja, Zhou, Hartikainen, Tucker, Ha, Tan, Kumar, Zhu, Gupta, Abbeel & Levine (2018), arXiv:1812.05905.
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
//! An actor seeks out whatever its critic overrates, hence the smaller of two (Fujimoto et al. 2018,
//! arXiv:1802.09477). Squashing a Gaussian into the actions' bounds b ± c changes its density.
//!
//! Deviations from the paper: the critics' loss has no ½; the critics' and the temperature's step size is
//! CleanRL's 1e-3; ln σ is bounded by tanh to [-5, 2], not clipped; entropy, and so H̄, is of actions in their
//! own units, as in CleanRL, not in [-1, 1]; the first learning_starts actions are uniformly random.
//!
//! Run `cargo run -p sac`: about -150 on Pendulum-v1 after 20,000 steps in two minutes (-157 is what the
//! trained SAC of RL Baselines3 Zoo reaches: its benchmark.md).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{self, Adam, Init, Linear, VarBuilder, VarMap, copy_parameters, linear, soft_update};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::f64::consts::{LN_2, PI};
use std::process::ExitCode;

/// Soft actor-critic with twin critics and a learned temperature
#[derive(Parser, Serialize, Debug, Clone)]
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
struct Mlp {
    hidden1: Linear, // [inputs] → [hidden_size]
    hidden2: Linear, // [hidden_size] → [hidden_size]
    output: Linear,  // [hidden_size] → [outputs]
}

impl Mlp {
    fn new(inputs: usize, hidden_size: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            hidden1: linear(inputs, hidden_size, vb.pp("hidden1"))?,
            hidden2: linear(hidden_size, hidden_size, vb.pp("hidden2"))?,
            output: linear(hidden_size, outputs, vb.pp("output"))?,
        })
    }

    /// `[batch, inputs]` to `[batch, outputs]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.hidden1.forward_relu(x)?;
        let x = self.hidden2.forward_relu(&x)?;
        Ok(self.output.forward(&x)?)
    }

    /// The same network with its parameters held constant: gradients pass through it to its input.
    fn held_constant(&self) -> Self {
        let Self { hidden1, hidden2, output } = self;
        Self { hidden1: hidden1.detach(), hidden2: hidden2.detach(), output: output.detach() }
    }
}

/// The policy π_φ: a Gaussian whose samples are squashed by tanh and scaled to the actions' bounds.
struct Actor {
    network: Mlp,         // [observation_dim] → [2 action_dim]: μ, and ln σ before it is bounded
    action_bias: Tensor,  // b, the middle of the bounds b ± c, [1, action_dim]
    action_scale: Tensor, // c, [1, action_dim]
}

impl Actor {
    /// μ and ln σ, `[batch, action_dim]` each, from observations `[batch, observation_dim]`.
    fn forward(&self, observations: &Tensor) -> Result<(Tensor, Tensor)> {
        let outputs = self.network.forward(observations)?.chunk(2, 1)?;
        // ln σ ∈ [-5, 2]: the paper's code clips; tanh keeps a gradient everywhere (CleanRL's
        // `sac_continuous_action.py`, after Yarats's `pytorch_sac`).
        Ok((outputs[0].clone(), outputs[1].tanh()?.affine(3.5, -1.5)?))
    }

    /// b + c tanh u, `[batch, action_dim]`.
    fn squash(&self, u: &Tensor) -> Result<Tensor> {
        Ok(u.tanh()?.broadcast_mul(&self.action_scale)?.broadcast_add(&self.action_bias)?)
    }

    /// ã = f_φ(ε; s), `[batch, action_dim]`, and ln π(ã|s), `[batch, 1]`, for observations
    /// `[batch, observation_dim]` and noise ε ~ N(0, I) `[batch, action_dim]`.
    fn sample(&self, observations: &Tensor, noise: &Tensor) -> Result<(Tensor, Tensor)> {
        let (mean, log_std) = self.forward(observations)?;
        // u = μ + σ ε: the noise is given, so that gradients reach μ and σ (the reparameterisation trick).
        let u = (mean + (log_std.exp()? * noise)?)?;
        // ln N(u; μ, σ²) = −½ ε² − ln σ − ½ ln 2π
        let gaussian = (noise.sqr()?.affine(-0.5, -0.5 * (2.0 * PI).ln())? - log_std)?;
        // ln(1 − tanh² u) = 2 (ln 2 − |u| − ln(1 + e^(−2|u|))), where 1 − tanh² u itself would round
        // to 0 once |u| exceeds 9 and its logarithm become −∞.
        let magnitude = u.abs()?;
        let tail = ((&magnitude * -2.0)?.exp()? + 1.0)?.log()?;
        let squashing = (magnitude + tail)?.affine(-2.0, 2.0 * LN_2)?;
        // ln π(ã|s) = Σ_j [ ln N(u_j; μ_j, σ_j²) − ln(1 − tanh² u_j) − ln c_j ]
        let log_probs = (gaussian - squashing)?.broadcast_sub(&self.action_scale.log()?)?.sum_keepdim(1)?;
        Ok((self.squash(&u)?, log_probs))
    }
}

/// The last `capacity` transitions, the oldest overwritten first.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    capacity: usize,
    next_row: usize,             // where the next transition goes
    observations: Vec<f32>,      // s, [len, observation_dim]
    actions: Vec<f32>,           // a, [len, action_dim]
    rewards: Vec<f32>,           // r, [len]
    next_observations: Vec<f32>, // s', an episode's true last one at its end, [len, observation_dim]
    terminated: Vec<f32>,        // 1 where nothing lies beyond s', 0 elsewhere, truncation included, [len]
}

/// Transitions drawn from the buffer.
struct Batch {
    observations: Tensor,      // s, [batch, observation_dim]
    actions: Tensor,           // a, [batch, action_dim]
    rewards: Tensor,           // r, [batch, 1]
    next_observations: Tensor, // s', [batch, observation_dim]
    terminated: Tensor,        // 1 or 0, [batch, 1]
}

impl ReplayBuffer {
    /// Stores the step that `envs`, a single environment, has just made.
    fn store(&mut self, observation: &[f32], action: &[f32], envs: &VecEnv) {
        let row = self.next_row;
        write_row(&mut self.observations, row, observation);
        write_row(&mut self.actions, row, action);
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
        Ok(Batch {
            observations: gather(&self.observations)?,
            actions: gather(&self.actions)?,
            rewards: gather(&self.rewards)?,
            next_observations: gather(&self.next_observations)?,
            terminated: gather(&self.terminated)?,
        })
    }
}

/// Writes `values` to a row of a column, which grows until it is full.
fn write_row(column: &mut Vec<f32>, row: usize, values: &[f32]) {
    let start = row * values.len();
    if start == column.len() {
        column.extend_from_slice(values);
    } else {
        column[start..start + values.len()].copy_from_slice(values);
    }
}

/// Actor, twin critics, their averages, the temperature, and how they learn.
struct Sac {
    actor: Actor,              // π_φ
    critics: [Mlp; 2],         // Q_θ1, Q_θ2: [observation_dim + action_dim] → [1]
    target_critics: [Mlp; 2],  // Q_θ̄1, Q_θ̄2
    log_alpha: Tensor,         // ln α, which may take any value, []
    actor_parameters: VarMap,  // φ
    critic_parameters: VarMap, // θ1, θ2
    target_parameters: VarMap, // θ̄1, θ̄2
    temperature: VarMap,       // ln α
    actor_optimizer: Adam,
    critic_optimizer: Adam,
    temperature_optimizer: Adam,
    target_entropy: f64, // H̄
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl Sac {
    fn new(observation_dim: usize, bounds: (&[f32], &[f32]), args: &Args, rng: &mut Rng) -> Result<Self> {
        let (device, hidden_size) = (args.run.device()?, args.hidden_size);
        let ((action_bias, action_scale), action_dim) = (bounds, bounds.0.len());
        let twins = |parameters: &VarMap| -> Result<[Mlp; 2]> {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            let critic = |name| Mlp::new(observation_dim + action_dim, hidden_size, 1, vb.pp(name));
            Ok([critic("qf1")?, critic("qf2")?]) // one after the other: twins born equal would stay equal
        };
        let (actor_parameters, critic_parameters) = (VarMap::new(rng.random()), VarMap::new(rng.random()));
        let (target_parameters, temperature) = (VarMap::new(0), VarMap::new(0));
        let vb = VarBuilder::from_varmap(&actor_parameters, DType::F32, &device);
        let actor = Actor {
            network: Mlp::new(observation_dim, hidden_size, 2 * action_dim, vb)?,
            action_bias: Tensor::from_slice(action_bias, (1, action_dim), &device)?,
            action_scale: Tensor::from_slice(action_scale, (1, action_dim), &device)?,
        };
        let vb = VarBuilder::from_varmap(&temperature, DType::F32, &device);
        let log_alpha = Init::Const(if args.autotune { 0.0 } else { args.alpha.ln() as f32 });
        let (critics, target_critics) = (twins(&critic_parameters)?, twins(&target_parameters)?);
        copy_parameters(&target_parameters, &critic_parameters)?;
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
            target_entropy: -(action_dim as f64), // H̄ = −dim(A)
            observation_dim,
            args: args.clone(),
            device,
        })
    }

    /// α, what a unit of entropy is worth.
    fn alpha(&self) -> Result<f64> {
        Ok(f64::from(self.log_alpha.to_scalar::<f32>()?).exp())
    }

    /// ε ~ N(0, I), `[rows, action_dim]`.
    fn noise(&self, rows: usize, rng: &mut Rng) -> Result<Tensor> {
        let action_dim = self.actor.action_bias.dim(1)?;
        Ok(Init::Randn { mean: 0.0, stdev: 1.0 }.tensor((rows, action_dim), rng, &self.device)?)
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// a ~ π_φ(·|s) for each observation, `[batch, action_dim]`.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<f32>> {
        let observations = self.tensor(observations)?;
        let (actions, _) = self.actor.sample(&observations, &self.noise(observations.dim(0)?, rng)?)?;
        Ok(actions.flatten_all()?.to_vec1()?)
    }

    /// b + c tanh μ(s), the policy without its noise, for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<f32>> {
        let (mean, _) = self.actor.forward(&self.tensor(observations)?)?;
        Ok(self.actor.squash(&mean)?.flatten_all()?.to_vec1()?)
    }

    /// y, `[batch, 1]`, from noise `[batch, action_dim]`.
    fn td_targets(&self, batch: &Batch, noise: &Tensor) -> Result<Tensor> {
        // Easy to miss: a' comes from the current policy, not from the buffer.
        let (next_actions, next_log_probs) = self.actor.sample(&batch.next_observations, noise)?;
        let inputs = Tensor::cat(&[&batch.next_observations, &next_actions], 1)?; // (s', a')
        // min_i Q_θ̄i(s', a') − α ln π(a'|s')
        let [q1, q2] = nn::both(|i| self.target_critics[i].forward(&inputs))?;
        let soft_values = (nn::minimum(&q1, &q2)? - (next_log_probs * self.alpha()?)?)?;
        // y = r + γ (1 − terminated) ( min_i Q_θ̄i(s', a') − α ln π(a'|s') )
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((&batch.rewards + discounts * soft_values)?.detach())
    }

    /// One step of both critics towards y. The actor and the target critics stay as they are. Returns
    /// J(θ_i) and E[ Q_θi(s, a) ] of each, from before the step.
    fn update_critics(&mut self, batch: &Batch, noise: &Tensor) -> Result<[(f32, f32); 2]> {
        let y = self.td_targets(batch, noise)?;
        let inputs = Tensor::cat(&[&batch.observations, &batch.actions], 1)?; // (s, a)
        // J(θ_i) = E[ (Q_θi(s, a) − y)² ]
        let [(loss1, q1), (loss2, q2)] = nn::both(|i| {
            let q = self.critics[i].forward(&inputs)?; // [batch, 1]
            Ok(((&q - &y)?.sqr()?.mean_all()?, q))
        })?;
        self.critic_optimizer.backward_step_of_both([&loss1, &loss2])?;
        let (q1, q2) = (q1.mean_all()?.to_scalar()?, q2.mean_all()?.to_scalar()?);
        Ok([(loss1.to_scalar()?, q1), (loss2.to_scalar()?, q2)])
    }

    /// One step of the actor, through critics that stay as they are. Returns J(φ) and ln π(ã|s), `[batch, 1]`.
    fn update_actor(&mut self, batch: &Batch, noise: &Tensor) -> Result<(f32, Tensor)> {
        let [critic1, critic2] = [&self.critics[0], &self.critics[1]].map(Mlp::held_constant);
        let alpha = self.alpha()?;
        // J(φ) = E[ α ln π_φ(ã|s) − min_i Q_θi(s, ã) ]
        self.actor_optimizer.backward_step_by_rows([&batch.observations, noise], |[observations, noise]| {
            let (actions, log_probs) = self.actor.sample(&observations, &noise)?;
            let inputs = Tensor::cat(&[&observations, &actions], 1)?; // (s, ã)
            let q = nn::minimum(&critic1.forward(&inputs)?, &critic2.forward(&inputs)?)?;
            Ok((((&log_probs * alpha)? - q)?, log_probs))
        })
    }

    /// One step of ln α: up while the policy's entropy is below H̄, down while it is above. Returns J(α).
    fn update_temperature(&mut self, log_probs: &Tensor) -> Result<f32> {
        // J(α) = E[ −α ( ln π(ã|s) + H̄ ) ], where the policy is held constant
        let excess = (log_probs.detach().mean_all()? + self.target_entropy)?;
        let loss = (self.log_alpha.exp()? * excess)?.neg()?;
        self.temperature_optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
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
    let (observation_dim, _) = envs.spec().box_to_box("sac")?;
    let (action_bias, action_scale) = envs.spec().action_range("sac")?;
    let mut rng = learner_rng(args.run.seed);
    let mut sac = Sac::new(observation_dim, (&action_bias, &action_scale), &args, &mut rng)?;
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
        let action: Vec<f32> = if global_step < args.learning_starts {
            action_bias.iter().zip(&action_scale).map(|(b, c)| b + c * rng.random_range(-1.0..=1.0)).collect()
        } else {
            sac.act(&observation, &mut rng)?
        };
        envs.step(&action)?;
        buffer.store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if global_step <= args.learning_starts {
            continue;
        }

        // Learn. With policy_frequency k the actor waits for k critic updates, then makes k at once.
        let update = global_step - args.learning_starts;
        let batch = buffer.sample(args.batch_size, &mut rng, &sac.device)?;
        let [(qf1_loss, qf1_values), (qf2_loss, qf2_values)] =
            sac.update_critics(&batch, &sac.noise(args.batch_size, &mut rng)?)?;
        if update.is_multiple_of(args.policy_frequency) {
            for made in 1..=args.policy_frequency {
                let (actor_loss, log_probs) =
                    sac.update_actor(&batch, &sac.noise(args.batch_size, &mut rng)?)?;
                let alpha_loss = args.autotune.then(|| sac.update_temperature(&log_probs)).transpose()?;
                if made == args.policy_frequency && (update / args.policy_frequency).is_multiple_of(100) {
                    run.log(global_step, "losses/actor_loss", actor_loss)?;
                    if let Some(alpha_loss) = alpha_loss {
                        run.log(global_step, "losses/alpha_loss", alpha_loss)?;
                    }
                }
            }
        }
        if update.is_multiple_of(args.target_network_frequency) {
            sac.update_targets()?;
        }
        if update.is_multiple_of(100) {
            run.log(global_step, "losses/qf1_values", qf1_values)?;
            run.log(global_step, "losses/qf2_values", qf2_values)?;
            run.log(global_step, "losses/qf1_loss", qf1_loss)?;
            run.log(global_step, "losses/qf2_loss", qf2_loss)?;
            run.log(global_step, "losses/qf_loss", (qf1_loss + qf2_loss) / 2.0)?;
            run.log(global_step, "losses/alpha", sac.alpha()?)?;
        }
    }

    run.save_or_load_model(&mut sac.actor_parameters)?;
    run.evaluate(|observations| sac.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
