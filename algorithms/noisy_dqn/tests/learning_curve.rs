//! NoisyNet-DQN learns CartPole, the same way each time, and refuses what it cannot do.

const NOISY_DQN: &str = env!("CARGO_BIN_EXE_noisy_dqn");

/// A short run that gets as far as learning.
const SHORT: &[&str] =
    &["--total-timesteps", "3000", "--eval-episodes", "3", "--hidden-sizes", "64,32", "--seed", "7"];

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), NOISY_DQN);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(NOISY_DQN, SHORT);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(NOISY_DQN, SHORT);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(NOISY_DQN, &[SHORT, &["--checkpoint-every", "800"]].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(NOISY_DQN, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--sigma0", "-1"], &["'-1'", "--sigma0", "at least 0"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--hidden-sizes", "64,x"], &["'x'", "--hidden-sizes"]);
    refuses(&["--tau", "2"], &["'2'", "--tau", "0 to 1"]);
    refuses(&["--clip-error", "maybe"], &["'maybe'", "--clip-error", "true"]);
    // There is no ε.
    refuses(&["--end-e", "0.05"], &["--end-e"]);
}
