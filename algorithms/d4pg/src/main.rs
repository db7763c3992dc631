//! # Distributed distributional deterministic policy gradients (D4PG)
//!
//! Barth-Maron, Hoffman, Budden, Dabney, Horgan, TB, Muldal, Heess & Lillicrap (2018), arXiv:1804.08617.
//!
//! DDPG (`ddpg` explains it) with four additions: the critic learns the distribution of returns instead of
//! its mean (`c51`), its targets have the rewards of n steps, transitions that it is wrong about are
//! replayed more often, and many actors gather them while the learner learns.
//!
//! ```text
//! critic     Z_w(x, a): the return is z_j with probability p_j(x, a; w),   j = 0 … N_atoms − 1
//! target     R_t = Σ_{m<k} γ^m r_{t+m}               k = n, fewer at an episode's end
//!            Y = Φ( R_t + γ^k (1 − terminated) Z_w̄(x_{t+k}, π_θ̄(x_{t+k})) )        ∇_w Y = 0
//! L(w)       = E_{i ~ P}[ w_i H(Y_i, Z_w(x_i, a_i)) ],   H(Y, Z) = −Σ_j Y_j ln p_j,   w_i = 1 / (N P(i))
//! J(θ)       = −E_{i ~ P}[ Q_w(x_i, π_θ(x_i)) ],         Q_w = Σ_j z_j p_j,   π_θ(x) = b + c tanh f_θ(x)
//! averages   w̄ ← (1 − τ) w̄ + τ w,   θ̄ ← (1 − τ) θ̄ + τ θ
//! replay     P(i) = ℓ_i^α / Σ_j ℓ_j^α of N transitions, ℓ_i ← H(Y_i, Z_w), the greatest yet for a new one
//! actors     a = clip( π_θ(x) + c σ ε, b − c, b + c ),   ε ~ N(0, I)        actions' bounds: b ± c
//! ```
//!
//! The projection Φ divides what a target moves between two atoms among both; a time limit's end is not
//! terminal; both gradients are of the parameters before the update, as in the paper's algorithm 1.
//!
//! Deviations from the paper:
//! - a run is the same each time: in rounds an actor makes num_steps steps with the θ of the round's beginning,
//!   while the learner makes as many updates;
//! - target networks are averages (the paper copies them at intervals), priorities cross-entropies, as in
//!   `rainbow` (the paper leaves them open); networks (two hidden layers of 64 units), batches and buffer are
//!   small, step sizes and σ large;
//! - noise is in units of c, as the paper's actions all lie in [-1, 1].
//!
//! An actor's state goes back and forth with each round, so environments that cannot be saved (`gym:` with
//! Box2D) are refused.
//!
//! Run `cargo run -p d4pg`: about -150 on Pendulum-v1 after 60,000 steps in 20 seconds (-152 is what the trained
//! DDPG of RL Baselines3 Zoo reaches). Actors are threads or processes of MPI (`impala` shows how).

use anyhow::Result;
use candle_core::{D, DType, Tensor};
use clap::Parser;
use common::envs::{Episode, Rng, VecEnv, invalid, learner_rng, persist::Fixed, persist::Persist};
use common::nn::{Adam, Init, Linear, VarBuilder, VarMap, linear, maximum, minimum, soft_update};
use common::{Run, cli, cli::RunArgs, dist, dist::World};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, process::ExitCode};

/// Deterministic policy gradient with a distributional critic and actors side by side
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("60000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Ranks: a learner and, all others, actors; under mpirun its number of processes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=256))]
    workers: u16,
    /// Steps of each actor and updates of the learner in a round
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    num_steps: usize,
    /// Step size of the actor and of the critic
    #[arg(long, default_value_t = 3e-4, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Returns that a distribution consists of, N_atoms
    #[arg(long, default_value_t = 51, value_parser = cli::positive)]
    n_atoms: usize,
    /// Smallest of these returns; what lies below counts as it
    #[arg(long, default_value_t = -1000.0, value_parser = cli::finite)]
    v_min: f64,
    /// Largest of these returns; what lies above counts as it
    #[arg(long, default_value_t = 0.0, value_parser = cli::finite)]
    v_max: f64,
    /// Steps whose rewards a target has, n
    #[arg(long, default_value_t = 5, value_parser = cli::positive)]
    n_step: usize,
    /// Most transitions that the replay buffer holds
    #[arg(long, default_value_t = 100_000, value_parser = cli::positive)]
    buffer_size: usize,
    /// Power of the priorities in the probability of being drawn, α
    #[arg(long, default_value_t = 0.6, value_parser = cli::unit_interval)]
    prioritized_replay_alpha: f64,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Share of the networks that enters their target networks in each update, τ
    #[arg(long, default_value_t = 0.01, value_parser = cli::unit_interval)]
    tau: f64,
    /// Transitions in an update
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    batch_size: usize,
    /// Units in each of the two hidden layers
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    hidden_size: usize,
    /// Standard deviation of the exploration noise, σ, where an action's range is [-1, 1]
    #[arg(long, default_value_t = 0.6, value_parser = cli::non_negative)]
    exploration_noise: f64,
}

/// The projection Φ: the distribution of `n_step_return` + `discount` · Z on the atoms, `[n_atoms]`, where Z
/// has the distribution `probabilities` on them.
fn project(probabilities: &[f32], n_step_return: f32, discount: f32, args: &Args) -> Vec<f32> {
    let Args { n_atoms, v_min, v_max, .. } = *args;
    let delta_z = (v_max - v_min) / (n_atoms - 1) as f64; // z_{i+1} − z_i
    let mut projected = vec![0.0; n_atoms]; // Y
    for (j, p) in probabilities.iter().enumerate() {
        let moved = f64::from(n_step_return) + f64::from(discount) * (v_min + j as f64 * delta_z);
        // Its place among the atoms; what lies beyond them counts as the outermost one.
        let place = (moved.clamp(v_min, v_max) - v_min) / delta_z;
        // Easy to miss: with ⌈place⌉ as the upper neighbour, mass would be lost that falls on an atom.
        let lower = (place as usize).min(n_atoms - 2);
        let share = (place - lower as f64) as f32;
        projected[lower] += p * (1.0 - share);
        projected[lower + 1] += p * share;
    }
    projected
}

/// Two hidden layers of ReLU units: `[inputs]` → `[hidden_size]` → `[hidden_size]` → `[outputs]`.
struct Mlp([Linear; 3]);

impl Mlp {
    fn new([inputs, hidden_size, outputs]: [usize; 3], vb: VarBuilder) -> Result<Self> {
        let hidden1 = linear(inputs, hidden_size, vb.pp("hidden1"))?;
        let hidden2 = linear(hidden_size, hidden_size, vb.pp("hidden2"))?;
        Ok(Self([hidden1, hidden2, linear(hidden_size, outputs, vb.pp("output"))?]))
    }

    /// `[batch, inputs]` to `[batch, outputs]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [hidden1, hidden2, output] = &self.0;
        Ok(output.forward(&hidden2.forward_relu(&hidden1.forward_relu(x)?)?)?)
    }
}

/// An online network and its target network.
struct Networks {
    online: Mlp,
    target: Mlp,
    parameters: VarMap,        // θ or w
    target_parameters: VarMap, // θ̄ or w̄
    optimizer: Adam,
}

impl Networks {
    fn new(seed: u64, sizes: [usize; 3], args: &Args) -> Result<Self> {
        let (device, [parameters, target_parameters]) = (args.run.device()?, [seed; 2].map(VarMap::new));
        let network = |parameters| Mlp::new(sizes, VarBuilder::from_varmap(parameters, DType::F32, &device));
        let (online, target) = (network(&parameters)?, network(&target_parameters)?); // equal: of one seed
        let optimizer = Adam::new(&parameters, args.learning_rate)?;
        Ok(Self { online, target, parameters, target_parameters, optimizer })
    }

    /// w̄ ← (1 − τ) w̄ + τ w
    fn update_target(&self, tau: f64) -> Result<()> {
        Ok(soft_update(&self.target_parameters, &self.parameters, tau)?)
    }
}

/// A step and up to n − 1 that follow it in its episode.
#[derive(Serialize, Deserialize)]
struct Transition {
    observation: Vec<f32>,      // x_t, [observation_dim]
    action: Vec<f32>,           // a_t, [action_dim]
    n_step_return: f32,         // R_t
    next_observation: Vec<f32>, // x_{t+k}, an episode's true last one at its end, [observation_dim]
    discount: f32,              // γ^k (1 − terminated)
}

type Gathered = (Vec<Transition>, Vec<Episode>); // what an actor completed in a round
type Recent = VecDeque<(Vec<f32>, Vec<f32>, f32)>; // x, a and r of its steps that wait for those that follow
type State = (Vec<u8>, Recent, Rng); // what it goes on from, its environment first

/// The last `buffer_size` transitions, whole as ranks send them, and how often each shall be drawn.
#[derive(Serialize, Deserialize, Default)]
struct ReplayBuffer {
    transitions: VecDeque<Transition>, // the newest first, [len]
    powers: VecDeque<f64>,             // ℓ^α, [len]
    max_power: f64,                    // the greatest ℓ^α so far
}

impl ReplayBuffer {
    fn store(&mut self, transition: Transition, args: &Args) {
        self.transitions.push_front(transition);
        self.transitions.truncate(args.buffer_size);
        // Nothing is known of its loss yet: ℓ = max_{j so far} ℓ_j, or 1
        self.powers.push_front(if self.max_power > 0.0 { self.max_power } else { 1.0 });
        self.powers.truncate(args.buffer_size);
    }

    /// Rows, found by one walk, for `uniforms` from [0, 1), one from each equal share of Σ_j ℓ_j^α, and their w_i.
    fn sample(&self, uniforms: &[f64]) -> (Vec<usize>, Vec<f32>) {
        let (len, total) = (self.powers.len(), self.powers.iter().sum::<f64>());
        let (mut row, mut sum) = (0, self.powers[0]); // Σ_{j ≤ row} ℓ_j^α
        let draw = |(k, uniform): (usize, &f64)| {
            let mass = (k as f64 + uniform) * total / uniforms.len() as f64;
            while sum <= mass && row + 1 < len {
                row += 1;
                sum += self.powers[row];
            }
            let probability = self.powers[row] / total; // P(i) = ℓ_i^α / Σ_j ℓ_j^α
            (row, (1.0 / (len as f64 * probability)) as f32) // w_i = 1 / (N P(i))
        };
        uniforms.iter().enumerate().map(draw).unzip()
    }

    /// ℓ_i ← H(Y_i, Z_w) for the rows that were drawn.
    fn update_priorities(&mut self, rows: &[usize], cross_entropies: &[f32], args: &Args) {
        for (&row, &priority) in rows.iter().zip(cross_entropies) {
            self.powers[row] = f64::from(priority).max(1e-6).powf(args.prioritized_replay_alpha); // never 0
            self.max_power = self.max_power.max(self.powers[row]);
        }
    }
}

/// Actor, critic and how they learn. Every rank has them; only rank 0's learn.
struct D4pg {
    actor: Networks,      // f_θ: [observation_dim] → [action_dim]
    critic: Networks,     // logits of Z_w: [observation_dim + action_dim] → [n_atoms]
    action_bias: Tensor,  // b, the middle of the bounds b ± c, [action_dim]
    action_scale: Tensor, // c, [action_dim]
    support: Tensor,      // z, [n_atoms]
    args: Args,
}

impl D4pg {
    fn new(observation_dim: usize, bounds: [&[f32]; 2], args: &Args) -> Result<Self> {
        let (device, seed, size) = (args.run.device()?, args.run.seed, args.hidden_size);
        let delta_z = (args.v_max - args.v_min) / (args.n_atoms - 1) as f64;
        let support: Vec<_> = (0..args.n_atoms).map(|j| (args.v_min + j as f64 * delta_z) as f32).collect();
        Ok(Self {
            actor: Networks::new(seed, [observation_dim, size, bounds[0].len()], args)?,
            critic: Networks::new(!seed, [observation_dim + bounds[0].len(), size, args.n_atoms], args)?,
            action_bias: Tensor::new(bounds[0], &device)?,
            action_scale: Tensor::new(bounds[1], &device)?,
            support: Tensor::new(support, &device)?,
            args: args.clone(),
        })
    }

    /// Rows one after the other as `[batch, columns]`.
    fn tensor<'a>(&self, rows: impl Iterator<Item = &'a Vec<f32>>) -> Result<Tensor> {
        let rows: Vec<&[f32]> = rows.map(Vec::as_slice).collect();
        Ok(Tensor::from_vec(rows.concat(), (rows.len(), ()), self.support.device())?)
    }

    /// π(x) = b + c tanh f(x), `[batch, action_dim]`, where f is the actor or its target.
    fn policy(&self, network: &Mlp, observations: &Tensor) -> Result<Tensor> {
        let x = network.forward(observations)?.tanh()?;
        Ok(x.broadcast_mul(&self.action_scale)?.broadcast_add(&self.action_bias)?)
    }

    /// π_θ(x), the policy without its noise, for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<f32>> {
        let shape = ((), self.actor.online.0[0].weight().dim(1)?); // [batch, observation_dim]
        let observations = Tensor::from_slice(observations, shape, self.support.device())?;
        Ok(self.policy(&self.actor.online, &observations)?.flatten_all()?.to_vec1()?)
    }

    /// clip( π_θ(x) + c σ ε, b − c, b + c ), `[action_dim]`, of one observation, from ε ~ N(0, I).
    fn act(&self, observation: &[f32], epsilon: &Tensor) -> Result<Vec<f32>> {
        let (b, c) = (&self.action_bias, &self.action_scale);
        let mean = Tensor::new(self.act_greedily(observation)?, self.support.device())?; // π_θ(x)
        let action = (mean + c * (epsilon * self.args.exploration_noise)?)?;
        Ok(minimum(&maximum(&action, &(b - c)?)?, &(b + c)?)?.to_vec1()?)
    }

    /// An actor's part of a round: `num_steps` steps, and the transitions that they complete.
    fn gather(&self, envs: &mut VecEnv, recent: &mut Recent, rng: &mut Rng) -> Result<Gathered> {
        let Args { num_steps, n_step, gamma, .. } = self.args;
        let (mut transitions, mut episodes) = Gathered::default();
        for _ in 0..num_steps {
            let observation = envs.observations().to_vec(); // [observation_dim]
            let normal = Init::Randn { mean: 0.0, stdev: 1.0 };
            let epsilon = normal.tensor(self.action_bias.shape(), rng, self.support.device())?;
            let action = self.act(&observation, &epsilon)?;
            envs.step(&action)?;
            let (terminated, truncated) = (envs.terminated()[0], envs.truncated()[0]);
            recent.push_back((observation, action, envs.rewards()[0]));
            // Easy to miss: an episode's end completes all of its last steps.
            while recent.len() >= n_step || terminated || truncated {
                // R_t = Σ_{m<k} γ^m r_{t+m}, from the last reward backwards
                let sum = recent.iter().rfold(0.0, |sum, (_, _, r)| f64::from(*r) + gamma * sum);
                let discount = if terminated { 0.0 } else { gamma.powi(recent.len() as i32) }; // γ^k, or 0
                let Some((observation, action, _)) = recent.pop_front() else { break };
                transitions.push(Transition {
                    observation,
                    action,
                    n_step_return: sum as f32,
                    // Easy to miss and fatal: after an episode's end `envs.observations()` are the next one's.
                    next_observation: envs.final_observations().to_vec(),
                    discount: discount as f32,
                });
            }
            episodes.extend_from_slice(envs.episodes());
        }
        Ok((transitions, episodes))
    }

    /// ln p(x, a), `[batch, n_atoms]`, where p is of the critic or of its target.
    fn log_p(&self, network: &Mlp, observations: &Tensor, actions: &Tensor) -> Result<Tensor> {
        let logits = network.forward(&Tensor::cat(&[observations, actions], 1)?)?;
        // ln softmax(x) = x − ln Σ_j exp(x_j)
        Ok(logits.broadcast_sub(&logits.log_sum_exp(D::Minus1)?.unsqueeze(D::Minus1)?)?)
    }

    /// Y, `[batch, n_atoms]`.
    fn target_distributions(&self, batch: &[&Transition]) -> Result<Tensor> {
        // Easy to miss and fatal: both networks are the targets.
        let next_observations = self.tensor(batch.iter().map(|t| &t.next_observation))?;
        let next_actions = self.policy(&self.actor.target, &next_observations)?; // [batch, action_dim]
        let next = self.log_p(&self.critic.target, &next_observations, &next_actions)?.exp()?; // Z_w̄
        // Y = Φ( R_t + γ^k (1 − terminated) Z_w̄(x_{t+k}, π_θ̄(x_{t+k})) )
        let of = |(t, p): (&&Transition, &Vec<f32>)| project(p, t.n_step_return, t.discount, &self.args);
        let y: Vec<Vec<f32>> = batch.iter().zip(&next.to_vec2()?).map(of).collect();
        Ok(self.tensor(y.iter())?.detach())
    }

    /// Q_w = Σ_j z_j p_j, `[batch]`, from ln p, `[batch, n_atoms]`.
    fn means(&self, log_p: &Tensor) -> Result<Tensor> {
        Ok(log_p.exp()?.broadcast_mul(&self.support)?.sum(D::Minus1)?)
    }

    /// One step of the actor through the critic, whose parameters are none of its optimiser's. Returns J(θ).
    fn update_actor(&mut self, batch: &[&Transition]) -> Result<f32> {
        let observations = self.tensor(batch.iter().map(|t| &t.observation))?;
        let actions = self.policy(&self.actor.online, &observations)?; // π_θ(x), [batch, action_dim]
        let log_p = self.log_p(&self.critic.online, &observations, &actions)?;
        // J(θ) = −E[ Q_w(x, π_θ(x)) ]: w_i is the critic's alone, as in the paper
        let loss = self.means(&log_p)?.mean_all()?.neg()?;
        self.actor.optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }

    /// One step of the critic towards Y. Everything else stays as it is. Returns L(w), E[ Q_w(x, a) ] and
    /// H(Y, Z_w) of each transition, from before the step.
    fn update_critic(&mut self, batch: &[&Transition], weights: &[f32]) -> Result<(f32, f32, Vec<f32>)> {
        let y = self.target_distributions(batch)?;
        let observations = self.tensor(batch.iter().map(|t| &t.observation))?;
        let actions = self.tensor(batch.iter().map(|t| &t.action))?;
        let log_p = self.log_p(&self.critic.online, &observations, &actions)?;
        // H(Y, Z) = −Σ_j Y_j ln p_j
        let cross_entropies = (y * &log_p)?.sum(D::Minus1)?.neg()?; // [batch]
        // L(w) = E[ w_i H(Y_i, Z_w(x_i, a_i)) ]
        let loss = (Tensor::new(weights, self.support.device())? * &cross_entropies)?.mean_all()?;
        self.critic.optimizer.backward_step(&loss)?;
        Ok((loss.to_scalar()?, self.means(&log_p)?.mean_all()?.to_scalar()?, cross_entropies.to_vec1()?))
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let Args { workers, n_atoms, v_min, v_max, .. } = args;
    if n_atoms < 2 || v_min >= v_max {
        return invalid(format!("--n-atoms {n_atoms}: at least 2; --v-min {v_min}: below --v-max, {v_max}"));
    }
    let envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, _) = envs.spec().box_to_box("d4pg")?;
    let (action_bias, action_scale) = envs.spec().action_range("d4pg")?;
    let agent = || D4pg::new(observation_dim, [&action_bias, &action_scale], &args);
    agent()?; // whatever is wrong with the flags is said once
    dist::launch(workers.into(), |world| match world.rank() {
        0 => learn(agent()?, &args, world),
        _ => follow(agent()?, &args, world),
    })
}

/// What ranks 1 and up do: a round for each θ and state of theirs that they get, until they get none.
fn follow(mut d4pg: D4pg, args: &Args, world: &World) -> Result<()> {
    let seed = args.run.seed.wrapping_add((world.rank() as u64) << 32); // far from the other actors'
    let mut envs = VecEnv::make(&args.run.env_id, 1, seed)?;
    world.send(0, &(envs.save()?, Recent::new(), learner_rng(seed)))?;
    while let Some((parameters, state)) = world.receive::<Option<(Vec<u8>, State)>>(0)? {
        let (saved, mut recent, mut rng) = state;
        d4pg.actor.parameters.load(&parameters)?;
        envs.load(&saved)?;
        let gathered = d4pg.gather(&mut envs, &mut recent, &mut rng)?;
        world.send(0, &(gathered, (envs.save()?, recent, rng)))?;
    }
    Ok(())
}

fn learn(mut d4pg: D4pg, args: &Args, world: &World) -> Result<()> {
    let mut rng = learner_rng(args.run.seed);
    let mut buffer = ReplayBuffer::default();
    // Actors keep nothing of their own from round to round, so that checkpoints of this rank hold all.
    let mut states = (1..world.size()).map(|actor| world.receive(actor)).collect::<Result<Vec<State>>>()?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, args)?;

    let (mut global_step, mut updates) = (0, 0);
    while global_step < run.total_timesteps {
        let mut items: [(&str, &mut dyn Persist); 10] = [
            ("actor", &mut d4pg.actor.parameters),
            ("actor_optimizer", &mut d4pg.actor.optimizer),
            ("target_actor", &mut d4pg.actor.target_parameters),
            ("critic", &mut d4pg.critic.parameters),
            ("critic_optimizer", &mut d4pg.critic.optimizer),
            ("target_critic", &mut d4pg.critic.target_parameters),
            ("updates", &mut updates),
            ("buffer", &mut buffer),
            ("actors", &mut Fixed(&mut states)),
            ("rng", &mut rng),
        ];
        run.resume_or_checkpoint(&mut global_step, &mut items)?;

        // The actors gather with θ as it is, while the learner learns from what they gathered before.
        let parameters = d4pg.actor.parameters.save()?;
        for (actor, state) in (1..).zip(&states) {
            world.send(actor, &Some((&parameters, state)))?;
        }
        let enough = buffer.transitions.len() >= args.batch_size.min(args.buffer_size);
        for _ in 0..if enough { args.num_steps } else { 0 } {
            let uniforms: Vec<f64> = (0..args.batch_size).map(|_| rng.random()).collect();
            let (rows, weights) = buffer.sample(&uniforms);
            let batch: Vec<_> = rows.iter().map(|&row| &buffer.transitions[row]).collect();
            // The actor first, so that both gradients are of the parameters before the update.
            let actor_loss = d4pg.update_actor(&batch)?;
            let (qf1_loss, qf1_values, cross_entropies) = d4pg.update_critic(&batch, &weights)?;
            d4pg.actor.update_target(args.tau)?;
            d4pg.critic.update_target(args.tau)?;
            buffer.update_priorities(&rows, &cross_entropies, args);
            updates += 1;
            if updates % 100 == 0 {
                run.log(global_step, "losses/actor_loss", actor_loss)?;
                run.log(global_step, "losses/qf1_loss", qf1_loss)?;
                run.log(global_step, "losses/qf1_values", qf1_values)?;
            }
        }

        // In the order of ranks, not of arrival: the same each time.
        for (actor, state) in (1..).zip(&mut states) {
            let (transitions, episodes): Gathered;
            ((transitions, episodes), *state) = world.receive(actor)?;
            transitions.into_iter().for_each(|transition| buffer.store(transition, args));
            global_step += args.num_steps;
            run.episodes(global_step, &episodes)?;
        }
    }
    (1..world.size()).try_for_each(|actor| world.send(actor, &None::<(Vec<u8>, State)>))?;

    run.save_or_load_model(&mut d4pg.actor.parameters)?;
    run.evaluate(|observations| d4pg.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
