//! D4PG's learning step against PyTorch's in both orders, its projection against a naive one, how often
//! transitions are drawn, and what actors gather.

use super::*;
use anyhow::ensure;
use approx::assert_abs_diff_eq;
use candle_core::Device;
use common::envs::{Action, Env, Space, Spec, Step, env::State as EnvState, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["d4pg"].iter().chain(flags).map(Into::into)).unwrap()
}

/// A learner of observations `[3]` and actions within (-2, 1) × (-1, 1.5).
fn learner(flags: &[&str]) -> D4pg {
    let flags = [&["--hidden-size=32"], flags].concat();
    D4pg::new(3, [&[-0.5, 0.25], &[1.5, 1.25]], &args(&flags)).unwrap()
}

const ACTOR: Layers = &[("hidden1", &["actor/fc1"]), ("hidden2", &["actor/fc2"]), ("output", &["actor/fc3"])];
const TARGET_ACTOR: Layers = &[
    ("hidden1", &["target_actor/fc1"]),
    ("hidden2", &["target_actor/fc2"]),
    ("output", &["target_actor/fc3"]),
];
const CRITIC: Layers =
    &[("hidden1", &["critic/fc1"]), ("hidden2", &["critic/fc2"]), ("output", &["critic/fc3"])];
const TARGET_CRITIC: Layers = &[
    ("hidden1", &["target_critic/fc1"]),
    ("hidden2", &["target_critic/fc2"]),
    ("output", &["target_critic/fc3"]),
];

/// An environment that plays one row of the recording: observations, rewards and flags of n steps.
struct Row {
    spec: Spec,
    observations: Vec<Vec<f32>>, // before the first step and after each
    rewards: Vec<f32>,
    terminated: Vec<bool>,
    truncated: Vec<bool>,
    step: usize,
}

impl Env for Row {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, _: &mut Rng) -> Result<()> {
        self.step = 0;
        Ok(())
    }

    fn step(&mut self, _: Action<'_>, _: &mut Rng) -> Result<Step> {
        ensure!(self.step < self.rewards.len(), "nothing is recorded beyond");
        self.step += 1;
        let i = self.step - 1;
        let (terminated, truncated) = (self.terminated[i], self.truncated[i]);
        Ok(Step { reward: self.rewards[i].into(), terminated, truncated })
    }

    fn observe(&self, observation: &mut [f32]) {
        observation.copy_from_slice(&self.observations[self.step]);
    }

    fn state(&self) -> Result<EnvState> {
        Ok(EnvState(vec![self.step as f64]))
    }

    fn set_state(&mut self, state: &EnvState) -> Result<()> {
        self.step = state.0[0] as usize;
        Ok(())
    }
}

/// The recorded rows as the file's own actor gathers them, but for the actions, which are the recorded ones.
fn recorded_transitions(recording: &Recording, d4pg: &D4pg) -> Vec<Transition> {
    let (observations, actions) = (recording.floats("batch/observations"), recording.floats("batch/actions"));
    let (rewards, next) = (recording.floats("batch/rewards"), recording.floats("batch/next_observations"));
    let (terminated, truncated) = (recording.flags("batch/terminated"), recording.flags("batch/truncated"));
    let row = |i: usize| {
        let own = 5 * i..5 * (i + 1);
        let spec = Spec {
            id: "Row-v0".to_string(),
            observation_space: Space::uniform(3, -9.0, 9.0),
            action_space: Space::bounded(&[-2.0, -1.0], &[1.0, 1.5]),
            max_episode_steps: None,
            reward_threshold: None,
        };
        let row = Row {
            spec,
            observations: observations[3 * i..3 * (i + 1)]
                .chunks(3)
                .chain(next[15 * i..15 * (i + 1)].chunks(3))
                .map(<[f32]>::to_vec)
                .collect(),
            rewards: rewards[own.clone()].to_vec(),
            terminated: terminated[own.clone()].to_vec(),
            truncated: truncated[own].to_vec(),
            step: 0,
        };
        let mut envs = VecEnv::new(vec![Box::new(row)], 0).unwrap();
        // The first transition is the row's; after an early end the row begins anew, for the rest of five steps.
        let (transitions, _) = d4pg.gather(&mut envs, &mut Recent::new(), &mut rng(1, 0)).unwrap();
        let action = actions[2 * i..2 * (i + 1)].to_vec();
        Transition { action, ..transitions.into_iter().next().unwrap() }
    };
    (0..32).map(row).collect()
}

/// A learner with the recorded hyper-parameters and parameters.
fn recorded_learner(recording: &Recording) -> D4pg {
    let names = ["gamma", "tau", "n_atoms", "v_min", "v_max", "n_step"];
    let mut flags: Vec<String> =
        names.iter().map(|name| format!("--{}={}", name.replace('_', "-"), recording.number(name))).collect();
    flags.push("--num-steps=5".to_string());
    let mut d4pg = learner(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    // The file has one step size, the recording two.
    d4pg.actor.optimizer.learning_rate = recording.number("actor_lr");
    d4pg.critic.optimizer.learning_rate = recording.number("critic_lr");
    recording.set(&d4pg.actor.parameters, ACTOR);
    recording.set(&d4pg.actor.target_parameters, TARGET_ACTOR);
    recording.set(&d4pg.critic.parameters, CRITIC);
    recording.set(&d4pg.critic.target_parameters, TARGET_CRITIC);
    d4pg
}

/// `critic_first` is not the file's order, but what its methods are must hold in that one too.
fn recorded_update(name: &str) {
    let mut recording = Recording::open(name);
    let critic_first = name == "d4pg__critic_first";
    let mut d4pg = recorded_learner(&recording);
    let transitions = recorded_transitions(&recording, &d4pg);
    let batch: Vec<&Transition> = transitions.iter().collect();
    let weights = recording.floats("batch/weights");
    let (actor_lr, critic_lr) = (recording.number("actor_lr"), recording.number("critic_lr"));
    let folder = "expected/parameters";

    let returns: Vec<f32> = batch.iter().map(|t| t.n_step_return).collect();
    recording.close("expected/n_step_returns", returns);
    let discounts: Vec<f32> = batch.iter().map(|t| t.discount).collect();
    recording.close("expected/bootstrap_discounts", discounts);
    // Where nothing lies beyond, any observation will do.
    let (next, last) =
        (recording.floats("batch/next_observations"), recording.integers("expected/bootstrap_indices"));
    for (i, transition) in batch.iter().enumerate() {
        let start = 15 * i + 3 * last[i] as usize;
        assert_eq!(transition.next_observation, next[start..start + 3], "row {i}");
    }
    let next_observations = d4pg.tensor(batch.iter().map(|t| &t.next_observation)).unwrap();
    let next_actions = d4pg.policy(&d4pg.actor.target, &next_observations).unwrap();
    let next_log_p = d4pg.log_p(&d4pg.critic.target, &next_observations, &next_actions).unwrap();
    recording.close("expected/next_actions", next_actions);
    recording.close("expected/next_probabilities", next_log_p.exp().unwrap());
    recording.close("expected/targets", d4pg.target_distributions(&batch).unwrap());

    for updates_critic in [critic_first, !critic_first] {
        if updates_critic {
            let (loss, _, cross_entropies) = d4pg.update_critic(&batch, &weights).unwrap();
            recording.close("expected/loss/critic", loss);
            recording.close("expected/cross_entropies", cross_entropies);
            let gradients = first_gradients(&d4pg.critic.optimizer);
            recording.gradients("expected/gradients", &d4pg.critic.parameters, CRITIC, gradients);
            recording.parameters(folder, &d4pg.critic.parameters, CRITIC, critic_lr);
        } else {
            recording.close("expected/loss/actor", d4pg.update_actor(&batch).unwrap());
            let gradients = first_gradients(&d4pg.actor.optimizer);
            recording.gradients("expected/gradients", &d4pg.actor.parameters, ACTOR, gradients);
            recording.parameters(folder, &d4pg.actor.parameters, ACTOR, actor_lr);
        }
        if updates_critic == critic_first {
            // After the first of both the other has not moved, …
            match critic_first {
                true => recording.unmoved(&d4pg.actor.parameters, ACTOR),
                false => recording.unmoved(&d4pg.critic.parameters, CRITIC),
            }
        }
        // … and the targets never have.
        recording.unmoved(&d4pg.actor.target_parameters, TARGET_ACTOR);
        recording.unmoved(&d4pg.critic.target_parameters, TARGET_CRITIC);
    }
    recording.parameters(folder, &d4pg.actor.parameters, ACTOR, actor_lr);
    recording.parameters(folder, &d4pg.critic.parameters, CRITIC, critic_lr);
    d4pg.actor.update_target(d4pg.args.tau).unwrap();
    d4pg.critic.update_target(d4pg.args.tau).unwrap();
    recording.parameters_close(folder, &d4pg.actor.target_parameters, TARGET_ACTOR, 2e-7);
    recording.parameters_close(folder, &d4pg.critic.target_parameters, TARGET_CRITIC, 2e-7);

    let mut d4pg = recorded_learner(&recording);
    let (mut critic_losses, mut actor_losses) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        if critic_first {
            critic_losses.push(d4pg.update_critic(&batch, &weights).unwrap().0);
        }
        actor_losses.push(d4pg.update_actor(&batch).unwrap());
        if !critic_first {
            critic_losses.push(d4pg.update_critic(&batch, &weights).unwrap().0);
        }
        d4pg.actor.update_target(d4pg.args.tau).unwrap();
        d4pg.critic.update_target(d4pg.args.tau).unwrap();
    }
    recording.losses("expected/losses_over_updates", critic_losses.clone());
    recording.losses("expected/losses_over_updates_critic", critic_losses);
    recording.losses("expected/losses_over_updates_actor", actor_losses);
    recording.finish();
}

#[test]
fn recorded_update_with_both_gradients_at_once() {
    recorded_update("d4pg");
}

#[test]
fn recorded_update_with_the_critic_first() {
    recorded_update("d4pg__critic_first");
}

#[test]
fn the_projection_is_the_naive_one() {
    let mut rng = rng(4, 0);
    for case in 0..300 {
        let n = 2 + case % 7;
        let args = args(&[&format!("--n-atoms={n}"), "--v-min=-3", "--v-max=1.5"]);
        let mut p: Vec<f32> = (0..n).map(|_| rng.random::<f32>()).collect();
        let sum: f32 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= sum);
        // Beyond both ends, onto atoms, and in between
        let shift = if case % 5 == 0 { 0.0 } else { rng.random_range(-6.0..6.0) };
        let discount = [0.0, 1.0, 0.9, 0.5][case % 4];
        let projected = project(&p, shift, discount, &args);
        let delta_z = 4.5 / (n - 1) as f64;
        for (i, found) in projected.iter().enumerate() {
            // m_i = Σ_j max(0, 1 − |clip(z_j) − z_i| / Δz) p_j
            let atom = -3.0 + i as f64 * delta_z;
            let share = |j: usize| {
                let moved = f64::from(shift) + f64::from(discount) * (-3.0 + j as f64 * delta_z);
                (1.0 - (moved.clamp(-3.0, 1.5) - atom).abs() / delta_z).max(0.0)
            };
            let expected: f64 = (0..n).map(|j| share(j) * f64::from(p[j])).sum();
            assert_abs_diff_eq!(f64::from(*found), expected, epsilon = 2e-6);
        }
        assert_abs_diff_eq!(projected.iter().sum::<f32>(), 1.0, epsilon = 1e-5);
    }
}

fn transition(i: usize) -> Transition {
    let (n_step_return, discount) = (i as f32, 0.0);
    Transition { observation: vec![], action: vec![], n_step_return, next_observation: vec![], discount }
}

#[test]
fn transitions_are_drawn_in_proportion_to_a_power_of_their_priorities() {
    let args = args(&["--buffer-size=4", "--prioritized-replay-alpha=0.5"]);
    let mut buffer = ReplayBuffer::default();
    for i in 0..6 {
        buffer.store(transition(i), &args);
    }
    // The two oldest are gone; without losses all are alike.
    let kept: Vec<f32> = buffer.transitions.iter().map(|t| t.n_step_return).collect();
    assert_eq!(kept, [5.0, 4.0, 3.0, 2.0]);
    assert_eq!(buffer.sample(&[0.5; 4]), (vec![0, 1, 2, 3], vec![1.0; 4]));

    buffer.update_priorities(&[0, 2, 3, 1], &[4.0, 1.0, 9.0, 16.0], &args);
    // ℓ^α = 2, 4, 1, 3, of 10: each row's share of ten equal parts, whatever the uniforms.
    for uniforms in [[0.0; 10], [0.999; 10]] {
        let (rows, weights) = buffer.sample(&uniforms);
        assert_eq!(rows, [0, 0, 1, 1, 1, 1, 2, 3, 3, 3]);
        // w = 1 / (N P): 10 / (4 · 2) …
        for (row, weight) in rows.into_iter().zip(weights) {
            assert_abs_diff_eq!(weight, [1.25, 0.625, 2.5, 10.0 / 12.0][row], epsilon = 1e-6);
        }
    }
    // A new one is as likely as the likeliest so far, even if that is gone or has changed.
    buffer.update_priorities(&[1], &[1.0], &args);
    buffer.store(transition(6), &args);
    assert_eq!(buffer.powers, [4.0, 2.0, 1.0, 1.0]);
    // Nothing disappears.
    buffer.update_priorities(&[0], &[0.0], &args);
    assert!(buffer.powers[0] > 0.0);
}

#[test]
fn what_is_gathered_is_what_happened() {
    let space = Space::bounded(&[-2.0, -1.0], &[1.0, 1.5]);
    let (mut envs, log) = scripted(1, View::Vector, space, SCRIPT);
    let d4pg = learner(&["--n-step=3", "--gamma=0.5", "--num-steps=7", "--exploration-noise=0.5"]);
    let (mut recent, mut rng, mut gathered) = (Recent::new(), rng(1, 0), Vec::new());
    for _ in 0..3 {
        gathered.extend(d4pg.gather(&mut envs, &mut recent, &mut rng).unwrap().0);
    }
    let happened = log.of(0);
    assert_eq!(happened.len(), 21);
    // A round's end completes nothing: what waits is no further than n − 1 from the end.
    assert!(happened.len() - gathered.len() < 3, "{}", gathered.len());
    let mut lengths = [0; 4];
    for (t, transition) in gathered.iter().enumerate() {
        // The window: three steps, or up to the episode's end
        let window: Vec<_> =
            happened[t..].iter().take(3).take_while(|s| s.episode == happened[t].episode).collect();
        let last = window[window.len() - 1];
        assert_eq!(transition.observation, happened[t].observation);
        assert_eq!(transition.action, happened[t].action);
        assert_eq!(transition.next_observation, last.next_observation);
        let n_step_return = window.iter().rev().fold(0.0, |sum, step| step.reward + 0.5 * sum);
        assert_eq!(transition.n_step_return, n_step_return);
        let discount = if last.terminated { 0.0 } else { 0.5_f32.powi(window.len() as i32) };
        assert_eq!(transition.discount, discount);
        lengths[window.len()] += 1;
    }
    assert!(lengths[1] > 3 && lengths[2] > 2 && lengths[3] > 2, "{lengths:?}");
    assert!(gathered.iter().filter(|t| t.discount == 0.0).count() > 3);
}

#[test]
fn noise_is_in_units_of_the_range_and_leaves_no_bound() {
    let d4pg = learner(&["--exploration-noise=0.2"]);
    let observation = [0.5, -1.0, 0.2];
    let mean = d4pg.act_greedily(&observation).unwrap();
    let act =
        |epsilon: [f32; 2]| d4pg.act(&observation, &Tensor::new(&epsilon, &Device::Cpu).unwrap()).unwrap();
    assert_abs_diff_eq!(act([0.0, 0.0])[..], mean[..], epsilon = 1e-6);
    let expected = [mean[0] + 1.5 * 0.2 * 0.5, mean[1] - 1.25 * 0.2];
    assert_abs_diff_eq!(act([0.5, -1.0])[..], expected[..], epsilon = 1e-6);
    assert_eq!(act([99.0, -99.0]), [1.0, -1.0]);
    assert_eq!(act([-99.0, 99.0]), [-2.0, 1.5]);
    // Several observations at once, as an evaluation has them
    let both = d4pg.act_greedily(&[observation, [1.0, 0.0, -1.0]].concat()).unwrap();
    assert_eq!((both.len(), &both[..2]), (4, &mean[..]));
}

#[test]
fn online_and_target_networks_begin_alike_and_share_nothing() {
    let d4pg = learner(&[]);
    for network in [&d4pg.actor, &d4pg.critic] {
        let values = network.parameters.values().unwrap();
        assert_eq!(values, network.target_parameters.values().unwrap());
        network.parameters.set_values(&vec![0.0; values.len()]).unwrap();
        assert_eq!(values, network.target_parameters.values().unwrap());
    }
    let (actor, critic) = (learner(&[]).actor.parameters, learner(&[]).critic.parameters);
    assert_ne!(actor.values().unwrap()[..32], critic.values().unwrap()[..32]);
}

/// A buffer that is full before the end, two actors, and coefficients that are not the defaults.
#[test]
fn pinned_run() {
    let args = [
        "--total-timesteps=900",
        "--workers=3",
        "--num-steps=3",
        "--batch-size=16",
        "--buffer-size=400",
        "--n-step=3",
        "--n-atoms=21",
        "--v-min=-700",
        "--v-max=-10",
        "--gamma=0.97",
        "--tau=0.1",
        "--prioritized-replay-alpha=0.9",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "pendulum", &args, train);
}

/// Transitions are drawn with replacement, so that a batch may be larger than the buffer.
#[test]
fn pinned_run_with_a_buffer_smaller_than_a_batch() {
    let args = ["--total-timesteps=400", "--workers=2", "--buffer-size=20", "--eval-episodes=1"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "small_buffer", &args, train);
}
