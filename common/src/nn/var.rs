//! Named parameters in a fixed order, and how layers ask for them.

use super::gradients::{flatten, split};
use super::{Init, backward, simd};
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Shape, Tensor, Var, bail};
use envs::Rng;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Named parameters, ordered by name. Like `candle_nn::VarMap`, a clone is another handle to the
/// same parameters: a target network needs a map of its own and [`copy_parameters`].
#[derive(Clone)]
pub struct VarMap(Arc<Mutex<Inner>>);

struct Inner {
    vars: BTreeMap<String, Var>,
    rng: Rng,
}

impl VarMap {
    /// No parameters yet; initial values will be drawn from [`envs::parameters_rng`] of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner { vars: BTreeMap::new(), rng: envs::parameters_rng(seed) })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The map stays whole even if a thread panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every parameter, ordered by name.
    pub fn all_vars(&self) -> Vec<Var> {
        self.lock().vars.values().cloned().collect()
    }

    /// Every parameter with its name, in that order.
    pub fn named_vars(&self) -> Vec<(String, Var)> {
        self.lock().vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// Number of parameters (scalars).
    pub fn num_parameters(&self) -> usize {
        self.lock().vars.values().map(|var| var.elem_count()).sum()
    }

    /// The gradient of `loss` with respect to every parameter, one after the other in that order; 0 where
    /// the loss does not depend on it. For an optimiser elsewhere, such as another rank's, whose
    /// `step_values` takes it.
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<f32>> {
        flatten(&self.all_vars(), &backward(loss)?)
    }

    /// The values of all parameters, one after the other in that order.
    pub fn values(&self) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(self.num_parameters());
        for var in self.all_vars() {
            values.extend(var.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(values)
    }

    /// Takes on the [`VarMap::values`] of a map of the same parameters.
    ///
    /// # Errors
    /// Another number of values.
    pub fn set_values(&self, values: &[f32]) -> Result<()> {
        let vars = self.all_vars();
        for (var, values) in vars.iter().zip(split(&vars, values)?.into_iter().flatten()) {
            var.set(&values)?;
        }
        Ok(())
    }

    fn get(&self, name: &str, shape: Shape, init: Init, device: &Device) -> Result<Tensor> {
        let mut inner = self.lock();
        if let Some(var) = inner.vars.get(name) {
            if var.shape() != &shape {
                bail!("parameter {name} has shape {:?}, not {shape:?}", var.shape());
            }
            return Ok(var.as_tensor().clone());
        }
        let var = Var::from_tensor(&init.tensor(shape, &mut inner.rng, device)?)?;
        let tensor = var.as_tensor().clone();
        inner.vars.insert(name.to_string(), var);
        Ok(tensor)
    }
}

/// Where a layer finds or creates its parameters: a map, a name prefix and a device.
#[derive(Clone)]
pub struct VarBuilder {
    map: VarMap,
    prefix: String,
    device: Device,
}

impl VarBuilder {
    /// Parameters of `map` on `device`. Only `DType::F32` exists here; the argument keeps
    /// `candle_nn`'s signature.
    pub fn from_varmap(map: &VarMap, dtype: DType, device: &Device) -> Self {
        assert_eq!(dtype, DType::F32, "parameters are f32");
        Self { map: map.clone(), prefix: String::new(), device: device.clone() }
    }

    /// The same one level down: names get the prefix `name.`.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// The parameter `name`, created by `init` if it is not there yet.
    ///
    /// # Errors
    /// It is there with another shape.
    pub fn get_with_hints(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
        self.map.get(&format!("{}{name}", self.prefix), shape.into(), init, &self.device)
    }

    /// Where the parameters live.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// target ← source, parameter by parameter.
///
/// # Errors
/// The maps do not hold the same names and shapes.
pub fn copy_parameters(target: &VarMap, source: &VarMap) -> Result<()> {
    soft_update(target, source, 1.0)
}

/// target ← (1 − τ) target + τ source, parameter by parameter (Polyak averaging; Lillicrap et al.
/// 2015, arXiv:1509.02971).
///
/// # Errors
/// The maps do not hold the same names and shapes; no parameter has then changed.
pub fn soft_update(target: &VarMap, source: &VarMap, tau: f64) -> Result<()> {
    let source = source.lock();
    let target = target.lock();
    if !target.vars.keys().eq(source.vars.keys()) {
        let names = |vars: &BTreeMap<String, Var>| vars.keys().cloned().collect::<Vec<_>>().join(", ");
        bail!("the target holds {}, the source {}", names(&target.vars), names(&source.vars));
    }
    for ((name, t), s) in target.vars.iter().zip(source.vars.values()) {
        if t.shape() != s.shape() {
            bail!("parameter {name} has shape {:?} in the target, {:?} in the source", t.shape(), s.shape());
        }
    }
    for (t, s) in target.vars.values().zip(source.vars.values()) {
        if t.device().is_cpu() && t.is_contiguous() && s.is_contiguous() {
            t.as_tensor().inplace_op2(s.as_tensor(), &Lerp(tau as f32))?;
        } else {
            t.set(&((t.as_tensor() * (1.0 - tau))? + (s.as_tensor() * tau)?)?)?;
        }
    }
    Ok(())
}

struct Lerp(f32);

impl InplaceOp2 for Lerp {
    fn name(&self) -> &'static str {
        "soft-update"
    }

    fn cpu_fwd(&self, t: &mut CpuStorage, tl: &Layout, s: &CpuStorage, sl: &Layout) -> Result<()> {
        let (CpuStorage::F32(t), CpuStorage::F32(s)) = (t, s) else { bail!("soft-update wants f32") };
        let len = tl.shape().elem_count();
        let t = &mut t[tl.start_offset()..][..len];
        let s = &s[sl.start_offset()..][..len];
        let tau = self.0;
        if tau == 1.0 {
            t.copy_from_slice(s); // exact, which t + (s − t) is not
            return Ok(());
        }
        simd::vectorize(
            #[inline(always)]
            || {
                for (t, s) in t.iter_mut().zip(s) {
                    *t += tau * (s - *t);
                }
            },
        );
        Ok(())
    }
}
