//! The sum tree against a plain list, prioritised updates against PyTorch's, the buffer against what
//! happened, and runs against their pins.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::persist::Persist;
use common::envs::{Rng, Space, rng};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use regression::recorded::values;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["prioritized_dqn"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

const ONLINE: Layers =
    &[("hidden0", &["online/layer1"]), ("hidden1", &["online/layer2"]), ("output", &["online/layer3"])];
const TARGET: Layers =
    &[("hidden0", &["target/layer1"]), ("hidden1", &["target/layer2"]), ("output", &["target/layer3"])];

/// The recorded transitions go into the file's own buffer, which draws from them.
fn recorded_update(name: &str, clip_error: bool) {
    let mut recording = Recording::open(name);
    let number = |name: &str| recording.number(name);
    let (gamma, learning_rate) = (number("gamma"), number("learning_rate"));
    let (alpha, beta) = (number("priority_exponent"), number("importance_exponent"));
    let eps = number("priority_offset");
    let args = args(&[
        "--hidden-sizes=64,64",
        &format!("--gamma={gamma}"),
        &format!("--learning-rate={learning_rate}"),
        &format!("--clip-error={clip_error}"),
        "--adam-eps=1e-8", // PyTorch's
    ]);
    let mut buffer = ReplayBuffer::new(64, alpha, eps);
    buffer.observations = recording.floats("batch/observations");
    buffer.actions = recording.integers("batch/actions");
    buffer.rewards = recording.floats("batch/rewards");
    buffer.next_observations = recording.floats("batch/next_observations");
    buffer.terminated = recording.floats("batch/terminated");
    // A priority is an error and ε.
    let errors: Vec<f32> = recording.floats("batch/priorities").iter().map(|p| p - eps as f32).collect();
    buffer.update_priorities(&Vec::from_iter(0..64), &errors);
    recording.close("expected/sum_tree", buffer.priorities.sums.as_slice());

    let total = buffer.priorities.sums[0];
    let probabilities: Vec<f64> = (0..64).map(|row| priority(&buffer, row) / total).collect();
    recording.close("expected/probabilities", probabilities);

    let uniforms: Vec<f64> = recording.floats("noise/uniform_strata").iter().map(|&u| u.into()).collect();
    let batch = buffer.sample(&uniforms, beta, &Device::Cpu).unwrap();
    let rows: Vec<f64> = batch.rows.iter().map(|&row| row as f64).collect();
    recording.equal("expected/indices", rows);
    recording.close("expected/weights", &batch.weights);

    let mut dqn = PrioritizedDqn::new(4, 2, &args).unwrap();
    recording.set(&dqn.parameters, ONLINE);
    recording.set(&dqn.target_parameters, TARGET);
    recording.close("expected/targets", dqn.td_targets(&batch).unwrap());
    let mut losses = Vec::new();
    for update in 0..10 {
        let (loss, mean, td_errors) = dqn.update(&batch).unwrap();
        losses.push(loss);
        if update == 0 {
            recording.close("expected/loss/td_loss", loss);
            let q_values = recording.floats("expected/q_values");
            assert_abs_diff_eq!(mean, q_values.iter().sum::<f32>() / 32.0, epsilon = 1e-5);
            // The difference of two numbers of up to ten, each rounded.
            recording.within("expected/td_errors", td_errors.as_slice(), 1e-4, 5e-6);
            let gradients = first_gradients(&dqn.optimizer);
            recording.gradients("expected/gradients", &dqn.parameters, ONLINE, gradients);
            recording.parameters("expected/parameters", &dqn.parameters, ONLINE, learning_rate);
            buffer.update_priorities(&batch.rows, &td_errors);
            let priorities: Vec<f64> = (0..64).map(|row| priority(&buffer, row).powf(1.0 / alpha)).collect();
            recording.within("expected/priorities_after", priorities, 1e-4, 5e-6);
            // Of a row that was drawn twice both errors are the same.
            let drawn: Vec<f64> =
                batch.rows.iter().map(|&row| priority(&buffer, row).powf(1.0 / alpha)).collect();
            recording.within("expected/new_priorities", drawn, 1e-4, 5e-6);
        }
    }
    recording.unmoved(&dqn.target_parameters, TARGET);
    recording.losses("expected/losses_over_updates", &losses);
    recording.finish();
}

#[test]
fn recorded_update_with_clipped_errors() {
    recorded_update("prioritized_dqn__huber", true);
}

#[test]
fn recorded_update_with_squared_errors() {
    recorded_update("prioritized_dqn__mse", false);
}

/// p^α of a row.
fn priority(buffer: &ReplayBuffer, row: usize) -> f64 {
    let sums = &buffer.priorities.sums;
    sums[sums.len() / 2 + row]
}

/// What proptest chooses is the same on every run.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 256,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..Default::default()
    }
}

/// The i into whose part of the line `mass` falls, as the definition has it.
fn naive_find(numbers: &[f64], mass: f64) -> usize {
    let mut sum = 0.0;
    for (i, number) in numbers.iter().enumerate() {
        sum += number;
        if mass < sum {
            return i;
        }
    }
    panic!("{mass} is not less than {sum}")
}

proptest! {
    #![proptest_config(config())]

    /// Whole numbers have exact sums, so every boundary between two leaves is met exactly.
    #[test]
    fn the_tree_is_a_list(
        len in 1_usize..70,
        writes in prop::collection::vec((any::<prop::sample::Index>(), 0_u32..5), 1..200),
    ) {
        let (mut tree, mut numbers) = (SumTree::new(len), vec![0.0; len]);
        for (i, number) in writes {
            let i = i.index(len);
            tree.set(i, f64::from(number));
            numbers[i] = f64::from(number);
            let total: f64 = numbers.iter().sum();
            prop_assert_eq!(tree.sums[0], total);
        }
        // Halves lie within a leaf, whole numbers on the boundaries.
        for mass in (0..2 * tree.sums[0] as usize).map(|twice| twice as f64 / 2.0) {
            let expected = naive_find(&numbers, mass);
            prop_assert_eq!(tree.find(mass), (expected, numbers[expected]));
        }
    }

    /// Whatever the numbers and however sums are rounded: every node is the sum of its children, and no
    /// mass, the largest below the total and the total itself included, finds a leaf of nothing.
    #[test]
    fn rounding_finds_no_empty_leaf(
        len in 1_usize..70,
        writes in prop::collection::vec((any::<prop::sample::Index>(), -12.0_f64..12.0), 1..100),
        uniforms in prop::collection::vec(0.0_f64..1.0, 20),
    ) {
        let (mut tree, mut numbers) = (SumTree::new(len), vec![0.0; len]);
        for (i, exponent) in writes {
            let i = i.index(len);
            numbers[i] = 10_f64.powf(exponent);
            tree.set(i, numbers[i]);
        }
        for node in 0..tree.sums.len() / 2 {
            prop_assert_eq!(tree.sums[node], tree.sums[2 * node + 1] + tree.sums[2 * node + 2]);
        }
        let total = tree.sums[0];
        for mass in uniforms.iter().map(|u| u * total).chain([0.0, total.next_down(), total]) {
            let (i, number) = tree.find(mass);
            prop_assert!(i < len && number > 0.0 && number == numbers[i]);
            // The part of the line that is i's, but for the rounding of the sums before it.
            let before: f64 = numbers[..i].iter().sum();
            let tolerance = 1e-12 * total;
            prop_assert!(before - tolerance <= mass && mass <= before + number + tolerance);
        }
    }
}

/// A filled buffer of transitions without content, with these p and α.
fn buffer_of(priorities: &[f32], alpha: f64) -> ReplayBuffer {
    let len = priorities.len();
    let mut buffer = ReplayBuffer::new(len + 3, alpha, 1e-9);
    buffer.observations = (0..len).map(|row| row as f32).collect();
    buffer.actions = vec![0; len];
    buffer.rewards = vec![0.0; len];
    buffer.next_observations = vec![0.0; len];
    buffer.terminated = vec![0.0; len];
    buffer.update_priorities(&Vec::from_iter(0..len), priorities);
    buffer
}

#[test]
fn rows_are_drawn_in_proportion_to_the_power_of_their_priority() {
    let buffer = buffer_of(&[1.0, 16.0, 4.0, 0.0], 0.5);
    let mut rng = rng(1, 0);
    let uniforms: Vec<f64> = (0..7000).map(|_| rng.random()).collect();
    let batch = buffer.sample(&uniforms, 0.5, &Device::Cpu).unwrap();
    let count = |row: usize| batch.rows.iter().filter(|&&other| other == row).count();
    // 1, 4 and 2 of 7. Each stratum gives one row, so only the two on boundaries are left to chance.
    for (row, expected) in [(0, 1000_usize), (1, 4000), (2, 2000)] {
        assert!(count(row).abs_diff(expected) <= 1, "row {row}: {}", count(row));
    }
    assert_eq!(count(3), 0);
    // Row k of the batch is from the k-th part of the range.
    assert!(batch.rows.is_sorted());
    // An error of 0 leaves ε, which is drawn some day.
    assert_abs_diff_eq!(priority(&buffer, 3), 1e-9_f64.sqrt(), epsilon = 1e-12);
}

/// With β = 1 the weights undo the priorities: Σ_i P(i) w_i f(i) is proportional to the plain mean of f.
#[test]
fn weights_undo_the_priorities() {
    let buffer = buffer_of(&[1.0, 16.0, 4.0, 9.0], 0.5);
    let uniforms = [0.5; 1000];
    let total = buffer.priorities.sums[0];
    for beta in [1.0, 0.4, 0.0] {
        let batch = buffer.sample(&uniforms, beta, &Device::Cpu).unwrap();
        let weights = flat(&batch.weights);
        assert_eq!(weights.iter().copied().fold(0.0, f32::max), 1.0);
        for (&row, &weight) in batch.rows.iter().zip(&weights) {
            let probability = priority(&buffer, row) / total;
            let least = 1.0 / total; // that of row 0, whose weight is the largest
            assert_relative_eq!(f64::from(weight), (least / probability).powf(beta), epsilon = 1e-6);
        }
    }
}

#[test]
fn without_alpha_all_rows_are_alike() {
    let buffer = buffer_of(&[1.0, 16.0, 4.0, 0.0], 0.0);
    let batch = buffer.sample(&[0.0, 0.0, 0.0, 0.0], 0.7, &Device::Cpu).unwrap();
    assert_eq!(batch.rows, [0, 1, 2, 3]);
    assert_eq!(flat(&batch.weights), [1.0; 4]);
}

/// Weights multiply the loss of their own row: a row of weight 0 teaches nothing.
#[test]
fn a_row_without_weight_teaches_nothing() {
    let flags = ["--hidden-sizes=4"];
    let column = |numbers: [f32; 2]| Tensor::from_slice(&numbers, (2, 1), &Device::Cpu).unwrap();
    let batch = |reward: f32, weights: [f32; 2]| Batch {
        rows: vec![0, 1],
        observations: column([0.5, -0.5]),
        actions: Tensor::new(&[[1_u32], [0]], &Device::Cpu).unwrap(),
        rewards: column([3.0, reward]),
        next_observations: column([0.0, 0.0]),
        terminated: column([1.0, 1.0]),
        weights: column(weights),
    };
    let after = |batch: Batch| {
        let mut dqn = PrioritizedDqn::new(1, 2, &args(&flags)).unwrap();
        dqn.update(&batch).unwrap();
        values(&dqn.parameters)
    };
    assert_eq!(after(batch(5.0, [1.0, 0.0])), after(batch(-5.0, [1.0, 0.0])));
    assert_ne!(after(batch(5.0, [1.0, 0.5])), after(batch(-5.0, [1.0, 0.5])));
}

#[test]
fn a_new_transition_has_the_greatest_priority_so_far() {
    let (mut envs, _) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let mut buffer = ReplayBuffer::new(3, 0.5, 0.0);
    let mut store = |buffer: &mut ReplayBuffer| {
        let observations = envs.observations().to_vec();
        envs.step(&[0_u32]).unwrap();
        buffer.store(&observations, &[0], &envs);
    };
    let powers = |buffer: &ReplayBuffer| [0, 1, 2].map(|row| priority(buffer, row));
    store(&mut buffer);
    assert_eq!(powers(&buffer), [1.0, 0.0, 0.0]);
    buffer.update_priorities(&[0], &[-9.0]); // the size of an error counts, not its sign
    store(&mut buffer);
    assert_eq!(powers(&buffer), [3.0, 3.0, 0.0]);
    buffer.update_priorities(&[0, 1], &[4.0, 0.25]);
    store(&mut buffer);
    assert_eq!(powers(&buffer), [2.0, 0.5, 3.0]);
    // What overwrites a row has nothing of its priority.
    store(&mut buffer);
    assert_eq!(powers(&buffer), [3.0, 0.5, 3.0]);
    assert_eq!(buffer.priorities.sums[0], 6.5);
}

/// Priorities, their sums and the greatest one come out of a checkpoint as they went in, and draw alike.
#[test]
fn priorities_survive_a_checkpoint() {
    let buffer = buffer_of(&[0.3, 7.1, 0.02, 2.0, 1.5], 0.6);
    let mut restored = ReplayBuffer::new(1, 0.1, 0.1);
    restored.load(&buffer.save().unwrap()).unwrap();
    assert_eq!(restored.priorities.sums, buffer.priorities.sums);
    assert_eq!(restored.max_priority, f64::from(7.1_f32) + 1e-9);
    let draw = |buffer: &ReplayBuffer| buffer.sample(&[0.1, 0.6, 0.9], 0.4, &Device::Cpu).unwrap();
    assert_eq!(draw(&restored).rows, draw(&buffer).rows);
    assert_eq!(flat(&draw(&restored).weights), flat(&draw(&buffer).weights));
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_target_moves_by_tau() {
    let dqn = PrioritizedDqn::new(2, 2, &args(&["--hidden-sizes=3", "--tau=0.25"])).unwrap();
    let online = VarMap::new(7);
    let vb = VarBuilder::from_varmap(&online, DType::F32, &Device::Cpu);
    QNetwork::new(2, &[3], 2, vb).unwrap();
    copy_parameters(&dqn.parameters, &online).unwrap();
    let (before, towards) = (values(&dqn.target_parameters), values(&dqn.parameters));
    assert_ne!(before, towards);
    dqn.update_target().unwrap();
    assert_eq!(values(&dqn.parameters), towards);
    for (((_, after), (_, before)), (_, towards)) in
        values(&dqn.target_parameters).iter().zip(&before).zip(&towards)
    {
        for ((after, before), towards) in after.iter().zip(before).zip(towards) {
            assert_abs_diff_eq!(*after, 0.75 * before + 0.25 * towards, epsilon = 1e-6);
        }
    }
}

/// An error of 0 has no gradient: candle's of |δ| is not 0 there.
#[test]
fn a_target_that_is_met_moves_nothing() {
    let mut dqn = PrioritizedDqn::new(1, 2, &args(&["--hidden-sizes=4", "--clip-error=true"])).unwrap();
    let observations = Tensor::new(&[[0.5_f32]], &Device::Cpu).unwrap();
    let actions = Tensor::new(&[[1_u32]], &Device::Cpu).unwrap();
    let rewards = dqn.q_network.forward(&observations).unwrap().gather(&actions, 1).unwrap().detach();
    let terminated = rewards.ones_like().unwrap();
    let before = values(&dqn.parameters);
    let batch = Batch {
        rows: vec![0],
        observations: observations.clone(),
        actions,
        rewards,
        next_observations: observations,
        weights: terminated.clone(),
        terminated,
    };
    assert_eq!(dqn.update(&batch).unwrap().0, 0.0);
    assert_eq!(values(&dqn.parameters), before);
}

#[test]
fn actions_are_greedy_but_for_a_share_of_epsilon() {
    let dqn = PrioritizedDqn::new(1, 3, &args(&["--hidden-sizes=8"])).unwrap();
    let observations: Vec<f32> = (0..3000).map(|i| i as f32 / 300.0 - 5.0).collect();
    let mut rng = rng(1, 0);
    let greedy = dqn.act_greedily(&observations, 3000).unwrap();
    assert_eq!(dqn.act(&observations, 3000, 0.0, &mut rng).unwrap(), greedy);
    let q_values =
        dqn.q_network.forward(&Tensor::from_slice(&observations, (3000, 1), &Device::Cpu).unwrap());
    for (row, action) in q_values.unwrap().to_vec2::<f32>().unwrap().iter().zip(&greedy) {
        assert!(row.iter().all(|q| *q <= row[*action as usize]));
    }
    let others = |epsilon, rng: &mut Rng| {
        let actions = dqn.act(&observations, 3000, epsilon, rng).unwrap();
        assert!(actions.iter().all(|&action| action < 3));
        actions.iter().zip(&greedy).filter(|(action, greedy)| action != greedy).count() as f64 / 3000.0
    };
    // Two in three random actions are not the greedy one; four standard errors.
    assert!((others(1.0, &mut rng) - 2.0 / 3.0).abs() < 0.035);
    assert!((others(0.3, &mut rng) - 0.2).abs() < 0.03);
}

#[test]
fn the_buffer_holds_what_happened_and_overwrites_its_oldest() {
    const CAPACITY: usize = 7;
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let dqn = PrioritizedDqn::new(3, 2, &args(&["--hidden-sizes=8"])).unwrap();
    let mut buffer = ReplayBuffer::new(CAPACITY, 0.6, 1e-6);
    let mut rng = rng(1, 0);
    let mut kinds = [false; 3]; // a termination, a truncation, both
    for _ in 0..20 {
        let observations = envs.observations().to_vec();
        let actions = dqn.act(&observations, 3, 0.5, &mut rng).unwrap();
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

    // A sample is whole transitions. All priorities are still the same: each row is drawn as often.
    let batch = buffer.sample(&[0.5; 700], 0.4, &Device::Cpu).unwrap();
    let mut seen = [0; CAPACITY];
    let column =
        |tensor: &Tensor, i: usize| tensor.get(i).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for i in 0..700 {
        let row = buffer.rewards.iter().position(|&r| r == column(&batch.rewards, i)[0]).unwrap();
        assert_eq!(batch.rows[i], row);
        seen[row] += 1;
        assert_eq!(column(&batch.observations, i), buffer.observations[3 * row..3 * (row + 1)]);
        assert_eq!(batch.actions.get(i).unwrap().to_vec1::<u32>().unwrap(), buffer.actions[row..row + 1]);
        assert_eq!(column(&batch.next_observations, i), buffer.next_observations[3 * row..3 * (row + 1)]);
        assert_eq!(column(&batch.terminated, i), buffer.terminated[row..row + 1]);
    }
    assert_eq!(seen, [100; CAPACITY]);
}

#[test]
fn a_schedule_runs_in_a_straight_line_and_stays() {
    assert_eq!(linear_schedule(1.0, 0.1, 100.0, 0), 1.0);
    assert_abs_diff_eq!(linear_schedule(1.0, 0.1, 100.0, 50), 0.55, epsilon = 1e-12);
    assert_abs_diff_eq!(linear_schedule(1.0, 0.1, 100.0, 100_000), 0.1, epsilon = 1e-12);
}

/// Every schedule moves: the share of random actions, the step size, β; small steps of the target.
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

/// Several environments, an overflowing buffer, copies of the target, clipped errors.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--total-timesteps=606",
        "--num-envs=3",
        "--learning-starts=50",
        "--hidden-sizes=16,8",
        "--batch-size=8",
        "--buffer-size=100",
        "--train-frequency=3",
        "--target-network-frequency=25",
        "--tau=1",
        "--clip-error=true",
        "--anneal-lr=false",
        "--gamma=0.9",
        "--prioritized-replay-alpha=0.9",
        "--prioritized-replay-beta=0.1",
        "--prioritized-replay-eps=0.5",
        "--end-e=0.2",
        "--adam-eps=1e-3",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
