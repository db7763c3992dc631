//! A two-dimensional convolution, y = φ(x ∗ W + b), as one candle operation with its own backward
//! pass.
//!
//! The patch of the image under the kernel is written out for every output pixel, one patch after
//! the other, and the convolution is then one matrix product. This is done for a few images at a
//! time, so that their patches stay in the cache between being written and being multiplied, and
//! done again in the backward pass, which is cheaper than keeping them. As in
//! [`Linear`](super::Linear), no gradient is computed for an image that needs none (the
//! observation, in the first layer), nor for parameters that are detached. On devices other than
//! the CPU the same type runs candle's own operations.
//!
//! # Layout
//!
//! Images are `[batch, height, width, channels]`, the layout of environments' observations, where
//! PyTorch and candle have `[batch, channels, height, width]`: nothing need be permuted, and each
//! row of a patch is one run of `kernel_size · channels` numbers in memory. Weights are
//! `[out_channels, in_channels, kernel_size, kernel_size]` as in PyTorch and candle, so that
//! convolutions trained there can be loaded. (A dense layer after the flattened output sees the
//! channels of one pixel side by side, not the pixels of one channel: its columns are permuted.)

use super::gradients::of_parameter;
use super::product::{Matrix, add_product, product};
use super::simd::slice;
use super::{Activation, Init, VarBuilder, simd};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// How a kernel moves over an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Rows and columns of zeros around the image.
    pub padding: usize,
    /// Pixels from one position of the kernel to the next, down and to the right.
    pub stride: usize,
}

impl Default for Conv2dConfig {
    /// No padding, every position.
    fn default() -> Self {
        Self { padding: 0, stride: 1 }
    }
}

/// y = φ(x ∗ W + b), on images `[batch, height, width, channels]`.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor, // [out_channels, in_channels, kernel_height, kernel_width]
    bias: Tensor,   // [out_channels]
    config: Conv2dConfig,
}

/// A convolution initialised as PyTorch does: W and b uniform in ±1/√(in_channels · kernel_size²)
/// (Kaiming uniform with a = √5).
pub fn conv2d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let bound = 1.0 / ((in_channels * kernel_size * kernel_size) as f32).sqrt();
    let init = Init::Uniform { lo: -bound, up: bound };
    Conv2d::create([out_channels, in_channels, kernel_size, kernel_size], init, init, config, vb)
}

/// A convolution with orthogonal filters of scale `gain` and zero bias (CleanRL's `layer_init`;
/// gain √2 for hidden layers).
pub fn conv2d_orthogonal(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    gain: f64,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let shape = [out_channels, in_channels, kernel_size, kernel_size];
    Conv2d::create(shape, Init::Orthogonal { gain: gain as f32 }, Init::Const(0.0), config, vb)
}

impl Conv2d {
    fn create(
        shape: [usize; 4],
        weight: Init,
        bias: Init,
        config: Conv2dConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        let weight = vb.get_with_hints(&shape, "weight", weight)?;
        let bias = vb.get_with_hints(shape[0], "bias", bias)?;
        Ok(Self::new(weight, bias, config))
    }

    /// From a weight `[out_channels, in_channels, kernel_height, kernel_width]` and a bias
    /// `[out_channels]`.
    pub fn new(weight: Tensor, bias: Tensor, config: Conv2dConfig) -> Self {
        Self { weight, bias, config }
    }

    /// The weight, `[out_channels, in_channels, kernel_height, kernel_width]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `[out_channels]`.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// Padding and stride.
    pub fn config(&self) -> &Conv2dConfig {
        &self.config
    }

    /// The same layer with its parameters held constant: gradients flow through it to its input,
    /// none are computed for its weight and bias. It shares their storage and follows updates.
    pub fn detach(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.detach(), ..*self }
    }

    /// x ∗ W + b: `[batch, height, width, in_channels]` to
    /// `[batch, out_height, out_width, out_channels]`, with
    /// `out_height = (height + 2 padding − kernel_height) / stride + 1` rounded down.
    ///
    /// # Errors
    /// Another number of channels, an image smaller than the kernel, a stride of 0.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::Identity)
    }

    /// max(x ∗ W + b, 0), with the shapes of [`Conv2d::forward`].
    pub fn forward_relu(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::Relu)
    }

    /// tanh(x ∗ W + b), with the shapes of [`Conv2d::forward`].
    pub fn forward_tanh(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::Tanh)
    }

    /// φ(x ∗ W + b), in one pass, with the shapes of [`Conv2d::forward`].
    pub fn forward_with(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let geometry = Geometry::new(x.dims4()?, self.weight.dims4()?, self.config)?;
        if !x.device().is_cpu() {
            return self.forward_stock(x, activation);
        }
        let op = Convolution {
            geometry,
            activation,
            input_gradient: x.track_op(),
            parameter_gradient: self.weight.track_op() || self.bias.track_op(),
        };
        x.contiguous()?.apply_op3(&self.weight.contiguous()?, &self.bias.contiguous()?, op)
    }

    /// The same by candle's own operations.
    fn forward_stock(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let Conv2dConfig { padding, stride } = self.config;
        let x = x.permute((0, 3, 1, 2))?.contiguous()?;
        let z = x.conv2d(&self.weight, padding, stride, 1, 1)?;
        let z = z.permute((0, 2, 3, 1))?.contiguous()?.broadcast_add(&self.bias)?;
        match activation {
            Activation::Identity => Ok(z),
            Activation::Relu => z.relu(),
            Activation::Tanh => z.tanh(),
        }
    }
}

/// Numbers in the patches that are multiplied at once: 64 KiB, which stay in a core's cache.
const PATCHES_AT_ONCE: usize = 1 << 14;

/// Every size in a convolution.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    kernel_height: usize,
    kernel_width: usize,
    padding: usize,
    stride: usize,
    out_height: usize,
    out_width: usize,
    out_channels: usize,
}

impl Geometry {
    fn new(
        (batch, height, width, channels): (usize, usize, usize, usize),
        (out_channels, in_channels, kernel_height, kernel_width): (usize, usize, usize, usize),
        Conv2dConfig { padding, stride }: Conv2dConfig,
    ) -> Result<Self> {
        let (padded_height, padded_width) = (height + 2 * padding, width + 2 * padding);
        if channels != in_channels || padded_height < kernel_height || padded_width < kernel_width {
            bail!(
                "a convolution of {in_channels} channels with a {kernel_height}×{kernel_width} kernel and padding {padding} was given images of {:?}, [height, width, channels]",
                [height, width, channels]
            );
        }
        if stride == 0 || kernel_height == 0 || kernel_width == 0 {
            bail!("a convolution needs a stride and a kernel of at least 1");
        }
        Ok(Self {
            batch,
            height,
            width,
            channels,
            kernel_height,
            kernel_width,
            padding,
            stride,
            out_height: (padded_height - kernel_height) / stride + 1,
            out_width: (padded_width - kernel_width) / stride + 1,
            out_channels,
        })
    }

    /// Numbers in one image.
    fn image(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Numbers in one patch.
    fn patch(&self) -> usize {
        self.kernel_height * self.kernel_width * self.channels
    }

    /// Patches in one image, which are the output's pixels.
    fn positions(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Images that are worked on at once.
    fn images_at_once(&self) -> usize {
        (PATCHES_AT_ONCE / (self.positions() * self.patch()).max(1)).clamp(1, self.batch.max(1))
    }

    /// Calls `visit(at, from, len)` for every row of every patch of one image: the run of `len`
    /// numbers at `from` in the image belongs at `at` in its patches
    /// `[out_height, out_width, kernel_height, kernel_width, channels]`. What lies in the padding
    /// is not visited.
    #[inline(always)]
    fn for_each_run(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let Self { height, width, channels, kernel_height, kernel_width, padding, stride, .. } = *self;
        let mut at = 0;
        for out_y in 0..self.out_height {
            for out_x in 0..self.out_width {
                // The patch's columns, in padded coordinates, that lie in the image.
                let left = (out_x * stride).max(padding);
                let right = (out_x * stride + kernel_width).min(padding + width);
                let (skipped, len) = (left - out_x * stride, right.saturating_sub(left));
                for y in out_y * stride..out_y * stride + kernel_height {
                    if y >= padding && y < padding + height && len > 0 {
                        let from = ((y - padding) * width + left - padding) * channels;
                        visit(at + skipped * channels, from, len * channels);
                    }
                    at += kernel_width * channels;
                }
            }
        }
    }

    /// Writes the patches of `images` into `patches`, `[images, positions, patch]`, which must be
    /// zero wherever the padding is.
    fn gather(&self, images: &[f32], patches: &mut [f32]) {
        let per_image = self.positions() * self.patch();
        simd::vectorize(
            #[inline(always)]
            || {
                for (image, patches) in
                    images.chunks_exact(self.image()).zip(patches.chunks_exact_mut(per_image))
                {
                    self.for_each_run(
                        #[inline(always)]
                        |at, from, len| patches[at..at + len].copy_from_slice(&image[from..from + len]),
                    );
                }
            },
        );
    }

    /// Adds `patches`, `[images, positions, patch]`, to the pixels of `images` that they came
    /// from: the transpose of [`Geometry::gather`].
    fn scatter_add(&self, patches: &[f32], images: &mut [f32]) {
        let per_image = self.positions() * self.patch();
        simd::vectorize(
            #[inline(always)]
            || {
                for (image, patches) in
                    images.chunks_exact_mut(self.image()).zip(patches.chunks_exact(per_image))
                {
                    self.for_each_run(
                        #[inline(always)]
                        |at, from, len| {
                            for (pixel, g) in image[from..from + len].iter_mut().zip(&patches[at..at + len]) {
                                *pixel += g;
                            }
                        },
                    );
                }
            },
        );
    }

    /// The weight in the order of a patch: `[out_channels, channels, kernel]` to
    /// `[kernel, channels, out_channels]`.
    fn filters(&self, weight: &[f32]) -> Vec<f32> {
        let (kernel, n) = (self.kernel_height * self.kernel_width, self.out_channels);
        let mut filters = Vec::with_capacity(weight.len());
        for row in 0..self.patch() {
            let (k, channel) = (row / self.channels, row % self.channels);
            filters.extend((0..n).map(|out| weight[(out * self.channels + channel) * kernel + k]));
        }
        filters
    }

    /// The inverse of [`Geometry::filters`].
    fn weight(&self, filters: &[f32]) -> Vec<f32> {
        let (kernel, n) = (self.kernel_height * self.kernel_width, self.out_channels);
        let mut weight = Vec::with_capacity(filters.len());
        for out in 0..n {
            for channel in 0..self.channels {
                weight.extend((0..kernel).map(|k| filters[(k * self.channels + channel) * n + out]));
            }
        }
        weight
    }
}

struct Convolution {
    geometry: Geometry,
    activation: Activation,
    input_gradient: bool,
    parameter_gradient: bool,
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "convolution"
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
        let geometry = &self.geometry;
        let Geometry { batch, out_height, out_width, out_channels, .. } = *geometry;
        let (positions, patch) = (geometry.positions(), geometry.patch());
        let x = slice(x, x_layout)?; // [batch, height, width, channels]
        let filters = geometry.filters(slice(weight, weight_layout)?); // [patch, out_channels]
        let bias = slice(bias, bias_layout)?; // [out_channels]
        if bias.len() != out_channels {
            bail!("a convolution of {out_channels} filters was given {} biases", bias.len());
        }
        let mut y = Vec::with_capacity(batch * positions * out_channels);
        for _ in 0..batch * positions {
            y.extend_from_slice(bias);
        }
        let at_once = geometry.images_at_once();
        let mut patches = vec![0.0; at_once * positions * patch];
        for (images, y) in
            x.chunks(at_once * geometry.image()).zip(y.chunks_mut(at_once * positions * out_channels))
        {
            let rows = y.len() / out_channels;
            let patches = &mut patches[..rows * patch];
            geometry.gather(images, patches);
            // y += patches · filters
            let (patches, filters) = (Matrix::rows(patches, patch), Matrix::rows(&filters, out_channels));
            add_product(rows, out_channels, patch, y, patches, filters);
        }
        self.activation.apply(&mut y);
        Ok((CpuStorage::F32(y), (batch, out_height, out_width, out_channels).into()))
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
            let gradient = g.apply_op2_no_bwd(x, &FilterGradient(self.geometry))?; // patchesᵀ g
            grad_weight = of_parameter(weight, gradient);
            grad_bias = of_parameter(bias, sum); // Σ g
        }
        let grad_x = match self.input_gradient {
            true => Some(g.apply_op2_no_bwd(weight, &ImageGradient(self.geometry))?), // g filtersᵀ
            false => None,
        };
        Ok((grad_x, grad_weight, grad_bias))
    }
}

struct FilterGradient(Geometry);

impl CustomOp2 for FilterGradient {
    fn name(&self) -> &'static str {
        "convolution-filter-gradient"
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        g_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = &self.0;
        let Geometry { channels, kernel_height, kernel_width, out_channels, .. } = *geometry;
        let (positions, patch) = (geometry.positions(), geometry.patch());
        let (g, x) = (slice(g, g_layout)?, slice(x, x_layout)?);
        let mut filters = vec![0.0; patch * out_channels];
        let at_once = geometry.images_at_once();
        let mut patches = vec![0.0; at_once * positions * patch];
        for (images, g) in
            x.chunks(at_once * geometry.image()).zip(g.chunks(at_once * positions * out_channels))
        {
            let rows = g.len() / out_channels;
            let patches = &mut patches[..rows * patch];
            geometry.gather(images, patches);
            let (patches, g) = (Matrix::columns(patches, patch), Matrix::rows(g, out_channels));
            add_product(patch, out_channels, rows, &mut filters, patches, g);
        }
        let shape = (out_channels, channels, kernel_height, kernel_width);
        Ok((CpuStorage::F32(geometry.weight(&filters)), shape.into()))
    }
}

struct ImageGradient(Geometry);

impl CustomOp2 for ImageGradient {
    fn name(&self) -> &'static str {
        "convolution-image-gradient"
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        g_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = &self.0;
        let Geometry { batch, height, width, channels, out_channels, .. } = *geometry;
        let (positions, patch) = (geometry.positions(), geometry.patch());
        let g = slice(g, g_layout)?;
        let filters = geometry.filters(slice(weight, weight_layout)?); // [patch, out_channels]
        let mut grad_x = vec![0.0; batch * geometry.image()];
        let at_once = geometry.images_at_once();
        for (images, g) in
            grad_x.chunks_mut(at_once * geometry.image()).zip(g.chunks(at_once * positions * out_channels))
        {
            let rows = g.len() / out_channels;
            let (g, filters) = (Matrix::rows(g, out_channels), Matrix::columns(&filters, out_channels));
            geometry.scatter_add(&product(rows, patch, out_channels, g, filters), images);
        }
        Ok((CpuStorage::F32(grad_x), (batch, height, width, channels).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn other_devices_compute_the_same() -> Result<()> {
        let parameters = super::super::VarMap::new(3);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
        let layer = conv2d(3, 4, 3, Conv2dConfig { padding: 1, stride: 2 }, vb)?;
        let init = Init::Randn { mean: 0.0, stdev: 1.0 };
        let x = Var::from_tensor(&init.tensor((2, 7, 5, 3), &mut envs::rng(1, 0), &Device::Cpu)?)?;
        for activation in [Activation::Identity, Activation::Relu, Activation::Tanh] {
            let fused = layer.forward_with(&x, activation)?;
            let stock = layer.forward_stock(&x, activation)?;
            assert_eq!(fused.dims(), stock.dims());
            let difference = (fused - stock)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-5, "{activation:?}: {difference}");
        }
        Ok(())
    }
}
