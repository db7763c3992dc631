//! The table of results, as text and as Markdown.

use super::peers::Python;
use super::rows::Goal;
use super::{Measured, Sample};
use crate::learning::median;
use std::fmt::Write;
use std::process::Command;

/// The machine and the versions of everything measured, a line each.
pub fn machine(python: Option<&Python>) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let system = system.map_or(std::env::consts::OS, |name| name.trim_matches('"'));
    let lock = std::fs::read_to_string(crate::paths::root().join("Cargo.lock")).unwrap_or_default();
    let mut rust = vec![format!("rustc {}", rustc().unwrap_or("unknown".into()))];
    rust.push(format!("PlainRL {}", env!("CARGO_PKG_VERSION")));
    rust.extend(["candle-core", "gemm"].map(|name| {
        let version = locked(&lock, name).unwrap_or("unknown");
        format!("{name} {version}")
    }));
    let mut lines = vec![
        format!("Machine: {}, {cores} cores, {system}", common::run::cpu_name()),
        format!("Rust: {}", rust.join(", ")),
    ];
    if let Some(python) = python {
        let packages = [
            ("python", "Python"),
            ("torch", "torch"),
            ("stable-baselines3", "Stable-Baselines3"),
            ("sbx-rl", "SBX"),
            ("jax", "jax"),
            ("mbrl", "mbrl-lib"),
            ("gymnasium", "Gymnasium"),
            ("mujoco", "mujoco"),
            ("envpool", "EnvPool"),
        ];
        let versions = packages.map(|(package, name)| {
            let version = python.version(package).unwrap_or("missing");
            format!("{name} {version}")
        });
        lines.push(format!("Peers: {}", versions.join(", ")));
    }
    lines
}

/// The version of the compiler, without the date that it tells beside it.
fn rustc() -> Option<String> {
    let output = Command::new("rustc").arg("--version").output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.split_whitespace().nth(1)?.to_string())
}

/// The version of package `name` in the text of a Cargo.lock.
fn locked<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    rest.split('"').next()
}

/// One subject beside PlainRL, or PlainRL alone.
struct Line {
    ours: String,
    peer: String,
    theirs: String,
    ratio: String,
    goal: String,
    met: String,
}

const NONE: &str = "—";
const MISSING: &str = "n/a";

fn lines(measured: &Measured) -> Vec<Line> {
    let Measured { row, samples } = measured;
    let medians: Vec<Option<f64>> =
        samples.iter().map(|sample| sample.as_ref().ok().map(|values| median(values))).collect();
    let shown = |sample: &Sample| match sample {
        Ok(values) => spread(values),
        Err(_) => MISSING.into(),
    };
    let verdict = |met: Option<bool>| match met {
        Some(true) => "yes",
        Some(false) => "no",
        None => MISSING,
    };
    let ours = shown(&samples[0]);
    if samples.len() == 1 {
        let below = row.goals.iter().find_map(|goal| match goal {
            Goal::Below(limit) => Some(*limit),
            Goal::Ratio { .. } => None,
        });
        let met = below.map(|limit| verdict(medians[0].map(|ours| ours < limit)));
        return vec![Line {
            ours,
            peer: NONE.into(),
            theirs: NONE.into(),
            ratio: NONE.into(),
            goal: below.map_or(NONE.into(), |limit| format!("< {} {}", number(limit), row.unit.name())),
            met: met.unwrap_or(NONE).into(),
        }];
    }
    let line = |index: usize| {
        let ratio = medians[0].zip(medians[index]).map(|(ours, theirs)| row.unit.times_as_fast(ours, theirs));
        let goal = row.goals.iter().find_map(|goal| match goal {
            Goal::Ratio { subject, at_least } if *subject == index => Some(*at_least),
            _ => None,
        });
        let met = goal.map(|goal| verdict(ratio.map(|ratio| ratio >= goal)));
        Line {
            ours: ours.clone(),
            peer: row.subjects[index].name(),
            theirs: shown(&samples[index]),
            ratio: ratio.map_or(MISSING.into(), number),
            goal: goal.map_or(NONE.into(), |goal| format!("≥ {}", number(goal))),
            met: met.unwrap_or(NONE).into(),
        }
    };
    (1..samples.len()).map(line).collect()
}

/// Why subjects have no result, a line each.
fn reasons(measured: &Measured) -> Vec<String> {
    let subjects = measured.row.subjects.iter().zip(&measured.samples);
    let failed = subjects.filter_map(|(subject, sample)| Some((subject, sample.as_ref().err()?)));
    failed.map(|(subject, why)| format!("{}, {}: {why}", measured.row.name, subject.name())).collect()
}

/// The median of `values`, and the least and greatest of them.
fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{} ({}–{})", number(median(values)), number(least), number(greatest))
}

/// At least three digits, thousands apart.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut out = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) && digit.is_ascii_digit() {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out = out + "." + fraction;
    }
    out
}

/// A row for the console, several lines.
pub fn text(measured: &Measured) -> String {
    let row = &measured.row;
    let mut out = format!("{}: {}, {}\n", row.name, row.title, row.unit.name());
    for line in lines(measured) {
        let Line { ours, peer, theirs, ratio, goal, met } = line;
        let _ = write!(out, "    PlainRL {ours}");
        if peer != NONE {
            let _ = write!(out, "; {peer} {theirs}; times as fast: {ratio}");
        }
        if goal != NONE {
            let _ = write!(out, ", goal {goal}: {met}");
        }
        out.push('\n');
    }
    for reason in reasons(measured) {
        let _ = writeln!(out, "    {MISSING}: {reason}");
    }
    out
}

/// The whole document.
pub fn markdown(machine: &[String], runs: usize, results: &[Measured]) -> String {
    let mut out = String::from("# Speed\n\n");
    for line in machine {
        let _ = writeln!(out, "- {line}");
    }
    let _ = write!(
        out,
        "
Written by `cargo run -p regression -- speed --peers`, the peers installed by
`python -m pip install -r tests/peers/requirements.txt`. Each piece of work is done once to warm up
and then {runs} times by PlainRL and its peers in turns. The table has medians (least–greatest);
times as fast is the ratio of the medians. Everything has one thread unless it says otherwise.

- Updates: mean squared error to fixed targets. Candle is a program with candle-nn alone
  ([tests/peers/candle](../tests/peers/candle)), an optimised build of its defaults, started anew for
  each run. Its time depends on what the process did before, because glibc gives large tensors'
  memory back to the system and takes it again: the first line is of one that has run smaller
  networks, as programs with an actor and critics do, the second of one that has not. Tuned, candle
  has the allocator and the AVX-512 matrix products that PlainRL has. Bare matrix products are what
  an update cannot do without: forward, each weight's gradient, and each input's but the first's.
- Training: what is timed is the training loop: of PlainRL's program without its final evaluation,
  of the peers `learn()` after one warm-up `learn()`, without imports and compilation. Steps before
  learning starts are not counted. A gauge does not do the row's work: it is Stable-Baselines3's PPO of
  the row 4 × 128, which says how fast the machine is. The goals beside it are four times what the
  Rust library ModuRL made of that work on a machine gauged alike. SAC for discrete actions, which
  neither library has, is beside a script in PyTorch after CleanRL's form
  ([tests/peers/train_torch.py](../tests/peers/train_torch.py)).
- Planning and learned models: [mbrl-lib](../tests/peers/mbrl_lib.py)'s own classes with the same
  sizes and counts, installed by `python -m pip install --no-deps -r tests/peers/mbrl.txt`; steps are
  the environment's, each of which is planned, or learned in. CEM plans with the environment's own
  dynamics, of which the peer tries all plans at once.
- The default PPO run is the whole process, its start and its evaluation over 100 episodes included.
- Environments: steps of all n copies per second in one vectorised environment, actions drawn
  beforehand; EnvPool with one thread, waiting for each step.

| work | unit | PlainRL | peer | the peer's | times as fast | goal | met |
|---|---|---:|---|---:|---:|---:|---|
"
    );
    for measured in results {
        let row = &measured.row;
        for (i, line) in lines(measured).into_iter().enumerate() {
            let Line { ours, peer, theirs, ratio, goal, met } = line;
            // Only the first line of a row says what it is.
            let first = |text: &str| if i == 0 { format!(" {text} ") } else { " ".to_string() };
            let (title, unit, ours) = (first(&row.title), first(row.unit.name()), first(&ours));
            let _ = writeln!(out, "|{title}|{unit}|{ours}| {peer} | {theirs} | {ratio} | {goal} | {met} |");
        }
    }
    let reasons: Vec<String> = results.iter().flat_map(reasons).collect();
    if !reasons.is_empty() {
        out += "\nNot available:\n\n";
        for reason in reasons {
            let _ = writeln!(out, "- {reason}");
        }
    }
    out
}
