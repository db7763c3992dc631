//! Q-learning learns the way along the cliff, the same way each time, and refuses what it cannot do.

const Q_LEARNING: &str = env!("CARGO_BIN_EXE_q_learning");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), Q_LEARNING);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "2000", "--eval-episodes", "3", "--seed", "7"];
    regression::is_deterministic(Q_LEARNING, &args);
    regression::is_deterministic(Q_LEARNING, &[&args[..], &["--double"]].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "200000", "--checkpoint-every", "10000", "--eval-episodes", "3"];
    regression::resumes(Q_LEARNING, &args);
    regression::resumes(Q_LEARNING, &[&args[..], &["--double", "--total-episodes", "4000"]].concat());
}

#[test]
fn a_saved_model_evaluates_alike() {
    let args = ["--env-id", "FrozenLake-v1", "--total-timesteps", "5000", "--start-e", "1", "--seed", "7"];
    regression::evaluates_alike(Q_LEARNING, &args);
    regression::evaluates_alike(Q_LEARNING, &[&args[..], &["--double"]].concat());
}

#[test]
fn the_number_of_episodes_is_exact() {
    let dir = regression::learning::scratch();
    let run_dir = dir.path().join("run");
    let run_dir_text = run_dir.to_string_lossy();
    let args = ["--run-dir", &*run_dir_text, "--total-episodes", "30", "--eval-episodes", "1"];
    let (code, _, stderr) = regression::learning::run(Q_LEARNING, &args);
    assert_eq!(code, Some(0), "{stderr}");
    let rows = regression::learning::read_metrics(&run_dir.join("metrics.csv")).unwrap();
    assert_eq!(rows.iter().filter(|row| row.tag == "charts/episodic_return").count(), 30);
}

#[test]
fn an_evaluation_that_would_never_end_is_cut_off() {
    // CliffWalking has no time limit, and one step teaches no policy that finds the goal.
    let dir = regression::learning::scratch();
    let run_dir = dir.path().join("run");
    let run_dir_text = run_dir.to_string_lossy();
    let args = ["--run-dir", &*run_dir_text, "--total-timesteps", "1", "--eval-episodes", "2"];
    let (code, stdout, stderr) = regression::learning::run(Q_LEARNING, &args);
    assert_eq!(code, Some(0), "{stderr}");
    // 27,000 steps at −1, or at −100 if that one step has taught to walk into the cliff.
    let ends = ["-27000.00", "-2700000.00"]
        .map(|mean| format!("eval/episodic_return mean={mean} std=0.00 episodes=2\n"));
    assert!(ends.iter().any(|end| stdout.ends_with(end)), "{stdout}");
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(Q_LEARNING, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "Discrete observations", "Box([4])"]);
    refuses(&["--env-id", "Blackjack-v1"], &["Blackjack-v1", "Discrete observations", "Tuple"]);
    refuses(&["--total-episodes", "0"], &["'0'", "--total-episodes", "at least 1"]);
    refuses(&["--learning-rate", "1.5"], &["'1.5'", "--learning-rate", "0 to 1"]);
    refuses(&["--start-e", "2"], &["'2'", "--start-e", "0 to 1"]);
    refuses(&["--gamma", "NaN"], &["'NaN'", "--gamma", "0 to 1"]);
}
