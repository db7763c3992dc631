//! The step of the policy against PyTorch's, Fisher-vector products against finite differences, the rollout
//! against what happened, and runs against their pins.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::{Space, rng};
use common::nn::Init;
use regression::{Layers, Recording, SCRIPT, View, scripted};

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["npg"].iter().chain(flags).map(Into::into)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const LAYERS: Layers =
    &[("actor.hidden1", &["actor/0"]), ("actor.hidden2", &["actor/1"]), ("actor.output", &["actor/2"])];

/// Numbers, one parameter of `map` after the other, by parameter.
fn split(map: &VarMap, mut values: &[f32]) -> Vec<Vec<f32>> {
    let mut parts = Vec::new();
    for parameter in map.all_vars() {
        let (own, others) = values.split_at(parameter.elem_count());
        parts.push(own.to_vec());
        values = others;
    }
    parts
}

/// A learner with the recorded actor, and the recorded batch. The actor's parameters are in a map of their
/// own as well, for there is no critic in the recording.
fn recorded(recording: &mut Recording) -> (Npg, VarMap, Batch) {
    let number = |flag: &str, name: &str| format!("--{flag}={}", recording.number(name));
    let flags = [
        "--num-envs=4".to_string(),
        number("gamma", "gamma"),
        number("gae-lambda", "lambda"),
        number("cg-damping", "damping"),
        number("cg-max-steps", "cg_iterations"),
        number("target-kl", "delta"),
    ];
    let npg = Npg::new(4, 64, 2, &args(&flags.each_ref().map(String::as_str))).unwrap();
    let actor = VarMap::new(0);
    let vb = VarBuilder::from_varmap(&actor, DType::F32, &Device::Cpu);
    Mlp::new(4, 64, 2, 1.0, vb.pp("actor")).unwrap();
    recording.set(&actor, LAYERS);
    copy(&actor, &npg.theta.parameters);

    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
        rewards: recording.floats("batch/rewards"),
        next_observations: recording.floats("batch/next_observations"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
    };
    // The recorded values are not those of a recorded critic.
    let (values, next_values) = (recording.floats("batch/values"), recording.floats("batch/next_values"));
    recording.close("expected/advantages", rollout.advantages(&values, &next_values, &npg.args));
    let mut batch = npg.batch(&rollout).unwrap();
    batch.advantages = recording.column("expected/normalised_advantages").flatten_all().unwrap();
    (npg, actor, batch)
}

/// The values of all parameters of `source`, into those of `target` that are called the same.
fn copy(source: &VarMap, target: &VarMap) {
    let source = source.named_vars();
    for (name, parameter) in target.named_vars() {
        if let Some((_, value)) = source.iter().find(|(other, _)| *other == name) {
            parameter.set(&value.as_detached_tensor()).unwrap();
        }
    }
}

#[test]
fn recorded_update() {
    let mut recording = Recording::open("npg");
    let (npg, actor, batch) = recorded(&mut recording);
    let len = actor.num_parameters();

    // F v: v is recorded weight before bias, here it is bias before weight.
    let recorded_vector = recording.floats("batch/vector");
    let reorder = |values: &[f32]| {
        let (mut reordered, mut rest) = (Vec::new(), values);
        for (inputs, outputs) in [(4, 64), (64, 64), (64, 2)] {
            let (weight, others) = rest.split_at(inputs * outputs);
            let (bias, others) = others.split_at(outputs);
            reordered.extend([bias, weight].concat());
            rest = others;
        }
        reordered
    };
    let mut v = reorder(&recorded_vector);
    v.resize(npg.theta.parameters.num_parameters(), 0.0);
    let product =
        plus(&npg.fisher_vector_product(&batch.observations, &v).unwrap(), -npg.args.cg_damping, &v);
    let expected = reorder(&recording.floats("expected/fisher_vector_product"));
    recording.computed("the Fisher-vector product", &product[..len], expected, 1e-4, 1e-6);
    assert!(product[len..].iter().all(|&of_critic| of_critic == 0.0));

    // g and x
    let logits = npg.theta.actor.forward(&batch.observations).unwrap();
    let log_probs = Categorical::new(&logits).unwrap().log_prob(&batch.actions).unwrap();
    let surrogate = (log_probs * &batch.advantages).unwrap().mean_all().unwrap();
    let g = npg.theta.parameters.gradients(&surrogate).unwrap();
    recording.gradients("expected/gradients", &actor, LAYERS, split(&actor, &g));
    let x = npg.natural_gradient(&batch.observations, &g).unwrap();
    recording.gradients("expected/natural_gradient", &actor, LAYERS, split(&actor, &x));
    let quadratic = dot(&x, &npg.fisher_vector_product(&batch.observations, &x).unwrap());
    recording.close("expected/quadratic_form", quadratic);
    recording.close("expected/step_size", (2.0 * npg.args.target_kl / quadratic).sqrt());

    // The step, and nothing but the actor's.
    let critic = values_of(&npg, "critic");
    let losses = npg.update_policy(&batch).unwrap();
    recording.close("expected/surrogate_after", -losses.policy_loss);
    recording.close("expected/kl_after", losses.kl);
    copy(&npg.theta.parameters, &actor);
    recording.parameters_close("expected/parameters", &actor, LAYERS, 2e-5);
    assert_eq!(values_of(&npg, "critic"), critic);
    let log_policy = log_softmax(&npg.theta.actor.forward(&batch.observations).unwrap()).unwrap();
    let entropy = -floats(&log_policy).iter().map(|l| l * l.exp()).sum::<f32>() / 40.0;
    assert_relative_eq!(losses.entropy, entropy, max_relative = 1e-4);
    recording.finish();
}

/// Where no direction is better than another, there is no step.
#[test]
fn without_advantages_nothing_moves() {
    let mut recording = Recording::open("npg");
    let (npg, _, mut batch) = recorded(&mut recording);
    batch.advantages = batch.advantages.zeros_like().unwrap();
    let before = npg.theta.parameters.values().unwrap();
    assert_eq!(npg.update_policy(&batch).unwrap().kl, 0.0);
    assert_eq!(npg.theta.parameters.values().unwrap(), before);
    recording.finish();
}

/// The parameters whose names begin with `prefix`.
fn values_of(npg: &Npg, prefix: &str) -> Vec<f32> {
    let named = npg.theta.parameters.named_vars().into_iter();
    named.filter(|(name, _)| name.starts_with(prefix)).flat_map(|(_, parameter)| floats(&parameter)).collect()
}

/// A learner for three observations and three actions, whose parameters are all random.
fn learner(flags: &[&str]) -> Npg {
    let npg = Npg::new(3, 8, 3, &args(&[&["--num-envs=3"], flags].concat())).unwrap();
    let parameters = normal(npg.theta.parameters.num_parameters(), 3);
    npg.theta.parameters.set_values(&parameters.iter().map(|x| 0.1 + 0.5 * x).collect::<Vec<_>>()).unwrap();
    npg
}

/// `len` numbers from a normal distribution.
fn normal(len: usize, seed: u64) -> Vec<f32> {
    let init = Init::Randn { mean: 0.0, stdev: 1.0 };
    init.tensor(len, &mut rng(seed, 0), &Device::Cpu).unwrap().to_vec1().unwrap()
}

/// F v = d/dε ∇KL(π_θ ‖ π_{θ + ε v}) at ε = 0
#[test]
fn fisher_vector_products_are_the_change_of_the_gradient_of_the_kl_divergence() {
    let npg = learner(&["--cg-damping=0.3"]);
    let states = npg.tensor(&normal(3 * 40, 1)).unwrap();
    let theta = npg.theta.parameters.values().unwrap();
    let mut v = normal(theta.len(), 2);
    for (value, name) in v.iter_mut().zip(names(&npg)) {
        *value *= if name.starts_with("critic") { 0.0 } else { 1.0 };
    }
    let log_policy = || log_softmax(&npg.theta.actor.forward(&states).unwrap()).unwrap();
    let old = log_policy().detach();
    let epsilon = 2e-3;
    let [ahead, behind] = [epsilon, -epsilon].map(|epsilon| {
        npg.theta.parameters.set_values(&plus(&theta, epsilon, &v)).unwrap();
        let kl = (old.exp().unwrap() * (&old - log_policy()).unwrap()).unwrap();
        npg.theta.parameters.gradients(&(kl.sum_all().unwrap() / 40.0).unwrap()).unwrap()
    });
    npg.theta.parameters.set_values(&theta).unwrap();
    let product = npg.fisher_vector_product(&states, &v).unwrap();
    let size = dot(&product, &product).sqrt() / (product.len() as f64).sqrt();
    for i in 0..v.len() {
        let expected = f64::from(ahead[i] - behind[i]) / (2.0 * epsilon) + 0.3 * f64::from(v[i]);
        assert_abs_diff_eq!(f64::from(product[i]), expected, epsilon = 0.01 * size);
    }
    assert!(size > 0.1);
}

/// The name of each number of θ.
fn names(npg: &Npg) -> Vec<String> {
    let named = npg.theta.parameters.named_vars().into_iter();
    named.flat_map(|(name, parameter)| vec![name; parameter.elem_count()]).collect()
}

#[test]
fn a_softmax_is_its_formula() {
    let npg = learner(&[]);
    let (n, state) = (5000, [0.3, -1.0, 2.0]);
    let logits = npg.theta.actor.forward(&npg.tensor(&state).unwrap()).unwrap();
    let total: f32 = floats(&logits).iter().map(|z| z.exp()).sum();
    let log_policy = floats(&log_softmax(&logits).unwrap());
    let drawn = npg.act(&state.repeat(n), &mut rng(1, 0)).unwrap();
    for (action, logit) in floats(&logits).iter().enumerate() {
        assert_abs_diff_eq!(log_policy[action], (logit.exp() / total).ln(), epsilon = 1e-5);
        let share = drawn.iter().filter(|&&a| a == action as u32).count() as f32 / n as f32;
        assert_abs_diff_eq!(share, logit.exp() / total, epsilon = 0.03);
    }
    let best = (0..3).max_by(|&a, &b| log_policy[a].total_cmp(&log_policy[b])).unwrap();
    assert_eq!(npg.act_greedily(&state).unwrap(), [best as u32]);
}

#[test]
fn the_rollout_holds_what_happened() {
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let npg = learner(&[]);
    let (mut rollout, mut rng) = (Rollout::default(), rng(1, 0));
    for _ in 0..20 {
        let observations = envs.observations().to_vec();
        let actions = npg.act(&observations, &mut rng).unwrap();
        envs.step(&actions).unwrap();
        rollout.store(&observations, &actions, &envs);
    }
    let happened = log.transitions();
    assert_eq!(rollout.rewards.len(), happened.len());
    assert!(happened.iter().any(|t| t.terminated && !t.truncated));
    assert!(happened.iter().any(|t| !t.terminated && t.truncated));
    assert!(happened.iter().any(|t| t.terminated && t.truncated));
    for (i, t) in happened.iter().enumerate() {
        assert_eq!(rollout.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
        assert_eq!([rollout.actions[i] as f32], t.action[..], "{t:?}");
        assert_eq!(rollout.rewards[i], t.reward, "{t:?}");
        assert_eq!(rollout.next_observations[3 * i..3 * (i + 1)], t.next_observation, "{t:?}");
        assert_eq!((rollout.terminated[i], rollout.truncated[i]), (t.terminated, t.truncated), "{t:?}");
    }
    assert!(rollout.actions.iter().any(|action| *action != rollout.actions[0]));

    // What is learned from it, with the critic's own values.
    let value = |s: &[f32]| floats(&npg.theta.critic.forward(&npg.tensor(s).unwrap()).unwrap());
    let values = value(&rollout.observations);
    let expected = rollout.advantages(&values, &value(&rollout.next_observations), &npg.args);
    let batch = npg.batch(&rollout).unwrap();
    assert_eq!(floats(&batch.observations), rollout.observations);
    assert_eq!(batch.actions.to_vec1::<u32>().unwrap(), rollout.actions);
    let returns = floats(&batch.returns);
    for i in 0..expected.len() {
        assert_abs_diff_eq!(returns[i], expected[i] + values[i], epsilon = 1e-5);
    }
    let moments = |x: &[f32]| {
        let mean = x.iter().sum::<f32>() / 60.0;
        (mean, (x.iter().map(|a| (a - mean).powi(2)).sum::<f32>() / 59.0).sqrt())
    };
    let (mean, std) = moments(&expected);
    for (found, expected) in floats(&batch.advantages).iter().zip(&expected) {
        assert_abs_diff_eq!(*found, (expected - mean) / std, epsilon = 1e-4);
    }
    let unexplained = f64::from(std / moments(&returns).1).powi(2);
    assert_relative_eq!(batch.explained_variance, 1.0 - unexplained, max_relative = 1e-3, epsilon = 1e-4);
}

#[test]
fn advantages_with_lambda_1_are_returns_minus_values() {
    // One environment: a truncation after two steps, a termination after one more, one step of a third.
    let rollout = Rollout {
        rewards: vec![1.0, 2.0, 4.0, 8.0],
        terminated: vec![false, false, true, false],
        truncated: vec![false, true, false, false],
        ..Rollout::default()
    };
    let (values, next_values) = ([0.1, 0.2, 0.3, 0.4], [0.2, 10.0, 20.0, 30.0]);
    let args = args(&["--num-envs=1", "--gamma=0.5", "--gae-lambda=1"]);
    let advantages = rollout.advantages(&values, &next_values, &args);
    let expected =
        [1.0 + 0.5 * (2.0 + 0.5 * 10.0) - 0.1, 2.0 + 0.5 * 10.0 - 0.2, 4.0 - 0.3, 8.0 + 0.5 * 30.0 - 0.4];
    for (advantage, expected) in advantages.iter().zip(expected) {
        assert_abs_diff_eq!(*advantage, expected, epsilon = 1e-5);
    }
}

#[test]
fn the_critic_follows_the_returns_and_the_policy_does_not_move() {
    let mut npg = learner(&["--learning-rate=0.01"]);
    let observations = npg.tensor(&normal(3 * 20, 1)).unwrap();
    let returns = Tensor::new(normal(20, 2), &Device::Cpu).unwrap();
    let values = floats(&npg.theta.critic.forward(&observations).unwrap());
    let squares = values.iter().zip(floats(&returns)).map(|(v, r)| (v - r).powi(2)).sum::<f32>();
    let actor = values_of(&npg, "actor");
    let (actions, advantages) = (returns.clone(), returns.clone());
    let batch = Batch { observations, actions, advantages, returns, explained_variance: 0.0 };
    let losses: Vec<f32> = (0..200).map(|_| npg.update_critic(&batch).unwrap()).collect();
    assert_relative_eq!(losses[0], squares / 20.0, max_relative = 1e-4);
    assert!(losses[199] < 0.3 * losses[0], "{losses:?}");
    assert_eq!(values_of(&npg, "actor"), actor);
}

/// Everything that the defaults do, over three updates.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=1500", "--num-steps=128", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// None of the defaults.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Acrobot-v1",
        "--num-envs=3",
        "--num-steps=100",
        "--total-timesteps=1700",
        "--gamma=0.9",
        "--gae-lambda=0.8",
        "--target-kl=0.05",
        "--cg-max-steps=4",
        "--cg-damping=0.02",
        "--learning-rate=0.005",
        "--n-critic-updates=5",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
