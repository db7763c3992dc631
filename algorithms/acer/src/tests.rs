//! The update against PyTorch's, Retrace against its definition, the estimate's mean against the policy
//! gradient, rollouts and buffer against what happened, and runs against their pins.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, scripted};

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["acer"].iter().chain(flags).map(Into::into)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn logarithms(numbers: &[f32]) -> Vec<f32> {
    numbers.iter().map(|x| x.ln()).collect()
}

fn sum(numbers: impl Iterator<Item = f32>) -> f32 {
    numbers.sum()
}

const ACTOR: Layers = &[("hidden0", &["actor/0"]), ("output", &["actor/1"])];
const AVERAGE: Layers = &[("hidden0", &["average_actor/0"]), ("output", &["average_actor/1"])];
const CRITIC: Layers = &[("hidden0", &["critic/0"]), ("output", &["critic/1"])];

/// The gradient of `loss` by each parameter of a map.
fn gradients(parameters: &VarMap, loss: &Tensor) -> Vec<Vec<f32>> {
    let flat = parameters.gradients(loss).unwrap();
    let mut rest = &flat[..];
    let mut gradients = Vec::new();
    for parameter in parameters.all_vars() {
        let (own, others) = rest.split_at(parameter.elem_count());
        gradients.push(own.to_vec());
        rest = others;
    }
    gradients
}

/// A recording, its learner and its rollout.
fn recorded(name: &str) -> (Recording, Acer, Rollout) {
    let recording = Recording::open(name);
    let number = |name: &str| recording.number(name);
    assert_eq!(number("retrace_clip"), 1.0);
    assert_eq!((number("rmsprop_alpha"), number("rmsprop_epsilon")), (0.99, 1e-5));
    let args = args(&[
        "--num-envs=4",
        "--num-steps=7",
        &format!("--gamma={}", number("gamma")),
        &format!("--c={}", number("c")),
        &format!("--delta={}", number("delta")),
        &format!("--average-decay={}", number("average_decay")),
        &format!("--q-coef={}", number("q_coefficient")),
        &format!("--ent-coef={}", number("entropy_coefficient")),
        &format!("--max-grad-norm={}", number("gradient_clip")),
        &format!("--learning-rate={}", number("learning_rate")),
    ]);
    let envs = VecEnv::make("CartPole-v1", 4, 1).unwrap();
    let acer = Acer::new(&envs, &[24], &args, &mut rng(1, 0)).unwrap();
    recording.set(&acer.actor_parameters, ACTOR);
    recording.set(&acer.critic_parameters, CRITIC);
    recording.set(&acer.average_parameters, AVERAGE);
    let rollout = Rollout {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
        behaviour_log_probs: logarithms(&recording.floats("batch/behaviour_probabilities")),
        rewards: recording.floats("batch/rewards"),
        next_observations: recording.floats("batch/next_observations"),
        terminated: recording.flags("batch/terminated"),
        truncated: recording.flags("batch/truncated"),
    };
    (recording, acer, rollout)
}

/// All that does not depend on what is taken for the coordinates of a policy.
fn evaluation(recording: &mut Recording, acer: &Acer, rollout: &Rollout) -> Losses {
    let of = acer.estimates(rollout).unwrap();
    recording.close("expected/values", &of.values);
    recording.close("expected/next_values", &acer.evaluate(&rollout.next_observations).unwrap()[2]);
    recording.close("expected/ratios", of.ratios.gather(&of.actions, 1).unwrap());
    recording.close("expected/targets", &of.targets);
    let (loss, losses) = acer.loss(rollout).unwrap();
    recording.close("expected/loss/policy", losses.policy_loss);
    recording.close("expected/loss/bias_correction", losses.bias_correction);
    recording.close("expected/loss/entropy", losses.entropy);
    recording.close("expected/loss/value", losses.q_loss);
    let of_critic = gradients(&acer.critic_parameters, &loss);
    recording.gradients("expected/gradients", &acer.critic_parameters, CRITIC, of_critic);
    losses
}

fn recorded_update(name: &str) {
    let (mut recording, mut acer, rollout) = recorded(name);
    assert_eq!(recording.text("statistics"), "probabilities");
    let losses = evaluation(&mut recording, &acer, &rollout);
    let scale = recording.floats("expected/trust_region_scale");
    let share = scale.iter().filter(|&&scale| scale > 0.0).count() as f32 / scale.len() as f32;
    assert!(share > 0.0 && share < 1.0);
    assert_abs_diff_eq!(losses.trust_region_share, share, epsilon = 1e-6);

    let observations = acer.tensor(&rollout.observations).unwrap();
    let average = log_softmax(&acer.average_actor.forward(&observations).unwrap()).unwrap();
    let of = acer.estimates(&rollout).unwrap();
    recording.close("expected/projected", acer.projected_gradient(&of, &average).unwrap().0);
    let (average, log_probs) = (floats(&average), floats(&of.log_probs));
    let kl = sum(average.iter().zip(&log_probs).map(|(a, p)| a.exp() * (a - p))) / scale.len() as f32;
    assert_relative_eq!(losses.average_kl, kl, max_relative = 1e-4);

    let (loss, _) = acer.loss(&rollout).unwrap();
    let of_actor = gradients(&acer.actor_parameters, &loss);
    recording.gradients("expected/gradients", &acer.actor_parameters, ACTOR, &of_actor);
    let of_critic = gradients(&acer.critic_parameters, &loss);
    let norm = sum([of_actor, of_critic].iter().flatten().flatten().map(|g| g * g)).sqrt();
    recording.close("expected/gradient_norm", norm);
    assert!(acer.average_parameters.gradients(&loss).unwrap().iter().all(|&g| g == 0.0));
    recording.unmoved(&acer.actor_parameters, ACTOR);

    acer.update(&rollout).unwrap();
    // The first step of RMSProp is ten times the step size, but for ε.
    let step = 10.0 * acer.args.learning_rate;
    recording.parameters("expected/parameters", &acer.actor_parameters, ACTOR, step);
    recording.parameters("expected/parameters", &acer.critic_parameters, CRITIC, step);
    recording.parameters_close("expected/parameters", &acer.average_parameters, AVERAGE, 1e-6);
    recording.finish();
}

#[test]
fn recorded_update_of_a_rollout() {
    recorded_update("acer");
}

#[test]
fn recorded_update_with_a_smaller_c() {
    recorded_update("acer__c_2");
}

/// Recorded with the logits for φ, whose g and k are these by the chain rule, π_j (x_j − Σ_a π_a x_a). Here φ
/// are the probabilities, as in the paper: the projection is another one, all the rest is the same.
#[test]
fn recorded_update_with_other_statistics() {
    let (mut recording, acer, rollout) = recorded("acer__logits");
    assert_eq!(recording.text("statistics"), "logits");
    evaluation(&mut recording, &acer, &rollout);
    // With a large δ nothing is projected, and z is g.
    let acer = Acer { args: Args { delta: 1e9, ..acer.args.clone() }, ..acer };
    let of = acer.estimates(&rollout).unwrap();
    let (g, losses) = acer.projected_gradient(&of, &of.log_probs).unwrap();
    assert_eq!(losses.trust_region_share, 0.0);
    assert_abs_diff_eq!(losses.average_kl, 0.0, epsilon = 1e-6);
    let probs = of.log_probs.exp().unwrap();
    let mean = (&probs * &g).unwrap().sum_keepdim(1).unwrap();
    let by_logits = (probs * g.broadcast_sub(&mean).unwrap()).unwrap();
    recording.within("expected/statistics_gradients", by_logits, 1e-4, 1e-5);
    recording.finish();
}

/// Random trajectories of three environments over six steps, some of which end; V(s_{t+1}) inside an
/// episode is V(s_t) of the next step, as it is in truth. Then Q(s_t, a_t), V(s_t), V(s_{t+1}) and ρ_t.
fn trajectories() -> (Rollout, [Vec<f32>; 4]) {
    let mut rng = rng(5, 0);
    let mut uniform = |scale: f32| -> Vec<f32> { (0..18).map(|_| scale * rng.random::<f32>()).collect() };
    let (rewards, q_taken, values, mut next_values) =
        (uniform(1.0), uniform(9.0), uniform(9.0), uniform(9.0));
    let ratios = uniform(2.0);
    let (terminated, truncated): (Vec<bool>, Vec<bool>) =
        (0..18).map(|i| (matches!(i, 7 | 12), matches!(i, 5 | 12))).unzip();
    for i in 0..15 {
        if !terminated[i] && !truncated[i] {
            next_values[i] = values[i + 3];
        }
    }
    let rollout = Rollout { rewards, terminated, truncated, ..Rollout::default() };
    (rollout, [q_taken, values, next_values, ratios])
}

fn retrace(rollout: &Rollout, of: &[Vec<f32>; 4]) -> Vec<f32> {
    let [q, v, next, ratios] = of.clone().map(|x| Tensor::new(x, &Device::Cpu).unwrap());
    let args = args(&["--num-envs=3", "--num-steps=6", "--gamma=0.9"]);
    rollout.retrace([&q, &v, &next, &ratios], &args).unwrap()
}

/// Q^ret as Munos et al. define it: Q(s_t, a_t) + Σ_k γᵏ ( Π min(1, ρ) ) δ, with the expected value in δ.
#[test]
fn targets_follow_retrace_s_definition() {
    let (rollout, of) = trajectories();
    let [q_taken, _, next_values, ratios] = &of;
    let targets = retrace(&rollout, &of);
    for start in 0..18 {
        let (mut expected, mut weight) = (q_taken[start], 1.0);
        for i in (start..18).step_by(3) {
            if i > start {
                weight *= 0.9 * ratios[i].min(1.0);
            }
            let next = if rollout.terminated[i] { 0.0 } else { next_values[i] };
            expected += weight * (rollout.rewards[i] + 0.9 * next - q_taken[i]);
            if rollout.terminated[i] || rollout.truncated[i] {
                break;
            }
        }
        assert_relative_eq!(targets[start], expected, max_relative = 1e-5);
    }
}

/// What a policy would never do says nothing about it: then only one step is believed.
#[test]
fn without_a_chance_of_the_next_action_targets_are_of_one_step() {
    let (rollout, mut of) = trajectories();
    of[3].fill(0.0);
    for (i, target) in retrace(&rollout, &of).into_iter().enumerate() {
        let next = if rollout.terminated[i] { 0.0 } else { of[2][i] };
        assert_relative_eq!(target, rollout.rewards[i] + 0.9 * next, max_relative = 1e-5);
    }
}

/// Over all actions, each as probable as μ has it, the truncated term and the correction are together the
/// policy gradient π (Q − V) / φ, whatever c, where Q^ret is Q; without the correction they are not.
#[test]
fn the_correction_takes_back_the_bias_of_truncation() {
    for c in [0.5, 1.0, 2.0, 100.0] {
        let c_flag = format!("--c={c}");
        let args = args(&["--num-envs=1", "--num-steps=3", "--ent-coef=0", "--delta=1e9", &c_flag]);
        let (envs, _) = scripted(1, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
        let acer = Acer::new(&envs, &[8], &args, &mut rng(1, 0)).unwrap();
        let (pi, mu, q): ([f32; 3], [f32; 3], [f32; 3]) =
            ([0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [1.0, -2.0, 4.0]);
        let value = sum(pi.iter().zip(q).map(|(p, q)| p * q));
        let rows = |x: [f32; 3]| Tensor::new(&[x, x, x], &Device::Cpu).unwrap();
        // One row for each action.
        let of = Estimates {
            actions: Tensor::new(&[[0_u32], [1], [2]], &Device::Cpu).unwrap(),
            log_probs: rows(pi).log().unwrap(),
            ratios: (rows(pi) / rows(mu)).unwrap(),
            q_values: rows(q),
            values: Tensor::new(&[[value]; 3], &Device::Cpu).unwrap(),
            targets: Tensor::new(&[[q[0]], [q[1]], [q[2]]], &Device::Cpu).unwrap(),
        };
        let (g, losses) = acer.projected_gradient(&of, &of.log_probs).unwrap();
        let g = g.to_vec2::<f32>().unwrap();
        for b in 0..3 {
            let mean = sum((0..3).map(|action| mu[action] * g[action][b]));
            assert_relative_eq!(mean, q[b] - value, max_relative = 1e-4);
        }
        assert_eq!(losses.bias_correction != 0.0, c < 6.0);
    }
}

#[test]
fn a_probability_of_nothing_is_not_divided_by() {
    let (envs, _) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let mut acer = Acer::new(&envs, &[8], &args(&["--num-envs=1", "--num-steps=1"]), &mut rng(1, 0)).unwrap();
    let bias =
        acer.actor_parameters.named_vars().into_iter().find(|(name, _)| name == "output.bias").unwrap().1;
    bias.set(&Tensor::new(&[300.0_f32, -300.0], &Device::Cpu).unwrap()).unwrap();
    let rollout = Rollout {
        observations: vec![1.0; 3],
        actions: vec![1],
        behaviour_log_probs: vec![-600.0, 0.0],
        rewards: vec![1.0],
        next_observations: vec![1.0; 3],
        terminated: vec![false],
        truncated: vec![false],
    };
    let losses = acer.update(&rollout).unwrap();
    assert!([losses.policy_loss, losses.bias_correction, losses.average_kl].iter().all(|x| x.is_finite()));
    assert!(acer.actor_parameters.values().unwrap().iter().all(|x| x.is_finite()));
}

#[test]
fn the_buffer_holds_what_happened_and_overwrites_its_oldest() {
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let mut rng = rng(1, 0);
    let acer = Acer::new(&envs, &[8], &args(&["--num-envs=3"]), &mut rng).unwrap();
    let mut buffer = ReplayBuffer { capacity: 2, rollouts: VecDeque::new() };
    for round in 0..5 {
        let mut rollout = Rollout::default();
        for _ in 0..4 {
            let observations = envs.observations().to_vec();
            let (actions, log_probs) = acer.act(&observations, &mut rng).unwrap();
            envs.step(&actions).unwrap();
            rollout.store(&observations, &actions, &log_probs, &envs);
        }
        buffer.store(rollout);
        assert_eq!(buffer.rollouts.len(), (round + 1).min(2));
    }
    let happened = log.transitions().split_off(36); // the last two rounds of five
    assert_eq!(happened.len(), 24);
    assert!(log.transitions().iter().any(|t| t.terminated && t.truncated));
    assert!(happened.iter().any(|t| t.terminated) && happened.iter().any(|t| t.truncated));
    for (n, t) in happened.iter().enumerate() {
        let (rollout, i) = (&buffer.rollouts[n / 12], n % 12);
        assert_eq!(rollout.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
        assert_eq!(rollout.actions[i] as f32, t.action[0], "{t:?}");
        assert_eq!(rollout.rewards[i], t.reward, "{t:?}");
        assert_eq!(rollout.next_observations[3 * i..3 * (i + 1)], t.next_observation, "{t:?}");
        assert_eq!((rollout.terminated[i], rollout.truncated[i]), (t.terminated, t.truncated), "{t:?}");
        let logits = acer.actor.forward(&acer.tensor(&t.observation).unwrap()).unwrap();
        let own = &rollout.behaviour_log_probs[2 * i..2 * (i + 1)];
        for (own, expected) in own.iter().zip(floats(&log_softmax(&logits).unwrap())) {
            assert_abs_diff_eq!(*own, expected, epsilon = 1e-5);
        }
        assert_abs_diff_eq!(own[0].exp() + own[1].exp(), 1.0, epsilon = 1e-5);
    }
    // Each rollout is drawn about as often.
    let first = |rollout: &Rollout| rollout.rewards == buffer.rollouts[0].rewards;
    let count = (0..1000).filter(|_| first(buffer.sample(&mut rng))).count();
    assert!((430..570).contains(&count), "{count}");
}

#[test]
fn actions_are_drawn_from_the_policy_or_its_mode() {
    let (envs, _) = scripted(1, View::Vector, Space::Discrete { n: 3 }, SCRIPT);
    let mut rng = rng(1, 0);
    let acer = Acer::new(&envs, &[8], &args(&[]), &mut rng).unwrap();
    let bias =
        acer.actor_parameters.named_vars().into_iter().find(|(name, _)| name == "output.bias").unwrap().1;
    bias.set(&Tensor::new(&[0.0_f32, 1.0, 0.5], &Device::Cpu).unwrap()).unwrap();
    let observations = vec![0.0; 3 * 2000];
    assert_eq!(acer.act_greedily(&observations).unwrap(), vec![1; 2000]);
    let (actions, log_probs) = acer.act(&observations, &mut rng).unwrap();
    for action in 0..3 {
        let share = actions.iter().filter(|&&a| a == action).count() as f32 / 2000.0;
        assert!((share - log_probs[action as usize].exp()).abs() < 0.045, "{share}");
    }
}

/// What the defaults do: an on-policy update a rollout, replays from the third on, a step size that falls.
#[test]
fn pinned_run() {
    let flags =
        ["--total-timesteps=1920", "--learning-starts=320", "--delta=0.05", "--c=1.02", "--eval-episodes=3"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Another environment and trajectories, a buffer that overflows, a step size that stays.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Acrobot-v1",
        "--num-envs=3",
        "--num-steps=30",
        "--total-timesteps=1080",
        "--learning-starts=200",
        "--learning-rate=0.003",
        "--anneal-lr=false",
        "--buffer-size=100",
        "--replay-ratio=2",
        "--gamma=0.9",
        "--c=1.05",
        "--delta=0.02",
        "--average-decay=0.8",
        "--ent-coef=0.1",
        "--q-coef=0.3",
        "--max-grad-norm=0.4",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
