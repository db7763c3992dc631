//! Rainbow's update against PyTorch's, each of its parts against its definition, its windows against what
//! happened, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{self, Action, Env, Space, Spec, State, Step, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded::values, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["rainbow"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

/// An empty buffer, as `train` makes it.
fn buffer(args: &Args) -> ReplayBuffer {
    let sums = vec![0.0; 2 * args.buffer_size.next_power_of_two()];
    ReplayBuffer { sums, max_priority: 1.0, ..Default::default() }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const ONLINE: Layers = &[
    ("first", &["online/trunk1"]),
    ("value.hidden.mu", &["online/value1_mu"]),
    ("value.hidden.sigma", &["online/value1_sigma"]),
    ("value.output.mu", &["online/value2_mu"]),
    ("value.output.sigma", &["online/value2_sigma"]),
    ("advantage.hidden.mu", &["online/advantage1_mu"]),
    ("advantage.hidden.sigma", &["online/advantage1_sigma"]),
    ("advantage.output.mu", &["online/advantage2_mu"]),
    ("advantage.output.sigma", &["online/advantage2_sigma"]),
];
const TARGET: Layers = &[
    ("first", &["target/trunk1"]),
    ("value.hidden.mu", &["target/value1_mu"]),
    ("value.hidden.sigma", &["target/value1_sigma"]),
    ("value.output.mu", &["target/value2_mu"]),
    ("value.output.sigma", &["target/value2_sigma"]),
    ("advantage.hidden.mu", &["target/advantage1_mu"]),
    ("advantage.hidden.sigma", &["target/advantage1_sigma"]),
    ("advantage.output.mu", &["target/advantage2_mu"]),
    ("advantage.output.sigma", &["target/advantage2_sigma"]),
];

/// Plays the recorded rows, one after the other, whatever the actions.
struct Replayed {
    spec: Spec,
    observations: Vec<f32>,      // [rows, 4]
    next_observations: Vec<f32>, // [rows, 4]
    rewards: Vec<f32>,
    terminated: Vec<bool>,
    truncated: Vec<bool>,
    row: usize,
    begins: bool, // an episode
}

impl Env for Replayed {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, _: &mut Rng) -> Result<()> {
        self.begins = true;
        Ok(())
    }

    fn step(&mut self, _: Action<'_>, _: &mut Rng) -> Result<Step> {
        let i = self.row;
        (self.row, self.begins) = (i + 1, false);
        Ok(Step {
            reward: self.rewards[i].into(),
            terminated: self.terminated[i],
            truncated: self.truncated[i],
        })
    }

    fn observe(&self, observation: &mut [f32]) {
        let seen = match self.begins {
            true => &self.observations[4 * self.row..],
            false => &self.next_observations[4 * (self.row - 1)..],
        };
        observation.copy_from_slice(&seen[..4]);
    }

    fn state(&self) -> Result<State> {
        envs::invalid("it has none")
    }

    fn set_state(&mut self, _: &State) -> Result<()> {
        envs::invalid("it has none")
    }
}

/// All of it, from the steps as they come in to the priorities that go out. The recording's own notes
/// give the target distributions to 1e-5.
#[test]
fn recorded_update() {
    let mut recording = Recording::open("rainbow");
    let number = |name: &str| recording.number(name);
    assert_eq!(
        [number("sigma0"), number("priority_exponent"), number("importance_exponent")],
        [0.5, 0.5, 0.4]
    );
    let args = args(&[
        "--hidden-size=32",
        "--buffer-size=64",
        &format!("--n-atoms={}", number("n_atoms")),
        &format!("--v-min={}", number("v_min")),
        &format!("--v-max={}", number("v_max")),
        &format!("--n-step={}", number("n_step")),
        &format!("--gamma={}", number("gamma")),
        &format!("--learning-rate={}", number("learning_rate")),
    ]);
    let mut rainbow = Rainbow::new(&Space::uniform(4, -1.0, 1.0), 2, &args).unwrap();
    assert_eq!(rainbow.optimizer.eps, 1.5e-4);
    rainbow.optimizer.eps = recording.number("adam_epsilon");
    recording.set(&rainbow.parameters, ONLINE);
    recording.set(&rainbow.target_parameters, TARGET);

    // The windows.
    let env = Replayed {
        spec: Spec {
            id: "Replayed-v0".into(),
            observation_space: Space::uniform(4, f32::NEG_INFINITY, f32::INFINITY),
            action_space: Space::Discrete { n: 2 },
            max_episode_steps: None,
            reward_threshold: None,
        },
        observations: recording.floats("batch/observations"),
        next_observations: recording.floats("batch/next_observations"),
        rewards: recording.floats("batch/rewards"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
        row: 0,
        begins: false,
    };
    let mut envs = VecEnv::new(vec![Box::new(env)], 0).unwrap();
    let mut buffer = buffer(&args);
    let actions = recording.integers("batch/actions");
    for (i, &action) in actions.iter().enumerate() {
        let observation = envs.observations().to_vec();
        assert_eq!(observation, recording.floats("batch/observations")[4 * i..4 * (i + 1)]);
        envs.step(&[action]).unwrap();
        buffer.store(&observation, action, &envs, &args);
    }
    assert_eq!((buffer.next_row, buffer.recent.len()), (0, 2));
    recording.close("expected/n_step_returns", &buffer.returns);
    recording.close("expected/discounts", &buffer.discounts);
    assert_eq!(buffer.actions, actions[..64]);
    assert_eq!(buffer.observations, recording.floats("batch/observations")[..4 * 64]);
    let next_observations = recording.floats("batch/next_observations");
    for (row, &last) in recording.integers("expected/last_indices").iter().enumerate() {
        let last = last as usize;
        assert_eq!(
            buffer.next_observations[4 * row..4 * (row + 1)],
            next_observations[4 * last..4 * (last + 1)]
        );
    }

    // The sample.
    for (row, &p) in recording.floats("batch/priorities").iter().enumerate() {
        buffer.set_priority(row, p.into(), &args);
    }
    let probabilities: Vec<f64> = buffer.sums[64..].iter().map(|p| p / buffer.sums[1]).collect();
    recording.close("expected/probabilities", probabilities);
    let uniforms: Vec<f64> = recording.floats("noise/uniform_strata").iter().map(|&u| u.into()).collect();
    let batch = buffer.sample(&uniforms, recording.number("importance_exponent"), &Device::Cpu).unwrap();
    recording.equal("expected/indices", &batch.rows);
    recording.close("expected/weights", &batch.weights);

    // The targets.
    let noise = ["online", "target"].map(|network| {
        let layers = ["advantage1", "advantage2", "value1", "value2"];
        let numbers = |layer, side| recording.floats(&format!("noise/normal/{network}/{layer}.{side}"));
        layers
            .iter()
            .flat_map(|layer| [numbers(layer, "in"), numbers(layer, "out")].concat())
            .collect::<Vec<_>>()
    });
    recording.close("expected/support", &rainbow.support);
    let next_outputs = rainbow.network.forward(&batch.next_observations, &noise[0]).unwrap();
    let next_actions = rainbow.q_values(&next_outputs).unwrap().argmax(1).unwrap();
    recording.equal("expected/next_actions", next_actions);
    let targets = rainbow.targets(&batch, &noise).unwrap();
    recording.within("expected/target_distributions", &targets, 0.0, 1e-5);

    // The update.
    let mut losses = Vec::new();
    for update in 0..10 {
        let (loss, _, window_losses) = rainbow.update(&batch, &noise).unwrap();
        losses.push(loss);
        if update == 0 {
            recording.close("expected/loss/cross_entropy", loss);
            recording.close("expected/row_losses", &window_losses);
            recording.close("expected/new_priorities", &window_losses);
            // The paper's priority is less by the entropy of the target.
            let entropy = |m: &[f32]| -m.iter().map(|m| if *m > 0.0 { m * m.ln() } else { 0.0 }).sum::<f32>();
            let entropies = targets.to_vec2::<f32>().unwrap();
            let kl: Vec<f32> = window_losses.iter().zip(&entropies).map(|(l, m)| l - entropy(m)).collect();
            recording.within("expected/kl", kl, 1e-4, 1e-4);
            let gradients = first_gradients(&rainbow.optimizer);
            recording.gradients("expected/gradients", &rainbow.parameters, ONLINE, gradients);
            let step = recording.number("learning_rate");
            recording.parameters("expected/parameters", &rainbow.parameters, ONLINE, step);
        }
    }
    recording.losses("expected/losses_over_updates", &losses);
    recording.unmoved(&rainbow.target_parameters, TARGET);
    recording.finish();
}

/// A learner on three numbers and two actions whose target network is another one.
fn learner(flags: &[&str]) -> Rainbow {
    let small = ["--hidden-size=6", "--n-atoms=5", "--v-min=-2", "--v-max=2", "--gamma=0.5"];
    let rainbow = Rainbow::new(&Space::uniform(3, -1.0, 1.0), 2, &args(&[&small, flags].concat())).unwrap();
    for (i, (_, var)) in rainbow.target_parameters.named_vars().into_iter().enumerate() {
        var.set(&(var.as_detached_tensor() * (1.5 + 0.1 * i as f64)).unwrap()).unwrap();
    }
    rainbow
}

/// Windows with every kind of discount.
fn batch() -> Batch {
    let tensor = |values: &[f32], columns: usize| {
        Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu).unwrap()
    };
    let states = |factor: f32| -> Vec<f32> { (0..18).map(|i| (factor * i as f32).sin() * 2.0).collect() };
    Batch {
        rows: (0..6).collect(),
        weights: tensor(&[1.0, 0.5, 0.25, 1.0, 0.75, 0.1], 1),
        observations: tensor(&states(0.7), 3),
        actions: Tensor::new(&[[0_u32], [1], [1], [0], [0], [1]], &Device::Cpu).unwrap(),
        returns: tensor(&[0.3, -0.8, 1.0, 3.0, -5.0, 0.5], 1),
        next_observations: tensor(&states(1.3), 3),
        discounts: tensor(&[0.125, 0.0, 0.5, 0.25, 0.0, 0.125], 1),
    }
}

fn zeros() -> [Vec<f32>; 2] {
    [vec![], vec![]]
}

#[test]
fn without_distributions_it_is_double_q_learning_with_weighted_squares() {
    for (double, other) in [(true, false), (false, true)] {
        let flags = ["--distributional=false", if double { "--double=true" } else { "--double=false" }];
        let mut rainbow = learner(&flags);
        let batch = batch();
        let values = |network: &Network, observations: &Tensor| {
            network.forward(observations, &[]).unwrap().squeeze(2).unwrap().to_vec2::<f32>().unwrap()
        };
        let online_next = values(&rainbow.network, &batch.next_observations);
        let target_next = values(&rainbow.target_network, &batch.next_observations);
        let online = values(&rainbow.network, &batch.observations);
        let (returns, discounts) = (floats(&batch.returns), floats(&batch.discounts));
        let best = |row: &[f32]| usize::from(row[1] > row[0]);
        let target = |double: bool, i: usize| {
            let chosen = best(if double { &online_next[i] } else { &target_next[i] });
            returns[i] + discounts[i] * target_next[i][chosen]
        };
        let y: Vec<f32> = (0..6).map(|i| target(double, i)).collect();
        assert_ne!(y, (0..6).map(|i| target(other, i)).collect::<Vec<_>>());
        assert_abs_diff_eq!(floats(&rainbow.targets(&batch, &zeros()).unwrap())[..], y[..], epsilon = 1e-5);
        let actions = batch.actions.flatten_all().unwrap().to_vec1::<u32>().unwrap();
        let q: Vec<f32> = (0..6).map(|i| online[i][actions[i] as usize]).collect();
        let squares: Vec<f32> = y.iter().zip(&q).map(|(y, q)| (y - q) * (y - q)).collect();
        let weighted =
            squares.iter().zip(floats(&batch.weights)).map(|(square, w)| w * square).sum::<f32>() / 6.0;
        let before = values_of_target(&rainbow);
        let (loss, mean, losses) = rainbow.update(&batch, &zeros()).unwrap();
        assert_abs_diff_eq!(loss, weighted, epsilon = 1e-4);
        assert_abs_diff_eq!(mean, q.iter().sum::<f32>() / 6.0, epsilon = 1e-5);
        assert_abs_diff_eq!(losses[..], squares[..], epsilon = 1e-4);
        assert_eq!(values_of_target(&rainbow), before);
    }
}

fn values_of_target(rainbow: &Rainbow) -> Vec<(String, Vec<f32>)> {
    values(&rainbow.target_parameters)
}

#[test]
fn targets_are_distributions_with_the_means_of_bellmans_equation() {
    for flag in ["--double=true", "--double=false"] {
        let (rainbow, batch) = (learner(&["--v-min=-20", "--v-max=20", "--n-atoms=9", flag]), batch());
        let forward = |network: &Network| network.forward(&batch.next_observations, &[]).unwrap();
        let (online, target) = (forward(&rainbow.network), forward(&rainbow.target_network));
        let chooser = if rainbow.args.double { &online } else { &target };
        let best = rainbow.q_values(chooser).unwrap().argmax_keepdim(1).unwrap();
        let next = floats(&rainbow.q_values(&target).unwrap().gather(&best, 1).unwrap());
        let m = rainbow.targets(&batch, &zeros()).unwrap().to_vec2::<f32>().unwrap();
        for (i, m) in m.iter().enumerate() {
            assert_abs_diff_eq!(m.iter().sum::<f32>(), 1.0, epsilon = 1e-5);
            let mean = m.iter().enumerate().map(|(i, m)| m * (5.0 * i as f32 - 20.0)).sum::<f32>();
            let expected = floats(&batch.returns)[i] + floats(&batch.discounts)[i] * next[i];
            assert_abs_diff_eq!(mean, expected, epsilon = 1e-4);
        }
    }
}

#[test]
fn parts_that_are_left_out_have_no_parameters_and_no_effect() {
    let names = |flags: &[&str]| -> Vec<String> {
        learner(flags).parameters.named_vars().into_iter().map(|(name, _)| name).collect()
    };
    let all = names(&[]);
    assert_eq!(all.len(), 18);
    let single = names(&["--dueling=false"]);
    assert_eq!(single, all.iter().filter(|name| !name.starts_with("value")).cloned().collect::<Vec<_>>());
    // Without the dueling streams an output is the stream's own, with them its mean over actions is V.
    let x = batch().observations;
    let output = |flags: &[&str]| {
        let flags = [&["--distributional=false"], flags].concat();
        learner(&flags).network.forward(&x, &[]).unwrap().to_vec3::<f32>().unwrap()
    };
    assert_ne!(output(&["--dueling=false"]), output(&[]));
    assert_eq!(output(&[])[0].len(), 2);
    // Probabilities are of n_atoms returns.
    let log_p = learner(&[]).network.forward(&x, &[]).unwrap();
    assert_eq!(log_p.dims(), [6, 2, 5]);
    for total in floats(&log_p.exp().unwrap().sum(2).unwrap()) {
        assert_abs_diff_eq!(total, 1.0, epsilon = 1e-5);
    }
    let mut rng = rng(1, 0);
    assert!(learner(&["--noisy=false"]).network.sample_noise(&mut rng).is_empty());
    assert_eq!(learner(&[]).network.sample_noise(&mut rng).len(), 6 + 6 + 6 + 10 + 6 + 6 + 6 + 5);
    assert_eq!(learner(&["--dueling=false"]).network.sample_noise(&mut rng).len(), 6 + 6 + 6 + 10);
}

#[test]
fn noise_perturbs_every_noisy_weight_and_is_standard_normal() {
    let rainbow = Rainbow::new(&Space::uniform(3, -1.0, 1.0), 2, &args(&["--hidden-size=100"])).unwrap();
    let mut rng = rng(1, 0);
    let noise = rainbow.network.sample_noise(&mut rng);
    let count = noise.len() as f32;
    let mean = noise.iter().sum::<f32>() / count;
    let variance = noise.iter().map(|x| x * x).sum::<f32>() / count;
    // Four standard errors of 903 numbers.
    assert!(mean.abs() < 0.14 && (variance - 1.0).abs() < 0.19, "{mean} {variance}");
    assert_ne!(noise, rainbow.network.sample_noise(&mut rng));

    let rainbow = learner(&[]);
    let layer = &rainbow.network.advantage[1]; // 6 → 10
    let f: Vec<f32> = (0..16).map(|i| (i as f32).cos() * 2.0).collect();
    let perturbed = layer.perturbed(&mut f.iter().copied()).unwrap();
    let sigma = 0.5 / 6.0_f32.sqrt();
    let difference = |a: &Tensor, b: &Tensor| floats(&(a - b).unwrap());
    let (weight, bias) =
        (difference(perturbed.weight(), layer.mu.weight()), difference(perturbed.bias(), layer.mu.bias()));
    for j in 0..10 {
        assert_abs_diff_eq!(bias[j], sigma * f[6 + j], epsilon = 1e-6);
        for i in 0..6 {
            assert_abs_diff_eq!(weight[6 * j + i], sigma * f[6 + j] * f[i], epsilon = 1e-6);
        }
    }
    let bound = 1.0 / 6.0_f32.sqrt();
    assert!(floats(layer.mu.weight()).iter().all(|x| x.abs() <= bound));

    // f(x) = sgn(x) √|x| is applied on the way in, and no noise is the same as zeros.
    let x = batch().observations;
    let forward = |noise: &[f32]| floats(&rainbow.network.forward(&x, noise).unwrap());
    assert_eq!(forward(&[]), forward(&[0.0; 51]));
    assert_ne!(forward(&[]), forward(&[1.0; 51]));
    assert_ne!(forward(&[1.0; 51]), forward(&[4.0; 51]));
    assert_ne!(forward(&[1.0; 51]), forward(&[-1.0; 51]));
}

#[test]
fn actions_are_greedy_in_the_perturbed_values() {
    let rainbow = learner(&["--v-min=-100", "--v-max=100"]);
    let observations: Vec<f32> = (0..900).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
    let noise: Vec<f32> = (0..51).map(|i| ((i * i) as f32).cos() * 4.0).collect();
    let greedy = rainbow.act(&observations, &[]).unwrap();
    let noisy = rainbow.act(&observations, &noise).unwrap();
    assert_ne!(noisy, greedy);
    let input = Tensor::from_slice(&observations, (300, 3), &Device::Cpu).unwrap();
    for (noise, actions) in [(&[][..], greedy), (&noise, noisy)] {
        let log_p = rainbow.network.forward(&input, noise).unwrap().to_vec3::<f32>().unwrap();
        let mean = |log_p: &[f32]| {
            log_p.iter().enumerate().map(|(i, l)| l.exp() * (50.0 * i as f32 - 100.0)).sum::<f32>()
        };
        for (row, action) in log_p.iter().zip(&actions) {
            assert!(row.iter().all(|log_p| mean(log_p) <= mean(&row[*action as usize]) + 1e-4));
        }
    }
}

#[test]
fn images_are_brought_to_numbers_from_0_to_1_and_convolved() {
    let space = |high: f32| Space::Box { shape: vec![4, 5, 2], low: vec![0.0; 40], high: vec![high; 40] };
    let args = args(&["--hidden-size=8", "--n-atoms=7"]);
    let [bytes, unit] = [255.0, 1.0].map(|high| Rainbow::new(&space(high), 3, &args).unwrap());
    let names: Vec<String> = bytes.parameters.named_vars().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"convolution.weight".to_string()), "{names:?}");
    let pixels: Vec<f32> = (0..80).map(|i| (37 * i % 256) as f32).collect();
    let pixels = Tensor::from_vec(pixels, (2, 40), &Device::Cpu).unwrap();
    let outputs = bytes.network.forward(&pixels, &[]).unwrap();
    assert_eq!(outputs.dims(), [2, 3, 7]);
    let scaled = unit.network.forward(&(&pixels / 255.0).unwrap(), &[]).unwrap();
    assert_abs_diff_eq!(floats(&outputs)[..], floats(&scaled)[..], epsilon = 1e-5);
    // The convolution sees a pixel beside those around it: in another order the image is another.
    let mirrored = unit.network.forward(&(pixels / 255.0).unwrap().flip(&[1]).unwrap(), &[]).unwrap();
    assert_ne!(floats(&scaled), floats(&mirrored));
}

#[test]
fn the_target_network_moves_a_share_of_the_way() {
    let rainbow = learner(&["--tau=0.1"]);
    let (target, online) = (values_of_target(&rainbow), values(&rainbow.parameters));
    rainbow.update_target().unwrap();
    assert_eq!(values(&rainbow.parameters), online);
    for (((_, after), (_, before)), (_, online)) in
        values_of_target(&rainbow).iter().zip(&target).zip(&online)
    {
        let expected: Vec<f32> = before.iter().zip(online).map(|(b, o)| 0.9 * b + 0.1 * o).collect();
        assert_abs_diff_eq!(after[..], expected[..], epsilon = 1e-6);
    }
    let fresh = Rainbow::new(&Space::uniform(3, -1.0, 1.0), 2, &args(&[])).unwrap();
    assert_eq!(values(&fresh.parameters), values_of_target(&fresh));
}

/// Every window of up to `n_step` steps of what happened, in the order in which they are complete.
#[test]
fn the_buffer_holds_windows_of_what_happened_and_overwrites_its_oldest() {
    const CAPACITY: usize = 7;
    for n_step in [1, 2, 3] {
        let flags = ["--hidden-size=8", "--gamma=0.5", "--buffer-size=7", &format!("--n-step={n_step}")];
        let args = args(&flags);
        let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
        let rainbow = Rainbow::new(&Space::uniform(3, -1.0, 1.0), 2, &args).unwrap();
        let mut buffer = buffer(&args);
        let mut rng = rng(1, 0);
        let mut kinds = [false; 4]; // ends by termination, truncation, both; windows cut short
        for _ in 0..40 {
            let observation = envs.observations().to_vec();
            let noise = rainbow.network.sample_noise(&mut rng);
            let action = rainbow.act(&observation, &noise).unwrap();
            envs.step(&action).unwrap();
            buffer.store(&observation, action[0], &envs, &args);
            let happened = log.transitions();
            let ended = |t: &regression::scripted::Transition| t.terminated || t.truncated;
            let mut windows = Vec::new();
            for start in 0..happened.len() {
                let window: Vec<_> = happened[start..].iter().take(n_step).collect();
                let len = window.iter().position(|t| ended(t)).map_or(window.len(), |end| end + 1);
                if len == n_step || ended(window[len - 1]) {
                    windows.push(window[..len].to_vec());
                }
            }
            let kept = windows.len().min(CAPACITY);
            assert_eq!(buffer.returns.len(), kept);
            assert_eq!(buffer.recent.len(), happened.len() - windows.len());
            for (i, window) in windows.iter().enumerate().skip(windows.len() - kept) {
                let (row, first, last) = (i % CAPACITY, window[0], window[window.len() - 1]);
                let columns = 3 * row..3 * (row + 1);
                assert_eq!(buffer.observations[columns.clone()], first.observation, "{window:?}");
                assert_eq!(buffer.actions[row] as f32, first.action[0], "{window:?}");
                let powers = window.iter().enumerate().map(|(l, t)| 0.5_f32.powi(l as i32) * t.reward);
                assert_abs_diff_eq!(buffer.returns[row], powers.sum::<f32>(), epsilon = 1e-4);
                assert_eq!(buffer.next_observations[columns], last.next_observation, "{window:?}");
                let discount = if last.terminated { 0.0 } else { 0.5_f32.powi(window.len() as i32) };
                assert_eq!(buffer.discounts[row], discount, "{window:?}");
                kinds[0] |= last.terminated && !last.truncated;
                kinds[1] |= last.truncated && !last.terminated;
                kinds[2] |= last.terminated && last.truncated;
                kinds[3] |= window.len() < n_step;
            }
        }
        assert_eq!(kinds, [true, true, true, n_step > 1]);

        // A sample is whole windows.
        let uniforms: Vec<f64> = (0..70).map(|_| rng.random()).collect();
        let batch = buffer.sample(&uniforms, 1.0, &Device::Cpu).unwrap();
        let column = |tensor: &Tensor, i: usize| floats(&tensor.get(i).unwrap());
        for (i, &row) in batch.rows.iter().enumerate() {
            // All priorities are alike: each row has a tenth of the strata.
            assert_eq!(row, i / 10);
            assert_eq!(column(&batch.weights, i), [1.0]);
            assert_eq!(column(&batch.observations, i), buffer.observations[3 * row..3 * (row + 1)]);
            assert_eq!(batch.actions.get(i).unwrap().to_vec1::<u32>().unwrap(), buffer.actions[row..row + 1]);
            assert_eq!(column(&batch.returns, i), buffer.returns[row..row + 1]);
            assert_eq!(column(&batch.next_observations, i), buffer.next_observations[3 * row..3 * (row + 1)]);
            assert_eq!(column(&batch.discounts, i), buffer.discounts[row..row + 1]);
        }
    }
}

#[test]
fn windows_are_drawn_by_priority_and_weighted_back() {
    let sample = |flags: &[&str], priorities: &[f64], beta: f64| {
        let args = args(&[&["--buffer-size=5"], flags].concat());
        let mut buffer = buffer(&args);
        let len = priorities.len();
        buffer.observations = vec![0.0; len];
        buffer.next_observations = vec![0.0; len];
        (buffer.returns, buffer.discounts, buffer.actions) = (vec![0.0; len], vec![0.0; len], vec![0; len]);
        for (row, &priority) in priorities.iter().enumerate() {
            buffer.set_priority(row, priority, &args);
        }
        assert_eq!(buffer.max_priority, priorities.iter().copied().fold(1.0, f64::max));
        // A node is the sum of its two children.
        for node in 1..8 {
            assert_abs_diff_eq!(
                buffer.sums[node],
                buffer.sums[2 * node] + buffer.sums[2 * node + 1],
                epsilon = 1e-12
            );
        }
        let uniforms: Vec<f64> = (0..160).map(|i| (i * 37 % 160) as f64 / 160.0).collect();
        let batch = buffer.sample(&uniforms, beta, &Device::Cpu).unwrap();
        let counts: Vec<usize> =
            (0..len).map(|row| batch.rows.iter().filter(|r| **r == row).count()).collect();
        let weight =
            |row: usize| batch.rows.iter().position(|r| *r == row).map(|i| floats(&batch.weights)[i]);
        (counts, (0..len).map(weight).collect::<Vec<_>>())
    };
    // √p = 1, 3, 0.001, 4, 2 of 10.
    let priorities = [1.0, 9.0, 0.0, 16.0, 4.0];
    let (counts, weights) = sample(&[], &priorities, 0.5);
    assert!(counts.iter().zip([16, 48, 0, 64, 32]).all(|(count, c)| count.abs_diff(c) <= 1), "{counts:?}");
    // (N P)^−β by the largest of the batch, that of √p = 1.
    for (weight, root) in weights.iter().zip([1.0, 3.0, 0.0, 4.0, 2.0_f32]) {
        if let Some(weight) = weight.filter(|_| root > 0.0) {
            assert_abs_diff_eq!(weight, root.powf(-0.5), epsilon = 1e-3);
        }
    }
    // Without distributions by |δ|^½ = 1, 2, 0.03, 3, 2 of 8.03.
    let (counts, _) = sample(&["--distributional=false"], &[1.0, 16.0, 0.0, 81.0, 16.0], 0.5);
    assert!(counts.iter().zip([20, 40, 1, 60, 40]).all(|(count, c)| count.abs_diff(c) <= 1), "{counts:?}");
    // All alike without priorities.
    let (counts, weights) = sample(&["--prioritized=false"], &priorities, 0.5);
    assert_eq!(counts, [32; 5]);
    assert_eq!(weights, [Some(1.0); 5]);
    // The largest number below 1 in the last stratum does not lead beyond the last window.
    let args = args(&["--buffer-size=5"]);
    let mut buffer = buffer(&args);
    (buffer.returns, buffer.discounts, buffer.actions) = (vec![0.0; 3], vec![0.0; 3], vec![0; 3]);
    (buffer.observations, buffer.next_observations) = (vec![0.0; 3], vec![0.0; 3]);
    (0..3).for_each(|row| buffer.set_priority(row, 0.1, &args));
    assert_eq!(buffer.sample(&[1.0], 1.0, &Device::Cpu).unwrap().rows, [2]);
}

/// All six parts; β and the step size move.
#[test]
fn pinned_run() {
    let flags = [
        "--total-timesteps=600",
        "--learning-starts=100",
        "--hidden-size=16",
        "--batch-size=16",
        "--n-atoms=21",
        "--train-frequency=2",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// None of the six: ε-greedy DQN on an overflowing buffer.
#[test]
fn pinned_run_without_the_parts() {
    let flags = [
        "--total-timesteps=600",
        "--learning-starts=100",
        "--hidden-size=16",
        "--batch-size=8",
        "--buffer-size=150",
        "--train-frequency=4",
        "--tau=0.1",
        "--gamma=0.9",
        "--double=false",
        "--dueling=false",
        "--prioritized=false",
        "--n-step=1",
        "--distributional=false",
        "--noisy=false",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "without", &flags, train);
}

/// Windows longer than the steps before learning starts.
#[test]
fn learning_waits_for_the_first_window() {
    let flags = [
        "--total-timesteps=60",
        "--learning-starts=1",
        "--n-step=40",
        "--hidden-size=8",
        "--batch-size=4",
        "--n-atoms=5",
        "--eval-episodes=1",
    ];
    let folder = tempfile::tempdir().unwrap();
    let run_dir = format!("--run-dir={}", folder.path().join("run").display());
    train(args(&[&flags[..], &[&run_dir]].concat())).unwrap();
}
