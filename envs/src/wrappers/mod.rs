//! Wrappers that papers assume, each a small struct around an environment.

mod time_limit;

pub use time_limit::TimeLimit;
