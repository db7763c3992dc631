//! Planning swings up the pendulum, does the same each time, and refuses what it cannot do.

const CEM: &str = env!("CARGO_BIN_EXE_cem");

#[test]
fn plans_well() {
    regression::check(env!("CARGO_MANIFEST_DIR"), CEM);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(CEM, &["--total-timesteps", "250", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(
        CEM,
        &["--total-timesteps", "2000", "--checkpoint-every", "100", "--eval-episodes", "1"],
    );
}

#[test]
fn evaluation_alone_plans_the_same_episodes() {
    regression::evaluates_alike(CEM, &["--total-timesteps", "50", "--eval-episodes", "3"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(CEM, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "cem", "Box actions", "Discrete(2)"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Discrete(16)"]);
    refuses(&["--horizon", "0"], &["'0'", "--horizon", "at least 1"]);
    refuses(&["--elites", "65"], &["--elites 65", "--population = 64"]);
    refuses(&["--iterations", "none"], &["'none'", "--iterations"]);
    refuses(&["--smoothing", "2"], &["'2'", "--smoothing", "0 to 1"]);
}
