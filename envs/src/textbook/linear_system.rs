//! DoubleIntegrator-v0, LaplacianSystem-v0 and LaplacianSystem-v0-noiseless: linear systems with
//! quadratic costs, the one family of continuous problems whose optimum is known in closed form.
//!
//! The double integrator is the textbook's example of the linear quadratic regulator: position and velocity
//! of a mass that is pushed. The other is that of Dean, Mania, Matni, Recht & Tu (2020), "On the sample
//! complexity of the linear quadratic regulator", arXiv:1710.01688, section 6: three servers that heat up a
//! little if they are not cooled, and warm their neighbours.

use crate::{Action, Canvas, Env, Result, Rng, Space, Spec, State, Step, canvas::palette, env::expect_len};
use rand::RngExt;
use rand_distr::StandardNormal;

/// State x, `[n]`; control u, `[m]`, without bounds. One step is
///
/// ```text
/// r = −(q xᵀx + uᵀu)
/// x ← A x + B u + w              w ~ N(0, I) where the system is noisy, else 0
/// ```
///
/// | id | A | B | q | noisy | steps |
/// |---|---|---|---|---|---|
/// | DoubleIntegrator-v0 | `[[1, 1], [0, 1]]` | `[0, 1]` | 1 | no | 50 |
/// | LaplacianSystem-v0 | 1.01 on the diagonal, 0.01 beside it | I | 0.001 | yes | 1000 |
/// | LaplacianSystem-v0-noiseless | the same | I | 0.001 | no | 1000 |
///
/// An episode begins with x ~ N(0, I), as if one such w had just come, and is cut off after so many steps;
/// nothing is terminated. The state is observed as it is. With P the solution of the discrete algebraic
/// Riccati equation and K = (I + BᵀPB)⁻¹ BᵀPA the best controls are u = −K x, and from x on they cost xᵀPx
/// in all where nothing is noisy, tr(P) a step where it is.
pub struct LinearSystem {
    spec: Spec,
    a: &'static [f64], // A, [n, n]
    b: &'static [f64], // B, [n, m]
    q: f64,            // what xᵀx costs
    noisy: bool,
    x: Vec<f64>, // [n]
}

impl LinearSystem {
    /// DoubleIntegrator-v0, at the origin.
    pub fn double_integrator() -> Self {
        Self::new("DoubleIntegrator-v0", &[1.0, 1.0, 0.0, 1.0], &[0.0, 1.0], 2, 1.0, false, 50)
    }

    /// LaplacianSystem-v0 or, if it is not `noisy`, LaplacianSystem-v0-noiseless, at the origin.
    pub fn laplacian(noisy: bool) -> Self {
        const A: [f64; 9] = [1.01, 0.01, 0.0, 0.01, 1.01, 0.01, 0.0, 0.01, 1.01];
        const B: [f64; 9] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let id = if noisy { "LaplacianSystem-v0" } else { "LaplacianSystem-v0-noiseless" };
        Self::new(id, &A, &B, 3, 1e-3, noisy, 1000)
    }

    fn new(
        id: &str,
        a: &'static [f64],
        b: &'static [f64],
        n: usize,
        q: f64,
        noisy: bool,
        max_episode_steps: u32,
    ) -> Self {
        let spec = Spec {
            id: id.into(),
            observation_space: Space::uniform(n, f32::NEG_INFINITY, f32::INFINITY),
            action_space: Space::uniform(b.len() / n, f32::NEG_INFINITY, f32::INFINITY),
            max_episode_steps: Some(max_episode_steps),
            reward_threshold: None,
        };
        Self { spec, a, b, q, noisy, x: vec![0.0; n] }
    }
}

impl Env for LinearSystem {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn reset(&mut self, rng: &mut Rng) -> Result<()> {
        self.x.fill_with(|| rng.sample(StandardNormal));
        Ok(())
    }

    /// Action: u, `[m]`.
    fn step(&mut self, action: Action<'_>, rng: &mut Rng) -> Result<Step> {
        let u = action.vector();
        let cost = self.q * self.x.iter().map(|x| x * x).sum::<f64>()
            + u.iter().map(|&u| f64::from(u) * f64::from(u)).sum::<f64>();
        let mut next = Vec::with_capacity(self.x.len());
        for (row_a, row_b) in self.a.chunks(self.x.len()).zip(self.b.chunks(u.len())) {
            let ax: f64 = row_a.iter().zip(&self.x).map(|(a, x)| a * x).sum();
            let bu: f64 = row_b.iter().zip(u).map(|(b, &u)| b * f64::from(u)).sum();
            let w: f64 = if self.noisy { rng.sample(StandardNormal) } else { 0.0 };
            next.push(ax + bu + w);
        }
        self.x = next;
        Ok(Step { reward: -cost, terminated: false, truncated: false })
    }

    /// x
    fn observe(&self, observation: &mut [f32]) {
        for (observed, x) in observation.iter_mut().zip(&self.x) {
            *observed = *x as f32;
        }
    }

    fn state(&self) -> Result<State> {
        Ok(State(self.x.clone()))
    }

    fn set_state(&mut self, state: &State) -> Result<()> {
        expect_len(&self.spec.id, state, self.x.len())?;
        self.x.clone_from(&state.0);
        Ok(())
    }

    /// A bar for each number of the state, from the line in the middle to at most 5 away from it.
    fn draw(&self, canvas: &mut Canvas) -> Result<()> {
        let n = self.x.len() as f64;
        canvas.clear(palette::WHITE);
        canvas.view(-0.5, -5.5, n + 0.5, 5.5);
        for (i, x) in self.x.iter().enumerate() {
            let (left, height) = (i as f64 + 0.2, x.clamp(-5.0, 5.0));
            canvas.rectangle(left, height.min(0.0), 0.6, height.abs(), palette::VERMILLION);
        }
        canvas.rectangle(0.0, -0.04, n, 0.08, palette::BLACK);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{VecEnv, rng};
    use approx::assert_abs_diff_eq;

    /// P and K of a system with B = e_n (one control) or B = I, where BᵀPB is a corner of P or P itself, by
    /// iterating P ← Q + AᵀPA − AᵀPB (I + BᵀPB)⁻¹ BᵀPA from 0 on.
    fn riccati(system: &LinearSystem) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let n = system.x.len();
        let m = system.b.len() / n;
        let a = |i: usize, j: usize| system.a[i * n + j];
        let b = |i: usize, j: usize| system.b[i * m + j];
        let (mut p, mut k) = (vec![vec![0.0; n]; n], vec![]);
        for _ in 0..3000 {
            let pa = |i: usize, j: usize| (0..n).map(|l| p[i][l] * a(l, j)).sum::<f64>();
            let pb = |i: usize, j: usize| (0..n).map(|l| p[i][l] * b(l, j)).sum::<f64>();
            // [I + BᵀPB | BᵀPA], turned into [I | K] by elimination
            let identity = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
            let mut rows: Vec<Vec<f64>> = (0..m)
                .map(|i| {
                    let left =
                        (0..m).map(|j| identity(i, j) + (0..n).map(|l| b(l, i) * pb(l, j)).sum::<f64>());
                    let right = (0..n).map(|j| (0..n).map(|l| b(l, i) * pa(l, j)).sum::<f64>());
                    left.chain(right).collect()
                })
                .collect();
            for i in 0..m {
                let pivot = rows[i][i];
                rows[i].iter_mut().for_each(|x| *x /= pivot);
                let row = rows[i].clone();
                for other in (0..m).filter(|other| *other != i) {
                    let factor = rows[other][i];
                    rows[other].iter_mut().zip(&row).for_each(|(x, y)| *x -= factor * y);
                }
            }
            k = rows.iter().map(|row| row[m..].to_vec()).collect();
            let apb = |i: usize, j: usize| (0..n).map(|l| a(l, i) * pb(l, j)).sum::<f64>();
            let next = |i: usize, j: usize| {
                system.q * identity(i, j) + (0..n).map(|l| a(l, i) * pa(l, j)).sum::<f64>()
                    - (0..m).map(|l| apb(i, l) * k[l][j]).sum::<f64>()
            };
            p = (0..n).map(|i| (0..n).map(|j| next(i, j)).collect()).collect();
        }
        (p, k)
    }

    /// u = −K x
    fn control(k: &[Vec<f64>], x: &[f64]) -> Vec<f32> {
        k.iter().map(|row| -row.iter().zip(x).map(|(k, x)| k * x).sum::<f64>() as f32).collect()
    }

    #[test]
    fn a_step_is_the_formula() {
        let mut env = LinearSystem::double_integrator();
        env.set_state(&State(vec![2.0, -0.5])).unwrap();
        let step = env.step(Action::Continuous(&[0.25]), &mut rng(1, 0)).unwrap();
        assert_eq!(step, Step { reward: -(4.0 + 0.25 + 0.0625), terminated: false, truncated: false });
        assert_eq!(env.state().unwrap().0, [1.5, -0.25]);
        let mut env = LinearSystem::laplacian(false);
        env.set_state(&State(vec![1.0, -2.0, 3.0])).unwrap();
        let step = env.step(Action::Continuous(&[0.5, 0.0, -4.0]), &mut rng(1, 0)).unwrap();
        assert_abs_diff_eq!(step.reward, -(1e-3 * 14.0 + 16.25), epsilon = 1e-12);
        for (x, expected) in env.state().unwrap().0.iter().zip([1.49, -1.98, -0.99]) {
            assert_abs_diff_eq!(*x, expected, epsilon = 1e-12);
        }
        assert!(env.set_state(&State(vec![1.0])).is_err());
        assert!(env.set_state(&State(vec![1.0, f64::NAN, 0.0])).is_err());
    }

    #[test]
    fn the_double_integrators_optimum_is_known() {
        let mut env = LinearSystem::double_integrator();
        let (p, k) = riccati(&env);
        // In forty decimal digits.
        for (found, expected) in k[0].iter().zip([0.422_082_440_385_453, 1.243_928_853_903_714]) {
            assert_abs_diff_eq!(*found, expected, epsilon = 1e-9);
        }
        let expected =
            [2.947_122_966_707_013, 2.369_205_407_092_467, 2.369_205_407_092_467, 4.613_134_260_996_18];
        for (found, expected) in p.iter().flatten().zip(expected) {
            assert_abs_diff_eq!(*found, expected, epsilon = 1e-9);
        }
        // From x on these controls cost xᵀPx, and others more.
        let x = [1.5, -0.5];
        let mut cost = |k: &[Vec<f64>]| {
            env.set_state(&State(x.to_vec())).unwrap();
            let mut step = || {
                let u = control(k, &env.state().unwrap().0);
                -env.step(Action::Continuous(&u), &mut rng(1, 0)).unwrap().reward
            };
            (0..50).map(|_| step()).sum::<f64>()
        };
        let best = p[0][0] * x[0] * x[0] + 2.0 * p[0][1] * x[0] * x[1] + p[1][1] * x[1] * x[1];
        assert_abs_diff_eq!(cost(&k), best, epsilon = 1e-6);
        for change in [-0.1, 0.1] {
            assert!(cost(&[vec![k[0][0] + change, k[0][1]]]) > best + 1e-3);
            assert!(cost(&[vec![k[0][0], k[0][1] + change]]) > best + 1e-3);
        }
    }

    #[test]
    fn the_laplacian_systems_optimum_is_known() {
        let mut env = LinearSystem::laplacian(true);
        let (p, k) = riccati(&env);
        assert_abs_diff_eq!((0..3).map(|i| p[i][i]).sum::<f64>(), 0.137287, epsilon = 1e-6);
        let expected = [0.043731, 0.012509, 0.045, 0.012509, 0.043731];
        for (found, expected) in [k[0][0], k[0][1], k[1][1], k[2][1], k[2][2]].iter().zip(expected) {
            assert_abs_diff_eq!(*found, expected, epsilon = 1e-6);
        }
        // Under noise they cost tr(P) a step; neighbours in time are alike, so that 500,000 steps are worth
        // about 30,000 and one part in a hundred is two standard errors.
        let generator = &mut rng(1, 0);
        env.reset(generator).unwrap();
        let n = 500_000;
        let mut step = || {
            let u = control(&k, &env.x);
            -env.step(Action::Continuous(&u), generator).unwrap().reward
        };
        let mean = (0..n).map(|_| step()).sum::<f64>() / f64::from(n);
        assert_abs_diff_eq!(mean, 0.137287, epsilon = 0.004);
    }

    #[test]
    fn noise_and_first_states_are_standard_normal_and_independent() {
        let generator = &mut rng(3, 0);
        let (mut noisy, mut noiseless) = (LinearSystem::laplacian(true), LinearSystem::laplacian(false));
        let (mut first, mut noise) = (vec![], vec![]);
        let n = 20_000;
        for _ in 0..n {
            noisy.reset(generator).unwrap();
            first.push(noisy.x.clone());
            noiseless.set_state(&noisy.state().unwrap()).unwrap();
            for env in [&mut noisy, &mut noiseless] {
                env.step(Action::Continuous(&[1.0, 0.0, -1.0]), generator).unwrap();
            }
            noise.push(noisy.x.iter().zip(&noiseless.x).map(|(x, y)| x - y).collect::<Vec<_>>());
        }
        let n = f64::from(n);
        for (xs, ys) in [(&first, &first), (&noise, &noise), (&first, &noise)] {
            for (i, j) in (0..9).map(|k| (k / 3, k % 3)) {
                let product = xs.iter().zip(ys).map(|(x, y)| x[i] * y[j]).sum::<f64>() / n;
                let expected = if i == j && std::ptr::eq(xs, ys) { 1.0 } else { 0.0 };
                assert_abs_diff_eq!(product, expected, epsilon = 5.0 * (1.0 + expected) / n.sqrt());
                assert_abs_diff_eq!(xs.iter().map(|x| x[i]).sum::<f64>() / n, 0.0, epsilon = 5.0 / n.sqrt());
            }
        }
    }

    #[test]
    fn episodes_are_cut_off_and_nothing_is_terminated() {
        for (id, limit, m) in [
            ("DoubleIntegrator-v0", 50, 1),
            ("LaplacianSystem-v0", 1000, 3),
            ("LaplacianSystem-v0-noiseless", 1000, 3),
        ] {
            let mut envs = VecEnv::make(id, 1, 3).unwrap();
            for step in 1..=limit {
                envs.step(&vec![-1e-3_f32; m]).unwrap();
                assert_eq!(
                    (envs.terminated()[0], envs.truncated()[0]),
                    (false, step == limit),
                    "{id} {step}"
                );
            }
            let mut canvas = Canvas::new(90, 60);
            envs.draw(0, &mut canvas).unwrap();
        }
    }
}
