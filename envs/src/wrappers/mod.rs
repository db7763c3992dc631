//! Wrappers that papers assume, each a small struct in its own file.
//!
//! [`TimeLimit`], [`ClipAction`], [`RescaleAction`], [`FrameStack`] and [`StickyAction`] wrap one
//! environment and are environments themselves, so they nest. [`NormalizeObservation`] and
//! [`NormalizeReward`] keep statistics over all copies of an environment, so they sit beside a
//! [`crate::VecEnv`] and are saved with the model that was trained on what they gave.

mod clip_action;
mod frame_stack;
mod normalize_observation;
mod normalize_reward;
mod rescale_action;
mod running_mean_std;
mod sticky_action;
mod time_limit;
#[cfg(test)]
mod toy;

pub use clip_action::ClipAction;
pub use frame_stack::FrameStack;
pub use normalize_observation::NormalizeObservation;
pub use normalize_reward::NormalizeReward;
pub use rescale_action::RescaleAction;
pub use running_mean_std::RunningMeanStd;
pub use sticky_action::StickyAction;
pub use time_limit::TimeLimit;

use crate::{Env, Result, Space, invalid};

/// Lower and upper bounds of a Box action space, for `wrapper`, which needs one.
fn action_bounds(env: &impl Env, wrapper: &str) -> Result<(Vec<f32>, Vec<f32>)> {
    let id = &env.spec().id;
    match &env.spec().action_space {
        Space::Box { low, high, .. } if low.iter().zip(high).all(|(l, h)| l <= h) => {
            Ok((low.clone(), high.clone()))
        }
        Space::Box { .. } => invalid(format!("{id}: an action's lower bound is above its upper bound")),
        space => invalid(format!("{id}: {wrapper} needs Box actions, this environment has {space}")),
    }
}
