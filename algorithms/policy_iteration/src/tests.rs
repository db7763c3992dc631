//! Values and policies that are known exactly, from Sutton & Barto (2018) and for FrozenLake.

use super::*;
use common::envs::Outcome;

/// More sweeps than any evaluation here needs to settle.
const MANY: usize = 200_000;

/// Policy iteration on `model` with these flags.
fn iteration(model: &TransitionModel, flags: &[&str]) -> PolicyIteration {
    let argv = ["policy_iteration"].iter().chain(flags).map(Into::into);
    PolicyIteration::new(model, &cli::parse_from(argv).unwrap()).unwrap()
}

/// Evaluates and improves until neither changes anything. Returns how many improvements did.
fn iterate(iteration: &mut PolicyIteration, evaluation_sweeps: usize) -> usize {
    for improvements in 0..5_000 {
        let (_, settled) = iteration.evaluate(evaluation_sweeps);
        assert!(settled || evaluation_sweeps < MANY, "values without end");
        if iteration.improve().changes == 0 && settled {
            return improvements;
        }
    }
    panic!("no optimal policy was found");
}

/// V* and the optimal policy, from the uniform policy.
fn solve(model: &TransitionModel, gamma: f64, evaluation_sweeps: usize) -> PolicyIteration {
    let mut iteration = iteration(model, &[&format!("--gamma={gamma}")]);
    iterate(&mut iteration, evaluation_sweeps);
    iteration
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

#[test]
fn the_random_policys_values_on_the_gridworld_are_the_books() {
    let mut iteration = iteration(&model_of("Gridworld-v0"), &["--gamma=1", "--theta=1e-12"]);
    assert!(iteration.evaluate(MANY).1);
    // Figure 4.1, k = ∞.
    let book = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0];
    for (value, wanted) in iteration.values.iter().zip(book) {
        assert_close(*value, f64::from(wanted), 1e-8);
    }
    // The figure's right column: one improvement on these values is optimal already.
    iteration.improve();
    let optimal = [0, -1, -2, -3, -1, -2, -3, -2, -2, -3, -2, -1, -3, -2, -1, 0].map(f64::from);
    iteration.evaluate(MANY);
    assert_eq!(iteration.values, optimal);
    assert_close(iteration.value_start(), -2.0, 1e-12);
    // Value iteration reaches the same.
    assert_eq!(solve(&model_of("Gridworld-v0"), 1.0, 1).values, optimal);
}

#[test]
fn sweeps_from_a_copy_are_the_books_one_by_one() {
    let mut iteration = iteration(&model_of("Gridworld-v0"), &["--gamma=1", "--synchronous"]);
    // Figure 4.1: the first two rows after one, two, three and ten sweeps.
    let book = [
        (1, [0.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]),
        (2, [0.0, -1.75, -2.0, -2.0, -1.75, -2.0, -2.0, -2.0]),
        (3, [0.0, -2.4375, -2.9375, -3.0, -2.4375, -2.875, -3.0, -2.9375]),
        (10, [0.0, -6.1, -8.4, -9.0, -6.1, -7.7, -8.4, -8.4]),
    ];
    let mut sweeps = 0;
    for (k, wanted) in book {
        while sweeps < k {
            iteration.sweep();
            sweeps += 1;
        }
        for (state, wanted) in wanted.into_iter().enumerate() {
            assert_close(iteration.values[state], wanted, if k < 10 { 1e-12 } else { 0.05 });
            assert_close(iteration.values[15 - state], iteration.values[state], 1e-12);
        }
    }
}

#[test]
fn states_may_have_fewer_actions_than_others() {
    let mut iteration = iteration(&model_of("MaximizationBias-v0"), &["--gamma=1"]);
    assert_eq!([0, 1, 2].map(|action| iteration.probability(0, action)), [0.5, 0.5, 0.0]);
    assert_eq!(iteration.probability(1, 9), 0.1);
    iteration.evaluate(MANY);
    assert_close(iteration.values[0], -0.05, 1e-12);
    assert_eq!(iteration.expected_episode(10).1, 1.5);
    iteration.improve();
    assert_eq!(iteration.action(0), Some(1));
}

#[test]
fn an_evaluation_counts_its_sweeps_and_says_whether_it_settled() {
    // One state, reward 1 and γ = ½: V is 1, 1.5, 1.75, … and changes by 1, ½, ¼, ⅛.
    let model = TransitionModel { outcomes: vec![vec![certain(0, 1.0, false)]], initial: vec![1.0] };
    let new = || iteration(&model, &["--gamma=0.5", "--theta=0.25"]);
    let mut iteration = new();
    assert_eq!((iteration.evaluate(MANY), iteration.values[0]), ((4, true), 1.875)); // ¼ is not below θ
    let mut iteration = new();
    assert_eq!((iteration.evaluate(2), iteration.values[0]), ((2, false), 1.5));
    // max_a q = 1 + ½ · 1.5, which is ¼ more than V.
    let Improvement { changes, bellman_residual } = iteration.improve();
    assert_eq!((changes, bellman_residual), (0, 0.25));
}

#[test]
fn an_action_gives_way_to_one_that_is_better_by_more_than_theta() {
    let actions = [1.0, 1.5, 1.5, 2.0].map(|reward| certain(0, reward, true));
    let model = TransitionModel { outcomes: vec![actions.to_vec()], initial: vec![1.0] };
    let after = |theta: &str, current: usize| {
        let mut iteration = iteration(&model, &[&format!("--theta={theta}")]);
        iteration.set_action(0, current);
        let changes = iteration.improve().changes;
        (iteration.action(0).unwrap(), changes)
    };
    assert_eq!(
        [after("0.4", 1), after("0.5", 1), after("1", 0), after("0.9", 0)],
        [(3, 1), (1, 0), (0, 0), (3, 1)]
    );
    // A policy that draws its actions is made greedy in any case, by the first of the best.
    let mut undecided = iteration(&model, &["--theta=9"]);
    assert_eq!((undecided.action(0), undecided.improve().changes, undecided.action(0)), (None, 1, Some(3)));
    assert_eq!(undecided.policy, [0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn the_values_that_it_ends_with_are_optimal_up_to_theta() {
    let model = model_of("FrozenLake-v1");
    let optimal = solve(&model, 0.9, MANY).values;
    let mut worst: f64 = 0.0;
    for theta in [0.1, 0.03, 0.01, 0.003, 0.001] {
        for sweeps in [MANY, 3, 1] {
            let mut coarse = iteration(&model, &["--gamma=0.9", &format!("--theta={theta}")]);
            iterate(&mut coarse, sweeps);
            let error = coarse.values.iter().zip(&optimal).map(|(v, w)| (v - w).abs()).fold(0.0, f64::max);
            assert!(error <= 1.9 * theta / 0.1, "θ = {theta}, {sweeps} sweeps: {error}");
            worst = worst.max(error);
        }
    }
    assert!(worst > 0.01, "no θ was coarse: {worst}");
}

#[test]
fn jacks_car_rental_takes_four_improvements() {
    // Begins with the policy that moves no car.
    let mut iteration = iteration(&model_of("CarRental-v0"), &["--gamma=0.9", "--initial-action=5"]);
    let improvements = iterate(&mut iteration, MANY);
    // Figure 4.2: π₄ is optimal.
    assert_eq!(improvements, 4);
    // Exact Poisson sums; the figure's own values come from truncated ones.
    for (cars, wanted) in [(20, 636.99), (0, 421.41), (10, 574.95)] {
        assert_close(iteration.values[cars * 21 + cars], wanted, 0.005);
    }
    let mut states_by_move = [0; 11];
    (0..441).for_each(|state| states_by_move[iteration.action(state).unwrap()] += 1);
    assert_eq!(states_by_move, [0, 3, 9, 14, 17, 270, 33, 29, 23, 17, 26]);
}

#[test]
fn the_gambler_reaches_the_goal_with_the_books_probability() {
    let model = model_of("Gambler-v0");
    let values = solve(&model, 1.0, 1).values;
    assert_close(values[50], 0.4, 1e-9);
    // All or nothing twice: v(25) = 0.4 v(50), v(75) = 0.4 + 0.6 v(50).
    assert_close(values[25], 0.16, 1e-9);
    assert_close(values[75], 0.64, 1e-9);
}

#[test]
fn frozen_lakes_optimal_values_are_the_known_ones() {
    let model = model_of("FrozenLake-v1");
    for (gamma, wanted) in [(0.9, 0.068_891), (0.95, 0.180_472), (0.99, 0.542_026)] {
        // Policy iteration, something between, and value iteration.
        for sweeps in [MANY, 5, 1] {
            assert_close(solve(&model, gamma, sweeps).values[0], wanted, 1e-6);
        }
    }
    assert_close(solve(&model, 1.0, 1).values[0], 14.0 / 17.0, 1e-6);
    assert_close(solve(&model_of("FrozenLake8x8-v1"), 0.99, MANY).values[0], 0.414_640, 1e-6);
}

#[test]
fn chances_of_success_within_the_time_limit_are_the_known_ones() {
    let chance = |env_id: &str, gamma: f64, max_steps: u32| {
        let model = model_of(env_id);
        solve(&model, gamma, MANY).expected_episode(max_steps).0
    };
    assert_close(chance("FrozenLake-v1", 0.99, 100), 0.7402, 5e-5);
    assert_close(chance("FrozenLake-v1", 0.9, 100), 0.7298, 5e-5);
    assert_close(chance("FrozenLake8x8-v1", 0.99, 200), 0.8630, 5e-5);
}

#[test]
fn the_shortest_way_along_the_cliff_takes_13_steps() {
    let model = model_of("CliffWalking-v1");
    // Without a discount too: an episode that never ends would be worth −∞.
    for (gamma, sweeps) in [(0.99, MANY), (0.99, 1), (1.0, MANY), (1.0, 1)] {
        let iteration = solve(&model, gamma, sweeps);
        assert_eq!(iteration.expected_episode(100), (-13.0, 13.0), "γ = {gamma}, {sweeps} sweeps");
    }
}

#[test]
fn an_episode_without_end_is_cut_off() {
    let model = TransitionModel { outcomes: vec![vec![certain(0, 2.0, false)]], initial: vec![1.0] };
    assert_eq!(iteration(&model, &[]).expected_episode(7), (14.0, 7.0));
}

/// Policy iteration to its end.
#[test]
fn pinned_run() {
    let args = ["--theta=1e-6", "--eval-episodes=3"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "policy_iteration", &args, train);
}

/// A few sweeps an evaluation, more evaluations than are allowed.
#[test]
fn pinned_run_that_is_cut_off() {
    let args = ["--env-id=FrozenLake8x8-v1", "--gamma=0.9", "--evaluation-sweeps=3", "--total-timesteps=100"];
    regression::pinned(
        env!("CARGO_MANIFEST_DIR"),
        "cut_off",
        &[&args[..], &["--eval-episodes=3"]].concat(),
        train,
    );
}

/// Evaluations of more sweeps than a run makes between two checkpoints: going up beside the cliff for
/// ever is worth −1/(1 − γ) = −1000, of which a sweep closes a thousandth.
#[test]
fn pinned_run_of_a_long_evaluation() {
    let args = ["--env-id=CliffWalking-v1", "--gamma=0.999", "--theta=1e-3", "--initial-action=0"];
    regression::pinned(
        env!("CARGO_MANIFEST_DIR"),
        "long_evaluation",
        &[&args[..], &["--eval-episodes=3"]].concat(),
        train,
    );
}
