//! IMPALA learns CartPole, the same way each time, and refuses what it cannot do.

use regression::learning;

const IMPALA: &str = env!("CARGO_BIN_EXE_impala");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), IMPALA);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(
        IMPALA,
        &["--total-timesteps", "30000", "--eval-episodes", "3", "--seed", "7", "--workers", "5"],
    );
}

#[test]
fn a_killed_run_resumes_exactly() {
    let steps = ["--total-timesteps", "200000", "--checkpoint-every", "10000", "--eval-episodes", "3"];
    regression::resumes(IMPALA, &steps);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(IMPALA, &["--total-timesteps", "30000", "--eval-episodes", "5"]);
}

#[test]
fn a_run_resumes_only_with_all_its_actors() {
    let dir = learning::scratch();
    let shown = dir.path().to_string_lossy();
    let flags = ["--total-timesteps", "3000", "--checkpoint-every", "1000", "--eval-episodes", "1"];
    let (code, _, stderr) = learning::run(IMPALA, &[&flags[..], &["--run-dir", &shown]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let (code, _, stderr) = learning::run(IMPALA, &["--resume", &shown, "--workers", "4"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("actors does not fit this run: it was run with --workers 3"), "{stderr}");
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(IMPALA, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--workers", "0"], &["'0'", "--workers", "at least 1"]);
    refuses(&["--workers", "1"], &["--workers 1", "at least 2, a learner and an actor"]);
    refuses(&["--workers", "257"], &["--workers 257", "at most 256"]);
    refuses(&["--learning-rate", "-1"], &["'-1'", "--learning-rate"]);
    refuses(&["--num-steps", "0"], &["'0'", "--num-steps", "at least 1"]);
    refuses(&["--rho-bar", "0"], &["'0'", "--rho-bar", "above 0"]);
    refuses(&["--rho-bar", "0.9"], &["--c-bar 1", "at most --rho-bar 0.9"]);
    refuses(&["--c-bar", "1.5"], &["--c-bar 1.5", "at most --rho-bar 1"]);
    refuses(&["--c-bar", "x"], &["'x'", "--c-bar"]);
    refuses(&["--reward-scale", "-1"], &["'-1'", "--reward-scale"]);
    refuses(&["--run-dir", "/proc/none"], &["--run-dir", "/proc/none"]);
}
