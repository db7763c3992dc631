//! Asynchronous Q-learning learns CartPole, the same way each time, and refuses what it cannot do.

use regression::learning;

const ASYNC_Q: &str = env!("CARGO_BIN_EXE_async_q");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), ASYNC_Q);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let flags = ["--total-timesteps", "10000", "--eval-episodes", "3", "--seed", "7", "--workers", "5"];
    regression::is_deterministic(ASYNC_Q, &flags);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let steps = ["--total-timesteps", "40000", "--checkpoint-every", "3000", "--eval-episodes", "3"];
    regression::resumes(ASYNC_Q, &steps);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(ASYNC_Q, &["--total-timesteps", "10000", "--eval-episodes", "5"]);
}

#[test]
fn a_run_resumes_only_with_all_its_workers() {
    let dir = learning::scratch();
    let shown = dir.path().to_string_lossy();
    let flags = ["--total-timesteps", "3000", "--checkpoint-every", "1000", "--eval-episodes", "1"];
    let (code, _, stderr) = learning::run(ASYNC_Q, &[&flags[..], &["--run-dir", &shown]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let (code, _, stderr) = learning::run(ASYNC_Q, &["--resume", &shown, "--workers", "4"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("workers does not fit this run: it was run with --workers 9"), "{stderr}");
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(ASYNC_Q, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--workers", "1"], &["--workers 1", "at least 2, a server and a worker"]);
    refuses(&["--workers", "257"], &["--workers 257", "at most 256"]);
    refuses(&["--num-steps", "0"], &["'0'", "--num-steps", "at least 1"]);
    refuses(&["--rms-alpha", "2"], &["'2'", "--rms-alpha", "0 to 1"]);
    refuses(&["--rms-eps", "0"], &["'0'", "--rms-eps", "above 0"]);
    refuses(&["--hidden-sizes", "64,x"], &["'x'", "--hidden-sizes"]);
}
