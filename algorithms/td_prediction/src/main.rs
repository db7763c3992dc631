//! # Prediction by TD(0), n-step TD, TD(λ), true online TD(λ), λ-returns and Monte Carlo
//!
//! Sutton (1988), "Learning to predict by the methods of temporal differences", Machine Learning 3;
//! van Seijen, Mahmood, Pilarski, Machado & Sutton (2016), "True online temporal-difference learning",
//! JMLR 17, arXiv:1512.04087. Sutton & Barto (2018), *Reinforcement Learning*, chapters 6, 7, 9 and 12.
//!
//! How much reward will follow from here? One can wait and see (Monte Carlo), or ask the next state what
//! it expects and learn from the difference between two predictions at once (TD(0)); and between the two
//! lies all that waits n steps, or a mixture of all numbers of steps, weighted by powers of λ. Waiting
//! suffers from chance, asking from the other prediction's error, and something in between is best. A
//! trace, a fading memory of where one was, gives the mixture without waiting.
//!
//! Values are `v(s) = wᵀ x(s)`. The features x are 1 for the state itself and 0 for all others, a table,
//! or with `--groups` 1 for the group of neighbouring states to which it belongs. The policy draws all
//! actions alike; from state s_t with reward r_{t+1} to s_{t+1}, with T the episode's end:
//!
//! ```text
//! w ← w + α [ G_t − v(s_t) ] x(s_t)                              --method
//!     G_t = r_{t+1} + γ r_{t+2} + … + γⁿ v(s_{t+n})              td, n steps later (n = 1: TD(0))
//!     G_t = r_{t+1} + γ r_{t+2} + … + γ^{T−t−1} r_T              monte-carlo, at the episode's end
//!     G_t = r_{t+1} + γ [ (1 − λ) v(s_{t+1}) + λ G_{t+1} ]       lambda-return, at the episode's end
//! δ = r_{t+1} + γ v(s_{t+1}) − v(s_t)
//! z ← γλ z + x(s_t),   w ← w + α δ z                             td-lambda
//! z ← γλ z + (1 − αγλ zᵀx(s_t)) x(s_t)                           true-online; v_old is v(s_t) by the
//! w ← w + α (δ + v(s_t) − v_old) z − α (v(s_t) − v_old) x(s_t)   weights before the last update
//! ```
//!
//! with `v(s_{t+1}) = 0` after a termination, `G_T = v(s_T)`, and z = 0, v_old = 0 when an episode begins.
//! td-lambda's trace above is the accumulating one; `--trace replacing` sets z to x(s_t) where that is not 0,
//! and `--trace dutch` takes true online TD(λ)'s. `batch-td` and `batch-monte-carlo` present all episodes so
//! far again and again, until the sum of the updates is zero.
//!
//! Deviations: an episode that a time limit cuts off bootstraps from its true last state, and Monte
//! Carlo, for which it has no return, leaves it out. A batch update divides each weight's sum by the
//! number of its visits, in place of a small α: it ends at the same weights, much sooner.
//!
//! Run `cargo run -p td_prediction`: TD(0) predicts the random walk of five states with a root mean
//! square error of about 0.05 after 100 episodes, in less than a second (Sutton & Barto 2018, example
//! 6.2; 0.055 computed over 1000 runs). It is charts/rms_error, the distance from what the environment's
//! model says; learning itself never looks at the model.
//!
//! ```text
//! --env-id RandomWalk19-v0 --initial-value 0 --n-step 4 --learning-rate 0.4        figure 7.2
//! --env-id RandomWalk19-v0 --initial-value 0 --method true-online --lambda 0.8 --learning-rate 0.375
//! --env-id RandomWalk1000-v0 --groups 10 --learning-rate 0.01 --total-timesteps 500000   as in figure 9.2
//! ```

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{self, Rng, TransitionModel, VecEnv, invalid, learner_rng};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Prediction by TD(0), n-step TD, TD(λ), true online TD(λ), λ-returns and Monte Carlo
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("RandomWalk5-v0")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("1000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// How predictions are learned
    #[arg(long, value_enum, default_value_t = Method::Td)]
    method: Method,
    /// Steps that td waits, n
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    n_step: usize,
    /// Decay of the trace, and weight of longer returns, λ
    #[arg(long, default_value_t = 0.8, value_parser = cli::unit_interval)]
    lambda: f64,
    /// Trace of td-lambda
    #[arg(long, value_enum, default_value_t = Trace::Accumulating)]
    trace: Trace,
    /// Step size, α; the batch methods need none
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    gamma: f64,
    /// First value of all states
    #[arg(long, default_value_t = 0.5, allow_hyphen_values = true, value_parser = cli::finite)]
    initial_value: f64,
    /// Groups of neighbouring states that share a value; 0 for a table
    #[arg(long, default_value_t = 0)]
    groups: usize,
}

#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Method {
    /// n-step TD; TD(0) with --n-step 1
    Td,
    /// Constant-α Monte Carlo, every visit
    MonteCarlo,
    /// The off-line λ-return algorithm
    LambdaReturn,
    /// TD(λ)
    TdLambda,
    /// True online TD(λ)
    TrueOnline,
    /// TD(0) on all episodes so far, to its end
    BatchTd,
    /// Monte Carlo on all episodes so far, to its end
    BatchMonteCarlo,
}

#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Trace {
    Accumulating,
    Replacing,
    Dutch,
}

/// A batch has settled when a sweep has changed no weight by as much as this.
const SETTLED: f64 = 1e-4;

/// Which feature of a state is 1.
struct Features {
    feature_of: Vec<Option<usize>>, // none of a state in which nobody ever acts, [num_states]
    n: usize,                       // how many features there are
}

impl Features {
    /// A feature for each of `states`, or for each of so many groups of them.
    fn new(num_states: usize, states: &[usize], groups: usize) -> Self {
        let n = if groups == 0 { states.len() } else { groups.min(states.len()) };
        let mut feature_of = vec![None; num_states];
        for (i, &state) in states.iter().enumerate() {
            feature_of[state] = Some(i * n / states.len());
        }
        Self { feature_of, n }
    }

    /// x(s), `[n]`.
    fn of(&self, state: usize) -> Vec<f64> {
        let mut x = vec![0.0; self.n];
        if let Some(feature) = self.feature_of[state] {
            x[feature] = 1.0;
        }
        x
    }
}

/// What one step of the environment showed, in features.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
struct Step {
    x: Vec<f64>,      // x(s_t), [n]
    reward: f64,      // r_{t+1}
    next_x: Vec<f64>, // x(s_{t+1}), of an episode's true last state at its end, [n]
    terminated: bool, // nothing lies beyond s_{t+1}
    truncated: bool,  // a time limit cut the episode off at s_{t+1}
}

/// The weights, and what the methods keep beside them.
struct Predictor {
    w: Vec<f64>,           // [n]
    trace: Vec<f64>,       // z, [n]
    old_value: f64,        // v_old
    window: Vec<Step>,     // steps of the episode that wait for their return, the oldest first
    batch: Vec<Vec<Step>>, // all episodes so far
    args: Args,
}

impl Predictor {
    fn new(n: usize, args: &Args) -> Self {
        Self {
            w: vec![args.initial_value; n],
            trace: vec![0.0; n],
            old_value: 0.0,
            window: Vec::new(),
            batch: Vec::new(),
            args: args.clone(),
        }
    }

    /// v(s) = wᵀ x(s)
    fn value(&self, x: &[f64]) -> f64 {
        dot(&self.w, x)
    }

    /// v(s_{t+1}). Easy to miss and fatal: nothing lies beyond a terminal state.
    fn next_value(&self, step: &Step) -> f64 {
        if step.terminated { 0.0 } else { self.value(&step.next_x) }
    }

    /// G_t, the λ-return of the first of `steps`: for λ = 1 all their rewards and then a prediction.
    fn lambda_return(&self, steps: &[Step], lambda: f64) -> f64 {
        let mut g = 0.0;
        for (i, step) in steps.iter().enumerate().rev() {
            let lambda = if i == steps.len() - 1 { 0.0 } else { lambda }; // nothing longer is known
            // G_t = r_{t+1} + γ [ (1 − λ) v(s_{t+1}) + λ G_{t+1} ]
            g = step.reward + self.args.gamma * ((1.0 - lambda) * self.next_value(step) + lambda * g);
        }
        g
    }

    /// Moves the oldest prediction of the window towards its return G_t, and drops it. Returns the error.
    fn update(&mut self, g: f64) -> f64 {
        let oldest = self.window.remove(0);
        // w ← w + α [ G_t − v(s_t) ] x(s_t)
        let error = g - self.value(&oldest.x);
        add(&mut self.w, self.args.learning_rate * error, &oldest.x);
        error
    }

    /// Learns from one more step once n of them are there, and from all that are left at an episode's
    /// end. Returns the errors.
    fn learn_from_returns(&mut self, step: Step) -> Vec<f64> {
        let n = if self.args.method == Method::Td { self.args.n_step } else { usize::MAX };
        let (terminated, truncated) = (step.terminated, step.truncated);
        self.window.push(step);
        if self.args.method == Method::MonteCarlo && truncated && !terminated {
            self.window.clear(); // what would have followed is not known
        }
        if self.args.method == Method::LambdaReturn && (terminated || truncated) {
            // Easy to miss: every G_t is by the weights of the episode, not by those that the updates move.
            let return_of = |t: usize| self.lambda_return(&self.window[t..], self.args.lambda);
            let returns: Vec<f64> = (0..self.window.len()).map(return_of).collect();
            return returns.into_iter().map(|g| self.update(g)).collect();
        }
        let mut errors = Vec::new();
        while self.window.len() == n || ((terminated || truncated) && !self.window.is_empty()) {
            errors.push(self.update(self.lambda_return(&self.window, 1.0)));
        }
        errors
    }

    /// TD(λ) from one step. Returns δ.
    fn learn_from_trace(&mut self, step: &Step) -> f64 {
        let (alpha, decay) = (self.args.learning_rate, self.args.gamma * self.args.lambda); // γλ
        let overlap = alpha * decay * dot(&self.trace, &step.x); // αγλ zᵀx(s_t)
        for (z, &x) in self.trace.iter_mut().zip(&step.x) {
            *z = match self.args.trace {
                Trace::Accumulating => decay * *z + x,
                Trace::Replacing if x != 0.0 => x,
                Trace::Replacing => decay * *z,
                Trace::Dutch => decay * *z + (1.0 - overlap) * x,
            };
        }
        // δ = r_{t+1} + γ v(s_{t+1}) − v(s_t)
        let td_error = step.reward + self.args.gamma * self.next_value(step) - self.value(&step.x);
        // w ← w + α δ z
        add(&mut self.w, alpha * td_error, &self.trace);
        if step.terminated || step.truncated {
            self.trace.fill(0.0);
        }
        td_error
    }

    /// True online TD(λ) from one step. Returns δ.
    fn learn_true_online(&mut self, step: &Step) -> f64 {
        let (alpha, decay) = (self.args.learning_rate, self.args.gamma * self.args.lambda); // γλ
        let (value, next_value) = (self.value(&step.x), self.next_value(step));
        // δ = r_{t+1} + γ v(s_{t+1}) − v(s_t)
        let td_error = step.reward + self.args.gamma * next_value - value;
        // z ← γλ z + (1 − αγλ zᵀx(s_t)) x(s_t)
        let overlap = alpha * decay * dot(&self.trace, &step.x);
        self.trace.iter_mut().zip(&step.x).for_each(|(z, x)| *z = decay * *z + (1.0 - overlap) * x);
        // w ← w + α (δ + v(s_t) − v_old) z − α (v(s_t) − v_old) x(s_t)
        let change = value - self.old_value;
        add(&mut self.w, alpha * (td_error + change), &self.trace);
        add(&mut self.w, -alpha * change, &step.x);
        // Easy to miss: the next step's v_old is its state's value by the weights before this update.
        self.old_value = next_value;
        if step.terminated || step.truncated {
            self.trace.fill(0.0);
            self.old_value = 0.0;
        }
        td_error
    }

    /// One pass through all episodes. Returns the largest change of a weight.
    fn sweep(&mut self) -> f64 {
        let (mut sums, mut visits) = (vec![0.0; self.w.len()], vec![0.0; self.w.len()]);
        for episode in &self.batch {
            for t in 0..episode.len() {
                let steps = if self.args.method == Method::BatchTd { &episode[t..=t] } else { &episode[t..] };
                // Σ [ G_t − v(s_t) ] x(s_t), none of the weights having changed yet
                let error = self.lambda_return(steps, 1.0) - self.value(&episode[t].x);
                add(&mut sums, error, &episode[t].x);
                add(&mut visits, 1.0, &episode[t].x);
            }
        }
        let changes: Vec<f64> = sums.iter().zip(visits).map(|(sum, visits)| sum / visits.max(1.0)).collect();
        add(&mut self.w, 1.0, &changes);
        changes.iter().fold(0.0, |largest, change| largest.max(change.abs()))
    }

    /// At an episode's end learns from all episodes so far until it has settled. Returns no errors.
    fn learn_from_batch(&mut self, step: Step) -> Vec<f64> {
        let (terminated, truncated) = (step.terminated, step.truncated);
        self.window.push(step);
        if terminated || truncated {
            let episode = std::mem::take(&mut self.window);
            if terminated || self.args.method == Method::BatchTd {
                self.batch.push(episode);
            }
            // Without a discount, values of episodes that were cut off may grow for ever.
            (0..10_000).take_while(|_| self.sweep() >= SETTLED).for_each(drop);
        }
        Vec::new()
    }

    /// Learns from one more step. Returns the errors of the predictions that changed.
    fn learn(&mut self, step: Step) -> Vec<f64> {
        match self.args.method {
            Method::Td | Method::MonteCarlo | Method::LambdaReturn => self.learn_from_returns(step),
            Method::TdLambda => vec![self.learn_from_trace(&step)],
            Method::TrueOnline => vec![self.learn_true_online(&step)],
            Method::BatchTd | Method::BatchMonteCarlo => self.learn_from_batch(step),
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// a ← a + factor b
fn add(a: &mut [f64], factor: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += factor * b);
}

/// What the predictions are measured by: the states in which the policy acts, and their values.
struct Truth {
    states: Vec<usize>,
    values: Vec<f64>, // of `states`, in their order
}

impl Truth {
    /// v(s) = Σ_a Σ_{s',r} p(s',r|s,a) [ r + γ v(s') ] / |A|, repeated until it settles.
    fn new(model: &TransitionModel, num_actions: usize, gamma: f64) -> Result<Self> {
        let num_states = model.outcomes.len();
        let mut reached: Vec<bool> = model.initial.iter().map(|&probability| probability > 0.0).collect();
        let mut waiting: Vec<usize> = (0..num_states).filter(|&state| reached[state]).collect();
        while let Some(state) = waiting.pop() {
            for outcome in model.outcomes[state].iter().flatten().filter(|outcome| !outcome.terminated) {
                if !std::mem::replace(&mut reached[outcome.next_state], true) {
                    waiting.push(outcome.next_state);
                }
            }
        }
        let states: Vec<usize> = (0..num_states).filter(|&state| reached[state]).collect();
        let mut values = vec![0.0; num_states];
        // Enough for every one that settles, and a few seconds at most for one that does not.
        for _ in 0..(1_000_000_000 / model.outcomes.iter().flatten().flatten().count()).min(1_000_000) {
            let mut largest_change: f64 = 0.0;
            for &state in &states {
                let (mut value, actions) = (0.0, &model.outcomes[state]);
                // Actions beyond the last do what it does.
                for outcome in (0..num_actions).flat_map(|a| &actions[a.min(actions.len() - 1)]) {
                    let next_value = if outcome.terminated { 0.0 } else { values[outcome.next_state] };
                    value += outcome.probability * (outcome.reward + gamma * next_value);
                }
                value /= num_actions as f64;
                largest_change = largest_change.max((value - values[state]).abs() / value.abs().max(1.0));
                values[state] = value;
            }
            if largest_change < 1e-10 {
                return Ok(Self { values: states.iter().map(|&state| values[state]).collect(), states });
            }
        }
        invalid(format!("--gamma {gamma}: this environment's values do not settle; use a smaller discount"))
    }

    /// The root of the mean square error over the states.
    fn rms_error(&self, predictor: &Predictor, features: &Features) -> f64 {
        let error = |(&state, value): (&usize, &f64)| (predictor.value(&features.of(state)) - value).powi(2);
        (self.states.iter().zip(&self.values).map(error).sum::<f64>() / self.states.len() as f64).sqrt()
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let env = envs::make(&args.run.env_id)?;
    let Some(model) = env.model() else {
        return invalid(format!(
            "--env-id {}: td_prediction measures its error by a transition model, this environment has none; RandomWalk19-v0 has",
            args.run.env_id
        ));
    };
    let (_, num_actions) = env.spec().discrete_to_discrete("td_prediction")?;
    let truth = Truth::new(model, num_actions, args.gamma)?;
    let features = Features::new(model.outcomes.len(), &truth.states, args.groups);
    let mut predictor = Predictor::new(features.n, &args);
    let mut rng = learner_rng(args.run.seed);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("w", &mut predictor.w),
                ("trace", &mut predictor.trace),
                ("old_value", &mut predictor.old_value),
                ("window", &mut predictor.window),
                ("batch", &mut predictor.batch),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        let step = interact(&mut envs, num_actions, &features, &mut rng)?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        let errors = predictor.learn(step);

        if !envs.episodes().is_empty() {
            run.log(global_step, "charts/rms_error", truth.rms_error(&predictor, &features))?;
            if !errors.is_empty() {
                let squares: f64 = errors.iter().map(|error| error * error).sum();
                run.log(global_step, "losses/td_loss", squares / errors.len() as f64)?;
            }
        }
    }

    run.save_or_load_model(&mut [("w", &mut predictor.w as _)])?;
    rng = learner_rng(args.run.seed); // from its start, so that `--eval-only` draws the same actions
    run.evaluate(|observations| {
        Ok(observations.iter().map(|_| rng.random_range(0..num_actions) as u32).collect())
    })?;
    Ok(())
}

/// Takes an action drawn from all in `envs`, one environment whose observation is the index of its state.
fn interact(envs: &mut VecEnv, num_actions: usize, features: &Features, rng: &mut Rng) -> Result<Step> {
    let x = features.of(envs.observations()[0] as usize);
    envs.step(&[rng.random_range(0..num_actions) as u32])?;
    Ok(Step {
        x,
        reward: f64::from(envs.rewards()[0]),
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
        next_x: features.of(envs.final_observations()[0] as usize),
        terminated: envs.terminated()[0],
        truncated: envs.truncated()[0],
    })
}

#[cfg(test)]
mod tests;
