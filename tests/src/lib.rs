//! Regression tests: learning curves against published numbers, and environments against
//! recordings of their originals.

pub mod parity;
