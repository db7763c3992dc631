//! # Off-policy actor-critic (Off-PAC)
//!
//! Degris, White & Sutton (2012), "Off-policy actor-critic", ICML, arXiv:1205.4839. The critic: Maei (2011),
//! "Gradient temporal-difference learning algorithms", thesis, University of Alberta, GTD(λ). Its alternative:
//! Sutton, Mahmood & White (2016), "An emphatic approach to the problem of off-policy temporal-difference
//! learning", JMLR 17, arXiv:1503.04269.
//!
//! One policy acts, the behaviour b, and another one is learned from what it does, the target policy π: so a
//! fixed exploration, a demonstration or a log can teach something better than itself. Each step is weighted by
//! the importance-sampling ratio ρ, how much likelier π is than b to have done the same. The critic must learn
//! what π is worth from states that b visits, where temporal differences may diverge; GTD descends a true
//! gradient, and its second weights w, an estimate of δ by linear regression, cost no more than v itself.
//!
//! ```text
//! maximised   J(u) = Σ_s d_b(s) V_π(s)              the states are the behaviour's, the values π's
//! ascended    g(u) = E_b[ ρ ∇ln π_u(a|s) δ^λ ]      which leaves out how V_π(s') changes with u: at fixed
//!                                                   points in tables the same (the paper's theorem 2),
//!                                                   else maybe wrong: Imani et al. 2018, arXiv:1811.09013
//! ```
//!
//! With V(s) = vᵀ x(s) and π_u(a|s) ∝ exp(u_aᵀ x(s)), one step from s by a ~ b to s' with reward r is
//!
//! ```text
//! δ   = r + γ(s') vᵀ x(s') − vᵀ x(s),    ρ = π_u(a|s) / b(a|s)          γ(s') = 0 where s' is terminal
//! e_v ← ρ ( x(s) + γ λ e_v )
//! v   ← v + α_v [ δ e_v − γ(s') (1 − λ) (wᵀe_v) x(s') ]
//! w   ← w + α_w [ δ e_v − (wᵀx(s)) x(s) ]
//! e_u ← ρ ( ∇ln π_u(a|s) + γ λ e_u ),    ∂ln π_u(a|s)/∂u_b = (1[a = b] − π_u(b|s)) x(s)
//! u   ← u + α_u δ e_u
//! ```
//!
//! and the traces are 0 when an episode begins. `--critic` has three others, which Baird's counterexample tells
//! apart (Sutton & Barto 2018, section 11.2): `td` has no correction and diverges there, `etd` has an emphasis
//! instead (whose variance is too great on that problem), and `gtd-as-printed` is the next point.
//!
//! ```text
//! etd         F ← ρ₋ γ F + 1,   M = λ + (1 − λ) F,   e_v ← ρ ( M x(s) + γ λ e_v ),   v ← v + α_v δ e_v
//! ```
//!
//! where ρ₋ is the ratio of the step before, and F, the follow-on trace, is 1 when an episode begins: how many
//! discounted visits of s under π the states before it account for.
//!
//! Deviations from the paper: its algorithm 1 prints x(s) in the critic's correction, but the gradient of the
//! projected Bellman error needs x(s'), which is the default. A time limit ends the traces, and the last step
//! bootstraps from the true final state. Episodes of the random behaviour are not cut off at 5,000 steps.
//!
//! Features are tiles: m grids lie over the state space, each shifted against the others, and a state lies in
//! one tile of each; one more feature is always 1. `--tilings 0` takes the observation itself.
//!
//! Run `cargo run -p off_pac`: from 500,000 uniformly random steps on the mountain car, which take 35,000 to reach
//! the goal once, in three seconds a policy that takes fewer than 120 (RLPark's test of Off-PAC, by its first
//! author, demands that with 10 grids of 10 x 10, other step sizes and the goal at 0.6; the best here is 97.7). The
//! curve is the behaviour's; the target policy is measured at the end. Baird's counterexample, the book's weights:
//!
//! ```text
//! cargo run -p off_pac -- --env-id Baird-v0 --total-timesteps 5000 --tilings 0 --behaviour 6,1 --policy-lr 0 \
//!     --initial-preferences 0,100 --initial-values 1,1,1,1,1,1,10,1 --lambda 0 --value-lr 0.005 \
//!     --correction-lr 0.05 --eval-episodes 1 --critic gtd
//! ```

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, Space, Spec, VecEnv, invalid, learner_rng};
use common::run::Run;
use rand::RngExt;
use serde::Serialize;
use std::process::ExitCode;

/// Off-policy actor-critic: linear, with traces, from the steps of a fixed behaviour
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("MountainCarTextbook-v0")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("500000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// How often the behaviour takes each action, next to the others [default: all alike]
    #[arg(long, value_delimiter = ',', value_parser = cli::above_zero)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    behaviour: Vec<f64>,
    /// How the critic learns
    #[arg(long, value_enum, default_value_t = Critic::Gtd)]
    critic: Critic,
    /// Step size of the actor, α_u times one more than the number of tilings
    #[arg(long, default_value_t = 0.3, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the critic, α_v times one more than the number of tilings
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    value_lr: f64,
    /// Step size of the critic's correction, α_w times one more than the number of tilings
    #[arg(long, default_value_t = 0.0001, value_parser = cli::non_negative)]
    correction_lr: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Decay of the traces, λ
    #[arg(long, default_value_t = 0.0, value_parser = cli::unit_interval)]
    lambda: f64,
    /// Grids of tiles, m, best a power of 2; 0 takes the observation itself as features
    #[arg(long, default_value_t = 16)]
    tilings: usize,
    /// Tiles of a grid along each dimension of the observation
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    tiles: usize,
    /// First weights of each action's preference, for each feature the same [default: all 0]
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, value_parser = cli::finite)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    initial_preferences: Vec<f64>,
    /// First weights of the critic, v [default: all 0]
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, value_parser = cli::finite)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    initial_values: Vec<f64>,
    /// Evaluate the target policy's most probable actions instead of the policy itself
    #[arg(long, default_value_t = false)]
    greedy_eval: bool,
}

/// How the critic learns.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Critic {
    /// GTD(λ)
    Gtd,
    /// GTD(λ) with x(s) in place of x(s') in its correction
    GtdAsPrinted,
    /// Emphatic TD(λ)
    Etd,
    /// Off-policy TD(λ)
    Td,
}

/// x: the features that are not 0, `(index, value)`.
type Active = Vec<(usize, f64)>;

/// The features x(s).
struct Features {
    tilings: usize,  // m
    tiles: usize,    // along each dimension
    low: Vec<f64>,   // [observation_dim]
    width: Vec<f64>, // of a tile, [observation_dim]
}

impl Features {
    fn new(spec: &Spec, args: &Args) -> Result<Self> {
        let refuse = |why: String| invalid(format!("--env-id {}: {why}", spec.id));
        let Space::Box { low, high, .. } = &spec.observation_space else {
            return refuse(format!("off_pac needs Box observations, not {}", spec.observation_space));
        };
        if args.tilings > 0 && low.iter().chain(high).any(|bound| !bound.is_finite()) {
            return refuse(format!("--tilings {} need bounded observations; 0 does not", args.tilings));
        }
        let grid_size = (args.tiles + 1).checked_pow(low.len() as u32);
        let all = grid_size.and_then(|grid_size| grid_size.checked_mul(args.tilings));
        if args.tilings > 0 && all.is_none_or(|all| all > 10_000_000) {
            let (numbers, tilings, tiles) = (low.len(), args.tilings, args.tiles);
            return refuse(format!("{numbers} numbers are too many for --tilings {tilings} --tiles {tiles}"));
        }
        let width = |(&low, &high): (&f32, &f32)| (f64::from(high) - f64::from(low)) / args.tiles as f64;
        Ok(Self {
            tilings: args.tilings,
            tiles: args.tiles,
            low: low.iter().map(|&low| low.into()).collect(),
            width: low.iter().zip(high).map(width).collect(),
        })
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

    /// x(s)
    fn of(&self, observation: &[f32]) -> Active {
        if self.tilings == 0 {
            return observation.iter().map(|&number| number.into()).enumerate().collect();
        }
        let tile_of = |tiling: usize| {
            let mut tile = 0; // row-major in its grid
            for (d, &number) in observation.iter().enumerate() {
                // Grid by grid by 2 d + 1 m-th parts of a tile (Sutton & Barto 2018, section 9.5.4).
                let shift = (tiling * (2 * d + 1) % self.tilings) as f64 / self.tilings as f64;
                let position = (f64::from(number) - self.low[d]) / self.width[d] + shift;
                tile = tile * (self.tiles + 1) + (position.max(0.0) as usize).min(self.tiles);
            }
            (tiling * self.grid_size() + tile, 1.0)
        };
        let always = (self.tilings * self.grid_size(), 1.0);
        (0..self.tilings).map(tile_of).chain([always]).collect()
    }
}

/// aᵀb
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

/// a ← a + factor b
fn add(a: &mut [f64], factor: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += factor * b);
}

/// An index, drawn with these probabilities.
fn draw(probabilities: &[f64], rng: &mut Rng) -> usize {
    let mut left: f64 = rng.random();
    let chosen = probabilities.iter().position(|probability| {
        left -= probability;
        left < 0.0
    });
    chosen.unwrap_or(probabilities.len() - 1) // rounding may leave nothing to the last
}

/// What one step of the environment showed, in features.
#[derive(Debug, PartialEq)]
struct Transition {
    features: Active,           // x(s)
    action: usize,              // a
    behaviour_probability: f64, // b(a|s)
    reward: f64,                // r
    next_features: Active,      // x(s'), of an episode's true last state at its end
    terminated: bool,           // nothing lies beyond s'
    truncated: bool,            // the episode was cut off at s'
}

/// Actor, critic, their traces and how they learn.
struct OffPac {
    u: Vec<f64>,            // of the preferences: a row for each action, [num_actions, n]
    v: Vec<f64>,            // of the values, [n]
    w: Vec<f64>,            // of the critic's correction, [n]
    actor_trace: Vec<f64>,  // e_u, [num_actions, n]
    critic_trace: Vec<f64>, // e_v, [n]
    follow_on: f64,         // ρ γ F of the step before, 0 when an episode begins
    behaviour: Vec<f64>,    // b(·|s), in every state the same, [num_actions]
    policy_lr: f64,         // α_u, of one feature
    value_lr: f64,          // α_v, of one feature
    correction_lr: f64,     // α_w, of one feature
    args: Args,
}

impl OffPac {
    fn new(features: &Features, num_actions: usize, args: &Args) -> Result<Self> {
        let n = features.len();
        let given = |flag: &str, numbers: &[f64], wanted: usize, of: &str, default: f64| match numbers.len() {
            0 => Ok(vec![default; wanted]),
            found if found == wanted => Ok(numbers.to_vec()),
            found => invalid(format!("{flag}: {found} numbers, for {wanted} {of}")),
        };
        let behaviour = given("--behaviour", &args.behaviour, num_actions, "actions", 1.0)?;
        let first = given("--initial-preferences", &args.initial_preferences, num_actions, "actions", 0.0)?;
        Ok(Self {
            u: first.iter().flat_map(|&preference| vec![preference; n]).collect(),
            v: given("--initial-values", &args.initial_values, n, "features", 0.0)?,
            w: vec![0.0; n],
            actor_trace: vec![0.0; num_actions * n],
            critic_trace: vec![0.0; n],
            follow_on: 0.0,
            behaviour: behaviour.iter().map(|share| share / behaviour.iter().sum::<f64>()).collect(),
            policy_lr: args.policy_lr / features.active(),
            value_lr: args.value_lr / features.active(),
            correction_lr: args.correction_lr / features.active(),
            args: args.clone(),
        })
    }

    /// π_u(·|s), `[num_actions]`.
    fn policy(&self, features: &Active) -> Vec<f64> {
        let rows = self.u.chunks_exact(self.v.len());
        let preferences: Vec<f64> = rows.map(|row| dot_active(row, features)).collect();
        let largest = preferences.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Less the largest, so that nothing overflows.
        let exponentials: Vec<f64> = preferences.iter().map(|h| (h - largest).exp()).collect();
        let total: f64 = exponentials.iter().sum();
        exponentials.iter().map(|e| e / total).collect()
    }

    /// a ~ π_u(·|s)
    fn act(&self, features: &Active, rng: &mut Rng) -> usize {
        draw(&self.policy(features), rng)
    }

    /// The target policy's most probable action, the first of several.
    fn act_greedily(&self, features: &Active) -> usize {
        let policy = self.policy(features);
        (0..policy.len()).rev().max_by(|&a, &b| policy[a].total_cmp(&policy[b])).unwrap_or_default()
    }

    /// γ(s')
    fn next_discount(&self, step: &Transition) -> f64 {
        // Easy to miss and fatal: nothing lies beyond a terminal state; beyond a time limit there does.
        if step.terminated { 0.0 } else { self.args.gamma }
    }

    /// δ = r + γ(s') vᵀ x(s') − vᵀ x(s)
    fn td_error(&self, step: &Transition) -> f64 {
        let next_value = dot_active(&self.v, &step.next_features);
        step.reward + self.next_discount(step) * next_value - dot_active(&self.v, &step.features)
    }

    /// One step of v and w; u stays as it is.
    fn update_critic(&mut self, step: &Transition, ratio: f64, td_error: f64) {
        let (x, gamma, lambda) = (&step.features, self.args.gamma, self.args.lambda);
        // F ← ρ₋ γ F + 1,  M = λ + (1 − λ) F
        let follow_on_trace = self.follow_on + 1.0;
        self.follow_on = ratio * gamma * follow_on_trace;
        let emphasis =
            if self.args.critic == Critic::Etd { lambda + (1.0 - lambda) * follow_on_trace } else { 1.0 };
        // e_v ← ρ ( M x(s) + γ λ e_v ),  where M = 1 but for emphatic TD
        self.critic_trace.iter_mut().for_each(|e| *e *= ratio * gamma * lambda);
        add_active(&mut self.critic_trace, ratio * emphasis, x);
        // v ← v + α_v [ δ e_v − γ(s') (1 − λ) (wᵀe_v) x(s') ]
        add(&mut self.v, self.value_lr * td_error, &self.critic_trace);
        let correction = self.next_discount(step) * (1.0 - lambda) * dot(&self.w, &self.critic_trace);
        match self.args.critic {
            Critic::Gtd => add_active(&mut self.v, -self.value_lr * correction, &step.next_features),
            Critic::GtdAsPrinted => add_active(&mut self.v, -self.value_lr * correction, x),
            Critic::Etd | Critic::Td => return, // w is not needed
        }
        // w ← w + α_w [ δ e_v − (wᵀx(s)) x(s) ]
        let predicted = dot_active(&self.w, x);
        add(&mut self.w, self.correction_lr * td_error, &self.critic_trace);
        add_active(&mut self.w, -self.correction_lr * predicted, x);
    }

    /// One step of u; v and w stay as they are.
    fn update_actor(&mut self, step: &Transition, policy: &[f64], ratio: f64, td_error: f64) {
        // e_u ← ρ ( ∇ln π_u(a|s) + γ λ e_u ),  ∂ln π_u(a|s)/∂u_b = (1[a = b] − π_u(b|s)) x(s)
        let decay = ratio * self.args.gamma * self.args.lambda;
        self.actor_trace.iter_mut().for_each(|e| *e *= decay);
        for (b, trace) in self.actor_trace.chunks_exact_mut(self.v.len()).enumerate() {
            let score = f64::from(u8::from(b == step.action)) - policy[b];
            add_active(trace, ratio * score, &step.features);
        }
        // u ← u + α_u δ e_u
        add(&mut self.u, self.policy_lr * td_error, &self.actor_trace);
    }

    /// One step of all. Returns δ and ρ.
    fn update(&mut self, step: &Transition) -> (f64, f64) {
        // Easy to miss: critic and actor see the same ρ and δ, from before either has moved.
        let policy = self.policy(&step.features);
        let ratio = policy[step.action] / step.behaviour_probability; // ρ = π_u(a|s) / b(a|s)
        let td_error = self.td_error(step);
        self.update_critic(step, ratio, td_error);
        self.update_actor(step, &policy, ratio, td_error);
        if step.terminated || step.truncated {
            // The next step begins an episode: nothing before it led there.
            self.critic_trace.fill(0.0);
            self.actor_trace.fill(0.0);
            self.follow_on = 0.0;
        }
        (td_error, ratio)
    }
}

/// A step of the behaviour in `envs`, a single environment.
fn interact(off_pac: &OffPac, envs: &mut VecEnv, features: &Features, rng: &mut Rng) -> Result<Transition> {
    let x = features.of(envs.observations());
    let action = draw(&off_pac.behaviour, rng);
    envs.step(&[action as u32])?;
    Ok(Transition {
        features: x,
        action,
        behaviour_probability: off_pac.behaviour[action],
        reward: f64::from(envs.rewards()[0]),
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
        next_features: features.of(envs.final_observations()),
        terminated: envs.terminated()[0],
        truncated: envs.truncated()[0],
    })
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("off_pac")?;
    let features = Features::new(envs.spec(), &args)?;
    let mut off_pac = OffPac::new(&features, num_actions, &args)?;
    let mut rng = learner_rng(args.run.seed);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("u", &mut off_pac.u),
                ("v", &mut off_pac.v),
                ("w", &mut off_pac.w),
                ("actor_trace", &mut off_pac.actor_trace),
                ("critic_trace", &mut off_pac.critic_trace),
                ("follow_on", &mut off_pac.follow_on),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        let step = interact(&off_pac, &mut envs, &features, &mut rng)?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;

        // Learn from the step, once.
        let (td_error, ratio) = off_pac.update(&step);
        if global_step.is_multiple_of(100) {
            let entropy = off_pac.policy(&step.features).iter().map(|p| -p * p.max(1e-300).ln()).sum::<f64>();
            run.log(global_step, "losses/td_loss", td_error.powi(2))?;
            run.log(global_step, "losses/values", dot_active(&off_pac.v, &step.features))?;
            run.log(global_step, "losses/weight_norm", dot(&off_pac.v, &off_pac.v).sqrt())?; // ‖v‖
            run.log(global_step, "losses/ratio", ratio)?;
            run.log(global_step, "losses/entropy", entropy)?;
        }
    }

    run.save_or_load_model(&mut [("u", &mut off_pac.u as _), ("v", &mut off_pac.v as _)])?;
    rng = learner_rng(args.run.seed); // from its start, so that `--eval-only` draws the same actions
    run.evaluate(|observations| {
        let mut act = |observation: &[f32]| match args.greedy_eval {
            true => off_pac.act_greedily(&features.of(observation)) as u32,
            false => off_pac.act(&features.of(observation), &mut rng) as u32,
        };
        Ok(observations.chunks_exact(observation_dim).map(&mut act).collect())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
