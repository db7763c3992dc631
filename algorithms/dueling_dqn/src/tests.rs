//! Dueling DQN's update against PyTorch's, its streams against their definition, its buffer against what
//! happened, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::recorded::values;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["dueling_dqn"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

const ONLINE: Layers = &[
    ("trunk0", &["online/trunk1"]),
    ("trunk1", &["online/trunk2"]),
    ("value", &["online/value"]),
    ("advantage", &["online/advantage"]),
];
const TARGET: Layers = &[
    ("trunk0", &["target/trunk1"]),
    ("trunk1", &["target/trunk2"]),
    ("value", &["target/value"]),
    ("advantage", &["target/advantage"]),
];

/// The recorded learner and its batch.
fn recorded(recording: &Recording, flags: &[&str]) -> (DuelingDqn, Batch) {
    let number = |name: &str| recording.number(name);
    let gamma = format!("--gamma={}", number("gamma"));
    let learning_rate = format!("--learning-rate={}", number("learning_rate"));
    let args = args(&[&["--hidden-sizes=64,64", &gamma, &learning_rate], flags].concat());
    let dqn = DuelingDqn::new(4, 2, &args).unwrap();
    recording.set(&dqn.parameters, ONLINE);
    recording.set(&dqn.target_parameters, TARGET);
    let batch = Batch {
        observations: recording.tensor("batch/observations"),
        actions: Tensor::from_vec(recording.integers("batch/actions"), (32, 1), &Device::Cpu).unwrap(),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        terminated: recording.column("batch/terminated"),
    };
    (dqn, batch)
}

fn recorded_update(name: &str, flags: &[&str]) {
    let mut recording = Recording::open(name);
    let (mut dqn, batch) = recorded(&recording, flags);
    recording.close("expected/targets", dqn.td_targets(&batch).unwrap());
    let streams = dqn.q_network.streams(&batch.observations).unwrap();
    let (values, advantages) = (flat(&streams.values), flat(&streams.advantages));
    let mean = |numbers: &[f32]| numbers.iter().sum::<f32>() / numbers.len() as f32;
    let mut td_losses = Vec::new();
    for update in 0..10 {
        let losses = dqn.update(&batch).unwrap();
        td_losses.push(losses.td_loss);
        if update == 0 {
            recording.close("expected/loss/td_loss", losses.td_loss);
            assert_abs_diff_eq!(
                losses.q_values,
                mean(&recording.floats("expected/q_values")),
                epsilon = 1e-5
            );
            assert_abs_diff_eq!(losses.state_values, mean(&values), epsilon = 1e-5);
            let sizes: Vec<f32> = advantages.iter().map(|advantage| advantage.abs()).collect();
            assert_abs_diff_eq!(losses.advantages, mean(&sizes), epsilon = 1e-5);
            let gradients = first_gradients(&dqn.optimizer);
            recording.gradients("expected/gradients", &dqn.parameters, ONLINE, gradients);
            let step = recording.number("learning_rate");
            recording.parameters("expected/parameters", &dqn.parameters, ONLINE, step);
        }
    }
    recording.unmoved(&dqn.target_parameters, TARGET);
    recording.losses("expected/losses_over_updates", &td_losses);
    recording.finish();
}

#[test]
fn recorded_update_with_clipped_errors_and_dqns_targets() {
    recorded_update("dueling_dqn__huber", &["--clip-error=true", "--double=false"]);
}

#[test]
fn recorded_update_with_squared_errors_and_dqns_targets() {
    recorded_update("dueling_dqn__mse", &["--double=false"]);
}

#[test]
fn recorded_update_with_double_dqns_targets() {
    recorded_update("dueling_dqn__double", &["--clip-error=true"]);
}

/// A constant that the advantages share says nothing of the actions: it does not reach the action values,
/// and V is their mean.
#[test]
fn the_value_is_the_mean_of_the_action_values() {
    let mut recording = Recording::open("dueling_dqn__mse");
    let (dqn, batch) = recorded(&recording, &[]);
    let q_values = dqn.q_network.forward(&batch.observations).unwrap();
    let streams = dqn.q_network.streams(&batch.observations).unwrap();
    recording.computed("V", q_values.mean(1).unwrap(), streams.values, 1e-5, 1e-5);
    let bias = dqn.q_network.advantage.bias();
    let shifted = Linear::new(dqn.q_network.advantage.weight().clone(), (bias + 10.0).unwrap());
    let shifted = QNetwork { trunk: dqn.q_network.trunk, value: dqn.q_network.value, advantage: shifted };
    recording.computed("Q", shifted.forward(&batch.observations).unwrap(), q_values, 1e-4, 1e-4);
    recording.finish();
}

/// The whole error reaches the value, whichever action was taken; of three advantages the action's own
/// gets two thirds of it and the others a third each, against it.
#[test]
fn every_action_teaches_the_value() {
    for action in 0..3 {
        let mut dqn = DuelingDqn::new(2, 3, &args(&["--hidden-sizes=8"])).unwrap();
        let observations = Tensor::new(&[[0.5_f32, -0.3]], &Device::Cpu).unwrap();
        let q_value = flat(&dqn.q_network.forward(&observations).unwrap())[action];
        let batch = Batch {
            observations: observations.clone(),
            actions: Tensor::new(&[[action as u32]], &Device::Cpu).unwrap(),
            rewards: Tensor::new(&[[10.0_f32]], &Device::Cpu).unwrap(),
            next_observations: observations,
            terminated: Tensor::new(&[[1.0_f32]], &Device::Cpu).unwrap(),
        };
        dqn.update(&batch).unwrap();
        let names: Vec<_> = values(&dqn.parameters).into_iter().map(|(name, _)| name).collect();
        let gradients = first_gradients(&dqn.optimizer);
        let gradient = |name: &str| &gradients[names.iter().position(|other| other == name).unwrap()];
        let slope = -2.0 * (10.0 - q_value); // ∂(y − Q)²/∂Q
        assert_abs_diff_eq!(gradient("value.bias")[0], slope, epsilon = 1e-4);
        for other in 0..3 {
            let share = if other == action { 2.0 / 3.0 } else { -1.0 / 3.0 };
            assert_abs_diff_eq!(gradient("advantage.bias")[other], share * slope, epsilon = 1e-4);
        }
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_target_moves_by_tau() {
    let dqn = DuelingDqn::new(2, 2, &args(&["--hidden-sizes=3", "--tau=0.25"])).unwrap();
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
    let mut dqn = DuelingDqn::new(1, 2, &args(&["--hidden-sizes=4", "--clip-error=true"])).unwrap();
    let observations = Tensor::new(&[[0.5_f32]], &Device::Cpu).unwrap();
    let actions = Tensor::new(&[[1_u32]], &Device::Cpu).unwrap();
    let rewards = dqn.q_network.forward(&observations).unwrap().gather(&actions, 1).unwrap().detach();
    let terminated = rewards.ones_like().unwrap();
    let before = values(&dqn.parameters);
    let batch = Batch {
        observations: observations.clone(),
        actions,
        rewards,
        next_observations: observations,
        terminated,
    };
    assert_eq!(dqn.update(&batch).unwrap().td_loss, 0.0);
    assert_eq!(values(&dqn.parameters), before);
}

#[test]
fn actions_are_greedy_but_for_a_share_of_epsilon() {
    let dqn = DuelingDqn::new(1, 3, &args(&["--hidden-sizes=8"])).unwrap();
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
    let dqn = DuelingDqn::new(3, 2, &args(&["--hidden-sizes=8"])).unwrap();
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

/// Every schedule moves: the share of random actions, the step size; small steps of the target.
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

/// DQN's targets, several environments, an overflowing buffer, copies of the target, clipped errors.
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
        "--double=false",
        "--end-e=0.2",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
