//! Rainbow learns CartPole, the same way each time, and refuses what it cannot do.

const RAINBOW: &str = env!("CARGO_BIN_EXE_rainbow");

/// A short run that gets as far as learning.
const SHORT: &[&str] =
    &["--total-timesteps", "3000", "--eval-episodes", "3", "--hidden-size", "32", "--n-atoms", "21"];

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), RAINBOW);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(RAINBOW, &[SHORT, &["--seed", "7"]].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(RAINBOW, SHORT);
    let images = ["--env-id", "Catch-v0", "--v-min", "-1", "--v-max", "1"];
    regression::evaluates_alike(RAINBOW, &[SHORT, &images].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(RAINBOW, &[SHORT, &["--checkpoint-every", "800"]].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(RAINBOW, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--n-atoms", "1"], &["--n-atoms 1", "at least 2"]);
    refuses(&["--v-min", "100"], &["--v-min 100", "below --v-max, 100"]);
    refuses(&["--n-step", "0"], &["'0'", "--n-step", "at least 1"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--noisy", "maybe"], &["'maybe'", "--noisy", "true"]);
}
