//! ACER learns CartPole, the same way each time, and refuses what it cannot do.

const ACER: &str = env!("CARGO_BIN_EXE_acer");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), ACER);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(ACER, &["--total-timesteps", "8000", "--eval-episodes", "3", "--seed", "7"]);
}

/// Also once the buffer has begun to forget.
#[test]
fn a_killed_run_resumes_exactly() {
    let flags = ["--total-timesteps", "16000", "--checkpoint-every", "3000", "--buffer-size", "5000"];
    regression::resumes(ACER, &[&flags[..], &["--eval-episodes", "3"]].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(ACER, &["--total-timesteps", "8000", "--eval-episodes", "5"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(ACER, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--num-steps", "9000000000000000000"], &["--num-steps 9000000000000000000", "at most 1e8"]);
    refuses(&["--replay-ratio", "0"], &["'0'", "--replay-ratio", "above 0"]);
    refuses(&["--delta", "0"], &["'0'", "--delta", "above 0"]);
    refuses(&["--average-decay", "1.5"], &["'1.5'", "--average-decay", "0 to 1"]);
}
