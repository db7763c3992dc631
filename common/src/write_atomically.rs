//! Files that appear whole or not at all.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::Path;

/// Replaces `path` with `bytes` in one step: a reader sees the old file or the new one, whole.
///
/// # Errors
/// A disk that is full or cannot be written; the old file is then untouched.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |partial| Ok(fs::write(partial, bytes)?))
}

/// The same with a file that `write` makes at the path it is given.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = path.file_name().context("a file has a name")?.to_string_lossy();
    // Always the same name: what a killed program leaves is replaced by the next one that writes.
    let partial = path.with_file_name(format!(".{name}.partial"));
    let replace = || -> Result<()> {
        write(&partial)?;
        File::options().write(true).open(&partial)?.sync_all()?;
        Ok(fs::rename(&partial, path)?)
    };
    replace().with_context(|| format!("{}: cannot be written", path.display())).inspect_err(|_| {
        // The error to report is the first.
        let _ = fs::remove_file(&partial);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.txt");
        write_atomically(&path, b"old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");

        let torn = |partial: &Path| -> Result<()> {
            fs::write(partial, b"ne")?;
            anyhow::bail!("the disk is full")
        };
        let error = format!("{:#}", replace(&path, torn).unwrap_err());
        assert_eq!(error, format!("{}: cannot be written: the disk is full", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something else was left behind");
    }
}
