//! The models' step against PyTorch's, plans in models that are known, what is stored, and runs against
//! their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["latent_mpc"].iter().chain(flags).map(Into::into)).unwrap()
}

fn tensor(values: &[&[f32]]) -> Tensor {
    Tensor::from_vec(values.concat(), (values.len(), values[0].len()), &Device::Cpu).unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

const DETERMINISTIC: Layers = &[
    ("encoder.hidden1", &["encoder/fc1"]),
    ("encoder.hidden2", &["encoder/fc2"]),
    ("encoder.output", &["encoder/fc3"]),
    ("dynamics.hidden1", &["dynamics/fc1"]),
    ("dynamics.hidden2", &["dynamics/fc2"]),
    ("dynamics.output", &["dynamics/fc3"]),
    ("reward.hidden1", &["reward/fc1"]),
    ("reward.hidden2", &["reward/fc2"]),
    ("reward.output", &["reward/fc3"]),
    ("decoder.hidden1", &["decoder/fc1"]),
    ("decoder.hidden2", &["decoder/fc2"]),
    ("decoder.output", &["decoder/fc3"]),
];
const STOCHASTIC: Layers = &[
    ("encoder.hidden1", &["encoder/fc1"]),
    ("encoder.hidden2", &["encoder/fc2"]),
    ("encoder.output", &["encoder/mean", "encoder/log_std"]),
    ("dynamics.hidden1", &["dynamics/fc1"]),
    ("dynamics.hidden2", &["dynamics/fc2"]),
    ("dynamics.output", &["dynamics/mean", "dynamics/log_std"]),
    ("reward.hidden1", &["reward/fc1"]),
    ("reward.hidden2", &["reward/fc2"]),
    ("reward.output", &["reward/fc3"]),
    ("decoder.hidden1", &["decoder/fc1"]),
    ("decoder.hidden2", &["decoder/fc2"]),
    ("decoder.output", &["decoder/fc3"]),
];

/// With one observation at a time, and dynamics that predict z' itself.
fn recorded_update(name: &str, layers: Layers, flags: &[&str]) {
    let mut recording = Recording::open(name);
    let stochastic = flags.contains(&"--stochastic");
    let (lr, beta) = (recording.number("lr"), if stochastic { recording.number("beta") } else { 0.0 });
    let own = [
        "--window=1",
        "--latent-size=4",
        "--hidden-size=32",
        "--predict-differences=false",
        &format!("--learning-rate={lr}"),
        &format!("--beta={beta}"),
    ];
    let mut agent = LatentMpc::new((3, 2), &args(&[&own[..], flags].concat())).unwrap();
    recording.set(&agent.parameters, layers);
    let batches = [Batch {
        observations: recording.tensor("batch/observations"),
        actions: recording.tensor("batch/actions"),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        ends: Tensor::zeros((32, 1), DType::F32, &Device::Cpu).unwrap(), // no episode ends
    }];
    let noise = match stochastic {
        true => {
            let names = ["noise/normal_latents", "noise/normal_next_latents"];
            Tensor::stack(&names.map(|name| recording.tensor(name)), 0).unwrap()
        }
        false => Tensor::ones((2, 32, 4), DType::F32, &Device::Cpu).unwrap(), // is not used
    };
    let q = [&batches[0].observations, &batches[0].next_observations]
        .map(|seen| agent.gaussian(&agent.encoder, &agent.observe(seen).unwrap()).unwrap());
    let latents = [0, 1].map(|i| match stochastic {
        true => q[i].sample(&noise.get(i).unwrap()).unwrap(),
        false => q[i].mean.clone(),
    });
    recording.close("expected/latents", &latents[0]);
    recording.close("expected/next_latents", &latents[1]);
    if stochastic {
        let (prior, _) = agent.predict(&latents[0], &batches[0].actions).unwrap();
        recording.close("expected/prior_mean", &prior.mean);
        recording.close("expected/prior_log_std", &prior.log_std);
    }
    let names: &[&str] = match stochastic {
        true => &["observation", "reward", "dynamics", "prior", "total"],
        false => &["observation", "reward", "dynamics", "", "total"],
    };
    let mut losses = Vec::new();
    for update in 0..10 {
        losses.push(agent.update(&batches, &noise).unwrap());
        if update == 0 {
            for (name, loss) in names.iter().zip(losses[0]).filter(|(name, _)| !name.is_empty()) {
                recording.close(&format!("expected/loss/{name}"), loss);
            }
            let gradients = first_gradients(&agent.optimizer);
            recording.gradients("expected/gradients", &agent.parameters, layers, gradients);
            recording.parameters("expected/parameters", &agent.parameters, layers, lr);
        }
    }
    for (i, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        let of: Vec<f32> = losses.iter().map(|losses| losses[i]).collect();
        recording.losses(&format!("expected/losses_over_updates_{name}"), &of);
    }
    let totals: Vec<f32> = losses.iter().map(|losses| losses[4]).collect();
    recording.losses("expected/losses_over_updates", &totals);
    recording.finish();
}

#[test]
fn recorded_update_of_deterministic_models() {
    recorded_update("latent_mpc__deterministic", DETERMINISTIC, &[]);
}

#[test]
fn recorded_update_of_stochastic_models() {
    recorded_update("latent_mpc", STOCHASTIC, &["--stochastic"]);
}

#[test]
fn divergences_are_those_of_normal_distributions() {
    let gaussian =
        |mean: &[f32], log_std: &[f32]| Gaussian { mean: tensor(&[mean]), log_std: tensor(&[log_std]) };
    let kl = |q: &Gaussian, p: &Gaussian| q.kl(p).unwrap().to_scalar::<f32>().unwrap();
    let (q, p) = (gaussian(&[1.0, -0.5], &[0.3, -0.2]), gaussian(&[0.2, 0.1], &[-0.1, 0.4]));
    assert_eq!(kl(&q, &q), 0.0);
    // By midpoints: ∫ q ln q/p, dimension by dimension.
    let density = |x: f64, mean: f64, std: f64| (-0.5 * ((x - mean) / std).powi(2)).exp() / std;
    let integral = |(m, s): (f64, f64), (n, t): (f64, f64)| -> f64 {
        let cell = 1e-3;
        (-12_000..12_000)
            .map(|i| (f64::from(i) + 0.5) * cell)
            .map(|x| density(x, m, s) * (density(x, m, s) / density(x, n, t)).ln() * cell)
            .sum::<f64>()
            / std::f64::consts::TAU.sqrt()
    };
    let expected = integral((1.0, 0.3_f64.exp()), (0.2, (-0.1_f64).exp()))
        + integral((-0.5, (-0.2_f64).exp()), (0.1, 0.4_f64.exp()));
    assert_abs_diff_eq!(f64::from(kl(&q, &p)), expected, epsilon = 1e-4);
}

#[test]
fn an_observation_is_the_newest_and_its_differences() {
    let agent = LatentMpc::new((6, 1), &args(&["--window=3", "--difference-scale=4"])).unwrap();
    // Oldest first, as they are stacked: (1, 10), (3, 10.5), (6, 8).
    let o = agent.observe(&tensor(&[&[1.0, 10.0, 3.0, 10.5, 6.0, 8.0]])).unwrap();
    assert_eq!(rows(&o), [[6.0, 8.0, 4.0 * 5.0, 4.0 * -2.0, 4.0 * 3.0, 4.0 * -2.5]]);
    let agent = LatentMpc::new((2, 1), &args(&["--window=1"])).unwrap();
    assert_eq!(rows(&agent.observe(&tensor(&[&[0.5, -1.0]])).unwrap()), [[0.5, -1.0]]);
}

#[test]
fn predicted_differences_are_added_to_the_latent_state() {
    let flags = ["--latent-size=2", "--hidden-size=4"];
    let [differences, whole] = [&["--predict-differences=true"], &["--predict-differences=false"]]
        .map(|flag| LatentMpc::new((4, 1), &args(&[&flags[..], flag].concat())).unwrap());
    let (z, a) = (tensor(&[&[0.5, -2.0]]), tensor(&[&[0.3]]));
    let [(differences, reward), (whole, same)] =
        [differences, whole].map(|agent| agent.predict(&z, &a).unwrap());
    assert_eq!(rows(&differences.mean), rows(&(whole.mean + z).unwrap()));
    assert_eq!(rows(&differences.log_std), [[0.0, 0.0]]);
    assert_eq!(rows(&reward), rows(&same));
}

/// Sets a model to y = W x + b: the hidden layers hand on x and −x where they are positive.
fn set_linear(agent: &LatentMpc, name: &str, weight: &[&[f32]], bias: &[f32]) {
    let (inputs, hidden) = (weight[0].len(), agent.args.hidden_size);
    for (parameter, var) in agent.parameters.named_vars() {
        let Some(part) = parameter.strip_prefix(name).and_then(|part| part.strip_prefix('.')) else {
            continue;
        };
        let mut values = vec![0.0; var.elem_count()];
        match part {
            "hidden1.weight" => {
                (0..inputs)
                    .for_each(|i| (values[i * inputs + i], values[(inputs + i) * inputs + i]) = (1.0, -1.0));
            }
            "hidden2.weight" => (0..hidden).for_each(|i| values[i * hidden + i] = 1.0),
            "output.weight" => {
                for (out, row) in weight.iter().enumerate() {
                    for (i, w) in row.iter().enumerate() {
                        (values[out * hidden + i], values[out * hidden + inputs + i]) = (*w, -w);
                    }
                }
            }
            "output.bias" => values.copy_from_slice(bias),
            _ => {}
        }
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

/// A point on a line, z' = z + ½ a, whose reward is −z + ¼ a: a push to the left pays at once, and later too.
fn point(flags: &[&str]) -> LatentMpc {
    let own = ["--window=1", "--latent-size=1", "--hidden-size=8"];
    let agent = LatentMpc::new((1, 1), &args(&[&own[..], flags].concat())).unwrap();
    set_linear(&agent, "encoder", &[&[1.0]], &[0.0]);
    set_linear(&agent, "dynamics", &[&[0.0, 0.5]], &[0.0]);
    set_linear(&agent, "reward", &[&[-1.0, 0.25]], &[0.0]);
    agent
}

#[test]
fn predictions_go_on_until_an_episode_ends() {
    let row = |[o, a, r, next_o, ends]: [f32; 5]| Batch {
        observations: tensor(&[&[o]]),
        actions: tensor(&[&[a]]),
        rewards: tensor(&[&[r]]),
        next_observations: tensor(&[&[next_o]]),
        ends: tensor(&[&[ends]]),
    };
    let noise = Tensor::zeros((2, 1, 1), DType::F32, &Device::Cpu).unwrap();
    let losses = |batches: &[Batch]| {
        let mut agent = point(&["--learning-rate=0"]);
        set_linear(&agent, "decoder", &[&[1.0]], &[0.0]);
        agent.update(batches, &noise).unwrap()
    };
    // From 1 with 0.5 to 1.25, where it is 2 that is seen: ½ 0.75² each; and the reward is −1 + ⅛.
    let [observation, reward, dynamics, prior, total] = losses(&[row([1.0, 0.5, -1.0, 2.0, 0.0])]);
    assert_abs_diff_eq!(observation, 0.0, epsilon = 1e-6);
    assert_abs_diff_eq!(reward, 0.5 * 0.125_f32.powi(2), epsilon = 1e-6);
    assert_abs_diff_eq!(dynamics, 0.5 * 0.75_f32.powi(2), epsilon = 1e-6);
    assert_abs_diff_eq!(prior, 0.5, epsilon = 1e-6);
    assert_abs_diff_eq!(total, observation + reward + dynamics, epsilon = 1e-6);
    // The next step is predicted from 1.25, or from 2 where that is a new episode.
    for (ends, z) in [(0.0, 1.25), (1.0, 2.0)] {
        let two = losses(&[row([1.0, 0.5, -1.0, 2.0, ends]), row([2.0, -1.0, -2.0, 1.0, 0.0])]);
        let second_reward = -2.0 - (-z - 0.25_f32);
        let second = [(2.0 - z).powi(2), second_reward.powi(2), (1.0 - (z - 0.5)).powi(2)].map(|x| 0.5 * x);
        for (i, first) in [observation, reward, dynamics].into_iter().enumerate() {
            assert_abs_diff_eq!(two[i], 0.5 * (first + second[i]), epsilon = 1e-5);
        }
    }
}

#[test]
fn a_plan_is_worth_the_rewards_along_it() {
    let agent = point(&["--horizon=3"]);
    let plans = Tensor::new(&[[[1.0_f32], [-1.0], [0.5]], [[0.0], [0.0], [0.0]]], &Device::Cpu).unwrap();
    let returns = agent.plan_returns(tensor(&[&[2.0], &[-1.0]]), &plans).unwrap();
    // From 2: 2, 2.5, 2 with ¼ (1 − 1 + 0.5); from −1 nothing changes.
    assert_abs_diff_eq!(returns[0], -6.5 + 0.125, epsilon = 1e-5);
    assert_abs_diff_eq!(returns[1], 3.0, epsilon = 1e-5);
}

#[test]
fn the_best_plan_is_found_in_each_environment() {
    // Of two steps the first action is worth ¼ a − ½ a, the second ¼ a: first left, then right.
    let flags = ["--horizon=2", "--population=200", "--elites=10", "--iterations=6"];
    let agent = point(&flags);
    let mut plans = vec![0.0; 6];
    let actions = agent.act(&[3.0, 0.0, -5.0], &mut plans, &mut rng(1, 0)).unwrap();
    for (env, plan) in plans.chunks(2).enumerate() {
        assert!(plan[0] < -0.95 && plan[1] > 0.95, "environment {env}: {plan:?}");
        assert_eq!(actions[env], plan[0]);
    }
}

#[test]
fn a_round_samples_around_the_rest_of_the_last_plan() {
    // All are elites: the new μ is the mean of clamped samples around the old plan, moved up by a step.
    let flags = ["--horizon=3", "--population=20000", "--elites=20000", "--iterations=1"];
    let mut plans = vec![0.9, 0.0, 0.4];
    let actions = point(&flags).act(&[0.0], &mut plans, &mut rng(1, 0)).unwrap();
    // E[ clamp(0.4 + ½ z, −1, 1) ] = 0.372
    for (found, expected) in plans.iter().zip([0.0, 0.372, 0.372]) {
        assert_abs_diff_eq!(*found, expected, epsilon = 0.015);
    }
    assert_eq!(actions, plans[..1]);
}

#[test]
fn the_buffer_holds_what_happened() {
    let (mut envs, log) = scripted(1, View::Vector, Space::uniform(1, -1.0, 1.0), SCRIPT);
    let agent = LatentMpc::new((3, 1), &args(&["--window=1", "--horizon=2", "--population=4", "--elites=2"]))
        .unwrap();
    let (mut buffer, mut plan, mut rng) = (ReplayBuffer::default(), vec![0.0; 2], rng(1, 0));
    for _ in 0..20 {
        let observation = envs.observations().to_vec();
        let action = agent.act(&observation, &mut plan, &mut rng).unwrap();
        envs.step(&action).unwrap();
        buffer.store(&observation, &action, &envs);
    }
    let happened = log.transitions();
    assert!(happened.iter().any(|t| t.terminated) && happened.iter().any(|t| t.truncated));
    let all: Vec<usize> = (0..20).rev().collect();
    let batch = buffer.select(&all, &Device::Cpu).unwrap();
    let [o, a, r] = [&batch.observations, &batch.actions, &batch.rewards].map(rows);
    let [next_o, ends] = [&batch.next_observations, &batch.ends].map(rows);
    for (i, t) in happened.iter().rev().enumerate() {
        assert_eq!((&o[i], &a[i]), (&t.observation, &t.action), "{t:?}");
        assert_eq!((&r[i], &next_o[i]), (&vec![t.reward], &t.next_observation), "{t:?}");
        assert_eq!(ends[i] == [1.0], t.terminated || t.truncated, "{t:?}");
    }
}

/// The defaults, from random steps over the first planned ones to the next episode.
#[test]
fn pinned_run() {
    let flags = [
        "--total-timesteps=210",
        "--learning-starts=190",
        "--batch-size=16",
        "--hidden-size=16",
        "--horizon=5",
        "--population=8",
        "--elites=3",
        "--eval-episodes=1",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: distributions, longer windows, whole predictions.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--total-timesteps=200",
        "--learning-starts=90",
        "--stochastic",
        "--beta=0.1",
        "--predict-differences=false",
        "--difference-scale=5",
        "--window=3",
        "--latent-size=3",
        "--learning-rate=0.001",
        "--updates=3",
        "--rollout=3",
        "--batch-size=16",
        "--hidden-size=16",
        "--horizon=4",
        "--population=6",
        "--elites=2",
        "--iterations=3",
        "--eval-episodes=1",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
