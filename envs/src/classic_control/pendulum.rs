//! Pendulum-v1: swing up a pendulum whose motor is too weak to lift it at once, and hold it there.
//!
//! Doya, "Reinforcement learning in continuous time and space" (2000); constants and semi-implicit
//! Euler integration as in Gymnasium's Pendulum-v1.

use crate::{
    Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, env::expect_len, invalid,
};
use rand::RngExt;
use std::f64::consts::{PI, TAU};

const GRAVITY: f64 = 10.0; // m/s²
const MASS: f64 = 1.0; // kg
const LENGTH: f64 = 1.0; // m
const TIME_STEP: f64 = 0.05; // s
const MAX_SPEED: f64 = 8.0; // rad/s
const MAX_TORQUE: f32 = 2.0; // N·m

/// State: angle θ (0 is upright, never wrapped), angular velocity θ̇.
pub struct Pendulum {
    spec: Spec,
    theta: f64,     // rad
    theta_dot: f64, // rad/s
    /// Sine and cosine of θ, which both the observation and the next step need.
    sin_cos: (f64, f64),
}

impl Pendulum {
    /// At rest, upright; [`Env::reset`] begins an episode.
    pub fn new() -> Self {
        let high = [1.0, 1.0, MAX_SPEED as f32];
        Self {
            spec: Spec {
                id: "Pendulum-v1".into(),
                observation_space: Space::bounded(&high.map(|h| -h), &high),
                action_space: Space::uniform(1, -MAX_TORQUE, MAX_TORQUE),
                max_episode_steps: Some(200),
                reward_threshold: None,
            },
            theta: 0.0,
            theta_dot: 0.0,
            sin_cos: (0.0, 1.0),
        }
    }

    fn place(&mut self, theta: f64, theta_dot: f64) {
        self.theta = theta;
        self.theta_dot = theta_dot;
        self.sin_cos = theta.sin_cos();
    }
}

impl Default for Pendulum {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for Pendulum {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        let theta = rng.random_range(-PI..PI);
        self.place(theta, rng.random_range(-1.0..1.0));
        Ok(())
    }

    /// Action: torque in N·m, held to [-2, 2].
    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let torque = action.vector()[0].clamp(-MAX_TORQUE, MAX_TORQUE);
        let angle = wrapped(self.theta);
        // r = −(θ² + 0.1 θ̇² + 0.001 u²). The torque is a single precision number in the original
        // and so are its products; the rest is double precision. (The original squares it with
        // C's `powf`, whose last bit is sometimes another: at most 2.4e-10 in the reward.)
        let cost = angle * angle
            + 0.1 * (self.theta_dot * self.theta_dot)
            + f64::from(0.001_f32 * (torque * torque));

        // θ̈ = 3g/(2l) sin θ + 3u/(ml²)
        const INVERSE_INERTIA: f32 = (3.0 / (MASS * LENGTH * LENGTH)) as f32;
        let acceleration =
            3.0 * GRAVITY / (2.0 * LENGTH) * self.sin_cos.0 + f64::from(INVERSE_INERTIA * torque);
        let theta_dot = (self.theta_dot + acceleration * TIME_STEP).clamp(-MAX_SPEED, MAX_SPEED);
        self.place(self.theta + theta_dot * TIME_STEP, theta_dot);
        Ok(Step { reward: -cost, terminated: false, truncated: false })
    }

    /// `[cos θ, sin θ, θ̇]`
    fn observe(&self, observation: &mut [f32]) {
        let (sin, cos) = self.sin_cos;
        observation.copy_from_slice(&[cos as f32, sin as f32, self.theta_dot as f32]);
    }

    fn state(&self) -> Result<State> {
        Ok(State(vec![self.theta, self.theta_dot]))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, 2)?;
        let [theta, theta_dot] = [state.0[0], state.0[1]];
        if theta_dot.abs() > MAX_SPEED {
            return invalid(format!(
                "{}: angular velocity {theta_dot}; it is in [-{MAX_SPEED}, {MAX_SPEED}]",
                self.spec.id
            ));
        }
        self.place(theta, theta_dot);
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        let (sin, cos) = self.sin_cos;
        canvas.clear(palette::WHITE);
        canvas.fit(-1.3, -1.3, 1.3, 1.3);
        // Where it is to stand.
        canvas.line(&[(0.0, 1.08), (0.0, 1.2)], 0.03, palette::GREEN);
        canvas.line(&[(0.0, 0.0), (LENGTH * sin, LENGTH * cos)], 0.16, palette::VERMILLION);
        canvas.circle(0.0, 0.0, 0.05, palette::BLACK);
        Ok(())
    }
}

/// The angle in [-π, π): `(θ + π) mod 2π − π`.
fn wrapped(theta: f64) -> f64 {
    let shifted = theta + PI;
    // The remainder is slow to compute, and near the top there is nothing to compute.
    let shifted = if (0.0..TAU).contains(&shifted) { shifted } else { shifted.rem_euclid(TAU) };
    shifted - PI
}
