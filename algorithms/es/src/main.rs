//! # Evolution strategies (ES)
//!
//! Salimans, Ho, Chen, Sidor & Sutskever (2017), arXiv:1703.03864.
//!
//! Parameters are better if policies in their neighbourhood earn more, so ES tries many random
//! neighbours for an episode each and moves towards those that earned more: no value function, no
//! back-propagation, no discount. Noise is made from seeds that every rank knows, so ranks tell each
//! other nothing but the returns of the episodes they played, and each reconstructs the whole
//! update. That makes a worker's message a few bytes where a gradient would be millions.
//!
//! With the return `F(θ)` of an episode played with parameters θ it maximises
//!
//! ```text
//! J(θ) = E_{ε∼N(0,I)}[ F(θ + σ ε) ]
//! ∇_θ J(θ) = 1/σ E_{ε∼N(0,I)}[ F(θ + σ ε) ε ]
//! ```
//!
//! and estimates that gradient from a population of n members in n/2 mirrored pairs, θ + σ ε_i and
//! θ − σ ε_i, of which what they share cancels (antithetic sampling):
//!
//! ```text
//! ĝ = 1/(n σ) Σ_i ( u(F(θ + σ ε_i)) − u(F(θ − σ ε_i)) ) ε_i
//! θ ← θ + α Adam(ĝ − λ θ)
//! ```
//!
//! Fitness shaping: u(F) is the rank of F in the population, from −½ to ½, so that one
//! extraordinary episode weighs no more than another. The decay λ keeps θ from growing until σ ε
//! no longer matters beside it.
//!
//! Run `cargo run -p es`: 475 or more on CartPole-v1 (the return at which Gymnasium registers it as
//! solved) after 500,000 steps in about a second. The result is the same for any number of
//! `--workers`, be they threads or, on one machine or many, processes of MPI; after a failure, the
//! last line goes on from the last checkpoint:
//!
//! ```text
//! cargo build -p es --features common/mpi         # see common/src/dist/mod.rs for what it needs
//! mpirun -n 4 target/debug/es --workers 4         # --mca mpi_yield_when_idle 1 where cores are shared
//! mpirun -n 64 --hostfile hosts /shared/es --workers 64 --run-dir /shared/run --checkpoint-every 100000
//! until mpirun -n 64 --hostfile hosts /shared/es --workers 64 --resume /shared/run; do sleep 10; done
//! ```

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::dist::{self, World};
use common::envs::{Episode, VecEnv, invalid, rng};
use common::nn::{Activation, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[cfg(test)]
mod tests;

/// Evolution strategies with mirrored noise and rank-shaped fitness, for discrete actions
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("500000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Ranks that share the population; under mpirun its number of processes. The result does not
    /// depend on it
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    workers: usize,
    /// Members of the population, n: an even number, half of them mirror the others
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    population_size: usize,
    /// Standard deviation of the noise on the parameters, σ
    #[arg(long, default_value_t = 0.1, value_parser = cli::above_zero)]
    sigma: f64,
    /// Step size of Adam, α
    #[arg(long, default_value_t = 0.03, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Decay of the parameters, λ
    #[arg(long, default_value_t = 0.005, value_parser = cli::non_negative)]
    weight_decay: f64,
}

/// The policy: two hidden layers of 64 tanh units, as in the paper, and the best of the outputs.
struct Policy {
    hidden1: Linear, // [observation_dim] → [64]
    hidden2: Linear, // [64] → [64]
    output: Linear,  // [64] → [num_actions]
    parameters: VarMap,
    observation_dim: usize,
    num_actions: usize,
    device: Device,
}

impl Policy {
    fn new(observation_dim: usize, num_actions: usize, seed: u64, device: &Device) -> Result<Self> {
        let parameters = VarMap::new(seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, device);
        let layer = |inputs, outputs, name| linear_orthogonal(inputs, outputs, 1.0, vb.pp(name));
        Ok(Self {
            hidden1: layer(observation_dim, 64, "hidden1")?.with_activation(Activation::Tanh),
            hidden2: layer(64, 64, "hidden2")?.with_activation(Activation::Tanh),
            output: layer(64, num_actions, "output")?,
            parameters,
            observation_dim,
            num_actions,
            device: device.clone(),
        })
    }

    /// θ: all parameters, one after the other.
    fn parameters(&self) -> Result<Vec<f32>> {
        let mut theta = Vec::with_capacity(self.parameters.num_parameters());
        for var in self.parameters.all_vars() {
            theta.extend(var.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(theta)
    }

    /// Takes on parameters θ.
    fn set_parameters(&self, mut theta: &[f32]) -> Result<()> {
        for var in self.parameters.all_vars() {
            let (values, rest) = theta.split_at(var.elem_count());
            var.set(&Tensor::from_slice(values, var.shape(), &self.device)?)?;
            theta = rest;
        }
        Ok(())
    }

    /// The best action for each of the observations `[n, observation_dim]`. The noise on the
    /// parameters explores, so actions need none.
    fn act(&self, observations: &[f32]) -> Result<Vec<u32>> {
        let shape = (observations.len() / self.observation_dim, self.observation_dim);
        let hidden = self.hidden1.forward(&Tensor::from_slice(observations, shape, &self.device)?)?;
        let outputs =
            self.output.forward(&self.hidden2.forward(&hidden)?)?.flatten_all()?.to_vec1::<f32>()?;
        let best = |row: &[f32]| (0..row.len()).fold(0, |best, a| if row[a] > row[best] { a } else { best });
        Ok(outputs.chunks_exact(self.num_actions).map(|row| best(row) as u32).collect())
    }

    /// F(θ): plays one episode, the one that `seed` begins.
    fn play(&self, envs: &mut VecEnv, seed: u64) -> Result<Episode> {
        envs.reset(seed)?;
        loop {
            envs.step(&self.act(envs.observations())?)?;
            if let [episode] = envs.episodes() {
                return Ok(*episode);
            }
        }
    }
}

/// The seed of the episode that a pair plays and its ε `[num_parameters]`, standard normal. Pairs are
/// numbered from the start of training, so that every rank can make every pair's.
fn noise(seed: u64, pair: u64, num_parameters: usize) -> (u64, Vec<f32>) {
    // Stream 0 made the first parameters.
    let mut rng = rng(seed, pair + 1);
    (rng.random(), (0..num_parameters).map(|_| StandardNormal.sample(&mut rng)).collect())
}

/// Fitness u: the rank of each return, from −½ for the least to ½ for the most. Equal returns get
/// the mean of the ranks they take up: where all earn the same, nothing is to be learned.
fn centred_ranks(returns: &[f64]) -> Vec<f32> {
    let mut order: Vec<usize> = (0..returns.len()).collect();
    order.sort_by(|&a, &b| returns[a].total_cmp(&returns[b]));
    let mut fitness = vec![0.0; returns.len()];
    let mut rank = 0;
    for equal in order.chunk_by(|&a, &b| returns[a] == returns[b]) {
        let mean_rank = rank as f32 + (equal.len() - 1) as f32 / 2.0;
        equal.iter().for_each(|&i| fitness[i] = mean_rank / (returns.len() - 1) as f32 - 0.5);
        rank += equal.len();
    }
    fitness
}

/// ĝ `[num_parameters]`, from the fitness `[num_pairs, 2]` of θ + σ ε_i and θ − σ ε_i, and ε_i.
fn gradient(
    fitness: &[f32],
    sigma: f32,
    num_parameters: usize,
    noise: impl Fn(usize) -> Vec<f32>,
) -> Vec<f32> {
    let mut gradient = vec![0.0; num_parameters];
    for (i, pair) in fitness.chunks_exact(2).enumerate() {
        // ĝ = 1/(n σ) Σ_i ( u(F(θ + σ ε_i)) − u(F(θ − σ ε_i)) ) ε_i
        let weight = (pair[0] - pair[1]) / (fitness.len() as f32 * sigma);
        if weight != 0.0 {
            gradient.iter_mut().zip(noise(i)).for_each(|(g, epsilon)| *g += weight * epsilon);
        }
    }
    gradient
}

/// All that changes while training; the same on every rank.
#[derive(Serialize, Deserialize)]
struct Search {
    theta: Vec<f32>,  // θ, [num_parameters]
    mean: Vec<f32>,   // Adam's m, [num_parameters]
    square: Vec<f32>, // Adam's v, [num_parameters]
    generation: u64,
}

impl Search {
    fn new(theta: Vec<f32>) -> Self {
        let zeros = vec![0.0; theta.len()];
        Self { theta, mean: zeros.clone(), square: zeros, generation: 0 }
    }

    /// θ ← θ + α Adam(ĝ − λ θ) (Kingma & Ba 2014, arXiv:1412.6980), upwards.
    fn ascend(&mut self, gradient: &[f32], learning_rate: f64, weight_decay: f32) {
        const BETA1: f32 = 0.9;
        const BETA2: f32 = 0.999;
        self.generation += 1;
        let t = self.generation as i32;
        let (correction1, correction2) = (1.0 - BETA1.powi(t), 1.0 - BETA2.powi(t));
        for (i, theta) in self.theta.iter_mut().enumerate() {
            let g = gradient[i] - weight_decay * *theta;
            self.mean[i] = BETA1 * self.mean[i] + (1.0 - BETA1) * g;
            self.square[i] = BETA2 * self.square[i] + (1.0 - BETA2) * g * g;
            let step = self.mean[i] / correction1 / ((self.square[i] / correction2).sqrt() + 1e-8);
            *theta += learning_rate as f32 * step;
        }
    }
}

fn main() -> ExitCode {
    cli::main(|args: Args| {
        if !args.population_size.is_multiple_of(2) {
            return invalid(format!("--population-size {}: an even number is needed", args.population_size));
        }
        VecEnv::make(&args.run.env_id, 1, args.run.seed)?.spec().box_to_discrete("es")?;
        args.run.device()?;
        dist::launch(args.workers, |world| train(&args, world))
    })
}

/// What every rank does.
fn train(args: &Args, world: &World) -> Result<()> {
    // Rank 0 keeps the records.
    let mut run = match world.rank() {
        0 => Some(Run::start(env!("CARGO_PKG_NAME"), &args.run, args)?),
        _ => None,
    };
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("es")?;
    let mut policy = Policy::new(observation_dim, num_actions, args.run.seed, &args.run.device()?)?;
    let mut search = Search::new(policy.parameters()?);
    let (num_parameters, num_pairs) = (search.theta.len(), args.population_size / 2);
    let sigma = args.sigma as f32;

    let total_timesteps = if args.run.eval_only.is_some() { 0 } else { args.run.total_timesteps };
    let mut resuming = args.run.resume.is_some();
    let mut global_step = 0;
    while global_step < total_timesteps {
        if let Some(run) = &mut run {
            run.resume_or_checkpoint(&mut global_step, &mut [("search", &mut search)])?;
        }
        if std::mem::take(&mut resuming) {
            // Rank 0 has read the checkpoint, for all.
            world.broadcast(&mut global_step)?;
            world.broadcast(&mut search)?;
        }
        let first_pair = search.generation * num_pairs as u64;
        let noise = |i| noise(args.run.seed, first_pair + i as u64, num_parameters);

        // Act: every rank plays the pairs that fall to it. Mirrored members play the same episode.
        let mut own = Vec::new();
        for i in (world.rank()..num_pairs).step_by(world.size()) {
            let (episode_seed, epsilon) = noise(i);
            for sign in [1.0, -1.0] {
                let moved = search.theta.iter().zip(&epsilon).map(|(theta, e)| theta + sign * sigma * e);
                policy.set_parameters(&moved.collect::<Vec<_>>())?;
                own.push(policy.play(&mut envs, episode_seed)?);
            }
        }

        // Tell: all that travels. Rank r played pairs r, r + size, r + 2 size, …
        let everyones: Vec<Vec<Episode>> = world.all_gather(own)?;
        let episodes: Vec<Episode> = (0..num_pairs)
            .flat_map(|i| &everyones[i % world.size()][i / world.size() * 2..][..2])
            .copied()
            .collect();
        for episode in &episodes {
            global_step += episode.length as usize;
            if let Some(run) = &mut run {
                run.episodes(global_step, &[*episode])?;
            }
        }

        // Learn: every rank takes the same step.
        let returns: Vec<f64> = episodes.iter().map(|episode| episode.episodic_return).collect();
        let gradient = gradient(&centred_ranks(&returns), sigma, num_parameters, |i| noise(i).1);
        search.ascend(&gradient, args.learning_rate, args.weight_decay as f32);

        if let Some(run) = &mut run {
            let norm = |values: &[f32]| values.iter().map(|x| x * x).sum::<f32>().sqrt();
            run.log(global_step, "charts/generation", search.generation as f64)?;
            run.log(global_step, "losses/gradient_norm", norm(&gradient))?;
            run.log(global_step, "losses/parameter_norm", norm(&search.theta))?;
        }
    }

    if let Some(mut run) = run {
        policy.set_parameters(&search.theta)?;
        run.save_or_load_model(&mut policy.parameters)?;
        run.evaluate(|observations| policy.act(observations))?;
    }
    Ok(())
}
