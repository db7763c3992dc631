//! # Deep Q-network (DQN) on images
//!
//! Mnih et al. (2015), "Human-level control through deep reinforcement learning", Nature 518:529
//! (first as Mnih et al. 2013, arXiv:1312.5602); small images as in Young & Tian (2019),
//! "MinAtar", arXiv:1903.03176.
//!
//! Q-learning with a convolutional network that sees nothing but the picture on the screen. Two
//! things keep a network's Q-learning from diverging: transitions are drawn at random from a large
//! memory, so that a minibatch is not a run of nearly equal pictures, and the targets come from a
//! copy of the network that stands still for a thousand steps. The memory is what makes pictures
//! different from vectors: it holds bytes, each frame once, and puts observations together from
//! frames when they are drawn.
//!
//! The network gives Q(s, a; θ) for every action; the policy takes the action of greatest value, or
//! with probability ε any. The parameters θ are learned from transitions (s, a, r, s') drawn
//! uniformly from the memory, with the target parameters θ⁻:
//!
//! ```text
//! y    = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)
//! L(θ) = E_{(s, a, r, s') ~ memory}[ ℓ(y − Q(s, a; θ)) ]        ∇_θ y = 0
//! ℓ(δ) = ½ δ² where |δ| ≤ 1, |δ| − ½ elsewhere                  errors count as at most 1
//! θ⁻   ← (1 − τ) θ⁻ + τ θ     every target_network_frequency steps (τ = 1: a plain copy)
//! ```
//!
//! A step that was merely truncated by a time limit is not terminal: its next state has a value.
//!
//! Run `cargo run -p dqn_pixels`: every ball is caught, a return of 1.0 on Catch-v0 after 20,000
//! steps in a few seconds (the optimum; bsuite, Osband et al. 2020, arXiv:1908.03568).
//! `cargo run -p dqn_pixels -- --env-id MinAtar/Breakout-v1 --total-timesteps 1000000` learns a
//! game (9.2 after as many frames in Young & Tian's learning curves).

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::wrappers::FrameStack;
use common::envs::{Env, Image, Rng, VecEnv, invalid, make, rng};
use common::nn::{
    Activation, Adam, Conv2d, Conv2dConfig, Linear, VarBuilder, VarMap, conv2d, copy_parameters, linear,
    soft_update,
};
use common::run::Run;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Deep Q-network on images
#[derive(Parser, Serialize, Debug)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Catch-v0")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("20000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of Adam, α
    #[arg(long, default_value_t = 2.5e-4, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Frames that the memory holds
    #[arg(long, default_value_t = 100_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Frames in one observation: 1 where a frame shows motion (MinAtar's do), 4 for Atari
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    frame_stack: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// How far the target network moves in an update, τ
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    tau: f64,
    /// Steps between updates of the target network
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    target_network_frequency: usize,
    /// Transitions in a minibatch
    #[arg(long, default_value_t = 32, value_parser = cli::positive)]
    batch_size: usize,
    /// Probability of a random action at the start, ε
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    start_e: f64,
    /// Probability of a random action at the end
    #[arg(long, default_value_t = 0.01, value_parser = cli::unit_interval)]
    end_e: f64,
    /// Fraction of the steps in which ε falls from its start to its end
    #[arg(long, default_value_t = 0.1, value_parser = cli::unit_interval)]
    exploration_fraction: f64,
    /// Steps before learning starts
    #[arg(long, default_value_t = 5000, value_parser = cli::positive)]
    learning_starts: usize,
    /// Steps between updates of the network
    #[arg(long, default_value_t = 1, value_parser = cli::positive)]
    train_frequency: usize,
}

/// Q(s, ·): the paper's network for images of at least 36 pixels a side, MinAtar's for smaller ones.
struct QNetwork {
    image: Image,              // what an observation is, its frames stacked
    convolutions: Vec<Conv2d>, // [height, width, channels] → [height', width', filters]
    hidden: Linear,            // [height' · width' · filters] → [512] or, for small images, [128]
    output: Linear,            // → [num_actions]
    device: Device,
}

impl QNetwork {
    fn new(image: Image, num_actions: usize, vb: VarBuilder) -> Result<Self> {
        // (filters, kernel size, stride) of each layer, and hidden units.
        let (layers, units): (&[_], _) = match image.height.min(image.width) >= 36 {
            true => (&[(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512),
            false => (&[(16, 3, 1)], 128),
        };
        let mut convolutions = Vec::new();
        let Image { mut height, mut width, mut channels, .. } = image;
        for (i, &(filters, kernel, stride)) in layers.iter().enumerate() {
            let config = Conv2dConfig { stride, ..Default::default() };
            let layer = conv2d(channels, filters, kernel, config, vb.pp(format!("convolution{i}")))?;
            convolutions.push(layer.with_activation(Activation::Relu));
            (height, width) = ((height - kernel) / stride + 1, (width - kernel) / stride + 1);
            channels = filters;
        }
        let hidden = linear(height * width * channels, units, vb.pp("hidden"))?;
        let output = linear(units, num_actions, vb.pp("output"))?;
        let (hidden, device) = (hidden.with_activation(Activation::Relu), vb.device().clone());
        Ok(Self { image, convolutions, hidden, output, device })
    }

    /// Pixels from 0 to 1, `[batch, height, width, channels]` flattened, to `[batch, num_actions]`.
    fn forward(&self, pixels: &[f32]) -> Result<Tensor> {
        let Image { height, width, channels, .. } = self.image;
        let batch = pixels.len() / (height * width * channels);
        let mut features = Tensor::from_slice(pixels, (batch, height, width, channels), &self.device)?;
        for convolution in &self.convolutions {
            features = convolution.forward(&features)?;
        }
        Ok(self.output.forward(&self.hidden.forward(&features.flatten_from(1)?)?)?)
    }

    /// The action of greatest value in each of `observations`, as the environment gives them.
    fn greedy(&self, observations: &[f32]) -> Result<Vec<u32>> {
        let pixels: Vec<f32> = observations.iter().map(|o| o / self.image.high).collect();
        Ok(self.forward(&pixels)?.argmax(1)?.to_vec1()?)
    }
}

/// The replay memory: the last `capacity` frames, each stored once, in the order they were seen.
///
/// An episode of T steps is T + 1 frames: those that were acted in, and the one it ended with. An
/// observation is a frame with the `stack − 1` before it (the episode's first one repeated where
/// there are fewer), and the next observation is the same one slot later; so one byte for each
/// pixel serves as up to 2 · stack numbers. Bytes are in steps of 1/255 of the largest pixel value:
/// exact for 0 and 1 and for images of bytes.
#[derive(Serialize, Deserialize)]
struct FrameMemory {
    frames: Vec<u8>,  // [slots, height · width · channels]
    slots: Vec<Slot>, // at most `capacity`
    newest: usize,    // the slot written last, whose action is not known yet
    capacity: usize,
    stack: usize,
    channels: usize, // of one frame
}

/// What is known about a frame and the step from it.
#[derive(Serialize, Deserialize, Clone, Copy, Default)]
struct Slot {
    begins_episode: bool,
    action: u32, // nothing, like the rest, where the episode ended
    reward: f32,
    terminated: bool,
}

/// Transitions drawn from the memory; pixels from 0 to 1.
#[derive(Default)]
struct Batch {
    observations: Vec<f32>,      // [batch_size, height, width, stack · channels]
    actions: Vec<u32>,           // [batch_size]
    rewards: Vec<f32>,           // [batch_size]
    next_observations: Vec<f32>, // [batch_size, height, width, stack · channels]
    terminated: Vec<bool>,       // [batch_size]
}

impl FrameMemory {
    fn new(capacity: usize, stack: usize, channels: usize) -> Self {
        Self { frames: Vec::new(), slots: Vec::new(), newest: 0, capacity, stack, channels }
    }

    /// Stores the newest frame of `observation`, `[height, width, stack · channels]`, whose pixels
    /// go up to `high`.
    fn push(&mut self, observation: &[f32], high: f32, begins_episode: bool) {
        let slot = Slot { begins_episode, ..Default::default() };
        let depth = self.stack * self.channels;
        let newest = observation.chunks_exact(depth).flat_map(|pixel| &pixel[depth - self.channels..]);
        let bytes = newest.map(|x| (x / high * 255.0).round() as u8);
        if self.slots.len() < self.capacity {
            self.newest = self.slots.len();
            self.slots.push(slot);
            self.frames.extend(bytes);
        } else {
            self.newest = (self.newest + 1) % self.capacity;
            self.slots[self.newest] = slot;
            let size = self.frames.len() / self.capacity;
            self.frames[self.newest * size..][..size].iter_mut().zip(bytes).for_each(|(to, x)| *to = x);
        }
    }

    /// Stores the step made from the newest frame. Push the observation it led to next, the true
    /// one even at the end of an episode.
    fn step(&mut self, action: u32, reward: f32, terminated: bool) {
        let slot = &mut self.slots[self.newest];
        (slot.action, slot.reward, slot.terminated) = (action, reward, terminated);
    }

    /// Draws transitions uniformly, with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng) -> Batch {
        let mut batch = Batch::default();
        // Counted from the oldest slot. Once slots are overwritten the first few have lost the
        // frames before them; the newest slot's step has not been made yet.
        let usable = if self.slots.len() < self.capacity { 0 } else { self.stack - 1 }..self.slots.len() - 1;
        while batch.actions.len() < batch_size {
            let age = rng.random_range(usable.clone());
            // Easy to miss and fatal: no step leads from one episode's last frame to the next's first.
            if self.slots[self.index(age + 1)].begins_episode {
                continue;
            }
            let slot = self.slots[self.index(age)];
            self.observation(age, &mut batch.observations);
            self.observation(age + 1, &mut batch.next_observations);
            batch.actions.push(slot.action);
            batch.rewards.push(slot.reward);
            batch.terminated.push(slot.terminated);
        }
        batch
    }

    /// The slot that is `age` slots younger than the oldest.
    fn index(&self, age: usize) -> usize {
        (self.newest + 1 + age) % self.slots.len()
    }

    /// Appends the stack of frames that ends with slot `age`: for each pixel the channels of the
    /// oldest frame first.
    fn observation(&self, mut age: usize, out: &mut Vec<f32>) {
        let size = self.frames.len() / self.slots.len();
        let start = out.len();
        out.resize(start + self.stack * size, 0.0);
        for position in (0..self.stack).rev() {
            let slot = self.index(age);
            let frame = &self.frames[slot * size..][..size];
            // With one frame its pixels need no interleaving.
            let run = if self.stack == 1 { size } else { self.channels };
            let pixels = out[start..].chunks_exact_mut(self.stack * run);
            for (pixel, bytes) in pixels.zip(frame.chunks_exact(run)) {
                let channels = &mut pixel[position * run..][..run];
                channels.iter_mut().zip(bytes).for_each(|(x, &byte)| *x = f32::from(byte) / 255.0);
            }
            if !self.slots[slot].begins_episode {
                age = age.saturating_sub(1);
            }
        }
    }
}

/// y = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻), `[batch_size]`, from `next_q_values`
/// `[batch_size, num_actions]` of the target network. Plain numbers: no gradient flows into a target.
fn td_targets(batch: &Batch, next_q_values: &[f32], gamma: f32) -> Vec<f32> {
    let rows = next_q_values.chunks_exact(next_q_values.len() / batch.rewards.len());
    rows.zip(&batch.rewards)
        .zip(&batch.terminated)
        .map(|((row, &reward), &terminated)| {
            let next_value = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // Easy to miss and fatal: nothing lies beyond a terminal state.
            reward + if terminated { 0.0 } else { gamma * next_value }
        })
        .collect()
}

/// E[ ℓ(y − Q(s, a; θ)) ], from Q(s, a; θ) `[batch_size]` and y `[batch_size]`.
fn td_loss(q_values: &Tensor, targets: &Tensor) -> Result<Tensor> {
    // With m = min(|δ|, 1), ℓ(δ) = m (|δ| − ½ m) and ∇ℓ = m ∇|δ|: the one of ℓ with m held constant.
    // At δ = 0, where |δ| has no gradient, that is 0.
    let error = (targets - q_values)?.abs()?;
    let inside = error.minimum(1.0)?.detach();
    Ok((&inside * (&error - (&inside * 0.5)?)?)?.mean_all()?)
}

/// ε after `step` steps: from `start` to `end` in a straight line over `duration` steps.
fn epsilon(start: f64, end: f64, duration: f64, step: usize) -> f64 {
    let progress = (step as f64 / duration.max(1.0)).min(1.0);
    start + (end - start) * progress
}

/// Environments that observe their last `frame_stack` frames.
fn make_envs(args: &Args, num_envs: usize, seed: u64) -> Result<VecEnv> {
    let stacked = || -> Result<Box<dyn Env>> {
        Ok(Box::new(FrameStack::new(make(&args.run.env_id)?, args.frame_stack)?))
    };
    match args.frame_stack {
        1 => VecEnv::make(&args.run.env_id, num_envs, seed),
        _ => VecEnv::new((0..num_envs).map(|_| stacked()).collect::<Result<_>>()?, seed),
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = make_envs(&args, 1, args.run.seed)?;
    let (image, num_actions) = envs.spec().image_to_discrete("dqn_pixels")?;
    if image.height.min(image.width) < 3 {
        let (id, height, width) = (&args.run.env_id, image.height, image.width);
        return invalid(format!("--env-id {id}: images of {height}×{width} pixels; at least 3×3 are needed"));
    }
    if args.buffer_size < args.frame_stack + 2 {
        let (n, least) = (args.buffer_size, args.frame_stack + 2);
        return invalid(format!("--buffer-size {n}: at least --frame-stack + 2 = {least} frames are needed"));
    }
    let device = args.run.device()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut rng = rng(args.run.seed, u64::MAX);
    let mut parameters = VarMap::new(args.run.seed);
    let network = |parameters: &VarMap| {
        QNetwork::new(image, num_actions, VarBuilder::from_varmap(parameters, DType::F32, &device))
    };
    let q_network = network(&parameters)?;
    // A map of its own: a clone would be the same parameters.
    let mut target_parameters = VarMap::new(args.run.seed);
    let target_network = network(&target_parameters)?;
    copy_parameters(&target_parameters, &parameters)?;
    let mut optimizer = Adam::new(&parameters, args.learning_rate)?;
    let mut memory = FrameMemory::new(args.buffer_size, args.frame_stack, image.channels / args.frame_stack);
    memory.push(envs.observations(), image.high, true);

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut parameters),
                ("target_parameters", &mut target_parameters),
                ("optimizer", &mut optimizer),
                ("memory", &mut memory),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        // Act: ε-greedily.
        let duration = args.exploration_fraction * run.total_timesteps as f64;
        let epsilon = epsilon(args.start_e, args.end_e, duration, global_step);
        let action = match rng.random::<f64>() < epsilon {
            true => rng.random_range(0..num_actions as u32),
            false => q_network.greedy(envs.observations())?[0],
        };
        envs.step(&[action])?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;

        // Store: the step, where it led and, after an episode, where the next one begins.
        let (terminated, truncated) = (envs.terminated()[0], envs.truncated()[0]);
        memory.step(action, envs.rewards()[0], terminated);
        memory.push(envs.final_observations(), image.high, false);
        if terminated || truncated {
            memory.push(envs.observations(), image.high, true);
        }

        // Learn: one step on a minibatch.
        if global_step <= args.learning_starts {
            continue;
        }
        if global_step.is_multiple_of(args.train_frequency) {
            let batch = memory.sample(args.batch_size, &mut rng);
            let next_q_values = target_network.forward(&batch.next_observations)?;
            let targets = td_targets(&batch, &next_q_values.flatten_all()?.to_vec1()?, args.gamma as f32);
            let targets = Tensor::from_vec(targets, args.batch_size, &device)?;
            let actions = Tensor::from_slice(&batch.actions, (args.batch_size, 1), &device)?;
            let q_values = q_network.forward(&batch.observations)?;
            let q_values = q_values.gather(&actions, 1)?.flatten_all()?; // Q(s, a), [batch_size]
            let loss = td_loss(&q_values, &targets)?;
            optimizer.backward_step(&loss)?;
            if global_step.is_multiple_of(100) {
                run.log(global_step, "losses/td_loss", loss.to_scalar::<f32>()?)?;
                run.log(global_step, "losses/q_values", q_values.mean_all()?.to_scalar::<f32>()?)?;
                run.log(global_step, "charts/epsilon", epsilon)?;
            }
        }
        if global_step.is_multiple_of(args.target_network_frequency) {
            soft_update(&target_parameters, &parameters, args.tau)?;
        }
    }

    run.save_or_load_model(&mut parameters)?;
    run.evaluate_on(
        |num_envs, seed| make_envs(&args, num_envs, seed),
        |observations| q_network.greedy(observations),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
