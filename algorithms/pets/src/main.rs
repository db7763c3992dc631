//! # Probabilistic ensembles with trajectory sampling (PETS)
//!
//! Chua, Calandra, McAllister & Levine (2018), "Deep reinforcement learning in a handful of trials using
//! probabilistic dynamics models", arXiv:1805.12114.
//!
//! A planner seeks out whatever its model overrates, so the model should know what it does not know. A
//! network that predicts a variance says how random the world is (aleatoric uncertainty); several, each
//! fitted to a resampling of the data, disagree where there is little of it (epistemic uncertainty). A plan
//! is tried with particles that are drawn from all of them, and is worth the mean.
//!
//! ```text
//! model b      p_b(s' | s, a) = N(s + μ_b, σ_b²),  (μ_b, v_b) = f_θb( ((s, a) − μ_x) / σ_x ),  σ_b² = exp v_b
//!              v ← v_max − softplus(v_max − v), then v ← v_min + softplus(v − v_min)
//! loss         J = Σ_b mean over D_b and dimensions of [ (μ_b − (s' − s))² e^(−v_b) + v_b ]
//!                  + 0.01 Σ (v_max − v_min)                  D_b: as many rows as D, drawn from D
//! particle p   s_0ᵖ = s,   s_{k+1}ᵖ = s_kᵖ + μ_b + σ_b ε,   ε ~ N(0, I)
//!              TS1: b is drawn anew at each step;  TS∞: once for the whole plan
//! plan         J(A) = 1/P Σ_p Σ_{k < H} r(s_kᵖ, a_k, s_{k+1}ᵖ), until s_{k+1}ᵖ ends
//! CEM          Aⁱ ~ N(μ, σ²), i = 1 … N;  E = the M with the greatest J(Aⁱ)
//!              μ ← β μ + (1 − β) mean(E),  σ² ← β σ² + (1 − β) variance(E)
//! ```
//!
//! The first action of μ is taken, and the next plan begins with the rest. As in the paper, rewards are not
//! learned but known; ends of episodes, which its tasks do not have, are known too, and nothing is earned after
//! them: both are mbrl-lib's functions of states. The members share their bounds of v, which begin at 0.5 and
//! −10, as in the authors' program (handful-of-trials).
//!
//! Deviations from the paper: networks are smaller, and rectified (`--silu true` is the paper's); plans and
//! particles are fewer; there is no weight decay; samples of plans are clamped to the actions' bounds, where the
//! authors' are truncated at 2 σ, with σ at most half of the distance to the nearer bound; all rounds are gone
//! through, where theirs end at small variances; each particle draws its members by itself (TS∞: anew for each
//! plan), where their program deals all members out evenly; the model is fitted every train_frequency steps.
//!
//! Run `cargo run -p pets`: 193 to 200 of 200 after 1000 steps, in ten seconds (seeds 1 to 5; mbrl-lib's
//! example trains for 5000: conf/overrides/pets_cartpole.yaml).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, Spec, VecEnv, invalid, learner_rng, textbook::ContinuousCartPole};
use common::nn::{Adam, Init, Linear, VarBuilder, VarMap, linear, side_by_side};
use common::{Run, cli, cli::RunArgs, model::Model};
use rand::{RngExt, seq::SliceRandom};
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use std::{cell::RefCell, process::ExitCode};

/// PETS: plans with an ensemble of networks that know what they do not know
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("ContinuousCartPole-v0")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("1000")))]
#[command(mut_arg("eval_episodes", |arg| arg.default_value("20")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Networks, each with its own resampling of the data
    #[arg(long, default_value_t = 5, value_parser = cli::positive)]
    ensemble_size: usize,
    /// Keep each particle to one network throughout a plan (TS∞), instead of drawing one at each step (TS1)
    #[arg(long, default_value_t = false)]
    ts_infinity: bool,
    /// Steps that a plan looks ahead, H
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    horizon: usize,
    /// Plans tried in each round, N
    #[arg(long, default_value_t = 24, value_parser = cli::positive)]
    population: usize,
    /// The best of them, to which the distribution is refitted, M
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    elites: usize,
    /// Rounds for each action
    #[arg(long, default_value_t = 2, value_parser = cli::positive)]
    iterations: usize,
    /// Share of the old distribution in the refitted one, β
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    smoothing: f64,
    /// Particles for each plan, P
    #[arg(long, default_value_t = 5, value_parser = cli::positive)]
    particles: usize,
    /// Steps with uniformly random actions before the first fit
    #[arg(long, default_value_t = 200, value_parser = cli::positive)]
    learning_starts: usize,
    /// Steps from one fit of the model to the next
    #[arg(long, default_value_t = 50, value_parser = cli::positive)]
    train_frequency: usize,
    /// Passes over the data in a fit
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    update_epochs: usize,
    /// Transitions in a minibatch
    #[arg(long, default_value_t = 32, value_parser = cli::positive)]
    batch_size: usize,
    /// Step size of the networks
    #[arg(long, default_value_t = 3e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Units in each of the two hidden layers
    #[arg(long, default_value_t = 32, value_parser = cli::positive)]
    hidden_size: usize,
    /// Hidden units z / (1 + e⁻ᶻ), called swish in the paper, in place of max(z, 0)
    #[arg(long, default_value_t = false)]
    silu: bool,
}

/// f_θb: two hidden layers.
struct Member {
    hidden1: Linear, // [observation_dim + action_dim] → [hidden_size]
    hidden2: Linear, // [hidden_size] → [hidden_size]
    output: Linear,  // [hidden_size] → [2 observation_dim]: μ, and v before it is bounded
}

impl Member {
    /// Normalised inputs `[rows, observation_dim + action_dim]` to `[rows, 2 observation_dim]`.
    fn forward(&self, x: &Tensor, silu: bool) -> Result<Tensor> {
        let units = |z: &Linear, x: &Tensor| if silu { z.forward(x)?.silu() } else { z.forward_relu(x) };
        Ok(self.output.forward(&units(&self.hidden2, &units(&self.hidden1, x)?)?)?)
    }
}

/// ln(1 + eˣ), for x of any size.
fn softplus(x: &Tensor) -> Result<Tensor> {
    Ok((x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?)
}

/// All transitions in their order; without rewards, which are known, and ends, which change no dynamics.
#[derive(Serialize, Deserialize, Default)]
struct Dataset {
    len: usize,
    observations: Vec<f32>,      // s, [len, observation_dim]
    actions: Vec<f32>,           // a, [len, action_dim]
    next_observations: Vec<f32>, // s', an episode's true last one at its end, [len, observation_dim]
}

impl Dataset {
    /// Stores the step that `envs`, a single environment, has just made.
    fn store(&mut self, observation: &[f32], action: &[f32], envs: &VecEnv) {
        self.len += 1;
        self.observations.extend(observation);
        self.actions.extend(action);
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
        self.next_observations.extend(envs.final_observations());
    }

    /// All of it as the model sees it: (s, a), `[len, observation_dim + action_dim]`, and s' − s.
    fn inputs_and_differences(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let column = |values: &[f32]| Tensor::from_slice(values, (self.len, ()), device);
        let observations = column(&self.observations)?;
        let inputs = Tensor::cat(&[&observations, &column(&self.actions)?], 1)?;
        Ok((inputs, (column(&self.next_observations)? - observations)?))
    }
}

/// A distribution of plans that closes in on good ones. Actions are in units of their bounds, from −1 to 1.
#[derive(Serialize, Deserialize, Default)]
struct Cem {
    mean: Vec<f32>, // μ, [horizon, action_dim]
    std: Vec<f32>,  // σ, [horizon, action_dim]
}

impl Cem {
    /// Before the first round: μ is what is left of the last plan and then 0, σ a quarter of the action space.
    fn begin(&mut self, horizon: usize, action_dim: usize) {
        self.mean.drain(..action_dim.min(self.mean.len()));
        self.mean.resize(horizon * action_dim, 0.0);
        self.std = vec![0.5; horizon * action_dim];
    }

    /// Plans `[population, horizon, action_dim]` from standard normal `noise` of that shape.
    fn sample(&self, noise: &[f32]) -> Vec<f32> {
        let distribution = self.mean.iter().zip(&self.std).cycle();
        // Aⁱ ~ N(μ, σ²), clamped to the action space
        let sample = |(epsilon, (mu, sigma)): (&f32, (&f32, &f32))| (mu + sigma * epsilon).clamp(-1.0, 1.0);
        noise.iter().zip(distribution).map(sample).collect()
    }

    /// Moves μ and σ to the elites E among plans with these returns.
    fn update(&mut self, plans: &[f32], returns: &[f32], args: &Args) {
        let (size, n, beta) = (self.mean.len(), args.elites as f32, args.smoothing as f32);
        let mut ranking: Vec<usize> = (0..returns.len()).collect();
        ranking.sort_by(|&i, &j| returns[j].total_cmp(&returns[i])); // of equal plans the earlier first
        for i in 0..size {
            let actions = ranking[..args.elites].iter().map(|elite| plans[elite * size + i]);
            let mean = actions.clone().sum::<f32>() / n;
            let variance = actions.map(|action| (action - mean).powi(2)).sum::<f32>() / n;
            // μ ← β μ + (1 − β) mean(E),  σ² ← β σ² + (1 − β) variance(E)
            self.mean[i] = beta * self.mean[i] + (1.0 - beta) * mean;
            self.std[i] = (beta * self.std[i].powi(2) + (1.0 - beta) * variance).sqrt();
        }
    }
}

/// The ensemble, how it learns, and the planner that uses it.
struct Pets {
    members: Vec<Member>,
    max_log_variance: Tensor, // v_max, [1, observation_dim]
    min_log_variance: Tensor, // v_min, [1, observation_dim]
    parameters: VarMap,       // θ_b, v_max, v_min
    input_mean: Tensor,       // μ_x, [1, observation_dim + action_dim]
    input_std: Tensor,        // σ_x, 1 where the data does not vary, [1, observation_dim + action_dim]
    statistics: VarMap,       // μ_x, σ_x
    optimizer: Adam,
    reward: fn(&[f32], &[f32], &[f32]) -> f32, // r(s, a, s'), which the planner knows
    terminated: fn(&[f32]) -> bool,            // whether the episode ends in s', likewise
    action_bias: Vec<f32>,                     // the middle of the actions' bounds, [action_dim]
    action_scale: Vec<f32>,                    // half of their width, [action_dim]
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl Pets {
    fn new(spec: &Spec, args: &Args, rng: &mut Rng) -> Result<Self> {
        let (observation_dim, action_dim) = spec.box_to_box("pets")?;
        let (action_bias, action_scale) = spec.action_range("pets")?;
        let (device, inputs, hidden) = (args.run.device()?, observation_dim + action_dim, args.hidden_size);
        let (parameters, statistics) = (VarMap::new(rng.random()), VarMap::new(0));
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let mut members = Vec::with_capacity(args.ensemble_size);
        for b in 0..args.ensemble_size {
            let vb = vb.pp(format!("model_{b}"));
            members.push(Member {
                hidden1: linear(inputs, hidden, vb.pp("hidden1"))?,
                hidden2: linear(hidden, hidden, vb.pp("hidden2"))?,
                output: linear(hidden, 2 * observation_dim, vb.pp("output"))?,
            });
        }
        let row = |vb: &VarBuilder, name, len, value| vb.get_with_hints((1, len), name, Init::Const(value));
        let of_inputs = VarBuilder::from_varmap(&statistics, DType::F32, &device);
        Ok(Self {
            members,
            max_log_variance: row(&vb, "max_log_variance", observation_dim, 0.5)?,
            min_log_variance: row(&vb, "min_log_variance", observation_dim, -10.0)?,
            optimizer: Adam::new(&parameters, args.learning_rate)?,
            parameters,
            input_mean: row(&of_inputs, "mean", inputs, 0.0)?,
            input_std: row(&of_inputs, "std", inputs, 1.0)?,
            statistics,
            reward: |_, _, next| ContinuousCartPole::reward(next),
            terminated: ContinuousCartPole::terminated,
            action_bias,
            action_scale,
            observation_dim,
            args: args.clone(),
            device,
        })
    }

    /// Actions in the environment's units from those in units of their bounds, `[rows, action_dim]` both.
    fn scaled(&self, actions: impl Iterator<Item = f32>) -> Vec<f32> {
        let bounds = self.action_bias.iter().zip(&self.action_scale).cycle();
        actions.zip(bounds).map(|(action, (b, c))| b + c * action).collect()
    }

    /// μ_x and σ_x of all `inputs` that the model is fitted to.
    fn update_statistics(&self, inputs: &Tensor) -> Result<()> {
        let mean = inputs.mean_keepdim(0)?;
        let std = inputs.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?.sqrt()?;
        let std = (&std + std.lt(1e-6)?.to_dtype(DType::F32)?)?; // a rounded mean leaves no exact 0
        Ok(self.statistics.set_values(&Tensor::cat(&[mean, std], 1)?.flatten_all()?.to_vec1()?)?)
    }

    /// μ_b and v_b, `[rows, observation_dim]` each, from outputs `[rows, 2 observation_dim]`.
    fn gaussian(&self, outputs: &Tensor) -> Result<(Tensor, Tensor)> {
        let outputs = outputs.chunk(2, 1)?;
        // v ← v_max − softplus(v_max − v), then v ← v_min + softplus(v − v_min)
        let below = softplus(&outputs[1].broadcast_sub(&self.max_log_variance)?.neg()?)?;
        let v = below.neg()?.broadcast_add(&self.max_log_variance)?;
        let v = softplus(&v.broadcast_sub(&self.min_log_variance)?)?.broadcast_add(&self.min_log_variance)?;
        Ok((outputs[0].clone(), v))
    }

    /// μ_b and v_b for inputs `[rows, observation_dim + action_dim]`, where `members` says each row's b.
    fn predict(&self, inputs: &Tensor, members: &[usize]) -> Result<(Tensor, Tensor)> {
        // Rows are put in order of their members, each of which predicts its own, and then back.
        let mut order: Vec<u32> = (0..members.len() as u32).collect();
        order.sort_by_key(|&row| members[row as usize]);
        let mut places = vec![0_u32; members.len()];
        (0..).zip(&order).for_each(|(place, &row)| places[row as usize] = place);
        let inputs = inputs.broadcast_sub(&self.input_mean)?.broadcast_div(&self.input_std)?; // normalised
        let sorted = inputs.index_select(&Tensor::new(order, &self.device)?, 0)?;
        let (mut rows, mut start) = (Vec::new(), 0); // of each member
        for (b, member) in self.members.iter().enumerate() {
            let count = members.iter().filter(|&&of| of == b).count();
            rows.push((member, sorted.narrow(0, start, count)?));
            start += count;
        }
        let outputs = side_by_side(rows, |(member, rows)| member.forward(&rows, self.args.silu))?;
        self.gaussian(&Tensor::cat(&outputs, 0)?.index_select(&Tensor::new(places, &self.device)?, 0)?)
    }

    /// One step of all members, each on `rows` of its own, `[ensemble_size, batch]`. Returns J before it.
    fn update_model(&mut self, inputs: &Tensor, differences: &Tensor, rows: &[u32]) -> Result<f32> {
        let members: Vec<usize> = (0..rows.len()).map(|i| i * self.members.len() / rows.len()).collect();
        let rows = Tensor::new(rows, &self.device)?;
        let (mean, v) = self.predict(&inputs.index_select(&rows, 0)?, &members)?;
        let squares = (mean - differences.index_select(&rows, 0)?)?.sqr()?;
        let bounds = (&self.max_log_variance - &self.min_log_variance)?.sum_all()?;
        // J = Σ_b mean of [ (μ_b − (s' − s))² e^(−v_b) + v_b ] + 0.01 Σ (v_max − v_min)
        let mean = ((squares * v.neg()?.exp()?)? + v)?.mean_all()?; // of all members, which have as many rows
        let loss = ((mean * self.members.len() as f64)? + (bounds * 0.01)?)?;
        self.optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// Several passes over `data`. Returns J of the last minibatch.
    fn fit(&mut self, data: &Dataset, rng: &mut Rng) -> Result<f32> {
        let (inputs, differences) = data.inputs_and_differences(&self.device)?;
        self.update_statistics(&inputs)?;
        let (len, batch_size, mut loss) = (data.len, self.args.batch_size, 0.0);
        // D_b: as many rows as D, drawn with replacement (the bootstrap).
        let draw = |_| (0..len).map(|_| rng.random_range(0..len as u32)).collect();
        let mut bootstrap: Vec<Vec<u32>> = self.members.iter().map(draw).collect(); // [ensemble_size, len]
        for _ in 0..self.args.update_epochs {
            bootstrap.iter_mut().for_each(|rows| rows.shuffle(rng));
            for start in (0..len).step_by(batch_size) {
                let end = len.min(start + batch_size);
                let rows: Vec<u32> = bootstrap.iter().flat_map(|rows| &rows[start..end]).copied().collect();
                loss = self.update_model(&inputs, &differences, &rows)?;
            }
        }
        Ok(loss)
    }

    /// J(A) of plans `[n, population, horizon, action_dim]` from observations `[n, observation_dim]`, by count
    /// = n · population · particles with members `[horizon, count]` and ε `[horizon, count, observation_dim]`.
    fn returns(&self, starts: &[f32], plans: &[f32], members: &[usize], noise: &Tensor) -> Result<Vec<f32>> {
        let (horizon, particles, dim) = (self.args.horizon, self.args.particles, self.observation_dim);
        let (action_dim, copies) = (self.action_bias.len(), self.args.population * particles);
        let mut current: Vec<f32> = starts.chunks_exact(dim).flat_map(|s| s.repeat(copies)).collect(); // s_k
        let count = current.len() / dim;
        let (mut returns, mut ended) = (vec![0.0; count], vec![false; count]); // of each particle
        for k in 0..horizon {
            let action = |i: usize| &plans[(i / particles * horizon + k) * action_dim..][..action_dim]; // a_k
            let states = current.chunks_exact(dim).enumerate();
            let inputs: Vec<f32> = states.flat_map(|(i, s)| s.iter().chain(action(i))).copied().collect();
            let inputs = Tensor::from_vec(inputs, (count, dim + action_dim), &self.device)?; // (s_k, a_k)
            let from = if self.args.ts_infinity { 0 } else { k * count };
            let (mean, v) = self.predict(&inputs, &members[from..from + count])?;
            // s_{k+1} = s_k + μ_b + σ_b ε
            let next = (inputs.narrow(1, 0, dim)? + mean + ((v * 0.5)?.exp()? * noise.get(k)?)?)?;
            let next: Vec<f32> = next.flatten_all()?.to_vec1()?;
            for i in 0..count {
                let (s, s_next) = (&current[i * dim..(i + 1) * dim], &next[i * dim..(i + 1) * dim]);
                if !ended[i] {
                    // Σ_k r(s_k, a_k, s_{k+1}), until the task's own function says that the episode ends
                    returns[i] += (self.reward)(s, action(i), s_next);
                    ended[i] = (self.terminated)(s_next);
                }
            }
            current = next;
        }
        Ok(returns.chunks_exact(particles).map(|of| of.iter().sum::<f32>() / particles as f32).collect())
    }

    /// What to do for each of observations `[n, observation_dim]`: the first action of the plan μ that CEM
    /// finds, `[n, action_dim]`. `plans` are those of the step before.
    fn act(&self, observations: &[f32], plans: &mut [Cem], rng: &mut Rng) -> Result<Vec<f32>> {
        let Args { population, horizon, particles, .. } = self.args;
        let (action_dim, dim) = (self.action_bias.len(), self.observation_dim);
        let size = population * horizon * action_dim; // numbers in all plans that are tried from a state
        let count = plans.len() * population * particles;
        plans.iter_mut().for_each(|plan| plan.begin(horizon, action_dim));
        for _ in 0..self.args.iterations {
            let mut tried = Vec::with_capacity(plans.len() * size); // Aⁱ, [n, population, horizon, action_dim]
            for plan in &*plans {
                let noise: Vec<f32> = StandardNormal.sample_iter(&mut *rng).take(size).collect();
                tried.extend(plan.sample(&noise));
            }
            let draw = |_| rng.random_range(0..self.members.len());
            let members: Vec<usize> = (0..horizon * count).map(draw).collect();
            let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
            let noise = normal.tensor((horizon, count, dim), rng, &self.device)?;
            let returns =
                self.returns(observations, &self.scaled(tried.iter().copied()), &members, &noise)?; // J(Aⁱ)
            let of_each = tried.chunks_exact(size).zip(returns.chunks_exact(population));
            for (plan, (tried, returns)) in plans.iter_mut().zip(of_each) {
                plan.update(tried, returns, &self.args);
            }
        }
        Ok(self.scaled(plans.iter().flat_map(|plan| &plan.mean[..action_dim]).copied()))
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    if args.elites > args.population {
        return invalid(format!("--elites {}: at most --population = {}", args.elites, args.population));
    }
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    if envs.spec().id != "ContinuousCartPole-v0" {
        return invalid(format!("--env-id {}: pets wants ContinuousCartPole-v0", envs.spec().id));
    }
    let mut rng = learner_rng(args.run.seed);
    let mut pets = Pets::new(envs.spec(), &args, &mut rng)?;
    let (mut data, mut plans) = (Dataset::default(), vec![Cem::default()]);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("model", &mut pets.parameters),
                ("optimizer", &mut pets.optimizer),
                ("statistics", &mut pets.statistics),
                ("data", &mut data),
                ("plans", &mut plans),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        // Fit the ensemble to D.
        let planned_steps = global_step.checked_sub(args.learning_starts);
        if planned_steps.is_some_and(|steps| steps.is_multiple_of(args.train_frequency)) {
            run.log(global_step, "losses/model_loss", pets.fit(&data, &mut rng)?)?;
        }

        // Act: at random before there is a model.
        let observation = envs.observations().to_vec(); // [observation_dim]
        let action = match planned_steps {
            Some(_) => pets.act(&observation, &mut plans, &mut rng)?,
            None => pets.scaled(pets.action_bias.iter().map(|_| rng.random_range(-1.0..=1.0))),
        };
        envs.step(&action)?;
        data.store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if !envs.episodes().is_empty() {
            plans[0] = Cem::default();
        }
    }

    let model = ("model", &mut pets.parameters as &mut dyn Model);
    run.save_or_load_model(&mut [model, ("statistics", &mut pets.statistics)])?;
    // Plans begin anew with the episodes, and random numbers too, so that `--eval-only` draws the same.
    let (plans, mut rng) = (RefCell::new(Vec::new()), learner_rng(args.run.seed));
    let make = |num_envs, seed| {
        plans.replace((0..num_envs).map(|_| Cem::default()).collect());
        VecEnv::make_for_evaluation(&args.run.env_id, num_envs, seed)
    };
    run.evaluate_on(make, |observations| pets.act(observations, &mut plans.borrow_mut(), &mut rng))?;
    Ok(())
}

#[cfg(test)]
mod tests;
