//! # Multi-agent deep deterministic policy gradient (MADDPG)
//!
//! Lowe, Wu, Tamar, Harb, Abbeel & Mordatch (2017), arXiv:1706.02275.

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
#[command(mut_arg("env_id", |arg| arg.default_value("simple_speaker_listener_v4")
    .help("Environment: a multi-agent particle environment, such as simple_v3")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("150000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam for the actors
    #[arg(long, default_value_t = 1e-2, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of Adam for the critics
    #[arg(long, default_value_t = 1e-2, value_parser = cli::non_negative)]
    q_lr: f64,
    /// Parallel environments
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    num_envs: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.95, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Share of the online networks that moves into the targets after an update, τ
    #[arg(long, default_value_t = 0.01, value_parser = cli::unit_interval)]
    tau: f64,
    /// Transitions kept for replay
    #[arg(long, default_value_t = 1_000_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Transitions of a minibatch
    #[arg(long, default_value_t = 1024, value_parser = cli::positive)]
    batch_size: usize,
    /// Environment steps before the first update
    #[arg(long, default_value_t = 5_000)]
    learning_starts: usize,
    /// Environment steps between updates
    #[arg(long, default_value_t = 100, value_parser = cli::positive)]
    train_frequency: usize,
    /// Largest norm of a gradient
    #[arg(long, default_value_t = 0.5, value_parser = cli::above_zero)]
    max_grad_norm: f64,
    /// Weight of the penalty on the size of the actors' logits
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

    /// The same network as a constant: gradients pass through it to its input and stop there.
    fn detach(&self) -> Self {
        Self { hidden1: self.hidden1.detach(), hidden2: self.hidden2.detach(), output: self.output.detach() }
    }
}

/// Where each agent's part lies in a row of joint observations and in one of joint actions.
struct Layout {
    observations: Vec<Range<usize>>, // [num_agents]
    actions: Vec<Range<usize>>,      // [num_agents]
    /// The choices that make up each agent's action, by their number of options: where to move,
    /// what to say, or both.
    choices: Vec<Vec<usize>>,
}

impl Layout {
    fn new(envs: &ParallelVecEnv) -> Self {
        let world = envs.envs()[0].world();
        let choices = world.agents.iter().zip(&world.bodies).map(|(agent, body)| {
            let (moves, words) = (body.movable.then_some(5), agent.speaks.then_some(agent.utterance.len()));
            moves.into_iter().chain(words).collect()
        });
        Self {
            observations: consecutive(envs.observation_dims()),
            actions: consecutive(envs.action_dims()),
            choices: choices.collect(),
        }
    }

    fn num_agents(&self) -> usize {
        self.choices.len()
    }

    fn observation_dim(&self) -> usize {
        self.observations.iter().map(Range::len).sum()
    }

    fn action_dim(&self) -> usize {
        self.actions.iter().map(Range::len).sum()
    }
}

/// Ranges of these lengths, one after the other.
fn consecutive(lens: &[usize]) -> Vec<Range<usize>> {
    let mut end = 0;
    let range = |len: &usize| {
        end += len;
        end - len..end
    };
    lens.iter().map(range).collect()
}

/// Columns `range` of `joint`, `[batch, range.len()]`.
fn part(joint: &Tensor, range: &Range<usize>) -> Result<Tensor> {
    Ok(joint.narrow(1, range.start, range.len())?)
}

/// Every agent's actor and critic: the online ones, or the targets.
struct Networks {
    actors: Vec<Mlp>,  // [num_agents], own observation → logits of own action
    critics: Vec<Mlp>, // [num_agents], all observations and all actions → Q_i
}

impl Networks {
    fn new(layout: &Layout, vb: &VarBuilder) -> Result<Self> {
        let joint_dim = layout.observation_dim() + layout.action_dim();
        let actor = |i: usize| {
            Mlp::new(layout.observations[i].len(), layout.actions[i].len(), vb.pp(format!("actor{i}")))
        };
        let critic = |i| Mlp::new(joint_dim, 1, vb.pp(format!("critic{i}")));
        let agents = 0..layout.num_agents();
        Ok(Self {
            actors: agents.clone().map(actor).collect::<Result<_>>()?,
            critics: agents.map(critic).collect::<Result<_>>()?,
        })
    }

    /// (μ_1(o_1), …, μ_N(o_N)): observations `[batch, observation_dim]` to `[batch, action_dim]`.
    fn act(&self, layout: &Layout, observations: &Tensor, rng: &mut Option<&mut Rng>) -> Result<Tensor> {
        let actions = (0..layout.num_agents()).map(|i| {
            let logits = self.actors[i].forward(&part(observations, &layout.observations[i])?)?;
            relaxed_action(&logits, &layout.choices[i], rng)
        });
        Ok(Tensor::cat(&actions.collect::<Result<Vec<_>>>()?, 1)?)
    }
}

fn relaxed_action(logits: &Tensor, choices: &[usize], rng: &mut Option<&mut Rng>) -> Result<Tensor> {
    let mut perturbed = logits.clone();
    if let Some(rng) = rng {
        let noise: Vec<f32> = (0..logits.elem_count()).map(|_| gumbel(rng)).collect();
        perturbed = (perturbed + Tensor::from_vec(noise, logits.shape(), logits.device())?)?;
    }
    let softmax = |range| Ok(candle_nn::ops::softmax(&part(&perturbed, &range)?, D::Minus1)?);
    let choices = consecutive(choices).into_iter().map(softmax).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&choices, 1)?)
}

/// g = −ln(−ln u), u uniform in (0, 1).
fn gumbel(rng: &mut Rng) -> f32 {
    // In f64: every 2²⁴th f32 would be 1, and the noise infinite.
    let u: f64 = Open01.sample(rng);
    -(-u.ln()).ln() as f32
}

#[derive(Serialize, Deserialize)]
struct ReplayBuffer {
    observations: Vec<f32>,      // [len, observation_dim]
    actions: Vec<f32>,           // [len, action_dim]
    rewards: Vec<f32>,           // [len, num_agents]
    next_observations: Vec<f32>, // [len, observation_dim]
    terminated: Vec<f32>,        // [len], 1 or 0
    capacity: usize,
    next: usize,
}

struct Batch {
    observations: Tensor,      // x, [batch, observation_dim]
    actions: Tensor,           // a, [batch, action_dim]
    rewards: Tensor,           // r, [batch, num_agents]
    next_observations: Tensor, // x', [batch, observation_dim]
    terminated: Tensor,        // [batch, 1]
}

impl ReplayBuffer {
    fn new(capacity: usize) -> Self {
        Self {
            observations: vec![],
            actions: vec![],
            rewards: vec![],
            next_observations: vec![],
            terminated: vec![],
            capacity,
            next: 0,
        }
    }

    fn push(&mut self, observation: &[f32], action: &[f32], rewards: &[f64], next: &[f32], terminated: bool) {
        let row = self.next;
        put(&mut self.observations, row, observation.iter().copied());
        put(&mut self.actions, row, action.iter().copied());
        put(&mut self.rewards, row, rewards.iter().map(|&r| r as f32));
        put(&mut self.next_observations, row, next.iter().copied());
        put(&mut self.terminated, row, [f32::from(terminated)].into_iter());
        self.next = (row + 1) % self.capacity;
    }

    fn sample(&self, batch_size: usize, device: &Device, rng: &mut Rng) -> Result<Batch> {
        let len = self.terminated.len();
        let rows: Vec<usize> = (0..batch_size).map(|_| rng.random_range(0..len)).collect();
        let gather = |values: &[f32]| {
            let dim = values.len() / len;
            let picked: Vec<f32> =
                rows.iter().flat_map(|row| &values[row * dim..(row + 1) * dim]).copied().collect();
            Tensor::from_vec(picked, (batch_size, dim), device)
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

/// Writes `values` as row `row`, which is an old one or the first beyond the end.
fn put(table: &mut Vec<f32>, row: usize, values: impl ExactSizeIterator<Item = f32>) {
    let start = row * values.len();
    if start == table.len() {
        table.extend(values);
    } else {
        table[start..].iter_mut().zip(values).for_each(|(old, new)| *old = new);
    }
}

fn td_targets(
    target: &Networks,
    layout: &Layout,
    batch: &Batch,
    gamma: f64,
    rng: &mut Rng,
) -> Result<Tensor> {
    let next_actions = target.act(layout, &batch.next_observations, &mut Some(rng))?;
    let joint = Tensor::cat(&[&batch.next_observations, &next_actions], 1)?;
    let next_values =
        target.critics.iter().map(|critic| critic.forward(&joint)).collect::<Result<Vec<_>>>()?;
    let next_values = Tensor::cat(&next_values, 1)?;
    let discount = ((1.0 - &batch.terminated)? * gamma)?;
    Ok((&batch.rewards + next_values.broadcast_mul(&discount)?)?.detach())
}

fn critic_loss(critic: &Mlp, batch: &Batch, targets: &Tensor) -> Result<Tensor> {
    let joint = Tensor::cat(&[&batch.observations, &batch.actions], 1)?;
    Ok((critic.forward(&joint)? - targets)?.sqr()?.mean_all()?)
}

fn actor_loss(
    online: &Networks,
    layout: &Layout,
    agent: usize,
    batch: &Batch,
    logit_coef: f64,
    rng: &mut Rng,
) -> Result<Tensor> {
    let logits = online.actors[agent].forward(&part(&batch.observations, &layout.observations[agent])?)?;
    let own_action = relaxed_action(&logits, &layout.choices[agent], &mut Some(rng))?;
    let own = &layout.actions[agent];
    let before = part(&batch.actions, &(0..own.start))?;
    let after = part(&batch.actions, &(own.end..layout.action_dim()))?;
    let joint = Tensor::cat(&[&batch.observations, &before, &own_action, &after], 1)?;
    let value = online.critics[agent].detach().forward(&joint)?.mean_all()?;
    Ok(((logits.sqr()?.mean_all()? * logit_coef)? - value)?)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let num_envs = args.num_envs;
    let make = |num_envs, seed| ParallelVecEnv::make(&args.run.env_id, true, num_envs, seed);
    let mut envs = make(num_envs, args.run.seed)?;
    let layout = Layout::new(&envs);
    let (num_agents, observation_dim, action_dim) =
        (layout.num_agents(), layout.observation_dim(), layout.action_dim());
    let device = args.run.device()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = rng(args.run.seed, u64::MAX);
    let mut parameters = VarMap::new(args.run.seed);
    let mut target_parameters = VarMap::new(args.run.seed);
    let online = Networks::new(&layout, &VarBuilder::from_varmap(&parameters, DType::F32, &device))?;
    let target = Networks::new(&layout, &VarBuilder::from_varmap(&target_parameters, DType::F32, &device))?;
    copy_parameters(&target_parameters, &parameters)?;
    let optimizer = |kind, learning_rate| {
        let own = parameters.named_vars().into_iter().filter(|(name, _)| name.starts_with(kind));
        Ok::<_, anyhow::Error>(
            Adam::from_vars(own.map(|(_, var)| var).collect(), learning_rate)?
                .with_max_grad_norm(args.max_grad_norm),
        )
    };
    let mut actor_optimizer = optimizer("actor", args.policy_lr)?;
    let mut q_optimizer = optimizer("critic", args.q_lr)?;
    let mut buffer = ReplayBuffer::new(args.buffer_size);

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.checkpoint(
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
        let observations = envs.observations().to_vec();
        let x = Tensor::from_slice(&observations, (num_envs, observation_dim), &device)?;
        let actions = online.act(&layout, &x, &mut Some(&mut rng))?.flatten_all()?.to_vec1::<f32>()?;
        envs.step(&actions)?;
        global_step += num_envs;
        run.episodes(global_step, envs.episodes())?;
        for i in 0..num_envs {
            let row = i * observation_dim..(i + 1) * observation_dim;
            buffer.push(
                &observations[row.clone()],
                &actions[i * action_dim..(i + 1) * action_dim],
                &envs.rewards()[i * num_agents..(i + 1) * num_agents],
                &envs.final_observations()[row],
                envs.terminated()[i],
            );
        }
        if global_step < args.learning_starts {
            continue;
        }
        let due = global_step / args.train_frequency - (global_step - num_envs) / args.train_frequency;
        for _ in 0..due {
            let batch = buffer.sample(args.batch_size, &device, &mut rng)?;
            let targets = td_targets(&target, &layout, &batch, args.gamma, &mut rng)?;
            let mut losses = vec![];
            for i in 0..num_agents {
                losses.push(critic_loss(&online.critics[i], &batch, &part(&targets, &(i..i + 1))?)?);
            }
            let q_loss = Tensor::stack(&losses, 0)?.sum_all()?;
            q_optimizer.backward_step(&q_loss)?;
            let mut losses = vec![];
            for i in 0..num_agents {
                losses.push(actor_loss(&online, &layout, i, &batch, args.logit_coef, &mut rng)?);
            }
            let p_loss = Tensor::stack(&losses, 0)?.sum_all()?;
            actor_optimizer.backward_step(&p_loss)?;
            soft_update(&target_parameters, &parameters, args.tau)?;
            run.log(global_step, "losses/qf_loss", q_loss.to_scalar::<f32>()?)?;
            run.log(global_step, "losses/actor_loss", p_loss.to_scalar::<f32>()?)?;
        }
    }

    run.save_or_load_model(&mut parameters)?;
    run.evaluate_agents(make, |observations| {
        let x = Tensor::from_slice(
            observations,
            (observations.len() / observation_dim, observation_dim),
            &device,
        )?;
        Ok(online.act(&layout, &x, &mut None)?.flatten_all()?.to_vec1::<f32>()?)
    })?;
    Ok(())
}
