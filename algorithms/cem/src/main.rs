//! # Cross-entropy method (CEM) planning
//!
//! Rubinstein (1999), "The cross-entropy method for combinatorial and continuous optimization";
//! de Boer, Kroese, Mannor & Rubinstein (2005), "A tutorial on the cross-entropy method". As a
//! planner: Chua, Calandra, McAllister & Levine (2018), arXiv:1805.12114 (PETS).
//!
//! Whoever can try out actions in a model need not learn a policy. CEM draws plans from a normal
//! distribution, tries each in the model, refits the distribution to the best of them, and so
//! closes in on a good plan within a few rounds. Only the first action of the plan is taken, and
//! the next plan is made from where it led (model-predictive control), with what is left of this
//! one as a first guess. Here the model is the environment's own dynamics, and nothing is learned.
//!
//! A plan for a horizon of H steps is to maximise
//!
//! ```text
//! J(a_0, …, a_{H−1}) = Σ_{k < H} γᵏ r(s_k, a_k)        s_{k+1} = f(s_k, a_k), until the episode ends
//! ```
//!
//! and one of the rounds that search for it is
//!
//! ```text
//! Aⁱ ~ N(μ, σ²), held to the action space          i = 1 … N; Aⁱ, μ and σ are [H, action_dim]
//! E  = the M plans with the greatest J(Aⁱ)
//! μ  ← β μ + (1 − β) mean(E)
//! σ² ← β σ² + (1 − β) variance(E)
//! ```
//!
//! where μ begins as the last plan moved up by a step and σ as a quarter of the action space.
//!
//! With no model to learn there is none to save: training steps are steps of planned episodes, and
//! `--eval-only` plans others with a run's configuration. Sparse rewards defeat it, for plans that
//! end before any reward are all alike. `--threads` evaluates several episodes side by side.
//!
//! Run `cargo run -p cem`: −200 or more on Pendulum-v1 in about three seconds, mostly evaluation
//! (−137 is the best possible, by dynamic programming on a grid; random actions reach −1236).

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{self, Action, Canvas, Env, Rng, Space, State, VecEnv, invalid, rng};
use common::gif::GifWriter;
use common::run::Run;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;
use std::process::ExitCode;

/// The evaluation's environments draw from this seed's streams, apart from the training ones.
const EVALUATION_SEED: u64 = 0x5EED_0E7A;

/// Cross-entropy method: plans continuous actions with the environment's own dynamics
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("2000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Steps that a plan looks ahead, H
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    horizon: usize,
    /// Plans tried in each round, N
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    population: usize,
    /// The best of them, to which the distribution is refitted, M
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    elites: usize,
    /// Rounds for each action
    #[arg(long, default_value_t = 3, value_parser = cli::positive)]
    iterations: usize,
    /// Share of the old distribution in the refitted one, β
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    smoothing: f64,
    /// Discount within a plan, γ
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Begin with what is left of the plan before, instead of with nothing
    #[arg(long, default_value_t = true)]
    warm_start: bool,
}

/// Searches for plans in a copy of the environment. Matrices are row-major; once built, planning
/// allocates nothing.
struct Planner<'a> {
    args: &'a Args,
    model: Box<dyn Env>,
    low: Vec<f32>,       // [action_dim]
    high: Vec<f32>,      // [action_dim]
    mean: Vec<f32>,      // [horizon, action_dim], μ
    std: Vec<f32>,       // [horizon, action_dim], σ
    plans: Vec<f32>,     // [population, horizon, action_dim], Aⁱ
    returns: Vec<f64>,   // [population], J(Aⁱ)
    ranking: Vec<usize>, // [population], indices of plans, the elites first
}

impl<'a> Planner<'a> {
    fn new(model: Box<dyn Env>, args: &'a Args) -> Result<Self> {
        let spec = model.spec();
        spec.box_to_box("cem")?;
        let (low, high) = match &spec.action_space {
            Space::Box { low, high, .. } if low.iter().chain(high).all(|bound| bound.is_finite()) => {
                (low.clone(), high.clone())
            }
            space => return invalid(format!("--env-id {}: cem needs bounded actions, not {space}", spec.id)),
        };
        let size = args.horizon * low.len();
        let mut planner = Self {
            args,
            model,
            low,
            high,
            mean: vec![0.0; size],
            std: vec![0.0; size],
            plans: vec![0.0; args.population * size],
            returns: vec![0.0; args.population],
            ranking: (0..args.population).collect(),
        };
        planner.forget();
        Ok(planner)
    }

    fn action_dim(&self) -> usize {
        self.low.len()
    }

    /// Without a plan, μ is the middle of the action space.
    fn forget(&mut self) {
        for action in self.mean.chunks_exact_mut(self.low.len()) {
            for ((mean, low), high) in action.iter_mut().zip(&self.low).zip(&self.high) {
                *mean = 0.5 * (low + high);
            }
        }
    }

    /// The distribution before the first round: μ moved up by a step, σ a quarter of the actions.
    fn begin(&mut self) {
        let action_dim = self.action_dim();
        if self.args.warm_start {
            // The last action, which nothing was planned for, is planned for twice.
            self.mean.copy_within(action_dim.., 0);
        } else {
            self.forget();
        }
        for action in self.std.chunks_exact_mut(action_dim) {
            for ((std, low), high) in action.iter_mut().zip(&self.low).zip(&self.high) {
                *std = 0.25 * (high - low);
            }
        }
    }

    /// Aⁱ ~ N(μ, σ²), held to the action space.
    fn sample(&mut self, rng: &mut Rng) {
        let (size, action_dim) = (self.mean.len(), self.action_dim());
        for plan in self.plans.chunks_exact_mut(size) {
            for (k, action) in plan.iter_mut().enumerate() {
                let noise: f32 = StandardNormal.sample(rng);
                let (low, high) = (self.low[k % action_dim], self.high[k % action_dim]);
                *action = (self.mean[k] + self.std[k] * noise).clamp(low, high);
            }
        }
    }

    /// J(Aⁱ) of every plan, from `state` on.
    fn evaluate(&mut self, state: &State, rng: &mut Rng) -> Result<()> {
        let (size, action_dim) = (self.mean.len(), self.action_dim());
        for (plan, total) in self.plans.chunks_exact(size).zip(&mut self.returns) {
            *total =
                plan_return(&mut *self.model, state, plan.chunks_exact(action_dim), self.args.gamma, rng)?;
        }
        Ok(())
    }

    /// Moves μ and σ to the elites.
    fn refit(&mut self) {
        let (size, elites) = (self.mean.len(), self.args.elites);
        let returns = &self.returns;
        // From one order on, so that equal returns are ranked alike in a resumed run.
        self.ranking.iter_mut().enumerate().for_each(|(i, plan)| *plan = i);
        self.ranking.select_nth_unstable_by(elites - 1, |&i, &j| returns[j].total_cmp(&returns[i]));
        let (beta, n) = (self.args.smoothing as f32, elites as f32);
        for k in 0..size {
            let elite = |i: &usize| self.plans[i * size + k];
            let elites = &self.ranking[..elites];
            let mean = elites.iter().map(elite).sum::<f32>() / n;
            let variance = elites.iter().map(|i| (elite(i) - mean).powi(2)).sum::<f32>() / n;
            // μ ← β μ + (1 − β) mean(E),  σ² ← β σ² + (1 − β) variance(E)
            self.mean[k] = beta * self.mean[k] + (1.0 - beta) * mean;
            self.std[k] = (beta * self.std[k].powi(2) + (1.0 - beta) * variance).sqrt();
        }
    }

    /// What to do in `state`: the first action of the plan, `[action_dim]`.
    fn act(&mut self, state: &State, rng: &mut Rng) -> Result<&[f32]> {
        self.begin();
        for _ in 0..self.args.iterations {
            self.sample(rng);
            self.evaluate(state, rng)?;
            self.refit();
        }
        Ok(&self.mean[..self.low.len()])
    }
}

/// J = Σ_k γᵏ r(s_k, a_k), of the actions of a plan from `state` until the episode ends.
fn plan_return<'a>(
    model: &mut dyn Env,
    state: &State,
    plan: impl Iterator<Item = &'a [f32]>,
    gamma: f64,
    rng: &mut Rng,
) -> Result<f64> {
    model.set_state(state)?;
    let (mut total, mut discount) = (0.0, 1.0);
    for action in plan {
        let step = model.step(Action::Continuous(action), rng)?;
        total += discount * step.reward;
        discount *= gamma;
        // Nothing follows a time limit either: what the plan is worth is what the episode will pay.
        if step.terminated || step.truncated {
            break;
        }
    }
    Ok(total)
}

fn main() -> ExitCode {
    cli::main(train)
}

/// One environment to act in, whose state can be read, and a planner with a copy of its own.
fn set_up(args: &Args, seed: u64) -> Result<(VecEnv, Planner<'_>, Rng)> {
    let envs = VecEnv::new(vec![envs::make(&args.run.env_id)?], seed)?;
    let planner = Planner::new(envs::make(&args.run.env_id)?, args)?;
    Ok((envs, planner, rng(seed, u64::MAX)))
}

fn train(args: Args) -> Result<()> {
    let (elites, population) = (args.elites, args.population);
    if elites > population {
        return invalid(format!("--elites {elites}: at most --population = {population}"));
    }
    let (mut envs, mut planner, mut rng) = set_up(&args, args.run.seed)?;
    planner.model.set_state(&envs.state(0)?)?; // refuses an environment that no one can plan in
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [("envs", &mut envs), ("plan", &mut planner.mean), ("rng", &mut rng)],
        )?;
        let action = planner.act(&envs.state(0)?, &mut rng)?;
        envs.step(action)?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if !envs.episodes().is_empty() {
            planner.forget();
        }
        let elites = planner.ranking[..elites].iter().map(|&i| planner.returns[i]);
        run.log(global_step, "charts/planned_return", elites.sum::<f64>() / args.elites as f64)?;
    }

    let seconds = run.wall_seconds();
    let returns = evaluate(&args)?;
    if args.run.capture_video {
        film(&args, &run)?;
    }
    run.finish(&returns, seconds)?;
    Ok(())
}

/// Returns of `--eval-episodes` episodes, on `--threads` threads. Each episode has a seed of its
/// own, so that the number of threads changes nothing but the time.
fn evaluate(args: &Args) -> Result<Vec<f64>> {
    let mut returns = vec![0.0; args.run.eval_episodes];
    let share = args.run.eval_episodes.div_ceil(args.run.threads);
    std::thread::scope(|scope| {
        let threads: Vec<_> = returns
            .chunks_mut(share)
            .enumerate()
            .map(|(thread, returns)| {
                scope.spawn(move || -> Result<()> {
                    for (i, total) in returns.iter_mut().enumerate() {
                        *total = episode_return(args, thread * share + i, |_| Ok(()))?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    Ok(returns)
}

/// Plays evaluation episode `index`, showing `watch` every state before it acts.
fn episode_return(args: &Args, index: usize, mut watch: impl FnMut(&VecEnv) -> Result<()>) -> Result<f64> {
    let seed = (args.run.seed ^ EVALUATION_SEED).wrapping_add(index as u64);
    let (mut envs, mut planner, mut rng) = set_up(args, seed)?;
    for _ in 0..envs.spec().episode_limit() {
        watch(&envs)?;
        envs.step(planner.act(&envs.state(0)?, &mut rng)?)?;
        if let Some(episode) = envs.episodes().first() {
            return Ok(episode.episodic_return);
        }
    }
    Ok(envs.running_returns()[0]) // of an environment without a time limit
}

/// The first evaluation episode, as `agent.gif`.
fn film(args: &Args, run: &Run) -> Result<()> {
    let mut gif = GifWriter::new(&run.dir().join("agent.gif"), 480, 320, 33)?;
    episode_return(args, 0, |envs| {
        let mut canvas = Canvas::new(480, 320);
        envs.draw(0, &mut canvas)?;
        gif.push(&canvas.rgb())
    })?;
    gif.finish()
}

#[cfg(test)]
mod tests;
