//! # Random shooting: planning by guess and check
//!
//! As old as random search (Brooks 1958, "A discussion of random methods for seeking maxima"); Rao
//! (2009), "A survey of numerical methods for optimal control", for shooting; as model-predictive
//! control with a model: Nagabandi, Kahn, Fearing & Levine (2018), arXiv:1708.02596; in the benchmark of
//! Wang et al. (2019), arXiv:1907.02057, "RS".
//!
//! Whoever can try out actions in a model need not learn a policy. Random shooting draws plans without
//! any idea which are good, tries each in the model and keeps the best. Only its first action is taken,
//! and the next plan is made from where that led, so that no mistake lasts longer than a step. Here the
//! model is the environment's own dynamics, and nothing is learned.
//!
//! A plan for a horizon of H steps is to maximise
//!
//! ```text
//! J(a_0, …, a_{H−1}) = Σ_{k < H} γᵏ r(s_k, a_k)        s_{k+1} = f(s_k, a_k), until the episode ends
//! ```
//!
//! and it is found by guess and check:
//!
//! ```text
//! Aⁱ ~ uniform over the action space       i = 1 … N, each step's action independently
//! A  = Aⁱ with the greatest J(Aⁱ)          take its a_0, forget the rest, and plan again
//! ```
//!
//! It is simple and as good as its luck: where a share p of single actions is near the best one, the share
//! of plans whose H actions all are is pᴴ, which is why longer horizons do not help for ever. `cem` spends
//! a fifth of the trials on better and better guesses, and reaches −153.
//!
//! Deviations. The literature's model is learned, ours is the environment's own: with none to learn
//! there is none to save, training steps are steps of planned episodes, and `--eval-only` plans others
//! with a run's configuration. Where the environment is random, a plan is tried once, with draws of its
//! own instead of those to come. Discrete actions are drawn uniformly as well. With `--threads` the plans
//! are divided over as many threads; each plan has its own random stream, so that the run is the same.
//!
//! Run `cargo run -p random_shooting`: about −220 on Pendulum-v1 with 1000 plans of 20 steps, in 25 seconds,
//! most of which is evaluation (computed independently: −220.7 with a standard error of 20.6 over 60
//! episodes; −137 is the best possible, random actions reach −1236).

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{self, Action, Actions, Canvas, Env, Rng, Space, State, VecEnv, invalid, learner_rng};
use common::gif::GifWriter;
use common::nn::side_by_side;
use common::run::Run;
use rand::RngExt;
use serde::Serialize;
use std::{process::ExitCode, time::Instant};

/// The evaluation's environments draw from this seed's streams, apart from the training ones.
const EVALUATION_SEED: u64 = 0x5EED_0E7A;

/// Random shooting: plans with the environment's own dynamics by guess and check
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
    /// Plans tried for each action, N
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    candidates: usize,
    /// Discount within a plan, γ
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    gamma: f64,
}

/// Guesses plans and checks them in copies of the environment.
struct RandomShooting {
    models: Vec<Box<dyn Env>>, // one for each thread
    action_space: Space,
    action_dim: usize, // numbers in an action; one that is an index counts as one
    args: Args,
}

impl RandomShooting {
    fn new(models: Vec<Box<dyn Env>>, args: &Args) -> Result<Self> {
        let spec = models[0].spec();
        let action_space = spec.action_space.clone();
        match &action_space {
            Space::Discrete { .. } => {}
            Space::Box { low, high, .. } if low.iter().chain(high).all(|bound| bound.is_finite()) => {}
            space => {
                let id = &spec.id;
                return invalid(format!("--env-id {id}: random_shooting needs bounded actions, not {space}"));
            }
        }
        Ok(Self { models, action_dim: action_space.size(), action_space, args: args.clone() })
    }

    /// Numbers in a plan.
    fn size(&self) -> usize {
        self.args.horizon * self.action_dim
    }

    /// Plans Aⁱ, `[candidates, horizon, action_dim]`, from `noise` of that shape, uniform in [0, 1).
    fn guess(&self, noise: &[f32]) -> Vec<f32> {
        // Aⁱ ~ uniform over the action space
        let action = |(i, u): (usize, &f32)| match &self.action_space {
            Space::Box { low, high, .. } => {
                let k = i % self.action_dim;
                low[k] + u * (high[k] - low[k])
            }
            Space::Discrete { n } => (u * *n as f32).floor().min((n - 1) as f32),
            Space::Tuple(_) => 0.0, // refused above
        };
        noise.iter().enumerate().map(action).collect()
    }

    /// J(Aⁱ) of every plan `[candidates, horizon, action_dim]` from `state` on. Each model tries an equal
    /// part of them, side by side with --threads; plan i draws from stream i of `seed`, whoever tries it.
    fn check(&mut self, state: &State, plans: &[f32], seed: u64) -> Result<Vec<f64>> {
        let (size, action_dim, gamma) = (self.size(), self.action_dim, self.args.gamma);
        let discrete = matches!(self.action_space, Space::Discrete { .. });
        let share = (plans.len() / size).div_ceil(self.models.len()); // plans of one model
        let parts = self.models.iter_mut().zip(plans.chunks(share * size)).enumerate().collect();
        let returns = side_by_side(parts, |(part, (model, plans))| {
            let mut returns = Vec::with_capacity(share);
            for (i, plan) in plans.chunks_exact(size).enumerate() {
                let mut rng = envs::rng(seed, (part * share + i) as u64);
                let actions = plan.chunks_exact(action_dim).map(|action| match discrete {
                    true => Action::Discrete(action[0] as usize),
                    false => Action::Continuous(action),
                });
                returns.push(plan_return(model.as_mut(), state, actions, gamma, &mut rng)?);
            }
            Ok(returns)
        })?;
        Ok(returns.concat())
    }

    /// What to do in `state`: the first action of the best plan, `[action_dim]`. And what that plan is
    /// worth.
    fn act(&mut self, state: &State, rng: &mut Rng) -> Result<(Vec<f32>, f64)> {
        let noise: Vec<f32> = (&mut *rng).random_iter().take(self.args.candidates * self.size()).collect();
        let plans = self.guess(&noise); // [candidates, horizon, action_dim]
        let returns = self.check(state, &plans, rng.random())?; // J(Aⁱ), [candidates]
        let i = best(&returns);
        Ok((plans[i * self.size()..][..self.action_dim].to_vec(), returns[i]))
    }
}

/// J of one plan from `state` on.
fn plan_return<'a>(
    model: &mut dyn Env,
    state: &State,
    plan: impl Iterator<Item = Action<'a>>,
    gamma: f64,
    rng: &mut Rng,
) -> Result<f64> {
    model.set_state(state)?;
    let (mut total, mut discount) = (0.0, 1.0); // discount: γᵏ
    for action in plan {
        // J = Σ_k γᵏ r(s_k, a_k)
        let step = model.step(action, rng)?;
        total += discount * step.reward;
        discount *= gamma;
        // Nothing follows a time limit either: what the plan is worth is what the episode will pay.
        if step.terminated || step.truncated {
            break;
        }
    }
    Ok(total)
}

/// argmax_i J(Aⁱ); of equal ones the first.
fn best(returns: &[f64]) -> usize {
    (1..returns.len()).fold(0, |best, i| if returns[i] > returns[best] { i } else { best })
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let (mut envs, mut planner, mut rng) = set_up(&args, args.run.seed)?;
    planner.models[0].set_state(&envs.state(0)?)?; // refuses an environment that no one can plan in
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(&mut global_step, &mut [("envs", &mut envs), ("rng", &mut rng)])?;
        let start = Instant::now();
        let (action, planned_return) = planner.act(&envs.state(0)?, &mut rng)?;
        let planning_seconds = start.elapsed().as_secs_f64();
        step(&mut envs, &action)?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        run.log(global_step, "charts/planned_return", planned_return)?;
        // How often a machine could be told what to do: the reciprocal of the planning time of a step.
        run.log(global_step, "charts/SPS_planning", 1.0 / planning_seconds.max(1e-9))?;
    }

    let training_seconds = run.wall_seconds();
    let mut returns = Vec::new();
    for episode in 0..args.run.eval_episodes {
        let (mut envs, mut planner, mut rng) = set_up(&args, evaluation_seed(&args, episode))?;
        returns.push(play(&mut planner, &mut envs, &mut rng, |_| run.refuse_interrupted())?);
    }
    if args.run.capture_video {
        film(&args, &run)?;
    }
    run.finish(&returns, training_seconds)?;
    Ok(())
}

/// One environment to act in, whose state can be read, and a planner with copies of its own.
fn set_up(args: &Args, seed: u64) -> Result<(VecEnv, RandomShooting, Rng)> {
    let envs = VecEnv::new(vec![envs::make(&args.run.env_id)?], seed)?;
    let models = (0..args.run.threads).map(|_| envs::make(&args.run.env_id)).collect::<Result<_>>()?;
    Ok((envs, RandomShooting::new(models, args)?, learner_rng(seed)))
}

/// Takes `action`, `[action_dim]` or one index, in the environment.
fn step(envs: &mut VecEnv, action: &[f32]) -> Result<()> {
    match envs.spec().action_space {
        Space::Discrete { .. } => envs.step(&[action[0] as u32]),
        _ => envs.step(Actions::Continuous(action)),
    }
}

/// Of evaluation episode number `episode`: drawn, for sums of seeds and numbers would meet again in
/// the runs of neighbouring seeds.
fn evaluation_seed(args: &Args, episode: usize) -> u64 {
    envs::rng(args.run.seed ^ EVALUATION_SEED, episode as u64).random()
}

/// The return of one planned episode, of which `watch` is shown every state before the action.
fn play(
    planner: &mut RandomShooting,
    envs: &mut VecEnv,
    rng: &mut Rng,
    mut watch: impl FnMut(&VecEnv) -> Result<()>,
) -> Result<f64> {
    for _ in 0..envs.spec().episode_limit() {
        watch(envs)?;
        let (action, _) = planner.act(&envs.state(0)?, rng)?;
        step(envs, &action)?;
        if let [episode] = envs.episodes() {
            return Ok(episode.episodic_return);
        }
    }
    Ok(envs.running_returns()[0]) // of an environment without a time limit
}

/// The first evaluation episode, as `agent.gif`.
fn film(args: &Args, run: &Run) -> Result<()> {
    let mut gif = GifWriter::new(&run.dir().join("agent.gif"), 480, 320, 33)?;
    let (mut envs, mut planner, mut rng) = set_up(args, evaluation_seed(args, 0))?;
    play(&mut planner, &mut envs, &mut rng, |envs| {
        let mut canvas = Canvas::new(480, 320);
        envs.draw(0, &mut canvas)?;
        gif.push(&canvas.rgb())
    })?;
    gif.finish()
}

#[cfg(test)]
mod tests;
