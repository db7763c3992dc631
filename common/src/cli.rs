//! The command line: every hyper-parameter is a documented field, `--config FILE.toml` gives any
//! of them from a file, and bad input ends with one line and exit code 2.

use crate::nn::with_threads;
use anyhow::Context;
use clap::{Arg, ArgAction, Args, Command, Parser, error::ErrorKind};
use envs::{InvalidInput, Result, invalid};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Flags that every algorithm has.
#[derive(Args, Serialize, Debug, Clone)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Environment: an id of Gymnasium's, or gym:ID to run Python's own
    #[arg(long)]
    pub env_id: String,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Environment steps to train for
    #[arg(long, value_parser = positive)]
    pub total_timesteps: usize,
    /// Name of the experiment [default: the algorithm]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp_name: Option<String>,
    /// Directory of results [default: runs/{env_id}__{exp_name}__{seed}__{time}]
    #[arg(long)]
    #[serde(skip)]
    pub run_dir: Option<PathBuf>,
    /// Compute threads
    #[arg(long, default_value_t = 1, value_parser = positive)]
    pub threads: usize,
    /// Where networks are computed: cpu, cuda or metal (the last two need a build with them)
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda", "metal"])]
    pub device: String,
    /// Episodes of the evaluation at the end
    #[arg(long, default_value_t = 100, value_parser = positive)]
    pub eval_episodes: usize,
    /// Write the trained model to model.safetensors
    #[arg(long, default_value_t = true)]
    pub save_model: bool,
    /// Film an episode of the trained agent into agent.gif
    #[arg(long)]
    pub capture_video: bool,
    /// Environment steps between checkpoints; 0 writes one only when the run is interrupted
    #[arg(long, default_value_t = 0)]
    pub checkpoint_every: usize,
    /// Go on from the checkpoint in this run directory, with its configuration
    #[arg(long, value_name = "RUN_DIR")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// Evaluate the model in this run directory, with its configuration; nothing is trained
    #[arg(long, value_name = "RUN_DIR", conflicts_with = "resume")]
    #[serde(skip)]
    pub eval_only: Option<PathBuf>,
    /// Seconds after which a step of a gym: environment counts as hung
    #[arg(long, default_value_t = 60, value_parser = positive)]
    pub env_timeout: usize,
    /// Read flags from a TOML file (keys as in config.toml); later flags win
    #[arg(long, value_name = "FILE.toml")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

impl RunArgs {
    /// The device that `--device` names.
    ///
    /// # Errors
    /// The program was built without it, or the machine has none.
    pub fn device(&self) -> Result<candle_core::Device> {
        let device = match self.device.as_str() {
            "cuda" => candle_core::Device::new_cuda(0),
            "metal" => candle_core::Device::new_metal(0),
            _ => return Ok(candle_core::Device::Cpu),
        };
        device.or_else(|_| {
            let name = &self.device;
            invalid(format!(
                "--device {name}: this build or machine has none; build with --features common/{name}, or use --device cpu"
            ))
        })
    }
}

/// Parses the command line, runs `train`, and turns an error into one line on standard error:
/// exit code 2 for input that cannot be accepted, 1 for everything else.
pub fn main<A: Parser + Send>(train: fn(A) -> Result<()>) -> ExitCode {
    limit_thread_pools();
    let run = |(args, threads)| with_threads(threads, || train(args))?;
    match parse(std::env::args_os()).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(report(&error)),
    }
}

/// Prints `error` as one line on standard error; returns the exit code that it ends the program
/// with.
pub(crate) fn report(error: &anyhow::Error) -> u8 {
    // Help and version are "errors" of clap's that belong on standard output.
    if let Some(clap) = error.downcast_ref::<clap::Error>() {
        clap.exit();
    }
    if let Some(interrupted) = error.downcast_ref::<crate::run::Interrupted>() {
        eprintln!("{interrupted}");
        return 130;
    }
    eprintln!("error: {}", one_line(&format!("{error:#}")));
    if error.is::<InvalidInput>() { 2 } else { 1 }
}

/// Keeps candle's own thread pools to one thread. Element-wise operations run on all cores otherwise,
/// and on small networks their workers mostly spin: several times the work for the same result.
/// `--threads` is for what an algorithm runs side by side, such as two critics.
fn limit_thread_pools() {
    // Candle reads these when it first needs a pool.
    for variable in ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"] {
        // SAFETY: only `main` calls this, before it has started another thread.
        unsafe { std::env::set_var(variable, "1") };
    }
}

/// Parses `argv`. Flags of `--config` files take the place of the `--config`, so that the last one
/// to name a flag wins; `--resume` and `--eval-only` read the run's own configuration first.
///
/// # Errors
/// [`InvalidInput`] for everything a user can get wrong; `clap::Error` for `--help`.
pub fn parse_from<A: Parser>(argv: impl IntoIterator<Item = OsString>) -> Result<A> {
    Ok(parse(argv)?.0)
}

/// [`parse_from`], and the value of `--threads`.
fn parse<A: Parser>(argv: impl IntoIterator<Item = OsString>) -> Result<(A, usize)> {
    let command = configure(A::command());
    let argv = expand_configs(&command, argv)?;
    let parse = || -> std::result::Result<(A, usize), clap::Error> {
        let mut matches = command.clone().try_get_matches_from(argv)?;
        let threads = matches.try_get_one("threads").ok().flatten().copied().unwrap_or(1);
        Ok((A::from_arg_matches_mut(&mut matches)?, threads))
    };
    parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => anyhow::Error::new(error),
        _ => anyhow::Error::new(InvalidInput(brief(&error))),
    })
}

/// Lets the last of a repeated flag win and a boolean flag take `true` or `false`.
fn configure(command: Command) -> Command {
    command.args_override_self(true).mut_args(|arg: Arg| {
        // A default that an algorithm gives to a shared flag makes it optional.
        let optional = !arg.get_default_values().is_empty();
        let arg = if optional { arg.required(false) } else { arg };
        let is_bool = arg.get_value_parser().type_id() == clap::value_parser!(bool).type_id();
        if !is_bool || arg.is_positional() {
            // So that `--gamma -1` is refused as a value and not as an unknown flag.
            return arg.allow_negative_numbers(true);
        }
        let arg = match arg.get_default_values() {
            [] => arg.default_value("false"),
            _ => arg,
        };
        arg.action(ArgAction::Set).num_args(0..=1).default_missing_value("true").value_name("BOOL")
    })
}

fn expand_configs(command: &Command, argv: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>> {
    let mut argv = argv.into_iter();
    let mut flags: Vec<OsString> = Vec::new();
    let mut from_run: Vec<OsString> = Vec::new();
    let program = argv.next();
    while let Some(flag) = argv.next() {
        let text = flag.to_string_lossy().into_owned();
        let (name, inline) = match text.split_once('=') {
            Some((name, value)) => (name.to_string(), Some(OsString::from(value))),
            None => (text, None),
        };
        match name.as_str() {
            "--config" => {
                let file = inline.or_else(|| argv.next());
                let Some(file) = file else { return invalid("--config: a file is needed") };
                flags.extend(read_config(command, Path::new(&file), "--config")?);
            }
            "--resume" | "--eval-only" => {
                let dir = inline.or_else(|| argv.next());
                let Some(dir) = dir else { return invalid(format!("{name}: a run directory is needed")) };
                from_run = read_config(command, &Path::new(&dir).join("config.toml"), &name)?;
                flags.extend([name.into(), dir]);
            }
            _ => flags.push(flag),
        }
    }
    Ok(program.into_iter().chain(from_run).chain(flags).collect())
}

fn read_config(command: &Command, path: &Path, flag: &str) -> Result<Vec<OsString>> {
    let shown = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return invalid(format!("{flag} {shown}: {error}")),
    };
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => return invalid(format!("{flag} {shown}: {}", one_line(&error.to_string()))),
    };
    let known: Vec<&str> = command.get_arguments().filter_map(Arg::get_long).collect();
    let mut flags = Vec::new();
    for (key, value) in table {
        let long = key.replace('_', "-");
        if !known.contains(&long.as_str()) || long == "config" {
            let near = known.iter().max_by(|a, b| similarity(&long, a).total_cmp(&similarity(&long, b)));
            let near = near.map_or(String::new(), |near| format!("; similar: {}", near.replace('-', "_")));
            return invalid(format!("{flag} {shown}: unknown key {key}{near}"));
        }
        let show = |value: &toml::Value| match value {
            toml::Value::String(text) => Some(text.clone()),
            toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => {
                Some(value.to_string())
            }
            _ => None,
        };
        let text = match &value {
            toml::Value::Array(items) => {
                items.iter().map(show).collect::<Option<Vec<_>>>().map(|v| v.join(","))
            }
            value => show(value),
        };
        let Some(text) = text else {
            return invalid(format!(
                "{flag} {shown}: {key} = {value}: a string, number or boolean is needed"
            ));
        };
        flags.push(format!("--{long}={text}").into());
    }
    Ok(flags)
}

fn similarity(a: &str, b: &str) -> f64 {
    // Bigrams in common, enough to find a misspelt flag (clap keeps its own measure to itself).
    let bigrams = |s: &str| s.as_bytes().windows(2).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (a, b) = (bigrams(a), bigrams(b));
    let common = a.iter().filter(|pair| b.contains(pair)).count();
    2.0 * common as f64 / (a.len() + b.len()).max(1) as f64
}

/// clap's message on one line, without its usage and its pointer to `--help`.
fn brief(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or(&text);
    let text = text.split("\n\nFor more information").next().unwrap_or(text);
    one_line(text.trim_start_matches("error: "))
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// The effective configuration as TOML that `--config` reads back.
pub fn to_toml<A: Serialize>(args: &A) -> Result<String> {
    toml::to_string(args).context("the configuration cannot be written as TOML")
}

/// Values of flags that have a fixed range, with errors that say it.
fn checked<T: std::str::FromStr>(text: &str, accept: impl Fn(&T) -> bool, wanted: &str) -> Result<T, String> {
    match text.parse() {
        Ok(value) if accept(&value) => Ok(value),
        _ => Err(format!("{wanted} is needed")),
    }
}

/// Value parser: an integer of at least 1. `1e6` and `1_000_000` are understood.
pub fn positive(text: &str) -> Result<usize, String> {
    let plain = text.replace('_', "");
    if let Ok(value) = plain.parse::<f64>()
        && plain.contains(['e', 'E'])
        && value >= 1.0
        && value.fract() == 0.0
        && value < 9e15
    {
        return Ok(value as usize);
    }
    checked(&plain, |value: &usize| *value >= 1, "an integer of at least 1")
}

/// Value parser: a number in [0, 1].
pub fn unit_interval(text: &str) -> Result<f64, String> {
    checked(text, |value: &f64| (0.0..=1.0).contains(value), "a number from 0 to 1")
}

/// Value parser: a finite number of at least 0.
pub fn non_negative(text: &str) -> Result<f64, String> {
    checked(text, |value: &f64| *value >= 0.0 && value.is_finite(), "a finite number of at least 0")
}

/// Value parser: a finite number above 0.
pub fn above_zero(text: &str) -> Result<f64, String> {
    checked(text, |value: &f64| *value > 0.0 && value.is_finite(), "a finite number above 0")
}

/// Value parser: a finite number.
pub fn finite(text: &str) -> Result<f64, String> {
    checked(text, |value: &f64| value.is_finite(), "a finite number")
}

/// Written beside results so that they can be read back; see [`crate::run`].
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Mean return.
    pub mean: f64,
    /// Standard deviation of the returns.
    pub std: f64,
    /// Number of episodes.
    pub episodes: usize,
}
