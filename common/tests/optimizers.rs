//! Optimisers against PyTorch's, over twenty steps of gradients of every size.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use common::nn::{Adam, clip_grad_norm};
use regression::Recording;

/// The parameters after each step along the recorded gradients.
fn after_each_step(
    start: Tensor,
    gradients: &Tensor,
    mut step: impl FnMut(&mut GradStore, &Var),
) -> Vec<f32> {
    let var = Var::from_tensor(&start).unwrap();
    // Only a backward pass makes a store of gradients.
    let mut grads = var.sum_all().unwrap().backward().unwrap();
    let mut found = Vec::new();
    for t in 0..gradients.dim(0).unwrap() {
        grads.insert(&var, gradients.get(t).unwrap());
        step(&mut grads, &var);
        found.extend(var.to_vec1::<f32>().unwrap());
    }
    found
}

/// Runs the program's Adam with the hyper-parameters of `name`, its gradients clipped by itself or
/// by `clip_grad_norm`.
fn adam(recording: &Recording, name: &str, start: Tensor, separate_clipping: bool) -> Vec<f32> {
    let number = |key: &str| recording.number(&format!("{name}/{key}"));
    let max_norm = (name == "adam_clipped").then(|| number("max_grad_norm"));
    let mut adam: Option<Adam> = None;
    after_each_step(start, &recording.tensor("batch/gradients"), |grads, var| {
        let adam = adam.get_or_insert_with(|| {
            let adam = Adam::from_vars(vec![var.clone()], number("lr")).unwrap().with_eps(number("eps"));
            match max_norm {
                Some(norm) if !separate_clipping => adam.with_max_grad_norm(norm),
                _ => adam,
            }
        });
        if let Some(norm) = max_norm.filter(|_| separate_clipping) {
            clip_grad_norm(std::slice::from_ref(var), grads, norm).unwrap();
        }
        adam.step(grads).unwrap();
    })
}

/// Adam in f64, and how long the way is that each parameter went.
fn adam_in_f64(recording: &Recording, name: &str, start: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let number = |key: &str| recording.number(&format!("{name}/{key}"));
    let [beta1, beta2] = recording.numbers(&format!("{name}/betas")).try_into().unwrap();
    let mut theta: Vec<f64> = start.iter().map(|&x| x.into()).collect();
    let (mut m, mut v, mut way) = (vec![0.0; start.len()], vec![0.0; start.len()], vec![0.0; start.len()]);
    let (mut parameters, mut ways) = (Vec::new(), Vec::new());
    for (t, gradient) in (1..).zip(recording.floats("batch/gradients").chunks(start.len())) {
        let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let scale =
            if name == "adam_clipped" { (number("max_grad_norm") / (norm + 1e-6)).min(1.0) } else { 1.0 };
        for i in 0..start.len() {
            let g = f64::from(gradient[i]) * scale;
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            let (m_hat, v_hat) = (m[i] / (1.0 - beta1.powi(t)), v[i] / (1.0 - beta2.powi(t)));
            let step = number("lr") * m_hat / (v_hat.sqrt() + number("eps"));
            theta[i] -= step;
            way[i] += step.abs();
        }
        parameters.extend(&theta);
        ways.extend(&way);
    }
    (parameters, ways)
}

const ADAMS: [&str; 3] = ["adam", "adam_eps_1e-5", "adam_clipped"];

/// Parameters as large as the recorded ones are rounded by as much as a thousandth of a step.
#[test]
fn adam_and_clipping_are_pytorchs() {
    let mut recording = Recording::open("optimizers");
    for name in ADAMS {
        let expected = format!("expected/parameters/{name}");
        for separate_clipping in [false, true] {
            let found = adam(&recording, name, recording.tensor("parameters/start"), separate_clipping);
            recording.within(&expected, found, 3.0 * f64::from(f32::EPSILON), 1e-8);
        }
        let (found, _) = adam_in_f64(&recording, name, &recording.floats("parameters/start"));
        recording.within(&expected, found, 0.51 * f64::from(f32::EPSILON), 1e-9);
    }
    recording.finish();
}

/// From parameters of 0, which no rounding hides, every step is as long as it should be: 1 − β₂ in
/// f32, next to a correction in f64, makes the first ones 6e-6 too long.
#[test]
fn adam_steps_are_exact() {
    let mut recording = Recording::open("optimizers");
    for name in ADAMS {
        let zeros = Tensor::zeros(7, DType::F32, &Device::Cpu).unwrap();
        let found = adam(&recording, name, zeros, false);
        let (expected, ways) = adam_in_f64(&recording, name, &[0.0; 7]);
        let share = |(x, way): (f64, &f64)| x / way.max(1e-30);
        let found: Vec<_> = found.into_iter().map(f64::from).zip(&ways).map(share).collect();
        let expected: Vec<_> = expected.into_iter().zip(&ways).map(share).collect();
        recording.computed(&format!("{name} from 0, of its way"), found, expected, 0.0, 2e-6);
    }
    recording.finish();
}
