//! MBPO's model, rollouts and learner against PyTorch's, its parts against their definitions, its buffers
//! against what happened, and a run against its pin.

use super::*;
use approx::{assert_abs_diff_eq, assert_relative_eq};
use common::envs::{Env, Space, make, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, recorded::values, scripted};

fn args(flags: &[&str]) -> Args {
    let argv = ["mbpo"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

fn tensor(values: &[f32], columns: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const MODEL: Layers = &[
    ("0.hidden1", &["model_0/fc1"]),
    ("0.hidden2", &["model_0/fc2"]),
    ("0.output", &["model_0/mean", "model_0/log_variance"]),
    ("1.hidden1", &["model_1/fc1"]),
    ("1.hidden2", &["model_1/fc2"]),
    ("1.output", &["model_1/mean", "model_1/log_variance"]),
    ("2.hidden1", &["model_2/fc1"]),
    ("2.hidden2", &["model_2/fc2"]),
    ("2.output", &["model_2/mean", "model_2/log_variance"]),
    ("3.hidden1", &["model_3/fc1"]),
    ("3.hidden2", &["model_3/fc2"]),
    ("3.output", &["model_3/mean", "model_3/log_variance"]),
    ("4.hidden1", &["model_4/fc1"]),
    ("4.hidden2", &["model_4/fc2"]),
    ("4.output", &["model_4/mean", "model_4/log_variance"]),
    ("max_log_variance", &["bounds/max_log_variance"]),
    ("min_log_variance", &["bounds/min_log_variance"]),
];
const ACTOR: Layers =
    &[("hidden1", &["actor/fc1"]), ("hidden2", &["actor/fc2"]), ("output", &["actor/mean", "actor/log_std"])];
const CRITICS: Layers = &[
    ("qf1.hidden1", &["critic_1/fc1"]),
    ("qf1.hidden2", &["critic_1/fc2"]),
    ("qf1.output", &["critic_1/fc3"]),
    ("qf2.hidden1", &["critic_2/fc1"]),
    ("qf2.hidden2", &["critic_2/fc2"]),
    ("qf2.output", &["critic_2/fc3"]),
];
const TARGETS: Layers = &[
    ("qf1.hidden1", &["target_critic_1/fc1"]),
    ("qf1.hidden2", &["target_critic_1/fc2"]),
    ("qf1.output", &["target_critic_1/fc3"]),
    ("qf2.hidden1", &["target_critic_2/fc1"]),
    ("qf2.hidden2", &["target_critic_2/fc2"]),
    ("qf2.output", &["target_critic_2/fc3"]),
];
const TEMPERATURE: Layers = &[("log_alpha", &["temperature/log_alpha"])];

/// The rows of `batch` at `indices`.
fn select(batch: &Batch, indices: &[u32]) -> Batch {
    let indices = Tensor::new(indices, &Device::Cpu).unwrap();
    let column = |column: &Tensor| column.index_select(&indices, 0).unwrap();
    Batch {
        observations: column(&batch.observations),
        actions: column(&batch.actions),
        rewards: column(&batch.rewards),
        next_observations: column(&batch.next_observations),
        terminated: column(&batch.terminated),
    }
}

/// MBPO with the recording's sizes, bounds, hyper-parameters, parameters and elites, normalised by its batch;
/// that batch, and those of the members.
fn recorded(recording: &Recording, silu: bool) -> (Mbpo, Batch, Vec<Batch>) {
    let number = |name: &str| recording.number(name);
    let (low, high) = (recording.numbers("low"), recording.numbers("high"));
    let middle: Vec<f32> = low.iter().zip(&high).map(|(l, h)| ((l + h) / 2.0) as f32).collect();
    let half: Vec<f32> = low.iter().zip(&high).map(|(l, h)| ((h - l) / 2.0) as f32).collect();
    let args = args(&[
        "--hidden-size=32",
        &format!("--silu={silu}"),
        &format!("--gamma={}", number("gamma")),
        &format!("--tau={}", number("tau")),
        &format!("--learning-rate={}", number("model_lr")),
        &format!("--target-entropy={}", number("target_entropy")),
    ]);
    let mut mbpo = Mbpo::new(3, (&middle, &half), &args, &mut rng(1, 0)).unwrap();
    mbpo.actor_optimizer.learning_rate = number("actor_lr"); // one flag here, several numbers there
    assert_eq!([number("critic_lr"), number("temperature_lr")], [number("model_lr"); 2]);
    recording.set(&mbpo.model_parameters, MODEL);
    recording.set(&mbpo.actor_parameters, ACTOR);
    recording.set(&mbpo.critic_parameters, CRITICS);
    recording.set(&mbpo.target_parameters, TARGETS);
    recording.set(&mbpo.temperature, TEMPERATURE);
    mbpo.elites = recording.integers("batch/elites").iter().map(|i| *i as usize).collect();
    mbpo.terminates = |s| s[0].abs() > 1.75;
    assert_eq!(number("termination"), 1.75);
    let batch = Batch {
        observations: recording.tensor("batch/observations"),
        actions: recording.tensor("batch/actions"),
        rewards: recording.column("batch/rewards"),
        next_observations: recording.tensor("batch/next_observations"),
        terminated: recording.column("batch/terminated"),
    };
    mbpo.fit_normalizer(&batch).unwrap();
    let rows = recording.integers("batch/bootstrap_indices");
    let batches = rows.chunks(32).map(|rows| select(&batch, rows)).collect();
    (mbpo, batch, batches)
}

/// Everything that is computed in one update of the model, three steps of rollouts and one of the learner.
fn one_update(name: &str, silu: bool) {
    let mut recording = Recording::open(name);
    let (mut mbpo, batch, batches) = recorded(&recording, silu);
    recording.close("expected/input_mean", &mbpo.input_statistics[0][..]);
    recording.close("expected/input_std", &mbpo.input_statistics[1][..]);

    let [mut means, mut log_variances, mut losses] = [const { Vec::new() }; 3];
    for (member, batch) in mbpo.members.iter().zip(&batches) {
        let (mean, v) = mbpo.predict(member, &batch.observations, &batch.actions).unwrap();
        means.extend(floats(&mean));
        log_variances.extend(floats(&v));
        losses.push(mbpo.errors(member, batch).unwrap().0.to_scalar::<f32>().unwrap());
    }
    recording.close("expected/means", means);
    recording.close("expected/log_variances", log_variances);
    recording.close("expected/member_losses", &losses[..]);
    recording.close("expected/loss/model", mbpo.update_model(&batches).unwrap());
    recording.unmoved(&mbpo.actor_parameters, ACTOR);
    recording.unmoved(&mbpo.critic_parameters, CRITICS);
    let gradients = first_gradients(&mbpo.model_optimizer);
    recording.gradients("expected/gradients", &mbpo.model_parameters, MODEL, gradients);
    let step = recording.number("model_lr");
    recording.parameters("expected/parameters", &mbpo.model_parameters, MODEL, step);

    // Here all rows go on, as in the recording, which marks those that `train` drops.
    let model = values(&mbpo.model_parameters);
    let choices = recording.integers("noise/elite_choices");
    let [action_noise, transition_noise] =
        ["noise/normal_rollout_actions", "noise/normal_rollout_transitions"].map(|n| recording.tensor(n));
    let (mut states, mut steps, mut valid) = (batch.observations.clone(), Vec::new(), vec![1.0; 32]);
    for k in 0..3 {
        let chosen = Tensor::new(&choices[32 * k..32 * (k + 1)], &Device::Cpu).unwrap();
        let noise = [action_noise.get(k).unwrap(), transition_noise.get(k).unwrap()];
        let (step, alive) = mbpo.imagine(&states, &chosen, [&noise[0], &noise[1]]).unwrap();
        let name = |what: &str| format!("expected/rollout_{}/{what}", k + 1);
        recording.within(&name("observations"), &step.observations, 1e-4, 1e-5);
        recording.within(&name("actions"), &step.actions, 1e-4, 1e-5);
        recording.within(&name("rewards"), &step.rewards, 1e-4, 1e-5);
        recording.within(&name("next_observations"), &step.next_observations, 1e-4, 1e-5);
        recording.equal(&name("terminated"), &step.terminated);
        recording.equal(&name("valid"), &valid[..]);
        let ends = floats(&step.terminated);
        valid = valid.iter().zip(&ends).map(|(valid, end)| valid * (1.0 - end)).collect();
        let going: Vec<u32> = (0..32).filter(|row| ends[*row as usize] == 0.0).collect();
        let going = step.next_observations.index_select(&Tensor::new(going, &Device::Cpu).unwrap(), 0);
        assert_eq!(floats(&alive), floats(&going.unwrap()));
        states = step.next_observations.clone();
        steps.push(step);
    }

    let noise = ["noise/normal_target_actions", "noise/normal_actor_actions"].map(|n| recording.tensor(n));
    let (next_actions, next_log_probs) = mbpo.policy(&steps[0].next_observations, &noise[0]).unwrap();
    recording.within("expected/sac/next_actions", &next_actions, 1e-4, 1e-5);
    recording.within("expected/sac/next_log_probs", &next_log_probs, 1e-4, 1e-5);
    let of_all = |mbpo: &Mbpo| {
        let Mbpo { actor_parameters, critic_parameters, target_parameters, temperature, .. } = mbpo;
        [actor_parameters, critic_parameters, target_parameters, temperature].map(values)
    };
    let before = of_all(&mbpo);
    let critic_losses = mbpo.update_critics(&steps[0], &noise[0]).unwrap();
    recording.close("expected/loss/critic_1", critic_losses[0]);
    recording.close("expected/loss/critic_2", critic_losses[1]);
    let after_critics = of_all(&mbpo);
    assert!([0, 2, 3].iter().all(|&i| after_critics[i] == before[i]), "the critics' update moved another");
    let (actor_loss, log_probs) = mbpo.update_actor(&steps[0], &noise[1]).unwrap();
    recording.close("expected/loss/actor", actor_loss);
    let after_actor = of_all(&mbpo);
    assert!(
        [1, 2, 3].iter().all(|&i| after_actor[i] == after_critics[i]),
        "the actor's update moved another"
    );
    let (alpha_loss, alpha) = mbpo.update_temperature(&log_probs).unwrap();
    recording.close("expected/loss/temperature", alpha_loss);
    assert_relative_eq!(alpha, before[3][0].1[0].exp(), max_relative = 1e-6);
    let after_temperature = of_all(&mbpo);
    let others = [0, 1, 2].iter().all(|&i| after_temperature[i] == after_actor[i]);
    assert!(others, "the temperature's update moved another");
    mbpo.update_targets().unwrap();
    let after_targets = of_all(&mbpo);
    assert!(
        [0, 1, 3].iter().all(|&i| after_targets[i] == after_temperature[i]),
        "the averages moved another"
    );
    assert!(values(&mbpo.model_parameters) == model, "the learner's updates moved the model");
    for (optimizer, parameters, layers, step) in [
        (&mbpo.critic_optimizer, &mbpo.critic_parameters, CRITICS, "critic_lr"),
        (&mbpo.actor_optimizer, &mbpo.actor_parameters, ACTOR, "actor_lr"),
        (&mbpo.temperature_optimizer, &mbpo.temperature, TEMPERATURE, "temperature_lr"),
    ] {
        recording.gradients("expected/gradients", parameters, layers, first_gradients(optimizer));
        let step = recording.number(step);
        recording.parameters("expected/parameters", parameters, layers, step);
    }
    recording.parameters_close("expected/parameters", &mbpo.target_parameters, TARGETS, 1e-5);
    recording.finish();
}

#[test]
fn recorded_update() {
    one_update("mbpo", false);
}

#[test]
fn recorded_update_with_silu() {
    one_update("mbpo__silu", true);
}

#[test]
fn recorded_update_ten_times() {
    ten_updates("mbpo", false);
    ten_updates("mbpo__silu", true);
}

/// Ten times the model, the first step of a rollout, and the learner.
fn ten_updates(name: &str, silu: bool) {
    let mut recording = Recording::open(name);
    let (mut mbpo, batch, batches) = recorded(&recording, silu);
    let choices = Tensor::new(&recording.integers("noise/elite_choices")[..32], &Device::Cpu).unwrap();
    let noise = [
        recording.tensor("noise/normal_rollout_actions").get(0).unwrap(),
        recording.tensor("noise/normal_rollout_transitions").get(0).unwrap(),
        recording.tensor("noise/normal_target_actions"),
        recording.tensor("noise/normal_actor_actions"),
    ];
    let mut series = [const { Vec::<f32>::new() }; 5];
    for _ in 0..10 {
        series[0].push(mbpo.update_model(&batches).unwrap());
        let (step, _) = mbpo.imagine(&batch.observations, &choices, [&noise[0], &noise[1]]).unwrap();
        let [critic_1, critic_2] = mbpo.update_critics(&step, &noise[2]).unwrap();
        let (actor, log_probs) = mbpo.update_actor(&step, &noise[3]).unwrap();
        let (temperature, _) = mbpo.update_temperature(&log_probs).unwrap();
        mbpo.update_targets().unwrap();
        for (series, loss) in series[1..].iter_mut().zip([critic_1, critic_2, actor, temperature]) {
            series.push(loss);
        }
    }
    let names = ["model", "critic_1", "critic_2", "actor", "temperature"];
    for (name, losses) in names.iter().zip(&series) {
        recording.losses(&format!("expected/losses_over_updates_{name}"), losses);
    }
    recording.finish();
}

/// For two observed numbers, and one action 1 ± 2.
fn small(flags: &[&str]) -> Mbpo {
    let flags = [&["--hidden-size=16"], flags].concat();
    Mbpo::new(2, (&[1.0], &[2.0]), &args(&flags), &mut rng(3, 0)).unwrap()
}

#[test]
fn softplus_is_exact_and_does_not_overflow() {
    let found = floats(&softplus(&tensor(&[-200.0, -1.0, 0.0, 2.0, 200.0], 1)).unwrap());
    for (found, expected) in found.iter().zip([0.0, 0.313_261_7, LN_2, 2.126_928, 200.0]) {
        assert_abs_diff_eq!(f64::from(*found), expected, epsilon = 1e-6);
    }
}

#[test]
fn log_variances_stay_within_their_bounds() {
    let mbpo = small(&[]);
    let (_, v) =
        mbpo.predict(&mbpo.members[0], &tensor(&[1e6, -1e6, -1e6, 1e6], 2), &tensor(&[1.0, 2.0], 1)).unwrap();
    assert!(floats(&v).iter().all(|v| (-10.001..=0.51).contains(v)), "{v}");
}

#[test]
fn the_better_half_of_the_members_are_elites() {
    let mut mbpo = small(&[]);
    let observations = tensor(&[0.1, 0.2, -0.3, 0.4], 2);
    let batch = Batch {
        actions: tensor(&[0.5, 1.5], 1),
        rewards: tensor(&[1.0, -1.0], 1),
        next_observations: (&observations + 0.5).unwrap(),
        terminated: tensor(&[0.0, 0.0], 1),
        observations,
    };
    let error = |member: &Mlp| -> f32 {
        let (mean, _) = mbpo.predict(member, &batch.observations, &batch.actions).unwrap();
        let y = [1.0, 0.5, 0.5, -1.0, 0.5, 0.5];
        floats(&mean).iter().zip(y).map(|(m, y)| (m - y) * (m - y)).sum::<f32>() / 6.0
    };
    let mut expected: Vec<(f32, usize)> = mbpo.members.iter().map(error).zip(0..).collect();
    expected.sort_by(|a, b| a.0.total_cmp(&b.0));
    let least = mbpo.choose_elites(&batch).unwrap();
    assert_relative_eq!(least, expected[0].0, max_relative = 1e-5);
    assert_eq!(mbpo.elites, [expected[0].1, expected[1].1, expected[2].1]);
}

#[test]
fn imagined_episodes_end_as_the_environments_do() {
    for (env_id, going, over) in [
        ("InvertedPendulum-v5", vec![0.0, -0.199, 0.0, 0.0], vec![0.0, -0.201, 0.0, 0.0]),
        ("Hopper-v5", [&[1.2, 0.19][..], &[0.0; 9]].concat(), [&[0.69, 0.0][..], &[0.0; 9]].concat()),
        ("Hopper-v5", [&[1.2, 0.19][..], &[0.0; 9]].concat(), [&[1.2, -0.21][..], &[0.0; 9]].concat()),
        ("ContinuousCartPole-v0", vec![2.3, 9.0, 0.2, 9.0], vec![0.0, 0.0, 0.22, 0.0]),
    ] {
        let terminates = termination(env_id).unwrap();
        assert!(!terminates(&going) && terminates(&over), "{env_id}");
    }
    assert!(!termination("Pendulum-v1").unwrap()(&[1e9, 1e9, 1e9]));
    assert!(termination("CartPole-v1").unwrap_err().to_string().contains("CartPole-v1"));

    // Beside an environment itself, over episodes of random actions.
    let (mut env, mut rng) = (make("ContinuousCartPole-v0").unwrap(), rng(5, 0));
    let (terminates, mut ends) = (termination("ContinuousCartPole-v0").unwrap(), 0);
    for _ in 0..20 {
        env.reset(&mut rng).unwrap();
        let (mut observation, mut over) = ([0.0; 4], false);
        while !over {
            let action = [rng.random_range(-1.0..1.0_f32)];
            let step = env.step(common::envs::Action::Continuous(&action), &mut rng).unwrap();
            env.observe(&mut observation);
            assert_eq!(step.terminated, terminates(&observation));
            ends += usize::from(step.terminated);
            over = step.terminated || step.truncated;
        }
    }
    assert!(ends > 10);
}

/// With parameters of 0 a member predicts that nothing changes, and noise of 0 adds nothing to that.
#[test]
fn a_rollout_stops_where_its_episode_ends_and_all_may_stop_at_once() {
    let args = args(&["--env-id=ContinuousCartPole-v0", "--hidden-size=8"]);
    let mut mbpo = Mbpo::new(4, (&[0.0], &[1.0]), &args, &mut rng(3, 0)).unwrap();
    mbpo.elites = vec![3, 1];
    let names = mbpo.model_parameters.named_vars();
    for (_, var) in names.iter().filter(|(name, _)| !name.contains("log_variance")) {
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    let step = |states: &Tensor| {
        let rows = states.dim(0).unwrap();
        let zeros = |columns| Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).unwrap();
        let choices = Tensor::from_iter((0..rows as u32).map(|row| row % 2), &Device::Cpu).unwrap();
        mbpo.imagine(states, &choices, [&zeros(1), &zeros(5)]).unwrap()
    };
    let going = [[1.0, 0.0, 0.1, 0.0], [-2.3, 5.0, -0.2, 5.0]];
    let over = [[2.5, 0.0, 0.0, 0.0], [0.0, 0.0, -0.22, 0.0]];
    let (imagined, alive) = step(&tensor(&[over[0], going[0], over[1], going[1]].concat(), 4));
    assert_eq!(floats(&imagined.next_observations), [over[0], going[0], over[1], going[1]].concat());
    assert_eq!(floats(&imagined.terminated), [1.0, 0.0, 1.0, 0.0]);
    assert_eq!(floats(&alive), going.concat());
    assert_eq!(floats(&step(&alive).1), going.concat());

    let (imagined, alive) = step(&tensor(&over.concat(), 4));
    assert_eq!(floats(&imagined.terminated), [1.0, 1.0]);
    assert_eq!(alive.dims(), [0, 4]);
}

#[test]
fn what_has_never_changed_is_not_divided_by_zero() {
    let mut mbpo = small(&[]);
    let batch = Batch {
        observations: tensor(&[0.5, -3.0, 0.5, 5.0], 2),
        actions: tensor(&[2.0, 2.0], 1),
        rewards: tensor(&[0.0, 0.0], 1),
        next_observations: tensor(&[0.5, 5.0, 0.5, 1.0], 2),
        terminated: tensor(&[0.0, 0.0], 1),
    };
    mbpo.fit_normalizer(&batch).unwrap();
    assert_eq!(mbpo.input_statistics, [vec![0.5, 1.0, 2.0], vec![1.0, 4.0, 1.0]]);
}

#[test]
fn greedy_actions_are_those_without_noise_and_stay_within_the_bounds() {
    let mbpo = small(&[]);
    let (without_noise, _) = mbpo.policy(&tensor(&[0.1, 0.2], 2), &tensor(&[0.0], 1)).unwrap();
    assert_eq!(mbpo.act(&[0.1, 0.2], 0.0, &mut rng(1, 0)).unwrap(), floats(&without_noise));
    let (extreme, log_prob) =
        mbpo.policy(&tensor(&[0.1, 0.2, 0.1, 0.2], 2), &tensor(&[-1e4, 1e4], 1)).unwrap();
    assert_eq!(floats(&extreme), [-1.0, 3.0]);
    assert!(floats(&log_prob).iter().all(|p| p.is_finite()));
    assert_ne!(mbpo.act(&[0.1, 0.2], 1.0, &mut rng(1, 0)).unwrap(), floats(&without_noise));
}

#[test]
fn networks_are_born_different_and_targets_equal() {
    let mbpo = small(&[]);
    let x = tensor(&[0.1, 0.2, 0.3], 3);
    let outputs =
        |networks: &[Mlp]| -> Vec<_> { networks.iter().map(|n| floats(&n.forward(&x).unwrap())).collect() };
    let (critics, members) = (outputs(&mbpo.critics), outputs(&mbpo.members));
    assert_ne!(critics[0], critics[1]);
    assert_eq!(critics, outputs(&mbpo.target_critics));
    assert!((1..members.len()).all(|i| members[i] != members[0]));
}

#[test]
fn the_buffers_hold_what_happened_and_what_was_imagined() {
    let (mut envs, log) = scripted(1, View::Vector, Space::bounded(&[-1.0], &[3.0]), SCRIPT);
    let mbpo = Mbpo::new(3, (&[1.0], &[2.0]), &args(&["--hidden-size=8"]), &mut rng(1, 0)).unwrap();
    let (mut buffer, mut rng) = (ReplayBuffer::default(), learner_rng(1));
    for _ in 0..20 {
        let observation = envs.observations().to_vec();
        let action = mbpo.act(&observation, 1.0, &mut rng).unwrap();
        envs.step(&action).unwrap();
        buffer.store(&observation, &action, &envs);
    }
    let mut kinds = [false; 3]; // a termination, a truncation, both
    for (row, t) in log.transitions().iter().enumerate() {
        assert_eq!(buffer.observations[3 * row..3 * (row + 1)], t.observation, "{t:?}");
        assert_eq!(buffer.actions[row..row + 1], t.action, "{t:?}");
        assert_eq!(buffer.rewards[row], t.reward, "{t:?}");
        assert_eq!(buffer.next_observations[3 * row..3 * (row + 1)], t.next_observation, "{t:?}");
        assert_eq!(buffer.terminated[row] == 1.0, t.terminated, "{t:?}");
        kinds[0] |= t.terminated && !t.truncated;
        kinds[1] |= t.truncated && !t.terminated;
        kinds[2] |= t.terminated && t.truncated;
    }
    assert_eq!((buffer.rewards.len(), kinds), (20, [true; 3]));

    // A sample is whole transitions, each about as often.
    let batch = buffer.sample(2000, &mut rng, &Device::Cpu).unwrap();
    let row_of = |column: &Tensor, i: usize| floats(&column.get(i).unwrap());
    let mut seen = [0; 20];
    for i in 0..2000 {
        let row = buffer.actions.iter().position(|a| *a == row_of(&batch.actions, i)[0]).unwrap();
        seen[row] += 1;
        assert_eq!(row_of(&batch.observations, i), buffer.observations[3 * row..3 * (row + 1)]);
        assert_eq!(row_of(&batch.next_observations, i), buffer.next_observations[3 * row..3 * (row + 1)]);
        assert_eq!(row_of(&batch.rewards, i), buffer.rewards[row..row + 1]);
        assert_eq!(row_of(&batch.terminated, i), buffer.terminated[row..row + 1]);
    }
    assert!(seen.iter().all(|count| (60..140).contains(count)), "{seen:?}");
}

/// Random actions, then three fits and updates in rollouts of two steps.
#[test]
fn pinned_run() {
    let flags = [
        "--total-timesteps=200",
        "--learning-starts=60",
        "--model-train-frequency=50",
        "--updates-per-step=3",
        "--hidden-size=16",
        "--batch-size=16",
        "--gamma=0.9",
        "--tau=0.05",
        "--learning-rate=2e-3",
        "--target-entropy=-0.5",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Rollouts of up to four steps that terminate, of two together or one by one; members with SiLU units.
#[test]
fn pinned_run_with_terminations() {
    let flags = [
        "--env-id=ContinuousCartPole-v0",
        "--total-timesteps=200",
        "--learning-starts=40",
        "--model-train-frequency=40",
        "--updates-per-step=4",
        "--rollout-length=4",
        "--rollout-noise=1.5",
        "--hidden-size=16",
        "--batch-size=2",
        "--silu=true",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "terminations", &flags, train);
}
