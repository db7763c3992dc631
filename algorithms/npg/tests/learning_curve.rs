//! The natural policy gradient learns CartPole, the same way each time, and refuses what it cannot do.

const NPG: &str = env!("CARGO_BIN_EXE_npg");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), NPG);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(NPG, &["--total-timesteps", "6000", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let steps = ["--total-timesteps", "20000", "--checkpoint-every", "2000", "--eval-episodes", "3"];
    regression::resumes(NPG, &steps);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(NPG, &["--total-timesteps", "6000", "--eval-episodes", "5"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(NPG, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "npg", "Discrete actions"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--num-steps", "0"], &["'0'", "--num-steps", "at least 1"]);
    refuses(&["--target-kl", "0"], &["'0'", "--target-kl", "above 0"]);
    refuses(&["--cg-damping=-1"], &["'-1'", "--cg-damping", "at least 0"]);
    refuses(&["--gae-lambda=-0.1"], &["'-0.1'", "--gae-lambda", "0 to 1"]);
}
