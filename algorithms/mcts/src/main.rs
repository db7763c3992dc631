//! # Monte-Carlo tree search with UCT
//!
//! Kocsis & Szepesvári (2006), "Bandit based Monte-Carlo planning"; the name and the four phases from
//! Coulom (2006), "Efficient selectivity and backup operators in Monte-Carlo tree search", and Browne et
//! al. (2012), "A survey of Monte Carlo tree search methods".
//!
//! All that may happen within a few moves is too much to try, but not all of it matters. Tree search
//! plays one game after another in a model, remembers at every position how often each move was tried
//! and how well that went, and chooses moves there as one chooses among the arms of a bandit: good ones
//! often, rare ones now and then. Where the tree ends, the game is finished by random moves; so the tree
//! grows where play is good, and the averages in it become the values of good play.
//!
//! A simulation starts at the present state, the root, and has four phases:
//!
//! ```text
//! selection      an action that was not tried here, if there is one; else argmax_a S(s,a)
//! expansion      the first new state joins the tree
//! rollout        from there on, uniformly random actions give a return G
//! backup         on the way back,  G ← r + γ G,  N(s) ← N(s) + 1,  N(s,a) ← N(s,a) + 1,  Q(s,a) ← Q(s,a) + G
//!
//! S(s,a) = Q(s,a) / N(s,a) + 2 C √( 2 ln N(s) / N(s,a) )
//! ```
//!
//! N counts visits and Q sums returns. After some number of simulations the action that was tried most is
//! taken, and the next state gets a tree of its own. With a move by an opponent at every other step of
//! the model (`--two-player-model`), Q(s,a) is for the player who moves in s, and what one wins the other
//! loses: `G ← r − γ G`.
//!
//! Deviations and choices. As in the paper, an action may lead to several states, each a node; a model
//! that never leads to the same state twice gets a tree one action deep. One node joins the tree in a
//! simulation (Coulom), and two ways to the same state are two nodes; the paper keeps averages by state and
//! depth for all that was visited. The action tried most is taken, the paper's is the one of the greatest
//! mean. UCT's bound wants returns in [0, 1]: the mean in S is scaled by the least and greatest return of
//! the search so far (as in MuZero, Schrittwieser et al. 2020, by values); `--normalize-values=false` has
//! the plain formula. A simulation sees --horizon steps, as in the paper's experiments, and reckons with
//! nothing beyond; nor beyond the time limit. S is the survey's, with a 2 under the root that the paper has
//! not: it is UCB1 at C = ½, and the survey's C is 1/√2. Ours is half of that, 0.7 of UCB1's, which spends
//! less on moves that are known to be worse. Trees are not kept from one move to the next. The model is the
//! environment's own: there is nothing to save, training steps are steps of planned episodes, and
//! `--eval-only` plans others.
//!
//! Run `cargo run -p mcts`: against random moves it wins 99 % of its games of tic-tac-toe and loses none,
//! and draws `search_tree.png`, what it thought of on the first move. Exactly: 98.96 %, for means keep the
//! price of trying other moves, and so it begins in the middle, where that is least, and plays perfectly
//! from there; perfect play begins in a corner and wins 99.48 %. `cargo run -p mcts -- --env-id CartPole-v1
//! --num-simulations 300`: 499 of 500 over five seeds (475 counts as solved).

use anyhow::Result;
use clap::Parser;
use common::cli::{self, RunArgs};
use common::envs::{self, Action, Canvas, Env, Rng, Space, State, VecEnv, invalid, learner_rng};
use common::gif::GifWriter;
use common::plot::{Chart, Curve};
use common::run::Run;
use rand::RngExt;
use serde::Serialize;
use std::{path::Path, process::ExitCode, time::Instant};

/// The evaluation's environments draw from this seed's streams, apart from the training ones.
const EVALUATION_SEED: u64 = 0x5EED_0E7A;

/// Index of the tree's first node, the present state.
const ROOT: usize = 0;

/// Monte-Carlo tree search: plans discrete actions with the environment's own dynamics
#[derive(Parser, Serialize, Debug, Clone)]
#[command(version)]
#[command(mut_arg("env_id", |arg| arg.default_value("TicTacToe-v0")))]
#[command(mut_arg("total_timesteps", |arg| arg.default_value("1000")))]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    /// Environment in which two players move in turn, each reward being the mover's: plans are made in
    /// it, against a good opponent, and carried out in --env-id, whose states it shares
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    two_player_model: Option<String>,
    /// Simulations for each action
    #[arg(long, default_value_t = 1000, value_parser = cli::positive)]
    num_simulations: usize,
    /// Steps that a simulation looks ahead, those within the tree among them
    #[arg(long, default_value_t = 20, value_parser = cli::positive)]
    horizon: usize,
    /// Weight of trying what was tried less, C (½ is UCB1's, 1/√2 the survey's, for returns in [0, 1])
    #[arg(long, default_value_t = 0.35, value_parser = cli::non_negative)]
    exploration: f64,
    /// Scale mean returns to [0, 1] before exploration is added
    #[arg(long, default_value_t = true)]
    normalize_values: bool,
    /// Discount, γ
    #[arg(long, default_value_t = 1.0, value_parser = cli::unit_interval)]
    gamma: f64,
}

/// A state in the tree.
struct Node {
    state: State,
    ended: bool,      // the episode, on the way here
    visits: f64,      // N(s), simulations that came here
    edges: Vec<Edge>, // [num_actions]
}

/// An action in such a state.
#[derive(Clone, Default)]
struct Edge {
    visits: f64,       // N(s,a)
    value_sum: f64,    // Q(s,a), of returns for who moves in s
    nodes: Vec<usize>, // the states that it has led to
}

/// One step of a simulation within the tree.
struct Move {
    node: usize, // s
    action: usize,
    reward: f64,
}

impl Node {
    fn new(state: State, ended: bool, num_actions: usize) -> Self {
        Self { state, ended, visits: 0.0, edges: vec![Edge::default(); num_actions] }
    }
}

/// Grows a tree of what may happen in a copy of the environment.
struct Mcts {
    model: Box<dyn Env>,
    num_actions: usize,
    sign: f64,        // of the next player's return in this one's: −1 with two players, 1 with one
    nodes: Vec<Node>, // the tree; who leads to a node comes before it
    lowest: f64,      // return in this search
    highest: f64,     // return in this search
    args: Args,
}

impl Mcts {
    fn new(model: Box<dyn Env>, args: &Args) -> Result<Self> {
        let spec = model.spec();
        let Space::Discrete { n: num_actions } = spec.action_space else {
            let (id, space) = (&spec.id, &spec.action_space);
            return invalid(format!("--env-id {id}: mcts needs Discrete actions, not {space}"));
        };
        let sign = if args.two_player_model.is_some() { -1.0 } else { 1.0 };
        let mut mcts = Self {
            model,
            num_actions,
            sign,
            nodes: Vec::new(),
            lowest: 0.0,
            highest: 0.0,
            args: args.clone(),
        };
        mcts.plant(&State::default());
        Ok(mcts)
    }

    /// Begins a tree at `state`.
    fn plant(&mut self, state: &State) {
        self.nodes = vec![Node::new(state.clone(), false, self.num_actions)];
        (self.lowest, self.highest) = (f64::INFINITY, f64::NEG_INFINITY);
    }

    /// Q(s,a) / N(s,a); in [0, 1] among the returns of the search with --normalize-values.
    fn mean_value(&self, edge: &Edge) -> f64 {
        let mean = edge.value_sum / edge.visits;
        let range = self.highest - self.lowest;
        match self.args.normalize_values {
            true if range > 0.0 => (mean - self.lowest) / range,
            true => 0.0, // all returns are the same
            false => mean,
        }
    }

    /// S(s,a) of an action that was tried.
    fn score(&self, node: &Node, edge: &Edge) -> f64 {
        // S(s,a) = Q(s,a) / N(s,a) + 2 C √( 2 ln N(s) / N(s,a) )
        let exploration = (2.0 * node.visits.ln() / edge.visits).sqrt();
        self.mean_value(edge) + 2.0 * self.args.exploration * exploration
    }

    /// The action to try next in a state of the tree.
    fn select(&self, node: &Node, rng: &mut Rng) -> usize {
        let untried: Vec<usize> = (0..node.edges.len()).filter(|&a| node.edges[a].visits == 0.0).collect();
        if !untried.is_empty() {
            return untried[rng.random_range(0..untried.len())];
        }
        // argmax_a S(s,a)
        argmax(node.edges.iter().map(|edge| self.score(node, edge)))
    }

    /// Selection and expansion: from the root to the first state that is new, or to an end. Returns the
    /// way and the node it leads to; the model is in that state.
    fn descend(&mut self, rng: &mut Rng) -> Result<(Vec<Move>, usize)> {
        self.model.set_state(&self.nodes[ROOT].state)?;
        let (mut way, mut node) = (Vec::new(), ROOT);
        while !self.nodes[node].ended && way.len() < self.args.horizon {
            let action = self.select(&self.nodes[node], rng);
            let step = self.model.step(Action::Discrete(action), rng)?;
            way.push(Move { node, action, reward: step.reward });
            let state = self.model.state()?;
            let known =
                self.nodes[node].edges[action].nodes.iter().find(|&&next| self.nodes[next].state == state);
            if let Some(&next) = known {
                node = next;
                continue;
            }
            let new = self.nodes.len();
            self.nodes[node].edges[action].nodes.push(new);
            // Nothing follows a time limit either: what counts is what the episode will pay.
            self.nodes.push(Node::new(state, step.terminated || step.truncated, self.num_actions));
            return Ok((way, new));
        }
        Ok((way, node))
    }

    /// The discounted return of at most `steps` random actions from the model's state on, for who moves
    /// there.
    fn rollout(&mut self, steps: usize, rng: &mut Rng) -> Result<f64> {
        let (mut total, mut discount) = (0.0, 1.0); // discount: (±γ)ᵏ
        for _ in 0..steps {
            let step = self.model.step(Action::Discrete(rng.random_range(0..self.num_actions)), rng)?;
            // G = Σ_k (±γ)ᵏ r_k
            total += discount * step.reward;
            discount *= self.sign * self.args.gamma;
            if step.terminated || step.truncated {
                break;
            }
        }
        Ok(total)
    }

    /// Adds one simulation to the averages on its `way`. `value` is the return from the `leaf` on, for
    /// who moves there. Returns the one from the root on.
    fn backup(&mut self, way: &[Move], leaf: usize, value: f64) -> f64 {
        let mut g = value;
        self.nodes[leaf].visits += 1.0;
        for &Move { node, action, reward } in way.iter().rev() {
            // G ← r ± γ G. Easy to miss: of two players, what one wins the other loses.
            g = reward + self.sign * self.args.gamma * g;
            self.nodes[node].visits += 1.0;
            let edge = &mut self.nodes[node].edges[action];
            edge.visits += 1.0;
            edge.value_sum += g;
            (self.lowest, self.highest) = (self.lowest.min(g), self.highest.max(g));
        }
        g
    }

    /// Grows a tree from `state` by --num-simulations.
    fn search(&mut self, state: &State, rng: &mut Rng) -> Result<()> {
        self.plant(state);
        for _ in 0..self.args.num_simulations {
            let (way, leaf) = self.descend(rng)?;
            let value = match self.nodes[leaf].ended {
                true => 0.0,
                false => self.rollout(self.args.horizon - way.len(), rng)?,
            };
            self.backup(&way, leaf, value);
        }
        Ok(())
    }

    /// The action that was tried most in the root; its value was the most reliable and mostly the best.
    fn best_action(&self) -> usize {
        argmax(self.nodes[ROOT].edges.iter().map(|edge| edge.visits))
    }

    /// What to do in `state`.
    fn act(&mut self, state: &State, rng: &mut Rng) -> Result<u32> {
        self.search(state, rng)?;
        Ok(self.best_action() as u32)
    }

    /// Length of the longest way through the tree.
    fn depth(&self) -> usize {
        let mut depths = vec![0; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for &next in node.edges.iter().flat_map(|edge| &edge.nodes) {
                depths[next] = depths[i] + 1;
            }
        }
        depths.into_iter().max().unwrap_or(0)
    }

    /// Draws the tree from the side, a hill for each action in the root: as wide as it had simulations, as
    /// high as they went through the tree, where they are sorted by their moves.
    fn draw_tree(&self, path: &Path) -> Result<()> {
        let (mut curves, mut x) = (Vec::new(), 0.0);
        for (action, edge) in self.nodes[ROOT].edges.iter().enumerate() {
            let mut outline = vec![(x, 0.0)];
            edge.nodes.iter().for_each(|&next| self.trace(next, 1.0, &mut x, &mut outline));
            outline.push((x, 0.0));
            let (xs, ys): (Vec<f64>, Vec<f64>) = outline.into_iter().unzip();
            let label = format!("action {action}: {} visits", edge.visits);
            curves.push(Curve { label, xs, low: vec![0.0; ys.len()], high: ys.clone(), mean: ys });
        }
        let title = format!("{}: what was thought of on the first move", self.args.run.env_id);
        let (x_label, y_label) = ("simulations, sorted by their moves", "moves ahead in the tree");
        Chart { title: &title, x_label, y_label, curves: &curves, ..Chart::default() }.draw(path)
    }

    /// Adds the outline of the tree above `node`, which begins at `x` and is as wide as it had visits:
    /// its branches, the most visited first, and then the simulations that ended in it.
    fn trace(&self, node: usize, depth: f64, x: &mut f64, outline: &mut Vec<(f64, f64)>) {
        let end = *x + self.nodes[node].visits;
        let mut branches: Vec<usize> =
            self.nodes[node].edges.iter().flat_map(|edge| &edge.nodes).copied().collect();
        branches.sort_by(|&i, &j| self.nodes[j].visits.total_cmp(&self.nodes[i].visits));
        branches.iter().for_each(|&next| self.trace(next, depth + 1.0, x, outline));
        outline.extend([(*x, depth), (end, depth)]);
        *x = end;
    }
}

/// Which of `values` is the greatest; of equal ones the first.
fn argmax(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > best.1 {
            best = (i, value);
        }
    }
    best.0
}

fn main() -> ExitCode {
    cli::main(train)
}

fn train(args: Args) -> Result<()> {
    let (mut envs, mut mcts, mut rng) = set_up(&args, args.run.seed)?;
    mcts.model.set_state(&envs.state(0)?)?; // refuses an environment that no one can plan in
    let mut run = Run::start(env!("CARGO_PKG_NAME"), &args.run, &args)?;

    let mut global_step = 0;
    while global_step < run.total_timesteps {
        run.resume_or_checkpoint(&mut global_step, &mut [("envs", &mut envs), ("rng", &mut rng)])?;
        let start = Instant::now();
        let action = mcts.act(&envs.state(0)?, &mut rng)?;
        let planning_seconds = start.elapsed().as_secs_f64();
        envs.step(&[action])?;
        global_step += 1;
        run.episodes(global_step, envs.episodes())?;
        let edge = &mcts.nodes[ROOT].edges[action as usize];
        run.log(global_step, "charts/planned_return", edge.value_sum / edge.visits)?;
        run.log(global_step, "charts/share_of_visits", edge.visits / mcts.nodes[ROOT].visits)?;
        run.log(global_step, "charts/tree_nodes", mcts.nodes.len() as f64)?;
        run.log(global_step, "charts/tree_depth", mcts.depth() as f64)?;
        // How often a machine could be told what to do: the reciprocal of the planning time of a step.
        run.log(global_step, "charts/SPS_planning", 1.0 / planning_seconds.max(1e-9))?;
    }

    let training_seconds = run.wall_seconds();
    let mut returns = Vec::new();
    for episode in 0..args.run.eval_episodes {
        let (mut envs, mut mcts, mut rng) = set_up(&args, evaluation_seed(&args, episode))?;
        returns.push(play(&mut mcts, &mut envs, &mut rng, |_| run.refuse_interrupted())?);
    }
    let lowest = returns.iter().copied().fold(f64::INFINITY, f64::min);
    run.log(global_step, "eval/lowest_return", lowest)?; // whether any game was lost
    if !run.eval_only() {
        let (envs, mut mcts, mut rng) = set_up(&args, evaluation_seed(&args, 0))?;
        mcts.search(&envs.state(0)?, &mut rng)?;
        mcts.draw_tree(&run.dir().join("search_tree.png"))?;
    }
    if args.run.capture_video {
        film(&args, &run)?;
    }
    run.finish(&returns, training_seconds)?;
    Ok(())
}

/// One environment to act in, whose state can be read, and a planner with a model of its own.
fn set_up(args: &Args, seed: u64) -> Result<(VecEnv, Mcts, Rng)> {
    let envs = VecEnv::new(vec![envs::make(&args.run.env_id)?], seed)?;
    let model = envs::make(args.two_player_model.as_ref().unwrap_or(&args.run.env_id))?;
    let (actions, known) = (&envs.spec().action_space, &model.spec().action_space);
    if actions != known {
        let (id, model_id) = (&envs.spec().id, &model.spec().id);
        return invalid(format!(
            "--two-player-model {model_id}: its actions are {known}, those of {id} {actions}"
        ));
    }
    if args.two_player_model.is_some() && model.spec().id != "TicTacToe-v0-both" {
        let id = &model.spec().id;
        return invalid(format!("--two-player-model {id}: two move in turn only in TicTacToe-v0-both"));
    }
    if args.two_player_model.is_none() && envs.spec().id == "TicTacToe-v0-both" {
        return invalid(
            "--env-id TicTacToe-v0-both: two move in turn in it; --two-player-model takes it too",
        );
    }
    Ok((envs, Mcts::new(model, args)?, learner_rng(seed)))
}

/// Of evaluation episode number `episode`: drawn, for sums of seeds and numbers would meet again in
/// the runs of neighbouring seeds.
fn evaluation_seed(args: &Args, episode: usize) -> u64 {
    envs::rng(args.run.seed ^ EVALUATION_SEED, episode as u64).random()
}

/// The return of one planned episode, of which `watch` is shown every state before the action.
fn play(
    mcts: &mut Mcts,
    envs: &mut VecEnv,
    rng: &mut Rng,
    mut watch: impl FnMut(&VecEnv) -> Result<()>,
) -> Result<f64> {
    for _ in 0..envs.spec().episode_limit() {
        watch(envs)?;
        let action = mcts.act(&envs.state(0)?, rng)?;
        envs.step(&[action])?;
        if let [episode] = envs.episodes() {
            return Ok(episode.episodic_return);
        }
    }
    Ok(envs.running_returns()[0]) // of an environment without a time limit
}

/// The first evaluation episode, a thousand steps of it at most, as `agent.gif`.
fn film(args: &Args, run: &Run) -> Result<()> {
    let mut gif = GifWriter::new(&run.dir().join("agent.gif"), 480, 320, 33)?;
    let (mut envs, mut mcts, mut rng) = set_up(args, evaluation_seed(args, 0))?;
    play(&mut mcts, &mut envs, &mut rng, |envs| {
        if gif.frames() == 1000 {
            return Ok(());
        }
        let mut canvas = Canvas::new(480, 320);
        envs.draw(0, &mut canvas)?;
        gif.push(&canvas.rgb())
    })?;
    gif.finish()
}

#[cfg(test)]
mod tests;
