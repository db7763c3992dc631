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
//! diverged.safetensors  the state in which a number logged was not finite
//! ```
//!
//! A run that diverges, or fails in any other way, ends with one line that says what happened, at
//! which step, and from which checkpoint it can go on:
//!
//! - a number given to [`Run::log`] that is not finite ends the run at its next
//!   [`Run::checkpoint`], which first writes the state to `diverged.safetensors`. The last
//!   `checkpoint.safetensors` stays as it is;
//! - a gradient, an action, an observation or a reward that is not finite is refused where it
//!   appears, by `Adam` and `VecEnv`, whose error ends the run at once. Nobody has the whole state
//!   at hand there, so a copy of it is kept in memory from every half minute, and is written as the
//!   checkpoint when an error ends the run.

use crate::cli::{self, Evaluation, RunArgs};
use crate::model::{self, Model};
use crate::plot::{Curve, learning_curves};
use crate::tensorboard::EventWriter;
use crate::{checkpoint, gif};
use anyhow::{Context, anyhow, bail};
use envs::mpe::ParallelVecEnv;
use envs::persist::Persist;
use envs::{Actions, Canvas, Episode, InvalidInput, Result, Spec, VecEnv, invalid};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The evaluation's environments draw from this seed's streams, apart from the training ones.
const EVALUATION_SEED: u64 = 0x5EED_0E7A;

/// Steps after which an evaluation cuts off an episode of an environment without a time limit, as
/// a greedy policy may walk in circles for ever. It is what Gymnasium limits Atari games to: half an
/// hour of play, 108,000 frames of which every fourth is acted on.
pub const MAX_EVALUATION_STEPS: u32 = 27_000;

/// How old a copy of the state in memory may grow before it is replaced; older where copying takes
/// more than a hundredth of that.
const KEEP_EVERY: Duration = Duration::from_secs(30);

/// Largest state that is copied, in bytes: a replay buffer may be most of what the machine has.
const LARGEST_KEPT: usize = 1 << 28;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What a run that was dropped before its end adds to the error that ended it.
static LAST_WORDS: Mutex<Option<String>> = Mutex::new(None);

/// At which step a run failed and where its last checkpoint is, if one did.
pub(crate) fn last_words() -> Option<String> {
    LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The program was interrupted by Ctrl-C; exit code 130. Holds the line to print, which says where
/// its state was saved, if it could be.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// What happened so far; part of the checkpoint.
#[derive(Default, Serialize, Deserialize)]
struct History {
    returns: Vec<(u64, f64)>, // (global step, episodic return) of every finished episode
    recent: VecDeque<f64>,    // the last 100 returns
    wall_seconds: f64,
    metrics_len: u64,
    events_len: u64,
}

/// Serialised state: names and bytes.
type Items = Vec<(String, Vec<u8>)>;

/// A training run in progress.
pub struct Run {
    /// Environment steps to train for: `--total-timesteps`, or 0 with `--eval-only`.
    pub total_timesteps: usize,
    algorithm: &'static str,
    args: RunArgs,
    dir: PathBuf,
    metrics: BufWriter<File>,
    events: Option<EventWriter>,
    events_path: PathBuf,
    history: History,
    started: Instant,
    console: Console,
    last_checkpoint: Option<usize>, // its global step
    resuming: bool,
    global_step: usize,
    kept: Option<(usize, Items)>, // the state at an earlier step, for the case of an error
    keep_next: Instant,
    keep_calls: u32,
    diverged: Option<String>, // the first number logged that was not finite
    finished: bool,
}

impl Run {
    /// Creates the run directory, prints the configuration and writes `config.toml`. Call it once
    /// everything that can be refused has been: nothing is written before.
    ///
    /// # Errors
    /// A directory that cannot be written, or that holds another run already.
    pub fn start<A: Serialize>(algorithm: &'static str, run_args: &RunArgs, args: &A) -> Result<Self> {
        let config = cli::to_toml(args)?;
        let name = run_args.exp_name.as_deref().unwrap_or(algorithm);
        let existing = run_args.resume.as_ref().or(run_args.eval_only.as_ref());
        let resuming = run_args.resume.is_some();
        let evaluating = run_args.eval_only.is_some();
        let dir = match (existing, &run_args.run_dir) {
            (Some(dir), _) | (None, Some(dir)) => dir.clone(),
            (None, None) => {
                let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                let env = run_args.env_id.replace(['/', ':'], "-");
                PathBuf::from(format!("runs/{env}__{name}__{}__{seconds}", run_args.seed))
            }
        };
        let shown = dir.display().to_string();
        if !evaluating {
            // Fails early, with the flag's name, where the directory cannot be written.
            let probe = dir.join(".writable");
            std::fs::create_dir_all(&dir)
                .and_then(|()| File::create(&probe))
                .and_then(|_| std::fs::remove_file(&probe))
                .or_else(|error| invalid(format!("--run-dir {shown}: cannot be written: {error}")))?;
        }
        if !resuming && !evaluating && dir.join("metrics.csv").exists() {
            let advice = match checkpoint::path(&dir).exists() {
                true => format!("continue it with --resume {shown}"),
                false => "it has no checkpoint to continue from, so remove it or name another".to_string(),
            };
            return invalid(format!("--run-dir {shown}: holds a run already; {advice}"));
        }

        match ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)) {
            // An earlier run of this process has installed it.
            Ok(()) | Err(ctrlc::Error::MultipleHandlers) => {}
            Err(error) => return Err(error).context("installing the Ctrl-C handler"),
        }

        let (metrics_path, mut history) = (dir.join("metrics.csv"), History::default());
        let (metrics, events, events_path);
        if evaluating {
            (metrics, events, events_path) = (tempfile::tempfile()?, None, PathBuf::new());
        } else if resuming {
            checkpoint::describe(&dir, algorithm, &run_args.env_id)?;
            history.load(&checkpoint::read_item(&dir, "run")?).context("the checkpoint's history")?;
            let mut file = OpenOptions::new().write(true).open(&metrics_path).context("metrics.csv")?;
            let (present, needed) = (file.metadata()?.len(), history.metrics_len);
            if present < needed {
                return invalid(format!(
                    "--resume {shown}: metrics.csv has {present} bytes, resuming needs its first {needed}"
                ));
            }
            file.set_len(needed)?;
            file.seek(SeekFrom::End(0))?;
            metrics = file;
            events_path = find_events(&dir)?;
            events = Some(EventWriter::resume(&events_path, history.events_len)?);
        } else {
            write_atomically(&dir.join("config.toml"), config.as_bytes())?;
            metrics = File::create(&metrics_path)?;
            let mut writer = EventWriter::create(&dir)?;
            writer.text("config", &format!("```\n{config}```"))?;
            events = Some(writer);
            events_path = find_events(&dir)?;
        }
        let mut this = Self {
            total_timesteps: if evaluating { 0 } else { run_args.total_timesteps },
            algorithm,
            args: run_args.clone(),
            console: Console::new(run_args.total_timesteps, evaluating),
            dir,
            metrics: BufWriter::with_capacity(1 << 16, metrics),
            events,
            events_path,
            history,
            started: Instant::now(),
            last_checkpoint: None,
            resuming,
            global_step: 0,
            kept: None,
            keep_next: Instant::now() + KEEP_EVERY,
            keep_calls: 0,
            diverged: None,
            finished: false,
        };
        if !resuming && !evaluating {
            writeln!(this.metrics, "global_step,wall_seconds,tag,value")?;
        }
        this.console.say(&format!("{algorithm} on {} → {shown}\n{config}", run_args.env_id));
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

    /// Saves or restores everything that changes while training. Call it at the top of every
    /// iteration of the training loop with every such thing:
    ///
    /// - the first call of a resumed run loads them from the checkpoint;
    /// - with `--checkpoint-every`, the first call of a new run saves them, so that what cannot be
    ///   saved is refused before anything is learned, and later calls do when that many steps have
    ///   passed;
    /// - after Ctrl-C it saves them and ends the run;
    /// - after a number that was not finite it saves them as `diverged.safetensors` and ends the run.
    ///
    /// # Errors
    /// A checkpoint that is corrupt, foreign or of another version; something that cannot be saved;
    /// a full disk; and the two ends above.
    pub fn checkpoint(
        &mut self,
        global_step: &mut usize,
        items: &mut [(&str, &mut dyn Persist)],
    ) -> Result<()> {
        if std::mem::take(&mut self.resuming) {
            for (name, item) in items.iter_mut() {
                let bytes = checkpoint::read_item(&self.dir, name)?;
                item.load(&bytes).map_err(|error| {
                    let file = checkpoint::path(&self.dir);
                    InvalidInput(format!("{}: {name} does not fit this run: {error:#}", file.display()))
                })?;
            }
            global_step.load(&checkpoint::read_item(&self.dir, "global_step")?)?;
            self.last_checkpoint = Some(*global_step);
            self.console.say(&format!("resumed at step {global_step}"));
        }
        self.global_step = *global_step;
        if let Some(what) = self.diverged.take() {
            self.kept = None; // the state itself is at hand
            let path = self.diverged_path();
            let saved = self.save(&path, items);
            return Err(self.diverged_error(&what, saved));
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(self.end_interrupted(items).into());
        }
        let every = self.args.checkpoint_every;
        let due = every > 0 && self.last_checkpoint.is_none_or(|last| *global_step >= last + every);
        if !due || self.eval_only() {
            self.keep_calls = self.keep_calls.wrapping_add(1);
            // Reading the clock for every step would cost more than some steps do.
            if self.keep_calls.is_multiple_of(64) && Instant::now() >= self.keep_next && !self.eval_only() {
                self.keep(items);
            }
            return Ok(());
        }
        let saved = self.save(&checkpoint::path(&self.dir), items);
        match (saved, self.last_checkpoint) {
            (Ok(()), _) => {
                self.last_checkpoint = Some(*global_step);
                Ok(())
            }
            (Err(error), None) => {
                self.remove()?;
                invalid(format!("--checkpoint-every {every}: this run cannot be saved: {error:#}"))
            }
            (Err(error), Some(_)) => Err(error.context("writing a checkpoint")),
        }
    }

    /// Writes a checkpoint to `path`.
    fn save(&mut self, path: &Path, items: &[(&str, &mut dyn Persist)]) -> Result<()> {
        let state = self.state(items)?;
        checkpoint::write(path, self.algorithm, &self.args.env_id, &state)
    }

    /// What a checkpoint holds: `items` and what the run itself has to remember.
    fn state(&mut self, items: &[(&str, &mut dyn Persist)]) -> Result<Items> {
        self.flush()?;
        // A checkpoint on the disk needs what it says of the other two files to be there as well.
        let events = File::open(&self.events_path)?;
        for file in [self.metrics.get_ref(), &events] {
            file.sync_data()?;
        }
        self.history.wall_seconds = self.wall_seconds();
        self.started = Instant::now();
        self.history.metrics_len = self.metrics.get_ref().metadata()?.len();
        self.history.events_len = events.metadata()?.len();
        let mut state = vec![
            ("run".to_string(), self.history.save()?),
            ("global_step".to_string(), self.global_step.save()?),
        ];
        for (name, item) in items {
            state.push((name.to_string(), item.save().with_context(|| format!("saving {name}"))?));
        }
        Ok(state)
    }

    /// Copies the state to memory, if it can be saved and is not too large.
    fn keep(&mut self, items: &[(&str, &mut dyn Persist)]) {
        let start = Instant::now();
        let state = self.state(items).ok();
        let size = |state: &Items| state.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        let state = state.filter(|state| size(state) <= LARGEST_KEPT);
        let wait = match &state {
            Some(_) => KEEP_EVERY.max(100 * start.elapsed()),
            None => Duration::from_secs(u32::MAX.into()), // it would not be otherwise the next time
        };
        self.keep_next = start + wait;
        self.kept = state.map(|state| (self.global_step, state));
    }

    /// Writes what is kept in memory, if that is newer than the last checkpoint.
    fn write_kept(&mut self) {
        let Some((step, state)) = self.kept.take() else { return };
        let newer = self.last_checkpoint.is_none_or(|last| last < step);
        let path = checkpoint::path(&self.dir);
        if newer && checkpoint::write(&path, self.algorithm, &self.args.env_id, &state).is_ok() {
            self.last_checkpoint = Some(step);
        }
    }

    /// Saves `items` after Ctrl-C; what to say at the end.
    fn end_interrupted(&mut self, items: &[(&str, &mut dyn Persist)]) -> Interrupted {
        self.console.clear();
        let step = self.global_step;
        if self.eval_only() {
            return Interrupted("interrupted".into());
        }
        Interrupted(match self.save(&checkpoint::path(&self.dir), items) {
            Ok(()) => {
                self.kept = None; // which is older
                format!("interrupted at step {step}; continue with --resume {}", self.dir.display())
            }
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
            None => "there is no checkpoint (--checkpoint-every writes them)".to_string(),
        }
    }

    /// What the error that ends the run now is to be completed with.
    fn words_of_failure(&self) -> Option<String> {
        if self.finished || self.eval_only() || self.global_step == 0 {
            return None;
        }
        let diverged = self.diverged.as_ref().map_or(String::new(), |what| format!("before that {what}; "));
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
        for path in [&self.dir.join("config.toml"), &self.dir.join("metrics.csv"), &self.events_path] {
            std::fs::remove_file(path)?;
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
    /// it ends the run at the next [`Run::checkpoint`] or, in the last iteration, at the
    /// [`Run::save_or_load_model`] or evaluation that follows, which can save what there is.
    pub fn log(&mut self, global_step: usize, tag: &str, value: impl Into<f64>) -> Result<()> {
        let value = value.into();
        self.global_step = self.global_step.max(global_step);
        if !value.is_finite() {
            self.diverged.get_or_insert_with(|| format!("{tag} is {value} at step {global_step}"));
            return Ok(());
        }
        writeln!(self.metrics, "{global_step},{:.3},{tag},{value}", self.wall_seconds())?;
        if let Some(events) = &mut self.events {
            events.scalar(tag, value as f32, global_step as u64)?;
        }
        if self.console.due() {
            self.report()?;
        }
        Ok(())
    }

    fn report(&mut self) -> Result<()> {
        self.flush()?;
        let seconds = self.wall_seconds();
        let sps = self.global_step as f64 / seconds.max(1e-9);
        let recent = &self.history.recent;
        let mean = (!recent.is_empty()).then(|| recent.iter().sum::<f64>() / recent.len() as f64);
        self.console.update(self.global_step, mean, sps);
        let step = self.global_step;
        writeln!(self.metrics, "{step},{seconds:.3},charts/SPS,{sps:.0}")?;
        if let Some(events) = &mut self.events {
            events.scalar("charts/SPS", sps as f32, step as u64)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.metrics.flush().context("writing metrics.csv")?;
        if let Some(events) = &mut self.events {
            events.flush()?;
        }
        Ok(())
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

    /// Refuses to go on with an evaluation after Ctrl-C.
    fn refuse_interrupted(&self) -> Result<()> {
        if !INTERRUPTED.load(Ordering::Relaxed) {
            return Ok(());
        }
        let evaluate = match self.dir.join("model.safetensors").exists() {
            true => format!("; evaluate it with --eval-only {}", self.dir.display()),
            false => String::new(),
        };
        Err(Interrupted(format!("interrupted in the evaluation of the trained agent{evaluate}")).into())
    }

    /// Ends the run: plays `--eval-episodes` episodes with `policy`, which maps observations
    /// `[n, observation_dim]` to `n` actions, and writes the summary and the plot. The last line
    /// on standard output is the result. Where the environment has no time limit, an episode
    /// counts with what it collected in [`MAX_EVALUATION_STEPS`].
    pub fn evaluate<T>(self, policy: impl FnMut(&[f32]) -> Result<Vec<T>>) -> Result<Evaluation>
    where
        for<'a> &'a Vec<T>: Into<Actions<'a>>,
    {
        let env_id = self.args.env_id.clone();
        self.evaluate_on(move |num_envs, seed| VecEnv::make(&env_id, num_envs, seed), policy)
    }

    /// [`Run::evaluate`] on environments that `make(num_envs, seed)` builds.
    pub fn evaluate_on<T>(
        mut self,
        make: impl Fn(usize, u64) -> Result<VecEnv>,
        mut policy: impl FnMut(&[f32]) -> Result<Vec<T>>,
    ) -> Result<Evaluation>
    where
        for<'a> &'a Vec<T>: Into<Actions<'a>>,
    {
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
            let limit = envs.spec().max_episode_steps.is_none().then_some(MAX_EVALUATION_STEPS);
            let mut result: Vec<Option<f64>> = vec![None; n];
            let mut steps = 0;
            while result.iter().any(Option::is_none) {
                if Some(steps) == limit {
                    for (result, running) in result.iter_mut().zip(envs.running_returns()) {
                        result.get_or_insert(*running);
                    }
                    break;
                }
                steps += 1;
                self.refuse_interrupted()?;
                let actions = policy(envs.observations())?;
                envs.step(&actions)?;
                for episode in envs.episodes() {
                    result[episode.env].get_or_insert(episode.episodic_return);
                }
            }
            returns.extend(result.into_iter().flatten());
        }
        if self.args.capture_video {
            self.film(&make, &mut policy, seed)?;
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
        let mut frames = Vec::new();
        while returns.iter().any(Option::is_none) {
            if self.args.capture_video && returns[0].is_none() && frames.len() < 1000 {
                let mut canvas = Canvas::new(480, 480);
                envs.draw(0, &mut canvas)?;
                frames.push(canvas.rgb());
            }
            self.refuse_interrupted()?;
            let actions = policy(envs.observations())?;
            envs.step(&actions)?;
            for episode in envs.episodes() {
                returns[episode.env].get_or_insert(episode.episodic_return);
            }
        }
        if self.args.capture_video {
            gif::write_gif(&self.dir.join("agent.gif"), &frames, 480, 480, 100)?;
        }
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
            writeln!(self.metrics, "{step},{:.3},charts/SPS,{sps:.0}", self.wall_seconds())?;
            self.flush()?;
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
        self.finished = true;
        self.console.clear();
        println!("eval/episodic_return mean={:.2} std={:.2} episodes={}", eval.mean, eval.std, eval.episodes);
        Ok(eval)
    }

    fn plot(&self) -> Result<()> {
        let runs = [self.history.returns.iter().map(|&(step, value)| (step as f64, value)).collect()];
        let curve = Curve::from_runs(self.algorithm, &runs, 200);
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

    fn film<T>(
        &mut self,
        make: &impl Fn(usize, u64) -> Result<VecEnv>,
        policy: &mut impl FnMut(&[f32]) -> Result<Vec<T>>,
        seed: u64,
    ) -> Result<()>
    where
        for<'a> &'a Vec<T>: Into<Actions<'a>>,
    {
        let mut envs = make(1, seed)?;
        let mut frames = Vec::new();
        loop {
            let mut canvas = Canvas::new(480, 320);
            envs.draw(0, &mut canvas)?;
            frames.push(canvas.rgb());
            let actions = policy(envs.observations())?;
            envs.step(&actions)?;
            if !envs.episodes().is_empty() || frames.len() >= 1000 {
                break;
            }
        }
        gif::write_gif(&self.dir.join("agent.gif"), &frames, 480, 320, 33)
    }
}

impl Drop for Run {
    /// A run dropped before its end is one that an error ends.
    fn drop(&mut self) {
        if !self.finished {
            self.write_kept();
        }
        if let Some(words) = self.words_of_failure() {
            self.console.clear();
            *LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
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

/// Replaces `path` with `bytes` in one step: a reader sees the old file or the new one, whole.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().context("a file has a name")?.to_string_lossy();
    // Always the same name: what a killed program leaves is replaced by the next one that writes.
    let partial = path.with_file_name(format!(".{name}.partial"));
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().with_context(|| format!("{}: cannot be written", path.display())).inspect_err(|_| {
        // The error to report is the first.
        let _ = std::fs::remove_file(&partial);
    })
}

fn find_events(dir: &Path) -> Result<PathBuf> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("events.out.tfevents")) {
            return Ok(path);
        }
    }
    bail!("{}: holds no TensorBoard event file", dir.display())
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

/// A progress bar on a terminal; elsewhere a plain line every few seconds.
struct Console {
    bar: Option<ProgressBar>,
    total: usize,
    started: Instant,
    last: Instant,
    calls: u32,
}

impl Console {
    fn new(total: usize, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{bar:32} {human_pos}/{human_len}  {msg}  {elapsed} < {eta}");
            let bar = ProgressBar::new(total as u64);
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar
        });
        let now = Instant::now();
        Self { bar, total, started: now, last: now, calls: 0 }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn due(&mut self) -> bool {
        // Reading the clock for every number logged would cost more than logging it.
        self.calls += 1;
        if !self.calls.is_multiple_of(64) {
            return false;
        }
        let every = Duration::from_millis(if self.bar.is_some() { 100 } else { 5000 });
        let due = self.last.elapsed() >= every;
        if due {
            self.last = Instant::now();
        }
        due
    }

    fn update(&self, step: usize, mean_return: Option<f64>, sps: f64) {
        let mean = mean_return.map_or("return –".to_string(), |mean| format!("return {mean:.1}"));
        match &self.bar {
            Some(bar) => {
                bar.set_position(step as u64);
                bar.set_message(format!("{mean}  {sps:.0} steps/s"));
            }
            None => {
                let left = self.total.saturating_sub(step) as f64 / sps.max(1e-9);
                let elapsed = self.started.elapsed().as_secs_f64();
                eprintln!(
                    "step {step}/{}  {mean}  {sps:.0} steps/s  {elapsed:.0} s elapsed, {left:.0} s left",
                    self.total
                );
            }
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
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

    fn start(dir: &Path, every: usize) -> Run {
        let (dir, every) = (format!("--run-dir={}", dir.display()), format!("--checkpoint-every={every}"));
        let argv = ["toy", "--env-id=CartPole-v1", "--total-timesteps=100", &dir, &every];
        let toy: Toy = cli::parse_from(argv.map(Into::into)).unwrap();
        Run::start("toy", &toy.run, &toy).unwrap()
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
        let mut run = start(dir.path(), 0);
        run.global_step = 7;
        let end = run.end_interrupted(&[("state", &mut Sealed)]).to_string();
        let why = "nothing could be saved: saving state: it is sealed";
        assert_eq!(end, format!("interrupted at step 7; {why}"));
        run.last_checkpoint = Some(5);
        let end = run.end_interrupted(&[("state", &mut Sealed)]).to_string();
        assert_eq!(end, format!("interrupted at step 7; {why}; continue from step 5 with --resume {shown}"));
        assert!(!checkpoint::path(dir.path()).exists());

        run.keep(&[("state", &mut 4_u8)]);
        let end = run.end_interrupted(&[("state", &mut 5_u8)]).to_string();
        assert_eq!(end, format!("interrupted at step 7; continue with --resume {shown}"));
        run.write_kept();
        assert_eq!(checkpoint::read_item(dir.path(), "state").unwrap(), 5_u8.save().unwrap());
        run.finished = true; // so that it leaves no last words to the other tests
    }

    #[test]
    fn the_end_of_a_failed_run_says_where_it_can_go_on() {
        // One test, as the words are the program's.
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().display();
        let mut run = start(dir.path(), 10);
        run.checkpoint(&mut 0, &mut [("state", &mut 5_u8)]).unwrap();
        run.checkpoint(&mut 12, &mut [("state", &mut 5_u8)]).unwrap();
        let episode = Episode { env: 0, episodic_return: 1.0, length: 3 };
        run.episodes(15, &[episode]).unwrap();
        assert_eq!(
            run.words_of_failure().unwrap(),
            format!("the run ended at step 15; continue from step 12 with --resume {shown}")
        );
        run.log(16, "losses/loss", f32::INFINITY).unwrap();
        let words = "before that losses/loss is inf at step 16; the run ended at step 16; continue";
        assert!(run.words_of_failure().unwrap().starts_with(words));

        // What was kept in memory is written when the run fails, unless a checkpoint is newer.
        run.global_step = 11;
        run.keep(&[("state", &mut 6_u8)]);
        run.write_kept();
        assert_eq!(run.last_checkpoint, Some(12));
        run.global_step = 16;
        run.keep(&[("state", &mut 6_u8)]);
        drop(run);
        let ending = format!("continue from step 16 with --resume {shown}");
        assert!(last_words().unwrap().ends_with(&ending));
        let mut state = 0_u8;
        state.load(&checkpoint::read_item(dir.path(), "state").unwrap()).unwrap();
        assert_eq!(state, 6);

        let dir = tempfile::tempdir().unwrap();
        let mut run = start(dir.path(), 0);
        run.keep(&[("state", &mut Sealed)]);
        assert!(run.kept.is_none());
        assert_eq!(run.words_of_failure(), None, "nothing has been learned yet");
        run.log(3, "losses/loss", 0.5).unwrap();
        let words = "the run ended at step 3; there is no checkpoint (--checkpoint-every writes them)";
        assert_eq!(run.words_of_failure().unwrap(), words);
        run.finished = true;
        assert_eq!(run.words_of_failure(), None);
    }
}
