//! Planning swings up the pendulum, does the same each time on any number of threads, and refuses what
//! it cannot do.

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
fn threads_give_the_same_run() {
    let args = ["--total-timesteps", "60", "--eval-episodes", "1", "--population", "65"];
    let threads = [&["--threads", "1"][..], &["--threads", "2"], &["--threads", "5"]];
    regression::give_the_same_run(CEM, &args, &threads);
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

#[cfg(target_os = "linux")]
#[test]
fn the_evaluation_hears_ctrl_c() {
    regression::hears_ctrl_c_in_evaluation(CEM, &["--total-timesteps", "10", "--eval-episodes", "1"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(CEM, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "cem", "Box actions", "Discrete(2)"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Discrete(16)"]);
    refuses(&["--horizon", "0"], &["'0'", "--horizon", "at least 1"]);
    refuses(&["--elites", "65"], &["--elites 65", "--population = 64"]);
    refuses(&["--iterations", "none"], &["'none'", "--iterations"]);
    refuses(&["--threads", "0"], &["'0'", "--threads"]);
    refuses(&["--smoothing", "2"], &["'2'", "--smoothing", "0 to 1"]);
}
