//! The categorical distribution over discrete actions, with fused gradients.

use super::dense::slice;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor, bail};

/// π(a) = softmax(logits)_a, for each row of `logits` `[batch, num_actions]`.
#[derive(Debug, Clone)]
pub struct Categorical {
    logits: Tensor, // [batch, num_actions]
}

impl Categorical {
    /// From unnormalised log-probabilities `[batch, num_actions]`.
    pub fn new(logits: &Tensor) -> Self {
        Self { logits: logits.clone() }
    }

    /// ln π(aᵢ) of the actions `[batch]` (u32), as `[batch]`.
    pub fn log_prob(&self, actions: &Tensor) -> Result<Tensor> {
        if !self.logits.device().is_cpu() {
            let log_probs = candle_nn::ops::log_softmax(&self.logits, D::Minus1)?;
            return log_probs.gather(&actions.unsqueeze(1)?, 1)?.squeeze(1);
        }
        self.logits.contiguous()?.apply_op2(&actions.contiguous()?, LogProb)
    }

    /// H(π) = −Σₐ π(a) ln π(a), as `[batch]`.
    pub fn entropy(&self) -> Result<Tensor> {
        if !self.logits.device().is_cpu() {
            let log_probs = candle_nn::ops::log_softmax(&self.logits, D::Minus1)?;
            return (log_probs.exp()? * log_probs)?.sum(D::Minus1)?.neg();
        }
        self.logits.contiguous()?.apply_op1(Entropy)
    }
}

/// ln Σ exp(row), shifted by the maximum so that nothing overflows.
fn log_sum_exp(row: &[f32]) -> f32 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    max + row.iter().map(|z| (z - max).exp()).sum::<f32>().ln()
}

struct LogProb;

impl CustomOp2 for LogProb {
    fn name(&self) -> &'static str {
        "categorical-log-prob"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        actions: &CpuStorage,
        actions_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, num_actions) = logits_layout.shape().dims2()?;
        let logits = slice(logits, logits_layout)?;
        let actions = indices(actions, actions_layout, batch, num_actions)?;
        let out = logits
            .chunks_exact(num_actions)
            .zip(actions)
            .map(|(row, &action)| row[action as usize] - log_sum_exp(row))
            .collect();
        Ok((CpuStorage::F32(out), batch.into()))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        actions: &Tensor,
        _log_prob: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let op = LogProbGradient { actions: actions.to_vec1()? };
        Ok((Some(logits.apply_op2_no_bwd(&grad.contiguous()?, &op)?), None))
    }
}

struct LogProbGradient {
    actions: Vec<u32>,
}

impl CustomOp2 for LogProbGradient {
    fn name(&self) -> &'static str {
        "categorical-log-prob-gradient"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let num_actions = logits_layout.shape().dims2()?.1;
        let (logits, grad) = (slice(logits, logits_layout)?, slice(grad, grad_layout)?);
        let mut out = Vec::with_capacity(logits.len());
        for ((row, &action), g) in logits.chunks_exact(num_actions).zip(&self.actions).zip(grad) {
            let log_z = log_sum_exp(row);
            // ∂ ln π(a) / ∂zⱼ = 1[j = a] − π(j)
            out.extend(row.iter().map(|z| -g * (z - log_z).exp()));
            let start = out.len() - num_actions;
            out[start + action as usize] += g;
        }
        Ok((CpuStorage::F32(out), logits_layout.shape().clone()))
    }
}

struct Entropy;

impl CustomOp1 for Entropy {
    fn name(&self) -> &'static str {
        "categorical-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, num_actions) = layout.shape().dims2()?;
        let out = slice(logits, layout)?.chunks_exact(num_actions).map(entropy).collect();
        Ok((CpuStorage::F32(out), batch.into()))
    }

    fn bwd(&self, logits: &Tensor, _entropy: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(logits.apply_op2_no_bwd(&grad.contiguous()?, &EntropyGradient)?))
    }
}

fn entropy(row: &[f32]) -> f32 {
    let log_z = log_sum_exp(row);
    -row.iter().map(|z| (z - log_z).exp() * (z - log_z)).sum::<f32>()
}

struct EntropyGradient;

impl CustomOp2 for EntropyGradient {
    fn name(&self) -> &'static str {
        "categorical-entropy-gradient"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let num_actions = logits_layout.shape().dims2()?.1;
        let (logits, grad) = (slice(logits, logits_layout)?, slice(grad, grad_layout)?);
        let mut out = Vec::with_capacity(logits.len());
        for (row, g) in logits.chunks_exact(num_actions).zip(grad) {
            let (log_z, h) = (log_sum_exp(row), entropy(row));
            // ∂H / ∂zⱼ = −π(j) (ln π(j) + H)
            out.extend(row.iter().map(|z| -g * (z - log_z).exp() * (z - log_z + h)));
        }
        Ok((CpuStorage::F32(out), logits_layout.shape().clone()))
    }
}

/// Action indices, checked against their range.
fn indices<'a>(storage: &'a CpuStorage, layout: &Layout, batch: usize, n: usize) -> Result<&'a [u32]> {
    let (CpuStorage::U32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
        bail!("actions are a contiguous u32 tensor");
    };
    let actions = &values[start..end];
    if actions.len() != batch || actions.iter().any(|&a| a as usize >= n) {
        bail!("{} actions for {batch} rows of {n} logits, or one out of range", actions.len());
    }
    Ok(actions)
}
