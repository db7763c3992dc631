//! Humanoid-v5: walk forward upright on two legs.
//!
//! Tassa, Erez & Todorov, "Synthesis and stabilization of complex behaviors through online
//! trajectory optimization" (2012).

use super::{Camera, Definition, Simulation, Task, add_uniform, sum, sum_of_squares};
use crate::{Rng, Step};

pub(super) const DEFINITION: Definition = Definition {
    id: "Humanoid-v5",
    model: "humanoid.xml",
    frame_skip: 5,
    max_episode_steps: 1000,
    reward_threshold: None,
    contact_forces: true,
    camera: Camera { elevation: 0.2, width: 4.0, center: [0.0, 0.0, 0.9], follows: 1 },
    task: |_| Ok(Box::new(Humanoid)),
};

pub(super) const RESET_NOISE: f64 = 1e-2; // m, rad and their rates
pub(super) const CONTROL_COST: f64 = 0.1;
pub(super) const CONTACT_COST: f64 = 5e-7;
pub(super) const LARGEST_CONTACT_COST: f64 = 10.0;
const FORWARD_REWARD: f64 = 1.25;
const HEALTHY_REWARD: f64 = 5.0;
const HEALTHY_HEIGHT: (f64, f64) = (1.0, 2.0); // m

/// qpos: x, y, z and orientation (a quaternion) of the torso, angles of the 17 joints.
struct Humanoid;

/// x of the centre of mass in m.
fn center_of_mass(simulation: &Simulation) -> f64 {
    let (masses, centers) = (simulation.model().body_masses(), simulation.mass_centers());
    let moment: f64 = masses.iter().zip(centers).map(|(mass, center)| mass * center[0]).sum();
    moment / sum(masses.len(), |body| masses[body])
}

/// What is observed of a humanoid: its coordinates but x and y, inertia and velocity of each
/// body, torques of the actuators and forces of contacts.
pub(super) fn observe(simulation: &Simulation, observation: &mut Vec<f64>) {
    observation.extend_from_slice(&simulation.qpos()[2..]); // the same wherever it is
    observation.extend_from_slice(simulation.qvel());
    // Without the world, body 0, and the six velocities of the torso, which nothing actuates.
    observation.extend_from_slice(simulation.inertias()[1..].as_flattened());
    observation.extend_from_slice(simulation.velocities()[1..].as_flattened());
    observation.extend_from_slice(&simulation.actuator_forces()[6..]);
    observation.extend_from_slice(simulation.contact_forces()[1..].as_flattened());
}

impl Task for Humanoid {
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng) {
        add_uniform(qpos, RESET_NOISE, rng);
        add_uniform(qvel, RESET_NOISE, rng);
    }

    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step {
        let x = center_of_mass(simulation);
        simulation.advance(action);
        let x_velocity = (center_of_mass(simulation) - x) / simulation.dt();
        let height = simulation.qpos()[2];
        let healthy = height > HEALTHY_HEIGHT.0 && height < HEALTHY_HEIGHT.1;
        let healthy_reward = if healthy { HEALTHY_REWARD } else { 0.0 };
        let control_cost = CONTROL_COST * sum_of_squares(simulation.controls());
        let forces = simulation.contact_forces().as_flattened();
        let contact_cost = (CONTACT_COST * sum_of_squares(forces)).min(LARGEST_CONTACT_COST);
        let reward = FORWARD_REWARD * x_velocity + healthy_reward - (control_cost + contact_cost);
        Step { reward, terminated: !healthy, truncated: false }
    }

    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>) {
        observe(simulation, observation);
    }
}
