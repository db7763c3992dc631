//! The update against PyTorch's, in the episodic and the continuing form, tiles, what a step shows, and
//! runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["actor_critic"].iter().chain(flags).map(Into::into)).unwrap()
}

fn learner(observation_dim: usize, num_actions: usize, flags: &[&str]) -> ActorCritic {
    let space = Space::uniform(observation_dim, -1.0, 1.0);
    ActorCritic::new(&space, num_actions, &args(flags), &mut learner_rng(1)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const ACTOR: Layers = &[("hidden", &["actor/0"]), ("output", &["actor/1"])];
const CRITIC: Layers = &[("hidden", &["critic/0"]), ("output", &["critic/1"])];

#[test]
fn recorded_update_of_nine_steps() {
    let mut recording = Recording::open("actor_critic");
    let flags = ["gamma", "policy-lr", "value-lr"]
        .into_iter()
        .zip(["gamma", "learning_rate_actor", "learning_rate_critic"])
        .map(|(flag, name)| format!("--{flag}={}", recording.number(name)));
    let flags: Vec<String> = flags.collect();
    let own = ["--hidden-size=16", "--discount-gradient"];
    let make = |optimizer: &str| {
        let flags: Vec<&str> = own.into_iter().chain([optimizer]).chain(flags.iter().map(|f| &**f)).collect();
        let learner = learner(4, 2, &flags);
        recording.set(&learner.actor.parameters, ACTOR);
        recording.set(&learner.critic.parameters, CRITIC);
        learner
    };
    // Adam keeps the gradients of its first step, which are those of a plain one.
    let (mut learner, mut with_adam) = (make("--optimizer=sgd"), make("--optimizer=adam"));
    let [observations, next_observations, rewards] = ["observations", "next_observations", "rewards"]
        .map(|name| recording.floats(&format!("batch/{name}")));
    let actions = recording.integers("batch/actions");
    let [terminated, truncated] =
        ["terminated", "truncated"].map(|name| recording.flags(&format!("batch/{name}")));
    let (mut deltas, mut state_discounts) = (Vec::new(), Vec::new());
    for t in 0..9 {
        let step = Transition {
            observation: observations[4 * t..4 * (t + 1)].to_vec(),
            action: actions[t],
            reward: rewards[t],
            next_observation: next_observations[4 * t..4 * (t + 1)].to_vec(),
            terminated: terminated[t],
            truncated: truncated[t],
        };
        state_discounts.push(learner.state_discount);
        let losses = learner.update(&step).unwrap();
        deltas.push(losses.td_error);
        if t == 0 {
            recording.close("expected/loss/policy", losses.policy_loss);
            recording.close("expected/loss/value", losses.value_loss);
            with_adam.update(&step).unwrap();
            for (network, layers) in [(&with_adam.actor, ACTOR), (&with_adam.critic, CRITIC)] {
                let gradients = first_gradients(&network.adam);
                recording.gradients("expected/gradients", &network.parameters, layers, gradients);
            }
        }
    }
    recording.close("expected/deltas", deltas);
    recording.close("expected/state_discounts", state_discounts);
    recording.parameters_close("expected/parameters", &learner.actor.parameters, ACTOR, 1e-6);
    recording.parameters_close("expected/parameters", &learner.critic.parameters, CRITIC, 2e-6);
    recording.finish();
    assert_eq!(learner.average_reward, 0.0);
}

/// Weights of a learner that is linear in one grid of one tile: two tiles and the constant.
fn tiled(flags: &[&str]) -> ActorCritic {
    let own = ["--tilings=1", "--tiles=1", "--optimizer=sgd"];
    learner(1, 2, &[&own, flags].concat())
}

fn weights(network: &Network) -> Vec<f32> {
    floats(&network.parameters.all_vars()[0])
}

/// The continuing form by hand: δ = r − r̄ + v(s') − v(s), nothing discounted.
#[test]
fn the_continuing_form_is_the_books() {
    // The flags of the episodic form make no difference.
    let flags = [
        "--average-reward",
        "--average-reward-lr=0.1",
        "--policy-lr=0.2",
        "--value-lr=0.3",
        "--gamma=0.5",
        "--discount-gradient",
    ];
    let mut learner = tiled(&flags);
    // One tile is on everywhere below 1: features are (1, 0, 1).
    let step = |action, reward, truncated| Transition {
        observation: vec![-0.5],
        action,
        reward,
        next_observation: vec![0.5],
        terminated: false,
        truncated,
    };
    let (mut average, mut w, mut h) = (0.0_f64, 0.0_f64, [0.0_f64, 0.0]); // v = 2 w, preferences 2 h
    for (action, reward, truncated) in [(0, 1.0, false), (1, -2.0, true), (1, 0.5, false)] {
        let losses = learner.update(&step(action, reward, truncated)).unwrap();
        let delta = f64::from(reward) - average + 2.0 * w - 2.0 * w;
        assert_abs_diff_eq!(f64::from(losses.td_error), delta, epsilon = 1e-5);
        average += 0.1 * delta;
        w += 0.3 * delta;
        let left = 1.0 / (1.0 + (2.0 * (h[1] - h[0])).exp());
        let of_left = if action == 0 { 1.0 - left } else { -left };
        h = [h[0] + 0.2 * delta * of_left, h[1] - 0.2 * delta * of_left];
        assert_abs_diff_eq!(losses.value_loss, (0.5 * delta * delta) as f32, epsilon = 1e-5);
        let entropy = -(left * left.ln() + (1.0 - left) * (1.0 - left).ln());
        assert_abs_diff_eq!(f64::from(losses.entropy), entropy, epsilon = 1e-5);
    }
    assert_abs_diff_eq!(learner.average_reward, average, epsilon = 1e-6);
    for (found, expected) in weights(&learner.critic).iter().zip([w, 0.0, w]) {
        assert_abs_diff_eq!(f64::from(*found), expected, epsilon = 1e-5);
    }
    for (found, expected) in weights(&learner.actor).iter().zip([h[0], 0.0, h[0], h[1], 0.0, h[1]]) {
        assert_abs_diff_eq!(f64::from(*found), expected, epsilon = 1e-5);
    }
    assert_eq!(learner.state_discount, 1.0);
}

#[test]
fn tiles_are_one_of_each_grid_and_the_constant() {
    let space = Space::bounded(&[-1.0, 0.0], &[1.0, 5.0]);
    let features = Features::new(&space, &args(&["--tilings=4", "--tiles=3"])).unwrap();
    assert_eq!(features.len(), 4 * 4 * 4 + 1);
    let observations = [[-1.0, 0.0], [-0.2, 1.8], [-0.51, 0.0], [-0.49, 0.42], [1.0, 5.0], [-7.0, 9.0]];
    let x = features.of(&observations.concat(), &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
    let on = |row: usize| -> Vec<usize> { (0..65).filter(|&i| x[row][i] != 0.0).collect() };
    for row in 0..observations.len() {
        assert!(on(row)[..4].iter().enumerate().all(|(grid, i)| i / 16 == grid) && on(row)[4..] == [64]);
        assert_eq!(x[row].iter().sum::<f32>(), 5.0);
    }
    // The first grid is not shifted; the second by a quarter of a tile (2/3 by 5/3) along the first
    // dimension, by three quarters along the second.
    assert_eq!([on(0)[0], on(1)[0]], [0, 4 + 1]);
    assert_eq!([on(0)[1], on(2)[1], on(3)[1]], [16, 16, 16 + 4 + 1]);
    // Beyond the space are the tiles of its edge.
    assert_eq!(on(5)[0], 3);

    let raw = Features::new(&space, &args(&[])).unwrap();
    assert_eq!(floats(&raw.of(&[0.5, 2.0], &Device::Cpu).unwrap()), [0.5, 2.0]);
    assert_eq!(raw.len(), 2);
}

#[test]
fn a_transition_is_what_happened() {
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let learner = learner(3, 3, &[]);
    let mut rng = learner_rng(1);
    for _ in 0..20 {
        let observation = envs.observations().to_vec();
        let action = learner.act(&observation, &mut rng).unwrap();
        envs.step(&action).unwrap();
        let step = Transition::last(observation, action[0], &envs);
        let happened = log.of(0).pop().unwrap();
        assert_eq!(step.observation, happened.observation);
        assert_eq!(step.action as f32, happened.action[0]);
        assert_eq!(step.reward, happened.reward);
        assert_eq!(step.next_observation, happened.next_observation);
        assert_eq!((step.terminated, step.truncated), (happened.terminated, happened.truncated));
    }
    let ends: Vec<_> = log.of(0).iter().map(|t| (t.terminated, t.truncated)).collect();
    assert!([(true, false), (false, true), (true, true)].iter().all(|end| ends.contains(end)));
    assert!((0..3).all(|action| log.of(0).iter().any(|t| t.action[0] == action as f32)));
}

#[test]
fn networks_are_born_apart_and_the_first_policy_is_almost_uniform() {
    let learner = learner(3, 3, &[]);
    let hidden = |network: &Network| recorded::values(&network.parameters)[1].clone();
    assert_ne!(hidden(&learner.actor), hidden(&learner.critic));
    let policy = learner.policy(&[0.5, -0.5, 1.0]).unwrap();
    assert!(floats(&policy.entropy().unwrap())[0] > 3.0_f32.ln() - 1e-3);
}

/// What the defaults do, with step sizes that fall.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=800", "--eval-episodes=3"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Plain steps of one size with the factor γᵗ.
#[test]
fn pinned_run_of_the_book() {
    let flags = [
        "--total-timesteps=800",
        "--optimizer=sgd",
        "--policy-lr=0.002",
        "--value-lr=0.01",
        "--anneal-lr=false",
        "--discount-gradient",
        "--gamma=0.95",
        "--eval-episodes=3",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "book", &flags, train);
}

/// The continuing form over tiles.
#[test]
fn pinned_run_of_the_continuing_form() {
    let flags = [
        "--env-id=SwingPendulum-v0-discrete",
        "--total-timesteps=800",
        "--tilings=4",
        "--tiles=6",
        "--average-reward",
        "--optimizer=sgd",
        "--policy-lr=0.01",
        "--value-lr=0.1",
        "--anneal-lr=false",
        "--eval-episodes=1",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "continuing", &flags, train);
}
