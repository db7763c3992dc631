//! Writes what the results show: the tables of `results/README.md`, a page for each algorithm, a
//! plot and a CSV file of each learning curve, and the short table in the project's README. The same
//! results always give the same bytes.

use crate::curves;
use crate::digest::source_digest;
use crate::figures::{Picture, pictures};
use crate::jobs::{self, Entry, Measure, Tier};
use crate::result::{RunResult, read_all, round};
use crate::runner::default_results;
use crate::statistics::{mean, variance};
use anyhow::{Context, Result};
use common::envs::invalid;
use common::plot::learning_curves;
use common::write_atomically;
use regression::learning::median;
use regression::paths::root;
use regression::thresholds::{Direction, FAMILIES, Reference};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Points of a learning curve.
const POINTS: usize = 200;

/// Episodes of most evaluations: the default of `--eval-episodes`.
const EPISODES: usize = 100;

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
        (None, None) => Some(root().join("README.md")),
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
    write_pages(&results, &rows)?;
    write_atomically(&results.join("README.md"), overview(&rows)?.as_bytes())?;
    if let Some((text, path)) = readme {
        write_atomically(&path, text.as_bytes())?;
    }
    // Not in the report, which is a function of the results.
    let mut older = 0;
    for row in &rows {
        older += usize::from(row.is_of_older_sources()?);
    }
    if older > 0 {
        let all = rows.len();
        eprintln!(
            "of older sources: {older} of {all} entries; `regression run`, with `--tier benchmark` too, renews them"
        );
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
        let of_return = entry.measures.iter().find(|measure| measure.is_return());
        let reference = of_return.and_then(|measure| measure.reference.as_ref());
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
    fn is_of_older_sources(&self) -> Result<bool> {
        let digest = source_digest(&root(), &self.entry.algorithm, &self.entry.env_id)?;
        Ok(self.seeds.iter().any(|seed| seed.source_digest != digest))
    }

    /// Episodes of each evaluation; the seeds have the same settings.
    fn episodes(&self) -> usize {
        self.seeds[0].eval.episodes
    }

    /// Curves are of the episodic return: there is none where nothing that is measured is a return.
    fn has_curve(&self) -> bool {
        self.entry.measures.iter().any(Measure::is_return)
            && self.seeds.iter().any(|seed| !seed.curve.steps.is_empty())
    }

    /// Of the measure with this index, a value a seed.
    fn values(&self, index: usize) -> Vec<f64> {
        self.seeds.iter().filter_map(|seed| Some(seed.values.get(index)?.value)).collect()
    }

    /// `mean ± standard deviation` of the measure with this index; one seed has no deviation.
    fn result(&self, index: usize) -> String {
        let values = self.values(index);
        let decimals = decimals(mean(&values)).max(self.entry.measures[index].decimals());
        let mut text = format!("{:.decimals$}", mean(&values));
        if values.len() > 1 {
            text += &format!(" ± {:.decimals$}", variance(&values).sqrt());
        }
        text
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

impl Measure {
    /// Decimals by which one sees whether a number that is to be met is met.
    fn decimals(&self) -> usize {
        if self.tolerance > 0.0 { (-self.tolerance.log10()).ceil().max(0.0) as usize } else { 0 }
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

/// What a gate demands of the median.
fn reference(measure: &Measure) -> String {
    let Some(reference) = &measure.reference else { return "–".into() };
    match measure.direction {
        Direction::Max => format!("≥ {}", reference.value),
        Direction::Min => format!("≤ {}", reference.value),
        Direction::Equal if measure.tolerance == 0.0 => format!("= {}", reference.value),
        Direction::Equal => format!("= {} ± {}", reference.value, measure.tolerance),
    }
}

/// What a measure is, in brackets; nothing for what most measures are.
fn other_than_evaluation(row: &Row, measure: &Measure) -> String {
    match (measure.metric.as_str(), row.episodes()) {
        ("eval/episodic_return", EPISODES) => String::new(),
        ("eval/episodic_return", episodes) => format!(" ({} episodes)", thousands(episodes)),
        _ => format!(" ({})", describe(row, measure)),
    }
}

/// What a measure is, in words.
fn describe(row: &Row, measure: &Measure) -> String {
    match (measure.metric.as_str(), measure.last) {
        _ if !measure.what.is_empty() => measure.what.clone(),
        ("eval/episodic_return", 1) if row.episodes() == EPISODES => "evaluation".into(),
        ("eval/episodic_return", 1) => format!("evaluation, {} episodes", thousands(row.episodes())),
        ("charts/episodic_return", 1) => "return".into(),
        ("charts/episodic_return", last) => format!("training, last {last} episodes"),
        (metric, 1) => format!("`{metric}`"),
        (metric, last) => format!("`{metric}`, last {last}"),
    }
}

/// An algorithm and its rows.
type OfAlgorithm<'a> = (&'a str, Vec<&'a Row>);

/// The rows of each family that has any, algorithm by algorithm: the tests' rows, then the others.
fn by_family(rows: &[Row]) -> Vec<(&'static str, Vec<OfAlgorithm<'_>>)> {
    let mut families = Vec::new();
    for family in FAMILIES {
        let mut algorithms: Vec<OfAlgorithm> = Vec::new();
        for row in rows.iter().filter(|row| row.entry.family == family) {
            match algorithms.iter_mut().find(|(name, _)| *name == row.entry.algorithm) {
                Some((_, of_it)) => of_it.push(row),
                None => algorithms.push((&row.entry.algorithm, vec![row])),
            }
        }
        if !algorithms.is_empty() {
            families.push((family, algorithms));
        }
    }
    families
}

/// The environment with the name of what is special about the training.
fn environment(entry: &Entry) -> String {
    let Entry { env_id, variant, .. } = entry;
    if variant.is_empty() { env_id.clone() } else { format!("{env_id} ({variant})") }
}

/// What the tables' last columns are.
const SECONDS: &str = "Seconds: training time of one seed, on one thread (`a3c`, `async_q`, `d4pg`, `es`, `gorila`, \
                       `impala`: of all their workers' threads), while every core trains a run. Not all runs are of the \
                       same sources, nor was the machine always otherwise idle: what compares speed is \
                       `regression speed`.";

/// `results/README.md`: a table for each family.
fn overview(rows: &[Row]) -> Result<String> {
    let cpus: BTreeSet<&str> = rows.iter().flat_map(|row| &row.seeds).map(|seed| seed.cpu.as_str()).collect();
    let cpus: Vec<&str> = cpus.into_iter().collect();
    let mut page = format!(
        "# Results\n\n\
         Written by `cargo run -p regression -- report` from the files in [runs](runs), one a seed, which \
         `cargo run -p regression -- run` makes. Each algorithm has a page with its curves, the sources of what it \
         is compared with, its flags and its deviations from the paper; [figures](figures/README.md) show more.\n\n\
         Result: mean ± standard deviation over seeds of the evaluation after training (mean return of \
         {EPISODES} episodes unless it says otherwise) or, where it says so, of another measure, such as the training return, exploration included, \
         over the last episodes (in a short run of long episodes, most of it). Compared with: what the learning \
         test demands of the median (≥, ≤, =), which a mean may miss where the median does not, or a published \
         result. {SECONDS} Measured on: {}.\n",
        cpus.join("; ")
    );
    for (family, algorithms) in by_family(rows) {
        page += &format!(
            "\n## {family}\n\n\
             | algorithm | environment | steps | result | seeds | compared with | seconds | steps/s |\n\
             |---|---|---:|---:|---:|---:|---:|---:|\n"
        );
        for (algorithm, rows) in algorithms {
            let mut name = format!("[{}]({algorithm}.md)", title(algorithm)?);
            for row in rows {
                for (i, measure) in row.entry.measures.iter().enumerate() {
                    let what = other_than_evaluation(row, measure);
                    page += &format!(
                        "| {name} | {} | {} | {}{what} | {} | {} | {} | {} |\n",
                        environment(&row.entry),
                        thousands(row.entry.steps),
                        row.result(i),
                        row.seeds.len(),
                        compared(row.entry.tier, measure),
                        row.seconds(),
                        row.steps_per_second(),
                    );
                    name = String::new(); // once an algorithm
                }
            }
        }
    }
    Ok(page)
}

/// What a measure is compared with, in a table.
fn compared(tier: Tier, measure: &Measure) -> String {
    match (tier, &measure.reference) {
        (Tier::Benchmark, Some(published)) => format!("{}: {}", published.label, number(published)),
        _ => reference(measure),
    }
}

/// A published number with its spread.
fn number(reference: &Reference) -> String {
    reference.std.map_or(reference.value.to_string(), |std| format!("{} ± {std}", reference.value))
}

/// The first line of the page of an algorithm, by which an old one is known.
const WRITTEN: &str = "<!-- written by `cargo run -p regression -- report` -->\n";

/// `results/NAME.md`.
fn page(algorithm: &str, rows: &[&Row], pictures: &[Picture]) -> Result<String> {
    let header = header(algorithm)?;
    let mut page = format!(
        "{WRITTEN}# {}\n\n[algorithms/{algorithm}/src/main.rs](../algorithms/{algorithm}/src/main.rs) · \
         [all results](README.md)\n",
        title(algorithm)?
    );
    if let Some(paper) = &header.paper {
        page += &format!("\n{paper}\n");
    }
    if let Some(deviations) = &header.deviations {
        page += &format!("\n## Deviations from the paper\n\n{deviations}\n");
    }
    for (tier, title, columns) in [
        (Tier::Test, "What the learning test demands", "| median | required | worst | required | "),
        (Tier::Benchmark, "Beside published results", "| result | published | "),
    ] {
        let rows: Vec<&&Row> = rows.iter().filter(|row| row.entry.tier == tier).collect();
        if rows.is_empty() {
            continue;
        }
        let head = format!("| environment | steps | measure {columns}seeds | seconds | steps/s |\n");
        let aligned = head.matches('|').count() - 4;
        page += &format!("\n## {title}\n\n{head}|---|---:|---|{}\n", "---:|".repeat(aligned));
        let mut notes: Vec<String> = Vec::new();
        for row in &rows {
            for (i, measure) in row.entry.measures.iter().enumerate() {
                page += &line(row, i, measure, &mut notes);
            }
        }
        page += "\n";
        for (i, note) in notes.iter().enumerate() {
            page += &format!("{}. {note}\n", i + 1);
        }
        page += "\n```sh\n";
        for Row { entry: Entry { env_id, steps, args, config, .. }, .. } in &rows {
            let flags = match config {
                Some(file) => format!("--config {file}"),
                None => {
                    [&[format!("--env-id {env_id} --total-timesteps {steps}")], &args[..]].concat().join(" ")
                }
            };
            page += &format!("cargo run -p {algorithm} -- {flags}\n");
        }
        page += "```\n";
        let curves: Vec<&&&Row> = rows.iter().filter(|row| row.has_curve()).collect();
        if !curves.is_empty() {
            page += "\nMean over seeds with the 95 % bootstrap interval of that mean, of a single seed with the 10 to \
                     90 % quantiles of its episodes; the numbers are in files of the same name ending in \
                     `.csv`.\n\n";
        }
        for row in curves {
            let alt = format!("{} on {}: {}", algorithm, environment(&row.entry), row.result(0));
            let (tier, name) = (tier.name(), row.entry.name());
            page += &format!("<img src=\"curves/{tier}/{name}.png\" width=\"420\" alt=\"{alt}\">\n");
        }
    }
    let of_it: Vec<&Picture> =
        pictures.iter().filter(|picture| picture.programs.contains(algorithm)).collect();
    if !of_it.is_empty() {
        page += "\n## Figures\n\nWhat they show is said [beside all figures](figures/README.md).\n\n";
    }
    for Picture { name, title, .. } in of_it {
        page += &format!("<img src=\"figures/{name}.png\" width=\"420\" alt=\"{title}\">\n");
    }
    Ok(page)
}

/// A line of an algorithm's table; a note that is new is added to `notes`.
fn line(row: &Row, index: usize, measure: &Measure, notes: &mut Vec<String>) -> String {
    let mut note = |text: String| {
        let number = notes.iter().position(|known| *known == text).unwrap_or_else(|| {
            notes.push(text);
            notes.len() - 1
        });
        format!(" [{}]", number + 1)
    };
    let values: Vec<f64> = row.values(index);
    let numbers = match row.entry.tier {
        Tier::Test => {
            let of = measure.reference.as_ref().map_or(String::new(), |r| note(r.source.clone()));
            let floor = measure.floor.map_or("–".into(), |floor| match measure.direction {
                Direction::Max => format!("≥ {floor}"),
                Direction::Min => format!("≤ {floor}"),
                Direction::Equal => format!("to within {floor}"),
            });
            let reason = if measure.floor_reason.is_empty() {
                String::new()
            } else {
                note(measure.floor_reason.clone())
            };
            let (median, worst) = (median(&values), worst(&values, measure));
            let decimals = decimals(median).max(measure.decimals());
            format!("{median:.decimals$} | {}{of} | {worst:.decimals$} | {floor}{reason}", reference(measure))
        }
        Tier::Benchmark | Tier::Figure => {
            let published = measure.reference.as_ref().map_or("–".into(), |published| {
                let more =
                    if published.note.is_empty() { String::new() } else { format!(" ({})", published.note) };
                format!("{}{}", number(published), note(format!("{}{more}", published.source)))
            });
            format!("{} | {published}", row.result(index))
        }
    };
    format!(
        "| {} | {} | {} | {numbers} | {} | {} | {} |\n",
        environment(&row.entry),
        thousands(row.entry.steps),
        describe(row, measure),
        row.seeds.len(),
        row.seconds(),
        row.steps_per_second(),
    )
}

/// The value that is furthest from what is wanted.
fn worst(values: &[f64], measure: &Measure) -> f64 {
    let target = measure.reference.as_ref().map_or(0.0, |reference| reference.value);
    let badness = |value: f64| match measure.direction {
        Direction::Max => -value,
        Direction::Min => value,
        Direction::Equal => (value - target).abs(),
    };
    values.iter().copied().max_by(|a, b| badness(*a).total_cmp(&badness(*b))).unwrap_or(f64::NAN)
}

/// Writes a page for each algorithm and removes those of algorithms that have no results any more.
fn write_pages(results: &Path, rows: &[Row]) -> Result<()> {
    let pictures = pictures(results)?;
    let mut written = BTreeSet::new();
    for (algorithm, rows) in by_family(rows).into_iter().flat_map(|(_, algorithms)| algorithms) {
        let file = format!("{algorithm}.md");
        write_atomically(&results.join(&file), page(algorithm, &rows, &pictures)?.as_bytes())?;
        written.insert(file);
    }
    for item in fs::read_dir(results)? {
        let path = item?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ours = || fs::read_to_string(&path).is_ok_and(|text| text.starts_with(WRITTEN));
        if name.ends_with(".md") && !written.contains(&name) && ours() {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// The text of `readme` with the table renewed: one line an algorithm, by family.
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
    let link = |file: String| folder.join(file).to_string_lossy().replace('\\', "/");

    let mut table = "| algorithm | environment | steps | result | required | seconds |\n\
                     |---|---|---:|---:|---:|---:|\n"
        .to_string();
    for (family, algorithms) in by_family(rows) {
        table += &format!("| **{family}** | | | | | |\n");
        for (algorithm, rows) in algorithms {
            // The algorithm's first evaluation, or else what is nearest to it.
            let of_it = || {
                let rows = rows.iter().filter(|row| row.entry.tier == Tier::Test);
                rows.flat_map(|row| row.entry.measures.iter().enumerate().map(move |(i, m)| (row, i, m)))
            };
            let with = |metric: &str| of_it().find(|(_, _, measure)| measure.metric == metric);
            let chosen = with("eval/episodic_return").or_else(|| with("charts/episodic_return"));
            let Some((row, index, measure)) = chosen.or_else(|| of_it().next()) else { continue };
            let what = other_than_evaluation(row, measure);
            table += &format!(
                "| [{}](algorithms/{algorithm}/src/main.rs) | {} | {} | [{}]({}){what} | {} | {} |\n",
                title(algorithm)?,
                environment(&row.entry),
                thousands(row.entry.steps),
                row.result(index),
                link(format!("{algorithm}.md")),
                reference(measure),
                row.seconds(),
            );
        }
    }
    let all = link("README.md".into());
    table += &format!(
        "\nResult: mean ± standard deviation over seeds, of the evaluation after training or, where it says so, \
         of another measure; it leads to the algorithm's page with all of its results, curves and deviations \
         from the paper. Required: what the learning test demands of the median, which a mean may miss where the \
         median does not. {SECONDS} [{all}]({all}) has everything on one page.\n"
    );
    Ok(format!("{}{table}{}", &text[..start + first.len()], &text[end..]))
}

/// What the first lines of an algorithm's file say.
#[derive(Debug, Default, PartialEq)]
struct Header {
    /// Its title, up to a colon.
    title: Option<String>,
    /// The paragraph after that.
    paper: Option<String>,
    /// What is said from the word "Deviations" on, up to how it is run.
    deviations: Option<String>,
}

fn header(algorithm: &str) -> Result<Header> {
    let path = root().join("algorithms").join(algorithm).join("src/main.rs");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(Header::parse(&text))
}

impl Header {
    fn parse(text: &str) -> Self {
        let comment = |line: &str| -> Option<String> {
            let line = line.strip_prefix("//!")?;
            Some(line.strip_prefix(' ').unwrap_or(line).to_string())
        };
        let lines: Vec<String> = text.lines().map_while(comment).collect();
        let heading = lines.first().and_then(|line| line.strip_prefix("# "));
        let joined = |lines: &[String]| {
            let text = lines.join("\n").trim().to_string();
            (!text.is_empty()).then_some(text)
        };
        let end_of_paper = lines.iter().skip(2).position(String::is_empty).map_or(lines.len(), |i| i + 2);
        let bare = |line: &str| line.trim_start_matches(['#', '*', ' ']).to_string();
        let start = lines.iter().position(|line| bare(line).starts_with("Deviation"));
        let deviations = start.and_then(|start| {
            // A heading of the file's own is replaced by the page's.
            let start = start + usize::from(lines[start].starts_with('#'));
            let is_end = |line: &String| line.starts_with('#') || line.starts_with("Run `cargo");
            let end = lines[start..].iter().position(is_end).map_or(lines.len(), |i| start + i);
            joined(&lines[start..end])
        });
        Self {
            title: heading.map(|heading| heading.split(": ").next().unwrap_or(heading).to_string()),
            paper: heading.and_then(|_| joined(lines.get(2..end_of_paper)?)),
            deviations,
        }
    }
}

/// What the algorithm's file calls itself, or the name of its package.
fn title(algorithm: &str) -> Result<String> {
    Ok(header(algorithm)?.title.unwrap_or_else(|| algorithm.to_string()))
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
    fn what_is_to_be_met_is_shown_as_closely_as_it_is_checked() {
        let car_rental = entry_of("policy_iteration", "CarRental-v0");
        assert_eq!(reference(&car_rental.measures[0]), "= 574.95 ± 0.01");
        let row = Row { entry: car_rental, seeds: Vec::new() };
        assert_eq!(row.entry.measures[0].decimals(), 2);
        assert_eq!(describe(&row, &row.entry.measures[0]), "value of the start");
        let exact = entry_of("q_learning", "FrozenLake-v1-deterministic").measures.remove(0);
        assert_eq!((reference(&exact).as_str(), exact.decimals()), ("= 1", 0));
    }

    fn entry_of(algorithm: &str, env_id: &str) -> Entry {
        let all = jobs::entries(Tier::Test).unwrap();
        all.into_iter().find(|entry| entry.algorithm == algorithm && entry.env_id == env_id).unwrap()
    }

    #[test]
    fn a_page_shows_the_figures_of_its_programs() {
        let of = |program: &str| Picture {
            name: format!("picture_of_{program}"),
            title: "A title".into(),
            programs: BTreeSet::from([program.to_string()]),
        };
        let page = page("dyna_q", &[], &[of("dyna_q"), of("ppo")]).unwrap();
        let picture = "<img src=\"figures/picture_of_dyna_q.png\" width=\"420\" alt=\"A title\">";
        assert!(page.contains(picture) && !page.contains("picture_of_ppo"), "{page}");
    }

    #[test]
    fn headers_are_read() {
        let header = Header::parse(
            "//! # Name (N): more\n//!\n//! Author (2000),\n//! arXiv.\n//!\n//! Text.\n//!\n//! Deviations from it: one;\n\
             //! two.\n//!\n//! And three.\n//!\n//! Run `cargo run -p n`.\n\nuse x;\n//! no\n",
        );
        assert_eq!(header.title.as_deref(), Some("Name (N)"));
        assert_eq!(header.paper.as_deref(), Some("Author (2000),\narXiv."));
        assert_eq!(header.deviations.as_deref(), Some("Deviations from it: one;\ntwo.\n\nAnd three."));
        let header =
            Header::parse("//! # N\n//!\n//! A.\n//!\n//! ## Deviations\n//! - one\n//! ## Use\n//! x");
        assert_eq!(header.deviations.as_deref(), Some("- one"));
        assert_eq!(Header::parse("use x;\n"), Header::default());
    }

    #[test]
    fn algorithms_have_titles() {
        assert_eq!(title("ppo").unwrap(), "Proximal policy optimisation (PPO), discrete actions");
        assert_eq!(title("policy_iteration").unwrap(), "Policy iteration");
    }
}
