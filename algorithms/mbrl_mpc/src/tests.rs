//! The model's update against PyTorch's, plans against sums by hand, the data against what happened, and
//! runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{self, Action, Space, State, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["mbrl_mpc"].iter().chain(flags).map(Into::into)).unwrap()
}

fn spec(observation_dim: usize, low: &[f32], high: &[f32]) -> Spec {
    Spec {
        id: "Test".into(),
        observation_space: Space::uniform(observation_dim, f32::NEG_INFINITY, f32::INFINITY),
        action_space: Space::bounded(low, high),
        max_episode_steps: None,
        reward_threshold: None,
    }
}

/// One observed number and one action from −1 to 3, and a model by which each step adds `difference`.
fn drifting(difference: f32, task: Task, flags: &[&str]) -> Mpc {
    let mpc = Mpc::new(&spec(1, &[-1.0], &[3.0]), task, &args(flags), &mut rng(1, 0)).unwrap();
    mpc.parameters.set_values(&vec![0.0; mpc.parameters.num_parameters()]).unwrap();
    mpc.differences.values.set_values(&[difference, 1.0]).unwrap();
    mpc
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const MODEL: Layers = &[("hidden1", &["model/fc1"]), ("hidden2", &["model/fc2"]), ("output", &["model/fc3"])];

/// −|s'|² − 0.1 |a|², the reward of the recorded plans.
fn recorded_reward(_: &[f32], action: &[f32], next: &[f32]) -> f32 {
    -next.iter().map(|x| x * x).sum::<f32>() - 0.1 * action.iter().map(|x| x * x).sum::<f32>()
}

/// A model with the recording's sizes and parameters, and its batch, to which its statistics are fitted.
fn recorded(recording: &Recording) -> (Mpc, Batch) {
    let learning_rate = format!("--learning-rate={}", recording.number("model_lr"));
    let args = args(&["--hidden-size=32", "--horizon=4", "--candidates=6", &learning_rate]);
    let task = Task { reward: recorded_reward, terminated: |_| false };
    let spec = spec(3, &[-1.0, -1.0], &[1.0, 1.0]);
    let mpc = Mpc::new(&spec, task, &args, &mut rng(1, 0)).unwrap();
    recording.set(&mpc.parameters, MODEL);
    let batch = Batch {
        observations: recording.tensor("batch/observations"),
        actions: recording.tensor("batch/actions"),
        next_observations: recording.tensor("batch/next_observations"),
    };
    mpc.update_normalisers(&batch).unwrap();
    (mpc, batch)
}

#[test]
fn recorded_update() {
    let mut recording = Recording::open("mbrl_mpc");
    let (mut mpc, batch) = recorded(&recording);
    recording.close("expected/input_mean", &mpc.inputs.mean);
    recording.close("expected/input_std", &mpc.inputs.std);
    recording.close("expected/difference_mean", &mpc.differences.mean);
    recording.close("expected/difference_std", &mpc.differences.std);
    let differences = (&batch.next_observations - &batch.observations).unwrap();
    recording.close("expected/targets", mpc.differences.normalise(&differences).unwrap());
    let predictions = mpc.normalised_difference(&batch.observations, &batch.actions).unwrap();
    recording.close("expected/predictions", predictions);
    recording.close("expected/next_observations", mpc.predict(&batch.observations, &batch.actions).unwrap());

    recording.close("expected/loss/model", mpc.update_model(&batch).unwrap());
    let gradients = first_gradients(&mpc.optimizer);
    recording.gradients("expected/gradients", &mpc.parameters, MODEL, gradients);
    let step = recording.number("model_lr");
    recording.parameters("expected/parameters", &mpc.parameters, MODEL, step);
    recording.close("expected/input_mean", &mpc.inputs.mean);
    recording.close("expected/difference_std", &mpc.differences.std);
    recording.finish();
}

#[test]
fn recorded_update_ten_times() {
    let mut recording = Recording::open("mbrl_mpc");
    let (mut mpc, batch) = recorded(&recording);
    let losses: Vec<f32> = (0..10).map(|_| mpc.update_model(&batch).unwrap()).collect();
    recording.losses("expected/losses_over_updates", &losses);
    recording.losses("expected/losses_over_updates_model", &losses);
    recording.finish();
}

#[test]
fn recorded_update_is_planned_with() {
    let mut recording = Recording::open("mbrl_mpc");
    let (mpc, _) = recorded(&recording);
    let observation = recording.floats("batch/planning/observation");
    let plans = recording.floats("batch/planning/action_sequences"); // [6, 4, 2]
    let returns = mpc.plan_returns(&observation.repeat(6), &plans).unwrap();
    recording.close("expected/planning/returns", &returns);
    let best = recording.integers("expected/planning/best")[0] as usize;
    let chosen = mpc.best_plans(&observation, &plans).unwrap();
    assert_eq!(chosen, [&plans[8 * best..8 * (best + 1)]]);

    let sequences = recording.tensor("batch/planning/action_sequences");
    let mut current = Tensor::from_vec(observation.repeat(6), (6, 3), &Device::Cpu).unwrap();
    let mut seen = vec![current.clone()];
    for k in 0..4 {
        let actions = sequences.narrow(1, k, 1).unwrap().squeeze(1).unwrap();
        current = mpc.predict(&current, &actions).unwrap();
        seen.push(current.clone());
    }
    recording.close("expected/planning/observations", Tensor::stack(&seen, 1).unwrap());
    recording.finish();
}

#[test]
fn a_plan_is_worth_the_rewards_until_the_episode_ends() {
    let task =
        || Task { reward: |s, a, next| s[0] + 10.0 * a[0] + 100.0 * next[0], terminated: |s| s[0] > 2.5 };
    let mpc = drifting(1.0, task(), &["--horizon=4"]);
    // From 0: (0 + 10 + 100) + (1 + 20 + 200) + (2 + 30 + 300), and there it ends; from −2 all four steps.
    let plans = [1.0, 2.0, 3.0, 4.0].repeat(2);
    let returns = mpc.plan_returns(&[0.0, -2.0], &plans).unwrap();
    assert_eq!(returns, [663.0, -2.0 + 100.0 + 200.0]);
}

#[test]
fn each_environment_gets_the_best_of_its_own_plans() {
    // Rewards a (s' − 2): beyond 2 large actions are good, below it small ones.
    let task = Task { reward: |_, a, next| a[0] * (next[0] - 2.0), terminated: |_| false };
    let mpc = drifting(0.0, task, &["--horizon=2", "--candidates=3"]);
    let plans = [0.5, 0.5, -1.0, 0.0, 2.0, 2.0];
    let best = mpc.best_plans(&[5.0, -5.0], &plans.repeat(2)).unwrap();
    assert_eq!(best, [[2.0, 2.0], [-1.0, 0.0]]);
    // Of equal plans the first.
    assert_eq!(mpc.best_plans(&[2.0], &plans).unwrap(), [[0.5, 0.5]]);
}

#[test]
fn versions_differ_in_how_long_they_keep_a_plan() {
    let act = |version: &str, plans: &mut Vec<Vec<f32>>, rng: &mut Rng| {
        let task = Task { reward: |_, a, _| a[0], terminated: |_| false };
        let flags = ["--horizon=3", "--candidates=8", "--mbrl-version", version];
        drifting(0.0, task, &flags).act(&[0.0, 1.0], plans, rng).unwrap()
    };
    for version in ["0.5", "1.0"] {
        // The first environment goes on with its plan, the second makes one.
        let mut plans = vec![vec![0.25, 0.5], vec![]];
        let actions = act(version, &mut plans, &mut rng(1, 0));
        assert_eq!((actions.len(), actions[0]), (2, 0.25));
        assert_eq!((&plans[0][..], plans[1].len()), (&[0.5][..], 2));
        let kept = plans[1].clone();
        let actions = act(version, &mut plans, &mut rng(2, 0));
        assert_eq!(actions, [0.5, kept[0]]);
        act(version, &mut plans, &mut rng(3, 0));
        assert_eq!((plans[0].len(), plans[1].len()), (2, 0));
    }
    let mut plans = vec![vec![0.25, 0.5], vec![]];
    let actions = act("1.5", &mut plans, &mut rng(1, 0));
    assert!(actions[0] != 0.25 && plans.iter().all(|plan| plan.len() == 2));
    assert_ne!(act("1.5", &mut plans.clone(), &mut rng(2, 0)), [plans[0][0], plans[1][0]]);
}

#[test]
fn random_actions_fill_their_bounds() {
    let task = Task { reward: |_, _, _| 0.0, terminated: |_| false };
    let spec = spec(3, &[-1.0, 4.0], &[3.0, 5.0]);
    let mpc = Mpc::new(&spec, task, &args(&[]), &mut rng(1, 0)).unwrap();
    let actions = mpc.random_actions(2000, &mut rng(1, 0));
    for (i, (low, high)) in [(-1.0, 3.0), (4.0, 5.0)].into_iter().enumerate() {
        let of_one: Vec<f32> = actions.iter().skip(i).step_by(2).copied().collect();
        let (least, most) = of_one.iter().fold((f32::MAX, f32::MIN), |(l, m), &a| (l.min(a), m.max(a)));
        let (mean, width) = (of_one.iter().sum::<f32>() / 2000.0, high - low);
        assert!(least >= low && least < low + 0.02 * width && most <= high && most > high - 0.02 * width);
        assert_abs_diff_eq!(mean, 0.5 * (low + high), epsilon = 0.03 * width);
    }
}

#[test]
fn tasks_are_the_environments_own() {
    for id in ["ContinuousCartPole-v0", "ContinuousCartPole-v0-mbbl"] {
        let mut env = envs::make(id).unwrap();
        let task = Task::of(env.spec()).unwrap();
        let (mut observation, mut next) = (vec![0.0; 4], vec![0.0; 4]);
        let mut rng = rng(1, 0);
        let mut ends = 0;
        for _ in 0..200 {
            let mut state: Vec<f64> = [2.5, 1.0, 0.25, 2.0].map(|x| x * rng.random_range(-1.0..1.0)).to_vec();
            state.push(0.0); // the time limit's count
            env.set_state(&State(state)).unwrap();
            env.observe(&mut observation);
            let action = [rng.random_range(-1.0..1.0)];
            let step = env.step(Action::Continuous(&action), &mut rng).unwrap();
            env.observe(&mut next);
            assert_eq!((task.terminated)(&next), step.terminated);
            // A planner gives nothing for a fall, for which the environment pays as for any step.
            let expected = if step.terminated { 0.0 } else { step.reward };
            let found = (task.reward)(&observation, &action, &next);
            assert_abs_diff_eq!(f64::from(found), expected, epsilon = 1e-6);
            ends += usize::from(step.terminated);
        }
        assert!(if id.ends_with("mbbl") { ends == 0 } else { (10..190).contains(&ends) });
    }
}

#[test]
fn what_does_not_vary_is_left_at_its_scale() {
    let normaliser = Normaliser::new(2, &Device::Cpu).unwrap();
    let x = Tensor::new(&[[1.0_f32, 7.0], [3.0, 7.0]], &Device::Cpu).unwrap();
    normaliser.fit(&x).unwrap();
    assert_eq!((floats(&normaliser.mean), floats(&normaliser.std)), (vec![2.0, 7.0], vec![1.0, 1.0]));
    normaliser.fit(&(x * 2.0).unwrap()).unwrap();
    let y = Tensor::new(&[[0.0_f32, 15.0]], &Device::Cpu).unwrap();
    assert_eq!(floats(&normaliser.normalise(&y).unwrap()), [-2.0, 1.0]);
    assert_eq!(floats(&normaliser.denormalise(&y).unwrap()), [4.0, 29.0]);
    // Though the mean of equal numbers is not always they.
    let same = Tensor::full(0.1_f32, (300, 2), &Device::Cpu).unwrap();
    normaliser.fit(&same).unwrap();
    assert_eq!(floats(&normaliser.std), [1.0, 1.0]);
}

#[test]
fn the_dataset_holds_what_happened() {
    let (mut envs, log) = scripted(1, View::Vector, Space::bounded(&[-1.0], &[3.0]), SCRIPT);
    let task = Task { reward: |_, a, _| a[0], terminated: |_| false };
    let flags = ["--hidden-size=8", "--horizon=3", "--candidates=4"];
    let mut rng = rng(1, 0);
    let mpc = Mpc::new(envs.spec(), task, &args(&flags), &mut rng).unwrap();
    let mut data = Dataset::default();
    let mut plans = vec![Vec::new()];
    for steps in 1..=20 {
        let observation = envs.observations().to_vec();
        let action = mpc.act(&observation, &mut plans, &mut rng).unwrap();
        envs.step(&action).unwrap();
        data.store(&observation, &action, &envs);
        assert_eq!(data.len, steps);
    }
    let happened = log.transitions();
    assert!(happened.iter().any(|t| t.terminated && t.truncated));
    for (row, t) in happened.iter().enumerate() {
        assert_eq!(data.observations[3 * row..3 * (row + 1)], t.observation, "{t:?}");
        assert_eq!(data.actions[row..row + 1], t.action, "{t:?}");
        assert_eq!(data.next_observations[3 * row..3 * (row + 1)], t.next_observation, "{t:?}");
    }
    // Rows are whole transitions, in the order that they were asked for.
    let wanted = [7, 0, 19, 7];
    let batch = data.rows(wanted.into_iter(), &Device::Cpu).unwrap();
    for (i, t) in wanted.into_iter().map(|row| &happened[row]).enumerate() {
        let column = |tensor: &Tensor| floats(&tensor.get(i).unwrap());
        assert_eq!(column(&batch.observations), t.observation);
        assert_eq!(column(&batch.actions), t.action);
        assert_eq!(column(&batch.next_observations), t.next_observation);
    }
}

/// Small, with four fits, over ends of episodes.
const SHORT: [&str; 8] = [
    "--total-timesteps=110",
    "--learning-starts=40",
    "--train-frequency=20",
    "--model-updates=40",
    "--batch-size=16",
    "--hidden-size=16",
    "--candidates=8",
    "--eval-episodes=2",
];

#[test]
fn pinned_run() {
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &SHORT, train);
}

#[test]
fn pinned_run_of_version_1_0() {
    let flags = ["--mbrl-version=1.0", "--horizon=7", "--env-id=ContinuousCartPole-v0"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "version_1_0", &[&SHORT[..], &flags].concat(), train);
}

#[test]
fn pinned_run_of_version_0_5() {
    let flags = ["--mbrl-version=0.5", "--horizon=7", "--learning-rate=0.003"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "version_0_5", &[&SHORT[..], &flags].concat(), train);
}
