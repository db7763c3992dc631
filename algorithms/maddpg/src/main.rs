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
//! With `--infer-policies true` (§4.2) agent i knows no other's actor: it fits an approximation μ̂_ij to what
//! agent j did lately, and has its average μ̂'_ij in y_i instead of μ'_j. With `--ensemble-size K` (§4.3)
//! an actor is K sub-policies μ_i^k, lest others fit one behaviour alone: one of them plays in an episode,
//! drawn at its beginning, J(θ_i) = (1/K) Σ_k E[ Q_i(x, a_1, …, μ_i^k(o_i), …, a_N) | agent i played μ_i^k ].
//!
//! Agents choose movements and words. For ∂Q_i/∂a_i to exist, a choice is relaxed to a weighting of its n
//! options, the Gumbel-softmax (Jang, Gu & Poole 2016, arXiv:1611.01144), whose noise is the exploration too:
//! μ(o) = softmax(z + g), of logits z, with g_l = −ln(−ln u_l), u_l ~ U(0, 1). The weights are played.
//!
//! Deviations from the paper: updates are smaller and more frequent (there 1024 transitions every 100 steps),
//! begin sooner (after 25,600), with other step sizes and τ (0.01 each): runs are shorter and end alike.
//! ln μ̂_ij is the Gumbel-softmax's, of weights; H is that of softmax(z); Q'_i sees an a'_j drawn from μ̂'_ij,
//! not log-probabilities. One buffer that says who played serves all μ_i^k; the averages of those play in
//! y_i. From openai/maddpg: large logits are penalised, each target draws an a' of its own, gradients are
//! clipped (per Adam, there per tensor).
//!
//! Run `cargo run -p maddpg`: about −21 on simple_speaker_listener_v4 after 150,000 steps in five seconds (−23
//! with `--infer-policies true`, −22 with `--ensemble-size 3`), −8 on simple_v3 after 75,000 and −36 on
//! simple_spread_v3 after 1,500,000, summed over agents. The authors' code, while training: −22 (−14 to −30
//! in ten trials), −6.3, −32.5 (curves of wsjeon/maddpg-rllib); random agents: −73, −36 on the first two.

use anyhow::{Context, Result};
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
    /// Sub-policies of each agent, of which it plays one in an episode, K
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    ensemble_size: usize,
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

    /// `[batch, outputs]` from inputs side by side, such as x and a, `[batch, inputs]` together.
    fn forward<T: AsRef<Tensor>>(&self, inputs: &[T]) -> Result<Tensor> {
        let [hidden1, hidden2, output] = &self.0;
        let x = Tensor::cat(inputs, 1)?;
        Ok(output.forward(&hidden2.forward_relu(&hidden1.forward_relu(&x)?)?)?)
    }
}

/// One agent's networks, online or of the averages, and its place among the others.
struct Agent {
    index: usize,                        // i
    actor: Vec<Mlp>,                     // μ_i^k: o_i → logits z, [ensemble_size]
    critic: Mlp,                         // Q_i: (x, a), [observation_dim + action_dim] → [1]
    inferred: BTreeMap<usize, Vec<Mlp>>, // μ̂_ij by j: o_j → logits, [1]; of all other agents or of none
    observation: Range<usize>,           // columns of o_i in x
    action: Range<usize>,                // columns of a_i in a
    choices: Vec<usize>, // numbers of options: of movements, of words, or of both in this order
}

impl Agent {
    /// a_i and z, `[batch, own action]` each, by `policy`, its own or one inferred, from x and `playing` as
    /// in [`Batch`] and Gumbel noise `[batch, action_dim]`. Without noise (all 0) a_i is the softmax of z.
    fn act(&self, policy: &[Mlp], x: &Tensor, playing: &Tensor, noise: &Tensor) -> Result<(Tensor, Tensor)> {
        let observation = [x.i((.., self.observation.clone()))?]; // o_i
        let mut logits = policy[0].forward(&observation)?;
        for (k, sub_policy) in policy.iter().enumerate().skip(1) {
            let plays = playing.narrow(1, self.index, 1)?.eq(k as f32)?.broadcast_as(logits.shape())?;
            logits = plays.where_cond(&sub_policy.forward(&observation)?, &logits)?; // where it plays
        }
        let perturbed = (&logits + noise.i((.., self.action.clone()))?)?;
        let (mut weights, mut start) = (Vec::new(), 0);
        for options in &self.choices {
            let choice = perturbed.i((.., start..start + options))?; // [batch, options]
            // a_l = exp(z_l + g_l) / Σ_m exp(z_m + g_m); less the largest, so that nothing overflows
            let exp = choice.broadcast_sub(&choice.max_keepdim(1)?)?.exp()?;
            weights.push(exp.broadcast_div(&exp.sum_keepdim(1)?)?);
            start += options;
        }
        Ok((Tensor::cat(&weights, 1)?, logits))
    }
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
    playing: Vec<f32>,           // k of each agent, [len, num_agents]
    terminated: Vec<f32>,        // 1 where nothing lies beyond x', 0 elsewhere, truncation included, [len]
}

/// Transitions drawn from the buffer.
struct Batch {
    observations: Tensor,      // x, [batch, observation_dim]
    actions: Tensor,           // a, [batch, action_dim]
    rewards: Tensor,           // (r_1, …, r_N), [batch, num_agents]
    next_observations: Tensor, // x', [batch, observation_dim]
    playing: Tensor,           // k of each agent, [batch, num_agents]
    terminated: Tensor,        // 1 or 0, [batch, 1]
}

impl ReplayBuffer {
    /// Stores the step that each of `envs` has just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], playing: &[f32], actions: &[f32], envs: &ParallelVecEnv) {
        let of = |env: usize, width: usize| env * width..(env + 1) * width;
        for env in 0..envs.num_envs() {
            let (row, own) = (self.next_row, of(env, envs.observation_dim()));
            write_row(&mut self.observations, row, &observations[own.clone()]);
            write_row(&mut self.playing, row, &playing[of(env, envs.num_agents())]);
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
            playing: gather(&self.playing)?,
            terminated: gather(&self.terminated)?,
        })
    }
}

/// Writes `values` to a row of a column, which grows until it is full.
fn write_row(column: &mut Vec<f32>, row: usize, values: &[f32]) {
    column.resize(column.len().max((row + 1) * values.len()), 0.0);
    column[row * values.len()..][..values.len()].copy_from_slice(values);
}

/// All agents, their averages and how they learn.
struct Maddpg {
    agents: Vec<Agent>,                 // μ_i, Q_i, μ̂_ij, [num_agents]
    target_agents: Vec<Agent>,          // μ'_i, Q'_i, μ̂'_ij
    parameters: VarMap,                 // θ_i, φ_i, ψ_ij of all agents
    target_parameters: VarMap,          // θ'_i, φ'_i, ψ'_ij
    optimizers: BTreeMap<String, Adam>, // of "actor0", "critic0", "inferred0", …: each clips its own alone
    args: Args,
    device: Device,
}

impl Maddpg {
    fn new(envs: &ParallelVecEnv, args: Args) -> Result<Self> {
        let (device, num_agents) = (args.run.device()?, envs.num_agents());
        let (observations, actions) = (envs.observation_columns(), envs.action_columns()); // [num_agents]
        let networks = |parameters: &VarMap| -> Result<Vec<Agent>> {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            let network = |name, inputs, outputs| Mlp::new(inputs, args.hidden_size, outputs, vb.pp(name));
            let policy = |name: String, j: usize| network(name, observations[j].len(), actions[j].len());
            let agent = |i| {
                // The first sub-policy keeps the name that it has alone.
                let name = |k| if k == 0 { format!("actor{i}") } else { format!("actor{i}.{k}") };
                let others = (0..num_agents).filter(|&j| args.infer_policies && j != i);
                let inferred = |j| Ok((j, vec![policy(format!("inferred{i}.{j}"), j)?]));
                Ok(Agent {
                    index: i,
                    actor: (0..args.ensemble_size).map(|k| policy(name(k), i)).collect::<Result<_>>()?,
                    critic: network(format!("critic{i}"), envs.observation_dim() + envs.action_dim(), 1)?,
                    inferred: others.map(inferred).collect::<Result<_>>()?,
                    observation: observations[i].clone(),
                    action: actions[i].clone(),
                    choices: envs.spec().choices[i].clone(),
                })
            };
            (0..num_agents).map(agent).collect()
        };
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let (agents, target_agents) = (networks(&parameters)?, networks(&target_parameters)?);
        copy_parameters(&target_parameters, &parameters)?;
        let mut optimizers = BTreeMap::new();
        for (kind, lr) in [("actor", args.policy_lr), ("critic", args.q_lr), ("inferred", args.policy_lr)] {
            for name in (0..num_agents).map(|i| format!("{kind}{i}")) {
                let prefix = format!("{name}.");
                let own = parameters.named_vars().into_iter().filter(|(name, _)| name.starts_with(&prefix));
                let adam = Adam::from_vars(own.map(|(_, var)| var).collect(), lr)?;
                optimizers.insert(name, adam.with_max_grad_norm(args.max_grad_norm));
            }
        }
        Ok(Self { agents, target_agents, parameters, target_parameters, optimizers, args, device })
    }

    /// One step of an agent's networks, such as "critic0", down `loss`, whose value it returns.
    fn descend(&mut self, networks: &str, loss: &Tensor) -> Result<f32> {
        self.optimizers.get_mut(networks).context("no such networks")?.backward_step(loss)?;
        Ok(loss.to_scalar()?)
    }

    /// g, `[rows, action_dim]`.
    fn gumbel(&self, rows: usize, rng: &mut Rng) -> Result<Tensor> {
        // g = −ln(−ln u). Infinite at u = 0 and u = 1: u is open at both ends, and drawn as f64.
        let g = |_| -(-rng.sample::<f64, _>(Open01).ln()).ln() as f32;
        let action_dim: usize = self.agents.iter().map(|agent| agent.action.len()).sum();
        Ok(Tensor::from_vec((0..rows * action_dim).map(g).collect(), (rows, action_dim), &self.device)?)
    }

    /// k of each agent in episodes that begin, `[rows, num_agents]`. Where K is 1 nothing is drawn.
    fn draw_playing(&self, rows: usize, rng: &mut Rng) -> Vec<f32> {
        let size = self.args.ensemble_size;
        let k = |_| if size > 1 { rng.random_range(0..size) as f32 } else { 0.0 };
        (0..rows * self.agents.len()).map(k).collect()
    }

    /// a for each x, `[num_envs, action_dim]` as the Gumbel noise; `playing` is `[num_envs, num_agents]`.
    fn act(&self, observations: &[f32], playing: &[f32], noise: &Tensor) -> Result<Vec<f32>> {
        let x = Tensor::from_slice(observations, (noise.dim(0)?, ()), &self.device)?;
        let playing = Tensor::from_slice(playing, (noise.dim(0)?, ()), &self.device)?;
        let act = |agent: &Agent| Ok(agent.act(&agent.actor, &x, &playing, noise)?.0);
        let actions = self.agents.iter().map(act).collect::<Result<Vec<_>>>()?; // a_1, …, a_N
        Ok(Tensor::cat(&actions, 1)?.flatten_all()?.to_vec1()?)
    }

    /// One step of all that agent i infers; nothing else moves. Returns its Σ_j L(ψ_ij), but for terms without ψ.
    fn update_inferred(&mut self, i: usize, latest: &Batch) -> Result<f32> {
        let mut loss = Tensor::zeros((), DType::F32, &self.device)?;
        for (&j, policy) in &self.agents[i].inferred {
            let (other, mut start) = (&self.agents[j], 0);
            let logits = policy[0].forward(&[latest.observations.i((.., other.observation.clone()))?])?;
            let actions = latest.actions.i((.., other.action.clone()))?.maximum(1e-30)?; // never ln 0
            for &n in &other.choices {
                let (z, a) = (logits.narrow(1, start, n)?, actions.narrow(1, start, n)?); // [batch, n]
                // ln μ̂_ij(a_j|o_j) = Σ_l z_l − n ln Σ_l exp(z_l) / a_l, and terms that have no ψ
                let log_prob = (z.sum(1)? - ((&z - a.log()?)?.log_sum_exp(1)? * n as f64)?)?; // [batch]
                let entropy = Categorical::new(&z)?.entropy()?; // H of softmax(z), [batch]
                // L(ψ_ij) = −E[ ln μ̂_ij(a_j|o_j) + λ H(μ̂_ij(o_j)) ]
                loss = (loss - (log_prob + (entropy * self.args.ent_coef)?)?.mean_all()?)?;
                start += n;
            }
        }
        self.descend(&format!("inferred{i}"), &loss)
    }

    /// y_i, `[batch, 1]`, from noise `[batch, action_dim]`.
    fn td_targets(&self, i: usize, batch: &Batch, noise: &Tensor) -> Result<Tensor> {
        let mut inputs = vec![batch.next_observations.clone()]; // x', a'_1, …, a'_N
        for (j, agent) in self.target_agents.iter().enumerate() {
            // Easy to miss and fatal: a' is what all *target* actors do in x', not what the buffer holds.
            let policy = self.target_agents[i].inferred.get(&j).unwrap_or(&agent.actor);
            inputs.push(agent.act(policy, &batch.next_observations, &batch.playing, noise)?.0);
        }
        let next_q = self.target_agents[i].critic.forward(&inputs)?; // Q'_i(x', a'), [batch, 1]
        // y_i = r_i + γ (1 − terminated) Q'_i(x', a')
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((batch.rewards.i((.., i..i + 1))? + discounts * next_q)?.detach())
    }

    /// One step of critic i towards y_i; nothing else moves. Returns L(φ_i) and E[ Q_i(x, a) ] before it.
    fn update_critic(&mut self, i: usize, batch: &Batch, noise: &Tensor) -> Result<(f32, f32)> {
        let y = self.td_targets(i, batch, noise)?;
        let q = self.agents[i].critic.forward(&[&batch.observations, &batch.actions])?; // [batch, 1]
        // L(φ_i) = E[ (Q_i(x, a) − y_i)² ]
        let loss = (&q - y)?.sqr()?.mean_all()?;
        Ok((self.descend(&format!("critic{i}"), &loss)?, q.mean_all()?.to_scalar()?))
    }

    /// One step of actor i up its critic, noise as in y_i; nothing else moves. Returns −J(θ_i) and penalty.
    fn update_actor(&mut self, i: usize, batch: &Batch, noise: &Tensor) -> Result<f32> {
        let (agent, x) = (&self.agents[i], &batch.observations);
        let (own_action, logits) = agent.act(&agent.actor, x, &batch.playing, noise)?; // by who played
        // (x, a_1, …, μ_i(o_i), …, a_N): the others' actions stay those of the buffer.
        let actions = batch.actions.slice_assign(&[0..x.dim(0)?, agent.action.clone()], &own_action)?;
        // Its parameters are held constant: gradients pass through the critic to its input.
        let critic = Mlp(agent.critic.0.each_ref().map(Linear::detach));
        // J(θ_i) = E[ Q_i(x, a_1, …, μ_i(o_i), …, a_N) ]
        let value = critic.forward(&[x, &actions])?.mean_all()?;
        // c E[ z² ] − J(θ_i): unpenalised, logits may grow until the noise decides nothing any more.
        let loss = ((logits.sqr()?.mean_all()? * self.args.logit_coef)? - value)?;
        self.descend(&format!("actor{i}"), &loss)
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
    let mut maddpg = Maddpg::new(&envs, args.clone())?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size, ..Default::default() };
    let mut playing = maddpg.draw_playing(num_envs, &mut rng); // [num_envs, num_agents]
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        let mut state: Vec<(&str, &mut dyn Persist)> = vec![
            ("parameters", &mut maddpg.parameters),
            ("target_parameters", &mut maddpg.target_parameters),
            ("envs", &mut envs),
            ("rng", &mut rng),
            ("buffer", &mut buffer),
            ("playing", &mut playing),
        ];
        state.extend(maddpg.optimizers.iter_mut().map(|(name, adam)| (name as &str, adam as _)));
        run.resume_or_checkpoint(&mut global_step, &mut state)?;

        // Act: one step of all agents in each environment, and store what happened.
        let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
        let noise = maddpg.gumbel(num_envs, &mut rng)?; // the exploration, [num_envs, action_dim]
        let actions = maddpg.act(&observations, &playing, &noise)?; // [num_envs, action_dim]
        envs.step(&actions)?;
        buffer.store(&observations, &playing, &actions, &envs);
        for episode in envs.episodes() {
            write_row(&mut playing, episode.env, &maddpg.draw_playing(1, &mut rng)); // in the next one
        }
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
                if (step / args.train_frequency).is_multiple_of(10) {
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
    let no_noise = Tensor::zeros((args.run.eval_episodes, envs.action_dim()), DType::F32, &maddpg.device)?;
    rng = learner_rng(args.run.seed); // so that `--eval-only` draws the same
    let playing = maddpg.draw_playing(args.run.eval_episodes, &mut rng);
    run.evaluate_agents(make, |observations| maddpg.act(observations, &playing, &no_noise))?;
    Ok(())
}

#[cfg(test)]
mod tests;
