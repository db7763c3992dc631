//! The comparison finds what differs, and nothing else.

use super::*;
use common::nn::{VarBuilder, linear};
use std::panic::{AssertUnwindSafe, catch_unwind};

const ACTOR: Layers =
    &[("hidden1", &["actor/fc1"]), ("hidden2", &["actor/fc2"]), ("output", &["actor/mean", "actor/log_std"])];

/// A network as SAC's recording has it, with both heads in one output layer.
fn actor() -> VarMap {
    let map = VarMap::new(1);
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    linear(3, 32, vb.pp("hidden1")).unwrap();
    linear(32, 32, vb.pp("hidden2")).unwrap();
    linear(32, 4, vb.pp("output")).unwrap();
    map
}

/// The message that `operation` panics with.
fn panics(operation: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(operation)).expect_err("no panic");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().unwrap().to_string(),
    }
}

/// What `finish` says of `recording` after `compare`.
fn complaint(compare: impl FnOnce(&mut Recording)) -> String {
    let mut recording = Recording::open("sac");
    compare(&mut recording);
    panics(|| recording.finish())
}

/// The numbers of one tensor.
fn load(name: &str) -> Vec<f32> {
    let mut recording = Recording::open("sac");
    recording.close("expected/targets", recording.tensor("expected/targets"));
    let numbers = recording.floats(name);
    recording.finish();
    numbers
}

fn change(map: &VarMap, parameter: &str, index: usize, by: f32) {
    let (_, var) = map.named_vars().into_iter().find(|(name, _)| name == parameter).unwrap();
    let mut numbers = values_of(&var);
    numbers[index] += by;
    var.set(&Tensor::from_vec(numbers, var.shape(), var.device()).unwrap()).unwrap();
}

#[test]
fn what_agrees_passes() {
    let mut recording = Recording::open("sac");
    let actor = actor();
    recording.set(&actor, ACTOR);
    recording.unmoved(&actor, ACTOR);
    // Both heads, one under the other.
    let heads = Tensor::cat(
        &[
            recording.tensor("parameters/actor/mean.weight"),
            recording.tensor("parameters/actor/log_std.weight"),
        ],
        0,
    )
    .unwrap();
    let (_, output) = actor.named_vars().into_iter().find(|(name, _)| name == "output.weight").unwrap();
    assert_eq!(values_of(&output), values_of(&heads));
    let targets = recording.column("expected/targets");
    assert_eq!(targets.dims(), [32, 1]);
    recording.close("expected/targets", &targets);
    recording.close("expected/targets", (targets * (1.0 + 0.5e-4)).unwrap());
    recording.close("expected/loss/critic", recording.floats("expected/loss/critic")[0]);
    recording.losses("expected/losses_over_updates", recording.floats("expected/losses_over_updates"));
    recording.finish();
}

#[test]
fn hyperparameters_and_kinds_of_numbers() {
    let mut recording = Recording::open("sac");
    assert_eq!(recording.number("gamma"), 0.99);
    assert_eq!(recording.numbers("low"), [-2.0, -1.0]);
    assert_eq!(recording.text("optimizer"), "Adam");
    assert!(
        panics(|| {
            recording.number("optimizer");
        })
        .contains("no optimizer of this type")
    );
    assert!(panics(|| drop(recording.tensor("batch/reward"))).contains("batch/rewards"));
    assert!(recording.has("batch/rewards") && !recording.has("batch/reward"));
    assert_eq!(recording.flags("batch/terminated").len(), 32);
    recording.close("batch/rewards", recording.floats("batch/rewards"));
    recording.finish();
    let mut recording = Recording::open("optimizers");
    assert_eq!(recording.number("adam_clipped/max_grad_norm"), 0.5);
    assert!(recording.flag("rmsprop/eps_outside_root"));
    recording.equal("batch/gradients", recording.tensor("batch/gradients"));
    recording.finish();
    let mut recording = Recording::open("dqn__mse");
    let actions = recording.integers("batch/actions");
    recording.equal("batch/actions", actions);
    recording.finish();
}

#[test]
fn planted_differences_are_all_reported() {
    let text = complaint(|recording| {
        let mut targets = recording.floats("expected/targets");
        targets[3] *= 1.001;
        targets[5] = f32::NAN;
        recording.close("expected/targets", &targets);
        recording.close("expected/log_probs", [0.0_f32; 31]);
        recording.close("expected/loss/actor", recording.floats("expected/loss/actor")[0] + 0.1);
        recording.close("expected/loss/temperature", f32::INFINITY);
        recording.losses(
            "expected/losses_over_updates",
            (recording.tensor("expected/losses_over_updates") * 1.00005).unwrap(),
        );
        recording.close("expected/q_values_1", recording.floats("expected/q_values_1"));
        recording.computed("half", [0.5, 0.5], [0.5, 0.5001], 1e-4, 0.0);
    });
    assert!(text.starts_with("sac: 6 differences"), "{text}");
    assert!(text.contains("expected/targets[5] is NaN") && text.contains("2 of 32 numbers differ"), "{text}");
    assert!(text.contains("expected/log_probs: 31 numbers, 32 expected"), "{text}");
    assert!(
        text.contains("expected/loss/actor[0]") && text.contains("expected/loss/temperature[0] is inf"),
        "{text}"
    );
    assert!(text.contains("half[1]") && !text.contains("q_values_1"), "{text}");
}

#[test]
fn a_parameter_that_moved_or_stepped_wrongly_is_found() {
    let step = 3e-4;
    // Where the gradient is largest, and not just rounding.
    let gradients = load("expected/gradients/actor/fc1.weight");
    let at = (0..gradients.len()).max_by(|&a, &b| gradients[a].abs().total_cmp(&gradients[b].abs())).unwrap();
    let stepped = |by: f32| {
        let actor = actor();
        let mut recording = Recording::open("sac");
        recording.set(&actor, ACTOR);
        for (name, var) in actor.named_vars() {
            let values = recording.recorded("expected/parameters", ACTOR, &name, var.dims());
            var.set(&Tensor::from_vec(values, var.shape(), var.device()).unwrap()).unwrap();
        }
        change(&actor, "hidden1.weight", at, by);
        recording.parameters("expected/parameters", &actor, ACTOR, step);
        recording.finish();
    };
    stepped(0.0);
    stepped(1e-3 * step as f32);
    for by in [0.01 * step as f32, -0.01 * step as f32, f32::NAN] {
        assert!(panics(|| stepped(by)).contains("1 of 96 numbers differ"));
    }
    let text = complaint(|recording| {
        let actor = actor();
        recording.set(&actor, ACTOR);
        change(&actor, "output.bias", 0, 1e-7);
        recording.unmoved(&actor, ACTOR);
    });
    assert!(text.contains("parameters/actor/mean.bias + parameters/actor/log_std.bias[0]"), "{text}");
    // Nobody took a step at all.
    let text = complaint(|recording| {
        let actor = actor();
        recording.set(&actor, ACTOR);
        recording.parameters("expected/parameters", &actor, ACTOR, step);
        recording.stepped(
            "expected/parameters/temperature/log_alpha",
            "expected/gradients/temperature/log_alpha",
            recording.floats("parameters/temperature/log_alpha"),
            1e-3,
        );
    });
    assert!(text.starts_with("sac: 7 differences"), "{text}");
}

#[test]
fn gradients_come_from_a_store_from_lists_and_out_of_adam() {
    let actor = actor();
    let mut recording = Recording::open("sac");
    recording.set(&actor, ACTOR);
    // Σ θ·g has the gradient g.
    let mut loss = Tensor::new(0.0_f32, &Device::Cpu).unwrap();
    for (name, var) in actor.named_vars() {
        let values = recording.recorded("expected/gradients", ACTOR, &name, var.dims());
        let gradient = Tensor::from_vec(values, var.shape(), var.device()).unwrap();
        loss = (loss + (var.as_tensor() * gradient).unwrap().sum_all().unwrap()).unwrap();
    }
    let store = loss.backward().unwrap();
    recording.gradients("expected/gradients", &actor, ACTOR, &store);
    let mut adam = Adam::new(&actor, 3e-4).unwrap();
    adam.step(&store).unwrap();
    let mut lists = first_gradients(&adam);
    recording.gradients("expected/gradients", &actor, ACTOR, &lists);
    recording.finish();
    let text = complaint(|recording| {
        lists[0][1] *= -1.0;
        lists.pop();
        recording.gradients("expected/gradients", &actor, ACTOR, &lists);
    });
    assert!(text.contains("2 differences") && text.contains("no gradient"), "{text}");
}

#[test]
fn mistakes_in_a_test_are_mistakes() {
    assert!(panics(|| Recording::open("sac").finish()).contains("nothing was compared"));
    assert!(panics(|| drop(Recording::open("sac"))).contains("finish() was not called"));
    assert!(panics(|| drop(Recording::open("no_such"))).contains("no_such.safetensors"));
    let set = |layers: Layers| panics(|| Recording::open("sac").set(&actor(), layers));
    assert!(set(&ACTOR[..2]).contains("no recorded layer is given for the parameter output.bias"));
    let other: Vec<_> = ACTOR.iter().copied().chain([("hidden3", &["actor/fc3"][..])]).collect();
    assert!(set(&other).contains("no parameter is called hidden3"));
    // Nor is `hidden1` the layer of a parameter `hidden10.weight`.
    assert_eq!(suffix("hidden10.weight", "hidden1"), None);
    // A network of the wrong size.
    let map = VarMap::new(1);
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    linear(32, 3, vb.pp("hidden1")).unwrap();
    let text = panics(|| Recording::open("sac").set(&map, &ACTOR[..1]));
    assert!(text.contains("shapes of parameters/actor/fc1"), "{text}");
}
