//! MuJoCo tasks of Gymnasium, version 5: robots made of rigid bodies, simulated by libmujoco.
//!
//! Todorov, Erez & Tassa, "MuJoCo: A physics engine for model-based control" (2012). The library
//! is opened at run time and the models are read from Gymnasium's Python package; one command
//! installs both, [`INSTALL`]. The tasks are held against recordings of Gymnasium 1.4.0 with
//! libmujoco 4.0.0: from the same initial state and actions the same observations and rewards,
//! to the last bit but for roundings of sines, cosines and distances.
//!
//! As in Gymnasium actions are not clipped: MuJoCo clamps the controls to their range, and the
//! control costs are of the action as it was given.

mod ant;
mod half_cheetah;
mod hopper;
mod humanoid;
mod humanoid_standup;
mod installation;
mod inverted_double_pendulum;
mod inverted_pendulum;
mod library;
mod pusher;
mod reacher;
mod swimmer;
#[cfg(test)]
mod tests;
mod walker2d;

pub use installation::INSTALL;

use crate::{
    Action, Canvas, Env, Registration, Result, Rng, Space, Spec, State, Step,
    canvas::{Color, palette},
    invalid,
    wrappers::TimeLimit,
};
use anyhow::Context;
use library::{Library, Model, Simulation, shape};
use rand::RngExt;
use rand_distr::StandardNormal;
use std::ops::{Add, Mul};

/// Lists the tasks: [`Registration::make`] is a plain function, so each task needs its own.
macro_rules! tasks {
    ($($task:ident),* $(,)?) => {
        const DEFINITIONS: &[&Definition] = &[$(&$task::DEFINITION),*];

        /// This family's environments.
        pub fn registered() -> Vec<Registration> {
            vec![$(Registration { id: $task::DEFINITION.id, make: || limited(&$task::DEFINITION) }),*]
        }
    };
}

tasks!(
    inverted_pendulum,
    inverted_double_pendulum,
    reacher,
    pusher,
    swimmer,
    hopper,
    half_cheetah,
    walker2d,
    ant,
    humanoid,
    humanoid_standup,
);

fn limited(definition: &'static Definition) -> Result<Box<dyn Env>> {
    Ok(Box::new(TimeLimit::new(MujocoEnv::build(definition)?)))
}

/// Whether MuJoCo tasks can be built here.
///
/// # Errors
/// A [`crate::InvalidInput`] naming what is missing and [`INSTALL`]; another error where the
/// library is there and does not behave as it should.
pub fn available() -> Result<()> {
    Library::get().map(drop)
}

/// What a task's file states about it.
struct Definition {
    /// Gymnasium's id.
    id: &'static str,
    /// File of Gymnasium's that describes the robot.
    model: &'static str,
    /// Steps of MuJoCo for one of the environment.
    frame_skip: usize,
    /// Steps after which an episode is truncated.
    max_episode_steps: u32,
    /// Return that Gymnasium counts as solved.
    reward_threshold: Option<f64>,
    /// Whether rewards or observations need contact forces, which take time to compute.
    contact_forces: bool,
    /// Where the task is seen from.
    camera: Camera,
    /// Builds the task, looking up what it needs in the model.
    task: fn(&Model) -> Result<Box<dyn Task>>,
}

/// What makes a simulated robot a task.
trait Task: Send {
    /// Draws the beginning of an episode: `qpos`, `[nq]`, holds the model's position at rest and
    /// `qvel`, `[nv]`, zeros.
    fn begin(&self, qpos: &mut [f64], qvel: &mut [f64], rng: &mut Rng);

    /// Advances the simulation under `action`, `[nu]`, and judges what came of it.
    fn step(&self, simulation: &mut Simulation, action: &[f32]) -> Step;

    /// Appends what is observed.
    fn observe(&self, simulation: &Simulation, observation: &mut Vec<f64>);
}

/// A MuJoCo task without its time limit.
///
/// Its state is a number that says whether a substep of MuJoCo is to follow, then MuJoCo's
/// integration state before it: time, positions, velocities, warm start, controls and more.
pub struct MujocoEnv {
    spec: Spec,
    camera: &'static Camera,
    task: Box<dyn Task>,
    simulation: Simulation,
    observation: Vec<f64>, // [observation_dim]
    qpos: Vec<f64>,        // [nq], where an episode's beginning is drawn
    qvel: Vec<f64>,        // [nv]
}

impl MujocoEnv {
    /// Builds the task `id`, such as `HalfCheetah-v5`.
    ///
    /// # Errors
    /// An unknown id, and what [`available`] reports.
    pub fn new(id: &str) -> Result<Self> {
        match DEFINITIONS.iter().find(|definition| definition.id == id) {
            Some(definition) => Self::build(definition),
            None => invalid(format!("{id}: unknown MuJoCo task")),
        }
    }

    fn build(definition: &'static Definition) -> Result<Self> {
        let model = Library::get()?.model(definition.model)?;
        let task = (definition.task)(&model).with_context(|| definition.model.to_string())?;
        let simulation = Simulation::new(model, definition.frame_skip, definition.contact_forces)?;
        let mut observation = Vec::new();
        task.observe(&simulation, &mut observation);
        let model = simulation.model();
        let bound =
            |side: usize| model.control_ranges().iter().map(|range| range[side] as f32).collect::<Vec<_>>();
        let spec = Spec {
            id: definition.id.into(),
            observation_space: Space::uniform(observation.len(), f32::NEG_INFINITY, f32::INFINITY),
            action_space: Space::bounded(&bound(0), &bound(1)),
            max_episode_steps: Some(definition.max_episode_steps),
            reward_threshold: definition.reward_threshold,
        };
        let (qpos, qvel) = (model.rest.clone(), vec![0.0; model.nv]);
        Ok(Self { spec, camera: &definition.camera, task, simulation, observation, qpos, qvel })
    }

    /// The current observation in the precision that Gymnasium returns it in,
    /// `[observation_dim]`; [`Env::observe`] rounds it to `f32`.
    pub fn observation(&self) -> &[f64] {
        &self.observation
    }

    /// Generalised positions in m and rad, `[nq]`; a free joint's orientation is a quaternion.
    pub fn qpos(&self) -> &[f64] {
        self.simulation.qpos()
    }

    /// Generalised velocities in m/s and rad/s, `[nv]`.
    pub fn qvel(&self) -> &[f64] {
        self.simulation.qvel()
    }

    /// Positions of the model at rest, `[nq]`, around which episodes begin.
    pub fn rest(&self) -> &[f64] {
        &self.simulation.model().rest
    }

    /// Number of bodies, the world included.
    pub fn num_bodies(&self) -> usize {
        self.simulation.model().num_bodies
    }

    /// Seconds of one step of MuJoCo.
    pub fn timestep(&self) -> f64 {
        self.simulation.model().timestep
    }

    /// Steps of MuJoCo for one step of the environment.
    pub fn frame_skip(&self) -> usize {
        self.simulation.frame_skip()
    }

    /// Begins an episode with these positions, `[nq]`, and velocities, `[nv]`.
    ///
    /// # Errors
    /// Other lengths and numbers that are not finite.
    pub fn begin(&mut self, qpos: &[f64], qvel: &[f64]) -> Result<()> {
        let id = &self.spec.id;
        let (nq, nv) = (self.qpos.len(), self.qvel.len());
        if qpos.len() != nq || qvel.len() != nv || !qpos.iter().chain(qvel).all(|x| x.is_finite()) {
            return invalid(format!(
                "{id}: an episode begins with {nq} positions and {nv} velocities, all finite, got {qpos:?} and {qvel:?}"
            ));
        }
        self.simulation.start(qpos, qvel);
        self.look();
        Ok(())
    }

    /// Makes the observation of the current state.
    fn look(&mut self) {
        self.observation.clear();
        self.task.observe(&self.simulation, &mut self.observation);
    }
}

impl Env for MujocoEnv {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.qpos.copy_from_slice(&self.simulation.model().rest);
        self.qvel.fill(0.0);
        self.task.begin(&mut self.qpos, &mut self.qvel, rng);
        self.simulation.start(&self.qpos, &self.qvel);
        self.look();
        Ok(())
    }

    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let action = action.vector();
        let nu = self.simulation.controls().len();
        if action.len() != nu {
            return invalid(format!("{}: an action has {nu} numbers, got {action:?}", self.spec.id));
        }
        let step = self.task.step(&mut self.simulation, action);
        self.look();
        Ok(step)
    }

    fn observe(&self, observation: &mut [f32]) {
        for (o, &x) in observation.iter_mut().zip(&self.observation) {
            *o = x as f32;
        }
    }

    fn state(&self) -> Result<State> {
        Ok(State(self.simulation.save()))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        if let Err(reason) = self.simulation.restore(&state.0) {
            return invalid(format!("{}: this is not a state: {reason}", self.spec.id));
        }
        self.look();
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        self.camera.draw(&self.simulation, canvas);
        Ok(())
    }
}

/// Adds noise from U[−scale, scale) to each value.
fn add_uniform(values: &mut [f64], scale: f64, rng: &mut Rng) {
    for value in values {
        *value += rng.random_range(-scale..scale);
    }
}

/// Adds noise from N(0, scale²) to each value.
fn add_normal(values: &mut [f64], scale: f64, rng: &mut Rng) {
    for value in values {
        *value += scale * rng.sample::<f64, _>(StandardNormal);
    }
}

/// The sum of `term(0) … term(n − 1)`, for `n` up to 128, added as NumPy adds: from eight terms
/// on in eight running sums. Rewards then agree with Gymnasium's to the last bit, and the
/// compiler can use vector instructions.
fn sum<T: Copy + Default + Add<Output = T>>(n: usize, term: impl Fn(usize) -> T) -> T {
    if n < 8 {
        return (0..n).fold(T::default(), |total, i| total + term(i));
    }
    let whole = n - n % 8;
    let mut lanes: [T; 8] = std::array::from_fn(&term);
    for block in (8..whole).step_by(8) {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total = *total + term(block + lane);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    (whole..n).fold(((a + b) + (c + d)) + ((e + f) + (g + h)), |total, i| total + term(i))
}

/// The sum of the squares of `values`, in their own precision: Gymnasium's control costs are
/// computed in `f32`, that of the actions.
fn sum_of_squares<T: Copy + Default + Add<Output = T> + Mul<Output = T>>(values: &[T]) -> T {
    sum(values.len(), |i| values[i] * values[i])
}

/// Distance in m of two points.
fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    let [x, y, z] = [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
    (x * x + y * y + z * z).sqrt()
}

/// Where a task is seen from when it is drawn: a parallel projection.
struct Camera {
    /// Angle in rad above the horizon: 0 is from the side (x to the right, z up), π/2 from above
    /// (y up).
    elevation: f64,
    /// Width in m of what is seen.
    width: f64,
    /// What is seen in the middle, in m; its x is relative to the followed body's.
    center: [f64; 3],
    /// The body whose x the camera follows; 0, the world, stays.
    follows: usize,
}

impl Camera {
    /// Draws the geoms, each body in its own colour, what is nearer over what is farther.
    fn draw(&self, simulation: &Simulation, canvas: &mut Canvas) {
        let (sin, cos) = self.elevation.sin_cos();
        let project = |[x, y, z]: [f64; 3]| (x, z * cos + y * sin);
        let depth = |[_, y, z]: [f64; 3]| z * sin - y * cos; // towards the camera
        let x = simulation.body_positions()[self.follows][0];
        let (center_x, center_y) = project([x + self.center[0], self.center[1], self.center[2]]);
        let (pixels_x, pixels_y) = canvas.size();
        let half_width = self.width / 2.0;
        let half_height = half_width * f64::from(pixels_y) / f64::from(pixels_x);
        let (left, right) = (center_x - half_width, center_x + half_width);
        canvas.clear(palette::WHITE);
        canvas.view(left, center_y - half_height, right, center_y + half_height);
        let model = simulation.model();
        let thin = self.width / 200.0;
        // Marks on the ground a metre apart show how far it goes.
        let marks = (left.floor() as i64)..=(right.ceil() as i64);
        if self.elevation == 0.0 {
            canvas.line(&[(left, 0.0), (right, 0.0)], thin, palette::GREY);
            for mark in marks {
                let mark = mark as f64;
                canvas.line(&[(mark, 0.0), (mark, -4.0 * thin)], thin, palette::GREY);
            }
        } else {
            for mark in marks {
                let mark = mark as f64;
                let [far, near] = [-10.0, 10.0].map(|y| project([mark, y, 0.0]));
                canvas.line(&[far, near], thin / 2.0, palette::LIGHT_GREY);
            }
        }
        let (positions, rotations) = (simulation.geom_positions(), simulation.geom_rotations());
        let mut order: Vec<usize> = (0..positions.len()).collect();
        order.sort_by(|&a, &b| depth(positions[a]).total_cmp(&depth(positions[b])));
        for geom in order {
            let ([radius, half_length, _], r) = (model.geom_sizes()[geom], rotations[geom]);
            let color: Color = match model.geom_bodies()[geom] {
                0 => palette::GREY, // part of the world
                body => palette::CATEGORIES[(body as usize - 1) % palette::CATEGORIES.len()],
            };
            let end = |sign: f64| {
                let along = [r[2], r[5], r[8]]; // the geom's own z axis
                project(std::array::from_fn(|i| positions[geom][i] + sign * half_length * along[i]))
            };
            match model.geom_shapes()[geom] {
                shape::SPHERE => {
                    let (x, y) = project(positions[geom]);
                    canvas.circle(x, y, radius, color);
                }
                shape::CAPSULE | shape::CYLINDER => canvas.line(&[end(-1.0), end(1.0)], 2.0 * radius, color),
                _ => {} // the ground
            }
        }
    }
}
