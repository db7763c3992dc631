//! HumanoidStandup-v5: stand up from lying on the back.
//!
//! The body of [`super::humanoid`]; the reward is the height of the torso, for as long as the
//! episode lasts.

use super::humanoid::{CONTACT_COST, CONTROL_COST, LARGEST_CONTACT_COST, RESET_NOISE, observe};
use super::{Camera, Definition, Simulation, Task, add_uniform, sum_of_squares};
use crate::{Rng, Step};

pub(super) const DEFINITION: Definition = Definition {
    id: "HumanoidStandup-v5",
    model: "humanoidstandup.xml",
    frame_skip: 5,
    max_episode_steps: 1000,
    reward_threshold: None,
    contact_forces: true,
    camera: Camera { elevation: 0.2, width: 4.0, center: [0.0, 0.0, 0.9], follows: 1 },
    task: |_| Ok(Box::new(HumanoidStandup)),
};

/// qpos: x, y, z and orientation (a quaternion) of the torso, angles of the 17 joints.
struct HumanoidStandup;

impl Task for HumanoidStandup {
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng) {
        add_uniform(qpos, RESET_NOISE, rng);
        add_uniform(qvel, RESET_NOISE, rng);
    }

    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step {
        simulation.advance(action);
        // Gymnasium's way to scale the height: as if it had risen from 0 in one step of MuJoCo.
        let height_reward = simulation.qpos()[2] / simulation.model().timestep;
        let control_cost = CONTROL_COST * sum_of_squares(simulation.controls());
        let forces = simulation.contact_forces().as_flattened();
        let contact_cost = (CONTACT_COST * sum_of_squares(forces)).min(LARGEST_CONTACT_COST);
        let reward = height_reward - control_cost - contact_cost + 1.0;
        Step { reward, terminated: false, truncated: false }
    }

    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>) {
        observe(simulation, observation);
    }
}
