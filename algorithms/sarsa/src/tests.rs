//! Updates against recordings, what a step shows, means over many runs against the book's, and pinned
//! runs.

use super::*;
use common::envs::{Space, rng};
use regression::{Recording, SCRIPT, View, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["sarsa"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

/// Goes through a recording's fifty steps and compares everything with it.
fn replay(name: &str, flags: &[&str]) {
    let mut recording = Recording::open(name);
    let flag = |flag: &str, name: &str| format!("--{flag}={}", recording.number(name));
    let recorded = [flag("learning-rate", "learning_rate"), flag("gamma", "gamma")];
    let mut flags: Vec<String> = flags.iter().map(|flag| flag.to_string()).chain(recorded).collect();
    match name {
        "sarsa__n_step" => flags.push(flag("n-step", "n_step")),
        "sarsa__expected" => flags.push(flag("epsilon", "epsilon")),
        _ => {}
    }
    let mut sarsa = Sarsa::new(6, 3, &args(&flags.iter().map(String::as_str).collect::<Vec<_>>()));
    sarsa.q = recording.floats("parameters/q/table.weight").into_iter().map(f64::from).collect();

    let integers = |name: &str| recording.integers(&format!("batch/{name}"));
    let [states, actions, next_states] = ["states", "actions", "next_states"].map(integers);
    let next_actions = match recording.has("batch/next_actions") {
        true => recording.integers("batch/next_actions"),
        false => vec![0; states.len()], // which Expected SARSA does not look at
    };
    let rewards = recording.floats("batch/rewards");
    let [terminated, truncated] =
        ["terminated", "truncated"].map(|name| recording.flags(&format!("batch/{name}")));
    let (mut targets, mut td_errors, mut tables) = (Vec::new(), Vec::new(), Vec::new());
    for t in 0..states.len() {
        let step = Step {
            state: states[t] as usize,
            action: actions[t] as usize,
            reward: rewards[t].into(),
            next_state: next_states[t] as usize,
            next_action: next_actions[t] as usize,
            terminated: terminated[t],
            truncated: truncated[t],
        };
        // As `learn` does, but with a look at the table after each update.
        let (mut one_by_one, ended) = (sarsa.window.clone(), step.terminated || step.truncated);
        one_by_one.push(step.clone());
        let mut copy =
            Sarsa { q: sarsa.q.clone(), window: one_by_one, num_actions: 3, args: sarsa.args.clone() };
        while copy.window.len() == copy.args.n_step || (ended && !copy.window.is_empty()) {
            targets.push(copy.target(&copy.window));
            copy.update();
            tables.push(copy.q.clone());
        }
        td_errors.extend(sarsa.learn(step));
        assert_eq!((&sarsa.q, &sarsa.window), (&copy.q, &copy.window));
    }
    recording.close("expected/targets", &targets);
    recording.close("expected/td_errors", &td_errors);
    recording.close("expected/values_over_updates", &tables);
    recording.close("expected/parameters/q/table.weight", &sarsa.q);
    recording.finish();
}

#[test]
fn recorded_update_of_sarsa() {
    replay("sarsa", &[]);
}

#[test]
fn recorded_update_of_expected_sarsa() {
    replay("sarsa__expected", &["--target=expected"]);
}

/// Over one step tree backup is Expected SARSA.
#[test]
fn recorded_update_of_tree_backup_over_one_step() {
    replay("sarsa__expected", &["--target=tree-backup"]);
}

#[test]
fn recorded_update_of_n_step_sarsa() {
    replay("sarsa__n_step", &[]);
}

/// Three steps through states 0 to 3 with rewards 1, 2 and 4 by action 1.
fn three_steps(terminated: bool) -> Vec<Step> {
    let rewards = [1.0, 2.0, 4.0];
    let step = |t: usize| Step {
        state: t,
        action: 1,
        reward: rewards[t],
        next_state: t + 1,
        next_action: 1,
        terminated: terminated && t == 2,
        truncated: false,
    };
    (0..3).map(step).collect()
}

#[test]
fn targets_over_three_steps_are_the_formulas() {
    let target = |target: &str, terminated: bool| {
        let mut sarsa = Sarsa::new(4, 2, &args(&["--target", target, "--gamma=0.5", "--epsilon=0.2"]));
        sarsa.q = vec![0.0, 0.0, 10.0, 20.0, 50.0, 30.0, 100.0, 60.0];
        sarsa.target(&three_steps(terminated))
    };
    // r₁ + γ r₂ + γ² r₃ = 3; beyond it Q(3,1) = 60, or 0.9 · 100 + 0.1 · 60 = 96.
    assert_eq!([target("sarsa", true), target("expected", true)], [3.0, 3.0]);
    assert_eq!([target("sarsa", false), target("expected", false)], [10.5, 15.0]);
    // In state 1 the action taken is the best, with probability 0.9; in state 2 with 0.1 it is not.
    let from_two = 4.0 + 0.5 * 96.0;
    let from_one = 2.0 + 0.5 * (0.9 * 50.0 + 0.1 * from_two);
    let from_zero = 1.0 + 0.5 * (0.1 * 10.0 + 0.9 * from_one);
    assert!((target("tree-backup", false) - from_zero).abs() < 1e-12);
    let from_one = 2.0 + 0.5 * (0.9 * 50.0 + 0.1 * 4.0);
    let from_zero = 1.0 + 0.5 * (0.1 * 10.0 + 0.9 * from_one);
    assert!((target("tree-backup", true) - from_zero).abs() < 1e-12);
}

#[test]
fn a_greedy_policy_makes_expected_sarsa_q_learning() {
    let mut sarsa = Sarsa::new(4, 2, &args(&["--target=expected", "--gamma=1", "--epsilon=0"]));
    sarsa.q = vec![0.0, 0.0, 10.0, 20.0, 50.0, 30.0, 100.0, 60.0];
    assert_eq!(sarsa.target(&three_steps(false)[..1]), 21.0);
    assert_eq!(sarsa.target(&three_steps(false)[2..]), 104.0);
}

#[test]
fn equal_actions_are_equally_likely_and_exploration_is_uniform() {
    let rng = &mut rng(1, 0);
    for epsilon in [0.0, 0.4, 1.0] {
        let mut sarsa = Sarsa::new(1, 4, &args(&[&format!("--epsilon={epsilon}")]));
        sarsa.q = vec![2.0, 1.0, 2.0, 2.0];
        let policy = sarsa.policy(0);
        assert!((policy.iter().sum::<f64>() - 1.0).abs() < 1e-12 && policy[1] == epsilon / 4.0, "{policy:?}");
        assert_eq!((policy[0], policy[0]), (policy[2], policy[3]));
        let mut counts = [0.0; 4];
        (0..12_000).for_each(|_| counts[sarsa.act(0, rng)] += 1.0);
        for (count, probability) in counts.into_iter().zip(policy) {
            // Five standard deviations.
            let deviation = (12_000.0 * probability * (1.0 - probability)).sqrt();
            assert!(
                (count - 12_000.0 * probability).abs() <= 5.0 * deviation + 1e-9,
                "ε = {epsilon}: {count}"
            );
        }
    }
    // Evaluated, the first of equal ones.
    let mut sarsa = Sarsa::new(1, 4, &args(&[]));
    sarsa.q = vec![1.0, 2.0, 2.0, 0.0];
    assert_eq!(sarsa.act_greedily(0), 1);
}

#[test]
fn steps_are_what_happened_and_an_episodes_steps_keep_together() {
    let (mut envs, log) = scripted(1, View::State, Space::Discrete { n: 3 }, SCRIPT);
    let mut rng = learner_rng(1);
    let mut sarsa = Sarsa::new(1000, 3, &args(&["--n-step=3", "--epsilon=1"]));
    let mut action = sarsa.act(envs.observations()[0] as usize, &mut rng);
    let (mut before, mut updates): (Option<Step>, usize) = (None, 0);
    for time in 1..=20 {
        let step = interact(&sarsa, &mut envs, &mut action, &mut rng).unwrap();
        let happened = log.of(0).pop().unwrap();
        assert_eq!(step.state as f32, happened.observation[0]);
        assert_eq!(step.action as f32, happened.action[0]);
        assert_eq!(step.reward, f64::from(happened.reward));
        assert_eq!(step.next_state as f32, happened.next_observation[0]);
        assert_eq!((step.terminated, step.truncated), (happened.terminated, happened.truncated));
        // The action that follows within an episode is the one that was drawn.
        if let Some(before) = before.filter(|before| !before.terminated && !before.truncated) {
            assert_eq!((before.next_state, before.next_action), (step.state, step.action));
        }
        before = Some(step.clone());
        let ended = step.terminated || step.truncated;
        updates += sarsa.learn(step).len();
        // All steps of ended episodes have been learned from, of this one all but the last two.
        assert_eq!(updates + sarsa.window.len(), time);
        let episode: Vec<usize> = sarsa.window.iter().map(|step| step.state / 10).collect();
        assert!(episode.windows(2).all(|pair| pair[0] == pair[1]), "{episode:?}");
        assert!(if ended { sarsa.window.is_empty() } else { sarsa.window.len() <= 2 });
    }
    let ends: Vec<_> = log.of(0).iter().map(|t| (t.terminated, t.truncated)).collect();
    assert!([(true, false), (false, true), (true, true)].iter().all(|end| ends.contains(end)));
}

/// Returns of the episodes of one run, until `enough` of their number and the steps.
fn returns_of(env_id: &str, flags: &[&str], seed: u64, enough: impl Fn(usize, usize) -> bool) -> Vec<f64> {
    let mut envs = VecEnv::make(env_id, 1, seed).unwrap();
    let (num_states, num_actions) = envs.spec().discrete_to_discrete("sarsa").unwrap();
    let mut rng = learner_rng(seed);
    let mut sarsa = Sarsa::new(num_states, num_actions, &args(flags));
    let mut action = sarsa.act(envs.observations()[0] as usize, &mut rng);
    let (mut returns, mut steps) = (Vec::new(), 0);
    while !enough(returns.len(), steps) {
        let step = interact(&sarsa, &mut envs, &mut action, &mut rng).unwrap();
        sarsa.learn(step);
        steps += 1;
        returns.extend(envs.episodes().iter().map(|episode| episode.episodic_return));
    }
    returns
}

/// Mean and standard error of `of` over `runs` runs.
fn over_runs(runs: u64, of: impl Fn(u64) -> f64) -> (f64, f64) {
    let results: Vec<f64> = (1..=runs).map(of).collect();
    let n = runs as f64;
    let mean = results.iter().sum::<f64>() / n;
    let variance = results.iter().map(|result| (result - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// The mean of episodes `from` to 500 on the cliff.
fn on_the_cliff(flags: &[&str], episodes: std::ops::Range<usize>, runs: u64) -> (f64, f64) {
    over_runs(runs, |seed| {
        let returns = returns_of("CliffWalking-v1", flags, seed, |number, _| number >= episodes.end);
        returns[episodes.clone()].iter().sum::<f64>() / episodes.len() as f64
    })
}

#[track_caller]
fn assert_meets((mean, error): (f64, f64), published: f64, its_error: f64) {
    let allowed = 3.0 * (error.powi(2) + its_error.powi(2)).sqrt();
    assert!((mean - published).abs() <= allowed, "{mean} ± {error}, published {published} ± {its_error}");
}

/// Example 6.6 and figure 6.3: means computed over 500 runs, whose standard deviations over runs are 6.9
/// and 2.0 where α = 0.5.
#[test]
fn sarsa_and_expected_sarsa_reach_the_books_returns_on_the_cliff() {
    let root = 500_f64.sqrt();
    assert_meets(on_the_cliff(&[], 400..500, 300), -27.1, 6.9 / root);
    assert_meets(on_the_cliff(&["--target=expected"], 400..500, 300), -20.95, 2.0 / root);
    assert_meets(
        on_the_cliff(&["--target=expected", "--learning-rate=1"], 400..500, 300),
        -20.65,
        2.0 / root,
    );
    // The interim performance, to the whole numbers that are known.
    for (flags, wanted) in [
        (&["--learning-rate=0.5"][..], -71.0),
        (&["--learning-rate=0.1"], -139.0),
        (&["--target=expected", "--learning-rate=0.5"], -57.0),
        (&["--target=expected", "--learning-rate=1"], -46.0),
    ] {
        let (mean, error) = on_the_cliff(flags, 0..100, 100);
        assert!((mean - wanted).abs() <= 0.5 + 4.0 * error, "{flags:?}: {mean} ± {error}, known {wanted}");
    }
}

/// Example 6.6: swept over all states and actions, Expected SARSA comes to the values of the best policy that
/// explores with ε = 0.1, −20.71, computed with other code. Its greedy actions take 15 steps.
#[test]
fn expected_sarsa_converges_to_the_best_of_the_soft_policies() {
    let outcomes = common::envs::make("CliffWalking-v1").unwrap().model().unwrap().outcomes.clone();
    let mut sarsa = Sarsa::new(48, 4, &args(&["--target=expected", "--learning-rate=1", "--gamma=1"]));
    for (state, action) in (0..600).flat_map(|_| (0..37).flat_map(|s| (0..4).map(move |a| (s, a)))) {
        let outcome = outcomes[state][action][0];
        let (reward, next_state, terminated) = (outcome.reward, outcome.next_state, outcome.terminated);
        sarsa.learn(Step { state, action, reward, next_state, next_action: 0, terminated, truncated: false });
    }
    let value: f64 = sarsa.policy(36).iter().zip(&sarsa.q[36 * 4..]).map(|(p, q)| p * q).sum();
    assert!((value + 20.707677).abs() < 1e-5, "{value}");
    let (mut state, mut steps) = (36, 0);
    while state != 47 {
        state = outcomes[state][sarsa.act_greedily(state)][0].next_state;
        steps += 1;
        assert!(steps <= 15);
    }
    assert_eq!(steps, 15);
}

/// Example 6.5: 161.3 episodes within 8000 steps, computed over 100 runs with a standard deviation of
/// 10.6.
#[test]
fn sarsa_walks_through_the_wind_as_often_as_is_known() {
    let episodes = |flags: &[&str], runs: u64| {
        over_runs(runs, |seed| {
            returns_of("WindyGridworld-v0", flags, seed, |_, steps| steps == 8000).len() as f64
        })
    };
    let one_step = episodes(&[], 200);
    assert_meets(one_step, 161.3, 10.6 / 10.0);
    // Four steps look further than one.
    let four_steps = episodes(&["--n-step=4", "--target=tree-backup"], 20);
    assert!(four_steps.0 > one_step.0 + 10.0, "{four_steps:?}, {one_step:?}");
    // So they do in SARSA, where four rewards that vary want a smaller step size: 203 episodes with forty
    // other seeds and a standard deviation of 25, where one step has 98. The bound is three standard errors
    // of twenty runs below that.
    let four_steps = episodes(&["--n-step=4", "--learning-rate=0.3"], 20);
    assert!(four_steps.0 > 186.0, "{four_steps:?}");
}

/// Every flag but the target away from its default.
#[test]
fn pinned_run() {
    let args = [
        "--total-timesteps=1500",
        "--n-step=2",
        "--learning-rate=0.3",
        "--gamma=0.9",
        "--epsilon=0.3",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "cliff_walking", &args, train);
}

/// Episodes that a time limit truncates among them.
#[test]
fn pinned_run_of_tree_backup() {
    let args = [
        "--env-id=FrozenLake-v1",
        "--target=tree-backup",
        "--n-step=3",
        "--learning-rate=0.1",
        "--epsilon=0.5",
        "--total-timesteps=4000",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "frozen_lake_tree_backup", &args, train);
}
