//! An ensemble balances the pole by planning, the same way each time, and refuses what it cannot do.

const PETS: &str = env!("CARGO_BIN_EXE_pets");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), PETS);
}

/// A short run that gets as far as planning.
const SHORT: &[&str] = &[
    "--learning-starts=60",
    "--train-frequency=40",
    "--horizon=6",
    "--population=8",
    "--hidden-size=16",
    "--eval-episodes=2",
    "--seed=7",
];

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(PETS, &[SHORT, &["--total-timesteps=200"]].concat());
}

#[test]
fn threads_give_the_same_run() {
    let args = ["--total-timesteps", "210", "--eval-episodes", "1", "--update-epochs", "2", "--horizon", "8"];
    let threads = [&["--threads", "1"][..], &["--threads", "2"], &["--threads", "3"]];
    regression::give_the_same_run(PETS, &args, &threads);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps=1500", "--checkpoint-every=90"];
    regression::resumes(PETS, &[SHORT, &args].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(PETS, &[SHORT, &["--total-timesteps=150"]].concat());
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(PETS, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "pets", "ContinuousCartPole-v0"]);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "pets"]);
    refuses(&["--elites", "400"], &["--elites 400", "--population"]);
    refuses(&["--ts-infinity", "2"], &["'2'", "--ts-infinity"]);
    refuses(&["--particles", "0"], &["'0'", "--particles", "at least 1"]);
    refuses(&["--ensemble-size", "0"], &["'0'", "--ensemble-size", "at least 1"]);
    refuses(&["--smoothing", "2"], &["'2'", "--smoothing", "0 to 1"]);
    refuses(&["--silu", "maybe"], &["'maybe'", "--silu"]);
}
