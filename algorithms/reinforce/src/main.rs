//! # REINFORCE: Monte-Carlo policy gradient
//!
//! Williams (1992), "Simple statistical gradient-following algorithms for connectionist
//! reinforcement learning", Machine Learning 8; Sutton & Barto (2018), "Reinforcement Learning",
//! section 13.3.
//!
//! Play whole episodes with a stochastic policy, then make every action taken more probable in
//! proportion to the return that followed it. Actions that were followed by more than the others
//! win over them, and no value function, model or Markov property is needed for it. The price is
//! variance: all the luck of the rest of an episode is in each return.
//!
//! By the policy-gradient theorem the value of the first state has the gradient
//!
//! ```text
//! ∇_θ J(θ) = E_π[ Σ_t γᵗ G_t ∇_θ ln π_θ(a_t|s_t) ]         G_t = Σ_{k ≥ t} γ^{k−t} r_k
//! ```
//!
//! G_t, the reward to go, holds only rewards that a_t can have changed. The mean over a batch of N
//! episodes is an unbiased estimate of it, and the parameters climb along that:
//!
//! ```text
//! θ ← θ + α (1/N) Σ_episodes Σ_t γᵗ G_t ∇_θ ln π_θ(a_t|s_t)
//! π_θ(a|s) = exp h(s, a; θ) / Σ_b exp h(s, b; θ)            h: a network's output, or θ_aᵀ s
//! ```
//!
//! Two liberties. The factor γᵗ is left out unless `--discount-gradient` asks for it, as in almost
//! every program: with it, late steps of long episodes hardly count, and without it the update is
//! biased and, for γ < 1, no function's gradient (Nota & Thomas 2020, arXiv:1906.07073). And where
//! a time limit cuts an episode short, the return stops short with it, which is biased too: there
//! is no critic whose value of the last state could take the place of the rewards not seen.
//!
//! The book applies the terms of the sum one after the other, here they are applied at once; to
//! first order in α that is the same.
//!
//! Run `cargo run -p reinforce`: 450 or more on CartPole-v1 after 400,000 steps in about a second
//! (Tianshou's test of REINFORCE demands 195 after as many; Gymnasium counts 475 as solved).
//! Figure 13.1 of Sutton & Barto, 1000 episodes that climb from −82 to about −12.5 on their way to
//! −11.66, the best there is:
//!
//! ```text
//! cargo run -p reinforce -- --env-id ShortCorridor-v0 --total-timesteps 20000 --gamma 1 \
//!     --hidden-size 0 --initial-preferences 1.472,-1.472 --batch-episodes 1 --optimizer sgd \
//!     --learning-rate 0.0001220703125 --anneal-lr false --greedy-eval false
//! ```

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, invalid, rng};
use common::nn::{Activation, Adam, Categorical, Init, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// REINFORCE: Monte-Carlo policy gradient, for discrete actions
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("400000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size, α
    #[arg(long, default_value_t = 2e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// How to climb the gradient: Adam, or plain stochastic gradient ascent as in the papers
    #[arg(long, value_enum, default_value_t = Optimizer::Adam)]
    optimizer: Optimizer,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Episodes between updates, N
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    batch_episodes: usize,
    /// Weigh step t by γᵗ, as the gradient of the discounted return asks for
    #[arg(long, default_value_t = false)]
    discount_gradient: bool,
    /// Hidden tanh units; 0 makes the action preferences linear in the observation, h = θ_aᵀ s
    #[arg(long, default_value_t = 64)]
    hidden_size: usize,
    /// First θ_a of a linear policy, one number for each action [default: all 0]
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, value_parser = cli::finite)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    initial_preferences: Vec<f64>,
    /// Evaluate the most probable actions; where the best policy is random, evaluate that
    #[arg(long, default_value_t = true)]
    greedy_eval: bool,
}

/// How parameters follow a gradient.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Optimizer {
    Adam,
    Sgd,
}

/// The policy π_θ: a softmax over action preferences h(s, a; θ).
struct Policy {
    hidden: Option<Linear>, // [observation_dim] → [hidden_size]
    output: Linear,         // [hidden_size], or [observation_dim] without a hidden layer → [num_actions]
    observation_dim: usize,
    device: Device,
}

impl Policy {
    fn new(observation_dim: usize, num_actions: usize, hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        let device = vb.device().clone();
        let (hidden, output) = if hidden_size == 0 {
            // Without a bias, h(s, a; θ) = θ_aᵀ s; all zero, the first policy is uniform.
            let shape = (num_actions, observation_dim);
            let weight = vb.pp("output").get_with_hints(shape, "weight", Init::Const(0.0))?;
            (None, Linear::new(weight, Tensor::zeros(num_actions, DType::F32, &device)?))
        } else {
            let hidden =
                linear_orthogonal(observation_dim, hidden_size, std::f64::consts::SQRT_2, vb.pp("hidden"))?;
            // A small gain makes the first policy almost uniform.
            let output = linear_orthogonal(hidden_size, num_actions, 0.01, vb.pp("output"))?;
            (Some(hidden.with_activation(Activation::Tanh)), output)
        };
        Ok(Self { hidden, output, observation_dim, device })
    }

    /// h(s, ·), `[n, num_actions]`, of observations `[n, observation_dim]` flattened.
    fn forward(&self, observations: &[f32]) -> Result<Tensor> {
        let n = observations.len() / self.observation_dim;
        let observations = Tensor::from_slice(observations, (n, self.observation_dim), &self.device)?;
        Ok(match &self.hidden {
            Some(hidden) => self.output.forward(&hidden.forward(&observations)?)?,
            None => self.output.forward(&observations)?,
        })
    }

    /// The same, flattened.
    fn logits(&self, observations: &[f32]) -> Result<Vec<f32>> {
        Ok(self.forward(observations)?.flatten_all()?.to_vec1()?)
    }
}

/// Whole episodes, one after the other, and the running one. `weights` lacks the running one.
#[derive(Default, Serialize, Deserialize)]
struct Batch {
    observations: Vec<f32>, // [steps, observation_dim]
    actions: Vec<u32>,      // [steps]
    rewards: Vec<f32>,      // [steps]
    weights: Vec<f32>,      // [steps] G_t, or γᵗ G_t
    episodes: usize,        // whole ones, N
}

impl Batch {
    /// Ends the running episode: its returns are known now.
    fn end_episode(&mut self, gamma: f32, discount_gradient: bool) {
        let episode = &self.rewards[self.weights.len()..];
        let mut weights = returns_to_go(episode, gamma);
        if discount_gradient {
            let mut discount = 1.0; // γᵗ
            for weight in &mut weights {
                *weight *= discount;
                discount *= gamma;
            }
        }
        self.weights.extend(weights);
        self.episodes += 1;
    }

    fn clear(&mut self) {
        self.observations.clear();
        self.actions.clear();
        self.rewards.clear();
        self.weights.clear();
        self.episodes = 0;
    }
}

/// G_t of one episode, from its last step backwards.
fn returns_to_go(rewards: &[f32], gamma: f32) -> Vec<f32> {
    let mut returns = rewards.to_vec();
    for t in (0..rewards.len().saturating_sub(1)).rev() {
        // G_t = r_t + γ G_{t+1}
        returns[t] += gamma * returns[t + 1];
    }
    returns
}

/// −(1/N) Σ_episodes Σ_t G_t ln π(a_t|s_t), from ln π and G `[steps]`: its gradient, which descends,
/// is minus the estimate of ∇J. (Its value is no measure of progress.)
fn policy_loss(log_probs: &Tensor, weights: &Tensor, episodes: usize) -> Result<Tensor> {
    // The returns are data: no gradient flows through them.
    Ok(((log_probs * weights.detach())?.sum_all()? * (-1.0 / episodes as f64))?)
}

/// θ ← θ − α ∇_θ loss
fn sgd_step(parameters: &VarMap, loss: &Tensor, learning_rate: f64) -> Result<()> {
    let gradients = loss.backward()?;
    for parameter in parameters.all_vars() {
        if let Some(gradient) = gradients.get(&parameter) {
            parameter.set(&(parameter.as_detached_tensor() - (gradient * learning_rate)?)?)?;
        }
    }
    Ok(())
}

/// Draws a ~ softmax(logits) for each row.
fn sample(logits: &[f32], num_actions: usize, rng: &mut Rng) -> Vec<u32> {
    let rows = logits.chunks_exact(num_actions);
    rows.map(|row| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut left = rng.random::<f32>() * row.iter().map(|z| (z - max).exp()).sum::<f32>();
        let drawn = row.iter().position(|z| {
            left -= (z - max).exp();
            left < 0.0
        });
        drawn.unwrap_or(num_actions - 1) as u32 // where rounding leaves nothing to the last action
    })
    .collect()
}

/// The most probable action of each row.
fn greedy(logits: &[f32], num_actions: usize) -> Vec<u32> {
    let best = |row: &[f32]| (0..num_actions).fold(0, |best, a| if row[a] > row[best] { a } else { best });
    logits.chunks_exact(num_actions).map(|row| best(row) as u32).collect()
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    // One environment: of several side by side, short episodes would be finished first, and the
    // long ones would have been begun by an earlier policy.
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("reinforce")?;
    let preferences = &args.initial_preferences;
    if !preferences.is_empty() && (preferences.len() != num_actions || args.hidden_size != 0) {
        let n = preferences.len();
        return invalid(format!(
            "--initial-preferences: {n} numbers and --hidden-size {}; one for each of {num_actions} actions and --hidden-size 0 are needed",
            args.hidden_size
        ));
    }
    let device = args.run.device()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = rng(args.run.seed, u64::MAX);
    let mut parameters = VarMap::new(args.run.seed);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
    let policy = Policy::new(observation_dim, num_actions, args.hidden_size, vb)?;
    if !preferences.is_empty() {
        for weight in parameters.all_vars() {
            let preferences = Tensor::from_slice(preferences, (num_actions, 1), &device)?;
            weight.set(&preferences.to_dtype(DType::F32)?.broadcast_as(weight.shape())?.contiguous()?)?;
        }
    }
    let mut adam = Adam::new(&parameters, args.learning_rate)?;
    let mut batch = Batch::default();

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut parameters),
                ("adam", &mut adam),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("batch", &mut batch),
            ],
        )?;

        // Act: one step with the current policy.
        let observation = envs.observations();
        let actions = sample(&policy.logits(observation)?, num_actions, &mut rng);
        batch.observations.extend_from_slice(observation);
        envs.step(&actions)?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        batch.actions.extend_from_slice(&actions);
        batch.rewards.extend_from_slice(envs.rewards());

        // A return is known once its episode is over, terminated or truncated.
        if !envs.terminated()[0] && !envs.truncated()[0] {
            continue;
        }
        batch.end_episode(args.gamma as f32, args.discount_gradient);
        if batch.episodes < args.batch_episodes {
            continue;
        }

        // Learn: one step along the gradient, after which the batch is of an old policy.
        let steps = batch.actions.len();
        let actions = Tensor::from_slice(&batch.actions, steps, &device)?;
        let weights = Tensor::from_slice(&batch.weights, steps, &device)?;
        let distribution = Categorical::new(&policy.forward(&batch.observations)?)?;
        let loss = policy_loss(&distribution.log_prob(&actions)?, &weights, batch.episodes)?;
        let entropy = distribution.entropy()?.mean_all()?;
        let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
        let learning_rate = if args.anneal_lr { remaining * args.learning_rate } else { args.learning_rate };
        match args.optimizer {
            Optimizer::Adam => {
                adam.learning_rate = learning_rate;
                adam.backward_step(&loss)?;
            }
            Optimizer::Sgd => sgd_step(&parameters, &loss, learning_rate)?,
        }
        batch.clear();
        run.log(global_step, "charts/learning_rate", learning_rate)?;
        run.log(global_step, "losses/policy_loss", loss.to_scalar::<f32>()?)?;
        run.log(global_step, "losses/entropy", entropy.to_scalar::<f32>()?)?;
    }

    run.save_or_load_model(&mut parameters)?;
    run.evaluate(|observations| {
        let logits = policy.logits(observations)?;
        Ok(if args.greedy_eval {
            greedy(&logits, num_actions)
        } else {
            sample(&logits, num_actions, &mut rng)
        })
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
