//! # Value iteration
//!
//! Bellman (1957), *Dynamic Programming*; in the form of Sutton & Barto (2018), *Reinforcement
//! Learning*, section 4.4.
//!
//! Where the transition probabilities are known, nothing needs to be tried: the value of a state is
//! that of its best action, and the value of an action is its reward plus the value of the state it
//! leads to. Repeating that equation as an assignment, from any values, makes their distance from the
//! optimal ones smaller by the factor γ each time. The best policy takes, in each state, the action
//! that the values say is best. (With γ = 1 and steps that cost nothing, to wait is among the best for
//! ever, and the first of the best may be that.)
//!
//! With the model `p(s',r|s,a)` and `V(s') = 0` where the episode terminated:
//!
//! ```text
//! q(s,a) = Σ_{s',r} p(s',r|s,a) [ r + γ V(s') ]        the value of an action
//! V(s) ← max_a q(s,a)            for all s, repeatedly  Bellman's optimality equation
//! π(s) = argmax_a q(s,a)                                the greedy policy
//! ```
//!
//! A new value takes the old one's place at once, so that later states of the same sweep profit from
//! it; with `--synchronous` all of a sweep's new values are computed from the old ones. Both converge
//! to the same V, usually in fewer sweeps in place. It ends when a sweep has changed no value by θ, and
//! then
//!
//! ```text
//! |V(s) − V*(s)| ≤ γ θ / (1 − γ)        for all s; no such bound at γ = 1
//! ```
//!
//! Deviations: none from the book's box, but that it leaves open which of several best actions π takes:
//! here the first of those that are best to within θ, since rounding would choose otherwise. A
//! "timestep" of this algorithm, in which nobody steps, is one sweep through all the states.
//!
//! Run `cargo run -p value_iteration`: V*(s₀) = 0.542026 on FrozenLake-v1 at γ = 0.99 in less than a
//! second, and a policy that reaches the goal within the 100 steps of an episode with probability 0.740
//! (both computed exactly; Gymnasium notes an optimum of 0.74).
//!
//! ```text
//! --env-id Gambler-v0 --gamma 1      V*(50) = 0.4: bold play wins as often as a single flip
//! --env-id Gridworld-v0 --gamma 1 --synchronous     four sweeps, the last of which changes nothing
//! --env-id CarRental-v0 --gamma 0.9  V*(10 cars, 10 cars) = 574.95
//! ```

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{self, Episode, TransitionModel, invalid};
use common::run::Run;
use serde::Serialize;
use std::process::ExitCode;

/// Value iteration, from the environment's own model
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
    /// Discount, γ. With 1, values may grow without end, and where waiting is free the policy may wait for ever
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Accuracy, θ: it ends when a sweep changes no value by as much
    #[arg(long, default_value_t = 1e-10, value_parser = cli::above_zero)]
    theta: f64,
    /// Compute all of a sweep's values from those before the sweep
    #[arg(long, default_value_t = false)]
    synchronous: bool,
}

/// The model and the values.
struct ValueIteration {
    model: TransitionModel, // p(s',r|s,a)
    values: Vec<f64>,       // V(s), [num_states]
    args: Args,
}

impl ValueIteration {
    fn new(model: &TransitionModel, args: &Args) -> Self {
        Self { model: model.clone(), values: vec![0.0; model.outcomes.len()], args: args.clone() }
    }

    /// q(s,·) by the values V, `[num_actions]`.
    fn action_values(&self, values: &[f64], state: usize) -> Vec<f64> {
        let mut action_values = Vec::new();
        for outcomes in &self.model.outcomes[state] {
            let mut action_value = 0.0;
            for outcome in outcomes {
                // Easy to miss and fatal: no value lies beyond the end of an episode.
                let next_value = if outcome.terminated { 0.0 } else { values[outcome.next_state] };
                // q(s,a) = Σ_{s',r} p(s',r|s,a) [ r + γ V(s') ]
                action_value += outcome.probability * (outcome.reward + self.args.gamma * next_value);
            }
            action_values.push(action_value);
        }
        action_values
    }

    /// One sweep. Returns the largest change of a value.
    fn sweep(&mut self) -> f64 {
        let before = self.values.clone();
        let mut largest_change: f64 = 0.0;
        for state in 0..before.len() {
            let values = if self.args.synchronous { &before } else { &self.values };
            // V(s) ← max_a q(s,a)
            self.values[state] = max(&self.action_values(values, state));
            largest_change = largest_change.max((self.values[state] - before[state]).abs());
        }
        largest_change
    }

    /// π, the best action of each state: the first of those that are best to within θ, `[num_states]`.
    fn greedy_policy(&self) -> Vec<usize> {
        let action = |state: usize| {
            let action_values = self.action_values(&self.values, state);
            let good = max(&action_values) - self.args.theta;
            // π(s) = argmax_a q(s,a)
            action_values.iter().position(|&value| value >= good).unwrap_or(0)
        };
        (0..self.values.len()).map(action).collect()
    }

    /// What an episode is worth at its start, Σ_s d₀(s) V(s).
    fn value_start(&self) -> f64 {
        self.model.initial.iter().zip(&self.values).map(|(probability, value)| probability * value).sum()
    }

    /// The exact expectation of an episode's undiscounted return and of its length under `policy`, for
    /// episodes cut off after `max_steps`: what the mean over infinitely many episodes would be.
    ///
    /// It pushes the distribution of the state through the model, d₀ being that of the first state:
    ///
    /// ```text
    /// d_{t+1}(s') = Σ_s d_t(s) p(s', not terminated | s,π(s))
    /// ```
    fn expected_episode(&self, policy: &[usize], max_steps: u32) -> (f64, f64) {
        let mut distribution = self.model.initial.clone(); // d_t, [num_states]
        let (mut expected_return, mut expected_length) = (0.0, 0.0);
        for _ in 0..max_steps {
            let running: f64 = distribution.iter().sum(); // probability that the episode still goes on
            if running < 1e-12 {
                break;
            }
            expected_length += running;
            let mut next_distribution = vec![0.0; distribution.len()]; // d_{t+1}
            for (state, &action) in policy.iter().enumerate() {
                for outcome in &self.model.outcomes[state][action] {
                    let probability = distribution[state] * outcome.probability;
                    expected_return += probability * outcome.reward;
                    if !outcome.terminated {
                        next_distribution[outcome.next_state] += probability;
                    }
                }
            }
            distribution = next_distribution;
        }
        (expected_return, expected_length)
    }
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
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
        let known: Vec<&str> =
            registered.iter().filter(|entry| has_model(entry)).map(|entry| entry.id).collect();
        return invalid(format!(
            "--env-id {}: value_iteration needs a transition model, this environment has none; those that do: {}",
            args.run.env_id,
            known.join(", ")
        ));
    };
    env.spec().discrete_to_discrete("value_iteration")?; // an observation is the index of the state
    let max_episode_steps = env.spec().episode_limit();
    let mut iteration = ValueIteration::new(model, &args);
    let mut policy = Vec::new(); // π as it was after the last sweep, [num_states]
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut settled = false;
    let mut global_step = 0; // sweeps so far
    while global_step < run.total_timesteps && !settled {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [("values", &mut iteration.values), ("policy", &mut policy), ("settled", &mut settled)],
        )?;

        let largest_change = iteration.sweep();
        settled = largest_change < args.theta;
        global_step += 1;
        run.log(global_step, "charts/value_start", iteration.value_start())?;
        run.log(global_step, "losses/largest_change", largest_change)?;

        // Nothing is sampled here; the curve shows what episodes of each new policy are worth on average.
        let greedy_policy = iteration.greedy_policy();
        if greedy_policy != policy {
            policy = greedy_policy;
            let (episodic_return, length) = iteration.expected_episode(&policy, max_episode_steps);
            run.episodes(global_step, &[Episode { env: 0, episodic_return, length: length.round() as u32 }])?;
        }
    }
    if !settled && !run.eval_only() {
        eprintln!(
            "not settled after {global_step} sweeps: allow more with --total-timesteps, or discount with --gamma below 1"
        );
    }

    let mut policy: Vec<f64> = iteration.greedy_policy().into_iter().map(|action| action as f64).collect();
    run.save_or_load_model(&mut [("values", &mut iteration.values as _), ("policy", &mut policy as _)])?;
    run.evaluate(|observations| {
        Ok(observations.iter().map(|&state| policy[state as usize] as u32).collect())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
