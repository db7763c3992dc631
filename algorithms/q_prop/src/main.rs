//! # Q-Prop
//!
//! Gu, Lillicrap, Ghahramani, Turner & Levine (2017), "Q-Prop: sample-efficient policy gradient with an
//! off-policy critic", arXiv:1611.02247. Advantages: Schulman et al. (2016), arXiv:1506.02438.
//!
//! An off-policy critic Q learns from every step ever made, but a policy that climbs it inherits its errors; a
//! policy gradient from returns has no such bias, but much variance. Q-Prop takes Q for a control variate: what
//! Q predicts of the advantage is subtracted from the sampled gradient and given back as an expectation, which
//! needs no sample. Whatever Q is, the mean stays; the better it is, the less variance is left.
//!
//! ```text
//! ∇J(θ) = E[ ( Â − η Ā ) ∇ ln π_θ(a|s) ] + E[ η ∇ Σ_b π_θ(b|s) Q(s, b) ]
//!
//! advantage   Â_t = δ_t + γ λ (1 − done_t) Â_{t+1},   δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
//! predicted   Ā = Q(s, a) − Σ_b π(b|s) Q(s, b),   Var(Ā) = Σ_b π(b|s) Ā(s, b)²
//! η           none 0, full 1, adaptive Â Ā / Var(Ā), conservative 1 where Â Ā > 0, else 0, aggressive sign(Â Ā)
//!
//! critic      minimises E_replay[ ½ ( Q(s, a) − y )² ],   y = r + γ (1 − terminated) Σ_b π(b|s') Q⁻(s', b)
//!             Q⁻ ← (1 − τ) Q⁻ + τ Q
//! baseline    minimises E[ ½ ( Â + V_old(s) − V(s) )² ]
//! ```
//!
//! An η that looks at Â, and so at the action, is no function of the state, and the mean not exactly the
//! gradient; the paper found the conservative one the most stable nonetheless. `--variance-every 1` logs the
//! variance of a step's gradient under each η, summed over parameters, of the same steps: `variance/none`, ….
//!
//! Deviations from the paper: its actions are continuous, and Q's tangent at their mean stands for Q; here the
//! expectation is exact. Policy and baseline make one step of Adam on each rollout, where the paper fits V
//! before Â and may take TRPO's step; Â − η Ā is not centred; the critic learns after them, so that Ā knows
//! nothing of the rollout, in a few steps on whole rollouts; step sizes fall to zero; beyond a time limit V
//! stands for the rest. λ is 1: with 0.97 conservative η lost what four of four seeds had learned (η = 1 not).
//!
//! Run `cargo run -p q_prop`: 475 (Gymnasium's threshold) or more on CartPole-v1 after 300,000 steps, in about
//! four seconds, with each of fifteen seeds.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, WithDType};
use clap::{Parser, ValueEnum};
use common::envs::{Rng, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Categorical, Linear, VarBuilder, VarMap, clamp, linear_orthogonal, soft_update};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, f64::consts::SQRT_2, process::ExitCode};

/// Q-Prop: a policy gradient with an off-policy critic for its control variate, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("300000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// How much of the control variate is taken, η
    #[arg(long, value_enum, default_value_t = Eta::Conservative)]
    control_variate: Eta,
    /// Step size of Adam for the policy and its baseline
    #[arg(long, default_value_t = 5e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Step size of Adam for the critic
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    q_lr: f64,
    /// Let both step sizes fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Parallel environments
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps in each environment between updates of the policy
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    num_steps: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Decay of the advantages' traces, λ
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    gae_lambda: f64,
    /// Steps that the critic's replay buffer holds, rounded up to whole rollouts
    #[arg(long, default_value_t = 50_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Updates of the critic after each of the policy
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    q_updates: usize,
    /// How far the target critic moves to the critic after each of its updates, τ
    #[arg(long, default_value_t = 0.05, value_parser = cli::unit_interval)]
    tau: f64,
    /// Updates between measurements of the variance under each η; 0 for none
    #[arg(long, default_value_t = 0)]
    variance_every: u64,
}

/// How much of the control variate is taken, for each step.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Eta {
    /// 0: the plain policy gradient
    None,
    /// 1: the critic is believed
    Full,
    /// What leaves the least variance, as far as one sample tells
    Adaptive,
    /// 1 where the critic agrees with the advantage, else 0
    Conservative,
    /// 1 where the critic agrees with the advantage, −1 where it does not
    Aggressive,
}

/// A network of tanh units.
struct Network {
    hidden: Vec<Linear>, // [inputs] → hidden_sizes[0] → …
    output: Linear,      // → [outputs]
}

impl Network {
    /// `sizes` are of the hidden layers. `gain` scales the output layer: 0.01 makes the first policy
    /// almost uniform (Andrychowicz et al. 2021, arXiv:2006.05990), 1 suits a value.
    fn new(mut inputs: usize, sizes: &[usize], outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let mut hidden = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            hidden.push(linear_orthogonal(inputs, size, SQRT_2, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        Ok(Self { hidden, output: linear_orthogonal(inputs, outputs, gain, vb.pp("output"))? })
    }

    /// `[batch, inputs]` to `[batch, outputs]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for layer in &self.hidden {
            x = layer.forward_tanh(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }
}

/// ln π of logits `[batch, num_actions]`.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?)
}

/// What happened in `num_steps` steps of each environment. Every column is `[num_steps, num_envs]`,
/// row by row: step t of environment e is at t · num_envs + e.
#[derive(Serialize, Deserialize, Default)]
struct Rollout {
    observations: Vec<f32>,      // s_t, [num_steps, num_envs, observation_dim]
    actions: Vec<u32>,           // a_t
    rewards: Vec<f32>,           // r_t
    next_observations: Vec<f32>, // s_{t+1}, an episode's true last one at its end, shaped like s_t
    terminated: Vec<bool>,       // nothing lies beyond s_{t+1}
    truncated: Vec<bool>,        // the episode was cut off at s_{t+1}
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

    /// Â_t from V(s_t) and V(s_{t+1}); all `[num_steps, num_envs]`.
    fn advantages(&self, values: &[f32], next_values: &[f32], args: &Args) -> Vec<f32> {
        let (gamma, lambda) = (args.gamma as f32, args.gae_lambda as f32);
        let (num_envs, num_steps) = (args.num_envs, self.rewards.len() / args.num_envs);
        let mut advantages = vec![0.0; values.len()];
        for t in (0..num_steps).rev() {
            for env in 0..num_envs {
                let i = t * num_envs + env;
                // δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
                let next_value = if self.terminated[i] { 0.0 } else { next_values[i] };
                let delta = self.rewards[i] + gamma * next_value - values[i];
                // Â_t = δ_t + γ λ (1 − done_t) Â_{t+1},   done: terminated or truncated
                // Easy to miss and fatal: what follows an episode's end belongs to the next one.
                let last = self.terminated[i] || self.truncated[i] || t + 1 == num_steps;
                let next_advantage = if last { 0.0 } else { advantages[i + num_envs] };
                advantages[i] = delta + gamma * lambda * next_advantage;
            }
        }
        advantages
    }
}

/// The last `capacity` rollouts.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    capacity: usize,
    rollouts: VecDeque<Rollout>, // the oldest first, [len]
}

impl ReplayBuffer {
    fn store(&mut self, rollout: Rollout) {
        if self.rollouts.len() == self.capacity {
            self.rollouts.pop_front();
        }
        self.rollouts.push_back(rollout);
    }

    /// One rollout, uniformly.
    fn sample(&self, rng: &mut Rng) -> &Rollout {
        &self.rollouts[rng.random_range(0..self.rollouts.len())]
    }
}

/// Policy, its baseline, the critic and how they learn.
struct QProp {
    actor: Network,              // logits of π_θ(·|s), [num_actions]
    baseline: Network,           // V(s), [1]
    critic: Network,             // Q(s, ·), [num_actions]
    target_critic: Network,      // Q⁻(s, ·)
    actor_parameters: VarMap,    // θ
    baseline_parameters: VarMap, // of V
    critic_parameters: VarMap,   // of Q
    target_parameters: VarMap,   // of Q⁻: a map of its own, for a clone would follow Q
    optimizer: Adam,             // of the policy and its baseline, together
    critic_optimizer: Adam,      // of Q
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl QProp {
    fn new(envs: &VecEnv, hidden_sizes: &[usize], args: &Args, rng: &mut Rng) -> Result<Self> {
        let (observation_dim, num_actions) = envs.spec().box_to_discrete("q_prop")?;
        let device = args.run.device()?;
        let [actor_parameters, baseline_parameters, critic_parameters, target_parameters] =
            [rng.random(), rng.random(), rng.random(), 0].map(VarMap::new);
        let network = |outputs, gain, parameters: &VarMap| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            Network::new(observation_dim, hidden_sizes, outputs, gain, vb)
        };
        let actor = network(num_actions, 0.01, &actor_parameters)?;
        let baseline = network(1, 1.0, &baseline_parameters)?;
        let critic = network(num_actions, 1.0, &critic_parameters)?;
        let target_critic = network(num_actions, 1.0, &target_parameters)?;
        soft_update(&target_parameters, &critic_parameters, 1.0)?; // a copy
        let learned_together = [actor_parameters.all_vars(), baseline_parameters.all_vars()].concat();
        Ok(Self {
            actor,
            baseline,
            critic,
            target_critic,
            optimizer: Adam::from_vars(learned_together, args.learning_rate)?,
            critic_optimizer: Adam::new(&critic_parameters, args.q_lr)?,
            actor_parameters,
            baseline_parameters,
            critic_parameters,
            target_parameters,
            observation_dim,
            args: args.clone(),
            device,
        })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// Numbers or indices, one for each step, as `[batch, 1]`.
    fn column<T: WithDType>(&self, numbers: &[T]) -> Result<Tensor> {
        Ok(Tensor::from_slice(numbers, ((), 1), &self.device)?)
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        Ok(Categorical::new(&self.actor.forward(&self.tensor(observations)?)?)?.sample(rng)?.to_vec1()?)
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(Categorical::new(&self.actor.forward(&self.tensor(observations)?)?)?.mode()?.to_vec1()?)
    }

    /// y, `[batch, 1]`.
    fn td_targets(&self, batch: &Rollout) -> Result<Tensor> {
        let next_observations = self.tensor(&batch.next_observations)?;
        let probs = log_softmax(&self.actor.forward(&next_observations)?)?.exp()?;
        let next_values = (probs * self.target_critic.forward(&next_observations)?)?.sum_keepdim(1)?;
        // y = r + γ (1 − terminated) Σ_b π(b|s') Q⁻(s', b)
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let discount = |&terminated| if terminated { 0.0 } else { self.args.gamma as f32 };
        let discounts: Vec<f32> = batch.terminated.iter().map(discount).collect();
        Ok((self.column(&batch.rewards)? + self.column(&discounts)? * next_values)?.detach())
    }

    /// One step of the critic towards y, and of its target. Returns its loss and E[ Q(s, a) ] from before.
    fn update_critic(&mut self, batch: &Rollout) -> Result<(f32, f32)> {
        let y = self.td_targets(batch)?;
        let q_values = self.critic.forward(&self.tensor(&batch.observations)?)?;
        let q_taken = q_values.gather(&self.column(&batch.actions)?, 1)?; // Q(s, a), [batch, 1]
        // E[ ½ ( Q(s, a) − y )² ]
        let loss = ((&q_taken - y)?.sqr()?.mean_all()? * 0.5)?;
        self.critic_optimizer.backward_step(&loss)?;
        // Q⁻ ← (1 − τ) Q⁻ + τ Q
        soft_update(&self.target_parameters, &self.critic_parameters, self.args.tau)?;
        Ok((loss.to_scalar()?, q_taken.mean_all()?.to_scalar()?))
    }

    /// Ā, η, which are constant, and Σ_b π_θ(b|s) Q(s, b), which is not, `[batch, 1]` each; from ln π_θ(·|s),
    /// Q(s, ·), `[batch, num_actions]` each, a and Â, `[batch, 1]` each.
    fn control(of: [&Tensor; 4], kind: Eta) -> Result<[Tensor; 3]> {
        let [log_probs, q_values, actions, advantages] = of;
        let probs = log_probs.exp()?;
        let expected = (&probs * q_values)?.sum_keepdim(1)?;
        // Ā(s, ·) = Q(s, ·) − Σ_b π(b|s) Q(s, b)
        let centred = q_values.broadcast_sub(&expected)?.detach(); // [batch, num_actions]
        let bar = centred.gather(actions, 1)?;
        // Var(Ā) = Σ_b π(b|s) Ā(s, b)²
        let variance = (probs.detach() * centred.sqr()?)?.sum_keepdim(1)?;
        let product = (advantages * &bar)?; // Â Ā
        let eta = match kind {
            Eta::None => product.zeros_like()?,
            Eta::Full => product.ones_like()?,
            Eta::Adaptive => (product / clamp(&variance, 1e-12, f64::INFINITY)?)?,
            Eta::Conservative => product.gt(0.0)?.to_dtype(DType::F32)?,
            Eta::Aggressive => product.sign()?,
        };
        Ok([bar, eta, expected])
    }

    /// What the policy descends, for each step, `[batch, 1]`, from Â.
    fn policy_losses(&self, rollout: &Rollout, advantages: &[f32], kind: Eta) -> Result<Tensor> {
        let observations = self.tensor(&rollout.observations)?;
        let (actions, advantages) = (self.column(&rollout.actions)?, self.column(advantages)?);
        let log_probs = log_softmax(&self.actor.forward(&observations)?)?; // [batch, num_actions]
        let q_values = self.critic.forward(&observations)?.detach();
        let [bar, eta, expected] = Self::control([&log_probs, &q_values, &actions, &advantages], kind)?;
        // −[ ( Â − η Ā ) ln π_θ(a|s) + η Σ_b π_θ(b|s) Q(s, b) ], in which η, Â and Ā are constant
        let sampled = ((advantages - (&eta * bar)?)? * log_probs.gather(&actions, 1)?)?;
        Ok((sampled + (eta * expected)?)?.neg()?)
    }

    /// Â_t and V(s_t), both `[num_steps, num_envs]`.
    fn evaluate(&self, rollout: &Rollout) -> Result<(Vec<f32>, Vec<f32>)> {
        let values = self.baseline.forward(&self.tensor(&rollout.observations)?)?.flatten_all()?.to_vec1()?;
        let next_values = self.baseline.forward(&self.tensor(&rollout.next_observations)?)?.flatten_all()?;
        Ok((rollout.advantages(&values, &next_values.to_vec1()?, &self.args), values))
    }

    /// One step of the policy up J(θ), and of its baseline towards the returns. Returns both losses from before.
    fn update(&mut self, rollout: &Rollout) -> Result<(f32, f32)> {
        let (advantages, values) = self.evaluate(rollout)?;
        let policy_loss = self.policy_losses(rollout, &advantages, self.args.control_variate)?.mean_all()?;
        // E[ ½ ( Â + V_old(s) − V(s) )² ]
        let returns: Vec<f32> = advantages.iter().zip(&values).map(|(gain, value)| gain + value).collect();
        let values = self.baseline.forward(&self.tensor(&rollout.observations)?)?; // V(s), [batch, 1]
        let value_loss = ((self.column(&returns)? - values)?.sqr()?.mean_all()? * 0.5)?;
        // The two share no parameter, and Adam asks for no balance.
        self.optimizer.backward_step(&(&policy_loss + &value_loss)?)?;
        Ok((policy_loss.to_scalar()?, value_loss.to_scalar()?))
    }

    /// Σ_k Var[ ∂J/∂θ_k ] of a single step's estimate.
    fn gradient_variance(&self, rollout: &Rollout, kind: Eta) -> Result<f64> {
        let losses = self.policy_losses(rollout, &self.evaluate(rollout)?.0, kind)?;
        let of_step = |t| Ok(self.actor_parameters.gradients(&losses.get(t)?.sum_all()?)?);
        let gradients = (0..rollout.rewards.len()).map(of_step).collect::<Result<Vec<Vec<f32>>>>()?;
        let gradients = Tensor::new(gradients, &self.device)?; // [batch, num_parameters]
        let squares = gradients.broadcast_sub(&gradients.mean_keepdim(0)?)?.sqr()?.sum_all()?;
        Ok(f64::from(squares.to_scalar::<f32>()?) / (rollout.rewards.len() - 1) as f64)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let Args { num_envs, num_steps, .. } = args;
    let rollout_size = num_envs.saturating_mul(num_steps);
    if rollout_size > 100_000_000 {
        return invalid(format!("--num-envs {num_envs} --num-steps {num_steps}: together at most 1e8 steps"));
    }
    if args.variance_every > 0 && rollout_size < 2 {
        return invalid("--num-envs 1 --num-steps 1: --variance-every needs two steps or more");
    }
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, args.run.seed)?;
    let mut rng = learner_rng(args.run.seed);
    let mut q_prop = QProp::new(&envs, &[64, 64], &args, &mut rng)?;
    let mut buffer = ReplayBuffer { capacity: args.buffer_size.div_ceil(rollout_size), ..Default::default() };
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let (mut global_step, mut updates) = (0, 0_u64);
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut q_prop.actor_parameters),
                ("baseline", &mut q_prop.baseline_parameters),
                ("critic", &mut q_prop.critic_parameters),
                ("target_critic", &mut q_prop.target_parameters),
                ("optimizer", &mut q_prop.optimizer),
                ("critic_optimizer", &mut q_prop.critic_optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("buffer", &mut buffer),
                ("updates", &mut updates),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            q_prop.optimizer.learning_rate = remaining * args.learning_rate;
            q_prop.critic_optimizer.learning_rate = remaining * args.q_lr;
        }

        // Run the policy for num_steps steps in each environment.
        let mut rollout = Rollout::default();
        for _ in 0..args.num_steps {
            let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
            let actions = q_prop.act(&observations, &mut rng)?;
            envs.step(&actions)?;
            rollout.store(&observations, &actions, &envs);
            global_step += args.num_envs;
            run.episodes(global_step, envs.episodes())?;
        }

        // Learn: the policy from it, once, with a critic that has not seen it, then the critic from the buffer.
        if args.variance_every > 0 && updates.is_multiple_of(args.variance_every) {
            for &kind in Eta::value_variants() {
                let name = format!("variance/{kind:?}").to_lowercase();
                run.log(global_step, &name, q_prop.gradient_variance(&rollout, kind)?)?;
            }
        }
        let (policy_loss, value_loss) = q_prop.update(&rollout)?;
        buffer.store(rollout);
        let (mut qf_loss, mut qf_values) = (0.0, 0.0);
        for _ in 0..args.q_updates {
            (qf_loss, qf_values) = q_prop.update_critic(buffer.sample(&mut rng))?;
        }
        updates += 1;
        run.log(global_step, "charts/learning_rate", q_prop.optimizer.learning_rate)?;
        run.log(global_step, "losses/policy_loss", policy_loss)?;
        run.log(global_step, "losses/value_loss", value_loss)?;
        run.log(global_step, "losses/qf_loss", qf_loss)?;
        run.log(global_step, "losses/qf_values", qf_values)?;
    }

    run.save_or_load_model(&mut q_prop.actor_parameters)?;
    run.evaluate(|observations| q_prop.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
