//! Updates against recordings and the book, what a step shows, and runs against their pins.

use super::*;
use common::envs::{Space, rng};
use regression::{Recording, SCRIPT, View, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["q_learning"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

/// Tables with the recording's hyper-parameters, and its fifty steps.
fn recorded(recording: &Recording) -> (QLearning, Vec<Transition>) {
    let flag = |flag: &str, name: &str| format!("--{flag}={}", recording.number(name));
    let args = args(&[&flag("learning-rate", "learning_rate"), &flag("gamma", "gamma")]);
    let [states, actions, next_states] =
        ["states", "actions", "next_states"].map(|name| recording.integers(&format!("batch/{name}")));
    let (rewards, terminated) = (recording.floats("batch/rewards"), recording.flags("batch/terminated"));
    let step = |i: usize| Transition {
        state: states[i] as usize,
        action: actions[i] as usize,
        reward: rewards[i].into(),
        next_state: next_states[i] as usize,
        terminated: terminated[i],
    };
    (QLearning::new(6, 3, &args), (0..states.len()).map(step).collect())
}

fn table(recording: &Recording, name: &str) -> Vec<f64> {
    recording.floats(name).into_iter().map(f64::from).collect()
}

/// Of `runs` runs on the textbook's example 6.7, the share whose first action goes left in some episodes.
fn shares_of_left(flags: &[&str], counted: [usize; 8], runs: u64) -> [f64; 8] {
    let args = args(&[&["--learning-rate=0.1"], flags].concat());
    let env = envs::make("MaximizationBias-v0").unwrap();
    let actions: Vec<usize> = env.model().unwrap().outcomes.iter().map(Vec::len).collect();
    let mut shares = [0.0; 8];
    for seed in 0..runs {
        let mut envs = VecEnv::make("MaximizationBias-v0", 1, seed).unwrap();
        let (mut q, mut rng) = (QLearning::new(3, 10, &args), learner_rng(seed));
        q.actions = actions.clone();
        let mut episodes = 0;
        while episodes < 300 {
            let state = envs.observations()[0] as usize;
            let action = q.act(state, 0.1, &mut rng);
            if let Some(i) = counted.iter().position(|&counted| counted == episodes + 1)
                && (state, action) == (0, 0)
            {
                shares[i] += 1.0 / runs as f64;
            }
            envs.step(&[action as u32]).unwrap();
            episodes += envs.episodes().len();
            let step = Transition::last(state, action, &envs);
            match args.double {
                true => q.update_double(&step, rng.random(), &mut rng),
                false => q.update(&step),
            };
        }
    }
    shares
}

#[test]
fn the_largest_of_noisy_estimates_misleads_one_table_and_not_two() {
    // Figure 6.5, computed with other code over 10,000 runs, and rounded.
    let (runs, counted) = (5000, [1, 5, 10, 20, 50, 100, 200, 300]);
    for (flags, wanted) in [
        (&[][..], [0.50, 0.68, 0.87, 0.94, 0.83, 0.46, 0.155, 0.121]),
        (&["--double"][..], [0.51, 0.50, 0.45, 0.29, 0.137, 0.096, 0.074, 0.067]),
    ] {
        for (i, share) in shares_of_left(flags, counted, runs).into_iter().enumerate() {
            let wanted: f64 = wanted[i];
            let std_error = (wanted * (1.0 - wanted) * (1.0 / runs as f64 + 1.0 / 10_000.0)).sqrt();
            let rounded = if wanted > 0.2 { 5e-3 } else { 5e-4 };
            assert!(
                (share - wanted).abs() < 3.0 * std_error + rounded,
                "{flags:?}, episode {}: {share}, expected {wanted} ± {std_error}",
                counted[i]
            );
        }
    }
}

/// Example 6.6: the shortest way is worth −13 and is what Q-learning finds, but walked with ε = 0.1 −50.80.
/// What episodes 401 to 500 bring was computed over 500 runs, whose standard deviation is 6.8.
#[test]
fn the_way_along_the_cliff_is_short_and_dangerous_as_is_known() {
    let outcomes = envs::make("CliffWalking-v1").unwrap().model().unwrap().outcomes.clone();
    let mut q = QLearning::new(48, 4, &args(&["--learning-rate=1", "--gamma=1"]));
    for (state, action) in (0..30).flat_map(|_| (0..37).flat_map(|s| (0..4).map(move |a| (s, a)))) {
        let outcome = outcomes[state][action][0];
        let (reward, next_state, terminated) = (outcome.reward, outcome.next_state, outcome.terminated);
        q.update(&Transition { state, action, reward, next_state, terminated });
    }
    let max = |state: usize| q.values(state).into_iter().fold(f64::NEG_INFINITY, f64::max);
    assert_eq!(max(36), -13.0);
    let mut values = [0.0; 48];
    for state in (0..3000).flat_map(|_| 0..37) {
        let best = |action: &usize| q.values(state)[*action] == max(state);
        let count = (0..4).filter(best).count() as f64;
        let of = |action: usize| {
            let outcome = outcomes[state][action][0];
            let probability = 0.1 / 4.0 + if best(&action) { 0.9 / count } else { 0.0 };
            probability * (outcome.reward + if outcome.terminated { 0.0 } else { values[outcome.next_state] })
        };
        values[state] = (0..4).map(of).sum();
    }
    assert!((values[36] + 50.80).abs() < 5e-3, "{}", values[36]);

    let runs = 100;
    let late = |seed: u64| {
        let mut envs = VecEnv::make("CliffWalking-v1", 1, seed).unwrap();
        let (mut q, mut rng) = (QLearning::new(48, 4, &args(&["--gamma=1"])), learner_rng(seed));
        let mut returns = Vec::new();
        while returns.len() < 500 {
            let state = envs.observations()[0] as usize;
            let action = q.act(state, 0.1, &mut rng);
            envs.step(&[action as u32]).unwrap();
            q.update(&Transition::last(state, action, &envs));
            returns.extend(envs.episodes().iter().map(|episode| episode.episodic_return));
        }
        returns[400..].iter().sum::<f64>() / 100.0
    };
    let mean = (1..=runs).map(late).sum::<f64>() / runs as f64;
    let std_error = 6.8 * (1.0 / runs as f64 + 1.0 / 500.0).sqrt();
    assert!((mean + 49.5).abs() < 3.0 * std_error, "{mean}, known −49.5 ± {std_error}");
}

#[test]
fn recorded_update_of_q_learning() {
    let mut recording = Recording::open("q_learning");
    let (mut q, steps) = recorded(&recording);
    q.q1 = table(&recording, "parameters/q/table.weight");
    let (mut targets, mut td_errors, mut tables) = (Vec::new(), Vec::new(), Vec::new());
    for step in &steps {
        let before = q.q1[step.state * 3 + step.action];
        let td_error = q.update(step);
        targets.push(before + td_error);
        td_errors.push(td_error);
        tables.push(q.q1.clone());
    }
    recording.close("expected/targets", &targets);
    recording.close("expected/td_errors", &td_errors);
    recording.close("expected/values_over_updates", &tables);
    recording.close("expected/parameters/q/table.weight", &q.q1);
    recording.finish();
    assert!(q.q2.iter().all(|&value| value == 0.0));
}

#[test]
fn recorded_update_of_double_q_learning() {
    let mut recording = Recording::open("q_learning__double");
    let (mut q, steps) = recorded(&recording);
    q.q1 = table(&recording, "parameters/q_a/table.weight");
    q.q2 = table(&recording, "parameters/q_b/table.weight");
    let heads = recording.flags("batch/updates_a");
    let (mut targets, mut td_errors, mut tables) = (Vec::new(), Vec::new(), Vec::new());
    for (step, heads) in steps.iter().zip(heads) {
        let before = if heads { &q.q1 } else { &q.q2 }[step.state * 3 + step.action];
        let td_error = q.update_double(step, heads, &mut rng(1, 0));
        targets.push(before + td_error);
        td_errors.push(td_error);
        tables.push([q.q1.clone(), q.q2.clone()]);
    }
    recording.close("expected/targets", &targets);
    recording.close("expected/td_errors", &td_errors);
    recording.close("expected/values_over_updates", &tables);
    recording.close("expected/parameters/q_a/table.weight", &q.q1);
    recording.close("expected/parameters/q_b/table.weight", &q.q2);
    recording.finish();
}

#[test]
fn a_transition_is_what_happened() {
    let (mut envs, log) = scripted(1, View::State, Space::Discrete { n: 3 }, SCRIPT);
    let mut rng = learner_rng(1);
    let q = QLearning::new(1000, 3, &args(&[]));
    for _ in 0..20 {
        let state = envs.observations()[0] as usize;
        let action = q.act(state, 0.5, &mut rng);
        envs.step(&[action as u32]).unwrap();
        let step = Transition::last(state, action, &envs);
        let happened = log.of(0).pop().unwrap();
        assert_eq!(step.state as f32, happened.observation[0]);
        assert_eq!(step.action as f32, happened.action[0]);
        assert_eq!(step.reward, f64::from(happened.reward));
        assert_eq!(step.next_state as f32, happened.next_observation[0]);
        assert_eq!(step.terminated, happened.terminated);
    }
    let ends: Vec<_> = log.of(0).iter().map(|t| (t.terminated, t.truncated)).collect();
    assert!([(true, false), (false, true), (true, true)].iter().all(|end| ends.contains(end)));
}

#[test]
fn actions_are_chosen_by_the_sum_of_both_tables() {
    let mut q = QLearning::new(2, 3, &args(&[]));
    (q.q1, q.q2) = (vec![0.0, 0.0, 0.0, 1.0, 5.0, 2.0], vec![9.0, 0.0, 0.0, 7.0, 3.5, 4.0]);
    assert_eq!(q.values(1), [8.0, 8.5, 6.0]);
    assert_eq!((q.act_greedily(1), q.act(1, 0.0, &mut rng(1, 0))), (1, 1));
    // The first of equal ones, so that an evaluation is reproducible.
    q.q2[4] = 3.0;
    assert_eq!((q.act_greedily(0), q.act_greedily(1)), (0, 0));
    q.q1[5] = 4.5;
    assert_eq!(q.act_greedily(1), 2);
}

#[test]
fn equal_actions_are_equally_likely_and_exploration_is_uniform() {
    let rng = &mut rng(1, 0);
    let mut q = QLearning::new(1, 4, &args(&[]));
    q.q1 = vec![2.0, 1.0, 2.0, 2.0];
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
fn equally_good_next_actions_are_valued_alike() {
    // Q₁ has two best actions in s', to which Q₂ gives 1 and 3: either may be the choice.
    let step = Transition { state: 0, action: 0, reward: 0.0, next_state: 1, terminated: false };
    let mut seen = [0, 0];
    for seed in 0..1000 {
        let mut q = QLearning::new(2, 2, &args(&["--learning-rate=1", "--gamma=1"]));
        q.q2 = vec![0.0, 0.0, 1.0, 3.0];
        match q.update_double(&step, true, &mut rng(seed, 0)) {
            1.0 => seen[0] += 1,
            3.0 => seen[1] += 1,
            other => panic!("{other}"),
        }
    }
    assert!((421..=579).contains(&seen[0]), "{seen:?}"); // five standard deviations
}

#[test]
fn exploration_falls_and_stays() {
    let epsilon = |step| linear_schedule(1.0, 0.2, 100.0, step);
    assert_eq!([0, 50, 100, 1000].map(epsilon), [1.0, 0.6, 0.2, 0.2].map(|e: f64| 1.0 + (e - 1.0)));
    assert_eq!(linear_schedule(1.0, 0.2, 0.0, 1), 1.0 + (0.2 - 1.0));
}

#[test]
fn pinned_run() {
    // Exploration that falls during half of the run, and a discount.
    let args =
        ["--total-timesteps=1500", "--start-e=0.5", "--end-e=0.05", "--gamma=0.9", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "cliff_walking", &args, train);
}

#[test]
fn pinned_run_of_double_q_learning() {
    // It ends by its number of episodes. The lake's are short, and its goal is found.
    let args = [
        "--double",
        "--env-id=FrozenLake-v1",
        "--learning-rate=0.1",
        "--total-timesteps=5000",
        "--total-episodes=300",
        "--start-e=1",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "frozen_lake_double", &args, train);
}
