//! The Python process behind a bridge: starting it, talking to it, and ending it for certain.

use super::{Purpose, Python};
use crate::{Result, invalid};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

#[cfg(unix)]
type Stream = std::os::unix::net::UnixStream;
/// Never connected: the bridge needs a Unix system. It has the same methods.
#[cfg(not(unix))]
type Stream = std::net::TcpStream;

/// Seconds that environments get to close themselves when the bridge is dropped; the same as
/// `GRACE` in bridge.py.
const GRACE: Duration = Duration::from_secs(2);

/// A name byte and the number of bytes that follow.
const HEADER: usize = 1 + 8;

/// A Python process that runs `bridge.py`, whose opening describes the frames.
pub struct Process {
    id: String,
    child: Child,
    reader: BufReader<Stream>,
    request: Vec<u8>,
    timeout: Duration,
    /// Why the process was given up, once it was.
    failure: Option<String>,
}

/// What is asked of the process; each is the name byte of its frame.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub enum Request {
    /// The description of the environment, which comes unasked.
    Start = 0,
    Reset = b'R',
    Step = b'S',
    Save = b'P',
    Restore = b'U',
}

impl Process {
    /// Starts `python` with `num_envs` copies of `id` and reads the description of the
    /// environment into `description`.
    pub fn start(
        id: &str,
        num_envs: usize,
        purpose: Purpose,
        autoreset: bool,
        python: &Python,
        description: &mut Vec<u8>,
    ) -> Result<Self> {
        let (child, stream) = spawn(id, num_envs, purpose, autoreset, python)?;
        // A socket refuses a timeout of zero.
        let timeout = python.timeout.max(Duration::from_millis(1));
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let reader = BufReader::with_capacity(1 << 16, stream);
        let mut process =
            Self { id: format!("gym:{id}"), child, reader, request: Vec::new(), timeout, failure: None };
        process.answer(Request::Start, description)?;
        Ok(process)
    }

    /// Sends a request with `data` and reads the answer's bytes into `answer`.
    pub fn call(&mut self, request: Request, data: &[u8], answer: &mut Vec<u8>) -> Result<()> {
        if let Some(failure) = &self.failure {
            return invalid(failure.clone());
        }
        // Header and data in one write: the other end then wakes up once.
        self.request.clear();
        self.request.push(request as u8);
        self.request.extend_from_slice(&(data.len() as u64).to_ne_bytes());
        self.request.extend_from_slice(data);
        match self.reader.get_mut().write_all(&self.request) {
            Ok(()) => self.answer(request, answer),
            Err(error) => self.give_up(request, &error),
        }
    }

    /// Gives the process up because its answer makes no sense.
    pub fn malformed<T>(&mut self, request: Request, detail: &str) -> Result<T> {
        let error = io::Error::new(ErrorKind::InvalidData, detail);
        self.give_up(request, &error)
    }

    fn answer(&mut self, request: Request, answer: &mut Vec<u8>) -> Result<()> {
        match self.receive(answer) {
            Ok(b'K') => Ok(()),
            Ok(b'E') => {
                let text = String::from_utf8_lossy(answer);
                match request {
                    Request::Start => invalid(format!("--env-id {}: {text}", self.id)),
                    Request::Save | Request::Restore => invalid(format!("{}: {text}", self.id)),
                    Request::Reset => invalid(format!("{}: reset failed: {text}", self.id)),
                    Request::Step => invalid(format!("{}: step failed: {text}", self.id)),
                }
            }
            Ok(_) => self.malformed(request, "an unknown frame"),
            Err(error) => self.give_up(request, &error),
        }
    }

    /// Reads one frame; returns its name byte.
    fn receive(&mut self, data: &mut Vec<u8>) -> io::Result<u8> {
        let mut header = [0; HEADER];
        self.reader.read_exact(&mut header[..1])?;
        let name = header[0];
        if !matches!(name, b'K' | b'E') {
            // Most likely text that something printed before bridge.py took the socket away.
            let text = String::from_utf8_lossy(self.reader.buffer());
            let line = text.lines().next().unwrap_or_default();
            let detail = format!("{:?}", format!("{}{line}", char::from(name)));
            return Err(io::Error::new(ErrorKind::InvalidData, detail));
        }
        self.reader.read_exact(&mut header[1..])?;
        let mut length = [0; 8];
        length.copy_from_slice(&header[1..]);
        let length = u64::from_ne_bytes(length);
        data.clear();
        // Grows as data arrives, so that a wrong length asks for no memory.
        (&mut self.reader).take(length).read_to_end(data)?;
        if data.len() as u64 == length { Ok(name) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    /// Ends the process after `error` and says what it was.
    fn give_up<T>(&mut self, request: Request, error: &io::Error) -> Result<T> {
        let exited = self.child.try_wait().ok().flatten();
        let status = self.end();
        let id = &self.id;
        let during = match request {
            Request::Start => "its start",
            Request::Reset => "a reset",
            Request::Step => "a step",
            Request::Save => "saving its state",
            Request::Restore => "restoring its state",
        };
        let message = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut if exited.is_none() => format!(
                "{id}: stopped after {} s without an answer during {during}; --env-timeout or PLAINRL_ENV_TIMEOUT allows more",
                self.timeout.as_secs_f64()
            ),
            ErrorKind::InvalidData => format!("{id}: malformed answer from Python during {during}: {error}"),
            _ => format!("{id}: Python ended during {during}: {status}"),
        };
        self.failure = Some(message.clone());
        invalid(message)
    }

    /// Kills the process and says how it ended; the guard that bridge.py posted ends the rest.
    fn end(&mut self) -> String {
        drop(self.child.stdin.take());
        // Fails where the process has ended already, which is as good.
        let _ = self.child.kill();
        match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.failure.is_none() {
            // Closing both pipes asks bridge.py to close its environments and end.
            drop(self.child.stdin.take());
            let stream = self.reader.get_mut();
            let asked = stream.shutdown(std::net::Shutdown::Write);
            if asked.is_ok() && stream.set_read_timeout(Some(GRACE)).is_ok() {
                // Returns at its end, or with an error when it takes too long; either is fine.
                let _ = io::copy(stream, &mut io::sink());
            }
            self.end();
        }
    }
}

#[cfg(unix)]
fn spawn(
    id: &str,
    num_envs: usize,
    purpose: Purpose,
    autoreset: bool,
    python: &Python,
) -> Result<(Child, Stream)> {
    let (ours, theirs) = Stream::pair()?;
    let mut command = Command::new(&python.interpreter);
    command
        .args(["-u", "-c", include_str!("bridge.py"), id, &num_envs.to_string()])
        .arg(if autoreset { "autoreset" } else { "single" })
        .arg(match purpose {
            Purpose::Training => "training",
            Purpose::Evaluation => "evaluation",
        })
        // A pipe that nothing is written to: it closes when this program ends, however it ends.
        .stdin(Stdio::piped())
        .stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .env("PYGAME_HIDE_SUPPORT_PROMPT", "1");
    if !python.module_paths.is_empty() {
        let inherited = std::env::var_os("PYTHONPATH").unwrap_or_default();
        let inherited = std::env::split_paths(&inherited).filter(|path| !path.as_os_str().is_empty());
        command
            .env("PYTHONPATH", std::env::join_paths(python.module_paths.iter().cloned().chain(inherited))?);
    }
    let spawned = command.spawn();
    match spawned {
        // `command` holds the other end of the socket and is dropped here; what is left is
        // Python's alone, so that its end is seen.
        Ok(child) => Ok((child, ours)),
        Err(error) => invalid(format!(
            "--env-id gym:{id}: cannot run Python as {}: {error}; install Python 3, or name an interpreter in PLAINRL_PYTHON",
            python.interpreter.display()
        )),
    }
}

#[cfg(not(unix))]
fn spawn(id: &str, _: usize, _: Purpose, _: bool, _: &Python) -> Result<(Child, Stream)> {
    invalid(format!("--env-id gym:{id}: environments of Python's Gymnasium need a Unix system"))
}
