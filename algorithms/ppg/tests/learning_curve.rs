//! PPG learns CartPole, the same way each time, and refuses what it cannot do.

const PPG: &str = env!("CARGO_BIN_EXE_ppg");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), PPG);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(PPG, &["--total-timesteps", "8192", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    // Within a policy phase, whose rollouts the next auxiliary phase needs.
    regression::resumes(
        PPG,
        &["--total-timesteps", "20480", "--checkpoint-every", "1536", "--eval-episodes", "3"],
    );
}

#[test]
fn a_trained_model_evaluates_alike() {
    for env_id in ["CartPole-v1", "MinAtar/Breakout-v1"] {
        let flags = ["--total-timesteps", "4096", "--eval-episodes", "5", "--env-id", env_id];
        regression::evaluates_alike(PPG, &flags);
    }
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(PPG, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions", "Box([1])"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--num-steps", "9000000000000000000"], &["--num-steps 9000000000000000000", "at most 1e8"]);
    refuses(&["--num-minibatches", "0"], &["'0'", "--num-minibatches", "at least 1"]);
    refuses(&["--n-iteration", "0"], &["'0'", "--n-iteration", "at least 1"]);
    refuses(&["--beta-clone", "-1"], &["'-1'", "--beta-clone"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
}
