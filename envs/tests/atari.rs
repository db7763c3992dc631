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
fn pong_is_seen_as_four_frames() {
    if !installed() {
        return;
    }
    let mut envs = VecEnv::make("gym:ALE/Pong-v5", 1, 3).unwrap();
    let (image, num_actions) = envs.spec().image_to_discrete("test").unwrap();
    assert_eq!((image.height, image.width, image.channels, image.high, num_actions), (84, 84, 4, 255.0, 6));
    let (mut moved, mut lost) = (0, 0);
    for t in 0..300 {
        let before = envs.observations().to_vec();
        envs.step(&[t * t % 6]).unwrap();
        let (seen, reward) = (envs.final_observations(), envs.rewards()[0]);
        for i in 0..3 {
            assert!(frame(seen, i) == frame(&before, i + 1), "frame {i} after step {t}");
        }
        moved += u32::from(frame(seen, 3) != frame(seen, 2));
        assert!([-1.0, 0.0, 1.0].contains(&reward), "{reward}");
        lost += u32::from(reward == -1.0);
    }
    assert!(moved > 200, "{moved} of 300 pictures differ from the one before");
    assert!(lost > 0, "no point was lost");
}

/// An action that sticks is the last one before the checkpoint, so its frames would differ.
#[test]
fn a_game_goes_on_from_a_checkpoint() {
    if !installed() {
        return;
    }
    let mut envs = VecEnv::make("gym:ALE/Breakout-v5", 1, 3).unwrap();
    // To and fro: in every step the last action is another one.
    let play = |envs: &mut VecEnv, t: usize| {
        envs.step(&[2 + (t % 2) as u32]).unwrap();
        (envs.final_observations().to_vec(), envs.rewards()[0])
    };
    let (mut snapshots, mut played) = (Vec::new(), Vec::new());
    for t in 0..60 {
        snapshots.push(envs.snapshot().unwrap());
        played.push(play(&mut envs, t));
    }
    let mut other = VecEnv::make("gym:ALE/Breakout-v5", 1, 4).unwrap(); // in another process
    for start in 20..40 {
        other.restore(&snapshots[start]).unwrap();
        let again: Vec<_> = (start..start + 20).map(|t| play(&mut other, t)).collect();
        assert!(again == played[start..start + 20], "the game restored at step {start} is another one");
    }
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
