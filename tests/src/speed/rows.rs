//! What is measured, and what is to be reached.

use super::networks::{self, Library, Network};
use super::peers::{Peer, Workload};
use super::training::Training;
use super::{Run, Tools, vectorised};
use envs::Result;

/// A piece of work and who does it.
pub struct Row {
    /// What `--rows` calls it.
    pub name: String,
    /// What it is, for the table.
    pub title: String,
    pub unit: Unit,
    /// PlainRL first, then whom it is compared with.
    pub subjects: Vec<Subject>,
    pub goals: Vec<Goal>,
}

/// What a run's result is counted in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unit {
    /// Less is better.
    MicrosecondsPerUpdate,
    /// More is better.
    StepsPerSecond,
    /// Less is better.
    Seconds,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::MicrosecondsPerUpdate => "µs per update",
            Unit::StepsPerSecond => "steps/s",
            Unit::Seconds => "s",
        }
    }

    /// How many times as fast `ours` is as `theirs`.
    pub fn times_as_fast(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Unit::StepsPerSecond => ours / theirs,
            Unit::MicrosecondsPerUpdate | Unit::Seconds => theirs / ours,
        }
    }
}

/// What PlainRL is to reach.
pub enum Goal {
    /// At least so many times as fast as the subject of this index.
    Ratio { subject: usize, at_least: f64 },
    /// Less than this, in the row's unit.
    Below(f64),
}

/// Someone who does the work of a row.
pub enum Subject {
    /// Updates of a network.
    Update(Library, &'static Network),
    /// A program of an algorithm.
    Train(Training),
    /// `VecEnv` stepped with random actions, in this process.
    Step { env_id: &'static str, num_envs: usize, steps: usize },
    /// A Python library.
    Python(Workload),
    /// A Python library at another row's work: how fast this machine is, where nobody at hand does
    /// this row's.
    Gauge(Workload),
}

impl Subject {
    /// Who it is.
    pub fn name(&self) -> String {
        match self {
            Subject::Update(library, _) => library.name().into(),
            Subject::Train(_) | Subject::Step { .. } => "PlainRL".into(),
            Subject::Python(workload) => workload.name(),
            Subject::Gauge(workload) => format!("gauge: {}'s PPO, 4 × 128", workload.name()),
        }
    }

    /// Gets it ready to make runs.
    pub fn start<'a>(&'a self, tools: &'a Tools) -> Result<Run<'a>> {
        match self {
            Subject::Update(library, network) => networks::start(*library, network, tools),
            Subject::Train(training) => Ok(Box::new(|| training.run(tools.programs.as_ref()))),
            Subject::Step { env_id, num_envs, steps } => vectorised::start(env_id, *num_envs, *steps),
            Subject::Python(workload) | Subject::Gauge(workload) => workload.start(tools.python.as_ref()),
        }
    }
}

/// Every row. Pieces of work take a few seconds at most; a slower library gets fewer steps, for
/// steps per second do not depend on their number.
pub fn rows() -> Vec<Row> {
    let mut rows = vec![
        update("update-64", &networks::SMALL, vec![at_least(1, 6.0), at_least(2, 6.0)]),
        update(
            "update-256",
            &networks::LARGE,
            vec![at_least(1, 4.0), at_least(2, 4.0), at_least(4, 1.0 / 1.5)],
        ),
        Row {
            name: "ppo-4x128".into(),
            title: "PPO, CartPole-v1, 4 environments × 128 steps, 4 epochs of 4 minibatches".into(),
            unit: Unit::StepsPerSecond,
            subjects: vec![
                Subject::Train(Training {
                    algorithm: "ppo",
                    steps: 500_000,
                    flags: "--num-envs 4 --num-steps 128 --update-epochs 4 --num-minibatches 4",
                    ..Training::default()
                }),
                Subject::Python(sb3_ppo()),
                train(Peer::Sbx, "ppo", 15_000, 1),
            ],
            goals: vec![at_least(1, 19.0), at_least(2, 24.0)],
        },
        // ModuRL makes 11,300 steps/s of this work and 10,900 of the next row's where
        // Stable-Baselines3 makes 7,800 of the row's above; four times that is the goal.
        Row {
            name: "ppo-8x256".into(),
            title: "PPO, CartPole-v1, 8 environments × 256 steps, 10 epochs of minibatches of 64".into(),
            unit: Unit::StepsPerSecond,
            subjects: vec![
                Subject::Train(Training {
                    algorithm: "ppo",
                    steps: 200_000,
                    flags: "--num-envs 8 --num-steps 256 --update-epochs 10 --num-minibatches 32",
                    ..Training::default()
                }),
                Subject::Gauge(sb3_ppo()),
            ],
            goals: vec![at_least(1, 4.0 * 11_300.0 / 7_800.0)],
        },
        Row {
            name: "dqn-64".into(),
            title: "DQN, CartPole-v1, 64-64, batch 64, an update in four steps".into(),
            unit: Unit::StepsPerSecond,
            subjects: vec![
                Subject::Train(Training {
                    algorithm: "dqn",
                    steps: 200_000,
                    learning_starts: Some(100),
                    flags: "--hidden-sizes 64,64 --batch-size 64 --train-frequency 4 --start-e 0.05 \
                            --end-e 0.05 --target-network-frequency 500 --tau 1",
                    ..Training::default()
                }),
                Subject::Gauge(sb3_ppo()),
            ],
            goals: vec![at_least(1, 4.0 * 10_900.0 / 7_800.0)],
        },
        Row {
            name: "dqn-120".into(),
            title: "DQN, CartPole-v1, 120-84, batch 128, an update every step".into(),
            unit: Unit::StepsPerSecond,
            subjects: vec![
                Subject::Train(Training {
                    algorithm: "dqn",
                    steps: 20_000,
                    learning_starts: Some(100),
                    flags: "--hidden-sizes 120,84 --batch-size 128 --train-frequency 1 --start-e 0.05 \
                            --end-e 0.05 --target-network-frequency 500 --tau 1",
                    ..Training::default()
                }),
                train(Peer::Sb3, "dqn", 3_000, 1),
            ],
            goals: vec![at_least(1, 8.0)],
        },
        Row {
            name: "ppo-score".into(),
            title: "PPO, CartPole-v1, the default run from its start to its last line, 475 reached".into(),
            unit: Unit::Seconds,
            subjects: vec![Subject::Train(Training {
                algorithm: "ppo",
                must_reach: Some(475.0),
                ..Training::default()
            })],
            goals: vec![Goal::Below(3.0)],
        },
        sac("sac-1-thread", 1, train(Peer::Sb3, "sac", 400, 1), 2.0),
        sac("sac-2-threads", 2, train(Peer::Sbx, "sac", 600, 2), 1.5),
        actor_critic("td3", "TD3", "", "of the actor every second step"),
        actor_critic("ddpg", "DDPG", "--policy-frequency 1", "of the actor too"),
        Row {
            name: "sac_discrete".into(),
            title: "SAC for discrete actions, CartPole-v1, 64-64, batch 128, an update in four steps".into(),
            unit: Unit::StepsPerSecond,
            subjects: vec![
                Subject::Train(Training {
                    algorithm: "sac_discrete",
                    steps: 40_000,
                    learning_starts: Some(100),
                    ..Training::default()
                }),
                train(Peer::Torch, "sac_discrete", 2_000, 1),
            ],
            goals: vec![at_least(1, 2.0)],
        },
        // The game is Python's Gymnasium's for both.
        Row {
            name: "pong-dqn".into(),
            title: "DQN, Atari's Pong, the Nature paper's network, batch 32, an update in four steps".into(),
            unit: Unit::StepsPerSecond,
            subjects: vec![
                Subject::Train(Training {
                    algorithm: "dqn_pixels",
                    steps: 1_100,
                    learning_starts: Some(100),
                    flags: "--env-id gym:ALE/Pong-v5 --train-frequency 4 --buffer-size 10000 --start-e 0.05 \
                            --end-e 0.05",
                    ..Training::default()
                }),
                train(Peer::Sb3, "pong-dqn", 600, 1),
            ],
            goals: Vec::new(),
        },
        Row {
            name: "pong-ppo".into(),
            title: "PPO, Atari's Pong, one convolution and 128, 8 environments × 128 steps, 4 epochs of 4 \
                    minibatches"
                .into(),
            unit: Unit::StepsPerSecond,
            subjects: vec![
                Subject::Train(Training {
                    algorithm: "ppo",
                    steps: 1_024,
                    flags: "--env-id gym:ALE/Pong-v5 --num-envs 8 --num-steps 128 --update-epochs 4 \
                            --num-minibatches 4",
                    ..Training::default()
                }),
                train(Peer::Sb3, "pong-ppo", 1_024, 1),
            ],
            goals: Vec::new(),
        },
        planner(
            "cem-64",
            "CEM, Pendulum-v1, 3 rounds of 64 plans of 20 steps",
            Training { algorithm: "cem", steps: 5_000, ..Training::default() },
            100,
        ),
        planner(
            "cem-400",
            "CEM, Pendulum-v1, 5 rounds of 400 plans of 30 steps",
            Training {
                algorithm: "cem",
                steps: 500,
                flags: "--population 400 --elites 40 --iterations 5 --horizon 30",
                ..Training::default()
            },
            20,
        ),
        planner(
            "pets",
            "PETS, continuous CartPole, 5 networks 32-32 fitted every 50 steps, 2 rounds of 24 plans of 20 \
             steps with 5 particles",
            Training { algorithm: "pets", steps: 300, learning_starts: Some(200), ..Training::default() },
            100,
        ),
        pets_part(
            "pets-fit",
            "PETS, of this a fit: an epoch of 5 networks 200-200 on 1000 transitions, batch 250",
            30,
            "--hidden-size 200 --batch-size 250 --update-epochs 1 --train-frequency 1 \
             --population 2 --elites 2 --iterations 1 --horizon 1",
        ),
        pets_part(
            "pets-plan",
            "PETS, of this a plan: 5 networks 200-200, 2 rounds of 100 plans of 15 steps with 5 particles",
            20,
            "--hidden-size 200 --batch-size 250 --update-epochs 1 --train-frequency 1000000 \
             --population 100 --elites 10 --iterations 2 --horizon 15",
        ),
        planner(
            "mbpo-64",
            "MBPO, Pendulum-v1, networks 64-64, batch 120, 6 updates a step in rollouts of 2 steps",
            Training {
                algorithm: "mbpo",
                steps: 440,
                learning_starts: Some(400),
                flags: "--batch-size 120 --model-train-frequency 250",
                ..Training::default()
            },
            40,
        ),
        planner(
            "mbpo-256",
            "MBPO, the same with networks 256-256, batch 240",
            Training {
                algorithm: "mbpo",
                steps: 430,
                learning_starts: Some(400),
                flags: "--batch-size 240 --hidden-size 256 --model-train-frequency 250",
                ..Training::default()
            },
            30,
        ),
    ];
    // Steps of PlainRL and of Gymnasium; EnvPool gets more of them the more copies share a call.
    for (name, env_id, ours, gymnasium, envpool) in [
        ("cartpole", "CartPole-v1", 30_000_000, 100_000, [20_000, 100_000, 300_000]),
        ("pendulum", "Pendulum-v1", 10_000_000, 50_000, [20_000, 100_000, 300_000]),
        ("halfcheetah", "HalfCheetah-v5", 50_000, 20_000, [10_000, 20_000, 50_000]),
    ] {
        rows.extend([1, 8, 64].into_iter().zip(envpool).map(|(num_envs, envpool)| Row {
            name: format!("{name}-{num_envs}"),
            title: format!("{env_id}, random actions, n = {num_envs}"),
            unit: Unit::StepsPerSecond,
            subjects: vec![
                Subject::Step { env_id, num_envs, steps: ours },
                Subject::Python(Workload::Step { peer: Peer::Gymnasium, env_id, num_envs, steps: gymnasium }),
                Subject::Python(Workload::Step { peer: Peer::EnvPool, env_id, num_envs, steps: envpool }),
            ],
            goals: Vec::new(),
        }));
    }
    rows
}

fn at_least(subject: usize, ratio: f64) -> Goal {
    Goal::Ratio { subject, at_least: ratio }
}

fn update(name: &str, network: &'static Network, goals: Vec<Goal>) -> Row {
    Row {
        name: name.into(),
        title: format!("update (forward, backward, Adam) of {network}"),
        unit: Unit::MicrosecondsPerUpdate,
        subjects: [
            Library::PlainRl,
            Library::StockCandle { alone: false },
            Library::StockCandle { alone: true },
            Library::TunedCandle,
            Library::BareProducts,
        ]
        .map(|library| Subject::Update(library, network))
        .into(),
        goals,
    }
}

fn sac(name: &str, threads: usize, peer: Subject, ratio: f64) -> Row {
    let plural = if threads == 1 { "thread" } else { "threads" };
    Row {
        name: name.into(),
        title: format!("SAC, Pendulum-v1, 256-256, batch 256, an update every step, {threads} {plural}"),
        unit: Unit::StepsPerSecond,
        subjects: vec![
            Subject::Train(Training {
                algorithm: "sac",
                steps: 1_500,
                learning_starts: Some(100),
                threads,
                ..Training::default()
            }),
            peer,
        ],
        goals: vec![at_least(1, ratio)],
    }
}

/// With a deterministic actor.
fn actor_critic(algorithm: &'static str, shown: &str, flags: &'static str, actor: &str) -> Row {
    Row {
        name: algorithm.into(),
        title: format!("{shown}, Pendulum-v1, 256-256, batch 256, an update every step, {actor}"),
        unit: Unit::StepsPerSecond,
        subjects: vec![
            Subject::Train(Training {
                algorithm,
                steps: 2_000,
                learning_starts: Some(100),
                flags,
                ..Training::default()
            }),
            train(Peer::Sb3, algorithm, 500, 1),
            train(Peer::Sbx, algorithm, 500, 1),
        ],
        goals: vec![at_least(1, 2.0)],
    }
}

/// PETS after 1000 random steps, with flags that leave a fit or a plan to be most of the work.
fn pets_part(name: &'static str, title: &str, steps: usize, flags: &'static str) -> Row {
    let (steps, learning_starts) = (1_000 + steps, Some(1_000));
    let ours = Training { algorithm: "pets", steps, learning_starts, flags, ..Training::default() };
    planner(name, title, ours, steps - 1_000)
}

/// Whose peer is mbrl-lib, which calls the work as the row is called. Where something is done once (random
/// data, the first fit) both make as many steps, for it counts as time and not as steps.
fn planner(name: &'static str, title: &str, ours: Training, steps: usize) -> Row {
    Row {
        name: name.into(),
        title: title.into(),
        unit: Unit::StepsPerSecond,
        subjects: vec![Subject::Train(ours), train(Peer::MbrlLib, name, steps, 1)],
        goals: Vec::new(),
    }
}

fn train(peer: Peer, algorithm: &'static str, steps: usize, threads: usize) -> Subject {
    Subject::Python(Workload::Train { peer, algorithm, steps, threads })
}

/// Two further rows have the goal in terms of this.
fn sb3_ppo() -> Workload {
    Workload::Train { peer: Peer::Sb3, algorithm: "ppo", steps: 15_000, threads: 1 }
}
