//! # Proximal policy optimisation (PPO), discrete actions
//!
//! Schulman, Wolski, Dhariwal, Radford & Klimov (2017), arXiv:1707.06347.
//!
//! A policy-gradient step is only right for the policy that gathered the data, so plain policy
//! gradient throws its data away after one step. PPO takes many steps on the same data and keeps
//! the policy near the one that gathered it: once the probability of an action has changed by
//! more than a factor 1 ± ε in the direction that its advantage asks for, the objective is flat
//! and there is nothing more to gain.
//!
//! With the probability ratio `r_t(θ) = π_θ(a_t|s_t) / π_θ_old(a_t|s_t)` it maximises
//!
//! ```text
//! L(θ) = E_t[ min( r_t(θ) Â_t , clip(r_t(θ), 1 − ε, 1 + ε) Â_t ) ]   the clipped surrogate
//!        − c_v E_t[ ½ (V_θ(s_t) − R̂_t)² ]                           the critic
//!        + c_e E_t[ H(π_θ(·|s_t)) ]                                  the entropy bonus
//! ```
//!
//! where the advantages are generalised advantage estimates (Schulman et al. 2015,
//! arXiv:1506.02438), an exponential average of n-step advantages with decay λ:
//!
//! ```text
//! δ_t = r_t + γ V(s_{t+1}) − V(s_t)          V(s_{t+1}) = 0 where the episode terminated
//! Â_t = δ_t + γ λ Â_{t+1}                    Â_{t+1} = 0 where the episode ended in any way
//! R̂_t = Â_t + V(s_t)
//! ```
//!
//! Where a time limit merely truncates an episode, the state it was cut at still has a value, and
//! δ_t bootstraps from it (Pardo et al. 2018, arXiv:1712.00378).
//!
//! Run `cargo run -p ppo`: 475 or more on CartPole-v1 after 100,000 steps in about a second
//! (475 is the return at which Gymnasium registers the task as solved).

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, Space, VecEnv, invalid, rng};
use common::nn::{Activation, Adam, Categorical, Conv2d, Linear, VarBuilder, VarMap};
use common::nn::{conv2d_orthogonal, linear_orthogonal};
use common::run::Run;
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::Serialize;
use std::process::ExitCode;

/// Proximal policy optimisation with clipping, for discrete actions
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("100000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam, α
    #[arg(long, default_value_t = 2.5e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Parallel environments
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps in each environment between updates
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
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
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    num_minibatches: usize,
    /// Passes over a batch
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    update_epochs: usize,
    /// Normalise advantages in each minibatch
    #[arg(long, default_value_t = true)]
    norm_adv: bool,
    /// How far a probability ratio may move, ε
    #[arg(long, default_value_t = 0.2, value_parser = cli::non_negative)]
    clip_coef: f64,
    /// Clip the critic's change as well (no gain was found: Andrychowicz et al. 2021,
    /// arXiv:2006.05990)
    #[arg(long, default_value_t = false)]
    clip_vloss: bool,
    /// Weight of the entropy bonus, c_e
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
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

/// A network of tanh units: two layers of 64 for vectors; for images 16 filters of 3 × 3 and a
/// layer of 128 (the size that MinAtar's authors use: Young & Tian 2019, arXiv:1903.03176).
struct Network {
    convolution: Option<Conv2d>, // [height, width, channels] → [height − 2, width − 2, 16]
    hidden: Vec<Linear>,         // → [64] → [64], or → [128]
    output: Linear,              // → [outputs]
    shape: Vec<usize>,           // of one observation
    device: Device,
}

impl Network {
    /// `gain` scales the output layer: 0.01 makes the first policy almost uniform (Andrychowicz et
    /// al. 2021), 1 suits a value.
    fn new(observations: &Space, outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let (sqrt2, tanh) = (std::f64::consts::SQRT_2, Activation::Tanh);
        let (mut convolution, mut inputs, mut sizes) = (None, observations.size(), vec![64, 64]);
        if let [height, width, channels] = observations.shape()[..] {
            let layer = conv2d_orthogonal(channels, 16, 3, sqrt2, Default::default(), vb.pp("convolution"))?;
            convolution = Some(layer.with_activation(tanh));
            (inputs, sizes) = ((height - 2) * (width - 2) * 16, vec![128]);
        }
        let mut hidden = Vec::new();
        for (i, size) in sizes.into_iter().enumerate() {
            let layer = linear_orthogonal(inputs, size, sqrt2, vb.pp(format!("hidden{i}")))?;
            hidden.push(layer.with_activation(tanh));
            inputs = size;
        }
        let output = linear_orthogonal(inputs, outputs, gain, vb.pp("output"))?;
        Ok(Self { convolution, hidden, output, shape: observations.shape(), device: vb.device().clone() })
    }

    /// Observations `[batch, …shape]`, flattened, to `[batch, outputs]`.
    fn forward(&self, observations: &[f32]) -> Result<Tensor> {
        let batch = observations.len() / self.shape.iter().product::<usize>();
        let mut x = Tensor::from_slice(observations, [&[batch], &self.shape[..]].concat(), &self.device)?;
        if let Some(convolution) = &self.convolution {
            x = convolution.forward(&x)?.flatten_from(1)?;
        }
        for layer in &self.hidden {
            x = layer.forward(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }

    /// The same as plain numbers, `[batch, outputs]` flattened.
    fn apply(&self, observations: &[f32]) -> Result<Vec<f32>> {
        Ok(self.forward(observations)?.flatten_all()?.to_vec1()?)
    }
}

/// One batch of experience, `[num_steps, num_envs]` row-major throughout.
#[derive(Default)]
struct Rollout {
    observations: Vec<f32>,         // [num_steps, num_envs, observation_dim]
    actions: Vec<u32>,              // a_t
    log_probs: Vec<f32>,            // ln π_θ_old(a_t|s_t)
    rewards: Vec<f32>,              // r_t
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
/// ended in: 0 where it terminated; where it was merely truncated, the critic's value of it.
fn final_values(critic: &Network, envs: &VecEnv) -> Result<Vec<Option<f32>>> {
    let last_states = envs.final_observations().chunks_exact(envs.observation_dim());
    let endings = envs.terminated().iter().zip(envs.truncated()).zip(last_states);
    endings
        .map(|((&terminated, &truncated), last_state)| match (terminated, truncated) {
            (true, _) => Ok(Some(0.0)),
            (false, true) => Ok(Some(critic.apply(last_state)?[0])),
            (false, false) => Ok(None),
        })
        .collect()
}

/// Draws a ~ softmax(logits) for each row; returns the actions and ln π(a).
fn sample(logits: &[f32], num_actions: usize, rng: &mut Rng) -> (Vec<u32>, Vec<f32>) {
    let rows = logits.chunks_exact(num_actions);
    rows.map(|row| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = row.iter().map(|z| (z - max).exp()).sum();
        let mut left = rng.random::<f32>() * total;
        let chosen = row.iter().position(|z| {
            left -= (z - max).exp();
            left < 0.0
        });
        let action = chosen.unwrap_or(num_actions - 1); // where rounding leaves nothing to the last
        (action as u32, row[action] - max - total.ln())
    })
    .unzip()
}

/// The most probable action of each row.
fn greedy(logits: &[f32], num_actions: usize) -> Vec<u32> {
    let best = |row: &[f32]| (0..num_actions).fold(0, |best, a| if row[a] > row[best] { a } else { best });
    logits.chunks_exact(num_actions).map(|row| best(row) as u32).collect()
}

/// −E[ min(r Â, clip(r, 1 − ε, 1 + ε) Â) ], from ln r `[batch]` and Â `[batch]`.
fn policy_loss(log_ratio: &Tensor, advantages: &Tensor, clip_coef: f64) -> Result<Tensor> {
    // Only one end of the range can be the minimum, that to which the advantage points: (1 + ε) Â for
    // a positive and (1 − ε) Â for a negative one, Â + ε |Â| both. A ratio past it gets no gradient;
    // one that moved the other way, however far, is still pulled back.
    let bound = (advantages + (advantages.abs()? * clip_coef)?)?;
    Ok((log_ratio.exp()? * advantages)?.minimum(&bound)?.mean_all()?.neg()?)
}

/// ½ E[ (V(s) − R̂)² ], from tensors `[batch, 1]`; with `clip`, the larger of that and the loss of the
/// value moved at most `clip` from `old_values`.
fn value_loss(values: &Tensor, returns: &Tensor, old_values: &Tensor, clip: Option<f64>) -> Result<Tensor> {
    let unclipped = (values - returns)?.sqr()?;
    let losses = match clip {
        None => unclipped,
        Some(clip) => {
            let moved = (values - old_values)?.clamp(-clip, clip)?;
            unclipped.maximum(&((old_values + moved)? - returns)?.sqr()?)?
        }
    };
    Ok((losses.mean_all()? * 0.5)?)
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
    let (num_envs, num_steps) = (args.num_envs, args.num_steps);
    let batch_size = num_envs * num_steps;
    if !batch_size.is_multiple_of(args.num_minibatches) {
        let n = args.num_minibatches;
        return invalid(format!(
            "--num-minibatches {n}: must divide --num-envs × --num-steps = {batch_size}"
        ));
    }
    let minibatch_size = batch_size / args.num_minibatches;
    let mut envs = VecEnv::make(&args.run.env_id, num_envs, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("ppo")?;
    let device = args.run.device()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = rng(args.run.seed, u64::MAX);
    let mut parameters = VarMap::new(args.run.seed);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
    let space = envs.spec().observation_space.clone();
    let actor = Network::new(&space, num_actions, 0.01, vb.pp("actor"))?; // logits of π(·|s)
    let critic = Network::new(&space, 1, 1.0, vb.pp("critic"))?; // V(s)
    // ε = 1e-5 as in OpenAI's baselines; PyTorch's and the paper's default is 1e-8.
    let mut optimizer =
        Adam::new(&parameters, args.learning_rate)?.with_eps(1e-5).with_max_grad_norm(args.max_grad_norm);
    let mut indices: Vec<usize> = (0..batch_size).collect();

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut parameters),
                ("optimizer", &mut optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("indices", &mut indices),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            optimizer.learning_rate = remaining * args.learning_rate;
        }

        // Act: num_steps steps in each environment with the current policy.
        let mut rollout = Rollout::default();
        for _ in 0..num_steps {
            let (actions, log_probs) = sample(&actor.apply(envs.observations())?, num_actions, &mut rng);
            rollout.observations.extend_from_slice(envs.observations());
            envs.step(&actions)?;
            global_step += num_envs;
            run.episodes(global_step, envs.episodes())?;
            rollout.actions.extend(actions);
            rollout.log_probs.extend(log_probs);
            rollout.rewards.extend_from_slice(envs.rewards());
            rollout.final_values.extend(final_values(&critic, &envs)?);
        }
        rollout.values = critic.apply(&rollout.observations)?;
        rollout.values.extend(critic.apply(envs.observations())?);

        // Learn: several epochs of minibatches of that batch.
        let advantages = rollout.advantages(num_envs, args.gamma as f32, args.gae_lambda as f32);
        let returns: Vec<f32> = advantages.iter().zip(&rollout.values).map(|(a, v)| a + v).collect();
        let (mut losses, mut approx_kl, mut clipped) = ([0.0_f32; 3], 0.0, Vec::new());
        'epochs: for _ in 0..args.update_epochs {
            indices.shuffle(&mut rng);
            for minibatch in indices.chunks_exact(minibatch_size) {
                let select = |values: &[f32]| -> Vec<f32> { minibatch.iter().map(|&i| values[i]).collect() };
                let tensor = |values: Vec<f32>| Tensor::from_vec(values, minibatch_size, &device);
                let mut observations = Vec::with_capacity(minibatch_size * observation_dim);
                for &i in minibatch {
                    observations
                        .extend_from_slice(&rollout.observations[i * observation_dim..][..observation_dim]);
                }
                let actions: Vec<u32> = minibatch.iter().map(|&i| rollout.actions[i]).collect();
                let actions = Tensor::from_vec(actions, minibatch_size, &device)?;
                let mut minibatch_advantages = select(&advantages);
                if args.norm_adv {
                    normalise(&mut minibatch_advantages);
                }

                let policy = Categorical::new(&actor.forward(&observations)?)?;
                let log_ratio = (policy.log_prob(&actions)? - tensor(select(&rollout.log_probs))?)?;
                let policy_loss = policy_loss(&log_ratio, &tensor(minibatch_advantages)?, args.clip_coef)?;
                let entropy = policy.entropy()?.mean_all()?;
                let column = |values: &[f32]| Tensor::from_vec(select(values), (minibatch_size, 1), &device);
                let value_loss = value_loss(
                    &critic.forward(&observations)?,
                    &column(&returns)?,
                    &column(&rollout.values)?,
                    args.clip_vloss.then_some(args.clip_coef),
                )?;
                // The entropy is a bonus: more of it makes the loss smaller.
                let loss = ((&policy_loss - (&entropy * args.ent_coef)?)? + (&value_loss * args.vf_coef)?)?;
                optimizer.backward_step(&loss)?;

                // KL(π_old ‖ π) ≈ E[ (r − 1) − ln r ], never negative (Schulman 2020, "Approximating
                // KL divergence").
                let log_ratio: Vec<f32> = log_ratio.to_vec1()?;
                let change: Vec<f32> = log_ratio.iter().map(|l| l.exp_m1()).collect(); // r − 1
                approx_kl =
                    change.iter().zip(&log_ratio).map(|(c, l)| c - l).sum::<f32>() / change.len() as f32;
                let outside = change.iter().filter(|c| f64::from(c.abs()) > args.clip_coef).count();
                clipped.push(outside as f64 / minibatch_size as f64);
                losses = [policy_loss.to_scalar()?, value_loss.to_scalar()?, entropy.to_scalar()?];
            }
            if args.target_kl.is_some_and(|target| f64::from(approx_kl) > target) {
                break 'epochs;
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
        run.log(global_step, "losses/clipfrac", clipped.iter().sum::<f64>() / clipped.len() as f64)?;
        run.log(global_step, "losses/explained_variance", 1.0 - residual / total.max(f32::MIN_POSITIVE))?;
    }

    run.save_or_load_model(&mut parameters)?;
    run.evaluate(|observations| Ok(greedy(&actor.apply(observations)?, num_actions)))?;
    Ok(())
}

#[cfg(test)]
mod tests;
