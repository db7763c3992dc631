//! Values and policies that are known exactly, from Sutton & Barto (2018) and for FrozenLake.

use super::*;
use common::envs::Outcome;

/// More sweeps than any evaluation here needs to settle.
const MANY: usize = 200_000;

/// Policy iteration on `model` with these flags.
fn iteration(model: &TransitionModel, flags: &[&str]) -> PolicyIteration {
    let argv = ["policy_iteration"].iter().chain(flags).map(Into::into);
    PolicyIteration::new(model, &cli::parse_from(argv).unwrap())
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

/// Example 4.1: a 4 × 4 grid, −1 a step, the first and the last field end the episode.
fn gridworld() -> TransitionModel {
    let step = |state: usize, action: usize| {
        let (row, column) = (state / 4, state % 4);
        let (row, column) = match action {
            0 => (row.saturating_sub(1), column),
            1 => ((row + 1).min(3), column),
            2 => (row, (column + 1).min(3)),
            _ => (row, column.saturating_sub(1)),
        };
        let next_state = row * 4 + column;
        match state {
            0 | 15 => certain(state, 0.0, true),
            _ => certain(next_state, -1.0, next_state == 0 || next_state == 15),
        }
    };
    TransitionModel {
        outcomes: (0..16).map(|state| (0..4).map(|action| step(state, action)).collect()).collect(),
        initial: vec![1.0 / 16.0; 16],
    }
}

#[test]
fn the_random_policys_values_on_the_gridworld_are_the_books() {
    let mut iteration = iteration(&gridworld(), &["--gamma=1", "--theta=1e-12"]);
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
    assert_eq!(iteration.value_start(), optimal.iter().sum::<f64>() / 16.0);
    // Value iteration reaches the same.
    assert_eq!(solve(&gridworld(), 1.0, 1).values, optimal);
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

/// Poisson probabilities of 0 to 199.
fn poisson(mean: f64) -> Vec<f64> {
    let mut probabilities = vec![(-mean).exp()];
    for n in 1..200 {
        probabilities.push(probabilities[n - 1] * mean / n as f64);
    }
    probabilities
}

/// One location's day, from `cars` in the morning: the distribution of the cars in the evening
/// `[21]` and the expected income, 10 a car.
fn rental_day(cars: usize, requests: &[f64], returns: &[f64]) -> (Vec<f64>, f64) {
    let (mut evening, mut income) = (vec![0.0; 21], 0.0);
    for (request, p_request) in requests.iter().enumerate() {
        let rented = request.min(cars);
        income += 10.0 * p_request * rented as f64;
        for (returned, p_returned) in returns.iter().enumerate() {
            evening[(cars - rented + returned).min(20)] += p_request * p_returned;
        }
    }
    (evening, income)
}

/// Example 4.2: state `21 · (cars at the first location) + (cars at the second)`, action
/// `5 + (cars moved overnight from the first to the second)`.
fn car_rental() -> TransitionModel {
    let days = |requests: f64, returns: f64| -> Vec<(Vec<f64>, f64)> {
        let (requests, returns) = (poisson(requests), poisson(returns));
        (0..21).map(|cars| rental_day(cars, &requests, &returns)).collect()
    };
    let (first, second) = (days(3.0, 3.0), days(4.0, 2.0));
    let outcomes_of = |state: usize, action: usize| -> Vec<Outcome> {
        let (cars1, cars2, moved) = ((state / 21) as i32, (state % 21) as i32, action as i32 - 5);
        if moved > cars1 || -moved > cars2 {
            // There are not so many cars to move: no action that a policy may take.
            return certain(state, -1e6, true);
        }
        let (evening1, income1) = &first[(cars1 - moved).min(20) as usize];
        let (evening2, income2) = &second[(cars2 + moved).min(20) as usize];
        let reward = income1 + income2 - 2.0 * f64::from(moved.abs());
        let mut outcomes = Vec::with_capacity(441);
        for (next1, p1) in evening1.iter().enumerate() {
            for (next2, p2) in evening2.iter().enumerate() {
                let (probability, next_state) = (p1 * p2, next1 * 21 + next2);
                outcomes.push(Outcome { probability, next_state, reward, terminated: false });
            }
        }
        outcomes
    };
    TransitionModel {
        outcomes: (0..441).map(|state| (0..11).map(|action| outcomes_of(state, action)).collect()).collect(),
        initial: vec![1.0 / 441.0; 441],
    }
}

#[test]
fn jacks_car_rental_takes_four_improvements() {
    let model = car_rental();
    let mut iteration = iteration(&model, &["--gamma=0.9"]);
    (0..441).for_each(|state| iteration.set_action(state, 5)); // no car is moved
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
    // Example 4.3: capital 1 to 99, heads with probability 0.4; action a stakes a + 1 at most.
    let outcomes_of = |capital: usize, action: usize| -> Vec<Outcome> {
        if capital == 0 || capital == 100 {
            return certain(capital, 0.0, true);
        }
        let stake = (action + 1).min(capital).min(100 - capital);
        let outcome = |probability: f64, next_state: usize| {
            let reward = if next_state == 100 { 1.0 } else { 0.0 };
            Outcome { probability, next_state, reward, terminated: next_state == 0 || next_state == 100 }
        };
        vec![outcome(0.4, capital + stake), outcome(0.6, capital - stake)]
    };
    let model = TransitionModel {
        outcomes: (0..=100).map(|s| (0..50).map(|a| outcomes_of(s, a)).collect()).collect(),
        initial: vec![0.0; 101],
    };
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
