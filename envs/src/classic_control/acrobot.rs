//! Acrobot-v1: swing a two-link chain, driven only at its middle joint, up past a line.
//!
//! Sutton, "Generalization in reinforcement learning: successful examples using sparse coarse
//! coding" (1996); equations of motion as in Sutton & Barto, "Reinforcement Learning" (1st ed.,
//! section 11.3), fourth-order Runge-Kutta integration as in Gymnasium's Acrobot-v1.

use crate::{
    Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, env::expect_len, invalid,
};
use rand::RngExt;
use std::f64::consts::{FRAC_PI_2, PI, TAU};

const GRAVITY: f64 = 9.8; // m/s²
const TIME_STEP: f64 = 0.2; // s
const LENGTH_1: f64 = 1.0; // m
const LENGTH_2: f64 = 1.0; // m, seen only in the picture: the second link's end moves nothing
const MASS_1: f64 = 1.0; // kg
const MASS_2: f64 = 1.0; // kg
const CENTRE_1: f64 = 0.5; // m from the joint to the centre of mass
const CENTRE_2: f64 = 0.5; // m
const INERTIA: f64 = 1.0; // kg·m², of either link
const MAX_SPEED_1: f64 = 4.0 * PI; // rad/s
const MAX_SPEED_2: f64 = 9.0 * PI; // rad/s

/// State: angle θ₁ of the first link (0 hangs down), angle θ₂ of the second relative to the
/// first, and their velocities θ̇₁, θ̇₂.
pub struct Acrobot {
    spec: Spec,
    state: [f64; 4],
}

impl Acrobot {
    /// At rest, hanging; [`Env::reset`] begins an episode.
    pub fn new() -> Self {
        let high = [1.0, 1.0, 1.0, 1.0, MAX_SPEED_1 as f32, MAX_SPEED_2 as f32];
        Self {
            spec: Spec {
                id: "Acrobot-v1".into(),
                observation_space: Space::bounded(&high.map(|h| -h), &high),
                action_space: Space::Discrete { n: 3 },
                max_episode_steps: Some(500),
                reward_threshold: Some(-100.0),
            },
            state: [0.0; 4],
        }
    }
}

impl Default for Acrobot {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for Acrobot {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        // The original rounds the first state, and only that, to single precision.
        self.state = std::array::from_fn(|_| f64::from(rng.random_range(-0.1..0.1_f64) as f32));
        Ok(())
    }

    /// Actions: 0, 1, 2 apply a torque of −1, 0, 1 N·m between the links.
    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let torque = action.index() as f64 - 1.0;
        let [theta_1, theta_2, speed_1, speed_2] = runge_kutta(self.state, torque);
        let (theta_1, theta_2) = (wrapped(theta_1), wrapped(theta_2));
        self.state = [
            theta_1,
            theta_2,
            speed_1.clamp(-MAX_SPEED_1, MAX_SPEED_1),
            speed_2.clamp(-MAX_SPEED_2, MAX_SPEED_2),
        ];
        // The tip's height over the first joint, links being of length 1.
        let terminated = -theta_1.cos() - (theta_2 + theta_1).cos() > 1.0;
        Ok(Step { reward: if terminated { 0.0 } else { -1.0 }, terminated, truncated: false })
    }

    /// `[cos θ₁, sin θ₁, cos θ₂, sin θ₂, θ̇₁, θ̇₂]`
    fn observe(&self, observation: &mut [f32]) {
        let [theta_1, theta_2, speed_1, speed_2] = self.state;
        let ((sin_1, cos_1), (sin_2, cos_2)) = (theta_1.sin_cos(), theta_2.sin_cos());
        observation.copy_from_slice(&[cos_1, sin_1, cos_2, sin_2, speed_1, speed_2].map(|x| x as f32));
    }

    fn state(&self) -> Result<State> {
        Ok(State(self.state.to_vec()))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, 4)?;
        let limits = [PI, PI, MAX_SPEED_1, MAX_SPEED_2];
        if state.0.iter().zip(limits).any(|(x, limit)| x.abs() > limit) {
            return invalid(format!(
                "{}: state {:?}; angles are in [-π, π], velocities in [-4π, 4π] and [-9π, 9π]",
                self.spec.id, state.0
            ));
        }
        self.state.copy_from_slice(&state.0);
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        let [theta_1, theta_2, ..] = self.state;
        canvas.clear(palette::WHITE);
        canvas.fit(-2.3, -2.3, 2.3, 2.3);
        canvas.line(&[(-2.2, 1.0), (2.2, 1.0)], 0.04, palette::GREEN);
        let elbow = (LENGTH_1 * theta_1.sin(), -LENGTH_1 * theta_1.cos());
        let angle = theta_1 + theta_2;
        let tip = (elbow.0 + LENGTH_2 * angle.sin(), elbow.1 - LENGTH_2 * angle.cos());
        canvas.line(&[(0.0, 0.0), elbow], 0.2, palette::BLUE);
        canvas.line(&[elbow, tip], 0.2, palette::SKY);
        for (x, y) in [(0.0, 0.0), elbow] {
            canvas.circle(x, y, 0.07, palette::YELLOW);
        }
        Ok(())
    }
}

/// Derivatives `[θ̇₁, θ̇₂, θ̈₁, θ̈₂]` of a state under a torque on the second joint.
fn derivatives([theta_1, theta_2, speed_1, speed_2]: [f64; 4], torque: f64) -> [f64; 4] {
    let (sin_2, cos_2) = theta_2.sin_cos();
    // d₁ = m₁l_c₁² + m₂(l₁² + l_c₂² + 2l₁l_c₂ cos θ₂) + I₁ + I₂,  d₂ = m₂(l_c₂² + l₁l_c₂ cos θ₂) + I₂
    let d_1 = MASS_1 * (CENTRE_1 * CENTRE_1)
        + MASS_2 * (LENGTH_1 * LENGTH_1 + CENTRE_2 * CENTRE_2 + 2.0 * LENGTH_1 * CENTRE_2 * cos_2)
        + INERTIA
        + INERTIA;
    let d_2 = MASS_2 * (CENTRE_2 * CENTRE_2 + LENGTH_1 * CENTRE_2 * cos_2) + INERTIA;
    // φ₂ = m₂l_c₂g cos(θ₁ + θ₂ − π/2)
    let phi_2 = MASS_2 * CENTRE_2 * GRAVITY * (theta_1 + theta_2 - FRAC_PI_2).cos();
    // φ₁ = −m₂l₁l_c₂ sin θ₂ (θ̇₂² + 2θ̇₂θ̇₁) + (m₁l_c₁ + m₂l₁) g cos(θ₁ − π/2) + φ₂
    let phi_1 = -MASS_2 * LENGTH_1 * CENTRE_2 * (speed_2 * speed_2) * sin_2
        - 2.0 * MASS_2 * LENGTH_1 * CENTRE_2 * speed_2 * speed_1 * sin_2
        + (MASS_1 * CENTRE_1 + MASS_2 * LENGTH_1) * GRAVITY * (theta_1 - FRAC_PI_2).cos()
        + phi_2;
    // θ̈₂ = (τ + d₂/d₁ φ₁ − m₂l₁l_c₂ θ̇₁² sin θ₂ − φ₂) / (m₂l_c₂² + I₂ − d₂²/d₁)
    let acceleration_2 =
        (torque + d_2 / d_1 * phi_1 - MASS_2 * LENGTH_1 * CENTRE_2 * (speed_1 * speed_1) * sin_2 - phi_2)
            / (MASS_2 * (CENTRE_2 * CENTRE_2) + INERTIA - d_2 * d_2 / d_1);
    let acceleration_1 = -(d_2 * acceleration_2 + phi_1) / d_1;
    [speed_1, speed_2, acceleration_1, acceleration_2]
}

/// One step of the classical fourth-order Runge-Kutta method.
fn runge_kutta(state: [f64; 4], torque: f64) -> [f64; 4] {
    let advanced = |slope: [f64; 4], time: f64| std::array::from_fn(|i| state[i] + time * slope[i]);
    let k_1 = derivatives(state, torque);
    let k_2 = derivatives(advanced(k_1, TIME_STEP / 2.0), torque);
    let k_3 = derivatives(advanced(k_2, TIME_STEP / 2.0), torque);
    let k_4 = derivatives(advanced(k_3, TIME_STEP), torque);
    std::array::from_fn(|i| state[i] + TIME_STEP / 6.0 * (k_1[i] + 2.0 * k_2[i] + 2.0 * k_3[i] + k_4[i]))
}

/// The angle in [-π, π], reached by whole turns as in the original.
fn wrapped(mut angle: f64) -> f64 {
    while angle > PI {
        angle -= TAU;
    }
    while angle < -PI {
        angle += TAU;
    }
    angle
}
