//! Planning by hand, what a step shows, means over many runs against the book's, and pinned runs.

use super::*;
use common::envs::{self, Space, rng};
use regression::{SCRIPT, View, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["dyna_q"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

fn step(state: usize, action: usize, reward: f64, next_state: usize, terminated: bool) -> Transition {
    Transition { state, action, reward, next_state, terminated }
}

#[test]
fn an_update_is_q_learnings() {
    let mut dyna = DynaQ::new(3, 2, &args(&["--learning-rate=0.5", "--gamma=0.8"]));
    dyna.q = vec![1.0, 2.0, 5.0, 10.0, 7.0, 7.0];
    // 3 + 0.8 · 10 − 2 = 9, and 3 − 2 where the episode ends.
    assert_eq!(dyna.update(&step(0, 1, 3.0, 1, false)), 9.0);
    assert_eq!(dyna.q, [1.0, 6.5, 5.0, 10.0, 7.0, 7.0]);
    dyna.q[1] = 2.0;
    assert_eq!((dyna.update(&step(0, 1, 3.0, 1, true)), dyna.q[1]), (1.0, 2.5));
}

#[test]
fn a_reward_found_once_is_relived_along_the_whole_way() {
    // A corridor 0 → 1 → 2 → 3 by action 1, a reward at its end.
    let walk = |flags: &[&str]| {
        let mut dyna = DynaQ::new(4, 2, &args(flags));
        for state in 0..3 {
            let at_end = state == 2;
            let reward = if at_end { 1.0 } else { 0.0 };
            dyna.learn(&step(state, 1, reward, state + 1, at_end), &mut rng(1, 0));
        }
        [dyna.q[1], dyna.q[3], dyna.q[5]]
    };
    // Q-learning knows of the last step alone.
    assert_eq!(walk(&["--planning-steps=0", "--learning-rate=0.5"]), [0.0, 0.0, 0.5]);
    let planned = walk(&["--planning-steps=1000", "--gamma=0.9"]);
    for (value, wanted) in planned.into_iter().zip([0.81, 0.9, 1.0]) {
        assert!((value - wanted).abs() < 1e-6, "{planned:?}");
    }
    // Prioritised sweeping goes straight backwards: three updates.
    assert_eq!(
        walk(&["--planning-steps=3", "--gamma=0.5", "--learning-rate=1", "--prioritized-sweeping"]),
        [0.25, 0.5, 1.0]
    );
    assert_eq!(
        walk(&["--planning-steps=2", "--gamma=0.5", "--learning-rate=1", "--prioritized-sweeping"]),
        [0.0, 0.5, 1.0]
    );
    // It updates nothing else, not even directly.
    assert_eq!(walk(&["--planning-steps=0", "--prioritized-sweeping"]), [0.0; 3]);
}

#[test]
fn only_what_was_seen_is_relived_and_each_state_as_often() {
    let mut dyna = DynaQ::new(5, 3, &args(&[]));
    let seen = [step(1, 0, 1.0, 2, false), step(1, 2, 2.0, 3, false), step(4, 1, 3.0, 0, true)];
    seen.iter().for_each(|step| dyna.remember(step));
    dyna.remember(&step(1, 0, 5.0, 2, false)); // another outcome takes the first one's place
    assert_eq!((&dyna.model.states[..], dyna.model.time), (&[1, 4][..], 4));
    let mut counts = [0; 3];
    let rng = &mut rng(1, 0);
    for _ in 0..12_000 {
        let imagined = dyna.imagine(rng);
        let which = [5.0, 2.0, 3.0].iter().position(|&reward| reward == imagined.reward).unwrap();
        assert_eq!(Transition { reward: seen[which].reward, ..imagined }, seen[which]);
        counts[which] += 1;
    }
    // A quarter, a quarter and a half, to within five standard deviations.
    for (count, wanted) in counts.into_iter().zip([3000_i32, 3000, 6000]) {
        assert!((count - wanted).abs() < 280, "{counts:?}");
    }
}

#[test]
fn the_bonus_grows_with_the_root_of_the_time_and_counts_for_what_was_never_tried() {
    let mut dyna = DynaQ::new(3, 2, &args(&["--kappa=0.1"]));
    dyna.remember(&step(1, 0, 7.0, 2, false));
    for _ in 0..16 {
        dyna.remember(&step(2, 0, 1.0, 0, true));
    }
    let rng = &mut rng(1, 0);
    let mut seen = [false; 4];
    for _ in 0..200 {
        let imagined = dyna.imagine(rng);
        // 17 real steps: (1,0) was the first of them, (2,0) the last.
        let wanted = match (imagined.state, imagined.action) {
            (1, 0) => step(1, 0, 7.0 + 0.1 * 4.0, 2, false),
            (1, 1) => step(1, 1, 0.1 * 17_f64.sqrt(), 1, false),
            (2, 0) => step(2, 0, 1.0, 0, true),
            (2, 1) => step(2, 1, 0.1 * 17_f64.sqrt(), 2, false),
            other => panic!("{other:?} was not seen"),
        };
        assert_eq!(imagined, wanted);
        seen[2 * (imagined.state - 1) + imagined.action] = true;
    }
    assert_eq!(seen, [true; 4]);
}

#[test]
fn urgent_is_what_exceeds_theta_and_the_most_urgent_comes_first() {
    let mut dyna = DynaQ::new(4, 2, &args(&["--theta=0.5", "--planning-steps=1", "--learning-rate=1"]));
    for (state, reward) in [(0, 0.5), (1, -3.0), (2, 2.0)] {
        let step = step(state, 0, reward, 3, true);
        dyna.remember(&step);
        assert_eq!(dyna.prioritize(&step), reward);
    }
    assert_eq!(dyna.priorities, [0.0, 0.0, 3.0, 0.0, 2.0, 0.0, 0.0, 0.0]);
    // A lower priority of the same pair does not take a higher one's place.
    dyna.q[2] = -1.0;
    dyna.prioritize(&step(1, 0, -3.0, 3, true));
    assert_eq!(dyna.priorities[2], 3.0);
    dyna.q[2] = 0.0;
    assert_eq!((dyna.sweep(), dyna.q[2], dyna.priorities[2]), (1, -3.0, 0.0));
    assert_eq!((dyna.sweep(), dyna.q[4]), (1, 2.0));
    assert_eq!((dyna.sweep(), dyna.q[0]), (0, 0.0)); // 0.5 does not exceed θ

    // What leads to a state is urgent by as much as it would change; what ends there is not.
    dyna.remember(&step(3, 0, 0.0, 2, false));
    dyna.remember(&step(3, 1, 5.0, 2, true));
    dyna.q[4] = 0.0;
    dyna.prioritize(&step(2, 0, 2.0, 3, true));
    dyna.sweep();
    assert_eq!(dyna.priorities, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.95 * 2.0, 0.0]);
}

#[test]
fn a_transition_is_what_happened() {
    let (mut envs, log) = scripted(1, View::State, Space::Discrete { n: 3 }, SCRIPT);
    let mut rng = learner_rng(1);
    let mut dyna = DynaQ::new(1000, 3, &args(&[]));
    for time in 1..=20 {
        let state = envs.observations()[0] as usize;
        let action = dyna.act(state, &mut rng);
        envs.step(&[action as u32]).unwrap();
        let step = Transition::last(state, action, &envs);
        let happened = log.of(0).pop().unwrap();
        assert_eq!(step.state as f32, happened.observation[0]);
        assert_eq!(step.action as f32, happened.action[0]);
        assert_eq!(step.reward, f64::from(happened.reward));
        assert_eq!(step.next_state as f32, happened.next_observation[0]);
        assert_eq!(step.terminated, happened.terminated);
        // The model has it as it was.
        dyna.learn(&step, &mut rng);
        let entry = dyna.entry(state, action);
        assert_eq!((dyna.model.outcomes[entry], dyna.model.last_tried[entry]), (Some(step), time));
    }
    let ends: Vec<_> = log.of(0).iter().map(|t| (t.terminated, t.truncated)).collect();
    assert!([(true, false), (false, true), (true, true)].iter().all(|end| ends.contains(end)));
}

#[test]
fn equal_actions_are_equally_likely_and_exploration_is_uniform() {
    let rng = &mut rng(1, 0);
    let mut counts = |epsilon: &str| {
        let mut dyna = DynaQ::new(1, 4, &args(&["--epsilon", epsilon]));
        dyna.q = vec![2.0, 1.0, 2.0, 2.0];
        assert_eq!(dyna.act_greedily(0), 0);
        let mut counts = [0; 4];
        (0..12_000).for_each(|_| counts[dyna.act(0, rng)] += 1);
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

/// One run of a maze: the lengths of its episodes and the reward at its end.
fn play(env_id: &str, flags: &[&str], seed: u64, enough: impl Fn(usize, usize) -> bool) -> (Vec<u32>, f64) {
    let mut envs = VecEnv::make(env_id, 1, seed).unwrap();
    let (num_states, num_actions) = envs.spec().discrete_to_discrete("dyna_q").unwrap();
    let mut rng = learner_rng(seed);
    let mut dyna = DynaQ::new(num_states, num_actions, &args(flags));
    let (mut lengths, mut reward, mut steps) = (Vec::new(), 0.0, 0);
    while !enough(lengths.len(), steps) {
        let state = envs.observations()[0] as usize;
        let action = dyna.act(state, &mut rng);
        envs.step(&[action as u32]).unwrap();
        let step = Transition::last(state, action, &envs);
        dyna.learn(&step, &mut rng);
        steps += 1;
        reward += step.reward;
        lengths.extend(envs.episodes().iter().map(|episode| episode.length));
    }
    (lengths, reward)
}

/// Mean and standard error.
fn mean(results: impl Iterator<Item = f64>) -> (f64, f64) {
    let results: Vec<f64> = results.collect();
    let n = results.len() as f64;
    let mean = results.iter().sum::<f64>() / n;
    let variance = results.iter().map(|result| (result - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// Within three standard errors, of which the published mean's is about as many times ours as its runs
/// are fewer.
#[track_caller]
fn assert_meets((mean, error): (f64, f64), runs: f64, published: f64, its_runs: f64) {
    let allowed = 3.0 * error * (1.0 + runs / its_runs).sqrt();
    assert!((mean - published).abs() <= allowed, "{mean} ± {error}, published {published}");
}

/// Example 8.1, figure 8.2; published means computed over 1000 runs.
#[test]
fn planning_shortens_the_first_episodes_as_in_the_book() {
    let runs = 150;
    for (n, late, fifth, third) in [(0, 18.06, 269.4, 521.0), (5, 16.75, 23.2, 62.0), (50, 16.77, 17.0, 17.5)]
    {
        let flags = format!("--planning-steps={n}");
        let lengths: Vec<Vec<u32>> = (1..=runs)
            .map(|seed| play("DynaMaze-v0", &[&flags], seed, |episodes, _| episodes == 50).0)
            .collect();
        let of = |episodes: std::ops::Range<usize>| {
            let count = episodes.len() as f64;
            mean(
                lengths
                    .iter()
                    .map(|run| run[episodes.clone()].iter().map(|&l| f64::from(l)).sum::<f64>() / count),
            )
        };
        assert_meets(of(30..50), runs as f64, late, 1000.0);
        assert_meets(of(4..5), runs as f64, fifth, 1000.0);
        assert_meets(of(2..3), runs as f64, third, 1000.0);
    }
}

/// Examples 8.2 and 8.3, figures 8.4 and 8.5; published means computed over 200 runs.
#[test]
fn the_bonus_finds_ways_that_have_changed_as_in_the_book() {
    let runs = 60;
    for (env_id, steps, n, kappa, published) in [
        ("BlockingMaze-v0", 3000, 10, "1e-3", 140.1),
        ("BlockingMaze-v0", 3000, 10, "0", 79.9),
        ("BlockingMaze-v0", 3000, 10, "1e-4", 134.3),
        ("ShortcutMaze-v0", 6000, 50, "1e-3", 364.6),
        ("ShortcutMaze-v0", 6000, 50, "0", 284.5),
    ] {
        let flags = [&format!("--planning-steps={n}"), "--learning-rate=1", &format!("--kappa={kappa}")];
        let reward = |seed| play(env_id, &flags, seed, |_, time| time == steps).1;
        let result = mean((1..=runs).map(reward));
        assert_meets(result, runs as f64, published, 200.0);
    }
}

/// Updates until the greedy policy's way to the goal is at most 1.2 times the shortest.
fn updates_until_solved(flags: &[&str], seed: u64) -> f64 {
    let env = envs::make("DynaMaze-v0").unwrap();
    let outcomes = &env.model().unwrap().outcomes;
    let start = env.model().unwrap().initial.iter().position(|&p| p == 1.0).unwrap();
    let solved = |dyna: &DynaQ| {
        let mut state = start;
        (1..=16).any(|_| {
            let outcome = outcomes[state][dyna.act_greedily(state)][0];
            state = outcome.next_state;
            outcome.terminated
        })
    };
    let mut envs = VecEnv::make("DynaMaze-v0", 1, seed).unwrap();
    let mut rng = learner_rng(seed);
    let mut dyna = DynaQ::new(54, 4, &args(flags));
    let mut updates = 0;
    while !solved(&dyna) {
        let state = envs.observations()[0] as usize;
        let action = dyna.act(state, &mut rng);
        envs.step(&[action as u32]).unwrap();
        let step = Transition::last(state, action, &envs);
        if dyna.args.prioritized_sweeping {
            dyna.remember(&step);
            dyna.prioritize(&step);
            updates += dyna.sweep();
        } else {
            dyna.learn(&step, &mut rng);
            updates += 1 + dyna.args.planning_steps;
        }
    }
    updates as f64
}

/// Example 8.4; published means computed over 30 runs. One run in fifty holds on to a detour for long.
#[test]
fn prioritised_sweeping_needs_a_fraction_of_the_updates_as_in_the_book() {
    let runs = 60;
    let flags = ["--learning-rate=0.5", "--planning-steps=5"];
    let updates = |flags: &[&str]| mean((1..=runs).map(|seed| updates_until_solved(flags, seed)));
    let prioritized = updates(&[&flags[..], &["--prioritized-sweeping"]].concat());
    let random = updates(&flags);
    assert_meets(prioritized, runs as f64, 782.0, 30.0);
    assert_meets(random, runs as f64, 7338.0, 30.0);
    assert!(random.0 > 4.0 * prioritized.0);
}

#[test]
fn pinned_run_of_dyna_q() {
    let args = [
        "--total-timesteps=800",
        "--planning-steps=3",
        "--learning-rate=0.3",
        "--gamma=0.9",
        "--epsilon=0.2",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "dyna_maze", &args, train);
}

#[test]
fn pinned_run_of_dyna_q_plus() {
    // The wall moves after 1000 steps.
    let args = [
        "--env-id=BlockingMaze-v0",
        "--total-timesteps=1600",
        "--planning-steps=10",
        "--learning-rate=1",
        "--kappa=1e-3",
        "--eval-episodes=1",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "blocking_maze", &args, train);
}

#[test]
fn pinned_run_of_prioritised_sweeping() {
    let args = [
        "--total-timesteps=600",
        "--prioritized-sweeping",
        "--planning-steps=4",
        "--theta=0.01",
        "--learning-rate=0.5",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "dyna_maze_prioritised", &args, train);
}
