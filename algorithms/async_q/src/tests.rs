//! The update against PyTorch's, segments against what happened, workers and their exploration, and runs
//! against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, scripted};

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["async_q"].iter().chain(flags).map(Into::into)).unwrap()
}

const ONLINE: Layers =
    &[("hidden0", &["online/layer1"]), ("hidden1", &["online/layer2"]), ("output", &["online/layer3"])];
const TARGET: Layers =
    &[("hidden0", &["target/layer1"]), ("hidden1", &["target/layer2"]), ("output", &["target/layer3"])];

/// The parameters of [`ONLINE`] in the order of a `VarMap`, as they are called in the recording.
fn recorded_order() -> impl Iterator<Item = String> {
    let layers = ["layer1", "layer2", "layer3"].iter();
    layers.flat_map(|layer| ["bias", "weight"].map(|kind| format!("{layer}.{kind}")))
}

/// The learner as it is recorded before the update.
fn recorded_learner(recording: &Recording) -> AsyncQ {
    let number = |name: &str| recording.number(name);
    let args = args(&[
        &format!("--gamma={}", number("gamma")),
        &format!("--learning-rate={}", number("learning_rate")),
        &format!("--rms-alpha={}", number("rms_decay")),
        &format!("--rms-eps={}", number("rms_epsilon")),
    ]);
    let mut async_q = AsyncQ::new(4, 2, &args).unwrap();
    recording.set(&async_q.parameters, ONLINE);
    recording.set(&async_q.target_parameters, TARGET);
    // Shared by all workers, and not zero at the start.
    let mean_squares = recorded_order().map(|name| recording.floats(&format!("parameters/rms/{name}")));
    async_q.optimizer.set_mean_squares(mean_squares.collect()).unwrap();
    async_q
}

/// The recorded steps of update `update`.
fn recorded_segment(recording: &Recording, update: u32) -> Segment {
    let updates = recording.integers("batch/update");
    let rows: Vec<usize> = (0..updates.len()).filter(|&row| updates[row] == update).collect();
    let floats = |name: &str, width: usize| {
        let values = recording.floats(&format!("batch/{name}"));
        rows.iter().flat_map(|row| values[row * width..(row + 1) * width].to_vec()).collect::<Vec<_>>()
    };
    let actions = recording.integers("batch/actions");
    Segment {
        observations: floats("observations", 4),
        actions: rows.iter().map(|&row| actions[row]).collect(),
        rewards: floats("rewards", 1),
        next_observations: floats("next_observations", 4),
        terminated: floats("terminated", 1),
        episodes: Vec::new(),
    }
}

#[test]
fn recorded_updates_in_turn() {
    let mut recording = Recording::open("async_q");
    let mut async_q = recorded_learner(&recording);
    let (mut targets, mut errors, mut losses, mut norms) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for i in 0..3 {
        let segment = recorded_segment(&recording, i);
        let y: Vec<f32> = async_q.td_targets(&segment).unwrap().to_vec1().unwrap();
        let q_values = async_q.q_network.forward(&async_q.tensor(&segment.observations).unwrap()).unwrap();
        let q_values = q_values.to_vec2::<f32>().unwrap();
        let chosen: Vec<f32> = q_values.iter().zip(&segment.actions).map(|(q, &a)| q[a as usize]).collect();
        errors.extend(y.iter().zip(&chosen).map(|(y, q)| y - q));
        targets.extend(y);

        let len = chosen.len();
        let update = async_q.gradient(segment, 0.3).unwrap();
        assert_eq!((update.num_steps, update.epsilon), (len, 0.3));
        assert_abs_diff_eq!(update.q_values, chosen.iter().sum::<f32>() / len as f32, epsilon = 1e-5);
        losses.push(update.td_loss * len as f32);
        norms.push(update.gradient.iter().map(|g| g * g).sum::<f32>().sqrt());
        if i == 0 {
            recording.close("expected/loss/td_loss", losses[0]);
            let mut rest = &update.gradient[..];
            let mut gradients = Vec::new();
            for parameter in async_q.parameters.all_vars() {
                let (own, others) = rest.split_at(parameter.elem_count());
                gradients.push(own.to_vec());
                rest = others;
            }
            recording.gradients("expected/gradients", &async_q.parameters, ONLINE, gradients);
            recording.unmoved(&async_q.parameters, ONLINE); // only the server moves them
        }
        async_q.update(&update.gradient).unwrap();
        if i == 0 {
            recording.parameters_close("expected/parameters_after_first", &async_q.parameters, ONLINE, 2e-6);
        }
    }
    recording.close("expected/targets", targets);
    recording.close("expected/td_errors", errors);
    recording.close("expected/summed_losses", losses);
    recording.close("expected/gradient_norms", norms);
    recording.parameters_close("expected/parameters", &async_q.parameters, ONLINE, 2e-6);
    for (name, found) in recorded_order().zip(async_q.optimizer.mean_squares().unwrap()) {
        recording.close(&format!("expected/parameters/rms/{name}"), found);
    }
    recording.unmoved(&async_q.target_parameters, TARGET);
    async_q.update_target().unwrap();
    assert_eq!(async_q.target_parameters.values().unwrap(), async_q.parameters.values().unwrap());
    recording.finish();
}

#[test]
fn recorded_updates_of_one_segment() {
    let mut recording = Recording::open("async_q");
    let mut async_q = recorded_learner(&recording);
    let losses: Vec<f32> = (0..10)
        .map(|_| {
            let update = async_q.gradient(recorded_segment(&recording, 0), 0.0).unwrap();
            async_q.update(&update.gradient).unwrap();
            update.td_loss * update.num_steps as f32
        })
        .collect();
    recording.losses("expected/losses_over_updates", &losses);
    recording.finish();
}

#[test]
fn a_segment_holds_what_happened_and_ends_with_the_episode() {
    let async_q = AsyncQ::new(3, 2, &args(&["--num-steps=2", "--hidden-sizes=8"])).unwrap();
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let mut rng = rng(1, 0);
    let (mut lengths, mut actions) = (Vec::new(), [0; 2]);
    while lengths.len() < 8 {
        let before = log.transitions().len();
        let segment = async_q.gather(&mut envs, 0.5, &mut rng).unwrap();
        let happened = &log.transitions()[before..];
        assert_eq!(segment.rewards.len(), happened.len());
        for (i, t) in happened.iter().enumerate() {
            assert_eq!(segment.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
            assert_eq!(segment.actions[i] as f32, t.action[0], "{t:?}");
            assert_eq!(segment.rewards[i], t.reward, "{t:?}");
            assert_eq!(segment.next_observations[3 * i..3 * (i + 1)], t.next_observation, "{t:?}");
            assert_eq!(segment.terminated[i] == 1.0, t.terminated, "{t:?}");
            assert!(i + 1 == happened.len() || !(t.terminated || t.truncated), "goes on after {t:?}");
            actions[segment.actions[i] as usize] += 1;
        }
        let last = &happened[happened.len() - 1];
        assert_eq!(segment.episodes.len(), usize::from(last.terminated || last.truncated));
        lengths.push(happened.len());
    }
    // Episodes of 3 (terminated), 4 (truncated), 1 (terminated), 2 (both) and 1 (truncated) steps.
    assert_eq!(lengths, [2, 1, 2, 2, 1, 2, 1, 2]);
    assert!(actions[0] > 0 && actions[1] > 0);
}

#[test]
fn actions_are_greedy_but_for_a_share_of_epsilon() {
    let async_q = AsyncQ::new(1, 3, &args(&["--hidden-sizes=8"])).unwrap();
    let observations: Vec<f32> = (0..3000).map(|i| i as f32 / 300.0 - 5.0).collect();
    let mut rng = rng(1, 0);
    let greedy = async_q.act_greedily(&observations).unwrap();
    assert_eq!(async_q.act(&observations, 0.0, &mut rng).unwrap(), greedy);
    let q_values = async_q.q_network.forward(&async_q.tensor(&observations).unwrap()).unwrap();
    for (row, action) in q_values.to_vec2::<f32>().unwrap().iter().zip(&greedy) {
        assert!(row.iter().all(|q| *q <= row[*action as usize]));
    }
    let others = |epsilon, rng: &mut Rng| {
        let actions = async_q.act(&observations, epsilon, rng).unwrap();
        assert!(actions.iter().all(|&action| action < 3));
        actions.iter().zip(&greedy).filter(|(action, greedy)| action != greedy).count() as f64 / 3000.0
    };
    // Two in three random actions are not the greedy one; four standard errors.
    assert!((others(1.0, &mut rng) - 2.0 / 3.0).abs() < 0.035);
    assert!((others(0.3, &mut rng) - 0.2).abs() < 0.03);
}

#[test]
fn epsilon_falls_to_one_of_three_values() {
    assert_eq!(linear_schedule(0.1, 100.0, 0), 1.0);
    assert_abs_diff_eq!(linear_schedule(0.1, 100.0, 50), 0.55, epsilon = 1e-12);
    assert_abs_diff_eq!(linear_schedule(0.1, 100.0, 100_000), 0.1, epsilon = 1e-12);
    let mut rng = rng(1, 0);
    let drawn: Vec<f64> = (0..10_000).map(|_| draw_final_epsilon(&mut rng)).collect();
    // Four standard errors of 0.005.
    for (value, probability) in [(0.1, 0.4), (0.01, 0.3), (0.5, 0.3)] {
        let share = drawn.iter().filter(|&&epsilon| epsilon == value).count() as f64 / 10_000.0;
        assert_abs_diff_eq!(share, probability, epsilon = 0.02);
    }
}

#[test]
fn workers_save_and_load_where_they_are() {
    let args = args(&["--workers=3", "--hidden-sizes=8"]);
    let result = dist::launch(args.workers, |world| {
        let async_q = AsyncQ::new(4, 2, &args)?;
        if world.rank() != SERVER {
            return work(async_q, &args, world);
        }
        let mut workers = Workers(world);
        let learn = |target| -> Result<Vec<Vec<u8>>> {
            let parameters = async_q.parameters.values()?;
            let order = Order::Learn { parameters, target, global_step: 100_000 };
            Workers(world).tell(&order)?;
            (1..world.size()).map(|worker| world.receive::<Update>(worker)?.save()).collect()
        };
        // Another target network than the one that all begin with: a worker that forgot it would show.
        let target: Vec<f32> = async_q.parameters.values()?.iter().map(|x| 2.0 * x).collect();
        let own = learn(None)?;
        assert_ne!(own[0], own[1], "two workers do the same");
        learn(Some(target))?;
        for _ in 0..20 {
            learn(None)?;
        }
        let saved = workers.save()?;
        let first: Vec<_> = (0..20).map(|_| learn(None)).collect::<Result<_>>()?;
        assert_ne!(first[0], first[1]);
        learn(Some(async_q.parameters.values()?))?;
        workers.load(&saved)?;
        let second: Vec<_> = (0..20).map(|_| learn(None)).collect::<Result<_>>()?;
        assert!(first == second);
        workers.tell(&Order::Stop)
    });
    result.unwrap();
}

/// What the defaults do over a few rounds, ε and the step size falling.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=2500", "--target-network-frequency=300", "--eval-episodes=2"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// What the defaults leave out: another RMSProp, other sums, values of ε and sizes, a step size that stays.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Acrobot-v1",
        "--workers=3",
        "--hidden-sizes=16",
        "--num-steps=7",
        "--total-timesteps=2000",
        "--anneal-lr=false",
        "--learning-rate=0.003",
        "--rms-alpha=0.9",
        "--rms-eps=0.1",
        "--gamma=0.9",
        "--exploration-fraction=0.8",
        "--target-network-frequency=150",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
