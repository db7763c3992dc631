//! Network parts: what candle lacks, and what makes candle fast on small networks on a CPU.
//!
//! Names and signatures are `candle_nn`'s wherever it has the thing, so that a copied file runs
//! on plain candle after changing an import. Three differences are on purpose: parameters are
//! kept in one fixed order (`candle_nn::VarMap` iterates in an order that differs from process to
//! process), initial values come from the run's own generator (candle's CPU device cannot be
//! seeded), and a [`Linear`] layer, with its activation, is one fused operation.

mod adam;
mod categorical;
mod conv;
mod dense;
mod gradients;
mod init;
mod parallel;
mod simd;
mod var;

pub use adam::{Adam, clip_grad_norm};
pub use categorical::Categorical;
pub use conv::{Conv2d, Conv2dConfig, conv2d, conv2d_orthogonal};
pub use dense::{Activation, Linear, linear, linear_orthogonal};
pub use gradients::backward;
pub use init::Init;
pub use parallel::{both, join, with_threads};
pub use var::{VarBuilder, VarMap, copy_parameters, soft_update};
