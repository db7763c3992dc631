//! DQN with prioritised replay learns CartPole, the same way each time, and refuses what it cannot do.

const PRIORITIZED_DQN: &str = env!("CARGO_BIN_EXE_prioritized_dqn");

/// A short run that gets as far as learning.
const SHORT: &[&str] = &["--total-timesteps=3000", "--hidden-sizes=32", "--eval-episodes=3", "--seed=7"];

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), PRIORITIZED_DQN);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(PRIORITIZED_DQN, SHORT);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(PRIORITIZED_DQN, SHORT);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(PRIORITIZED_DQN, &[SHORT, &["--num-envs=2", "--checkpoint-every=700"]].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(PRIORITIZED_DQN, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "prioritized_dqn", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--buffer-size", "1e12"], &["--buffer-size 1000000000000", "134217728"]);
    refuses(&["--adam-eps", "0"], &["'0'", "--adam-eps", "above 0"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--prioritized-replay-alpha", "2"], &["'2'", "--prioritized-replay-alpha", "0 to 1"]);
    refuses(&["--prioritized-replay-beta", "-1"], &["'-1'", "--prioritized-replay-beta", "0 to 1"]);
    refuses(&["--prioritized-replay-eps", "0"], &["'0'", "--prioritized-replay-eps", "above 0"]);
    refuses(&["--train-frequency", "-1"], &["--train-frequency"]);
}
