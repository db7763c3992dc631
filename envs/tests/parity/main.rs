//! Replays recordings of the real Python environments, with which the environments must agree.
//!
//! Each recording is one JSON file (its layout is described in `golden/record_golden.py`, which
//! also makes new ones). Whatever was random is in the file; everything else must follow.
//! `GOLDEN_DIR` names another folder of recordings.

mod blackjack;
mod box2d;
mod control;
mod minatar;
mod mpe;
mod mujoco;
mod tabular;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What replaying one recording came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Every one of `steps` recorded steps was replayed and agreed; `error` is the largest
    /// difference of any number compared.
    Replayed {
        /// Steps compared.
        steps: usize,
        /// Largest absolute difference.
        error: f64,
    },
    /// Not replayed because something is not installed; the reason says how to install it.
    Skipped(String),
}

/// The folder with the recordings: `$GOLDEN_DIR`, or the committed one.
pub fn golden_dir() -> PathBuf {
    std::env::var_os("GOLDEN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from)
}

/// Replays one recording.
///
/// # Errors
/// A file that cannot be read, an unknown kind, and the first difference found.
pub fn replay(path: &Path) -> Result<Outcome> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    replay_text(&text).with_context(|| path.display().to_string())
}

/// Replays a recording from its text.
///
/// # Errors
/// As [`replay`].
pub fn replay_text(text: &str) -> Result<Outcome> {
    let doc: Value = serde_json::from_str(text).context("not JSON")?;
    if doc["format"] != 1 {
        bail!("format {} is unknown, this reader knows 1", doc["format"]);
    }
    match doc["kind"].as_str() {
        Some("blackjack") => blackjack::replay(&doc),
        Some("box2d") => box2d::replay(&doc),
        Some("control") => control::replay(&doc),
        Some("minatar") => minatar::replay(&doc),
        Some("mpe") => mpe::replay(&doc),
        Some("mujoco") => mujoco::replay(&doc),
        Some("tabular") => tabular::replay(&doc),
        _ => bail!("kind {} is unknown", doc["kind"]),
    }
}

/// A number, an array of numbers (nested ones flattened), or `"inf"`, `"-inf"`, `"nan"`.
pub fn numbers(value: &Value) -> Result<Vec<f64>> {
    Ok(match value {
        Value::Array(items) => items.iter().map(numbers).collect::<Result<Vec<_>>>()?.concat(),
        Value::Number(number) => vec![number.as_f64().context("not a float64")?],
        Value::String(word) => vec![word.parse()?],
        other => bail!("{other} is not a number"),
    })
}

/// One number.
pub fn number(value: &Value) -> Result<f64> {
    match numbers(value)?.as_slice() {
        [x] => Ok(*x),
        other => bail!("{other:?} is not one number"),
    }
}

/// An integer from 0 to below `limit`.
pub fn index(value: &Value, limit: usize) -> Result<usize> {
    let x = number(value)?;
    anyhow::ensure!(
        x.fract() == 0.0 && x >= 0.0 && x < limit as f64,
        "{x} is not an integer from 0 to below {limit}"
    );
    Ok(x as usize)
}

/// An array.
pub fn array(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().with_context(|| format!("{value} is not an array"))
}

/// The largest absolute difference; infinite where the lengths differ or a number is not finite
/// in only one of the two.
pub fn max_difference(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let difference = |(x, y): (&f64, &f64)| match x == y || (x.is_nan() && y.is_nan()) {
        true => 0.0,
        false if (x - y).is_nan() => f64::INFINITY,
        false => (x - y).abs(),
    };
    a.iter().zip(b).map(difference).fold(0.0, f64::max)
}

#[test]
fn every_recording_is_replayed() {
    let folder = golden_dir();
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    files.sort();
    let ours = std::env::var_os("GOLDEN_DIR").is_none();
    let found = files.len();
    assert!(if ours { found == 37 } else { found > 0 }, "{} holds {found} recordings", folder.display());

    let (mut replayed, mut skipped, mut failures) = (0, 0, Vec::new());
    for path in &files {
        let name = path.file_name().unwrap().to_string_lossy();
        match replay(path) {
            Ok(Outcome::Replayed { steps, error }) => {
                assert!(steps > 0, "{name}: no steps");
                println!("{name:45} {steps:6} steps, largest difference {error:.1e}");
                replayed += 1;
            }
            Ok(Outcome::Skipped(why)) => {
                // Not `println`, which the harness keeps to itself.
                let _ = writeln!(std::io::stderr(), "{name:45} SKIPPED: {why}");
                skipped += 1;
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    println!("{replayed} recordings replayed, {skipped} skipped, {} failed", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
