//! Many copies of one multi-agent environment, stepped together: [`crate::VecEnv`] for several
//! agents.

use super::{MultiSpec, ParallelEnv, ParallelStep, make};
use crate::vec_env::refuse_not_finite;
use crate::{Action, Actions, Canvas, Episode, Result, Rng, Space, State, invalid, persist::Persist, rng};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// `num_envs` copies of a multi-agent environment. A row of observations or actions holds those of
/// all agents, one after the other in the order of [`MultiSpec::agents`]: `observation_dim` and
/// `action_dim` are sums over the agents here. An environment whose episode ends is reset in the
/// same step: [`ParallelVecEnv::observations`] then holds the first observations of the new
/// episode and [`ParallelVecEnv::final_observations`] the true last ones of the old, which a
/// truncated episode's bootstrap needs.
pub struct ParallelVecEnv {
    envs: Vec<Box<dyn ParallelEnv>>,
    rngs: Vec<Rng>,
    observation_columns: Vec<Range<usize>>, // [num_agents]
    action_columns: Vec<Range<usize>>,      // [num_agents]
    observations: Vec<f32>,                 // [num_envs, observation_dim]
    final_observations: Vec<f32>,           // [num_envs, observation_dim]
    rewards: Vec<f32>,                      // [num_envs, num_agents]
    env_rewards: Vec<f64>,                  // [num_agents], of the environment that steps
    terminated: Vec<bool>,                  // [num_envs]
    truncated: Vec<bool>,                   // [num_envs]
    returns: Vec<f64>,                      // [num_envs, num_agents], of the running episodes
    lengths: Vec<u32>,                      // [num_envs], of the running episodes
    episodes: Vec<Episode>,
    episode_returns: Vec<f64>, // [episodes, num_agents]
}

/// Everything in a [`ParallelVecEnv`] that changes.
#[derive(Default, Serialize, Deserialize)]
struct Snapshot {
    states: Vec<State>,
    rngs: Vec<Rng>,
    observations: Vec<f32>,
    returns: Vec<f64>,
    lengths: Vec<u32>,
}

impl ParallelVecEnv {
    /// Builds `num_envs` copies of `env_id` with `continuous` or discrete actions and resets them;
    /// copy `i` draws from stream `i` of `seed`.
    ///
    /// # Errors
    /// An unknown id, or no environments.
    pub fn make(env_id: &str, continuous: bool, num_envs: usize, seed: u64) -> Result<Self> {
        Self::new((0..num_envs).map(|_| make(env_id, continuous)).collect::<Result<_>>()?, seed)
    }

    /// The same from environments the caller built.
    ///
    /// # Errors
    /// No environments.
    pub fn new(envs: Vec<Box<dyn ParallelEnv>>, seed: u64) -> Result<Self> {
        let Some(first) = envs.first() else {
            return invalid("--num-envs 0: at least one environment is needed");
        };
        let observation_columns = columns(&first.spec().observation_spaces);
        let action_columns = columns(&first.spec().action_spaces);
        let (num_envs, num_agents) = (envs.len(), action_columns.len());
        let size = num_envs * observation_columns.last().map_or(0, |last| last.end);
        let mut this = Self {
            envs,
            rngs: (0..num_envs as u64).map(|i| rng(seed, i)).collect(),
            observation_columns,
            action_columns,
            observations: vec![0.0; size],
            final_observations: vec![0.0; size],
            rewards: vec![0.0; num_envs * num_agents],
            env_rewards: vec![0.0; num_agents],
            terminated: vec![false; num_envs],
            truncated: vec![false; num_envs],
            returns: vec![0.0; num_envs * num_agents],
            lengths: vec![0; num_envs],
            episodes: Vec::with_capacity(num_envs),
            episode_returns: Vec::with_capacity(num_envs * num_agents),
        };
        let dim = this.observation_dim();
        let copies = this.envs.iter_mut().zip(&mut this.rngs);
        for ((env, rng), row) in copies.zip(this.observations.chunks_exact_mut(dim)) {
            env.reset(rng)?;
            observe(env.as_ref(), &this.observation_columns, row);
        }
        Ok(this)
    }

    /// Steps every environment with its agents' actions: `[num_envs, num_agents]` indices or
    /// `[num_envs, action_dim]` numbers. Results are read from the accessors below.
    ///
    /// # Errors
    /// Actions of the wrong number or kind, what [`ParallelEnv::step`] refuses, and numbers that are
    /// not finite: in an action, which then is not taken, an observation or a reward.
    pub fn step<'a>(&mut self, actions: impl Into<Actions<'a>>) -> Result<()> {
        let actions = actions.into();
        let (num_envs, num_agents) = (self.num_envs(), self.num_agents());
        let (dim, action_dim) = (self.observation_dim(), self.action_dim());
        let (given, wanted) = match actions {
            Actions::Discrete(a) => (a.len(), num_envs * num_agents),
            Actions::Continuous(a) => {
                refuse_not_finite(&self.spec().id, "an action", a, 0, &self.lengths)?;
                (a.len(), num_envs * action_dim)
            }
        };
        if given != wanted {
            let id = &self.spec().id;
            return invalid(format!(
                "{id}: {given} numbers as actions, {num_envs} environments take {wanted}"
            ));
        }
        let mut joint = Vec::with_capacity(num_agents);
        self.episodes.clear();
        self.episode_returns.clear();
        for (i, (env, rng)) in self.envs.iter_mut().zip(&mut self.rngs).enumerate() {
            joint.clear();
            joint.extend(self.action_columns.iter().enumerate().map(|(agent, columns)| match actions {
                Actions::Discrete(a) => Action::Discrete(a[i * num_agents + agent] as usize),
                Actions::Continuous(a) => Action::Continuous(&a[i * action_dim..][columns.clone()]),
            }));
            let ParallelStep { terminated, truncated } = env.step(&joint, rng, &mut self.env_rewards)?;
            let agents = i * num_agents..(i + 1) * num_agents;
            let (rewards, returns) = (&mut self.rewards[agents.clone()], &mut self.returns[agents]);
            for ((reward, total), given) in rewards.iter_mut().zip(returns.iter_mut()).zip(&self.env_rewards)
            {
                *reward = *given as f32;
                *total += *given;
            }
            self.lengths[i] += 1;
            self.terminated[i] = terminated;
            self.truncated[i] = truncated;

            let observations = &mut self.observations[i * dim..(i + 1) * dim];
            observe(env.as_ref(), &self.observation_columns, observations);
            self.final_observations[i * dim..(i + 1) * dim].copy_from_slice(observations);
            for (what, numbers) in [("an observation", &*observations), ("a reward", &*rewards)] {
                refuse_not_finite(&env.spec().id, what, numbers, i, &self.lengths[i..=i])?;
            }
            if terminated || truncated {
                let length = std::mem::take(&mut self.lengths[i]);
                self.episodes.push(Episode { env: i, episodic_return: returns.iter().sum(), length });
                self.episode_returns.extend_from_slice(returns);
                returns.fill(0.0);
                env.reset(rng)?;
                observe(env.as_ref(), &self.observation_columns, observations);
            }
        }
        Ok(())
    }

    /// Id, agents, spaces and limits of the environment.
    pub fn spec(&self) -> &MultiSpec {
        self.envs[0].spec()
    }

    /// Number of environments.
    pub fn num_envs(&self) -> usize {
        self.envs.len()
    }

    /// Number of agents.
    pub fn num_agents(&self) -> usize {
        self.action_columns.len()
    }

    /// Numbers in a row of observations, of all agents together.
    pub fn observation_dim(&self) -> usize {
        self.observations.len() / self.num_envs()
    }

    /// Numbers in a row of continuous actions, of all agents together.
    pub fn action_dim(&self) -> usize {
        self.action_columns.last().map_or(0, |last| last.end)
    }

    /// Where each agent's observation lies in a row of them, `[num_agents]`.
    pub fn observation_columns(&self) -> &[Range<usize>] {
        &self.observation_columns
    }

    /// Where each agent's continuous action lies in a row of them, `[num_agents]`.
    pub fn action_columns(&self) -> &[Range<usize>] {
        &self.action_columns
    }

    /// Current observations, `[num_envs, observation_dim]` flattened.
    pub fn observations(&self) -> &[f32] {
        &self.observations
    }

    /// Observations that the last step led to, before any reset: `[num_envs, observation_dim]`
    /// flattened. Equal to [`ParallelVecEnv::observations`] where no episode ended.
    pub fn final_observations(&self) -> &[f32] {
        &self.final_observations
    }

    /// Rewards of the last step, `[num_envs, num_agents]` flattened.
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

    /// The episodes that ended in the last step. The return of one is the sum over its agents.
    pub fn episodes(&self) -> &[Episode] {
        &self.episodes
    }

    /// Each agent's return in [`ParallelVecEnv::episodes`], `[episodes, num_agents]` flattened.
    pub fn episode_returns(&self) -> &[f64] {
        &self.episode_returns
    }

    /// Draws environment `index`.
    pub fn draw(&self, index: usize, canvas: &mut Canvas) -> Result<()> {
        self.envs[index].draw(canvas)
    }
}

/// Where elements of `spaces` lie in a row of them.
fn columns(spaces: &[Space]) -> Vec<Range<usize>> {
    let mut end = 0;
    let next = |space: &Space| {
        let start = end;
        end += space.size();
        start..end
    };
    spaces.iter().map(next).collect()
}

/// Writes what every agent sees, one after the other.
fn observe(env: &dyn ParallelEnv, columns: &[Range<usize>], row: &mut [f32]) {
    for (agent, columns) in columns.iter().enumerate() {
        env.observe(agent, &mut row[columns.clone()]);
    }
}

impl Persist for ParallelVecEnv {
    fn save(&self) -> Result<Vec<u8>> {
        Snapshot {
            states: self.envs.iter().map(|env| env.state()).collect::<Result<_>>()?,
            rngs: self.rngs.clone(),
            observations: self.observations.clone(),
            returns: self.returns.clone(),
            lengths: self.lengths.clone(),
        }
        .save()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<()> {
        let mut saved = Snapshot::default();
        saved.load(bytes)?;
        let lens = |s: &Snapshot| [s.states.len(), s.rngs.len(), s.lengths.len()];
        anyhow::ensure!(
            lens(&saved) == [self.num_envs(); 3]
                && saved.observations.len() == self.observations.len()
                && saved.returns.len() == self.returns.len(),
            "{}: the snapshot is not of {} copies of this environment",
            self.spec().id,
            self.num_envs()
        );
        for (env, state) in self.envs.iter_mut().zip(&saved.states) {
            env.set_state(state)?;
        }
        self.rngs = saved.rngs;
        self.observations = saved.observations;
        self.returns = saved.returns;
        self.lengths = saved.lengths;
        self.episodes.clear();
        self.episode_returns.clear();
        Ok(())
    }
}
