//! Many copies of one environment, stepped together.

use crate::gymnasium::{Bridge, Purpose, Python};
use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, invalid, make, rng};
use serde::{Deserialize, Serialize};

/// One action for each environment.
#[derive(Debug, Clone, Copy)]
pub enum Actions<'a> {
    /// `[num_envs]` indices.
    Discrete(&'a [u32]),
    /// `[num_envs, action_dim]`, flattened.
    Continuous(&'a [f32]),
}

impl<'a> From<&'a [u32]> for Actions<'a> {
    fn from(actions: &'a [u32]) -> Self {
        Actions::Discrete(actions)
    }
}
impl<'a> From<&'a Vec<u32>> for Actions<'a> {
    fn from(actions: &'a Vec<u32>) -> Self {
        Actions::Discrete(actions)
    }
}
impl<'a, const N: usize> From<&'a [u32; N]> for Actions<'a> {
    fn from(actions: &'a [u32; N]) -> Self {
        Actions::Discrete(actions)
    }
}
impl<'a> From<&'a [f32]> for Actions<'a> {
    fn from(actions: &'a [f32]) -> Self {
        Actions::Continuous(actions)
    }
}
impl<'a> From<&'a Vec<f32>> for Actions<'a> {
    fn from(actions: &'a Vec<f32>) -> Self {
        Actions::Continuous(actions)
    }
}

/// An episode that ended in the last step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// Which environment it ran in.
    pub env: usize,
    /// Sum of its rewards, undiscounted.
    pub episodic_return: f64,
    /// Number of its steps.
    pub length: u32,
}

/// `num_envs` copies of an environment. An environment whose episode ends is reset in the same
/// step: [`VecEnv::observations`] then holds the first observation of the new episode and
/// [`VecEnv::final_observations`] the true last one of the old, which a truncated episode's
/// bootstrap needs.
pub struct VecEnv {
    backend: Backend,
    spec: Spec,
    num_envs: usize,
    rngs: Vec<Rng>,
    observations: Vec<f32>,       // [num_envs, observation_dim]
    final_observations: Vec<f32>, // [num_envs, observation_dim]
    rewards: Vec<f32>,            // [num_envs]
    terminated: Vec<bool>,        // [num_envs]
    truncated: Vec<bool>,         // [num_envs]
    returns: Vec<f64>,            // [num_envs], of the running episodes
    lengths: Vec<u32>,            // [num_envs], of the running episodes
    episodes: Vec<Episode>,
}

enum Backend {
    Native(Vec<Box<dyn Env>>),
    Gymnasium(Box<Bridge>),
}

/// What a first observation is called in an error.
const RESET: &str = "the observation after a reset";

/// Refuses `numbers` that are not finite, of environments from `first` on that are `lengths` steps
/// into their episodes; each has the same part of the numbers.
pub(crate) fn refuse_not_finite(
    id: &str,
    what: &str,
    numbers: &[f32],
    first: usize,
    lengths: &[u32],
) -> Result<()> {
    // Without an early end it takes a fraction of a nanosecond a number.
    if numbers.iter().fold(true, |all, number| all & number.is_finite()) {
        return Ok(());
    }
    let index = numbers.iter().position(|number| !number.is_finite()).unwrap_or_default();
    let env = index * lengths.len() / numbers.len();
    let (number, length) = (numbers[index], lengths[env]);
    anyhow::bail!("{id}: {what} of environment {} is {number}, {length} steps into its episode", first + env)
}

/// Everything in a [`VecEnv`] that the next step depends on; results of the last step are not kept.
#[derive(Default, Serialize, Deserialize)]
pub struct Snapshot {
    states: Vec<State>,
    bridge: Vec<u8>,
    rngs: Vec<Rng>,
    observations: Vec<f32>,
    returns: Vec<f64>,
    lengths: Vec<u32>,
}

impl Snapshot {
    /// Replaces the state of environment `index`, which [`VecEnv::restore`] will check. The
    /// observations held stay as they were.
    pub fn set_state(&mut self, index: usize, state: &[f64]) {
        self.states[index] = State(state.to_vec());
    }
}

impl VecEnv {
    /// Builds `num_envs` copies of `env_id` and resets them; copy `i` draws from stream `i` of
    /// `seed`.
    ///
    /// # Errors
    /// An unknown id, and whatever the environment itself reports.
    pub fn make(env_id: &str, num_envs: usize, seed: u64) -> Result<Self> {
        Self::make_for(Purpose::Training, env_id, num_envs, seed)
    }

    /// The same to measure what has been learned: an episode of an Atari game is then a whole game,
    /// and its rewards are the true ones. It makes no difference to other environments.
    ///
    /// # Errors
    /// As [`VecEnv::make`].
    pub fn make_for_evaluation(env_id: &str, num_envs: usize, seed: u64) -> Result<Self> {
        Self::make_for(Purpose::Evaluation, env_id, num_envs, seed)
    }

    fn make_for(purpose: Purpose, env_id: &str, num_envs: usize, seed: u64) -> Result<Self> {
        if num_envs == 0 {
            return invalid("--num-envs 0: at least one environment is needed");
        }
        let backend = match env_id.strip_prefix("gym:") {
            Some(id) => {
                let bridge = Bridge::start_for(purpose, id, num_envs, &Python::from_env()?)?;
                Backend::Gymnasium(Box::new(bridge))
            }
            None => Backend::Native((0..num_envs).map(|_| make(env_id)).collect::<Result<_>>()?),
        };
        Self::with_backend(backend, num_envs, seed)
    }

    /// The same from environments the caller built, wrapped as it likes.
    ///
    /// # Errors
    /// No environments, or ones that differ in their id or spaces.
    pub fn new(envs: Vec<Box<dyn Env>>, seed: u64) -> Result<Self> {
        let Some(first) = envs.first().map(|env| env.spec()) else {
            return invalid("a vectorised environment needs at least one environment");
        };
        let what = |spec: &Spec| (spec.id.clone(), spec.observation_space.clone(), spec.action_space.clone());
        let stranger = envs.iter().enumerate().find(|(_, env)| what(env.spec()) != what(first));
        if let Some((i, stranger)) = stranger {
            let show = |spec: &Spec| {
                let (id, observations, actions) = what(spec);
                format!("{id} with {observations} observations and {actions} actions")
            };
            let (stranger, first) = (show(stranger.spec()), show(first));
            return invalid(format!(
                "environment {i} is {stranger}, environment 0 is {first}; all must agree"
            ));
        }
        let num_envs = envs.len();
        Self::with_backend(Backend::Native(envs), num_envs, seed)
    }

    fn with_backend(backend: Backend, num_envs: usize, seed: u64) -> Result<Self> {
        let spec = match &backend {
            Backend::Native(envs) => envs[0].spec().clone(),
            Backend::Gymnasium(bridge) => bridge.spec().clone(),
        };
        let size = num_envs * spec.observation_space.size();
        let mut this = Self {
            backend,
            spec,
            num_envs,
            rngs: Vec::new(),
            observations: vec![0.0; size],
            final_observations: vec![0.0; size],
            rewards: vec![0.0; num_envs],
            terminated: vec![false; num_envs],
            truncated: vec![false; num_envs],
            returns: vec![0.0; num_envs],
            lengths: vec![0; num_envs],
            episodes: Vec::with_capacity(num_envs),
        };
        this.reset(seed)?;
        Ok(this)
    }

    /// Begins new episodes everywhere, from `seed` alone: whatever was played before is forgotten.
    pub fn reset(&mut self, seed: u64) -> Result<()> {
        self.rngs = (0..self.num_envs as u64).map(|i| rng(seed, i)).collect();
        let dim = self.observation_dim();
        match &mut self.backend {
            Backend::Native(envs) => {
                for ((env, rng), observation) in
                    envs.iter_mut().zip(&mut self.rngs).zip(self.observations.chunks_exact_mut(dim))
                {
                    env.forget();
                    env.reset(rng)?;
                    env.observe(observation);
                }
            }
            Backend::Gymnasium(bridge) => bridge.reset(seed, &mut self.observations)?,
        }
        self.returns.fill(0.0);
        self.lengths.fill(0);
        self.episodes.clear();
        refuse_not_finite(&self.spec.id, RESET, &self.observations, 0, &self.lengths)
    }

    /// Steps every environment with its action. Results are read from the accessors below.
    ///
    /// # Errors
    /// Actions of the wrong number or kind, whatever the environment itself reports, and numbers
    /// that are not finite: in an action, which then is not taken, an observation or a reward.
    pub fn step<'a>(&mut self, actions: impl Into<Actions<'a>>) -> Result<()> {
        self.step_with(actions.into())
    }

    // Not generic: this is compiled once, and not with every program.
    fn step_with(&mut self, actions: Actions<'_>) -> Result<()> {
        self.check(actions)?;
        self.episodes.clear();
        let dim = self.observation_dim();
        match &mut self.backend {
            Backend::Native(envs) => {
                for (i, (env, rng)) in envs.iter_mut().zip(&mut self.rngs).enumerate() {
                    let action = match actions {
                        Actions::Discrete(a) => Action::Discrete(a[i] as usize),
                        Actions::Continuous(a) => {
                            let action_dim = a.len() / self.num_envs;
                            Action::Continuous(&a[i * action_dim..(i + 1) * action_dim])
                        }
                    };
                    let Step { reward, terminated, truncated } = env.step(action, rng)?;
                    let observation = &mut self.observations[i * dim..(i + 1) * dim];
                    env.observe(observation);
                    self.final_observations[i * dim..(i + 1) * dim].copy_from_slice(observation);
                    self.rewards[i] = reward as f32;
                    self.terminated[i] = terminated;
                    self.truncated[i] = truncated;
                    self.returns[i] += reward;
                    if terminated || truncated {
                        env.reset(rng)?;
                        env.observe(observation);
                    }
                }
            }
            Backend::Gymnasium(bridge) => {
                let rewards = bridge.step(
                    actions,
                    &mut self.observations,
                    &mut self.final_observations,
                    &mut self.terminated,
                    &mut self.truncated,
                )?;
                for (i, &reward) in rewards.iter().enumerate() {
                    self.rewards[i] = reward as f32;
                    self.returns[i] += reward;
                }
            }
        }
        self.lengths.iter_mut().for_each(|length| *length += 1);
        // One such number would spread from a replay buffer through all parameters.
        refuse_not_finite(&self.spec.id, "an observation", &self.final_observations, 0, &self.lengths)?;
        refuse_not_finite(&self.spec.id, "a reward", &self.rewards, 0, &self.lengths)?;
        for i in 0..self.num_envs {
            if self.terminated[i] || self.truncated[i] {
                self.episodes.push(Episode {
                    env: i,
                    episodic_return: std::mem::take(&mut self.returns[i]),
                    length: std::mem::take(&mut self.lengths[i]),
                });
            }
        }
        refuse_not_finite(&self.spec.id, RESET, &self.observations, 0, &self.lengths)
    }

    fn check(&self, actions: Actions<'_>) -> Result<()> {
        let id = &self.spec.id;
        match (&self.spec.action_space, actions) {
            (Space::Discrete { n }, Actions::Discrete(a)) => {
                if a.len() != self.num_envs {
                    return invalid(format!("{id}: {} actions for {} environments", a.len(), self.num_envs));
                }
                match a.iter().find(|&&a| a as usize >= *n) {
                    Some(action) => invalid(format!("{id}: action {action} is not in Discrete({n})")),
                    None => Ok(()),
                }
            }
            (space @ Space::Box { .. }, Actions::Continuous(a)) => {
                if a.len() != self.num_envs * space.size() {
                    return invalid(format!(
                        "{id}: {} numbers for {} actions of {space}",
                        a.len(),
                        self.num_envs
                    ));
                }
                refuse_not_finite(id, "an action", a, 0, &self.lengths)
            }
            (space, _) => invalid(format!("{id}: these actions do not fit {space}")),
        }
    }

    /// Id, spaces and limits of the environment.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Number of environments.
    pub fn num_envs(&self) -> usize {
        self.num_envs
    }

    /// Numbers in one observation.
    pub fn observation_dim(&self) -> usize {
        self.observations.len() / self.num_envs
    }

    /// Current observations, `[num_envs, observation_dim]` flattened.
    pub fn observations(&self) -> &[f32] {
        &self.observations
    }

    /// Observations that the last step led to, before any reset: `[num_envs, observation_dim]`
    /// flattened. Equal to [`VecEnv::observations`] where no episode ended.
    pub fn final_observations(&self) -> &[f32] {
        &self.final_observations
    }

    /// Rewards of the last step, `[num_envs]`.
    pub fn rewards(&self) -> &[f32] {
        &self.rewards
    }

    /// Which environments terminated in the last step, `[num_envs]`.
    pub fn terminated(&self) -> &[bool] {
        &self.terminated
    }

    /// Which environments were truncated in the last step, `[num_envs]`.
    pub fn truncated(&self) -> &[bool] {
        &self.truncated
    }

    /// The episodes that ended in the last step.
    pub fn episodes(&self) -> &[Episode] {
        &self.episodes
    }

    /// Sums of the rewards of the running episodes so far, `[num_envs]`.
    pub fn running_returns(&self) -> &[f64] {
        &self.returns
    }

    /// Draws environment `index`.
    ///
    /// # Errors
    /// Environments that cannot be drawn.
    pub fn draw(&self, index: usize, canvas: &mut Canvas) -> Result<()> {
        match &self.backend {
            Backend::Native(envs) => envs[index].draw(canvas),
            Backend::Gymnasium(_) => invalid(format!("--capture-video: {} cannot be drawn", self.spec.id)),
        }
    }

    /// The whole state of environment `index`, from which a planner steps a copy of it.
    ///
    /// # Errors
    /// Python's environments, which [`VecEnv::make`] steps in one process.
    pub fn state(&self, index: usize) -> Result<State> {
        match &self.backend {
            Backend::Native(envs) => envs[index].state(),
            Backend::Gymnasium(_) => {
                invalid(format!("--env-id {}: its state cannot be read for planning", self.spec.id))
            }
        }
    }

    /// Everything that the next step depends on, for a checkpoint.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let (states, bridge) = match &self.backend {
            Backend::Native(envs) => (envs.iter().map(|env| env.state()).collect::<Result<_>>()?, Vec::new()),
            Backend::Gymnasium(bridge) => (Vec::new(), bridge.snapshot()?),
        };
        Ok(Snapshot {
            states,
            bridge,
            rngs: self.rngs.clone(),
            observations: self.observations.clone(),
            returns: self.returns.clone(),
            lengths: self.lengths.clone(),
        })
    }

    /// Takes on what [`VecEnv::snapshot`] gave.
    ///
    /// # Errors
    /// A snapshot of another size or another number of environments.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        let n = self.num_envs;
        if snapshot.rngs.len() != n
            || snapshot.observations.len() != self.observations.len()
            || snapshot.returns.len() != n
            || snapshot.lengths.len() != n
        {
            return invalid(format!(
                "{}: the snapshot is not of {n} copies of this environment",
                self.spec.id
            ));
        }
        match &mut self.backend {
            Backend::Native(envs) => {
                anyhow::ensure!(snapshot.states.len() == n, "{}: the snapshot lacks states", self.spec.id);
                for (env, state) in envs.iter_mut().zip(&snapshot.states) {
                    env.set_state(state)?;
                }
            }
            Backend::Gymnasium(bridge) => bridge.restore(&snapshot.bridge)?,
        }
        self.rngs.clone_from(&snapshot.rngs);
        self.observations.clone_from(&snapshot.observations);
        self.returns.clone_from(&snapshot.returns);
        self.lengths.clone_from(&snapshot.lengths);
        self.episodes.clear();
        Ok(())
    }
}
