//! The numbers of a run as it goes on: `metrics.csv` and TensorBoard's event file.

use crate::tensorboard::EventWriter;
use anyhow::Context;
use envs::{InvalidInput, Result, invalid};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::Path;

/// The two files, open to append.
pub(crate) struct Records {
    metrics: BufWriter<File>,
    metrics_len: u64,
    events: EventWriter,
}

/// How far the files were written at a checkpoint, for a run that goes on from there.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Extent {
    metrics_len: u64,
    events_file: String,
    events_len: u64,
}

/// Whether `dir` holds the records of a run.
pub(crate) fn exist_in(dir: &Path) -> bool {
    dir.join("metrics.csv").exists()
}

impl Records {
    /// New files in `dir`, with the run's configuration among the events. Of two runs that are started
    /// in the same directory at once, the one that makes `metrics.csv` has it.
    pub fn create(dir: &Path, config: &str) -> Result<Self> {
        let path = dir.join("metrics.csv");
        let metrics = match File::create_new(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return invalid(format!("--run-dir {}: holds a run already", dir.display()));
            }
            metrics => metrics.with_context(|| format!("{}: cannot be written", path.display()))?,
        };
        let mut events = EventWriter::create(dir)?;
        events.text("config", &format!("```\n{config}```"))?;
        let mut this = Self { metrics: BufWriter::with_capacity(1 << 16, metrics), metrics_len: 0, events };
        this.line("global_step,wall_seconds,tag,value\n")?;
        Ok(this)
    }

    /// The files in `dir` as they were at a checkpoint. What came after it is there until [`Records::cut`].
    ///
    /// # Errors
    /// Files that are missing or shorter than that.
    pub fn resume(dir: &Path, extent: &Extent) -> Result<Self> {
        let missing = |name: &str, error: &dyn std::fmt::Display| {
            InvalidInput(format!("--resume {}: {name}: {error}", dir.display()))
        };
        let opened = OpenOptions::new().write(true).open(dir.join("metrics.csv"));
        let mut metrics = opened.map_err(|error| missing("metrics.csv", &error))?;
        let (present, needed) = (metrics.metadata()?.len(), extent.metrics_len);
        if present < needed {
            let shown = dir.display();
            return invalid(format!(
                "--resume {shown}: metrics.csv has {present} bytes, resuming needs its first {needed}"
            ));
        }
        metrics.seek(SeekFrom::Start(needed))?;
        let events = dir.join(&extent.events_file);
        if !events.exists() {
            return Err(missing(&extent.events_file, &"the event file is missing").into());
        }
        Ok(Self {
            metrics: BufWriter::with_capacity(1 << 16, metrics),
            metrics_len: needed,
            events: EventWriter::resume(&events, extent.events_len)?,
        })
    }

    /// Cuts off what the files hold beyond what this run has written.
    pub fn cut(&mut self) -> Result<()> {
        self.flush()?;
        self.metrics.get_ref().set_len(self.metrics_len).context("cutting metrics.csv")?;
        self.events.cut()
    }

    /// Adds one number to both files.
    pub fn scalar(&mut self, step: usize, seconds: f64, tag: &str, value: f64) -> Result<()> {
        self.line(&format!("{step},{seconds:.3},{tag},{value}\n"))?;
        self.events.scalar(tag, value as f32, step as u64)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        self.metrics_len += line.len() as u64;
        self.metrics.write_all(line.as_bytes()).context("writing metrics.csv")
    }

    /// Hands everything written so far to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        self.metrics.flush().context("writing metrics.csv")?;
        self.events.flush()
    }

    /// Brings everything written so far to the disk; how far that is.
    pub fn sync(&mut self) -> Result<Extent> {
        self.flush()?;
        self.metrics.get_ref().sync_data().context("writing metrics.csv")?;
        self.events.sync()?;
        let events_file = self.events.path().file_name().context("the event file has a name")?;
        Ok(Extent {
            metrics_len: self.metrics_len,
            events_file: events_file.to_string_lossy().into_owned(),
            events_len: self.events.len(),
        })
    }

    /// Removes the files again.
    pub fn remove(self, dir: &Path) -> Result<()> {
        std::fs::remove_file(dir.join("metrics.csv"))?;
        Ok(std::fs::remove_file(self.events.path())?)
    }
}
