//! PPO with a KL penalty learns CartPole with either divergence, the same way each time, and refuses what it
//! cannot do.

const PPO_KL: &str = env!("CARGO_BIN_EXE_ppo_kl");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), PPO_KL);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps", "4096", "--eval-episodes", "3", "--seed", "7"];
    regression::is_deterministic(PPO_KL, &args);
    regression::is_deterministic(PPO_KL, &[&args[..], &["--kl-direction", "reverse"]].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps", "40960", "--checkpoint-every", "2048", "--eval-episodes", "3"];
    regression::resumes(PPO_KL, &args);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(PPO_KL, &["--total-timesteps", "20480", "--eval-episodes", "5"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(PPO_KL, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "ppo_kl", "Discrete actions"]);
    refuses(&["--kl-direction", "sideways"], &["'sideways'", "--kl-direction", "forward", "reverse"]);
    refuses(&["--target-kl", "0"], &["'0'", "--target-kl"]);
    refuses(&["--beta", "-1"], &["--beta"]);
    refuses(&["--num-steps", "9000000000000000000"], &["--num-steps 9000000000000000000", "at most 1e8"]);
    refuses(&["--num-minibatches", "3"], &["--num-minibatches 3", "512"]);
    refuses(&["--gamma", "1.5"], &["'1.5'", "--gamma", "0 to 1"]);
}
