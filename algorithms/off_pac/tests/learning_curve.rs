//! Off-PAC learns to leave the valley from random steps, the same way each time, and refuses what it cannot do.

const OFF_PAC: &str = env!("CARGO_BIN_EXE_off_pac");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), OFF_PAC);
}

/// An episode that ends soon.
const CORRIDOR: [&str; 7] = [
    "--env-id=ShortCorridor-v0",
    "--tilings=0",
    "--critic=etd",
    "--lambda=0.5",
    "--policy-lr=0.001",
    "--value-lr=0.01",
    "--eval-episodes=3",
];

#[test]
fn the_same_seed_gives_the_same_run() {
    let args = ["--total-timesteps=10000", "--eval-episodes=1", "--seed=7"];
    regression::is_deterministic(OFF_PAC, &args);
    regression::is_deterministic(OFF_PAC, &[&args[..1], &CORRIDOR].concat());
}

#[test]
fn a_killed_run_resumes_exactly() {
    let args = ["--total-timesteps=150000", "--checkpoint-every=7001", "--eval-episodes=1", "--lambda=0.5"];
    regression::resumes(OFF_PAC, &args);
    regression::resumes(OFF_PAC, &[&args[..2], &CORRIDOR].concat());
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(OFF_PAC, &["--total-timesteps=100000", "--eval-episodes=3"]);
    let greedy = ["--total-timesteps=100000", "--eval-episodes=3", "--greedy-eval=true"];
    regression::evaluates_alike(OFF_PAC, &greedy);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(OFF_PAC, args, mentions);
    refuses(&["--env-id", "FrozenLake-v1"], &["FrozenLake-v1", "Box observations", "Discrete(16)"]);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "--tilings 16", "bounded"]);
    refuses(&["--env-id", "MinAtar/Breakout-v1"], &["MinAtar/Breakout-v1", "400 numbers", "too many"]);
    refuses(&["--behaviour", "1,1"], &["--behaviour", "2 numbers", "3 actions"]);
    refuses(&["--behaviour", "1,0,1"], &["'0'", "--behaviour"]);
    refuses(&["--initial-preferences", "1,2"], &["--initial-preferences", "2 numbers", "3 actions"]);
    refuses(&["--initial-values", "1,2"], &["--initial-values", "2 numbers", "1297 features"]);
    refuses(&["--critic", "q"], &["'q'", "--critic", "gtd-as-printed"]);
    refuses(&["--lambda", "1.5"], &["'1.5'", "--lambda", "0 to 1"]);
    refuses(&["--tiles", "0"], &["'0'", "--tiles", "at least 1"]);
    refuses(&["--value-lr=-1"], &["'-1'", "--value-lr"]);
}
