//! Targets against the equations, and the maximisation bias against the literature.

use super::*;
use rand::seq::IndexedRandom;

fn step(reward: f64, terminated: bool) -> Transition {
    Transition { state: 0, action: 1, reward, next_state: 1, terminated }
}

#[test]
fn targets_are_the_equations() {
    let mut q = ActionValues::new(2, 3, true);
    // Q₁(0,·), Q₁(1,·), Q₂(0,·), Q₂(1,·)
    q.values = vec![0.0, 0.0, 0.0, 1.0, 5.0, 2.0, 0.0, 0.0, 0.0, 7.0, 3.0, 4.0];
    let rng = &mut rng(1, 0);
    // 2 + ½ max(1, 5, 2)
    assert_eq!(q.td_target(&step(2.0, false), 0.5, 0, 0, rng), 4.5);
    // Table 1 chooses action 1, table 2 says 3; the other way round action 0 and 1.
    assert_eq!(q.td_target(&step(2.0, false), 0.5, 0, 1, rng), 3.5);
    assert_eq!(q.td_target(&step(2.0, false), 0.5, 1, 0, rng), 2.5);
    for (chooser, valuer) in [(0, 0), (0, 1), (1, 0)] {
        assert_eq!(q.td_target(&step(2.0, true), 0.5, chooser, valuer, rng), 2.0);
    }
    // Acting is by the sum, (8, 8 , 6) with the first of equal ones in the evaluation.
    assert_eq!(q.greedy(1), 0);
    q.values[10] = 3.5;
    assert_eq!((q.greedy(1), q.act(1, 0.0, rng)), (1, 1));
}

#[test]
fn a_time_limit_is_no_terminal_state() {
    // Taxi is cut off after 200 steps; driving south, it stands at the wall by then.
    let mut envs = VecEnv::make("Taxi-v4", 1, 1).unwrap();
    for _ in 0..199 {
        envs.step(&[0]).unwrap();
    }
    let state = envs.observations()[0] as usize;
    envs.step(&[0]).unwrap();
    assert!(envs.truncated()[0]);
    assert_ne!(envs.observations()[0] as usize, state);
    let step = Transition::last(&envs, state, 0);
    assert_eq!((step.next_state, step.terminated, step.reward), (state, false, -1.0));
    // The goal, right at the end of the cliff, is one.
    let mut envs = VecEnv::make("CliffWalking-v1", 1, 1).unwrap();
    let way = [&[0][..], &[1; 11], &[2]].concat();
    way.iter().for_each(|&action| envs.step(&[action]).unwrap());
    let step = Transition::last(&envs, 35, 2);
    assert_eq!((step.next_state, step.terminated, step.reward), (47, true, -1.0));
}

#[test]
fn an_update_moves_one_entry_of_one_table_by_alpha_delta() {
    let rng = &mut rng(1, 0);
    let mut q = ActionValues::new(2, 2, false);
    q.values = vec![0.0, 10.0, 4.0, 6.0];
    // δ = 1 + 0.9 · 6 − 10
    assert!((q.update(&step(1.0, false), 0.25, 0.9, rng) + 3.6).abs() < 1e-12);
    assert!((q.values[1] - 9.1).abs() < 1e-12);
    assert_eq!([q.values[0], q.values[2], q.values[3]], [0.0, 4.0, 6.0]);

    // Double Q-learning: Q₁'s target is 1 + Q₂ = 9, Q₂'s is 1 + Q₁ = 5.
    let mut updates = [0, 0];
    for _ in 0..1000 {
        let mut q = ActionValues::new(2, 1, true);
        q.values = vec![0.0, 4.0, 0.0, 8.0];
        q.update(&Transition { action: 0, ..step(1.0, false) }, 1.0, 1.0, rng);
        match q.values[..] {
            [9.0, 4.0, 0.0, 8.0] => updates[0] += 1,
            [0.0, 4.0, 5.0, 8.0] => updates[1] += 1,
            _ => panic!("{:?}", q.values),
        }
    }
    // A fair coin: five standard deviations (15.8) around 500.
    assert!((421..=579).contains(&updates[0]), "{updates:?}");
}

#[test]
fn equal_actions_are_equally_likely_and_exploration_is_uniform() {
    let rng = &mut rng(1, 0);
    let mut q = ActionValues::new(1, 4, false);
    q.values = vec![2.0, 1.0, 2.0, 2.0];
    let mut counts = |epsilon: f64| {
        let mut counts = [0; 4];
        (0..12_000).for_each(|_| counts[q.act(0, epsilon, rng)] += 1);
        counts
    };
    // Within five standard deviations (52) of the expectation.
    let [first, second, third, fourth] = counts(0.0);
    assert_eq!(second, 0);
    assert!([first, third, fourth].iter().all(|count| (3740..=4260).contains(count)));
    // ε/4 for the bad action, (1 − ε)/3 + ε/4 for the others.
    let [first, second, third, fourth] = counts(0.4);
    assert!((1036..=1364).contains(&second), "{second}");
    assert!([first, third, fourth].iter().all(|count| (3337..=3863).contains(count)));
}

#[test]
fn exploration_falls_and_stays() {
    let epsilon = |step| epsilon(1.0, 0.2, 100.0, step);
    assert_eq!([0, 50, 100, 1000].map(epsilon), [1.0, 0.6, 0.2, 0.2].map(|e: f64| 1.0 + (e - 1.0)));
}

/// Example 6.7: from A, right ends the episode with 0 and left leads to B, whose ten actions all end
/// it with a reward drawn from N(−0.1, 1). Left is a mistake, yet the largest of ten noisy estimates
/// looks like a gain.
///
/// Returns how often left was taken in each of the first 300 episodes, over `runs` runs.
fn fraction_left(double: bool, runs: usize) -> Vec<f64> {
    const A: usize = 0;
    const B: usize = 1;
    const LEFT: usize = 0;
    const RIGHT: usize = 1;
    let (learning_rate, epsilon, gamma) = (0.1, 0.1, 1.0);
    let rng = &mut rng(1, 0);
    let mut left = vec![0.0; 300];
    for _ in 0..runs {
        let mut q = ActionValues::new(2, 10, double);
        for table in 0..q.num_tables {
            // A has two actions only.
            q.values[20 * table + 2..20 * table + 10].fill(f64::NEG_INFINITY);
        }
        for left in &mut left {
            let explores = rng.random::<f64>() < epsilon;
            let action = if explores { *[LEFT, RIGHT].choose(rng).unwrap() } else { q.act(A, 0.0, rng) };
            let ends = action == RIGHT;
            let step = Transition { state: A, action, reward: 0.0, next_state: B, terminated: ends };
            q.update(&step, learning_rate, gamma, rng);
            if ends {
                continue;
            }
            *left += 1.0 / runs as f64;
            let action = q.act(B, epsilon, rng);
            let reward = -0.1 + standard_normal(rng);
            q.update(
                &Transition { state: B, action, reward, next_state: A, terminated: true },
                learning_rate,
                gamma,
                rng,
            );
        }
    }
    left
}

/// Box & Muller (1958).
fn standard_normal(rng: &mut Rng) -> f64 {
    let (radius, angle) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

#[test]
fn the_maximisation_bias_is_the_literatures_and_double_q_learning_has_less() {
    // Fractions computed over 10,000 runs for the curves of Sutton & Barto (2018), figure 6.5.
    let episodes = [1, 5, 10, 20, 50, 100, 200, 300];
    let figure = [
        (false, [0.50, 0.68, 0.87, 0.94, 0.83, 0.46, 0.155, 0.121]),
        (true, [0.51, 0.50, 0.45, 0.29, 0.137, 0.096, 0.074, 0.067]),
    ];
    for (double, wanted) in figure {
        let left = fraction_left(double, 10_000);
        for (episode, wanted) in episodes.into_iter().zip(wanted) {
            // The standard deviation of either number is at most 0.005, and the figure is rounded.
            let got = left[episode - 1];
            assert!((got - wanted).abs() < 0.02, "double {double}, episode {episode}: {got}, not {wanted}");
        }
    }
}
