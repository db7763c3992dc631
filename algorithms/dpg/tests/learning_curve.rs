//! DPG drives a car up a mountain, the same way each time, and refuses what it cannot do.

const DPG: &str = env!("CARGO_BIN_EXE_dpg");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), DPG);
}

/// A short run in which the car meets the goal.
const SHORT: &[&str] = &["--total-timesteps=5000", "--on-policy=true", "--eval-episodes=3", "--seed=7"];

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(DPG, SHORT);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(DPG, SHORT);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let checkpoints = ["--checkpoint-every", "10000", "--eval-episodes", "3"];
    regression::resumes(DPG, &[&["--total-timesteps", "40000"], &checkpoints[..]].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(DPG, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "Box actions", "Discrete(2)"]);
    refuses(&["--tiles", "100000"], &["--tiles 100000", "ten million"]);
    refuses(&["--tiles", "0"], &["'0'", "--tiles", "at least 1"]);
    refuses(&["--tilings", "0"], &["'0'", "--tilings", "at least 1"]);
    refuses(&["--policy-lr=-1"], &["'-1'", "--policy-lr", "at least 0"]);
    refuses(&["--advantage-lr=-1"], &["'-1'", "--advantage-lr", "at least 0"]);
    refuses(&["--value-lr", "NaN"], &["'NaN'", "--value-lr", "at least 0"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--exploration-noise", "inf"], &["'inf'", "--exploration-noise"]);
}
