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
//! where the second line is the score-function estimator of the normal distribution around θ: F itself
//! is never differentiated. The expectation is estimated from a population of n members in n/2
//! mirrored pairs, θ + σ ε_i and θ − σ ε_i, of which what they share cancels (antithetic sampling):
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
//! Deviations from the paper. Its algorithm takes the plain step θ ← θ + α ĝ; Adam is its authors'
//! program's, and so is putting the decay of θ, of which the text speaks, into Adam's gradient. There,
//! equal returns are ranked in whatever order the sort leaves them, so that noise is followed where nothing
//! is to be learned; here they share the mean of their ranks. Both members of a pair play the same episode,
//! which takes its luck out of their difference. Actions are the best ones, undisturbed; there is no
//! virtual batch normalisation. Where the environment has no time limit, an episode counts with what it
//! earned in 27,000 steps (`MAX_EPISODE_STEPS`): a policy that walks in circles would otherwise stop the
//! search.
//!
//! Run `cargo run -p es`: 475 or more on CartPole-v1 (the return at which Gymnasium registers it as
//! solved) after 500,000 steps in about a second. The result is the same for any number of
//! `--workers`, be they threads or, on one machine or many, processes of MPI; after a failure, the
//! last line goes on from the last checkpoint:
//!
//! ```text
//! cargo build -p es --features common/mpi         # see common/src/dist/mod.rs for what it needs
//! mpirun -n 4 target/debug/es --workers 4         # --mca mpi_yield_when_idle 1 where cores are shared
//! mpirun -n 64 --hostfile hosts /shared/es --workers 64 --population-size 256 --run-dir /shared/run
//! until mpirun -n 64 --hostfile hosts /shared/es --workers 64 --resume /shared/run; do sleep 10; done
//! ```

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::dist::{self, World};
use common::envs::{self, Episode, VecEnv, invalid, persist::Persist};
use common::nn::{Adam, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;
use std::process::ExitCode;

/// The random stream of the first pair; those below belong to environments.
const FIRST_PAIR: u64 = 1 << 32;

/// Evolution strategies with mirrored noise and rank-shaped fitness, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
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
    /// Sizes of the policy's hidden layers; the default is the paper's
    #[arg(long, default_value = "64,64", value_delimiter = ',', value_parser = cli::positive)]
    hidden_sizes: Vec<usize>,
}

/// The policy: hidden layers of tanh units, and the best of the outputs.
struct Policy {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [num_actions]
}

impl Policy {
    fn new(mut inputs: usize, hidden_sizes: &[usize], num_actions: usize, vb: VarBuilder) -> Result<Self> {
        let mut hidden = Vec::new();
        for (i, &size) in hidden_sizes.iter().enumerate() {
            hidden.push(linear_orthogonal(inputs, size, 1.0, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        Ok(Self { hidden, output: linear_orthogonal(inputs, num_actions, 1.0, vb.pp("output"))? })
    }

    /// Observations `[batch, observation_dim]` to outputs `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_tanh(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }
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

/// The policy, the member of the population that plays, and how the policy learns. Every rank has them,
/// with the same θ.
struct Es {
    policy: Policy,            // of θ
    member: Policy,            // of θ + σ ε_i or θ − σ ε_i
    parameters: VarMap,        // θ
    member_parameters: VarMap, // a map of its own, for a clone would follow θ
    optimizer: Adam,           // of θ
    generation: u64,           // how many updates there were
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl Es {
    fn new(observation_dim: usize, num_actions: usize, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let (parameters, member_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let policy = |parameters: &VarMap| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            Policy::new(observation_dim, &args.hidden_sizes, num_actions, vb)
        };
        Ok(Self {
            policy: policy(&parameters)?,
            member: policy(&member_parameters)?,
            optimizer: Adam::new(&parameters, args.learning_rate)?,
            parameters,
            member_parameters,
            generation: 0,
            observation_dim,
            args: args.clone(),
            device,
        })
    }

    /// The best action of `policy` for each observation. The noise on the parameters explores, so actions
    /// need none.
    fn act_greedily(&self, policy: &Policy, observations: &[f32]) -> Result<Vec<u32>> {
        let shape = (observations.len() / self.observation_dim, self.observation_dim);
        let outputs = policy.forward(&Tensor::from_slice(observations, shape, &self.device)?)?;
        Ok(outputs.argmax(D::Minus1)?.to_vec1()?)
    }

    /// ε_i, `[num_parameters]`, of pair i of this generation, and the seed of the episode it plays. Every
    /// rank can make every pair's.
    fn noise(&self, pair: usize) -> (Vec<f32>, u64) {
        // Easy to miss and fatal: with the same directions for ever, θ never leaves their span.
        let first_pair = self.generation * (self.args.population_size / 2) as u64;
        let mut rng = envs::rng(self.args.run.seed, FIRST_PAIR + first_pair + pair as u64);
        let episode_seed = rng.random();
        let num_parameters = self.parameters.num_parameters();
        ((0..num_parameters).map(|_| StandardNormal.sample(&mut rng)).collect(), episode_seed)
    }

    /// θ, a tensor a parameter.
    fn theta(&self) -> Vec<Tensor> {
        self.parameters.all_vars().iter().map(|parameter| parameter.as_detached_tensor()).collect()
    }

    /// `values`, `[num_parameters]`, in the shapes of the parameters.
    fn split(&self, mut values: &[f32]) -> Result<Vec<Tensor>> {
        let mut tensors = Vec::new();
        for parameter in self.parameters.all_vars() {
            let (own, rest) = values.split_at(parameter.elem_count());
            tensors.push(Tensor::from_slice(own, parameter.shape(), &self.device)?);
            values = rest;
        }
        Ok(tensors)
    }

    /// Makes the member θ + `sign` σ ε.
    fn set_member(&self, sign: f64, epsilon: &[f32]) -> Result<()> {
        let members = self.member_parameters.all_vars();
        for ((member, theta), epsilon) in members.iter().zip(self.theta()).zip(self.split(epsilon)?) {
            member.set(&(theta + (epsilon * (sign * self.args.sigma))?)?)?;
        }
        Ok(())
    }

    /// F: the member plays one episode, the one that `seed` begins.
    fn play(&self, envs: &mut VecEnv, seed: u64) -> Result<Episode> {
        envs.reset(seed)?;
        let limit = envs.spec().episode_limit();
        for _ in 0..limit {
            let actions = self.act_greedily(&self.member, envs.observations())?;
            envs.step(&actions)?;
            if let [episode] = envs.episodes() {
                return Ok(*episode);
            }
        }
        Ok(Episode { env: 0, episodic_return: envs.running_returns()[0], length: limit })
    }

    /// ĝ, `[num_parameters]`, from the fitness `[num_pairs, 2]` of θ + σ ε_i and θ − σ ε_i, and ε_i.
    fn gradient(&self, fitness: &[f32], noise: impl Fn(usize) -> Vec<f32>) -> Vec<f32> {
        let (n, sigma) = (fitness.len() as f32, self.args.sigma as f32);
        let mut gradient = vec![0.0; self.parameters.num_parameters()];
        for (i, pair) in fitness.chunks_exact(2).enumerate() {
            // ĝ = 1/(n σ) Σ_i ( u(F(θ + σ ε_i)) − u(F(θ − σ ε_i)) ) ε_i
            let weight = (pair[0] - pair[1]) / (n * sigma);
            gradient.iter_mut().zip(noise(i)).for_each(|(g, epsilon)| *g += weight * epsilon);
        }
        gradient
    }

    /// θ ← θ + α Adam(ĝ − λ θ); begins the next generation.
    fn update(&mut self, gradient: &[f32]) -> Result<()> {
        let mut descent = Vec::with_capacity(gradient.len()); // −(ĝ − λ θ), for Adam to descend
        for (theta, g) in self.parameters.all_vars().iter().zip(self.split(gradient)?) {
            let step = ((theta.as_tensor() * self.args.weight_decay)? - g)?;
            descent.extend(step.flatten_all()?.to_vec1::<f32>()?);
        }
        self.optimizer.step_values(&descent)?;
        self.generation += 1;
        Ok(())
    }
}

/// √(Σ x²) over all of `tensors`.
fn norm(tensors: &[Tensor]) -> Result<f32> {
    let squares = tensors.iter().map(|x| Ok(x.sqr()?.sum_all()?.to_scalar::<f32>()?));
    Ok(squares.sum::<Result<f32>>()?.sqrt())
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let Args { workers, population_size, .. } = args;
    if !population_size.is_multiple_of(2) {
        return invalid(format!("--population-size {population_size}: an even number is needed"));
    }
    let spec = VecEnv::make(&args.run.env_id, 1, args.run.seed)?.spec().clone();
    let (observation_dim, num_actions) = spec.box_to_discrete("es")?;
    let learner = || Es::new(observation_dim, num_actions, &args);
    learner()?; // whatever is wrong with the flags is said once
    dist::launch(workers, |world| evolve(learner()?, &args, world))
}

/// What every rank does.
fn evolve(mut es: Es, args: &Args, world: &World) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let num_pairs = args.population_size / 2;
    // Rank 0 keeps the records.
    let mut run = match world.rank() {
        0 => Some(Run::start(env!("CARGO_PKG_NAME"), &args.run, args)?),
        _ => None,
    };
    let total_timesteps = if args.run.eval_only.is_some() { 0 } else { args.run.total_timesteps };
    let mut resuming = args.run.resume.is_some();

    let mut global_step = 0;
    while global_step < total_timesteps {
        if let Some(run) = &mut run {
            run.resume_or_checkpoint(
                &mut global_step,
                &mut [
                    ("parameters", &mut es.parameters),
                    ("optimizer", &mut es.optimizer),
                    ("generation", &mut es.generation),
                ],
            )?;
        }
        if std::mem::take(&mut resuming) {
            // Rank 0 has read the checkpoint, for all.
            let mut state = (global_step, es.generation, es.parameters.save()?, es.optimizer.save()?);
            world.broadcast(&mut state)?;
            (global_step, es.generation) = (state.0, state.1);
            es.parameters.load(&state.2)?;
            es.optimizer.load(&state.3)?;
        }

        // Act: every rank plays the pairs that fall to it. Mirrored members play the same episode.
        let mut own = Vec::new();
        for pair in (world.rank()..num_pairs).step_by(world.size()) {
            let (epsilon, episode_seed) = es.noise(pair);
            for sign in [1.0, -1.0] {
                es.set_member(sign, &epsilon)?;
                own.push(es.play(&mut envs, episode_seed)?);
            }
        }

        // Tell: all that travels. Rank r played pairs r, r + size, r + 2 size, …
        let everyones: Vec<Vec<Episode>> = world.all_gather(own)?;
        let mut returns = Vec::new(); // [num_pairs, 2]
        for pair in 0..num_pairs {
            for episode in &everyones[pair % world.size()][pair / world.size() * 2..][..2] {
                returns.push(episode.episodic_return);
                global_step += episode.length as usize;
                if let Some(run) = &mut run {
                    run.episodes(global_step, &[*episode])?;
                }
            }
        }

        // Learn: every rank takes the same step.
        let gradient = es.gradient(&centred_ranks(&returns), |pair| es.noise(pair).0); // [num_parameters]
        es.update(&gradient)?;

        if let Some(run) = &mut run {
            run.log(global_step, "charts/generation", es.generation as f64)?;
            run.log(global_step, "losses/gradient_norm", norm(&es.split(&gradient)?)?)?;
            run.log(global_step, "losses/parameter_norm", norm(&es.theta())?)?;
        }
    }

    if let Some(mut run) = run {
        run.save_or_load_model(&mut es.parameters)?;
        run.evaluate(|observations| es.act_greedily(&es.policy, observations))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
