//! The environment interface: Gymnasium's, with the random generator passed in.

use crate::{Canvas, Result, Space, invalid};
use rand::SeedableRng;
use serde::{Deserialize, Serialize};

/// The random generator of the whole project: small, fast, serialisable and the same on every
/// machine, which `StdRng` does not promise.
pub type Rng = rand::rngs::Xoshiro256PlusPlus;

/// Stream of [`learner_rng`]. Environments have the streams from 0 on.
const LEARNER: u64 = u64::MAX;

/// Stream of [`parameters_rng`].
const PARAMETERS: u64 = u64::MAX - 1;

/// A generator for `seed`, on its own `stream`: streams of one seed are independent, so that
/// environment 3 sees the same draws whether 4 or 64 environments run. Environment i draws from
/// stream i; [`learner_rng`] and [`parameters_rng`] are streams apart from all of those.
pub fn rng(seed: u64, stream: u64) -> Rng {
    // Word i of the state is output number `stream` of a SplitMix64 generator (Steele, Lea & Flood
    // 2014) that starts at a hash of the seed, another one for each i. Every step is a bijection:
    // streams of one seed, and seeds of one stream, differ in each of the four words.
    let mut state = [0; 32];
    for (i, word) in (1..).zip(state.chunks_exact_mut(8)) {
        let start = mix(mix(GOLDEN_RATIO.wrapping_mul(i)) ^ seed);
        word.copy_from_slice(&mix(start.wrapping_add(GOLDEN_RATIO.wrapping_mul(stream))).to_le_bytes());
    }
    Rng::from_seed(state)
}

/// The generator of everything that the learner draws in a run with this seed: actions, minibatches,
/// noise.
pub fn learner_rng(seed: u64) -> Rng {
    rng(seed, LEARNER)
}

/// The generator of the initial parameters of a run with this seed.
pub fn parameters_rng(seed: u64) -> Rng {
    rng(seed, PARAMETERS)
}

/// 2⁶⁴ divided by the golden ratio, made odd: SplitMix64's increment.
const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's finaliser (Stafford's variant 13 of MurmurHash3's): one bit more or less in `x`
/// changes half of the bits of the result.
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// What an environment is: its id, spaces and limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Gymnasium's id, version suffix included.
    pub id: String,
    /// Observations, flattened row-major to `observation_space.size()` numbers.
    pub observation_space: Space,
    /// Actions.
    pub action_space: Space,
    /// Steps after which an episode is truncated, if it is.
    pub max_episode_steps: Option<u32>,
    /// Mean return over 100 episodes at which Gymnasium registers the task as solved.
    pub reward_threshold: Option<f64>,
}

/// Steps after which an episode of an environment without a time limit is given up where it is
/// played to its end, as a policy may walk in circles for ever. It is what Gymnasium limits Atari games
/// to: half an hour of play, 108,000 frames of which every fourth is acted on.
pub const MAX_EPISODE_STEPS: u32 = 27_000;

/// A picture, `[height, width, channels]` row-major, each number from 0 to `high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Image {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Numbers in one pixel.
    pub channels: usize,
    /// The largest number: 1 in MinAtar, 255 in pictures made of bytes.
    pub high: f32,
}

impl Spec {
    /// Most steps that an episode can have for whoever plays it to its end: the time limit or, where
    /// there is none, [`MAX_EPISODE_STEPS`], at which the environment itself does not end it.
    pub fn episode_limit(&self) -> u32 {
        self.max_episode_steps.unwrap_or(MAX_EPISODE_STEPS)
    }

    /// Sizes `(observation_dim, num_actions)` for an algorithm that wants vector observations and
    /// discrete actions; refuses other spaces, naming `algorithm`.
    pub fn box_to_discrete(&self, algorithm: &str) -> Result<(usize, usize)> {
        match (&self.observation_space, &self.action_space) {
            (Space::Box { .. }, Space::Discrete { n }) => Ok((self.observation_space.size(), *n)),
            _ => self.refuse(algorithm, "Box observations and Discrete actions"),
        }
    }

    /// Sizes `(observation_dim, action_dim)` for an algorithm that wants vector observations and
    /// continuous actions, bounded or not ([`Spec::action_range`] refuses the latter); refuses other spaces,
    /// naming `algorithm`.
    pub fn box_to_box(&self, algorithm: &str) -> Result<(usize, usize)> {
        match (&self.observation_space, &self.action_space) {
            (Space::Box { .. }, Space::Box { .. }) => {
                Ok((self.observation_space.size(), self.action_space.size()))
            }
            _ => self.refuse(algorithm, "Box observations and Box actions"),
        }
    }

    /// The image and the number of actions for an algorithm that wants pictures and discrete
    /// actions; refuses other spaces, naming `algorithm`.
    pub fn image_to_discrete(&self, algorithm: &str) -> Result<(Image, usize)> {
        if let (Space::Box { shape, low, high }, Space::Discrete { n }) =
            (&self.observation_space, &self.action_space)
            && let ([height, width, channels], Some(&bound)) = (shape.as_slice(), high.first())
            && (bound > 0.0 && bound.is_finite())
            && low.iter().all(|&low| low == 0.0)
            && high.iter().all(|&high| high == bound)
        {
            let image = Image { height: *height, width: *width, channels: *channels, high: bound };
            return Ok((image, *n));
        }
        let wants = "images, Box([height, width, channels]) from 0 to one finite bound, and Discrete actions";
        self.refuse(algorithm, wants)
    }

    /// As [`Spec::box_to_discrete`], for an algorithm that flattens observations but looks at those of
    /// three dimensions through a convolution of 3 × 3; refuses three that are no such image.
    pub fn box_or_image_to_discrete(&self, algorithm: &str) -> Result<(usize, usize)> {
        if let [height, width, _] = self.observation_space.shape()[..] {
            self.image_to_discrete(algorithm)?;
            if height.min(width) < 3 {
                return self.refuse(algorithm, "images of 3 x 3 or more and Discrete actions");
            }
        }
        self.box_to_discrete(algorithm)
    }

    /// Sizes `(num_states, num_actions)` for a tabular algorithm; refuses other spaces, naming
    /// `algorithm`.
    pub fn discrete_to_discrete(&self, algorithm: &str) -> Result<(usize, usize)> {
        match (&self.observation_space, &self.action_space) {
            (Space::Discrete { n: states }, Space::Discrete { n: actions }) => Ok((*states, *actions)),
            _ => self.refuse(algorithm, "Discrete observations and Discrete actions"),
        }
    }

    /// Middle and half width of each action's bounds, for an algorithm whose actions are
    /// `middle + half_width · x` with x in [-1, 1]; refuses actions that are not a bounded Box,
    /// naming `algorithm`.
    pub fn action_range(&self, algorithm: &str) -> Result<(Vec<f32>, Vec<f32>)> {
        let Space::Box { low, high, .. } = &self.action_space else {
            return self.refuse(algorithm, "Box actions");
        };
        if let Some(bound) = low.iter().chain(high).find(|bound| !bound.is_finite()) {
            let id = &self.id;
            return invalid(format!("--env-id {id}: {algorithm} needs bounded actions, a bound is {bound}"));
        }
        Ok(low.iter().zip(high).map(|(low, high)| ((low + high) / 2.0, (high - low) / 2.0)).unzip())
    }

    fn refuse<T>(&self, algorithm: &str, wants: &str) -> Result<T> {
        invalid(format!(
            "--env-id {}: {algorithm} needs {wants}, this environment has {} observations and {} actions",
            self.id, self.observation_space, self.action_space
        ))
    }
}

/// One action: an index, or one number for each dimension of a [`Space::Box`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action<'a> {
    /// Index in `0..n`.
    Discrete(usize),
    /// `[action_dim]`
    Continuous(&'a [f32]),
}

impl<'a> Action<'a> {
    /// The index; panics on a continuous action, which [`crate::VecEnv`] has ruled out.
    pub fn index(self) -> usize {
        match self {
            Action::Discrete(index) => index,
            Action::Continuous(_) => panic!("a discrete action space was given a continuous action"),
        }
    }

    /// The vector; panics on a discrete action, which [`crate::VecEnv`] has ruled out.
    pub fn vector(self) -> &'a [f32] {
        match self {
            Action::Continuous(vector) => vector,
            Action::Discrete(_) => panic!("a continuous action space was given a discrete action"),
        }
    }
}

/// What one step returned, besides the observation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Step {
    /// Reward in the precision the original computes it in.
    pub reward: f64,
    /// The task itself ended: no value lies beyond.
    pub terminated: bool,
    /// The episode was cut short, by a time limit say: value lies beyond, bootstrap from it.
    pub truncated: bool,
}

/// The whole internal state of an environment as plain numbers (the environment's file says
/// which). Integers up to 2⁵³ are exact.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State(pub Vec<f64>);

/// One possible result of an action in a tabular environment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Probability of this result.
    pub probability: f64,
    /// State it leads to.
    pub next_state: usize,
    /// Reward it gives.
    pub reward: f64,
    /// Whether the episode ends there.
    pub terminated: bool,
}

/// The exact model of a tabular environment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TransitionModel {
    /// `outcomes[s][a]` lists the possible results of action `a` in state `s`. Where a state lists fewer actions
    /// than the action space has, those beyond do what the last one does.
    pub outcomes: Vec<Vec<Vec<Outcome>>>,
    /// Probability of each state at the start of an episode.
    pub initial: Vec<f64>,
}

/// One environment. Observations are written into the caller's slice, so that stepping allocates
/// nothing; all randomness comes from the generator passed in.
pub trait Env: Send {
    /// Id, spaces and limits.
    fn spec(&self) -> &Spec;

    /// Begins an episode.
    fn reset(&mut self, rng: &mut Rng) -> Result<()>;

    /// Forgets what outlasts an episode, as if just made; to be followed by [`Env::reset`].
    fn forget(&mut self) {}

    /// Advances by one action. After `terminated` or `truncated` the caller resets.
    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step>;

    /// Writes the current observation, `observation_space.size()` numbers. A Discrete
    /// observation is its index as a float.
    fn observe(&self, observation: &mut [f32]);

    /// The whole internal state: [`Env::set_state`] of it is a no-op.
    fn state(&self) -> Result<State>;

    /// Returns to a state that [`Env::state`] gave; a state of the wrong length or with values
    /// that cannot be is refused.
    fn set_state(&mut self, state: &State) -> Result<()>;

    /// Draws the current state.
    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        let _ = canvas;
        invalid(format!("--capture-video: {} cannot be drawn", self.spec().id))
    }

    /// The exact transition model, for tabular environments.
    fn model(&self) -> Option<&TransitionModel> {
        None
    }
}

impl<E: Env + ?Sized> Env for Box<E> {
    fn spec(&self) -> &Spec {
        (**self).spec()
    }
    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        (**self).reset(rng)
    }
    fn forget(&mut self) {
        (**self).forget();
    }
    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        (**self).step(action, rng)
    }
    fn observe(&self, observation: &mut [f32]) {
        (**self).observe(observation)
    }
    fn state(&self) -> Result<State> {
        (**self).state()
    }
    fn set_state(&mut self, state: &State) -> Result<()> {
        (**self).set_state(state)
    }
    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        (**self).draw(canvas)
    }
    fn model(&self) -> Option<&TransitionModel> {
        (**self).model()
    }
}

/// Checks the length of a state that is about to be set.
pub fn expect_len(id: &str, state: &State, len: usize) -> Result<()> {
    if state.0.len() == len && state.0.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    invalid(format!("{id}: a state has {len} finite numbers, got {:?}", state.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;
    use std::collections::HashSet;

    /// The four words of a generator's state.
    fn words(rng: &Rng) -> [u64; 4] {
        let bytes = postcard::to_allocvec(rng).unwrap();
        postcard::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn streams_share_no_word_of_state() {
        let mut seen = HashSet::new();
        for seed in (0..100).chain([1 << 32, 1 << 63, u64::MAX]) {
            for stream in (0..100).chain([PARAMETERS, LEARNER]) {
                for word in words(&rng(seed, stream)) {
                    assert!(seen.insert(word), "seed {seed}, stream {stream}: {word:x} is in another state");
                }
            }
        }
    }

    #[test]
    fn neighbours_draw_unlike_numbers() {
        // Correlations of the first draws and of later ones, between neighbouring seeds and streams:
        // 10,000 pairs of uniform numbers correlate by 0 ± 0.01.
        let n = 10_000;
        let draw = |rng: Rng, skip: usize| rng.random_iter::<f64>().nth(skip).unwrap() - 0.5;
        for skip in [0, 1, 7] {
            let correlation = |next: fn(u64) -> Rng| {
                let draws: Vec<f64> = (0..=n).map(|i| draw(next(i), skip)).collect();
                draws.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() * 12.0 / n as f64
            };
            for found in [correlation(|i| rng(1, i)), correlation(|i| rng(i, 1)), correlation(learner_rng)] {
                assert!(found.abs() < 0.04, "draw {skip}: correlation {found}");
            }
        }
    }

    #[test]
    fn learner_and_parameters_have_streams_of_their_own() {
        let first = |mut rng: Rng| rng.random::<u64>();
        assert_ne!(first(learner_rng(1)), first(parameters_rng(1)));
        assert_ne!(first(learner_rng(1)), first(rng(1, 0)));
        assert_ne!(first(parameters_rng(1)), first(rng(1, 0)));
        assert_eq!(first(learner_rng(3)), first(learner_rng(3)));
    }

    #[test]
    fn three_dimensions_are_an_image_or_refused() {
        let sizes = |shape: &[usize], low: f32, high: f32| {
            let size = shape.iter().product();
            let observation_space =
                Space::Box { shape: shape.to_vec(), low: vec![low; size], high: vec![high; size] };
            let spec = Spec {
                id: "Walk-v0".into(),
                observation_space,
                action_space: Space::Discrete { n: 2 },
                max_episode_steps: None,
                reward_threshold: None,
            };
            spec.box_or_image_to_discrete("ppo").map_err(|error| error.to_string())
        };
        assert_eq!(sizes(&[7], f32::NEG_INFINITY, f32::INFINITY), Ok((7, 2)));
        assert_eq!(sizes(&[2, 3], -1.0, 1.0), Ok((6, 2)));
        assert_eq!(sizes(&[3, 3, 4], 0.0, 255.0), Ok((36, 2)));
        let refused = [
            (sizes(&[3, 3, 4], -1.0, 1.0), "from 0 to one finite bound"),
            (sizes(&[3, 3, 4], 0.0, f32::INFINITY), "from 0 to one finite bound"),
            (sizes(&[2, 9, 1], 0.0, 1.0), "images of 3 x 3 or more"),
            (sizes(&[9, 2, 1], 0.0, 1.0), "images of 3 x 3 or more"),
        ];
        for (result, why) in refused {
            let error = result.unwrap_err();
            assert!(error.starts_with("--env-id Walk-v0: ppo needs ") && error.contains(why), "{error}");
        }
    }
}
