//! Whatever is in a file or on a command line, reading it ends in success or in an error of one
//! line: it never panics, hangs, or asks for memory out of proportion.
//!
//! Each test tries `FUZZ_CASES` cases, 500 where that is not set. They are the same on every run;
//! `FUZZ_SEED` chooses others:
//!
//! ```text
//! FUZZ_CASES=100000 cargo test -p regression --test fuzz
//! ```

use candle_core::{DType, Device};
use clap::Parser;
use common::checkpoint::{self, Checkpoint};
use common::cli::{self, RunArgs};
use common::envs::persist::Persist;
use common::envs::wrappers::NormalizeObservation;
use common::envs::{Actions, Canvas, Result, Rng, Space, VecEnv, rng};
use common::model::{self, Model};
use common::nn::{Adam, Init, VarBuilder, VarMap};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::RngSeed;
use serde::Serialize;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

fn config() -> ProptestConfig {
    let number =
        |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    ProptestConfig {
        cases: number("FUZZ_CASES", 500) as u32,
        rng_seed: RngSeed::Fixed(number("FUZZ_SEED", 1)),
        failure_persistence: None,
        ..Default::default()
    }
}

/// An error has one line (candle adds its backtrace where it is asked for).
fn has_one_line<T>(result: Result<T>) -> Result<T> {
    if let Err(error) = &result
        && std::env::var_os("RUST_BACKTRACE").is_none()
    {
        let text = format!("{error:#}");
        assert!(!text.is_empty() && !text.trim_end().contains('\n'), "{text:?}");
    }
    result
}

/// Checks that this program, all tests of it together, has never had more than a gibibyte of
/// memory in use nor asked for much more. What nobody could ever get ends it anyway.
fn memory_is_bounded() {
    // Linux counts it; elsewhere only what cannot be had is noticed.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (what, most_gibibytes) in [("VmHWM:", 1), ("VmPeak:", 8)] {
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        assert!(kibibytes.unwrap_or_default() < most_gibibytes << 20, "{what} {kibibytes:?} kB");
    }
}

/// One thing that can happen to the bytes of a file.
#[derive(Debug, Clone)]
enum Damage {
    Truncate(Index),
    Flip(Index, u8),
    Overwrite(Index, Vec<u8>),
    Begin(Vec<u8>),
    Insert(Index, Vec<u8>),
    Remove(Index, u8),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |index: &Index| index.index(bytes.len() + 1);
        match self {
            Damage::Truncate(index) => bytes.truncate(at(index)),
            Damage::Flip(index, bit) => {
                let at = at(index);
                bytes[at..].iter_mut().take(1).for_each(|byte| *byte ^= 1 << (bit % 8));
            }
            Damage::Overwrite(index, with) => {
                let at = at(index);
                bytes[at..].iter_mut().zip(with).for_each(|(byte, with)| *byte = *with);
            }
            Damage::Begin(with) => bytes.iter_mut().zip(with).for_each(|(byte, with)| *byte = *with),
            Damage::Insert(index, with) => {
                let at = at(index);
                bytes.splice(at..at, with.iter().copied());
            }
            Damage::Remove(index, count) => {
                let at = at(index);
                let end = (at + usize::from(*count)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
}

/// Bytes that lengths are made of, in the formats' own encodings, and any others.
fn odd_bytes() -> impl Strategy<Value = Vec<u8>> {
    let length = (0..64_u32).prop_map(|bits| 1_u64.checked_shl(bits).unwrap_or(u64::MAX));
    prop_oneof![
        length.clone().prop_map(|length| length.to_le_bytes().to_vec()),
        length.prop_map(|length| length.save().unwrap()),
        Just(f64::NAN.to_le_bytes().to_vec()),
        Just(vec![0xff; 9]),
        prop::collection::vec(any::<u8>(), 1..20),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<Index>().prop_map(Damage::Truncate),
        any::<(Index, u8)>().prop_map(|(index, bit)| Damage::Flip(index, bit)),
        (any::<Index>(), odd_bytes()).prop_map(|(index, with)| Damage::Overwrite(index, with)),
        (any::<Index>(), odd_bytes()).prop_map(|(index, with)| Damage::Insert(index, with)),
        any::<(Index, u8)>().prop_map(|(index, count)| Damage::Remove(index, count)),
        // The beginning of a file tells how to read the rest.
        odd_bytes().prop_map(Damage::Begin),
    ]
}

/// Damage to one file.
fn damages() -> impl Strategy<Value = Vec<Damage>> {
    prop::collection::vec(damage(), 1..4)
}

fn damaged(bytes: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    damages.iter().for_each(|damage| damage.apply(&mut bytes));
    bytes
}

/// A value that does not belong where it is put.
fn odd_json() -> impl Strategy<Value = Value> {
    let odd = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(0.5),
        json!(2),
        json!(7),
        json!(1e9),
        json!(1e18),
        json!(-1e300),
        json!(u64::MAX),
        json!(1_u64 << 32),
        json!("nan"),
        json!("inf"),
        json!("-inf"),
        json!(""),
        json!("F32"),
        json!("BOOL"),
        json!("F8_E4M3"),
        json!("weight"),
        json!([]),
        json!([[]]),
        json!([1, 2, 3]),
        json!([0, 0]),
        json!([u64::MAX, u64::MAX]),
        json!([0, 1_u64 << 60]),
        json!([1_u64 << 31, 1_u64 << 31, 4]),
        json!({}),
        json!({"n": 1e15, "N": 1e15}),
    ];
    select(odd.to_vec())
}

/// One thing that can happen to a value somewhere in a JSON document.
#[derive(Debug, Clone)]
enum Edit {
    Replace(Index, Value),
    Remove(Index),
    Repeat(Index),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        4 => (any::<Index>(), odd_json()).prop_map(|(index, value)| Edit::Replace(index, value)),
        1 => any::<Index>().prop_map(Edit::Remove),
        1 => any::<Index>().prop_map(Edit::Repeat),
    ];
    prop::collection::vec(edit, 1..4)
}

/// The `index`-th of the lists, maps and numbers in `value`, counted down as they are met. A long
/// list counts as few, so that what describes it is met as often.
fn nth<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => {
            let len = items.len();
            let pick = if len > 3 { vec![0, len / 2, len - 1] } else { (0..len).collect() };
            let picked = items.iter_mut().enumerate().filter(|(i, _)| pick.contains(i));
            picked.map(|(_, item)| item).find_map(|item| nth(item, left))
        }
        Value::Object(fields) => fields.values_mut().find_map(|field| nth(field, left)),
        _ => None,
    }
}

fn edited(mut doc: Value, edits: &[Edit]) -> Value {
    for edit in edits {
        let mut size = usize::MAX;
        nth(&mut doc, &mut size);
        let count = usize::MAX - size;
        let (Edit::Replace(index, _) | Edit::Remove(index) | Edit::Repeat(index)) = edit;
        let Some(place) = nth(&mut doc, &mut index.index(count)) else { unreachable!() };
        match (edit, place) {
            (Edit::Replace(_, value), place) => *place = value.clone(),
            (Edit::Remove(_), Value::Array(items)) => drop(items.pop()),
            (Edit::Remove(_), Value::Object(fields)) => {
                if let Some(name) = fields.keys().next().cloned() {
                    fields.remove(&name);
                }
            }
            (Edit::Repeat(_), Value::Array(items)) => items.extend(items.first().cloned()),
            (_, place) => *place = Value::Null,
        }
    }
    doc
}

/// What safetensors describes its tensors with is JSON: `bytes` with that edited, and its length
/// made right.
fn edited_header(bytes: &[u8], edits: &[Edit]) -> Vec<u8> {
    let (length, rest) = bytes.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header = edited(serde_json::from_slice(header).unwrap(), edits).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A file of its own for each test.
struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// What a small training run keeps in its checkpoints.
struct Training {
    parameters: VarMap,
    optimizer: Adam,
    envs: VecEnv,
    rng: Rng,
    indices: Vec<usize>,
    table: Vec<f64>,
}

impl Training {
    fn new() -> Result<Self> {
        let parameters = VarMap::new(1);
        let vb = VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu);
        vb.get_with_hints((2, 3), "weight", Init::Const(1.0))?;
        vb.get_with_hints(3, "bias", Init::Const(0.0))?;
        Ok(Self {
            optimizer: Adam::new(&parameters, 0.1)?,
            parameters,
            envs: VecEnv::make("CartPole-v1", 2, 1)?,
            rng: rng(1, 1),
            indices: vec![2, 0, 1],
            table: vec![0.5; 4],
        })
    }

    fn items(&mut self) -> [(&'static str, &mut dyn Persist); 6] {
        [
            ("parameters", &mut self.parameters),
            ("optimizer", &mut self.optimizer),
            ("envs", &mut self.envs),
            ("rng", &mut self.rng),
            ("indices", &mut self.indices),
            ("table", &mut self.table),
        ]
    }

    fn save(&mut self) -> Vec<(String, Vec<u8>)> {
        self.items().iter().map(|(name, item)| (name.to_string(), item.save().unwrap())).collect()
    }

    /// Takes everything from the checkpoint in `dir` and goes on with it.
    fn resume(&mut self, dir: &Path) -> Result<()> {
        let checkpoint = Checkpoint::read(dir)?;
        checkpoint.expect_of("toy", "CartPole-v1")?;
        for (name, item) in &mut self.items() {
            item.load(checkpoint.item(name)?)?;
        }
        let weight = &self.parameters.all_vars()[1];
        self.optimizer.backward_step(&weight.sqr()?.sum_all()?)?;
        self.envs.step(&[0, 1])
    }
}

/// A policy, the statistics of its observations and a table, as in a model file.
fn with_model<T>(use_it: impl FnOnce(&mut dyn Model) -> T) -> T {
    let mut parameters = Training::new().unwrap().parameters;
    let (mut normalize, mut table) = (NormalizeObservation::new(2), vec![1.0_f64; 5]);
    use_it(&mut [
        ("agent", &mut parameters as &mut dyn Model),
        ("statistics", &mut normalize),
        ("values", &mut table),
    ])
}

/// Every kind of argument that an algorithm has.
#[derive(Parser, Serialize, Debug)]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    run: RunArgs,
    #[arg(long, default_value_t = 0.5, value_parser = cli::non_negative)]
    learning_rate: f64,
    #[arg(long, default_value_t = 0.5, value_parser = cli::unit_interval)]
    gamma: f64,
    #[arg(long, default_value_t = 0.5, value_parser = cli::finite)]
    v_min: f64,
    #[arg(long, value_parser = cli::above_zero)]
    #[serde(skip_serializing_if = "Option::is_none")]
    target_kl: Option<f64>,
    #[arg(long, value_delimiter = ',', default_value = "64,64", value_parser = cli::positive)]
    hidden_sizes: Vec<usize>,
    #[arg(long, default_value_t = true)]
    anneal_lr: bool,
}

fn parse(flags: impl IntoIterator<Item = OsString>) -> Result<Args> {
    let program = ["toy", "--env-id=CartPole-v1", "--total-timesteps=10"].map(OsString::from);
    match cli::parse_from(program.into_iter().chain(flags)) {
        // These are printed as they are, over many lines.
        Err(error) if error.is::<clap::Error>() => Err(error),
        result => has_one_line(result),
    }
}

fn odd_text() -> impl Strategy<Value = String> {
    let odd = [
        "",
        "-",
        "--",
        "=",
        "0",
        "-1",
        "1",
        "1e6",
        "1_000",
        "1e999",
        "-0.0",
        "nan",
        "inf",
        "-inf",
        "true",
        "maybe",
        "64,,64",
        "64,64",
        ",",
        "cpu",
        "cuda:0",
        "CartPole-v1",
        "gym:",
        "gym:\u{0}",
        "18446744073709551616",
        "/",
        "/none",
        "\"",
        "[[]]",
        "ä\u{202e}\n",
        "{}",
        "1e-400",
    ];
    prop_oneof![4 => select(odd.map(String::from).to_vec()), 1 => any::<String>(), 1 => any::<f64>().prop_map(|x| x.to_string())]
}

fn flag_name() -> impl Strategy<Value = String> {
    let names = [
        "env-id",
        "seed",
        "total-timesteps",
        "exp-name",
        "run-dir",
        "threads",
        "device",
        "eval-episodes",
        "save-model",
        "capture-video",
        "checkpoint-every",
        "resume",
        "eval-only",
        "env-timeout",
        "config",
        "learning-rate",
        "gamma",
        "v-min",
        "target-kl",
        "hidden-sizes",
        "anneal-lr",
        "help",
        "version",
        "lerning-rate",
    ];
    prop_oneof![9 => select(names.map(String::from).to_vec()), 1 => any::<String>()]
}

/// A word of a command line.
fn word() -> impl Strategy<Value = OsString> {
    let flag = flag_name().prop_map(|name| format!("--{name}"));
    let both = (flag_name(), odd_text()).prop_map(|(name, value)| format!("--{name}={value}"));
    let text = prop_oneof![flag, both, odd_text(), Just("-h".to_string())].prop_map(OsString::from);
    #[cfg(unix)]
    let text = {
        use std::os::unix::ffi::OsStringExt;
        let bytes = prop::collection::vec(any::<u8>(), 0..9);
        let with_bytes = (text.clone(), bytes)
            .prop_map(|(text, bytes)| OsString::from_vec([text.into_vec(), bytes].concat()));
        prop_oneof![9 => text, 1 => with_bytes]
    };
    text
}

/// A line of a configuration.
fn config_line() -> impl Strategy<Value = String> {
    let literal = prop_oneof![
        odd_text(),
        odd_text().prop_map(|text| format!("{text:?}")),
        odd_json().prop_map(|value| value.to_string()),
        select(
            ["[1, [2]]", "{ a = 1 }", "1979-05-27", "'''", "0x_", "[64, 64]", "[\"a\", 1.5, true]"]
                .as_slice()
        )
        .prop_map(String::from),
    ];
    let key = flag_name().prop_map(|name| name.replace('-', "_"));
    prop_oneof![8 => (key, literal).prop_map(|(key, literal)| format!("{key} = {literal}")), 1 => odd_text()]
}

/// A number that a state does not have where it is put.
fn odd_number() -> impl Strategy<Value = f64> {
    let odd = [
        -1.0,
        0.0,
        0.5,
        1.0,
        2.0,
        9.0,
        10.0,
        100.0,
        65_536.0,
        1e9,
        -1e9,
        4e18,
        1e300,
        -1e300,
        1e-310,
        f64::NAN,
    ];
    prop_oneof![3 => select(odd.to_vec()), 1 => any::<f64>(), 3 => (-20..1000_i32).prop_map(f64::from)]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn checkpoint_files(damages in damages(), edits in prop::option::of(edits())) {
        let mut training = Training::new().unwrap();
        let scratch = Scratch::new();
        let items = training.save();
        checkpoint::write(&checkpoint::path(scratch.dir.path()), "toy", "CartPole-v1", &items).unwrap();
        let whole = std::fs::read(checkpoint::path(scratch.dir.path())).unwrap();
        let bytes = match edits {
            Some(edits) => edited_header(&whole, &edits),
            None => damaged(&whole, &damages),
        };
        scratch.write("checkpoint.safetensors", &bytes);
        let resumed = has_one_line(training.resume(scratch.dir.path()));
        if resumed.is_ok() {
            // The checksum finds every change of a name or a content.
            let checkpoint = Checkpoint::read(scratch.dir.path()).unwrap();
            for (name, content) in &items {
                prop_assert!(checkpoint.item(name).unwrap() == content, "{} is another", name);
            }
        }
        memory_is_bounded();
    }

    #[test]
    fn checkpoint_contents(which in any::<Index>(), damages in damages()) {
        let mut training = Training::new().unwrap();
        let scratch = Scratch::new();
        let mut items = training.save();
        let which = which.index(items.len());
        items[which].1 = damaged(&items[which].1, &damages);
        checkpoint::write(&checkpoint::path(scratch.dir.path()), "toy", "CartPole-v1", &items).unwrap();
        let _ = has_one_line(training.resume(scratch.dir.path()));
        memory_is_bounded();
    }

    #[test]
    fn environment_states(
        which in any::<Index>(),
        changes in prop::collection::vec((any::<Index>(), odd_number()), 1..4),
        before in 0..20_usize,
        seed in any::<u64>(),
    ) {
        let is_mujoco = |id: &str| envs::mujoco::registered().iter().any(|entry| entry.id == id);
        let entries: Vec<_> = envs::registry().into_iter().filter(|entry| !is_mujoco(entry.id)).collect();
        let mut envs = VecEnv::make(entries[which.index(entries.len())].id, 1, seed).unwrap();
        let mut generator = rng(seed, 2);
        let mut step = |envs: &mut VecEnv| match envs.spec().action_space.clone() {
            Space::Discrete { n } => envs.step(&[generator.random_range(0..n as u32)]),
            space => {
                let mut action: Vec<f32> = (0..space.size()).map(|_| generator.random_range(-3.0..3.0)).collect();
                space.clip(&mut action);
                envs.step(Actions::Continuous(&action))
            }
        };
        for _ in 0..before {
            step(&mut envs).unwrap();
        }
        let mut state = envs.state(0).unwrap().0;
        for (index, number) in &changes {
            let index = index.index(state.len());
            state[index] = *number;
        }
        let mut snapshot = envs.snapshot().unwrap();
        snapshot.set_state(0, &state);
        if has_one_line(envs.restore(&snapshot)).is_ok() {
            for _ in 0..30 {
                let _ = envs.draw(0, &mut Canvas::new(9, 6));
                if has_one_line(step(&mut envs)).is_err() {
                    break;
                }
            }
        }
        memory_is_bounded();
    }

    #[test]
    fn model_files(damages in damages(), edits in prop::option::of(edits())) {
        let scratch = Scratch::new();
        let path = scratch.path("model.safetensors");
        with_model(|model| model::save(&path, "toy", "E-v0", model)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let bytes = match edits {
            Some(edits) => edited_header(&whole, &edits),
            None => damaged(&whole, &damages),
        };
        std::fs::write(&path, bytes).unwrap();
        let _ = has_one_line(with_model(|model| model::load(&path, "toy", "E-v0", model)));
        memory_is_bounded();
    }

    #[test]
    fn configurations(lines in prop::collection::vec(config_line(), 0..5), damages in prop::option::of(damages())) {
        let scratch = Scratch::new();
        let whole = cli::to_toml(&parse([]).unwrap()).unwrap();
        let text = format!("{}\n{whole}", lines.join("\n"));
        let bytes = damages.map_or(text.clone().into_bytes(), |damages| damaged(whole.as_bytes(), &damages));
        let path = scratch.write("config.toml", &bytes);
        let _ = parse(["--config".into(), path.clone().into()]);
        let path = scratch.write("config.toml", lines.join("\n").as_bytes());
        if let Ok(args) = parse(["--config".into(), path.clone().into()]) {
            // What was understood once is understood again, and means the same.
            let first = cli::to_toml(&args).unwrap();
            std::fs::write(&path, &first).unwrap();
            prop_assert_eq!(first, cli::to_toml(&parse(["--config".into(), path.into()]).unwrap()).unwrap());
        }
        for flag in ["--resume", "--eval-only"] {
            let _ = parse([flag.into(), scratch.dir.path().into()]);
        }
        memory_is_bounded();
    }

    #[test]
    fn command_lines(words in prop::collection::vec(word(), 0..8)) {
        if let Ok(args) = parse(words) {
            cli::to_toml(&args).unwrap();
        }
        memory_is_bounded();
    }
}
