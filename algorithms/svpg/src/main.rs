//! # Stein variational policy gradient (SVPG)
//!
//! Liu, Ramachandran, Liu & Peng (2017), arXiv:1704.02399.
//!
//! One policy that follows its gradient finds one way to behave, and often a poor one. SVPG trains several,
//! called particles, that share what they learn and push each other apart. Together they are a sample from a
//! distribution over policies, in which better ones are more probable: of all distributions q it is the
//! one that maximises the expected return and, weighed by the temperature α, its entropy.
//!
//! ```text
//! max_q  E_{θ∼q}[ J(θ) ] + α H(q)     has the solution     q(θ) ∝ exp( J(θ) / α )
//!
//! θ_i ← θ_i + ε φ_i
//! φ_i = (1/n) Σ_j [ k(θ_j, θ_i) ∇J(θ_j) / α + ∇_{θ_j} k(θ_j, θ_i) ]      Stein variational gradient descent
//!                   what is good near θ_j        away from θ_j            (Liu & Wang 2016, arXiv:1608.04471)
//! k(θ, θ') = exp( −|θ − θ'|² / h ),   h = median_{i<j} |θ_i − θ_j|² / ln(n + 1)
//! ```
//!
//! With that h, k between two particles at the median distance is 1 / (n + 1), wherever they are. A large α
//! sends them apart; with a small one each takes that share of the others' gradients, and no more. ∇J is any
//! policy gradient; as in the paper's A2C variant, each particle has a critic V_j of its own that no other
//! one sees:
//!
//! ```text
//! ∇J(θ_j) = (1/N) Σ_episodes Σ_t ( G_t − V_j(s_t) ) ∇ln π_θj(a_t|s_t)
//! G_t = r_t + γ G_{t+1}       at its episode's end: 0 after termination, V_j(s_{t+1}) after truncation
//! ```
//!
//! Deviations from the paper: discrete actions; four particles rather than sixteen and one hidden layer rather
//! than three, for few steps; no factor γᵗ (see `reinforce`); h is of the pairs alone (the authors' program,
//! github.com/largelymfs/svpg_REINFORCE, counts the zeros of the diagonal and halves h); φ is followed by
//! Adam, as there, but its step size falls to zero; returns look beyond a time limit (Pardo et al. 2018,
//! arXiv:1712.00378). α = 10 is theirs too, but their ∇J is a mean over steps, of standardised advantages:
//! here it is an episode's sum of plain ones, beside which at 10 the repulsion is a few per cent of φ, and a
//! larger --temperature is what spreads the particles. The policy that is kept is the particle whose latest
//! episodes were the best, by a running mean of returns in which a new one weighs a tenth. `--repulsion false`
//! leaves ∇k out.
//!
//! Run `cargo run -p svpg`: 497 or more on CartPole-v1, with each of ten seeds, after 300,000 steps of all
//! particles together in a second and a half (475 is the return at which Gymnasium registers the task as solved).

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{Rng, VecEnv, invalid, learner_rng, parameters_rng};
use common::nn::{Adam, Categorical, Linear, VarBuilder, VarMap, linear_orthogonal};
use common::{Run, cli, cli::RunArgs};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{f64::consts::SQRT_2, process::ExitCode};

/// Stein variational policy gradient, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("300000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Particles, n
    #[arg(long, default_value_t = 4, value_parser = cli::positive)]
    num_particles: usize,
    /// Temperature, α
    #[arg(long, default_value_t = 10.0, value_parser = cli::above_zero)]
    temperature: f64,
    /// Push particles apart; without it they only share gradients
    #[arg(long, default_value_t = true)]
    repulsion: bool,
    /// Step size of the particles' Adam, ε
    #[arg(long, default_value_t = 5e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Let the particles' step size fall linearly to zero
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Episodes of each particle between updates, N
    #[arg(long, default_value_t = 2, value_parser = cli::positive)]
    batch_episodes: usize,
    /// Step size of the critics' Adam
    #[arg(long, default_value_t = 5e-3, value_parser = cli::non_negative)]
    value_lr: f64,
    /// Steps of the critics between updates of the particles
    #[arg(long, default_value_t = 10, value_parser = cli::positive)]
    n_critic_updates: usize,
}

/// A network of tanh units.
struct Network {
    hidden: Vec<Linear>, // [observation_dim] → hidden_sizes[0] → …
    output: Linear,      // → [outputs]
}

impl Network {
    /// `sizes` are of the hidden layers. `gain` scales the output layer: 0.01 makes the first policy
    /// almost the same everywhere (Andrychowicz et al. 2021, arXiv:2006.05990), 1 suits a value.
    fn new(mut inputs: usize, sizes: &[usize], outputs: usize, gain: f64, vb: VarBuilder) -> Result<Self> {
        let mut hidden = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            hidden.push(linear_orthogonal(inputs, size, SQRT_2, vb.pp(format!("hidden{i}")))?);
            inputs = size;
        }
        Ok(Self { hidden, output: linear_orthogonal(inputs, outputs, gain, vb.pp("output"))? })
    }

    /// Observations `[batch, observation_dim]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let mut x = observations.clone();
        for layer in &self.hidden {
            x = layer.forward_tanh(&x)?;
        }
        Ok(self.output.forward(&x)?)
    }
}

/// Whole episodes of one particle, one after the other, and the running one.
#[derive(Default, Serialize, Deserialize)]
struct Rollout {
    observations: Vec<f32>,      // s_t, [num_steps, observation_dim]
    actions: Vec<u32>,           // a_t, [num_steps]
    rewards: Vec<f32>,           // r_t, [num_steps]
    next_observations: Vec<f32>, // s_{t+1}, an episode's true last one at its end, shaped like s_t
    terminated: Vec<bool>,       // nothing lies beyond s_{t+1}, [num_steps]
    truncated: Vec<bool>,        // the episode was cut off at s_{t+1}, [num_steps]
}

impl Rollout {
    /// Stores the step that the one environment of `envs` has just made from `observation` by `action`.
    fn store(&mut self, observation: &[f32], action: &[u32], envs: &VecEnv) {
        self.observations.extend_from_slice(observation);
        self.actions.extend_from_slice(action);
        self.rewards.extend_from_slice(envs.rewards());
        // Easy to miss: after an episode's end `envs.observations()` are the next episode's.
        self.next_observations.extend_from_slice(envs.final_observations());
        self.terminated.extend_from_slice(envs.terminated());
        self.truncated.extend_from_slice(envs.truncated());
    }

    /// How many episodes are over, N.
    fn num_episodes(&self) -> usize {
        self.terminated
            .iter()
            .zip(&self.truncated)
            .filter(|&(terminated, truncated)| *terminated || *truncated)
            .count()
    }

    /// G_t, `[num_steps]`, of whole episodes, from V(s_{t+1}) of the same shape.
    fn returns(&self, next_values: &[f32], gamma: f32) -> Vec<f32> {
        let mut returns = vec![0.0; self.rewards.len()];
        for t in (0..returns.len()).rev() {
            // Easy to miss and fatal: what follows an episode's end belongs to the next one, and no
            // value lies beyond termination.
            let following = match (self.terminated[t], self.truncated[t]) {
                (true, _) => 0.0,
                (false, true) => next_values[t],
                (false, false) => returns[t + 1],
            };
            // G_t = r_t + γ G_{t+1}
            returns[t] = self.rewards[t] + gamma * following;
        }
        returns
    }
}

/// What one update found, before it moved the particles.
struct Losses {
    policy_loss: f32, // −(1/N) Σ_t ( G_t − V_j(s_t) ) ln π_θj(a_t|s_t), the mean over the particles
    entropy: f32,     // the mean over the particles
    diversity: f64,   // the mean of |θ_i − θ_j| over all pairs
}

/// |x − y|²
fn squared_distance(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum()
}

/// The particles, their critics and how they learn.
struct Svpg {
    policies: Vec<Network>, // logits of π_θi(·|s), [num_actions], each
    critics: Vec<Network>,  // V_i(s), [1], each
    best: Network,          // the particle that is kept
    parameters: VarMap,     // θ_1, …, θ_n, one after the other
    critic_parameters: VarMap,
    best_parameters: VarMap,
    optimizer: Adam,
    critic_optimizer: Adam,
    mean_returns: Vec<f64>, // of each particle's latest episodes, −∞ before the first; [num_particles]
    observation_dim: usize,
    args: Args,
    device: Device,
}

impl Svpg {
    fn new(observation_dim: usize, sizes: &[usize], num_actions: usize, args: &Args) -> Result<Self> {
        let (device, mut rng) = (args.run.device()?, parameters_rng(args.run.seed));
        let [parameters, critic_parameters, best_parameters] = [(); 3].map(|()| VarMap::new(rng.random()));
        let builder = |map: &VarMap| VarBuilder::from_varmap(map, DType::F32, &device);
        let (vb, critic_vb) = (builder(&parameters), builder(&critic_parameters));
        let (mut policies, mut critics) = (Vec::new(), Vec::new());
        for i in 0..args.num_particles {
            // Parameters are ordered by name, and 10 must come after 9; there are at most 10,000.
            let name = format!("particle{i:04}");
            policies.push(Network::new(observation_dim, sizes, num_actions, 0.01, vb.pp(&name))?);
            critics.push(Network::new(observation_dim, sizes, 1, 1.0, critic_vb.pp(&name))?);
        }
        Ok(Self {
            policies,
            critics,
            best: Network::new(observation_dim, sizes, num_actions, 0.01, builder(&best_parameters))?,
            optimizer: Adam::new(&parameters, args.learning_rate)?,
            critic_optimizer: Adam::new(&critic_parameters, args.value_lr)?,
            parameters,
            critic_parameters,
            best_parameters,
            mean_returns: vec![f64::NEG_INFINITY; args.num_particles],
            observation_dim,
            args: args.clone(),
            device,
        })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(observations, ((), self.observation_dim), &self.device)?)
    }

    /// a ~ π_θi(·|s) for each observation, of particle i.
    fn act(&self, i: usize, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        let logits = self.policies[i].forward(&self.tensor(observations)?)?;
        Ok(Categorical::new(&logits)?.sample(rng)?.to_vec1()?)
    }

    /// The most probable action of the best particle for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        Ok(self.best.forward(&self.tensor(observations)?)?.argmax(1)?.to_vec1()?)
    }

    /// What has the gradient ∇J(θ_j), from the episodes of particle j, and the mean entropy of its policy.
    fn objective(&self, j: usize, rollout: &Rollout) -> Result<(Tensor, Tensor)> {
        let observations = self.tensor(&rollout.observations)?;
        let values = self.critics[j].forward(&observations)?.squeeze(1)?; // V_j(s_t), [num_steps]
        // G_t − V_j(s_t), numbers: no gradient flows through them.
        let advantages = (self.returns(j, rollout)? - values)?.detach();
        let policy = Categorical::new(&self.policies[j].forward(&observations)?)?;
        let log_probs = policy.log_prob(&Tensor::new(rollout.actions.as_slice(), &self.device)?)?;
        // (1/N) Σ_episodes Σ_t ( G_t − V_j(s_t) ) ln π_θj(a_t|s_t)
        let objective = ((advantages * log_probs)?.sum_all()? / rollout.num_episodes() as f64)?;
        Ok((objective, policy.entropy()?.mean_all()?))
    }

    /// G_t of the episodes of particle j, `[num_steps]`.
    fn returns(&self, j: usize, rollout: &Rollout) -> Result<Tensor> {
        let next_values = self.critics[j].forward(&self.tensor(&rollout.next_observations)?)?.squeeze(1)?;
        Ok(Tensor::new(rollout.returns(&next_values.to_vec1()?, self.args.gamma as f32), &self.device)?)
    }

    /// |θ_i − θ_j|² of the pairs i < j, sorted, of particles one after the other in `theta`.
    fn distances(&self, theta: &[f32]) -> Vec<f64> {
        let particles: Vec<&[f32]> = theta.chunks_exact(theta.len() / self.args.num_particles).collect();
        let mut distances = Vec::new();
        for (i, theta_i) in particles.iter().enumerate() {
            distances.extend(particles[..i].iter().map(|theta_j| squared_distance(theta_i, theta_j)));
        }
        distances.sort_by(f64::total_cmp);
        distances
    }

    /// h. One particle alone has none, and needs none.
    fn bandwidth(&self, theta: &[f32]) -> f64 {
        let (distances, n) = (self.distances(theta), self.args.num_particles as f64);
        if distances.is_empty() {
            return 1.0;
        }
        let (lower, upper) = (distances[(distances.len() - 1) / 2], distances[distances.len() / 2]);
        // h = median_{i<j} |θ_i − θ_j|² / ln(n + 1)
        // (but not 0 where particles are equal)
        ((lower + upper) / 2.0 / (n + 1.0).ln()).max(f64::from(f32::MIN_POSITIVE))
    }

    /// φ_1, …, φ_n from θ and ∇J, each with all particles one after the other.
    fn stein_gradient(&self, theta: &[f32], gradients: &[f32], bandwidth: f64) -> Vec<f32> {
        let (n, alpha) = (self.args.num_particles, self.args.temperature as f32);
        let num_parameters = theta.len() / n;
        let particle = |x: &[f32], i: usize| x[i * num_parameters..(i + 1) * num_parameters].to_vec();
        let mut phi = Vec::with_capacity(theta.len());
        for i in 0..n {
            let (theta_i, mut phi_i) = (particle(theta, i), vec![0.0; num_parameters]);
            for j in 0..n {
                let (theta_j, gradient_j) = (particle(theta, j), particle(gradients, j)); // ∇J(θ_j)
                // k(θ_j, θ_i) = exp( −|θ_j − θ_i|² / h )
                let k = (-squared_distance(&theta_j, &theta_i) / bandwidth).exp() as f32;
                for d in 0..num_parameters {
                    // ∇_{θ_j} k(θ_j, θ_i) = (2 / h) (θ_i − θ_j) k(θ_j, θ_i)
                    let repulsion = match self.args.repulsion {
                        true => 2.0 / bandwidth as f32 * (theta_i[d] - theta_j[d]) * k,
                        false => 0.0,
                    };
                    // φ_i = (1/n) Σ_j [ k(θ_j, θ_i) ∇J(θ_j) / α + ∇_{θ_j} k(θ_j, θ_i) ]
                    phi_i[d] += (k * gradient_j[d] / alpha + repulsion) / n as f32;
                }
            }
            phi.extend(phi_i);
        }
        phi
    }

    /// One step of all particles along φ, from the episodes of each. The critics stay as they are.
    fn update_particles(&mut self, rollouts: &[Rollout]) -> Result<Losses> {
        let n = self.args.num_particles as f64;
        let mut objective = Tensor::zeros((), DType::F32, &self.device)?;
        let mut entropy = objective.clone();
        for (j, rollout) in rollouts.iter().enumerate() {
            let (own_objective, own_entropy) = self.objective(j, rollout)?;
            (objective, entropy) = ((objective + own_objective)?, (entropy + own_entropy)?);
        }
        // ∇J(θ_1), …, ∇J(θ_n): no term of the sum has another particle's parameters in it.
        let gradients = self.parameters.gradients(&objective)?;
        let theta = self.parameters.values()?;
        let phi = self.stein_gradient(&theta, &gradients, self.bandwidth(&theta));
        // Adam descends: its gradient is −φ.
        self.optimizer.step_values(&phi.iter().map(|phi| -phi).collect::<Vec<_>>())?;
        let distances = self.distances(&theta);
        Ok(Losses {
            policy_loss: (objective / -n)?.to_scalar()?,
            entropy: (entropy / n)?.to_scalar()?,
            diversity: distances.iter().map(|d| d.sqrt()).sum::<f64>() / distances.len().max(1) as f64,
        })
    }

    /// Steps of all critics towards the returns of their own particles, which stay as they are. Returns the
    /// mean of the critics' losses before the last step.
    fn update_critics(&mut self, rollouts: &[Rollout]) -> Result<f32> {
        let mut batches = Vec::new();
        for (j, rollout) in rollouts.iter().enumerate() {
            batches.push((self.tensor(&rollout.observations)?, self.returns(j, rollout)?));
        }
        let mut value_loss = 0.0;
        for _ in 0..self.args.n_critic_updates {
            let mut loss = Tensor::zeros((), DType::F32, &self.device)?;
            for (critic, (observations, returns)) in self.critics.iter().zip(&batches) {
                // E[ (V_j(s_t) − G_t)² ]
                loss = (loss + (critic.forward(observations)?.squeeze(1)? - returns)?.sqr()?.mean_all()?)?;
            }
            self.critic_optimizer.backward_step(&loss)?;
            value_loss = loss.to_scalar::<f32>()? / rollouts.len() as f32;
        }
        Ok(value_loss)
    }

    /// Takes the return of an episode of particle i into the mean of its latest ones.
    fn update_mean_return(&mut self, i: usize, episodic_return: f64) {
        let mean = &mut self.mean_returns[i];
        // mean ← mean + 0.1 (return − mean), over about the last ten episodes
        // Easy to miss: it begins with the first return. From 0 it would favour, where returns are negative,
        // whoever has played least.
        *mean = if mean.is_finite() { *mean + 0.1 * (episodic_return - *mean) } else { episodic_return };
    }

    /// Makes the particle of the best mean return the one that is kept.
    fn keep_best(&self) -> Result<()> {
        let means = &self.mean_returns;
        let best = (0..means.len()).max_by(|&i, &j| means[i].total_cmp(&means[j])).unwrap_or_default();
        self.keep(best)
    }

    /// Makes particle i the one that is kept.
    fn keep(&self, i: usize) -> Result<()> {
        let (theta, num_parameters) = (self.parameters.values()?, self.best_parameters.num_parameters());
        Ok(self.best_parameters.set_values(&theta[i * num_parameters..(i + 1) * num_parameters])?)
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    if args.num_particles > 10_000 {
        return invalid(format!("--num-particles {}: at most 10000", args.num_particles));
    }
    // One environment, in which the particles play in turn, whole episodes each.
    let mut envs = VecEnv::make(&args.run.env_id, 1, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("svpg")?;
    let mut svpg = Svpg::new(observation_dim, &[64], num_actions, &args)?;
    let mut rng = learner_rng(args.run.seed);
    let mut rollouts = vec![Rollout::default()]; // of the particles in this round; it is the last one's turn
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut svpg.parameters),
                ("critic_parameters", &mut svpg.critic_parameters),
                ("optimizer", &mut svpg.optimizer),
                ("critic_optimizer", &mut svpg.critic_optimizer),
                ("envs", &mut envs),
                ("rng", &mut rng),
                ("mean_returns", &mut svpg.mean_returns),
                ("rollouts", &mut rollouts),
            ],
        )?;

        // The particle whose turn it is makes a step, and more until N of its episodes are over.
        let i = rollouts.len() - 1;
        let observation = envs.observations().to_vec(); // [1, observation_dim]
        let action = svpg.act(i, &observation, &mut rng)?;
        envs.step(&action)?;
        rollouts[i].store(&observation, &action, &envs);
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        for episode in envs.episodes() {
            svpg.update_mean_return(i, episode.episodic_return);
        }
        if envs.episodes().is_empty() || rollouts[i].num_episodes() < args.batch_episodes {
            continue;
        }
        if rollouts.len() < args.num_particles {
            rollouts.push(Rollout::default());
            continue;
        }

        // All take a step, their critics learn from the same episodes, and these are forgotten.
        if args.anneal_lr {
            let remaining = 1.0 - global_step as f64 / run.total_timesteps as f64;
            svpg.optimizer.learning_rate = remaining * args.learning_rate;
        }
        let losses = svpg.update_particles(&rollouts)?;
        let value_loss = svpg.update_critics(&rollouts)?;
        rollouts = vec![Rollout::default()];
        run.log(global_step, "charts/learning_rate", svpg.optimizer.learning_rate)?;
        run.log(global_step, "charts/particle_diversity", losses.diversity)?;
        run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
        run.log(global_step, "losses/value_loss", value_loss)?;
        run.log(global_step, "losses/entropy", losses.entropy)?;
    }

    // The particle that did best while it learned.
    svpg.keep_best()?;
    run.save_or_load_model(&mut svpg.best_parameters)?;
    run.evaluate(|observations| svpg.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
