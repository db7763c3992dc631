//! Steps of vectorised environments with random actions, drawn beforehand.

use super::Run;
use envs::{Actions, Result, Space, VecEnv, invalid, rng};
use rand::RngExt;
use std::time::Instant;

/// Actions for this many calls are drawn, then used again and again.
const CALLS: usize = 256;

/// A run is `steps` steps, those of all `num_envs` environments counted; its result is steps per
/// second.
pub fn start(env_id: &str, num_envs: usize, steps: usize) -> Result<Run<'static>> {
    let mut envs = VecEnv::make(env_id, num_envs, 1)?;
    let mut rng = rng(1, 1);
    let action_size = envs.spec().action_space.size();
    let (mut indices, mut numbers) = (Vec::new(), Vec::new());
    match &envs.spec().action_space {
        Space::Discrete { n } => {
            indices = (0..CALLS * num_envs).map(|_| rng.random_range(0..*n as u32)).collect();
        }
        Space::Box { low, high, .. } => {
            for _ in 0..CALLS * num_envs {
                numbers.extend(low.iter().zip(high).map(|(low, high)| rng.random_range(*low..=*high)));
            }
        }
        space @ Space::Tuple(_) => return invalid(format!("{env_id}: no actions are drawn from {space}")),
    }
    let calls = steps / num_envs;
    Ok(Box::new(move || {
        let start = Instant::now();
        for call in 0..calls {
            let first = call % CALLS * num_envs;
            if numbers.is_empty() {
                envs.step(Actions::Discrete(&indices[first..first + num_envs]))?;
            } else {
                let range = first * action_size..(first + num_envs) * action_size;
                envs.step(Actions::Continuous(&numbers[range]))?;
            }
        }
        Ok((calls * num_envs) as f64 / start.elapsed().as_secs_f64())
    }))
}
