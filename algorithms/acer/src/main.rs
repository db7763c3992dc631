//! # Actor-critic with experience replay (ACER)
//!
//! Wang, Bapst, Heess, Mnih, Munos, Kavukcuoglu & de Freitas (2017), arXiv:1611.01224; Retrace: Munos,
//! Stepleton, Harutyunyan & Bellemare (2016), arXiv:1606.02647.
//!
//! An actor-critic throws each trajectory away after one update, because it then is another policy's. ACER
//! replays it, and corrects for the policy μ that acted: Retrace turns its rewards into action values of the
//! present policy π; importance weights are truncated so that they cannot explode, while a second term takes
//! back the bias of that. A trust region keeps each update near an average of recent policies without second
//! derivatives, by a projection of the gradient by the probabilities φ.
//!
//! With ρ_t(a) = π(a|s_t) / μ(a|s_t), ρ_t = ρ_t(a_t) and V(s) = Σ_a π(a|s) Q(s, a), all of these constants:
//!
//! ```text
//! Retrace     Q^ret_t = r_t + γ Q̄_{t+1},    Q̄_t = min(1, ρ_t) ( Q^ret_t − Q(s_t, a_t) ) + V(s_t)
//!             Q̄_{t+1} is 0 after termination, V(s_{t+1}) after truncation and at the trajectory's end
//!
//! gradient    g_t = ∇_φ [ min(c, ρ_t) ( Q^ret_t − V(s_t) ) ln φ(a_t)
//!                         + Σ_a max(0, 1 − c / ρ_t(a)) π(a|s_t) ( Q(s_t, a) − V(s_t) ) ln φ(a)
//!                         + c_e H(φ) ]                                   at φ = π_θ(·|s_t)
//! trust       k_t = ∇_φ KL( π_θa(·|s_t) ‖ φ )
//! region      z_t = g_t − max( 0, (k_t·g_t − δ) / |k_t|² ) k_t           the nearest to g with k·z ≤ δ
//!
//! L(θ, w)   = −E_t[ z_t · π_θ(·|s_t) ] + c_q E_t[ ½ ( Q^ret_t − Q_w(s_t, a_t) )² ]
//! θ_a       ← α θ_a + (1 − α) θ
//! ```
//!
//! Each rollout is learned from once, where ρ = 1, and after --learning-starts steps n ~ Poisson(4) are replayed.
//! Deviations from the paper: environments in step, replayed together, and one learner, in place of asynchronous
//! ones, so that a run is the same each time; two small networks in place of one over images; means for sums; a
//! falling step size; RMSProp's ε beside the root (see `a2c`); ln φ ends at φ = 1e-6, so that nothing is divided
//! by 0; V of the true last state follows a time limit. Left open by the paper, and as in OpenAI's baselines: the
//! entropy bonus stands within g, before the projection; the gradients of both networks are clipped together.
//!
//! Run `cargo run -p acer`: 475 (Gymnasium's threshold) or more on CartPole-v1 after 300,000 steps, in four
//! seconds, with 44 of 45 seeds.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use clap::Parser;
use common::envs::{Rng, VecEnv, invalid, learner_rng};
use common::nn::{Categorical, Linear, RmsProp, VarBuilder, VarMap, clamp, linear_orthogonal, soft_update};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use rand_distr::{Distribution, Poisson};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, f64::consts::SQRT_2, process::ExitCode};

/// Actor-critic with experience replay, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("300000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of RMSProp
    #[arg(long, default_value_t = 7e-4, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Parallel environments
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps of a trajectory
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    num_steps: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Steps that the replay buffer holds, rounded up to whole rollouts
    #[arg(long, default_value_t = 20_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Environment steps before anything is replayed
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Replayed updates for each on-policy one, on average
    #[arg(long, default_value_t = 4.0, value_parser = cli::above_zero)]
    replay_ratio: f64,
    /// Largest importance weight of the policy's gradient, c; what it truncates is corrected for
    #[arg(long, default_value_t = 10.0, value_parser = cli::above_zero)]
    c: f64,
    /// How far from the average policy a gradient may point, δ
    #[arg(long, default_value_t = 1.0, value_parser = cli::above_zero)]
    delta: f64,
    /// Share of its old parameters that the average policy keeps in each update, α
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    average_decay: f64,
    /// Weight of the entropy bonus, c_e
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    ent_coef: f64,
    /// Weight of the critic's loss, c_q
    #[arg(long, default_value_t = 0.5, value_parser = cli::non_negative)]
    q_coef: f64,
    /// Largest norm of the gradient
    #[arg(long, default_value_t = 10.0, value_parser = cli::above_zero)]
    max_grad_norm: f64,
}

/// A network of tanh units.
struct Network {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [num_actions]
}

impl Network {
    /// `sizes` are of the hidden layers. `gain` scales the output layer: 0.01 makes the first policy
    /// almost uniform (Andrychowicz et al. 2021, arXiv:2006.05990), 1 suits values.
    fn new(mut inputs: usize, sizes: &[usize], outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let mut hidden = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            hidden.push(linear_orthogonal(inputs, size, SQRT_2, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        Ok(Self { hidden, output: linear_orthogonal(inputs, outputs, gain, vb.pp("output"))? })
    }

    /// Observations `[batch, observation_dim]` to `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_tanh(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }
}

/// ln π of logits `[batch, num_actions]`.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?)
}

/// What happened in `num_steps` steps of each environment. Every column is `[num_steps, num_envs]`,
/// row by row: step t of environment e is at t · num_envs + e.
#[derive(Serialize, Deserialize, Default)]
struct Rollout {
    observations: Vec<f32>,        // s_t, [num_steps, num_envs, observation_dim]
    actions: Vec<u32>,             // a_t
    behaviour_log_probs: Vec<f32>, // ln μ(·|s_t), of all actions, [num_steps, num_envs, num_actions]
    rewards: Vec<f32>,             // r_t
    next_observations: Vec<f32>,   // s_{t+1}, an episode's true last one at its end, shaped like s_t
    terminated: Vec<bool>,         // nothing lies beyond s_{t+1}
    truncated: Vec<bool>,          // the episode was cut off at s_{t+1}
}

impl Rollout {
    /// Stores the step that `envs` have just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], actions: &[u32], behaviour_log_probs: &[f32], envs: &VecEnv) {
        self.observations.extend_from_slice(observations);
        self.actions.extend_from_slice(actions);
        self.behaviour_log_probs.extend_from_slice(behaviour_log_probs);
        self.rewards.extend_from_slice(envs.rewards());
        // Easy to miss: after an episode's end `envs.observations()` are the next episode's.
        self.next_observations.extend_from_slice(envs.final_observations());
        self.terminated.extend_from_slice(envs.terminated());
        self.truncated.extend_from_slice(envs.truncated());
    }

    /// Q^ret_t from Q(s_t, a_t), V(s_t), V(s_{t+1}) and ρ_t; all `[num_steps, num_envs]`.
    fn retrace(&self, of: [&Tensor; 4], args: &Args) -> Result<Vec<f32>> {
        let [q_taken, values, next_values, ratios] = of.map(|x| x.flatten_all()?.to_vec1::<f32>());
        let (q_taken, values, next_values, ratios) = (q_taken?, values?, next_values?, ratios?);
        let (num_steps, num_envs) = (self.rewards.len() / args.num_envs, args.num_envs);
        let mut targets = vec![0.0; self.rewards.len()];
        let mut corrected = vec![0.0; num_envs]; // Q̄_{t+1} within an episode
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
                    corrected[env]
                };
                // Q^ret_t = r_t + γ Q̄_{t+1}
                targets[i] = self.rewards[i] + args.gamma as f32 * following;
                // Q̄_t = min(1, ρ_t) ( Q^ret_t − Q(s_t, a_t) ) + V(s_t)
                corrected[env] = ratios[i].min(1.0) * (targets[i] - q_taken[i]) + values[i];
            }
        }
        Ok(targets)
    }
}

/// The last `capacity` rollouts.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    capacity: usize,
    rollouts: VecDeque<Rollout>, // the oldest first, [len]
}

impl ReplayBuffer {
    fn store(&mut self, rollout: Rollout) {
        if self.rollouts.len() == self.capacity {
            self.rollouts.pop_front();
        }
        self.rollouts.push_back(rollout);
    }

    /// One rollout, uniformly.
    fn sample(&self, rng: &mut Rng) -> &Rollout {
        &self.rollouts[rng.random_range(0..self.rollouts.len())]
    }
}

/// What is known of a rollout's steps and held constant in an update.
struct Estimates {
    actions: Tensor,   // a_t, [batch, 1], u32
    log_probs: Tensor, // ln π_θ(·|s_t), [batch, num_actions]
    ratios: Tensor,    // ρ_t(·), [batch, num_actions]
    q_values: Tensor,  // Q_w(s_t, ·), [batch, num_actions]
    values: Tensor,    // V(s_t), [batch, 1]
    targets: Tensor,   // Q^ret_t, [batch, 1]
}

/// What one update found, before it moved the parameters.
#[derive(Default)]
struct Losses {
    policy_loss: f32,     // of the truncated importance weights
    bias_correction: f32, // of what they left out
    entropy: f32,
    average_kl: f32,         // KL(π_θa ‖ π_θ)
    trust_region_share: f32, // of the steps whose gradient was projected
    q_loss: f32,
}

/// Actor, critic, the average actor and how they learn.
struct Acer {
    actor: Network,             // logits of π_θ(·|s)
    critic: Network,            // Q_w(s, ·)
    average_actor: Network,     // logits of π_θa(·|s)
    actor_parameters: VarMap,   // θ
    critic_parameters: VarMap,  // w
    average_parameters: VarMap, // θ_a: a map of its own, for a clone would follow θ
    optimizer: RmsProp,         // of θ and w
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl Acer {
    fn new(envs: &VecEnv, hidden_sizes: &[usize], args: &Args, rng: &mut Rng) -> Result<Self> {
        let (observation_dim, num_actions) = envs.spec().box_to_discrete("acer")?;
        let device = args.run.device()?;
        let (actor_parameters, critic_parameters) = (VarMap::new(rng.random()), VarMap::new(rng.random()));
        let average_parameters = VarMap::new(0);
        let network = |parameters: &VarMap, gain| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            Network::new(observation_dim, hidden_sizes, num_actions, gain, vb)
        };
        let (actor, critic) = (network(&actor_parameters, 0.01)?, network(&critic_parameters, 1.0)?);
        let average_actor = network(&average_parameters, 0.01)?;
        soft_update(&average_parameters, &actor_parameters, 1.0)?; // a copy
        let both = [actor_parameters.all_vars(), critic_parameters.all_vars()].concat();
        let optimizer = RmsProp::from_vars(both, args.learning_rate)?.with_alpha(0.99).with_eps(1e-5);
        Ok(Self {
            actor,
            critic,
            average_actor,
            actor_parameters,
            critic_parameters,
            average_parameters,
            optimizer: optimizer.with_max_grad_norm(args.max_grad_norm),
            observation_dim,
            args: args.clone(),
            device,
        })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// a ~ π_θ(·|s) for each observation, and ln π_θ(·|s) of all actions, `[batch, num_actions]`.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<(Vec<u32>, Vec<f32>)> {
        let logits = self.actor.forward(&self.tensor(observations)?)?;
        let log_probs = log_softmax(&logits)?.flatten_all()?.to_vec1()?;
        Ok((Categorical::new(&logits)?.sample(rng)?.to_vec1()?, log_probs))
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(Categorical::new(&self.actor.forward(&self.tensor(observations)?)?)?.mode()?.to_vec1()?)
    }

    /// Q_w(s, ·), ln π_θ(·|s), both `[batch, num_actions]`, and V(s), `[batch, 1]`; constants.
    fn evaluate(&self, observations: &[f32]) -> Result<[Tensor; 3]> {
        let observations = self.tensor(observations)?;
        let q_values = self.critic.forward(&observations)?.detach();
        let log_probs = log_softmax(&self.actor.forward(&observations)?)?.detach();
        // V(s) = Σ_a π(a|s) Q(s, a)
        let values = (log_probs.exp()? * &q_values)?.sum_keepdim(1)?;
        Ok([q_values, log_probs, values])
    }

    fn estimates(&self, rollout: &Rollout) -> Result<Estimates> {
        let [q_values, log_probs, values] = self.evaluate(&rollout.observations)?;
        let [_, _, next_values] = self.evaluate(&rollout.next_observations)?;
        let actions = Tensor::from_slice(&rollout.actions, ((), 1), &self.device)?;
        let behaviour = Tensor::from_slice(&rollout.behaviour_log_probs, log_probs.shape(), &self.device)?;
        // ρ_t(a) = π(a|s_t) / μ(a|s_t)
        let ratios = (&log_probs - behaviour)?.exp()?;
        let (q_taken, taken_ratios) = (q_values.gather(&actions, 1)?, ratios.gather(&actions, 1)?); // [batch, 1]
        let targets = rollout.retrace([&q_taken, &values, &next_values, &taken_ratios], &self.args)?;
        let targets = Tensor::from_vec(targets, values.shape(), &self.device)?;
        Ok(Estimates { actions, log_probs, ratios, q_values, values, targets })
    }

    /// z_t, `[batch, num_actions]`, where `average_log_probs` are ln π_θa(·|s_t), shaped alike.
    fn projected_gradient(&self, of: &Estimates, average_log_probs: &Tensor) -> Result<(Tensor, Losses)> {
        let (c, probs) = (self.args.c, of.log_probs.exp()?);
        // A variable of its own: gradients end at φ, whose coordinates are free.
        let phi = Var::from_tensor(&probs)?;
        let log_phi = clamp(&phi, 1e-6, f64::INFINITY)?.log()?; // [batch, num_actions]

        // min(c, ρ_t) ( Q^ret_t − V(s_t) ) ln φ(a_t)
        let weights = (clamp(&of.ratios.gather(&of.actions, 1)?, 0.0, c)? * (&of.targets - &of.values)?)?;
        let truncated = (weights * log_phi.gather(&of.actions, 1)?)?; // [batch, 1]
        // Σ_a max(0, 1 − c / ρ_t(a)) π(a|s_t) ( Q(s_t, a) − V(s_t) ) ln φ(a)
        let weights = (clamp(&of.ratios.recip()?.affine(-c, 1.0)?, 0.0, 1.0)? * probs)?; // [batch, num_actions]
        let weights = (weights * of.q_values.broadcast_sub(&of.values)?)?;
        let correction = (weights * &log_phi)?.sum_keepdim(1)?; // [batch, 1]
        // H(φ) = −Σ_a φ(a) ln φ(a)
        let entropy = (phi.as_tensor() * &log_phi)?.sum_keepdim(1)?.neg()?; // [batch, 1]
        // KL( π_θa(·|s_t) ‖ φ )
        let kl = (average_log_probs.exp()? * (average_log_probs - &log_phi)?)?.sum_keepdim(1)?; // [batch, 1]

        let gain = ((&truncated + &correction)? + (&entropy * self.args.ent_coef)?)?;
        // By the sum over the batch, in which each step has a φ of its own.
        let gradient = |x: &Tensor| x.sum_all()?.backward()?.remove(&phi).context("no gradient by φ");
        let (g, k) = (gradient(&gain)?.detach(), gradient(&kl)?.detach()); // [batch, num_actions]
        // z_t = g_t − max( 0, (k_t·g_t − δ) / |k_t|² ) k_t
        let too_far = ((&k * &g)?.sum_keepdim(1)? - self.args.delta)?; // [batch, 1]
        let scale = clamp(&(too_far / k.sqr()?.sum_keepdim(1)?)?, 0.0, f64::INFINITY)?;
        let z = (g - k.broadcast_mul(&scale)?)?;
        let losses = Losses {
            policy_loss: truncated.mean_all()?.neg()?.to_scalar()?,
            bias_correction: correction.mean_all()?.neg()?.to_scalar()?,
            entropy: entropy.mean_all()?.to_scalar()?,
            average_kl: kl.mean_all()?.to_scalar()?,
            trust_region_share: scale.gt(0.0)?.to_dtype(DType::F32)?.mean_all()?.to_scalar()?,
            ..Losses::default()
        };
        Ok((z, losses))
    }

    /// L(θ, w) of a rollout, and what it is made of.
    fn loss(&self, rollout: &Rollout) -> Result<(Tensor, Losses)> {
        let of = self.estimates(rollout)?;
        let observations = self.tensor(&rollout.observations)?;
        let average_log_probs = log_softmax(&self.average_actor.forward(&observations)?)?.detach();
        let (z, mut losses) = self.projected_gradient(&of, &average_log_probs)?;
        // −E[ z_t · π_θ(·|s_t) ]: z says where the probabilities should go, and is constant.
        let probs = log_softmax(&self.actor.forward(&observations)?)?.exp()?;
        let policy_loss = (z.detach() * probs)?.sum(1)?.mean_all()?.neg()?;
        // E[ ½ ( Q^ret_t − Q_w(s_t, a_t) )² ]
        let q_taken = self.critic.forward(&observations)?.gather(&of.actions, 1)?; // [batch, 1]
        let q_loss = ((&of.targets - &q_taken)?.sqr()?.mean_all()? * 0.5)?;
        losses.q_loss = q_loss.to_scalar()?;
        Ok(((policy_loss + (q_loss * self.args.q_coef)?)?, losses))
    }

    /// One step of RMSProp down L(θ, w), after which the average policy follows the new one.
    fn update(&mut self, rollout: &Rollout) -> Result<Losses> {
        let (loss, losses) = self.loss(rollout)?;
        self.optimizer.backward_step(&loss)?;
        // θ_a ← α θ_a + (1 − α) θ
        soft_update(&self.average_parameters, &self.actor_parameters, 1.0 - self.args.average_decay)?;
        Ok(losses)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let Args { num_envs, num_steps, .. } = args;
    let rollout_size = num_envs.saturating_mul(num_steps);
    if rollout_size > 100_000_000 {
        return invalid(format!("--num-envs {num_envs} --num-steps {num_steps}: together at most 1e8 steps"));
    }
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, args.run.seed)?;
    let mut rng = learner_rng(args.run.seed);
    let mut acer = Acer::new(&envs, &[64, 64], &args, &mut rng)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size.div_ceil(rollout_size), ..Default::default() };
    let poisson = Poisson::new(args.replay_ratio)?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut acer.actor_parameters),
                ("critic", &mut acer.critic_parameters),
                ("average_actor", &mut acer.average_parameters),
                ("optimizer", &mut acer.optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("buffer", &mut buffer),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            acer.optimizer.learning_rate = remaining * args.learning_rate;
        }

        // Run the policy for num_steps steps in each environment.
        let mut rollout = Rollout::default();
        for _ in 0..args.num_steps {
            let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
            let (actions, log_probs) = acer.act(&observations, &mut rng)?;
            envs.step(&actions)?;
            rollout.store(&observations, &actions, &log_probs, &envs);
            global_step += args.num_envs;
            run.episodes(global_step, envs.episodes())?;
        }

        // Learn from it once as it comes, on-policy, and n ~ Poisson(replay_ratio) times from the buffer.
        let mut losses = acer.update(&rollout)?; // logged are those of the last update
        buffer.store(rollout);
        let replays = if global_step > args.learning_starts { poisson.sample(&mut rng) } else { 0.0 };
        for _ in 0..replays as usize {
            losses = acer.update(buffer.sample(&mut rng))?;
        }
        run.log(global_step, "charts/learning_rate", acer.optimizer.learning_rate)?;
        run.log(global_step, "charts/replays", replays)?;
        run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
        run.log(global_step, "losses/bias_correction", losses.bias_correction)?;
        run.log(global_step, "losses/entropy", losses.entropy)?;
        run.log(global_step, "losses/average_kl", losses.average_kl)?;
        run.log(global_step, "losses/trust_region_share", losses.trust_region_share)?;
        run.log(global_step, "losses/q_loss", losses.q_loss)?;
    }

    run.save_or_load_model(&mut acer.actor_parameters)?;
    run.evaluate(|observations| acer.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
