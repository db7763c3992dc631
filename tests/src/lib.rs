//! Regression tests: learning curves against published numbers, and environments against
//! recordings of their originals.

pub mod learning;
pub mod parity;

pub use learning::{check, is_deterministic, refuses, resumes};
