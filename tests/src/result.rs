//! The file that a finished run leaves: `runs/{tier}/{algorithm}__{env}[__variant]/{seed}.json`, or
//! below `figures/{name}`; small enough to be committed.

use crate::jobs::{Entry, Tier, name};
use crate::statistics::{mean, variance};
use anyhow::{Context, Result, ensure};
use common::cli::Evaluation;
use common::envs::invalid;
use common::write_atomically;
use regression::learning::{Row, Summary, mean_of_last, read_metrics};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Points of a stored curve, and of one over rows: the first of those change quickly, and as many as figures
/// have are kept as they are.
const POINTS: usize = 200;
const ROWS: usize = 300;

/// What follows a metric in the name of a curve over its rows, from 1, and not over steps: episodes,
/// where each has a row. What follows it in turn is how many of them are kept; all, if nothing does.
pub const BY_ROW: &str = " by row";

/// The same for a logarithmic axis: up to twenty of the rows between 1 and 10, between 10 and 100, and so on,
/// as they are.
pub const BY_LOG_ROW: &str = " by row, twenty a decade";

/// What follows the name of a table in that of a curve that is the table itself: its numbers in the
/// trained model, over their index.
pub const IN_MODEL: &str = " in the model";

/// What one seed of an entry reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResult {
    pub tier: Tier,
    pub algorithm: String,
    pub env_id: String,
    pub variant: String,
    pub seed: u64,
    pub steps: usize,
    pub args: Vec<String>,
    /// Of the settings; see [`Entry::config_digest`].
    pub config_digest: String,
    /// Of the sources; see [`crate::digest::source_digest`].
    pub source_digest: String,
    /// Version of the algorithm's package.
    pub version: String,
    pub cpu: String,
    /// Training time.
    pub wall_seconds: f64,
    /// Environment steps a second while training.
    pub sps: f64,
    pub eval: Evaluation,
    /// The entry's measures, in its order.
    pub values: Vec<Value>,
    /// The mean of each other metric over the second half of its rows. They show what a score does
    /// not: an entropy bonus of the wrong sign still solves CartPole.
    pub diagnostics: BTreeMap<String, f64>,
    pub curve: StoredCurve,
    /// The same of the entry's other curves, by metric.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub curves: BTreeMap<String, StoredCurve>,
}

/// A measure's value in one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    pub metric: String,
    pub last: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<(usize, usize)>,
    pub value: f64,
    /// Standard error of the value, as a mean of so many episodes; 0 if it is none.
    pub std_error: f64,
}

/// Training returns, or rows of another metric, over steps: episodes that ended close to each other
/// are averaged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredCurve {
    pub steps: Vec<f64>,
    pub returns: Vec<f64>,
}

impl RunResult {
    /// Takes the result of `entry` from a finished run's directory.
    ///
    /// # Errors
    /// A run that is not finished or has too few rows of a metric.
    pub fn harvest(entry: &Entry, seed: u64, source_digest: &str, run_dir: &Path) -> Result<Self> {
        let summary = Summary::read(run_dir)?;
        let rows = read_metrics(&run_dir.join("metrics.csv"))?;
        let mut values = Vec::new();
        for measure in &entry.measures {
            let (metric, last) = (measure.metric.clone(), measure.last);
            let single: Vec<f64> = rows.iter().filter(|r| r.tag == metric).map(|r| r.value).collect();
            let (value, used) = match measure.rows {
                None => (mean_of_last(&rows, &metric, last)?, &single[single.len() - last..]),
                Some((from, to)) => {
                    let count = single.len();
                    ensure!(count >= to, "metrics.csv has {count} rows of {metric}, {to} are needed");
                    (mean(&single[from - 1..to]), &single[from - 1..to])
                }
            };
            let variance_of_mean = match metric.as_str() {
                "eval/episodic_return" => summary.eval.std.powi(2) / summary.eval.episodes as f64,
                _ => variance(used) / used.len() as f64,
            };
            let std_error = round(variance_of_mean.sqrt());
            values.push(Value { metric, last, rows: measure.rows, value, std_error });
        }
        let points = |metric: &str| -> Vec<(f64, f64)> {
            rows.iter().filter(|row| row.tag == metric).map(|row| (row.step, row.value)).collect()
        };
        let mut curves = BTreeMap::new();
        for name in &entry.curves {
            if let Some(table) = name.strip_suffix(IN_MODEL) {
                curves.insert(name.clone(), table_of(&run_dir.join("model.safetensors"), table)?);
                continue;
            }
            let by_row = |metric: &str, count: &str| -> Vec<(f64, f64)> {
                let count = count.trim().parse().unwrap_or(usize::MAX);
                (1..).map(f64::from).zip(points(metric).iter().map(|(_, y)| *y)).take(count).collect()
            };
            let curve = if let Some((metric, count)) = name.split_once(BY_LOG_ROW) {
                StoredCurve::logarithmic(&by_row(metric, count))
            } else if let Some((metric, count)) = name.split_once(BY_ROW) {
                StoredCurve::in_parts(&by_row(metric, count), ROWS)
            } else {
                StoredCurve::new(&points(name))
            };
            ensure!(!curve.steps.is_empty(), "metrics.csv has no rows of {name}");
            curves.insert(name.clone(), curve);
        }
        Ok(Self {
            tier: entry.tier,
            algorithm: entry.algorithm.clone(),
            env_id: entry.env_id.clone(),
            variant: entry.variant.clone(),
            seed,
            steps: entry.steps,
            args: entry.args.clone(),
            config_digest: entry.config_digest(),
            source_digest: source_digest.to_string(),
            version: summary.version,
            cpu: summary.cpu,
            wall_seconds: round(summary.wall_seconds),
            sps: round(summary.sps),
            eval: summary.eval,
            values,
            diagnostics: diagnostics(&rows),
            curve: StoredCurve::new(&points("charts/episodic_return")),
            curves,
        })
    }

    /// What the entry's result files are called; see [`Entry::name`].
    pub fn name(&self) -> String {
        name(&self.algorithm, &self.env_id, &self.variant)
    }

    /// The curve of `metric`, if the run has one.
    pub fn curve_of(&self, metric: &str) -> Option<&StoredCurve> {
        if metric == "charts/episodic_return" { Some(&self.curve) } else { self.curves.get(metric) }
    }

    /// Reads one file.
    ///
    /// # Errors
    /// Invalid input if it is not such a file.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| shown.to_string())?;
        match serde_json::from_str(&text) {
            Ok(result) => Ok(result),
            Err(error) => invalid(format!("{shown}: not the result of a run: {error}")),
        }
    }

    /// Writes the file, whole or not at all, and the folders that lead to it.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        if self.tier != Tier::Figure {
            return write_atomically(path, &json(self)?);
        }
        // There are thousands of these for a few minutes, too many to wait for the disk: what a power failure
        // tears apart is made again.
        let partial = path.with_extension("partial");
        let written = std::fs::write(&partial, json(self)?);
        written.and_then(|()| std::fs::rename(&partial, path)).with_context(|| path.display().to_string())
    }
}

/// The numbers of a table that a program keeps in its model, over their index.
fn table_of(path: &Path, table: &str) -> Result<StoredCurve> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| shown.to_string())?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(|| shown.to_string())?;
    let view = tensors.tensor(&format!("{table}.table")).or_else(|_| tensors.tensor(table));
    let view = view.with_context(|| format!("{shown}: has no table {table}"))?;
    ensure!(view.dtype() == Dtype::F64, "{shown}: {table} is no table of f64");
    let numbers = view.data().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
    let returns: Vec<f64> = numbers.map(round).collect();
    Ok(StoredCurve { steps: (0..returns.len()).map(|i| i as f64).collect(), returns })
}

/// [`RunResult::diagnostics`].
fn diagnostics(rows: &[Row]) -> BTreeMap<String, f64> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for row in rows {
        let score = row.tag.starts_with("eval/") || row.tag.starts_with("charts/episodic_");
        // The clock says nothing about the algorithm, be it of all steps or of a part's (`charts/SPS_planning`).
        if !score && !row.tag.starts_with("charts/SPS") {
            values.entry(&row.tag).or_default().push(row.value);
        }
    }
    values.iter().map(|(tag, values)| (tag.to_string(), round(mean(&values[values.len() / 2..])))).collect()
}

/// Where the results of an entry's runs are kept, below the folder of all results.
pub fn place(entry: &Entry) -> PathBuf {
    Path::new("runs").join(entry.tier.name()).join(entry.name())
}

/// Every result below `results`, by tier, name and seed.
///
/// # Errors
/// Invalid input if there is none, or a file that is not one.
pub fn read_all(results: &Path) -> Result<Vec<RunResult>> {
    let mut all: Vec<RunResult> = Vec::new();
    for tier in [Tier::Test, Tier::Benchmark] {
        for folder in list(&results.join("runs").join(tier.name()))? {
            for path in list(&folder)? {
                if path.extension().is_some_and(|extension| extension == "json") {
                    all.push(RunResult::read(&path)?);
                }
            }
        }
    }
    if all.is_empty() {
        let shown = results.display();
        return invalid(format!("{shown}: holds no results; `regression run` writes them to {shown}/runs"));
    }
    all.sort_by_key(|result| (result.tier, result.name(), result.seed));
    Ok(all)
}

/// What is in `folder`; nothing if it does not exist or is a file.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let items = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    items.map(|item| Ok(item?.path())).collect()
}

impl StoredCurve {
    /// Averages `episodes`, (step, return) in the order in which they ended, in at most
    /// [`POINTS`] equal parts of the steps that they span.
    pub fn new(episodes: &[(f64, f64)]) -> Self {
        Self::in_parts(episodes, POINTS)
    }

    /// The same in so many parts at most.
    fn in_parts(episodes: &[(f64, f64)], parts: usize) -> Self {
        let mut curve = Self::default();
        let (Some(first), Some(last)) = (episodes.first(), episodes.last()) else { return curve };
        let width = (last.0 - first.0) / parts as f64;
        // An episode's own part, where there are so few that each can have one.
        let few = episodes.len() <= parts;
        let part = |i: usize| {
            if few { i } else { (((episodes[i].0 - first.0) / width) as usize).min(parts - 1) }
        };
        let mut start = 0;
        while start < episodes.len() {
            let here = part(start);
            let end = (start..episodes.len()).find(|&i| part(i) != here).unwrap_or(episodes.len());
            let (steps, returns): (Vec<f64>, Vec<f64>) = episodes[start..end].iter().copied().unzip();
            curve.steps.push(mean(&steps).round());
            curve.returns.push(round(mean(&returns)));
            start = end;
        }
        curve
    }

    /// Of rows counted from 1, those that begin a twentieth of a decade.
    fn logarithmic(rows: &[(f64, f64)]) -> Self {
        let part = |row: f64| (20.0 * row.log10()).floor();
        let kept = rows.iter().filter(|(row, _)| *row == 1.0 || part(*row) > part(*row - 1.0));
        let (steps, returns) = kept.map(|&(row, y)| (row, round(y))).unzip();
        Self { steps, returns }
    }

    /// As (step, return).
    pub fn points(&self) -> Vec<(f64, f64)> {
        self.steps.iter().copied().zip(self.returns.iter().copied()).collect()
    }

    /// The mean return over training: the area under the curve divided by the steps it spans.
    /// `None` without episodes.
    pub fn mean_return(&self) -> Option<f64> {
        let points = self.points();
        let (first, last) = (points.first()?, points.last()?);
        if first.0 == last.0 {
            return Some(mean(&self.returns));
        }
        let area: f64 = points.windows(2).map(|p| (p[1].0 - p[0].0) * (p[0].1 + p[1].1) / 2.0).sum();
        Some(area / (last.0 - first.0))
    }

    /// Standard error of [`StoredCurve::mean_return`]: what points scatter about their neighbours,
    /// half of the mean squared difference (von Neumann 1941), is noise, whatever the trend.
    pub fn std_error(&self) -> f64 {
        let squares: Vec<f64> = self.returns.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).collect();
        if squares.is_empty() { 0.0 } else { (mean(&squares) / 2.0 / self.returns.len() as f64).sqrt() }
    }
}

/// Six significant digits: more would be noise, and take room.
pub fn round(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// `value` as the bytes of a file.
pub fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, ArraysInLine::default()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// JSON with a line for each field and arrays in one.
#[derive(Default)]
struct ArraysInLine {
    pretty: PrettyFormatter<'static>,
    depth: usize, // in arrays
}

impl Formatter for ArraysInLine {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth += 1;
        writer.write_all(b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        writer.write_all(b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.depth > 0 { writer.write_all(b"{") } else { self.pretty.begin_object(writer) }
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.depth > 0 { writer.write_all(b"}") } else { self.pretty.end_object(writer) }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        match (self.depth, first) {
            (0, _) => self.pretty.begin_object_key(writer, first),
            (_, true) => Ok(()),
            (_, false) => writer.write_all(b", "),
        }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.depth > 0 { Ok(()) } else { self.pretty.end_object_value(writer) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_of_many_episodes_is_averaged_in_parts() {
        let episodes: Vec<(f64, f64)> = (1..=10_000).map(|i| (f64::from(i), f64::from(i) / 100.0)).collect();
        let curve = StoredCurve::new(&episodes);
        assert_eq!(curve.steps.len(), POINTS);
        assert!(curve.steps.is_sorted());
        // What is averaged is linear, so every point lies on the line.
        for (step, value) in curve.points() {
            assert!((value - step / 100.0).abs() <= 0.006, "{step} {value}");
        }
        assert!((curve.mean_return().unwrap() - 50.0).abs() < 0.05);
    }

    #[test]
    fn a_curve_of_few_episodes_keeps_them() {
        let curve = StoredCurve::new(&[(5.0, 1.0), (5.0, 2.0), (90.0, 3.0)]);
        assert_eq!(curve.points(), [(5.0, 1.0), (5.0, 2.0), (90.0, 3.0)]);
        assert_eq!(StoredCurve::new(&[]), StoredCurve::default());
        let rows: Vec<(f64, f64)> = (1..=300).map(|i| (f64::from(i), f64::from(i * i))).collect();
        assert_eq!(StoredCurve::in_parts(&rows, ROWS).points(), rows);
        assert_eq!(StoredCurve::default().mean_return(), None);
        assert_eq!(StoredCurve::new(&[(5.0, 7.0)]).mean_return(), Some(7.0));
        // All at one step, as a program that only plans reports them.
        let many = StoredCurve::new(&vec![(3.0, 2.0); 1000]);
        assert_eq!(many.mean_return(), Some(2.0));
        assert_eq!(many.steps.len(), 1);
    }

    #[test]
    fn a_curve_for_a_logarithmic_axis_keeps_rows_as_they_are() {
        let rows: Vec<(f64, f64)> = (1..=1000).map(|i| (f64::from(i), f64::from(i * i))).collect();
        let curve = StoredCurve::logarithmic(&rows);
        assert_eq!(curve.steps[..6], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert!(curve.points().iter().all(|(row, y)| *y == round(row * row)));
        let within = |low: f64, high: f64| curve.steps.iter().filter(|&&s| (low..high).contains(&s)).count();
        assert_eq!((within(100.0, 1000.0), curve.steps.last()), (20, Some(&1000.0)));
    }

    #[test]
    fn a_table_of_the_model_is_kept_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let bytes: Vec<u8> = (0..300).flat_map(|i| (f64::from(i) / 4.0).to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(Dtype::F64, vec![300], &bytes).unwrap();
        std::fs::write(&path, safetensors::serialize([("values.table", view)], None).unwrap()).unwrap();
        let curve = table_of(&path, "values").unwrap();
        assert_eq!(curve.points().len(), 300);
        assert_eq!(curve.points()[7], (7.0, 1.75));
        let error = format!("{:#}", table_of(&path, "policy").unwrap_err());
        assert!(error.contains("has no table policy"), "{error}");
    }

    #[test]
    fn the_area_is_a_trapezoid_s() {
        let curve = StoredCurve::new(&[(0.0, 0.0), (10.0, 10.0), (20.0, 10.0)]);
        assert_eq!(curve.mean_return(), Some(7.5));
        // Differences 10 and 0 of three points: √(50 / 2 / 3).
        assert!((curve.std_error() - (25.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(StoredCurve::default().std_error(), 0.0);
    }

    #[test]
    fn diagnostics_are_means_of_the_second_half() {
        let rows: Vec<Row> = [("losses/entropy", 9.0), ("charts/SPS", 5.0), ("losses/entropy", 1.0)]
            .into_iter()
            .chain([("charts/SPS_planning", 6.0), ("charts/episodic_return", 5.0)])
            .chain([("losses/entropy", 2.0), ("losses/alpha", 7.0)])
            .map(|(tag, value)| Row { step: 1.0, tag: tag.into(), value })
            .collect();
        let expected = BTreeMap::from([("losses/alpha".into(), 7.0), ("losses/entropy".into(), 1.5)]);
        assert_eq!(diagnostics(&rows), expected);
    }

    #[test]
    fn six_digits_are_kept() {
        assert_eq!(round(-123.456789), -123.457);
        assert_eq!(round(0.0), 0.0);
        assert_eq!(round(1e7 / 3.0), 3_333_330.0);
    }
}
