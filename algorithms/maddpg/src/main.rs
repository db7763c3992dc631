//! # Multi-agent deep deterministic policy gradient (MADDPG)
//!
//! Lowe, Wu, Tamar, Harb, Abbeel & Mordatch (2017), arXiv:1706.02275.
//!
//! To an agent that learns beside others the world never holds still: what its actions lead to
//! changes with their policies. MADDPG gives each agent i a critic Q_i that sees the observations
//! x = (o_1, …, o_N) and the actions a = (a_1, …, a_N) of everybody: what follows (x, a) is the same
//! whoever chose a. Only training needs critics; an actor μ_i sees its own observation o_i alone.
//!
//! ```text
//! targets   y_i = r_i + γ (1 − terminated) Q'_i(x', μ'_1(o'_1), …, μ'_N(o'_N))
//! critics   L(φ_i) = E[ (Q_i(x, a) − y_i)² ]
//! actors    J(θ_i) = E[ Q_i(x, a_1, …, μ_i(o_i), …, a_N) ],   to be maximised
//! averages  φ'_i ← (1 − τ) φ'_i + τ φ_i,   θ'_i ← (1 − τ) θ'_i + τ θ_i
//! ```
//!
//! Agents choose between movements and between words. For a gradient ∂Q_i/∂a_i to exist, a choice
//! is relaxed to a weighting of its options, the Gumbel-softmax (Jang, Gu & Poole 2016,
//! arXiv:1611.01144), whose noise is the exploration as well. The weights themselves are played, as
//! the environments' continuous actions, so that critics learn from what was done:
//!
//! ```text
//! μ_i(o_i) = softmax(z + g),   z the actor's logits,   g_k = −ln(−ln u_k),   u_k ~ U(0, 1)
//! ```
//!
//! Deviations from the paper: updates are smaller and more frequent (128 transitions every 25 steps
//! instead of 1024 every 100) and begin after 2000 steps instead of 25,600; τ is 0.02 and step sizes
//! are 0.002 and 0.005 instead of 0.01 each: a run takes less time and ends alike. From the authors'
//! code (openai/maddpg): large logits are penalised, each agent's target draws an a' of its own,
//! gradients are clipped (here each network's, there each of its tensors'). §4.2 and §4.3 (inferred
//! policies, policy ensembles) are left out.
//!
//! Run `cargo run -p maddpg`: about −21 (−16 to −26) on simple_speaker_listener_v4 after 150,000
//! steps in five seconds, and with `--env-id simple_v3 --total-timesteps 75000` about −7.5 in two. Returns
//! are sums over the agents. The authors' code, with exploration, reaches −22 (−14 to −30 over ten
//! trials) and −6.3 in as many steps (curves of wsjeon/maddpg-rllib); random actions −73 and −36.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::mpe::{MultiSpec, ParallelVecEnv};
use common::envs::persist::Persist;
use common::envs::{Rng, learner_rng};
use common::nn::{Adam, Linear, VarBuilder, VarMap, copy_parameters, linear, soft_update};
use common::run::Run;
use rand::RngExt;
use rand_distr::Open01;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::process::ExitCode;

/// Multi-agent deep deterministic policy gradient, on the particle environments
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("simple_speaker_listener_v4")))]
#[command(mut_arg("env_id", |arg| arg.help("Environment: a multi-agent one, such as simple_v3")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("150000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam for the actors
    #[arg(long, default_value_t = 2e-3, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of Adam for the critics
    #[arg(long, default_value_t = 5e-3, value_parser = cli::non_negative)]
    q_lr: f64,
    /// Parallel environments
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    num_envs: usize,
    /// Units in each of the two hidden layers
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    hidden_size: usize,
    /// Transitions that the replay buffer holds
    #[arg(long, default_value_t = 1_000_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.95, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Share of the online networks that enters their averages in each update, τ
    #[arg(long, default_value_t = 0.02, value_parser = cli::unit_interval)]
    tau: f64,
    /// Transitions in an update
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    batch_size: usize,
    /// Environment steps before learning starts
    #[arg(long, default_value_t = 2000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Environment steps between updates
    #[arg(long, default_value_t = 25, value_parser = cli::positive)]
    train_frequency: usize,
    /// Largest norm of the gradient of an actor or a critic
    #[arg(long, default_value_t = 0.5, value_parser = cli::above_zero)]
    max_grad_norm: f64,
    /// Weight of the penalty on large logits, c
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    logit_coef: f64,
}

/// Two hidden layers of ReLU units.
struct Mlp {
    hidden1: Linear, // [inputs] → [hidden_size]
    hidden2: Linear, // [hidden_size] → [hidden_size]
    output: Linear,  // [hidden_size] → [outputs]
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
        let x = self.hidden1.forward_relu(x)?;
        let x = self.hidden2.forward_relu(&x)?;
        Ok(self.output.forward(&x)?)
    }

    /// The same network with its parameters held constant: gradients pass through it to its input.
    fn held_constant(&self) -> Self {
        let Self { hidden1, hidden2, output } = self;
        Self { hidden1: hidden1.detach(), hidden2: hidden2.detach(), output: output.detach() }
    }
}

/// Some columns of a tensor, `[batch, range.len()]`.
fn columns(x: &Tensor, range: &Range<usize>) -> Result<Tensor> {
    Ok(x.narrow(1, range.start, range.len())?)
}

/// One agent's networks, online or of the averages, and its place among the others.
struct Agent {
    actor: Mlp,                // o_i → logits z
    critic: Mlp,               // Q_i: (x, a), [observation_dim + action_dim] → [1]
    observation: Range<usize>, // columns of o_i in x
    action: Range<usize>,      // columns of a_i in a
    choices: Vec<usize>,       // numbers of options: of movements, of words, or of both in this order
}

impl Agent {
    /// a_i and z, `[batch, own action]` each, from everybody's observations x
    /// `[batch, observation_dim]`, of which the actor sees its own alone, and everybody's Gumbel noise
    /// `[batch, action_dim]`. Without noise (all 0) a_i is the softmax of z.
    fn act(&self, x: &Tensor, noise: &Tensor) -> Result<(Tensor, Tensor)> {
        let logits = self.actor.forward(&columns(x, &self.observation)?)?;
        let perturbed = (&logits + columns(noise, &self.action)?)?;
        let (mut weights, mut start) = (Vec::new(), 0);
        for options in &self.choices {
            let choice = columns(&perturbed, &(start..start + options))?; // [batch, options]
            // a_k = exp(z_k + g_k) / Σ_l exp(z_l + g_l); less the largest, so that nothing overflows
            let exp = choice.broadcast_sub(&choice.max_keepdim(1)?)?.exp()?;
            weights.push(exp.broadcast_div(&exp.sum_keepdim(1)?)?);
            start += options;
        }
        Ok((Tensor::cat(&weights, 1)?, logits))
    }
}

/// What all agents do in x, a `[batch, action_dim]`, from Gumbel noise of the same shape.
fn joint_actions(agents: &[Agent], x: &Tensor, noise: &Tensor) -> Result<Tensor> {
    let mut actions = Vec::new();
    for agent in agents {
        actions.push(agent.act(x, noise)?.0);
    }
    Ok(Tensor::cat(&actions, 1)?)
}

/// The last `capacity` transitions, the oldest overwritten first. A row holds those of all agents.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    capacity: usize,
    next_row: usize,             // where the next transition goes
    observations: Vec<f32>,      // x, [len, observation_dim]
    actions: Vec<f32>,           // a, [len, action_dim]
    rewards: Vec<f32>,           // (r_1, …, r_N), [len, num_agents]
    next_observations: Vec<f32>, // x', an episode's true last ones at its end, [len, observation_dim]
    terminated: Vec<f32>,        // 1 where nothing lies beyond x', 0 elsewhere, truncation included, [len]
}

/// Transitions drawn from the buffer.
struct Batch {
    observations: Tensor,      // x, [batch, observation_dim]
    actions: Tensor,           // a, [batch, action_dim]
    rewards: Tensor,           // (r_1, …, r_N), [batch, num_agents]
    next_observations: Tensor, // x', [batch, observation_dim]
    terminated: Tensor,        // 1 or 0, [batch, 1]
}

impl ReplayBuffer {
    /// Stores the step that each of `envs` has just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], actions: &[f32], envs: &ParallelVecEnv) {
        let of = |env: usize, width: usize| env * width..(env + 1) * width;
        for env in 0..envs.num_envs() {
            let (row, own) = (self.next_row, of(env, envs.observation_dim()));
            write_row(&mut self.observations, row, &observations[own.clone()]);
            write_row(&mut self.actions, row, &actions[of(env, envs.action_dim())]);
            write_row(&mut self.rewards, row, &envs.rewards()[of(env, envs.num_agents())]);
            // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
            write_row(&mut self.next_observations, row, &envs.final_observations()[own]);
            write_row(&mut self.terminated, row, &[f32::from(u8::from(envs.terminated()[env]))]);
            self.next_row = (row + 1) % self.capacity;
        }
    }

    /// `batch_size` transitions, uniformly and with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<Batch> {
        let len = self.terminated.len();
        let rows: Vec<usize> = (0..batch_size).map(|_| rng.random_range(0..len)).collect();
        let gather = |column: &[f32]| {
            let width = column.len() / len;
            let values = rows.iter().flat_map(|row| &column[row * width..(row + 1) * width]);
            Tensor::from_vec(values.copied().collect(), (batch_size, width), device)
        };
        Ok(Batch {
            observations: gather(&self.observations)?,
            actions: gather(&self.actions)?,
            rewards: gather(&self.rewards)?,
            next_observations: gather(&self.next_observations)?,
            terminated: gather(&self.terminated)?,
        })
    }
}

/// Writes `values` to a row of a column, which grows until it is full.
fn write_row(column: &mut Vec<f32>, row: usize, values: &[f32]) {
    let start = row * values.len();
    if start == column.len() {
        column.extend_from_slice(values);
    } else {
        column[start..start + values.len()].copy_from_slice(values);
    }
}

/// All agents, their averages and how they learn.
struct Maddpg {
    agents: Vec<Agent>,           // μ_i, Q_i, [num_agents]
    target_agents: Vec<Agent>,    // μ'_i, Q'_i
    parameters: VarMap,           // θ_i, φ_i of all agents
    target_parameters: VarMap,    // θ'_i, φ'_i
    actor_optimizers: Vec<Adam>,  // [num_agents]
    critic_optimizers: Vec<Adam>, // [num_agents]
    observation_dim: usize,       // numbers in x
    action_dim: usize,            // numbers in a
    args: Args,
    device: Device,
}

impl Maddpg {
    fn new(spec: &MultiSpec, args: &Args) -> Result<Self> {
        let (device, hidden_size) = (args.run.device()?, args.hidden_size);
        let observation_dim = spec.observation_spaces.iter().map(|space| space.size()).sum();
        let action_dim = spec.choices.iter().flatten().sum();
        let networks = |parameters: &VarMap| -> Result<Vec<Agent>> {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            let (mut agents, mut observation, mut action) = (Vec::new(), 0..0, 0..0);
            for (i, (space, choices)) in spec.observation_spaces.iter().zip(&spec.choices).enumerate() {
                observation = observation.end..observation.end + space.size();
                action = action.end..action.end + choices.iter().sum::<usize>();
                let (actor, critic) = (vb.pp(format!("actor{i}")), vb.pp(format!("critic{i}")));
                agents.push(Agent {
                    actor: Mlp::new(observation.len(), hidden_size, action.len(), actor)?,
                    critic: Mlp::new(observation_dim + action_dim, hidden_size, 1, critic)?,
                    observation: observation.clone(),
                    action: action.clone(),
                    choices: choices.clone(),
                });
            }
            Ok(agents)
        };
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let (agents, target_agents) = (networks(&parameters)?, networks(&target_parameters)?);
        copy_parameters(&target_parameters, &parameters)?;
        // Each network has an Adam of its own: one agent's large gradient must not clip another's.
        let optimizers = |kind: &str, learning_rate: f64| -> Result<Vec<Adam>> {
            let mut optimizers = Vec::new();
            for i in 0..agents.len() {
                let prefix = format!("{kind}{i}.");
                let own = parameters.named_vars().into_iter().filter(|(name, _)| name.starts_with(&prefix));
                let optimizer = Adam::from_vars(own.map(|(_, var)| var).collect(), learning_rate)?;
                optimizers.push(optimizer.with_max_grad_norm(args.max_grad_norm));
            }
            Ok(optimizers)
        };
        Ok(Self {
            actor_optimizers: optimizers("actor", args.policy_lr)?,
            critic_optimizers: optimizers("critic", args.q_lr)?,
            agents,
            target_agents,
            parameters,
            target_parameters,
            observation_dim,
            action_dim,
            args: args.clone(),
            device,
        })
    }

    /// g, `[rows, action_dim]`.
    fn gumbel(&self, rows: usize, rng: &mut Rng) -> Result<Tensor> {
        let mut noise = Vec::with_capacity(rows * self.action_dim);
        for _ in 0..rows * self.action_dim {
            // Open at both ends, and drawn as f64: at u = 0 and at u = 1 g would be infinite.
            let u: f64 = rng.sample(Open01);
            // g = −ln(−ln u)
            noise.push(-(-u.ln()).ln() as f32);
        }
        Ok(Tensor::from_vec(noise, (rows, self.action_dim), &self.device)?)
    }

    /// Observations as x, `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// a for each x of `observations`, `[batch, action_dim]`, exploration included.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<f32>> {
        let x = self.tensor(observations)?;
        let noise = self.gumbel(x.dim(0)?, rng)?;
        Ok(joint_actions(&self.agents, &x, &noise)?.flatten_all()?.to_vec1()?)
    }

    /// The same without noise.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<f32>> {
        let x = self.tensor(observations)?;
        let noise = Tensor::zeros((x.dim(0)?, self.action_dim), DType::F32, &self.device)?;
        Ok(joint_actions(&self.agents, &x, &noise)?.flatten_all()?.to_vec1()?)
    }

    /// y_i, `[batch, 1]`, from noise `[batch, action_dim]`.
    fn td_targets(&self, i: usize, batch: &Batch, noise: &Tensor) -> Result<Tensor> {
        // Easy to miss and fatal: a' is what all *target* actors do in x', not what the buffer holds.
        let next_actions = joint_actions(&self.target_agents, &batch.next_observations, noise)?;
        let inputs = Tensor::cat(&[&batch.next_observations, &next_actions], 1)?; // (x', a')
        let next_q = self.target_agents[i].critic.forward(&inputs)?; // Q'_i(x', a'), [batch, 1]
        // y_i = r_i + γ (1 − terminated) Q'_i(x', a')
        let rewards = columns(&batch.rewards, &(i..i + 1))?;
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((rewards + discounts * next_q)?.detach())
    }

    /// One step of critic i towards y_i; nothing else moves. Returns L(φ_i) and E[ Q_i(x, a) ] from
    /// before the step.
    fn update_critic(&mut self, i: usize, batch: &Batch, noise: &Tensor) -> Result<(f32, f32)> {
        let y = self.td_targets(i, batch, noise)?;
        let inputs = Tensor::cat(&[&batch.observations, &batch.actions], 1)?; // (x, a)
        let q = self.agents[i].critic.forward(&inputs)?; // [batch, 1]
        // L(φ_i) = E[ (Q_i(x, a) − y_i)² ]
        let loss = (&q - y)?.sqr()?.mean_all()?;
        self.critic_optimizers[i].backward_step(&loss)?;
        Ok((loss.to_scalar()?, q.mean_all()?.to_scalar()?))
    }

    /// One step of actor i up its critic; nothing else moves. `noise` is as for all agents,
    /// `[batch, action_dim]`. Returns −J(θ_i) with its penalty, from before the step.
    fn update_actor(&mut self, i: usize, batch: &Batch, noise: &Tensor) -> Result<f32> {
        let agent = &self.agents[i];
        let (own_action, logits) = agent.act(&batch.observations, noise)?;
        // (x, a_1, …, μ_i(o_i), …, a_N): the others' actions stay those of the buffer.
        let before = columns(&batch.actions, &(0..agent.action.start))?;
        let after = columns(&batch.actions, &(agent.action.end..self.action_dim))?;
        let inputs = Tensor::cat(&[&batch.observations, &before, &own_action, &after], 1)?;
        // J(θ_i) = E[ Q_i(x, a_1, …, μ_i(o_i), …, a_N) ]
        let value = agent.critic.held_constant().forward(&inputs)?.mean_all()?;
        // c E[ z² ]: without it logits may grow until the noise decides nothing any more.
        let penalty = (logits.sqr()?.mean_all()? * self.args.logit_coef)?;
        let loss = (penalty - value)?;
        self.actor_optimizers[i].backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// φ'_i ← (1 − τ) φ'_i + τ φ_i and θ'_i ← (1 − τ) θ'_i + τ θ_i, for all agents.
    fn update_targets(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.parameters, self.args.tau)?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let make = |num_envs, seed| ParallelVecEnv::make(&args.run.env_id, true, num_envs, seed);
    let num_envs = args.num_envs;
    let mut envs = make(num_envs, args.run.seed)?;
    let names = envs.spec().agents.clone(); // [num_agents]
    let mut rng = learner_rng(args.run.seed);
    let mut maddpg = Maddpg::new(envs.spec(), &args)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let optimizer_names: Vec<String> = (0..2 * names.len()).map(|i| format!("optimizer{i}")).collect();
    let mut global_step = 0;
    while global_step < run.total_timesteps {
        let mut state: Vec<(&str, &mut dyn Persist)> = vec![
            ("parameters", &mut maddpg.parameters),
            ("target_parameters", &mut maddpg.target_parameters),
            ("envs", &mut envs),
            ("rng", &mut rng),
            ("buffer", &mut buffer),
        ];
        let optimizers = maddpg.actor_optimizers.iter_mut().chain(&mut maddpg.critic_optimizers);
        for (name, optimizer) in optimizer_names.iter().zip(optimizers) {
            state.push((name, optimizer));
        }
        run.resume_or_checkpoint(&mut global_step, &mut state)?;

        // Act: one step of all agents in each environment, and store what happened.
        let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
        let actions = maddpg.act(&observations, &mut rng)?; // [num_envs, action_dim]
        envs.step(&actions)?;
        buffer.store(&observations, &actions, &envs);
        run.episodes(global_step + num_envs, envs.episodes())?;
        for (name, episodic_return) in names.iter().cycle().zip(envs.episode_returns()) {
            run.log(global_step + num_envs, &format!("charts/episodic_return/{name}"), *episodic_return)?;
        }

        // Learn. Every environment's step counts, one after the other.
        for _ in 0..num_envs {
            global_step += 1;
            if global_step <= args.learning_starts || !global_step.is_multiple_of(args.train_frequency) {
                continue;
            }
            for (i, name) in names.iter().enumerate() {
                let batch = buffer.sample(args.batch_size, &mut rng, &maddpg.device)?;
                let noise = maddpg.gumbel(args.batch_size, &mut rng)?;
                let (qf_loss, qf_values) = maddpg.update_critic(i, &batch, &noise)?;
                let noise = maddpg.gumbel(args.batch_size, &mut rng)?;
                let actor_loss = maddpg.update_actor(i, &batch, &noise)?;
                if global_step.is_multiple_of(10 * args.train_frequency) {
                    run.log(global_step, &format!("losses/qf_loss/{name}"), qf_loss)?;
                    run.log(global_step, &format!("losses/qf_values/{name}"), qf_values)?;
                    run.log(global_step, &format!("losses/actor_loss/{name}"), actor_loss)?;
                }
            }
            maddpg.update_targets()?;
        }
    }

    run.save_or_load_model(&mut maddpg.parameters)?;
    run.evaluate_agents(make, |observations| maddpg.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
