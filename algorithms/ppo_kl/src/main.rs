//! # Proximal policy optimisation with an adaptive KL penalty, discrete actions
//!
//! Schulman, Wolski, Dhariwal, Radford & Klimov (2017), arXiv:1707.06347, section 4.
//!
//! A policy-gradient step is only right near the policy that gathered the data. Where PPO's better known
//! form clips the probability ratio, this one pays for every step away from the old policy, in KL
//! divergence. Its price β need not be tuned: doubled when the policy moved too far, halved when too little.
//!
//! With the probability ratio `ρ_t(θ) = π_θ(a_t|s_t) / π_θ_old(a_t|s_t)` it maximises
//!
//! ```text
//! L(θ) = E_t[ ρ_t(θ) Â_t − β KL(π_θ_old(·|s_t) ‖ π_θ(·|s_t)) ]      the penalised surrogate
//!        − c_v E_t[ ½ (V_θ(s_t) − R̂_t)² ]                           the critic
//!        + c_e E_t[ H(π_θ(·|s_t)) ]                                  the entropy bonus
//! ```
//!
//! over several epochs of minibatches, and then, with d the KL divergence over the whole batch,
//!
//! ```text
//! β ← 2 β  if d > 1.5 d_targ;    β ← β / 2  if d < d_targ / 1.5
//! ```
//!
//! The paper's KL(old ‖ new) = Σ_a π_old(a) ln(π_old(a) / π_new(a)) makes it costly to give up what the old
//! policy did; `--kl-direction reverse`, KL(new ‖ old), to do what it did not (Hsu et al. 2020, arXiv:2009.10897).
//! Advantages are generalised advantage estimates (Schulman et al. 2015, arXiv:1506.02438):
//!
//! ```text
//! δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
//! Â_t = δ_t + γ λ (1 − done_t) Â_{t+1}          done: terminated or truncated
//! R̂_t = Â_t + V(s_t)
//! ```
//!
//! Deviations from the paper are ppo's (Huang et al. 2022, "The 37 implementation details of proximal policy
//! optimization"): networks are initialised orthogonally; an entropy bonus; advantages
//! are normalised in each minibatch, gradients clipped; Adam's step size falls to zero, its ε is 1e-5; and, our
//! own, δ_t looks beyond a time limit (Pardo et al. 2018, arXiv:1712.00378).
//!
//! Run `cargo run -p ppo_kl`: 475 (Gymnasium's threshold) or more on CartPole-v1 after 100,000 steps, in a
//! second, with 55 of 55 seeds.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use common::envs::{Rng, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Categorical, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::{Run, cli, cli::RunArgs};
use rand::seq::SliceRandom;
use serde::Serialize;
use std::process::ExitCode;

/// Proximal policy optimisation with an adaptive KL penalty, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("100000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam, α
    #[arg(long, default_value_t = 4e-3, value_parser = cli::non_negative)]
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
    /// Weight of the KL penalty at the start, β; 0 for none, ever
    #[arg(long, default_value_t = 1.0, value_parser = cli::non_negative)]
    beta: f64,
    /// How far the policy is to move in each batch, d_targ, in nats
    #[arg(long, default_value_t = 0.01, value_parser = cli::above_zero)]
    target_kl: f64,
    /// KL(old ‖ new), or the reverse KL(new ‖ old)
    #[arg(long, value_enum, default_value_t = KlDirection::Forward)]
    kl_direction: KlDirection,
    /// Weight of the entropy bonus, c_e
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    ent_coef: f64,
    /// Weight of the critic's loss, c_v
    #[arg(long, default_value_t = 0.5, value_parser = cli::non_negative)]
    vf_coef: f64,
    /// Largest norm of the gradient
    #[arg(long, default_value_t = 0.5, value_parser = cli::above_zero)]
    max_grad_norm: f64,
}

/// Which way a divergence is measured.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum KlDirection {
    /// KL(old ‖ new)
    Forward,
    /// KL(new ‖ old)
    Reverse,
}

/// A network of tanh units.
struct Network {
    hidden: Vec<Linear>, // [sizes[0]] → [sizes[1]] → …
    output: Linear,      // → the last of the sizes
}

impl Network {
    /// `gain` scales the output layer: 0.01 makes the first policy almost uniform, 1 suits a value.
    fn new(sizes: &[usize], gain: f64, vb: VarBuilder) -> Result<Self> {
        let (mut hidden, last) = (Vec::new(), sizes.len() - 2);
        for i in 0..last {
            let vb = vb.pp(format!("hidden{i}"));
            hidden.push(linear_orthogonal(sizes[i], sizes[i + 1], std::f64::consts::SQRT_2, vb)?);
        }
        Ok(Self { hidden, output: linear_orthogonal(sizes[last], sizes[last + 1], gain, vb.pp("output"))? })
    }

    /// Observations `[batch, observation_dim]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_tanh(&x)?;
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
    log_policy: Vec<f32>,        // ln π_θ_old(·|s_t) of all actions, [num_steps, num_envs, num_actions]
    rewards: Vec<f32>,           // r_t
    next_observations: Vec<f32>, // s_{t+1}, an episode's true last one at its end, shaped like s_t
    terminated: Vec<bool>,       // nothing lies beyond s_{t+1}
    truncated: Vec<bool>,        // the episode was cut off at s_{t+1}
}

impl Rollout {
    /// Stores the step that `envs` have just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], actions: &[u32], log_policy: &[f32], envs: &VecEnv) {
        self.observations.extend_from_slice(observations);
        self.actions.extend_from_slice(actions);
        self.log_policy.extend_from_slice(log_policy);
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
    observations: Tensor, // s, [batch, observation_dim]
    actions: Tensor,      // a, [batch], u32
    log_policy: Tensor,   // ln π_θ_old(·|s), [batch, num_actions]
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
            log_policy: self.log_policy.index_select(&indices, 0)?,
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
#[derive(Default)]
struct Losses {
    policy_loss: f32,
    value_loss: f32,
    entropy: f32,
}

/// The mean over states of Σ_a π_old(a) (ln π_old(a) − ln π_new(a)), or of the same with old and new
/// exchanged, from ln π of all actions, `[batch, num_actions]`.
fn kl_divergence(old: &Tensor, new: &Tensor, direction: KlDirection) -> Result<Tensor> {
    let (of, from) = match direction {
        KlDirection::Forward => (old, new),
        KlDirection::Reverse => (new, old),
    };
    Ok((of.exp()? * (of - from)?)?.sum(1)?.mean_all()?)
}

/// Actor, critic and how they learn.
struct PpoKl {
    actor: Network,     // logits of π_θ(·|s), [num_actions]
    critic: Network,    // V_θ(s), [1]
    parameters: VarMap, // θ, of both
    optimizer: Adam,    // of both
    beta: f64,          // β
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl PpoKl {
    /// Networks of these sizes: from the observation to the actions, and to one value.
    fn new(actor_sizes: &[usize], critic_sizes: &[usize], args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let parameters = VarMap::new(args.run.seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let actor = Network::new(actor_sizes, 0.01, vb.pp("actor"))?;
        let critic = Network::new(critic_sizes, 1.0, vb.pp("critic"))?;
        // ε = 1e-5 as in OpenAI's baselines; PyTorch's default, and that of Adam's paper, is 1e-8.
        let optimizer = Adam::new(&parameters, args.learning_rate)?.with_eps(1e-5);
        let optimizer = optimizer.with_max_grad_norm(args.max_grad_norm);
        let (args, beta, observation_dim) = (args.clone(), args.beta, actor_sizes[0]);
        Ok(Self { actor, critic, parameters, optimizer, beta, observation_dim, args, device })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// ln π_θ(·|s) of all actions for each observation, `[batch, num_actions]`.
    fn log_policy(&self, observations: &Tensor) -> Result<Tensor> {
        let logits = self.actor.forward(observations)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?; // so that nothing overflows
        Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?)
    }

    /// a ~ π_θ(·|s) for each observation, `[num_envs]`, and ln π_θ(·|s), `[num_envs, num_actions]`.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<(Vec<u32>, Vec<f32>)> {
        let log_policy = self.log_policy(&self.tensor(observations)?)?;
        let actions = Categorical::new(&log_policy)?.sample(rng)?;
        Ok((actions.to_vec1()?, log_policy.flatten_all()?.to_vec1()?))
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(Categorical::new(&self.log_policy(&self.tensor(observations)?)?)?.mode()?.to_vec1()?)
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
        let shape = (rollout.actions.len(), rollout.log_policy.len() / rollout.actions.len());
        Ok(Batch {
            observations: self.tensor(&rollout.observations)?,
            actions: Tensor::new(rollout.actions.as_slice(), &self.device)?,
            log_policy: Tensor::from_slice(&rollout.log_policy, shape, &self.device)?,
            returns: (&advantages + &values)?, // R̂_t = Â_t + V(s_t)
            advantages,
            values,
        })
    }

    /// One step of Adam up L(θ), on a minibatch.
    fn update(&mut self, minibatch: &Batch) -> Result<Losses> {
        let Batch { observations, actions, log_policy: old, advantages, returns, .. } = minibatch;
        let advantages = if self.args.norm_adv { normalise(advantages)? } else { advantages.clone() };

        // ρ(θ) = π_θ(a|s) / π_θ_old(a|s)
        let new = self.log_policy(observations)?; // [batch, num_actions]
        let log_ratio = (&new - old)?.gather(&actions.unsqueeze(1)?, 1)?.squeeze(1)?; // [batch]
        // E[ ρ Â − β KL ], to be maximised
        let policy_loss = (log_ratio.exp()? * advantages)?.mean_all()?.neg()?;
        let kl = kl_divergence(old, &new, self.args.kl_direction)?;

        // E[ ½ (V_θ(s) − R̂)² ]
        let new_values = self.critic.forward(observations)?.squeeze(1)?; // [batch]
        let value_loss = ((new_values - returns)?.sqr()?.mean_all()? * 0.5)?;

        // E[ H(π_θ(·|s)) ] = −E[ Σ_a π(a) ln π(a) ]: a bonus, so that more of it makes the loss smaller.
        let entropy = (new.exp()? * &new)?.sum(1)?.mean_all()?.neg()?;

        // −L(θ)
        let (vf_coef, ent_coef) = (self.args.vf_coef, self.args.ent_coef);
        let loss = (&policy_loss + (&kl * self.beta)? + (&value_loss * vf_coef)? - (&entropy * ent_coef)?)?;
        self.optimizer.backward_step(&loss)?;
        Ok(Losses {
            policy_loss: policy_loss.to_scalar()?,
            value_loss: value_loss.to_scalar()?,
            entropy: entropy.to_scalar()?,
        })
    }

    /// Adapts β to how far a batch has moved the policy, which it returns.
    fn update_beta(&mut self, batch: &Batch) -> Result<f64> {
        let new = self.log_policy(&batch.observations)?;
        let d = kl_divergence(&batch.log_policy, &new, self.args.kl_direction)?.to_scalar::<f32>()?;
        let (d, target) = (f64::from(d), self.args.target_kl);
        // β ← 2 β if d > 1.5 d_targ, β ← β / 2 if d < d_targ / 1.5
        if d > 1.5 * target {
            self.beta *= 2.0;
        } else if d < target / 1.5 {
            self.beta /= 2.0;
        }
        Ok(d)
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
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("ppo_kl")?;
    let mut ppo = PpoKl::new(&[observation_dim, 64, 64, num_actions], &[observation_dim, 64, 64, 1], &args)?;
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
                ("beta", &mut ppo.beta),
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
            let (actions, log_policy) = ppo.act(&observations, &mut rng)?;
            envs.step(&actions)?;
            rollout.store(&observations, &actions, &log_policy, &envs);
            global_step += num_envs;
            run.episodes(global_step, envs.episodes())?;
        }

        // Estimate the advantages, optimise the surrogate over several epochs of minibatches, adapt β.
        let batch = ppo.batch(&rollout)?;
        let mut losses = Losses::default();
        run.log(global_step, "losses/beta", ppo.beta)?;
        for _ in 0..args.update_epochs {
            indices.shuffle(&mut rng);
            for minibatch in indices.chunks_exact(minibatch_size) {
                losses = ppo.update(&batch.select(minibatch)?)?;
            }
        }
        let kl = ppo.update_beta(&batch)?;

        run.log(global_step, "charts/learning_rate", ppo.optimizer.learning_rate)?;
        run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
        run.log(global_step, "losses/value_loss", losses.value_loss)?;
        run.log(global_step, "losses/entropy", losses.entropy)?;
        run.log(global_step, "losses/kl", kl)?; // of the whole batch, after all steps
        run.log(global_step, "losses/explained_variance", explained_variance(&batch)?)?;
    }

    run.save_or_load_model(&mut ppo.parameters)?;
    run.evaluate(|observations| ppo.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
