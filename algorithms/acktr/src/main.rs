//! # Actor-critic using Kronecker-factored trust region (ACKTR)
//!
//! Wu, Mansimov, Liao, Grosse & Ba (2017), "Scalable trust-region method for deep reinforcement learning
//! using Kronecker-factored approximation", arXiv:1708.05144; Martens & Grosse (2015), arXiv:1503.05671.
//!
//! A step of a given length in parameters may change a policy a little or beyond recognition. The natural
//! gradient F⁻¹ ∇L measures length by how much the policy changes (its KL divergence), but F, the Fisher
//! matrix, has as many rows as there are parameters. ACKTR takes F layer by layer, and each layer's as a
//! Kronecker product of two small matrices, which are cheap to average over batches and to invert.
//!
//! ```text
//! R_t = r_t + γ R_{t+1}    at the end of an episode or rollout r_t + γ V(s_{t+1}), r_t if it terminated
//! A_t = R_t − V(s_t)
//! L(θ) = −E[ A_t ln π_θ(a_t|s_t) ] + ½ E[ ( R_t − V_θ(s_t) )² ] − c_e E[ H(π_θ(·|s_t)) ]
//! ```
//!
//! A layer is z = W x̄, where x̄ is its input and a 1 for the bias. With g = ∂ ln p(y|s) / ∂z, for outputs y
//! that are drawn from the network's own distribution, its block of the Fisher matrix is
//!
//! ```text
//! F = E[ vec(g x̄ᵀ) vec(g x̄ᵀ)ᵀ ] = E[ g gᵀ ⊗ x̄ x̄ᵀ ] ≈ E[g gᵀ] ⊗ E[x̄ x̄ᵀ] = G ⊗ X
//!
//! u = (G + (√λ/κ) I)⁻¹ ∇_W L (X + κ √λ I)⁻¹       κ = √( (tr X / dim X) / (tr G / dim G) )
//! η = min( η_max, √( 2δ / Σ u · ∇L ) )            so that KL ≈ ½ η² uᵀ F u ≤ δ
//! W ← W − η u
//! ```
//!
//! The actor's y are actions, y ~ π_θ(·|s). The critic is the mean of a Gaussian, y ~ N(V_θ(s), 1), whose F is
//! the Gauss-Newton matrix. λ is a damping, of which κ gives each factor its share (π in the papers).
//!
//! Deviations from the paper: policy and critic are two small networks, each with its own step size and δ
//! (0.002, there 0.001; the critic's far larger, for values go up to 100); c_e is 0 (with 0.01 one run in eight
//! fails on CartPole); η_max stays; no momentum; uᵀ F u is u · ∇L, where F has the damping in it (as OpenAI's).
//! Averages are means at first (Martens & Grosse); returns look beyond time limits (arXiv:1712.00378).
//!
//! Run `cargo run -p acktr`: 475 (Gymnasium's threshold) or more on CartPole-v1 after 300,000 steps, in two
//! seconds, with 45 of 45 seeds.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};
use clap::Parser;
use common::envs::{Rng, VecEnv, learner_rng};
use common::nn::{Categorical, Init, Linear, VarBuilder, VarMap, backward, linear_orthogonal, matmul};
use common::{Run, cli, cli::RunArgs};
use serde::Serialize;
use std::f64::consts::SQRT_2;
use std::process::ExitCode;

/// Actor-critic using Kronecker-factored trust region, for discrete actions
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("CartPole-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("300000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Largest step size, η_max
    #[arg(long, default_value_t = 0.25, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// How far a step may move the policy (KL divergence), δ
    #[arg(long, default_value_t = 0.002, value_parser = cli::above_zero)]
    kl_clip: f64,
    /// The same of the critic, whose KL divergence is half the mean square of its change
    #[arg(long, default_value_t = 1.0, value_parser = cli::above_zero)]
    vf_kl_clip: f64,
    /// Damping of the Fisher matrix, λ
    #[arg(long, default_value_t = 0.01, value_parser = cli::above_zero)]
    damping: f64,
    /// Decay of the Kronecker factors' running averages, at most
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    stat_decay: f64,
    /// Updates between inversions of the Kronecker factors
    #[arg(long, default_value_t = 5, value_parser = cli::positive)]
    kfac_update: usize,
    /// Parallel environments
    #[arg(long, default_value_t = 8, value_parser = cli::positive)]
    num_envs: usize,
    /// Steps in each environment between updates, n
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    num_steps: usize,
    /// Discount, γ
    #[arg(long, default_value_t = 0.99, value_parser = cli::unit_interval)]
    gamma: f64,
    /// Weight of the entropy bonus, c_e
    #[arg(long, default_value_t = 0.0, value_parser = cli::non_negative)]
    ent_coef: f64,
}

/// A layer, and its block of the Fisher matrix as a Kronecker product, G ⊗ X.
struct Layer {
    linear: Linear, // W, [outputs, inputs + 1]: weight and bias
    x: Var,         // X = E[x̄ x̄ᵀ], a running average, [inputs + 1, inputs + 1]
    g: Var,         // G = E[g gᵀ], a running average, [outputs, outputs]
    x_inverse: Var, // (X + κ √λ I)⁻¹
    g_inverse: Var, // (G + (√λ/κ) I)⁻¹
}

impl Layer {
    /// Computes the inverses of X and G as they are now.
    fn invert(&self, damping: f64) -> Result<()> {
        // In double precision, for a factor is often close to singular.
        let x = self.x.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let g = self.g.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        // κ = √( (tr X / dim X) / (tr G / dim G) ), where G vanishes if a policy has become certain.
        let scale = |m: &[Vec<f64>]| (0..m.len()).map(|i| m[i][i]).sum::<f64>().max(1e-12) / m.len() as f64;
        let kappa = (scale(&x) / scale(&g)).sqrt();
        let x_inverse = Tensor::new(damped_inverse(x, kappa * damping.sqrt())?, self.x.device())?;
        let g_inverse = Tensor::new(damped_inverse(g, damping.sqrt() / kappa)?, self.g.device())?;
        self.x_inverse.set(&x_inverse.to_dtype(DType::F32)?)?;
        Ok(self.g_inverse.set(&g_inverse.to_dtype(DType::F32)?)?)
    }
}

/// (M + d I)⁻¹ of a symmetric M, `[n, n]`, without negative eigenvalues: Gauss-Jordan elimination in place,
/// for which such a matrix needs no exchange of rows.
fn damped_inverse(mut m: Vec<Vec<f64>>, damping: f64) -> Result<Vec<Vec<f64>>> {
    (0..m.len()).for_each(|i| m[i][i] += damping);
    for i in 0..m.len() {
        let pivot = std::mem::replace(&mut m[i][i], 1.0);
        ensure!(pivot > 0.0, "a Kronecker factor cannot be inverted: more --damping is needed");
        m[i].iter_mut().for_each(|entry| *entry /= pivot);
        let row = m[i].clone();
        for j in (0..m.len()).filter(|j| *j != i) {
            let factor = std::mem::take(&mut m[j][i]);
            m[j].iter_mut().zip(&row).for_each(|(entry, above)| *entry -= factor * above);
        }
    }
    Ok(m)
}

/// A network of tanh units whose last layer is linear.
struct Network {
    layers: Vec<Layer>, // [sizes[0]] → [sizes[1]] → …
}

impl Network {
    /// `gain` scales the last layer: 0.01 makes the first policy almost the same everywhere
    /// (Andrychowicz et al. 2021, arXiv:2006.05990), 1 suits a value.
    fn new(sizes: &[usize], gain: f64, parameters: VarBuilder, factors: VarBuilder) -> Result<Self> {
        let mut layers = Vec::new();
        for (l, size) in sizes.windows(2).enumerate() {
            let gain = if l + 2 == sizes.len() { gain } else { SQRT_2 };
            let vb = factors.pp(l);
            let zeros =
                |n: usize, name| Var::from_tensor(&vb.get_with_hints((n, n), name, Init::Const(0.0))?);
            layers.push(Layer {
                linear: linear_orthogonal(size[0], size[1], gain, parameters.pp(l))?,
                x: zeros(size[0] + 1, "x")?,
                g: zeros(size[1], "g")?,
                x_inverse: zeros(size[0] + 1, "x_inverse")?,
                g_inverse: zeros(size[1], "g_inverse")?,
            });
        }
        Ok(Self { layers })
    }

    /// The input of each layer for observations `[batch, observation_dim]`, and the output of the last one.
    fn activations(&self, observations: &Tensor) -> Result<Vec<Tensor>> {
        let mut x = vec![observations.clone()];
        for (l, layer) in self.layers.iter().enumerate() {
            let last = l + 1 == self.layers.len();
            x.push(if last { layer.linear.forward(&x[l])? } else { layer.linear.forward_tanh(&x[l])? });
        }
        Ok(x)
    }

    /// Observations `[batch, observation_dim]` to `[batch, outputs]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        Ok(self.activations(observations)?.swap_remove(self.layers.len()))
    }

    /// Moves X and G of each layer to a batch's, given all activations and the last g, `[batch, outputs]`.
    fn update_factors(&self, activations: &[Tensor], mut g: Tensor, decay: f64) -> Result<()> {
        let batch = g.dim(0)?;
        let ones = Tensor::ones((batch, 1), DType::F32, g.device())?;
        for (layer, x) in self.layers.iter().zip(activations).rev() {
            // X ← ρ X + (1 − ρ) mean(x̄ x̄ᵀ),   G ← ρ G + (1 − ρ) mean(g gᵀ)
            for (average, rows) in [(&layer.x, &Tensor::cat(&[x, &ones], 1)?), (&layer.g, &g)] {
                let of_batch = (matmul(&rows.t()?, rows)? / batch as f64)?;
                average.set(&((average.as_detached_tensor() * decay)? + (of_batch * (1.0 - decay))?)?)?;
            }
            // g of the layer below: (Wᵀ g) ⊙ tanh'(z), where tanh' = 1 − x²
            g = (matmul(&g, layer.linear.weight())? * x.sqr()?.affine(-1.0, 1.0)?)?;
        }
        Ok(())
    }

    /// u of each layer, `[outputs, inputs + 1]`, the bias's last, and Σ u · ∇L over all of them.
    fn natural_gradients(&self, gradients: &GradStore) -> Result<(Vec<Tensor>, f64)> {
        let of = |parameter| gradients.get(parameter).context("a parameter that the loss does not depend on");
        let (mut natural_gradients, mut quadratic) = (Vec::new(), 0.0);
        for Layer { linear, x_inverse, g_inverse, .. } in &self.layers {
            let gradient = Tensor::cat(&[of(linear.weight())?, &of(linear.bias())?.unsqueeze(1)?], 1)?;
            // u = (G + (√λ/κ) I)⁻¹ ∇_W L (X + κ √λ I)⁻¹
            let u = matmul(&matmul(g_inverse, &gradient)?, x_inverse)?.detach();
            quadratic += f64::from((&u * gradient)?.sum_all()?.to_scalar::<f32>()?);
            natural_gradients.push(u);
        }
        Ok((natural_gradients, quadratic))
    }

    /// W ← W − η u, layer by layer.
    fn descend(&self, natural_gradients: &[Tensor], step_size: f64) -> Result<()> {
        for (Layer { linear, .. }, u) in self.layers.iter().zip(natural_gradients) {
            let (step, inputs) = ((u * step_size)?, u.dim(1)? - 1);
            let (weight, bias) = (step.narrow(1, 0, inputs)?, step.narrow(1, inputs, 1)?.squeeze(1)?);
            // Of a parameter `from_tensor` gives the variable that it is, not another.
            Var::from_tensor(linear.weight())?.set(&(linear.weight().detach() - weight)?)?;
            Var::from_tensor(linear.bias())?.set(&(linear.bias().detach() - bias)?)?;
        }
        Ok(())
    }
}

/// What happened in `num_steps` steps of each environment. Every column is `[num_steps, num_envs]`,
/// row by row: step t of environment e is at t · num_envs + e.
#[derive(Default)]
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

    /// R_t from V(s_{t+1}), both `[num_steps, num_envs]`.
    fn returns(&self, next_values: &[f32], num_envs: usize, gamma: f32) -> Vec<f32> {
        let num_steps = self.rewards.len() / num_envs;
        let mut returns = vec![0.0; self.rewards.len()];
        for t in (0..num_steps).rev() {
            for env in 0..num_envs {
                let i = t * num_envs + env;
                // Easy to miss and fatal: what follows an episode's end belongs to the next one, and no
                // value lies beyond termination.
                let last = self.truncated[i] || t + 1 == num_steps;
                let following = if last { next_values[i] } else { returns[i + num_envs] };
                // R_t = r_t + γ (1 − terminated_t) R_{t+1}
                returns[i] = self.rewards[i] + if self.terminated[i] { 0.0 } else { gamma * following };
            }
        }
        returns
    }
}

/// What one update found, before it moved the parameters.
struct Losses {
    policy_loss: f32,
    value_loss: f32,
    entropy: f32,
    explained_variance: f32, // of R by V: 1 for a critic that is right, 0 for one that knows the mean
}

/// Policy, critic and how they learn.
struct Acktr {
    actor: Network,     // logits of π_θ(·|s), [num_actions]
    critic: Network,    // V_θ(s), [1]
    parameters: VarMap, // θ, of both
    factors: VarMap,    // X, G and their inverses, of both
    updates: usize,     // batches that X and G have seen
    args: Args,
    device: Device,
}

impl Acktr {
    /// `sizes` are those of the actor's layers and of the critic's, observations and outputs included.
    fn new(sizes: [&[usize]; 2], args: &Args) -> Result<Self> {
        let device = args.run.device()?;
        let (parameters, factors) = (VarMap::new(args.run.seed), VarMap::new(args.run.seed));
        let vbs = [&parameters, &factors].map(|map| VarBuilder::from_varmap(map, DType::F32, &device));
        Ok(Self {
            actor: Network::new(sizes[0], 0.01, vbs[0].pp("actor"), vbs[1].pp("actor"))?,
            critic: Network::new(sizes[1], 1.0, vbs[0].pp("critic"), vbs[1].pp("critic"))?,
            parameters,
            factors,
            updates: 0,
            args: args.clone(),
            device,
        })
    }

    /// Observations as `[batch, observation_dim]`.
    fn tensor(&self, observations: &[f32]) -> Result<Tensor> {
        let observation_dim = self.actor.layers[0].linear.weight().dim(1)?;
        Ok(Tensor::from_slice(observations, ((), observation_dim), &self.device)?)
    }

    /// a ~ π_θ(·|s) for each observation.
    fn act(&self, observations: &[f32], rng: &mut Rng) -> Result<Vec<u32>> {
        let policy = Categorical::new(&self.actor.forward(&self.tensor(observations)?)?)?;
        Ok(policy.sample(rng)?.to_vec1()?)
    }

    /// The most probable action for each observation.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<u32>> {
        let policy = Categorical::new(&self.actor.forward(&self.tensor(observations)?)?)?;
        Ok(policy.mode()?.to_vec1()?)
    }

    /// Moves the Kronecker factors of both networks to those of a batch of observations, and every
    /// `kfac_update` batches computes their inverses anew. `fisher_actions` `[batch]` are drawn from π_θ,
    /// `noise` `[batch]` from N(0, 1).
    fn update_factors(&mut self, observations: &[f32], fisher_actions: &[u32], noise: &Tensor) -> Result<()> {
        let observations = self.tensor(observations)?;
        self.updates += 1;
        // ρ = min(1 − 1/k, ρ_max): a plain mean of the k batches that there were, at first
        let decay = (1.0 - 1.0 / self.updates as f64).min(self.args.stat_decay);
        // Easy to miss: y ~ π_θ(·|s), anew. With the actions that were taken, whose returns L weighs, this
        // would be the empirical Fisher matrix, which says nothing about KL divergences.
        let activations = self.actor.activations(&observations)?;
        // g = ∂ ln π(y|s) / ∂ logits = 1[y] − π(·|s)
        let logits = &activations[self.actor.layers.len()]; // [batch, num_actions]
        let probs = logits.broadcast_sub(&logits.log_sum_exp(1)?.unsqueeze(1)?)?.exp()?;
        let one_hot = Tensor::eye(logits.dim(1)?, DType::F32, &self.device)?;
        let g = (one_hot.index_select(&Tensor::new(fisher_actions, &self.device)?, 0)? - probs)?;
        self.actor.update_factors(&activations, g, decay)?;
        // y = V_θ(s) + ε,  g = ∂ ln N(y; V, 1) / ∂V = y − V = ε
        self.critic.update_factors(&self.critic.activations(&observations)?, noise.unsqueeze(1)?, decay)?;
        if (self.updates - 1).is_multiple_of(self.args.kfac_update) {
            let mut layers = self.actor.layers.iter().chain(&self.critic.layers);
            layers.try_for_each(|layer| layer.invert(self.args.damping))?;
        }
        Ok(())
    }

    /// L(θ) of a rollout, and what it is made of.
    fn loss(&self, rollout: &Rollout) -> Result<(Tensor, Losses)> {
        let observations = self.tensor(&rollout.observations)?; // [batch, observation_dim]
        let values = self.critic.forward(&observations)?.squeeze(1)?; // V_θ(s_t), [batch]
        let next_values = self.critic.forward(&self.tensor(&rollout.next_observations)?)?.squeeze(1)?;
        let returns = rollout.returns(&next_values.to_vec1()?, self.args.num_envs, self.args.gamma as f32);
        let returns = Tensor::new(returns, &self.device)?; // R_t, numbers: no gradient flows through them
        // A_t = R_t − V(s_t), the policy's weights, which are constant.
        let advantages = (&returns - &values)?.detach();
        // −E[ A_t ln π_θ(a_t|s_t) ]
        let policy = Categorical::new(&self.actor.forward(&observations)?)?;
        let actions = Tensor::new(rollout.actions.as_slice(), &self.device)?;
        let policy_loss = (&advantages * policy.log_prob(&actions)?)?.mean_all()?.neg()?;
        // E[ ( R_t − V_θ(s_t) )² ], twice −ln N(R_t; V_θ(s_t), 1) but for a constant
        let value_loss = (&returns - values)?.sqr()?.mean_all()?;
        // E[ H(π_θ(·|s_t)) ]: a bonus, so that more of it makes the loss smaller.
        let entropy = policy.entropy()?.mean_all()?;
        let loss = ((&policy_loss + (&value_loss * 0.5)?)? - (&entropy * self.args.ent_coef)?)?;
        // 1 − Var(R − V) / Var(R)
        let variance = |x: &Tensor| x.broadcast_sub(&x.mean_all()?)?.sqr()?.mean_all()?.to_scalar::<f32>();
        let unexplained = variance(&advantages)? / variance(&returns)?.max(1e-20);
        let losses = Losses {
            policy_loss: policy_loss.to_scalar()?,
            value_loss: value_loss.to_scalar()?,
            entropy: entropy.to_scalar()?,
            explained_variance: 1.0 - unexplained,
        };
        Ok((loss, losses))
    }

    /// η for Σ u · ∇L and δ.
    fn step_size(&self, quadratic: f64, delta: f64) -> Result<f64> {
        ensure!(quadratic.is_finite(), "the natural gradient is not finite (u · ∇L is {quadratic})");
        // η = min( η_max, √( 2δ / Σ u · ∇L ) )
        Ok((2.0 * delta / quadratic).sqrt().min(self.args.learning_rate))
    }

    /// One step of both networks. Returns what it found before, and the actor's and the critic's η.
    fn update(&self, rollout: &Rollout) -> Result<(Losses, [f64; 2])> {
        let (loss, losses) = self.loss(rollout)?;
        let gradients = backward(&loss)?;
        let (u, quadratic) = self.actor.natural_gradients(&gradients)?;
        let actor_step = self.step_size(quadratic, self.args.kl_clip)?;
        self.actor.descend(&u, actor_step)?;
        let (u, quadratic) = self.critic.natural_gradients(&gradients)?;
        let critic_step = self.step_size(quadratic, self.args.vf_kl_clip)?;
        self.critic.descend(&u, critic_step)?;
        Ok((losses, [actor_step, critic_step]))
    }
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, args.num_envs, args.run.seed)?;
    let (observation_dim, num_actions) = envs.spec().box_to_discrete("acktr")?;
    let mut acktr =
        Acktr::new([&[observation_dim, 64, 64, num_actions], &[observation_dim, 64, 64, 1]], &args)?;
    let mut rng = learner_rng(args.run.seed);
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(
            &mut global_step,
            &mut [
                ("parameters", &mut acktr.parameters),
                ("factors", &mut acktr.factors),
                ("updates", &mut acktr.updates),
                ("envs", &mut envs),
                ("rng", &mut rng),
            ],
        )?;

        // Run the policy for num_steps steps in each environment.
        let mut rollout = Rollout::default();
        for _ in 0..args.num_steps {
            let observations = envs.observations().to_vec(); // [num_envs, observation_dim]
            let actions = acktr.act(&observations, &mut rng)?; // [num_envs]
            envs.step(&actions)?;
            rollout.store(&observations, &actions, &envs);
            global_step += args.num_envs;
            run.episodes(global_step, envs.episodes())?;
        }

        // Learn what the Fisher matrix is, from outputs that the networks themselves find likely.
        let fisher_actions = acktr.act(&rollout.observations, &mut rng)?; // [num_steps · num_envs]
        let noise = Init::Randn { mean: 0.0, stdev: 1.0 };
        let noise = noise.tensor(fisher_actions.len(), &mut rng, &acktr.device)?;
        acktr.update_factors(&rollout.observations, &fisher_actions, &noise)?;

        // Learn from the rollout, once: afterwards it is another policy's.
        let (losses, [actor_step, critic_step]) = acktr.update(&rollout)?;
        if acktr.updates.is_multiple_of(10) {
            run.log(global_step, "losses/policy_loss", losses.policy_loss)?;
            run.log(global_step, "losses/value_loss", losses.value_loss)?;
            run.log(global_step, "losses/entropy", losses.entropy)?;
            run.log(global_step, "losses/explained_variance", losses.explained_variance)?;
            run.log(global_step, "losses/actor_step_size", actor_step)?;
            run.log(global_step, "losses/critic_step_size", critic_step)?;
        }
    }

    run.save_or_load_model(&mut acktr.parameters)?;
    run.evaluate(|observations| acktr.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
