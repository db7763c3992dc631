//! Plans reach the optimum that is known, come out the same each time, and what cannot be planned is refused.

const ILQR: &str = env!("CARGO_BIN_EXE_ilqr");

#[test]
fn plans_well() {
    regression::check(env!("CARGO_MANIFEST_DIR"), ILQR);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(ILQR, &["--total-timesteps", "250", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(
        ILQR,
        &["--total-timesteps", "4000", "--checkpoint-every", "200", "--eval-episodes", "1"],
    );
}

#[test]
fn evaluation_alone_plans_the_same_episodes() {
    regression::evaluates_alike(ILQR, &["--total-timesteps", "50", "--eval-episodes", "3"]);
}

#[cfg(target_os = "linux")]
#[test]
fn the_evaluation_hears_ctrl_c() {
    regression::hears_ctrl_c_in_evaluation(ILQR, &["--total-timesteps", "10", "--eval-episodes", "1"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(ILQR, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "ilqr", "Box actions", "Discrete(2)"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Discrete(16)"]);
    refuses(&["--env-id", "LaplacianSystem-v0"], &["LaplacianSystem-v0:", "steps are random"]);
    refuses(
        &["--env-id", "ContinuousCartPole-v0"],
        &["--env-id ContinuousCartPole-v0", "end by more than time"],
    );
    refuses(&["--initial-state", "3.1"], &["Pendulum-v1", "2 finite numbers", "3.1"]);
    refuses(&["--initial-state", "0,9"], &["angular velocity 9", "[-8, 8]"]);
    refuses(&["--horizon", "0"], &["'0'", "--horizon", "at least 1"]);
    refuses(&["--growth", "none"], &["'none'", "--growth"]);
    refuses(&["--tolerance", "0"], &["'0'", "--tolerance", "above 0"]);
}
