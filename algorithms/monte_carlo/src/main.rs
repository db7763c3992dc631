//! # Monte Carlo control
//!
//! Michie & Chambers (1968), "BOXES: an experiment in adaptive control"; Singh & Sutton (1996),
//! "Reinforcement learning with replacing eligibility traces", Machine Learning 22 (first and every
//! visit); Precup, Sutton & Singh (2000), "Eligibility traces for off-policy policy evaluation", ICML.
//! Sutton & Barto (2018), *Reinforcement Learning*, chapter 5.
//!
//! The value of an action is the mean of what followed it: play an episode to its end, and add what was
//! collected from each step on to the mean of that step's state and action. Nothing is estimated from
//! other estimates and no model is needed, only episodes that end. Making the policy greedy on the means
//! with every episode improves both, as long as every action goes on being tried: because the first
//! action of an episode is any of them (exploring starts), because the policy is never quite greedy (ε),
//! or because another policy altogether plays and its episodes are weighed by how much more probable
//! they would be under the one that is learned.
//!
//! For each step t of an episode that ended, from the last one backwards, with rewards r_{t+1} …:
//!
//! ```text
//! G ← γ G + r_{t+1}
//! C(s_t,a_t) ← C(s_t,a_t) + W                      W = 1, C a number of visits, on-policy
//! Q(s_t,a_t) ← Q(s_t,a_t) + W / C(s_t,a_t) [ G − Q(s_t,a_t) ]
//! π(·|s_t) ← greedy in Q(s_t,·)                    but with --improve false; W takes this π already
//! W ← W π(a_t|s_t) / b(a_t|s_t)                    --method off-policy, whose behaviour is b
//! C(s_t) ← C(s_t) + W
//! V(s_t) ← V(s_t) + W / C(s_t) [ G − V(s_t) ]      a state's own action is weighed as well
//! Q(s_t,a_t) ← Q(s_t,a_t) + [ W G − Q(s_t,a_t) ] / C(s_t,a_t)      --ordinary, C a number of visits; V alike
//! ```
//!
//! ```text
//! --method exploring-starts    the first action drawn from all, then π greedy in Q         (page 99)
//! --method epsilon-soft        π greedy in Q, but with probability ε any action           (page 101)
//! --method off-policy          π greedy in Q; b is π, but with probability ε any action   (page 111)
//! ```
//!
//! On-policy each first visit of a state and action, or of a state, counts, or with `--every-visit` all;
//! off-policy all count. Dividing by the sum of the weights W makes the mean weighted importance sampling,
//! which is biased but of small variance. `--ordinary` divides by the number of visits: unbiased where π
//! stays and no state comes twice in an episode, and perhaps of infinite variance. Once W is 0, because π
//! would not have acted so, weighted sampling leaves out all before it, and ordinary counts it as 0.
//!
//! `--improve false` predicts the values of a policy and leaves it as it is: the uniform one, or with
//! `--stick-from 20` the one of example 5.1, which in Blackjack sticks on 20 and 21 and hits below. V leaves
//! out an exploring start, which is no action of π's: to predict, use `--method epsilon-soft`.
//!
//! Deviations: exploring starts draw the first action alone, and the first state is the environment's own
//! (Blackjack deals every one that matters). An episode that a time limit cuts off has no return and is
//! left out. Of equal actions π takes the first. What is evaluated is greedy in Q, with all of these flags.
//!
//! Run `cargo run -p monte_carlo`: learns Blackjack from half a million hands in a second, a policy worth
//! −0.045 a hand where the best possible is −0.0431 and the dealer's own −0.076 (Sutton & Barto 2018,
//! example 5.3, figure 5.2; exact values by dynamic programming). With `--method epsilon-soft`: −0.047.
//!
//! ```text
//! --improve false --stick-from 20 --method epsilon-soft                       figure 5.1: the model's v
//! --improve false --stick-from 20 --method off-policy --epsilon 1 --ordinary --env-id BlackjackState-v0
//!     --log-every 1 --total-episodes 10000                                    figure 5.3: one of its runs
//! ```

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Episode, Rng, Space, Spec, VecEnv, invalid, learner_rng};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Monte Carlo control and prediction, on-policy and off-policy, for environments with few states
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Blackjack-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("700000")))]
#[command(mut_arg("eval_episodes", |arg| arg.default_value("10000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// What sees to it that every action is tried
    #[arg(long, value_enum, default_value_t = Method::ExploringStarts)]
    method: Method,
    /// Stop after this many episodes, however few steps that were [default: no limit]
    #[arg(long, value_parser = cli::positive)]
    #[serde(skip_serializing_if = "Option::is_none")]
    total_episodes: Option<usize>,
    /// Make the policy greedy after every episode; otherwise predict its values and leave it as it is
    #[arg(long, default_value_t = true)]
    improve: bool,
    /// Begin with the policy that in Blackjack sticks from this sum on and hits below [default: the uniform
    /// policy]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    stick_from: Option<usize>,
    /// Count all visits of an episode, not the first alone (on-policy)
    #[arg(long, default_value_t = false)]
    every_visit: bool,
    /// Ordinary importance sampling, not weighted (off-policy)
    #[arg(long, default_value_t = false)]
    ordinary: bool,
    /// Probability of a random action, ε (epsilon-soft where it improves, off-policy)
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    epsilon: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Episodes between points of the curves, each their mean
    #[arg(long, default_value_t = 100, value_parser = cli::positive)]
    log_every: usize,
}

#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Method {
    /// The first action of each episode is any
    ExploringStarts,
    /// Each action is any with probability ε
    EpsilonSoft,
    /// Each action is any with probability ε, and the greedy policy is learned
    OffPolicy,
}

/// How an observation, an index or several, is one index: the last varies fastest.
struct States {
    sizes: Vec<usize>,
}

impl States {
    fn new(spec: &Spec) -> Result<(Self, usize)> {
        let size = |space: &Space| match space {
            Space::Discrete { n } => Some(*n),
            _ => None,
        };
        let sizes: Option<Vec<usize>> = match &spec.observation_space {
            Space::Tuple(spaces) => spaces.iter().map(size).collect(),
            space => size(space).map(|n| vec![n]),
        };
        match (sizes, &spec.action_space) {
            (Some(sizes), Space::Discrete { n }) => Ok((Self { sizes }, *n)),
            (_, actions) => invalid(format!(
                "--env-id {}: monte_carlo needs Discrete observations, or a Tuple of them, and Discrete actions, this environment has {} observations and {actions} actions",
                spec.id, spec.observation_space
            )),
        }
    }

    /// How many there are.
    fn len(&self) -> usize {
        self.sizes.iter().product()
    }

    fn index(&self, observation: &[f32]) -> usize {
        self.sizes.iter().zip(observation).fold(0, |index, (size, &part)| index * size + part as usize)
    }

    /// The observation's first index, in Blackjack the player's sum.
    fn first_part(&self, state: usize) -> usize {
        state / self.sizes[1..].iter().product::<usize>()
    }
}

/// What one step of the environment showed.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq)]
struct Step {
    state: usize,     // s_t
    action: usize,    // a_t
    reward: f64,      // r_{t+1}
    terminated: bool, // the episode ends
    truncated: bool,  // a time limit cuts it off
}

/// The means and the policy.
struct MonteCarlo {
    q: Vec<f64>,        // Q(s,a), [num_states, num_actions]
    c: Vec<f64>,        // C(s,a), the sum of the weights so far, [num_states, num_actions]
    v: Vec<f64>,        // V(s), [num_states]
    v_c: Vec<f64>,      // C(s), [num_states]
    policy: Vec<f64>,   // π(a|s), [num_states, num_actions]
    episode: Vec<Step>, // of the episode that is being played
    num_actions: usize,
    args: Args,
}

impl MonteCarlo {
    /// Begins with every action equally likely.
    fn new(num_states: usize, num_actions: usize, args: &Args) -> Self {
        let size = num_states * num_actions;
        Self {
            q: vec![0.0; size],
            c: vec![0.0; size],
            v: vec![0.0; num_states],
            v_c: vec![0.0; num_states],
            policy: vec![1.0 / num_actions as f64; size],
            episode: Vec::new(),
            num_actions,
            args: args.clone(),
        }
    }

    /// Makes π the policy that sticks from a sum on and hits below it, in Blackjack.
    fn stick_from(&mut self, sum: usize, states: &States) {
        for (state, policy) in self.policy.chunks_exact_mut(2).enumerate() {
            let sticks = states.first_part(state) >= sum;
            policy.copy_from_slice(if sticks { &[1.0, 0.0] } else { &[0.0, 1.0] });
        }
    }

    /// π(·|s), `[num_actions]`.
    fn policy(&self, state: usize) -> &[f64] {
        &self.policy[state * self.num_actions..(state + 1) * self.num_actions]
    }

    /// b(·|s), the policy that plays: off-policy π, but with probability ε any action; otherwise π,
    /// `[num_actions]`.
    fn behaviour(&self, state: usize) -> Vec<f64> {
        let epsilon = if self.args.method == Method::OffPolicy { self.args.epsilon } else { 0.0 };
        // b(a|s) = (1 − ε) π(a|s) + ε / |A|
        let any = epsilon / self.num_actions as f64;
        self.policy(state).iter().map(|probability| (1.0 - epsilon) * probability + any).collect()
    }

    /// a ~ b(·|s), but for an exploring start any.
    fn act(&self, state: usize, rng: &mut Rng) -> usize {
        if self.args.method == Method::ExploringStarts && self.episode.is_empty() {
            return rng.random_range(0..self.num_actions);
        }
        let mut left: f64 = rng.random();
        let chosen = self.behaviour(state).iter().position(|probability| {
            left -= probability;
            left < 0.0
        });
        chosen.unwrap_or(self.num_actions - 1) // rounding may leave nothing to the last
    }

    /// The best action, the first of equal ones.
    fn act_greedily(&self, state: usize) -> usize {
        let values = &self.q[state * self.num_actions..(state + 1) * self.num_actions];
        let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        values.iter().position(|&value| value == max).unwrap_or(0)
    }

    /// Makes π greedy in Q in `state`; with an ε-soft policy any action keeps a share of ε.
    fn improve(&mut self, state: usize) {
        let best = self.act_greedily(state);
        let epsilon = if self.args.method == Method::EpsilonSoft { self.args.epsilon } else { 0.0 };
        for action in 0..self.num_actions {
            // π(a|s) = ε / |A|, and 1 − ε more for the best action
            let greedy = if action == best { 1.0 - epsilon } else { 0.0 };
            self.policy[state * self.num_actions + action] = greedy + epsilon / self.num_actions as f64;
        }
    }

    /// Learns from an episode that ended, from its last step backwards.
    fn update(&mut self, episode: &[Step]) {
        // By the behaviour that played, which `improve` changes meanwhile.
        let behaviours: Vec<f64> =
            episode.iter().map(|step| self.behaviour(step.state)[step.action]).collect();
        let (mut g, mut weight) = (0.0, 1.0); // G, W
        for (t, step) in episode.iter().enumerate().rev() {
            // G ← γ G + r_{t+1}
            g = self.args.gamma * g + step.reward;
            let off_policy = self.args.method == Method::OffPolicy;
            let all_visits = self.args.every_visit || off_policy;
            let same = |before: &Step| (before.state, before.action) == (step.state, step.action);
            if all_visits || !episode[..t].iter().any(same) {
                let entry = step.state * self.num_actions + step.action;
                add_return(&mut self.q[entry], &mut self.c[entry], g, weight, self.args.ordinary);
                if self.args.improve {
                    self.improve(step.state);
                }
            }
            if off_policy {
                // W ← W π(a_t|s_t) / b(a_t|s_t)
                weight *= self.policy(step.state)[step.action] / behaviours[t];
            }
            // Easy to miss: an exploring start is no action of π's, whose values V(s) are.
            let starts = usize::from(self.args.method == Method::ExploringStarts);
            let first_visit = !episode[..t].iter().skip(starts).any(|before| before.state == step.state);
            if t >= starts && (all_visits || first_visit) {
                let (v, c) = (&mut self.v[step.state], &mut self.v_c[step.state]);
                add_return(v, c, g, weight, self.args.ordinary);
            }
            // Easy to miss: what π would not have done says nothing of the steps before it; the plain
            // mean of ordinary importance sampling counts that as a 0.
            if weight == 0.0 && !self.args.ordinary {
                break;
            }
        }
    }

    /// Takes up one more step, and learns once an episode has terminated.
    fn learn(&mut self, step: Step) {
        self.episode.push(step);
        if step.terminated || step.truncated {
            let episode = std::mem::take(&mut self.episode);
            if step.terminated {
                self.update(&episode);
            }
        }
    }
}

/// Moves a mean, Q(s,a) or V(s), towards the return G, whose weight is W.
fn add_return(mean: &mut f64, c: &mut f64, g: f64, weight: f64, ordinary: bool) {
    if ordinary {
        *c += 1.0;
        // Q ← Q + [ W G − Q ] / C, the plain mean of W G
        *mean += (weight * g - *mean) / *c;
    } else if weight > 0.0 {
        // C ← C + W
        *c += weight;
        // Q ← Q + W / C [ G − Q ]
        *mean += weight / *c * (g - *mean);
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (states, num_actions) = States::new(envs.spec())?;
    let mut rng = learner_rng(args.run.seed);
    let mut monte_carlo = MonteCarlo::new(states.len(), num_actions, &args);
    if let Some(sum) = args.stick_from {
        if states.sizes != [32, 11, 2] {
            let env_id = &args.run.env_id;
            return invalid(format!("--stick-from {sum}: is a policy of Blackjack-v1, not of {env_id}"));
        }
        monte_carlo.stick_from(sum, &states);
    }
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    // Hundreds of thousands of short episodes: the curve has the mean of every hundred.
    let (mut episodes, mut mean_return, mut mean_length) = (0, 0.0, 0.0);
    let (total_episodes, log_every) = (args.total_episodes.unwrap_or(usize::MAX), args.log_every);
    let mut global_step = 0;
    while global_step < run.total_timesteps && episodes < total_episodes {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("q", &mut monte_carlo.q),
                ("c", &mut monte_carlo.c),
                ("v", &mut monte_carlo.v),
                ("v_c", &mut monte_carlo.v_c),
                ("policy", &mut monte_carlo.policy),
                ("episode", &mut monte_carlo.episode),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("episodes", &mut episodes),
                ("mean_return", &mut mean_return),
                ("mean_length", &mut mean_length),
            ],
        )?;

        let step = interact(&monte_carlo, &mut envs, &states, &mut rng)?;
        global_step += 1;
        monte_carlo.learn(step);

        for episode in envs.episodes() {
            episodes += 1;
            mean_return += episode.episodic_return / log_every as f64;
            mean_length += f64::from(episode.length) / log_every as f64;
            if episodes % log_every == 0 {
                let length = mean_length.round() as u32;
                run.episodes(global_step, &[Episode { env: 0, episodic_return: mean_return, length }])?;
                (mean_return, mean_length) = (0.0, 0.0);
                if !args.improve {
                    // Of the state that the next episode begins in.
                    let start = states.index(envs.observations());
                    run.log(global_step, "charts/value_start", monte_carlo.v[start])?;
                }
            }
        }
    }

    run.save_or_load_model(&mut [("q", &mut monte_carlo.q as _), ("v", &mut monte_carlo.v as _)])?;
    let size = states.sizes.len();
    run.evaluate(|observations| {
        let action = |observation: &[f32]| monte_carlo.act_greedily(states.index(observation)) as u32;
        Ok(observations.chunks_exact(size).map(action).collect())
    })?;
    Ok(())
}

/// Plays one step in `envs`, a single environment.
fn interact(monte_carlo: &MonteCarlo, envs: &mut VecEnv, states: &States, rng: &mut Rng) -> Result<Step> {
    let state = states.index(envs.observations());
    let action = monte_carlo.act(state, rng);
    envs.step(&[action as u32])?;
    Ok(Step {
        state,
        action,
        reward: f64::from(envs.rewards()[0]),
        terminated: envs.terminated()[0],
        truncated: envs.truncated()[0],
    })
}

#[cfg(test)]
mod tests;
