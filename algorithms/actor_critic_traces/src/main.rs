//! # Actor-critic with eligibility traces, linear
//!
//! Sutton & Barto (2018), "Reinforcement Learning", sections 13.5 (episodic), 13.6 (continuing) and 13.7
//! (continuous actions); Degris, Pilarski & Sutton (2012), "Model-free reinforcement learning with
//! continuous action in practice", American Control Conference.
//!
//! A critic learns what states are worth, and how much better or worse a step went than that, its TD
//! error, tells the actor whether to do again what it did. One step alone hears nothing of what happens
//! later; so both keep a trace, a fading memory of the features and the choices of the last steps, and
//! each TD error reaches all of them. λ = 0 remembers only the present step, λ = 1 whole episodes, as
//! REINFORCE with baseline does. Everything is linear, and a step takes microseconds.
//!
//! With v(s) = wᵀ x(s), one step from s by a to s' with reward r is, in the episodic form,
//!
//! ```text
//! δ  = r + γ (1 − terminated) v(s') − v(s)
//! z_w ← γ λ_w z_w + x(s)
//! z_θ ← γ λ_θ z_θ + I ∇ln π_θ(a|s)             I = γᵗ with --discount-gradient, otherwise 1
//! w ← w + α_w δ z_w
//! θ ← θ + α_θ δ z_θ
//! ```
//!
//! and both traces are 0 when an episode begins. In the continuing form (`--average-reward`) nothing is
//! discounted; rewards count by how much they exceed the average reward r̄, which is learned as well:
//!
//! ```text
//! δ  = r − r̄ + v(s') − v(s)                    r̄ ← r̄ + η δ,  and γ = I = 1 above
//! ```
//!
//! Discrete actions are drawn from a softmax. Of continuous ones each dimension is normal, and its
//! deviation is learned as well as its mean:
//!
//! ```text
//! π(a|s) ∝ exp(θ_aᵀ x)                          ∂ln π/∂θ_b = (1[a = b] − π(b|s)) x
//! π(a|s) = N(μ, σ²), μ = θ_μᵀ x, σ = exp(θ_σᵀ x)
//!     ∂ln π/∂θ_μ = (a − μ)/σ² x                 ∂ln π/∂θ_σ = ((a − μ)²/σ² − 1) x
//! ```
//!
//! `--scale-score`, the default, multiplies the last line by σ² (Degris et al.): step sizes need no care for σ.
//!
//! The features x(s) are tiles: m grids lie over the state space, each shifted against the others, and a
//! state lies in one tile of each; one more feature is always 1 (Sutton & Barto, section 9.5.4; grids
//! shifted by odd multiples of a tile's m-th part). `--tilings 0` takes the observation itself.
//!
//! Deviations: a time limit ends the traces too, and its last step bootstraps from the true final state; I = γᵗ
//! only with `--discount-gradient` (see reinforce); actions are clipped by the environment, not for the score.
//!
//! Run `cargo run -p actor_critic_traces`: swings a pendulum up whose motor is too weak to lift it, an
//! average reward above 0.75 in the 50th episode, a return of 3750, after 250,000 steps in three seconds
//! (RLPark's test of the same learner demands it; the authors' own library, rlpark/rlpark at 2baf7389).
//! The short corridor, −11.7 over episodes 901 to 1000 (computed over 500 runs; the best is −11.66):
//!
//! ```text
//! cargo run -p actor_critic_traces -- --env-id ShortCorridor-v0 --total-timesteps 14000 --tilings 0 \
//!     --average-reward false --gamma 1 --actor-lambda 0.8 --critic-lambda 0.8 --policy-lr 0.001953125 \
//!     --value-lr 0.015625 --initial-preferences 1.472,-1.472 --greedy-eval false
//! ```

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, Space, VecEnv, invalid, learner_rng};
use common::run::Run;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;
use std::process::ExitCode;

/// Linear actor-critic with eligibility traces, for discrete and continuous actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("SwingPendulum-v0")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("250000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of the actor, α_θ times one more than the number of tilings
    #[arg(long, default_value_t = 0.05, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the critic, α_w times one more than the number of tilings
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    value_lr: f64,
    /// The continuing form: learn from rewards less their average, without a discount
    #[arg(long, default_value_t = true)]
    average_reward: bool,
    /// Step size of the average reward, η
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    average_reward_lr: f64,
    /// Discount of the episodic form, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Weigh step t of the actor by γᵗ, as the gradient of the discounted return asks for
    #[arg(long, default_value_t = false)]
    discount_gradient: bool,
    /// Decay of the actor's trace, λ_θ
    #[arg(long, default_value_t = 0.5, value_parser = cli::unit_interval)]
    actor_lambda: f64,
    /// Decay of the critic's trace, λ_w
    #[arg(long, default_value_t = 0.5, value_parser = cli::unit_interval)]
    critic_lambda: f64,
    /// Multiply the score of a normal policy by its variance
    #[arg(long, default_value_t = true)]
    scale_score: bool,
    /// Grids of tiles, m; 0 takes the observation itself as features
    #[arg(long, default_value_t = 10)]
    tilings: usize,
    /// Tiles of a grid along each dimension of the observation
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    tiles: usize,
    /// First weights θ_a of each action's preference, for each feature the same [default: all 0]
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, value_parser = cli::finite)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    initial_preferences: Vec<f64>,
    /// Evaluate the most probable actions; false draws from the policy, for tasks whose best policy is random
    #[arg(long, default_value_t = true)]
    greedy_eval: bool,
}

/// The features x(s).
struct Features {
    tilings: usize,  // m
    tiles: usize,    // along each dimension
    low: Vec<f64>,   // [observation_dim]
    width: Vec<f64>, // of a tile, [observation_dim]
}

impl Features {
    fn new(space: &Space, args: &Args) -> Result<Self> {
        let (tilings, tiles) = (args.tilings, args.tiles);
        let refuse = |why: String| invalid(format!("--env-id {}: {why}", args.run.env_id));
        let Space::Box { low, high, .. } = space else {
            return refuse(format!("actor_critic_traces needs Box observations, not {space}"));
        };
        if tilings > 0 && low.iter().chain(high).any(|bound| !bound.is_finite()) {
            return refuse(format!("--tilings {tilings} need bounded observations; --tilings 0 does not"));
        }
        let all = (tiles + 1).checked_pow(low.len() as u32).and_then(|grid| grid.checked_mul(tilings));
        if tilings > 0 && all.is_none_or(|all| all > 10_000_000) {
            let numbers = low.len();
            return refuse(format!("{numbers} numbers are too many for --tilings {tilings} --tiles {tiles}"));
        }
        let low: Vec<f64> = low.iter().map(|&low| low.into()).collect();
        let widths = low.iter().zip(high).map(|(low, &high)| (f64::from(high) - low) / args.tiles as f64);
        Ok(Self { tilings, tiles, width: widths.collect(), low })
    }

    /// Tiles in one grid: it is shifted by less than a tile, so that one more covers the space.
    fn grid_size(&self) -> usize {
        (self.tiles + 1).pow(self.low.len() as u32)
    }

    /// How many there are, n.
    fn len(&self) -> usize {
        if self.tilings == 0 { self.low.len() } else { self.tilings * self.grid_size() + 1 }
    }

    /// How many are not 0, which step sizes are divided by.
    fn active(&self) -> f64 {
        if self.tilings == 0 { 1.0 } else { self.tilings as f64 + 1.0 }
    }

    /// x(s), `[n]`.
    fn of(&self, observation: &[f32]) -> Vec<f64> {
        if self.tilings == 0 {
            return observation.iter().map(|&number| number.into()).collect();
        }
        let mut features = vec![0.0; self.len()];
        for tiling in 0..self.tilings {
            let mut tile = 0; // row-major in its grid
            for (d, &number) in observation.iter().enumerate() {
                // Shifted by the odd number 2 d + 1 of m-th parts of a tile, from grid to grid.
                let shift = (tiling * (2 * d + 1) % self.tilings) as f64 / self.tilings as f64;
                let position = (f64::from(number) - self.low[d]) / self.width[d] + shift;
                tile = tile * (self.tiles + 1) + (position.max(0.0) as usize).min(self.tiles);
            }
            features[tiling * self.grid_size() + tile] = 1.0;
        }
        features[self.tilings * self.grid_size()] = 1.0;
        features
    }
}

/// What one step of the environment showed, in features.
struct Transition {
    features: Vec<f64>,      // x(s), [n]
    action: Vec<f64>,        // a: an index alone, or [action_dim]
    reward: f64,             // r
    next_features: Vec<f64>, // x(s'), of an episode's true last state at its end, [n]
    terminated: bool,        // nothing lies beyond s'
    truncated: bool,         // the episode was cut off at s'
}

impl Transition {
    /// The step that `envs`, a single environment, has just made by `action`.
    fn last(features: Vec<f64>, action: Vec<f64>, envs: &VecEnv, of: &Features) -> Self {
        Self {
            features,
            action,
            reward: f64::from(envs.rewards()[0]),
            // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
            next_features: of.of(envs.final_observations()),
            terminated: envs.terminated()[0],
            truncated: envs.truncated()[0],
        }
    }
}

/// Actor, critic, their traces and how they learn.
#[derive(Clone)]
struct ActorCritic {
    theta: Vec<f64>, // θ: a row for each action; or for each dimension μ's, then σ's: [rows, n]
    w: Vec<f64>,     // w, [n]
    actor_trace: Vec<f64>, // z_θ, [rows, n]
    critic_trace: Vec<f64>, // z_w, [n]
    average_reward: f64, // r̄
    state_discount: f64, // I
    softmax: bool,   // over discrete actions; otherwise normal
    policy_lr: f64,  // α_θ, of one feature
    value_lr: f64,   // α_w, of one feature
    args: Args,
}

impl ActorCritic {
    fn new(n: usize, active: f64, actions: &Space, args: &Args) -> Self {
        let softmax = matches!(actions, Space::Discrete { .. });
        let rows = match actions {
            Space::Discrete { n: num_actions } => *num_actions,
            _ => 2 * actions.size(),
        };
        let mut theta = vec![0.0; rows * n];
        for (row, preference) in theta.chunks_exact_mut(n).zip(&args.initial_preferences) {
            row.fill(*preference);
        }
        Self {
            theta,
            w: vec![0.0; n],
            actor_trace: vec![0.0; rows * n],
            critic_trace: vec![0.0; n],
            average_reward: 0.0,
            state_discount: 1.0,
            softmax,
            policy_lr: args.policy_lr / active,
            value_lr: args.value_lr / active,
            args: args.clone(),
        }
    }

    /// θ_rowᵀ x of each row.
    fn outputs(&self, features: &[f64]) -> Vec<f64> {
        self.theta.chunks_exact(features.len()).map(|row| dot(row, features)).collect()
    }

    /// π(·|s) of a softmax policy, `[num_actions]`.
    fn probabilities(&self, features: &[f64]) -> Vec<f64> {
        let preferences = self.outputs(features);
        let largest = preferences.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Less the largest, so that nothing overflows.
        let exponentials: Vec<f64> = preferences.iter().map(|h| (h - largest).exp()).collect();
        let total: f64 = exponentials.iter().sum();
        exponentials.iter().map(|e| e / total).collect()
    }

    /// (μ, σ) of each dimension of a normal policy, `[action_dim]`.
    fn normals(&self, features: &[f64]) -> Vec<(f64, f64)> {
        let outputs = self.outputs(features);
        let (means, log_sigmas) = outputs.split_at(outputs.len() / 2);
        means.iter().zip(log_sigmas).map(|(mean, log_sigma)| (*mean, log_sigma.exp())).collect()
    }

    /// a ~ π_θ(·|s): an index, or `[action_dim]`.
    fn act(&self, features: &[f64], rng: &mut Rng) -> Vec<f64> {
        if self.softmax {
            let probabilities = self.probabilities(features);
            let mut left: f64 = rng.random();
            let chosen = probabilities.iter().position(|probability| {
                left -= probability;
                left < 0.0
            });
            // Rounding may leave nothing to the last.
            return vec![chosen.unwrap_or(probabilities.len() - 1) as f64];
        }
        let mut draw = |(mean, sigma): (f64, f64)| {
            let z: f64 = StandardNormal.sample(rng);
            mean + sigma * z
        };
        self.normals(features).into_iter().map(&mut draw).collect()
    }

    /// The most probable action, the first of several: an index, or `[action_dim]`.
    fn act_greedily(&self, features: &[f64]) -> Vec<f64> {
        if self.softmax {
            let preferences = self.outputs(features);
            let best =
                (0..preferences.len()).rev().max_by(|&a, &b| preferences[a].total_cmp(&preferences[b]));
            return vec![best.unwrap_or_default() as f64];
        }
        self.normals(features).into_iter().map(|(mean, _)| mean).collect()
    }

    /// ∇ln π_θ(a|s): row by row a number, by which x(s) is multiplied, `[rows]`.
    fn score(&self, features: &[f64], action: &[f64]) -> Vec<f64> {
        if self.softmax {
            // 1[a = b] − π(b|s)
            let of = |(b, probability): (usize, f64)| {
                if b as f64 == action[0] { 1.0 - probability } else { -probability }
            };
            return self.probabilities(features).into_iter().enumerate().map(of).collect();
        }
        let (mut of_means, mut of_sigmas) = (Vec::new(), Vec::new());
        for ((mean, sigma), a) in self.normals(features).into_iter().zip(action) {
            let scale = if self.args.scale_score { sigma.powi(2) } else { 1.0 };
            of_means.push(scale * (a - mean) / sigma.powi(2)); // (a − μ)/σ²
            of_sigmas.push(scale * ((a - mean).powi(2) / sigma.powi(2) - 1.0)); // (a − μ)²/σ² − 1
        }
        [of_means, of_sigmas].concat()
    }

    /// One step of the critic, the actor and the average reward. Returns δ.
    fn update(&mut self, step: &Transition) -> f64 {
        let (value, next_value) = (dot(&self.w, &step.features), dot(&self.w, &step.next_features));
        // Easy to miss and fatal: nothing lies beyond a terminal state; beyond a time limit there does.
        let next_value = if step.terminated { 0.0 } else { next_value };
        let gamma = if self.args.average_reward { 1.0 } else { self.args.gamma };
        // δ = r − r̄ + γ (1 − terminated) v(s') − v(s). In the episodic form r̄ stays 0.
        let td_error = step.reward - self.average_reward + gamma * next_value - value;
        if self.args.average_reward {
            self.average_reward += self.args.average_reward_lr * td_error; // r̄ ← r̄ + η δ
        }
        let score = self.score(&step.features, &step.action); // of the policy that acted

        // z_w ← γ λ_w z_w + x(s),   w ← w + α_w δ z_w
        let decay = gamma * self.args.critic_lambda;
        follow(&mut self.w, &mut self.critic_trace, decay, 1.0, &step.features, self.value_lr * td_error);
        // z_θ ← γ λ_θ z_θ + I ∇ln π_θ(a|s),   θ ← θ + α_θ δ z_θ, row by row
        let decay = gamma * self.args.actor_lambda;
        let n = step.features.len();
        let rows = self.theta.chunks_exact_mut(n).zip(self.actor_trace.chunks_exact_mut(n));
        for ((theta, trace), score) in rows.zip(score) {
            let weight = self.state_discount * score;
            follow(theta, trace, decay, weight, &step.features, self.policy_lr * td_error);
        }

        if self.args.discount_gradient {
            self.state_discount *= gamma; // I ← γ I
        }
        if step.terminated || step.truncated {
            // The next step begins an episode: nothing before it led there.
            self.critic_trace.fill(0.0);
            self.actor_trace.fill(0.0);
            self.state_discount = 1.0;
        }
        td_error
    }
}

/// z ← decay z + weight x, then parameters ← parameters + step z.
fn follow(parameters: &mut [f64], trace: &mut [f64], decay: f64, weight: f64, x: &[f64], step: f64) {
    for ((parameter, z), x) in parameters.iter_mut().zip(trace).zip(x) {
        *z = decay * *z + weight * x;
        *parameter += step * *z;
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Actions of several environments, as [`VecEnv::step`] wants discrete ones.
fn indices(actions: &[f64]) -> Vec<u32> {
    actions.iter().map(|&action| action as u32).collect()
}

/// The same of continuous ones.
fn vectors(actions: &[f64]) -> Vec<f32> {
    actions.iter().map(|&number| number as f32).collect()
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let spec = envs.spec().clone();
    let features = Features::new(&spec.observation_space, &args)?;
    let (preferences, actions) = (args.initial_preferences.len(), &spec.action_space);
    if preferences > 0 && *actions != (Space::Discrete { n: preferences }) {
        return invalid(format!("--initial-preferences: {preferences} numbers, for {actions} actions"));
    }
    if matches!(actions, Space::Tuple(_)) {
        return invalid(format!("--env-id {}: actor_critic_traces needs Discrete or Box actions", spec.id));
    }
    let mut rng = learner_rng(args.run.seed);
    let mut learner = ActorCritic::new(features.len(), features.active(), actions, &args);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("theta", &mut learner.theta),
                ("w", &mut learner.w),
                ("actor_trace", &mut learner.actor_trace),
                ("critic_trace", &mut learner.critic_trace),
                ("average_reward", &mut learner.average_reward),
                ("state_discount", &mut learner.state_discount),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        let x = features.of(envs.observations());
        let action = learner.act(&x, &mut rng);
        match learner.softmax {
            true => envs.step(&indices(&action))?,
            false => envs.step(&vectors(&action))?,
        }
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;

        // Learn from the step, once.
        let step = Transition::last(x, action, &envs, &features);
        let td_error = learner.update(&step);
        if global_step.is_multiple_of(100) {
            run.log(global_step, "losses/td_loss", td_error.powi(2))?;
            run.log(global_step, "losses/values", dot(&learner.w, &step.features))?;
            run.log(global_step, "charts/average_reward", learner.average_reward)?;
        }
    }

    run.save_or_load_model(&mut [("theta", &mut learner.theta as _), ("w", &mut learner.w as _)])?;
    rng = learner_rng(args.run.seed); // from its start, so that `--eval-only` draws the same actions
    let mut actions = |observations: &[f32]| -> Vec<f64> {
        let mut act = |observation: &[f32]| match args.greedy_eval {
            true => learner.act_greedily(&features.of(observation)),
            false => learner.act(&features.of(observation), &mut rng),
        };
        observations.chunks_exact(spec.observation_space.size()).flat_map(&mut act).collect()
    };
    match learner.softmax {
        true => run.evaluate(|observations| Ok(indices(&actions(observations))))?,
        false => run.evaluate(|observations| Ok(vectors(&actions(observations))))?,
    };
    Ok(())
}

#[cfg(test)]
mod tests;
