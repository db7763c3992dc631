//! The off-policy actor-critic learns CartPole, the same way each time, and refuses what it cannot do.

const PROGRAM: &str = env!("CARGO_BIN_EXE_off_policy_actor_critic");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), PROGRAM);
}

/// The mean return of the episodes that end in the second half of 25,000 steps.
fn learned(seed: &str, flags: &[&str]) -> f64 {
    let dir = regression::learning::scratch();
    let run_dir = dir.path().join("run").to_string_lossy().into_owned();
    let args = ["--total-timesteps", "25000", "--eval-episodes", "1", "--seed", seed, "--run-dir", &run_dir];
    let (code, _, stderr) = regression::learning::run(PROGRAM, &[&args[..], flags].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let rows = regression::learning::read_metrics(&dir.path().join("run/metrics.csv")).unwrap();
    let returns = rows.iter().filter(|row| row.tag == "charts/episodic_return" && row.step > 12_500.0);
    let returns: Vec<f64> = returns.map(|row| row.value).collect();
    returns.iter().sum::<f64>() / returns.len() as f64
}

/// What replay promises: of ten seeds the mean return with it is 303 (standard deviation 68), and 79 (14) without:
/// with eight draws, not 128, from what eight environments have just done, each step once on average.
#[test]
fn what_is_replayed_teaches_more_than_what_is_seen_once() {
    let no_replay = ["--buffer-size", "8", "--batch-size", "8", "--learning-starts", "8"];
    let mean = |flags: &[&str]| ["1", "2", "3"].iter().map(|seed| learned(seed, flags)).sum::<f64>() / 3.0;
    let (replay, once) = (mean(&[]), mean(&no_replay));
    assert!(replay > 2.0 * once, "{replay} with replay, {once} without");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let flags = ["--total-timesteps", "6000", "--eval-episodes", "3", "--seed", "7"];
    regression::is_deterministic(PROGRAM, &flags);
}

/// Also once the buffer has begun to forget.
#[test]
fn a_killed_run_resumes_exactly() {
    let flags = ["--total-timesteps", "12000", "--checkpoint-every", "3000", "--buffer-size", "4000"];
    regression::resumes(PROGRAM, &[&flags[..], &["--eval-episodes", "3"]].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(PROGRAM, &["--total-timesteps", "6000", "--eval-episodes", "5"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(PROGRAM, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--tau", "2"], &["'2'", "--tau", "0 to 1"]);
    refuses(&["--baseline", "maybe"], &["'maybe'", "--baseline", "true"]);
}
