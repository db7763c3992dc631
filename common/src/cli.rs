//! The command line: every hyper-parameter is a documented field, `--config FILE.toml` gives any
//! of them from a file, and bad input ends with one line and exit code 2.

use crate::console::tell;
use crate::interrupt::{self, Interrupted};
use crate::nn::with_threads;
use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Parser, error::ErrorKind};
use envs::{InvalidInput, Result, gymnasium, invalid};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Flags that every algorithm has.
#[derive(Args, Serialize, Debug, Clone)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Environment: an id of Gymnasium's, or gym:ID to run Python's own
    #[arg(long)]
    pub env_id: String,
    /// Seed of everything random
    #[arg(long, default_value_t = 1, value_parser = integer(0, LARGEST))]
    pub seed: u64,
    /// Environment steps to train for
    #[arg(long, value_parser = positive)]
    pub total_timesteps: usize,
    /// Name of the experiment [default: the algorithm]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp_name: Option<String>,
    /// Directory of results [default: runs/{env_id}__{exp_name}__{seed}__{time}]
    #[arg(long, conflicts_with_all = ["resume", "eval_only"])]
    #[serde(skip)]
    pub run_dir: Option<PathBuf>,
    /// Compute threads, at most 256
    #[arg(long, default_value_t = 1, value_parser = threads)]
    pub threads: usize,
    /// Where networks are computed: cpu, cuda or metal (the last two need a build with them)
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda", "metal"])]
    pub device: String,
    /// Episodes of the evaluation at the end, at most 100000
    #[arg(long, default_value_t = 100, value_parser = eval_episodes)]
    pub eval_episodes: usize,
    /// Write the trained model to model.safetensors
    #[arg(long, default_value_t = true)]
    pub save_model: bool,
    /// Film an episode of the trained agent into agent.gif
    #[arg(long)]
    pub capture_video: bool,
    /// Environment steps between checkpoints; 0 writes one only when the run is interrupted
    /// [default: one before training and then every minute, less often where writing takes long]
    #[arg(long, value_parser = checkpoint_every)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<usize>,
    /// Go on from the checkpoint in this run directory, with its configuration; flags may change how
    /// long it is, how it is watched, and step sizes
    #[arg(long, value_name = "RUN_DIR")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// Evaluate the model in this run directory, with its configuration; nothing is trained
    #[arg(long, value_name = "RUN_DIR", conflicts_with = "resume")]
    #[serde(skip)]
    pub eval_only: Option<PathBuf>,
    /// Seconds after which a gym: environment that does not answer counts as hung [default:
    /// PLAINRL_ENV_TIMEOUT, or 60]
    #[arg(long, value_parser = integer(1, 1_000_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_timeout: Option<u64>,
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
        device.or_else(|error| {
            let name = &self.device;
            invalid(format!(
                "--device {name}: cannot be opened ({error}); build with --features common/{name}, or use --device cpu"
            ))
        })
    }
}

/// Parses the command line, runs `train`, and turns an error into one line on standard error:
/// exit code 2 for input that cannot be accepted, 130 after Ctrl-C, 1 for everything else.
///
/// Call it first in the program: it sets environment variables, which is sound only while there is
/// one thread.
pub fn main<A: Parser + Send>(train: fn(A) -> Result<()>) -> ExitCode {
    limit_thread_pools();
    match run(std::env::args_os(), train) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(report(&error)),
    }
}

/// What of the flags concerns the whole program.
struct Process {
    threads: usize,
    env_timeout: Option<Duration>,
}

// What is generic in this file is compiled again with every algorithm, so it holds as little as it can.

impl Process {
    fn of(matches: &ArgMatches) -> Self {
        // Not every program has these flags.
        let threads = matches.try_get_one("threads").ok().flatten().copied().unwrap_or(1);
        let seconds: Option<u64> = matches.try_get_one("env_timeout").ok().flatten().copied();
        Self { threads, env_timeout: seconds.map(Duration::from_secs) }
    }

    fn run(self, program: Box<dyn FnOnce() -> Result<()> + Send + '_>) -> Result<()> {
        if let Some(timeout) = self.env_timeout {
            gymnasium::set_timeout(timeout);
        }
        with_threads(self.threads, program)?
    }
}

fn run<A: Parser + Send>(argv: impl IntoIterator<Item = OsString>, train: fn(A) -> Result<()>) -> Result<()> {
    let (args, process) = parse(argv.into_iter().collect())?;
    process.run(Box::new(move || train(args)))
}

/// Prints `error` as one line on standard error; returns the exit code that it ends the program with.
pub(crate) fn report(error: &anyhow::Error) -> u8 {
    // Help and version are "errors" of clap's that belong on standard output.
    if let Some(clap) = error.downcast_ref::<clap::Error>() {
        clap.exit();
    }
    if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
        tell(interrupted);
        return interrupt::EXIT_CODE;
    }
    let text = format!("{error:#}");
    // With RUST_BACKTRACE=1 candle's errors end with a backtrace, which stays on its own lines.
    let message = text.find("\n   0: ").map_or(text.as_str(), |at| &text[..at]);
    tell(format_args!("error: {}{}", one_line(message), &text[message.len()..]));
    if error.is::<InvalidInput>() { 2 } else { 1 }
}

/// Keeps candle's own thread pools to one thread. Element-wise operations run on all cores otherwise,
/// and on small networks their workers mostly spin: several times the work for the same result.
/// `--threads` is for what an algorithm runs side by side, such as two critics.
fn limit_thread_pools() {
    // Candle reads these when it first needs a pool.
    for variable in ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"] {
        // SAFETY: only `main` calls this, which is called before another thread is started.
        unsafe { std::env::set_var(variable, "1") };
    }
}

/// Parses `argv`. Flags of `--config` files take the place of the `--config`, so that the last one
/// to name a flag wins; `--resume` and `--eval-only` read the run's own configuration first.
///
/// # Errors
/// [`InvalidInput`] for everything a user can get wrong; `clap::Error` for `--help`.
pub fn parse_from<A: Parser>(argv: impl IntoIterator<Item = OsString>) -> Result<A> {
    Ok(parse(argv.into_iter().collect())?.0)
}

/// [`parse_from`], and what concerns the program.
fn parse<A: Parser>(argv: Vec<OsString>) -> Result<(A, Process)> {
    let mut matches = matches_of(configure(A::command()), argv)?;
    let process = Process::of(&matches);
    Ok((A::from_arg_matches_mut(&mut matches).map_err(refused)?, process))
}

fn matches_of(command: Command, argv: Vec<OsString>) -> Result<ArgMatches> {
    let argv = expand_configs(&command, argv)?;
    command.try_get_matches_from(argv).map_err(refused)
}

fn refused(error: clap::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => anyhow::Error::new(error),
        _ => anyhow::Error::new(InvalidInput(brief(&error))),
    }
}

/// Lets the last of a repeated flag win and a boolean flag take `true` or `false`.
fn configure(command: Command) -> Command {
    command.args_override_self(true).mut_args(|arg: Arg| {
        // A default that an algorithm gives to a shared flag makes it optional.
        let optional = !arg.get_default_values().is_empty();
        let arg = if optional { arg.required(false) } else { arg };
        let is_bool = arg.get_value_parser().type_id() == clap::value_parser!(bool).type_id();
        if !is_bool || arg.is_positional() {
            // A list is given whole: a later one takes the place of an earlier one, and is not added to it.
            let is_list = arg.get_value_delimiter().is_some();
            let arg = if is_list { arg.action(ArgAction::Set) } else { arg };
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

fn expand_configs(command: &Command, argv: Vec<OsString>) -> Result<Vec<OsString>> {
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
    // Those that say where a configuration comes from are not part of one.
    let known = command.get_arguments().filter_map(Arg::get_long);
    let known: Vec<&str> = known.filter(|flag| !["config", "resume", "eval-only"].contains(flag)).collect();
    let mut flags = Vec::new();
    for (key, value) in table {
        let long = key.replace('_', "-");
        if !known.contains(&long.as_str()) {
            let similarity = |flag: &str| strsim::jaro_winkler(&long, flag);
            let near = known.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
            let near = near.map_or(String::new(), |near| format!("; similar: {}", near.replace('-', "_")));
            return invalid(format!("{flag} {shown}: unknown key {key}{near}"));
        }
        let show = |value: &toml::Value| match value {
            toml::Value::String(text) => Some(text.clone()),
            // 1e6 as 1000000, which integers understand as well.
            toml::Value::Float(number) => Some(number.to_string()),
            toml::Value::Integer(_) | toml::Value::Boolean(_) => Some(value.to_string()),
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
///
/// # Errors
/// A number that TOML cannot hold, which has integers up to 2⁶³ − 1.
pub fn to_toml(args: &dyn erased_serde::Serialize) -> Result<String> {
    let text = toml::to_string(args).context("the configuration cannot be written as TOML")?;
    match text.parse::<toml::Table>() {
        Ok(_) => Ok(text),
        Err(error) => {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count());
            let flag = text.lines().nth(line).unwrap_or_default();
            invalid(format!("{flag}: at most {LARGEST} can be kept in config.toml"))
        }
    }
}

/// Values of flags that have a fixed range, with errors that say it.
fn checked<T: std::str::FromStr>(text: &str, accept: impl Fn(&T) -> bool, wanted: &str) -> Result<T, String> {
    match text.parse() {
        Ok(value) if accept(&value) => Ok(value),
        _ => Err(format!("{wanted} is needed")),
    }
}

/// The largest integer of TOML.
const LARGEST: u64 = i64::MAX as u64;

/// Value parser: an integer from `low` to `high`. `1e6` and `1_000_000` are understood.
fn integer(low: u64, high: u64) -> impl Fn(&str) -> Result<u64, String> + Clone {
    move |text| {
        let plain = text.replace('_', "");
        let number = match plain.parse::<f64>() {
            // Below 2⁵³ every integer is exact.
            Ok(value)
                if plain.contains(['e', 'E']) && value.fract() == 0.0 && (0.0..9e15).contains(&value) =>
            {
                format!("{value}")
            }
            _ => plain,
        };
        let wanted = match high {
            LARGEST => format!("an integer of at least {low}"),
            _ => format!("an integer from {low} to {high}"),
        };
        checked(&number, |value: &u64| (low..=high).contains(value), &wanted)
    }
}

/// Value parser: an integer of at least 1. `1e6` and `1_000_000` are understood.
pub fn positive(text: &str) -> Result<usize, String> {
    Ok(integer(1, LARGEST)(text)? as usize)
}

/// Value parser of `--checkpoint-every`.
fn checkpoint_every(text: &str) -> Result<usize, String> {
    Ok(integer(0, LARGEST)(text)? as usize)
}

/// Value parser of `--threads`: each has a stack.
fn threads(text: &str) -> Result<usize, String> {
    Ok(integer(1, 256)(text)? as usize)
}

/// Value parser of `--eval-episodes`, whose environments and returns are kept in memory. The standard
/// error of so many episodes is a third of a percent of their spread.
fn eval_episodes(text: &str) -> Result<usize, String> {
    Ok(integer(1, 100_000)(text)? as usize)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser, Serialize)]
    struct Toy {
        #[command(flatten)]
        #[serde(flatten)]
        run: RunArgs,
        /// A number that has no parser of its own
        #[arg(long, default_value_t = 0)]
        capacity: u64,
        /// A list
        #[arg(long, value_delimiter = ',', default_value = "120,84")]
        sizes: Vec<usize>,
    }

    fn toy(flags: &[&str]) -> Result<Toy> {
        let all = ["toy", "--env-id=CartPole-v1", "--total-timesteps=100"].iter().chain(flags);
        parse_from(all.map(Into::into))
    }

    fn refusal<T>(result: Result<T>) -> String {
        let error = result.err().expect("refused");
        assert!(error.is::<InvalidInput>(), "{error:#}");
        error.to_string()
    }

    #[test]
    fn integers_are_read_in_every_usual_form() {
        for (text, value) in [("7", 7), ("1e6", 1_000_000), ("1_000", 1000), ("2.5E3", 2500)] {
            assert_eq!(positive(text), Ok(value), "{text}");
        }
        for text in ["0", "-1", "1.5", "0.5e0", "", "1e16", "nan", "9223372036854775808"] {
            assert_eq!(positive(text), Err("an integer of at least 1 is needed".to_string()), "{text}");
        }
    }

    #[test]
    fn numbers_of_a_file_are_read_in_every_usual_form() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my.toml");
        std::fs::write(&file, "total_timesteps = 1e6\ncheckpoint_every = \"1e5\"\n").unwrap();
        let run = toy(&["--config", &file.display().to_string()]).unwrap().run;
        assert_eq!((run.total_timesteps, run.checkpoint_every), (1_000_000, Some(100_000)));
        assert_eq!(toy(&["--checkpoint-every=0"]).unwrap().run.checkpoint_every, Some(0));
        let error = refusal(toy(&["--checkpoint-every=-1"]));
        assert!(error.ends_with("an integer of at least 0 is needed"), "{error}");
    }

    #[test]
    fn a_configuration_does_not_say_where_it_comes_from() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my.toml");
        for key in ["config", "resume", "eval_only"] {
            std::fs::write(&file, format!("{key} = \"runs/1\"\n")).unwrap();
            let error = refusal(toy(&["--config", &file.display().to_string()]));
            assert!(error.contains(&format!("unknown key {key}; similar: ")), "{error}");
        }
    }

    #[test]
    fn a_run_has_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), "").unwrap();
        for flag in ["--resume", "--eval-only"] {
            let error = refusal(toy(&[flag, &dir.path().display().to_string(), "--run-dir=other"]));
            assert!(error.contains("--run-dir") && error.contains(flag), "{error}");
        }
    }

    #[test]
    fn the_last_of_a_repeated_flag_wins() {
        assert_eq!(toy(&["--capacity=1", "--capacity=2"]).unwrap().capacity, 2);
        assert_eq!(toy(&[]).unwrap().sizes, [120, 84]);
        assert_eq!(toy(&["--sizes=1,2", "--sizes", "3,4,5"]).unwrap().sizes, [3, 4, 5]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my.toml");
        std::fs::write(&file, "sizes = [7, 8]\n").unwrap();
        let config = file.display().to_string();
        assert_eq!(toy(&["--config", &config]).unwrap().sizes, [7, 8]);
        assert_eq!(toy(&["--config", &config, "--sizes", "9"]).unwrap().sizes, [9]);
    }

    #[test]
    fn evaluations_beyond_all_memory_are_refused() {
        assert_eq!(toy(&["--eval-episodes=1e5"]).unwrap().run.eval_episodes, 100_000);
        for text in ["1e15", "100001", "0"] {
            let error = refusal(toy(&["--eval-episodes", text]));
            assert!(error.contains("--eval-episodes"), "{error}");
            assert!(error.ends_with("an integer from 1 to 100000 is needed"), "{error}");
        }
    }

    #[test]
    fn more_threads_than_any_machine_has_cores_are_refused() {
        assert!(refusal(toy(&["--threads=257"])).ends_with("an integer from 1 to 256 is needed"));
        assert_eq!(toy(&["--threads=256"]).unwrap().run.threads, 256);
    }

    #[test]
    fn every_configuration_that_is_written_can_be_read_back() {
        let largest = toy(&["--seed=9223372036854775807"]).unwrap();
        let text = to_toml(&largest).unwrap();
        assert_eq!(text.parse::<toml::Table>().unwrap()["seed"].as_integer(), Some(i64::MAX));

        let error = refusal(toy(&["--seed=9223372036854775808"]));
        assert!(error.ends_with("an integer of at least 0 is needed"), "{error}");
        let error = refusal(to_toml(&toy(&["--capacity=9223372036854775808"]).unwrap()));
        let most = "at most 9223372036854775807 can be kept in config.toml";
        assert_eq!(error, format!("capacity = 9223372036854775808: {most}"));
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_nearest_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my.toml");
        std::fs::write(&file, "total_timestep = 3\n").unwrap();
        let error = refusal(toy(&["--config", &file.display().to_string()]));
        assert!(error.ends_with("unknown key total_timestep; similar: total_timesteps"), "{error}");
    }

    #[test]
    fn the_timeout_of_environments_reaches_their_processes() {
        fn timeout() -> Duration {
            gymnasium::Python::from_env().unwrap().timeout
        }
        fn train(toy: Toy) -> Result<()> {
            assert_eq!(timeout(), Duration::from_secs(toy.run.env_timeout.unwrap_or(60)));
            Ok(())
        }
        let run = |flags: &[&str]| {
            let all = ["toy", "--env-id=CartPole-v1", "--total-timesteps=100"].iter().chain(flags);
            run(all.map(Into::into), train)
        };
        run(&[]).unwrap();
        run(&["--env-timeout=7"]).unwrap();
        assert_eq!(timeout(), Duration::from_secs(7));
        for text in ["0", "1e7", "soon"] {
            let error = refusal(run(&["--env-timeout", text]));
            assert!(error.ends_with("an integer from 1 to 1000000 is needed"), "{error}");
        }
    }

    #[test]
    fn an_error_ends_the_program_with_its_code() {
        assert_eq!(report(&anyhow::anyhow!("the disk is full")), 1);
        assert_eq!(report(&InvalidInput("--gamma 2".into()).into()), 2);
        assert_eq!(report(&Interrupted("interrupted at step 3".into()).into()), 130);
    }
}
