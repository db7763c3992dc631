//! Planning swings up the pendulum, does the same each time, and refuses what it cannot do.

const CEM: &str = env!("CARGO_BIN_EXE_cem");

#[test]
fn plans_well() {
    regression::check("cem", CEM);
}

#[test]
fn seed_and_nothing_else_decides_a_run() {
    let dir = regression::learning::scratch();
    // Neither a second run nor evaluation on several threads changes a number.
    let metrics = ["1", "1", "3"].iter().enumerate().map(|(i, threads)| {
        let run_dir = dir.path().join(i.to_string());
        let run_dir_text = run_dir.to_string_lossy().into_owned();
        let flags = ["--total-timesteps", "250", "--eval-episodes", "5", "--seed", "7", "--threads", threads];
        let (code, _, stderr) =
            regression::learning::run(CEM, &[&flags[..], &["--run-dir", &run_dir_text]].concat());
        assert_eq!(code, Some(0), "{stderr}");
        regression::learning::timeless_metrics(&run_dir)
    });
    let metrics: Vec<String> = metrics.collect();
    assert!(metrics[0].contains("250,eval/episodic_return"), "{}", metrics[0]);
    assert_eq!(metrics[0], metrics[1]);
    assert_eq!(metrics[0], metrics[2]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(CEM, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "cem", "Box actions", "Discrete(2)"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Discrete(16)"]);
    refuses(&["--horizon", "0"], &["'0'", "--horizon", "at least 1"]);
    refuses(&["--elites", "65"], &["--elites 65", "--population = 64"]);
    refuses(&["--iterations", "none"], &["'none'", "--iterations"]);
    refuses(&["--smoothing", "2"], &["'2'", "--smoothing", "0 to 1"]);
}
