//! Classic control: the small physics problems of Sutton & Barto and of the early literature.

mod acrobot;
mod cartpole;
mod mountain_car;
mod mountain_car_continuous;
mod pendulum;

pub use acrobot::Acrobot;
pub use cartpole::CartPole;
pub use mountain_car::MountainCar;
pub use mountain_car_continuous::MountainCarContinuous;
pub use pendulum::Pendulum;

pub(crate) use mountain_car::draw_valley;

use crate::{Registration, wrappers::TimeLimit};

/// This family's environments.
pub fn registered() -> Vec<Registration> {
    vec![
        Registration { id: "CartPole-v1", make: || Ok(Box::new(TimeLimit::new(CartPole::new()))) },
        Registration { id: "MountainCar-v0", make: || Ok(Box::new(TimeLimit::new(MountainCar::new()))) },
        Registration {
            id: "MountainCarContinuous-v0",
            make: || Ok(Box::new(TimeLimit::new(MountainCarContinuous::new()))),
        },
        Registration { id: "Acrobot-v1", make: || Ok(Box::new(TimeLimit::new(Acrobot::new()))) },
        Registration { id: "Pendulum-v1", make: || Ok(Box::new(TimeLimit::new(Pendulum::new()))) },
    ]
}
