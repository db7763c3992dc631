//! SAC learns to swing up a pendulum, the same way each time, and refuses what it cannot do.

const SAC: &str = env!("CARGO_BIN_EXE_sac");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), SAC);
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
    regression::is_deterministic(SAC, SHORT);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(
        SAC,
        &[
            "--total-timesteps",
            "3000",
            "--checkpoint-every",
            "1000",
            "--eval-episodes",
            "3",
            "--hidden-size",
            "32",
        ],
    );
}

#[test]
fn a_run_killed_at_any_moment_resumes_exactly() {
    let args = ["--total-timesteps=1600", "--checkpoint-every=50"];
    regression::survives_kills(SAC, &[SHORT, &args].concat(), 20, 3);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(SAC, SHORT);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(SAC, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "Box actions", "Discrete(2)"]);
    refuses(&["--policy-lr=-1"], &["'-1'", "--policy-lr", "at least 0"]);
    refuses(&["--q-lr", "inf"], &["'inf'", "--q-lr"]);
    refuses(&["--tau", "2"], &["'2'", "--tau", "0 to 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--alpha=-0.1"], &["'-0.1'", "--alpha", "at least 0"]);
    refuses(&["--autotune", "maybe"], &["'maybe'", "--autotune", "true"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--batch-size", "0"], &["'0'", "--batch-size", "at least 1"]);
    refuses(&["--learning-starts", "0"], &["'0'", "--learning-starts", "at least 1"]);
    refuses(&["--policy-frequency", "0"], &["'0'", "--policy-frequency", "at least 1"]);
    refuses(&["--target-network-frequency", "0"], &["'0'", "--target-network-frequency"]);
}
