//! Discrete SAC learns to balance a pole, the same way each time, and refuses what it cannot do.

const SAC_DISCRETE: &str = env!("CARGO_BIN_EXE_sac_discrete");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), SAC_DISCRETE);
}

/// A short run that gets as far as learning.
const SHORT: &[&str] = &[
    "--total-timesteps=1500",
    "--learning-starts=300",
    "--hidden-sizes=32",
    "--batch-size=32",
    "--eval-episodes=3",
    "--seed=7",
];

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(SAC_DISCRETE, SHORT);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(SAC_DISCRETE, SHORT);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(
        SAC_DISCRETE,
        &[
            "--total-timesteps",
            "8000",
            "--checkpoint-every",
            "2000",
            "--eval-episodes",
            "3",
            "--hidden-sizes",
            "32",
        ],
    );
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(SAC_DISCRETE, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions", "Box"]);
    refuses(&["--policy-lr=-1"], &["'-1'", "--policy-lr", "at least 0"]);
    refuses(&["--q-lr=-1"], &["'-1'", "--q-lr", "at least 0"]);
    refuses(&["--tau", "2"], &["'2'", "--tau", "0 to 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--alpha", "0"], &["'0'", "--alpha"]);
    refuses(&["--target-entropy-scale", "1.1"], &["'1.1'", "--target-entropy-scale", "0 to 1"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--batch-size", "0"], &["'0'", "--batch-size", "at least 1"]);
    refuses(&["--hidden-sizes", "64,0"], &["'0'", "--hidden-sizes", "at least 1"]);
    refuses(&["--learning-starts", "0"], &["'0'", "--learning-starts", "at least 1"]);
    refuses(&["--update-frequency", "0"], &["'0'", "--update-frequency", "at least 1"]);
    refuses(&["--target-network-frequency", "0"], &["'0'", "--target-network-frequency", "at least 1"]);
}
