//! Ctrl-C, SIGTERM and SIGHUP (unless it is ignored, as with `nohup`): the first one asks a run to save
//! itself and end, a second one, a second later or more, ends the program at once.

use crate::console::tell;
use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Exit code of a program that one of them ended: 128 and the number of SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

/// Signals as close together as this are one request: a terminal, a shell and a scheduler may each pass
/// it on, and so does a program that runs others.
const TOGETHER: Duration = Duration::from_secs(1);

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The program was interrupted by Ctrl-C. Holds the line to print, which says where its state was
/// saved, if it could be.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Takes Ctrl-C over, unless this program has done so before.
pub(crate) fn listen() -> Result<()> {
    let mut first = None;
    let handler = move || match request(&mut first, Instant::now()) {
        Request::Save => {
            // Said first: who notices the request may be the last to speak.
            tell("interrupted: the run saves itself at its next iteration; again to end at once");
            REQUESTED.store(true, Ordering::Relaxed);
        }
        Request::Same => {}
        Request::End => {
            tell("interrupted again: nothing is saved");
            std::process::exit(EXIT_CODE.into());
        }
    };
    take_over(handler)
}

#[derive(Debug, PartialEq)]
enum Request {
    Save,
    Same,
    End,
}

/// What a signal at `now` asks for, where the first one was at `first`.
fn request(first: &mut Option<Instant>, now: Instant) -> Request {
    match *first.get_or_insert(now) {
        at if at == now => Request::Save,
        at if now - at < TOGETHER => Request::Same,
        _ => Request::End,
    }
}

/// Calls `handler` at every Ctrl-C, SIGTERM and SIGHUP, unless this program has one for them already.
/// A SIGHUP that is ignored stays so: `nohup` protects a run from the end of its terminal.
///
/// # Errors
/// The system refuses it.
pub fn take_over(handler: impl FnMut() + Send + 'static) -> Result<()> {
    #[cfg(unix)]
    let ignored = hangup_is_ignored();
    match ctrlc::set_handler(handler) {
        Ok(()) | Err(ctrlc::Error::MultipleHandlers) => {}
        Err(error) => return Err(error).context("installing the Ctrl-C handler"),
    }
    #[cfg(unix)]
    if ignored {
        // SAFETY: SIG_IGN is a disposition that every signal but SIGKILL and SIGSTOP can have.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
    Ok(())
}

#[cfg(unix)]
fn hangup_is_ignored() -> bool {
    // SAFETY: zeros are a valid `sigaction`, which is plain numbers and flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action changes nothing, and `action` is writable.
    let read = unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut action) };
    read == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Whether Ctrl-C was pressed.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_close_together_are_one_request() {
        let (start, mut first) = (Instant::now(), None);
        let mut at = |milliseconds| request(&mut first, start + Duration::from_millis(milliseconds));
        assert_eq!(at(0), Request::Save);
        assert_eq!(at(5), Request::Same);
        assert_eq!(at(999), Request::Same);
        assert_eq!(at(1000), Request::End);
    }
}
