//! A network learns from local controllers, the same way each time, and what cannot be planned is refused.

const GUIDED_POLICY_SEARCH: &str = env!("CARGO_BIN_EXE_guided_policy_search");

/// A run in which everything is short.
const SHORT: [&str; 4] =
    ["--num-controllers=2", "--total-timesteps=800", "--updates=20", "--eval-episodes=3"];

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), GUIDED_POLICY_SEARCH);
}

/// The teachers of a round play from the states in which the policy's episodes of that round begin, and are
/// bound to what it can learn. Before it learns from the last ones it costs at most 1/0.95 of what they cost.
#[test]
fn the_policy_keeps_up_with_its_teachers() {
    let dir = regression::learning::scratch();
    let run_dir = dir.path().join("run");
    let flags = ["--run-dir", &*run_dir.to_string_lossy(), "--eval-episodes=1"];
    let (code, _, stderr) = regression::learning::run(GUIDED_POLICY_SEARCH, &flags);
    assert_eq!(code, Some(0), "{stderr}");
    let rows = regression::learning::read_metrics(&run_dir.join("metrics.csv")).unwrap();
    let reached = |metric, last| regression::learning::mean_of_last(&rows, metric, last).unwrap();
    // A round is of 40 controllers.
    let (teachers, policy) = (reached("charts/controller_return", 1), reached("charts/episodic_return", 40));
    assert!(policy >= teachers / 0.95, "{policy} of its teachers' {teachers}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(GUIDED_POLICY_SEARCH, &[&SHORT[..], &["--seed=7"]].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let flags = ["--total-timesteps=8000", "--checkpoint-every=400"];
    regression::resumes(GUIDED_POLICY_SEARCH, &[&SHORT[..], &flags].concat());
}

#[test]
fn a_trained_policy_evaluates_alike() {
    regression::evaluates_alike(GUIDED_POLICY_SEARCH, &SHORT);
}

#[test]
fn refuses_bad_input() {
    let refuses =
        |args: &[&str], mentions: &[&str]| regression::refuses(GUIDED_POLICY_SEARCH, args, mentions);
    refuses(
        &["--env-id", "CartPole-v1"],
        &["CartPole-v1", "guided_policy_search", "Box actions", "Discrete(2)"],
    );
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Discrete(16)"]);
    refuses(&["--env-id", "LaplacianSystem-v0"], &["--env-id LaplacianSystem-v0: ", "steps are random"]);
    refuses(&["--env-id", "ContinuousCartPole-v0"], &["--env-id ContinuousCartPole-v0: ", "end episodes"]);
    refuses(&["--num-controllers", "0"], &["'0'", "--num-controllers", "at least 1"]);
    refuses(&["--growth", "0"], &["'0'", "--growth", "at least 1"]);
    refuses(&["--temperature", "-1"], &["'-1'", "--temperature", "at least 0"]);
    refuses(&["--least-std", "0"], &["'0'", "--least-std", "above 0"]);
    refuses(&["--batch-size", "0"], &["'0'", "--batch-size", "at least 1"]);
    refuses(&["--hidden-size", "0"], &["'0'", "--hidden-size", "at least 1"]);
    refuses(&["--kl-bound", "0"], &["'0'", "--kl-bound", "above 0"]);
    refuses(&["--learning-rate", "-1"], &["'-1'", "--learning-rate", "at least 0"]);
    refuses(&["--updates", "many"], &["'many'", "--updates"]);
}
