//! CEM's rounds against a recording, its plans against the Riccati equation, what a plan is worth, that
//! threads change nothing, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{MAX_EPISODE_STEPS, Spec, Step, rng};
use common::nn::with_threads;
use regression::scripted::{Log, Scripted};
use regression::{Recording, SCRIPT, View};

/// A point on a line that is pushed towards 0: x ← x + a with reward −(x² + a²). The best plans are
/// known from the Riccati equation.
struct Point {
    spec: Spec,
    x: f64,
}

fn point() -> Box<dyn Env> {
    let spec = Spec {
        id: "Point".into(),
        observation_space: Space::uniform(1, f32::NEG_INFINITY, f32::INFINITY),
        action_space: Space::uniform(1, -1.0, 1.0),
        max_episode_steps: None,
        reward_threshold: None,
    };
    Box::new(Point { spec, x: 0.0 })
}

impl Env for Point {
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        self.x = 0.0;
        Ok(())
    }
    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let a = f64::from(action.vector()[0]);
        let reward = -(self.x.powi(2) + a.powi(2));
        self.x += a;
        Ok(Step { reward, terminated: false, truncated: false })
    }
    fn observe(&self, observation: &mut [f32]) {
        observation[0] = self.x as f32;
    }
    fn state(&self) -> Result<State> {
        Ok(State(vec![self.x]))
    }
    fn set_state(&mut self, state: &State) -> Result<()> {
        self.x = state.0[0];
        Ok(())
    }
}

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["cem"].iter().chain(flags).map(Into::into)).unwrap()
}

/// One round: samples, elites, and the distribution that they leave.
#[test]
fn recorded_update_of_the_distribution() {
    let mut recording = Recording::open("cem");
    let bounds = |name| recording.numbers(name).into_iter().map(|bound| bound as f32).collect::<Vec<_>>();
    let actions = Space::Box { shape: vec![2], low: bounds("low"), high: bounds("high") };
    let args = args(&[
        &format!("--horizon={}", recording.number("horizon")),
        &format!("--population={}", recording.number("population")),
        &format!("--elites={}", recording.number("elites")),
        &format!("--smoothing={}", recording.number("momentum")),
    ]);
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, Log::default());
    let mut cem = Cem::new(vec![Box::new(model)], &args).unwrap();
    cem.mean = recording.floats("batch/mean");
    cem.std = recording.floats("batch/std");
    let plans = cem.sample(&recording.floats("noise/normal_samples"));
    recording.close("expected/samples", &plans);
    let returns: Vec<f64> = recording.floats("batch/returns").into_iter().map(f64::from).collect();
    let elites = cem.elites(&returns);
    recording.equal("expected/elite_indices", &elites);
    cem.update(&plans, &elites);
    recording.close("expected/mean", &cem.mean);
    // As in PETS' program, variances are mixed, not standard deviations.
    recording.close("expected/std_from_variances", &cem.std);
    recording.finish();
}

#[test]
fn the_plan_is_the_one_of_the_riccati_equation() {
    let flags = ["--horizon=3", "--population=200", "--elites=20", "--iterations=30"];
    let mut cem = Cem::new(vec![point()], &args(&flags)).unwrap();
    let (x, mut rng) = (0.8, rng(1, 0));
    let (action, planned_return) = cem.act(&State(vec![x]), &mut rng).unwrap();
    // P₂ = 1, P₁ = 1 + P₂ − P₂² / (1 + P₂) = 1.5, and a_k = −P_{k+1} / (1 + P_{k+1}) x_k:
    // a₀ = −0.6 x, a₁ = −0.5 (0.4 x), a₂ = 0. The cost is P₀ x² = 1.6 x².
    for (actual, expected) in cem.mean.iter().zip([-0.6 * x, -0.2 * x, 0.0]) {
        assert_abs_diff_eq!(f64::from(*actual), expected, epsilon = 0.01);
    }
    assert_eq!(action, cem.mean[..1]);
    assert_abs_diff_eq!(planned_return, -1.6 * x * x, epsilon = 1e-3);
    let totals = cem.plan_returns(&State(vec![x]), &cem.mean.clone(), 1).unwrap();
    assert_eq!(totals.len(), 1);
    assert_abs_diff_eq!(totals[0], -1.6 * x * x, epsilon = 1e-3);

    // Far away the best first push is the hardest one.
    cem.forget();
    let action = cem.act(&State(vec![5.0]), &mut rng).unwrap().0[0];
    assert!((-1.0..=-0.99).contains(&action), "{action}");
}

#[test]
fn the_planned_return_is_the_mean_of_the_last_elites() {
    // One round in which all are elites: the mean over all plans of the distribution it began with.
    let flags = ["--horizon=1", "--population=20000", "--elites=20000", "--iterations=1", "--smoothing=1"];
    let mut cem = Cem::new(vec![point()], &args(&flags)).unwrap();
    let (action, planned_return) = cem.act(&State(vec![0.5]), &mut rng(1, 0)).unwrap();
    // −(x² + E[a²]), where a ~ N(0, ½²) is clamped to ±1. Nothing of the new distribution is
    // taken on.
    assert_abs_diff_eq!(planned_return, -(0.25 + clamped_square()), epsilon = 0.01);
    assert_eq!((action[0], cem.std[0]), (0.0, 0.5));
}

/// E[ clamp(½ z, −1, 1)² ] for z ~ N(0, 1), by midpoints.
fn clamped_square() -> f64 {
    let density = |z: f64| (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let cell = 1e-3;
    (-8000..8000)
        .map(|i| (f64::from(i) + 0.5) * cell)
        .map(|z| (0.5 * z).clamp(-1.0, 1.0).powi(2) * density(z) * cell)
        .sum()
}

#[test]
fn plans_are_clamped_to_the_action_space() {
    let mut cem = Cem::new(vec![point()], &args(&["--horizon=2", "--population=3"])).unwrap();
    cem.mean = vec![0.25, 0.75];
    cem.std = vec![0.5, 0.25];
    let plans = cem.sample(&[0.0, 0.0, 1.0, -1.0, -4.0, 4.0]);
    assert_eq!(plans, [0.25, 0.75, 0.75, 0.5, -1.0, 1.0]);
}

#[test]
fn a_plan_is_worth_what_the_episode_still_pays() {
    let flags = args(&["--gamma=0.9", "--horizon=5"]);
    let mut cem = Cem::new(vec![envs::make("Pendulum-v1").unwrap()], &flags).unwrap();
    let mut model = envs::make("Pendulum-v1").unwrap();
    let mut rng = rng(1, 0);
    let plan = [0.5_f32, -1.0, 2.0, 0.0, 1.5];
    // State: angle, angular velocity, steps elapsed of 200.
    for (elapsed, counted) in [(0.0, 5), (197.0, 3), (199.0, 1)] {
        let state = State(vec![1.0, -0.5, elapsed]);
        model.set_state(&state).unwrap();
        let expected: f64 = (0..counted)
            .map(|k| {
                let step = model.step(Action::Continuous(&plan[k..=k]), &mut rng).unwrap();
                0.9_f64.powi(k as i32) * step.reward
            })
            .sum();
        let actual = cem.plan_returns(&state, &plan, 1).unwrap();
        assert_eq!(actual.len(), 1);
        assert_abs_diff_eq!(actual[0], expected, epsilon = 1e-9);
    }
}

#[test]
fn what_is_tried_is_the_plan() {
    // Two actions a step, two plans: the log has every number in its place.
    let (log, actions) = (Log::default(), Space::uniform(2, 0.0, 12.0));
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, log.clone());
    let mut cem = Cem::new(vec![Box::new(model)], &args(&["--horizon=3"])).unwrap();
    let plans: Vec<f32> = (0..12).map(|i| i as f32).collect();
    cem.plan_returns(&State(vec![0.0, 0.0]), &plans, 1).unwrap();
    let tried: Vec<_> = log.transitions().into_iter().map(|t| (t.step, t.action)).collect();
    let expected = (0..6).map(|i| (i % 3, vec![2.0 * i as f32, 2.0 * i as f32 + 1.0]));
    assert_eq!(tried, expected.collect::<Vec<_>>());
}

#[test]
fn threads_change_nothing() {
    // In a random environment too, with parts that are unequal, and with more threads than plans.
    let run = |threads: usize, seed: u64| {
        let models = (0..threads).map(|_| Box::new(Shaken(point())) as Box<dyn Env>).collect();
        let mut cem = Cem::new(models, &args(&["--population=23", "--elites=23"])).unwrap();
        let noise: Vec<f32> = StandardNormal.sample_iter(rng(1, 0)).take(23 * 20).collect();
        let plans = cem.sample(&noise);
        let state = State(vec![0.5]);
        let both =
            (cem.plan_returns(&state, &plans, seed).unwrap(), cem.act(&state, &mut rng(2, 0)).unwrap());
        (both, cem.mean)
    };
    let alone = run(1, 5);
    let returns = &alone.0.0;
    assert!(returns.len() == 23 && returns[1..].iter().all(|total| *total != returns[0]), "{returns:?}");
    for threads in [2, 3, 8, 40] {
        assert_eq!(run(threads, 5), alone, "{threads} threads");
        let shared_out = with_threads(2, || run(threads, 5)).unwrap();
        assert_eq!(shared_out, alone, "{threads} models on two threads");
    }
    assert_ne!(run(1, 6).0.0, *returns);
}

#[test]
fn each_plan_is_shaken_otherwise_each_time() {
    let mut cem = Cem::new(vec![Box::new(Shaken(point()))], &args(&["--horizon=1"])).unwrap();
    let returns = cem.plan_returns(&State(vec![0.0]), &[0.0; 50], 1).unwrap();
    assert!(returns.windows(2).all(|pair| pair[0] != pair[1]), "{returns:?}");
    // Each round draws its noise and then a seed for its plans.
    let mut generator = rng(1, 0);
    cem.act(&State(vec![0.0]), &mut generator).unwrap();
    let mut expected = rng(1, 0);
    for _ in 0..3 {
        let noise = StandardNormal.sample_iter(&mut expected).take(64);
        noise.for_each(|_: f32| {});
        let _: u64 = expected.random();
    }
    assert_eq!(generator, expected);
}

/// A point that is pushed at random besides.
struct Shaken(Box<dyn Env>);

impl Env for Shaken {
    fn spec(&self) -> &Spec {
        self.0.spec()
    }
    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.0.reset(rng)
    }
    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        let push = action.vector()[0] + rng.random_range(-0.1..0.1);
        self.0.step(Action::Continuous(&[push]), rng)
    }
    fn observe(&self, observation: &mut [f32]) {
        self.0.observe(observation);
    }
    fn state(&self) -> Result<State> {
        self.0.state()
    }
    fn set_state(&mut self, state: &State) -> Result<()> {
        self.0.set_state(state)
    }
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

#[test]
fn a_plan_ends_with_the_episode() {
    // Episodes of three steps (terminated), of four (truncated), of one, of two (both at once).
    let actions = Space::uniform(1, -1.0, 1.0);
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, Log::default());
    let mut cem = Cem::new(vec![Box::new(model)], &args(&["--horizon=5"])).unwrap();
    for (episode, length) in [(0, 3), (1, 4), (2, 1), (3, 2)] {
        let totals = cem.plan_returns(&State(vec![f64::from(episode), 0.0]), &[0.0; 10], 1).unwrap();
        let expected: i32 = (0..length).map(|t| 10 * episode + t + 1).sum();
        assert_eq!(totals, [f64::from(expected); 2]);
    }
}

#[test]
fn the_next_plan_begins_with_the_rest_of_this_one() {
    for (flag, expected) in [("true", [0.2, 0.3, 0.3]), ("false", [0.0; 3])] {
        let mut cem = Cem::new(vec![point()], &args(&["--horizon=3", "--warm-start", flag])).unwrap();
        cem.mean = vec![0.1, 0.2, 0.3];
        cem.std = vec![0.01; 3];
        cem.begin();
        assert_eq!(cem.mean, expected);
        assert_eq!(cem.std, [0.5; 3]);
    }
    // Two actions in a step, of different ranges.
    let actions = Space::Box { shape: vec![2], low: vec![-1.0, 0.0], high: vec![1.0, 8.0] };
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, Log::default());
    let mut cem = Cem::new(vec![Box::new(model)], &args(&["--horizon=2"])).unwrap();
    assert_eq!(cem.mean, [0.0, 4.0, 0.0, 4.0]);
    cem.mean = vec![0.1, 1.0, 0.2, 2.0];
    cem.begin();
    assert_eq!((&cem.mean[..], &cem.std[..]), (&[0.2, 2.0, 0.2, 2.0][..], &[0.5, 2.0, 0.5, 2.0][..]));
}

#[test]
fn equal_plans_are_ranked_by_their_order() {
    let cem = Cem::new(vec![point()], &args(&["--elites=3"])).unwrap();
    assert_eq!(cem.elites(&[1.0, 3.0, 2.0, 3.0, 2.0]), [1, 3, 2]);
}

#[test]
fn an_episode_without_end_is_cut() {
    let flags = ["--horizon=1", "--population=2", "--elites=1", "--iterations=1"];
    let mut cem = Cem::new(vec![point()], &args(&flags)).unwrap();
    let mut envs = VecEnv::new(vec![point()], 1).unwrap();
    let mut steps = 0;
    let watch = |_: &VecEnv| {
        steps += 1;
        anyhow::ensure!(steps <= MAX_EPISODE_STEPS, "it goes on for ever");
        Ok(())
    };
    let total = play(&mut cem, &mut envs, &mut rng(1, 0), watch).unwrap();
    assert_eq!(steps, MAX_EPISODE_STEPS);
    assert_eq!(total, envs.running_returns()[0]);
    assert!(total < 0.0);
}

/// What the defaults do, over an episode's end.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=210", "--eval-episodes=2", "--population=32", "--elites=4"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: plans from nothing each time, of discounted rewards.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--total-timesteps=30",
        "--eval-episodes=1",
        "--horizon=8",
        "--iterations=2",
        "--smoothing=0.5",
        "--gamma=0.9",
        "--warm-start=false",
        "--threads=2",
        "--capture-video",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
