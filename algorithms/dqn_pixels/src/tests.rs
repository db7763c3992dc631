//! DQN's update against plain numbers, its buffer of bytes against what happened, and runs against
//! their pins. (The recorded updates of `dqn` are of vectors; the same formulas are held to them there.)

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, persist::Persist, rng};
use common::nn::backward;
use regression::scripted::{End, Log, Script, Scripted};
use regression::{SCRIPT, View, first_gradients, recorded::values, scripted};
use std::collections::BTreeSet;

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["dqn_pixels"].iter().chain(flags).map(Into::into)).unwrap()
}

const SMALL: Sizes = Sizes { convolutions: &[(3, 2, 1)], hidden: 8 };
const IMAGE: Image = Image { height: 4, width: 5, channels: 2, high: 255.0 };

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Six transitions whose errors lie on both sides of ±1 and which end in both ways.
fn batch() -> Batch {
    let column = |values: [f32; 6]| Tensor::from_slice(&values, (6, 1), &Device::Cpu).unwrap();
    let mut rng = rng(2, 0);
    let mut pixels = || -> Tensor {
        let values: Vec<f32> = (0..6 * 40).map(|_| rng.random()).collect();
        Tensor::from_vec(values, (6, 40), &Device::Cpu).unwrap()
    };
    Batch {
        observations: pixels(),
        next_observations: pixels(),
        actions: Tensor::new(&[[0_u32], [2], [1], [1], [0], [2]], &Device::Cpu).unwrap(),
        rewards: column([0.2, -2.0, 3.0, -4.0, 0.7, 2.0]),
        terminated: column([0.0, 1.0, 0.0, 0.0, 1.0, 0.0]),
    }
}

/// A learner whose target network is another one than its online network.
fn learner(flags: &[&str]) -> Dqn {
    let dqn = Dqn::new(IMAGE, &SMALL, 3, &args(flags)).unwrap();
    for (_, var) in dqn.target_parameters.named_vars() {
        let moved = (var.as_detached_tensor() * 1.5).unwrap();
        var.set(&(moved + 0.02).unwrap()).unwrap();
    }
    dqn
}

#[test]
fn targets_take_the_target_networks_largest_value_unless_terminated() {
    let (dqn, batch) = (learner(&["--gamma=0.9"]), batch());
    let next_q_values =
        dqn.target_network.forward(&batch.next_observations).unwrap().to_vec2::<f32>().unwrap();
    let (rewards, terminated) = (floats(&batch.rewards), floats(&batch.terminated));
    for (i, y) in floats(&dqn.td_targets(&batch).unwrap()).into_iter().enumerate() {
        let next_value = next_q_values[i].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let expected = if terminated[i] == 1.0 { rewards[i] } else { rewards[i] + 0.9 * next_value };
        assert_abs_diff_eq!(y, expected, epsilon = 1e-5);
    }
}

#[test]
fn an_update_follows_the_clipped_error_and_moves_the_online_network_alone() {
    let (mut dqn, batch) = (learner(&["--learning-rate=0.01"]), batch());
    let y = dqn.td_targets(&batch).unwrap();
    let q_values = dqn.q_network.forward(&batch.observations).unwrap().gather(&batch.actions, 1).unwrap();
    let errors: Vec<f32> = floats(&(&q_values - &y).unwrap());
    assert!(errors.iter().any(|e| e.abs() < 0.9) && errors.iter().any(|e| e.abs() > 1.1), "{errors:?}");
    assert!(errors.iter().any(|e| *e < -1.1) && errors.iter().any(|e| *e > 1.1), "{errors:?}");
    let huber = |e: f32| if e.abs() <= 1.0 { 0.5 * e * e } else { e.abs() - 0.5 };
    // The gradient of L is that of Σ clip(δ) Q / n, where the clipped errors are constants.
    let clipped: Vec<f32> = errors.iter().map(|e| e.clamp(-1.0, 1.0) / 6.0).collect();
    let clipped = Tensor::from_vec(clipped, (6, 1), &Device::Cpu).unwrap();
    let gradients = backward(&(&q_values * clipped).unwrap().sum_all().unwrap()).unwrap();
    let vars = dqn.parameters.all_vars();
    let expected: Vec<Vec<f32>> = vars.iter().map(|var| floats(gradients.get(var).unwrap())).collect();
    let (before, target_before) = (values(&dqn.parameters), values(&dqn.target_parameters));

    let (loss, mean) = dqn.update(&batch).unwrap();
    assert_abs_diff_eq!(loss, errors.iter().map(|e| huber(*e)).sum::<f32>() / 6.0, epsilon = 1e-5);
    assert_abs_diff_eq!(mean, floats(&q_values).iter().sum::<f32>() / 6.0, epsilon = 1e-5);
    for (found, expected) in first_gradients(&dqn.optimizer).iter().zip(&expected) {
        assert_abs_diff_eq!(found[..], expected[..], epsilon = 1e-6);
    }
    assert_eq!(values(&dqn.target_parameters), target_before);
    // Adam's first step goes against the gradient and is as long as its learning rate.
    for (((_, before), (_, after)), gradient) in before.iter().zip(values(&dqn.parameters)).zip(&expected) {
        for ((before, after), gradient) in before.iter().zip(after).zip(gradient) {
            if gradient.abs() > 1e-4 {
                assert_abs_diff_eq!(after - before, -0.01 * gradient.signum(), epsilon = 1e-5);
            }
        }
    }

    // A target that is met moves nothing, although |δ| has no gradient at 0.
    let q_values = dqn.q_network.forward(&batch.observations).unwrap().gather(&batch.actions, 1).unwrap();
    let met =
        Batch { rewards: q_values.detach(), terminated: batch.terminated.ones_like().unwrap(), ..batch };
    let mut fresh = Dqn::new(IMAGE, &SMALL, 3, &args(&[])).unwrap();
    copy_parameters(&fresh.parameters, &dqn.parameters).unwrap();
    let before = values(&fresh.parameters);
    assert_eq!(fresh.update(&met).unwrap().0, 0.0);
    assert_eq!(values(&fresh.parameters), before);
}

#[test]
fn the_target_network_moves_a_share_of_the_way() {
    let dqn = learner(&["--tau=0.1"]);
    let (target, online) = (values(&dqn.target_parameters), values(&dqn.parameters));
    dqn.update_target().unwrap();
    assert_eq!(values(&dqn.parameters), online);
    for (((_, after), (_, before)), (_, online)) in
        values(&dqn.target_parameters).iter().zip(&target).zip(&online)
    {
        let expected: Vec<f32> = before.iter().zip(online).map(|(b, o)| 0.9 * b + 0.1 * o).collect();
        assert_abs_diff_eq!(after[..], expected[..], epsilon = 1e-6);
    }
}

#[test]
fn the_networks_begin_equal_and_are_two() {
    let mut dqn = Dqn::new(IMAGE, &SMALL, 3, &args(&[])).unwrap();
    let begin = values(&dqn.parameters);
    assert_eq!(values(&dqn.target_parameters), begin);
    dqn.update(&batch()).unwrap();
    assert_eq!(values(&dqn.target_parameters), begin);
    assert_ne!(values(&dqn.parameters), begin);
}

#[test]
fn actions_are_greedy_but_for_a_share_of_epsilon() {
    let dqn = learner(&[]);
    let mut rng = rng(1, 0);
    let observations: Vec<f32> = (0..3000 * 40).map(|_| rng.random_range(0.0..=255.0)).collect();
    let greedy = dqn.act_greedily(&observations).unwrap();
    assert_eq!(dqn.act(&observations, 0.0, &mut rng).unwrap(), greedy);
    // The network sees pixels from 0 to 1.
    let pixels = observations.iter().map(|x| x / 255.0).collect();
    let pixels = Tensor::from_vec(pixels, (3000, 40), &Device::Cpu).unwrap();
    let q_values = dqn.q_network.forward(&pixels).unwrap().to_vec2::<f32>().unwrap();
    for (row, action) in q_values.iter().zip(&greedy) {
        assert!(row.iter().all(|q| *q <= row[*action as usize] + 1e-6));
    }
    let others = |epsilon, rng: &mut Rng| {
        let actions = dqn.act(&observations, epsilon, rng).unwrap();
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
    let view = View::Image([4, 5, 2]);
    let (mut envs, log) = scripted(1, view, Space::Discrete { n: 3 }, SCRIPT);
    let dqn = learner(&[]);
    let image = Image { height: 4, width: 5, channels: 2, high: 255.0 };
    let mut buffer = ReplayBuffer::new(image, 1, CAPACITY);
    let mut rng = rng(1, 0);
    let bytes = |pixels: &[f32]| pixels.iter().map(|&x| x as u8).collect::<Vec<_>>();
    let mut kinds = [false; 3]; // a termination, a truncation, both
    for _ in 0..30 {
        let observation = envs.observations().to_vec();
        let action = dqn.act(&observation, 0.5, &mut rng).unwrap();
        envs.step(&action).unwrap();
        buffer.store(&observation, action[0], &envs);
        let happened = log.transitions();
        let kept = happened.len().min(CAPACITY);
        assert_eq!(buffer.rewards.len(), kept);
        for (i, t) in happened.iter().enumerate().skip(happened.len() - kept) {
            let row = i % CAPACITY;
            assert_eq!(buffer.stack(row, 0), bytes(&t.observation), "{t:?}");
            assert_eq!(buffer.actions[row] as f32, t.action[0], "{t:?}");
            assert_eq!(buffer.rewards[row], t.reward, "{t:?}");
            assert_eq!(buffer.stack(row, 1), bytes(&t.next_observation), "{t:?}");
            assert_eq!(buffer.terminated[row] == 1.0, t.terminated, "{t:?}");
            kinds[0] |= t.terminated && !t.truncated;
            kinds[1] |= t.truncated && !t.terminated;
            kinds[2] |= t.terminated && t.truncated;
        }
    }
    assert_eq!(kinds, [true; 3]);

    // A sample is whole transitions, each row of the buffer about as often, and pixels from 0 to 1.
    let batch = buffer.sample(700, &mut rng, &Device::Cpu).unwrap();
    let mut seen = [0; CAPACITY];
    let column = |tensor: &Tensor, i: usize| floats(&tensor.get(i).unwrap());
    let scaled = |bytes: &[u8]| bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect::<Vec<_>>();
    for i in 0..700 {
        let row = buffer.rewards.iter().position(|&r| r == column(&batch.rewards, i)[0]).unwrap();
        seen[row] += 1;
        assert_eq!(column(&batch.observations, i), scaled(&buffer.stack(row, 0)));
        assert_eq!(batch.actions.get(i).unwrap().to_vec1::<u32>().unwrap(), buffer.actions[row..row + 1]);
        assert_eq!(column(&batch.next_observations, i), scaled(&buffer.stack(row, 1)));
        assert_eq!(column(&batch.terminated, i), buffer.terminated[row..row + 1]);
    }
    assert!(seen.iter().all(|count| (60..140).contains(count)), "{seen:?}");
}

/// Images of bits are held exactly, stacks and last observations of episodes included.
#[test]
fn what_an_environment_shows_comes_back_from_the_buffer() {
    let args = args(&["--env-id", "MinAtar/Asterix-v1", "--frame-stack", "3"]);
    let mut envs = make_envs(&args, 1, 1, false).unwrap();
    let (image, _) = envs.spec().image_to_discrete("dqn_pixels").unwrap();
    assert_eq!((image.high, image.channels % 3), (1.0, 0));
    let mut buffer = ReplayBuffer::new(image, 3, 1);
    let (mut rng, mut ended) = (rng(1, 0), false);
    for t in 0..200 {
        let before = envs.observations().to_vec();
        envs.step(&[t % 5]).unwrap();
        buffer.store(&before, t % 5, &envs);
        let batch = buffer.sample(1, &mut rng, &Device::Cpu).unwrap();
        assert_eq!(floats(&batch.observations), before);
        assert_eq!(floats(&batch.next_observations), envs.final_observations());
        ended |= envs.terminated()[0];
    }
    assert!(ended, "no episode ended");
}

/// Stacks across the ends of episodes, terminated and truncated, and around the end of the buffer.
#[test]
fn stacks_share_their_frames_and_never_reach_into_another_episode() {
    const CAPACITY: usize = 7;
    const LONG: Script = &[(6, End::Terminated), (5, End::Truncated), (1, End::Both), (2, End::Terminated)];
    let (view, log) = (View::Image([4, 5, 2]), Log::default());
    let env = Scripted::new(0, view, Space::Discrete { n: 3 }, LONG, log.clone());
    let mut envs = VecEnv::new(vec![Box::new(FrameStack::new(env, 3).unwrap())], 0).unwrap();
    let (image, _) = envs.spec().image_to_discrete("dqn_pixels").unwrap();
    assert_eq!(image.channels, 6);
    let mut buffer = ReplayBuffer::new(image, 3, CAPACITY);
    // The steps of an episode that a stack shows, the oldest first; the first stands in for those before.
    let steps = |newest: usize| [2, 1, 0].map(|age| newest.saturating_sub(age));
    let stack = |episode: usize, newest: usize| -> Vec<u8> {
        let frames = steps(newest).map(|step| view.observation(0, episode, step));
        let pixels = (0..20).flat_map(|p| frames.each_ref().map(|frame| &frame[2 * p..2 * p + 2]));
        pixels.flatten().map(|&x| x as u8).collect()
    };
    for t in 0..60 {
        let observation = envs.observations().to_vec();
        envs.step(&[t % 3]).unwrap();
        buffer.store(&observation, t % 3, &envs);
        if t % 20 == 9 {
            let saved = buffer.save().unwrap();
            buffer = ReplayBuffer::default();
            buffer.load(&saved).unwrap();
        }
        let happened = log.transitions();
        let kept = happened.iter().enumerate().skip(happened.len().saturating_sub(CAPACITY));
        let mut shown = BTreeSet::new();
        for (i, t) in kept {
            assert_eq!(buffer.rewards[i % CAPACITY], t.reward);
            assert_eq!(buffer.stack(i % CAPACITY, 0), stack(t.episode, t.step), "{t:?}");
            assert_eq!(buffer.stack(i % CAPACITY, 1), stack(t.episode, t.step + 1), "{t:?}");
            let both = steps(t.step).into_iter().chain(steps(t.step + 1));
            shown.extend(both.map(|step| (t.episode, step)));
        }
        // Each frame once, and none that is not needed.
        assert_eq!(buffer.frames.len(), shown.len());
    }
}

#[test]
fn epsilon_falls_in_a_straight_line_and_stays() {
    for (step, expected) in [(0, 0.9), (125, 0.7), (250, 0.5), (500, 0.1), (999, 0.1)] {
        assert_abs_diff_eq!(linear_schedule(0.9, 0.1, 500.0, step), expected, epsilon = 1e-12);
    }
}

#[test]
fn the_networks_have_the_papers_sizes() {
    for (sizes, side, channels, parameters) in [
        // 16 filters of 3 × 3 × 4, 1024 × 128, 128 × 3.
        (MINATAR, 10, 4, 16 * 36 + 16 + 1024 * 128 + 128 + 128 * 3 + 3),
        // 32 of 8 × 8 × 4, 64 of 4 × 4 × 32, 64 of 3 × 3 × 64, 3136 × 512, 512 × 3.
        (ATARI, 84, 4, 32 * 256 + 32 + 64 * 512 + 64 + 64 * 576 + 64 + 3136 * 512 + 512 + 512 * 3 + 3),
    ] {
        let map = VarMap::new(1);
        let image = Image { height: side, width: side, channels, high: 1.0 };
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        let network = QNetwork::new(image, &sizes, 3, vb).unwrap();
        assert_eq!(map.num_parameters(), parameters);
        let pixels = Tensor::full(0.5_f32, (2, side * side * channels), &Device::Cpu).unwrap();
        assert_eq!(network.forward(&pixels).unwrap().dims(), [2, 3]);
    }
}

/// ε falls, the target network is copied twice, old transitions are overwritten.
#[test]
fn pinned_run() {
    let flags = [
        "--total-timesteps=300",
        "--learning-starts=50",
        "--target-network-frequency=120",
        "--exploration-fraction=0.7",
        "--buffer-size=150",
        "--batch-size=8",
        "--eval-episodes=10",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "catch", &flags, train);
}

/// Stacked frames, rarer updates, a target network that follows slowly.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=MinAtar/Breakout-v1",
        "--total-timesteps=400",
        "--learning-starts=50",
        "--frame-stack=2",
        "--train-frequency=4",
        "--target-network-frequency=10",
        "--tau=0.1",
        "--gamma=0.9",
        "--batch-size=8",
        "--learning-rate=0.001",
        "--start-e=0.8",
        "--end-e=0.2",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "breakout", &flags, train);
}
