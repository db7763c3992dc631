//! # Massively parallel deep Q-network (Gorila DQN)
//!
//! Nair, Srinivasan, Blackwell et al. (2015), arXiv:1507.04296.
//!
//! DQN (`dqn` explains it) on many machines. Each has an actor with a replay buffer of its own, a learner that
//! draws from it and computes gradients, and a server that keeps a share of the parameters θ⁺ and changes it by
//! all learners' gradients, which are of parameters that have moved on since.
//!
//! ```text
//! y    = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)                               ∇_θ y = 0
//! L(θ) = E_{(s, a, r, s') ~ own replay}[ ℓ(y − Q(s, a; θ)) ]    ℓ(δ) = ½ δ², its slope at most κ
//! G    ← G + g²,   θ⁺ ← θ⁺ − η g / (√G + ε_ada)     AdaGrad, each server with its part g of a gradient
//! θ⁻   ← θ⁺                                         each time that N gradients have been applied
//! ```
//!
//! Two rules keep slow or confused machines from harm: servers drop gradients of parameters that have changed
//! too often since, and a learner one whose loss exceeds the mean of its losses by several of their deviations.
//!
//! Deviations from the paper:
//! - a run is the same each time: in rounds all fetch θ⁺, act and learn, and gradients are applied in order of
//!   ranks. Rank r's is at most r changes old: none is dropped (`--max-staleness 2`: those of ranks from 3 on);
//! - `several` is twenty, which drops next to nothing, and not in a learner's first ten steps; κ, 1 in the
//!   paper, is beyond all errors. Large errors of CartPole are ends of episodes: with three deviations, or
//!   κ = 1, they count too little, values at the track's end stay too high, and the cart drifts there;
//! - ε_ada is 3, where AdaGrad's is tiny and the first step changes every parameter by η; η falls; servers are
//!   no machines of their own; vectors instead of images.
//!
//! Run `cargo run -p gorila`: 475 or more on CartPole-v1 (solved, by Gymnasium) with four of five seeds, in fifteen
//! seconds. Machines are threads or MPI's processes; when one fails all end, and the last line goes on exactly:
//!
//! ```text
//! cargo build -p gorila --features common/mpi     # see common/src/dist/mod.rs for what it needs
//! mpirun -n 64 --hostfile hosts /shared/gorila --workers 64 --run-dir /shared/run
//! until mpirun -n 64 --hostfile hosts /shared/gorila --workers 64 --resume /shared/run; do sleep 10; done
//! ```

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::dist::{self, World};
use common::envs::{Episode, Rng, VecEnv, learner_rng, persist::Persist};
use common::nn::{Linear, VarBuilder, VarMap, clamp, copy_parameters, linear};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, process::ExitCode};

/// Deep Q-network with distributed actors, learners and parameter servers
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("75000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Ranks: machines with an actor, a learner and a server each; under mpirun its number of processes
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    workers: usize,
    /// Step size of AdaGrad at the start, η; each change makes it smaller, to 0 after --total-timesteps
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// What AdaGrad adds to the root of the sum of squares, ε_ada
    #[arg(long, default_value_t = 3.0, value_parser = cli::above_zero)]
    adagrad_eps: f64,
    /// Servers drop a gradient of parameters that have changed more often since
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    max_staleness: usize,
    /// Learners drop a gradient whose loss is so many standard deviations above the mean
    #[arg(long, default_value_t = 20.0, value_parser = cli::non_negative)]
    outlier_deviations: f64,
    /// Steps that each replay buffer holds
    #[arg(long, default_value_t = 50_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Gradients of all learners between copies to the target networks, N
    #[arg(long, default_value_t = 100, value_parser = cli::positive)]
    target_network_frequency: usize,
    /// Steps drawn from a replay buffer for one gradient
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    batch_size: usize,
    /// Probability of a random action once exploration has ended, ε; 1 at the start
    #[arg(long, default_value_t = 0.04, value_parser = cli::unit_interval)]
    end_e: f64,
    /// Fraction of the run over which ε falls
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    exploration_fraction: f64,
    /// Steps of all actors before learning starts
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Largest slope of the loss, κ: 1 in the paper
    #[arg(long, default_value_t = 1e9, value_parser = cli::above_zero)]
    clip_error: f64,
}

/// Q(s, ·): two hidden layers of rectified linear units.
struct QNetwork {
    hidden1: Linear, // [observation_dim] → [hidden_sizes[0]]
    hidden2: Linear, // → [hidden_sizes[1]]
    output: Linear,  // → [num_actions]
}

impl QNetwork {
    fn new(observation_dim: usize, sizes: [usize; 2], num_actions: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            hidden1: linear(observation_dim, sizes[0], vb.pp("hidden1"))?,
            hidden2: linear(sizes[0], sizes[1], vb.pp("hidden2"))?,
            output: linear(sizes[1], num_actions, vb.pp("output"))?,
        })
    }

    /// Observations `[batch, observation_dim]` to action values `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let x = self.hidden2.forward_relu(&self.hidden1.forward_relu(observations)?)?;
        Ok(self.output.forward(&x)?)
    }
}

/// One step of an actor, as its replay buffer holds it.
#[derive(Serialize, Deserialize)]
struct Transition {
    observation: Vec<f32>,      // s, [observation_dim]
    action: u32,                // a
    reward: f32,                // r
    next_observation: Vec<f32>, // s', an episode's true last one at its end, [observation_dim]
    terminated: bool,           // nothing lies beyond s'; false where the episode was only truncated
}

/// All losses of one learner so far, by which it tells outliers (Welford 1962).
#[derive(Serialize, Deserialize, Default)]
struct LossStatistics {
    count: u64,
    mean: f64,
    squares: f64, // Σ (loss − mean)²
    outliers: u64,
}

impl LossStatistics {
    /// Whether `loss` is no outlier among those before, to which it then belongs: losses may grow for good.
    fn accept(&mut self, loss: f64, deviations: f64) -> bool {
        // loss ≤ mean + deviations · std
        let std = (self.squares / self.count.max(1) as f64).sqrt();
        let accepted = self.count < 10 || loss <= self.mean + deviations * std;
        self.outliers += u64::from(!accepted);
        self.count += 1;
        let difference = loss - self.mean;
        self.mean += difference / self.count as f64;
        self.squares += difference * (loss - self.mean);
        accepted
    }
}

/// A server's share of the parameters.
#[derive(Serialize, Deserialize)]
struct Shard {
    parameters: Vec<f32>, // θ⁺, [len]
    squares: Vec<f32>,    // G, [len]
    version: u64,         // how many gradients have changed θ⁺
    fetched: u64,         // how many had when it was last fetched
    stale: u64,           // how many were dropped
}

impl Shard {
    fn new(parameters: Vec<f32>) -> Self {
        Self { squares: vec![0.0; parameters.len()], parameters, version: 0, fetched: 0, stale: 0 }
    }

    /// Changes θ⁺ by a gradient of what it was when it was fetched, unless that is too long ago.
    fn apply(&mut self, gradient: &[f32], args: &Args) {
        if self.version - self.fetched > args.max_staleness as u64 {
            self.stale += 1;
            return;
        }
        self.version += 1;
        let eta = args.learning_rate * (1.0 - self.version as f64 / args.run.total_timesteps as f64);
        for ((theta, square), g) in self.parameters.iter_mut().zip(&mut self.squares).zip(gradient) {
            // G ← G + g²,   θ⁺ ← θ⁺ − η g / (√G + ε_ada)
            *square += g * g;
            *theta -= eta as f32 * g / (square.sqrt() + args.adagrad_eps as f32);
        }
    }
}

/// Which of `len` parameters server `rank` of `size` has.
fn share(len: usize, rank: usize, size: usize) -> std::ops::Range<usize> {
    len * rank / size..len * (rank + 1) / size
}

/// What a machine sends another of a round.
#[derive(Serialize, Deserialize)]
struct Message {
    gradient: Option<Vec<f32>>, // the part of it that the other's server needs; none of an outlier
    losses: Option<(f32, f32)>, // L(θ) and the mean of Q(s, a; θ), if it learned
    outliers: u64,              // how many gradients its learner has dropped so far
    episodes: Vec<Episode>,     // that ended
}

/// An actor, its replay buffer, a learner and a server.
struct Machine {
    q_network: QNetwork,       // Q(s, ·; θ)
    target_network: QNetwork,  // Q(s, ·; θ⁻)
    parameters: VarMap,        // θ
    target_parameters: VarMap, // θ⁻: a map of its own, for a clone would follow θ
    shard: Shard,
    envs: VecEnv, // one
    rng: Rng,
    replay: VecDeque<Transition>, // the last `buffer_size`, the newest first
    statistics: LossStatistics,
    num_actions: usize,
    args: Args,
    device: Device,
}

impl Machine {
    fn new(rank: usize, envs: VecEnv, hidden_sizes: [usize; 2], seed: u64, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let (observation_dim, num_actions) = envs.spec().box_to_discrete("gorila")?;
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let network = |parameters: &VarMap| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            QNetwork::new(observation_dim, hidden_sizes, num_actions, vb)
        };
        let (q_network, target_network) = (network(&parameters)?, network(&target_parameters)?);
        copy_parameters(&target_parameters, &parameters)?;
        let own = parameters.values()?[share(parameters.num_parameters(), rank, args.workers)].to_vec(); // θ⁺
        Ok(Self {
            q_network,
            target_network,
            shard: Shard::new(own),
            parameters,
            target_parameters,
            envs,
            rng: learner_rng(seed),
            replay: VecDeque::new(),
            statistics: LossStatistics::default(),
            num_actions,
            args: args.clone(),
            device,
        })
    }

    /// argmax_a Q(s, a; θ) for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        let observations = Tensor::from_slice(observations, ((), self.envs.observation_dim()), &self.device)?;
        Ok(self.q_network.forward(&observations)?.argmax(D::Minus1)?.to_vec1()?)
    }

    /// The actor's step: argmax_a Q(s, a; θ), or with probability ε any action; into the replay buffer.
    fn act(&mut self, epsilon: f64) -> Result<()> {
        let observation = self.envs.observations().to_vec(); // [observation_dim]
        let mut action = self.act_greedily(&observation)?[0];
        if self.rng.random::<f64>() < epsilon {
            action = self.rng.random_range(0..self.num_actions as u32);
        }
        self.envs.step(&[action])?;
        self.replay.push_front(Transition {
            observation,
            action,
            reward: self.envs.rewards()[0],
            // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
            next_observation: self.envs.final_observations().to_vec(),
            terminated: self.envs.terminated()[0],
        });
        self.replay.truncate(self.args.buffer_size);
        Ok(())
    }

    /// y, `[batch]`.
    fn td_targets(&self, batch: &[&Transition]) -> Result<Tensor> {
        let next_observations = stack(batch.iter().map(|t| &t.next_observation), &self.device)?;
        let next_values = self.target_network.forward(&next_observations)?.max(D::Minus1)?;
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let discounts = batch.iter().map(|t| if t.terminated { 0.0 } else { self.args.gamma as f32 });
        let discounts = Tensor::from_iter(discounts, &self.device)?; // γ (1 − terminated)
        let rewards = Tensor::from_iter(batch.iter().map(|t| t.reward), &self.device)?;
        // y = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)
        Ok((rewards + discounts * next_values)?.detach())
    }

    /// The learner's step: ∇_θ L(θ), L(θ) and the mean of Q(s, a; θ). Nothing moves: servers see to that.
    fn gradient(&self, batch: &[&Transition]) -> Result<(Vec<f32>, f32, f32)> {
        let y = self.td_targets(batch)?;
        let actions = Tensor::from_iter(batch.iter().map(|t| t.action), &self.device)?.unsqueeze(1)?; // [batch, 1]
        let q_values = self.q_network.forward(&stack(batch.iter().map(|t| &t.observation), &self.device)?)?;
        let q_values = q_values.gather(&actions, 1)?.squeeze(1)?; // Q(s, a; θ), [batch]
        // ℓ(δ) = m (|δ| − ½ m), m = min(|δ|, κ), whose slope is ±m: that of the line with m held constant
        let error = (y - &q_values)?.abs()?; // |δ|
        let slope = clamp(&error, 0.0, self.args.clip_error)?.detach(); // m
        // L(θ) = E[ ℓ(y − Q(s, a; θ)) ]
        let loss = (&slope * (&error - (&slope * 0.5)?)?)?.mean_all()?;
        Ok((self.parameters.gradients(&loss)?, loss.to_scalar()?, q_values.mean_all()?.to_scalar()?))
    }

    /// θ ← θ⁺, and θ⁻ ← θ⁺ if N gradients more have been applied.
    fn fetch(&mut self, parameters: &[f32]) -> Result<()> {
        self.parameters.set_values(parameters)?;
        let n = self.args.target_network_frequency as u64;
        if self.shard.version / n > self.shard.fetched / n {
            copy_parameters(&self.target_parameters, &self.parameters)?;
        }
        self.shard.fetched = self.shard.version; // the same on all servers, which apply the same gradients
        Ok(())
    }

    /// A machine's part of a round; returns what each machine had to say of its own.
    fn round(&mut self, global_step: usize, world: &World) -> Result<Vec<Message>> {
        let args = self.args.clone();
        self.fetch(&world.all_gather(self.shard.parameters.clone())?.concat())?;
        self.act(epsilon(global_step, &args))?;
        let (mut gradient, mut losses) = (None, None);
        if global_step >= args.learning_starts {
            let draw = |_| &self.replay[self.rng.random_range(0..self.replay.len())];
            let batch: Vec<&Transition> = (0..args.batch_size).map(draw).collect();
            let (found, loss, q_values) = self.gradient(&batch)?;
            losses = Some((loss, q_values));
            gradient = self.statistics.accept(loss.into(), args.outlier_deviations).then_some(found);
        }
        let message = |rank| {
            let part = |g: &Vec<f32>| g[share(g.len(), rank, args.workers)].to_vec();
            let (gradient, outliers) = (gradient.as_ref().map(part), self.statistics.outliers);
            Message { gradient, losses, outliers, episodes: self.envs.episodes().to_vec() }
        };
        let messages = world.all_to_all((0..args.workers).map(message).collect())?;
        for gradient in messages.iter().filter_map(|message| message.gradient.as_ref()) {
            self.shard.apply(gradient, &args);
        }
        Ok(messages)
    }
}

/// Observations as `[batch, observation_dim]`.
fn stack<'a>(observations: impl Iterator<Item = &'a Vec<f32>>, device: &Device) -> Result<Tensor> {
    let rows: Vec<_> = observations.map(Vec::as_slice).collect();
    Ok(Tensor::from_vec(rows.concat(), (rows.len(), ()), device)?)
}

/// ε after `step` steps: from 1 in a straight line, and then constant.
fn epsilon(step: usize, args: &Args) -> f64 {
    let duration = args.exploration_fraction * args.run.total_timesteps as f64;
    1.0 + (args.end_e - 1.0) * (step as f64 / duration.max(1.0)).min(1.0)
}

impl Persist for Machine {
    fn save(&self) -> Result<Vec<u8>> {
        let Self { parameters, target_parameters, shard, envs, rng, replay, statistics, .. } = self;
        let parts: [&dyn Persist; 7] = [parameters, target_parameters, shard, envs, rng, replay, statistics];
        parts.iter().map(|part| part.save()).collect::<Result<Vec<_>>>()?.save()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { parameters, target_parameters, shard, envs, rng, replay, statistics, .. } = self;
        let mut saved: Vec<Vec<u8>> = Vec::new();
        saved.load(bytes)?;
        let parts: [&mut dyn Persist; 7] =
            [parameters, target_parameters, shard, envs, rng, replay, statistics];
        parts.into_iter().zip(saved).try_for_each(|(part, bytes)| part.load(&bytes))
    }
}

/// What rank 0 tells all others to do.
#[derive(Serialize, Deserialize)]
enum Order {
    Round(usize),       // the one that begins after so many steps
    Save,               // gather all that changes, for a checkpoint
    Load(Vec<Vec<u8>>), // take on what was saved, each its own
    Stop,
}

/// All machines as the checkpoint of rank 0 sees them; the others wait for orders meanwhile.
struct Machines<'a>(&'a mut Machine, &'a World);

impl Persist for Machines<'_> {
    fn save(&self) -> Result<Vec<u8>> {
        self.1.broadcast(&mut Order::Save)?;
        let states = self.1.all_gather(self.0.save().map_err(|error| format!("{error:#}")))?;
        states.into_iter().collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::msg)?.save()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<()> {
        let mut states: Vec<Vec<u8>> = Vec::new();
        states.load(bytes)?;
        anyhow::ensure!(states.len() == self.1.size(), "it was run with --workers {}", states.len());
        self.0.load(&states[0])?;
        self.1.broadcast(&mut Order::Load(states))
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let machine = |rank: usize| {
        let seed = args.run.seed.wrapping_add((rank as u64) << 32); // far from the other machines'
        Machine::new(rank, VecEnv::make(&args.run.env_id, 1, seed)?, [64, 64], seed, &args)
    };
    dist::launch(args.workers, |world| match world.rank() {
        0 => lead(machine(0)?, &args, world),
        rank => follow(machine(rank)?, world),
    })
}

/// What ranks 1 and up do: follow the orders of rank 0.
fn follow(mut machine: Machine, world: &World) -> Result<()> {
    loop {
        let mut order = Order::Stop;
        world.broadcast(&mut order)?;
        match order {
            Order::Round(global_step) => drop(machine.round(global_step, world)?),
            Order::Save => drop(world.all_gather(machine.save().map_err(|error| format!("{error:#}")))?),
            Order::Load(states) => machine.load(&states[world.rank()])?,
            Order::Stop => return Ok(()),
        }
    }
}

/// What rank 0 does beside its part: give orders and keep the records.
fn lead(mut machine: Machine, args: &Args, world: &World) -> Result<()> {
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(&mut global_step, &mut [("machines", &mut Machines(&mut machine, world))])?;
        world.broadcast(&mut Order::Round(global_step))?;
        let messages = machine.round(global_step, world)?;
        let outliers: u64 = messages.iter().map(|message| message.outliers).sum();
        for message in messages {
            global_step += 1;
            run.episodes(global_step, &message.episodes)?;
            let Some((td_loss, q_values)) = message.losses else { continue };
            if global_step.is_multiple_of(100) {
                run.log(global_step, "losses/td_loss", td_loss)?;
                run.log(global_step, "losses/q_values", q_values)?;
                run.log(global_step, "charts/epsilon", epsilon(global_step, args))?;
                run.log(global_step, "charts/outliers", outliers as f64)?;
                run.log(global_step, "charts/stale", machine.shard.stale as f64)?;
            }
        }
    }
    world.broadcast(&mut Order::Stop)?;

    run.save_or_load_model(&mut machine.parameters)?;
    run.evaluate(|observations| machine.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
