//! What algorithms are tested with: learning curves against published numbers, learning steps
//! against PyTorch's, pinned runs, scripted environments; and speed beside that of other libraries.

pub mod learning;
pub mod paths;
pub mod pinned;
pub mod process;
pub mod programs;
pub mod recorded;
pub mod scripted;
pub mod speed;
pub mod thresholds;

#[cfg(target_os = "linux")]
pub use learning::hears_ctrl_c_in_evaluation;
pub use learning::{
    check, evaluates_alike, give_the_same_run, is_deterministic, refuses, resumes, survives_kills,
};
pub use pinned::pinned;
pub use recorded::{Layers, Recording, first_gradients};
pub use scripted::{SCRIPT, View, scripted};
