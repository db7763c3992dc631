//! Linear SARSA gets the mountain car out of its valley, the same way each time, and refuses what it cannot
//! do.

const LINEAR_SARSA: &str = env!("CARGO_BIN_EXE_linear_sarsa");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), LINEAR_SARSA);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "10000", "--eval-episodes", "3", "--seed", "7"];
    for method in ["n-step", "lambda", "true-online"] {
        regression::is_deterministic(LINEAR_SARSA, &[&args[..], &["--method", method]].concat());
    }
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "60000", "--checkpoint-every", "3000", "--eval-episodes", "3"];
    regression::resumes(LINEAR_SARSA, &[&args[..], &["--method", "true-online"]].concat());
    regression::resumes(LINEAR_SARSA, &[&args[..], &["--method", "n-step", "--n-step", "4"]].concat());
}

#[test]
fn a_saved_model_evaluates_alike() {
    regression::evaluates_alike(LINEAR_SARSA, &["--total-timesteps", "20000", "--seed", "7"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(LINEAR_SARSA, args, mentions);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations", "Discrete(16)"]);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "bounded observations", "Box([4])"]);
    refuses(&["--env-id", "MinAtar/Breakout-v1"], &["MinAtar/Breakout-v1", "400 numbers", "too many"]);
    refuses(&["--basis", "fourier", "--order", "4000"], &["MountainCarTextbook-v0", "4001 points"]);
    refuses(&["--basis", "radial", "--order", "1000"], &["1001 points", "> 100000"]);
    refuses(&["--tiles", "100000"], &["100001 points", "> 20000000"]);
    refuses(&["--tilings", "1000000000"], &["1000000000 x 9 points"]);
    refuses(&["--tiles", "9223372036854775807"], &["too many"]);
    refuses(&["--method", "q"], &["'q'", "--method", "true-online"]);
    refuses(&["--trace", "long"], &["'long'", "--trace", "replacing-clearing"]);
    refuses(&["--basis", "wavelets"], &["'wavelets'", "--basis", "fourier"]);
    refuses(&["--n-step", "0"], &["'0'", "--n-step", "at least 1"]);
    refuses(&["--tilings", "0"], &["'0'", "--tilings", "at least 1"]);
    refuses(&["--lambda", "1.5"], &["'1.5'", "--lambda", "0 to 1"]);
    refuses(&["--learning-rate", "-1"], &["'-1'", "--learning-rate"]);
}
