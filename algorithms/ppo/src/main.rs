//! # Proximal policy optimisation (PPO), discrete actions
//!
//! Schulman, Wolski, Dhariwal, Radford & Klimov (2017), arXiv:1707.06347.
//!
//! A policy-gradient step is only right for the policy that gathered the data, so plain policy
//! gradient throws its data away after one step. PPO takes many steps on the same data and keeps
//! the policy near the one that gathered it: once the probability of an action has changed by
//! more than a factor 1 ± ε in the direction that its advantage asks for, the objective is flat
//! and there is nothing more to gain.
//!
//! With the probability ratio `ρ_t(θ) = π_θ(a_t|s_t) / π_θ_old(a_t|s_t)` it maximises
//!
//! ```text
//! L(θ) = E_t[ min( ρ_t(θ) Â_t , clip(ρ_t(θ), 1 − ε, 1 + ε) Â_t ) ]   the clipped surrogate
//!        − c_v E_t[ ½ (V_θ(s_t) − R̂_t)² ]                           the critic
//!        + c_e E_t[ H(π_θ(·|s_t)) ]                                  the entropy bonus
//! ```
//!
//! where the advantages are generalised advantage estimates (Schulman et al. 2015,
//! arXiv:1506.02438), an exponential average of n-step advantages with decay λ:
//!
//! ```text
//! δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
//! Â_t = δ_t + γ λ (1 − done_t) Â_{t+1}          done: terminated or truncated
//! R̂_t = Â_t + V(s_t)
//! ```
//!
//! Where a time limit merely truncates an episode, the state it was cut at still has a value, and
//! δ_t bootstraps from it (Pardo et al. 2018, arXiv:1712.00378).
//!
//! Deviations from the paper, OpenAI's baselines' and CleanRL's (Huang et al. 2022, "The 37 implementation
//! details of proximal policy optimization"): orthogonal initial weights, advantages normalised in each
//! minibatch, gradients clipped to a norm, Adam's eps 1e-5. Step sizes fall as for the paper's games, where the
//! clip's ε does too; two networks are as in its control tasks. Our own: δ_t looks beyond a time limit; step
//! sizes begin at 3e-3 (CleanRL: 2.5e-4, for more steps). Unlike CleanRL's, the critic's loss is not clipped.
//!
//! Run `cargo run -p ppo`: 475 or more, at which Gymnasium registers the task as solved, on CartPole-v1 after
//! 100,000 steps in about a second with each of 170 seeds.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, Space, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Categorical, Conv2d, Linear, VarBuilder, VarMap};
use common::nn::{conv2d_orthogonal, linear_orthogonal};
use common::{Run, cli, cli::RunArgs};
use rand::seq::SliceRandom;
use serde::Serialize;
use std::process::ExitCode;

/// Proximal policy optimisation with clipping, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("100000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam, α
    #[arg(long, default_value_t = 3e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Parallel environments
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps in each environment between updates
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    num_steps: usize,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Decay of the advantage estimate, λ
    #[arg(long, default_value_t = 0.95, value_parser = cli::unit_interval)]
    gae_lambda: f64,
    /// Minibatches that a batch is split into
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    num_minibatches: usize,
    /// Passes over a batch
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    update_epochs: usize,
    /// Normalise advantages in each minibatch
    #[arg(long, default_value_t = true)]
    norm_adv: bool,
    /// How far a probability ratio may move, ε
    #[arg(long, default_value_t = 0.2, value_parser = cli::non_negative)]
    clip_coef: f64,
    /// Clip the critic's change as well (Andrychowicz et al. 2021, arXiv:2006.05990, found no gain)
    #[arg(long, default_value_t = false)]
    clip_vloss: bool,
    /// Weight of the entropy bonus, c_e
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    ent_coef: f64,
    /// Weight of the critic's loss, c_v
    #[arg(long, default_value_t = 0.5, value_parser = cli::non_negative)]
    vf_coef: f64,
    /// Largest norm of the gradient
    #[arg(long, default_value_t = 0.5, value_parser = cli::above_zero)]
    max_grad_norm: f64,
    /// Stop a batch's updates after an epoch whose last minibatch saw the policy this far moved (KL)
    #[arg(long, value_parser = cli::above_zero)]
    #[serde(skip_serializing_if = "Option::is_none")]
    target_kl: Option<f64>,
}

/// A network of tanh units: two hidden layers for vectors; for images a convolution and one hidden
/// layer (16 filters of 3 × 3 and 128 units are what MinAtar's authors use: Young & Tian 2019,
/// arXiv:1903.03176).
struct Network {
    convolution: Option<Conv2d>, // [height, width, channels] → [height − 2, width − 2, 16]
    hidden: Vec<Linear>,         // → [hidden_sizes[0]] → …
    output: Linear,              // → [outputs]
    scale: f64,                  // of an image's numbers, to bring them to 0 to 1
}

impl Network {
    /// `gain` scales the output layer: 0.01 makes the first policy almost uniform (Andrychowicz et
    /// al. 2021, arXiv:2006.05990), 1 suits a value.
    fn new(space: &Space, hidden_sizes: &[usize], outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let sqrt2 = std::f64::consts::SQRT_2;
        let (mut convolution, mut inputs, mut scale) = (None, space.size(), 1.0);
        if let Space::Box { shape, high, .. } = space
            && let [height, width, channels] = shape[..]
        {
            convolution =
                Some(conv2d_orthogonal(channels, 16, 3, sqrt2, Default::default(), vb.pp("convolution"))?);
            inputs = (height - 2) * (width - 2) * 16;
            scale = 1.0 / f64::from(high[0]);
        }
        let mut hidden = Vec::new();
        for (i, &size) in hidden_sizes.iter().enumerate() {
            hidden.push(linear_orthogonal(inputs, size, sqrt2, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        let output = linear_orthogonal(inputs, outputs, gain, vb.pp("output"))?;
        Ok(Self { convolution, hidden, output, scale })
    }

    /// Observations `[batch, …]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        if let Some(convolution) = &self.convolution {
            x = convolution.forward_tanh(&(x * self.scale)?)?;
        }
        for layer in &self.hidden {
            x = layer.forward_tanh(&x.flatten_from(1)?)?; // an image or a matrix as one row
        }
        Ok(self.output.forward(&x)?)
    }
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
        let mut next_advantages = vec![0.0; num_envs]; // Â_{t+1}
        for t in (0..num_steps).rev() {
            for env in 0..num_envs {
                let i = t * num_envs + env;
                // δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
                let next_value = if self.terminated[i] { 0.0 } else { next_values[i] };
                let delta = self.rewards[i] + gamma * next_value - values[i];
                // Â_t = δ_t + γ λ (1 − done_t) Â_{t+1}
                // Easy to miss and fatal: what follows an episode's end belongs to the next one.
                let done = self.terminated[i] || self.truncated[i];
                let next_advantage = if done { 0.0 } else { next_advantages[env] };
                advantages[i] = delta + gamma * gae_lambda * next_advantage;
                next_advantages[env] = advantages[i];
            }
        }
        advantages
    }
}

/// What the networks learn from: a rollout, or a minibatch of it.
struct Batch {
    observations: Tensor, // s, [batch, …]
    actions: Tensor,      // a, [batch], u32
    log_probs: Tensor,    // ln π_θ_old(a|s), [batch]
    advantages: Tensor,   // Â, [batch]
    returns: Tensor,      // R̂, [batch]
    values: Tensor,       // V_θ_old(s), [batch]
}

impl Batch {
    /// The rows `indices`.
    fn select(&self, indices: &[u32]) -> Result<Self> {
        let indices = Tensor::new(indices, self.actions.device())?;
        Ok(Self {
            observations: self.observations.index_select(&indices, 0)?,
            actions: self.actions.index_select(&indices, 0)?,
            log_probs: self.log_probs.index_select(&indices, 0)?,
            advantages: self.advantages.index_select(&indices, 0)?,
            returns: self.returns.index_select(&indices, 0)?,
            values: self.values.index_select(&indices, 0)?,
        })
    }
}

/// Zero mean and unit standard deviation. One number alone has no deviation and stays as it is.
fn normalise(x: &Tensor) -> Result<Tensor> {
    let n = x.dim(0)?;
    if n < 2 {
        return Ok(x.clone());
    }
    let centred = x.broadcast_sub(&x.mean_all()?)?;
    let std = (centred.sqr()?.sum_all()? / (n - 1) as f64)?.sqrt()?;
    Ok(centred.broadcast_div(&(std + 1e-8)?)?)
}

/// What one update found, before it moved the parameters.
#[derive(Clone, Copy, Default)]
struct Losses {
    policy_loss: f32,
    value_loss: f32,
    entropy: f32,
    approx_kl: f32, // KL(π_θ_old ‖ π_θ)
    clipfrac: f32,  // share of the ratios beyond 1 ± ε
}

/// Actor, critic and how they learn.
struct Ppo {
    actor: Network,     // logits of π_θ(·|s), [num_actions]
    critic: Network,    // V_θ(s), [1]
    parameters: VarMap, // θ, of both
    optimizer: Adam,    // of both
    shape: Vec<usize>,  // of one observation
    args: Args,
    device: Device,
}

impl Ppo {
    fn new(space: &Space, num_actions: usize, hidden_sizes: &[usize], args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let parameters = VarMap::new(args.run.seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let actor = Network::new(space, hidden_sizes, num_actions, 0.01, vb.pp("actor"))?;
        let critic = Network::new(space, hidden_sizes, 1, 1.0, vb.pp("critic"))?;
        // eps = 1e-5 as in OpenAI's baselines; PyTorch's default, and that of Adam's paper, is 1e-8.
        let optimizer = Adam::new(&parameters, args.learning_rate)?.with_eps(1e-5);
        let optimizer = optimizer.with_max_grad_norm(args.max_grad_norm);
        Ok(Self { actor, critic, parameters, optimizer, shape: space.shape(), args: args.clone(), device })
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
        let policy = Categorical::new(&self.actor.forward(&self.tensor(observations)?)?)?;
        Ok(policy.mode()?.to_vec1()?)
    }

    /// V_θ(s) for each observation.
    fn values(&self, observations: &[f32]) -> Result<Vec<f32>> {
        Ok(self.critic.forward(&self.tensor(observations)?)?.flatten_all()?.to_vec1()?)
    }

    /// The rollout with its advantages and returns, all steps of all environments in one row.
    fn batch(&self, rollout: &Rollout) -> Result<Batch> {
        let values = self.values(&rollout.observations)?; // V(s_t), [num_steps · num_envs]
        let next_values = self.values(&rollout.next_observations)?; // V(s_{t+1})
        let advantages = rollout.advantages(&values, &next_values, &self.args);
        let (advantages, values) =
            (Tensor::new(advantages, &self.device)?, Tensor::new(values, &self.device)?);
        Ok(Batch {
            observations: self.tensor(&rollout.observations)?,
            actions: Tensor::new(rollout.actions.as_slice(), &self.device)?,
            log_probs: Tensor::new(rollout.log_probs.as_slice(), &self.device)?,
            returns: (&advantages + &values)?, // R̂_t = Â_t + V(s_t)
            advantages,
            values,
        })
    }

    /// One step of Adam up L(θ), on a minibatch.
    fn update(&mut self, minibatch: &Batch) -> Result<Losses> {
        let Batch { observations, actions, log_probs, advantages, returns, values } = minibatch;
        let clip_coef = self.args.clip_coef; // ε
        let advantages = if self.args.norm_adv { normalise(advantages)? } else { advantages.clone() };

        // ρ(θ) = π_θ(a|s) / π_θ_old(a|s)
        let policy = Categorical::new(&self.actor.forward(observations)?)?;
        let log_ratio = (policy.log_prob(actions)? - log_probs)?; // [batch]
        let ratio = log_ratio.exp()?;
        // E[ min( ρ Â, clip(ρ, 1 − ε, 1 + ε) Â ) ], to be maximised
        let clipped_ratio = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)?;
        let surrogate = (&ratio * &advantages)?.minimum(&(clipped_ratio * &advantages)?)?;
        let policy_loss = surrogate.mean_all()?.neg()?;

        // E[ ½ (V_θ(s) − R̂)² ]
        let new_values = self.critic.forward(observations)?.squeeze(1)?; // [batch]
        let mut squares = (&new_values - returns)?.sqr()?;
        if self.args.clip_vloss {
            // The larger of that and the same of a value moved at most ε from its old one.
            let moved = (values + (&new_values - values)?.clamp(-clip_coef, clip_coef)?)?;
            squares = squares.maximum(&(moved - returns)?.sqr()?)?;
        }
        let value_loss = (squares.mean_all()? * 0.5)?;

        // E[ H(π_θ(·|s)) ]: a bonus, so that more of it makes the loss smaller.
        let entropy = policy.entropy()?.mean_all()?;

        // −L(θ)
        let loss = ((&policy_loss + (&value_loss * self.args.vf_coef)?)? - (&entropy * self.args.ent_coef)?)?;
        self.optimizer.backward_step(&loss)?;

        // KL(π_θ_old ‖ π_θ) ≈ E[ (ρ − 1) − ln ρ ] (Schulman 2020, "Approximating KL divergence")
        let log_ratio: Vec<f32> = log_ratio.to_vec1()?;
        let change = log_ratio.iter().map(|l| l.exp_m1()); // ρ − 1
        let outside = change.clone().filter(|change| f64::from(change.abs()) > clip_coef).count();
        let n = log_ratio.len() as f32;
        Ok(Losses {
            policy_loss: policy_loss.to_scalar()?,
            value_loss: value_loss.to_scalar()?,
            entropy: entropy.to_scalar()?,
            approx_kl: change.zip(&log_ratio).map(|(change, l)| change - l).sum::<f32>() / n,
            clipfrac: outside as f32 / n,
        })
    }
}

/// 1 − Var(R̂ − V) / Var(R̂): 1 for a critic that is right, 0 for one that knows no more than the mean.
fn explained_variance(batch: &Batch) -> Result<f64> {
    let variance = |x: &Tensor| x.broadcast_sub(&x.mean_all()?)?.sqr()?.mean_all()?.to_scalar::<f32>();
    let (unexplained, all) = (variance(&(&batch.returns - &batch.values)?)?, variance(&batch.returns)?);
    Ok(1.0 - f64::from(unexplained) / f64::from(all.max(f32::MIN_POSITIVE)))
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let (num_envs, num_steps, n) = (args.num_envs, args.num_steps, args.num_minibatches);
    let batch_size = num_envs.saturating_mul(num_steps);
    if batch_size > 100_000_000 {
        return invalid(format!("--num-envs {num_envs} --num-steps {num_steps}: together at most 1e8 steps"));
    }
    if !batch_size.is_multiple_of(n) {
        return invalid(format!("--num-minibatches {n}: must divide --num-envs × --num-steps, {batch_size}"));
    }
    let minibatch_size = batch_size / n;
    let mut envs = VecEnv::make(&args.run.env_id, num_envs, args.run.seed)?;
    let (_, num_actions) = envs.spec().box_or_image_to_discrete("ppo")?;
    let space = envs.spec().observation_space.clone();
    let hidden_sizes: &[usize] = if space.shape().len() == 3 { &[128] } else { &[64, 64] };
    let mut ppo = Ppo::new(&space, num_actions, hidden_sizes, &args)?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = learner_rng(args.run.seed);
    let mut indices: Vec<u32> = (0..batch_size as u32).collect();

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut ppo.parameters),
                ("optimizer", &mut ppo.optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("indices", &mut indices),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            ppo.optimizer.learning_rate = remaining * args.learning_rate;
        }

        // Run the policy for num_steps steps in each environment.
        let mut rollout = Rollout::default();
        for _ in 0..num_steps {
            let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
            let (actions, log_probs) = ppo.act(&observations, &mut rng)?;
            envs.step(&actions)?;
            rollout.store(&observations, &actions, &log_probs, &envs);
            global_step += num_envs;
            run.episodes(global_step, envs.episodes())?;
        }

        // Estimate the advantages, and optimise the surrogate over several epochs of minibatches.
        let batch = ppo.batch(&rollout)?;
        let (mut losses, mut clipfracs) = (Losses::default(), Vec::new());
        for _ in 0..args.update_epochs {
            indices.shuffle(&mut rng);
            for minibatch in indices.chunks_exact(minibatch_size) {
                losses = ppo.update(&batch.select(minibatch)?)?; // logged are the last ones, as in CleanRL
                clipfracs.push(losses.clipfrac);
            }
            if args.target_kl.is_some_and(|target| f64::from(losses.approx_kl) > target) {
                break;
            }
        }

        run.log(global_step, "charts/learning_rate", ppo.optimizer.learning_rate)?;
        run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
        run.log(global_step, "losses/value_loss", losses.value_loss)?;
        run.log(global_step, "losses/entropy", losses.entropy)?;
        run.log(global_step, "losses/approx_kl", losses.approx_kl)?;
        run.log(global_step, "losses/clipfrac", clipfracs.iter().sum::<f32>() / clipfracs.len() as f32)?;
        run.log(global_step, "losses/explained_variance", explained_variance(&batch)?)?;
    }

    run.save_or_load_model(&mut ppo.parameters)?;
    run.evaluate(|observations| ppo.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
