//! What `VecEnv` promises, on a small environment whose every number is known and on real ones.

use envs::wrappers::TimeLimit;
use envs::{Action, Actions, Env, Episode, Result, Rng, Space, Spec, State, Step, VecEnv, rng};
use rand::RngExt;

/// Counts its steps, terminates after `length` of them, and rewards each with its number. It
/// observes the number of its episode and of its step.
struct Counter {
    spec: Spec,
    length: u32,
    episode: u32,
    step: u32,
}

impl Counter {
    fn boxed(length: u32, limit: Option<u32>) -> Box<dyn Env> {
        let spec = Spec {
            id: "Counter-v0".into(),
            observation_space: Space::uniform(2, 0.0, 1000.0),
            action_space: Space::Discrete { n: 2 },
            max_episode_steps: limit,
            reward_threshold: None,
        };
        Box::new(TimeLimit::new(Counter { spec, length, episode: 0, step: 0 }))
    }
}

impl Env for Counter {
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        (self.episode, self.step) = (self.episode + 1, 0);
        Ok(())
    }
    fn step(&mut self, _action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        self.step += 1;
        Ok(Step { reward: self.step.into(), terminated: self.step == self.length, truncated: false })
    }
    fn observe(&self, observation: &mut [f32]) {
        observation.copy_from_slice(&[self.episode as f32, self.step as f32]);
    }
    fn state(&self) -> Result<State> {
        Ok(State(vec![self.episode.into(), self.step.into()]))
    }
    fn set_state(&mut self, state: &State) -> Result<()> {
        envs::env::expect_len("Counter-v0", state, 2)?;
        (self.episode, self.step) = (state.0[0] as u32, state.0[1] as u32);
        Ok(())
    }
}

/// Everything a `VecEnv` shows after a step.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    observations: Vec<f32>,
    final_observations: Vec<f32>,
    rewards: Vec<f32>,
    terminated: Vec<bool>,
    truncated: Vec<bool>,
    episodes: Vec<Episode>,
}

fn seen(envs: &VecEnv) -> Seen {
    Seen {
        observations: envs.observations().to_vec(),
        final_observations: envs.final_observations().to_vec(),
        rewards: envs.rewards().to_vec(),
        terminated: envs.terminated().to_vec(),
        truncated: envs.truncated().to_vec(),
        episodes: envs.episodes().to_vec(),
    }
}

/// Steps `envs` with random actions.
fn random_steps(envs: &mut VecEnv, actions: &mut Rng, steps: usize) -> Vec<Seen> {
    let num_envs = envs.num_envs();
    let space = envs.spec().action_space.clone();
    let step = |_| {
        match &space {
            Space::Discrete { n } => {
                let indices: Vec<u32> = (0..num_envs).map(|_| actions.random_range(0..*n as u32)).collect();
                envs.step(&indices).unwrap();
            }
            _ => {
                let numbers: Vec<f32> =
                    (0..num_envs * space.size()).map(|_| actions.random_range(-1.0..1.0)).collect();
                envs.step(&numbers).unwrap();
            }
        }
        seen(envs)
    };
    (0..steps).map(step).collect()
}

#[test]
fn an_ended_episode_hands_back_its_last_observation_and_the_first_of_the_next() {
    // The first copy terminates at its third step, the second is cut short at its second.
    let mut envs = VecEnv::new(vec![Counter::boxed(3, None), Counter::boxed(9, Some(2))], 0).unwrap();
    assert_eq!(envs.observations(), [1.0, 0.0, 1.0, 0.0]);

    envs.step(&[0, 1]).unwrap();
    assert_eq!(envs.observations(), [1.0, 1.0, 1.0, 1.0]);
    assert_eq!(envs.final_observations(), envs.observations());
    assert_eq!(envs.rewards(), [1.0, 1.0]);
    assert_eq!((envs.terminated(), envs.truncated()), (&[false, false][..], &[false, false][..]));
    assert_eq!(envs.episodes(), []);

    envs.step(&[0, 1]).unwrap();
    assert_eq!(envs.observations(), [1.0, 2.0, 2.0, 0.0]);
    assert_eq!(envs.final_observations(), [1.0, 2.0, 1.0, 2.0]);
    assert_eq!(envs.rewards(), [2.0, 2.0]);
    assert_eq!((envs.terminated(), envs.truncated()), (&[false, false][..], &[false, true][..]));
    assert_eq!(envs.episodes(), [Episode { env: 1, episodic_return: 3.0, length: 2 }]);

    envs.step(&[0, 1]).unwrap();
    assert_eq!(envs.observations(), [2.0, 0.0, 2.0, 1.0]);
    assert_eq!(envs.final_observations(), [1.0, 3.0, 2.0, 1.0]);
    assert_eq!(envs.rewards(), [3.0, 1.0]);
    assert_eq!((envs.terminated(), envs.truncated()), (&[true, false][..], &[false, false][..]));
    assert_eq!(envs.episodes(), [Episode { env: 0, episodic_return: 6.0, length: 3 }]);

    // Returns and lengths began anew.
    envs.step(&[0, 1]).unwrap();
    assert_eq!(envs.rewards(), [1.0, 2.0]);
    assert_eq!(envs.episodes(), [Episode { env: 1, episodic_return: 3.0, length: 2 }]);
}

#[test]
fn the_last_step_of_the_limit_can_be_both_terminated_and_truncated() {
    let mut envs = VecEnv::new(vec![Counter::boxed(2, Some(2))], 0).unwrap();
    envs.step(&[0]).unwrap();
    envs.step(&[0]).unwrap();
    assert_eq!((envs.terminated(), envs.truncated()), (&[true][..], &[true][..]));
    assert_eq!(envs.episodes(), [Episode { env: 0, episodic_return: 3.0, length: 2 }]);
}

#[test]
fn pendulum_is_truncated_at_200_steps_and_never_terminated() {
    let mut envs = VecEnv::make("Pendulum-v1", 2, 0).unwrap();
    let steps = random_steps(&mut envs, &mut rng(0, 9), 400);
    for (t, step) in steps.iter().enumerate() {
        let ends = t % 200 == 199;
        assert_eq!(step.terminated, [false, false], "step {t}");
        assert_eq!(step.truncated, [ends, ends], "step {t}");
        assert_eq!(step.episodes.len(), if ends { 2 } else { 0 }, "step {t}");
        assert_eq!(step.final_observations == step.observations, !ends, "step {t}");
    }
    let total: f32 = steps[..200].iter().map(|step| step.rewards[1]).sum();
    let episode = steps[199].episodes[1];
    assert_eq!((episode.env, episode.length), (1, 200));
    assert!((episode.episodic_return - f64::from(total)).abs() < 0.1, "{episode:?}, rewards sum to {total}");
}

#[test]
fn a_copy_sees_the_same_however_many_there_are() {
    let few = VecEnv::make("CartPole-v1", 3, 7).unwrap();
    let many = VecEnv::make("CartPole-v1", 8, 7).unwrap();
    assert_eq!(few.observations(), &many.observations()[..3 * 4]);
    assert_ne!(few.observations()[..4], few.observations()[4..8], "copies begin alike");
}

#[test]
fn a_reset_begins_anew_from_its_seed() {
    // A move that MinAtar repeats and a maze's clock outlast an episode, but not this.
    for id in ["CartPole-v1", "MinAtar/Asterix-v1", "MinAtar/Breakout-v1", "BlockingMaze-v0"] {
        let mut envs = VecEnv::make(id, 3, 7).unwrap();
        let first = random_steps(&mut envs, &mut rng(1, 0), 1100);
        for _ in 0..5 {
            envs.reset(7).unwrap();
            assert_eq!(envs.episodes(), []);
            assert_eq!(random_steps(&mut envs, &mut rng(1, 0), 1100), first, "{id}");
        }
        envs.reset(8).unwrap();
        assert_ne!(random_steps(&mut envs, &mut rng(2, 0), 1100), first, "{id}");
    }
}

#[test]
fn a_restored_snapshot_continues_identically() {
    for id in ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "FrozenLake-v1", "Blackjack-v1"] {
        let mut envs = VecEnv::make(id, 3, 7).unwrap();
        let mut actions = rng(1, 0);
        random_steps(&mut envs, &mut actions, 137);
        let (snapshot, resumed_actions) = (envs.snapshot().unwrap(), actions.clone());
        let expected = random_steps(&mut envs, &mut actions, 300);
        assert!(expected.iter().any(|step| !step.episodes.is_empty()) || id.starts_with("MountainCar"));

        // Into a fresh one, and back into the one it came from.
        let mut fresh = VecEnv::make(id, 3, 99).unwrap();
        for envs in [&mut fresh, &mut envs] {
            envs.restore(&snapshot).unwrap();
            assert_eq!(random_steps(envs, &mut resumed_actions.clone(), 300), expected, "{id}");
        }
    }
}

#[test]
fn snapshots_of_something_else_are_refused() {
    let snapshot = VecEnv::make("CartPole-v1", 3, 0).unwrap().snapshot().unwrap();
    for (id, num_envs) in [("CartPole-v1", 2), ("Acrobot-v1", 3)] {
        let error = VecEnv::make(id, num_envs, 0).unwrap().restore(&snapshot).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{id}: the snapshot is not of {num_envs} copies")), "{error}");
    }
}

#[test]
fn wrong_actions_are_refused_and_nothing_moves() {
    let mut cartpole = VecEnv::make("CartPole-v1", 2, 0).unwrap();
    let mut pendulum = VecEnv::make("Pendulum-v1", 2, 0).unwrap();
    let before = (seen(&cartpole), seen(&pendulum));
    let refused = |envs: &mut VecEnv, actions: Actions<'_>, message: &str| {
        let error = envs.step(actions).unwrap_err().to_string();
        assert_eq!(error, message);
    };
    refused(&mut cartpole, Actions::Discrete(&[0]), "CartPole-v1: 1 actions for 2 environments");
    refused(&mut cartpole, Actions::Discrete(&[0, 2]), "CartPole-v1: action 2 is not in Discrete(2)");
    refused(
        &mut cartpole,
        Actions::Continuous(&[0.0, 0.0]),
        "CartPole-v1: these actions do not fit Discrete(2)",
    );
    refused(
        &mut pendulum,
        Actions::Continuous(&[0.0; 3]),
        "Pendulum-v1: 3 numbers for 2 actions of Box([1])",
    );
    refused(
        &mut pendulum,
        Actions::Continuous(&[0.0, f32::NAN]),
        "Pendulum-v1: an action of environment 1 is NaN, 0 steps into its episode",
    );
    refused(
        &mut pendulum,
        Actions::Continuous(&[f32::INFINITY, 0.0]),
        "Pendulum-v1: an action of environment 0 is inf, 0 steps into its episode",
    );
    refused(&mut pendulum, Actions::Discrete(&[0, 0]), "Pendulum-v1: these actions do not fit Box([1])");
    assert_eq!((seen(&cartpole), seen(&pendulum)), before);
}

/// A [`Counter`] that begins to fail after `steps` steps of an episode.
struct Faulty {
    counter: Box<dyn Env>,
    steps: u32,
    reward: bool, // or else the observation
}

impl Env for Faulty {
    fn spec(&self) -> &Spec {
        self.counter.spec()
    }
    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.counter.reset(rng)
    }
    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        let step = self.counter.step(action, rng)?;
        let fails = self.reward && step.reward >= f64::from(self.steps);
        Ok(Step { reward: if fails { 1e39 } else { step.reward }, ..step })
    }
    fn observe(&self, observation: &mut [f32]) {
        self.counter.observe(observation);
        if !self.reward && observation[1] >= self.steps as f32 {
            observation[1] = f32::NAN;
        }
    }
    fn state(&self) -> Result<State> {
        self.counter.state()
    }
    fn set_state(&mut self, state: &State) -> Result<()> {
        self.counter.set_state(state)
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let faulty = |steps, reward| {
        let faulty = Faulty { counter: Counter::boxed(9, None), steps, reward };
        VecEnv::new(vec![Counter::boxed(9, None), Box::new(faulty)], 0)
    };
    for (reward, what) in
        [(false, "an observation of environment 1 is NaN"), (true, "a reward of environment 1 is inf")]
    {
        let mut envs = faulty(3, reward).unwrap();
        envs.step(&[0, 0]).unwrap();
        envs.step(&[0, 0]).unwrap();
        let error = envs.step(&[0, 0]).unwrap_err().to_string();
        assert_eq!(error, format!("Counter-v0: {what}, 3 steps into its episode"));
    }
    let error = faulty(0, false).err().expect("refused").to_string();
    let wanted = "the observation after a reset of environment 1 is NaN, 0 steps into its episode";
    assert_eq!(error, format!("Counter-v0: {wanted}"));
}

#[test]
fn environments_that_differ_are_refused() {
    let envs = |ids: &[&str]| VecEnv::new(ids.iter().map(|id| envs::make(id).unwrap()).collect(), 0);
    assert!(envs(&["CartPole-v1", "CartPole-v1"]).is_ok());
    let error = envs(&["CartPole-v1", "CartPole-v1", "MountainCar-v0"]).err().expect("refused").to_string();
    let stranger = "environment 2 is MountainCar-v0 with Box([2]) observations and Discrete(3) actions";
    let first = "environment 0 is CartPole-v1 with Box([4]) observations and Discrete(2) actions";
    assert_eq!(error, format!("{stranger}, {first}; all must agree"));
}

#[test]
fn no_environments_and_unknown_ones_are_refused() {
    for (id, num_envs) in [("CartPole-v1", 0), ("CartPole-v9", 1)] {
        let error = VecEnv::make(id, num_envs, 0).err().expect("refused");
        assert!(error.is::<envs::InvalidInput>(), "{error}");
    }
    assert!(VecEnv::new(Vec::new(), 0).is_err());
}
