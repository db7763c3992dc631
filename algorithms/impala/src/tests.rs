//! V-trace against its definition and the n-step returns that it equals on-policy, the losses'
//! gradients against known ones, and what travels between learner and actors.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use candle_core::{Device, Var};

const NUM_ACTORS: usize = 2;
const NUM_STEPS: usize = 6;
const NUM_ENVS: usize = 3;
const LEN: usize = NUM_ACTORS * NUM_STEPS * NUM_ENVS;

fn args(flags: &[&str]) -> Args {
    let own = ["impala", "--num-steps", "6", "--num-envs", "3", "--gamma", "0.9"];
    cli::parse_from(own.iter().chain(flags).map(Into::into)).unwrap()
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
        let delta = ratio(t).min(rho_bar) * (rollout.rewards[t] + gamma * next - of.values[t]);
        let traces: f32 = steps[..k].iter().map(|&i| ratio(i).min(c_bar)).product();
        target += gamma.powi(k as i32) * traces * delta;
    }
    target
}

#[test]
fn targets_and_weights_follow_their_definition() {
    for (rho_bar, c_bar) in [("1", "1"), ("2", "0.7"), ("0.5", "3")] {
        let args = args(&["--rho-bar", rho_bar, "--c-bar", c_bar]);
        let (rho_bar, c_bar) = (args.rho_bar as f32, args.c_bar as f32);
        let (rollout, of) = rollout(false);
        let [targets, advantages] = rollout.v_trace(&of.values, &of.next_values, &of.log_probs, &args);
        let naive = |s| naive_target(&rollout, &of, s, 0.9, rho_bar, c_bar);
        for t in 0..LEN {
            assert_relative_eq!(targets[t], naive(t), max_relative = 1e-5);
            let next_target = match trajectory(&rollout, t).get(1) {
                Some(&next) => naive(next),
                None if rollout.terminated[t] => 0.0,
                None => of.next_values[t],
            };
            let rho = (of.log_probs[t] - rollout.log_probs[t]).exp().min(rho_bar);
            let advantage = rho * (rollout.rewards[t] + 0.9 * next_target - of.values[t]);
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
            n_step_return += discount * rollout.rewards[t];
            discount *= 0.9;
            last = t;
        }
        if !rollout.terminated[last] {
            n_step_return += discount * of.next_values[last];
        }
        assert_relative_eq!(targets[s], n_step_return, max_relative = 1e-5);
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
fn the_losses_descend_towards_good_actions_and_targets() {
    // At logits z the gradient of −A ln softmax(z)_a is A (π − e_a).
    let logits = Var::new(&[[0.3_f32, -0.2]], &Device::Cpu).unwrap();
    let policy = Categorical::new(logits.as_tensor()).unwrap();
    let actions = Tensor::new(&[1_u32], &Device::Cpu).unwrap();
    let advantages = Tensor::new(&[2.0_f32], &Device::Cpu).unwrap();
    let loss = policy_loss(&policy.log_prob(&actions).unwrap(), &advantages).unwrap();
    let gradient = loss.backward().unwrap().get(&logits).unwrap().to_vec2::<f32>().unwrap();
    let first = 1.0 / (1.0 + (-0.5_f32).exp()); // π(0)
    assert_abs_diff_eq!(gradient[0][0], 2.0 * first, epsilon = 1e-6);
    assert_abs_diff_eq!(gradient[0][1], -2.0 * first, epsilon = 1e-6);

    // ∂/∂V of ½ E[(v − V)²] is (V − v) / batch.
    let values = Var::new(&[1.0_f32, 4.0], &Device::Cpu).unwrap();
    let targets = Tensor::new(&[3.0_f32, 4.0], &Device::Cpu).unwrap();
    let loss = value_loss(values.as_tensor(), &targets).unwrap();
    assert_abs_diff_eq!(loss.to_scalar::<f32>().unwrap(), 1.0, epsilon = 1e-6);
    let gradient = loss.backward().unwrap().get(&values).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(gradient, [-1.0, 0.0]);
}

#[test]
fn actors_save_and_load_where_they_are() {
    let args = args(&["--workers", "3"]);
    let result = dist::launch(args.workers, |world| {
        if world.rank() != LEARNER {
            return act(&args, world);
        }
        let mut actors = Actors(world);
        let parameters = Agent::new(&args)?.parameters.save()?;
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
