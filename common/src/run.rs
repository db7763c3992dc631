//! One training run: its directory, metrics, progress, checkpoints, evaluation and summary.
//!
//! ```text
//! config.toml           the effective configuration; --config reads it back
//! metrics.csv           global_step,wall_seconds,tag,value
//! events.out.tfevents.* the same for TensorBoard
//! summary.json          what the run was and what it reached
//! learning_curve.png    episodic return over environment steps
//! model.safetensors     the trained parameters
//! agent.gif             an episode of the trained agent, with --capture-video
//! checkpoint.safetensors  everything that --resume needs
//! diverged.safetensors  the state in which a number logged was not finite (after the last iteration:
//!                       the model)
//! ```
//!
//! A checkpoint is written before training and then every minute, or as `--checkpoint-every` has
//! it: a run that is killed, or ended by an error, at any moment goes on from there with `--resume`.
//!
//! A run that diverges ends with one line that says what happened:
//!
//! - a number given to [`Run::log`] that is not finite ends the run at its next
//!   [`Run::resume_or_checkpoint`], which first writes the state to `diverged.safetensors`. The last
//!   `checkpoint.safetensors` stays as it is;
//! - a gradient, an action, an observation or a reward that is not finite is refused where it
//!   appears, by `Adam` and `VecEnv`, whose error ends the run at once.

use crate::checkpoint::{self, Checkpoint};
use crate::cli::{self, Evaluation, RunArgs};
use crate::console::{Console, tell};
use crate::gif::GifWriter;
use crate::interrupt::{self, Interrupted};
use crate::model::{self, Model};
use crate::plot::{Curve, learning_curves};
use crate::records::{self, Extent, Records};
use crate::timer::Timer;
use crate::write_atomically::{tidy_up, write_atomically};
use anyhow::{Context, anyhow, bail};
use envs::mpe::ParallelVecEnv;
use envs::persist::Persist;
use envs::{Actions, Canvas, Episode, InvalidInput, Result, Spec, VecEnv, invalid};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The evaluation's environments draw from this seed's streams, apart from the training ones.
const EVALUATION_SEED: u64 = 0x5EED_0E7A;

/// Time between checkpoints where `--checkpoint-every` does not say otherwise, and how many times as
/// long as writing one it is at least.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);
const CHECKPOINT_SHARE: u32 = 100;

/// What a resumed run may have other values of, beside step sizes: how long it is, how it is computed and
/// watched, what is evaluated, and the number of its ranks, of which a checkpoint itself knows.
const CHANGEABLE: [&str; 14] = [
    "total_timesteps",
    "total_episodes",
    "total_improvements",
    "exp_name",
    "threads",
    "device",
    "eval_episodes",
    "greedy_eval",
    "save_model",
    "capture_video",
    "checkpoint_every",
    "env_timeout",
    "learning_rate",
    "workers",
];

/// Time between flushes of the records, so that the files can be watched.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// Most frames of `agent.gif`.
const MAX_FRAMES: usize = 1000;

/// What happened so far; part of the checkpoint.
#[derive(Default, Serialize, Deserialize)]
struct History {
    returns: Vec<(u64, f64)>, // (global step, episodic return) of every finished episode
    recent: VecDeque<f64>,    // the last 100 returns
    wall_seconds: f64,
    records: Extent,
}

/// Everything that changes while training, by name.
type Items<'a, 'b> = &'a mut [(&'b str, &'b mut dyn Persist)];

/// A training run in progress.
pub struct Run {
    /// Environment steps to train for: `--total-timesteps`, or 0 with `--eval-only`.
    pub total_timesteps: usize,
    algorithm: &'static str,
    args: RunArgs,
    dir: PathBuf,
    config: String,           // as config.toml has it
    records: Option<Records>, // none with --eval-only
    history: History,
    started: Instant,
    console: Console,
    flush_timer: Timer,
    resume_from: Option<Checkpoint>,
    last_checkpoint: Option<usize>, // its global step
    checkpoint_timer: Timer,
    savable: bool, // as far as is known
    global_step: usize,
    diverged: Option<String>, // the first number logged that was not finite
    ended: bool,              // finished, or interrupted
}

impl Run {
    /// Creates the run directory, prints the configuration and writes `config.toml`. Call it once
    /// everything that can be refused has been: nothing is written before.
    ///
    /// # Errors
    /// A directory that cannot be written, or that holds another run already.
    pub fn start<A: Serialize>(algorithm: &'static str, run_args: &RunArgs, args: &A) -> Result<Self> {
        // What is generic in this file is compiled again with every algorithm.
        Self::start_with(algorithm, run_args, cli::to_toml(args)?)
    }

    /// [`Run::start`] with the configuration as TOML.
    fn start_with(algorithm: &'static str, run_args: &RunArgs, config: String) -> Result<Self> {
        if run_args.capture_video && run_args.env_id.starts_with("gym:") {
            return invalid(format!("--capture-video: {} cannot be drawn", run_args.env_id));
        }
        run_args.device()?; // refused here for algorithms without tensors too
        let name = run_args.exp_name.as_deref().unwrap_or(algorithm);
        let existing = run_args.resume.as_ref().or(run_args.eval_only.as_ref());
        let resuming = run_args.resume.is_some();
        let evaluating = run_args.eval_only.is_some();
        let dir = match (existing, &run_args.run_dir) {
            (Some(dir), _) | (None, Some(dir)) => dir.clone(),
            (None, None) => {
                let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                let env = run_args.env_id.replace(['/', ':'], "-");
                free_dir(&format!("runs/{env}__{name}__{}__{seconds}", run_args.seed))?
            }
        };
        let flag = if resuming { "--resume" } else { "--run-dir" };
        let shown = dir.display().to_string();
        if !evaluating {
            // Fails early, with the flag's name, where the directory cannot be written.
            let probe = dir.join(".writable");
            std::fs::create_dir_all(&dir)
                .and_then(|()| File::create(&probe))
                .and_then(|_| std::fs::remove_file(&probe))
                .or_else(|error| invalid(format!("{flag} {shown}: cannot be written: {error}")))?;
        }
        if !resuming && !evaluating && records::exist_in(&dir) {
            let advice = match checkpoint::path(&dir).exists() {
                true => format!("continue it with --resume {shown}"),
                false => "it has no checkpoint to continue from, so remove it or name another".to_string(),
            };
            return invalid(format!("--run-dir {shown}: holds a run already; {advice}"));
        }
        interrupt::listen()?;

        let (mut history, mut records, mut resume_from) = (History::default(), None, None);
        if resuming {
            let checkpoint = Checkpoint::read(&dir)?;
            checkpoint.expect_of(algorithm, &run_args.env_id)?;
            expect_same(&dir, &config)?;
            let (mut step, total) = (0_usize, run_args.total_timesteps);
            step.load(checkpoint.item("global_step")?)?;
            // Schedules that end with the run would go on beyond their end.
            if step >= total {
                return invalid(format!("--total-timesteps {total}: the run in {shown} is at step {step}"));
            }
            history.load(checkpoint.item("run")?).context("the checkpoint's history")?;
            records = Some(Records::resume(&dir, &history.records)?);
            resume_from = Some(checkpoint);
        } else if !evaluating {
            records = Some(Records::create(&dir, &config)?);
            write_atomically(&dir.join("config.toml"), config.as_bytes())?;
        }
        let this = Self {
            total_timesteps: if evaluating { 0 } else { run_args.total_timesteps },
            algorithm,
            args: run_args.clone(),
            console: Console::new(run_args.total_timesteps, evaluating),
            flush_timer: Timer::new(FLUSH_EVERY),
            dir,
            config,
            records,
            history,
            started: Instant::now(),
            resume_from,
            last_checkpoint: None,
            checkpoint_timer: Timer::new(CHECKPOINT_EVERY),
            savable: true,
            global_step: 0,
            diverged: None,
            ended: false,
        };
        this.console.say(&format!("{algorithm} on {} → {shown}\n{}", run_args.env_id, this.config));
        Ok(this)
    }

    /// The run directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether `--eval-only` was given: nothing is trained, the model is read.
    pub fn eval_only(&self) -> bool {
        self.args.eval_only.is_some()
    }

    /// Restores or saves everything that changes while training. Call it at the top of every
    /// iteration of the training loop with every such thing:
    ///
    /// - the first call of a resumed run loads them from the checkpoint, cuts off what was recorded after
    ///   it and writes the configuration, in which flags may have changed how long it is,
    ///   how it is watched, and step sizes;
    /// - the first call of a new run saves them, and later calls do when a minute has passed since, or
    ///   a hundred times as long as saving took, whichever is longer; with `--checkpoint-every`, when that
    ///   many steps have passed, or never. What cannot be saved is said on the console, and the run goes on without
    ///   checkpoints; with the flag it is refused before anything is learned;
    /// - after Ctrl-C it saves them and ends the run;
    /// - after a number that was not finite it saves them as `diverged.safetensors` and ends the run.
    ///
    /// # Errors
    /// A checkpoint whose items do not fit; something that cannot be saved, with the flag; a full
    /// disk; and the two ends above.
    pub fn resume_or_checkpoint(&mut self, global_step: &mut usize, items: Items) -> Result<()> {
        if self.eval_only() {
            return Ok(());
        }
        if let Some(checkpoint) = self.resume_from.take() {
            for (name, item) in items.iter_mut() {
                item.load(checkpoint.item(name)?).map_err(|error| {
                    let file = checkpoint::path(&self.dir);
                    InvalidInput(format!("{}: {name} does not fit this run: {error:#}", file.display()))
                })?;
            }
            global_step.load(checkpoint.item("global_step")?)?;
            // Nothing of the run has changed before everything fits.
            self.records.as_mut().map_or(Ok(()), Records::cut)?;
            // The run may have been killed in its last checkpoint: no other will remove what is left.
            tidy_up(&checkpoint::path(&self.dir));
            write_atomically(&self.dir.join("config.toml"), self.config.as_bytes())?;
            self.last_checkpoint = Some(*global_step);
            self.console.say(&format!("resumed at step {global_step}"));
        }
        self.global_step = *global_step;
        if let Some(what) = self.diverged.take() {
            let path = self.diverged_path();
            let saved = self.state(items).and_then(|state| self.write(&path, &state));
            return Err(self.diverged_error(&what, saved));
        }
        if interrupt::requested() {
            return Err(self.end_interrupted(items).into());
        }
        if self.checkpoint_is_due() { self.checkpoint(items) } else { Ok(()) }
    }

    fn checkpoint_is_due(&mut self) -> bool {
        match (self.args.checkpoint_every, self.last_checkpoint) {
            (Some(0), _) => false,
            (None, _) if !self.savable => false,
            (_, None) => true,
            (Some(every), Some(last)) => self.global_step.saturating_sub(last) >= every,
            (None, Some(_)) => self.checkpoint_timer.is_due(),
        }
    }

    fn checkpoint(&mut self, items: Items) -> Result<()> {
        let start = Instant::now();
        let state = match (self.state(items), self.args.checkpoint_every) {
            (Ok(state), _) => state,
            (Err(error), None) => {
                self.savable = false;
                let earlier = self.last_checkpoint.map_or(String::new(), |_| format!("; {}", self.whence()));
                self.console.say(&format!("no checkpoints: {error:#}{earlier}"));
                return Ok(());
            }
            (Err(error), Some(every)) if self.last_checkpoint.is_none() => {
                self.remove()?;
                return invalid(format!("--checkpoint-every {every}: this run cannot be saved: {error:#}"));
            }
            (Err(error), Some(_)) => return Err(error.context("writing a checkpoint")),
        };
        self.write(&checkpoint::path(&self.dir), &state).context("writing a checkpoint")?;
        self.last_checkpoint = Some(self.global_step);
        let wait = CHECKPOINT_EVERY.max(CHECKPOINT_SHARE * start.elapsed());
        self.checkpoint_timer = Timer::new(wait);
        Ok(())
    }

    /// What a checkpoint holds of `items`.
    fn state(&self, items: Items) -> Result<Vec<(String, Vec<u8>)>> {
        let save = |(name, item): &mut (&str, &mut dyn Persist)| {
            Ok((name.to_string(), item.save().with_context(|| format!("saving {name}"))?))
        };
        items.iter_mut().map(save).collect()
    }

    /// Writes `state`, and what the run itself has to remember, as a checkpoint to `path`.
    fn write(&mut self, path: &Path, state: &[(String, Vec<u8>)]) -> Result<()> {
        // A checkpoint on the disk needs what it says of the records to be there as well.
        if let Some(records) = &mut self.records {
            self.history.records = records.sync()?;
        }
        self.history.wall_seconds = self.wall_seconds();
        self.started = Instant::now();
        let own = [
            ("run".to_string(), self.history.save()?),
            ("global_step".to_string(), self.global_step.save()?),
        ];
        checkpoint::write(path, self.algorithm, &self.args.env_id, own.iter().chain(state))
    }

    /// Saves `items` after Ctrl-C; what to say at the end.
    fn end_interrupted(&mut self, items: Items) -> Interrupted {
        self.console.clear();
        self.ended = true;
        let step = self.global_step;
        let path = checkpoint::path(&self.dir);
        Interrupted(match self.state(items).and_then(|state| self.write(&path, &state)) {
            Ok(()) => format!("interrupted at step {step}; continue with --resume {}", self.dir.display()),
            Err(error) => {
                let earlier = self.last_checkpoint.map_or(String::new(), |_| format!("; {}", self.whence()));
                format!("interrupted at step {step}; nothing could be saved: {error:#}{earlier}")
            }
        })
    }

    /// From where this run can go on.
    fn whence(&self) -> String {
        match self.last_checkpoint {
            Some(step) => format!("continue from step {step} with --resume {}", self.dir.display()),
            None => "there is no checkpoint".to_string(),
        }
    }

    /// Where a run that an error ends was, and from where it can go on.
    fn words_of_failure(&self) -> Option<String> {
        if self.ended || self.eval_only() || self.global_step == 0 {
            return None;
        }
        let diverged = self.diverged.as_ref().map_or(String::new(), |what| format!("{what}; "));
        Some(format!("{diverged}the run ended at step {}; {}", self.global_step, self.whence()))
    }

    fn diverged_path(&self) -> PathBuf {
        self.dir.join("diverged.safetensors")
    }

    /// The end of a run that logged a number that is not finite, after its state was `saved`.
    fn diverged_error(&self, what: &str, saved: Result<()>) -> anyhow::Error {
        let path = self.diverged_path();
        match saved {
            Ok(()) => anyhow!("{what}: the run has diverged; its state is in {}", path.display()),
            Err(error) => anyhow!("{what}: the run has diverged; its state could not be saved: {error:#}"),
        }
    }

    /// Removes a run that was refused before it began.
    fn remove(&mut self) -> Result<()> {
        std::fs::remove_file(self.dir.join("config.toml"))?;
        if let Some(records) = self.records.take() {
            records.remove(&self.dir)?;
        }
        // Not where the directory was there before, with something else in it.
        let _ = std::fs::remove_dir(&self.dir);
        Ok(())
    }

    /// Records the episodes that ended in the last environment step.
    pub fn episodes(&mut self, global_step: usize, episodes: &[Episode]) -> Result<()> {
        self.global_step = self.global_step.max(global_step);
        for episode in episodes {
            self.log(global_step, "charts/episodic_return", episode.episodic_return)?;
            self.log(global_step, "charts/episodic_length", f64::from(episode.length))?;
            self.history.returns.push((global_step as u64, episode.episodic_return));
            if self.history.recent.len() == 100 {
                self.history.recent.pop_front();
            }
            self.history.recent.push_back(episode.episodic_return);
        }
        Ok(())
    }

    /// Records one number and moves the progress bar. A number that is not finite is not recorded:
    /// it ends the run at the next [`Run::resume_or_checkpoint`] or, in the last iteration, at the
    /// [`Run::save_or_load_model`] that follows, which saves the model, or at the evaluation, which saves
    /// nothing.
    pub fn log(&mut self, global_step: usize, tag: &str, value: impl Into<f64>) -> Result<()> {
        let value = value.into();
        self.global_step = self.global_step.max(global_step);
        if !value.is_finite() {
            self.diverged.get_or_insert_with(|| format!("{tag} is {value} at step {global_step}"));
            return Ok(());
        }
        self.record(global_step, tag, value)?;
        if self.console.is_due() {
            self.report();
        }
        if self.flush_timer.is_due() {
            self.flush_timer = Timer::new(FLUSH_EVERY);
            self.record(self.global_step, "charts/SPS", self.steps_per_second())?;
            self.records.as_mut().map_or(Ok(()), Records::flush)?;
        }
        Ok(())
    }

    fn record(&mut self, global_step: usize, tag: &str, value: f64) -> Result<()> {
        let seconds = self.wall_seconds();
        match &mut self.records {
            Some(records) => records.scalar(global_step, seconds, tag, value),
            None => Ok(()),
        }
    }

    fn steps_per_second(&self) -> f64 {
        (self.global_step as f64 / self.wall_seconds().max(1e-9)).round()
    }

    fn report(&self) {
        let recent = &self.history.recent;
        let mean = (!recent.is_empty()).then(|| recent.iter().sum::<f64>() / recent.len() as f64);
        self.console.update(self.global_step, mean, self.steps_per_second());
    }

    /// Seconds that the run has taken, over all of its resumptions.
    pub fn wall_seconds(&self) -> f64 {
        self.history.wall_seconds + self.started.elapsed().as_secs_f64()
    }

    /// Writes `model` to `model.safetensors`; with `--eval-only` reads it from there instead.
    ///
    /// # Errors
    /// A model of another algorithm, environment or shape. A run whose last iteration diverged: its
    /// model goes to `diverged.safetensors`.
    pub fn save_or_load_model(&mut self, model: &mut dyn Model) -> Result<()> {
        let path = self.dir.join("model.safetensors");
        if self.eval_only() {
            return model::load(&path, self.algorithm, &self.args.env_id, model);
        }
        if let Some(what) = self.diverged.take() {
            let path = self.diverged_path();
            let saved = model::save(&path, self.algorithm, &self.args.env_id, model);
            return Err(self.diverged_error(&what, saved));
        }
        if self.args.save_model {
            model::save(&path, self.algorithm, &self.args.env_id, model)?;
        }
        Ok(())
    }

    fn refuse_diverged(&mut self) -> Result<()> {
        match self.diverged.take() {
            Some(what) => bail!("{what}: the run has diverged"),
            None => Ok(()),
        }
    }

    /// Refuses to go on with an evaluation after Ctrl-C; for those that an algorithm makes itself.
    ///
    /// # Errors
    /// Ctrl-C was pressed.
    pub fn refuse_interrupted(&mut self) -> Result<()> {
        if !interrupt::requested() {
            return Ok(());
        }
        self.ended = true;
        let evaluate = match self.dir.join("model.safetensors").exists() {
            true => format!("; evaluate it with --eval-only {}", self.dir.display()),
            false => String::new(),
        };
        Err(Interrupted(format!("interrupted in the evaluation of the trained agent{evaluate}")).into())
    }

    /// Ends the run: plays `--eval-episodes` episodes with `policy`, which maps observations
    /// `[n, observation_dim]` to `n` actions, and writes the summary and the plot. The last line
    /// on standard output is the result. Where the environment has no time limit, an episode
    /// counts with what it collected in [`envs::MAX_EPISODE_STEPS`].
    pub fn evaluate<T>(self, policy: impl FnMut(&[f32]) -> Result<Vec<T>>) -> Result<Evaluation>
    where
        for<'a> &'a Vec<T>: Into<Actions<'a>>,
    {
        let env_id = self.args.env_id.clone();
        self.evaluate_on(move |num_envs, seed| VecEnv::make_for_evaluation(&env_id, num_envs, seed), policy)
    }

    /// [`Run::evaluate`] on environments that `make(num_envs, seed)` builds.
    pub fn evaluate_on<T>(
        self,
        make: impl Fn(usize, u64) -> Result<VecEnv>,
        mut policy: impl FnMut(&[f32]) -> Result<Vec<T>>,
    ) -> Result<Evaluation>
    where
        for<'a> &'a Vec<T>: Into<Actions<'a>>,
    {
        let mut step = |envs: &mut VecEnv| {
            let actions = policy(envs.observations())?;
            envs.step(&actions)
        };
        self.evaluate_with(&make, &mut step)
    }

    /// [`Run::evaluate_on`] where `step` steps the environments with the policy's actions.
    fn evaluate_with(
        mut self,
        make: &dyn Fn(usize, u64) -> Result<VecEnv>,
        step: &mut dyn FnMut(&mut VecEnv) -> Result<()>,
    ) -> Result<Evaluation> {
        self.refuse_diverged()?;
        let training_seconds = self.wall_seconds();
        self.console.clear();
        let seed = self.args.seed ^ EVALUATION_SEED;
        let wanted = self.args.eval_episodes;
        // One episode in each of many environments: taking the first N episodes that end among
        // fewer environments would favour short ones. Python processes get fewer copies at a time.
        let batch = if self.args.env_id.starts_with("gym:") { 10 } else { 100 };
        let mut returns = Vec::with_capacity(wanted);
        while returns.len() < wanted {
            let n = batch.min(wanted - returns.len());
            let mut envs = make(n, seed.wrapping_add(returns.len() as u64))?;
            let limit = envs.spec().episode_limit();
            let mut result: Vec<Option<f64>> = vec![None; n];
            let mut steps = 0;
            while result.iter().any(Option::is_none) {
                if steps == limit {
                    for (result, running) in result.iter_mut().zip(envs.running_returns()) {
                        result.get_or_insert(*running);
                    }
                    break;
                }
                steps += 1;
                self.refuse_interrupted()?;
                step(&mut envs)?;
                for episode in envs.episodes() {
                    result[episode.env].get_or_insert(episode.episodic_return);
                }
            }
            returns.extend(result.into_iter().flatten());
        }
        if self.args.capture_video {
            self.film(make, step, seed)?;
        }
        self.finish(&returns, training_seconds)
    }

    /// [`Run::evaluate`] for several agents, on environments that `make(num_envs, seed)` builds:
    /// `policy` maps observations `[n, observation_dim]` of all agents to their actions. The
    /// return of an episode is the sum over its agents.
    pub fn evaluate_agents<T>(
        mut self,
        make: impl Fn(usize, u64) -> Result<ParallelVecEnv>,
        mut policy: impl FnMut(&[f32]) -> Result<Vec<T>>,
    ) -> Result<Evaluation>
    where
        for<'a> &'a Vec<T>: Into<Actions<'a>>,
    {
        self.refuse_diverged()?;
        let training_seconds = self.wall_seconds();
        self.console.clear();
        let seed = self.args.seed ^ EVALUATION_SEED;
        // One episode in each environment; the first of them is filmed.
        let mut envs = make(self.args.eval_episodes, seed)?;
        let mut returns: Vec<Option<f64>> = vec![None; self.args.eval_episodes];
        let mut gif = match self.args.capture_video {
            true => Some(GifWriter::new(&self.dir.join("agent.gif"), 480, 480, 100)?),
            false => None,
        };
        while returns.iter().any(Option::is_none) {
            if let Some(gif) = &mut gif
                && returns[0].is_none()
                && gif.frames() < MAX_FRAMES
            {
                let mut canvas = Canvas::new(480, 480);
                envs.draw(0, &mut canvas)?;
                gif.push(&canvas.rgb())?;
            }
            self.refuse_interrupted()?;
            let actions = policy(envs.observations())?;
            envs.step(&actions)?;
            for episode in envs.episodes() {
                returns[episode.env].get_or_insert(episode.episodic_return);
            }
        }
        gif.map_or(Ok(()), GifWriter::finish)?;
        let returns: Vec<f64> = returns.into_iter().flatten().collect();
        self.finish(&returns, training_seconds)
    }

    /// Ends the run with evaluation returns that the algorithm measured itself.
    pub fn finish(mut self, returns: &[f64], training_seconds: f64) -> Result<Evaluation> {
        self.refuse_diverged()?;
        let episodes = returns.len();
        let mean = returns.iter().sum::<f64>() / episodes.max(1) as f64;
        let variance = returns.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / episodes.max(1) as f64;
        let eval = Evaluation { mean, std: variance.sqrt(), episodes };
        if !self.eval_only() {
            let step = if self.global_step > 0 { self.global_step } else { self.total_timesteps };
            self.log(step, "eval/episodic_return", mean)?;
            self.refuse_diverged()?;
            let sps = step as f64 / training_seconds.max(1e-9);
            self.record(step, "charts/SPS", sps.round())?;
            self.records.as_mut().map_or(Ok(()), Records::flush)?;
            let summary = Summary {
                algorithm: self.algorithm,
                env_id: &self.args.env_id,
                seed: self.args.seed,
                total_timesteps: self.total_timesteps,
                wall_seconds: training_seconds,
                sps,
                eval: &eval,
                git_commit: git_commit(),
                version: env!("CARGO_PKG_VERSION"),
                cpu: cpu_name(),
            };
            write_atomically(&self.dir.join("summary.json"), &serde_json::to_vec_pretty(&summary)?)?;
            self.plot()?;
        }
        self.ended = true;
        self.console.clear();
        let Evaluation { mean, std, episodes, .. } = &eval;
        // Everything is written by now, whether or not somebody reads this.
        let _ = writeln!(
            std::io::stdout(),
            "eval/episodic_return mean={mean:.2} std={std:.2} episodes={episodes}"
        );
        Ok(eval)
    }

    fn plot(&self) -> Result<()> {
        let curve = Curve::of_run(self.algorithm, &self.history.returns);
        let spec: Option<Spec> = envs::make(&self.args.env_id).ok().map(|env| env.spec().clone());
        let solved = spec.and_then(|spec| spec.reward_threshold);
        let label = solved.map(|threshold| format!("solved: {threshold}"));
        learning_curves(
            &self.dir.join("learning_curve.png"),
            &self.args.env_id,
            "episodic return",
            &[curve],
            solved.zip(label.as_deref()),
        )
    }

    fn film(
        &mut self,
        make: &dyn Fn(usize, u64) -> Result<VecEnv>,
        step: &mut dyn FnMut(&mut VecEnv) -> Result<()>,
        seed: u64,
    ) -> Result<()> {
        let mut envs = make(1, seed)?;
        let mut gif = GifWriter::new(&self.dir.join("agent.gif"), 480, 320, 33)?;
        while gif.frames() < MAX_FRAMES && envs.episodes().is_empty() {
            self.refuse_interrupted()?;
            let mut canvas = Canvas::new(480, 320);
            envs.draw(0, &mut canvas)?;
            gif.push(&canvas.rgb())?;
            step(&mut envs)?;
        }
        gif.finish()
    }
}

impl Drop for Run {
    /// A run dropped before its end is one that an error ends; who made it knows nothing of steps.
    fn drop(&mut self) {
        self.console.clear();
        if let Some(words) = self.words_of_failure() {
            tell(words);
        }
    }
}

#[derive(Serialize)]
struct Summary<'a> {
    algorithm: &'a str,
    env_id: &'a str,
    seed: u64,
    total_timesteps: usize,
    wall_seconds: f64,
    sps: f64,
    eval: &'a Evaluation,
    git_commit: Option<String>,
    version: &'a str,
    cpu: String,
}

/// Refuses another configuration than the run in `dir` has, in whatever its checkpoint is shaped by or would
/// get another meaning from.
fn expect_same(dir: &Path, config: &str) -> Result<()> {
    let earlier: toml::Table = std::fs::read_to_string(dir.join("config.toml"))?.parse()?;
    let wanted: toml::Table = config.parse()?;
    for (key, wanted) in &wanted {
        if earlier.get(key) != Some(wanted) && !CHANGEABLE.contains(&key.as_str()) && !key.ends_with("_lr") {
            let flag = format!("--{}", key.replace('_', "-"));
            let has = earlier.get(key).map_or("has none".to_string(), |value| format!("has {flag} {value}"));
            return invalid(format!("{flag} {wanted}: the run in {} {has} and keeps it", dir.display()));
        }
    }
    Ok(())
}

/// Makes the directory `name`, or `name__2`, `name__3` … where runs that began in the same second have it.
fn free_dir(name: &str) -> Result<PathBuf> {
    let mut dir = PathBuf::from(name);
    let refused =
        |dir: &Path, error| InvalidInput(format!("--run-dir {}: cannot be written: {error}", dir.display()));
    dir.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|error| refused(&dir, error))?;
    let mut made = std::fs::create_dir(&dir);
    let mut number = 1;
    while made.as_ref().is_err_and(|error| error.kind() == ErrorKind::AlreadyExists) && number < 10_000 {
        number += 1;
        dir = PathBuf::from(format!("{name}__{number}"));
        made = std::fs::create_dir(&dir);
    }
    made.map_err(|error| refused(&dir, error))?;
    Ok(dir)
}

/// The commit the sources are at, where git knows it.
fn git_commit() -> Option<String> {
    let output = std::process::Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"])
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The name of the CPU, where the system tells it.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Serialize)]
    struct Toy {
        #[command(flatten)]
        #[serde(flatten)]
        run: RunArgs,
    }

    fn start(dir: &Path, flags: &[&str]) -> Run {
        start_as(&format!("--run-dir={}", dir.display()), flags)
    }

    fn start_as(dir: &str, flags: &[&str]) -> Run {
        let argv = ["toy", "--env-id=CartPole-v1", "--total-timesteps=100", dir];
        let toy: Toy = cli::parse_from(argv.iter().chain(flags).map(Into::into)).unwrap();
        Run::start("toy", &toy.run, &toy).unwrap()
    }

    /// The state that the checkpoint in `dir` holds.
    fn saved(dir: &Path) -> u8 {
        let mut state = 0_u8;
        state.load(Checkpoint::read(dir).unwrap().item("state").unwrap()).unwrap();
        state
    }

    struct Sealed;

    impl Persist for Sealed {
        fn save(&self) -> Result<Vec<u8>> {
            bail!("it is sealed")
        }
        fn load(&mut self, _: &[u8]) -> Result<()> {
            bail!("it is sealed")
        }
    }

    #[test]
    fn an_interrupted_run_says_what_it_saved() {
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().display();
        let mut run = start(dir.path(), &["--checkpoint-every=0"]);
        run.global_step = 7;
        let end = run.end_interrupted(&mut [("state", &mut Sealed)]).to_string();
        let why = "nothing could be saved: saving state: it is sealed";
        assert_eq!(end, format!("interrupted at step 7; {why}"));
        run.last_checkpoint = Some(5);
        let end = run.end_interrupted(&mut [("state", &mut Sealed)]).to_string();
        assert_eq!(end, format!("interrupted at step 7; {why}; continue from step 5 with --resume {shown}"));
        assert!(!checkpoint::path(dir.path()).exists());

        let end = run.end_interrupted(&mut [("state", &mut 5_u8)]).to_string();
        assert_eq!(end, format!("interrupted at step 7; continue with --resume {shown}"));
        assert_eq!(saved(dir.path()), 5);
        assert_eq!(run.words_of_failure(), None, "it has said so already");
    }

    #[test]
    fn the_end_of_a_failed_run_says_where_it_can_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().display();
        let mut run = start(dir.path(), &["--checkpoint-every=10"]);
        run.resume_or_checkpoint(&mut 0, &mut [("state", &mut 5_u8)]).unwrap();
        assert_eq!(run.words_of_failure(), None, "nothing has been learned yet");
        run.resume_or_checkpoint(&mut 12, &mut [("state", &mut 5_u8)]).unwrap();
        let episode = Episode { env: 0, episodic_return: 1.0, length: 3 };
        run.episodes(15, &[episode]).unwrap();
        let words = format!("the run ended at step 15; continue from step 12 with --resume {shown}");
        assert_eq!(run.words_of_failure().unwrap(), words);
        run.log(16, "losses/loss", f32::INFINITY).unwrap();
        let words = "losses/loss is inf at step 16; the run ended at step 16; continue";
        assert!(run.words_of_failure().unwrap().starts_with(words));
        run.ended = true;
        assert_eq!(run.words_of_failure(), None);

        let dir = tempfile::tempdir().unwrap();
        let mut run = start(dir.path(), &["--checkpoint-every=0"]);
        run.log(3, "losses/loss", 0.5).unwrap();
        assert_eq!(run.words_of_failure().unwrap(), "the run ended at step 3; there is no checkpoint");
    }

    #[test]
    fn without_a_flag_there_is_a_checkpoint_at_first_and_then_whenever_the_time_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = start(dir.path(), &[]);
        run.resume_or_checkpoint(&mut 0, &mut [("state", &mut 1_u8)]).unwrap();
        assert_eq!(saved(dir.path()), 1);
        run.resume_or_checkpoint(&mut 1, &mut [("state", &mut 2_u8)]).unwrap();
        assert_eq!(saved(dir.path()), 1, "a minute has not passed");
        run.checkpoint_timer = Timer::new(Duration::ZERO);
        run.resume_or_checkpoint(&mut 2, &mut [("state", &mut 3_u8)]).unwrap();
        assert_eq!((saved(dir.path()), run.last_checkpoint), (3, Some(2)));
        run.resume_or_checkpoint(&mut 3, &mut [("state", &mut 4_u8)]).unwrap();
        assert_eq!(saved(dir.path()), 3, "the next minute has begun");

        // It is resumed without a flag, and the minute begins anew.
        drop(run);
        let mut run = start_as(&format!("--resume={}", dir.path().display()), &[]);
        let (mut step, mut state) = (0, 0_u8);
        run.resume_or_checkpoint(&mut step, &mut [("state", &mut state)]).unwrap();
        assert_eq!((step, state, run.last_checkpoint), (2, 3, Some(2)));
    }

    #[test]
    fn runs_of_the_same_second_have_directories_of_their_own() {
        let scratch = tempfile::tempdir().unwrap();
        let name = scratch.path().join("runs/CartPole-v1__toy__1__7").display().to_string();
        for suffix in ["", "__2", "__3"] {
            assert_eq!(free_dir(&name).unwrap(), PathBuf::from(format!("{name}{suffix}")));
        }
        std::fs::write(scratch.path().join("file"), "").unwrap();
        let name = scratch.path().join("file/run").display().to_string();
        let error = free_dir(&name).unwrap_err();
        assert!(error.is::<InvalidInput>(), "{error:#}");
        assert!(error.to_string().starts_with(&format!("--run-dir {name}: cannot be written")), "{error}");
    }

    #[test]
    fn what_cannot_be_saved_is_tried_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = start(dir.path(), &[]);
        run.resume_or_checkpoint(&mut 0, &mut [("state", &mut Sealed)]).unwrap();
        run.checkpoint_timer = Timer::new(Duration::ZERO);
        assert!(!run.checkpoint_is_due());
        assert!(!checkpoint::path(dir.path()).exists());
        run.log(3, "losses/loss", 0.5).unwrap();
        assert_eq!(run.words_of_failure().unwrap(), "the run ended at step 3; there is no checkpoint");
    }

    #[test]
    fn no_number_of_steps_between_checkpoints_is_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = start(dir.path(), &[]);
        run.args.checkpoint_every = Some(usize::MAX);
        for step in 0..5 {
            run.resume_or_checkpoint(&mut (step * 20), &mut [("state", &mut (step as u8))]).unwrap();
        }
        assert_eq!(saved(dir.path()), 0);
        run.args.checkpoint_every = Some(0);
        assert!(!run.checkpoint_is_due());
    }
}
