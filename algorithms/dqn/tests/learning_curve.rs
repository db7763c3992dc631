//! DQN learns CartPole, the same way each time, and refuses what it cannot do.

const DQN: &str = env!("CARGO_BIN_EXE_dqn");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), DQN);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(DQN, &["--total-timesteps", "4000", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(
        DQN,
        &[
            "--total-timesteps",
            "6000",
            "--checkpoint-every",
            "1500",
            "--eval-episodes",
            "3",
            "--hidden-sizes",
            "64",
        ],
    );
}

#[test]
fn a_run_killed_at_any_moment_resumes_exactly() {
    regression::survives_kills(
        DQN,
        &[
            "--total-timesteps",
            "4000",
            "--learning-starts",
            "500",
            "--checkpoint-every",
            "100",
            "--eval-episodes",
            "3",
            "--hidden-sizes",
            "32",
        ],
        20,
        2,
    );
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(DQN, &["--total-timesteps", "4000", "--eval-episodes", "5", "--seed", "7"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(DQN, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--hidden-sizes", "64,x"], &["'x'", "--hidden-sizes"]);
    refuses(&["--start-e", "2"], &["'2'", "--start-e", "0 to 1"]);
    refuses(&["--clip-error", "maybe"], &["'maybe'", "--clip-error", "true"]);
    refuses(&["--train-frequency", "-1"], &["--train-frequency"]);
}
