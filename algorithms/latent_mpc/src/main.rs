//! # Model-predictive control in a latent space (latent MPC)
//!
//! The latent-space models of Levine's CS285 (lecture notes, section 5.3.4 and algorithm 26), after Watter,
//! Springenberg, Boedecker & Riedmiller (2015), "Embed to control", arXiv:1506.07365.
//!
//! Often what is seen is not the state: the pendulum's angle says nothing of its velocity. So an encoder that
//! makes a latent state z of the last few observations o is learned with a dynamics model, which goes from one
//! to the next, a reward model, and an observation model (decoder), which gives o back. Actions are planned in
//! z by the cross-entropy method (see `cem`), anew after every step, and improve the models in turn.
//!
//! With Gaussians of unit variance the negative logarithm of the likelihood, without its constants, is the
//! first L, and its gradient flows through z' too. With `--stochastic` the encoder is a normal distribution
//! q(z|o), the dynamics model is one too, p(z'|z, a), and it is the second.
//!
//! ```text
//! L = E[ ½ ‖o − ô(z)‖² + ½ (r − r̂(z, a))² + ½ ‖z' − f(z, a)‖² ]        z = g(o), z' = g(o')
//! L = E[ ½ ‖o − ô(z)‖² + ½ ‖o' − ô(z')‖² + ½ (r − r̂(z, a))²        z ~ q(·|o), z' ~ q(·|o')
//!        + KL( q(·|o') ‖ p(·|z, a) ) + β KL( q(·|o) ‖ N(0, I) ) ]
//! ```
//!
//! Models that fit single steps are wrong about plans: what they predict leaves the latent states that the
//! encoder makes. So L is the mean over K steps in a row: only at the first is z as above, then it is what
//! was predicted, f(z, a) or p's mean (Hansen, Wang & Su 2022, TD-MPC, arXiv:2203.04955). A plan for H steps
//! is to maximise Σ_k r̂(z_k, a_k) with z_0 = g(o), z_{k+1} = f(z_k, a_k), or the means.
//!
//! Deviations: o is the newest observation and how it differs from those before it, enlarged; the dynamics
//! model predicts z' − z (Nagabandi et al. 2018, arXiv:1708.02596). Embed to control's is locally linear, its
//! planner iLQR with a cost that is given, o' decoded from the predicted z', λ KL( p ‖ q ) and β = 1.
//! Algorithm 26 has K = 1 and fits its models every N steps, here they improve at each. TD-MPC has values at
//! a plan's end, targets without gradient from an averaged encoder, weights λᵏ and no decoder. Plans know of
//! no end of an episode, and in training an episode's first one begins with what is left of the last one's.
//!
//! Run `cargo run -p latent_mpc`: about −200 (17 of 18 seeds reach −300, one ends at −419) in half a minute
//! on PartialPendulum-v0, Pendulum-v1 without its velocity, after 4,500 steps. With it −137 is the best possible,
//! by dynamic programming on a grid; random actions reach −1236. `reconstructions.png` shows the last 200 steps.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::wrappers::{FrameStack, RescaleAction};
use common::envs::{self, Env, Rng, VecEnv, invalid, learner_rng, persist::Fixed, persist::Persist};
use common::nn::{Adam, Linear, VarBuilder, VarMap, linear};
use common::{Run, cli, cli::RunArgs, plot::Chart, plot::Curve};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use std::{cell::RefCell, path::Path, process::ExitCode};

/// Model-predictive control with models of what is seen: encoder, dynamics, reward and observations
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("PartialPendulum-v0")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("4500")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// How many observations the encoder sees
    #[arg(long, default_value_t = 2, value_parser = cli::positive)]
    window: usize,
    /// What differences between observations are multiplied by, to count as much as observations do
    #[arg(long, default_value_t = 10.0, value_parser = cli::above_zero)]
    difference_scale: f64,
    /// Size of the latent state
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    latent_size: usize,
    /// Size of both hidden layers of each model
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    hidden_size: usize,
    /// Encoder and dynamics are distributions
    #[arg(long, default_value_t = false)]
    stochastic: bool,
    /// Weight of the prior on a stochastic encoder, β
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    beta: f64,
    /// The dynamics model predicts by how much the latent state changes
    #[arg(long, default_value_t = true)]
    predict_differences: bool,
    /// Step size of Adam at step 0, falling linearly to zero at --total-timesteps, in random steps too
    #[arg(long, default_value_t = 2e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Transitions in a row that the models predict in an update from the first one's observation, K
    #[arg(long, default_value_t = 5, value_parser = cli::positive)]
    rollout: usize,
    /// Such rows of transitions drawn for one update
    #[arg(long, default_value_t = 32, value_parser = cli::positive)]
    batch_size: usize,
    /// Environment steps with random actions at first
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Updates for each step; those of the random steps are made up for at their end
    #[arg(long, default_value_t = 2, value_parser = cli::positive)]
    updates: usize,
    /// Steps that a plan looks ahead, H
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    horizon: usize,
    /// Plans tried in each round, N
    #[arg(long, default_value_t = 32, value_parser = cli::positive)]
    population: usize,
    /// The best of them, to which the distribution is refitted, M
    #[arg(long, default_value_t = 6, value_parser = cli::positive)]
    elites: usize,
    /// Rounds for each action
    #[arg(long, default_value_t = 2, value_parser = cli::positive)]
    iterations: usize,
}

/// Two hidden layers of rectified linear units. All four models are one of these.
struct Mlp {
    hidden1: Linear, // [inputs] → [hidden_size]
    hidden2: Linear, // → [hidden_size]
    output: Linear,  // → [outputs]
}

impl Mlp {
    fn new(inputs: usize, hidden_size: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            hidden1: linear(inputs, hidden_size, vb.pp("hidden1"))?,
            hidden2: linear(hidden_size, hidden_size, vb.pp("hidden2"))?,
            output: linear(hidden_size, outputs, vb.pp("output"))?,
        })
    }

    /// `[batch, inputs]` to `[batch, outputs]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.hidden2.forward_relu(&self.hidden1.forward_relu(x)?)?;
        Ok(self.output.forward(&x)?)
    }
}

/// Diagonal normal distributions over latent states.
struct Gaussian {
    mean: Tensor,    // μ, [batch, latent_size]
    log_std: Tensor, // ln σ, [batch, latent_size]
}

impl Gaussian {
    /// z = μ + σ ε, `[batch, latent_size]`
    fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        Ok((&self.mean + (self.log_std.exp()? * noise)?)?)
    }

    /// E[ KL( self ‖ other ) ]: the sum over dimensions, the mean over rows
    fn kl(&self, other: &Self) -> Result<Tensor> {
        // KL = Σ ½ ( σ²/σ'² + (μ − μ')²/σ'² − 1 ) − ln σ/σ'
        let log_ratio = (&self.log_std - &other.log_std)?; // ln σ/σ'
        let distance = ((&self.mean - &other.mean)? / other.log_std.exp()?)?;
        let rows = (((&log_ratio * 2.0)?.exp()? + distance.sqr()?)?.affine(0.5, -0.5)? - log_ratio)?;
        Ok(rows.sum(1)?.mean_all()?)
    }
}

/// Transitions: numbers where they are kept, as they followed each other, tensors where they are learned from.
#[derive(Serialize, Deserialize, Default)]
struct Transitions<Column> {
    observations: Column,      // stacked, [len, window · dim]
    actions: Column,           // a, [len, action_dim]
    rewards: Column,           // r, [len, 1]
    next_observations: Column, // stacked, an episode's true last one at its end, [len, window · dim]
    ends: Column,              // 1 where an episode ended, else 0, [len, 1]
}

type ReplayBuffer = Transitions<Vec<f32>>;
type Batch = Transitions<Tensor>;

impl ReplayBuffer {
    /// Stores the step that `envs`, a single environment, has just made.
    fn store(&mut self, observation: &[f32], action: &[f32], envs: &VecEnv) {
        self.observations.extend_from_slice(observation);
        self.actions.extend_from_slice(action);
        self.rewards.extend_from_slice(envs.rewards());
        // Easy to miss: after an episode's end `envs.observations()` are the next one's.
        self.next_observations.extend_from_slice(envs.final_observations());
        self.ends.push(if envs.episodes().is_empty() { 0.0 } else { 1.0 });
    }

    /// The transitions `rows`.
    fn select(&self, rows: &[usize], device: &Device) -> Result<Batch> {
        let gather = |column: &[f32]| {
            let width = column.len() / self.rewards.len();
            let values = rows.iter().flat_map(|row| &column[row * width..(row + 1) * width]);
            Tensor::from_vec(values.copied().collect(), (rows.len(), width), device)
        };
        let (observations, actions) = (gather(&self.observations)?, gather(&self.actions)?);
        let (rewards, ends) = (gather(&self.rewards)?, gather(&self.ends)?);
        let next_observations = gather(&self.next_observations)?;
        Ok(Batch { observations, actions, rewards, next_observations, ends })
    }
}

/// What [`LatentMpc::update`] returns: the terms of L, the prior's without β, and L.
const LOSSES: [&str; 5] = ["observation_loss", "reward_loss", "dynamics_loss", "prior_loss", "loss"];

/// The four models, how they learn, and planning with them. Actions are in units of their bounds: [-1, 1].
struct LatentMpc {
    encoder: Mlp,       // o to z; or μ and ln σ, [latent_size] each
    dynamics: Mlp,      // (z, a) to the same
    reward: Mlp,        // (z, a) to r̂, [1]
    decoder: Mlp,       // z to ô
    parameters: VarMap, // of all four
    optimizer: Adam,    // of all four
    action_dim: usize,
    args: Args,
    device: Device,
}

impl LatentMpc {
    fn new((observation_dim, action_dim): (usize, usize), args: &Args) -> Result<Self> {
        let (device, parameters) = (args.run.device()?, VarMap::new(args.run.seed));
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let model = |inputs, outputs, name| Mlp::new(inputs, args.hidden_size, outputs, vb.pp(name));
        let (z, za) = (args.latent_size, args.latent_size + action_dim);
        let heads = if args.stochastic { 2 * z } else { z };
        Ok(Self {
            encoder: model(observation_dim, heads, "encoder")?,
            dynamics: model(za, heads, "dynamics")?,
            reward: model(za, 1, "reward")?,
            decoder: model(z, observation_dim, "decoder")?,
            optimizer: Adam::new(&parameters, args.learning_rate)?,
            parameters,
            action_dim,
            args: args.clone(),
            device,
        })
    }

    /// o: stacked observations, oldest first, to the newest and its differences from the others, enlarged,
    /// `[batch, window · dim]` both.
    fn observe(&self, stacked: &Tensor) -> Result<Tensor> {
        let (window, scale) = (self.args.window, self.args.difference_scale);
        let frames = stacked.reshape((stacked.dim(0)?, window, ()))?;
        let newest = frames.narrow(1, window - 1, 1)?;
        let differences = (newest.broadcast_sub(&frames.narrow(1, 0, window - 1)?)? * scale)?;
        Ok(Tensor::cat(&[newest, differences], 1)?.flatten_from(1)?)
    }

    /// What encoder or dynamics model say of z. Without `--stochastic`, with unit variance.
    fn gaussian(&self, model: &Mlp, x: &Tensor) -> Result<Gaussian> {
        let heads = model.forward(x)?.chunk(if self.args.stochastic { 2 } else { 1 }, 1)?;
        let log_std = if self.args.stochastic { heads[1].clone() } else { heads[0].zeros_like()? };
        Ok(Gaussian { mean: heads[0].clone(), log_std })
    }

    /// p(z'|z, a) and r̂(z, a), `[batch, 1]`.
    fn predict(&self, z: &Tensor, actions: &Tensor) -> Result<(Gaussian, Tensor)> {
        let za = Tensor::cat(&[z, actions], 1)?; // [batch, latent_size + action_dim]
        let mut next = self.gaussian(&self.dynamics, &za)?;
        if self.args.predict_differences {
            next.mean = (next.mean + z)?;
        }
        Ok((next, self.reward.forward(&za)?))
    }

    /// One step of all four models down L, for `batches` of consecutive transitions, with standard normal
    /// `noise` `[2, batch, latent_size]` for z and z', the same for each k. Returns [`LOSSES`] from before it.
    fn update(&mut self, batches: &[Batch], noise: &Tensor) -> Result<[f32; 5]> {
        // ½ ‖x‖²: the sum over dimensions, the mean over rows
        let square = |x: Tensor| -> Result<Tensor> { Ok((x.sqr()?.sum(1)?.mean_all()? * 0.5)?) };
        let mut sums = Tensor::zeros(4, DType::F32, &self.device)?; // of LOSSES but L, over k
        let (mut predicted, mut anew) = (noise.get(0)?.zeros_like()?, &batches[0].ends.ones_like()?);
        for Batch { observations, actions, rewards, next_observations, ends } in batches {
            let (o, next_o) = (self.observe(observations)?, self.observe(next_observations)?);
            let (q, next_q) = (self.gaussian(&self.encoder, &o)?, self.gaussian(&self.encoder, &next_o)?);
            let z = if self.args.stochastic { q.sample(&noise.get(0)?)? } else { q.mean.clone() };
            // z_k = f(z_{k−1}, a_{k−1}), but g(o) at first and where an episode begins
            let z = (&predicted + (z - &predicted)?.broadcast_mul(anew)?)?;
            let (next, predicted_reward) = self.predict(&z, actions)?;
            let mut observation_loss = square((o - self.decoder.forward(&z)?)?)?; // E[ ½ ‖o − ô(z)‖² ]
            if self.args.stochastic {
                let next_z = next_q.sample(&noise.get(1)?)?;
                observation_loss = (observation_loss + square((next_o - self.decoder.forward(&next_z)?)?)?)?;
            }
            let reward_loss = square((rewards - predicted_reward)?)?; // E[ ½ (r − r̂(z, a))² ]
            // E[ KL( q(·|o') ‖ p(·|z, a) ) ], of unit variances E[ ½ ‖z' − f(z, a)‖² ]. Nothing is detached.
            let dynamics_loss = next_q.kl(&next)?;
            let zeros = q.mean.zeros_like()?; // E[ KL( q(·|o) ‖ N(0, I) ) ]
            let prior_loss = q.kl(&Gaussian { mean: zeros.clone(), log_std: zeros })?;
            sums = (sums + Tensor::stack(&[observation_loss, reward_loss, dynamics_loss, prior_loss], 0)?)?;
            (predicted, anew) = (next.mean, ends);
        }
        let losses = (sums / batches.len() as f64)?;
        let beta = if self.args.stochastic { self.args.beta as f32 } else { 0.0 };
        let loss = (&losses * Tensor::new(&[1.0, 1.0, 1.0, beta], &self.device)?)?.sum(0)?;
        self.optimizer.backward_step(&loss)?;
        Ok(Tensor::cat(&[losses, loss.reshape(1)?], 0)?.to_vec1()?.try_into().unwrap_or_default())
    }

    /// Σ_k r̂(z_k, a_k) of each plan of `[batch, horizon, action_dim]` from z_0 `[batch, latent_size]`.
    fn plan_returns(&self, z: Tensor, plans: &Tensor) -> Result<Vec<f32>> {
        let (mut z, mut total) = (z, Tensor::zeros((plans.dim(0)?, 1), DType::F32, &self.device)?);
        for k in 0..self.args.horizon {
            let (next, reward) = self.predict(&z, &plans.narrow(1, k, 1)?.squeeze(1)?)?;
            (z, total) = (next.mean.detach(), (total + reward)?.detach());
        }
        Ok(total.flatten_all()?.to_vec1()?)
    }

    /// `[num_envs, action_dim]`: the first actions of the plans that the cross-entropy method finds, which
    /// begin with what is left of `plans` `[num_envs, horizon, action_dim]` and replace them.
    fn act(&self, stacked: &[f32], plans: &mut [f32], rng: &mut Rng) -> Result<Vec<f32>> {
        let Args { horizon, population, latent_size, .. } = self.args;
        let (size, num_envs) = (horizon * self.action_dim, plans.len() / (horizon * self.action_dim));
        let stacked = Tensor::from_slice(stacked, (num_envs, stacked.len() / num_envs), &self.device)?;
        // z_0 of each environment, once for each of its plans: [num_envs · population, latent_size]
        let z = self.gaussian(&self.encoder, &self.observe(&stacked)?)?.mean.unsqueeze(1)?.detach();
        let z = z.expand((num_envs, population, latent_size))?.reshape(((), latent_size))?;
        // Plans move up by a step; the last action is planned for twice.
        plans.chunks_exact_mut(size).for_each(|plan| plan.copy_within(self.action_dim.., 0));
        let mut std = vec![0.5; plans.len()]; // σ: a quarter of [-1, 1]
        for _ in 0..self.args.iterations {
            // Aⁱ ~ N(μ, σ²), clamped to the bounds, i = 1 … N: [num_envs, population, horizon, action_dim]
            let noise = StandardNormal.sample_iter(&mut *rng).take(population * plans.len()).enumerate();
            let sample = |(i, epsilon): (usize, f32)| {
                let k = i / (population * size) * size + i % size; // where its μ and σ are
                (plans[k] + std[k] * epsilon).clamp(-1.0, 1.0)
            };
            let candidates: Vec<f32> = noise.map(sample).collect();
            let shape = (num_envs * population, horizon, self.action_dim);
            let tried = Tensor::from_slice(&candidates, shape, &self.device)?;
            let returns = self.plan_returns(z.clone(), &tried)?;
            for (env, returns) in returns.chunks_exact(population).enumerate() {
                let mut elites: Vec<usize> = (0..population).collect();
                elites.sort_by(|&i, &j| returns[j].total_cmp(&returns[i]));
                elites.truncate(self.args.elites);
                let n = elites.len() as f32;
                let mean = |x: &dyn Fn(usize) -> f32| elites.iter().map(|&i| x(i)).sum::<f32>() / n;
                for k in env * size..(env + 1) * size {
                    // μ ← mean(elites), σ² ← variance(elites)
                    let action = |i: usize| candidates[(env * population + i) * size + k % size];
                    plans[k] = mean(&action);
                    std[k] = mean(&|i| (action(i) - plans[k]).powi(2)).sqrt();
                }
            }
        }
        Ok(plans.chunks_exact(size).flat_map(|plan| &plan[..self.action_dim]).copied().collect())
    }

    /// Draws the first number of the observations of consecutive transitions, what the decoder makes of their
    /// latent states, and of those that the dynamics model predicts, which begins anew every `horizon` steps.
    fn draw_reconstructions(&self, batch: &Batch, path: &Path) -> Result<()> {
        let o = self.observe(&batch.observations)?;
        let encoded = self.gaussian(&self.encoder, &o)?.mean; // [batch, latent_size]
        let ends: Vec<f32> = batch.ends.flatten_all()?.to_vec1()?;
        let (mut z, mut predicted) = (encoded.clone(), vec![]);
        for t in 0..o.dim(0)? {
            z = if t % self.args.horizon == 0 || ends[t - 1] == 1.0 { encoded.narrow(0, t, 1)? } else { z };
            predicted.push(z.clone());
            z = self.predict(&z, &batch.actions.narrow(0, t, 1)?)?.0.mean;
        }
        let reconstructed = self.decoder.forward(&encoded)?;
        let predicted = self.decoder.forward(&Tensor::cat(&predicted, 0)?)?;
        let mut curves = Vec::new();
        for (label, o) in [("seen", o), ("reconstructed", reconstructed), ("predicted", predicted)] {
            let mean: Vec<f64> = o.narrow(1, 0, 1)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
            let (xs, label) = ((0..mean.len()).map(|t| t as f64).collect(), label.to_string());
            curves.push(Curve { label, xs, low: mean.clone(), high: mean.clone(), mean });
        }
        let title = &format!("Observations, and predictions of up to {} steps", self.args.horizon);
        let (x_label, y_label) = ("step", "first number of the observation");
        Chart { title, x_label, y_label, curves: &curves, ..Chart::default() }.draw(path)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    if args.elites > args.population {
        return invalid(format!("--elites {}: at most --population = {}", args.elites, args.population));
    }
    let make = |num_envs: usize, seed: u64| {
        let env = |_| -> Result<Box<dyn Env>> {
            let env = envs::make(&args.run.env_id)?;
            let (id, space) = (&env.spec().id, &env.spec().observation_space);
            if space.shape().len() > 1 {
                return invalid(format!("--env-id {id}: latent_mpc wants vectors to observe, not {space}"));
            }
            Ok(Box::new(RescaleAction::new(FrameStack::new(env, args.window)?, -1.0, 1.0)?))
        };
        VecEnv::new((0..num_envs).map(env).collect::<Result<_>>()?, seed)
    };
    let mut envs = make(1, args.run.seed)?;
    let mut agent = LatentMpc::new(envs.spec().box_to_box("latent_mpc")?, &args)?;
    let (mut buffer, mut rng) = (ReplayBuffer::default(), learner_rng(args.run.seed));
    let mut plan = vec![0.0; args.horizon * agent.action_dim]; // [horizon, action_dim]
    let (mut run, mut global_step) = (Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?, 0);
    while global_step < run.total_timesteps {
        let mut items: [(&str, &mut dyn Persist); 6] = [
            ("parameters", &mut agent.parameters),
            ("optimizer", &mut agent.optimizer),
            ("envs", &mut envs),
            ("rng", &mut rng),
            ("buffer", &mut buffer),
            ("plan", &mut Fixed(&mut plan)),
        ];
        run.resume_or_checkpoint(&mut global_step, &mut items)?;
        // Act, at random at first and then as planned, and store what happened.
        let observation = envs.observations().to_vec(); // [window · dim]
        let action = if global_step < args.learning_starts {
            (0..agent.action_dim).map(|_| rng.random_range(-1.0..=1.0)).collect()
        } else {
            agent.act(&observation, &mut plan, &mut rng)?
        };
        envs.step(&action)?;
        buffer.store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if global_step < args.learning_starts {
            continue;
        }

        // Learn.
        let steps = if global_step == args.learning_starts { global_step } else { 1 };
        let remaining = 1.0 - (global_step - 1) as f64 / run.total_timesteps as f64;
        agent.optimizer.learning_rate = remaining * args.learning_rate;
        let mut losses = [0.0; 5];
        for _ in 0..steps * args.updates {
            let last = global_step - args.rollout.min(global_step); // the last step that a rollout can begin with
            let rows: Vec<usize> = (0..args.batch_size).map(|_| rng.random_range(0..=last)).collect();
            let batch = |k| buffer.select(&rows.iter().map(|row| row + k).collect::<Vec<_>>(), &agent.device);
            let batches = (0..global_step - last).map(batch).collect::<Result<Vec<_>>>()?;
            let count = 2 * args.batch_size * args.latent_size;
            let noise: Vec<f32> = StandardNormal.sample_iter(&mut rng).take(count).collect();
            let noise = Tensor::from_vec(noise, (2, args.batch_size, ()), &agent.device)?;
            losses = agent.update(&batches, &noise)?;
        }
        for (name, loss) in LOSSES.iter().zip(losses).filter(|_| global_step.is_multiple_of(100)) {
            run.log(global_step, &format!("losses/{name}"), loss)?;
        }
    }

    run.save_or_load_model(&mut agent.parameters)?;
    if !run.eval_only() {
        let last: Vec<usize> = (global_step.saturating_sub(200)..global_step).collect();
        let path = run.dir().join("reconstructions.png");
        agent.draw_reconstructions(&buffer.select(&last, &agent.device)?, &path)?;
    }
    // The evaluation's plans draw from a stream of their own.
    let (mut rng, plans) = (learner_rng(args.run.seed ^ 0x5EED_0E7A), RefCell::new(Vec::new()));
    let make_anew = |num_envs, seed| {
        plans.replace(vec![0.0; num_envs * plan.len()]); // plans begin anew with the episodes
        make(num_envs, seed)
    };
    run.evaluate_on(make_anew, |observations| agent.act(observations, &mut plans.borrow_mut(), &mut rng))?;
    Ok(())
}

#[cfg(test)]
mod tests;
