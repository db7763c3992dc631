//! Pusher-v5: push a cylinder to a goal on a table with an arm of seven joints.

use super::{Camera, Definition, Simulation, Task, add_uniform, distance, sum_of_squares};
use crate::{Rng, Step};
use rand::RngExt;

pub(super) const DEFINITION: Definition = Definition {
    id: "Pusher-v5",
    model: "pusher_v5.xml",
    frame_skip: 5,
    max_episode_steps: 100,
    reward_threshold: Some(0.0),
    contact_forces: false,
    camera: Camera { elevation: 0.9, width: 2.6, center: [0.2, 0.0, -0.2], follows: 0 },
    task: |model| {
        Ok(Box::new(Pusher {
            tip: model.body("tips_arm")?,
            object: model.body("object")?,
            goal: model.body("goal")?,
        }))
    },
};

const ARM: usize = 7; // joints
const RESET_VELOCITY: f64 = 0.005; // rad/s
const CLEARANCE: f64 = 0.17; // m, between object and goal at the beginning

/// qpos: angles of the arm's joints, then x and y of the object and of the goal, relative to
/// where the model has them.
struct Pusher {
    tip: usize,
    object: usize,
    goal: usize,
}

impl Task for Pusher {
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng) {
        let object = loop {
            let [x, y]: [f64; 2] = [rng.random_range(-0.3..0.0), rng.random_range(-0.2..0.2)];
            if x.hypot(y) > CLEARANCE {
                break [x, y];
            }
        };
        qpos[ARM..ARM + 2].copy_from_slice(&object);
        add_uniform(&mut qvel[..ARM], RESET_VELOCITY, rng);
    }

    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step {
        simulation.advance(action);
        let bodies = simulation.body_positions();
        let reward_distance = -distance(bodies[self.object], bodies[self.goal]);
        let reward_control = -f64::from(0.1 * sum_of_squares(action));
        let reward_near = -0.5 * distance(bodies[self.object], bodies[self.tip]);
        let reward = reward_distance + reward_control + reward_near;
        Step { reward, terminated: false, truncated: false }
    }

    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>) {
        observation.extend_from_slice(&simulation.qpos()[..ARM]);
        observation.extend_from_slice(&simulation.qvel()[..ARM]);
        for body in [self.tip, self.object, self.goal] {
            observation.extend_from_slice(&simulation.body_positions()[body]);
        }
    }
}
