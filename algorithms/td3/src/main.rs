//! # Twin delayed deep deterministic policy gradient (TD3)
//!
//! Fujimoto, van Hoof & Meger (2018), arXiv:1802.09477.
//!
//! A deterministic actor climbs its critic, and so finds whatever the critic overrates; those errors then
//! feed back through the critic's targets. TD3 is DDPG (Lillicrap et al. 2015, arXiv:1509.02971) with three
//! remedies: targets take the smaller of two critics' values, at an action with a little noise, so that no
//! narrow peak is worth anything; and actor and averages move less often than the critics, which settle first.
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
//! When an episode ends, the value of its first state, Q_θ1(s_0, μ_φ(s_0)), which the actor climbs, is logged
//! as `charts/start_value`, what came of it, Σ_t γ^t r_t (of noisy actions, without what lies beyond a
//! truncation), as `charts/discounted_return`, and how much less that is as `charts/overestimation`.
//!
//! Deviations from the paper: noise is in units of c, there in those of the actions (which are the same where
//! actions lie in [-1, 1]); ã' is clipped to the bounds, as in its authors' code; both hidden layers have 256
//! units and a batch 256 transitions, as in CleanRL (the paper: 400 and 300 units, and 100 transitions).
//!
//! Run `cargo run -p td3`: about -150 on Pendulum-v1 after 30,000 steps in two minutes (-152 is what the
//! trained TD3 of RL Baselines3 Zoo reaches: its benchmark.md).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{
    self, Adam, Init, Linear, VarBuilder, VarMap, clamp, copy_parameters, linear, minimum, soft_update,
};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Twin delayed deep deterministic policy gradient
#[derive(Parser, Serialize, Debug, Clone)]
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
        self.rescale(&self.network.forward(observations)?.tanh()?)
    }

    /// clip( μ_φ(s) + c ε, b − c, b + c ), `[batch, action_dim]`, for ε of the same shape.
    fn perturbed(&self, observations: &Tensor, epsilon: &Tensor) -> Result<Tensor> {
        let x = (self.network.forward(observations)?.tanh()? + epsilon)?;
        self.rescale(&clamp(&x, -1.0, 1.0)?)
    }

    /// b + c x for x in [-1, 1], `[batch, action_dim]`.
    fn rescale(&self, x: &Tensor) -> Result<Tensor> {
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

/// Actor, twin critics, the averages of all three, and how they learn.
struct Td3 {
    actor: Actor,                     // μ_φ
    target_actor: Actor,              // μ_φ̄
    critics: [Mlp; 2],                // Q_θ1, Q_θ2: [observation_dim + action_dim] → [1]
    target_critics: [Mlp; 2],         // Q_θ̄1, Q_θ̄2
    actor_parameters: VarMap,         // φ
    target_actor_parameters: VarMap,  // φ̄
    critic_parameters: VarMap,        // θ1, θ2
    target_critic_parameters: VarMap, // θ̄1, θ̄2
    actor_optimizer: Adam,
    critic_optimizer: Adam,
    observation_dim: usize,
    action_dim: usize,
    args: Args,
    device: Device,
}

impl Td3 {
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
        let new_critics = |parameters: &VarMap| -> Result<[Mlp; 2]> {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            let critic = |name| Mlp::new(observation_dim + action_dim, hidden_size, 1, vb.pp(name));
            Ok([critic("qf1")?, critic("qf2")?]) // one after the other: twins born equal would stay equal
        };
        let (actor_parameters, critic_parameters) = (VarMap::new(rng.random()), VarMap::new(rng.random()));
        let (target_actor_parameters, target_critic_parameters) = (VarMap::new(0), VarMap::new(0));
        let (actor, critics) = (new_actor(&actor_parameters)?, new_critics(&critic_parameters)?);
        let target_actor = new_actor(&target_actor_parameters)?;
        let target_critics = new_critics(&target_critic_parameters)?;
        copy_parameters(&target_actor_parameters, &actor_parameters)?;
        copy_parameters(&target_critic_parameters, &critic_parameters)?;
        Ok(Self {
            actor,
            target_actor,
            critics,
            target_critics,
            actor_optimizer: Adam::new(&actor_parameters, args.learning_rate)?,
            critic_optimizer: Adam::new(&critic_parameters, args.learning_rate)?,
            actor_parameters,
            target_actor_parameters,
            critic_parameters,
            target_critic_parameters,
            observation_dim,
            action_dim,
            args: args.clone(),
            device,
        })
    }

    /// N(0, I), `[rows, action_dim]`.
    fn noise(&self, rows: usize, rng: &mut Rng) -> Result<Tensor> {
        Ok(Init::Randn { mean: 0.0, stdev: 1.0 }.tensor((rows, self.action_dim), rng, &self.device)?)
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// clip( μ_φ(s) + c N(0, σ²), b − c, b + c ) for each observation, `[batch, action_dim]`.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<f32>> {
        let observations = self.tensor(observations)?;
        let epsilon = (self.noise(observations.dim(0)?, rng)? * self.args.exploration_noise)?;
        Ok(self.actor.perturbed(&observations, &epsilon)?.flatten_all()?.to_vec1()?)
    }

    /// μ_φ(s), the policy without its noise, for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<f32>> {
        Ok(self.actor.forward(&self.tensor(observations)?)?.flatten_all()?.to_vec1()?)
    }

    /// Q_θ1(s, μ_φ(s)) of one observation.
    fn value(&self, observation: &[f32]) -> Result<f32> {
        let observation = self.tensor(observation)?; // s, [1, observation_dim]
        let inputs = Tensor::cat(&[&observation, &self.actor.forward(&observation)?], 1)?; // (s, μ_φ(s))
        Ok(self.critics[0].forward(&inputs)?.mean_all()?.to_scalar()?) // the mean of one
    }

    /// ã', `[batch, action_dim]`, from noise N(0, I) of the same shape.
    fn smoothed_actions(&self, next_observations: &Tensor, noise: &Tensor) -> Result<Tensor> {
        // ε = clip( N(0, σ̃²), −d, d )
        let epsilon = clamp(&(noise * self.args.policy_noise)?, -self.args.noise_clip, self.args.noise_clip)?;
        // ã' = clip( μ_φ̄(s') + c ε, b − c, b + c )
        self.target_actor.perturbed(next_observations, &epsilon)
    }

    /// y, `[batch, 1]`, from noise N(0, I) `[batch, action_dim]`.
    fn td_targets(&self, batch: &Batch, noise: &Tensor) -> Result<Tensor> {
        let next_actions = self.smoothed_actions(&batch.next_observations, noise)?;
        let inputs = Tensor::cat(&[&batch.next_observations, &next_actions], 1)?; // (s', ã')
        // min_i Q_θ̄i(s', ã')
        let [q1, q2] = nn::both(|i| self.target_critics[i].forward(&inputs))?;
        let next_values = minimum(&q1, &q2)?;
        // y = r + γ (1 − terminated) min_i Q_θ̄i(s', ã')
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((&batch.rewards + discounts * next_values)?.detach())
    }

    /// One step of both critics, whose targets are the same y. Everything else stays as it is. Returns
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

    /// One step of the actor; the first critic, through which it learns, stays as it is. Returns J(φ).
    fn update_actor(&mut self, batch: &Batch) -> Result<f32> {
        let actions = self.actor.forward(&batch.observations)?; // μ_φ(s), [batch, action_dim]
        let inputs = Tensor::cat(&[&batch.observations, &actions], 1)?; // (s, μ_φ(s))
        // J(φ) = −E[ Q_θ1(s, μ_φ(s)) ]
        let loss = self.critics[0].held_constant().forward(&inputs)?.mean_all()?.neg()?;
        self.actor_optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// θ̄_i ← (1 − τ) θ̄_i + τ θ_i,   φ̄ ← (1 − τ) φ̄ + τ φ
    fn update_targets(&self) -> Result<()> {
        soft_update(&self.target_critic_parameters, &self.critic_parameters, self.args.tau)?;
        Ok(soft_update(&self.target_actor_parameters, &self.actor_parameters, self.args.tau)?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, _) = envs.spec().box_to_box("td3")?;
    let (action_bias, action_scale) = envs.spec().action_range("td3")?;
    let mut rng = learner_rng(args.run.seed);
    let mut td3 = Td3::new(observation_dim, (&action_bias, &action_scale), &args, &mut rng)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
    let mut running_episode = RunningEpisode::new(&envs);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut td3.actor_parameters),
                ("actor_optimizer", &mut td3.actor_optimizer),
                ("target_actor", &mut td3.target_actor_parameters),
                ("critics", &mut td3.critic_parameters),
                ("critic_optimizer", &mut td3.critic_optimizer),
                ("target_critics", &mut td3.target_critic_parameters),
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
            td3.act(&observation, &mut rng)?
        };
        envs.step(&action)?;
        buffer.store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if let Some(episode) = running_episode.add_step(&envs, args.gamma) {
            let start_value = f64::from(td3.value(&episode.start_observation)?);
            run.log(global_step, "charts/start_value", start_value)?;
            run.log(global_step, "charts/discounted_return", episode.discounted_return)?;
            run.log(global_step, "charts/overestimation", start_value - episode.discounted_return)?;
        }
        if global_step <= args.learning_starts {
            continue;
        }

        // Learn. Only every policy_frequency critic updates do the actor and the averages move.
        let update = global_step - args.learning_starts;
        let batch = buffer.sample(args.batch_size, &mut rng, &td3.device)?;
        let noise = td3.noise(args.batch_size, &mut rng)?;
        let [(qf1_loss, qf1_values), (qf2_loss, qf2_values)] = td3.update_critics(&batch, &noise)?;
        if update.is_multiple_of(args.policy_frequency) {
            let actor_loss = td3.update_actor(&batch)?;
            td3.update_targets()?;
            if (update / args.policy_frequency).is_multiple_of(100) {
                run.log(global_step, "losses/actor_loss", actor_loss)?;
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

    run.save_or_load_model(&mut td3.actor_parameters)?;
    run.evaluate(|observations| td3.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
