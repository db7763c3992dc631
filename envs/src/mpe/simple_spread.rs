//! simple_spread_v3: as many agents as landmarks, which together should cover all of them
//! without bumping into each other ("cooperative navigation").

use super::Scenario;
use super::world::{Agent, Body, DEFAULT_RADIUS, World};
use crate::canvas::{Color, palette};
use crate::{Result, invalid};

/// Within this distance an agent covers a landmark (m).
const CAPTURE_RADIUS: f64 = 0.1;

/// Options of the task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimpleSpread {
    /// Agents, and landmarks.
    pub num_agents: usize,
    /// Share of an agent's reward that is its own (collisions), from 0 to 1; the rest is common
    /// to all (coverage).
    pub local_ratio: f64,
    /// Whether the episode ends once every landmark is covered.
    pub terminate_on_success: bool,
}

impl Default for SimpleSpread {
    fn default() -> Self {
        Self { num_agents: 3, local_ratio: 0.5, terminate_on_success: false }
    }
}

/// Distance from `landmark` to the nearest agent (m).
fn nearest_agent(world: &World, landmark: &Body) -> f64 {
    world.agent_bodies().iter().map(|agent| agent.distance(landmark)).fold(f64::INFINITY, f64::min)
}

impl Scenario for SimpleSpread {
    const ID: &'static str = "simple_spread_v3";

    fn world(&self) -> Result<World> {
        if self.num_agents == 0 {
            return invalid(format!("{}: num_agents 0, there must be at least 1", Self::ID));
        }
        if !(0.0..=1.0).contains(&self.local_ratio) {
            return invalid(format!(
                "{}: local_ratio {}, it must be from 0 to 1",
                Self::ID,
                self.local_ratio
            ));
        }
        let agent = |i| (Agent::new(format!("agent_{i}"), 2), Body { collides: true, ..Body::agent(0.15) });
        let landmarks = vec![Body::landmark(DEFAULT_RADIUS); self.num_agents];
        Ok(World::new((0..self.num_agents).map(agent).collect(), landmarks, 0))
    }

    /// Own velocity and position, way to each landmark and to each other agent, and the others'
    /// utterances, which in this task are zeros: `[6 num_agents]`.
    fn observe(&self, world: &World, agent: usize, write: &mut impl FnMut(&[f64])) {
        let body = &world.bodies[agent];
        write(&body.velocity);
        write(&body.position);
        world.landmarks().iter().for_each(|landmark| write(&body.to(landmark)));
        world.others(agent).for_each(|(_, other)| write(&body.to(other)));
        world.others(agent).for_each(|(other, _)| write(&other.utterance));
    }

    /// Common: minus the sum over landmarks of the nearest agent's distance. Own: −1 for each
    /// agent that one touches.
    fn rewards(&self, world: &World, rewards: &mut [f64]) {
        let common: f64 = world.landmarks().iter().map(|landmark| -nearest_agent(world, landmark)).sum();
        for (agent, reward) in rewards.iter_mut().enumerate() {
            let body = &world.bodies[agent];
            let collisions = world.others(agent).filter(|(_, other)| body.touches(other)).count();
            *reward = common * (1.0 - self.local_ratio) - collisions as f64 * self.local_ratio;
        }
    }

    fn is_done(&self, world: &World) -> bool {
        let covered = |landmark| nearest_agent(world, landmark) < CAPTURE_RADIUS;
        self.terminate_on_success && world.landmarks().iter().all(covered)
    }

    fn color(&self, world: &World, body: usize) -> Color {
        if body < world.agents.len() { palette::BLUE } else { palette::ORANGE }
    }
}
