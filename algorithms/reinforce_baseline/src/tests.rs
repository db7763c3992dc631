//! Each baseline's update against PyTorch's, what they do to the gradient's mean and variance, what an
//! episode holds, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["reinforce_baseline"].iter().chain(flags).map(Into::into)).unwrap()
}

fn learner(observation_dim: usize, num_actions: usize, flags: &[&str]) -> ReinforceBaseline {
    ReinforceBaseline::new(observation_dim, num_actions, &args(flags), &mut learner_rng(1)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Whole episodes of the one observation `1`.
fn episodes(reinforce: &ReinforceBaseline, played: &[&[(u32, f32)]]) -> Vec<Episode> {
    let episode = |steps: &&[(u32, f32)]| {
        let mut episode = Episode {
            observations: vec![1.0; steps.len()],
            actions: steps.iter().map(|step| step.0).collect(),
            rewards: steps.iter().map(|step| step.1).collect(),
            ..Episode::default()
        };
        episode.finish(&reinforce.args);
        episode
    };
    played.iter().map(episode).collect()
}

const POLICY: Layers = &[("hidden", &["actor/0"]), ("output", &["actor/1"])];
const VALUE: Layers = &[("hidden", &["critic/0"]), ("output", &["critic/1"])];

/// The recorded episodes, finished with the file's own returns.
fn recorded_episodes(recording: &Recording, args: &Args) -> Vec<Episode> {
    let observations = recording.floats("batch/observations");
    let (actions, rewards) = (recording.integers("batch/actions"), recording.floats("batch/rewards"));
    let mut start = 0;
    let episode = |&length: &u32| {
        let rows = start..start + length as usize;
        start = rows.end;
        let mut episode = Episode {
            observations: observations[4 * rows.start..4 * rows.end].to_vec(),
            actions: actions[rows.clone()].to_vec(),
            rewards: rewards[rows].to_vec(),
            ..Episode::default()
        };
        episode.finish(args);
        episode
    };
    recording.integers("batch/episode_lengths").iter().map(episode).collect()
}

fn recorded_update_with_values(name: &str) {
    let mut recording = Recording::open(name);
    let (policy_lr, value_lr) =
        (recording.number("learning_rate_actor"), recording.number("learning_rate_critic"));
    let make = |value_lr: f64| {
        let flags = [
            "--hidden-size=32",
            &format!("--gamma={}", recording.number("gamma")),
            &format!("--policy-lr={policy_lr}"),
            &format!("--value-lr={value_lr}"),
            &format!("--discount-gradient={}", recording.flag("gamma_to_the_t")),
        ];
        let reinforce = learner(4, 2, &flags);
        recording.set(&reinforce.policy.parameters, POLICY);
        recording.set(&reinforce.value.parameters, VALUE);
        reinforce
    };
    let (mut reinforce, mut again, mut with_fixed_values) = (make(value_lr), make(value_lr), make(0.0));
    assert_eq!(reinforce.policy.adam.eps, recording.number("adam_epsilon"));
    let episodes = recorded_episodes(&recording, &reinforce.args);
    recording.close("expected/returns", episodes.iter().map(|e| e.returns.clone()).collect::<Vec<_>>());
    let deltas: Vec<_> = episodes.iter().map(|e| reinforce.deltas(e).unwrap()).collect();
    recording.close("expected/advantages", deltas);

    let losses = reinforce.update(&episodes).unwrap();
    recording.close("expected/loss/policy", losses.policy_loss);
    recording.close("expected/loss/value", losses.value_loss);
    recording.close("expected/loss/total", losses.policy_loss + losses.value_loss);
    let (policy, value) = (&reinforce.policy, &reinforce.value);
    recording.gradients("expected/gradients", &policy.parameters, POLICY, first_gradients(&policy.adam));
    recording.gradients("expected/gradients", &value.parameters, VALUE, first_gradients(&value.adam));
    recording.parameters("expected/parameters", &policy.parameters, POLICY, policy_lr);
    recording.parameters("expected/parameters", &value.parameters, VALUE, value_lr);

    // In the recording δ stays that of the first values over the ten updates; in the file it is of the
    // present ones. The values' losses are the same.
    let total = |_| {
        let value_loss = again.update(&episodes).unwrap().value_loss;
        with_fixed_values.update(&episodes).unwrap().policy_loss + value_loss
    };
    let losses: Vec<f32> = (0..10).map(total).collect();
    recording.losses("expected/losses_over_updates", losses);
    recording.finish();
}

#[test]
fn recorded_update_with_state_values() {
    recorded_update_with_values("reinforce_baseline");
}

#[test]
fn recorded_update_with_state_values_and_discounted_states() {
    recorded_update_with_values("reinforce_baseline__discounted_state");
}

fn recorded_update_with_a_constant(name: &str, baseline: &str) {
    let mut recording = Recording::open(name);
    let learning_rate = recording.number("learning_rate");
    let flags = [
        "--hidden-size=16",
        &format!("--gamma={}", recording.number("gamma")),
        &format!("--policy-lr={learning_rate}"),
        &format!("--baseline={baseline}"),
        // R(τ) is discounted as it is: the flag makes no difference.
        "--discount-gradient",
    ];
    let mut reinforce = learner(4, 2, &flags);
    recording.set(&reinforce.policy.parameters, POLICY);
    let episodes = recorded_episodes(&recording, &reinforce.args);
    let returns: Vec<f32> = episodes.iter().map(|episode| episode.returns[0]).collect();
    recording.close("expected/returns", &returns);

    // Without a baseline the estimates are g(τ) R(τ).
    let (estimates, _) = reinforce.estimates(&episodes, Baseline::None).unwrap();
    let returns = Tensor::new(returns, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let scores = estimates.broadcast_div(&returns).unwrap(); // [6, 114]
    let columns = |start, len| scores.narrow(1, start, len).unwrap();
    // In the file by name: hidden.bias, hidden.weight, output.bias, output.weight.
    let in_recorded_order = [columns(16, 64), columns(0, 16), columns(82, 32), columns(80, 2)];
    recording.close("expected/episode_gradients", Tensor::cat(&in_recorded_order, 1).unwrap());
    if baseline == "optimal" {
        let found = optimal_baselines(&scores, &returns).unwrap();
        let names = ["0.bias", "0.weight", "1.bias", "1.weight"];
        let expected = names.map(|name| recording.floats(&format!("expected/baseline/actor/{name}")));
        // Quotients, where a score is small, of small numbers.
        recording.computed("baselines", found, expected.concat(), 1e-3, 1e-4);
    } else {
        recording.close("expected/baseline", returns.mean_all().unwrap());
    }

    let values_before = recorded::values(&reinforce.value.parameters);
    reinforce.update(&episodes).unwrap();
    let policy = &reinforce.policy;
    recording.gradients("expected/gradients", &policy.parameters, POLICY, first_gradients(&policy.adam));
    recording.parameters("expected/parameters", &policy.parameters, POLICY, learning_rate);
    assert_eq!(recorded::values(&reinforce.value.parameters), values_before);
    recording.finish();
}

#[test]
fn recorded_update_with_the_mean() {
    recorded_update_with_a_constant("reinforce_baseline__mean", "mean");
}

#[test]
fn recorded_update_with_the_optimal_constants() {
    recorded_update_with_a_constant("reinforce_baseline__optimal", "optimal");
}

#[test]
fn an_episode_holds_what_happened() {
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let reinforce = learner(3, 3, &["--gamma=0.5", "--discount-gradient"]);
    let (mut running, mut played, mut rng) = (Episode::default(), Vec::new(), learner_rng(1));
    for _ in 0..12 {
        let observation = envs.observations().to_vec();
        let action = reinforce.act(&observation, &mut rng).unwrap();
        envs.step(&action).unwrap();
        running.store(&observation, &action, &envs, &reinforce.args);
        if !envs.episodes().is_empty() {
            played.push(std::mem::take(&mut running));
        }
    }
    // Three steps and a termination, four and a truncation, one, two and both at once, one and a cut.
    assert_eq!(played.iter().map(|episode| episode.rewards.len()).collect::<Vec<_>>(), [3, 4, 1, 2, 1]);
    assert_eq!(running.rewards.len(), 1);
    for (k, episode) in played.iter().enumerate() {
        let happened: Vec<_> = log.transitions().into_iter().filter(|t| t.episode == k).collect();
        for (i, t) in happened.iter().enumerate() {
            assert_eq!(episode.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
            assert_eq!(episode.actions[i] as f32, t.action[0], "{t:?}");
            assert_eq!(episode.rewards[i], t.reward, "{t:?}");
            let step = episode.steps().nth(i).unwrap();
            assert_eq!((step.observations, step.returns[0]), (t.observation.clone(), episode.returns[i]));
            assert_eq!((step.actions[0], step.discounts[0]), (episode.actions[i], 0.5_f32.powi(i as i32)));
            // G_t = Σ_{k ≥ t} γ^{k−t} r_k
            let rest = happened[i..].iter().zip(0..);
            let g: f32 = rest.map(|(later, power)| 0.5_f32.powi(power) * later.reward).sum();
            assert_abs_diff_eq!(episode.returns[i], g, epsilon = 1e-4);
        }
    }
    assert!((0..3).all(|action| log.transitions().iter().any(|t| t.action[0] == action as f32)));
}

/// A short corridor's learner: preferences and a value of one number each.
fn corridor(flags: &[&str]) -> ReinforceBaseline {
    let own = ["--hidden-size=0", "--gamma=1", "--initial-preferences=0.5,-0.5"];
    learner(1, 2, &[&own, flags].concat())
}

fn set_value(reinforce: &ReinforceBaseline, value: f32) {
    reinforce.value.parameters.all_vars()[0].set(&Tensor::new(&[[value]], &Device::Cpu).unwrap()).unwrap();
}

#[test]
fn every_step_is_along_the_books_vectors_with_values_from_before() {
    for sequential in ["false", "true"] {
        let flags = ["--policy-lr=0.1", "--value-lr=0.2", "--gamma=0.5", "--discount-gradient"];
        let mut reinforce = corridor(&[&flags[..], &["--sequential", sequential]].concat());
        set_value(&reinforce, 3.0);
        let episodes = episodes(&reinforce, &[&[(1, -2.0), (0, 4.0), (1, 6.0)]]);
        // ∇ ln π(a) = 1[b = a] − π(b); G = −2 + 0.5 · 7, 4 + 0.5 · 6, 6
        let (mut theta, mut w) = ([0.5_f32, -0.5], 3.0_f32);
        let (mut step, mut step_w) = ([0.0, 0.0], 0.0);
        for (t, (action, g)) in [(1, 1.5), (0, 7.0), (1, 6.0)].into_iter().enumerate() {
            let left = 1.0 / (1.0 + (theta[1] - theta[0]).exp());
            let delta = g - w;
            let discounted = 0.5_f32.powi(t as i32) * delta;
            let of_left = if action == 0 { 1.0 - left } else { -left };
            step[0] += 0.1 * discounted * of_left;
            step[1] -= 0.1 * discounted * of_left;
            step_w += 0.2 * delta;
            if sequential == "true" {
                (theta, w) = ([theta[0] + step[0], theta[1] + step[1]], w + step_w);
                (step, step_w) = ([0.0, 0.0], 0.0);
            }
        }
        if sequential == "false" {
            // Adam's first step is α long, along the sign of the sum.
            (theta[0], theta[1]) = (0.5 + 0.1 * step[0].signum(), -0.5 + 0.1 * step[1].signum());
            w += 0.2 * step_w.signum();
        }
        reinforce.update(&episodes).unwrap();
        let found = floats(&reinforce.policy.parameters.all_vars()[0]);
        assert_abs_diff_eq!(found[0], theta[0], epsilon = 1e-5);
        assert_abs_diff_eq!(found[1], theta[1], epsilon = 1e-5);
        assert_abs_diff_eq!(floats(&reinforce.value.parameters.all_vars()[0])[0], w, epsilon = 1e-5);
    }
}

/// Episodes of the short corridor.
fn play(reinforce: &ReinforceBaseline, n: usize) -> Vec<Episode> {
    let mut envs = VecEnv::make("ShortCorridor-v0", 1, 1).unwrap();
    let (mut rng, mut running, mut played) = (rng(1, 1), Episode::default(), Vec::new());
    while played.len() < n {
        let observation = envs.observations().to_vec();
        let action = reinforce.act(&observation, &mut rng).unwrap();
        envs.step(&action).unwrap();
        running.store(&observation, &action, &envs, &reinforce.args);
        if !envs.episodes().is_empty() {
            played.push(std::mem::take(&mut running));
        }
    }
    played
}

#[test]
fn no_baseline_biases_the_gradient_and_better_ones_have_less_variance() {
    // On the short corridor ∇J is known: J(p) = (2p − 4) / (p (1 − p)).
    let reinforce = corridor(&[]);
    set_value(&reinforce, -13.0); // about J
    let value = |p: f64| (2.0 * p - 4.0) / (p * (1.0 - p));
    let p = 1.0 / (1.0 + 1.0_f64.exp());
    let dp = 1e-5;
    // dp / dθ_right = p (1 − p), and θ_left moves it the other way.
    let slope = (value(p + dp) - value(p - dp)) / (2.0 * dp) * p * (1.0 - p);

    let n = 4000;
    let episodes = play(&reinforce, n);
    let mut variances = Vec::new();
    for &baseline in Baseline::value_variants() {
        let (estimates, _) = reinforce.estimates(&episodes, baseline).unwrap();
        let variance = reinforce.gradient_variance(&episodes, baseline).unwrap();
        let means = floats(&estimates.mean(0).unwrap());
        // Both parameters have the same variance, for they move against each other.
        let error = (variance / 2.0 / n as f64).sqrt();
        assert!(error < slope.abs() / 4.0, "{baseline:?}: {error} is too coarse to tell");
        for (mean, expected) in means.iter().zip([-slope, slope]) {
            let found = f64::from(*mean);
            assert!(
                (found - expected).abs() < 4.0 * error,
                "{baseline:?}: {found} ± {error}, not {expected}"
            );
        }
        variances.push(variance);
        // As it is defined: Σ_k Σ_episodes (x_k − mean_k)² / (N − 1)
        let x = floats(&estimates);
        let deviation = |i: usize| f64::from(x[i] - means[i % 2]).powi(2);
        let defined = (0..2 * n).map(deviation).sum::<f64>() / (n - 1) as f64;
        assert_abs_diff_eq!(variance, defined, epsilon = 1e-3 * defined);
    }
    let [none, mean, optimal, value] = variances[..] else { panic!("four baselines") };
    assert!(mean < 0.9 * none && optimal < 0.9 * mean && value < 0.9 * none, "{variances:?}");
}

#[test]
fn the_optimal_constants_leave_the_least_second_moment() {
    let scores = Tensor::new(&[[1.0_f32, 0.0], [-2.0, 0.0], [0.5, 0.0]], &Device::Cpu).unwrap();
    let returns = Tensor::new(&[[3.0_f32], [1.0], [-4.0]], &Device::Cpu).unwrap();
    let b = floats(&optimal_baselines(&scores, &returns).unwrap());
    assert_abs_diff_eq!(b[0], (3.0 + 4.0 - 1.0) / (1.0 + 4.0 + 0.25), epsilon = 1e-6);
    let moment = |b: f32| (3.0 - b).powi(2) + 4.0 * (1.0 - b).powi(2) + 0.25 * (-4.0 - b).powi(2);
    assert!(moment(b[0]) < moment(b[0] + 0.01) && moment(b[0]) < moment(b[0] - 0.01));
    assert_eq!(b[1], 0.0);
}

#[test]
fn a_linear_policy_begins_with_its_preferences_and_networks_are_born_apart() {
    let linear = learner(2, 3, &["--hidden-size=0", "--initial-preferences=1,-2,3"]);
    let observations = linear.tensor(&[1.0, 0.0, 1.0, 2.0]).unwrap();
    let preferences = floats(&linear.policy.forward(&observations).unwrap());
    assert_eq!(preferences, [1.0, -2.0, 3.0, 3.0, -6.0, 9.0]);
    assert_eq!(floats(&linear.value.forward(&observations).unwrap()), [0.0, 0.0]);
    let deep = learner(2, 3, &[]);
    let outputs = floats(&deep.policy.forward(&observations).unwrap());
    assert!(outputs.iter().all(|h| h.abs() < 0.05) && outputs[0] != outputs[1], "{outputs:?}");
    let hidden = |network: &Network| recorded::values(&network.parameters)[1].clone();
    assert_ne!(hidden(&deep.policy), hidden(&deep.value));
}

/// What the defaults do, over a few updates, and every baseline's variance at every second of them.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=1000", "--batch-episodes=4", "--eval-episodes=3", "--variance-every=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: the book's steps with a linear policy and value, γᵗ, and an evaluation
/// that draws its actions.
#[test]
fn pinned_run_of_the_book() {
    let flags = [
        "--env-id=ShortCorridor-v0",
        "--total-timesteps=400",
        "--hidden-size=0",
        "--initial-preferences=0.5,-0.5",
        "--sequential",
        "--policy-lr=0.002",
        "--value-lr=0.02",
        "--batch-episodes=3",
        "--gamma=0.95",
        "--discount-gradient",
        "--greedy-eval=false",
        "--eval-episodes=3",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "book", &flags, train);
}

/// A constant baseline of each kind.
#[test]
fn pinned_runs_of_constants() {
    for baseline in ["none", "mean", "optimal"] {
        let flag = format!("--baseline={baseline}");
        let flags = [&*flag, "--total-timesteps=500", "--batch-episodes=4", "--eval-episodes=2"];
        regression::pinned(env!("CARGO_MANIFEST_DIR"), baseline, &flags, train);
    }
}
