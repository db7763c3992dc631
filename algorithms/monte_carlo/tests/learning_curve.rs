//! Monte Carlo control learns Blackjack, the same way each time, and refuses what it cannot do.

const MONTE_CARLO: &str = env!("CARGO_BIN_EXE_monte_carlo");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), MONTE_CARLO);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "5000", "--eval-episodes", "100", "--seed", "7"];
    for method in ["exploring-starts", "epsilon-soft", "off-policy"] {
        regression::is_deterministic(MONTE_CARLO, &[&args[..], &["--method", method]].concat());
    }
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "300000", "--checkpoint-every", "15000", "--eval-episodes", "100"];
    regression::resumes(MONTE_CARLO, &args);
}

#[test]
fn a_saved_model_evaluates_alike() {
    let args = ["--total-timesteps", "20000", "--eval-episodes", "100", "--seed", "7"];
    regression::evaluates_alike(MONTE_CARLO, &args);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(MONTE_CARLO, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "Discrete observations", "Box([4])"]);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--method", "sarsa"], &["'sarsa'", "--method", "off-policy"]);
    let elsewhere = ["--env-id", "FrozenLake-v1", "--stick-from", "20"];
    refuses(&elsewhere, &["--stick-from 20", "Blackjack-v1", "not of FrozenLake-v1"]);
    refuses(&["--log-every", "0"], &["'0'", "--log-every", "at least 1"]);
    refuses(&["--epsilon", "2"], &["'2'", "--epsilon", "0 to 1"]);
    refuses(&["--gamma", "NaN"], &["'NaN'", "--gamma", "0 to 1"]);
}
