//! Reinforcement-learning environments, one file each, faithful to their Python originals.
//!
//! Ids, version suffixes and semantics are Gymnasium's. [`make`] finds an environment by id,
//! [`VecEnv`] steps many copies side by side, and every deterministic part is held against
//! recordings of the real environments (`envs/tests/golden`).

pub mod canvas;
pub mod classic_control;
pub mod env;
pub mod gymnasium;
pub mod minatar;
pub mod mpe;
pub mod mujoco;
pub mod persist;
pub mod python;
pub mod registry;
pub mod space;
pub mod textbook;
pub mod toy_text;
pub mod vec_env;
pub mod wrappers;

pub use canvas::Canvas;
pub use env::{
    Action, Env, Image, MAX_EPISODE_STEPS, Outcome, Rng, Spec, State, Step, TransitionModel, learner_rng,
    parameters_rng, rng,
};
pub use registry::{Registration, make, registry};
pub use space::Space;
pub use vec_env::{Actions, Episode, VecEnv};

/// Results of this crate; anything a caller did wrong is an [`InvalidInput`].
pub type Result<T, E = anyhow::Error> = std::result::Result<T, E>;

/// Something that the caller asked for and that cannot be: an unknown environment id, a space
/// that does not fit, a missing package. The message is one line that names the thing, the value
/// and what is accepted; command-line programs print it and exit with code 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidInput(pub String);

impl std::fmt::Display for InvalidInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidInput {}

/// Shorthand for `Err(InvalidInput(...))` as an [`anyhow::Error`].
pub fn invalid<T>(message: impl Into<String>) -> Result<T> {
    Err(anyhow::Error::new(InvalidInput(message.into())))
}
