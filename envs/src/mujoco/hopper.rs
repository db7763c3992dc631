//! Hopper-v5: hop forward on one leg in a plane.
//!
//! Erez, Tassa & Todorov, "Infinite-horizon model predictive control for periodic tasks with
//! contacts" (2011).

use super::{Camera, Definition, Simulation, Task, add_uniform, sum_of_squares};
use crate::{Rng, Step};

pub(super) const DEFINITION: Definition = Definition {
    id: "Hopper-v5",
    model: "hopper.xml",
    frame_skip: 4,
    max_episode_steps: 1000,
    reward_threshold: Some(3800.0),
    contact_forces: false,
    camera: Camera { elevation: 0.0, width: 3.2, center: [0.0, 0.0, 0.8], follows: 1 },
    task: |_| Ok(Box::new(Hopper)),
};

const RESET_NOISE: f64 = 5e-3; // m, rad and their rates
const CONTROL_COST: f32 = 1e-3;
const HEALTHY_REWARD: f64 = 1.0;
const HEALTHY_HEIGHT: f64 = 0.7; // m
const HEALTHY_ANGLE: f64 = 0.2; // rad
const HEALTHY_STATE: f64 = 100.0; // of all coordinates but x and height

/// qpos: x, height and angle of the torso, angles of the leg's three joints.
struct Hopper;

impl Hopper {
    fn is_healthy(simulation: &Simulation) -> bool {
        let qpos = simulation.qpos();
        let rest = qpos[2..].iter().chain(simulation.qvel());
        rest.into_iter().all(|x| x.abs() < HEALTHY_STATE)
            && qpos[1] > HEALTHY_HEIGHT
            && qpos[2].abs() < HEALTHY_ANGLE
    }
}

impl Task for Hopper {
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng) {
        add_uniform(qpos, RESET_NOISE, rng);
        add_uniform(qvel, RESET_NOISE, rng);
    }

    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step {
        let x = simulation.qpos()[0];
        simulation.advance(action);
        let x_velocity = (simulation.qpos()[0] - x) / simulation.dt();
        let healthy = Self::is_healthy(simulation);
        let healthy_reward = if healthy { HEALTHY_REWARD } else { 0.0 };
        let reward = x_velocity + healthy_reward - f64::from(CONTROL_COST * sum_of_squares(action));
        Step { reward, terminated: !healthy, truncated: false }
    }

    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>) {
        observation.extend_from_slice(&simulation.qpos()[1..]); // the same wherever it is
        observation.extend(simulation.qvel().iter().map(|v| v.clamp(-10.0, 10.0)));
    }
}
