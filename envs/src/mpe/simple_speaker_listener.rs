//! simple_speaker_listener_v4: the speaker knows which of three landmarks is the goal but cannot
//! move; the listener moves but must be told ("cooperative communication").

use super::Scenario;
use super::world::{Agent, Body, World};
use crate::Result;
use crate::canvas::{Color, palette};

const NUM_LANDMARKS: usize = 3;
const RADIUS: f64 = 0.075; // m, of both agents
const LISTENER: usize = 1;

/// The landmarks' colours (red, green, blue), by which the speaker is shown the goal.
const GOAL_COLORS: [[f64; 3]; NUM_LANDMARKS] = [[0.65, 0.15, 0.15], [0.15, 0.65, 0.15], [0.15, 0.15, 0.65]];
/// What stands for them in pictures.
const DRAWN_COLORS: [Color; NUM_LANDMARKS] = [palette::VERMILLION, palette::GREEN, palette::BLUE];

/// The task has no options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimpleSpeakerListener;

impl Scenario for SimpleSpeakerListener {
    const ID: &'static str = "simple_speaker_listener_v4";

    fn world(&self) -> Result<World> {
        let speaker = Agent { speaks: true, ..Agent::new("speaker_0", NUM_LANDMARKS) };
        let listener = Agent::new("listener_0", NUM_LANDMARKS);
        let agents =
            vec![(speaker, Body { movable: false, ..Body::agent(RADIUS) }), (listener, Body::agent(RADIUS))];
        Ok(World::new(agents, vec![Body::landmark(0.04); NUM_LANDMARKS], 1))
    }

    /// The speaker: the goal's colour, `[3]`. The listener: own velocity, way to each landmark,
    /// and what the speaker said, `[11]`.
    fn observe(&self, world: &World, agent: usize, write: &mut impl FnMut(&[f64])) {
        if agent != LISTENER {
            return write(&GOAL_COLORS[world.goals[0]]);
        }
        let body = &world.bodies[LISTENER];
        write(&body.velocity);
        world.landmarks().iter().for_each(|landmark| write(&body.to(landmark)));
        world.others(LISTENER).for_each(|(speaker, _)| write(&speaker.utterance));
    }

    /// Both: minus the squared distance of the listener to the goal.
    fn rewards(&self, world: &World, rewards: &mut [f64]) {
        rewards.fill(-world.bodies[LISTENER].squared_distance(world.goal(0)));
    }

    /// The listener wears the colour of its goal, the speaker black.
    fn color(&self, world: &World, body: usize) -> Color {
        match body.checked_sub(world.agents.len()) {
            Some(landmark) => DRAWN_COLORS[landmark],
            None if body == LISTENER => DRAWN_COLORS[world.goals[0]],
            None => palette::BLACK,
        }
    }
}
