//! # Model-based policy optimisation (MBPO)
//!
//! Janner, Fu, Zhang & Levine (2019), "When to trust your model", arXiv:1906.08253.
//!
//! An ensemble of networks learns what the environment does, and soft actor-critic (see `sac`) learns from
//! what happens in it: Dyna with networks. A model's errors add up along a rollout, so rollouts are short,
//! branch off from states that really occurred, and mix the elites: the better half of the members.
//!
//! ```text
//! model        p_i(y|s, a) = N(μ_i(x), diag exp v_i(x)),   y = (r, s' − s),   x = ((s, a) − m) / σ
//!              J(ψ) = Σ_i E[ (y − μ_i)² exp(−v_i) + v_i ] + 0.01 Σ_j (v_max,j − v_min,j),   i = 1 … B
//! rollout      s ~ replay;   k times   a ~ π_φ(·|s),   (r, s' − s) ~ p_i(·|s, a),   i a random elite
//! target       z = r + γ (1 − terminated) ( min_i Q_θ̄i(s', a') − α ln π(a'|s') ),   a' ~ π_φ(·|s')
//! critics      J(θ_i) = E[ (Q_θi(s, a) − z)² ],   θ̄_i ← (1 − τ) θ̄_i + τ θ_i,   i = 1, 2
//! actor        J(φ) = E[ α ln π_φ(ã|s) − min_i Q_θi(s, ã) ],   ã = b + c tanh u,   u = μ_φ(s) + σ_φ(s) ε
//! temperature  J(α) = E[ −α ( ln π(ã|s) + H̄ ) ]
//! ```
//!
//! Deviations from the paper: 5 members, 3 elites, of two ReLU layers of 64 (7, 5, four SiLU layers of 200:
//! `--silu`) without weight decay; fixed k; as many updates in a fit as steps between two (no early stop); every
//! fifth transition is held out for good, to choose the elites, and starts no rollout; minibatches, not
//! bootstraps; m and σ of a resample; rates of 1e-3; τ of 0.01, batches of 128, actor and critics of 64 (0.005,
//! 256, 256); H̄ = 0.5 (−4 to −0.05); random actions are the policy's with tenfold noise; the learner sees each
//! imagined transition once, without a buffer, and no real ones: present actions alone, hence threefold noise.
//!
//! Run `cargo run -p mbpo`: about -160 on Pendulum-v1 after 3,000 steps in twenty seconds, where `sac` takes
//! 5,000 (-157 is what the trained SAC of RL Baselines3 Zoo reaches after 20,000: its benchmark.md).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, VecEnv, invalid, learner_rng, persist::Persist, textbook::ContinuousCartPole};
use common::nn::{Adam, Init, Linear, VarBuilder, VarMap, copy_parameters, linear, minimum, soft_update};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{f64::consts::LN_2, f64::consts::PI, process::ExitCode};

/// Model-based policy optimisation: soft actor-critic in short rollouts of a learned model
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("3000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Share of the critics that enters their averages in each update, τ
    #[arg(long, default_value_t = 0.01, value_parser = cli::unit_interval)]
    tau: f64,
    /// Transitions in an update
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    batch_size: usize,
    /// Steps with ten times the policy's noise before the first fit of the model (1 is taken for 2)
    #[arg(long, default_value_t = 400, value_parser = cli::positive)]
    learning_starts: usize,
    /// Step size of every network and of the temperature
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Entropy that the temperature aims at, H̄ (the authors' program's are from −4 to −0.05)
    #[arg(long, default_value_t = 0.5, value_parser = cli::finite)]
    target_entropy: f64,
    /// Updates of actor and critics for each step
    #[arg(long, default_value_t = 6, value_parser = cli::positive)]
    updates_per_step: usize,
    /// Units in each of the two hidden layers of every network
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    hidden_size: usize,
    /// Steps between two fits of the model, and updates in each
    #[arg(long, default_value_t = 200, value_parser = cli::positive)]
    model_train_frequency: usize,
    /// Noise of imagined actions, as a multiple of the policy's own
    #[arg(long, default_value_t = 3.0, value_parser = cli::non_negative)]
    rollout_noise: f64,
    /// Steps of an imagined rollout, k, of which no more than updates_per_step are made
    #[arg(long, default_value_t = 2, value_parser = cli::positive)]
    rollout_length: usize,
    /// Hidden units of the model z / (1 + e⁻ᶻ), the paper's, in place of max(z, 0)
    #[arg(long, default_value_t = false)]
    silu: bool,
}

const MEMBERS: usize = 5; // of the ensemble, B
const NOISE: Init = Init::Randn { mean: 0.0, stdev: 1.0 }; // ε ~ N(0, 1)
/// Whether nothing lies beyond an observation of this environment: imagined episodes end by it, as real ones.
fn termination(env_id: &str) -> Result<fn(&[f32]) -> bool> {
    Ok(match env_id {
        "Pendulum-v1" | "HalfCheetah-v5" => |_| false,
        "ContinuousCartPole-v0" => ContinuousCartPole::terminated,
        "InvertedPendulum-v5" => |s| s[1].abs() > 0.2, // the pole's angle
        "Hopper-v5" => |s| s[0] <= 0.7 || s[1].abs() >= 0.2 || s[2..].iter().any(|x| x.abs() >= 100.0),
        _ => return invalid(format!("--env-id {env_id}: mbpo is not told whether its episodes terminate")),
    })
}

/// Two hidden layers of ReLU or SiLU units: `[inputs]` → `[hidden_size]` → `[hidden_size]` → `[outputs]`.
struct Mlp([Linear; 3], bool);

impl Mlp {
    fn new(inputs: usize, size: usize, outputs: usize, silu: bool, vb: VarBuilder) -> Result<Self> {
        let hidden1 = linear(inputs, size, vb.pp("hidden1"))?;
        let hidden2 = linear(size, size, vb.pp("hidden2"))?;
        Ok(Self([hidden1, hidden2, linear(size, outputs, vb.pp("output"))?], silu))
    }

    /// `[batch, inputs]` to `[batch, outputs]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Self([hidden1, hidden2, output], silu) = self;
        let units = |z: &Linear, x: &Tensor| if *silu { z.forward(x)?.silu() } else { z.forward_relu(x) };
        Ok(output.forward(&units(hidden2, &units(hidden1, x)?)?)?)
    }
}

/// ln(1 + eˣ), which overflows where it is computed as it is written.
fn softplus(x: &Tensor) -> Result<Tensor> {
    Ok((x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?)
}

/// Transitions: numbers where they are kept, tensors where they are learned from or imagined.
#[derive(Serialize, Deserialize, Default)]
struct Transitions<Column> {
    observations: Column,      // s, [len, observation_dim]
    actions: Column,           // a, [len, action_dim]
    rewards: Column,           // r, [len, 1]
    next_observations: Column, // s', an episode's true last one at its end, [len, observation_dim]
    terminated: Column,        // 1 where nothing lies beyond s', 0 elsewhere, truncation included, [len, 1]
}

type ReplayBuffer = Transitions<Vec<f32>>;
type Batch = Transitions<Tensor>;

impl ReplayBuffer {
    /// Stores the step that `envs`, a single environment, has just made.
    fn store(&mut self, observation: &[f32], action: &[f32], envs: &VecEnv) {
        self.observations.extend(observation);
        self.actions.extend(action);
        self.rewards.extend(envs.rewards());
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
        self.next_observations.extend(envs.final_observations());
        self.terminated.push(f32::from(u8::from(envs.terminated()[0])));
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
        let (observations, actions) = (gather(&self.observations)?, gather(&self.actions)?);
        let (rewards, terminated) = (gather(&self.rewards)?, gather(&self.terminated)?);
        let next_observations = gather(&self.next_observations)?;
        Ok(Batch { observations, actions, rewards, next_observations, terminated })
    }
}

/// The model, the learner that lives in it, and how both learn.
struct Mbpo {
    members: Vec<Mlp>, // of the model: [observation_dim + action_dim] → [2 (1 + observation_dim)], μ_i and v_i
    log_variance_bounds: [Tensor; 2], // v_max and v_min, [1 + observation_dim]
    input_statistics: [Vec<f32>; 2], // m and σ, [observation_dim + action_dim]
    elites: Vec<usize>, // which members they are
    terminates: fn(&[f32]) -> bool,
    actor: Mlp,           // [observation_dim] → [2 action_dim]: μ_φ, and ln σ_φ before it is bounded
    action_bias: Tensor,  // b, the middle of the bounds b ± c, [1, action_dim]
    action_scale: Tensor, // c, [1, action_dim]
    critics: [Mlp; 2],    // Q_θ1, Q_θ2: [observation_dim + action_dim] → [1]
    target_critics: [Mlp; 2], // Q_θ̄1, Q_θ̄2
    log_alpha: Tensor,    // ln α, []
    model_parameters: VarMap, // ψ
    actor_parameters: VarMap, // φ
    critic_parameters: VarMap, // θ1, θ2
    target_parameters: VarMap, // θ̄1, θ̄2
    temperature: VarMap,  // ln α
    model_optimizer: Adam,
    actor_optimizer: Adam,
    critic_optimizer: Adam,
    temperature_optimizer: Adam,
    args: Args,
}

impl Mbpo {
    fn new(observation_dim: usize, bounds: (&[f32], &[f32]), args: &Args, rng: &mut Rng) -> Result<Self> {
        let (device, action_dim, size) = (args.run.device()?, bounds.0.len(), args.hidden_size);
        let (input_dim, output_dim) = (observation_dim + action_dim, 1 + observation_dim);
        let [model_parameters, actor_parameters, critic_parameters, target_parameters, temperature] =
            [(); 5].map(|()| VarMap::new(rng.random()));
        let vb = |parameters| VarBuilder::from_varmap(parameters, DType::F32, &device);
        let member = |i| Mlp::new(input_dim, size, 2 * output_dim, args.silu, vb(&model_parameters).pp(i));
        let bound = |name, value| vb(&model_parameters).get_with_hints(output_dim, name, Init::Const(value));
        let critic = |parameters, name| Mlp::new(input_dim, size, 1, false, vb(parameters).pp(name));
        let this = Self {
            members: (0..MEMBERS).map(member).collect::<Result<_>>()?,
            log_variance_bounds: [bound("max_log_variance", 0.5)?, bound("min_log_variance", -10.0)?],
            input_statistics: [vec![0.0; input_dim], vec![1.0; input_dim]],
            elites: vec![0],
            terminates: termination(&args.run.env_id)?,
            actor: Mlp::new(observation_dim, size, 2 * action_dim, false, vb(&actor_parameters))?,
            action_bias: Tensor::from_slice(bounds.0, (1, action_dim), &device)?,
            action_scale: Tensor::from_slice(bounds.1, (1, action_dim), &device)?,
            critics: [critic(&critic_parameters, "qf1")?, critic(&critic_parameters, "qf2")?],
            target_critics: [critic(&target_parameters, "qf1")?, critic(&target_parameters, "qf2")?],
            log_alpha: vb(&temperature).get_with_hints((), "log_alpha", Init::Const(0.0))?,
            model_optimizer: Adam::new(&model_parameters, args.learning_rate)?,
            actor_optimizer: Adam::new(&actor_parameters, args.learning_rate)?,
            critic_optimizer: Adam::new(&critic_parameters, args.learning_rate)?,
            temperature_optimizer: Adam::new(&temperature, args.learning_rate)?,
            model_parameters,
            actor_parameters,
            critic_parameters,
            target_parameters,
            temperature,
            args: args.clone(),
        };
        copy_parameters(&this.target_parameters, &this.critic_parameters)?;
        Ok(this)
    }

    /// ã, `[batch, action_dim]`, and ln π(ã|s), `[batch, 1]`, with noise ε `[batch, action_dim]`.
    fn policy(&self, observations: &Tensor, noise: &Tensor) -> Result<(Tensor, Tensor)> {
        let outputs = self.actor.forward(observations)?.chunk(2, 1)?;
        let log_std = outputs[1].tanh()?.affine(3.5, -1.5)?; // ln σ ∈ [-5, 2], bounded as in `sac`
        // u = μ + σ ε,   ã = b + c tanh u
        let u = (&outputs[0] + (log_std.exp()? * noise)?)?;
        let actions = u.tanh()?.broadcast_mul(&self.action_scale)?.broadcast_add(&self.action_bias)?;
        // ln N(u; μ, σ²) = −½ ε² − ln σ − ½ ln 2π
        let gaussian = (noise.sqr()?.affine(-0.5, -0.5 * (2.0 * PI).ln())? - log_std)?;
        // ln(1 − tanh² u) = 2 (ln 2 − u − softplus(−2u)), where 1 − tanh² u itself would round to 0
        let squashing = (&u + softplus(&(&u * -2.0)?)?)?.affine(-2.0, 2.0 * LN_2)?;
        // ln π(ã|s) = Σ_j [ ln N(u_j; μ_j, σ_j²) − ln(1 − tanh² u_j) − ln c_j ]
        let log_probs = (gaussian - squashing)?.broadcast_sub(&self.action_scale.log()?)?.sum_keepdim(1)?;
        Ok((actions, log_probs))
    }

    /// ã for each observation, with noise scaled by `scale`: at 0 it is b + c tanh μ(s).
    fn act(&self, observations: &[f32], scale: f64, rng: &mut Rng) -> Result<Vec<f32>> {
        let (action_dim, inputs) = (self.action_bias.dim(1)?, self.input_statistics[0].len());
        let states = Tensor::from_slice(observations, ((), inputs - action_dim), self.action_bias.device())?;
        let noise = (NOISE.tensor((states.dim(0)?, action_dim), rng, states.device())? * scale)?;
        Ok(self.policy(&states, &noise)?.0.flatten_all()?.to_vec1()?)
    }

    /// m and σ of the model's inputs in a batch.
    fn fit_normalizer(&mut self, batch: &Batch) -> Result<()> {
        let inputs = Tensor::cat(&[&batch.observations, &batch.actions], 1)?;
        let mean = inputs.mean_keepdim(0)?;
        let variances = inputs.broadcast_sub(&mean)?.sqr()?.mean(0)?;
        let std = variances.sqrt()?.to_vec1()?.into_iter().map(|std: f32| if std > 1e-6 { std } else { 1.0 });
        self.input_statistics = [mean.squeeze(0)?.to_vec1()?, std.collect()]; // 1 for what has never changed
        Ok(())
    }

    /// μ_i and v_i, `[batch, 1 + observation_dim]` each.
    fn predict(&self, member: &Mlp, observations: &Tensor, actions: &Tensor) -> Result<(Tensor, Tensor)> {
        // x = ((s, a) − m) / σ
        let [m, std] = self.input_statistics.each_ref().map(|row| Tensor::new(&row[..], actions.device()));
        let x = Tensor::cat(&[observations, actions], 1)?.broadcast_sub(&m?)?.broadcast_div(&std?)?;
        let (outputs, [max, min]) = (member.forward(&x)?.chunk(2, 1)?, &self.log_variance_bounds);
        // v ← v_max − softplus(v_max − v),   v ← v_min + softplus(v − v_min)
        let v = softplus(&outputs[1].neg()?.broadcast_add(max)?)?.neg()?.broadcast_add(max)?;
        Ok((outputs[0].clone(), softplus(&v.broadcast_sub(min)?)?.broadcast_add(min)?))
    }

    /// E[ (y − μ_i)² exp(−v_i) + v_i ] and E[ (y − μ_i)² ] of a member.
    fn errors(&self, member: &Mlp, batch: &Batch) -> Result<(Tensor, Tensor)> {
        // y = (r, s' − s)
        let y = Tensor::cat(&[&batch.rewards, &(&batch.next_observations - &batch.observations)?], 1)?;
        let (mean, v) = self.predict(member, &batch.observations, &batch.actions)?;
        let squares = (y - mean)?.sqr()?;
        Ok((((&squares * v.neg()?.exp()?)? + v)?.mean_all()?, squares.mean_all()?))
    }

    /// One step of all members, each on a batch of its own. Returns J(ψ) from before the step.
    fn update_model(&mut self, batches: &[Batch]) -> Result<f32> {
        // 0.01 Σ_j (v_max,j − v_min,j): the bounds close in on the variances that occur.
        let [max, min] = &self.log_variance_bounds;
        let mut loss = ((max - min)?.sum_all()? * 0.01)?;
        for (member, batch) in self.members.iter().zip(batches) {
            loss = (loss + self.errors(member, batch)?.0)?; // E[ (y − μ_i)² exp(−v_i) + v_i ]
        }
        self.model_optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// The better half of the members, by their squared errors, become the elites. Returns the least error.
    fn choose_elites(&mut self, held_out: &Batch) -> Result<f32> {
        let error = |member| Ok(self.errors(member, held_out)?.1.to_scalar::<f32>()?);
        let errors: Vec<f32> = self.members.iter().map(error).collect::<Result<_>>()?;
        self.elites = (0..errors.len()).collect();
        self.elites.sort_by(|&i, &j| errors[i].total_cmp(&errors[j]));
        self.elites.truncate(errors.len().div_ceil(2));
        Ok(errors[self.elites[0]])
    }

    /// One step of rollouts by elites `choices` `[batch]`, with noise for a and (r, s'); s' of those that go on.
    fn imagine(&self, states: &Tensor, choices: &Tensor, noise: [&Tensor; 2]) -> Result<(Batch, Tensor)> {
        let actions = self.policy(states, noise[0])?.0.detach(); // a ~ π_φ(·|s)
        let mut y = noise[1].zeros_like()?; // (r, s' − s), [batch, 1 + observation_dim]
        for (choice, &elite) in self.elites.iter().enumerate() {
            let (mean, v) = self.predict(&self.members[elite], states, &actions)?;
            let chosen = choices.eq(choice as u32)?.to_dtype(DType::F32)?.unsqueeze(1)?; // 1 or 0, [batch, 1]
            // μ_i + exp(v_i / 2) ε
            y = (y + (mean + ((v / 2.0)?.exp()? * noise[1])?)?.broadcast_mul(&chosen)?)?.detach();
        }
        let (observations, rewards) = (states.clone(), y.narrow(1, 0, 1)?);
        let next_observations = (&observations + y.narrow(1, 1, observations.dim(1)?)?)?;
        let ends = |s: &Vec<f32>| f32::from(u8::from((self.terminates)(s)));
        let ends: Vec<f32> = next_observations.to_vec2()?.iter().map(ends).collect();
        let alive = (0_u32..).zip(&ends).filter(|(_, end)| **end == 0.0).map(|(row, _)| row);
        let alive = next_observations.index_select(&Tensor::from_iter(alive, y.device())?, 0)?;
        let terminated = Tensor::new(ends, y.device())?.unsqueeze(1)?;
        Ok((Batch { observations, actions, rewards, next_observations, terminated }, alive))
    }

    /// min_i Q_i(s, a) and ln π(a|s), `[batch, 1]` each, where a is `policy`'s with this noise.
    fn values(&self, critics: &[Mlp; 2], states: &Tensor, noise: &Tensor) -> Result<(Tensor, Tensor)> {
        let (actions, log_probs) = self.policy(states, noise)?;
        let inputs = Tensor::cat(&[states, &actions], 1)?;
        Ok((minimum(&critics[0].forward(&inputs)?, &critics[1].forward(&inputs)?)?, log_probs))
    }

    /// One step of both critics towards z, with noise for a'. Returns J(θ_1) and J(θ_2).
    fn update_critics(&mut self, batch: &Batch, noise: &Tensor) -> Result<[f32; 2]> {
        // Easy to miss: a' comes from the current policy, not from the batch.
        let (q, log_probs) = self.values(&self.target_critics, &batch.next_observations, noise)?;
        // z = r + γ (1 − terminated) ( min_i Q_θ̄i(s', a') − α ln π(a'|s') )
        let soft_values = (q - log_probs.broadcast_mul(&self.log_alpha.exp()?)?)?;
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        let z = (&batch.rewards + discounts * soft_values)?.detach(); // [batch, 1]
        // J(θ_i) = E[ (Q_θi(s, a) − z)² ]
        let inputs = Tensor::cat(&[&batch.observations, &batch.actions], 1)?;
        let qf1_loss = (self.critics[0].forward(&inputs)? - &z)?.sqr()?.mean_all()?;
        let qf2_loss = (self.critics[1].forward(&inputs)? - &z)?.sqr()?.mean_all()?;
        self.critic_optimizer.backward_step(&(&qf1_loss + &qf2_loss)?)?;
        Ok([qf1_loss.to_scalar()?, qf2_loss.to_scalar()?])
    }

    /// One step of the actor, with noise for ã. Returns J(φ) and ln π(ã|s), `[batch, 1]`.
    fn update_actor(&mut self, batch: &Batch, noise: &Tensor) -> Result<(f32, Tensor)> {
        // J(φ) = E[ α ln π_φ(ã|s) − min_i Q_θi(s, ã) ], where the optimiser leaves the critics as they are
        let (q, log_probs) = self.values(&self.critics, &batch.observations, noise)?;
        let loss = (log_probs.broadcast_mul(&self.log_alpha.exp()?.detach())? - q)?.mean_all()?;
        self.actor_optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, log_probs.detach()))
    }

    /// One step of ln α: up while the policy's entropy is below H̄. Returns J(α) and α from before it.
    fn update_temperature(&mut self, log_probs: &Tensor) -> Result<(f32, f32)> {
        // J(α) = E[ −α ( ln π(ã|s) + H̄ ) ]
        let alpha = self.log_alpha.exp()?;
        let loss = (&alpha * (log_probs.mean_all()? + self.args.target_entropy)?)?.neg()?;
        self.temperature_optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, alpha.to_scalar()?))
    }

    /// θ̄_i ← (1 − τ) θ̄_i + τ θ_i
    fn update_targets(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.critic_parameters, self.args.tau)?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, action_dim) = envs.spec().box_to_box("mbpo")?;
    let (action_bias, action_scale) = envs.spec().action_range("mbpo")?;
    let (device, learning_starts) = (args.run.device()?, args.learning_starts.max(2)); // one is held out
    let mut rng = learner_rng(args.run.seed);
    let mut mbpo = Mbpo::new(observation_dim, (&action_bias, &action_scale), &args, &mut rng)?;
    let [mut replay, mut held_out] = [(); 2].map(|()| ReplayBuffer::default());
    let (mut run, mut global_step) = (Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?, 0);
    while global_step < run.total_timesteps {
        let mut items: Vec<(&str, &mut dyn Persist)> = vec![("envs", &mut envs), ("rng", &mut rng)];
        items.extend([("replay", &mut replay as &mut dyn Persist), ("held_out", &mut held_out)]);
        items.extend([
            ("model", &mut mbpo.model_parameters as &mut dyn Persist),
            ("model_optimizer", &mut mbpo.model_optimizer),
            ("actor", &mut mbpo.actor_parameters),
            ("actor_optimizer", &mut mbpo.actor_optimizer),
            ("critics", &mut mbpo.critic_parameters),
            ("critic_optimizer", &mut mbpo.critic_optimizer),
            ("targets", &mut mbpo.target_parameters),
            ("temperature", &mut mbpo.temperature),
            ("temperature_optimizer", &mut mbpo.temperature_optimizer),
            ("input_statistics", &mut mbpo.input_statistics),
            ("elites", &mut mbpo.elites),
        ]);
        run.resume_or_checkpoint(&mut global_step, &mut items)?;
        // Act: at random until there is something to learn from. Every fifth transition is held out.
        let observation = envs.observations().to_vec(); // [observation_dim]
        let loudness = if global_step < learning_starts { 10.0 } else { 1.0 };
        let action = mbpo.act(&observation, loudness, &mut rng)?;
        envs.step(&action)?;
        let buffer = if global_step.is_multiple_of(5) { &mut held_out } else { &mut replay };
        buffer.store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if global_step < learning_starts {
            continue;
        }
        // Fit the model.
        if (global_step - learning_starts).is_multiple_of(args.model_train_frequency) {
            mbpo.fit_normalizer(&replay.sample(replay.rewards.len(), &mut rng, &device)?)?;
            let mut model_loss = 0.0;
            for _ in 0..args.model_train_frequency {
                let sample = |_| replay.sample(args.batch_size, &mut rng, &device);
                model_loss = mbpo.update_model(&(0..MEMBERS).map(sample).collect::<Result<Vec<_>>>()?)?;
            }
            run.log(global_step, "losses/model_loss", model_loss)?;
            let held_out_error = mbpo.choose_elites(&held_out.sample(1000, &mut rng, &device)?)?;
            run.log(global_step, "losses/held_out_error", held_out_error)?;
        }
        // Learn in it: rollouts of k steps, all side by side, from states that occurred.
        let mut states = replay.sample(args.batch_size, &mut rng, &device)?.observations;
        for update in 0..args.updates_per_step {
            if update.is_multiple_of(args.rollout_length) || states.dim(0)? == 0 {
                states = replay.sample(args.batch_size, &mut rng, &device)?.observations;
            }
            let (rows, elites) = (states.dim(0)?, mbpo.elites.len() as u32);
            let choices = Tensor::from_iter((0..rows).map(|_| rng.random_range(0..elites)), &device)?;
            let mut noise = |columns| NOISE.tensor((rows, columns), &mut rng, &device);
            let (for_a, for_y) = ((noise(action_dim)? * args.rollout_noise)?, noise(1 + observation_dim)?);
            let (imagined, alive) = mbpo.imagine(&states, &choices, [&for_a, &for_y])?;
            states = alive; // rollouts that have terminated go no further
            let [qf1_loss, qf2_loss] = mbpo.update_critics(&imagined, &noise(action_dim)?)?;
            let (actor_loss, log_probs) = mbpo.update_actor(&imagined, &noise(action_dim)?)?;
            let (alpha_loss, alpha) = mbpo.update_temperature(&log_probs)?;
            mbpo.update_targets()?;
            let names = ["qf1_loss", "qf2_loss", "actor_loss", "alpha_loss", "alpha"];
            let losses = names.iter().zip([qf1_loss, qf2_loss, actor_loss, alpha_loss, alpha]);
            for (name, loss) in losses.filter(|_| update == 0 && global_step.is_multiple_of(100)) {
                run.log(global_step, &format!("losses/{name}"), loss)?;
            }
        }
    }
    run.save_or_load_model(&mut mbpo.actor_parameters)?;
    run.evaluate(|observations| mbpo.act(observations, 0.0, &mut rng))?;
    Ok(())
}

#[cfg(test)]
mod tests;
