//! The n-step update against PyTorch's, the buffer's windows against what happened, and runs against
//! their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::env::State;
use common::envs::{Action, Env, Space, Spec, rng};
use regression::recorded::values;
use regression::scripted::Transition;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["nstep_dqn"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

const ONLINE: Layers =
    &[("hidden0", &["online/layer1"]), ("hidden1", &["online/layer2"]), ("output", &["online/layer3"])];
const TARGET: Layers =
    &[("hidden0", &["target/layer1"]), ("hidden1", &["target/layer2"]), ("output", &["target/layer3"])];

/// An environment that plays the recorded steps, one episode after the other.
struct Player {
    spec: Spec,
    observations: Vec<f32>,      // [rows, 4]
    next_observations: Vec<f32>, // [rows, 4]
    rewards: Vec<f32>,
    terminated: Vec<bool>,
    truncated: Vec<bool>,
    row: usize,
    at_start: bool, // of an episode
}

impl Env for Player {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, _: &mut Rng) -> Result<()> {
        self.at_start = true;
        Ok(())
    }

    fn step(&mut self, _: Action<'_>, _: &mut Rng) -> Result<common::envs::Step> {
        let row = self.row;
        (self.row, self.at_start) = (row + 1, false);
        Ok(common::envs::Step {
            reward: self.rewards[row].into(),
            terminated: self.terminated[row],
            truncated: self.truncated[row],
        })
    }

    fn observe(&self, observation: &mut [f32]) {
        let (rows, row) = match self.at_start {
            true => (&self.observations, self.row),
            false => (&self.next_observations, self.row - 1),
        };
        observation.copy_from_slice(&rows[4 * row..4 * (row + 1)]);
    }

    fn state(&self) -> Result<State> {
        Ok(State(Vec::new()))
    }

    fn set_state(&mut self, _: &State) -> Result<()> {
        Ok(())
    }
}

/// All of a buffer, row by row.
fn whole(buffer: &ReplayBuffer) -> Batch {
    let len = buffer.actions.len();
    let column =
        |values: &[f32]| Tensor::from_slice(values, (len, values.len() / len), &Device::Cpu).unwrap();
    Batch {
        observations: column(&buffer.observations),
        actions: Tensor::from_slice(&buffer.actions, (len, 1), &Device::Cpu).unwrap(),
        n_step_returns: column(&buffer.n_step_returns),
        next_observations: column(&buffer.next_observations),
        discounts: column(&buffer.discounts),
        terminated: column(&buffer.terminated),
    }
}

/// The recorded steps go through the file's own buffer, and what it stores is learned from.
fn recorded_update(name: &str, clip_error: bool) {
    let mut recording = Recording::open(name);
    let number = |name: &str| recording.number(name);
    let (n_step, gamma) = (number("n_step") as usize, number("gamma"));
    let args = args(&[
        "--hidden-sizes=64,64",
        &format!("--learning-rate={}", number("learning_rate")),
        &format!("--clip-error={clip_error}"),
    ]);
    let spec = Spec {
        id: "Player-v0".to_string(),
        observation_space: Space::uniform(4, f32::NEG_INFINITY, f32::INFINITY),
        action_space: Space::Discrete { n: 2 },
        max_episode_steps: None,
        reward_threshold: None,
    };
    let player = Player {
        spec,
        observations: recording.floats("batch/observations"),
        next_observations: recording.floats("batch/next_observations"),
        rewards: recording.floats("batch/rewards"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
        row: 0,
        at_start: true,
    };
    let mut envs = VecEnv::new(vec![Box::new(player)], 0).unwrap();
    let mut buffer = ReplayBuffer::new(100, 1);
    for action in recording.integers("batch/actions") {
        let observations = envs.observations().to_vec();
        envs.step(&[action]).unwrap();
        buffer.store(&observations, &[action], &envs, n_step, gamma);
    }
    recording.close("expected/n_step_returns", buffer.n_step_returns.as_slice());
    let discounts = buffer.discounts.iter().zip(&buffer.terminated).map(|(discount, t)| discount * (1.0 - t));
    recording.close("expected/discounts", discounts.collect::<Vec<_>>());
    let steps = buffer.discounts.iter().map(|discount| (f64::from(*discount).ln() / gamma.ln()).round());
    recording.equal("expected/steps", steps.collect::<Vec<_>>());
    let last = recording.integers("expected/last_indices");
    let next_observations = recording.floats("batch/next_observations");
    let rows = last.iter().flat_map(|&row| &next_observations[4 * row as usize..4 * (row as usize + 1)]);
    let rows: Vec<f32> = rows.copied().collect();
    recording.computed("observations ahead", buffer.next_observations.as_slice(), rows, 0.0, 0.0);

    let mut dqn = NStepDqn::new(4, 2, &args).unwrap();
    recording.set(&dqn.parameters, ONLINE);
    recording.set(&dqn.target_parameters, TARGET);
    let batch = whole(&buffer);
    recording.close("expected/targets", dqn.td_targets(&batch).unwrap());
    let mut losses = Vec::new();
    for update in 0..10 {
        let (loss, mean) = dqn.update(&batch).unwrap();
        losses.push(loss);
        if update == 0 {
            recording.close("expected/loss/td_loss", loss);
            let q_values = recording.floats("expected/q_values");
            assert_abs_diff_eq!(mean, q_values.iter().sum::<f32>() / 32.0, epsilon = 1e-5);
            let gradients = first_gradients(&dqn.optimizer);
            recording.gradients("expected/gradients", &dqn.parameters, ONLINE, gradients);
            let step = recording.number("learning_rate");
            recording.parameters("expected/parameters", &dqn.parameters, ONLINE, step);
        }
    }
    recording.unmoved(&dqn.target_parameters, TARGET);
    recording.losses("expected/losses_over_updates", &losses);
    recording.finish();
}

#[test]
fn recorded_update_with_clipped_errors() {
    recorded_update("nstep_dqn__huber", true);
}

#[test]
fn recorded_update_with_squared_errors() {
    recorded_update("nstep_dqn__mse", false);
}

/// An n-step transition as the definition has it.
#[derive(Debug)]
struct Expected {
    first: Transition,
    last: Transition,
    steps: i32,         // k
    n_step_return: f64, // Σ_{i<k} γ^i r_{t+i}
}

/// The window that starts at step `start` of `happened`, the steps of one environment, if it is complete.
fn window(happened: &[Transition], start: usize, n_step: usize, gamma: f64) -> Option<Expected> {
    let first = happened.get(start)?;
    let rewards = happened[start..].iter().take_while(|t| t.episode == first.episode).take(n_step);
    let rewards: Vec<f64> = rewards.map(|t| f64::from(t.reward)).collect();
    let last = &happened[start + rewards.len() - 1];
    let complete = rewards.len() == n_step || last.terminated || last.truncated;
    let n_step_return = rewards.iter().enumerate().map(|(i, reward)| gamma.powi(i as i32) * reward).sum();
    let steps = rewards.len() as i32;
    complete.then(|| Expected { first: first.clone(), last: last.clone(), steps, n_step_return })
}

/// Windows that are full, that a termination, a truncation or both cut short, in environments whose
/// episodes end at different times; a buffer that overflows.
fn holds_what_happened(n_step: usize, capacity: usize) -> Vec<Expected> {
    const GAMMA: f64 = 0.5;
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let dqn = NStepDqn::new(3, 2, &args(&["--hidden-sizes=8"])).unwrap();
    let mut buffer = ReplayBuffer::new(capacity, 3);
    let mut rng = rng(1, 0);
    let (mut complete, mut starts) = (Vec::new(), [0; 3]);
    for _ in 0..20 {
        let observations = envs.observations().to_vec();
        let actions = dqn.act(&observations, 3, 0.5, &mut rng).unwrap();
        envs.step(&actions).unwrap();
        buffer.store(&observations, &actions, &envs, n_step, GAMMA);
        for (env, start) in starts.iter_mut().enumerate() {
            while let Some(expected) = window(&log.of(env), *start, n_step, GAMMA) {
                complete.push(expected);
                *start += 1;
            }
        }
        let kept = complete.len().min(capacity);
        assert_eq!(buffer.actions.len(), kept);
        for (i, expected) in complete.iter().enumerate().skip(complete.len() - kept) {
            let row = i % capacity;
            let Expected { first, last, steps, n_step_return } = expected;
            assert_eq!(buffer.observations[3 * row..3 * (row + 1)], first.observation, "{expected:?}");
            assert_eq!(buffer.actions[row] as f32, first.action[0], "{expected:?}");
            assert_abs_diff_eq!(f64::from(buffer.n_step_returns[row]), *n_step_return, epsilon = 1e-4);
            assert_eq!(
                buffer.next_observations[3 * row..3 * (row + 1)],
                last.next_observation,
                "{expected:?}"
            );
            assert_eq!(f64::from(buffer.discounts[row]), GAMMA.powi(*steps), "{expected:?}");
            assert_eq!(buffer.terminated[row] == 1.0, last.terminated, "{expected:?}");
        }
    }
    complete
}

#[test]
fn windows_end_by_termination_by_truncation_and_by_themselves_in_each_environment() {
    let complete = holds_what_happened(3, 1000);
    let kinds = |env: usize, steps: i32, terminated: bool, truncated: bool| {
        let count = |e: &&Expected| {
            e.first.env == env
                && e.steps == steps
                && (e.last.terminated, e.last.truncated) == (terminated, truncated)
        };
        complete.iter().filter(count).count()
    };
    for env in 0..3 {
        for (terminated, truncated) in [(true, false), (false, true), (true, true)] {
            let seen = (1..=3).map(|steps| kinds(env, steps, terminated, truncated)).sum::<usize>();
            assert!(seen > 0, "environment {env}, terminated {terminated}, truncated {truncated}");
        }
        assert!(
            kinds(env, 3, false, false) > 0
                && kinds(env, 1, false, true) > 0
                && kinds(env, 2, true, true) > 0
        );
    }
}

#[test]
fn windows_of_one_step_of_two_and_longer_than_any_episode() {
    let one = holds_what_happened(1, 1000);
    assert_eq!(one.len(), 60);
    assert!(one.iter().all(|e| e.steps == 1));
    holds_what_happened(2, 1000);
    let long = holds_what_happened(9, 1000);
    assert!(long.iter().all(|e| e.last.terminated || e.last.truncated));
}

#[test]
fn the_buffer_overwrites_its_oldest() {
    holds_what_happened(3, 7);
    holds_what_happened(2, 1);
}

#[test]
fn a_sample_is_whole_transitions_each_about_as_often() {
    let row = |i: usize| i as f32;
    let buffer = ReplayBuffer {
        capacity: 7,
        observations: (0..14).map(row).collect(),
        actions: (0..7).collect(),
        n_step_returns: (100..107).map(row).collect(),
        next_observations: (200..214).map(row).collect(),
        discounts: (300..307).map(row).collect(),
        terminated: (400..407).map(row).collect(),
        ..Default::default()
    };
    let batch = buffer.sample(700, &mut rng(1, 0), &Device::Cpu).unwrap();
    let rows = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    let (actions, n_step_returns) = (rows(&batch.actions), rows(&batch.n_step_returns));
    let (observations, next_observations) = (rows(&batch.observations), rows(&batch.next_observations));
    let (discounts, terminated) = (rows(&batch.discounts), rows(&batch.terminated));
    let mut seen = [0; 7];
    for i in 0..700 {
        let a = actions[i][0];
        seen[a as usize] += 1;
        assert_eq!(observations[i], [2.0 * a, 2.0 * a + 1.0]);
        assert_eq!(n_step_returns[i], [100.0 + a]);
        assert_eq!(next_observations[i], [200.0 + 2.0 * a, 201.0 + 2.0 * a]);
        assert_eq!(discounts[i], [300.0 + a]);
        assert_eq!(terminated[i], [400.0 + a]);
    }
    assert!(seen.iter().all(|count| (60..140).contains(count)), "{seen:?}");
}

#[test]
fn the_target_moves_by_tau() {
    let dqn = NStepDqn::new(2, 2, &args(&["--hidden-sizes=3", "--tau=0.25"])).unwrap();
    let online = VarMap::new(7);
    let vb = VarBuilder::from_varmap(&online, DType::F32, &Device::Cpu);
    QNetwork::new(2, &[3], 2, vb).unwrap();
    copy_parameters(&dqn.parameters, &online).unwrap();
    let (before, towards) = (values(&dqn.target_parameters), values(&dqn.parameters));
    assert_ne!(before, towards);
    dqn.update_target().unwrap();
    assert_eq!(values(&dqn.parameters), towards);
    for (((_, after), (_, before)), (_, towards)) in
        values(&dqn.target_parameters).iter().zip(&before).zip(&towards)
    {
        for ((after, before), towards) in after.iter().zip(before).zip(towards) {
            assert_abs_diff_eq!(*after, 0.75 * before + 0.25 * towards, epsilon = 1e-6);
        }
    }
}

/// An error of 0 has no gradient: candle's of |δ| is not 0 there.
#[test]
fn a_target_that_is_met_moves_nothing() {
    let mut dqn = NStepDqn::new(1, 2, &args(&["--hidden-sizes=4", "--clip-error=true"])).unwrap();
    let observations = Tensor::new(&[[0.5_f32]], &Device::Cpu).unwrap();
    let actions = Tensor::new(&[[1_u32]], &Device::Cpu).unwrap();
    let rewards = dqn.q_network.forward(&observations).unwrap().gather(&actions, 1).unwrap().detach();
    let terminated = rewards.ones_like().unwrap();
    let before = values(&dqn.parameters);
    let batch = Batch {
        observations: observations.clone(),
        actions,
        n_step_returns: rewards,
        next_observations: observations,
        discounts: terminated.clone(),
        terminated,
    };
    assert_eq!(dqn.update(&batch).unwrap().0, 0.0);
    assert_eq!(values(&dqn.parameters), before);
}

#[test]
fn actions_are_greedy_but_for_a_share_of_epsilon() {
    let dqn = NStepDqn::new(1, 3, &args(&["--hidden-sizes=8"])).unwrap();
    let observations: Vec<f32> = (0..3000).map(|i| i as f32 / 300.0 - 5.0).collect();
    let mut rng = rng(1, 0);
    let greedy = dqn.act_greedily(&observations, 3000).unwrap();
    assert_eq!(dqn.act(&observations, 3000, 0.0, &mut rng).unwrap(), greedy);
    let q_values =
        dqn.q_network.forward(&Tensor::from_slice(&observations, (3000, 1), &Device::Cpu).unwrap());
    for (row, action) in q_values.unwrap().to_vec2::<f32>().unwrap().iter().zip(&greedy) {
        assert!(row.iter().all(|q| *q <= row[*action as usize]));
    }
    let others = |epsilon, rng: &mut Rng| {
        let actions = dqn.act(&observations, 3000, epsilon, rng).unwrap();
        assert!(actions.iter().all(|&action| action < 3));
        actions.iter().zip(&greedy).filter(|(action, greedy)| action != greedy).count() as f64 / 3000.0
    };
    // Two in three random actions are not the greedy one; four standard errors.
    assert!((others(1.0, &mut rng) - 2.0 / 3.0).abs() < 0.035);
    assert!((others(0.3, &mut rng) - 0.2).abs() < 0.03);
}

#[test]
fn epsilon_falls_in_a_straight_line_and_stays() {
    assert_eq!(linear_schedule(1.0, 0.1, 100.0, 0), 1.0);
    assert_abs_diff_eq!(linear_schedule(1.0, 0.1, 100.0, 50), 0.55, epsilon = 1e-12);
    assert_abs_diff_eq!(linear_schedule(1.0, 0.1, 100.0, 100_000), 0.1, epsilon = 1e-12);
}

/// Every schedule moves: the share of random actions, the step size; small steps of the target.
#[test]
fn pinned_run() {
    let flags = [
        "--total-timesteps=600",
        "--learning-starts=100",
        "--hidden-sizes=16",
        "--batch-size=16",
        "--exploration-fraction=0.7",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Several environments, longer returns, an overflowing buffer, copies of the target, clipped errors.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--total-timesteps=606",
        "--num-envs=3",
        "--learning-starts=50",
        "--hidden-sizes=16,8",
        "--batch-size=8",
        "--buffer-size=100",
        "--train-frequency=4",
        "--target-network-frequency=25",
        "--tau=1",
        "--clip-error=true",
        "--anneal-lr=false",
        "--gamma=0.9",
        "--n-step=5",
        "--end-e=0.2",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
