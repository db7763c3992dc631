//! Trains every job in a process of its own, several at a time, and keeps one file a seed.
//!
//! A job is done if its file has the digests of the present settings and sources. One that was
//! interrupted goes on from its checkpoint the next time.

use crate::digest::source_digest;
use crate::jobs::{self, Entry, Shard, Tier};
use crate::result::{self, RunResult};
use anyhow::{Context, Result, bail};
use common::Interrupted;
use common::cli::positive;
use common::envs::invalid;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use regression::learning::skipped;
use regression::paths::root;
use regression::process;
use regression::programs::{self, Programs};
use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IsTerminal, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What programs end with after Ctrl-C or SIGTERM, their state saved.
const INTERRUPTED: i32 = 130;

/// Steps between checkpoints: a tenth of a run, but no less than this, so that writing them does
/// not show in the seconds of short runs. Those are saved when they are interrupted.
const LEAST_CHECKPOINT_STEPS: usize = 50_000;

/// How often children are looked at, and how often a status line is printed without a terminal.
const POLL: Duration = Duration::from_millis(5);
const STATUS: Duration = Duration::from_secs(30);

/// The file in a run's folder that the runner holds a lock of while it trains.
const LOCK: &str = "lock";

/// Ctrl-C was pressed so many times.
static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);

/// Flags of `run`.
#[derive(clap::Args, Debug)]
pub struct RunnerArgs {
    /// Algorithms to run [default: all of the tier]
    #[arg(value_name = "ALGORITHM")]
    algorithms: Vec<String>,
    /// Which list of jobs
    #[arg(long, value_enum, default_value = "test")]
    tier: Tier,
    /// Seeds of each job [default: as many as its learning test takes; 5 of a benchmark]
    #[arg(long, value_parser = positive)]
    seeds: Option<usize>,
    /// The first seed; the others follow
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Take the i-th of n parts of the jobs; copy the files of all parts together afterwards
    #[arg(long, value_name = "i/n", default_value = "1/1")]
    shard: Shard,
    #[command(flatten)]
    pool: PoolArgs,
}

/// Flags of whatever trains.
#[derive(clap::Args, Debug)]
pub struct PoolArgs {
    /// Processes at a time [default: the number of cores]
    #[arg(long, value_parser = positive)]
    jobs: Option<usize>,
    /// Folder of the results [default: results/ of the project]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Folder of the runs in progress [default: target/regression/ of the project]
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Where the runs are instead, and not the programs: memory may be a place that none can be started from.
    #[arg(skip)]
    pub memory: Option<PathBuf>,
    /// Take the algorithms' programs from this folder instead of building them
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Run again what is done
    #[arg(long)]
    pub force: bool,
    /// Keep results of older sources
    #[arg(long, conflicts_with = "force")]
    pub keep: bool,
    /// List the jobs and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl PoolArgs {
    /// Folder of the results.
    pub fn results(&self) -> PathBuf {
        self.results.clone().unwrap_or_else(default_results)
    }
}

/// The project's own folder of results.
pub fn default_results() -> PathBuf {
    root().join("results")
}

/// An entry, its seeds, and where their results are kept: a folder below that of all results.
pub struct Training {
    pub entry: Entry,
    pub seeds: Vec<u64>,
    pub place: PathBuf,
}

impl Training {
    /// The file of a seed's result.
    pub fn result(&self, results: &Path, seed: u64) -> PathBuf {
        results.join(&self.place).join(format!("{seed}.json"))
    }
}

/// One seed of an entry.
#[derive(Clone)]
struct Job<'a> {
    entry: &'a Entry,
    seed: u64,
    /// Digest of the present sources.
    source_digest: &'a str,
    /// The file of the result.
    result: PathBuf,
    /// Folder of the run in progress. Its name has the digests, so that nothing that older sources
    /// began is continued.
    work: PathBuf,
}

impl Job<'_> {
    fn name(&self) -> String {
        let Entry { algorithm, env_id, variant, .. } = self.entry;
        let variant = if variant.is_empty() { String::new() } else { format!(" ({variant})") };
        format!("{algorithm} on {env_id}{variant}, seed {}", self.seed)
    }

    fn run_dir(&self) -> PathBuf {
        self.work.join("run")
    }

    fn stderr(&self) -> PathBuf {
        self.work.join("stderr.txt")
    }

    /// Takes the run for this process, as long as the file is open; nothing if another one has it.
    fn lock(&self) -> Result<Option<File>> {
        fs::create_dir_all(&self.work).with_context(|| self.work.display().to_string())?;
        let path = self.work.join(LOCK);
        let lock = || -> std::io::Result<Option<File>> {
            let file = File::create(&path)?;
            let is_ours = process::lock(&file).or_else(|error| match error.kind() {
                ErrorKind::Unsupported => Ok(true), // nobody can know
                _ => Err(error),
            })?;
            // Who had it may have finished and removed it since it was opened.
            Ok((is_ours && path.exists()).then_some(file))
        };
        lock().with_context(|| path.display().to_string())
    }

    fn is_resumable(&self) -> bool {
        self.run_dir().join("checkpoint.safetensors").exists()
    }

    /// Whether the file of the result is there and current. One that cannot be read is not.
    fn is_done(&self, keep: bool) -> bool {
        RunResult::read(&self.result).is_ok_and(|result| {
            result.config_digest == self.entry.config_digest()
                && (keep || result.source_digest == self.source_digest)
        })
    }

    /// Starts the program, or lets it go on, once it is locked.
    fn start(&self, program: &Path) -> Result<Child> {
        self.remove_older();
        let run_dir = self.run_dir();
        let mut command = Command::new(program);
        let mut stderr = OpenOptions::new();
        stderr.create(true);
        if self.is_resumable() {
            stderr.append(true);
            command.arg("--resume").arg(&run_dir);
        } else {
            stderr.write(true).truncate(true);
            if run_dir.exists() {
                fs::remove_dir_all(&run_dir).with_context(|| run_dir.display().to_string())?;
            }
            let steps = self.entry.steps;
            command
                .args(["--env-id", &self.entry.env_id])
                .args(["--total-timesteps", &steps.to_string()])
                .args(["--seed", &self.seed.to_string()])
                .arg("--run-dir")
                .arg(&run_dir)
                .args(&self.entry.args);
            // Many environments of Gymnasium cannot be saved; their runs start over where they were stopped.
            if !self.entry.env_id.starts_with("gym:") {
                let steps = (steps / 10).max(LEAST_CHECKPOINT_STEPS);
                command.args(["--checkpoint-every", &steps.to_string()]);
            }
        }
        // The run's directory is removed once its numbers are kept.
        command.env("PLAINRL_NO_PLOT", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.open(self.stderr())?);
        process::spawn(&mut command)
    }

    /// Removes what is left of this seed's runs of other settings or sources, unless another runner has them.
    fn remove_older(&self) {
        let siblings = self.work.parent().and_then(|folder| fs::read_dir(folder).ok());
        let prefix = format!("{}-", self.seed);
        for sibling in siblings.into_iter().flatten().flatten() {
            if !sibling.file_name().to_string_lossy().starts_with(&prefix) || sibling.path() == self.work {
                continue;
            }
            let lock = OpenOptions::new().write(true).open(sibling.path().join(LOCK));
            if lock.as_ref().map_or(true, |lock| process::lock(lock).unwrap_or(false)) {
                let _ = fs::remove_dir_all(sibling.path()); // harmless if it stays
            }
        }
    }

    /// Keeps the result of the finished run and removes the rest of it.
    fn finish(&self) -> Result<RunResult> {
        let result = RunResult::harvest(self.entry, self.seed, self.source_digest, &self.run_dir())?;
        result.write(&self.result)?;
        let _ = fs::remove_dir_all(&self.work);
        // Succeeds for the last seed only.
        let _ = self.work.parent().map(fs::remove_dir);
        Ok(result)
    }

    /// Why the run failed. Where it ended by itself, the next one starts over: what it would go on
    /// from is what led to the failure. One that somebody interrupted has saved itself, and goes on.
    fn failure(&self, status: ExitStatus) -> String {
        if status.code().is_some_and(|code| code != INTERRUPTED) {
            let _ = fs::remove_file(self.run_dir().join("checkpoint.safetensors"));
        }
        let text = tail(&self.stderr());
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        format!("{}: {status}: {last} (all of it in {})", self.name(), self.stderr().display())
    }
}

/// The end of a text file; empty if it cannot be read.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(4096)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// What a run says of itself in its last line of progress.
#[derive(Debug, Default, PartialEq)]
struct Progress {
    /// Environment steps done.
    step: u64,
    /// Return and speed, in its words.
    numbers: String,
    /// Seconds that the rest takes, by its own reckoning.
    left: Option<f64>,
}

/// The last line of progress: algorithms print
/// `step 81920/100000  return 312.4  101000 steps/s  1 s elapsed, 0 s left` every few seconds.
fn progress(stderr: &str) -> Option<Progress> {
    stderr.lines().rev().find_map(|line| {
        let (done, rest) = line.strip_prefix("step ")?.split_once('/')?;
        let numbers: Vec<&str> = rest.split("  ").skip(1).take(2).collect();
        let left = rest.rsplit_once(", ").and_then(|(_, left)| left.strip_suffix(" s left")?.parse().ok());
        Some(Progress { step: done.parse().ok()?, numbers: numbers.join("  "), left })
    })
}

/// Trains what is not done yet of a tier.
///
/// # Errors
/// As [`train`], and a tier that lacks an algorithm.
pub fn run(args: RunnerArgs) -> Result<()> {
    let entries = jobs::select(jobs::entries(args.tier)?, args.tier, &args.algorithms)?;
    let first = args.first_seed;
    let training = |entry: Entry| {
        let count = args.seeds.unwrap_or(entry.seeds);
        let Some(last) = first.checked_add(count as u64 - 1) else {
            return invalid(format!("--first-seed {first}: leaves no room for {count} seeds"));
        };
        Ok(Training { place: result::place(&entry), seeds: (first..=last).collect(), entry })
    };
    let trainings: Vec<Training> = entries.into_iter().map(training).collect::<Result<_>>()?;
    train(&trainings, args.shard, &args.pool)
}

/// Trains what is not done yet of `trainings`, or of a part of them.
///
/// # Errors
/// Input that cannot be accepted; Ctrl-C; jobs that failed or that another runner has, after all others
/// have run.
pub fn train(trainings: &[Training], shard: Shard, args: &PoolArgs) -> Result<()> {
    let results = args.results();
    let work = args.work.clone().unwrap_or_else(|| root().join("target/regression"));
    let runs = args.memory.as_ref().unwrap_or(&work);

    // Sweeps have hundreds of trainings of one program.
    let mut known: BTreeMap<(&str, &str), String> = BTreeMap::new();
    let mut digests = Vec::new();
    for Training { entry, .. } in trainings {
        let digest = match known.entry((&entry.algorithm, &entry.env_id)) {
            btree_map::Entry::Occupied(digest) => digest.get().clone(),
            btree_map::Entry::Vacant(place) => {
                place.insert(source_digest(&root(), &entry.algorithm, &entry.env_id)?).clone()
            }
        };
        digests.push(digest);
    }
    let mut all = Vec::new();
    for (training, source_digest) in trainings.iter().zip(&digests) {
        let Training { entry, seeds, place } = training;
        let digest = format!("{}{source_digest}", entry.config_digest());
        all.extend(seeds.iter().map(|&seed| Job {
            entry,
            seed,
            source_digest,
            result: training.result(&results, seed),
            work: runs.join(place).join(format!("{seed}-{digest}")),
        }));
    }
    let all = shard.of(all);

    let mut reasons: BTreeMap<&str, Option<String>> = BTreeMap::new();
    let (mut todo, mut skips, mut done) = (VecDeque::new(), Vec::new(), 0);
    for job in all {
        let env_id = job.entry.env_id.as_str();
        let reason = reasons.entry(env_id).or_insert_with(|| skipped(env_id));
        let state = if job.is_done(args.keep) && !args.force {
            done += 1;
            "done".to_string()
        } else if let Some(reason) = reason {
            skips.push(format!("skipped: {}: {reason}", job.name()));
            format!("skipped: {reason}")
        } else {
            todo.push_back(job.clone());
            if job.is_resumable() { "to be continued" } else { "to do" }.to_string()
        };
        if args.dry_run {
            println!("{}: {state}", job.name());
        }
    }
    if args.dry_run {
        println!("{done} done, {} to do, {} skipped", todo.len(), skips.len());
        return Ok(());
    }

    for (flag, folder) in [("--results", &results), ("--work", &work)] {
        fs::create_dir_all(folder)
            .and_then(|()| tempfile::NamedTempFile::new_in(folder).map(drop))
            .or_else(|error| invalid(format!("{flag} {}: cannot be written: {error}", folder.display())))?;
    }
    let algorithms: BTreeSet<&str> = todo.iter().map(|job| job.entry.algorithm.as_str()).collect();
    let programs = match &args.bin_dir {
        Some(folder) => programs::in_folder(folder, algorithms)?,
        None if algorithms.is_empty() => Programs::new(),
        None => programs::build(algorithms)?,
    };
    common::take_over(|| {
        INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    })?;
    // Hours may pass until the last one is started, and what is built meanwhile is of other sources than
    // the results would say. The folder is removed at the end of this function.
    let (copies, _lock) = folder_of_copies(&work).with_context(|| work.display().to_string())?;
    let programs = programs::copied(&programs, copies.path())?;

    let parallel = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let mut pool = Pool::new(todo, parallel, done, &results);
    pool.run(&programs);

    let Pool { console, finished, failures, taken, interrupted, .. } = pool;
    console.clear();
    for line in skips.iter().chain(&failures) {
        eprintln!("{line}");
    }
    let skips = skips.len() + taken.len();
    eprintln!("{done} done before, {finished} done now, {} failed, {skips} skipped", failures.len());
    if interrupted {
        let line = "interrupted; the same command goes on from here";
        return Err(Interrupted(line.into()).into());
    }
    if !failures.is_empty() {
        bail!("{} failed: {}", failures.len(), failures[0]);
    }
    if !taken.is_empty() {
        bail!("not done, because another runner trains them: {}", taken.join("; "));
    }
    Ok(())
}

/// A folder for programs below `work`, locked. Removes those that runners have left which were killed.
fn folder_of_copies(work: &Path) -> std::io::Result<(TempDir, File)> {
    const PREFIX: &str = "programs-";
    for item in fs::read_dir(work)?.flatten() {
        let lock = OpenOptions::new().write(true).open(item.path().join(LOCK));
        if item.file_name().to_string_lossy().starts_with(PREFIX)
            && lock.is_ok_and(|lock| process::lock(&lock).unwrap_or(false))
        {
            let _ = fs::remove_dir_all(item.path()); // harmless if it stays
        }
    }
    let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(work)?;
    let lock = File::create(folder.path().join(LOCK))?;
    let _ = process::lock(&lock); // where nothing can be locked, nothing is removed either
    Ok((folder, lock))
}

/// A job whose process runs.
struct Running<'a> {
    job: Job<'a>,
    child: Child,
    /// See [`Job::lock`].
    lock: File,
    started: Instant,
    bar: Option<ProgressBar>,
}

/// The jobs to be done and those that run.
struct Pool<'a> {
    todo: VecDeque<Job<'a>>,
    running: Vec<Running<'a>>,
    parallel: usize,
    finished: usize,
    failures: Vec<String>,
    /// Names of the jobs that another runner has.
    taken: Vec<String>,
    interrupted: bool,
    seconds: Seconds,
    console: Console,
}

impl<'a> Pool<'a> {
    fn new(todo: VecDeque<Job<'a>>, parallel: usize, done: usize, results: &Path) -> Self {
        let console = Console::new(todo.len() + done, done);
        Self {
            todo,
            running: Vec::new(),
            parallel,
            finished: 0,
            failures: Vec::new(),
            taken: Vec::new(),
            interrupted: false,
            seconds: Seconds::of_results(results),
            console,
        }
    }

    /// Runs everything. A failure is noted and stops nothing else.
    fn run(&mut self, programs: &Programs) {
        let mut heard = 0;
        let mut last_status = Instant::now();
        loop {
            let interrupts = INTERRUPTS.load(Ordering::Relaxed);
            if interrupts > heard {
                heard = interrupts;
                self.interrupt(interrupts > 1);
            }
            while !self.interrupted && self.running.len() < self.parallel {
                let Some(job) = self.todo.pop_front() else { break };
                let start = |lock| Ok((job.start(&programs[&job.entry.algorithm])?, lock));
                match job.lock().and_then(|lock| lock.map(start).transpose()) {
                    Ok(Some((child, lock))) => {
                        let bar = self.console.add(&job);
                        self.running.push(Running { job, child, lock, started: Instant::now(), bar });
                    }
                    Ok(None) => {
                        self.console.job_ended(&format!("skipped: {}: another runner trains it", job.name()));
                        self.taken.push(job.name());
                    }
                    Err(error) => self.fail(format!("{}: {error:#}", job.name())),
                }
            }
            if self.running.is_empty() {
                return;
            }
            self.reap();
            if last_status.elapsed() >= STATUS {
                last_status = Instant::now();
                self.print_status();
            }
            for Running { job, bar, .. } in &self.running {
                if let (Some(bar), Some(progress)) = (bar, progress(&tail(&job.stderr()))) {
                    bar.set_position(progress.step);
                    bar.set_message(progress.numbers);
                }
            }
            self.console.set_left(self.left());
            std::thread::sleep(POLL);
        }
    }

    /// Takes the results of the processes that have ended.
    fn reap(&mut self) {
        let mut i = 0;
        while i < self.running.len() {
            let status = match self.running[i].child.try_wait() {
                Ok(None) => {
                    i += 1;
                    continue;
                }
                Ok(Some(status)) => status,
                Err(error) => {
                    let Running { job, bar, .. } = self.running.swap_remove(i);
                    self.console.remove(bar);
                    self.fail(format!("{}: {error}", job.name()));
                    continue;
                }
            };
            // Locked until its folder is removed.
            let Running { job, bar, lock: _lock, .. } = self.running.swap_remove(i);
            self.console.remove(bar);
            if status.success() {
                match job.finish() {
                    Ok(result) => self.succeed(&job, &result),
                    Err(error) => self.fail(format!("{}: {error:#}", job.name())),
                }
            } else if !self.interrupted {
                self.fail(job.failure(status));
            }
        }
    }

    fn succeed(&mut self, job: &Job<'_>, result: &RunResult) {
        self.finished += 1;
        self.seconds.add(&job.entry.name(), result.wall_seconds, result.steps);
        let values: Vec<String> =
            result.values.iter().map(|value| format!("{} {:.2}", value.metric, value.value)).collect();
        self.console.job_ended(&format!(
            "{}: {}, {:.1} s",
            job.name(),
            values.join(", "),
            result.wall_seconds
        ));
    }

    fn fail(&mut self, line: String) {
        self.console.job_ended(&format!("FAILED {line}"));
        self.failures.push(line);
    }

    /// Starts no more jobs and lets those that run save themselves; `at_once` kills them.
    fn interrupt(&mut self, at_once: bool) {
        self.interrupted = true;
        self.console.say("interrupted: waiting until every run has saved its state");
        for Running { child, .. } in &mut self.running {
            if at_once {
                let _ = child.kill(); // it may have ended
            } else {
                process::send_interrupt(child);
            }
        }
    }

    /// About how long the rest takes, once anything is known about it.
    fn left(&self) -> Option<Duration> {
        let (mut seconds, mut longest) = (0.0, 0.0_f64);
        for job in &self.todo {
            seconds += self.seconds.of(job.entry)?;
        }
        for Running { job, started, .. } in &self.running {
            // A run that goes on from a checkpoint, or on a slower machine, knows better than older results.
            let own = progress(&tail(&job.stderr())).and_then(|progress| progress.left);
            let known = || Some((self.seconds.of(job.entry)? - started.elapsed().as_secs_f64()).max(0.0));
            let rest = own.or_else(known)?;
            seconds += rest;
            longest = longest.max(rest);
        }
        Duration::try_from_secs_f64((seconds / self.parallel as f64).max(longest)).ok()
    }

    /// Where there is no terminal, a line on what runs.
    fn print_status(&self) {
        if self.console.total.is_some() {
            return;
        }
        for Running { job, .. } in &self.running {
            let Progress { step, numbers, .. } = progress(&tail(&job.stderr())).unwrap_or_default();
            eprintln!("  {}: step {step}/{}  {numbers}", job.name(), job.entry.steps);
        }
        let left = self.left().map_or(String::new(), |left| format!(", about {} s left", left.as_secs()));
        eprintln!("  {} to be started{left}", self.todo.len());
    }
}

/// How long jobs take, from the results there are.
struct Seconds(BTreeMap<String, Taken>);

/// What an entry's runs took together.
#[derive(Clone, Copy, Default)]
struct Taken {
    seconds: f64,
    steps: f64,
    runs: u32,
}

impl Seconds {
    fn of_results(results: &Path) -> Self {
        let mut this = Self(BTreeMap::new());
        for result in result::read_all(results).unwrap_or_default() {
            this.add(&result.name(), result.wall_seconds, result.steps);
        }
        this
    }

    fn add(&mut self, name: &str, seconds: f64, steps: usize) {
        let taken = self.0.entry(name.to_string()).or_default();
        taken.seconds += seconds;
        taken.steps += steps as f64;
        taken.runs += 1;
    }

    /// The mean of the entry; where there is none, its steps at the mean speed of all entries. `None` while
    /// nothing has run.
    fn of(&self, entry: &Entry) -> Option<f64> {
        if let Some(taken) = self.0.get(&entry.name()) {
            return Some(taken.seconds / f64::from(taken.runs));
        }
        let (seconds, steps) =
            self.0.values().fold((0.0, 0.0), |all, one| (all.0 + one.seconds, all.1 + one.steps));
        (steps > 0.0).then(|| entry.steps as f64 * seconds / steps)
    }
}

/// On a terminal a bar for each process and one for all; elsewhere plain lines.
struct Console {
    bars: MultiProgress,
    total: Option<ProgressBar>,
}

impl Console {
    fn new(jobs: usize, done: usize) -> Self {
        let bars = MultiProgress::new();
        let total = std::io::stderr().is_terminal().then(|| {
            let bar = bars.add(ProgressBar::new(jobs as u64));
            bar.set_style(style("{bar:32} {pos}/{len} jobs  {elapsed}{msg}"));
            bar.set_position(done as u64);
            bar
        });
        Self { bars, total }
    }

    fn add(&self, job: &Job<'_>) -> Option<ProgressBar> {
        let total = self.total.as_ref()?;
        let bar = self.bars.insert_before(total, ProgressBar::new(job.entry.steps as u64));
        bar.set_style(style("{bar:32} {prefix}  {msg}"));
        bar.set_prefix(job.name());
        Some(bar)
    }

    fn remove(&self, bar: Option<ProgressBar>) {
        if let Some(bar) = bar {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }

    fn job_ended(&self, line: &str) {
        self.say(line);
        if let Some(total) = &self.total {
            total.inc(1);
        }
    }

    fn set_left(&self, left: Option<Duration>) {
        if let (Some(total), Some(left)) = (&self.total, left) {
            let seconds = left.as_secs();
            total.set_message(format!(" < {}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60));
        }
    }

    fn say(&self, line: &str) {
        self.bars.suspend(|| eprintln!("{line}"));
    }

    fn clear(&self) {
        if let Some(total) = &self.total {
            total.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("━╸ ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_the_last_line_of_it() {
        let text = "ppo on CartPole-v1 → runs\nseed = 1\nstep 5/100  return –  9 steps/s  1 s elapsed, 10 s left\n\
                    step 50/100  return 312.4  101000 steps/s  5 s elapsed, 5 s left\nsome words\n";
        let numbers = "return 312.4  101000 steps/s".to_string();
        assert_eq!(progress(text), Some(Progress { step: 50, numbers, left: Some(5.0) }));
        assert_eq!(progress("nothing yet\nstep by step\n"), None);
    }

    #[test]
    fn an_entry_that_never_ran_is_judged_by_its_steps() {
        let entry = jobs::entries(Tier::Test).unwrap().remove(0);
        let mut seconds = Seconds(BTreeMap::new());
        assert_eq!(seconds.of(&entry), None);
        // Others made 400 steps in 10 s.
        seconds.add("a", 4.0, 100);
        seconds.add("b", 6.0, 300);
        assert_eq!(seconds.of(&entry), Some(entry.steps as f64 / 40.0));
        seconds.add(&entry.name(), 1.0, 10);
        seconds.add(&entry.name(), 2.0, 10);
        assert_eq!(seconds.of(&entry), Some(1.5));
    }
}
