//! Tells a regression from the luck of seeds.
//!
//! For each job that both folders of results have, each of its measures and the mean return over
//! training are compared; the second shows an agent that learns more slowly where both end at the
//! same limit. A difference counts if all of these hold, each guarding against what the others miss:
//!
//! 1. **It is large enough to matter**: 5 % of the score's scale, which is the range of the learning
//!    curves or the size of the scores, whichever is smaller. (The range alone would let one
//!    disastrous first episode hide everything; the size alone would make the zero of the score
//!    matter.) For a gate that demands equality it is the gate's tolerance, and distances from the
//!    demanded value are compared.
//! 2. **Welch's t-test** of the seeds' values, which allows for unequal spread, rejects equal means
//!    after Holm's correction for all comparisons made: with all sources unchanged, the chance of
//!    any alarm at all stays below 5 %. A few scores may lie close together by luck, or all at the
//!    limit of 500, so a standard deviation counts as no less than the standard error that a
//!    single score has as a mean of episodes, and no less than a fifth of the difference in 1.
//! 3. **The exact permutation test** agrees (p ≤ 0.05, or the least that so few seeds allow). It
//!    assumes nothing about the distribution, and scores of deep reinforcement learning are seldom
//!    normal: one seed in five that fails is common.
//!
//! The other metrics (losses, entropy, …) have no better and worse, but tell that an algorithm is no
//! longer the same where its score cannot. They are compared by the same criteria, apart from the
//! scores so that these lose nothing to the correction.
//!
//! Some mistakes are smaller than that: with an entropy bonus of the wrong sign PPO solves CartPole as
//! fast, and its entropy hardly changes. But a seed decides a run to the last bit on one kind of
//! processor, so where both folders have a seed, a single differing number tells that something
//! was changed. Both kinds are reported as *changed* and fail with `--strict`, for work that is meant
//! to leave all results as they are.
//!
//! Among fifty comparisons, three seeds find a difference of seven standard deviations of the seeds
//! every other time, five seeds one of three, ten seeds one of two. Two seeds find an agent that
//! does not learn, but they, and to a lesser degree three, also raise the alarm where an algorithm
//! that fails now and then happens to do so with all of them: repeat with more.

use crate::jobs::{Tier, entries};
use crate::result::{RunResult, read_all};
use crate::statistics::{holm, mean, permutation, variance, welch};
use anyhow::{Result, bail};
use common::envs::invalid;
use regression::thresholds::Direction;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The chance of any false alarm among all comparisons.
const ALPHA: f64 = 0.05;

/// The least difference that matters, as a part of the score's scale.
const LEAST_EFFECT: f64 = 0.05;

/// What a standard deviation counts at least, as a part of that difference.
const NOISE: f64 = 0.2;

/// Flags of `compare`.
#[derive(clap::Args, Debug)]
pub struct CompareArgs {
    /// Folder of the older results
    old: PathBuf,
    /// Folder of the newer results
    new: PathBuf,
    /// Fail as well where the same seed gives another run, or a loss or the like has changed
    #[arg(long)]
    strict: bool,
}

/// Compares two folders of results and prints a line for each comparison.
///
/// # Errors
/// A folder without results, or two without anything in common; any result that became worse, and
/// with `--strict` any that changed.
pub fn compare(args: CompareArgs) -> Result<()> {
    let (old, new) = (group(read_all(&args.old)?), group(read_all(&args.new)?));
    let mut samples = Vec::new();
    let mut notes = Vec::new();
    let mut changed = Vec::new();
    let mut runs_compared = 0;
    for (key, old) in &old {
        let Some(new) = new.get(key) else {
            notes.push(format!("{}: only in {}", show(key), args.old.display()));
            continue;
        };
        let settings = &old[0].config_digest;
        if old.iter().chain(new).any(|result| &result.config_digest != settings) {
            notes.push(format!("{}: not compared: the settings are not the same", show(key)));
            continue;
        }
        // One seed is enough for this.
        let (different, both) = retrained(old, new);
        runs_compared += both;
        if different > 0 {
            changed.push(format!("{}, {different} of {both} seeds give another run", show(key)));
        }
        match pair(key, old, new)? {
            Ok(pairs) => samples.extend(pairs),
            Err(why) => notes.push(format!("{}: not compared: {why}", show(key))),
        }
    }
    for key in new.keys().filter(|key| !old.contains_key(*key)) {
        notes.push(format!("{}: only in {}", show(key), args.new.display()));
    }
    for note in &notes {
        println!("{note}");
    }
    for line in &changed {
        println!("{line}: CHANGED");
    }
    if samples.is_empty() && !(args.strict && runs_compared > 0) {
        let (old, new) = (args.old.display(), args.new.display());
        return invalid(format!("{old} and {new}: no job has two seeds in both"));
    }
    let (diagnostics, scores): (Vec<Sample>, Vec<Sample>) =
        samples.into_iter().partition(|sample| sample.is_diagnostic);
    let mut found: BTreeMap<Verdict, Vec<&str>> = BTreeMap::new();
    for samples in [&scores, &diagnostics] {
        for (sample, comparison) in samples.iter().zip(judge(samples)) {
            // There are many diagnostics; those that are as they were are not worth a line.
            if !sample.is_diagnostic || comparison.verdict != Verdict::Same {
                println!("{}: {comparison}", sample.name);
            }
            found.entry(comparison.verdict).or_default().push(&sample.name);
        }
    }
    let names = |verdict| found.get(&verdict).map_or(&[][..], Vec::as_slice);
    let (worse, moved) = (names(Verdict::Worse), names(Verdict::Changed));
    println!(
        "{} scores: {} worse, {} better; {} diagnostics: {} changed",
        scores.len(),
        worse.len(),
        names(Verdict::Better).len(),
        diagnostics.len(),
        moved.len()
    );
    changed.extend(moved.iter().map(|name| name.to_string()));
    if !worse.is_empty() {
        bail!("worse: {}", worse.join("; "));
    }
    if args.strict && !changed.is_empty() {
        bail!("changed: {}", changed.join("; "));
    }
    Ok(())
}

/// A job: tier, name of its files.
type Key = (Tier, String);

fn show((tier, name): &Key) -> String {
    format!("{} {name}", tier.name())
}

fn group(results: Vec<RunResult>) -> BTreeMap<Key, Vec<RunResult>> {
    let mut groups: BTreeMap<Key, Vec<RunResult>> = BTreeMap::new();
    for result in results {
        groups.entry((result.tier, result.name())).or_default().push(result);
    }
    groups
}

/// How many of the seeds that both have trained differently, and how many both have. Processors of
/// different kinds add in different orders; their runs are left out.
fn retrained(old: &[RunResult], new: &[RunResult]) -> (usize, usize) {
    let (mut different, mut both) = (0, 0);
    for (old, new) in old.iter().flat_map(|old| new.iter().map(move |new| (old, new))) {
        if (old.seed, &old.cpu) == (new.seed, &new.cpu) {
            both += 1;
            let same = (&old.values, &old.diagnostics, &old.curve, &old.eval)
                == (&new.values, &new.diagnostics, &new.curve, &new.eval);
            different += usize::from(!same);
        }
    }
    (different, both)
}

/// The values of the seeds of one measure in both results.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    old: Vec<f64>,
    new: Vec<f64>,
    /// More is better in these: equal to the values, or what they fall short of.
    old_scores: Vec<f64>,
    new_scores: Vec<f64>,
    /// The least difference that matters.
    least: f64,
    /// Standard deviation of a single score that is there however close the seeds are, old and new.
    noise: [f64; 2],
    /// No score: neither more nor less is better.
    is_diagnostic: bool,
}

/// Root of the mean square of the standard errors of several seeds.
fn root_mean_square(errors: impl Iterator<Item = f64>) -> f64 {
    mean(&errors.map(|error| error * error).collect::<Vec<_>>()).sqrt()
}

/// The samples of one job, of the same settings, or why there are none.
fn pair(key: &Key, old: &[RunResult], new: &[RunResult]) -> Result<Result<Vec<Sample>, String>> {
    if old.len() < 2 || new.len() < 2 {
        return Ok(Err(format!("{} and {} seeds, two are needed in each", old.len(), new.len())));
    }
    let entry = entries(key.0)?.into_iter().find(|entry| entry.name() == key.1);
    let range = curve_range(old, new);
    let mut samples = Vec::new();
    for (i, value) in old[0].values.iter().enumerate() {
        let noise = [old, new].map(|results| {
            root_mean_square(results.iter().filter_map(|result| Some(result.values.get(i)?.std_error)))
        });
        let of = |results: &[RunResult]| -> Option<Vec<f64>> {
            results.iter().map(|result| Some(result.values.get(i)?.value)).collect()
        };
        let (Some(old), Some(new)) = (of(old), of(new)) else { continue };
        let is_return = value.metric.ends_with("episodic_return");
        let measure = entry.as_ref().and_then(|entry| entry.measures.get(i));
        let target = measure.and_then(|measure| Some(measure.reference.as_ref()?.value));
        let (direction, tolerance) =
            measure.map_or((Direction::Max, 0.0), |measure| (measure.direction, measure.tolerance));
        let scores = |values: &[f64]| -> Vec<f64> {
            let score = |&value: &f64| match (direction, target) {
                (Direction::Max, _) | (Direction::Equal, None) => value,
                (Direction::Min, _) => -value,
                (Direction::Equal, Some(target)) => -(value - target).abs(),
            };
            values.iter().map(score).collect()
        };
        let scale = scale(&old, &new, if is_return { range } else { None });
        samples.push(Sample {
            name: format!("{}, {}", show(key), value.metric),
            old_scores: scores(&old),
            new_scores: scores(&new),
            least: if tolerance > 0.0 { tolerance } else { LEAST_EFFECT * scale },
            noise,
            is_diagnostic: false,
            old,
            new,
        });
    }
    let areas = |results: &[RunResult]| -> Option<Vec<f64>> {
        results.iter().map(|result| result.curve.mean_return()).collect()
    };
    let noise =
        [old, new].map(|results| root_mean_square(results.iter().map(|result| result.curve.std_error())));
    if let (Some(old), Some(new)) = (areas(old), areas(new)) {
        let least = LEAST_EFFECT * scale(&old, &new, range);
        samples.push(Sample {
            name: format!("{}, mean return over training", show(key)),
            old_scores: old.clone(),
            new_scores: new.clone(),
            least,
            noise,
            is_diagnostic: false,
            old,
            new,
        });
    }
    for tag in old[0].diagnostics.keys() {
        let of = |results: &[RunResult]| -> Option<Vec<f64>> {
            results.iter().map(|result| result.diagnostics.get(tag).copied()).collect()
        };
        let (Some(old), Some(new)) = (of(old), of(new)) else { continue };
        samples.push(Sample {
            name: format!("{}, {tag}", show(key)),
            old_scores: old.clone(),
            new_scores: new.clone(),
            least: LEAST_EFFECT * scale(&old, &new, None),
            noise: [0.0; 2],
            is_diagnostic: true,
            old,
            new,
        });
    }
    Ok(Ok(samples))
}

/// From the lowest to the highest point of all learning curves.
fn curve_range(old: &[RunResult], new: &[RunResult]) -> Option<f64> {
    let returns = || old.iter().chain(new).flat_map(|result| &result.curve.returns).copied();
    let (low, high) = (returns().reduce(f64::min)?, returns().reduce(f64::max)?);
    Some(high - low).filter(|range| *range > 0.0)
}

/// What a difference of scores is measured against.
fn scale(old: &[f64], new: &[f64], range: Option<f64>) -> f64 {
    let size = mean(old).abs().max(mean(new).abs());
    range.map_or(size, |range| range.min(size))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Worse,
    Better,
    Changed,
    Same,
}

/// What became of one sample.
#[derive(Debug, Clone, PartialEq)]
struct Comparison {
    verdict: Verdict,
    /// Of Welch's test, corrected for all comparisons.
    p: f64,
    text: String,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Worse => "WORSE",
            Verdict::Better => "better",
            Verdict::Changed => "CHANGED",
            Verdict::Same => "no difference beyond noise",
        };
        write!(f, "{} (p = {:.2}): {verdict}", self.text, self.p)
    }
}

/// Applies the three criteria to all samples together.
fn judge(samples: &[Sample]) -> Vec<Comparison> {
    let p_values: Vec<f64> = samples
        .iter()
        .map(|sample| {
            let noise = sample.noise.map(|noise| noise.max(NOISE * sample.least));
            welch(&sample.old_scores, &sample.new_scores, noise)
        })
        .collect();
    let one = |(sample, p): (&Sample, f64)| {
        let Sample { old_scores, new_scores, old, new, .. } = sample;
        let change = mean(new_scores) - mean(old_scores);
        let separated = || permutation(old_scores, new_scores).is_none_or(|(p, least)| p <= ALPHA.max(least));
        let counts = change.abs() >= sample.least && p <= ALPHA && separated();
        let verdict = match (counts, change < 0.0) {
            (false, _) => Verdict::Same,
            (true, _) if sample.is_diagnostic => Verdict::Changed,
            (true, true) => Verdict::Worse,
            (true, false) => Verdict::Better,
        };
        let show = |values: &[f64]| format!("{:.4} ± {:.4}", mean(values), variance(values).sqrt());
        Comparison { verdict, p, text: format!("{} → {}", show(old), show(new)) }
    };
    samples.iter().zip(holm(&p_values)).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::envs::{Rng, rng};
    use rand::RngExt;

    fn sample(old: &[f64], new: &[f64], range: f64) -> Sample {
        Sample {
            name: String::new(),
            noise: [0.0; 2],
            is_diagnostic: false,
            least: LEAST_EFFECT * scale(old, new, Some(range)),
            old: old.to_vec(),
            new: new.to_vec(),
            old_scores: old.to_vec(),
            new_scores: new.to_vec(),
        }
    }

    fn verdict(old: &[f64], new: &[f64], range: f64) -> Verdict {
        // Among as many comparisons as a whole tier makes.
        let mut samples = vec![sample(&[1.0, 2.0, 3.0], &[1.1, 1.9, 3.1], 3.0); 49];
        samples.push(sample(old, new, range));
        judge(&samples)[49].verdict
    }

    #[test]
    fn gross_failures_are_found_with_few_seeds() {
        let chance = [9.3, 9.4];
        assert_eq!(verdict(&[500.0, 500.0], &chance, 491.0), Verdict::Worse);
        assert_eq!(verdict(&chance, &[500.0, 500.0], 491.0), Verdict::Better);
        assert_eq!(verdict(&[-150.0, -160.0, -140.0], &[-1200.0, -1300.0, -1250.0], 1400.0), Verdict::Worse);
        // Five seeds, three standard deviations of the difference of means times five.
        let old = [100.0, 104.0, 96.0, 98.0, 102.0];
        assert_eq!(verdict(&old, &old.map(|v| v - 20.0), 90.0), Verdict::Worse);
    }

    #[test]
    fn seeds_that_are_close_by_luck_are_not_trusted() {
        // Q-learning on the cliff, seeds 1 to 4: a score is the mean of a hundred episodes and has a
        // standard error of about 5.
        let mut close = sample(&[-51.1, -51.7], &[-40.7, -40.6], 1000.0);
        assert_eq!(judge(&[close.clone()])[0].verdict, Verdict::Better);
        close.noise = [5.0, 5.0];
        assert_eq!(judge(&[close])[0].verdict, Verdict::Same);
    }

    #[test]
    fn small_or_uncertain_differences_are_not() {
        for (old, new) in [
            ([500.0; 5], [500.0; 5]),
            ([500.0; 5], [499.0, 500.0, 498.5, 500.0, 499.7]),
            ([500.0; 5], [500.0, 500.0, 120.0, 500.0, 500.0]),
            ([500.0, 500.0, 250.0, 500.0, 500.0], [500.0, 310.0, 500.0, 500.0, 480.0]),
            ([500.0; 5], [480.0; 5]),
        ] {
            assert_eq!(verdict(&old, &new, 490.0), Verdict::Same, "{old:?} {new:?}");
            assert_eq!(verdict(&new, &old, 490.0), Verdict::Same, "{old:?} {new:?}");
        }
        assert_eq!(verdict(&[0.0, 0.0], &[0.0, 0.0], 1.0), Verdict::Same);
    }

    /// Approximately normal: the sum of twelve uniform numbers.
    fn normal(rng: &mut Rng) -> f64 {
        (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
    }

    /// A score of one of several kinds of seed-to-seed variation.
    fn score(kind: usize, rng: &mut Rng) -> f64 {
        match kind {
            0 => 100.0 + 10.0 * normal(rng),
            1 => (480.0 + 40.0 * normal(rng)).min(500.0), // saturated
            2 => {
                if rng.random_bool(0.2) {
                    60.0 * rng.random::<f64>()
                } else {
                    500.0
                }
            } // fails sometimes
            3 => (2.0 + normal(rng)).exp(),               // skewed
            4 => 500.0,
            _ => -1.0 / rng.random::<f64>().max(1e-3), // heavy tail
        }
    }

    /// How many of 400 comparisons of unchanged algorithms, 24 samples each, give any alarm.
    fn alarms(kinds: &[usize], seeds: usize) -> usize {
        let mut rng = rng(seeds as u64, 0);
        let any = |_: &usize| {
            let mut draw = |kind| -> Vec<f64> { (0..seeds).map(|_| score(kind, &mut rng)).collect() };
            let samples: Vec<Sample> = (0..24)
                .map(|i| kinds[i % kinds.len()])
                .map(|kind| sample(&draw(kind), &draw(kind), 490.0))
                .collect();
            judge(&samples).iter().any(|comparison| comparison.verdict != Verdict::Same)
        };
        (0..400).filter(any).count()
    }

    #[test]
    fn false_alarms_are_rare() {
        // At most 5 % are promised, 20 of 400; fewer is no fault.
        for seeds in [4, 5, 8] {
            let alarms = alarms(&[0, 1, 2, 3, 4, 5], seeds);
            assert!(alarms <= 20, "{alarms} of 400 with {seeds} seeds");
        }
        for seeds in [2, 3] {
            let alarms = alarms(&[0, 1, 3, 4, 5], seeds);
            assert!(alarms <= 20, "{alarms} of 400 with {seeds} seeds");
        }
    }

    /// How often five seeds find one job of 24 moved down by so many standard deviations.
    fn found(shift: f64) -> usize {
        let mut rng = rng(1, 1);
        let is_found = |_: &usize| {
            let mut draw = |mean: f64| (0..5).map(|_| mean + 10.0 * normal(&mut rng)).collect::<Vec<f64>>();
            let mut samples: Vec<Sample> =
                (0..23).map(|_| sample(&draw(100.0), &draw(100.0), 100.0)).collect();
            samples.push(sample(&draw(100.0), &draw(100.0 - 10.0 * shift), 100.0));
            judge(&samples)[23].verdict == Verdict::Worse
        };
        (0..200).filter(is_found).count()
    }

    #[test]
    fn true_differences_are_found() {
        assert!(found(3.2) >= 100);
        assert!(found(6.0) >= 195);
    }
}
