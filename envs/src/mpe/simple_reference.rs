//! simple_reference_v3: two agents, each of whom knows only the other's goal among three
//! landmarks, and who both move and speak.

use super::Scenario;
use super::world::{Agent, Body, DEFAULT_RADIUS, World};
use crate::canvas::{Color, palette};
use crate::{Result, invalid};

const NUM_AGENTS: usize = 2;
const NUM_LANDMARKS: usize = 3;
const NUM_WORDS: usize = 10;

/// The landmarks' colours (red, green, blue), by which an agent is shown the other's goal.
const GOAL_COLORS: [[f64; 3]; NUM_LANDMARKS] = [[0.75, 0.25, 0.25], [0.25, 0.75, 0.25], [0.25, 0.25, 0.75]];
/// What stands for them in pictures.
const DRAWN_COLORS: [Color; NUM_LANDMARKS] = [palette::VERMILLION, palette::GREEN, palette::BLUE];

/// Options of the task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimpleReference {
    /// Share of an agent's reward that is for the other reaching its goal, from 0 to 1; the rest
    /// is the mean over both, common to all.
    pub local_ratio: f64,
}

impl Default for SimpleReference {
    fn default() -> Self {
        Self { local_ratio: 0.5 }
    }
}

impl Scenario for SimpleReference {
    const ID: &'static str = "simple_reference_v3";

    /// `goals[i]` is what agent `i` sees: the goal of the other agent.
    fn world(&self) -> Result<World> {
        if !(0.0..=1.0).contains(&self.local_ratio) {
            return invalid(format!(
                "{}: local_ratio {}, it must be from 0 to 1",
                Self::ID,
                self.local_ratio
            ));
        }
        let agent = |i| {
            let agent = Agent { speaks: true, ..Agent::new(format!("agent_{i}"), NUM_WORDS) };
            (agent, Body::agent(DEFAULT_RADIUS))
        };
        let landmarks = vec![Body::landmark(DEFAULT_RADIUS); NUM_LANDMARKS];
        Ok(World::new((0..NUM_AGENTS).map(agent).collect(), landmarks, NUM_AGENTS))
    }

    /// Own velocity, way to each landmark, colour of the other's goal, and what the other said:
    /// `[21]`.
    fn observe(&self, world: &World, agent: usize, write: &mut impl FnMut(&[f64])) {
        let body = &world.bodies[agent];
        write(&body.velocity);
        world.landmarks().iter().for_each(|landmark| write(&body.to(landmark)));
        write(&GOAL_COLORS[world.goals[agent]]);
        world.others(agent).for_each(|(other, _)| write(&other.utterance));
    }

    /// Own: minus the distance of the other agent to its goal. Common: the mean of both.
    fn rewards(&self, world: &World, rewards: &mut [f64]) {
        let own: [f64; NUM_AGENTS] =
            std::array::from_fn(|agent| -world.bodies[1 - agent].distance(world.goal(agent)));
        let common = own.iter().sum::<f64>() / NUM_AGENTS as f64;
        for (reward, own) in rewards.iter_mut().zip(own) {
            *reward = common * (1.0 - self.local_ratio) + own * self.local_ratio;
        }
    }

    /// Agents wear the colour of the landmark that they should reach.
    fn color(&self, world: &World, body: usize) -> Color {
        match body.checked_sub(world.agents.len()) {
            Some(landmark) => DRAWN_COLORS[landmark],
            None => DRAWN_COLORS[world.goals[1 - body]],
        }
    }
}
