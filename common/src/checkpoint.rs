//! The checkpoint file: one safetensors file, replaced atomically, with a checksum.
//!
//! Each thing saved is a tensor of bytes under its name; the metadata say which algorithm,
//! environment and format version wrote it.

use crate::model::{describe, description};
use crate::write_atomically::replace;
use envs::{InvalidInput, Result};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const FORMAT: &str = "3";

/// Where a run directory keeps its checkpoint.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("checkpoint.safetensors")
}

/// Writes `items` to `path` as the checkpoint of a run of `algorithm` on `env_id`.
///
/// # Errors
/// A disk that is full or cannot be written; the previous checkpoint is then untouched.
pub fn write<'a>(
    path: &Path,
    algorithm: &str,
    env_id: &str,
    items: impl IntoIterator<Item = &'a (String, Vec<u8>)>,
) -> Result<()> {
    let mut views = Vec::new();
    for (name, bytes) in items {
        views.push((name.as_str(), TensorView::new(Dtype::U8, vec![bytes.len()], bytes)?));
    }
    let crc32c = checksum(views.iter().map(|(name, view)| (*name, view.data())));
    let metadata = describe([
        ("format", FORMAT),
        ("kind", "checkpoint"),
        ("algorithm", algorithm),
        ("env_id", env_id),
        ("crc32c", &crc32c),
    ]);
    // Straight into the file: a replay buffer may take much of the memory, and its bytes again.
    replace(path, |partial| Ok(safetensors::serialize_to_file(views, Some(metadata), partial)?))
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

/// A checkpoint that was read.
pub struct Checkpoint {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Checkpoint {
    /// The checkpoint in `dir`, whole and of a format that this version knows.
    ///
    /// # Errors
    /// One line each for one that is missing, truncated, corrupt or of another format.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = path(dir);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let this = Self { path, bytes: Vec::new() };
                return Err(match error.kind() {
                    ErrorKind::NotFound => {
                        this.refusal("there is none; the run ended before its first checkpoint")
                    }
                    _ => this.refusal(error),
                });
            }
        };
        let this = Self { path, bytes };
        let kind = this.field("kind")?;
        if kind != "checkpoint" {
            return Err(this.refusal("a safetensors file, but not a checkpoint"));
        }
        let format = this.field("format")?;
        if format != FORMAT {
            return Err(this.refusal(format!("written in format {format}, this version reads {FORMAT}")));
        }
        let items = this.tensors()?.tensors();
        let found = checksum(items.iter().map(|(name, view)| (name.as_str(), view.data())));
        let expected = this.field("crc32c")?;
        if found != expected {
            return Err(this.corrupt(format!("checksum {found}, expected {expected}")));
        }
        Ok(this)
    }

    /// Refuses a checkpoint of another algorithm or environment.
    ///
    /// # Errors
    /// One line that names both.
    pub fn expect_of(&self, algorithm: &str, env_id: &str) -> Result<()> {
        let (of, on) = (self.field("algorithm")?, self.field("env_id")?);
        if of == algorithm && on == env_id {
            return Ok(());
        }
        Err(self.refusal(format!("of {of} on {on}, not of {algorithm} on {env_id}")))
    }

    /// The bytes saved under `name`.
    ///
    /// # Errors
    /// There are none.
    pub fn item(&self, name: &str) -> Result<&[u8]> {
        let view = self.tensors()?.tensor(name).map_err(|_| self.refusal(format!("holds no {name}")))?;
        Ok(view.data())
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| self.corrupt(error))
    }

    /// A field of the metadata.
    fn field(&self, key: &str) -> Result<String> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).map_err(|error| self.corrupt(error))?;
        Ok(description(&header).remove(key).unwrap_or_else(|| "none".into()))
    }

    fn corrupt(&self, why: impl std::fmt::Display) -> anyhow::Error {
        self.refusal(format!("not a whole checkpoint ({why})"))
    }

    fn refusal(&self, why: impl std::fmt::Display) -> anyhow::Error {
        InvalidInput(format!("--resume {}: {why}", self.path.display())).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_read_once_and_gives_every_item() {
        let dir = tempfile::tempdir().unwrap();
        let items = [("b".to_string(), vec![1, 2, 3]), ("a".to_string(), vec![])];
        write(&path(dir.path()), "x", "E-v0", &items).unwrap();
        let checkpoint = Checkpoint::read(dir.path()).unwrap();
        std::fs::remove_file(path(dir.path())).unwrap();
        checkpoint.expect_of("x", "E-v0").unwrap();
        assert_eq!((checkpoint.item("a").unwrap(), checkpoint.item("b").unwrap()), (&[][..], &[1, 2, 3][..]));

        let shown = path(dir.path()).display().to_string();
        let error = checkpoint.item("c").unwrap_err().to_string();
        assert_eq!(error, format!("--resume {shown}: holds no c"));
        let error = checkpoint.expect_of("x", "F-v0").unwrap_err().to_string();
        assert_eq!(error, format!("--resume {shown}: of x on E-v0, not of x on F-v0"));
        let error = Checkpoint::read(dir.path()).err().unwrap().to_string();
        assert!(error.ends_with("there is none; the run ended before its first checkpoint"), "{error}");
    }

    #[test]
    fn damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path());
        write(&file, "x", "E-v0", &[("a".to_string(), vec![7; 100])]).unwrap();
        let whole = std::fs::read(&file).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            let error = Checkpoint::read(dir.path()).err().expect("refused").to_string();
            error.strip_prefix(&format!("--resume {}: ", file.display())).unwrap().to_string()
        };
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(refused(&flipped).starts_with("not a whole checkpoint (checksum "));
        assert!(refused(&whole[..whole.len() - 1]).starts_with("not a whole checkpoint ("));
        assert!(refused(b"").starts_with("not a whole checkpoint ("));
        let mut older = whole.clone();
        let format = br#"format\":\"3"#;
        let at = older.windows(format.len()).position(|bytes| bytes == format).unwrap();
        older[at + format.len() - 1] = b'1';
        assert_eq!(refused(&older), "written in format 1, this version reads 3");
    }
}
