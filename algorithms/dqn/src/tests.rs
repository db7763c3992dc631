//! DQN's update against PyTorch's, its buffer against what happened, and a run against its pin.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["dqn"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

const ONLINE: Layers =
    &[("hidden0", &["online/layer1"]), ("hidden1", &["online/layer2"]), ("output", &["online/layer3"])];
const TARGET: Layers =
    &[("hidden0", &["target/layer1"]), ("hidden1", &["target/layer2"]), ("output", &["target/layer3"])];

fn recorded_update(name: &str, clip_error: bool) {
    let mut recording = Recording::open(name);
    let number = |name: &str| recording.number(name);
    let args = args(&[
        "--hidden-sizes=120,84",
        &format!("--gamma={}", number("gamma")),
        &format!("--tau={}", number("tau")),
        &format!("--learning-rate={}", number("learning_rate")),
        &format!("--clip-error={clip_error}"),
    ]);
    let mut dqn = Dqn::new(4, 2, &args).unwrap();
    recording.set(&dqn.parameters, ONLINE);
    recording.set(&dqn.target_parameters, TARGET);
    let batch = Batch {
        observations: recording.tensor("batch/observations"),
        actions: Tensor::from_vec(recording.integers("batch/actions"), (32, 1), &Device::Cpu).unwrap(),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        terminated: recording.column("batch/terminated"),
    };
    recording.close("expected/targets", dqn.td_targets(&batch).unwrap());
    let mut losses = Vec::new();
    for update in 0..10 {
        let (loss, mean) = dqn.update(&batch).unwrap();
        losses.push(loss);
        if update == 0 {
            recording.close("expected/loss/td_loss", loss);
            let q_values = recording.floats("expected/q_values");
            assert_abs_diff_eq!(mean, q_values.iter().sum::<f32>() / 32.0, epsilon = 1e-5);
            let gradients = first_gradients(&dqn.optimizer);
            recording.gradients("expected/gradients", &dqn.parameters, ONLINE, gradients);
            let step = recording.number("learning_rate");
            recording.parameters("expected/parameters", &dqn.parameters, ONLINE, step);
            recording.unmoved(&dqn.target_parameters, TARGET);
        }
        dqn.update_target().unwrap();
        if update == 0 {
            recording.parameters_close("expected/parameters", &dqn.target_parameters, TARGET, 1e-5);
        }
    }
    recording.losses("expected/losses_over_updates", &losses);
    recording.finish();
}

#[test]
fn recorded_update_with_clipped_errors() {
    recorded_update("dqn__huber", true);
}

#[test]
fn recorded_update_with_squared_errors() {
    recorded_update("dqn__mse", false);
}

/// An error of 0 has no gradient: candle's of |δ| is not 0 there.
#[test]
fn a_target_that_is_met_moves_nothing() {
    let mut dqn = Dqn::new(1, 2, &args(&["--hidden-sizes=4", "--clip-error=true"])).unwrap();
    let observations = Tensor::new(&[[0.5_f32]], &Device::Cpu).unwrap();
    let actions = Tensor::new(&[[1_u32]], &Device::Cpu).unwrap();
    let rewards = dqn.q_network.forward(&observations).unwrap().gather(&actions, 1).unwrap().detach();
    let terminated = rewards.ones_like().unwrap();
    let before = regression::recorded::values(&dqn.parameters);
    let batch = Batch {
        observations: observations.clone(),
        actions,
        rewards,
        next_observations: observations,
        terminated,
    };
    assert_eq!(dqn.update(&batch).unwrap().0, 0.0);
    assert_eq!(regression::recorded::values(&dqn.parameters), before);
}

#[test]
fn actions_are_greedy_but_for_a_share_of_epsilon() {
    let dqn = Dqn::new(1, 3, &args(&["--hidden-sizes=8"])).unwrap();
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
    let dqn = Dqn::new(3, 2, &args(&["--hidden-sizes=8"])).unwrap();
    let mut buffer = ReplayBuffer { capacity: CAPACITY, ..Default::default() };
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
        "--train-frequency=4",
        "--target-network-frequency=25",
        "--tau=1",
        "--clip-error=true",
        "--anneal-lr=false",
        "--gamma=0.9",
        "--end-e=0.2",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
