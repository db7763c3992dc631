//! What plans are guessed, what they are worth, which one is chosen, that threads change nothing, and
//! runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{MAX_EPISODE_STEPS, Spec, Step, rng};
use regression::scripted::{Log, Scripted};
use regression::{SCRIPT, View};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["random_shooting"].iter().chain(flags).map(Into::into)).unwrap()
}

/// A planner with `threads` models of `env_id`.
fn planner(env_id: &str, threads: usize, flags: &[&str]) -> RandomShooting {
    let models = (0..threads).map(|_| envs::make(env_id).unwrap()).collect();
    RandomShooting::new(models, &args(flags)).unwrap()
}

/// One whose model is the script.
fn scripted(actions: Space, flags: &[&str]) -> RandomShooting {
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, Log::default());
    RandomShooting::new(vec![Box::new(model)], &args(flags)).unwrap()
}

#[test]
fn guesses_are_uniform_over_the_action_space() {
    let actions = Space::Box { shape: vec![2], low: vec![-1.0, 2.0], high: vec![1.0, 10.0] };
    let planner = scripted(actions, &["--horizon=2", "--candidates=1"]);
    assert_eq!(planner.guess(&[0.0, 0.0, 0.75, 0.5]), [-1.0, 2.0, 0.5, 6.0]);
    assert_eq!((planner.action_dim, planner.size()), (2, 4));

    let planner = scripted(Space::Discrete { n: 3 }, &["--horizon=4"]);
    assert_eq!(planner.guess(&[0.0, 0.33, 0.34, 0.99]), [0.0, 0.0, 1.0, 2.0]);
    // The largest number below 1, times n, may round to n.
    let planner = scripted(Space::Discrete { n: 1000 }, &[]);
    assert_eq!(planner.guess(&[1.0 - f32::EPSILON / 2.0]), [999.0]);
}

#[test]
fn the_best_plan_is_chosen_and_of_equal_ones_the_first() {
    assert_eq!(best(&[-3.0, -1.0, -2.0, -1.0]), 1);
    assert_eq!(best(&[0.0]), 0);
    assert_eq!(best(&[f64::NEG_INFINITY, -1e300]), 1);
}

#[test]
fn the_first_action_of_the_best_plan_is_taken() {
    // The same draws again, and each plan tried in an environment of the test's own.
    let mut planner = planner("Pendulum-v1", 1, &["--candidates=50", "--horizon=7", "--gamma=0.9"]);
    let state = State(vec![2.5, -1.0, 0.0]);
    let (action, planned_return) = planner.act(&state, &mut rng(3, 0)).unwrap();
    let noise: Vec<f32> = rng(3, 0).random_iter().take(50 * 7).collect();
    let mut model = envs::make("Pendulum-v1").unwrap();
    let mut known: Vec<(f64, f32)> = Vec::new();
    for plan in noise.chunks_exact(7) {
        model.set_state(&state).unwrap();
        let mut total = 0.0;
        for (k, u) in plan.iter().enumerate() {
            let torque = 4.0 * u - 2.0;
            total += 0.9_f64.powi(k as i32)
                * model.step(Action::Continuous(&[torque]), &mut rng(1, 0)).unwrap().reward;
        }
        known.push((total, 4.0 * plan[0] - 2.0));
    }
    let expected = known.iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert_abs_diff_eq!(planned_return, expected.0, epsilon = 1e-9);
    assert_abs_diff_eq!(action[0], expected.1, epsilon = 1e-6);
    assert_eq!(action.len(), 1);
}

#[test]
fn enough_guesses_find_the_best_of_all_plans() {
    // A pole that falls to the right: how long it can be kept up at best, by brute force.
    let state = State(vec![0.0, 0.0, 0.15, 1.4, 0.0]);
    let mut planner = planner("CartPole-v1", 1, &["--candidates=5000", "--horizon=12"]);
    let (action, planned_return) = planner.act(&state, &mut rng(1, 0)).unwrap();
    let mut most: f64 = 0.0;
    for code in 0..1_u32 << 12 {
        let plan = (0..12).map(|k| Action::Discrete((code >> k & 1) as usize));
        let model = planner.models[0].as_mut();
        most = most.max(plan_return(model, &state, plan, 1.0, &mut rng(1, 0)).unwrap());
    }
    assert_eq!((planned_return, action), (most, vec![1.0]));
    assert!((2.0..12.0).contains(&most), "{most} tells nothing");
}

#[test]
fn a_plan_is_worth_what_the_episode_still_pays() {
    let mut planner = planner("Pendulum-v1", 1, &["--gamma=0.9", "--horizon=5"]);
    let mut model = envs::make("Pendulum-v1").unwrap();
    let plan = [0.5_f32, -1.0, 2.0, 0.0, 1.5];
    // State: angle, angular velocity, steps elapsed of 200.
    for (elapsed, counted) in [(0.0, 5), (197.0, 3), (199.0, 1)] {
        let state = State(vec![1.0, -0.5, elapsed]);
        model.set_state(&state).unwrap();
        let expected: f64 = (0..counted)
            .map(|k| {
                let step = model.step(Action::Continuous(&plan[k..=k]), &mut rng(1, 0)).unwrap();
                0.9_f64.powi(k as i32) * step.reward
            })
            .sum();
        let actual = planner.check(&state, &plan, 1).unwrap();
        assert_eq!(actual.len(), 1);
        assert_abs_diff_eq!(actual[0], expected, epsilon = 1e-9);
    }
}

#[test]
fn a_plan_ends_with_the_episode() {
    // Episodes of three steps (terminated), of four (truncated), of one, of two (both at once).
    for actions in [Space::uniform(2, -1.0, 1.0), Space::Discrete { n: 2 }] {
        let mut planner = scripted(actions, &["--horizon=5"]);
        for (episode, length) in [(0, 3), (1, 4), (2, 1), (3, 2)] {
            let plans = vec![0.0; 2 * planner.size()];
            let totals = planner.check(&State(vec![f64::from(episode), 0.0]), &plans, 1).unwrap();
            let expected: i32 = (0..length).map(|t| 10 * episode + t + 1).sum();
            assert_eq!(totals, [f64::from(expected); 2]);
        }
    }
}

#[test]
fn what_is_tried_is_the_plan() {
    // Two actions a step, two plans: the log has every number in its place.
    let (log, actions) = (Log::default(), Space::uniform(2, 0.0, 12.0));
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, log.clone());
    let mut planner = RandomShooting::new(vec![Box::new(model)], &args(&["--horizon=3"])).unwrap();
    let plans: Vec<f32> = (0..12).map(|i| i as f32).collect();
    planner.check(&State(vec![0.0, 0.0]), &plans, 1).unwrap();
    let tried: Vec<_> = log.transitions().into_iter().map(|t| (t.step, t.action)).collect();
    let expected = (0..6).map(|i| (i % 3, vec![2.0 * i as f32, 2.0 * i as f32 + 1.0]));
    assert_eq!(tried, expected.collect::<Vec<_>>());
}

#[test]
fn threads_change_nothing() {
    // In a random environment too, with parts that are unequal, and with more threads than plans.
    for (env_id, state) in [
        ("FrozenLake-v1", vec![14.0, 0.0]),
        ("Pendulum-v1", vec![1.0, 0.0, 0.0]),
        ("TicTacToe-v0", vec![0.0; 10]),
    ] {
        let run = |threads: usize| {
            let mut planner = planner(env_id, threads, &["--candidates=23", "--horizon=30"]);
            let noise: Vec<f32> = rng(1, 0).random_iter().take(23 * 30).collect();
            let plans = planner.guess(&noise);
            planner.check(&State(state.clone()), &plans, 5).unwrap()
        };
        let alone = run(1);
        assert!(alone.len() == 23 && alone.iter().any(|total| *total != alone[0]), "{env_id}: {alone:?}");
        for threads in [2, 3, 8, 40] {
            assert_eq!(run(threads), alone, "{env_id} with {threads} threads");
        }
    }
}

#[test]
fn plans_and_steps_draw_differently() {
    // From the start of FrozenLake one plan goes many ways: each has a stream of its own, and so has each
    // time that something is planned.
    let mut planner = planner("FrozenLake-v1", 1, &["--candidates=400", "--horizon=100"]);
    let plans = [1.0, 2.0].repeat(400 * 50);
    let start = State(vec![0.0, 0.0]);
    let [first, again, other] = [1, 1, 2].map(|seed| planner.check(&start, &plans, seed).unwrap());
    assert!(first.contains(&0.0) && first.contains(&1.0));
    assert_eq!(first, again);
    assert_ne!(first, other);
    // A decision draws its plans' noise first, and then the seed that they are tried with.
    let [mut generator, mut expected] = [(); 2].map(|()| rng(1, 0));
    let (action, _) = planner.act(&start, &mut generator).unwrap();
    let noise: Vec<f32> = (&mut expected).random_iter().take(400 * 100).collect();
    let plans = planner.guess(&noise);
    let returns = planner.check(&start, &plans, expected.random()).unwrap();
    assert_eq!(action, plans[best(&returns) * 100..][..1]);
    assert_eq!(generator, expected);
}

#[test]
fn an_error_of_the_model_is_an_error_of_the_plan() {
    for threads in [1, 2] {
        let mut planner = planner("Pendulum-v1", threads, &["--candidates=4"]);
        let error = planner.act(&State(vec![f64::NAN, 0.0, 0.0]), &mut rng(1, 0)).unwrap_err();
        assert!(error.to_string().contains("Pendulum-v1"), "{error}");
    }
}

#[test]
fn an_episode_without_end_is_cut() {
    let mut planner =
        RandomShooting::new(vec![Box::new(Endless::new())], &args(&["--candidates=1", "--horizon=1"]))
            .unwrap();
    let mut envs = VecEnv::new(vec![Box::new(Endless::new())], 1).unwrap();
    let mut steps = 0;
    let watch = |_: &VecEnv| {
        steps += 1;
        anyhow::ensure!(steps <= MAX_EPISODE_STEPS, "it goes on for ever");
        Ok(())
    };
    let total = play(&mut planner, &mut envs, &mut rng(1, 0), watch).unwrap();
    assert_eq!((steps, total), (MAX_EPISODE_STEPS, f64::from(MAX_EPISODE_STEPS)));
}

/// Pays 1 a step for ever.
struct Endless(Spec);

impl Endless {
    fn new() -> Self {
        Self(Spec {
            id: "Endless".into(),
            observation_space: Space::uniform(1, 0.0, 1.0),
            action_space: Space::Discrete { n: 2 },
            max_episode_steps: None,
            reward_threshold: None,
        })
    }
}

impl Env for Endless {
    fn spec(&self) -> &Spec {
        &self.0
    }
    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        Ok(())
    }
    fn step(&mut self, _action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        Ok(Step { reward: 1.0, ..Step::default() })
    }
    fn observe(&self, observation: &mut [f32]) {
        observation[0] = 0.5;
    }
    fn state(&self) -> Result<State> {
        Ok(State(vec![0.0]))
    }
    fn set_state(&mut self, _state: &State) -> Result<()> {
        Ok(())
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

/// What the defaults do, over an episode's end.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=210", "--eval-episodes=2", "--candidates=64"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: discounted rewards, discrete actions, a random environment, threads.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=FrozenLake-v1",
        "--total-timesteps=60",
        "--eval-episodes=3",
        "--horizon=40",
        "--candidates=200",
        "--gamma=0.9",
        "--threads=2",
        "--capture-video",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
