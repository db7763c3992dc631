//! # Batch actor-critic
//!
//! Konda & Tsitsiklis (2000), "Actor-critic algorithms", NIPS 12; in batches as in Levine's lectures "Deep
//! reinforcement learning" (UC Berkeley CS 285). Returns of n steps: Sutton & Barto (2018), "Reinforcement
//! Learning", chapter 7. The discount: Nota & Thomas (2020), "Is the policy gradient a gradient?",
//! arXiv:1906.07073.
//!
//! Play whole episodes; fit a critic to them, as a regression; let it say by how much each action was better
//! than expected; make one step of the policy with that, and throw the episodes away. What lies between
//! REINFORCE with a baseline and a one-step actor-critic is a choice: what the critic is fitted to, and how
//! many rewards count before its value of a state stands for the rest.
//!
//! ```text
//! repeat
//!   play N episodes with π_θ
//!   fit V_w:       K steps of Adam down L(w) = ½ E[ ( V_w(s_t) − y_t )² ], y_t of the critic before them
//!   advantages:    A_t = r_t + γ (1 − terminated) V_w(s_{t+1}) − V_w(s_t), of the fitted critic
//!   policy:        θ ← θ + α E[ A_t ∇ln π_θ(a_t|s_t) ], by Adam
//!
//! --critic mc      y_t = r_t + γ r_{t+1} + … to the episode's end                 no bias, the most variance
//! --critic td      y_t = r_t + γ (1 − terminated) V_w(s_{t+1})                     the least, biased by V_w
//! --critic n-step  y_t = r_t + … + γⁿ⁻¹ r_{t+n−1} + γⁿ V_w(s_{t+n});   A_t = y_t − V_w(s_t)
//! ```
//!
//! Where an episode terminates sooner, there are fewer rewards and no value after them. In A_t everything is of
//! the fitted critic, y_t's V_w(s_{t+n}) too.
//!
//! A discount may be meant in two ways. If rewards are really worth less the later they come, the gradient
//! is E[ Σ_t γᵗ A_t ∇ln π_θ(a_t|s_t) ] (see `reinforce`; `--discount-gradient`): late decisions, too, count
//! for less, and a few times 1/(1 − γ) steps after an episode's start nothing is learned any more. If what
//! is wanted is only a critic of small numbers and little variance, in a task that goes on for long, every
//! decision counts alike, as it does here without the flag. `--gamma 1` is neither, and right where
//! episodes are short.
//!
//! Deviations from the lectures: means over steps in place of sums; Adam, its step sizes falling to zero;
//! their sum of n steps has one reward too many. `td` and `n-step` may compute y_t anew, from what the
//! critic has learned by then (`--target-updates`, K steps each): `td`, whose targets otherwise move by one
//! reward an update, needs it. Where a time limit cuts an episode short, y_t goes on with the critic's value
//! of the true last state.
//!
//! Run `cargo run -p batch_actor_critic`: 475 or more on CartPole-v1 (the return at which Gymnasium registers
//! it as solved) after 300,000 steps in two seconds; as much with `--critic n-step`, and with `--critic td
//! --target-updates 10 --critic-updates 5` (without these 290 to 370).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{Adam, Categorical, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Batch actor-critic with a Monte-Carlo, TD or n-step critic, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("300000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// What the critic is fitted to
    #[arg(long, value_enum, default_value_t = Critic::Mc)]
    critic: Critic,
    /// Rewards before the critic's value stands for the rest, n, of `--critic n-step`
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    n_step: usize,
    /// Step size of the policy, α
    #[arg(long, default_value_t = 5e-3, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the critic
    #[arg(long, default_value_t = 5e-3, value_parser = cli::non_negative)]
    value_lr: f64,
    /// Let the step sizes fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Steps of the critic towards the same targets, K
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    critic_updates: usize,
    /// How often the critic's targets are computed, from what it has learned by then
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    target_updates: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Weigh step t by γᵗ, as the gradient of the discounted return asks for
    #[arg(long, default_value_t = false)]
    discount_gradient: bool,
    /// Episodes between updates, N
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    batch_episodes: usize,
}

/// What the critic is fitted to.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Critic {
    /// Sums of rewards to the end of the episode
    Mc,
    /// One reward and the critic's value of the next state
    Td,
    /// n rewards and the critic's value of the state after them
    NStep,
}

/// The logits of the policy, or the value V_w(s), and the network's optimiser.
struct Network {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [outputs]
    parameters: VarMap,
    adam: Adam,
}

impl Network {
    /// `sizes` are of the observation, of hidden layers and of the output. `gain` scales the output layer:
    /// 0.01 makes the first policy almost uniform, 1 suits values.
    fn new(sizes: &[usize], gain: f64, learning_rate: f64, seed: u64, device: &Device) -> Result<Self> {
        let parameters = VarMap::new(seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, device);
        let (sqrt2, last) = (std::f64::consts::SQRT_2, sizes.len() - 2);
        let hidden = (0..last)
            .map(|i| linear_orthogonal(sizes[i], sizes[i + 1], sqrt2, vb.pp(format!("hidden{i}"))))
            .collect::<candle_core::Result<_>>()?;
        let output = linear_orthogonal(sizes[last], sizes[last + 1], gain, vb.pp("output"))?;
        let adam = Adam::new(&parameters, learning_rate)?;
        Ok(Self { hidden, output, parameters, adam })
    }

    /// Observations `[batch, observation_dim]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_tanh(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }
}

/// Whole episodes, one after the other, and the running one.
#[derive(Default, Serialize, Deserialize)]
struct Rollout {
    observations: Vec<f32>,      // s_t, [num_steps, observation_dim]
    actions: Vec<u32>,           // a_t, [num_steps]
    rewards: Vec<f32>,           // r_t, [num_steps]
    next_observations: Vec<f32>, // s_{t+1}, an episode's true last one at its end, shaped like s_t
    terminated: Vec<bool>,       // nothing lies beyond s_{t+1}, [num_steps]
    truncated: Vec<bool>,        // the episode was cut off at s_{t+1}, [num_steps]
}

impl Rollout {
    /// Stores the step that the one environment of `envs` has just made from `observation` by `action`.
    fn store(&mut self, observation: &[f32], action: &[u32], envs: &VecEnv) {
        self.observations.extend_from_slice(observation);
        self.actions.extend_from_slice(action);
        self.rewards.extend_from_slice(envs.rewards());
        // Easy to miss: after an episode's end `envs.observations()` are the next episode's.
        self.next_observations.extend_from_slice(envs.final_observations());
        self.terminated.extend_from_slice(envs.terminated());
        self.truncated.extend_from_slice(envs.truncated());
    }

    /// Whether step t was the last of its episode.
    fn done(&self, t: usize) -> bool {
        self.terminated[t] || self.truncated[t]
    }

    /// How many episodes are over, N.
    fn num_episodes(&self) -> usize {
        (0..self.rewards.len()).filter(|&t| self.done(t)).count()
    }

    /// R_t of n steps, or of all to the episode's end, from V(s_{t+1}); all `[num_steps]`, of whole episodes.
    fn returns(&self, n: Option<usize>, next_values: &[f32], gamma: f32) -> Vec<f32> {
        let mut returns = vec![0.0; self.rewards.len()];
        for start in 0..returns.len() {
            let (mut t, mut discount) = (start, 1.0); // γ^{t − start}
            loop {
                // R = r_t + γ r_{t+1} + …
                returns[start] += discount * self.rewards[t];
                discount *= gamma;
                t += 1;
                // Easy to miss and fatal: what follows an episode's end belongs to the next one.
                if self.done(t - 1) || Some(t - start) == n {
                    break;
                }
            }
            // … + γⁿ V(s_{start+n}): nothing beyond termination; beyond a time limit there is.
            if !self.terminated[t - 1] {
                returns[start] += discount * next_values[t - 1];
            }
        }
        returns
    }

    /// γᵗ, `[num_steps]`, where t counts from the start of the step's own episode.
    fn discounts(&self, gamma: f32) -> Vec<f32> {
        let mut discounts = vec![1.0; self.rewards.len()];
        for t in 1..discounts.len() {
            if !self.done(t - 1) {
                discounts[t] = gamma * discounts[t - 1];
            }
        }
        discounts
    }
}

/// What one update found: the policy's part before it moved, the critic's before its first step.
struct Losses {
    policy_loss: f32,
    value_loss: f32,
    fitted_value_loss: f32, // before the critic's last step
    entropy: f32,
}

/// Policy, critic and how they learn.
struct BatchActorCritic {
    actor: Network,  // logits of π_θ(·|s), [num_actions]
    critic: Network, // V_w(s), [1]
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl BatchActorCritic {
    fn new(dims: [usize; 2], hidden_sizes: &[usize], args: &Args, rng: &mut Rng) -> Result<Self> {
        let [observation_dim, num_actions] = dims;
        let sizes = |outputs: usize| [&[observation_dim], hidden_sizes, &[outputs]].concat();
        let device = args.run.device()?;
        let [actor_seed, critic_seed]: [u64; 2] = rng.random();
        let actor = Network::new(&sizes(num_actions), 0.01, args.policy_lr, actor_seed, &device)?;
        let critic = Network::new(&sizes(1), 1.0, args.value_lr, critic_seed, &device)?;
        Ok(Self { actor, critic, observation_dim, args: args.clone(), device })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// π_θ(·|s) for each observation.
    fn policy(&self, observations: &[f32]) -> Result<Categorical> {
        Ok(Categorical::new(&self.actor.forward(&self.tensor(observations)?)?)?)
    }

    /// V_w(s) of each observation, `[batch]`.
    fn values(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(self.critic.forward(&self.tensor(observations)?)?.squeeze(1)?)
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        Ok(self.policy(observations)?.sample(rng)?.to_vec1()?)
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(self.policy(observations)?.mode()?.to_vec1()?)
    }

    /// Fits the critic to whole episodes, then moves the policy by what it says.
    fn update(&mut self, rollout: &Rollout) -> Result<Losses> {
        let mut value_losses = Vec::new();
        for _ in 0..self.args.target_updates {
            let targets = self.targets(rollout)?;
            for _ in 0..self.args.critic_updates {
                value_losses.push(self.update_critic(rollout, &targets)?);
            }
        }
        let advantages = self.advantages(rollout)?;
        let (policy_loss, entropy) = self.update_actor(rollout, &advantages)?;
        let (value_loss, fitted_value_loss) = (value_losses[0], value_losses[value_losses.len() - 1]);
        Ok(Losses { policy_loss, value_loss, fitted_value_loss, entropy })
    }

    /// R_t of n steps of the present critic, `[num_steps]`.
    fn returns(&self, rollout: &Rollout, n: Option<usize>) -> Result<Tensor> {
        let next_values: Vec<f32> = self.values(&rollout.next_observations)?.to_vec1()?;
        Ok(Tensor::new(rollout.returns(n, &next_values, self.args.gamma as f32), &self.device)?.detach())
    }

    /// y_t, `[num_steps]`.
    fn targets(&self, rollout: &Rollout) -> Result<Tensor> {
        self.returns(
            rollout,
            match self.args.critic {
                Critic::Mc => None,
                Critic::Td => Some(1),
                Critic::NStep => Some(self.args.n_step),
            },
        )
    }

    /// A_t, `[num_steps]`, of the fitted critic.
    fn advantages(&self, rollout: &Rollout) -> Result<Tensor> {
        let n = if self.args.critic == Critic::NStep { self.args.n_step } else { 1 };
        // A_t = r_t + γ (1 − terminated) V_w(s_{t+1}) − V_w(s_t), or R_t − V_w(s_t)
        Ok((self.returns(rollout, Some(n))? - self.values(&rollout.observations)?)?.detach())
    }

    /// One step of V_w towards y, `[num_steps]`.
    fn update_critic(&mut self, rollout: &Rollout, targets: &Tensor) -> Result<f32> {
        // L(w) = ½ E[ ( V_w(s_t) − y_t )² ]
        let loss = ((self.values(&rollout.observations)? - targets)?.sqr()?.mean_all()? * 0.5)?;
        self.critic.adam.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// One step of the policy by A, `[num_steps]`. Returns the loss and the entropy.
    fn update_actor(&mut self, rollout: &Rollout, advantages: &Tensor) -> Result<(f32, f32)> {
        let discounts = match self.args.discount_gradient {
            true => rollout.discounts(self.args.gamma as f32), // γᵗ
            false => vec![1.0; rollout.rewards.len()],
        };
        let weights = (Tensor::new(discounts, &self.device)? * advantages)?.detach(); // [num_steps]
        let policy = self.policy(&rollout.observations)?;
        let log_probs = policy.log_prob(&Tensor::new(&*rollout.actions, &self.device)?)?; // [num_steps]
        // −E[ γᵗ A_t ln π_θ(a_t|s_t) ]
        let loss = (weights * log_probs)?.mean_all()?.neg()?;
        self.actor.adam.backward_step(&loss)?;
        Ok((loss.to_scalar()?, policy.entropy()?.mean_all()?.to_scalar()?))
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    // One environment: of several, the short episodes would end first, the long ones be an older policy's.
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("batch_actor_critic")?;
    let mut rng = learner_rng(args.run.seed);
    let mut learner = BatchActorCritic::new([observation_dim, num_actions], &[64], &args, &mut rng)?;
    let mut rollout = Rollout::default();
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut learner.actor.parameters),
                ("critic", &mut learner.critic.parameters),
                ("actor_optimizer", &mut learner.actor.adam),
                ("critic_optimizer", &mut learner.critic.adam),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("rollout", &mut rollout),
            ],
        )?;

        // Run the policy for a step, and for more until N episodes are over, terminated or truncated.
        let observation = envs.observations().to_vec(); // [1, observation_dim]
        let action = learner.act(&observation, &mut rng)?;
        envs.step(&action)?;
        rollout.store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if envs.episodes().is_empty() || rollout.num_episodes() < args.batch_episodes {
            continue;
        }

        // Learn from them, and forget them: they are an old policy's now.
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            learner.actor.adam.learning_rate = remaining * args.policy_lr;
            learner.critic.adam.learning_rate = remaining * args.value_lr;
        }
        let losses = learner.update(&rollout)?;
        rollout = Rollout::default();
        run.log(global_step, "charts/learning_rate", learner.actor.adam.learning_rate)?;
        run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
        run.log(global_step, "losses/value_loss", losses.value_loss)?;
        run.log(global_step, "losses/fitted_value_loss", losses.fitted_value_loss)?;
        run.log(global_step, "losses/entropy", losses.entropy)?;
    }

    let (actor, critic) = (&mut learner.actor.parameters, &mut learner.critic.parameters);
    run.save_or_load_model(&mut [("actor", actor as _), ("critic", critic as _)])?;
    run.evaluate(|observations| learner.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
