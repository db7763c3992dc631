//! Both recordings, traces and emphasis by hand, Baird's counterexample, what a step shows, and pinned runs.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::{self, rng};
use regression::{Recording, SCRIPT, View, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["off_pac"].iter().chain(flags).map(Into::into)).unwrap()
}

/// A learner from `n` plain numbers, no tiles.
fn learner(n: usize, num_actions: usize, flags: &[&str]) -> OffPac {
    let args = args(&[flags, &["--tilings=0"]].concat());
    let features = Features { tilings: 0, tiles: 1, low: vec![0.0; n], width: vec![1.0; n] };
    OffPac::new(&features, num_actions, &args).unwrap()
}

/// The error of what must fail.
fn error<T>(result: Result<T>) -> String {
    result.err().expect("accepted").to_string()
}

fn active(numbers: &[f64]) -> Active {
    numbers.iter().copied().enumerate().filter(|(_, value)| *value != 0.0).collect()
}

/// Takes the ten recorded steps, one after the other.
fn replay(name: &str, flags: &[&str]) {
    let mut recording = Recording::open(name);
    let [gamma, lambda] = ["gamma", "lambda"].map(|name| format!("--{name}={}", recording.number(name)));
    let mut off_pac = learner(8, 3, &[&[&*gamma, &*lambda], flags].concat());
    off_pac.policy_lr = recording.number("learning_rate_u");
    off_pac.value_lr = recording.number("learning_rate_v");
    off_pac.correction_lr = recording.number("learning_rate_w");
    let doubles = |name: &str| -> Vec<f64> { recording.floats(name).into_iter().map(f64::from).collect() };
    off_pac.u = doubles("parameters/actor/0.weight");
    off_pac.v = doubles("parameters/critic/0.weight");
    off_pac.w = doubles("parameters/helper/0.weight");
    let (features, next_features) = (doubles("batch/features"), doubles("batch/next_features"));
    let (behaviour, rewards) = (doubles("batch/behaviour_probabilities"), doubles("batch/rewards"));
    let actions = recording.integers("batch/actions");
    let (terminated, truncated) = (recording.flags("batch/terminated"), recording.flags("batch/truncated"));
    let (mut td_errors, mut ratios, mut corrections) = (Vec::new(), Vec::new(), Vec::new());
    let (mut critic_traces, mut actor_traces) = (Vec::new(), Vec::new());
    for t in 0..10 {
        let action = actions[t] as usize;
        let step = Transition {
            features: active(&features[8 * t..8 * (t + 1)]),
            action,
            behaviour_probability: behaviour[3 * t + action],
            reward: rewards[t],
            next_features: active(&next_features[8 * t..8 * (t + 1)]),
            terminated: terminated[t],
            truncated: truncated[t],
        };
        // The traces as they are before an episode's end takes them away.
        let mut copy = OffPac { u: off_pac.u.clone(), v: off_pac.v.clone(), ..learner(8, 3, &[]) };
        copy.args = off_pac.args.clone();
        copy.actor_trace = off_pac.actor_trace.clone();
        copy.critic_trace = off_pac.critic_trace.clone();
        let policy = copy.policy(&step.features);
        let ratio = policy[action] / step.behaviour_probability;
        copy.update_critic(&step, ratio, 0.0);
        copy.update_actor(&step, &policy, ratio, 0.0);
        let (td_error, found) = off_pac.update(&step);
        assert_eq!(ratio, found);
        td_errors.push(td_error);
        ratios.push(ratio);
        let ended = terminated[t] || truncated[t];
        let kept = |trace: &[f64]| if ended { vec![0.0; trace.len()] } else { trace.to_vec() };
        assert_eq!(off_pac.critic_trace, kept(&copy.critic_trace));
        assert_eq!(off_pac.actor_trace, kept(&copy.actor_trace));
        critic_traces.extend(copy.critic_trace);
        actor_traces.extend(copy.actor_trace);
        corrections.extend(off_pac.w.clone());
    }
    recording.close("expected/deltas", td_errors);
    recording.close("expected/ratios", ratios);
    recording.close("expected/critic_traces", critic_traces);
    recording.close("expected/actor_traces", actor_traces);
    recording.close("expected/helper_weights", corrections);
    recording.close("expected/parameters/actor/0.weight", &off_pac.u);
    recording.close("expected/parameters/critic/0.weight", &off_pac.v);
    recording.close("expected/parameters/helper/0.weight", &off_pac.w);
    recording.finish();
}

#[test]
fn recorded_update_with_the_gradients_correction() {
    replay("off_pac", &[]);
}

#[test]
fn recorded_update_as_the_paper_prints_it() {
    replay("off_pac__as_printed", &["--critic=gtd-as-printed"]);
}

/// A step from state `from` to state `to` of two, which are features of their own.
fn step(from: usize, to: usize, behaviour_probability: f64) -> Transition {
    Transition {
        features: vec![(from, 1.0)],
        action: 0,
        behaviour_probability,
        reward: 1.0,
        next_features: vec![(to, 1.0)],
        terminated: false,
        truncated: false,
    }
}

#[test]
fn the_emphasis_is_the_formula_and_starts_anew() {
    let flags = ["--critic=etd", "--gamma=0.5", "--lambda=0.8", "--policy-lr=0", "--correction-lr=1"];
    let mut off_pac = learner(2, 2, &flags);
    off_pac.value_lr = 0.1;
    // π is uniform. ρ = 1, then 2: F is 1, then 1 · 0.5 · 1 + 1 = 1.5, then 2 · 0.5 · 1.5 + 1 = 2.5.
    assert_eq!(off_pac.update(&step(0, 1, 0.5)), (1.0, 1.0)); // δ and ρ
    assert_eq!(off_pac.critic_trace, [1.0, 0.0]);
    assert_abs_diff_eq!(off_pac.v[..], [0.1, 0.0]);
    // M = 0.8 + 0.2 · 1.5 = 1.1; e_v = 2 (1.1 x + 0.5 · 0.8 · e_v)
    let (td_error, ratio) = off_pac.update(&step(1, 0, 0.25));
    assert_eq!(ratio, 2.0);
    assert_abs_diff_eq!(td_error, 1.0 + 0.5 * 0.1, epsilon = 1e-12);
    assert_abs_diff_eq!(off_pac.critic_trace[..], [0.8, 2.2], epsilon = 1e-12);
    // No correction: v + α δ e_v is all, and w is not learned.
    assert_abs_diff_eq!(off_pac.v[..], [0.1 + 0.1 * 1.05 * 0.8, 0.1 * 1.05 * 2.2], epsilon = 1e-12);
    assert_eq!(off_pac.w, [0.0, 0.0]);
    // M = 0.8 + 0.2 · 2.5 = 1.3
    off_pac.update(&step(1, 0, 0.5));
    assert_abs_diff_eq!(off_pac.critic_trace[..], [0.4 * 0.8, 1.3 + 0.4 * 2.2], epsilon = 1e-12);
    for ended in [(true, false), (false, true)] {
        let (terminated, truncated) = ended;
        off_pac.update(&Transition { terminated, truncated, ..step(0, 1, 0.25) });
        off_pac.update(&step(0, 1, 0.25));
        assert_eq!(off_pac.critic_trace, [2.0, 0.0], "{ended:?}"); // ρ x, as F = M = 1
    }
}

#[test]
fn without_a_correction_td_moves_v_alone() {
    let mut off_pac = learner(2, 2, &["--critic=td", "--gamma=0.5", "--lambda=0.8", "--correction-lr=1"]);
    off_pac.w = vec![3.0, 4.0];
    off_pac.value_lr = 0.1;
    off_pac.update(&step(0, 1, 0.25));
    off_pac.update(&step(1, 0, 0.5));
    // The first step raises action 0 where only it matters, so that ρ stays 1 in state 1.
    assert_abs_diff_eq!(off_pac.critic_trace[..], [0.4 * 2.0, 1.0], epsilon = 1e-12);
    assert_abs_diff_eq!(off_pac.v[..], [0.2 + 0.1 * 1.1 * 0.8, 0.1 * 1.1], epsilon = 1e-12);
    assert_eq!(off_pac.w, [3.0, 4.0]);
}

/// Sutton, Mahmood & White (2016), section 4: states with the features 1 and 2, an action that leads to each,
/// drawn equally often; the target policy always goes to the second. γ = 0.9, α = 0.001, v begins at 1.
fn twice(critic: &str, seed: u64) -> f64 {
    let mut off_pac = learner(1, 2, &["--critic", critic, "--gamma=0.9", "--policy-lr=0", "--lambda=0"]);
    off_pac.u = vec![0.0, 1000.0];
    off_pac.v = vec![1.0];
    off_pac.value_lr = 0.001;
    let (mut rng, mut x) = (rng(seed, 0), 1.0);
    for _ in 0..5000 {
        let action = draw(&[0.5, 0.5], &mut rng);
        let next_x = [1.0, 2.0][action];
        off_pac.update(&Transition {
            features: vec![(0, x)],
            action,
            reward: 0.0,
            next_features: vec![(0, next_x)],
            ..step(0, 0, 0.5)
        });
        x = next_x;
    }
    off_pac.v[0].abs()
}

/// The paper's expected update: v ← v (1 + 0.2 α) with TD, v ← v (1 − 3.4 α) with emphasis.
#[test]
fn emphasis_makes_stable_what_diverges_by_td() {
    for seed in 1..=5 {
        let (td, etd) = (twice("td", seed), twice("etd", seed));
        assert!(td > 1.1 && etd < 0.3, "seed {seed}: {td} by TD, {etd} by emphatic TD");
    }
}

/// Baird's counterexample with the book's weights and policies: ‖v‖ and the root of the mean squared projected
/// Bellman error after `steps` of them. Features are independent, so that nothing is lost in the projection.
fn baird(critic: &str, seed: u64, steps: usize) -> (f64, f64) {
    let args = args(&[
        "--env-id=Baird-v0",
        "--critic",
        critic,
        "--tilings=0",
        "--lambda=0",
        "--policy-lr=0",
        "--value-lr=0.005",
        "--correction-lr=0.05",
        "--behaviour=6,1",
        "--initial-preferences=0,100",
        "--initial-values=1,1,1,1,1,1,10,1",
    ]);
    let mut envs = VecEnv::make("Baird-v0", 1, seed).unwrap();
    let features = Features::new(envs.spec(), &args).unwrap();
    let mut off_pac = OffPac::new(&features, 2, &args).unwrap();
    assert_abs_diff_eq!(off_pac.behaviour[..], [6.0 / 7.0, 1.0 / 7.0], epsilon = 1e-12);
    let mut rng = rng(seed, 0);
    for _ in 0..steps {
        let step = interact(&off_pac, &mut envs, &features, &mut rng).unwrap();
        off_pac.update(&step);
    }
    let value = |state| dot_active(&off_pac.v, &features.of(&envs::textbook::Baird::features(state)));
    let error = (0..7).map(|state| (0.99 * value(6) - value(state)).powi(2)).sum::<f64>() / 7.0;
    (dot(&off_pac.v, &off_pac.v).sqrt(), error.sqrt())
}

/// Of ten seeds TD's weights have grown to a norm of 13,000 to 25,000, and GTD's are at 8.6 to 9.0.
#[test]
fn td_diverges_on_bairds_counterexample_and_gtd_does_not() {
    for seed in 1..=5 {
        let (td, gtd) = (baird("td", seed, 5000), baird("gtd", seed, 5000));
        assert!(td.0 > 1000.0, "seed {seed}: TD's weights are {}", td.0);
        assert!(gtd.0 < 20.0 && gtd.1 < 0.5, "seed {seed}: GTD's weights are {}, its error {}", gtd.0, gtd.1);
    }
}

#[test]
fn each_grid_has_one_tile_and_each_is_displaced() {
    let features = |space: Space| {
        let spec = Spec {
            id: "Box-v0".to_string(),
            observation_space: space,
            action_space: Space::Discrete { n: 2 },
            max_episode_steps: None,
            reward_threshold: None,
        };
        Features::new(&spec, &args(&["--tilings=4", "--tiles=2"]))
    };
    let tiled = features(Space::bounded(&[-1.0, 0.0], &[1.0, 4.0])).unwrap();
    assert_eq!((tiled.len(), tiled.active()), (4 * 3 * 3 + 1, 5.0));
    let tiles = |observation: &[f32]| -> Vec<usize> {
        let x = tiled.of(observation);
        assert!(x.iter().all(|&(_, value)| value == 1.0) && x[4].0 == 36);
        x[..4].iter().map(|&(i, _)| i).collect()
    };
    // Grid k is displaced by (k, 3 k mod 4) quarters of a tile: (0, 0), (1, 3), (2, 2), (3, 1).
    assert_eq!(tiles(&[-1.0, 0.0]), [0, 9, 18, 27]);
    // A quarter of a tile further along the first dimension, grid 3 has another tile; …
    assert_eq!(tiles(&[-0.75, 0.0]), [0, 9, 18, 27 + 3]);
    // … along the second, grid 1, …
    assert_eq!(tiles(&[-1.0, 0.5]), [0, 9 + 1, 18, 27]);
    // … and at the upper bounds all are in their last. What is outside counts as the nearest inside.
    assert_eq!(tiles(&[1.0, 4.0]), [8, 9 + 8, 18 + 8, 27 + 8]);
    assert_eq!((tiles(&[7.0, -7.0]), tiles(&[-7.0, 7.0])), (tiles(&[1.0, 0.0]), tiles(&[-1.0, 4.0])));
    assert!(error(features(Space::uniform(3, 0.0, f32::INFINITY))).contains("--tilings 4"));
    assert!(error(features(Space::uniform(14, 0.0, 1.0))).contains("14 numbers are too many"));
    assert!(features(Space::uniform(10, 0.0, 1.0)).is_ok());
}

#[test]
fn numbers_for_each_action_and_feature_are_wanted() {
    let refused = |flags: &[&str]| {
        let spec = envs::make("Baird-v0").unwrap().spec().clone();
        let args = args(&[&["--tilings=0"], flags].concat());
        error(OffPac::new(&Features::new(&spec, &args).unwrap(), 2, &args))
    };
    assert_eq!(refused(&["--behaviour=1,2,3"]), "--behaviour: 3 numbers, for 2 actions");
    assert_eq!(refused(&["--initial-preferences=1"]), "--initial-preferences: 1 numbers, for 2 actions");
    assert_eq!(refused(&["--initial-values=1,2"]), "--initial-values: 2 numbers, for 8 features");
}

#[test]
fn step_sizes_are_shared_among_the_grids() {
    // What is learned of a state moves by its step size's share of the error, whatever the number of grids.
    for tilings in ["--tilings=1", "--tilings=16"] {
        let args = args(&[tilings, "--value-lr=0.1", "--correction-lr=0.3", "--policy-lr=0.4"]);
        let spec = envs::make("MountainCarTextbook-v0").unwrap().spec().clone();
        let features = Features::new(&spec, &args).unwrap();
        let mut off_pac = OffPac::new(&features, 3, &args).unwrap();
        let (x, next_features) = (features.of(&[-0.5, 0.0]), features.of(&[0.4, 0.06]));
        let step = Transition {
            features: x.clone(),
            action: 1,
            next_features,
            terminated: true,
            ..step(0, 0, off_pac.behaviour[1])
        };
        assert_eq!(off_pac.update(&step), (1.0, 1.0));
        assert_relative_eq!(dot_active(&off_pac.v, &x), 0.1, epsilon = 1e-12);
        assert_relative_eq!(dot_active(&off_pac.w, &x), 0.3, epsilon = 1e-12);
        let preferences: Vec<f64> =
            off_pac.u.chunks_exact(features.len()).map(|row| dot_active(row, &x)).collect();
        for (preference, expected) in preferences.iter().zip([-0.4 / 3.0, 0.8 / 3.0, -0.4 / 3.0]) {
            assert_relative_eq!(*preference, expected, epsilon = 1e-12);
        }
    }
}

/// The behaviour acts, and the target policy is what is evaluated.
#[test]
fn actions_are_drawn_from_the_behaviour_or_the_target_policy() {
    let off_pac = learner(1, 3, &["--behaviour=1,3,4", "--initial-preferences=-1,0.5,0"]);
    assert_eq!(off_pac.behaviour, [0.125, 0.375, 0.5]);
    let (x, mut rng) = (vec![(0, 2.0)], rng(1, 0));
    let total = (-2_f64).exp() + 1_f64.exp() + 1.0;
    let expected = [-2_f64, 1.0, 0.0].map(|h| h.exp() / total);
    assert_abs_diff_eq!(off_pac.policy(&x)[..], expected[..], epsilon = 1e-12);
    assert_eq!(off_pac.act_greedily(&x), 1);
    assert_eq!(off_pac.act_greedily(&vec![]), 0); // the first of equal ones
    let n = 20_000;
    let (mut acted, mut behaved) = ([0.0; 3], [0.0; 3]);
    for _ in 0..n {
        acted[off_pac.act(&x, &mut rng)] += 1.0 / f64::from(n);
        behaved[draw(&off_pac.behaviour, &mut rng)] += 1.0 / f64::from(n);
    }
    // Four standard errors.
    assert_abs_diff_eq!(acted[..], expected[..], epsilon = 0.015);
    assert_abs_diff_eq!(behaved[..], off_pac.behaviour[..], epsilon = 0.015);
    // Rounding may leave nothing to the last, and no preference overflows.
    assert_eq!(draw(&[0.0, 0.0], &mut rng), 1);
    let steep = learner(1, 2, &["--initial-preferences=0,1e5"]);
    assert_eq!(steep.policy(&x), [0.0, 1.0]);
}

#[test]
fn a_step_shows_what_happened() {
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let args = args(&["--tilings=0", "--behaviour=1,2,5"]);
    let features = Features::new(envs.spec(), &args).unwrap();
    let off_pac = OffPac::new(&features, 3, &args).unwrap();
    let mut rng = rng(1, 0);
    let steps: Vec<Transition> =
        (0..24).map(|_| interact(&off_pac, &mut envs, &features, &mut rng).unwrap()).collect();
    let happened = log.transitions();
    assert_eq!(steps.len(), happened.len());
    for (step, happened) in steps.iter().zip(&happened) {
        assert_eq!(step.features, features.of(&happened.observation));
        assert_eq!(step.action as f32, happened.action[0]);
        assert_eq!(step.behaviour_probability, [0.125, 0.25, 0.625][step.action]);
        assert_eq!(step.reward, f64::from(happened.reward));
        assert_eq!(step.next_features, features.of(&happened.next_observation));
        assert_eq!((step.terminated, step.truncated), (happened.terminated, happened.truncated));
    }
    assert!(steps.iter().any(|s| s.terminated) && steps.iter().any(|s| s.truncated && !s.terminated));
    assert!((0..3).all(|action| steps.iter().any(|step| step.action == action)));
}

/// What the defaults do before the car has reached its goal.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=3000", "--eval-episodes=1"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Episodes that end, traces, and a behaviour that prefers an action.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=ShortCorridor-v0",
        "--total-timesteps=2000",
        "--tilings=0",
        "--behaviour=1,2",
        "--initial-preferences=1,-0.5",
        "--initial-values=-3",
        "--policy-lr=0.01",
        "--value-lr=0.1",
        "--correction-lr=0.05",
        "--gamma=0.9",
        "--lambda=0.8",
        "--eval-episodes=3",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "corridor", &flags, train);
}

/// Tiles of more dimensions, time limits, and the critic with emphasis.
#[test]
fn pinned_run_with_emphasis() {
    let flags = [
        "--env-id=Acrobot-v1",
        "--total-timesteps=2500",
        "--tilings=4",
        "--tiles=3",
        "--critic=etd",
        "--policy-lr=0.05",
        "--gamma=0.8",
        "--lambda=0.5",
        "--greedy-eval=true",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "emphasis", &flags, train);
}
