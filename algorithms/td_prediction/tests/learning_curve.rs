//! Predictions of random walks get better, the same way each time, and refused is what cannot be done.

const TD_PREDICTION: &str = env!("CARGO_BIN_EXE_td_prediction");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), TD_PREDICTION);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for method in ["td", "true-online", "batch-td"] {
        regression::is_deterministic(
            TD_PREDICTION,
            &["--method", method, "--eval-episodes", "3", "--seed", "7"],
        );
    }
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "100000", "--checkpoint-every", "5000", "--eval-episodes", "3"];
    for method in ["lambda-return", "td-lambda", "true-online"] {
        regression::resumes(TD_PREDICTION, &[&args[..], &["--method", method]].concat());
    }
}

#[test]
fn a_saved_model_evaluates_alike() {
    regression::evaluates_alike(TD_PREDICTION, &["--seed", "7"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(TD_PREDICTION, args, mentions);
    refuses(&["--env-id", "Baird-v0"], &["Baird-v0", "Discrete observations"]);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "transition model", "RandomWalk19-v0"]);
    refuses(&["--env-id", "BlockingMaze-v0"], &["BlockingMaze-v0", "transition model"]);
    refuses(&["--method", "sarsa"], &["'sarsa'", "--method", "true-online"]);
    refuses(&["--trace", "long"], &["'long'", "--trace", "replacing"]);
    refuses(&["--n-step", "0"], &["'0'", "--n-step", "at least 1"]);
    refuses(&["--lambda", "1.5"], &["'1.5'", "--lambda", "0 to 1"]);
    refuses(&["--gamma", "NaN"], &["'NaN'", "--gamma", "0 to 1"]);
    refuses(&["--learning-rate", "-1"], &["'-1'", "--learning-rate"]);
}
