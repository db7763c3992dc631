//! # Deep deterministic policy gradient (DDPG)
//!
//! Lillicrap, Hunt, Pritzel, Heess, Erez, Tassa, Silver & Wierstra (2015), "Continuous control with deep
//! reinforcement learning", arXiv:1509.02971.
//!
//! Q-learning for actions that are real numbers: the maximum over actions, which nobody can take there, is
//! left to an actor, a second network that follows the critic's slope uphill. What made DQN stable serves
//! here too: a replay buffer, and targets from networks that change slowly, here averages of the online
//! ones. The policy is deterministic, so that noise must be added to explore.
//!
//! ```text
//! target     y = r + γ (1 − terminated) Q_θ̄(s', μ_φ̄(s'))                        ∇_θ y = 0
//! critic     J(θ) = E[ (Q_θ(s, a) − y)² ]
//! actor      J(φ) = −E[ Q_θ(s, μ_φ(s)) ],   μ_φ(s) = b + c tanh f_φ(s)          actions' bounds: b ± c
//! averages   θ̄ ← (1 − τ) θ̄ + τ θ,   φ̄ ← (1 − τ) φ̄ + τ φ
//! explore    a = clip( μ_φ(s) + c n, b − c, b + c )
//! noise      n = σ ε,   ε ~ N(0, I)                  Gaussian, new at every step
//!            n ← (1 − κ) n + σ ε                     Ornstein-Uhlenbeck, 0 when an episode begins
//! ```
//!
//! The gradient of J(φ) is the deterministic policy gradient (Silver et al. 2014):
//! `∇_φ J(φ) = −E[ ∇_a Q_θ(s, a)|_{a = μ_φ(s)} ∇_φ μ_φ(s) ]`.
//!
//! When an episode ends, the value of its first state, Q_θ(s_0, μ_φ(s_0)), is logged as `charts/start_value`,
//! what came of it, Σ_t γ^t r_t (of noisy actions, without what lies beyond a truncation), as
//! `charts/discounted_return`, and how much less that is as `charts/overestimation`, which `td3` mends.
//!
//! Deviations from the paper:
//! - Gaussian noise, which explores as well (Fujimoto et al. 2018, arXiv:1802.09477) and is CleanRL's; the
//!   paper's is `--ornstein-uhlenbeck --exploration-noise 0.2`. Both are in units of c, and
//!   actions are clipped to their bounds;
//! - as in CleanRL, one step size, 3e-4, for both networks, τ of 0.005, hidden layers of 256 units, batches
//!   of 256 transitions, and actor and averages that move with every second update of the critic (the
//!   paper: 1e-4 and 1e-3, 0.001, 400 and 300 units, 64 transitions, every update);
//! - actions enter the critic's first layer, not its second, and all weights are initialised alike;
//! - neither batch normalisation nor weight decay: later implementations learn without them;
//! - the first learning_starts actions are uniformly random (Spinning Up's `ddpg.py`).
//!
//! Run `cargo run -p ddpg`: about -150 on Pendulum-v1 after 30,000 steps in a minute and a half (-152 is what
//! the trained DDPG of RL Baselines3 Zoo reaches: its benchmark.md). CleanRL's table of MuJoCo tasks is with
//! `--learning-starts 25000`.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{
    Adam, Init, Linear, VarBuilder, VarMap, copy_parameters, linear, maximum, minimum, soft_update,
};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Deep deterministic policy gradient
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("30000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of the actor and of the critic
    #[arg(long, default_value_t = 3e-4, value_parser = cli::non_negative)]
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
    /// Standard deviation of the exploration noise's random part, σ, where an action's range is [-1, 1]
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    exploration_noise: f64,
    /// Explore with an Ornstein-Uhlenbeck process, whose noise outlasts a step, instead of Gaussian noise
    #[arg(long, default_value_t = false)]
    ornstein_uhlenbeck: bool,
    /// Share by which that process returns to 0 in a step, κ
    #[arg(long, default_value_t = 0.15, value_parser = cli::unit_interval)]
    ou_rate: f64,
    /// Steps with uniformly random actions before the first update (CleanRL has 25,000)
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

/// The policy μ_φ(s) = b + c tanh f_φ(s).
struct Actor {
    network: Mlp,         // f_φ, [observation_dim] → [action_dim]
    action_bias: Tensor,  // b, the middle of the bounds b ± c, [1, action_dim]
    action_scale: Tensor, // c, [1, action_dim]
}

impl Actor {
    /// μ_φ(s), `[batch, action_dim]`, of observations `[batch, observation_dim]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let x = self.network.forward(observations)?.tanh()?;
        Ok(x.broadcast_mul(&self.action_scale)?.broadcast_add(&self.action_bias)?)
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

/// The running episode: where it began and what has come of it.
#[derive(Serialize, Deserialize)]
struct RunningEpisode {
    start_observation: Vec<f32>, // s_0, [observation_dim]
    discounted_return: f64,      // Σ_t γ^t r_t so far
    discount: f64,               // γ^t of the next reward
}

impl RunningEpisode {
    fn new(envs: &VecEnv) -> Self {
        Self { start_observation: envs.observations().to_vec(), discounted_return: 0.0, discount: 1.0 }
    }

    /// Adds the step that `envs`, a single environment, has just made. Returns the episode if that ended it.
    fn add_step(&mut self, envs: &VecEnv, gamma: f64) -> Option<Self> {
        self.discounted_return += self.discount * f64::from(envs.rewards()[0]);
        self.discount *= gamma;
        // `envs.observations()` are the first of the next episode by now.
        (envs.terminated()[0] || envs.truncated()[0]).then(|| std::mem::replace(self, Self::new(envs)))
    }
}

/// Actor, critic, the averages of both, and how they learn.
struct Ddpg {
    actor: Actor,                     // μ_φ
    target_actor: Actor,              // μ_φ̄
    critic: Mlp,                      // Q_θ: [observation_dim + action_dim] → [1]
    target_critic: Mlp,               // Q_θ̄
    actor_parameters: VarMap,         // φ
    target_actor_parameters: VarMap,  // φ̄
    critic_parameters: VarMap,        // θ
    target_critic_parameters: VarMap, // θ̄
    actor_optimizer: Adam,
    critic_optimizer: Adam,
    noise: Vec<f32>, // n, [action_dim]
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl Ddpg {
    fn new(observation_dim: usize, bounds: (&[f32], &[f32]), args: &Args, rng: &mut Rng) -> Result<Self> {
        let (device, hidden_size) = (args.run.device()?, args.hidden_size);
        let ((action_bias, action_scale), action_dim) = (bounds, bounds.0.len());
        let new_actor = |parameters: &VarMap| -> Result<Actor> {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            Ok(Actor {
                network: Mlp::new(observation_dim, hidden_size, action_dim, vb)?,
                action_bias: Tensor::from_slice(action_bias, (1, action_dim), &device)?,
                action_scale: Tensor::from_slice(action_scale, (1, action_dim), &device)?,
            })
        };
        let new_critic = |parameters: &VarMap| -> Result<Mlp> {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            Mlp::new(observation_dim + action_dim, hidden_size, 1, vb)
        };
        let actor_parameters = VarMap::new(rng.random());
        let critic_parameters = VarMap::new(rng.random());
        let (target_actor_parameters, target_critic_parameters) = (VarMap::new(0), VarMap::new(0));
        let (actor, critic) = (new_actor(&actor_parameters)?, new_critic(&critic_parameters)?);
        let target_actor = new_actor(&target_actor_parameters)?;
        let target_critic = new_critic(&target_critic_parameters)?;
        copy_parameters(&target_actor_parameters, &actor_parameters)?;
        copy_parameters(&target_critic_parameters, &critic_parameters)?;
        Ok(Self {
            actor,
            target_actor,
            critic,
            target_critic,
            actor_optimizer: Adam::new(&actor_parameters, args.learning_rate)?,
            critic_optimizer: Adam::new(&critic_parameters, args.learning_rate)?,
            actor_parameters,
            target_actor_parameters,
            critic_parameters,
            target_critic_parameters,
            noise: vec![0.0; action_dim],
            observation_dim,
            args: args.clone(),
            device,
        })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// clip( μ_φ(s) + c n, b − c, b + c ), `[action_dim]`, of one observation, from ε ~ N(0, I), `[action_dim]`.
    fn act(&mut self, observation: &[f32], epsilon: &[f32]) -> Result<Vec<f32>> {
        let (kappa, sigma) = (self.args.ou_rate as f32, self.args.exploration_noise as f32);
        for (n, epsilon) in self.noise.iter_mut().zip(epsilon) {
            // n ← (1 − κ) n + σ ε; Gaussian noise keeps nothing of what it was.
            let kept = if self.args.ornstein_uhlenbeck { (1.0 - kappa) * *n } else { 0.0 };
            *n = kept + sigma * epsilon;
        }
        let (bias, scale) = (self.actor.action_bias.squeeze(0)?, self.actor.action_scale.squeeze(0)?); // [action_dim]
        let mean = self.actor.forward(&self.tensor(observation)?)?.squeeze(0)?; // μ_φ(s), [action_dim]
        let n = Tensor::from_slice(&self.noise, bias.shape(), &self.device)?;
        let action = (mean + &scale * n)?;
        // clip( μ_φ(s) + c n, b − c, b + c )
        Ok(minimum(&maximum(&action, &(&bias - &scale)?)?, &(&bias + &scale)?)?.to_vec1()?)
    }

    /// An episode is over: the noise of the next one starts at 0.
    fn reset_noise(&mut self) {
        self.noise.fill(0.0);
    }

    /// μ_φ(s), the policy without its noise, for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<f32>> {
        Ok(self.actor.forward(&self.tensor(observations)?)?.flatten_all()?.to_vec1()?)
    }

    /// Q_θ(s, μ_φ(s)) of one observation.
    fn value(&self, observation: &[f32]) -> Result<f32> {
        let observation = self.tensor(observation)?; // s, [1, observation_dim]
        let inputs = Tensor::cat(&[&observation, &self.actor.forward(&observation)?], 1)?; // (s, μ_φ(s))
        Ok(self.critic.forward(&inputs)?.mean_all()?.to_scalar()?) // the mean of one
    }

    /// y, `[batch, 1]`.
    fn td_targets(&self, batch: &Batch) -> Result<Tensor> {
        let next_actions = self.target_actor.forward(&batch.next_observations)?; // μ_φ̄(s'), [batch, action_dim]
        let inputs = Tensor::cat(&[&batch.next_observations, &next_actions], 1)?; // (s', μ_φ̄(s'))
        // Easy to miss and fatal: both networks are averages, and nothing lies beyond a terminal state.
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?; // γ (1 − terminated)
        // y = r + γ (1 − terminated) Q_θ̄(s', μ_φ̄(s'))
        Ok((&batch.rewards + discounts * self.target_critic.forward(&inputs)?)?.detach())
    }

    /// One step of the critic towards y. Everything else stays as it is. Returns J(θ) and E[ Q_θ(s, a) ],
    /// from before the step.
    fn update_critic(&mut self, batch: &Batch) -> Result<(f32, f32)> {
        let y = self.td_targets(batch)?;
        let inputs = Tensor::cat(&[&batch.observations, &batch.actions], 1)?; // (s, a)
        let q = self.critic.forward(&inputs)?; // [batch, 1]
        // J(θ) = E[ (Q_θ(s, a) − y)² ]
        let loss = (&q - y)?.sqr()?.mean_all()?;
        self.critic_optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, q.mean_all()?.to_scalar()?))
    }

    /// One step of the actor; the critic, through which it learns, stays as it is. Returns J(φ).
    fn update_actor(&mut self, batch: &Batch) -> Result<f32> {
        let actions = self.actor.forward(&batch.observations)?; // μ_φ(s), [batch, action_dim]
        let inputs = Tensor::cat(&[&batch.observations, &actions], 1)?; // (s, μ_φ(s))
        // J(φ) = −E[ Q_θ(s, μ_φ(s)) ]
        let loss = self.critic.held_constant().forward(&inputs)?.mean_all()?.neg()?;
        self.actor_optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// θ̄ ← (1 − τ) θ̄ + τ θ,   φ̄ ← (1 − τ) φ̄ + τ φ
    fn update_targets(&self) -> Result<()> {
        soft_update(&self.target_critic_parameters, &self.critic_parameters, self.args.tau)?;
        Ok(soft_update(&self.target_actor_parameters, &self.actor_parameters, self.args.tau)?)
    }
}

/// ε ~ N(0, I), `[len]`.
fn normal(len: usize, rng: &mut Rng) -> Result<Vec<f32>> {
    Ok(Init::Randn { mean: 0.0, stdev: 1.0 }.tensor(len, rng, &Device::Cpu)?.to_vec1()?)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, action_dim) = envs.spec().box_to_box("ddpg")?;
    let (action_bias, action_scale) = envs.spec().action_range("ddpg")?;
    let mut rng = learner_rng(args.run.seed);
    let mut ddpg = Ddpg::new(observation_dim, (&action_bias, &action_scale), &args, &mut rng)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
    let mut running_episode = RunningEpisode::new(&envs);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut ddpg.actor_parameters),
                ("actor_optimizer", &mut ddpg.actor_optimizer),
                ("target_actor", &mut ddpg.target_actor_parameters),
                ("critic", &mut ddpg.critic_parameters),
                ("critic_optimizer", &mut ddpg.critic_optimizer),
                ("target_critic", &mut ddpg.target_critic_parameters),
                ("noise", &mut ddpg.noise),
                ("buffer", &mut buffer),
                ("running_episode", &mut running_episode),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        // Act: at random until there is something to learn from, then as the policy does, with noise.
        let observation = envs.observations().to_vec(); // [observation_dim]
        let action: Vec<f32> = if global_step < args.learning_starts {
            action_bias.iter().zip(&action_scale).map(|(b, c)| b + c * rng.random_range(-1.0..=1.0)).collect()
        } else {
            ddpg.act(&observation, &normal(action_dim, &mut rng)?)?
        };
        envs.step(&action)?;
        buffer.store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if let Some(episode) = running_episode.add_step(&envs, args.gamma) {
            ddpg.reset_noise();
            let start_value = f64::from(ddpg.value(&episode.start_observation)?);
            run.log(global_step, "charts/start_value", start_value)?;
            run.log(global_step, "charts/discounted_return", episode.discounted_return)?;
            run.log(global_step, "charts/overestimation", start_value - episode.discounted_return)?;
        }
        if global_step <= args.learning_starts {
            continue;
        }

        // Learn: the critic first, then the actor through the critic as it now is, then the averages.
        let update = global_step - args.learning_starts;
        let batch = buffer.sample(args.batch_size, &mut rng, &ddpg.device)?;
        let (qf1_loss, qf1_values) = ddpg.update_critic(&batch)?;
        if update.is_multiple_of(args.policy_frequency) {
            let actor_loss = ddpg.update_actor(&batch)?;
            ddpg.update_targets()?;
            if (update / args.policy_frequency).is_multiple_of(100) {
                run.log(global_step, "losses/actor_loss", actor_loss)?;
            }
        }
        if update.is_multiple_of(100) {
            run.log(global_step, "losses/qf1_values", qf1_values)?;
            run.log(global_step, "losses/qf1_loss", qf1_loss)?;
        }
    }

    run.save_or_load_model(&mut ddpg.actor_parameters)?;
    run.evaluate(|observations| ddpg.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
