//! A dense layer, y = φ(x Wᵀ + b), as one candle operation with its own backward pass.
//!
//! Stock candle runs the matrix product, the transpose, the broadcast bias and the activation as
//! separate operations, sums the bias gradient over its leading dimension slowly, and computes
//! the gradient of the first layer's input, which nobody needs. Here they are one pass forward
//! and at most three products backward. On devices other than the CPU the same type runs candle's
//! own operations.

use super::gradients::of_parameter;
use super::product::{Matrix, add_product, product};
use super::simd::slice;
use super::{Init, VarBuilder, simd};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Storage, Tensor, bail};

/// The function φ after a dense layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// φ(z) = z
    #[default]
    Identity,
    /// φ(z) = max(z, 0)
    Relu,
    /// φ(z) = tanh z, accurate to 1e-6
    Tanh,
}

/// max(z, 0), and NaN for NaN as PyTorch has it, where `f32::max` would hide a network that has diverged.
#[inline(always)]
fn relu(z: f32) -> f32 {
    if z < 0.0 { 0.0 } else { z }
}

impl Activation {
    /// z ← φ(z + b), for each row of z `[batch, out_dim]`.
    fn apply_with_bias(self, z: &mut [f32], bias: &[f32]) {
        #[inline(always)]
        fn rows(z: &mut [f32], bias: &[f32], activation: impl Fn(f32) -> f32 + Copy) {
            simd::vectorize(
                #[inline(always)]
                || {
                    for row in z.chunks_exact_mut(bias.len()) {
                        for (z, b) in row.iter_mut().zip(bias) {
                            *z = activation(*z + b);
                        }
                    }
                },
            );
        }
        match self {
            Activation::Identity => rows(z, bias, |z| z),
            Activation::Relu => rows(z, bias, relu),
            Activation::Tanh => rows(z, bias, simd::tanh),
        }
    }

    /// z ← φ(z)
    pub(super) fn apply(self, z: &mut [f32]) {
        match self {
            Activation::Identity => {}
            Activation::Relu => simd::vectorize(
                #[inline(always)]
                || z.iter_mut().for_each(|z| *z = relu(*z)),
            ),
            Activation::Tanh => simd::vectorize(
                #[inline(always)]
                || z.iter_mut().for_each(|z| *z = simd::tanh(*z)),
            ),
        }
    }

    /// g = ∂L/∂z = ∂L/∂y ⊙ φ'(z), shaped like `grad` = ∂L/∂y, and Σ g over all dimensions but the
    /// last, the gradient of a bias. φ' is a function of y: 1, 1[y > 0] or 1 − y².
    pub(super) fn gradient(self, y: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
        #[inline(always)]
        fn rows(sums: &mut [f32], grad: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Copy) -> Vec<f32> {
            let columns = sums.len();
            let mut out = grad.to_vec();
            simd::vectorize(
                #[inline(always)]
                || {
                    for (out, y) in out.chunks_exact_mut(columns).zip(y.chunks_exact(columns)) {
                        for ((out, sum), y) in out.iter_mut().zip(&mut *sums).zip(y) {
                            *out = f(*out, *y);
                            *sum += *out;
                        }
                    }
                },
            );
            out
        }
        let grad = grad.contiguous()?;
        let mut sums = vec![0.0; y.dim(D::Minus1)?];
        let g = {
            let ((grad, grad_layout), (y, y_layout)) = (grad.storage_and_layout(), y.storage_and_layout());
            let (Storage::Cpu(grad), Storage::Cpu(y)) = (&*grad, &*y) else { bail!("not on a CPU") };
            let (grad, y) = (slice(grad, grad_layout)?, slice(y, y_layout)?);
            match self {
                Activation::Identity => rows(&mut sums, grad, y, |g, _| g),
                Activation::Relu => rows(&mut sums, grad, y, |g, y| if y <= 0.0 { 0.0 } else { g }),
                Activation::Tanh => rows(&mut sums, grad, y, |g, y| g * (1.0 - y * y)),
            }
        };
        let sum = Tensor::from_vec(sums, y.dim(D::Minus1)?, y.device())?;
        Ok((Tensor::from_vec(g, grad.shape(), y.device())?, sum))
    }
}

/// y = φ(x Wᵀ + b); the call says which φ.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor, // [out_dim, in_dim]
    bias: Tensor,   // [out_dim]
}

/// A layer initialised as PyTorch does: W and b uniform in ±1/√in_dim (Kaiming uniform with
/// a = √5).
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    let bound = if in_dim > 0 { 1.0 / (in_dim as f32).sqrt() } else { 0.0 };
    let init = Init::Uniform { lo: -bound, up: bound };
    Linear::create(in_dim, out_dim, init, init, vb)
}

/// A layer with orthogonal weights of scale `gain` and zero bias, the initialisation that PPO's
/// implementations use (CleanRL's `layer_init`; gain √2 for hidden layers, 0.01 for policy
/// outputs, 1 for values).
pub fn linear_orthogonal(in_dim: usize, out_dim: usize, gain: f64, vb: VarBuilder) -> Result<Linear> {
    Linear::create(in_dim, out_dim, Init::Orthogonal { gain: gain as f32 }, Init::Const(0.0), vb)
}

impl Linear {
    fn create(in_dim: usize, out_dim: usize, weight: Init, bias: Init, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints((out_dim, in_dim), "weight", weight)?,
            bias: vb.get_with_hints(out_dim, "bias", bias)?,
        })
    }

    /// From a weight `[out_dim, in_dim]` and a bias `[out_dim]`.
    pub fn new(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias }
    }

    /// The weight, `[out_dim, in_dim]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `[out_dim]`.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// The same layer with its parameters held constant: gradients flow through it to its input,
    /// none are computed for its weight and bias. It shares their storage and follows updates.
    pub fn detach(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.detach() }
    }

    /// x Wᵀ + b: `[batch, in_dim]` to `[batch, out_dim]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::Identity)
    }

    /// max(x Wᵀ + b, 0): `[batch, in_dim]` to `[batch, out_dim]`.
    pub fn forward_relu(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::Relu)
    }

    /// tanh(x Wᵀ + b): `[batch, in_dim]` to `[batch, out_dim]`.
    pub fn forward_tanh(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::Tanh)
    }

    /// φ(x Wᵀ + b), in one pass: `[batch, in_dim]` to `[batch, out_dim]`.
    pub fn forward_with(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        if !x.device().is_cpu() {
            let z = x.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?;
            return match activation {
                Activation::Identity => Ok(z),
                Activation::Relu => z.relu(),
                Activation::Tanh => z.tanh(),
            };
        }
        let op = Dense {
            activation,
            input_gradient: x.track_op(),
            parameter_gradient: self.weight.track_op() || self.bias.track_op(),
        };
        x.contiguous()?.apply_op3(&self.weight, &self.bias, op)
    }
}

struct Dense {
    activation: Activation,
    input_gradient: bool,
    parameter_gradient: bool,
}

/// A cache line between the rows of a weight.
const PADDING: [f32; 16] = [0.0; 16];

impl CustomOp3 for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, in_dim) = x_layout.shape().dims2()?;
        let (out_dim, weight_in) = weight_layout.shape().dims2()?;
        if in_dim != weight_in || bias_layout.shape().elem_count() != out_dim {
            bail!(
                "a dense layer of weight {:?} and bias {:?} was given an input of {:?}",
                weight_layout.shape(),
                bias_layout.shape(),
                x_layout.shape()
            );
        }
        let x = slice(x, x_layout)?; //           [batch, in_dim]
        let weight = slice(weight, weight_layout)?; // [out_dim, in_dim]
        let bias = slice(bias, bias_layout)?; //  [out_dim]
        // y = x Wᵀ. Products in blocks first copy W into another order, which for few rows or few
        // outputs takes several times as long as multiplying row by row.
        let w = Matrix::columns(weight, in_dim);
        let mut y = if (batch <= 8 || out_dim <= 8) && batch * in_dim * out_dim >= 40_000 {
            let mut y = vec![0.0; batch * out_dim];
            for (y, x) in y.chunks_exact_mut(out_dim).zip(x.chunks_exact(in_dim)) {
                add_product(1, out_dim, in_dim, y, Matrix::rows(x, in_dim), w);
            }
            y
        } else if in_dim > 0 && in_dim % 256 == 0 && batch > 8 && out_dim >= 32 {
            // That copy walks down W's columns. Rows of a multiple of 1024 bytes put a column's
            // numbers in the same few places of the cache, where each drives out the others: rows
            // that are a little longer make the product up to four times as fast.
            let padded_dim = in_dim + PADDING.len();
            let mut padded = Vec::with_capacity(out_dim * padded_dim);
            for row in weight.chunks_exact(in_dim) {
                padded.extend_from_slice(row);
                padded.extend_from_slice(&PADDING);
            }
            let w = Matrix::columns(&padded, padded_dim);
            product(batch, out_dim, in_dim, Matrix::rows(x, in_dim), w)
        } else {
            product(batch, out_dim, in_dim, Matrix::rows(x, in_dim), w)
        };
        self.activation.apply_with_bias(&mut y, bias);
        Ok((CpuStorage::F32(y), (batch, out_dim).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (g, sum) = self.activation.gradient(y, grad)?;
        let (mut grad_weight, mut grad_bias) = (None, None);
        if self.parameter_gradient {
            let gradient = g.apply_op2_no_bwd(&x.contiguous()?, &WeightGradient)?; // gᵀ x
            grad_weight = of_parameter(weight, gradient);
            grad_bias = of_parameter(bias, sum); // Σ_batch g
        }
        let grad_x = match self.input_gradient {
            true => Some(g.apply_op2_no_bwd(weight, &InputGradient)?), // g W
            false => None,
        };
        Ok((grad_x, grad_weight, grad_bias))
    }
}

struct WeightGradient;

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "dense-weight-gradient"
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        g_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, out_dim) = g_layout.shape().dims2()?;
        let in_dim = x_layout.shape().dims2()?.1;
        let (g, x) = (slice(g, g_layout)?, slice(x, x_layout)?);
        let out = if in_dim < 32 && in_dim < out_dim {
            // A product is fast along its rows: where these are short, as in a first layer, the
            // transpose xᵀ g is up to eight times as fast.
            let xg = product(in_dim, out_dim, batch, Matrix::columns(x, in_dim), Matrix::rows(g, out_dim));
            let mut gx = vec![0.0; out_dim * in_dim];
            for (i, row) in xg.chunks_exact(out_dim).enumerate() {
                for (o, value) in row.iter().enumerate() {
                    gx[o * in_dim + i] = *value;
                }
            }
            gx
        } else {
            product(out_dim, in_dim, batch, Matrix::columns(g, out_dim), Matrix::rows(x, in_dim))
        };
        Ok((CpuStorage::F32(out), (out_dim, in_dim).into()))
    }
}

struct InputGradient;

impl CustomOp2 for InputGradient {
    fn name(&self) -> &'static str {
        "dense-input-gradient"
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        g_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, out_dim) = g_layout.shape().dims2()?;
        let in_dim = weight_layout.shape().dims2()?.1;
        let (g, weight) = (slice(g, g_layout)?, slice(weight, weight_layout)?);
        let out = product(batch, in_dim, out_dim, Matrix::rows(g, out_dim), Matrix::rows(weight, in_dim));
        Ok((CpuStorage::F32(out), (batch, in_dim).into()))
    }
}
