//! The particle world: discs with a velocity, soft contacts between them, and a channel on which
//! agents speak.
//!
//! A step of dt = 0.1 s moves and then accelerates every movable body, with all masses 1 kg:
//!
//! ```text
//! x ← x + v dt
//! v ← (1 − damping) v + f dt        scaled back to max_speed where there is one
//! f = control + Σ contacts
//! contact = 100 · Δ/|Δ| · k ln(1 + exp((d_min − |Δ|) / k)),   k = 10⁻³ m
//! ```
//!
//! with Δ the vector between two centres and d_min the sum of the radii: a smooth version of a
//! force of 100 N for each metre of overlap.

use crate::{Result, Rng, State, env::expect_len, invalid};
use rand::RngExt;

const DT: f64 = 0.1; // s
const DAMPING: f64 = 0.25; // share of the velocity lost in a step
const CONTACT_FORCE: f64 = 100.0; // N/m
const CONTACT_MARGIN: f64 = 1e-3; // m

/// Radius of a body unless its task says otherwise (m).
pub const DEFAULT_RADIUS: f64 = 0.05;
/// Acceleration of a full movement action unless the task says otherwise (m/s²).
pub const DEFAULT_ACCELERATION: f64 = 5.0;

/// A disc in the plane: the body of an agent, or a landmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    /// Centre (m).
    pub position: [f64; 2],
    /// Velocity (m/s).
    pub velocity: [f64; 2],
    /// Radius (m).
    pub radius: f64,
    /// Whether forces move it.
    pub movable: bool,
    /// Whether it pushes other bodies that collide, and is pushed by them.
    pub collides: bool,
    /// Limit of its speed (m/s), if there is one.
    pub max_speed: Option<f64>,
}

impl Body {
    /// A movable disc of an agent that passes through everything.
    pub fn agent(radius: f64) -> Self {
        let [position, velocity] = [[0.0; 2]; 2];
        Self { position, velocity, radius, movable: true, collides: false, max_speed: None }
    }

    /// A disc that stays where it is and that everything passes through.
    pub fn landmark(radius: f64) -> Self {
        Self { movable: false, ..Self::agent(radius) }
    }

    /// From this body's centre to the centre of `other` (m).
    pub fn to(&self, other: &Body) -> [f64; 2] {
        [other.position[0] - self.position[0], other.position[1] - self.position[1]]
    }

    /// Squared distance between the centres (m²).
    pub fn squared_distance(&self, other: &Body) -> f64 {
        let [dx, dy] = self.to(other);
        dx * dx + dy * dy
    }

    /// Distance between the centres (m).
    pub fn distance(&self, other: &Body) -> f64 {
        self.squared_distance(other).sqrt()
    }

    /// Whether the two discs overlap.
    pub fn touches(&self, other: &Body) -> bool {
        self.distance(other) < self.radius + other.radius
    }

    /// The force of contact with `other` on this body (N).
    fn contact_force(&self, other: &Body) -> [f64; 2] {
        let distance = self.distance(other);
        if !(self.collides && other.collides) || distance == 0.0 {
            return [0.0; 2]; // two equal centres push in no direction at all
        }
        let overlap = self.radius + other.radius - distance;
        let penetration = softplus(overlap / CONTACT_MARGIN) * CONTACT_MARGIN;
        other.to(self).map(|delta| CONTACT_FORCE * delta / distance * penetration)
    }

    /// Moves for one step under `force` (N).
    fn integrate(&mut self, force: [f64; 2]) {
        for ((x, v), f) in self.position.iter_mut().zip(&mut self.velocity).zip(force) {
            *x += *v * DT;
            *v = *v * (1.0 - DAMPING) + f * DT;
        }
        if let Some(max_speed) = self.max_speed {
            let [vx, vy] = self.velocity;
            let speed = (vx * vx + vy * vy).sqrt();
            if speed > max_speed {
                self.velocity = [vx / speed * max_speed, vy / speed * max_speed];
            }
        }
    }
}

/// ln(1 + eˣ), without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// An agent: what it can do and what it does, its body aside.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// PettingZoo's name.
    pub name: String,
    /// Whether it plays against the others.
    pub adversary: bool,
    /// Acceleration of a full movement action (m/s²).
    pub acceleration: f64,
    /// Whether it can speak.
    pub speaks: bool,
    /// The force it steers with (N).
    pub control: [f64; 2],
    /// What it said last, `[num_words]`; zeros before it speaks, and always if it cannot.
    pub utterance: Vec<f64>,
}

impl Agent {
    /// A silent agent with the default acceleration in a world of `num_words` words.
    pub fn new(name: impl Into<String>, num_words: usize) -> Self {
        Self {
            name: name.into(),
            adversary: false,
            acceleration: DEFAULT_ACCELERATION,
            speaks: false,
            control: [0.0; 2],
            utterance: vec![0.0; num_words],
        }
    }
}

/// All bodies and agents, and the landmarks that a task has chosen as goals.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// `[num_agents]`
    pub agents: Vec<Agent>,
    /// The agents' bodies in the same order, then the landmarks.
    pub bodies: Vec<Body>,
    /// Indices of landmarks; the task says whose goals they are.
    pub goals: Vec<usize>,
    forces: Vec<[f64; 2]>, // N, [bodies], of the current step
}

impl World {
    /// A world of `agents` with their bodies, of `landmarks`, and of `num_goals` goals, all of
    /// them landmark 0 at first.
    pub fn new(agents: Vec<(Agent, Body)>, landmarks: Vec<Body>, num_goals: usize) -> Self {
        let (agents, mut bodies): (Vec<_>, Vec<_>) = agents.into_iter().unzip();
        bodies.extend(landmarks);
        let forces = vec![[0.0; 2]; bodies.len()];
        Self { agents, bodies, goals: vec![0; num_goals], forces }
    }

    /// The agents' bodies, `[num_agents]`.
    pub fn agent_bodies(&self) -> &[Body] {
        &self.bodies[..self.agents.len()]
    }

    /// The landmarks.
    pub fn landmarks(&self) -> &[Body] {
        &self.bodies[self.agents.len()..]
    }

    /// The landmark that goal number `goal` names.
    pub fn goal(&self, goal: usize) -> &Body {
        &self.landmarks()[self.goals[goal]]
    }

    /// The agents other than `agent` with their bodies.
    pub fn others(&self, agent: usize) -> impl Iterator<Item = (&Agent, &Body)> {
        let all = self.agents.iter().zip(&self.bodies).enumerate();
        all.filter(move |(index, _)| *index != agent).map(|(_, other)| other)
    }

    /// Draws the goals, and places everything at rest and silent, uniformly on the square of
    /// ±1 m for agents and ±`landmark_range` m for landmarks.
    pub fn scatter(&mut self, landmark_range: f64, rng: &mut Rng) {
        let num_landmarks = self.landmarks().len();
        self.goals.fill_with(|| rng.random_range(0..num_landmarks));
        let num_agents = self.agents.len();
        for (index, body) in self.bodies.iter_mut().enumerate() {
            let range = if index < num_agents { 1.0 } else { landmark_range };
            body.position = std::array::from_fn(|_| rng.random_range(-range..range));
            body.velocity = [0.0; 2];
        }
        for agent in &mut self.agents {
            agent.utterance.fill(0.0);
        }
    }

    /// Advances by one step under the agents' controls.
    pub fn step(&mut self) {
        let num_agents = self.agents.len();
        self.forces.fill([0.0; 2]);
        for (force, agent) in self.forces.iter_mut().zip(&self.agents) {
            *force = agent.control;
        }
        // Landmarks never move: contacts between two of them have no effect.
        for a in 0..num_agents {
            for b in a + 1..self.bodies.len() {
                let contact = self.bodies[a].contact_force(&self.bodies[b]);
                for (axis, force) in contact.into_iter().enumerate() {
                    self.forces[a][axis] += force;
                    self.forces[b][axis] -= force;
                }
            }
        }
        for (body, force) in self.bodies.iter_mut().zip(&self.forces) {
            if body.movable {
                body.integrate(*force);
            }
        }
    }

    /// Everything that changes: position and velocity of each agent, position of each landmark,
    /// the utterance of each agent that speaks, the goals.
    pub fn state(&self) -> State {
        let mut state = Vec::new();
        for body in self.agent_bodies() {
            state.extend(body.position);
            state.extend(body.velocity);
        }
        state.extend(self.landmarks().iter().flat_map(|landmark| landmark.position));
        state.extend(self.agents.iter().filter(|agent| agent.speaks).flat_map(|agent| &agent.utterance));
        state.extend(self.goals.iter().map(|&goal| goal as f64));
        State(state)
    }

    /// Returns to what [`World::state`] gave; `id` is for the error's message.
    pub fn set_state(&mut self, id: &str, state: &State) -> Result<()> {
        let (num_agents, num_landmarks) = (self.agents.len(), self.landmarks().len());
        let num_said: usize = self.agents.iter().filter(|a| a.speaks).map(|a| a.utterance.len()).sum();
        let num_placed = 4 * num_agents + 2 * num_landmarks;
        expect_len(id, state, num_placed + num_said + self.goals.len())?;

        let (placed, rest) = state.0.split_at(num_placed);
        let (said, goals) = rest.split_at(num_said);
        if let Some(word) = said.iter().find(|word| !(0.0..=1.0).contains(*word)) {
            return invalid(format!("{id}: an utterance of {word} in a state, it must be from 0 to 1"));
        }
        if let Some(goal) =
            goals.iter().find(|g| g.fract() != 0.0 || **g < 0.0 || **g >= num_landmarks as f64)
        {
            return invalid(format!(
                "{id}: goal {goal} in a state, there are landmarks 0 to {}",
                num_landmarks - 1
            ));
        }

        let (moving, still) = placed.split_at(4 * num_agents);
        let (agents, landmarks) = self.bodies.split_at_mut(num_agents);
        for (body, values) in agents.iter_mut().zip(moving.chunks_exact(4)) {
            body.position = [values[0], values[1]];
            body.velocity = [values[2], values[3]];
        }
        for (body, values) in landmarks.iter_mut().zip(still.chunks_exact(2)) {
            body.position = [values[0], values[1]];
        }
        let mut said = said.iter().copied();
        for agent in self.agents.iter_mut().filter(|agent| agent.speaks) {
            agent.utterance.iter_mut().zip(said.by_ref()).for_each(|(word, value)| *word = value);
        }
        for (goal, value) in self.goals.iter_mut().zip(goals) {
            *goal = *value as usize;
        }
        Ok(())
    }
}
