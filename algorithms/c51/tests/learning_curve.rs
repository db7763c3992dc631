//! C51 learns CartPole, the same way each time, and refuses what it cannot do.

const C51: &str = env!("CARGO_BIN_EXE_c51");

/// A short run that gets as far as learning.
const SHORT: &[&str] =
    &["--total-timesteps", "3000", "--eval-episodes", "3", "--hidden-sizes", "32", "--seed", "7"];
/// The same on images.
const IMAGES: &[&str] = &["--env-id", "Catch-v0", "--v-min", "-1", "--v-max", "1", "--n-atoms", "11"];

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), C51);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(C51, SHORT);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(C51, SHORT);
    regression::evaluates_alike(C51, &[SHORT, IMAGES].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(C51, &[SHORT, &["--checkpoint-every", "800"]].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(C51, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--n-atoms", "1"], &["--n-atoms 1", "at least 2"]);
    refuses(&["--v-min", "100"], &["--v-min 100", "less than --v-max, 100"]);
    refuses(&["--v-max", "inf"], &["'inf'", "--v-max", "finite"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--start-e", "2"], &["'2'", "--start-e", "0 to 1"]);
    refuses(&["--adam-eps", "0"], &["'0'", "--adam-eps", "above 0"]);
}
