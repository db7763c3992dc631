//! # Proximal policy optimisation (PPO), continuous actions
//!
//! Schulman, Wolski, Dhariwal, Radford & Klimov (2017), arXiv:1707.06347.
//!
//! PPO takes many gradient steps on one batch, and its objective gains nothing from moving an action's
//! probability further than a factor 1 ± ε from the policy that gathered it (`ppo` explains this and Â at
//! length). Here that policy is a Gaussian: its mean is a function of the state, its spread σ a
//! parameter. Running statistics scale observations and rewards, so that one step size suits all units.
//!
//! ```text
//! π_θ(a|s) = Π_j N( a_j ; μ_θ(s)_j , σ_j² )          ρ_t(θ) = π_θ(a_t|s_t) / π_θ_old(a_t|s_t)
//!
//! L(θ) = E_t[ min( ρ_t(θ) Â_t , clip(ρ_t(θ), 1 − ε, 1 + ε) Â_t ) ]   the clipped surrogate
//!        − c_v E_t[ ½ (V_θ(s_t) − R̂_t)² ]                           the critic
//!        + c_e H(π_θ)                                                the entropy bonus
//!
//! δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
//! Â_t = δ_t + γ λ (1 − done_t) Â_{t+1},   R̂_t = Â_t + V(s_t)          done: terminated or truncated
//!
//! s ← (s − mean(s)) / std(s),   r ← r / std(G),   G ← γ (1 − terminated) G + r,  0 at first in each episode
//! ```
//!
//! Deviations from the paper, as in OpenAI's baselines and CleanRL (Huang et al. 2022, "The 37 implementation
//! details of proximal policy optimization"): the statistics, whose results are clipped to ±10; orthogonal
//! initial weights; advantages normalised in each minibatch, clipped gradients; Adam's step size falls to zero,
//! its eps is 1e-5. G leaves out what came before a termination, as in Gymnasium (Engstrom et al. 2020,
//! arXiv:2005.12729, keep it). Ours: δ_t looks beyond time limits (arXiv:1712.00378), and an episode's last
//! state is no part of the statistics. As in the paper, unlike CleanRL, the critic's change is not clipped.
//!
//! Run `cargo run -p ppo_continuous`: about -170 on Pendulum-v1 after 200,000 steps in 7 seconds
//! (Tianshou's test of its PPO asks for -250; an optimal controller reaches -137).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::wrappers::{NormalizeObservation, NormalizeReward};
use common::envs::{Rng, Space, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Init, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::{Run, cli, cli::RunArgs};
use rand::seq::SliceRandom;
use serde::Serialize;
use std::f64::consts::{E, PI, SQRT_2};
use std::process::ExitCode;

/// Proximal policy optimisation with clipping, for continuous actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("200000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam, α
    #[arg(long, default_value_t = 3e-4, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Parallel environments
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps in each environment between updates
    #[arg(long, default_value_t = 2048, value_parser = cli::positive)]
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
    #[arg(long, default_value_t = 32, value_parser = cli::positive)]
    num_minibatches: usize,
    /// Passes over a batch
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    update_epochs: usize,
    /// Normalise advantages in each minibatch
    #[arg(long, default_value_t = true)]
    norm_adv: bool,
    /// How far a probability ratio may move, ε
    #[arg(long, default_value_t = 0.2, value_parser = cli::non_negative)]
    clip_coef: f64,
    /// Weight of the entropy bonus, c_e
    #[arg(long, default_value_t = 0.0, value_parser = cli::non_negative)]
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

/// Two hidden layers of tanh units: the policy's mean, or with one output the value.
struct Mlp {
    hidden1: Linear, // [observation_dim] → [hidden_size]
    hidden2: Linear, // [hidden_size] → [hidden_size]
    output: Linear,  // [hidden_size] → [outputs]
}

impl Mlp {
    /// `gain` scales the output layer: 0.01 makes the first means almost 0, 1 suits a value.
    fn new(inputs: usize, hidden_size: usize, outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            hidden1: linear_orthogonal(inputs, hidden_size, SQRT_2, vb.pp("hidden1"))?,
            hidden2: linear_orthogonal(hidden_size, hidden_size, SQRT_2, vb.pp("hidden2"))?,
            output: linear_orthogonal(hidden_size, outputs, gain, vb.pp("output"))?,
        })
    }

    /// Observations `[batch, observation_dim]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let x = self.hidden1.forward_tanh(observations)?;
        let x = self.hidden2.forward_tanh(&x)?;
        Ok(self.output.forward(&x)?)
    }
}

/// What happened in `num_steps` steps of each environment. Every column is `[num_steps, num_envs]`,
/// row by row: step t of environment e is at t · num_envs + e.
#[derive(Default)]
struct Rollout {
    observations: Vec<f32>,      // s_t normalised, [num_steps, num_envs, observation_dim]
    actions: Vec<f32>,           // a_t as drawn, [num_steps, num_envs, action_dim]
    log_probs: Vec<f32>,         // ln π_θ_old(a_t|s_t)
    rewards: Vec<f32>,           // r_t normalised
    next_observations: Vec<f32>, // s_{t+1} normalised, an episode's true last one at its end, like s_t
    terminated: Vec<bool>,       // nothing lies beyond s_{t+1}
    truncated: Vec<bool>,        // the episode was cut off at s_{t+1}
}

impl Rollout {
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
                let done = self.terminated[i] || self.truncated[i];
                let next_advantage = if done || t + 1 == num_steps { 0.0 } else { advantages[i + num_envs] };
                advantages[i] = delta + gamma * gae_lambda * next_advantage;
            }
        }
        advantages
    }
}

/// What the networks learn from: a rollout, or a minibatch of it.
struct Batch {
    observations: Tensor, // s, [batch, …]
    actions: Tensor,      // a, [batch, action_dim]
    log_probs: Tensor,    // ln π_θ_old(a|s), [batch]
    advantages: Tensor,   // Â, [batch]
    returns: Tensor,      // R̂, [batch]
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

/// Actor, critic, the statistics that scale what they see, and how they learn.
struct Ppo {
    actor: Mlp,                                  // μ_θ(s), [action_dim]
    log_std: Tensor,                             // ln σ, [action_dim]
    critic: Mlp,                                 // V_θ(s), [1]
    parameters: VarMap,                          // θ, of all three
    optimizer: Adam,                             // of all three
    normalize_observation: NormalizeObservation, // mean(s) and std(s)
    normalize_reward: NormalizeReward,           // std(G)
    action_space: Space,
    args: Args,
    device: Device,
}

impl Ppo {
    fn new(observation_dim: usize, hidden_size: usize, action_space: &Space, args: &Args) -> Result<Self> {
        let (device, action_dim) = (args.run.device()?, action_space.size());
        let parameters = VarMap::new(args.run.seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let mlp = |outputs, gain, name| Mlp::new(observation_dim, hidden_size, outputs, gain, vb.pp(name));
        Ok(Self {
            actor: mlp(action_dim, 0.01, "actor")?,
            log_std: vb.get_with_hints(action_dim, "log_std", Init::Const(0.0))?, // σ = 1
            critic: mlp(1, 1.0, "critic")?,
            // Of all that is above. eps = 1e-5 as in OpenAI's baselines; PyTorch's and Adam's paper's is 1e-8.
            optimizer: Adam::new(&parameters, args.learning_rate)?
                .with_eps(1e-5)
                .with_max_grad_norm(args.max_grad_norm),
            parameters,
            normalize_observation: NormalizeObservation::new(observation_dim),
            normalize_reward: NormalizeReward::new(args.num_envs, args.gamma),
            action_space: action_space.clone(),
            args: args.clone(),
            device,
        })
    }

    /// Observations as the networks know them; the statistics stay as they are.
    fn normalised(&self, observations: &[f32]) -> Vec<f32> {
        let mut normalised = vec![0.0; observations.len()];
        self.normalize_observation.apply(observations, &mut normalised);
        normalised
    }

    /// Takes the step that `envs` have just made from `observations` by `actions` into the statistics,
    /// and into `rollout` as these then normalise it.
    fn store(
        &mut self,
        rollout: &mut Rollout,
        observations: &[f32],
        actions: &[f32],
        log_probs: &[f32],
        envs: &VecEnv,
    ) {
        let mut rewards = vec![0.0; envs.num_envs()];
        self.normalize_reward.normalize(envs.rewards(), envs.terminated(), envs.truncated(), &mut rewards);
        self.normalize_observation.statistics.update(envs.observations());
        rollout.observations.extend_from_slice(observations);
        rollout.actions.extend_from_slice(actions);
        rollout.log_probs.extend_from_slice(log_probs);
        rollout.rewards.extend_from_slice(&rewards);
        // Easy to miss: after an episode's end `envs.observations()` are the next episode's. Its true last
        // one goes by the statistics of this moment, as every other s_{t+1} does.
        rollout.next_observations.extend(self.normalised(envs.final_observations()));
        rollout.terminated.extend_from_slice(envs.terminated());
        rollout.truncated.extend_from_slice(envs.truncated());
    }

    /// Normalised observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        let observation_dim = self.normalize_observation.statistics.mean.len();
        Ok(Tensor::from_slice(observations, ((), observation_dim), &self.device)?)
    }

    /// a ~ π_θ(·|s), `[num_envs, action_dim]`, and ln π_θ(a|s), `[num_envs]`, for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<(Vec<f32>, Vec<f32>)> {
        let mean = self.actor.forward(&self.tensor(observations)?)?;
        let noise = Init::Randn { mean: 0.0, stdev: 1.0 }.tensor(mean.dims(), rng, &self.device)?;
        // a = μ + σ z,   z ~ N(0, I)
        let actions = (&mean + noise.broadcast_mul(&self.log_std.exp()?)?)?;
        let log_probs = self.log_prob(&mean, &actions)?;
        Ok((actions.flatten_all()?.to_vec1()?, log_probs.to_vec1()?))
    }

    /// ln N(a; μ, σ²), `[batch]`, of actions a and means μ, `[batch, action_dim]`.
    fn log_prob(&self, mean: &Tensor, actions: &Tensor) -> Result<Tensor> {
        // ln N(a; μ, σ²) = Σ_j [ −½ ((a_j − μ_j) / σ_j)² − ln σ_j − ½ ln 2π ]
        let z = (actions - mean)?.broadcast_div(&self.log_std.exp()?)?;
        let log_normaliser = (&self.log_std + 0.5 * (2.0 * PI).ln())?;
        Ok((z.sqr()? * -0.5)?.broadcast_sub(&log_normaliser)?.sum(1)?)
    }

    /// μ_θ(s) for each observation, clipped to the actions' bounds.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<f32>> {
        let mut actions = self.actor.forward(&self.tensor(observations)?)?.flatten_all()?.to_vec1()?;
        self.action_space.clip(&mut actions);
        Ok(actions)
    }

    /// The rollout with its advantages and returns, all steps of all environments in one row.
    fn batch(&self, rollout: &Rollout) -> Result<Batch> {
        let observations = self.tensor(&rollout.observations)?;
        let values = self.critic.forward(&observations)?.squeeze(1)?; // V(s_t); then V(s_{t+1})
        let next_values = self.critic.forward(&self.tensor(&rollout.next_observations)?)?.squeeze(1)?;
        let advantages = rollout.advantages(&values.to_vec1()?, &next_values.to_vec1()?, &self.args);
        let advantages = Tensor::new(advantages, &self.device)?;
        Ok(Batch {
            observations,
            actions: Tensor::from_slice(&rollout.actions, ((), self.action_space.size()), &self.device)?,
            log_probs: Tensor::new(rollout.log_probs.as_slice(), &self.device)?,
            returns: (&advantages + values.detach())?, // R̂_t = Â_t + V(s_t)
            advantages,
        })
    }

    /// One step of Adam up L(θ), on a minibatch.
    fn update(&mut self, minibatch: &Batch) -> Result<Losses> {
        let Batch { observations, actions, log_probs, advantages, returns } = minibatch;
        let clip_coef = self.args.clip_coef; // ε
        let advantages = if self.args.norm_adv { normalise(advantages)? } else { advantages.clone() };

        // ρ(θ) = π_θ(a|s) / π_θ_old(a|s)
        let log_ratio = (self.log_prob(&self.actor.forward(observations)?, actions)? - log_probs)?; // [batch]
        let ratio = log_ratio.exp()?;
        // E[ min( ρ Â, clip(ρ, 1 − ε, 1 + ε) Â ) ], to be maximised
        let clipped_ratio = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)?;
        let surrogate = (&ratio * &advantages)?.minimum(&(clipped_ratio * &advantages)?)?;
        let policy_loss = surrogate.mean_all()?.neg()?;

        // E[ ½ (V_θ(s) − R̂)² ]
        let values = self.critic.forward(observations)?.squeeze(1)?; // [batch]
        let value_loss = ((values - returns)?.sqr()?.mean_all()? * 0.5)?;

        // H(π_θ) = Σ_j [ ln σ_j + ½ ln 2πe ]: a bonus, so that more of it makes the loss smaller.
        let entropy = (&self.log_std + 0.5 * (2.0 * PI * E).ln())?.sum_all()?;

        // −L(θ)
        let loss = ((&policy_loss + (&value_loss * self.args.vf_coef)?)? - (&entropy * self.args.ent_coef)?)?;
        self.optimizer.backward_step(&loss)?;

        // KL(π_θ_old ‖ π_θ) ≈ E[ (ρ − 1) − ln ρ ] (Schulman 2020, "Approximating KL divergence")
        let change = (&ratio - 1.0)?;
        Ok(Losses {
            policy_loss: policy_loss.to_scalar()?,
            value_loss: value_loss.to_scalar()?,
            entropy: entropy.to_scalar()?,
            approx_kl: (&change - log_ratio)?.mean_all()?.to_scalar()?,
            clipfrac: change.abs()?.gt(clip_coef)?.to_dtype(DType::F32)?.mean_all()?.to_scalar()?,
        })
    }
}

/// 1 − Var(R̂ − V) / Var(R̂): 1 for a critic that is right, 0 for one that knows no more than the mean.
fn explained_variance(batch: &Batch) -> Result<f64> {
    let variance = |x: &Tensor| x.broadcast_sub(&x.mean_all()?)?.sqr()?.mean_all()?.to_scalar::<f32>();
    let (unexplained, all) = (variance(&batch.advantages)?, variance(&batch.returns)?); // Â = R̂ − V
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
    let mut envs = VecEnv::make(&args.run.env_id, num_envs, args.run.seed)?;
    let (observation_dim, _) = envs.spec().box_to_box("ppo_continuous")?;
    let mut ppo = Ppo::new(observation_dim, 64, &envs.spec().action_space, &args)?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;
    let mut rng = learner_rng(args.run.seed);
    let mut indices: Vec<u32> = (0..batch_size as u32).collect();
    ppo.normalize_observation.statistics.update(envs.observations()); // s_0

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut ppo.parameters),
                ("optimizer", &mut ppo.optimizer),
                ("normalize_observation", &mut ppo.normalize_observation),
                ("normalize_reward", &mut ppo.normalize_reward),
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
            let observations = ppo.normalised(envs.observations()); // s_t, [num_envs, observation_dim]
            let (actions, log_probs) = ppo.act(&observations, &mut rng)?;
            // Easy to miss: the environment gets the action clipped to its bounds, but what is stored is
            // the action as drawn. Only that has a density: all that lies beyond a bound falls on it.
            let mut clipped = actions.clone();
            ppo.action_space.clip(&mut clipped);
            envs.step(&clipped)?;
            ppo.store(&mut rollout, &observations, &actions, &log_probs, &envs);
            global_step += num_envs;
            run.episodes(global_step, envs.episodes())?;
        }

        // Estimate the advantages, and optimise the surrogate over several epochs of minibatches.
        let batch = ppo.batch(&rollout)?;
        let (mut losses, mut clipfracs) = (Losses::default(), Vec::new());
        for _ in 0..args.update_epochs {
            indices.shuffle(&mut rng);
            for minibatch in indices.chunks_exact(batch_size / n) {
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

    // A policy knows observations by their statistics only, so they are part of the model.
    let (agent, statistics) = (&mut ppo.parameters, &mut ppo.normalize_observation);
    run.save_or_load_model(&mut [("agent", agent as _), ("normalize_observation", statistics as _)])?;
    // The mean action, by statistics that no longer change.
    run.evaluate(|observations| ppo.act_greedily(&ppo.normalised(observations)))?;
    Ok(())
}

#[cfg(test)]
mod tests;
