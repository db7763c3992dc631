//! # SARSA with linear features: n steps, SARSA(λ), true online SARSA(λ)
//!
//! Sutton (1996), "Generalization in reinforcement learning: successful examples using sparse coarse
//! coding", NeurIPS 8; Singh & Sutton (1996), "Reinforcement learning with replacing eligibility traces";
//! van Seijen et al. (2016), "True online temporal-difference learning", JMLR 17, arXiv:1512.04087;
//! Konidaris, Osentoski & Thomas (2011), "Value function approximation in reinforcement learning using the
//! Fourier basis", AAAI. Sutton & Barto (2018), *Reinforcement Learning*, sections 9.5, 10.1, 10.2, 12.7.
//!
//! Where states are too many for a table, what is learned in one must hold for those like it. An action's
//! value is a weighted sum of the state's features, of tiles only a few; a step changes their weights, and
//! so the values of all states that share them. The rest is SARSA: the value of the action taken moves towards
//! the reward plus the next action's value, at once, after n steps, or by a trace of what was active lately.
//!
//! With `q(s,a) = wᵀ x(s,a)`, from s_t by a_t with reward r_{t+1} to s_{t+1}, where a_{t+1} follows:
//!
//! ```text
//! --method n-step          G_t = r_{t+1} + γ r_{t+2} + … + γⁿ q(s_{t+n},a_{t+n})
//!                          w ← w + α [ G_t − q(s_t,a_t) ] x(s_t,a_t)                n steps later
//! --method lambda          δ = r_{t+1} + γ q(s_{t+1},a_{t+1}) − q(s_t,a_t)
//!                          z ← γλ z + x(s_t,a_t),   w ← w + α δ z      accumulating, or another:
//!     --trace replacing            z_i ← x_i where x_i ≠ 0, otherwise γλ z_i   (for tiles: waves and
//!                                  Gaussians are nowhere 0, and only an action's last step would remain)
//!     --trace replacing-clearing   and z_i ← 0 for the features of the other actions in s_t
//!     --trace dutch                z ← γλ z + (1 − αγλ zᵀx) x
//! --method true-online     z as dutch, and q_old being q(s_t,a_t) before the last update
//!                          w ← w + α (δ + q(s_t,a_t) − q_old) z − α (q(s_t,a_t) − q_old) x(s_t,a_t)
//! ```
//!
//! with `q(s_{t+1},·) = 0` after a termination, and z = 0, q_old = 0 when an episode begins. Each action has
//! features of its own, on the observation scaled to s ∈ [0, 1]ᵈ:
//!
//! ```text
//! --basis tiles      1 for the tile that s lies in of each of m grids, shifted against each other by odd
//!                    multiples of a tile's m-th part; α is divided by m
//! --basis fourier    cos(π cᵀs) / √‖c‖ for c ∈ {0 … k}ᵈ, where √‖0‖ is 1: the same as α_c = α / ‖c‖
//! --basis radial     exp(−‖s − c‖² / 2σ²) for c on a grid of k + 1 points a dimension, σ their distance
//! ```
//!
//! Deviations: an episode that a time limit cuts off bootstraps from its true last state, and the next one's
//! first action is drawn before its last updates. Tiles are hashed where `--hash-size` has no weight for each.
//!
//! Run `cargo run -p linear_sarsa`: gets the mountain car out of its valley in about 110 steps after a few
//! hundred episodes, a second; the best possible is 97.7 (dynamic programming on a grid). The first 50 take
//! 176 with `--lambda 0.96 --learning-rate 1.2` (figure 12.10), episodes 401 to 500 take 107 with `--method
//! n-step --n-step 8 --learning-rate 0.3` (section 10.2). Figure 10.1 is minus the model's `values`.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, Space, Spec, VecEnv, invalid, learner_rng, persist::Fixed};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use std::process::ExitCode;

/// SARSA with tile coding, Fourier and radial features, for bounded observations and a few actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("MountainCarTextbook-v0")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("70000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Stop after this many episodes, however few steps that were [default: no limit]
    #[arg(long, value_parser = cli::positive)]
    #[serde(skip_serializing_if = "Option::is_none")]
    total_episodes: Option<usize>,
    /// Semi-gradient SARSA over n steps, SARSA(λ) or true online SARSA(λ)
    #[arg(long, value_enum, default_value_t = Method::Lambda)]
    method: Method,
    /// Steps that n-step waits, n
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    n_step: usize,
    /// Decay of the trace, λ
    #[arg(long, default_value_t = 0.9, value_parser = cli::unit_interval)]
    lambda: f64,
    /// Trace of lambda; replacing-clearing sets the other actions' to 0
    #[arg(long, value_enum, default_value_t = Trace::Replacing)]
    trace: Trace,
    /// Features of the state: tiles, cosines, or Gaussians on a grid
    #[arg(long, value_enum, default_value_t = Basis::Tiles)]
    basis: Basis,
    /// Grids of tiles, m: a power of 2, of others some grids lie upon each other along a dimension
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    tilings: usize,
    /// Tiles of a grid along each dimension
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    tiles: usize,
    /// Weights of tiles at most: where there are more tiles, some share one
    #[arg(long, default_value_t = 4096, value_parser = cli::positive)]
    hash_size: usize,
    /// Order of the Fourier basis, and steps of the grid of radial features, k
    #[arg(long, default_value_t = 3, value_parser = cli::positive)]
    order: usize,
    /// Step size, α, of tiles divided by their grids
    #[arg(long, default_value_t = 0.5, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Probability of a random action, ε. With 0 it is the first values, too good to be true, that explore
    #[arg(long, default_value_t = 0.0, value_parser = cli::unit_interval)]
    epsilon: f64,
}

#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Method {
    NStep,
    Lambda,
    TrueOnline,
}

#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Trace {
    Accumulating,
    Replacing,
    ReplacingClearing,
    Dutch,
}

#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Basis {
    Tiles,
    Fourier,
    Radial,
}

/// x(s,a): the features that may be other than 0, `(index, value)`.
type Active = Vec<(usize, f64)>;

/// The features x.
struct Features {
    low: Vec<f64>,     // [d]
    range: Vec<f64>,   // [d], never 0
    points: usize,     // of a grid along each dimension
    per_action: usize, // features of an action
    len: usize,        // number of weights
    step_size: f64,    // α, of one feature
    num_actions: usize,
    args: Args,
}

impl Features {
    fn new(spec: &Spec, args: &Args) -> Result<Self> {
        let (dim, num_actions) = spec.box_to_discrete("linear_sarsa")?;
        let refuse = |why: String| invalid(format!("--env-id {}: {why}", spec.id));
        let (low, high) = match &spec.observation_space {
            Space::Box { low, high, .. } if low.iter().chain(high).all(|x| x.is_finite()) => (low, high),
            space => return refuse(format!("linear_sarsa needs bounded observations, not {space}")),
        };
        let range = low.iter().zip(high).map(|(l, h)| (f64::from(*h) - f64::from(*l)).max(1e-30)).collect();
        let low = low.iter().map(|&low| low.into()).collect();
        // How many features there may be: each of the waves is computed at every step.
        let (points, grids, most, weights) = match args.basis {
            // Grids are shifted by less than a tile, so that one more covers the space.
            Basis::Tiles => (args.tiles.saturating_add(1), args.tilings, 20_000_000, args.hash_size),
            Basis::Fourier | Basis::Radial => (args.order.saturating_add(1), 1, 100_000, usize::MAX),
        };
        let all = points.checked_pow(dim as u32).and_then(|n| n.checked_mul(grids)?.checked_mul(num_actions));
        let Some(all) = all.filter(|&all| all <= most) else {
            return refuse(format!("{dim} numbers, {grids} x {points} points a side: too many, > {most}"));
        };
        let (per_action, len) = (all / num_actions, all.min(weights));
        let step_size = args.learning_rate / grids as f64;
        Ok(Self { low, range, points, per_action, len, step_size, num_actions, args: args.clone() })
    }

    /// x(s,·), for each action: `[num_actions]`.
    fn of(&self, observation: &[f32]) -> Vec<Active> {
        let scaled = |d: usize| (f64::from(observation[d]) - self.low[d]) / self.range[d];
        let s: Vec<f64> = (0..observation.len()).map(scaled).collect();
        let of_state = if self.args.basis == Basis::Tiles { self.tiles(&s) } else { self.waves(&s) };
        let of_action = |action: usize| {
            let weight = |&(i, value): &(usize, f64)| (hash(action * self.per_action + i, self.len), value);
            of_state.iter().map(weight).collect()
        };
        (0..self.num_actions).map(of_action).collect()
    }

    /// The tile of each grid that s lies in.
    fn tiles(&self, s: &[f64]) -> Active {
        let (points, tilings) = (self.points, self.args.tilings);
        let tile_of = |tiling: usize| {
            let mut tile = 0; // row-major in its grid
            for (d, s) in s.iter().enumerate() {
                // Shifted by the odd number 2 d + 1 of m-th parts of a tile, from grid to grid.
                let shift = (tiling * (2 * d + 1) % tilings) as f64 / tilings as f64;
                let position = s * self.args.tiles as f64 + shift;
                tile = tile * points + (position.max(0.0) as usize).min(points - 1);
            }
            (tiling * points.pow(s.len() as u32) + tile, 1.0)
        };
        (0..tilings).map(tile_of).collect()
    }

    /// Fourier or radial features, one for each point c of a grid.
    fn waves(&self, s: &[f64]) -> Active {
        let feature = |index: usize| {
            let coordinate = |d: usize| (index / self.points.pow(d as u32) % self.points) as f64;
            let c: Vec<f64> = (0..s.len()).map(coordinate).collect(); // [d], of 0 to k
            // (s − c) / σ, where c is in steps of the grid as well
            let apart: Vec<f64> = s.iter().zip(&c).map(|(s, c)| s * self.args.order as f64 - c).collect();
            let value = match self.args.basis {
                // exp(−‖s − c‖² / 2σ²)
                Basis::Radial => (-dot(&apart, &apart) / 2.0).exp(),
                _ if index == 0 => 1.0,
                // cos(π cᵀs) / √‖c‖
                _ => (PI * dot(&c, s)).cos() / dot(&c, &c).sqrt().sqrt(),
            };
            (index, value)
        };
        (0..self.per_action).map(feature).collect()
    }
}

/// The weight of a feature: its own where there are enough, otherwise a random one (Knuth's hashing).
fn hash(feature: usize, len: usize) -> usize {
    let random = (feature as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    if feature < len { feature } else { random as usize % len }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// aᵀx
fn dot_active(a: &[f64], x: &Active) -> f64 {
    x.iter().map(|&(i, value)| a[i] * value).sum()
}

/// a ← a + factor x
fn add_active(a: &mut [f64], factor: f64, x: &Active) {
    x.iter().for_each(|&(i, value)| a[i] += factor * value);
}

/// What one step of the environment showed, in features, and the action that follows.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
struct Step {
    features: Vec<Active>,      // x(s_t,·), [num_actions]
    action: usize,              // a_t
    reward: f64,                // r_{t+1}
    next_features: Vec<Active>, // x(s_{t+1},·), of an episode's true last state at its end, [num_actions]
    next_action: usize,         // a_{t+1}
    terminated: bool,           // nothing lies beyond s_{t+1}
    truncated: bool,            // a time limit cut the episode off at s_{t+1}
}

/// The weights and how they are learned.
struct Sarsa {
    w: Vec<f64>,       // [len]
    trace: Vec<f64>,   // z, [len]
    old_value: f64,    // q_old
    window: Vec<Step>, // steps of the episode that wait for their return, the oldest first
    step_size: f64,    // α, of one feature
    args: Args,
}

impl Sarsa {
    fn new(len: usize, step_size: f64, args: &Args) -> Self {
        let zeros = || vec![0.0; len];
        Self { w: zeros(), trace: zeros(), old_value: 0.0, window: Vec::new(), step_size, args: args.clone() }
    }

    /// The best actions by q(s,·).
    fn best_actions(&self, features: &[Active]) -> Vec<usize> {
        let values: Vec<f64> = features.iter().map(|x| dot_active(&self.w, x)).collect();
        let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (0..values.len()).filter(|&action| values[action] >= max).collect()
    }

    /// The best action, any of them if there are several, or with probability ε one drawn from all.
    fn act(&self, features: &[Active], rng: &mut Rng) -> usize {
        if rng.random::<f64>() < self.args.epsilon {
            return rng.random_range(0..features.len());
        }
        let best = self.best_actions(features);
        if best.is_empty() { 0 } else { best[rng.random_range(0..best.len())] } // none if w is not finite
    }

    /// The best action, the first of equal ones.
    fn act_greedily(&self, features: &[Active]) -> usize {
        self.best_actions(features).first().copied().unwrap_or(0)
    }

    /// max_a q(s,a) at 41 × 41 points of a state of two numbers, those of the second beside each other.
    fn values(&self, features: &Features) -> Vec<f64> {
        let number = |d: usize, i: usize| (features.low[d] + features.range[d] * i as f64 / 40.0) as f32;
        let value = |i: usize| {
            let of_state = features.of(&[number(0, i / 41), number(1, i % 41)]);
            dot_active(&self.w, &of_state[self.act_greedily(&of_state)])
        };
        if features.low.len() == 2 { (0..41 * 41).map(value).collect() } else { Vec::new() }
    }

    /// q(s_t,a_t)
    fn value(&self, step: &Step) -> f64 {
        dot_active(&self.w, &step.features[step.action])
    }

    /// q(s_{t+1},a_{t+1}). Easy to miss and fatal: nothing lies beyond a terminal state.
    fn next_value(&self, step: &Step) -> f64 {
        if step.terminated { 0.0 } else { dot_active(&self.w, &step.next_features[step.next_action]) }
    }

    /// Moves the value of the window's oldest action towards its return, and drops it. Returns the error.
    fn update(&mut self) -> f64 {
        // G_t = r_{t+1} + γ r_{t+2} + … + γⁿ q(s_{t+n},a_{t+n})
        let beyond = self.window.last().map_or(0.0, |last| self.next_value(last));
        let g = self.window.iter().rev().fold(beyond, |g, step| step.reward + self.args.gamma * g);
        let oldest = self.window.remove(0);
        // w ← w + α [ G_t − q(s_t,a_t) ] x(s_t,a_t)
        let error = g - self.value(&oldest);
        add_active(&mut self.w, self.step_size * error, &oldest.features[oldest.action]);
        error
    }

    /// The trace after a step with the features x(s_t,a_t).
    fn update_trace(&mut self, step: &Step, trace: Trace) {
        let (x, decay) = (&step.features[step.action], self.args.gamma * self.args.lambda); // γλ
        let overlap = self.step_size * decay * dot_active(&self.trace, x); // αγλ zᵀx
        self.trace.iter_mut().for_each(|z| *z *= decay);
        match trace {
            // z ← γλ z + x
            Trace::Accumulating => add_active(&mut self.trace, 1.0, x),
            // z ← γλ z + (1 − αγλ zᵀx) x
            Trace::Dutch => add_active(&mut self.trace, 1.0 - overlap, x),
            Trace::Replacing | Trace::ReplacingClearing => {
                if trace == Trace::ReplacingClearing {
                    step.features.iter().flatten().for_each(|&(i, _)| self.trace[i] = 0.0);
                }
                x.iter().filter(|(_, value)| *value != 0.0).for_each(|&(i, value)| self.trace[i] = value);
            }
        }
    }

    /// SARSA(λ), or true online SARSA(λ), from one step. Returns δ.
    fn learn_from_trace(&mut self, step: &Step) -> f64 {
        let (value, next_value) = (self.value(step), self.next_value(step));
        // δ = r_{t+1} + γ q(s_{t+1},a_{t+1}) − q(s_t,a_t)
        let td_error = step.reward + self.args.gamma * next_value - value;
        let true_online = self.args.method == Method::TrueOnline;
        self.update_trace(step, if true_online { Trace::Dutch } else { self.args.trace });
        // w ← w + α (δ + q(s_t,a_t) − q_old) z − α (q(s_t,a_t) − q_old) x(s_t,a_t), or w ← w + α δ z
        let change = if true_online { value - self.old_value } else { 0.0 };
        let factor = self.step_size * (td_error + change);
        self.w.iter_mut().zip(&self.trace).for_each(|(w, z)| *w += factor * z);
        add_active(&mut self.w, -self.step_size * change, &step.features[step.action]);
        // Easy to miss: q_old is the next action's value by the weights before this update.
        self.old_value = next_value;
        if step.terminated || step.truncated {
            self.trace.fill(0.0);
            self.old_value = 0.0;
        }
        td_error
    }

    /// Learns from one more step. Returns the errors of the values that changed: with n steps those of the
    /// actions whose return is known now.
    fn learn(&mut self, step: Step) -> Vec<f64> {
        if self.args.method != Method::NStep {
            return vec![self.learn_from_trace(&step)];
        }
        let ended = step.terminated || step.truncated;
        self.window.push(step);
        let mut errors = Vec::new();
        while self.window.len() >= self.args.n_step || (ended && !self.window.is_empty()) {
            errors.push(self.update());
        }
        errors
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let features = Features::new(envs.spec(), &args)?;
    let mut sarsa = Sarsa::new(features.len, features.step_size, &args);
    let mut rng = learner_rng(args.run.seed);
    let mut action = sarsa.act(&features.of(envs.observations()), &mut rng);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let (total_episodes, mut episodes) = (args.total_episodes.unwrap_or(usize::MAX), 0);
    let mut global_step = 0;
    while global_step < run.total_timesteps && episodes < total_episodes {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("w", &mut Fixed(&mut sarsa.w)),
                ("trace", &mut Fixed(&mut sarsa.trace)),
                ("old_value", &mut sarsa.old_value),
                ("window", &mut sarsa.window),
                ("action", &mut action),
                ("episodes", &mut episodes),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        let step = interact(&sarsa, &mut envs, &features, &mut action, &mut rng)?;
        global_step += 1;
        episodes += envs.episodes().len();
        run.episodes(global_step, envs.episodes())?;

        let value = sarsa.value(&step);
        let errors = sarsa.learn(step);
        if let (Some(error), true) = (errors.last(), global_step.is_multiple_of(100)) {
            run.log(global_step, "losses/td_loss", error.powi(2))?;
            run.log(global_step, "losses/q_values", value)?;
        }
    }

    let mut values = sarsa.values(&features);
    run.save_or_load_model(&mut [("w", &mut sarsa.w as _), ("values", &mut values as _)])?;
    run.evaluate(|observations| {
        let act = |observation: &[f32]| sarsa.act_greedily(&features.of(observation)) as u32;
        Ok(observations.chunks_exact(features.low.len()).map(act).collect())
    })?;
    Ok(())
}

/// Takes `action` in `envs`, a single environment, and draws the action that will be next.
fn interact(
    sarsa: &Sarsa,
    envs: &mut VecEnv,
    features: &Features,
    action: &mut usize,
    rng: &mut Rng,
) -> Result<Step> {
    let of_state = features.of(envs.observations());
    envs.step(&[*action as u32])?;
    // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
    let next_features = features.of(envs.final_observations());
    let next_action = sarsa.act(&next_features, rng);
    let (terminated, truncated) = (envs.terminated()[0], envs.truncated()[0]);
    let (taken, reward) = (*action, f64::from(envs.rewards()[0]));
    let ended = terminated || truncated;
    *action = if ended { sarsa.act(&features.of(envs.observations()), rng) } else { next_action };
    Ok(Step { features: of_state, action: taken, reward, next_features, next_action, terminated, truncated })
}

#[cfg(test)]
mod tests;
