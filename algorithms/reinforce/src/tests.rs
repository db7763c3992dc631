//! REINFORCE's update against PyTorch's and the book's, its rollout against what happened, and runs
//! against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["reinforce"].iter().chain(flags).map(Into::into)).unwrap()
}

/// The policy of Sutton & Barto's short corridor: two parameters, which are the two preferences; plain
/// ascent with step size 1.
fn corridor(preferences: [f32; 2], flags: &[&str]) -> Reinforce {
    let preferences = format!("--initial-preferences={},{}", preferences[0], preferences[1]);
    let own = ["--hidden-size=0", "--optimizer=sgd", "--learning-rate=1", "--gamma=1", &preferences];
    Reinforce::new(1, 2, &args(&[&own, flags].concat())).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The parameters of a [`corridor`], [left, right].
fn theta(reinforce: &Reinforce) -> Vec<f32> {
    floats(&reinforce.parameters.all_vars()[0])
}

/// Episodes of these rewards, every second of which is truncated.
fn episodes(rewards: &[&[f32]]) -> Rollout {
    let mut rollout = Rollout::default();
    for (episode, rewards) in rewards.iter().enumerate() {
        for (t, &reward) in rewards.iter().enumerate() {
            let last = t + 1 == rewards.len();
            rollout.observations.push(1.0);
            rollout.actions.push(0);
            rollout.rewards.push(reward);
            rollout.terminated.push(last && episode % 2 == 0);
            rollout.truncated.push(last && episode % 2 == 1);
        }
    }
    rollout
}

const LAYERS: Layers = &[("hidden", &["actor/0"]), ("output", &["actor/1"])];

fn recorded_update(name: &str) {
    let mut recording = Recording::open(name);
    let gamma = recording.number("gamma");
    let discount_gradient = recording.flag("gamma_to_the_t");
    let learning_rate = recording.number("learning_rate");
    let make = || {
        let flags = [
            "--hidden-size=32",
            &format!("--gamma={gamma}"),
            &format!("--learning-rate={learning_rate}"),
            &format!("--discount-gradient={discount_gradient}"),
        ];
        let reinforce = Reinforce::new(4, 2, &args(&flags)).unwrap();
        recording.set(&reinforce.parameters, LAYERS);
        reinforce
    };
    let (mut reinforce, mut again) = (make(), make());
    assert_eq!(reinforce.optimizer.eps, recording.number("adam_epsilon"));
    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
        rewards: recording.floats("batch/rewards"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
    };
    assert_eq!(rollout.num_episodes(), recording.integers("batch/episode_lengths").len());
    let returns = rollout.returns(gamma as f32);
    recording.close("expected/returns", &returns);
    if discount_gradient {
        let discounts = rollout.discounts(gamma as f32);
        let weights: Vec<f32> = discounts.iter().zip(&returns).map(|(discount, g)| discount * g).collect();
        recording.close("expected/weights", weights);
    }

    let (policy_loss, _) = reinforce.update(&rollout).unwrap();
    recording.close("expected/loss/total", policy_loss);
    let gradients = first_gradients(&reinforce.optimizer);
    recording.gradients("expected/gradients", &reinforce.parameters, LAYERS, gradients);
    recording.parameters("expected/parameters", &reinforce.parameters, LAYERS, learning_rate);

    let losses: Vec<f32> = (0..10).map(|_| again.update(&rollout).unwrap().0).collect();
    recording.losses("expected/losses_over_updates", losses);
    recording.finish();
}

#[test]
fn recorded_update_of_six_episodes() {
    recorded_update("reinforce");
}

#[test]
fn recorded_update_with_discounted_states() {
    recorded_update("reinforce__discounted_state");
}

#[test]
fn the_rollout_holds_what_happened() {
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let reinforce = Reinforce::new(3, 3, &args(&[])).unwrap();
    let (mut rollout, mut rng) = (Rollout::default(), learner_rng(1));
    for _ in 0..11 {
        let observation = envs.observations().to_vec();
        let action = reinforce.act(&observation, 1, &mut rng).unwrap();
        envs.step(&action).unwrap();
        rollout.store(&observation, &action, &envs);
    }
    let happened = log.transitions();
    assert_eq!(rollout.rewards.len(), 11);
    for (i, t) in happened.iter().enumerate() {
        assert_eq!(rollout.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
        assert_eq!(rollout.actions[i] as f32, t.action[0], "{t:?}");
        assert_eq!(rollout.rewards[i], t.reward, "{t:?}");
        assert_eq!((rollout.terminated[i], rollout.truncated[i]), (t.terminated, t.truncated), "{t:?}");
    }
    assert!((0..3).all(|action| rollout.actions.contains(&action)));
    // Three steps and a termination, four and a truncation, one, two and both at once, one and a cut.
    assert_eq!(rollout.num_episodes(), 5);
    assert_eq!(rollout.returns(1.0), [6., 5., 3., 50., 39., 27., 14., 21., 63., 32., 41.]);
    assert_eq!(rollout.discounts(0.5), [1., 0.5, 0.25, 1., 0.5, 0.25, 0.125, 1., 1., 0.5, 1.]);
}

#[test]
fn returns_are_the_discounted_sums_of_their_own_episode() {
    let rewards: [&[f32]; 3] = [&[1.0, -2.0, 0.5, 3.0], &[4.0], &[-1.0, 2.0]];
    let gamma = 0.9_f32;
    let rollout = episodes(&rewards);
    let (returns, discounts) = (rollout.returns(gamma), rollout.discounts(gamma));
    let steps = rewards.iter().flat_map(|rewards| (0..rewards.len()).map(move |t| (rewards, t)));
    for (i, (rewards, t)) in steps.enumerate() {
        // G_t = Σ_{k ≥ t} γ^{k−t} r_k
        let g: f32 = (t..rewards.len()).map(|k| gamma.powi((k - t) as i32) * rewards[k]).sum();
        assert_abs_diff_eq!(returns[i], g, epsilon = 1e-5);
        assert_abs_diff_eq!(discounts[i], gamma.powi(t as i32), epsilon = 1e-6);
    }
    assert_eq!((returns.len(), rollout.num_episodes()), (7, 3));
    assert!(Rollout::default().returns(gamma).is_empty());
}

#[test]
fn the_step_is_along_the_eligibility_vectors_of_the_book() {
    for discount_gradient in ["false", "true"] {
        let flags = ["--gamma=0.5", "--learning-rate=0.1", "--discount-gradient", discount_gradient];
        let mut reinforce = corridor([0.3, -0.4], &flags);
        let mut rollout = episodes(&[&[-2.0, -2.0], &[4.0, -4.0]]);
        rollout.actions = vec![1, 0, 1, 1];
        let (_, entropy) = reinforce.update(&rollout).unwrap();

        let left = 1.0 / (1.0 + (-0.7_f32).exp());
        let weights =
            if discount_gradient == "true" { [-3.0, -1.0, 2.0, -2.0] } else { [-3.0, -2.0, 2.0, -4.0] };
        let mut expected = [0.3, -0.4];
        for (action, weight) in rollout.actions.iter().zip(weights) {
            for (b, pi) in [left, 1.0 - left].into_iter().enumerate() {
                // ∇ ln π(a|s) = x(s, a) − Σ_b π(b|s) x(s, b)   (Sutton & Barto, equation 13.9)
                let x = if b == *action as usize { 1.0 } else { 0.0 };
                expected[b] += 0.1 * weight * (x - pi) / 2.0;
            }
        }
        for (theta, expected) in theta(&reinforce).iter().zip(expected) {
            assert_abs_diff_eq!(*theta, expected, epsilon = 1e-6);
        }
        let of_the_old = -(left * left.ln() + (1.0 - left) * (1.0 - left).ln());
        assert_abs_diff_eq!(entropy, of_the_old, epsilon = 1e-6);
    }
}

#[test]
fn the_step_has_the_size_that_the_schedule_gives() {
    // Plain ascent: θ + α G (1[b = a] − π(b)). Adam's first step is α long, whatever the gradient.
    for (optimizer, expected) in [("sgd", 0.4), ("adam", 0.1)] {
        let mut reinforce = corridor([0.0, 0.0], &["--optimizer", optimizer]);
        reinforce.learning_rate = 0.1;
        reinforce.update(&episodes(&[&[8.0]])).unwrap();
        assert_abs_diff_eq!(theta(&reinforce)[0], expected, epsilon = 1e-6);
        assert_abs_diff_eq!(theta(&reinforce)[1], -expected, epsilon = 1e-6);
    }
}

#[test]
fn the_estimate_is_unbiased() {
    // On the short corridor ∇J is known: J(p) = (2p − 4) / (p (1 − p)).
    let value = |p: f64| (2.0 * p - 4.0) / (p * (1.0 - p));
    let start = [0.5, -0.5];
    let mut reinforce = corridor(start, &[]);
    let p = 1.0 / (1.0 + 1.0_f64.exp());
    let dp = 1e-5;
    // dp / dθ_right = p (1 − p), and θ_left moves it the other way.
    let slope = (value(p + dp) - value(p - dp)) / (2.0 * dp) * p * (1.0 - p);

    let mut envs = VecEnv::make("ShortCorridor-v0", 1, 1).unwrap();
    let mut rng = rng(1, 1);
    let (mut sum, mut sum_of_squares, n) = ([0.0; 2], [0.0; 2], 10_000);
    for _ in 0..n {
        let parameters = &reinforce.parameters.all_vars()[0];
        parameters.set(&Tensor::new(&[[start[0]], [start[1]]], &Device::Cpu).unwrap()).unwrap();
        let mut rollout = Rollout::default();
        while rollout.num_episodes() == 0 {
            let observation = envs.observations().to_vec();
            let action = reinforce.act(&observation, 1, &mut rng).unwrap();
            envs.step(&action).unwrap();
            rollout.store(&observation, &action, &envs);
        }
        reinforce.update(&rollout).unwrap();
        for (b, moved) in theta(&reinforce).into_iter().enumerate() {
            let g = f64::from(moved - start[b]);
            sum[b] += g;
            sum_of_squares[b] += g.powi(2);
        }
    }
    for (b, expected) in [-slope, slope].into_iter().enumerate() {
        let mean = sum[b] / f64::from(n);
        let error = ((sum_of_squares[b] / f64::from(n) - mean.powi(2)) / f64::from(n)).sqrt();
        assert!(error < expected.abs() / 10.0, "{error} is too coarse to tell");
        assert!((mean - expected).abs() < 4.0 * error, "∂J/∂θ_{b}: {mean} ± {error}, not {expected}");
    }
}

#[test]
fn a_linear_policy_begins_with_its_preferences() {
    let policy = |flags: &[&str], observations: &[f32]| {
        let reinforce = Reinforce::new(2, 3, &args(flags)).unwrap();
        let observations = Tensor::from_slice(observations, (2, 2), &Device::Cpu).unwrap();
        floats(&reinforce.policy.forward(&observations).unwrap())
    };
    let observations = [1.0, 0.0, 1.0, 2.0];
    assert_eq!(policy(&["--hidden-size=0"], &observations), [0.0; 6]);
    let preferences = policy(&["--hidden-size=0", "--initial-preferences=1,-2,3"], &observations);
    assert_eq!(preferences, [1.0, -2.0, 3.0, 3.0, -6.0, 9.0]);
    // That of a network is almost uniform.
    let outputs = policy(&[], &observations);
    assert!(outputs.iter().all(|h| h.abs() < 0.05) && outputs[0] != outputs[1], "{outputs:?}");
}

/// What the defaults do, over a few updates, with a step size that falls.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=1000", "--batch-episodes=4", "--eval-episodes=3"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: a linear policy with preferences, plain ascent with steps of one size,
/// γᵗ, and an evaluation that draws its actions.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=ShortCorridor-v0",
        "--total-timesteps=400",
        "--hidden-size=0",
        "--initial-preferences=0.5,-0.5",
        "--optimizer=sgd",
        "--learning-rate=0.002",
        "--anneal-lr=false",
        "--batch-episodes=3",
        "--gamma=0.95",
        "--discount-gradient",
        "--greedy-eval=false",
        "--eval-episodes=3",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
