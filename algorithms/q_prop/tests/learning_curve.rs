//! Q-Prop learns CartPole, the same way each time, and refuses what it cannot do.

const Q_PROP: &str = env!("CARGO_BIN_EXE_q_prop");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), Q_PROP);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let flags = ["--total-timesteps", "8000", "--eval-episodes", "3", "--seed", "7"];
    regression::is_deterministic(Q_PROP, &flags);
}

/// Also once the buffer has begun to forget.
#[test]
fn a_killed_run_resumes_exactly() {
    let flags = ["--total-timesteps", "16000", "--checkpoint-every", "3000", "--buffer-size", "5000"];
    regression::resumes(Q_PROP, &[&flags[..], &["--eval-episodes", "3", "--variance-every", "20"]].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(Q_PROP, &["--total-timesteps", "8000", "--eval-episodes", "5"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(Q_PROP, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--control-variate", "some"], &["'some'", "--control-variate", "conservative"]);
    let one_step = ["--num-envs=1", "--num-steps=1", "--variance-every=1"];
    refuses(&one_step, &["--num-envs 1", "--num-steps 1", "--variance-every", "two steps or more"]);
    refuses(&["--num-steps", "9000000000000000000"], &["--num-steps 9000000000000000000", "at most 1e8"]);
    refuses(&["--gae-lambda", "2"], &["'2'", "--gae-lambda", "0 to 1"]);
}
