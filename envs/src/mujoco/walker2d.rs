//! Walker2d-v5: walk forward on two legs in a plane.
//!
//! Erez, Tassa & Todorov, "Infinite-horizon model predictive control for periodic tasks with
//! contacts" (2011), where it hops on one of them.

use super::{Camera, Definition, Simulation, Task, add_uniform, sum_of_squares};
use crate::{Rng, Step};

pub(super) const DEFINITION: Definition = Definition {
    id: "Walker2d-v5",
    model: "walker2d_v5.xml",
    frame_skip: 4,
    max_episode_steps: 1000,
    reward_threshold: None,
    contact_forces: false,
    camera: Camera { elevation: 0.0, width: 3.2, center: [0.0, 0.0, 0.8], follows: 1 },
    task: |_| Ok(Box::new(Walker2d)),
};

const RESET_NOISE: f64 = 5e-3; // m, rad and their rates
const CONTROL_COST: f32 = 1e-3;
const HEALTHY_REWARD: f64 = 1.0;
const HEALTHY_HEIGHT: (f64, f64) = (0.8, 2.0); // m
const HEALTHY_ANGLE: f64 = 1.0; // rad

/// qpos: x, height and angle of the torso, angles of the joints of the right leg, then of the
/// left leg (thigh, shin, foot).
struct Walker2d;

impl Walker2d {
    fn is_healthy(simulation: &Simulation) -> bool {
        let (height, angle) = (simulation.qpos()[1], simulation.qpos()[2]);
        height > HEALTHY_HEIGHT.0 && height < HEALTHY_HEIGHT.1 && angle.abs() < HEALTHY_ANGLE
    }
}

impl Task for Walker2d {
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
