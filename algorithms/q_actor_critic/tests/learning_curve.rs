//! Action-value actor-critic learns CartPole, the same way each time, and refuses what it cannot do.

const ACTOR_CRITIC: &str = env!("CARGO_BIN_EXE_q_actor_critic");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), ACTOR_CRITIC);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "4000", "--eval-episodes", "3", "--seed", "7"];
    regression::is_deterministic(ACTOR_CRITIC, &args);
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
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "q_actor_critic", "Discrete actions"]);
    refuses(&["--optimizer", "lbfgs"], &["'lbfgs'", "--optimizer", "adam, sgd"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
    refuses(&["--q-lr", "-1"], &["'-1'", "--q-lr"]);
}
