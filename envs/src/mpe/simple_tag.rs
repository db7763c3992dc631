//! simple_tag_v3: slow adversaries hunt faster prey between obstacles ("predator-prey").

use super::Scenario;
use super::world::{Agent, Body, World};
use crate::canvas::{Color, palette};
use crate::{Result, Rng, invalid};

/// Reward of a catch for every adversary, and its price for the prey.
const CATCH: f64 = 10.0;
/// Obstacles lie within this distance of both axes (m).
const OBSTACLE_RANGE: f64 = 0.9;

/// Options of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleTag {
    /// Prey.
    pub num_good: usize,
    /// Hunters.
    pub num_adversaries: usize,
    /// Landmarks in the way.
    pub num_obstacles: usize,
    /// Whether the episode ends once all prey is caught at the same time.
    pub terminate_on_success: bool,
}

impl Default for SimpleTag {
    fn default() -> Self {
        Self { num_good: 1, num_adversaries: 3, num_obstacles: 2, terminate_on_success: false }
    }
}

impl SimpleTag {
    /// Hunters and prey.
    fn split<'a>(&self, world: &'a World) -> (&'a [Body], &'a [Body]) {
        world.agent_bodies().split_at(self.num_adversaries)
    }
}

/// What prey loses for being at `x` on one axis, so that it cannot flee for ever: nothing up to
/// 0.9, then 10 for each metre, and from 1 on exp(2x − 2), at most 10.
fn penalty(x: f64) -> f64 {
    match x.abs() {
        x if x < 0.9 => 0.0,
        x if x < 1.0 => (x - 0.9) * 10.0,
        x => (2.0 * x - 2.0).exp().min(10.0),
    }
}

impl Scenario for SimpleTag {
    const ID: &'static str = "simple_tag_v3";

    fn world(&self) -> Result<World> {
        if self.num_good == 0 || self.num_adversaries == 0 {
            return invalid(format!(
                "{}: {} prey and {} adversaries, there must be at least 1 of each",
                Self::ID,
                self.num_good,
                self.num_adversaries
            ));
        }
        let adversary = |i| {
            let agent =
                Agent { acceleration: 3.0, adversary: true, ..Agent::new(format!("adversary_{i}"), 0) };
            (agent, Body { collides: true, max_speed: Some(1.0), ..Body::agent(0.075) })
        };
        let prey = |i| {
            let agent = Agent { acceleration: 4.0, ..Agent::new(format!("agent_{i}"), 0) };
            (agent, Body { collides: true, max_speed: Some(1.3), ..Body::agent(0.05) })
        };
        let agents = (0..self.num_adversaries).map(adversary).chain((0..self.num_good).map(prey));
        let obstacles = vec![Body { collides: true, ..Body::landmark(0.2) }; self.num_obstacles];
        Ok(World::new(agents.collect(), obstacles, 0))
    }

    fn reset(&self, world: &mut World, rng: &mut Rng) {
        world.scatter(OBSTACLE_RANGE, rng);
    }

    /// Own velocity and position, way to each obstacle and to each other agent, and the velocity
    /// of each other prey: `[16]` for adversaries and `[14]` for prey by default.
    fn observe(&self, world: &World, agent: usize, write: &mut impl FnMut(&[f64])) {
        let body = &world.bodies[agent];
        write(&body.velocity);
        write(&body.position);
        world.landmarks().iter().for_each(|obstacle| write(&body.to(obstacle)));
        world.others(agent).for_each(|(_, other)| write(&body.to(other)));
        let prey = world.others(agent).filter(|(other, _)| !other.adversary);
        prey.for_each(|(_, other)| write(&other.velocity));
    }

    /// Every adversary: 10 for each pair of a hunter and prey that touch. Prey: −10 for each
    /// hunter that touches it, and a penalty for leaving the field.
    fn rewards(&self, world: &World, rewards: &mut [f64]) {
        let (hunters, prey) = self.split(world);
        let (hunter_rewards, prey_rewards) = rewards.split_at_mut(self.num_adversaries);
        let mut catches = 0;
        for (body, reward) in prey.iter().zip(prey_rewards) {
            let caught = hunters.iter().filter(|hunter| hunter.touches(body)).count();
            catches += caught;
            let [x, y] = body.position;
            *reward = -CATCH * caught as f64 - penalty(x) - penalty(y);
        }
        hunter_rewards.fill(CATCH * catches as f64);
    }

    fn is_done(&self, world: &World) -> bool {
        let (hunters, prey) = self.split(world);
        self.terminate_on_success && prey.iter().all(|body| hunters.iter().any(|hunter| hunter.touches(body)))
    }

    fn color(&self, world: &World, body: usize) -> Color {
        match world.agents.get(body) {
            Some(agent) if agent.adversary => palette::VERMILLION,
            Some(_) => palette::GREEN,
            None => palette::GREY,
        }
    }
}
