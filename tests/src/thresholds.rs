//! What an algorithm must reach and what it is shown beside: `tests/thresholds.toml` in its folder.
//!
//! ```toml
//! family = "Policy gradient and actor-critic"   # one of FAMILIES
//!
//! [[gate]]                                      # tier `test`: `cargo test` runs it, minutes
//! env_id = "CartPole-v1"
//! steps = 100_000
//! metric = "eval/episodic_return"
//! threshold = 475.0                             # the median of the seeds
//! floor = 250.0                                 # the worst of them
//! source = "Gymnasium's reward_threshold of CartPole-v1"
//! floor_reason = "half of the way from a random policy, 22.2"
//!
//! [[benchmark]]                                 # tier `benchmark`: beside published numbers, hours
//! env_id = "Acrobot-v1"
//! steps = 500_000
//! metric = "charts/episodic_return"
//! last = 100
//! [benchmark.published]
//! value = -86.36
//! std = 1.32
//! label = "CleanRL"
//! source = "CleanRL (vwxyzjn/cleanrl at fe8d8a03, docs/benchmark), 3 seeds"
//!
//! [[benchmark]]
//! config = "LunarLander-v3"                     # configs/LunarLander-v3.toml, as `--config` reads it
//! metric = "eval/episodic_return"               # environment, steps and flags are in there
//! ```

use crate::paths;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::path::Path;

/// The families of algorithms, in the order of the tables.
pub const FAMILIES: [&str; 5] = [
    "Tabular and linear",
    "Deep value-based",
    "Policy gradient and actor-critic",
    "Deterministic, maximum-entropy, multi-agent",
    "Model-based",
];

/// One `thresholds.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// Package of the algorithm, the name of its folder.
    #[serde(skip)]
    pub algorithm: String,
    /// One of [`FAMILIES`].
    pub family: String,
    /// What must be reached (tier `test`).
    #[serde(default)]
    pub gate: Vec<Entry>,
    /// What is run beside published numbers (tier `benchmark`).
    #[serde(default)]
    pub benchmark: Vec<Entry>,
}

/// One training: how it is run, what is measured, and what that is compared with.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The settings for an environment that are in `configs/NAME.toml` of the algorithm's folder; it
    /// has `env_id`, `total_timesteps` and the flags, which the entry then has not.
    pub config: Option<String>,
    /// Environment it is trained on, `--env-id`.
    #[serde(default)]
    pub env_id: String,
    /// Environment steps, `--total-timesteps`.
    #[serde(default)]
    pub steps: usize,
    /// Further flags. Defaults are what users run, so there should be few.
    #[serde(default)]
    pub args: Vec<String>,
    /// A short name for these flags, in the names of result files [default: the flags themselves].
    pub variant: Option<String>,
    /// Seeds of the learning test [default: 1 to 5].
    #[serde(default = "five")]
    pub seeds: Vec<u64>,
    /// Which rows of `metrics.csv` count: `eval/episodic_return`, or `charts/episodic_return` where
    /// the publication measured the training return.
    pub metric: String,
    /// The mean of how many of the last such rows is the result of a seed.
    #[serde(default = "one")]
    pub last: usize,
    /// What that is, for the tables [default: the metric, or what is known of it].
    #[serde(default)]
    pub what: String,
    /// Whether more or less is better, or the number must be met to within `tolerance`.
    #[serde(default)]
    pub direction: Direction,
    /// What the median over the seeds must reach; every gate has one.
    pub threshold: Option<f64>,
    /// How far from the threshold an `equal` median may be.
    #[serde(default)]
    pub tolerance: f64,
    /// What the worst seed must reach; where `direction` is `equal`, how far from the threshold it
    /// may be. Every gate has one.
    pub floor: Option<f64>,
    /// The publication or computation that the threshold is from.
    #[serde(default)]
    pub source: String,
    /// Why the floor is where it is.
    #[serde(default)]
    pub floor_reason: String,
    /// What a benchmark's result is shown beside.
    pub published: Option<Reference>,
}

fn one() -> usize {
    1
}

fn five() -> Vec<u64> {
    (1..=5).collect()
}

/// Which results are good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// At least the threshold.
    #[default]
    Max,
    /// At most the threshold.
    Min,
    /// The threshold, to within the tolerance.
    Equal,
}

/// What a publication, or a gate, says about a number.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// The number.
    pub value: f64,
    /// Its standard deviation over seeds.
    pub std: Option<f64>,
    /// The steps it was reached in [default: the entry's].
    pub steps: Option<usize>,
    /// What a plot calls it, short.
    pub label: String,
    /// Where it is from.
    pub source: String,
    /// What is different there.
    #[serde(default)]
    pub note: String,
}

/// Reads the `tests/thresholds.toml` of the package in `folder`, which is named as the package.
///
/// # Errors
/// A file that cannot be read, has an unknown key or family, or a gate that lacks something.
pub fn read(folder: &Path) -> Result<Thresholds> {
    let path = folder.join("tests/thresholds.toml");
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(&path).with_context(|| shown.clone())?;
    let algorithm = folder.file_name().unwrap_or_default().to_string_lossy();
    parse(&algorithm, &text, &folder.join("configs")).with_context(|| shown)
}

fn parse(algorithm: &str, text: &str, configs: &Path) -> Result<Thresholds> {
    let mut thresholds = Thresholds { algorithm: algorithm.to_string(), ..toml::from_str(text)? };
    for entry in thresholds.gate.iter_mut().chain(&mut thresholds.benchmark) {
        if let Some(config) = &entry.config {
            let given = !entry.env_id.is_empty() || entry.steps > 0 || !entry.args.is_empty();
            ensure!(!given, "{config}: `env_id`, `steps` and `args` are in the file of `config`");
            let path = configs.join(format!("{config}.toml"));
            (entry.env_id, entry.steps, entry.args) =
                read_config(&path).with_context(|| path.display().to_string())?;
        }
        ensure!(!entry.env_id.is_empty() && entry.steps > 0, "an entry needs `env_id` and `steps`");
    }
    let family = thresholds.family.as_str();
    if !FAMILIES.contains(&family) {
        bail!("family {family:?} is unknown; known are {FAMILIES:?}");
    }
    for entry in thresholds.gate.iter().chain(&thresholds.benchmark) {
        let what = format!("{} on {}", algorithm, entry.env_id);
        ensure!(entry.last >= 1 && !entry.seeds.is_empty(), "{what}: `last` or `seeds` is nothing");
        ensure!(
            entry.floor.is_none() || !entry.floor_reason.is_empty(),
            "{what}: a `floor` needs its `floor_reason`"
        );
        let sources = [&entry.source].into_iter().chain(entry.published.iter().map(|p| &p.source));
        for source in sources {
            ensure!(!source.contains("recalled"), "{what}: a recalled number is no source");
        }
    }
    for gate in &thresholds.gate {
        let what = format!("the gate of {} on {}", algorithm, gate.env_id);
        let (Some(threshold), Some(floor)) = (gate.threshold, gate.floor) else {
            bail!("{what} needs a `threshold` for the median and a `floor` for the worst seed");
        };
        let above = match gate.direction {
            Direction::Max => floor > threshold,
            Direction::Min => floor < threshold,
            Direction::Equal => floor < gate.tolerance,
        };
        ensure!(!above, "{what}: the worst seed cannot be asked for more than the median");
        ensure!(!gate.source.is_empty(), "{what} needs the `source` of its threshold");
        ensure!(gate.published.is_none(), "{what}: `published` belongs to a benchmark");
    }
    for entry in &thresholds.benchmark {
        let what = format!("the benchmark of {} on {}", algorithm, entry.env_id);
        let gate = entry.threshold.or(entry.floor).is_some() || !entry.source.is_empty();
        ensure!(!gate, "{what}: `threshold`, `floor` and `source` belong to a gate");
    }
    Ok(thresholds)
}

/// Environment, steps and all other flags in a file for `--config`.
fn read_config(path: &Path) -> Result<(String, usize, Vec<String>)> {
    let table: toml::Table = std::fs::read_to_string(path)?.parse()?;
    let env_id = table.get("env_id").and_then(toml::Value::as_str);
    let steps = table.get("total_timesteps").and_then(toml::Value::as_integer);
    let (Some(env_id), Some(steps)) = (env_id, steps.and_then(|steps| usize::try_from(steps).ok())) else {
        bail!("`env_id` and `total_timesteps` are needed");
    };
    let runners = ["seed", "run_dir"].into_iter().find(|key| table.contains_key(*key));
    ensure!(runners.is_none(), "`{}` is the runner's", runners.unwrap_or_default());
    let others = table.iter().filter(|(key, _)| !["env_id", "total_timesteps"].contains(&key.as_str()));
    let flags = others.map(|(key, value)| {
        let shown = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
        let value = match value {
            toml::Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(","),
            value => shown(value),
        };
        format!("--{}={value}", key.replace('_', "-"))
    });
    Ok((env_id.to_string(), steps, flags.collect()))
}

/// The thresholds of every algorithm that has any, by family and then by name.
///
/// # Errors
/// As [`read`].
pub fn all() -> Result<Vec<Thresholds>> {
    let folder = paths::root().join("algorithms");
    let mut all = Vec::new();
    for item in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = item?.path();
        if path.join("tests/thresholds.toml").exists() {
            all.push(read(&path)?);
        }
    }
    let rank = |family: &str| FAMILIES.iter().position(|known| *known == family);
    all.sort_by(|a, b| (rank(&a.family), &a.algorithm).cmp(&(rank(&b.family), &b.algorithm)));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_s_file_can_be_read() {
        let all = all().unwrap();
        assert!(all.len() >= 13);
        assert!(all.iter().all(|thresholds| !thresholds.gate.is_empty()));
        let ranks = all.iter().map(|t| FAMILIES.iter().position(|family| *family == t.family));
        assert!(ranks.is_sorted());
    }

    #[test]
    fn a_file_that_lacks_something_is_refused() {
        let gate = "env_id = \"X-v0\"\nsteps = 1\nmetric = \"m\"\n";
        let whole = format!(
            "family = \"Model-based\"\n[[gate]]\n{gate}threshold = 2.0\nfloor = 1.0\nfloor_reason = \"r\"\nsource = \"s\"\n"
        );
        let none = Path::new("no such folder");
        let parsed = parse("x", &whole, none).unwrap();
        assert_eq!((parsed.gate[0].seeds.len(), parsed.gate[0].direction), (5, Direction::Max));
        for (from, to, mention) in [
            ("Model-based", "Others", "unknown"),
            ("floor = 1.0", "", "`floor`"),
            ("threshold = 2.0", "", "`threshold`"),
            ("floor = 1.0", "floor = 3.0", "more than the median"),
            ("floor_reason = \"r\"", "", "floor_reason"),
            ("source = \"s\"", "", "`source`"),
            ("source = \"s\"", "source = \"recalled\"", "recalled"),
            ("steps = 1", "steps = 1\nstep = 2", "step"),
            ("[[gate]]", "[[benchmark]]", "belong to a gate"),
            ("steps = 1", "steps = 1\nseeds = []", "seeds"),
        ] {
            let error = format!("{:#}", parse("x", &whole.replace(from, to), none).unwrap_err());
            assert!(error.contains(mention), "{to}: {error}");
        }
        let least = whole.replace("floor = 1.0", "floor = 1.0\ndirection = \"min\"");
        assert!(format!("{:#}", parse("x", &least, none).unwrap_err()).contains("more than the median"));
    }

    /// Every file of settings for an environment is a benchmark, which says how well it does.
    #[test]
    fn every_config_is_a_benchmark() {
        for thresholds in all().unwrap() {
            let folder = paths::root().join("algorithms").join(&thresholds.algorithm).join("configs");
            let Ok(files) = std::fs::read_dir(&folder) else { continue };
            for file in files {
                let path = file.unwrap().path();
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                let runs = thresholds.benchmark.iter().any(|entry| entry.config.as_ref() == Some(&name));
                assert!(runs, "{} is no benchmark in tests/thresholds.toml", path.display());
            }
        }
    }

    #[test]
    fn an_entry_s_settings_can_be_in_a_config() {
        let folder = tempfile::tempdir().unwrap();
        let text =
            "env_id = \"Y-v0\"\ntotal_timesteps = 7\nhidden_sizes = [3, 4]\ntau = 0.5\nanneal_lr = false\n";
        std::fs::write(folder.path().join("Y.toml"), text).unwrap();
        let entry = "family = \"Model-based\"\n[[benchmark]]\nconfig = \"Y\"\nmetric = \"m\"\n";
        let parsed = parse("x", entry, folder.path()).unwrap();
        let entry_of = &parsed.benchmark[0];
        assert_eq!((entry_of.env_id.as_str(), entry_of.steps), ("Y-v0", 7));
        let mut flags = entry_of.args.clone();
        flags.sort();
        assert_eq!(flags, ["--anneal-lr=false", "--hidden-sizes=3,4", "--tau=0.5"]);
        let seeded = format!("{text}seed = 3\n");
        std::fs::write(folder.path().join("S.toml"), seeded).unwrap();
        for (text, mention) in [
            (entry.replace("\"Y\"", "\"S\""), "`seed` is the runner's"),
            (format!("{entry}steps = 3\n"), "in the file of `config`"),
            (entry.replace("\"Y\"", "\"Z\""), "Z.toml"),
            (entry.replace("config = \"Y\"\n", ""), "needs `env_id` and `steps`"),
        ] {
            let error = format!("{:#}", parse("x", &text, folder.path()).unwrap_err());
            assert!(error.contains(mention), "{error}");
        }
    }
}
