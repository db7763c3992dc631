//! Actor-critic with traces swings up a pendulum and finds the short corridor's stochastic policy, the
//! same way each time, and refuses what it cannot do.

const ACTOR_CRITIC: &str = env!("CARGO_BIN_EXE_actor_critic_traces");

/// The episodic form on a discrete task.
const EPISODIC: [&str; 8] = [
    "--env-id",
    "ShortCorridor-v0",
    "--tilings",
    "0",
    "--average-reward",
    "false",
    "--discount-gradient",
    "true",
];

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), ACTOR_CRITIC);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "4000", "--eval-episodes", "1", "--seed", "7"];
    regression::is_deterministic(ACTOR_CRITIC, &args);
    regression::is_deterministic(ACTOR_CRITIC, &[&args[..], &EPISODIC].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "120000", "--checkpoint-every", "7000", "--eval-episodes", "1"];
    regression::resumes(ACTOR_CRITIC, &args);
    let args = ["--total-timesteps", "300000", "--checkpoint-every", "10001", "--eval-episodes", "3"];
    regression::resumes(ACTOR_CRITIC, &[&args[..], &EPISODIC].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    let args = ["--total-timesteps", "20000", "--eval-episodes", "2"];
    regression::evaluates_alike(ACTOR_CRITIC, &args);
    let sampled = [&args[..], &EPISODIC, &["--greedy-eval", "false"]].concat();
    regression::evaluates_alike(ACTOR_CRITIC, &sampled);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(ACTOR_CRITIC, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "--tilings 10", "--tilings 0"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--env-id", "MinAtar/Breakout-v1"], &["MinAtar/Breakout-v1", "400 numbers", "too many"]);
    refuses(&["--actor-lambda", "1.5"], &["'1.5'", "--actor-lambda", "0 to 1"]);
    refuses(&["--tiles", "0"], &["'0'", "--tiles", "at least 1"]);
    refuses(&["--initial-preferences", "1,2"], &["--initial-preferences", "2 numbers", "Box([1])"]);
    refuses(&["--average-reward-lr", "-1"], &["--average-reward-lr"]);
}
