//! The learner's gradient and the server's step against PyTorch's, both rules against what is dropped, the
//! replay buffer against what happened, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::Space;
use common::nn::Adam;
use regression::{Layers, Recording, SCRIPT, View, scripted};

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["gorila"].iter().chain(flags).map(Into::into)).unwrap()
}

fn machine(rank: usize, args: &Args) -> Machine {
    let seed = 1 + rank as u64;
    let envs = VecEnv::make(&args.run.env_id, 1, seed).unwrap();
    Machine::new(rank, envs, [64, 64], seed, args).unwrap()
}

const ONLINE: Layers =
    &[("hidden1", &["online/layer1"]), ("hidden2", &["online/layer2"]), ("output", &["online/layer3"])];
const TARGET: Layers =
    &[("hidden1", &["target/layer1"]), ("hidden2", &["target/layer2"]), ("output", &["target/layer3"])];

fn recorded_machine(recording: &Recording, clip_error: &str) -> Machine {
    let args = args(&[
        &format!("--gamma={}", recording.number("gamma")),
        &format!("--learning-rate={}", recording.number("learning_rate")),
        &format!("--outlier-deviations={}", recording.number("outlier_deviations")),
        &format!("--clip-error={clip_error}"),
        "--adagrad-eps=1e-10", // the recording's, whose step size does not fall
        "--total-timesteps=1e15",
    ]);
    let machine = machine(0, &args);
    recording.set(&machine.parameters, ONLINE);
    recording.set(&machine.target_parameters, TARGET);
    machine
}

fn recorded_batch(recording: &Recording) -> Vec<Transition> {
    let floats = |name: &str| recording.floats(&format!("batch/{name}"));
    let (actions, terminated) = (recording.integers("batch/actions"), recording.flags("batch/terminated"));
    let (observations, next_observations) = (floats("observations"), floats("next_observations"));
    let transition = |(i, &reward): (usize, &f32)| Transition {
        observation: observations[4 * i..4 * (i + 1)].to_vec(),
        action: actions[i],
        reward,
        next_observation: next_observations[4 * i..4 * (i + 1)].to_vec(),
        terminated: terminated[i],
    };
    floats("rewards").iter().enumerate().map(transition).collect()
}

/// Ten updates on the recorded batch; `step` is the server's, from θ⁺ and a gradient to the next θ⁺.
fn recorded_update(name: &str, mut step: impl FnMut(&Machine, &[f32]) -> Vec<f32>) -> (Recording, Machine) {
    let mut recording = Recording::open(name);
    assert_eq!(recording.text("loss"), "huber");
    let machine = recorded_machine(&recording, "1");
    let batch = recorded_batch(&recording);
    let batch: Vec<&Transition> = batch.iter().collect();
    let y: Vec<f32> = machine.td_targets(&batch).unwrap().to_vec1().unwrap();
    let q_values = recording.floats("expected/q_values");
    recording.close("expected/td_errors", y.iter().zip(&q_values).map(|(y, q)| y - q).collect::<Vec<_>>());
    recording.close("expected/targets", y);
    let mut losses = Vec::new();
    for update in 0..10 {
        let (gradient, loss, mean) = machine.gradient(&batch).unwrap();
        losses.push(loss);
        if update == 0 {
            recording.close("expected/loss/td_loss", loss);
            assert_abs_diff_eq!(mean, q_values.iter().sum::<f32>() / 32.0, epsilon = 1e-5);
            let mut rest = &gradient[..];
            let mut gradients = Vec::new();
            for parameter in machine.parameters.all_vars() {
                let (own, others) = rest.split_at(parameter.elem_count());
                gradients.push(own.to_vec());
                rest = others;
            }
            recording.gradients("expected/gradients", &machine.parameters, ONLINE, gradients);
            recording.unmoved(&machine.parameters, ONLINE); // only servers move them
        }
        let parameters = step(&machine, &gradient);
        machine.parameters.set_values(&parameters).unwrap();
        if update == 0 {
            let first_step = recording.number("learning_rate");
            recording.parameters_within("expected/parameters", &machine.parameters, ONLINE, first_step, 1e-2);
        }
    }
    recording.unmoved(&machine.target_parameters, TARGET);
    recording.losses("expected/losses_over_updates", &losses);
    (recording, machine)
}

/// Of three servers, whose shares are not of the same size.
#[test]
fn recorded_update_by_adagrad() {
    let mut shards: Vec<Shard> = Vec::new();
    let step = |machine: &Machine, gradient: &[f32]| {
        let parts = |i: usize| share(gradient.len(), i, 3);
        if shards.is_empty() {
            let parameters = machine.parameters.values().unwrap();
            let shard = |i| Shard::new(parameters[parts(i)].to_vec());
            shards = (0..3).map(shard).collect();
        }
        for (i, shard) in shards.iter_mut().enumerate() {
            shard.apply(&gradient[parts(i)], &machine.args);
        }
        shards.iter().flat_map(|shard| shard.parameters.clone()).collect()
    };
    let (mut recording, _) = recorded_update("gorila__adagrad", step);
    assert!(shards.iter().all(|shard| shard.version == 10 && shard.stale == 0));
    assert_ne!(shards[0].parameters.len(), shards[2].parameters.len());
    outliers(&mut recording);
    recording.finish();
}

/// The paper's rule is AdaGrad; of the recording with Adam the learner's part is this file's.
#[test]
fn recorded_update_followed_by_adam() {
    let mut adam = None;
    let step = |machine: &Machine, gradient: &[f32]| {
        let new = || Adam::new(&machine.parameters, machine.args.learning_rate).unwrap();
        let adam = adam.get_or_insert_with(new);
        adam.step_values(gradient).unwrap();
        machine.parameters.values().unwrap()
    };
    let (mut recording, _) = recorded_update("gorila__adam", step);
    outliers(&mut recording);
    recording.finish();
}

/// The learner's rule, which counts every loss.
fn outliers(recording: &mut Recording) {
    assert_eq!(recording.number("outlier_warmup"), 10.0);
    let deviations = recording.number("outlier_deviations");
    let mut statistics = LossStatistics::default();
    let (mut means, mut stds, mut keep) = (Vec::new(), Vec::new(), Vec::new());
    for loss in recording.floats("batch/losses") {
        means.push(statistics.mean);
        stds.push((statistics.squares / statistics.count.max(1) as f64).sqrt());
        keep.push(u32::from(statistics.accept(loss.into(), deviations)));
    }
    recording.close("expected/outliers/all_seen/mean", means);
    recording.close("expected/outliers/all_seen/deviation", stds);
    assert_eq!(statistics.outliers as usize, keep.iter().filter(|&&keep| keep == 0).count());
    recording.equal("expected/outliers/all_seen/keep", keep);
}

/// Without clipping the loss is ½ δ², whose gradient is δ; with it, no error counts for more than κ.
#[test]
fn errors_are_clipped_at_kappa() {
    let mut recording = Recording::open("gorila__adagrad");
    let batch = recorded_batch(&recording);
    let errors = recording.floats("expected/td_errors");
    let (small, large) = (
        errors.iter().position(|error| error.abs() < 0.3).unwrap(),
        errors.iter().position(|error| error.abs() > 1.5).unwrap(),
    );
    let norm = |clip: &str, i: usize| {
        let (gradient, loss, _) = recorded_machine(&recording, clip).gradient(&[&batch[i]]).unwrap();
        (gradient.iter().map(|g| g * g).sum::<f32>().sqrt(), loss)
    };
    let found = [small, large].map(|i| (errors[i].abs(), norm("1e9", i), norm("0.5", i)));
    for (error, (whole, squared), (most, loss)) in found {
        let slope = error.min(0.5);
        recording.computed("½ δ²", squared, 0.5 * error * error, 1e-4, 1e-6);
        recording.computed("the clipped loss", loss, slope * (error - 0.5 * slope), 1e-4, 1e-6);
        recording.computed("its share of the gradient", most / whole, slope / error, 1e-4, 1e-6);
    }
    recording.finish();
}

#[test]
fn gradients_that_are_too_old_are_dropped() {
    let args =
        args(&["--max-staleness=2", "--learning-rate=0.5", "--adagrad-eps=1e-9", "--total-timesteps=1e15"]);
    let mut shard = Shard::new(vec![1.0, 2.0]);
    shard.apply(&[4.0, 0.0], &args);
    assert_abs_diff_eq!(shard.parameters[..], [0.5, 2.0], epsilon = 1e-6); // g / √g² = 1
    shard.apply(&[-3.0, 1.0], &args);
    assert_abs_diff_eq!(shard.parameters[..], [0.5 + 0.5 * 3.0 / 5.0, 1.5], epsilon = 1e-6);
    shard.apply(&[1.0, 1.0], &args); // two changes old
    let before = shard.parameters.clone();
    shard.apply(&[1.0, 1.0], &args); // three
    assert_eq!((shard.version, shard.stale), (3, 1));
    assert_eq!((shard.parameters.clone(), shard.squares.clone()), (before, vec![26.0, 2.0]));
    shard.fetched = 1;
    shard.apply(&[1.0, 1.0], &args);
    assert_eq!((shard.version, shard.stale), (4, 1));
}

#[test]
fn servers_share_all_parameters() {
    for (len, size) in [(10, 1), (10, 3), (11, 4), (3, 5)] {
        let all: Vec<usize> = (0..size).flat_map(|rank| share(len, rank, size)).collect();
        assert_eq!(all, (0..len).collect::<Vec<_>>());
    }
}

#[test]
fn the_target_network_is_copied_each_time_n_gradients_have_been_applied() {
    let mut machine = machine(0, &args(&["--target-network-frequency=10"]));
    let len = machine.parameters.num_parameters();
    let mut copies = Vec::new();
    for version in [4, 9, 10, 14, 19, 33] {
        machine.shard.version = version;
        let parameters = vec![version as f32; len];
        machine.fetch(&parameters).unwrap();
        assert_eq!(machine.parameters.values().unwrap(), parameters);
        assert_eq!(machine.shard.fetched, version);
        copies.push(machine.target_parameters.values().unwrap() == parameters);
    }
    assert_eq!(copies, [false, false, true, false, false, true]);
}

#[test]
fn the_replay_buffer_holds_what_happened_and_forgets_its_oldest() {
    const CAPACITY: usize = 7;
    let args = args(&[&format!("--buffer-size={CAPACITY}")]);
    let (envs, log) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let mut machine = Machine::new(0, envs, [8, 8], 3, &args).unwrap();
    let mut kinds = [false; 3]; // a termination, a truncation, both
    for _ in 0..20 {
        machine.act(0.5).unwrap();
        let happened = log.transitions();
        let kept = &happened[happened.len().saturating_sub(CAPACITY)..];
        assert_eq!(machine.replay.len(), kept.len());
        for (stored, t) in machine.replay.iter().rev().zip(kept) {
            assert_eq!(stored.observation, t.observation, "{t:?}");
            assert_eq!(stored.action as f32, t.action[0], "{t:?}");
            assert_eq!(stored.reward, t.reward, "{t:?}");
            assert_eq!(stored.next_observation, t.next_observation, "{t:?}");
            assert_eq!(stored.terminated, t.terminated, "{t:?}");
            kinds[0] |= t.terminated && !t.truncated;
            kinds[1] |= t.truncated && !t.terminated;
            kinds[2] |= t.terminated && t.truncated;
        }
    }
    assert_eq!(kinds, [true; 3]);
}

#[test]
fn actions_are_greedy_but_for_a_share_of_epsilon() {
    let mut machine = machine(0, &args(&["--buffer-size=2000"]));
    let mut others = |epsilon| {
        let mut count = 0;
        for _ in 0..1000 {
            let greedy = machine.act_greedily(machine.envs.observations()).unwrap()[0];
            machine.act(epsilon).unwrap();
            count += u32::from(machine.replay.front().unwrap().action != greedy);
        }
        f64::from(count) / 1000.0
    };
    // One in two random actions is not the greedy one; four standard errors.
    assert_eq!(others(0.0), 0.0);
    assert_abs_diff_eq!(others(1.0), 0.5, epsilon = 0.063);
    assert_abs_diff_eq!(others(0.4), 0.2, epsilon = 0.051);
}

#[test]
fn epsilon_falls_in_a_straight_line_and_stays() {
    let args = args(&["--total-timesteps=1000", "--end-e=0.1", "--exploration-fraction=0.2"]);
    assert_eq!(epsilon(0, &args), 1.0);
    assert_abs_diff_eq!(epsilon(100, &args), 0.55, epsilon = 1e-12);
    assert_abs_diff_eq!(epsilon(900, &args), 0.1, epsilon = 1e-12);
}

/// Every server applies every learner's gradient, in the order of ranks, and everyone fetches the whole.
#[test]
fn a_round_changes_the_parameters_by_everyones_gradients() {
    let args = args(&["--workers=3", "--learning-starts=1", "--batch-size=4"]);
    let result = dist::launch(args.workers, |world| {
        let mut machine = machine(world.rank(), &args);
        let first = machine.parameters.values()?;
        machine.round(0, world)?;
        assert_eq!(machine.parameters.values()?, first, "nobody has learned");
        let messages = machine.round(3, world)?;
        assert_eq!(machine.shard.version, 3);
        // What this rank's server got is a part of every learner's gradient at θ.
        let own = share(first.len(), world.rank(), 3);
        let mut expected = Shard::new(first[own.clone()].to_vec());
        for message in &messages {
            let gradient = message.gradient.as_ref().expect("no outlier among the first losses");
            assert_eq!(gradient.len(), own.len());
            expected.apply(gradient, &args);
        }
        assert_eq!(machine.shard.parameters, expected.parameters);
        machine.round(6, world)?;
        let everyones = world.all_gather(machine.parameters.values()?)?;
        assert!(everyones.iter().all(|parameters| *parameters == everyones[0]));
        assert_eq!(everyones[0][own], expected.parameters);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn machines_save_and_load_where_they_are() {
    let args = args(&["--workers=3", "--learning-starts=10", "--target-network-frequency=20"]);
    let result = dist::launch(args.workers, |world| {
        let mut machine = machine(world.rank(), &args);
        if world.rank() != 0 {
            return follow(machine, world);
        }
        let rounds = |machine: &mut Machine| -> Result<Vec<Vec<u8>>> {
            (0..20)
                .map(|round| {
                    let step = 30 + 3 * round;
                    world.broadcast(&mut Order::Round(step))?;
                    machine.round(step, world)?.save()
                })
                .collect()
        };
        rounds(&mut machine)?;
        let saved = Machines(&mut machine, world).save()?;
        let first = rounds(&mut machine)?;
        let (parameters, target) = (machine.parameters.values()?, machine.target_parameters.values()?);
        Machines(&mut machine, world).load(&saved)?;
        assert_ne!(machine.parameters.values()?, parameters);
        assert!(rounds(&mut machine)? == first);
        assert_eq!(machine.parameters.values()?, parameters);
        assert_eq!(machine.target_parameters.values()?, target);
        world.broadcast(&mut Order::Stop)
    });
    result.unwrap();
}

/// What the defaults do, ε falling, through copies of the target network.
#[test]
fn pinned_run() {
    let flags = [
        "--total-timesteps=900",
        "--learning-starts=100",
        "--target-network-frequency=150",
        "--exploration-fraction=0.7",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Gradients dropped by both rules, an overflowing buffer, clipped errors.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=Acrobot-v1",
        "--workers=3",
        "--total-timesteps=900",
        "--learning-starts=50",
        "--learning-rate=0.02",
        "--adagrad-eps=0.5",
        "--max-staleness=1",
        "--outlier-deviations=0.5",
        "--batch-size=8",
        "--buffer-size=100",
        "--target-network-frequency=50",
        "--gamma=0.9",
        "--end-e=0.2",
        "--clip-error=0.5",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
