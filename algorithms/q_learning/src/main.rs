//! # Q-learning and Double Q-learning, as tables
//!
//! Watkins (1989), *Learning from Delayed Rewards*, Cambridge; Watkins & Dayan (1992),
//! "Q-learning"; van Hasselt (2010), "Double Q-learning", NeurIPS 23. Sutton & Barto (2018),
//! *Reinforcement Learning*, sections 6.5 and 6.7.
//!
//! The value of an action is its reward plus the value of the best action in the state that it
//! leads to, so every single step taken is an estimate of one entry of the table of values, made
//! from other entries. Moving the entry a little towards that estimate, over and over, finds the
//! optimal values whatever the agent does meanwhile, as long as it keeps trying every action: it may
//! explore and still learn what acting without exploration would be worth. The largest of several
//! noisy estimates is too large on average, though, and Double Q-learning mends that with a second
//! table: one table chooses the best action, the other, whose errors are independent, says what it
//! is worth.
//!
//! Q-learning, for a step from state s by action a to s' with reward r:
//!
//! ```text
//! δ = r + γ max_{a'} Q(s',a') − Q(s,a)              without the middle term if s' is terminal
//! Q(s,a) ← Q(s,a) + α δ
//! ```
//!
//! Double Q-learning (`--double`) acts on Q₁ + Q₂ and updates one of the two, by the toss of a coin:
//!
//! ```text
//! δ = r + γ Q₂(s', argmax_{a'} Q₁(s',a')) − Q₁(s,a)     or the same with 1 and 2 exchanged
//! Q₁(s,a) ← Q₁(s,a) + α δ
//! ```
//!
//! Actions are ε-greedy: the best one, or with probability ε one drawn from all.
//!
//! Run `cargo run -p q_learning`: a greedy return of −13 on CliffWalking-v1, the shortest way along
//! the cliff's edge, in less than a second; while it explores (ε = 0.1) it falls off now and then
//! and collects about −50 an episode (Sutton & Barto 2018, example 6.6). With `--double` it long
//! keeps a row or two away from the edge (−17): each table has to learn of the cliff by itself.
//!
//! ```text
//! --env-id Taxi-v4 --total-timesteps 500000                              about 7.9, the optimum
//! --env-id FrozenLake-v1 --total-timesteps 200000 --gamma 0.99 --start-e 1 --learning-rate 0.05
//!                                                                        about 0.74, the optimum
//! ```
//!
//! On slippery ground a small α is needed: the last few steps alone are a poor average.

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, rng};
use common::run::Run;
use rand::RngExt;
use serde::Serialize;
use std::process::ExitCode;

/// Q-learning and Double Q-learning, for environments with few states and actions
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CliffWalking-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("20000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Stop after this many episodes, or after --total-timesteps if that comes first [default: no
    /// limit]
    #[arg(long, value_parser = cli::positive)]
    #[serde(skip_serializing_if = "Option::is_none")]
    total_episodes: Option<usize>,
    /// Keep two tables, one to choose the best next action and one to value it
    #[arg(long, default_value_t = false)]
    double: bool,
    /// Step size, α
    #[arg(long, default_value_t = 0.5, value_parser = cli::unit_interval)]
    learning_rate: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Probability of a random action at the beginning, ε
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    start_e: f64,
    /// Probability of a random action once exploration has been annealed
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    end_e: f64,
    /// Fraction of --total-timesteps over which ε goes from --start-e to --end-e
    #[arg(long, default_value_t = 0.5, value_parser = cli::unit_interval)]
    exploration_fraction: f64,
}

/// The index in `0..n` with the largest value, one drawn from the largest if there are several.
///
/// Easy to overlook: a new table is zero everywhere. Were the first of equal actions chosen, the
/// agent would start by doing nothing but action 0, and without rewards on the way never leave it.
fn random_argmax(n: usize, value: impl Fn(usize) -> f64, rng: &mut Rng) -> usize {
    let (mut best, mut best_value, mut ties) = (0, f64::NEG_INFINITY, 0);
    for index in 0..n {
        let value = value(index);
        if value > best_value {
            (best, best_value, ties) = (index, value, 1);
        } else if value == best_value {
            // The k-th of equal ones takes over with probability 1/k: in the end all are as likely.
            ties += 1;
            if rng.random_range(0..ties) == 0 {
                best = index;
            }
        }
    }
    best
}

/// One step of the environment.
struct Transition {
    state: usize,
    action: usize,
    reward: f64,
    next_state: usize,
    terminated: bool, // not set by a time limit: value lies beyond that
}

impl Transition {
    /// The step that `envs`, one environment, just took by `action` from `state`.
    fn last(envs: &VecEnv, state: usize, action: usize) -> Self {
        Self {
            state,
            action,
            reward: f64::from(envs.rewards()[0]),
            // Easy to miss and fatal: `observations` may be those of the next episode already.
            next_state: envs.final_observations()[0] as usize,
            terminated: envs.terminated()[0],
        }
    }
}

/// Q, or with Double Q-learning Q₁ and Q₂.
struct ActionValues {
    values: Vec<f64>, // [num_tables, num_states, num_actions]
    num_tables: usize,
    num_states: usize,
    num_actions: usize,
}

impl ActionValues {
    fn new(num_states: usize, num_actions: usize, double: bool) -> Self {
        let num_tables = if double { 2 } else { 1 };
        Self { values: vec![0.0; num_tables * num_states * num_actions], num_tables, num_states, num_actions }
    }

    /// Q_table(s,·), `[num_actions]`.
    fn row(&self, table: usize, state: usize) -> &[f64] {
        &self.values[(table * self.num_states + state) * self.num_actions..][..self.num_actions]
    }

    /// Q(s,a), or Q₁(s,a) + Q₂(s,a).
    fn value(&self, state: usize, action: usize) -> f64 {
        (0..self.num_tables).map(|table| self.row(table, state)[action]).sum()
    }

    /// The ε-greedy action.
    fn act(&self, state: usize, epsilon: f64, rng: &mut Rng) -> usize {
        if rng.random::<f64>() < epsilon {
            rng.random_range(0..self.num_actions)
        } else {
            random_argmax(self.num_actions, |action| self.value(state, action), rng)
        }
    }

    /// The best action, the first of equal ones: what the evaluation plays.
    fn greedy(&self, state: usize) -> usize {
        let is_better = |action, best| self.value(state, action) > self.value(state, best);
        (0..self.num_actions).fold(0, |best, action| if is_better(action, best) { action } else { best })
    }

    /// r + γ Q_B(s', argmax_{a'} Q_A(s',a')), where table A is the `chooser` and B the `valuer`. If
    /// they are the same table, that is Q-learning's r + γ max_{a'} Q(s',a').
    fn td_target(&self, step: &Transition, gamma: f64, chooser: usize, valuer: usize, rng: &mut Rng) -> f64 {
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        if step.terminated {
            return step.reward;
        }
        let choices = self.row(chooser, step.next_state);
        let next_action = random_argmax(self.num_actions, |action| choices[action], rng);
        // r + γ Q_B(s', argmax_{a'} Q_A(s',a'))
        step.reward + gamma * self.row(valuer, step.next_state)[next_action]
    }

    /// Learns from one step; returns δ.
    fn update(&mut self, step: &Transition, learning_rate: f64, gamma: f64, rng: &mut Rng) -> f64 {
        // Which of two tables learns is left to chance: each must see steps that the other does not,
        // or their errors would be the same.
        let (updated, valuer) = match self.num_tables {
            1 => (0, 0),
            _ if rng.random() => (0, 1),
            _ => (1, 0),
        };
        let td_target = self.td_target(step, gamma, updated, valuer, rng);
        let entry = (updated * self.num_states + step.state) * self.num_actions + step.action;
        // δ = r + γ Q_B(s', argmax_{a'} Q_A(s',a')) − Q_A(s,a)
        let td_error = td_target - self.values[entry];
        // Q_A(s,a) ← Q_A(s,a) + α δ
        self.values[entry] += learning_rate * td_error;
        td_error
    }
}

/// ε, which falls linearly from `start` to `end` over `duration` steps and then stays.
fn epsilon(start: f64, end: f64, duration: f64, step: usize) -> f64 {
    start + (end - start) * (step as f64 / duration.max(1.0)).min(1.0)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (num_states, num_actions) = envs.spec().discrete_to_discrete("q_learning")?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = rng(args.run.seed, u64::MAX);
    let mut q = ActionValues::new(num_states, num_actions, args.double);
    let exploration_duration = args.exploration_fraction * run.total_timesteps as f64;
    let total_episodes = args.total_episodes.unwrap_or(usize::MAX);

    let mut episodes = 0;
    let mut global_step = 0;
    while global_step < run.total_timesteps && episodes < total_episodes {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("action_values", &mut q.values),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("episodes", &mut episodes),
            ],
        )?;

        // Act. A Discrete observation is its index.
        let epsilon = epsilon(args.start_e, args.end_e, exploration_duration, global_step);
        let state = envs.observations()[0] as usize;
        let action = q.act(state, epsilon, &mut rng);
        envs.step(&[action as u32])?;
        global_step += 1;
        episodes += envs.episodes().len();
        run.episodes(global_step, envs.episodes())?;

        // Learn.
        let step = Transition::last(&envs, state, action);
        let td_error = q.update(&step, args.learning_rate, args.gamma, &mut rng);

        if global_step.is_multiple_of(100) {
            run.log(global_step, "losses/td_loss", td_error.powi(2))?;
            run.log(global_step, "losses/q_values", q.value(state, action))?;
            run.log(global_step, "charts/epsilon", epsilon)?;
        }
    }

    run.save_or_load_model(&mut q.values)?;
    run.evaluate(|observations| {
        Ok(observations.iter().map(|&state| q.greedy(state as usize) as u32).collect())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
