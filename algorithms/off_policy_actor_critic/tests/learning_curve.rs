//! The off-policy actor-critic learns CartPole, the same way each time, and refuses what it cannot do.

const PROGRAM: &str = env!("CARGO_BIN_EXE_off_policy_actor_critic");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), PROGRAM);
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
