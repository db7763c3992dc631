//! Baird-v0: Baird's counterexample, on which learning off the policy diverges.
//!
//! Baird (1995), "Residual algorithms: reinforcement learning with function approximation", ICML, in the
//! form of Sutton & Barto (2018), "Reinforcement Learning", section 11.2 and figure 11.1.

use crate::{
    Action, Canvas, Env, Outcome, Result, Rng, Space, Spec, State, Step, TransitionModel, canvas::palette,
    env::expect_len, invalid,
};
use rand::RngExt;

/// 0 to 5 are the figure's upper states 1 to 6; 6 is its lower one, 7.
const STATES: usize = 7;
const LOWER: usize = STATES - 1;
const FEATURES: usize = STATES + 1;

/// Seven states, which are seen as eight features. Actions: 0, the dashed one, leads to one of the six
/// upper states, all equally likely; 1, the solid one, to the lower state. Every reward is 0, no episode
/// ends, and one begins in any state.
///
/// ```text
/// x(s) = 2 e_s + e_8        of the upper states, whose linear value is 2 w_s + w_8
/// x(7) = e_7 + 2 e_8        of the lower one,                          w_7 + 2 w_8
/// ```
///
/// All is worth 0, and w = 0 says so, among others: there are more weights than states. The book's
/// behaviour takes the dashed action six times in seven, so that every state is as frequent as any other;
/// its target policy always takes the solid one, γ = 0.99, and w starts at (1, 1, 1, 1, 1, 1, 10, 1). There
/// semi-gradient off-policy TD(0) diverges, whatever its step size, and gradient methods do not.
///
/// State: the number of the state, 0 to 6.
pub struct Baird {
    spec: Spec,
    model: TransitionModel,
    state: usize,
}

impl Baird {
    /// In the first of the upper states.
    pub fn new() -> Self {
        let to =
            |next_state, probability| Outcome { probability, next_state, reward: 0.0, terminated: false };
        let upper = (0..LOWER).map(|next_state| to(next_state, 1.0 / LOWER as f64)).collect();
        Self {
            spec: Spec {
                id: "Baird-v0".into(),
                observation_space: Space::bounded(&[0.0; FEATURES], &[2.0; FEATURES]),
                action_space: Space::Discrete { n: 2 },
                max_episode_steps: None,
                reward_threshold: None,
            },
            model: TransitionModel {
                outcomes: vec![vec![upper, vec![to(LOWER, 1.0)]]; STATES],
                initial: vec![1.0 / STATES as f64; STATES],
            },
            state: 0,
        }
    }

    /// x(s), `[8]`.
    pub fn features(state: usize) -> [f32; FEATURES] {
        let mut features = [0.0; FEATURES];
        let lower = state == LOWER;
        features[state] = if lower { 1.0 } else { 2.0 };
        features[FEATURES - 1] = if lower { 2.0 } else { 1.0 };
        features
    }
}

impl Default for Baird {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for Baird {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.state = rng.random_range(0..STATES);
        Ok(())
    }

    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        self.state = if action.index() == 0 { rng.random_range(0..LOWER) } else { LOWER };
        Ok(Step { reward: 0.0, terminated: false, truncated: false })
    }

    fn observe(&self, observation: &mut [f32]) {
        observation.copy_from_slice(&Self::features(self.state));
    }

    fn state(&self) -> Result<State> {
        Ok(State(vec![self.state as f64]))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, 1)?;
        let number = state.0[0];
        if number.fract() != 0.0 || !(0.0..STATES as f64).contains(&number) {
            return invalid(format!("{}: state {number}; states are 0 to {LOWER}", self.spec.id));
        }
        self.state = number as usize;
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        canvas.clear(palette::WHITE);
        canvas.fit(-0.1, -0.1, LOWER as f64 + 0.1, 2.6);
        let place = |state: usize| match state {
            LOWER => (LOWER as f64 / 2.0, 0.5),
            upper => (upper as f64 + 0.5, 2.0),
        };
        for state in 0..STATES {
            let (x, y) = place(state);
            if state != LOWER {
                canvas.line(&[(x, y), place(LOWER)], 0.02, palette::GREY);
            }
        }
        for state in 0..STATES {
            let (x, y) = place(state);
            canvas.circle(x, y, 0.42, if state == LOWER { palette::SKY } else { palette::LIGHT_GREY });
        }
        let (x, y) = place(self.state);
        canvas.circle(x, y, 0.22, palette::VERMILLION);
        Ok(())
    }

    fn model(&self) -> Option<&TransitionModel> {
        Some(&self.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    /// The book's first weights, which are too large where it matters.
    const START: [f64; FEATURES] = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 1.0];

    fn value(w: &[f64; FEATURES], state: usize) -> f64 {
        w.iter().zip(Baird::features(state)).map(|(w, x)| w * f64::from(x)).sum()
    }

    #[test]
    fn the_values_are_the_figures_sums_of_weights() {
        let w = [3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 0.25];
        let values: [f64; STATES] = std::array::from_fn(|state| value(&w, state));
        assert_eq!(values, [6.25, 10.25, 14.25, 22.25, 26.25, 34.25, 19.5]);
        // Every row of features is independent of the others, so that any values can be represented.
        let mut rows: Vec<[f64; FEATURES]> = (0..STATES).map(|s| Baird::features(s).map(f64::from)).collect();
        let mut rank = 0;
        for column in 0..FEATURES {
            let Some(pivot) = (rank..STATES).find(|&row| rows[row][column].abs() > 1e-9) else { continue };
            rows.swap(rank, pivot);
            let head = rows[rank];
            for row in &mut rows[rank + 1..] {
                let factor = row[column] / head[column];
                row.iter_mut().zip(head).for_each(|(x, head)| *x -= factor * head);
            }
            rank += 1;
        }
        assert_eq!(rank, STATES);
    }

    #[test]
    fn steps_go_where_the_model_says_and_no_episode_ends() {
        let mut env = Baird::new();
        let rng = &mut rng(1, 0);
        assert_eq!(env.spec().max_episode_steps, None);
        let model = env.model().unwrap().clone();
        for action in [0, 1] {
            let mut counts = [0.0; STATES];
            for n in 0..14_000 {
                env.set_state(&State(vec![f64::from(n % 7)])).unwrap();
                let step = env.step(Action::Discrete(action), rng).unwrap();
                assert_eq!(step, Step::default());
                let state = env.state().unwrap().0[0] as usize;
                let mut seen = [0.0; FEATURES];
                env.observe(&mut seen);
                assert_eq!(seen, Baird::features(state));
                counts[state] += 1.0 / 14_000.0;
            }
            for state in 0..STATES {
                let outcomes = &model.outcomes[state][action];
                assert!((outcomes.iter().map(|o| o.probability).sum::<f64>() - 1.0).abs() < 1e-12);
                assert!(outcomes.iter().all(|o| o.reward == 0.0 && !o.terminated));
                let of = |next: usize| outcomes.iter().find(|o| o.next_state == next);
                for (next, count) in counts.iter().enumerate() {
                    // Five standard errors.
                    assert!((of(next).map_or(0.0, |o| o.probability) - count).abs() < 0.016);
                }
            }
        }
        assert!(env.set_state(&State(vec![7.0])).is_err() && env.set_state(&State(vec![0.5])).is_err());
        let mut starts = [0; STATES];
        for _ in 0..7000 {
            env.reset(rng).unwrap();
            starts[env.state().unwrap().0[0] as usize] += 1;
        }
        assert!(starts.iter().all(|&count| (850..1150).contains(&count)), "{starts:?}");
    }

    #[test]
    fn the_books_behaviour_visits_all_states_alike() {
        // μ(s') = Σ_s μ(s) Σ_a b(a|s) P(s'|s, a), at μ = 1/7 throughout
        let env = Baird::new();
        let mut next = [0.0; STATES];
        for of_state in &env.model().unwrap().outcomes {
            for (outcomes, b) in of_state.iter().zip([6.0 / 7.0, 1.0 / 7.0]) {
                outcomes.iter().for_each(|o| next[o.next_state] += b * o.probability / 7.0);
            }
        }
        for share in next {
            approx::assert_abs_diff_eq!(share, 1.0 / 7.0, epsilon = 1e-12);
        }
    }

    #[test]
    fn even_dynamic_programming_diverges_from_the_books_weights() {
        // Figure 11.2, right: w ← w + α/7 Σ_s ( E_π[R + γ v(S')] − v(s) ) x(s), α = 0.01. The figure ends
        // after 1000 sweeps, w_8 being above 200 and w_7 the largest of the others.
        let mut w = START;
        for _ in 0..1000 {
            let before = w;
            for state in 0..STATES {
                let error = 0.99 * value(&before, LOWER) - value(&before, state);
                for (w, x) in w.iter_mut().zip(Baird::features(state)) {
                    *w += 0.01 / 7.0 * error * f64::from(x);
                }
            }
        }
        assert!(
            w[7] > 100.0 && w[..6].iter().all(|&other| (other - w[0]).abs() < 1e-9 && other < w[7]),
            "{w:?}"
        );
        // On the policy, where only the lower state is visited, the same update is stable.
        let mut w = START;
        for _ in 0..100_000 {
            let error = (0.99 - 1.0) * value(&w, LOWER);
            for (w, x) in w.iter_mut().zip(Baird::features(LOWER)) {
                *w += 0.01 * error * f64::from(x);
            }
        }
        approx::assert_abs_diff_eq!(value(&w, LOWER), 0.0, epsilon = 1e-6);
    }
}
