//! t

pub mod gif;
pub mod plot;
pub mod tensorboard;
