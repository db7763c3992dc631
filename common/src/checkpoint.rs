//! The checkpoint file: one safetensors file, replaced atomically, with a checksum.
//!
//! Each thing saved is a tensor of bytes under its name; the metadata say which algorithm,
//! environment and format version wrote it.

use crate::model::{describe as describe_file, description};
use crate::run::write_atomically;
use anyhow::Context;
use envs::{InvalidInput, Result};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const FORMAT: &str = "1";

/// Where a run directory keeps its checkpoint.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("checkpoint.safetensors")
}

/// Writes `items` to `path` as the checkpoint of a run of `algorithm` on `env_id`.
///
/// # Errors
/// A disk that is full or cannot be written; the previous checkpoint is then untouched.
pub fn write(path: &Path, algorithm: &str, env_id: &str, items: &[(String, Vec<u8>)]) -> Result<()> {
    let mut views = Vec::with_capacity(items.len());
    for (name, bytes) in items {
        views.push((name.as_str(), TensorView::new(Dtype::U8, vec![bytes.len()], bytes)?));
    }
    let crc32c = checksum(items.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    let metadata = describe_file([
        ("format", FORMAT),
        ("kind", "checkpoint"),
        ("algorithm", algorithm),
        ("env_id", env_id),
        ("crc32c", &crc32c),
    ]);
    write_atomically(path, &safetensors::serialize(views, Some(metadata))?)
}

/// CRC-32C over names and contents in the order of names.
fn checksum<'a>(items: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut items: Vec<_> = items.collect();
    items.sort_by_key(|(name, _)| *name);
    let crc = items.iter().fold(0, |crc, (name, bytes)| {
        crc32c::crc32c_append(crc32c::crc32c_append(crc, name.as_bytes()), bytes)
    });
    format!("{crc:08x}")
}

fn refuse(dir: &Path, why: impl std::fmt::Display) -> anyhow::Error {
    InvalidInput(format!("--resume {}: {why}", path(dir).display())).into()
}

fn read(dir: &Path) -> Result<Vec<u8>> {
    std::fs::read(path(dir)).map_err(|error| match error.kind() {
        ErrorKind::NotFound => refuse(dir, "there is none; the run ended before its first checkpoint"),
        _ => refuse(dir, error),
    })
}

/// Checks that the checkpoint in `dir` is whole and of this algorithm and environment.
///
/// # Errors
/// One line each for a missing, truncated, corrupt, foreign or newer checkpoint.
pub fn describe(dir: &Path, algorithm: &str, env_id: &str) -> Result<()> {
    let bytes = read(dir)?;
    let corrupt = |why: String| refuse(dir, format!("not a whole checkpoint ({why})"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| corrupt(e.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| corrupt(e.to_string()))?;
    let metadata = description(&header);
    let field = |key: &str| metadata.get(key).map(String::as_str).unwrap_or("none");
    if field("kind") != "checkpoint" {
        return Err(refuse(dir, "a safetensors file, but not a checkpoint"));
    }
    if field("format") != FORMAT {
        return Err(refuse(
            dir,
            format!("written in format {}, this version reads {FORMAT}", field("format")),
        ));
    }
    if field("algorithm") != algorithm || field("env_id") != env_id {
        return Err(refuse(
            dir,
            format!("of {} on {}, not of {algorithm} on {env_id}", field("algorithm"), field("env_id")),
        ));
    }
    let items = tensors.tensors();
    let found = checksum(items.iter().map(|(name, view)| (name.as_str(), view.data())));
    if found != field("crc32c") {
        return Err(corrupt(format!("checksum {found}, expected {}", field("crc32c"))));
    }
    Ok(())
}

/// The bytes saved under `name`.
///
/// # Errors
/// A file that cannot be read or has no such item.
pub fn read_item(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let bytes = read(dir)?;
    let tensors = SafeTensors::deserialize(&bytes).context("the checkpoint")?;
    let view = tensors.tensor(name).map_err(|_| refuse(dir, format!("holds no {name}")))?;
    Ok(view.data().to_vec())
}
