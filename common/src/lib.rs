//! t

pub mod plot;
pub mod tensorboard;
