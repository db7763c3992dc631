//! Values, policies and numbers of sweeps that are known exactly, from Sutton & Barto (2018) and for
//! FrozenLake.

use super::*;
use common::envs::Outcome;

/// Value iteration on `model` with these flags.
fn iteration(model: &TransitionModel, flags: &[&str]) -> ValueIteration {
    let argv = ["value_iteration"].iter().chain(flags).map(Into::into);
    ValueIteration::new(model, &cli::parse_from(argv).unwrap())
}

/// Sweeps until no value changes by θ. Returns how many sweeps that took.
fn settle(iteration: &mut ValueIteration) -> usize {
    (1..3_000).find(|_| iteration.sweep() < iteration.args.theta).expect("values without end")
}

/// V* and the number of sweeps.
fn solve(model: &TransitionModel, flags: &[&str]) -> (ValueIteration, usize) {
    let mut iteration = iteration(model, flags);
    let sweeps = settle(&mut iteration);
    (iteration, sweeps)
}

fn assert_close(got: f64, wanted: f64, tolerance: f64) {
    assert!((got - wanted).abs() <= tolerance, "{got}, expected {wanted} to within {tolerance}");
}

fn model_of(env_id: &str) -> TransitionModel {
    envs::make(env_id).unwrap().model().unwrap().clone()
}

fn certain(next_state: usize, reward: f64, terminated: bool) -> Vec<Outcome> {
    vec![Outcome { probability: 1.0, next_state, reward, terminated }]
}

const EITHER_WAY: [&[&str]; 2] = [&[], &["--synchronous"]];

#[test]
fn frozen_lakes_optimal_values_are_the_known_ones() {
    let model = model_of("FrozenLake-v1");
    for flags in EITHER_WAY {
        for (gamma, wanted) in [("0.9", 0.068_891), ("0.95", 0.180_472), ("0.99", 0.542_026)] {
            let (iteration, _) = solve(&model, &[&["--gamma", gamma], flags].concat());
            assert_close(iteration.values[0], wanted, 1e-6);
            assert_eq!(iteration.value_start(), iteration.values[0]);
        }
        assert_close(solve(&model, &[&["--gamma=1"], flags].concat()).0.values[0], 14.0 / 17.0, 1e-6);
        let large = solve(&model_of("FrozenLake8x8-v1"), flags).0;
        assert_close(large.values[0], 0.414_640, 1e-6);
    }
}

#[test]
fn chances_of_success_within_the_time_limit_are_the_known_ones() {
    let chance = |env_id: &str, gamma: &str, max_steps: u32| {
        let (iteration, _) = solve(&model_of(env_id), &["--gamma", gamma]);
        iteration.expected_episode(&iteration.greedy_policy(), max_steps).0
    };
    assert_close(chance("FrozenLake-v1", "0.99", 100), 0.7402, 5e-5);
    assert_close(chance("FrozenLake-v1", "0.9", 100), 0.7298, 5e-5);
    assert_close(chance("FrozenLake8x8-v1", "0.99", 200), 0.8630, 5e-5);
    // As many sweeps from a copy as there are steps say what the best policy that counts them can do.
    for (env_id, steps, wanted) in [("FrozenLake-v1", 100, 0.7442), ("FrozenLake8x8-v1", 200, 0.9132)] {
        let mut iteration = iteration(&model_of(env_id), &["--gamma=1", "--synchronous"]);
        for _ in 0..steps {
            iteration.sweep();
        }
        assert_close(iteration.value_start(), wanted, 5e-5);
    }
}

#[test]
fn after_k_synchronous_sweeps_the_gridworlds_values_reach_k_steps_far() {
    let mut iteration = iteration(&model_of("Gridworld-v0"), &["--gamma=1", "--synchronous"]);
    let distances = [0, 1, 2, 3, 1, 2, 3, 2, 2, 3, 2, 1, 3, 2, 1, 0].map(f64::from);
    for k in 1..=4 {
        let largest_change = iteration.sweep();
        assert_eq!(iteration.values, distances.map(|distance| 0.0 - distance.min(f64::from(k))));
        // Three sweeps, and a fourth that finds nothing to change.
        assert_eq!(largest_change, if k == 4 { 0.0 } else { 1.0 });
    }
    // In place, what a sweep has learned of one state it uses for the next.
    let (in_place, sweeps) = solve(&model_of("Gridworld-v0"), &["--gamma=1"]);
    assert_eq!((in_place.values, sweeps), (iteration.values, 4));
}

#[test]
fn in_place_later_states_profit_from_earlier_ones() {
    // Three states in a row, the first of which ends the episode with a reward of 8.
    let outcomes = [certain(0, 8.0, true), certain(0, 0.0, false), certain(1, 0.0, false)];
    let model =
        TransitionModel { outcomes: outcomes.map(|o| vec![o]).to_vec(), initial: vec![0.0, 0.0, 1.0] };
    let after_one_sweep = |flags: &[&str]| {
        let mut iteration = iteration(&model, &[&["--gamma=0.5"], flags].concat());
        let largest_change = iteration.sweep();
        (iteration.values, largest_change)
    };
    assert_eq!(after_one_sweep(&[]), (vec![8.0, 4.0, 2.0], 8.0));
    assert_eq!(after_one_sweep(&["--synchronous"]), (vec![8.0, 0.0, 0.0], 8.0));
    assert_eq!(solve(&model, &["--gamma=0.5"]).1, 2);
    assert_eq!(solve(&model, &["--gamma=0.5", "--synchronous"]).1, 4);
    // On the lake as well.
    let sweeps = EITHER_WAY.map(|flags| solve(&model_of("FrozenLake-v1"), flags).1);
    assert!(sweeps[0] < sweeps[1], "{sweeps:?}");
}

#[test]
fn it_settles_when_a_sweep_changes_less_than_theta() {
    // One state, reward 1 and γ = ½: V is 1, 1.5, 1.75, … and changes by 1, ½, ¼, ⅛.
    let model = TransitionModel { outcomes: vec![vec![certain(0, 1.0, false)]], initial: vec![1.0] };
    let (iteration, sweeps) = solve(&model, &["--gamma=0.5", "--theta=0.25"]);
    assert_eq!((sweeps, iteration.values[0]), (4, 1.875)); // ¼ is not below θ
    // γ θ / (1 − γ) = ¼ bounds the distance from V* = 2.
    assert_eq!(iteration.expected_episode(&[0], 7), (7.0, 7.0));
}

#[test]
fn the_values_that_it_ends_with_are_optimal_up_to_theta() {
    let model = model_of("FrozenLake-v1");
    let optimal = solve(&model, &["--gamma=0.9"]).0.values;
    let mut worst: f64 = 0.0;
    for theta in [0.1, 0.03, 0.01, 0.003, 0.001] {
        for flags in EITHER_WAY {
            let theta_flag = format!("--theta={theta}");
            let (coarse, _) = solve(&model, &[&["--gamma=0.9", &theta_flag], flags].concat());
            let error = coarse.values.iter().zip(&optimal).map(|(v, w)| (v - w).abs()).fold(0.0, f64::max);
            assert!(error <= 0.9 * theta / 0.1, "θ = {theta}: {error}");
            worst = worst.max(error);
        }
    }
    assert!(worst > 0.01, "no θ was coarse: {worst}");
}

#[test]
fn the_greedy_policy_takes_the_first_of_the_actions_that_are_best_to_within_theta() {
    let actions = [1.0, 1.9, 2.0, 2.05].map(|reward| certain(0, reward, true));
    let model = TransitionModel { outcomes: vec![actions.to_vec()], initial: vec![1.0] };
    let choice = |theta: &str| iteration(&model, &["--theta", theta]).greedy_policy()[0];
    assert_eq!(["0.01", "0.06", "0.2", "2"].map(choice), [3, 2, 1, 0]);
}

/// Example 4.3.
#[test]
fn the_gambler_wins_with_the_books_probability_and_plays_boldly() {
    let (iteration, _) = solve(&model_of("Gambler-v0"), &["--gamma=1", "--theta=1e-12"]);
    let known = [(50, 0.4), (25, 0.16), (75, 0.64), (1, 0.00206562), (51, 0.40309844), (99, 0.96433297)];
    for (capital, wanted) in known {
        assert_close(iteration.values[capital], wanted, 1e-8);
    }
    assert_eq!(iteration.value_start(), iteration.values[50]);
    // Figure 4.3 below: all at 50, half of it at the quarters, and between them of the best stakes the
    // smallest, which leads to the nearest of those.
    for (capital, action) in iteration.greedy_policy().into_iter().enumerate().take(100).skip(1) {
        let stake = match capital {
            50 => 50,
            25 | 75 => 25,
            _ => (capital % 25).min(25 - capital % 25),
        };
        assert_eq!(action + 1, stake, "with {capital}");
    }
    // The values and the policy agree: playing wins as often as they say.
    assert_close(iteration.expected_episode(&iteration.greedy_policy(), 10_000).0, 0.4, 1e-9);
}

/// Example 4.2; exact Poisson sums (the figure's own values come from truncated ones).
#[test]
fn jacks_cars_are_worth_what_is_known() {
    let (iteration, _) = solve(&model_of("CarRental-v0"), &["--gamma=0.9", "--theta=1e-4"]);
    for (cars, wanted) in [(20, 636.99), (0, 421.41), (10, 574.95)] {
        assert_close(iteration.values[cars * 21 + cars], wanted, 0.01);
    }
    let mut states_by_move = [0; 11];
    iteration.greedy_policy().iter().for_each(|&action| states_by_move[action] += 1);
    assert_eq!(states_by_move, [0, 3, 9, 14, 17, 270, 33, 29, 23, 17, 26]);
}

/// To its end; the policy changes several times on the way.
#[test]
fn pinned_run() {
    let args = ["--theta=1e-6", "--eval-episodes=3"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "frozen_lake", &args, train);
}

/// Each sweep from a copy, and fewer sweeps than it would take.
#[test]
fn pinned_run_that_is_cut_off() {
    let args = [
        "--env-id=FrozenLake8x8-v1",
        "--gamma=0.9",
        "--synchronous",
        "--total-timesteps=40",
        "--eval-episodes=3",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "cut_off", &args, train);
}

/// Without a discount it is worth as much to walk against the wall first: the first of the best actions does.
#[test]
fn without_a_discount_the_greedy_policy_may_wait_for_ever() {
    let model = model_of("FrozenLake-v1-deterministic");
    let of = |gamma: &str| {
        let (iteration, _) = solve(&model, &[gamma]);
        (iteration.value_start(), iteration.expected_episode(&iteration.greedy_policy(), 100).0)
    };
    assert_eq!(of("--gamma=1"), (1.0, 0.0));
    assert_eq!(of("--gamma=0.99").1, 1.0);
}
