//! A3C learns CartPole, the same way each time, and refuses what it cannot do.

use regression::learning;

const A3C: &str = env!("CARGO_BIN_EXE_a3c");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), A3C);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let flags = ["--total-timesteps", "10000", "--eval-episodes", "3", "--seed", "7", "--workers", "5"];
    regression::is_deterministic(A3C, &flags);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let steps = ["--total-timesteps", "60000", "--checkpoint-every", "4000", "--eval-episodes", "3"];
    regression::resumes(A3C, &steps);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(A3C, &["--total-timesteps", "20000", "--eval-episodes", "5"]);
}

#[test]
fn a_run_resumes_only_with_all_its_workers() {
    let dir = learning::scratch();
    let shown = dir.path().to_string_lossy();
    let flags = ["--total-timesteps", "3000", "--checkpoint-every", "1000", "--eval-episodes", "1"];
    let (code, _, stderr) = learning::run(A3C, &[&flags[..], &["--run-dir", &shown]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let (code, _, stderr) = learning::run(A3C, &["--resume", &shown, "--workers", "4"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("workers does not fit this run: it was run with --workers 9"), "{stderr}");
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(A3C, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--workers", "1"], &["--workers 1", "at least 2, a server and a worker"]);
    refuses(&["--workers", "257"], &["--workers 257", "at most 256"]);
    refuses(&["--num-steps", "0"], &["'0'", "--num-steps", "at least 1"]);
    refuses(&["--rms-eps", "0"], &["'0'", "--rms-eps", "above 0"]);
    refuses(&["--rms-alpha", "1.5"], &["'1.5'", "--rms-alpha", "0 to 1"]);
    refuses(&["--ent-coef", "-1"], &["'-1'", "--ent-coef"]);
}
