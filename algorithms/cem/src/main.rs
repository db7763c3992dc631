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
//! Sparse rewards defeat all of it, for plans that end before any reward are alike.
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
//! Aⁱ ~ N(μ, σ²), clamped to the action space       i = 1 … N; Aⁱ, μ and σ are [H, action_dim]
//! E  = the M plans with the greatest J(Aⁱ)
//! μ  ← β μ + (1 − β) mean(E)
//! σ² ← β σ² + (1 − β) variance(E)
//! ```
//!
//! where μ begins as the last plan moved up by a step and σ as a quarter of the action space.
//!
//! Deviations from PETS. Its model is learned, ours is the environment's own: with none to learn there
//! is none to save, training steps are steps of planned episodes, and `--eval-only` plans others with a
//! run's configuration. It draws from a normal distribution that is truncated at 2 σ, and narrows σ
//! where μ is near a bound; here samples are clamped, which draws the bounds themselves often, and the
//! best plans are often there. Its shifted plan ends with zeros, ours with the last action again; its
//! rounds end early once every σ² is at most 0.001; and it tries more (400 plans in each of 5 rounds on
//! its cart-pole). Where the environment is random, a plan is tried once instead of with several
//! particles. With `--threads` the plans of a round are divided over as many threads; each plan has its
//! own random stream, so that the run is the same.
//!
//! Run `cargo run -p cem`: about −153 on Pendulum-v1 in about five seconds, mostly evaluation
//! (−137 is the best possible, by dynamic programming on a grid; random actions reach −1236).

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{self, Action, Canvas, Env, Rng, Space, State, VecEnv, invalid, learner_rng};
use common::gif::GifWriter;
use common::nn::side_by_side;
use common::run::Run;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;
use std::process::ExitCode;

/// The evaluation's environments draw from this seed's streams, apart from the training ones.
const EVALUATION_SEED: u64 = 0x5EED_0E7A;

/// Cross-entropy method: plans continuous actions with the environment's own dynamics
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("2000")))]
#[command(mut_arg("threads", |arg| arg.help("Threads that try out plans, at most 256")))]
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

/// Searches for plans in copies of the environment.
struct Cem {
    models: Vec<Box<dyn Env>>, // one for each thread
    low: Vec<f32>,             // the least actions, [action_dim]
    high: Vec<f32>,            // the greatest, [action_dim]
    mean: Vec<f32>,            // μ, [horizon, action_dim]
    std: Vec<f32>,             // σ, [horizon, action_dim]
    args: Args,
}

impl Cem {
    fn new(models: Vec<Box<dyn Env>>, args: &Args) -> Result<Self> {
        let spec = models[0].spec();
        spec.box_to_box("cem")?;
        let (low, high) = match &spec.action_space {
            Space::Box { low, high, .. } if low.iter().chain(high).all(|bound| bound.is_finite()) => {
                (low.clone(), high.clone())
            }
            space => return invalid(format!("--env-id {}: cem needs bounded actions, not {space}", spec.id)),
        };
        let size = args.horizon * low.len();
        let (mean, std) = (vec![0.0; size], vec![0.0; size]);
        let mut cem = Self { models, low, high, mean, std, args: args.clone() };
        cem.forget();
        Ok(cem)
    }

    /// Without a plan, μ is the middle of the action space.
    fn forget(&mut self) {
        for (i, mean) in self.mean.iter_mut().enumerate() {
            let k = i % self.low.len();
            *mean = 0.5 * (self.low[k] + self.high[k]);
        }
    }

    /// The distribution before the first round: μ moved up by a step, σ a quarter of the action space.
    fn begin(&mut self) {
        let action_dim = self.low.len();
        if self.args.warm_start {
            // The new last step, not planned yet, begins with the action of the step before it.
            self.mean.copy_within(action_dim.., 0);
        } else {
            self.forget();
        }
        for (i, std) in self.std.iter_mut().enumerate() {
            let k = i % action_dim;
            *std = 0.25 * (self.high[k] - self.low[k]);
        }
    }

    /// Plans Aⁱ, `[population, horizon, action_dim]`, from standard normal `noise` of that shape.
    fn sample(&self, noise: &[f32]) -> Vec<f32> {
        let size = self.mean.len();
        let mut plans = Vec::with_capacity(noise.len());
        for (i, epsilon) in noise.iter().enumerate() {
            // Aⁱ ~ N(μ, σ²), clamped to the action space
            let action = self.mean[i % size] + self.std[i % size] * epsilon;
            let k = i % self.low.len();
            plans.push(action.clamp(self.low[k], self.high[k]));
        }
        plans
    }

    /// J(Aⁱ) of every plan `[population, horizon, action_dim]` from `state` on. Each model tries an equal
    /// part of them, side by side with --threads; plan i draws from stream i of `seed`, whoever tries it.
    fn plan_returns(&mut self, state: &State, plans: &[f32], seed: u64) -> Result<Vec<f64>> {
        let (size, action_dim, gamma) = (self.mean.len(), self.low.len(), self.args.gamma);
        let share = (plans.len() / size).div_ceil(self.models.len()); // plans of one model
        let parts = self.models.iter_mut().zip(plans.chunks(share * size)).enumerate().collect();
        let returns = side_by_side(parts, |(part, (model, plans))| {
            let mut returns = Vec::with_capacity(share);
            for (i, plan) in plans.chunks_exact(size).enumerate() {
                let mut rng = envs::rng(seed, (part * share + i) as u64);
                let actions = plan.chunks_exact(action_dim);
                returns.push(plan_return(model.as_mut(), state, actions, gamma, &mut rng)?);
            }
            Ok(returns)
        })?;
        Ok(returns.concat())
    }

    /// Which are the M plans with the greatest J(Aⁱ), the best first; of equal ones the earlier.
    fn elites(&self, returns: &[f64]) -> Vec<usize> {
        let mut ranking: Vec<usize> = (0..returns.len()).collect();
        ranking.sort_by(|&i, &j| returns[j].total_cmp(&returns[i]));
        ranking.truncate(self.args.elites);
        ranking
    }

    /// Moves μ and σ to the elites E among the plans.
    fn update(&mut self, plans: &[f32], elites: &[usize]) {
        let (beta, n, size) = (self.args.smoothing as f32, elites.len() as f32, self.mean.len());
        for i in 0..size {
            let actions = elites.iter().map(|elite| plans[elite * size + i]);
            let mean = actions.clone().sum::<f32>() / n;
            let variance = actions.map(|action| (action - mean).powi(2)).sum::<f32>() / n;
            // μ ← β μ + (1 − β) mean(E)
            self.mean[i] = beta * self.mean[i] + (1.0 - beta) * mean;
            // σ² ← β σ² + (1 − β) variance(E)
            self.std[i] = (beta * self.std[i].powi(2) + (1.0 - beta) * variance).sqrt();
        }
    }

    /// What to do in `state`: the first action of the plan μ, `[action_dim]`. And what the elites of the
    /// last round are worth on average.
    fn act(&mut self, state: &State, rng: &mut Rng) -> Result<(Vec<f32>, f64)> {
        let (population, size) = (self.args.population, self.mean.len());
        let mut planned_return = 0.0;
        self.begin();
        for _ in 0..self.args.iterations {
            let noise: Vec<f32> = StandardNormal.sample_iter(&mut *rng).take(population * size).collect();
            let plans = self.sample(&noise); // [population, horizon, action_dim]
            let returns = self.plan_returns(state, &plans, rng.random())?; // J(Aⁱ), [population]
            let elites = self.elites(&returns);
            self.update(&plans, &elites);
            planned_return = elites.iter().map(|&elite| returns[elite]).sum::<f64>() / elites.len() as f64;
        }
        Ok((self.mean[..self.low.len()].to_vec(), planned_return))
    }
}

/// J of one plan from `state` on.
fn plan_return<'a>(
    model: &mut dyn Env,
    state: &State,
    plan: impl Iterator<Item = &'a [f32]>,
    gamma: f64,
    rng: &mut Rng,
) -> Result<f64> {
    model.set_state(state)?;
    let (mut total, mut discount) = (0.0, 1.0); // discount: γᵏ
    for action in plan {
        // J = Σ_k γᵏ r(s_k, a_k)
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

fn train(args: Args) -> Result<()> {
    let Args { elites, population, .. } = args;
    if elites > population {
        return invalid(format!("--elites {elites}: at most --population = {population}"));
    }
    let (mut envs, mut cem, mut rng) = set_up(&args, args.run.seed)?;
    cem.models[0].set_state(&envs.state(0)?)?; // refuses an environment that no one can plan in
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [("envs", &mut envs), ("mean", &mut cem.mean), ("rng", &mut rng)],
        )?;
        let (action, planned_return) = cem.act(&envs.state(0)?, &mut rng)?;
        envs.step(&action)?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if !envs.episodes().is_empty() {
            cem.forget();
        }
        run.log(global_step, "charts/planned_return", planned_return)?;
    }

    let training_seconds = run.wall_seconds();
    let mut returns = Vec::new();
    for episode in 0..args.run.eval_episodes {
        let (mut envs, mut cem, mut rng) = set_up(&args, evaluation_seed(&args, episode))?;
        returns.push(play(&mut cem, &mut envs, &mut rng, |_| run.refuse_interrupted())?);
    }
    if args.run.capture_video {
        film(&args, &run)?;
    }
    run.finish(&returns, training_seconds)?;
    Ok(())
}

/// One environment to act in, whose state can be read, and a planner with copies of its own.
fn set_up(args: &Args, seed: u64) -> Result<(VecEnv, Cem, Rng)> {
    let envs = VecEnv::new(vec![envs::make(&args.run.env_id)?], seed)?;
    let models = (0..args.run.threads).map(|_| envs::make(&args.run.env_id)).collect::<Result<_>>()?;
    Ok((envs, Cem::new(models, args)?, learner_rng(seed)))
}

/// Of evaluation episode number `episode`: drawn, for sums of seeds and numbers would meet again in
/// the runs of neighbouring seeds.
fn evaluation_seed(args: &Args, episode: usize) -> u64 {
    envs::rng(args.run.seed ^ EVALUATION_SEED, episode as u64).random()
}

/// The return of one planned episode, of which `watch` is shown every state before the action.
fn play(
    cem: &mut Cem,
    envs: &mut VecEnv,
    rng: &mut Rng,
    mut watch: impl FnMut(&VecEnv) -> Result<()>,
) -> Result<f64> {
    for _ in 0..envs.spec().episode_limit() {
        watch(envs)?;
        let (action, _) = cem.act(&envs.state(0)?, rng)?;
        envs.step(&action)?;
        if let [episode] = envs.episodes() {
            return Ok(episode.episodic_return);
        }
    }
    Ok(envs.running_returns()[0]) // of an environment without a time limit
}

/// The first evaluation episode, as `agent.gif`.
fn film(args: &Args, run: &Run) -> Result<()> {
    let mut gif = GifWriter::new(&run.dir().join("agent.gif"), 480, 320, 33)?;
    let (mut envs, mut cem, mut rng) = set_up(args, evaluation_seed(args, 0))?;
    play(&mut cem, &mut envs, &mut rng, |envs| {
        let mut canvas = Canvas::new(480, 320);
        envs.draw(0, &mut canvas)?;
        gif.push(&canvas.rgb())
    })?;
    gif.finish()
}

#[cfg(test)]
mod tests;
