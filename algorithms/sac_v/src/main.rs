//! # Soft actor-critic, the first form, with a state-value network (SAC-V)
//!
//! Haarnoja, Zhou, Abbeel & Levine (2018), "Soft actor-critic: off-policy maximum entropy deep reinforcement
//! learning with a stochastic actor", arXiv:1801.01290.
//!
//! The agent is paid for the entropy H of its policy as well as by the environment, so it keeps every way to
//! succeed open and goes on exploring. What a state is worth, the entropy in it included, is a network of its
//! own, and its slow average is what the critics learn from. What entropy is worth is fixed: the rewards'
//! scale says how much there is of everything else. (The later form, `sac`, learns that, and leaves V out.)
//!
//! ```text
//! maximised     Σ_t E[ k r_t + α H(π(·|s_t)) ],   k the reward scale
//! value         J(ψ) = ½ E[ (V_ψ(s) − min_i Q_θi(s, ã) + α ln π_φ(ã|s))² ],   ã ~ π_φ(·|s)
//! critics       J(θ_i) = ½ E[ (Q_θi(s, a) − y)² ],   y = k r + γ (1 − terminated) V_ψ̄(s'),   i = 1, 2
//! actor         J(φ) = E[ α ln π_φ(ã|s) − min_i Q_θi(s, ã) ],   ã = f_φ(ε; s),  ε ~ N(0, I)
//! average       ψ̄ ← (1 − τ) ψ̄ + τ ψ
//! policy        f_φ(ε; s) = b + c tanh u,   u = μ_φ(s) + σ_φ(s) ε
//!               ln π(ã|s) = Σ_j [ ln N(u_j; μ_j, σ_j²) − ln(1 − tanh² u_j) − ln c_j ]
//! ```
//!
//! They are updated in this order, the paper's, from one action ã for value and actor; the authors' program
//! (github.com/haarnoja/sac) takes all steps at once, the actor's by Q_θ1 alone. α is 1 in the paper, where k
//! alone sets what entropy is worth: policies depend on k / α only.
//!
//! Deviations from the paper: k is 1, which suits Pendulum (there 5, and 20 for Humanoid); entropy is of actions
//! in their own units, not in [-1, 1], so that a step pays α Σ_j ln c_j more, which matters where episodes can
//! end; the step size of critics and values is 1e-3 (there 3e-4), as in `sac`; ln σ is kept within [-5, 2] by
//! tanh instead of clipped to [-20, 2]; the first learning_starts actions are uniformly random, as in that program.
//!
//! Run `cargo run -p sac_v -- --hidden-size 64`: -158 to -151 on Pendulum-v1 after 30,000 steps in half a
//! minute (-157 is what the trained SAC of RL Baselines3 Zoo reaches: its benchmark.md).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{
    self, Adam, Init, Linear, VarBuilder, VarMap, copy_parameters, linear, minimum, soft_update,
};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::f64::consts::{LN_2, PI};
use std::process::ExitCode;

/// Soft actor-critic with a state-value network and scaled rewards
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("30000")))]
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
    /// Share of the value network that enters its average in each update, τ
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
    /// Step size of the critics
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    q_lr: f64,
    /// Step size of the value network
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    value_lr: f64,
    /// What rewards are multiplied by, k
    #[arg(long, default_value_t = 1.0, value_parser = cli::above_zero)]
    reward_scale: f64,
    /// What a unit of entropy is worth beside the scaled rewards, α
    #[arg(long, default_value_t = 1.0, value_parser = cli::non_negative)]
    alpha: f64,
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
        // ln σ ∈ [-5, 2]: the paper's code clips, to [-20, 2]; tanh keeps a gradient everywhere (CleanRL's
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

/// Actor, value network, its average, twin critics, and how they learn.
struct SacV {
    actor: Actor,              // π_φ
    value: Mlp,                // V_ψ: [observation_dim] → [1]
    target_value: Mlp,         // V_ψ̄
    critics: [Mlp; 2],         // Q_θ1, Q_θ2: [observation_dim + action_dim] → [1]
    actor_parameters: VarMap,  // φ
    value_parameters: VarMap,  // ψ
    target_parameters: VarMap, // ψ̄
    critic_parameters: VarMap, // θ1, θ2
    actor_optimizer: Adam,
    value_optimizer: Adam,
    critic_optimizer: Adam,
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl SacV {
    fn new(observation_dim: usize, bounds: (&[f32], &[f32]), args: &Args, rng: &mut Rng) -> Result<Self> {
        let (device, hidden_size) = (args.run.device()?, args.hidden_size);
        let ((action_bias, action_scale), action_dim) = (bounds, bounds.0.len());
        let [actor_parameters, value_parameters, critic_parameters, target_parameters] =
            [(); 4].map(|()| VarMap::new(rng.random()));
        let vb = |parameters| VarBuilder::from_varmap(parameters, DType::F32, &device);
        let actor = Actor {
            network: Mlp::new(observation_dim, hidden_size, 2 * action_dim, vb(&actor_parameters))?,
            action_bias: Tensor::from_slice(action_bias, (1, action_dim), &device)?,
            action_scale: Tensor::from_slice(action_scale, (1, action_dim), &device)?,
        };
        let value = Mlp::new(observation_dim, hidden_size, 1, vb(&value_parameters))?;
        let target_value = Mlp::new(observation_dim, hidden_size, 1, vb(&target_parameters))?;
        copy_parameters(&target_parameters, &value_parameters)?;
        let inputs = observation_dim + action_dim;
        let critic = |name| Mlp::new(inputs, hidden_size, 1, vb(&critic_parameters).pp(name));
        let critics = [critic("qf1")?, critic("qf2")?]; // not twice the same: twins born equal would stay so
        Ok(Self {
            actor,
            value,
            target_value,
            critics,
            actor_optimizer: Adam::new(&actor_parameters, args.policy_lr)?,
            value_optimizer: Adam::new(&value_parameters, args.value_lr)?,
            critic_optimizer: Adam::new(&critic_parameters, args.q_lr)?,
            actor_parameters,
            value_parameters,
            target_parameters,
            critic_parameters,
            observation_dim,
            args: args.clone(),
            device,
        })
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
        let noise = self.noise(observations.dim(0)?, rng)?;
        Ok(self.actor.sample(&observations, &noise)?.0.flatten_all()?.to_vec1()?)
    }

    /// b + c tanh μ(s), the policy without its noise, for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<f32>> {
        let (mean, _) = self.actor.forward(&self.tensor(observations)?)?;
        Ok(self.actor.squash(&mean)?.flatten_all()?.to_vec1()?)
    }

    /// min_i Q_θi(s, ã) − α ln π(ã|s), what V_ψ(s) is to be, `[batch, 1]`, for noise `[batch, action_dim]`.
    fn soft_values(&self, batch: &Batch, noise: &Tensor) -> Result<Tensor> {
        // Easy to miss: ã comes from the current policy, not from the buffer.
        let (actions, log_probs) = self.actor.sample(&batch.observations, noise)?;
        let inputs = Tensor::cat(&[&batch.observations, &actions], 1)?; // (s, ã)
        let [q1, q2] = nn::both(|i| self.critics[i].forward(&inputs))?;
        Ok((minimum(&q1, &q2)? - (log_probs * self.args.alpha)?)?.detach())
    }

    /// One step of V_ψ. Returns J(ψ) and E[ V_ψ(s) ] from before it.
    fn update_value(&mut self, batch: &Batch, noise: &Tensor) -> Result<(f32, f32)> {
        let soft_values = self.soft_values(batch, noise)?;
        // J(ψ) = ½ E[ (V_ψ(s) − min_i Q_θi(s, ã) + α ln π_φ(ã|s))² ]
        let values = self.value.forward(&batch.observations)?; // [batch, 1]
        let loss = ((&values - soft_values)?.sqr()?.mean_all()? * 0.5)?;
        self.value_optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, values.mean_all()?.to_scalar()?))
    }

    /// y, `[batch, 1]`.
    fn td_targets(&self, batch: &Batch) -> Result<Tensor> {
        // y = k r + γ (1 − terminated) V_ψ̄(s')
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        let next_values = self.target_value.forward(&batch.next_observations)?;
        Ok(((&batch.rewards * self.args.reward_scale)? + discounts * next_values)?.detach())
    }

    /// One step of both critics towards y. Returns J(θ_i) and E[ Q_θi(s, a) ] of each, from before it.
    fn update_critics(&mut self, batch: &Batch) -> Result<[(f32, f32); 2]> {
        let y = self.td_targets(batch)?;
        let inputs = Tensor::cat(&[&batch.observations, &batch.actions], 1)?; // (s, a)
        // J(θ_i) = ½ E[ (Q_θi(s, a) − y)² ]
        let [(loss1, q1), (loss2, q2)] = nn::both(|i| {
            let q = self.critics[i].forward(&inputs)?; // [batch, 1]
            Ok((((&q - &y)?.sqr()?.mean_all()? * 0.5)?, q))
        })?;
        self.critic_optimizer.backward_step_of_both([&loss1, &loss2])?;
        let (q1, q2) = (q1.mean_all()?.to_scalar()?, q2.mean_all()?.to_scalar()?);
        Ok([(loss1.to_scalar()?, q1), (loss2.to_scalar()?, q2)])
    }

    /// One step of the actor, through critics that stay as they are. Returns J(φ) and E[ −ln π(ã|s) ], an
    /// estimate of the policy's entropy.
    fn update_actor(&mut self, batch: &Batch, noise: &Tensor) -> Result<(f32, f32)> {
        let [critic1, critic2] = [&self.critics[0], &self.critics[1]].map(Mlp::held_constant);
        let alpha = self.args.alpha;
        // J(φ) = E[ α ln π_φ(ã|s) − min_i Q_θi(s, ã) ]
        let rows = [&batch.observations, noise];
        let (loss, log_probs) =
            self.actor_optimizer.backward_step_by_rows(rows, |[observations, noise]| {
                let (actions, log_probs) = self.actor.sample(&observations, &noise)?;
                let inputs = Tensor::cat(&[&observations, &actions], 1)?; // (s, ã)
                let q = minimum(&critic1.forward(&inputs)?, &critic2.forward(&inputs)?)?;
                Ok((((&log_probs * alpha)? - q)?, log_probs))
            })?;
        Ok((loss, -log_probs.mean_all()?.to_scalar::<f32>()?))
    }

    /// ψ̄ ← (1 − τ) ψ̄ + τ ψ
    fn update_target(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.value_parameters, self.args.tau)?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, _) = envs.spec().box_to_box("sac_v")?;
    let (action_bias, action_scale) = envs.spec().action_range("sac_v")?;
    let mut rng = learner_rng(args.run.seed);
    let mut sac = SacV::new(observation_dim, (&action_bias, &action_scale), &args, &mut rng)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut sac.actor_parameters),
                ("actor_optimizer", &mut sac.actor_optimizer),
                ("value", &mut sac.value_parameters),
                ("value_optimizer", &mut sac.value_optimizer),
                ("target", &mut sac.target_parameters),
                ("critics", &mut sac.critic_parameters),
                ("critic_optimizer", &mut sac.critic_optimizer),
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

        // Learn: the value, the critics, the actor, the value's average.
        let batch = buffer.sample(args.batch_size, &mut rng, &sac.device)?;
        let noise = sac.noise(args.batch_size, &mut rng)?;
        let (value_loss, values) = sac.update_value(&batch, &noise)?;
        let [(qf1_loss, qf1_values), (qf2_loss, qf2_values)] = sac.update_critics(&batch)?;
        let (actor_loss, entropy) = sac.update_actor(&batch, &noise)?;
        sac.update_target()?;
        if (global_step - args.learning_starts).is_multiple_of(100) {
            run.log(global_step, "losses/vf_values", values)?;
            run.log(global_step, "losses/vf_loss", value_loss)?;
            run.log(global_step, "losses/qf1_values", qf1_values)?;
            run.log(global_step, "losses/qf2_values", qf2_values)?;
            run.log(global_step, "losses/qf1_loss", qf1_loss)?;
            run.log(global_step, "losses/qf2_loss", qf2_loss)?;
            run.log(global_step, "losses/qf_loss", (qf1_loss + qf2_loss) / 2.0)?;
            run.log(global_step, "losses/actor_loss", actor_loss)?;
            run.log(global_step, "losses/entropy", entropy)?;
        }
    }

    run.save_or_load_model(&mut sac.actor_parameters)?;
    run.evaluate(|observations| sac.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
