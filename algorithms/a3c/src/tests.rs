//! The update against PyTorch's, segments against what happened, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, scripted};

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["a3c"].iter().chain(flags).map(Into::into)).unwrap()
}

const SHARED: Layers = &[
    ("policy.hidden0", &["actor/0"]),
    ("policy.output", &["actor/1"]),
    ("critic.hidden0", &["critic/0"]),
    ("critic.output", &["critic/1"]),
];
const WORKER: Layers = &[
    ("policy.hidden0", &["worker_actor/0"]),
    ("policy.output", &["worker_actor/1"]),
    ("critic.hidden0", &["worker_critic/0"]),
    ("critic.output", &["worker_critic/1"]),
];
/// The mean squares in the order of the parameters' names.
const SQUARES: [&str; 8] = [
    "rmsprop_critic/0.bias",
    "rmsprop_critic/0.weight",
    "rmsprop_critic/1.bias",
    "rmsprop_critic/1.weight",
    "rmsprop_actor/0.bias",
    "rmsprop_actor/0.weight",
    "rmsprop_actor/1.bias",
    "rmsprop_actor/1.weight",
];

/// A worker's gradient, at its own parameters, changes the shared ones, which have moved on meanwhile.
fn recorded_update(name: &str) {
    let mut recording = Recording::open(name);
    let args = args(&[
        &format!("--gamma={}", recording.number("gamma")),
        &format!("--ent-coef={}", recording.number("entropy_coefficient")),
        &format!("--learning-rate={}", recording.number("learning_rate")),
        &format!("--rms-alpha={}", recording.number("rmsprop_alpha")),
        &format!("--rms-eps={}", recording.number("rmsprop_epsilon")),
    ]);
    let agent = || A3c::new(4, 2, &[24], &args).unwrap();
    let (worker, mut server) = (agent(), agent());
    recording.set(&worker.parameters, WORKER);
    recording.set(&server.parameters, SHARED);
    let squares = SQUARES.map(|name| recording.floats(&format!("parameters/{name}")));
    server.optimizer.set_mean_squares(squares.to_vec()).unwrap();

    let next_observations = recording.floats("batch/next_observations");
    let segment = Segment {
        observations: recording.floats("batch/observations"),
        actions: recording.integers("batch/actions"),
        rewards: recording.floats("batch/rewards"),
        next_observation: next_observations[next_observations.len() - 4..].to_vec(),
        terminated: recording.flags("batch/terminated").ends_with(&[true]),
        episodes: Vec::new(),
    };
    let values = |observations: &[f32]| -> Vec<f32> {
        let values = worker.critic.forward(&worker.tensor(observations).unwrap()).unwrap();
        values.flatten_all().unwrap().to_vec1().unwrap()
    };
    let next_value = values(&segment.next_observation)[0];
    let returns = segment.returns(next_value, args.gamma as f32);
    let advantages = returns.iter().zip(values(&segment.observations)).map(|(r, v)| r - v);
    recording.close("expected/advantages", advantages.collect::<Vec<_>>());
    recording.close("expected/returns", returns);

    let num_steps = segment.rewards.len();
    let update = worker.gradient(segment).unwrap();
    assert_eq!(update.num_steps, num_steps);
    let n = num_steps as f32;
    recording.close("expected/loss/policy", n * update.policy_loss);
    recording.close("expected/loss/value", n * update.value_loss);
    recording.close("expected/loss/entropy", n * update.entropy);
    let mut rest = &update.gradient[..];
    let mut gradients = Vec::new();
    for parameter in worker.parameters.all_vars() {
        let (own, others) = rest.split_at(parameter.elem_count());
        gradients.push(own.to_vec());
        rest = others;
    }
    recording.gradients("expected/gradients", &server.parameters, SHARED, gradients);
    recording.unmoved(&worker.parameters, WORKER);
    recording.unmoved(&server.parameters, SHARED);

    server.update(&update.gradient).unwrap();
    recording.parameters_close("expected/parameters", &server.parameters, SHARED, 1e-6);
    for (name, found) in SQUARES.iter().zip(server.optimizer.mean_squares().unwrap()) {
        recording.close(&format!("expected/parameters/{name}"), found);
    }
    recording.unmoved(&worker.parameters, WORKER);
    recording.finish();
}

#[test]
fn recorded_update_of_a_segment_that_was_cut() {
    recorded_update("a3c");
}

#[test]
fn recorded_update_of_a_segment_that_terminated() {
    recorded_update("a3c__terminated");
}

#[test]
fn recorded_update_of_a_segment_that_was_truncated() {
    recorded_update("a3c__truncated");
}

#[test]
fn a_segment_holds_what_happened_and_ends_with_the_episode() {
    let a3c = A3c::new(3, 2, &[8], &args(&["--num-steps=2"])).unwrap();
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let mut rng = rng(1, 0);
    let (mut lengths, mut actions) = (Vec::new(), [0; 2]);
    while lengths.len() < 8 {
        let before = log.transitions().len();
        let segment = a3c.gather(&mut envs, &mut rng).unwrap();
        let happened = &log.transitions()[before..];
        assert_eq!(segment.rewards.len(), happened.len());
        for (i, t) in happened.iter().enumerate() {
            assert_eq!(segment.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
            assert_eq!(segment.actions[i] as f32, t.action[0], "{t:?}");
            assert_eq!(segment.rewards[i], t.reward, "{t:?}");
            assert!(i + 1 == happened.len() || !(t.terminated || t.truncated), "goes on after {t:?}");
            actions[segment.actions[i] as usize] += 1;
        }
        let last = &happened[happened.len() - 1];
        assert_eq!(segment.next_observation, last.next_observation, "{last:?}");
        assert_eq!(segment.terminated, last.terminated, "{last:?}");
        assert_eq!(segment.episodes.len(), usize::from(last.terminated || last.truncated));
        lengths.push(happened.len());
    }
    // Episodes of 3 (terminated), 4 (truncated), 1 (terminated), 2 (both) and 1 (truncated) steps.
    assert_eq!(lengths, [2, 1, 2, 2, 1, 2, 1, 2]);
    assert!(actions[0] > 0 && actions[1] > 0);
}

#[test]
fn actions_are_drawn_from_the_policy_or_its_most_probable_ones() {
    let a3c = A3c::new(1, 2, &[8], &args(&[])).unwrap();
    for (name, parameter) in a3c.parameters.named_vars() {
        if name == "policy.output.bias" {
            parameter.set(&Tensor::new(&[0.0_f32, 1.0], &Device::Cpu).unwrap()).unwrap();
        }
    }
    let observations = vec![0.0; 4000];
    assert!(a3c.act_greedily(&observations).unwrap().iter().all(|&action| action == 1));
    let actions = a3c.act(&observations, &mut rng(1, 0)).unwrap();
    let share = actions.iter().sum::<u32>() as f64 / 4000.0;
    // e / (1 + e); four standard errors.
    assert_abs_diff_eq!(share, 0.731, epsilon = 0.028);
}

#[test]
fn workers_save_and_load_where_they_are() {
    let args = args(&["--workers=3"]);
    let result = dist::launch(args.workers, |world| {
        let a3c = A3c::new(4, 2, &[8], &args)?;
        if world.rank() != SERVER {
            return work(a3c, &args, world);
        }
        let mut workers = Workers(world);
        let learn = || -> Result<Vec<Vec<u8>>> {
            Workers(world).tell(&Order::Learn(a3c.parameters.values()?))?;
            (1..world.size()).map(|worker| world.receive::<Update>(worker)?.save()).collect()
        };
        let begin = learn()?;
        assert_ne!(begin[0], begin[1], "two workers do the same");
        let saved = workers.save()?;
        let first: Vec<_> = (0..20).map(|_| learn()).collect::<Result<_>>()?;
        assert_ne!(first[0], first[1]);
        workers.load(&saved)?;
        let second: Vec<_> = (0..20).map(|_| learn()).collect::<Result<_>>()?;
        assert!(first == second);
        workers.tell(&Order::Stop)
    });
    result.unwrap();
}

/// What the defaults do over a few rounds, the step size falling.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=3000", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: another RMSProp, other segments, a step size that stays.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Acrobot-v1",
        "--workers=3",
        "--num-steps=7",
        "--total-timesteps=2500",
        "--anneal-lr=false",
        "--learning-rate=0.003",
        "--rms-alpha=0.9",
        "--rms-eps=0.01",
        "--gamma=0.9",
        "--ent-coef=0.1",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
