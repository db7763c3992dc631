//! # Guided policy search
//!
//! Levine & Koltun (2013), "Guided policy search"; Levine, Finn, Darrell & Abbeel (2016), arXiv:1504.00702; in
//! the form of Montgomery & Levine (2016), "Guided policy search via approximate mirror descent", arXiv:1607.04614.
//!
//! A trajectory from one state is easy to optimise (see `ilqr`), a policy for all states is hard. So local
//! controllers, each around a trajectory of its own, teach one network by supervised learning. Each begins as what
//! the network does, and a bound on their divergence keeps it to what that can learn.
//!
//! ```text
//! p_i(u_t|x_t) = N( û_t + K_t (x_t − x̂_t), C_t ),   π_θ(u|x) = N( μ_θ(x), Σ = diag σ² )
//!
//! control: p_i ← argmin_p E_p[ Σ_t c(x_t, u_t) ] − T H(p)   with KL(p ‖ π_θ) ≤ ε
//! supervision: θ ← argmin_θ E_{i, x ~ p_i}[ KL( π_θ(·|x) ‖ p_i(·|x) ) ]
//!
//! its Lagrangian E_p[ Σ_t c − η ln π_θ ] − (T + η) H(p) by iLQR, z = (x, u), e = u − μ_θ(x), back along x̂, û:
//!   Q_z = c_z + η e_zᵀ Σ⁻¹ e + f_zᵀ V_x,   Q_zz = c_zz + η e_zᵀ Σ⁻¹ e_z + f_zᵀ V_xx f_z
//!   k = −Q_uu⁻¹ Q_u,   K = −Q_uu⁻¹ Q_ux,   C = (T + η) Q_uu⁻¹
//!   V_x = z_xᵀ (Q_z + Q_zu k),   V_xx = z_xᵀ Q_zz z_x,   z_x = (I, K)
//! and forwards through the true dynamics: u_t = û_t + k_t + K_t (x_t − x̂_t)
//! ```
//!
//! Deviations from the papers. Dynamics are the environment's own, differentiated by differences (papers: linear
//! fits to samples). KL(p ‖ π_θ) is the mean over steps where p's means lead; η is the least of a few with which
//! the bound holds and the cost falls. The first round has no bound: trajectories grow as `ilqr`'s do. Rounds
//! have their own first states (papers: the same few); all samples are kept; T is 1 in 2013; Σ is learned with
//! μ_θ (papers: solved for). The cost's Hessian is diagonal, not negative; bounds are held one by one; C ≥ least_std².
//!
//! Run `cargo run -p guided_policy_search`: about −167 on Pendulum-v1 after 40,000 steps of the policy, in 8 seconds
//! (steps of the model are not counted). The optimum is −137 (dynamic programming on a grid); `ilqr` reaches −144.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::envs::{self, Action, Env, Rng, Space, State, VecEnv, invalid, learner_rng, rng};
use common::nn::{Adam, Init, Linear, VarBuilder, VarMap, linear};
use common::{Run, cli, cli::RunArgs, envs::persist::Persist};
use nalgebra::{Cholesky, DMatrix, DVector};
use rand::RngExt;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// By how much states and controls are moved for differences; less would magnify the rounding of costs.
const STEP: f64 = 1.0 / 128.0;
type Vector = DVector<f64>;
type Matrix = DMatrix<f64>;

/// Guided policy search: local controllers teach a network
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("40000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Local controllers of a round, each from a first state of its own
    #[arg(long, default_value_t = 40, value_parser = cli::positive)]
    num_controllers: usize,
    /// Steps by which a trajectory of the first round grows before it is improved again
    #[arg(long, default_value_t = 16, value_parser = cli::positive)]
    growth: usize,
    /// Weight T of the controllers' entropy
    #[arg(long, default_value_t = 1e-3, value_parser = cli::non_negative)]
    temperature: f64,
    /// Least standard deviation of a controller's noise in any direction
    #[arg(long, default_value_t = 0.1, value_parser = cli::above_zero)]
    least_std: f64,
    /// Bound ε of a controller's divergence from the policy, a step
    #[arg(long, default_value_t = 1.0, value_parser = cli::above_zero)]
    kl_bound: f64,
    /// Step size of Adam at the beginning of each round's supervision, in which it falls to zero
    #[arg(long, default_value_t = 3e-3, value_parser = cli::non_negative)]
    learning_rate: f64,
    /// Minibatches of a round's supervision
    #[arg(long, default_value_t = 2500, value_parser = cli::positive)]
    updates: usize,
    /// Samples in a minibatch
    #[arg(long, default_value_t = 128, value_parser = cli::positive)]
    batch_size: usize,
    /// Units in each of the policy's two hidden layers
    #[arg(long, default_value_t = 64, value_parser = cli::positive)]
    hidden_size: usize,
}

/// Two hidden layers of relu units and a standard deviation: π_θ(u|x) = N(μ_θ(x), diag σ²).
struct Policy {
    hidden1: Linear, // [observation_dim] → [hidden_size]
    hidden2: Linear, // [hidden_size] → [hidden_size]
    output: Linear,  // [hidden_size] → [m]
    log_std: Tensor, // ln σ, [m]
}

impl Policy {
    fn new(observation_dim: usize, hidden_size: usize, m: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            hidden1: linear(observation_dim, hidden_size, vb.pp("hidden1"))?,
            hidden2: linear(hidden_size, hidden_size, vb.pp("hidden2"))?,
            output: linear(hidden_size, m, vb.pp("output"))?,
            log_std: vb.get_with_hints(m, "log_std", Init::Const(0.0))?,
        })
    }

    /// μ_θ: observations `[batch, observation_dim]` to `[batch, m]`.
    fn forward(&self, observations: &Tensor) -> Result<Tensor> {
        let x = self.hidden2.forward_relu(&self.hidden1.forward_relu(observations)?)?;
        Ok(self.output.forward(&x)?)
    }
}

/// p(u_t|x_t) = N( û_t + K_t (x_t − x̂_t), C_t ), and where its means û lead and what they cost.
#[derive(Default, Clone)]
struct Controller {
    states: Vec<Vector>,     // x̂, [steps + 1] of [n]
    controls: Vec<Vector>,   // û, [steps] of [m]
    gains: Vec<Matrix>,      // K, [steps] of [m, n]
    precisions: Vec<Matrix>, // C⁻¹, [steps] of [m, m]
    cost: f64,               // Σ_t c(x̂_t, û_t)
}

impl Controller {
    /// û_t + K_t (x − x̂_t)
    fn mean(&self, t: usize, x: &Vector) -> Vector {
        &self.controls[t] + &self.gains[t] * (x - &self.states[t])
    }
}

/// What controllers would do in states that they met: a row for each, in vectors, or of those drawn in tensors.
#[derive(Serialize, Deserialize, Default)]
struct Samples<Column> {
    observations: Column, // [rows, observation_dim]
    means: Column,        // û + K (x − x̂), [rows, m]
    precisions: Column,   // C⁻¹, [rows, m, m]
    log_dets: Column,     // ln det C, [rows]
}

impl Samples<Vec<f32>> {
    /// `batch_size` rows, each drawn from all of them.
    fn draw(&self, batch_size: usize, rng: &mut Rng, device: &Device) -> Result<Samples<Tensor>> {
        let num_rows = self.log_dets.len();
        let rows = Tensor::from_iter((0..batch_size).map(|_| rng.random_range(0..num_rows as u32)), device)?;
        let gather = |all: &[f32]| Tensor::from_slice(all, (num_rows, ()), device)?.index_select(&rows, 0);
        let (means, log_dets) = (gather(&self.means)?, gather(&self.log_dets)?.squeeze(1)?);
        let precisions = gather(&self.precisions)?.reshape((batch_size, means.dim(1)?, ()))?;
        Ok(Samples { observations: gather(&self.observations)?, means, precisions, log_dets })
    }
}

/// The policy, and the model that local controllers are optimised with.
struct Gps {
    policy: Policy,
    parameters: VarMap, // θ
    optimizer: Adam,
    model: Box<dyn Env>,
    low: Vector,  // the least controls, [m]
    high: Vector, // the greatest, [m]
    args: Args,
}

impl Gps {
    fn new(model: Box<dyn Env>, args: &Args) -> Result<Self> {
        let (observation_dim, m) = model.spec().box_to_box("guided_policy_search")?;
        let Space::Box { low, high, .. } = &model.spec().action_space else {
            return invalid("guided_policy_search needs Box actions");
        };
        let (device, parameters) = (args.run.device()?, VarMap::new(args.run.seed));
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &device);
        Ok(Self {
            policy: Policy::new(observation_dim, args.hidden_size, m, vb)?,
            optimizer: Adam::new(&parameters, args.learning_rate)?,
            parameters,
            low: vector(low),
            high: vector(high),
            model,
            args: args.clone(),
        })
    }

    /// The nearest controls within bounds.
    fn clamp(&self, u: &Vector) -> Vector {
        u.zip_zip_map(&self.low, &self.high, f64::clamp)
    }

    /// Sets the model to x. Its own state ends with a count of steps, which matters to time limits only.
    fn place(&mut self, x: &Vector) -> Result<()> {
        self.model.set_state(&State(x.iter().copied().chain([0.0]).collect()))
    }

    /// f(x, u) and c(x, u).
    fn step(&mut self, x: &Vector, u: &Vector) -> Result<(Vector, f64)> {
        self.place(x)?;
        let (action, mut generator): (Vec<f32>, _) = (u.iter().map(|&u| u as f32).collect(), rng(0, 0));
        let step = self.model.step(Action::Continuous(&action), &mut generator)?;
        if generator != rng(0, 0) || step.terminated {
            return invalid("steps are random or end episodes");
        }
        Ok((state_of(&self.model.state()?), -step.reward))
    }

    /// What the policy sees of x, `[observation_dim]`.
    fn observe(&mut self, x: &Vector) -> Result<Vec<f32>> {
        self.place(x)?;
        let mut observation = vec![0.0; self.model.spec().observation_space.size()];
        self.model.observe(&mut observation);
        Ok(observation)
    }

    /// μ_θ of observations `[n, observation_dim]`, within the controls' bounds: `[n, m]`.
    fn act_greedily(&self, observations: &[f32]) -> Result<Vec<f32>> {
        let observation_dim = self.model.spec().observation_space.size();
        let x = Tensor::from_slice(observations, ((), observation_dim), self.policy.log_std.device())?;
        let mut actions = self.policy.forward(&x)?.flatten_all()?.to_vec1()?;
        self.model.spec().action_space.clip(&mut actions);
        Ok(actions)
    }

    /// μ_θ(x), within the controls' bounds, and ∂μ_θ/∂x for each of `states`.
    fn linearise_policy(&mut self, states: &[Vector]) -> Result<Vec<(Vector, Matrix)>> {
        let (n, m) = (states[0].len(), self.low.len());
        let mut observations = Vec::new(); // of each state and its n neighbours
        for x in states {
            observations.extend(self.observe(x)?);
            for shift in shifts(x).column_iter() {
                observations.extend(self.observe(&(x + shift))?);
            }
        }
        let means = self.act_greedily(&observations)?;
        let linear = states.iter().zip(means.chunks((n + 1) * m)).map(|(x, means)| {
            let slope = |j, i| f64::from(means[(i + 1) * m + j] - means[j]) / shifts(x)[(i, i)];
            (vector(&means[..m]), Matrix::from_fn(m, n, slope))
        });
        Ok(linear.collect())
    }

    /// Σ⁻¹, `[m, m]`.
    fn policy_precision(&self) -> Result<Matrix> {
        Ok(Matrix::from_diagonal(&vector(&(&self.policy.log_std * -2.0)?.exp()?.to_vec1()?)))
    }

    /// One step more of a trajectory, with û = u.
    fn extend(&mut self, u: Vector, gain: Matrix, precision: Matrix, p: &mut Controller) -> Result<()> {
        let u = self.clamp(&u);
        let (x, cost) = self.step(&p.states[p.controls.len()], &u)?;
        p.states.push(x);
        p.controls.push(u);
        p.gains.push(gain);
        p.precisions.push(precision);
        p.cost += cost;
        Ok(())
    }

    /// f_z `[n, d]`, c_z `[d]` and c_zz `[d, d]` at z = (x, u), by differences of three points.
    fn differentiate(&mut self, x: &Vector, u: &Vector) -> Result<(Matrix, Vector, Matrix)> {
        let (n, d) = (x.len(), x.len() + u.len());
        let (mut f_z, mut c_z, mut c_zz) = (Matrix::zeros(n, d), Vector::zeros(d), Matrix::zeros(d, d));
        let z = Vector::from_iterator(d, x.iter().chain(u).copied());
        let middle = ((&self.low + &self.high) / 2.0).insert_rows(0, n, 0.0);
        let mut at = |z: &Vector| self.step(&z.rows(0, n).into(), &z.rows(n, d - n).into());
        let (f0, c0) = at(&z)?;
        for (i, shift) in shifts(&(&z - middle)).column_iter().enumerate() {
            let ((f1, c1), (f2, c2)) = (at(&(&z + shift))?, at(&(&z + 2.0 * shift))?);
            f_z.set_column(i, &((4.0 * f1 - 3.0 * &f0 - f2) / (2.0 * shift[i])));
            c_z[i] = (4.0 * c1 - 3.0 * c0 - c2) / (2.0 * shift[i]);
            c_zz[(i, i)] = ((c2 - 2.0 * c1 + c0) / shift[i].powi(2)).max(0.0); // as for the nearest cost with a minimum
        }
        Ok((f_z, c_z, c_zz))
    }

    /// Dynamic programming backwards along p's means: a better controller, still written around p's states.
    fn backward(&mut self, p: &Controller, eta: f64) -> Result<Controller> {
        let (n, m, steps) = (p.states[0].len(), self.low.len(), p.controls.len());
        let (mut v_x, mut v_xx, mut new) = (Vector::zeros(n), Matrix::zeros(n, n), p.clone()); // V = 0 at the end
        let price = eta * self.policy_precision()?; // η Σ⁻¹
        for (t, (mean, slope)) in self.linearise_policy(&p.states[..steps])?.into_iter().enumerate().rev() {
            let (f_z, c_z, c_zz) = self.differentiate(&p.states[t], &p.controls[t])?;
            // e = u − μ_θ(x),   e_z = (−∂μ_θ/∂x, I)
            let (e, mut e_z) = (&p.controls[t] - mean, (-slope).resize_horizontally(n + m, 0.0));
            e_z.columns_mut(n, m).fill_with_identity();
            // Q_z = c_z + η e_zᵀ Σ⁻¹ e + f_zᵀ V_x,   Q_zz = c_zz + η e_zᵀ Σ⁻¹ e_z + f_zᵀ V_xx f_z
            let q_z = c_z + e_z.transpose() * &price * e + f_z.transpose() * &v_x;
            let q_zz = c_zz + e_z.transpose() * &price * e_z + f_z.transpose() * &v_xx * f_z;
            let (q_ux, q_uu) = (q_zz.view((n, 0), (m, n)), q_zz.view((n, n), (m, m)));
            // û + k and K of k = −Q_uu⁻¹ Q_u,   K = −Q_uu⁻¹ Q_ux, but within bounds, and no feedback at one
            let cholesky = Cholesky::new(q_uu.into_owned()).context("a cost that is not finite")?;
            new.controls[t] = self.clamp(&(&p.controls[t] - cholesky.solve(&q_z.rows(n, m))));
            let is_free = |u, low, high| f64::from(u8::from(low < u && u < high));
            let free = new.controls[t].zip_zip_map(&self.low, &self.high, is_free);
            new.gains[t] = -Matrix::from_diagonal(&free) * cholesky.solve(&q_ux);
            // z_x = (I, K),   V_x = z_xᵀ (Q_z + Q_zu k),   V_xx = z_xᵀ Q_zz z_x
            let mut z_x = Matrix::identity(n + m, n);
            z_x.rows_mut(n, m).copy_from(&new.gains[t]);
            v_x = z_x.transpose() * (q_z + q_zz.columns(n, m) * (&new.controls[t] - &p.controls[t]));
            v_xx = z_x.transpose() * &q_zz * z_x;
            v_xx = (&v_xx + v_xx.transpose()) / 2.0; // symmetric but for rounding, which may grow
            // C⁻¹ = Q_uu / (T + η), with no eigenvalue above least_std⁻², for none is above the norm
            let precision = q_uu / (self.args.temperature + eta);
            new.precisions[t] = &precision / (precision.norm() * self.args.least_std.powi(2)).max(1.0);
        }
        Ok(new)
    }

    /// A controller written around where its means lead, through the true dynamics.
    fn forward(&mut self, p: &Controller) -> Result<Controller> {
        let mut new = Controller { states: vec![p.states[0].clone()], ..Controller::default() };
        for t in 0..p.controls.len() {
            // u_t = û_t + k_t + K_t (x_t − x̂_t)
            self.extend(p.mean(t, &new.states[t]), p.gains[t].clone(), p.precisions[t].clone(), &mut new)?;
        }
        Ok(new)
    }

    /// KL(p ‖ π_θ) where p's means lead, the mean over steps.
    fn divergence(&mut self, p: &Controller) -> Result<f64> {
        let (mut total, steps, precision) = (0.0, p.controls.len(), self.policy_precision()?);
        for (t, (mean, _)) in self.linearise_policy(&p.states[..steps])?.into_iter().enumerate() {
            let e = &p.controls[t] - mean;
            let ratio = &precision * p.precisions[t].clone().try_inverse().context("a singular precision")?;
            // ½ [ tr(Σ⁻¹ C) + eᵀ Σ⁻¹ e − ln det(Σ⁻¹ C) − m ]
            let quadratic = e.dot(&(&precision * &e));
            total += 0.5 * (ratio.trace() + quadratic - ratio.determinant().ln() - e.len() as f64);
        }
        Ok(total / steps as f64)
    }

    /// Improves a controller until nothing does with KL(p ‖ π_θ) ≤ bound.
    fn improve(&mut self, p: Controller, bound: f64) -> Result<Controller> {
        for eta in [1e-5, 1e-3, 0.1, 10.0] {
            let better = self.backward(&p, eta)?;
            let new = self.forward(&better)?;
            if p.cost - new.cost > 0.01 && self.divergence(&new)? <= bound {
                return self.improve(new, bound);
            }
        }
        Ok(p)
    }

    /// A controller from x on, which grows by what the policy does: there it is π_θ, made linear.
    fn control(&mut self, x: Vector, growth: usize, horizon: usize, bound: f64) -> Result<Controller> {
        let mut p = Controller { states: vec![x], ..Controller::default() };
        for t in 1..=horizon {
            let (mean, slope) = self.linearise_policy(&p.states[t - 1..])?.remove(0);
            self.extend(mean, slope, self.policy_precision()?, &mut p)?;
            if t % growth == 0 || t == horizon {
                p = self.improve(p, bound)?;
            }
        }
        Ok(p)
    }

    /// Runs a controller with its noise, and writes down what its means would do in the states that it meets.
    fn sample(&mut self, p: &Controller, samples: &mut Samples<Vec<f32>>, rng: &mut Rng) -> Result<()> {
        let mut x = p.states[0].clone();
        for (t, precision) in p.precisions.iter().enumerate() {
            let mean = self.clamp(&p.mean(t, &x));
            samples.observations.extend(self.observe(&x)?);
            samples.means.extend(mean.iter().map(|&u| u as f32));
            samples.precisions.extend(precision.iter().map(|&entry| entry as f32)); // symmetric
            samples.log_dets.push(-precision.determinant().ln() as f32);
            // C⁻¹ = L Lᵀ: L⁻ᵀ ξ has the covariance C
            let factor = Cholesky::new(precision.clone()).context("an indefinite precision")?.l();
            let xi = Vector::from_fn(mean.len(), |_, _| rng.sample(StandardNormal));
            let noise = factor.tr_solve_lower_triangular(&xi).context("a singular precision")?;
            (x, _) = self.step(&x, &self.clamp(&(mean + noise)))?;
        }
        Ok(())
    }

    /// KL( π_θ(·|x) ‖ p(·|x) ), `[batch]`.
    fn kl(&self, batch: &Samples<Tensor>) -> Result<Tensor> {
        let difference = (self.policy.forward(&batch.observations)? - &batch.means)?.unsqueeze(2)?; // [batch, m, 1]
        let (m, variance) = (self.low.len(), (&self.policy.log_std * 2.0)?.exp()?);
        let sigma = Tensor::eye(m, DType::F32, variance.device())?.broadcast_mul(&variance)?; // Σ, [m, m]
        // ½ [ tr(C⁻¹ Σ) + (μ_θ − μ_p)ᵀ C⁻¹ (μ_θ − μ_p) + ln det C − ln det Σ − m ]
        let trace = batch.precisions.broadcast_mul(&sigma)?.sum((1, 2))?;
        let quadratic = (batch.precisions.matmul(&difference)? * &difference)?.sum((1, 2))?;
        let log_dets = batch.log_dets.broadcast_sub(&(self.policy.log_std.sum_all()? * 2.0)?)?;
        Ok((((trace + quadratic)? + log_dets)? - m as f64)?.affine(0.5, 0.0)?)
    }

    /// One step of Adam down E[ KL(π_θ ‖ p) ].
    fn update_policy(&mut self, batch: &Samples<Tensor>) -> Result<f32> {
        let loss = self.kl(batch)?.mean_all()?;
        self.optimizer.backward_step(&loss)?;
        Ok(loss.to_scalar()?)
    }
}

/// A step along each axis towards 0, where no bound is in the way: `[d, d]` at `[d]`.
fn shifts(z: &Vector) -> Matrix {
    Matrix::from_diagonal(&z.map(|entry| -STEP.copysign(entry)))
}

fn vector(numbers: &[f32]) -> Vector {
    Vector::from_iterator(numbers.len(), numbers.iter().map(|&number| number.into()))
}

/// What the environment's state is without the count of steps that a time limit adds.
fn state_of(state: &State) -> Vector {
    Vector::from_column_slice(&state.0[..state.0.len() - 1])
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let mut envs = VecEnv::make(&args.run.env_id, args.num_controllers, args.run.seed)?;
    let mut gps = Gps::new(envs::make(&args.run.env_id)?, &args)?;
    let (horizon, device) = (envs.spec().episode_limit() as usize, args.run.device()?);
    let cannot = || format!("--env-id {}: guided_policy_search cannot plan there", args.run.env_id);
    gps.control(state_of(&envs.state(0)?), horizon, horizon, -1.0).with_context(cannot)?;
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;
    let (mut samples, mut rng, mut global_step) = (Samples::default(), learner_rng(args.run.seed), 0);
    while global_step < run.total_timesteps {
        let Gps { parameters, optimizer, .. } = &mut gps;
        let mut items: Vec<(&str, &mut dyn Persist)> = vec![("policy", parameters), ("optimizer", optimizer)];
        items.extend([("samples", &mut samples as &mut dyn Persist), ("envs", &mut envs), ("rng", &mut rng)]);
        run.resume_or_checkpoint(&mut global_step, &mut items)?;
        // Control, around what the policy does from first states that are new; an untrained one is no bound.
        let first = (args.growth, f64::INFINITY);
        let (growth, bound) = if global_step == 0 { first } else { (horizon, args.kl_bound) };
        let (mut cost, mut divergence) = (0.0, 0.0);
        for i in 0..args.num_controllers {
            let p = gps.control(state_of(&envs.state(i)?), growth, horizon, bound)?;
            gps.sample(&p, &mut samples, &mut rng)?;
            (cost, divergence) = (cost + p.cost, divergence + gps.divergence(&p)?);
        }
        for _ in 0..horizon {
            envs.step(&gps.act_greedily(envs.observations())?)?;
            global_step += args.num_controllers;
            run.episodes(global_step, envs.episodes())?; // what the policy reaches from the same states
        }
        run.log(global_step, "charts/controller_return", -cost / args.num_controllers as f64)?;
        run.log(global_step, "charts/divergence", divergence / args.num_controllers as f64)?;
        // Supervision: towards all controllers so far.
        let mut loss = 0.0;
        for update in 0..args.updates {
            gps.optimizer.learning_rate = (1.0 - update as f64 / args.updates as f64) * args.learning_rate;
            loss = gps.update_policy(&samples.draw(args.batch_size, &mut rng, &device)?)?;
        }
        run.log(global_step, "losses/policy_loss", loss)?;
    }
    run.save_or_load_model(&mut gps.parameters)?;
    run.evaluate(|observations| gps.act_greedily(observations))?;
    Ok(())
}

#[cfg(test)]
mod tests;
