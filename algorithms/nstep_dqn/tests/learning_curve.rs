//! DQN with n-step returns learns CartPole, the same way each time, and refuses what it cannot do.

const NSTEP_DQN: &str = env!("CARGO_BIN_EXE_nstep_dqn");

/// A short run that gets as far as learning.
const SHORT: &[&str] = &["--total-timesteps=3000", "--hidden-sizes=32", "--eval-episodes=3", "--seed=7"];

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), NSTEP_DQN);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(NSTEP_DQN, SHORT);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(NSTEP_DQN, SHORT);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(NSTEP_DQN, &[SHORT, &["--num-envs=2", "--checkpoint-every=700"]].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(NSTEP_DQN, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "nstep_dqn", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--n-step", "0"], &["'0'", "--n-step", "at least 1"]);
    let few = ["--learning-starts=10", "--n-step=7", "--num-envs=2"];
    refuses(&few, &["--learning-starts 10", "--n-step", "--num-envs"]);
    refuses(&["--train-frequency", "-1"], &["--train-frequency"]);
}
