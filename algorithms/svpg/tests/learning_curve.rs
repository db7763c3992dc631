//! SVPG learns CartPole, the same way each time, and refuses what it cannot do.

const SVPG: &str = env!("CARGO_BIN_EXE_svpg");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), SVPG);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(SVPG, &["--total-timesteps", "8000", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let steps = ["--total-timesteps", "40000", "--checkpoint-every", "2000", "--eval-episodes", "3"];
    regression::resumes(SVPG, &steps);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(SVPG, &["--total-timesteps", "8000", "--eval-episodes", "5"]);
}

/// Where no time limit ends episodes, the steps that were asked for end the run.
#[test]
fn a_run_without_a_time_limit_ends() {
    let steps = ["--env-id", "MountainCarTextbook-v0", "--total-timesteps", "300", "--eval-episodes", "1"];
    regression::is_deterministic(SVPG, &steps);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(SVPG, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "svpg", "Discrete actions"]);
    refuses(&["--num-particles", "0"], &["'0'", "--num-particles", "at least 1"]);
    refuses(&["--num-particles", "10001"], &["--num-particles 10001", "at most 10000"]);
    refuses(&["--batch-episodes", "0"], &["'0'", "--batch-episodes", "at least 1"]);
    refuses(&["--temperature", "0"], &["'0'", "--temperature", "above 0"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
}
