//! What holds for every particle task, and the physics of single contacts.

use super::*;
use crate::persist::Persist;
use crate::rng;
use proptest::{prop_assert, prop_assert_eq, proptest, test_runner::Config};
use rand::RngExt;

/// One random action of each agent, kept so that [`Action`] can borrow from it.
enum Choice {
    Index(usize),
    Vector(Vec<f32>),
}

impl Choice {
    fn as_action(&self) -> Action<'_> {
        match self {
            Choice::Index(index) => Action::Discrete(*index),
            Choice::Vector(vector) => Action::Continuous(vector),
        }
    }
}

fn random_actions(spec: &MultiSpec, rng: &mut Rng) -> Vec<Choice> {
    let choose = |space: &Space| match space {
        Space::Discrete { n } => Choice::Index(rng.random_range(0..*n)),
        _ => Choice::Vector((0..space.size()).map(|_| rng.random()).collect()),
    };
    spec.action_spaces.iter().map(choose).collect()
}

fn step(env: &mut dyn ParallelEnv, rng: &mut Rng) -> (ParallelStep, Vec<f64>) {
    let choices = random_actions(env.spec(), rng);
    let actions: Vec<Action<'_>> = choices.iter().map(Choice::as_action).collect();
    let mut rewards = vec![0.0; actions.len()];
    let step = env.step(&actions, rng, &mut rewards).unwrap();
    (step, rewards)
}

fn observations(env: &dyn ParallelEnv) -> Vec<Vec<f32>> {
    let spaces = env.spec().observation_spaces.iter().enumerate();
    let observe = |(agent, space): (usize, &Space)| {
        let mut observation = vec![f32::NAN; space.size()];
        env.observe(agent, &mut observation);
        observation
    };
    spaces.map(observe).collect()
}

fn environments() -> impl Iterator<Item = Box<dyn ParallelEnv>> {
    let ids = registry().iter().map(|entry| entry.id);
    ids.flat_map(|id| [false, true].map(|continuous| make(id, continuous).unwrap()))
}

proptest! {
    #![proptest_config(Config::with_cases(32))]

    #[test]
    fn episodes_stay_in_their_spaces_and_end_on_time(seed: u64) {
        for mut env in environments() {
            let mut rng = rng(seed, 0);
            env.reset(&mut rng).unwrap();
            for t in 1..=DEFAULT_MAX_CYCLES {
                let (step, rewards) = step(&mut *env, &mut rng);
                prop_assert_eq!(step, ParallelStep { terminated: false, truncated: t == DEFAULT_MAX_CYCLES });
                prop_assert!(rewards.iter().all(|reward| reward.is_finite()));
                for (observation, space) in observations(&*env).iter().zip(&env.spec().observation_spaces) {
                    prop_assert!(observation.iter().all(|o| o.is_finite()) && space.contains(observation));
                }
            }
        }
    }

    #[test]
    fn a_seed_gives_one_trajectory_and_a_state_continues_it(seed: u64, split in 0..DEFAULT_MAX_CYCLES) {
        for (mut env, mut copy) in environments().zip(environments()) {
            let (mut rng, mut same_rng) = (rng(seed, 0), rng(seed, 0));
            env.reset(&mut rng).unwrap();
            copy.reset(&mut same_rng).unwrap();
            for t in 0..DEFAULT_MAX_CYCLES {
                if t == split {
                    // On from a fresh copy at this state; setting one's own state changes nothing.
                    let state = env.state().unwrap();
                    let before = observations(&*env);
                    env.set_state(&state).unwrap();
                    prop_assert_eq!(&env.state().unwrap(), &state);
                    prop_assert_eq!(&observations(&*env), &before);
                    copy.reset(&mut crate::rng(!seed, 1)).unwrap();
                    copy.set_state(&state).unwrap();
                }
                prop_assert_eq!(observations(&*env), observations(&*copy));
                prop_assert_eq!(step(&mut *env, &mut rng), step(&mut *copy, &mut same_rng));
            }
            prop_assert_eq!(env.state().unwrap(), copy.state().unwrap());
        }
    }
}

#[test]
fn sizes_are_the_originals() {
    let sizes = |id, continuous| {
        let env = make(id, continuous).unwrap();
        let observations: Vec<_> = env.spec().observation_spaces.iter().map(Space::size).collect();
        let actions = env.spec().action_spaces.iter().map(|space| match space {
            Space::Discrete { n } => *n,
            other => other.size(),
        });
        (observations, actions.collect::<Vec<_>>())
    };
    assert_eq!(sizes("simple_v3", false), (vec![4], vec![5]));
    assert_eq!(sizes("simple_adversary_v3", true), (vec![8, 10, 10], vec![5, 5, 5]));
    assert_eq!(sizes("simple_reference_v3", false), (vec![21, 21], vec![50, 50]));
    assert_eq!(sizes("simple_reference_v3", true), (vec![21, 21], vec![15, 15]));
    assert_eq!(sizes("simple_speaker_listener_v4", false), (vec![3, 11], vec![3, 5]));
    assert_eq!(sizes("simple_speaker_listener_v4", true), (vec![3, 11], vec![3, 5]));
    assert_eq!(sizes("simple_spread_v3", false), (vec![18; 3], vec![5; 3]));
    assert_eq!(sizes("simple_tag_v3", true), (vec![16, 16, 16, 14], vec![5; 4]));
    let choices = |id| make(id, true).unwrap().spec().choices.clone();
    assert_eq!(choices("simple_reference_v3"), [[5, 10], [5, 10]]);
    assert_eq!(choices("simple_speaker_listener_v4"), [[3], [5]]);
}

#[test]
fn resets_reach_every_goal_and_the_whole_field() {
    let mut rng = rng(3, 0);
    for mut env in environments() {
        let range = if env.spec().id == "simple_tag_v3" { 0.9 } else { 1.0 };
        let num_landmarks = env.world().landmarks().len();
        let (mut goals, mut farthest) = (vec![0; num_landmarks], [0.0_f64; 2]);
        for _ in 0..1000 {
            env.reset(&mut rng).unwrap();
            let world = env.world();
            world.goals.iter().for_each(|&goal| goals[goal] += 1);
            for (kind, bodies) in [world.agent_bodies(), world.landmarks()].into_iter().enumerate() {
                let reach = bodies.iter().flat_map(|body| body.position).map(f64::abs);
                farthest[kind] = reach.fold(farthest[kind], f64::max);
            }
        }
        assert!((0.99..=1.0).contains(&farthest[0]), "{farthest:?}");
        assert!((0.99 * range..=range).contains(&farthest[1]), "{farthest:?}");
        if !env.world().goals.is_empty() {
            assert!(goals.iter().all(|&times| times > 200), "{goals:?}"); // 333 to 1000 expected
        }
    }
}

#[test]
fn contact_pushes_both_apart_equally() {
    let mut env = make("simple_spread_v3", false).unwrap();
    let mut state = env.state().unwrap();
    state.0.fill(0.0);
    // Agent 0 at the origin, agent 1 0.2 m to its right (they touch at 0.3 m), agent 2 far away.
    state.0[4] = 0.2;
    state.0[8] = 5.0;
    env.set_state(&state).unwrap();
    let mut rewards = [0.0; 3];
    let step = env.step(&[Action::Discrete(0); 3], &mut rng(0, 0), &mut rewards).unwrap();
    assert_eq!(step, ParallelStep::default());
    let velocities: Vec<_> = env.world().agent_bodies().iter().map(|body| body.velocity).collect();
    // 100 N/m of 0.1 m overlap for 0.1 s.
    approx::assert_abs_diff_eq!(velocities[0][0], -1.0, epsilon = 1e-12);
    approx::assert_abs_diff_eq!(velocities[1][0], 1.0, epsilon = 1e-12);
    assert_eq!(velocities[2], [0.0, 0.0]);
    // All landmarks are covered by agent 0; half of each agent's reward is its own collision.
    assert_eq!(rewards, [-0.5, -0.5, 0.0]);
}

#[test]
fn bodies_on_the_same_spot_stay_finite() {
    let mut env = make("simple_tag_v3", false).unwrap();
    let mut state = env.state().unwrap();
    state.0.fill(0.0);
    env.set_state(&state).unwrap();
    let (_, rewards) = step(&mut *env, &mut rng(0, 0));
    assert_eq!(rewards, [30.0, 30.0, 30.0, -30.0]);
    assert!(observations(&*env).concat().iter().all(|o| o.is_finite()));
}

#[test]
fn words_reach_the_listener() {
    let mut rng = rng(5, 0);
    let mut rewards = [0.0; 2];
    let mut env = make("simple_reference_v3", false).unwrap();
    env.reset(&mut rng).unwrap();
    // Agent 0 moves right (2) and says word 7; agent 1 stays and says word 0.
    env.step(&[Action::Discrete(2 + 5 * 7), Action::Discrete(0)], &mut rng, &mut rewards).unwrap();
    let heard = observations(&*env);
    assert_eq!(heard[1][11..], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    assert_eq!(heard[0][11..], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(heard[0][..2], [0.5, 0.0]);

    let mut env = make("simple_speaker_listener_v4", true).unwrap();
    env.reset(&mut rng).unwrap();
    // Out of bounds is clipped: 1.5 to 1 and -0.5 to 0.
    let actions = [Action::Continuous(&[0.25, 1.5, -0.5]), Action::Continuous(&[0.0; 5])];
    env.step(&actions, &mut rng, &mut rewards).unwrap();
    assert_eq!(observations(&*env)[1][8..], [0.25, 1.0, 0.0]);
    assert_eq!(rewards[0], rewards[1]);
}

#[test]
fn success_ends_the_episode_when_asked_to() {
    let task = SimpleSpread { num_agents: 2, terminate_on_success: true, ..Default::default() };
    let mut env = ParticleEnv::new(task, 3, false).unwrap();
    let mut step = |agent_1: f64, elapsed: f64| {
        // Landmarks at the origin and at x = 1, agent 0 on the first.
        let state = [0.0, 0.0, 0.0, 0.0, agent_1, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, elapsed];
        env.set_state(&State(state.to_vec())).unwrap();
        env.step(&[Action::Discrete(0); 2], &mut rng(0, 0), &mut [0.0; 2]).unwrap()
    };
    assert_eq!(step(0.95, 0.0), ParallelStep { terminated: true, truncated: false });
    assert_eq!(step(0.85, 0.0), ParallelStep { terminated: false, truncated: false });
    assert_eq!(step(0.95, 2.0), ParallelStep { terminated: false, truncated: true });
}

#[test]
fn bad_input_is_refused_by_name() {
    let message = |result: Result<()>| result.unwrap_err().to_string();
    let unknown = message(make("simple_spraed", false).map(|_| ()));
    let start =
        "--env-id simple_spraed: unknown multi-agent environment; known, nearest first: simple_spread_v3, ";
    assert!(unknown.starts_with(start), "{unknown}");
    assert!(registry().iter().all(|entry| unknown.contains(entry.id)), "{unknown}");
    let mut env = make("simple_speaker_listener_v4", false).unwrap();
    let mut act = |actions: &[Action<'_>]| {
        let (before, mut rewards) = (env.state().unwrap(), [0.0; 2]);
        let error = message(env.step(actions, &mut rng(0, 0), &mut rewards).map(|_| ()));
        assert_eq!(env.state().unwrap(), before);
        error
    };
    assert_eq!(
        act(&[Action::Discrete(3), Action::Discrete(0)]),
        "simple_speaker_listener_v4: speaker_0 was given Discrete(3), its actions are Discrete(3)"
    );
    assert_eq!(act(&[Action::Discrete(0)]), "simple_speaker_listener_v4: 1 actions, there are 2 agents");
    assert!(act(&[Action::Discrete(0), Action::Continuous(&[0.0; 5])]).contains("listener_0"));

    let good = env.state().unwrap().0;
    let mut set = |index: usize, value: f64| {
        let mut state = State(good.clone());
        state.0[index] = value;
        message(env.set_state(&state))
    };
    let last = good.len() - 1;
    assert!(set(0, f64::NAN).contains("finite"));
    assert!(set(last, 0.5).contains("steps elapsed"));
    assert!(set(last - 1, 3.0).contains("landmarks 0 to 2"));
    assert!(set(last - 2, 2.0).contains("from 0 to 1"));
    assert!(message(env.set_state(&State(good[1..].to_vec()))).contains("finite numbers"));

    let spread = |num_agents, local_ratio| {
        let task = SimpleSpread { num_agents, local_ratio, ..Default::default() };
        message(ParticleEnv::new(task, 25, false).map(|_| ()))
    };
    assert!(spread(0, 0.5).contains("num_agents 0"));
    assert!(spread(3, 1.5).contains("local_ratio 1.5"));
    assert!(message(ParticleEnv::new(Simple, 0, false).map(|_| ())).contains("max_cycles 0"));
}

#[test]
fn pictures_show_agents_and_landmarks_in_their_colours() {
    let mut canvas = Canvas::new(200, 200);
    for mut env in environments() {
        env.reset(&mut rng(1, 0)).unwrap();
        env.draw(&mut canvas).unwrap();
        let pixels: std::collections::BTreeSet<Vec<u8>> =
            canvas.rgb().chunks_exact(3).map(<[u8]>::to_vec).collect();
        assert!(pixels.len() > 3, "{}: {} colours", env.spec().id, pixels.len());
    }
}

#[test]
fn copies_stepped_together_are_the_single_environments() {
    for entry in registry() {
        let num_envs = 3;
        let mut all = ParallelVecEnv::make(entry.id, true, num_envs, 5).unwrap();
        let mut single = make(entry.id, true).unwrap();
        let mut single_rng = rng(5, 2); // what copy 2 draws from
        single.reset(&mut single_rng).unwrap();
        let (columns, width, num_agents) =
            (all.action_columns().to_vec(), all.action_dim(), all.num_agents());
        let mut choice_rng = rng(9, 0);
        let mut total = vec![0.0; num_agents];
        for t in 1..=2 * DEFAULT_MAX_CYCLES {
            let seen = all.observations();
            assert_eq!(seen[seen.len() / num_envs * 2..], observations(&*single).concat());
            let joint: Vec<f32> = (0..num_envs * width).map(|_| choice_rng.random()).collect();
            let own = &joint[2 * width..];
            let actions: Vec<Action<'_>> =
                columns.iter().map(|columns| Action::Continuous(&own[columns.clone()])).collect();
            let mut rewards = vec![0.0; num_agents];
            let step = single.step(&actions, &mut single_rng, &mut rewards).unwrap();
            all.step(&joint).unwrap();

            let rounded: Vec<f32> = rewards.iter().map(|reward| *reward as f32).collect();
            assert_eq!(all.rewards()[2 * num_agents..], rounded);
            assert_eq!((all.terminated()[2], all.truncated()[2]), (step.terminated, step.truncated));
            let last = all.final_observations();
            assert_eq!(last[last.len() / num_envs * 2..], observations(&*single).concat());
            total.iter_mut().zip(&rewards).for_each(|(total, reward)| *total += reward);
            if t.is_multiple_of(DEFAULT_MAX_CYCLES) {
                let episode = all.episodes()[2];
                assert_eq!((episode.env, episode.length), (2, DEFAULT_MAX_CYCLES));
                assert_eq!(episode.episodic_return, total.iter().sum::<f64>());
                assert_eq!(all.episode_returns()[2 * num_agents..], total);
                total.fill(0.0);
                single.reset(&mut single_rng).unwrap();
            } else {
                assert!(all.episodes().is_empty() && all.episode_returns().is_empty());
            }
        }
    }
}

#[test]
fn copies_go_on_from_what_was_saved() {
    let id = "simple_speaker_listener_v4";
    let mut env = ParallelVecEnv::make(id, false, 2, 1).unwrap();
    let advance = |env: &mut ParallelVecEnv| {
        for _ in 0..30 {
            env.step(&[2, 1, 0, 4]).unwrap();
        }
        (env.observations().to_vec(), env.rewards().to_vec(), env.save().unwrap())
    };
    env.step(&[0, 3, 1, 1]).unwrap();
    let saved = env.save().unwrap();
    let mut other = ParallelVecEnv::make(id, false, 2, 77).unwrap();
    other.load(&saved).unwrap();
    assert_eq!(advance(&mut env), advance(&mut other));
    let mut three = ParallelVecEnv::make(id, false, 3, 1).unwrap();
    assert!(three.load(&saved).unwrap_err().to_string().contains("not of 3 copies"));
    let refusal = env.step(&[0, 0]).unwrap_err().to_string();
    assert_eq!(refusal, format!("{id}: 2 numbers as actions, 2 environments take 4"));
    assert!(ParallelVecEnv::make(id, false, 0, 1).is_err());
}
