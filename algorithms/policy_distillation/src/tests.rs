//! The student's step against PyTorch's, teachers from model files, what is stored, and runs against
//! their pins.

use super::*;
use approx::assert_abs_diff_eq;
use common::envs::{Space, rng};
use regression::{Layers, Recording, SCRIPT, View, first_gradients, scripted};

/// The default hyper-parameters but for `flags`.
fn args(flags: &[&str]) -> Args {
    cli::parse_from(["policy_distillation"].iter().chain(flags).map(Into::into)).unwrap()
}

const STUDENT: Layers = &[("hidden0", &["student/0"]), ("head0", &["student/1"])];

fn recorded_update(name: &str, loss: &str) {
    let mut recording = Recording::open(name);
    let args = args(&[
        &format!("--loss={loss}"),
        &format!("--temperature={}", recording.number("temperature")),
        &format!("--learning-rate={}", recording.number("learning_rate")),
        "--hidden-sizes=32",
    ]);
    let mut student = Student::new(&[(4, 3)], &args).unwrap();
    assert_eq!(student.optimizer.eps, recording.number("adam_epsilon"));
    recording.set(&student.parameters, STUDENT);
    let (observations, q) = (recording.tensor("batch/observations"), recording.tensor("batch/teacher"));
    let mut losses = Vec::new();
    for update in 0..10 {
        losses.push(student.update(0, &observations, &q).unwrap().0);
        if update == 0 {
            recording.close("expected/loss/total", losses[0]);
            let gradients = first_gradients(&student.optimizer);
            recording.gradients("expected/gradients", &student.parameters, STUDENT, gradients);
            let step = recording.number("learning_rate");
            recording.parameters("expected/parameters", &student.parameters, STUDENT, step);
        }
    }
    recording.losses("expected/losses_over_updates", &losses);
    recording.finish();
}

#[test]
fn recorded_update_of_kl() {
    recorded_update("policy_distillation", "kl");
}

#[test]
fn recorded_update_of_nll() {
    recorded_update("policy_distillation__nll", "nll");
}

#[test]
fn recorded_update_of_mse() {
    recorded_update("policy_distillation__mse", "mse");
}

#[test]
fn recorded_update_of_the_soft_loss() {
    recorded_update("policy_distillation__soft", "soft");
}

#[test]
fn recorded_update_of_the_cross_entropy() {
    recorded_update("policy_distillation__cross_entropy", "cross-entropy");
}

fn tensor(values: &[&[f32]]) -> Tensor {
    Tensor::from_vec(values.concat(), (values.len(), values[0].len()), &Device::Cpu).unwrap()
}

#[test]
fn losses_are_least_where_the_student_is_the_teacher() {
    let q = tensor(&[&[30.0, 29.0, 28.5], &[-4.0, 1.0, 0.0]]);
    let loss = |flags: &[&str], z: &Tensor| -> f32 {
        let student = Student::new(&[(4, 3)], &args(flags)).unwrap();
        student.loss(z, &q).unwrap().to_scalar().unwrap()
    };
    // The student's outputs are divided by τ in the soft loss alone.
    let sharp = (&q / 0.1).unwrap();
    assert_abs_diff_eq!(loss(&["--loss=kl", "--temperature=0.1"], &sharp), 0.0, epsilon = 1e-5);
    assert!(loss(&["--loss=kl", "--temperature=0.1"], &q) > 0.1);
    assert_abs_diff_eq!(loss(&["--loss=soft", "--temperature=0.1"], &q), 0.0, epsilon = 1e-6);
    assert_eq!(loss(&["--loss=mse"], &q), 0.0);
    // A cross-entropy is a KL divergence and the target's entropy, which no student changes.
    let other = tensor(&[&[0.3, 0.1, -0.5], &[1.0, 1.0, -2.0]]);
    let entropy = loss(&["--loss=cross-entropy"], &q);
    let difference = loss(&["--loss=cross-entropy"], &other) - loss(&["--loss=kl"], &other);
    assert_abs_diff_eq!(difference, entropy, epsilon = 1e-5);
    // As τ falls to 0, the target is the best action alone.
    let [nll, kl] =
        [&["--loss=nll"][..], &["--loss=kl", "--temperature=1e-3"]].map(|flags| loss(flags, &other));
    assert_abs_diff_eq!(nll, kl, epsilon = 1e-5);
}

/// Values of a hundred at τ = 0.01 are exponents of ten thousand.
#[test]
fn sharp_targets_do_not_overflow() {
    let mut student = Student::new(&[(1, 2)], &args(&["--temperature=0.01"])).unwrap();
    let (x, q) = (tensor(&[&[0.5], &[-0.5]]), tensor(&[&[100.0, 99.0], &[-80.0, 80.0]]));
    let first = student.update(0, &x, &q).unwrap().0;
    assert!(first.is_finite() && first > 0.1);
    let last = (0..300).map(|_| student.update(0, &x, &q).unwrap()).last().unwrap();
    assert!(last.0 < 0.1 && last.1 == 1.0, "{last:?}");
}

#[test]
fn agreement_is_the_share_of_equal_best_actions() {
    let mut student = Student::new(&[(1, 2)], &args(&[])).unwrap();
    let x = tensor(&[&[0.1], &[0.2], &[0.3], &[0.4]]);
    let z = student.network.forward(0, &x).unwrap().detach();
    let same: Vec<u32> = z.argmax(1).unwrap().to_vec1().unwrap();
    // A teacher whose best action is the student's but in the first row.
    let q: Vec<f32> = same
        .iter()
        .enumerate()
        .flat_map(|(i, &a)| if (a == 0) != (i == 0) { [1.0, 0.0] } else { [0.0, 1.0] })
        .collect();
    let q = Tensor::from_vec(q, (4, 2), &Device::Cpu).unwrap();
    assert_eq!(student.update(0, &x, &q).unwrap().1, 0.75);
}

#[test]
fn tasks_share_all_layers_but_the_last() {
    let mut student = Student::new(&[(2, 2), (3, 4)], &args(&["--hidden-sizes=8"])).unwrap();
    let values = |student: &Student| regression::recorded::values(&student.parameters);
    let names: Vec<String> = student.parameters.named_vars().into_iter().map(|(name, _)| name).collect();
    let before = values(&student);
    student.update(1, &tensor(&[&[0.1, 0.2, 0.3]]), &tensor(&[&[1.0, 0.0, 0.0, 2.0]])).unwrap();
    for ((name, before), after) in names.iter().zip(before).zip(values(&student)) {
        assert_eq!(name.starts_with("head0"), before == after, "{name}");
    }
    // A short observation is followed by zeros.
    let z =
        |k: usize, x: &[f32]| student.network.forward(k, &tensor(&[x])).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(z(0, &[0.5, -0.5]), z(0, &[0.5, -0.5, 0.0]));
    assert_ne!(z(0, &[0.5, -0.5]), z(0, &[0.0, 0.5, -0.5]));
    assert_eq!(z(1, &[0.5, -0.5, 1.0])[0].len(), 4);
    let best = student.network.forward(1, &tensor(&[&[1.0, 2.0, 3.0], &[-1.0, 0.0, 4.0]])).unwrap().argmax(1);
    let actions = student.act(1, &[1.0, 2.0, 3.0, -1.0, 0.0, 4.0], 2).unwrap();
    assert_eq!(actions, best.unwrap().to_vec1::<u32>().unwrap());
}

/// A model of an algorithm as it is saved, with layers of 5 and 6 units.
fn save_model(path: &Path, algorithm: &str, prefixes: &[&str]) -> VarMap {
    let parameters = VarMap::new(9);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    for prefix in prefixes {
        let vb = if prefix.is_empty() { vb.clone() } else { vb.pp(prefix) };
        let outputs = if *prefix == "critic" { 1 } else { 2 };
        for (name, inputs, outputs) in [("hidden0", 4, 5), ("hidden1", 5, 6), ("output", 6, outputs)] {
            linear(inputs, outputs, vb.pp(name)).unwrap();
        }
    }
    model::save(path, algorithm, "CartPole-v1", &parameters).unwrap();
    parameters
}

#[test]
fn teachers_are_read_from_models_of_dqn_and_ppo() {
    let file = std::env::temp_dir().join(format!("policy_distillation_{}.safetensors", std::process::id()));
    let x = [0.4, -1.0, 0.3, 2.0, -0.1, 0.7, 1.5, -0.2];
    for (algorithm, prefixes, prefix) in [("dqn", &[""][..], ""), ("ppo", &["actor", "critic"], "actor.")] {
        let parameters = save_model(&file, algorithm, prefixes);
        let teacher = Teacher::load(&file, "CartPole-v1", (4, 2), &args(&[])).unwrap();
        let found = teacher.act(&x, 0.0, &mut rng(1, 0)).unwrap();
        // The same, layer by layer: rectified linear units or tanh.
        let vars: std::collections::BTreeMap<_, _> = parameters.named_vars().into_iter().collect();
        let mut y = rows(&x, 2, &Device::Cpu).unwrap();
        for layer in ["hidden0", "hidden1", "output"] {
            let part = |what: &str| vars[&format!("{prefix}{layer}.{what}")].as_tensor().clone();
            y = y.matmul(&part("weight").t().unwrap()).unwrap().broadcast_add(&part("bias")).unwrap();
            y = match (layer, algorithm) {
                ("output", _) => y,
                (_, "dqn") => y.relu().unwrap(),
                _ => y.tanh().unwrap(),
            };
        }
        let expected = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (found, expected) in found.1.iter().zip(&expected) {
            assert_abs_diff_eq!(found, expected, epsilon = 1e-5);
        }
        let best: Vec<u32> = expected.chunks(2).map(|q| u32::from(q[1] > q[0])).collect();
        assert_eq!(found.0, best);

        // Another task's, or another size.
        let refusal = |env_id, dims| {
            let error = Teacher::load(&file, env_id, dims, &args(&[])).err().unwrap();
            assert!(error.is::<common::envs::InvalidInput>());
            error.to_string()
        };
        let error = refusal("Acrobot-v1", (4, 2));
        assert!(
            error.starts_with("--teachers ") && error.ends_with("its env_id is CartPole-v1, not Acrobot-v1"),
            "{error}"
        );
        assert!(refusal("CartPole-v1", (4, 3)).contains("output"));
    }
    save_model(&file, "sac", &["actor"]);
    let error = Teacher::load(&file, "CartPole-v1", (4, 2), &args(&[])).err().unwrap().to_string();
    assert!(error.ends_with("its algorithm is sac, not ppo"), "{error}");
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_teacher_is_greedy_but_for_a_share_of_epsilon() {
    let teacher = Teacher::new((1, 3), &[8], true, &args(&[])).unwrap();
    let observations: Vec<f32> = (0..3000).map(|i| i as f32 / 300.0 - 5.0).collect();
    let mut rng = rng(1, 0);
    let (greedy, outputs) = teacher.act(&observations, 0.0, &mut rng).unwrap();
    for (q, action) in outputs.chunks(3).zip(&greedy) {
        assert!(q.iter().all(|other| *other <= q[*action as usize]));
    }
    let (actions, same) = teacher.act(&observations, 0.3, &mut rng).unwrap();
    assert_eq!(same, outputs);
    assert!(actions.iter().all(|&action| action < 3));
    // Two in three random actions are not the greedy one; four standard errors.
    let others =
        actions.iter().zip(&greedy).filter(|(action, greedy)| action != greedy).count() as f64 / 3000.0;
    assert!((others - 0.2).abs() < 0.03, "{others}");
}

#[test]
fn the_memory_holds_what_was_seen() {
    let (mut envs, log) = scripted(3, View::Vector, Space::Discrete { n: 2 }, SCRIPT);
    let teacher = Teacher::new((3, 2), &[4], false, &args(&[])).unwrap();
    let (mut memory, mut rng) = (Memory::default(), rng(1, 0));
    for _ in 0..20 {
        let observations = envs.observations().to_vec();
        let (actions, q) = teacher.act(&observations, 0.5, &mut rng).unwrap();
        envs.step(&actions).unwrap();
        memory.store(&observations, &q);
    }
    let happened = log.transitions();
    assert_eq!((memory.observations.len(), memory.outputs.len()), (3 * happened.len(), 2 * happened.len()));
    for (i, t) in happened.iter().enumerate() {
        assert_eq!(memory.observations[3 * i..3 * (i + 1)], t.observation, "{t:?}");
        let q = teacher.act(&t.observation, 0.0, &mut rng).unwrap().1;
        for (stored, q) in memory.outputs[2 * i..2 * (i + 1)].iter().zip(&q) {
            assert_abs_diff_eq!(stored, q, epsilon = 1e-4);
        }
    }
    // A sample is whole examples, each about as often.
    let [observations, q] = memory.sample((3, 2), 6000, &mut rng, &Device::Cpu).unwrap();
    let (observations, q) = (observations.to_vec2::<f32>().unwrap(), q.to_vec2::<f32>().unwrap());
    let mut seen = vec![0; happened.len()];
    for (x, q) in observations.iter().zip(&q) {
        let row = memory.observations.chunks(3).position(|row| row == x).unwrap();
        assert_eq!(memory.outputs[2 * row..2 * (row + 1)], q[..]);
        seen[row] += 1;
    }
    assert!(seen.iter().all(|count| (50..160).contains(count)), "{seen:?}");
}

#[test]
fn returns_are_compared_by_the_size_of_the_teachers() {
    assert_eq!(share_of(500.0, 500.0), 1.0);
    assert_abs_diff_eq!(share_of(500.0, 475.0), 0.95, epsilon = 1e-12);
    assert_abs_diff_eq!(share_of(-80.0, -84.0), 0.95, epsilon = 1e-12);
    assert_abs_diff_eq!(share_of(-80.0, -76.0), 1.05, epsilon = 1e-12);
}

/// The elites' mean is what becomes of a search; their deviation is what the second generation is drawn with.
#[test]
fn a_search_keeps_the_mean_of_the_best() {
    let seed = 4 ^ TEACHER_SEED;
    let mut noise = StandardNormal.sample_iter(learner_rng(seed));
    // Of w = (b, W), 10 numbers.
    let (mut mean, mut std) = (vec![0.0_f32; 10], vec![1.0_f32; 10]);
    for generation in 0..2 {
        let drawn: Vec<f32> = noise.by_ref().take(12 * 10).collect();
        let candidates: Vec<f32> = (0..120).map(|i| mean[i % 10] + std[i % 10] * drawn[i]).collect();
        let returns = play("CartPole-v1", 12, seed + generation, |observations| {
            let action = |(w, x): (&[f32], &[f32])| {
                let q = |a: usize| w[a] + (0..4).map(|j| w[2 + 4 * a + j] * x[j]).sum::<f32>();
                u32::from(q(1) > q(0))
            };
            Ok(candidates.chunks(10).zip(observations.chunks(4)).map(action).collect())
        })
        .unwrap();
        let mut ranking: Vec<usize> = (0..12).collect();
        ranking.sort_by(|&i, &j| returns[j].total_cmp(&returns[i]));
        assert!(returns[ranking[0]] > 2.0 * returns[ranking[11]], "{returns:?}");
        for k in 0..10 {
            let elites: Vec<f32> = ranking[..3].iter().map(|i| candidates[10 * i + k]).collect();
            mean[k] = elites.iter().sum::<f32>() / 3.0;
            let variance = elites.iter().map(|w| (w - mean[k]).powi(2)).sum::<f32>() / 3.0;
            std[k] = (variance + 0.25).sqrt(); // read after the first of two generations alone
        }
    }
    let flags = ["--generations=2", "--population=12", "--elites=3", "--seed=4"];
    let found = Teacher::search("CartPole-v1", (4, 2), &args(&flags)).unwrap();
    for (found, mean) in found.parameters.values().unwrap().into_iter().zip(mean) {
        assert_abs_diff_eq!(found, mean, epsilon = 1e-5);
    }
}

/// The defaults on one task.
#[test]
fn pinned_run() {
    let flags =
        ["--total-timesteps=1200", "--generations=4", "--population=12", "--elites=4", "--eval-episodes=3"];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "defaults", &flags, train);
}

/// Two tasks, another loss, other sizes.
#[test]
fn pinned_run_of_two_tasks() {
    let flags = [
        "--further-env-ids=Acrobot-v1",
        "--total-timesteps=800",
        "--loss=soft",
        "--temperature=0.5",
        "--learning-rate=0.01",
        "--hidden-sizes=16,8",
        "--batch-size=16",
        "--epsilon=0.3",
        "--num-envs=4",
        "--generations=2",
        "--population=6",
        "--elites=2",
        "--eval-episodes=2",
    ];
    regression::pinned(env!("CARGO_MANIFEST_DIR"), "two_tasks", &flags, train);
}
