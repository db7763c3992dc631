//! InvertedPendulum-v5: balance a pole on a cart by pushing the cart.
//!
//! The cart and pole of Barto, Sutton & Anderson, "Neuronlike adaptive elements that can solve
//! difficult learning control problems" (1983), with continuous forces.

use super::{Camera, Definition, Simulation, Task, add_uniform};
use crate::{Rng, Step};

pub(super) const DEFINITION: Definition = Definition {
    id: "InvertedPendulum-v5",
    model: "inverted_pendulum.xml",
    frame_skip: 2,
    max_episode_steps: 1000,
    reward_threshold: Some(950.0),
    contact_forces: false,
    camera: Camera { elevation: 0.0, width: 2.6, center: [0.0, 0.0, 0.3], follows: 0 },
    task: |_| Ok(Box::new(InvertedPendulum)),
};

const RESET_NOISE: f64 = 0.01; // m, rad and their rates
const HEALTHY_ANGLE: f64 = 0.2; // rad

/// qpos: cart, pole angle (0 is upright).
struct InvertedPendulum;

impl Task for InvertedPendulum {
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng) {
        add_uniform(qpos, RESET_NOISE, rng);
        add_uniform(qvel, RESET_NOISE, rng);
    }

    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step {
        simulation.advance(action);
        let (qpos, qvel) = (simulation.qpos(), simulation.qvel());
        let finite = qpos.iter().chain(qvel).all(|x| x.is_finite());
        let terminated = !finite || qpos[1].abs() > HEALTHY_ANGLE;
        let reward = if terminated { 0.0 } else { 1.0 };
        Step { reward, terminated, truncated: false }
    }

    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>) {
        observation.extend_from_slice(simulation.qpos());
        observation.extend_from_slice(simulation.qvel());
    }
}
