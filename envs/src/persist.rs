//! What can be saved into a checkpoint and restored bit for bit.

use crate::{Result, VecEnv};
use serde::{Serialize, de::DeserializeOwned};

/// Something that changes while training. The restored thing behaves exactly like the saved one.
pub trait Persist {
    /// The whole state as bytes.
    fn save(&self) -> Result<Vec<u8>>;

    /// Takes on the state in `bytes`; on an error `self` may be changed and must not be used.
    fn load(&mut self, bytes: &[u8]) -> Result<()>;
}

/// Anything serde can write: counters, generators, replay buffers.
impl<T: Serialize + DeserializeOwned> Persist for T {
    fn save(&self) -> Result<Vec<u8>> {
        Ok(postcard::to_stdvec(self)?)
    }

    fn load(&mut self, bytes: &[u8]) -> Result<()> {
        let (value, rest) = postcard::take_from_bytes(bytes)?;
        anyhow::ensure!(rest.is_empty(), "{} bytes too many", rest.len());
        *self = value;
        Ok(())
    }
}

/// As many entries as flags say: those of a run with other flags do not fit.
pub struct Fixed<'a, T>(pub &'a mut Vec<T>);

impl<T: Serialize + DeserializeOwned> Persist for Fixed<'_, T> {
    fn save(&self) -> Result<Vec<u8>> {
        self.0.save()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<()> {
        let mut saved: Vec<T> = Vec::new();
        saved.load(bytes)?;
        anyhow::ensure!(
            saved.len() == self.0.len(),
            "it holds {} entries, not {}",
            saved.len(),
            self.0.len()
        );
        *self.0 = saved;
        Ok(())
    }
}

impl Persist for VecEnv {
    fn save(&self) -> Result<Vec<u8>> {
        self.snapshot()?.save()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<()> {
        let mut snapshot = crate::vec_env::Snapshot::default();
        snapshot.load(bytes)?;
        self.restore(&snapshot)
    }
}
