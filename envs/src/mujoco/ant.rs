//! Ant-v5: walk forward on four legs.
//!
//! Schulman, Moritz, Levine, Jordan & Abbeel, "High-dimensional continuous control using
//! generalized advantage estimation" (2015, arXiv 1506.02438).

use super::{Camera, Definition, Simulation, Task, add_normal, add_uniform, sum, sum_of_squares};
use crate::{Rng, Step};

pub(super) const DEFINITION: Definition = Definition {
    id: "Ant-v5",
    model: "ant.xml",
    frame_skip: 5,
    max_episode_steps: 1000,
    reward_threshold: Some(6000.0),
    contact_forces: true,
    camera: Camera { elevation: 0.5, width: 5.0, center: [0.0, 0.0, 0.4], follows: TORSO },
    task: |_| Ok(Box::new(Ant)),
};

const TORSO: usize = 1; // body
const RESET_NOISE: f64 = 0.1; // m, rad and their rates
const CONTROL_COST: f32 = 0.5;
const CONTACT_COST: f64 = 5e-4;
const HEALTHY_REWARD: f64 = 1.0;
const HEALTHY_HEIGHT: (f64, f64) = (0.2, 1.0); // m

/// qpos: x, y, z and orientation (a quaternion) of the torso, angles of hip and ankle of each leg.
struct Ant;

/// Torques and forces of contacts count up to 1 N m and 1 N either way.
fn clip(force: f64) -> f64 {
    force.clamp(-1.0, 1.0)
}

impl Ant {
    fn is_healthy(simulation: &Simulation) -> bool {
        let (qpos, height) = (simulation.qpos(), simulation.qpos()[2]);
        qpos.iter().chain(simulation.qvel()).all(|x| x.is_finite())
            && (HEALTHY_HEIGHT.0..=HEALTHY_HEIGHT.1).contains(&height)
    }
}

impl Task for Ant {
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng) {
        add_uniform(qpos, RESET_NOISE, rng);
        add_normal(qvel, RESET_NOISE, rng);
    }

    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step {
        let x = simulation.body_positions()[TORSO][0];
        simulation.advance(action);
        let x_velocity = (simulation.body_positions()[TORSO][0] - x) / simulation.dt();
        let healthy = Self::is_healthy(simulation);
        let healthy_reward = if healthy { HEALTHY_REWARD } else { 0.0 };
        let control_cost = f64::from(CONTROL_COST * sum_of_squares(action));
        let forces = simulation.contact_forces().as_flattened();
        let contact_cost = CONTACT_COST * sum(forces.len(), |i| clip(forces[i]) * clip(forces[i]));
        let reward = x_velocity + healthy_reward - (control_cost + contact_cost);
        Step { reward, terminated: !healthy, truncated: false }
    }

    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>) {
        observation.extend_from_slice(&simulation.qpos()[2..]); // the same wherever it is
        observation.extend_from_slice(simulation.qvel());
        let forces = &simulation.contact_forces()[1..]; // without the world's
        observation.extend(forces.as_flattened().iter().map(|&force| clip(force)));
    }
}
