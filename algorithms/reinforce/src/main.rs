//! # REINFORCE: Monte-Carlo policy gradient
//!
//! Williams (1992), "Simple statistical gradient-following algorithms for connectionist
//! reinforcement learning", Machine Learning 8; Sutton & Barto (2018), "Reinforcement Learning",
//! section 13.3.
//!
//! Play whole episodes with a stochastic policy, then make every action taken more probable in
//! proportion to the return that followed it. Actions that were followed by a larger return than
//! the others win over them, and no value function, model or Markov property is needed for it. The price is
//! variance: all the luck of the rest of an episode is in each return.
//!
//! To be maximised is the expected return of an episode τ = (s_0, a_0, r_0, s_1, …),
//!
//! ```text
//! J(θ) = E_{τ∼p_θ}[ Σ_t γᵗ r_t ]
//! ```
//!
//! whose gradient can be sampled, although θ stands in the distribution, because ∇p = p ∇ln p:
//!
//! ```text
//! ∇J(θ) = Σ_τ ∇p_θ(τ) Σ_t γᵗ r_t = E[ ∇ln p_θ(τ) Σ_t γᵗ r_t ]
//!       = E[ Σ_t ∇ln π_θ(a_t|s_t) Σ_k γᵏ r_k ]     the environment's part of p_θ(τ) has no θ in it
//!       = E[ Σ_t ∇ln π_θ(a_t|s_t) Σ_{k ≥ t} γᵏ r_k ]
//!       = E[ Σ_t γᵗ G_t ∇ln π_θ(a_t|s_t) ]                 G_t = Σ_{k ≥ t} γ^{k−t} r_k
//!       = E[ Σ_t γᵗ Q(s_t, a_t) ∇ln π_θ(a_t|s_t) ]         Q(s, a) = E[ G_t | s_t = s, a_t = a ]
//! ```
//!
//! The last line is the policy-gradient theorem (Sutton, McAllester, Singh & Mansour 2000), where an
//! actor-critic begins; the one before it, with a sampled return in place of Q, is REINFORCE. ∇ln π is
//! the score function, whose mean is 0: Σ_a π ∇ln π = Σ_a ∇π = ∇1 = 0. So in the third line rewards from
//! before t could be dropped, which a_t cannot change, and so may anything be subtracted from Q or G_t
//! that does not depend on a_t, a baseline. The mean over a batch of N episodes is an unbiased
//! estimate, and the parameters climb along it:
//!
//! ```text
//! θ ← θ + α (1/N) Σ_episodes Σ_t γᵗ G_t ∇ln π_θ(a_t|s_t)
//! π_θ(a|s) = exp h(s, a; θ) / Σ_b exp h(s, b; θ)            h: a network's output, or θ_aᵀ s
//! ```
//!
//! Deviations from the book, each of which a flag takes back but the last two. Adam, its step size
//! falling to zero, in place of plain ascent: one step size suits more tasks. N = 10 episodes in
//! place of one, for a steadier estimate. The factor γᵗ is left out unless `--discount-gradient`
//! asks for it, as in almost every program: with it, late steps of long episodes hardly count, and
//! without it the update is, for γ < 1, biased and no function's gradient (Nota & Thomas 2020,
//! arXiv:1906.07073). The book applies the terms of an episode's sum one after the other, here they
//! are applied at once: to first order in α that is the same. And where a time limit cuts an episode
//! short, the return stops short with it, which is biased too: there is no critic whose value of the
//! last state could take the place of the rewards not seen.
//!
//! Run `cargo run -p reinforce`: 450 or more on CartPole-v1 after 400,000 steps in about a second
//! (Tianshou's test of REINFORCE demands 195 after as many; Gymnasium counts 475 as solved).
//! Figure 13.1 of Sutton & Barto, 1000 episodes that climb from −82 to about −12.5 on their way to
//! −11.66, the best there is:
//!
//! ```text
//! cargo run -p reinforce -- --env-id ShortCorridor-v0 --total-timesteps 25000 --gamma 1 \
//!     --hidden-size 0 --initial-preferences 1.472,-1.472 --batch-episodes 1 --optimizer sgd \
//!     --learning-rate 0.0001220703125 --anneal-lr false --greedy-eval false
//! ```

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Categorical, Init, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// REINFORCE: Monte-Carlo policy gradient, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
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

/// The preferences h(s, a; θ), whose softmax is the policy.
struct Policy {
    hidden: Option<Linear>, // [observation_dim] → [hidden_size]
    output: Linear,         // [hidden_size], or [observation_dim] without a hidden layer → [num_actions]
}

impl Policy {
    fn new(observation_dim: usize, num_actions: usize, hidden_size: usize, vb: VarBuilder) -> Result<Self> {
        if hidden_size == 0 {
            // Without a bias, h(s, a; θ) = θ_aᵀ s; all zero, the first policy is uniform.
            let shape = (num_actions, observation_dim);
            let weight = vb.pp("output").get_with_hints(shape, "weight", Init::Const(0.0))?;
            let bias = Tensor::zeros(num_actions, DType::F32, vb.device())?;
            return Ok(Self { hidden: None, output: Linear::new(weight, bias) });
        }
        let sqrt2 = std::f64::consts::SQRT_2;
        let hidden = linear_orthogonal(observation_dim, hidden_size, sqrt2, vb.pp("hidden"))?;
        // A small gain makes the first policy almost uniform.
        let output = linear_orthogonal(hidden_size, num_actions, 0.01, vb.pp("output"))?;
        Ok(Self { hidden: Some(hidden), output })
    }

    /// Observations `[batch, observation_dim]` to h(s, ·; θ), `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        Ok(match &self.hidden {
            Some(hidden) => self.output.forward(&hidden.forward_tanh(observations)?)?,
            None => self.output.forward(observations)?,
        })
    }
}

/// Whole episodes, one after the other, and the running one.
#[derive(Default, Serialize, Deserialize)]
struct Rollout {
    observations: Vec<f32>, // s_t, [num_steps, observation_dim]
    actions: Vec<u32>,      // a_t, [num_steps]
    rewards: Vec<f32>,      // r_t, [num_steps]
    terminated: Vec<bool>,  // the episode ended with this step, [num_steps]
    truncated: Vec<bool>,   // it was cut off after this step, [num_steps]
}

impl Rollout {
    /// Stores the step that the one environment of `envs` has just made from `observation` by `action`.
    fn store(&mut self, observation: &[f32], action: &[u32], envs: &VecEnv) {
        self.observations.extend_from_slice(observation);
        self.actions.extend_from_slice(action);
        self.rewards.extend_from_slice(envs.rewards());
        self.terminated.extend_from_slice(envs.terminated());
        self.truncated.extend_from_slice(envs.truncated());
    }

    /// Whether step t was the last of its episode.
    fn done(&self, t: usize) -> bool {
        self.terminated[t] || self.truncated[t]
    }

    /// How many episodes are over, N.
    fn num_episodes(&self) -> usize {
        (0..self.rewards.len()).filter(|&t| self.done(t)).count()
    }

    /// G_t, `[num_steps]`, of whole episodes.
    fn returns(&self, gamma: f32) -> Vec<f32> {
        let mut returns = self.rewards.clone();
        for t in (0..returns.len().saturating_sub(1)).rev() {
            // G_t = r_t + γ (1 − done_t) G_{t+1}
            // Easy to miss and fatal: what follows an episode's end belongs to the next one.
            if !self.done(t) {
                returns[t] += gamma * returns[t + 1];
            }
        }
        returns
    }

    /// γᵗ, `[num_steps]`, where t counts from the start of the step's own episode.
    fn discounts(&self, gamma: f32) -> Vec<f32> {
        let mut discounts = vec![1.0; self.rewards.len()];
        for t in 1..discounts.len() {
            if !self.done(t - 1) {
                discounts[t] = gamma * discounts[t - 1];
            }
        }
        discounts
    }
}

/// The policy and how it learns.
struct Reinforce {
    policy: Policy,
    parameters: VarMap, // θ
    optimizer: Adam,    // where `--optimizer` asks for it
    learning_rate: f64, // α, now
    args: Args,
    device: Device,
}

impl Reinforce {
    fn new(observation_dim: usize, num_actions: usize, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let parameters = VarMap::new(args.run.seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let policy = Policy::new(observation_dim, num_actions, args.hidden_size, vb)?;
        if !args.initial_preferences.is_empty() {
            let preferences: Vec<f32> = args.initial_preferences.iter().map(|&p| p as f32).collect();
            let preferences = Tensor::from_vec(preferences, (num_actions, 1), &device)?;
            for weight in parameters.all_vars() {
                weight.set(&preferences.broadcast_as(weight.shape())?.contiguous()?)?;
            }
        }
        let optimizer = Adam::new(&parameters, args.learning_rate)?;
        Ok(Self {
            policy,
            parameters,
            optimizer,
            learning_rate: args.learning_rate,
            args: args.clone(),
            device,
        })
    }

    /// π_θ(·|s) for each of `batch` observations.
    fn distribution(&self, observations: &[f32], batch: usize) -> Result<Categorical> {
        let shape = (batch, observations.len() / batch);
        let observations = Tensor::from_slice(observations, shape, &self.device)?;
        Ok(Categorical::new(&self.policy.forward(&observations)?)?)
    }

    /// a ~ π_θ(·|s) for each of `batch` observations.
    fn act(&self, observations: &[f32], batch: usize, rng: &mut Rng) -> Result<Vec<u32>> {
        Ok(self.distribution(observations, batch)?.sample(rng)?.to_vec1()?)
    }

    /// The most probable action for each of `batch` observations.
    fn act_greedily(&self, observations: &[f32], batch: usize) -> Result<Vec<u32>> {
        Ok(self.distribution(observations, batch)?.mode()?.to_vec1()?)
    }

    /// One step along the estimate of ∇J(θ) from whole episodes. Returns minus what the estimate is the
    /// gradient of (its value is no measure of progress) and the policy's mean entropy, both from before
    /// the step.
    fn update(&mut self, rollout: &Rollout) -> Result<(f32, f32)> {
        let gamma = self.args.gamma as f32;
        let num_steps = rollout.rewards.len();
        let returns = Tensor::new(rollout.returns(gamma), &self.device)?; // G_t, [num_steps]
        let discounts = match self.args.discount_gradient {
            true => rollout.discounts(gamma), // γᵗ
            false => vec![1.0; num_steps],
        };
        // The weights are numbers: no gradient flows through them.
        let weights = (Tensor::new(discounts, &self.device)? * returns)?.detach(); // γᵗ G_t, [num_steps]

        // ln π_θ(a_t|s_t)
        let policy = self.distribution(&rollout.observations, num_steps)?;
        let log_probs = policy.log_prob(&Tensor::new(rollout.actions.as_slice(), &self.device)?)?; // [num_steps]
        // (1/N) Σ_episodes Σ_t γᵗ G_t ln π_θ(a_t|s_t), to be maximised
        let objective = ((weights * log_probs)?.sum_all()? / rollout.num_episodes() as f64)?;
        let loss = objective.neg()?;
        match self.args.optimizer {
            Optimizer::Adam => {
                self.optimizer.learning_rate = self.learning_rate;
                self.optimizer.backward_step(&loss)?;
            }
            Optimizer::Sgd => {
                let gradients = loss.backward()?;
                for parameter in self.parameters.all_vars() {
                    // θ ← θ − α ∇loss
                    let gradient = gradients.get(&parameter).context("a parameter without a gradient")?;
                    parameter.set(&(parameter.as_detached_tensor() - (gradient * self.learning_rate)?)?)?;
                }
            }
        }
        Ok((loss.to_scalar()?, policy.entropy()?.mean_all()?.to_scalar()?))
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    // One environment: of several side by side, short episodes would be finished first, and the
    // long ones would have been begun by an earlier policy.
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("reinforce")?;
    let (preferences, hidden_size) = (args.initial_preferences.len(), args.hidden_size);
    if preferences > 0 && (preferences != num_actions || hidden_size > 0) {
        return invalid(format!(
            "--initial-preferences: {preferences} numbers and --hidden-size {hidden_size}; one for each of {num_actions} actions and --hidden-size 0 are needed",
        ));
    }
    let mut rng = learner_rng(args.run.seed);
    let mut reinforce = Reinforce::new(observation_dim, num_actions, &args)?;
    let mut rollout = Rollout::default();
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut reinforce.parameters),
                ("optimizer", &mut reinforce.optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("rollout", &mut rollout),
            ],
        )?;

        // Run the policy for a step, and for more until N episodes are over, terminated or truncated.
        let observation = envs.observations().to_vec(); // [1, observation_dim]
        let action = reinforce.act(&observation, 1, &mut rng)?;
        envs.step(&action)?;
        rollout.store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if envs.episodes().is_empty() || rollout.num_episodes() < args.batch_episodes {
            continue;
        }

        // Learn from them, and forget them: they are an old policy's now.
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            reinforce.learning_rate = remaining * args.learning_rate;
        }
        let (policy_loss, entropy) = reinforce.update(&rollout)?;
        rollout = Rollout::default();
        run.log(global_step, "charts/learning_rate", reinforce.learning_rate)?;
        run.log(global_step, "losses/policy_loss", policy_loss)?;
        run.log(global_step, "losses/entropy", entropy)?;
    }

    run.save_or_load_model(&mut reinforce.parameters)?;
    rng = learner_rng(args.run.seed); // from its start, so that `--eval-only` draws the same actions
    run.evaluate(|observations| {
        let batch = observations.len() / observation_dim;
        match args.greedy_eval {
            true => reinforce.act_greedily(observations, batch),
            false => reinforce.act(observations, batch, &mut rng),
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
