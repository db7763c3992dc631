//! # Policy distillation
//!
//! Rusu, Gómez Colmenarejo, Gülçehre, Desjardins, Kirkpatrick, Pascanu, Mnih, Kavukcuoglu & Hadsell
//! (2016), "Policy distillation", arXiv:1511.06295.
//!
//! A student learns by plain supervised learning to do what a teacher does: the teacher plays, everything
//! it sees is kept together with its outputs for all actions, and the student, often a far smaller network,
//! fits those. One student learns from several teachers as well: its layers are shared, and each task has
//! an output layer (a head) of its own.
//!
//! For an observation x the teacher has outputs q(x), action values or logits of its policy, and the
//! student z(x; θ). The student descends one of
//!
//! ```text
//! kl             E_x[ KL( softmax(q/τ) ‖ softmax(z) ) ]            the paper's best
//! nll            E_x[ −ln softmax(z)_b ]     b = argmax_a q_a      the teacher's best action alone
//! mse            E_{x,a}[ (q_a − z_a)² ]                           the outputs as they are
//! soft           τ² E_x[ KL( softmax(q/τ) ‖ softmax(z/τ) ) ]       Hinton et al. 2015, arXiv:1503.02531
//! cross-entropy  E_x[ −Σ_a softmax(q/τ)_a ln softmax(z)_a ]        Actor-mimic, arXiv:1511.06342
//! ```
//!
//! τ below 1 sharpens the targets, as action values need, which lie close together (the paper: 0.01).
//!
//! Teachers are model files that the programs `dqn` (the paper's) and `ppo` wrote, one for each of
//! `--env-id` and `--further-env-ids`: `--teachers runs/A/model.safetensors,runs/B/model.safetensors`.
//! Where none is given, each teacher is the linear policy q(x) = b + W x that the noisy cross-entropy
//! method finds (Szita & Lőrincz 2006, "Learning Tetris using the noisy cross-entropy method"), in half a second.
//!
//! Deviations from the paper: vectors instead of images; the student is a layer of tanh units instead of a
//! smaller DQN, and sees zeros where its task's observation is shorter than another's; Adam instead of
//! RMSProp, its step size falling to zero; a memory of everything seen; τ is 1, which suffices for `ppo`'s
//! logits and for the linear teachers that the cross-entropy method finds (with `dqn`'s models use
//! `--temperature 0.01`); tasks take turns after every minibatch.
//!
//! Run `cargo run -p policy_distillation`: 475 or more on CartPole-v1 (95 % of the teacher's 500) after
//! 40,000 steps in which the teacher was watched, in a second. Both tasks by one student:
//! `--further-env-ids Acrobot-v1 --total-timesteps 80000`. Steps of the search for teachers, up to 640,000
//! each, are not counted. `charts/episodic_return` is the first teacher's, with its random actions.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, VecEnv, invalid, learner_rng, persist::Persist};
use common::nn::{Activation, Adam, Linear, VarBuilder, VarMap, linear, matmul};
use common::{model, run::Run};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use std::{path::Path, path::PathBuf, process::ExitCode};

/// The evaluation's environments draw from this seed's streams, apart from the training ones.
const EVALUATION_SEED: u64 = 0x5EED_0E7A;
/// The search for teachers draws from this seed's streams, apart from the student's.
const TEACHER_SEED: u64 = 0x7EAC_4E25;

/// Sizes of a task: `(observation_dim, num_actions)`.
type Dims = (usize, usize);

/// Policy distillation: a student network learns what teachers do
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("40000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Further tasks for the same student
    #[arg(long, value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    further_env_ids: Vec<String>,
    /// Models of dqn or ppo, one for each task [default: linear policies are sought first]
    #[arg(long, value_delimiter = ',', value_name = "model.safetensors")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    teachers: Vec<PathBuf>,
    /// What the student descends
    #[arg(long, value_enum, default_value_t = Loss::Kl)]
    loss: Loss,
    /// Temperature of the teacher's softmax, τ, in soft the student's too; nll and mse have none
    #[arg(long, default_value_t = 1.0, value_parser = cli::above_zero)]
    temperature: f64,
    /// Step size of the student's Adam
    #[arg(long, default_value_t = 3e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Sizes of the student's hidden layers
    #[arg(long, default_value = "32", value_delimiter = ',', value_parser = cli::positive)]
    hidden_sizes: Vec<usize>,
    /// Examples drawn from a memory for one update of the student
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    batch_size: usize,
    /// Probability of a random action while a teacher is watched, ε
    #[arg(long, default_value_t = 0.05, value_parser = cli::unit_interval)]
    epsilon: f64,
    /// Parallel environments of each task
    #[arg(long, default_value_t = 16, value_parser = cli::positive)]
    num_envs: usize,
    /// Generations in which a teacher is sought, where none is given
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    generations: usize,
    /// Policies tried in each, N
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    population: usize,
    /// The best of them, to which the distribution of policies is refitted, M
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    elites: usize,
    /// Variance on top of the elites' in the first generation, falling to zero after the last
    #[arg(long, default_value_t = 0.25, value_parser = cli::non_negative)]
    extra_variance: f64,
}

/// What the student descends; the formulas are at the top.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Loss {
    Kl,
    Nll,
    Mse,
    Soft,
    CrossEntropy,
}

/// Layers of units and one output layer, the head, for each task.
struct Network {
    hidden: Vec<Linear>, // [inputs] → hidden_sizes[0] → …
    heads: Vec<Linear>,  // of task k: → [num_actions of task k]
    inputs: usize,
    activation: Activation,
}

impl Network {
    /// `sizes` are of the input and of hidden layers; `heads` are named and have as many outputs.
    fn new(
        sizes: &[usize],
        heads: &[(String, usize)],
        activation: Activation,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let last = sizes.len() - 1;
        let hidden = (0..last).map(|i| linear(sizes[i], sizes[i + 1], vb.pp(format!("hidden{i}"))));
        let heads = heads.iter().map(|(name, outputs)| linear(sizes[last], *outputs, vb.pp(name)));
        let hidden = hidden.collect::<candle_core::Result<_>>()?;
        let heads = heads.collect::<candle_core::Result<_>>()?;
        Ok(Self { hidden, heads, inputs: sizes[0], activation })
    }

    /// Observations of task k `[batch, observation_dim]` to `[batch, num_actions]`.
    fn forward(&self, k: usize, observations: &Tensor) -> Result<Tensor> {
        // Zeros where another task's observation is longer.
        let mut x = observations.pad_with_zeros(1, 0, self.inputs - observations.dim(1)?)?;
        for layer in &self.hidden {
            x = layer.forward_with(&x, self.activation)?;
        }
        Ok(self.heads[k].forward(&x)?)
    }
}

/// Observations of `num_envs` environments as `[num_envs, observation_dim]`.
fn rows(observations: &[f32], num_envs: usize, device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(observations, (num_envs, observations.len() / num_envs), device)?)
}

/// A policy that knows its task.
struct Teacher {
    network: Network, // q(x), [num_actions]
    parameters: VarMap,
    device: Device,
}

impl Teacher {
    /// Shaped like a model of `ppo` or of `dqn`.
    fn new(dims: Dims, hidden_sizes: &[usize], is_ppo: bool, args: &Args) -> Result<Self> {
        let (parameters, device) = (VarMap::new(args.run.seed), args.run.device()?);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let (activation, vb) =
            if is_ppo { (Activation::Tanh, vb.pp("actor")) } else { (Activation::Relu, vb) };
        let sizes = [&[dims.0], hidden_sizes].concat();
        let network = Network::new(&sizes, &[("output".into(), dims.1)], activation, &vb)?;
        Ok(Self { network, parameters, device })
    }

    /// The one in a model file, for a task of these sizes.
    fn load(path: &Path, env_id: &str, dims: Dims, args: &Args) -> Result<Self> {
        let tensors = match candle_core::safetensors::load(path, &Device::Cpu) {
            Ok(tensors) => tensors,
            Err(error) => return invalid(format!("--teachers {}: not a model ({error})", path.display())),
        };
        let is_ppo = tensors.contains_key("actor.output.weight");
        let (algorithm, prefix) = if is_ppo { ("ppo", "actor.") } else { ("dqn", "") };
        let layers = (0..).map_while(|i| tensors.get(&format!("{prefix}hidden{i}.bias")));
        let hidden_sizes: Vec<usize> = layers.map(Tensor::elem_count).collect();
        let mut teacher = Self::new(dims, &hidden_sizes, is_ppo, args)?;
        match model::load(path, algorithm, env_id, &mut teacher.parameters) {
            Ok(()) => Ok(teacher),
            Err(error) => invalid(error.to_string().replacen("--eval-only", "--teachers", 1)),
        }
    }

    /// The best linear policy that the cross-entropy method finds.
    fn search(env_id: &str, dims: Dims, args: &Args) -> Result<Self> {
        let teacher = Self::new(dims, &[], false, args)?;
        let size = teacher.parameters.num_parameters(); // of w: b, then W
        let (n, seed) = (args.population, args.run.seed ^ TEACHER_SEED);
        let (mut mean, mut std, mut rng) = (vec![0.0; size], vec![1.0; size], learner_rng(seed)); // μ, σ
        for generation in 0..args.generations {
            // wⁱ ~ N(μ, σ²), i = 1 … N
            let noise = StandardNormal.sample_iter(&mut rng).take(n * size).enumerate();
            let policies: Vec<f32> =
                noise.map(|(i, z): (_, f32)| mean[i % size] + std[i % size] * z).collect();
            let table = rows(&policies, n, &teacher.device)?;
            let b = table.narrow(1, 0, dims.1)?; // [n, num_actions]
            let w = table.narrow(1, dims.1, size - dims.1)?.reshape((n, dims.1, dims.0))?;
            // One episode of each, by argmax_a (b + W x)_a.
            let returns = play(env_id, n, seed.wrapping_add(generation as u64), |observations| {
                let x = rows(observations, n, &teacher.device)?.unsqueeze(2)?; // [n, observation_dim, 1]
                Ok((&b + matmul(&w, &x)?.squeeze(2)?)?.argmax(D::Minus1)?.to_vec1()?)
            })?;
            // E: the M policies of the greatest returns, of equal ones the earlier.
            let mut ranking: Vec<usize> = (0..n).collect();
            ranking.sort_by(|&i, &j| returns[j].total_cmp(&returns[i]));
            ranking.truncate(args.elites);
            // Less and less variance on top keeps σ from vanishing too early.
            let extra = args.extra_variance as f32 * (1.0 - generation as f32 / args.generations as f32);
            for k in 0..size {
                let elites = ranking.iter().map(|i| policies[i * size + k]);
                // μ ← mean(E), σ² ← variance(E) + extra
                mean[k] = elites.clone().sum::<f32>() / ranking.len() as f32;
                let variance = elites.map(|w| (w - mean[k]).powi(2)).sum::<f32>() / ranking.len() as f32;
                std[k] = (variance + extra).sqrt();
            }
        }
        teacher.parameters.set_values(&mean)?;
        Ok(teacher)
    }

    /// argmax_a q_a(x) for each observation, but with probability ε a uniformly random action; and q(x),
    /// `[num_envs, num_actions]`.
    fn act(&self, observations: &[f32], epsilon: f64, rng: &mut Rng) -> Result<(Vec<u32>, Vec<f32>)> {
        let num_envs = observations.len() / self.network.inputs;
        let q = self.network.forward(0, &rows(observations, num_envs, &self.device)?)?;
        let mut actions: Vec<u32> = q.argmax(D::Minus1)?.to_vec1()?;
        for action in &mut actions {
            if rng.random::<f64>() < epsilon {
                *action = rng.random_range(0..q.dim(1)? as u32);
            }
        }
        Ok((actions, q.flatten_all()?.to_vec1()?))
    }
}

/// What was seen of a teacher. The run's length bounds it.
#[derive(Serialize, Deserialize, Default)]
struct Memory {
    observations: Vec<f32>, // x, [len, observation_dim]
    outputs: Vec<f32>,      // q(x), [len, num_actions]
}

impl Memory {
    /// Stores what environments showed, and the teacher's outputs there.
    fn store(&mut self, observations: &[f32], outputs: &[f32]) {
        self.observations.extend_from_slice(observations);
        self.outputs.extend_from_slice(outputs);
    }

    /// `batch_size` examples, uniformly and with replacement: x `[batch_size, observation_dim]` and q(x)
    /// `[batch_size, num_actions]`.
    fn sample(&self, dims: Dims, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<[Tensor; 2]> {
        let len = self.outputs.len() / dims.1;
        let chosen: Vec<usize> = (0..batch_size).map(|_| rng.random_range(0..len)).collect();
        let gather = |column: &[f32], width: usize| {
            let values = chosen.iter().flat_map(|row| &column[row * width..(row + 1) * width]);
            Tensor::from_vec(values.copied().collect(), (batch_size, width), device)
        };
        Ok([gather(&self.observations, dims.0)?, gather(&self.outputs, dims.1)?])
    }
}

/// One network for all tasks and how it learns.
struct Student {
    network: Network,   // z(x; θ)
    parameters: VarMap, // θ
    optimizer: Adam,
    args: Args,
    device: Device,
}

impl Student {
    fn new(dims: &[Dims], args: &Args) -> Result<Self> {
        let (parameters, device) = (VarMap::new(args.run.seed), args.run.device()?);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        let inputs = dims.iter().map(|dims| dims.0).max().unwrap_or_default(); // of the longest observation
        let heads: Vec<_> = dims.iter().enumerate().map(|(k, dims)| (format!("head{k}"), dims.1)).collect();
        let sizes = [&[inputs], &args.hidden_sizes[..]].concat();
        let network = Network::new(&sizes, &heads, Activation::Tanh, &vb)?;
        let optimizer = Adam::new(&parameters, args.learning_rate)?;
        Ok(Self { network, parameters, optimizer, args: args.clone(), device })
    }

    /// argmax_a z_a(x; θ) for each of `num_envs` observations of task k.
    fn act(&self, k: usize, observations: &[f32], num_envs: usize) -> Result<Vec<u32>> {
        let z = self.network.forward(k, &rows(observations, num_envs, &self.device)?)?;
        Ok(z.argmax(D::Minus1)?.to_vec1()?)
    }

    /// The loss of the student's outputs z beside the teacher's q, `[batch, num_actions]` each.
    fn loss(&self, z: &Tensor, q: &Tensor) -> Result<Tensor> {
        let tau = self.args.temperature;
        let log_target = log_softmax(&(q / tau)?)?; // ln softmax(q/τ)
        let target = log_target.exp()?;
        // E[ Σ_a target (ln target − ln p) ]
        let kl = |log_p: Tensor| (&target * (&log_target - log_p)?)?.sum(D::Minus1)?.mean_all();
        Ok(match self.args.loss {
            // E[ KL( softmax(q/τ) ‖ softmax(z) ) ]: the student's are not sharpened
            Loss::Kl => kl(log_softmax(z)?)?,
            // E[ −ln softmax(z)_b ], b = argmax_a q_a
            Loss::Nll => log_softmax(z)?.gather(&q.argmax_keepdim(D::Minus1)?, 1)?.mean_all()?.neg()?,
            // E[ (q_a − z_a)² ], the mean over actions too
            Loss::Mse => (q - z)?.sqr()?.mean_all()?,
            // τ² E[ KL( softmax(q/τ) ‖ softmax(z/τ) ) ]: gradients keep their size as τ grows
            Loss::Soft => (kl(log_softmax(&(z / tau)?)?)? * (tau * tau))?,
            // E[ −Σ_a softmax(q/τ)_a ln softmax(z)_a ]
            Loss::CrossEntropy => (&target * log_softmax(z)?)?.sum(D::Minus1)?.mean_all()?.neg()?,
        })
    }

    /// One step towards the teacher's outputs q for observations of task k. Returns the loss and in what
    /// share of them the student's best action was the teacher's, both from before the step.
    fn update(&mut self, k: usize, observations: &Tensor, q: &Tensor) -> Result<(f32, f32)> {
        let z = self.network.forward(k, observations)?;
        let loss = self.loss(&z, &q.detach())?;
        self.optimizer.backward_step(&loss)?;
        let agreement = z.argmax(D::Minus1)?.eq(&q.argmax(D::Minus1)?)?.to_dtype(DType::F32)?.mean_all()?;
        Ok((loss.to_scalar()?, agreement.to_scalar()?))
    }
}

/// ln softmax(x) of each row.
fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

/// How a return compares with the teacher's: 1 where it is the same, 0.95 where it is worse by 5 % of the
/// teacher's magnitude, whether returns are rewards or, as Acrobot's, costs.
fn share_of(teacher_return: f64, student_return: f64) -> f64 {
    1.0 + (student_return - teacher_return) / teacher_return.abs().max(1e-9)
}

/// The return of an episode in each of `n` environments.
fn play(id: &str, n: usize, seed: u64, mut act: impl FnMut(&[f32]) -> Result<Vec<u32>>) -> Result<Vec<f64>> {
    let mut envs = VecEnv::make_for_evaluation(id, n, seed)?;
    let mut returns: Vec<Option<f64>> = vec![None; n];
    let mut steps = 0..envs.spec().episode_limit();
    while returns.contains(&None) && steps.next().is_some() {
        envs.step(&act(envs.observations())?)?;
        for episode in envs.episodes() {
            returns[episode.env].get_or_insert(episode.episodic_return);
        }
    }
    // Of an episode without an end, what it collected so far.
    Ok(returns.iter().zip(envs.running_returns()).map(|(whole, part)| whole.unwrap_or(*part)).collect())
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let num_envs = args.num_envs;
    let env_ids = [std::slice::from_ref(&args.run.env_id), &args.further_env_ids].concat();
    let (given, num_tasks) = (args.teachers.len(), env_ids.len());
    if given != 0 && given != num_tasks {
        return invalid(format!("--teachers: {given} models for {num_tasks} tasks; one for each, or none"));
    }
    if args.elites > args.population {
        return invalid(format!("--elites {}: at most --population = {}", args.elites, args.population));
    }
    let (mut envs, mut dims, mut teachers, mut memories) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (k, env_id) in env_ids.iter().enumerate() {
        envs.push(VecEnv::make(env_id, num_envs, args.run.seed)?);
        dims.push(envs[k].spec().box_to_discrete("policy_distillation")?);
        memories.push(Memory::default());
        // A run that is resumed seeks its teachers again: it is short, and finds the same.
        match args.teachers.get(k) {
            _ if args.run.eval_only.is_some() => {}
            Some(path) => teachers.push(Teacher::load(path, env_id, dims[k], &args)?),
            None => teachers.push(Teacher::search(env_id, dims[k], &args)?),
        }
    }
    let (mut student, mut rng) = (Student::new(&dims, &args)?, learner_rng(args.run.seed));
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let names: Vec<String> = (0..num_tasks).map(|k| format!("envs{k}")).collect();
    let mut global_step = 0;
    while global_step < run.total_timesteps {
        let Student { parameters, optimizer, .. } = &mut student;
        let mut items: Vec<(&str, &mut dyn Persist)> =
            vec![("student", parameters), ("optimizer", optimizer)];
        items.extend([("rng", &mut rng as &mut dyn Persist), ("memories", &mut memories)]);
        items.extend(names.iter().zip(&mut envs).map(|(name, envs)| (&name[..], envs as &mut dyn Persist)));
        run.resume_or_checkpoint(&mut global_step, &mut items)?;
        let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
        student.optimizer.learning_rate = remaining * args.learning_rate;

        // Each teacher steps its environments and is watched: charts/episodic_return is the first one's.
        for (k, envs) in envs.iter_mut().enumerate() {
            let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
            let (actions, q) = teachers[k].act(&observations, args.epsilon, &mut rng)?;
            envs.step(&actions)?;
            memories[k].store(&observations, &q);
            global_step += num_envs;
            if k == 0 {
                run.episodes(global_step, envs.episodes())?;
            }
        }

        // The student learns from what was seen, the tasks in turn.
        for (k, env_id) in env_ids.iter().enumerate() {
            let [x, q] = memories[k].sample(dims[k], args.batch_size, &mut rng, &student.device)?;
            let (loss, agreement) = student.update(k, &x, &q)?;
            if (global_step / (num_envs * num_tasks)).is_multiple_of(25) {
                let learning_rate = student.optimizer.learning_rate;
                run.log(global_step, &format!("charts/{env_id}/learning_rate"), learning_rate)?;
                run.log(global_step, &format!("losses/{env_id}/distillation_loss"), loss)?;
                run.log(global_step, &format!("charts/{env_id}/agreement"), agreement)?;
            }
        }
    }

    run.save_or_load_model(&mut student.parameters)?;
    let (episodes, seed) = (args.run.eval_episodes, args.run.seed ^ EVALUATION_SEED);
    let mut worst = f64::INFINITY;
    for (k, teacher) in teachers.iter().enumerate() {
        let of_teacher = play(&env_ids[k], episodes, seed, |x| Ok(teacher.act(x, 0.0, &mut rng)?.0))?;
        let of_student = play(&env_ids[k], episodes, seed, |x| student.act(k, x, episodes))?;
        let mean = |returns: Vec<f64>| returns.iter().sum::<f64>() / episodes as f64;
        let (of_teacher, of_student) = (mean(of_teacher), mean(of_student));
        run.log(global_step, &format!("eval/{}/teacher_return", env_ids[k]), of_teacher)?;
        run.log(global_step, &format!("eval/{}/student_return", env_ids[k]), of_student)?;
        worst = worst.min(share_of(of_teacher, of_student));
    }
    if !run.eval_only() {
        run.log(global_step, "eval/share_of_teacher", worst)?;
    }
    run.evaluate(|observations| student.act(0, observations, observations.len() / dims[0].0))?;
    Ok(())
}

#[cfg(test)]
mod tests;
