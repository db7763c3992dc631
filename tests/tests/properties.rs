//! What holds for every environment, asked of every environment that is registered: a new one
//! cannot be forgotten.
//!
//! MuJoCo tasks need a library; without it they are skipped, visibly, unless REQUIRE_MUJOCO=1.

use envs::{Action, Env, Registration, Rng, Space, State, rng};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::RngExt;
use std::io::Write as _;

/// Episodes without a time limit are followed for this many steps.
const STEPS: u32 = 1000;

/// Calls `check` with every registered environment that can be made here.
fn for_each_environment(check: impl Fn(&Registration, Box<dyn Env>)) {
    let mut checked = 0;
    for entry in envs::registry() {
        match (entry.make)() {
            Ok(env) => {
                check(&entry, env);
                checked += 1;
            }
            Err(error) if is_mujoco(&entry) && !mujoco_is_required() => {
                let _ = writeln!(std::io::stderr(), "SKIPPED {}: {error:#}", entry.id);
            }
            Err(error) => panic!("{}: {error:#}", entry.id),
        }
    }
    assert!(checked > 0, "no environment was checked");
}

fn is_mujoco(entry: &Registration) -> bool {
    envs::mujoco::registered().iter().any(|other| other.id == entry.id)
}

fn mujoco_is_required() -> bool {
    std::env::var("REQUIRE_MUJOCO").is_ok_and(|value| value == "1")
}

/// Everything that can be seen of a step, bit for bit.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    observation: Vec<u32>,
    reward: u64,
    terminated: bool,
    truncated: bool,
}

/// An environment, its generator and one that chooses actions, stepped together.
struct Run {
    env: Box<dyn Env>,
    rng: Rng,
    actions: Rng,
}

impl Run {
    fn new(entry: &Registration, seed: u64) -> Self {
        let mut run = Self { env: (entry.make)().unwrap(), rng: rng(seed, 0), actions: rng(seed, 1) };
        run.env.reset(&mut run.rng).unwrap();
        run
    }

    fn observation(&self) -> Vec<f32> {
        // An observation that writes too few numbers leaves NaN, which no space contains.
        let mut observation = vec![f32::NAN; self.env.spec().observation_space.size()];
        self.env.observe(&mut observation);
        observation
    }

    fn step(&mut self) -> Seen {
        let id = self.env.spec().id.clone();
        let step = match &self.env.spec().action_space {
            Space::Discrete { n } => {
                let action = Action::Discrete(self.actions.random_range(0..*n));
                self.env.step(action, &mut self.rng)
            }
            Space::Box { low, high, .. } => {
                // What has no bound is drawn from [-10, 10].
                let action: Vec<f32> = low
                    .iter()
                    .zip(high)
                    .map(|(&l, &h)| self.actions.random_range(l.max(-10.0)..=h.min(10.0)))
                    .collect();
                self.env.step(Action::Continuous(&action), &mut self.rng)
            }
            space => panic!("{id}: actions of {space}"),
        };
        let step = step.unwrap_or_else(|error| panic!("{id}: {error:#}"));
        Seen {
            observation: self.observation().iter().map(|x| x.to_bits()).collect(),
            reward: step.reward.to_bits(),
            terminated: step.terminated,
            truncated: step.truncated,
        }
    }

    /// Steps through episodes, the last one left running.
    fn steps(&mut self, count: u32) -> Vec<Seen> {
        let next = |_| {
            let seen = self.step();
            if seen.terminated || seen.truncated {
                self.env.reset(&mut self.rng).unwrap();
            }
            seen
        };
        (0..count).map(next).collect()
    }
}

/// A few seeds for each environment: what proptest chooses is the same on every run.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 4, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..Default::default() }
}

#[test]
fn ids_are_unique_and_the_environment_s_own() {
    let mut ids: Vec<&str> = envs::registry().iter().map(|entry| entry.id).collect();
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "an id is registered twice: {ids:?}");
    for_each_environment(|entry, env| assert_eq!(env.spec().id, entry.id));
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn observations_are_in_their_space_and_rewards_finite(seed in any::<u64>()) {
        for_each_environment(|entry, _| {
            let mut run = Run::new(entry, seed);
            let space = run.env.spec().observation_space.clone();
            for t in 0..STEPS {
                let observation = run.observation();
                assert!(space.contains(&observation), "{}, step {t}: {observation:?}", entry.id);
                let seen = run.step();
                assert!(f64::from_bits(seen.reward).is_finite(), "{}, step {t}: a reward", entry.id);
                let last = run.observation();
                assert!(space.contains(&last), "{}, after step {t}: {last:?}", entry.id);
                if seen.terminated || seen.truncated {
                    run.env.reset(&mut run.rng).unwrap();
                }
            }
        });
    }

    #[test]
    fn the_same_seed_gives_the_same_trajectory(seed in any::<u64>()) {
        for_each_environment(|entry, _| {
            let (mut first, mut second) = (Run::new(entry, seed), Run::new(entry, seed));
            assert_eq!(first.observation(), second.observation(), "{}: reset", entry.id);
            assert_eq!(first.steps(STEPS), second.steps(STEPS), "{}", entry.id);
        });
    }

    #[test]
    fn setting_its_own_state_changes_nothing(seed in any::<u64>(), before in 0..300_u32) {
        for_each_environment(|entry, _| {
            let mut run = Run::new(entry, seed);
            run.steps(before);
            // The same environment, and another that comes from elsewhere.
            let mut other = Run::new(entry, seed.wrapping_add(1));
            other.steps(7);
            (other.rng, other.actions) = (run.rng.clone(), run.actions.clone());

            let (state, observation) = (run.env.state().unwrap(), run.observation());
            run.env.set_state(&state).unwrap();
            other.env.set_state(&state).unwrap();
            for run in [&run, &other] {
                assert_eq!(run.env.state().unwrap(), state, "{}: state", entry.id);
                assert_eq!(run.observation(), observation, "{}: observation", entry.id);
            }

            // Both go on as an untouched copy does.
            let mut untouched = Run::new(entry, seed);
            untouched.steps(before);
            let expected = untouched.steps(STEPS);
            assert_eq!(run.steps(STEPS), expected, "{}: continued", entry.id);
            assert_eq!(other.steps(STEPS), expected, "{}: continued elsewhere", entry.id);
        });
    }

    #[test]
    fn states_that_cannot_be_are_refused(seed in any::<u64>()) {
        for_each_environment(|entry, _| {
            let mut run = Run::new(entry, seed);
            let state = run.env.state().unwrap();
            let mut longer = state.clone();
            longer.0.push(0.0);
            let mut not_a_number = state.clone();
            not_a_number.0[0] = f64::NAN;
            for wrong in [State::default(), longer, not_a_number] {
                assert!(run.env.set_state(&wrong).is_err(), "{}: took {wrong:?}", entry.id);
            }
        });
    }
}

#[test]
fn episodes_are_truncated_at_their_limit() {
    for_each_environment(|entry, env| {
        let Some(limit) = env.spec().max_episode_steps else { return };
        // The state ends with the steps elapsed. To reach the limit in any environment, however
        // short its episodes, start each step anew from the beginning of an episode.
        for seed in 0..5 {
            let mut run = Run::new(entry, seed);
            let mut start = run.env.state().unwrap();
            assert_eq!(start.0.last(), Some(&0.0), "{}: steps elapsed after reset", entry.id);
            for (elapsed, truncated) in [(0, limit == 1), (limit - 2, false), (limit - 1, true)] {
                *start.0.last_mut().unwrap() = elapsed.into();
                run.env.set_state(&start).unwrap();
                let seen = run.step();
                assert_eq!(seen.truncated, truncated, "{}: step {} of {limit}", entry.id, elapsed + 1);
            }
        }
        // And no episode that runs by itself is longer.
        let mut run = Run::new(entry, 0);
        let mut length = 0;
        for seen in run.steps(3 * limit.min(STEPS)) {
            length += 1;
            assert!(length <= limit, "{}: {length} steps", entry.id);
            assert_eq!(seen.truncated, length == limit, "{}: truncated after {length} steps", entry.id);
            if seen.terminated || seen.truncated {
                length = 0;
            }
        }
    });
}

#[test]
fn tabular_environments_follow_their_model() {
    let mut tabular = 0;
    for_each_environment(|entry, env| {
        let Some(model) = env.model() else { return };
        let sum = |probabilities: &mut dyn Iterator<Item = f64>| probabilities.sum::<f64>();
        assert!((sum(&mut model.initial.iter().copied()) - 1.0).abs() < 1e-12, "{}: first states", entry.id);
        for (s, actions) in model.outcomes.iter().enumerate() {
            for (a, outcomes) in actions.iter().enumerate() {
                let total = sum(&mut outcomes.iter().map(|outcome| outcome.probability));
                assert!((total - 1.0).abs() < 1e-12, "{}: P[{s}][{a}] sums to {total}", entry.id);
            }
        }

        // An environment that shows features of its states, not their indices, has a test of its own.
        if !matches!(env.spec().observation_space, Space::Discrete { .. }) {
            return;
        }
        // The first states drawn, and the states that the first action leads to from there.
        let draws = 20_000;
        let mut first = vec![0.0; model.initial.len()];
        let mut second = first.clone();
        let mut expected_second = first.clone();
        let mut run = Run::new(entry, 0);
        for _ in 0..draws {
            run.env.reset(&mut run.rng).unwrap();
            let state = run.observation()[0] as usize;
            first[state] += 1.0 / f64::from(draws);
            for outcome in &model.outcomes[state][1] {
                expected_second[outcome.next_state] += outcome.probability / f64::from(draws);
            }
            run.env.step(Action::Discrete(1), &mut run.rng).unwrap();
            second[run.observation()[0] as usize] += 1.0 / f64::from(draws);
        }
        for (actual, expected) in [(&first, &model.initial), (&second, &expected_second)] {
            for (state, (actual, expected)) in actual.iter().zip(expected).enumerate() {
                // Five standard deviations, and five draws more of what is so rare that it is not normal.
                let rare = if *expected > 0.0 { 5.0 / f64::from(draws) } else { 0.0 };
                let five = 5.0 * (expected * (1.0 - expected) / f64::from(draws)).max(0.0).sqrt() + rare;
                assert!(
                    (actual - expected).abs() <= five + 1e-9,
                    "{}: state {state} came {actual} of the time, expected {expected} ± {five}",
                    entry.id
                );
            }
        }
    });
    for entry in envs::toy_text::registered() {
        tabular += usize::from((entry.make)().unwrap().model().is_some());
    }
    assert!(tabular >= 7, "{tabular} tabular environments");
}

#[test]
fn environments_can_be_drawn() {
    for_each_environment(|entry, _| {
        let mut run = Run::new(entry, 0);
        let mut canvas = envs::Canvas::new(60, 40);
        let before = canvas.rgb();
        run.steps(3);
        match run.env.draw(&mut canvas) {
            Ok(()) => assert_ne!(canvas.rgb(), before, "{}: the picture stayed empty", entry.id),
            // Drawing one takes a renderer of its own; it must say so.
            Err(error) if is_mujoco(entry) => {
                assert!(error.to_string().contains("cannot be drawn"), "{}: {error:#}", entry.id);
            }
            Err(error) => panic!("{}: {error:#}", entry.id),
        }
    });
}

#[test]
fn an_unknown_id_lists_the_nearest_first() {
    for (wrong, nearest) in [
        ("CartPole-v2", "CartPole-v1"),
        ("cartpole", "CartPole-v1"),
        ("MountainCarContinous-v0", "MountainCarContinuous-v0"),
        ("Taxi-v3", "Taxi-v4"),
        ("FrozenLake8x8", "FrozenLake8x8-v1"),
    ] {
        let error = envs::make(wrong).err().map(|error| error.to_string()).unwrap_or_default();
        let wanted = format!("--env-id {wrong}: unknown environment; known, nearest first: {nearest},");
        assert!(error.starts_with(&wanted), "{error}");
        for entry in envs::registry() {
            assert!(error.contains(entry.id), "{} is missing from: {error}", entry.id);
        }
        assert!(!error.contains('\n'), "{error}");
    }
}
