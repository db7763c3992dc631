//! NoisyNet-DQN's update against PyTorch's, its noise against the formula, its buffer against what
//! happened, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded::values, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["noisy_dqn"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

const ONLINE: Layers = &[
    ("first", &["online/layer1"]),
    ("hidden0.mu", &["online/layer2_mu"]),
    ("hidden0.sigma", &["online/layer2_sigma"]),
    ("output.mu", &["online/layer3_mu"]),
    ("output.sigma", &["online/layer3_sigma"]),
];
const TARGET: Layers = &[
    ("first", &["target/layer1"]),
    ("hidden0.mu", &["target/layer2_mu"]),
    ("hidden0.sigma", &["target/layer2_sigma"]),
    ("output.mu", &["target/layer3_mu"]),
    ("output.sigma", &["target/layer3_sigma"]),
];

fn recorded_noise(recording: &Recording, network: &str) -> Vec<LayerNoise> {
    let normal =
        |layer: &str, side: &str| recording.tensor(&format!("noise/normal/{network}/{layer}.{side}"));
    let noise = |layer| LayerNoise { inputs: normal(layer, "in"), outputs: normal(layer, "out") };
    vec![noise("layer2"), noise("layer3")]
}

fn recorded_update(name: &str, clip_error: bool) {
    let mut recording = Recording::open(name);
    let number = |name: &str| recording.number(name);
    let args = args(&[
        "--hidden-sizes=64,64",
        &format!("--sigma0={}", number("sigma0")),
        &format!("--gamma={}", number("gamma")),
        &format!("--learning-rate={}", number("learning_rate")),
        "--adam-eps=1e-8", // torch.optim.Adam's, with which it was recorded
        &format!("--clip-error={clip_error}"),
    ]);
    let mut dqn = NoisyDqn::new(4, 2, &args).unwrap();
    // The recorded σ of the online network is as initialised.
    for (name, var) in dqn.parameters.named_vars().iter().filter(|(name, _)| name.contains("sigma")) {
        let layer = if name.starts_with("hidden0") { "layer2" } else { "layer3" };
        let part = name.rsplit('.').next().unwrap();
        let recorded = recording.floats(&format!("parameters/online/{layer}_sigma.{part}"));
        assert_eq!(var.flatten_all().unwrap().to_vec1::<f32>().unwrap(), recorded, "{name}");
    }
    recording.set(&dqn.parameters, ONLINE);
    recording.set(&dqn.target_parameters, TARGET);
    let batch = Batch {
        observations: recording.tensor("batch/observations"),
        actions: Tensor::from_vec(recording.integers("batch/actions"), (32, 1), &Device::Cpu).unwrap(),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        terminated: recording.column("batch/terminated"),
    };
    let noise = recorded_noise(&recording, "online");
    let target_noise = recorded_noise(&recording, "target");
    let next_observations: Vec<f32> = recording.floats("batch/next_observations");
    let next_q_values = dqn.target_network.forward(&batch.next_observations, &target_noise).unwrap();
    recording.close("expected/next_values", next_q_values.max(1).unwrap());
    recording.equal("expected/next_actions", next_q_values.argmax(1).unwrap());
    recording.close("expected/targets", dqn.td_targets(&batch, &target_noise).unwrap());
    let mut losses = Vec::new();
    for update in 0..10 {
        let (loss, mean) = dqn.update(&batch, &noise, &target_noise).unwrap();
        losses.push(loss);
        if update == 0 {
            recording.close("expected/loss/td_loss", loss);
            let q_values = recording.floats("expected/q_values");
            assert_abs_diff_eq!(mean, q_values.iter().sum::<f32>() / 32.0, epsilon = 1e-5);
            let gradients = first_gradients(&dqn.optimizer);
            recording.gradients("expected/gradients", &dqn.parameters, ONLINE, gradients);
            let step = recording.number("learning_rate");
            recording.parameters("expected/parameters", &dqn.parameters, ONLINE, step);
        }
    }
    recording.losses("expected/losses_over_updates", &losses);
    recording.unmoved(&dqn.target_parameters, TARGET);
    recording.finish();

    // Acting is the largest of the same values, with the noise that it is given.
    copy_parameters(&dqn.parameters, &dqn.target_parameters).unwrap();
    let greedy: Vec<u32> = next_q_values.argmax(1).unwrap().to_vec1().unwrap();
    assert_eq!(dqn.act(&next_observations, 32, &target_noise).unwrap(), greedy);
}

#[test]
fn recorded_update_with_clipped_errors() {
    recorded_update("noisy_dqn__huber", true);
}

#[test]
fn recorded_update_with_squared_errors() {
    recorded_update("noisy_dqn__mse", false);
}

/// Two noisy layers of 5 → 6 → 3 behind a first one of 2 → 5.
fn small(flags: &[&str]) -> NoisyDqn {
    NoisyDqn::new(2, 3, &args(&[&["--hidden-sizes=5,6"], flags].concat())).unwrap()
}

fn vector(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn parameters_begin_as_the_paper_says() {
    let dqn = NoisyDqn::new(4, 2, &args(&["--hidden-sizes=100,64", "--sigma0=0.4"])).unwrap();
    let parameters = values(&dqn.parameters);
    let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    let layers = ["first", "hidden0.mu", "hidden0.sigma", "output.mu", "output.sigma"];
    let expected = layers.map(|layer| [format!("{layer}.bias"), format!("{layer}.weight")]).concat();
    assert_eq!(names, expected);
    for (name, numbers) in &parameters {
        let inputs: f32 = if name.starts_with("output") { 64.0 } else { 100.0 };
        if name.contains("sigma") {
            assert!(numbers.iter().all(|x| (x - 0.4 / inputs.sqrt()).abs() < 1e-7), "{name}");
        } else if name.contains("mu.weight") {
            let largest = numbers.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            assert!(largest <= 1.0 / inputs.sqrt() && largest > 0.9 / inputs.sqrt(), "{name} {largest}");
        }
    }
    assert_eq!(values(&dqn.target_parameters), parameters);
}

#[test]
fn noise_perturbs_every_weight_by_the_product_of_its_two_sides() {
    let dqn = small(&[]);
    let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
    let (inputs, outputs) = ([4.0_f32, -9.0, 0.0, 0.25, 1.0, -1.0], [-4.0_f32, 0.0, 16.0]);
    let noise = LayerNoise { inputs: tensor(&inputs), outputs: tensor(&outputs) };
    let layer = &dqn.q_network.output;
    let (mean, perturbed) = (layer.perturbed(None).unwrap(), layer.perturbed(Some(&noise)).unwrap());
    let (f_inputs, f_outputs) = ([2.0_f32, -3.0, 0.0, 0.5, 1.0, -1.0], [-2.0_f32, 0.0, 4.0]);
    let sigma = 0.5 / 6.0_f32.sqrt();
    let (mean_weight, weight) = (vector(mean.weight()), vector(perturbed.weight()));
    let (mean_bias, bias) = (vector(mean.bias()), vector(perturbed.bias()));
    for (j, f_output) in f_outputs.iter().enumerate() {
        assert_abs_diff_eq!(bias[j] - mean_bias[j], sigma * f_output, epsilon = 1e-6);
        for (i, f_input) in f_inputs.iter().enumerate() {
            let moved = weight[6 * j + i] - mean_weight[6 * j + i];
            assert_abs_diff_eq!(moved, sigma * f_output * f_input, epsilon = 1e-6);
        }
    }
    assert_eq!(mean_weight, vector(layer.mu.weight()));
    assert_eq!(mean_bias, vector(layer.mu.bias()));
}

#[test]
fn noise_is_standard_normal_and_new_with_every_draw() {
    let dqn = NoisyDqn::new(2, 3, &args(&["--hidden-sizes=5,400,300"])).unwrap();
    let mut rng = rng(1, 0);
    let noise = dqn.q_network.sample_noise(&mut rng).unwrap();
    let sizes: Vec<_> =
        noise.iter().map(|n| (n.inputs.dims1().unwrap(), n.outputs.dims1().unwrap())).collect();
    assert_eq!(sizes, [(5, 400), (400, 300), (300, 3)]);
    let numbers: Vec<f32> =
        noise.iter().flat_map(|n| [vector(&n.inputs), vector(&n.outputs)].concat()).collect();
    let count = numbers.len() as f32;
    let mean = numbers.iter().sum::<f32>() / count;
    let variance = numbers.iter().map(|x| x * x).sum::<f32>() / count;
    let mean_size = numbers.iter().map(|x| x.abs()).sum::<f32>() / count;
    // Four standard errors of 1408 numbers each; E|x| = √(2/π).
    assert!(mean.abs() < 0.11 && (variance - 1.0).abs() < 0.15, "{mean} {variance}");
    assert!((mean_size - 0.798).abs() < 0.065, "{mean_size}");
    let other = dqn.q_network.sample_noise(&mut rng).unwrap();
    for (a, b) in noise.iter().zip(&other) {
        assert_ne!(vector(&a.inputs), vector(&b.inputs));
        assert_ne!(vector(&a.outputs), vector(&b.outputs));
    }
}

#[test]
fn actions_are_greedy_in_perturbed_values_and_explore_by_that_alone() {
    let dqn = small(&["--sigma0=2"]);
    let observations: Vec<f32> = (0..600).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut rng = rng(1, 0);
    let noise = dqn.q_network.sample_noise(&mut rng).unwrap();
    let greedy = dqn.act(&observations, 300, &[]).unwrap();
    let noisy = dqn.act(&observations, 300, &noise).unwrap();
    assert_eq!(noisy, dqn.act(&observations, 300, &noise).unwrap());
    assert_ne!(noisy, greedy);
    let input = Tensor::from_slice(&observations, (300, 2), &Device::Cpu).unwrap();
    for (noise, actions) in [(&[][..], greedy), (&noise, noisy)] {
        let q_values = dqn.q_network.forward(&input, noise).unwrap().to_vec2::<f32>().unwrap();
        for (row, action) in q_values.iter().zip(&actions) {
            assert!(row.iter().all(|q| *q <= row[*action as usize]));
        }
    }
}

#[test]
fn means_and_scales_follow_into_the_target_network() {
    let dqn = small(&["--tau=0.1"]);
    for (i, (_, var)) in dqn.target_parameters.named_vars().into_iter().enumerate() {
        var.set(&(var.as_detached_tensor() * (2.0 + i as f64)).unwrap()).unwrap();
    }
    let (target, online) = (values(&dqn.target_parameters), values(&dqn.parameters));
    dqn.update_target().unwrap();
    assert_eq!(values(&dqn.parameters), online);
    let after = values(&dqn.target_parameters);
    assert_eq!(after.len(), 10);
    for (((_, after), (_, before)), (_, online)) in after.iter().zip(&target).zip(&online) {
        let expected: Vec<f32> = before.iter().zip(online).map(|(b, o)| 0.9 * b + 0.1 * o).collect();
        assert_abs_diff_eq!(after[..], expected[..], epsilon = 1e-6);
    }
}

#[test]
fn what_is_logged_of_sigma_is_its_mean_size() {
    let dqn = small(&[]);
    for (name, var) in dqn.parameters.named_vars() {
        if name == "hidden0.sigma.weight" {
            let mut numbers = vec![0.0_f32; 30];
            (numbers[0], numbers[1]) = (-6.0, 3.0);
            var.set(&Tensor::from_vec(numbers, (6, 5), &Device::Cpu).unwrap()).unwrap();
        }
    }
    let sigmas = dqn.mean_sigmas().unwrap();
    assert_abs_diff_eq!(sigmas[..], [0.3, 0.5 / 6.0_f32.sqrt()][..], epsilon = 1e-6);
}

#[test]
fn the_buffer_holds_what_happened_and_overwrites_its_oldest() {
    const CAPACITY: usize = 7;
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let dqn = NoisyDqn::new(3, 2, &args(&["--hidden-sizes=8"])).unwrap();
    let mut buffer = ReplayBuffer { capacity: CAPACITY, ..Default::default() };
    let mut rng = rng(1, 0);
    let mut kinds = [false; 3]; // a termination, a truncation, both
    for _ in 0..20 {
        let observations = envs.observations().to_vec();
        let noise = dqn.q_network.sample_noise(&mut rng).unwrap();
        let actions = dqn.act(&observations, 3, &noise).unwrap();
        envs.step(&actions).unwrap();
        buffer.store(&observations, &actions, &envs);
        let happened = log.transitions();
        let kept = happened.len().min(CAPACITY);
        assert_eq!(buffer.rewards.len(), kept);
        for (i, t) in happened.iter().enumerate().skip(happened.len() - kept) {
            let row = i % CAPACITY;
            assert_eq!(buffer.observations[3 * row..3 * (row + 1)], t.observation, "{t:?}");
            assert_eq!(buffer.actions[row] as f32, t.action[0], "{t:?}");
            assert_eq!(buffer.rewards[row], t.reward, "{t:?}");
            assert_eq!(buffer.next_observations[3 * row..3 * (row + 1)], t.next_observation, "{t:?}");
            assert_eq!(buffer.terminated[row] == 1.0, t.terminated, "{t:?}");
            kinds[0] |= t.terminated && !t.truncated;
            kinds[1] |= t.truncated && !t.terminated;
            kinds[2] |= t.terminated && t.truncated;
        }
    }
    assert_eq!(kinds, [true; 3]);

    // A sample is whole transitions, each row of the buffer about as often.
    let batch = buffer.sample(700, &mut rng, &Device::Cpu).unwrap();
    let mut seen = [0; CAPACITY];
    let column =
        |tensor: &Tensor, i: usize| tensor.get(i).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for i in 0..700 {
        let row = buffer.rewards.iter().position(|&r| r == column(&batch.rewards, i)[0]).unwrap();
        seen[row] += 1;
        assert_eq!(column(&batch.observations, i), buffer.observations[3 * row..3 * (row + 1)]);
        assert_eq!(batch.actions.get(i).unwrap().to_vec1::<u32>().unwrap(), buffer.actions[row..row + 1]);
        assert_eq!(column(&batch.next_observations, i), buffer.next_observations[3 * row..3 * (row + 1)]);
        assert_eq!(column(&batch.terminated, i), buffer.terminated[row..row + 1]);
    }
    assert!(seen.iter().all(|count| (60..140).contains(count)), "{seen:?}");
}

/// The step size falls, the target follows in small steps, all with noise.
#[test]
fn pinned_run() {
    let flags = [
        "--total-timesteps=600",
        "--learning-starts=100",
        "--hidden-sizes=16,16",
        "--batch-size=16",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Several environments, an overflowing buffer, copies of the target, clipped errors, more noise.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--total-timesteps=606",
        "--num-envs=3",
        "--learning-starts=50",
        "--hidden-sizes=16,8",
        "--sigma0=1",
        "--batch-size=8",
        "--buffer-size=100",
        "--train-frequency=4",
        "--target-network-frequency=25",
        "--tau=1",
        "--clip-error",
        "--anneal-lr=false",
        "--gamma=0.9",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
