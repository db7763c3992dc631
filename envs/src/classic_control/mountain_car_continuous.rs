//! MountainCarContinuous-v0: the mountain car with a throttle, and a reward that counts energy.
//!
//! Moore, "Efficient memory-based learning for robot control" (1990); constants and arithmetic as
//! in Gymnasium's MountainCarContinuous-v0.

use super::mountain_car::{checked_state, draw_valley, observation_space};
use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step};
use rand::RngExt;

const MIN_POSITION: f64 = -1.2;
const MAX_POSITION: f64 = 0.6;
const MAX_SPEED: f64 = 0.07; // per step
const GOAL: f64 = 0.45;
const POWER: f64 = 0.0015;
const GRAVITY: f64 = 0.0025;

/// State: position x along the valley, velocity v in positions per step.
///
/// The original computes in double precision until an episode's first step, which rounds the
/// state, and in single precision ever after. Here, too: a state that single precision can hold
/// is advanced in single precision, any other in double.
pub struct MountainCarContinuous {
    spec: Spec,
    state: [f64; 2],
}

impl MountainCarContinuous {
    /// At rest at position 0; [`Env::reset`] begins an episode.
    pub fn new() -> Self {
        Self {
            spec: Spec {
                id: "MountainCarContinuous-v0".into(),
                observation_space: observation_space(),
                action_space: Space::uniform(1, -1.0, 1.0),
                max_episode_steps: Some(999),
                reward_threshold: Some(90.0),
            },
            state: [0.0; 2],
        }
    }
}

impl Default for MountainCarContinuous {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for MountainCarContinuous {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.state = [rng.random_range(-0.6..-0.4), 0.0];
        Ok(())
    }

    /// Action: throttle, held to [-1, 1] (its cost is not).
    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let [x, v] = self.state;
        let single = self.state.iter().all(|&s| s == single_precision(s));
        // Rounding the double precision result of one operation on single precision numbers
        // gives exactly the single precision result.
        let round = |y: f64| if single { single_precision(y) } else { y };

        let throttle = action.vector()[0];
        let slope = GRAVITY * round(3.0 * x).cos();
        // Within its limits the throttle is a single precision number and makes the sum one; held
        // to them it is not.
        let acceleration = if throttle.abs() <= 1.0 {
            f64::from(throttle * POWER as f32 - slope as f32)
        } else {
            f64::from(throttle.signum()) * POWER - slope
        };
        let v = round(v + round(acceleration)).clamp(-round(MAX_SPEED), round(MAX_SPEED));
        let x = round(x + v).clamp(round(MIN_POSITION), round(MAX_POSITION));
        // The wall on the left stops the car.
        let v = if x == round(MIN_POSITION) { v.max(0.0) } else { v };
        let terminated = x >= round(GOAL) && v >= 0.0;
        self.state = [x, v].map(single_precision);

        let energy = f64::from(throttle) * f64::from(throttle);
        let reward = if terminated { 100.0 } else { 0.0 } - energy * 0.1;
        Ok(Step { reward, terminated, truncated: false })
    }

    fn observe(&self, observation: &mut [f32]) {
        for (o, s) in observation.iter_mut().zip(self.state) {
            *o = s as f32;
        }
    }

    fn state(&self) -> Result<State> {
        Ok(State(self.state.to_vec()))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        self.state = checked_state(&self.spec, state)?;
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        draw_valley(canvas, self.state[0], GOAL);
        Ok(())
    }
}

/// The nearest single precision number.
fn single_precision(x: f64) -> f64 {
    f64::from(x as f32)
}
