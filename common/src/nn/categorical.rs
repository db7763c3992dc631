//! The categorical distribution over discrete actions, with fused gradients.

use super::simd::slice;
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use envs::Rng;
use rand::RngExt;
use std::sync::Arc;

/// π(a) = softmax(logits)_a, for each row of `logits` `[batch, num_actions]`.
#[derive(Debug, Clone)]
pub struct Categorical {
    logits: Tensor,            // [batch, num_actions]
    table: Option<Arc<Table>>, // on a CPU
}

/// π and ln π, computed once for everything that is asked of the distribution.
#[derive(Debug)]
struct Table {
    num_actions: usize,
    log_probs: Vec<f32>, // [batch, num_actions]
    probs: Vec<f32>,     // [batch, num_actions]
}

impl Table {
    fn new(logits: &Tensor) -> Result<Self> {
        let (_, num_actions) = logits.dims2()?;
        let (storage, layout) = logits.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { bail!("logits that are not on the CPU") };
        let logits = slice(storage, layout)?;
        let (mut log_probs, mut probs) = (Vec::with_capacity(logits.len()), Vec::with_capacity(logits.len()));
        for row in logits.chunks_exact(num_actions) {
            let start = probs.len();
            // Shifted by the maximum, so that nothing overflows.
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            probs.extend(row.iter().map(|z| (z - max).exp()));
            let total: f32 = probs[start..].iter().sum();
            probs[start..].iter_mut().for_each(|p| *p /= total);
            // Not z − (max + ln Σ): where logits are large, that sum rounds its logarithm away.
            let log_total = total.ln();
            log_probs.extend(row.iter().map(|z| (z - max) - log_total));
        }
        Ok(Self { num_actions, log_probs, probs })
    }

    /// Rows of (ln π, π).
    fn rows(&self) -> impl Iterator<Item = (&[f32], &[f32])> {
        self.log_probs.chunks_exact(self.num_actions).zip(self.probs.chunks_exact(self.num_actions))
    }
}

impl Categorical {
    /// From unnormalised log-probabilities `[batch, num_actions]`.
    ///
    /// # Errors
    /// Logits of another rank.
    pub fn new(logits: &Tensor) -> Result<Self> {
        let logits = logits.contiguous()?;
        let table = match logits.device().is_cpu() {
            true => Some(Arc::new(Table::new(&logits)?)),
            false => None,
        };
        Ok(Self { logits, table })
    }

    /// π of each action, `[batch, num_actions]`, in plain numbers.
    fn probabilities(&self) -> Result<Vec<f32>> {
        match &self.table {
            Some(table) => Ok(table.probs.clone()),
            None => log_softmax(&self.logits)?.exp()?.flatten_all()?.to_vec1(),
        }
    }

    /// One action a ~ π for each row, `[batch]` (u32), each from one uniform number of `rng`.
    ///
    /// # Errors
    /// Logits of which no action has a probability, such as NaN.
    pub fn sample(&self, rng: &mut Rng) -> Result<Tensor> {
        let (batch, num_actions) = self.logits.dims2()?;
        let probabilities = self.probabilities()?;
        let mut actions = Vec::with_capacity(batch);
        for row in probabilities.chunks_exact(num_actions) {
            let mut left = rng.random::<f32>();
            let chosen = row.iter().position(|probability| {
                left -= probability;
                left < 0.0
            });
            // Where rounding leaves nothing to the last: the last that can happen at all.
            let last = || row.iter().rposition(|&probability| probability > 0.0);
            let Some(action) = chosen.or_else(last) else {
                bail!("no action has a probability: the logits are not finite");
            };
            actions.push(action as u32);
        }
        Tensor::from_vec(actions, batch, self.logits.device())
    }

    /// The most probable action of each row, the first of several, `[batch]` (u32).
    pub fn mode(&self) -> Result<Tensor> {
        self.logits.argmax(D::Minus1)
    }

    /// ln π(aᵢ) of the actions `[batch]` (u32, on any device), as `[batch]`.
    ///
    /// # Errors
    /// Actions of another number or type, or out of range.
    pub fn log_prob(&self, actions: &Tensor) -> Result<Tensor> {
        let Some(table) = &self.table else {
            let log_probs = log_softmax(&self.logits)?;
            return log_probs.gather(&actions.to_device(self.logits.device())?.unsqueeze(1)?, 1)?.squeeze(1);
        };
        let actions: Vec<u32> = actions.to_vec1()?;
        let (batch, num_actions) = self.logits.dims2()?;
        if actions.len() != batch {
            bail!("{} actions for {batch} rows of logits", actions.len());
        }
        if let Some(a) = actions.iter().find(|&&a| a as usize >= num_actions) {
            bail!("action {a}: 0 to {} is accepted", num_actions - 1);
        }
        self.logits.apply_op1(LogProb { table: table.clone(), actions })
    }

    /// H(π) = −Σₐ π(a) ln π(a), as `[batch]`.
    pub fn entropy(&self) -> Result<Tensor> {
        let Some(table) = &self.table else {
            let log_probs = log_softmax(&self.logits)?;
            return (log_probs.exp()? * log_probs)?.sum(D::Minus1)?.neg();
        };
        self.logits.apply_op1(Entropy(table.clone()))
    }
}

/// ln π of each row, on a device that has no kernel of ours.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

struct LogProb {
    table: Arc<Table>,
    actions: Vec<u32>,
}

impl CustomOp1 for LogProb {
    fn name(&self) -> &'static str {
        "categorical-log-prob"
    }

    fn cpu_fwd(&self, _logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, _) = layout.shape().dims2()?;
        let out =
            self.table.rows().zip(&self.actions).map(|((log_probs, _), &action)| log_probs[action as usize]);
        Ok((CpuStorage::F32(out.collect()), batch.into()))
    }

    fn bwd(&self, logits: &Tensor, _log_prob: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut out = Vec::with_capacity(logits.elem_count());
        for (((_, probs), &action), g) in self.table.rows().zip(&self.actions).zip(grad.to_vec1::<f32>()?) {
            // ∂ ln π(a) / ∂zⱼ = 1[j = a] − π(j)
            let start = out.len();
            out.extend(probs.iter().map(|p| -g * p));
            out[start + action as usize] += g;
        }
        Ok(Some(Tensor::from_vec(out, logits.shape(), logits.device())?))
    }
}

struct Entropy(Arc<Table>);

/// −Σ π ln π of one row. An action of probability 0 adds nothing, although its ln π is −∞.
fn entropy(log_probs: &[f32], probs: &[f32]) -> f32 {
    -log_probs.iter().zip(probs).map(|(l, p)| if *p == 0.0 { 0.0 } else { p * l }).sum::<f32>()
}

impl CustomOp1 for Entropy {
    fn name(&self) -> &'static str {
        "categorical-entropy"
    }

    fn cpu_fwd(&self, _logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, _) = layout.shape().dims2()?;
        let out = self.0.rows().map(|(log_probs, probs)| entropy(log_probs, probs)).collect();
        Ok((CpuStorage::F32(out), batch.into()))
    }

    fn bwd(&self, logits: &Tensor, _entropy: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut out = Vec::with_capacity(logits.elem_count());
        for ((log_probs, probs), g) in self.0.rows().zip(grad.to_vec1::<f32>()?) {
            let h = entropy(log_probs, probs);
            // ∂H / ∂zⱼ = −π(j) (ln π(j) + H)
            let row = log_probs.iter().zip(probs);
            out.extend(row.map(|(l, p)| if *p == 0.0 { 0.0 } else { -g * p * (l + h) }));
        }
        Ok(Some(Tensor::from_vec(out, logits.shape(), logits.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn a_device_without_our_kernels_gives_the_same() -> Result<()> {
        let logits = Var::new(&[[0.5_f32, -1.0, 2.0], [80.0, 0.0, -80.0]], &Device::Cpu)?;
        let actions = Tensor::new(&[2_u32, 0], &Device::Cpu)?;
        let ours = Categorical::new(&logits)?;
        let theirs = Categorical { logits: logits.as_tensor().clone(), table: None };
        let close = |a: &Tensor, b: &Tensor| -> Result<()> {
            let (a, b) = (a.flatten_all()?.to_vec1::<f32>()?, b.flatten_all()?.to_vec1::<f32>()?);
            for (a, b) in a.iter().zip(&b) {
                approx::assert_relative_eq!(*a, *b, epsilon = 1e-6, max_relative = 1e-6);
            }
            Ok(())
        };
        close(&ours.log_prob(&actions)?, &theirs.log_prob(&actions)?)?;
        close(&ours.entropy()?, &theirs.entropy()?)?;
        let gradient = |policy: &Categorical| -> Result<Tensor> {
            let loss = (policy.log_prob(&actions)? + policy.entropy()?)?.sum_all()?;
            Ok(loss.backward()?.get(&logits).expect("a gradient").clone())
        };
        close(&gradient(&ours)?, &gradient(&theirs)?)
    }
}
