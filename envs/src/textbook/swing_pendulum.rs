//! SwingPendulum-v0: swing up a pendulum whose motor is too weak to lift it at once, and keep it up; a
//! continuing task.
//!
//! Degris, Pilarski & Sutton (2012), "Model-free reinforcement learning with continuous action in
//! practice", American Control Conference, after Doya (2000). Every constant is that of RLPark, the first
//! author's library (rlpark/rlpark at 2baf7389, `SwingPendulum.java` and the test that holds actor-critic
//! to it); the dynamics are written anew from it.

use crate::{
    Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, env::expect_len, invalid,
};
use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, PI, TAU};

/// Mass times gravity times length, N·m: 1 kg, 9.8 m/s² and 1 m. The motor has a fifth of it.
const GRAVITY: f64 = 9.8;
/// N·m
const MAX_TORQUE: f64 = 2.0;
/// What θ moves by in a step, as a share of the velocity; and what friction takes off the velocity.
const TIME_STEP: f64 = 0.01;
/// At most an eighth of a turn a step.
const MAX_VELOCITY: f64 = FRAC_PI_4 / TIME_STEP;
const MAX_EPISODE_STEPS: u32 = 5000;

/// State: the angle θ in [-π, π), 0 when it stands and ±π when it hangs, and its velocity. With torque
/// u in [-2, 2] one step is
///
/// ```text
/// v ← v + 9.8 sin θ + u − 0.01 v          held to [-25 π, 25 π]
/// θ ← θ + 0.01 v
/// r = cos θ                               of the new θ
/// ```
///
/// The acceleration has no time step in it, in RLPark neither: v/10 is the angular velocity in rad/s of a
/// pendulum with friction 0.1 N·m·s, stepped ten times a second. An episode begins with the pendulum
/// level and at rest, (π/2, 0), and is cut off after 5000 steps; nothing is ever terminated.
pub struct SwingPendulum {
    spec: Spec,
    theta: f64,
    velocity: f64,
}

impl SwingPendulum {
    /// Level and at rest. `discrete` has the torques −2, 0 and 2 as actions 0, 1 and 2.
    pub fn new(discrete: bool) -> Self {
        let high = [PI as f32, MAX_VELOCITY as f32];
        Self {
            spec: Spec {
                id: if discrete { "SwingPendulum-v0-discrete" } else { "SwingPendulum-v0" }.into(),
                observation_space: Space::bounded(&high.map(|x| -x), &high),
                action_space: match discrete {
                    true => Space::Discrete { n: 3 },
                    false => Space::uniform(1, -MAX_TORQUE as f32, MAX_TORQUE as f32),
                },
                max_episode_steps: Some(MAX_EPISODE_STEPS),
                reward_threshold: None,
            },
            theta: FRAC_PI_2,
            velocity: 0.0,
        }
    }
}

impl Env for SwingPendulum {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        (self.theta, self.velocity) = (FRAC_PI_2, 0.0);
        Ok(())
    }

    /// Action: torque in N·m, held to [-2, 2]; or the index of one.
    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let torque = match action {
            Action::Discrete(index) => (index as f64 - 1.0) * MAX_TORQUE,
            Action::Continuous(torque) => f64::from(torque[0]).clamp(-MAX_TORQUE, MAX_TORQUE),
        };
        let acceleration = GRAVITY * self.theta.sin() + torque - TIME_STEP * self.velocity;
        self.velocity = (self.velocity + acceleration).clamp(-MAX_VELOCITY, MAX_VELOCITY);
        self.theta = (self.theta + TIME_STEP * self.velocity + PI).rem_euclid(TAU) - PI;
        Ok(Step { reward: self.theta.cos(), terminated: false, truncated: false })
    }

    /// `[θ, v]`
    fn observe(&self, observation: &mut [f32]) {
        observation.copy_from_slice(&[self.theta as f32, self.velocity as f32]);
    }

    fn state(&self) -> Result<State> {
        Ok(State(vec![self.theta, self.velocity]))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, 2)?;
        let [theta, velocity] = [state.0[0], state.0[1]];
        if theta.abs() > PI || velocity.abs() > MAX_VELOCITY {
            return invalid(format!(
                "{}: angle {theta} and velocity {velocity}; they are in [-{PI}, {PI}] and [-{MAX_VELOCITY}, {MAX_VELOCITY}]",
                self.spec.id
            ));
        }
        (self.theta, self.velocity) = (theta, velocity);
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        canvas.clear(palette::WHITE);
        canvas.fit(-1.3, -1.3, 1.3, 1.3);
        // Where it is to stand.
        canvas.line(&[(0.0, 1.08), (0.0, 1.2)], 0.03, palette::GREEN);
        canvas.line(&[(0.0, 0.0), (self.theta.sin(), self.theta.cos())], 0.06, palette::GREY);
        canvas.circle(self.theta.sin(), self.theta.cos(), 0.12, palette::VERMILLION);
        canvas.circle(0.0, 0.0, 0.05, palette::BLACK);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{VecEnv, rng};

    /// The states that these torques lead to from `state`, and the rewards.
    fn play(state: [f64; 2], torques: &[f32]) -> Vec<([f64; 2], f64)> {
        let mut env = SwingPendulum::new(false);
        env.set_state(&State(state.to_vec())).unwrap();
        let step = |torque: &f32| {
            let step = env.step(Action::Continuous(&[*torque]), &mut rng(1, 0)).unwrap();
            assert!(!step.terminated && !step.truncated);
            let state = env.state().unwrap().0;
            ([state[0], state[1]], step.reward)
        };
        torques.iter().map(step).collect()
    }

    #[test]
    fn a_step_is_the_formula() {
        let [theta, v] = [0.3_f64, 4.0];
        for (torque, held) in [(0.5, 0.5), (-7.0, -2.0), (7.0, 2.0)] {
            let next_v = v + 9.8 * theta.sin() + held - 0.01 * v;
            let ([found_theta, found_v], reward) = play([theta, v], &[torque])[0];
            approx::assert_abs_diff_eq!(found_v, next_v, epsilon = 1e-12);
            approx::assert_abs_diff_eq!(found_theta, theta + 0.01 * next_v, epsilon = 1e-12);
            assert_eq!(reward, found_theta.cos());
        }
    }

    #[test]
    fn angles_wrap_and_velocities_are_held() {
        let ([theta, v], _) = play([3.1, 75.0], &[2.0])[0];
        assert!(v < MAX_VELOCITY && (theta - (3.1 + 0.01 * v - TAU)).abs() < 1e-12, "{theta}, {v}");
        let ([theta, v], _) = play([1.0, 78.0], &[2.0])[0];
        assert_eq!(v, MAX_VELOCITY);
        assert!((theta - (1.0 + FRAC_PI_4)).abs() < 1e-12);
        assert_eq!(play([-1.0, -78.0], &[-2.0])[0].0[1], -MAX_VELOCITY);
    }

    #[test]
    fn torque_balances_gravity_where_it_can() {
        // Where 9.8 sin θ is the torque it stays; a fifth of gravity holds it 11.8 degrees at most.
        let theta = 0.1_f64;
        let torque = (-9.8 * theta.sin()) as f32;
        let ([after, _], reward) = play([theta, 0.0], &[torque; 20])[19];
        assert!((after - theta).abs() < 1e-4 && reward > 0.99, "{after}");
        let ([after, v], _) = play([0.25, 0.0], &[-2.0])[0];
        assert!(after > 0.25 && v > 0.0);
    }

    #[test]
    fn it_swings_as_a_pendulum_does() {
        // Near the bottom a step is the linear map (v, φ) ← (0.99 v − 9.8 φ, φ + 0.01 v'): its determinant
        // 0.99 is the square of what the amplitude loses, its trace 1.892 = 2 √0.99 cos Ω the frequency.
        let phi = 1e-3;
        let states = play([PI - phi, 0.0], &[0.0; 400]);
        let frequency = (1.892 / (2.0 * 0.99_f64.sqrt())).acos();
        let from_bottom = |k: usize| -(states[k].0[0].sin()); // −sin(π − φ) = −sin φ; k + 1 steps
        let crossings = (1..400).filter(|&k| from_bottom(k - 1) * from_bottom(k) < 0.0).count();
        let expected = 400.0 * frequency / PI;
        assert!((crossings as f64 - expected).abs() <= 1.0, "{crossings} crossings, not {expected}");
        let amplitude = |from: usize| (from..from + 20).map(|k| from_bottom(k).abs()).fold(0.0, f64::max);
        let lost = amplitude(220) / amplitude(20);
        approx::assert_abs_diff_eq!(lost, 0.99_f64.powi(100), epsilon = 0.02);
    }

    #[test]
    fn energy_is_lost_to_friction_only() {
        // E = ½ 0.01 v² + 9.8 cos θ keeps near its value for a few swings, and sinks in the long run.
        let energy = |[theta, v]: [f64; 2]| 0.005 * v * v + 9.8 * theta.cos();
        let states = play([FRAC_PI_2, 0.0], &[0.0; 2000]);
        let mean = |from: usize| (from..from + 20).map(|k| energy(states[k].0)).sum::<f64>() / 20.0;
        assert!(mean(0).abs() < 2.0, "{}", mean(0));
        assert!((100..1900).step_by(100).all(|k| mean(k + 100) <= mean(k) + 1e-6));
        assert!(mean(1980) < -9.7, "{}", mean(1980));
    }

    #[test]
    fn rewards_are_cosines_and_episodes_begin_level_and_are_cut_off() {
        let mut envs = VecEnv::make("SwingPendulum-v0", 1, 3).unwrap();
        let mut worst: f32 = 1.0;
        for step in 1..=5000 {
            if step == 1 {
                assert_eq!(envs.observations(), [FRAC_PI_2 as f32, 0.0]);
            }
            envs.step(&vec![((step % 40) as f32 - 20.0) / 10.0]).unwrap();
            assert!((-1.0..=1.0).contains(&envs.rewards()[0]));
            approx::assert_abs_diff_eq!(
                envs.rewards()[0],
                envs.final_observations()[0].cos(),
                epsilon = 1e-6
            );
            assert!(envs.spec().observation_space.contains(envs.final_observations()));
            worst = worst.min(envs.rewards()[0]);
            assert_eq!((envs.terminated()[0], envs.truncated()[0]), (false, step == 5000));
        }
        assert!(worst < -0.9);
        assert_eq!(envs.observations(), [FRAC_PI_2 as f32, 0.0]);
    }

    #[test]
    fn three_torques_are_as_many_actions() {
        for (action, torque) in [(0, -2.0), (1, 0.0), (2, 2.0)] {
            let mut env = SwingPendulum::new(true);
            env.set_state(&State(vec![0.2, -1.0])).unwrap();
            env.step(Action::Discrete(action), &mut rng(1, 0)).unwrap();
            assert_eq!(env.state().unwrap().0, play([0.2, -1.0], &[torque])[0].0);
        }
        let mut env = SwingPendulum::new(false);
        assert!(
            env.set_state(&State(vec![0.0, 79.0])).is_err() && env.set_state(&State(vec![4.0, 0.0])).is_err()
        );
    }
}
