//! Learning steps as PyTorch computes them, for an algorithm's own methods to give again.
//!
//! `tests/golden/updates/NAME.safetensors` (its README describes the tensors) holds the parameters,
//! the batch and the noise of one learning step in, and targets, losses, gradients and parameters
//! out. A test sets the recorded parameters, calls the file's own methods in the recorded order and
//! compares what it can see. Nothing is fatal until [`Recording::finish`], which reports every
//! difference at once; a recording that is dropped without it fails the test.
//!
//! ```no_run
//! # struct Learner { actor: common::nn::VarMap, critic: common::nn::VarMap, adam: common::nn::Adam }
//! # impl Learner {
//! #     fn targets(&self, _: &Tensor, _: &Tensor) -> Tensor { todo!() }
//! #     fn update_critic(&mut self, _: &Tensor, _: &Tensor) -> candle_core::Result<f32> { todo!() }
//! # }
//! # let mut learner: Learner = todo!();
//! # use candle_core::Tensor;
//! use regression::{Layers, Recording, first_gradients};
//!
//! // The layers' names in the VarMap, and the recorded layers that each stacks.
//! const ACTOR: Layers = &[("hidden1", &["actor/fc1"]), ("output", &["actor/mean", "actor/log_std"])];
//! const CRITIC: Layers = &[("hidden1", &["critic_1/fc1"]), ("output", &["critic_1/fc3"])];
//!
//! let mut recording = Recording::open("sac");
//! recording.set(&learner.actor, ACTOR);
//! recording.set(&learner.critic, CRITIC);
//! let rewards = recording.column("batch/rewards"); // [batch, 1]
//! let noise = recording.tensor("noise/normal_target_actions"); // [batch, action_dim]
//! recording.close("expected/targets", &learner.targets(&rewards, &noise));
//! let loss = learner.update_critic(&rewards, &noise)?;
//! recording.close("expected/loss/critic", loss);
//! recording.gradients("expected/gradients", &learner.critic, CRITIC, first_gradients(&learner.adam));
//! recording.parameters("expected/parameters", &learner.critic, CRITIC, recording.number("critic_lr"));
//! recording.unmoved(&learner.actor, ACTOR); // as it was recorded before the update
//! recording.finish();
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! `UPDATES_DIR` names another folder of recordings, which `record_*.py --seed 7 --out DIR` beside
//! the committed ones makes.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use common::nn::{Adam, VarMap};
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Which recorded layers each layer of a `VarMap` is made of: its name there (without `.weight` and
/// `.bias`; or the whole name of a parameter), and `NETWORK/LAYER` of the recording. Several
/// recorded layers are stacked along the output dimension.
pub type Layers<'a> = &'a [(&'a str, &'a [&'a str])];

/// Targets, losses and gradients agree to this much of their size, …
const RELATIVE: f64 = 1e-4;
/// … or to this.
const ABSOLUTE: f64 = 1e-6;
/// Parameters after a step agree to this much of the step's size …
const OF_A_STEP: f64 = 2e-3;
/// … where the gradient is larger than this: below, Adam makes whole steps of rounding.
const TINY_GRADIENT: f64 = 1e-5;
/// Losses of several updates in a row agree to this much of their size.
const OVER_UPDATES: f64 = 2e-5;

/// The folder of recorded updates: `$UPDATES_DIR`, or the committed one.
pub fn updates_dir() -> PathBuf {
    std::env::var_os("UPDATES_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/updates"), PathBuf::from)
}

/// One recorded learning step, and what was found to differ from it.
#[derive(Debug)]
pub struct Recording {
    name: String,
    tensors: HashMap<String, Tensor>,
    hyperparameters: Value,
    /// Names of the recorded tensors that were compared.
    compared: BTreeSet<String>,
    comparisons: usize,
    differences: Vec<String>,
    finished: bool,
}

impl Recording {
    /// Reads `NAME.safetensors`; panics if there is none.
    pub fn open(name: &str) -> Self {
        let path = updates_dir().join(format!("{name}.safetensors"));
        let fail = |error: &dyn std::fmt::Display| -> ! { panic!("{}: {error}", path.display()) };
        let bytes = std::fs::read(&path).unwrap_or_else(|error| fail(&error));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap_or_else(|error| fail(&error));
        let metadata = header.metadata().as_ref().and_then(|metadata| metadata.get("hyperparameters"));
        let text = metadata.unwrap_or_else(|| fail(&"no hyperparameters"));
        let hyperparameters = serde_json::from_str(text).unwrap_or_else(|error| fail(&error));
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu);
        let tensors = tensors.unwrap_or_else(|error| fail(&error));
        Self {
            name: name.to_string(),
            tensors,
            hyperparameters,
            compared: BTreeSet::new(),
            comparisons: 0,
            differences: Vec::new(),
            finished: false,
        }
    }

    fn hyperparameter<T>(&self, name: &str, read: impl Fn(&Value) -> Option<T>) -> T {
        let value = self.hyperparameters.pointer(&format!("/{name}"));
        value
            .and_then(read)
            .unwrap_or_else(|| panic!("{}: no {name} of this type among {}", self.name, self.hyperparameters))
    }

    /// A hyper-parameter that is a number; `adam/lr` is `lr` within `adam`.
    pub fn number(&self, name: &str) -> f64 {
        self.hyperparameter(name, Value::as_f64)
    }

    /// A hyper-parameter that is a list of numbers.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        self.hyperparameter(name, |value| value.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// A hyper-parameter that is text.
    pub fn text(&self, name: &str) -> String {
        self.hyperparameter(name, |value| value.as_str().map(str::to_string))
    }

    /// A hyper-parameter that is true or false.
    pub fn flag(&self, name: &str) -> bool {
        self.hyperparameter(name, Value::as_bool)
    }

    /// Whether the recording has the tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor `name`, such as `batch/observations`: f32, or i64 where it is of indices.
    pub fn tensor(&self, name: &str) -> Tensor {
        match self.tensors.get(name) {
            Some(tensor) => tensor.clone(),
            None => {
                let mut names: Vec<_> = self.tensors.keys().map(String::as_str).collect();
                names.sort_unstable();
                panic!("{} has no tensor {name}, it has {}", self.name, names.join(", "))
            }
        }
    }

    /// A tensor `[batch]` as `[batch, 1]`.
    pub fn column(&self, name: &str) -> Tensor {
        must(self.tensor(name).reshape(((), 1)))
    }

    /// The numbers of a tensor, row by row.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        values_of(&self.tensor(name))
    }

    /// The numbers of a tensor of indices.
    pub fn integers(&self, name: &str) -> Vec<u32> {
        must(self.tensor(name).flatten_all().and_then(|t| t.to_dtype(DType::U32)).and_then(|t| t.to_vec1()))
    }

    /// Which numbers of a tensor of zeros and ones are not 0.
    pub fn flags(&self, name: &str) -> Vec<bool> {
        self.floats(name).iter().map(|&x| x != 0.0).collect()
    }

    /// What the recording has in `folder` for the parameter `name`, in the shape it has there.
    fn recorded(&self, folder: &str, layers: Layers, name: &str, shape: &[usize]) -> Vec<f32> {
        let recorded = recorded_names(folder, layers, name);
        let parts: Vec<_> = recorded.iter().map(|name| self.tensor(name)).collect();
        let stacked = must(Tensor::cat(&parts, 0));
        // A transposed weight would have as many numbers; dimensions of 1 are a matter of taste.
        let without_ones = |dims: &[usize]| dims.iter().copied().filter(|&dim| dim != 1).collect::<Vec<_>>();
        assert_eq!(
            without_ones(stacked.dims()),
            without_ones(shape),
            "{}: shapes of {} and of the parameter {name}",
            self.name,
            recorded.join(" + ")
        );
        values_of(&stacked)
    }

    /// Gives every parameter of `parameters` its recorded value from before the update.
    pub fn set(&self, parameters: &VarMap, layers: Layers) {
        let vars = named(parameters, layers);
        for (name, var) in vars {
            let values = self.recorded("parameters", layers, &name, var.dims());
            must(Tensor::from_vec(values, var.shape(), var.device()).and_then(|values| var.set(&values)));
        }
    }

    /// Compares `found` with the tensor `name`: targets, losses, values and the like, to 1e-4 of
    /// each number or 1e-6.
    pub fn close(&mut self, name: &str, found: impl Numbers) {
        self.within(name, found, RELATIVE, ABSOLUTE);
    }

    /// Compares `found` with the tensor `name`, a series of losses over updates, to 2e-5 of each
    /// number or 1e-6.
    pub fn losses(&mut self, name: &str, found: impl Numbers) {
        self.within(name, found, OVER_UPDATES, ABSOLUTE);
    }

    /// Compares `found` with the tensor `name`, each number to `relative` of it or to `absolute`,
    /// whichever is more.
    pub fn within(&mut self, name: &str, found: impl Numbers, relative: f64, absolute: f64) {
        self.compared.insert(name.to_string());
        self.computed(name, found, self.tensor(name), relative, absolute);
    }

    /// Compares `found` with `expected`, which was computed from recorded tensors: where a file differs
    /// from its recording on purpose. Each number to `relative` of it or to `absolute`.
    pub fn computed(
        &mut self,
        what: &str,
        found: impl Numbers,
        expected: impl Numbers,
        relative: f64,
        absolute: f64,
    ) {
        let expected = expected.numbers();
        let tolerances = expected.iter().map(|e| (relative * e.abs()).max(absolute)).collect::<Vec<_>>();
        self.compare(what, &found.numbers(), &expected, &tolerances);
    }

    /// Compares `found` with the tensor `name`, such as indices, exactly.
    pub fn equal(&mut self, name: &str, found: impl Numbers) {
        self.within(name, found, 0.0, 0.0);
    }

    /// Compares the gradient of every parameter, which must have one, with `folder`
    /// (`expected/gradients`), as [`Recording::close`] does. Where a method hides its gradients
    /// inside an optimiser's step, [`first_gradients`] brings them back.
    pub fn gradients(&mut self, folder: &str, parameters: &VarMap, layers: Layers, found: impl Gradients) {
        for (i, (name, var)) in named(parameters, layers).into_iter().enumerate() {
            let expected = self.recorded(folder, layers, &name, var.dims()).numbers();
            let what = self.note(folder, layers, &name);
            match found.gradient(i, &var) {
                None => self.differences.push(format!("{what}: no gradient")),
                Some(found) => {
                    let tolerances = expected.iter().map(|e| (RELATIVE * e.abs()).max(ABSOLUTE));
                    self.compare(&what, &found.numbers(), &expected, &tolerances.collect::<Vec<_>>());
                }
            }
        }
    }

    /// Compares every parameter with `folder` (`expected/parameters`) after one step of Adam (or
    /// another optimiser) of size `step`, its learning rate: to 2e-3 of the step where the recorded
    /// gradient (in `expected/gradients`) exceeds 1e-5, and to two steps elsewhere, because a
    /// gradient that is nothing but rounding moves Adam by up to a step in either direction.
    pub fn parameters(&mut self, folder: &str, parameters: &VarMap, layers: Layers, step: f64) {
        self.parameters_within(folder, parameters, layers, step, OF_A_STEP);
    }

    /// [`Recording::parameters`] to `of_a_step` of the step instead of 2e-3: for several updates, or
    /// where the recording's notes give another tolerance.
    pub fn parameters_within(
        &mut self,
        folder: &str,
        parameters: &VarMap,
        layers: Layers,
        step: f64,
        of_a_step: f64,
    ) {
        for (name, var) in named(parameters, layers) {
            let expected = self.recorded(folder, layers, &name, var.dims());
            let gradients = self.recorded("expected/gradients", layers, &name, var.dims());
            let what = self.note(folder, layers, &name);
            self.compare_steps(&what, &values_of(&var), &expected, &gradients, step, of_a_step);
        }
    }

    /// The same of one tensor that is not in a `VarMap`, such as a temperature: `found` after a step
    /// against `name`, where `gradient` names its recorded gradient.
    pub fn stepped(&mut self, name: &str, gradient: &str, found: impl Numbers, step: f64) {
        let (expected, gradients) = (self.floats(name), self.floats(gradient));
        self.compared.insert(name.to_string());
        self.compare_steps(name, &found.numbers(), &expected, &gradients, step, OF_A_STEP);
    }

    fn compare_steps(
        &mut self,
        what: &str,
        found: &(impl Numbers + ?Sized),
        expected: &[f32],
        gradients: &[f32],
        step: f64,
        of_a_step: f64,
    ) {
        // Parameters are rounded to f32, here and in the recording.
        let tolerances = expected.iter().zip(gradients).map(|(expected, gradient)| {
            let share = if f64::from(gradient.abs()) > TINY_GRADIENT { of_a_step } else { 2.0 };
            share * step + f64::from(f32::EPSILON * expected.abs())
        });
        self.compare(what, &found.numbers(), &expected.numbers(), &tolerances.collect::<Vec<_>>());
    }

    /// Compares every parameter with `folder` to `absolute`: target networks, which no optimiser
    /// moves, or parameters after plain gradient descent.
    pub fn parameters_close(&mut self, folder: &str, parameters: &VarMap, layers: Layers, absolute: f64) {
        for (name, var) in named(parameters, layers) {
            let expected = self.recorded(folder, layers, &name, var.dims()).numbers();
            let what = self.note(folder, layers, &name);
            let tolerances = vec![absolute; expected.len()];
            self.compare(&what, &values_of(&var).numbers(), &expected, &tolerances);
        }
    }

    /// Checks that every parameter is, to the last bit, what [`Recording::set`] made it.
    pub fn unmoved(&mut self, parameters: &VarMap, layers: Layers) {
        self.parameters_close("parameters", parameters, layers, 0.0);
    }

    /// What a comparison of the parameter `name` with `folder` is called; notes that it was made.
    fn note(&mut self, folder: &str, layers: Layers, name: &str) -> String {
        let recorded = recorded_names(folder, layers, name);
        let what = recorded.join(" + ");
        self.compared.extend(recorded);
        what
    }

    fn compare(&mut self, what: &str, found: &[f64], expected: &[f64], tolerances: &[f64]) {
        self.comparisons += 1;
        if found.len() != expected.len() {
            self.differences.push(format!("{what}: {} numbers, {} expected", found.len(), expected.len()));
            return;
        }
        let wrong: Vec<usize> = (0..found.len())
            // Written so that NaN is wrong.
            .filter(|&i| !((found[i] - expected[i]).abs() <= tolerances[i] || found[i] == expected[i]))
            .collect();
        let share = |i: usize| {
            let difference = (found[i] - expected[i]).abs();
            if difference.is_nan() {
                f64::INFINITY
            } else {
                difference / tolerances[i].max(f64::MIN_POSITIVE)
            }
        };
        let worst = (0..found.len()).max_by(|&a, &b| share(a).total_cmp(&share(b)));
        let Some(worst) = worst else {
            self.differences.push(format!("{what}: nothing to compare"));
            return;
        };
        let line = format!(
            "{what}[{worst}] is {:e}, expected {:e} to within {:.1e}",
            found[worst], expected[worst], tolerances[worst]
        );
        println!("{}: {line}", self.name);
        if !wrong.is_empty() {
            self.differences.push(format!("{line}; {} of {} numbers differ", wrong.len(), found.len()));
        }
    }

    /// Ends the comparison: panics with every difference, or if nothing was compared. With
    /// `--nocapture` it says which expected tensors were not looked at.
    pub fn finish(mut self) {
        self.finished = true;
        assert!(self.comparisons > 0, "{}: nothing was compared", self.name);
        let mut left: Vec<_> = self
            .tensors
            .keys()
            .filter(|name| name.starts_with("expected/") && !self.compared.contains(*name))
            .map(String::as_str)
            .collect();
        left.sort_unstable();
        println!("{}: not compared: {}", self.name, left.join(", "));
        let count = self.differences.len();
        assert!(count == 0, "{}: {count} differences\n{}", self.name, self.differences.join("\n"));
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.finished && !std::thread::panicking() {
            panic!("{}: finish() was not called, so no difference would have been noticed", self.name);
        }
    }
}

/// What follows the layer's name in a parameter's, if it is one of that layer: `.weight`, or nothing.
fn suffix<'a>(name: &'a str, layer: &str) -> Option<&'a str> {
    name.strip_prefix(layer).filter(|suffix| suffix.is_empty() || suffix.starts_with('.'))
}

/// The recorded tensors in `folder` that together are the parameter `name`.
fn recorded_names(folder: &str, layers: Layers, name: &str) -> Vec<String> {
    let found = layers.iter().find_map(|(layer, recorded)| Some((suffix(name, layer)?, recorded)));
    let (suffix, recorded) =
        found.unwrap_or_else(|| panic!("no recorded layer is given for the parameter {name}"));
    recorded.iter().map(|layer| format!("{folder}/{layer}{suffix}")).collect()
}

/// The parameters of a map by name, among which each of `layers` must be.
fn named(parameters: &VarMap, layers: Layers) -> Vec<(String, Var)> {
    let vars = parameters.named_vars();
    for (layer, _) in layers {
        let names: Vec<_> = vars.iter().map(|(name, _)| name).collect();
        let has_one = names.iter().any(|name| suffix(name, layer).is_some());
        assert!(has_one, "no parameter is called {layer}, there are {names:?}");
    }
    vars
}

/// What can be compared with a recorded tensor: a tensor, a number, or numbers in order.
pub trait Numbers {
    /// All numbers, row by row.
    fn numbers(&self) -> Vec<f64>;
}

impl Numbers for Tensor {
    fn numbers(&self) -> Vec<f64> {
        must(self.flatten_all().and_then(|t| t.to_dtype(DType::F64)).and_then(|t| t.to_vec1()))
    }
}

impl<T: Numbers + ?Sized> Numbers for &T {
    fn numbers(&self) -> Vec<f64> {
        (*self).numbers()
    }
}

impl<T: Numbers> Numbers for [T] {
    fn numbers(&self) -> Vec<f64> {
        self.iter().flat_map(Numbers::numbers).collect()
    }
}

impl<T: Numbers> Numbers for Vec<T> {
    fn numbers(&self) -> Vec<f64> {
        self.as_slice().numbers()
    }
}

impl<T: Numbers, const N: usize> Numbers for [T; N] {
    fn numbers(&self) -> Vec<f64> {
        self.as_slice().numbers()
    }
}

macro_rules! one_number {
    ($($type:ty),*) => {$(
        impl Numbers for $type {
            fn numbers(&self) -> Vec<f64> {
                vec![*self as f64]
            }
        }
    )*};
}

one_number!(f32, f64, u32, i64, usize);

/// Gradients of the parameters of a map.
pub trait Gradients {
    /// The gradient of the `index`-th parameter by name.
    fn gradient(&self, index: usize, parameter: &Tensor) -> Option<Vec<f32>>;
}

impl Gradients for GradStore {
    fn gradient(&self, _: usize, parameter: &Tensor) -> Option<Vec<f32>> {
        self.get(parameter).map(values_of)
    }
}

impl Gradients for Vec<Vec<f32>> {
    fn gradient(&self, index: usize, _: &Tensor) -> Option<Vec<f32>> {
        self.get(index).cloned()
    }
}

impl<T: Gradients> Gradients for &T {
    fn gradient(&self, index: usize, parameter: &Tensor) -> Option<Vec<f32>> {
        (*self).gradient(index, parameter)
    }
}

/// The gradients of the first step that `adam` took, in the order of its parameters: after it
/// m = (1 − β₁) g. Where gradients are clipped, g is the clipped one.
pub fn first_gradients(adam: &Adam) -> Vec<Vec<f32>> {
    assert_eq!(adam.step, 1, "m holds one gradient after the first step only");
    let scale = (1.0 / (1.0 - adam.beta1)) as f32;
    let moments = must(adam.moments());
    moments.into_iter().map(|(m, _)| m.into_iter().map(|m| m * scale).collect()).collect()
}

/// The value of every parameter by name: taken before and after, they show what an update moves.
pub fn values(parameters: &VarMap) -> Vec<(String, Vec<f32>)> {
    parameters.named_vars().into_iter().map(|(name, var)| (name, values_of(&var))).collect()
}

fn values_of(tensor: &Tensor) -> Vec<f32> {
    must(tensor.flatten_all().and_then(|t| t.to_dtype(DType::F32)).and_then(|t| t.to_vec1()))
}

fn must<T>(result: candle_core::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
mod tests;
