//! MinAtar: five Atari games reduced to a 10 × 10 board, one channel for each kind of object.
//!
//! Young & Tian, "MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement
//! Learning Experiments" (2019), arXiv:1903.03176; the rules are those of version 1.0.15, its
//! oddities included. Each game's file states its rules in the order in which a step applies
//! them; [`MinAtar`] adds what the games share: action sets, sticky actions and the end.
//!
//! Rewards are whole numbers and there is no time limit; Freeway ends by itself after 2501 steps.

mod asterix;
mod board;
mod breakout;
mod fields;
mod freeway;
mod seaquest;
mod space_invaders;

pub use asterix::Asterix;
pub use board::{Cells, Frame, SIDE};
pub use breakout::Breakout;
pub use fields::Fields;
pub use freeway::Freeway;
pub use seaquest::Seaquest;
pub use space_invaders::SpaceInvaders;

use crate::canvas::{Color, palette};
use crate::{Action, Canvas, Env, Registration, Result, Rng, Space, Spec, State, Step, invalid};
use rand::RngExt;

/// This family's environments. Version 1 has a game's minimal action set, version 0 all six
/// actions.
pub fn registered() -> Vec<Registration> {
    fn v0<G: Game + 'static>() -> Result<Box<dyn Env>> {
        Ok(Box::new(MinAtar::<G>::new(ActionSet::Full, 0.1, true)?))
    }
    fn v1<G: Game + 'static>() -> Result<Box<dyn Env>> {
        Ok(Box::new(MinAtar::<G>::new(ActionSet::Minimal, 0.1, true)?))
    }
    vec![
        Registration { id: "MinAtar/Asterix-v0", make: v0::<Asterix> },
        Registration { id: "MinAtar/Asterix-v1", make: v1::<Asterix> },
        Registration { id: "MinAtar/Breakout-v0", make: v0::<Breakout> },
        Registration { id: "MinAtar/Breakout-v1", make: v1::<Breakout> },
        Registration { id: "MinAtar/Freeway-v0", make: v0::<Freeway> },
        Registration { id: "MinAtar/Freeway-v1", make: v1::<Freeway> },
        Registration { id: "MinAtar/Seaquest-v0", make: v0::<Seaquest> },
        Registration { id: "MinAtar/Seaquest-v1", make: v1::<Seaquest> },
        Registration { id: "MinAtar/SpaceInvaders-v0", make: v0::<SpaceInvaders> },
        Registration { id: "MinAtar/SpaceInvaders-v1", make: v1::<SpaceInvaders> },
    ]
}

/// What the player does in one step. A move that a game has no rule for acts like `Stay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Nothing.
    Stay,
    /// One column to the left.
    Left,
    /// One row up.
    Up,
    /// One column to the right.
    Right,
    /// One row down.
    Down,
    /// Shoot.
    Fire,
}

impl Move {
    /// All six, by action index.
    pub const ALL: [Move; 6] = [Move::Stay, Move::Left, Move::Up, Move::Right, Move::Down, Move::Fire];
}

/// Which moves the action indices stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionSet {
    /// All six ([`Move::ALL`]): version 0 of the ids.
    Full,
    /// Those that the game has rules for ([`Game::MINIMAL_ACTIONS`]): version 1.
    Minimal,
}

/// Where a game's random numbers come from: the project's generator, or a recorded tape that also
/// checks that the game asks for what was recorded. The methods are the calls that the original
/// makes to NumPy's generator, so that a tape can tell them apart.
pub trait Draws {
    /// `rand()`: a real number, uniform in [0, 1).
    fn uniform(&mut self) -> f64;

    /// `randint(low, high)`: an integer, uniform in `low..high`.
    fn between(&mut self, low: i32, high: i32) -> i32;

    /// `randint(n)`: an integer, uniform in `0..n`.
    fn below(&mut self, n: i32) -> i32 {
        self.between(0, n)
    }

    /// `rand(k)`: as many real numbers as `out` holds.
    fn uniform_batch(&mut self, out: &mut [f64]) {
        out.fill_with(|| self.uniform());
    }

    /// `randint(low, high, k)`: as many integers as `out` holds.
    fn between_batch(&mut self, low: i32, high: i32, out: &mut [i32]) {
        out.fill_with(|| self.between(low, high));
    }
}

impl Draws for Rng {
    fn uniform(&mut self) -> f64 {
        self.random()
    }

    fn between(&mut self, low: i32, high: i32) -> i32 {
        self.random_range(low..high)
    }
}

/// The rules of one game.
pub trait Game: Clone + Send {
    /// The name in the id, `MinAtar/NAME-v1`.
    const NAME: &'static str;

    /// The moves that have a rule, in the order of [`Move::ALL`].
    const MINIMAL_ACTIONS: &'static [Move];

    /// How each channel is drawn; its length is the number of channels.
    const COLORS: &'static [Color];

    /// The state after a reset, except for what is drawn at random.
    fn new() -> Self;

    /// Begins an episode.
    fn reset(&mut self, draws: &mut impl Draws);

    /// Plays one step. `ramping` says whether the game becomes harder with time. An episode that
    /// ends half-way through a step still plays the step's remaining rules.
    fn step(&mut self, action: Move, ramping: bool, draws: &mut impl Draws) -> Step;

    /// Sets the channels of the current state in an empty frame.
    fn paint(&self, frame: &mut Frame<'_>);

    /// Visits every number of the state, to read or to write it. `terminated` says whether the
    /// episode is over, where more may be possible.
    ///
    /// # Errors
    /// A number that cannot be.
    fn fields(&mut self, terminated: bool, fields: &mut Fields<'_>) -> Result<()>;
}

/// A MinAtar game as an environment.
///
/// Observations are 0 or 1, `[10, 10, channels]` row-major: row from the top, column from the
/// left, channel. The state is the index in [`Move::ALL`] of the previous step's move, whether
/// the episode is over, and the game's own numbers.
pub struct MinAtar<G> {
    spec: Spec,
    actions: &'static [Move],
    sticky_action_prob: f64,
    difficulty_ramping: bool,
    game: G,
    last_move: Move,
    terminated: bool,
}

impl<G: Game> MinAtar<G> {
    /// A game that repeats the previous step's move instead of the one asked for with probability
    /// `sticky_action_prob` (0.1 by default in the original), and that becomes harder with time if
    /// `difficulty_ramping` (so by default). [`Env::reset`] begins an episode.
    ///
    /// # Errors
    /// A probability outside [0, 1].
    pub fn new(action_set: ActionSet, sticky_action_prob: f64, difficulty_ramping: bool) -> Result<Self> {
        let (version, actions) = match action_set {
            ActionSet::Full => (0, Move::ALL.as_slice()),
            ActionSet::Minimal => (1, G::MINIMAL_ACTIONS),
        };
        let id = format!("MinAtar/{}-v{version}", G::NAME);
        if !(0.0..=1.0).contains(&sticky_action_prob) {
            return invalid(format!("{id}: sticky_action_prob {sticky_action_prob} is not in [0, 1]"));
        }
        let shape = vec![SIDE as usize, SIDE as usize, G::COLORS.len()];
        let size = shape.iter().product();
        Ok(Self {
            spec: Spec {
                id,
                observation_space: Space::Box { shape, low: vec![0.0; size], high: vec![1.0; size] },
                action_space: Space::Discrete { n: actions.len() },
                max_episode_steps: None,
                reward_threshold: None,
            },
            actions,
            sticky_action_prob,
            difficulty_ramping,
            game: G::new(),
            last_move: Move::Stay,
            terminated: false,
        })
    }

    /// [`Env::reset`] with any source of random numbers. The previous move is not forgotten: as in
    /// the original, the first step of an episode may repeat the last move of the one before.
    pub fn reset_with(&mut self, draws: &mut impl Draws) {
        self.terminated = false;
        self.game.reset(draws);
    }

    /// [`Env::step`] with any source of random numbers. After the end only the sticky action is
    /// still drawn and remembered.
    ///
    /// # Errors
    /// An action index outside the action set.
    pub fn step_with(&mut self, action: usize, draws: &mut impl Draws) -> Result<Step> {
        let Some(&asked) = self.actions.get(action) else {
            let (id, n) = (&self.spec.id, self.actions.len());
            return invalid(format!("{id}: action {action} is not in Discrete({n})"));
        };
        // Drawn even with probability 0, so that the option does not shift the draws after it.
        if draws.uniform() >= self.sticky_action_prob {
            self.last_move = asked;
        }
        if self.terminated {
            return Ok(Step { terminated: true, ..Step::default() });
        }
        let step = self.game.step(self.last_move, self.difficulty_ramping, draws);
        self.terminated = step.terminated;
        Ok(step)
    }
}

impl<G: Game> Env for MinAtar<G> {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.reset_with(rng);
        Ok(())
    }

    fn forget(&mut self) {
        self.last_move = Move::Stay;
    }

    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        self.step_with(action.index(), rng)
    }

    fn observe(&self, observation: &mut [f32]) {
        self.game.paint(&mut Frame::new(observation, G::COLORS.len()));
    }

    fn state(&self) -> Result<State> {
        let mut numbers = vec![f64::from(self.last_move as u8), f64::from(u8::from(self.terminated))];
        // `fields` reads and writes through the same list of fields, hence the copy.
        self.game.clone().fields(self.terminated, &mut Fields::write(&mut numbers))?;
        Ok(State(numbers))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        let mut fields = Fields::read(&self.spec.id, &state.0);
        let (mut last_move, mut terminated, mut game) = (0, false, self.game.clone());
        fields.integer("last move", &mut last_move, 0..=5)?;
        fields.flag("terminated", &mut terminated)?;
        game.fields(terminated, &mut fields)?;
        fields.finish()?;
        // Nothing has changed if anything above was refused.
        (self.last_move, self.terminated, self.game) = (Move::ALL[last_move as usize], terminated, game);
        Ok(())
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        let mut observation = vec![0.0; self.spec.observation_space.size()];
        self.observe(&mut observation);
        board::draw(&observation, G::COLORS, canvas);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{make, rng};

    /// Random numbers known beforehand. Panics when asked for more than there are.
    pub struct Script<'a>(pub &'a [f64]);

    impl Draws for Script<'_> {
        fn uniform(&mut self) -> f64 {
            let (first, rest) = self.0.split_first().expect("the game drew more than the script has");
            self.0 = rest;
            *first
        }

        fn between(&mut self, low: i32, high: i32) -> i32 {
            let number = self.uniform() as i32;
            assert!((low..high).contains(&number), "the script has {number} for a draw in {low}..{high}");
            number
        }
    }

    /// One step of `game` with ramping that draws exactly the numbers of `script`.
    pub fn play(game: &mut impl Game, action: Move, script: &[f64]) -> Step {
        let mut draws = Script(script);
        let step = game.step(action, true, &mut draws);
        assert!(draws.0.is_empty(), "left over: {:?}", draws.0);
        step
    }

    /// The reward and the end of one step.
    pub fn step(reward: f64, terminated: bool) -> Step {
        Step { reward, terminated, truncated: false }
    }

    /// The set cells of one channel as (column, row), row by row.
    pub fn channel<G: Game>(game: &G, channel: usize) -> Vec<(i32, i32)> {
        let channels = G::COLORS.len();
        let mut observation = vec![f32::NAN; 100 * channels];
        game.paint(&mut Frame::new(&mut observation, channels));
        (0..100)
            .filter(|i| observation[i * channels + channel] == 1.0)
            .map(|i| ((i % 10) as i32, (i / 10) as i32))
            .collect()
    }

    fn ids() -> Vec<&'static str> {
        registered().iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn ids_spaces_and_action_sets_fit() {
        assert_eq!(ids().len(), 10);
        for id in ids() {
            let env = make(id).unwrap();
            let spec = env.spec();
            assert_eq!(spec.id, id);
            let Space::Box { shape, .. } = &spec.observation_space else { panic!("{id}: not a Box") };
            assert_eq!(shape[..2], [10, 10], "{id}");
            if id.ends_with("-v0") {
                assert_eq!(spec.action_space, Space::Discrete { n: 6 }, "{id}");
            }
        }
        // Action 2 of Freeway's minimal set is down, of the full set up.
        let mut minimal = MinAtar::<Freeway>::new(ActionSet::Minimal, 0.0, true).unwrap();
        minimal.step_with(2, &mut Script(&[0.5])).unwrap();
        assert_eq!(minimal.last_move, Move::Down);
        let error = minimal.step_with(3, &mut Script(&[])).unwrap_err().to_string();
        assert_eq!(error, "MinAtar/Freeway-v1: action 3 is not in Discrete(3)");
        let error = MinAtar::<Freeway>::new(ActionSet::Full, 1.5, true).err().unwrap().to_string();
        assert_eq!(error, "MinAtar/Freeway-v0: sticky_action_prob 1.5 is not in [0, 1]");
    }

    #[test]
    fn a_move_sticks_strictly_below_the_probability_and_across_a_reset() {
        let mut env = MinAtar::<SpaceInvaders>::new(ActionSet::Full, 0.1, true).unwrap();
        env.reset_with(&mut Script(&[]));
        let cannon = |env: &MinAtar<SpaceInvaders>| channel(&env.game, 0)[0].0;

        // A new environment remembers staying.
        env.step_with(1, &mut Script(&[0.05])).unwrap();
        assert_eq!((cannon(&env), env.last_move), (5, Move::Stay));
        env.step_with(1, &mut Script(&[0.1])).unwrap();
        assert_eq!(cannon(&env), 4);
        // What is repeated is the move performed, not the one asked for.
        env.step_with(3, &mut Script(&[0.0999])).unwrap();
        env.step_with(3, &mut Script(&[0.0])).unwrap();
        assert_eq!(cannon(&env), 2);
        env.reset_with(&mut Script(&[]));
        env.step_with(3, &mut Script(&[0.0])).unwrap();
        assert_eq!(cannon(&env), 4);
    }

    #[test]
    fn after_the_end_only_the_sticky_action_is_drawn() {
        let mut env = MinAtar::<Breakout>::new(ActionSet::Full, 0.1, true).unwrap();
        env.reset_with(&mut Script(&[0.0]));
        while !env.terminated {
            env.step_with(1, &mut Script(&[0.5])).unwrap();
        }
        let before = env.state().unwrap();
        let mut draws = Script(&[0.5]);
        assert_eq!(env.step_with(3, &mut draws).unwrap(), step(0.0, true));
        assert!(draws.0.is_empty());
        let after = env.state().unwrap();
        assert_eq!(after.0[0], 3.0, "the move is remembered");
        assert_eq!(after.0[1..], before.0[1..], "nothing else changes");
        env.reset_with(&mut Script(&[0.0]));
        assert_eq!(env.step_with(3, &mut Script(&[0.5])).unwrap(), step(0.0, false));
    }

    #[test]
    fn random_play_stays_in_the_spaces_and_resumes_from_its_state() {
        for id in ids() {
            let (mut env, mut twin) = (make(id).unwrap(), make(id).unwrap());
            let Space::Discrete { n } = env.spec().action_space else { panic!("{id}: actions") };
            let space = env.spec().observation_space.clone();
            let (mut seen, mut twins) = (vec![f32::NAN; space.size()], vec![f32::NAN; space.size()]);
            let mut rng = rng(7, 0);
            env.reset(&mut rng).unwrap();
            let mut episodes = 0;
            for _ in 0..3000 {
                // The twin knows of the game only what the state tells.
                twin.set_state(&env.state().unwrap()).unwrap();
                let mut twin_rng = rng.clone();
                twin.observe(&mut twins);
                env.observe(&mut seen);
                assert_eq!(seen, twins, "{id}");
                assert!(space.contains(&seen), "{id}");
                assert_eq!(twin.state().unwrap(), env.state().unwrap(), "{id}");

                let action = Action::Discrete(rng.random_range(0..n));
                assert_eq!(Action::Discrete(twin_rng.random_range(0..n)), action);
                let step = env.step(action, &mut rng).unwrap();
                assert_eq!(twin.step(action, &mut twin_rng).unwrap(), step, "{id}");
                assert_eq!(twin.state().unwrap(), env.state().unwrap(), "{id}");
                if step.terminated {
                    episodes += 1;
                    env.reset(&mut rng).unwrap();
                }
            }
            assert!(episodes > 0, "{id}");
        }
    }

    #[test]
    fn impossible_states_are_refused_and_change_nothing() {
        for id in ids() {
            let mut env = make(id).unwrap();
            env.reset(&mut rng(3, 0)).unwrap();
            for _ in 0..40 {
                env.step(Action::Discrete(0), &mut rng(3, 1)).unwrap();
            }
            let good = env.state().unwrap();
            for i in 0..good.0.len() {
                for bad in [f64::NAN, f64::INFINITY, 0.5, 1e9, -2e9] {
                    let mut state = good.clone();
                    state.0[i] = bad;
                    let error = env.set_state(&state).unwrap_err().to_string();
                    assert!(error.starts_with(id), "{error}");
                }
            }
            let mut longer = good.clone();
            longer.0.push(0.0);
            assert!(env.set_state(&longer).is_err(), "{id}");
            let shorter = State(good.0[..good.0.len() - 1].to_vec());
            assert!(env.set_state(&shorter).is_err(), "{id}");
            assert!(env.set_state(&State(Vec::new())).is_err(), "{id}");
            assert_eq!(env.state().unwrap(), good, "{id}");
        }
    }
}
