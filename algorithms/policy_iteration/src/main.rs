//! # Policy iteration: dynamic programming from a known model
//!
//! Bellman (1957), *Dynamic Programming*; Howard (1960), *Dynamic Programming and Markov
//! Processes*; in the form of Sutton & Barto (2018), *Reinforcement Learning*, chapter 4. The
//! truncated evaluation between the two extremes is Puterman & Shin (1978), "Modified policy
//! iteration algorithms for discounted Markov decision problems".
//!
//! Where the transition probabilities are known, nothing needs to be tried: the Bellman equation
//! says what a policy is worth, and repeating it as an assignment computes that. Acting greedily on
//! those values gives a policy at least as good, and better wherever it is not yet optimal. The two
//! steps, evaluation and improvement, chase each other until neither changes anything, and then
//! both the values and the policy are optimal.
//!
//! With the model `p(s',r|s,a)` and `V(s') = 0` where the episode terminated:
//!
//! ```text
//! q(s,a) = Σ_{s',r} p(s',r|s,a) [ r + γ V(s') ]                 the value of an action
//!
//! V(s) ← Σ_a π(a|s) q(s,a)            for all s, repeatedly      policy evaluation
//! π(s) ← argmax_a q(s,a)              for all s                  policy improvement
//! ```
//!
//! It is the fixed point of both that is optimal: `V*(s) = max_a q*(s,a)`, Bellman's optimality
//! equation, and `max_s |max_a q(s,a) − V(s)|` measures how far from it one is.
//!
//! How many sweeps an evaluation takes is free, and that is generalised policy iteration:
//!
//! ```text
//! --evaluation-sweeps 0    until V has settled to within --theta: policy iteration
//! --evaluation-sweeps k    k sweeps, settled or not: modified policy iteration
//! --evaluation-sweeps 1    V(s) ← max_a q(s,a) in effect: value iteration
//! ```
//!
//! A "timestep" of this algorithm, in which nobody steps, is one sweep through all the states.
//!
//! Run `cargo run -p policy_iteration`: V*(s₀) = 0.542026 on FrozenLake-v1 at γ = 0.99 in less than
//! a second, and a policy that reaches the goal within the 100 steps of an episode with probability
//! 0.740 (both computed exactly; Gymnasium notes an optimum of 0.74).

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{self, Episode, Outcome, TransitionModel, invalid};
use common::run::Run;
use serde::Serialize;
use std::process::ExitCode;

/// Policy iteration, value iteration and everything between, from the environment's own model
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("FrozenLake-v1")))]
#[command(mut_arg("total_timesteps", |arg| {
    arg.default_value("1000000").help("Sweeps through the states at most; fewer if the policy is optimal before")
}))]
#[command(mut_arg("checkpoint_every", |arg| {
    arg.help("Sweeps between checkpoints; 0 writes one only when the run is interrupted [default: every minute]")
}))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Discount, γ. With 1, a policy whose episodes never end may have no finite value
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Accuracy, θ: an evaluation ends when a sweep changes no value by as much
    #[arg(long, default_value_t = 1e-10, value_parser = cli::above_zero)]
    theta: f64,
    /// Sweeps in one evaluation at most: 0 for as many as --theta asks for, 1 for value iteration
    #[arg(long, default_value_t = 0)]
    evaluation_sweeps: usize,
}

/// π(a|s) as a table.
struct Policy {
    probabilities: Vec<f64>, // [num_states, num_actions]
    num_actions: usize,
}

impl Policy {
    /// Every action equally likely. From most states this policy ends its episodes sooner or later,
    /// so that it has finite values even without a discount; "always action 0" may go round in
    /// circles for ever.
    fn uniform(num_states: usize, num_actions: usize) -> Self {
        Self { probabilities: vec![1.0 / num_actions as f64; num_states * num_actions], num_actions }
    }

    /// π(·|s), `[num_actions]`.
    fn row(&self, state: usize) -> &[f64] {
        &self.probabilities[state * self.num_actions..][..self.num_actions]
    }

    /// The action of a deterministic policy, if it is deterministic in `state`.
    fn action(&self, state: usize) -> Option<usize> {
        self.row(state).iter().position(|&probability| probability == 1.0)
    }

    /// Makes the policy take `action` in `state`.
    fn set_action(&mut self, state: usize, action: usize) {
        let row = &mut self.probabilities[state * self.num_actions..][..self.num_actions];
        row.fill(0.0);
        row[action] = 1.0;
    }
}

/// q(s,a), from the possible results of action a in state s and V `[num_states]`.
fn action_value(outcomes: &[Outcome], values: &[f64], gamma: f64) -> f64 {
    let mut action_value = 0.0;
    for outcome in outcomes {
        // Easy to miss and fatal: no value lies beyond the end of an episode.
        let next_value = if outcome.terminated { 0.0 } else { values[outcome.next_state] };
        // q(s,a) = Σ_{s',r} p(s',r|s,a) [ r + γ V(s') ]
        action_value += outcome.probability * (outcome.reward + gamma * next_value);
    }
    action_value
}

/// One sweep of policy evaluation over V `[num_states]`; returns the largest change of a value.
///
/// The new values take the old ones' place at once, so that later states of the same sweep profit
/// from them: it converges to the same V as a sweep from a copy, usually sooner, and in half the
/// memory (Sutton & Barto, section 4.1).
fn evaluation_sweep(model: &TransitionModel, policy: &Policy, values: &mut [f64], gamma: f64) -> f64 {
    let mut largest_change: f64 = 0.0;
    for (state, actions) in model.outcomes.iter().enumerate() {
        let mut value = 0.0;
        for (outcomes, &probability) in actions.iter().zip(policy.row(state)) {
            if probability > 0.0 {
                // V(s) ← Σ_a π(a|s) q(s,a)
                value += probability * action_value(outcomes, values, gamma);
            }
        }
        largest_change = largest_change.max((value - values[state]).abs());
        values[state] = value;
    }
    largest_change
}

/// What one improvement did.
struct Improvement {
    /// States in which the policy is another now.
    changes: usize,
    /// Distance from Bellman's optimality equation, max_s |max_a q(s,a) − V(s)|.
    bellman_residual: f64,
}

/// Makes the policy greedy on V `[num_states]`.
///
/// An action gives way only to one that is better by more than `theta`. Among actions that are
/// equally good, rounding would otherwise choose another each time, and the policy would never be
/// stable (Sutton & Barto, exercise 4.4).
fn improve(
    model: &TransitionModel,
    policy: &mut Policy,
    values: &[f64],
    gamma: f64,
    theta: f64,
) -> Improvement {
    let mut improvement = Improvement { changes: 0, bellman_residual: 0.0 };
    for (state, actions) in model.outcomes.iter().enumerate() {
        let current = policy.action(state);
        let mut current_value = f64::NEG_INFINITY;
        let (mut best, mut best_value) = (0, f64::NEG_INFINITY);
        // π(s) ← argmax_a q(s,a)
        for (action, outcomes) in actions.iter().enumerate() {
            let value = action_value(outcomes, values, gamma);
            if value > best_value {
                (best, best_value) = (action, value);
            }
            if current == Some(action) {
                current_value = value;
            }
        }
        if best_value > current_value + theta {
            policy.set_action(state, best);
            improvement.changes += 1;
        }
        improvement.bellman_residual = improvement.bellman_residual.max((best_value - values[state]).abs());
    }
    improvement
}

/// The exact expectation of an episode's undiscounted return and of its length, for `policy` and
/// episodes cut off after `max_steps`: what the mean over infinitely many episodes would be.
///
/// It pushes the distribution of the state through the model, d₀ being that of the first state:
///
/// ```text
/// d_{t+1}(s') = Σ_s d_t(s) Σ_a π(a|s) p(s', not terminated | s,a)
/// ```
fn expected_episode(model: &TransitionModel, policy: &Policy, max_steps: u32) -> (f64, f64) {
    let mut distribution = model.initial.clone(); // d_t, [num_states]
    let mut next_distribution = vec![0.0; distribution.len()];
    let (mut expected_return, mut expected_length) = (0.0, 0.0);
    for _ in 0..max_steps {
        let running: f64 = distribution.iter().sum(); // probability that the episode still goes on
        if running < 1e-12 {
            break;
        }
        expected_length += running;
        for (state, actions) in model.outcomes.iter().enumerate() {
            if distribution[state] == 0.0 {
                continue;
            }
            for (outcomes, &action_probability) in actions.iter().zip(policy.row(state)) {
                if action_probability == 0.0 {
                    continue;
                }
                for outcome in outcomes {
                    let probability = distribution[state] * action_probability * outcome.probability;
                    expected_return += probability * outcome.reward;
                    if !outcome.terminated {
                        next_distribution[outcome.next_state] += probability;
                    }
                }
            }
        }
        std::mem::swap(&mut distribution, &mut next_distribution);
        next_distribution.fill(0.0);
    }
    (expected_return, expected_length)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let env = envs::make(&args.run.env_id)?;
    let Some(model) = env.model() else {
        let has_model = |entry: &envs::Registration| (entry.make)().is_ok_and(|env| env.model().is_some());
        let known: Vec<&str> = envs::toy_text::registered()
            .iter()
            .filter(|entry| has_model(entry))
            .map(|entry| entry.id)
            .collect();
        return invalid(format!(
            "--env-id {}: policy_iteration needs a transition model, this environment has none; those that do: {}",
            args.run.env_id,
            known.join(", ")
        ));
    };
    let (num_states, num_actions) = env.spec().discrete_to_discrete("policy_iteration")?;
    let max_episode_steps = env.spec().episode_limit();
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut policy = Policy::uniform(num_states, num_actions);
    let mut values = vec![0.0; num_states]; // V, [num_states]
    let mut changes = num_states; // states in which the last improvement changed the policy
    let mut optimal = false;

    let mut global_step = 0; // sweeps so far
    while global_step < run.total_timesteps && !optimal {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("policy", &mut policy.probabilities),
                ("values", &mut values),
                ("changes", &mut changes),
                ("optimal", &mut optimal),
            ],
        )?;

        // Nothing is sampled here; the curve shows what episodes of this policy are worth on average.
        if changes > 0 {
            let (episodic_return, length) = expected_episode(model, &policy, max_episode_steps);
            run.episodes(global_step, &[Episode { env: 0, episodic_return, length: length.round() as u32 }])?;
        }

        // Evaluate: bring V towards the values of π.
        let sweeps = if args.evaluation_sweeps == 0 { usize::MAX } else { args.evaluation_sweeps };
        let mut settled = false;
        for _ in 0..sweeps.min(run.total_timesteps - global_step) {
            let largest_change = evaluation_sweep(model, &policy, &mut values, args.gamma);
            global_step += 1;
            settled = largest_change < args.theta;
            if settled {
                break;
            }
        }

        // Improve: make π greedy on V. Once neither moves, both are optimal.
        let improvement = improve(model, &mut policy, &values, args.gamma, args.theta);
        changes = improvement.changes;
        optimal = settled && changes == 0;

        let value_start: f64 = model.initial.iter().zip(&values).map(|(p, value)| p * value).sum();
        run.log(global_step, "charts/value_start", value_start)?;
        run.log(global_step, "charts/policy_changes", changes as f64)?;
        run.log(global_step, "losses/bellman_residual", improvement.bellman_residual)?;
    }
    if !optimal && !run.eval_only() {
        eprintln!(
            "not optimal after {global_step} sweeps: allow more with --total-timesteps, or discount with --gamma below 1"
        );
    }

    run.save_or_load_model(&mut [("values", &mut values as _), ("policy", &mut policy.probabilities as _)])?;
    run.evaluate(|observations| {
        Ok(observations.iter().map(|&state| policy.action(state as usize).unwrap_or(0) as u32).collect())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
