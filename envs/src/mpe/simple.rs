//! simple_v3: one agent walks to the only landmark, a first check for any algorithm.

use super::Scenario;
use super::world::{Agent, Body, DEFAULT_RADIUS, World};
use crate::Result;
use crate::canvas::{Color, palette};

/// The task has no options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Simple;

impl Scenario for Simple {
    const ID: &'static str = "simple_v3";

    fn world(&self) -> Result<World> {
        let agent = (Agent::new("agent_0", 0), Body::agent(DEFAULT_RADIUS));
        Ok(World::new(vec![agent], vec![Body::landmark(DEFAULT_RADIUS)], 0))
    }

    /// Own velocity, way to the landmark: `[4]`.
    fn observe(&self, world: &World, agent: usize, write: &mut impl FnMut(&[f64])) {
        let body = &world.bodies[agent];
        write(&body.velocity);
        write(&body.to(&world.landmarks()[0]));
    }

    /// Minus the squared distance to the landmark.
    fn rewards(&self, world: &World, rewards: &mut [f64]) {
        rewards[0] = -world.bodies[0].squared_distance(&world.landmarks()[0]);
    }

    fn color(&self, world: &World, body: usize) -> Color {
        if body < world.agents.len() { palette::BLUE } else { palette::ORANGE }
    }
}
