//! Real Atari games through the bridge to Python's Gymnasium. Skipped, with a line that says so, where
//! the packages that they need are not installed.

#![cfg(unix)]

use envs::{VecEnv, python};
use std::io::Write;
use std::process::Command;

/// Whether games can be played.
fn installed() -> bool {
    let python = python::interpreter();
    let import = ["-c", "import gymnasium, ale_py, cv2"];
    let found = Command::new(&python).args(import).output().is_ok_and(|output| output.status.success());
    if !found {
        // Past the test harness, which shows what is printed by tests that fail only.
        let line = format!("SKIPPED: {} lacks gymnasium, ale_py or cv2\n", python.display());
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    found
}

/// Frame `index`, 0 the oldest, of an observation `[84, 84, 4]`.
fn frame(observation: &[f32], index: usize) -> Vec<f32> {
    observation.chunks_exact(4).map(|pixel| pixel[index]).collect()
}

#[test]
fn pong_is_seen_as_four_frames_and_goes_on_from_a_checkpoint() {
    if !installed() {
        return;
    }
    let mut envs = VecEnv::make("gym:ALE/Pong-v5", 1, 3).unwrap();
    let (image, num_actions) = envs.spec().image_to_discrete("test").unwrap();
    assert_eq!((image.height, image.width, image.channels, image.high, num_actions), (84, 84, 4, 255.0, 6));
    let mut moved = 0;
    let mut snapshot = None;
    let play = |envs: &mut VecEnv, t: u32| {
        envs.step(&[t * t % 6]).unwrap();
        (envs.final_observations().to_vec(), envs.rewards()[0])
    };
    let mut after = Vec::new();
    for t in 0..300 {
        if t == 200 {
            snapshot = Some(envs.snapshot().unwrap());
        }
        let before = envs.observations().to_vec();
        let (seen, reward) = play(&mut envs, t);
        for i in 0..3 {
            assert!(frame(&seen, i) == frame(&before, i + 1), "frame {i} after step {t}");
        }
        moved += u32::from(frame(&seen, 3) != frame(&seen, 2));
        assert!([-1.0, 0.0, 1.0].contains(&reward), "{reward}");
        if t >= 200 {
            after.push((seen, reward));
        }
    }
    assert!(moved > 200, "{moved} of 300 pictures differ from the one before");
    assert!(after.iter().any(|(_, reward)| *reward == -1.0), "no point was lost");

    // The same from the checkpoint, in another process: sticky actions are drawn alike too.
    let mut other = VecEnv::make("gym:ALE/Pong-v5", 1, 4).unwrap();
    other.restore(&snapshot.unwrap()).unwrap();
    let again: Vec<_> = (200..300).map(|t| play(&mut other, t)).collect();
    assert!(again == after, "the restored game is another one");
}

#[test]
fn breakout_ends_with_each_life_while_training_and_with_the_game_in_an_evaluation() {
    if !installed() {
        return;
    }
    let lengths = |envs: &mut VecEnv, episodes: usize| {
        let mut lengths = Vec::new();
        for _ in 0..5_000 {
            if lengths.len() == episodes {
                break;
            }
            // The paddle rests in a corner, so that balls are lost.
            envs.step(&[2]).unwrap();
            lengths.extend(envs.episodes().iter().map(|episode| episode.length));
        }
        lengths
    };
    let lives = lengths(&mut VecEnv::make("gym:ALE/Breakout-v5", 1, 1).unwrap(), 10);
    let games = lengths(&mut VecEnv::make_for_evaluation("gym:ALE/Breakout-v5", 1, 1).unwrap(), 2);
    assert_eq!((lives.len(), games.len()), (10, 2), "{lives:?} {games:?}");
    // Five lives a game.
    assert!(games.iter().min() > lives.iter().max(), "{lives:?} {games:?}");
}
