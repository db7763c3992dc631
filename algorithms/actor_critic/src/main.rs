//! # One-step actor-critic
//!
//! Barto, Sutton & Anderson (1983), "Neuronlike adaptive elements that can solve difficult learning
//! control problems", IEEE SMC 13; Sutton & Barto (2018), "Reinforcement Learning", sections 13.5
//! (episodic) and 13.6 (continuing).
//!
//! REINFORCE waits for the end of an episode to learn how good an action was. Actor-critic asks after a
//! single step: a critic learns what states are worth, and the reward together with the value of where the
//! step led, less the value of where it began, says whether the action was better than expected. That TD
//! error moves both: the critic towards fewer errors, the actor towards actions that surprise it for the
//! better. It is biased as long as the critic is wrong, but of little variance, and needs no episode's end.
//!
//! After each step from s by a to s' with reward r, in the episodic form:
//!
//! ```text
//! δ = r + γ (1 − terminated) v_w(s') − v_w(s)
//! w ← w + α_w δ ∇v_w(s)
//! θ ← θ + α_θ I δ ∇ln π_θ(a|s)
//! I ← γ I                                      and I = 1 when an episode begins
//! ```
//!
//! In the continuing form (`--average-reward`) nothing is discounted; rewards count by how much they exceed
//! the average reward r̄, which is learned as well:
//!
//! ```text
//! δ = r − r̄ + v_w(s') − v_w(s)                 r̄ ← r̄ + η δ,  and I = 1 above
//! ```
//!
//! Policy and value are networks with a hidden layer, or linear in tiles (`--tilings`): m grids that lie
//! over the state space, each shifted against the others, of each of which a state lies in one tile; one
//! more feature is always 1 (section 9.5.4; grids are shifted by odd multiples of a tile's m-th part).
//!
//! Deviations from the book, each of which a flag takes back but the last: Adam, its step sizes falling to
//! zero, in place of plain steps; no factor I = γᵗ, as in almost every program (`--discount-gradient`; see
//! reinforce). Where a time limit merely truncates an episode, δ bootstraps from the true last state.
//!
//! Run `cargo run -p actor_critic`: 475 or more on CartPole-v1 after 200,000 steps in seven seconds (475 is
//! the return at which Gymnasium registers the task as solved). Swinging up a pendulum with the book's
//! plain steps, an average reward above 0.65 in the 50th episode, a return of 3250 (what RLPark's test of
//! the same learner demands, there with continuous torques: rlpark/rlpark at 2baf7389):
//!
//! ```text
//! cargo run -p actor_critic -- --env-id SwingPendulum-v0-discrete --total-timesteps 250000 --tilings 10 \
//!     --average-reward --optimizer sgd --policy-lr 0.0045 --value-lr 0.045 --anneal-lr false
//! ```

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use common::cli::{self, RunArgs};
use common::envs::{Rng, Space, VecEnv, invalid, learner_rng};
use common::nn::{Adam, Categorical, Init, Linear, VarBuilder, VarMap, backward, linear_orthogonal};
use common::run::Run;
use rand::RngExt;
use serde::Serialize;
use std::process::ExitCode;

/// One-step actor-critic, online, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("200000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Step size of the actor, α_θ
    #[arg(long, default_value_t = 3e-4, value_parser = cli::non_negative)]
    policy_lr: f64,
    /// Step size of the critic, α_w
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    value_lr: f64,
    /// Let the step sizes fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// How to follow the gradients: Adam, or plain steps as in the book
    #[arg(long, value_enum, default_value_t = Optimizer::Adam)]
    optimizer: Optimizer,
    /// Discount of the episodic form, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Weigh step t of the actor by I = γᵗ, as the gradient of the discounted return asks for
    #[arg(long, default_value_t = false)]
    discount_gradient: bool,
    /// The continuing form: learn from rewards less their average, without a discount
    #[arg(long, default_value_t = false)]
    average_reward: bool,
    /// Step size of the average reward, η
    #[arg(long, default_value_t = 0.01, value_parser = cli::non_negative)]
    average_reward_lr: f64,
    /// Hidden tanh units, where there are no tiles
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    hidden_size: usize,
    /// Grids of tiles, m, that policy and value are linear in; 0 for networks
    #[arg(long, default_value_t = 0)]
    tilings: usize,
    /// Tiles of a grid along each dimension of the observation
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    tiles: usize,
}

/// How parameters follow a gradient.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Optimizer {
    Adam,
    Sgd,
}

/// The features x(s): tiles, or the observation itself.
struct Features {
    tilings: usize,  // m
    tiles: usize,    // along each dimension
    low: Vec<f32>,   // [observation_dim]
    width: Vec<f32>, // of a tile, [observation_dim]
}

impl Features {
    fn new(space: &Space, args: &Args) -> Result<Self> {
        let (id, tilings) = (&args.run.env_id, args.tilings);
        let Space::Box { low, high, .. } = space else {
            return invalid(format!("--env-id {id}: actor_critic needs Box observations, not {space}"));
        };
        if tilings > 0 && low.iter().chain(high).any(|bound| !bound.is_finite()) {
            return invalid(format!(
                "--env-id {id}: --tilings {tilings} need bounded observations; --tilings 0 does not"
            ));
        }
        let (numbers, tiles) = (low.len(), args.tiles);
        let all = (tiles + 1).checked_pow(numbers as u32).and_then(|grid| grid.checked_mul(tilings));
        if tilings > 0 && all.is_none_or(|all| all > 1_000_000) {
            return invalid(format!(
                "--env-id {id}: {numbers} numbers are too many for --tilings {tilings} --tiles {tiles}"
            ));
        }
        let width = low.iter().zip(high).map(|(low, high)| (high - low) / tiles as f32).collect();
        Ok(Self { tilings, tiles, low: low.clone(), width })
    }

    /// Tiles in one grid: it is shifted by less than a tile, so that one more covers the space.
    fn grid_size(&self) -> usize {
        (self.tiles + 1).pow(self.low.len() as u32)
    }

    /// How many there are, n.
    fn len(&self) -> usize {
        if self.tilings == 0 { self.low.len() } else { self.tilings * self.grid_size() + 1 }
    }

    /// x(s) of each of `batch` observations, `[batch, n]`.
    fn of(&self, observations: &[f32], device: &Device) -> Result<Tensor> {
        let batch = observations.len() / self.low.len();
        if self.tilings == 0 {
            return Ok(Tensor::from_slice(observations, (batch, self.low.len()), device)?);
        }
        let mut all = vec![0.0_f32; batch * self.len()];
        let rows = all.chunks_exact_mut(self.len());
        for (features, observation) in rows.zip(observations.chunks_exact(self.low.len())) {
            for tiling in 0..self.tilings {
                let mut tile = 0; // row-major in its grid
                for (d, number) in observation.iter().enumerate() {
                    // Shifted by the odd number 2 d + 1 of m-th parts of a tile, from grid to grid.
                    let shift = (tiling * (2 * d + 1) % self.tilings) as f32 / self.tilings as f32;
                    let position = (number - self.low[d]) / self.width[d] + shift;
                    tile = tile * (self.tiles + 1) + (position.max(0.0) as usize).min(self.tiles);
                }
                features[tiling * self.grid_size() + tile] = 1.0;
            }
            features[self.tilings * self.grid_size()] = 1.0;
        }
        Ok(Tensor::from_vec(all, (batch, self.len()), device)?)
    }
}

/// The preferences h(s, ·; θ), whose softmax is the policy, or the value v_w(s); and its optimiser.
struct Network {
    hidden: Option<Linear>, // [n] → [hidden_size]; none over tiles
    output: Linear,         // → [outputs]
    parameters: VarMap,
    adam: Adam, // its step size is that of plain steps, too
}

impl Network {
    /// `gain` scales the output layer: 0.01 makes the first policy almost uniform, 1 suits a value.
    fn new(n: usize, outputs: usize, gain: f64, step_size: f64, seed: u64, args: &Args) -> Result<Self> {
        let parameters = VarMap::new(seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &args.run.device()?);
        let (hidden, output) = if args.tilings > 0 {
            // Linear, and zero at first; one of the features takes the place of a bias.
            let weight = vb.pp("output").get_with_hints((outputs, n), "weight", Init::Const(0.0))?;
            (None, Linear::new(weight, Tensor::zeros(outputs, DType::F32, vb.device())?))
        } else {
            let hidden = linear_orthogonal(n, args.hidden_size, std::f64::consts::SQRT_2, vb.pp("hidden"))?;
            (Some(hidden), linear_orthogonal(args.hidden_size, outputs, gain, vb.pp("output"))?)
        };
        let adam = Adam::new(&parameters, step_size)?;
        Ok(Self { hidden, output, parameters, adam })
    }

    /// Features `[batch, n]` to `[batch, outputs]`.
    fn forward(&self, features: &Tensor) -> Result<Tensor> {
        Ok(match &self.hidden {
            Some(hidden) => self.output.forward(&hidden.forward_tanh(features)?)?,
            None => self.output.forward(features)?,
        })
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

/// What one step of the environment showed.
struct Transition {
    observation: Vec<f32>,      // s
    action: u32,                // a
    reward: f32,                // r
    next_observation: Vec<f32>, // s', an episode's true last one at its end
    terminated: bool,           // nothing lies beyond s'
    truncated: bool,            // the episode was cut off at s'
}

impl Transition {
    /// The step that `envs`, a single environment, has just made from `observation` by `action`.
    fn last(observation: Vec<f32>, action: u32, envs: &VecEnv) -> Self {
        Self {
            observation,
            action,
            reward: envs.rewards()[0],
            // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
            next_observation: envs.final_observations().to_vec(),
            terminated: envs.terminated()[0],
            truncated: envs.truncated()[0],
        }
    }
}

/// What one update found, before it moved the parameters.
struct Losses {
    td_error: f32, // δ
    policy_loss: f32,
    value_loss: f32,
    entropy: f32,
}

/// Actor, critic and how they learn.
struct ActorCritic {
    actor: Network,  // h(s, ·; θ), [num_actions]
    critic: Network, // v_w(s), [1]
    features: Features,
    average_reward: f64, // r̄, 0 for ever in the episodic form
    state_discount: f64, // I
    args: Args,
    device: Device,
}

impl ActorCritic {
    fn new(space: &Space, num_actions: usize, args: &Args, rng: &mut Rng) -> Result<Self> {
        let features = Features::new(space, args)?;
        let [actor_seed, critic_seed]: [u64; 2] = rng.random();
        let actor = Network::new(features.len(), num_actions, 0.01, args.policy_lr, actor_seed, args)?;
        let critic = Network::new(features.len(), 1, 1.0, args.value_lr, critic_seed, args)?;
        let (args, device) = (args.clone(), args.run.device()?);
        Ok(Self { actor, critic, features, average_reward: 0.0, state_discount: 1.0, args, device })
    }

    /// π_θ(·|s) for each observation.
    fn policy(&self, observations: &[f32]) -> Result<Categorical> {
        Ok(Categorical::new(&self.actor.forward(&self.features.of(observations, &self.device)?)?)?)
    }

    /// v_w(s), `[1]`.
    fn value(&self, observation: &[f32]) -> Result<Tensor> {
        Ok(self.critic.forward(&self.features.of(observation, &self.device)?)?.squeeze(1)?)
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        Ok(self.policy(observations)?.sample(rng)?.to_vec1()?)
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(self.policy(observations)?.mode()?.to_vec1()?)
    }

    /// One step of the average reward, the critic and the actor, all with the same δ, of the critic before.
    fn update(&mut self, step: &Transition) -> Result<Losses> {
        let gamma = if self.args.average_reward { 1.0 } else { self.args.gamma };
        // Easy to miss and fatal: nothing lies beyond a terminal state; beyond a time limit there does.
        let next_value = match step.terminated {
            true => Tensor::zeros(1, DType::F32, &self.device)?,
            false => self.value(&step.next_observation)?,
        };
        // r − r̄ + γ (1 − terminated) v_w(s')
        let target = ((next_value * gamma)? + (f64::from(step.reward) - self.average_reward))?.detach();
        let (td_error, value_loss) = self.update_critic(step, &target)?;
        if self.args.average_reward {
            self.average_reward += self.args.average_reward_lr * f64::from(td_error); // r̄ ← r̄ + η δ
        }
        let (policy_loss, entropy) = self.update_actor(step, td_error)?;
        if self.args.discount_gradient {
            self.state_discount *= gamma; // I ← γ I
        }
        if step.terminated || step.truncated {
            self.state_discount = 1.0; // the next step begins an episode
        }
        Ok(Losses { td_error, policy_loss, value_loss, entropy })
    }

    /// One step of v_w(s) towards the target, `[1]`. Returns δ and the loss.
    fn update_critic(&mut self, step: &Transition, target: &Tensor) -> Result<(f32, f32)> {
        // δ = r + γ (1 − terminated) v_w(s') − v_w(s)
        let td_error = (target - self.value(&step.observation)?)?;
        // ½ δ², whose gradient with a constant target is −δ ∇v_w(s)
        let loss = (td_error.sqr()? * 0.5)?.sum_all()?;
        self.critic.descend(&loss, self.args.optimizer)?;
        Ok((td_error.sum_all()?.to_scalar()?, loss.to_scalar()?))
    }

    /// One step of the policy. Returns the loss and the entropy.
    fn update_actor(&mut self, step: &Transition, td_error: f32) -> Result<(f32, f32)> {
        let policy = self.policy(&step.observation)?;
        let log_prob = policy.log_prob(&Tensor::new(&[step.action], &self.device)?)?; // ln π_θ(a|s), [1]
        // −I δ ln π_θ(a|s). The factor is a tensor: candle passes no gradient on from a number that is 0.
        let factor = Tensor::new(&[-self.state_discount as f32 * td_error], &self.device)?;
        let loss = (factor * log_prob)?.sum_all()?;
        self.actor.descend(&loss, self.args.optimizer)?;
        Ok((loss.to_scalar()?, policy.entropy()?.sum_all()?.to_scalar()?))
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (_, num_actions) = envs.spec().box_to_discrete("actor_critic")?;
    let space = envs.spec().observation_space.clone();
    let mut rng = learner_rng(args.run.seed);
    let mut learner = ActorCritic::new(&space, num_actions, &args, &mut rng)?;
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
                ("average_reward", &mut learner.average_reward),
                ("state_discount", &mut learner.state_discount),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            learner.actor.adam.learning_rate = remaining * args.policy_lr;
            learner.critic.adam.learning_rate = remaining * args.value_lr;
        }

        let observation = envs.observations().to_vec();
        let action = learner.act(&observation, &mut rng)?;
        envs.step(&action)?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;

        // Learn from the step, once.
        let losses = learner.update(&Transition::last(observation, action[0], &envs))?;
        if global_step.is_multiple_of(100) {
            run.log(global_step, "charts/learning_rate", learner.actor.adam.learning_rate)?;
            if args.average_reward {
                run.log(global_step, "charts/average_reward", learner.average_reward)?;
            }
            run.log(global_step, "losses/td_error", losses.td_error)?;
            run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
            run.log(global_step, "losses/value_loss", losses.value_loss)?;
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
