//! ES learns CartPole, the same way each time and on any number of workers, and refuses what it
//! cannot do.

const ES: &str = env!("CARGO_BIN_EXE_es");

#[test]
fn learns() {
    regression::check(env!("CARGO_MANIFEST_DIR"), ES);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    regression::is_deterministic(ES, &["--total-timesteps", "30000", "--eval-episodes", "3", "--seed", "7"]);
}

#[test]
fn any_number_of_workers_gives_the_same_run() {
    let workers = [&["--workers", "1"][..], &["--workers", "2"], &["--workers", "8"]];
    regression::give_the_same_run(ES, &["--total-timesteps", "30000", "--eval-episodes", "3"], &workers);
    // MinAtar repeats an episode's last move in the next one, but not in one that begins from a seed.
    let minatar = ["--env-id", "MinAtar/Breakout-v1", "--total-timesteps", "2000", "--eval-episodes", "1"];
    regression::give_the_same_run(ES, &minatar, &workers);
}

#[test]
fn a_killed_run_resumes_exactly() {
    let steps = ["--total-timesteps", "200000", "--checkpoint-every", "10000", "--eval-episodes", "3"];
    regression::resumes(ES, &steps);
}

#[test]
fn a_run_killed_at_any_moment_resumes_exactly() {
    let args = ["--total-timesteps", "60000", "--checkpoint-every", "1000", "--eval-episodes", "3"];
    regression::survives_kills(ES, &args, 20, 4);
}

#[test]
fn a_trained_model_evaluates_alike() {
    regression::evaluates_alike(ES, &["--total-timesteps", "30000", "--eval-episodes", "5"]);
}

#[test]
fn refuses_bad_input() {
    let refuses = |args: &[&str], mentions: &[&str]| regression::refuses(ES, args, mentions);
    refuses(&["--env-id", "Pendulum-v1"], &["Pendulum-v1", "Discrete actions"]);
    refuses(&["--workers", "0"], &["'0'", "--workers", "at least 1"]);
    refuses(&["--workers", "257"], &["--workers 257", "at most 256"]);
    refuses(&["--learning-rate", "-1"], &["'-1'", "--learning-rate"]);
    refuses(&["--sigma", "0"], &["'0'", "--sigma", "above 0"]);
    refuses(&["--population-size", "63"], &["--population-size 63", "even"]);
    refuses(&["--weight-decay", "inf"], &["'inf'", "--weight-decay"]);
    refuses(&["--hidden-sizes", "64,0"], &["'0'", "--hidden-sizes", "at least 1"]);
    refuses(&["--run-dir", "/proc/none"], &["--run-dir", "/proc/none"]);
}

#[test]
fn refuses_another_number_of_processes_than_workers() {
    // What mpirun tells each of the processes that it starts.
    let mut command = std::process::Command::new(ES);
    let output = command.env("OMPI_COMM_WORLD_SIZE", "3").args(["--workers", "2"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr, "error: --workers 2: mpirun started 3 processes; give --workers 3\n");
}
