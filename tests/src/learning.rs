//! Learning tests: runs the real program of an algorithm and holds what it learned against the
//! `thresholds.toml` in its folder.

use crate::process::{self, DEADLINE};
use crate::thresholds::{self, Direction, Entry, Thresholds};
use anyhow::{Context, Result, bail, ensure};
use common::checkpoint::{self, Checkpoint};
use common::cli::Evaluation;
use envs::Rng;
use rand::RngExt;
use serde::Deserialize;
use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Runs `binary`, the program of the package in the folder `manifest_dir`, through every gate of its
/// `tests/thresholds.toml`: all seeds of all gates in a pool over the cores, each run with a deadline.
/// Panics with a readable report if a gate is missed. Gates on MuJoCo's tasks are skipped, with a
/// line that says so, where MuJoCo is not installed, unless `REQUIRE_MUJOCO=1` is set.
/// Meant for the algorithm's `tests/learning_curve.rs`:
///
/// ```ignore
/// #[test]
/// fn learns() {
///     regression::check(env!("CARGO_MANIFEST_DIR"), env!("CARGO_BIN_EXE_ppo"));
/// }
/// ```
pub fn check(manifest_dir: &str, binary: &str) {
    let thresholds = thresholds::read(Path::new(manifest_dir)).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(!thresholds.gate.is_empty(), "{manifest_dir}/tests/thresholds.toml has no gate");
    let failures = failures(&thresholds, binary, DEADLINE);
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// What every gate that is missed has to say.
fn failures(thresholds: &Thresholds, binary: &str, deadline: Duration) -> Vec<String> {
    let algorithm = thresholds.algorithm.as_str();
    let mut gates = Vec::new();
    for gate in &thresholds.gate {
        match skipped(&gate.env_id) {
            None => gates.push(gate),
            // Not `eprintln!`: the test harness swallows what a passing test prints with it.
            Some(reason) => {
                let _ = writeln!(std::io::stderr(), "SKIPPED {algorithm} on {}: {reason}", gate.env_id);
            }
        }
    }
    let jobs: VecDeque<(&Entry, u64)> =
        gates.iter().flat_map(|gate| gate.seeds.iter().map(move |&seed| (*gate, seed))).collect();
    let (number, jobs) = (jobs.len(), Mutex::new(jobs.into_iter().enumerate()));
    let results: Mutex<Vec<Option<Result<SeedResult>>>> = Mutex::new((0..number).map(|_| None).collect());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(number) {
            scope.spawn(|| {
                while let Some((i, (gate, seed))) = lock(&jobs).next() {
                    let result = run_seed(gate, seed, binary, deadline);
                    let of = || format!("{algorithm} on {}, seed {seed}", gate.env_id);
                    lock(&results)[i] = Some(result.with_context(of));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten();
    let mut failures = Vec::new();
    for gate in gates {
        // All of them are taken, whether one has failed or not.
        let of_gate: Vec<_> = results.by_ref().take(gate.seeds.len()).collect();
        let of_gate: Result<Vec<_>> = of_gate.into_iter().collect();
        match of_gate.and_then(|results| judge(algorithm, gate, &results)) {
            Ok(report) => println!("{report}"),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    failures
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why runs on `env_id` are skipped, if they are: it is a task of MuJoCo's, MuJoCo is not
/// installed, and no `REQUIRE_MUJOCO=1` asks for the failure.
pub fn skipped(env_id: &str) -> Option<String> {
    let is_mujoco = envs::mujoco::registered().iter().any(|task| task.id == env_id);
    let required = std::env::var("REQUIRE_MUJOCO").is_ok_and(|value| value == "1");
    let error = envs::make(env_id).err().filter(|_| is_mujoco && !required)?;
    Some(format!("{error:#}"))
}

/// What one seed reached.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedResult {
    /// The seed.
    pub seed: u64,
    /// Mean of the gate's metric over its last rows.
    pub value: f64,
    /// (step, episodic return) of every training episode.
    pub returns: Vec<(f64, f64)>,
}

/// Trains with one seed in a process of its own.
fn run_seed(gate: &Entry, seed: u64, binary: &str, deadline: Duration) -> Result<SeedResult> {
    let dir = tempfile::tempdir()?;
    let run_dir = dir.path().join("run");
    let mut command = Command::new(binary);
    command
        .args(["--env-id", &gate.env_id])
        .args(["--total-timesteps", &gate.steps.to_string()])
        .args(["--seed", &seed.to_string()])
        .arg("--run-dir")
        .arg(&run_dir)
        .args(&gate.args);
    let output = process::output(&mut command, deadline)?;
    if !output.status.success() {
        bail!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    read_result(gate, seed, &run_dir)
}

fn read_result(gate: &Entry, seed: u64, run_dir: &Path) -> Result<SeedResult> {
    let rows = read_metrics(&run_dir.join("metrics.csv"))?;
    let value = mean_of_last(&rows, &gate.metric, gate.last)?;
    let returns = rows.iter().filter(|row| row.tag == "charts/episodic_return");
    Ok(SeedResult { seed, value, returns: returns.map(|row| (row.step, row.value)).collect() })
}

/// Mean of the last `last` rows of `metric`.
///
/// # Errors
/// Fewer such rows than that.
pub fn mean_of_last(rows: &[Row], metric: &str, last: usize) -> Result<f64> {
    let values: Vec<f64> = rows.iter().filter(|row| row.tag == metric).map(|row| row.value).collect();
    ensure!(values.len() >= last, "metrics.csv has {} rows of {metric}, {last} are needed", values.len(),);
    Ok(values[values.len() - last..].iter().sum::<f64>() / last as f64)
}

/// One row of `metrics.csv`.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Environment steps so far.
    pub step: f64,
    /// Name of the metric.
    pub tag: String,
    /// Its value.
    pub value: f64,
}

/// Reads a `metrics.csv`.
///
/// # Errors
/// A file that is missing or has a row that is not `global_step,wall_seconds,tag,value`.
pub fn read_metrics(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut lines = text.lines();
    ensure!(lines.next() == Some("global_step,wall_seconds,tag,value"), "{}: no header", path.display());
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let [step, _, tag, value] = fields[..] else { bail!("{}: row {line:?}", path.display()) };
            Ok(Row { step: step.parse()?, tag: tag.to_string(), value: value.parse()? })
        })
        .collect()
}

/// What is read of a run's `summary.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Summary {
    /// Environment steps trained for.
    pub total_timesteps: usize,
    /// Training time.
    pub wall_seconds: f64,
    /// Environment steps a second while training.
    pub sps: f64,
    /// What the trained agent reached.
    pub eval: Evaluation,
    /// Version of the algorithm's package.
    pub version: String,
    /// The processor.
    pub cpu: String,
}

impl Summary {
    /// Reads the summary of a finished run.
    ///
    /// # Errors
    /// A run that is not finished.
    pub fn read(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join("summary.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
}

/// The middle of `values`, of which there is at least one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Compares the median of `results` with the gate's threshold and the worst of them with its floor:
/// a line that says it passed, or a report.
fn judge(algorithm: &str, gate: &Entry, results: &[SeedResult]) -> Result<String> {
    let (threshold, floor) = (gate.threshold.unwrap_or(f64::NAN), gate.floor.unwrap_or(f64::NAN));
    // More is better in these.
    let score = |value: f64| match gate.direction {
        _ if value.is_nan() => f64::NEG_INFINITY,
        Direction::Max => value,
        Direction::Min => -value,
        Direction::Equal => -(value - threshold).abs(),
    };
    let values: Vec<f64> = results.iter().map(|result| result.value).collect();
    let worst = values.iter().copied().min_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap_or(f64::NAN);
    let reached = median(&values);
    let (wanted, at_worst, median_passes, worst_passes) = match gate.direction {
        Direction::Max => (
            format!("at least {threshold}"),
            format!("at least {floor}"),
            reached >= threshold,
            worst >= floor,
        ),
        Direction::Min => {
            (format!("at most {threshold}"), format!("at most {floor}"), reached <= threshold, worst <= floor)
        }
        Direction::Equal => (
            format!("{threshold} to within {}", gate.tolerance),
            format!("to within {floor}"),
            (reached - threshold).abs() <= gate.tolerance,
            (worst - threshold).abs() <= floor,
        ),
    };
    let seeds: Vec<String> =
        results.iter().map(|result| format!("seed {}: {:.6}", result.seed, result.value)).collect();
    let line = format!(
        "{algorithm} on {} after {} steps: median {} = {reached:.6}, expected {wanted}; worst {worst:.6}, \
         expected {at_worst} ({})",
        gate.env_id,
        gate.steps,
        gate.metric,
        seeds.join(", "),
    );
    if median_passes && worst_passes {
        return Ok(line);
    }
    let curves: String = results
        .iter()
        .map(|result| format!("seed {}\n{}", result.seed, text_curve(&result.returns)))
        .collect();
    bail!(
        "{line}\nsource of the threshold: {}\nthe floor: {}\nepisodic return while training:\n{curves}",
        gate.source,
        gate.floor_reason
    )
}

/// A curve as text: ten rows of the mean return over a tenth of the run each.
fn text_curve(returns: &[(f64, f64)]) -> String {
    let end = returns.iter().map(|r| r.0).fold(0.0, f64::max);
    let (low, high) =
        returns.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), r| (l.min(r.1), h.max(r.1)));
    let mut text = String::new();
    for tenth in 1..=10 {
        let range = end * f64::from(tenth - 1) / 10.0..=end * f64::from(tenth) / 10.0;
        let values: Vec<f64> = returns.iter().filter(|r| range.contains(&r.0)).map(|r| r.1).collect();
        if values.is_empty() {
            continue;
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let width = (40.0 * (mean - low) / (high - low).max(1e-9)).round() as usize;
        text += &format!("{:>10.0} {:<40} {mean:.2}\n", range.end(), "█".repeat(width));
    }
    text
}

/// A folder for a test's run directories, removed at the end of the test.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder: {error}"))
}

/// Runs `binary` with `args` and returns its exit code, standard output and standard error.
pub fn run(binary: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let output = process::output(Command::new(binary).args(args), DEADLINE);
    let output = output.unwrap_or_else(|error| panic!("{binary} {args:?}: {error:#}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Checks what every algorithm owes to bad input: one line on standard error that contains all of
/// `mentions`, exit code 2, and no run directory.
pub fn refuses(binary: &str, args: &[&str], mentions: &[&str]) {
    let dir = scratch();
    let run_dir: PathBuf = dir.path().join("run");
    let run_dir_text = run_dir.to_string_lossy().into_owned();
    let mut all = vec!["--run-dir", run_dir_text.as_str()];
    all.extend(args);
    let (code, stdout, stderr) = run(binary, &all);
    let what = format!("{args:?}: exit {code:?}\nstdout: {stdout}\nstderr: {stderr}");
    assert_eq!(code, Some(2), "{what}");
    assert_eq!(stderr.lines().count(), 1, "{what}");
    assert!(stderr.starts_with("error: "), "{what}");
    for mention in mentions {
        assert!(stderr.contains(mention), "{mention:?} is missing; {what}");
    }
    assert!(stdout.is_empty(), "{what}");
    assert!(!run_dir.exists(), "{what}");
}

/// Checks that `config.toml` says all that decides a run: a short run with `args`, and one that
/// reads its `config.toml` instead, agree in every result.
pub fn is_deterministic(binary: &str, args: &[&str]) {
    let dir = scratch();
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    let config = |run_dir: &Path| run_dir.join("config.toml");
    let [first_text, second_text] = [&first, &second].map(|run_dir| run_dir.to_string_lossy());
    let results = finish(binary, &[args, &["--run-dir", &*first_text]].concat(), &first);
    let config_text = config(&first).to_string_lossy().into_owned();
    let flags = ["--config", &*config_text, "--run-dir", &*second_text];
    finish(binary, &flags, &second).assert_equal(&results, "run again from its config.toml");
    let [first, second] = [first, second].map(|run_dir| std::fs::read_to_string(config(&run_dir)).ok());
    assert!(first.is_some());
    assert_eq!(first, second, "config.toml of a run with it as --config");
}

/// Checks that what a run learned is in its model: `--eval-only` on the run with `args` plays the same
/// evaluation episodes to the same returns, and leaves the run as it was.
pub fn evaluates_alike(binary: &str, args: &[&str]) {
    let dir = scratch();
    let run_dir = dir.path().join("run");
    let run_dir_text = run_dir.to_string_lossy();
    let last_line = |args: &[&str]| {
        let (code, stdout, stderr) = run(binary, args);
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        let line = stdout.lines().last().unwrap_or_default().to_string();
        assert!(line.starts_with("eval/episodic_return mean="), "{args:?} ends with {line:?}");
        line
    };
    let trained = last_line(&[args, &["--run-dir", &*run_dir_text]].concat());
    let results = Results::read(&run_dir);
    assert_eq!(last_line(&["--eval-only", &*run_dir_text]), trained, "--eval-only against the run itself");
    Results::read(&run_dir).assert_equal(&results, "after --eval-only");
}

/// Checks that Ctrl-C is heard in an evaluation that an algorithm makes itself: one of as many episodes
/// as there can be, of the run with `args`.
#[cfg(target_os = "linux")]
pub fn hears_ctrl_c_in_evaluation(binary: &str, args: &[&str]) {
    let dir = scratch();
    let (run_dir, stderr) = (dir.path().join("run"), dir.path().join("stderr"));
    let run_dir_text = run_dir.to_string_lossy();
    finish(binary, &[args, &["--run-dir", &*run_dir_text]].concat(), &run_dir);
    let mut command = Command::new(binary);
    command.args(["--eval-only", &*run_dir_text, "--eval-episodes", "100000"]).stdout(Stdio::null());
    command.stderr(std::fs::File::create(&stderr).unwrap_or_else(|error| panic!("{error}")));
    let mut child = process::spawn(&mut command).unwrap_or_else(|error| panic!("{error:#}"));
    // Until it has taken Ctrl-C over, which its signal mask says, that would end it without a word.
    let status = format!("/proc/{}/status", child.id());
    let (started, interrupt) = (Instant::now(), 1_u64 << (libc::SIGINT - 1));
    let listens = || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & interrupt > 0)
    };
    while !listens() {
        let ended = child.try_wait().unwrap_or_else(|error| panic!("{error}"));
        let late = started.elapsed() >= DEADLINE;
        if late {
            let _ = child.kill(); // or it would outlive the test
        }
        assert!(ended.is_none() && !late, "{binary} does not listen: {ended:?}");
        std::thread::yield_now();
    }
    process::send_interrupt(&child);
    let code = process::wait(&mut child, DEADLINE).unwrap_or_else(|error| panic!("{error:#}")).code();
    let stderr = std::fs::read_to_string(&stderr).unwrap_or_default();
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.contains("interrupted in the evaluation"), "{stderr}");
}

/// Checks that runs with `args` and each of `variants` agree: they end with byte-identical models,
/// where the algorithm has one, and metrics (but for the clock: the seconds column and the
/// `charts/SPS` rows).
pub fn give_the_same_run(binary: &str, args: &[&str], variants: &[&[&str]]) {
    let dir = scratch();
    let result = |(i, variant): (usize, &&[&str])| {
        let run_dir = dir.path().join(i.to_string());
        let run_dir_text = run_dir.to_string_lossy();
        finish(binary, &[args, variant, &["--run-dir", &*run_dir_text]].concat(), &run_dir)
    };
    let results: Vec<Results> = variants.iter().enumerate().map(result).collect();
    for (other, variant) in results.iter().zip(variants).skip(1) {
        other.assert_equal(&results[0], &format!("{variant:?} against {:?}", variants[0]));
    }
}

/// What a finished run leaves of itself, but for the clock.
#[derive(PartialEq)]
struct Results {
    metrics: String,
    model: Option<Vec<u8>>,
}

impl Results {
    fn read(run_dir: &Path) -> Self {
        let metrics = timeless_metrics(run_dir);
        // The last row of every finished run: without it there would be little to compare.
        assert!(metrics.contains(",eval/episodic_return,"), "not a finished run:\n{metrics}");
        Self { metrics, model: std::fs::read(run_dir.join("model.safetensors")).ok() }
    }

    fn assert_equal(&self, other: &Self, what: &str) {
        // Not `assert_eq!`, which would print megabytes.
        let different = self.metrics.lines().zip(other.metrics.lines()).find(|(a, b)| a != b);
        let lines = (self.metrics.lines().count(), other.metrics.lines().count());
        assert!(
            self.metrics == other.metrics,
            "{what}: metrics of {lines:?} lines differ first in {different:?}"
        );
        assert!(self.model == other.model, "{what}: the models differ");
    }
}

/// Runs `binary` to its end and reads the results.
fn finish(binary: &str, args: &[&str], run_dir: &Path) -> Results {
    let (code, _, stderr) = run(binary, args);
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
    Results::read(run_dir)
}

/// Checks exact resume: a run that is killed once it has trained and written a checkpoint, and is
/// resumed, ends with the byte-identical model, where the algorithm has one, and metrics (but for the
/// clock) of one that ran through. `args` include `--checkpoint-every` and enough steps for several checkpoints.
pub fn resumes(binary: &str, args: &[&str]) {
    let mut killer = Killer::new(binary, args);
    // The first checkpoint is from before training.
    let killed = killer.kill_at(&Moment { checkpoints: 2, writing: false, polls: 0 });
    assert!(killed, "the run ended before it was killed");
    killer.let_end();
    killer.ended_as_if_never_killed();
}

/// Checks exact resume at any moment: runs are killed `kills` times in all, at random moments,
/// some in the middle of writing a checkpoint, and resumed each time; whatever was killed how often
/// ends as in [`resumes`]. One that was killed before its first checkpoint is begun anew, after
/// resuming it has been refused.
pub fn survives_kills(binary: &str, args: &[&str], kills: usize, seed: u64) {
    let mut rng = envs::rng(seed, 0);
    let mut killer = Killer::new(binary, args);
    let (mut survived, mut in_writing, mut runs) = (0, 0, 0);
    while survived < kills {
        let moment = Moment::random(&mut rng);
        if killer.kill_at(&moment) {
            survived += 1;
            in_writing += usize::from(killer.partial().exists());
        } else {
            // It was faster than the moment that was meant for it.
            killer.ended_as_if_never_killed();
            killer.begin_anew();
            runs += 1;
        }
    }
    killer.let_end();
    killer.ended_as_if_never_killed();
    println!("{survived} kills over {} runs, {in_writing} while a checkpoint was written", runs + 1);
}

/// When to kill a program: at the `polls`-th look after it has written so many checkpoints since
/// it was started and, with `writing`, has begun to write another. Nothing here looks at a clock.
struct Moment {
    checkpoints: usize,
    writing: bool,
    polls: u64,
}

impl Moment {
    fn random(rng: &mut Rng) -> Self {
        let writing = rng.random_bool(0.4);
        // Some of every order of magnitude, from at once to the time between two checkpoints.
        let most = if writing { 6 } else { 14 };
        let magnitude = rng.random_range(0..=most);
        let polls = rng.random_range(0..1 << magnitude);
        Self { checkpoints: rng.random_range(0..4), writing, polls }
    }
}

/// A run that is killed now and then, beside one that was not.
struct Killer<'a> {
    binary: &'a str,
    args: Vec<String>,
    run_dir: PathBuf,
    undisturbed: Results,
    _scratch: tempfile::TempDir,
}

impl<'a> Killer<'a> {
    fn new(binary: &'a str, args: &[&str]) -> Self {
        let scratch = scratch();
        let (undisturbed, run_dir) = (scratch.path().join("undisturbed"), scratch.path().join("killed"));
        let undisturbed_text = undisturbed.to_string_lossy();
        let undisturbed = finish(binary, &[args, &["--run-dir", &*undisturbed_text]].concat(), &undisturbed);
        let args = args.iter().map(|arg| arg.to_string()).collect();
        Self { binary, args, run_dir, undisturbed, _scratch: scratch }
    }

    fn checkpoint(&self) -> PathBuf {
        checkpoint::path(&self.run_dir)
    }

    /// The step that the last checkpoint was written at.
    fn saved_step(&self) -> Option<Vec<u8>> {
        Some(Checkpoint::read(&self.run_dir).ok()?.item("global_step").ok()?.to_vec())
    }

    /// What a checkpoint is called while it is written.
    fn partial(&self) -> PathBuf {
        self.run_dir.join(".checkpoint.safetensors.partial")
    }

    /// The flags to go on with: those of the run or, once it has a checkpoint, `--resume`.
    fn flags(&mut self) -> Vec<String> {
        let run_dir = self.run_dir.to_string_lossy().into_owned();
        if self.checkpoint().exists() {
            return vec!["--resume".into(), run_dir];
        }
        if self.run_dir.exists() {
            let (code, _, stderr) = run(self.binary, &["--resume", &run_dir]);
            assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
            assert!(stderr.starts_with(&format!("error: --resume {run_dir}")), "{stderr}");
            self.begin_anew();
        }
        self.args.iter().cloned().chain(["--run-dir".into(), run_dir]).collect()
    }

    fn begin_anew(&self) {
        std::fs::remove_dir_all(&self.run_dir).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Starts or resumes the run and kills it at `moment`; false if it ended before.
    fn kill_at(&mut self, moment: &Moment) -> bool {
        let flags = self.flags();
        let stderr_path = self.run_dir.with_extension("stderr");
        let stderr = std::fs::File::create(&stderr_path).unwrap_or_else(|error| panic!("{error}"));
        let mut command = Command::new(self.binary);
        command.args(flags).stdout(Stdio::null()).stderr(stderr);
        let mut child = process::spawn(&mut command).unwrap_or_else(|error| panic!("{error:#}"));
        let started = Instant::now();
        let (mut seen, mut left, mut polls) = (self.saved_step(), moment.checkpoints, moment.polls);
        loop {
            if let Some(status) = child.try_wait().unwrap_or_else(|error| panic!("{error}")) {
                let stderr = std::fs::read_to_string(&stderr_path).unwrap_or_default();
                assert!(status.success(), "{status}: {stderr}");
                return false;
            }
            if left > 0 {
                let now = self.saved_step();
                left -= usize::from(now != seen);
                seen = now;
            } else if moment.writing && polls == moment.polls && !self.partial().exists() {
                // Not yet.
            } else if polls > 0 {
                polls -= 1;
            } else {
                break;
            }
            if started.elapsed() > DEADLINE {
                let _ = child.kill(); // it may have ended
                panic!("{} has not ended after {} s", self.binary, DEADLINE.as_secs());
            }
            std::thread::yield_now();
        }
        child.kill().unwrap_or_else(|error| panic!("{error}"));
        !child.wait().unwrap_or_else(|error| panic!("{error}")).success()
    }

    /// Resumes the run, or begins it if it has no checkpoint yet, and lets it end.
    fn let_end(&mut self) {
        let flags = self.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        finish(self.binary, &flags, &self.run_dir);
    }

    /// Compares the run, which has ended, with the undisturbed one.
    fn ended_as_if_never_killed(&self) {
        let results = Results::read(&self.run_dir);
        results.assert_equal(&self.undisturbed, "killed and resumed, against undisturbed");
        let names = std::fs::read_dir(&self.run_dir).unwrap_or_else(|error| panic!("{error}"));
        let left = names.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with('.'));
        assert!(left.is_none(), "a file is left of a write that was cut off: {left:?}");
    }
}

/// `metrics.csv` without what the clock wrote: the seconds column and the `charts/SPS` rows.
pub fn timeless_metrics(run_dir: &Path) -> String {
    let text = std::fs::read_to_string(run_dir.join("metrics.csv"))
        .unwrap_or_else(|error| panic!("{}: {error}", run_dir.display()));
    let timeless = |line: &str| {
        let mut fields = line.splitn(3, ',');
        let (step, _, rest) = (fields.next()?, fields.next()?, fields.next()?);
        (!rest.starts_with("charts/SPS")).then(|| format!("{step},{rest}\n"))
    };
    text.lines().filter_map(timeless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(direction: Direction, threshold: f64, floor: f64) -> Entry {
        Entry {
            config: None,
            env_id: "CartPole-v1".into(),
            steps: 10,
            args: vec![],
            variant: None,
            seeds: vec![1, 2, 3],
            metric: "eval/episodic_return".into(),
            what: String::new(),
            last: 1,
            direction,
            threshold: Some(threshold),
            tolerance: 0.5,
            floor: Some(floor),
            source: "a source".into(),
            floor_reason: "a reason".into(),
            published: None,
        }
    }

    fn results(values: [f64; 3]) -> Vec<SeedResult> {
        let curve = vec![(1.0, 1.0), (10.0, 9.0)];
        values
            .iter()
            .zip(1..)
            .map(|(&value, seed)| SeedResult { seed, value, returns: curve.clone() })
            .collect()
    }

    #[test]
    fn the_median_and_the_worst_seed_decide() {
        let passes = |direction, threshold, floor, values| {
            judge("x", &gate(direction, threshold, floor), &results(values)).is_ok()
        };
        assert!(passes(Direction::Max, 5.0, 0.0, [9.0, 0.0, 5.0]));
        assert!(!passes(Direction::Max, 5.1, 0.0, [9.0, 0.0, 5.0]));
        assert!(!passes(Direction::Max, 5.0, 0.1, [9.0, 0.0, 5.0]));
        assert!(passes(Direction::Min, 5.0, 9.0, [9.0, 0.0, 5.0]));
        assert!(!passes(Direction::Min, 4.9, 9.0, [9.0, 0.0, 5.0]));
        assert!(!passes(Direction::Min, 5.0, 8.9, [9.0, 0.0, 5.0]));
        assert!(passes(Direction::Equal, 5.4, 5.4, [9.0, 0.0, 5.0]));
        assert!(!passes(Direction::Equal, 5.6, 6.0, [9.0, 0.0, 5.0]));
        assert!(!passes(Direction::Equal, 5.4, 5.3, [9.0, 0.0, 5.0]));
        assert!(!passes(Direction::Max, 5.0, 0.0, [9.0, 6.0, f64::NAN]));
        assert!(!passes(Direction::Equal, 5.0, 9.0, [5.0, 5.0, f64::NAN]));
    }

    #[test]
    fn a_missed_gate_reports_curve_and_source() {
        let gate = gate(Direction::Max, 100.0, 2.0);
        let report = judge("x", &gate, &results([1.0, 2.0, 3.0])).unwrap_err().to_string();
        for part in [
            "expected at least 100",
            "worst 1.000000, expected at least 2",
            "a source",
            "a reason",
            "seed 2",
            "█",
        ] {
            assert!(report.contains(part), "{report}");
        }
    }

    /// A program that reaches its seed's number, or fails or hangs where a gate's flag says so.
    #[cfg(unix)]
    const PROGRAM: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        --run-dir) dir=$2; shift ;;
        --seed) seed=$2; shift ;;
        --fail) fail=$2; shift ;;
        --hang) while :; do :; done ;;
    esac
    shift
done
if [ "$seed" = "$fail" ]; then echo "error: it has failed" >&2; exit 1; fi
mkdir -p "$dir"
printf 'global_step,wall_seconds,tag,value\n10,0.1,eval/episodic_return,%s\n' "$seed" > "$dir/metrics.csv"
"#;

    #[cfg(unix)]
    #[test]
    fn all_seeds_of_all_gates_are_run_and_failures_told() {
        use std::os::unix::fs::PermissionsExt;
        let dir = scratch();
        let program = dir.path().join("x");
        std::fs::write(&program, PROGRAM).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let with = |args: &[&str], threshold, floor| {
            let args = args.iter().map(|arg| arg.to_string()).collect();
            Entry { args, ..gate(Direction::Max, threshold, floor) }
        };
        let failures = |gate: Vec<Entry>, deadline| {
            let thresholds =
                Thresholds { algorithm: "x".into(), family: String::new(), gate, benchmark: vec![] };
            failures(&thresholds, program.to_str().unwrap(), deadline)
        };
        let none: [&str; 0] = [];
        let passing = with(&[], 2.0, 1.0);
        assert_eq!(failures(vec![passing.clone(); 3], DEADLINE), none);
        let missed = [with(&["--fail", "2"], 2.0, 1.0), with(&[], 2.5, 1.0), with(&[], 2.0, 1.5)];
        let texts = failures([&missed[..1], &[passing], &missed[1..]].concat(), DEADLINE);
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(
            texts[0].contains("x on CartPole-v1, seed 2: exit status: 1\nerror: it has failed"),
            "{texts:?}"
        );
        assert!(texts[1].contains("median eval/episodic_return = 2.000000"), "{texts:?}");
        assert!(texts[2].contains("worst 1.000000, expected at least 1.5"), "{texts:?}");
        let texts = failures(vec![with(&["--hang"], 2.0, 1.0)], Duration::from_millis(100));
        assert!(texts[0].contains("was killed"), "{texts:?}");
    }
}
