//! One-step actor-critic learns CartPole and swings up a pendulum, the same way each time, and refuses
//! what it cannot do.

const ACTOR_CRITIC: &str = env!("CARGO_BIN_EXE_actor_critic");

/// The continuing form over tiles, with plain steps.
const CONTINUING: [&str; 7] = [
    "--env-id=SwingPendulum-v0-discrete",
    "--tilings=10",
    "--average-reward",
    "--optimizer=sgd",
    "--policy-lr=0.0045",
    "--value-lr=0.045",
    "--anneal-lr=false",
];

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), ACTOR_CRITIC);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps=4000", "--eval-episodes=1", "--seed=7"];
    regression::is_deterministic(ACTOR_CRITIC, &args);
    regression::is_deterministic(ACTOR_CRITIC, &[&args[..], &CONTINUING].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps=20000", "--checkpoint-every=2001", "--eval-episodes=1"];
    regression::resumes(ACTOR_CRITIC, &[&args[..], &["--discount-gradient"]].concat());
    regression::resumes(ACTOR_CRITIC, &[&args[..], &CONTINUING].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    let args = ["--total-timesteps=10000", "--eval-episodes=2"];
    regression::evaluates_alike(ACTOR_CRITIC, &args);
    regression::evaluates_alike(ACTOR_CRITIC, &[&args[..], &CONTINUING].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(ACTOR_CRITIC, args, mentions);
    refuses(&["--env-id", "SwingPendulum-v0"], &["SwingPendulum-v0", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--tilings", "8"], &["CartPole-v1", "--tilings 8", "bounded"]);
    refuses(&["--env-id", "MinAtar/Breakout-v1", "--tilings", "4"], &["400 numbers", "too many"]);
    refuses(&["--optimizer", "lbfgs"], &["'lbfgs'", "--optimizer", "adam", "sgd"]);
    refuses(&["--hidden-size", "0"], &["'0'", "--hidden-size", "at least 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
}
