//! MADDPG learns to walk to a landmark and to say which one, the same way each time, also where agents
//! infer each other's policies, and refuses what it cannot do.

const MADDPG: &str = env!("CARGO_BIN_EXE_maddpg");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), MADDPG);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(
        MADDPG,
        &["--total-timesteps", "4000", "--learning-starts", "300", "--eval-episodes", "3", "--seed", "7"],
    );
}

#[test]
fn inferring_policies_is_deterministic_and_evaluates_alike() {
    let args = [
        "--infer-policies=true",
        "--env-id=simple_spread_v3",
        "--total-timesteps=2000",
        "--learning-starts=300",
        "--eval-episodes=3",
    ];
    regression::is_deterministic(MADDPG, &args);
    regression::evaluates_alike(MADDPG, &args);
}

#[test]
fn ensembles_are_deterministic_and_evaluate_alike() {
    let args = [
        "--ensemble-size=3",
        "--infer-policies=true",
        "--total-timesteps=2000",
        "--learning-starts=300",
        "--eval-episodes=10",
    ];
    regression::is_deterministic(MADDPG, &args);
    regression::evaluates_alike(MADDPG, &args);
}

#[test]
fn a_killed_run_of_ensembles_resumes_exactly() {
    // Checkpoints are in the middle of episodes, whose sub-policies play on.
    regression::resumes(
        MADDPG,
        &[
            "--ensemble-size=3",
            "--total-timesteps=16000",
            "--learning-starts=200",
            "--checkpoint-every=1010",
            "--eval-episodes=3",
        ],
    );
}

#[test]
fn a_killed_run_resumes_exactly() {
    // Updates before every checkpoint and after it, so that averages and moments matter.
    regression::resumes(
        MADDPG,
        &[
            "--total-timesteps",
            "16000",
            "--learning-starts",
            "200",
            "--checkpoint-every",
            "1000",
            "--eval-episodes",
            "3",
        ],
    );
}

#[test]
fn a_killed_run_that_infers_policies_resumes_exactly() {
    regression::resumes(
        MADDPG,
        &[
            "--infer-policies=true",
            "--total-timesteps=16000",
            "--learning-starts=200",
            "--checkpoint-every=1000",
            "--eval-episodes=3",
        ],
    );
}

#[test]
fn a_saved_model_evaluates_alike() {
    regression::evaluates_alike(
        MADDPG,
        &["--total-timesteps", "2000", "--learning-starts", "300", "--eval-episodes", "5", "--seed", "7"],
    );
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(MADDPG, args, mentions);
    refuses(&["--env-id", "simple_spraed"], &["simple_spraed", "nearest first: simple_spread_v3, "]);
    refuses(&["--env-id", "CartPole-v1"], &["CartPole-v1", "unknown multi-agent", "simple_v3"]);
    refuses(&["--num-envs", "0"], &["'0'", "--num-envs", "at least 1"]);
    refuses(&["--buffer-size", "0"], &["'0'", "--buffer-size", "at least 1"]);
    refuses(&["--batch-size", "0"], &["'0'", "--batch-size", "at least 1"]);
    refuses(&["--train-frequency", "0"], &["'0'", "--train-frequency", "at least 1"]);
    refuses(&["--learning-starts", "soon"], &["'soon'", "--learning-starts"]);
    refuses(&["--policy-lr=-1"], &["'-1'", "--policy-lr", "at least 0"]);
    refuses(&["--q-lr", "inf"], &["'inf'", "--q-lr", "finite"]);
    refuses(&["--gamma", "1.1"], &["'1.1'", "--gamma", "0 to 1"]);
    refuses(&["--tau", "2"], &["'2'", "--tau", "0 to 1"]);
    refuses(&["--max-grad-norm", "0"], &["'0'", "--max-grad-norm", "above 0"]);
    refuses(&["--hidden-size", "0"], &["'0'", "--hidden-size", "at least 1"]);
    refuses(&["--logit-coef", "NaN"], &["'NaN'", "--logit-coef"]);
    refuses(&["--infer-policies", "maybe"], &["'maybe'", "--infer-policies", "true"]);
    refuses(&["--ensemble-size", "0"], &["'0'", "--ensemble-size", "at least 1"]);
    refuses(&["--ensemble-size", "two"], &["'two'", "--ensemble-size", "at least 1"]);
    refuses(&["--ent-coef=-1"], &["'-1'", "--ent-coef", "at least 0"]);
}
