//! How a run ends that goes wrong: what it says, what it has saved by then, and what it leaves.

use clap::Parser;
use common::Run;
use common::cli::{self, RunArgs};
use common::envs::persist::Persist;
use common::envs::{InvalidInput, Result};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

#[derive(Parser, Serialize)]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
}

/// A run in `dir`, which is to checkpoint every `every` steps.
fn start(dir: &Path, every: usize) -> Result<Run> {
    start_with(&[&format!("--run-dir={}", dir.display()), &format!("--checkpoint-every={every}")])
}

fn start_with(flags: &[&str]) -> Result<Run> {
    let all = ["toy", "--env-id=CartPole-v1", "--total-timesteps=100"].iter().chain(flags);
    let args: Args = cli::parse_from(all.map(Into::into))?;
    Run::start("toy", &args.run, &args)
}

/// One step of training after another, until one fails: `learn` gets the run and the step.
fn train(run: &mut Run, state: &mut u64, learn: impl Fn(&mut Run, usize) -> Result<()>) -> Result<()> {
    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(&mut global_step, &mut [("state", state)])?;
        global_step += 1;
        *state += 1;
        learn(run, global_step)?;
    }
    Ok(())
}

/// Logs a loss that is NaN from step `from` on.
fn diverge(from: usize) -> impl Fn(&mut Run, usize) -> Result<()> {
    move |run, step| run.log(step, "losses/policy_loss", if step < from { 0.5 } else { f64::NAN })
}

/// Something whose state nobody can get at.
struct Sealed;

impl Persist for Sealed {
    fn save(&self) -> Result<Vec<u8>> {
        anyhow::bail!("it is sealed")
    }
    fn load(&mut self, _: &[u8]) -> Result<()> {
        anyhow::bail!("it is sealed")
    }
}

/// The number saved under `name` in a checkpoint file.
fn saved(file: &Path, name: &str) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut number = 0_u64;
    number.load(tensors.tensor(name).unwrap().data()).unwrap();
    number
}

/// Leaves a run in `dir` that has made its hundred steps.
fn finish(dir: &Path) {
    let mut run = start(dir, 50).unwrap();
    train(&mut run, &mut 0, diverge(1000)).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_run_that_diverges_saves_its_state_and_leaves_the_last_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let mut run = start(&dir, 10).unwrap();
    let error = train(&mut run, &mut 1000, diverge(25)).unwrap_err().to_string();
    let diverged = dir.join("diverged.safetensors");
    let what = "losses/policy_loss is NaN at step 25: the run has diverged; its state is in";
    assert_eq!(error, format!("{what} {}", diverged.display()));
    drop(run);
    assert_eq!((saved(&diverged, "state"), saved(&diverged, "global_step")), (1025, 25));
    let checkpoint = dir.join("checkpoint.safetensors");
    assert_eq!((saved(&checkpoint, "state"), saved(&checkpoint, "global_step")), (1020, 20));
    let metrics = std::fs::read_to_string(dir.join("metrics.csv")).unwrap();
    assert_eq!(metrics.lines().count(), 1 + 24, "{metrics}");
    assert!(!metrics.contains("NaN"), "{metrics}");

    // It goes on from there, with what made it diverge mended.
    let mut resumed = start_with(&[&format!("--resume={}", dir.display())]).unwrap();
    let mut state = 0;
    train(&mut resumed, &mut state, diverge(1000)).unwrap();
    assert_eq!(state, 1100);
}

#[test]
fn a_run_that_diverges_in_its_last_iteration_saves_its_model() {
    let scratch = tempfile::tempdir().unwrap();
    let mut run = start(scratch.path(), 0).unwrap();
    train(&mut run, &mut 0, diverge(100)).unwrap();
    let mut model = vec![1.0_f64, f64::NAN];
    let error = run.save_or_load_model(&mut model).unwrap_err().to_string();
    assert!(error.starts_with("losses/policy_loss is NaN at step 100: the run has diverged"), "{error}");
    let bytes = std::fs::read(scratch.path().join("diverged.safetensors")).unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().names(), ["table"]);
    assert!(!scratch.path().join("model.safetensors").exists());
}

#[test]
fn a_run_that_diverges_without_a_model_is_not_evaluated() {
    let ends: [fn(Run) -> Result<cli::Evaluation>; 2] = [
        |run| run.evaluate(|_| -> Result<Vec<u32>> { panic!("the policy is asked") }),
        |run| run.finish(&[1.0], 1.0),
    ];
    for end in ends {
        let scratch = tempfile::tempdir().unwrap();
        let mut run = start(scratch.path(), 0).unwrap();
        run.log(99, "losses/policy_loss", f64::NAN).unwrap();
        let error = end(run).unwrap_err().to_string();
        assert!(error.starts_with("losses/policy_loss is NaN at step 99"), "{error}");
        assert!(!scratch.path().join("summary.json").exists());
    }
    // A return that is not finite ends it as well.
    let scratch = tempfile::tempdir().unwrap();
    let error = start(scratch.path(), 0).unwrap().finish(&[f64::INFINITY], 1.0).unwrap_err().to_string();
    assert_eq!(error, "eval/episodic_return is inf at step 100: the run has diverged");
}

#[test]
fn what_cannot_be_saved_is_refused_before_training_and_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let mut run = start(&dir, 50).unwrap();
    let error = run.resume_or_checkpoint(&mut 0, &mut [("envs", &mut Sealed)]).unwrap_err();
    assert!(error.is::<InvalidInput>(), "{error:#}");
    let message = "--checkpoint-every 50: this run cannot be saved: saving envs: it is sealed";
    assert_eq!(error.to_string(), message);
    drop(run);
    assert!(!dir.exists());

    // Without the flag the run goes on without checkpoints.
    let mut run = start_with(&[&format!("--run-dir={}", dir.display())]).unwrap();
    run.resume_or_checkpoint(&mut 0, &mut [("envs", &mut Sealed)]).unwrap();

    // Files of others stay.
    let dir = scratch.path().join("other");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("notes.txt"), "mine").unwrap();
    let mut run = start(&dir, 50).unwrap();
    run.resume_or_checkpoint(&mut 0, &mut [("envs", &mut Sealed)]).unwrap_err();
    drop(run);
    assert_eq!(names(&dir), ["notes.txt"]);
}

#[test]
fn the_first_checkpoint_comes_before_training() {
    let scratch = tempfile::tempdir().unwrap();
    let mut run = start(scratch.path(), 50).unwrap();
    run.resume_or_checkpoint(&mut 0, &mut [("state", &mut 7_u64)]).unwrap();
    drop(run);
    assert_eq!(saved(&scratch.path().join("checkpoint.safetensors"), "state"), 7);
    assert!(names(scratch.path()).iter().all(|name| !name.starts_with('.')), "{:?}", names(scratch.path()));
}

#[test]
fn a_run_without_a_checkpoint_can_only_begin_anew() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().display().to_string();
    drop(start(scratch.path(), 0).unwrap());
    let refused = |result: Result<Run>| {
        let error = result.err().expect("refused");
        assert!(error.is::<InvalidInput>(), "{error:#}");
        error.to_string()
    };
    let none = "there is none; the run ended before its first checkpoint";
    let error = refused(start_with(&[&format!("--resume={dir}")]));
    assert_eq!(error, format!("--resume {dir}/checkpoint.safetensors: {none}"));
    let advice = "it has no checkpoint to continue from, so remove it or name another";
    assert_eq!(refused(start(scratch.path(), 0)), format!("--run-dir {dir}: holds a run already; {advice}"));
}

#[test]
fn metrics_cut_short_by_others_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().display().to_string();
    finish(scratch.path());
    std::fs::write(scratch.path().join("metrics.csv"), "global_step,wall_seconds,tag,value\n").unwrap();
    let error = start_with(&[&format!("--resume={dir}")]).err().expect("refused").to_string();
    let wanted = format!("--resume {dir}: metrics.csv has 35 bytes, resuming needs its first ");
    assert!(error.starts_with(&wanted), "{error}");
}

#[test]
fn a_checkpoint_that_does_not_fit_changes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    finish(scratch.path());
    let files =
        || names(scratch.path()).into_iter().map(|name| std::fs::read(scratch.path().join(name)).unwrap());
    let before: Vec<_> = files().collect();
    let resume = format!("--resume={}", scratch.path().display());
    let mut run = start_with(&[&resume, "--total-timesteps=200"]).unwrap();
    let error = run.resume_or_checkpoint(&mut 0, &mut [("state", &mut Sealed)]).unwrap_err();
    assert!(error.to_string().ends_with("state does not fit this run: it is sealed"), "{error:#}");
    drop(run);
    assert!(files().eq(before), "a file has changed");
}

/// A flag that is given beside `--resume` is part of the run from then on.
#[test]
fn a_resumed_run_keeps_its_new_flags() {
    let scratch = tempfile::tempdir().unwrap();
    finish(scratch.path());
    let resume = |flags: &[&str]| {
        let dir = format!("--resume={}", scratch.path().display());
        let argv = ["toy", dir.as_str()].into_iter().chain(flags.iter().copied());
        let args: Args = cli::parse_from(argv.map(Into::into)).unwrap();
        let (mut run, mut state) = (Run::start("toy", &args.run, &args).unwrap(), 0);
        train(&mut run, &mut state, diverge(1000)).unwrap();
        state
    };
    assert_eq!(resume(&[]), 100);
    assert_eq!(resume(&["--total-timesteps=200"]), 200);
    assert_eq!(resume(&[]), 200);
}

/// Its schedules would go on beyond their end, to negative step sizes.
#[test]
fn a_resumed_run_does_not_end_before_its_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    finish(scratch.path());
    let step = saved(&scratch.path().join("checkpoint.safetensors"), "global_step");
    assert!(step > 1);
    let resume = format!("--resume={}", scratch.path().display());
    let error = start_with(&[&resume, &format!("--total-timesteps={step}")]).err().expect("refused");
    assert!(error.is::<InvalidInput>(), "{error:#}");
    let words =
        format!("--total-timesteps {step}: the run in {} is at step {step}", scratch.path().display());
    assert_eq!(error.to_string(), words);
    start_with(&[&resume, &format!("--total-timesteps={}", step + 1)]).unwrap();
}

/// Python's own environments have no pictures here: said before training, not after it.
#[test]
fn a_film_of_what_cannot_be_drawn_is_refused_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let flags = ["--env-id=gym:CartPole-v1", "--capture-video", &format!("--run-dir={}", dir.display())];
    let error = start_with(&flags).err().expect("refused");
    assert_eq!(error.to_string(), "--capture-video: gym:CartPole-v1 cannot be drawn");
    assert!(error.is::<InvalidInput>() && !dir.exists());
}

/// Algorithms that have no tensors do not open a device themselves.
#[test]
#[cfg(not(feature = "metal"))]
fn a_device_that_is_not_there_is_refused_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let error = start_with(&["--device=metal", &format!("--run-dir={}", dir.display())]);
    let error = error.err().expect("built without it");
    assert!(error.to_string().starts_with("--device metal: cannot be opened"), "{error:#}");
    assert!(error.is::<InvalidInput>() && !dir.exists());
}

/// A flag that its checkpoint is shaped by cannot be given another value.
#[test]
fn a_resumed_run_keeps_its_seed() {
    let scratch = tempfile::tempdir().unwrap();
    finish(scratch.path());
    let config = scratch.path().join("config.toml");
    let before = std::fs::read_to_string(&config).unwrap();
    let resume = format!("--resume={}", scratch.path().display());
    let refused = || {
        let error = start_with(&[&resume, "--seed=2"]).err().expect("refused");
        assert!(error.is::<InvalidInput>(), "{error:#}");
        error.to_string()
    };
    let run = format!("the run in {}", scratch.path().display());
    assert_eq!(refused(), format!("--seed 2: {run} has --seed 1 and keeps it"));
    assert_eq!(std::fs::read_to_string(&config).unwrap(), before);
    start_with(&[&resume, "--seed=1", "--eval-episodes=7", "--exp-name=other"]).unwrap();
    // As with a flag that was not given at first and has no default.
    std::fs::write(&config, before.replace("seed = 1\n", "")).unwrap();
    assert_eq!(refused(), format!("--seed 2: {run} has none and keeps it"));
}

/// A run that is killed between the last two moves of its last checkpoint writes no other.
#[test]
fn a_resumed_run_removes_what_is_left_of_a_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    finish(scratch.path());
    let before = names(scratch.path());
    std::fs::create_dir(scratch.path().join(".checkpoint.safetensors.partial")).unwrap();
    let resume = format!("--resume={}", scratch.path().display());
    train(&mut start_with(&[&resume]).unwrap(), &mut 0, diverge(1000)).unwrap();
    assert_eq!(names(scratch.path()), before);
}

#[test]
fn records_that_are_gone_are_refused() {
    for prefix in ["metrics.csv", "events.out"] {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().display().to_string();
        finish(scratch.path());
        let name = names(scratch.path()).into_iter().find(|name| name.starts_with(prefix)).unwrap();
        std::fs::remove_file(scratch.path().join(&name)).unwrap();
        let error = start_with(&[&format!("--resume={dir}")]).err().expect("refused");
        assert!(error.is::<InvalidInput>(), "{error:#}");
        assert!(error.to_string().starts_with(&format!("--resume {dir}: {name}: ")), "{error}");
    }
}

/// How a program of its own ends that trains in `dir` and gets Ctrl-C so many times (or `until` it has
/// ended) in a row: its exit code and what it says.
#[cfg(unix)]
fn interrupted(dir: &Path, times: &str) -> (Option<i32>, String) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["a_program_that_is_interrupted", "--exact", "--ignored", "--nocapture"])
        .env("RUN_DIR", dir)
        .env("TIMES", times)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[cfg(unix)]
#[test]
fn the_first_interrupt_saves_the_run_and_the_second_ends_it_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("first");
    let (code, says) = interrupted(&dir, "1");
    let end = format!("interrupted at step 3; continue with --resume {}\n", dir.display());
    assert_eq!(code, Some(3), "{says}");
    assert!(says.contains("interrupted: "), "{says}");
    assert!(says.ends_with(&end), "{says}");
    assert_eq!(saved(&dir.join("checkpoint.safetensors"), "state"), 7);

    // A terminal and a program that runs others may both pass on the same request.
    let dir = scratch.path().join("same");
    let (code, says) = interrupted(&dir, "2");
    assert_eq!(code, Some(3), "{says}");
    assert_eq!(says.matches("interrupted: ").count(), 1, "{says}");
    assert_eq!(saved(&dir.join("checkpoint.safetensors"), "state"), 7);

    let dir = scratch.path().join("second");
    let (code, says) = interrupted(&dir, "until");
    assert_eq!(code, Some(130), "{says}");
    assert!(says.ends_with("interrupted again: nothing is saved\n"), "{says}");
}

/// `nohup` starts a program with SIGHUP ignored.
#[cfg(unix)]
#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["a_program_that_is_interrupted", "--exact", "--ignored", "--nocapture"])
        .env("RUN_DIR", &dir)
        .env("TIMES", "1")
        .env("HANGUPS", "2")
        .output()
        .unwrap();
    let says = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{says}");
    assert!(says.contains("interrupted at step 3"), "{says}");
}

/// Not a test: what [`interrupted`] runs.
#[cfg(unix)]
#[test]
#[ignore = "a program for other tests"]
fn a_program_that_is_interrupted() {
    let Some(dir) = std::env::var_os("RUN_DIR") else { return };
    let times = std::env::var("TIMES").unwrap();
    let dir = format!("--run-dir={}", Path::new(&dir).display());
    let argv = ["toy", "--env-id=CartPole-v1", "--total-timesteps=1000000000", "--checkpoint-every=0", &dir];
    let args: Args = cli::parse_from(argv.map(Into::into)).unwrap();
    let mut run = Run::start("toy", &args.run, &args).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let send = |signal: &str, times: usize| {
        let kill = format!("kill -{signal} {}; ", std::process::id()).repeat(times);
        assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    };
    send("HUP", std::env::var("HANGUPS").map_or(0, |number| number.parse().unwrap()));
    if times == "until" {
        while Instant::now() < deadline {
            send("INT", 1);
        }
        panic!("the second interruption was not noticed");
    }
    send("INT", times.parse().unwrap());
    let mut state = 7_u64;
    let error = loop {
        assert!(Instant::now() < deadline, "the interruption was not noticed");
        if let Err(error) = run.resume_or_checkpoint(&mut 3, &mut [("state", &mut state)]) {
            break error;
        }
    };
    eprintln!("{error}");
    std::process::exit(3);
}
