//! Programs that tests start: none outlives its deadline, nor the process that started it.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// What any run of a test may take: many times what one does, so that nothing but a hang meets it.
pub const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// How often a child is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Starts `command`. On Linux its process ends when the thread that started it does, so that
/// nothing goes on training after a test was killed.
///
/// # Errors
/// A program that cannot be started.
pub fn spawn(command: &mut Command) -> Result<Child> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;
        let end_with_the_parent = || {
            // SAFETY: prctl takes plain numbers here and only changes the calling process.
            match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(end_with_the_parent) };
    }
    command.spawn().with_context(|| format!("starting {}", command.get_program().display()))
}

/// Asks a child to save its state and end. After Ctrl-C in a terminal it has been asked already: a
/// program takes signals within a second of the first as one. A signal to this process alone has not
/// reached it.
pub fn send_interrupt(child: &Child) {
    #[cfg(unix)]
    {
        if let Ok(pid) = i32::try_from(child.id()) {
            // SAFETY: kill takes two integers; the child has not been waited for, so its id is its own.
            unsafe { libc::kill(pid, libc::SIGINT) };
        }
    }
    #[cfg(not(unix))]
    let _ = child; // the console has told it
}

/// Locks `file` for as long as it is open; false if another process has locked it.
///
/// # Errors
/// [`std::io::ErrorKind::Unsupported`] where nothing can be locked: by the file system, or by this on
/// other systems than Unix.
pub fn lock(file: &File) -> std::io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::fd::AsRawFd;
        // `File::try_lock` is younger than the oldest compiler that builds this.
        // SAFETY: flock takes two integers, of which the first is an open file's.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(true);
        }
        let error = std::io::Error::last_os_error();
        if error.kind() == std::io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// Waits until `child` has ended; kills it at the deadline.
///
/// # Errors
/// A child that had to be killed.
pub fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if started.elapsed() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("was killed, because it had not ended after {} s", deadline.as_secs_f64());
        }
        std::thread::sleep(POLL);
    }
}

/// Runs `command` to its end and returns what it printed.
///
/// # Errors
/// As [`spawn`] and [`wait`].
pub fn output(command: &mut Command, deadline: Duration) -> Result<Output> {
    // Files, not pipes: a pipe that nobody reads fills up.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let status = wait(&mut spawn(command)?, deadline);
    let contents = |file: &mut File| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let (stdout, stderr) = (contents(&mut stdout)?, contents(&mut stderr)?);
    let status = status.with_context(|| String::from_utf8_lossy(&stderr).into_owned())?;
    Ok(Output { status, stdout, stderr })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_status_are_handed_over() {
        let output = output(&mut shell("echo out; echo err >&2; exit 3"), DEADLINE).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
        assert!(format!("{:#}", spawn(&mut Command::new("/none")).unwrap_err()).contains("starting /none"));
    }

    #[test]
    fn a_file_is_locked_once_and_as_long_as_it_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::create(folder.path().join("lock")).unwrap();
        let (first, second) = (open(), open());
        assert_eq!((lock(&first).unwrap(), lock(&second).unwrap()), (true, false));
        drop(first);
        assert!(lock(&second).unwrap());
    }

    #[test]
    fn what_hangs_is_killed() {
        let error =
            output(&mut shell("echo last words >&2; while :; do :; done"), Duration::from_millis(200));
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("last words") && error.contains("was killed"), "{error}");
    }
}
