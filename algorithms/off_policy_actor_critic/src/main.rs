//! # Off-policy actor-critic with a replay buffer
//!
//! Levine, "Deep reinforcement learning" (CS 285), lecture 6, "Off-policy actor-critic": the last form of the
//! algorithm, with action values. Baseline: Sutton & Barto (2018), "Reinforcement Learning", section 13.4.
//!
//! To learn from a replay buffer, an actor-critic must not pretend that what lies in it came from its policy.
//! A state value would be the wrong critic, since the buffer's rewards follow other policies' actions: an
//! action value Q(s, a) asks for no particular policy at its first action, and the one that follows is drawn
//! anew, from the present policy. And the policy gradient is of the policy's own actions, not of the buffer's:
//! there, too, an action is drawn anew, which Q can judge although nobody ever took it.
//!
//! ```text
//! y    = r + γ (1 − terminated) Q(s', a'; φ⁻)              a' ~ π_θ(·|s'), not from the buffer
//! L(φ) = E_{(s, a, r, s') ~ replay}[ ½ ( Q(s, a; φ) − y )² ]
//! J(θ) = E_{s ~ replay}[ ln π_θ(ã|s) ( Q(s, ã; φ) − V(s) ) ] + c_e E[ H(π_θ(·|s)) ]     ã ~ π_θ(·|s)
//! V(s) = Σ_a π_θ(a|s) Q(s, a; φ)
//! φ⁻   ← (1 − τ) φ⁻ + τ φ
//! ```
//!
//! φ goes down L, θ up J; in J's first term only ln π_θ has a gradient: ã, Q and V are held constant. States
//! are still the old policies', and all that can be done about that is to forget the oldest: a better policy
//! is asked for on more states than it will visit. A draw is a = argmax_a ( ln π(a|s) + u_a ) with u from
//! Gumbel's distribution, so that the noise can be given. A time limit ends no episode for y, which looks beyond
//! it from the true last state (Pardo et al. 2018, arXiv:1712.00378).
//!
//! Deviations from the notes, each taken back by a flag: a target network φ⁻ (`--tau 1`), without which the
//! target moves with what it is the target of; a baseline V(s) (`--baseline false`), without which Q, all
//! positive where rewards are, makes whatever was drawn more probable; an entropy bonus (`--ent-coef 0`), without
//! which the policy, so much faster with a baseline, is certain before the critic is right, and draws nothing
//! else any more; eight environments that make a step each before an update (`--num-envs 1`); and step sizes
//! that fall to zero (`--anneal-lr false`). Not by a flag: Adam, a loss of half the square, hidden layers of
//! tanh units, and no update before learning_starts. `--replayed-actions` is what the notes warn of: a policy
//! gradient of the buffer's actions, as if π_θ had drawn them.
//!
//! Two defaults matter. Up to the values of episodes that never end Q grows in some 1 / ((1 − γ) τ) updates: 2000
//! of the 18,600 that there are, but 10,000 with τ = 0.01. And the buffer is small, so that its states are those
//! of policies not long past: with `--buffer-size 50000` two seeds of two ended near 345
//! after 100,000 steps.
//!
//! Run `cargo run -p off_policy_actor_critic`: 500 on CartPole-v1 with each of 15 seeds, after 150,000 steps
//! in ten seconds (475 is the return at which Gymnasium registers it as solved).

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{
    Adam, Categorical, Linear, VarBuilder, VarMap, copy_parameters, linear_orthogonal, soft_update,
};
use common::run::Run;
use rand::RngExt;
use rand_distr::{Distribution, Gumbel};
use serde::{Deserialize, Serialize};
use std::f64::consts::SQRT_2;
use std::process::ExitCode;

/// Off-policy actor-critic: a replayed action-value critic, and actions drawn anew from the current policy
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("150000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of the policy's Adam
    #[arg(long, default_value_t = 3e-4, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the critic's Adam
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    q_lr: f64,
    /// Let both step sizes fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Parallel environments, each of which makes one step between updates
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    num_envs: usize,
    /// Transitions that the replay buffer holds
    #[arg(long, default_value_t = 10_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// How far the target critic moves to the critic after each update, τ
    #[arg(long, default_value_t = 0.05, value_parser = cli::unit_interval)]
    tau: f64,
    /// Transitions in an update
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    batch_size: usize,
    /// Environment steps before learning starts
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Subtract V(s) from Q(s, ã)
    #[arg(long, default_value_t = true)]
    baseline: bool,
    /// Weight of the entropy bonus, c_e; Q and V are in units of returns
    #[arg(long, default_value_t = 0.3, value_parser = cli::non_negative)]
    ent_coef: f64,
    /// Take the policy's gradient at the buffer's actions, which is wrong
    #[arg(long, default_value_t = false)]
    replayed_actions: bool,
}

/// A network of tanh units.
struct Network {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [num_actions]
}

impl Network {
    /// `sizes` are of the hidden layers. `gain` scales the output layer: 0.01 makes the first policy
    /// almost uniform (Andrychowicz et al. 2021, arXiv:2006.05990), 1 suits values.
    fn new(mut inputs: usize, sizes: &[usize], outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let mut hidden = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            hidden.push(linear_orthogonal(inputs, size, SQRT_2, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        Ok(Self { hidden, output: linear_orthogonal(inputs, outputs, gain, vb.pp("output"))? })
    }

    /// Observations `[batch, observation_dim]` to `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_tanh(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }
}

/// The last `capacity` transitions, the oldest overwritten first.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    capacity: usize,
    next_row: usize,             // where the next transition goes
    observations: Vec<f32>,      // s, [len, observation_dim]
    actions: Vec<u32>,           // a, [len]
    rewards: Vec<f32>,           // r, [len]
    next_observations: Vec<f32>, // s', an episode's true last one at its end, [len, observation_dim]
    terminated: Vec<f32>,        // 1 where nothing lies beyond s', 0 elsewhere, truncation included, [len]
}

/// Transitions drawn from the buffer.
struct Batch {
    observations: Tensor,      // s, [batch, observation_dim]
    actions: Tensor,           // a, [batch, 1], u32
    rewards: Tensor,           // r, [batch, 1]
    next_observations: Tensor, // s', [batch, observation_dim]
    terminated: Tensor,        // 1 or 0, [batch, 1]
}

impl ReplayBuffer {
    /// Stores the step that each of `envs` has just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], actions: &[u32], envs: &VecEnv) {
        let dim = envs.observation_dim();
        for (env, &action) in actions.iter().enumerate() {
            let (row, own) = (self.next_row, env * dim..(env + 1) * dim);
            write_row(&mut self.observations, row, &observations[own.clone()]);
            write_row(&mut self.actions, row, &[action]);
            write_row(&mut self.rewards, row, &[envs.rewards()[env]]);
            // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
            write_row(&mut self.next_observations, row, &envs.final_observations()[own]);
            write_row(&mut self.terminated, row, &[f32::from(u8::from(envs.terminated()[env]))]);
            self.next_row = (row + 1) % self.capacity;
        }
    }

    /// `batch_size` transitions, uniformly and with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<Batch> {
        let len = self.rewards.len();
        let rows: Vec<usize> = (0..batch_size).map(|_| rng.random_range(0..len)).collect();
        let gather = |column: &[f32]| {
            let width = column.len() / len;
            let values = rows.iter().flat_map(|row| &column[row * width..(row + 1) * width]);
            Tensor::from_vec(values.copied().collect(), (batch_size, width), device)
        };
        let actions: Vec<u32> = rows.iter().map(|&row| self.actions[row]).collect();
        Ok(Batch {
            observations: gather(&self.observations)?,
            actions: Tensor::from_vec(actions, (batch_size, 1), device)?,
            rewards: gather(&self.rewards)?,
            next_observations: gather(&self.next_observations)?,
            terminated: gather(&self.terminated)?,
        })
    }
}

/// Writes `values` to a row of a column, which grows until it is full.
fn write_row<T: Copy>(column: &mut Vec<T>, row: usize, values: &[T]) {
    let start = row * values.len();
    if start == column.len() {
        column.extend_from_slice(values);
    } else {
        column[start..start + values.len()].copy_from_slice(values);
    }
}

/// Policy, critic, its target and how they learn.
struct OffPolicyActorCritic {
    policy: Network,           // logits of π_θ(·|s)
    critic: Network,           // Q(s, ·; φ)
    target_critic: Network,    // Q(s, ·; φ⁻)
    policy_parameters: VarMap, // θ
    critic_parameters: VarMap, // φ
    target_parameters: VarMap, // φ⁻: a map of its own, for a clone would follow φ
    policy_optimizer: Adam,
    critic_optimizer: Adam,
    observation_dim: usize,
    num_actions: usize,
    args: Args,
    device: Device,
}

impl OffPolicyActorCritic {
    fn new(envs: &VecEnv, hidden_sizes: &[usize], args: &Args, rng: &mut Rng) -> Result<Self> {
        let (observation_dim, num_actions) = envs.spec().box_to_discrete("off_policy_actor_critic")?;
        let device = args.run.device()?;
        let (policy_parameters, critic_parameters) = (VarMap::new(rng.random()), VarMap::new(rng.random()));
        let target_parameters = VarMap::new(0);
        let network = |parameters: &VarMap, gain| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            Network::new(observation_dim, hidden_sizes, num_actions, gain, vb)
        };
        let (policy, critic) = (network(&policy_parameters, 0.01)?, network(&critic_parameters, 1.0)?);
        let target_critic = network(&target_parameters, 1.0)?;
        copy_parameters(&target_parameters, &critic_parameters)?;
        Ok(Self {
            policy,
            critic,
            target_critic,
            policy_optimizer: Adam::new(&policy_parameters, args.policy_lr)?,
            critic_optimizer: Adam::new(&critic_parameters, args.q_lr)?,
            policy_parameters,
            critic_parameters,
            target_parameters,
            observation_dim,
            num_actions,
            args: args.clone(),
            device,
        })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// u, `[batch, num_actions]`, for as many draws.
    fn noise(&self, batch: usize, rng: &mut Rng) -> Result<Tensor> {
        let gumbel = Gumbel::new(0.0_f32, 1.0)?;
        let numbers: Vec<f32> = (0..batch * self.num_actions).map(|_| gumbel.sample(rng)).collect();
        Ok(Tensor::from_vec(numbers, (batch, self.num_actions), &self.device)?)
    }

    /// a ~ π_θ(·|s), `[batch, 1]`, for observations `[batch, observation_dim]` and noise u.
    fn draw(&self, observations: &Tensor, noise: &Tensor) -> Result<Tensor> {
        // a = argmax_a ( ln π(a|s) + u_a ); logits are ln π but for a constant.
        Ok((self.policy.forward(observations)? + noise)?.argmax_keepdim(D::Minus1)?)
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        let observations = self.tensor(observations)?;
        let noise = self.noise(observations.dim(0)?, rng)?;
        Ok(self.draw(&observations, &noise)?.flatten_all()?.to_vec1()?)
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(self.policy.forward(&self.tensor(observations)?)?.argmax(D::Minus1)?.to_vec1()?)
    }

    /// y, `[batch, 1]`.
    fn td_targets(&self, batch: &Batch, noise: &Tensor) -> Result<Tensor> {
        // Easy to miss: a' comes from the current policy, not from the buffer.
        let next_actions = self.draw(&batch.next_observations, noise)?; // [batch, 1]
        let next_values = self.target_critic.forward(&batch.next_observations)?.gather(&next_actions, 1)?;
        // y = r + γ (1 − terminated) Q(s', a'; φ⁻)
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((&batch.rewards + discounts * next_values)?.detach())
    }

    /// One step of the critic towards y. Returns L(φ) and E[ Q(s, a; φ) ] from before it.
    fn update_critic(&mut self, batch: &Batch, noise: &Tensor) -> Result<(f32, f32)> {
        let y = self.td_targets(batch, noise)?;
        let q_values = self.critic.forward(&batch.observations)?.gather(&batch.actions, 1)?; // Q(s, a), [batch, 1]
        // L(φ) = E[ ½ ( Q(s, a; φ) − y )² ]
        let loss = ((&q_values - y)?.sqr()?.mean_all()? * 0.5)?;
        self.critic_optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, q_values.mean_all()?.to_scalar()?))
    }

    /// One step of the policy up J(θ); the critic stays as it is. Returns −J(θ) without the entropy bonus,
    /// and E[ H(π_θ(·|s)) ], both from before it.
    fn update_policy(&mut self, batch: &Batch, noise: &Tensor) -> Result<(f32, f32)> {
        // Easy to miss: ã comes from the current policy, not from the buffer, ...
        let actions = match self.args.replayed_actions {
            false => self.draw(&batch.observations, noise)?,
            true => batch.actions.clone(),
        }; // [batch, 1]
        // ... since Q can judge whatever action.
        let q_values = self.critic.forward(&batch.observations)?; // Q(s, ·), [batch, num_actions]
        let policy = Categorical::new(&self.policy.forward(&batch.observations)?)?;
        let log_probs = policy.log_prob(&actions.squeeze(1)?)?; // ln π_θ(ã|s), [batch]
        let mut weights = q_values.gather(&actions, 1)?.squeeze(1)?; // [batch]
        if self.args.baseline {
            // V(s) = Σ_a π_θ(a|s) Q(s, a; φ)
            let values = expectation(&policy, &q_values)?; // [batch]
            weights = (weights - values)?;
        }
        // −E[ ln π_θ(ã|s) ( Q(s, ã; φ) − V(s) ) ], in which only ln π_θ is not constant
        let policy_loss = (log_probs * weights.detach())?.mean_all()?.neg()?;
        // E[ H(π_θ(·|s)) ]: a bonus, so that more of it makes the loss smaller.
        let entropy = policy.entropy()?.mean_all()?;
        self.policy_optimizer.backward_step(&(&policy_loss - (&entropy * self.args.ent_coef)?)?)?;
        Ok((policy_loss.to_scalar()?, entropy.to_scalar()?))
    }

    /// φ⁻ ← (1 − τ) φ⁻ + τ φ
    fn update_target(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.critic_parameters, self.args.tau)?)
    }
}

/// Σ_a π(a|s) x(s, a), `[batch]`, of x, `[batch, num_actions]`.
fn expectation(policy: &Categorical, x: &Tensor) -> Result<Tensor> {
    let (batch, num_actions) = x.dims2()?;
    let log_probs = (0..num_actions as u32)
        .map(|action| policy.log_prob(&Tensor::full(action, batch, x.device())?))
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok((Tensor::stack(&log_probs, 1)?.exp()? * x)?.sum(1)?)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, args.run.seed)?;
    let mut rng = learner_rng(args.run.seed);
    let mut learner = OffPolicyActorCritic::new(&envs, &[64, 64], &args, &mut rng)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let (mut global_step, mut updates) = (0, 0_u64);
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("policy", &mut learner.policy_parameters),
                ("critic", &mut learner.critic_parameters),
                ("target_critic", &mut learner.target_parameters),
                ("policy_optimizer", &mut learner.policy_optimizer),
                ("critic_optimizer", &mut learner.critic_optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("buffer", &mut buffer),
                ("updates", &mut updates),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            learner.policy_optimizer.learning_rate = remaining * args.policy_lr;
            learner.critic_optimizer.learning_rate = remaining * args.q_lr;
        }

        // Act, one step in each environment, and store what happened.
        let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
        let actions = learner.act(&observations, &mut rng)?;
        envs.step(&actions)?;
        buffer.store(&observations, &actions, &envs);
        global_step += args.num_envs;
        run.episodes(global_step, envs.episodes())?;
        if global_step < args.learning_starts {
            continue;
        }

        // Learn: the critic first, since the policy asks it.
        let batch = buffer.sample(args.batch_size, &mut rng, &learner.device)?;
        let noise = learner.noise(args.batch_size, &mut rng)?;
        let (qf_loss, q_values) = learner.update_critic(&batch, &noise)?;
        let noise = learner.noise(args.batch_size, &mut rng)?;
        let (policy_loss, entropy) = learner.update_policy(&batch, &noise)?;
        learner.update_target()?;
        updates += 1;
        if updates.is_multiple_of(100) {
            run.log(global_step, "charts/learning_rate", learner.policy_optimizer.learning_rate)?;
            run.log(global_step, "losses/qf_loss", qf_loss)?;
            run.log(global_step, "losses/qf_values", q_values)?;
            run.log(global_step, "losses/policy_loss", policy_loss)?;
            run.log(global_step, "losses/entropy", entropy)?;
        }
    }

    run.save_or_load_model(&mut learner.policy_parameters)?;
    run.evaluate(|observations| learner.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
