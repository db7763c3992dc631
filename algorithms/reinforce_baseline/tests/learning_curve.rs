//! REINFORCE with baseline learns CartPole and figure 13.2's short corridor, the same way each time, and
//! refuses what it cannot do.

const REINFORCE: &str = env!("CARGO_BIN_EXE_reinforce_baseline");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), REINFORCE);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "4000", "--eval-episodes", "3", "--seed", "7", "--variance-every", "3"];
    regression::is_deterministic(REINFORCE, &args);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "60000", "--checkpoint-every", "5000", "--eval-episodes", "3"];
    regression::resumes(REINFORCE, &[&args[..], &["--variance-every", "7"]].concat());
    let optimal = ["--baseline", "optimal", "--total-timesteps", "30000"];
    regression::resumes(REINFORCE, &[&args[2..], &optimal].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    let args = ["--total-timesteps", "20000", "--eval-episodes", "5"];
    regression::evaluates_alike(REINFORCE, &args);
    regression::evaluates_alike(REINFORCE, &[&args[..], &["--greedy-eval", "false"]].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(REINFORCE, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "reinforce_baseline", "Discrete actions"]);
    refuses(&["--baseline", "median"], &["'median'", "--baseline", "none, mean, optimal, value"]);
    refuses(&["--batch-episodes", "0"], &["'0'", "--batch-episodes", "at least 1"]);
    refuses(&["--batch-episodes", "1", "--baseline", "mean"], &["--batch-episodes 1", "2 or more"]);
    refuses(&["--batch-episodes", "1", "--variance-every", "1"], &["--batch-episodes 1", "--variance-every"]);
    refuses(&["--sequential", "--baseline", "optimal"], &["--sequential", "value"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    let preferences = "--initial-preferences";
    refuses(&[preferences, "-1,1"], &[preferences, "--hidden-size 0"]);
    refuses(&[preferences, "1,2,3", "--hidden-size", "0"], &[preferences, "3 numbers", "2"]);
}
