//! Learning curves of several seeds: the mean over them and how sure it is.

use common::envs::rng;
use common::plot::Curve;
use rand::RngExt;

/// A run: its episodes, (environment step at which it ended, its return).
pub type Episodes = Vec<(f64, f64)>;

/// Episodes that end within this part of the run's length around a point are averaged there.
const WINDOW: f64 = 0.05;

/// Resamples of the bootstrap. Their randomness moves an end of the interval by about 1.5 % of its
/// width, √(0.025 · 0.975 / 2000) / φ(1.96) standard errors, which is less than a line is thick.
const RESAMPLES: usize = 2_000;

/// A curve of `points` evenly spaced points from `runs`, one a seed, each a list of episodes
/// `(environment step at which it ended, its return)` in any order. Numbers that are not
/// finite and runs without episodes are left out.
///
/// The points span the steps that every run covers. Each run is smoothed by a running mean:
/// its value at a point is the mean return of the episodes that ended at most 2.5 % of that
/// span before or after; where none did, the line between the two episodes around it.
///
/// - Several runs: the mean over seeds, and the 95 % bootstrap interval of that mean
///   (percentiles of 2,000 resamples of the seeds; the same data always give the same
///   interval). The label becomes `label (5 seeds, 95% CI)`.
/// - One run: the band reaches from the 10 % to the 90 % quantile of the returns that are
///   averaged, or to their mean where that lies outside. The label becomes
///   `label (1 seed, 10–90% of episodes)`.
pub fn from_runs(label: impl Into<String>, runs: &[Episodes], points: usize) -> Curve {
    let label = label.into();
    let (runs, xs, half_window) = grid(runs, points);
    if xs.is_empty() {
        return Curve { label, xs, mean: vec![], low: vec![], high: vec![] };
    }

    if let [run] = &runs[..] {
        let label = format!("{label} (1 seed, 10–90% of episodes)");
        let mut curve = Curve { label, xs, mean: vec![], low: vec![], high: vec![] };
        let mut returns = Vec::new();
        for &x in &curve.xs {
            returns.clear();
            returns.extend(episodes_around(run, x, half_window).iter().map(|episode| episode.1));
            let mean = running_mean(run, x, half_window);
            if returns.is_empty() {
                returns.push(mean);
            }
            returns.sort_unstable_by(f64::total_cmp);
            curve.mean.push(mean);
            curve.low.push(quantile(&returns, 0.1).min(mean));
            curve.high.push(quantile(&returns, 0.9).max(mean));
        }
        return curve;
    }

    let label = format!("{label} ({} seeds, 95% CI)", runs.len());
    let at = |x: f64| runs.iter().map(|run| running_mean(run, x, half_window)).collect();
    let values: Vec<Vec<f64>> = xs.iter().map(|&x| at(x)).collect();
    over_seeds(label, xs, &values)
}

/// The mean over seeds at each of `xs` and its 95 % bootstrap interval, as in [`from_runs`];
/// `values[x]` has one number a seed, the same number of them everywhere and at least one.
pub fn over_seeds(label: impl Into<String>, xs: Vec<f64>, values: &[Vec<f64>]) -> Curve {
    let num_seeds = values.first().map_or(1, Vec::len);
    // One set of resampled seeds for all points: the band is as smooth as the curves are.
    let mut rng = rng(0, 0);
    let picks: Vec<usize> = (0..RESAMPLES * num_seeds).map(|_| rng.random_range(0..num_seeds)).collect();
    let mut curve = Curve { label: label.into(), xs, mean: vec![], low: vec![], high: vec![] };
    for values in values {
        let mut means: Vec<f64> = picks
            .chunks_exact(num_seeds)
            .map(|seeds| seeds.iter().map(|&seed| values[seed]).sum::<f64>() / num_seeds as f64)
            .collect();
        means.sort_unstable_by(f64::total_cmp);
        curve.mean.push(values.iter().sum::<f64>() / num_seeds as f64);
        curve.low.push(quantile(&means, 0.025));
        curve.high.push(quantile(&means, 0.975));
    }
    curve
}

/// The smoothed returns of each run at the steps of [`from_runs`]: `[run][point]`, runs
/// without usable episodes left out.
pub fn of_each_run(runs: &[Episodes], points: usize) -> Vec<Vec<f64>> {
    let (runs, xs, half_window) = grid(runs, points);
    runs.iter().map(|run| xs.iter().map(|&x| running_mean(run, x, half_window)).collect()).collect()
}

/// Finite, and small enough that sums and differences of a few thousand such numbers are too.
fn is_usable(value: f64) -> bool {
    value.abs() < 1e300
}

/// The usable episodes of a run in the order in which they ended.
fn tidy(run: &[(f64, f64)]) -> Episodes {
    let mut run: Vec<_> = run.iter().copied().filter(|(x, y)| is_usable(*x) && is_usable(*y)).collect();
    run.sort_by(|a, b| a.0.total_cmp(&b.0));
    run
}

/// The usable runs, `points` evenly spaced steps over what all of them cover, and half of the
/// window in which episodes are averaged.
fn grid(runs: &[Episodes], points: usize) -> (Vec<Episodes>, Vec<f64>, f64) {
    let runs: Vec<Episodes> = runs.iter().map(|run| tidy(run)).filter(|run| !run.is_empty()).collect();
    if runs.is_empty() || points == 0 {
        return (runs, vec![], 0.0);
    }
    let start = runs.iter().map(|run| run[0].0).fold(f64::MIN, f64::max);
    let end = runs.iter().map(|run| run[run.len() - 1].0).fold(f64::MAX, f64::min);
    let xs = if start < end && points > 1 {
        let last = (points - 1) as f64;
        (0..points).map(|i| start + (end - start) * (i as f64 / last)).collect()
    } else {
        vec![start.max(end)]
    };
    (runs, xs, (end - start).max(0.0) * WINDOW / 2.0)
}

/// The episodes that ended at most `half_window` steps from `x`.
fn episodes_around(run: &[(f64, f64)], x: f64, half_window: f64) -> &[(f64, f64)] {
    let first = run.partition_point(|episode| episode.0 < x - half_window);
    let end = run.partition_point(|episode| episode.0 <= x + half_window);
    &run[first..end]
}

/// Mean return around `x`; between two distant episodes, the straight line from one to the other.
fn running_mean(run: &[(f64, f64)], x: f64, half_window: f64) -> f64 {
    let window = episodes_around(run, x, half_window);
    if !window.is_empty() {
        return window.iter().map(|episode| episode.1).sum::<f64>() / window.len() as f64;
    }
    let next = run.partition_point(|episode| episode.0 < x);
    match (next.checked_sub(1).map(|i| run[i]), run.get(next)) {
        (Some((x0, y0)), Some(&(x1, y1))) => y0 + (y1 - y0) * ((x - x0) / (x1 - x0)),
        (Some((_, y)), None) | (None, Some(&(_, y))) => y,
        (None, None) => f64::NAN,
    }
}

/// The `p`-quantile of ascending values, linear between neighbours (type 7 of Hyndman & Fan 1996,
/// NumPy's default).
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let position = p * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_match_numpy() {
        // numpy.quantile([1, 2, 4, 8], q)
        let values = [1.0, 2.0, 4.0, 8.0];
        for (p, expected) in [(0.0, 1.0), (0.1, 1.3), (0.5, 3.0), (0.9, 6.8), (1.0, 8.0)] {
            approx::assert_relative_eq!(quantile(&values, p), expected, max_relative = 1e-12);
        }
        assert_eq!(quantile(&[3.0], 0.9), 3.0);
    }

    #[test]
    fn one_run_is_averaged_over_the_window() {
        // 1001 episodes, returns 0 and 10 in turn: every window averages to about 5.
        let run: Vec<_> = (0..=1000).map(|i| (f64::from(i) * 10.0, f64::from(i % 2) * 10.0)).collect();
        let curve = from_runs("PPO", &[run], 11);
        assert_eq!(curve.label, "PPO (1 seed, 10–90% of episodes)");
        assert_eq!(curve.xs, (0..11).map(|i| f64::from(i) * 1000.0).collect::<Vec<_>>());
        // The window at 5000 reaches from 4750 to 5250: 51 episodes, 475 to 525, 26 of them odd.
        approx::assert_relative_eq!(curve.mean[5], 260.0 / 51.0, max_relative = 1e-12);
        assert_eq!((curve.low[5], curve.high[5]), (0.0, 10.0));
        // At the start only its later half exists: episodes 0 to 25, 13 of them odd.
        approx::assert_relative_eq!(curve.mean[0], 5.0, max_relative = 1e-12);
    }

    #[test]
    fn distant_episodes_are_joined_by_a_line() {
        let curve = from_runs("PPO", &[vec![(1000.0, 50.0), (0.0, -50.0)]], 5);
        assert_eq!(curve.mean, [-50.0, -25.0, 0.0, 25.0, 50.0]);
        assert_eq!(curve.low, curve.mean);
        assert_eq!(curve.high, curve.mean);
    }

    #[test]
    fn seeds_are_averaged_where_all_have_data() {
        let run = |first: u32, last: u32, value: f64| -> Vec<(f64, f64)> {
            (first..=last).map(|i| (f64::from(i) * 10.0, value)).collect()
        };
        let runs = [run(0, 100, 1.0), run(10, 120, 2.0), run(5, 110, 6.0)];
        let curve = from_runs("PPO", &runs, 10);
        assert_eq!(curve.label, "PPO (3 seeds, 95% CI)");
        assert_eq!((curve.xs[0], curve.xs[9]), (100.0, 1000.0));
        for i in 0..10 {
            approx::assert_relative_eq!(curve.mean[i], 3.0, max_relative = 1e-12);
            // Of 27 equally likely resamples one is all 1 and one is all 6, 3.7 % each: the 2.5 %
            // and 97.5 % percentiles of their means are these two.
            assert_eq!((curve.low[i], curve.high[i]), (1.0, 6.0));
        }
        assert_eq!(curve, from_runs("PPO", &runs, 10), "the same data, another interval");
    }

    #[test]
    fn bootstrap_interval_has_the_width_theory_gives() {
        // 40 seeds with returns 30, 31, …, 69: standard deviation √((40² − 1) / 12) = 11.54, standard
        // error of the mean 11.54 / √40 = 1.825, so the interval is 49.5 ± 1.96 · 1.825.
        let runs: Vec<_> = (30..70).map(|value| vec![(0.0, value.into()), (100.0, value.into())]).collect();
        let curve = from_runs("PPO", &runs, 2);
        approx::assert_abs_diff_eq!(curve.mean[1], 49.5, epsilon = 1e-9);
        approx::assert_abs_diff_eq!(curve.mean[1] - curve.low[1], 3.577, epsilon = 0.25);
        approx::assert_abs_diff_eq!(curve.high[1] - curve.mean[1], 3.577, epsilon = 0.25);
    }

    #[test]
    fn unusable_episodes_are_left_out() {
        let noisy = vec![(0.0, 1.0), (f64::NAN, 5.0), (50.0, f64::INFINITY), (100.0, 1.0), (60.0, f64::NAN)];
        let curve = from_runs("PPO", &[noisy, vec![], vec![(1.0, f64::NAN)]], 3);
        assert_eq!(curve.label, "PPO (1 seed, 10–90% of episodes)");
        assert_eq!((curve.xs, curve.mean), (vec![0.0, 50.0, 100.0], vec![1.0; 3]));
        for curve in [
            from_runs("PPO", &[], 100),
            from_runs("PPO", &[vec![]], 100),
            from_runs("PPO", &[vec![(1.0, 1.0)]], 0),
        ] {
            assert_eq!((curve.xs.len(), curve.mean.len(), curve.low.len()), (0, 0, 0));
        }
        // Seeds that share no steps meet in one point.
        let curve = from_runs("PPO", &[vec![(10.0, 1.0)], vec![(20.0, 3.0)]], 100);
        assert_eq!((curve.xs, curve.mean), (vec![20.0], vec![2.0]));
    }
}
