//! PartialPendulum-v0: Gymnasium's Pendulum-v1 seen without its velocity: whoever acts must remember.
//!
//! Hausknecht & Stone (2015), "Deep recurrent Q-learning for partially observable MDPs",
//! arXiv:1507.06527, hide velocities to make a task partially observable; rl-baselines3-zoo does it to
//! this task as `PendulumNoVel-v1`, where the velocity stays in the observation as a 0. Here it is left
//! out. Everything else, rewards included, is Pendulum-v1's: a return here and there mean the same.

use crate::classic_control::Pendulum;
use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step};

/// Pendulum-v1, of which `[cos θ, sin θ]` is seen. Its state is that of Pendulum-v1: `[θ, θ̇]`.
pub struct PartialPendulum {
    spec: Spec,
    pendulum: Pendulum,
}

impl PartialPendulum {
    /// At rest, upright; [`Env::reset`] begins an episode.
    pub fn new() -> Self {
        let pendulum = Pendulum::new();
        let spec = Spec {
            id: "PartialPendulum-v0".into(),
            observation_space: Space::uniform(2, -1.0, 1.0),
            ..pendulum.spec().clone()
        };
        Self { spec, pendulum }
    }
}

impl Default for PartialPendulum {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for PartialPendulum {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.pendulum.reset(rng)
    }

    /// Action: torque in N·m, held to [-2, 2].
    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        self.pendulum.step(action, rng)
    }

    /// `[cos θ, sin θ]`
    fn observe(&self, observation: &mut [f32]) {
        let mut whole = [0.0; 3]; // cos θ, sin θ, θ̇
        self.pendulum.observe(&mut whole);
        observation.copy_from_slice(&whole[..2]);
    }

    fn state(&self) -> Result<State> {
        self.pendulum.state()
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        self.pendulum.set_state(state)
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        self.pendulum.draw(canvas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{VecEnv, rng};
    use rand::RngExt;

    #[test]
    fn it_is_the_pendulum_without_the_velocity() {
        let mut partial = VecEnv::make("PartialPendulum-v0", 3, 7).unwrap();
        let mut whole = VecEnv::make("Pendulum-v1", 3, 7).unwrap();
        assert_eq!(partial.observation_dim(), 2);
        let seen = |whole: &[f32]| whole.chunks(3).flat_map(|o| [o[0], o[1]]).collect::<Vec<f32>>();
        let mut torques = rng(1, 0);
        let mut ends = 0;
        for _ in 0..450 {
            assert_eq!(partial.observations(), seen(whole.observations()));
            let actions: Vec<f32> = (0..3).map(|_| torques.random_range(-2.5..2.5)).collect();
            partial.step(&actions).unwrap();
            whole.step(&actions).unwrap();
            assert_eq!(partial.final_observations(), seen(whole.final_observations()));
            assert_eq!(partial.rewards(), whole.rewards());
            assert_eq!((partial.terminated(), partial.truncated()), (whole.terminated(), whole.truncated()));
            assert_eq!(partial.episodes(), whole.episodes());
            ends += partial.episodes().len();
        }
        assert_eq!(ends, 6, "200 steps an episode");
    }

    #[test]
    fn one_observation_does_not_tell_the_state_and_two_do() {
        // The same angle with other velocities looks the same, and goes on differently.
        let step = |theta_dot: f64| {
            let mut env = PartialPendulum::new();
            env.set_state(&State(vec![0.7, theta_dot])).unwrap();
            let mut before = [0.0; 2];
            env.observe(&mut before);
            env.step(Action::Continuous(&[0.5]), &mut rng(1, 0)).unwrap();
            let mut after = [0.0; 2];
            env.observe(&mut after);
            (before, after, env.state().unwrap().0[1])
        };
        assert_eq!(step(-3.0).0, step(3.0).0);
        assert_ne!(step(-3.0).1, step(3.0).1);
        // θ' = θ + 0.05 θ̇', so that the angle turned by, over the time, is the velocity.
        for theta_dot in [-3.0, 0.4, 3.0] {
            let ([cos, sin], [next_cos, next_sin], velocity) = step(theta_dot);
            let turned = (next_sin * cos - next_cos * sin).atan2(next_cos * cos + next_sin * sin);
            approx::assert_abs_diff_eq!(f64::from(turned) / 0.05, velocity, epsilon = 1e-4);
        }
    }

    #[test]
    fn it_goes_on_from_a_state_that_was_read() {
        let mut env = PartialPendulum::new();
        env.reset(&mut rng(3, 0)).unwrap();
        let state = env.state().unwrap();
        let mut copy = PartialPendulum::new();
        copy.set_state(&state).unwrap();
        assert_eq!(copy.state().unwrap(), state);
        let step = |env: &mut PartialPendulum| env.step(Action::Continuous(&[-1.0]), &mut rng(1, 0)).unwrap();
        assert_eq!(step(&mut env), step(&mut copy));
        assert!(env.set_state(&State(vec![0.0, 9.0])).is_err() && env.set_state(&State(vec![0.0])).is_err());
    }
}
