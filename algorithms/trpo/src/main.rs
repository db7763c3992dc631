//! # Trust region policy optimisation (TRPO)
//!
//! Schulman, Levine, Moritz, Jordan & Abbeel (2015), arXiv:1502.05477.
//!
//! How far may one batch of experience move a policy? Parameters are the wrong measure, for a small step in
//! them can change all that the policy does. TRPO measures the change of the distributions of actions, in KL
//! divergence: it takes the step that is best within a radius δ, and tries it before it keeps it.
//!
//! ```text
//! maximise_θ  L(θ) = E[ π_θ(a|s) / π_θ_old(a|s) Â ]   subject to   E[ KL(π_θ_old(·|s) ‖ π_θ(·|s)) ] ≤ δ
//! π_θ(·|s)    a softmax, or a Gaussian Π_j N( a_j ; μ_θ(s)_j , σ_j² ) whose spread σ is a parameter
//!
//! g = ∇L(θ_old),  F = ∇² E[ KL ] at θ_old, the Fisher matrix   near θ_old: L ≈ gᵀ Δθ, KL ≈ ½ Δθᵀ F Δθ
//! x ≈ (F + c I)⁻¹ g by conjugate gradient,   θ = θ_old + βᵏ √(2 δ / xᵀ (F + c I) x) x by the first
//! k = 0, 1, … for which E[ KL ] < δ and L(θ) > L(θ_old); where there is none, θ = θ_old
//!
//! δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)              the critic V minimises E[ (V(s) − R̂)² ]
//! Â_t = δ_t + γ λ (1 − done_t) Â_{t+1},   R̂_t = Â_t + V(s_t)                 done: terminated or truncated
//! ```
//!
//! Conjugate gradient only asks for products F v, and needs no second derivatives for them: where the KL
//! divergence is 0 its Hessian is all Gauss-Newton, F = E[ Jᵀ M J ], with J the derivatives of logits, or of μ
//! and ln σ, by θ and M their own Fisher matrix. J v is a tangent that goes forward, Jᵀ one backward pass.
//!
//! Deviations from the paper: Â is a generalised advantage estimate (arXiv:1506.02438), normalised, F is damped
//! and of the whole batch (there of a tenth), and `--norm-obs` scales observations, as in the authors' program
//! (modular_rl); β = 0.8, the critic's Adam: sb3-contrib's; the first σ: Tianshou's; Â looks beyond time limits.
//!
//! Run `cargo run -p trpo`: 475 (Gymnasium's threshold) or more on CartPole-v1, 100,000 steps, five seconds. On
//! MuJoCo: `-- --config algorithms/trpo/configs/Hopper-v5.toml`, or HalfCheetah, Walker2d, InvertedPendulum.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, Space, Spec, VecEnv, learner_rng, wrappers::NormalizeObservation};
use common::nn::{Adam, Categorical, Init, Linear, VarBuilder, VarMap, linear_orthogonal, matmul};
use common::{Run, cli, cli::RunArgs};
use serde::Serialize;
use std::{f64::consts::SQRT_2, f64::consts::TAU, process::ExitCode};

/// Trust region policy optimisation, for discrete and for continuous actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("100000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Parallel environments
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps in each environment between updates
    #[arg(long, default_value_t = 256, value_parser = cli::positive)]
    num_steps: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Decay of the advantage estimate, λ
    #[arg(long, default_value_t = 0.95, value_parser = cli::unit_interval)]
    gae_lambda: f64,
    /// Radius of the trust region, a KL divergence, δ
    #[arg(long, default_value_t = 0.01, value_parser = cli::above_zero)]
    target_kl: f64,
    /// Most steps of conjugate gradient
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    cg_max_steps: usize,
    /// What is added to the diagonal of the Fisher matrix, c
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    cg_damping: f64,
    /// Most tries of the line search
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    line_search_max_iter: usize,
    /// What the line search shortens a step by, β
    #[arg(long, default_value_t = 0.8, value_parser = cli::unit_interval)]
    line_search_shrinking_factor: f64,
    /// Step size of the critic's Adam
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Steps of the critic between updates of the policy
    #[arg(long, default_value_t = 40, value_parser = cli::positive)]
    n_critic_updates: usize,
    /// Scale observations by the mean and the standard deviation of all before
    #[arg(long, default_value_t = false)]
    norm_obs: bool,
}

/// Two hidden layers of tanh units.
struct Mlp {
    hidden1: Linear, // [observation_dim] → [hidden_size]
    hidden2: Linear, // [hidden_size] → [hidden_size]
    output: Linear,  // [hidden_size] → [outputs]
}

impl Mlp {
    /// `gain` scales the output layer: 0.01 makes the first policy almost the same everywhere, 1 suits a value.
    fn new(inputs: usize, hidden_size: usize, outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            hidden1: linear_orthogonal(inputs, hidden_size, SQRT_2, vb.pp("hidden1"))?,
            hidden2: linear_orthogonal(hidden_size, hidden_size, SQRT_2, vb.pp("hidden2"))?,
            output: linear_orthogonal(hidden_size, outputs, gain, vb.pp("output"))?,
        })
    }

    /// Observations `[batch, observation_dim]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let y1 = self.hidden1.forward_tanh(observations)?;
        let y2 = self.hidden2.forward_tanh(&y1)?;
        Ok(self.output.forward(&y2)?)
    }

    /// J v, `[batch, outputs]`: the rate at which the outputs change as W and b do at `v`'s Ẇ and ḃ.
    fn tangent(&self, v: &Mlp, observations: &Tensor) -> Result<Tensor> {
        // ẏ = (1 − y²) (W ẋ + Ẇ x + ḃ) for y = tanh(W x + b); ẋ = 0 for the observations
        let y1 = self.hidden1.forward_tanh(observations)?;
        let y1_dot = ((1.0 - y1.sqr()?)? * v.hidden1.forward(observations)?)?;
        let y2 = self.hidden2.forward_tanh(&y1)?;
        let z2_dot = (matmul(&y1_dot, &self.hidden2.weight().t()?)? + v.hidden2.forward(&y1)?)?;
        let y2_dot = ((1.0 - y2.sqr()?)? * z2_dot)?;
        Ok((matmul(&y2_dot, &self.output.weight().t()?)? + v.output.forward(&y2)?)?)
    }
}

/// All that is learned; or a vector v of as many numbers, each in the place of its parameter.
struct Networks {
    actor: Mlp,              // logits of π_θ(·|s), [num_actions], or μ_θ(s), [action_dim]
    log_std: Option<Tensor>, // ln σ, [action_dim], where actions are continuous
    critic: Mlp,             // V_θ(s), [1]
    parameters: VarMap,      // θ, of all three
}

/// π_θ(·|s) in each state of a batch. Actions are `[batch]`, u32, or of a Gaussian `[batch, action_dim]`.
struct Policy {
    outputs: Tensor,         // ln π_θ(·|s), [batch, num_actions], or μ_θ(s), [batch, action_dim]
    log_std: Option<Tensor>, // ln σ, [batch, action_dim], of a Gaussian
}

impl Policy {
    /// a ~ π_θ(·|s)
    fn sample(&self, rng: &mut Rng) -> Result<Tensor> {
        let Some(log_std) = &self.log_std else { return Ok(Categorical::new(&self.outputs)?.sample(rng)?) };
        let noise = Init::Randn { mean: 0.0, stdev: 1.0 }.tensor(log_std.dims(), rng, log_std.device())?;
        // a = μ + σ ε,   ε ~ N(0, I)
        // Easy to miss and fatal: with a gradient through a, ln π_θ(a|s) would not change with μ at all.
        Ok((&self.outputs + (log_std.exp()? * noise)?)?.detach())
    }

    /// ln π_θ(a|s), `[batch]`.
    fn log_prob(&self, actions: &Tensor) -> Result<Tensor> {
        let Some(log_std) = &self.log_std else {
            return Ok(self.outputs.gather(&actions.unsqueeze(1)?, 1)?.squeeze(1)?);
        };
        // ln N(a; μ, σ²) = Σ_j [ −½ ((a_j − μ_j) / σ_j)² − ln σ_j − ½ ln 2π ]
        let z = ((actions - &self.outputs)? / log_std.exp()?)?;
        Ok((((z.sqr()? * -0.5)? - log_std)? - 0.5 * TAU.ln())?.sum(1)?)
    }

    /// E[ KL(π_θ(·|s) ‖ π'(·|s)) ] to another policy π', a number.
    fn kl(&self, new: &Policy) -> Result<Tensor> {
        let kl = match (&self.log_std, &new.log_std) {
            // Σ_j [ ln σ'_j − ln σ_j + (σ_j² + (μ_j − μ'_j)²) / 2 σ'_j² − ½ ]
            (Some(log_std), Some(new_log_std)) => {
                let squares = ((log_std * 2.0)?.exp()? + (&self.outputs - &new.outputs)?.sqr()?)?;
                (((new_log_std - log_std)? + (squares / ((new_log_std * 2.0)?.exp()? * 2.0)?)?)? - 0.5)?
            }
            // Σ_a π(a|s) ( ln π(a|s) − ln π'(a|s) )
            _ => (self.outputs.exp()? * (&self.outputs - &new.outputs)?)?,
        };
        Ok(kl.sum(1)?.mean_all()?)
    }
}

/// What happened in `num_steps` steps of each environment. Every column but the actions is
/// `[num_steps, num_envs]`, row by row: step t of environment e is at t · num_envs + e.
#[derive(Default)]
struct Rollout {
    observations: Vec<f32>,      // s_t, [num_steps, num_envs, observation_dim]
    actions: Vec<Tensor>,        // a_t as drawn, num_steps of [num_envs] or [num_envs, action_dim]
    rewards: Vec<f32>,           // r_t
    next_observations: Vec<f32>, // s_{t+1}, an episode's true last one at its end, shaped like s_t
    terminated: Vec<bool>,       // nothing lies beyond s_{t+1}
    truncated: Vec<bool>,        // the episode was cut off at s_{t+1}
}

impl Rollout {
    /// Â_t, `[num_steps, num_envs]`, from V(s_t) and V(s_{t+1}) of the same shape.
    fn advantages(&self, values: &[f32], next_values: &[f32], args: &Args) -> Vec<f32> {
        let (gamma, gae_lambda, num_envs) = (args.gamma as f32, args.gae_lambda as f32, args.num_envs);
        let mut advantages = vec![0.0; self.rewards.len()];
        for i in (0..self.rewards.len()).rev() {
            // δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
            let next_value = if self.terminated[i] { 0.0 } else { next_values[i] };
            let delta = self.rewards[i] + gamma * next_value - values[i];
            // Â_t = δ_t + γ λ (1 − done_t) Â_{t+1},   done: terminated or truncated
            // Easy to miss and fatal: what follows an episode's end, at i + num_envs, belongs to the next one.
            let done = self.terminated[i] || self.truncated[i];
            let next_advantage = if done { 0.0 } else { *advantages.get(i + num_envs).unwrap_or(&0.0) };
            advantages[i] = delta + gamma * gae_lambda * next_advantage;
        }
        advantages
    }
}

/// Σ_i x_i y_i
fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// x + scale · y
fn plus(x: &[f32], scale: f64, y: &[f32]) -> Vec<f32> {
    x.iter().zip(y).map(|(x, y)| (f64::from(*x) + scale * f64::from(*y)) as f32).collect()
}

/// The networks and how they learn.
struct Trpo {
    theta: Networks, // θ
    v: Networks,     // v of a product F v; the critic's part of it is 0
    critic_optimizer: Adam,
    normalize_observation: NormalizeObservation, // mean(s) and std(s)
    spec: Spec,                                  // of the environments
    args: Args,
    device: Device,
}

impl Trpo {
    fn new(envs: &VecEnv, hidden_size: usize, args: &Args) -> Result<Self> {
        let (spec, device) = (envs.spec(), args.run.device()?);
        let discrete = matches!(spec.action_space, Space::Discrete { .. });
        let (observation_dim, outputs) =
            if discrete { spec.box_to_discrete("trpo")? } else { spec.box_to_box("trpo")? };
        let networks = || -> Result<Networks> {
            let parameters = VarMap::new(args.run.seed);
            let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
            let log_std = || vb.get_with_hints(outputs, "log_std", Init::Const(-0.5)); // σ = 0.61
            Ok(Networks {
                actor: Mlp::new(observation_dim, hidden_size, outputs, 0.01, vb.pp("actor"))?,
                log_std: (!discrete).then(log_std).transpose()?,
                critic: Mlp::new(observation_dim, hidden_size, 1, 1.0, vb.pp("critic"))?,
                parameters,
            })
        };
        let (theta, v, spec, args) = (networks()?, networks()?, spec.clone(), args.clone());
        let critic_optimizer = Adam::new(&theta.parameters, args.learning_rate)?;
        let normalize_observation = NormalizeObservation::new(observation_dim);
        Ok(Self { theta, v, critic_optimizer, normalize_observation, spec, args, device })
    }

    /// Observations as the networks know them, `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        let mut inputs = observations.to_vec();
        if self.args.norm_obs {
            self.normalize_observation.apply(observations, &mut inputs); // (s − mean(s)) / std(s), within ±10
        }
        Ok(Tensor::from_vec(inputs, ((), self.spec.observation_space.size()), &self.device)?)
    }

    /// π_θ(·|s) for observations `[batch, observation_dim]`.
    fn policy(&self, observations: &Tensor) -> Result<Policy> {
        let outputs = self.theta.actor.forward(observations)?;
        if let Some(log_std) = &self.theta.log_std {
            // Easy to miss: a copy for each state, since what shares the parameter's storage moves with it.
            return Ok(Policy { log_std: Some(outputs.zeros_like()?.broadcast_add(log_std)?), outputs });
        }
        // ln π(a) = z_a − ln Σ_b exp z_b, of logits z whose largest is 0, so that nothing overflows
        let z = outputs.broadcast_sub(&outputs.max_keepdim(1)?.detach())?;
        Ok(Policy { outputs: z.broadcast_sub(&z.exp()?.sum_keepdim(1)?.log()?)?, log_std: None })
    }

    /// The most probable action for each observation, shaped like drawn ones. A Gaussian's is its mean.
    fn act_greedily(&self, observations: &[f32]) -> Result<Tensor> {
        let outputs = self.theta.actor.forward(&self.tensor(observations)?)?;
        Ok(if self.theta.log_std.is_none() { outputs.argmax(1)? } else { outputs })
    }

    /// Continuous actions within their bounds, `[batch, action_dim]`.
    fn clipped(&self, actions: &Tensor) -> Result<Vec<f32>> {
        let mut actions = actions.flatten_all()?.to_vec1()?;
        self.spec.action_space.clip(&mut actions);
        Ok(actions)
    }

    /// Steps `envs` by a ~ π_θ(·|s), and stores the step in `rollout`.
    fn act(&self, rollout: &mut Rollout, envs: &mut VecEnv, rng: &mut Rng) -> Result<()> {
        rollout.observations.extend_from_slice(envs.observations());
        let actions = self.policy(&self.tensor(envs.observations())?)?.sample(rng)?;
        // Easy to miss: the environment gets the action within its bounds; only what was drawn has a density.
        match self.theta.log_std {
            None => envs.step(&actions.to_vec1::<u32>()?)?,
            Some(_) => envs.step(&self.clipped(&actions)?)?,
        }
        rollout.actions.push(actions);
        rollout.rewards.extend_from_slice(envs.rewards());
        // Easy to miss: after an episode's end `envs.observations()` are the next episode's.
        rollout.next_observations.extend_from_slice(envs.final_observations());
        rollout.terminated.extend_from_slice(envs.terminated());
        rollout.truncated.extend_from_slice(envs.truncated());
        Ok(())
    }

    /// Â_t normalised and R̂_t = Â_t + V(s_t), `[batch]`: all steps of all environments in one row.
    fn advantages_and_returns(&self, rollout: &Rollout) -> Result<(Tensor, Tensor)> {
        let value = |s| Ok::<_, anyhow::Error>(self.theta.critic.forward(&self.tensor(s)?)?.squeeze(1)?);
        let (values, next_values) = (value(&rollout.observations)?, value(&rollout.next_observations)?);
        let advantages = rollout.advantages(&values.to_vec1()?, &next_values.to_vec1()?, &self.args);
        let advantages = Tensor::new(advantages, &self.device)?;
        let centred = advantages.broadcast_sub(&advantages.mean_all()?)?;
        let std = (centred.sqr()?.sum_all()? / (rollout.rewards.len().max(2) - 1) as f64)?.sqrt()?;
        Ok((centred.broadcast_div(&(std + 1e-8)?)?, (advantages + values.detach())?))
    }

    /// (F + c I) v, of states s, `[batch, observation_dim]`.
    fn fisher_vector_product(&self, observations: &Tensor, v: &[f32]) -> Result<Vec<f32>> {
        self.v.parameters.set_values(v)?;
        let policy = self.policy(observations)?;
        let jv = self.theta.actor.tangent(&self.v.actor, observations)?; // of logits or means
        // E[ (M J v)ᵀ outputs ] with M J v constant: its gradient is E[ Jᵀ M J v ].
        let product = match (&policy.log_std, &self.v.log_std) {
            // M = 1/σ² for μ, 2 for ln σ
            (Some(log_std), Some(v)) => {
                let of_mean = ((jv / (log_std * 2.0)?.exp()?)?.detach() * policy.outputs)?;
                (of_mean + log_std.broadcast_mul(&(v.detach() * 2.0)?)?)?
            }
            // M = diag(p) − p pᵀ for logits; of ln π it is the same, as M does not see what all share.
            _ => {
                let probs = policy.outputs.exp()?;
                let mjv = (&probs * jv.broadcast_sub(&(&probs * &jv)?.sum_keepdim(1)?)?)?;
                (mjv.detach() * policy.outputs)?
            }
        };
        let product = product.sum(1)?.mean_all()?;
        Ok(plus(&self.theta.parameters.gradients(&product)?, self.args.cg_damping, v))
    }

    /// x ≈ (F + c I)⁻¹ g by conjugate gradient (Hestenes & Stiefel 1952).
    fn natural_gradient(&self, observations: &Tensor, g: &[f32]) -> Result<Vec<f32>> {
        let mut x = vec![0.0; g.len()];
        let (mut residual, mut direction) = (g.to_vec(), g.to_vec()); // residual = g − (F + c I) x; d
        for _ in 0..self.args.cg_max_steps {
            let squares = dot(&residual, &residual);
            if squares < 1e-10 {
                break;
            }
            let product = self.fisher_vector_product(observations, &direction)?; // (F + c I) d
            let alpha = squares / dot(&direction, &product); // |residual|² / dᵀ (F + c I) d
            x = plus(&x, alpha, &direction);
            residual = plus(&residual, -alpha, &product);
            // d ← residual + (|residual|² / what it was) d, conjugate to the last one
            direction = plus(&residual, dot(&residual, &residual) / squares, &direction);
        }
        Ok(x)
    }

    /// One step of the policy within the trust region; the critic stays as it is. Returns −L(θ), which was 0
    /// before, for advantages are normalised; E[ KL(π_θ_old(·|s) ‖ π_θ(·|s)) ]; and βᵏ, 0 if every step failed.
    fn update_policy(&self, states: &Tensor, actions: &Tensor, advantages: &Tensor) -> Result<[f32; 3]> {
        let old_values = self.theta.parameters.values()?;
        let old = self.policy(states)?;
        let old_log_probs = old.log_prob(actions)?.detach();
        // L(θ) = E[ π_θ(a|s) / π_θ_old(a|s) Â ]
        let surrogate = |policy: &Policy| -> Result<Tensor> {
            let ratio = (policy.log_prob(actions)? - &old_log_probs)?.exp()?; // [batch]
            Ok((ratio * advantages)?.mean_all()?)
        };
        let old_surrogate = surrogate(&old)?;
        let g = self.theta.parameters.gradients(&old_surrogate)?;
        let x = self.natural_gradient(states, &g)?;
        // √(2 δ / xᵀ (F + c I) x)
        let step = (2.0 * self.args.target_kl / dot(&x, &self.fisher_vector_product(states, &x)?)).sqrt();
        let (old_surrogate, mut step_fraction) = (old_surrogate.to_scalar::<f32>()?, 1.0); // L(θ_old), βᵏ
        for _ in 0..self.args.line_search_max_iter {
            self.theta.parameters.set_values(&plus(&old_values, step_fraction * step, &x))?;
            let new = self.policy(states)?;
            let (kl, gain): (f32, f32) = (old.kl(&new)?.to_scalar()?, surrogate(&new)?.to_scalar()?);
            // Written so that what is not a number fails.
            if f64::from(kl) < self.args.target_kl && gain > old_surrogate {
                return Ok([-gain, kl, step_fraction as f32]);
            }
            step_fraction *= self.args.line_search_shrinking_factor;
        }
        // Easy to miss and fatal: the last try has failed too.
        self.theta.parameters.set_values(&old_values)?;
        Ok([-old_surrogate, 0.0, 0.0])
    }

    /// One step of the critic towards R̂. The policy stays as it is.
    fn update_critic(&mut self, states: &Tensor, returns: &Tensor) -> Result<f32> {
        // E[ (V(s) − R̂)² ]
        let loss = (self.theta.critic.forward(states)?.squeeze(1)? - returns)?.sqr()?.mean_all()?;
        self.critic_optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, args.run.seed)?;
    let mut trpo = Trpo::new(&envs, 64, &args)?;
    let mut rng = learner_rng(args.run.seed);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;
    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut trpo.theta.parameters),
                ("critic_optimizer", &mut trpo.critic_optimizer),
                ("normalize_observation", &mut trpo.normalize_observation),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;
        // Run the policy for num_steps steps in each environment.
        let mut rollout = Rollout::default();
        for _ in 0..args.num_steps {
            trpo.act(&mut rollout, &mut envs, &mut rng)?;
            global_step += args.num_envs;
            run.episodes(global_step, envs.episodes())?;
        }
        // One step of the policy; then the critic follows the returns.
        let (advantages, returns) = trpo.advantages_and_returns(&rollout)?; // [batch]
        let states = trpo.tensor(&rollout.observations)?; // [batch, observation_dim]
        let actions = Tensor::cat(&rollout.actions, 0)?; // [batch] or [batch, action_dim]
        let [policy_loss, kl, step_fraction] = trpo.update_policy(&states, &actions, &advantages)?;
        let mut value_loss = 0.0;
        for _ in 0..args.n_critic_updates {
            value_loss = trpo.update_critic(&states, &returns)?;
        }
        // Easy to miss: not before, for observations are stored as they were and scaled again by the update.
        trpo.normalize_observation.statistics.update(&rollout.observations);
        run.log(global_step, "losses/policy_loss", policy_loss)?;
        run.log(global_step, "losses/value_loss", value_loss)?;
        run.log(global_step, "losses/kl", kl)?;
        run.log(global_step, "losses/step_fraction", step_fraction)?;
    }

    // The statistics are part of the model: without them the policy would take observations for others.
    let (networks, statistics) = (&mut trpo.theta.parameters, &mut trpo.normalize_observation);
    run.save_or_load_model(&mut [("networks", networks as _), ("normalize_observation", statistics as _)])?;
    match trpo.theta.log_std {
        None => run.evaluate(|observations| Ok(trpo.act_greedily(observations)?.to_vec1::<u32>()?))?,
        Some(_) => run.evaluate(|observations| trpo.clipped(&trpo.act_greedily(observations)?))?,
    };
    Ok(())
}

#[cfg(test)]
mod tests;
