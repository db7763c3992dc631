//! Training runs of the algorithms' own programs.

use crate::learning::Summary;
use crate::programs::{Programs, cargo_build};
use anyhow::{Context, bail, ensure};
use envs::Result;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// The algorithms that rows train.
pub const ALGORITHMS: [&str; 10] =
    ["cem", "ddpg", "dqn", "dqn_pixels", "mbpo", "pets", "ppo", "sac", "sac_discrete", "td3"];

/// Builds `tests/peers/candle`, candle as it comes, and returns its program.
///
/// # Errors
/// It does not build.
pub fn build_stock_candle() -> Result<PathBuf> {
    let package = ["--release", "--manifest-path", "tests/peers/candle/Cargo.toml"];
    let built = cargo_build(&[&package[..], &["--target-dir", "target/stock-candle"]].concat())?;
    built.into_values().next().context("tests/peers/candle made no program")
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
    pub fn run(&self, programs: Option<&Programs>) -> Result<f64> {
        let program = programs.and_then(|programs| programs.get(self.algorithm));
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
