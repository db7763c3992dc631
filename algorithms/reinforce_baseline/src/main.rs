//! # REINFORCE with baseline
//!
//! Williams (1992), "Simple statistical gradient-following algorithms for connectionist
//! reinforcement learning", Machine Learning 8; Sutton & Barto (2018), "Reinforcement Learning",
//! section 13.4. The best constant for each parameter: Peters & Schaal (2008), Neural Networks 21.
//!
//! REINFORCE makes every action more probable in proportion to the return that followed it. Where all
//! returns are positive it pushes up whatever it tried, and learns only because it pushes some actions
//! less. A baseline subtracted from the returns leaves the gradient's mean as it is and takes away most of
//! that to and fro, its variance; less the value of the state, returns say how much better it went than expected.
//!
//! Whatever does not depend on a_t may be subtracted from the return that follows it, since
//! Σ_a b(s) ∇π(a|s) = b(s) ∇1 = 0. `--baseline value`, the default, learns v_w(s) from N episodes at a time:
//!
//! ```text
//! G_t = Σ_{k ≥ t} γ^{k−t} r_k            δ_t = G_t − v_w(s_t)
//! w ← w + α_w (1/N) Σ_episodes Σ_t δ_t ∇v_w(s_t)
//! θ ← θ + α_θ (1/N) Σ_episodes Σ_t γᵗ δ_t ∇ln π_θ(a_t|s_t)
//! ```
//!
//! The others are constants, subtracted from the return R(τ) = G_0 of a whole episode τ, whose score is
//! g(τ) = Σ_t ∇ln π_θ(a_t|s_t). The optimal ones, one for each parameter k, make E[ g_k² (R − b_k)² ] least:
//!
//! ```text
//! θ ← θ + α_θ (1/N) Σ_episodes g(τ) (R(τ) − b)
//! --baseline none: b = 0      mean: b = E[ R(τ) ]      optimal: b_k = E[ g_k(τ)² R(τ) ] / E[ g_k(τ)² ]
//! ```
//!
//! `--variance-every 1` logs the variance, summed over parameters, of one episode's estimate with each:
//! `variance/none`, `…/mean`, `…/optimal`, and `…/value`, whose v_w only `--baseline value` trains.
//!
//! Deviations from the book, all but the last two taken back by a flag: Adam's step for all t at once, in
//! place of a plain one for each t (`--sequential`); N = 10 episodes in place of one; no factor γᵗ
//! (`--discount-gradient`), as in almost every program: with it late steps hardly count, without it the
//! update is biased (Nota & Thomas 2020, arXiv:1906.07073). Where a time limit cuts an episode short, its
//! returns stop short. A constant is of the very episodes that it is subtracted from: a bias of order 1/N.
//!
//! Run `cargo run -p reinforce_baseline`: 475 (Gymnasium's threshold) or more on CartPole-v1 after 300,000
//! steps in a second. Figure 13.2 of Sutton & Barto, −12.0 over episodes 901 to 1000:
//!
//! ```text
//! cargo run -p reinforce_baseline -- --env-id ShortCorridor-v0 --total-timesteps 14000 --gamma 1 \
//!     --hidden-size 0 --initial-preferences 1.472,-1.472 --batch-episodes 1 --sequential \
//!     --policy-lr 0.001953125 --value-lr 0.015625 --greedy-eval false
//! ```

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Categorical, Init, Linear, VarBuilder, VarMap, backward, linear_orthogonal};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// REINFORCE with a baseline: Monte-Carlo policy gradient of less variance, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("300000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// What is subtracted from the returns
    #[arg(long, value_enum, default_value_t = Baseline::Value)]
    baseline: Baseline,
    /// Step size of the policy, α_θ
    #[arg(long, default_value_t = 5e-3, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the state values, α_w
    #[arg(long, default_value_t = 1e-2, value_parser = cli::non_negative)]
    value_lr: f64,
    /// Take a plain step for each t, one after the other, as in the book, in place of Adam's for all at once
    #[arg(long, default_value_t = false)]
    sequential: bool,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Episodes between updates, N
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    batch_episodes: usize,
    /// Weigh step t by γᵗ, as the gradient of the discounted return asks for; constants need no such weight
    #[arg(long, default_value_t = false)]
    discount_gradient: bool,
    /// Hidden tanh units; 0 makes preferences and values linear in the observation
    #[arg(long, default_value_t = 64)]
    hidden_size: usize,
    /// First θ_a of a linear policy, one number for each action [default: all 0]
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, value_parser = cli::finite)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    initial_preferences: Vec<f64>,
    /// Updates between measurements of each baseline's variance; 0 for none
    #[arg(long, default_value_t = 0)]
    variance_every: usize,
    /// Evaluate the most probable actions; where the best policy is random, evaluate that
    #[arg(long, default_value_t = true)]
    greedy_eval: bool,
}

/// What is subtracted from the returns.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Baseline {
    /// Nothing, from the return of a whole episode
    None,
    /// The mean of the whole episodes' returns
    Mean,
    /// For each parameter the constant that leaves the least variance
    Optimal,
    /// A learned value of the state, from the return that follows it
    Value,
}

/// The preferences h(s, ·; θ), whose softmax is the policy, or the value v_w(s); and its optimiser.
struct Network {
    hidden: Option<Linear>, // [observation_dim] → [hidden_size]
    output: Linear,         // [hidden_size], or [observation_dim] without a hidden layer → [outputs]
    parameters: VarMap,
    adam: Adam, // its step size is that of plain steps, too
}

impl Network {
    /// `gain` scales the output layer: 0.01 makes the first policy almost uniform, 1 suits a value.
    fn new(sizes: [usize; 3], gain: f64, learning_rate: f64, seed: u64, device: &Device) -> Result<Self> {
        let [observation_dim, hidden_size, outputs] = sizes;
        let parameters = VarMap::new(seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, device);
        let (hidden, output) = if hidden_size == 0 {
            let shape = (outputs, observation_dim); // without a bias, and zero at first
            let weight = vb.pp("output").get_with_hints(shape, "weight", Init::Const(0.0))?;
            (None, Linear::new(weight, Tensor::zeros(outputs, DType::F32, vb.device())?))
        } else {
            let sqrt2 = std::f64::consts::SQRT_2;
            let hidden = linear_orthogonal(observation_dim, hidden_size, sqrt2, vb.pp("hidden"))?;
            (Some(hidden), linear_orthogonal(hidden_size, outputs, gain, vb.pp("output"))?)
        };
        let adam = Adam::new(&parameters, learning_rate)?;
        Ok(Self { hidden, output, parameters, adam })
    }

    /// Observations `[batch, observation_dim]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        Ok(match &self.hidden {
            Some(hidden) => self.output.forward(&hidden.forward_tanh(observations)?)?,
            None => self.output.forward(observations)?,
        })
    }

    /// One step down the gradient of `loss`: Adam's, or a plain one.
    fn descend(&mut self, loss: &Tensor, plain: bool) -> Result<()> {
        if !plain {
            return Ok(self.adam.backward_step(loss)?);
        }
        let gradients = backward(loss)?;
        for parameter in self.parameters.all_vars() {
            // θ ← θ − α ∇loss
            let gradient = gradients.get(&parameter).context("a parameter without a gradient")?;
            parameter.set(&(parameter.as_detached_tensor() - (gradient * self.adam.learning_rate)?)?)?;
        }
        Ok(())
    }
}

/// One episode. How it ends makes no difference here: there is nothing to bootstrap from.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Episode {
    observations: Vec<f32>, // s_t, [length, observation_dim]
    actions: Vec<u32>,      // a_t, [length]
    rewards: Vec<f32>,      // r_t, [length]
    returns: Vec<f32>,      // G_t, [length], once it is over
    discounts: Vec<f32>,    // γᵗ, or 1 without --discount-gradient, [length], once it is over
}

impl Episode {
    /// Stores the step that the one environment of `envs` has just made from `observation` by `action`.
    fn store(&mut self, observation: &[f32], action: &[u32], envs: &VecEnv, args: &Args) {
        self.observations.extend_from_slice(observation);
        self.actions.extend_from_slice(action);
        self.rewards.extend_from_slice(envs.rewards());
        if envs.terminated()[0] || envs.truncated()[0] {
            self.finish(args);
        }
    }

    fn finish(&mut self, args: &Args) {
        let gamma = args.gamma as f32;
        self.returns = self.rewards.clone();
        for t in (1..self.rewards.len()).rev() {
            self.returns[t - 1] += gamma * self.returns[t]; // G_{t−1} = r_{t−1} + γ G_t
        }
        let discount = if args.discount_gradient { gamma } else { 1.0 };
        self.discounts = (0..self.rewards.len()).map(|t| discount.powi(t as i32)).collect();
    }

    /// Each step alone.
    fn steps(&self) -> impl Iterator<Item = Self> {
        let rows = self.observations.chunks_exact(self.observations.len() / self.rewards.len());
        rows.enumerate().map(|(t, observation)| Self {
            observations: observation.to_vec(),
            actions: vec![self.actions[t]],
            rewards: vec![self.rewards[t]],
            returns: vec![self.returns[t]],
            discounts: vec![self.discounts[t]],
        })
    }
}

/// What one update found, the last of several, before it moved the parameters.
#[derive(Default)]
struct Losses {
    policy_loss: f32, // minus what the estimate is the gradient of; with b = 0 if that is constant
    value_loss: f32,
    entropy: f32,
}

/// The policy, the state values and how they learn.
struct ReinforceBaseline {
    policy: Network, // h(s, ·; θ), [num_actions]
    value: Network,  // v_w(s), [1]
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl ReinforceBaseline {
    fn new(observation_dim: usize, num_actions: usize, args: &Args, rng: &mut Rng) -> Result<Self> {
        let (device, hidden) = (args.run.device()?, args.hidden_size);
        let sizes = [observation_dim, hidden, num_actions];
        let policy = Network::new(sizes, 0.01, args.policy_lr, rng.random(), &device)?;
        let value = Network::new([observation_dim, hidden, 1], 1.0, args.value_lr, rng.random(), &device)?;
        if !args.initial_preferences.is_empty() {
            let preferences: Vec<f32> = args.initial_preferences.iter().map(|&p| p as f32).collect();
            let preferences = Tensor::from_vec(preferences, (num_actions, 1), &device)?;
            for weight in policy.parameters.all_vars() {
                weight.set(&preferences.broadcast_as(weight.shape())?.contiguous()?)?;
            }
        }
        Ok(Self { policy, value, observation_dim, args: args.clone(), device })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        let batch = observations.len() / self.observation_dim;
        Ok(Tensor::from_slice(observations, (batch, self.observation_dim), &self.device)?)
    }

    /// π_θ(·|s) for each observation.
    fn distribution(&self, observations: &[f32]) -> Result<Categorical> {
        Ok(Categorical::new(&self.policy.forward(&self.tensor(observations)?)?)?)
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        Ok(self.distribution(observations)?.sample(rng)?.to_vec1()?)
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(self.distribution(observations)?.mode()?.to_vec1()?)
    }

    /// δ_t = G_t − v_w(s_t), `[length]`.
    fn deltas(&self, episode: &Episode) -> Result<Tensor> {
        let values = self.value.forward(&self.tensor(&episode.observations)?)?.squeeze(1)?;
        Ok((Tensor::new(&*episode.returns, &self.device)? - values)?)
    }

    /// Each episode's estimate of ∇J(θ), `[N, num_parameters]`, and the policy's losses.
    fn estimates(&self, episodes: &[Episode], baseline: Baseline) -> Result<(Tensor, Losses)> {
        let (n, mut losses) = (episodes.len() as f32, Losses::default());
        let (mut gradients, mut returns) = (Vec::new(), Vec::new());
        for episode in episodes {
            let r = episode.returns[0]; // R(τ) = G_0
            let (weights, scale) = match baseline {
                Baseline::Value => {
                    let discounts = Tensor::new(&*episode.discounts, &self.device)?;
                    ((discounts * self.deltas(episode)?)?.detach(), 1.0)
                }
                _ => (Tensor::ones(episode.rewards.len(), DType::F32, &self.device)?, r),
            };
            // Σ_t γᵗ δ_t ln π_θ(a_t|s_t), or Σ_t ln π_θ(a_t|s_t)
            let policy = self.distribution(&episode.observations)?;
            let log_probs = policy.log_prob(&Tensor::new(&*episode.actions, &self.device)?)?;
            let objective = (weights * log_probs)?.sum_all()?;
            losses.policy_loss -= scale * objective.to_scalar::<f32>()? / n;
            losses.entropy += policy.entropy()?.mean_all()?.to_scalar::<f32>()? / n;
            let of_parameters = backward(&objective)?;
            gradients.push(self.flat(|parameter| of_parameters.get(parameter).cloned())?);
            returns.push(r);
        }
        let gradients = Tensor::stack(&gradients, 0)?; // with a constant baseline g(τ), [N, num_parameters]
        let returns = Tensor::new(returns, &self.device)?.unsqueeze(1)?; // R(τ), [N, 1]
        let b = match baseline {
            Baseline::Value => return Ok((gradients, losses)),
            Baseline::None => returns.zeros_like()?,
            Baseline::Mean => returns.mean_keepdim(0)?, // [1, 1]
            Baseline::Optimal => optimal_baselines(&gradients, &returns)?,
        };
        // g_k(τ) (R(τ) − b_k)
        Ok((gradients.broadcast_mul(&returns.broadcast_sub(&b)?)?, losses))
    }

    /// All that `of` gives for the parameters of the policy, in one row `[num_parameters]`.
    fn flat(&self, of: impl Fn(&Tensor) -> Option<Tensor>) -> Result<Tensor> {
        let parameters = self.policy.parameters.all_vars();
        let flat =
            parameters.iter().map(|p| Ok(of(p).context("a parameter without a gradient")?.flatten_all()?));
        Ok(Tensor::cat(&flat.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// One step of the policy and, with `--baseline value`, of the values; or one of each for each t.
    fn update(&mut self, episodes: &[Episode]) -> Result<Losses> {
        let parts: Vec<Vec<Episode>> = match self.args.sequential {
            // The book's order: δ_t and ∇ln π are as the steps before have left them.
            true => episodes.iter().flat_map(Episode::steps).map(|step| vec![step]).collect(),
            false => vec![episodes.to_vec()],
        };
        let mut last = Losses::default();
        for part in parts {
            // Easy to miss: δ_t is of the values before their update.
            let (estimates, losses) = self.estimates(&part, self.args.baseline)?;
            let value_loss =
                if self.args.baseline == Baseline::Value { self.update_value(&part)? } else { 0.0 };
            self.update_policy(&estimates)?;
            last = Losses { value_loss, ..losses };
        }
        Ok(last)
    }

    /// One step of v_w towards the returns.
    fn update_value(&mut self, episodes: &[Episode]) -> Result<f32> {
        // (1/N) Σ_episodes Σ_t ½ (G_t − v_w(s_t))², whose gradient is −(1/N) Σ_episodes Σ_t δ_t ∇v_w(s_t)
        let mut squares = Tensor::zeros((), DType::F32, &self.device)?;
        for episode in episodes {
            squares = (squares + self.deltas(episode)?.sqr()?.sum_all()?)?;
        }
        let loss = (squares * (0.5 / episodes.len() as f64))?;
        self.value.descend(&loss, self.args.sequential)?;
        Ok(loss.to_scalar()?)
    }

    /// One step of the policy along the mean of the estimates, `[N, num_parameters]`.
    fn update_policy(&mut self, estimates: &Tensor) -> Result<()> {
        let gradient = estimates.mean(0)?; // c, [num_parameters]
        // Σ_k c_k θ_k, to be maximised: its gradient is c.
        let objective = (gradient * self.flat(|parameter| Some(parameter.clone()))?)?.sum_all()?;
        self.policy.descend(&objective.neg()?, self.args.sequential)
    }

    /// Σ_k Var[ ∂J/∂θ_k ] of a single episode's estimate, from at least two.
    fn gradient_variance(&self, episodes: &[Episode], baseline: Baseline) -> Result<f64> {
        let (estimates, _) = self.estimates(episodes, baseline)?;
        let squares = estimates.broadcast_sub(&estimates.mean_keepdim(0)?)?.sqr()?.sum_all()?;
        Ok(f64::from(squares.to_scalar::<f32>()?) / (episodes.len() - 1) as f64)
    }
}

/// The `E[ g_k² R ] / E[ g_k² ]`, `[1, num_parameters]`, of g, `[N, num_parameters]`, and R, `[N, 1]`.
fn optimal_baselines(scores: &Tensor, returns: &Tensor) -> Result<Tensor> {
    let squares = scores.sqr()?;
    let weighted = squares.broadcast_mul(returns)?.sum_keepdim(0)?;
    // Where g_k is 0 in all episodes, any constant will do.
    Ok((weighted / squares.sum_keepdim(0)?.maximum(f64::from(f32::MIN_POSITIVE))?)?)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    // One environment: of several, the short episodes would end first, the long ones be an older policy's.
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("reinforce_baseline")?;
    let (n, preferences) = (args.batch_episodes, args.initial_preferences.len());
    if preferences > 0 && (preferences != num_actions || args.hidden_size > 0) {
        return invalid(format!(
            "--initial-preferences: {preferences} numbers; {num_actions} and --hidden-size 0 are needed"
        ));
    }
    if n < 2 && (args.variance_every > 0 || matches!(args.baseline, Baseline::Mean | Baseline::Optimal)) {
        return invalid(format!("--batch-episodes {n}: --variance-every, mean and optimal need 2 or more"));
    }
    if args.sequential && args.baseline != Baseline::Value {
        return invalid("--sequential: --baseline value is needed");
    }
    let mut rng = learner_rng(args.run.seed);
    let mut reinforce = ReinforceBaseline::new(observation_dim, num_actions, &args, &mut rng)?;
    let (mut running, mut episodes) = (Episode::default(), Vec::new());
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;
    let (mut updates, mut global_step) = (0_usize, 0);
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("policy_parameters", &mut reinforce.policy.parameters),
                ("policy_optimizer", &mut reinforce.policy.adam),
                ("value_parameters", &mut reinforce.value.parameters),
                ("value_optimizer", &mut reinforce.value.adam),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("running", &mut running),
                ("episodes", &mut episodes),
                ("updates", &mut updates),
            ],
        )?;

        // Run the policy for a step, and for more until N episodes are over, terminated or truncated.
        let observation = envs.observations().to_vec(); // [1, observation_dim]
        let action = reinforce.act(&observation, &mut rng)?;
        envs.step(&action)?;
        running.store(&observation, &action, &envs, &args);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if !envs.episodes().is_empty() {
            episodes.push(std::mem::take(&mut running));
        }
        if episodes.len() < args.batch_episodes {
            continue;
        }

        // Learn from them, and forget them: they are an old policy's now.
        updates += 1;
        if args.variance_every > 0 && updates.is_multiple_of(args.variance_every) {
            for baseline in Baseline::value_variants() {
                let name = format!("variance/{baseline:?}").to_lowercase();
                run.log(global_step, &name, reinforce.gradient_variance(&episodes, *baseline)?)?;
            }
        }
        let losses = reinforce.update(&episodes)?;
        episodes.clear();
        run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
        run.log(global_step, "losses/value_loss", losses.value_loss)?;
        run.log(global_step, "losses/entropy", losses.entropy)?;
    }

    let (policy, value) = (&mut reinforce.policy.parameters, &mut reinforce.value.parameters);
    run.save_or_load_model(&mut [("policy", policy as _), ("value", value as _)])?;
    rng = learner_rng(args.run.seed); // from its start, so that `--eval-only` draws the same actions
    run.evaluate(|observations| match args.greedy_eval {
        true => reinforce.act_greedily(observations),
        false => reinforce.act(observations, &mut rng),
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
