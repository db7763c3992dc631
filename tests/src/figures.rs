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
//! log_x = false                                # the default
//! y_range = [0.25, 0.55]                       # by default all there is
//! metric = "charts/rms_error"                  # of every line that names no other
//! last = 10                                    # rows of it that a swept point is the mean of; 1 by default
//! seeds = 3                                    # 1, 2, 3
//!
//! [[figure.line]]
//! label = "n = 4"
//! program = "nstep_td"                         # a package in algorithms/
//! env_id = "RandomWalk19-v0"
//! steps = 10_000
//! args = ["--n", "4"]                          # none by default
//! sweep = { flag = "--alpha", values = [0.1, 0.2, 0.4] }
//!
//! [[figure.published]]
//! label = "published, n = 4"
//! points = [[0.1, 0.5], [0.2, 0.4]]            # or `value = 475`: a line across the picture
//! source = "digitised from the figure"
//! ```
//!
//! Without a sweep a line is its metric over `x`, otherwise over the flag's value. Lines
//! of the same training share its runs. Each run leaves a small file in `results/figures/NAME/`, so
//! that a picture can be drawn again without one; with `--keep` also when the sources have changed.

use crate::curves;
use crate::jobs::{Entry, Measure, Shard, Tier, variant};
use crate::result::{BY_ROW, RunResult};
use crate::runner::{PoolArgs, Training, train};
use anyhow::{Context, Result};
use common::envs::invalid;
use common::plot::{Chart, Curve, Reference};
use common::write_atomically;
use regression::paths::root;
use regression::thresholds::Direction;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Points of a curve.
const POINTS: usize = 200;

/// What is measured where a line needs no number of its own: it is shown when a run ends.
const SCORE: &str = "eval/episodic_return";

/// Flags of `figures`.
#[derive(clap::Args, Debug)]
pub struct FiguresArgs {
    /// Figures to draw [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
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
    y_range: Option<(f64, f64)>,
    metric: Option<String>,
    #[serde(default = "one")]
    last: usize,
    #[serde(default = "three")]
    seeds: u64,
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
    sweep: Option<Sweep>,
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
/// A file that describes no figures; an unknown figure; what [`train`] reports.
pub fn figures(args: FiguresArgs) -> Result<()> {
    let file = args.file.clone().unwrap_or_else(|| root().join("tests/figures.toml"));
    let all = read(&file)?;
    let wanted = select(&all, &args.names)?;
    let results = args.pool.results();
    let trainings = wanted.iter().flat_map(|figure| figure.trainings()).collect::<Vec<_>>();
    train(&trainings, Shard::WHOLE, &args.pool)?;
    if args.pool.dry_run {
        return Ok(());
    }
    let folder = results.join("figures");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for figure in wanted {
        let path = folder.join(format!("{}.png", figure.name));
        match figure.curves(&results) {
            Ok(curves) => {
                figure.draw(&curves, &path)?;
                figure.tidy(&results)?;
                println!("{}", path.display());
            }
            // Its environment is not installed, which has been said.
            Err(error) => eprintln!("{}: not drawn: {error:#}", figure.name),
        }
    }
    write_atomically(&folder.join("README.md"), page(&all, &folder).as_bytes())
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

/// The figures called `names`, or all if none is named.
fn select<'a>(figures: &'a [Figure], names: &[String]) -> Result<Vec<&'a Figure>> {
    let known = || figures.iter().map(|figure| figure.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(unknown) = names.iter().find(|name| figures.iter().all(|figure| figure.name != **name)) {
        return invalid(format!("{unknown}: no such figure; there are {}", known()));
    }
    Ok(figures.iter().filter(|figure| names.is_empty() || names.contains(&figure.name)).collect())
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
        if self.line.iter().any(|line| line.sweep.is_some() != self.is_swept()) {
            return Some("either all lines have a `sweep` or none".into());
        }
        if self.y_range.is_some_and(|(low, high)| low >= high) {
            return Some("`y_range` is empty".into());
        }
        for (i, line) in self.line.iter().enumerate() {
            let what = format!("line {:?}", line.label);
            if !is_program(&line.program) {
                return Some(format!("{what}: program {:?} is not in algorithms/", line.program));
            }
            if line.metric.as_ref().or(self.metric.as_ref()).is_none() {
                return Some(format!("{what}: neither it nor the figure has a `metric`"));
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
        match self.x {
            X::Steps => metric.to_string(),
            X::Episodes => format!("{metric}{BY_ROW}"),
        }
    }

    /// What has to be trained, each training once however many lines show something of it.
    fn trainings(&self) -> Vec<Training> {
        let mut all: Vec<Training> = Vec::new();
        for (line, args) in self.line.iter().flat_map(|line| line.flags().map(move |args| (line, args))) {
            let metric = self.metric(line);
            let same = |other: &Training| {
                let Entry { algorithm, env_id, steps, args: flags, .. } = &other.entry;
                (algorithm, env_id, *steps, flags) == (&line.program, &line.env_id, line.steps, &args)
            };
            let i = all.iter().position(same).unwrap_or_else(|| {
                all.push(self.training(line, &args));
                all.len() - 1
            });
            let entry = &mut all[i].entry;
            let is_new = entry.measures.iter().all(|measure| measure.metric != metric);
            if self.is_swept() && is_new {
                entry.measures.push(measure(metric, self.last));
            }
            let curve = self.curve_name(line);
            let is_new = curve != "charts/episodic_return" && !entry.curves.contains(&curve);
            if !self.is_swept() && is_new {
                entry.curves.push(curve);
            }
        }
        for training in &mut all {
            if training.entry.measures.is_empty() {
                training.entry.measures.push(measure(SCORE, 1));
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
            variant: variant(args),
            measures: Vec::new(),
            curves: Vec::new(),
        };
        let place = Path::new("figures").join(&self.name).join(entry.name());
        Training { entry, seeds: (1..=self.seeds).collect(), place }
    }

    /// The lines, from the results of their runs.
    fn curves(&self, results: &Path) -> Result<Vec<Curve>> {
        self.line.iter().map(|line| self.curve(line, results)).collect()
    }

    fn curve(&self, line: &Line, results: &Path) -> Result<Curve> {
        let metric = self.metric(line);
        let mut points: Vec<Vec<RunResult>> = Vec::new(); // [value of the flag][seed]
        for args in line.flags() {
            let training = self.training(line, &args);
            let seeds = training.seeds.iter();
            points.push(
                seeds.map(|&seed| RunResult::read(&training.result(results, seed))).collect::<Result<_>>()?,
            );
        }
        let lacks = || format!("{}: its runs have no {metric}", line.label);
        if let Some(sweep) = &line.sweep {
            let value = |run: &RunResult| run.values.iter().find(|v| v.metric == metric).map(|v| v.value);
            let values = points.iter().map(|seeds| seeds.iter().map(value).collect::<Option<Vec<f64>>>());
            let values = values.collect::<Option<Vec<_>>>().with_context(lacks)?;
            let xs = sweep.values.iter().map(|value| value.value()).collect();
            return Ok(curves::over_seeds(line.label.as_str(), xs, &values));
        }
        let shown = |(x, _): &(f64, f64)| self.x_max.is_none_or(|max| *x <= max);
        let runs = points.iter().flatten().map(|run| {
            let curve = run.curve_of(&self.curve_name(line))?;
            Some(curve.points().into_iter().filter(shown).collect())
        });
        let runs = runs.collect::<Option<Vec<_>>>().with_context(lacks)?;
        // That the note below the title says how many seeds there are keeps the legend short.
        Ok(Curve { label: line.label.clone(), ..curves::from_runs("", &runs, POINTS) })
    }

    /// Removes what runs left that its lines no longer show.
    fn tidy(&self, results: &Path) -> Result<()> {
        let used: Vec<PathBuf> = self.trainings().iter().map(|it| results.join(&it.place)).collect();
        for item in std::fs::read_dir(results.join("figures").join(&self.name))? {
            let path = item?.path();
            if path.is_dir() && !used.contains(&path) {
                std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    fn draw(&self, curves: &[Curve], path: &Path) -> Result<()> {
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
            y_range: self.y_range,
            curves,
            dots: self.is_swept(),
            references: &references,
        };
        chart.draw(path)
    }

    /// What lines and bands are.
    fn note(&self) -> String {
        match (self.seeds, self.is_swept()) {
            (1, true) => "one seed".into(),
            (1, false) => "one seed; shaded: from the 10% to the 90% quantile of what is averaged".into(),
            (seeds, _) => format!("mean of {seeds} seeds; shaded: its 95% bootstrap interval"),
        }
    }
}

/// A number to be taken from a run; nothing is demanded of it.
fn measure(metric: &str, last: usize) -> Measure {
    Measure {
        metric: metric.to_string(),
        last,
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
        [tests/figures.toml](../../tests/figures.toml); the folder of each has what its runs left.\n"
        .to_string();
    let is_drawn = |figure: &&Figure| folder.join(format!("{}.png", figure.name)).exists();
    for figure in figures.iter().filter(is_drawn) {
        let Figure { name, title, text, .. } = figure;
        page += &format!("\n## {title}\n\n![{title}]({name}.png)\n\n{}\n", text.trim());
        for Published { label, source, .. } in &figure.published {
            page += &format!("\n- {label}: {source}");
        }
        if !figure.published.is_empty() {
            page += "\n";
        }
    }
    page
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
        let curves = figure.curves(results.path()).unwrap();
        assert_eq!((curves[0].xs.as_slice(), curves[0].mean.as_slice()), (&[0.0][..], &[6.0][..]));
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
        let curves = figure.curves(results.path()).unwrap();
        assert_eq!(curves.len(), 1);
        assert_eq!((curves[0].label.as_str(), &curves[0].xs[..]), ("n = 1", &[0.25, 0.5, 1.0][..]));
        assert_eq!(curves[0].mean, [0.5, 1.5, 2.5]);
        // Of four equally likely resamples of two seeds one has the lower twice, one the upper.
        assert_eq!((&curves[0].low[..], &curves[0].high[..]), (&[0.0, 1.0, 2.0][..], &[1.0, 2.0, 3.0][..]));

        std::fs::remove_file(figure.trainings()[1].result(results.path(), 2)).unwrap();
        let error = format!("{:#}", figure.curves(results.path()).unwrap_err());
        assert!(error.contains("2.json"), "{error}");
    }

    #[test]
    fn each_line_has_its_own_metric() {
        let (figure, results) = (figure(OVER_STEPS), tempfile::tempdir().unwrap());
        for seed in 1..=3 {
            write_result(&figure.trainings()[0], seed, results.path(), 6.0 * seed as f64);
        }
        let curves = figure.curves(results.path()).unwrap();
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
        let error = select(&figures, &["steps".into(), "curves".into()]).unwrap_err().to_string();
        assert_eq!(error, "curves: no such figure; there are sweep, steps");
        assert_eq!(select(&figures, &["steps".into()]).unwrap(), [&figures[1]]);
        assert_eq!(select(&figures, &[]).unwrap().len(), 2);
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
