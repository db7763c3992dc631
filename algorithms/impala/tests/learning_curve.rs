//! IMPALA learns CartPole, the same way each time and on any number of workers where it says so, and
//! refuses what it cannot do.

const IMPALA: &str = env!("CARGO_BIN_EXE_impala");

#[test]
fn learns() {
    regression::check("impala", IMPALA);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(
        IMPALA,
        &["--total-timesteps", "30000", "--eval-episodes", "3", "--seed", "7"],
    );
}

#[test]
fn a_killed_run_resumes_exactly() {
    let steps = ["--total-timesteps", "200000", "--checkpoint-every", "10000", "--eval-episodes", "3"];
    regression::resumes(IMPALA, &steps);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(IMPALA, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--workers", "0"], &["'0'", "--workers", "at least 1"]);
    refuses(&["--learning-rate", "-1"], &["'-1'", "--learning-rate"]);
}
