//! Updates of a multi-layer perceptron with stock candle: forward, mean squared error to fixed
//! targets, backward, Adam. `stock-candle ACTIVATION BATCH UPDATES SIZE SIZE…`
//!
//! One run for each line on standard input, answered by one line of JSON; see `measured.py`.

use candle_core::{DType, Device, Error, Module, Result, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear};
use std::time::Instant;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [activation, numbers @ ..] = &arguments[..] else { candle_core::bail!("no arguments") };
    let numbers: Vec<usize> =
        numbers.iter().map(|text| text.parse().map_err(Error::wrap)).collect::<Result<_>>()?;
    let [batch, updates, sizes @ ..] = &numbers[..] else { candle_core::bail!("too few arguments") };
    let tanh = activation == "tanh";

    let parameters = VarMap::new();
    let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
    let mut layers = Vec::new();
    for (i, size) in sizes.windows(2).enumerate() {
        layers.push(linear(size[0], size[1], vb.pp(i))?);
    }
    let options = ParamsAdamW { lr: 3e-4, weight_decay: 0.0, ..Default::default() };
    let mut optimizer = AdamW::new(parameters.all_vars(), options)?;
    let inputs = Tensor::rand(-1f32, 1f32, (*batch, sizes[0]), &Device::Cpu)?;
    let targets = Tensor::rand(-1f32, 1f32, (*batch, sizes[sizes.len() - 1]), &Device::Cpu)?;

    for line in std::io::stdin().lines() {
        line?;
        let start = Instant::now();
        for _ in 0..*updates {
            let mut x = inputs.clone();
            for (i, layer) in layers.iter().enumerate() {
                x = layer.forward(&x)?;
                if i + 1 < layers.len() {
                    x = if tanh { x.tanh()? } else { x.relu()? };
                }
            }
            optimizer.backward_step(&(x - &targets)?.sqr()?.mean_all()?)?;
        }
        println!(r#"{{"steps": {updates}, "seconds": {}}}"#, start.elapsed().as_secs_f64());
    }
    Ok(())
}
