//! IMPALA's update against PyTorch's, V-trace against its definition and the n-step returns that it
//! equals on-policy, what actors store and send, and runs against their pins.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::{Space, rng};
use rand::RngExt;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

const NUM_ACTORS: usize = 2;
const NUM_STEPS: usize = 6;
const NUM_ENVS: usize = 3;
const LEN: usize = NUM_ACTORS * NUM_STEPS * NUM_ENVS;

fn args(flags: &[&str]) -> Args {
    let own = ["impala", "--num-steps=6", "--num-envs=3", "--gamma=0.9"];
    cli::parse_from(own.iter().chain(flags).map(Into::into)).unwrap()
}

const LAYERS: Layers = &[
    ("policy.hidden0", &["actor/0"]),
    ("policy.output", &["actor/1"]),
    ("critic.hidden0", &["critic/0"]),
    ("critic.output", &["critic/1"]),
];

/// Everything but the optimiser: recorded is a step of RMSProp, ours are Adam's.
fn recorded_update(name: &str) {
    let mut recording = Recording::open(name);
    let number = |name: &str| recording.number(name).to_string();
    assert_eq!(number("rho_clip"), number("pg_rho_clip"));
    let args = args(&[
        "--num-steps=8",
        "--num-envs=4",
        "--reward-scale=1",
        &format!("--gamma={}", number("gamma")),
        &format!("--rho-bar={}", number("rho_clip")),
        &format!("--c-bar={}", number("c_clip")),
        &format!("--vf-coef={}", number("value_coefficient")),
        &format!("--ent-coef={}", number("entropy_coefficient")),
        &format!("--max-grad-norm={}", number("gradient_clip")),
        &format!("--learning-rate={}", number("learning_rate")),
    ]);
    let mut impala = Impala::new(4, 2, &[32], &args).unwrap();
    recording.set(&impala.parameters, LAYERS);
    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
        log_probs: recording.floats("batch/behaviour_log_probabilities"),
        rewards: recording.floats("batch/rewards"),
        next_observations: recording.floats("batch/next_observations"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
        episodes: Vec::new(),
    };
    let values = |observations| impala.critic.forward(&impala.tensor(observations).unwrap()).unwrap();
    let (values, next_values) = (values(&rollout.observations), values(&rollout.next_observations));
    recording.close("expected/values", &values);
    recording.close("expected/next_values", &next_values);
    let policy = impala.policy.forward(&impala.tensor(&rollout.observations).unwrap()).unwrap();
    let actions = Tensor::new(rollout.actions.as_slice(), &Device::Cpu).unwrap();
    let log_probs = floats(&Categorical::new(&policy).unwrap().log_prob(&actions).unwrap());
    let ratios = log_probs.iter().zip(&rollout.log_probs).map(|(new, old)| (new - old).exp());
    recording.close("expected/ratios", ratios.clone().collect::<Vec<_>>());
    let [targets, advantages] = rollout.v_trace(&floats(&values), &floats(&next_values), &log_probs, &args);
    recording.close("expected/targets", targets);
    recording.close("expected/advantages", advantages);

    let losses = impala.update(&rollout).unwrap();
    recording.close("expected/loss/policy", losses.policy_loss);
    recording.close("expected/loss/value", losses.value_loss);
    recording.close("expected/loss/entropy", losses.entropy);
    let kl = ratios.map(|ratio| ratio - 1.0 - ratio.ln()).sum::<f32>() / 32.0;
    assert_abs_diff_eq!(losses.approx_kl, kl, epsilon = 1e-5);
    // Recorded before they are clipped to the norm.
    let norm = f64::from(recording.floats("expected/gradient_norm")[0]);
    let scale = (norm / norm.min(recording.number("gradient_clip"))) as f32;
    let mut gradients = first_gradients(&impala.optimizer);
    gradients.iter_mut().flatten().for_each(|gradient| *gradient *= scale);
    recording.gradients("expected/gradients", &impala.parameters, LAYERS, gradients);
    // The first step of Adam is its step size against the gradient's sign.
    let learning_rate = recording.number("learning_rate") as f32;
    for (name, parameter) in impala.parameters.named_vars() {
        let recorded = name.replace("policy", "actor").replace(".hidden0", "/0").replace(".output", "/1");
        let before = recording.floats(&format!("parameters/{recorded}"));
        let gradients = recording.floats(&format!("expected/gradients/{recorded}"));
        for ((found, before), g) in floats(&parameter).iter().zip(before).zip(gradients) {
            if g.abs() > 1e-5 {
                assert_abs_diff_eq!(
                    *found,
                    before - learning_rate * g.signum(),
                    epsilon = 2e-3 * learning_rate
                );
            }
        }
    }
    recording.finish();
}

#[test]
fn recorded_update_of_a_batch() {
    recorded_update("impala");
}

#[test]
fn recorded_update_with_other_clips() {
    recorded_update("impala__clips");
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_rollout_holds_what_happened() {
    let mut rollout = Rollout::default();
    let mut happened = Vec::new();
    let impala = Impala::new(3, 2, &[8], &args(&["--num-steps=20"])).unwrap();
    for actor in 0..2 {
        let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
        let gathered = impala.gather(&mut envs, &mut learner_rng(actor)).unwrap();
        assert_eq!(gathered.rewards.len(), 60);
        rollout.append(gathered);
        happened.extend(log.transitions());
    }
    assert_eq!(rollout.rewards.len(), happened.len());
    assert!(happened.iter().any(|t| t.terminated && !t.truncated));
    assert!(happened.iter().any(|t| !t.terminated && t.truncated));
    assert!(happened.iter().any(|t| t.terminated && t.truncated));
    for (i, t) in happened.iter().enumerate() {
        assert_eq!(rollout.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
        assert_eq!(rollout.actions[i] as f32, t.action[0], "{t:?}");
        assert_eq!(rollout.rewards[i], t.reward, "{t:?}");
        assert_eq!(rollout.next_observations[3 * i..3 * (i + 1)], t.next_observation, "{t:?}");
        assert_eq!((rollout.terminated[i], rollout.truncated[i]), (t.terminated, t.truncated), "{t:?}");
        // ln μ of the action that was taken, by the policy that took it
        let policy = impala.policy.forward(&impala.tensor(&t.observation).unwrap()).unwrap();
        let action = Tensor::new(&[t.action[0] as u32], &Device::Cpu).unwrap();
        let log_prob = floats(&Categorical::new(&policy).unwrap().log_prob(&action).unwrap())[0];
        assert_abs_diff_eq!(rollout.log_probs[i], log_prob, epsilon = 1e-5);
    }
    assert!(rollout.actions[..60] != rollout.actions[60..], "two actors act the same");
    let ends = happened.iter().filter(|t| t.terminated || t.truncated).count();
    assert_eq!(rollout.episodes.len(), ends);
}

/// V(x_t), V(x_{t+1}) and ln π(a_t|x_t) of [`rollout`].
struct Estimates {
    values: Vec<f32>,
    next_values: Vec<f32>,
    log_probs: Vec<f32>,
}

/// Random trajectories, some of which terminate and some of which are cut short. Inside an episode
/// V(x_{t+1}) of a step is V(x_t) of the next, as it is in truth.
fn rollout(on_policy: bool) -> (Rollout, Estimates) {
    let mut rng = rng(5, 0);
    let mut uniform = |scale: f32| -> Vec<f32> { (0..LEN).map(|_| scale * rng.random::<f32>()).collect() };
    let (rewards, values, mut next_values) = (uniform(1.0), uniform(10.0), uniform(10.0));
    let behaviour = uniform(-2.0);
    let log_probs = if on_policy { behaviour.clone() } else { uniform(-2.0) };
    let (terminated, truncated): (Vec<bool>, Vec<bool>) =
        (0..LEN).map(|t| (matches!(t, 7 | 30), matches!(t, 5 | 19))).unzip();
    for t in 0..LEN - NUM_ENVS {
        let goes_on = !terminated[t] && !truncated[t] && !(t / NUM_ENVS + 1).is_multiple_of(NUM_STEPS);
        if goes_on {
            next_values[t] = values[t + NUM_ENVS];
        }
    }
    let rollout = Rollout { rewards, terminated, truncated, log_probs: behaviour, ..Rollout::default() };
    (rollout, Estimates { values, next_values, log_probs })
}

/// r_t as it is learned from.
fn reward(rollout: &Rollout, t: usize) -> f32 {
    0.1 * rollout.rewards[t]
}

/// The steps from `start` to the end of its episode or trajectory.
fn trajectory(rollout: &Rollout, start: usize) -> Vec<usize> {
    let trajectory_end = (start / (NUM_STEPS * NUM_ENVS) + 1) * NUM_STEPS * NUM_ENVS;
    let mut steps = Vec::new();
    for t in (start..trajectory_end).step_by(NUM_ENVS) {
        steps.push(t);
        if rollout.terminated[t] || rollout.truncated[t] {
            break;
        }
    }
    steps
}

/// v_s as the sum that defines it.
fn naive_target(rollout: &Rollout, of: &Estimates, s: usize, gamma: f32, rho_bar: f32, c_bar: f32) -> f32 {
    let ratio = |t: usize| (of.log_probs[t] - rollout.log_probs[t]).exp();
    let steps = trajectory(rollout, s);
    let mut target = of.values[s];
    for (k, &t) in steps.iter().enumerate() {
        let next = if rollout.terminated[t] { 0.0 } else { of.next_values[t] };
        let delta = ratio(t).min(rho_bar) * (reward(rollout, t) + gamma * next - of.values[t]);
        let traces: f32 = steps[..k].iter().map(|&i| ratio(i).min(c_bar)).product();
        target += gamma.powi(k as i32) * traces * delta;
    }
    target
}

#[test]
fn targets_and_weights_follow_their_definition() {
    for (rho_bar, c_bar) in [("1", "1"), ("2", "0.7"), ("0.5", "0.5")] {
        let args = args(&["--rho-bar", rho_bar, "--c-bar", c_bar]);
        let (rho_bar, c_bar) = (args.rho_bar as f32, args.c_bar as f32);
        let (rollout, of) = rollout(false);
        let [targets, advantages] = rollout.v_trace(&of.values, &of.next_values, &of.log_probs, &args);
        let naive = |s| naive_target(&rollout, &of, s, 0.9, rho_bar, c_bar);
        for t in 0..LEN {
            assert_relative_eq!(targets[t], naive(t), max_relative = 1e-5, epsilon = 1e-5);
            let next_target = match trajectory(&rollout, t).get(1) {
                Some(&next) => naive(next),
                None if rollout.terminated[t] => 0.0,
                None => of.next_values[t],
            };
            let rho = (of.log_probs[t] - rollout.log_probs[t]).exp().min(rho_bar);
            let advantage = rho * (reward(&rollout, t) + 0.9 * next_target - of.values[t]);
            assert_abs_diff_eq!(advantages[t], advantage, epsilon = 1e-4);
        }
    }
}

#[test]
fn on_policy_the_targets_are_n_step_returns() {
    let (rollout, of) = rollout(true);
    let [targets, advantages] = rollout.v_trace(&of.values, &of.next_values, &of.log_probs, &args(&[]));
    for s in 0..LEN {
        // Σ_k γ^k r_{s+k} + γ^n V(x_{s+n}), without the last term after termination
        let (mut n_step_return, mut discount, mut last) = (0.0, 1.0, s);
        for t in trajectory(&rollout, s) {
            n_step_return += discount * reward(&rollout, t);
            discount *= 0.9;
            last = t;
        }
        if !rollout.terminated[last] {
            n_step_return += discount * of.next_values[last];
        }
        assert_relative_eq!(targets[s], n_step_return, max_relative = 1e-5, epsilon = 1e-5);
        assert_abs_diff_eq!(advantages[s], n_step_return - of.values[s], epsilon = 1e-4);
    }
}

#[test]
fn nothing_is_learned_from_what_the_policy_would_never_do() {
    let (rollout, mut of) = rollout(false);
    of.log_probs.fill(-1e3);
    let [targets, advantages] = rollout.v_trace(&of.values, &of.next_values, &of.log_probs, &args(&[]));
    assert_eq!(targets, of.values);
    assert!(advantages.iter().all(|&advantage| advantage == 0.0));
}

#[test]
fn actors_save_and_load_where_they_are() {
    let args = args(&["--workers", "3"]);
    let result = dist::launch(args.workers, |world| {
        if world.rank() != LEARNER {
            return follow(Impala::new(4, 2, &[8], &args)?, &args, world);
        }
        let mut actors = Actors(world);
        let parameters = Impala::new(4, 2, &[8], &args)?.parameters.save()?;
        let gather = |actors: &Actors| -> Result<Vec<Vec<u8>>> {
            actors.tell(&Order::Act(parameters.clone()))?;
            (1..world.size()).map(|actor| world.receive::<Rollout>(actor)?.save()).collect()
        };
        let begin = gather(&actors)?;
        assert_ne!(begin[0], begin[1], "two actors gather the same");
        let saved = actors.save()?;
        let first = gather(&actors)?;
        assert_ne!(begin, first);
        actors.load(&saved)?;
        assert_eq!(gather(&actors)?, first);
        actors.tell(&Order::Stop)
    });
    result.unwrap();
}

/// What the defaults do, over a few updates on stale trajectories, with a step size that falls.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=2000", "--eval-episodes=3", "--rho-bar=1.1", "--learning-rate=0.003"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: one actor, other trajectories, a step size that stays.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Acrobot-v1",
        "--workers=2",
        "--num-envs=3",
        "--num-steps=30",
        "--total-timesteps=900",
        "--anneal-lr=false",
        "--reward-scale=0.5",
        "--ent-coef=0.1",
        "--vf-coef=0.3",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
