//! Pinned runs: what a short run with a fixed seed logs, kept in the algorithm's folder, which every
//! later build must log again.
//!
//! Recorded updates and unit tests call an algorithm's methods one by one. A pinned run is what
//! notices a changed order, schedule or coefficient in `train` itself, without training for long:
//!
//! ```ignore
//! // In the algorithm's src/tests.rs, where `train` is the one that `main` runs.
//! /// Both an update and an evaluation of every kind happen within these steps.
//! #[test]
//! fn pinned_run() {
//!     let args = ["--total-timesteps", "1024", "--learning-starts", "200", "--eval-episodes", "3"];
//!     regression::pinned(env!("CARGO_MANIFEST_DIR"), "cartpole", &args, train);
//! }
//! ```
//!
//! The rows are in `tests/pinned/cartpole.csv` of the package: every row of `metrics.csv` but the
//! clock's, the evaluation's among them, and then the size of every tensor in the saved model. Steps
//! and names must be the same, values agree to 1e-3 or 1e-5: other CPUs round otherwise, so choose a
//! run short enough that no action is chosen differently for it. With `--capture-video` among the flags
//! the film has to be there as well.
//!
//! `PLAINRL_RENEW_PINNED=1 cargo test -p NAME pinned` writes the file anew: on purpose only, with
//! the reason in the commit.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use clap::Parser;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Once;

/// Values agree to this much of their size …
const RELATIVE: f64 = 1e-3;
/// … or to this.
const ABSOLUTE: f64 = 1e-5;

/// Trains with the flags `args` (seed 1 unless they name another) in this process and compares what
/// the run logs with `tests/pinned/NAME.csv` in the folder of the package; panics with the first
/// differences. With `PLAINRL_RENEW_PINNED=1` it writes that file instead.
pub fn pinned<A: Parser>(manifest_dir: &str, name: &str, args: &[&str], train: impl FnOnce(A) -> Result<()>) {
    let path = Path::new(manifest_dir).join(format!("tests/pinned/{name}.csv"));
    let renew = std::env::var("PLAINRL_RENEW_PINNED").is_ok_and(|value| value == "1");
    if let Err(error) = hold(&path, args, train, renew) {
        panic!("{}: {error:#}", path.display());
    }
}

fn hold<A: Parser>(
    path: &Path,
    args: &[&str],
    train: impl FnOnce(A) -> Result<()>,
    renew: bool,
) -> Result<()> {
    let heading = format!("# {}\nglobal_step,tag,value\n", args.join(" "));
    let scratch = tempfile::tempdir()?;
    let run_dir = scratch.path().join("run");
    let argv = ["pinned", "--run-dir"].iter().map(OsString::from);
    let argv = argv.chain([run_dir.clone().into()]).chain(args.iter().map(OsString::from));
    let args = common::cli::parse_from(argv)?;
    one_thread();
    train(args)?;
    let found = rows(&run_dir)?;
    if heading.contains("--capture-video") {
        let film = std::fs::read(run_dir.join("agent.gif")).context("--capture-video left no agent.gif")?;
        // A whole file: the header, and the trailer that ends a GIF89a.
        ensure!(film.starts_with(b"GIF89a") && film.ends_with(b"\x3B"), "agent.gif is not a whole animation");
    }
    if renew {
        let text: String = found.iter().map(Row::to_string).collect();
        std::fs::create_dir_all(path.parent().context("a file within a folder")?)?;
        return Ok(std::fs::write(path, heading + &text)?);
    }
    let advice = "; PLAINRL_RENEW_PINNED=1 writes it";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot be read{advice}"))?;
    let Some(expected) = text.strip_prefix(&heading) else {
        let pinned = text.lines().next().unwrap_or_default();
        bail!("is of a run with other flags, `{pinned}`{advice} anew");
    };
    compare(&found, &expected.lines().map(Row::parse).collect::<Result<Vec<_>>>()?)
}

/// Keeps candle's thread pools to one thread, as `cli::main` does for programs: with more, small
/// networks are several times slower.
fn one_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for variable in ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"] {
            // SAFETY: tests read the environment through the standard library, which holds a lock.
            unsafe { std::env::set_var(variable, "1") };
        }
    });
}

/// One row of a pinned run.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    step: u64,
    tag: String,
    value: f64,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The digits of an f32 are plenty, and half as long.
        writeln!(f, "{},{},{}", self.step, self.tag, self.value as f32)
    }
}

impl Row {
    fn parse(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split(',').collect();
        let [step, tag, value] = fields[..] else { bail!("row {line:?} has {} fields", fields.len()) };
        let parse = || -> Result<Self> {
            Ok(Self { step: step.parse()?, tag: tag.to_string(), value: value.parse()? })
        };
        parse().with_context(|| format!("row {line:?}"))
    }

    fn agrees(&self, expected: &Self) -> bool {
        let tolerance = (RELATIVE * expected.value.abs()).max(ABSOLUTE);
        let close = (self.value - expected.value).abs() <= tolerance;
        (self.step, &self.tag) == (expected.step, &expected.tag) && close
    }
}

/// What a run left: its metrics but for the clock's, and √(mean x²) of every tensor of its model.
fn rows(run_dir: &Path) -> Result<Vec<Row>> {
    let metrics = crate::learning::timeless_metrics(run_dir);
    let mut rows = metrics.lines().skip(1).map(Row::parse).collect::<Result<Vec<_>>>()?;
    ensure!(rows.iter().any(|row| row.tag == "eval/episodic_return"), "the run ended without its evaluation");
    let step = rows.iter().map(|row| row.step).max().unwrap_or_default();
    let model = run_dir.join("model.safetensors");
    if model.exists() {
        let mut tensors: Vec<_> = candle_core::safetensors::load(&model, &Device::Cpu)?.into_iter().collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, tensor) in tensors {
            let value = tensor.to_dtype(DType::F64)?.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt();
            rows.push(Row { step, tag: format!("model/{name}"), value });
        }
    }
    Ok(rows)
}

fn compare(found: &[Row], expected: &[Row]) -> Result<()> {
    let mut pairs = found.iter().zip(expected);
    let differences: Vec<String> = (&mut pairs)
        .filter(|(found, expected)| !found.agrees(expected))
        .map(|(found, expected)| format!("{found}instead of\n{expected}"))
        .collect();
    let mut problems = Vec::new();
    if found.len() != expected.len() {
        problems.push(format!("{} rows instead of {}", found.len(), expected.len()));
    }
    if !differences.is_empty() {
        let first = differences.iter().take(5).cloned().collect::<String>();
        problems.push(format!("{} rows differ, the first are\n{first}", differences.len()));
    }
    ensure!(problems.is_empty(), "the run is another one: {}", problems.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::cli::RunArgs;
    use common::run::Run;

    #[derive(Parser, serde::Serialize)]
    struct Args {
        #[command(flatten)]
        #[serde(flatten)]
        run: RunArgs,
        #[arg(long, default_value_t = 1.0)]
        factor: f64,
    }

    const ARGS: &[&str] = &["--env-id", "CartPole-v1", "--total-timesteps", "20"];

    /// What a run logs that stands for a learning one.
    fn train(args: Args, values: impl Fn(usize) -> f64) -> Result<()> {
        let mut run = Run::start("pinned", &args.run, &args)?;
        for step in (0..run.total_timesteps).step_by(10) {
            run.log(step, "losses/loss", args.factor * values(step))?;
        }
        run.finish(&[7.0, 9.0], 1.0)?;
        Ok(())
    }

    #[test]
    fn a_run_is_pinned_and_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tests/pinned/x.csv");
        let value = |step: usize| 0.1 + step as f64;
        let hold = |args: &[&str], values: &dyn Fn(usize) -> f64, renew| {
            hold(&path, args, |args| train(args, values), renew).map_err(|error| format!("{error:#}"))
        };
        assert!(hold(ARGS, &value, false).unwrap_err().contains("PLAINRL_RENEW_PINNED=1"));
        hold(ARGS, &value, true).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let flags = ARGS.join(" ");
        let rows = "0,losses/loss,0.1\n10,losses/loss,10.1\n10,eval/episodic_return,8\n";
        assert_eq!(text, format!("# {flags}\nglobal_step,tag,value\n{rows}"));
        hold(ARGS, &value, false).unwrap();
        hold(ARGS, &|step| value(step) * 1.0005, false).unwrap();
        let error = hold(ARGS, &|step| value(step) * 1.002, false).unwrap_err();
        assert!(error.contains("2 rows differ") && error.contains("10,losses/loss,10.1"), "{error}");
        let other: Vec<_> = ARGS.iter().copied().chain(["--factor", "1"]).collect();
        assert!(hold(&other, &value, false).unwrap_err().contains("other flags"));
        // Flags reach the run.
        let other: Vec<_> = ARGS.iter().copied().chain(["--factor", "2"]).collect();
        hold(&other, &value, true).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("\n0,losses/loss,0.2\n"));
    }

    #[test]
    fn rows_too_many_too_few_and_elsewhere_differ() {
        let row = |step, tag: &str, value| Row { step, tag: tag.into(), value };
        let expected = [row(0, "a", 1.0), row(1, "b", 0.0)];
        let compare = |found: &[Row]| compare(found, &expected).map_err(|error| error.to_string());
        assert_eq!(compare(&[row(0, "a", 0.9995), row(1, "b", -1e-5)]), Ok(()));
        assert!(compare(&expected[..1]).unwrap_err().contains("1 rows instead of 2"));
        assert!(
            compare(&[&expected[..], &expected[..1]].concat()).unwrap_err().contains("3 rows instead of 2")
        );
        for wrong in [row(2, "b", 0.0), row(1, "c", 0.0), row(1, "b", 1e-4), row(1, "b", f64::NAN)] {
            assert!(compare(&[expected[0].clone(), wrong]).unwrap_err().contains("1 rows differ"));
        }
    }
}
