//! The last few observations at once (Gymnasium's `FrameStackObservation`, padded with the first).

use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, env::expect_len, invalid};

/// Observes the last `k` observations of `env`, so that a policy sees motion in still pictures
/// (Mnih et al. 2015 stack four). At the start of an episode the first observation fills the
/// stack.
///
/// Layout: stacked along the last axis, oldest first. Observations of shape `[d]` become
/// `[k·d]`, one after the other; pictures `[height, width, channels]` become
/// `[height, width, k·channels]`, so that each pixel holds its `channels` values of the oldest
/// frame, then of the next, up to the newest.
///
/// Its state is the inner state followed by the frames, `[k, d]`, oldest first.
pub struct FrameStack<E> {
    env: E,
    spec: Spec,
    channels: usize,
    dim: usize,       // numbers in one inner observation
    frames: Vec<f32>, // [k, dim], oldest first
}

impl<E: Env> FrameStack<E> {
    /// Wraps `env` to observe its last `k` observations.
    ///
    /// # Errors
    /// Observations that are not a Box, and `k` of zero.
    pub fn new(env: E, k: usize) -> Result<Self> {
        let id = &env.spec().id;
        if k == 0 {
            return invalid(format!("{id}: FrameStack of 0 frames: at least one is needed"));
        }
        let Space::Box { shape, low, high } = &env.spec().observation_space else {
            let space = &env.spec().observation_space;
            return invalid(format!("{id}: FrameStack needs Box observations, this environment has {space}"));
        };
        let dim = low.len();
        let channels = shape.last().copied().unwrap_or(1);
        let stacked = |bounds: &[f32]| {
            let mut out = vec![0.0; k * dim];
            interleave(&bounds.repeat(k), dim, channels, &mut out);
            out
        };
        let mut stacked_shape = shape.clone();
        match stacked_shape.last_mut() {
            Some(last) => *last *= k,
            None => stacked_shape.push(k),
        }
        let observation_space = Space::Box { shape: stacked_shape, low: stacked(low), high: stacked(high) };
        let spec = Spec { observation_space, ..env.spec().clone() };
        Ok(Self { env, spec, channels, dim, frames: vec![0.0; k * dim] })
    }
}

/// Writes `frames`, `[k, dim]`, frame by frame along the last axis, which has `channels` values.
fn interleave(frames: &[f32], dim: usize, channels: usize, out: &mut [f32]) {
    let k = frames.len() / dim;
    for (f, frame) in frames.chunks_exact(dim).enumerate() {
        for (position, values) in frame.chunks_exact(channels).enumerate() {
            let start = (position * k + f) * channels;
            out[start..start + channels].copy_from_slice(values);
        }
    }
}

impl<E: Env> Env for FrameStack<E> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.env.reset(rng)?;
        for frame in self.frames.chunks_exact_mut(self.dim) {
            self.env.observe(frame);
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.env.forget();
    }

    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        let step = self.env.step(action, rng)?;
        self.frames.copy_within(self.dim.., 0);
        let newest = self.frames.len() - self.dim;
        self.env.observe(&mut self.frames[newest..]);
        Ok(step)
    }

    fn observe(&self, observation: &mut [f32]) {
        interleave(&self.frames, self.dim, self.channels, observation);
    }

    fn state(&self) -> Result<State> {
        let mut state = self.env.state()?;
        state.0.extend(self.frames.iter().map(|&x| f64::from(x)));
        Ok(state)
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        let Some(inner) = state.0.len().checked_sub(self.frames.len()) else {
            return expect_len(&self.spec.id, state, self.env.state()?.0.len() + self.frames.len());
        };
        self.env.set_state(&State(state.0[..inner].to_vec()))?;
        for (frame, value) in self.frames.iter_mut().zip(&state.0[inner..]) {
            *frame = *value as f32;
        }
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        self.env.draw(canvas)
    }
}

#[cfg(test)]
mod tests {
    use super::super::toy::{Echo, observation};
    use super::*;
    use crate::rng;

    fn step(env: &mut impl Env, action: &[f32]) {
        env.step(Action::Continuous(action), &mut rng(0, 0)).unwrap();
    }

    #[test]
    fn vectors_follow_each_other_oldest_first() {
        let mut env = FrameStack::new(Echo::new(&[2], -9.0, 9.0), 3).unwrap();
        assert_eq!(env.spec().observation_space, Space::uniform(6, -100.0, 100.0));
        env.reset(&mut rng(0, 0)).unwrap();
        step(&mut env, &[1.0, 2.0]);
        assert_eq!(observation(&env), [0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
        step(&mut env, &[3.0, 4.0]);
        step(&mut env, &[5.0, 6.0]);
        assert_eq!(observation(&env), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        env.reset(&mut rng(0, 0)).unwrap();
        assert_eq!(observation(&env), [0.0; 6]);
    }

    #[test]
    fn pictures_stack_their_channels() {
        let mut env = FrameStack::new(Echo::new(&[1, 2, 2], -9.0, 9.0), 2).unwrap();
        let Space::Box { shape, .. } = &env.spec().observation_space else { panic!("not a Box") };
        assert_eq!(shape, &[1, 2, 4]);
        env.reset(&mut rng(0, 0)).unwrap();
        step(&mut env, &[1.0, 2.0, 3.0, 4.0]);
        step(&mut env, &[5.0, 6.0, 7.0, 8.0]);
        assert_eq!(observation(&env), [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
    }

    #[test]
    fn the_first_observation_fills_the_stack() {
        let mut cart_pole = FrameStack::new(crate::classic_control::CartPole::new(), 4).unwrap();
        cart_pole.reset(&mut rng(7, 0)).unwrap();
        let stack = observation(&cart_pole);
        assert!(stack.chunks(4).all(|frame| frame == &stack[..4] && frame[0] != 0.0));
    }

    #[test]
    fn the_state_holds_the_frames() {
        let mut env = FrameStack::new(Echo::new(&[2], -9.0, 9.0), 2).unwrap();
        env.reset(&mut rng(0, 0)).unwrap();
        step(&mut env, &[1.0, 2.0]);
        step(&mut env, &[3.0, 4.0]);
        let state = env.state().unwrap();
        assert_eq!(state.0, [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
        step(&mut env, &[5.0, 6.0]);
        env.set_state(&state).unwrap();
        assert_eq!(observation(&env), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(env.state().unwrap(), state);
        assert!(env.set_state(&State(vec![0.0; 3])).is_err());
        assert!(env.set_state(&State(vec![0.0; 5])).is_err());
    }

    #[test]
    fn no_frames_are_refused() {
        let message = FrameStack::new(Echo::discrete(2), 0).err().unwrap().to_string();
        assert_eq!(message, "Echo-v0: FrameStack of 0 frames: at least one is needed");
    }
}
