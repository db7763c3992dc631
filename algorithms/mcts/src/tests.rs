//! Scores and backups against a recording, trees against what is known of their games, and runs against
//! their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{MAX_EPISODE_STEPS, Spec, Step, rng};
use regression::scripted::{Log, Scripted};
use regression::{Recording, SCRIPT, View};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["mcts"].iter().chain(flags).map(Into::into)).unwrap()
}

/// A planner whose model is `env_id`.
fn planner(env_id: &str, flags: &[&str]) -> Mcts {
    Mcts::new(envs::make(env_id).unwrap(), &args(flags)).unwrap()
}

/// One whose model is the script, with `num_actions`.
fn scripted(num_actions: usize, flags: &[&str]) -> (Mcts, Log) {
    let log = Log::default();
    let actions = Space::Discrete { n: num_actions };
    let model = Scripted::new(0, View::Vector, actions, SCRIPT, log.clone());
    (Mcts::new(Box::new(model), &args(flags)).unwrap(), log)
}

/// The recorded tree: node i > 0 is what an edge of its parent has led to.
fn recorded_tree(recording: &Recording, mcts: &mut Mcts) -> Vec<(usize, usize, f64)> {
    let integers: Vec<i64> = recording.tensor("batch/parents").to_vec1().unwrap();
    let numbers = |name: &str| recording.floats(name).into_iter().map(f64::from).collect::<Vec<_>>();
    let (visits, sums) = (numbers("batch/visits"), numbers("batch/value_sums"));
    let rewards = numbers("batch/rewards");
    mcts.nodes = (0..visits.len()).map(|_| Node::new(State::default(), false, 0)).collect();
    let mut places = vec![(0, 0, 0.0)]; // of each node: its parent, its edge there, the reward on it
    for (i, &parent) in integers.iter().enumerate() {
        mcts.nodes[i].visits = visits[i];
        if let Ok(parent) = usize::try_from(parent) {
            let edge = Edge { visits: visits[i], value_sum: sums[i], nodes: vec![i] };
            mcts.nodes[parent].edges.push(edge);
            places.push((parent, mcts.nodes[parent].edges.len() - 1, rewards[i]));
        }
    }
    places
}

/// Edge of node i > 0.
fn edge_to<'a>(mcts: &'a Mcts, places: &[(usize, usize, f64)], i: usize) -> &'a Edge {
    &mcts.nodes[places[i].0].edges[places[i].1]
}

#[test]
fn recorded_update_scores_selection_and_backup() {
    let mut recording = Recording::open("mcts");
    let c = recording.number("C").to_string();
    let gamma = recording.number("gamma").to_string();
    let leaf_value = f64::from(recording.floats("batch/leaf_value")[0]);
    let plain = ["--normalize-values=false", "--exploration"];
    let planner = |flags: &[&str]| planner("CartPole-v1", flags);

    let mut mcts = planner(&[&plain[..], &[&c, "--gamma", &gamma]].concat());
    let places = recorded_tree(&recording, &mut mcts);
    let num_nodes = places.len();
    let scores = |mcts: &Mcts| -> Vec<f64> {
        let score = |i: usize| mcts.score(&mcts.nodes[places[i].0], edge_to(mcts, &places, i));
        std::iter::once(0.0).chain((1..num_nodes).map(score)).collect()
    };
    recording.close("expected/scores", scores(&mcts));
    // 2 C √(2 ln N / n) with C = 1/2 is UCB1's √2 √(ln N / n).
    let mut ucb1 = planner(&[&plain[..], &["0.5"]].concat());
    recorded_tree(&recording, &mut ucb1);
    recording.close("expected/scores_ucb1", scores(&ucb1));

    let (mut selected, mut node) = (vec![ROOT], ROOT);
    let mut generator = rng(1, 0);
    while !mcts.nodes[node].edges.is_empty() {
        let action = mcts.select(&mcts.nodes[node], &mut generator);
        node = mcts.nodes[node].edges[action].nodes[0];
        selected.push(node);
    }
    recording.equal("expected/selected_path", &selected);
    assert_eq!(generator, rng(1, 0), "nothing is drawn where everything was tried");
    let child = |action: usize| mcts.nodes[ROOT].edges[action].nodes[0];
    recording.equal("expected/best_child_by_visits", [child(mcts.best_action())]);
    let by_value = argmax(mcts.nodes[ROOT].edges.iter().map(|edge| mcts.mean_value(edge)));
    recording.equal("expected/best_child_by_value", [child(by_value)]);

    // The recorded reward of the root and its sum belong to the way that led there, which no edge holds:
    // its sum gains γ times what the backup returns, or the negative with two players.
    let root_sum = f64::from(recording.floats("batch/value_sums")[0]);
    let check = |recording: &mut Recording, mcts: &Mcts, folder: &str, root_sum: f64| {
        let visits: Vec<f64> = mcts.nodes.iter().map(|node| node.visits).collect();
        recording.close(&format!("expected/{folder}/visits"), &visits);
        for i in 1..num_nodes {
            assert_eq!(edge_to(mcts, &places, i).visits, visits[i]);
        }
        let sums = (1..num_nodes).map(|i| edge_to(mcts, &places, i).value_sum);
        let sums: Vec<f64> = std::iter::once(root_sum).chain(sums).collect();
        recording.close(&format!("expected/{folder}/value_sums"), sums);
    };
    let way = |rewards: f64| -> Vec<Move> {
        let step =
            |&i: &usize| Move { node: places[i].0, action: places[i].1, reward: rewards * places[i].2 };
        selected[1..].iter().map(step).collect()
    };
    let total = mcts.backup(&way(1.0), node, leaf_value);
    check(&mut recording, &mcts, "one_player", root_sum + mcts.args.gamma * total);

    // Recorded without rewards and discount, for the player who moved into the leaf; ours is for the next.
    let flags = [&plain[..], &[&c, "--two-player-model", "TicTacToe-v0-both"]].concat();
    let mut mcts = planner(&flags);
    recorded_tree(&recording, &mut mcts);
    let total = mcts.backup(&way(0.0), node, -leaf_value);
    check(&mut recording, &mcts, "two_players", root_sum - total);
    recording.finish();
}

/// What MCTS as X wins, draws and loses from `board` on, exactly: over all replies, each as likely as the
/// others. At every position it searches once.
fn against_all_replies(mcts: &mut Mcts, board: &[f64; 9], generator: &mut Rng) -> [f64; 3] {
    let mut both = envs::make("TicTacToe-v0-both").unwrap();
    let mut moved = |board: &[f64; 9], field: usize| -> ([f64; 9], Step) {
        both.set_state(&State([&board[..], &[0.0]].concat())).unwrap();
        let step = both.step(Action::Discrete(field), &mut rng(1, 0)).unwrap();
        (both.state().unwrap().0[..9].try_into().unwrap(), step)
    };
    let action = mcts.act(&State([&board[..], &[0.0]].concat()), generator).unwrap() as usize;
    // A field that is taken stands for any free one.
    let free = |board: &[f64; 9]| (0..9).filter(|&field| board[field] == 0.0).collect::<Vec<_>>();
    let choices = if board[action] == 0.0 { vec![action] } else { free(board) };
    let mut outcomes = [0.0; 3];
    for &choice in &choices {
        let (next, step) = moved(board, choice);
        if step.terminated {
            outcomes[if step.reward == 1.0 { 0 } else { 1 }] += 1.0 / choices.len() as f64;
            continue;
        }
        let replies = free(&next);
        for &reply in &replies {
            let (after, step) = moved(&next, reply);
            let of_reply = match step.terminated {
                true => [0.0, 1.0 - step.reward, step.reward],
                false => against_all_replies(mcts, &after, generator),
            };
            for (outcome, of_reply) in outcomes.iter_mut().zip(of_reply) {
                *outcome += of_reply / (replies.len() * choices.len()) as f64;
            }
        }
    }
    outcomes
}

#[test]
fn against_random_moves_it_wins_as_perfect_play_from_the_middle_does_and_never_loses() {
    // Beginning in the middle and perfect from there on: 95 games of 96, the rest drawn (computed
    // independently).
    let [win, draw, loss] = against_all_replies(&mut planner("TicTacToe-v0", &[]), &[0.0; 9], &mut rng(1, 0));
    assert_eq!(loss, 0.0);
    assert_abs_diff_eq!(win + draw, 1.0, epsilon = 1e-9);
    assert_abs_diff_eq!(win, 95.0 / 96.0, epsilon = 5e-4);
}

#[test]
fn no_opponent_wins_against_the_two_player_model() {
    let mut mcts = planner("TicTacToe-v0-both", &["--two-player-model=TicTacToe-v0-both"]);
    let [win, _, loss] = against_all_replies(&mut mcts, &[0.0; 9], &mut rng(1, 0));
    assert_eq!(loss, 0.0);
    assert!(win > 0.98, "{win}");
    // The same for O, who has to find the one good reply to X in the middle or in a corner and may fall
    // into a trap after a thousand simulations.
    for begun in [0, 1, 4] {
        let mut board = [0.0; 9];
        board[begun] = 1.0;
        let [win, _, loss] = against_all_replies(&mut mcts, &board, &mut rng(1, 0));
        assert!(loss < 0.03 && win > 0.6, "X began at {begun}: {win} won, {loss} lost");
    }
    // X threatens the first row, O to move: nothing but the block is thought of for long. With one player
    // who moves for both, O's mark would help X.
    let board = State([1., 1., 0., 0., 2., 0., 0., 0., 0., 0.].to_vec());
    assert_eq!(mcts.act(&board, &mut rng(1, 0)).unwrap(), 2);
    assert!(mcts.nodes[ROOT].edges[2].visits > 500.0);
}

#[test]
fn a_win_is_seen_at_once() {
    // X has two in a row, O too: the win comes before the block.
    for (model, flags) in
        [("TicTacToe-v0", &[][..]), ("TicTacToe-v0-both", &["--two-player-model=TicTacToe-v0-both"])]
    {
        let mut mcts = planner(model, flags);
        let board = State([1., 1., 0., 2., 2., 0., 0., 0., 0., 0.].to_vec());
        assert_eq!(mcts.act(&board, &mut rng(1, 0)).unwrap(), 2);
        let edge = &mcts.nodes[ROOT].edges[2];
        assert_eq!(edge.value_sum, edge.visits);
        assert!(mcts.nodes[edge.nodes[0]].ended && edge.nodes.len() == 1);
    }
}

/// Every way from the root on: the node, its depth, and the rewards on the way are those of the script.
fn depths(mcts: &Mcts) -> Vec<usize> {
    let mut depths = vec![0; mcts.nodes.len()];
    for (i, node) in mcts.nodes.iter().enumerate() {
        for &next in node.edges.iter().flat_map(|edge| &edge.nodes) {
            assert!(next > i);
            depths[next] = depths[i] + 1;
        }
    }
    depths
}

#[test]
fn what_is_in_the_tree_is_what_happened() {
    // Episodes of three steps (terminated), of four (truncated), of one, of two (both at once): whatever is
    // done, the returns from step t on are the same, and nothing is tried beyond the end.
    let gamma: f64 = 0.9;
    for (episode, length) in [(0, 3), (1, 4), (2, 1), (3, 2)] {
        let (mut mcts, log) = scripted(2, &["--gamma=0.9", "--num-simulations=60"]);
        mcts.search(&State(vec![f64::from(episode), 0.0]), &mut rng(1, 0)).unwrap();
        let depths = depths(&mcts);
        assert_eq!(depths.iter().max(), Some(&length));
        assert_eq!(mcts.depth(), length);
        for (node, &t) in mcts.nodes.iter().zip(&depths) {
            assert_eq!(node.state, State(vec![f64::from(episode), t as f64]));
            assert_eq!(node.ended, t == length);
            let tried: f64 = node.edges.iter().map(|edge| edge.visits).sum();
            let first = if t == 0 || node.ended { 0.0 } else { 1.0 };
            match node.ended {
                true => assert_eq!(tried, 0.0),
                false => assert_eq!(tried + first, node.visits, "a node was a leaf once"),
            }
            let expected: f64 = (t..length)
                .map(|k| gamma.powi((k - t) as i32) * f64::from(10 * episode + k as i32 + 1))
                .sum();
            for edge in node.edges.iter().filter(|edge| edge.visits > 0.0) {
                assert_abs_diff_eq!(edge.value_sum / edge.visits, expected, epsilon = 1e-9);
            }
        }
        assert_eq!(mcts.nodes[ROOT].visits, 60.0);
        assert!(log.transitions().iter().all(|step| step.step < length));
    }
}

#[test]
fn returns_that_are_all_the_same_are_tried_evenly() {
    // Every mean is scaled to 0 then, and S(s,a) falls with N(s,a) alone.
    let (mut mcts, _) = scripted(3, &["--num-simulations=30"]);
    mcts.search(&State(vec![2.0, 0.0]), &mut rng(1, 0)).unwrap();
    assert!(mcts.nodes[ROOT].edges.iter().all(|edge| edge.visits == 10.0));
    assert_eq!(mcts.mean_value(&mcts.nodes[ROOT].edges[0]), 0.0);
}

#[test]
fn means_are_scaled_by_the_returns_of_the_search() {
    let mut mcts = planner("CartPole-v1", &[]);
    mcts.plant(&State::default());
    let step = |action: usize, reward: f64| [Move { node: ROOT, action, reward }];
    mcts.nodes.push(Node::new(State::default(), true, 2));
    for (action, reward) in [(0, 3.0), (1, 7.0), (1, 5.0)] {
        assert_eq!(mcts.backup(&step(action, reward), 1, 0.0), reward);
    }
    assert_eq!((mcts.lowest, mcts.highest), (3.0, 7.0));
    let values = |mcts: &Mcts| [0, 1].map(|action| mcts.mean_value(&mcts.nodes[ROOT].edges[action]));
    assert_eq!(values(&mcts), [0.0, 0.75]);
    mcts.args.normalize_values = false;
    assert_eq!(values(&mcts), [3.0, 6.0]);
    mcts.plant(&State::default());
    assert!(mcts.lowest > mcts.highest && mcts.nodes.len() == 1, "a new search knows no returns");
}

#[test]
fn a_simulation_ends_at_the_horizon() {
    // CartPole from rest lasts eight steps and more, each of which pays 1.
    for horizon in [1, 2, 5] {
        let mut mcts = planner("CartPole-v1", &["--num-simulations=200", "--horizon", &horizon.to_string()]);
        let start = State(vec![0.0; 5]);
        mcts.search(&start, &mut rng(1, 0)).unwrap();
        assert!(mcts.depth() == horizon || horizon == 5, "{}", mcts.depth());
        let edges = &mcts.nodes[ROOT].edges;
        assert!(edges.iter().all(|edge| edge.value_sum == horizon as f64 * edge.visits));
    }
    // Within the tree and beyond: 1 + γ + γ² …
    let mut mcts = planner("CartPole-v1", &["--num-simulations=1", "--horizon=4", "--gamma=0.5"]);
    mcts.search(&State(vec![0.0; 5]), &mut rng(1, 0)).unwrap();
    let total: f64 = mcts.nodes[ROOT].edges.iter().map(|edge| edge.value_sum).sum();
    assert_eq!((total, mcts.nodes.len()), (1.875, 2));
}

#[test]
fn rewards_of_two_players_alternate_in_a_rollout() {
    // In the script everybody is paid 1, 2, 3: 1 − γ 2 + γ² 3 for who is first.
    for (flags, expected) in [
        (&["--gamma=0.5"][..], 1.0 + 0.5 * 2.0 + 0.25 * 3.0),
        (&["--gamma=0.5", "--two-player-model=TicTacToe-v0-both"], 1.0 - 0.5 * 2.0 + 0.25 * 3.0),
    ] {
        let (mut mcts, _) = scripted(2, flags);
        mcts.model.set_state(&State(vec![0.0, 0.0])).unwrap();
        assert_eq!(mcts.rollout(9, &mut rng(1, 0)).unwrap(), expected);
        mcts.search(&State(vec![0.0, 0.0]), &mut rng(1, 0)).unwrap();
        for edge in &mcts.nodes[ROOT].edges {
            assert_abs_diff_eq!(edge.value_sum / edge.visits, expected, epsilon = 1e-9);
        }
    }
}

#[test]
fn an_action_may_lead_to_several_states() {
    // On ice, each of three ways comes a third of the time; left of the goal, moving down gets there in one
    // of them (field 15), stays in one (14) and slips back in one (13).
    let mut mcts = planner("FrozenLake-v1", &["--num-simulations=3000", "--horizon=1"]);
    mcts.search(&State(vec![14.0, 0.0]), &mut rng(1, 0)).unwrap();
    let down = &mcts.nodes[ROOT].edges[1];
    let mut reached: Vec<(f64, f64, bool)> = down
        .nodes
        .iter()
        .map(|&next| &mcts.nodes[next])
        .map(|node| (node.state.0[0], node.visits / down.visits, node.ended))
        .collect();
    reached.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert_eq!(
        reached.iter().map(|r| (r.0, r.2)).collect::<Vec<_>>(),
        [(13., false), (14., false), (15., true)]
    );
    for (_, share, _) in reached {
        assert_abs_diff_eq!(share, 1.0 / 3.0, epsilon = 0.06);
    }
    assert_abs_diff_eq!(down.value_sum / down.visits, 1.0 / 3.0, epsilon = 0.06);
    // To the left one cannot get there.
    assert_eq!(mcts.nodes[ROOT].edges[0].value_sum, 0.0);
    assert_eq!(mcts.nodes.iter().skip(1).map(|node| node.visits).sum::<f64>(), 3000.0);
}

#[test]
fn good_actions_are_tried_more_but_the_others_again_and_again() {
    // UCB1's regret is logarithmic: the win is tried most, every other field more than once.
    let mut mcts = planner("TicTacToe-v0", &[]);
    mcts.search(&State([1., 1., 0., 2., 2., 0., 0., 0., 0., 0.].to_vec()), &mut rng(1, 0)).unwrap();
    let visits: Vec<f64> = mcts.nodes[ROOT].edges.iter().map(|edge| edge.visits).collect();
    assert_eq!(visits.iter().sum::<f64>(), 1000.0);
    assert!(visits[2] > 600.0 && visits.iter().all(|&n| n >= 5.0), "{visits:?}");
}

#[test]
fn untried_actions_come_first_in_any_order() {
    let mut firsts = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let mut mcts = planner("TicTacToe-v0-both", &["--num-simulations=9"]);
        let mut generator = rng(seed, 0);
        mcts.search(&State(vec![0.0; 10]), &mut generator).unwrap();
        assert!(mcts.nodes[ROOT].edges.iter().all(|edge| edge.visits == 1.0));
        firsts.insert(mcts.nodes[1].state.0.iter().position(|&held| held == 1.0));
    }
    assert_eq!(firsts.len(), 9);
}

#[test]
fn the_first_of_equal_actions_is_taken() {
    assert_eq!(argmax([1.0, 3.0, 3.0, 2.0].into_iter()), 1);
    assert_eq!(argmax([f64::NEG_INFINITY, -2.0].into_iter()), 1);
}

#[test]
fn the_tree_is_drawn() {
    let mut mcts = planner("TicTacToe-v0-both", &["--num-simulations=400"]);
    mcts.search(&State(vec![0.0; 10]), &mut rng(1, 0)).unwrap();
    // Each simulation has its place, as high as the node it ended in.
    let (mut x, mut outline) = (0.0, Vec::new());
    mcts.trace(ROOT, 0.0, &mut x, &mut outline);
    assert_eq!(x, 400.0);
    assert!(outline.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    let mut ended = [0.0; 10]; // simulations, by depth
    for step in outline.chunks_exact(2) {
        assert_eq!(step[0].1, step[1].1);
        ended[step[0].1 as usize] += step[1].0 - step[0].0;
    }
    let mut expected = [0.0; 10];
    for (node, depth) in mcts.nodes.iter().zip(depths(&mcts)) {
        expected[depth] += node.visits - node.edges.iter().map(|edge| edge.visits).sum::<f64>();
    }
    assert_eq!(ended, expected);
    assert!(expected[0] == 0.0 && expected[1] == 9.0 && expected[2] > 9.0, "{expected:?}");
    let dir = regression::learning::scratch();
    let path = dir.path().join("tree.png");
    mcts.draw_tree(&path).unwrap();
    assert!(std::fs::read(&path).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn no_two_evaluation_episodes_are_alike() {
    let mut seeds: Vec<u64> = Vec::new();
    for seed in 1..=20 {
        let args = args(&["--seed", &seed.to_string()]);
        seeds.extend((0..100).map(|episode| evaluation_seed(&args, episode)));
    }
    seeds.sort_unstable();
    assert!(seeds.windows(2).all(|pair| pair[0] != pair[1]));
}

/// Pays 1 a step for ever.
struct Endless(Spec);

fn endless() -> Box<dyn Env> {
    Box::new(Endless(Spec {
        id: "Endless".into(),
        observation_space: Space::uniform(1, 0.0, 1.0),
        action_space: Space::Discrete { n: 2 },
        max_episode_steps: None,
        reward_threshold: None,
    }))
}

impl Env for Endless {
    fn spec(&self) -> &Spec {
        &self.0
    }
    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        Ok(())
    }
    fn step(&mut self, _action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        Ok(Step { reward: 1.0, ..Step::default() })
    }
    fn observe(&self, observation: &mut [f32]) {
        observation[0] = 0.5;
    }
    fn state(&self) -> Result<State> {
        Ok(State(vec![0.0]))
    }
    fn set_state(&mut self, _state: &State) -> Result<()> {
        Ok(())
    }
}

#[test]
fn an_episode_without_end_is_cut() {
    let mut mcts = Mcts::new(endless(), &args(&["--num-simulations=1", "--horizon=1"])).unwrap();
    let mut envs = VecEnv::new(vec![endless()], 1).unwrap();
    let mut steps = 0;
    let watch = |_: &VecEnv| {
        steps += 1;
        anyhow::ensure!(steps <= MAX_EPISODE_STEPS, "it goes on for ever");
        Ok(())
    };
    let total = play(&mut mcts, &mut envs, &mut rng(1, 0), watch).unwrap();
    assert_eq!((steps, total), (MAX_EPISODE_STEPS, f64::from(MAX_EPISODE_STEPS)));
}

/// What the defaults do, over several episodes.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=30", "--eval-episodes=4", "--num-simulations=200"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// A model in which two players move in turn.
#[test]
fn pinned_run_of_two_players() {
    let flags = [
        "--total-timesteps=12",
        "--eval-episodes=3",
        "--num-simulations=200",
        "--gamma=0.9",
        "--two-player-model=TicTacToe-v0-both",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "two_players", &flags, train);
}

/// What the defaults leave out: another environment, means that are not scaled, a short horizon.
#[test]
fn pinned_run_of_the_other_flags() {
    let flags = [
        "--env-id=FrozenLake-v1",
        "--total-timesteps=40",
        "--eval-episodes=3",
        "--num-simulations=60",
        "--horizon=30",
        "--exploration=0.2",
        "--normalize-values=false",
        "--gamma=0.95",
        "--capture-video",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "flags", &flags, train);
}
