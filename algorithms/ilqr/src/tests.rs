//! Backward and forward passes against recordings, derivatives against candle's, gains against the Riccati
//! equation, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use candle_core::{DType, Device, Tensor, Var};
use common::envs::wrappers::TimeLimit;
use common::envs::{Spec, Step};
use regression::scripted::{Log, Scripted};
use regression::{Recording, SCRIPT, View};
use std::f64::consts::PI;

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["ilqr"].iter().chain(flags).map(Into::into)).unwrap()
}

fn planner(id: &str, flags: &[&str]) -> Ilqr {
    Ilqr::new(envs::make(id).unwrap(), &args(flags)).unwrap()
}

/// Without bounds, for controls of this size.
fn unbounded(m: usize) -> Ilqr {
    let actions = Space::uniform(m, f32::NEG_INFINITY, f32::INFINITY);
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, Log::default());
    Ilqr::new(Box::new(model), &args(&[])).unwrap()
}

fn vector(numbers: &[f64]) -> Vector {
    Vector::from_column_slice(numbers)
}

/// Row by row.
fn numbers(matrix: &Matrix) -> Vec<f64> {
    matrix.transpose().as_slice().to_vec()
}

/// The pendulum of the recording: Pendulum-v1's dynamics without clipping or wrapping.
struct FreePendulum {
    spec: Spec,
    x: [f64; 2],
}

fn free_pendulum() -> Ilqr {
    let spec = Spec {
        id: "FreePendulum".into(),
        observation_space: Space::uniform(2, f32::NEG_INFINITY, f32::INFINITY),
        action_space: Space::uniform(1, f32::NEG_INFINITY, f32::INFINITY),
        max_episode_steps: None,
        reward_threshold: None,
    };
    let env = TimeLimit::new(FreePendulum { spec, x: [0.0; 2] });
    Ilqr::new(Box::new(env), &args(&[])).unwrap()
}

impl Env for FreePendulum {
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        Ok(())
    }
    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let ([angle, velocity], u) = (self.x, f64::from(action.vector()[0]));
        let reward = -(angle.powi(2) + 0.1 * velocity.powi(2) + 0.001 * u.powi(2));
        let velocity = velocity + (15.0 * angle.sin() + 3.0 * u) * 0.05;
        self.x = [angle + velocity * 0.05, velocity];
        Ok(Step { reward, terminated: false, truncated: false })
    }
    fn observe(&self, _observation: &mut [f32]) {}
    fn state(&self) -> Result<State> {
        Ok(State(self.x.to_vec()))
    }
    fn set_state(&mut self, state: &State) -> Result<()> {
        self.x = [state.0[0], state.0[1]];
        Ok(())
    }
}

/// A recorded tensor as one matrix a step; a vector is a column.
fn matrices(recording: &Recording, name: &str, rows: usize, columns: usize) -> Vec<Matrix> {
    let numbers: Vec<f64> = recording.floats(name).into_iter().map(f64::from).collect();
    numbers.chunks(rows * columns).map(|step| Matrix::from_row_slice(rows, columns, step)).collect()
}

fn vectors(recording: &Recording, name: &str, size: usize) -> Vec<Vector> {
    matrices(recording, name, size, 1).iter().map(|column| column.column(0).into_owned()).collect()
}

/// `[[a, b], [c, d]]`
fn blocks(a: &Matrix, b: &Matrix, c: &Matrix, d: &Matrix) -> Matrix {
    let rows = a.nrows() + c.nrows();
    Matrix::from_fn(rows, a.ncols() + b.ncols(), |i, j| match (i < a.nrows(), j < a.ncols()) {
        (true, true) => a[(i, j)],
        (true, false) => b[(i, j - a.ncols())],
        (false, true) => c[(i - a.nrows(), j)],
        (false, false) => d[(i - a.nrows(), j - a.ncols())],
    })
}

fn stacked(a: &Vector, b: &Vector) -> Vector {
    Vector::from_iterator(a.len() + b.len(), a.iter().chain(b.iter()).copied())
}

/// A backward pass with regularisation, and the forward passes of three step sizes. Where the recording
/// regularises the state instead (Tassa, Erez & Todorov 2012, equations 10), the file has no such mode.
#[test]
fn recorded_update_of_the_pendulum() {
    let mut recording = Recording::open("ilqr");
    let mut ilqr = free_pendulum();
    let (states, controls) =
        (vectors(&recording, "batch/states", 2), vectors(&recording, "batch/controls", 1));
    let of =
        |name: &str, rows, columns| matrices(&recording, &format!("batch/derivatives/{name}"), rows, columns);
    let (a, b) = (of("A", 2, 2), of("B", 2, 1));
    let (l_xx, l_uu, l_ux) = (of("l_xx", 2, 2), of("l_uu", 1, 1), of("l_ux", 1, 2));
    let (l_x, l_u) = (of("l_x", 2, 1), of("l_u", 1, 1));
    let derivatives: Vec<Derivatives> = (0..20)
        .map(|t| Derivatives {
            u: controls[t].clone(),
            f_z: blocks(&a[t], &b[t], &Matrix::zeros(0, 2), &Matrix::zeros(0, 1)),
            l_z: stacked(&l_x[t].column(0).into(), &l_u[t].column(0).into()),
            l_zz: blocks(&l_xx[t], &l_ux[t].transpose(), &l_ux[t], &l_uu[t]),
        })
        .collect();
    let end = (of("final_x", 2, 1)[0].column(0).into_owned(), of("final_xx", 2, 2)[0].clone());
    let mu = recording.number("regularisation");

    // The derivatives themselves, by differences.
    for t in 0..20 {
        let found = ilqr.derivatives(&states[t], &controls[t]).unwrap();
        assert_abs_diff_eq!(found.f_z, derivatives[t].f_z, epsilon = 1e-6);
        assert_abs_diff_eq!(found.l_z, derivatives[t].l_z, epsilon = 1e-6);
        assert_abs_diff_eq!(found.l_zz, derivatives[t].l_zz, epsilon = 1e-4);
    }
    for (folder, mu) in [("expected", mu), ("expected/unregularised", 0.0)] {
        let found = ilqr.backward(&derivatives, end.clone(), mu).unwrap();
        let name = |name: &str| format!("{folder}/{name}");
        let (gradients, hessians): (Vec<Vec<f64>>, Vec<Vec<f64>>) =
            found.values.iter().map(|(v_x, v_xx)| (v_x.as_slice().to_vec(), numbers(v_xx))).unzip();
        recording.close(&name("gains"), found.gains.iter().map(numbers).collect::<Vec<_>>());
        let offsets: Vec<Vec<f64>> = found.offsets.iter().map(|k| k.as_slice().to_vec()).collect();
        recording.close(&name("offsets"), offsets);
        recording.close(&name("value_gradients"), gradients);
        recording.close(&name("value_hessians"), hessians);
        recording.close(&name("expected_change_linear"), found.linear);
        recording.close(&name("expected_change_quadratic"), found.quadratic);
    }

    let final_cost = |x: &Vector| x[0].powi(2) + 0.1 * x[1].powi(2);
    let backward = ilqr.backward(&derivatives, end, mu).unwrap();
    let old = ilqr.rollout(&states[0], 20, &|t, _| controls[t].clone()).unwrap();
    recording.close("expected/cost", old.cost + final_cost(&old.states[20]));
    let old = Trajectory { states, controls, cost: old.cost };
    for (alpha, name) in [(1.0, "1"), (0.5, "0.5"), (0.125, "0.125")] {
        let new = ilqr.forward(&old, &backward, alpha).unwrap();
        let name = |what: &str| format!("expected/forward/{name}/{what}");
        let rows = |vectors: &[Vector]| vectors.iter().map(|v| v.as_slice().to_vec()).collect::<Vec<_>>();
        recording.within(&name("states"), rows(&new.states), 1e-4, 1e-5);
        recording.within(&name("controls"), rows(&new.controls), 1e-4, 1e-5);
        recording.close(&name("cost"), new.cost + final_cost(&new.states[20]));
        let expected = alpha * backward.linear + alpha * alpha * backward.quadratic;
        recording.close(&name("expected_cost_change"), expected);
    }
    recording.finish();
}

/// A time-varying linear quadratic problem with linear and cross terms: one backward pass around any
/// trajectory is the optimum.
#[test]
fn recorded_update_of_the_linear_quadratic_regulator() {
    let mut recording = Recording::open("ilqr__lqr");
    let (n, m, horizon) = (3, 2, 10);
    let of = |name: &str, rows, columns| matrices(&recording, &format!("batch/{name}"), rows, columns);
    let (a, b, c) = (of("A", n, n), of("B", n, m), vectors(&recording, "batch/c", n));
    let (q_xx, r_uu, cross) = (of("Q", n, n), of("R", m, m), of("M", n, m));
    let (q, r) = (vectors(&recording, "batch/q", n), vectors(&recording, "batch/r", m));
    // Around the trajectory without controls.
    let (mut states, mut cost) = (vectors(&recording, "batch/x0", n), 0.0);
    for t in 0..horizon {
        cost += 0.5 * states[t].dot(&(&q_xx[t] * &states[t])) + q[t].dot(&states[t]);
        states.push(&a[t] * &states[t] + &c[t]);
    }
    let last = &states[horizon];
    cost += 0.5 * last.dot(&(&q_xx[horizon] * last)) + q[horizon].dot(last);
    let derivatives: Vec<Derivatives> = (0..horizon)
        .map(|t| Derivatives {
            u: Vector::zeros(m),
            f_z: blocks(&a[t], &b[t], &Matrix::zeros(0, n), &Matrix::zeros(0, m)),
            l_z: stacked(&(&q_xx[t] * &states[t] + &q[t]), &(&r[t] + cross[t].transpose() * &states[t])),
            l_zz: blocks(&q_xx[t], &cross[t], &cross[t].transpose(), &r_uu[t]),
        })
        .collect();
    let end = (&q_xx[horizon] * last + &q[horizon], q_xx[horizon].clone());
    let found = unbounded(m).backward(&derivatives, end, 0.0).unwrap();

    recording.close("expected/gains", found.gains.iter().map(numbers).collect::<Vec<_>>());
    // u = k + K (x − x̂), where the recording has u = K x + k; and V around x̂, where it has V around 0.
    let offsets: Vec<Vec<f64>> = (0..horizon)
        .map(|t| (&found.offsets[t] - &found.gains[t] * &states[t]).as_slice().to_vec())
        .collect();
    recording.close("expected/offsets", offsets);
    let hessians: Vec<Vec<f64>> = found.values.iter().map(|(_, v_xx)| numbers(v_xx)).collect();
    recording.close("expected/value_matrices", hessians);
    let around_0 = |(x, (v_x, v_xx)): (&Vector, &(Vector, Matrix))| (v_x - v_xx * x).as_slice().to_vec();
    let gradients: Vec<Vec<f64>> = states.iter().zip(&found.values).map(around_0).collect();
    recording.close("expected/value_vectors", gradients);
    recording.close("expected/cost", cost + found.linear + found.quadratic);
    recording.finish();
}

/// f and l of Pendulum-v1 in candle, for one state and control; the turns that wrapping takes off are constant.
fn pendulum_in_candle(x: &Tensor, u: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
    let (angle, velocity) = (x.get(0)?, x.get(1)?);
    let turns = (angle.to_scalar::<f64>()? / (2.0 * PI)).round();
    let u = u.get(0)?;
    let wrapped = (&angle - 2.0 * PI * turns)?;
    let cost = ((wrapped.sqr()? + (velocity.sqr()? * 0.1)?)? + (u.sqr()? * 0.001)?)?;
    let velocity = (velocity + (((angle.sin()? * 15.0)? + (u * 3.0)?)? * 0.05)?)?;
    let angle = (angle + (&velocity * 0.05)?)?;
    Ok((Tensor::stack(&[angle, velocity], 0)?, cost))
}

/// The same of LaplacianSystem-v0.
fn laplacian_in_candle(x: &Tensor, u: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
    let a = [[1.01, 0.01, 0.0], [0.01, 1.01, 0.01], [0.0, 0.01, 1.01]];
    let a = Tensor::new(&a, &Device::Cpu)?;
    let next = (a.matmul(&x.unsqueeze(1)?)?.squeeze(1)? + u)?;
    Ok((next, ((x.sqr()?.sum_all()? * 1e-3)? + u.sqr()?.sum_all()?)?))
}

type InCandle = fn(&Tensor, &Tensor) -> candle_core::Result<(Tensor, Tensor)>;

/// f_z by candle's backward passes, one a coordinate, and l_z.
fn gradients_by_candle(model: InCandle, x: &[f64], u: &[f64]) -> (Matrix, Vector) {
    let [x, u] = [x, u].map(|z| Var::new(z, &Device::Cpu).unwrap());
    let (next, cost) = model(x.as_tensor(), u.as_tensor()).unwrap();
    let gradient = |of: &Tensor| {
        let gradients = of.backward().unwrap();
        let part = |z: &Var| {
            let zeros = || Tensor::zeros(z.dims(), DType::F64, &Device::Cpu).unwrap();
            gradients.get(z).cloned().unwrap_or_else(zeros).to_vec1::<f64>().unwrap()
        };
        vector(&[part(&x), part(&u)].concat())
    };
    let rows: Vec<_> = (0..next.dims()[0]).map(|i| gradient(&next.get(i).unwrap()).transpose()).collect();
    (Matrix::from_rows(&rows), gradient(&cost))
}

#[test]
fn derivatives_by_differences_are_those_by_candle() {
    let pendulum: &[([f64; 2], f64)] = &[
        ([0.3, -1.0], 0.7),
        ([3.1, 2.0], -1.9),
        ([-2.0, 5.0], 2.0), // at the bound of the control
        ([4.0, -0.5], -2.0),
        ([-9.0, 0.0], 0.1), // more than a turn away
        ([-1.0, 8.0], 1.0), // at the bound of the velocity, which sinks
        ([1.0, -8.0], -1.0),
    ];
    let mut cases: Vec<(&str, InCandle, Vec<f64>, Vec<f64>)> = pendulum
        .iter()
        .map(|(x, u)| ("Pendulum-v1", pendulum_in_candle as InCandle, x.to_vec(), vec![*u]))
        .collect();
    let (x, u) = (vec![1.0, -2.5, 0.3], vec![0.4, 0.0, -3.3]);
    cases.push(("LaplacianSystem-v0-noiseless", laplacian_in_candle, x, u));
    for (id, model, x, u) in cases {
        let u: Vec<f64> = u.iter().map(|&u| f64::from(u as f32)).collect();
        let found = planner(id, &[]).derivatives(&vector(&x), &vector(&u)).unwrap();
        let (f_z, l_z) = gradients_by_candle(model, &x, &u);
        assert_abs_diff_eq!(found.f_z, f_z, epsilon = 1e-6);
        assert_abs_diff_eq!(found.l_z, l_z, epsilon = 1e-5);
        // The costs are quadratic, so that differences of their gradients over any distance are exact.
        let d = l_z.len();
        for i in 0..d {
            let moved = |by: f64| {
                let mut z = [&x[..], &u[..]].concat();
                z[i] += by;
                gradients_by_candle(model, &z[..x.len()], &z[x.len()..]).1
            };
            let column = (moved(0.01) - moved(-0.01)) / 0.02;
            assert_abs_diff_eq!(found.l_zz.column(i).into_owned(), column, epsilon = 1e-4);
        }
        assert_eq!(found.u, vector(&u));
    }
}

#[test]
fn where_an_angle_wraps_the_cost_has_no_negative_curvature() {
    let found = planner("Pendulum-v1", &[]).derivatives(&vector(&[PI, 0.0]), &vector(&[0.0])).unwrap();
    let expected = Matrix::from_diagonal(&vector(&[0.0, 0.2, 0.002]));
    assert_abs_diff_eq!(found.l_zz, expected, epsilon = 1e-4);
}

/// The plan from x, by one iteration: those after it change nothing.
fn linear_plan(id: &str, x: &[f64], horizon: usize) -> Plan {
    let flags = [&format!("--horizon={horizon}")[..], "--growth=1000", "--initial-std=0.01"];
    let mut ilqr = planner(id, &flags);
    let (plan, stages) = ilqr.plan(&vector(x), &mut rng(1, 0)).unwrap();
    assert_eq!(stages, [&plan.costs[..]]);
    assert!(plan.costs[0] > plan.costs[1] + 1e-3, "{:?}", plan.costs);
    for cost in &plan.costs[1..] {
        assert_abs_diff_eq!(*cost, plan.trajectory.cost, epsilon = 2e-3);
    }
    plan
}

#[test]
fn the_double_integrators_gain_is_that_of_the_riccati_equation() {
    let x = [1.5, -0.5];
    let plan = linear_plan("DoubleIntegrator-v0", &x, 50);
    let gain = -&plan.backward.gains[0];
    assert_abs_diff_eq!(gain, Matrix::from_row_slice(1, 2, &[0.4220824404, 1.2439288539]), epsilon = 1e-6);
    let p = &plan.backward.values[0].1 / 2.0;
    let expected = [2.9471229667, 2.3692054071, 2.3692054071, 4.6131342610];
    assert_abs_diff_eq!(p, Matrix::from_row_slice(2, 2, &expected), epsilon = 1e-5);
    assert_abs_diff_eq!(plan.trajectory.cost, vector(&x).dot(&(p * vector(&x))), epsilon = 1e-4);
}

#[test]
fn the_laplacian_systems_cost_of_noise_is_that_of_the_riccati_equation() {
    let plan = linear_plan("LaplacianSystem-v0-noiseless", &[1.0, -2.0, 0.5], 250);
    assert_abs_diff_eq!(0.5 * plan.backward.values[0].1.trace(), 0.137287, epsilon = 1e-6);
    let (a, b, c) = (0.043731, 0.045, 0.012509);
    let gain = -&plan.backward.gains[0];
    for (at, expected) in [((0, 0), a), ((1, 1), b), ((2, 2), a), ((0, 1), c), ((1, 2), c)] {
        assert_abs_diff_eq!(gain[at], expected, epsilon = 1e-6);
    }
}

#[test]
fn the_pendulum_swings_up_from_rest() {
    let mut ilqr = planner("Pendulum-v1", &[]);
    let (plan, stages) = ilqr.plan(&vector(&[PI, 0.0]), &mut rng(2, 0)).unwrap();
    // Better than dynamic programming on a grid, -300.7.
    assert!(plan.trajectory.cost < 296.0, "{}", plan.trajectory.cost);
    assert_eq!((stages.len(), plan.trajectory.states.len(), plan.trajectory.controls.len()), (13, 201, 200));
    for costs in &stages {
        assert!(costs.windows(2).all(|pair| pair[1] < pair[0]), "{costs:?}");
    }
    assert!(plan.trajectory.controls.iter().all(|u| u[0].abs() <= 2.0));
    assert!(plan.trajectory.controls.iter().filter(|u| u[0].abs() == 2.0).count() > 20);
    let last = &plan.trajectory.states[200];
    assert!((last[0].cos() - 1.0).abs() < 1e-3 && last[1].abs() < 1e-2, "{last}");
    // The environment pays what was planned; from a little beside it the feedback is worth something.
    let mut played = |beside: f64| {
        let mut env = envs::make("Pendulum-v1").unwrap();
        env.set_state(&State(vec![PI + beside, 0.0, 0.0])).unwrap();
        let mut cost = 0.0;
        for t in 0..200 {
            let action = ilqr.act(&plan, t, &state_of(&env.state().unwrap()));
            cost -= env.step(Action::Continuous(&action), &mut rng(1, 0)).unwrap().reward;
        }
        let controls = &plan.trajectory.controls;
        let open = ilqr.rollout(&vector(&[PI + beside, 0.0]), 200, &|t, _| controls[t].clone()).unwrap().cost;
        (cost, open)
    };
    let (cost, open) = played(0.0);
    assert_abs_diff_eq!(cost, plan.trajectory.cost, epsilon = 1e-9);
    assert_abs_diff_eq!(open, plan.trajectory.cost, epsilon = 1e-9);
    let (cost, open) = played(0.02);
    assert!(cost < 600.0 && open > cost + 200.0, "{cost} with feedback, {open} without");
}

#[test]
fn a_plan_grows_by_random_controls() {
    let flags = ["--horizon=10", "--growth=4", "--initial-std=0.5", "--tolerance=1e9"];
    let mut ilqr = planner("Pendulum-v1", &flags);
    let x = vector(&[1.0, 0.0]);
    let (plan, stages) = ilqr.plan(&x, &mut rng(1, 0)).unwrap();
    // Nothing is expected to be that much better, so that the controls stay as they were drawn.
    let mut generator = rng(1, 0);
    let draw =
        |_: usize| f64::from((0.5 * generator.sample::<f64, _>(StandardNormal)).clamp(-2.0, 2.0) as f32);
    let drawn: Vec<f64> = (0..10).map(draw).collect();
    assert_eq!(plan.trajectory.controls.iter().map(|u| u[0]).collect::<Vec<_>>(), drawn);
    let cost =
        |steps: usize, ilqr: &mut Ilqr| ilqr.rollout(&x, steps, &|t, _| vector(&drawn[t..=t])).unwrap().cost;
    assert_eq!(stages, [4, 8, 10].map(|steps| vec![cost(steps, &mut ilqr)]));
    // And no more iterations are made than allowed.
    let mut ilqr = planner("Pendulum-v1", &["--horizon=40", "--growth=40", "--iterations=2"]);
    assert_eq!(ilqr.plan(&x, &mut rng(1, 0)).unwrap().0.costs.len(), 3);
}

#[test]
fn the_line_search_takes_the_first_step_that_keeps_its_promise() {
    let mut ilqr = planner("Pendulum-v1", &[]);
    let x = vector(&[3.0, 0.0]);
    let mut generator = rng(1, 0);
    let controls: Vec<Vector> = (0..100).map(|_| vector(&[generator.sample(StandardNormal)])).collect();
    let mut old = ilqr.rollout(&x, 100, &|t, _| controls[t].clone()).unwrap();
    for iteration in 0..12 {
        let points = old.states.iter().zip(&old.controls);
        let derivatives: Vec<_> = points.map(|(x, u)| ilqr.derivatives(x, u).unwrap()).collect();
        let end = (Vector::zeros(2), Matrix::zeros(2, 2));
        let backward = ilqr.backward(&derivatives, end, 0.0).unwrap();
        let (mut alpha, mut expected) = (1.0, None);
        while expected.is_none() && alpha > 1e-3 {
            let new = ilqr.forward(&old, &backward, alpha).unwrap();
            let promised = alpha * backward.linear + alpha.powi(2) * backward.quadratic;
            assert!(promised < 0.0);
            expected = (old.cost - new.cost > -0.1 * promised).then_some(new.cost);
            alpha *= 0.5;
        }
        let found = ilqr.line_search(&old, &backward).unwrap();
        assert_eq!(found.as_ref().map(|new| new.cost), expected, "iteration {iteration}");
        let Some(found) = found else { break };
        old = found;
    }
    // Offsets the wrong way round keep no promise.
    let mut ilqr = planner("DoubleIntegrator-v0", &[]);
    let old = ilqr.rollout(&x, 10, &|_, _| vector(&[0.0])).unwrap();
    let points = old.states.iter().zip(&old.controls);
    let derivatives: Vec<_> = points.map(|(x, u)| ilqr.derivatives(x, u).unwrap()).collect();
    let mut backward = ilqr.backward(&derivatives, (Vector::zeros(2), Matrix::zeros(2, 2)), 0.0).unwrap();
    assert!(ilqr.line_search(&old, &backward).unwrap().is_some());
    // Of offsets eight times too long an eighth is right, and a quarter leads to the same cost on the other side.
    backward.offsets = backward.offsets.iter().map(|k| 8.0 * k).collect();
    let eighth = ilqr.forward(&old, &backward, 0.125).unwrap().cost;
    assert_eq!(ilqr.line_search(&old, &backward).unwrap().unwrap().cost, eighth);
    backward.offsets = backward.offsets.iter().map(|k| -k).collect();
    assert!(ilqr.line_search(&old, &backward).unwrap().is_none());
}

#[test]
fn bounds_hold_what_is_beyond_them_and_its_feedback() {
    let h = Matrix::from_row_slice(2, 2, &[2.0, 0.8, 0.8, 1.0]);
    let c = Matrix::from_row_slice(2, 3, &[1.0, 2.0, 3.0, -1.0, 0.5, 0.0]);
    let wide = (vector(&[f64::NEG_INFINITY; 2]), vector(&[f64::INFINITY; 2]));
    let g = vector(&[-3.0, 1.0]);
    let (k, gain) = minimise(&h, &g, &c, &wide.0, &wide.1).unwrap();
    let inverse = h.clone().try_inverse().unwrap();
    assert_abs_diff_eq!(k, -&inverse * &g, epsilon = 1e-9);
    assert_abs_diff_eq!(gain, -inverse * &c, epsilon = 1e-9);
    // The same within bounds, against all points of a grid.
    for (g, held) in
        [([-3.0, 1.0], [true, true]), ([-3.0, -1.0], [true, false]), ([0.1, 0.2], [false, false])]
    {
        let g = vector(&g);
        let (low, high) = (vector(&[-0.5, -1.0]), vector(&[1.0, 0.75]));
        let (k, gain) = minimise(&h, &g, &c, &low, &high).unwrap();
        let value = |k: &Vector| 0.5 * k.dot(&(&h * k)) + g.dot(k);
        for (i, j) in (0..=50).flat_map(|i| (0..=50).map(move |j| (i, j))) {
            let point = vector(&[-0.5 + 1.5 * f64::from(i) / 50.0, -1.0 + 1.75 * f64::from(j) / 50.0]);
            assert!(value(&point) >= value(&k) - 1e-9, "{point} is better than {k}");
        }
        for i in 0..2 {
            assert_eq!(k[i] == low[i] || k[i] == high[i], held[i], "{g}: {k}");
            assert_eq!(gain.row(i).iter().all(|gain| *gain == 0.0), held[i], "{gain}");
        }
        if held == [true, false] {
            // −c₂ / h₂₂, for the other control does not move.
            assert_abs_diff_eq!(gain.row(1).into_owned(), -c.row(1) / h[(1, 1)], epsilon = 1e-9);
        }
    }
    let concave = Matrix::from_row_slice(2, 2, &[1.0, 0.0, 0.0, -1.0]);
    assert!(minimise(&concave, &g, &c, &wide.0, &wide.1).is_none());
}

#[test]
fn regularisation_makes_up_for_negative_curvature_and_slows_down() {
    let derivatives = |l_uu: f64| {
        vec![Derivatives {
            u: vector(&[0.0]),
            f_z: Matrix::zeros(1, 2),
            l_z: vector(&[0.0, 1.0]),
            l_zz: Matrix::from_diagonal(&vector(&[0.0, l_uu])),
        }]
    };
    let ilqr = unbounded(1);
    let offset = |l_uu: f64, mu: f64| {
        let end = (vector(&[0.0]), Matrix::zeros(1, 1));
        ilqr.backward(&derivatives(l_uu), end, mu).map(|found| found.offsets[0][0])
    };
    assert_eq!((offset(-2.0, 0.0), offset(-2.0, 1.9), offset(-2.0, 4.0)), (None, None, Some(-0.5)));
    assert_eq!(
        (offset(2.0, 0.0), offset(2.0, 2.0), offset(2.0, 1e6)),
        (Some(-0.5), Some(-0.25), Some(-1.0 / 1_000_002.0))
    );
}

#[test]
fn an_episode_pays_what_was_planned_and_begins_where_it_should() {
    let args = args(&["--initial-state=2,-0.5", "--horizon=120"]);
    let (envs, ilqr, generator) = set_up(&args, 3).unwrap();
    assert_eq!(envs.state(0).unwrap().0, [2.0, -0.5, 0.0]);
    // Two plans, the second from where the first ends and longer than the episode.
    let (_, mut planner, mut same) = set_up(&args, 3).unwrap();
    let first = planner.plan(&vector(&[2.0, -0.5]), &mut same).unwrap().0.trajectory;
    let second = planner.plan(&first.states[120], &mut same).unwrap().0.trajectory;
    let rest = planner.rollout(&first.states[120], 80, &|t, _| second.controls[t].clone()).unwrap();
    let total = play(ilqr, envs, generator, None).unwrap();
    assert_abs_diff_eq!(total, -(first.cost + rest.cost), epsilon = 1e-9);
}

#[test]
fn what_ends_by_itself_is_refused() {
    let actions = Space::uniform(1, -1.0, 1.0);
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, Log::default());
    let mut ilqr = Ilqr::new(Box::new(TimeLimit::new(model)), &args(&[])).unwrap();
    let mut at = |step: f64| ilqr.step(&vector(&[0.0, step]), &vector(&[0.25]));
    let (x, cost) = at(1.0).unwrap();
    assert_eq!((x, cost), (vector(&[0.0, 2.0]), -2.0));
    assert!(at(2.0).unwrap_err().to_string().contains("cannot plan"));
}

/// Such as MuJoCo's and those of `gym:`.
#[test]
fn states_that_cannot_be_shifted_are_refused() {
    let error = unbounded(1).step(&vector(&[0.0, 1.0]), &vector(&[0.25])).unwrap_err();
    assert!(error.is::<envs::InvalidInput>());
    let shown = format!("{error:#}");
    assert!(shown.starts_with("--env-id Pendulum-v1: ilqr needs states it can shift: "), "{shown}");
}

#[test]
fn the_convergence_is_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("convergence.png");
    draw_convergence(&[vec![3.0, 2.0, 1.0], vec![4.0, 1.5]], &args(&[]), &path).unwrap();
    assert!(std::fs::metadata(path).unwrap().len() > 1000);
}

#[test]
fn no_two_evaluation_episodes_are_alike() {
    let mut seeds: Vec<u64> = Vec::new();
    for seed in 1..=20 {
        let args = args(&["--seed", &seed.to_string()]);
        seeds.extend((0..100).map(|episode| evaluation_seed(&args, episode)));
    }
    seeds.sort_unstable();
    assert!(seeds.windows(2).all(|pair| pair[0] != pair[1]));
}

/// What the defaults do, over an episode's end.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=250", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: a state to begin in, plans shorter than an episode, a few iterations.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--total-timesteps=300",
        "--eval-episodes=1",
        "--initial-state=1.5,-0.5",
        "--horizon=60",
        "--growth=25",
        "--initial-std=0.5",
        "--iterations=3",
        "--tolerance=0.1",
        "--capture-video",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
