//! Updates of small networks and inference of small batches, on one thread:
//! `cargo bench -p common --bench nn`.

use candle_core::{DType, Device, Result, Tensor};
use common::envs::rng;
use common::nn::{Activation, Adam, Conv2d, Conv2dConfig, Init, Linear, VarBuilder, VarMap, conv2d, linear};
use divan::Bencher;
use std::fmt;

fn main() {
    // Candle reads these when it first needs a pool; one thread is what algorithms use.
    for variable in ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"] {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var(variable, "1") };
    }
    divan::main();
}

/// A multi-layer perceptron and the batch of its updates.
struct Mlp {
    sizes: &'static [usize],
    activation: Activation, // after all layers but the last
    batch: usize,
}

/// What an actor of CartPole and a critic of HalfCheetah have.
const NETWORKS: [Mlp; 2] = [
    Mlp { sizes: &[4, 64, 64, 2], activation: Activation::Tanh, batch: 128 },
    Mlp { sizes: &[23, 256, 256, 1], activation: Activation::Relu, batch: 256 },
];

impl fmt::Display for Mlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.sizes.iter().map(usize::to_string).collect();
        write!(f, "{} {:?}", sizes.join("-"), self.activation)
    }
}

impl Mlp {
    fn layers(&self, vb: &VarBuilder) -> Result<Vec<Linear>> {
        let layer = |(i, size): (usize, &[usize])| linear(size[0], size[1], vb.pp(i));
        self.sizes.windows(2).enumerate().map(layer).collect()
    }

    fn forward(&self, layers: &[Linear], x: &Tensor) -> Result<Tensor> {
        let last = layers.len() - 1;
        let activation = |i| if i < last { self.activation } else { Activation::Identity };
        let mut layers = layers.iter().enumerate();
        layers.try_fold(x.clone(), |x, (i, layer)| layer.forward_with(&x, activation(i)))
    }
}

fn normal(shape: &[usize]) -> Result<Tensor> {
    Init::Randn { mean: 0.0, stdev: 1.0 }.tensor(shape, &mut rng(1, 0), &Device::Cpu)
}

/// Forward, mean squared error, backward, Adam; batches of 128 and 256.
#[divan::bench(args = &NETWORKS)]
fn mlp_update(bencher: Bencher, mlp: &Mlp) {
    update_mlp(bencher, mlp).expect("the network is built");
}

fn update_mlp(bencher: Bencher, mlp: &Mlp) -> Result<()> {
    let parameters = VarMap::new(1);
    let layers = mlp.layers(&VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu))?;
    let mut optimizer = Adam::new(&parameters, 3e-4)?;
    let x = normal(&[mlp.batch, mlp.sizes[0]])?;
    let targets = normal(&[mlp.batch, mlp.sizes[mlp.sizes.len() - 1]])?;
    let mut update = || {
        let loss = (mlp.forward(&layers, &x)? - &targets)?.sqr()?.mean_all()?;
        optimizer.backward_step(&loss)
    };
    bencher.bench_local(|| update().expect("an update"));
    Ok(())
}

/// What acting in 1 or 4 environments takes: numbers in, numbers out.
#[divan::bench(args = &NETWORKS, consts = [1, 4])]
fn mlp_inference<const BATCH: usize>(bencher: Bencher, mlp: &Mlp) {
    infer(bencher, mlp, BATCH).expect("the network is built");
}

fn infer(bencher: Bencher, mlp: &Mlp, batch: usize) -> Result<()> {
    let parameters = VarMap::new(1);
    let layers = mlp.layers(&VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu))?;
    let observations = vec![0.5_f32; batch * mlp.sizes[0]];
    let act = || {
        let x = Tensor::from_slice(&observations, (batch, mlp.sizes[0]), &Device::Cpu)?;
        mlp.forward(&layers, &x)?.flatten_all()?.to_vec1::<f32>()
    };
    bencher.bench_local(|| act().expect("values"));
    Ok(())
}

/// Convolutions over a batch of 32 images with 4 channels.
struct Images {
    size: usize, // height and width
    /// Output channels, kernel and stride, layer by layer.
    layers: &'static [(usize, usize, usize)],
}

/// MinAtar's images with its authors' layer (Young & Tian 2019, arXiv:1903.03176), and Atari's with
/// DQN's three (Mnih et al. 2015).
const IMAGES: [Images; 2] = [
    Images { size: 10, layers: &[(16, 3, 1)] },
    Images { size: 84, layers: &[(32, 8, 4), (64, 4, 2), (64, 3, 1)] },
];

impl fmt::Display for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{0}x{0}x4", self.size)
    }
}

/// Forward, mean square, backward, Adam; batches of 32.
#[divan::bench(args = &IMAGES)]
fn convolution_update(bencher: Bencher, images: &Images) {
    update_convolution(bencher, images).expect("the network is built");
}

fn update_convolution(bencher: Bencher, images: &Images) -> Result<()> {
    let parameters = VarMap::new(1);
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let mut channels = 4;
    let mut layers: Vec<Conv2d> = Vec::new();
    for (i, &(out_channels, kernel, stride)) in images.layers.iter().enumerate() {
        let config = Conv2dConfig { stride, ..Default::default() };
        layers.push(conv2d(channels, out_channels, kernel, config, vb.pp(i))?);
        channels = out_channels;
    }
    let mut optimizer = Adam::new(&parameters, 3e-4)?;
    let x = normal(&[32, images.size, images.size, 4])?;
    let mut update = || {
        let y = layers.iter().try_fold(x.clone(), |x, layer| layer.forward_relu(&x))?;
        optimizer.backward_step(&y.sqr()?.mean_all()?)
    };
    bencher.bench_local(|| update().expect("an update"));
    Ok(())
}
