//! Trained models as safetensors files that any reader of the format understands.

use crate::nn::VarMap;
use crate::write_atomically::write_atomically;
use anyhow::Context;
use candle_core::{Device, Tensor};
use envs::wrappers::{NormalizeObservation, RunningMeanStd};
use envs::{InvalidInput, Result};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Something that has named tensors: a network, a table, normalisation statistics.
pub trait Model {
    /// Its tensors by name.
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>>;

    /// Takes on the values of the same names and shapes.
    fn set_tensors(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()>;
}

fn find<'a>(tensors: &'a BTreeMap<String, Tensor>, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).with_context(|| format!("it holds no tensor {name}"))
}

impl Model for VarMap {
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(self.named_vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect())
    }

    fn set_tensors(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, var) in self.named_vars() {
            let tensor = find(tensors, &name)?;
            anyhow::ensure!(
                tensor.shape() == var.shape() && tensor.dtype() == var.dtype(),
                "its tensor {name} is {:?} of {:?}, not {:?} of {:?}",
                tensor.shape(),
                tensor.dtype(),
                var.shape(),
                var.dtype()
            );
            var.set(&tensor.to_device(var.device())?)?;
        }
        Ok(())
    }
}

/// A table of numbers, such as Q(s, a), under the name `table`.
impl Model for Vec<f64> {
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(BTreeMap::from([("table".into(), Tensor::from_slice(self, self.len(), &Device::Cpu)?)]))
    }

    fn set_tensors(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let table = find(tensors, "table")?.to_vec1::<f64>().context("its table")?;
        anyhow::ensure!(
            table.len() == self.len(),
            "its table has {} entries, not {}",
            table.len(),
            self.len()
        );
        *self = table;
        Ok(())
    }
}

/// The statistics that a policy's observations are normalised with: `mean`, `var`
/// `[observation_dim]` and `count` `[1]`, in double precision as they are kept.
impl Model for NormalizeObservation {
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let tensor = |values: &[f64]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        let statistics = &self.statistics;
        Ok(BTreeMap::from([
            ("mean".into(), tensor(&statistics.mean)?),
            ("var".into(), tensor(&statistics.var)?),
            ("count".into(), tensor(&[statistics.count])?),
        ]))
    }

    fn set_tensors(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let read = |name: &str, len: usize| -> Result<Vec<f64>> {
            let values = find(tensors, name)?.to_vec1::<f64>().with_context(|| format!("its {name}"))?;
            anyhow::ensure!(values.len() == len, "its {name} has {} entries, not {len}", values.len());
            Ok(values)
        };
        let dim = self.statistics.mean.len();
        let (mean, var, count) = (read("mean", dim)?, read("var", dim)?, read("count", 1)?[0]);
        self.statistics = RunningMeanStd { mean, var, count };
        Ok(())
    }
}

/// Several models in one file, each under its own prefix.
impl Model for [(&str, &mut dyn Model)] {
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (prefix, model) in self {
            all.extend(
                model.tensors()?.into_iter().map(|(name, tensor)| (format!("{prefix}.{name}"), tensor)),
            );
        }
        Ok(all)
    }

    fn set_tensors(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for (prefix, model) in self {
            let prefix = format!("{prefix}.");
            let own = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?, tensor)));
            model.set_tensors(&own.map(|(name, tensor)| (name.to_string(), tensor.clone())).collect())?;
        }
        Ok(())
    }
}

impl<const N: usize> Model for [(&str, &mut dyn Model); N] {
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.as_slice().tensors()
    }

    fn set_tensors(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        self.as_mut_slice().set_tensors(tensors)
    }
}

/// What a file is, as safetensors metadata. All of it is one entry of JSON with sorted keys: the
/// format's own map is written in an order that differs from process to process, and the same
/// run must give the same bytes.
pub(crate) fn describe<const N: usize>(fields: [(&str, &str); N]) -> HashMap<String, String> {
    let fields: serde_json::Map<_, _> =
        fields.into_iter().map(|(key, value)| (key.to_string(), value.into())).collect();
    HashMap::from([("plainrl".to_string(), serde_json::Value::Object(fields).to_string())])
}

/// What [`describe`] wrote; empty where it did not.
pub(crate) fn description(header: &safetensors::tensor::Metadata) -> BTreeMap<String, String> {
    let text = header.metadata().as_ref().and_then(|fields| fields.get("plainrl"));
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Writes `model`, noting the algorithm and environment it is of.
pub fn save(path: &Path, algorithm: &str, env_id: &str, model: &dyn Model) -> Result<()> {
    let metadata = describe([("kind", "model"), ("algorithm", algorithm), ("env_id", env_id)]);
    let tensors: BTreeMap<_, _> = model
        .tensors()?
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<Result<_>>()?;
    write_atomically(path, &safetensors::serialize(&tensors, Some(metadata))?)
}

/// Reads what [`save`] wrote into `model`.
///
/// # Errors
/// One line each for a file that is missing, corrupt, or of another algorithm, environment or
/// shape.
pub fn load(path: &Path, algorithm: &str, env_id: &str, model: &mut dyn Model) -> Result<()> {
    let refuse =
        |why: String| anyhow::Error::new(InvalidInput(format!("--eval-only {}: {why}", path.display())));
    let bytes = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let (_, header) =
        SafeTensors::read_metadata(&bytes).map_err(|error| refuse(format!("not a model ({error})")))?;
    let metadata = description(&header);
    for (key, wanted) in [("kind", "model"), ("algorithm", algorithm), ("env_id", env_id)] {
        let found = metadata.get(key).map_or("none", String::as_str);
        if found != wanted {
            return Err(refuse(format!("its {key} is {found}, not {wanted}")));
        }
    }
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|error| refuse(format!("not a model ({error})")))?;
    model.set_tensors(&tensors.into_iter().collect()).map_err(|error| refuse(format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Init, VarBuilder};
    use candle_core::DType;

    /// A network of one parameter of `size` numbers.
    fn network(size: usize, seed: u64) -> VarMap {
        let parameters = VarMap::new(seed);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
        vb.get_with_hints(size, "weight", Init::Uniform { lo: -1.0, up: 1.0 }).unwrap();
        parameters
    }

    #[test]
    fn a_network_and_its_normalisation_come_back_from_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let (mut parameters, mut normalize) = (network(3, 1), NormalizeObservation::new(2));
        normalize.statistics.update(&[1.0, -2.0, 0.5, 4.0]);
        save(
            &path,
            "x",
            "E-v0",
            &[("agent", &mut parameters as &mut dyn Model), ("statistics", &mut normalize)],
        )
        .unwrap();

        let (mut other, mut loaded) = (network(3, 2), NormalizeObservation::new(2));
        let mut model = [("agent", &mut other as &mut dyn Model), ("statistics", &mut loaded)];
        load(&path, "x", "E-v0", &mut model).unwrap();
        assert_eq!(loaded, normalize);
        let weight = |map: &VarMap| map.all_vars()[0].to_vec1::<f32>().unwrap();
        assert_eq!(weight(&other), weight(&parameters));

        let mut of_other_size = NormalizeObservation::new(3);
        let mut model = [("agent", &mut other as &mut dyn Model), ("statistics", &mut of_other_size)];
        let error = load(&path, "x", "E-v0", &mut model).unwrap_err().to_string();
        assert!(error.ends_with("its mean has 2 entries, not 3"), "{error}");
    }
}
