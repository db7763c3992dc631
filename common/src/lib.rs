//! t

pub mod tensorboard;
