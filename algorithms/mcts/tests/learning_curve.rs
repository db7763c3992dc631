//! Tree search wins at tic-tac-toe and balances a pole, does the same each time, and refuses what it
//! cannot do.

const MCTS: &str = env!("CARGO_BIN_EXE_mcts");

#[test]
fn plans_well() {
    regression::check(env!("CARGO_MANIFEST_DIR"), MCTS);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(MCTS, &["--total-timesteps", "60", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let two_players = ["--two-player-model", "TicTacToe-v0-both"];
    let args = ["--total-timesteps", "1000", "--checkpoint-every", "50", "--eval-episodes", "1"];
    regression::resumes(MCTS, &[&args[..], &two_players].concat());
}

#[test]
fn evaluation_alone_plans_the_same_episodes() {
    regression::evaluates_alike(MCTS, &["--total-timesteps", "20", "--eval-episodes", "10"]);
}

#[cfg(target_os = "linux")]
#[test]
fn the_evaluation_hears_ctrl_c() {
    regression::hears_ctrl_c_in_evaluation(MCTS, &["--total-timesteps", "10", "--eval-episodes", "1"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(MCTS, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "mcts", "Discrete actions", "Box"]);
    let model = "--two-player-model";
    refuses(&[model, "CartPole-v1"], &[model, "CartPole-v1", "Discrete(2)", "TicTacToe-v0", "Discrete(9)"]);
    refuses(&[model, "TicTacToe-v0-second"], &["TicTacToe-v0-second", "in turn", "TicTacToe-v0-both"]);
    refuses(&["--env-id", "CartPole-v1", model, "CartPole-v1"], &["CartPole-v1", "TicTacToe-v0-both"]);
    refuses(&["--num-simulations", "0"], &["'0'", "--num-simulations", "at least 1"]);
    refuses(&["--horizon", "0"], &["'0'", "--horizon", "at least 1"]);
    refuses(&["--exploration", "-1"], &["'-1'", "--exploration", "at least 0"]);
    refuses(&["--env-id", "TicTacToe-v0-both"], &["TicTacToe-v0-both", "--two-player-model"]);
    refuses(&["--gamma", "2"], &["'2'", "--gamma", "0 to 1"]);
}
