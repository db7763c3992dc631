//! # Policy iteration: dynamic programming from a known model
//!
//! Bellman (1957), *Dynamic Programming*; Howard (1960), *Dynamic Programming and Markov
//! Processes*; in the form of Sutton & Barto (2018), *Reinforcement Learning*, chapter 4. The
//! truncated evaluation between the two extremes is Puterman & Shin (1978), "Modified policy
//! iteration algorithms for discounted Markov decision problems".
//!
//! Where the transition probabilities are known, nothing needs to be tried: the Bellman equation
//! says what a policy is worth, and repeating it as an assignment computes that. Acting greedily on
//! those values gives a policy at least as good, and better unless it is optimal already. The two
//! steps, evaluation and improvement, chase each other until neither changes anything.
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
//! What neither changes is optimal: `V*(s) = max_a q*(s,a)`, Bellman's optimality equation, and
//! `max_s |max_a q(s,a) − V(s)|` measures how far from it one is. In numbers that holds up to an
//! accuracy θ: it ends when a sweep has changed no value by θ and no action is better than the
//! policy's by more than θ, and then
//!
//! ```text
//! |V(s) − V*(s)| ≤ (1 + γ) θ / (1 − γ)        for all s; no such bound at γ = 1
//! ```
//!
//! How many sweeps an evaluation takes is free, and that is generalised policy iteration:
//!
//! ```text
//! --evaluation-sweeps 0    until V has settled to within --theta: policy iteration
//! --evaluation-sweeps k    k sweeps, settled or not: modified policy iteration
//! --evaluation-sweeps 1    V(s) ← max_a q(s,a) in effect: value iteration
//! ```
//!
//! A "timestep" of this algorithm, in which nobody steps, is one sweep through all the states. The first
//! policy may be any; with `--initial-action` it always takes that action.
//!
//! Deviations from the book's box: the first policy draws all actions alike, since one action everywhere may
//! never end an episode; an action gives way only to one that is better by more than θ (exercise 4.4), where
//! the box accepts any other; with `--evaluation-sweeps` an evaluation may end before V has settled.
//!
//! Run `cargo run -p policy_iteration`: V*(s₀) = 0.542026 on FrozenLake-v1 at γ = 0.99 in less than
//! a second, and a policy that reaches the goal within the 100 steps of an episode with probability
//! 0.740 (both computed exactly; Gymnasium notes an optimum of 0.74).
//!
//! ```text
//! --env-id Gridworld-v0 --gamma 1 --synchronous --total-timesteps 10   v after ten sweeps, figure 4.1
//! --env-id CarRental-v0 --gamma 0.9 --initial-action 5                 four improvements until it is
//!                                                                      stable, figure 4.2
//! ```

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{self, Episode, TransitionModel, invalid};
use common::run::Run;
use serde::Serialize;
use std::process::ExitCode;

/// Policy iteration, value iteration and everything between, from the environment's own model
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("FrozenLake-v1")))]
#[command(mut_arg("total_timesteps", |arg| {
    arg.default_value("1000000").help("Sweeps through the states at most; fewer if it settles before")
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
    /// Accuracy, θ: an evaluation ends when a sweep changes no value by as much, and an action gives
    /// way only to one that is better by more
    #[arg(long, default_value_t = 1e-10, value_parser = cli::above_zero)]
    theta: f64,
    /// Sweeps in one evaluation at most: 0 for as many as --theta asks for, 1 for value iteration
    #[arg(long, default_value_t = 0)]
    evaluation_sweeps: usize,
    /// Compute all of a sweep's values from those before the sweep
    #[arg(long, default_value_t = false)]
    synchronous: bool,
    /// Begin with the policy that always takes this action [default: any, all equally likely]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    initial_action: Option<usize>,
    /// Stop after this many improvements, or after --total-timesteps if that comes first [default: no
    /// limit]
    #[arg(long, value_parser = cli::positive)]
    #[serde(skip_serializing_if = "Option::is_none")]
    total_improvements: Option<usize>,
}

/// The model, a policy and its values, and how the two chase each other.
struct PolicyIteration {
    model: TransitionModel, // p(s',r|s,a)
    values: Vec<f64>,       // V(s), [num_states]
    policy: Vec<f64>,       // π(a|s), [num_states, num_actions]
    num_actions: usize,
    args: Args,
}

/// What one improvement found.
struct Improvement {
    changes: usize,        // states in which the policy is another now
    bellman_residual: f64, // distance from optimality, max_s |max_a q(s,a) − V(s)|
}

impl PolicyIteration {
    /// Begins with V = 0 and every action equally likely, unless `--initial-action` says otherwise.
    /// From most states that policy ends its episodes sooner or later, so that it has finite values
    /// even without a discount; "always action 0" may go round in circles for ever.
    fn new(model: &TransitionModel, args: &Args) -> Result<Self> {
        let num_states = model.outcomes.len();
        let num_actions = model.outcomes.iter().map(Vec::len).max().unwrap_or(0);
        let fewest = model.outcomes.iter().map(Vec::len).min().unwrap_or(0);
        let mut iteration = Self {
            model: model.clone(),
            values: vec![0.0; num_states],
            policy: vec![0.0; num_states * num_actions],
            num_actions,
            args: args.clone(),
        };
        for (state, actions) in model.outcomes.iter().enumerate() {
            match args.initial_action {
                None => {
                    let row = state * num_actions;
                    iteration.policy[row..row + actions.len()].fill(1.0 / actions.len() as f64);
                }
                Some(action) if action < fewest => iteration.set_action(state, action),
                Some(action) => {
                    return invalid(format!(
                        "--initial-action {action}: the actions are 0 to {}",
                        fewest - 1
                    ));
                }
            }
        }
        Ok(iteration)
    }

    /// π(a|s).
    fn probability(&self, state: usize, action: usize) -> f64 {
        self.policy[state * self.num_actions + action]
    }

    /// The action that the policy always takes in `state`, if there is one.
    fn action(&self, state: usize) -> Option<usize> {
        (0..self.num_actions).find(|&action| self.probability(state, action) == 1.0)
    }

    /// Makes the policy always take `action` in `state`.
    fn set_action(&mut self, state: usize, action: usize) {
        let row = state * self.num_actions;
        self.policy[row..row + self.num_actions].fill(0.0);
        self.policy[row + action] = 1.0;
    }

    /// q(s,a) by the values V.
    fn action_value(&self, values: &[f64], state: usize, action: usize) -> f64 {
        let mut action_value = 0.0;
        for outcome in &self.model.outcomes[state][action] {
            // Easy to miss and fatal: no value lies beyond the end of an episode.
            let next_value = if outcome.terminated { 0.0 } else { values[outcome.next_state] };
            // q(s,a) = Σ_{s',r} p(s',r|s,a) [ r + γ V(s') ]
            action_value += outcome.probability * (outcome.reward + self.args.gamma * next_value);
        }
        action_value
    }

    /// One sweep of policy evaluation. Returns the largest change of a value.
    ///
    /// A new value takes the old one's place at once, so that later states of the same sweep profit
    /// from it: that converges to the same V as sweeps from a copy (`--synchronous`), usually sooner
    /// (Sutton & Barto, section 4.1).
    fn sweep(&mut self) -> f64 {
        let before = self.values.clone();
        let mut largest_change: f64 = 0.0;
        for state in 0..before.len() {
            let values = if self.args.synchronous { &before } else { &self.values };
            // V(s) ← Σ_a π(a|s) q(s,a)
            let mut value = 0.0;
            for action in 0..self.model.outcomes[state].len() {
                let probability = self.probability(state, action);
                if probability > 0.0 {
                    value += probability * self.action_value(values, state, action);
                }
            }
            largest_change = largest_change.max((value - before[state]).abs());
            self.values[state] = value;
        }
        largest_change
    }

    /// Policy evaluation: brings V towards the values of π in at most `max_sweeps` sweeps. Returns
    /// how many there were, and whether V has settled.
    fn evaluate(&mut self, max_sweeps: usize) -> (usize, bool) {
        for sweeps in 1..=max_sweeps {
            if self.sweep() < self.args.theta {
                return (sweeps, true);
            }
        }
        (max_sweeps, false)
    }

    /// Policy improvement: makes π greedy on V.
    ///
    /// An action gives way only to one that is better by more than θ. Among actions that are equally
    /// good, rounding would otherwise choose another each time, and the policy would never be stable
    /// (Sutton & Barto, exercise 4.4).
    fn improve(&mut self) -> Improvement {
        let mut improvement = Improvement { changes: 0, bellman_residual: 0.0 };
        for state in 0..self.values.len() {
            // π(s) ← argmax_a q(s,a)
            let (mut best, mut best_value) = (0, f64::NEG_INFINITY);
            for action in 0..self.model.outcomes[state].len() {
                let value = self.action_value(&self.values, state, action);
                if value > best_value {
                    (best, best_value) = (action, value);
                }
            }
            let current = self.action(state).map(|action| self.action_value(&self.values, state, action));
            if current.is_none_or(|current_value| best_value > current_value + self.args.theta) {
                self.set_action(state, best);
                improvement.changes += 1;
            }
            let residual = (best_value - self.values[state]).abs();
            improvement.bellman_residual = improvement.bellman_residual.max(residual);
        }
        improvement
    }

    /// The exact expectation of an episode's undiscounted return and of its length, for episodes cut
    /// off after `max_steps`: what the mean over infinitely many episodes of this policy would be.
    ///
    /// It pushes the distribution of the state through the model, d₀ being that of the first state:
    ///
    /// ```text
    /// d_{t+1}(s') = Σ_s d_t(s) Σ_a π(a|s) p(s', not terminated | s,a)
    /// ```
    fn expected_episode(&self, max_steps: u32) -> (f64, f64) {
        let mut distribution = self.model.initial.clone(); // d_t, [num_states]
        let (mut expected_return, mut expected_length) = (0.0, 0.0);
        for _ in 0..max_steps {
            let running: f64 = distribution.iter().sum(); // probability that the episode still goes on
            if running < 1e-12 {
                break;
            }
            expected_length += running;
            let mut next_distribution = vec![0.0; distribution.len()]; // d_{t+1}
            for (state, actions) in self.model.outcomes.iter().enumerate() {
                for (action, outcomes) in actions.iter().enumerate() {
                    let both = distribution[state] * self.probability(state, action); // d_t(s) π(a|s)
                    if both == 0.0 {
                        continue; // most actions are never taken, and there may be millions of outcomes
                    }
                    for outcome in outcomes {
                        expected_return += both * outcome.probability * outcome.reward;
                        if !outcome.terminated {
                            next_distribution[outcome.next_state] += both * outcome.probability;
                        }
                    }
                }
            }
            distribution = next_distribution;
        }
        (expected_return, expected_length)
    }

    /// What an episode is worth at its start, Σ_s d₀(s) V(s).
    fn value_start(&self) -> f64 {
        self.model.initial.iter().zip(&self.values).map(|(probability, value)| probability * value).sum()
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let env = envs::make(&args.run.env_id)?;
    let Some(model) = env.model() else {
        let has_model = |entry: &envs::Registration| {
            let env = (entry.make)();
            env.is_ok_and(|env| env.model().is_some() && env.spec().discrete_to_discrete("").is_ok())
        };
        let registered = [envs::toy_text::registered(), envs::textbook::registered()].concat();
        let known = registered.iter().filter(|entry| has_model(entry)).map(|entry| entry.id);
        return invalid(format!(
            "--env-id {}: policy_iteration needs a transition model, this environment has none; those that do: {}",
            args.run.env_id,
            known.collect::<Vec<_>>().join(", ")
        ));
    };
    env.spec().discrete_to_discrete("policy_iteration")?; // an observation is the index of the state
    let max_episode_steps = env.spec().episode_limit();
    let mut iteration = PolicyIteration::new(model, &args)?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut changes = iteration.values.len(); // states in which the last improvement changed the policy
    let mut stable = false; // neither V nor π moves any more
    let total_improvements = args.total_improvements.unwrap_or(usize::MAX);
    let mut improvements = 0; // so far
    let mut global_step = 0; // sweeps so far
    while global_step < run.total_timesteps && improvements < total_improvements && !stable {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("policy", &mut iteration.policy),
                ("values", &mut iteration.values),
                ("changes", &mut changes),
                ("stable", &mut stable),
                ("improvements", &mut improvements),
            ],
        )?;

        // Nothing is sampled here; the curve shows what episodes of this policy are worth on average.
        if changes > 0 {
            let (episodic_return, length) = iteration.expected_episode(max_episode_steps);
            run.episodes(global_step, &[Episode { env: 0, episodic_return, length: length.round() as u32 }])?;
        }

        let max_sweeps = if args.evaluation_sweeps == 0 { 1000 } else { args.evaluation_sweeps };
        let (sweeps, settled) = iteration.evaluate(max_sweeps.min(run.total_timesteps - global_step));
        global_step += sweeps;
        if !settled && args.evaluation_sweeps == 0 && global_step < run.total_timesteps {
            changes = 0; // the evaluation goes on; between its parts it can be saved and interrupted
            continue;
        }
        let improvement = iteration.improve();
        improvements += 1;
        changes = improvement.changes;
        stable = settled && changes == 0;

        run.log(global_step, "charts/value_start", iteration.value_start())?;
        run.log(global_step, "charts/policy_changes", changes as f64)?;
        run.log(global_step, "losses/bellman_residual", improvement.bellman_residual)?;
    }
    if !stable && improvements < total_improvements && !run.eval_only() {
        eprintln!(
            "not stable after {global_step} sweeps: allow more with --total-timesteps, or discount with --gamma below 1"
        );
    }

    let PolicyIteration { values, policy, .. } = &mut iteration;
    run.save_or_load_model(&mut [("values", values as _), ("policy", policy as _)])?;
    run.evaluate(|observations| {
        Ok(observations.iter().map(|&state| iteration.action(state as usize).unwrap_or(0) as u32).collect())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
