//! Dyna-Q learns mazes, the same way each time, and refuses what it cannot do.

const DYNA_Q: &str = env!("CARGO_BIN_EXE_dyna_q");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), DYNA_Q);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "1500", "--eval-episodes", "3", "--seed", "7"];
    regression::is_deterministic(DYNA_Q, &args);
    regression::is_deterministic(DYNA_Q, &[&args[..], &["--prioritized-sweeping"]].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    // The wall moves meanwhile.
    let args = ["--env-id", "ShortcutMaze-v0", "--total-timesteps", "20000", "--checkpoint-every", "500"];
    let args = [&args[..], &["--eval-episodes", "1"]].concat();
    regression::resumes(DYNA_Q, &[&args[..], &["--kappa", "1e-3"]].concat());
    regression::resumes(DYNA_Q, &[&args[..], &["--prioritized-sweeping"]].concat());
}

#[test]
fn a_saved_model_evaluates_alike() {
    regression::evaluates_alike(DYNA_Q, &["--seed", "7"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(DYNA_Q, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "Discrete observations", "Box([4])"]);
    refuses(&["--prioritized-sweeping", "--kappa", "0.1"], &["--kappa 0.1", "--prioritized-sweeping"]);
    refuses(&["--kappa", "-1"], &["'-1'", "--kappa"]);
    refuses(&["--theta", "-1"], &["'-1'", "--theta"]);
    refuses(&["--learning-rate", "1.5"], &["'1.5'", "--learning-rate", "0 to 1"]);
    refuses(&["--epsilon", "2"], &["'2'", "--epsilon", "0 to 1"]);
    refuses(&["--gamma", "NaN"], &["'NaN'", "--gamma", "0 to 1"]);
}
