//! C51's update against PyTorch's, its projection against the definition, its buffer against what
//! happened, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::rng;
use proptest::strategy::Just;
use proptest::test_runner::{Config, RngSeed};
use proptest::{collection, option, prop_assert, prop_assert_eq, prop_oneof, proptest};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded::values, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["c51"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

const ONLINE: Layers =
    &[("hidden0", &["online/layer1"]), ("hidden1", &["online/layer2"]), ("output", &["online/layer3"])];
const TARGET: Layers =
    &[("hidden0", &["target/layer1"]), ("hidden1", &["target/layer2"]), ("output", &["target/layer3"])];

/// The recording gives a target to 1e-5: single precision places a moved atom to about that.
#[test]
fn recorded_update() {
    let mut recording = Recording::open("c51");
    let number = |name: &str| recording.number(name);
    let args = args(&[
        "--hidden-sizes=64,64",
        &format!("--n-atoms={}", number("n_atoms")),
        &format!("--v-min={}", number("v_min")),
        &format!("--v-max={}", number("v_max")),
        &format!("--gamma={}", number("gamma")),
        &format!("--learning-rate={}", number("learning_rate")),
        &format!("--adam-eps={}", number("adam_epsilon")),
    ]);
    let mut c51 = C51::new(&Space::uniform(4, -1.0, 1.0), 2, &args).unwrap();
    recording.set(&c51.parameters, ONLINE);
    recording.set(&c51.target_parameters, TARGET);
    let batch = Batch {
        observations: recording.tensor("batch/observations"),
        actions: Tensor::from_vec(recording.integers("batch/actions"), (32, 1), &Device::Cpu).unwrap(),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        terminated: recording.column("batch/terminated"),
    };
    recording.close("expected/support", &c51.support);
    let greedy = c51.act_greedily(&recording.floats("batch/observations")).unwrap();
    recording.equal("expected/greedy_actions", greedy);
    let logits = c51.network.forward(&batch.observations).unwrap();
    let q_values = c51.means(&log_softmax(&logits).unwrap().exp().unwrap()).unwrap();
    recording.within("expected/q_values", &q_values, 1e-4, 1e-5);
    let targets = c51.target_distributions(&batch).unwrap();
    recording.within("expected/target_distributions", &targets, 0.0, 1e-5);
    let chosen = q_values.gather(&batch.actions, 1).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    let mut losses = Vec::new();
    for update in 0..10 {
        let (loss, mean) = c51.update(&batch).unwrap();
        losses.push(loss);
        if update == 0 {
            recording.close("expected/loss/cross_entropy", loss);
            assert_abs_diff_eq!(mean, chosen, epsilon = 1e-5);
            let gradients = first_gradients(&c51.optimizer);
            recording.gradients("expected/gradients", &c51.parameters, ONLINE, gradients);
            let step = recording.number("learning_rate");
            recording.parameters("expected/parameters", &c51.parameters, ONLINE, step);
        }
    }
    recording.losses("expected/losses_over_updates", &losses);
    recording.unmoved(&c51.target_parameters, TARGET);
    recording.finish();
}

/// Φ as the header defines it, one atom of the result after the other.
fn naive_projection(p: &[f64], reward: f64, discount: f64, (v_min, v_max): (f64, f64)) -> Vec<f64> {
    let delta_z = (v_max - v_min) / (p.len() - 1) as f64;
    let z = |i: usize| v_min + i as f64 * delta_z;
    let moved = |j: usize| (reward + discount * z(j)).max(v_min).min(v_max);
    let share = |i: usize, j: usize| (1.0 - (moved(j) - z(i)).abs() / delta_z).clamp(0.0, 1.0);
    (0..p.len()).map(|i| (0..p.len()).map(|j| share(i, j) * p[j]).sum()).collect()
}

proptest! {
    #![proptest_config(Config { cases: 500, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..Config::default() })]

    #[test]
    fn the_projection_is_the_naive_one_and_keeps_the_mass(
        weights in collection::vec(0.0..1.0_f64, 2..60),
        (v_min, width) in (-50.0..50.0_f64, 0.5..100.0_f64),
        reward in -60.0..60.0_f32,
        // As terminated, undiscounted and anything between.
        discount in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0_f64],
        // A whole number of atoms' distances instead of the reward: every moved atom falls on another.
        whole in option::of(-5..5_i32),
    ) {
        let n_atoms = weights.len();
        let (v_max, total) = (v_min + width, weights.iter().sum::<f64>().max(1e-6));
        let p: Vec<f64> = weights.iter().map(|w| w / total).collect();
        let mass: f64 = p.iter().sum();
        let args = Args { n_atoms, v_min, v_max, ..args(&[]) };
        let delta_z = width / (n_atoms - 1) as f64;
        let reward = whole.map_or(reward, |k| (f64::from(k) * delta_z) as f32);
        let single: Vec<f32> = p.iter().map(|p| *p as f32).collect();
        let m: Vec<f64> = project(&single, reward, discount, &args).into_iter().map(f64::from).collect();
        let expected = naive_projection(&p, f64::from(reward), discount, (v_min, v_max));
        prop_assert_eq!(m.len(), n_atoms);
        for (m, expected) in m.iter().zip(&expected) {
            prop_assert!((m - expected).abs() < 1e-5 && *m >= 0.0, "{m} instead of {expected}");
        }
        prop_assert!((m.iter().sum::<f64>() - mass).abs() < 1e-5);
        // Where nothing is clipped, the mean is Bellman's.
        let z = |i: usize| v_min + i as f64 * delta_z;
        let moved = |i: usize| f64::from(reward) + discount * z(i);
        if (0..n_atoms).all(|i| (v_min..=v_max).contains(&moved(i))) {
            let mean: f64 = (0..n_atoms).map(|i| m[i] * z(i)).sum();
            let bellman: f64 = (0..n_atoms).map(|i| p[i] * moved(i)).sum();
            prop_assert!((mean - bellman).abs() < 1e-3, "{mean} instead of {bellman}");
        }
    }
}

#[test]
fn beyond_a_terminal_state_lies_nothing() {
    let flags = ["--hidden-sizes=8", "--n-atoms=5", "--v-min=-2", "--v-max=2", "--gamma=0.5"];
    let c51 = C51::new(&Space::uniform(1, -1.0, 1.0), 2, &args(&flags)).unwrap();
    let column = |values: [f32; 3]| Tensor::from_slice(&values, (3, 1), &Device::Cpu).unwrap();
    let batch = Batch {
        observations: column([0.0; 3]),
        actions: Tensor::zeros((3, 1), DType::U32, &Device::Cpu).unwrap(),
        rewards: column([1.25, 9.0, 0.0]),
        next_observations: column([0.1, 0.2, 0.3]),
        terminated: column([1.0, 1.0, 0.0]),
    };
    let m = c51.target_distributions(&batch).unwrap().to_vec2::<f32>().unwrap();
    assert_abs_diff_eq!(m[0][..], [0.0, 0.0, 0.0, 0.75, 0.25][..], epsilon = 1e-6);
    assert_abs_diff_eq!(m[1][..], [0.0, 0.0, 0.0, 0.0, 1.0][..], epsilon = 1e-6);
    // Halved, five atoms become three: (p_0 + ½ p_1), (½ p_1 + p_2 + ½ p_3), (½ p_3 + p_4) on the inner ones.
    assert!(m[2][0].abs() < 1e-6 && m[2][4].abs() < 1e-6 && m[2][1] > 0.1 && m[2][3] > 0.1, "{:?}", m[2]);
    assert_abs_diff_eq!(m[2].iter().sum::<f32>(), 1.0, epsilon = 1e-5);
}

#[test]
fn actions_are_greedy_but_for_a_share_of_epsilon() {
    let c51 =
        C51::new(&Space::uniform(1, -1.0, 1.0), 3, &args(&["--hidden-sizes=8", "--n-atoms=5"])).unwrap();
    let observations: Vec<f32> = (0..3000).map(|i| i as f32 / 300.0 - 5.0).collect();
    let mut rng = rng(1, 0);
    let greedy = c51.act_greedily(&observations).unwrap();
    assert_eq!(c51.act(&observations, 0.0, &mut rng).unwrap(), greedy);
    let logits = c51.network.forward(&Tensor::from_slice(&observations, (3000, 1), &Device::Cpu).unwrap());
    for (row, action) in logits.unwrap().to_vec3::<f32>().unwrap().iter().zip(&greedy) {
        let mean = |logits: &[f32]| {
            let total: f32 = logits.iter().map(|x| x.exp()).sum();
            logits
                .iter()
                .zip([-100.0, -50.0, 0.0, 50.0, 100.0])
                .map(|(x, z)| z * x.exp() / total)
                .sum::<f32>()
        };
        assert!(row.iter().all(|logits| mean(logits) <= mean(&row[*action as usize]) + 1e-4));
    }
    let others = |epsilon, rng: &mut Rng| {
        let actions = c51.act(&observations, epsilon, rng).unwrap();
        assert!(actions.iter().all(|&action| action < 3));
        actions.iter().zip(&greedy).filter(|(action, greedy)| action != greedy).count() as f64 / 3000.0
    };
    // Two in three random actions are not the greedy one; four standard errors.
    assert!((others(1.0, &mut rng) - 2.0 / 3.0).abs() < 0.035);
    assert!((others(0.3, &mut rng) - 0.2).abs() < 0.03);
}

#[test]
fn images_are_brought_to_numbers_from_0_to_1_and_convolved() {
    let space = |high: f32| Space::Box { shape: vec![4, 5, 2], low: vec![0.0; 40], high: vec![high; 40] };
    let args = args(&["--hidden-sizes=8", "--n-atoms=7"]);
    let (bytes, unit) =
        (C51::new(&space(255.0), 3, &args).unwrap(), C51::new(&space(1.0), 3, &args).unwrap());
    let names: Vec<String> = bytes.parameters.named_vars().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"convolution.weight".to_string()), "{names:?}");
    let pixels: Vec<f32> = (0..80).map(|i| (37 * i % 256) as f32).collect();
    let pixels = Tensor::from_vec(pixels, (2, 40), &Device::Cpu).unwrap();
    let logits = bytes.network.forward(&pixels).unwrap();
    assert_eq!(logits.dims(), [2, 3, 7]);
    let scaled = unit.network.forward(&(pixels / 255.0).unwrap()).unwrap();
    let floats = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_abs_diff_eq!(floats(&logits)[..], floats(&scaled)[..], epsilon = 1e-5);
}

#[test]
fn the_target_network_moves_a_share_of_the_way() {
    let mut c51 =
        C51::new(&Space::uniform(3, -1.0, 1.0), 2, &args(&["--hidden-sizes=8", "--tau=0.1"])).unwrap();
    let begin = values(&c51.parameters);
    assert_eq!(values(&c51.target_parameters), begin);
    let batch = Batch {
        observations: Tensor::ones((4, 3), DType::F32, &Device::Cpu).unwrap(),
        actions: Tensor::zeros((4, 1), DType::U32, &Device::Cpu).unwrap(),
        rewards: Tensor::ones((4, 1), DType::F32, &Device::Cpu).unwrap(),
        next_observations: Tensor::zeros((4, 3), DType::F32, &Device::Cpu).unwrap(),
        terminated: Tensor::zeros((4, 1), DType::F32, &Device::Cpu).unwrap(),
    };
    c51.update(&batch).unwrap();
    assert_eq!(values(&c51.target_parameters), begin);
    let online = values(&c51.parameters);
    assert_ne!(online, begin);
    c51.update_target().unwrap();
    for (((_, after), (_, before)), (_, online)) in
        values(&c51.target_parameters).iter().zip(&begin).zip(&online)
    {
        let expected: Vec<f32> = before.iter().zip(online).map(|(b, o)| 0.9 * b + 0.1 * o).collect();
        assert_abs_diff_eq!(after[..], expected[..], epsilon = 1e-6);
    }
}

#[test]
fn the_buffer_holds_what_happened_and_overwrites_its_oldest() {
    const CAPACITY: usize = 7;
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let space = envs.spec().observation_space.clone();
    let c51 = C51::new(&space, 2, &args(&["--hidden-sizes=8"])).unwrap();
    let mut buffer = ReplayBuffer { capacity: CAPACITY, ..Default::default() };
    let mut rng = rng(1, 0);
    let mut kinds = [false; 3]; // a termination, a truncation, both
    for _ in 0..30 {
        let observation = envs.observations().to_vec();
        let action = c51.act(&observation, 0.5, &mut rng).unwrap();
        envs.step(&action).unwrap();
        buffer.store(&observation, action[0], &envs);
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
        let row = buffer.observations.chunks(3).position(|o| o == column(&batch.observations, i)).unwrap();
        seen[row] += 1;
        assert_eq!(column(&batch.rewards, i), buffer.rewards[row..row + 1]);
        assert_eq!(batch.actions.get(i).unwrap().to_vec1::<u32>().unwrap(), buffer.actions[row..row + 1]);
        assert_eq!(column(&batch.next_observations, i), buffer.next_observations[3 * row..3 * (row + 1)]);
        assert_eq!(column(&batch.terminated, i), buffer.terminated[row..row + 1]);
    }
    assert!(seen.iter().all(|count| (60..140).contains(count)), "{seen:?}");
}

#[test]
fn epsilon_falls_in_a_straight_line_and_stays() {
    assert_eq!(linear_schedule(1.0, 0.1, 100.0, 0), 1.0);
    assert_abs_diff_eq!(linear_schedule(1.0, 0.1, 100.0, 50), 0.55, epsilon = 1e-12);
    assert_abs_diff_eq!(linear_schedule(1.0, 0.1, 100.0, 100_000), 0.1, epsilon = 1e-12);
}

/// Every schedule moves: ε, the step size, small steps of the target.
#[test]
fn pinned_run() {
    let flags = [
        "--total-timesteps=600",
        "--learning-starts=100",
        "--hidden-sizes=16",
        "--batch-size=16",
        "--exploration-fraction=0.7",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Other atoms, an overflowing buffer, copies of the target, a coarser Adam, few updates.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--total-timesteps=606",
        "--learning-starts=50",
        "--hidden-sizes=16,8",
        "--batch-size=8",
        "--buffer-size=100",
        "--train-frequency=4",
        "--target-network-frequency=25",
        "--tau=1",
        "--n-atoms=11",
        "--v-min=-5",
        "--v-max=20",
        "--adam-eps=0.01",
        "--anneal-lr=false",
        "--gamma=0.9",
        "--start-e=0.9",
        "--end-e=0.2",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}

/// Images, whose returns are small.
#[test]
fn pinned_run_on_images() {
    let flags = [
        "--env-id=Catch-v0",
        "--total-timesteps=400",
        "--learning-starts=100",
        "--hidden-sizes=16",
        "--batch-size=8",
        "--n-atoms=11",
        "--v-min=-1",
        "--v-max=1",
        "--eval-episodes=3",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "images", &flags, train);
}

#[test]
fn the_distribution_of_a_state_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("returns.png");
    let c51 = C51::new(&Space::uniform(4, -1.0, 1.0), 2, &args(&["--hidden-sizes=8"])).unwrap();
    c51.draw_returns(&[0.1, 0.2, 0.3, 0.4], &path).unwrap();
    assert!(std::fs::read(&path).unwrap().starts_with(b"\x89PNG"));
}
