//! (family)

use crate::Registration;

/// This family's environments.
pub fn registered() -> Vec<Registration> {
    Vec::new()
}
