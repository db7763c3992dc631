//! Planning in latent states swings up a pendulum whose velocity is not seen, does the same each time, and
//! refuses what it cannot do.

const LATENT_MPC: &str = env!("CARGO_BIN_EXE_latent_mpc");

/// A run in which everything is short.
const SHORT: [&str; 8] = [
    "--total-timesteps=450",
    "--learning-starts=200",
    "--updates=1",
    "--batch-size=32",
    "--horizon=5",
    "--population=8",
    "--elites=2",
    "--eval-episodes=2",
];

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), LATENT_MPC);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(LATENT_MPC, &[&SHORT[..], &["--seed=7", "--stochastic"]].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let flags = ["--total-timesteps=2000", "--checkpoint-every=150"];
    regression::resumes(LATENT_MPC, &[&SHORT[..], &flags].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(LATENT_MPC, &SHORT);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(LATENT_MPC, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "RescaleAction", "Discrete(2)"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--env-id", "MinAtar/Breakout-v1"], &["MinAtar/Breakout-v1", "vectors", "Box"]);
    refuses(&["--elites", "400"], &["--elites 400", "--population"]);
    refuses(&["--window", "0"], &["'0'", "--window", "at least 1"]);
    refuses(&["--difference-scale", "-1"], &["'-1'", "--difference-scale", "above 0"]);
    refuses(&["--stochastic", "maybe"], &["'maybe'", "--stochastic", "true"]);
}
