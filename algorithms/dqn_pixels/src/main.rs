//! # Deep Q-network (DQN) on images
//!
//! Mnih et al. (2015), "Human-level control through deep reinforcement learning", Nature 518:529
//! (first as Mnih et al. 2013, arXiv:1312.5602); small images as in Young & Tian (2019),
//! "MinAtar", arXiv:1903.03176.
//!
//! Q-learning with a convolutional network that sees nothing but the picture on the screen. Two
//! things keep a network's Q-learning from diverging: transitions are drawn at random from a replay
//! buffer, so that a batch is not a run of nearly equal pictures, and the targets come from a
//! target network, a copy that is held still for a thousand steps (`dqn` explains this at length).
//! What `dqn` does not have are the convolutions and a buffer of bytes that holds each frame once: a million
//! of 84 × 84 are 7.1 GB, where a stack of four for s and another for s' in each transition are 56.
//!
//! The online parameters θ are moved towards Bellman's equation, whose right-hand side is computed
//! with the target parameters θ⁻; actions are ε-greedy:
//!
//! ```text
//! y    = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)
//! L(θ) = E_{(s, a, r, s') ~ replay}[ ℓ(y − Q(s, a; θ)) ]        ∇_θ y = 0
//! ℓ(δ) = ½ δ² where |δ| ≤ 1, |δ| − ½ elsewhere                  errors count as at most 1
//! θ⁻   ← (1 − τ) θ⁻ + τ θ     every target_network_frequency steps (τ = 1: a plain copy)
//! ```
//!
//! A step that was merely truncated by a time limit is not terminal: its next state has a value.
//!
//! Deviations from the paper: Adam instead of RMSProp, and ε falls to 0.01 (the paper: 0.1), both as in
//! CleanRL's `dqn_atari.py`. As MinAtar's authors have it (in brackets the paper's): a small network, an update
//! in every step (every fourth), θ⁻ copied every 1,000 steps (10,000 updates), a buffer of 100,000
//! transitions (a million), rewards that are not clipped, frames that are neither skipped nor, unless
//! `--frame-stack` says so, stacked. Atari games do come as in the paper (`envs::gymnasium` has the
//! details): frames skipped and stacked, a life an episode and rewards clipped while training.
//!
//! Run `cargo run -p dqn_pixels`: every ball is caught, a return of 1.0 on Catch-v0 after 20,000
//! steps in a few seconds (the optimum; bsuite, Osband et al. 2020, arXiv:1908.03568).
//! `cargo run -p dqn_pixels -- --env-id MinAtar/Breakout-v1 --total-timesteps 1000000` learns a
//! game (9.2 after as many frames in Young & Tian's learning curves). Atari games want the settings of the
//! paper's program: `--env-id gym:ALE/Pong-v5 --train-frequency 4 --buffer-size 1000000 --learning-starts 50000
//! --target-network-frequency 10000 --end-e 0.1 --total-timesteps 10000000`.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use clap::Parser;
use common::envs::wrappers::FrameStack;
use common::envs::{Env, Image, Rng, VecEnv, gymnasium, invalid, learner_rng, make};
use common::nn::{Adam, Conv2d, Conv2dConfig, Linear, VarBuilder, VarMap, clamp, conv2d, copy_parameters};
use common::nn::{linear, soft_update};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::process::ExitCode;

/// Deep Q-network on images
#[derive(Parser, Serialize, Debug, Clone)]
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
    /// Transitions that the replay buffer holds, a frame of bytes each
    #[arg(long, default_value_t = 100_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Frames in one observation: 1 where a frame shows motion (MinAtar's do), or where the
    /// environment stacks them itself (Atari's)
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
    /// Transitions drawn from the replay buffer for one update
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

/// Sizes of a network's layers.
struct Sizes {
    convolutions: &'static [(usize, usize, usize)], // filters, kernel size and stride of each
    hidden: usize,                                  // units
}

/// The paper's network, for images of at least 36 pixels a side.
const ATARI: Sizes = Sizes { convolutions: &[(32, 8, 4), (64, 4, 2), (64, 3, 1)], hidden: 512 };
/// That of MinAtar's authors, for smaller ones.
const MINATAR: Sizes = Sizes { convolutions: &[(16, 3, 1)], hidden: 128 };

/// Q(s, ·): convolutions and a hidden layer of rectified linear units.
struct QNetwork {
    image: Image,              // what an observation is, its frames stacked
    convolutions: Vec<Conv2d>, // [height, width, channels] → [height', width', filters] → …
    hidden: Linear,            // [height' · width' · filters] → [hidden]
    output: Linear,            // → [num_actions]
}

impl QNetwork {
    fn new(image: Image, sizes: &Sizes, num_actions: usize, vb: VarBuilder) -> Result<Self> {
        let mut convolutions = Vec::new();
        let Image { mut height, mut width, mut channels, .. } = image;
        for (i, &(filters, kernel, stride)) in sizes.convolutions.iter().enumerate() {
            let config = Conv2dConfig { stride, ..Default::default() };
            convolutions.push(conv2d(channels, filters, kernel, config, vb.pp(format!("convolution{i}")))?);
            (height, width) = ((height - kernel) / stride + 1, (width - kernel) / stride + 1);
            channels = filters;
        }
        let hidden = linear(height * width * channels, sizes.hidden, vb.pp("hidden"))?;
        let output = linear(sizes.hidden, num_actions, vb.pp("output"))?;
        Ok(Self { image, convolutions, hidden, output })
    }

    /// Pixels from 0 to 1, `[batch, height · width · channels]`, to action values `[batch, num_actions]`.
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let Image { height, width, channels, .. } = self.image;
        let mut x = pixels.reshape(((), height, width, channels))?;
        for convolution in &self.convolutions {
            x = convolution.forward_relu(&x)?;
        }
        let x = self.hidden.forward_relu(&x.flatten_from(1)?)?;
        Ok(self.output.forward(&x)?)
    }
}

/// The last `capacity` transitions, the oldest overwritten first. An observation is the last
/// `frame_stack` frames of its episode, its first one in the place of those before it; each frame is
/// kept once. Pixels are bytes, in steps of 1/255 of the largest value: exact for 0 and 1 and for
/// images of bytes.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    capacity: usize,
    frame_stack: usize,
    channels: usize,                   // of a frame
    high: f32,                         // the largest value of a pixel
    next_row: usize,                   // where the next transition goes
    frames: VecDeque<Box<[u8]>>,       // in the order of time, [height · width · channels] each
    dropped: usize,                    // frames that came before these: frame i is frames[i − dropped]
    episode: Option<usize>,            // the first frame of the running episode
    observations: Vec<(usize, usize)>, // of s the episode's first frame and its own newest, [len]
    actions: Vec<u32>,                 // a, [len]
    rewards: Vec<f32>,                 // r, [len]
    terminated: Vec<f32>,              // 1 where nothing lies beyond s', 0 elsewhere, [len]
}

/// Transitions drawn from the buffer.
struct Batch {
    observations: Tensor,      // s, pixels from 0 to 1, [batch, height · width · channels]
    actions: Tensor,           // a, [batch, 1], u32
    rewards: Tensor,           // r, [batch, 1]
    next_observations: Tensor, // s', like s
    terminated: Tensor,        // 1 or 0, [batch, 1]
}

impl ReplayBuffer {
    fn new(image: Image, frame_stack: usize, capacity: usize) -> Self {
        let (channels, high) = (image.channels / frame_stack, image.high);
        Self { capacity, frame_stack, channels, high, ..Default::default() }
    }

    /// Stores the step that `envs`, a single environment, has just made.
    fn store(&mut self, observation: &[f32], action: u32, envs: &VecEnv) {
        // s: in the middle of an episode it is the s' of the step before.
        let first = match self.episode {
            Some(first) => first,
            None => self.store_frame(observation),
        };
        let newest = self.dropped + self.frames.len() - 1;
        // s', whose newest frame is always the one after that of s.
        // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
        self.store_frame(envs.final_observations());
        let row = self.next_row;
        write_row(&mut self.observations, row, &[(first, newest)]);
        write_row(&mut self.actions, row, &[action]);
        write_row(&mut self.rewards, row, envs.rewards());
        write_row(&mut self.terminated, row, &[f32::from(u8::from(envs.terminated()[0]))]);
        let done = envs.terminated()[0] || envs.truncated()[0];
        self.episode = (!done).then_some(first);
        self.next_row = (row + 1) % self.capacity;
        // Frames that the oldest transition does not show are shown by none.
        let (first, newest) = *self.observations.get(self.next_row).unwrap_or(&self.observations[0]);
        while self.dropped < first.max((newest + 1).saturating_sub(self.frame_stack)) {
            self.frames.pop_front();
            self.dropped += 1;
        }
    }

    /// Appends the newest frame of a stack, the last `channels` values of each pixel; returns its number.
    fn store_frame(&mut self, observation: &[f32]) -> usize {
        let (channels, stacked) = (self.channels, self.frame_stack * self.channels);
        let newest = observation.chunks_exact(stacked).flat_map(|pixel| &pixel[stacked - channels..]);
        self.frames.push_back(newest.map(|x| (x / self.high * 255.0).round() as u8).collect());
        self.dropped + self.frames.len() - 1
    }

    /// The bytes of s in a row (`ahead` 0) or of its s' (1), `[height · width · frame_stack · channels]`,
    /// in each pixel the oldest frame first.
    fn stack(&self, row: usize, ahead: usize) -> Vec<u8> {
        let (first, newest) = self.observations[row];
        let (channels, stacked) = (self.channels, self.frame_stack * self.channels);
        let mut pixels = vec![0; self.frames[0].len() * self.frame_stack];
        for age in 0..self.frame_stack {
            // Easy to miss: before an episode's first frame lies another episode.
            let frame = &self.frames[(newest + ahead).saturating_sub(age).max(first) - self.dropped];
            let start = stacked - (age + 1) * channels;
            for (pixel, values) in pixels.chunks_exact_mut(stacked).zip(frame.chunks_exact(channels)) {
                pixel[start..start + channels].copy_from_slice(values);
            }
        }
        pixels
    }

    /// `batch_size` transitions, uniformly and with replacement.
    fn sample(&self, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<Batch> {
        let len = self.rewards.len();
        let rows: Vec<usize> = (0..batch_size).map(|_| rng.random_range(0..len)).collect();
        let pixels = |ahead: usize| {
            let bytes = rows.iter().flat_map(|&row| self.stack(row, ahead));
            let values: Vec<f32> = bytes.map(|byte| f32::from(byte) / 255.0).collect();
            let width = values.len() / batch_size;
            Tensor::from_vec(values, (batch_size, width), device)
        };
        let numbers = |column: &[f32]| {
            let values = rows.iter().map(|&row| column[row]).collect();
            Tensor::from_vec(values, (batch_size, 1), device)
        };
        let actions: Vec<u32> = rows.iter().map(|&row| self.actions[row]).collect();
        Ok(Batch {
            observations: pixels(0)?,
            actions: Tensor::from_vec(actions, (batch_size, 1), device)?,
            rewards: numbers(&self.rewards)?,
            next_observations: pixels(1)?,
            terminated: numbers(&self.terminated)?,
        })
    }
}

/// Writes `values` to a row of a column, which grows until it is full.
fn write_row<T: Copy>(column: &mut Vec<T>, row: usize, values: &[T]) {
    let start = row * values.len();
    if start == column.len() {
        column.extend_from_slice(values);
    } else {
        column[start..start + values.len()].copy_from_slice(values);
    }
}

/// Online network, target network and how they learn.
struct Dqn {
    q_network: QNetwork,       // Q(s, ·; θ)
    target_network: QNetwork,  // Q(s, ·; θ⁻)
    parameters: VarMap,        // θ
    target_parameters: VarMap, // θ⁻: a map of its own, for a clone would follow θ
    optimizer: Adam,
    num_actions: usize,
    args: Args,
    device: Device,
}

impl Dqn {
    fn new(image: Image, sizes: &Sizes, num_actions: usize, args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let (parameters, target_parameters) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let network = |parameters: &VarMap| {
            let vb = VarBuilder::from_varmap(parameters, DType::F32, &device);
            QNetwork::new(image, sizes, num_actions, vb)
        };
        let (q_network, target_network) = (network(&parameters)?, network(&target_parameters)?);
        copy_parameters(&target_parameters, &parameters)?;
        let optimizer = Adam::new(&parameters, args.learning_rate)?;
        let args = args.clone();
        Ok(Self {
            q_network,
            target_network,
            parameters,
            target_parameters,
            optimizer,
            num_actions,
            args,
            device,
        })
    }

    /// argmax_a Q(s, a; θ) for each observation, `[num_envs, height, width, channels]` from 0 to `high`.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        let Image { height, width, channels, high } = self.q_network.image;
        let observations = Tensor::from_slice(observations, ((), height * width * channels), &self.device)?;
        Ok(self.q_network.forward(&(observations / f64::from(high))?)?.argmax(D::Minus1)?.to_vec1()?)
    }

    /// The same, but for each observation with probability ε a uniformly random action.
    fn act(&self, observations: &[f32], epsilon: f64, rng: &mut Rng) -> Result<Vec<u32>> {
        let mut actions = self.act_greedily(observations)?;
        for action in &mut actions {
            if rng.random::<f64>() < epsilon {
                *action = rng.random_range(0..self.num_actions as u32);
            }
        }
        Ok(actions)
    }

    /// y, `[batch, 1]`.
    fn td_targets(&self, batch: &Batch) -> Result<Tensor> {
        // max_a' Q(s', a'; θ⁻)
        let next_values = self.target_network.forward(&batch.next_observations)?.max_keepdim(D::Minus1)?;
        // y = r + γ (1 − terminated) max_a' Q(s', a'; θ⁻)
        // Easy to miss and fatal: nothing lies beyond a terminal state.
        let discounts = batch.terminated.affine(-self.args.gamma, self.args.gamma)?;
        Ok((&batch.rewards + discounts * next_values)?.detach())
    }

    /// One step of the online network towards y; the target network stays as it is. Returns L(θ) and
    /// E[ Q(s, a; θ) ] from before the step.
    fn update(&mut self, batch: &Batch) -> Result<(f32, f32)> {
        let y = self.td_targets(batch)?;
        let q_values = self.q_network.forward(&batch.observations)?.gather(&batch.actions, 1)?; // [batch, 1]
        // The paper clips the error of an update to [−1, 1], which is the gradient of Huber's loss
        // ℓ(δ) = m (|δ| − ½ m), m = min(|δ|, 1): one surprising step cannot throw the network far.
        let magnitude = (&y - &q_values)?.abs()?;
        let inside = clamp(&magnitude, 0.0, 1.0)?.detach(); // ∇ℓ = m ∇|δ|: that of ℓ with m held constant
        let losses = (&inside * (&magnitude - (&inside * 0.5)?)?)?;
        // L(θ) = E[ ℓ(y − Q(s, a; θ)) ]
        let loss = losses.mean_all()?;
        self.optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, q_values.mean_all()?.to_scalar()?))
    }

    /// θ⁻ ← (1 − τ) θ⁻ + τ θ
    fn update_target(&self) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.parameters, self.args.tau)?)
    }
}

/// ε after `step` steps: from `start` to `end` in a straight line over `duration` steps, then `end`.
fn linear_schedule(start: f64, end: f64, duration: f64, step: usize) -> f64 {
    let progress = (step as f64 / duration.max(1.0)).min(1.0);
    start + (end - start) * progress
}

/// Builds environments that observe their last `frame_stack` frames, for training or an evaluation.
fn make_envs(args: &Args, num_envs: usize, seed: u64, evaluate: bool) -> Result<VecEnv> {
    let id = &args.run.env_id;
    let stacked = || -> Result<Box<dyn Env>> { Ok(Box::new(FrameStack::new(make(id)?, args.frame_stack)?)) };
    match (args.frame_stack, evaluate) {
        (1, false) => VecEnv::make(id, num_envs, seed),
        (1, true) => VecEnv::make_for_evaluation(id, num_envs, seed),
        _ => VecEnv::new((0..num_envs).map(|_| stacked()).collect::<Result<_>>()?, seed),
    }
}

/// Frames in one observation, whoever stacks them.
fn frames_per_observation(args: &Args) -> Result<usize> {
    let (id, own) = (&args.run.env_id, gymnasium::stacked_frames(&args.run.env_id));
    if own > 1 && args.frame_stack > 1 {
        return invalid(format!("--frame-stack {}: {id} stacks {own} frames itself", args.frame_stack));
    }
    Ok(own * args.frame_stack)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let frame_stack = frames_per_observation(&args)?;
    let mut envs = make_envs(&args, 1, args.run.seed, false)?;
    let (image, num_actions) = envs.spec().image_to_discrete("dqn_pixels")?;
    if image.height.min(image.width) < 3 {
        let (id, height, width) = (&args.run.env_id, image.height, image.width);
        return invalid(format!("--env-id {id}: images of {height}×{width} pixels; at least 3×3 are needed"));
    }
    let sizes = if image.height.min(image.width) >= 36 { ATARI } else { MINATAR };
    let mut rng = learner_rng(args.run.seed);
    let mut dqn = Dqn::new(image, &sizes, num_actions, &args)?;
    let mut buffer = ReplayBuffer::new(image, frame_stack, args.buffer_size);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut dqn.parameters),
                ("target_parameters", &mut dqn.target_parameters),
                ("optimizer", &mut dqn.optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("buffer", &mut buffer),
            ],
        )?;

        // Act ε-greedily and store what happened.
        let duration = args.exploration_fraction * run.total_timesteps as f64;
        let epsilon = linear_schedule(args.start_e, args.end_e, duration, global_step);
        let observation = envs.observations().to_vec(); // [height, width, channels]
        let action = dqn.act(&observation, epsilon, &mut rng)?;
        envs.step(&action)?;
        buffer.store(&observation, action[0], &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        if global_step <= args.learning_starts {
            continue;
        }

        // Learn.
        if global_step.is_multiple_of(args.train_frequency) {
            let batch = buffer.sample(args.batch_size, &mut rng, &dqn.device)?;
            let (td_loss, q_values) = dqn.update(&batch)?;
            if global_step.is_multiple_of(100) {
                run.log(global_step, "losses/td_loss", td_loss)?;
                run.log(global_step, "losses/q_values", q_values)?;
                run.log(global_step, "charts/epsilon", epsilon)?;
            }
        }
        if global_step.is_multiple_of(args.target_network_frequency) {
            dqn.update_target()?;
        }
    }

    run.save_or_load_model(&mut dqn.parameters)?;
    run.evaluate_on(
        |num_envs, seed| make_envs(&args, num_envs, seed, true),
        |observations| dqn.act_greedily(observations),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
