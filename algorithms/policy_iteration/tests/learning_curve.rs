//! Policy iteration solves FrozenLake, the same way each time, and refuses what it cannot do.

const POLICY_ITERATION: &str = env!("CARGO_BIN_EXE_policy_iteration");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), POLICY_ITERATION);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(POLICY_ITERATION, &["--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    // A sweep, an improvement and a checkpoint in turn, some hundreds of times.
    let args = ["--env-id", "FrozenLake8x8-v1", "--evaluation-sweeps", "1", "--checkpoint-every", "1"];
    regression::resumes(POLICY_ITERATION, &[&args[..], &["--eval-episodes", "3"]].concat());
    // Within an evaluation of thousands of sweeps.
    let args = ["--env-id", "CliffWalking-v1", "--gamma", "0.999", "--initial-action", "0"];
    let often = ["--checkpoint-every", "1", "--eval-episodes", "3"];
    regression::resumes(POLICY_ITERATION, &[&args[..], &often].concat());
}

#[test]
fn a_saved_model_evaluates_alike() {
    regression::evaluates_alike(POLICY_ITERATION, &["--eval-episodes", "20", "--seed", "7"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(POLICY_ITERATION, args, mentions);
    let with_models = "FrozenLake-v1, FrozenLake-v1-deterministic, FrozenLake8x8-v1";
    refuses(&["--env-id", "Baird-v0"], &["Baird-v0", "Discrete observations"]);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "transition model", with_models]);
    refuses(&["--env-id", "Blackjack-v1"], &["Blackjack-v1", "transition model", "Taxi-v4"]);
    refuses(&["--env-id", "CartPole-v1"], &["Gridworld-v0, CarRental-v0, Gambler-v0"]);
    refuses(&["--initial-action", "4"], &["--initial-action 4", "0 to 3"]);
    refuses(&["--total-improvements", "0"], &["'0'", "--total-improvements", "at least 1"]);
    refuses(&["--gamma", "1.01"], &["'1.01'", "--gamma", "0 to 1"]);
    refuses(&["--theta", "0"], &["'0'", "--theta", "above 0"]);
    refuses(&["--evaluation-sweeps", "-1"], &["-1"]);
    refuses(&["--total-timesteps", "0"], &["'0'", "--total-timesteps", "at least 1"]);
}
