//! Value iteration solves FrozenLake and the gambler's problem, the same way each time, and refuses what
//! it cannot do.

const VALUE_ITERATION: &str = env!("CARGO_BIN_EXE_value_iteration");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), VALUE_ITERATION);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(VALUE_ITERATION, &["--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    // A sweep and a checkpoint in turn, some hundreds of times.
    let args = ["--env-id", "FrozenLake8x8-v1", "--checkpoint-every", "1", "--eval-episodes", "3"];
    regression::resumes(VALUE_ITERATION, &args);
}

#[test]
fn a_saved_model_evaluates_alike() {
    regression::evaluates_alike(VALUE_ITERATION, &["--eval-episodes", "20", "--seed", "7"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(VALUE_ITERATION, args, mentions);
    let with_models = ["transition model", "FrozenLake-v1, FrozenLake-v1-deterministic", "Gambler-v0"];
    refuses(&["--env-id", "Baird-v0"], &["Baird-v0", "Discrete observations"]);
    refuses(&["--env-id", "CartPole-v1"], &[&["CartPole-v1"], &with_models[..]].concat());
    refuses(&["--env-id", "BlockingMaze-v0"], &[&["BlockingMaze-v0"], &with_models[..]].concat());
    refuses(&["--gamma", "1.01"], &["'1.01'", "--gamma", "0 to 1"]);
    refuses(&["--theta", "0"], &["'0'", "--theta", "above 0"]);
    refuses(&["--total-timesteps", "0"], &["'0'", "--total-timesteps", "at least 1"]);
}
