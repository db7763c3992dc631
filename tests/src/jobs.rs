//! What there is to run, of every algorithm's `thresholds.toml`: its gates (tier `test`) and its
//! benchmarks (tier `benchmark`); and the digests by which a result is known to be current.

use anyhow::{Result, ensure};
use common::envs::invalid;
use regression::thresholds::{self, Direction, Reference};
use serde::{Deserialize, Serialize};

/// Which list of jobs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The gates in the algorithms' thresholds.toml: minutes
    Test,
    /// The benchmarks in the algorithms' thresholds.toml, beside published results: hours
    Benchmark,
    /// The pictures in tests/figures.toml, which `figures` draws
    #[value(skip)]
    Figure,
}

impl Tier {
    /// As it is written on the command line and in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Benchmark => "benchmark",
            Self::Figure => "figure",
        }
    }
}

/// One training to be run with several seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub tier: Tier,
    /// One of [`thresholds::FAMILIES`].
    pub family: String,
    /// Package of the algorithm.
    pub algorithm: String,
    /// `--env-id`.
    pub env_id: String,
    /// `--total-timesteps`.
    pub steps: usize,
    /// Further flags.
    pub args: Vec<String>,
    /// How many seeds it is run with where nobody says.
    pub seeds: usize,
    /// The file that has all of these, from the project's root, if one has.
    pub config: Option<String>,
    /// A name for these flags; empty where there are none.
    pub variant: String,
    /// The numbers that are taken from each run; at least one.
    pub measures: Vec<Measure>,
    /// Rows of `metrics.csv` that are kept as curves, beside the episodic return; see
    /// [`crate::result::BY_ROW`] and [`crate::result::IN_MODEL`].
    pub curves: Vec<String>,
}

/// A number taken from a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// Rows of `metrics.csv`.
    pub metric: String,
    /// The mean of how many of the last ones.
    pub last: usize,
    /// What that is, in words; empty where the metric says it.
    pub what: String,
    /// The mean of these instead, first and last, counted from 1.
    pub rows: Option<(usize, usize)>,
    /// Which numbers are good.
    pub direction: Direction,
    /// How far from the reference an `equal` one may be.
    pub tolerance: f64,
    /// What the worst seed must reach, and why.
    pub floor: Option<f64>,
    pub floor_reason: String,
    /// What it is compared with.
    pub reference: Option<Reference>,
}

impl Measure {
    /// Whether it is on the scale of a learning curve.
    pub fn is_return(&self) -> bool {
        self.metric.ends_with("episodic_return")
    }
}

/// Everything to be run in `tier`, by family and algorithm.
///
/// # Errors
/// A file that cannot be read, has an unknown key, or has two entries of one name.
pub fn entries(tier: Tier) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    for thresholds in thresholds::all()? {
        let list = match tier {
            Tier::Test => thresholds.gate,
            Tier::Benchmark => thresholds.benchmark,
            Tier::Figure => Vec::new(), // they are no algorithm's
        };
        for entry in list {
            let reference = match entry.threshold {
                None => entry.published,
                Some(value) => Some(required(value, entry.direction, &entry.metric, entry.source)),
            };
            let measure = Measure {
                metric: entry.metric,
                last: entry.last,
                what: entry.what,
                rows: None,
                direction: entry.direction,
                tolerance: entry.tolerance,
                floor: entry.floor,
                floor_reason: entry.floor_reason,
                reference,
            };
            // Several measures of the same training are one job.
            let same = entries.iter_mut().find(|other| {
                (&other.algorithm, &other.env_id) == (&thresholds.algorithm, &entry.env_id)
                    && (&other.args, other.steps) == (&entry.args, entry.steps)
            });
            match same {
                Some(other) => {
                    other.seeds = other.seeds.max(entry.seeds.len());
                    other.measures.push(measure);
                }
                None => entries.push(Entry {
                    tier,
                    family: thresholds.family.clone(),
                    algorithm: thresholds.algorithm.clone(),
                    variant: match (entry.variant, &entry.config) {
                        (Some(variant), _) => variant,
                        (None, Some(_)) => "config".to_string(),
                        (None, None) => variant(&entry.args),
                    },
                    config: entry
                        .config
                        .map(|name| format!("algorithms/{}/configs/{name}.toml", thresholds.algorithm)),
                    env_id: entry.env_id,
                    steps: entry.steps,
                    args: entry.args,
                    seeds: entry.seeds.len(),
                    measures: vec![measure],
                    curves: Vec::new(),
                }),
            }
        }
    }
    for (i, entry) in entries.iter().enumerate() {
        let twice = entries[..i].iter().any(|other| other.name() == entry.name());
        ensure!(!twice, "two entries of tier {} are called {}: name a variant", tier.name(), entry.name());
    }
    Ok(entries)
}

/// What a gate demands, as a plot shows it.
fn required(value: f64, direction: Direction, metric: &str, source: String) -> Reference {
    let bound = match direction {
        Direction::Max => format!("at least {value}"),
        Direction::Min => format!("at most {value}"),
        Direction::Equal => value.to_string(),
    };
    // The curve beside which it stands is of the training return.
    let of = if metric.starts_with("eval/") { " of the evaluation" } else { "" };
    Reference {
        value,
        std: None,
        steps: None,
        label: format!("required{of}: {bound}"),
        source,
        note: String::new(),
    }
}

/// The entries of the `wanted` algorithms, or all if none is named.
///
/// # Errors
/// An algorithm without an entry.
pub fn select(entries: Vec<Entry>, tier: Tier, wanted: &[String]) -> Result<Vec<Entry>> {
    let mut known: Vec<&str> = entries.iter().map(|entry| entry.algorithm.as_str()).collect();
    known.dedup();
    known.sort_unstable();
    known.dedup();
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        let tier = tier.name();
        return invalid(format!("{unknown}: tier {tier} has no such algorithm; it has {}", known.join(", ")));
    }
    let is_wanted = |entry: &Entry| wanted.is_empty() || wanted.contains(&entry.algorithm);
    Ok(entries.into_iter().filter(is_wanted).collect())
}

/// A name for `args` that is fit for a file: `--hidden-size 64` becomes `hidden-size-64`.
pub fn variant(args: &[String]) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let words: Vec<String> =
        args.iter().map(|arg| arg.trim_start_matches('-').chars().map(plain).collect()).collect();
    let name = words.join("-");
    // A long one is cut and told apart by its checksum.
    if name.len() <= 48 { name } else { format!("{}-{:08x}", &name[..39], crc32c::crc32c(name.as_bytes())) }
}

impl Entry {
    /// What the result files of this entry are called: `ppo__CartPole-v1`, with the variant if
    /// there is one.
    pub fn name(&self) -> String {
        name(&self.algorithm, &self.env_id, &self.variant)
    }

    /// Changes with everything that decides what is run and measured.
    pub fn config_digest(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.algorithm, self.env_id, self.steps);
        for arg in &self.args {
            text += &format!("{arg}\n");
        }
        for measure in &self.measures {
            text += &format!("\n{} {}", measure.metric, measure.last);
            if let Some((from, to)) = measure.rows {
                text += &format!(" {from}-{to}");
            }
        }
        for curve in &self.curves {
            text += &format!("\n{curve}");
        }
        format!("{:08x}", crc32c::crc32c(text.as_bytes()))
    }
}

/// A file name for an algorithm on an environment: what is between double underscores is the
/// environment with dashes for what paths cannot have.
pub fn name(algorithm: &str, env_id: &str, variant: &str) -> String {
    let env = env_id.replace(['/', ':'], "-");
    if variant.is_empty() { format!("{algorithm}__{env}") } else { format!("{algorithm}__{env}__{variant}") }
}

/// The part of the jobs that one of several machines takes: `3/16` is the third of sixteen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (index, count) = text.split_once('/')?;
            let (index, count): (usize, usize) = (index.parse().ok()?, count.parse().ok()?);
            (1..=count).contains(&index).then_some(Self { index, count })
        };
        parse().ok_or_else(|| "i/n is needed, with i from 1 to n".to_string())
    }
}

impl Shard {
    /// All jobs.
    pub const WHOLE: Self = Self { index: 1, count: 1 };

    /// Every n-th of `jobs`, from the i-th on. It depends on nothing else, so the shards of one
    /// command line are disjoint and together complete wherever and whenever they run.
    pub fn of<T>(self, jobs: Vec<T>) -> Vec<T> {
        jobs.into_iter().skip(self.index - 1).step_by(self.count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_entries_can_be_read_and_name_their_sources() {
        for tier in [Tier::Test, Tier::Benchmark] {
            let entries = entries(tier).unwrap();
            assert!(entries.len() > 10);
            for entry in entries {
                assert!(entry.measures.iter().all(|measure| measure.last >= 1), "{entry:?}");
                let references = entry.measures.iter().filter_map(|measure| measure.reference.as_ref());
                for reference in references {
                    assert!(!reference.source.is_empty(), "{entry:?}");
                    assert!(!reference.source.contains("recalled"), "{entry:?}");
                    // A number that was reached in other steps, or on other tasks, says so.
                    let other = reference.steps.is_some_and(|steps| steps != entry.steps);
                    assert!(!other || reference.note.contains("steps"), "{entry:?}");
                    assert!(!reference.label.contains("v4") || reference.note.contains("v4"), "{entry:?}");
                }
            }
        }
    }

    #[test]
    fn gates_on_the_same_training_are_one_job() {
        let entries = entries(Tier::Test).unwrap();
        let exact: Vec<&Entry> = entries
            .iter()
            .filter(|entry| entry.algorithm == "policy_iteration" && entry.args.is_empty())
            .collect();
        assert_eq!(exact.len(), 1);
        assert_eq!(exact[0].measures.len(), 2);
    }

    #[test]
    fn names_are_fit_for_files() {
        assert_eq!(name("dqn", "MinAtar/Breakout-v1", ""), "dqn__MinAtar-Breakout-v1");
        assert_eq!(name("dqn", "gym:X-v0", "a"), "dqn__gym-X-v0__a");
        assert_eq!(variant(&[]), "");
        assert_eq!(variant(&["--hidden-size".into(), "64".into()]), "hidden-size-64");
        let long = |end: &str| variant(&["x".repeat(60), end.into()]);
        assert_eq!(long("1").len(), 48);
        assert_ne!(long("1"), long("2"));
    }

    #[test]
    fn shards_are_a_partition() {
        for count in 1..6 {
            let mut all: Vec<usize> = Vec::new();
            for index in 1..=count {
                let shard: Shard = format!("{index}/{count}").parse().unwrap();
                let jobs = shard.of((0..17).collect());
                assert!(jobs.len() >= 17 / count);
                all.extend(jobs);
            }
            all.sort_unstable();
            assert_eq!(all, (0..17).collect::<Vec<_>>());
        }
        for bad in ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/2/3", ""] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_config_digest_sees_every_change() {
        let entry = entries(Tier::Test).unwrap().remove(0);
        let digest = entry.config_digest();
        let changed = |change: &dyn Fn(&mut Entry)| {
            let mut other = entry.clone();
            change(&mut other);
            other.config_digest() != digest
        };
        assert!(!changed(&|_| ()));
        assert!(changed(&|e| e.steps += 1));
        assert!(changed(&|e| e.env_id.push('x')));
        assert!(changed(&|e| e.args.push("--double".into())));
        assert!(changed(&|e| e.measures[0].last += 1));
        assert!(changed(&|e| e.measures[0].metric.push('x')));
        assert!(changed(&|e| e.curves.push("losses/entropy".into())));
    }
}
