//! simple_adversary_v3: good agents know which landmark is the goal and should reach it while
//! keeping the adversary, who does not know, away ("physical deception").

use super::Scenario;
use super::world::{Agent, Body, World};
use crate::canvas::{Color, palette};
use crate::{Result, invalid};

const AGENT_RADIUS: f64 = 0.15; // m
const LANDMARK_RADIUS: f64 = 0.08; // m
/// The one adversary comes first.
const ADVERSARY: usize = 0;

/// Options of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleAdversary {
    /// Good agents, and landmarks.
    pub num_good: usize,
}

impl Default for SimpleAdversary {
    fn default() -> Self {
        Self { num_good: 2 }
    }
}

impl Scenario for SimpleAdversary {
    const ID: &'static str = "simple_adversary_v3";

    fn world(&self) -> Result<World> {
        if self.num_good == 0 {
            return invalid(format!("{}: num_good 0, there must be at least 1", Self::ID));
        }
        let adversary = Agent { adversary: true, ..Agent::new("adversary_0", 0) };
        let good = (0..self.num_good).map(|i| Agent::new(format!("agent_{i}"), 0));
        let agents = std::iter::once(adversary).chain(good).map(|agent| (agent, Body::agent(AGENT_RADIUS)));
        Ok(World::new(agents.collect(), vec![Body::landmark(LANDMARK_RADIUS); self.num_good], 1))
    }

    /// Good agents first see the way to the goal; then all see the way to each landmark and to
    /// each other agent: `[8]` for the adversary and `[10]` for good agents by default.
    fn observe(&self, world: &World, agent: usize, write: &mut impl FnMut(&[f64])) {
        let body = &world.bodies[agent];
        if agent != ADVERSARY {
            write(&body.to(world.goal(0)));
        }
        world.landmarks().iter().for_each(|landmark| write(&body.to(landmark)));
        world.others(agent).for_each(|(_, other)| write(&body.to(other)));
    }

    /// The adversary: minus its distance to the goal. Good agents: that distance, minus the
    /// distance of the nearest of them.
    fn rewards(&self, world: &World, rewards: &mut [f64]) {
        let (adversary, good) = (&world.bodies[ADVERSARY], &world.agent_bodies()[ADVERSARY + 1..]);
        let goal = world.goal(0);
        let kept_away = adversary.distance(goal);
        let nearest = good.iter().map(|body| body.distance(goal)).fold(f64::INFINITY, f64::min);
        rewards.fill(kept_away - nearest);
        rewards[ADVERSARY] = -kept_away;
    }

    fn color(&self, world: &World, body: usize) -> Color {
        match body.checked_sub(world.agents.len()) {
            Some(landmark) if landmark == world.goals[0] => palette::GREEN,
            Some(_) => palette::GREY,
            None if body == ADVERSARY => palette::VERMILLION,
            None => palette::BLUE,
        }
    }
}
