//! Runs every algorithm with several seeds, sets the results beside published ones, and tells
//! whether a change made anything worse:
//!
//! ```sh
//! cargo run -p regression -- run                      # the tier `test`, five seeds
//! cargo run -p regression -- report                   # results/README.md, curves, README.md
//! cargo run -p regression -- compare OLD/results results
//! cargo run -p regression -- figures                  # the pictures of tests/figures.toml
//! cargo run -p regression -- speed --peers            # beside other libraries; results/speed.md
//! ```

mod compare;
mod curves;
mod digest;
mod figures;
mod jobs;
mod report;
mod result;
mod runner;
mod statistics;

use clap::{Parser, Subcommand};
use common::cli;
use regression::speed::{SpeedArgs, speed};
use std::process::ExitCode;

/// Benchmarks of all algorithms: run them, report, compare; and speed.
#[derive(Parser)]
#[command(name = "regression", arg_required_else_help = false)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train algorithms with several seeds; goes on where it was stopped
    Run(runner::RunnerArgs),
    /// Write tables, curves and plots from the results
    Report(report::ReportArgs),
    /// Tell whether results are worse than older ones; exit code 1 if any is
    Compare(compare::CompareArgs),
    /// Draw the pictures that tests/figures.toml describes; trains what they lack
    Figures(figures::FiguresArgs),
    /// Measure speed beside other libraries and write results/speed.md
    Speed(SpeedArgs),
}

fn main() -> ExitCode {
    cli::main(|args: Args| match args.command {
        Command::Run(args) => runner::run(args),
        Command::Report(args) => report::report(args),
        Command::Compare(args) => compare::compare(args),
        Command::Figures(args) => figures::figures(args),
        Command::Speed(args) => speed(args),
    })
}
