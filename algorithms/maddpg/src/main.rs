//! # Multi-agent deep deterministic policy gradient (MADDPG)
//!
//! Lowe, Wu, Tamar, Harb, Abbeel & Mordatch (2017), arXiv:1706.02275.
//!
//! To an agent that learns beside others the world never holds still: what its actions lead to
//! changes with their policies. MADDPG gives each agent i a critic Q_i that sees the observations
//! x = (o_1, …, o_N) and the actions a = (a_1, …, a_N) of everybody, and what follows (x, a) is the
//! same whoever chose a. Only training needs the critics: each actor μ_i climbs its critic through
//! its own action, the others' being the replayed ones, and acts on its own observation o_i alone.
//!
//! On replayed transitions (x, a, r, x'), with slowly following targets μ' and Q':
//!
//! ```text
//! y_i = r_i + γ Q'_i(x', μ'_1(o'_1), …, μ'_N(o'_N))     γ = 0 where the episode terminated
//! L(φ_i) = E[ (Q_i(x, a) − y_i)² ]                      minimised by the critic
//! J(θ_i) = E[ Q_i(x, a_1, …, μ_i(o_i), …, a_N) ]        maximised by the actor
//! θ' ← τ θ + (1 − τ) θ',  φ' ← τ φ + (1 − τ) φ'
//! ```
//!
//! An episode of the particle environments ends after 25 steps by a time limit, and y_i bootstraps
//! from its last state.
//!
//! Agents choose between movements and between words. For a gradient ∂Q_i/∂a_i to exist, a choice
//! is relaxed to a weighting of its options, the Gumbel-softmax (Jang, Gu & Poole 2016,
//! arXiv:1611.01144), whose noise is the exploration as well. Like the paper's own code, this one
//! plays with the weights themselves (they are the environments' continuous actions), so that
//! critics learn from what was done. A minibatch serves all agents at once, and updates are
//! smaller and more frequent than the paper's (1024 transitions, every 100 steps, step size 0.01).
//! Inferred policies of others (§4.2) and policy ensembles (§4.3) are left out.
//!
//! Run `cargo run -p maddpg`: about −19 on simple_speaker_listener_v4 after 150,000 steps in five
//! seconds, and with `--env-id simple_v3 --total-timesteps 75000` about −7.5 in two. Returns are
//! sums over the agents. The paper's code, with exploration, reaches −22 (−14 to −30 over ten
//! trials) and −6.3 in as many steps (curves of wsjeon/maddpg-rllib); random actions −73 and −36.

use anyhow::Result;
use candle_core::{D, DType, Device, Module, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::mpe::ParallelVecEnv;
use common::envs::{Rng, rng};
use common::nn::{Activation, Adam, Linear, VarBuilder, VarMap, copy_parameters, linear, soft_update};
use common::run::Run;
use rand::RngExt;
use rand_distr::{Distribution, Open01};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::process::ExitCode;

#[cfg(test)]
mod tests;

/// Multi-agent deep deterministic policy gradient, on the particle environments
#[derive(Parser, Serialize, Debug)]
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
    /// Transitions that are kept for replay
    #[arg(long, default_value_t = 1_000_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.95, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Step of the targets towards the online networks after each update, τ
    #[arg(long, default_value_t = 0.02, value_parser = cli::unit_interval)]
    tau: f64,
    /// Transitions of an update
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    batch_size: usize,
    /// Environment steps before the first update
    #[arg(long, default_value_t = 2000)]
    learning_starts: usize,
    /// Environment steps between updates
    #[arg(long, default_value_t = 25, value_parser = cli::positive)]
    train_frequency: usize,
    /// Largest norm of the critics' gradient, and of the actors'
    #[arg(long, default_value_t = 0.5, value_parser = cli::above_zero)]
    max_grad_norm: f64,
    /// Weight of the penalty on large logits, which keeps policies from becoming deterministic
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    logit_coef: f64,
}

/// Two hidden layers of 64 rectified units.
struct Mlp {
    hidden1: Linear, // [inputs] → [64]
    hidden2: Linear, // [64] → [64]
    output: Linear,  // [64] → [outputs]
}

impl Mlp {
    fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            hidden1: linear(inputs, 64, vb.pp("hidden1"))?.with_activation(Activation::Relu),
            hidden2: linear(64, 64, vb.pp("hidden2"))?.with_activation(Activation::Relu),
            output: linear(64, outputs, vb.pp("output"))?,
        })
    }

    /// `[batch, inputs]` to `[batch, outputs]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.output.forward(&self.hidden2.forward(&self.hidden1.forward(x)?)?)?)
    }

    /// The same network with constant parameters: gradients pass through it to its input only.
    fn detach(&self) -> Self {
        let Self { hidden1, hidden2, output } = self;
        Self { hidden1: hidden1.detach(), hidden2: hidden2.detach(), output: output.detach() }
    }
}

/// Agent i's networks, online or target, and its place among the others.
struct Agent {
    actor: Mlp,                // o_i → logits: [batch, own observation] → [batch, own action]
    critic: Mlp,               // (x, a) → Q_i: [batch, observation_dim + action_dim] → [batch, 1]
    observation: Range<usize>, // columns of o_i in x
    action: Range<usize>,      // columns of a_i in a
    choices: Vec<usize>,       // numbers of options: of movements, of words, or of both in this order
}

impl Agent {
    fn new(i: usize, envs: &ParallelVecEnv, vb: &VarBuilder) -> Result<Self> {
        let (observation, action) = (envs.observation_columns()[i].clone(), envs.action_columns()[i].clone());
        let joint_dim = envs.observation_dim() + envs.action_dim();
        Ok(Self {
            actor: Mlp::new(observation.len(), action.len(), vb.pp(format!("actor{i}")))?,
            critic: Mlp::new(joint_dim, 1, vb.pp(format!("critic{i}")))?,
            observation,
            action,
            choices: envs.spec().choices[i].clone(),
        })
    }

    /// Logits of the own action, from joint observations `[batch, observation_dim]`.
    fn logits(&self, observations: &Tensor) -> Result<Tensor> {
        self.actor.forward(&columns(observations, &self.observation)?)
    }

    /// The own action `[batch, own action]` of these logits: for each choice weights w of its
    /// options, drawn from the Gumbel-softmax of temperature 1, or without `rng` their softmax.
    fn relax(&self, logits: &Tensor, rng: Option<&mut Rng>) -> Result<Tensor> {
        let mut perturbed = logits.clone();
        if let Some(rng) = rng {
            // g = −ln(−ln u), u uniform in (0, 1): at u = 1, which is one of 2²⁴ draws of an f32
            // from (0, 1], g would be infinite
            let mut gumbel = || -(-Distribution::<f64>::sample(&Open01, rng).ln()).ln() as f32;
            let noise: Vec<f32> = (0..logits.elem_count()).map(|_| gumbel()).collect();
            perturbed = (perturbed + Tensor::from_vec(noise, logits.shape(), logits.device())?)?;
        }
        let mut start = 0;
        let weights = self.choices.iter().map(|&options| {
            let choice = start..start + options;
            start = choice.end;
            // w_k = exp(z_k + g_k) / Σ_l exp(z_l + g_l)
            Ok(candle_nn::ops::softmax(&columns(&perturbed, &choice)?, D::Minus1)?)
        });
        Ok(Tensor::cat(&weights.collect::<Result<Vec<_>>>()?, 1)?)
    }
}

/// Some columns of a joint tensor, `[batch, range.len()]`.
fn columns(joint: &Tensor, range: &Range<usize>) -> Result<Tensor> {
    Ok(joint.narrow(1, range.start, range.len())?)
}

/// (μ_1(o_1), …, μ_N(o_N)): `[batch, observation_dim]` to `[batch, action_dim]`.
fn act(agents: &[Agent], observations: &Tensor, mut rng: Option<&mut Rng>) -> Result<Tensor> {
    let action = |agent: &Agent| agent.relax(&agent.logits(observations)?, rng.as_deref_mut());
    Ok(Tensor::cat(&agents.iter().map(action).collect::<Result<Vec<_>>>()?, 1)?)
}

/// Past transitions of all agents, the newest in the place of the oldest.
#[derive(Serialize, Deserialize)]
struct ReplayBuffer {
    rows: Vec<f32>,     // [len, widths.sum()]
    widths: [usize; 5], // of x, a, r, x' and whether the episode terminated
    capacity: usize,
    next: usize, // row to write
}

/// Transitions, as tensors.
struct Batch {
    observations: Tensor,      // x, [batch, observation_dim]
    actions: Tensor,           // a, [batch, action_dim]
    rewards: Tensor,           // r, [batch, num_agents]
    next_observations: Tensor, // x', [batch, observation_dim]
    terminated: Tensor,        // 1 where the episode terminated, else 0: [batch, 1]
}

impl ReplayBuffer {
    fn push(&mut self, transition: [&[f32]; 5]) {
        let width: usize = self.widths.iter().sum();
        let mut start = self.next * width;
        if start == self.rows.len() {
            self.rows.resize(start + width, 0.0);
        }
        for part in transition {
            self.rows[start..start + part.len()].copy_from_slice(part);
            start += part.len();
        }
        self.next = (self.next + 1) % self.capacity;
    }

    /// Draws `batch_size` transitions uniformly, with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<Batch> {
        let width: usize = self.widths.iter().sum();
        let len = self.rows.len() / width;
        let mut rows = Vec::with_capacity(batch_size * width);
        for _ in 0..batch_size {
            rows.extend_from_slice(&self.rows[rng.random_range(0..len) * width..][..width]);
        }
        let rows = Tensor::from_vec(rows, (batch_size, width), device)?;
        let mut end = 0;
        let [observations, actions, rewards, next_observations, terminated] = self.widths.map(|width| {
            end += width;
            columns(&rows, &(end - width..end))
        });
        Ok(Batch {
            observations: observations?,
            actions: actions?,
            rewards: rewards?,
            next_observations: next_observations?,
            terminated: terminated?,
        })
    }
}

/// y_i of every agent, `[batch, num_agents]`, from the target networks.
fn td_targets(targets: &[Agent], batch: &Batch, gamma: f64, rng: &mut Rng) -> Result<Tensor> {
    // Super critical, easy to overlook: a' is what all the *target* actors do in x', not what the
    // replay buffer holds.
    let next_actions = act(targets, &batch.next_observations, Some(rng))?;
    let joint = Tensor::cat(&[&batch.next_observations, &next_actions], 1)?;
    let next_values = targets.iter().map(|agent| agent.critic.forward(&joint)).collect::<Result<Vec<_>>>()?;
    // y_i = r_i + γ Q'_i(x', a'); nothing follows termination
    let discounts = ((1.0 - &batch.terminated)? * gamma)?;
    let bootstrap = Tensor::cat(&next_values, 1)?.broadcast_mul(&discounts)?;
    Ok((&batch.rewards + bootstrap)?.detach())
}

/// Σ_i E[ (Q_i(x, a) − y_i)² ], `td_targets` being `[batch, num_agents]`. Agents share no
/// parameter, so the gradient of the sum is each critic's own.
fn critic_loss(agents: &[Agent], batch: &Batch, td_targets: &Tensor) -> Result<Tensor> {
    let joint = Tensor::cat(&[&batch.observations, &batch.actions], 1)?;
    let values = agents.iter().map(|agent| agent.critic.forward(&joint)).collect::<Result<Vec<_>>>()?;
    let squares = (Tensor::cat(&values, 1)? - td_targets)?.sqr()?;
    Ok((squares.sum_all()? / batch.rewards.dim(0)? as f64)?)
}

/// `−E[ Q_i(x, a_1, …, μ_i(o_i), …, a_N) ] + c E[z²]`, where z are the logits. The penalty is from
/// the paper's code: with it they cannot grow until the noise decides nothing any more.
fn actor_loss(agent: &Agent, batch: &Batch, logit_coef: f64, rng: &mut Rng) -> Result<Tensor> {
    let logits = agent.logits(&batch.observations)?;
    let own = agent.relax(&logits, Some(rng))?;
    let before = columns(&batch.actions, &(0..agent.action.start))?;
    let after = columns(&batch.actions, &(agent.action.end..batch.actions.dim(1)?))?;
    // The others' actions are constants from the buffer, and the critic is one too: the only way
    // for the gradient is through the own action.
    let joint = Tensor::cat(&[&batch.observations, &before, &own, &after], 1)?;
    let value = agent.critic.detach().forward(&joint)?.mean_all()?;
    Ok(((logits.sqr()?.mean_all()? * logit_coef)? - value)?)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let make = |num_envs, seed| ParallelVecEnv::make(&args.run.env_id, true, num_envs, seed);
    let num_envs = args.num_envs;
    let mut envs = make(num_envs, args.run.seed)?;
    let (num_agents, observation_dim, action_dim) =
        (envs.num_agents(), envs.observation_dim(), envs.action_dim());
    let device = args.run.device()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = rng(args.run.seed, u64::MAX);
    let build = |parameters| -> Result<Vec<Agent>> {
        let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
        (0..num_agents).map(|i| Agent::new(i, &envs, &vb)).collect()
    };
    let (mut parameters, mut target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
    let (agents, targets) = (build(&parameters)?, build(&target_parameters)?);
    copy_parameters(&target_parameters, &parameters)?;
    let optimizer = |of: &str, learning_rate| -> Result<Adam> {
        let vars = parameters.named_vars().into_iter().filter(|(name, _)| name.starts_with(of));
        let optimizer = Adam::from_vars(vars.map(|(_, var)| var).collect(), learning_rate)?;
        Ok(optimizer.with_max_grad_norm(args.max_grad_norm))
    };
    let mut actor_optimizer = optimizer("actor", args.policy_lr)?;
    let mut q_optimizer = optimizer("critic", args.q_lr)?;
    let widths = [observation_dim, action_dim, num_agents, observation_dim, 1];
    let mut buffer = ReplayBuffer { rows: Vec::new(), widths, capacity: args.buffer_size, next: 0 };
    let policy = |observations: &[f32], rng: Option<&mut Rng>| -> Result<Vec<f32>> {
        let n = observations.len() / observation_dim;
        let observations = Tensor::from_slice(observations, (n, observation_dim), &device)?;
        Ok(act(&agents, &observations, rng)?.flatten_all()?.to_vec1()?)
    };

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut parameters),
                ("target_parameters", &mut target_parameters),
                ("actor_optimizer", &mut actor_optimizer),
                ("q_optimizer", &mut q_optimizer),
                ("envs", &mut envs),
                ("buffer", &mut buffer),
                ("rng", &mut rng),
            ],
        )?;

        // Act: one step of all agents in each environment.
        let observations = envs.observations().to_vec();
        let actions = policy(&observations, Some(&mut rng))?;
        envs.step(&actions)?;
        global_step += num_envs;
        run.episodes(global_step, envs.episodes())?;
        for (name, total) in envs.spec().agents.iter().cycle().zip(envs.episode_returns()) {
            run.log(global_step, &format!("charts/episodic_return/{name}"), *total)?;
        }
        for i in 0..num_envs {
            let row = |width: usize| i * width..(i + 1) * width;
            buffer.push([
                &observations[row(observation_dim)],
                &actions[row(action_dim)],
                &envs.rewards()[row(num_agents)],
                // Easy to miss and fatal: after a reset, `observations` are of the next episode.
                &envs.final_observations()[row(observation_dim)],
                &[f32::from(envs.terminated()[i])],
            ]);
        }

        // Learn: one minibatch for all agents each time train_frequency steps have passed.
        if global_step < args.learning_starts {
            continue;
        }
        let updates = |step: usize| step / args.train_frequency;
        for _ in updates(global_step - num_envs)..updates(global_step) {
            let batch = buffer.sample(args.batch_size, &mut rng, &device)?;
            let td_targets = td_targets(&targets, &batch, args.gamma, &mut rng)?;
            let critic_loss = critic_loss(&agents, &batch, &td_targets)?;
            q_optimizer.backward_step(&critic_loss)?;

            let losses = agents.iter().map(|agent| actor_loss(agent, &batch, args.logit_coef, &mut rng));
            let actor_loss = Tensor::stack(&losses.collect::<Result<Vec<_>>>()?, 0)?.sum_all()?;
            actor_optimizer.backward_step(&actor_loss)?;
            soft_update(&target_parameters, &parameters, args.tau)?;

            run.log(global_step, "losses/qf_loss", critic_loss.to_scalar::<f32>()?)?;
            run.log(global_step, "losses/actor_loss", actor_loss.to_scalar::<f32>()?)?;
        }
    }

    run.save_or_load_model(&mut parameters)?;
    run.evaluate_agents(make, |observations| policy(observations, None))?;
    Ok(())
}
