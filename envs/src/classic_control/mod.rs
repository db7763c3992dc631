//! Classic control: the small physics problems of Sutton & Barto and of the early literature.

mod cartpole;

pub use cartpole::CartPole;

use crate::{Registration, wrappers::TimeLimit};

/// This family's environments.
pub fn registered() -> Vec<Registration> {
    vec![Registration { id: "CartPole-v1", make: || Ok(Box::new(TimeLimit::new(CartPole::new()))) }]
}
