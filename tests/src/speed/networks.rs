//! One update of a small network: forward, mean squared error to fixed targets, backward, Adam.

use super::process::Process;
use super::{Run, Tools};
use anyhow::Context;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::Optimizer;
use common::nn;
use envs::{Result, Rng, rng};
use rand::RngExt;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// A multi-layer perceptron, its batch, and how many updates make a run.
pub struct Network {
    sizes: &'static [usize],
    tanh: bool, // else ReLU, after all layers but the last
    batch: usize,
    updates: usize,
}

/// What an actor of CartPole has.
pub const SMALL: Network = Network { sizes: &[4, 64, 64, 2], tanh: true, batch: 128, updates: 5_000 };
/// What a critic of HalfCheetah has.
pub const LARGE: Network = Network { sizes: &[23, 256, 256, 1], tanh: false, batch: 256, updates: 500 };

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.sizes.iter().map(usize::to_string).collect();
        let activation = if self.tanh { "tanh" } else { "ReLU" };
        write!(f, "{} {activation}, batch {}", sizes.join("-"), self.batch)
    }
}

impl Network {
    /// What has `tests/peers/candle` do these updates, `alone` or after others.
    fn command(&self, program: &Path, alone: bool) -> Command {
        let mut command = Command::new(program);
        command.arg(if alone { "alone" } else { "after-others" });
        command.arg(if self.tanh { "tanh" } else { "relu" });
        command.args([self.batch, self.updates].iter().chain(self.sizes).map(usize::to_string));
        command.env("CANDLE_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1");
        command
    }
}

/// Who does the update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Library {
    /// `common::nn`.
    PlainRl,
    /// `candle_nn` as it comes, in a program of its own, which has trained other networks before or
    /// does nothing but these updates.
    StockCandle { alone: bool },
    /// `candle_nn` with the allocator and the AVX-512 matrix products that PlainRL has.
    TunedCandle,
    /// Nothing but the matrix products that an update cannot do without.
    BareProducts,
}

impl Library {
    pub fn name(self) -> &'static str {
        match self {
            Library::PlainRl => "PlainRL",
            Library::StockCandle { alone: false } => "candle",
            Library::StockCandle { alone: true } => "candle, no other network",
            Library::TunedCandle => "candle, tuned",
            Library::BareProducts => "bare matrix products",
        }
    }
}

const LEARNING_RATE: f64 = 3e-4;

/// A run is the network's number of updates; its result is microseconds per update.
pub fn start(library: Library, network: &'static Network, tools: &Tools) -> Result<Run<'static>> {
    Ok(match library {
        Library::PlainRl => timed(network.updates, plain_rl(network)?),
        Library::StockCandle { alone } => {
            let program = tools.stock_candle.clone().context("no program stock-candle")?;
            // A process keeps the memory layout that it happens to begin with: each run has its own.
            Box::new(move || {
                let mut process = Process::start(network.command(&program, alone))?;
                process.run()?; // the warm-up
                let done = process.run()?;
                Ok(done.seconds / done.steps * 1e6)
            })
        }
        Library::TunedCandle => timed(network.updates, candle(network)?),
        Library::BareProducts => timed(network.updates, bare_products(network)),
    })
}

fn timed<T>(updates: usize, mut update: impl FnMut() -> Result<T> + 'static) -> Run<'static> {
    Box::new(move || {
        let start = Instant::now();
        for _ in 0..updates {
            std::hint::black_box(update()?);
        }
        Ok(start.elapsed().as_secs_f64() / updates as f64 * 1e6)
    })
}

/// Each call is an update and returns the loss before it.
fn plain_rl(network: &Network) -> Result<impl FnMut() -> Result<Tensor> + 'static> {
    let parameters = nn::VarMap::new(1);
    let vb = nn::VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let hidden = if network.tanh { nn::Activation::Tanh } else { nn::Activation::Relu };
    let mut layers = Vec::new();
    for (i, size) in network.sizes.windows(2).enumerate() {
        layers.push(nn::linear(size[0], size[1], vb.pp(i))?);
    }
    let mut optimizer = nn::Adam::new(&parameters, LEARNING_RATE)?;
    let (inputs, targets) = data(network)?;
    Ok(move || {
        let mut x = inputs.clone();
        for (i, layer) in layers.iter().enumerate() {
            let last = i + 1 == layers.len();
            x = layer.forward_with(&x, if last { nn::Activation::Identity } else { hidden })?;
        }
        let loss = (x - &targets)?.sqr()?.mean_all()?;
        optimizer.backward_step(&loss)?;
        Ok(loss)
    })
}

/// The same.
fn candle(network: &Network) -> Result<impl FnMut() -> Result<Tensor> + 'static> {
    let parameters = candle_nn::VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let mut layers = Vec::new();
    for (i, size) in network.sizes.windows(2).enumerate() {
        layers.push(candle_nn::linear(size[0], size[1], vb.pp(i))?);
    }
    let options = candle_nn::ParamsAdamW { lr: LEARNING_RATE, weight_decay: 0.0, ..Default::default() };
    let mut optimizer = candle_nn::AdamW::new(parameters.all_vars(), options)?;
    let (inputs, targets) = data(network)?;
    let tanh = network.tanh;
    Ok(move || {
        let mut x = inputs.clone();
        for (i, layer) in layers.iter().enumerate() {
            x = layer.forward(&x)?;
            if i + 1 < layers.len() {
                x = if tanh { x.tanh()? } else { x.relu()? };
            }
        }
        let loss = (x - &targets)?.sqr()?.mean_all()?;
        optimizer.backward_step(&loss)?;
        Ok(loss)
    })
}

/// Inputs `[batch, first size]` and targets `[batch, last size]`, uniform in [−1, 1).
fn data(network: &Network) -> Result<(Tensor, Tensor)> {
    let mut rng = rng(1, 0);
    let mut matrix = |columns: usize| {
        Tensor::from_vec(uniform(network.batch * columns, &mut rng), (network.batch, columns), &Device::Cpu)
    };
    Ok((matrix(network.sizes[0])?, matrix(network.sizes[network.sizes.len() - 1])?))
}

fn uniform(len: usize, rng: &mut Rng) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// For every layer x Wᵀ; backward gᵀ x, its weight's gradient, and, for all layers but the first,
/// g W, its input's. All matrices are row-major and stay where they are.
fn bare_products(network: &'static Network) -> impl FnMut() -> Result<()> {
    let (sizes, batch) = (network.sizes, network.batch);
    let mut rng = rng(1, 0);
    let layers = sizes.windows(2);
    let weights: Vec<_> = layers.clone().map(|size| uniform(size[1] * size[0], &mut rng)).collect(); // [out, in]
    let values: Vec<_> = sizes.iter().map(|size| uniform(batch * size, &mut rng)).collect(); // [batch, size]
    let mut forward: Vec<_> = sizes.iter().map(|size| vec![0.0; batch * size]).collect();
    let mut backward = forward.clone();
    let mut gradients: Vec<_> = layers.map(|size| vec![0.0; size[1] * size[0]]).collect();
    move || {
        for (i, weight) in weights.iter().enumerate() {
            let (k, n) = (sizes[i], sizes[i + 1]);
            product([batch, n, k], &mut forward[i + 1], (&values[i], [k, 1]), (weight, [1, k]));
        }
        for (i, weight) in weights.iter().enumerate().rev() {
            let (k, n) = (sizes[i], sizes[i + 1]);
            let g = &values[i + 1]; // stands for the gradient at the layer's output, [batch, n]
            product([n, k, batch], &mut gradients[i], (g, [1, n]), (&values[i], [k, 1]));
            if i > 0 {
                product([batch, k, n], &mut backward[i], (g, [n, 1]), (weight, [k, 1]));
            }
        }
        std::hint::black_box((&forward, &backward, &gradients));
        Ok(())
    }
}

/// out = a b, with a `[m, k]` and b `[k, n]` given with the strides of their rows and columns, and
/// out `[m, n]` row-major.
fn product(
    [m, n, k]: [usize; 3],
    out: &mut [f32],
    (a, a_strides): (&[f32], [usize; 2]),
    (b, b_strides): (&[f32], [usize; 2]),
) {
    let reach = |[row, column]: [usize; 2], rows: usize, columns: usize| {
        (rows - 1) * row + (columns - 1) * column + 1
    };
    assert!(out.len() == m * n && reach(a_strides, m, k) <= a.len() && reach(b_strides, k, n) <= b.len());
    let [[a_row, a_column], [b_row, b_column]] = [a_strides, b_strides].map(|s| s.map(|s| s as isize));
    // SAFETY: `out` has m n elements, and the assertion keeps what the strides reach inside a and b.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false, // out is overwritten
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_products_multiply() {
        // [1 2; 3 4] [5 6; 7 8]ᵀ = [17 23; 39 53]
        let mut out = [9.0; 4];
        product([2, 2, 2], &mut out, (&[1.0, 2.0, 3.0, 4.0], [2, 1]), (&[5.0, 6.0, 7.0, 8.0], [1, 2]));
        assert_eq!(out, [17.0, 23.0, 39.0, 53.0]);
    }

    fn lowers_its_loss(mut update: impl FnMut() -> Result<Tensor>) {
        let mut loss = || update().unwrap().to_scalar::<f32>().unwrap();
        let first = loss();
        let last = (0..50).map(|_| loss()).last().unwrap();
        assert!(last < 0.8 * first, "{first} → {last}");
    }

    #[test]
    fn both_libraries_learn_in_their_updates() {
        lowers_its_loss(plain_rl(&LARGE).unwrap());
        lowers_its_loss(candle(&LARGE).unwrap());
    }
}
