//! The off-policy policy gradient learns CartPole, the same way each time, and refuses what it cannot do.

const OFF_POLICY_PG: &str = env!("CARGO_BIN_EXE_off_policy_pg");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), OFF_POLICY_PG);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "4000", "--eval-episodes", "3", "--seed", "7"];
    regression::is_deterministic(OFF_POLICY_PG, &args);
    regression::is_deterministic(OFF_POLICY_PG, &[&args[..], &["--weights", "trajectory"]].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "60000", "--checkpoint-every", "5000", "--eval-episodes", "3"];
    regression::resumes(OFF_POLICY_PG, &args);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(OFF_POLICY_PG, &["--total-timesteps", "20000", "--eval-episodes", "5"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(OFF_POLICY_PG, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "off_policy_pg", "Discrete actions"]);
    refuses(&["--weights", "clipped"], &["'clipped'", "--weights", "trajectory, per-decision-rewards"]);
    refuses(&["--updates-per-batch", "0"], &["'0'", "--updates-per-batch", "at least 1"]);
    refuses(&["--min-effective-share", "2"], &["'2'", "--min-effective-share", "0 to 1"]);
    refuses(&["--learning-rate", "nan"], &["'nan'", "--learning-rate"]);
}
