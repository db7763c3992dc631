//! ES's update against PyTorch's, its estimate against a function whose gradient is known, its
//! directions, its episodes, and runs against their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{MAX_EPISODE_STEPS, Space, rng};
use regression::recorded::values;
use regression::scripted::End;
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// Of 2 actions, with the default hyper-parameters but for `flags` and layers, of which there may be none.
fn of(observation_dim: usize, hidden_sizes: &[usize], flags: &[&str]) -> Es {
    let args: Args = cli::parse_from(["es"].iter().chain(flags).map(Into::into)).unwrap();
    Es::new(observation_dim, 2, &Args { hidden_sizes: hidden_sizes.to_vec(), ..args }).unwrap()
}

/// The same, of 4 numbers.
fn es(hidden_sizes: &[usize], flags: &[&str]) -> Es {
    of(4, hidden_sizes, flags)
}

/// All numbers of a map, in its order.
fn flat(parameters: &VarMap) -> Vec<f32> {
    values(parameters).into_iter().flat_map(|(_, values)| values).collect()
}

const LAYERS: Layers = &[("hidden0", &["actor/0"]), ("output", &["actor/1"])];

/// From recorded returns and noise to the step of Adam. With `ties_by_order` equal returns were ranked
/// by their position, where ours share the mean of their ranks: then fitness is taken as recorded.
fn recorded_update(name: &str, ties_by_order: bool) {
    let mut recording = Recording::open(name);
    let learning_rate = recording.number("learning_rate");
    let mut es = es(
        &[16],
        &[
            &format!("--sigma={}", recording.number("sigma")),
            &format!("--population-size={}", 2.0 * recording.number("pairs")),
            &format!("--weight-decay={}", recording.number("weight_decay")),
            &format!("--learning-rate={learning_rate}"),
        ],
    );
    assert_eq!(es.optimizer.eps, recording.number("adam_epsilon"));
    recording.set(&es.parameters, LAYERS);

    let returns: Vec<f64> = recording.floats("batch/returns").into_iter().map(f64::from).collect();
    let fitness = if ties_by_order {
        recording.floats("expected/shaped_returns")
    } else {
        let fitness = centred_ranks(&returns);
        recording.close("expected/shaped_returns", &fitness);
        fitness
    };
    // Recorded in the order weight [16, 4], bias [16], weight [2, 16], bias [2]; ours goes by name.
    let noise = recording.floats("noise/normal");
    let noise = |pair: usize| {
        let row = &noise[pair * 114..(pair + 1) * 114];
        [&row[64..80], &row[..64], &row[112..], &row[80..112]].concat()
    };
    let gradient = es.gradient(&fitness, noise);
    for (i, layer) in ["0.bias", "0.weight", "1.bias", "1.weight"].iter().enumerate() {
        recording.close(&format!("expected/estimate/actor/{layer}"), &es.split(&gradient).unwrap()[i]);
    }
    es.update(&gradient).unwrap();
    recording.gradients("expected/gradients", &es.parameters, LAYERS, first_gradients(&es.optimizer));
    recording.parameters("expected/parameters", &es.parameters, LAYERS, learning_rate);
    assert_eq!(es.generation, 1);
    recording.finish();
}

#[test]
fn recorded_update_with_mean_ranks() {
    recorded_update("es", false);
}

#[test]
fn recorded_update_with_ranks_by_order() {
    recorded_update("es__ties_by_order", true);
}

/// F(θ) = −½ Σ_j a_j (θ_j − b_j)², whose smoothed form has the same gradient, −a (θ − b).
struct Quadratic {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Quadratic {
    /// Of all parameters of `es`.
    fn new(es: &Es) -> Self {
        let n = es.parameters.num_parameters();
        Self {
            a: (0..n).map(|j| 0.5 + (j % 5) as f32).collect(),
            b: (0..n).map(|j| (j as f32).sin()).collect(),
        }
    }

    fn value(&self, theta: &[f32]) -> f32 {
        let terms = theta.iter().zip(&self.a).zip(&self.b).map(|((t, a), b)| a * (t - b).powi(2));
        -0.5 * terms.sum::<f32>()
    }

    fn gradient(&self, theta: &[f32]) -> Vec<f32> {
        theta.iter().zip(&self.a).zip(&self.b).map(|((t, a), b)| -a * (t - b)).collect()
    }

    /// F of every member: of the file's own θ ± σ ε.
    fn of_members(&self, es: &Es, pairs: usize, noise: impl Fn(usize) -> Vec<f32>) -> Vec<f32> {
        let mut values = Vec::new();
        for pair in 0..pairs {
            for sign in [1.0, -1.0] {
                es.set_member(sign, &noise(pair)).unwrap();
                values.push(self.value(&flat(&es.member_parameters)));
            }
        }
        values
    }
}

#[test]
fn the_gradient_of_a_quadratic_is_exact_along_orthogonal_directions() {
    let es = es(&[], &["--sigma=0.5"]); // 10 parameters
    let quadratic = Quadratic::new(&es);
    // One pair along √d e_j for each dimension j: then 1/d Σ_j ε_j ε_jᵀ is the identity.
    let along = |j| (0..10).map(|k| if k == j { 10.0_f32.sqrt() } else { 0.0 }).collect();
    let before = values(&es.parameters);
    let estimate = es.gradient(&quadratic.of_members(&es, 10, along), along);
    for (estimate, exact) in estimate.iter().zip(quadratic.gradient(&flat(&es.parameters))) {
        assert_abs_diff_eq!(*estimate, exact, epsilon = 1e-3);
    }
    assert_eq!(values(&es.parameters), before, "θ moved with its members");
}

#[test]
fn the_gradient_of_a_quadratic_is_unbiased_under_the_noise() {
    let es = es(&[], &[]);
    let quadratic = Quadratic::new(&es);
    let exact = quadratic.gradient(&flat(&es.parameters));
    let (pairs, noise) = (20_000, |pair| es.noise(pair).0);
    let estimate = es.gradient(&quadratic.of_members(&es, pairs, noise), noise);
    // ĝ_j averages (∇F·ε) ε_j, of variance |∇F|² + (∇F)_j² ≤ 2 |∇F|² each: 4 standard errors.
    let size = exact.iter().map(|g| g * g).sum::<f32>();
    for (estimate, exact) in estimate.iter().zip(exact) {
        assert_abs_diff_eq!(*estimate, exact, epsilon = 4.0 * (2.0 * size / pairs as f32).sqrt());
    }
}

#[test]
fn every_pair_of_every_generation_has_directions_and_an_episode_of_its_own() {
    let mut es = es(&[], &["--population-size=6"]);
    let mut seen: Vec<(Vec<f32>, u64)> = Vec::new();
    for generation in 0..4 {
        assert_eq!(es.generation, generation);
        for pair in 0..3 {
            let noise = es.noise(pair);
            assert_eq!(noise, es.noise(pair), "another rank would make other noise");
            assert_eq!(noise.0.len(), 10);
            for (epsilon, episode_seed) in &seen {
                assert!(epsilon.iter().zip(&noise.0).all(|(a, b)| a != b) && *episode_seed != noise.1);
            }
            seen.push(noise);
        }
        es.update(&[0.0; 10]).unwrap();
    }
    // The environments of the run draw from their own streams.
    let environment = rng(es.args.run.seed, 0).random::<u64>();
    assert!(seen.iter().all(|(_, episode_seed)| *episode_seed != environment));
}

#[test]
fn what_mirrored_members_share_cancels() {
    let es = es(&[], &[]);
    assert_eq!(es.gradient(&[7.0; 20], |pair| es.noise(pair).0), [0.0; 10]);
}

#[test]
fn ranks_are_centred_and_ties_share_theirs() {
    assert_eq!(centred_ranks(&[30.0, -5.0, 1e9, 7.0, 8.0]), [0.25, -0.5, 0.5, -0.25, 0.0]);
    assert_eq!(centred_ranks(&[1.0, 500.0, 500.0, 2.0, 500.0]), [-0.5, 0.25, 0.25, -0.25, 0.25]);
    assert_eq!(centred_ranks(&[500.0; 6]), [0.0; 6]);
}

#[test]
fn ascent_climbs_a_quadratic_by_its_ranks() {
    let mut es = es(&[], &["--population-size=32", "--learning-rate=0.02", "--weight-decay=0"]);
    let quadratic = Quadratic::new(&es);
    let mut distances = Vec::new();
    for _ in 0..300 {
        let noise = |pair| es.noise(pair).0;
        let returns: Vec<f64> = quadratic.of_members(&es, 16, noise).into_iter().map(f64::from).collect();
        let gradient = es.gradient(&centred_ranks(&returns), noise);
        es.update(&gradient).unwrap();
        let theta = flat(&es.parameters);
        let gaps = theta.iter().zip(&quadratic.b).map(|(theta, best)| (theta - best).abs());
        distances.push(gaps.fold(0.0, f32::max));
    }
    assert!(distances[0] > 0.8 && distances[299] < 0.1, "{} to {}", distances[0], distances[299]);
}

#[test]
fn the_first_step_of_adam_is_its_step_size_along_the_sign() {
    let mut es = es(&[], &["--learning-rate=0.03", "--weight-decay=0.1"]);
    let theta = es.split(&[1.0, -2.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]).unwrap();
    es.parameters.all_vars().iter().zip(theta).for_each(|(parameter, theta)| parameter.set(&theta).unwrap());
    es.update(&[0.5, 0.0, 0.0, 0.0, 0.05, 0.2, -1.0, 1.0, 1.0, 1.0]).unwrap();
    // ĝ − λ θ = (0.4, 0.2, 0, −0.1, −0.05, 0.1, −1.1, 0.9, …): up or down by α, whatever the size.
    let expected = [1.03, -1.97, 0.0, 0.97, 0.97, 1.03, 0.97, 1.03, 1.03, 1.03];
    for (theta, expected) in flat(&es.parameters).iter().zip(expected) {
        assert_abs_diff_eq!(*theta, expected, epsilon = 1e-6);
    }
}

#[test]
fn the_member_plays_whole_episodes() {
    let (mut envs, log) = scripted(1, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let es = of(3, &[8], &[]);
    es.set_member(-1.0, &es.noise(0).0).unwrap();
    // Every reset begins the script's next episode: (length, end) = (4, truncated), (1, terminated), …
    for (episode, length, sum) in [(1, 4, 50.0), (3, 2, 63.0)] {
        let played = es.play(&mut envs, 7).unwrap();
        assert_eq!((played.length, played.episodic_return), (length, sum));
        let happened = log.transitions();
        let own: Vec<_> = happened.iter().filter(|t| t.episode == episode).collect();
        assert_eq!(own.len(), length as usize);
        for t in own {
            // What the member does best, not what θ does.
            let best = es.act_greedily(&es.member, &t.observation).unwrap()[0];
            assert_eq!(t.action[0], best as f32);
        }
    }
}

#[test]
fn an_episode_without_end_is_cut() {
    let (mut envs, _) = scripted(1, View::Vector, Space::Discrete { n: 2 }, &[(100_000, End::Terminated)]);
    let es = of(3, &[], &[]);
    let episode = es.play(&mut envs, 7).unwrap();
    assert_eq!(episode.length, MAX_EPISODE_STEPS);
    assert_eq!(episode.episodic_return, envs.running_returns()[0]);
    assert!(episode.episodic_return > 1e8); // Σ (t + 11)
}

/// What the defaults do over a few generations of short episodes.
#[test]
fn pinned_run() {
    let flags = ["--total-timesteps=3000", "--population-size=10", "--workers=3", "--eval-episodes=3"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}
