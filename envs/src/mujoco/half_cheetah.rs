//! HalfCheetah-v5: run forward with a planar body on two legs.
//!
//! Wawrzyński, "A cat-like robot real-time learning to run" (2009).

use super::{Camera, Definition, Simulation, Task, add_normal, add_uniform, sum_of_squares};
use crate::{Rng, Step};

pub(super) const DEFINITION: Definition = Definition {
    id: "HalfCheetah-v5",
    model: "half_cheetah.xml",
    frame_skip: 5,
    max_episode_steps: 1000,
    reward_threshold: Some(4800.0),
    contact_forces: false,
    camera: Camera { elevation: 0.0, width: 3.2, center: [0.0, 0.0, 0.7], follows: 1 },
    task: |_| Ok(Box::new(HalfCheetah)),
};

const RESET_NOISE: f64 = 0.1; // m, rad and their rates
const CONTROL_COST: f32 = 0.1;

/// qpos: x, height and angle of the torso, angles of the joints of the back leg, then of the
/// front leg (thigh, shin, foot).
struct HalfCheetah;

impl Task for HalfCheetah {
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng) {
        add_uniform(qpos, RESET_NOISE, rng);
        add_normal(qvel, RESET_NOISE, rng);
    }

    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step {
        let x = simulation.qpos()[0];
        simulation.advance(action);
        let x_velocity = (simulation.qpos()[0] - x) / simulation.dt();
        let reward = x_velocity - f64::from(CONTROL_COST * sum_of_squares(action));
        Step { reward, terminated: false, truncated: false }
    }

    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>) {
        observation.extend_from_slice(&simulation.qpos()[1..]); // the same wherever it is
        observation.extend_from_slice(simulation.qvel());
    }
}
