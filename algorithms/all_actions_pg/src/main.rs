//! # The all-actions policy gradient
//!
//! Sutton, McAllester, Singh & Mansour (2000), "Policy gradient methods for reinforcement learning with
//! function approximation", NIPS 12; as an algorithm: Allen, Asadi, Roderick, Mohamed, Konidaris & Littman
//! (2017), "Mean actor critic", arXiv:1709.00503; Ciosek & Whiteson (2018), "Expected policy gradients",
//! arXiv:1706.05374.
//!
//! The policy gradient is a mean over states and over actions. Most algorithms estimate both means from
//! what was done, and so make probable what was tried and went well. But the mean over actions needs no
//! luck: where a critic says what each of a few actions is worth, it is a sum, of those actions too that
//! were not taken.
//!
//! The policy-gradient theorem (`reinforce` derives it), with the sum over actions left in it and with a
//! single sampled action a in its place, which has the same mean:
//!
//! ```text
//! ∇J(θ) ∝ E_s[ Σ_a ∇π_θ(a|s) Q(s, a) ] = E_{s,a}[ Q(s, a) ∇ln π_θ(a|s) ]
//! ```
//!
//! What a sample adds to the variance, Var = Var_s[ E_a[ · ] ] + E_s[ Var_a[ · ] ], is the second term, and
//! the sum is without it. A baseline changes nothing here, for Σ_a ∇π_θ(a|s) b(s) = b(s) ∇1 = 0. The critic
//! is learned by expected SARSA, whose target is a sum over the actions as well:
//!
//! ```text
//! y = r + γ (1 − terminated) Σ_a' π_θ(a'|s') Q_w(s', a')
//! L(w) = ½ E[ ( Q_w(s, a) − y )² ]
//! L(θ) = −E[ Σ_a π_θ(a|s) Q_w(s, a) ] − c_e E[ H(π_θ(·|s)) ]             Q_w held constant
//! ```
//!
//! `--gradient sampled` and `--gradient advantage` are what it is to be compared with: the same critic, but
//! Q_w(s, a) ∇ln π_θ(a|s) of the action taken, without and with the baseline Σ_a π_θ(a|s) Q_w(s, a).
//! `--variance-every 1` logs at each update the variance, summed over the parameters, of what a single state
//! contributes to each of the three, from the same policy, critic and rollout. On average, while CartPole is
//! learned, a sample has thousands of times the sum's variance, and with the baseline about two to five
//! times.
//!
//! Deviations from the papers: several environments side by side in place of one, and Adam, its step sizes
//! falling to zero. The critic makes several steps for each of the policy's (`--critic-updates`), each
//! towards targets of its own. An entropy bonus: of what a policy never does, its critic never hears
//! again. No factor γᵗ (see `reinforce`). And targets look beyond a time limit, from the true last state.
//!
//! Run `cargo run -p all_actions_pg`: 450 or more on CartPole-v1 after 300,000 steps in three seconds (there
//! is no published number; 475 is the return at which Gymnasium registers the task as solved).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Categorical, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::run::Run;
use rand::RngExt;
use serde::Serialize;
use std::process::ExitCode;

/// The policy gradient as a sum over all actions, with an action-value critic
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("300000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// How the mean over actions is taken
    #[arg(long, value_enum, default_value_t = Gradient::AllActions)]
    gradient: Gradient,
    /// Step size of the policy
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the critic
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    q_lr: f64,
    /// Let the step sizes fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Parallel environments
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps in each environment between updates
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    num_steps: usize,
    /// Steps of the critic for each one of the policy
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    critic_updates: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Weight of the entropy bonus, c_e
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    ent_coef: f64,
    /// Updates between measurements of each gradient's variance; 0 for none
    #[arg(long, default_value_t = 0)]
    variance_every: usize,
}

/// How the mean over actions is taken.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Gradient {
    /// The sum over all actions
    AllActions,
    /// The action taken alone, by its value
    Sampled,
    /// The action taken alone, by how much better than the mean it is
    Advantage,
}

/// The logits of the policy, or the values Q_w(s, ·), of all actions; and the network's optimiser.
struct Network {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [num_actions]
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

    /// Observations `[batch, observation_dim]` to `[batch, num_actions]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_tanh(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }
}

/// What happened in `num_steps` steps of each environment. Every column is `[num_steps, num_envs]`,
/// row by row: step t of environment e is at t · num_envs + e.
#[derive(Default)]
struct Rollout {
    observations: Vec<f32>,      // s_t, [num_steps, num_envs, observation_dim]
    actions: Vec<u32>,           // a_t
    rewards: Vec<f32>,           // r_t
    next_observations: Vec<f32>, // s_{t+1}, an episode's true last one at its end, shaped like s_t
    terminated: Vec<bool>,       // nothing lies beyond s_{t+1}
    truncated: Vec<bool>,        // the episode was cut off at s_{t+1}: a target looks beyond
}

impl Rollout {
    /// Stores the step that `envs` have just made from `observations` by `actions`.
    fn store(&mut self, observations: &[f32], actions: &[u32], envs: &VecEnv) {
        self.observations.extend_from_slice(observations);
        self.actions.extend_from_slice(actions);
        self.rewards.extend_from_slice(envs.rewards());
        // Easy to miss: after an episode's end `envs.observations()` are the next episode's.
        self.next_observations.extend_from_slice(envs.final_observations());
        self.terminated.extend_from_slice(envs.terminated());
        self.truncated.extend_from_slice(envs.truncated());
    }

    /// As tensors, where steps of all environments are the rows of one batch.
    fn batch(&self, device: &Device) -> Result<Batch> {
        let batch = self.rewards.len();
        let observation_dim = self.observations.len() / batch;
        let continues: Vec<f32> = self.terminated.iter().map(|&end| if end { 0.0 } else { 1.0 }).collect();
        Ok(Batch {
            observations: Tensor::from_slice(&self.observations, (batch, observation_dim), device)?,
            actions: Tensor::new(&*self.actions, device)?,
            rewards: Tensor::new(&*self.rewards, device)?,
            next_observations: Tensor::from_slice(&self.next_observations, (batch, observation_dim), device)?,
            continues: Tensor::new(continues, device)?,
        })
    }
}

/// A rollout as tensors.
struct Batch {
    observations: Tensor,      // s, [batch, observation_dim]
    actions: Tensor,           // a, [batch], u32
    rewards: Tensor,           // r, [batch]
    next_observations: Tensor, // s', [batch, observation_dim]
    continues: Tensor,         // 1 − terminated, [batch]
}

/// What one update found, before it moved the parameters.
struct Losses {
    policy_loss: f32, // minus the objective whose gradient the policy follows, without the bonus
    entropy: f32,
    qf_loss: f32,   // of the critic's first step
    qf_values: f32, // E[ Q_w(s, a) ]
}

/// Policy, critic and how they learn.
struct AllActions {
    actor: Network,  // logits of π_θ(·|s), [num_actions]
    critic: Network, // Q_w(s, ·), [num_actions]
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl AllActions {
    fn new(dims: [usize; 2], hidden_sizes: &[usize], args: &Args, rng: &mut Rng) -> Result<Self> {
        let [observation_dim, num_actions] = dims;
        let sizes = [&[observation_dim], hidden_sizes, &[num_actions]].concat();
        let device = args.run.device()?;
        let [actor_seed, critic_seed]: [u64; 2] = rng.random();
        let actor = Network::new(&sizes, 0.01, args.policy_lr, actor_seed, &device)?;
        let critic = Network::new(&sizes, 1.0, args.q_lr, critic_seed, &device)?;
        Ok(Self { actor, critic, observation_dim, args: args.clone(), device })
    }

    /// π_θ(·|s) for observations `[batch, observation_dim]`.
    fn policy(&self, observations: &Tensor) -> Result<Categorical> {
        Ok(Categorical::new(&self.actor.forward(observations)?)?)
    }

    /// The same for observations in a row.
    fn policy_of(&self, observations: &[f32]) -> Result<Categorical> {
        self.policy(&Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        Ok(self.policy_of(observations)?.sample(rng)?.to_vec1()?)
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(self.policy_of(observations)?.mode()?.to_vec1()?)
    }

    /// One step of the policy, and `--critic-updates` of the critic.
    fn update(&mut self, batch: &Batch) -> Result<Losses> {
        // Easy to miss: the policy's step is by the critic from before its own.
        let action_values = self.critic.forward(&batch.observations)?; // Q_w(s, ·), [batch, num_actions]
        let targets = self.targets(batch)?;
        let (policy_loss, entropy) = self.update_actor(batch, &action_values)?;
        let (qf_loss, qf_values) = self.update_critic(batch, &targets)?;
        for _ in 1..self.args.critic_updates {
            self.update_critic(batch, &self.targets(batch)?)?;
        }
        Ok(Losses { policy_loss, entropy, qf_loss, qf_values })
    }

    /// y, `[batch]`.
    fn targets(&self, batch: &Batch) -> Result<Tensor> {
        let next_action_values = self.critic.forward(&batch.next_observations)?; // [batch, num_actions]
        let next_values = expectation(&self.policy(&batch.next_observations)?, &next_action_values)?;
        // y = r + γ (1 − terminated) Σ_a' π_θ(a'|s') Q_w(s', a')
        Ok((&batch.rewards + (&batch.continues * next_values)? * self.args.gamma)?.detach())
    }

    /// One step of Q_w(s, a) towards y. Returns the loss and the mean value of the actions taken.
    fn update_critic(&mut self, batch: &Batch, targets: &Tensor) -> Result<(f32, f32)> {
        let taken =
            self.critic.forward(&batch.observations)?.gather(&batch.actions.unsqueeze(1)?, 1)?.squeeze(1)?;
        // L(w) = ½ E[ ( Q_w(s, a) − y )² ]
        let loss = ((&taken - targets)?.sqr()?.mean_all()? * 0.5)?;
        self.critic.adam.backward_step(&loss)?;
        Ok((loss.to_scalar()?, taken.mean_all()?.to_scalar()?))
    }

    /// One step of the policy by `action_values`, `[batch, num_actions]`. Returns the loss and the entropy.
    fn update_actor(&mut self, batch: &Batch, action_values: &Tensor) -> Result<(f32, f32)> {
        let policy = self.policy(&batch.observations)?;
        let policy_loss =
            objectives(&policy, &batch.actions, action_values, self.args.gradient)?.mean_all()?.neg()?;
        let entropy = policy.entropy()?.mean_all()?;
        // L(θ), with the bonus
        let loss = (&policy_loss - (&entropy * self.args.ent_coef)?)?;
        self.actor.adam.backward_step(&loss)?;
        Ok((policy_loss.to_scalar()?, entropy.to_scalar()?))
    }

    /// Σ_k Var[ ∂J/∂θ_k ] of the estimate that a single state of at least two gives.
    fn gradient_variance(&self, batch: &Batch, gradient: Gradient) -> Result<f64> {
        let action_values = self.critic.forward(&batch.observations)?;
        let policy = self.policy(&batch.observations)?;
        let of_states = objectives(&policy, &batch.actions, &action_values, gradient)?; // [batch]
        let n = of_states.dim(0)?;
        let mut estimates = Vec::new(); // [n, num_parameters]
        for i in 0..n {
            estimates.extend(self.actor.parameters.gradients(&of_states.get(i)?)?);
        }
        let estimates = Tensor::from_vec(estimates, (n, ()), &self.device)?;
        let squares = estimates.broadcast_sub(&estimates.mean_keepdim(0)?)?.sqr()?.sum_all()?;
        Ok(f64::from(squares.to_scalar::<f32>()?) / (n - 1) as f64)
    }
}

/// Σ_a π(a|s) x(s, a), `[batch]`, of x, `[batch, num_actions]`.
fn expectation(policy: &Categorical, x: &Tensor) -> Result<Tensor> {
    let (batch, num_actions) = x.dims2()?;
    let log_probs = (0..num_actions as u32)
        .map(|action| policy.log_prob(&Tensor::full(action, batch, x.device())?))
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok((Tensor::stack(&log_probs, 1)?.exp()? * x)?.sum(1)?)
}

/// What one state's estimate of the policy's gradient is the gradient of, `[batch]`, from the actions taken,
/// `[batch]`, and Q_w(s, ·), `[batch, num_actions]`.
fn objectives(
    policy: &Categorical,
    actions: &Tensor,
    action_values: &Tensor,
    gradient: Gradient,
) -> Result<Tensor> {
    let action_values = action_values.detach(); // held constant
    let taken = action_values.gather(&actions.unsqueeze(1)?, 1)?.squeeze(1)?; // Q_w(s, a), [batch]
    Ok(match gradient {
        // Σ_a π_θ(a|s) Q_w(s, a)
        Gradient::AllActions => expectation(policy, &action_values)?,
        // Q_w(s, a) ln π_θ(a|s)
        Gradient::Sampled => (taken * policy.log_prob(actions)?)?,
        // ( Q_w(s, a) − Σ_b π_θ(b|s) Q_w(s, b) ) ln π_θ(a|s)
        Gradient::Advantage => {
            ((taken - expectation(policy, &action_values)?)?.detach() * policy.log_prob(actions)?)?
        }
    })
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("all_actions_pg")?;
    let Args { num_envs, num_steps, .. } = args;
    let rollout_size = num_envs.saturating_mul(num_steps);
    if rollout_size > 100_000_000 {
        return invalid(format!("--num-envs {num_envs} --num-steps {num_steps}: together at most 1e8 steps"));
    }
    if args.variance_every > 0 && rollout_size < 2 {
        return invalid("--num-envs 1 --num-steps 1: --variance-every needs two steps or more".to_string());
    }
    let mut rng = learner_rng(args.run.seed);
    let mut learner = AllActions::new([observation_dim, num_actions], &[64, 64], &args, &mut rng)?;
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
                ("rng", &mut rng),
                ("updates", &mut updates),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            learner.actor.adam.learning_rate = remaining * args.policy_lr;
            learner.critic.adam.learning_rate = remaining * args.q_lr;
        }

        // Run the policy for num_steps steps in each environment.
        let mut rollout = Rollout::default();
        for _ in 0..args.num_steps {
            let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
            let actions = learner.act(&observations, &mut rng)?; // [num_envs]
            envs.step(&actions)?;
            rollout.store(&observations, &actions, &envs);
            global_step += args.num_envs;
            run.episodes(global_step, envs.episodes())?;
        }

        // Learn from all of it, once: afterwards it is another policy's.
        let batch = rollout.batch(&learner.device)?;
        updates += 1;
        if args.variance_every > 0 && updates.is_multiple_of(args.variance_every) {
            let variance = |gradient| learner.gradient_variance(&batch, gradient);
            run.log(global_step, "variance/all_actions", variance(Gradient::AllActions)?)?;
            run.log(global_step, "variance/sampled", variance(Gradient::Sampled)?)?;
            run.log(global_step, "variance/advantage", variance(Gradient::Advantage)?)?;
        }
        let losses = learner.update(&batch)?;
        if updates.is_multiple_of(20) {
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
