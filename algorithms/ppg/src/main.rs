//! # Phasic policy gradient (PPG), discrete actions
//!
//! Cobbe, Hilton, Klimov & Schulman (2020), "Phasic policy gradient", arXiv:2009.04416.
//!
//! A network that both acts and values shares what it has learned to see, but the two objectives interfere,
//! and a critic can use the same data more often than a policy. PPG keeps two networks and two phases: in the
//! policy phase PPO trains policy and critic apart; every N_π rollouts, an auxiliary phase teaches the
//! policy's network the values of all of them through a second head, while its policy is held to what it was.
//!
//! ```text
//! the policy phase, after each of N_π rollouts, with ρ_t(θ) = π_θ(a_t|s_t) / π_θ_old(a_t|s_t):
//! L(θ_π) = −E_t[ min( ρ_t Â_t , clip(ρ_t, 1 − ε, 1 + ε) Â_t ) ] − c_e E_t[ H(π_θ(·|s_t)) ]
//! L(θ_V) = ½ E_t[ (V_θV(s_t) − R̂_t)² ]
//!
//! the auxiliary phase, over all the N_π rollouts: L(θ_V) once more and, with π_old the policy at its start,
//! L_joint(θ_π) = ½ E_t[ (V_θπ(s_t) − R̂_t)² ] + β E_t[ KL(π_old(·|s_t) ‖ π_θ(·|s_t)) ]
//!
//! δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
//! Â_t = δ_t + γ λ (1 − done_t) Â_{t+1},   R̂_t = Â_t + V(s_t)          done: terminated or truncated
//! ```
//!
//! V_θπ is the auxiliary head of the policy's network, which nothing else reads. Â and R̂ are as PPO's (Schulman
//! et al. 2015, arXiv:1506.02438).
//!
//! Deviations from the paper: the step size falls to zero; layers are initialised orthogonally; rewards are not
//! normalised; both phases' minibatches are of one size. As in the authors' program, Â is normalised over the
//! rollout, and θ_π (there θ_V, too) has a second Adam for the auxiliary phase: one would mix the phases'
//! moments. Ours: δ_t looks beyond a time limit (arXiv:1712.00378). Defaults are for CartPole-v1: γ = 0.99
//! (there 0.999), rollouts of 4 × 128 steps (256 × 256), N_π = 8 (32), 16 minibatches (8), steps of 1e-3 (5e-4).
//!
//! Run `cargo run -p ppg`: CartPole-v1's 500 (Gymnasium asks for 475) in 300,000 steps, ten seconds.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, Space, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Categorical, Conv2d, Linear, VarBuilder, VarMap};
use common::nn::{conv2d_orthogonal, linear_orthogonal};
use common::{Run, cli, cli::RunArgs};
use rand::{RngExt, seq::SliceRandom};
use serde::Serialize;
use std::{f64::consts::SQRT_2, process::ExitCode};

/// Phasic policy gradient, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("300000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Parallel environments
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps in each environment between updates
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    num_steps: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Decay of the advantage estimate, λ
    #[arg(long, default_value_t = 0.95, value_parser = cli::unit_interval)]
    gae_lambda: f64,
    /// Minibatches that a rollout is split into
    #[arg(long, default_value_t = 16, value_parser = cli::positive)]
    num_minibatches: usize,
    /// How far a probability ratio may move, ε
    #[arg(long, default_value_t = 0.2, value_parser = cli::non_negative)]
    clip_coef: f64,
    /// Weight of the entropy bonus, c_e
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    ent_coef: f64,
    /// Rollouts between auxiliary phases, N_π
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    n_iteration: usize,
    /// Passes over a rollout in the policy phase, E_π and E_V
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    e_policy: usize,
    /// Passes over all rollouts in an auxiliary phase, E_aux; 0 for no such phase
    #[arg(long, default_value_t = 6)]
    e_auxiliary: usize,
    /// Weight of the old policy in the auxiliary phase, β
    #[arg(long, default_value_t = 1.0, value_parser = cli::non_negative)]
    beta_clone: f64,
}

/// A network of tanh units: two hidden layers for vectors; for images a convolution and one hidden layer (16
/// filters of 3 × 3 and 128 units, as MinAtar's authors use: Young & Tian 2019, arXiv:1903.03176).
struct Network {
    convolution: Option<Conv2d>, // [height, width, channels] → [height − 2, width − 2, 16]
    hidden: Vec<Linear>,         // → [hidden_sizes[0]] → … → [features]
    output: Linear,              // → [outputs]
    scale: f64,                  // of an image's numbers, to bring them to 0 to 1
}

impl Network {
    /// `gain` scales the output layer: 0.01 makes the first policy almost uniform, 1 suits a value.
    fn new(space: &Space, hidden_sizes: &[usize], outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let (mut convolution, mut inputs, mut scale) = (None, space.size(), 1.0);
        if let Space::Box { shape, high, .. } = space
            && let [height, width, channels] = shape[..]
        {
            let vb = vb.pp("convolution");
            convolution = Some(conv2d_orthogonal(channels, 16, 3, SQRT_2, Default::default(), vb)?);
            inputs = (height - 2) * (width - 2) * 16;
            scale = 1.0 / f64::from(high[0]);
        }
        let mut hidden = Vec::new();
        for (i, &size) in hidden_sizes.iter().enumerate() {
            hidden.push(linear_orthogonal(inputs, size, SQRT_2, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        let output = linear_orthogonal(inputs, outputs, gain, vb.pp("output"))?;
        Ok(Self { convolution, hidden, output, scale })
    }

    /// Observations `[batch, …]` to what the last hidden layer makes of them, `[batch, features]`.
    fn features(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        if let Some(convolution) = &self.convolution {
            x = convolution.forward_tanh(&(x * self.scale)?)?;
        }
        for layer in &self.hidden {
            x = layer.forward_tanh(&x.flatten_from(1)?)?; // an image or a matrix as one row
        }
        Ok(x)
    }

    /// Observations `[batch, …]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        Ok(self.output.forward(&self.features(observations)?)?)
    }
}

/// ln softmax(x) = x − ln Σ_i exp(x_i), for each row of `[batch, num_actions]`.
fn log_softmax(x: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_sub(&x.log_sum_exp(1)?.unsqueeze(1)?)?)
}

/// What happened in `num_steps` steps of each environment. Every column is `[num_steps, num_envs]`,
/// row by row: step t of environment e is at t · num_envs + e.
#[derive(Default)]
struct Rollout {
    observations: Vec<f32>,      // s_t, [num_steps, num_envs, observation_dim]
    actions: Vec<u32>,           // a_t
    log_probs: Vec<f32>,         // ln π_θ_old(a_t|s_t)
    rewards: Vec<f32>,           // r_t
    next_observations: Vec<f32>, // s_{t+1}, an episode's true last one at its end, shaped like s_t
    terminated: Vec<bool>,       // nothing lies beyond s_{t+1}
    truncated: Vec<bool>,        // the episode was cut off at s_{t+1}
}

impl Rollout {
    /// Stores the step that `envs` have just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], actions: &[u32], log_probs: &[f32], envs: &VecEnv) {
        self.observations.extend_from_slice(observations);
        self.actions.extend_from_slice(actions);
        self.log_probs.extend_from_slice(log_probs);
        self.rewards.extend_from_slice(envs.rewards());
        // Easy to miss: after an episode's end `envs.observations()` are the next episode's.
        self.next_observations.extend_from_slice(envs.final_observations());
        self.terminated.extend_from_slice(envs.terminated());
        self.truncated.extend_from_slice(envs.truncated());
    }

    /// Â_t, `[num_steps, num_envs]`, from V(s_t) and V(s_{t+1}) of the same shape.
    fn advantages(&self, values: &[f32], next_values: &[f32], args: &Args) -> Vec<f32> {
        let (gamma, gae_lambda) = (args.gamma as f32, args.gae_lambda as f32);
        let (num_envs, num_steps) = (args.num_envs, self.rewards.len() / args.num_envs);
        let mut advantages = vec![0.0; self.rewards.len()];
        for t in (0..num_steps).rev() {
            for env in 0..num_envs {
                let i = t * num_envs + env;
                // δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
                let next_value = if self.terminated[i] { 0.0 } else { next_values[i] };
                let delta = self.rewards[i] + gamma * next_value - values[i];
                // Â_t = δ_t + γ λ (1 − done_t) Â_{t+1}
                // Easy to miss and fatal: what follows an episode's end belongs to the next one.
                let last = self.terminated[i] || self.truncated[i] || t + 1 == num_steps;
                let next_advantage = if last { 0.0 } else { advantages[i + num_envs] };
                advantages[i] = delta + gamma * gae_lambda * next_advantage;
            }
        }
        advantages
    }
}

/// A minibatch: the rows `indices` of each column.
fn select<const N: usize>(columns: [&Tensor; N], indices: &[u32]) -> Result<[Tensor; N]> {
    let indices = Tensor::new(indices, columns[0].device())?;
    let mut minibatch = columns.map(Tensor::clone);
    for column in &mut minibatch {
        *column = column.index_select(&indices, 0)?;
    }
    Ok(minibatch)
}

/// What one update of the policy found, before it moved the parameters.
#[derive(Clone, Copy, Default)]
struct Losses {
    policy_loss: f32,
    entropy: f32,
    approx_kl: f32, // KL(π_θ_old ‖ π_θ)
    clipfrac: f32,  // share of the ratios beyond 1 ± ε
}

/// Actor, critic and how they learn.
struct Ppg {
    actor: Network,            // logits of π_θ(·|s), [num_actions]
    auxiliary: Linear,         // V_θπ(s) from the actor's features, [1]
    critic: Network,           // V_θV(s), [1]
    actor_parameters: VarMap,  // θ_π, the auxiliary head's among them
    critic_parameters: VarMap, // θ_V
    actor_optimizer: Adam,     // of the policy phase
    auxiliary_optimizer: Adam, // of θ_π in the auxiliary phase
    critic_optimizer: Adam,
    shape: Vec<usize>, // of one observation
    args: Args,
    device: Device,
}

impl Ppg {
    fn new(space: &Space, num_actions: usize, hidden: &[usize], args: &Args, rng: &mut Rng) -> Result<Self> {
        let device = args.run.device()?;
        let (actor_parameters, critic_parameters) = (VarMap::new(rng.random()), VarMap::new(rng.random()));
        let vb = |parameters, name| VarBuilder::from_varmap(parameters, DType::F32, &device).pp(name);
        let actor = Network::new(space, hidden, num_actions, 0.01, vb(&actor_parameters, "actor"))?;
        let features = actor.output.weight().dim(1)?;
        Ok(Self {
            actor,
            auxiliary: linear_orthogonal(features, 1, 1.0, vb(&actor_parameters, "auxiliary"))?,
            critic: Network::new(space, hidden, 1, 1.0, vb(&critic_parameters, "critic"))?,
            // After the networks: they take the parameters that exist by now.
            actor_optimizer: Adam::new(&actor_parameters, args.learning_rate)?,
            auxiliary_optimizer: Adam::new(&actor_parameters, args.learning_rate)?,
            critic_optimizer: Adam::new(&critic_parameters, args.learning_rate)?,
            actor_parameters,
            critic_parameters,
            shape: space.shape(),
            args: args.clone(),
            device,
        })
    }

    /// Observations as `[batch, …shape]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        let batch = observations.len() / self.shape.iter().product::<usize>();
        Ok(Tensor::from_slice(observations, [&[batch], &self.shape[..]].concat(), &self.device)?)
    }

    /// a ~ π_θ(·|s) and ln π_θ(a|s) for each observation, `[num_envs]` each.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<(Vec<u32>, Vec<f32>)> {
        let policy = Categorical::new(&self.actor.forward(&self.tensor(observations)?)?)?;
        let actions = policy.sample(rng)?;
        Ok((actions.to_vec1()?, policy.log_prob(&actions)?.to_vec1()?))
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(Categorical::new(&self.actor.forward(&self.tensor(observations)?)?)?.mode()?.to_vec1()?)
    }

    /// What the policy phase learns from: s `[batch, …]`, a, ln π_θ_old(a|s), Â normalised, R̂, `[batch]`
    /// each; and how much of R̂ is explained by V: 1 if it is right, 0 if it knows no more than the mean.
    fn columns(&self, rollout: &Rollout) -> Result<([Tensor; 5], f32)> {
        let observations = self.tensor(&rollout.observations)?;
        let values = self.critic.forward(&observations)?.squeeze(1)?.detach(); // V(s_t), [batch]
        let next_values = self.critic.forward(&self.tensor(&rollout.next_observations)?)?.squeeze(1)?;
        let advantages = rollout.advantages(&values.to_vec1()?, &next_values.to_vec1()?, &self.args);
        let advantages = Tensor::new(advantages, &self.device)?;
        let returns = (&advantages + values)?; // R̂_t = Â_t + V(s_t)
        // 1 − Var(R̂ − V) / Var(R̂)
        let variance = |x: &Tensor| x.broadcast_sub(&x.mean_all()?)?.sqr()?.mean_all()?.to_scalar::<f32>();
        let explained_variance = 1.0 - variance(&advantages)? / variance(&returns)?.max(1e-20);
        // Over the whole rollout zero mean and unit standard deviation.
        let centred = advantages.broadcast_sub(&advantages.mean_all()?)?;
        let std = (centred.sqr()?.sum_all()? / (centred.elem_count() - 1).max(1) as f64)?.sqrt()?;
        let advantages = centred.broadcast_div(&(std + 1e-8)?)?;
        let actions = Tensor::new(rollout.actions.as_slice(), &self.device)?;
        let log_probs = Tensor::new(rollout.log_probs.as_slice(), &self.device)?;
        Ok(([observations, actions, log_probs, advantages, returns], explained_variance))
    }

    /// One step of Adam down L(θ_π), on a minibatch. The auxiliary head stays as it is.
    fn update_policy(&mut self, minibatch: &[Tensor; 4]) -> Result<Losses> {
        let [observations, actions, log_probs, advantages] = minibatch;
        let clip_coef = self.args.clip_coef; // ε
        // ρ(θ) = π_θ(a|s) / π_θ_old(a|s)
        let policy = Categorical::new(&self.actor.forward(observations)?)?;
        let log_ratio = (policy.log_prob(actions)? - log_probs)?; // [batch]
        let ratio = log_ratio.exp()?;
        // E[ min( ρ Â, clip(ρ, 1 − ε, 1 + ε) Â ) ], to be maximised
        let clipped_ratio = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)?;
        let surrogate = (&ratio * advantages)?.minimum(&(clipped_ratio * advantages)?)?;
        let policy_loss = surrogate.mean_all()?.neg()?;
        // E[ H(π_θ(·|s)) ]: a bonus, so that more of it makes the loss smaller.
        let entropy = policy.entropy()?.mean_all()?;
        self.actor_optimizer.backward_step(&(&policy_loss - (&entropy * self.args.ent_coef)?)?)?;
        let change = (ratio - 1.0)?;
        Ok(Losses {
            policy_loss: policy_loss.to_scalar()?,
            entropy: entropy.to_scalar()?,
            // KL(π_θ_old ‖ π_θ) ≈ E[ (ρ − 1) − ln ρ ] (Schulman 2020, "Approximating KL divergence")
            approx_kl: (&change - log_ratio)?.mean_all()?.to_scalar()?,
            clipfrac: change.abs()?.gt(clip_coef)?.to_dtype(DType::F32)?.mean_all()?.to_scalar()?,
        })
    }

    /// One step of Adam down L(θ_V), on a minibatch, in both phases.
    fn update_critic(&mut self, [observations, returns]: &[Tensor; 2]) -> Result<f32> {
        // ½ E[ (V_θV(s) − R̂)² ]
        let values = self.critic.forward(observations)?.squeeze(1)?; // [batch]
        let loss = ((values - returns)?.sqr()?.mean_all()? * 0.5)?;
        self.critic_optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// ln π_old(·|s), `[batch, num_actions]`. Taken once, before the epochs: else the KL divergence is always 0.
    fn old_log_policy(&self, observations: &Tensor) -> Result<Tensor> {
        Ok(log_softmax(&self.actor.forward(observations)?)?.detach())
    }

    /// One step of Adam down L_joint(θ_π), on a minibatch. Returns the value's part and the KL divergence.
    fn update_auxiliary(&mut self, [observations, returns, log_policy]: &[Tensor; 3]) -> Result<(f32, f32)> {
        let features = self.actor.features(observations)?;
        // ½ E[ (V_θπ(s) − R̂)² ], whose gradient goes on into the features: that is what the phase is for.
        let values = self.auxiliary.forward(&features)?.squeeze(1)?; // [batch]
        let value_loss = ((values - returns)?.sqr()?.mean_all()? * 0.5)?;
        // KL(π_old ‖ π_θ) = Σ_a π_old(a|s) ( ln π_old(a|s) − ln π_θ(a|s) )
        let new = log_softmax(&self.actor.output.forward(&features)?)?;
        let kl = (log_policy.exp()? * (log_policy - new)?)?.sum(1)?.mean_all()?;
        // L_joint = ½ E[ (V_θπ(s) − R̂)² ] + β E[ KL(π_old ‖ π_θ) ]
        self.auxiliary_optimizer.backward_step(&(&value_loss + (&kl * self.args.beta_clone)?)?)?;
        Ok((value_loss.to_scalar()?, kl.to_scalar()?))
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let Args { num_envs, num_steps, .. } = args;
    let batch_size = num_envs.saturating_mul(num_steps);
    if batch_size > 100_000_000 {
        return invalid(format!("--num-envs {num_envs} --num-steps {num_steps}: together at most 1e8 steps"));
    }
    let minibatch_size = batch_size.div_ceil(args.num_minibatches); // in both phases
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, args.run.seed)?;
    let (_, num_actions) = envs.spec().box_or_image_to_discrete("ppg")?;
    let space = envs.spec().observation_space.clone();
    let hidden_sizes: &[usize] = if space.shape().len() == 3 { &[128] } else { &[64, 64] };
    let mut rng = learner_rng(args.run.seed);
    let mut ppg = Ppg::new(&space, num_actions, hidden_sizes, &args, &mut rng)?;
    let mut memory: (Vec<f32>, Vec<f32>) = Default::default(); // s and R̂ since the last auxiliary phase
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut ppg.actor_parameters),
                ("actor_optimizer", &mut ppg.actor_optimizer),
                ("auxiliary_optimizer", &mut ppg.auxiliary_optimizer),
                ("critic", &mut ppg.critic_parameters),
                ("critic_optimizer", &mut ppg.critic_optimizer),
                ("memory", &mut memory),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            for adam in [&mut ppg.actor_optimizer, &mut ppg.auxiliary_optimizer, &mut ppg.critic_optimizer] {
                adam.learning_rate = remaining * args.learning_rate;
            }
        }

        // Run the policy for num_steps steps in each environment.
        let mut rollout = Rollout::default();
        for _ in 0..args.num_steps {
            let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
            let (actions, log_probs) = ppg.act(&observations, &mut rng)?;
            envs.step(&actions)?;
            rollout.store(&observations, &actions, &log_probs, &envs);
            global_step += args.num_envs;
            run.episodes(global_step, envs.episodes())?;
        }

        // The policy phase: the policy by PPO, and the critic.
        let (columns, explained_variance) = ppg.columns(&rollout)?;
        let [observations, actions, log_probs, advantages, returns] = &columns;
        let (mut losses, mut value_loss) = (Losses::default(), 0.0);
        let mut indices: Vec<u32> = (0..batch_size as u32).collect();
        for _ in 0..args.e_policy {
            indices.shuffle(&mut rng);
            for rows in indices.chunks(minibatch_size) {
                losses = ppg.update_policy(&select([observations, actions, log_probs, advantages], rows)?)?;
                value_loss = ppg.update_critic(&select([observations, returns], rows)?)?;
            }
        }
        run.log(global_step, "charts/learning_rate", ppg.actor_optimizer.learning_rate)?;
        run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
        run.log(global_step, "losses/value_loss", value_loss)?;
        run.log(global_step, "losses/entropy", losses.entropy)?;
        run.log(global_step, "losses/approx_kl", losses.approx_kl)?;
        run.log(global_step, "losses/clipfrac", losses.clipfrac)?;
        run.log(global_step, "losses/explained_variance", explained_variance)?;

        // The auxiliary phase, over all rollouts since the last one.
        memory.0.extend(&rollout.observations);
        memory.1.extend(returns.to_vec1::<f32>()?);
        if memory.1.len() >= args.n_iteration.saturating_mul(batch_size) {
            let observations = ppg.tensor(&memory.0)?;
            let returns = Tensor::new(memory.1.as_slice(), &ppg.device)?;
            let log_policy = ppg.old_log_policy(&observations)?; // [batch, num_actions]
            let mut indices: Vec<u32> = (0..memory.1.len() as u32).collect();
            let (mut auxiliary_loss, mut kl_loss) = (0.0, 0.0);
            for _ in 0..args.e_auxiliary {
                indices.shuffle(&mut rng);
                for rows in indices.chunks(minibatch_size) {
                    let minibatch = select([&observations, &returns, &log_policy], rows)?;
                    (auxiliary_loss, kl_loss) = ppg.update_auxiliary(&minibatch)?;
                    value_loss = ppg.update_critic(&select([&observations, &returns], rows)?)?;
                }
            }
            if args.e_auxiliary > 0 {
                run.log(global_step, "losses/aux/aux_value_loss", auxiliary_loss)?;
                run.log(global_step, "losses/aux/kl_loss", kl_loss)?;
                run.log(global_step, "losses/aux/real_value_loss", value_loss)?;
            }
            memory = Default::default();
        }
    }

    run.save_or_load_model(&mut ppg.actor_parameters)?;
    run.evaluate(|observations| ppg.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
