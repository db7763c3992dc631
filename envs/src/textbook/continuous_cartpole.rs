//! ContinuousCartPole-v0: CartPole whose cart is pushed as hard as one likes, the toy problem of
//! model-based reinforcement learning, as its two libraries have it.
//!
//! The dynamics are those of Gymnasium's CartPole-v1. ContinuousCartPole-v0 is mbrl-lib's (Pineda et al.
//! 2021, arXiv:2104.10159; facebookresearch/mbrl-lib, `mbrl/env/cartpole_continuous.py`): the force is
//! the action times 10 N, each step pays 1, and an episode ends when the pole falls or the cart leaves its
//! track. ContinuousCartPole-v0-mbbl is that of Wang et al. 2019, "Benchmarking model-based reinforcement
//! learning", arXiv:1907.02057 (WilsonWangTHU/mbbl, `mbbl/env/gym_env/cartpole.py`): only the action's
//! sign counts, the reward is a function of the state, and nothing is ever terminated.

use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, env::expect_len};
use rand::RngExt;
use std::f64::consts::PI;

const GRAVITY: f64 = 9.8; // m/s²
const MASS_POLE: f64 = 0.1; // kg
const TOTAL_MASS: f64 = 1.0 + MASS_POLE; // kg
const HALF_LENGTH: f64 = 0.5; // m
const POLE_MASS_LENGTH: f64 = MASS_POLE * HALF_LENGTH; // kg·m
const FORCE: f64 = 10.0; // N
const TIME_STEP: f64 = 0.02; // s
const X_LIMIT: f64 = 2.4; // m
const THETA_LIMIT: f64 = 12.0 * 2.0 * PI / 360.0; // rad
/// mbrl-lib's `trial_length` and MBBL's `max_length` (as coded, MBBL's cut comes one step later; the
/// best returns that it prints are 200).
const MAX_EPISODE_STEPS: u32 = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    MbrlLib,
    Mbbl,
}

/// State: position x, velocity ẋ, pole angle θ (0 is upright, never wrapped), angular velocity θ̇. It
/// begins uniform in ±0.05. With an action a in [-1, 1]:
///
/// ```text
///             force     reward             terminated
/// mbrl-lib    10 a      1                  |x'| > 2.4 m or |θ'| > 12°
/// MBBL        10 sign a cos θ − 0.01 x²    never
/// ```
///
/// MBBL's reward is of the state before the step, and an action of 0 pushes to the left.
pub struct ContinuousCartPole {
    spec: Spec,
    variant: Variant,
    state: [f64; 4],
}

impl ContinuousCartPole {
    /// mbrl-lib's, at rest, upright; [`Env::reset`] begins an episode.
    pub fn mbrl_lib() -> Self {
        let high = [2.0 * X_LIMIT as f32, f32::INFINITY, (2.0 * THETA_LIMIT) as f32, f32::INFINITY];
        Self::new(Variant::MbrlLib, "ContinuousCartPole-v0", high)
    }

    /// MBBL's, at rest, upright.
    pub fn mbbl() -> Self {
        Self::new(Variant::Mbbl, "ContinuousCartPole-v0-mbbl", [f32::INFINITY; 4])
    }

    fn new(variant: Variant, id: &str, high: [f32; 4]) -> Self {
        Self {
            spec: Spec {
                id: id.into(),
                observation_space: Space::bounded(&high.map(|h| -h), &high),
                action_space: Space::uniform(1, -1.0, 1.0),
                max_episode_steps: Some(MAX_EPISODE_STEPS),
                reward_threshold: None,
            },
            variant,
            state: [0.0; 4],
        }
    }

    /// Whether mbrl-lib's variant ends in `observation`, `[x, ẋ, θ, θ̇]`: for planners, which know a
    /// task's end and reward as functions of what their model predicts (mbrl-lib's
    /// `termination_fns.cartpole`).
    pub fn terminated(observation: &[f32]) -> bool {
        has_fallen(f64::from(observation[0]), f64::from(observation[2]))
    }

    /// What a planner in mbrl-lib's variant counts for a step to `next_observation`: 1, and 0 where the
    /// episode ends (`reward_fns.cartpole`; the environment itself pays 1 for that step too, with which
    /// a plan that falls in its last step would be worth as much as one that does not).
    pub fn reward(next_observation: &[f32]) -> f32 {
        if Self::terminated(next_observation) { 0.0 } else { 1.0 }
    }

    /// MBBL's reward for any step from `observation`, `[x, ẋ, θ, θ̇]`: cos θ − 0.01 x².
    pub fn mbbl_reward(observation: &[f32]) -> f32 {
        let [x, theta] = [observation[0], observation[2]];
        theta.cos() - 0.01 * x * x
    }
}

/// Whether the cart has left its track or the pole is more than 12 degrees from upright.
fn has_fallen(x: f64, theta: f64) -> bool {
    x.abs() > X_LIMIT || theta.abs() > THETA_LIMIT
}

impl Env for ContinuousCartPole {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.state = std::array::from_fn(|_| rng.random_range(-0.05..0.05));
        Ok(())
    }

    /// Action: share of the greatest force, held to [-1, 1], which the originals leave to the caller.
    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let action = f64::from(action.vector()[0]).clamp(-1.0, 1.0);
        let [x, x_dot, theta, theta_dot] = self.state;
        let (sin, cos) = theta.sin_cos();
        let (force, reward) = match self.variant {
            Variant::MbrlLib => (FORCE * action, 1.0),
            Variant::Mbbl => (if action > 0.0 { FORCE } else { -FORCE }, cos - 0.01 * x * x),
        };
        // θ̈ = (g sin θ − cos θ · temp) / (l (4/3 − m_p cos²θ / m)),  ẍ = temp − m_p l θ̈ cos θ / m
        let temp = (force + POLE_MASS_LENGTH * (theta_dot * theta_dot) * sin) / TOTAL_MASS;
        let theta_acc =
            (GRAVITY * sin - cos * temp) / (HALF_LENGTH * (4.0 / 3.0 - MASS_POLE * (cos * cos) / TOTAL_MASS));
        let x_acc = temp - POLE_MASS_LENGTH * theta_acc * cos / TOTAL_MASS;
        self.state = [
            x + TIME_STEP * x_dot,
            x_dot + TIME_STEP * x_acc,
            theta + TIME_STEP * theta_dot,
            theta_dot + TIME_STEP * theta_acc,
        ];
        let terminated = self.variant == Variant::MbrlLib && has_fallen(self.state[0], self.state[2]);
        Ok(Step { reward, terminated, truncated: false })
    }

    /// `[x, ẋ, θ, θ̇]`
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
        canvas.view(-X_LIMIT, -1.4, X_LIMIT, 1.8);
        canvas.line(&[(-X_LIMIT, 0.0), (X_LIMIT, 0.0)], 0.02, palette::GREY);
        canvas.rectangle(x - 0.3, -0.12, 0.6, 0.24, palette::BLACK);
        let length = 2.8 * HALF_LENGTH; // more than its true length, to be seen
        canvas.line(
            &[(x, 0.1), (x + length * theta.sin(), 0.1 + length * theta.cos())],
            0.1,
            palette::VERMILLION,
        );
        canvas.circle(x, 0.1, 0.05, palette::BLUE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{VecEnv, classic_control::CartPole, rng};

    /// One step of `env` from `state`.
    fn step(env: &mut dyn Env, state: [f64; 4], action: Action<'_>) -> (Vec<f64>, Step) {
        env.set_state(&State(state.to_vec())).unwrap();
        let step = env.step(action, &mut rng(1, 0)).unwrap();
        (env.state().unwrap().0, step)
    }

    /// Upright, leaning, falling, near each limit, and hanging.
    const STATES: [[f64; 4]; 7] = [
        [0.0, 0.0, 0.0, 0.0],
        [0.3, -0.7, 0.1, -0.4],
        [-1.0, 2.0, -0.15, 1.5],
        [2.39, 1.0, 0.0, 0.0],
        [-2.39, -1.0, 0.05, 0.1],
        [0.0, 0.0, 0.209, 1.0],
        [7.0, -3.0, 3.0, 6.0],
    ];

    #[test]
    fn the_hardest_pushes_are_cartpoles_actions() {
        // CartPole-v1 is held against Gymnasium's recordings.
        for state in STATES {
            for (index, push) in [(0, -1.0), (1, 1.0)] {
                let (expected, of_cartpole) = step(&mut CartPole::new(), state, Action::Discrete(index));
                let (found, of_mbrl) =
                    step(&mut ContinuousCartPole::mbrl_lib(), state, Action::Continuous(&[push]));
                assert_eq!(found, expected);
                assert_eq!(of_mbrl, of_cartpole);
                let (found, of_mbbl) =
                    step(&mut ContinuousCartPole::mbbl(), state, Action::Continuous(&[push]));
                assert_eq!(found, expected);
                assert!(!of_mbbl.terminated && !of_mbbl.truncated);
            }
        }
    }

    #[test]
    fn mbrl_libs_force_is_proportional_and_mbbls_is_its_sign() {
        // Accelerations are affine in the force: half the push is half way.
        for state in STATES {
            let of =
                |env: &mut ContinuousCartPole, push: f32| step(env, state, Action::Continuous(&[push])).0;
            let mut env = ContinuousCartPole::mbrl_lib();
            let [left, none, right] = [-1.0, 0.0, 1.0].map(|push| of(&mut env, push));
            let (half, beyond) = (of(&mut env, 0.5), of(&mut env, 7.0));
            for i in 0..4 {
                approx::assert_abs_diff_eq!(none[i], 0.5 * (left[i] + right[i]), epsilon = 1e-12);
                approx::assert_abs_diff_eq!(half[i], 0.5 * (none[i] + right[i]), epsilon = 1e-12);
            }
            assert_eq!(beyond, right);
            let mut env = ContinuousCartPole::mbbl();
            assert_eq!([-0.3, 0.0, 1e-6].map(|push| of(&mut env, push)), [left.clone(), left, right]);
        }
        // 10 N on a pole that stands: ẍ = (F/m) (1 + 3 m_p / (4 m − 3 m_p)), from the equations above.
        let (state, _) = step(&mut ContinuousCartPole::mbrl_lib(), [0.0; 4], Action::Continuous(&[0.3]));
        let acceleration = 3.0 / 1.1 * (1.0 + 0.3 / (4.4 - 0.3));
        approx::assert_abs_diff_eq!(state[1], 0.02 * acceleration, epsilon = 1e-8);
        assert!(state[3] < 0.0, "the pole is left behind");
    }

    #[test]
    fn rewards_and_ends_are_the_public_functions() {
        let mut ends = 0;
        for state in STATES {
            let observation = state.map(|x| x as f32);
            let (next, of_mbrl) =
                step(&mut ContinuousCartPole::mbrl_lib(), state, Action::Continuous(&[0.2]));
            let next: Vec<f32> = next.iter().map(|&x| x as f32).collect();
            assert_eq!(of_mbrl.reward, 1.0);
            assert_eq!(of_mbrl.terminated, ContinuousCartPole::terminated(&next));
            assert_eq!(of_mbrl.terminated, ContinuousCartPole::reward(&next) == 0.0);
            ends += usize::from(of_mbrl.terminated);
            let (_, of_mbbl) = step(&mut ContinuousCartPole::mbbl(), state, Action::Continuous(&[0.2]));
            let expected = state[2].cos() - 0.01 * state[0] * state[0];
            approx::assert_abs_diff_eq!(of_mbbl.reward, expected, epsilon = 1e-12);
            let found = ContinuousCartPole::mbbl_reward(&observation);
            approx::assert_abs_diff_eq!(f64::from(found), expected, epsilon = 1e-6);
        }
        assert_eq!(ends, 4);
        for (observation, ended) in [
            ([2.39, 9.0, 0.0, 0.0], false),
            ([2.41, 0.0, 0.0, 0.0], true),
            ([-2.41, 0.0, 0.0, 0.0], true),
            ([0.0, 0.0, 0.209, -9.0], false),
            ([0.0, 0.0, 0.21, 0.0], true),
            ([0.0, 0.0, -0.21, 0.0], true),
        ] {
            assert_eq!(ContinuousCartPole::terminated(&observation), ended, "{observation:?}");
        }
    }

    #[test]
    fn episodes_begin_near_upright_and_are_cut_off_after_200_steps() {
        let mut envs = VecEnv::make("ContinuousCartPole-v0-mbbl", 2, 3).unwrap();
        assert!(envs.observations().iter().all(|o| o.abs() <= 0.05 && *o != 0.0));
        for step in 1..=200 {
            envs.step(&vec![1.0_f32, -1.0]).unwrap();
            assert_eq!((envs.terminated()[0], envs.truncated()[0]), (false, step == 200));
        }
        assert!(envs.final_observations()[0] > 10.0 && envs.final_observations()[4] < -10.0);

        // A push to the side that the pole leans to, as far as it leans: it stays up.
        let mut envs = VecEnv::make("ContinuousCartPole-v0", 1, 3).unwrap();
        for step in 1..=200 {
            let o = envs.observations();
            let push = 0.1 * o[0] + 0.2 * o[1] + 4.0 * o[2] + 0.8 * o[3];
            envs.step(&vec![push]).unwrap();
            assert!(envs.spec().observation_space.contains(envs.final_observations()));
            assert_eq!((envs.terminated()[0], envs.truncated()[0]), (false, step == 200));
        }
        assert_eq!(envs.episodes()[0].episodic_return, 200.0);
        // The same push all the time: it falls.
        let falls = (1..=30).find(|_| {
            envs.step(&vec![1.0_f32]).unwrap();
            envs.terminated()[0]
        });
        assert!(falls.is_some_and(|steps| (8..20).contains(&steps)), "{falls:?}");
    }

    #[test]
    fn it_can_be_drawn_and_refuses_other_states() {
        let mut env = ContinuousCartPole::mbrl_lib();
        let mut canvas = Canvas::new(60, 40);
        env.draw(&mut canvas).unwrap();
        let upright = canvas.rgb();
        env.set_state(&State(vec![1.0, 0.0, 0.2, 0.0])).unwrap();
        env.draw(&mut canvas).unwrap();
        assert_ne!(canvas.rgb(), upright);
        assert!(env.set_state(&State(vec![0.0; 3])).is_err());
    }
}
