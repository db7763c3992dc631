//! Reacher-v5: move the tip of a planar arm of two links to a target.

use super::{Camera, Definition, Simulation, Task, add_uniform, distance, sum_of_squares};
use crate::{Rng, Step};
use rand::RngExt;
use std::f64::consts::FRAC_PI_2;

pub(super) const DEFINITION: Definition = Definition {
    id: "Reacher-v5",
    model: "reacher.xml",
    frame_skip: 2,
    max_episode_steps: 50,
    reward_threshold: Some(-3.75),
    contact_forces: false,
    camera: Camera { elevation: FRAC_PI_2, width: 0.7, center: [0.0; 3], follows: 0 },
    task: |model| {
        Ok(Box::new(Reacher { fingertip: model.body("fingertip")?, target: model.body("target")? }))
    },
};

const RESET_ANGLE: f64 = 0.1; // rad
const RESET_VELOCITY: f64 = 0.005; // rad/s
const TARGET_RADIUS: f64 = 0.2; // m, of the disc that targets lie in

/// qpos: angles of the two joints, x and y of the target.
struct Reacher {
    fingertip: usize,
    target: usize,
}

impl Task for Reacher {
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng) {
        add_uniform(&mut qpos[..2], RESET_ANGLE, rng);
        add_uniform(&mut qvel[..2], RESET_VELOCITY, rng);
        let target = loop {
            let [x, y] = [(); 2].map(|()| rng.random_range(-TARGET_RADIUS..TARGET_RADIUS));
            if x.hypot(y) < TARGET_RADIUS {
                break [x, y];
            }
        };
        qpos[2..].copy_from_slice(&target);
    }

    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step {
        simulation.advance(action);
        let bodies = simulation.body_positions();
        let control_cost = f64::from(sum_of_squares(action));
        let reward = -distance(bodies[self.fingertip], bodies[self.target]) - control_cost;
        Step { reward, terminated: false, truncated: false }
    }

    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>) {
        let (angles, target) = simulation.qpos().split_at(2);
        observation.extend(angles.iter().map(|angle| angle.cos()));
        observation.extend(angles.iter().map(|angle| angle.sin()));
        observation.extend_from_slice(target);
        observation.extend_from_slice(&simulation.qvel()[..2]);
        let (tip, target) =
            (simulation.body_positions()[self.fingertip], simulation.body_positions()[self.target]);
        observation.extend([tip[0] - target[0], tip[1] - target[1]]);
    }
}
