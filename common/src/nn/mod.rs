//! Network parts: what candle lacks, and what makes candle fast on small networks on a CPU.
//!
//! Everything here computes with candle's `Tensor`s, and is named as `candle_nn` and PyTorch name it
//! wherever they have the thing. A file copied into another repository keeps it by depending on this
//! crate. To run on plain candle instead it needs these changes:
//!
//! - [`VarMap`] and [`VarBuilder`]: `candle_nn`'s, whose initial values cannot be seeded on a CPU and
//!   whose order of parameters differs from process to process; [`copy_parameters`] and
//!   [`soft_update`] become a loop over the variables of two maps.
//! - [`Linear`], [`linear`]: `candle_nn`'s and its trait `Module`; `layer.forward_relu(x)` becomes
//!   `layer.forward(x)?.relu()`. There is no orthogonal initialisation and no
//!   [`Linear::detach`], for which weight and bias are detached by hand.
//! - [`Conv2d`]: `candle_nn`'s, on images `[batch, channels, height, width]` where here the channels
//!   come last, as environments give them. There is no [`conv2d_orthogonal`].
//! - [`Adam`]: `candle_nn::AdamW` with a weight decay of 0, and clipping by hand. There is no
//!   [`RmsProp`].
//! - [`VarMap::gradients`], [`VarMap::values`]: loops over the variables, flattened.
//! - [`backward`]: `loss.backward()`. [`clip_grad_norm`]: a loop over the gradients.
//! - [`Categorical`]: a few lines with `candle_nn::ops::log_softmax`.
//! - [`minimum`], [`maximum`], [`clamp`]: `Tensor`'s own methods of these names, and where one bound
//!   of `clamp` is infinite the method for the other.
//! - [`matmul`]: `Tensor::matmul`, whose last bits depend on the CPU.
//! - [`both`], [`side_by_side`], [`Adam::backward_step_of_both`], [`Adam::backward_step_by_rows`]: the
//!   plain thing that their names say; they only let `--threads` work on parts side by side.

mod adam;
mod bounds;
mod categorical;
mod conv;
mod dense;
mod gradients;
mod init;
mod parallel;
mod product;
mod rmsprop;
mod simd;
mod var;

pub use adam::Adam;
pub use bounds::{clamp, maximum, minimum};
pub use categorical::Categorical;
pub use conv::{Conv2d, Conv2dConfig, conv2d, conv2d_orthogonal};
pub use dense::{Activation, Linear, linear, linear_orthogonal};
pub use gradients::{backward, clip_grad_norm};
pub use init::Init;
pub use parallel::{both, side_by_side, with_threads};
pub use product::matmul;
pub use rmsprop::RmsProp;
pub use var::{VarBuilder, VarMap, copy_parameters, soft_update};
