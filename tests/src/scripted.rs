//! Environments whose every number is known beforehand, to see what an algorithm stores.
//!
//! Environment e gives in episode k at step t an observation that says (e, k, t), the reward
//! 100 e + 10 k + t + 1, and ends its episodes by a script: one by termination, one by truncation,
//! one by both at once. Whatever is done to it is written down, in the order it was done, so that a
//! test compares what lies in a buffer with what happened.
//!
//! ```
//! use envs::Space;
//! use regression::{SCRIPT, View, scripted};
//!
//! // Two environments, three actions. The real test has the algorithm's own learner and buffer.
//! let (mut envs, log) = scripted(2, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
//! let mut stored = Vec::new();
//! for _ in 0..20 {
//!     let observations = envs.observations().to_vec(); // [num_envs, 3]
//!     envs.step(&vec![0_u32, 2])?;
//!     stored.extend((0..2).map(|e| (observations[3 * e..3 * (e + 1)].to_vec(), envs.rewards()[e])));
//! }
//! let happened: Vec<_> = log.transitions().iter().map(|t| (t.observation.clone(), t.reward)).collect();
//! assert_eq!(stored, happened);
//! // Without the log: environment 1, first episode, last step of four.
//! let last = &log.of(1)[3];
//! assert_eq!((&*last.observation, &*last.next_observation), (&[1., 0., 3.][..], &[1., 0., 4.][..]));
//! assert_eq!((last.reward, &*last.action, last.terminated, last.truncated), (104.0, &[2.0][..], false, true));
//! # Ok::<(), anyhow::Error>(())
//! ```

use anyhow::{Result, ensure};
use envs::{Action, Env, Rng, Space, Spec, State, Step, VecEnv};
use std::sync::{Arc, Mutex, PoisonError};

/// How an episode ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The task itself ends: nothing lies beyond.
    Terminated,
    /// It is cut short: the value beyond counts.
    Truncated,
    /// Both in the same step: nothing lies beyond.
    Both,
}

/// Lengths of episodes and how each ends: episode k of environment e is entry e + k, round and
/// round, so that environments end at different times.
pub type Script = &'static [(usize, End)];

/// Every way to end, an episode of one step among them.
pub const SCRIPT: Script =
    &[(3, End::Terminated), (4, End::Truncated), (1, End::Terminated), (2, End::Both), (1, End::Truncated)];

/// How (environment, episode, step) are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The three numbers.
    Vector,
    /// An image `[height, width, channels]` of numbers from 0 to 255, of which the first three are
    /// those and every other follows from them and its place.
    Image([usize; 3]),
    /// A state of a table, 100 · environment + 10 · episode + step, for at most ten of each.
    State,
}

impl View {
    fn space(self) -> Space {
        match self {
            View::Vector => Space::uniform(3, 0.0, f32::INFINITY),
            View::State => Space::Discrete { n: 1000 },
            View::Image(shape) => {
                let size = shape.iter().product();
                assert!(size >= 3, "an image of {size} numbers cannot show three");
                Space::Box { shape: shape.to_vec(), low: vec![0.0; size], high: vec![255.0; size] }
            }
        }
    }

    /// The observation of environment `env` in its `episode` (from 0) after `step` steps.
    pub fn observation(self, env: usize, episode: usize, step: usize) -> Vec<f32> {
        let seen = [env, episode, step];
        let numbers = match self {
            View::Vector => seen.to_vec(),
            View::State => {
                assert!(seen.iter().all(|&x| x < 10), "{seen:?}: a table shows numbers below ten");
                vec![100 * env + 10 * episode + step]
            }
            View::Image(shape) => {
                let pattern = |i: usize| (31 * env + 17 * episode + 7 * step + i) % 256;
                (0..shape.iter().product()).map(|i| seen.get(i).map_or(pattern(i), |x| x % 256)).collect()
            }
        };
        numbers.into_iter().map(|x| x as f32).collect()
    }
}

/// The reward of the step that follows `step` steps of an episode.
pub fn scripted_reward(env: usize, episode: usize, step: usize) -> f32 {
    (100 * env + 10 * episode + step + 1) as f32
}

/// One step as it happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// Which environment.
    pub env: usize,
    /// Which of its episodes, from 0.
    pub episode: usize,
    /// How many steps of the episode were before, from 0.
    pub step: usize,
    /// What was seen before.
    pub observation: Vec<f32>,
    /// What was done: `[action_dim]`, or one number that is an index.
    pub action: Vec<f32>,
    /// The reward.
    pub reward: f32,
    /// What was seen then: the true last observation at the end of an episode.
    pub next_observation: Vec<f32>,
    /// Whether the task ended.
    pub terminated: bool,
    /// Whether the episode was cut short.
    pub truncated: bool,
}

/// What happened to the environments of one [`scripted`] call.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Transition>>>);

impl Log {
    /// Every step of every environment in the order it was taken, `[steps, num_envs]`.
    pub fn transitions(&self) -> Vec<Transition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The steps of one environment.
    pub fn of(&self, env: usize) -> Vec<Transition> {
        self.transitions().into_iter().filter(|transition| transition.env == env).collect()
    }
}

/// `num_envs` scripted environments with this action space, seen as `view`, and the log of what
/// happens to them.
pub fn scripted(num_envs: usize, view: View, actions: Space, script: Script) -> (VecEnv, Log) {
    let log = Log::default();
    let envs = (0..num_envs).map(|env| -> Box<dyn Env> {
        Box::new(Scripted::new(env, view, actions.clone(), script, log.clone()))
    });
    let envs = VecEnv::new(envs.collect(), 0).unwrap_or_else(|error| panic!("{error:#}"));
    (envs, log)
}

/// One scripted environment; [`scripted`] makes several and puts them together.
pub struct Scripted {
    spec: Spec,
    view: View,
    script: Script,
    env: usize,
    episode: Option<usize>, // none before the first reset
    step: usize,
    log: Log,
}

impl Scripted {
    /// Environment number `env`, which writes its steps into `log`.
    pub fn new(env: usize, view: View, actions: Space, script: Script, log: Log) -> Self {
        let spec = Spec {
            id: "Scripted-v0".to_string(),
            observation_space: view.space(),
            action_space: actions,
            max_episode_steps: None,
            reward_threshold: None,
        };
        Self { spec, view, script, env, episode: None, step: 0, log }
    }

    fn seen(&self) -> Vec<f32> {
        self.view.observation(self.env, self.episode.unwrap_or(0), self.step)
    }
}

impl Env for Scripted {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, _: &mut Rng) -> Result<()> {
        self.episode = Some(self.episode.map_or(0, |episode| episode + 1));
        self.step = 0;
        Ok(())
    }

    fn step(&mut self, action: Action<'_>, _: &mut Rng) -> Result<Step> {
        let episode = self.episode.unwrap_or(0);
        let (length, end) = self.script[(self.env + episode) % self.script.len()];
        ensure!(self.step < length, "environment {} was stepped beyond its end", self.env);
        let (observation, reward) = (self.seen(), scripted_reward(self.env, episode, self.step));
        self.step += 1;
        let ends = self.step == length;
        let terminated = ends && end != End::Truncated;
        let truncated = ends && end != End::Terminated;
        let action = match action {
            Action::Discrete(index) => vec![index as f32],
            Action::Continuous(vector) => vector.to_vec(),
        };
        self.log.0.lock().unwrap_or_else(PoisonError::into_inner).push(Transition {
            env: self.env,
            episode,
            step: self.step - 1,
            observation,
            action,
            reward,
            next_observation: self.seen(),
            terminated,
            truncated,
        });
        Ok(Step { reward: reward.into(), terminated, truncated })
    }

    fn observe(&self, observation: &mut [f32]) {
        observation.copy_from_slice(&self.seen());
    }

    fn state(&self) -> Result<State> {
        Ok(State(vec![self.episode.unwrap_or(0) as f64, self.step as f64]))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        envs::env::expect_len(&self.spec.id, state, 2)?;
        (self.episode, self.step) = (Some(state.0[0] as usize), state.0[1] as usize);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_played() {
        let (mut envs, log) = scripted(2, View::Vector, Space::uniform(2, -1.0, 1.0), SCRIPT);
        assert_eq!(envs.observations(), [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        let mut ends = Vec::new();
        for t in 0..12 {
            envs.step(&vec![t as f32 / 12.0; 4]).unwrap();
            for env in 0..2 {
                let happened = log.of(env).pop().unwrap();
                assert_eq!(happened.action, [t as f32 / 12.0; 2]);
                assert_eq!(envs.final_observations()[3 * env..3 * (env + 1)], happened.next_observation);
                assert_eq!(envs.rewards()[env], happened.reward);
                assert_eq!(envs.terminated()[env], happened.terminated);
                assert_eq!(envs.truncated()[env], happened.truncated);
                if happened.terminated || happened.truncated {
                    ends.push((env, t, happened.terminated, happened.truncated));
                    let episode = (happened.episode + 1) as f32;
                    assert_eq!(envs.observations()[3 * env..3 * (env + 1)], [env as f32, episode, 0.0]);
                }
            }
        }
        let expected = [
            (0, 2, true, false),
            (1, 3, false, true),
            (1, 4, true, false),
            (0, 6, false, true),
            (1, 6, true, true),
            (0, 7, true, false),
            (1, 7, false, true),
            (0, 9, true, true),
            (0, 10, false, true),
            (1, 10, true, false),
        ];
        assert_eq!(ends, expected);
        let order: Vec<_> = log.transitions().iter().map(|transition| transition.env).collect();
        assert_eq!(order[..4], [0, 1, 0, 1]);
        assert_eq!(log.of(1)[0].reward, 101.0);
    }

    #[test]
    fn images_and_tables_show_the_same() {
        let image = View::Image([2, 3, 4]);
        let (mut envs, _) = scripted(2, image, Space::Discrete { n: 2 }, SCRIPT);
        envs.spec().image_to_discrete("x").unwrap();
        envs.step(&[0_u32, 1]).unwrap();
        assert_eq!(envs.observations()[24..], image.observation(1, 0, 1));
        assert_eq!(image.observation(1, 0, 1)[..5], [1.0, 0.0, 1.0, 41.0, 42.0]);
        assert!(envs.spec().observation_space.contains(&image.observation(9, 9, 9)));
        let (envs, _) = scripted(2, View::State, Space::Discrete { n: 2 }, SCRIPT);
        assert_eq!(envs.observations(), [0.0, 100.0]);
        assert_eq!(View::State.observation(1, 2, 3), [123.0]);
    }

    #[test]
    fn a_restored_environment_goes_on_with_its_script() {
        let (mut envs, _) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
        (0..4).for_each(|_| envs.step(&[0_u32]).unwrap());
        let snapshot = envs.snapshot().unwrap();
        let (mut other, log) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
        other.restore(&snapshot).unwrap();
        other.step(&[1_u32]).unwrap();
        assert_eq!((log.of(0)[0].episode, log.of(0)[0].step), (1, 1));
    }
}
