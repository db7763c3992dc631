//! # SARSA, Expected SARSA, n-step SARSA and tree backup, as tables
//!
//! Rummery & Niranjan (1994), "On-line Q-learning using connectionist systems"; van Seijen, van Hasselt,
//! Whiteson & Wiering (2009), "A theoretical and empirical analysis of Expected Sarsa", ADPRL; Precup,
//! Sutton & Singh (2000), "Eligibility traces for off-policy policy evaluation", ICML (tree backup).
//! Sutton & Barto (2018), *Reinforcement Learning*, sections 6.4, 6.6, 7.2 and 7.5.
//!
//! SARSA learns what actions are worth for an agent that goes on acting as it does, exploration
//! included: beside a cliff it therefore keeps away from the edge, where Q-learning, which values the
//! best actions alone, walks along it and falls. It is named for what one update needs: state, action,
//! reward, state, action. Expected SARSA takes the average over the next action in place of the one
//! drawn, which is less noisy; and either can look n steps ahead, so that a reward reaches n states at
//! once.
//!
//! After n steps, or fewer at an episode's end, the action τ steps into the episode is moved towards
//! what followed it:
//!
//! ```text
//! G_τ = r_{τ+1} + γ r_{τ+2} + … + γⁿ⁻¹ r_{τ+n} + γⁿ (1 − terminated) B_{τ+n}
//! Q(s_τ,a_τ) ← Q(s_τ,a_τ) + α [ G_τ − Q(s_τ,a_τ) ]
//!
//! B_t = Q(s_t,a_t)                    SARSA (n = 1 by default)
//! B_t = Σ_a π(a|s_t) Q(s_t,a)         Expected SARSA (--target expected)
//! ```
//!
//! Tree backup (`--target tree-backup`) takes the expectation at each of the n steps, in which of all
//! actions only the one taken is known better than by Q:
//!
//! ```text
//! G_t = r_{t+1} + γ [ Σ_{a ≠ a_{t+1}} π(a|s_{t+1}) Q(s_{t+1},a) + π(a_{t+1}|s_{t+1}) G_{t+1} ]
//! G_t = r_{t+1} + γ (1 − terminated) Σ_a π(a|s_{t+1}) Q(s_{t+1},a)         at the last of the n steps
//! ```
//!
//! π is ε-greedy in Q: the best action, any of them if there are several, or with probability ε one
//! drawn from all. An episode that a time limit merely truncates has not terminated: its last state
//! still has a value, and SARSA draws the action for it that is then never taken.
//!
//! Deviations: α and ε are constant, as in the book's examples, where the proofs of convergence to the
//! optimal policy ask for ones that fall to zero. The next action is drawn before the update by all
//! three, as SARSA must (the book draws Expected SARSA's after it), and so is the first of the next episode,
//! which the book draws after it.
//!
//! Run `cargo run -p sarsa`: about −27 an episode on CliffWalking-v1 after 500 episodes, exploration
//! included, where Q-learning has −50; in less than a second (Sutton & Barto 2018, example 6.6; −27.1
//! computed over 500 runs).
//!
//! ```text
//! --target expected                                         about −21
//! --env-id WindyGridworld-v0 --total-timesteps 8000         161 episodes (example 6.5)
//! ```
//!
//! On the windy grid look at charts/episodes: without ε the policy may still walk in circles, and the
//! evaluation is then cut off at −27000.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, learner_rng};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// SARSA, Expected SARSA and tree backup over n steps, for environments with few states and actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CliffWalking-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("20000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// What stands in for the rewards that are still to come
    #[arg(long, value_enum, default_value_t = Target::Sarsa)]
    target: Target,
    /// Steps looked ahead, n
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    n_step: usize,
    /// Step size, α
    #[arg(long, default_value_t = 0.5, value_parser = cli::unit_interval)]
    learning_rate: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Probability of a random action, ε
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    epsilon: f64,
}

#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Target {
    /// The value of the next action
    Sarsa,
    /// The expected value of the next action
    Expected,
    /// Expected values at each step
    TreeBackup,
}

/// What one step of the environment showed, and the action that follows.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
struct Step {
    state: usize,       // s_t
    action: usize,      // a_t
    reward: f64,        // r_{t+1}
    next_state: usize,  // s_{t+1}, an episode's true last one at its end
    next_action: usize, // a_{t+1}
    terminated: bool,   // nothing lies beyond s_{t+1}
    truncated: bool,    // a time limit cut the episode off at s_{t+1}
}

/// The table and how it learns.
struct Sarsa {
    q: Vec<f64>,       // Q(s,a), [num_states, num_actions]
    window: Vec<Step>, // the last steps of the episode, the oldest first, at most n
    num_actions: usize,
    args: Args,
}

impl Sarsa {
    fn new(num_states: usize, num_actions: usize, args: &Args) -> Self {
        Self { q: vec![0.0; num_states * num_actions], window: Vec::new(), num_actions, args: args.clone() }
    }

    /// Q(s,·), `[num_actions]`.
    fn values(&self, state: usize) -> &[f64] {
        &self.q[state * self.num_actions..(state + 1) * self.num_actions]
    }

    /// The best actions in `state`.
    ///
    /// Easy to miss: a new table is zero everywhere. Were the first of equal actions always taken, the
    /// agent would begin by doing nothing but action 0.
    fn best_actions(&self, state: usize) -> Vec<usize> {
        let values = self.values(state);
        let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (0..self.num_actions).filter(|&action| values[action] == max).collect()
    }

    /// π(·|s), the ε-greedy policy, `[num_actions]`.
    fn policy(&self, state: usize) -> Vec<f64> {
        let (best, epsilon) = (self.best_actions(state), self.args.epsilon);
        // π(a|s) = ε / |A|, and the best actions share 1 − ε
        let mut policy = vec![epsilon / self.num_actions as f64; self.num_actions];
        for &action in &best {
            policy[action] += (1.0 - epsilon) / best.len() as f64;
        }
        policy
    }

    /// a ~ π(·|s)
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

    /// Σ_a π(a|s) Q(s,a)
    fn expected_value(&self, state: usize) -> f64 {
        self.policy(state)
            .iter()
            .zip(self.values(state))
            .map(|(probability, value)| probability * value)
            .sum()
    }

    /// G_τ, what `window`, the steps from τ on, says that its first action is worth.
    fn target(&self, window: &[Step]) -> f64 {
        let last = window.len() - 1;
        let mut g = 0.0;
        for (i, step) in window.iter().enumerate().rev() {
            let next_value = self.values(step.next_state)[step.next_action]; // Q(s_{t+1},a_{t+1})
            if i == last {
                // Easy to miss and fatal: nothing lies beyond a terminal state.
                g = match self.args.target {
                    _ if step.terminated => 0.0,
                    Target::Sarsa => next_value,
                    Target::Expected | Target::TreeBackup => self.expected_value(step.next_state),
                };
            } else if self.args.target == Target::TreeBackup {
                // Σ_{a ≠ a_{t+1}} π(a|s_{t+1}) Q(s_{t+1},a) + π(a_{t+1}|s_{t+1}) G_{t+1}
                let probability = self.policy(step.next_state)[step.next_action];
                g = self.expected_value(step.next_state) + probability * (g - next_value);
            }
            // G_t = r_{t+1} + γ G_{t+1}
            g = step.reward + self.args.gamma * g;
        }
        g
    }

    /// Moves the oldest action of the window towards its target, and drops it. Returns δ.
    fn update(&mut self) -> f64 {
        let target = self.target(&self.window);
        let oldest = self.window.remove(0);
        let entry = oldest.state * self.num_actions + oldest.action; // of Q(s_τ,a_τ)
        // Q(s_τ,a_τ) ← Q(s_τ,a_τ) + α [ G_τ − Q(s_τ,a_τ) ]
        let td_error = target - self.q[entry];
        self.q[entry] += self.args.learning_rate * td_error;
        td_error
    }

    /// Learns from one more step: of the action n steps ago, and at an episode's end of all that are
    /// left. Returns their δ.
    fn learn(&mut self, step: Step) -> Vec<f64> {
        let ended = step.terminated || step.truncated;
        self.window.push(step);
        let mut td_errors = Vec::new();
        while self.window.len() == self.args.n_step || (ended && !self.window.is_empty()) {
            td_errors.push(self.update());
        }
        td_errors
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (num_states, num_actions) = envs.spec().discrete_to_discrete("sarsa")?;
    let mut rng = learner_rng(args.run.seed);
    let mut sarsa = Sarsa::new(num_states, num_actions, &args);
    let mut action = sarsa.act(envs.observations()[0] as usize, &mut rng);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut episodes = 0;
    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("q", &mut sarsa.q),
                ("window", &mut sarsa.window),
                ("action", &mut action),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("episodes", &mut episodes),
            ],
        )?;

        let step = interact(&sarsa, &mut envs, &mut action, &mut rng)?;
        global_step += 1;
        episodes += envs.episodes().len();
        run.episodes(global_step, envs.episodes())?;

        let (state, chosen) = (step.state, step.action);
        let td_errors = sarsa.learn(step);
        if let (Some(td_error), true) = (td_errors.last(), global_step.is_multiple_of(100)) {
            run.log(global_step, "losses/td_loss", td_error.powi(2))?;
            run.log(global_step, "losses/q_values", sarsa.values(state)[chosen])?;
            run.log(global_step, "charts/episodes", episodes as f64)?;
        }
    }

    run.save_or_load_model(&mut [("q", &mut sarsa.q as _)])?;
    run.evaluate(|observations| {
        Ok(observations.iter().map(|&state| sarsa.act_greedily(state as usize) as u32).collect())
    })?;
    Ok(())
}

/// Takes `action` in `envs`, a single environment whose observation is the index of the state, and draws
/// the action that will be next.
fn interact(sarsa: &Sarsa, envs: &mut VecEnv, action: &mut usize, rng: &mut Rng) -> Result<Step> {
    let state = envs.observations()[0] as usize;
    envs.step(&[*action as u32])?;
    // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
    let next_state = envs.final_observations()[0] as usize;
    let (terminated, truncated) = (envs.terminated()[0], envs.truncated()[0]);
    let next_action = sarsa.act(next_state, rng);
    let reward = f64::from(envs.rewards()[0]);
    let step = Step { state, action: *action, reward, next_state, next_action, terminated, truncated };
    *action = match terminated || truncated {
        true => sarsa.act(envs.observations()[0] as usize, rng),
        false => next_action,
    };
    Ok(step)
}

#[cfg(test)]
mod tests;
