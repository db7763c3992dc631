//! The environments that `--env-id` names.

use crate::{Env, Result, gymnasium, invalid};

/// An environment family's entry: the id and how to build it.
#[derive(Clone, Copy)]
pub struct Registration {
    /// Gymnasium's id.
    pub id: &'static str,
    /// Builds one environment with its time limit. MuJoCo tasks fail here when the library is
    /// not installed.
    pub make: fn() -> Result<Box<dyn Env>>,
}

/// Every registered environment, family by family.
pub fn registry() -> Vec<Registration> {
    [
        crate::classic_control::registered(),
        crate::toy_text::registered(),
        crate::textbook::registered(),
        crate::minatar::registered(),
        crate::mujoco::registered(),
    ]
    .concat()
}

/// Builds the environment `id`; `gym:ID` runs Gymnasium's `ID` in a Python process.
///
/// # Errors
/// An unknown id lists the known ones, nearest first.
pub fn make(id: &str) -> Result<Box<dyn Env>> {
    if let Some(id) = id.strip_prefix("gym:") {
        return gymnasium::make(id);
    }
    if let Some(entry) = registry().iter().find(|entry| entry.id == id) {
        return (entry.make)();
    }
    let mut known: Vec<&str> = registry().iter().map(|entry| entry.id).collect();
    // Stable sort: equally distant ids keep the registry's order.
    let wanted = id.to_lowercase();
    known.sort_by(|a, b| {
        let distance = |s: &str| strsim::jaro_winkler(&wanted, &s.to_lowercase());
        distance(b).total_cmp(&distance(a))
    });
    invalid(format!(
        "--env-id {id}: unknown environment; known, nearest first: {}, or gym:ID for any environment of Python's Gymnasium",
        known.join(", ")
    ))
}
