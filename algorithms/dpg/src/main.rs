//! # Deterministic policy gradient (DPG)
//!
//! Silver, Lever, Heess, Degris, Wierstra & Riedmiller (2014), "Deterministic policy gradient algorithms",
//! ICML: their COPDAC, with linear functions throughout.
//!
//! The gradient of a deterministic policy's value is the critic's slope in the action times the action's
//! slope in the parameters: nothing has to be averaged over actions, and the policy may learn from whatever
//! another one does (then, as in the paper, without the term for how Q itself changes with θ, so that it is
//! no exact gradient: Imani, Graves & White 2018, arXiv:1811.09013). A critic of the right form, linear in
//! how far an action is from the policy's, would give that gradient without bias if its slope had the least
//! squared error; here it is fitted to values instead, as in the paper, which comes near. Its advantage part
//! learns from noise around the policy's action which way to go, its value part what the state is worth
//! anyhow.
//!
//! ```text
//! policy       μ_θ(s) = θ φ(s)                                  φ(s): tile coding
//! critic       Q(s, a) = (a − μ_θ(s))ᵀ w φ(s) + vᵀ φ(s)         compatible: ∇_a Q = w φ = (∇_θ μ_θ)ᵀ w
//! off-policy   δ = r + γ (1 − terminated) Q(s', μ_θ(s')) − Q(s, a)          Q-learning's critic
//! on-policy    δ = r + γ (1 − terminated) Q(s', a') − Q(s, a)               SARSA's, a' is taken next
//! updates      θ ← θ + α_θ ∇_θ μ_θ(s) ∇_a Q(s, a)|_{a = μ_θ(s)} = θ + α_θ w φ(s) φ(s)ᵀ
//!              w ← w + α_w δ ∇_w Q(s, a) = w + α_w δ (a − μ_θ(s)) φ(s)ᵀ
//!              v ← v + α_v δ ∇_v Q(s, a) = v + α_v δ φ(s)
//! explore      a = clip( μ_θ(s) + c σ ε, b − c, b + c ),   ε ~ N(0, I)       actions' bounds: b ± c
//! ```
//!
//! μ_θ(s') adds no advantage: off-policy, Q(s', μ_θ(s')) = vᵀ φ(s'). On-policy, values are those of the
//! policy with its noise. A step that was merely truncated by a time limit is not terminal.
//!
//! Tile coding (Sutton & Barto, section 9.5.4) lays several grids over the observations, each a little
//! displaced, and φ(s) is 1 for the one tile of each in which s lies, 0 for all others.
//!
//! Deviations from the paper:
//! - every θ_ji stays within the bounds of action j divided by the number of tilings, so that μ_θ(s), a sum
//!   of one θ_ji from each tiling, is an action: beyond the bounds noise would be clipped and show no slope;
//! - on-policy the critic is as compatible as off-policy, and both explore: the paper's first algorithm
//!   leaves the critic open, and exploration to the environment;
//! - of the paper's compatible critics COPDAC-GQ, which learns by gradient TD and so cannot diverge
//!   off-policy, is left out: off-policy this is COPDAC-Q.
//!
//! Run `cargo run -p dpg`, or with `--on-policy=true` for the other form: about 95 on MountainCarContinuous-v0
//! after 100,000 steps in a second (Gymnasium registers the task as solved from 90).

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, Space, VecEnv, invalid, learner_rng};
use common::nn::Init;
use common::run::Run;
use serde::Serialize;
use std::process::ExitCode;

/// Deterministic policy gradient with a compatible linear critic, on-policy or off-policy
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("MountainCarContinuous-v0")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("100000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Learn the values of the policy with its noise (SARSA) instead of those without it (Q-learning)
    #[arg(long, default_value_t = false)]
    on_policy: bool,
    /// Step size of the policy, α_θ times the number of tilings
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the critic's advantage part, α_w times the number of tilings
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    advantage_lr: f64,
    /// Step size of the critic's value part, α_v times the number of tilings
    #[arg(long, default_value_t = 0.2, value_parser = cli::non_negative)]
    value_lr: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Standard deviation of the exploration noise, σ, where an action's range is [-1, 1]
    #[arg(long, default_value_t = 0.7, value_parser = cli::non_negative)]
    exploration_noise: f64,
    /// Grids of the tile coding
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    tilings: usize,
    /// Tiles of a grid along each dimension of the observations
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    tiles: usize,
}

/// Grids over bounded observations, each displaced by a part of a tile.
struct TileCoding {
    low: Vec<f64>,  // [observation_dim]
    high: Vec<f64>, // [observation_dim]
    tilings: usize,
    tiles: usize, // along a dimension
}

impl TileCoding {
    /// For observations in `space`; refuses what has no bounds, and grids too large for the memory.
    fn new(space: &Space, args: &Args) -> Result<Self> {
        let Args { tilings, tiles, .. } = *args;
        let bounded = |low: &[f32], high: &[f32]| low.iter().chain(high).all(|bound| bound.is_finite());
        let (low, high) = match space {
            Space::Box { low, high, .. } if bounded(low, high) => (low, high),
            _ => return invalid(format!("--env-id {}: dpg needs bounded observations", args.run.env_id)),
        };
        let [low, high] = [low, high].map(|bounds| bounds.iter().copied().map(f64::from).collect::<Vec<_>>());
        let num_features = (tilings as f64) * (tiles as f64 + 1.0).powi(low.len() as i32);
        if num_features > 1e7 {
            return invalid(format!(
                "--tilings {tilings} --tiles {tiles}: {num_features:.0} features are more than ten million"
            ));
        }
        Ok(Self { low, high, tilings, tiles })
    }

    /// How many tiles there are in all.
    fn num_features(&self) -> usize {
        // A displaced grid sticks out by one tile.
        self.tilings * (self.tiles + 1).pow(self.low.len() as u32)
    }

    /// φ(s), `[num_features]`: 1 for one tile of each grid.
    fn features(&self, observation: &[f32]) -> Vec<f64> {
        let mut features = vec![0.0; self.num_features()];
        for tiling in 0..self.tilings {
            let mut tile = tiling;
            for (d, &x) in observation.iter().enumerate() {
                let place = (f64::from(x) - self.low[d]) / (self.high[d] - self.low[d]); // 0 to 1
                // Displaced by 1, 3, 5, … parts of a tile in the first, second, third … dimension: in other
                // proportions than a diagonal's, so that no direction is seen better than another.
                let offset = (tiling * (2 * d + 1) % self.tilings) as f64 / self.tilings as f64;
                let along = (place.clamp(0.0, 1.0) * self.tiles as f64 + offset) as usize;
                tile = tile * (self.tiles + 1) + along.min(self.tiles);
            }
            features[tile] = 1.0;
        }
        features
    }
}

/// What one step of the environment showed.
struct Transition {
    features: Vec<f64>,      // φ(s), [num_features]
    action: Vec<f32>,        // a, as it was taken, [action_dim]
    reward: f64,             // r
    next_features: Vec<f64>, // φ(s'), s' an episode's true last state at its end, [num_features]
    next_action: Vec<f32>,   // a', what is taken next, or would be where a time limit truncates, [action_dim]
    terminated: bool,        // nothing lies beyond s'; false where a time limit merely truncates
}

/// Policy, critic, and how they learn.
struct Dpg {
    theta: Vec<f64>, // θ, [action_dim, num_features]
    w: Vec<f64>,     // w, [action_dim, num_features]
    v: Vec<f64>,     // v, [num_features]
    tile_coding: TileCoding,
    action_bias: Vec<f32>,         // b, the middle of the bounds b ± c, [action_dim]
    action_scale: Vec<f32>,        // c, [action_dim]
    theta_bounds: Vec<(f64, f64)>, // of θ_ji for action j, [action_dim]
    alphas: (f64, f64, f64),       // α_θ, α_w, α_v
    args: Args,
}

/// Σ_i x_i y_i
fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// A φ, `[rows]`, for a matrix A, `[rows, num_features]`.
fn product(matrix: &[f64], features: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(features.len()).map(|row| dot(row, features)).collect()
}

impl Dpg {
    fn new(tile_coding: TileCoding, action_bias: Vec<f32>, action_scale: Vec<f32>, args: &Args) -> Self {
        let (num_features, action_dim) = (tile_coding.num_features(), action_bias.len());
        // As many features are 1 as there are grids: steps and parameters are their parts of the whole.
        let part = 1.0 / tile_coding.tilings as f64;
        let ranges = action_bias.iter().zip(&action_scale);
        let middle = |b: &f32| vec![part * f64::from(*b); num_features];
        Self {
            theta: action_bias.iter().flat_map(middle).collect(), // μ_θ(s) = b
            w: vec![0.0; action_dim * num_features],
            v: vec![0.0; num_features],
            tile_coding,
            theta_bounds: ranges.map(|(b, c)| (part * f64::from(b - c), part * f64::from(b + c))).collect(),
            action_bias,
            action_scale,
            alphas: (part * args.policy_lr, part * args.advantage_lr, part * args.value_lr),
            args: args.clone(),
        }
    }

    /// μ_θ(s) for each observation, `[batch, action_dim]`.
    fn act_greedily(&self, observations: &[f32]) -> Vec<f32> {
        let observations = observations.chunks_exact(self.tile_coding.low.len());
        let actions = observations.flat_map(|s| product(&self.theta, &self.tile_coding.features(s)));
        actions.map(|mu| mu as f32).collect()
    }

    /// clip( μ_θ(s) + c σ ε, b − c, b + c ), `[action_dim]`, of one observation, from ε ~ N(0, I), `[action_dim]`.
    fn act(&self, observation: &[f32], epsilon: &[f32]) -> Vec<f32> {
        let mut action = self.act_greedily(observation); // μ_θ(s)
        for (j, a) in action.iter_mut().enumerate() {
            let (b, c) = (self.action_bias[j], self.action_scale[j]);
            *a = (*a + c * self.args.exploration_noise as f32 * epsilon[j]).clamp(b - c, b + c);
        }
        action
    }

    /// a − μ_θ(s), `[action_dim]`.
    fn difference(&self, features: &[f64], action: &[f32]) -> Vec<f64> {
        action.iter().zip(product(&self.theta, features)).map(|(&a, mu)| f64::from(a) - mu).collect()
    }

    /// Q(s, a) = (a − μ_θ(s))ᵀ w φ(s) + vᵀ φ(s)
    fn q_value(&self, features: &[f64], action: &[f32]) -> f64 {
        dot(&self.difference(features, action), &product(&self.w, features)) + dot(&self.v, features)
    }

    /// What the critic knows of s': Q(s', a') on-policy, Q(s', μ_θ(s')) off-policy.
    fn next_q_value(&self, step: &Transition) -> f64 {
        if self.args.on_policy {
            self.q_value(&step.next_features, &step.next_action)
        } else {
            dot(&self.v, &step.next_features) // Q(s', μ_θ(s')) = 0ᵀ w φ(s') + vᵀ φ(s')
        }
    }

    /// δ, what the critic was wrong by.
    fn td_error(&self, step: &Transition) -> f64 {
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let next_value = if step.terminated { 0.0 } else { self.next_q_value(step) };
        // δ = r + γ (1 − terminated) Q(s', ·) − Q(s, a)
        step.reward + self.args.gamma * next_value - self.q_value(&step.features, &step.action)
    }

    /// Learns from one step, once. Returns δ.
    fn update(&mut self, step: &Transition) -> f64 {
        let features = &step.features;
        let (alpha_theta, alpha_w, alpha_v) = self.alphas;
        // Everything on the right-hand sides is of the parameters before the step.
        let td_error = self.td_error(step);
        let difference = self.difference(features, &step.action); // a − μ_θ(s)
        let slope = product(&self.w, features); // ∇_a Q(s, a) = w φ(s), [action_dim]
        for (i, phi) in features.iter().enumerate() {
            for j in 0..difference.len() {
                let ji = j * features.len() + i;
                let (low, high) = self.theta_bounds[j];
                // θ ← θ + α_θ w φ(s) φ(s)ᵀ, within the actions' bounds
                self.theta[ji] = (self.theta[ji] + alpha_theta * slope[j] * phi).clamp(low, high);
                // w ← w + α_w δ (a − μ_θ(s)) φ(s)ᵀ
                self.w[ji] += alpha_w * td_error * difference[j] * phi;
            }
            // v ← v + α_v δ φ(s)
            self.v[i] += alpha_v * td_error * phi;
        }
        td_error
    }

    /// The step that `envs`, a single environment, has just made from `observation` by `action`.
    fn last_step(&self, observation: &[f32], action: &[f32], envs: &VecEnv, epsilon: &[f32]) -> Transition {
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
        let next_observation = envs.final_observations();
        Transition {
            features: self.tile_coding.features(observation),
            action: action.to_vec(),
            reward: f64::from(envs.rewards()[0]),
            next_features: self.tile_coding.features(next_observation),
            next_action: self.act(next_observation, epsilon),
            terminated: envs.terminated()[0],
        }
    }
}

/// ε ~ N(0, I), `[len]`.
fn normal(len: usize, rng: &mut Rng) -> Result<Vec<f32>> {
    let device = candle_core::Device::Cpu;
    Ok(Init::Randn { mean: 0.0, stdev: 1.0 }.tensor(len, rng, &device)?.to_vec1()?)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (_, action_dim) = envs.spec().box_to_box("dpg")?;
    let (action_bias, action_scale) = envs.spec().action_range("dpg")?;
    let tile_coding = TileCoding::new(&envs.spec().observation_space, &args)?;
    let mut rng = learner_rng(args.run.seed);
    let mut dpg = Dpg::new(tile_coding, action_bias, action_scale, &args);
    let mut action = dpg.act(envs.observations(), &normal(action_dim, &mut rng)?); // a, [action_dim]
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("theta", &mut dpg.theta),
                ("w", &mut dpg.w),
                ("v", &mut dpg.v),
                ("action", &mut action),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        // Act, and choose the next action before anything is learned.
        let observation = envs.observations().to_vec(); // s, [observation_dim]
        envs.step(&action)?;
        let step = dpg.last_step(&observation, &action, &envs, &normal(action_dim, &mut rng)?);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;

        // Learn.
        let q_value = dpg.q_value(&step.features, &step.action);
        let td_error = dpg.update(&step);
        action = step.next_action;
        if envs.terminated()[0] || envs.truncated()[0] {
            action = dpg.act(envs.observations(), &normal(action_dim, &mut rng)?);
        }
        if global_step.is_multiple_of(100) {
            run.log(global_step, "losses/td_loss", td_error.powi(2))?;
            run.log(global_step, "losses/q_values", q_value)?;
        }
    }

    run.save_or_load_model(&mut [("theta", &mut dpg.theta as _)])?;
    run.evaluate(|observations| Ok(dpg.act_greedily(observations)))?;
    Ok(())
}

#[cfg(test)]
mod tests;
