//! # Off-policy policy gradient
//!
//! Precup, Sutton & Singh (2000), "Eligibility traces for off-policy policy evaluation", ICML; in policy
//! gradients: Jie & Abbeel (2010), "On a connection between importance sampling and the likelihood ratio
//! policy gradient", NIPS 23; Levine's lectures "Deep reinforcement learning" (UC Berkeley CS 285).
//!
//! A policy gradient is a mean over what the present policy would do, so that a single step of it makes
//! useless what was played before. Importance sampling gives it back: what another policy β did counts by
//! how much more probable it is under π_θ. Here β is the policy that played N episodes, and π_θ moves on
//! from it by several steps, all by these episodes, before it plays new ones and is β itself.
//!
//! The environment's part of an episode's probability is the same under both policies. What is left of the
//! quotient are the ratios ρ_t = π_θ(a_t|s_t) / β(a_t|s_t):
//!
//! ```text
//! J(θ) = E_{τ∼p_β}[ p_θ(τ) / p_β(τ) Σ_t γᵗ r_t ] = E_β[ Π_t ρ_t Σ_t γᵗ r_t ]
//! θ ← θ + α (1/N) Σ_episodes Σ_t x_t ∇ln π_θ(a_t|s_t)               x_t constant, one of these (--weights):
//!
//! trajectory              x_t = Π_j ρ_j      G_0                    G_t = Σ_{k ≥ t} γ^{k−t} r_k
//! per-decision-rewards    x_t = Π_{j ≤ t} ρ_j Σ_{k ≥ t} γ^{k−t} r_k Π_{t < j ≤ k} ρ_j
//! per-decision            x_t = Π_{j ≤ t} ρ_j G_t
//! per-step                x_t = ρ_t G_t
//! none                    x_t = G_t
//! ```
//!
//! The first is the gradient of J. So is the second, but for γᵗ (see `reinforce`), and it varies less: a
//! reward is weighed by the actions before it alone, and an action by the rewards after it. The third
//! leaves out that rewards, too, came about under β. The fourth asks how often a_t is done in s_t, but no
//! more how often s_t is met: states count as β met them, as in most algorithms since. In the first of the
//! steps π_θ is β, and all ratios are 1.
//!
//! Products of many ratios are almost 0 for most episodes and huge for some. How many of n weights w really
//! count is the effective sample size (Σ w)² / Σ w² (Kong 1992), of which `charts/effective_sample_share`
//! is the share of all n: whole episodes, where those are weighed, or steps.
//!
//! Deviations: Adam, its step size falling to zero. Weights are neither clipped nor made to sum to 1;
//! instead a batch is given up as soon as its effective share is less than `--min-effective-share`. A
//! share of one half is too little: of whole trajectories, one of ten may by then have two fifths of all
//! the weight, and what was done in it, whose return is positive as all are, is made ever more probable
//! (with 20 updates a batch two seeds of 15 stayed below 450, and none with nine tenths). Where a time
//! limit cuts an episode short, returns stop short. Against misprints in lecture notes: along an episode
//! ratios multiply, they do not add up, and those that weigh r_k are of a_{t+1} to a_k.
//!
//! Run `cargo run -p off_policy_pg`: 450 or more on CartPole-v1 with 15 of 15 seeds, after 200,000 steps in
//! a second (there is no published number; 475 is the return at which Gymnasium registers it as solved).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{Adam, Categorical, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Policy gradient from another policy's episodes, by importance sampling, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("200000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// How the difference between the two policies is weighed
    #[arg(long, value_enum, default_value_t = Weights::PerDecisionRewards)]
    weights: Weights,
    /// Steps of the policy by the same episodes, of which the first alone is on-policy
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    updates_per_batch: usize,
    /// Go on to new episodes once the weights' effective sample size is a smaller share than this
    #[arg(long, default_value_t = 0.9, value_parser = cli::unit_interval)]
    min_effective_share: f64,
    /// Step size, α
    #[arg(long, default_value_t = 2e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Episodes that one policy plays, N
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    batch_episodes: usize,
    /// Hidden tanh units
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    hidden_size: usize,
}

/// How the difference between the behaviour policy and the target policy is weighed.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Weights {
    /// Whole episodes, by the product of all ratios
    Trajectory,
    /// Actions by the ratios up to them, and rewards by the ratios since then
    PerDecisionRewards,
    /// Actions by the ratios up to them
    PerDecision,
    /// Actions by their own ratio: states count as they were met
    PerStep,
    /// Not at all
    None,
}

/// The logits of π_θ(·|s), its parameters θ and their optimiser.
struct Policy {
    hidden: Linear, // [observation_dim] → [hidden_size]
    output: Linear, // → [num_actions]
    parameters: VarMap,
    adam: Adam,
}

impl Policy {
    fn new(sizes: [usize; 3], learning_rate: f64, seed: u64, device: &Device) -> Result<Self> {
        let [observation_dim, hidden_size, num_actions] = sizes;
        let parameters = VarMap::new(seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, device);
        let hidden =
            linear_orthogonal(observation_dim, hidden_size, std::f64::consts::SQRT_2, vb.pp("hidden"))?;
        // A small gain makes the first policy almost uniform.
        let output = linear_orthogonal(hidden_size, num_actions, 0.01, vb.pp("output"))?;
        let adam = Adam::new(&parameters, learning_rate)?;
        Ok(Self { hidden, output, parameters, adam })
    }

    /// Observations `[batch, observation_dim]` to logits `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        Ok(self.output.forward(&self.hidden.forward_tanh(observations)?)?)
    }
}

/// Whole episodes, one after the other, and the running one.
#[derive(Default, Serialize, Deserialize)]
struct Rollout {
    observations: Vec<f32>, // s_t, [num_steps, observation_dim]
    actions: Vec<u32>,      // a_t ∼ β, [num_steps]
    log_probs: Vec<f32>,    // ln β(a_t|s_t), [num_steps]
    rewards: Vec<f32>,      // r_t, [num_steps]
    terminated: Vec<bool>,  // the episode ended with this step, [num_steps]
    truncated: Vec<bool>,   // it was cut off after this step, [num_steps]
}

impl Rollout {
    /// Stores the step that the one environment of `envs` has just made from `observation` by `action`.
    fn store(&mut self, observation: &[f32], action: &[u32], log_prob: &[f32], envs: &VecEnv) {
        self.observations.extend_from_slice(observation);
        self.actions.extend_from_slice(action);
        self.log_probs.extend_from_slice(log_prob);
        self.rewards.extend_from_slice(envs.rewards());
        self.terminated.extend_from_slice(envs.terminated());
        self.truncated.extend_from_slice(envs.truncated());
    }

    /// Whether step t was the last of its episode.
    fn done(&self, t: usize) -> bool {
        self.terminated[t] || self.truncated[t]
    }

    /// Where each whole episode lies in the columns.
    fn episodes(&self) -> Vec<std::ops::Range<usize>> {
        let mut start = 0;
        let ends = (0..self.rewards.len()).filter(|&t| self.done(t));
        ends.map(|t| std::mem::replace(&mut start, t + 1)..t + 1).collect()
    }

    /// Σ_{k ≥ t} γ^{k−t} r_k Π_{t < j ≤ k} ρ_j, `[num_steps]`, from ρ, `[num_steps]`.
    fn weighted_returns(&self, ratios: &[f32], gamma: f32) -> Vec<f32> {
        let mut returns = self.rewards.clone();
        for t in (0..returns.len().saturating_sub(1)).rev() {
            // Easy to miss and fatal: what follows an episode's end belongs to the next one.
            if !self.done(t) {
                returns[t] += gamma * ratios[t + 1] * returns[t + 1];
            }
        }
        returns
    }

    /// What each step is weighed by, from ρ; both `[num_steps]`.
    fn importance_weights(&self, ratios: &[f32], weights: Weights) -> Vec<f32> {
        match weights {
            Weights::None => return vec![1.0; ratios.len()],
            Weights::PerStep => return ratios.to_vec(),
            _ => {}
        }
        let mut products = ratios.to_vec(); // Π_{k ≤ t} ρ_k
        for episode in self.episodes() {
            for t in episode.start + 1..episode.end {
                products[t] *= products[t - 1];
            }
            if weights == Weights::Trajectory {
                let whole = products[episode.end - 1]; // Π_k ρ_k
                products[episode].fill(whole);
            }
        }
        products
    }
}

/// What weighs the score of each step, and what it is made of; all `[num_steps]` but the last.
struct StepWeights {
    ratios: Vec<f32>,     // ρ_t
    x: Vec<f32>,          // x_t
    effective_share: f64, // (Σ w)² / (n Σ w²)
}

/// What one update found, before it moved the parameters.
struct Losses {
    policy_loss: f32, // minus what the estimate is the gradient of; its value is no measure of progress
    entropy: f32,
    approx_kl: f64,
    effective_share: f64,
}

/// The policy and how it learns.
struct OffPolicyPg {
    policy: Policy,
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl OffPolicyPg {
    fn new(observation_dim: usize, num_actions: usize, args: &Args) -> Result<Self> {
        let (device, sizes) = (args.run.device()?, [observation_dim, args.hidden_size, num_actions]);
        let policy = Policy::new(sizes, args.learning_rate, args.run.seed, &device)?;
        Ok(Self { policy, observation_dim, args: args.clone(), device })
    }

    /// π_θ(·|s) for each observation.
    fn distribution(&self, observations: &[f32]) -> Result<Categorical> {
        let observations = Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?;
        Ok(Categorical::new(&self.policy.forward(&observations)?)?)
    }

    /// a ~ π_θ(·|s) for each observation, and ln π_θ(a|s).
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<(Vec<u32>, Vec<f32>)> {
        let policy = self.distribution(observations)?;
        let actions = policy.sample(rng)?;
        Ok((actions.to_vec1()?, policy.log_prob(&actions)?.to_vec1()?))
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(self.distribution(observations)?.mode()?.to_vec1()?)
    }

    /// The steps of the policy by the same episodes. Returns what the last one found and how many there were.
    fn update(&mut self, rollout: &Rollout) -> Result<(Losses, usize)> {
        let mut losses = self.update_policy(rollout, &self.weights(rollout)?)?;
        for update in 1..self.args.updates_per_batch {
            let weights = self.weights(rollout)?; // of the policy as it is by now
            if weights.effective_share < self.args.min_effective_share {
                return Ok((losses, update));
            }
            losses = self.update_policy(rollout, &weights)?;
        }
        Ok((losses, self.args.updates_per_batch))
    }

    /// x_t and what it is made of.
    fn weights(&self, rollout: &Rollout) -> Result<StepWeights> {
        let (kind, gamma) = (self.args.weights, self.args.gamma as f32);
        let actions = Tensor::new(&*rollout.actions, &self.device)?;
        let log_probs = self.distribution(&rollout.observations)?.log_prob(&actions)?; // ln π_θ(a_t|s_t)
        let log_ratios = (log_probs - Tensor::new(&*rollout.log_probs, &self.device)?)?.detach();
        // ρ_t = π_θ(a_t|s_t) / β(a_t|s_t)
        let ratios: Vec<f32> = log_ratios.exp()?.to_vec1()?;
        let mut x = match kind {
            Weights::PerDecisionRewards => rollout.weighted_returns(&ratios, gamma),
            _ => rollout.weighted_returns(&vec![1.0; ratios.len()], gamma), // G_t
        };
        let importance = rollout.importance_weights(&ratios, kind);
        let mut samples = importance.clone(); // one weight for each sample: a step …
        if kind == Weights::Trajectory {
            samples.clear();
            for episode in rollout.episodes() {
                samples.push(importance[episode.start]); // … or an episode, of which it is the same throughout
                let whole = x[episode.start]; // G_0
                x[episode].fill(whole);
            }
        }
        // x_t: the ratios' product times the return
        x.iter_mut().zip(&importance).for_each(|(x, weight)| *x *= weight);
        Ok(StepWeights { ratios, x, effective_share: effective_share(&samples) })
    }

    /// One step along the estimate of ∇J(θ), by x as they are.
    fn update_policy(&mut self, rollout: &Rollout, weights: &StepWeights) -> Result<Losses> {
        let policy = self.distribution(&rollout.observations)?;
        let log_probs = policy.log_prob(&Tensor::new(&*rollout.actions, &self.device)?)?; // [num_steps]
        let x = Tensor::new(&*weights.x, &self.device)?; // numbers: no gradient flows through them
        // (1/N) Σ_episodes Σ_t x_t ln π_θ(a_t|s_t), to be maximised
        let objective = ((x * log_probs)?.sum_all()? / rollout.episodes().len() as f64)?;
        let loss = objective.neg()?;
        self.policy.adam.backward_step(&loss)?;
        Ok(Losses {
            policy_loss: loss.to_scalar()?,
            entropy: policy.entropy()?.mean_all()?.to_scalar()?,
            approx_kl: approx_kl(&weights.ratios),
            effective_share: weights.effective_share,
        })
    }
}

/// (Σ w)² / (n Σ w²), the share of n samples that w leaves: 1 if all are alike, 1/n if one outweighs all.
fn effective_share(weights: &[f32]) -> f64 {
    let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let squares: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
    // Easy to miss: products of many ratios overflow, and ∞ / ∞ is NaN, which nothing finds too small.
    if !squares.is_finite() {
        return 0.0;
    }
    sum * sum / (weights.len() as f64 * squares.max(f64::MIN_POSITIVE))
}

/// E[ KL(β ‖ π_θ) ] ≈ E_β[ (ρ − 1) − ln ρ ] (Schulman 2020, "Approximating KL divergence").
fn approx_kl(ratios: &[f32]) -> f64 {
    // A ratio may be too small for its type, and be 0.
    let term = |&ratio: &f32| f64::from(ratio - 1.0) - f64::from(ratio.max(f32::MIN_POSITIVE)).ln();
    ratios.iter().map(term).sum::<f64>() / ratios.len() as f64
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    // One environment: of several, the short episodes would end first, the long ones be an older policy's.
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("off_policy_pg")?;
    let mut rng = learner_rng(args.run.seed);
    let mut learner = OffPolicyPg::new(observation_dim, num_actions, &args)?;
    let mut rollout = Rollout::default();
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut learner.policy.parameters),
                ("optimizer", &mut learner.policy.adam),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("rollout", &mut rollout),
            ],
        )?;

        // Run the policy, now β, for a step, and for more until N episodes are over, terminated or truncated.
        let observation = envs.observations().to_vec(); // [1, observation_dim]
        let (action, log_prob) = learner.act(&observation, &mut rng)?;
        envs.step(&action)?;
        rollout.store(&observation, &action, &log_prob, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if envs.episodes().is_empty() || rollout.episodes().len() < args.batch_episodes {
            continue;
        }

        // Move π_θ by them for as long as they still say something about it.
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            learner.policy.adam.learning_rate = remaining * args.learning_rate;
        }
        let (losses, updates) = learner.update(&rollout)?;
        rollout = Rollout::default();
        run.log(global_step, "charts/learning_rate", learner.policy.adam.learning_rate)?;
        run.log(global_step, "charts/updates", updates as f64)?;
        run.log(global_step, "charts/effective_sample_share", losses.effective_share)?;
        run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
        run.log(global_step, "losses/entropy", losses.entropy)?;
        run.log(global_step, "losses/approx_kl", losses.approx_kl)?;
    }

    run.save_or_load_model(&mut learner.policy.parameters)?;
    run.evaluate(|observations| learner.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
