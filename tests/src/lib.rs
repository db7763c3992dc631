//! Regression tests: learning curves against published numbers, and environments against
//! recordings of their originals, and speed beside that of other libraries.

pub mod learning;
pub mod parity;
pub mod paths;
pub mod pinned;
pub mod process;
pub mod recorded;
pub mod scripted;
pub mod speed;
pub mod thresholds;

pub use learning::{
    check, evaluates_alike, give_the_same_run, is_deterministic, refuses, resumes, survives_kills,
};
pub use pinned::pinned;
pub use recorded::{Layers, Recording, first_gradients};
pub use scripted::{SCRIPT, View, scripted};
