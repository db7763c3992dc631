//! MADDPG's update against PyTorch's, what it moves, what it stores, and a run against its pin.

use super::*;
use common::envs::mpe::{MultiSpec, ParallelEnv, ParallelStep, World};
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

/// What learns to act in an environment of such agents.
fn maddpg(observation_dims: &[usize], choices: &[&[usize]], flags: &[&str]) -> Maddpg {
    let env = Scripted::boxed(spec(observation_dims, choices), 0);
    Maddpg::new(&ParallelVecEnv::new(vec![env], 0).unwrap(), args(flags)).unwrap()
}

/// Three agents: one moves and speaks, one speaks, one moves.
fn three_agents(flags: &[&str]) -> Maddpg {
    maddpg(&[3, 1, 4], &[&[5, 3], &[2], &[5]], flags)
}

/// The first sub-policy of each agent, in each of so many rows.
fn first(maddpg: &Maddpg, rows: usize) -> Vec<f32> {
    vec![0.0; rows * maddpg.agents.len()]
}

/// What its agents do without noise, each by its first sub-policy.
fn greedily(maddpg: &Maddpg, observations: &[f32]) -> Vec<f32> {
    let last = maddpg.agents.last().unwrap();
    let rows = observations.len() / last.observation.end;
    maddpg.act(observations, &first(maddpg, rows), &zeros(rows, last.action.end)).unwrap()
}

fn random(rows: usize, columns: usize, rng: &mut Rng) -> Tensor {
    let values: Vec<f32> = (0..rows * columns).map(|_| rng.random::<f32>() - 0.5).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

fn zeros(rows: usize, columns: usize) -> Tensor {
    Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).unwrap()
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
        playing: zeros(rows, 3),
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
    let flags = [
        "--hidden-size=32",
        "--max-grad-norm=1e9", // the recording does not clip; a test of its own is below
        &flag("gamma", "gamma"),
        &flag("tau", "tau"),
        &flag("policy-lr", "actor_lr"),
        &flag("q-lr", "critic_lr"),
        &flag("logit-coef", "logits_penalty"),
    ];
    let mut maddpg = maddpg(&[3, 4], &[&[3], &[2]], &flags);
    assert_eq!(maddpg.optimizers["actor0"].eps, recording.number("eps"));
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
        playing: zeros(recording.tensor("batch/observations_0").dim(0).unwrap(), 2),
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
                let agent = &maddpg.agents[i];
                let (own, _) =
                    agent.act(&agent.actor, &batch.observations, &batch.playing, &actor_noise).unwrap();
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
            let names = ["actor0", "actor1", "critic0", "critic1"];
            let gradients: Vec<_> =
                names.iter().flat_map(|&name| first_gradients(&maddpg.optimizers[name])).collect();
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

/// What the recording calls a parameter of the first agent's sub-policies or critic: `actor0.1.output.bias`
/// is `actor_0_1/fc3.bias`. Nothing where it has none of it.
fn recorded_name(name: &str) -> Option<String> {
    let networks = [
        ("actor0.1.", "actor_0_1"),
        ("actor0.2.", "actor_0_2"),
        ("actor0.", "actor_0_0"),
        ("critic0.", "critic_0"),
    ];
    let (network, rest) =
        networks.iter().find_map(|(ours, theirs)| Some((theirs, name.strip_prefix(ours)?)))?;
    let rest = rest.replace("hidden1", "fc1").replace("hidden2", "fc2").replace("output", "fc3");
    Some(format!("{network}/{rest}"))
}

/// Three sub-policies of the first agent, each with rows of its own: together they are one batch, whose
/// mean is 1/3 of the sum of theirs.
#[test]
fn recorded_update_of_an_ensemble() {
    let mut recording = Recording::open("maddpg__policy_ensemble");
    let lr = format!("--policy-lr={}", recording.number("actor_lr"));
    let flags = ["--hidden-size=32", "--ensemble-size=3", "--max-grad-norm=1e9", "--logit-coef=0", &lr];
    let mut maddpg = maddpg(&[3, 4], &[&[3], &[2]], &flags);
    // In the optimiser's order; the second agent is not in the recording.
    let vars = maddpg.parameters.named_vars().into_iter();
    let vars: Vec<_> = vars.filter_map(|(name, var)| Some((recorded_name(&name)?, var))).collect();
    assert_eq!(vars.len(), 4 * 3 * 2);
    for (name, var) in &vars {
        var.set(&recording.tensor(&format!("parameters/{name}"))).unwrap();
    }

    let of_all = |name: &str| {
        let of = |k| {
            let of_agent = |i| recording.tensor(&format!("batch/member_{k}/{name}_{i}"));
            Tensor::cat(&[0, 1].map(of_agent), 1).unwrap()
        };
        Tensor::cat(&[0, 1, 2].map(of), 0).unwrap()
    };
    let playing = (0..96).flat_map(|row| [(row / 32) as f32, 0.0]).collect();
    let batch = Batch {
        observations: of_all("observations"),
        actions: of_all("actions"),
        rewards: zeros(96, 2),
        next_observations: of_all("next_observations"),
        playing: Tensor::from_vec(playing, (96, 2), &Device::Cpu).unwrap(),
        terminated: zeros(96, 1),
    };
    let gumbel = [0, 1, 2].map(|k| recording.tensor(&format!("noise/gumbel_{k}")));
    let noise = Tensor::cat(&[&Tensor::cat(&gumbel, 0).unwrap(), &zeros(96, 2)], 1).unwrap();

    let agent = &maddpg.agents[0];
    let (own, _) = agent.act(&agent.actor, &batch.observations, &batch.playing, &noise).unwrap();
    for k in 0..3 {
        recording.close(&format!("expected/actions_{k}"), own.narrow(0, 32 * k, 32).unwrap());
    }
    let sum = |names: &[String]| -> Vec<f32> {
        let of_each = names.iter().map(|name| recording.tensor(name).flatten_all().unwrap());
        let sum = of_each.reduce(|a, b| (a + b).unwrap()).unwrap();
        sum.to_vec1().unwrap()
    };
    let loss = sum(&[0, 1, 2].map(|k| format!("expected/loss/actor_{k}")));
    let losses = sum(&[0, 1, 2].map(|k| format!("expected/losses_over_updates_actor_{k}")));
    for (update, expected) in losses.iter().enumerate() {
        let found = maddpg.update_actor(0, &batch, &noise).unwrap();
        if update == 0 {
            recording.computed("sum of the losses", found, &loss[..], 1e-4, 1e-6);
            let mut gradients = first_gradients(&maddpg.optimizers["actor0"]).into_iter();
            for (name, var) in &vars {
                let found = var.as_detached_tensor();
                if name.starts_with("critic") {
                    recording.within(&format!("expected/parameters/{name}"), &found, 0.0, 0.0);
                    continue;
                }
                let gradient = format!("expected/gradients/{name}");
                recording.close(&gradient, gradients.next().unwrap());
                let parameter = format!("expected/parameters/{name}");
                recording.stepped(&parameter, &gradient, &found, maddpg.args.policy_lr);
            }
        }
        recording.computed("sum of the losses of an update", found, &[*expected][..], 2e-4, 1e-6);
    }
    recording.finish();
}

/// What agent 0's critic is to believe where it has inferred agent 1's policy. How the inferred policy is
/// fitted is not compared: the recording takes Σ_l a_l ln softmax(z)_l for the log-likelihood of weights a,
/// which it is of a choice; of weights it is the Gumbel-softmax's density, which has a test of its own.
#[test]
fn recorded_targets_with_an_inferred_policy() {
    let mut recording = Recording::open("maddpg__inferred_policies");
    let gamma = format!("--gamma={}", recording.number("gamma"));
    let flags = ["--hidden-size=32", "--infer-policies=true", &gamma];
    let maddpg = maddpg(&[3, 4], &[&[3], &[2]], &flags);
    // The recorded targets come after the averages' step.
    let vars = maddpg.target_parameters.named_vars();
    for (ours, theirs) in
        [("actor0", "target_actor_0"), ("inferred0.1", "target_inferred"), ("critic0", "target_critic_0")]
    {
        for (layer, fc) in [("hidden1", "fc1"), ("hidden2", "fc2"), ("output", "fc3")] {
            for part in ["weight", "bias"] {
                let name = format!("{ours}.{layer}.{part}");
                let (_, var) = vars.iter().find(|(known, _)| *known == name).unwrap();
                var.set(&recording.tensor(&format!("expected/parameters/{theirs}/{fc}.{part}"))).unwrap();
            }
        }
    }
    let of_both = |folder: &str| {
        let of_agent = |i| recording.tensor(&format!("{folder}_{i}"));
        Tensor::cat(&[0, 1].map(of_agent), 1).unwrap()
    };
    let rewards = [0, 1].map(|i| recording.column(&format!("batch/rewards_{i}")));
    let batch = Batch {
        observations: of_both("batch/observations"),
        actions: of_both("batch/actions"),
        rewards: Tensor::cat(&rewards, 1).unwrap(),
        next_observations: of_both("batch/next_observations"),
        playing: zeros(32, 2),
        terminated: recording.column("batch/terminated"),
    };
    let targets = maddpg.td_targets(0, &batch, &of_both("noise/gumbel_target")).unwrap();
    recording.close("expected/targets", &targets);
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

fn now(maddpg: &Maddpg) -> [Vec<(String, Vec<f32>)>; 2] {
    [values(&maddpg.parameters), values(&maddpg.target_parameters)]
}

#[test]
fn an_update_moves_its_own_network_alone() {
    let mut maddpg = three_agents(&[]);
    let (batch, mut rng) = (batch(16), rng(1, 0));
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
    let norm = |name: &str| {
        first_gradients(&maddpg.optimizers[name]).iter().flatten().map(|g| g * g).sum::<f32>().sqrt()
    };
    let norms = ["critic0", "critic1", "critic2"].map(norm);
    close(&norms[1..2], &[0.5], 1e-5);
    assert!(norms[0] > 0.01 && norms[0] < 0.5 && norms[2] > 0.01 && norms[2] < 0.5, "{norms:?}");
    assert!(["actor0", "actor1", "actor2"].into_iter().all(|name| norm(name) < 0.5));
}

#[test]
fn step_sizes_reach_their_networks() {
    let maddpg = three_agents(&["--policy-lr=0.25", "--q-lr=0.125", "--infer-policies=true"]);
    assert_eq!(maddpg.optimizers.len(), 3 * 3);
    for (name, adam) in &maddpg.optimizers {
        assert_eq!(adam.learning_rate, if name.starts_with("critic") { 0.125 } else { 0.25 }, "{name}");
    }
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
    let joint = greedily(&maddpg, &[0.0; 8]);
    let probabilities = [softmax(&logits[..5]), softmax(&logits[5..])].concat();
    close(&joint[..8], &probabilities, 1e-6);

    // With it: the option of the largest weight is distributed as the softmax says (Gumbel 1954).
    let n = 100_000;
    let x = Tensor::zeros((n, 8), DType::F32, &Device::Cpu).unwrap();
    let noise = maddpg.gumbel(n, &mut rng(1, 0)).unwrap();
    let (drawn, z) = agent.act(&agent.actor, &x, &zeros(n, 3), &noise).unwrap();
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
    let before = greedily(&maddpg, &[0.1; 8]);
    assert_eq!(before.len(), 15);
    // Observations are 3 + 1 + 4 numbers, actions 8 + 2 + 5.
    for (observation, action) in [(0..3, 0..8), (3..4, 8..10), (4..8, 10..15)] {
        for changed in observation {
            let mut x = [0.1; 8];
            x[changed] = 0.7;
            let after = greedily(&maddpg, &x);
            for k in 0..15 {
                assert_eq!(before[k] != after[k], action.contains(&k), "input {changed}, output {k}");
            }
        }
    }
    // Several environments at once are the same as each alone.
    let all = greedily(&maddpg, &[[0.1; 8], [0.3; 8]].concat());
    close(&all, &[before, greedily(&maddpg, &[0.3; 8])].concat(), 1e-6);
    // Exploration differs from environment to environment and from time to time.
    let mut rng = rng(1, 0);
    let mut explore =
        || maddpg.act(&[0.1; 16], &first(&maddpg, 2), &maddpg.gumbel(2, &mut rng).unwrap()).unwrap();
    let explored = explore();
    assert!(explored[..15].iter().zip(&explored[15..]).all(|(a, b)| a != b));
    assert_ne!(explored, explore());
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
    fn boxed(spec: MultiSpec, first: usize) -> Box<dyn ParallelEnv> {
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
        match (agent, observation) {
            (0, [episode, step]) => (*episode, *step) = (self.episode as f32, self.step as f32),
            (_, [step]) => *step = (100 + self.step) as f32,
            (_, others) => others.fill(0.0), // where nobody steps
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
    let scripted = |first| Scripted::boxed(spec(&[2, 1], &[&[2], &[3]]), first);
    let mut envs = ParallelVecEnv::new(vec![scripted(0), scripted(50)], 0).unwrap();
    let maddpg = Maddpg::new(&envs, args(&["--ensemble-size=3"])).unwrap();
    let (capacity, mut rng) = (13, learner_rng(1));
    let mut buffer = ReplayBuffer { capacity, ..Default::default() };
    let mut played = Vec::new();
    for t in 0..12_u8 {
        let observations = envs.observations().to_vec();
        // Sub-policies that say where they were played.
        let playing = [0, 1].map(|env| [f32::from(t % 3), f32::from((t + env) % 2)]).concat();
        let noise = maddpg.gumbel(2, &mut rng).unwrap();
        let actions = maddpg.act(&observations, &playing, &noise).unwrap();
        envs.step(&actions).unwrap();
        buffer.store(&observations, &playing, &actions, &envs);
        played.push((actions, playing));
    }
    // What happened, from the script alone: rows of x, a, r, x' and whether it terminated.
    let mut happened = vec![Vec::new(); num_envs * played.len()];
    for env in 0..num_envs {
        let (mut episode, mut step) = (50 * env + 1, 0);
        for (t, (actions, playing)) in played.iter().enumerate() {
            let (length, terminated, _) = ENDS[episode % ENDS.len()];
            let see = |step: usize| [episode as f32, step as f32, (100 + step) as f32];
            let reward = (10 * episode + step + 1) as f32;
            let mut row = see(step).to_vec();
            row.extend(&actions[5 * env..5 * (env + 1)]);
            row.extend([reward, -reward]);
            row.extend(see(step + 1));
            let ends = step + 1 == length;
            row.extend(&playing[2 * env..2 * (env + 1)]);
            row.push(if ends && terminated { 1.0 } else { 0.0 });
            happened[t * num_envs + env] = row;
            (episode, step) = if ends { (episode + 1, 0) } else { (episode, step + 1) };
        }
    }
    assert!(happened.iter().any(|row| row[15] == 1.0));
    // 24 transitions went into 13 rows: the last 13 are left, number 13 in row 0.
    let row = |i: usize| {
        let of = |column: &[f32], width: usize| column[i * width..(i + 1) * width].to_vec();
        [
            of(&buffer.observations, 3),
            of(&buffer.actions, 5),
            of(&buffer.rewards, 2),
            of(&buffer.next_observations, 3),
            of(&buffer.playing, 2),
            of(&buffer.terminated, 1),
        ]
        .concat()
    };
    assert_eq!((buffer.terminated.len(), buffer.next_row), (13, 24 - 13));
    for (i, happened) in happened.iter().enumerate().skip(24 - 13) {
        assert_eq!(&row(i % 13), happened, "transition {i}");
    }

    // A sample is of whole rows, of all of them.
    let drawn = |batch_size: usize, rng: Option<&mut Rng>| {
        let batch = buffer.sample(batch_size, rng, &Device::Cpu).unwrap();
        let Batch { observations, actions, rewards, next_observations, playing, terminated } = batch;
        let columns = [observations, actions, rewards, next_observations, playing, terminated];
        rows(&Tensor::cat(&columns, 1).unwrap())
    };
    let sample = drawn(300, Some(&mut rng));
    assert_eq!(sample.len(), 300);
    assert!(sample.iter().all(|row| happened[11..].contains(row)));
    assert!(happened[11..].iter().all(|row| sample.contains(row)));
    // The latest ones go back from the last, also past row 0, no further than there are any.
    happened.reverse();
    assert_eq!(drawn(12, None), happened[..12]);
    assert_eq!(drawn(20, None), happened[..13]);
}

/// What its agents do in x, each by its first sub-policy.
fn explored(maddpg: &Maddpg, x: &Tensor, noise: &Tensor) -> Tensor {
    let observations: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
    let actions = maddpg.act(&observations, &first(maddpg, x.dim(0).unwrap()), noise).unwrap();
    Tensor::from_vec(actions, noise.shape(), &Device::Cpu).unwrap()
}

/// As [`batch`], with actions that agents can take: each choice's weights are positive and add up to 1.
fn batch_of_weights(maddpg: &Maddpg, rows: usize, rng: &mut Rng) -> Batch {
    let mut batch = batch(rows);
    let noise = maddpg.gumbel(rows, rng).unwrap();
    batch.actions = explored(maddpg, &batch.observations, &noise);
    batch
}

/// Gives the network `name` these outputs everywhere.
fn set_output(map: &VarMap, name: &str, outputs: &[f32]) {
    for (parameter, var) in map.named_vars() {
        if parameter == format!("{name}.output.bias") {
            var.set(&Tensor::from_slice(outputs, outputs.len(), &Device::Cpu).unwrap()).unwrap();
        } else if parameter == format!("{name}.output.weight") {
            var.set(&var.zeros_like().unwrap()).unwrap();
        }
    }
}

#[test]
fn nothing_is_inferred_by_default() {
    let names = |flags: &[&str]| -> Vec<String> {
        three_agents(flags).parameters.named_vars().into_iter().map(|(name, _)| name).collect()
    };
    assert!(names(&[]).iter().all(|name| name.starts_with("actor") || name.starts_with("critic")));
    // Each agent infers each other's policy, and not its own.
    for (i, j) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)] {
        let prefix = format!("inferred{i}.{j}.");
        let inferred = names(&["--infer-policies=true"]).iter().any(|name| name.starts_with(&prefix));
        assert_eq!(inferred, i != j, "{prefix}");
    }
    // An agent that is alone has nobody to infer.
    let alone = |flags: &[&str]| values(&maddpg(&[4], &[&[5]], flags).parameters);
    assert_eq!(alone(&[]), alone(&["--infer-policies=true"]));
}

/// −Σ_k z_k + n ln Σ_k exp(z_k) / a_k − λ H, and its gradient by z, one term after the other.
fn inferred_loss(z: &[f64], a: &[f64], lambda: f64) -> (f64, Vec<f64>) {
    let n = z.len() as f64;
    let sum: f64 = z.iter().zip(a).map(|(z, a)| z.exp() / a).sum();
    let total: f64 = z.iter().map(|z| z.exp()).sum();
    let p: Vec<f64> = z.iter().map(|z| z.exp() / total).collect();
    let entropy: f64 = -p.iter().map(|p| p * p.ln()).sum::<f64>();
    let loss = -z.iter().sum::<f64>() + n * sum.ln() - lambda * entropy;
    let gradient = |((z, a), p): ((&f64, &f64), &f64)| {
        -1.0 + n * (z.exp() / a) / sum + lambda * p * (p.ln() + entropy) // ∂H / ∂z_k = −p_k (ln p_k + H)
    };
    (loss, z.iter().zip(a).zip(&p).map(gradient).collect())
}

#[test]
fn inferred_policies_follow_the_gradient_of_their_likelihood() {
    let flags = ["--infer-policies=true", "--ent-coef=0.3", "--max-grad-norm=1e9", "--policy-lr=0.25"];
    let mut maddpg = three_agents(&flags);
    let batch = batch_of_weights(&maddpg, 16, &mut rng(2, 0));
    let actions = rows(&batch.actions); // 5 + 3, 2 and 5 numbers
    // Agent 1 infers both the others: one makes two choices, the other one.
    let logits: Vec<f64> = (0..8).map(|k| f64::from(k * k % 5) / 3.0 - 0.5).collect();
    let f32s = |values: &[f64]| -> Vec<f32> { values.iter().map(|&value| value as f32).collect() };
    set_output(&maddpg.parameters, "inferred1.0", &f32s(&logits));
    set_output(&maddpg.parameters, "inferred1.2", &f32s(&logits[3..]));
    let (mut loss, mut gradient) = (0.0, vec![0.0; 13]);
    for row in &actions {
        let row: Vec<f64> = row.iter().map(|&a| f64::from(a)).collect();
        // Where an output of a policy is in `gradient`, the logits of its choice, and what was done.
        for (start, z, a) in
            [(0, &logits[..5], &row[..5]), (5, &logits[5..], &row[5..8]), (8, &logits[3..], &row[10..])]
        {
            let (one_loss, one_gradient) = inferred_loss(z, a, 0.3);
            loss += one_loss / 16.0;
            for (k, g) in one_gradient.iter().enumerate() {
                gradient[start + k] += g / 16.0;
            }
        }
    }
    let found = maddpg.update_inferred(1, &batch).unwrap();
    close(&[found], &[loss as f32], 1e-4);
    let own = maddpg.parameters.named_vars().into_iter().filter(|(name, _)| name.starts_with("inferred1."));
    let gradients = first_gradients(&maddpg.optimizers["inferred1"]);
    let biases: Vec<f32> = own
        .zip(gradients)
        .filter(|((name, _), _)| name.ends_with("output.bias"))
        .flat_map(|(_, gradient)| gradient)
        .collect();
    close(&biases, &f32s(&gradient), 1e-4);
}

#[test]
fn an_inferred_policy_becomes_the_one_that_acts() {
    let flags = ["--infer-policies=true", "--policy-lr=0.02", "--ent-coef=0"];
    let mut maddpg = maddpg(&[2, 1], &[&[5, 3], &[2]], &flags);
    let logits = [1.0, -0.5, 0.3, 0.0, -1.2, 0.8, -0.2, 0.1];
    set_output(&maddpg.parameters, "actor0", &logits);
    let mut rng = rng(4, 0);
    for _ in 0..400 {
        let x = random(64, 3, &mut rng);
        let noise = maddpg.gumbel(64, &mut rng).unwrap();
        let (actions, rest) = (explored(&maddpg, &x, &noise), zeros(64, 1));
        let batch = Batch {
            observations: x.clone(),
            actions,
            rewards: rest.clone(),
            next_observations: x,
            playing: zeros(64, 2),
            terminated: rest,
        };
        maddpg.update_inferred(1, &batch).unwrap();
    }
    let x = random(1, 3, &mut rng);
    let no_noise = Tensor::zeros((1, 10), DType::F32, &Device::Cpu).unwrap();
    let of = |policies: &[Mlp]| {
        rows(&maddpg.agents[0].act(policies, &x, &zeros(1, 2), &no_noise).unwrap().0).concat()
    };
    let (found, acting) = (of(&maddpg.agents[1].inferred[&0]), of(&maddpg.agents[0].actor));
    close(&found, &acting, 0.05);
}

#[test]
fn weights_that_vanish_leave_the_likelihood_finite() {
    let mut maddpg = maddpg(&[2, 1], &[&[3], &[2]], &["--infer-policies=true"]);
    let mut batch = batch(2);
    batch.observations = random(2, 3, &mut rng(5, 0));
    batch.actions =
        Tensor::new(&[[0.0_f32, 1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 1.0]], &Device::Cpu).unwrap();
    for i in 0..2 {
        assert!(maddpg.update_inferred(i, &batch).unwrap().is_finite());
    }
    assert!(maddpg.parameters.values().unwrap().iter().all(|value| value.is_finite()));
}

#[test]
fn inferring_moves_inferred_policies_alone() {
    let mut maddpg = three_agents(&["--infer-policies=true"]);
    let mut rng = rng(1, 0);
    let batch = batch_of_weights(&maddpg, 16, &mut rng);
    for i in 0..3 {
        let (noise, before) = (maddpg.gumbel(16, &mut rng).unwrap(), now(&maddpg));
        maddpg.update_inferred(i, &batch).unwrap();
        assert_eq!(moved(&maddpg, &before), [format!("inferred{i}")]);
        // Both policies that it infers, and nothing else, which the next ones show.
        let moved_policies = values(&maddpg.parameters)
            .into_iter()
            .zip(&before[0])
            .filter(|((name, now), (_, then))| name.ends_with("output.bias") && now != then);
        assert_eq!(moved_policies.count(), 2);
        let before = now(&maddpg);
        maddpg.update_critic(i, &batch, &noise).unwrap();
        assert_eq!(moved(&maddpg, &before), [format!("critic{i}")]);
        let before = now(&maddpg);
        maddpg.update_actor(i, &batch, &noise).unwrap();
        assert_eq!(moved(&maddpg, &before), [format!("actor{i}")]);
    }
    let before = now(&maddpg);
    maddpg.update_targets().unwrap();
    for name in ["inferred0", "inferred1", "inferred2", "actor1", "critic2"] {
        assert!(moved(&maddpg, &before).contains(&format!("target_{name}")), "{name}");
    }
    // All that an agent infers is clipped together.
    let mut maddpg = three_agents(&["--infer-policies=true", "--max-grad-norm=0.01"]);
    maddpg.update_inferred(0, &batch).unwrap();
    let gradients = first_gradients(&maddpg.optimizers["inferred0"]);
    close(&[gradients.iter().flatten().map(|g| g * g).sum::<f32>().sqrt()], &[0.01], 1e-6);
}

#[test]
fn targets_have_inferred_averages_for_the_others_policies() {
    let maddpg = three_agents(&["--infer-policies=true"]);
    let (batch, noise) = (batch(8), maddpg.gumbel(8, &mut rng(3, 0)).unwrap());
    let targets = || [0, 1, 2].map(|i| rows(&maddpg.td_targets(i, &batch, &noise).unwrap()).concat());
    // Which agents' targets a change of this parameter changes, in every row but that which terminated.
    let changed = |map: &VarMap, name: &str| -> Vec<usize> {
        let before = targets();
        change(map, name);
        let after = targets();
        let changes = |i: &usize| {
            let changes =
                before[*i][1..].iter().zip(&after[*i][1..]).filter(|(before, after)| before != after);
            assert_eq!(before[*i][0], after[*i][0]);
            changes.count()
        };
        (0..3).filter(|i| changes(i) > 0).collect()
    };
    // An actor's average is known to its own agent alone.
    for i in 0..3 {
        assert_eq!(changed(&maddpg.target_parameters, &format!("actor{i}.hidden1.weight")), [i]);
        for j in (0..3).filter(|&j| j != i) {
            let name = format!("inferred{i}.{j}.hidden1.weight");
            assert_eq!(changed(&maddpg.target_parameters, &name), [i], "{name}");
            assert!(changed(&maddpg.parameters, &name).is_empty(), "{name}");
        }
    }
    // By hand: agent 1's own average between what it infers that the others do.
    let targets = &maddpg.target_agents;
    let act = |j: usize, policies: &[Mlp]| {
        targets[j].act(policies, &batch.next_observations, &batch.playing, &noise).unwrap().0
    };
    let inferred = &targets[1].inferred;
    let next = [act(0, &inferred[&0]), act(1, &targets[1].actor), act(2, &inferred[&2])];
    let inputs = [&batch.next_observations, &next[0], &next[1], &next[2]];
    let q = rows(&targets[1].critic.forward(&inputs).unwrap());
    let y = rows(&maddpg.td_targets(1, &batch, &noise).unwrap());
    for (row, (q, y)) in q.iter().zip(&y).enumerate() {
        let reward = rows(&batch.rewards)[row][1];
        close(y, &[if row == 0 { reward } else { reward + 0.95 * q[0] }], 1e-5);
    }
}

/// Which of three sub-policies each of three agents plays in each row.
const PLAYING: [[f32; 3]; 8] = [
    [0.0, 2.0, 1.0],
    [1.0, 1.0, 1.0],
    [2.0, 0.0, 0.0],
    [0.0, 0.0, 2.0],
    [1.0, 2.0, 0.0],
    [0.0, 1.0, 1.0],
    [2.0, 2.0, 2.0],
    [1.0, 0.0, 0.0],
];

/// What the parameters of sub-policy k of agent i are called.
fn sub_policy(i: usize, k: usize) -> String {
    if k == 0 { format!("actor{i}.") } else { format!("actor{i}.{k}.") }
}

/// Agents without ensembles, each with its sub-policy that `ks` name and with all else of `ensemble`.
fn alone(ensemble: &Maddpg, ks: &[f32; 3]) -> Maddpg {
    let alone = three_agents(&["--max-grad-norm=1e9"]);
    let maps =
        [(&alone.parameters, &ensemble.parameters), (&alone.target_parameters, &ensemble.target_parameters)];
    for (to, from) in maps {
        for (name, var) in to.named_vars() {
            let theirs = (0..3).fold(name.clone(), |name, i| {
                name.replace(&format!("actor{i}."), &sub_policy(i, ks[i] as usize))
            });
            let (_, value) = from.named_vars().into_iter().find(|(name, _)| *name == theirs).unwrap();
            var.set(value.as_tensor()).unwrap();
        }
    }
    alone
}

/// An ensemble whose averages are not its online networks.
fn ensembles() -> Maddpg {
    let maddpg = three_agents(&["--ensemble-size=3", "--max-grad-norm=1e9"]);
    for (name, _) in maddpg.target_parameters.named_vars() {
        if name.ends_with("hidden2.bias") {
            change(&maddpg.target_parameters, &name);
        }
    }
    maddpg
}

fn batch_of_ensembles() -> Batch {
    Batch { playing: Tensor::new(&PLAYING, &Device::Cpu).unwrap(), ..batch(8) }
}

/// The rows of `batch` that `picks` names.
fn pick(batch: &Batch, picks: &[usize]) -> Batch {
    let picks: Vec<u32> = picks.iter().map(|&row| row as u32).collect();
    let picks = Tensor::new(picks, &Device::Cpu).unwrap();
    let of = |column: &Tensor| column.index_select(&picks, 0).unwrap();
    Batch {
        observations: of(&batch.observations),
        actions: of(&batch.actions),
        rewards: of(&batch.rewards),
        next_observations: of(&batch.next_observations),
        playing: of(&batch.playing).zeros_like().unwrap(),
        terminated: of(&batch.terminated),
    }
}

#[test]
fn each_row_is_of_the_sub_policies_that_play_in_it() {
    let maddpg = ensembles();
    let (batch, noise) = (batch_of_ensembles(), maddpg.gumbel(8, &mut rng(3, 0)).unwrap());
    let observations: Vec<f32> = batch.observations.flatten_all().unwrap().to_vec1().unwrap();
    let played = maddpg.act(&observations, &PLAYING.concat(), &noise).unwrap();
    let targets: Vec<_> = (0..3).map(|i| rows(&maddpg.td_targets(i, &batch, &noise).unwrap())).collect();
    for (row, ks) in PLAYING.iter().enumerate() {
        let (alone, noise) = (alone(&maddpg, ks), noise.narrow(0, row, 1).unwrap());
        let wanted = alone.act(&observations[8 * row..8 * (row + 1)], &first(&alone, 1), &noise).unwrap();
        close(&played[15 * row..15 * (row + 1)], &wanted, 1e-6);
        let one = pick(&batch, &[row]);
        for (i, targets) in targets.iter().enumerate() {
            let wanted = rows(&alone.td_targets(i, &one, &noise).unwrap());
            close(&targets[row], &wanted[0], 1e-5);
        }
    }
    // The sub-policies are not alike.
    let firsts = greedily(&maddpg, &observations);
    let no_noise = noise.zeros_like().unwrap();
    let others = maddpg.act(&observations, &PLAYING.concat(), &no_noise).unwrap();
    assert_eq!(firsts[..8], others[..8]); // k = 0
    assert!(firsts[15..30].iter().zip(&others[15..30]).all(|(first, other)| first != other)); // k = 1
}

#[test]
fn a_sub_policy_learns_from_the_rows_in_which_it_played() {
    let noise = ensembles().gumbel(8, &mut rng(3, 0)).unwrap();
    let batch = batch_of_ensembles();
    for i in 0..3 {
        let mut maddpg = ensembles();
        maddpg.update_actor(i, &batch, &noise).unwrap();
        let own = maddpg.parameters.named_vars().into_iter().map(|(name, _)| name);
        let own = own.filter(|name| name.starts_with(&format!("actor{i}.")));
        let found: BTreeMap<String, Vec<f32>> =
            own.zip(first_gradients(&maddpg.optimizers[&format!("actor{i}")])).collect();
        assert_eq!(found.len(), 3 * 6);
        for k in 0..3 {
            let played: Vec<usize> = (0..8).filter(|&row| PLAYING[row][i] == k as f32).collect();
            let share = played.len() as f32 / 8.0;
            // What it would learn alone, of the rows in which it played.
            let mut alone = alone(&ensembles(), &[k as f32; 3]);
            let picks: Vec<u32> = played.iter().map(|&row| row as u32).collect();
            let own_noise = noise.index_select(&Tensor::new(picks, &Device::Cpu).unwrap(), 0).unwrap();
            alone.update_actor(i, &pick(&batch, &played), &own_noise).unwrap();
            let names = alone.parameters.named_vars().into_iter().map(|(name, _)| name);
            let names = names.filter(|name| name.starts_with(&format!("actor{i}.")));
            for (name, gradient) in names.zip(first_gradients(&alone.optimizers[&format!("actor{i}")])) {
                let name = name.replace(&format!("actor{i}."), &sub_policy(i, k));
                let wanted: Vec<f32> = gradient.iter().map(|g| share * g).collect();
                assert!(wanted.iter().any(|g| g.abs() > 1e-6), "{name}");
                close(&found[&name], &wanted, 1e-8);
            }
        }
    }
    // One that never played learns nothing.
    let mut maddpg = ensembles();
    let before = now(&maddpg);
    maddpg.update_actor(1, &Batch { playing: zeros(8, 3), ..batch }, &noise).unwrap();
    let moved = values(&maddpg.parameters).into_iter().zip(&before[0]).filter(|(now, then)| now != *then);
    let moved: Vec<String> = moved.map(|((name, _), _)| name).collect();
    assert_eq!(moved.len(), 6, "{moved:?}");
    assert!(moved.iter().all(|name| name.starts_with("actor1.") && !name.starts_with("actor1.1.")));
}

#[test]
fn sub_policies_are_drawn_where_there_are_several() {
    let (mut drawn, mut untouched) = (rng(1, 0), rng(1, 0));
    assert_eq!(three_agents(&[]).draw_playing(4, &mut drawn), [0.0; 12]);
    assert_eq!(drawn.random::<u64>(), untouched.random::<u64>());
    let maddpg = ensembles();
    let mut counts = [[0; 3]; 3];
    let mut together = 0;
    let playing = maddpg.draw_playing(9000, &mut drawn);
    assert_eq!(playing.len(), 9000 * 3);
    for playing in playing.chunks(3) {
        for (counts, k) in counts.iter_mut().zip(playing) {
            counts[*k as usize] += 1;
        }
        together += usize::from(playing[0] == playing[1]);
    }
    // Each as often as another, and each agent for itself: four standard errors of 3000.
    assert!(counts.iter().flatten().all(|count| (2820..3180).contains(count)), "{counts:?}");
    assert!((2820..3180).contains(&together), "{together}");
}

const SHORT: [&str; 8] = [
    "--total-timesteps=900",
    "--learning-starts=300",
    "--train-frequency=15",
    "--num-envs=6",
    "--buffer-size=500",
    "--batch-size=32",
    "--hidden-size=16",
    "--eval-episodes=3",
];

#[test]
fn pinned_run() {
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "speaker_listener", &SHORT, train);
}

#[test]
fn pinned_run_that_infers_policies() {
    let args = [&SHORT[..], &["--env-id=simple_spread_v3", "--infer-policies=true"]].concat();
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "infer_policies", &args, train);
}

#[test]
fn pinned_run_of_ensembles() {
    let args = [&SHORT[..], &["--ensemble-size=3"]].concat();
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "ensembles", &args, train);
}
