//! # Advantage actor-critic (A2C)
//!
//! Mnih, Puigdomènech Badia, Mirza et al. (2016), "Asynchronous methods for deep reinforcement learning",
//! arXiv:1602.01783, in the synchronous form of OpenAI's baselines (Wu, Mansimov, Liao, Grosse & Ba 2017,
//! arXiv:1708.05144, and the post "OpenAI Baselines: ACKTR & A2C").
//!
//! The policy gradient needs an estimate of what each action was worth, and the return of the episode is a
//! noisy one that comes late. A2C takes the few rewards that follow, and then a critic's value of the
//! state they led to: an n-step return. Many environments, stepped together, make the updates that A3C
//! (`a3c`) gathers from many workers into one, from one and the same policy.
//!
//! ```text
//! R_t = r_t + γ R_{t+1},   R_n = V(s_n)     R_{t+1} is 0 after termination, V(s_{t+1}) after truncation
//! A_t = R_t − V(s_t)
//!
//! L(θ) = −E_t[ A_t ln π_θ(a_t|s_t) ]          the policy, its weights constant
//!        + c_v E_t[ ( R_t − V_θ(s_t) )² ]     the critic
//!        − c_e E_t[ H(π_θ(·|s_t)) ]           the entropy bonus
//!
//! s ← (s − mean(s)) / std(s),   r ← r / std(G),   G ← γ (1 − terminated) G + r, 0 at first in each episode,
//! both only where they are asked for
//! ```
//!
//! π_θ is a softmax over discrete actions or, where actions are continuous, a Gaussian whose mean is a
//! function of the state and whose spread σ is a parameter:
//!
//! ```text
//! π_θ(a|s) = Π_j N( a_j ; μ_θ(s)_j , σ_j² )
//! ```
//!
//! θ follows the clipped gradient g by RMSProp, `v ← α v + (1 − α) g²`, `θ ← θ − η g / (√v + ε)`. There are
//! two of these: as here, and as PyTorch has it, ε = 1e-5 stands beside the root and v begins with 0;
//! OpenAI's program is written with TensorFlow's, where ε stands within the root, as in the paper, and v
//! begins with 1. The first steps of the one are ten times η, those of the other small.
//!
//! Deviations from the paper, as in OpenAI's program: the workers are synchronous, losses are means,
//! gradients are clipped to a norm, and σ is a parameter of each dimension, where the paper's is an output of
//! the network. Our own: policy and critic are two small networks, where theirs share layers (the paper's do
//! not where actions are continuous), and an n-step return looks beyond a time limit (Pardo et al. 2018,
//! arXiv:1712.00378), where theirs end; σ begins with exp(−½) and `--norm-obs` scales observations, as in
//! Tianshou's program for MuJoCo; `--norm-reward` scales rewards, as Gymnasium's `NormalizeReward` and RL
//! Baselines3 Zoo do (Tianshou scales the critic's returns alone). What is scaled is clipped to ±10.
//!
//! Run `cargo run -p a2c`: 475 (Gymnasium's threshold) or more on CartPole-v1, 500,000 steps, two seconds. On
//! MuJoCo: `-- --config algorithms/a2c/configs/Hopper-v5.toml`, or HalfCheetah, Walker2d, InvertedPendulum.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::wrappers::{NormalizeObservation, NormalizeReward};
use common::envs::{Rng, Space, VecEnv, learner_rng};
use common::nn::{Categorical, Init, Linear, RmsProp, VarBuilder, VarMap, linear_orthogonal};
use common::{Run, cli, cli::RunArgs};
use serde::Serialize;
use std::f64::consts::{E, PI, SQRT_2};
use std::process::ExitCode;

/// Advantage actor-critic, for discrete and for continuous actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("500000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of RMSProp, η
    #[arg(long, default_value_t = 7e-4, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Decay of RMSProp's mean of squares, α
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    rms_alpha: f64,
    /// What RMSProp adds to the root of the mean of squares, ε
    #[arg(long, default_value_t = 1e-5, value_parser = cli::above_zero)]
    rms_eps: f64,
    /// Parallel environments
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps in each environment between updates, n
    #[arg(long, default_value_t = 5, value_parser = cli::positive)]
    num_steps: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Weight of the entropy bonus, c_e
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    ent_coef: f64,
    /// Weight of the critic's loss, c_v
    #[arg(long, default_value_t = 0.5, value_parser = cli::non_negative)]
    vf_coef: f64,
    /// Largest norm of the gradient
    #[arg(long, default_value_t = 0.5, value_parser = cli::above_zero)]
    max_grad_norm: f64,
    /// Scale observations by the mean and the standard deviation of all before
    #[arg(long, default_value_t = false)]
    norm_obs: bool,
    /// Scale rewards by the standard deviation of the discounted sums of all before
    #[arg(long, default_value_t = false)]
    norm_reward: bool,
}

/// A network of tanh units.
struct Network {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [outputs]
}

impl Network {
    /// `sizes` are of the hidden layers. `gain` scales the output layer: 0.01 makes the first policy
    /// almost the same everywhere (Andrychowicz et al. 2021, arXiv:2006.05990), 1 suits a value.
    fn new(mut inputs: usize, sizes: &[usize], outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let mut hidden = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            hidden.push(linear_orthogonal(inputs, size, SQRT_2, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        Ok(Self { hidden, output: linear_orthogonal(inputs, outputs, gain, vb.pp("output"))? })
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

/// π_θ(·|s) for each state of a batch. Actions are `[batch, action_dim]`, where an index is one number.
enum Policy {
    Softmax(Categorical),
    Gaussian { mean: Tensor, log_std: Tensor }, // μ_θ(s), [batch, action_dim]; ln σ, [action_dim]
}

impl Policy {
    /// a ~ π_θ(·|s)
    fn sample(&self, rng: &mut Rng) -> Result<Vec<f32>> {
        Ok(match self {
            Policy::Softmax(categorical) => categorical.sample(rng)?.to_dtype(DType::F32)?.to_vec1()?,
            Policy::Gaussian { mean, log_std } => {
                let noise = Init::Randn { mean: 0.0, stdev: 1.0 }.tensor(mean.dims(), rng, mean.device())?;
                // a = μ + σ z,   z ~ N(0, I)
                (mean + noise.broadcast_mul(&log_std.exp()?)?)?.flatten_all()?.to_vec1()?
            }
        })
    }

    /// The most probable action of each state.
    fn mode(&self) -> Result<Vec<f32>> {
        Ok(match self {
            Policy::Softmax(categorical) => categorical.mode()?.to_dtype(DType::F32)?.to_vec1()?,
            Policy::Gaussian { mean, .. } => mean.flatten_all()?.to_vec1()?,
        })
    }

    /// ln π_θ(a|s), `[batch]`.
    fn log_prob(&self, actions: &[f32]) -> Result<Tensor> {
        match self {
            Policy::Softmax(categorical) => {
                Ok(categorical.log_prob(&Tensor::new(indices(actions), &Device::Cpu)?)?)
            }
            Policy::Gaussian { mean, log_std } => {
                let actions = Tensor::from_slice(actions, mean.shape(), mean.device())?;
                // ln N(a; μ, σ²) = Σ_j [ −½ ((a_j − μ_j) / σ_j)² − ln σ_j − ½ ln 2π ]
                let z = (actions - mean)?.broadcast_div(&log_std.exp()?)?;
                let log_normaliser = (log_std + 0.5 * (2.0 * PI).ln())?;
                Ok((z.sqr()? * -0.5)?.broadcast_sub(&log_normaliser)?.sum(1)?)
            }
        }
    }

    /// E[ H(π_θ(·|s)) ], a number.
    fn entropy(&self) -> Result<Tensor> {
        Ok(match self {
            Policy::Softmax(categorical) => categorical.entropy()?.mean_all()?,
            // H = Σ_j [ ln σ_j + ½ ln 2πe ], in every state
            Policy::Gaussian { log_std, .. } => (log_std + 0.5 * (2.0 * PI * E).ln())?.sum_all()?,
        })
    }
}

/// Actions that are indices, as [`Policy`] has them, as indices, `[batch]`.
fn indices(actions: &[f32]) -> Vec<u32> {
    actions.iter().map(|&action| action as u32).collect()
}

/// What happened in `num_steps` steps of each environment. Every column is `[num_steps, num_envs]`,
/// row by row: step t of environment e is at t · num_envs + e.
#[derive(Default)]
struct Rollout {
    observations: Vec<f32>,      // s_t, [num_steps, num_envs, observation_dim]
    actions: Vec<f32>,           // a_t as drawn, [num_steps, num_envs, action_dim]
    rewards: Vec<f32>,           // r_t as it is learned from
    next_observations: Vec<f32>, // s_{t+1}, an episode's true last one at its end, shaped like s_t
    terminated: Vec<bool>,       // nothing lies beyond s_{t+1}
    truncated: Vec<bool>,        // the episode was cut off at s_{t+1}
}

impl Rollout {
    /// Stores the step that `envs` have just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], actions: &[f32], rewards: &[f32], envs: &VecEnv) {
        self.observations.extend_from_slice(observations);
        self.actions.extend_from_slice(actions);
        self.rewards.extend_from_slice(rewards);
        // Easy to miss: after an episode's end `envs.observations()` are the next episode's.
        self.next_observations.extend_from_slice(envs.final_observations());
        self.terminated.extend_from_slice(envs.terminated());
        self.truncated.extend_from_slice(envs.truncated());
    }

    /// R_t from V(s_{t+1}), both `[num_steps, num_envs]`.
    fn returns(&self, next_values: &[f32], num_envs: usize, gamma: f32) -> Vec<f32> {
        let num_steps = self.rewards.len() / num_envs;
        let mut returns = vec![0.0; self.rewards.len()];
        for t in (0..num_steps).rev() {
            for env in 0..num_envs {
                let i = t * num_envs + env;
                // Easy to miss and fatal: what follows an episode's end belongs to the next one, and no
                // value lies beyond termination.
                let following = if self.terminated[i] {
                    0.0
                } else if self.truncated[i] || t + 1 == num_steps {
                    next_values[i]
                } else {
                    returns[i + num_envs]
                };
                // R_t = r_t + γ R_{t+1}
                returns[i] = self.rewards[i] + gamma * following;
            }
        }
        returns
    }
}

/// What one update found, before it moved the parameters.
struct Losses {
    policy_loss: f32,
    value_loss: f32,
    entropy: f32,
    explained_variance: f64, // of R by V: 1 for a critic that is right, 0 for one that knows the mean
}

/// Policy, critic and how they learn.
struct A2c {
    actor: Network,          // logits of π_θ(·|s), [num_actions], or μ_θ(s), [action_dim]
    log_std: Option<Tensor>, // ln σ, [action_dim], where actions are continuous
    critic: Network,         // V_θ(s), [1]
    parameters: VarMap,      // θ, of all three
    optimizer: RmsProp,      // of all three
    normalize_observation: NormalizeObservation, // mean(s) and std(s)
    normalize_reward: NormalizeReward, // std(G)
    observation_dim: usize,
    action_space: Space,
    args: Args,
    device: Device,
}

impl A2c {
    fn new(envs: &VecEnv, hidden_sizes: &[usize], args: &Args) -> Result<Self> {
        let (spec, device) = (envs.spec(), args.run.device()?);
        let parameters = VarMap::new(args.run.seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let discrete = matches!(spec.action_space, Space::Discrete { .. });
        let (observation_dim, outputs) =
            if discrete { spec.box_to_discrete("a2c")? } else { spec.box_to_box("a2c")? };
        let log_std = || vb.get_with_hints(outputs, "log_std", Init::Const(-0.5)); // σ = 0.61
        let log_std = (!discrete).then(log_std).transpose()?;
        let network =
            |outputs, gain, name| Network::new(observation_dim, hidden_sizes, outputs, gain, vb.pp(name));
        Ok(Self {
            actor: network(outputs, 0.01, "actor")?,
            log_std,
            critic: network(1, 1.0, "critic")?,
            optimizer: RmsProp::new(&parameters, args.learning_rate)?
                .with_alpha(args.rms_alpha)
                .with_eps(args.rms_eps)
                .with_max_grad_norm(args.max_grad_norm),
            parameters,
            normalize_observation: NormalizeObservation::new(observation_dim),
            normalize_reward: NormalizeReward::new(args.num_envs, args.gamma),
            observation_dim,
            action_space: spec.action_space.clone(),
            args: args.clone(),
            device,
        })
    }

    /// Observations as the networks know them, `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        let mut inputs = observations.to_vec();
        if self.args.norm_obs {
            self.normalize_observation.apply(observations, &mut inputs); // (s − mean(s)) / std(s)
        }
        Ok(Tensor::from_vec(inputs, ((), self.observation_dim), &self.device)?)
    }

    /// r of the step that `envs` have just made, as it is learned from.
    fn rewards(&mut self, envs: &VecEnv) -> Vec<f32> {
        let mut rewards = envs.rewards().to_vec();
        if self.args.norm_reward {
            let (terminated, truncated) = (envs.terminated(), envs.truncated());
            self.normalize_reward.normalize(envs.rewards(), terminated, truncated, &mut rewards); // r / std(G)
        }
        rewards
    }

    /// π_θ(·|s) for observations `[batch, observation_dim]`.
    fn policy(&self, observations: &Tensor) -> Result<Policy> {
        let outputs = self.actor.forward(observations)?;
        Ok(match &self.log_std {
            None => Policy::Softmax(Categorical::new(&outputs)?),
            Some(log_std) => Policy::Gaussian { mean: outputs, log_std: log_std.clone() },
        })
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<f32>> {
        self.policy(&self.tensor(observations)?)?.sample(rng)
    }

    /// The most probable action for each observation, clipped to the bounds of continuous ones.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<f32>> {
        let mut actions = self.policy(&self.tensor(observations)?)?.mode()?;
        self.action_space.clip(&mut actions);
        Ok(actions)
    }

    /// Steps `envs` by actions as the policy has them.
    fn step(&self, envs: &mut VecEnv, actions: &[f32]) -> Result<()> {
        match &self.action_space {
            Space::Discrete { .. } => envs.step(&indices(actions)),
            // Easy to miss: the environment gets the action clipped to its bounds, but what is stored is
            // the action as drawn. Only that has a density: all that lies beyond a bound falls on it.
            space => {
                let mut clipped = actions.to_vec();
                space.clip(&mut clipped);
                envs.step(&clipped)
            }
        }
    }

    /// L(θ) of a rollout, and what it is made of.
    fn loss(&self, rollout: &Rollout) -> Result<(Tensor, Losses)> {
        let observations = self.tensor(&rollout.observations)?; // [batch, observation_dim]
        let values = self.critic.forward(&observations)?.squeeze(1)?; // V_θ(s_t), [batch]
        let next_values = self.critic.forward(&self.tensor(&rollout.next_observations)?)?.squeeze(1)?;
        let returns = rollout.returns(&next_values.to_vec1()?, self.args.num_envs, self.args.gamma as f32);
        let returns = Tensor::new(returns, &self.device)?; // R_t, numbers: no gradient flows through them
        // A_t = R_t − V(s_t), the policy's weights, which are constant.
        let advantages = (&returns - &values)?.detach();

        // −E[ A_t ln π_θ(a_t|s_t) ]
        let policy = self.policy(&observations)?;
        let policy_loss = (&advantages * policy.log_prob(&rollout.actions)?)?.mean_all()?.neg()?;
        // E[ ( R_t − V_θ(s_t) )² ]
        let value_loss = (&returns - values)?.sqr()?.mean_all()?;
        // E[ H(π_θ(·|s_t)) ]: a bonus, so that more of it makes the loss smaller.
        let entropy = policy.entropy()?;
        let loss = ((&policy_loss + (&value_loss * self.args.vf_coef)?)? - (&entropy * self.args.ent_coef)?)?;
        // 1 − Var(R − V) / Var(R)
        let variance = |x: &Tensor| x.broadcast_sub(&x.mean_all()?)?.sqr()?.mean_all()?.to_scalar::<f32>();
        let unexplained =
            f64::from(variance(&advantages)?) / f64::from(variance(&returns)?.max(f32::MIN_POSITIVE));
        let losses = Losses {
            policy_loss: policy_loss.to_scalar()?,
            value_loss: value_loss.to_scalar()?,
            entropy: entropy.to_scalar()?,
            explained_variance: 1.0 - unexplained,
        };
        Ok((loss, losses))
    }

    /// One step of RMSProp down L(θ).
    fn update(&mut self, rollout: &Rollout) -> Result<Losses> {
        let (loss, losses) = self.loss(rollout)?;
        self.optimizer.backward_step(&loss)?;
        Ok(losses)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, args.run.seed)?;
    let mut a2c = A2c::new(&envs, &[64, 64], &args)?;
    let mut rng = learner_rng(args.run.seed);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let (mut global_step, mut updates) = (0, 0_u64);
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut a2c.parameters),
                ("optimizer", &mut a2c.optimizer),
                ("normalize_observation", &mut a2c.normalize_observation),
                ("normalize_reward", &mut a2c.normalize_reward),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("updates", &mut updates),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            a2c.optimizer.learning_rate = remaining * args.learning_rate;
        }

        // Run the policy for num_steps steps in each environment.
        let mut rollout = Rollout::default();
        for _ in 0..args.num_steps {
            let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
            let actions = a2c.act(&observations, &mut rng)?; // [num_envs, action_dim]
            a2c.step(&mut envs, &actions)?;
            rollout.store(&observations, &actions, &a2c.rewards(&envs), &envs);
            global_step += args.num_envs;
            run.episodes(global_step, envs.episodes())?;
        }

        // Learn from all of it, once: afterwards it is another policy's.
        let losses = a2c.update(&rollout)?;
        // Easy to miss: not before, for observations are stored as they were and scaled again by the update.
        a2c.normalize_observation.statistics.update(&rollout.observations);
        updates += 1;
        if updates.is_multiple_of(20) {
            run.log(global_step, "charts/learning_rate", a2c.optimizer.learning_rate)?;
            run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
            run.log(global_step, "losses/value_loss", losses.value_loss)?;
            run.log(global_step, "losses/entropy", losses.entropy)?;
            run.log(global_step, "losses/explained_variance", losses.explained_variance)?;
        }
    }

    // The statistics are part of the model: without them the policy would take observations for others.
    let (networks, statistics) = (&mut a2c.parameters, &mut a2c.normalize_observation);
    run.save_or_load_model(&mut [("networks", networks as _), ("normalize_observation", statistics as _)])?;
    match a2c.log_std {
        None => run.evaluate(|observations| Ok(indices(&a2c.act_greedily(observations)?)))?,
        Some(_) => run.evaluate(|observations| a2c.act_greedily(observations))?,
    };
    Ok(())
}

#[cfg(test)]
mod tests;
