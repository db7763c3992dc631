//! A student reaches its teacher on one task and on two, the same way each time, and refuses what it
//! cannot do.

const POLICY_DISTILLATION: &str = env!("CARGO_BIN_EXE_policy_distillation");

/// A run of two tasks in which everything is short.
const SHORT: [&str; 6] = [
    "--further-env-ids=Acrobot-v1",
    "--total-timesteps=8000",
    "--generations=2",
    "--population=8",
    "--elites=2",
    "--eval-episodes=3",
];

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), POLICY_DISTILLATION);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(POLICY_DISTILLATION, &[&SHORT[..], &["--seed=7"]].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let flags = ["--total-timesteps=40000", "--checkpoint-every=3000"];
    regression::resumes(POLICY_DISTILLATION, &[&SHORT[..], &flags].concat());
}

#[test]
fn a_trained_student_evaluates_alike() {
    regression::evaluates_alike(POLICY_DISTILLATION, &SHORT);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(POLICY_DISTILLATION, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--further-env-ids", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations"]);
    refuses(&["--loss", "l1"], &["'l1'", "--loss", "cross-entropy"]);
    refuses(&["--temperature", "0"], &["'0'", "--temperature", "above 0"]);
    refuses(&["--teachers", "none.safetensors"], &["--teachers none.safetensors", "not a model"]);
    refuses(&["--elites", "65"], &["--elites 65", "--population = 64"]);
    refuses(&["--extra-variance=-1"], &["'-1'", "--extra-variance", "at least 0"]);
    let two = ["--teachers", "a.safetensors,b.safetensors"];
    refuses(&two, &["--teachers", "2 models for 1 tasks", "one for each"]);
}
