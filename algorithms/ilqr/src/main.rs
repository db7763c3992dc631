//! # Iterative linear quadratic regulator (iLQR)
//!
//! Li & Todorov (2004), "Iterative linear quadratic regulator design for nonlinear biological movement
//! systems"; regularisation and line search of Tassa, Erez & Todorov (2012), "Synthesis and stabilization of
//! complex behaviors through online trajectory optimization"; bounds of Tassa, Mansard & Todorov (2014).
//!
//! Where dynamics are linear and costs quadratic, dynamic programming has a closed form: the value is a
//! quadratic function and the best control a linear one of the state (the linear quadratic regulator, LQR).
//! Elsewhere iLQR takes the dynamics' first and the cost's second derivatives along a trajectory, solves that
//! problem backwards in time, runs its controls forwards through the true dynamics, those of the
//! environment itself, and repeats. Nothing is learned.
//!
//! ```text
//! min Σ_{t < T} l(x_t, u_t)     x_{t+1} = f(x_t, u_t),  l = −r,  low ≤ u ≤ high
//!
//! backwards from V = 0, with derivatives of f and l at (x̂_t, û_t) and V at t + 1:
//!   Q_x  = l_x  + f_xᵀ V_x        Q_u  = l_u  + f_uᵀ V_x
//!   Q_xx = l_xx + f_xᵀ V_xx f_x   Q_uu = l_uu + f_uᵀ V_xx f_u   Q_ux = l_ux + f_uᵀ V_xx f_x
//!   k = argmin_k ½ kᵀ (Q_uu + μ I) k + Q_uᵀ k,  low ≤ û + k ≤ high;   K = −(Q_uu + μ I)⁻¹ Q_ux, 0 at bounds
//!   V_x  = Q_x  + Kᵀ Q_uu k + Kᵀ Q_u  + Q_uxᵀ k
//!   V_xx = Q_xx + Kᵀ Q_uu K + Kᵀ Q_ux + Q_uxᵀ K
//! forwards, with an expected change of the cost of α Σ kᵀ Q_u + α² Σ ½ kᵀ Q_uu k:
//!   u_t = clamp(û_t + α k_t + K_t (x_t − x̂_t))
//! ```
//!
//! The largest α of 1, ½, ¼, … that brings a tenth of that change is taken. μ rises where Q_uu is not
//! positive definite or no α will do. On a linear quadratic problem the first step is the optimum.
//!
//! Deviations from the papers. μ is added to Q_uu, where Tassa et al. (2012) add it to V_xx within Q_uu and
//! Q_ux; it is multiplied and divided by ten; iterations end where little change is expected under the present
//! μ. Within bounds k is found by coordinate descent (2014: by a projected Newton method). All derivatives are
//! differences of the environment's steps, which must not be random; the cost's Hessian loses its negative
//! eigenvalues (an angle's square has a concave edge where it wraps). A plan is for a whole episode, not a
//! receding horizon, but grows towards it, some nearly idle steps at a time: optimised at once, 200 end at −750
//! or so from rest. How it grows decides how often the pendulum swings: by default −295.3.
//!
//! Run `cargo run -p ilqr`: about −144 on Pendulum-v1 in 5 seconds, nearly all evaluation (the optimum on a
//! grid is −137, and −300.7 from rest; random actions −1236). It draws `convergence.png` of its first plan. LQR
//! itself is `cargo run -p ilqr -- --env-id DoubleIntegrator-v0 --total-timesteps 50 --horizon=50 --growth=50`:
//! `charts/gain` is 0.4220824, the first entry of the K that the discrete algebraic Riccati equation gives.

use anyhow::{Context, Result};
use clap::Parser;
use common::envs::{self, Action, Canvas, Env, Rng, Space, State, VecEnv, invalid, learner_rng, rng};
use common::{Run, cli, cli::RunArgs, gif::GifWriter, plot::Chart, plot::Curve};
use nalgebra::{Cholesky, DMatrix, DVector};
use rand::RngExt;
use rand_distr::StandardNormal;
use serde::Serialize;
use std::process::ExitCode;

/// The evaluation's environments draw from this seed's streams, apart from the training ones.
const EVALUATION_SEED: u64 = 0x5EED_0E7A;
/// By how much states and controls are moved to see what changes: states hardly, for costs may have edges.
/// What is paid for controls is often in single precision, whose rounding a smaller step would magnify.
const STATE_STEP: f64 = 1.0 / 65_536.0;
const CONTROL_STEP: f64 = 1.0 / 32.0;
/// What regularisation begins with, and the one at which nothing moves any more.
const MIN_REGULARISATION: f64 = 1e-6;
const MAX_REGULARISATION: f64 = 1e8;

type Vector = DVector<f64>;
type Matrix = DMatrix<f64>;
/// The control for a step and a state.
type Policy<'a> = &'a dyn Fn(usize, &Vector) -> Vector;

/// Iterative linear quadratic regulator: plans with the environment's own dynamics
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("Pendulum-v1")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("2000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// State that episodes begin in, such as 3.14159,0 [default: as the environment draws it]
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, value_parser = cli::finite)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    initial_state: Vec<f64>,
    /// Steps of a plan, T; where an episode is longer, another follows
    #[arg(long, default_value_t = 200, value_parser = cli::positive)]
    horizon: usize,
    /// Steps added to a plan before it is optimised again, until it has --horizon of them
    #[arg(long, default_value_t = 16, value_parser = cli::positive)]
    growth: usize,
    /// Standard deviation of the random controls that a plan begins and grows with
    #[arg(long, default_value_t = 0.1, value_parser = cli::non_negative)]
    initial_std: f64,
    /// Most iterations of each of these optimisations
    #[arg(long, default_value_t = 100, value_parser = cli::positive)]
    iterations: usize,
    /// An optimisation ends where the cost is expected to fall by less than this
    #[arg(long, default_value_t = 1e-3, value_parser = cli::above_zero)]
    tolerance: f64,
}

/// f and l around a step of a trajectory, by z = (x, u); n and m are the sizes of states and controls.
struct Derivatives {
    u: Vector,    // û, [m]
    f_z: Matrix,  // (f_x, f_u), [n, n + m]
    l_z: Vector,  // (l_x, l_u), [n + m]
    l_zz: Matrix, // ((l_xx, l_xu), (l_ux, l_uu)), [n + m, n + m]
}

/// What the backward pass found: an entry a step, and one more of V for the end.
#[derive(Default)]
struct Backward {
    offsets: Vec<Vector>,          // k_t, [m]
    gains: Vec<Matrix>,            // K_t, [m, n]
    values: Vec<(Vector, Matrix)>, // V_x, [n], and V_xx, [n, n]
    linear: f64,                   // Σ kᵀ Q_u
    quadratic: f64,                // Σ ½ kᵀ Q_uu k
}

/// States x̂, one more than controls û, and what they cost.
struct Trajectory {
    states: Vec<Vector>,
    controls: Vec<Vector>,
    cost: f64,
}

/// A trajectory that nothing improves any more, and the feedback around it.
struct Plan {
    trajectory: Trajectory,
    backward: Backward,
    costs: Vec<f64>, // before each iteration, and after the last
}

struct Ilqr {
    model: Box<dyn Env>,
    low: Vector,  // the least controls, [m]
    high: Vector, // the greatest, [m]
    args: Args,
}

impl Ilqr {
    fn new(model: Box<dyn Env>, args: &Args) -> Result<Self> {
        model.spec().box_to_box("ilqr")?;
        let Space::Box { low, high, .. } = &model.spec().action_space else {
            return invalid("ilqr needs Box actions");
        };
        let vector = |bounds: &[f32]| Vector::from_iterator(bounds.len(), bounds.iter().map(|&b| b.into()));
        Ok(Self { low: vector(low), high: vector(high), model, args: args.clone() })
    }

    /// The nearest controls that the environment takes: within bounds, in single precision.
    fn clamp(&self, u: &Vector) -> Vector {
        u.zip_zip_map(&self.low, &self.high, |u, low, high| f64::from(u.clamp(low, high) as f32))
    }

    /// Sets the model to x. Its own state ends with a count of steps, which matters to time limits only.
    fn place(&mut self, x: &Vector) -> Result<()> {
        let (state, id) = (State(x.iter().copied().chain([0.0]).collect()), &self.args.run.env_id);
        self.model.set_state(&state).with_context(|| format!("--env-id {id}: ilqr needs states it can shift"))
    }

    /// f(x, u) and l(x, u).
    fn step(&mut self, x: &Vector, u: &Vector) -> Result<(Vector, f64)> {
        self.place(x)?;
        let (action, mut generator): (Vec<f32>, _) = (u.iter().map(|&u| u as f32).collect(), rng(0, 0));
        let step = self.model.step(Action::Continuous(&action), &mut generator)?;
        if generator != rng(0, 0) || step.terminated {
            let why = if step.terminated { "episodes end by more than time" } else { "steps are random" };
            return invalid(format!("--env-id {}: ilqr cannot plan where {why}", self.args.run.env_id));
        }
        Ok((state_of(&self.model.state()?), -step.reward))
    }

    /// `steps` steps from x on.
    fn rollout(&mut self, x: &Vector, steps: usize, policy: Policy) -> Result<Trajectory> {
        let (mut states, mut controls, mut cost) = (vec![x.clone()], Vec::new(), 0.0);
        for t in 0..steps {
            let u = self.clamp(&policy(t, &states[t]));
            let (next, l) = self.step(&states[t], &u)?;
            states.push(next);
            controls.push(u);
            cost += l;
        }
        Ok(Trajectory { states, controls, cost })
    }

    /// Derivatives of f and l at (x, u) by central differences.
    fn derivatives(&mut self, x: &Vector, u: &Vector) -> Result<Derivatives> {
        let (n, d) = (x.len(), x.len() + u.len());
        let z = Vector::from_iterator(d, x.iter().chain(u.iter()).copied()); // z = (x, u)
        let h = Vector::from_fn(d, |i, _| if i < n { STATE_STEP } else { CONTROL_STEP });
        let shifted = |z: &Vector, i: usize, by: f64| {
            let mut z = z.clone();
            z[i] += by * h[i];
            z
        };
        // Around c, which is near z: its controls are exact in single precision, and no bound is within 2 h.
        let mut c = z.clone();
        for i in 0..n {
            let mut refuses = |by: f64| self.place(&shifted(&z, i, by).rows(0, n).into()).is_err();
            let by = [2.0, -2.0].into_iter().find(|&by| refuses(by)).unwrap_or(0.0);
            c[i] -= by * h[i];
        }
        for i in n..d {
            let (low, high) = (self.low[i - n] + 2.0 * h[i], self.high[i - n] - 2.0 * h[i]);
            c[i] = ((z[i] / h[i]).round() * h[i]).max(low).min(high);
        }
        let mut at = |z: Vector| self.step(&z.rows(0, n).into(), &z.rows(n, d - n).into());
        let (mut f_z, mut l_z, mut l_zz) = (Matrix::zeros(n, d), Vector::zeros(d), Matrix::zeros(d, d));
        for i in 0..d {
            let ((above, l_above), (below, l_below)) = (at(shifted(&c, i, 1.0))?, at(shifted(&c, i, -1.0))?);
            f_z.set_column(i, &((above - below) / (2.0 * h[i])));
            l_z[i] = (l_above - l_below) / (2.0 * h[i]);
            for j in 0..=i {
                let mut l = |by_i, by_j| at(shifted(&shifted(&c, i, by_i), j, by_j)).map(|(_, l)| l);
                let change = l(1.0, 1.0)? - l(1.0, -1.0)? - l(-1.0, 1.0)? + l(-1.0, -1.0)?;
                l_zz[(i, j)] = change / (4.0 * h[i] * h[j]);
                l_zz[(j, i)] = l_zz[(i, j)];
            }
        }
        l_z += &l_zz * (&z - c); // from c back to z
        // Without its negative eigenvalues l_zz is that of the nearest cost with a minimum.
        let mut eigen = l_zz.symmetric_eigen();
        eigen.eigenvalues.apply(|eigenvalue| *eigenvalue = eigenvalue.max(0.0));
        Ok(Derivatives { u: u.clone(), f_z, l_z, l_zz: eigen.recompose() })
    }

    /// Backwards along a trajectory from V_x and V_xx of its end; None where Q_uu + μ I is not positive definite.
    fn backward(&self, steps: &[Derivatives], end: (Vector, Matrix), mu: f64) -> Option<Backward> {
        let (mut v_x, mut v_xx) = end.clone();
        let mut found = Backward { values: vec![end], ..Backward::default() };
        for Derivatives { u, f_z, l_z, l_zz } in steps.iter().rev() {
            let (n, m) = (v_x.len(), u.len());
            // Q_x = l_x + f_xᵀ V_x,   Q_u = l_u + f_uᵀ V_x
            let q_z = l_z + f_z.transpose() * &v_x;
            let (q_x, q_u) = (q_z.rows(0, n), q_z.rows(n, m).into_owned());
            // Q_xx = l_xx + f_xᵀ V_xx f_x,   Q_uu = l_uu + f_uᵀ V_xx f_u,   Q_ux = l_ux + f_uᵀ V_xx f_x
            let q_zz = l_zz + f_z.transpose() * &v_xx * f_z;
            let [q_xx, q_uu] = [(0, n), (n, m)].map(|(at, size)| q_zz.view((at, at), (size, size)));
            let q_ux = q_zz.view((n, 0), (m, n)).into_owned();
            // k = argmin_k ½ kᵀ (Q_uu + μ I) k + Q_uᵀ k,   K = −(Q_uu + μ I)⁻¹ Q_ux
            let regularised = q_uu + mu * Matrix::identity(m, m);
            let (k, gain) = minimise(&regularised, &q_u, &q_ux, &(&self.low - u), &(&self.high - u))?;
            found.linear += k.dot(&q_u);
            found.quadratic += 0.5 * k.dot(&(q_uu * &k));
            // Easy to miss: the value is that of these controls in the problem without μ.
            // V_x = Q_x + Kᵀ Q_uu k + Kᵀ Q_u + Q_uxᵀ k
            v_x = q_x + gain.transpose() * (q_uu * &k + q_u) + q_ux.transpose() * &k;
            // V_xx = Q_xx + Kᵀ Q_uu K + Kᵀ Q_ux + Q_uxᵀ K
            let cross = gain.transpose() * &q_ux;
            v_xx = q_xx + gain.transpose() * q_uu * &gain + &cross + cross.transpose();
            v_xx = (&v_xx + v_xx.transpose()) / 2.0; // symmetric but for rounding, which may grow
            found.offsets.insert(0, k);
            found.gains.insert(0, gain);
            found.values.insert(0, (v_x.clone(), v_xx.clone()));
        }
        Some(found)
    }

    /// Runs the controls of a backward pass around `old` through the true dynamics.
    fn forward(&mut self, old: &Trajectory, backward: &Backward, alpha: f64) -> Result<Trajectory> {
        self.rollout(&old.states[0], old.controls.len(), &|t, x| {
            // u_t = û_t + α k_t + K_t (x_t − x̂_t)
            &old.controls[t] + alpha * &backward.offsets[t] + &backward.gains[t] * (x - &old.states[t])
        })
    }

    /// The trajectory of the largest α that brings a tenth of the expected change, if any does.
    fn line_search(&mut self, old: &Trajectory, backward: &Backward) -> Result<Option<Trajectory>> {
        for alpha in (0..10).map(|halvings| 0.5_f64.powi(halvings)) {
            let new = self.forward(old, backward, alpha)?;
            let expected = alpha * backward.linear + alpha * alpha * backward.quadratic; // below 0
            if new.cost - old.cost < 0.1 * expected {
                return Ok(Some(new));
            }
        }
        Ok(None)
    }

    /// Improves a trajectory until nothing more is expected.
    fn optimise(&mut self, mut trajectory: Trajectory) -> Result<Plan> {
        let n = trajectory.states[0].len();
        let end = || (Vector::zeros(n), Matrix::zeros(n, n)); // nothing is paid after the last step: V = 0
        let (mut costs, mut mu) = (vec![trajectory.cost], 0.0);
        loop {
            let points = trajectory.states.iter().zip(&trajectory.controls);
            let derivatives = points.map(|(x, u)| self.derivatives(x, u)).collect::<Result<Vec<_>>>()?;
            let (mut kept, mut better, mut is_done) = (None, None, false); // kept: what the least μ found
            while better.is_none() && !is_done && mu < MAX_REGULARISATION {
                if let Some(found) = self.backward(&derivatives, end(), mu) {
                    is_done = -(found.linear + found.quadratic) < self.args.tolerance
                        || costs.len() > self.args.iterations;
                    better = if is_done { None } else { self.line_search(&trajectory, &found)? };
                    kept.get_or_insert(found);
                }
                mu = if better.is_some() { mu / 10.0 } else { (10.0 * mu).max(MIN_REGULARISATION) };
            }
            let Some(better) = better else {
                let backward = kept.context("ilqr: no feedback keeps this trajectory's cost finite")?;
                return Ok(Plan { trajectory, backward, costs });
            };
            costs.push(better.cost);
            trajectory = better;
        }
    }

    /// Plans from x on, and what each stage of the growing plan cost on its way.
    fn plan(&mut self, x: &Vector, rng: &mut Rng) -> Result<(Plan, Vec<Vec<f64>>)> {
        let (mut controls, mut stages, m) = (Vec::new(), Vec::new(), self.low.len());
        loop {
            for _ in 0..self.args.growth.min(self.args.horizon - controls.len()) {
                controls.push(self.args.initial_std * Vector::from_fn(m, |_, _| rng.sample(StandardNormal)));
            }
            let trajectory = self.rollout(x, controls.len(), &|t, _| controls[t].clone())?;
            let plan = self.optimise(trajectory)?;
            stages.push(plan.costs.clone());
            if controls.len() == self.args.horizon {
                return Ok((plan, stages));
            }
            controls.clone_from(&plan.trajectory.controls);
        }
    }

    /// û_t + K_t (x − x̂_t), `[m]`.
    fn act(&self, plan: &Plan, t: usize, x: &Vector) -> Vec<f32> {
        let Trajectory { states, controls, .. } = &plan.trajectory;
        let u = &controls[t] + &plan.backward.gains[t] * (x - &states[t]);
        self.clamp(&u).iter().map(|&u| u as f32).collect()
    }
}

/// k = argmin ½ kᵀ H k + gᵀ k with low ≤ k ≤ high, and −H⁻¹ C in the rows of the entries of k that are within
/// their bounds, 0 in the others. None where H is not positive definite.
fn minimise(h: &Matrix, g: &Vector, c: &Matrix, low: &Vector, high: &Vector) -> Option<(Vector, Matrix)> {
    let mut k = -Cholesky::new(h.clone())?.solve(g); // where no bound is in the way
    let (mut moved, mut rounds) = (f64::INFINITY, 0); // a bound on rounds, for rounding may move k for ever
    while moved > 1e-12 * (1.0 + k.amax()) && rounds < 10_000 {
        (moved, rounds) = (0.0, rounds + 1);
        for i in 0..k.len() {
            // Entry i's minimum with the others held: repeated, this converges (coordinate descent).
            let slope = g[i] + h.row(i).transpose().dot(&k);
            let entry = (k[i] - slope / h[(i, i)]).clamp(low[i], high[i]);
            moved = (entry - k[i]).abs().max(moved);
            k[i] = entry;
        }
    }
    // H with I's rows and columns for what is held.
    let is_free = |k, low, high| f64::from(u8::from(low < k && k < high));
    let free = Matrix::from_diagonal(&k.zip_zip_map(low, high, is_free));
    let of_free = &free * h * &free + Matrix::identity(k.len(), k.len()) - &free;
    Some((k, -Cholesky::new(of_free)?.solve(&(free * c))))
}

/// What the environment's state is without the count of steps that a time limit adds.
fn state_of(state: &State) -> Vector {
    Vector::from_column_slice(&state.0[..state.0.len() - 1])
}

/// What each stage of a plan cost over the iterations, one stage after the other.
fn draw_convergence(stages: &[Vec<f64>], args: &Args, path: &std::path::Path) -> Result<()> {
    let mut curves = Vec::new();
    for (i, costs) in stages.iter().enumerate() {
        let first: usize = stages[..i].iter().map(Vec::len).sum();
        let label = format!("{} steps", args.horizon.min((i + 1) * args.growth));
        let xs = (first..).take(costs.len()).map(|iteration| iteration as f64).collect();
        curves.push(Curve { label, xs, mean: costs.clone(), low: costs.clone(), high: costs.clone() });
    }
    let (title, x_label, y_label) = ("Cost of a plan that grows", "iteration", "cost of its steps");
    Chart { title, x_label, y_label, curves: &curves, dots: true, ..Chart::default() }.draw(path)
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let (mut envs, mut ilqr, mut rng) = set_up(&args, args.run.seed)?;
    ilqr.plan(&state_of(&envs.state(0)?), &mut rng.clone())?; // refuses what no one can plan in
    let (mut run, mut global_step) = (Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?, 0);
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(&mut global_step, &mut [("envs", &mut envs), ("rng", &mut rng)])?;
        let (plan, stages) = ilqr.plan(&state_of(&envs.state(0)?), &mut rng)?;
        if global_step == 0 {
            draw_convergence(&stages, &args, &run.dir().join("convergence.png"))?;
        }
        run.log(global_step, "charts/planned_return", -plan.trajectory.cost)?;
        // Of a linear system: the first number of K in u = −K x, and tr P, what unit noise costs a step.
        run.log(global_step, "charts/gain", -plan.backward.gains[0][(0, 0)])?;
        run.log(global_step, "charts/cost_of_noise", 0.5 * plan.backward.values[0].1.trace())?;
        for t in 0..args.horizon.min(run.total_timesteps - global_step) {
            envs.step(&ilqr.act(&plan, t, &state_of(&envs.state(0)?)))?;
            global_step += 1;
            run.episodes(global_step, envs.episodes())?;
            if !envs.episodes().is_empty() {
                begin(&mut envs, &args)?;
                break;
            }
        }
    }
    let training_seconds = run.wall_seconds();
    let film = || GifWriter::new(&run.dir().join("agent.gif"), 480, 320, 33);
    let (mut gif, mut returns) = (args.run.capture_video.then(film).transpose()?, Vec::new());
    for episode in 0..args.run.eval_episodes {
        let (envs, ilqr, rng) = set_up(&args, evaluation_seed(&args, episode))?;
        returns.push(play(ilqr, envs, rng, gif.take())?);
        run.refuse_interrupted()?;
    }
    run.finish(&returns, training_seconds)?;
    Ok(())
}

/// One environment to act in, and a planner with a copy of its own.
fn set_up(args: &Args, seed: u64) -> Result<(VecEnv, Ilqr, Rng)> {
    let ilqr = Ilqr::new(envs::make(&args.run.env_id)?, args)?;
    let mut envs = VecEnv::new(vec![envs::make(&args.run.env_id)?], seed)?;
    begin(&mut envs, args)?;
    Ok((envs, ilqr, learner_rng(seed)))
}

/// Of an evaluation episode: drawn, for sums of seeds and numbers would meet again in neighbouring seeds' runs.
fn evaluation_seed(args: &Args, episode: usize) -> u64 {
    envs::rng(args.run.seed ^ EVALUATION_SEED, episode as u64).random()
}

/// Puts an episode that has just begun into `--initial-state`, if there is one.
fn begin(envs: &mut VecEnv, args: &Args) -> Result<()> {
    if !args.initial_state.is_empty() {
        let mut snapshot = envs.snapshot()?;
        snapshot.set_state(0, &[&args.initial_state[..], &[0.0]].concat());
        envs.restore(&snapshot).with_context(|| format!("--initial-state {:?}", args.initial_state))?;
    }
    Ok(())
}

/// The return of one planned episode, which goes into `gif` if there is one.
fn play(mut ilqr: Ilqr, mut envs: VecEnv, mut rng: Rng, mut gif: Option<GifWriter>) -> Result<f64> {
    loop {
        let (plan, _) = ilqr.plan(&state_of(&envs.state(0)?), &mut rng)?;
        for t in 0..ilqr.args.horizon {
            if let Some(gif) = &mut gif {
                let mut canvas = Canvas::new(480, 320);
                envs.draw(0, &mut canvas)?;
                gif.push(&canvas.rgb())?;
            }
            envs.step(&ilqr.act(&plan, t, &state_of(&envs.state(0)?)))?;
            if let [episode] = envs.episodes() {
                gif.map_or(Ok(()), GifWriter::finish)?;
                return Ok(episode.episodic_return);
            }
        }
    }
}

#[cfg(test)]
mod tests;
