//! # Dyna-Q, Dyna-Q+ and prioritised sweeping
//!
//! Sutton (1990), "Integrated architectures for learning, planning, and reacting based on approximating
//! dynamic programming", ICML; Moore & Atkeson (1993), "Prioritized sweeping: reinforcement learning
//! with less data and less time", Machine Learning 13; Peng & Williams (1993), "Efficient learning and
//! planning within the Dyna framework". Sutton & Barto (2018), *Reinforcement Learning*, sections 8.2 to
//! 8.4.
//!
//! Each real step is used twice: Q-learning learns from it, and a model remembers what it led to. The
//! model then serves as a world to practise in: after every real step the agent relives n remembered
//! ones and learns from each as if it had happened, so that a reward found once spreads through the
//! whole table without walking there again. Dyna-Q+ also gives a bonus for what has not been tried for
//! long, since the world may have changed; and prioritised sweeping chooses what to relive, backwards
//! from where values have just changed.
//!
//! After each real step from s by action a to s' with reward r, with `M(s,a)` the last outcome seen:
//!
//! ```text
//! Q(s,a) ← Q(s,a) + α [ r + γ (1 − terminated) max_{a'} Q(s',a') − Q(s,a) ]           direct learning
//! M(s,a) ← r, s', terminated                                                          model learning
//! n times: s, a ← at random among what was seen and done; r, s', terminated ← M(s,a);     planning
//!          Q(s,a) ← Q(s,a) + α [ r + γ (1 − terminated) max_{a'} Q(s',a') − Q(s,a) ]
//! ```
//!
//! Dyna-Q+ (`--kappa` above 0) plans with r + κ √τ in place of r, where τ is the number of real steps
//! since a was last tried in s; actions never tried in a state that was seen count as well, and are
//! supposed to lead back to it without a reward.
//!
//! Prioritised sweeping (`--prioritized-sweeping`) does not learn directly. It keeps a priority for
//! each pair: a real step sets that of its own; then it takes the most urgent pair n times instead of a
//! random one, and after each such update looks at all that lead there by the model:
//!
//! ```text
//! p(s,a) ← | r + γ (1 − terminated) max_{a'} Q(s',a') − Q(s,a) |   if that exceeds θ and what it was
//! ```
//!
//! Deviations: none from the book's boxes, which suppose that an action always leads to the same state
//! (the model remembers the last outcome alone; on slippery ground it plans with luck).
//!
//! Run `cargo run -p dyna_q`: 14 steps to the goal of DynaMaze-v0, the shortest way, after a handful of
//! episodes and in a second; 16.8 steps an episode while it explores (Sutton & Barto 2018, example 8.1;
//! 16.77 computed over 1000 runs).
//!
//! ```text
//! --planning-steps 0                                          Q-learning: the first episodes are long
//! --env-id BlockingMaze-v0 --total-timesteps 3000 --planning-steps 10 --learning-rate 1 --kappa 1e-3
//!                                             reaches the goal 140 times (example 8.2), 80 with κ = 0
//! --env-id ShortcutMaze-v0 --total-timesteps 6000 --planning-steps 50 --learning-rate 1 --kappa 1e-3
//!                                             365 times (example 8.3), 285 with κ = 0
//! ```
//!
//! Mazes that change are evaluated as they are at first: look at charts/cumulative_reward there.

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, invalid, learner_rng};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Dyna-Q, Dyna-Q+ and prioritised sweeping, for environments with few states and actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("DynaMaze-v0")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("4000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Planning updates after each real step, n
    #[arg(long, default_value_t = 50)]
    planning_steps: usize,
    /// Choose what to plan by how much it would change, and do not learn directly
    #[arg(long, default_value_t = false)]
    prioritized_sweeping: bool,
    /// Priorities up to this do not count, θ
    #[arg(long, default_value_t = 1e-4, value_parser = cli::non_negative)]
    theta: f64,
    /// Bonus for what has not been tried for long, κ of Dyna-Q+
    #[arg(long, default_value_t = 0.0, value_parser = cli::non_negative)]
    kappa: f64,
    /// Step size, α
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    learning_rate: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 0.95, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Probability of a random action, ε
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    epsilon: f64,
}

/// A step of the environment, as it happened or as the model remembers it.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
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

/// What was seen of the world.
#[derive(Serialize, Deserialize)]
struct Model {
    outcomes: Vec<Option<Transition>>, // M(s,a), [num_states, num_actions]
    last_tried: Vec<usize>, // the time of the last real step by a from s, [num_states, num_actions]
    states: Vec<usize>,     // in which an action was taken
    time: usize,            // real steps so far
}

/// The table, the model, and how they learn.
struct DynaQ {
    q: Vec<f64>,          // Q(s,a), [num_states, num_actions]
    priorities: Vec<f64>, // p(s,a), 0 for what is not urgent, [num_states, num_actions]
    model: Model,
    num_actions: usize,
    args: Args,
}

impl DynaQ {
    fn new(num_states: usize, num_actions: usize, args: &Args) -> Self {
        let size = num_states * num_actions;
        let model =
            Model { outcomes: vec![None; size], last_tried: vec![0; size], states: Vec::new(), time: 0 };
        let zeros = || vec![0.0; size];
        Self { q: zeros(), priorities: zeros(), model, num_actions, args: args.clone() }
    }

    /// Where (s,a) is in the tables.
    fn entry(&self, state: usize, action: usize) -> usize {
        state * self.num_actions + action
    }

    /// The best actions in `state`.
    ///
    /// Easy to miss: a new table is zero everywhere. Were the first of equal actions always taken, the
    /// agent would begin by doing nothing but action 0.
    fn best_actions(&self, state: usize) -> Vec<usize> {
        let values = &self.q[self.entry(state, 0)..self.entry(state + 1, 0)];
        let max = max(values);
        (0..self.num_actions).filter(|&action| values[action] == max).collect()
    }

    /// The best action, or with probability ε one drawn from all.
    fn act(&self, state: usize, rng: &mut Rng) -> usize {
        if rng.random::<f64>() < self.args.epsilon {
            return rng.random_range(0..self.num_actions);
        }
        let best = self.best_actions(state);
        best[rng.random_range(0..best.len())]
    }

    /// The best action, the first of equal ones.
    fn act_greedily(&self, state: usize) -> usize {
        self.best_actions(state)[0]
    }

    /// δ = r + γ (1 − terminated) max_{a'} Q(s',a') − Q(s,a)
    fn td_error(&self, step: &Transition) -> f64 {
        let next_values = &self.q[self.entry(step.next_state, 0)..self.entry(step.next_state + 1, 0)];
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let next_value = if step.terminated { 0.0 } else { max(next_values) };
        step.reward + self.args.gamma * next_value - self.q[self.entry(step.state, step.action)]
    }

    /// Q-learning from one step. Returns δ.
    fn update(&mut self, step: &Transition) -> f64 {
        let (entry, td_error) = (self.entry(step.state, step.action), self.td_error(step));
        // Q(s,a) ← Q(s,a) + α δ
        self.q[entry] += self.args.learning_rate * td_error;
        td_error
    }

    /// M(s,a) ← r, s', terminated
    fn remember(&mut self, step: &Transition) {
        let entry = self.entry(step.state, step.action);
        if !self.model.states.contains(&step.state) {
            self.model.states.push(step.state);
        }
        self.model.time += 1;
        self.model.last_tried[entry] = self.model.time;
        self.model.outcomes[entry] = Some(*step);
    }

    /// Something to relive: a state drawn from those that were seen, an action drawn from those that were
    /// taken there; of Dyna-Q+ any action, with a bonus.
    fn imagine(&self, rng: &mut Rng) -> Transition {
        let state = self.model.states[rng.random_range(0..self.model.states.len())];
        let of_state = &self.model.outcomes[self.entry(state, 0)..self.entry(state + 1, 0)];
        if self.args.kappa == 0.0 {
            let tried: Vec<&Transition> = of_state.iter().flatten().collect();
            return *tried[rng.random_range(0..tried.len())];
        }
        let action = rng.random_range(0..self.num_actions);
        let never_tried = Transition { state, action, reward: 0.0, next_state: state, terminated: false };
        let mut step = of_state[action].unwrap_or(never_tried);
        // r + κ √τ
        let elapsed = self.model.time - self.model.last_tried[self.entry(state, action)]; // τ
        step.reward += self.args.kappa * (elapsed as f64).sqrt();
        step
    }

    /// n updates from what the model remembers.
    fn plan(&mut self, rng: &mut Rng) {
        for _ in 0..self.args.planning_steps {
            let step = self.imagine(rng);
            self.update(&step);
        }
    }

    /// p(s,a) ← |δ| if that exceeds θ and what it is. Returns δ.
    fn prioritize(&mut self, step: &Transition) -> f64 {
        let (entry, td_error) = (self.entry(step.state, step.action), self.td_error(step));
        if td_error.abs() > self.args.theta {
            self.priorities[entry] = self.priorities[entry].max(td_error.abs());
        }
        td_error
    }

    /// At most n updates, the most urgent first, and each makes what leads there urgent. Returns how
    /// many there were.
    fn sweep(&mut self) -> usize {
        for updates in 0..self.args.planning_steps {
            let priority = max(&self.priorities);
            let first = self.priorities.iter().position(|&p| p == priority && p > 0.0);
            let Some((first, step)) = first.and_then(|first| Some((first, self.model.outcomes[first]?)))
            else {
                return updates;
            };
            self.priorities[first] = 0.0;
            self.update(&step);
            // All that the model says lead to s.
            for entry in 0..self.model.outcomes.len() {
                if let Some(before) = self.model.outcomes[entry]
                    && before.next_state == step.state
                    && !before.terminated
                {
                    self.prioritize(&before);
                }
            }
        }
        self.args.planning_steps
    }

    /// All that is done after a real step. Returns its δ.
    fn learn(&mut self, step: &Transition, rng: &mut Rng) -> f64 {
        if self.args.prioritized_sweeping {
            self.remember(step);
            let td_error = self.prioritize(step);
            self.sweep();
            return td_error;
        }
        let td_error = self.update(step);
        self.remember(step);
        self.plan(rng);
        td_error
    }
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    if args.prioritized_sweeping && args.kappa > 0.0 {
        return invalid(format!(
            "--kappa {}: prioritised sweeping has no bonus; leave out --prioritized-sweeping or --kappa",
            args.kappa
        ));
    }
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (num_states, num_actions) = envs.spec().discrete_to_discrete("dyna_q")?;
    let mut rng = learner_rng(args.run.seed);
    let mut dyna = DynaQ::new(num_states, num_actions, &args);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut cumulative_reward = 0.0;
    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("q", &mut dyna.q),
                ("priorities", &mut dyna.priorities),
                ("model", &mut dyna.model),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("cumulative_reward", &mut cumulative_reward),
            ],
        )?;

        let state = envs.observations()[0] as usize;
        let action = dyna.act(state, &mut rng);
        envs.step(&[action as u32])?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;

        let step = Transition::last(state, action, &envs);
        cumulative_reward += step.reward;
        let td_error = dyna.learn(&step, &mut rng);
        if global_step.is_multiple_of(100) {
            run.log(global_step, "losses/td_loss", td_error.powi(2))?;
            run.log(global_step, "losses/q_values", dyna.q[dyna.entry(state, action)])?;
            run.log(global_step, "charts/cumulative_reward", cumulative_reward)?;
        }
    }

    run.save_or_load_model(&mut [("q", &mut dyna.q as _)])?;
    run.evaluate(|observations| {
        Ok(observations.iter().map(|&state| dyna.act_greedily(state as usize) as u32).collect())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
