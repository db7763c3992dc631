//! # Importance weighted actor-learner architecture (IMPALA)
//!
//! Espeholt, Soyer, Munos et al. (2018), arXiv:1802.01561.
//!
//! Acting and learning are different work, so IMPALA gives them to different processes: actors send
//! trajectories to a learner, which sends back new parameters, and both work at the same time. The
//! price is that trajectories come from a policy μ older than the policy π that learns from them.
//! V-trace corrects for that: importance weights, clipped so that their variance stays bounded, turn
//! n-step returns under μ into value targets for π.
//!
//! With `ρ_t = min(ρ̄, π(a_t|x_t) / μ(a_t|x_t))` and `c_t = min(c̄, π(a_t|x_t) / μ(a_t|x_t))` the
//! V-trace target of the state at step s of a trajectory of n steps is
//!
//! ```text
//! v_s = V(x_s) + Σ_{t=s}^{n−1} γ^{t−s} ( Π_{i=s}^{t−1} c_i ) δ_t V
//! δ_t V = ρ_t ( r_t + γ V(x_{t+1}) − V(x_t) )
//! ```
//!
//! which on-policy is the n-step return. Gradients descend
//!
//! ```text
//! L(θ) = −E_t[ ρ_t ( r_t + γ v_{t+1} − V(x_t) ) ln π_θ(a_t|x_t) ]   the actor, weights held constant
//!        + c_v E_t[ ½ ( v_t − V_θ(x_t) )² ]                         the critic
//!        − c_e E_t[ H(π_θ(·|x_t)) ]                                 the entropy bonus
//! ```
//!
//! In all of these V(x_{t+1}) and v_{t+1} are 0 where the episode terminated; where a time limit cut
//! it, both are the value of the state it was cut at.
//!
//! Rank 0 learns and the others act. While the learner learns from the trajectories that the actors
//! gathered with its parameters θ_{k−1}, they gather with θ_k: the policy lag is one update, always,
//! so that a run is the same each time (in the paper it varies with the machines' speeds).
//!
//! Run `cargo run -p impala`: 475 or more on CartPole-v1 (the return at which Gymnasium registers it
//! as solved) after 500,000 steps in about 3 seconds. The actors are threads or, on one machine or
//! many, processes of MPI; after a failure, the last line goes on from the last checkpoint:
//!
//! ```text
//! cargo build -p impala --features common/mpi      # see common/src/dist/mod.rs for what it needs
//! mpirun -n 3 target/debug/impala --workers 3      # --mca mpi_yield_when_idle 1 where cores are shared
//! mpirun -n 64 --hostfile hosts /shared/impala --workers 64 --run-dir /shared/run --checkpoint-every 100000
//! until mpirun -n 64 --hostfile hosts /shared/impala --workers 64 --resume /shared/run; do sleep 10; done
//! ```

use anyhow::Result;
use candle_core::{DType, Module, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::dist::{self, World};
use common::envs::{Episode, Rng, VecEnv, invalid, persist::Persist, rng};
use common::nn::{Activation, Adam, Categorical, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[cfg(test)]
mod tests;

const LEARNER: usize = 0; // the rank that learns; all others act

/// Actors and a learner with V-trace, for discrete actions
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("500000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Ranks: a learner and, all others, actors; under mpirun its number of processes
    #[arg(long, default_value_t = 3, value_parser = cli::positive)]
    workers: usize,
    /// Step size of Adam, α (the paper has RMSProp)
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Parallel environments of each actor
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps of a trajectory, n
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    num_steps: usize,
    /// Let the step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Factor on the rewards that are learned from (the paper clips them to ±1): with values of a few
    /// units the critic keeps up and does not take up all of the clipped gradient
    #[arg(long, default_value_t = 0.1, value_parser = cli::above_zero)]
    reward_scale: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Largest importance weight of a temporal difference, ρ̄: which policy's values are learned
    #[arg(long, default_value_t = 1.0, value_parser = cli::above_zero)]
    rho_bar: f64,
    /// Largest importance weight of a trace, c̄: how fast they are learned
    #[arg(long, default_value_t = 1.0, value_parser = cli::above_zero)]
    c_bar: f64,
    /// Weight of the entropy bonus, c_e
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    ent_coef: f64,
    /// Weight of the critic's loss, c_v
    #[arg(long, default_value_t = 0.5, value_parser = cli::non_negative)]
    vf_coef: f64,
    /// Largest norm of the gradient
    #[arg(long, default_value_t = 0.5, value_parser = cli::above_zero)]
    max_grad_norm: f64,
}

/// Two hidden layers of 64 tanh units: the policy's logits, or with one output the value.
struct Mlp {
    hidden1: Linear, // [observation_dim] → [64]
    hidden2: Linear, // [64] → [64]
    output: Linear,  // [64] → [outputs]
}

impl Mlp {
    /// `gain` scales the output layer: 0.01 makes the first policy almost uniform (Andrychowicz et
    /// al. 2021, arXiv:2006.05990), 1 suits a value.
    fn new(observation_dim: usize, outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let (sqrt2, tanh) = (std::f64::consts::SQRT_2, Activation::Tanh);
        Ok(Self {
            hidden1: linear_orthogonal(observation_dim, 64, sqrt2, vb.pp("hidden1"))?.with_activation(tanh),
            hidden2: linear_orthogonal(64, 64, sqrt2, vb.pp("hidden2"))?.with_activation(tanh),
            output: linear_orthogonal(64, outputs, gain, vb.pp("output"))?,
        })
    }

    /// Observations `[batch, observation_dim]`, flattened, to `[batch, outputs]`.
    fn forward(&self, observations: &[f32]) -> Result<Tensor> {
        let weight = self.hidden1.weight();
        let observations = Tensor::from_slice(observations, ((), weight.dim(1)?), weight.device())?;
        let hidden = self.hidden2.forward(&self.hidden1.forward(&observations)?)?;
        Ok(self.output.forward(&hidden)?)
    }

    /// The same as plain numbers, `[batch, outputs]` flattened.
    fn apply(&self, observations: &[f32]) -> Result<Vec<f32>> {
        Ok(self.forward(observations)?.flatten_all()?.to_vec1()?)
    }
}

/// The policy π_θ and the value V_θ, which share nothing. Every rank has them.
struct Agent {
    actor: Mlp,  // logits of π(·|x), [batch, num_actions]
    critic: Mlp, // V(x), [batch, 1]
    parameters: VarMap,
    num_actions: usize,
}

impl Agent {
    fn new(args: &Args) -> Result<Self> {
        let envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
        let (observation_dim, num_actions) = envs.spec().box_to_discrete("impala")?;
        let parameters = VarMap::new(args.run.seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &args.run.device()?);
        let actor = Mlp::new(observation_dim, num_actions, 0.01, vb.pp("actor"))?;
        let critic = Mlp::new(observation_dim, 1, 1.0, vb.pp("critic"))?;
        Ok(Self { actor, critic, parameters, num_actions })
    }
}

/// Trajectories of one actor, or those of all actors one after the other.
#[derive(Default, Serialize, Deserialize)]
struct Rollout {
    observations: Vec<f32>,      // x_t, [num_actors, num_steps, num_envs, observation_dim]
    next_observations: Vec<f32>, // x_{t+1}, the true last one where the episode ended
    actions: Vec<u32>,           // a_t, [num_actors, num_steps, num_envs]
    log_probs: Vec<f32>,         // ln μ(a_t|x_t)
    rewards: Vec<f32>,           // r_t
    terminated: Vec<bool>,
    truncated: Vec<bool>,
    episodes: Vec<Episode>, // that ended meanwhile
}

impl Rollout {
    fn append(&mut self, mut other: Rollout) {
        self.observations.append(&mut other.observations);
        self.next_observations.append(&mut other.next_observations);
        self.actions.append(&mut other.actions);
        self.log_probs.append(&mut other.log_probs);
        self.rewards.append(&mut other.rewards);
        self.terminated.append(&mut other.terminated);
        self.truncated.append(&mut other.truncated);
        self.episodes.append(&mut other.episodes);
    }

    /// The V-trace targets v_t and the actor's weights ρ_t (r_t + γ v_{t+1} − V(x_t)), from V(x_t),
    /// V(x_{t+1}) and ln π(a_t|x_t); all `[num_actors, num_steps, num_envs]`.
    fn v_trace(&self, values: &[f32], next_values: &[f32], log_probs: &[f32], args: &Args) -> [Vec<f32>; 2] {
        let (gamma, rho_bar, c_bar) = (args.gamma as f32, args.rho_bar as f32, args.c_bar as f32);
        let mut targets = vec![0.0; values.len()];
        let mut advantages = vec![0.0; values.len()];
        let mut corrections = vec![0.0; args.num_envs]; // v_{t+1} − V(x_{t+1}) of each environment
        for t in (0..values.len()).rev() {
            let correction = &mut corrections[t % args.num_envs];
            let trajectory_over = (t / args.num_envs + 1).is_multiple_of(args.num_steps);
            if trajectory_over || self.terminated[t] || self.truncated[t] {
                *correction = 0.0; // v_{t+1} = V(x_{t+1}): what comes next in memory does not follow
            }
            // Easy to miss and fatal: no value lies beyond termination.
            let next_value = if self.terminated[t] { 0.0 } else { next_values[t] };
            let ratio = (log_probs[t] - self.log_probs[t]).exp(); // π(a_t|x_t) / μ(a_t|x_t)
            let (rho, c) = (ratio.min(rho_bar), ratio.min(c_bar));
            // ρ_t ( r_t + γ v_{t+1} − V(x_t) )
            advantages[t] = rho * (self.rewards[t] + gamma * (next_value + *correction) - values[t]);
            // δ_t V = ρ_t ( r_t + γ V(x_{t+1}) − V(x_t) )
            let delta = rho * (self.rewards[t] + gamma * next_value - values[t]);
            // v_t − V(x_t) = δ_t V + γ c_t ( v_{t+1} − V(x_{t+1}) )
            *correction = delta + gamma * c * *correction;
            targets[t] = values[t] + *correction;
        }
        [targets, advantages]
    }
}

/// Draws a ~ softmax(logits) for each row; returns the actions and ln π(a).
fn sample(logits: &[f32], num_actions: usize, rng: &mut Rng) -> (Vec<u32>, Vec<f32>) {
    let rows = logits.chunks_exact(num_actions);
    rows.map(|row| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = row.iter().map(|z| (z - max).exp()).sum();
        let mut left = rng.random::<f32>() * total;
        let reached = |z: &f32| {
            left -= (z - max).exp();
            left < 0.0
        };
        // The last action takes what rounding leaves.
        let action = row.iter().position(reached).unwrap_or(num_actions - 1);
        (action as u32, row[action] - max - total.ln())
    })
    .unzip()
}

/// The most probable action of each row.
fn greedy(logits: &[f32], num_actions: usize) -> Vec<u32> {
    let best = |row: &[f32]| (0..num_actions).fold(0, |best, a| if row[a] > row[best] { a } else { best });
    logits.chunks_exact(num_actions).map(|row| best(row) as u32).collect()
}

/// −E[ A ln π(a|x) ], from tensors `[batch]`; the weights A are constants.
fn policy_loss(log_probs: &Tensor, advantages: &Tensor) -> Result<Tensor> {
    Ok((log_probs * advantages)?.mean_all()?.neg()?)
}

/// ½ E[ (v − V(x))² ], from tensors `[batch]`; the targets v are constants.
fn value_loss(values: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Ok(((targets - values)?.sqr()?.mean_all()? * 0.5)?)
}

/// What the learner tells an actor to do.
#[derive(Serialize, Deserialize)]
enum Order {
    /// Act for `num_steps` steps with these parameters and send the [`Rollout`].
    Act(Vec<u8>),
    /// Send environments and generator, for a checkpoint.
    Save,
    /// Take on what was sent then.
    Load(Vec<u8>, Rng),
    Stop,
}

/// The actors as the learner's checkpoint sees them. At the top of the training loop they wait for
/// orders, so that their environments and generators are all there is to be saved.
struct Actors<'a>(&'a World);

impl Actors<'_> {
    fn tell(&self, order: &Order) -> Result<()> {
        (1..self.0.size()).try_for_each(|actor| self.0.send(actor, order))
    }
}

impl Persist for Actors<'_> {
    fn save(&self) -> Result<Vec<u8>> {
        self.tell(&Order::Save)?;
        // All of them answer, also after one that could not.
        let states = (1..self.0.size()).map(|actor| self.0.receive::<Result<(Vec<u8>, Rng), String>>(actor));
        let states = states.collect::<Result<Vec<_>>>()?.into_iter().collect::<Result<Vec<_>, _>>();
        states.map_err(anyhow::Error::msg)?.save()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<()> {
        let mut states: Vec<(Vec<u8>, Rng)> = Vec::new();
        states.load(bytes)?;
        anyhow::ensure!(states.len() + 1 == self.0.size(), "it was run with --workers {}", states.len() + 1);
        (1..).zip(states).try_for_each(|(actor, (envs, rng))| self.0.send(actor, &Order::Load(envs, rng)))
    }
}

fn main() -> ExitCode {
    cli::main(|args: Args| {
        if args.workers < 2 {
            return invalid("--workers 1: at least 2 are needed, a learner and an actor");
        }
        Agent::new(&args)?;
        dist::launch(args.workers, |world| {
            if world.rank() == LEARNER { train(&args, world) } else { act(&args, world) }
        })
    })
}

/// What ranks 1 and up do: follow the learner's orders.
fn act(args: &Args, world: &World) -> Result<()> {
    let mut agent = Agent::new(args)?;
    let seed = args.run.seed.wrapping_add((world.rank() as u64) << 32); // far from the other actors'
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, seed)?;
    let mut rng = rng(seed, u64::MAX);
    loop {
        match world.receive(LEARNER)? {
            Order::Act(parameters) => {
                agent.parameters.load(&parameters)?;
                world.send(LEARNER, &gather(&agent, &mut envs, &mut rng, args)?)?;
            }
            // An environment that cannot be saved ends no one: the run goes on without checkpoints.
            Order::Save => {
                let state = envs.save().map(|envs| (envs, &rng)).map_err(|error| format!("{error:#}"));
                world.send(LEARNER, &state)?;
            }
            Order::Load(saved_envs, saved_rng) => {
                envs.load(&saved_envs)?;
                rng = saved_rng;
            }
            Order::Stop => return Ok(()),
        }
    }
}

/// `num_steps` steps in each environment.
fn gather(agent: &Agent, envs: &mut VecEnv, rng: &mut Rng, args: &Args) -> Result<Rollout> {
    let mut rollout = Rollout::default();
    for _ in 0..args.num_steps {
        let (actions, log_probs) = sample(&agent.actor.apply(envs.observations())?, agent.num_actions, rng);
        rollout.observations.extend_from_slice(envs.observations());
        envs.step(&actions)?;
        rollout.next_observations.extend_from_slice(envs.final_observations());
        rollout.actions.extend(actions);
        rollout.log_probs.extend(log_probs);
        rollout.rewards.extend(envs.rewards().iter().map(|reward| args.reward_scale as f32 * reward));
        rollout.terminated.extend_from_slice(envs.terminated());
        rollout.truncated.extend_from_slice(envs.truncated());
        rollout.episodes.extend_from_slice(envs.episodes());
    }
    Ok(rollout)
}

/// What rank 0 does: learn.
fn train(args: &Args, world: &World) -> Result<()> {
    let device = args.run.device()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, args)?;
    let mut agent = Agent::new(args)?;
    let mut optimizer =
        Adam::new(&agent.parameters, args.learning_rate)?.with_max_grad_norm(args.max_grad_norm);
    let mut actors = Actors(world);
    let mut rollout = Rollout::default();
    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut agent.parameters),
                ("optimizer", &mut optimizer),
                ("actors", &mut actors),
                ("rollout", &mut rollout),
            ],
        )?;
        let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
        optimizer.learning_rate = if args.anneal_lr { remaining } else { 1.0 } * args.learning_rate;

        // The actors gather with θ_k, while the learner learns from what they gathered with θ_{k−1}.
        actors.tell(&Order::Act(agent.parameters.save()?))?;
        let batch_size = rollout.rewards.len();
        if batch_size > 0 {
            let policy = Categorical::new(&agent.actor.forward(&rollout.observations)?)?;
            let log_probs = policy.log_prob(&Tensor::from_slice(&rollout.actions, batch_size, &device)?)?;
            let values = agent.critic.forward(&rollout.observations)?.flatten_all()?;
            let next_values = agent.critic.apply(&rollout.next_observations)?;
            let [targets, advantages] =
                rollout.v_trace(&values.to_vec1()?, &next_values, &log_probs.to_vec1()?, args);

            let policy_loss = policy_loss(&log_probs, &Tensor::from_vec(advantages, batch_size, &device)?)?;
            let value_loss = value_loss(&values, &Tensor::from_vec(targets, batch_size, &device)?)?;
            let entropy = policy.entropy()?.mean_all()?;
            // The entropy is a bonus: more of it makes the loss smaller.
            let loss = ((&policy_loss + (&value_loss * args.vf_coef)?)? - (&entropy * args.ent_coef)?)?;
            optimizer.backward_step(&loss)?;

            run.log(global_step, "charts/learning_rate", optimizer.learning_rate)?;
            run.log(global_step, "losses/policy_loss", policy_loss.to_scalar::<f32>()?)?;
            run.log(global_step, "losses/value_loss", value_loss.to_scalar::<f32>()?)?;
            run.log(global_step, "losses/entropy", entropy.to_scalar::<f32>()?)?;
        }

        // In the order of ranks, not of arrival: the same each time.
        rollout = Rollout::default();
        for actor in 1..world.size() {
            rollout.append(world.receive(actor)?);
        }
        global_step += rollout.rewards.len();
        run.episodes(global_step, &rollout.episodes)?;
    }
    actors.tell(&Order::Stop)?;

    run.save_or_load_model(&mut agent.parameters)?;
    run.evaluate(|observations| Ok(greedy(&agent.actor.apply(observations)?, agent.num_actions)))?;
    Ok(())
}
