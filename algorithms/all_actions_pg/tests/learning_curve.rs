//! The all-actions policy gradient learns CartPole with less variance than a sampled one, the same way each
//! time, and refuses what it cannot do.

const ALL_ACTIONS: &str = env!("CARGO_BIN_EXE_all_actions_pg");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), ALL_ACTIONS);
}

/// Means over the first 50,000 steps, of the same states, policy and critic. Of ten seeds a sampled gradient's
/// variance was 2500 to 360,000 times the sum's, and with the baseline 1.9 to 5.5 times, 3.1 on average (standard
/// deviation 1.1).
#[test]
fn the_sum_over_actions_has_less_variance_than_a_sample() {
    let mut advantage_ratio = 0.0;
    for seed in ["1", "2", "3"] {
        let dir = regression::learning::scratch();
        let run_dir = dir.path().join("run").to_string_lossy().into_owned();
        let args = ["--total-timesteps", "50000", "--variance-every", "20", "--eval-episodes", "1"];
        let all = [&args[..], &["--seed", seed, "--run-dir", &run_dir]].concat();
        let (code, _, stderr) = regression::learning::run(ALL_ACTIONS, &all);
        assert_eq!(code, Some(0), "{stderr}");
        let rows = regression::learning::read_metrics(&dir.path().join("run/metrics.csv")).unwrap();
        let mean =
            |of: &str| regression::learning::mean_of_last(&rows, &format!("variance/{of}"), 39).unwrap();
        let [all_actions, sampled, advantage] = ["all_actions", "sampled", "advantage"].map(mean);
        assert!(all_actions > 0.0);
        assert!(sampled > 1000.0 * all_actions, "seed {seed}: {sampled} is not much more than {all_actions}");
        assert!(advantage > all_actions, "seed {seed}: {advantage} is less than {all_actions}");
        advantage_ratio += advantage / all_actions / 3.0;
    }
    assert!(advantage_ratio > 1.5, "{advantage_ratio} is hardly more than 1");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "8000", "--eval-episodes", "3", "--seed", "7", "--variance-every", "20"];
    regression::is_deterministic(ALL_ACTIONS, &args);
    regression::is_deterministic(ALL_ACTIONS, &[&args[..], &["--gradient", "advantage"]].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "60000", "--checkpoint-every", "5000", "--eval-episodes", "3"];
    regression::resumes(ALL_ACTIONS, &[&args[..], &["--variance-every", "70"]].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(ALL_ACTIONS, &["--total-timesteps", "20000", "--eval-episodes", "5"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(ALL_ACTIONS, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "all_actions_pg", "Discrete actions"]);
    refuses(&["--gradient", "expected"], &["'expected'", "--gradient", "all-actions, sampled, advantage"]);
    refuses(&["--critic-updates", "0"], &["'0'", "--critic-updates", "at least 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--num-steps", "9000000000000000000"], &["--num-steps 9000000000000000000", "at most 1e8"]);
    let one = ["--num-envs", "1", "--num-steps", "1", "--variance-every", "1"];
    refuses(&one, &["--num-envs 1", "--num-steps 1", "--variance-every"]);
}
