//! The memory against a list of all that happened, and the formulas against naive versions.

use super::*;
use candle_core::Var;

/// The arguments that these flags give.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["dqn_pixels"].iter().chain(flags).map(Into::into)).unwrap()
}

/// A transition as it happened, in bytes.
#[derive(Debug, Clone, PartialEq)]
struct Truth {
    observation: Vec<u8>, // [1, 2, stack]
    action: u32,
    reward: f32,
    next_observation: Vec<u8>,
    terminated: bool,
}

/// Images of two pixels that count the frames, so that no two are alike.
fn frame(number: usize) -> [u8; 2] {
    [(number / 256) as u8, (number % 256) as u8]
}

/// The last `stack` frames of an episode, the first one repeated before it; per pixel the oldest
/// first.
fn stacked(episode: &[usize], stack: usize) -> Vec<u8> {
    let last = episode.len() - 1;
    let frames: Vec<[u8; 2]> =
        (0..stack).map(|k| frame(episode[(last + k + 1).saturating_sub(stack)])).collect();
    (0..2).flat_map(|pixel| frames.iter().map(move |frame| frame[pixel]).collect::<Vec<_>>()).collect()
}

/// Fills a memory with episodes of 1 to 6 steps that terminate or are truncated, and returns with
/// it every transition that it still holds whole.
fn filled(capacity: usize, stack: usize, steps: usize) -> (FrameMemory, Vec<Truth>) {
    let mut rng = rng(1, 0);
    let mut memory = FrameMemory::new(capacity, stack, 1);
    let push = |memory: &mut FrameMemory, episode: &[usize]| {
        let observation: Vec<f32> = stacked(episode, stack).into_iter().map(f32::from).collect();
        memory.push(&observation, 255.0, episode.len() == 1);
    };
    let (mut slots, mut truths) = (1, Vec::new());
    let mut episode = vec![0];
    push(&mut memory, &episode);
    for _ in 0..steps {
        let over = rng.random::<f32>() < 0.3 || episode.len() > 6;
        let terminated = over && rng.random();
        let (action, reward) = (rng.random_range(0..4), rng.random());
        let observation = stacked(&episode, stack);
        memory.step(action, reward, terminated);
        episode.push(slots);
        push(&mut memory, &episode);
        let next_observation = stacked(&episode, stack);
        truths.push((slots - 1, Truth { observation, action, reward, next_observation, terminated }));
        slots += 1;
        if over {
            episode = vec![slots];
            push(&mut memory, &episode);
            slots += 1;
        }
    }
    // Of the frames that are left, the first few lack those before them.
    let oldest = if slots <= capacity { 0 } else { slots - capacity + stack - 1 };
    (memory, truths.into_iter().filter(|(slot, _)| *slot >= oldest).map(|(_, truth)| truth).collect())
}

#[test]
fn the_memory_gives_back_what_happened_and_all_of_it_equally_often() {
    for (capacity, stack, steps) in [(400, 1, 100), (400, 4, 100), (50, 1, 333), (50, 4, 333), (6, 4, 99)] {
        let (memory, truths) = filled(capacity, stack, steps);
        let draws = 200 * truths.len();
        let batch = memory.sample(draws, &mut rng(2, 0));
        let bytes = |pixels: &[f32]| -> Vec<u8> { pixels.iter().map(|x| (x * 255.0) as u8).collect() };
        let mut counts = vec![0; truths.len()];
        for i in 0..draws {
            let drawn = Truth {
                observation: bytes(&batch.observations[i * 2 * stack..][..2 * stack]),
                action: batch.actions[i],
                reward: batch.rewards[i],
                next_observation: bytes(&batch.next_observations[i * 2 * stack..][..2 * stack]),
                terminated: batch.terminated[i],
            };
            let found = truths.iter().position(|truth| *truth == drawn);
            counts[found.unwrap_or_else(|| panic!("{drawn:?} did not happen: {truths:?}"))] += 1;
        }
        // 200 expected; the standard deviation of a count is about 14.
        assert!(counts.iter().all(|count| (130..270).contains(count)), "{counts:?}");
        assert_eq!(memory.frames.len(), 2 * memory.slots.len().min(capacity));
    }
}

#[test]
fn bytes_hold_bits_and_bytes_exactly() {
    for (high, values) in [(1.0, vec![0.0, 1.0]), (255.0, (0..256).map(|x| x as f32).collect())] {
        let mut memory = FrameMemory::new(10, 1, 1);
        memory.push(&values, high, true);
        memory.push(&values, high, false);
        let batch = memory.sample(1, &mut rng(1, 0));
        let scaled: Vec<f32> = values.iter().map(|x| x / high).collect();
        assert_eq!(batch.observations, scaled);
    }
}

#[test]
fn the_newest_frame_of_an_observation_of_the_environment_is_stored() {
    let args = args(&["--env-id", "MinAtar/Asterix-v1", "--frame-stack", "3"]);
    let mut envs = make_envs(&args, 1, 1).unwrap();
    let (image, _) = envs.spec().image_to_discrete("dqn_pixels").unwrap();
    let mut memory = FrameMemory::new(1000, 3, image.channels / 3);
    memory.push(envs.observations(), image.high, true);
    for t in 0..200 {
        let before = envs.observations().to_vec();
        envs.step(&[t % 5]).unwrap();
        memory.step(t % 5, envs.rewards()[0], envs.terminated()[0]);
        memory.push(envs.final_observations(), image.high, false);
        let (mut observation, mut next_observation) = (Vec::new(), Vec::new());
        memory.observation(memory.slots.len() - 2, &mut observation);
        memory.observation(memory.slots.len() - 1, &mut next_observation);
        assert_eq!(observation, before);
        assert_eq!(next_observation, envs.final_observations());
        if envs.terminated()[0] {
            memory.push(envs.observations(), image.high, true);
        }
    }
    assert!(memory.slots.iter().any(|slot| slot.terminated), "no episode ended");
}

#[test]
fn targets_bootstrap_unless_terminated() {
    let (rewards, terminated) = (vec![0.5, 1.0, 2.0], vec![false, false, true]);
    let batch = Batch { rewards, terminated, ..Default::default() };
    let targets = td_targets(&batch, &[1.0, 3.0, -2.0, -1.0, 5.0, 4.0], 0.5);
    assert_eq!(targets, [0.5 + 0.5 * 3.0, 1.0 - 0.5 * 1.0, 2.0]);
}

#[test]
fn the_loss_is_huber_s_and_its_gradient_the_clipped_error() {
    let errors = [-3.0_f32, -1.0, -0.4, 0.0, 0.7, 1.0, 2.5];
    let targets = Tensor::new(&[0.5_f32, -1.0, 2.0, 0.0, 1.0, 3.0, -2.0], &Device::Cpu).unwrap();
    let values = (&targets + Tensor::new(&errors, &Device::Cpu).unwrap()).unwrap();
    let values = Var::from_tensor(&values).unwrap();
    let loss = td_loss(&values, &targets).unwrap();
    let huber = |e: f32| if e.abs() <= 1.0 { 0.5 * e * e } else { e.abs() - 0.5 };
    let wanted = errors.iter().map(|&e| huber(e)).sum::<f32>() / 7.0;
    assert!((loss.to_scalar::<f32>().unwrap() - wanted).abs() < 1e-6);
    let grads = loss.backward().unwrap();
    let grads: Vec<f32> = grads.get(&values).unwrap().to_vec1().unwrap();
    for (grad, error) in grads.iter().zip(errors) {
        assert!((grad - error.clamp(-1.0, 1.0) / 7.0).abs() < 1e-6, "{grad} for an error of {error}");
    }
}

#[test]
fn epsilon_falls_in_a_straight_line_and_stays() {
    for (step, wanted) in [(0, 0.9), (125, 0.7), (250, 0.5), (500, 0.1), (999, 0.1)] {
        assert!((epsilon(0.9, 0.1, 500.0, step) - wanted).abs() < 1e-12, "{step}");
    }
}

#[test]
fn the_network_follows_the_size_of_the_image() {
    for (side, channels, parameters) in [
        // MinAtar: 16 filters of 3 × 3 × 4, 1024 × 128, 128 × 3.
        (10, 4, 16 * 36 + 16 + 1024 * 128 + 128 + 128 * 3 + 3),
        // Atari: 32 of 8 × 8 × 4, 64 of 4 × 4 × 32, 64 of 3 × 3 × 64, 3136 × 512, 512 × 3.
        (84, 4, 32 * 256 + 32 + 64 * 512 + 64 + 64 * 576 + 64 + 3136 * 512 + 512 + 512 * 3 + 3),
    ] {
        let map = VarMap::new(1);
        let image = Image { height: side, width: side, channels, high: 1.0 };
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        let network = QNetwork::new(image, 3, vb).unwrap();
        assert_eq!(map.num_parameters(), parameters);
        let pixels = vec![0.5; 2 * side * side * channels];
        assert_eq!(network.forward(&pixels).unwrap().dims(), [2, 3]);
    }
}
