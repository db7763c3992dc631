//! InvertedDoublePendulum-v5: balance two poles, one on top of the other, on a cart by pushing
//! the cart.

use super::{Camera, Definition, Simulation, Task, add_normal, add_uniform};
use crate::{Rng, Step};

pub(super) const DEFINITION: Definition = Definition {
    id: "InvertedDoublePendulum-v5",
    model: "inverted_double_pendulum.xml",
    frame_skip: 5,
    max_episode_steps: 1000,
    reward_threshold: Some(9100.0),
    contact_forces: false,
    camera: Camera { elevation: 0.0, width: 3.6, center: [0.0, 0.0, 0.5], follows: 0 },
    task: |_| Ok(Box::new(InvertedDoublePendulum)),
};

const RESET_NOISE: f64 = 0.1; // m, rad and their rates
const HEALTHY_REWARD: f64 = 10.0;
const FALLEN: f64 = 1.0; // m, height of the upper pole's tip at which the poles count as fallen

/// qpos: cart, angles of the lower and of the upper pole.
struct InvertedDoublePendulum;

impl Task for InvertedDoublePendulum {
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng) {
        add_uniform(qpos, RESET_NOISE, rng);
        add_normal(qvel, RESET_NOISE, rng);
    }

    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step {
        simulation.advance(action);
        let [x, _, z] = simulation.site_positions()[0]; // the tip
        let (lower, upper) = (simulation.qvel()[1], simulation.qvel()[2]);
        let terminated = z <= FALLEN;
        let healthy_reward = if terminated { 0.0 } else { HEALTHY_REWARD };
        let distance_penalty = 0.01 * (x * x) + (z - 2.0) * (z - 2.0);
        let velocity_penalty = 1e-3 * (lower * lower) + 5e-3 * (upper * upper);
        let reward = healthy_reward - distance_penalty - velocity_penalty;
        Step { reward, terminated, truncated: false }
    }

    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>) {
        let (cart, angles) = simulation.qpos().split_at(1);
        observation.extend_from_slice(cart);
        observation.extend(angles.iter().map(|angle| angle.sin()));
        observation.extend(angles.iter().map(|angle| angle.cos()));
        observation.extend(simulation.qvel().iter().map(|v| v.clamp(-10.0, 10.0)));
        // The force that keeps the cart on its rail; the hinges have no such force.
        observation.push(simulation.constraint_forces()[0].clamp(-10.0, 10.0));
    }
}
