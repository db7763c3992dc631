//! From a task to an environment: actions, episodes, state and pictures that all particle tasks
//! have in common.

use super::{MultiSpec, ParallelEnv, ParallelStep, World, world::Body};
use crate::canvas::{Color, palette};
use crate::{Action, Canvas, Result, Rng, Space, State, invalid};

/// Movements: none, left, right, down, up. A discrete action is an index into them, a continuous
/// one gives each a strength from 0 to 1.
const DIRECTIONS: [[f64; 2]; 5] = [[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]];
const MOVES: usize = DIRECTIONS.len();

/// A task in the particle world. Its fields are its options.
pub trait Scenario: Send {
    /// PettingZoo's id, version suffix included.
    const ID: &'static str;

    /// Everybody and everything there is.
    ///
    /// # Errors
    /// An option out of range.
    fn world(&self) -> Result<World>;

    /// Begins an episode.
    fn reset(&self, world: &mut World, rng: &mut Rng) {
        world.scatter(1.0, rng);
    }

    /// Hands what `agent` sees to `write`, piece by piece, in order.
    fn observe(&self, world: &World, agent: usize, write: &mut impl FnMut(&[f64]));

    /// Writes each agent's reward, `[num_agents]`.
    fn rewards(&self, world: &World, rewards: &mut [f64]);

    /// Whether the task is done, which ends the episode.
    fn is_done(&self, world: &World) -> bool {
        let _ = world;
        false
    }

    /// The colour of body number `body`.
    fn color(&self, world: &World, body: usize) -> Color;
}

/// A particle task as an environment. Its state is the world's (see [`World::state`]) followed by
/// the steps elapsed.
pub struct ParticleEnv<S> {
    scenario: S,
    spec: MultiSpec,
    world: World,
    elapsed: u32,
}

impl<S: Scenario> ParticleEnv<S> {
    /// `scenario` with episodes of `max_cycles` steps. Movement is none, left, right, down, up.
    /// With discrete actions an agent that both moves and speaks has one action for each pair,
    /// `move + 5 · word`; with `continuous` ones it gives the five strengths, of which opposite
    /// ones cancel, followed by its words' loudness, all from 0 to 1.
    ///
    /// # Errors
    /// No steps, or an option of the scenario out of range.
    pub fn new(scenario: S, max_cycles: u32, continuous: bool) -> Result<Self> {
        if max_cycles == 0 {
            return invalid(format!("{}: max_cycles 0, an episode has at least 1 step", S::ID));
        }
        let world = scenario.world()?;
        let num_agents = world.agents.len();
        let observation_space = |agent| {
            let mut len = 0;
            scenario.observe(&world, agent, &mut |piece| len += piece.len());
            Space::uniform(len, f32::NEG_INFINITY, f32::INFINITY)
        };
        let choices = |agent: usize| -> Vec<usize> {
            let moves = world.bodies[agent].movable.then_some(MOVES);
            let words = world.agents[agent].speaks.then_some(world.agents[agent].utterance.len());
            moves.into_iter().chain(words).collect()
        };
        let action_space = |agent: usize| match continuous {
            true => Space::uniform(choices(agent).iter().sum(), 0.0, 1.0),
            false => Space::Discrete { n: choices(agent).iter().product() },
        };
        let spec = MultiSpec {
            id: S::ID.into(),
            agents: world.agents.iter().map(|agent| agent.name.clone()).collect(),
            observation_spaces: (0..num_agents).map(observation_space).collect(),
            action_spaces: (0..num_agents).map(action_space).collect(),
            choices: (0..num_agents).map(choices).collect(),
            max_cycles,
        };
        Ok(Self { scenario, spec, world, elapsed: 0 })
    }

    /// Refuses `actions` that are not one legal action for each agent.
    fn check(&self, actions: &[Action<'_>]) -> Result<()> {
        let (id, agents) = (&self.spec.id, &self.spec.agents);
        if actions.len() != agents.len() {
            return invalid(format!("{id}: {} actions, there are {} agents", actions.len(), agents.len()));
        }
        for ((action, space), name) in actions.iter().zip(&self.spec.action_spaces).zip(agents) {
            let legal = match (action, space) {
                (Action::Discrete(index), Space::Discrete { n }) => index < n,
                (Action::Continuous(vector), Space::Box { .. }) => {
                    vector.len() == space.size() && vector.iter().all(|x| x.is_finite())
                }
                _ => false,
            };
            if !legal {
                return invalid(format!("{id}: {name} was given {action:?}, its actions are {space}"));
            }
        }
        Ok(())
    }

    /// Takes on a legal action: what `agent` steers towards, and what it says.
    fn act(&mut self, agent: usize, action: Action<'_>) {
        let movable = self.world.bodies[agent].movable;
        let agent = &mut self.world.agents[agent];
        match action {
            Action::Discrete(index) => {
                let (direction, word) = if movable { (index % MOVES, index / MOVES) } else { (0, index) };
                agent.control = DIRECTIONS[direction].map(|u| u * agent.acceleration);
                if agent.speaks {
                    agent.utterance.fill(0.0);
                    agent.utterance[word] = 1.0;
                }
            }
            Action::Continuous(vector) => {
                let clipped = |i: usize| vector[i].clamp(0.0, 1.0);
                if movable {
                    // The difference is one of float32 numbers, as in the original.
                    let thrust = [clipped(2) - clipped(1), clipped(4) - clipped(3)];
                    agent.control = thrust.map(|u| f64::from(u) * agent.acceleration);
                }
                if agent.speaks {
                    let first_word = if movable { MOVES } else { 0 };
                    for (i, word) in agent.utterance.iter_mut().enumerate() {
                        *word = clipped(first_word + i).into();
                    }
                }
            }
        }
    }
}

impl<S: Scenario> ParallelEnv for ParticleEnv<S> {
    fn spec(&self) -> &MultiSpec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.elapsed = 0;
        self.scenario.reset(&mut self.world, rng);
        Ok(())
    }

    fn step(&mut self, actions: &[Action<'_>], _rng: &mut Rng, rewards: &mut [f64]) -> Result<ParallelStep> {
        self.check(actions)?;
        if rewards.len() != actions.len() {
            return invalid(format!(
                "{}: room for {} rewards, there are {} agents",
                self.spec.id,
                rewards.len(),
                actions.len()
            ));
        }
        for (agent, action) in actions.iter().enumerate() {
            self.act(agent, *action);
        }
        self.world.step();
        self.scenario.rewards(&self.world, rewards);
        self.elapsed = self.elapsed.saturating_add(1);
        // As in the original, the last step of the limit is truncated even if the task is done.
        let truncated = self.elapsed >= self.spec.max_cycles;
        Ok(ParallelStep { terminated: !truncated && self.scenario.is_done(&self.world), truncated })
    }

    fn observe(&self, agent: usize, observation: &mut [f32]) {
        let mut rest = observation.iter_mut();
        self.scenario.observe(&self.world, agent, &mut |piece| {
            for (value, o) in piece.iter().zip(rest.by_ref()) {
                *o = *value as f32;
            }
        });
    }

    fn state(&self) -> Result<State> {
        let mut state = self.world.state();
        state.0.push(self.elapsed.into());
        Ok(state)
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        let id = &self.spec.id;
        let Some((&elapsed, world)) = state.0.split_last() else {
            return invalid(format!("{id}: a state cannot be empty"));
        };
        if !(0.0..=f64::from(u32::MAX)).contains(&elapsed) || elapsed.fract() != 0.0 {
            return invalid(format!("{id}: {elapsed} steps elapsed in a state, it must be a whole number"));
        }
        self.world.set_state(id, &State(world.to_vec()))?;
        self.elapsed = elapsed as u32;
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        let world = &self.world;
        // The field, or as much as it takes to show everybody.
        let reach = |body: &Body| body.position[0].abs().max(body.position[1].abs()) + body.radius;
        let extent = 1.02 * world.bodies.iter().map(reach).fold(1.2, f64::max);
        let (width, height) = canvas.size();
        let pixel = 2.0 * extent / f64::from(width.min(height)); // m
        let (right, top) = (f64::from(width) * pixel / 2.0, f64::from(height) * pixel / 2.0);
        canvas.clear(palette::WHITE);
        canvas.view(-right, -top, right, top);
        canvas.line(
            &[(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0)],
            pixel,
            palette::LIGHT_GREY,
        );
        for body in world.agents.len()..world.bodies.len() {
            self.draw_landmark(canvas, body);
        }
        for agent in 0..world.agents.len() {
            self.draw_agent(canvas, agent, pixel);
        }
        Ok(())
    }

    fn world(&self) -> &World {
        &self.world
    }
}

impl<S: Scenario> ParticleEnv<S> {
    /// A disc where one bumps into it, a square where not.
    fn draw_landmark(&self, canvas: &mut Canvas, body: usize) {
        let color = self.scenario.color(&self.world, body);
        let landmark = &self.world.bodies[body];
        let ([x, y], r) = (landmark.position, landmark.radius);
        match landmark.collides {
            true => canvas.circle(x, y, r, color),
            false => canvas.rectangle(x - r, y - r, 2.0 * r, 2.0 * r, color),
        }
    }

    /// A rimmed disc with a line along its velocity, a white cross on adversaries, and above it
    /// what it says: one cell for each word, the darker the louder.
    fn draw_agent(&self, canvas: &mut Canvas, agent: usize, pixel: f64) {
        const CELL: f64 = 0.05; // m
        let (body, agent, color) =
            (&self.world.bodies[agent], &self.world.agents[agent], self.scenario.color(&self.world, agent));
        let ([x, y], [vx, vy], r) = (body.position, body.velocity, body.radius);
        canvas.line(&[(x, y), (x + 0.3 * vx, y + 0.3 * vy)], 2.0 * pixel, palette::GREY);
        canvas.circle(x, y, r, palette::BLACK);
        canvas.circle(x, y, (r - 1.5 * pixel).max(0.8 * r), color);
        if agent.adversary {
            let arm = 0.4 * r;
            canvas.line(&[(x - arm, y - arm), (x + arm, y + arm)], 0.2 * r, palette::WHITE);
            canvas.line(&[(x - arm, y + arm), (x + arm, y - arm)], 0.2 * r, palette::WHITE);
        }
        if agent.speaks {
            let left = x - CELL * agent.utterance.len() as f64 / 2.0;
            for (i, loudness) in agent.utterance.iter().enumerate() {
                let grey = (255.0 * (1.0 - loudness)) as u8;
                let corner = (left + CELL * i as f64, y + r + CELL / 2.0);
                canvas.rectangle(corner.0, corner.1, CELL, CELL, palette::GREY);
                let (inner, edge) = (CELL - 2.0 * pixel, pixel);
                canvas.rectangle(corner.0 + edge, corner.1 + edge, inner, inner, [grey; 3]);
            }
        }
    }
}
