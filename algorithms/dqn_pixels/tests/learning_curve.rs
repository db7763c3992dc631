//! DQN learns to catch a ball it sees, the same way each time, and refuses what it cannot do.

const DQN: &str = env!("CARGO_BIN_EXE_dqn_pixels");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), DQN);
}

/// A short run that gets as far as learning.
const SHORT: &[&str] =
    &["--total-timesteps", "700", "--learning-starts", "200", "--eval-episodes", "3", "--seed", "7"];
/// Overwriting old transitions, with stacks.
const STACKED: &[&str] = &["--frame-stack", "3", "--buffer-size", "150"];

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(DQN, SHORT);
    regression::is_deterministic(DQN, &[SHORT, STACKED].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(DQN, &[SHORT, STACKED].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(
        DQN,
        &["--total-timesteps", "4000", "--checkpoint-every", "1000", "--eval-episodes", "3"],
    );
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(DQN, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "needs images", "Box([4])", "Discrete(2)"]);
    refuses(&["--env-id", "CartPole-v1", "--frame-stack", "2"], &["CartPole-v1", "needs images"]);
    refuses(&["--env-id", "Taxi-v4"], &["Taxi-v4", "needs images", "Discrete(500)"]);
    refuses(&["--env-id", "MinAtar/Breakout"], &["MinAtar/Breakout-v1"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--frame-stack", "0"], &["'0'", "--frame-stack", "at least 1"]);
    let atari = ["--env-id", "gym:ALE/Pong-v5", "--frame-stack", "4"];
    refuses(&atari, &["--frame-stack 4", "gym:ALE/Pong-v5 stacks 4 frames itself"]);
    refuses(&["--batch-size", "0"], &["'0'", "--batch-size", "at least 1"]);
    refuses(&["--train-frequency", "0"], &["'0'", "--train-frequency", "at least 1"]);
    refuses(&["--target-network-frequency", "x"], &["'x'", "--target-network-frequency"]);
    refuses(&["--end-e=-0.1"], &["'-0.1'", "--end-e", "0 to 1"]);
    refuses(&["--start-e", "1.1"], &["'1.1'", "--start-e", "0 to 1"]);
    refuses(&["--exploration-fraction", "2"], &["'2'", "--exploration-fraction", "0 to 1"]);
    refuses(&["--tau", "NaN"], &["'NaN'", "--tau", "0 to 1"]);
    refuses(&["--learning-rate=-1"], &["'-1'", "--learning-rate", "at least 0"]);
}
