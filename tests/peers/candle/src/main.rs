//! Updates of a multi-layer perceptron with stock candle: forward, mean squared error to fixed
//! targets, backward, Adam. `stock-candle alone|after-others ACTIVATION BATCH UPDATES SIZE SIZE…`
//!
//! How long they take depends on what the process did before: with large tensors, candle has glibc
//! take memory from the system and give it back in every update, more or less of it as the heap
//! happens to lie. `alone` does nothing else; `after-others` has run other networks before, as a
//! program with an actor and critics has.
//!
//! One run for each line on standard input, answered by one line of JSON; see `measured.py`.

use candle_core::{DType, Device, Error, Module, Result, Tensor};
use candle_nn::{AdamW, Linear, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear};
use std::time::Instant;

/// What `after-others` runs before: sizes, whether tanh and not ReLU, batch.
const OTHERS: [(&[usize], bool, usize); 4] = [
    (&[4, 64, 64, 2], true, 1),
    (&[4, 64, 64, 2], true, 8),
    (&[4, 64, 64, 2], true, 128),
    (&[4, 120, 84, 2], false, 128),
];

struct Network {
    layers: Vec<Linear>,
    tanh: bool,
    optimizer: AdamW,
    inputs: Tensor,
    targets: Tensor,
}

impl Network {
    fn new(sizes: &[usize], tanh: bool, batch: usize) -> Result<Self> {
        let parameters = VarMap::new();
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
        let mut layers = Vec::new();
        for (i, size) in sizes.windows(2).enumerate() {
            layers.push(linear(size[0], size[1], vb.pp(i))?);
        }
        let options = ParamsAdamW { lr: 3e-4, weight_decay: 0.0, ..Default::default() };
        Ok(Self {
            layers,
            tanh,
            optimizer: AdamW::new(parameters.all_vars(), options)?,
            inputs: Tensor::rand(-1f32, 1f32, (batch, sizes[0]), &Device::Cpu)?,
            targets: Tensor::rand(-1f32, 1f32, (batch, sizes[sizes.len() - 1]), &Device::Cpu)?,
        })
    }

    fn loss(&self) -> Result<Tensor> {
        let mut x = self.inputs.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x)?;
            if i + 1 < self.layers.len() {
                x = if self.tanh { x.tanh()? } else { x.relu()? };
            }
        }
        (x - &self.targets)?.sqr()?.mean_all()
    }

    fn update(&mut self) -> Result<()> {
        let loss = self.loss()?;
        self.optimizer.backward_step(&loss)
    }

    /// Forward alone, forward and backward, and updates.
    fn exercise(&mut self) -> Result<()> {
        for _ in 0..500 {
            self.loss()?;
        }
        for _ in 0..500 {
            self.loss()?.backward()?;
        }
        (0..500).try_for_each(|_| self.update())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [history, activation, numbers @ ..] = &arguments[..] else { candle_core::bail!("no arguments") };
    let numbers: Vec<usize> =
        numbers.iter().map(|text| text.parse().map_err(Error::wrap)).collect::<Result<_>>()?;
    let [batch, updates, sizes @ ..] = &numbers[..] else { candle_core::bail!("too few arguments") };

    if history == "after-others" {
        for (sizes, tanh, batch) in OTHERS {
            Network::new(sizes, tanh, batch)?.exercise()?;
        }
    }
    let mut network = Network::new(sizes, activation == "tanh", *batch)?;
    for line in std::io::stdin().lines() {
        line?;
        let start = Instant::now();
        for _ in 0..*updates {
            network.update()?;
        }
        println!(r#"{{"steps": {updates}, "seconds": {}}}"#, start.elapsed().as_secs_f64());
    }
    Ok(())
}
