//! ACKTR learns CartPole, the same way each time, and refuses what it cannot do.

const ACKTR: &str = env!("CARGO_BIN_EXE_acktr");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), ACKTR);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(
        ACKTR,
        &["--total-timesteps", "8000", "--eval-episodes", "3", "--seed", "7"],
    );
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "20000", "--checkpoint-every", "2000", "--eval-episodes", "3"];
    // Inverses that are older than the averages that they will be computed from.
    regression::resumes(ACKTR, &[&args[..], &["--kfac-update", "7"]].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(ACKTR, &["--total-timesteps", "8000", "--eval-episodes", "5"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(ACKTR, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions", "Box([1])"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--num-steps", "0"], &["'0'", "--num-steps", "at least 1"]);
    refuses(&["--kfac-update", "0"], &["'0'", "--kfac-update", "at least 1"]);
    refuses(&["--damping", "0"], &["'0'", "--damping", "above 0"]);
    refuses(&["--kl-clip", "0"], &["'0'", "--kl-clip", "above 0"]);
    refuses(&["--stat-decay", "1.5"], &["'1.5'", "--stat-decay", "0 to 1"]);
}
