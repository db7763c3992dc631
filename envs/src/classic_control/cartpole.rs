//! CartPole-v1: balance a pole on a cart by pushing the cart left or right.
//!
//! Barto, Sutton & Anderson, "Neuronlike adaptive elements that can solve difficult learning
//! control problems" (1983); constants and Euler integration as in Gymnasium's CartPole-v1.

use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, env::expect_len};
use rand::RngExt;
use std::f64::consts::PI;

const GRAVITY: f64 = 9.8; // m/s²
const MASS_POLE: f64 = 0.1; // kg
const TOTAL_MASS: f64 = 1.0 + MASS_POLE; // kg
const HALF_LENGTH: f64 = 0.5; // m
const POLE_MASS_LENGTH: f64 = MASS_POLE * HALF_LENGTH; // kg·m
const FORCE: f64 = 10.0; // N
const TAU: f64 = 0.02; // s
const X_LIMIT: f64 = 2.4; // m
const THETA_LIMIT: f64 = 12.0 * 2.0 * PI / 360.0; // rad

/// State: position x, velocity ẋ, pole angle θ (0 is upright), angular velocity θ̇.
pub struct CartPole {
    spec: Spec,
    state: [f64; 4],
}

impl CartPole {
    /// At rest, upright; [`Env::reset`] begins an episode.
    pub fn new() -> Self {
        let high = [2.0 * X_LIMIT as f32, f32::INFINITY, (2.0 * THETA_LIMIT) as f32, f32::INFINITY];
        Self {
            spec: Spec {
                id: "CartPole-v1".into(),
                observation_space: Space::bounded(&high.map(|h| -h), &high),
                action_space: Space::Discrete { n: 2 },
                max_episode_steps: Some(500),
                reward_threshold: Some(475.0),
            },
            state: [0.0; 4],
        }
    }
}

impl Default for CartPole {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for CartPole {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.state = std::array::from_fn(|_| rng.random_range(-0.05..0.05));
        Ok(())
    }

    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let [x, x_dot, theta, theta_dot] = self.state;
        let force = if action.index() == 1 { FORCE } else { -FORCE };
        let (sin, cos) = theta.sin_cos();
        // θ̈ = (g sin θ − cos θ · temp) / (l (4/3 − m_p cos²θ / m)),  ẍ = temp − m_p l θ̈ cos θ / m
        let temp = (force + POLE_MASS_LENGTH * (theta_dot * theta_dot) * sin) / TOTAL_MASS;
        let theta_acc =
            (GRAVITY * sin - cos * temp) / (HALF_LENGTH * (4.0 / 3.0 - MASS_POLE * (cos * cos) / TOTAL_MASS));
        let x_acc = temp - POLE_MASS_LENGTH * theta_acc * cos / TOTAL_MASS;
        self.state =
            [x + TAU * x_dot, x_dot + TAU * x_acc, theta + TAU * theta_dot, theta_dot + TAU * theta_acc];
        let terminated = self.state[0].abs() > X_LIMIT || self.state[2].abs() > THETA_LIMIT;
        Ok(Step { reward: 1.0, terminated, truncated: false })
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
        expect_len(&self.spec.id, state, 4)?;
        self.state.copy_from_slice(&state.0);
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        let [x, _, theta, _] = self.state;
        canvas.clear(palette::WHITE);
        canvas.view(-X_LIMIT, -0.8, X_LIMIT, 2.4);
        canvas.line(&[(-X_LIMIT, 0.0), (X_LIMIT, 0.0)], 0.02, palette::GREY);
        canvas.rectangle(x - 0.3, -0.12, 0.6, 0.24, palette::BLACK);
        let length = 4.0 * HALF_LENGTH; // twice its true length, to be seen
        canvas.line(
            &[(x, 0.1), (x + length * theta.sin(), 0.1 + length * theta.cos())],
            0.1,
            palette::ORANGE,
        );
        canvas.circle(x, 0.1, 0.05, palette::BLUE);
        Ok(())
    }
}
