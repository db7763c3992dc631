//! SARSA and its kin learn to keep away from the cliff, the same way each time, and refuse what they
//! cannot do.

const SARSA: &str = env!("CARGO_BIN_EXE_sarsa");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), SARSA);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "2000", "--eval-episodes", "3", "--seed", "7"];
    regression::is_deterministic(SARSA, &args);
    regression::is_deterministic(SARSA, &[&args[..], &["--target", "tree-backup", "--n-step", "3"]].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "200000", "--checkpoint-every", "10000", "--eval-episodes", "3"];
    regression::resumes(SARSA, &[&args[..], &["--n-step", "5"]].concat());
}

#[test]
fn a_saved_model_evaluates_alike() {
    let args = ["--env-id", "FrozenLake-v1", "--total-timesteps", "5000", "--epsilon", "1", "--seed", "7"];
    regression::evaluates_alike(SARSA, &args);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(SARSA, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "Discrete observations", "Box([4])"]);
    refuses(&["--env-id", "Blackjack-v1"], &["Blackjack-v1", "Discrete observations", "Tuple"]);
    refuses(&["--target", "max"], &["'max'", "--target", "tree-backup"]);
    refuses(&["--n-step", "0"], &["'0'", "--n-step", "at least 1"]);
    refuses(&["--learning-rate", "1.5"], &["'1.5'", "--learning-rate", "0 to 1"]);
    refuses(&["--epsilon", "2"], &["'2'", "--epsilon", "0 to 1"]);
    refuses(&["--gamma", "NaN"], &["'NaN'", "--gamma", "0 to 1"]);
}
