//! Any environment of Python's Gymnasium, run in a Python process: `--env-id gym:LunarLander-v3`.
//!
//! Python is `python3`, or the interpreter that the variable `PLAINRL_PYTHON` names, and needs
//! the package `gymnasium` with whatever the environment asks for. `gym:my_module:MyEnv-v0`
//! imports `my_module` first, from the working directory or `PYTHONPATH`, for environments that
//! are registered there.
//!
//! Atari games, `gym:ALE/Pong-v5`, need the packages `ale-py` and `opencv-python-headless` too. They
//! come as agents have been shown them since Mnih et al. (2015, Nature 518:529): up to 30 no-ops at
//! the start, each action taken for four frames, of the last two the maximum, grey, 84 × 84, four
//! such pictures stacked as channels, FIRE pressed at the start of a life where a game has it. While training a life
//! that is lost ends the episode and rewards are clipped to [−1, 1]; [`Purpose::Evaluation`] plays
//! whole games for their true scores. (`v5` repeats the last action with probability ¼, as Machado
//! et al. 2018, arXiv:1709.06009, recommend; earlier results are without.)
//!
//! - Spaces: Discrete, and Box of floats (observations of uint8 too), flattened to `f32`.
//!   A Discrete space that starts at `s` is shifted to start at 0. Others are refused.
//! - Seeds: copy `i` is reset once with `seed + i`, as in Gymnasium's `SyncVectorEnv`, and draws
//!   the episodes that follow from its own generator.
//! - Whatever an environment prints goes to standard error.
//! - One answer may take 60 seconds: [`set_timeout`], the flag `--env-timeout` and the variable
//!   `PLAINRL_ENV_TIMEOUT` (seconds) allow more or less.
//! - The process ends with the [`Bridge`], and also when this program is killed, even if an
//!   environment is stuck at that moment.

mod process;

use crate::{Action, Actions, Env, Result, Rng, Space, Spec, State, Step, invalid, python};
use process::{Process, Request};
use rand::RngExt;
use serde::Deserialize;
use std::cell::RefCell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Milliseconds; zero where [`set_timeout`] was not called.
static TIMEOUT: AtomicU64 = AtomicU64::new(0);

/// Sets how long one answer of the Python process may take, its start included, for every
/// [`Bridge`] started from now on. It comes before the variable `PLAINRL_ENV_TIMEOUT`.
pub fn set_timeout(timeout: Duration) {
    let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    TIMEOUT.store(milliseconds.max(1), Ordering::Relaxed);
}

/// What environments are made for. It matters to Atari games alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To learn from them.
    Training,
    /// To measure what has been learned.
    Evaluation,
}

/// Frames that one observation of `env_id` holds along its last axis, the oldest first: four of an
/// Atari game's, one of any other's.
pub fn stacked_frames(env_id: &str) -> usize {
    if env_id.starts_with("gym:ALE/") { 4 } else { 1 }
}

/// Which Python runs an environment, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Python {
    /// The interpreter: a path, or a name to look for in `PATH`.
    pub interpreter: OsString,
    /// Folders searched for modules before those of `PYTHONPATH`.
    pub module_paths: Vec<PathBuf>,
    /// How long one answer may take.
    pub timeout: Duration,
}

impl Python {
    /// What the variables `PLAINRL_PYTHON` and `PLAINRL_ENV_TIMEOUT` say, by default `python3`
    /// and 60 seconds.
    ///
    /// # Errors
    /// A `PLAINRL_ENV_TIMEOUT` that is not a positive number of seconds.
    pub fn from_env() -> Result<Self> {
        let interpreter = python::interpreter();
        let timeout = match (TIMEOUT.load(Ordering::Relaxed), std::env::var("PLAINRL_ENV_TIMEOUT")) {
            (0, Ok(text)) => parse_timeout(&text)?,
            (0, Err(_)) => Duration::from_secs(60),
            (milliseconds, _) => Duration::from_millis(milliseconds),
        };
        Ok(Self { interpreter, module_paths: Vec::new(), timeout })
    }
}

fn parse_timeout(text: &str) -> Result<Duration> {
    match text.trim().parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds < 1e9 => Ok(Duration::from_secs_f64(seconds)),
        _ => invalid(format!("PLAINRL_ENV_TIMEOUT={text}: a positive number of seconds is needed")),
    }
}

/// `num_envs` copies of a Gymnasium environment in one Python process.
pub struct Bridge {
    spec: Spec,
    num_envs: usize,
    autoreset: bool,
    observation_bytes: usize, // of one copy
    bytes: bool,              // whether observations arrive as uint8
    process: RefCell<Process>,
    request: Vec<u8>,
    answer: Vec<u8>,
    rewards: Vec<f64>, // [num_envs]
}

/// The first frame of bridge.py.
#[derive(Deserialize)]
struct Description {
    observation_space: DescribedSpace,
    action_space: DescribedSpace,
    max_episode_steps: Option<u32>,
    reward_threshold: Option<f64>,
}

/// Bounds come as text, because JSON has no infinity.
#[derive(Deserialize)]
enum DescribedSpace {
    Discrete { n: usize },
    Box { shape: Vec<usize>, low: Vec<String>, high: Vec<String>, bytes: bool },
}

impl Bridge {
    /// Starts Python, as [`Python::from_env`] has it, with `num_envs` copies of `id` to learn from.
    ///
    /// # Errors
    /// Python or a package that is not installed, an unknown id, a space that is not supported:
    /// each in one line that says what to do.
    pub fn new(id: &str, num_envs: usize) -> Result<Self> {
        Self::start(id, num_envs, &Python::from_env()?)
    }

    /// The same with a Python of the caller's choice.
    ///
    /// # Errors
    /// As [`Bridge::new`].
    pub fn start(id: &str, num_envs: usize, python: &Python) -> Result<Self> {
        Self::start_for(Purpose::Training, id, num_envs, python)
    }

    /// The same for a purpose of the caller's choice.
    ///
    /// # Errors
    /// As [`Bridge::new`].
    pub fn start_for(purpose: Purpose, id: &str, num_envs: usize, python: &Python) -> Result<Self> {
        Self::connect(id, num_envs, purpose, true, python)
    }

    /// With `autoreset`, a copy whose episode ends is reset in the same step.
    fn connect(
        id: &str,
        num_envs: usize,
        purpose: Purpose,
        autoreset: bool,
        python: &Python,
    ) -> Result<Self> {
        let mut answer = Vec::new();
        let mut process = Process::start(id, num_envs, purpose, autoreset, python, &mut answer)?;
        let (spec, bytes) = match read_spec(id, &answer) {
            Ok(spec) => spec,
            Err(error) => return process.malformed(Request::Start, &error.to_string()),
        };
        Ok(Self {
            num_envs,
            autoreset,
            observation_bytes: spec.observation_space.size() * if bytes { 1 } else { size_of::<f32>() },
            bytes,
            process: RefCell::new(process),
            request: Vec::new(),
            answer,
            rewards: vec![0.0; num_envs],
            spec,
        })
    }

    /// Id, spaces and limits.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Resets all copies, copy `i` with `seed + i`, writing `[num_envs, observation_dim]`
    /// observations.
    ///
    /// # Errors
    /// An environment that raises an exception, and a process that crashes or hangs; the latter
    /// two end the bridge.
    pub fn reset(&mut self, seed: u64, observations: &mut [f32]) -> Result<()> {
        let process = self.process.get_mut();
        process.call(Request::Reset, &seed.to_ne_bytes(), &mut self.answer)?;
        if self.answer.len() != self.num_envs * self.observation_bytes {
            return process.malformed(Request::Reset, &format!("{} bytes", self.answer.len()));
        }
        read_observations(&self.answer, self.bytes, observations);
        Ok(())
    }

    /// Steps all copies, resetting those that end; returns the rewards, `[num_envs]`. The other
    /// results are written to the slices: `[num_envs, observation_dim]` observations and the
    /// observations before any reset, and `[num_envs]` flags.
    ///
    /// # Errors
    /// As [`Bridge::reset`].
    pub fn step(
        &mut self,
        actions: Actions<'_>,
        observations: &mut [f32],
        final_observations: &mut [f32],
        terminated: &mut [bool],
        truncated: &mut [bool],
    ) -> Result<&[f64]> {
        self.request.clear();
        match actions {
            Actions::Discrete(a) => self.request.extend(a.iter().flat_map(|a| a.to_ne_bytes())),
            Actions::Continuous(a) => self.request.extend(a.iter().flat_map(|a| a.to_ne_bytes())),
        }
        let process = self.process.get_mut();
        process.call(Request::Step, &self.request, &mut self.answer)?;

        let n = self.num_envs;
        let sizes = [n * self.observation_bytes, n * size_of::<f64>(), n, n];
        if self.answer.len() < sizes.iter().sum() {
            return process.malformed(Request::Step, &format!("{} bytes", self.answer.len()));
        }
        let mut rest = self.answer.as_slice();
        let [current, rewards, ends, cuts] = sizes.map(|size| {
            let (head, tail) = rest.split_at(size);
            rest = tail;
            head
        });
        let ended = |i: usize| ends[i] != 0 || cuts[i] != 0;
        let num_finals = if self.autoreset { (0..n).filter(|&i| ended(i)).count() } else { 0 };
        if rest.len() != num_finals * self.observation_bytes {
            return process.malformed(Request::Step, &format!("{} bytes", self.answer.len()));
        }
        read_observations(current, self.bytes, observations);
        final_observations.copy_from_slice(observations);
        let dim = observations.len() / n;
        let mut finals = rest.chunks_exact(self.observation_bytes);
        for i in 0..n {
            terminated[i] = ends[i] != 0;
            truncated[i] = cuts[i] != 0;
            if ended(i)
                && let Some(data) = finals.next()
            {
                read_observations(data, self.bytes, &mut final_observations[i * dim..(i + 1) * dim]);
            }
        }
        let (words, _) = rewards.as_chunks();
        for (reward, word) in self.rewards.iter_mut().zip(words) {
            *reward = f64::from_ne_bytes(*word);
        }
        Ok(&self.rewards)
    }

    /// The state of all copies, their generators included, for a checkpoint: Python's pickle of
    /// them. Generators outside of the environments are not part of it.
    ///
    /// # Errors
    /// Environments that Python cannot pickle, such as those built on Box2D.
    pub fn snapshot(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.process.borrow_mut().call(Request::Save, &[], &mut bytes)?;
        Ok(bytes)
    }

    /// Takes on what [`Bridge::snapshot`] gave. Unpickling can run any code: restore only what
    /// you trust.
    ///
    /// # Errors
    /// Bytes that are no snapshot, or one of other environments.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<()> {
        self.process.get_mut().call(Request::Restore, bytes, &mut self.answer)
    }
}

/// Reads the first frame; the flag says whether observations travel as single bytes.
fn read_spec(id: &str, description: &[u8]) -> Result<(Spec, bool)> {
    let description: Description = serde_json::from_slice(description)?;
    let bytes = matches!(description.observation_space, DescribedSpace::Box { bytes: true, .. });
    let spec = Spec {
        id: format!("gym:{id}"),
        observation_space: read_space(description.observation_space)?,
        action_space: read_space(description.action_space)?,
        max_episode_steps: description.max_episode_steps,
        reward_threshold: description.reward_threshold,
    };
    Ok((spec, bytes))
}

fn read_space(described: DescribedSpace) -> Result<Space> {
    let bounds =
        |texts: Vec<String>| -> Result<Vec<f32>> { texts.iter().map(|text| Ok(text.parse()?)).collect() };
    match described {
        DescribedSpace::Discrete { n } => Ok(Space::Discrete { n }),
        DescribedSpace::Box { shape, low, high, .. } => {
            let (low, high) = (bounds(low)?, bounds(high)?);
            let size: usize = shape.iter().product();
            anyhow::ensure!(low.len() == size && high.len() == size, "{} bounds for {shape:?}", low.len());
            Ok(Space::Box { shape, low, high })
        }
    }
}

/// Reads single bytes or float32 numbers.
fn read_observations(data: &[u8], bytes: bool, observations: &mut [f32]) {
    if bytes {
        for (observation, byte) in observations.iter_mut().zip(data) {
            *observation = f32::from(*byte);
        }
    } else {
        let (words, _) = data.as_chunks();
        for (observation, word) in observations.iter_mut().zip(words) {
            *observation = f32::from_ne_bytes(*word);
        }
    }
}

/// One Gymnasium environment in a Python process of its own, for code that steps single
/// environments; [`crate::VecEnv::make`] runs all its copies in one process.
///
/// Each reset seeds the environment from the generator it is given. The state is the observation
/// followed by the bytes of Python's pickle, one number a byte. Python's environments keep a generator
/// of their own in it: a plan that is tried from a state sees the draws that are to come. Atari games are
/// those of [`Purpose::Evaluation`].
///
/// # Errors
/// As [`Bridge::new`].
pub fn make(id: &str) -> Result<Box<dyn Env>> {
    Ok(Box::new(Single::start(id, &Python::from_env()?)?))
}

/// What [`make`] makes.
pub struct Single {
    bridge: Bridge,
    observation: Vec<f32>,
    unused: Vec<f32>, // where the bridge writes final observations, here the same
}

impl Single {
    /// Starts `python` with one copy of `id`.
    ///
    /// # Errors
    /// As [`Bridge::new`].
    pub fn start(id: &str, python: &Python) -> Result<Self> {
        let bridge = Bridge::connect(id, 1, Purpose::Evaluation, false, python)?;
        let zeros = vec![0.0; bridge.spec.observation_space.size()];
        Ok(Self { bridge, observation: zeros.clone(), unused: zeros })
    }
}

impl Env for Single {
    fn spec(&self) -> &Spec {
        self.bridge.spec()
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        // Generators of NumPy's older kind take seeds below 2³².
        self.bridge.reset(rng.random::<u32>().into(), &mut self.observation)
    }

    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let index;
        let actions = match action {
            Action::Discrete(a) => {
                index = [a as u32];
                Actions::Discrete(&index)
            }
            Action::Continuous(a) => Actions::Continuous(a),
        };
        let (mut terminated, mut truncated) = ([false], [false]);
        let rewards = self.bridge.step(
            actions,
            &mut self.observation,
            &mut self.unused,
            &mut terminated,
            &mut truncated,
        )?;
        Ok(Step { reward: rewards[0], terminated: terminated[0], truncated: truncated[0] })
    }

    fn observe(&self, observation: &mut [f32]) {
        observation.copy_from_slice(&self.observation);
    }

    fn state(&self) -> Result<State> {
        let mut numbers: Vec<f64> = self.observation.iter().map(|&x| x.into()).collect();
        numbers.extend(self.bridge.snapshot()?.into_iter().map(f64::from));
        Ok(State(numbers))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        let dim = self.observation.len();
        let byte = |x: &f64| (0.0..=255.0).contains(x) && x.fract() == 0.0;
        if state.0.len() <= dim || !state.0[dim..].iter().all(byte) {
            let id = &self.bridge.spec.id;
            return invalid(format!("{id}: a state is {dim} numbers and the bytes of a pickle"));
        }
        let (observation, pickle) = state.0.split_at(dim);
        let pickle: Vec<u8> = pickle.iter().map(|&x| x as u8).collect();
        self.bridge.restore(&pickle)?;
        for (x, value) in self.observation.iter_mut().zip(observation) {
            *x = *value as f32;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_positive_number_of_seconds() {
        assert_eq!(parse_timeout("2.5").unwrap(), Duration::from_millis(2500));
        for text in ["", "0", "-1", "inf", "NaN", "60 s"] {
            let error = parse_timeout(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("PLAINRL_ENV_TIMEOUT={text}: ")), "{error}");
        }
    }
}
