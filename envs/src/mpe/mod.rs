//! Multi-agent particle environments: circles that push, chase and talk to each other in a plane.
//!
//! Lowe et al., "Multi-Agent Actor-Critic for Mixed Cooperative-Competitive Environments" (2017,
//! arXiv:1706.02275), on the particle world of Mordatch & Abbeel, "Emergence of Grounded
//! Compositional Language in Multi-Agent Populations" (2017, arXiv:1703.04908). Ids, spaces,
//! rewards and physics as in the `mpe2` package, with PettingZoo's parallel interface: all agents
//! act at once.
//!
//! [`world`] is the physics, [`scenario`] turns a task into an environment, [`vec_env`] steps many
//! copies of it, and each task is one file that says who there is, what they see and what they are
//! rewarded for.
//!
//! ```
//! use envs::{Action, mpe};
//! let mut env = mpe::make("simple_spread_v3", false)?;
//! let mut rng = envs::rng(1, 0);
//! env.reset(&mut rng)?;
//! let num_agents = env.spec().agents.len();
//! let mut rewards = vec![0.0; num_agents];
//! let step = env.step(&vec![Action::Discrete(0); num_agents], &mut rng, &mut rewards)?;
//! assert!(!step.terminated && !step.truncated);
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod scenario;
pub mod simple;
pub mod simple_adversary;
pub mod simple_reference;
pub mod simple_speaker_listener;
pub mod simple_spread;
pub mod simple_tag;
pub mod vec_env;
pub mod world;

#[cfg(test)]
mod tests;

pub use scenario::{ParticleEnv, Scenario};
pub use simple::Simple;
pub use simple_adversary::SimpleAdversary;
pub use simple_reference::SimpleReference;
pub use simple_speaker_listener::SimpleSpeakerListener;
pub use simple_spread::SimpleSpread;
pub use simple_tag::SimpleTag;
pub use vec_env::ParallelVecEnv;
pub use world::World;

use crate::{Action, Canvas, Result, Rng, Space, State, invalid};

/// Steps of an episode unless one asks for another number.
pub const DEFAULT_MAX_CYCLES: u32 = 25;

/// What a multi-agent environment is: its id, who acts in it, and each agent's spaces.
#[derive(Debug, Clone, PartialEq)]
pub struct MultiSpec {
    /// PettingZoo's id, version suffix included.
    pub id: String,
    /// The agents' names, in the order of every per-agent list.
    pub agents: Vec<String>,
    /// Observations of each agent, `[num_agents]`; they may differ in size.
    pub observation_spaces: Vec<Space>,
    /// Actions of each agent, `[num_agents]`; they may differ in size.
    pub action_spaces: Vec<Space>,
    /// The choices that each agent's action is made of, `[num_agents]`, by their number of options:
    /// where to move if it moves, then what to say if it speaks. A discrete action is one index for
    /// all of them together; a continuous action has one number for each option of each.
    pub choices: Vec<Vec<usize>>,
    /// Steps after which an episode is truncated.
    pub max_cycles: u32,
}

/// What one step returned, besides observations and rewards. An episode ends for all agents at
/// once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParallelStep {
    /// The task itself ended: no value lies beyond.
    pub terminated: bool,
    /// The episode was cut short after `max_cycles` steps: value lies beyond, bootstrap from it.
    pub truncated: bool,
}

/// An environment in which several agents act at the same time, in PettingZoo's parallel form.
/// Agents are numbered as in [`MultiSpec::agents`]. Stepping and observing allocate nothing.
pub trait ParallelEnv: Send {
    /// Id, agents, spaces and limits.
    fn spec(&self) -> &MultiSpec;

    /// Begins an episode.
    fn reset(&mut self, rng: &mut Rng) -> Result<()>;

    /// Advances by one action of each agent, and writes each agent's reward. After `terminated`
    /// or `truncated` the caller resets.
    ///
    /// # Errors
    /// Not one action and one reward for each agent, or an action outside its space; nothing has
    /// moved then. Only continuous actions that leave their bounds are clipped, as in the
    /// original.
    fn step(&mut self, actions: &[Action<'_>], rng: &mut Rng, rewards: &mut [f64]) -> Result<ParallelStep>;

    /// Writes what `agent` sees now, `observation_spaces[agent].size()` numbers.
    fn observe(&self, agent: usize, observation: &mut [f32]);

    /// The whole internal state: [`ParallelEnv::set_state`] of it is a no-op.
    fn state(&self) -> Result<State>;

    /// Returns to a state that [`ParallelEnv::state`] gave; a state of the wrong length or with
    /// values that cannot be is refused.
    fn set_state(&mut self, state: &State) -> Result<()>;

    /// Draws the current state.
    fn draw(&self, canvas: &mut Canvas) -> Result<()>;

    /// The particles behind it all.
    fn world(&self) -> &World;
}

/// One multi-agent environment's entry: the id and how to build it.
#[derive(Clone, Copy)]
pub struct Registration {
    /// PettingZoo's id.
    pub id: &'static str,
    /// Builds it with the original's defaults; the argument asks for continuous actions.
    pub make: fn(bool) -> Result<Box<dyn ParallelEnv>>,
}

/// Every multi-agent environment.
pub fn registry() -> &'static [Registration] {
    fn build<S: Scenario + Default + 'static>(continuous: bool) -> Result<Box<dyn ParallelEnv>> {
        Ok(Box::new(ParticleEnv::new(S::default(), DEFAULT_MAX_CYCLES, continuous)?))
    }
    &[
        Registration { id: Simple::ID, make: build::<Simple> },
        Registration { id: SimpleAdversary::ID, make: build::<SimpleAdversary> },
        Registration { id: SimpleReference::ID, make: build::<SimpleReference> },
        Registration { id: SimpleSpeakerListener::ID, make: build::<SimpleSpeakerListener> },
        Registration { id: SimpleSpread::ID, make: build::<SimpleSpread> },
        Registration { id: SimpleTag::ID, make: build::<SimpleTag> },
    ]
}

/// Builds the multi-agent environment `id` with the original's defaults, with `continuous` or
/// discrete actions. [`ParticleEnv::new`] builds one with other numbers of agents and steps.
///
/// # Errors
/// An unknown id lists the known ones, nearest first.
pub fn make(id: &str, continuous: bool) -> Result<Box<dyn ParallelEnv>> {
    if let Some(entry) = registry().iter().find(|entry| entry.id == id) {
        return (entry.make)(continuous);
    }
    let mut known: Vec<&str> = registry().iter().map(|entry| entry.id).collect();
    let similarity = |known: &str| strsim::jaro_winkler(&id.to_lowercase(), known);
    known.sort_by(|a, b| similarity(b).total_cmp(&similarity(a)));
    invalid(format!(
        "--env-id {id}: unknown multi-agent environment; known, nearest first: {}",
        known.join(", ")
    ))
}
