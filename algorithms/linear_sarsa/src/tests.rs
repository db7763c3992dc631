//! Updates against recordings, features by hand, what a step shows, means over many runs against the
//! book's, and pinned runs.

use super::*;
use common::envs::{self, rng};
use regression::{Recording, SCRIPT, View, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["linear_sarsa"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

/// Goes through a recording's forty steps and compares all of it.
fn replay(name: &str, flags: &[&str]) {
    let mut recording = Recording::open(name);
    let [gamma, lambda] = ["gamma", "lambda"].map(|name| format!("--{name}={}", recording.number(name)));
    let args = args(&[&[&*gamma, &*lambda], flags].concat());
    let doubles = |name: &str| -> Vec<f64> { recording.floats(name).into_iter().map(f64::from).collect() };
    let mut sarsa = Sarsa::new(288, recording.number("learning_rate"), &args);
    sarsa.w = doubles("parameters/q/weights.weight");
    let actives = |name: &str| -> Vec<Active> {
        let indices = recording.integers(name);
        indices.chunks_exact(8).map(|row| row.iter().map(|&i| (i as usize, 1.0)).collect()).collect()
    };
    let (active, next_active) = (actives("batch/active"), actives("batch/next_active"));
    let rewards = doubles("batch/rewards");
    let (terminated, truncated) = (recording.flags("batch/terminated"), recording.flags("batch/truncated"));
    let (mut td_errors, mut values, mut sums, mut traces) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for t in 0..rewards.len() {
        let step = Step {
            features: vec![active[t].clone()],
            action: 0,
            reward: rewards[t],
            next_features: vec![next_active[t].clone()],
            next_action: 0,
            terminated: terminated[t],
            truncated: truncated[t],
        };
        values.push(sarsa.value(&step));
        // The trace as it is before an episode's end takes it away.
        let mut copy = Sarsa { trace: sarsa.trace.clone(), ..Sarsa::new(0, sarsa.step_size, &args) };
        copy.update_trace(&step, if args.method == Method::TrueOnline { Trace::Dutch } else { args.trace });
        sums.push(copy.trace.iter().sum::<f64>());
        traces = copy.trace;
        td_errors.extend(sarsa.learn(step));
        let ended = terminated[t] || truncated[t];
        assert_eq!(sarsa.trace, if ended { vec![0.0; 288] } else { traces.clone() });
    }
    recording.close("expected/td_errors", &td_errors);
    recording.close("expected/action_values", &values);
    recording.close("expected/trace_sums", &sums);
    recording.close("expected/traces", &traces);
    recording.close("expected/parameters/q/weights.weight", &sarsa.w);
    recording.finish();
}

#[test]
fn recorded_update_with_accumulating_traces() {
    replay("linear_sarsa__accumulating", &["--trace=accumulating"]);
}

#[test]
fn recorded_update_with_replacing_traces() {
    replay("linear_sarsa__replacing", &[]);
}

#[test]
fn recorded_update_of_true_online_sarsa() {
    replay("linear_sarsa__dutch", &["--method=true-online"]);
}

/// A step between two states of two features each, of which the second action's are 2 and 3.
fn step(value: f64, action: usize, reward: f64, terminated: bool) -> Step {
    let features = || vec![vec![(0, value), (1, 1.0)], vec![(2, value), (3, 1.0)]];
    let (features, next_features) = (features(), features());
    Step { features, action, reward, next_features, next_action: 1, terminated, truncated: false }
}

#[test]
fn traces_are_the_formulas() {
    let after_two = |trace: &str| {
        let flags = ["--gamma=0.5", "--lambda=0.8", "--trace", trace];
        let mut sarsa = Sarsa::new(4, 0.1, &args(&flags));
        sarsa.learn(step(2.0, 0, 1.0, false));
        assert_eq!(sarsa.trace, [2.0, 1.0, 0.0, 0.0], "{trace}");
        sarsa.learn(step(2.0, 1, 1.0, false));
        sarsa.learn(step(0.0, 0, 1.0, false));
        sarsa.trace
    };
    // γλ = 0.4: after three steps the first counts 0.16, the second 0.4. A feature of 0 is not replaced.
    let close = |trace: &str, wanted: [f64; 4]| {
        for (found, wanted) in after_two(trace).into_iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-12, "{trace}: {found}, not {wanted}");
        }
    };
    close("accumulating", [0.32, 1.16, 0.8, 0.4]);
    close("replacing", [0.32, 1.0, 0.8, 0.4]);
    close("replacing-clearing", [0.0, 1.0, 0.0, 0.0]);
    // 1 − α γλ zᵀx with zᵀx = 0.4 (as before this step's decay)
    close("dutch", [0.32, 0.16 + 1.0 - 0.1 * 0.4 * 0.4, 0.8, 0.4]);
}

#[test]
fn n_step_returns_are_the_formulas() {
    let errors = |n: &str, terminated: bool| {
        let mut sarsa = Sarsa::new(4, 0.0, &args(&["--method=n-step", "--gamma=0.5", "--n-step", n]));
        sarsa.w = vec![0.0, 10.0, 0.0, 100.0];
        let mut errors = sarsa.learn(step(0.0, 0, 1.0, false));
        errors.extend(sarsa.learn(step(0.0, 1, 2.0, false)));
        errors.extend(sarsa.learn(step(0.0, 0, 4.0, terminated)));
        errors
    };
    // q is 10 for action 0 and 100 for action 1, which always follows.
    assert_eq!(errors("1", false), [1.0 + 50.0 - 10.0, 2.0 + 50.0 - 100.0, 4.0 + 50.0 - 10.0]);
    assert_eq!(errors("1", true), [41.0, -48.0, 4.0 - 10.0]);
    assert_eq!(errors("2", false), [1.0 + 1.0 + 25.0 - 10.0, 2.0 + 2.0 + 25.0 - 100.0]);
    assert_eq!(errors("2", true), [17.0, 2.0 + 2.0 - 100.0, 4.0 - 10.0]);
    assert_eq!(errors("5", true), [1.0 + 1.0 + 1.0 - 10.0, -96.0, -6.0]);
    // What moves are the weights of the oldest action's features.
    let mut sarsa = Sarsa::new(4, 0.25, &args(&["--method=n-step", "--n-step=2", "--gamma=1"]));
    sarsa.learn(step(2.0, 1, 1.0, false));
    assert_eq!(sarsa.learn(step(2.0, 0, 3.0, false)), [4.0]);
    assert_eq!(sarsa.w, [0.0, 0.0, 2.0, 1.0]);
}

fn mountain_car(flags: &[&str]) -> Features {
    Features::new(envs::make("MountainCarTextbook-v0").unwrap().spec(), &args(flags)).unwrap()
}

#[test]
fn a_state_lies_in_one_tile_of_each_grid_and_shares_them_with_its_neighbours() {
    let features = mountain_car(&[]);
    assert_eq!((3 * features.per_action, features.len, features.step_size), (1944, 1944, 0.0625));
    let of = |x: f32, v: f32| features.of(&[x, v]);
    let [left, coast, right] = &of(-0.5, 0.01)[..] else { panic!("three actions") };
    assert_eq!((left.len(), coast.len(), right.len()), (8, 8, 8));
    assert!(left.iter().all(|&(i, value)| i < 648 && value == 1.0));
    let shifted = |by: usize| left.iter().map(|&(i, value)| (i + by, value)).collect::<Active>();
    assert_eq!((coast, right), (&shifted(648), &shifted(1296)));
    // A tile is 1.7/8 wide; grids are an eighth of that apart, so that as far apart the states share seven.
    let shared = |a: &Active, b: &Active| a.iter().filter(|tile| b.contains(tile)).count();
    let by_eighths = |eighths: f32| shared(left, &of(-0.5 + eighths * 1.7 / 64.0, 0.01)[0]);
    assert_eq!([0.0, 1.0, 4.0, 7.0, 8.0].map(by_eighths), [8, 7, 4, 1, 0]);
    // The corners of the space have tiles, too.
    for (x, v) in [(-1.2, -0.07), (0.5, 0.07)] {
        assert!(of(x, v).iter().flatten().all(|&(i, _)| i < 1944));
    }
    // Grids are shifted by 1 and by 3 eighths: in grid 1 the tile begins an eighth earlier, 3 in velocity.
    let tiles = |s: [f64; 2]| features.tiles(&s).iter().map(|&(i, _)| i % 81).collect::<Vec<_>>();
    assert_eq!(tiles([0.0, 0.0]), [0; 8]);
    assert_eq!(tiles([0.9375 / 8.0, 0.6875 / 8.0])[..3], [0, 9 + 1, 9 + 1]);
}

#[test]
fn tiles_that_are_more_than_the_weights_share_them() {
    let features = mountain_car(&["--hash-size=500"]);
    assert_eq!((3 * features.per_action, features.len), (1944, 500));
    let mut used = vec![0; 500];
    (0..1944).for_each(|feature| used[hash(feature, 500)] += 1);
    assert!(used.iter().all(|&times| (1..=12).contains(&times)), "{used:?}");
}

#[test]
fn cosines_and_gaussians_are_the_formulas() {
    let features = mountain_car(&["--basis=fourier", "--order=2"]);
    assert_eq!((features.len, features.step_size), (27, 0.5));
    let s = [0.3, 0.8];
    let waves = features.waves(&s);
    // c runs over (0,0), (1,0), (2,0), (0,1), …
    let wanted =
        |c: [f64; 2]| (PI * (c[0] * 0.3 + c[1] * 0.8)).cos() / (c[0] * c[0] + c[1] * c[1]).powf(0.25);
    for (index, value) in
        [(0, 1.0), (1, wanted([1.0, 0.0])), (3, wanted([0.0, 1.0])), (8, wanted([2.0, 2.0]))]
    {
        assert!((waves[index].1 - value).abs() < 1e-12 && waves[index].0 == index, "{index}: {waves:?}");
    }
    let features = mountain_car(&["--basis=radial", "--order=2"]);
    let waves = features.waves(&s);
    // Centres are half of the range apart, and so far a deviation: (0.3, 0.8) is (0.6, 1.6) deviations.
    for (index, [x, y]) in [(0, [0.6, 1.6]), (1, [0.4, 1.6]), (5, [1.4, 0.6]), (8, [1.4, 0.4])] {
        let value = (-(x * x + y * y) / 2.0_f64).exp();
        assert!((waves[index].1 - value).abs() < 1e-12, "{index}: {waves:?}");
    }
    // The observation is scaled to [0, 1].
    let corner = features.of(&[0.5, -0.07]);
    assert!((corner[1][2].1 - 1.0).abs() < 1e-5 && corner[1][2].0 == 11, "{:?}", corner[1]);
}

#[test]
fn an_observation_that_never_changes_has_one_state_of_each_basis() {
    let spec = envs::make("ShortCorridor-v0").unwrap().spec().clone();
    for (basis, wanted) in [
        ("tiles", (0..8).map(|tiling| (tiling * 9, 1.0)).collect::<Active>()),
        // cos(0) / √c
        ("fourier", vec![(0, 1.0), (1, 1.0), (2, 1.0 / 2f64.sqrt()), (3, 1.0 / 3f64.sqrt())]),
        // exp(−c² / 2)
        ("radial", (0..4).map(|c| (c, (-((c * c) as f64) / 2.0).exp())).collect()),
    ] {
        let features = Features::new(&spec, &args(&["--basis", basis, "--order=3"])).unwrap();
        assert_eq!(features.of(&[1.0])[0], wanted, "{basis}");
    }
}

#[test]
fn values_are_the_best_actions_on_a_grid_of_the_states() {
    let features = mountain_car(&["--basis=radial", "--order=2"]);
    let mut sarsa = Sarsa::new(27, 0.1, &features.args);
    let best = |x: f32, v: f32, w: &[f64]| {
        features.of(&[x, v]).iter().map(|x| dot_active(w, x)).fold(f64::NEG_INFINITY, f64::max)
    };
    // Of each action another corner: left (−1.2, −0.07), none (0.5, −0.07), right (−1.2, 0.07).
    (sarsa.w[0], sarsa.w[9 + 2], sarsa.w[18 + 6]) = (-1.0, -2.0, -3.0);
    let values = sarsa.values(&features);
    assert_eq!(values.len(), 1681);
    // Positions are the rows, velocities the columns.
    for (index, x, v) in
        [(0, -1.2, -0.07), (40, -1.2, 0.07), (1640, 0.5, -0.07), (20 * 41 + 10, -0.35, -0.035)]
    {
        assert!((values[index] - best(x, v, &sarsa.w)).abs() < 1e-6, "{index}: {}", values[index]);
    }
    assert!(values[0] > values[20 * 41 + 20] && values[40] != values[1640]);
    let five = Features { low: vec![0.0; 5], range: vec![1.0; 5], ..features };
    assert!(sarsa.values(&five).is_empty()); // not a plane
}

#[test]
fn equal_actions_are_equally_likely_and_exploration_is_uniform() {
    let rng = &mut rng(1, 0);
    let features: Vec<Active> = (0..4).map(|i| vec![(i, 1.0)]).collect();
    let mut counts = |epsilon: &str| {
        let mut sarsa = Sarsa::new(4, 0.1, &args(&["--epsilon", epsilon]));
        sarsa.w = vec![2.0, 1.0, 2.0, 2.0];
        assert_eq!(sarsa.act_greedily(&features), 0);
        let mut counts = [0; 4];
        (0..12_000).for_each(|_| counts[sarsa.act(&features, rng)] += 1);
        counts
    };
    // Within five standard deviations (52) of the expectation.
    let [first, second, third, fourth] = counts("0");
    assert_eq!(second, 0);
    assert!([first, third, fourth].iter().all(|count| (3740..=4260).contains(count)));
    let [first, second, third, fourth] = counts("0.4");
    assert!((1036..=1364).contains(&second), "{second}");
    assert!([first, third, fourth].iter().all(|count| (3337..=3863).contains(count)));
}

#[test]
fn steps_are_what_happened_and_an_episodes_steps_keep_together() {
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let mut features = mountain_car(&["--basis=radial", "--order=9"]);
    (features.low, features.range) = (vec![0.0; 3], vec![9.0; 3]);
    let mut rng = learner_rng(1);
    let mut sarsa = Sarsa::new(3000, 0.1, &args(&["--method=n-step", "--n-step=3", "--epsilon=1"]));
    let mut action = sarsa.act(&features.of(envs.observations()), &mut rng);
    let (mut before, mut updates): (Option<Step>, usize) = (None, 0);
    for time in 1..=20 {
        let step = interact(&sarsa, &mut envs, &features, &mut action, &mut rng).unwrap();
        let happened = log.of(0).pop().unwrap();
        assert_eq!(step.features, features.of(&happened.observation));
        assert_eq!(step.action as f32, happened.action[0]);
        assert_eq!(step.reward, f64::from(happened.reward));
        assert_eq!(step.next_features, features.of(&happened.next_observation));
        assert_eq!((step.terminated, step.truncated), (happened.terminated, happened.truncated));
        if let Some(before) = before.filter(|before| !before.terminated && !before.truncated) {
            assert_eq!((&before.next_features, before.next_action), (&step.features, step.action));
        }
        before = Some(step.clone());
        let ended = step.terminated || step.truncated;
        updates += sarsa.learn(step).len();
        assert_eq!(updates + sarsa.window.len(), time);
        assert!(if ended { sarsa.window.is_empty() } else { sarsa.window.len() <= 2 });
    }
    let ends: Vec<_> = log.of(0).iter().map(|t| (t.terminated, t.truncated)).collect();
    assert!([(true, false), (false, true), (true, true)].iter().all(|end| ends.contains(end)));
}

/// Mean lengths of the mountain car's episodes in each of some ranges, and their standard errors, over `runs`
/// runs.
fn steps_an_episode<const N: usize>(
    flags: &str,
    ranges: [(usize, usize); N], // from, to
    runs: u64,
) -> [(f64, f64); N] {
    let flags: Vec<&str> = flags.split(' ').collect();
    let features = mountain_car(&flags);
    let run = |seed: u64| -> Vec<f64> {
        let mut envs = VecEnv::make("MountainCarTextbook-v0", 1, seed).unwrap();
        let mut rng = learner_rng(seed);
        let mut sarsa = Sarsa::new(features.len, features.step_size, &features.args);
        let mut action = sarsa.act(&features.of(envs.observations()), &mut rng);
        let mut lengths = Vec::new();
        while lengths.len() < ranges[N - 1].1 {
            let step = interact(&sarsa, &mut envs, &features, &mut action, &mut rng).unwrap();
            sarsa.learn(step);
            lengths.extend(envs.episodes().iter().map(|episode| f64::from(episode.length)));
        }
        let mean = |&(from, to): &(usize, usize)| lengths[from..to].iter().sum::<f64>() / (to - from) as f64;
        ranges.iter().map(mean).collect()
    };
    let results: Vec<Vec<f64>> = (1..=runs).map(run).collect();
    let n = runs as f64;
    std::array::from_fn(|i| {
        let mean = results.iter().map(|run| run[i]).sum::<f64>() / n;
        let variance = results.iter().map(|run| (run[i] - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, (variance / n).sqrt())
    })
}

/// Within three standard errors of both.
#[track_caller]
fn assert_meets(what: &str, (mean, error): (f64, f64), published: f64, its_error: f64) {
    println!("{what}: {mean:.1} ± {error:.1}, published {published} ± {its_error}");
    let allowed = 3.0 * (error.powi(2) + its_error.powi(2)).sqrt();
    assert!(
        (mean - published).abs() <= allowed,
        "{what}: {mean} ± {error}, published {published} ± {its_error}"
    );
}

/// Example 10.1 and section 10.2, figures 10.2 to 10.4; published means computed over 100 and 60 runs.
#[test]
fn n_step_sarsa_learns_the_mountain_car_as_in_the_book() {
    let runs = 12;
    for (flags, early, late) in [
        ("--method=n-step --learning-rate=0.5", 283.0, 118.2),
        ("--method=n-step --n-step=8 --learning-rate=0.3", 240.0, 107.4),
    ] {
        let [first, last] = steps_an_episode(flags, [(0, 50), (400, 500)], runs);
        // Over 100 runs; of the first fifty episodes no error is known.
        assert_meets(flags, first, early, first.1 * (runs as f64 / 100.0).sqrt());
        assert_meets(flags, last, late, 0.35);
    }
    let four_steps = "--method=n-step --n-step=4 --learning-rate=0.8";
    let [first] = steps_an_episode(four_steps, [(0, 50)], 30);
    assert_meets(four_steps, first, 223.6, 1.1);
}

/// Figures 12.10 and 12.11; published means computed over 40 runs.
#[test]
fn traces_learn_the_mountain_car_as_in_the_book() {
    let check = |flags: &str, published: f64, its_error: f64| {
        let [first] = steps_an_episode(flags, [(0, 50)], 30);
        assert_meets(flags, first, published, its_error);
    };
    check("--lambda=0.96 --learning-rate=1.2", 176.1, 2.4);
    check("--method=true-online --lambda=0.92 --learning-rate=0.8", 175.6, 2.4);
}

/// With the other features the car learns as well.
#[test]
fn cosines_and_gaussians_learn_the_mountain_car() {
    for flags in [
        "--basis=fourier --order=5 --trace=accumulating --learning-rate=0.005",
        "--basis=radial --order=7 --trace=accumulating --learning-rate=0.02",
        "--hash-size=1000 --trace=replacing-clearing",
    ] {
        let [(mean, error)] = steps_an_episode(flags, [(150, 200)], 2);
        println!("{flags}: {mean:.1} ± {error:.1}");
        assert!(mean < 200.0, "{flags}: {mean}");
    }
}

/// What a short run logs.
fn pinned(name: &str, flags: &str) {
    let flags: Vec<&str> = flags.split(' ').chain(["--eval-episodes=2"]).collect();
    regression::pinned(env!("CARGO_MANIFEST_DIR"), name, &flags, train);
}

#[test]
fn pinned_run_of_sarsa_lambda() {
    pinned("lambda", "--total-timesteps=3000 --epsilon=0.1 --gamma=0.99 --lambda=0.8 --tilings=4 --tiles=5");
}

/// A time limit cuts the episodes off.
#[test]
fn pinned_run_of_n_step_sarsa() {
    pinned(
        "n_step",
        "--env-id=MountainCar-v0 --method=n-step --n-step=3 --total-timesteps=1500 --hash-size=300",
    );
}

#[test]
fn pinned_run_of_true_online_sarsa() {
    pinned(
        "true_online",
        "--env-id=MountainCar-v0 --method=true-online --basis=fourier --learning-rate=0.01 --total-timesteps=1500",
    );
}

#[test]
fn pinned_run_with_gaussians() {
    pinned(
        "radial",
        "--env-id=MountainCar-v0 --trace=dutch --basis=radial --order=4 --learning-rate=0.1 --total-timesteps=1500",
    );
}
