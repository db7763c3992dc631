//! Learning tests: runs the real program of an algorithm and holds what it learned against
//! `thresholds.toml`.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What an algorithm must reach, and where that number comes from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Package of the algorithm.
    pub algorithm: String,
    /// Environment it is trained on, `--env-id`.
    pub env_id: String,
    /// Environment steps, `--total-timesteps`.
    pub steps: usize,
    /// Further flags. Defaults are what users run, so there should be few.
    #[serde(default)]
    pub args: Vec<String>,
    /// A short name for these flags, in the names of result files [default: the flags themselves].
    pub variant: Option<String>,
    /// Seeds, run side by side.
    pub seeds: Vec<u64>,
    /// Which rows of `metrics.csv` count.
    pub metric: String,
    /// The mean of how many of the last such rows is the result of a seed.
    #[serde(default = "one")]
    pub last: usize,
    /// Whether more or less is better, or the number must be met to within `tolerance`.
    pub direction: Direction,
    /// What the median over the seeds must reach.
    pub threshold: f64,
    /// How far from the threshold an `equal` result may be.
    #[serde(default)]
    pub tolerance: f64,
    /// The publication or computation the threshold is from.
    pub source: String,
}

fn one() -> usize {
    1
}

/// Which results are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// At least the threshold.
    Max,
    /// At most the threshold.
    Min,
    /// The threshold, to within the tolerance.
    Equal,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Thresholds {
    gate: Vec<Gate>,
}

/// Every gate in `thresholds.toml`.
///
/// # Errors
/// A file that cannot be read or has an unknown key.
pub fn gates() -> Result<Vec<Gate>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("thresholds.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let thresholds: Thresholds = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(thresholds.gate)
}

/// Runs `binary`, the program of `algorithm`, through every gate of it; panics with a readable
/// report if one is missed. Gates on MuJoCo's tasks are skipped, with a line that says so, where
/// MuJoCo is not installed, unless `REQUIRE_MUJOCO=1` is set.
/// Meant for the algorithm's `tests/learning_curve.rs`:
///
/// ```ignore
/// #[test]
/// fn learns() {
///     regression::check("ppo", env!("CARGO_BIN_EXE_ppo"));
/// }
/// ```
pub fn check(algorithm: &str, binary: &str) {
    let gates = gates().unwrap_or_else(|error| panic!("{error:#}"));
    let gates: Vec<Gate> = gates.into_iter().filter(|gate| gate.algorithm == algorithm).collect();
    assert!(!gates.is_empty(), "tests/thresholds.toml has no gate for {algorithm}");
    let mut failures = Vec::new();
    for gate in &gates {
        if let Some(reason) = skipped(&gate.env_id) {
            // Not `eprintln!`: the test harness swallows what a passing test prints with it.
            let _ = writeln!(std::io::stderr(), "SKIPPED {algorithm} on {}: {reason}", gate.env_id);
            continue;
        }
        match run_gate(gate, binary) {
            Ok(report) => println!("{report}"),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
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

fn run_gate(gate: &Gate, binary: &str) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let results = run_seeds(gate, binary, dir.path())?;
    judge(gate, &results)
}

/// Runs every seed, as many side by side as there are cores.
fn run_seeds(gate: &Gate, binary: &str, dir: &Path) -> Result<Vec<SeedResult>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results = Vec::new();
    for seeds in gate.seeds.chunks(cores) {
        let children = seeds
            .iter()
            .map(|&seed| {
                let run_dir = dir.join(seed.to_string());
                let stderr = std::fs::File::create(dir.join(format!("{seed}.stderr")))?;
                let child = Command::new(binary)
                    .args(["--env-id", &gate.env_id])
                    .args(["--total-timesteps", &gate.steps.to_string()])
                    .args(["--seed", &seed.to_string()])
                    .arg("--run-dir")
                    .arg(&run_dir)
                    .args(&gate.args)
                    .stdout(Stdio::null())
                    .stderr(stderr)
                    .spawn()
                    .with_context(|| format!("starting {binary}"))?;
                Ok((seed, run_dir, child))
            })
            .collect::<Result<Vec<_>>>()?;
        for (seed, run_dir, mut child) in children {
            let status = child.wait()?;
            if !status.success() {
                let stderr = std::fs::read_to_string(dir.join(format!("{seed}.stderr"))).unwrap_or_default();
                bail!("{} on {}, seed {seed}: {status}\n{stderr}", gate.algorithm, gate.env_id);
            }
            results.push(read_result(gate, seed, &run_dir)?);
        }
    }
    Ok(results)
}

fn read_result(gate: &Gate, seed: u64, run_dir: &Path) -> Result<SeedResult> {
    let rows = read_metrics(&run_dir.join("metrics.csv"))?;
    let value = mean_of_last(&rows, &gate.metric, gate.last);
    let value = value.with_context(|| format!("{}, seed {seed}", gate.algorithm))?;
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

/// The middle of `values`, of which there is at least one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Compares the median of `results` with the gate: a line that says it passed, or a report.
fn judge(gate: &Gate, results: &[SeedResult]) -> Result<String> {
    let reached = median(&results.iter().map(|result| result.value).collect::<Vec<_>>());
    let (passed, wanted) = match gate.direction {
        Direction::Max => (reached >= gate.threshold, format!("at least {}", gate.threshold)),
        Direction::Min => (reached <= gate.threshold, format!("at most {}", gate.threshold)),
        Direction::Equal => (
            (reached - gate.threshold).abs() <= gate.tolerance,
            format!("{} to within {}", gate.threshold, gate.tolerance),
        ),
    };
    let seeds: Vec<String> =
        results.iter().map(|result| format!("seed {}: {:.6}", result.seed, result.value)).collect();
    let line = format!(
        "{} on {} after {} steps: median {} = {reached:.6} ({}), expected {wanted}",
        gate.algorithm,
        gate.env_id,
        gate.steps,
        gate.metric,
        seeds.join(", "),
    );
    if passed {
        return Ok(line);
    }
    let curves: String = results
        .iter()
        .map(|result| format!("seed {}\n{}", result.seed, text_curve(&result.returns)))
        .collect();
    bail!("{line}\nsource of the threshold: {}\nepisodic return while training:\n{curves}", gate.source)
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
    let output =
        Command::new(binary).args(args).output().unwrap_or_else(|error| panic!("starting {binary}: {error}"));
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

/// Checks that the same seed gives the same run: two short runs end with byte-identical models
/// and metrics (but for the clock: the seconds column and the `charts/SPS` rows).
pub fn is_deterministic(binary: &str, args: &[&str]) {
    let dir = scratch();
    let read = |name: &str| {
        let run_dir = dir.path().join(name);
        let run_dir_text = run_dir.to_string_lossy().into_owned();
        let mut all = vec!["--run-dir", run_dir_text.as_str()];
        all.extend(args);
        let (code, _, stderr) = run(binary, &all);
        assert_eq!(code, Some(0), "{stderr}");
        let model = std::fs::read(run_dir.join("model.safetensors")).unwrap_or_default();
        (timeless_metrics(&run_dir), model)
    };
    let (first, second) = (read("first"), read("second"));
    assert!(!first.1.is_empty() && first.1 == second.1, "the models differ, or there is none");
    assert!(first.0.lines().count() > 10, "too few metrics to compare:\n{}", first.0);
    assert_eq!(first.0, second.0, "the metrics differ");
}

/// Checks exact resume: a run that is killed once it has written a checkpoint, and resumed, ends
/// with the byte-identical model and metrics (but for the clock) of one that ran through. `args`
/// include `--checkpoint-every` and enough steps for several checkpoints.
pub fn resumes(binary: &str, args: &[&str]) {
    let dir = scratch();
    let run_dir = |name: &str| dir.path().join(name);
    let finish = |name: &str, more: &[&str]| {
        let (code, _, stderr) = run(binary, more);
        assert_eq!(code, Some(0), "{stderr}");
        let model = std::fs::read(run_dir(name).join("model.safetensors")).unwrap_or_default();
        (timeless_metrics(&run_dir(name)), model)
    };
    let (through, killed) = (run_dir("through"), run_dir("killed"));
    let (through, killed) = (through.to_string_lossy(), killed.to_string_lossy());
    let whole = finish("through", &[args, &["--run-dir", &*through]].concat());

    let mut child = Command::new(binary)
        .args(args)
        .args(["--run-dir", &*killed])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("starting {binary}: {error}"));
    while !run_dir("killed").join("checkpoint.safetensors").exists() {
        let ended = child.try_wait().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(ended, None, "the run ended without a checkpoint");
        std::thread::yield_now();
    }
    child.kill().unwrap_or_else(|error| panic!("{error}"));
    child.wait().unwrap_or_else(|error| panic!("{error}"));
    assert!(!run_dir("killed").join("summary.json").exists(), "the run ended before it was killed");

    let resumed = finish("killed", &["--resume", &*killed]);
    assert!(!whole.1.is_empty() && whole.1 == resumed.1, "the models differ, or there is none");
    assert_eq!(whole.0, resumed.0, "the metrics differ");
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

    fn gate(direction: Direction, threshold: f64) -> Gate {
        Gate {
            algorithm: "x".into(),
            env_id: "CartPole-v1".into(),
            steps: 10,
            args: vec![],
            variant: None,
            seeds: vec![1, 2, 3],
            metric: "eval/episodic_return".into(),
            last: 1,
            direction,
            threshold,
            tolerance: 0.5,
            source: "a source".into(),
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
    fn the_median_decides() {
        assert!(judge(&gate(Direction::Max, 5.0), &results([0.0, 5.0, 9.0])).is_ok());
        assert!(judge(&gate(Direction::Max, 5.1), &results([0.0, 5.0, 9.0])).is_err());
        assert!(judge(&gate(Direction::Min, 5.0), &results([0.0, 5.0, 9.0])).is_ok());
        assert!(judge(&gate(Direction::Min, 4.9), &results([0.0, 5.0, 9.0])).is_err());
        assert!(judge(&gate(Direction::Equal, 5.4), &results([0.0, 5.0, 9.0])).is_ok());
        assert!(judge(&gate(Direction::Equal, 5.6), &results([0.0, 5.0, 9.0])).is_err());
    }

    #[test]
    fn a_missed_gate_reports_curve_and_source() {
        let report = judge(&gate(Direction::Max, 100.0), &results([1.0, 2.0, 3.0])).unwrap_err().to_string();
        for part in ["expected at least 100", "a source", "seed 2", "█"] {
            assert!(report.contains(part), "{report}");
        }
    }

    #[test]
    fn every_gate_names_its_source_and_no_recalled_number() {
        for gate in gates().unwrap() {
            assert!(gate.last >= 1, "{gate:?}");
            assert!(!gate.source.is_empty() && !gate.source.contains("recalled"), "{gate:?}");
            assert!(gate.seeds.len() >= 3, "{gate:?}");
        }
    }
}
