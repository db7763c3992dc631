//! MBPO swings up a pendulum in fewer steps than SAC, the same way each time, and refuses what it cannot do.

const MBPO: &str = env!("CARGO_BIN_EXE_mbpo");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), MBPO);
}

/// A short run that gets as far as learning.
const SHORT: &[&str] = &[
    "--total-timesteps=400",
    "--learning-starts=200",
    "--model-train-frequency=50",
    "--updates-per-step=2",
    "--hidden-size=16",
    "--batch-size=16",
    "--eval-episodes=3",
    "--seed=7",
];

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(MBPO, SHORT);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(MBPO, SHORT);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(MBPO, &[SHORT, &["--checkpoint-every=110"]].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(MBPO, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "Box actions", "Discrete(2)"]);
    refuses(&["--env-id", "MountainCarContinuous-v0"], &["MountainCarContinuous-v0", "terminate"]);
    refuses(&["--tau", "2"], &["'2'", "--tau", "0 to 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--batch-size", "0"], &["'0'", "--batch-size", "at least 1"]);
    refuses(&["--rollout-length", "0"], &["'0'", "--rollout-length", "at least 1"]);
    refuses(&["--updates-per-step", "0"], &["'0'", "--updates-per-step", "at least 1"]);
    refuses(&["--learning-rate=-1"], &["'-1'", "--learning-rate", "at least 0"]);
    refuses(&["--target-entropy", "inf"], &["'inf'", "--target-entropy", "finite"]);
}
