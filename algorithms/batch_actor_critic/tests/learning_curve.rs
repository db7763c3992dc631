//! Batch actor-critic learns CartPole with each of its critics, the same way each time, and refuses what it
//! cannot do.

const ACTOR_CRITIC: &str = env!("CARGO_BIN_EXE_batch_actor_critic");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), ACTOR_CRITIC);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "4000", "--eval-episodes", "3", "--seed", "7"];
    regression::is_deterministic(ACTOR_CRITIC, &args);
    let n_step = ["--critic", "n-step", "--n-step", "5", "--target-updates", "2"];
    regression::is_deterministic(ACTOR_CRITIC, &[&args[..], &n_step].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "60000", "--checkpoint-every", "5000", "--eval-episodes", "3"];
    regression::resumes(ACTOR_CRITIC, &args);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(ACTOR_CRITIC, &["--total-timesteps", "20000", "--eval-episodes", "5"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(ACTOR_CRITIC, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "batch_actor_critic", "Discrete actions"]);
    refuses(&["--critic", "gae"], &["'gae'", "--critic", "mc, td, n-step"]);
    refuses(&["--n-step", "0"], &["'0'", "--n-step", "at least 1"]);
    refuses(&["--target-updates", "0"], &["'0'", "--target-updates", "at least 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
}
