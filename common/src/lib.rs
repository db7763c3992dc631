//! What the algorithms share, kept thin: command line, run directory and logging, network parts,
//! checkpoints, plots, and ranks that work together. Nothing here is algorithmic: losses, advantage
//! estimators, replay buffers and exploration schedules are in the algorithms' own files.

pub mod checkpoint;
pub mod cli;
pub mod dist;
pub mod gif;
pub mod model;
pub mod nn;
pub mod plot;
pub mod run;
pub mod tensorboard;

pub use envs;
pub use run::Run;
