//! Figures, with a shell script in the place of an algorithm.
#![cfg(unix)]

use regression::process::{self, DEADLINE};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;

const REGRESSION: &str = env!("CARGO_BIN_EXE_regression");

/// Trains nothing: notes its seed and the value of --gamma in the file `log` of the folder that is written for
/// HERE, and writes a run directory whose numbers follow from them.
const ALGORITHM: &str = r#"#!/bin/sh
here='HERE'
gamma=0
while [ $# -gt 0 ]; do
    case $1 in
        --run-dir) dir=$2 ;;
        --seed) seed=$2 ;;
        --gamma) gamma=$2 ;;
    esac
    shift
done
echo "$seed gamma=$gamma" >> "$here/log"
mkdir -p "$dir"
{
    echo global_step,wall_seconds,tag,value
    for step in 100 200 300 400; do
        echo "$step,0.1,charts/episodic_return,$((step + seed))"
        echo "$step,0.1,charts/error,$((gamma * 10 + seed + step))"
    done
    echo "400,0.2,eval/episodic_return,$seed"
} > "$dir/metrics.csv"
cat > "$dir/summary.json" <<END
{"algorithm": "ppo", "env_id": "CartPole-v1", "seed": $seed, "total_timesteps": 400, "wall_seconds": 0.25,
 "sps": 1600.0, "eval": {"mean": 1, "std": 2.0, "episodes": 100}, "git_commit": null, "version": "0.1.0",
 "cpu": "a processor"}
END
"#;

const FIGURES: &str = r#"
[[figure]]
name = "over_steps"
title = "Two metrics"
text = "What is to be seen."
y_label = "value"
seeds = 2
[[figure.line]]
label = "return"
program = "ppo"
env_id = "CartPole-v1"
steps = 400
metric = "charts/episodic_return"
[[figure.line]]
label = "error"
program = "ppo"
env_id = "CartPole-v1"
steps = 400
metric = "charts/error"

[[figure.line]]
label = "longer"
program = "ppo"
env_id = "CartPole-v1"
steps = 500
args = ["--gamma", "3"]
metric = "charts/error"

[[figure]]
name = "over_episodes"
title = "By episode"
text = "What is to be seen."
x = "episodes"
y_label = "return"
metric = "charts/episodic_return"
seeds = 1
[[figure.line]]
label = "PPO"
program = "ppo"
env_id = "CartPole-v1"
steps = 400

[[figure]]
name = "over_a_flag"
title = "A sweep"
text = "What is to be seen."
y_label = "error"
metric = "charts/error"
last = 2
seeds = 2
[[figure.line]]
label = "PPO"
program = "ppo"
env_id = "CartPole-v1"
steps = 400
sweep = { flag = "--gamma", values = [1, 2, 4] }
[[figure.published]]
label = "published"
points = [[2, 370]]
source = "a paper"
"#;

/// A folder with a program, descriptions, results and runs in progress.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("bin")).unwrap();
        let algorithm = ALGORITHM.replace("HERE", place.path("bin").to_str().unwrap());
        fs::write(place.path("bin/ppo"), algorithm).unwrap();
        fs::set_permissions(place.path("bin/ppo"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(place.path("figures.toml"), FIGURES).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        process::output(&mut self.command(args), DEADLINE).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(REGRESSION);
        command.arg("figures").args(args);
        for (flag, name) in
            [("--results", "results"), ("--work", "work"), ("--bin-dir", "bin"), ("--file", "figures.toml")]
        {
            command.arg(flag).arg(self.path(name));
        }
        command
    }

    /// What the picture `name` is drawn from.
    fn numbers(&self, name: &str) -> serde_json::Value {
        let path = self.path(&format!("results/figures/{name}.json"));
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Runs it well; what the program was called with.
    fn log(&self, args: &[&str]) -> Vec<String> {
        let output = self.run(&[args, &["--jobs", "1"]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = fs::read_to_string(self.path("bin/log")).unwrap_or_default();
        let _ = fs::remove_file(self.path("bin/log"));
        text.lines().map(str::to_string).collect()
    }
}

#[test]
fn a_figure_is_drawn_again_without_running() {
    let place = Place::new();
    let expected = ["1 gamma=0", "2 gamma=0", "1 gamma=3", "2 gamma=3"];
    assert_eq!(place.log(&["over_steps"]), expected, "a training that two lines share is run once");
    let picture = place.path("results/figures/over_steps.png");
    let first = fs::read(&picture).unwrap();
    assert!(first.starts_with(b"\x89PNG"));
    assert!(!place.path("results/figures/over_a_flag.png").exists());
    let page = fs::read_to_string(place.path("results/figures/README.md")).unwrap();
    assert!(page.contains("](over_steps.png)") && !page.contains("over_a_flag"), "{page}");

    // From its numbers alone: the files of its runs went when it was complete.
    assert!(!place.path("results/figures/over_steps").exists());
    fs::remove_file(&picture).unwrap();
    fs::remove_dir_all(place.path("work")).unwrap();
    assert!(place.log(&["over_steps"]).is_empty());
    assert!(first == fs::read(&picture).unwrap(), "another picture");

    // Of older sources.
    let mut numbers = place.numbers("over_steps");
    numbers["source_digest"] = "00000000".into();
    fs::write(place.path("results/figures/over_steps.json"), numbers.to_string()).unwrap();
    assert!(place.log(&["over_steps", "--keep"]).is_empty());
    assert_eq!(place.log(&["over_steps"]), expected);
    assert!(first == fs::read(&picture).unwrap(), "another picture");
}

#[test]
fn a_sweep_runs_every_value_with_every_seed() {
    let place = Place::new();
    let output = place.run(&["over_a_flag", "--dry-run"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 7, "{output:?}");
    assert!(!place.path("results").exists());
    let expected =
        ["1 gamma=1", "2 gamma=1", "1 gamma=2", "2 gamma=2", "1 gamma=4", "2 gamma=4"].map(String::from);
    assert_eq!(place.log(&["over_a_flag"]), expected);
    assert!(place.path("results/figures/over_a_flag.png").exists());
    // The mean over the two seeds of the last two rows: steps 300 and 400.
    let line = &place.numbers("over_a_flag")["lines"][0];
    assert_eq!(line["xs"], serde_json::json!([1.0, 2.0, 4.0]));
    assert_eq!(line["mean"], serde_json::json!([361.5, 371.5, 391.5]));
    // All figures: the others are trained, this one is there.
    assert_eq!(place.log(&[]).len(), 4 + 1);
    let line = &place.numbers("over_episodes")["lines"][0];
    let ends = |key: &str| (line[key][0].clone(), line[key].as_array().unwrap().last().cloned().unwrap());
    assert_eq!(ends("xs"), (1.0.into(), 4.0.into()));
    assert_eq!(ends("mean"), (101.0.into(), 401.0.into()));
}

#[test]
fn what_cannot_be_drawn_is_told_after_the_others() {
    let place = Place::new();
    let benchmark = FIGURES.replace("x = \"episodes\"", "benchmark = [\"none\"]");
    fs::write(place.path("figures.toml"), benchmark).unwrap();
    let output = place.run(&["--jobs", "1"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        stderr.contains("over_episodes: not drawn: no benchmark is called ppo__CartPole-v1__none"),
        "{stderr}"
    );
    assert!(stderr.ends_with("error: not drawn: over_episodes\n"), "{stderr}");
    let page = fs::read_to_string(place.path("results/figures/README.md")).unwrap();
    assert!(page.contains("](over_a_flag.png)") && !page.contains("over_episodes"), "{page}");
}

#[test]
fn a_figure_without_mujoco_is_no_failure() {
    let place = Place::new();
    fs::copy(place.path("bin/ppo"), place.path("bin/ppo_continuous")).unwrap();
    let hopper = FIGURES.replacen(
        "program = \"ppo\"\nenv_id = \"CartPole-v1\"",
        "program = \"ppo_continuous\"\nenv_id = \"Hopper-v5\"",
        1,
    );
    fs::write(place.path("figures.toml"), hopper).unwrap();
    let mut command = place.command(&["over_steps", "over_episodes"]);
    command.env_remove("MUJOCO_LIB").env_remove("MUJOCO_MODELS");
    command.env("PLAINRL_PYTHON", "/none").env("REQUIRE_MUJOCO", "0");
    let output = process::output(&mut command, DEADLINE).unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("over_steps: not drawn: "), "{output:?}");
    assert!(place.path("results/figures/over_episodes.png").exists());
}

#[test]
fn bad_input_is_refused_in_one_line() {
    let place = Place::new();
    let refuses = |args: &[&str], mentions: &[&str]| {
        let output = place.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for mention in mentions {
            assert!(stderr.contains(mention), "{mention:?} {stderr}");
        }
    };
    refuses(&["over_step"], &["over_step: no such figure; there are over_steps, over_episodes, over_a_flag"]);
    refuses(&["--jobs", "0"], &["--jobs"]);
    fs::write(place.path("figures.toml"), FIGURES.replace("\"ppo\"", "\"pp0\"")).unwrap();
    refuses(&[], &["figures.toml", "over_steps", "\"pp0\" is not in algorithms/"]);
    fs::write(place.path("figures.toml"), "[[figure]]\nname = 1\n").unwrap();
    refuses(&[], &["figures.toml: line 2: "]);
    fs::remove_file(place.path("figures.toml")).unwrap();
    refuses(&[], &["figures.toml: "]);
    assert!(!place.path("results").exists() && !place.path("work").exists());
}
