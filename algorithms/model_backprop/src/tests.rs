//! The policy's gradient through the model against PyTorch's and against finite differences, the model's
//! fit, the data against what happened, and a run against its pin.

use super::*;
use approx::assert_relative_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded::values, scripted};

fn args(flags: &[&str]) -> Args {
    let argv = ["model_backprop"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

fn tensor(values: &[f32], columns: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const ACTOR: Layers = &[("hidden1", &["actor/fc1"]), ("hidden2", &["actor/fc2"]), ("output", &["actor/fc3"])];
const DYNAMICS: Layers = &[
    ("dynamics.hidden1", &["model/fc1"]),
    ("dynamics.hidden2", &["model/fc2"]),
    ("dynamics.output", &["model/fc3"]),
];
const REWARD: Layers = &[
    ("reward.hidden1", &["reward/fc1"]),
    ("reward.hidden2", &["reward/fc2"]),
    ("reward.output", &["reward/fc3"]),
];

/// The learner with the recording's sizes, bounds, hyper-parameters and parameters. Its model does not
/// normalise before it is fitted, as the recording's does not.
fn recorded(recording: &Recording) -> ModelBackprop {
    let (low, high) = (recording.numbers("low"), recording.numbers("high"));
    let middle: Vec<f32> = low.iter().zip(&high).map(|(l, h)| ((l + h) / 2.0) as f32).collect();
    let half: Vec<f32> = low.iter().zip(&high).map(|(l, h)| ((h - l) / 2.0) as f32).collect();
    let args = args(&[
        "--hidden-size=32",
        "--max-grad-norm=1e9",
        &format!("--gamma={}", recording.number("gamma")),
        &format!("--horizon={}", recording.number("horizon")),
        &format!("--learning-rate={}", recording.number("actor_lr")),
    ]);
    let learner = ModelBackprop::new(3, (&middle, &half), &args, &mut rng(1, 0)).unwrap();
    recording.set(&learner.actor.parameters, ACTOR);
    let layers = if recording.has("parameters/reward/fc1.weight") {
        [DYNAMICS, REWARD].concat()
    } else {
        // The reward's network has no recorded parameters and is not used.
        let with_own = values(&learner.model_parameters).len();
        assert_eq!(with_own, 12);
        DYNAMICS.to_vec()
    };
    set(&learner.model_parameters, recording, &layers);
    learner
}

/// Sets those parameters that are in `layers`.
fn set(parameters: &VarMap, recording: &Recording, layers: Layers) {
    for (name, var) in parameters.named_vars() {
        let (layer, kind) = name.rsplit_once('.').unwrap();
        if let Some((_, from)) = layers.iter().find(|(to, _)| *to == layer) {
            var.set(&recording.tensor(&format!("parameters/{}.{kind}", from[0]))).unwrap();
        }
    }
}

/// −|s|² − 0.1 |a|², the reward of the recording without a learned one.
fn known_reward(states: &Tensor, actions: &Tensor) -> Tensor {
    let square = |x: &Tensor| x.sqr().unwrap().sum_keepdim(1).unwrap();
    (square(states) + (square(actions) * 0.1).unwrap()).unwrap().neg().unwrap()
}

/// One update and ten, with the reward that the recording has.
fn check(name: &str, learned_reward: bool) {
    let mut recording = Recording::open(name);
    let mut learner = recorded(&recording);
    let model = learner.model.held_constant();
    let step = |s: &Tensor, a: &Tensor| {
        let (next_states, rewards) = model.step(s, a)?;
        Ok((next_states, if learned_reward { rewards } else { known_reward(s, a) }))
    };
    let start = recording.tensor("batch/observations");
    let before = values(&learner.model_parameters);

    let (mut states, mut all_states, mut all_rewards) = (start.clone(), vec![floats(&start)], Vec::new());
    for _ in 0..learner.args.horizon {
        let (next_states, rewards) = step(&states, &learner.actor.forward(&states).unwrap()).unwrap();
        all_states.push(floats(&next_states));
        all_rewards.push(floats(&rewards));
        states = next_states;
    }
    recording.within("expected/states", all_states.concat(), 1e-4, 3e-6);
    recording.within("expected/rewards", all_rewards.concat(), 1e-4, 3e-6);

    let mut losses = Vec::new();
    for update in 0..10 {
        let returns = learner.imagine(&learner.actor, &start, learner.args.horizon, &step).unwrap();
        if update == 0 {
            recording.close("expected/returns", &returns);
        }
        let (loss, norm) = learner.update_actor(&returns).unwrap();
        losses.push(loss);
        if update == 0 {
            recording.close("expected/loss/actor", loss);
            let gradients = first_gradients(&learner.actor_optimizer);
            let squares = gradients.iter().flatten().map(|g| f64::from(*g).powi(2));
            assert_relative_eq!(norm, squares.sum::<f64>().sqrt(), max_relative = 1e-4);
            recording.gradients("expected/gradients", &learner.actor.parameters, ACTOR, gradients);
            let step = recording.number("actor_lr");
            recording.parameters("expected/parameters", &learner.actor.parameters, ACTOR, step);
        }
    }
    recording.losses("expected/losses_over_updates", &losses);
    assert!(values(&learner.model_parameters) == before, "the policy's update moved the model");
    recording.finish();
}

#[test]
fn recorded_update_with_a_known_reward() {
    check("model_backprop", false);
}

#[test]
fn recorded_update_with_a_learned_reward() {
    check("model_backprop__learned_reward", true);
}

/// For two observed numbers and one action 1 ± 2.
fn small(flags: &[&str]) -> ModelBackprop {
    let flags = [&["--hidden-size=16"], flags].concat();
    ModelBackprop::new(2, (&[1.0], &[2.0]), &args(&flags), &mut rng(3, 0)).unwrap()
}

/// Data of s' = s + (a, 10 s_0), r = s_1 − a, from states around (5, −100).
fn data() -> Data {
    let mut data = Data::default();
    let mut rng = rng(7, 0);
    for _ in 0..500 {
        let (x, y) = (5.0 + rng.random_range(-1.0..1.0_f32), -100.0 + rng.random_range(-30.0..30.0_f32));
        let a = rng.random_range(-1.0..3.0_f32);
        data.observations.extend([x, y]);
        data.actions.push(a);
        data.rewards.push(0.1 * (y + 100.0) - a);
        data.next_observations.extend([x + a, y + 10.0 * x]);
    }
    data
}

#[test]
fn the_model_sees_numbers_of_size_one_and_learns_what_happens() {
    let (mut learner, data) = (small(&["--learning-rate=3e-3"]), data());
    learner.fit_normalizers(&data).unwrap();
    let all = data.sample(20_000, &mut rng(1, 0), &Device::Cpu).unwrap();
    let inputs = Tensor::cat(&[&all.observations, &all.actions], 1).unwrap();
    let differences = (&all.next_observations - &all.observations).unwrap();
    for (normalizer, rows) in [(&learner.model.inputs, inputs), (&learner.model.differences, differences)] {
        let x = normalizer.normalize(&rows).unwrap();
        assert!(floats(&x.mean(0).unwrap()).iter().all(|m| m.abs() < 0.03));
        assert!(floats(&x.sqr().unwrap().mean(0).unwrap()).iter().all(|v| (v - 1.0).abs() < 0.03));
    }

    let actor = values(&learner.actor.parameters);
    let mut losses = Vec::new();
    for _ in 0..1500 {
        let batch = data.sample(64, &mut learner_rng(losses.len() as u64), &Device::Cpu).unwrap();
        losses.push(learner.update_model(&batch).unwrap());
    }
    assert!(losses[0][0] > 0.5 && losses[1499][0] < 5e-3, "{:?} to {:?}", losses[0], losses[1499]);
    assert!(losses[1499][1] < 2e-2, "{:?} to {:?}", losses[0], losses[1499]);
    assert!(values(&learner.actor.parameters) == actor, "the model's update moved the policy");
    // s' and r in the environment's own units.
    let (next_state, reward) = learner.model.step(&tensor(&[5.5, -90.0], 2), &tensor(&[2.0], 1)).unwrap();
    let found = [floats(&next_state), floats(&reward)].concat();
    for (found, expected, tolerance) in [(found[0], 7.5, 0.2), (found[1], -35.0, 1.0), (found[2], -1.0, 0.3)]
    {
        assert!((found - expected).abs() < tolerance, "{found} instead of {expected}");
    }
}

#[test]
fn a_column_that_never_changes_stays_finite() {
    let normalizer = Normalizer::fit(&tensor(&[1.0, 3.0, 1.0, 5.0], 2)).unwrap();
    assert_eq!(floats(&normalizer.normalize(&tensor(&[1.0, 5.0], 2)).unwrap()), [0.0, 1.0]);
}

#[test]
fn the_losses_are_means_over_the_batch_of_normalised_errors() {
    let (mut learner, data) = (small(&[]), data());
    learner.fit_normalizers(&data).unwrap();
    let batch = data.sample(50, &mut rng(2, 0), &Device::Cpu).unwrap();
    let (next_states, rewards) = learner.model.step(&batch.observations, &batch.actions).unwrap();
    let errors = ((next_states - &batch.next_observations).unwrap())
        .broadcast_div(&learner.model.differences.std)
        .unwrap();
    let mean_square = |x: &Tensor| floats(x).iter().map(|x| x * x).sum::<f32>() / floats(x).len() as f32;
    let expected = [mean_square(&errors), mean_square(&(rewards - &batch.rewards).unwrap())];
    let found = learner.update_model(&batch).unwrap();
    assert_relative_eq!(found[0], expected[0], max_relative = 1e-3);
    assert_relative_eq!(found[1], expected[1], max_relative = 1e-3);
}

#[test]
fn the_gradient_is_that_of_the_whole_imagined_rollout() {
    // In a line s' = s + a, r = −s², which no action changes but by way of the states: central differences.
    let learner = small(&["--gamma=0.9"]);
    let world = |s: &Tensor, a: &Tensor| {
        let moved = s.broadcast_add(a)?;
        Ok((moved, s.sqr()?.sum_keepdim(1)?.neg()?))
    };
    let start = tensor(&[0.5, -1.0, 2.0, 0.3], 2);
    let total = || {
        let returns = learner.imagine(&learner.actor, &start, 4, &world).unwrap();
        floats(&returns).iter().map(|x| f64::from(*x)).sum::<f64>()
    };
    let returns = learner.imagine(&learner.actor, &start, 4, &world).unwrap();
    assert_eq!(returns.dims(), [2, 1]);
    let gradient = learner.actor.parameters.gradients(&returns.sum_all().unwrap()).unwrap();
    let before = learner.actor.parameters.values().unwrap();
    let largest = (0..before.len()).max_by(|&i, &j| gradient[i].abs().total_cmp(&gradient[j].abs())).unwrap();
    assert!(gradient[largest].abs() > 0.1, "{}", gradient[largest]);
    let at = |shift: f32| {
        let mut values = before.clone();
        values[largest] += shift;
        learner.actor.parameters.set_values(&values).unwrap();
        total()
    };
    let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
    assert_relative_eq!(f64::from(gradient[largest]), slope, max_relative = 2e-2);
}

#[test]
fn the_policy_climbs_and_its_step_is_clipped() {
    let world = |s: &Tensor, a: &Tensor| Ok((s.clone(), a.clone())); // pays the action itself
    let start = tensor(&[0.5, -1.0], 2);
    let mut learner = small(&["--max-grad-norm=1e-9"]);
    let before = learner.act_greedily(&[0.5, -1.0]).unwrap()[0];
    let returns = learner.imagine(&learner.actor, &start, 3, &world).unwrap();
    let (loss, norm) = learner.update_actor(&returns).unwrap();
    assert_relative_eq!(loss, -before * (1.0 + 0.99 + 0.99 * 0.99), max_relative = 1e-5);
    let clipped = first_gradients(&learner.actor_optimizer);
    let clipped = clipped.iter().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 1e-3 && clipped < 2e-9, "{norm} to {clipped}");
    assert!(learner.act_greedily(&[0.5, -1.0]).unwrap()[0] > before);
}

#[test]
fn actions_are_the_policys_with_noise_within_their_bounds() {
    let learner = small(&["--exploration-noise=0.2"]);
    let observations = [0.3, -0.7].repeat(20_000);
    let mean = learner.act_greedily(&observations).unwrap()[0];
    let actions = learner.act(&observations, &mut rng(4, 0)).unwrap();
    assert!(actions.iter().all(|action| (-1.0..=3.0).contains(action)));
    let spread = actions.iter().map(|action| f64::from(action - mean).powi(2)).sum::<f64>() / 20_000.0;
    assert!((spread.sqrt() - 0.4).abs() < 0.02, "{}", spread.sqrt()); // σ_ε c
    let wide = small(&["--exploration-noise=50"]);
    let actions = wide.act(&observations, &mut rng(4, 0)).unwrap();
    assert!(actions.contains(&-1.0) && actions.contains(&3.0));
    // b + c tanh h: the bounds are reached.
    let far = wide.actor.forward(&tensor(&[1e6, 0.0, -1e6, 0.0], 2)).unwrap();
    assert!(floats(&far).iter().all(|action| (-1.0..=3.0).contains(action)));
}

#[test]
fn the_data_hold_what_happened() {
    let (mut envs, log) = scripted(1, View::Vector, Space::bounded(&[-1.0], &[3.0]), SCRIPT);
    let learner =
        ModelBackprop::new(3, (&[1.0], &[2.0]), &args(&["--hidden-size=8"]), &mut rng(1, 0)).unwrap();
    let (mut data, mut rng) = (Data::default(), learner_rng(1));
    for _ in 0..20 {
        let observation = envs.observations().to_vec();
        let action = learner.act(&observation, &mut rng).unwrap();
        envs.step(&action).unwrap();
        data.store(&observation, &action, &envs);
    }
    let mut kinds = [false; 3]; // a termination, a truncation, both
    for (row, t) in log.transitions().iter().enumerate() {
        assert_eq!(data.observations[3 * row..3 * (row + 1)], t.observation, "{t:?}");
        assert_eq!(data.actions[row..row + 1], t.action, "{t:?}");
        assert_eq!(data.rewards[row], t.reward, "{t:?}");
        assert_eq!(data.next_observations[3 * row..3 * (row + 1)], t.next_observation, "{t:?}");
        kinds[0] |= t.terminated && !t.truncated;
        kinds[1] |= t.truncated && !t.terminated;
        kinds[2] |= t.terminated && t.truncated;
    }
    assert_eq!((data.rewards.len(), kinds), (20, [true; 3]));

    // A sample is whole transitions, each about as often.
    let batch = data.sample(2000, &mut rng, &Device::Cpu).unwrap();
    let mut seen = [0; 20];
    let column = |tensor: &Tensor, i: usize| floats(&tensor.get(i).unwrap());
    for i in 0..2000 {
        let action = column(&batch.actions, i);
        let row = data.actions.iter().position(|a| *a == action[0]).unwrap();
        seen[row] += 1;
        assert_eq!(column(&batch.observations, i), data.observations[3 * row..3 * (row + 1)]);
        assert_eq!(column(&batch.rewards, i), data.rewards[row..row + 1]);
        assert_eq!(column(&batch.next_observations, i), data.next_observations[3 * row..3 * (row + 1)]);
    }
    assert!(seen.iter().all(|count| (60..140).contains(count)), "{seen:?}");
}

/// Random actions, then four rounds of learning.
#[test]
fn pinned_run() {
    let flags = [
        "--total-timesteps=250",
        "--learning-starts=100",
        "--train-frequency=50",
        "--model-updates=10",
        "--policy-updates=3",
        "--horizon=6",
        "--batch-size=16",
        "--hidden-size=16",
        "--gamma=0.9",
        "--learning-rate=3e-3",
        "--max-grad-norm=0.5",
        "--exploration-noise=0.3",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}
