//! Back-propagation through a model swings up a pendulum, the same way each time, and refuses what it
//! cannot do.

const MODEL_BACKPROP: &str = env!("CARGO_BIN_EXE_model_backprop");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), MODEL_BACKPROP);
}

/// A short run that gets as far as learning.
const SHORT: &[&str] = &[
    "--total-timesteps=900",
    "--learning-starts=300",
    "--train-frequency=100",
    "--model-updates=20",
    "--policy-updates=5",
    "--hidden-size=16",
    "--batch-size=16",
    "--eval-episodes=3",
    "--seed=7",
];

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(MODEL_BACKPROP, SHORT);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(MODEL_BACKPROP, SHORT);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(MODEL_BACKPROP, &[SHORT, &["--checkpoint-every=250"]].concat());
}

#[test]
fn a_run_draws_how_the_gradient_grows() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let status = std::process::Command::new(MODEL_BACKPROP)
        .args(SHORT)
        .args(["--run-dir", run.to_str().unwrap()])
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let png = std::fs::read(run.join("gradient_norms.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG") && png.len() > 5000);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(MODEL_BACKPROP, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "Box actions", "Discrete(2)"]);
    refuses(&["--env-id", "MountainCarContinuous-v0"], &["MountainCarContinuous-v0", "time", "Pendulum-v1"]);
    refuses(&["--horizon", "0"], &["'0'", "--horizon", "at least 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--learning-starts", "0"], &["'0'", "--learning-starts", "at least 1"]);
    refuses(&["--train-frequency", "0"], &["'0'", "--train-frequency", "at least 1"]);
    refuses(&["--model-updates", "0"], &["'0'", "--model-updates", "at least 1"]);
    refuses(&["--policy-updates", "0"], &["'0'", "--policy-updates", "at least 1"]);
    refuses(&["--batch-size", "0"], &["'0'", "--batch-size", "at least 1"]);
    refuses(&["--learning-rate=-1"], &["'-1'", "--learning-rate", "at least 0"]);
    refuses(&["--max-grad-norm", "0"], &["'0'", "--max-grad-norm", "above 0"]);
    refuses(&["--exploration-noise=-1"], &["'-1'", "--exploration-noise", "at least 0"]);
}
