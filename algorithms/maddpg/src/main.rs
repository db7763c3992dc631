//! # Multi-agent deep deterministic policy gradient (MADDPG)
//!
//! Lowe, Wu, Tamar, Harb, Abbeel & Mordatch (2017), arXiv:1706.02275.
//!
//! To an agent that learns beside others the world never holds still: what its actions lead to changes with
//! their policies. MADDPG gives each agent i a critic Q_i that sees the observations x = (o_1, …, o_N) and
//! the actions a = (a_1, …, a_N) of everybody: what follows (x, a) is the same whoever chose a. Only training
//! needs critics; an actor μ_i sees its own observation o_i alone.
//!
//! ```text
//! targets   y_i = r_i + γ (1 − terminated) Q'_i(x', μ'_1(o'_1), …, μ'_N(o'_N))
//! critics   L(φ_i) = E[ (Q_i(x, a) − y_i)² ]
//! actors    J(θ_i) = E[ Q_i(x, a_1, …, μ_i(o_i), …, a_N) ],   to be maximised
//! averages  φ'_i ← (1 − τ) φ'_i + τ φ_i,   θ'_i ← (1 − τ) θ'_i + τ θ_i
//! inferred  L(ψ_ij) = −E[ ln μ̂_ij(a_j|o_j) + λ H(μ̂_ij(o_j)) ],   H the entropy; ψ'_ij as φ'_i
//! ```
//!
//! The last is for `--infer-policies true` (§4.2): agent i knows no other's actor, fits an approximation
//! μ̂_ij to what agent j did lately, and has its average μ̂'_ij in y_i instead of μ'_j.
//!
//! Agents choose between movements and between words. For a gradient ∂Q_i/∂a_i to exist, a choice is relaxed
//! to a weighting of its n options, the Gumbel-softmax (Jang, Gu & Poole 2016, arXiv:1611.01144), whose noise
//! is the exploration as well. The weights themselves are played, as the environments' continuous actions, so
//! that critics learn from what was done. With logits z:
//!
//! ```text
//! μ(o) = softmax(z + g),   g_k = −ln(−ln u_k),   u_k ~ U(0, 1)
//! ln μ(a|o) = Σ_k z_k − n ln Σ_k exp(z_k) / a_k + what does not depend on z
//! ```
//!
//! Deviations from the paper: updates are smaller and more frequent (128 transitions every 25 steps instead
//! of 1024 every 100) and begin after 2000 steps instead of 25,600; τ is 0.02 and step sizes are 0.002 and
//! 0.005 instead of 0.01 each: a run takes less time and ends alike. H is that of softmax(z); Q'_i sees an
//! a'_j drawn from μ̂'_ij, not log-probabilities. From the authors' code (openai/maddpg): large logits are
//! penalised, each agent's target draws an a' of its own, gradients are clipped (here each network's, all
//! that an agent infers being one, there each of its tensors'). §4.3 (policy ensembles) is left out.
//!
//! Run `cargo run -p maddpg`: about −21 (−16 to −26) on simple_speaker_listener_v4 after 150,000 steps in
//! five seconds (−23 with `--infer-policies true`), about −7.5 with `--env-id simple_v3 --total-timesteps
//! 75000` in two; returns are sums over the agents. The authors' code, with exploration, reaches −22 (−14 to
//! −30 over ten trials) and −6.3 in as many steps (curves of wsjeon/maddpg-rllib); random actions −73, −36.

use anyhow::Result;
use candle_core::{DType, Device, IndexOp, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, learner_rng, mpe::ParallelVecEnv, persist::Persist};
use common::nn::{Adam, Categorical, Linear, VarBuilder, VarMap, copy_parameters, linear, soft_update};
use common::run::Run;
use rand::RngExt;
use rand_distr::Open01;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::Range, process::ExitCode};

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
    /// Step size of Adam for the actors and the inferred policies
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
    /// Largest norm of the gradient of an actor, of a critic, or of all that an agent infers
    #[arg(long, default_value_t = 0.5, value_parser = cli::above_zero)]
    max_grad_norm: f64,
    /// Weight of the penalty on large logits, c
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    logit_coef: f64,
    /// Let each agent infer the others' policies from what they do instead of knowing them
    #[arg(long, default_value_t = false)]
    infer_policies: bool,
    /// Weight of the entropy of inferred policies, λ
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    ent_coef: f64,
}

/// Two hidden layers of ReLU units: `[inputs]` → `[hidden_size]` → `[hidden_size]` → `[outputs]`.
struct Mlp([Linear; 3]);

impl Mlp {
    fn new(inputs: usize, hidden_size: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        let hidden1 = linear(inputs, hidden_size, vb.pp("hidden1"))?;
        let hidden2 = linear(hidden_size, hidden_size, vb.pp("hidden2"))?;
        let output = linear(hidden_size, outputs, vb.pp("output"))?;
        Ok(Self([hidden1, hidden2, output]))
    }

    /// `[batch, inputs]` to `[batch, outputs]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [hidden1, hidden2, output] = &self.0;
        Ok(output.forward(&hidden2.forward_relu(&hidden1.forward_relu(x)?)?)?)
    }
}

/// One agent's networks, online or of the averages, and its place among the others.
struct Agent {
    actor: Mlp,                     // o_i → logits z
    critic: Mlp,                    // Q_i: (x, a), [observation_dim + action_dim] → [1]
    inferred: BTreeMap<usize, Mlp>, // μ̂_ij by j: o_j → logits, for every other agent j or for none
    observation: Range<usize>,      // columns of o_i in x
    action: Range<usize>,           // columns of a_i in a
    choices: Vec<usize>,            // numbers of options: of movements, of words, or of both in this order
}

impl Agent {
    /// a_i and z, `[batch, own action]` each, from everybody's observations x `[batch, observation_dim]`,
    /// of which `policy`, the actor or an inferred one, sees the agent's own alone, and everybody's Gumbel
    /// noise `[batch, action_dim]`. Without noise (all 0) a_i is the softmax of z.
    fn act(&self, policy: &Mlp, x: &Tensor, noise: &Tensor) -> Result<(Tensor, Tensor)> {
        let logits = policy.forward(&x.i((.., self.observation.clone()))?)?;
        let perturbed = (&logits + noise.i((.., self.action.clone()))?)?;
        let (mut weights, mut start) = (Vec::new(), 0);
        for options in &self.choices {
            let choice = perturbed.i((.., start..start + options))?; // [batch, options]
            // a_k = exp(z_k + g_k) / Σ_l exp(z_l + g_l); less the largest, so that nothing overflows
            let exp = choice.broadcast_sub(&choice.max_keepdim(1)?)?.exp()?;
            weights.push(exp.broadcast_div(&exp.sum_keepdim(1)?)?);
            start += options;
        }
        Ok((Tensor::cat(&weights, 1)?, logits))
    }
}

/// What all agents do in x, a `[batch, action_dim]`, from noise of the same shape; where agent `inferring`
/// infers the others' policies, what it takes them to do.
fn joint_actions(agents: &[Agent], inferring: Option<usize>, x: &Tensor, noise: &Tensor) -> Result<Tensor> {
    let mut actions = Vec::new();
    for (j, agent) in agents.iter().enumerate() {
        let inferred = inferring.and_then(|i| agents[i].inferred.get(&j)); // none of itself
        actions.push(agent.act(inferred.unwrap_or(&agent.actor), x, noise)?.0);
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

    /// `batch_size` transitions, uniformly and with replacement; without `rng` the latest ones.
    fn sample(&self, batch_size: usize, rng: Option<&mut Rng>, device: &Device) -> Result<Batch> {
        let len = self.terminated.len();
        let rows: Vec<usize> = match rng {
            Some(rng) => (0..batch_size).map(|_| rng.random_range(0..len)).collect(),
            None => (1..=batch_size.min(len)).map(|age| (self.next_row + len - age) % len).collect(),
        };
        let gather = |column: &[f32]| {
            let width = column.len() / len;
            let values = rows.iter().flat_map(|row| &column[row * width..(row + 1) * width]);
            Tensor::from_vec(values.copied().collect(), (rows.len(), width), device)
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
    let (start, end) = (row * values.len(), (row + 1) * values.len());
    column.splice(start..end.min(column.len()), values.iter().copied());
}

/// All agents, their averages and how they learn.
struct Maddpg {
    agents: Vec<Agent>,             // μ_i, Q_i, μ̂_ij, [num_agents]
    target_agents: Vec<Agent>,      // μ'_i, Q'_i, μ̂'_ij
    parameters: VarMap,             // θ_i, φ_i, ψ_ij of all agents
    target_parameters: VarMap,      // θ'_i, φ'_i, ψ'_ij
    actor_optimizers: Vec<Adam>,    // [num_agents]
    critic_optimizers: Vec<Adam>,   // [num_agents]
    inferred_optimizers: Vec<Adam>, // [num_agents], each of all that its agent infers
    action_dim: usize,              // numbers in a
    args: Args,
    device: Device,
}

impl Maddpg {
    fn new(envs: &ParallelVecEnv, args: &Args) -> Result<Self> {
        let (device, num_agents, action_dim) = (args.run.device()?, envs.num_agents(), envs.action_dim());
        let (observations, actions) = (envs.observation_columns(), envs.action_columns()); // [num_agents]
        let networks = |parameters: &VarMap| -> Result<Vec<Agent>> {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            let network = |name, inputs, outputs| Mlp::new(inputs, args.hidden_size, outputs, vb.pp(name));
            let policy = |name: String, j: usize| network(name, observations[j].len(), actions[j].len());
            let mut agents = Vec::new();
            for (i, choices) in envs.spec().choices.iter().enumerate() {
                let others = (0..num_agents).filter(|&j| args.infer_policies && j != i);
                let inferred = |j| Ok((j, policy(format!("inferred{i}.{j}"), j)?));
                agents.push(Agent {
                    actor: policy(format!("actor{i}"), i)?,
                    critic: network(format!("critic{i}"), envs.observation_dim() + action_dim, 1)?,
                    inferred: others.map(inferred).collect::<Result<_>>()?,
                    observation: observations[i].clone(),
                    action: actions[i].clone(),
                    choices: choices.clone(),
                });
            }
            Ok(agents)
        };
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let (agents, target_agents) = (networks(&parameters)?, networks(&target_parameters)?);
        copy_parameters(&target_parameters, &parameters)?;
        // Each agent has Adams of its own: one agent's large gradient must not clip another's.
        let optimizers = |kind: &str, learning_rate: f64| -> Result<Vec<Adam>> {
            let mut optimizers = Vec::new();
            for prefix in (0..num_agents).map(|i| format!("{kind}{i}.")) {
                let own = parameters.named_vars().into_iter().filter(|(name, _)| name.starts_with(&prefix));
                let optimizer = Adam::from_vars(own.map(|(_, var)| var).collect(), learning_rate)?;
                optimizers.push(optimizer.with_max_grad_norm(args.max_grad_norm));
            }
            Ok(optimizers)
        };
        Ok(Self {
            actor_optimizers: optimizers("actor", args.policy_lr)?,
            critic_optimizers: optimizers("critic", args.q_lr)?,
            inferred_optimizers: optimizers("inferred", args.policy_lr)?,
            agents,
            target_agents,
            parameters,
            target_parameters,
            action_dim,
            args: args.clone(),
            device,
        })
    }

    /// g, `[rows, action_dim]`.
    fn gumbel(&self, rows: usize, rng: &mut Rng) -> Result<Tensor> {
        // g = −ln(−ln u). Infinite at u = 0 and u = 1: u is open at both ends, and drawn as f64.
        let g = |_| -(-rng.sample::<f64, _>(Open01).ln()).ln() as f32;
        let noise = (0..rows * self.action_dim).map(g).collect();
        Ok(Tensor::from_vec(noise, (rows, self.action_dim), &self.device)?)
    }

    /// a for each x of `observations`, `[num_envs, action_dim]`, from Gumbel noise of the same shape.
    fn act(&self, observations: &[f32], noise: &Tensor) -> Result<Vec<f32>> {
        let x = Tensor::from_slice(observations, (noise.dim(0)?, ()), &self.device)?;
        Ok(joint_actions(&self.agents, None, &x, noise)?.flatten_all()?.to_vec1()?)
    }

    /// One step of agent i's inferred policies towards what the others did; nothing else moves. Returns
    /// Σ_j L(ψ_ij) from before the step.
    fn update_inferred(&mut self, i: usize, latest: &Batch) -> Result<f32> {
        let mut loss = Tensor::zeros((), DType::F32, &self.device)?;
        for (&j, policy) in &self.agents[i].inferred {
            let (other, mut start) = (&self.agents[j], 0);
            let logits = policy.forward(&latest.observations.i((.., other.observation.clone()))?)?;
            let actions = latest.actions.i((.., other.action.clone()))?.maximum(1e-30)?; // never ln 0
            for &n in &other.choices {
                let (z, a) = (logits.narrow(1, start, n)?, actions.narrow(1, start, n)?); // [batch, n]
                // ln μ̂_ij(a_j|o_j) = Σ_k z_k − n ln Σ_k exp(z_k) / a_k
                let log_prob = (z.sum(1)? - ((&z - a.log()?)?.log_sum_exp(1)? * n as f64)?)?; // [batch]
                let entropy = Categorical::new(&z)?.entropy()?; // H of softmax(z), [batch]
                // L(ψ_ij) = −E[ ln μ̂_ij(a_j|o_j) + λ H(μ̂_ij(o_j)) ]
                loss = (loss - (log_prob + (entropy * self.args.ent_coef)?)?.mean_all()?)?;
                start += n;
            }
        }
        self.inferred_optimizers[i].backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// y_i, `[batch, 1]`, from noise `[batch, action_dim]`.
    fn td_targets(&self, i: usize, batch: &Batch, noise: &Tensor) -> Result<Tensor> {
        // Easy to miss and fatal: a' is what all *target* actors do in x', not what the buffer holds.
        let next_actions = joint_actions(&self.target_agents, Some(i), &batch.next_observations, noise)?;
        let inputs = Tensor::cat(&[&batch.next_observations, &next_actions], 1)?; // (x', a')
        let next_q = self.target_agents[i].critic.forward(&inputs)?; // Q'_i(x', a'), [batch, 1]
        // y_i = r_i + γ (1 − terminated) Q'_i(x', a')
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((batch.rewards.i((.., i..i + 1))? + discounts * next_q)?.detach())
    }

    /// One step of critic i towards y_i; nothing else moves. Returns L(φ_i) and E[ Q_i(x, a) ] before it.
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
        let (own_action, logits) = agent.act(&agent.actor, &batch.observations, noise)?;
        // (x, a_1, …, μ_i(o_i), …, a_N): the others' actions stay those of the buffer.
        let before = batch.actions.i((.., ..agent.action.start))?;
        let after = batch.actions.i((.., agent.action.end..))?;
        let inputs = Tensor::cat(&[&batch.observations, &before, &own_action, &after], 1)?;
        // Its parameters are held constant: gradients pass through the critic to its input.
        let critic = Mlp(agent.critic.0.each_ref().map(Linear::detach));
        // J(θ_i) = E[ Q_i(x, a_1, …, μ_i(o_i), …, a_N) ]
        let value = critic.forward(&inputs)?.mean_all()?;
        // c E[ z² ] − J(θ_i): unpenalised, logits may grow until the noise decides nothing any more.
        let loss = ((logits.sqr()?.mean_all()? * self.args.logit_coef)? - value)?;
        self.actor_optimizers[i].backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// φ'_i ← (1 − τ) φ'_i + τ φ_i, θ'_i and ψ'_ij likewise, for all agents.
    fn update_targets(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.parameters, self.args.tau)?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let make = |num_envs, seed| ParallelVecEnv::make(&args.run.env_id, true, num_envs, seed);
    let (num_envs, mut rng) = (args.num_envs, learner_rng(args.run.seed));
    let mut envs = make(num_envs, args.run.seed)?;
    let names = envs.spec().agents.clone(); // [num_agents]
    let mut maddpg = Maddpg::new(&envs, &args)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let optimizer_names: Vec<String> = (0..3 * names.len()).map(|i| format!("optimizer{i}")).collect();
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
        let optimizers = optimizers.chain(&mut maddpg.inferred_optimizers);
        state.extend(optimizer_names.iter().zip(optimizers).map(|(name, adam)| (name as &str, adam as _)));
        run.resume_or_checkpoint(&mut global_step, &mut state)?;

        // Act: one step of all agents in each environment, and store what happened.
        let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
        let noise = maddpg.gumbel(num_envs, &mut rng)?; // the exploration, [num_envs, action_dim]
        let actions = maddpg.act(&observations, &noise)?; // [num_envs, action_dim]
        envs.step(&actions)?;
        buffer.store(&observations, &actions, &envs);
        run.episodes(global_step + num_envs, envs.episodes())?;
        for (name, episodic_return) in names.iter().cycle().zip(envs.episode_returns()) {
            run.log(global_step + num_envs, &format!("charts/episodic_return/{name}"), *episodic_return)?;
        }

        // Learn. Every environment's step counts, one after the other.
        let learns = |step: &usize| *step > args.learning_starts && step.is_multiple_of(args.train_frequency);
        for step in (global_step + 1..=global_step + num_envs).filter(learns) {
            for (i, name) in names.iter().enumerate() {
                if args.infer_policies {
                    let latest = buffer.sample(args.batch_size, None, &maddpg.device)?;
                    let loss = maddpg.update_inferred(i, &latest)?;
                    run.log(step, &format!("losses/inferred_loss/{name}"), loss)?;
                }
                let batch = buffer.sample(args.batch_size, Some(&mut rng), &maddpg.device)?;
                let noise = maddpg.gumbel(args.batch_size, &mut rng)?;
                let (qf_loss, qf_values) = maddpg.update_critic(i, &batch, &noise)?;
                let noise = maddpg.gumbel(args.batch_size, &mut rng)?;
                let actor_loss = maddpg.update_actor(i, &batch, &noise)?;
                if step.is_multiple_of(10 * args.train_frequency) {
                    run.log(step, &format!("losses/qf_loss/{name}"), qf_loss)?;
                    run.log(step, &format!("losses/qf_values/{name}"), qf_values)?;
                    run.log(step, &format!("losses/actor_loss/{name}"), actor_loss)?;
                }
            }
            maddpg.update_targets()?;
        }
        global_step += num_envs;
    }

    run.save_or_load_model(&mut maddpg.parameters)?;
    let no_noise = Tensor::zeros((args.run.eval_episodes, maddpg.action_dim), DType::F32, &maddpg.device)?;
    run.evaluate_agents(make, |observations| maddpg.act(observations, &no_noise))?;
    Ok(())
}

#[cfg(test)]
mod tests;
