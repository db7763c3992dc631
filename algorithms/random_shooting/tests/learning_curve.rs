//! Planning swings up the pendulum, does the same each time on any number of threads, and refuses what
//! it cannot do.

const RANDOM_SHOOTING: &str = env!("CARGO_BIN_EXE_random_shooting");

#[test]
fn plans_well() {
    regression::check(env!("CARGO_MANIFEST_DIR"), RANDOM_SHOOTING);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "250", "--eval-episodes", "1", "--candidates", "100", "--seed", "7"];
    regression::is_deterministic(RANDOM_SHOOTING, &args);
}

#[test]
fn threads_give_the_same_run() {
    let args = ["--env-id", "FrozenLake-v1", "--total-timesteps", "250", "--eval-episodes", "3"];
    let threads = [&["--threads", "1"][..], &["--threads", "2"], &["--threads", "5"]];
    regression::give_the_same_run(RANDOM_SHOOTING, &args, &threads);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "2000", "--checkpoint-every", "100", "--eval-episodes", "1"];
    regression::resumes(RANDOM_SHOOTING, &args);
}

#[test]
fn evaluation_alone_plans_the_same_episodes() {
    let args = ["--total-timesteps", "50", "--eval-episodes", "3", "--candidates", "100"];
    regression::evaluates_alike(RANDOM_SHOOTING, &args);
}

#[cfg(target_os = "linux")]
#[test]
fn the_evaluation_hears_ctrl_c() {
    regression::hears_ctrl_c_in_evaluation(
        RANDOM_SHOOTING,
        &["--total-timesteps", "10", "--eval-episodes", "1", "--candidates", "100"],
    );
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(RANDOM_SHOOTING, args, mentions);
    refuses(&["--env-id", "Pendulum-v2"], &["Pendulum-v2", "Pendulum-v1"]);
    refuses(&["--horizon", "0"], &["'0'", "--horizon", "at least 1"]);
    refuses(&["--candidates", "many"], &["'many'", "--candidates"]);
    refuses(&["--gamma", "2"], &["'2'", "--gamma", "0 to 1"]);
    refuses(&["--threads", "0"], &["'0'", "--threads"]);
}
