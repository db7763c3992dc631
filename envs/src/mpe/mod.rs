//! Multi-agent particle environments.
