//! # Action-value actor-critic
//!
//! Sutton, McAllester, Singh & Mansour (2000), "Policy gradient methods for reinforcement learning with
//! function approximation", NIPS 12; Konda & Tsitsiklis (2000), "Actor-critic algorithms", NIPS 12. The
//! critic's rule is SARSA: Rummery & Niranjan (1994), "On-line Q-learning using connectionist systems".
//!
//! The policy-gradient theorem weighs the score of an action by its value Q(s, a), and REINFORCE puts a
//! sampled return in its place. Here a critic learns Q_w(s, a) itself, from single steps: the reward, and the
//! value of the action that the policy takes next. The policy is moved by what the critic says of the action,
//! at once, without waiting for an episode's end and without the luck of its rest.
//!
//! After a step from s by a to s' with reward r, draw a' ~ π_θ(·|s'), which is also what is done next, and
//!
//! ```text
//! θ ← θ + α_θ A ∇ln π_θ(a|s)      A = Q_w(s, a) − Σ_b π_θ(b|s) Q_w(s, b); `--baseline false`: Q_w(s, a)
//! δ = r + γ (1 − terminated) Q_w(s', a') − Q_w(s, a)
//! w ← w + α_w δ ∇Q_w(s, a)
//! ```
//!
//! The baseline is the critic's own value of the state: it leaves the gradient's mean as it is (see
//! `reinforce`) and takes most of its variance away. Where values are about 100, as on CartPole, and one
//! action is better by 1, every action tried is otherwise made more probable, by 100 or by 101.
//!
//! Deviations from the papers, each of which a flag takes back but the last three: the baseline (`--baseline
//! false`); several environments, whose gradients are averaged (`--num-envs 1`); Adam, its step sizes
//! falling to zero, in place of plain steps (`--optimizer sgd --anneal-lr false`). The critic is a network of
//! its own, where both papers want a compatible one, linear in features that span ∇ln π_θ(a|s), so that its
//! error does not bias the gradient. The factor γᵗ is left out (see `reinforce`). Where a time limit merely
//! truncates an episode, δ looks beyond it, at an a' that is drawn in the true last state although nothing is
//! done there.
//!
//! Run `cargo run -p q_actor_critic`: 450 or more on CartPole-v1 after 300,000 steps in five seconds (there
//! is no published number; 475 is the return at which Gymnasium registers the task as solved).

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{Adam, Categorical, Linear, VarBuilder, VarMap, backward, linear_orthogonal};
use common::run::Run;
use rand::RngExt;
use serde::Serialize;
use std::process::ExitCode;

/// Actor-critic with an action-value critic that learns by SARSA, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("300000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of the actor, α_θ
    #[arg(long, default_value_t = 2e-4, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the critic, α_w
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    q_lr: f64,
    /// Let the step sizes fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// How to follow the gradients: Adam, or plain steps as in the papers
    #[arg(long, value_enum, default_value_t = Optimizer::Adam)]
    optimizer: Optimizer,
    /// Parallel environments
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    num_envs: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Weigh an action by how much better it is than the mean of the policy's, Σ_b π(b|s) Q(s, b)
    #[arg(long, default_value_t = true)]
    baseline: bool,
}

/// How parameters follow a gradient.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Optimizer {
    Adam,
    Sgd,
}

/// The logits of the policy, or the values Q_w(s, ·), of all actions; and the network's optimiser.
struct Network {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [num_actions]
    parameters: VarMap,
    adam: Adam, // its step size is that of plain steps, too
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

    /// Observations `[num_envs, observation_dim]` to `[num_envs, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_tanh(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }

    /// One step down the gradient of `loss`.
    fn descend(&mut self, loss: &Tensor, optimizer: Optimizer) -> Result<()> {
        if optimizer == Optimizer::Adam {
            return Ok(self.adam.backward_step(loss)?);
        }
        let gradients = backward(loss)?;
        for parameter in self.parameters.all_vars() {
            // θ ← θ − α ∇loss
            let gradient = gradients.get(&parameter).context("a parameter without a gradient")?;
            parameter.set(&(parameter.as_detached_tensor() - (gradient * self.adam.learning_rate)?)?)?;
        }
        Ok(())
    }
}

/// What one step of each environment showed.
struct Transitions {
    observations: Vec<f32>,      // s, [num_envs, observation_dim]
    actions: Vec<u32>,           // a, [num_envs]
    rewards: Vec<f32>,           // r, [num_envs]
    next_observations: Vec<f32>, // s', an episode's true last one at its end, [num_envs, observation_dim]
    terminated: Vec<bool>,       // nothing lies beyond s', [num_envs]
    truncated: Vec<bool>,        // the episode was cut off at s', [num_envs]
}

impl Transitions {
    /// The step that `envs` have just made from `observations` by `actions`.
    fn last(observations: Vec<f32>, actions: Vec<u32>, envs: &VecEnv) -> Self {
        Self {
            observations,
            actions,
            rewards: envs.rewards().to_vec(),
            // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
            next_observations: envs.final_observations().to_vec(),
            terminated: envs.terminated().to_vec(),
            truncated: envs.truncated().to_vec(),
        }
    }

    /// What is done next, `[num_envs]`: a' where the episode goes on, an action of `first` where one begins.
    fn following(&self, next_actions: &[u32], first: &[u32]) -> Vec<u32> {
        let begins = self.terminated.iter().zip(&self.truncated).map(|(end, cut)| *end || *cut);
        begins
            .zip(next_actions.iter().zip(first))
            .map(|(begins, (a, f))| if begins { *f } else { *a })
            .collect()
    }
}

/// What one update found, before it moved the parameters: means over the environments.
struct Losses {
    policy_loss: f32,
    qf_loss: f32,
    qf_values: f32,
    entropy: f32,
}

/// Actor, critic and how they learn.
struct QActorCritic {
    actor: Network,  // logits of π_θ(·|s), [num_actions]
    critic: Network, // Q_w(s, ·), [num_actions]
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl QActorCritic {
    fn new(dims: [usize; 2], hidden_sizes: &[usize], args: &Args, rng: &mut Rng) -> Result<Self> {
        let [observation_dim, num_actions] = dims;
        let sizes = [&[observation_dim], hidden_sizes, &[num_actions]].concat();
        let device = args.run.device()?;
        let [actor_seed, critic_seed]: [u64; 2] = rng.random();
        let actor = Network::new(&sizes, 0.01, args.policy_lr, actor_seed, &device)?;
        let critic = Network::new(&sizes, 1.0, args.q_lr, critic_seed, &device)?;
        Ok(Self { actor, critic, observation_dim, args: args.clone(), device })
    }

    /// Observations as `[num_envs, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// π_θ(·|s) for each observation.
    fn policy(&self, observations: &[f32]) -> Result<Categorical> {
        Ok(Categorical::new(&self.actor.forward(&self.tensor(observations)?)?)?)
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        Ok(self.policy(observations)?.sample(rng)?.to_vec1()?)
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(self.policy(observations)?.mode()?.to_vec1()?)
    }

    /// a' ~ π_θ(·|s') for each environment, where an episode ends of its true last state.
    fn next_actions(&self, step: &Transitions, rng: &mut Rng) -> Result<Vec<u32>> {
        self.act(&step.next_observations, rng)
    }

    /// Q_w(s, a) of one action for each observation, `[num_envs]`.
    fn value_of(&self, observations: &[f32], actions: &[u32]) -> Result<Tensor> {
        let action_values = self.critic.forward(&self.tensor(observations)?)?; // [num_envs, num_actions]
        Ok(action_values.gather(&Tensor::new(actions, &self.device)?.unsqueeze(1)?, 1)?.squeeze(1)?)
    }

    /// One step of actor and critic, with the a' of each environment.
    fn update(&mut self, step: &Transitions, next_actions: &[u32]) -> Result<Losses> {
        // Easy to miss: the actor's step is by the critic from before its own.
        let (policy_loss, entropy) = self.update_actor(step)?;
        let (qf_loss, qf_values) = self.update_critic(step, next_actions)?;
        Ok(Losses { policy_loss, qf_loss, qf_values, entropy })
    }

    /// One step of the policy. Returns the loss and the entropy.
    fn update_actor(&mut self, step: &Transitions) -> Result<(f32, f32)> {
        let policy = self.policy(&step.observations)?;
        let mut weights = self.value_of(&step.observations, &step.actions)?; // Q_w(s, a), [num_envs]
        if self.args.baseline {
            weights = (weights - self.baseline(&policy, &step.observations)?)?;
        }
        let log_probs = policy.log_prob(&Tensor::new(&*step.actions, &self.device)?)?; // ln π_θ(a|s)
        // −A ln π_θ(a|s), A constant
        let loss = (weights.detach() * log_probs)?.mean_all()?.neg()?;
        self.actor.descend(&loss, self.args.optimizer)?;
        Ok((loss.to_scalar()?, policy.entropy()?.mean_all()?.to_scalar()?))
    }

    /// Σ_b π_θ(b|s) Q_w(s, b), `[num_envs]`.
    fn baseline(&self, policy: &Categorical, observations: &[f32]) -> Result<Tensor> {
        let action_values = self.critic.forward(&self.tensor(observations)?)?;
        let (num_envs, num_actions) = action_values.dims2()?;
        let mut sum = Tensor::zeros(num_envs, DType::F32, &self.device)?;
        for action in 0..num_actions {
            let probs = policy.log_prob(&Tensor::full(action as u32, num_envs, &self.device)?)?.exp()?;
            sum = (sum + (probs * action_values.get_on_dim(1, action)?)?)?;
        }
        Ok(sum)
    }

    /// One step of Q_w(s, a). Returns the loss and the mean of Q_w(s, a).
    fn update_critic(&mut self, step: &Transitions, next_actions: &[u32]) -> Result<(f32, f32)> {
        let values = self.value_of(&step.observations, &step.actions)?; // Q_w(s, a), [num_envs]
        // ½ δ², whose gradient with a constant target is −δ ∇Q_w(s, a)
        let loss = (self.td_errors(step, next_actions, &values)?.sqr()?.mean_all()? * 0.5)?;
        self.critic.descend(&loss, self.args.optimizer)?;
        Ok((loss.to_scalar()?, values.mean_all()?.to_scalar()?))
    }

    /// δ, `[num_envs]`, from Q_w(s, a).
    fn td_errors(&self, step: &Transitions, next_actions: &[u32], values: &Tensor) -> Result<Tensor> {
        let next_values = self.value_of(&step.next_observations, next_actions)?; // Q_w(s', a')
        // Easy to miss and fatal: nothing lies beyond a terminal state; beyond a time limit there does.
        let continues: Vec<f32> = step.terminated.iter().map(|&end| if end { 0.0 } else { 1.0 }).collect();
        let discounts = (Tensor::new(continues, &self.device)? * self.args.gamma)?; // γ (1 − terminated)
        let targets = (Tensor::new(&*step.rewards, &self.device)? + (discounts * next_values)?)?.detach();
        // δ = r + γ (1 − terminated) Q_w(s', a') − Q_w(s, a)
        Ok((targets - values)?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("q_actor_critic")?;
    let mut rng = learner_rng(args.run.seed);
    let mut learner = QActorCritic::new([observation_dim, num_actions], &[64, 64], &args, &mut rng)?;
    let mut actions = learner.act(envs.observations(), &mut rng)?; // a ~ π_θ(·|s), [num_envs]
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let (mut global_step, mut updates) = (0, 0_usize);
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut learner.actor.parameters),
                ("critic", &mut learner.critic.parameters),
                ("actor_optimizer", &mut learner.actor.adam),
                ("critic_optimizer", &mut learner.critic.adam),
                ("envs", &mut envs),
                ("actions", &mut actions),
                ("rng", &mut rng),
                ("updates", &mut updates),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            learner.actor.adam.learning_rate = remaining * args.policy_lr;
            learner.critic.adam.learning_rate = remaining * args.q_lr;
        }

        let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
        envs.step(&actions)?;
        global_step += args.num_envs;
        run.episodes(global_step, envs.episodes())?;
        let step = Transitions::last(observations, actions, &envs);

        // a' ~ π_θ(·|s'), which is also done next where the episode goes on: so the critic learns on-policy (SARSA).
        let next_actions = learner.next_actions(&step, &mut rng)?; // [num_envs]
        let first_actions = learner.act(envs.observations(), &mut rng)?; // where an episode begins
        let losses = learner.update(&step, &next_actions)?;
        actions = step.following(&next_actions, &first_actions);
        updates += 1;
        if updates.is_multiple_of(100) {
            run.log(global_step, "charts/learning_rate", learner.actor.adam.learning_rate)?;
            run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
            run.log(global_step, "losses/qf_loss", losses.qf_loss)?;
            run.log(global_step, "losses/qf_values", losses.qf_values)?;
            run.log(global_step, "losses/entropy", losses.entropy)?;
        }
    }

    let (actor, critic) = (&mut learner.actor.parameters, &mut learner.critic.parameters);
    run.save_or_load_model(&mut [("actor", actor as _), ("critic", critic as _)])?;
    run.evaluate(|observations| learner.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
