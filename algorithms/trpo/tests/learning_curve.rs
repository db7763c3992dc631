//! TRPO learns CartPole and Pendulum, the same way each time, and refuses what it cannot do.

const TRPO: &str = env!("CARGO_BIN_EXE_trpo");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), TRPO);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(TRPO, &["--total-timesteps", "6000", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    for flags in [&["--env-id=CartPole-v1"][..], &["--env-id=Pendulum-v1", "--norm-obs"]] {
        let steps = &["--total-timesteps", "20000", "--checkpoint-every", "2000", "--eval-episodes", "3"][..];
        regression::resumes(TRPO, &[steps, flags].concat());
    }
}

#[test]
fn a_trained_model_evaluates_alike() {
    for flags in [&["--env-id=CartPole-v1"][..], &["--env-id=Pendulum-v1", "--norm-obs"]] {
        let steps = &["--total-timesteps", "6000", "--eval-episodes", "5"][..];
        regression::evaluates_alike(TRPO, &[steps, flags].concat());
    }
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(TRPO, args, mentions);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--num-steps", "0"], &["'0'", "--num-steps", "at least 1"]);
    refuses(&["--target-kl", "0"], &["'0'", "--target-kl", "above 0"]);
    refuses(&["--cg-damping=-1"], &["'-1'", "--cg-damping", "at least 0"]);
    refuses(&["--line-search-shrinking-factor", "2"], &["'2'", "--line-search-shrinking-factor", "0 to 1"]);
    refuses(&["--gae-lambda=-0.1"], &["'-0.1'", "--gae-lambda", "0 to 1"]);
}
