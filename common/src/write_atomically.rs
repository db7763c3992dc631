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
    let name = path.file_name().context("a file has a name")?;
    // A folder, because `write` may make files of its own beside the one it is asked for. It always has
    // the same name: what a killed program leaves is removed by the next one that writes.
    let partial = path.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    let replace = || -> Result<()> {
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir(&partial)?;
        let written = partial.join(name);
        write(&written)?;
        File::options().write(true).open(&written)?.sync_all()?;
        Ok(fs::rename(&written, path)?)
    };
    let result = replace().with_context(|| format!("{}: cannot be written", path.display()));
    // What there is to report is the first error, and a file that was replaced is no failure.
    let _ = fs::remove_dir_all(&partial);
    result
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
            fs::write(partial.with_file_name("beside"), b"n")?;
            fs::write(partial, b"ne")?;
            anyhow::bail!("the disk is full")
        };
        let error = format!("{:#}", replace(&path, torn).unwrap_err());
        assert_eq!(error, format!("{}: cannot be written: the disk is full", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something else was left behind");

        // A program that was killed while it wrote: the next one tidies up.
        let partial = dir.path().join(".file.txt.partial");
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join("of a library"), b"n").unwrap();
        write_atomically(&path, b"newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left by the killed one");
    }
}
