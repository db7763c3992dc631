//! MountainCar-v0: drive an underpowered car out of a valley by first backing up the other side.
//!
//! Moore, "Efficient memory-based learning for robot control" (1990); dynamics as in Sutton &
//! Barto, "Reinforcement Learning", example 10.1, constants as in Gymnasium's MountainCar-v0.

use crate::{
    Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, env::expect_len, invalid,
};
use rand::RngExt;

const MIN_POSITION: f64 = -1.2;
const MAX_POSITION: f64 = 0.6;
const MAX_SPEED: f64 = 0.07; // per step
const GOAL: f64 = 0.5;
const FORCE: f64 = 0.001;
const GRAVITY: f64 = 0.0025;

/// State: position x along the valley, velocity v in positions per step.
pub struct MountainCar {
    spec: Spec,
    state: [f64; 2],
}

impl MountainCar {
    /// At rest at position 0; [`Env::reset`] begins an episode.
    pub fn new() -> Self {
        Self {
            spec: Spec {
                id: "MountainCar-v0".into(),
                observation_space: observation_space(),
                action_space: Space::Discrete { n: 3 },
                max_episode_steps: Some(200),
                reward_threshold: Some(-110.0),
            },
            state: [0.0; 2],
        }
    }
}

impl Default for MountainCar {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for MountainCar {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.state = [rng.random_range(-0.6..-0.4), 0.0];
        Ok(())
    }

    /// Actions: 0 pushes left, 1 not at all, 2 right.
    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let [x, v] = self.state;
        let push = action.index() as f64 - 1.0;
        // The valley's height is sin 3x, so gravity pulls along −cos 3x.
        let v = (v + (push * FORCE - (3.0 * x).cos() * GRAVITY)).clamp(-MAX_SPEED, MAX_SPEED);
        let x = (x + v).clamp(MIN_POSITION, MAX_POSITION);
        // The wall on the left stops the car.
        let v = if x == MIN_POSITION { v.max(0.0) } else { v };
        self.state = [x, v];
        Ok(Step { reward: -1.0, terminated: x >= GOAL && v >= 0.0, truncated: false })
    }

    fn observe(&self, observation: &mut [f32]) {
        for (o, s) in observation.iter_mut().zip(self.state) {
            *o = s as f32;
        }
    }

    fn state(&self) -> Result<State> {
        Ok(State(self.state.to_vec()))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        self.state = checked_state(&self.spec, state)?;
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        draw_valley(canvas, self.state[0], GOAL);
        Ok(())
    }
}

/// Position and velocity.
pub(super) fn observation_space() -> Space {
    let high = [MAX_POSITION as f32, MAX_SPEED as f32];
    Space::bounded(&[MIN_POSITION as f32, -high[1]], &high)
}

/// Position and velocity of a state, if they lie in the valley and within the speed limit. They
/// are compared in single precision, in which the continuous car's limits lie a little further
/// out.
pub(super) fn checked_state(spec: &Spec, state: &State) -> Result<[f64; 2]> {
    expect_len(&spec.id, state, 2)?;
    let [x, v] = [state.0[0], state.0[1]];
    if spec.observation_space.contains(&[x as f32, v as f32]) {
        return Ok([x, v]);
    }
    invalid(format!(
        "{}: position {x}, velocity {v}; positions are in [{MIN_POSITION}, {MAX_POSITION}], velocities in [-{MAX_SPEED}, {MAX_SPEED}]",
        spec.id
    ))
}

/// The valley with the car at `position` and a flag at `goal`.
pub(crate) fn draw_valley(canvas: &mut Canvas, position: f64, goal: f64) {
    const POINTS: usize = 100;
    const RADIUS: f64 = 0.035; // of the wheels
    let height = |x: f64| 0.45 * (3.0 * x).sin() + 0.55;
    canvas.clear(palette::WHITE);
    canvas.fit(MIN_POSITION, 0.0, MAX_POSITION, 1.2);

    let ground = |i: usize| {
        let x = MIN_POSITION + (MAX_POSITION - MIN_POSITION) * i as f64 / POINTS as f64;
        (x, height(x))
    };
    let surface: Vec<(f64, f64)> = (0..=POINTS).map(ground).collect();
    let mut hill = surface.clone();
    hill.extend([(MAX_POSITION, 0.0), (MIN_POSITION, 0.0)]);
    canvas.polygon(&hill, palette::LIGHT_GREY);
    canvas.line(&surface, 0.012, palette::GREY);

    let (x, y) = (goal, height(goal));
    canvas.line(&[(x, y), (x, y + 0.2)], 0.012, palette::BLACK);
    canvas.polygon(&[(x, y + 0.2), (x, y + 0.12), (x + 0.09, y + 0.16)], palette::GREEN);

    // The car stands along the slope, 3 · 0.45 cos 3x.
    let (sin, cos) = (1.35 * (3.0 * position).cos()).atan().sin_cos();
    let place = |along: f64, above: f64| {
        (position + along * cos - above * sin, height(position) + along * sin + above * cos)
    };
    let body = [(-0.1, RADIUS), (0.1, RADIUS), (0.1, 0.09), (0.05, 0.13), (-0.06, 0.13), (-0.1, 0.09)];
    canvas.polygon(&body.map(|(along, above)| place(along, above)), palette::BLUE);
    for along in [-0.055, 0.055] {
        let (x, y) = place(along, RADIUS);
        canvas.circle(x, y, RADIUS, palette::BLACK);
    }
}
