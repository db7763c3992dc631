//! Problems of textbooks and papers that Gymnasium does not have, under ids of their own.

mod swing_pendulum;

pub use swing_pendulum::SwingPendulum;

use crate::{Registration, wrappers::TimeLimit};

/// This family's environments. `-discrete` after the version is the environment with a few actions in
/// place of a continuous one.
pub fn registered() -> Vec<Registration> {
    vec![
        Registration {
            id: "SwingPendulum-v0",
            make: || Ok(Box::new(TimeLimit::new(SwingPendulum::new(false)))),
        },
        Registration {
            id: "SwingPendulum-v0-discrete",
            make: || Ok(Box::new(TimeLimit::new(SwingPendulum::new(true)))),
        },
    ]
}
