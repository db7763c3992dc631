//! DDPG learns to swing up a pendulum, the same way each time, and refuses what it cannot do.

const DDPG: &str = env!("CARGO_BIN_EXE_ddpg");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), DDPG);
}

/// A short run that gets as far as learning.
const SHORT: &[&str] = &[
    "--total-timesteps=700",
    "--learning-starts=300",
    "--hidden-size=32",
    "--batch-size=32",
    "--eval-episodes=3",
    "--seed=7",
];

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(DDPG, SHORT);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(DDPG, SHORT);
}

#[test]
fn a_killed_run_resumes_exactly() {
    // Checkpoints lie within episodes, so that the state of the noise matters, and what has come so far.
    let flags = ["--total-timesteps=3000", "--learning-starts=500", "--checkpoint-every=930"];
    let noise = ["--ornstein-uhlenbeck=true", "--eval-episodes=3", "--hidden-size=32"];
    regression::resumes(DDPG, &[flags, noise].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(DDPG, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "Box actions", "Discrete(2)"]);
    refuses(&["--learning-rate=-1"], &["'-1'", "--learning-rate", "at least 0"]);
    refuses(&["--tau", "2"], &["'2'", "--tau", "0 to 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--ou-rate=1.5"], &["'1.5'", "--ou-rate", "0 to 1"]);
    refuses(&["--exploration-noise", "inf"], &["'inf'", "--exploration-noise"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--batch-size", "0"], &["'0'", "--batch-size", "at least 1"]);
    refuses(&["--learning-starts", "0"], &["'0'", "--learning-starts", "at least 1"]);
    refuses(&["--policy-frequency", "0"], &["'0'", "--policy-frequency", "at least 1"]);
}
