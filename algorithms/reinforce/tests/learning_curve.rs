//! REINFORCE learns CartPole and the stochastic policy of the short corridor, the same way each
//! time, and refuses what it cannot do.

const REINFORCE: &str = env!("CARGO_BIN_EXE_reinforce");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), REINFORCE);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(
        REINFORCE,
        &["--total-timesteps", "4000", "--eval-episodes", "3", "--seed", "7"],
    );
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(
        REINFORCE,
        &["--total-timesteps", "60000", "--checkpoint-every", "5000", "--eval-episodes", "3"],
    );
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(REINFORCE, &["--total-timesteps", "20000", "--eval-episodes", "5"]);
    let sampled = ["--total-timesteps", "20000", "--eval-episodes", "5", "--greedy-eval", "false"];
    regression::evaluates_alike(REINFORCE, &sampled);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(REINFORCE, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "reinforce", "Discrete actions"]);
    refuses(&["--batch-episodes", "0"], &["'0'", "--batch-episodes", "at least 1"]);
    refuses(&["--optimizer", "lbfgs"], &["'lbfgs'", "--optimizer", "adam", "sgd"]);
    refuses(&["--hidden-size", "many"], &["'many'", "--hidden-size"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    let preferences = "--initial-preferences";
    refuses(&[preferences, "-1,one"], &["'one'", preferences]);
    refuses(&[preferences, "-1,1"], &[preferences, "--hidden-size 64", "--hidden-size 0"]);
    refuses(&[preferences, "1,2,3", "--hidden-size", "0"], &[preferences, "3 numbers", "2 actions"]);
}
