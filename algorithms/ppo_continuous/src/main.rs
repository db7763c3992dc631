//! # Proximal policy optimisation (PPO), continuous actions
//!
//! Schulman, Wolski, Dhariwal, Radford & Klimov (2017), arXiv:1707.06347.
//!
//! PPO takes many gradient steps on one batch, and no action's probability gains from moving further
//! than a factor 1 ± ε from the policy that gathered it (`ppo` explains this at length). Here that
//! policy is a Gaussian: its mean is a function of the state, its spread σ a parameter of its own.
//! Running statistics scale observations and rewards: the same step sizes suit tasks of any units.
//!
//! ```text
//! π_θ(a|s) = Π_d N( a_d ; μ_θ(s)_d , σ_d² )          r_t(θ) = π_θ(a_t|s_t) / π_θ_old(a_t|s_t)
//!
//! L(θ) = E_t[ min( r_t(θ) Â_t , clip(r_t(θ), 1 − ε, 1 + ε) Â_t ) ]   the clipped surrogate
//!        − c_v E_t[ ½ (V_θ(s_t) − R̂_t)² ]                           the critic
//!        + c_e H(π_θ)                                                the entropy bonus
//!
//! δ_t = r_t + γ V(s_{t+1}) − V(s_t)          V(s_{t+1}) = 0 where the episode terminated
//! Â_t = δ_t + γ λ Â_{t+1}                    Â_{t+1} = 0 where the episode ended in any way
//! R̂_t = Â_t + V(s_t)
//! ```
//!
//! L is maximised; Â are generalised advantage estimates (Schulman et al. 2015, arXiv:1506.02438).
//! Where a time limit merely truncates an episode, δ_t bootstraps from the state it was cut at
//! (Pardo et al. 2018, arXiv:1712.00378). Hyper-parameters are those of CleanRL's
//! `ppo_continuous_action.py`, which in addition clips the critic's change.
//!
//! Run `cargo run -p ppo_continuous`: about -165 on Pendulum-v1 after 200,000 steps in 5 seconds
//! (Tianshou's test of its PPO asks for -250; an optimal controller reaches -137).

use anyhow::Result;
use candle_core::{DType, Module, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::wrappers::{NormalizeObservation, NormalizeReward};
use common::envs::{Rng, VecEnv, invalid, rng};
use common::model::Model;
use common::nn::{Activation, Adam, Init, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;
use std::f64::consts::{E, PI, SQRT_2};
use std::process::ExitCode;

#[cfg(test)]
mod tests;

/// Proximal policy optimisation with clipping, for continuous actions
#[derive(Parser, Serialize, Debug)]
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
    /// Stop a batch's updates once the policy has moved this far (approximate KL divergence)
    #[arg(long, value_parser = cli::above_zero)]
    #[serde(skip_serializing_if = "Option::is_none")]
    target_kl: Option<f64>,
}

/// Two hidden layers of 64 tanh units: the policy's mean, or with one output the value.
struct Mlp {
    hidden1: Linear, // [observation_dim] → [64]
    hidden2: Linear, // [64] → [64]
    output: Linear,  // [64] → [outputs]
}

impl Mlp {
    /// `gain` scales the output layer: 0.01 makes the first means almost 0 (Andrychowicz et al.
    /// 2021, arXiv:2006.05990), 1 suits a value.
    fn new(observation_dim: usize, outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let layer = |inputs, name| linear_orthogonal(inputs, 64, SQRT_2, vb.pp(name));
        Ok(Self {
            hidden1: layer(observation_dim, "hidden1")?.with_activation(Activation::Tanh),
            hidden2: layer(64, "hidden2")?.with_activation(Activation::Tanh),
            output: linear_orthogonal(64, outputs, gain, vb.pp("output"))?,
        })
    }

    /// `[batch, observation_dim]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let hidden = self.hidden2.forward(&self.hidden1.forward(observations)?)?;
        Ok(self.output.forward(&hidden)?)
    }

    /// The same from and to flattened slices.
    fn apply(&self, observations: &[f32]) -> Result<Vec<f32>> {
        let weight = self.hidden1.weight(); // [64, observation_dim]
        let observations = Tensor::from_slice(observations, ((), weight.dim(1)?), weight.device())?;
        Ok(self.forward(&observations)?.flatten_all()?.to_vec1()?)
    }
}

/// The policy π_θ and the value V_θ, which share nothing. Both read normalised observations.
struct Agent {
    actor: Mlp,      // μ(s), [batch, action_dim]
    log_std: Tensor, // ln σ, [action_dim], the same in every state
    critic: Mlp,     // V(s), [batch, 1]
}

/// One batch of experience, `[num_steps, num_envs]` row-major throughout.
#[derive(Default)]
struct Rollout {
    observations: Vec<f32>,         // s_t normalised, [num_steps, num_envs, observation_dim]
    actions: Vec<f32>,              // a_t before clipping, [num_steps, num_envs, action_dim]
    log_probs: Vec<f32>,            // ln π_θ_old(a_t|s_t)
    rewards: Vec<f32>,              // r_t normalised
    values: Vec<f32>,               // V(s_t), with those after the last step: [num_steps + 1, num_envs]
    final_values: Vec<Option<f32>>, // V of the state that an episode ended in, where one did
}

impl Rollout {
    /// Â_t, `[num_steps, num_envs]`, from the last step backwards.
    fn advantages(&self, num_envs: usize, gamma: f32, gae_lambda: f32) -> Vec<f32> {
        let mut advantages = vec![0.0; self.rewards.len()];
        let mut following = vec![0.0; num_envs]; // Â_{t+1} of each environment
        for t in (0..self.rewards.len()).rev() {
            let env = t % num_envs;
            // Easy to miss and fatal: after an episode's end, what follows belongs to the next one.
            let (next_value, next_advantage) = match self.final_values[t] {
                Some(value) => (value, 0.0),
                None => (self.values[t + num_envs], following[env]),
            };
            // δ_t = r_t + γ V(s_{t+1}) − V(s_t)
            let delta = self.rewards[t] + gamma * next_value - self.values[t];
            // Â_t = δ_t + γ λ Â_{t+1}
            following[env] = delta + gamma * gae_lambda * next_advantage;
            advantages[t] = following[env];
        }
        advantages
    }
}

/// For each environment whose episode ended with the last step of `envs`, V of the state that it
/// ended in: 0 where it terminated; where it was merely truncated, the critic's value of it, which
/// knows observations only as the statistics normalise them.
fn final_values(critic: &Mlp, envs: &VecEnv, normalize: &NormalizeObservation) -> Result<Vec<Option<f32>>> {
    let mut normalised = vec![0.0; envs.observation_dim()];
    let last_states = envs.final_observations().chunks_exact(envs.observation_dim());
    let endings = envs.terminated().iter().zip(envs.truncated()).zip(last_states);
    endings
        .map(|((&terminated, &truncated), last_state)| match (terminated, truncated) {
            (true, _) => Ok(Some(0.0)),
            (false, true) => {
                normalize.apply(last_state, &mut normalised);
                Ok(Some(critic.apply(&normalised)?[0]))
            }
            (false, false) => Ok(None),
        })
        .collect()
}

/// Draws a ~ N(μ, σ²) for each row of `means` `[n, action_dim]`; returns the actions, flattened,
/// and ln π(a) `[n]`.
fn sample(means: &[f32], log_std: &[f32], rng: &mut Rng) -> (Vec<f32>, Vec<f32>) {
    let half_ln_2pi = (0.5 * (2.0 * PI).ln()) as f32;
    let (mut actions, mut log_probs) = (Vec::new(), Vec::new());
    for row in means.chunks_exact(log_std.len()) {
        let mut log_prob = 0.0;
        for (mean, log_std) in row.iter().zip(log_std) {
            let noise: f32 = StandardNormal.sample(rng); // (a − μ) / σ
            actions.push(mean + log_std.exp() * noise);
            log_prob -= 0.5 * noise * noise + log_std + half_ln_2pi;
        }
        log_probs.push(log_prob);
    }
    (actions, log_probs)
}

/// ln π(a|s) `[batch, 1]` of `actions` `[batch, action_dim]` under N(`means`, σ²).
fn log_prob(means: &Tensor, log_std: &Tensor, actions: &Tensor) -> Result<Tensor> {
    // ln π(a|s) = Σ_d [ −½ ((a_d − μ_d) / σ_d)² − ln σ_d − ½ ln 2π ]
    let z = (actions - means)?.broadcast_div(&log_std.exp()?)?;
    let log_normaliser = (log_std + 0.5 * (2.0 * PI).ln())?.sum_all()?;
    Ok((z.sqr()?.sum_keepdim(1)? * -0.5)?.broadcast_sub(&log_normaliser)?)
}

/// H(π), a scalar: the same in every state, because σ is.
fn entropy(log_std: &Tensor) -> Result<Tensor> {
    // H(π) = Σ_d [ ln σ_d + ½ ln 2πe ]
    Ok((log_std + 0.5 * (2.0 * PI * E).ln())?.sum_all()?)
}

/// −E[ min(r Â, clip(r, 1 − ε, 1 + ε) Â) ], from ln r and Â `[batch, 1]`.
fn policy_loss(log_ratio: &Tensor, advantages: &Tensor, clip_coef: f64) -> Result<Tensor> {
    // Only one end of the range can be the minimum, that to which the advantage points: (1 + ε) Â for
    // a positive and (1 − ε) Â for a negative one, Â + ε |Â| both. A ratio past it gets no gradient;
    // one that moved the other way, however far, is still pulled back.
    let bound = (advantages + (advantages.abs()? * clip_coef)?)?;
    Ok((log_ratio.exp()? * advantages)?.minimum(&bound)?.mean_all()?.neg()?)
}

/// ½ E[ (V(s) − R̂)² ], from tensors `[batch, 1]`.
fn value_loss(values: &Tensor, returns: &Tensor) -> Result<Tensor> {
    Ok(((values - returns)?.sqr()?.mean_all()? * 0.5)?)
}

/// Zero mean and unit standard deviation.
fn normalise(values: &mut [f32]) {
    let n = values.len() as f32;
    let mean = values.iter().sum::<f32>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / (n - 1.0).max(1.0);
    values.iter_mut().for_each(|v| *v = (*v - mean) / (variance.sqrt() + 1e-8));
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let (num_envs, batch_size) = (args.num_envs, args.num_envs * args.num_steps);
    let n = args.num_minibatches;
    if !batch_size.is_multiple_of(n) {
        return invalid(format!("--num-minibatches {n}: must divide --num-envs × --num-steps, {batch_size}"));
    }
    let minibatch_size = batch_size / n;
    let mut envs = VecEnv::make(&args.run.env_id, num_envs, args.run.seed)?;
    let (observation_dim, action_dim) = envs.spec().box_to_box("ppo_continuous")?;
    let action_space = envs.spec().action_space.clone();
    let device = &args.run.device()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = rng(args.run.seed, u64::MAX);
    let mut parameters = VarMap::new(args.run.seed);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, device);
    let agent = Agent {
        actor: Mlp::new(observation_dim, action_dim, 0.01, vb.pp("actor"))?,
        log_std: vb.get_with_hints(action_dim, "log_std", Init::Const(0.0))?, // σ = 1
        critic: Mlp::new(observation_dim, 1, 1.0, vb.pp("critic"))?,
    };
    // ε = 1e-5 as in OpenAI's baselines; PyTorch's and the paper's default is 1e-8.
    let mut optimizer =
        Adam::new(&parameters, args.learning_rate)?.with_eps(1e-5).with_max_grad_norm(args.max_grad_norm);
    let mut indices: Vec<usize> = (0..batch_size).collect();
    // Running statistics of all that was seen: of observations, and of discounted returns.
    let mut normalize_observation = NormalizeObservation::new(observation_dim);
    let mut normalize_reward = NormalizeReward::new(num_envs, args.gamma);
    let mut observations = vec![0.0; num_envs * observation_dim]; // s_t normalised
    let mut rewards = vec![0.0; num_envs]; // r_t normalised
    normalize_observation.normalize(envs.observations(), &mut observations);

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut parameters),
                ("optimizer", &mut optimizer),
                ("envs", &mut envs),
                ("normalize_observation", &mut normalize_observation),
                ("normalize_reward", &mut normalize_reward),
                ("observations", &mut observations),
                ("rng", &mut rng),
                ("indices", &mut indices),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            optimizer.learning_rate = remaining * args.learning_rate;
        }

        // Act: num_steps steps in each environment with the current policy.
        let log_std: Vec<f32> = agent.log_std.to_vec1()?;
        let mut rollout = Rollout::default();
        for _ in 0..args.num_steps {
            let (actions, log_probs) = sample(&agent.actor.apply(&observations)?, &log_std, &mut rng);
            rollout.observations.extend(&observations);
            rollout.actions.extend(&actions);
            rollout.log_probs.extend(&log_probs);

            // The environment gets the action clipped to its bounds. What is stored, and what the
            // ratio is of, is the action that the policy drew: the clipped one has no density (all
            // that lies beyond a bound falls on it), and clipping is the environment's affair.
            let mut clipped = actions;
            action_space.clip(&mut clipped);
            envs.step(&clipped)?;
            global_step += num_envs;
            run.episodes(global_step, envs.episodes())?;

            let (terminated, truncated) = (envs.terminated(), envs.truncated());
            normalize_reward.normalize(envs.rewards(), terminated, truncated, &mut rewards);
            normalize_observation.normalize(envs.observations(), &mut observations);
            rollout.rewards.extend(&rewards);
            rollout.final_values.extend(final_values(&agent.critic, &envs, &normalize_observation)?);
        }
        rollout.values = agent.critic.apply(&rollout.observations)?;
        rollout.values.extend(agent.critic.apply(&observations)?);

        // Learn: several epochs of minibatches of that batch.
        let advantages = rollout.advantages(num_envs, args.gamma as f32, args.gae_lambda as f32);
        let returns: Vec<f32> = advantages.iter().zip(&rollout.values).map(|(a, v)| a + v).collect();
        let (mut losses, mut approx_kl, mut outside, mut seen) = ([0.0_f32; 3], 0.0, 0, 0);
        for _ in 0..args.update_epochs {
            indices.shuffle(&mut rng);
            for minibatch in indices.chunks_exact(minibatch_size) {
                // Rows of a [batch, width] slice, and a tensor [minibatch, width] of them.
                let select = |values: &[f32], width: usize| -> Vec<f32> {
                    minibatch.iter().flat_map(|&i| &values[i * width..][..width]).copied().collect()
                };
                let tensor = |rows: Vec<f32>| Tensor::from_vec(rows, (minibatch_size, ()), device);
                let observations = tensor(select(&rollout.observations, observation_dim))?;
                let actions = tensor(select(&rollout.actions, action_dim))?;
                let mut minibatch_advantages = select(&advantages, 1);
                if args.norm_adv {
                    normalise(&mut minibatch_advantages);
                }

                let log_prob = log_prob(&agent.actor.forward(&observations)?, &agent.log_std, &actions)?;
                let log_ratio = (log_prob - tensor(select(&rollout.log_probs, 1))?)?;
                let policy_loss = policy_loss(&log_ratio, &tensor(minibatch_advantages)?, args.clip_coef)?;
                let values = agent.critic.forward(&observations)?;
                let value_loss = value_loss(&values, &tensor(select(&returns, 1))?)?;
                let entropy = entropy(&agent.log_std)?;
                // The entropy is a bonus: more of it makes the loss smaller.
                let loss = ((&policy_loss - (&entropy * args.ent_coef)?)? + (&value_loss * args.vf_coef)?)?;
                optimizer.backward_step(&loss)?;

                // KL(π_old ‖ π) ≈ E[ (r − 1) − ln r ] ≥ 0 (Schulman 2020, "Approximating KL divergence")
                let log_ratio: Vec<f32> = log_ratio.flatten_all()?.to_vec1()?;
                approx_kl = log_ratio.iter().map(|l| l.exp_m1() - l).sum::<f32>() / minibatch_size as f32;
                outside += log_ratio.iter().filter(|l| f64::from(l.exp_m1().abs()) > args.clip_coef).count();
                seen += minibatch_size;
                losses = [policy_loss.to_scalar()?, value_loss.to_scalar()?, entropy.to_scalar()?];
            }
            if args.target_kl.is_some_and(|target| f64::from(approx_kl) > target) {
                break;
            }
        }

        let mean = returns.iter().sum::<f32>() / batch_size as f32;
        let total: f32 = returns.iter().map(|r| (r - mean).powi(2)).sum();
        let residual: f32 = advantages.iter().map(|a| a.powi(2)).sum();
        run.log(global_step, "charts/learning_rate", optimizer.learning_rate)?;
        run.log(global_step, "losses/policy_loss", losses[0])?;
        run.log(global_step, "losses/value_loss", losses[1])?;
        run.log(global_step, "losses/entropy", losses[2])?;
        run.log(global_step, "losses/approx_kl", approx_kl)?;
        run.log(global_step, "losses/clipfrac", outside as f64 / seen as f64)?;
        run.log(global_step, "losses/explained_variance", 1.0 - residual / total.max(f32::MIN_POSITIVE))?;
    }

    // A policy knows observations by their statistics only, so they are part of the model.
    let mut model: [(&str, &mut dyn Model); 2] =
        [("agent", &mut parameters), ("normalize_observation", &mut normalize_observation)];
    run.save_or_load_model(&mut model)?;
    // Evaluation: the mean action, and statistics that no longer change.
    run.evaluate(|observations| {
        let mut normalised = vec![0.0; observations.len()];
        normalize_observation.apply(observations, &mut normalised);
        let mut actions = agent.actor.apply(&normalised)?;
        action_space.clip(&mut actions);
        Ok(actions)
    })?;
    Ok(())
}
