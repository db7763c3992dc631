//! The step of the policy against PyTorch's, Fisher-vector products against finite differences, the trust
//! region where steps fail, the rollout against what happened, and runs against their pins.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::rng;
use regression::{Layers, Recording, SCRIPT, View, scripted};

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["trpo"].iter().chain(flags).map(Into::into)).unwrap()
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

/// A learner with the recorded actor, and the recorded states, actions and normalised advantages. The actor's
/// parameters are in a map of their own as well, for there is no critic in the recording.
fn recorded(recording: &mut Recording, flags: &[&str]) -> (Trpo, VarMap, [Tensor; 3]) {
    let number = |flag: &str, name: &str| format!("--{flag}={}", recording.number(name));
    let recorded = [
        "--num-envs=4".to_string(),
        number("gamma", "gamma"),
        number("gae-lambda", "lambda"),
        number("cg-damping", "damping"),
        number("cg-max-steps", "cg_iterations"),
        number("target-kl", "delta"),
        number("line-search-shrinking-factor", "line_search_shrink"),
        number("line-search-max-iter", "line_search_steps"),
    ];
    let flags: Vec<&str> = recorded.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    let trpo = Trpo::new(&VecEnv::make("CartPole-v1", 4, 1).unwrap(), 64, &args(&flags)).unwrap();
    let actor = VarMap::new(0);
    let vb = VarBuilder::from_varmap(&actor, DType::F32, &Device::Cpu);
    Mlp::new(4, 64, 2, 1.0, vb.pp("actor")).unwrap();
    recording.set(&actor, LAYERS);
    copy(&actor, &trpo.theta.parameters);

    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        rewards: recording.floats("batch/rewards"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
        ..Rollout::default()
    };
    // The recorded values are not those of a recorded critic.
    let (values, next_values) = (recording.floats("batch/values"), recording.floats("batch/next_values"));
    recording.close("expected/advantages", rollout.advantages(&values, &next_values, &trpo.args));
    let states = trpo.tensor(&rollout.observations).unwrap();
    let actions = Tensor::new(recording.integers("batch/actions"), &Device::Cpu).unwrap();
    (
        trpo,
        actor,
        [states, actions, recording.column("expected/normalised_advantages").flatten_all().unwrap()],
    )
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

fn recorded_step(name: &str) {
    let mut recording = Recording::open(name);
    let (trpo, actor, [states, actions, advantages]) = recorded(&mut recording, &[]);
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
    v.resize(trpo.theta.parameters.num_parameters(), 0.0);
    let product = plus(&trpo.fisher_vector_product(&states, &v).unwrap(), -trpo.args.cg_damping, &v);
    let expected = reorder(&recording.floats("expected/fisher_vector_product"));
    recording.computed("the Fisher-vector product", &product[..len], expected, 1e-4, 1e-6);
    assert!(product[len..].iter().all(|&of_critic| of_critic == 0.0));

    // g and x
    let log_probs = trpo.policy(&states).unwrap().log_prob(&actions).unwrap();
    let surrogate = (log_probs * &advantages).unwrap().mean_all().unwrap(); // has the gradient of L at θ_old
    let g = trpo.theta.parameters.gradients(&surrogate).unwrap();
    recording.gradients("expected/gradients", &actor, LAYERS, split(&actor, &g));
    let x = trpo.natural_gradient(&states, &g).unwrap();
    recording.gradients("expected/natural_gradient", &actor, LAYERS, split(&actor, &x));
    let quadratic = dot(&x, &trpo.fisher_vector_product(&states, &x).unwrap());
    recording.close("expected/quadratic_form", quadratic);
    let step = (2.0 * trpo.args.target_kl / quadratic).sqrt();
    recording.close("expected/step_size", step);

    // The step that is kept, and nothing but the actor's.
    let critic = values_of(&trpo, "critic");
    let [policy_loss, kl, step_fraction] = trpo.update_policy(&states, &actions, &advantages).unwrap();
    recording.close("expected/surrogate_after", -policy_loss);
    recording.close("expected/kl_after", kl);
    recording.close("expected/accepted_scale", f64::from(step_fraction) * step);
    let tries = recording.floats("expected/line_search"); // KL divergence and surrogate of each
    recording.computed("the try that is kept", [kl, -policy_loss], &tries[tries.len() - 2..], 1e-4, 1e-6);
    let accepted = f64::from(step_fraction).ln() / trpo.args.line_search_shrinking_factor.ln();
    recording.close("expected/accepted", accepted.round());
    assert_eq!(accepted.round() as usize, tries.len() / 2 - 1);
    copy(&trpo.theta.parameters, &actor);
    recording.parameters_close("expected/parameters", &actor, LAYERS, 2e-5);
    assert_eq!(values_of(&trpo, "critic"), critic);
    recording.finish();
}

#[test]
fn recorded_update() {
    recorded_step("trpo");
}

#[test]
fn recorded_update_of_a_step_that_is_shortened() {
    recorded_step("trpo__shrunk_step");
}

/// Of the recorded tries only the third succeeds.
#[test]
fn a_step_that_fails_leaves_the_parameters_untouched() {
    for (tries, kept) in [(1, false), (2, false), (3, true)] {
        let mut recording = Recording::open("trpo__shrunk_step");
        let flags = [format!("--line-search-max-iter={tries}")];
        let (trpo, _, [states, actions, advantages]) = recorded(&mut recording, &[&flags[0]]);
        let before = trpo.theta.parameters.values().unwrap();
        let [policy_loss, kl, step_fraction] = trpo.update_policy(&states, &actions, &advantages).unwrap();
        assert_eq!(trpo.theta.parameters.values().unwrap() != before, kept, "{tries}");
        assert_eq!([kl > 0.0, step_fraction > 0.0], [kept; 2]);
        // Advantages that are normalised have the mean 0.
        assert_eq!(policy_loss < -1e-3, kept);
        recording.finish();
    }
    // No direction is better than another, or none can be told.
    for advantage in [0.0_f32, f32::NAN] {
        let mut recording = Recording::open("trpo");
        let (trpo, _, [states, actions, advantages]) = recorded(&mut recording, &[]);
        let before = trpo.theta.parameters.values().unwrap();
        let advantages = (advantages.zeros_like().unwrap() + f64::from(advantage)).unwrap();
        let [_, kl, step_fraction] = trpo.update_policy(&states, &actions, &advantages).unwrap();
        assert_eq!([kl, step_fraction], [0.0; 2]);
        assert_eq!(trpo.theta.parameters.values().unwrap(), before);
        recording.finish();
    }
}

/// The parameters whose names begin with `prefix`.
fn values_of(trpo: &Trpo, prefix: &str) -> Vec<f32> {
    let named = trpo.theta.parameters.named_vars().into_iter();
    named.filter(|(name, _)| name.starts_with(prefix)).flat_map(|(_, parameter)| floats(&parameter)).collect()
}

/// A learner on scripted environments with three observations, whose parameters are all random.
fn learner(actions: Space, flags: &[&str]) -> Trpo {
    let (envs, _) = scripted(3, View::Vector, actions, SCRIPT);
    let trpo = Trpo::new(&envs, 8, &args(&[&["--num-envs=3"], flags].concat())).unwrap();
    let (mut rng, device) = (rng(3, 0), Device::Cpu);
    for parameter in trpo.theta.parameters.all_vars() {
        let noise = Init::Randn { mean: 0.1, stdev: 0.5 }.tensor(parameter.shape(), &mut rng, &device);
        parameter.set(&noise.unwrap()).unwrap();
    }
    trpo
}

fn both_spaces() -> [Space; 2] {
    [Space::Discrete { n: 3 }, Space::bounded(&[-0.5, -1.0], &[1.0, 0.25])]
}

/// `len` numbers from a normal distribution.
fn normal(len: usize, seed: u64) -> Vec<f32> {
    let init = Init::Randn { mean: 0.0, stdev: 1.0 };
    init.tensor(len, &mut rng(seed, 0), &Device::Cpu).unwrap().to_vec1().unwrap()
}

/// F v = d/dε ∇KL(π_θ ‖ π_{θ + ε v}) at ε = 0
#[test]
fn fisher_vector_products_are_the_change_of_the_gradient_of_the_kl_divergence() {
    for space in both_spaces() {
        let trpo = learner(space, &["--cg-damping=0.3"]);
        let states = trpo.tensor(&normal(3 * 40, 1)).unwrap();
        let theta = trpo.theta.parameters.values().unwrap();
        let mut v = normal(theta.len(), 2);
        for (value, name) in v.iter_mut().zip(names(&trpo)) {
            *value *= if name.starts_with("critic") { 0.0 } else { 1.0 };
        }
        let old = trpo.policy(&states).unwrap();
        let old =
            Policy { outputs: old.outputs.detach(), log_std: old.log_std.map(|log_std| log_std.detach()) };
        let epsilon = 2e-3;
        let [ahead, behind] = [epsilon, -epsilon].map(|epsilon| {
            trpo.theta.parameters.set_values(&plus(&theta, epsilon, &v)).unwrap();
            trpo.theta.parameters.gradients(&old.kl(&trpo.policy(&states).unwrap()).unwrap()).unwrap()
        });
        trpo.theta.parameters.set_values(&theta).unwrap();
        let product = trpo.fisher_vector_product(&states, &v).unwrap();
        let size = dot(&product, &product).sqrt() / (product.len() as f64).sqrt();
        for i in 0..v.len() {
            let expected = f64::from(ahead[i] - behind[i]) / (2.0 * epsilon) + 0.3 * f64::from(v[i]);
            assert_abs_diff_eq!(f64::from(product[i]), expected, epsilon = 0.01 * size);
        }
        assert!(size > 0.1);
    }
}

/// The name of each number of θ.
fn names(trpo: &Trpo) -> Vec<String> {
    let named = trpo.theta.parameters.named_vars().into_iter();
    named.flat_map(|(name, parameter)| vec![name; parameter.elem_count()]).collect()
}

/// Both policies go as far as the trust region lets them, by KL divergences computed from their parameters.
#[test]
fn an_update_gains_within_the_trust_region() {
    for space in both_spaces() {
        let continuous = !matches!(space, Space::Discrete { .. });
        let trpo = learner(space, &["--target-kl=0.001", "--cg-damping=0.0001", "--cg-max-steps=40"]);
        let states = trpo.tensor(&normal(3 * 60, 1)).unwrap();
        let before = trpo.policy(&states).unwrap();
        let actions = before.sample(&mut rng(1, 0)).unwrap();
        let advantages = Tensor::new(normal(60, 3), &Device::Cpu).unwrap();
        let gain = |policy: &Policy| {
            let log_probs = floats(&policy.log_prob(&actions).unwrap());
            let old = floats(&before.log_prob(&actions).unwrap());
            let ratios = log_probs.iter().zip(&old).map(|(new, old)| (new - old).exp());
            ratios.zip(floats(&advantages)).map(|(ratio, a)| ratio * a).sum::<f32>() / 60.0
        };
        let (start, log_std) = (gain(&before), before.log_std.as_ref().map(floats));
        let actor = values_of(&trpo, "actor");
        let [policy_loss, kl, step_fraction] = trpo.update_policy(&states, &actions, &advantages).unwrap();
        assert!(values_of(&trpo, "actor").iter().zip(&actor).all(|(new, old)| new != old));
        let after = trpo.policy(&states).unwrap();
        assert_relative_eq!(gain(&after), -policy_loss, max_relative = 1e-3);
        assert!(gain(&after) > start + 0.003 && step_fraction > 0.3, "{start} {policy_loss} {step_fraction}");
        let (old, new) = (floats(&before.outputs), floats(&after.outputs));
        let expected = match continuous {
            false => old.iter().zip(&new).map(|(old, new)| old.exp() * (old - new)).sum::<f32>() / 60.0,
            true => {
                // What was computed before the step has not moved with it.
                assert_eq!(before.log_std.as_ref().map(floats), log_std);
                let (old_log_std, new_log_std) = (log_std.unwrap(), floats(after.log_std.as_ref().unwrap()));
                assert_ne!(old_log_std, new_log_std);
                let each = (0..old.len()).map(|i| {
                    let (s, t) = (old_log_std[i].exp().powi(2), new_log_std[i].exp().powi(2));
                    0.5 * ((t / s).ln() + (s + (old[i] - new[i]).powi(2)) / t - 1.0)
                });
                each.sum::<f32>() / 60.0
            }
        };
        assert_abs_diff_eq!(kl, expected, epsilon = 1e-5);
        assert!((0.0002..0.001).contains(&kl), "{kl}");
    }
}

/// With a radius so large that every KL divergence is within it, steps that go too far to gain anything are not
/// kept.
#[test]
fn a_step_is_kept_only_if_it_gains() {
    let (mut kept, mut refused) = (0, 0);
    for (seed, space) in (0..12).flat_map(|seed| both_spaces().map(|space| (seed, space))) {
        let trpo = learner(space, &["--target-kl=1e6", "--line-search-max-iter=1"]);
        let states = trpo.tensor(&normal(3 * 60, seed)).unwrap();
        let actions = trpo.policy(&states).unwrap().sample(&mut rng(seed, 0)).unwrap();
        let advantages = Tensor::new(normal(60, seed + 100), &Device::Cpu).unwrap();
        let old = trpo.policy(&states).unwrap().log_prob(&actions).unwrap().detach();
        let surrogate = || {
            let log_prob = trpo.policy(&states).unwrap().log_prob(&actions).unwrap();
            ((log_prob - &old).unwrap().exp().unwrap() * &advantages).unwrap().mean_all().unwrap()
        };
        // The full step, by hand.
        let theta = trpo.theta.parameters.values().unwrap();
        let (start, g) = (surrogate(), trpo.theta.parameters.gradients(&surrogate()).unwrap());
        let x = trpo.natural_gradient(&states, &g).unwrap();
        let step = (2e6 / dot(&x, &trpo.fisher_vector_product(&states, &x).unwrap())).sqrt();
        trpo.theta.parameters.set_values(&plus(&theta, step, &x)).unwrap();
        let gain = floats(&surrogate())[0] - floats(&start)[0];
        trpo.theta.parameters.set_values(&theta).unwrap();

        let [_, kl, _] = trpo.update_policy(&states, &actions, &advantages).unwrap();
        if kl > 0.0 {
            assert!(gain > 0.0 && kl < 1e6, "{gain} {kl}");
            kept += 1;
        } else if gain < 0.0 {
            assert_eq!(trpo.theta.parameters.values().unwrap(), theta);
            refused += 1;
        }
    }
    assert!(kept > 0 && refused > 0, "{kept} were kept, {refused} refused");
}

#[test]
fn a_gaussian_is_its_formula() {
    let trpo = learner(both_spaces()[1].clone(), &[]);
    let n = 20_000;
    let states = trpo.tensor(&[0.3, -1.0, 2.0].repeat(n)).unwrap();
    let policy = trpo.policy(&states).unwrap();
    let (means, log_std) = (floats(&policy.outputs), floats(policy.log_std.as_ref().unwrap()));
    assert_eq!(log_std[..2], values_of(&trpo, "log_std"));
    let actions = policy.sample(&mut rng(1, 0)).unwrap();
    let drawn = floats(&actions);
    for j in 0..2 {
        let std = f64::from(log_std[j]).exp();
        let z = || drawn.iter().skip(j).step_by(2).map(|a| f64::from(a - means[j]) / std);
        assert_abs_diff_eq!(z().sum::<f64>() / n as f64, 0.0, epsilon = 0.03);
        assert_abs_diff_eq!(z().map(|z| z * z).sum::<f64>() / n as f64, 1.0, epsilon = 0.05);
    }
    let density = |i: usize, j: usize| {
        let (z, std) = ((drawn[2 * i + j] - means[j]) / log_std[j].exp(), log_std[j].exp());
        (-0.5 * z * z).exp() / (std * (2.0 * std::f32::consts::PI).sqrt())
    };
    for (i, log_prob) in floats(&policy.log_prob(&actions).unwrap()).iter().enumerate().take(50) {
        assert_abs_diff_eq!(*log_prob, (density(i, 0) * density(i, 1)).ln(), epsilon = 1e-4);
    }
}

#[test]
fn a_softmax_is_its_formula() {
    let trpo = learner(both_spaces()[0].clone(), &[]);
    let (n, state) = (5000, [0.3, -1.0, 2.0]);
    let logits = floats(&trpo.theta.actor.forward(&trpo.tensor(&state).unwrap()).unwrap());
    let total: f32 = logits.iter().map(|z| z.exp()).sum();
    let policy = trpo.policy(&trpo.tensor(&state.repeat(n)).unwrap()).unwrap();
    let actions = policy.sample(&mut rng(1, 0)).unwrap();
    let drawn: Vec<u32> = actions.to_vec1().unwrap();
    for (action, logit) in logits.iter().enumerate() {
        let share = drawn.iter().filter(|&&a| a == action as u32).count() as f32 / n as f32;
        assert_abs_diff_eq!(share, logit.exp() / total, epsilon = 0.03);
    }
    let log_probs = floats(&policy.log_prob(&actions).unwrap());
    for (action, log_prob) in drawn.iter().zip(log_probs) {
        assert_abs_diff_eq!(log_prob, (logits[*action as usize].exp() / total).ln(), epsilon = 1e-5);
    }
}

/// Of a softmax the index of the largest logit; of a Gaussian the mean, and what is taken lies within the bounds.
#[test]
fn the_greedy_action_is_the_most_probable() {
    let states = normal(3 * 100, 5);
    let trpo = learner(both_spaces()[0].clone(), &[]);
    let greedy: Vec<u32> = trpo.act_greedily(&states).unwrap().to_vec1().unwrap();
    let logits = floats(&trpo.theta.actor.forward(&trpo.tensor(&states).unwrap()).unwrap());
    for (action, logits) in greedy.iter().zip(logits.chunks(3)) {
        assert!(logits.iter().all(|logit| *logit <= logits[*action as usize]));
    }
    assert!(greedy.iter().any(|action| *action != greedy[0]));

    let trpo = learner(both_spaces()[1].clone(), &[]);
    let greedy = trpo.act_greedily(&states).unwrap();
    let policy = trpo.policy(&trpo.tensor(&states).unwrap()).unwrap();
    assert_eq!((greedy.dims(), floats(&greedy)), (&[100, 2][..], floats(&policy.outputs)));
    // No other action has a larger density.
    let best = floats(&policy.log_prob(&greedy).unwrap());
    let others = floats(&policy.log_prob(&policy.sample(&mut rng(1, 0)).unwrap()).unwrap());
    assert!(best.iter().zip(&others).all(|(best, other)| best > other));
    let taken = trpo.clipped(&greedy).unwrap();
    for (i, (taken, mean)) in taken.iter().zip(floats(&greedy)).enumerate() {
        assert_eq!(*taken, if i % 2 == 0 { mean.clamp(-0.5, 1.0) } else { mean.clamp(-1.0, 0.25) });
    }
    assert!(taken != floats(&greedy));
}

#[test]
fn the_rollout_holds_what_happened() {
    for space in both_spaces() {
        let continuous = !matches!(space, Space::Discrete { .. });
        let (mut envs, log) = scripted(3, View::Vector, space.clone(), SCRIPT);
        let trpo = learner(space.clone(), &[]);
        let (mut rollout, mut rng) = (Rollout::default(), rng(1, 0));
        for _ in 0..20 {
            trpo.act(&mut rollout, &mut envs, &mut rng).unwrap();
        }
        let happened = log.transitions();
        assert_eq!(rollout.rewards.len(), happened.len());
        assert!(happened.iter().any(|t| t.terminated && !t.truncated));
        assert!(happened.iter().any(|t| !t.terminated && t.truncated));
        assert!(happened.iter().any(|t| t.terminated && t.truncated));
        let actions = Tensor::cat(&rollout.actions, 0).unwrap().to_dtype(DType::F32).unwrap();
        let (actions, width) = (floats(&actions), happened[0].action.len());
        let mut beyond = 0;
        for (i, t) in happened.iter().enumerate() {
            assert_eq!(rollout.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
            // What is taken lies within the bounds, what is stored is as drawn.
            let drawn = &actions[width * i..width * (i + 1)];
            let mut taken = drawn.to_vec();
            if continuous {
                space.clip(&mut taken);
            }
            assert_eq!(taken, t.action, "{t:?}");
            beyond += usize::from(taken != drawn);
            assert_eq!(rollout.rewards[i], t.reward, "{t:?}");
            assert_eq!(rollout.next_observations[3 * i..3 * (i + 1)], t.next_observation, "{t:?}");
            assert_eq!((rollout.terminated[i], rollout.truncated[i]), (t.terminated, t.truncated), "{t:?}");
        }
        assert_eq!(beyond > 10, continuous, "{beyond}");
        assert!(actions.iter().any(|action| *action != actions[0]));

        // What is learned from it, with the critic's own values.
        let value = |s: &[f32]| floats(&trpo.theta.critic.forward(&trpo.tensor(s).unwrap()).unwrap());
        let values = value(&rollout.observations);
        let expected = rollout.advantages(&values, &value(&rollout.next_observations), &trpo.args);
        let (advantages, returns) = trpo.advantages_and_returns(&rollout).unwrap();
        let returns = floats(&returns);
        for i in 0..expected.len() {
            assert_abs_diff_eq!(returns[i], expected[i] + values[i], epsilon = 1e-5);
        }
        let mean = expected.iter().sum::<f32>() / 60.0;
        let std = (expected.iter().map(|a| (a - mean).powi(2)).sum::<f32>() / 59.0).sqrt();
        for (found, expected) in floats(&advantages).iter().zip(&expected) {
            assert_abs_diff_eq!(*found, (expected - mean) / std, epsilon = 1e-4);
        }
    }
}

#[test]
fn observations_are_scaled_only_where_it_is_asked_for() {
    let states = [100.0, -2.0, 0.5, 300.0, -4.0, 2.0];
    for (flags, norm_obs) in [(&["--norm-obs"][..], true), (&[][..], false)] {
        let mut trpo = learner(Space::Discrete { n: 2 }, flags);
        trpo.normalize_observation.statistics.update(&states);
        // Of the first column mean and standard deviation are 200 and 100, and so on. What Gymnasium's
        // statistics begin with, a 1e-4th of a sample at 0 with variance 1, is hardly to be seen.
        let scaled = [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0];
        let expected = if norm_obs { scaled } else { states };
        for (found, expected) in floats(&trpo.tensor(&states).unwrap()).iter().zip(expected) {
            assert_abs_diff_eq!(*found, expected, epsilon = 5e-3);
        }
    }
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
    for space in both_spaces() {
        let mut trpo = learner(space, &["--learning-rate=0.01"]);
        let states = trpo.tensor(&normal(3 * 20, 1)).unwrap();
        let returns = Tensor::new(normal(20, 2), &Device::Cpu).unwrap();
        let values = floats(&trpo.theta.critic.forward(&states).unwrap());
        let squares = values.iter().zip(floats(&returns)).map(|(v, r)| (v - r).powi(2)).sum::<f32>();
        let (actor, log_std) = (values_of(&trpo, "actor"), values_of(&trpo, "log_std"));
        let losses: Vec<f32> = (0..200).map(|_| trpo.update_critic(&states, &returns).unwrap()).collect();
        assert_relative_eq!(losses[0], squares / 20.0, max_relative = 1e-4);
        assert!(losses[199] < 0.3 * losses[0], "{losses:?}");
        assert_eq!((values_of(&trpo, "actor"), values_of(&trpo, "log_std")), (actor, log_std));
    }
}

/// Everything that the defaults do, over three updates.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=1500", "--num-steps=128", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Continuous actions, and none of the defaults; steps of the line search are shortened.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Pendulum-v1",
        "--num-envs=3",
        "--num-steps=70",
        "--total-timesteps=800",
        "--gamma=0.9",
        "--gae-lambda=0.8",
        "--target-kl=0.05",
        "--cg-max-steps=4",
        "--cg-damping=0.02",
        "--line-search-max-iter=6",
        "--line-search-shrinking-factor=0.7",
        "--learning-rate=0.005",
        "--n-critic-updates=5",
        "--norm-obs",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
