//! PPO with a Gaussian policy learns Pendulum and InvertedPendulum, the same way each time, and
//! refuses what it cannot do.

const PPO_CONTINUOUS: &str = env!("CARGO_BIN_EXE_ppo_continuous");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), PPO_CONTINUOUS);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "4096", "--num-envs", "2", "--eval-episodes", "3", "--seed", "7"];
    regression::is_deterministic(PPO_CONTINUOUS, &args);
}

/// The statistics that normalise observations are in the model.
#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(PPO_CONTINUOUS, &["--total-timesteps=8192", "--eval-episodes=3"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    regression::resumes(
        PPO_CONTINUOUS,
        &["--total-timesteps", "16384", "--checkpoint-every", "2048", "--eval-episodes", "3"],
    );
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(PPO_CONTINUOUS, args, mentions);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "ppo_continuous", "Box actions", "Discrete(2)"]);
    refuses(&["--num-minibatches", "3"], &["--num-minibatches 3", "2048"]);
    refuses(&["--num-minibatches", "0"], &["'0'", "--num-minibatches", "at least 1"]);
    refuses(&["--num-steps", "9000000000000000000"], &["--num-steps 9000000000000000000", "at most 1e8"]);
    refuses(&["--num-steps", "0"], &["'0'", "--num-steps", "at least 1"]);
    refuses(&["--gae-lambda=-0.1"], &["'-0.1'", "--gae-lambda", "0 to 1"]);
    refuses(&["--clip-coef", "inf"], &["'inf'", "--clip-coef", "finite"]);
    refuses(&["--max-grad-norm", "0"], &["'0'", "--max-grad-norm", "above 0"]);
    refuses(&["--target-kl", "0"], &["'0'", "--target-kl", "above 0"]);
}
