//! # Back-propagation through a learned model into the policy
//!
//! Nguyen & Widrow (1990), "Neural networks for self-learning control systems"; with a stochastic model and
//! policy SVG(∞) (Heess et al. 2015, arXiv:1510.09142).
//!
//! One network learns what an action does to a state, another what it pays: then the return of a rollout
//! imagined in them is a differentiable function of the policy's parameters, and its gradient says how
//! each action should have been. No sampled actions make it noisy, but it is a product of as many Jacobians
//! as there are steps, which vanishes or explodes with the horizon H: `gradient_norms.png` shows how. The
//! policy goes where the model errs in its favour; what it meets there joins the data for the next fit.
//!
//! ```text
//! model      s' ≈ s + m_Δ + σ_Δ f_ψ(x),   r ≈ g_ω(x),   x = ((s, a) − m) / σ
//!            L(ψ) = mean over data and dimensions of ( f_ψ(x) − (s' − s − m_Δ) / σ_Δ )²
//!            L(ω) = E_{(s, a, r) ~ data}[ (g_ω(x) − r)² ]
//! rollout    s_0 ~ data,   a_t = μ_φ(s_t) = b + c tanh h_φ(s_t),   s_{t+1}, r_t = model(s_t, a_t)
//! maximised  J_H(φ) = E[ Σ_{t<H} γ^t r_t ]
//! gradient   dJ_H/dφ = E[ Σ_{t<H} γ^t ( ∂r_t/∂s_t ds_t/dφ + ∂r_t/∂a_t da_t/dφ ) ]
//!            ds_{t+1}/dφ = ∂s_{t+1}/∂s_t ds_t/dφ + ∂s_{t+1}/∂a_t da_t/dφ,   ds_0/dφ = 0
//!            da_t/dφ = ∂μ_φ(s_t)/∂φ + ∂μ_φ(s_t)/∂s_t ds_t/dφ
//! explore    a = clip( μ_φ(s) + c N(0, σ_ε²), b − c, b + c )
//! ```
//!
//! Deviations from the papers: rollouts are imagined, where SVG(∞) takes the model's derivatives along
//! trajectories that happened; model and policy are deterministic (SVG infers the noise behind each transition),
//! so that noise on the actions explores; rollouts begin in states of the data instead of an episode's first,
//! which makes H steps enough, and nothing is added for what follows; the gradient is clipped. A termination is a
//! jump without a gradient, hence only environments that time alone ends.
//!
//! Run `cargo run -p model_backprop`: about -170 on Pendulum-v1 after 6,000 steps in ten seconds (-157 is what
//! the trained SAC of RL Baselines3 Zoo reaches after 20,000: its benchmark.md).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, VecEnv, invalid, learner_rng};
use common::nn::{self, Adam, Init, Linear, VarBuilder, VarMap, clamp, linear};
use common::{Run, cli, cli::RunArgs, plot::Chart, plot::Curve};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{path::Path, process::ExitCode};

/// Back-propagation through a learned model into the policy
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("6000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Steps of an imagined rollout, H
    #[arg(long, default_value_t = 25, value_parser = cli::positive)]
    horizon: usize,
    /// Steps with uniformly random actions before the first model
    #[arg(long, default_value_t = 400, value_parser = cli::positive)]
    learning_starts: usize,
    /// Steps between two rounds of learning
    #[arg(long, default_value_t = 200, value_parser = cli::positive)]
    train_frequency: usize,
    /// Updates of the model in a round
    #[arg(long, default_value_t = 200, value_parser = cli::positive)]
    model_updates: usize,
    /// Updates of the policy in a round
    #[arg(long, default_value_t = 25, value_parser = cli::positive)]
    policy_updates: usize,
    /// Transitions in an update of the model, and imagined rollouts in one of the policy
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    batch_size: usize,
    /// Step size of the model and of the policy
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Largest norm of the policy's gradient
    #[arg(long, default_value_t = 1.0, value_parser = cli::above_zero)]
    max_grad_norm: f64,
    /// Standard deviation of the noise on actions, in units of c, σ_ε
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    exploration_noise: f64,
    /// Units in each of the two hidden layers
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    hidden_size: usize,
}

/// Two hidden layers of ReLU units.
#[derive(Clone)]
struct Mlp {
    hidden1: Linear, // [inputs] → [hidden_size]
    hidden2: Linear, // [hidden_size] → [hidden_size]
    output: Linear,  // [hidden_size] → [outputs]
}

impl Mlp {
    fn new(inputs: usize, hidden_size: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            hidden1: linear(inputs, hidden_size, vb.pp("hidden1"))?,
            hidden2: linear(hidden_size, hidden_size, vb.pp("hidden2"))?,
            output: linear(hidden_size, outputs, vb.pp("output"))?,
        })
    }

    /// `[batch, inputs]` to `[batch, outputs]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.hidden1.forward_relu(x)?;
        let x = self.hidden2.forward_relu(&x)?;
        Ok(self.output.forward(&x)?)
    }

    /// The same network with its parameters held constant: gradients pass through it to its input.
    fn held_constant(&self) -> Self {
        let Self { hidden1, hidden2, output } = self;
        Self { hidden1: hidden1.detach(), hidden2: hidden2.detach(), output: output.detach() }
    }
}

/// Mean and standard deviation of each number in a row of the data.
#[derive(Clone)]
struct Normalizer {
    mean: Tensor, // m, [1, dim]
    std: Tensor,  // σ, [1, dim]
}

impl Normalizer {
    /// m and σ of `rows`, `[len, dim]`.
    fn fit(rows: &Tensor) -> Result<Self> {
        let mean = rows.mean_keepdim(0)?;
        let std = rows.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?.sqrt()?;
        Ok(Self { mean, std: clamp(&std, 1e-6, f64::INFINITY)? }) // σ = 0 for what has not changed yet
    }

    /// (x − m) / σ
    fn normalize(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_sub(&self.mean)?.broadcast_div(&self.std)?)
    }
}

/// What the environment is believed to do.
#[derive(Clone)]
struct Model {
    dynamics: Mlp,           // f_ψ: [observation_dim + action_dim] → [observation_dim]
    reward: Mlp,             // g_ω: [observation_dim + action_dim] → [1]
    inputs: Normalizer,      // m and σ of (s, a)
    differences: Normalizer, // m_Δ and σ_Δ of s' − s
}

impl Model {
    /// s', `[batch, observation_dim]`, and r, `[batch, 1]`, from s and a `[batch, action_dim]`.
    fn step(&self, states: &Tensor, actions: &Tensor) -> Result<(Tensor, Tensor)> {
        // x = ((s, a) − m) / σ
        let x = self.inputs.normalize(&Tensor::cat(&[states, actions], 1)?)?;
        // s' = s + m_Δ + σ_Δ f_ψ(x)
        let Normalizer { mean, std } = &self.differences;
        let differences = self.dynamics.forward(&x)?.broadcast_mul(std)?.broadcast_add(mean)?;
        Ok(((states + differences)?, self.reward.forward(&x)?)) // r = g_ω(x)
    }

    /// The same model with its parameters held constant: gradients pass through it to states and actions.
    fn held_constant(&self) -> Self {
        let (dynamics, reward) = (self.dynamics.held_constant(), self.reward.held_constant());
        Self { dynamics, reward, ..self.clone() }
    }
}

/// s' and r from s and a: [`Model::step`], or anything else that is differentiable.
type Step<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<(Tensor, Tensor)>;

/// The policy μ_φ.
struct Actor {
    network: Mlp,         // h_φ: [observation_dim] → [action_dim]
    action_bias: Tensor,  // b, the middle of the bounds b ± c, [1, action_dim]
    action_scale: Tensor, // c, [1, action_dim]
    parameters: VarMap,   // φ
}

impl Actor {
    fn new(observation_dim: usize, bounds: (&[f32], &[f32]), args: &Args, seed: u64) -> Result<Self> {
        let ((action_bias, action_scale), action_dim) = (bounds, bounds.0.len());
        let (device, parameters) = (args.run.device()?, VarMap::new(seed));
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        Ok(Self {
            network: Mlp::new(observation_dim, args.hidden_size, action_dim, vb)?,
            action_bias: Tensor::from_slice(action_bias, (1, action_dim), &device)?,
            action_scale: Tensor::from_slice(action_scale, (1, action_dim), &device)?,
            parameters,
        })
    }

    /// μ_φ(s) = b + c tanh h_φ(s), `[batch, action_dim]`, for observations `[batch, observation_dim]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let squashed = self.network.forward(observations)?.tanh()?;
        Ok(squashed.broadcast_mul(&self.action_scale)?.broadcast_add(&self.action_bias)?)
    }
}

/// Every transition of the run: the model learns from all of them.
#[derive(Serialize, Deserialize, Default)]
struct Data {
    observations: Vec<f32>,      // s, [len, observation_dim]
    actions: Vec<f32>,           // a, [len, action_dim]
    rewards: Vec<f32>,           // r, [len]
    next_observations: Vec<f32>, // s', an episode's true last one at its end, [len, observation_dim]
}

/// Some of them.
struct Batch {
    observations: Tensor,      // s, [batch, observation_dim]
    actions: Tensor,           // a, [batch, action_dim]
    rewards: Tensor,           // r, [batch, 1]
    next_observations: Tensor, // s', [batch, observation_dim]
}

impl Data {
    /// Stores the step that `envs`, a single environment, has just made.
    fn store(&mut self, observation: &[f32], action: &[f32], envs: &VecEnv) {
        self.observations.extend_from_slice(observation);
        self.actions.extend_from_slice(action);
        self.rewards.extend_from_slice(envs.rewards());
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
        self.next_observations.extend_from_slice(envs.final_observations());
    }

    /// `batch_size` transitions, uniformly and with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<Batch> {
        let len = self.rewards.len();
        let rows: Vec<usize> = (0..batch_size).map(|_| rng.random_range(0..len)).collect();
        let gather = |column: &[f32]| {
            let width = column.len() / len;
            let values = rows.iter().flat_map(|row| &column[row * width..(row + 1) * width]);
            Tensor::from_vec(values.copied().collect(), (batch_size, width), device)
        };
        Ok(Batch {
            observations: gather(&self.observations)?,
            actions: gather(&self.actions)?,
            rewards: gather(&self.rewards)?,
            next_observations: gather(&self.next_observations)?,
        })
    }
}

/// The model, the policy, and how they learn.
struct ModelBackprop {
    model: Model,
    actor: Actor,
    model_parameters: VarMap, // ψ, ω
    model_optimizer: Adam,
    actor_optimizer: Adam,
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl ModelBackprop {
    fn new(observation_dim: usize, bounds: (&[f32], &[f32]), args: &Args, rng: &mut Rng) -> Result<Self> {
        let (device, input_dim) = (args.run.device()?, observation_dim + bounds.0.len());
        let actor = Actor::new(observation_dim, bounds, args, rng.random())?;
        let model_parameters = VarMap::new(rng.random());
        let vb = VarBuilder::from_varmap(&model_parameters, DType::F32, &device);
        let identity = Normalizer::fit(&Tensor::new(&[[-1.0_f32], [1.0]], &device)?)?; // m = 0, σ = 1
        let model = Model {
            dynamics: Mlp::new(input_dim, args.hidden_size, observation_dim, vb.pp("dynamics"))?,
            reward: Mlp::new(input_dim, args.hidden_size, 1, vb.pp("reward"))?,
            inputs: identity.clone(),
            differences: identity,
        };
        Ok(Self {
            model_optimizer: Adam::new(&model_parameters, args.learning_rate)?,
            actor_optimizer: Adam::new(&actor.parameters, args.learning_rate)?,
            model,
            actor,
            model_parameters,
            observation_dim,
            args: args.clone(),
            device,
        })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// clip( μ_φ(s) + c N(0, σ_ε²), b − c, b + c ) for each observation, `[batch, action_dim]`.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<f32>> {
        let (bias, scale) = (&self.actor.action_bias, &self.actor.action_scale);
        let mean = self.actor.forward(&self.tensor(observations)?)?;
        let noise = Init::Randn { mean: 0.0, stdev: self.args.exploration_noise as f32 };
        let noise = noise.tensor(mean.shape(), rng, &self.device)?.broadcast_mul(scale)?;
        let clipped =
            (mean + noise)?.broadcast_maximum(&(bias - scale)?)?.broadcast_minimum(&(bias + scale)?)?;
        Ok(clipped.flatten_all()?.to_vec1()?)
    }

    /// μ_φ(s) for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<f32>> {
        Ok(self.actor.forward(&self.tensor(observations)?)?.flatten_all()?.to_vec1()?)
    }

    /// Makes what the dynamics see and say of size 1. They are used after this alone, so that checkpoints
    /// need not hold it.
    fn fit_normalizers(&mut self, data: &Data) -> Result<()> {
        let observations = self.tensor(&data.observations)?; // [len, observation_dim]
        let actions = Tensor::from_slice(&data.actions, (data.rewards.len(), ()), &self.device)?;
        self.model.inputs = Normalizer::fit(&Tensor::cat(&[&observations, &actions], 1)?)?;
        let differences = (self.tensor(&data.next_observations)? - observations)?;
        self.model.differences = Normalizer::fit(&differences)?;
        Ok(())
    }

    /// One step of the model towards what happened. Returns L(ψ) and L(ω) from before the step.
    fn update_model(&mut self, batch: &Batch) -> Result<[f32; 2]> {
        let x = self.model.inputs.normalize(&Tensor::cat(&[&batch.observations, &batch.actions], 1)?)?;
        // L(ψ) = mean over data and dimensions of ( f_ψ(x) − (s' − s − m_Δ) / σ_Δ )²
        let targets = self.model.differences.normalize(&(&batch.next_observations - &batch.observations)?)?;
        let model_loss = (self.model.dynamics.forward(&x)? - targets)?.sqr()?.mean_all()?;
        // L(ω) = E[ (g_ω(x) − r)² ]
        let reward_loss = (self.model.reward.forward(&x)? - &batch.rewards)?.sqr()?.mean_all()?;
        self.model_optimizer.backward_step(&(&model_loss + &reward_loss)?)?;
        Ok([model_loss.to_scalar()?, reward_loss.to_scalar()?])
    }

    /// Σ_{t<H} γ^t r_t, `[batch, 1]`, of rollouts of `actor` from states `[batch, observation_dim]`.
    fn imagine(&self, actor: &Actor, start: &Tensor, horizon: usize, model: Step) -> Result<Tensor> {
        let (mut states, mut returns) = (start.clone(), start.narrow(1, 0, 1)?.zeros_like()?);
        for t in 0..horizon {
            // Easy to miss: nothing is detached here. a_t depends on φ itself and by way of s_t.
            let actions = actor.forward(&states)?; // a_t = μ_φ(s_t)
            let (next_states, rewards) = model(&states, &actions)?;
            // J_H(φ) = E[ Σ_{t<H} γ^t r_t ]
            returns = (returns + rewards * self.args.gamma.powi(t as i32))?;
            states = next_states;
        }
        Ok(returns)
    }

    /// One step of the policy up imagined returns, `[batch, 1]`. Returns −J_H(φ) from before the step, and
    /// its gradient's norm before clipping.
    fn update_actor(&mut self, returns: &Tensor) -> Result<(f32, f64)> {
        let loss = returns.mean_all()?.neg()?;
        let mut gradients = nn::backward(&loss)?;
        let (parameters, limit) = (self.actor.parameters.all_vars(), self.args.max_grad_norm);
        let norm = nn::clip_grad_norm(&parameters, &mut gradients, limit)?;
        self.actor_optimizer.step(&gradients)?;
        Ok((loss.to_scalar()?, norm))
    }

    /// Draws |dJ_H/dφ| over H, of a policy that learned nothing and of this one, from `[batch, observation_dim]`.
    fn draw_gradient_norms(&self, untrained: &Actor, states: &Tensor, path: &Path) -> Result<()> {
        let (model, mut curves) = (self.model.held_constant(), Vec::new());
        for (label, actor) in [("untrained policy", untrained), ("trained policy", &self.actor)] {
            let (mut horizons, mut norms) = (Vec::new(), Vec::new());
            for horizon in [1, 2, 4, 8, 16, 32, 64] {
                let returns = self.imagine(actor, states, horizon, &|s, a| model.step(s, a))?;
                let gradient = actor.parameters.gradients(&returns.mean_all()?)?;
                horizons.push(horizon as f64);
                norms.push(gradient.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt().log10());
            }
            let [mean, low, high] = [norms.clone(), norms.clone(), norms];
            curves.push(Curve { label: label.into(), xs: horizons, mean, low, high });
        }
        let title = "How the gradient grows with the steps it comes through";
        let (x_label, y_label) = ("steps of an imagined rollout, H", "log10 of the norm of dJ/dφ");
        let (log_x, dots, curves) = (true, true, &curves[..]);
        Chart { title, x_label, y_label, log_x, dots, curves, ..Chart::default() }.draw(path)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, _) = envs.spec().box_to_box("model_backprop")?;
    let (action_bias, action_scale) = envs.spec().action_range("model_backprop")?;
    let env_id = &*args.run.env_id;
    let endless = ["Pendulum-v1", "HalfCheetah-v5", "Swimmer-v5", "Reacher-v5"];
    if !endless.contains(&env_id) {
        return invalid(format!("--env-id {env_id}: not known to end by time alone, as {endless:?} do"));
    }
    let mut rng = learner_rng(args.run.seed);
    let bounds = (&action_bias[..], &action_scale[..]);
    let mut learner = ModelBackprop::new(observation_dim, bounds, &args, &mut rng)?;
    let untrained = Actor::new(observation_dim, bounds, &args, rng.random())?; // for the picture alone
    let mut data = Data::default();
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("actor", &mut learner.actor.parameters),
                ("actor_optimizer", &mut learner.actor_optimizer),
                ("model", &mut learner.model_parameters),
                ("model_optimizer", &mut learner.model_optimizer),
                ("data", &mut data),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;
        // Run the policy, and keep what happens: at random until it has learned.
        let observation = envs.observations().to_vec(); // [observation_dim]
        let action: Vec<f32> = if global_step < args.learning_starts.next_multiple_of(args.train_frequency) {
            action_bias.iter().zip(&action_scale).map(|(b, c)| b + c * rng.random_range(-1.0..=1.0)).collect()
        } else {
            learner.act(&observation, &mut rng)?
        };
        envs.step(&action)?;
        data.store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if global_step < args.learning_starts || !global_step.is_multiple_of(args.train_frequency) {
            continue;
        }

        // Fit the model to all that happened.
        learner.fit_normalizers(&data)?;
        let [mut model_loss, mut reward_loss, mut actor_loss] = [0.0; 3];
        for _ in 0..args.model_updates {
            let batch = data.sample(args.batch_size, &mut rng, &learner.device)?;
            [model_loss, reward_loss] = learner.update_model(&batch)?;
        }
        run.log(global_step, "losses/model_loss", model_loss)?;
        run.log(global_step, "losses/reward_loss", reward_loss)?;

        // Improve the policy through it, from states that happened.
        let (model, mut gradient_norm) = (learner.model.held_constant(), 0.0);
        for _ in 0..args.policy_updates {
            let start = data.sample(args.batch_size, &mut rng, &learner.device)?.observations;
            let returns = learner.imagine(&learner.actor, &start, args.horizon, &|s, a| model.step(s, a))?;
            (actor_loss, gradient_norm) = learner.update_actor(&returns)?;
        }
        run.log(global_step, "losses/actor_loss", actor_loss)?;
        run.log(global_step, "losses/gradient_norm", gradient_norm)?;
    }

    run.save_or_load_model(&mut learner.actor.parameters)?;
    if !run.eval_only() {
        learner.fit_normalizers(&data)?;
        let states = data.sample(args.batch_size, &mut rng, &learner.device)?.observations;
        learner.draw_gradient_norms(&untrained, &states, &run.dir().join("gradient_norms.png"))?;
    }
    run.evaluate(|observations| learner.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
