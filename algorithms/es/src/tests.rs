use super::*;

/// F(θ) = −½ Σ_j a_j (θ_j − b_j)², whose smoothed form has the same gradient, −a (θ − b).
struct Quadratic {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Quadratic {
    fn value(&self, theta: &[f32]) -> f32 {
        let terms = theta.iter().zip(&self.a).zip(&self.b).map(|((t, a), b)| a * (t - b).powi(2));
        -0.5 * terms.sum::<f32>()
    }

    fn gradient(&self, theta: &[f32]) -> Vec<f32> {
        theta.iter().zip(&self.a).zip(&self.b).map(|((t, a), b)| -a * (t - b)).collect()
    }

    /// ĝ from mirrored pairs, with F itself for fitness.
    fn estimate(
        &self,
        theta: &[f32],
        sigma: f32,
        pairs: usize,
        noise: impl Fn(usize) -> Vec<f32>,
    ) -> Vec<f32> {
        let moved = |epsilon: &[f32], sign: f32| -> Vec<f32> {
            theta.iter().zip(epsilon).map(|(t, e)| t + sign * sigma * e).collect()
        };
        let fitness: Vec<f32> =
            (0..pairs).flat_map(|i| [1.0, -1.0].map(|sign| self.value(&moved(&noise(i), sign)))).collect();
        gradient(&fitness, sigma, theta.len(), noise)
    }
}

fn example() -> (Quadratic, Vec<f32>) {
    let quadratic = Quadratic { a: vec![1.0, 3.0, 0.5, 2.0], b: vec![0.5, -1.0, 2.0, 0.0] };
    (quadratic, vec![1.0, 1.0, -1.0, 0.3])
}

#[test]
fn the_gradient_of_a_quadratic_is_exact_along_orthogonal_directions() {
    let (quadratic, theta) = example();
    // One pair along √d e_j for each dimension j: then 1/d Σ_j ε_j ε_jᵀ is the identity.
    let along = |j| (0..4).map(|k| if k == j { 2.0 } else { 0.0 }).collect();
    let estimate = quadratic.estimate(&theta, 0.1, 4, along);
    for (estimate, exact) in estimate.iter().zip(quadratic.gradient(&theta)) {
        assert!((estimate - exact).abs() < 1e-4, "{estimate} is not {exact}");
    }
}

#[test]
fn the_gradient_of_a_quadratic_is_unbiased_under_the_noise() {
    let (quadratic, theta) = example();
    let exact = quadratic.gradient(&theta);
    let pairs = 40_000;
    let estimate = quadratic.estimate(&theta, 0.1, pairs, |i| noise(3, i as u64, 4).1);
    // ĝ_j averages (∇F·ε) ε_j, of variance |∇F|² + (∇F)_j² ≤ 2 |∇F|² each: 4 standard errors.
    let tolerance = 4.0 * (2.0 * exact.iter().map(|g| g * g).sum::<f32>() / pairs as f32).sqrt();
    for (estimate, exact) in estimate.iter().zip(exact) {
        assert!((estimate - exact).abs() < tolerance, "{estimate} is not {exact} ± {tolerance}");
    }
}

#[test]
fn what_mirrored_members_share_cancels() {
    let (mut quadratic, theta) = example();
    quadratic.a = vec![0.0; 4];
    let flat = gradient(&[7.0; 20], 0.1, 4, |i| noise(1, i as u64, 4).1);
    assert_eq!(flat, quadratic.gradient(&theta).iter().map(|g| g.abs()).collect::<Vec<_>>());
}

#[test]
fn ranks_are_centred_and_ties_share_theirs() {
    assert_eq!(centred_ranks(&[30.0, -5.0, 1e9, 7.0, 8.0]), [0.25, -0.5, 0.5, -0.25, 0.0]);
    assert_eq!(centred_ranks(&[1.0, 500.0, 500.0, 2.0, 500.0]), [-0.5, 0.25, 0.25, -0.25, 0.25]);
    assert_eq!(centred_ranks(&[500.0; 6]), [0.0; 6]);
}

#[test]
fn ascent_climbs_a_quadratic_by_its_ranks() {
    let (quadratic, theta) = example();
    let mut search = Search::new(theta);
    for _ in 0..600 {
        let first = search.generation * 16;
        let epsilon = |i: usize| noise(5, first + i as u64, 4).1;
        let mut returns = Vec::new();
        for i in 0..16 {
            for sign in [0.1, -0.1] {
                let moved: Vec<f32> =
                    search.theta.iter().zip(epsilon(i)).map(|(theta, e)| theta + sign * e).collect();
                returns.push(f64::from(quadratic.value(&moved)));
            }
        }
        let gradient = gradient(&centred_ranks(&returns), 0.1, 4, epsilon);
        search.ascend(&gradient, 0.01, 0.0);
    }
    for (theta, best) in search.theta.iter().zip(&quadratic.b) {
        assert!((theta - best).abs() < 0.1, "{:?} is not {:?}", search.theta, quadratic.b);
    }
}

#[test]
fn the_first_step_of_adam_is_its_step_size_along_the_sign() {
    let mut search = Search::new(vec![1.0, -2.0]);
    search.ascend(&[0.5, 0.0], 0.03, 0.1);
    // ĝ − λ θ = (0.4, 0.2): both go up by α, whatever their size.
    for (theta, expected) in search.theta.iter().zip([1.03, -1.97]) {
        assert!((theta - expected).abs() < 1e-6, "{theta} is not {expected}");
    }
}

#[test]
fn parameters_are_read_back_as_they_were_set() {
    let policy = Policy::new(4, 2, 1, &Device::Cpu).unwrap();
    let theta: Vec<f32> = (0..policy.parameters().unwrap().len()).map(|i| i as f32).collect();
    policy.set_parameters(&theta).unwrap();
    assert_eq!(policy.parameters().unwrap(), theta);
}
