//! # Natural policy gradient (NPG)
//!
//! Kakade (2002), "A natural policy gradient", NIPS 14; with the step size of Rajeswaran, Lowrey, Todorov &
//! Kakade (2017), arXiv:1703.02660 (whose δ is twice this one, a KL divergence here).
//!
//! A gradient says which way is up for every unit of distance, but parameters are no good measure of
//! distance: the same step in them can change a policy hardly at all or beyond recognition, and another
//! parametrisation of the same policies has another gradient. The natural gradient measures distance by how
//! much the distributions of actions change, in KL divergence, and so is the policies' own.
//!
//! ```text
//! g = ∇ E[ π_θ(a|s) / π_θ_old(a|s) Â ] = E[ Â ∇ln π_θ(a|s) ]          at θ = θ_old
//! F = E[ ∇ln π_θ(a|s) ∇ln π_θ(a|s)ᵀ ] = ∇² E[ KL(π_θ_old(·|s) ‖ π_θ(·|s)) ]       the Fisher matrix
//!
//! θ ← θ + √(2 δ / xᵀ (F + c I) x) x,   x ≈ (F + c I)⁻¹ g by conjugate gradient
//! ```
//!
//! As KL(π_θ_old ‖ π_θ) ≈ ½ Δθᵀ F Δθ near θ_old, the step goes about as far as the radius δ allows. Nobody
//! checks that it did, or that it was of use: `trpo` adds a line search for it.
//!
//! Conjugate gradient only asks for products F v. Candle has no second derivatives through fused layers, but
//! none are needed: where the KL divergence is 0 its Hessian is all Gauss-Newton, F = E[ Jᵀ M J ], with J
//! the derivatives of the logits by θ and M = diag(p) − p pᵀ the Fisher matrix of a softmax in its logits.
//! J v is a tangent that goes forward beside the activations, and Jᵀ is one backward pass.
//!
//! Advantages Â are generalised advantage estimates (Schulman et al. 2015, arXiv:1506.02438):
//!
//! ```text
//! δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
//! Â_t = δ_t + γ λ (1 − done_t) Â_{t+1},   R̂_t = Â_t + V(s_t)          done: terminated or truncated
//! ```
//!
//! Deviations from Kakade, who has a constant step size, average rewards and a linear critic of features
//! ∇ln π: those of Rajeswaran et al., which are Â, normalised, conjugate gradient and the step size; the
//! damping c, as in the authors' program and TRPO's; a critic that follows R̂ by Adam; and δ_t looks beyond a
//! time limit (Pardo et al. 2018, arXiv:1712.00378).
//!
//! Run `cargo run -p npg`: 500 on CartPole-v1 after 100,000 steps in five seconds, with fifteen seeds of
//! fifteen. The critic's step size matters: with a third of it the critic follows R̂ too slowly, and three
//! seeds of ten end below 475 (Gymnasium's threshold).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{Adam, Categorical, Linear, VarBuilder, VarMap, linear_orthogonal, matmul};
use common::{Run, cli, cli::RunArgs};
use serde::Serialize;
use std::f64::consts::SQRT_2;
use std::process::ExitCode;

/// Natural policy gradient, for discrete actions
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
    /// How far a step goes, δ: about this KL divergence
    #[arg(long, default_value_t = 0.01, value_parser = cli::above_zero)]
    target_kl: f64,
    /// Most steps of conjugate gradient
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    cg_max_steps: usize,
    /// What is added to the diagonal of the Fisher matrix, c
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    cg_damping: f64,
    /// Step size of the critic's Adam
    #[arg(long, default_value_t = 3e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Steps of the critic between updates of the policy
    #[arg(long, default_value_t = 40, value_parser = cli::positive)]
    n_critic_updates: usize,
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
    actor: Mlp,         // logits of π_θ(·|s), [num_actions]
    critic: Mlp,        // V_θ(s), [1]
    parameters: VarMap, // θ, of both
}

/// ln π of all actions from logits z, `[batch, num_actions]`.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    // ln π(a) = z_a − ln Σ_b exp z_b, of logits z whose largest is 0, so that nothing overflows
    let z = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    Ok(z.broadcast_sub(&z.exp()?.sum_keepdim(1)?.log()?)?)
}

/// What happened in `num_steps` steps of each environment. Every column is `[num_steps, num_envs]`,
/// row by row: step t of environment e is at t · num_envs + e.
#[derive(Default)]
struct Rollout {
    observations: Vec<f32>,      // s_t, [num_steps, num_envs, observation_dim]
    actions: Vec<u32>,           // a_t
    rewards: Vec<f32>,           // r_t
    next_observations: Vec<f32>, // s_{t+1}, an episode's true last one at its end, shaped like s_t
    terminated: Vec<bool>,       // nothing lies beyond s_{t+1}
    truncated: Vec<bool>,        // the episode was cut off at s_{t+1}
}

impl Rollout {
    /// Stores the step that `envs` have just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], actions: &[u32], envs: &VecEnv) {
        self.observations.extend_from_slice(observations);
        self.actions.extend_from_slice(actions);
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
                // Â_t = δ_t + γ λ (1 − done_t) Â_{t+1},   done: terminated or truncated
                // Easy to miss and fatal: what follows an episode's end belongs to the next one.
                let done = self.terminated[i] || self.truncated[i];
                let next_advantage = if done || t + 1 == num_steps { 0.0 } else { advantages[i + num_envs] };
                advantages[i] = delta + gamma * gae_lambda * next_advantage;
            }
        }
        advantages
    }
}

/// What is learned from a rollout: all steps of all environments in one row.
struct Batch {
    observations: Tensor,    // s, [batch, observation_dim]
    actions: Tensor,         // a, [batch], u32
    advantages: Tensor,      // Â, normalised, [batch]
    returns: Tensor,         // R̂, [batch]
    explained_variance: f64, // of R̂ by V: 1 for a critic that is right, 0 for one that knows the mean
}

/// What an update of the policy did.
struct Losses {
    policy_loss: f32, // −E[ π_θ(a|s) / π_θ_old(a|s) Â ]; it was 0 before, for advantages are normalised
    entropy: f32,     // E[ H(π_θ(·|s)) ]
    kl: f32,          // E[ KL(π_θ_old(·|s) ‖ π_θ(·|s)) ], for δ
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
struct Npg {
    theta: Networks, // θ
    v: Networks,     // v of a product F v; the critic's part of it is 0
    critic_optimizer: Adam,
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl Npg {
    fn new(observation_dim: usize, hidden_size: usize, num_actions: usize, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let networks = || -> Result<Networks> {
            let parameters = VarMap::new(args.run.seed);
            let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
            Ok(Networks {
                actor: Mlp::new(observation_dim, hidden_size, num_actions, 0.01, vb.pp("actor"))?,
                critic: Mlp::new(observation_dim, hidden_size, 1, 1.0, vb.pp("critic"))?,
                parameters,
            })
        };
        let (theta, v) = (networks()?, networks()?);
        Ok(Self {
            critic_optimizer: Adam::new(&theta.parameters, args.learning_rate)?,
            theta,
            v,
            observation_dim,
            args: args.clone(),
            device,
        })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// π_θ(·|s) for each observation.
    fn policy(&self, observations: &[f32]) -> Result<Categorical> {
        Ok(Categorical::new(&self.theta.actor.forward(&self.tensor(observations)?)?)?)
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        Ok(self.policy(observations)?.sample(rng)?.to_vec1()?)
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(self.policy(observations)?.mode()?.to_vec1()?)
    }

    /// The rollout with its advantages and returns.
    fn batch(&self, rollout: &Rollout) -> Result<Batch> {
        let observations = self.tensor(&rollout.observations)?;
        let values = self.theta.critic.forward(&observations)?.squeeze(1)?; // V(s_t); then V(s_{t+1})
        let next_values = self.theta.critic.forward(&self.tensor(&rollout.next_observations)?)?.squeeze(1)?;
        let advantages = rollout.advantages(&values.to_vec1()?, &next_values.to_vec1()?, &self.args);
        let advantages = Tensor::new(advantages, &self.device)?;
        let returns = (&advantages + values.detach())?; // R̂_t = Â_t + V(s_t)
        let centred = |x: &Tensor| x.broadcast_sub(&x.mean_all()?);
        let variance = |x: &Tensor| -> Result<f64> {
            let squares = centred(x)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
            Ok(f64::from(squares) / (x.elem_count().max(2) - 1) as f64)
        };
        Ok(Batch {
            observations,
            actions: Tensor::new(rollout.actions.as_slice(), &self.device)?,
            // 1 − Var(R̂ − V) / Var(R̂)
            explained_variance: 1.0 - variance(&advantages)? / variance(&returns)?.max(1e-20),
            // Zero mean and unit standard deviation
            advantages: (centred(&advantages)? / (variance(&advantages)?.sqrt() + 1e-8))?,
            returns,
        })
    }

    /// (F + c I) v, of states s, `[batch, observation_dim]`.
    fn fisher_vector_product(&self, observations: &Tensor, v: &[f32]) -> Result<Vec<f32>> {
        self.v.parameters.set_values(v)?;
        let logits = self.theta.actor.forward(observations)?; // [batch, num_actions]
        let jv = self.theta.actor.tangent(&self.v.actor, observations)?; // J v, [batch, num_actions]
        // M J v = p ∘ J v − p (pᵀ J v)
        let probs = log_softmax(&logits)?.exp()?;
        let mean = (&probs * &jv)?.sum_keepdim(1)?; // pᵀ J v, [batch, 1]
        let mjv = (probs * jv.broadcast_sub(&mean)?)?.detach();
        // E[ (M J v)ᵀ logits ] with M J v constant: its gradient is E[ Jᵀ M J v ].
        let product = (mjv * logits)?.sum(1)?.mean_all()?;
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

    /// One step of the policy along the natural gradient. The critic stays as it is.
    fn update_policy(&self, batch: &Batch) -> Result<Losses> {
        let Batch { observations, actions, advantages, .. } = batch;
        let log_policy = || log_softmax(&self.theta.actor.forward(observations)?); // ln π_θ(·|s)
        let log_prob = |of: &Tensor| of.gather(&actions.unsqueeze(1)?, 1)?.squeeze(1); // ln π_θ(a|s)
        let old = log_policy()?;
        // g = E[ Â ∇ln π_θ(a|s) ]
        let g = self.theta.parameters.gradients(&(log_prob(&old)? * advantages)?.mean_all()?)?;
        let x = self.natural_gradient(observations, &g)?;
        // θ ← θ + √(2 δ / xᵀ (F + c I) x) x, and nowhere if x is 0
        let quadratic = dot(&x, &self.fisher_vector_product(observations, &x)?);
        let step = (2.0 * self.args.target_kl / quadratic.max(f64::MIN_POSITIVE)).sqrt();
        self.theta.parameters.set_values(&plus(&self.theta.parameters.values()?, step, &x))?;

        let new = log_policy()?;
        let ratio = (log_prob(&new)? - log_prob(&old)?)?.exp()?;
        Ok(Losses {
            policy_loss: (ratio * advantages)?.mean_all()?.neg()?.to_scalar()?,
            entropy: (new.exp()? * &new)?.sum(1)?.mean_all()?.neg()?.to_scalar()?,
            // Σ_a π_old(a|s) ( ln π_old(a|s) − ln π(a|s) )
            kl: (old.exp()? * (&old - &new)?)?.sum(1)?.mean_all()?.to_scalar()?,
        })
    }

    /// One step of the critic towards R̂. The policy stays as it is.
    fn update_critic(&mut self, batch: &Batch) -> Result<f32> {
        // E[ (V(s) − R̂)² ]
        let values = self.theta.critic.forward(&batch.observations)?.squeeze(1)?; // [batch]
        let loss = (values - &batch.returns)?.sqr()?.mean_all()?;
        self.critic_optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("npg")?;
    let mut npg = Npg::new(observation_dim, 64, num_actions, &args)?;
    let mut rng = learner_rng(args.run.seed);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut npg.theta.parameters),
                ("critic_optimizer", &mut npg.critic_optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        // Run the policy for num_steps steps in each environment.
        let mut rollout = Rollout::default();
        for _ in 0..args.num_steps {
            let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
            let actions = npg.act(&observations, &mut rng)?; // [num_envs]
            envs.step(&actions)?;
            rollout.store(&observations, &actions, &envs);
            global_step += args.num_envs;
            run.episodes(global_step, envs.episodes())?;
        }

        // One step of the policy; then the critic follows the returns.
        let batch = npg.batch(&rollout)?;
        let losses = npg.update_policy(&batch)?;
        let mut value_loss = 0.0;
        for _ in 0..args.n_critic_updates {
            value_loss = npg.update_critic(&batch)?;
        }
        run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
        run.log(global_step, "losses/value_loss", value_loss)?;
        run.log(global_step, "losses/entropy", losses.entropy)?;
        run.log(global_step, "losses/kl", losses.kl)?;
        run.log(global_step, "losses/explained_variance", batch.explained_variance)?;
    }

    run.save_or_load_model(&mut npg.theta.parameters)?;
    run.evaluate(|observations| npg.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
