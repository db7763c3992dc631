//! Gorila learns CartPole, the same way each time, and refuses what it cannot do.

use regression::learning;

const GORILA: &str = env!("CARGO_BIN_EXE_gorila");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), GORILA);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let flags = ["--total-timesteps", "6000", "--eval-episodes", "3", "--seed", "7", "--workers", "5"];
    regression::is_deterministic(GORILA, &flags);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let steps = ["--total-timesteps", "10000", "--checkpoint-every", "1500", "--eval-episodes", "3"];
    regression::resumes(GORILA, &steps);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(GORILA, &["--total-timesteps", "5000", "--eval-episodes", "5"]);
}

#[test]
fn a_run_resumes_only_with_all_its_machines() {
    let dir = learning::scratch();
    let shown = dir.path().to_string_lossy();
    let flags = ["--total-timesteps", "1500", "--checkpoint-every", "500", "--eval-episodes", "1"];
    let (code, _, stderr) = learning::run(GORILA, &[&flags[..], &["--run-dir", &shown]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let (code, _, stderr) = learning::run(GORILA, &["--resume", &shown, "--workers", "3"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("machines does not fit this run: it was run with --workers 4"), "{stderr}");
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(GORILA, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--workers", "0"], &["'0'", "--workers", "at least 1"]);
    refuses(&["--workers", "257"], &["--workers 257", "at most 256"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--outlier-deviations", "-1"], &["'-1'", "--outlier-deviations"]);
    refuses(&["--clip-error", "0"], &["'0'", "--clip-error", "above 0"]);
    refuses(&["--end-e", "2"], &["'2'", "--end-e", "0 to 1"]);
}
