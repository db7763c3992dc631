//! Writes what the results show: the tables of `results/README.md`, a plot and a CSV file of each
//! learning curve, and the short table in the project's README. The same results always give the
//! same bytes.

use crate::curves;
use crate::jobs::{self, Entry, Measure, Tier};
use crate::result::{RunResult, read_all, round};
use crate::runner::default_results;
use crate::statistics::{mean, variance};
use anyhow::{Context, Result};
use common::envs::invalid;
use common::plot::learning_curves;
use common::write_atomically;
use regression::learning::Direction;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Points of a learning curve.
const POINTS: usize = 200;

/// The lines between which the README's table stands.
const MARKERS: [&str; 2] = ["<!-- results -->\n", "<!-- /results -->\n"];

/// Flags of `report`.
#[derive(clap::Args, Debug)]
pub struct ReportArgs {
    /// Folder of the results [default: results/ of the project]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// The file whose table of results is renewed [default: the project's README.md, or none with
    /// --results]
    #[arg(long, value_name = "FILE.md")]
    readme: Option<PathBuf>,
}

/// The seeds of an entry.
struct Row {
    entry: Entry,
    seeds: Vec<RunResult>,
}

/// Writes everything.
///
/// # Errors
/// No results, a file that cannot be written, a README without the lines that enclose its table.
pub fn report(args: ReportArgs) -> Result<()> {
    let readme = match (&args.readme, &args.results) {
        (Some(readme), _) => Some(readme.clone()),
        (None, None) => Some(jobs::root().join("README.md")),
        (None, Some(_)) => None,
    };
    let results = args.results.unwrap_or_else(default_results);
    let rows = rows(&results)?;
    // Refused before anything is written.
    let readme = readme.map(|path| Ok::<_, anyhow::Error>((renewed(&path, &results, &rows)?, path)));
    let readme = readme.transpose()?;

    for tier in [Tier::Test, Tier::Benchmark] {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.entry.tier == tier).collect();
        write_curves(&results.join("curves").join(tier.name()), &rows)?;
    }
    write_atomically(&results.join("README.md"), page(&rows)?.as_bytes())?;
    if let Some((text, path)) = readme {
        write_atomically(&path, text.as_bytes())?;
    }
    println!("{}", results.join("README.md").display());
    Ok(())
}

/// The results of each entry that has any, in the order of the lists. What belongs to no present
/// entry is named on standard error and left out.
fn rows(results: &Path) -> Result<Vec<Row>> {
    let all = read_all(results)?;
    let mut rows = Vec::new();
    let mut used = BTreeSet::new();
    for tier in [Tier::Test, Tier::Benchmark] {
        for entry in jobs::entries(tier)? {
            let is_of = |result: &RunResult| {
                (result.tier, result.name()) == (tier, entry.name())
                    && result.config_digest == entry.config_digest()
            };
            let mut seeds = Vec::new();
            for (i, result) in all.iter().enumerate().filter(|(_, result)| is_of(result)) {
                used.insert(i);
                seeds.push(result.clone());
            }
            let sources: BTreeSet<&str> = seeds.iter().map(|result| result.source_digest.as_str()).collect();
            if sources.len() > 1 {
                eprintln!("{} {}: the seeds are from different sources", tier.name(), entry.name());
            }
            if !seeds.is_empty() {
                rows.push(Row { entry, seeds });
            }
        }
    }
    for (i, result) in all.iter().enumerate() {
        if !used.contains(&i) {
            let (tier, name, seed) = (result.tier.name(), result.name(), result.seed);
            eprintln!("{tier} {name}, seed {seed}: left out, its settings are in no list of jobs");
        }
    }
    if rows.is_empty() {
        return invalid(format!("{}: holds no results of the present jobs", results.display()));
    }
    Ok(rows)
}

/// A CSV file and a plot for each row that has a curve; what older reports left in `folder` goes.
fn write_curves(folder: &Path, rows: &[&Row]) -> Result<()> {
    if rows.is_empty() && !folder.exists() {
        return Ok(());
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut written = BTreeSet::new();
    for Row { entry, seeds } in rows.iter().filter(|row| row.has_curve()) {
        let seeds: Vec<&RunResult> = seeds.iter().filter(|seed| !seed.curve.steps.is_empty()).collect();
        let runs: Vec<Vec<(f64, f64)>> = seeds.iter().map(|seed| seed.curve.points()).collect();
        let curve = curves::from_runs(entry.algorithm.as_str(), &runs, POINTS);

        let mut csv = "step,mean,low,high".to_string();
        for seed in &seeds {
            csv += &format!(",seed_{}", seed.seed);
        }
        csv += "\n";
        let of_seeds = curves::of_each_run(&runs, POINTS);
        for (i, step) in curve.xs.iter().enumerate() {
            let band = [curve.mean[i], curve.low[i], curve.high[i]];
            csv += &format!("{step:.0}");
            for value in band.into_iter().chain(of_seeds.iter().map(|seed| seed[i])) {
                csv += &format!(",{}", round(value));
            }
            csv += "\n";
        }
        let file = |extension: &str| format!("{}.{extension}", entry.name());
        write_atomically(&folder.join(file("csv")), csv.as_bytes())?;

        // The line is drawn for the first measure that is on the curve's scale.
        let is_return = |measure: &&Measure| measure.metric.ends_with("episodic_return");
        let reference = entry.measures.iter().find(is_return).and_then(|m| m.reference.as_ref());
        let variant = if entry.variant.is_empty() { String::new() } else { format!(", {}", entry.variant) };
        learning_curves(
            &folder.join(file("png")),
            &format!("{}{variant}", entry.env_id),
            "episodic return",
            &[curve],
            reference.map(|reference| (reference.value, reference.label.as_str())),
        )?;
        written.extend([file("csv"), file("png")]);
    }
    for item in fs::read_dir(folder)? {
        let path = item?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !written.contains(&name) && (name.ends_with(".csv") || name.ends_with(".png")) {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

impl Row {
    fn has_curve(&self) -> bool {
        self.seeds.iter().any(|seed| !seed.curve.steps.is_empty())
    }

    /// `mean ± standard deviation` of the measure with this index.
    fn result(&self, index: usize) -> String {
        let values: Vec<f64> =
            self.seeds.iter().filter_map(|seed| Some(seed.values.get(index)?.value)).collect();
        let decimals = decimals(mean(&values));
        format!("{:.decimals$} ± {:.decimals$}", mean(&values), variance(&values).sqrt())
    }

    fn seconds(&self) -> String {
        format!("{:.1}", mean(&self.seeds.iter().map(|seed| seed.wall_seconds).collect::<Vec<_>>()))
    }

    fn steps_per_second(&self) -> String {
        let sps = mean(&self.seeds.iter().map(|seed| seed.sps).collect::<Vec<_>>());
        // The clock does not know more than three digits.
        thousands(format!("{sps:.2e}").parse::<f64>().unwrap_or(sps).round() as usize)
    }
}

/// Decimals that show about four digits.
fn decimals(value: f64) -> usize {
    match value.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    }
}

/// 1000000 as `1,000,000`.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number as it was written in the list of jobs, with what must hold for it.
fn reference(measure: &Measure) -> String {
    let Some(reference) = &measure.reference else { return "–".into() };
    let std = reference.std.map_or(String::new(), |std| format!(" ± {std}"));
    let sign = match measure.direction {
        Direction::Max => "≥ ",
        Direction::Min => "≤ ",
        Direction::Equal => "= ",
    };
    format!("{}{}{std}", sign, reference.value)
}

/// What a measure is, in words.
fn describe(measure: &Measure) -> String {
    match (measure.metric.as_str(), measure.last) {
        ("eval/episodic_return", 1) => "evaluation".into(),
        ("charts/episodic_return", 1) => "return".into(),
        ("charts/episodic_return", last) => format!("training, last {last} episodes"),
        (metric, 1) => format!("`{metric}`"),
        (metric, last) => format!("`{metric}`, last {last}"),
    }
}

/// `results/README.md`.
fn page(rows: &[Row]) -> Result<String> {
    let mut page = "# Results\n\n\
        Written by `cargo run -p regression -- report` from the files in [runs](runs), one a seed, which \
        `cargo run -p regression -- run` makes.\n\n\
        Result: mean ± standard deviation over seeds of the evaluation after training (mean return of 100 \
        episodes), or of the training return, exploration included, over the last episodes. Seconds: training \
        time of one seed on one thread. Curves: mean over seeds with the 95 % bootstrap interval of that mean; \
        their numbers are in [curves](curves).\n"
        .to_string();
    let cpus: BTreeSet<&str> = rows.iter().flat_map(|row| &row.seeds).map(|seed| seed.cpu.as_str()).collect();
    let cpus: Vec<&str> = cpus.into_iter().collect();
    page += &format!("\nMeasured on: {}.\n", cpus.join("; "));
    for (tier, title, column) in
        [(Tier::Test, "Tests", "required"), (Tier::Benchmark, "Benchmark", "published")]
    {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.entry.tier == tier).collect();
        if rows.is_empty() {
            continue;
        }
        let list = if tier == Tier::Test { "thresholds" } else { "benchmark" };
        page += &format!("\n## {title}\n\nThe jobs are in [tests/{list}.toml](../tests/{list}.toml).\n\n");
        page += &format!(
            "| algorithm | environment | steps | measure | result | seeds | {column} | seconds | steps/s |\n\
             |---|---|---:|---|---:|---:|---:|---:|---:|\n"
        );
        let mut sources: Vec<String> = Vec::new();
        for row in &rows {
            for (i, measure) in row.entry.measures.iter().enumerate() {
                page += &line(row, i, measure, &mut sources);
            }
        }
        page += "\n";
        for (i, source) in sources.iter().enumerate() {
            page += &format!("{}. {source}\n", i + 1);
        }
        page += "\n";
        for row in rows.iter().filter(|row| row.has_curve()) {
            let name = row.entry.name();
            let alt = format!("{} on {}: {}", row.entry.algorithm, row.entry.env_id, row.result(0));
            page += &format!("<img src=\"curves/{}/{name}.png\" width=\"420\" alt=\"{alt}\">\n", tier.name());
        }
    }
    Ok(page)
}

/// A line of a table; a source that is new is added to `sources`.
fn line(row: &Row, index: usize, measure: &Measure, sources: &mut Vec<String>) -> String {
    let Entry { tier, algorithm, env_id, steps, args, .. } = &row.entry;
    let flags = if args.is_empty() { String::new() } else { format!(" `{}`", args.join(" ")) };
    let mut reference = match tier {
        Tier::Test => reference(measure),
        // A published result is no bound.
        Tier::Benchmark => reference(measure).trim_start_matches("≥ ").to_string(),
    };
    if let Some(published) = &measure.reference {
        let note = if published.note.is_empty() { String::new() } else { format!(" ({})", published.note) };
        let source = format!("{}{note}", published.source);
        let number = sources.iter().position(|known| *known == source).unwrap_or_else(|| {
            sources.push(source);
            sources.len() - 1
        });
        reference += &format!(" [{}]", number + 1);
    }
    format!(
        "| [{algorithm}](../algorithms/{algorithm}/src/main.rs){flags} | {env_id} | {} | {} | {} | {} | \
         {reference} | {} | {} |\n",
        thousands(*steps),
        describe(measure),
        row.result(index),
        row.seeds.len(),
        row.seconds(),
        row.steps_per_second(),
    )
}

/// The text of `readme` with the table renewed: one line an algorithm, of the tests.
fn renewed(readme: &Path, results: &Path, rows: &[Row]) -> Result<String> {
    let shown = readme.display();
    let text = match fs::read_to_string(readme) {
        Ok(text) => text,
        Err(error) => return invalid(format!("--readme {shown}: {error}")),
    };
    let [first, last] = MARKERS;
    let (Some(start), Some(end)) = (text.find(first), text.find(last)) else {
        return invalid(format!("--readme {shown}: has no lines {} and {}", first.trim(), last.trim()));
    };
    let absolute = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
    let (file, folder) = (absolute(readme)?, absolute(results)?);
    let Some(folder) = file.parent().and_then(|parent| folder.strip_prefix(parent).ok()) else {
        let results = results.display();
        return invalid(format!("--readme {shown}: {results} must be below its folder, to be linked"));
    };
    let link = folder.join("README.md").to_string_lossy().replace('\\', "/");

    let mut table = "| algorithm | environment | steps | return | required | seconds |\n\
                     |---|---|---:|---:|---:|---:|\n"
        .to_string();
    let mut seen = BTreeSet::new();
    for row in rows.iter().filter(|row| row.entry.tier == Tier::Test) {
        let algorithm = row.entry.algorithm.as_str();
        if !seen.insert(algorithm) {
            continue;
        }
        // The algorithm's first evaluation, or else what is nearest to it.
        let of_it = || {
            let rows =
                rows.iter().filter(|row| row.entry.tier == Tier::Test && row.entry.algorithm == algorithm);
            rows.flat_map(|row| row.entry.measures.iter().enumerate().map(move |(i, m)| (row, i, m)))
        };
        let with = |metric: &str| of_it().find(|(_, _, measure)| measure.metric == metric);
        let chosen = with("eval/episodic_return").or_else(|| with("charts/episodic_return"));
        let Some((row, index, measure)) = chosen.or_else(|| of_it().next()) else { continue };
        let args = &row.entry.args;
        let flags = if args.is_empty() { String::new() } else { format!(" `{}`", args.join(" ")) };
        table += &format!(
            "| [{}](algorithms/{algorithm}/src/main.rs){flags} | {} | {} | {} | {} | {} |\n",
            title(algorithm)?,
            row.entry.env_id,
            thousands(row.entry.steps),
            row.result(index),
            reference(measure),
            row.seconds(),
        );
    }
    table += &format!(
        "\nReturn: mean ± standard deviation over seeds, of the evaluation after training or, where there is \
         none, of the training return. Required: what the learning test demands of the median. Seconds: training time of one seed, one thread. [{link}]({link}) has all results, their \
         sources and curves.\n"
    );
    Ok(format!("{}{table}{}", &text[..start + first.len()], &text[end..]))
}

/// What the algorithm's file calls itself in its first line, up to a colon.
fn title(algorithm: &str) -> Result<String> {
    let path = jobs::root().join("algorithms").join(algorithm).join("src/main.rs");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let heading = text.lines().next().and_then(|line| line.strip_prefix("//! # "));
    let title = heading.and_then(|heading| heading.split(": ").next()).unwrap_or(algorithm);
    Ok(title.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000_000), "1,000,000");
        assert_eq!([decimals(9583.2), decimals(-146.3), decimals(-8.1), decimals(0.74)], [0, 1, 2, 3]);
    }

    #[test]
    fn algorithms_have_titles() {
        assert_eq!(title("ppo").unwrap(), "Proximal policy optimisation (PPO), discrete actions");
        assert_eq!(title("policy_iteration").unwrap(), "Policy iteration");
    }
}
