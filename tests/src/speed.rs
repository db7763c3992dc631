//! Speed beside that of other libraries: `cargo run -p regression -- speed --peers`.
//!
//! A row is a fixed piece of work done by PlainRL and by its peers. After one warm-up each, they
//! take turns (A B A B …) until each has made its runs, so that a machine that slows down slows all
//! of them down; what counts is the ratio of the medians. Everything uses one thread unless the row
//! says otherwise.

mod networks;
mod peers;
mod process;
mod report;
mod rows;
mod training;
mod vectorised;

use crate::programs::{self, Programs};
use common::cli::positive;
use common::write_atomically;
use envs::{Result, invalid};
use networks::Library;
use peers::Python;
use rows::{Row, Subject, rows};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use training::{ALGORITHMS, build_stock_candle};

/// Flags of the speed measurement.
#[derive(clap::Args, Debug, Clone)]
pub struct SpeedArgs {
    /// Measure the Python libraries of tests/peers/requirements.txt as well, where installed
    #[arg(long)]
    pub peers: bool,
    /// Rows to measure, by name or by how their names begin [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub rows: Vec<String>,
    /// Runs of which the median is taken
    #[arg(long, default_value_t = 5, value_parser = positive)]
    pub runs: usize,
    /// Python interpreter of the peers [default: PLAINRL_PYTHON, which MuJoCo is found by too, or
    /// python3]
    #[arg(long, value_name = "PATH")]
    pub python: Option<OsString>,
    /// Folder of the algorithms' programs, which are built otherwise
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Where the table is written [default: results/speed.md, if all rows are measured with
    /// --peers]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What the rows are measured with.
struct Tools {
    /// Where `--peers` asked for them.
    python: Option<Python>,
    /// Where a row needs them.
    programs: Option<Programs>,
    /// The program that updates networks with stock candle, where a row needs it.
    stock_candle: Option<PathBuf>,
}

/// What one row showed.
struct Measured {
    row: Row,
    /// One for each of the row's subjects.
    samples: Vec<Sample>,
}

/// The results of a subject's runs, in the row's unit, or why there are none.
type Sample = std::result::Result<Vec<f64>, String>;

/// One measured run.
type Run<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// Measures, prints a table as it goes and writes it.
///
/// # Errors
/// Flags that cannot be followed, all found before anything is measured, and a table that cannot be
/// written. A subject that fails is part of the result.
pub fn speed(args: SpeedArgs) -> Result<()> {
    let rows = select(rows(), &args.rows)?;
    let output = match &args.output {
        Some(file) => Some(file.clone()),
        // A table without the peers would replace one with them.
        None if args.rows.is_empty() && args.peers => Some(crate::paths::root().join("results/speed.md")),
        None => None,
    };
    if let Some(file) = &output {
        check_writable(file)?;
    }
    if candle_core::utils::get_num_threads() != 1 {
        return invalid("RAYON_NUM_THREADS: stock candle is measured on one thread, 1 is needed");
    }
    let python = match args.peers {
        true => Some(Python::find(args.python.clone())?),
        false => None,
    };
    let any = |test: fn(&Subject) -> bool| rows.iter().any(|row| row.subjects.iter().any(test));
    let programs = match (&args.bin_dir, any(|subject| matches!(subject, Subject::Train(_)))) {
        (_, false) => None,
        (Some(dir), true) => Some(programs::in_folder(dir, ALGORITHMS)?),
        (None, true) => Some(programs::build(ALGORITHMS)?),
    };
    let stock_candle = match any(|subject| matches!(subject, Subject::Update(Library::StockCandle { .. }, _)))
    {
        true => Some(build_stock_candle()?),
        false => None,
    };
    let tools = Tools { python, programs, stock_candle };

    let machine = report::machine(tools.python.as_ref());
    for line in &machine {
        println!("{line}");
    }
    println!();
    let mut results = Vec::new();
    for row in rows {
        let measured = measure(row, &tools, args.runs);
        print!("{}", report::text(&measured));
        results.push(measured);
    }
    if let Some(file) = output {
        write_atomically(&file, report::markdown(&machine, args.runs, &results).as_bytes())?;
        println!("\nwritten: {}", file.display());
    }
    Ok(())
}

/// The rows that `--rows` names; all of them where it names none.
fn select(rows: Vec<Row>, names: &[String]) -> Result<Vec<Row>> {
    let known: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    if let Some(name) = names.iter().find(|name| !known.iter().any(|row| row.starts_with(name.as_str()))) {
        return invalid(format!("--rows {name}: unknown; known are {}", known.join(", ")));
    }
    let wanted = |row: &Row| names.is_empty() || names.iter().any(|name| row.name.starts_with(name.as_str()));
    Ok(rows.into_iter().filter(wanted).collect())
}

/// Fails where `file` could not be written at the end.
fn check_writable(file: &Path) -> Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let shown = file.display();
    if file.is_dir() {
        return invalid(format!("--output {shown}: a file is needed, this is a folder"));
    }
    match tempfile::tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(error) => invalid(format!("--output {shown}: cannot be written: {error}")),
    }
}

/// Lets the row's subjects take turns. One that fails is left out from there on.
fn measure(row: Row, tools: &Tools, runs: usize) -> Measured {
    let mut subjects: Vec<std::result::Result<Run, String>> = Vec::new();
    for subject in &row.subjects {
        subjects.push(subject.start(tools).map_err(|error| reason(&error)));
    }
    let mut values = vec![Vec::new(); subjects.len()];
    for turn in 0..=runs {
        for (subject, values) in subjects.iter_mut().zip(&mut values) {
            let Ok(run) = subject else { continue };
            match run() {
                Ok(_) if turn == 0 => {} // the warm-up
                Ok(value) => values.push(value),
                Err(error) => *subject = Err(reason(&error)),
            }
        }
    }
    let samples = subjects.into_iter().zip(values).map(|(subject, values)| subject.map(|_| values)).collect();
    Measured { row, samples }
}

/// An error as one line.
fn reason(error: &anyhow::Error) -> String {
    format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
