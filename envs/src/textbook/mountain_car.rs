//! MountainCarTextbook-v0: the mountain car as the textbook has it.
//!
//! Sutton & Barto (2018), "Reinforcement Learning", example 10.1. [`crate::classic_control::MountainCar`]
//! is Gymnasium's, which differs in two points: it cuts episodes off after 200 steps, where here they
//! last until the goal is reached, and its positions go on to 0.6 behind the goal, where here 0.5 is the
//! border, so that tiles of equal number are narrower.

use crate::classic_control::draw_valley;
use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, env::expect_len, invalid};
use rand::RngExt;

const MIN_POSITION: f64 = -1.2;
const GOAL: f64 = 0.5;
const MAX_SPEED: f64 = 0.07; // per step

/// State: position x and velocity v. With push u of −1, 0 or 1 one step is
///
/// ```text
/// v ← v + 0.001 u − 0.0025 cos 3x         held to [−0.07, 0.07]
/// x ← x + v                               held to [−1.2, 0.5]; at the left border v becomes 0
/// ```
///
/// The goal is x = 0.5. Reward: −1 a step. An episode begins at rest, x being uniform in [−0.6, −0.4).
pub struct MountainCarTextbook {
    spec: Spec,
    state: [f64; 2],
}

impl MountainCarTextbook {
    /// At rest at −0.5.
    pub fn new() -> Self {
        let speed = MAX_SPEED as f32;
        Self {
            spec: Spec {
                id: "MountainCarTextbook-v0".into(),
                observation_space: Space::bounded(&[MIN_POSITION as f32, -speed], &[GOAL as f32, speed]),
                action_space: Space::Discrete { n: 3 },
                max_episode_steps: None,
                reward_threshold: None,
            },
            state: [-0.5, 0.0],
        }
    }
}

impl Default for MountainCarTextbook {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for MountainCarTextbook {
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
        let v = (v + 0.001 * push - 0.0025 * (3.0 * x).cos()).clamp(-MAX_SPEED, MAX_SPEED);
        let x = (x + v).clamp(MIN_POSITION, GOAL);
        self.state = [x, if x == MIN_POSITION { 0.0 } else { v }];
        Ok(Step { reward: -1.0, terminated: x == GOAL, truncated: false })
    }

    fn observe(&self, observation: &mut [f32]) {
        observation.copy_from_slice(&self.state.map(|number| number as f32));
    }

    fn state(&self) -> Result<State> {
        Ok(State(self.state.to_vec()))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, 2)?;
        let [x, v] = [state.0[0], state.0[1]];
        if !(MIN_POSITION..=GOAL).contains(&x) || v.abs() > MAX_SPEED {
            return invalid(format!(
                "{}: position {x}, velocity {v}; positions are in [{MIN_POSITION}, {GOAL}], velocities in [-{MAX_SPEED}, {MAX_SPEED}]",
                self.spec.id
            ));
        }
        self.state = [x, v];
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        draw_valley(canvas, self.state[0], GOAL);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{classic_control::MountainCar, rng};

    #[test]
    fn it_moves_as_gymnasiums_does_up_to_the_goal() {
        let rng = &mut rng(1, 0);
        let (mut ours, mut gymnasiums) = (MountainCarTextbook::new(), MountainCar::new());
        for _ in 0..20 {
            ours.reset(rng).unwrap();
            assert!((-0.6..-0.4).contains(&ours.state().unwrap().0[0]));
            gymnasiums.set_state(&ours.state().unwrap()).unwrap();
            // Pushing the way it rolls leads out of the valley.
            for step in 1.. {
                let state = ours.state().unwrap();
                let action = Action::Discrete(if state.0[1] < 0.0 { 0 } else { 2 });
                let ended = ours.step(action, rng).unwrap().terminated;
                assert_eq!(ended, gymnasiums.step(action, rng).unwrap().terminated, "step {step}");
                if ended {
                    assert_eq!(ours.state().unwrap().0[0], GOAL);
                    assert!((90..140).contains(&step), "{step}");
                    break;
                }
                for (ours, theirs) in ours.state().unwrap().0.iter().zip(gymnasiums.state().unwrap().0) {
                    approx::assert_abs_diff_eq!(*ours, theirs, epsilon = 1e-12);
                }
            }
        }
    }

    #[test]
    fn the_left_border_stops_it_and_no_episode_is_cut_off() {
        let rng = &mut rng(1, 0);
        let mut car = MountainCarTextbook::new();
        car.set_state(&State(vec![-1.19, -0.05])).unwrap();
        car.step(Action::Discrete(0), rng).unwrap();
        assert_eq!(car.state().unwrap().0, [-1.2, 0.0]);
        assert_eq!(car.spec().max_episode_steps, None);
        assert!(car.set_state(&State(vec![0.6, 0.0])).is_err());
    }
}
