//! D4PG learns to swing up a pendulum, the same way each time, and refuses what it cannot do.

const D4PG: &str = env!("CARGO_BIN_EXE_d4pg");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), D4PG);
}

/// A short run that gets as far as learning.
const SHORT: &[&str] =
    &["--total-timesteps=1200", "--workers=4", "--batch-size=32", "--eval-episodes=3", "--seed=7"];

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(D4PG, SHORT);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(D4PG, SHORT);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let checkpoints = ["--checkpoint-every", "1000", "--eval-episodes", "3", "--batch-size", "32"];
    regression::resumes(D4PG, &[&["--total-timesteps", "4000"], &checkpoints[..]].concat());
}

#[test]
fn other_actors_than_were_saved_are_refused() {
    let dir = regression::learning::scratch();
    let shown = dir.path().to_string_lossy();
    let flags = ["--total-timesteps=1200", "--workers=4", "--checkpoint-every=400", "--eval-episodes=1"];
    let (code, _, stderr) = regression::learning::run(D4PG, &[&flags[..], &["--run-dir", &shown]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    for count in [3, 5] {
        let workers = count.to_string();
        let (code, _, stderr) = regression::learning::run(D4PG, &["--resume", &shown, "--workers", &workers]);
        assert_eq!(code, Some(2), "{stderr}");
        let words = format!("actors does not fit this run: it holds 3 entries, not {}", count - 1);
        assert!(stderr.contains(&words), "{stderr}");
    }
    // Nothing of the run has changed: it goes on as it was.
    let (code, _, stderr) = regression::learning::run(D4PG, &["--resume", &shown]);
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(D4PG, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "Box actions", "Discrete(2)"]);
    refuses(&["--workers", "1"], &["'1'", "--workers", "2..=256"]);
    refuses(&["--workers", "300"], &["'300'", "--workers", "2..=256"]);
    refuses(&["--n-atoms", "1"], &["--n-atoms 1", "at least 2"]);
    refuses(&["--v-min", "0", "--v-max=-1"], &["--v-min 0", "below --v-max, -1"]);
    refuses(&["--learning-rate=-1"], &["'-1'", "--learning-rate", "at least 0"]);
    refuses(&["--tau", "2"], &["'2'", "--tau", "0 to 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--n-step", "0"], &["'0'", "--n-step", "at least 1"]);
    refuses(&["--num-steps", "0"], &["'0'", "--num-steps", "at least 1"]);
    refuses(&["--batch-size", "0"], &["'0'", "--batch-size", "at least 1"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--hidden-size", "0"], &["'0'", "--hidden-size", "at least 1"]);
    refuses(&["--exploration-noise", "inf"], &["'inf'", "--exploration-noise"]);
}
