//! MADDPG's update against PyTorch's, what it moves, what it stores, and a run against its pin.

use super::*;
use common::envs::mpe::{ParallelEnv, ParallelStep, World};
use common::envs::{Action, Canvas, Space, State, rng};
use regression::recorded::values;
use regression::{Layers, Recording, first_gradients};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    let argv = ["maddpg"].iter().chain(flags).map(Into::into);
    cli::parse_from(argv).unwrap()
}

/// What agents with these choices and observations of these sizes need to know of an environment.
fn spec(observation_dims: &[usize], choices: &[&[usize]]) -> MultiSpec {
    let space = |size: usize| Space::uniform(size, -1.0, 1.0);
    MultiSpec {
        id: "Scripted-v0".into(),
        agents: (0..choices.len()).map(|i| format!("agent_{i}")).collect(),
        observation_spaces: observation_dims.iter().map(|&dim| space(dim)).collect(),
        action_spaces: choices.iter().map(|choices| space(choices.iter().sum())).collect(),
        choices: choices.iter().map(|choices| choices.to_vec()).collect(),
        max_cycles: 25,
    }
}

/// Three agents: one moves and speaks, one speaks, one moves.
fn three_agents(flags: &[&str]) -> Maddpg {
    Maddpg::new(&spec(&[3, 1, 4], &[&[5, 3], &[2], &[5]]), &args(flags)).unwrap()
}

fn random(rows: usize, columns: usize, rng: &mut Rng) -> Tensor {
    let values: Vec<f32> = (0..rows * columns).map(|_| rng.random::<f32>() - 0.5).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

/// Made-up transitions of [`three_agents`], the first of which terminated.
fn batch(rows: usize) -> Batch {
    let mut rng = rng(5, 0);
    let terminated = (0..rows).map(|row| if row == 0 { 1.0 } else { 0.0 }).collect();
    Batch {
        observations: random(rows, 8, &mut rng),
        actions: random(rows, 15, &mut rng),
        rewards: random(rows, 3, &mut rng),
        next_observations: random(rows, 8, &mut rng),
        terminated: Tensor::from_vec::<_, f32>(terminated, (rows, 1), &Device::Cpu).unwrap(),
    }
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b} to within {tolerance}");
    }
}

const LAYERS: Layers = &[
    ("actor0.hidden1", &["actor_0/fc1"]),
    ("actor0.hidden2", &["actor_0/fc2"]),
    ("actor0.output", &["actor_0/fc3"]),
    ("actor1.hidden1", &["actor_1/fc1"]),
    ("actor1.hidden2", &["actor_1/fc2"]),
    ("actor1.output", &["actor_1/fc3"]),
    ("critic0.hidden1", &["critic_0/fc1"]),
    ("critic0.hidden2", &["critic_0/fc2"]),
    ("critic0.output", &["critic_0/fc3"]),
    ("critic1.hidden1", &["critic_1/fc1"]),
    ("critic1.hidden2", &["critic_1/fc2"]),
    ("critic1.output", &["critic_1/fc3"]),
];

const TARGET_LAYERS: Layers = &[
    ("actor0.hidden1", &["target_actor_0/fc1"]),
    ("actor0.hidden2", &["target_actor_0/fc2"]),
    ("actor0.output", &["target_actor_0/fc3"]),
    ("actor1.hidden1", &["target_actor_1/fc1"]),
    ("actor1.hidden2", &["target_actor_1/fc2"]),
    ("actor1.output", &["target_actor_1/fc3"]),
    ("critic0.hidden1", &["target_critic_0/fc1"]),
    ("critic0.hidden2", &["target_critic_0/fc2"]),
    ("critic0.output", &["target_critic_0/fc3"]),
    ("critic1.hidden1", &["target_critic_1/fc1"]),
    ("critic1.hidden2", &["target_critic_1/fc2"]),
    ("critic1.output", &["target_critic_1/fc3"]),
];

/// Two agents; each updates its critic, then its actor, and at last all averages follow.
#[test]
fn recorded_update() {
    let mut recording = Recording::open("maddpg");
    let flag = |flag: &str, name: &str| format!("--{flag}={}", recording.number(name));
    let mut maddpg = Maddpg::new(
        &spec(&[3, 4], &[&[3], &[2]]),
        &args(&[
            "--hidden-size=32",
            "--max-grad-norm=1e9", // the recording does not clip; a test of its own is below
            &flag("gamma", "gamma"),
            &flag("tau", "tau"),
            &flag("policy-lr", "actor_lr"),
            &flag("q-lr", "critic_lr"),
            &flag("logit-coef", "logits_penalty"),
        ]),
    )
    .unwrap();
    assert_eq!(maddpg.actor_optimizers[0].eps, recording.number("eps"));
    recording.set(&maddpg.parameters, LAYERS);
    recording.set(&maddpg.target_parameters, TARGET_LAYERS);

    let of_both =
        |name: &str| Tensor::cat(&[0, 1].map(|i| recording.tensor(&format!("batch/{name}_{i}"))), 1).unwrap();
    let rewards = [0, 1].map(|i| recording.column(&format!("batch/rewards_{i}")));
    let batch = Batch {
        observations: of_both("observations"),
        actions: of_both("actions"),
        rewards: Tensor::cat(&rewards, 1).unwrap(),
        next_observations: of_both("next_observations"),
        terminated: recording.column("batch/terminated"),
    };
    // For each agent the noise of its targets' a', and of the actions of which its actor uses its own.
    let target_noise = [0, 1].map(|i| {
        Tensor::cat(&[0, 1].map(|j| recording.tensor(&format!("noise/gumbel_target_{i}_{j}"))), 1).unwrap()
    });
    let actor_noise =
        Tensor::cat(&[0, 1].map(|i| recording.tensor(&format!("noise/gumbel_actor_{i}"))), 1).unwrap();

    let mut losses: [[Vec<f32>; 2]; 2] = Default::default(); // of critics and of actors
    for update in 0..10 {
        for i in 0..2 {
            if update == 0 {
                let targets = maddpg.td_targets(i, &batch, &target_noise[i]).unwrap();
                recording.close(&format!("expected/targets_{i}"), &targets);
                let (own, _) = maddpg.agents[i].act(&batch.observations, &actor_noise).unwrap();
                recording.close(&format!("expected/actions_{i}"), &own);
            }
            let (loss, q) = maddpg.update_critic(i, &batch, &target_noise[i]).unwrap();
            losses[0][i].push(loss);
            if update == 0 {
                let wanted = recording.tensor(&format!("expected/q_values_{i}")).mean_all().unwrap();
                recording.computed("mean of the Q-values", q, &wanted, 1e-4, 1e-6);
            }
            losses[1][i].push(maddpg.update_actor(i, &batch, &actor_noise).unwrap());
        }
        if update == 0 {
            let optimizers = maddpg.actor_optimizers.iter().chain(&maddpg.critic_optimizers);
            let gradients: Vec<_> = optimizers.flat_map(first_gradients).collect();
            recording.gradients("expected/gradients", &maddpg.parameters, LAYERS, gradients);
            recording.parameters("expected/parameters", &maddpg.parameters, LAYERS, maddpg.args.q_lr);
            recording.unmoved(&maddpg.target_parameters, TARGET_LAYERS);
        }
        let before = values(&maddpg.target_parameters);
        maddpg.update_targets().unwrap();
        if update == 0 {
            // Where a gradient is next to nothing, Adam's step may be another one: 0.01, of which τ arrives.
            recording.parameters_close("expected/parameters", &maddpg.target_parameters, TARGET_LAYERS, 2e-4);
            let after = values(&maddpg.target_parameters);
            for (((name, after), (_, before)), (_, online)) in
                after.iter().zip(&before).zip(&values(&maddpg.parameters))
            {
                let tau = recording.number("tau") as f32;
                let average =
                    before.iter().zip(online).map(|(target, online)| (1.0 - tau) * target + tau * online);
                recording.computed(
                    &format!("average of {name}"),
                    after,
                    average.collect::<Vec<_>>(),
                    1e-6,
                    1e-7,
                );
            }
        }
    }
    for i in 0..2 {
        for (network, losses) in ["critic", "actor"].iter().zip(&losses) {
            recording.close(&format!("expected/loss/{network}_{i}"), losses[i][0]);
            recording.losses(&format!("expected/losses_over_updates_{network}_{i}"), &losses[i]);
        }
    }
    recording.finish();
}

/// Which networks, online and of the averages, are no longer what they were.
fn moved(maddpg: &Maddpg, before: &[Vec<(String, Vec<f32>)>; 2]) -> Vec<String> {
    let mut moved = Vec::new();
    let maps = [&maddpg.parameters, &maddpg.target_parameters];
    for (kind, (map, before)) in ["", "target_"].iter().zip(maps.into_iter().zip(before)) {
        for ((name, now), (_, then)) in values(map).iter().zip(before) {
            let network = format!("{kind}{}", name.split('.').next().unwrap());
            if now != then && !moved.contains(&network) {
                moved.push(network);
            }
        }
    }
    moved
}

#[test]
fn an_update_moves_its_own_network_alone() {
    let mut maddpg = three_agents(&[]);
    let (batch, mut rng) = (batch(16), rng(1, 0));
    let now = |maddpg: &Maddpg| [values(&maddpg.parameters), values(&maddpg.target_parameters)];
    for i in 0..3 {
        let (noise, before) = (maddpg.gumbel(16, &mut rng).unwrap(), now(&maddpg));
        maddpg.update_critic(i, &batch, &noise).unwrap();
        assert_eq!(moved(&maddpg, &before), [format!("critic{i}")]);
        let before = now(&maddpg);
        maddpg.update_actor(i, &batch, &noise).unwrap();
        assert_eq!(moved(&maddpg, &before), [format!("actor{i}")]);
    }
    let before = now(&maddpg);
    maddpg.update_targets().unwrap();
    let targets = ["actor0", "actor1", "actor2", "critic0", "critic1", "critic2"];
    assert_eq!(moved(&maddpg, &before), targets.map(|name| format!("target_{name}")));
}

#[test]
fn each_networks_gradient_is_clipped_by_itself() {
    let mut maddpg = three_agents(&["--max-grad-norm=0.5"]);
    let noise = Tensor::zeros((16, 15), DType::F32, &Device::Cpu).unwrap();
    // Agent 1's rewards are a thousand times those of the others.
    let mut batch = batch(16);
    let scale = Tensor::new(&[[1e-3_f32, 1.0, 1e-3]], &Device::Cpu).unwrap();
    batch.rewards = (batch.rewards.broadcast_mul(&scale).unwrap() * 100.0).unwrap();
    for i in 0..3 {
        maddpg.update_critic(i, &batch, &noise).unwrap();
        maddpg.update_actor(i, &batch, &noise).unwrap();
    }
    let norm = |adam: &Adam| first_gradients(adam).iter().flatten().map(|g| g * g).sum::<f32>().sqrt();
    let norms: Vec<f32> = maddpg.critic_optimizers.iter().map(norm).collect();
    close(&norms[1..2], &[0.5], 1e-5);
    assert!(norms[0] > 0.01 && norms[0] < 0.5 && norms[2] > 0.01 && norms[2] < 0.5, "{norms:?}");
    assert!(maddpg.actor_optimizers.iter().all(|adam| norm(adam) < 0.5));
}

#[test]
fn step_sizes_reach_their_networks() {
    let maddpg = three_agents(&["--policy-lr=0.25", "--q-lr=0.125"]);
    assert!(maddpg.actor_optimizers.iter().all(|adam| adam.learning_rate == 0.25));
    assert!(maddpg.critic_optimizers.iter().all(|adam| adam.learning_rate == 0.125));
}

#[test]
fn a_relaxed_choice_is_a_gumbel_softmax() {
    let maddpg = three_agents(&[]);
    let agent = &maddpg.agents[0]; // five movements and three words
    let softmax = |z: &[f32]| -> Vec<f32> {
        let total: f32 = z.iter().map(|z| z.exp()).sum();
        z.iter().map(|z| z.exp() / total).collect()
    };
    // An actor whose logits are the same everywhere.
    let logits: Vec<f32> = (0..8).map(|k| (k as f32 - 4.0) / 3.0).collect();
    for (name, var) in maddpg.parameters.named_vars() {
        match name.as_str() {
            "actor0.output.bias" => var.set(&Tensor::from_slice(&logits, 8, &Device::Cpu).unwrap()).unwrap(),
            "actor0.output.weight" => var.set(&var.zeros_like().unwrap()).unwrap(),
            _ => {}
        }
    }
    // Without noise: the softmax of the movements' logits, and that of the words'.
    let joint = maddpg.act_greedily(&[0.0; 8]).unwrap();
    let probabilities = [softmax(&logits[..5]), softmax(&logits[5..])].concat();
    close(&joint[..8], &probabilities, 1e-6);

    // With it: the option of the largest weight is distributed as the softmax says (Gumbel 1954).
    let n = 100_000;
    let x = Tensor::zeros((n, 8), DType::F32, &Device::Cpu).unwrap();
    let noise = maddpg.gumbel(n, &mut rng(1, 0)).unwrap();
    let (drawn, z) = agent.act(&x, &noise).unwrap();
    close(&rows(&z)[7], &logits, 1e-6);
    let drawn = rows(&drawn);
    let mut frequencies = vec![0.0_f32; 8];
    for row in &drawn {
        for choice in [0..5, 5..8] {
            assert!((row[choice.clone()].iter().sum::<f32>() - 1.0).abs() < 1e-5, "{row:?}");
            let best = choice.max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            frequencies[best] += 1.0 / n as f32;
        }
    }
    close(&frequencies, &probabilities, 0.006); // four standard errors
    // At temperature 1 the log-ratio of two weights is logistic around that of their probabilities.
    let logistic: Vec<f32> = drawn.iter().map(|w| (w[4] / w[3]).ln() - (logits[4] - logits[3])).collect();
    let mean = logistic.iter().sum::<f32>() / n as f32;
    let variance = logistic.iter().map(|l| (l - mean).powi(2)).sum::<f32>() / n as f32;
    close(&[mean, variance], &[0.0, std::f32::consts::PI.powi(2) / 3.0], 0.06);
}

#[test]
fn each_actor_sees_its_own_observation_and_fills_its_own_columns() {
    let maddpg = three_agents(&[]);
    let before = maddpg.act_greedily(&[0.1; 8]).unwrap();
    assert_eq!(before.len(), 15);
    // Observations are 3 + 1 + 4 numbers, actions 8 + 2 + 5.
    for (observation, action) in [(0..3, 0..8), (3..4, 8..10), (4..8, 10..15)] {
        for changed in observation {
            let mut x = [0.1; 8];
            x[changed] = 0.7;
            let after = maddpg.act_greedily(&x).unwrap();
            for k in 0..15 {
                assert_eq!(before[k] != after[k], action.contains(&k), "input {changed}, output {k}");
            }
        }
    }
    // Several environments at once are the same as each alone.
    let all = maddpg.act_greedily(&[[0.1; 8], [0.3; 8]].concat()).unwrap();
    close(&all, &[before, maddpg.act_greedily(&[0.3; 8]).unwrap()].concat(), 1e-6);
    // Exploration differs from environment to environment and from time to time.
    let mut rng = rng(1, 0);
    let explored = maddpg.act(&[0.1; 16], &mut rng).unwrap();
    assert!(explored[..15].iter().zip(&explored[15..]).all(|(a, b)| a != b));
    assert_ne!(explored, maddpg.act(&[0.1; 16], &mut rng).unwrap());
}

/// Adds 1 to a parameter.
fn change(map: &VarMap, name: &str) {
    let (_, var) = map.named_vars().into_iter().find(|(n, _)| n == name).unwrap();
    var.set(&(var.as_detached_tensor() + 1.0).unwrap()).unwrap();
}

#[test]
fn targets_follow_target_networks_only() {
    let maddpg = three_agents(&["--gamma=0.9"]);
    let (batch, noise) = (batch(8), maddpg.gumbel(8, &mut rng(3, 0)).unwrap());
    let now = || [0, 1, 2].map(|i| rows(&maddpg.td_targets(i, &batch, &noise).unwrap()).concat());
    let before = now();
    // The online networks share no storage with them.
    for (name, _) in maddpg.parameters.named_vars() {
        change(&maddpg.parameters, &name);
    }
    assert_eq!(now(), before);
    // Each agent's target is moved by any target actor, for all act in x' …
    for name in ["actor0.hidden1.weight", "actor1.hidden2.weight", "actor2.hidden1.bias"] {
        let before = now();
        change(&maddpg.target_parameters, name);
        assert!(now().iter().zip(&before).all(|(now, before)| now[1..] != before[1..]), "{name}");
    }
    // … but a critic moves its own agent's alone, and nothing moves what terminated.
    let before = now();
    change(&maddpg.target_parameters, "critic1.output.bias");
    let after = now();
    assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
    for (row, (after, before)) in after[1].iter().zip(&before[1]).enumerate() {
        close(&[after - before], &[if row == 0 { 0.0 } else { 0.9 }], 1e-5);
    }
    let rewards = rows(&batch.rewards);
    assert_eq!([0, 1, 2].map(|i| after[i][0]).as_slice(), rewards[0]);
}

/// Two agents in an environment that says where it is: observation `[e, t]` and `[100 + t]` for
/// episode e and step t, rewards 10 e + t + 1 and minus that. Episodes end after 3 steps by
/// termination, 4 by truncation, 2 by both, round and round.
struct Scripted {
    spec: MultiSpec,
    world: World,
    episode: usize,
    step: usize,
}

const ENDS: [(usize, bool, bool); 3] = [(3, true, false), (4, false, true), (2, true, true)];

impl Scripted {
    /// `first` is the episode before the one that it starts with.
    fn boxed(first: usize) -> Box<dyn ParallelEnv> {
        let spec = spec(&[2, 1], &[&[2], &[3]]);
        Box::new(Self { spec, world: World::new(Vec::new(), Vec::new(), 0), episode: first, step: 0 })
    }
}

impl ParallelEnv for Scripted {
    fn spec(&self) -> &MultiSpec {
        &self.spec
    }

    fn reset(&mut self, _: &mut Rng) -> Result<()> {
        (self.episode, self.step) = (self.episode + 1, 0);
        Ok(())
    }

    fn step(&mut self, _: &[Action<'_>], _: &mut Rng, rewards: &mut [f64]) -> Result<ParallelStep> {
        self.step += 1;
        let reward = (10 * self.episode + self.step) as f64;
        rewards.copy_from_slice(&[reward, -reward]);
        let (length, terminated, truncated) = ENDS[self.episode % ENDS.len()];
        let ends = self.step == length;
        Ok(ParallelStep { terminated: ends && terminated, truncated: ends && truncated })
    }

    fn observe(&self, agent: usize, observation: &mut [f32]) {
        match agent {
            0 => observation.copy_from_slice(&[self.episode as f32, self.step as f32]),
            _ => observation[0] = (100 + self.step) as f32,
        }
    }

    fn state(&self) -> Result<State> {
        Ok(State(Vec::new()))
    }

    fn set_state(&mut self, _: &State) -> Result<()> {
        Ok(())
    }

    fn draw(&self, _: &mut Canvas) -> Result<()> {
        Ok(())
    }

    fn world(&self) -> &World {
        &self.world
    }
}

#[test]
fn the_replay_buffer_holds_what_happened() {
    let num_envs = 2;
    // Environment 0 plays episodes 1, 2, 3, …, environment 1 episodes 51, 52, 53, …
    let mut envs = ParallelVecEnv::new(vec![Scripted::boxed(0), Scripted::boxed(50)], 0).unwrap();
    let maddpg = Maddpg::new(envs.spec(), &args(&[])).unwrap();
    let (capacity, mut rng) = (13, learner_rng(1));
    let mut buffer = ReplayBuffer { capacity, ..Default::default() };
    let mut played = Vec::new();
    for _ in 0..12 {
        let observations = envs.observations().to_vec();
        let actions = maddpg.act(&observations, &mut rng).unwrap();
        envs.step(&actions).unwrap();
        buffer.store(&observations, &actions, &envs);
        played.push(actions);
    }
    // What happened, from the script alone: rows of x, a, r, x' and whether it terminated.
    let mut happened = vec![Vec::new(); num_envs * played.len()];
    for env in 0..num_envs {
        let (mut episode, mut step) = (50 * env + 1, 0);
        for (t, actions) in played.iter().enumerate() {
            let (length, terminated, _) = ENDS[episode % ENDS.len()];
            let see = |step: usize| [episode as f32, step as f32, (100 + step) as f32];
            let reward = (10 * episode + step + 1) as f32;
            let mut row = see(step).to_vec();
            row.extend(&actions[5 * env..5 * (env + 1)]);
            row.extend([reward, -reward]);
            row.extend(see(step + 1));
            let ends = step + 1 == length;
            row.push(if ends && terminated { 1.0 } else { 0.0 });
            happened[t * num_envs + env] = row;
            (episode, step) = if ends { (episode + 1, 0) } else { (episode, step + 1) };
        }
    }
    assert!(happened.iter().any(|row| row[13] == 1.0));
    // 24 transitions went into 13 rows: the last 13 are left, number 13 in row 0.
    let row = |i: usize| {
        let of = |column: &[f32], width: usize| column[i * width..(i + 1) * width].to_vec();
        [
            of(&buffer.observations, 3),
            of(&buffer.actions, 5),
            of(&buffer.rewards, 2),
            of(&buffer.next_observations, 3),
            of(&buffer.terminated, 1),
        ]
        .concat()
    };
    assert_eq!((buffer.terminated.len(), buffer.next_row), (13, 24 - 13));
    for (i, happened) in happened.iter().enumerate().skip(24 - 13) {
        assert_eq!(&row(i % 13), happened, "transition {i}");
    }

    // A sample is of whole rows, of all of them.
    let batch = buffer.sample(300, &mut rng, &Device::Cpu).unwrap();
    let parts = [batch.observations, batch.actions, batch.rewards, batch.next_observations, batch.terminated];
    let drawn = rows(&Tensor::cat(&parts, 1).unwrap());
    assert!(drawn.iter().all(|row| happened[11..].contains(row)));
    assert!(happened[11..].iter().all(|row| drawn.contains(row)));
}

#[test]
fn pinned_run() {
    let args = [
        "--total-timesteps=900",
        "--learning-starts=300",
        "--train-frequency=15",
        "--num-envs=6",
        "--buffer-size=500",
        "--batch-size=32",
        "--hidden-size=16",
        "--eval-episodes=3",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "speaker_listener", &args, train);
}
