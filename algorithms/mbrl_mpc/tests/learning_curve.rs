//! A learned model balances the pole by planning, the same way each time, and refuses what it cannot do.

const MBRL_MPC: &str = env!("CARGO_BIN_EXE_mbrl_mpc");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), MBRL_MPC);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(MBRL_MPC, &["--total-timesteps=500", "--eval-episodes=3", "--seed=7"]);
}

#[test]
fn threads_give_the_same_run() {
    let args = ["--total-timesteps", "210", "--eval-episodes", "2", "--candidates", "100"];
    let threads = [&["--threads", "1"][..], &["--threads", "2"], &["--threads", "3"]];
    regression::give_the_same_run(MBRL_MPC, &args, &threads);
}

/// Whole plans, so that a run is killed within one.
#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(
        MBRL_MPC,
        &["--mbrl-version=1.0", "--total-timesteps=6000", "--checkpoint-every=150", "--eval-episodes=3"],
    );
}

#[test]
fn a_trained_model_evaluates_alike() {
    for version in ["--mbrl-version=1.0", "--mbrl-version=1.5"] {
        regression::evaluates_alike(MBRL_MPC, &[version, "--total-timesteps=300", "--eval-episodes=3"]);
    }
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(MBRL_MPC, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "mbrl_mpc", "ContinuousCartPole-v0"]);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "mbrl_mpc"]);
    refuses(&["--mbrl-version", "2.0"], &["'2.0'", "--mbrl-version", "0.5, 1.0, 1.5"]);
    refuses(&["--horizon", "0"], &["'0'", "--horizon", "at least 1"]);
    refuses(&["--candidates", "0"], &["'0'", "--candidates", "at least 1"]);
    refuses(&["--learning-starts", "0"], &["'0'", "--learning-starts", "at least 1"]);
    refuses(&["--train-frequency", "0"], &["'0'", "--train-frequency", "at least 1"]);
    refuses(&["--learning-rate=-1"], &["'-1'", "--learning-rate", "at least 0"]);
}
