use super::*;
use common::envs::{Spec, Step};

/// A point on a line that is pushed towards 0: x ← x + a with reward −(x² + a²). The best plans are
/// known from the Riccati equation.
struct Point {
    spec: Spec,
    x: f64,
}

fn point() -> Box<dyn Env> {
    let spec = Spec {
        id: "Point".into(),
        observation_space: Space::uniform(1, f32::NEG_INFINITY, f32::INFINITY),
        action_space: Space::uniform(1, -1.0, 1.0),
        max_episode_steps: None,
        reward_threshold: None,
    };
    Box::new(Point { spec, x: 0.0 })
}

impl Env for Point {
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn reset(&mut self, _rng: &mut Rng) -> Result<()> {
        self.x = 0.0;
        Ok(())
    }
    fn step(&mut self, action: Action<'_>, _rng: &mut Rng) -> Result<Step> {
        let a = f64::from(action.vector()[0]);
        let reward = -(self.x.powi(2) + a.powi(2));
        self.x += a;
        Ok(Step { reward, terminated: false, truncated: false })
    }
    fn observe(&self, observation: &mut [f32]) {
        observation[0] = self.x as f32;
    }
    fn state(&self) -> Result<State> {
        Ok(State(vec![self.x]))
    }
    fn set_state(&mut self, state: &State) -> Result<()> {
        self.x = state.0[0];
        Ok(())
    }
}

fn args(flags: &[&str]) -> Args {
    cli::parse_from(["cem"].iter().chain(flags).map(Into::into)).unwrap()
}

#[test]
fn the_plan_is_the_one_of_the_riccati_equation() {
    let flags = ["--horizon", "3", "--population", "200", "--elites", "20", "--iterations", "30"];
    let args = args(&flags);
    let mut planner = Planner::new(point(), &args).unwrap();
    let (x, mut rng) = (0.8, rng(1, 0));
    planner.act(&State(vec![x]), &mut rng).unwrap();
    // P₂ = 1, P₁ = 1 + P₂ − P₂² / (1 + P₂) = 1.5, and a_k = −P_{k+1} / (1 + P_{k+1}) x_k:
    // a₀ = −0.6 x, a₁ = −0.5 (0.4 x), a₂ = 0. The cost is P₀ x² = 1.6 x².
    for (actual, expected) in planner.mean.iter().zip([-0.6 * x, -0.2 * x, 0.0]) {
        assert!((f64::from(*actual) - expected).abs() < 0.01, "{:?}", planner.mean);
    }
    let plan = planner.mean.clone();
    let total = plan_return(&mut *planner.model, &State(vec![x]), plan.chunks(1), 1.0, &mut rng).unwrap();
    assert!((total + 1.6 * x * x).abs() < 1e-3, "{total}");

    // Far away the best first push is the hardest one.
    planner.forget();
    let action = planner.act(&State(vec![5.0]), &mut rng).unwrap()[0];
    assert!((-1.0..=-0.99).contains(&action), "{action}");
}

#[test]
fn the_distribution_moves_to_the_best_plans() {
    let args = args(&["--horizon", "2", "--population", "4", "--elites", "2", "--smoothing", "0.25"]);
    let mut planner = Planner::new(point(), &args).unwrap();
    planner.mean = vec![0.4, -0.4];
    planner.std = vec![0.5, 0.5];
    planner.plans = vec![9.0, 9.0, 0.1, 0.2, 9.0, 9.0, 0.5, -0.6];
    planner.returns = vec![-7.0, -1.0, -9.0, -2.0]; // plans 1 and 3 are the elites
    planner.refit();
    let mean = [0.25 * 0.4 + 0.75 * 0.3, 0.25 * -0.4 + 0.75 * -0.2];
    let std = [0.25 * 0.25 + 0.75 * 0.04, 0.25 * 0.25 + 0.75 * 0.16_f32].map(f32::sqrt);
    for (actual, expected) in planner.mean.iter().chain(&planner.std).zip(mean.iter().chain(&std)) {
        assert!((actual - expected).abs() < 1e-6, "{actual} is not {expected}");
    }
}

#[test]
fn plans_are_drawn_from_the_distribution_and_held_to_the_action_space() {
    let args = args(&["--horizon", "2", "--population", "20000"]);
    let mut planner = Planner::new(point(), &args).unwrap();
    planner.mean = vec![0.1, 0.9];
    planner.std = vec![0.2, 0.3];
    planner.sample(&mut rng(1, 0));
    let first: Vec<f32> = planner.plans.iter().step_by(2).copied().collect();
    let n = first.len() as f32;
    let mean = first.iter().sum::<f32>() / n;
    let std = (first.iter().map(|a| (a - mean).powi(2)).sum::<f32>() / n).sqrt();
    assert!((mean - 0.1).abs() < 4.0 * 0.2 / n.sqrt() && (std - 0.2).abs() < 4.0 * 0.2 / (2.0 * n).sqrt());
    // P(0.9 + 0.3 z > 1) = P(z > 1/3) = 0.3694
    let held = planner.plans.iter().skip(1).step_by(2).filter(|&&a| a == 1.0).count() as f32 / n;
    assert!((held - 0.3694).abs() < 4.0 * (0.37 * 0.63 / n).sqrt(), "{held}");
    assert!(planner.plans.iter().all(|a| (-1.0..=1.0).contains(a)));
}

#[test]
fn a_plan_is_worth_what_the_episode_still_pays() {
    let mut model = envs::make("Pendulum-v1").unwrap();
    let mut rng = rng(1, 0);
    let plan = [0.5_f32, -1.0, 2.0, 0.0, 1.5];
    let gamma: f64 = 0.9;
    // State: angle, angular velocity, steps elapsed of 200.
    for (elapsed, counted) in [(0.0, 5), (197.0, 3), (199.0, 1)] {
        let state = State(vec![1.0, -0.5, elapsed]);
        model.set_state(&state).unwrap();
        let expected: f64 = (0..counted)
            .map(|k| {
                let step = model.step(Action::Continuous(&plan[k..=k]), &mut rng).unwrap();
                gamma.powi(k as i32) * step.reward
            })
            .sum();
        let actual = plan_return(&mut *model, &state, plan.chunks(1), gamma, &mut rng).unwrap();
        assert!((actual - expected).abs() < 1e-9, "{elapsed}: {actual} is not {expected}");
    }
}

#[test]
fn the_next_plan_begins_with_the_rest_of_this_one() {
    let cold = args(&["--horizon", "3", "--warm-start", "false"]);
    let warm = args(&["--horizon", "3"]);
    for (args, expected) in [(&warm, [0.2, 0.3, 0.3]), (&cold, [0.0; 3])] {
        let mut planner = Planner::new(point(), args).unwrap();
        planner.mean = vec![0.1, 0.2, 0.3];
        planner.std = vec![0.01; 3];
        planner.begin();
        assert_eq!(planner.mean, expected);
        assert_eq!(planner.std, [0.5; 3]);
    }
}
