//! Updates and traces against recordings, scores against finite differences, tiles, what a step shows, and
//! runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::rng;
use regression::{Recording, SCRIPT, View, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["actor_critic_traces"].iter().chain(flags).map(Into::into)).unwrap()
}

fn table(recording: &Recording, name: &str) -> Vec<f64> {
    recording.floats(name).into_iter().map(f64::from).collect()
}

/// Nine steps, after each of which the traces are compared.
fn recorded_update(name: &str, softmax: bool, average_reward: bool, scaled: bool) {
    let mut recording = Recording::open(name);
    let flag = |flag: &str, name: &str| format!("--{flag}={}", recording.number(name));
    let mut flags = vec![
        flag("policy-lr", "learning_rate_actor"),
        flag("value-lr", "learning_rate_critic"),
        flag("actor-lambda", "lambda_actor"),
        flag("critic-lambda", "lambda_critic"),
        flag("gamma", "gamma"),
        format!("--average-reward={average_reward}"),
        format!("--scale-score={scaled}"),
        format!("--discount-gradient={}", !average_reward),
    ];
    if average_reward {
        flags.push(flag("average-reward-lr", "learning_rate_average_reward"));
    }
    let args = args(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    let actions = if softmax { Space::Discrete { n: 3 } } else { Space::uniform(1, -1.0, 1.0) };
    let mut learner = ActorCritic::new(8, 1.0, &actions, &args);
    learner.theta = table(&recording, "parameters/actor/0.weight");
    learner.w = table(&recording, "parameters/critic/0.weight");
    if average_reward {
        learner.average_reward = recording.number("average_reward_at_start");
    }

    let [features, next_features, rewards] =
        ["features", "next_features", "rewards"].map(|name| table(&recording, &format!("batch/{name}")));
    let taken: Vec<f64> = match softmax {
        true => recording.integers("batch/actions").into_iter().map(f64::from).collect(),
        false => table(&recording, "batch/actions"),
    };
    let [terminated, truncated] =
        ["terminated", "truncated"].map(|name| recording.flags(&format!("batch/{name}")));
    let (mut deltas, mut scores, mut averages) = (Vec::new(), Vec::new(), Vec::new());
    let (mut actor_traces, mut critic_traces) = (Vec::new(), Vec::new());
    for t in 0..9 {
        let row = |table: &[f64]| table[8 * t..8 * (t + 1)].to_vec();
        let mut step = Transition {
            features: row(&features),
            action: vec![taken[t]],
            reward: rewards[t],
            next_features: row(&next_features),
            terminated: terminated[t],
            truncated: truncated[t],
        };
        let score = learner.score(&step.features, &step.action);
        scores.extend(score.iter().flat_map(|s| step.features.iter().map(move |x| s * x)));
        // The traces are recorded before an episode's end wipes them out.
        let mut before_the_end = learner.clone();
        deltas.push(learner.update(&step));
        averages.push(learner.average_reward);
        let ends = (step.terminated, step.truncated);
        if ends != (false, false) {
            assert!(learner.actor_trace.iter().chain(&learner.critic_trace).all(|&z| z == 0.0));
            assert_eq!(learner.state_discount, 1.0);
            // The same step in the middle of an episode, as far as the traces go.
            (step.terminated, step.truncated) = (false, false);
        }
        before_the_end.update(&step);
        actor_traces.extend(before_the_end.actor_trace);
        critic_traces.extend(before_the_end.critic_trace);
    }
    recording.close("expected/deltas", &deltas);
    recording.close("expected/scores", &scores);
    recording.close("expected/actor_traces", &actor_traces);
    recording.close("expected/critic_traces", &critic_traces);
    if average_reward {
        recording.close("expected/average_rewards", &averages);
    } else {
        assert_eq!(averages, [0.0; 9]);
    }
    recording.close("expected/parameters/actor/0.weight", &learner.theta);
    recording.close("expected/parameters/critic/0.weight", &learner.w);
    recording.finish();
}

#[test]
fn recorded_update_of_a_softmax_policy() {
    recorded_update("actor_critic_traces", true, false, false);
}

#[test]
fn recorded_update_of_a_softmax_policy_with_average_reward() {
    recorded_update("actor_critic_traces__average_reward", true, true, false);
}

#[test]
fn recorded_update_of_a_normal_policy() {
    recorded_update("actor_critic_traces__gaussian", false, false, false);
}

#[test]
fn recorded_update_of_a_normal_policy_with_average_reward() {
    recorded_update("actor_critic_traces__gaussian_average_reward", false, true, false);
}

#[test]
fn recorded_update_of_a_normal_policy_with_average_reward_and_scaled_scores() {
    recorded_update("actor_critic_traces__gaussian_average_reward_scaled", false, true, true);
}

/// A learner of two features with parameters that are not 0.
fn learner(actions: &Space, flags: &[&str]) -> ActorCritic {
    let mut learner = ActorCritic::new(2, 1.0, actions, &args(flags));
    for (i, theta) in learner.theta.iter_mut().enumerate() {
        *theta = 0.3 * (i as f64 + 1.0).sin();
    }
    learner
}

#[test]
fn scores_are_the_gradients_of_ln_pi() {
    let x = [0.7, -1.1];
    let log_prob = |learner: &ActorCritic, action: &[f64]| -> f64 {
        if learner.softmax {
            return learner.probabilities(&x)[action[0] as usize].ln();
        }
        let of = |((mean, sigma), a): ((f64, f64), &f64)| -0.5 * ((a - mean) / sigma).powi(2) - sigma.ln();
        learner.normals(&x).into_iter().zip(action).map(of).sum()
    };
    let normal = Space::uniform(2, -1.0, 1.0);
    for (space, action) in [(Space::Discrete { n: 3 }, vec![1.0]), (normal.clone(), vec![0.4, -1.3])] {
        let original = learner(&space, &["--scale-score=false"]);
        let score = original.score(&x, &action);
        assert_eq!(2 * score.len(), original.theta.len());
        for i in 0..original.theta.len() {
            let moved = |by: f64| {
                let mut moved = original.clone();
                moved.theta[i] += by;
                log_prob(&moved, &action)
            };
            let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert_abs_diff_eq!(score[i / 2] * x[i % 2], slope, epsilon = 1e-6);
        }
    }
    // Scaled: σ² of its own dimension times that.
    let (plain, scaled) = (learner(&normal, &["--scale-score=false"]), learner(&normal, &[]));
    let action = [0.4, -1.3];
    let pairs: Vec<_> = plain.score(&x, &action).into_iter().zip(scaled.score(&x, &action)).collect();
    for (i, (plain_score, scaled_score)) in pairs.into_iter().enumerate() {
        let sigma = plain.normals(&x)[i % 2].1;
        assert_abs_diff_eq!(scaled_score, sigma.powi(2) * plain_score, epsilon = 1e-12);
    }
}

#[test]
fn actions_are_drawn_from_the_policy() {
    let (x, n) = ([0.7, -1.1], 20_000);
    let discrete = learner(&Space::Discrete { n: 3 }, &[]);
    let (mut rng, mut counts) = (rng(1, 0), [0.0; 3]);
    (0..n).for_each(|_| counts[discrete.act(&x, &mut rng)[0] as usize] += 1.0);
    let probabilities = discrete.probabilities(&x);
    assert_abs_diff_eq!(probabilities.iter().sum::<f64>(), 1.0, epsilon = 1e-12);
    for (count, p) in counts.iter().zip(&probabilities) {
        let deviation = (p * (1.0 - p) / f64::from(n)).sqrt();
        assert!((count / f64::from(n) - p).abs() < 5.0 * deviation, "{counts:?}, not {probabilities:?}");
    }
    let best = (0..3).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b])).unwrap();
    assert_eq!(discrete.act_greedily(&x), [best as f64]);
    let mut equal = discrete.clone();
    equal.theta.fill(0.0);
    assert_eq!(equal.act_greedily(&x), [0.0]);

    let normal = learner(&Space::uniform(2, -1.0, 1.0), &[]);
    let drawn: Vec<Vec<f64>> = (0..n).map(|_| normal.act(&x, &mut rng)).collect();
    for (d, (mu, sigma)) in normal.normals(&x).into_iter().enumerate() {
        let mean = drawn.iter().map(|a| a[d]).sum::<f64>() / f64::from(n);
        let variance = drawn.iter().map(|a| (a[d] - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!((mean - mu).abs() < 5.0 * sigma / f64::from(n).sqrt(), "{mean}, not {mu}");
        assert_abs_diff_eq!(variance, sigma.powi(2), epsilon = 0.05 * sigma.powi(2));
        assert_eq!(normal.act_greedily(&x)[d], mu);
    }
}

#[test]
fn tiles_cover_the_space_and_resolve_it_finer_than_one_grid() {
    let space = Space::bounded(&[-1.0, 0.0], &[1.0, 5.0]);
    let features = Features::new(&space, &args(&["--tilings=4", "--tiles=3"])).unwrap();
    assert_eq!((features.len(), features.active()), (4 * 4 * 4 + 1, 5.0));
    let on = |observation: [f32; 2]| -> Vec<usize> {
        let x = features.of(&observation);
        assert!(x.iter().all(|&number| number == 0.0 || number == 1.0));
        (0..x.len()).filter(|&i| x[i] == 1.0).collect()
    };
    // The first grid is not shifted: 3 tiles of 2/3 by 5/3 in a grid of 4 by 4.
    assert_eq!(on([-1.0, 0.0])[0], 0);
    assert_eq!(on([-0.2, 1.8])[0], 4 + 1);
    assert_eq!(on([0.99, 4.99])[0], 2 * 4 + 2);
    // The second by a quarter of a tile along the first dimension, by three quarters along the second.
    assert_eq!(on([-0.51, 0.0])[1], 16);
    assert_eq!(on([-0.49, 0.0])[1], 16 + 4);
    assert_eq!(on([-1.0, 0.41])[1], 16);
    assert_eq!(on([-1.0, 0.42])[1], 16 + 1);
    // One tile of each grid and the constant, in and beyond the corners too.
    for observation in [[-1.0, 0.0], [1.0, 5.0], [0.3, 2.2], [-7.0, 9.0], [7.0, -9.0]] {
        let on = on(observation);
        assert_eq!(on.len(), 5);
        assert!(on[..4].iter().enumerate().all(|(grid, i)| i / 16 == grid) && on[4] == 64, "{on:?}");
    }
    // Neighbours share some tiles, strangers none but the constant.
    let shared = |a, b| on(a).iter().filter(|i| on(b).contains(i)).count();
    assert!((2..5).contains(&shared([0.0, 2.0], [0.2, 2.0])) && shared([-1.0, 0.0], [1.0, 5.0]) == 1);

    let raw = Features::new(&space, &args(&["--tilings=0"])).unwrap();
    assert_eq!((raw.len(), raw.active(), raw.of(&[0.5, 2.0])), (2, 1.0, vec![0.5, 2.0]));
}

#[test]
fn a_transition_is_what_happened() {
    for actions in [Space::Discrete { n: 3 }, Space::uniform(2, -1.0, 1.0)] {
        let (mut envs, log) = scripted(1, View::Vector, actions.clone(), SCRIPT);
        let args = args(&["--tilings=0"]);
        let features = Features::new(&envs.spec().observation_space, &args).unwrap();
        let learner = ActorCritic::new(3, 1.0, &actions, &args);
        let mut rng = learner_rng(1);
        for _ in 0..20 {
            let x = features.of(envs.observations());
            let action = learner.act(&x, &mut rng);
            match learner.softmax {
                true => envs.step(&indices(&action)).unwrap(),
                false => envs.step(&vectors(&action)).unwrap(),
            }
            let step = Transition::last(x, action, &envs, &features);
            let happened = log.of(0).pop().unwrap();
            let single = |numbers: &[f64]| -> Vec<f32> { numbers.iter().map(|&x| x as f32).collect() };
            assert_eq!(single(&step.features), happened.observation);
            assert_eq!(single(&step.action), happened.action);
            assert_eq!(step.reward as f32, happened.reward);
            assert_eq!(single(&step.next_features), happened.next_observation);
            assert_eq!((step.terminated, step.truncated), (happened.terminated, happened.truncated));
        }
        let ends: Vec<_> = log.of(0).iter().map(|t| (t.terminated, t.truncated)).collect();
        assert!([(true, false), (false, true), (true, true)].iter().all(|end| ends.contains(end)));
    }
}

#[test]
fn with_lambda_1_an_episode_moves_the_critic_by_its_returns() {
    // The sum of α δ_t z_t is that of α (G_t − v(s_t)) x_t, as long as w hardly moves.
    let flags = ["--average-reward=false", "--critic-lambda=1", "--gamma=0.9", "--value-lr=1e-7"];
    let mut learner = learner(&Space::Discrete { n: 2 }, &flags);
    learner.w = vec![0.5, -0.25];
    let (states, rewards) = ([[1.0, 0.0], [0.5, 2.0], [-1.0, 1.0]], [1.0, -2.0, 3.0]);
    let w = learner.w.clone();
    for t in 0..3 {
        learner.update(&Transition {
            features: states[t].to_vec(),
            action: vec![1.0],
            reward: rewards[t],
            next_features: states[(t + 1) % 3].to_vec(),
            terminated: t == 2,
            truncated: false,
        });
    }
    let mut expected = [0.0, 0.0];
    for t in 0..3 {
        let g: f64 = (t..3).map(|k| 0.9_f64.powi((k - t) as i32) * rewards[k]).sum();
        let error = g - dot(&w, &states[t]);
        (0..2).for_each(|i| expected[i] += error * states[t][i]);
    }
    for i in 0..2 {
        assert_abs_diff_eq!((learner.w[i] - w[i]) / 1e-7, expected[i], epsilon = 1e-4);
    }
}

#[test]
fn step_sizes_are_shared_among_the_features_and_preferences_come_first() {
    let flags = ["--policy-lr=1.1", "--value-lr=2.2", "--initial-preferences=1,-2"];
    let learner = ActorCritic::new(3, 11.0, &Space::Discrete { n: 2 }, &args(&flags));
    assert_abs_diff_eq!(learner.policy_lr, 0.1, epsilon = 1e-12);
    assert_abs_diff_eq!(learner.value_lr, 0.2, epsilon = 1e-12);
    assert_eq!(learner.theta, [1.0, 1.0, 1.0, -2.0, -2.0, -2.0]);
}

/// The continuing form with a normal policy over tiles.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=1500", "--eval-episodes=1", "--actor-lambda=0.7"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "swing_pendulum", &flags, train);
}

/// The episodic form with a softmax policy, a discount and γᵗ, and an evaluation that draws its actions.
#[test]
fn pinned_run_of_the_episodic_form() {
    let flags = [
        "--env-id=ShortCorridor-v0",
        "--total-timesteps=700",
        "--tilings=0",
        "--average-reward=false",
        "--gamma=0.95",
        "--discount-gradient",
        "--actor-lambda=0.8",
        "--critic-lambda=0.6",
        "--policy-lr=0.01",
        "--value-lr=0.05",
        "--initial-preferences=1,-1",
        "--greedy-eval=false",
        "--eval-episodes=3",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "short_corridor", &flags, train);
}
