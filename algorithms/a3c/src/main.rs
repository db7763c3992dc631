//! # Asynchronous advantage actor-critic (A3C)
//!
//! Mnih, Puigdomènech Badia, Mirza et al. (2016), arXiv:1602.01783, algorithm S3.
//!
//! Many workers act at the same time, each in an environment of its own, and change parameters that they
//! share. At any moment they are in different places, which makes updates that follow each other unlike
//! and a replay buffer needless: so the policy itself can be learned, from steps that it has just made.
//! What a step was worth is estimated from the few rewards after it and the critic's value of where that
//! led.
//!
//! A worker copies the shared parameters, makes t_max steps, or as many as are left of its episode, and
//! counts their returns from the last one backwards, beginning with R = V(s_n), or 0 after a termination:
//!
//! ```text
//! R_t = r_t + γ R_{t+1}
//! dθ  = ∇ Σ_t [ −( R_t − V(s_t) ) ln π_θ(a_t|s_t)       the policy, its weights constant
//!               + ½ ( R_t − V_θ(s_t) )²                 the critic
//!               − β H(π_θ(·|s_t)) ]                     the entropy bonus
//! ```
//!
//! With dθ it then changes the shared parameters, by RMSProp, whose mean of squares g is shared too:
//!
//! ```text
//! g ← α g + (1 − α) dθ²
//! θ ← θ − η dθ / √(g + ε)
//! ```
//!
//! Where a time limit cuts an episode, R begins with the value of the state it was cut at.
//!
//! Deviations from the paper:
//! - a gradient is always as old as it would be if all workers were equally fast: between the moment a
//!   worker copies θ and the moment its gradient changes θ, each other worker has changed it once. So a
//!   run is the same each time; in the paper the age varies with the machine;
//! - one rank keeps the parameters and the others are workers, which may be on other machines, where the
//!   paper's are threads that write into one memory without locks (Recht et al. 2011, "Hogwild!");
//! - policy and critic are two small networks of vectors, where the paper's see images and share a torso;
//!   ½ before the critic's loss is not in the paper's pseudo-code, but makes its gradient the error;
//!   t_max is 20, with which a run takes a third of the time of the paper's 5 and learns as well.
//!
//! Run `cargo run -p a3c`: 450 or more on CartPole-v1 after 500,000 steps in eight seconds (RLlib's test of
//! A3C asks for 150 on CartPole-v0, whose greatest return is 200; 475 is Gymnasium's threshold). The workers
//! are threads or, on one machine or many, processes of MPI; after a failure, the last line goes on from
//! the last checkpoint:
//!
//! ```text
//! cargo build -p a3c --features common/mpi      # see common/src/dist/mod.rs for what it needs
//! mpirun -n 9 target/debug/a3c --workers 9      # --mca mpi_yield_when_idle 1 where cores are shared
//! mpirun -n 17 --hostfile hosts /shared/a3c --workers 17 --run-dir /shared/run
//! until mpirun -n 17 --hostfile hosts /shared/a3c --workers 17 --resume /shared/run; do sleep 10; done
//! ```

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::dist::{self, World};
use common::envs::{Episode, Rng, VecEnv, invalid, learner_rng, persist::Persist};
use common::nn::{Categorical, Linear, RmsProp, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

const SERVER: usize = 0; // the rank that keeps the parameters; all others are workers

/// Asynchronous advantage actor-critic, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("500000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Ranks: one that keeps the parameters and, all others, workers; under mpirun its number of processes
    #[arg(long, default_value_t = 9, value_parser = cli::positive)]
    workers: usize,
    /// Step size of RMSProp, η
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Decay of RMSProp's mean of squares, α
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    rms_alpha: f64,
    /// What RMSProp adds to the mean of squares, within the root, ε
    #[arg(long, default_value_t = 0.1, value_parser = cli::above_zero)]
    rms_eps: f64,
    /// Steps of a worker between its updates, t_max
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    num_steps: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Weight of the entropy bonus, β
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    ent_coef: f64,
}

/// A network of tanh units.
struct Network {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [outputs]
}

impl Network {
    /// `sizes` are of the hidden layers. `gain` scales the output layer: 0.01 makes the first policy
    /// almost uniform (Andrychowicz et al. 2021, arXiv:2006.05990), 1 suits a value.
    fn new(mut inputs: usize, sizes: &[usize], outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let mut hidden = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            let sqrt2 = std::f64::consts::SQRT_2;
            hidden.push(linear_orthogonal(inputs, size, sqrt2, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        Ok(Self { hidden, output: linear_orthogonal(inputs, outputs, gain, vb.pp("output"))? })
    }

    /// Observations `[batch, observation_dim]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_tanh(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }
}

/// The steps of one worker between two of its updates; columns `[len]`.
#[derive(Default)]
struct Segment {
    observations: Vec<f32>,     // s_t, [len, observation_dim]
    actions: Vec<u32>,          // a_t
    rewards: Vec<f32>,          // r_t
    next_observation: Vec<f32>, // s_n, what the last step led to: an episode's true last one at its end
    terminated: bool,           // nothing lies beyond s_n; false where the episode was only truncated
    episodes: Vec<Episode>,     // the one that ended with the last step, if one did
}

impl Segment {
    /// Stores the step that the one environment of `envs` has just made from `observation` by `action`.
    fn store(&mut self, observation: &[f32], action: &[u32], envs: &VecEnv) {
        self.observations.extend_from_slice(observation);
        self.actions.extend_from_slice(action);
        self.rewards.extend_from_slice(envs.rewards());
        // Easy to miss: after an episode's end `envs.observations()` are the next episode's.
        self.next_observation = envs.final_observations().to_vec();
        self.terminated = envs.terminated()[0];
        self.episodes.extend_from_slice(envs.episodes());
    }

    /// R_t, `[len]`, from V(s_n).
    fn returns(&self, next_value: f32, gamma: f32) -> Vec<f32> {
        let mut returns = vec![0.0; self.rewards.len()];
        // Easy to miss and fatal: no value lies beyond termination.
        let mut following = if self.terminated { 0.0 } else { next_value };
        for t in (0..returns.len()).rev() {
            // R_t = r_t + γ R_{t+1}
            following = self.rewards[t] + gamma * following;
            returns[t] = following;
        }
        returns
    }
}

/// What a worker sends: what it found in one segment, means over its steps but for the gradient.
#[derive(Serialize, Deserialize)]
struct Update {
    gradient: Vec<f32>, // dθ, [num_parameters]
    policy_loss: f32,
    value_loss: f32,
    entropy: f32,
    num_steps: usize,
    episodes: Vec<Episode>, // that ended
}

/// Policy, critic and how they learn. Every rank has them; the server's are the shared ones, a worker's
/// are as it last copied them.
struct A3c {
    policy: Network,    // logits of π_θ(·|s), [num_actions]
    critic: Network,    // V_θ(s), [1]
    parameters: VarMap, // θ, of both
    optimizer: RmsProp, // of both; only the server's is used
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl A3c {
    fn new(observation_dim: usize, num_actions: usize, hidden_sizes: &[usize], args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let parameters = VarMap::new(args.run.seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let policy = Network::new(observation_dim, hidden_sizes, num_actions, 0.01, vb.pp("policy"))?;
        let critic = Network::new(observation_dim, hidden_sizes, 1, 1.0, vb.pp("critic"))?;
        let optimizer = RmsProp::new(&parameters, args.learning_rate)?
            .with_alpha(args.rms_alpha)
            .with_eps_inside_root(args.rms_eps);
        Ok(Self { policy, critic, parameters, optimizer, observation_dim, args: args.clone(), device })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        let shape = (observations.len() / self.observation_dim, self.observation_dim);
        Ok(Tensor::from_slice(observations, shape, &self.device)?)
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        let policy = Categorical::new(&self.policy.forward(&self.tensor(observations)?)?)?;
        Ok(policy.sample(rng)?.to_vec1()?)
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        let policy = Categorical::new(&self.policy.forward(&self.tensor(observations)?)?)?;
        Ok(policy.mode()?.to_vec1()?)
    }

    /// A worker acts: `num_steps` steps, or as many as are left of the episode.
    fn gather(&self, envs: &mut VecEnv, rng: &mut Rng) -> Result<Segment> {
        let mut segment = Segment::default();
        while segment.rewards.len() < self.args.num_steps && segment.episodes.is_empty() {
            let observation = envs.observations().to_vec(); // [1, observation_dim]
            let action = self.act(&observation, rng)?;
            envs.step(&action)?;
            segment.store(&observation, &action, envs);
        }
        Ok(segment)
    }

    /// A worker learns: dθ, and what is to be known of the segment. Nothing moves.
    fn gradient(&self, segment: Segment) -> Result<Update> {
        let observations = self.tensor(&segment.observations)?; // [len, observation_dim]
        let actions = Tensor::new(segment.actions.as_slice(), &self.device)?; // [len]
        let policy = Categorical::new(&self.policy.forward(&observations)?)?;
        let values = self.critic.forward(&observations)?.squeeze(1)?; // V_θ(s_t), [len]
        let next_value = self.critic.forward(&self.tensor(&segment.next_observation)?)?; // V(s_n), [1, 1]
        let next_value: f32 = next_value.flatten_all()?.squeeze(0)?.to_scalar()?;
        let returns = Tensor::new(segment.returns(next_value, self.args.gamma as f32), &self.device)?;
        let advantages = (&returns - &values)?.detach(); // R_t − V(s_t): the policy's weights are constant

        // −Σ_t ( R_t − V(s_t) ) ln π_θ(a_t|s_t)
        let policy_loss = (advantages * policy.log_prob(&actions)?)?.sum_all()?.neg()?;
        // Σ_t ½ ( R_t − V_θ(s_t) )²
        let value_loss = ((returns.detach() - values)?.sqr()?.sum_all()? * 0.5)?;
        // Σ_t H(π_θ(·|s_t)): a bonus, so that more of it makes the loss smaller.
        let entropy = policy.entropy()?.sum_all()?;
        let loss = ((&policy_loss + &value_loss)? - (&entropy * self.args.ent_coef)?)?;
        let (num_steps, n) = (segment.rewards.len(), segment.rewards.len() as f32);
        Ok(Update {
            gradient: self.parameters.gradients(&loss)?, // dθ
            policy_loss: policy_loss.to_scalar::<f32>()? / n,
            value_loss: value_loss.to_scalar::<f32>()? / n,
            entropy: entropy.to_scalar::<f32>()? / n,
            num_steps,
            episodes: segment.episodes,
        })
    }

    /// The server learns: g ← α g + (1 − α) dθ², θ ← θ − η dθ / √(g + ε).
    fn update(&mut self, gradient: &[f32]) -> Result<()> {
        Ok(self.optimizer.step_values(gradient)?)
    }
}

/// What the server tells a worker to do.
#[derive(Serialize, Deserialize)]
enum Order {
    /// Copy these parameters θ, act and send the [`Update`].
    Learn(Vec<f32>),
    /// Send environment and generator, for a checkpoint.
    Save,
    /// Take on what was sent then.
    Load(Vec<u8>, Rng),
    Stop,
}

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
        let states = (1..self.0.size()).map(|rank| self.0.receive::<Result<(Vec<u8>, Rng), String>>(rank));
        let states = states.collect::<Result<Vec<_>>>()?.into_iter().collect::<Result<Vec<_>, _>>();
        states.map_err(anyhow::Error::msg)?.save()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<()> {
        let mut states: Vec<(Vec<u8>, Rng)> = Vec::new();
        states.load(bytes)?;
        anyhow::ensure!(states.len() + 1 == self.0.size(), "it was run with --workers {}", states.len() + 1);
        (1..).zip(states).try_for_each(|(rank, (envs, rng))| self.0.send(rank, &Order::Load(envs, rng)))
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
    let (observation_dim, num_actions) = spec.box_to_discrete("a3c")?;
    let agent = || A3c::new(observation_dim, num_actions, &[64, 64], &args);
    agent()?; // whatever is wrong with the flags is said once
    dist::launch(workers, |world| match world.rank() {
        SERVER => serve(agent()?, &args, world),
        _ => work(agent()?, &args, world),
    })
}

/// What ranks 1 and up do: act and send gradients.
fn work(a3c: A3c, args: &Args, world: &World) -> Result<()> {
    let seed = args.run.seed.wrapping_add((world.rank() as u64) << 32); // far from the other workers'
    let mut envs = VecEnv::make(&args.run.env_id, 1, seed)?;
    let mut rng = learner_rng(seed);
    loop {
        match world.receive(SERVER)? {
            Order::Learn(parameters) => {
                a3c.parameters.set_values(&parameters)?;
                let segment = a3c.gather(&mut envs, &mut rng)?;
                world.send(SERVER, &a3c.gradient(segment)?)?;
            }
            // An environment that cannot be saved ends no one: the run goes on without checkpoints.
            Order::Save => {
                let state = envs.save().map(|envs| (envs, &rng)).map_err(|error| format!("{error:#}"));
                world.send(SERVER, &state)?;
            }
            Order::Load(saved_envs, saved_rng) => {
                envs.load(&saved_envs)?;
                rng = saved_rng;
            }
            Order::Stop => return Ok(()),
        }
    }
}

/// What rank 0 does: change the shared parameters by the workers' gradients, in turn.
fn serve(mut a3c: A3c, args: &Args, world: &World) -> Result<()> {
    let mut workers = Workers(world);
    let mut updates: Vec<Update> = Vec::new(); // of each worker, not applied yet
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, args)?;

    let mut global_step = 0; // T
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut a3c.parameters),
                ("optimizer", &mut a3c.optimizer),
                ("workers", &mut workers),
                ("updates", &mut updates),
            ],
        )?;

        // In the order of ranks, not of arrival: the same each time. A worker starts anew as soon as its
        // own gradient is in, and has its next one in the turn after all others had theirs.
        for worker in 1..world.size() {
            if let Some(update) = updates.get(worker - 1) {
                if args.anneal_lr {
                    let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
                    a3c.optimizer.learning_rate = remaining.max(0.0) * args.learning_rate;
                }
                a3c.update(&update.gradient)?;
                let logs = (global_step + update.num_steps) / 500 > global_step / 500; // every 500 steps
                global_step += update.num_steps;
                run.episodes(global_step, &update.episodes)?;
                if logs {
                    run.log(global_step, "charts/learning_rate", a3c.optimizer.learning_rate)?;
                    run.log(global_step, "losses/policy_loss", update.policy_loss)?;
                    run.log(global_step, "losses/value_loss", update.value_loss)?;
                    run.log(global_step, "losses/entropy", update.entropy)?;
                }
            }
            world.send(worker, &Order::Learn(a3c.parameters.values()?))?;
        }
        updates = (1..world.size()).map(|worker| world.receive(worker)).collect::<Result<_>>()?;
    }
    workers.tell(&Order::Stop)?;

    run.save_or_load_model(&mut a3c.parameters)?;
    run.evaluate(|observations| a3c.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
