//! Tests that tell a change of an algorithm from the luck of its seeds.

use common::envs::rng;
use rand::RngExt;
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::statistics::Statistics;

/// Arithmetic mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    Statistics::mean(values)
}

/// Variance of the population that `values` are a sample of (divided by n − 1); 0 of fewer than
/// two.
pub fn variance(values: &[f64]) -> f64 {
    if values.len() < 2 { 0.0 } else { Statistics::variance(values) }
}

/// The mean of what is left when a quarter of the values, rounded down, is left out at either end; NaN of
/// nothing.
pub fn interquartile_mean(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quarter = sorted.len() / 4;
    mean(&sorted[quarter..sorted.len() - quarter])
}

/// The 95 % interval of a statistic by the percentiles of 2,000 bootstrap resamples of at least one value;
/// the same values always give the same interval.
pub fn bootstrap(values: &[f64], statistic: fn(&[f64]) -> f64) -> (f64, f64) {
    let mut rng = rng(0, 0);
    let mut draw = || values[rng.random_range(0..values.len())];
    let mut resampled: Vec<f64> =
        (0..2000).map(|_| statistic(&(0..values.len()).map(|_| draw()).collect::<Vec<_>>())).collect();
    resampled.sort_by(f64::total_cmp);
    (resampled[49], resampled[1950])
}

/// P(x > y) for an x of `a` and a y of `b`, ties counted half (Mann & Whitney 1947).
pub fn probability_of_improvement(a: &[f64], b: &[f64]) -> f64 {
    let wins = a.iter().flat_map(|x| {
        b.iter().map(move |y| match x.total_cmp(y) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Greater => 1.0,
        })
    });
    wins.sum::<f64>() / (a.len() * b.len()) as f64
}

/// p-value of Welch's two-sided t-test (Welch 1947) of equal means of `a` and `b`, each at least
/// two values.
///
/// No standard deviation counts as less than that of the `noise`, of `a` and of `b`, which is known
/// to be there. Scores often sit at a limit, as the 500 of CartPole, and a few seeds may lie close
/// together by luck: t would be large for the smallest difference.
pub fn welch(a: &[f64], b: &[f64], noise: [f64; 2]) -> f64 {
    // Variances of the two means.
    let of_mean = |values: &[f64], noise: f64| variance(values).max(noise * noise) / values.len() as f64;
    let (va, vb) = (of_mean(a, noise[0]), of_mean(b, noise[1]));
    let difference = mean(a) - mean(b);
    if difference == 0.0 {
        return 1.0;
    }
    if va + vb == 0.0 {
        return 0.0;
    }
    let t = difference / (va + vb).sqrt();
    // Satterthwaite's degrees of freedom.
    let freedom = (va + vb).powi(2) / (va * va / (a.len() - 1) as f64 + vb * vb / (b.len() - 1) as f64);
    student(t, freedom)
}

/// P(|T| ≥ |t|) of Student's distribution with ν ≥ 1 degrees of freedom.
fn student(t: f64, freedom: f64) -> f64 {
    // Location and scale are valid, so there is a distribution.
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::NAN, |student| 2.0 * student.sf(t.abs()))
}

/// The exact two-sided permutation test (Fisher 1935): of all ways to share the values out to
/// groups of these sizes, the part in which the means differ by at least as much; and the least
/// such number that these sizes allow. `None` beyond twenty values, where there are too many ways.
pub fn permutation(a: &[f64], b: &[f64]) -> Option<(f64, f64)> {
    let all: Vec<f64> = [a, b].concat();
    if all.len() > 20 {
        return None;
    }
    let total: f64 = all.iter().sum();
    let difference = |sum: f64| (sum / a.len() as f64 - (total - sum) / b.len() as f64).abs();
    // Sums in another order are equal only to within rounding.
    let observed = difference(a.iter().sum()) - 1e-9 * all.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let (mut extreme, mut ways) = (0_u32, 0_u32);
    for group in 0..1_u32 << all.len() {
        if group.count_ones() as usize == a.len() {
            let sum: f64 = all.iter().enumerate().filter(|(i, _)| group >> i & 1 == 1).map(|(_, v)| v).sum();
            ways += 1;
            extreme += u32::from(difference(sum) >= observed);
        }
    }
    // Groups of equal size can change places.
    let least = if a.len() == b.len() { 2 } else { 1 };
    Some((f64::from(extreme) / f64::from(ways), f64::from(least) / f64::from(ways)))
}

/// Holm's correction (1979) for several tests at once: rejecting where the result is at most α
/// errs anywhere at all with probability at most α. In the order of `p_values`.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&i, &j| p_values[i].total_cmp(&p_values[j]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest = 0.0_f64;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max((p_values.len() - rank) as f64 * p_values[i]).min(1.0);
        adjusted[i] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} {b}");
    }

    #[test]
    fn student_meets_the_tables() {
        // Critical values of the two-sided test.
        for (freedom, t, p) in [
            (1.0, 12.7062, 0.05),
            (2.0, 4.30265, 0.05),
            (4.0, 2.77645, 0.05),
            (4.0, 8.61030, 0.001),
            (8.0, 2.30600, 0.05),
            (30.0, 2.04227, 0.05),
        ] {
            near(student(t, freedom), p, 1e-5 * p.max(0.1));
            near(student(-t, freedom), p, 1e-5 * p.max(0.1));
        }
        near(student(0.0, 3.3), 1.0, 1e-9);
        // ν = 1 is Cauchy's distribution and ν = 2 has a closed form, far into the tail as well.
        for t in [0.1, 1.0, 30.0, 1e4] {
            near(student(t, 1.0) / (2.0 / std::f64::consts::PI * (1.0 / t).atan()), 1.0, 1e-6);
            // 1 − t/√(2 + t²), written so that nothing cancels.
            let root = (2.0 + t * t).sqrt();
            near(student(t, 2.0) / (2.0 / (root * (root + t))), 1.0, 1e-6);
        }
    }

    #[test]
    fn welch_is_the_pooled_test_where_groups_are_alike() {
        // Equal sizes and variances: t = Δ / √(2 s²/n) with 2n − 2 degrees of freedom.
        let (a, b) = ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]);
        near(welch(&a, &b, [0.0; 2]), student(3.0 / (2.0_f64 / 3.0).sqrt(), 4.0), 1e-12);
        near(welch(&a, &b, [0.0; 2]), welch(&b, &a, [0.0; 2]), 1e-12);
        near(welch(&a, &b, [0.0; 2]), 0.021312, 1e-5);
        assert_eq!(welch(&a, &a, [0.0; 2]), 1.0);
        // Neither adding a constant nor a change of unit matters.
        let scale = |values: &[f64]| values.iter().map(|v| 7.0 - 3.0 * v).collect::<Vec<_>>();
        near(welch(&scale(&a), &scale(&b), [0.0; 2]), welch(&a, &b, [0.0; 2]), 1e-12);
    }

    #[test]
    fn saturated_scores_are_not_certain() {
        let (a, b) = ([500.0; 3], [499.5; 3]);
        assert_eq!(welch(&a, &b, [0.0; 2]), 0.0);
        assert!(welch(&a, &b, [5.0; 2]) > 0.8);
        assert!(welch(&a, &[9.0; 3], [5.0; 2]) < 1e-5);
    }

    #[test]
    fn permutations_are_counted() {
        // 20 ways; only the two extreme ones separate the groups like this.
        assert_eq!(permutation(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), Some((0.1, 0.1)));
        assert_eq!(permutation(&[1.0, 1.0], &[1.0, 1.0]).unwrap().0, 1.0);
        // The mirror image, {5, 6, 7} against the rest, is as extreme: 2 of 35.
        let (p, least) = permutation(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0, 7.0]).unwrap();
        assert_eq!((p, least), (2.0 / 35.0, 1.0 / 35.0));
        assert_eq!(permutation(&[0.0; 11], &[0.0; 11]), None);
    }

    #[test]
    fn outliers_are_left_out_of_the_interquartile_mean() {
        assert_eq!(interquartile_mean(&[100.0, 3.0, 1.0, -50.0, 2.0]), 2.0);
        assert_eq!(interquartile_mean(&[1.0, 2.0, 6.0]), 3.0);
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        let (low, high) = bootstrap(&values, mean);
        // The standard error is 28.9 / √100; a normal interval is 1.96 of them to either side.
        near(low, 49.5 - 5.66, 0.6);
        near(high, 49.5 + 5.66, 0.6);
    }

    #[test]
    fn improvements_are_counted_with_ties_half() {
        assert_eq!(probability_of_improvement(&[2.0, 3.0], &[1.0, 2.0]), 3.5 / 4.0);
        assert_eq!(probability_of_improvement(&[1.0], &[1.0]), 0.5);
    }

    #[test]
    fn holm_steps_down() {
        let adjusted = holm(&[0.04, 0.01, 0.03]);
        for (a, b) in adjusted.iter().zip([0.06, 0.03, 0.06]) {
            near(*a, b, 1e-12);
        }
        assert_eq!(holm(&[0.9, 0.8]), vec![1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
