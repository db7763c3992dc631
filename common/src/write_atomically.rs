//! Files that appear whole or not at all.

use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

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
    let partial = partial(path, name);
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
    let result = replace();
    // What there is to report is the first error, and a file that was replaced is no failure.
    let _ = fs::remove_dir_all(&partial);
    let result = result.and_then(|()| sync_directory_of(path));
    result.with_context(|| format!("{}: cannot be written", path.display()))
}

/// Removes what a program left that was killed while it wrote `path`.
pub(crate) fn tidy_up(path: &Path) {
    if let Some(name) = path.file_name() {
        let _ = fs::remove_dir_all(partial(path, name)); // there is seldom one
    }
}

fn partial(path: &Path, name: &OsStr) -> PathBuf {
    path.with_file_name(format!(".{}.partial", name.to_string_lossy()))
}

/// The new name of a file is on the disk once its directory is.
fn sync_directory_of(path: &Path) -> Result<()> {
    // Elsewhere a directory cannot be opened.
    if let Some(dir) = path.parent().filter(|_| cfg!(unix)) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir)?.sync_all()?;
    }
    Ok(())
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
