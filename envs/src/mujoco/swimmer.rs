//! Swimmer-v5: swim forward with three links in a viscous plane.
//!
//! Coulom, "Reinforcement learning using neural networks, with applications to motor control"
//! (PhD thesis, 2002).

use super::{Camera, Definition, Simulation, Task, add_uniform, sum_of_squares};
use crate::{Rng, Step};
use std::f64::consts::FRAC_PI_2;

pub(super) const DEFINITION: Definition = Definition {
    id: "Swimmer-v5",
    model: "swimmer.xml",
    frame_skip: 4,
    max_episode_steps: 1000,
    reward_threshold: Some(360.0),
    contact_forces: false,
    camera: Camera { elevation: FRAC_PI_2, width: 6.0, center: [0.0; 3], follows: 1 },
    task: |_| Ok(Box::new(Swimmer)),
};

const RESET_NOISE: f64 = 0.1; // m, rad and their rates
const CONTROL_COST: f32 = 1e-4;

/// qpos: x and y of the front, its heading, angles of the two joints.
struct Swimmer;

impl Task for Swimmer {
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng) {
        add_uniform(qpos, RESET_NOISE, rng);
        add_uniform(qvel, RESET_NOISE, rng);
    }

    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step {
        let x = simulation.qpos()[0];
        simulation.advance(action);
        let x_velocity = (simulation.qpos()[0] - x) / simulation.dt();
        let reward = x_velocity - f64::from(CONTROL_COST * sum_of_squares(action));
        Step { reward, terminated: false, truncated: false }
    }

    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>) {
        observation.extend_from_slice(&simulation.qpos()[2..]); // the same wherever it is
        observation.extend_from_slice(simulation.qvel());
    }
}
