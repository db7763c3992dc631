//! A2C learns CartPole, the same way each time, and refuses what it cannot do.

const A2C: &str = env!("CARGO_BIN_EXE_a2c");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), A2C);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(A2C, &["--total-timesteps", "20000", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    for flags in [&["--env-id=CartPole-v1"][..], &["--env-id=Pendulum-v1", "--norm-obs", "--norm-reward"]] {
        let steps = &["--total-timesteps", "60000", "--checkpoint-every", "4000", "--eval-episodes", "3"][..];
        regression::resumes(A2C, &[steps, flags].concat());
    }
}

#[test]
fn a_trained_model_evaluates_alike() {
    for flags in [&["--env-id=CartPole-v1"][..], &["--env-id=Pendulum-v1", "--norm-obs", "--norm-reward"]] {
        let steps = &["--total-timesteps", "20000", "--eval-episodes", "5"][..];
        regression::evaluates_alike(A2C, &[steps, flags].concat());
    }
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(A2C, args, mentions);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--num-steps", "0"], &["'0'", "--num-steps", "at least 1"]);
    refuses(&["--rms-eps", "0"], &["'0'", "--rms-eps", "above 0"]);
    refuses(&["--rms-alpha", "1.5"], &["'1.5'", "--rms-alpha", "0 to 1"]);
    refuses(&["--max-grad-norm", "0"], &["'0'", "--max-grad-norm", "above 0"]);
}
