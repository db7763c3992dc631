//! Supervision against a recording, controllers against known optima, the bound on their divergence, samples
//! against what happened, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::wrappers::TimeLimit;
use regression::scripted::{Log, Scripted};
use regression::{Layers, Recording, SCRIPT, View, first_gradients};
use std::f64::consts::{PI, TAU};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["guided_policy_search"].iter().chain(flags).map(Into::into)).unwrap()
}

fn gps(id: &str) -> Gps {
    Gps::new(envs::make(id).unwrap(), &args(&["--hidden-size=16"])).unwrap()
}

fn point(numbers: &[f64]) -> Vector {
    Vector::from_column_slice(numbers)
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Sets a parameter of the policy.
fn set(gps: &Gps, name: &str, numbers: &[f32]) {
    let (_, var) = gps.parameters.named_vars().into_iter().find(|(of, _)| of == name).unwrap();
    var.set(&Tensor::new(numbers, &Device::Cpu).unwrap()).unwrap();
}

/// What the policy does from x on, without improvement: no divergence is below 0.
fn policys(gps: &mut Gps, x: &[f64], steps: usize) -> Controller {
    gps.control(point(x), steps, steps, -1.0).unwrap()
}

const POLICY: Layers = &[
    ("hidden1", &["policy/fc1"]),
    ("hidden2", &["policy/fc2"]),
    ("output", &["policy/fc3"]),
    ("log_std", &["policy/log_std"]),
];

/// Supervision, and what the policy thinks of controls. Each step of a recorded controller has a weight ν, and
/// there are dual steps of ν and of multipliers of the means: the file's form of the algorithm has neither, so
/// its KL is weighted here.
#[test]
fn recorded_update() {
    let mut recording = Recording::open("guided_policy_search");
    let (num_samples, steps, n, m) = (4, 5, 3, 2);
    let actions = Space::uniform(m, f32::NEG_INFINITY, f32::INFINITY);
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, Log::default());
    let flag = format!("--learning-rate={}", recording.number("policy_lr"));
    let mut gps = Gps::new(Box::new(model), &args(&["--hidden-size=32", &flag])).unwrap();
    recording.set(&gps.parameters, POLICY);
    let weights = recording.floats("batch/weights");

    // Controllers around x̂ = 0, where û is the offset.
    let of = |name: &str, rows, columns| -> Vec<Matrix> {
        let numbers: Vec<f64> = recording.floats(name).into_iter().map(f64::from).collect();
        numbers.chunks(rows * columns).map(|step| Matrix::from_row_slice(rows, columns, step)).collect()
    };
    let (gains, offsets, covariances) =
        (of("batch/gains", m, n), of("batch/offsets", m, 1), of("batch/covariances", m, m));
    let (states, controls) = (of("batch/states", n, 1), of("batch/controls", m, 1));
    let (mut samples, mut of_rows) = (Samples::<Vec<f32>>::default(), vec![]);
    for (row, x) in states.iter().enumerate() {
        let (i, t) = (row / (num_samples * steps), row % steps);
        let at = i * steps..(i + 1) * steps;
        let controller = Controller {
            states: vec![Vector::zeros(n); steps + 1],
            controls: offsets[at.clone()].iter().map(|k| k.column(0).into_owned()).collect(),
            gains: gains[at].to_vec(),
            ..Controller::default()
        };
        let covariance = &covariances[i * steps + t];
        samples.means.extend(controller.mean(t, &x.column(0).into_owned()).iter().map(|&u| u as f32));
        samples.precisions.extend(covariance.clone().try_inverse().unwrap().iter().map(|&p| p as f32));
        samples.log_dets.push(covariance.determinant().ln() as f32);
        of_rows.push(weights[i * steps + t]);
    }
    recording.close("expected/controller_means", samples.means.clone());
    let rows = states.len();
    let observations = recording.tensor("batch/states").reshape((rows, n)).unwrap();
    let batch = Samples {
        observations: observations.clone(),
        means: Tensor::from_vec(samples.means, (rows, m), &Device::Cpu).unwrap(),
        precisions: Tensor::from_vec(samples.precisions, (rows, m, m), &Device::Cpu).unwrap(),
        log_dets: Tensor::new(samples.log_dets, &Device::Cpu).unwrap(),
    };
    let means = gps.policy.forward(&observations).unwrap();
    recording.close("expected/policy_means", &means);
    recording.close("expected/kl", gps.kl(&batch).unwrap());
    // ln π = −½ eᵀ Σ⁻¹ e + ½ ln det Σ⁻¹ − ½ m ln 2π, which control prices as c − λ ln π.
    let precision = gps.policy_precision().unwrap();
    let policy_means = floats(&means);
    let log_probs = controls.iter().zip(policy_means.chunks(m)).map(|(u, mean)| {
        let e = u.column(0) - vector(mean);
        (0.5 * (precision.determinant().ln() - e.dot(&(&precision * &e)) - m as f64 * TAU.ln())) as f32
    });
    let log_probs: Vec<f32> = log_probs.collect();
    recording.close("expected/log_probs", log_probs.clone());
    let lambda = recording.number("lambda") as f32;
    let costs = recording.floats("batch/costs").into_iter().zip(log_probs);
    let modified: Vec<f32> = costs.map(|(cost, log_prob)| cost - lambda * log_prob).collect();
    recording.close("expected/modified_costs", modified);

    let weights = Tensor::new(of_rows, &Device::Cpu).unwrap();
    let mut losses = Vec::new();
    for update in 0..10 {
        let loss = (&weights * gps.kl(&batch).unwrap()).unwrap().mean_all().unwrap();
        gps.optimizer.backward_step(&loss).unwrap();
        losses.push(loss.to_scalar::<f32>().unwrap());
        if update == 0 {
            recording.close("expected/loss/policy", losses[0]);
            let gradients = first_gradients(&gps.optimizer);
            recording.gradients("expected/gradients", &gps.parameters, POLICY, gradients);
            let rate = recording.number("policy_lr");
            recording.parameters("expected/parameters", &gps.parameters, POLICY, rate);
        }
    }
    recording.losses("expected/losses_over_updates", &losses);
    recording.losses("expected/losses_over_updates_policy", &losses);
    recording.finish();
}

/// Without weights the loss is the mean of KL, and the step is Adam's on it.
#[test]
fn an_update_is_a_step_down_the_mean_divergence() {
    let [mut ours, mut other] = [gps("Pendulum-v1"), gps("Pendulum-v1")];
    let p = policys(&mut ours, &[1.0, 0.0], 20);
    let mut samples = Samples::default();
    ours.sample(&p, &mut samples, &mut rng(1, 0)).unwrap();
    samples.means.iter_mut().for_each(|mean| *mean += 0.5);
    let batch = samples.draw(64, &mut rng(2, 0), &Device::Cpu).unwrap();
    let loss = other.kl(&batch).unwrap().mean_all().unwrap();
    other.optimizer.backward_step(&loss).unwrap();
    assert_eq!(ours.update_policy(&batch).unwrap(), loss.to_scalar::<f32>().unwrap());
    assert_eq!(ours.parameters.values().unwrap(), other.parameters.values().unwrap());
    assert!(ours.kl(&batch).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap() < floats(&loss)[0]);
}

#[test]
fn derivatives_by_differences_are_the_pendulums() {
    let mut gps = gps("Pendulum-v1");
    let cases = [
        ([0.3, -1.0], 0.7),
        ([-2.0, 5.0], 2.0),  // at the bound of the control
        ([-9.0, 0.0], 0.1),  // more than a turn away
        ([-1.0, 8.0], 1.0),  // at the bound of the velocity, which sinks
        ([1.0, -8.0], -2.0), // at both
    ];
    for (x, u) in cases {
        let (f_z, c_z, c_zz) = gps.differentiate(&point(&x), &point(&[u])).unwrap();
        // θ̇' = θ̇ + 0.05 (15 sin θ + 3 u),   θ' = θ + 0.05 θ̇'
        let by_angle = 0.75 * x[0].cos();
        let expected = [1.0 + 0.05 * by_angle, 0.05, 0.0075, by_angle, 1.0, 0.15];
        assert_abs_diff_eq!(f_z, Matrix::from_row_slice(2, 3, &expected), epsilon = 5e-5);
        let angle = (x[0] + PI).rem_euclid(2.0 * PI) - PI;
        assert_abs_diff_eq!(c_z, point(&[2.0 * angle, 0.2 * x[1], 0.002 * u]), epsilon = 1e-5);
        let expected = Matrix::from_diagonal(&point(&[2.0, 0.2, 0.002]));
        assert_abs_diff_eq!(c_zz, expected, epsilon = 1e-4);
    }
    // Where the angle wraps, the cost has no negative curvature.
    let (_, _, c_zz) = gps.differentiate(&point(&[-PI - 0.004, 0.0]), &point(&[0.0])).unwrap();
    assert_abs_diff_eq!(c_zz, Matrix::from_diagonal(&point(&[0.0, 0.2, 0.002])), epsilon = 1e-4);
}

#[test]
fn the_policy_is_linear_where_it_is_followed() {
    let mut gps = gps("Pendulum-v1");
    let states = [point(&[2.0, -1.0]), point(&[-0.4, 8.0])];
    let linear = gps.linearise_policy(&states).unwrap();
    for (x, (mean, slope)) in states.iter().zip(linear) {
        // Towards 0, where it was looked at: half of the way to it is nearer than any edge of its units.
        let moved = x - 0.5 * STEP * x.map(f64::signum);
        let observation = gps.observe(&moved).unwrap();
        let there = vector(&gps.act_greedily(&observation).unwrap());
        assert_abs_diff_eq!(there, mean + slope * (moved - x), epsilon = 1e-4);
        assert!(there[0].abs() < 2.0);
    }
    // At a bound it does not change.
    set(&gps, "output.bias", &[9.0]);
    for (mean, slope) in gps.linearise_policy(&states).unwrap() {
        assert_eq!((mean, slope), (point(&[2.0]), Matrix::zeros(1, 2)));
    }
}

/// What leaving the policy costs is KL's part of the means: where it costs more than all else, control is the policy.
#[test]
fn a_high_price_makes_the_policy_of_a_controller() {
    let mut gps = gps("Pendulum-v1");
    set(&gps, "log_std", &[-1.0]);
    let mut p = policys(&mut gps, &[2.0, 1.0], 12);
    let expected = gps.linearise_policy(&p.states[..12]).unwrap();
    for control in &mut p.controls {
        control[0] = (control[0] + 0.7).clamp(-2.0, 2.0); // e is not 0
    }
    let found = gps.backward(&p, 1e8).unwrap();
    for (t, (mean, slope)) in expected.into_iter().enumerate() {
        assert_abs_diff_eq!(found.controls[t], mean, epsilon = 1e-4);
        assert_abs_diff_eq!(found.gains[t], slope, epsilon = 1e-4);
        assert_abs_diff_eq!(found.precisions[t][(0, 0)], 2.0_f64.exp(), epsilon = 1e-4); // Σ⁻¹
    }
    // At a bound the policy does not change with states.
    set(&gps, "output.bias", &[-9.0]);
    let found = gps.backward(&p, 1e8).unwrap();
    assert!(found.controls.iter().all(|u| (u[0] + 2.0).abs() < 1e-6));
    assert!(found.gains.iter().all(|gain| gain.amax() < 1e-6));
}

#[test]
fn a_linear_systems_controller_is_that_of_the_riccati_equation() {
    let mut gps = gps("DoubleIntegrator-v0");
    let x = point(&[1.5, -0.5]);
    let p = gps.control(x.clone(), 16, 50, f64::INFINITY).unwrap();
    assert_eq!((p.states.len(), p.controls.len(), p.gains.len(), p.precisions.len()), (51, 50, 50, 50));
    let gain = Matrix::from_row_slice(1, 2, &[-0.4220824404, -1.2439288539]);
    assert_abs_diff_eq!(p.gains[0], gain, epsilon = 1e-4);
    let riccati = Matrix::from_row_slice(2, 2, &[2.9471229667, 2.3692054071, 2.3692054071, 4.6131342610]);
    assert_abs_diff_eq!(p.cost, x.dot(&(riccati * &x)), epsilon = 2e-2);
    // C⁻¹ = Q_uu / (T + η): c = … + u², and at the last step nothing else. No deviation is below the least.
    let last = |found: Controller| found.precisions[49][(0, 0)];
    assert_abs_diff_eq!(
        last(gps.backward(&p, 1.0).unwrap()),
        3.0 / (gps.args.temperature + 1.0),
        epsilon = 1e-4
    );
    assert_abs_diff_eq!(last(gps.backward(&p, 1e-5).unwrap()), gps.args.least_std.powi(-2), epsilon = 1e-9);
    // With costs that are exactly quadratic and dynamics that are linear, one step back and forth is the optimum.
    let start = policys(&mut gps, &[1.5, -0.5], 50);
    let found = gps.backward(&start, 1e-5).unwrap();
    assert_abs_diff_eq!(gps.forward(&found).unwrap().cost, x.dot(&(riccati_of() * &x)), epsilon = 1e-3);
}

fn riccati_of() -> Matrix {
    Matrix::from_row_slice(2, 2, &[2.9471229667, 2.3692054071, 2.3692054071, 4.6131342610])
}

#[test]
fn the_pendulum_swings_up_from_rest() {
    let mut gps = gps("Pendulum-v1");
    let p = gps.control(point(&[PI, 0.0]), gps.args.growth, 200, f64::INFINITY).unwrap();
    assert!(p.cost < 400.0, "{}", p.cost); // the optimum by dynamic programming on a grid: 300.7
    assert!(p.controls.iter().all(|u| u[0].abs() <= 2.0));
    let last = &p.states[200];
    assert!((last[0].cos() - 1.0).abs() < 1e-3 && last[1].abs() < 1e-2, "{last}");
    // Controls at a bound have no feedback, others do.
    let found = gps.backward(&p, 1e-5).unwrap();
    let is_bound: Vec<bool> = found.controls.iter().map(|u| u[0].abs() == 2.0).collect();
    assert!(is_bound.contains(&true) && is_bound.contains(&false));
    assert!(is_bound.iter().zip(&found.gains).all(|(is_bound, gain)| *is_bound == (gain.amax() == 0.0)));
}

/// KL(p ‖ π_θ) of Gaussians in three dimensions, the mean over steps.
#[test]
fn the_divergence_from_the_policy_is_that_of_gaussians() {
    let mut gps = gps("LaplacianSystem-v0-noiseless");
    let mut p = policys(&mut gps, &[0.3, -0.2, 0.1], 2);
    assert_abs_diff_eq!(gps.divergence(&p).unwrap(), 0.0, epsilon = 1e-6);
    set(&gps, "log_std", &[0.0, 0.5 * 2.0_f32.ln(), 0.0]); // Σ = diag (1, 2, 1)
    let covariance = Matrix::from_row_slice(3, 3, &[0.5, 0.1, 0.0, 0.1, 0.4, 0.0, 0.0, 0.0, 1.0]);
    p.precisions[1] = covariance.clone().try_inverse().unwrap();
    p.controls[1] += point(&[0.5, -1.0, 0.0]);
    // tr(Σ⁻¹ C) = 0.5 + 0.2 + 1, eᵀ Σ⁻¹ e = 0.25 + 0.5, det Σ⁻¹ C = 0.19 / 2
    let second = 0.5 * (1.7 + 0.75 - (0.19_f64 / 2.0).ln() - 3.0);
    // Of the first step C = I: tr = 2.5, det = ½.
    let first = 0.5 * (2.5 - 0.5_f64.ln() - 3.0);
    assert_abs_diff_eq!(gps.divergence(&p).unwrap(), (first + second) / 2.0, epsilon = 1e-5);
}

/// However little may change, an update keeps the bound, and the cost falls; more may change at a lower cost.
#[test]
fn the_bound_bounds() {
    let mut gps = gps("Pendulum-v1");
    let mut held = 0;
    for x in [[2.5, 0.3], [-1.0, 0.5], [0.4, -0.8]] {
        let start = policys(&mut gps, &x, 60);
        assert_abs_diff_eq!(gps.divergence(&start).unwrap(), 0.0, epsilon = 1e-6);
        let free = gps.improve(start.clone(), f64::INFINITY).unwrap();
        let far = gps.divergence(&free).unwrap();
        for bound in [3.0, 1.0, 0.3] {
            let p = gps.improve(start.clone(), bound).unwrap();
            assert!(gps.divergence(&p).unwrap() <= bound && p.cost <= start.cost);
            held += usize::from(far > bound && p.cost < start.cost && p.cost > free.cost);
        }
    }
    assert!(held > 2, "{held}");
}

#[test]
fn samples_are_what_happened() {
    let mut gps = gps("Pendulum-v1");
    let firsts = [[0.5, 0.2], [-1.0, 0.1]];
    let (mut samples, mut generator, mut expected_generator) = (Samples::default(), rng(7, 0), rng(7, 0));
    for (i, first) in firsts.iter().enumerate() {
        let p = gps.control(point(first), 30, 30, f64::INFINITY).unwrap();
        gps.sample(&p, &mut samples, &mut generator).unwrap();
        let mut env = envs::make("Pendulum-v1").unwrap();
        env.set_state(&State(vec![first[0], first[1], 0.0])).unwrap();
        for t in 0..30 {
            let (row, x) = (30 * i + t, state_of(&env.state().unwrap()));
            let mut observation = [0.0; 3];
            env.observe(&mut observation);
            assert_eq!(samples.observations[3 * row..3 * row + 3], observation);
            let mean = p.mean(t, &x)[0].clamp(-2.0, 2.0);
            assert_abs_diff_eq!(f64::from(samples.means[row]), mean, epsilon = 1e-6);
            let precision = p.precisions[t][(0, 0)];
            assert_abs_diff_eq!(samples.precisions[row], precision as f32);
            assert_abs_diff_eq!(samples.log_dets[row], -precision.ln() as f32, epsilon = 1e-6);
            let noise: f64 = expected_generator.sample(StandardNormal);
            let action = [(mean + noise / precision.sqrt()).clamp(-2.0, 2.0) as f32];
            env.step(Action::Continuous(&action), &mut rng(0, 0)).unwrap();
        }
    }
    assert_eq!(samples.log_dets.len(), 60);
}

/// Noise in three dimensions has the controller's covariance, off the diagonal too.
#[test]
fn noise_has_the_controllers_covariance() {
    let mut gps = gps("LaplacianSystem-v0-noiseless");
    let precision = Matrix::from_row_slice(3, 3, &[2.0, 1.2, 0.3, 1.2, 1.5, 0.0, 0.3, 0.0, 1.0]);
    let steps = 10_000;
    let controller = Controller {
        states: vec![Vector::zeros(3); steps + 1],
        controls: vec![Vector::zeros(3); steps],
        gains: vec![Matrix::from_diagonal(&point(&[-1.0; 3])); steps],
        precisions: vec![precision.clone(); steps],
        ..Controller::default()
    };
    let mut samples = Samples::default();
    gps.sample(&controller, &mut samples, &mut rng(3, 0)).unwrap();
    // x' = A x + u with u = −x + noise: the noise is what x' has beside (A − I) x.
    let x: Vec<Vector> = samples.observations.chunks(3).map(vector).collect();
    let a = Matrix::from_row_slice(3, 3, &[0.01, 0.01, 0.0, 0.01, 0.01, 0.01, 0.0, 0.01, 0.01]);
    let noise = x.windows(2).map(|pair| &pair[1] - &a * &pair[0]);
    let covariance = noise.fold(Matrix::zeros(3, 3), |sum, z| sum + &z * z.transpose()) / steps as f64;
    assert_abs_diff_eq!(covariance, precision.try_inverse().unwrap(), epsilon = 0.06);
}

/// What was stored in a row is drawn as a row, and each row is drawn.
#[test]
fn rows_are_drawn_whole() {
    let numbers = |width: usize| -> Vec<f32> {
        (0..5).flat_map(|row| (0..width).map(move |i| (10 * row + i) as f32)).collect()
    };
    let samples =
        Samples { observations: numbers(3), means: numbers(2), precisions: numbers(4), log_dets: numbers(1) };
    let batch = samples.draw(64, &mut rng(1, 0), &Device::Cpu).unwrap();
    let rows = floats(&batch.log_dets);
    let row = |width: usize| -> Vec<f32> {
        rows.iter().flat_map(|row| (0..width).map(move |i| row + i as f32)).collect()
    };
    assert_eq!((batch.observations.dims(), floats(&batch.observations)), (&[64, 3][..], row(3)));
    assert_eq!((batch.means.dims(), floats(&batch.means)), (&[64, 2][..], row(2)));
    assert_eq!((batch.precisions.dims(), floats(&batch.precisions)), (&[64, 2, 2][..], row(4)));
    assert!((0..5).all(|row| rows.contains(&(10.0 * row as f32))), "{rows:?}");
}

#[test]
fn supervision_makes_the_policy_the_controller() {
    let mut gps = gps("DoubleIntegrator-v0");
    let (mut samples, mut generator) = (Samples::default(), rng(2, 0));
    let p = gps.control(point(&[1.0, 0.5]), 50, 50, f64::INFINITY).unwrap();
    gps.sample(&p, &mut samples, &mut generator).unwrap();
    let mut losses = Vec::new();
    for _ in 0..400 {
        let batch = samples.draw(32, &mut generator, &Device::Cpu).unwrap();
        losses.push(gps.update_policy(&batch).unwrap());
    }
    assert!(losses[399] < 0.25 * losses[0], "{} after {}", losses[399], losses[0]);
    // Actions are the means, within bounds.
    let pendulum = self::gps("Pendulum-v1");
    assert_eq!(pendulum.act_greedily(&[1.0, 0.0, 1e6]).unwrap()[0].abs(), 2.0);
    let seen = Tensor::new(&[[0.6_f32, 0.8, 0.1]], &Device::Cpu).unwrap();
    let mean = floats(&pendulum.policy.forward(&seen).unwrap());
    assert_eq!(pendulum.act_greedily(&[0.6, 0.8, 0.1]).unwrap(), mean);
}

#[test]
fn what_ends_by_itself_is_refused() {
    let actions = Space::uniform(1, -1.0, 1.0);
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, Log::default());
    let mut gps = Gps::new(Box::new(TimeLimit::new(model)), &args(&[])).unwrap();
    let mut at = |step: f64| gps.step(&point(&[0.0, step]), &point(&[0.25]));
    assert_eq!(at(1.0).unwrap(), (point(&[0.0, 2.0]), -2.0));
    assert!(at(2.0).unwrap_err().to_string().contains("end episodes"));
}

/// A round that is planned and two in which the bound is in the way.
#[test]
fn pinned_run() {
    let flags = [
        "--num-controllers=2",
        "--total-timesteps=1200",
        "--updates=60",
        "--kl-bound=0.5",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "pendulum", &flags, train);
}

/// The other flags, on a linear system.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=DoubleIntegrator-v0",
        "--num-controllers=2",
        "--total-timesteps=300",
        "--updates=40",
        "--learning-rate=0.01",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "linear", &flags, train);
}
