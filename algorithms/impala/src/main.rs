//! # Importance weighted actor-learner architecture (IMPALA)
//!
//! Espeholt, Soyer, Munos et al. (2018), arXiv:1802.01561.
//!
//! Actors send trajectories to a learner, which sends back new parameters, and all work at the same
//! time. The price is that trajectories come from a policy μ older than the policy π that learns from
//! them. V-trace corrects for that: importance weights, clipped so that their variance stays bounded,
//! turn n-step returns under μ into value targets for π.
//!
//! With `ρ_t = min(ρ̄, π(a_t|x_t) / μ(a_t|x_t))` and `c_t = min(c̄, π(a_t|x_t) / μ(a_t|x_t))` the
//! V-trace target of the state at step s of a trajectory of n steps is
//!
//! ```text
//! v_s = V(x_s) + Σ_{t=s}^{n−1} γ^{t−s} ( Π_{i=s}^{t−1} c_i ) δ_t V
//! δ_t V = ρ_t ( r_t + γ V(x_{t+1}) − V(x_t) )
//! ```
//!
//! which on-policy, with c̄ ≥ 1, is the n-step return. From the last step backwards the same is
//! `v_s = V(x_s) + δ_s V + γ c_s ( v_{s+1} − V(x_{s+1}) )`.
//!
//! ρ̄ decides which policy's values are learned (π's where it is infinite, μ's as it nears 0), c̄ ≤ ρ̄
//! only how fast. The learner descends the gradient of
//!
//! ```text
//! L(θ) = −E_t[ ρ_t ( r_t + γ v_{t+1} − V(x_t) ) ln π_θ(a_t|x_t) ]   the policy, its weights constant
//!        + c_v E_t[ ½ ( v_t − V_θ(x_t) )² ]                         the critic
//!        − c_e E_t[ H(π_θ(·|x_t)) ]                                 the entropy bonus
//! ```
//!
//! In all of these V(x_{t+1}) and v_{t+1} are 0 where the episode terminated; where a time limit cut
//! it, both are the value of the state it was cut at.
//!
//! Deviations from the paper. The policy lag is one update, always: while the learner learns from what
//! the actors gathered with its parameters θ_{k−1}, they gather with θ_k, and a batch holds a trajectory
//! of every environment. So a run is the same each time; in the paper the lag varies with the machines'
//! speeds. Policy and critic are two small networks that share nothing but the gradient's norm, where the
//! paper's share a torso. Losses are means over the batch, not sums, so that the largest norm of the
//! gradient is another too. Adam in place of RMSProp, whose ε (0.1 in the authors' program) suits the scale
//! of a summed loss. Rewards are scaled, not clipped, which keeps their proportions.
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
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::dist::{self, World};
use common::envs::{Episode, Rng, VecEnv, invalid, learner_rng, persist::Persist};
use common::nn::{Adam, Categorical, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

const LEARNER: usize = 0; // the rank that learns; all others act

/// Actors and a learner with V-trace, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
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
    /// Step size of Adam, α
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
    /// Factor on the rewards: small values do not take up all of the clipped gradient
    #[arg(long, default_value_t = 0.1, value_parser = cli::above_zero)]
    reward_scale: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Largest importance weight of a temporal difference, ρ̄: which policy's values are learned
    #[arg(long, default_value_t = 1.0, value_parser = cli::above_zero)]
    rho_bar: f64,
    /// Largest importance weight of a trace, c̄, at most ρ̄: how fast they are learned
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

/// One actor's trajectories, or all actors' one after the other; columns `[num_actors, num_steps, num_envs]`.
#[derive(Default, Serialize, Deserialize)]
struct Rollout {
    observations: Vec<f32>,      // x_t, [num_actors, num_steps, num_envs, observation_dim]
    actions: Vec<u32>,           // a_t
    log_probs: Vec<f32>,         // ln μ(a_t|x_t)
    rewards: Vec<f32>,           // r_t, before they are scaled
    next_observations: Vec<f32>, // x_{t+1}, an episode's true last one at its end, shaped like x_t
    terminated: Vec<bool>,       // nothing lies beyond x_{t+1}
    truncated: Vec<bool>,        // the episode was cut off at x_{t+1}
    episodes: Vec<Episode>,      // that ended meanwhile
}

impl Rollout {
    /// Stores the step that `envs` have just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], actions: &[u32], log_probs: &[f32], envs: &VecEnv) {
        self.observations.extend_from_slice(observations);
        self.actions.extend_from_slice(actions);
        self.log_probs.extend_from_slice(log_probs);
        self.rewards.extend_from_slice(envs.rewards());
        // Easy to miss: after an episode's end `envs.observations()` are the next episode's.
        self.next_observations.extend_from_slice(envs.final_observations());
        self.terminated.extend_from_slice(envs.terminated());
        self.truncated.extend_from_slice(envs.truncated());
        self.episodes.extend_from_slice(envs.episodes());
    }

    /// Adds another actor's trajectories.
    fn append(&mut self, mut other: Rollout) {
        self.observations.append(&mut other.observations);
        self.actions.append(&mut other.actions);
        self.log_probs.append(&mut other.log_probs);
        self.rewards.append(&mut other.rewards);
        self.next_observations.append(&mut other.next_observations);
        self.terminated.append(&mut other.terminated);
        self.truncated.append(&mut other.truncated);
        self.episodes.append(&mut other.episodes);
    }

    /// The critic's targets v_t and the policy's weights ρ_t ( r_t + γ v_{t+1} − V(x_t) ), from V(x_t),
    /// V(x_{t+1}) and ln π(a_t|x_t); all `[num_actors, num_steps, num_envs]`.
    fn v_trace(&self, values: &[f32], next_values: &[f32], log_probs: &[f32], args: &Args) -> [Vec<f32>; 2] {
        let (gamma, rho_bar, c_bar) = (args.gamma as f32, args.rho_bar as f32, args.c_bar as f32);
        let (num_steps, num_envs) = (args.num_steps, args.num_envs);
        let (mut targets, mut advantages) = (vec![0.0; values.len()], vec![0.0; values.len()]);
        for actor in 0..values.len() / (num_steps * num_envs) {
            // v_{t+1} − V(x_{t+1}); 0 after the last step, where V is all that is known.
            let mut next_corrections = vec![0.0; num_envs];
            for t in (0..num_steps).rev() {
                for (env, next_correction) in next_corrections.iter_mut().enumerate() {
                    let i = (actor * num_steps + t) * num_envs + env;
                    // Easy to miss and fatal: what follows an episode's end belongs to the next one,
                    // and no value lies beyond termination.
                    if self.terminated[i] || self.truncated[i] {
                        *next_correction = 0.0;
                    }
                    let next_value = if self.terminated[i] { 0.0 } else { next_values[i] };
                    let next_target = next_value + *next_correction; // v_{t+1}
                    let ratio = (log_probs[i] - self.log_probs[i]).exp(); // π(a_t|x_t) / μ(a_t|x_t)
                    let (rho, c) = (ratio.min(rho_bar), ratio.min(c_bar));
                    let reward = args.reward_scale as f32 * self.rewards[i];
                    // ρ_t ( r_t + γ v_{t+1} − V(x_t) )
                    advantages[i] = rho * (reward + gamma * next_target - values[i]);
                    // δ_t V = ρ_t ( r_t + γ V(x_{t+1}) − V(x_t) )
                    let delta = rho * (reward + gamma * next_value - values[i]);
                    // v_t − V(x_t) = δ_t V + γ c_t ( v_{t+1} − V(x_{t+1}) )
                    *next_correction = delta + gamma * c * *next_correction;
                    targets[i] = values[i] + *next_correction;
                }
            }
        }
        [targets, advantages]
    }
}

/// What one update found, before it moved the parameters.
struct Losses {
    policy_loss: f32,
    value_loss: f32,
    entropy: f32,
    approx_kl: f32, // KL(μ ‖ π_θ): how far the policy lags
}

/// Policy, critic and how they learn. Every rank has them; only rank 0's learn.
struct Impala {
    policy: Network,    // logits of π_θ(·|x), [num_actions]
    critic: Network,    // V_θ(x), [1]
    parameters: VarMap, // θ, of both
    optimizer: Adam,    // of both
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl Impala {
    fn new(observation_dim: usize, num_actions: usize, hidden_sizes: &[usize], args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let parameters = VarMap::new(args.run.seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let policy = Network::new(observation_dim, hidden_sizes, num_actions, 0.01, vb.pp("policy"))?;
        let critic = Network::new(observation_dim, hidden_sizes, 1, 1.0, vb.pp("critic"))?;
        let optimizer = Adam::new(&parameters, args.learning_rate)?.with_max_grad_norm(args.max_grad_norm);
        Ok(Self { policy, critic, parameters, optimizer, observation_dim, args: args.clone(), device })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        let shape = (observations.len() / self.observation_dim, self.observation_dim);
        Ok(Tensor::from_slice(observations, shape, &self.device)?)
    }

    /// a ~ π_θ(·|x) and ln π_θ(a|x) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<(Vec<u32>, Vec<f32>)> {
        let policy = Categorical::new(&self.policy.forward(&self.tensor(observations)?)?)?;
        let actions = policy.sample(rng)?;
        Ok((actions.to_vec1()?, policy.log_prob(&actions)?.to_vec1()?))
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        let policy = Categorical::new(&self.policy.forward(&self.tensor(observations)?)?)?;
        Ok(policy.mode()?.to_vec1()?)
    }

    /// An actor's work: `num_steps` steps in each environment.
    fn gather(&self, envs: &mut VecEnv, rng: &mut Rng) -> Result<Rollout> {
        let mut rollout = Rollout::default();
        for _ in 0..self.args.num_steps {
            let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
            let (actions, log_probs) = self.act(&observations, rng)?;
            envs.step(&actions)?;
            rollout.store(&observations, &actions, &log_probs, envs);
        }
        Ok(rollout)
    }

    /// The learner's work: one step of Adam down L(θ).
    fn update(&mut self, rollout: &Rollout) -> Result<Losses> {
        let observations = self.tensor(&rollout.observations)?; // [batch, observation_dim]
        let actions = Tensor::new(rollout.actions.as_slice(), &self.device)?; // [batch]
        let policy = Categorical::new(&self.policy.forward(&observations)?)?;
        let log_probs = policy.log_prob(&actions)?; // ln π_θ(a_t|x_t), [batch]
        let values = self.critic.forward(&observations)?.squeeze(1)?; // V_θ(x_t), [batch]
        let next_values = self.critic.forward(&self.tensor(&rollout.next_observations)?)?.squeeze(1)?;

        // In the paper, too, ratios and values are those of the learner's parameters, not the actors'.
        let new_log_probs: Vec<f32> = log_probs.to_vec1()?;
        let [targets, advantages] =
            rollout.v_trace(&values.to_vec1()?, &next_values.to_vec1()?, &new_log_probs, &self.args);
        let targets = Tensor::new(targets, &self.device)?.detach();
        let advantages = Tensor::new(advantages, &self.device)?.detach();

        // −E[ ρ_t ( r_t + γ v_{t+1} − V(x_t) ) ln π_θ(a_t|x_t) ]
        let policy_loss = (advantages * log_probs)?.mean_all()?.neg()?;
        // E[ ½ ( v_t − V_θ(x_t) )² ]
        let value_loss = ((targets - values)?.sqr()?.mean_all()? * 0.5)?;
        // E[ H(π_θ(·|x_t)) ]: a bonus, so that more of it makes the loss smaller.
        let entropy = policy.entropy()?.mean_all()?;
        // L(θ)
        let loss = ((&policy_loss + (&value_loss * self.args.vf_coef)?)? - (&entropy * self.args.ent_coef)?)?;
        self.optimizer.backward_step(&loss)?;

        // KL(μ ‖ π_θ) ≈ E[ ratio − 1 − ln ratio ], not clipped (Schulman 2020, "Approximating KL divergence")
        let log_ratios = new_log_probs.iter().zip(&rollout.log_probs).map(|(new, old)| new - old);
        Ok(Losses {
            policy_loss: policy_loss.to_scalar()?,
            value_loss: value_loss.to_scalar()?,
            entropy: entropy.to_scalar()?,
            approx_kl: log_ratios.map(|l| l.exp_m1() - l).sum::<f32>() / new_log_probs.len() as f32,
        })
    }
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
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let Args { workers, rho_bar, c_bar, .. } = args;
    if workers < 2 {
        return invalid(format!("--workers {workers}: at least 2, a learner and an actor"));
    }
    // The paper proves its operator a contraction for ρ̄ ≥ c̄ only.
    if c_bar > rho_bar {
        return invalid(format!("--c-bar {c_bar}: at most --rho-bar {rho_bar}, as V-trace assumes"));
    }
    let spec = VecEnv::make(&args.run.env_id, 1, args.run.seed)?.spec().clone();
    let (observation_dim, num_actions) = spec.box_to_discrete("impala")?;
    let agent = || Impala::new(observation_dim, num_actions, &[64, 64], &args);
    agent()?; // whatever is wrong with the flags is said once
    dist::launch(workers, |world| match world.rank() {
        LEARNER => learn(agent()?, &args, world),
        _ => follow(agent()?, &args, world),
    })
}

/// What ranks 1 and up do: follow the learner's orders.
fn follow(mut impala: Impala, args: &Args, world: &World) -> Result<()> {
    let seed = args.run.seed.wrapping_add((world.rank() as u64) << 32); // far from the other actors'
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, seed)?;
    let mut rng = learner_rng(seed);
    loop {
        match world.receive(LEARNER)? {
            Order::Act(parameters) => {
                impala.parameters.load(&parameters)?;
                world.send(LEARNER, &impala.gather(&mut envs, &mut rng)?)?;
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

/// What rank 0 does: learn.
fn learn(mut impala: Impala, args: &Args, world: &World) -> Result<()> {
    let mut actors = Actors(world);
    let mut rollout = Rollout::default();
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut impala.parameters),
                ("optimizer", &mut impala.optimizer),
                ("actors", &mut actors),
                ("rollout", &mut rollout),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            impala.optimizer.learning_rate = remaining * args.learning_rate;
        }

        // The actors gather with θ_k, while the learner learns from what they gathered with θ_{k−1}.
        actors.tell(&Order::Act(impala.parameters.save()?))?;
        if !rollout.rewards.is_empty() {
            let losses = impala.update(&rollout)?;
            run.log(global_step, "charts/learning_rate", impala.optimizer.learning_rate)?;
            run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
            run.log(global_step, "losses/value_loss", losses.value_loss)?;
            run.log(global_step, "losses/entropy", losses.entropy)?;
            run.log(global_step, "losses/approx_kl", losses.approx_kl)?;
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

    run.save_or_load_model(&mut impala.parameters)?;
    run.evaluate(|observations| impala.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
