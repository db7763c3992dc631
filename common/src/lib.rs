//! What the algorithms share, kept thin: command line, run directory and logging, network parts,
//! checkpoints, plots, and ranks that work together. Nothing here is algorithmic: losses, advantage
//! estimators, replay buffers and exploration schedules are in the algorithms' own files.

pub mod checkpoint;
pub mod cli;
mod console;
pub mod dist;
pub mod gif;
mod interrupt;
pub mod model;
pub mod nn;
pub mod plot;
mod records;
pub mod run;
mod tensorboard;
mod timer;
mod write_atomically;

/// Every tensor operation allocates its result. The C library returns large blocks to the operating
/// system and gets them back page by page, which costs more than the arithmetic of a small network.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub use envs;
pub use interrupt::{Interrupted, take_over};
pub use run::Run;
pub use write_atomically::write_atomically;
