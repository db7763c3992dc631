//! Ranks as processes that `mpirun` started.

use super::{Link, World};
use crate::cli;
use anyhow::Context;
use envs::Result;
use mpi::Threading;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

impl Link for SimpleCommunicator {
    fn send(&self, to: usize, message: Vec<u8>) -> Result<()> {
        self.process_at_rank(to as i32).send(&message[..]);
        Ok(())
    }

    fn receive(&self, from: usize) -> Result<Vec<u8>> {
        Ok(self.process_at_rank(from as i32).matched_probe().matched_receive_vec().0)
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
    if rank != 0 {
        // Ctrl-C reaches every rank. Rank 0 saves what was learned, which it needs the others for,
        // and then ends them.
        ctrlc::set_handler(|| {}).context("installing the Ctrl-C handler")?;
    }
    let world = World { rank, size, link: Box::new(communicator) };
    if let Err(error) = job(&world) {
        let code = cli::report(&error);
        universe.world().abort(i32::from(code));
    }
    Ok(())
}
