//! # Asynchronous one-step Q-learning
//!
//! Mnih, Puigdomènech Badia, Mirza et al. (2016), arXiv:1602.01783, algorithm 1.
//!
//! Deep Q-learning needs updates that do not resemble each other, for which DQN draws old steps from a
//! replay buffer. Here many workers act at the same time, each in an environment of its own, and change
//! parameters that they share: an update is followed by another worker's, of another part of the task.
//!
//! ```text
//! y  = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)
//! dθ = Σ_steps ∇_θ (y − Q(s, a; θ))²      ∇_θ y = 0; I_AsyncUpdate steps, or up to the episode's end
//! g  ← α g + (1 − α) dθ²                  0 at first; shared by all workers, as θ and θ⁻
//! θ  ← θ − η dθ / √(g + ε_rms)
//! θ⁻ ← θ                                  each time that all workers together have made I_target steps
//! ```
//!
//! Each worker is ε-greedy, with ε falling from 1 to a value that it draws for each episode: 0.1, 0.01 or
//! 0.5, with probabilities 0.4, 0.3 and 0.3 (the paper: periodically). A time limit ends a sum too, but the
//! last state then has a value.
//!
//! Deviations from the paper:
//! - a gradient is always as old as it would be if all workers were equally fast: between the moment a
//!   worker gets θ and the moment its gradient changes θ, each other worker has changed it once. So a run
//!   is the same each time; in the paper the age varies with the machine. Within a sum θ stands still, and
//!   θ⁻ is copied at the beginning of the round of updates in which the I_target-th step is made;
//! - one rank keeps the parameters and the others are workers, which may be on other machines, where the
//!   paper's are threads that write into one memory without locks (Recht et al. 2011, "Hogwild!");
//! - α is 0.9999, where the paper has 0.99. Of a hundred steps of CartPole one ends the episode, with an
//!   error as large as all values. A g that follows so fast cuts the step along such a gradient down to
//!   ten times η: it counts for less than its share, values at the end of the track stay too high, and the
//!   cart drifts there;
//! - vectors instead of images, and hyper-parameters of their size.
//!
//! Run `cargo run -p async_q`: 400 or more on CartPole-v1 after 300,000 steps in nine seconds. The workers
//! are threads or, on one machine or many, processes of MPI; after a failure, the last line goes on from
//! the last checkpoint:
//!
//! ```text
//! cargo build -p async_q --features common/mpi     # see common/src/dist/mod.rs for what it needs
//! mpirun -n 9 target/debug/async_q --workers 9     # --mca mpi_yield_when_idle 1 where cores are shared
//! mpirun -n 17 --hostfile hosts /shared/async_q --workers 17 --run-dir /shared/run
//! until mpirun -n 17 --hostfile hosts /shared/async_q --workers 17 --resume /shared/run; do sleep 10; done
//! ```

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::dist::{self, World};
use common::envs::{Episode, Rng, VecEnv, invalid, learner_rng, persist::Persist};
use common::nn::{Linear, RmsProp, VarBuilder, VarMap, copy_parameters, linear};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

const SERVER: usize = 0; // the rank that keeps the parameters; all others are workers
const FINAL_EPSILONS: [f64; 10] = [0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.5, 0.5, 0.5]; // equally probable

/// Asynchronous one-step Q-learning
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("300000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Ranks: one that keeps the parameters and, all others, workers; under mpirun its number of processes
    #[arg(long, default_value_t = 9, value_parser = cli::positive)]
    workers: usize,
    /// Step size of RMSProp, η
    #[arg(long, default_value_t = 2e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Decay of RMSProp's mean of squares, α
    #[arg(long, default_value_t = 0.9999, value_parser = cli::unit_interval)]
    rms_alpha: f64,
    /// What RMSProp adds to the mean of squares, within the root, ε_rms
    #[arg(long, default_value_t = 0.01, value_parser = cli::above_zero)]
    rms_eps: f64,
    /// Sizes of the hidden layers
    #[arg(long, default_value = "64,64", value_delimiter = ',', value_parser = cli::positive)]
    hidden_sizes: Vec<usize>,
    /// Steps of a worker between its updates, I_AsyncUpdate
    #[arg(long, default_value_t = 5, value_parser = cli::positive)]
    num_steps: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Steps of all workers between copies to the target network, I_target
    #[arg(long, default_value_t = 200, value_parser = cli::positive)]
    target_network_frequency: usize,
    /// Fraction of the run over which ε, the probability of a random action, falls
    #[arg(long, default_value_t = 0.3, value_parser = cli::unit_interval)]
    exploration_fraction: f64,
}

/// Q(s, ·): hidden layers of rectified linear units.
struct QNetwork {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [num_actions]
}

impl QNetwork {
    fn new(mut inputs: usize, hidden_sizes: &[usize], num_actions: usize, vb: VarBuilder) -> Result<Self> {
        let mut hidden = Vec::new();
        for (i, &size) in hidden_sizes.iter().enumerate() {
            hidden.push(linear(inputs, size, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        Ok(Self { hidden, output: linear(inputs, num_actions, vb.pp("output"))? })
    }

    /// Observations `[batch, observation_dim]` to action values `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_relu(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }
}

/// The steps of one worker between two of its updates; columns `[len]`.
#[derive(Default)]
struct Segment {
    observations: Vec<f32>,      // s, [len, observation_dim]
    actions: Vec<u32>,           // a
    rewards: Vec<f32>,           // r
    next_observations: Vec<f32>, // s', an episode's true last one at its end, shaped like s
    terminated: Vec<f32>,        // 1 where nothing lies beyond s', 0 elsewhere, truncation included
    episodes: Vec<Episode>,      // the one that ended with the last step, if one did
}

impl Segment {
    /// Stores the step that the one environment of `envs` has just made from `observation` by `action`.
    fn store(&mut self, observation: &[f32], action: &[u32], envs: &VecEnv) {
        self.observations.extend_from_slice(observation);
        self.actions.extend_from_slice(action);
        self.rewards.extend_from_slice(envs.rewards());
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
        self.next_observations.extend_from_slice(envs.final_observations());
        self.terminated.extend(envs.terminated().iter().map(|&terminated| f32::from(u8::from(terminated))));
        self.episodes.extend_from_slice(envs.episodes());
    }
}

/// What a worker sends: what it found in one segment.
#[derive(Serialize, Deserialize)]
struct Update {
    gradient: Vec<f32>,     // dθ, [num_parameters]
    td_loss: f32,           // the mean of (y − Q(s, a; θ))²
    q_values: f32,          // the mean of Q(s, a; θ)
    epsilon: f64,           // ε
    num_steps: usize,       // the segment's
    episodes: Vec<Episode>, // that ended with it
}

/// Online network, target network and how they learn. Every rank has them; the server's are the shared
/// ones, a worker's are as it last got them.
struct AsyncQ {
    q_network: QNetwork,       // Q(s, ·; θ)
    target_network: QNetwork,  // Q(s, ·; θ⁻)
    parameters: VarMap,        // θ
    target_parameters: VarMap, // θ⁻: a map of its own, for a clone would follow θ
    optimizer: RmsProp,        // of θ; only the server's is used
    observation_dim: usize,
    num_actions: usize,
    args: Args,
    device: Device,
}

impl AsyncQ {
    fn new(observation_dim: usize, num_actions: usize, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let network = |parameters: &VarMap| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            QNetwork::new(observation_dim, &args.hidden_sizes, num_actions, vb)
        };
        let (q_network, target_network) = (network(&parameters)?, network(&target_parameters)?);
        copy_parameters(&target_parameters, &parameters)?;
        Ok(Self {
            q_network,
            target_network,
            optimizer: RmsProp::new(&parameters, args.learning_rate)?
                .with_alpha(args.rms_alpha)
                .with_eps_inside_root(args.rms_eps),
            parameters,
            target_parameters,
            observation_dim,
            num_actions,
            args: args.clone(),
            device,
        })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        let shape = (observations.len() / self.observation_dim, self.observation_dim);
        Ok(Tensor::from_slice(observations, shape, &self.device)?)
    }

    /// argmax_a Q(s, a; θ) for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        let q_values = self.q_network.forward(&self.tensor(observations)?)?;
        Ok(q_values.argmax(D::Minus1)?.to_vec1()?)
    }

    /// The same, but for each observation with probability ε a uniformly random action.
    fn act(&self, observations: &[f32], epsilon: f64, rng: &mut Rng) -> Result<Vec<u32>> {
        let mut actions = self.act_greedily(observations)?;
        for action in &mut actions {
            if rng.random::<f64>() < epsilon {
                *action = rng.random_range(0..self.num_actions as u32);
            }
        }
        Ok(actions)
    }

    /// A worker acts: `num_steps` steps, or as many as are left of the episode.
    fn gather(&self, envs: &mut VecEnv, epsilon: f64, rng: &mut Rng) -> Result<Segment> {
        let mut segment = Segment::default();
        while segment.rewards.len() < self.args.num_steps && segment.episodes.is_empty() {
            let observation = envs.observations().to_vec(); // [1, observation_dim]
            let action = self.act(&observation, epsilon, rng)?;
            envs.step(&action)?;
            segment.store(&observation, &action, envs);
        }
        Ok(segment)
    }

    /// y, `[len]`.
    fn td_targets(&self, segment: &Segment) -> Result<Tensor> {
        let rewards = Tensor::new(segment.rewards.as_slice(), &self.device)?;
        let terminated = Tensor::new(segment.terminated.as_slice(), &self.device)?;
        // max_a' Q(s', a'; θ⁻)
        let next_values =
            self.target_network.forward(&self.tensor(&segment.next_observations)?)?.max(D::Minus1)?;
        // y = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let discounts = terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((rewards + discounts * next_values)?.detach())
    }

    /// A worker learns: dθ, and what is to be known of the segment. Nothing moves.
    fn gradient(&self, segment: Segment, epsilon: f64) -> Result<Update> {
        let y = self.td_targets(&segment)?;
        let actions = Tensor::new(segment.actions.as_slice(), &self.device)?.unsqueeze(1)?; // [len, 1]
        let q_values = self.q_network.forward(&self.tensor(&segment.observations)?)?; // [len, num_actions]
        let q_values = q_values.gather(&actions, 1)?.squeeze(1)?; // Q(s, a; θ), [len]
        let loss = (y - &q_values)?.sqr()?.sum_all()?;
        // dθ = Σ_steps ∇_θ (y − Q(s, a; θ))²
        let gradient = self.parameters.gradients(&loss)?;
        let num_steps = segment.rewards.len();
        Ok(Update {
            gradient,
            td_loss: loss.to_scalar::<f32>()? / num_steps as f32,
            q_values: q_values.mean_all()?.to_scalar()?,
            epsilon,
            num_steps,
            episodes: segment.episodes,
        })
    }

    /// The server learns: g ← α g + (1 − α) dθ², θ ← θ − η dθ / √(g + ε_rms).
    fn update(&mut self, gradient: &[f32]) -> Result<()> {
        Ok(self.optimizer.step_values(gradient)?)
    }

    /// θ⁻ ← θ
    fn update_target(&self) -> Result<()> {
        Ok(copy_parameters(&self.target_parameters, &self.parameters)?)
    }
}

/// ε after `step` steps: from 1 to `end` in a straight line over `duration` steps, then `end`.
fn linear_schedule(end: f64, duration: f64, step: usize) -> f64 {
    1.0 + (end - 1.0) * (step as f64 / duration.max(1.0)).min(1.0)
}

/// The value that ε falls to in an episode.
fn draw_final_epsilon(rng: &mut Rng) -> f64 {
    FINAL_EPSILONS[rng.random_range(0..FINAL_EPSILONS.len())]
}

/// What the server tells a worker to do.
#[derive(Serialize, Deserialize)]
enum Order {
    /// Act and send the [`Update`]. Here are θ, θ⁻ if it is another one than before, and T, for ε.
    Learn {
        parameters: Vec<f32>,
        target: Option<Vec<f32>>,
        global_step: usize,
    },
    /// Send all that changes, for a checkpoint.
    Save,
    /// Take on what was sent then.
    Load(WorkerState),
    Stop,
}

/// Environment, generator, final ε and θ⁻ of a worker: all that changes but θ, which comes with orders.
type WorkerState = (Vec<u8>, Rng, f64, Vec<f32>);

/// The workers as the server's checkpoint sees them. At the top of the training loop they wait for
/// orders, and the server holds a gradient of each.
struct Workers<'a>(&'a World);

impl Workers<'_> {
    fn tell(&self, order: &Order) -> Result<()> {
        (1..self.0.size()).try_for_each(|worker| self.0.send(worker, order))
    }
}

impl Persist for Workers<'_> {
    fn save(&self) -> Result<Vec<u8>> {
        self.tell(&Order::Save)?;
        // All of them answer, also after one that could not.
        let states = (1..self.0.size()).map(|worker| self.0.receive::<Result<WorkerState, String>>(worker));
        let states = states.collect::<Result<Vec<_>>>()?.into_iter().collect::<Result<Vec<_>, _>>();
        states.map_err(anyhow::Error::msg)?.save()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<()> {
        let mut states: Vec<WorkerState> = Vec::new();
        states.load(bytes)?;
        anyhow::ensure!(states.len() + 1 == self.0.size(), "it was run with --workers {}", states.len() + 1);
        (1..).zip(states).try_for_each(|(worker, state)| self.0.send(worker, &Order::Load(state)))
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let workers = args.workers;
    if workers < 2 {
        return invalid(format!("--workers {workers}: at least 2, a server and a worker"));
    }
    let spec = VecEnv::make(&args.run.env_id, 1, args.run.seed)?.spec().clone();
    let (observation_dim, num_actions) = spec.box_to_discrete("async_q")?;
    let agent = || AsyncQ::new(observation_dim, num_actions, &args);
    agent()?; // whatever is wrong with the flags is said once
    dist::launch(workers, |world| match world.rank() {
        SERVER => serve(agent()?, &args, world),
        _ => work(agent()?, &args, world),
    })
}

/// What ranks 1 and up do: act and send gradients.
fn work(async_q: AsyncQ, args: &Args, world: &World) -> Result<()> {
    let seed = args.run.seed.wrapping_add((world.rank() as u64) << 32); // far from the other workers'
    let mut envs = VecEnv::make(&args.run.env_id, 1, seed)?;
    let mut rng = learner_rng(seed);
    let mut final_epsilon = draw_final_epsilon(&mut rng);
    let duration = args.exploration_fraction * args.run.total_timesteps as f64;
    loop {
        match world.receive(SERVER)? {
            Order::Learn { parameters, target, global_step } => {
                async_q.parameters.set_values(&parameters)?;
                if let Some(target) = target {
                    async_q.target_parameters.set_values(&target)?;
                }
                let epsilon = linear_schedule(final_epsilon, duration, global_step);
                let segment = async_q.gather(&mut envs, epsilon, &mut rng)?;
                if !segment.episodes.is_empty() {
                    final_epsilon = draw_final_epsilon(&mut rng);
                }
                world.send(SERVER, &async_q.gradient(segment, epsilon)?)?;
            }
            // An environment that cannot be saved ends no one: the run goes on without checkpoints.
            Order::Save => {
                let target = async_q.target_parameters.values()?;
                let state = envs.save().map(|envs| (envs, &rng, final_epsilon, target));
                world.send(SERVER, &state.map_err(|error| format!("{error:#}")))?;
            }
            Order::Load(state) => {
                envs.load(&state.0)?;
                (rng, final_epsilon) = (state.1, state.2);
                async_q.target_parameters.set_values(&state.3)?;
            }
            Order::Stop => return Ok(()),
        }
    }
}

/// What rank 0 does: change the shared parameters by the workers' gradients, in turn.
fn serve(mut async_q: AsyncQ, args: &Args, world: &World) -> Result<()> {
    let mut workers = Workers(world);
    let mut updates: Vec<Update> = Vec::new(); // of each worker, not applied yet
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, args)?;

    let mut global_step = 0; // T
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut async_q.parameters),
                ("target_parameters", &mut async_q.target_parameters),
                ("optimizer", &mut async_q.optimizer),
                ("workers", &mut workers),
                ("updates", &mut updates),
            ],
        )?;

        let steps: usize = updates.iter().map(|update| update.num_steps).sum();
        let (interval, mut target) = (args.target_network_frequency, None);
        if (global_step + steps) / interval > global_step / interval {
            async_q.update_target()?;
            target = Some(async_q.target_parameters.values()?);
        }

        // In the order of ranks, not of arrival: the same each time. A worker starts anew as soon as its
        // own gradient is in, and has its next one in the turn after all others had theirs.
        for worker in 1..world.size() {
            if let Some(update) = updates.get(worker - 1) {
                if args.anneal_lr {
                    let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
                    async_q.optimizer.learning_rate = remaining.max(0.0) * args.learning_rate;
                }
                async_q.update(&update.gradient)?;
                let logs = (global_step + update.num_steps) / 100 > global_step / 100; // every 100 steps
                global_step += update.num_steps;
                run.episodes(global_step, &update.episodes)?;
                if logs {
                    run.log(global_step, "losses/td_loss", update.td_loss)?;
                    run.log(global_step, "losses/q_values", update.q_values)?;
                    run.log(global_step, "charts/epsilon", update.epsilon)?;
                    run.log(global_step, "charts/learning_rate", async_q.optimizer.learning_rate)?;
                }
            }
            let parameters = async_q.parameters.values()?;
            world.send(worker, &Order::Learn { parameters, target: target.clone(), global_step })?;
        }
        updates = (1..world.size()).map(|worker| world.receive(worker)).collect::<Result<_>>()?;
    }
    Workers(world).tell(&Order::Stop)?;

    run.save_or_load_model(&mut async_q.parameters)?;
    run.evaluate(|observations| async_q.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
