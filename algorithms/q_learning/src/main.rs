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
//! δ = r + γ (1 − terminated) max_{a'} Q(s',a') − Q(s,a)
//! Q(s,a) ← Q(s,a) + α δ
//! ```
//!
//! Double Q-learning (`--double`) acts on Q₁ + Q₂ and updates one of the two, by the toss of a coin:
//!
//! ```text
//! δ = r + γ (1 − terminated) Q₂(s', argmax_{a'} Q₁(s',a')) − Q₁(s,a)
//! Q₁(s,a) ← Q₁(s,a) + α δ                     or both lines with 1 and 2 exchanged
//! ```
//!
//! Actions are ε-greedy: the best one, or with probability ε one drawn from all. An episode that a
//! time limit merely truncates has not terminated: its last state still has a value.
//!
//! Deviations: α is constant, where the proof of convergence asks for one that falls to zero (the
//! book's examples have it constant too); ε can fall during a run.
//!
//! Run `cargo run -p q_learning`: a greedy return of −13 on CliffWalking-v1, the shortest way along
//! the cliff's edge, in less than a second; while it explores (ε = 0.1) it falls off now and then
//! and collects about −50 an episode (Sutton & Barto 2018, example 6.6). With `--double` it long
//! keeps a row or two away from the edge (−17): each table has to learn of the cliff by itself.
//!
//! ```text
//! --env-id Taxi-v4 --total-timesteps 500000                              about 7.93, the optimum
//! --env-id FrozenLake-v1 --total-timesteps 200000 --gamma 0.99 --start-e 1 --learning-rate 0.05
//!                                                                        about 0.74, the optimum
//! ```
//!
//! Both optima are computed from the models, as `value_iteration` does. On slippery ground a small α is
//! needed: the last few steps alone are a poor average.
//!
//! What the largest of noisy estimates does to a choice is shown by example 6.7, figure 6.5 of the book:
//!
//! ```text
//! --env-id MaximizationBias-v0 --learning-rate 0.1 --total-episodes 300           12.1 % go left in the
//! --env-id MaximizationBias-v0 --learning-rate 0.1 --total-episodes 300 --double  end, with --double 6.7 %
//! ```

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{self, Rng, VecEnv, learner_rng};
use common::run::Run;
use rand::RngExt;
use serde::Serialize;
use std::ops::Range;
use std::process::ExitCode;

/// Q-learning and Double Q-learning, for environments with few states and actions
#[derive(Parser, Serialize, Debug, Clone)]
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

/// What one step of the environment showed.
struct Transition {
    state: usize,      // s
    action: usize,     // a
    reward: f64,       // r
    next_state: usize, // s', an episode's true last one at its end
    terminated: bool,  // nothing lies beyond s'; false where a time limit merely truncates
}

impl Transition {
    /// The step that `envs`, a single environment, has just made from `state` by `action`.
    fn last(state: usize, action: usize, envs: &VecEnv) -> Self {
        Self {
            state,
            action,
            reward: f64::from(envs.rewards()[0]),
            // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
            next_state: envs.final_observations()[0] as usize,
            terminated: envs.terminated()[0],
        }
    }
}

/// The index of the largest value, any of them if there are several.
///
/// Easy to miss: a new table is zero everywhere. Were the first of equal actions chosen, the agent
/// would begin by doing nothing but action 0, and without rewards on the way never leave it.
fn argmax(values: &[f64], rng: &mut Rng) -> usize {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let best: Vec<usize> = (0..values.len()).filter(|&i| values[i] == max).collect();
    best[rng.random_range(0..best.len())]
}

/// The tables and how they learn.
struct QLearning {
    q1: Vec<f64>, // Q, or Q₁ of Double Q-learning, [num_states, num_actions]
    q2: Vec<f64>, // Q₂ of Double Q-learning, otherwise 0 for ever, [num_states, num_actions]
    num_actions: usize,
    actions: Vec<usize>, // how many there are in each state, the first so many of all, [num_states]
    args: Args,
}

impl QLearning {
    fn new(num_states: usize, num_actions: usize, args: &Args) -> Self {
        let zeros = || vec![0.0; num_states * num_actions];
        let actions = vec![num_actions; num_states];
        Self { q1: zeros(), q2: zeros(), num_actions, actions, args: args.clone() }
    }

    /// Where Q(s,·) lies in a table, `actions[s]` entries.
    fn row(&self, state: usize) -> Range<usize> {
        let start = state * self.num_actions;
        start..start + self.actions[state]
    }

    /// Q(s,·), or Q₁(s,·) + Q₂(s,·), `[actions[s]]`.
    fn values(&self, state: usize) -> Vec<f64> {
        self.row(state).map(|entry| self.q1[entry] + self.q2[entry]).collect()
    }

    /// The best action, or with probability ε one drawn from all.
    fn act(&self, state: usize, epsilon: f64, rng: &mut Rng) -> usize {
        if rng.random::<f64>() < epsilon {
            rng.random_range(0..self.actions[state])
        } else {
            argmax(&self.values(state), rng)
        }
    }

    /// The best action, the first of equal ones.
    fn act_greedily(&self, state: usize) -> usize {
        let values = self.values(state);
        let mut best = 0;
        for (action, &value) in values.iter().enumerate() {
            if value > values[best] {
                best = action;
            }
        }
        best
    }

    /// Q-learning from one step. Returns δ.
    fn update(&mut self, step: &Transition) -> f64 {
        let entry = step.state * self.num_actions + step.action; // of Q(s,a)
        // max_{a'} Q(s',a'). Easy to miss and fatal: nothing lies beyond a terminal state.
        let next_values = &self.q1[self.row(step.next_state)];
        let max = next_values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let next_value = if step.terminated { 0.0 } else { max };
        // δ = r + γ (1 − terminated) max_{a'} Q(s',a') − Q(s,a)
        let td_error = step.reward + self.args.gamma * next_value - self.q1[entry];
        // Q(s,a) ← Q(s,a) + α δ
        self.q1[entry] += self.args.learning_rate * td_error;
        td_error
    }

    /// Double Q-learning from one step: Q₁ learns on `heads`, Q₂ on tails. Returns δ.
    ///
    /// The coin matters: each table must see steps that the other does not, or their errors would be
    /// the same.
    fn update_double(&mut self, step: &Transition, heads: bool, rng: &mut Rng) -> f64 {
        let entry = step.state * self.num_actions + step.action; // of Q(s,a)
        let next_row = self.row(step.next_state); // of Q(s',·)
        // Below, Q₁ is the one that learns.
        let (q1, q2) = if heads { (&mut self.q1, &self.q2) } else { (&mut self.q2, &self.q1) };
        // Q₂(s', argmax_{a'} Q₁(s',a'))
        let next_action = argmax(&q1[next_row.clone()], rng);
        let next_value = if step.terminated { 0.0 } else { q2[next_row][next_action] };
        // δ = r + γ (1 − terminated) Q₂(s', argmax_{a'} Q₁(s',a')) − Q₁(s,a)
        let td_error = step.reward + self.args.gamma * next_value - q1[entry];
        // Q₁(s,a) ← Q₁(s,a) + α δ
        q1[entry] += self.args.learning_rate * td_error;
        td_error
    }
}

/// ε after `step` steps: from `start` to `end` in a straight line over `duration` steps, then `end`.
fn linear_schedule(start: f64, end: f64, duration: f64, step: usize) -> f64 {
    let progress = (step as f64 / duration.max(1.0)).min(1.0);
    start + (end - start) * progress
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (num_states, num_actions) = envs.spec().discrete_to_discrete("q_learning")?;
    let mut rng = learner_rng(args.run.seed);
    let mut q_learning = QLearning::new(num_states, num_actions, &args);
    if let Some(model) = envs::make(&args.run.env_id)?.model() {
        // Some states may have fewer actions than others. That is all that is asked of the model.
        q_learning.actions = model.outcomes.iter().map(Vec::len).collect();
    }
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let total_episodes = args.total_episodes.unwrap_or(usize::MAX);
    let mut episodes = 0;
    let mut global_step = 0;
    while global_step < run.total_timesteps && episodes < total_episodes {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("q1", &mut q_learning.q1),
                ("q2", &mut q_learning.q2),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("episodes", &mut episodes),
            ],
        )?;

        // Act ε-greedily. The observation of a state is its index.
        let duration = args.exploration_fraction * run.total_timesteps as f64;
        let epsilon = linear_schedule(args.start_e, args.end_e, duration, global_step);
        let state = envs.observations()[0] as usize;
        let action = q_learning.act(state, epsilon, &mut rng);
        envs.step(&[action as u32])?;
        global_step += 1;
        episodes += envs.episodes().len();
        run.episodes(global_step, envs.episodes())?;

        // Learn from the step, once.
        let step = Transition::last(state, action, &envs);
        let td_error = if args.double {
            q_learning.update_double(&step, rng.random(), &mut rng)
        } else {
            q_learning.update(&step)
        };
        if global_step.is_multiple_of(100) {
            run.log(global_step, "losses/td_loss", td_error.powi(2))?;
            // With two tables `values` is their sum.
            let tables = if args.double { 2.0 } else { 1.0 };
            run.log(global_step, "losses/q_values", q_learning.values(state)[action] / tables)?;
            run.log(global_step, "charts/epsilon", epsilon)?;
        }
    }

    let QLearning { q1, q2, .. } = &mut q_learning;
    run.save_or_load_model(&mut [("q1", q1 as _), ("q2", q2 as _)])?;
    run.evaluate(|observations| {
        Ok(observations.iter().map(|&state| q_learning.act_greedily(state as usize) as u32).collect())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
