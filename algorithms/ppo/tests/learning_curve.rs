//! PPO learns CartPole, the same way each time, and refuses what it cannot do.

const PPO: &str = env!("CARGO_BIN_EXE_ppo");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), PPO);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(PPO, &["--total-timesteps", "4096", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(
        PPO,
        &["--total-timesteps", "40960", "--checkpoint-every", "2048", "--eval-episodes", "3"],
    );
}

#[test]
fn a_run_killed_at_any_moment_resumes_exactly() {
    let args = ["--total-timesteps", "20480", "--checkpoint-every", "512", "--eval-episodes", "3"];
    regression::survives_kills(PPO, &args, 20, 1);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(PPO, &["--total-timesteps", "4096", "--eval-episodes", "5", "--seed", "7"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(PPO, args, mentions);
    refuses(&["--lerning-rate", "1"], &["--lerning-rate", "--learning-rate"]);
    refuses(&["--env-id", "CartPole"], &["CartPole-v1, "]);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions", "Box([1])"]);
    refuses(&["--total-timesteps", "0"], &["'0'", "--total-timesteps", "at least 1"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--num-envs", "two"], &["'two'", "--num-envs"]);
    refuses(&["--num-steps", "9000000000000000000"], &["--num-steps 9000000000000000000", "at most 1e8"]);
    refuses(&["--num-minibatches", "3"], &["--num-minibatches 3", "512"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--learning-rate", "NaN"], &["'NaN'", "--learning-rate"]);
    refuses(&["--device", "tpu"], &["'tpu'", "cpu"]);
    refuses(&["--run-dir", "/proc/none"], &["--run-dir", "/proc/none"]);
    refuses(&["--config", "/none.toml"], &["--config", "/none.toml"]);
}
