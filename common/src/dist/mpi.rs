//! Ranks as processes that `mpirun` started.

use super::{Link, World};
use crate::{cli, interrupt};
use anyhow::Context;
use envs::Result;
use mpi::Threading;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

/// MPI counts bytes with an `i32`. A longer message goes in parts: after one of exactly this length
/// there is another, which may be empty.
const LONGEST: usize = i32::MAX as usize;

impl Link for SimpleCommunicator {
    fn send(&self, to: usize, message: Vec<u8>) -> Result<()> {
        let process = self.process_at_rank(to as i32);
        let mut rest = &message[..];
        loop {
            let (part, others) = rest.split_at(rest.len().min(LONGEST));
            process.send(part);
            if part.len() < LONGEST {
                return Ok(());
            }
            rest = others;
        }
    }

    fn receive(&self, from: usize) -> Result<Vec<u8>> {
        let process = self.process_at_rank(from as i32);
        let mut message: Vec<u8> = process.matched_probe().matched_receive_vec().0;
        let mut last = message.len();
        while last == LONGEST {
            let part: Vec<u8> = process.matched_probe().matched_receive_vec().0;
            last = part.len();
            message.extend(part);
        }
        Ok(message)
    }
}

/// [`super::launch`] with processes.
pub(super) fn launch(job: impl Fn(&World) -> Result<()>) -> Result<()> {
    let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
        .context("dist::launch: a program can join MPI's ranks only once")?;
    // MPI shuts down when `universe` is dropped, and that waits for all ranks. A rank that fails
    // must therefore not get there, neither by unwinding nor by returning: it aborts the job.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default_hook(panic);
        SimpleCommunicator::world().abort(101)
    }));
    let communicator = universe.world();
    let (rank, size) = (communicator.rank() as usize, communicator.size() as usize);
    let world = World { rank, size, link: Box::new(communicator) };
    let run = || {
        if rank != 0 {
            // Ctrl-C reaches every rank. Rank 0 saves what was learned, which it needs the others for,
            // and then ends them.
            interrupt::take_over(|| {})?;
        }
        job(&world)
    };
    if let Err(error) = run() {
        let code = cli::report(&error);
        universe.world().abort(i32::from(code));
    }
    Ok(())
}
