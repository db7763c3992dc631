//! The benchmark runner: `cargo run -p regression -- speed` measures speed.

use clap::{Parser, Subcommand};
use common::envs::Result;
use regression::speed::{SpeedArgs, speed};
use std::process::ExitCode;

/// Measures PlainRL
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure speed beside other libraries and write results/speed.md
    Speed(SpeedArgs),
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Speed(args) => speed(args),
    }
}

fn main() -> ExitCode {
    common::cli::main(run)
}
