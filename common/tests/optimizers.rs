//! Optimisers against PyTorch's, over twenty steps of gradients of every size.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use common::nn::{Adam, RmsProp, VarBuilder, VarMap, clip_grad_norm, linear};
use envs::persist::Persist;
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

/// Runs the program's RMSProp with the hyper-parameters of `name`.
fn rmsprop(recording: &Recording, name: &str, start: Tensor) -> Vec<f32> {
    let number = |key: &str| recording.number(&format!("{name}/{key}"));
    let mut rmsprop: Option<RmsProp> = None;
    after_each_step(start, &recording.tensor("batch/gradients"), |grads, var| {
        let rmsprop = rmsprop.get_or_insert_with(|| {
            let rmsprop = RmsProp::from_vars(vec![var.clone()], number("lr")).unwrap();
            let rmsprop = rmsprop.with_alpha(number("alpha"));
            match name {
                "rmsprop" => rmsprop.with_eps(number("eps")),
                _ => rmsprop
                    .with_eps_inside_root(number("eps"))
                    .with_mean_square(number("initial_mean_square") as f32)
                    .unwrap(),
            }
        });
        rmsprop.step(grads).unwrap();
    })
}

/// RMSProp in f64, and how long the way is that each parameter went.
fn rmsprop_in_f64(recording: &Recording, name: &str, start: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let number = |key: &str| recording.number(&format!("{name}/{key}"));
    let inside = name == "rmsprop_eps_inside";
    let first = if inside { number("initial_mean_square") } else { 0.0 };
    let mut theta: Vec<f64> = start.iter().map(|&x| x.into()).collect();
    let (mut v, mut way) = (vec![first; start.len()], vec![0.0; start.len()]);
    let (mut parameters, mut ways) = (Vec::new(), Vec::new());
    for gradient in recording.floats("batch/gradients").chunks(start.len()) {
        for (i, &g) in gradient.iter().enumerate() {
            let g = f64::from(g);
            v[i] = number("alpha") * v[i] + (1.0 - number("alpha")) * g * g;
            let root = if inside { (v[i] + number("eps")).sqrt() } else { v[i].sqrt() + number("eps") };
            theta[i] -= number("lr") * g / root;
            way[i] += (number("lr") * g / root).abs();
        }
        parameters.extend(&theta);
        ways.extend(&way);
    }
    (parameters, ways)
}

const RMSPROPS: [&str; 2] = ["rmsprop", "rmsprop_eps_inside"];

#[test]
fn rmsprop_is_pytorchs_and_tensorflows() {
    let mut recording = Recording::open("optimizers");
    for name in RMSPROPS {
        let expected = format!("expected/parameters/{name}");
        let found = rmsprop(&recording, name, recording.tensor("parameters/start"));
        recording.within(&expected, found, 3.0 * f64::from(f32::EPSILON), 1e-8);
        let (found, _) = rmsprop_in_f64(&recording, name, &recording.floats("parameters/start"));
        recording.within(&expected, found, 0.51 * f64::from(f32::EPSILON), 1e-9);
    }
    recording.finish();
}

/// From parameters of 0, which no rounding hides.
#[test]
fn rmsprop_steps_are_exact() {
    let mut recording = Recording::open("optimizers");
    for name in RMSPROPS {
        let found = rmsprop(&recording, name, Tensor::zeros(7, DType::F32, &Device::Cpu).unwrap());
        let (expected, ways) = rmsprop_in_f64(&recording, name, &[0.0; 7]);
        let share = |(x, way): (f64, &f64)| x / way.max(1e-30);
        let found: Vec<_> = found.into_iter().map(f64::from).zip(&ways).map(share).collect();
        let expected: Vec<_> = expected.into_iter().zip(&ways).map(share).collect();
        recording.computed(&format!("{name} from 0, of its way"), found, expected, 0.0, 2e-6);
    }
    recording.finish();
}

/// A step clips as `clip_grad_norm` before it does.
#[test]
fn rmsprop_clips_to_the_global_norm() {
    let mut recording = Recording::open("optimizers");
    let run = |separate_clipping: bool| {
        let mut rmsprop: Option<RmsProp> = None;
        let gradients = recording.tensor("batch/gradients");
        after_each_step(recording.tensor("parameters/start"), &gradients, |grads, var| {
            let rmsprop = rmsprop.get_or_insert_with(|| RmsProp::from_vars(vec![var.clone()], 0.01).unwrap());
            match separate_clipping {
                true => drop(clip_grad_norm(std::slice::from_ref(var), grads, 0.5).unwrap()),
                false => rmsprop.max_grad_norm = Some(0.5),
            }
            rmsprop.step(grads).unwrap();
        })
    };
    let [own, separate] =
        [false, true].map(|separate| run(separate).into_iter().map(f64::from).collect::<Vec<_>>());
    recording.computed("rmsprop, clipped", own, separate, 1e-6, 1e-6);
    recording.finish();
}

/// A loss of two layers, of which `used` has its say.
fn network(seed: u64) -> (VarMap, impl Fn(&str) -> Tensor) {
    let parameters = VarMap::new(seed);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let layers = [linear(3, 4, vb.pp("a")).unwrap(), linear(3, 2, vb.pp("b")).unwrap()];
    let loss = move |used: &str| {
        let x = Tensor::new(&[[1.0_f32, -2.0, 3.0], [0.5, 0.0, -1.0]], &Device::Cpu).unwrap();
        let layer = &layers[usize::from(used == "b")];
        layer.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap()
    };
    (parameters, loss)
}

/// Numbers that travelled move parameters as the loss itself does, clipped or not.
#[test]
fn gradients_as_numbers_are_the_gradients() {
    for max_grad_norm in [1e9, 0.5] {
        let ((own, loss), (other, _)) = (network(1), network(2));
        assert_ne!(own.values().unwrap(), other.values().unwrap());
        other.set_values(&own.values().unwrap()).unwrap();
        assert_eq!(own.values().unwrap(), other.values().unwrap());
        let mut adams = [&own, &other].map(|parameters| Adam::new(parameters, 0.1).unwrap());
        let mut rmsprops = [&own, &other].map(|parameters| RmsProp::new(parameters, 0.1).unwrap());
        adams = adams.map(|adam| adam.with_max_grad_norm(max_grad_norm));
        rmsprops = rmsprops.map(|rmsprop| rmsprop.with_max_grad_norm(max_grad_norm));
        for _ in 0..3 {
            let gradients = own.gradients(&(loss("a") + loss("b")).unwrap()).unwrap();
            assert_eq!(gradients.len(), own.num_parameters());
            adams[0].backward_step(&(loss("a") + loss("b")).unwrap()).unwrap();
            adams[1].step_values(&gradients).unwrap();
            assert_eq!(own.values().unwrap(), other.values().unwrap());
            let gradients = own.gradients(&(loss("a") + loss("b")).unwrap()).unwrap();
            rmsprops[0].backward_step(&(loss("a") + loss("b")).unwrap()).unwrap();
            rmsprops[1].step_values(&gradients).unwrap();
            assert_eq!(own.values().unwrap(), other.values().unwrap());
        }
    }
}

#[test]
fn gradients_as_numbers_are_in_the_parameters_order() {
    let (parameters, loss) = network(1);
    let names: Vec<_> = parameters.named_vars().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a.bias", "a.weight", "b.bias", "b.weight"]);
    let gradients = parameters.gradients(&loss("b")).unwrap();
    assert_eq!(gradients[..16], [0.0; 16]);
    assert!(gradients[16..].iter().all(|&g| g != 0.0), "{gradients:?}");
    let before = parameters.values().unwrap();
    RmsProp::new(&parameters, 0.1).unwrap().step_values(&gradients).unwrap();
    let after = parameters.values().unwrap();
    assert_eq!(before[..16], after[..16], "no gradient, no step");
    // v = 0.01 g² after the first step, so that its size is η / √0.01.
    for ((before, after), g) in before.iter().zip(&after).zip(&gradients).skip(16) {
        assert!((before - after - g.signum()).abs() < 1e-5, "{before} {after}");
    }
    for len in [23, 25] {
        let refused = [
            parameters.set_values(&vec![0.0; len]).unwrap_err().to_string(),
            Adam::new(&parameters, 0.1).unwrap().step_values(&vec![0.0; len]).unwrap_err().to_string(),
            RmsProp::new(&parameters, 0.1).unwrap().step_values(&vec![0.0; len]).unwrap_err().to_string(),
        ];
        for error in refused {
            assert!(error.contains(&format!("{len} numbers for 24 parameters")), "{error}");
        }
    }
}

#[test]
fn rmsprop_goes_on_where_it_was_saved() {
    let ((own, loss), (other, other_loss)) = (network(1), network(2));
    let mut rmsprop = RmsProp::new(&own, 0.01).unwrap();
    let (a, b) = (loss("a"), loss("b"));
    rmsprop.backward_step(&(a + b).unwrap()).unwrap();
    rmsprop.learning_rate = 0.02;
    let mut resumed = RmsProp::new(&other, 0.5).unwrap();
    resumed.load(&rmsprop.save().unwrap()).unwrap();
    other.set_values(&own.values().unwrap()).unwrap();
    // The step size is a flag's or a schedule's.
    assert_eq!(resumed.learning_rate, 0.5);
    resumed.learning_rate = 0.02;
    assert_eq!(resumed.mean_squares().unwrap(), rmsprop.mean_squares().unwrap());
    rmsprop.backward_step(&loss("a")).unwrap();
    resumed.backward_step(&other_loss("a")).unwrap();
    assert_eq!(own.values().unwrap(), other.values().unwrap());
    let single = RmsProp::from_vars(own.all_vars()[..1].to_vec(), 0.1).unwrap();
    let error = resumed.load(&single.save().unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("it holds moments of 1 parameters, not of 4"), "{error}");
    let mut other = RmsProp::from_vars(own.all_vars()[1..2].to_vec(), 0.1).unwrap();
    let error = other.load(&single.save().unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("its parameter 0 has 4 moments, not 12"), "{error}");
}

#[test]
fn rmsprop_refuses_a_gradient_that_is_not_finite() {
    let (parameters, _) = network(1);
    let before = parameters.values().unwrap();
    let mut gradients = vec![0.1; parameters.num_parameters()];
    gradients[7] = f32::NAN;
    let mut rmsprop = RmsProp::new(&parameters, 0.1).unwrap();
    let error = rmsprop.step_values(&gradients).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
    assert_eq!(parameters.values().unwrap(), before);
}
