//! Draws the pictures that textbooks and papers are known for, from `tests/figures.toml`:
//!
//! ```toml
//! [[figure]]
//! name = "step_sizes"                          # results/figures/step_sizes.png
//! title = "n-step TD prediction on a random walk"
//! text = "What is to be seen, and what it is after (figure 7.2 of Sutton & Barto 2018)."
//! x = "steps"                                  # the default; "episodes": one after each row of the metric
//! x_label = "step size α"                      # by default that, or the swept flag
//! y_label = "RMS error"
//! x_max = 1000                                 # what lies beyond is left out; by default nothing is
//! log_x = false                                # the default; log_y too
//! y_range = [0.25, 0.55]                       # by default all there is
//! metric = "charts/rms_error"                  # of every line that names no other
//! last = 10                                    # rows of it that a swept point is the mean of; 1 by default
//! rows = [1, 10]                               # the mean of these instead, counted from 1
//! plus = -1                                    # (y + plus) · times is drawn; 0 and 1 by default
//! times = 100
//! error_of = 475                               # (y − that)² of each run is drawn; y itself by default
//! smooth = true                                # the default: a running mean over 5 % of the axis
//! seeds = 3                                    # 1, 2, 3
//! compared = true                              # a table of the last tenth of the steps; false by default
//! long = true                                  # drawn by its name or with `--long` alone; false by default
//! benchmark = ["cleanrl", ""]                  # nothing is trained: each line's runs are those of the benchmark
//!                                              # entry of its program, environment and this variant
//!
//! [[figure.line]]
//! label = "n = 4"
//! program = "nstep_td"                         # a package in algorithms/
//! env_id = "RandomWalk19-v0"
//! steps = 10_000
//! args = ["--n", "4"]                          # none by default
//! rows = [401, 500]                            # by default the figure's
//! sweep = { flag = "--alpha", values = [0.1, 0.2, 0.4] }
//!
//! [[figure.published]]
//! label = "published, n = 4"
//! points = [[0.1, 0.5], [0.2, 0.4]]            # or `value = 475`: a line across the picture
//! source = "digitised from the figure"
//! ```
//!
//! Without a sweep a line is its metric over `x`, otherwise over the flag's value. Lines of the same
//! training share its runs. A line may also be a table of the trained model over its index, and with
//! `heatmap` each is a picture of its own beside the others:
//!
//! ```toml
//! [figure.heatmap]
//! across = 3                                   # tables beside each other
//! rows = [20, -1]                              # names of the rows: the first one's, the step to the next
//! columns = [0, 1]                             # the same of columns; both are 0, 1, 2, … by default
//! decimals = 1                                 # of the numbers; 0 by default
//! own_scales = true                            # colours of each table by its own range; false by default
//! x_label = "cars at the second location"      # y_label is the figure's
//!
//! [[figure.line]]                              # label, program, env_id, steps and args as above
//! table = "q"                                  # its name in model.safetensors
//! actions = 4                                  # numbers a state; 1 by default
//! take = "max"                                 # what is shown of them: this or "argmax"; the first by default
//! plus = -5                                    # as the figure's, by default that
//! blank = [0, 15]                              # states that stay empty; none by default
//! arrows = false                               # the default; true: 0 up, 1 right, 2 down, 3 left
//! cells = { start = 420, rows = [21, -21], columns = [21, 1] }   # state of the first cell; count and stride
//! ```
//!
//! The numbers of a picture are kept in `results/figures/NAME.json`, so that it can be drawn again without
//! training; with `--keep` also when the sources have changed. Runs leave a small file each in
//! `results/figures/NAME/` until the figure is complete.
//!
//! Without names all figures are drawn that are not `long`, which takes less than ten minutes on two cores.

use crate::curves;
use crate::digest::source_digest;
use crate::jobs::{Entry, Measure, Shard, Tier, entries, name, variant};
use crate::result::{self, BY_LOG_ROW, BY_ROW, IN_MODEL, RunResult, StoredCurve};
use crate::runner::{PoolArgs, Training, train};
use crate::statistics;
use anyhow::{Context, Result, ensure};
use common::Interrupted;
use common::envs::invalid;
use common::plot::{Chart, Curve, Heatmap, Panel, Reference};
use common::write_atomically;
use regression::learning::skipped;
use regression::paths::root;
use regression::thresholds::Direction;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Points of a curve.
const POINTS: usize = 200;

/// What is measured where a line needs no number of its own: it is shown when a run ends.
const SCORE: &str = "eval/episodic_return";

/// Flags of `figures`.
#[derive(clap::Args, Debug)]
pub struct FiguresArgs {
    /// Figures to draw [default: all whose runs do not take long, in ten minutes on two cores; such
    /// runs are made in memory, unless --work names a folder]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Draw those as well whose runs take long, together more than half an hour
    #[arg(long, conflicts_with = "names")]
    long: bool,
    /// What describes them [default: tests/figures.toml of the project]
    #[arg(long, value_name = "FILE.toml")]
    file: Option<PathBuf>,
    #[command(flatten)]
    pool: PoolArgs,
}

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    figure: Vec<Figure>,
}

/// One picture.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Figure {
    name: String,
    title: String,
    text: String,
    #[serde(default)]
    x: X,
    x_label: Option<String>,
    x_max: Option<f64>,
    y_label: String,
    #[serde(default)]
    log_x: bool,
    #[serde(default)]
    log_y: bool,
    y_range: Option<(f64, f64)>,
    metric: Option<String>,
    #[serde(default = "one")]
    last: usize,
    rows: Option<(usize, usize)>,
    #[serde(default)]
    plus: f64,
    #[serde(default = "unchanged")]
    times: f64,
    #[serde(default = "yes")]
    smooth: bool,
    #[serde(default = "three")]
    seeds: u64,
    error_of: Option<f64>,
    #[serde(default)]
    long: bool,
    #[serde(default)]
    compared: bool,
    benchmark: Option<Vec<String>>,
    heatmap: Option<Layout>,
    #[serde(default)]
    line: Vec<Line>,
    #[serde(default)]
    published: Vec<Published>,
}

/// What a line without a sweep is drawn over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum X {
    /// Environment steps.
    #[default]
    Steps,
    /// Episodes, each of which leaves a row of the metric.
    Episodes,
}

fn one() -> usize {
    1
}

fn three() -> u64 {
    3
}

fn yes() -> bool {
    true
}

fn unchanged() -> f64 {
    1.0
}

/// How tables are laid out and named.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    across: usize,
    #[serde(default = "from_zero")]
    rows: (f64, f64),
    #[serde(default = "from_zero")]
    columns: (f64, f64),
    #[serde(default)]
    decimals: usize,
    #[serde(default)]
    own_scales: bool,
    #[serde(default)]
    x_label: String,
}

fn from_zero() -> (f64, f64) {
    (0.0, 1.0)
}

/// A curve of a picture.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    label: String,
    program: String,
    env_id: String,
    steps: usize,
    #[serde(default)]
    args: Vec<String>,
    metric: Option<String>,
    rows: Option<(usize, usize)>,
    plus: Option<f64>,
    sweep: Option<Sweep>,
    table: Option<String>,
    #[serde(default = "one")]
    actions: usize,
    take: Option<Take>,
    #[serde(default)]
    arrows: bool,
    cells: Option<Cells>,
    #[serde(default)]
    blank: Vec<i64>,
}

/// What is shown of a state's actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Take {
    /// The largest number.
    Max,
    /// Which action has it, the first of several.
    Argmax,
}

/// Which states are shown: `start + row · stride + column · stride`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cells {
    start: i64,
    /// How many rows there are, and the stride.
    #[serde(default = "single")]
    rows: (i64, i64),
    columns: (i64, i64),
}

fn single() -> (i64, i64) {
    (1, 0)
}

impl Cells {
    fn shape(&self) -> (usize, usize) {
        (self.rows.0 as usize, self.columns.0 as usize)
    }

    /// The states, row by row.
    fn states(&self) -> impl Iterator<Item = i64> {
        let Self { start, rows, columns } = *self;
        (0..rows.0)
            .flat_map(move |row| (0..columns.0).map(move |column| start + row * rows.1 + column * columns.1))
    }
}

/// A flag and the values that it takes along the horizontal axis.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sweep {
    flag: String,
    values: Vec<Number>,
}

/// A number as a program takes it: `8` is not `8.0`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(untagged)]
enum Number {
    Integer(i64),
    Float(f64),
}

impl Number {
    fn value(self) -> f64 {
        match self {
            Self::Integer(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
        }
    }
}

/// What is drawn beside the lines.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    label: String,
    points: Option<Vec<(f64, f64)>>,
    value: Option<f64>,
    source: String,
}

/// Trains what the wanted figures lack and draws them.
///
/// # Errors
/// A file that describes no figures; an unknown figure; what [`train`] reports; figures that were not drawn,
/// after all others, but for those whose environment is not installed.
pub fn figures(mut args: FiguresArgs) -> Result<()> {
    let file = args.file.clone().unwrap_or_else(|| root().join("tests/figures.toml"));
    let all = read(&file)?;
    let wanted = select(&all, &args.names, args.long)?;
    // Thousands of runs of a few hundredths of a second: on a disk they would wait for it most of the time.
    let memory = Path::new("/dev/shm");
    let short = wanted.iter().all(|figure| !figure.long) && args.pool.work.is_none() && !args.pool.dry_run;
    let work = (short && memory.is_dir())
        .then(|| tempfile::Builder::new().prefix("plainrl-figures-").tempdir_in(memory).ok())
        .flatten();
    args.pool.memory = work.as_ref().map(|work| work.path().to_path_buf());
    let results = args.pool.results();
    let folder = results.join("figures");
    let mut trainings = Vec::new();
    for figure in &wanted {
        if args.pool.force || !figure.is_current(&folder, args.pool.keep)? {
            let to_be_made = |training: &Training| training.place.starts_with("figures");
            trainings.extend(figure.trainings().into_iter().filter(to_be_made));
        }
    }
    if let Err(error) = train(&trainings, Shard::WHOLE, &args.pool) {
        keep_what_failed(work, &error);
        return Err(error);
    }
    if args.pool.dry_run {
        return Ok(());
    }
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let benchmarks = entries(Tier::Benchmark)?;
    let mut not_drawn = Vec::new();
    for figure in wanted {
        let path = folder.join(format!("{}.png", figure.name));
        let numbers = match !args.pool.force && figure.is_current(&folder, args.pool.keep)? {
            true => Numbers::read(&folder, &figure.name),
            false => figure.check_benchmarks(&results, &benchmarks).and_then(|()| {
                let numbers = figure.numbers(&results)?;
                numbers.write(&folder, &figure.name)?;
                figure.tidy(&results)?;
                Ok(numbers)
            }),
        };
        match numbers.and_then(|numbers| figure.draw(&numbers.lines, &path)) {
            Ok(()) => println!("{}", path.display()),
            Err(error) => {
                eprintln!("{}: not drawn: {error:#}", figure.name);
                if !figure.lacks_its_environment() {
                    not_drawn.push(figure.name.as_str());
                }
            }
        }
    }
    write_atomically(&folder.join("README.md"), page(&all, &folder).as_bytes())?;
    ensure!(not_drawn.is_empty(), "not drawn: {}", not_drawn.join(", "));
    Ok(())
}

/// Leaves what a run that failed has said where it is, if one has. A run that was interrupted starts over: the
/// next folder has another name.
fn keep_what_failed(work: Option<TempDir>, error: &anyhow::Error) {
    if let Some(work) = work.filter(|_| !error.is::<Interrupted>()) {
        let _ = std::fs::remove_dir(work.keep()); // an empty folder alone can be removed so
    }
}

/// What is drawn, and what it is of: `results/figures/NAME.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbers {
    /// Of the description.
    config_digest: String,
    /// Of the sources of all programs.
    source_digest: String,
    seeds: u64,
    cpu: String,
    /// Training time, all runs together.
    wall_seconds: f64,
    lines: Vec<Numbered>,
}

/// A line's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbered {
    label: String,
    xs: Vec<f64>,
    mean: Vec<f64>,
    /// Its interval, of which tables show nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    low: Vec<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    high: Vec<f64>,
    /// The mean over the last tenth of the steps of each seed, of lines that are compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    last: Vec<f64>,
}

impl Numbers {
    fn path(folder: &Path, name: &str) -> PathBuf {
        folder.join(format!("{name}.json"))
    }

    fn read(folder: &Path, name: &str) -> Result<Self> {
        let path = Self::path(folder, name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    fn write(&self, folder: &Path, name: &str) -> Result<()> {
        write_atomically(&Self::path(folder, name), &result::json(self)?)
    }
}

/// A picture that there is.
pub struct Picture {
    /// `results/figures/NAME.png`.
    pub name: String,
    /// What stands above it.
    pub title: String,
    /// The packages whose runs it shows.
    pub programs: BTreeSet<String>,
}

/// The project's figures that are drawn in `results`, in their order.
///
/// # Errors
/// A file that describes no figures.
pub fn pictures(results: &Path) -> Result<Vec<Picture>> {
    let mut all = read(&root().join("tests/figures.toml"))?;
    all.retain(|figure| results.join("figures").join(format!("{}.png", figure.name)).exists());
    let picture = |Figure { name, title, line, .. }| Picture {
        name,
        title,
        programs: line.into_iter().map(|line| line.program).collect(),
    };
    Ok(all.into_iter().map(picture).collect())
}

/// The figures in a file.
fn read(path: &Path) -> Result<Vec<Figure>> {
    let shown = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return invalid(format!("{shown}: {error}")),
    };
    let known = |program: &str| root().join("algorithms").join(program).join("Cargo.toml").exists();
    parse(&text, known).or_else(|problem| invalid(format!("{shown}: {problem}")))
}

/// The same from its text; or what is wrong with it, in one line.
fn parse(text: &str, is_program: impl Fn(&str) -> bool) -> Result<Vec<Figure>, String> {
    let file: File = toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count()) + 1;
        format!("line {line}: {}", error.message().replace('\n', " "))
    })?;
    for (i, figure) in file.figure.iter().enumerate() {
        let name = &figure.name;
        if let Some(problem) = figure.problem(&is_program) {
            return Err(format!("figure {name:?}: {problem}"));
        }
        if file.figure[..i].iter().any(|other| other.name == *name) {
            return Err(format!("two figures are called {name:?}"));
        }
    }
    Ok(file.figure)
}

/// The figures called `names`; if none is named all, but those that take `long` only if they are wanted too.
fn select<'a>(figures: &'a [Figure], names: &[String], long: bool) -> Result<Vec<&'a Figure>> {
    let known = || figures.iter().map(|figure| figure.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(unknown) = names.iter().find(|name| figures.iter().all(|figure| figure.name != **name)) {
        return invalid(format!("{unknown}: no such figure; there are {}", known()));
    }
    let is_wanted = |figure: &&Figure| match names {
        [] => long || !figure.long,
        names => names.contains(&figure.name),
    };
    Ok(figures.iter().filter(is_wanted).collect())
}

impl Figure {
    /// What is wrong with its description.
    fn problem(&self, is_program: impl Fn(&str) -> bool) -> Option<String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if self.name.is_empty() || !self.name.chars().all(plain) {
            return Some("a name consists of letters, digits, _ and -".into());
        }
        if self.line.is_empty() || self.seeds == 0 || self.last == 0 {
            return Some("`line`, `seeds` or `last` is nothing".into());
        }
        let mut ranges = self.line.iter().map(|line| line.rows).chain([self.rows]).flatten();
        if let Some((from, to)) = ranges.find(|(from, to)| *from == 0 || to < from) {
            return Some(format!("`rows` [{from}, {to}] are none: they are counted from 1"));
        }
        if self.compared && (self.is_swept() || self.heatmap.is_some() || self.x != X::Steps) {
            return Some("only lines over steps are `compared`".into());
        }
        let lines = || self.line.iter().all(|line| line.args.is_empty() && line.table.is_none());
        if self.benchmark.as_ref().is_some_and(|variants| variants.len() != self.line.len())
            || (self.benchmark.is_some() && (self.is_swept() || !lines()))
        {
            return Some(
                "`benchmark` has a variant for each line, none with `args`, `sweep` or `table`".into(),
            );
        }
        if self.error_of.is_some() && (self.is_swept() || self.heatmap.is_some() || self.compared) {
            return Some(
                "only lines over steps or episodes that are not `compared` have an `error_of`".into(),
            );
        }
        let shape = self.line[0].cells.map(|cells| cells.shape());
        if self.heatmap.as_ref().is_some_and(|layout| layout.across == 0)
            || (self.heatmap.is_some()
                && self.line.iter().any(|l| l.cells.map(|c| c.shape()) != shape || shape.is_none()))
        {
            return Some("with `heatmap` all lines have `cells` of one shape, some `across`".into());
        }
        if self.line.iter().any(|line| line.sweep.is_some() != self.is_swept()) {
            return Some("either all lines have a `sweep` or none".into());
        }
        if self.y_range.is_some_and(|(low, high)| low >= high || (self.log_y && low <= 0.0)) {
            return Some("`y_range` is empty".into());
        }
        for (i, line) in self.line.iter().enumerate() {
            let what = format!("line {:?}", line.label);
            if !is_program(&line.program) {
                return Some(format!("{what}: program {:?} is not in algorithms/", line.program));
            }
            if line.metric.as_ref().or(self.metric.as_ref()).or(line.table.as_ref()).is_none() {
                return Some(format!("{what}: neither it nor the figure has a `metric`"));
            }
            let is_cell =
                |cells: &Cells| cells.states().next().is_some() && cells.states().all(|state| state >= 0);
            if line.actions == 0 || line.cells.as_ref().is_some_and(|cells| !is_cell(cells)) {
                return Some(format!("{what}: `actions` or `cells` are none"));
            }
            if line.table.is_none() && (line.cells.is_some() || self.heatmap.is_some()) {
                return Some(format!("{what}: `cells` and `heatmap` are of a `table`"));
            }
            if self.line[..i].iter().any(|other| other.label == line.label) {
                return Some(format!("two lines are labelled {:?}", line.label));
            }
            if let Some(Sweep { flag, values }) = &line.sweep {
                if !flag.starts_with("--") {
                    return Some(format!("{what}: `flag` {flag:?} is not a flag, like --alpha"));
                }
                if values.is_empty() || !values.is_sorted_by(|a, b| a.value() < b.value()) {
                    return Some(format!("{what}: `values` must be ascending numbers"));
                }
                if self.log_x && values[0].value() <= 0.0 {
                    return Some(format!("{what}: `log_x` has no place for {}", values[0]));
                }
            }
        }
        for published in &self.published {
            let what = format!("published {:?}", published.label);
            if published.points.is_some() == published.value.is_some() {
                return Some(format!("{what}: needs `points` or a `value`"));
            }
            if published.source.is_empty() || published.source.contains("recalled") {
                return Some(format!("{what}: needs its `source`, which a recalled number has not"));
            }
        }
        let trainings = self.trainings();
        for (i, training) in trainings.iter().enumerate() {
            if trainings[..i].iter().any(|other| other.place == training.place) {
                let name = training.entry.name();
                return Some(format!("two trainings are called {name}: they may not differ in steps alone"));
            }
        }
        None
    }

    fn is_swept(&self) -> bool {
        self.line.iter().any(|line| line.sweep.is_some())
    }

    fn metric<'a>(&'a self, line: &'a Line) -> &'a str {
        line.metric.as_ref().or(self.metric.as_ref()).map_or("", String::as_str)
    }

    /// What the curve of a line without a sweep is called among those of its runs.
    fn curve_name(&self, line: &Line) -> String {
        let metric = self.metric(line);
        let by_row = if self.log_x { BY_LOG_ROW } else { BY_ROW };
        match (&line.table, self.x, self.x_max) {
            (Some(table), ..) => format!("{table}{IN_MODEL}"),
            (None, X::Steps, _) => metric.to_string(),
            (None, X::Episodes, None) => format!("{metric}{by_row}"),
            (None, X::Episodes, Some(count)) => format!("{metric}{by_row} {}", count as usize),
        }
    }

    /// Which rows a swept point of a line is the mean of, if not the last ones.
    fn rows(&self, line: &Line) -> Option<(usize, usize)> {
        line.rows.or(self.rows)
    }

    /// Changes with everything but how it looks.
    fn config_digest(&self) -> String {
        let mut text = format!("{:?} {:?} {} {:?}", self.x, self.x_max, self.smooth, self.seeds);
        if self.compared {
            text += " compared";
        }
        if let Some(variants) = &self.benchmark {
            text += &format!(" {variants:?}");
        }
        if let Some(known) = self.error_of {
            text += &format!(" {known}");
        }
        for line in &self.line {
            let label = String::new();
            let seen = Line { label, plus: None, arrows: false, blank: vec![], ..line.clone() };
            text += &format!("\n{} {:?} {} {seen:?}", self.metric(line), self.rows(line), self.last);
            if self.x == X::Episodes && self.log_x {
                text += BY_LOG_ROW;
            }
        }
        format!("{:08x}", crc32c::crc32c(text.as_bytes()))
    }

    /// Whether its numbers are there and of these settings, and of these sources unless old ones are kept.
    fn is_current(&self, folder: &Path, keep: bool) -> Result<bool> {
        let Ok(numbers) = Numbers::read(folder, &self.name) else { return Ok(false) };
        if numbers.config_digest != self.config_digest() {
            return Ok(false);
        }
        let programs: BTreeSet<(&str, &str)> =
            self.line.iter().map(|line| (line.program.as_str(), line.env_id.as_str())).collect();
        let digest = |(program, env_id)| source_digest(&root(), program, env_id);
        Ok(keep
            || numbers.source_digest == together(programs.into_iter().map(digest).collect::<Result<_>>()?))
    }

    /// What has to be trained, each training once however many lines show something of it.
    fn trainings(&self) -> Vec<Training> {
        let mut all: Vec<Training> = Vec::new();
        for (line, args) in self.line.iter().flat_map(|line| line.flags().map(move |args| (line, args))) {
            let metric = self.metric(line);
            let training = self.training(line, &args);
            let same = |other: &Training| {
                let Entry { algorithm, env_id, steps, args: flags, .. } = &other.entry;
                (algorithm, env_id, *steps, flags) == (&line.program, &line.env_id, line.steps, &args)
                    && other.place == training.place
            };
            let i = all.iter().position(same).unwrap_or(all.len());
            if i == all.len() {
                all.push(training);
            }
            let entry = &mut all[i].entry;
            let measure = measure(metric, self.last, self.rows(line));
            if self.is_swept() && !entry.measures.contains(&measure) {
                entry.measures.push(measure);
            }
            let curve = self.curve_name(line);
            let is_new = curve != "charts/episodic_return" && !entry.curves.contains(&curve);
            if !self.is_swept() && is_new {
                entry.curves.push(curve);
            }
        }
        for training in &mut all {
            if training.entry.measures.is_empty() {
                training.entry.measures.push(measure(SCORE, 1, None));
            }
        }
        all
    }

    /// The training of one point of a line, without what it is trained for.
    fn training(&self, line: &Line, args: &[String]) -> Training {
        let entry = Entry {
            tier: Tier::Figure,
            family: String::new(),
            algorithm: line.program.clone(),
            env_id: line.env_id.clone(),
            steps: line.steps,
            args: args.to_vec(),
            seeds: self.seeds as usize,
            config: None,
            variant: variant(args),
            measures: Vec::new(),
            curves: Vec::new(),
        };
        // Tables are shown after different numbers of steps.
        let steps = if line.table.is_some() { format!("__{}", line.steps) } else { String::new() };
        let place = match self.variant_of(line) {
            Some(variant) => Path::new("runs/benchmark").join(name(&line.program, &line.env_id, variant)),
            None => Path::new("figures").join(&self.name).join(entry.name() + &steps),
        };
        Training { entry, seeds: (1..=self.seeds).collect(), place }
    }

    /// Of the benchmark entry whose runs a line shows, if it shows such.
    fn variant_of(&self, line: &Line) -> Option<&str> {
        let i = self.line.iter().position(|other| other.label == line.label)?;
        self.benchmark.as_ref()?.get(i).map(String::as_str)
    }

    /// Whether the environment of a line that has to be trained is not installed here, which makes no failure.
    fn lacks_its_environment(&self) -> bool {
        self.benchmark.is_none() && self.line.iter().any(|line| skipped(&line.env_id).is_some())
    }

    /// Whether the runs that it takes from benchmarks are there, and such as these are now.
    fn check_benchmarks(&self, results: &Path, benchmarks: &[Entry]) -> Result<()> {
        for line in &self.line {
            let Some(variant) = self.variant_of(line) else { continue };
            let name = name(&line.program, &line.env_id, variant);
            let entry = benchmarks.iter().find(|entry| entry.name() == name);
            let entry = entry.with_context(|| format!("no benchmark is called {name}"))?;
            let (steps, shown) = (entry.steps, line.steps);
            ensure!(steps == shown, "{name}: its benchmark is of {steps} steps, the figure of {shown}");
            let training = self.training(line, &line.args);
            for &seed in &training.seeds {
                let run = RunResult::read(&training.result(results, seed));
                let run = run.context("its benchmark has not been run")?;
                let same = run.config_digest == entry.config_digest();
                ensure!(same, "{name}, seed {seed}: its benchmark has changed: run it again");
            }
        }
        Ok(())
    }

    /// The lines, from the results of their runs.
    fn numbers(&self, results: &Path) -> Result<Numbers> {
        let mut runs = Vec::new();
        for training in self.trainings() {
            for &seed in &training.seeds {
                runs.push(RunResult::read(&training.result(results, seed))?);
            }
        }
        Ok(Numbers {
            config_digest: self.config_digest(),
            source_digest: together(runs.iter().map(|run| run.source_digest.clone()).collect()),
            seeds: self.seeds,
            cpu: runs[0].cpu.clone(),
            wall_seconds: result::round(runs.iter().map(|run| run.wall_seconds).sum()),
            lines: self.line.iter().map(|line| self.line_numbers(line, results)).collect::<Result<_>>()?,
        })
    }

    fn line_numbers(&self, line: &Line, results: &Path) -> Result<Numbered> {
        let Curve { xs, mean, low, high, .. } = self.curve(line, results)?;
        let rounded = |values: Vec<f64>| values.into_iter().map(result::round).collect();
        let (label, mean) = (line.label.clone(), rounded(mean));
        let (low, high) = match self.heatmap {
            Some(_) => (Vec::new(), Vec::new()),
            None => (rounded(low), rounded(high)),
        };
        let last = if self.compared { rounded(self.last_tenths(line, results)?) } else { Vec::new() };
        Ok(Numbered { label, xs, mean, low, high, last })
    }

    /// The mean over the last tenth of the steps, of each seed.
    fn last_tenths(&self, line: &Line, results: &Path) -> Result<Vec<f64>> {
        let (name, training) = (self.curve_name(line), self.training(line, &line.args));
        let seeds = training.seeds.iter();
        seeds
            .map(|&seed| {
                let run = RunResult::read(&training.result(results, seed))?;
                let points = run.curve_of(&name).map(StoredCurve::points).unwrap_or_default();
                let late = points.iter().filter(|(x, _)| *x > 0.9 * line.steps as f64).map(|(_, y)| *y);
                let late: Vec<f64> = late.collect();
                ensure!(!late.is_empty(), "{}, seed {seed}: no {name} at its end", line.label);
                Ok(statistics::mean(&late))
            })
            .collect()
    }

    fn curve(&self, line: &Line, results: &Path) -> Result<Curve> {
        let (metric, rows) = (self.metric(line), self.rows(line));
        let mut points: Vec<Vec<RunResult>> = Vec::new(); // [value of the flag][seed]
        for args in line.flags() {
            let training = self.training(line, &args);
            let seeds = training.seeds.iter();
            points.push(
                seeds.map(|&seed| RunResult::read(&training.result(results, seed))).collect::<Result<_>>()?,
            );
        }
        let name = self.curve_name(line);
        let lacks = || format!("{}: its runs have no {name}", line.label);
        if let Some(sweep) = &line.sweep {
            let value = |run: &RunResult| {
                run.values.iter().find(|v| v.metric == metric && v.rows == rows).map(|v| v.value)
            };
            let values = points.iter().map(|seeds| seeds.iter().map(value).collect::<Option<Vec<f64>>>());
            let values = values.collect::<Option<Vec<_>>>().with_context(lacks)?;
            let xs = sweep.values.iter().map(|value| value.value()).collect();
            return Ok(curves::over_seeds("", xs, &values));
        }
        let runs = points.iter().flatten().map(|run| run.curve_of(&name));
        let runs = runs.collect::<Option<Vec<_>>>().with_context(lacks)?;
        if line.table.is_some() {
            let tables = runs.iter().map(|run| line.table(&run.returns)).collect::<Option<Vec<_>>>();
            let tables = tables.with_context(|| format!("{}: `cells` are not all in {name}", line.label))?;
            let xs = match &line.cells {
                Some(cells) => cells.states().map(|state| state as f64).collect(),
                None => (0..tables[0].len()).map(|i| i as f64).collect(),
            };
            return Ok(curves::over_seeds("", xs, &transposed(&tables)));
        }
        let shown = |(x, _): &(f64, f64)| self.x_max.is_none_or(|max| *x <= max);
        let error = |y: f64| self.error_of.map_or(y, |known| (y - known).powi(2));
        let points = |run: &StoredCurve| -> Vec<(f64, f64)> {
            run.points().into_iter().filter(shown).map(|(x, y)| (x, error(y))).collect()
        };
        let runs: Vec<Vec<(f64, f64)>> = runs.into_iter().map(points).collect();
        if !self.smooth {
            let xs = runs.iter().map(|run| run.iter().map(|(x, _)| *x).collect::<Vec<_>>());
            // What only some runs have is left out.
            let xs = xs.min_by_key(Vec::len).unwrap_or_default();
            let apart = runs.iter().any(|run| run.iter().zip(&xs).any(|((x, _), other)| x != other));
            ensure!(!apart, "{}: `smooth = false`: its runs have {name} at different steps", line.label);
            let values: Vec<Vec<f64>> =
                runs.iter().map(|run| run.iter().take(xs.len()).map(|(_, y)| *y).collect()).collect();
            return Ok(curves::over_seeds("", xs, &transposed(&values)));
        }
        Ok(curves::from_runs("", &runs, POINTS))
    }

    /// Removes what runs left: the numbers are kept.
    fn tidy(&self, results: &Path) -> Result<()> {
        let folder = results.join("figures").join(&self.name);
        if !folder.exists() {
            return Ok(());
        }
        std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())
    }

    fn draw(&self, numbers: &[Numbered], path: &Path) -> Result<()> {
        let curves: Vec<Curve> = self
            .line
            .iter()
            .zip(numbers)
            .map(|(line, numbers)| {
                let shown = |y: &f64| (y + line.plus.unwrap_or(self.plus)) * self.times;
                let shown = |ys: &[f64]| -> Vec<f64> { ys.iter().map(shown).collect() };
                let Numbered { xs, mean, low, high, .. } = numbers;
                let (mean, mut low, mut high) = (shown(mean), shown(low), shown(high));
                if self.has_many_lines() {
                    (low, high) = (mean.clone(), mean.clone());
                }
                Curve { label: line.label.clone(), xs: xs.clone(), mean, low, high }
            })
            .collect();
        if let (Some(layout), Some(cells)) = (&self.heatmap, &self.line[0].cells) {
            let of = |(line, curve): (&Line, Curve)| {
                let blank = |&x: &f64| line.blank.iter().any(|&state| state as f64 == x);
                let cells = curve.xs.iter().zip(curve.mean);
                let values = cells.map(|(x, value)| if blank(x) { f64::NAN } else { value }).collect();
                Panel { label: curve.label, values, arrows: line.arrows }
            };
            let panels: Vec<Panel> = self.line.iter().zip(curves).map(of).collect();
            let heatmap = Heatmap {
                title: &self.title,
                note: &if self.seeds == 1 { String::new() } else { format!("mean of {} seeds", self.seeds) },
                x_label: &layout.x_label,
                y_label: &self.y_label,
                shape: cells.shape(),
                rows: layout.rows,
                columns: layout.columns,
                decimals: layout.decimals,
                across: layout.across,
                own_scales: layout.own_scales,
                panels: &panels,
            };
            return heatmap.draw(path);
        }
        let references: Vec<Reference> = self.published.iter().map(Published::reference).collect();
        let flag = || self.line.first().and_then(|line| line.sweep.as_ref()).map(|sweep| sweep.flag.clone());
        let x_label = self.x_label.clone().or_else(flag).unwrap_or_else(|| {
            let over = match self.x {
                X::Steps => "environment steps",
                X::Episodes => "episodes",
            };
            over.into()
        });
        let note = self.note();
        let chart = Chart {
            title: &self.title,
            note: &note,
            x_label: &x_label,
            y_label: &self.y_label,
            log_x: self.log_x,
            log_y: self.log_y,
            y_range: self.y_range,
            curves: &curves,
            dots: self.is_swept()
                || self.line.iter().all(|line| line.table.is_some() && line.cells.is_none()),
            references: &references,
        };
        chart.draw(path)
    }

    /// So many that bands would hide each other, and are left out.
    fn has_many_lines(&self) -> bool {
        self.line.len() > 8
    }

    /// What lines and bands are.
    fn note(&self) -> String {
        let exact = self.is_swept() || !self.smooth || self.line.iter().any(|line| line.table.is_some());
        match (self.seeds, exact) {
            (seeds, _) if self.has_many_lines() && self.heatmap.is_none() => format!("mean of {seeds} seeds"),
            (1, true) => "one run".into(),
            (1, false) => "one seed; shaded: from the 10% to the 90% quantile of what is averaged".into(),
            (seeds, _) => format!("mean of {seeds} seeds; shaded: its 95% bootstrap interval"),
        }
    }
}

/// A number to be taken from a run; nothing is demanded of it.
fn measure(metric: &str, last: usize, rows: Option<(usize, usize)>) -> Measure {
    Measure {
        metric: metric.to_string(),
        last,
        what: String::new(),
        rows,
        direction: Direction::Max,
        tolerance: 0.0,
        floor: None,
        floor_reason: String::new(),
        reference: None,
    }
}

impl Line {
    /// The further flags of each of its trainings: one, or one a value of the swept flag.
    fn flags(&self) -> impl Iterator<Item = Vec<String>> {
        let swept: Vec<Vec<String>> = match &self.sweep {
            None => vec![Vec::new()],
            Some(Sweep { flag, values }) => {
                values.iter().map(|value| vec![flag.clone(), value.to_string()]).collect()
            }
        };
        swept.into_iter().map(|swept| [self.args.clone(), swept].concat())
    }
}

impl Line {
    /// What is shown of a table `[num_states, actions]`; nothing if it lacks some of the states.
    fn table(&self, numbers: &[f64]) -> Option<Vec<f64>> {
        let of_state = |actions: &[f64]| match self.take {
            None => actions[0],
            Some(Take::Max) => actions.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            Some(Take::Argmax) => {
                let max = actions.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                actions.iter().position(|&value| value == max).map_or(f64::NAN, |action| action as f64)
            }
        };
        let all: Vec<f64> = numbers.chunks_exact(self.actions).map(of_state).collect();
        match &self.cells {
            None => Some(all),
            Some(cells) => cells.states().map(|state| all.get(state as usize).copied()).collect(),
        }
    }
}

/// `[column][row]` of `[row][column]`, rows being of one length.
fn transposed(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let columns = rows.first().map_or(0, Vec::len);
    (0..columns).map(|column| rows.iter().map(|row| row[column]).collect()).collect()
}

/// One digest of several.
fn together(digests: BTreeSet<String>) -> String {
    digests.into_iter().collect::<Vec<_>>().join(" ")
}

impl Published {
    fn reference(&self) -> Reference {
        let label = self.label.clone();
        match (&self.points, self.value) {
            (Some(points), _) => Reference::Points { label, points: points.clone() },
            (None, value) => Reference::Level { label, value: value.unwrap_or(f64::NAN) },
        }
    }
}

/// `results/figures/README.md`: the pictures that there are, with what they show.
fn page(figures: &[Figure], folder: &Path) -> String {
    let mut page = "# Figures\n\nDrawn by `cargo run -p regression -- figures` from \
        [tests/figures.toml](../../tests/figures.toml), in less than ten minutes on two cores; beside each are \
        its numbers. Those whose runs take long are drawn by their names, or all with `--long`.\n"
        .to_string();
    let is_drawn = |figure: &&Figure| folder.join(format!("{}.png", figure.name)).exists();
    for figure in figures.iter().filter(is_drawn) {
        let Figure { name, title, text, .. } = figure;
        page += &format!("\n## {title}\n\n![{title}]({name}.png)\n\n{}\n", text.trim());
        if figure.benchmark.is_some() {
            page += &format!(
                "\nIts runs are benchmarks: `cargo run -p regression -- run --tier benchmark`, then \
                `cargo run -p regression -- figures {name}`.\n"
            );
        } else if figure.long {
            page += &format!("\nIts runs take long: `cargo run -p regression -- figures {name}`.\n");
        }
        for Published { label, source, .. } in &figure.published {
            page += &format!("\n- {label}: {source}");
        }
        if !figure.published.is_empty() {
            page += "\n";
        }
        // Numbers from before the figure was compared lack the last steps.
        let is_whole =
            |lines: &[Numbered]| !lines.is_empty() && lines.iter().all(|line| !line.last.is_empty());
        let numbers = Numbers::read(folder, name).ok().filter(|_| figure.compared);
        if let Some(mut numbers) = numbers.filter(|numbers| is_whole(&numbers.lines)) {
            // As in the picture: a line that got another label has the same numbers.
            if numbers.config_digest == figure.config_digest() {
                for (numbered, line) in numbers.lines.iter_mut().zip(&figure.line) {
                    numbered.label.clone_from(&line.label);
                }
            }
            page += &comparison(&numbers.lines);
        }
    }
    page
}

/// A table of the last tenth of the steps: the interquartile mean over the seeds with its 95 % bootstrap
/// interval, and the probability of improvement over the first line (Agarwal et al. 2021, arXiv:2108.13264).
fn comparison(lines: &[Numbered]) -> String {
    let mut table = format!(
        "\nThe last tenth of the steps: interquartile mean over the seeds, its 95 % bootstrap interval, and how \
        likely a run is better than one of {} (Agarwal et al. 2021).\n\n| | mean | interval | better |\n\
        |---|---:|---:|---:|\n",
        lines[0].label
    );
    for line in lines {
        let (low, high) = statistics::bootstrap(&line.last, statistics::interquartile_mean);
        let mean = statistics::interquartile_mean(&line.last);
        let better = statistics::probability_of_improvement(&line.last, &lines[0].last);
        let better = if line == &lines[0] { String::new() } else { format!("{:.0} %", 100.0 * better) };
        table += &format!("| {} | {mean:.0} | {low:.0} to {high:.0} | {better} |\n", line.label);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWEPT: &str = r#"
        [[figure]]
        name = "sweep"
        title = "T"
        text = "What it is after."
        y_label = "error"
        metric = "charts/error"
        last = 5
        seeds = 2
        [[figure.line]]
        label = "n = 1"
        program = "walk"
        env_id = "Walk-v0"
        steps = 100
        args = ["--n", "1"]
        sweep = { flag = "--alpha", values = [0.25, 0.5, 1] }
        [[figure.published]]
        label = "paper"
        points = [[0.5, 2.0]]
        source = "a paper"
    "#;
    const OVER_STEPS: &str = r#"
        [[figure]]
        name = "steps"
        title = "T"
        text = "Two metrics of one training."
        y_label = "value"
        [[figure.line]]
        label = "estimate"
        program = "walk"
        env_id = "Walk-v0"
        steps = 100
        metric = "charts/estimate"
        [[figure.line]]
        label = "return"
        program = "walk"
        env_id = "Walk-v0"
        steps = 100
        metric = "charts/episodic_return"
        [[figure.published]]
        label = "optimum"
        value = 3
        source = "computed"
    "#;

    fn parsed(text: &str) -> Result<Vec<Figure>, String> {
        parse(text, |program| program == "walk")
    }

    fn figure(text: &str) -> Figure {
        parsed(text).unwrap().remove(0)
    }

    #[test]
    fn the_project_s_figures_can_be_read() {
        let figures = read(&root().join("tests/figures.toml")).unwrap();
        assert!(!figures.is_empty());
    }

    #[test]
    fn a_sweep_trains_once_a_value() {
        let trainings = figure(SWEPT).trainings();
        let flags: Vec<Vec<String>> = trainings.iter().map(|t| t.entry.args.clone()).collect();
        // A whole number has no decimals: flags that count would refuse them.
        let expected =
            ["0.25", "0.5", "1"].map(|value| ["--n", "1", "--alpha", value].map(String::from).to_vec());
        assert_eq!(flags, expected);
        for training in &trainings {
            assert_eq!(training.seeds, [1, 2]);
            assert!(training.place.starts_with("figures/sweep"), "{:?}", training.place);
            assert!(training.entry.curves.is_empty());
            let measures = training.entry.measures.iter().map(|m| (m.metric.as_str(), m.last));
            assert_eq!(measures.collect::<Vec<_>>(), [("charts/error", 5)]);
        }
    }

    #[test]
    fn lines_of_one_training_share_it() {
        let trainings = figure(OVER_STEPS).trainings();
        assert_eq!(trainings.len(), 1);
        // The return is kept anyway.
        assert_eq!(trainings[0].entry.curves, ["charts/estimate"]);
        assert_eq!(trainings[0].entry.measures[0].metric, SCORE);
        assert_eq!(trainings[0].seeds, [1, 2, 3]);
    }

    #[test]
    fn a_line_may_be_over_episodes() {
        let text = OVER_STEPS.replace("title", "x = \"episodes\"\ntitle");
        let names = figure(&text).trainings().remove(0).entry.curves;
        assert_eq!(names, ["charts/estimate by row", "charts/episodic_return by row"]);
    }

    #[test]
    fn what_lies_beyond_the_end_of_the_axis_is_left_out() {
        let figure = figure(&OVER_STEPS.replace("title", "x_max = 99.5\ntitle"));
        let results = tempfile::tempdir().unwrap();
        (1..=3).for_each(|seed| write_result(&figure.trainings()[0], seed, results.path(), 6.0));
        let curves = figure.numbers(results.path()).unwrap().lines;
        assert_eq!((curves[0].xs.as_slice(), curves[0].mean.as_slice()), (&[0.0][..], &[6.0][..]));
    }

    #[test]
    fn runs_of_benchmarks_are_taken_where_they_are() {
        let text = OVER_STEPS.replace("charts/estimate", "charts/episodic_return");
        let figure = figure(&text.replace("title", "benchmark = [\"cleanrl\", \"\"]\nseeds = 1\ntitle"));
        let trainings = figure.trainings();
        let places: Vec<&Path> = trainings.iter().map(|training| training.place.as_path()).collect();
        let expected = ["runs/benchmark/walk__Walk-v0__cleanrl", "runs/benchmark/walk__Walk-v0"];
        assert_eq!(places, expected.map(Path::new));
        let results = tempfile::tempdir().unwrap();
        write_result(&trainings[0], 1, results.path(), 6.0);
        let missing = figure.numbers(results.path()).unwrap_err();
        assert!(format!("{missing:#}").contains("walk__Walk-v0/1.json"), "{missing:#}");
        write_result(&trainings[1], 1, results.path(), 8.0);
        let lines = figure.numbers(results.path()).unwrap().lines;
        let ends = lines.iter().map(|line| *line.mean.last().unwrap()).collect::<Vec<_>>();
        assert_eq!(ends, [6.0, 8.0]);
        // There is no folder of its own to be removed.
        figure.tidy(results.path()).unwrap();
        assert!(trainings[0].result(results.path(), 1).exists());
    }

    #[test]
    fn runs_of_benchmarks_that_have_changed_are_refused() {
        let figure =
            figure(&OVER_STEPS.replace("title", "benchmark = [\"cleanrl\", \"\"]\nseeds = 1\ntitle"));
        let results = tempfile::tempdir().unwrap();
        let mut benchmarks = Vec::new();
        for (training, variant) in figure.trainings().iter().zip(["cleanrl", ""]) {
            let args = vec!["--fast".to_string()];
            let entry = Entry { variant: variant.into(), args, ..training.entry.clone() };
            write_result(training, 1, results.path(), 6.0);
            let path = training.result(results.path(), 1);
            let run = RunResult { config_digest: entry.config_digest(), ..RunResult::read(&path).unwrap() };
            run.write(&path).unwrap();
            benchmarks.push(entry);
        }
        let check = |benchmarks: &[Entry]| match figure.check_benchmarks(results.path(), benchmarks) {
            Ok(()) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(check(&benchmarks), "");
        assert_eq!(check(&benchmarks[..1]), "no benchmark is called walk__Walk-v0");
        benchmarks[1].args.clear();
        assert_eq!(check(&benchmarks), "walk__Walk-v0, seed 1: its benchmark has changed: run it again");
        benchmarks[0].steps = 200;
        let steps = "walk__Walk-v0__cleanrl: its benchmark is of 200 steps, the figure of 100";
        assert_eq!(check(&benchmarks), steps);
    }

    #[test]
    fn what_failed_is_kept_and_nothing_else() {
        let work = |file: &str| {
            let work = tempfile::tempdir().unwrap();
            std::fs::write(work.path().join(file), "why").unwrap();
            (work.path().to_path_buf(), Some(work))
        };
        let (path, folder) = work("stderr.txt");
        keep_what_failed(folder, &anyhow::anyhow!("1 failed"));
        assert!(path.join("stderr.txt").exists());
        std::fs::remove_dir_all(path).unwrap();
        let (path, folder) = work("stderr.txt");
        keep_what_failed(folder, &Interrupted("interrupted".into()).into());
        assert!(!path.exists());
    }

    #[test]
    fn each_line_has_a_benchmark_of_its_own() {
        for (text, key) in [(OVER_STEPS, "[\"cleanrl\"]"), (SWEPT, "[\"\"]")] {
            let problem = parsed(&text.replace("title", &format!("benchmark = {key}\ntitle"))).unwrap_err();
            assert!(problem.contains("`benchmark` has a variant for each line"), "{problem}");
        }
    }

    /// A run's result whose numbers follow from its seed and flags.
    fn write_result(training: &Training, seed: u64, results: &Path, value: f64) {
        let text = format!(
            r#"{{"tier": "figure", "algorithm": "walk", "env_id": "Walk-v0", "variant": "", "seed": {seed}, "steps": 100,
            "args": [], "config_digest": "", "source_digest": "", "version": "", "cpu": "", "wall_seconds": 1, "sps": 1,
            "eval": {{"mean": 1, "std": 0, "episodes": 1}}, "diagnostics": {{}},
            "values": [{{"metric": "charts/error", "last": 5, "value": {value}, "std_error": 0}}],
            "curve": {{"steps": [0, 100], "returns": [0, {value}]}},
            "curves": {{"charts/estimate": {{"steps": [0, 100], "returns": [{value}, 0]}}}}}}"#
        );
        let path = training.result(results, seed);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn swept_points_are_means_over_seeds_at_the_flag_s_values() {
        let (figure, results) = (figure(SWEPT), tempfile::tempdir().unwrap());
        for (i, training) in figure.trainings().iter().enumerate() {
            write_result(training, 1, results.path(), i as f64);
            write_result(training, 2, results.path(), i as f64 + 1.0);
        }
        let curves = figure.numbers(results.path()).unwrap().lines;
        assert_eq!(curves.len(), 1);
        assert_eq!((curves[0].label.as_str(), &curves[0].xs[..]), ("n = 1", &[0.25, 0.5, 1.0][..]));
        assert_eq!(curves[0].mean, [0.5, 1.5, 2.5]);
        // Of four equally likely resamples of two seeds one has the lower twice, one the upper.
        assert_eq!((&curves[0].low[..], &curves[0].high[..]), (&[0.0, 1.0, 2.0][..], &[1.0, 2.0, 3.0][..]));

        std::fs::remove_file(figure.trainings()[1].result(results.path(), 2)).unwrap();
        let error = format!("{:#}", figure.numbers(results.path()).unwrap_err());
        assert!(error.contains("2.json"), "{error}");
    }

    #[test]
    fn a_line_may_be_of_other_rows_than_the_last() {
        let text = SWEPT.replace("last = 5", "rows = [1, 10]");
        let late = "label = \"late\"\nrows = [91, 100]\nprogram = \"walk\"\nenv_id = \"Walk-v0\"\nsteps = 100\n\
            args = [\"--n\", \"1\"]\nsweep = { flag = \"--alpha\", values = [0.25, 0.5, 1] }\n[[figure.published]]";
        let text = text.replace("[[figure.published]]", &format!("[[figure.line]]\n{late}"));
        let figure = figure(&text);
        let trainings = figure.trainings();
        assert_eq!(trainings.len(), 3);
        for training in &trainings {
            let rows: Vec<_> = training.entry.measures.iter().map(|measure| measure.rows).collect();
            assert_eq!(rows, [Some((1, 10)), Some((91, 100))]);
        }
        let results = tempfile::tempdir().unwrap();
        for (training, seed) in trainings.iter().flat_map(|training| [(training, 1), (training, 2)]) {
            write_result(training, seed, results.path(), 7.0);
            let path = training.result(results.path(), seed);
            let value = |rows: &str, value: f64| {
                format!(
                    r#"{{"metric": "charts/error", "last": 5, "rows": {rows}, "value": {value}, "std_error": 0}}"#
                )
            };
            let text = std::fs::read_to_string(&path).unwrap().replace(
                r#"{"metric": "charts/error", "last": 5, "value": 7, "std_error": 0}"#,
                &format!("{}, {}", value("[1, 10]", 3.0), value("[91, 100]", 1.0)),
            );
            std::fs::write(path, text).unwrap();
        }
        let lines = figure.numbers(results.path()).unwrap().lines;
        assert_eq!((&lines[0].mean[..], &lines[1].mean[..]), (&[3.0; 3][..], &[1.0; 3][..]));
    }

    const TABLES: &str = r#"
        [[figure]]
        name = "tables"
        title = "T"
        text = "A table after one step and after two."
        y_label = "rows"
        seeds = 1
        [figure.heatmap]
        across = 2
        [[figure.line]]
        label = "k = 1"
        program = "walk"
        env_id = "Walk-v0"
        steps = 1
        table = "q"
        actions = 2
        take = "max"
        cells = { start = 4, rows = [2, -2], columns = [2, 1] }
        [[figure.line]]
        label = "k = 2"
        program = "walk"
        env_id = "Walk-v0"
        steps = 2
        table = "q"
        actions = 2
        take = "argmax"
        plus = -5
        blank = [3]
        cells = { start = 4, rows = [2, -2], columns = [2, 1] }
    "#;

    #[test]
    fn tables_are_taken_from_the_trained_model() {
        let (figure, results) = (figure(TABLES), tempfile::tempdir().unwrap());
        let trainings = figure.trainings();
        assert_eq!(trainings.iter().map(|training| training.entry.steps).collect::<Vec<_>>(), [1, 2]);
        for training in &trainings {
            assert_eq!(training.entry.curves, ["q in the model"]);
            write_result(training, 1, results.path(), 0.0);
            let path = training.result(results.path(), 1);
            let q = "[0, 1, 3, 2, 4, 4, 6, 7, 9, 8, 10, 11]"; // [6, 2]
            let text = std::fs::read_to_string(&path).unwrap().replace(
                r#""charts/estimate": {"steps": [0, 100], "returns": [0, 0]}"#,
                &format!(r#""q in the model": {{"steps": [], "returns": {q}}}"#),
            );
            std::fs::write(path, text).unwrap();
        }
        let numbers = figure.numbers(results.path()).unwrap();
        // States 4 and 5 in the upper row, 2 and 3 in the lower one.
        assert_eq!(numbers.lines[0].xs, [4.0, 5.0, 2.0, 3.0]);
        assert_eq!(numbers.lines[0].mean, [9.0, 11.0, 4.0, 7.0]);
        assert_eq!(numbers.lines[1].mean, [0.0, 1.0, 0.0, 1.0]); // the first of equal ones
        assert!(numbers.lines[1].low.is_empty() && numbers.lines[1].high.is_empty());
        let path = results.path().join("tables.png");
        figure.draw(&numbers.lines, &path).unwrap();
        assert!(path.exists());

        let beyond = parsed(&TABLES.replace("start = 4", "start = 5")).unwrap().remove(0);
        let error = format!("{:#}", beyond.numbers(results.path()).unwrap_err());
        assert!(error.contains("`cells` are not all in q"), "{error}");
    }

    #[test]
    fn tables_that_cannot_be_laid_out_are_refused() {
        for (from, to, mention) in [
            ("across = 2", "across = 0", "`across`"),
            (
                "start = 4, rows = [2, -2], columns = [2, 1] }\n        [[",
                "start = 4, columns = [2, 1] }\n        [[",
                "one shape",
            ),
            ("start = 4", "start = 1", "`cells`"),
            ("actions = 2", "actions = 0", "`actions`"),
            ("table = \"q\"\n", "metric = \"charts/error\"\n", "of a `table`"),
        ] {
            assert!(TABLES.contains(from), "{from}");
            let error = parsed(&TABLES.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(mention) && !error.contains('\n'), "{to}: {error}");
        }
        let error = parsed(&SWEPT.replace("last = 5", "rows = [0, 3]")).unwrap_err();
        assert!(error.contains("`rows` [0, 3]"), "{error}");
    }

    #[test]
    fn numbers_are_current_until_the_description_changes() {
        let (figure, results) = (figure(OVER_STEPS), tempfile::tempdir().unwrap());
        (1..=3).for_each(|seed| write_result(&figure.trainings()[0], seed, results.path(), 6.0));
        let folder = results.path().join("figures");
        assert!(!figure.is_current(&folder, true).unwrap());
        let numbers = figure.numbers(results.path()).unwrap();
        numbers.write(&folder, "steps").unwrap();
        assert_eq!(Numbers::read(&folder, "steps").unwrap(), numbers);
        assert!(figure.is_current(&folder, true).unwrap());
        figure.tidy(results.path()).unwrap();
        assert!(!figure.trainings()[0].result(results.path(), 1).exists());

        let changed = |from: &str, to: &str| parsed(&OVER_STEPS.replace(from, to)).unwrap().remove(0);
        assert!(changed("optimum", "the optimum").is_current(&folder, true).unwrap());
        assert!(changed("value\"", "return\"").is_current(&folder, true).unwrap());
        assert!(!changed("steps = 100", "steps = 200").is_current(&folder, true).unwrap());
        assert!(!changed("y_label", "seeds = 4\ny_label").is_current(&folder, true).unwrap());
        assert!(!changed("y_label", "smooth = false\ny_label").is_current(&folder, true).unwrap());
    }

    #[test]
    fn what_is_not_smoothed_is_the_mean_at_each_step() {
        let figure = figure(&OVER_STEPS.replace("title", "smooth = false\nplus = 1\ntimes = 10\ntitle"));
        let results = tempfile::tempdir().unwrap();
        (1..=3).for_each(|seed| write_result(&figure.trainings()[0], seed, results.path(), seed as f64));
        let lines = figure.numbers(results.path()).unwrap().lines;
        assert_eq!((&lines[1].xs[..], &lines[1].mean[..]), (&[0.0, 100.0][..], &[0.0, 2.0][..]));
    }

    #[test]
    fn each_line_has_its_own_metric() {
        let (figure, results) = (figure(OVER_STEPS), tempfile::tempdir().unwrap());
        for seed in 1..=3 {
            write_result(&figure.trainings()[0], seed, results.path(), 6.0 * seed as f64);
        }
        let curves = figure.numbers(results.path()).unwrap().lines;
        let ends: Vec<(f64, f64)> =
            curves.iter().map(|curve| (curve.mean[0], *curve.mean.last().unwrap())).collect();
        assert_eq!(ends, [(12.0, 0.0), (0.0, 12.0)]);
        assert_eq!(curves[1].label, "return");
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_in_one_line() {
        for (from, to, mention) in [
            ("name = \"sweep\"", "name = \"a b\"", "letters, digits"),
            ("name = \"sweep\"", "", "line 2: missing field `name`"),
            ("seeds = 2", "seeds = 0", "`seeds`"),
            ("seeds = 2", "seed = 2", "unknown field `seed`"),
            ("last = 5", "last = 0", "`last`"),
            ("metric = \"charts/error\"", "", "line \"n = 1\": neither it nor the figure has a `metric`"),
            ("program = \"walk\"", "program = \"run\"", "program \"run\" is not in algorithms/"),
            ("\"--alpha\"", "\"alpha\"", "is not a flag"),
            ("0.25, 0.5, 1", "0.5, 0.25", "ascending"),
            ("0.25, 0.5, 1", "", "ascending"),
            ("0.25, 0.5, 1", "0, 1", "no place for 0"),
            ("points = [[0.5, 2.0]]", "", "`points` or a `value`"),
            ("points = [[0.5, 2.0]]", "points = []\nvalue = 1", "`points` or a `value`"),
            ("\"a paper\"", "\"\"", "`source`"),
            ("\"a paper\"", "\"recalled\"", "`source`"),
            ("last = 5", "y_range = [1, 1]", "`y_range`"),
            (
                "[[figure.published]]",
                "[[figure.line]]\nlabel = \"n = 1\"\n[[figure.published]]",
                "missing field",
            ),
        ] {
            assert!(SWEPT.contains(from), "{from}");
            let error = parsed(&SWEPT.replace(from, to).replace("title", "log_x = true\ntitle")).unwrap_err();
            assert!(error.contains(mention) && !error.contains('\n'), "{to}: {error}");
        }
        assert!(parsed(&[SWEPT, SWEPT].concat()).unwrap_err().contains("two figures are called \"sweep\""));
        let mixed =
            OVER_STEPS.replacen("steps = 100", "steps = 100\nsweep = {flag = \"--a\", values = [1]}", 1);
        assert!(parsed(&mixed).unwrap_err().contains("either all lines have a `sweep` or none"));
        let steps = OVER_STEPS.replacen("steps = 100", "steps = 200", 1);
        assert!(parsed(&steps).unwrap_err().contains("differ in steps alone"));
        let twice = OVER_STEPS.replace("\"estimate\"", "\"return\"");
        assert!(parsed(&twice).unwrap_err().contains("two lines are labelled \"return\""));
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let figures = parsed(&[SWEPT, OVER_STEPS].concat()).unwrap();
        let error = select(&figures, &["steps".into(), "curves".into()], false).unwrap_err().to_string();
        assert_eq!(error, "curves: no such figure; there are sweep, steps");
        assert_eq!(select(&figures, &["steps".into()], false).unwrap(), [&figures[1]]);
        assert_eq!(select(&figures, &[], false).unwrap().len(), 2);
    }

    #[test]
    fn lines_that_are_compared_have_a_table() {
        let numbered = |label: &str, last: &[f64]| Numbered {
            label: label.into(),
            xs: vec![],
            mean: vec![],
            low: vec![],
            high: vec![],
            last: last.to_vec(),
        };
        let table = comparison(&[numbered("A", &[1.0; 5]), numbered("B", &[0.0, 2.0, 2.0, 2.0, 9.0])]);
        assert!(table.contains("| A | 1 | 1 to 1 |  |"), "{table}");
        assert!(table.contains("| B | 2 | ") && table.contains("| 80 % |"), "{table}");
        let compared = OVER_STEPS.replace("title", "compared = true\ntitle");
        assert!(parsed(&compared).unwrap()[0].compared);
        let of_error = compared.replace("title", "error_of = 2\ntitle");
        assert!(parsed(&of_error).unwrap_err().contains("`error_of`"));
        // A line that got another label since.
        let folder = tempfile::tempdir().unwrap();
        let numbers = Numbers {
            config_digest: figure(&compared).config_digest(),
            source_digest: String::new(),
            seeds: 5,
            cpu: String::new(),
            wall_seconds: 0.0,
            lines: vec![numbered("A", &[1.0; 5]), numbered("B", &[2.0; 5])],
        };
        numbers.write(folder.path(), "steps").unwrap();
        std::fs::write(folder.path().join("steps.png"), "").unwrap();
        let page_of = |text: &str| page(&parsed(text).unwrap(), folder.path());
        let shown = page_of(&compared);
        assert!(shown.contains("one of estimate ") && shown.contains("| return | 2 |"), "{shown}");
        let other = page_of(&compared.replace("seeds = 3", "seeds = 4").replace("steps = 100", "steps = 9"));
        assert!(other.contains("| B | 2 |"), "{other}");
        // Numbers from before it was compared are no reason to fail.
        let folder = tempfile::tempdir().unwrap();
        let numbers = r#"{"config_digest": "", "source_digest": "", "seeds": 1, "cpu": "", "wall_seconds": 0,
            "lines": [{"label": "A", "xs": [], "mean": [], "low": [], "high": []}]}"#;
        std::fs::write(folder.path().join("steps.json"), numbers).unwrap();
        std::fs::write(folder.path().join("steps.png"), "").unwrap();
        assert!(Numbers::read(folder.path(), "steps").is_ok());
        let page = page(&parsed(&compared).unwrap(), folder.path());
        assert!(page.contains("steps.png") && !page.contains("interquartile"), "{page}");
        let swept = SWEPT.replace("title", "compared = true\n        title");
        assert!(parsed(&swept).unwrap_err().contains("`compared`"));
    }

    #[test]
    fn what_takes_long_is_drawn_by_its_name_or_where_it_is_wanted() {
        let long = OVER_STEPS.replace("title", "long = true\ntitle");
        let figures = parsed(&[SWEPT, &long].concat()).unwrap();
        let names = |names: &[&str], long: bool| -> Vec<String> {
            let wanted: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            select(&figures, &wanted, long).unwrap().iter().map(|figure| figure.name.clone()).collect()
        };
        assert_eq!(names(&[], false), ["sweep"]);
        assert_eq!(names(&[], true), ["sweep", "steps"]);
        assert_eq!(names(&["steps"], false), ["steps"]);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("steps.png"), "").unwrap();
        assert!(page(&figures, folder.path()).contains("figures steps`.\n"));
        // What it takes says nothing about what is drawn.
        assert_eq!(figures[1].config_digest(), figure(OVER_STEPS).config_digest());
    }

    #[test]
    fn squared_errors_are_of_each_run_and_not_of_their_mean() {
        let text = "smooth = false\nerror_of = 2\ntitle";
        let of_two = figure(&OVER_STEPS.replace("title", text));
        let results = tempfile::tempdir().unwrap();
        (1..=3).for_each(|seed| write_result(&of_two.trainings()[0], seed, results.path(), seed as f64));
        // The runs end with 1, 2 and 3, and begin with 0.
        let lines = of_two.numbers(results.path()).unwrap().lines;
        assert_eq!(lines[1].mean, [4.0, 0.666667]);
        assert_ne!(
            of_two.config_digest(),
            figure(&OVER_STEPS.replace("title", "smooth = false\ntitle")).config_digest()
        );
    }

    #[test]
    fn a_logarithmic_axis_has_rows_of_its_own() {
        let text = OVER_STEPS.replace("title", "x = \"episodes\"\nx_max = 300\nlog_x = true\ntitle");
        let names = figure(&text).trainings().remove(0).entry.curves;
        assert_eq!(names[0], "charts/estimate by row, twenty a decade 300");
    }

    #[test]
    fn the_page_shows_what_is_drawn_with_its_sources() {
        let figures = parsed(&[SWEPT, OVER_STEPS].concat()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("steps.png"), "").unwrap();
        let page = page(&figures, folder.path());
        assert!(
            page.contains("](steps.png)\n\nTwo metrics of one training.\n\n- optimum: computed\n"),
            "{page}"
        );
        assert!(!page.contains("sweep.png"), "{page}");
    }
}
