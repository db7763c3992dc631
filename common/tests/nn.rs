//! The fused network parts against plain ones: values and gradients against stock candle's own
//! operations and against finite differences of a naive version, over shapes, views and batch
//! sizes that proptest chooses.

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use common::envs::persist::Persist;
use common::envs::{Rng, rng};
use common::nn::{
    Activation, Adam, Categorical, Conv2d, Conv2dConfig, Init, Linear, VarBuilder, VarMap, backward, both,
    clip_grad_norm, conv2d, conv2d_orthogonal, copy_parameters, linear, linear_orthogonal, soft_update,
    with_threads,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::RngExt;

/// What proptest chooses is the same on every run.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 64, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..Default::default() }
}

/// How a tensor lies in its storage.
#[derive(Debug, Clone, Copy)]
enum View {
    Contiguous,
    /// With the order of its dimensions reversed.
    Transposed,
    /// A part of a larger tensor.
    Narrowed,
}

fn views() -> impl Strategy<Value = View> {
    prop_oneof![Just(View::Contiguous), Just(View::Transposed), Just(View::Narrowed)]
}

fn activations() -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::Identity), Just(Activation::Relu), Just(Activation::Tanh)]
}

fn normal(shape: &[usize], rng: &mut Rng) -> Tensor {
    Init::Randn { mean: 0.0, stdev: 1.0 }.tensor(shape, rng, &Device::Cpu).unwrap()
}

/// A variable of normal numbers and the view of it that has `shape`.
fn variable(shape: &[usize], view: View, rng: &mut Rng) -> (Var, Tensor) {
    let mut stored = shape.to_vec();
    match view {
        View::Contiguous => {}
        View::Transposed => stored.reverse(),
        View::Narrowed => stored[shape.len() - 1] += 3,
    }
    let var = Var::from_tensor(&normal(&stored, rng)).unwrap();
    let seen = view.of(&var);
    assert_eq!(seen.dims(), shape);
    (var, seen)
}

impl View {
    fn of(self, stored: &Tensor) -> Tensor {
        let last = stored.rank() - 1;
        match self {
            View::Contiguous => stored.clone(),
            View::Transposed => stored.permute((0..=last).rev().collect::<Vec<_>>()).unwrap(),
            View::Narrowed => stored.narrow(last, 2, stored.dims()[last] - 3).unwrap(),
        }
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A dense layer with its weight and bias.
fn dense(in_dim: usize, out_dim: usize, rng: &mut Rng) -> (Linear, Var, Var) {
    let (weight, _) = variable(&[out_dim, in_dim], View::Contiguous, rng);
    let (bias, _) = variable(&[out_dim], View::Contiguous, rng);
    (Linear::new(weight.as_tensor().clone(), bias.as_tensor().clone()), weight, bias)
}

/// The largest difference, relative to the largest number but at least to 1.
fn difference(ours: &Tensor, reference: &Tensor) -> f32 {
    assert_eq!(ours.dims(), reference.dims());
    let (ours, reference) = (values(ours), values(reference));
    let scale = reference.iter().fold(1.0_f32, |scale, x| scale.max(x.abs()));
    ours.iter().zip(&reference).fold(0.0, |worst: f32, (a, b)| worst.max((a - b).abs())) / scale
}

/// ∂ Σ weights ⊙ y / ∂ each variable.
fn gradients(y: &Tensor, weights: &Tensor) -> GradStore {
    (y * weights).unwrap().sum_all().unwrap().backward().unwrap()
}

/// Checks `ours` and its gradients against `stock`.
fn same(ours: &Tensor, stock: &Tensor, vars: &[&Var], tolerance: f32, rng: &mut Rng) {
    assert!(difference(ours, stock) < tolerance, "values differ by {}", difference(ours, stock));
    let weights = normal(ours.dims(), rng);
    let (ours, stock) = (gradients(ours, &weights), gradients(stock, &weights));
    for (i, var) in vars.iter().enumerate() {
        let difference = difference(ours.get(var).unwrap(), stock.get(var).unwrap());
        assert!(difference < tolerance, "gradients of input {i} differ by {difference}");
    }
}

/// Checks that a layer held constant gives its parameters no gradient and its input the same one,
/// and that an input held constant gets none and leaves the parameters' as they were.
fn constants_get_no_gradient(
    layer: impl Fn(&Tensor) -> Result<Tensor>,
    detached: impl Fn(&Tensor) -> Result<Tensor>,
    x: &Tensor,
    parameters: [&Var; 2],
) {
    let y = layer(x).unwrap();
    let weights = normal(y.dims(), &mut rng(1, 0));
    let all = gradients(&y, &weights);
    let seen = Var::from_tensor(&x.contiguous().unwrap()).unwrap();
    let input = gradients(&detached(seen.as_tensor()).unwrap(), &weights);
    let with_parameters = gradients(&layer(seen.as_tensor()).unwrap(), &weights);
    assert_eq!(difference(input.get(&seen).unwrap(), with_parameters.get(&seen).unwrap()), 0.0);
    let constant_input = x.detach();
    let parameters_only = gradients(&layer(&constant_input).unwrap(), &weights);
    assert!(parameters_only.get(&constant_input).is_none());
    for parameter in parameters {
        assert!(input.get(parameter).is_none());
        assert_eq!(difference(parameters_only.get(parameter).unwrap(), all.get(parameter).unwrap()), 0.0);
    }
}

fn activate(z: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(z.clone()),
        Activation::Relu => z.relu(),
        Activation::Tanh => z.tanh(),
    }
}

/// A convolution of `[batch, height, width, channels]` by its definition, in f64, without
/// activation.
struct Naive {
    x: [usize; 4],      // [batch, height, width, channels]
    weight: [usize; 4], // [out_channels, channels, kernel_height, kernel_width]
    config: Conv2dConfig,
}

impl Naive {
    fn out(&self) -> [usize; 4] {
        let ([batch, height, width, _], [out_channels, _, kernel_height, kernel_width]) =
            (self.x, self.weight);
        let out =
            |size: usize, kernel: usize| (size + 2 * self.config.padding - kernel) / self.config.stride + 1;
        [batch, out(height, kernel_height), out(width, kernel_width), out_channels]
    }

    fn forward(&self, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let [batch, out_height, out_width, out_channels] = self.out();
        let ([_, height, width, channels], [_, _, kernel_height, kernel_width]) = (self.x, self.weight);
        let mut y = Vec::new();
        for at in 0..batch * out_height * out_width * out_channels {
            let (out, position) = (at % out_channels, at / out_channels);
            let (out_x, row) = (position % out_width, position / out_width);
            let (out_y, image) = (row % out_height, row / out_height);
            let mut sum = bias[out];
            for channel in 0..channels {
                for ky in 0..kernel_height {
                    for kx in 0..kernel_width {
                        let row = (out_y * self.config.stride + ky).checked_sub(self.config.padding);
                        let column = (out_x * self.config.stride + kx).checked_sub(self.config.padding);
                        let (Some(row), Some(column)) = (row, column) else { continue };
                        if row < height && column < width {
                            sum += x[((image * height + row) * width + column) * channels + channel]
                                * weight
                                    [((out * channels + channel) * kernel_height + ky) * kernel_width + kx];
                        }
                    }
                }
            }
            y.push(sum);
        }
        y
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_dense_layer_is_candle_s(
        (batch, in_dim, out_dim) in (1..40_usize, 1..40_usize, 1..40_usize),
        view in views(),
        activation in activations(),
        seed in any::<u64>(),
    ) {
        let rng = &mut rng(seed, 0);
        let (x_var, x) = variable(&[batch, in_dim], view, rng);
        let (weight, _) = variable(&[out_dim, in_dim], View::Contiguous, rng);
        let (bias, _) = variable(&[out_dim], View::Contiguous, rng);
        let layer = Linear::new(weight.as_tensor().clone(), bias.as_tensor().clone());
        let stock = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        let stock = activate(&stock, activation).unwrap();
        let forward = |x: &Tensor| layer.forward_with(x, activation);
        same(&forward(&x).unwrap(), &stock, &[&x_var, &weight, &bias], 1e-5, rng);
        let detached = layer.detach();
        let constant = |x: &Tensor| detached.forward_with(x, activation);
        constants_get_no_gradient(forward, constant, &x, [&weight, &bias]);
    }

    /// The slopes of a tanh layer, whose derivative the backward pass finds from the output.
    #[test]
    fn a_dense_layer_has_the_gradients_of_its_definition(
        (batch, in_dim, out_dim) in (1..10_usize, 1..10_usize, 1..10_usize),
        view in views(),
        seed in any::<u64>(),
    ) {
        let rng = &mut rng(seed, 0);
        let (x_var, x) = variable(&[batch, in_dim], view, rng);
        let (weight, _) = variable(&[out_dim, in_dim], View::Contiguous, rng);
        let (bias, _) = variable(&[out_dim], View::Contiguous, rng);
        let layer = Linear::new(weight.as_tensor().clone(), bias.as_tensor().clone());
        let y = layer.forward_tanh(&x).unwrap();
        let output = |[x, weight, bias]: &[Vec<f64>; 3]| -> Vec<f64> {
            let z = |n: usize, out: usize| -> f64 {
                let row = &x[n * in_dim..(n + 1) * in_dim];
                let dot = row.iter().zip(&weight[out * in_dim..]).map(|(x, w)| x * w).sum::<f64>();
                dot + bias[out]
            };
            (0..batch * out_dim).map(|at| z(at / out_dim, at % out_dim).tanh()).collect()
        };
        let inputs = [(&x_var, view), (&weight, View::Contiguous), (&bias, View::Contiguous)];
        has_the_slopes_of(&y, inputs, output, rng);
    }

    #[test]
    fn a_convolution_is_candle_s(
        (batch, size, kernel) in (1..5_usize, 5..12_usize, 1..5_usize),
        (channels, out_channels) in (1..6_usize, 1..10_usize),
        (padding, stride) in (0..3_usize, 1..4_usize),
        view in views(),
        activation in activations(),
        seed in any::<u64>(),
    ) {
        let rng = &mut rng(seed, 0);
        let (x_var, x) = variable(&[batch, size, size, channels], view, rng);
        let (weight, _) = variable(&[out_channels, channels, kernel, kernel], View::Contiguous, rng);
        let (bias, _) = variable(&[out_channels], View::Contiguous, rng);
        let config = Conv2dConfig { padding, stride };
        let layer = Conv2d::new(weight.as_tensor().clone(), bias.as_tensor().clone(), config);
        let stock = x.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap();
        let stock = stock.conv2d(&weight, padding, stride, 1, 1).unwrap().permute((0, 2, 3, 1)).unwrap();
        let stock = stock.contiguous().unwrap().broadcast_add(&bias).unwrap();
        let stock = activate(&stock, activation).unwrap();
        let forward = |x: &Tensor| layer.forward_with(x, activation);
        same(&forward(&x).unwrap(), &stock, &[&x_var, &weight, &bias], 1e-5, rng);
        let detached = layer.detach();
        let constant = |x: &Tensor| detached.forward_with(x, activation);
        constants_get_no_gradient(forward, constant, &x, [&weight, &bias]);
    }

    /// Images and kernels that need not be square.
    #[test]
    fn a_convolution_has_the_gradients_of_its_definition(
        (batch, height, width) in (1..4_usize, 4..10_usize, 4..10_usize),
        (kernel_height, kernel_width) in (1..5_usize, 1..5_usize),
        (channels, out_channels) in (1..5_usize, 1..5_usize),
        (padding, stride) in (0..6_usize, 1..4_usize),
        (x_view, weight_view) in (views(), views()),
        seed in any::<u64>(),
    ) {
        let rng = &mut rng(seed, 0);
        let config = Conv2dConfig { padding, stride };
        let x = [batch, height, width, channels];
        let naive = Naive { x, weight: [out_channels, channels, kernel_height, kernel_width], config };
        let (x_var, x) = variable(&naive.x, x_view, rng);
        let (weight_var, weight) = variable(&naive.weight, weight_view, rng);
        let (bias_var, bias) = variable(&[out_channels], View::Contiguous, rng);
        let layer = Conv2d::new(weight.clone(), bias.clone(), config);
        let y = layer.forward_tanh(&x).unwrap();
        prop_assert_eq!(y.dims(), &naive.out());
        let output = |[x, weight, bias]: &[Vec<f64>; 3]| -> Vec<f64> {
            naive.forward(x, weight, bias).iter().map(|z| z.tanh()).collect()
        };
        let inputs = [(&x_var, x_view), (&weight_var, weight_view), (&bias_var, View::Contiguous)];
        has_the_slopes_of(&y, inputs, output, rng);
    }

    /// The sizes at which products take another way: few rows or few outputs of many inputs, a short
    /// first layer, rows of a multiple of 256.
    #[test]
    fn a_large_dense_layer_is_candle_s(
        (batch, in_dim, out_dim) in prop_oneof![
            (1..9_usize, 100..300_usize, 100..300_usize),
            (100..300_usize, 100..300_usize, 1..9_usize),
            (100..300_usize, 1..40_usize, 30..300_usize),
            (9..100_usize, prop::sample::select(vec![256_usize, 512, 1024]), 32..100_usize),
        ],
        seed in any::<u64>(),
    ) {
        let rng = &mut rng(seed, 0);
        let (x_var, x) = variable(&[batch, in_dim], View::Contiguous, rng);
        let (layer, weight, bias) = dense(in_dim, out_dim, rng);
        let stock = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        same(&layer.forward(&x).unwrap(), &stock, &[&x_var, &weight, &bias], 1e-4, rng);
    }

    /// A layer used twice, and one whose weight also has a gradient of candle's own.
    #[test]
    fn gradients_without_zeros_are_candle_s(
        (batch, dim) in (1..20_usize, 1..20_usize),
        seed in any::<u64>(),
    ) {
        let rng = &mut rng(seed, 0);
        let (x, _) = variable(&[batch, dim], View::Contiguous, rng);
        let (layer, weight, bias) = dense(dim, dim, rng);
        let computed = Linear::new((weight.as_tensor() * 2.0).unwrap(), bias.as_tensor().clone());
        let twice = layer.forward_tanh(&layer.forward_tanh(&x).unwrap()).unwrap();
        let loss = computed.forward(&twice).unwrap().sqr().unwrap().sum_all().unwrap();
        let loss = (loss + weight.sqr().unwrap().sum_all().unwrap()).unwrap();
        let (ours, candle_s) = (backward(&loss).unwrap(), loss.backward().unwrap());
        for var in [&x, &weight, &bias] {
            let difference = difference(ours.get(var).unwrap(), candle_s.get(var).unwrap());
            prop_assert!(difference < 1e-5, "differs by {difference}");
        }
    }

    #[test]
    fn a_categorical_distribution_is_that_of_log_softmax(
        (batch, num_actions) in (1..40_usize, 1..20_usize),
        view in views(),
        far in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let rng = &mut rng(seed, 0);
        let (var, logits) = variable(&[batch, num_actions], view, rng);
        // Far from 0 a sum with the logarithm would round it away.
        let logits = if far { (logits + 1000.0).unwrap() } else { logits };
        let actions: Vec<u32> = (0..batch + 2).map(|_| rng.random_range(0..num_actions as u32)).collect();
        let actions = Tensor::new(actions, &Device::Cpu).unwrap().narrow(0, 1, batch).unwrap();
        let log_probs = logits.to_dtype(DType::F64).unwrap();
        let log_probs = candle_nn::ops::log_softmax(&log_probs, D::Minus1).unwrap();
        let in_f32 = |stock: Tensor| stock.to_dtype(DType::F32).unwrap();

        let policy = Categorical::new(&logits).unwrap();
        let stock = log_probs.gather(&actions.unsqueeze(1).unwrap(), 1).unwrap().squeeze(1).unwrap();
        same(&policy.log_prob(&actions).unwrap(), &in_f32(stock), &[&var], 1e-5, rng);
        let stock = (log_probs.exp().unwrap() * log_probs).unwrap().sum(D::Minus1).unwrap().neg().unwrap();
        same(&policy.entropy().unwrap(), &in_f32(stock), &[&var], 1e-5, rng);
    }

    #[test]
    fn adam_is_adamw_without_decay(
        (rows, columns) in (1..20_usize, 1..20_usize),
        (learning_rate, eps) in (1e-4..1e-1, 1e-8..1e-4),
        max_grad_norm in prop_oneof![Just(None), (0.1..10.0).prop_map(Some)],
        seed in any::<u64>(),
    ) {
        let rng = &mut rng(seed, 0);
        let (ours, _) = variable(&[rows, columns], View::Contiguous, rng);
        let stock = Var::from_tensor(&ours.as_tensor().copy().unwrap()).unwrap();
        let mut adam = Adam::from_vars(vec![ours.clone()], learning_rate).unwrap().with_eps(eps);
        adam.max_grad_norm = max_grad_norm;
        let params = ParamsAdamW { lr: learning_rate, eps, weight_decay: 0.0, ..Default::default() };
        let mut adamw = AdamW::new(vec![stock.clone()], params).unwrap();
        for _ in 0..5 {
            let target = normal(&[columns, rows], rng);
            // Transposed, so that the gradient arrives that way round.
            let loss = |var: &Var| (var.t()?.sqr()? * &target)?.sum_all();
            adam.backward_step(&loss(&ours).unwrap()).unwrap();
            let mut grads = loss(&stock).unwrap().backward().unwrap();
            if let Some(max_norm) = max_grad_norm {
                clip_grad_norm(std::slice::from_ref(&stock), &mut grads, max_norm).unwrap();
            }
            adamw.step(&grads).unwrap();
            let difference = difference(&ours, &stock);
            prop_assert!(difference < 1e-5, "differs by {difference}");
        }
        prop_assert_eq!(adam.step, 5);
    }

    #[test]
    fn clipped_gradients_keep_their_direction(
        shapes in prop::collection::vec((1..20_usize, 1..20_usize), 1..4),
        max_norm in 0.01..100.0_f64,
        seed in any::<u64>(),
    ) {
        let rng = &mut rng(seed, 0);
        let vars: Vec<Var> = shapes
            .iter()
            .map(|&(rows, columns)| variable(&[rows, columns], View::Contiguous, rng).0)
            .collect();
        // The gradient of ½ Σ x² is x.
        let mut loss = Tensor::new(0.0_f32, &Device::Cpu).unwrap();
        for var in &vars {
            loss = (loss + (var.sqr().unwrap().sum_all().unwrap() * 0.5).unwrap()).unwrap();
        }
        let mut grads = loss.backward().unwrap();
        let squares = vars.iter().flat_map(|var| values(var)).map(|x| f64::from(x).powi(2));
        let norm = squares.sum::<f64>().sqrt();
        let reported = clip_grad_norm(&vars, &mut grads, max_norm).unwrap();
        prop_assert!((reported - norm).abs() < 1e-5 * norm, "{reported} is not {norm}");
        let scale = (max_norm / (norm + 1e-6)).min(1.0);
        for var in &vars {
            let wanted = (var.as_tensor() * scale).unwrap();
            prop_assert!(difference(grads.get(var).unwrap(), &wanted) < 1e-5);
        }
    }

    #[test]
    fn a_soft_update_moves_the_target_by_tau(
        (in_dim, out_dim) in (1..20_usize, 1..20_usize),
        tau in 0.0..1.0_f64,
        seed in any::<u64>(),
    ) {
        let network = |seed: u64| {
            let parameters = VarMap::new(seed);
            let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
            linear(in_dim, out_dim, vb.pp("dense")).unwrap();
            conv2d(in_dim, out_dim, 3, Conv2dConfig::default(), vb.pp("convolution")).unwrap();
            parameters
        };
        let (target, source) = (network(seed), network(seed.wrapping_add(1)));
        let vars = |parameters: &VarMap| -> Vec<Vec<f32>> {
            parameters.all_vars().iter().map(|var| values(var)).collect()
        };
        let (before, towards) = (vars(&target), vars(&source));
        soft_update(&target, &source, tau).unwrap();
        for ((before, towards), after) in before.iter().zip(&towards).zip(vars(&target)) {
            for ((before, towards), after) in before.iter().zip(towards).zip(after) {
                let wanted = (1.0 - tau) * f64::from(*before) + tau * f64::from(*towards);
                prop_assert!((f64::from(after) - wanted).abs() < 1e-6, "{after} is not {wanted}");
            }
        }
        prop_assert_eq!(vars(&source), towards.clone());
        copy_parameters(&target, &source).unwrap();
        prop_assert_eq!(vars(&target), towards);
    }
}

/// Checks `y`, computed from the input, the weight and the bias, against `output` in f64, and
/// the gradients of a weighted sum of it against that sum's central differences.
fn has_the_slopes_of(
    y: &Tensor,
    inputs: [(&Var, View); 3],
    output: impl Fn(&[Vec<f64>; 3]) -> Vec<f64>,
    rng: &mut Rng,
) {
    let weights = normal(y.dims(), rng);
    let grads = gradients(y, &weights);
    let exact = |tensor: &Tensor| values(tensor).into_iter().map(f64::from).collect::<Vec<_>>();
    let (mut numbers, weights) = (inputs.map(|(var, view)| exact(&view.of(var))), exact(&weights));
    for (ours, wanted) in exact(y).iter().zip(output(&numbers)) {
        assert!((ours - wanted).abs() < 1e-5, "{ours} is not {wanted}");
    }
    for (i, (var, view)) in inputs.into_iter().enumerate() {
        let grad = exact(&view.of(grads.get(var).unwrap()));
        let scale = grad.iter().fold(1.0_f64, |scale, g| scale.max(g.abs()));
        for _ in 0..8 {
            let at = rng.random_range(0..grad.len());
            let (here, step) = (numbers[i][at], 1e-4);
            let mut loss = |x: f64| -> f64 {
                numbers[i][at] = x;
                output(&numbers).iter().zip(&weights).map(|(y, weight)| y * weight).sum()
            };
            let slope = (loss(here + step) - loss(here - step)) / (2.0 * step);
            numbers[i][at] = here;
            let error = (grad[at] - slope).abs() / scale;
            assert!(error < 1e-5, "input {i}, element {at}: gradient {}, slope {slope}", grad[at]);
        }
    }
}

/// Checks that numbers fill the range from −bound to bound.
fn fill(tensor: &Tensor, bound: f32, share: f32) {
    let values = values(tensor);
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let greatest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert!((-bound..=-share * bound).contains(&least), "{least}");
    assert!((share * bound..=bound).contains(&greatest), "{greatest}");
}

/// Checks that the rows of a weight are orthogonal and `gain` long.
fn are_orthogonal(rows: &Tensor, gain: f64) {
    let products = rows.matmul(&rows.t().unwrap()).unwrap();
    let n = rows.dim(0).unwrap();
    let wanted = (Tensor::eye(n, DType::F32, &Device::Cpu).unwrap() * (gain * gain)).unwrap();
    assert!(difference(&products, &wanted) < 1e-5);
}

#[test]
fn dense_layers_begin_as_in_pytorch_or_orthogonal() {
    let parameters = VarMap::new(1);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let layer = linear(16, 64, vb.pp("uniform")).unwrap();
    assert_eq!((layer.weight().dims(), layer.bias().dims()), (&[64, 16][..], &[64][..]));
    // Uniform in ±1/√16.
    fill(layer.weight(), 0.25, 0.95);
    fill(layer.bias(), 0.25, 0.8);

    let layer = linear_orthogonal(64, 16, 2.0, vb.pp("orthogonal")).unwrap();
    are_orthogonal(layer.weight(), 2.0);
    assert_eq!(values(layer.bias()), [0.0; 16]);
}

#[test]
fn convolutions_begin_as_in_pytorch_or_orthogonal() {
    let parameters = VarMap::new(1);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let layer = conv2d(4, 16, 3, Conv2dConfig::default(), vb.pp("uniform")).unwrap();
    assert_eq!((layer.weight().dims(), layer.bias().dims()), (&[16, 4, 3, 3][..], &[16][..]));
    // Uniform in ±1/√(4 · 3 · 3), and filling that range.
    let bound = 1.0 / 6.0;
    fill(layer.weight(), bound, 0.95);
    assert!(values(layer.bias()).iter().all(|b| b.abs() <= bound && *b != 0.0));

    let layer = conv2d_orthogonal(4, 16, 3, 2.0, Conv2dConfig::default(), vb.pp("orthogonal")).unwrap();
    let filters = layer.weight().flatten_from(1).unwrap();
    are_orthogonal(&filters, 2.0);
    assert!(values(layer.bias()).iter().all(|b| *b == 0.0));
}

#[test]
fn convolutions_refuse_what_does_not_fit() {
    let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let layer =
        |padding, stride| Conv2d::new(tensor(&[2, 3, 5, 5]), tensor(&[2]), Conv2dConfig { padding, stride });
    let refused = |layer: Conv2d, shape: &[usize]| layer.forward(&tensor(shape)).unwrap_err().to_string();
    assert!(refused(layer(0, 1), &[1, 8, 8, 4]).contains("3 channels"));
    assert!(refused(layer(0, 1), &[1, 8, 4, 3]).contains("[8, 4, 3]"));
    assert!(refused(layer(0, 0), &[1, 8, 8, 3]).contains("stride"));
    assert!(layer(1, 1).forward(&tensor(&[1, 8, 3, 3])).is_ok());
}

#[test]
fn a_layer_of_no_inputs_gives_its_bias() {
    let (layer, _, bias) = dense(0, 32, &mut rng(1, 0));
    let x = Tensor::zeros((9, 0), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(values(&layer.forward(&x).unwrap()), values(&bias).repeat(9));
    let vb = VarBuilder::from_varmap(&VarMap::new(1), DType::F32, &Device::Cpu);
    assert_eq!(values(linear(0, 3, vb).unwrap().bias()), [0.0; 3], "as PyTorch begins it");
}

/// The sizes that Atari's networks have, more than one piece of a batch at a time.
#[test]
fn large_batches_are_worked_on_in_pieces() {
    let parameters = VarMap::new(1);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let rng = &mut rng(1, 0);
    for (batch, size, channels, out_channels, kernel, stride) in
        [(3, 84, 4, 32, 8, 4), (5, 20, 32, 64, 4, 2), (11, 9, 64, 64, 3, 1), (256, 10, 4, 16, 3, 1)]
    {
        let config = Conv2dConfig { stride, ..Default::default() };
        let layer = conv2d(channels, out_channels, kernel, config, vb.pp(size)).unwrap();
        let (var, x) = variable(&[batch, size, size, channels], View::Contiguous, rng);
        let whole = layer.forward(&x).unwrap();
        let each: Vec<Tensor> =
            (0..batch).map(|n| layer.forward(&x.narrow(0, n, 1).unwrap()).unwrap()).collect();
        let each = Tensor::cat(&each, 0).unwrap();
        assert!(difference(&whole, &each) < 1e-5);
        let weights = normal(whole.dims(), rng);
        let (whole, each) = (gradients(&whole, &weights), gradients(&each, &weights));
        for parameter in [var.as_tensor(), layer.weight(), layer.bias()] {
            let difference = difference(whole.get(parameter).unwrap(), each.get(parameter).unwrap());
            assert!(difference < 1e-5, "{size}×{size}: {difference}");
        }
    }
}

#[test]
fn gradients_that_are_not_finite_are_refused() {
    let var = Var::from_slice(&[0.0_f32, 1.0], 2, &Device::Cpu).unwrap();
    let mut grads = var.log().unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let error = clip_grad_norm(&[var], &mut grads, 1.0).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
}

#[test]
fn adam_refuses_a_gradient_that_is_not_finite_and_changes_nothing() {
    let parameters = VarMap::new(1);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let good = vb.get_with_hints(2, "a", Init::Const(1.0)).unwrap();
    let bad = vb.get_with_hints(1, "b", Init::Const(0.0)).unwrap();
    let saved = |adam: &Adam| (parameters.save().unwrap(), adam.save().unwrap());
    for clip in [None, Some(1.0)] {
        let mut adam = Adam::new(&parameters, 0.1).unwrap();
        adam.max_grad_norm = clip;
        let before = saved(&adam);
        let loss = (good.sum_all().unwrap() + bad.sqrt().unwrap().sum_all().unwrap()).unwrap();
        let error = adam.backward_step(&loss).unwrap_err().to_string();
        assert!(error.starts_with("the gradient is not finite (its norm is inf)"), "{error}");
        assert!(saved(&adam) == before, "something has changed");
        adam.backward_step(&good.sum_all().unwrap()).unwrap();
        assert!(saved(&adam) != before, "a good step changes nothing");
    }
}

#[test]
fn a_target_of_another_shape_is_refused() {
    let network = |dim: usize, name: &str| {
        let parameters = VarMap::new(1);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
        linear(dim, 2, vb.pp(name)).unwrap();
        parameters
    };
    assert!(copy_parameters(&network(3, "a"), &network(4, "a")).is_err());
    assert!(copy_parameters(&network(3, "a"), &network(3, "b")).is_err());
    assert!(copy_parameters(&network(3, "a"), &network(3, "a")).is_ok());
}

/// Products large enough to be divided, forward and backward, by themselves and within `both`.
#[test]
fn threads_change_no_product() {
    let rng = &mut rng(1, 0);
    let (x, _) = variable(&[256, 256], View::Contiguous, rng);
    let (layer, weight, _) = dense(256, 256, rng);
    let work = || {
        let y = layer.forward(&x).unwrap();
        let gradients = backward(&y.sqr().unwrap().sum_all().unwrap()).unwrap();
        [y, gradients.get(&x).unwrap().clone(), gradients.get(&weight).unwrap().clone()].map(|t| values(&t))
    };
    let alone = work();
    let (threaded, together) = with_threads(2, || (work(), both(|_| Ok(work())).unwrap())).unwrap();
    assert_eq!(threaded, alone);
    assert_eq!(together, [alone.clone(), alone]);
}

/// A step on the whole batch at once, on its rows in one and in two parts, and on the sum of two
/// losses whose gradients are found side by side.
#[test]
fn a_step_divided_over_threads_is_the_plain_step() {
    let inputs = normal(&[7, 3], &mut rng(1, 0));
    let step = |which: usize| {
        let parameters = VarMap::new(1);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
        let networks = [linear(3, 1, vb.pp(0)).unwrap(), linear(3, 1, vb.pp(1)).unwrap()];
        let mut adam = Adam::new(&parameters, 0.1).unwrap().with_eps(1.0);
        let losses = |x: &Tensor, i: usize| networks[i].forward_tanh(x).unwrap().sqr().unwrap();
        let sum = |x: &Tensor| (losses(x, 0) + losses(x, 1)).unwrap();
        match which {
            0 => adam.backward_step(&sum(&inputs).mean_all().unwrap()).unwrap(),
            1 => {
                let mean = sum(&inputs).mean_all().unwrap().to_scalar::<f32>().unwrap();
                let other = losses(&inputs, 1).detach();
                let (loss, rows) =
                    adam.backward_step_by_rows([&inputs], |[x]| Ok((sum(&x), losses(&x, 1)))).unwrap();
                assert!((loss - mean).abs() < 1e-6, "{loss}, not {mean}");
                assert!(difference(&rows, &other) < 1e-6);
            }
            _ => {
                let [a, b] = [0, 1].map(|i| losses(&inputs, i).mean_all().unwrap());
                adam.backward_step_of_both([&a, &b]).unwrap();
            }
        }
        let vars = parameters.all_vars();
        vars.iter().flat_map(|var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect::<Vec<_>>()
    };
    let plain = step(0);
    for threads in [1, 2] {
        for which in [1, 2] {
            let divided = with_threads(threads, || step(which)).unwrap();
            for (divided, plain) in divided.iter().zip(&plain) {
                assert!((divided - plain).abs() < 1e-6, "{which} on {threads}: {divided}, not {plain}");
            }
        }
    }
}

#[test]
fn sampled_actions_follow_the_softmax() {
    let row = [0.5_f32, -1.0, 2.0];
    let logits = Tensor::new(row.as_slice(), &Device::Cpu).unwrap().broadcast_as((20_000, 3)).unwrap();
    let policy = Categorical::new(&logits).unwrap();
    let actions = policy.sample(&mut rng(1, 0)).unwrap().to_vec1::<u32>().unwrap();
    let total: f32 = row.iter().map(|z| z.exp()).sum();
    for (action, logit) in row.iter().enumerate() {
        let share = actions.iter().filter(|&&a| a as usize == action).count() as f32 / 20_000.0;
        assert!((share - logit.exp() / total).abs() < 0.015, "{share}"); // four standard errors
    }
    assert_eq!(policy.mode().unwrap().to_vec1::<u32>().unwrap(), [2; 20_000]);
    // What cannot happen never does.
    let certain = Tensor::new(&[[0.0_f32, f32::NEG_INFINITY]; 1000], &Device::Cpu).unwrap();
    let actions = Categorical::new(&certain).unwrap().sample(&mut rng(2, 0)).unwrap();
    assert_eq!(actions.to_vec1::<u32>().unwrap(), [0; 1000]);
}

#[test]
fn logits_that_are_not_finite_give_no_action() {
    for bad in [[0.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
        let logits = Tensor::new(&[[0.0, 1.0], bad], &Device::Cpu).unwrap();
        let error = Categorical::new(&logits).unwrap().sample(&mut rng(1, 0)).unwrap_err().to_string();
        assert!(error.starts_with("no action has a probability: the logits are not finite"), "{error}");
    }
}

/// A network that has diverged is to be seen, and not to answer with zeros.
#[test]
fn what_is_not_a_number_passes_through_a_rectifier() {
    let x = Var::from_slice(&[f32::NAN, -1.0, 2.0], (3, 1), &Device::Cpu).unwrap();
    let parameter = |shape: &[usize], value: f32| {
        (Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap() * f64::from(value)).unwrap()
    };
    let layer = Linear::new(parameter(&[1, 1], 1.0), parameter(&[1], 0.0));
    let image = Conv2d::new(parameter(&[1, 1, 1, 1], 1.0), parameter(&[1], 0.0), Conv2dConfig::default());
    let dense = layer.forward_relu(&x).unwrap();
    let convolved = image.forward_relu(&x.reshape((3, 1, 1, 1)).unwrap()).unwrap();
    for y in [dense, convolved] {
        let found = values(&y);
        assert!(found[0].is_nan() && found[1..] == [0.0, 2.0], "{found:?}");
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(grads.get(&x).unwrap()), [1.0, 0.0, 1.0]);
    }
}
