//! The ensemble's update and its particles against PyTorch's, CEM against a recording, uncertainty against
//! what is known of one-dimensional data, the data against what happened, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{self, Action, Space, State, rng};
use common::plot::{Chart, Curve, Reference};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["pets"].iter().chain(flags).map(Into::into)).unwrap()
}

fn pets(observation_dim: usize, low: &[f32], high: &[f32], flags: &[&str]) -> Pets {
    let spec = Spec {
        id: "Test".into(),
        observation_space: Space::uniform(observation_dim, f32::NEG_INFINITY, f32::INFINITY),
        action_space: Space::bounded(low, high),
        max_episode_steps: None,
        reward_threshold: None,
    };
    Pets::new(&spec, &args(flags), &mut rng(1, 0)).unwrap()
}

/// One observed number and one action from −1 to 3; two members, by which each step adds 1 and 2.
fn drifting(flags: &[&str]) -> Pets {
    let pets = pets(1, &[-1.0], &[3.0], &[&["--ensemble-size=2"], flags].concat());
    for (name, var) in pets.parameters.named_vars() {
        let value: &[f32] = match name.as_str() {
            "model_0.output.bias" => &[1.0, 0.0],
            "model_1.output.bias" => &[2.0, 0.0],
            _ => &vec![0.0; var.elem_count()],
        };
        var.set(&Tensor::from_slice(value, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    pets
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const MODEL: Layers = &[
    ("model_0.hidden1", &["model_0/fc1"]),
    ("model_0.hidden2", &["model_0/fc2"]),
    ("model_0.output", &["model_0/mean", "model_0/log_variance"]),
    ("model_1.hidden1", &["model_1/fc1"]),
    ("model_1.hidden2", &["model_1/fc2"]),
    ("model_1.output", &["model_1/mean", "model_1/log_variance"]),
    ("model_2.hidden1", &["model_2/fc1"]),
    ("model_2.hidden2", &["model_2/fc2"]),
    ("model_2.output", &["model_2/mean", "model_2/log_variance"]),
    ("model_3.hidden1", &["model_3/fc1"]),
    ("model_3.hidden2", &["model_3/fc2"]),
    ("model_3.output", &["model_3/mean", "model_3/log_variance"]),
    ("model_4.hidden1", &["model_4/fc1"]),
    ("model_4.hidden2", &["model_4/fc2"]),
    ("model_4.output", &["model_4/mean", "model_4/log_variance"]),
    ("max_log_variance", &["bounds/max_log_variance"]),
    ("min_log_variance", &["bounds/min_log_variance"]),
];

/// An ensemble with the recording's sizes, hyper-parameters and parameters, its batch, to which the
/// statistics are fitted, and each member's rows of it.
fn recorded(recording: &Recording, flags: &[&str]) -> (Pets, (Tensor, Tensor), Vec<u32>) {
    let number = |name: &str| recording.number(name);
    let own = [
        "--hidden-size=32".to_string(),
        "--population=4".into(),
        format!("--ensemble-size={}", number("members")),
        format!("--learning-rate={}", number("model_lr")),
        format!("--particles={}", number("particles")),
        format!("--horizon={}", number("horizon")),
    ];
    let flags: Vec<&str> = own.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    let mut pets = pets(3, &[-1.0, -1.0], &[1.0, 1.0], &flags);
    // −|s'|² − 0.1 |a|²
    pets.reward = |_, action, next| {
        -next.iter().map(|x| x * x).sum::<f32>() - 0.1 * action.iter().map(|x| x * x).sum::<f32>()
    };
    pets.terminated = |_| false;
    recording.set(&pets.parameters, MODEL);
    let data = Dataset {
        len: 32,
        observations: recording.floats("batch/observations"),
        actions: recording.floats("batch/actions"),
        next_observations: recording.floats("batch/next_observations"),
    };
    let batch = data.inputs_and_differences(&Device::Cpu).unwrap();
    pets.update_statistics(&batch.0).unwrap();
    (pets, batch, recording.integers("batch/bootstrap_indices"))
}

fn one_update(name: &str, flags: &[&str]) {
    let mut recording = Recording::open(name);
    let (mut pets, (inputs, differences), rows) = recorded(&recording, flags);
    recording.close("expected/input_mean", &pets.input_mean);
    recording.close("expected/input_std", &pets.input_std);
    recording.close("expected/targets", &differences);

    // Every member on its own rows, all at once.
    let all_rows = Tensor::new(&rows[..], &Device::Cpu).unwrap();
    let of_members = inputs.index_select(&all_rows, 0).unwrap();
    let members: Vec<usize> = (0..5).flat_map(|b| [b; 32]).collect();
    let (means, log_variances) = pets.predict(&of_members, &members).unwrap();
    recording.close("expected/means", &means);
    recording.close("expected/log_variances", &log_variances);

    recording.close("expected/loss/model", pets.update_model(&inputs, &differences, &rows).unwrap());
    let gradients = first_gradients(&pets.optimizer);
    recording.gradients("expected/gradients", &pets.parameters, MODEL, gradients);
    let step = recording.number("model_lr");
    recording.parameters("expected/parameters", &pets.parameters, MODEL, step);
    recording.close("expected/input_mean", &pets.input_mean);
    recording.finish();
}

#[test]
fn recorded_update() {
    one_update("pets", &[]);
    one_update("pets__silu", &["--silu=true"]);
}

#[test]
fn recorded_update_ten_times() {
    for (name, flags) in [("pets", [].as_slice()), ("pets__silu", &["--silu=true"])] {
        let mut recording = Recording::open(name);
        let (mut pets, (inputs, differences), rows) = recorded(&recording, flags);
        let losses: Vec<f32> =
            (0..10).map(|_| pets.update_model(&inputs, &differences, &rows).unwrap()).collect();
        recording.losses("expected/losses_over_updates", &losses);
        recording.losses("expected/losses_over_updates_model", &losses);
        recording.finish();
    }
}

#[test]
fn recorded_update_is_planned_with() {
    for (name, silu) in [("pets", "--silu=false"), ("pets__silu", "--silu=true")] {
        for (flag, expected) in [("--ts-infinity=false", "ts1"), ("--ts-infinity=true", "ts_infinity")] {
            let mut recording = Recording::open(name);
            let (pets, _, _) = recorded(&recording, &[silu, flag]);
            let members = recording.integers("noise/member_indices"); // [horizon, population, particles]
            let members: Vec<usize> = members.into_iter().map(|b| b as usize).collect();
            let noise = recording.tensor("noise/normal_transitions").reshape((5, 24, 3)).unwrap();
            let start = recording.floats("batch/planning/observation");
            let plans = recording.floats("batch/planning/action_sequences");
            let returns = pets.returns(&start, &plans, &members, &noise).unwrap();
            recording.close(&format!("expected/{expected}/returns"), &returns);
            recording.finish();
        }
    }
}

/// One round of CEM: samples, and the distribution that their elites leave.
#[test]
fn recorded_update_of_the_distribution() {
    let mut recording = Recording::open("cem");
    let bounds = |name| recording.numbers(name).into_iter().map(|bound| bound as f32).collect::<Vec<_>>();
    let flags = [
        format!("--elites={}", recording.number("elites")),
        format!("--smoothing={}", recording.number("momentum")),
    ];
    let pets = pets(3, &bounds("low"), &bounds("high"), &[&flags[0], &flags[1]]);
    // From the actions' units to those of their bounds.
    let scale = |i: usize| pets.action_scale[i % 2];
    let mean = recording.floats("batch/mean").into_iter().enumerate();
    let std = recording.floats("batch/std").into_iter().enumerate();
    let mut cem = Cem {
        mean: mean.map(|(i, mu)| (mu - pets.action_bias[i % 2]) / scale(i)).collect(),
        std: std.map(|(i, sigma)| sigma / scale(i)).collect(),
    };
    let plans = cem.sample(&recording.floats("noise/normal_samples"));
    recording.close("expected/samples", pets.scaled(plans.iter().copied()));
    cem.update(&plans, &recording.floats("batch/returns"), &pets.args);
    recording.close("expected/mean", pets.scaled(cem.mean.iter().copied()));
    // As in PETS' program, variances are mixed, not standard deviations.
    let std: Vec<f32> = cem.std.iter().enumerate().map(|(i, sigma)| sigma * scale(i)).collect();
    recording.close("expected/std_from_variances", &std);
    recording.finish();
}

#[test]
fn the_next_plan_begins_with_the_rest_of_this_one() {
    let mut cem = Cem::default();
    cem.begin(3, 2);
    assert_eq!((&cem.mean[..], &cem.std[..]), (&[0.0; 6][..], &[0.5; 6][..]));
    cem = Cem { mean: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6], std: vec![0.01; 6] };
    cem.begin(3, 2);
    assert_eq!((&cem.mean[..], &cem.std[..]), (&[0.3, 0.4, 0.5, 0.6, 0.0, 0.0][..], &[0.5; 6][..]));
    cem.mean = vec![0.0, 0.5, -0.5, 0.0, 0.0, 0.0];
    assert_eq!(cem.sample(&[1.0, 2.0, -2.0, 0.0, 0.5, -1.0]), [0.5, 1.0, -1.0, 0.0, 0.25, -0.5]);
}

#[test]
fn plans_close_in_on_the_best_actions() {
    // The best action is 2 in a space from −1 to 3, and that of another state is −0.5.
    let flags = ["--horizon=2", "--population=50", "--elites=5", "--iterations=8", "--particles=1"];
    let mut pets = drifting(&flags);
    pets.reward = |s, a, _| if s[0] < 50.0 { -(a[0] - 2.0).powi(2) } else { -(a[0] + 0.5).powi(2) };
    pets.terminated = |_| false;
    let mut plans = vec![Cem::default(), Cem::default()];
    let actions = pets.act(&[0.0, 100.0], &mut plans, &mut rng(1, 0)).unwrap();
    assert_abs_diff_eq!(actions[0], 2.0, epsilon = 0.02);
    assert_abs_diff_eq!(actions[1], -0.5, epsilon = 0.02);
    assert_abs_diff_eq!(plans[0].mean[1], 0.5, epsilon = 0.02); // of the middle 1 and the half width 2
}

#[test]
fn a_plan_is_worth_the_mean_of_its_particles_until_they_end() {
    // Three particles of one plan over two steps; members 0 and 1 add 1 and 2.
    let members = [0, 1, 1, 1, 0, 1];
    let noise = Tensor::zeros((2, 3, 1), DType::F32, &Device::Cpu).unwrap();
    for (flag, expected) in [
        // s: 0 1 3, 0 2 3, 0 2 4: the rewards 100 s' + 10 a + s of both steps, and beyond 1.5 none follow.
        ("--ts-infinity=false", [110.0 + 321.0, 210.0, 210.0]),
        // s: 0 1 2, 0 2 4, 0 2 4
        ("--ts-infinity=true", [110.0 + 221.0, 210.0, 210.0]),
    ] {
        let flags = ["--horizon=2", "--population=1", "--particles=3", flag];
        let mut pets = drifting(&flags);
        pets.reward = |s, a, next| s[0] + 10.0 * a[0] + 100.0 * next[0];
        pets.terminated = |next| next[0] > 1.5;
        let returns = pets.returns(&[0.0], &[1.0, 2.0], &members, &noise).unwrap();
        assert_abs_diff_eq!(returns[0], expected.iter().sum::<f32>() / 3.0, epsilon = 1e-3);
    }
}

#[test]
fn particles_spread_as_the_model_says() {
    // v = 0 of all outputs, but for its bounds, which are far away: σ = 1.
    let mut pets = drifting(&["--horizon=1", "--population=1", "--particles=4"]);
    for (name, value) in [("max_log_variance", 20.0_f32), ("min_log_variance", -20.0)] {
        let vars = pets.parameters.named_vars();
        let (_, var) = vars.iter().find(|(of, _)| of == name).unwrap();
        var.set(&Tensor::full(value, (1, 1), &Device::Cpu).unwrap()).unwrap();
    }
    pets.reward = |_, _, next| next[0].powi(2);
    pets.terminated = |_| false;
    let noise = Tensor::new(&[[[0.5_f32], [-1.0], [2.0], [0.0]]], &Device::Cpu).unwrap();
    let returns = pets.returns(&[0.0], &[0.0], &[0, 0, 1, 1], &noise).unwrap();
    assert_abs_diff_eq!(returns[0], (1.5_f32.powi(2) + 0.0 + 16.0 + 4.0) / 4.0, epsilon = 1e-4);
}

#[test]
fn log_variances_stay_within_their_bounds() {
    let pets = drifting(&[]);
    let bounds = [("max_log_variance", 0.5_f32), ("min_log_variance", -10.0)];
    for (name, var) in pets.parameters.named_vars() {
        if let Some((_, value)) = bounds.iter().find(|(of, _)| *of == name) {
            var.set(&Tensor::full(*value, (1, 1), &Device::Cpu).unwrap()).unwrap();
        }
    }
    let outputs = Tensor::new(&[[7.0_f32, 1e4], [7.0, -1e4], [7.0, -5.0]], &Device::Cpu).unwrap();
    let (mean, v) = pets.gaussian(&outputs).unwrap();
    let v = floats(&v);
    assert_eq!(floats(&mean), [7.0; 3]);
    assert_abs_diff_eq!(v[0], 0.5, epsilon = 1e-3);
    assert_abs_diff_eq!(v[1], -10.0, epsilon = 1e-3);
    assert_abs_diff_eq!(v[2], -5.0, epsilon = 0.02);
}

#[test]
fn each_row_is_predicted_by_its_member() {
    let pets = pets(2, &[-1.0], &[1.0], &["--hidden-size=8"]);
    let x = Init::Randn { mean: 0.0, stdev: 1.0 }.tensor((7, 3), &mut rng(1, 0), &Device::Cpu).unwrap();
    let members = [4, 0, 2, 0, 4, 4, 1]; // none asks the fourth
    let (means, log_variances) = pets.predict(&x, &members).unwrap();
    for (row, b) in members.into_iter().enumerate() {
        let outputs = pets.members[b].forward(&x.narrow(0, row, 1).unwrap(), false).unwrap();
        let (mean, v) = pets.gaussian(&outputs).unwrap();
        let close = |all: &Tensor, own: &Tensor| {
            for (a, b) in floats(&all.get(row).unwrap()).iter().zip(floats(own)) {
                assert_abs_diff_eq!(*a, b, epsilon = 1e-6);
            }
        };
        close(&means, &mean);
        close(&log_variances, &v);
    }
}

#[test]
fn the_planner_knows_the_environments_own_functions() {
    let mut env = envs::make("ContinuousCartPole-v0").unwrap();
    let pets = Pets::new(env.spec(), &args(&[]), &mut rng(1, 0)).unwrap();
    let mut rng = rng(1, 0);
    let (mut observation, mut next, mut ends) = (vec![0.0; 4], vec![0.0; 4], 0);
    for _ in 0..200 {
        let mut state: Vec<f64> = [2.5, 1.0, 0.25, 2.0].map(|x| x * rng.random_range(-1.0..1.0)).to_vec();
        state.push(0.0); // the time limit's count
        env.set_state(&State(state)).unwrap();
        env.observe(&mut observation);
        let action = [rng.random_range(-1.0..1.0)];
        let step = env.step(Action::Continuous(&action), &mut rng).unwrap();
        env.observe(&mut next);
        assert_eq!((pets.terminated)(&next), step.terminated);
        // A planner gives nothing for a fall, for which the environment pays as for any step.
        let expected = if step.terminated { 0.0 } else { 1.0 };
        assert_eq!((pets.reward)(&observation, &action, &next), expected);
        ends += usize::from(step.terminated);
    }
    assert!((10..190).contains(&ends));
}

#[test]
fn the_dataset_holds_what_happened() {
    let (mut envs, log) = scripted(1, View::Vector, Space::bounded(&[-1.0], &[3.0]), SCRIPT);
    let flags = ["--hidden-size=8", "--horizon=3", "--population=4", "--elites=2"];
    let mut rng = rng(1, 0);
    let pets = Pets::new(envs.spec(), &args(&flags), &mut rng).unwrap();
    let (mut data, mut plans) = (Dataset::default(), vec![Cem::default()]);
    for steps in 1..=20 {
        let observation = envs.observations().to_vec();
        let action = pets.act(&observation, &mut plans, &mut rng).unwrap();
        envs.step(&action).unwrap();
        data.store(&observation, &action, &envs);
        assert_eq!(data.len, steps);
    }
    let happened = log.transitions();
    assert!(happened.iter().any(|t| t.terminated && t.truncated));
    let (inputs, differences) = data.inputs_and_differences(&Device::Cpu).unwrap();
    for (row, t) in happened.iter().enumerate() {
        assert_eq!(data.observations[3 * row..3 * (row + 1)], t.observation, "{t:?}");
        assert_eq!(data.actions[row..row + 1], t.action, "{t:?}");
        assert_eq!(data.next_observations[3 * row..3 * (row + 1)], t.next_observation, "{t:?}");
        assert_eq!(floats(&inputs.get(row).unwrap()), [&t.observation[..], &t.action].concat());
        let difference = t.next_observation.iter().zip(&t.observation).map(|(next, s)| next - s);
        assert_eq!(floats(&differences.get(row).unwrap()), difference.collect::<Vec<_>>());
    }
}

/// y = sin 2x with noise of 0.05 where x is in (−2, −0.5), of 0.3 where it is in (1, 2.5), and no data
/// elsewhere, as the difference from an observation 0 by an action x; and an ensemble that is fitted to it.
fn one_dimensional() -> (Pets, Dataset) {
    let mut rng = rng(1, 0);
    let mut data = Dataset { len: 240, observations: vec![0.0; 240], ..Default::default() };
    for i in 0..240 {
        let (low, noise) = if i % 2 == 0 { (-2.0, 0.05) } else { (1.0, 0.3) };
        let x: f32 = rng.random_range(low..low + 1.5);
        let epsilon: f32 = StandardNormal.sample(&mut rng);
        data.actions.push(x);
        data.next_observations.push((2.0 * x).sin() + noise * epsilon);
    }
    let flags = ["--update-epochs=120"];
    let mut pets = pets(1, &[-5.0], &[5.0], &flags);
    pets.fit(&data, &mut rng).unwrap();
    (pets, data)
}

/// The ensemble's mean, and the aleatoric and epistemic standard deviations, at these x; and each member's
/// mean, `[ensemble_size, xs]`.
fn uncertainty(pets: &Pets, xs: &[f32]) -> (Vec<[f32; 3]>, Vec<Vec<f32>>) {
    let (members, n) = (pets.members.len(), xs.len());
    let inputs: Vec<f32> = xs.iter().flat_map(|&x| [0.0, x]).collect();
    let inputs = Tensor::from_vec(inputs.repeat(members), (members * n, 2), &Device::Cpu).unwrap();
    let of_rows: Vec<usize> = (0..members).flat_map(|b| vec![b; n]).collect();
    let (means, v) = pets.predict(&inputs, &of_rows).unwrap();
    let means: Vec<Vec<f32>> = floats(&means).chunks_exact(n).map(<[f32]>::to_vec).collect();
    let v: Vec<Vec<f32>> = floats(&v).chunks_exact(n).map(<[f32]>::to_vec).collect();
    let at = |i: usize| {
        let average = |of: &dyn Fn(usize) -> f32| (0..members).map(of).sum::<f32>() / members as f32;
        let mean = average(&|b| means[b][i]);
        let aleatoric = average(&|b| v[b][i].exp()).sqrt();
        [mean, aleatoric, average(&|b| (means[b][i] - mean).powi(2)).sqrt()]
    };
    ((0..n).map(at).collect(), means)
}

#[test]
fn the_ensemble_knows_what_it_does_not_know() {
    let (pets, _) = one_dimensional();
    // In the middle of the data the noise is found, and the members agree on the mean.
    let (found, _) = uncertainty(&pets, &[-1.25, 1.75, -4.5, 4.5]);
    for (i, x, noise) in [(0, -1.25_f32, 0.05), (1, 1.75, 0.3)] {
        let [mean, aleatoric, epistemic] = found[i];
        assert_abs_diff_eq!(mean, (2.0 * x).sin(), epsilon = 0.15);
        assert!(aleatoric > 0.6 * noise && aleatoric < 1.6 * noise, "{x}: {aleatoric}");
        assert!(epistemic < 0.1, "{x}: {epistemic}");
    }
    // Far from it they disagree.
    for [_, _, epistemic] in &found[2..] {
        assert!(*epistemic > 0.3, "{epistemic}");
    }
}

/// Draws `uncertainty.png` in the package's folder.
#[test]
#[ignore = "draws a picture: cargo test -p pets draws -- --ignored"]
fn draws_its_uncertainty() {
    let (pets, data) = one_dimensional();
    let xs: Vec<f32> = (0..=240).map(|i| -4.0 + i as f32 / 30.0).collect();
    let (found, _) = uncertainty(&pets, &xs);
    let wide = |label: &str, std: &dyn Fn(&[f32; 3]) -> f32| Curve {
        label: label.into(),
        xs: xs.iter().map(|&x| f64::from(x)).collect(),
        mean: found.iter().map(|of| f64::from(of[0])).collect(),
        low: found.iter().map(|of| f64::from(of[0] - 2.0 * std(of))).collect(),
        high: found.iter().map(|of| f64::from(of[0] + 2.0 * std(of))).collect(),
    };
    let curves = [
        wide("mean ± 2 σ, epistemic and aleatoric", &|[_, a, e]| (a * a + e * e).sqrt()),
        wide("mean ± 2 σ, aleatoric", &|[_, aleatoric, _]| *aleatoric),
    ];
    let points = data.actions.iter().zip(&data.next_observations);
    let mut points: Vec<(f64, f64)> = points.map(|(&x, &y)| (f64::from(x), f64::from(y))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let references = [
        Reference::Points { label: "data".into(), points },
        Reference::Points {
            label: "sin 2x".into(),
            points: xs.iter().step_by(6).map(|&x| (f64::from(x), f64::from((2.0 * x).sin()))).collect(),
        },
    ];
    let chart = Chart {
        title: "PETS: five networks fitted to two pieces of a noisy sine",
        x_label: "x",
        y_label: "y",
        y_range: Some((-4.0, 4.0)),
        curves: &curves,
        references: &references,
        ..Default::default()
    };
    chart.draw(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/uncertainty.png"))).unwrap();
}

/// Small, with three fits, over ends of episodes.
const SHORT: [&str; 8] = [
    "--total-timesteps=90",
    "--learning-starts=40",
    "--train-frequency=20",
    "--horizon=8",
    "--population=10",
    "--elites=3",
    "--hidden-size=16",
    "--eval-episodes=2",
];

#[test]
fn pinned_run() {
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &SHORT, train);
}

/// One member throughout a plan, other units, other sizes.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--ts-infinity=true",
        "--silu=true",
        "--ensemble-size=3",
        "--particles=4",
        "--iterations=3",
        "--smoothing=0.4",
        "--update-epochs=2",
        "--batch-size=24",
        "--learning-rate=0.001",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &[&SHORT[..], &flags].concat(), train);
}
