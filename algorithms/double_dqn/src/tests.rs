//! Double DQN's update against PyTorch's, its buffer and its diagnostics against what happened, and
//! runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::recorded::values;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["double_dqn"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

const ONLINE: Layers =
    &[("hidden0", &["online/layer1"]), ("hidden1", &["online/layer2"]), ("output", &["online/layer3"])];
const TARGET: Layers =
    &[("hidden0", &["target/layer1"]), ("hidden1", &["target/layer2"]), ("output", &["target/layer3"])];

/// The recorded learner and its batch.
fn recorded(recording: &Recording, clip_error: bool) -> (DoubleDqn, Batch) {
    let number = |name: &str| recording.number(name);
    let args = args(&[
        "--hidden-sizes=64,64",
        &format!("--gamma={}", number("gamma")),
        &format!("--learning-rate={}", number("learning_rate")),
        &format!("--clip-error={clip_error}"),
        "--adam-eps=1e-8", // PyTorch's
    ]);
    let dqn = DoubleDqn::new(4, 2, &args).unwrap();
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

fn recorded_update(name: &str, clip_error: bool) {
    let mut recording = Recording::open(name);
    let (mut dqn, batch) = recorded(&recording, clip_error);
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
        }
    }
    recording.unmoved(&dqn.target_parameters, TARGET);
    recording.losses("expected/losses_over_updates", &losses);
    recording.finish();
}

#[test]
fn recorded_update_with_clipped_errors() {
    recorded_update("double_dqn__huber", true);
}

#[test]
fn recorded_update_with_squared_errors() {
    recorded_update("double_dqn__mse", false);
}

/// The online network's choice is worth at most what the target network would choose, DQN's target, and
/// less where they disagree: values that are wrong by chance are not all picked from above.
#[test]
fn targets_are_at_most_those_of_dqn() {
    let mut recording = Recording::open("double_dqn__mse");
    let (mut dqn, batch) = recorded(&recording, false);
    let next_values = dqn.target_network.forward(&batch.next_observations).unwrap().max_keepdim(D::Minus1);
    let next_values = flat(&next_values.unwrap());
    let (rewards, terminated) = (flat(&batch.rewards), flat(&batch.terminated));
    let of_dqn = |i: usize| rewards[i] + 0.99 * (1.0 - terminated[i]) * next_values[i];
    let targets = flat(&dqn.td_targets(&batch).unwrap());
    let lower = (0..32).filter(|&i| targets[i] < of_dqn(i) - 1e-3).count();
    assert!((0..32).all(|i| targets[i] <= of_dqn(i) + 1e-5));
    assert!(lower >= 3, "the recorded networks disagree in {lower} rows only");
    dqn.args.double = false;
    let targets = flat(&dqn.td_targets(&batch).unwrap());
    assert!((0..32).all(|i| (targets[i] - of_dqn(i)).abs() <= 1e-5));
    dqn.args.double = true;

    // Where the two networks are one, the choice is the maximum.
    copy_parameters(&dqn.target_parameters, &dqn.parameters).unwrap();
    let next_values = dqn.q_network.forward(&batch.next_observations).unwrap().max_keepdim(D::Minus1);
    let next_values = flat(&next_values.unwrap());
    let expected: Vec<f32> =
        (0..32).map(|i| rewards[i] + 0.99 * (1.0 - terminated[i]) * next_values[i]).collect();
    recording.computed("targets", dqn.td_targets(&batch).unwrap(), expected, 1e-5, 1e-5);
    recording.finish();
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_target_moves_by_tau() {
    let dqn = DoubleDqn::new(2, 2, &args(&["--hidden-sizes=3", "--tau=0.25"])).unwrap();
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
    let mut dqn = DoubleDqn::new(1, 2, &args(&["--hidden-sizes=4", "--clip-error=true"])).unwrap();
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
    assert_eq!(dqn.update(&batch).unwrap().0, 0.0);
    assert_eq!(values(&dqn.parameters), before);
}

#[test]
fn actions_are_greedy_but_for_a_share_of_epsilon() {
    let dqn = DoubleDqn::new(1, 3, &args(&["--hidden-sizes=8"])).unwrap();
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
    let dqn = DoubleDqn::new(3, 2, &args(&["--hidden-sizes=8"])).unwrap();
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

/// s_0 and Σ_t γ^t r_t of each episode, whichever way it ends, in each environment by itself.
#[test]
fn an_episode_is_held_against_its_start() {
    const GAMMA: f64 = 0.5;
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let mut running_episodes = RunningEpisodes::new(&envs);
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        envs.step(&[0_u32; 3]).unwrap();
        found.extend(running_episodes.add_step(&envs, GAMMA));
        for env in 0..3 {
            let happened = log.of(env);
            let last = happened.last().unwrap();
            if last.terminated || last.truncated {
                let episode = happened.iter().filter(|t| t.episode == last.episode);
                let discounted =
                    episode.map(|t| GAMMA.powi(t.step as i32) * f64::from(t.reward)).sum::<f64>();
                expected.push((View::Vector.observation(env, last.episode, 0), discounted));
            }
        }
    }
    assert!(expected.len() > 15);
    assert_eq!(found, expected);
}

#[test]
fn the_value_of_a_state_is_that_of_its_best_action() {
    let dqn = DoubleDqn::new(2, 3, &args(&["--hidden-sizes=8"])).unwrap();
    let observation = [0.3, -0.7];
    let q_values = flat(&dqn.q_network.forward(&Tensor::new(&[observation], &Device::Cpu).unwrap()).unwrap());
    let best = q_values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(dqn.greedy_value(&observation).unwrap(), best);
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
        "--adam-eps=1e-2",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
