//! # Model-based reinforcement learning with model-predictive control, versions 0.5, 1.0 and 1.5
//!
//! Nagabandi, Kahn, Fearing & Levine (2018), arXiv:1708.02596, is version 1.5; the three versions are
//! those of Levine's lectures on deep reinforcement learning (CS 285).
//!
//! Learn from data what actions do, and plan with that. Version 0.5 learns from random actions, and its
//! plans lead it to where those never were (distribution shift). Version 1.0 adds what its plans met to the
//! data. Version 1.5 also replans after each step (model-predictive control), before an error grows.
//!
//! ```text
//! model        s' ≈ s + μ_Δ + σ_Δ f_θ( ((s, a) − μ_x) / σ_x )
//! loss         J(θ) = mean over D and dimensions of ( f_θ − (s' − s − μ_Δ) / σ_Δ )²
//! plan         a_0 … a_{H−1} = argmax over K random plans of Σ_{k < H} r(ŝ_k, a_k, ŝ_{k+1}), until ŝ ends
//!              ŝ_0 = s,  ŝ_{k+1} by the model
//!
//!                        0.5         1.0                  1.5
//! data D                 random      random and planned   random and planned
//! acts with              whole plan  whole plan           the plan's first action, then plans anew
//! ```
//!
//! where μ and σ are means and standard deviations of the inputs (s, a) and of the differences s' − s in D:
//! differences are small beside the states, and of another size in each dimension. As in the paper, the reward is
//! known, not learned, and so is where an episode ends (see [`Task`]); a fall counts 0 in a plan, though the
//! environment pays 1 for it. `losses/model_loss` is the mean of J over a fit's minibatches, `losses/model_error`
//! is J on what was met since: they part in version 0.5.
//!
//! Deviations from the paper. The model is fitted every train_frequency steps, wherever an episode ends, for a
//! fixed number of minibatches; in version 0.5 too, so that it differs from 1.0 in its data alone. No noise is
//! added to the data, and a minibatch is drawn from all of D, where the paper draws nine tenths from what was
//! planned. Layers of 64 units and 64 plans are fewer than the authors' 500 and 1000 to 5000. Model-free
//! fine-tuning is left out.
//!
//! Run `cargo run -p mbrl_mpc`: 199 or more of 200 after 1000 steps, in ten seconds (arXiv:1907.02057, table 1:
//! 200.0 by this planner, 199.7 by the paper's method, after 200,000). Versions 0.5 and 1.0 stay near 50 and 90.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use common::envs::{Rng, Spec, VecEnv, invalid, learner_rng, textbook::ContinuousCartPole};
use common::nn::{Adam, Init, Linear, VarBuilder, VarMap, linear, side_by_side};
use common::{Run, cli, cli::RunArgs, model::Model};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{cell::RefCell, process::ExitCode};

const PART: usize = 64; // plans that are tried together, with --threads beside others
/// Model-based reinforcement learning: fits a model of the dynamics and plans with it
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("ContinuousCartPole-v0-mbbl")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("1000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Which data the model is fitted to, and how often plans are made
    #[arg(long, value_enum, default_value = "1.5")]
    mbrl_version: Version,
    /// Steps that a plan looks ahead, H
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    horizon: usize,
    /// Random plans of which the best is taken, K
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    candidates: usize,
    /// Steps with uniformly random actions before the first fit
    #[arg(long, default_value_t = 200, value_parser = cli::positive)]
    learning_starts: usize,
    /// Steps from one fit of the model to the next
    #[arg(long, default_value_t = 100, value_parser = cli::positive)]
    train_frequency: usize,
    /// Minibatches in a fit
    #[arg(long, default_value_t = 200, value_parser = cli::positive)]
    model_updates: usize,
    /// Transitions in a minibatch
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    batch_size: usize,
    /// Step size of the model
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Units in each of the two hidden layers
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    hidden_size: usize,
}

/// The lectures' versions of model-based reinforcement learning.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
enum Version {
    /// Random data; whole plans
    #[value(name = "0.5")]
    #[serde(rename = "0.5")]
    V0_5,
    /// Random data and what planning met; whole plans
    #[value(name = "1.0")]
    #[serde(rename = "1.0")]
    V1_0,
    /// Random data and what planning met; a new plan for each action
    #[value(name = "1.5")]
    #[serde(rename = "1.5")]
    V1_5,
}

/// What a planner is told about a task beside observations: as in the papers, functions that are known.
struct Task {
    reward: fn(&[f32], &[f32], &[f32]) -> f32, // r(s, a, s')
    terminated: fn(&[f32]) -> bool,            // whether the episode ends in s'
}

impl Task {
    fn of(spec: &Spec) -> Result<Self> {
        match spec.id.as_str() {
            "ContinuousCartPole-v0-mbbl" => {
                Ok(Self { reward: |s, _, _| ContinuousCartPole::mbbl_reward(s), terminated: |_| false })
            }
            "ContinuousCartPole-v0" => Ok(Self {
                reward: |_, _, next| ContinuousCartPole::reward(next),
                terminated: ContinuousCartPole::terminated,
            }),
            id => invalid(format!(
                "--env-id {id}: mbrl_mpc knows the rewards of ContinuousCartPole-v0-mbbl and ContinuousCartPole-v0"
            )),
        }
    }
}

/// f_θ: two hidden layers of ReLU units.
struct Mlp {
    hidden1: Linear, // [observation_dim + action_dim] → [hidden_size]
    hidden2: Linear, // [hidden_size] → [hidden_size]
    output: Linear,  // [hidden_size] → [observation_dim]
}

impl Mlp {
    fn new(inputs: usize, hidden_size: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            hidden1: linear(inputs, hidden_size, vb.pp("hidden1"))?,
            hidden2: linear(hidden_size, hidden_size, vb.pp("hidden2"))?,
            output: linear(hidden_size, outputs, vb.pp("output"))?,
        })
    }

    /// Normalised `[batch, observation_dim + action_dim]` to normalised `[batch, observation_dim]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.hidden1.forward_relu(x)?;
        let x = self.hidden2.forward_relu(&x)?;
        Ok(self.output.forward(&x)?)
    }
}

/// Mean and standard deviation of each column of the data.
struct Normaliser {
    mean: Tensor,   // μ, [1, columns]
    std: Tensor,    // σ, 1 where the data does not vary, [1, columns]
    values: VarMap, // both, for what is saved
}

impl Normaliser {
    /// That changes nothing, until it is fitted.
    fn new(columns: usize, device: &Device) -> Result<Self> {
        let values = VarMap::new(0);
        let vb = VarBuilder::from_varmap(&values, DType::F32, device);
        let mean = vb.get_with_hints((1, columns), "mean", Init::Const(0.0))?;
        let std = vb.get_with_hints((1, columns), "std", Init::Const(1.0))?;
        Ok(Self { mean, std, values })
    }

    /// Takes on the statistics of `x`, `[rows, columns]`. What varies by the mean's rounding alone does not vary.
    fn fit(&self, x: &Tensor) -> Result<()> {
        let mean = x.mean_keepdim(0)?;
        let std = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?.sqrt()?;
        let std = std.le(&(mean.abs()? * 1e-5)?)?.where_cond(&std.ones_like()?, &std)?;
        Ok(self.values.set_values(&Tensor::cat(&[mean, std], 1)?.flatten_all()?.to_vec1()?)?)
    }

    /// (x − μ) / σ
    fn normalise(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_sub(&self.mean)?.broadcast_div(&self.std)?)
    }

    /// μ + σ x
    fn denormalise(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_mul(&self.std)?.broadcast_add(&self.mean)?)
    }
}

/// All transitions in their order; without rewards, which are known, and ends, which change no dynamics.
#[derive(Serialize, Deserialize, Default)]
struct Dataset {
    len: usize,
    observations: Vec<f32>,      // s, [len, observation_dim]
    actions: Vec<f32>,           // a, [len, action_dim]
    next_observations: Vec<f32>, // s', an episode's true last one at its end, [len, observation_dim]
}

/// Transitions from a dataset.
struct Batch {
    observations: Tensor,      // s, [batch, observation_dim]
    actions: Tensor,           // a, [batch, action_dim]
    next_observations: Tensor, // s', [batch, observation_dim]
}

impl Dataset {
    /// Stores the step that `envs`, a single environment, has just made.
    fn store(&mut self, observation: &[f32], action: &[f32], envs: &VecEnv) {
        self.len += 1;
        self.observations.extend(observation);
        self.actions.extend(action);
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
        self.next_observations.extend(envs.final_observations());
    }

    fn rows(&self, rows: impl Iterator<Item = usize>, device: &Device) -> Result<Batch> {
        let rows: Vec<usize> = rows.collect();
        let gather = |column: &[f32]| {
            let width = column.len() / self.len;
            let values = rows.iter().flat_map(|row| &column[row * width..(row + 1) * width]);
            Tensor::from_vec(values.copied().collect(), (rows.len(), width), device)
        };
        Ok(Batch {
            observations: gather(&self.observations)?,
            actions: gather(&self.actions)?,
            next_observations: gather(&self.next_observations)?,
        })
    }
}

/// The model of the dynamics, how it learns, and the planner that uses it.
struct Mpc {
    model: Mlp,              // f_θ
    inputs: Normaliser,      // μ_x, σ_x
    differences: Normaliser, // μ_Δ, σ_Δ
    parameters: VarMap,      // θ
    optimizer: Adam,
    task: Task,
    action_bias: Vec<f32>,  // the middle of the actions' bounds, [action_dim]
    action_scale: Vec<f32>, // half of their width, [action_dim]
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl Mpc {
    fn new(spec: &Spec, task: Task, args: &Args, rng: &mut Rng) -> Result<Self> {
        let (observation_dim, action_dim) = spec.box_to_box("mbrl_mpc")?;
        let (action_bias, action_scale) = spec.action_range("mbrl_mpc")?;
        let device = args.run.device()?;
        let parameters = VarMap::new(rng.random());
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        Ok(Self {
            model: Mlp::new(observation_dim + action_dim, args.hidden_size, observation_dim, vb)?,
            inputs: Normaliser::new(observation_dim + action_dim, &device)?,
            differences: Normaliser::new(observation_dim, &device)?,
            optimizer: Adam::new(&parameters, args.learning_rate)?,
            parameters,
            task,
            action_bias,
            action_scale,
            observation_dim,
            args: args.clone(),
            device,
        })
    }

    /// `count` uniformly random actions, `[count, action_dim]`: the base policy, and the planner's guesses.
    fn random_actions(&self, count: usize, rng: &mut Rng) -> Vec<f32> {
        let mut actions = Vec::with_capacity(count * self.action_bias.len());
        for _ in 0..count {
            for (b, c) in self.action_bias.iter().zip(&self.action_scale) {
                actions.push(b + c * rng.random_range(-1.0..=1.0));
            }
        }
        actions
    }

    /// μ and σ of the inputs and of the differences in `data`, all of it.
    fn update_normalisers(&self, data: &Batch) -> Result<()> {
        self.inputs.fit(&Tensor::cat(&[&data.observations, &data.actions], 1)?)?;
        self.differences.fit(&(&data.next_observations - &data.observations)?)
    }

    /// f_θ for observations `[batch, observation_dim]` and actions `[batch, action_dim]`.
    fn normalised_difference(&self, observations: &Tensor, actions: &Tensor) -> Result<Tensor> {
        let inputs = Tensor::cat(&[observations, actions], 1)?; // (s, a)
        self.model.forward(&self.inputs.normalise(&inputs)?)
    }

    /// ŝ', `[batch, observation_dim]`.
    fn predict(&self, observations: &Tensor, actions: &Tensor) -> Result<Tensor> {
        // s' ≈ s + μ_Δ + σ_Δ f_θ( ((s, a) − μ_x) / σ_x )
        let difference = self.differences.denormalise(&self.normalised_difference(observations, actions)?)?;
        Ok((observations + difference)?)
    }

    /// J(θ) on a batch.
    fn model_loss(&self, batch: &Batch) -> Result<Tensor> {
        let differences = (&batch.next_observations - &batch.observations)?;
        let targets = self.differences.normalise(&differences)?; // (s' − s − μ_Δ) / σ_Δ
        let predictions = self.normalised_difference(&batch.observations, &batch.actions)?;
        // J(θ) = mean of ( f_θ − (s' − s − μ_Δ) / σ_Δ )²
        Ok((predictions - targets)?.sqr()?.mean_all()?)
    }

    /// One step of the model. Returns J(θ) from before it.
    fn update_model(&mut self, batch: &Batch) -> Result<f32> {
        let loss = self.model_loss(batch)?;
        self.optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// What plans `[rows, horizon, action_dim]` are worth from observations `[rows, observation_dim]`.
    fn plan_returns(&self, observations: &[f32], plans: &[f32]) -> Result<Vec<f32>> {
        let (rows, action_dim) = (observations.len() / self.observation_dim, self.action_bias.len());
        let size = self.args.horizon * action_dim;
        let mut current = observations.to_vec(); // ŝ_k, [rows, observation_dim]
        let (mut returns, mut ended) = (vec![0.0; rows], vec![false; rows]);
        for k in 0..self.args.horizon {
            let of_step = |plan: &[f32]| plan[k * action_dim..(k + 1) * action_dim].to_vec();
            let actions: Vec<f32> = plans.chunks_exact(size).flat_map(of_step).collect(); // a_k
            let s = Tensor::from_slice(&current, (rows, self.observation_dim), &self.device)?;
            let a = Tensor::from_slice(&actions, (rows, action_dim), &self.device)?;
            let next: Vec<f32> = self.predict(&s, &a)?.flatten_all()?.to_vec1()?; // ŝ_{k+1}
            for row in 0..rows {
                let of_row = row * self.observation_dim..(row + 1) * self.observation_dim;
                let action = &actions[row * action_dim..(row + 1) * action_dim];
                if !ended[row] {
                    // Σ_k r(ŝ_k, a_k, ŝ_{k+1}), until the task's own function says that the episode ends
                    returns[row] +=
                        (self.task.reward)(&current[of_row.clone()], action, &next[of_row.clone()]);
                    ended[row] = (self.task.terminated)(&next[of_row]);
                }
            }
            current = next;
        }
        Ok(returns)
    }

    /// The best of `plans`, `[n, candidates, horizon, action_dim]`, for each of `[n, observation_dim]`.
    fn best_plans(&self, observations: &[f32], plans: &[f32]) -> Result<Vec<Vec<f32>>> {
        let (candidates, size) = (self.args.candidates, self.args.horizon * self.action_bias.len());
        let each = observations.chunks_exact(self.observation_dim);
        let starts: Vec<f32> = each.flat_map(|s| s.repeat(candidates)).collect();
        let parts = starts.chunks(PART * self.observation_dim).zip(plans.chunks(PART * size)).collect();
        let returns = side_by_side(parts, |(starts, plans)| self.plan_returns(starts, plans))?.concat();
        let of_each = returns.chunks_exact(candidates).zip(plans.chunks_exact(candidates * size));
        let best = |(returns, plans): (&[f32], &[f32])| {
            // Of equal plans the first.
            let best = (0..candidates).fold(0, |best, i| if returns[i] > returns[best] { i } else { best });
            plans[best * size..(best + 1) * size].to_vec()
        };
        Ok(of_each.map(best).collect())
    }

    /// What to do for each of observations `[n, observation_dim]`: `[n, action_dim]`. `plans` is what is
    /// left of each one's plan.
    fn act(&self, observations: &[f32], plans: &mut [Vec<f32>], rng: &mut Rng) -> Result<Vec<f32>> {
        let mut wanting = Vec::new(); // who makes a plan
        for (i, plan) in plans.iter().enumerate() {
            // Version 1.5 replans at every step, the others when they have carried out a whole plan.
            if self.args.mbrl_version == Version::V1_5 || plan.is_empty() {
                wanting.push(i);
            }
        }
        let of = |i: &usize| &observations[i * self.observation_dim..(i + 1) * self.observation_dim];
        let starts: Vec<f32> = wanting.iter().flat_map(of).copied().collect();
        let guesses = self.random_actions(wanting.len() * self.args.candidates * self.args.horizon, rng);
        for (i, best) in wanting.into_iter().zip(self.best_plans(&starts, &guesses)?) {
            plans[i] = best;
        }
        Ok(plans.iter_mut().flat_map(|plan| plan.drain(..self.action_bias.len())).collect())
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let mut rng = learner_rng(args.run.seed);
    let mut mpc = Mpc::new(envs.spec(), Task::of(envs.spec())?, &args, &mut rng)?;
    let mut data = Dataset::default();
    let mut plans = vec![Vec::new()]; // what is left of the plan
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("model", &mut mpc.parameters),
                ("optimizer", &mut mpc.optimizer),
                ("inputs", &mut mpc.inputs.values),
                ("differences", &mut mpc.differences.values),
                ("data", &mut data),
                ("plans", &mut plans),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        // Fit the model to D.
        let planned_steps = global_step.checked_sub(args.learning_starts);
        if planned_steps.is_some_and(|steps| steps.is_multiple_of(args.train_frequency)) {
            if planned_steps > Some(0) {
                let recent = data.rows(global_step - args.train_frequency..global_step, &mpc.device)?;
                run.log(global_step, "losses/model_error", mpc.model_loss(&recent)?.to_scalar::<f32>()?)?;
            }
            // Version 0.5 keeps to what the base policy met: this is all that sets it apart from 1.0.
            let known = if args.mbrl_version == Version::V0_5 { args.learning_starts } else { data.len };
            mpc.update_normalisers(&data.rows(0..known, &mpc.device)?)?;
            let mut sum = 0.0;
            for _ in 0..args.model_updates {
                let drawn = (0..args.batch_size).map(|_| rng.random_range(0..known));
                sum += mpc.update_model(&data.rows(drawn, &mpc.device)?)?;
            }
            run.log(global_step, "losses/model_loss", sum / args.model_updates as f32)?;
        }

        // Act: at random before there is a model.
        let observation = envs.observations().to_vec(); // [observation_dim]
        let action = match planned_steps {
            None => mpc.random_actions(1, &mut rng),
            Some(_) => mpc.act(&observation, &mut plans, &mut rng)?,
        };
        envs.step(&action)?;
        data.store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if !envs.episodes().is_empty() {
            plans[0].clear(); // it was for the episode that has ended
        }
    }

    let mut model: [(&str, &mut dyn Model); 3] = [
        ("model", &mut mpc.parameters),
        ("inputs", &mut mpc.inputs.values),
        ("differences", &mut mpc.differences.values),
    ];
    run.save_or_load_model(&mut model)?;
    // Plans begin anew with the episodes, and random numbers too, so that `--eval-only` draws the same.
    let (plans, mut rng) = (RefCell::new(Vec::new()), learner_rng(args.run.seed));
    let make = |num_envs, seed| {
        plans.replace(vec![Vec::new(); num_envs]);
        VecEnv::make_for_evaluation(&args.run.env_id, num_envs, seed)
    };
    run.evaluate_on(make, |observations| mpc.act(observations, &mut plans.borrow_mut(), &mut rng))?;
    Ok(())
}

#[cfg(test)]
mod tests;
