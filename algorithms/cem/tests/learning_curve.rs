//! Planning swings up the pendulum, does the same each time, and refuses what it cannot do.

const CEM: &str = env!("CARGO_BIN_EXE_cem");

#[test]
fn plans_well() {
    regression::check(env!("CARGO_MANIFEST_DIR"), CEM);
}

#[test]
fn seed_and_nothing_else_decides_a_run() {
    // Neither a second run nor evaluation on several threads changes a number.
    let args = ["--total-timesteps", "250", "--eval-episodes", "5", "--seed", "7"];
    regression::give_the_same_run(CEM, &args, &[&[], &[], &["--threads", "3"]]);
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
