//! A peer: a process that makes a run whenever it is asked to.

use anyhow::{Context, bail};
use envs::Result;
use serde::Deserialize;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// It makes one run for each line on its standard input and answers with one line of JSON; see
/// `tests/peers/measured.py`. It ends when its standard input does.
pub struct Process {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    stderr: std::fs::File,
    /// Where it runs and leaves what it leaves: logs of Stable-Baselines3 and of MuJoCo.
    _folder: tempfile::TempDir,
}

/// A run.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Done {
    /// Environment steps, or updates.
    pub steps: f64,
    pub seconds: f64,
}

impl Process {
    /// Starts `command`.
    pub fn start(mut command: Command) -> Result<Self> {
        let stderr = tempfile::tempfile()?;
        let folder = tempfile::tempdir()?;
        command.current_dir(folder.path()).env("TMPDIR", folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr.try_clone()?);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("standard output is piped")?);
        Ok(Self { child, requests, answers, stderr, _folder: folder })
    }

    /// Asks for a run.
    ///
    /// # Errors
    /// The process has ended; its last line is in the message.
    pub fn run(&mut self) -> Result<Done> {
        let mut line = String::new();
        let asked = self.requests.as_mut().context("standard input is piped")?.write_all(b"\n");
        if asked.is_ok() {
            self.answers.read_line(&mut line)?;
        }
        match serde_json::from_str(&line) {
            Ok(done) => Ok(done),
            Err(_) => bail!("{}", self.last_words()?),
        }
    }

    /// How the process ended and the last line it wrote.
    fn last_words(&mut self) -> Result<String> {
        self.requests = None;
        let status = self.child.wait()?;
        let mut stderr = String::new();
        self.stderr.seek(SeekFrom::Start(0))?;
        self.stderr.read_to_string(&mut stderr)?;
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
        Ok(format!("{status}: {}", last.unwrap_or("nothing on standard error")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.requests = None;
        // It is done measuring; how it ends is of no interest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command).unwrap()
    }

    #[test]
    fn each_request_is_answered() {
        let mut process = shell(r#"while read line; do echo '{"steps": 30, "seconds": 1.5}'; done"#);
        let done = Done { steps: 30.0, seconds: 1.5 };
        assert_eq!((process.run().unwrap(), process.run().unwrap()), (done, done));
    }

    #[test]
    fn a_crash_is_told_with_its_last_line() {
        let mut process = shell(
            r#"read line; echo '{"steps": 1, "seconds": 1}'
               read line; echo a >&2; echo 'KeyError: 7' >&2; echo >&2; exit 3"#,
        );
        assert_eq!(process.run().unwrap().steps, 1.0);
        let error = process.run().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with(": KeyError: 7"), "{error}");
    }
}
