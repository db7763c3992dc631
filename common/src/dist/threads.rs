//! Ranks as threads: a channel from each rank to each.

use super::{Link, World};
use anyhow::Context;
use envs::Result;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// A rank was waited for that is no more. Never the first error of a job.
#[derive(Debug)]
struct Ended(usize);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} ended while another waited for it", self.0)
    }
}

impl std::error::Error for Ended {}

/// A rank's ends of the channels, ordered by the rank at the other end. When the rank ends, for
/// whatever reason, they are dropped: who waits for it gets an error, ends too, and so on.
struct Channels {
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl Link for Channels {
    fn send(&self, to: usize, message: Vec<u8>) -> Result<()> {
        self.to[to].send(message).map_err(|_| Ended(to).into())
    }

    fn receive(&self, from: usize) -> Result<Vec<u8>> {
        self.from[from].recv().map_err(|_| Ended(from).into())
    }
}

/// A channel from each of `size` ranks to each.
fn connect(size: usize) -> Vec<Channels> {
    let mut links: Vec<_> = (0..size).map(|_| Channels { to: Vec::new(), from: Vec::new() }).collect();
    for sender in 0..size {
        for receiver in 0..size {
            let (to, from) = channel();
            links[sender].to.push(to);
            links[receiver].from.push(from);
        }
    }
    links
}

/// [`super::launch`] with threads.
pub(super) fn launch(workers: usize, job: impl Fn(&World) -> Result<()> + Sync) -> Result<()> {
    let job = &job;
    let ends = thread::scope(|scope| -> Result<Vec<thread::Result<Result<()>>>> {
        let mut threads = Vec::with_capacity(workers);
        for (rank, link) in connect(workers).into_iter().enumerate() {
            let run = move || job(&World { rank, size: workers, link: Box::new(link) });
            let builder = thread::Builder::new().name(format!("rank {rank}")).stack_size(8 << 20);
            let thread = builder.spawn_scoped(scope, run);
            threads.push(thread.with_context(|| format!("--workers {workers}: starting rank {rank}"))?);
        }
        Ok(threads.into_iter().map(|thread| thread.join()).collect())
    })?;
    let mut first_error = None;
    for end in ends {
        match end {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(Ok(())) => {}
            // A rank that failed of itself says more than one that waited for it.
            Ok(Err(error)) if error.is::<Ended>() => {
                first_error.get_or_insert(error);
            }
            Ok(Err(error)) => return Err(error),
        }
    }
    first_error.map_or(Ok(()), Err)
}
