//! ES learns CartPole, the same way each time and on any number of workers where it says so, and
//! refuses what it cannot do.

const ES: &str = env!("CARGO_BIN_EXE_es");

#[test]
fn learns() {
    regression::check("es", ES);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(ES, &["--total-timesteps", "30000", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let steps = ["--total-timesteps", "200000", "--checkpoint-every", "10000", "--eval-episodes", "3"];
    regression::resumes(ES, &steps);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(ES, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--workers", "0"], &["'0'", "--workers", "at least 1"]);
    refuses(&["--learning-rate", "-1"], &["'-1'", "--learning-rate"]);
}
