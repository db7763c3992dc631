//! Training runs of the algorithms' own programs, and how programs are built.

use crate::learning::Summary;
use crate::paths;
use anyhow::{Context, bail, ensure};
use envs::{Result, invalid};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The algorithms that rows train.
const ALGORITHMS: [&str; 3] = ["dqn", "ppo", "sac"];

/// Where the programs are.
pub struct Binaries(BTreeMap<&'static str, PathBuf>);

/// A line of `cargo build --message-format json`.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

impl Binaries {
    /// Those in `folder`.
    ///
    /// # Errors
    /// One is missing.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let mut found = BTreeMap::new();
        for name in ALGORITHMS {
            let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
            if !path.is_file() {
                return invalid(format!("--bin-dir {}: there is no program {name} in it", folder.display()));
            }
            // Relative to the working directory, and not looked for in PATH.
            found.insert(name, std::path::absolute(path)?);
        }
        Ok(Self(found))
    }

    /// Builds the workspace's programs, as `cargo run` and `cargo test` do.
    ///
    /// # Errors
    /// They do not build.
    pub fn build() -> Result<Self> {
        let built = cargo_build(&["--workspace", "--bins"])?;
        let mut found = BTreeMap::new();
        for name in ALGORITHMS {
            let path = built.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
            found.insert(name, path.with_context(|| format!("cargo build made no program {name}"))?.clone());
        }
        Ok(Self(found))
    }
}

/// Builds `tests/peers/candle`, candle as it comes, and returns its program.
///
/// # Errors
/// It does not build.
pub fn build_stock_candle() -> Result<PathBuf> {
    let package = ["--release", "--manifest-path", "tests/peers/candle/Cargo.toml"];
    let built = cargo_build(&[&package[..], &["--target-dir", "target/stock-candle"]].concat())?;
    built.into_iter().next().context("tests/peers/candle made no program")
}

/// Runs `cargo build` in the repository and returns the programs that it made.
fn cargo_build(flags: &[&str]) -> Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .arg("build")
        .args(flags)
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(paths::root())
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "cargo build {}: {}", flags.join(" "), output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let programs = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable);
    Ok(programs.collect())
}

/// A training run.
pub struct Training {
    pub algorithm: &'static str,
    /// Environment steps; 0 leaves it to the program's default.
    pub steps: usize,
    /// Steps before the first update, where there are such; they count as time and not as steps.
    pub learning_starts: Option<usize>,
    pub threads: usize,
    /// Further flags.
    pub flags: &'static str,
    /// Then the program is run as it comes, its final evaluation must reach this, and the result
    /// is the seconds from its start to its end. Otherwise the result is training steps per second.
    pub must_reach: Option<f64>,
}

impl Default for Training {
    fn default() -> Self {
        Self { algorithm: "", steps: 0, learning_starts: None, threads: 1, flags: "", must_reach: None }
    }
}

impl Training {
    /// Trains once.
    ///
    /// # Errors
    /// The program fails, or does not reach what it must.
    pub fn run(&self, binaries: Option<&Binaries>) -> Result<f64> {
        let program = binaries.and_then(|binaries| binaries.0.get(self.algorithm));
        let program = program.with_context(|| format!("no program {}", self.algorithm))?;
        let folder = tempfile::tempdir()?;
        let run_dir = folder.path().join("run");
        let mut command = Command::new(program);
        command.arg("--run-dir").arg(&run_dir);
        if self.must_reach.is_none() {
            // The evaluation is not measured.
            command.args(["--eval-episodes", "1", "--total-timesteps", &self.steps.to_string()]);
            command.args(["--threads", &self.threads.to_string()]).args(self.flags.split_whitespace());
        }
        if let Some(steps) = self.learning_starts {
            command.args(["--learning-starts", &steps.to_string()]);
        }
        let start = Instant::now();
        let output = command.output().with_context(|| program.display().to_string())?;
        let seconds = start.elapsed().as_secs_f64();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}: {}", self.algorithm, output.status, stderr.lines().last().unwrap_or_default());
        }
        let summary = Summary::read(&run_dir)?;
        let Some(wanted) = self.must_reach else {
            let steps = summary.total_timesteps - self.learning_starts.unwrap_or(0);
            return Ok(steps as f64 / summary.wall_seconds);
        };
        ensure!(summary.eval.mean >= wanted, "the evaluation is {}, below {wanted}", summary.eval.mean);
        Ok(seconds)
    }
}
