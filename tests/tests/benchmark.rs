//! The benchmark runner, with shell scripts in the place of algorithms.
#![cfg(unix)]

use regression::process::{self, DEADLINE};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;
use tempfile::TempDir;

const REGRESSION: &str = env!("CARGO_BIN_EXE_regression");

/// Trains nothing: notes how it was called in the file `log` of the folder that is written for HERE and
/// writes a run directory whose returns depend on the seed and on the file `bonus` there. With a file
/// `fail-SEED` it fails, with one called `interrupt-SEED` it ends as after Ctrl-C, and with `hang` it
/// waits to be interrupted.
const ALGORITHM: &str = r#"#!/bin/sh
here='HERE'
resumed=no
while [ $# -gt 0 ]; do
    case $1 in
        --run-dir) dir=$2 ;;
        --resume) dir=$2; resumed=yes ;;
        --seed) seed=$2 ;;
    esac
    shift
done
if [ $resumed = yes ]; then seed=$(cat "$dir/config.toml"); fi
echo "$seed resumed=$resumed" >> "$here/log"
mkdir -p "$dir"
echo "$seed" > "$dir/config.toml"
if [ -e "$here/fail-$seed" ]; then
    echo "one line" >&2
    echo "error: seed $seed has failed" >&2
    exit 1
fi
if [ -e "$here/interrupt-$seed" ]; then
    rm "$here/interrupt-$seed"
    touch "$dir/checkpoint.safetensors"
    exit 130
fi
if [ -e "$here/hang" ]; then
    trap 'touch "$dir/checkpoint.safetensors"; exit 130' INT
    echo $$ > "$here/hanging.new"
    mv "$here/hanging.new" "$here/hanging"
    while :; do :; done
fi
score=$((400 + seed + $(cat "$here/bonus")))
{
    echo global_step,wall_seconds,tag,value
    for step in 100 200 300 400; do
        echo "$step,0.1,charts/episodic_return,$((score - 1000 / step * 20))"
        echo "$step,0.1,losses/entropy,0.$((seed + 50))"
    done
    echo "400,0.2,eval/episodic_return,$score"
} > "$dir/metrics.csv"
cat > "$dir/summary.json" <<END
{"algorithm": "ppo", "env_id": "CartPole-v1", "seed": $seed, "total_timesteps": 400, "wall_seconds": 0.25,
 "sps": 1600.0, "eval": {"mean": $score, "std": 2.0, "episodes": 100}, "git_commit": null, "version": "0.1.0",
 "cpu": "a processor"}
END
"#;

/// A folder with programs, results and runs in progress.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("bin")).unwrap();
        let algorithm = ALGORITHM.replace("HERE", place.path("bin").to_str().unwrap());
        fs::write(place.path("bin/ppo"), algorithm).unwrap();
        fs::set_permissions(place.path("bin/ppo"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(place.path("bin/bonus"), "0").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `regression run ppo --jobs 1` with these folders and further flags.
    fn command(&self, results: &str, args: &[&str]) -> Command {
        let mut command = Command::new(REGRESSION);
        command.args(["run", "ppo", "--jobs", "1"]).args(args).stdin(Stdio::null());
        for (flag, name) in [("--results", results), ("--work", "work"), ("--bin-dir", "bin")] {
            command.arg(flag).arg(self.path(name));
        }
        command
    }

    /// Runs it; the exit code must be as given. Returns what it printed on standard error.
    fn run(&self, results: &str, args: &[&str], code: i32) -> String {
        let output = process::output(&mut self.command(results, args), DEADLINE).unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// How the programs were called since the last time.
    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("bin/log")).unwrap_or_default();
        let _ = fs::remove_file(self.path("bin/log"));
        text.lines().map(str::to_string).collect()
    }

    /// Starts it with a program that waits to be interrupted, until that waits.
    fn start_hanging(&self, args: &[&str]) -> Child {
        fs::write(self.path("bin/hang"), "").unwrap();
        let mut command = self.command("results", args);
        let mut child = process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();
        wait_until("the program is started", || {
            assert_eq!(child.try_wait().unwrap(), None, "it ended before it was interrupted");
            self.path("bin/hanging").exists()
        });
        child
    }

    fn result(&self, seed: u64) -> PathBuf {
        self.path(&format!("results/runs/test/ppo__CartPole-v1/{seed}.json"))
    }
}

/// Looks whether it is so until it is.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < DEADLINE, "still not so: {what}");
        std::thread::yield_now();
    }
}

fn regression(args: &[&str]) -> Output {
    process::output(Command::new(REGRESSION).args(args), DEADLINE).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Contents of every file below `folder`.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path).into_iter().map(|(name, bytes)| (path.join(name), bytes)));
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
        .into_iter()
        .map(|(path, bytes)| (path.strip_prefix(folder).unwrap_or(&path).into(), bytes))
        .collect()
}

#[test]
fn only_what_is_not_done_is_run() {
    let place = Place::new();
    place.run("results", &["--seeds", "2"], 0);
    assert_eq!(place.log(), ["1 resumed=no", "2 resumed=no"]);
    assert!(place.result(1).exists() && place.result(2).exists());
    // Nothing is left of the runs themselves.
    assert!(contents(&place.path("work")).is_empty());

    let text = place.run("results", &["--seeds", "2"], 0);
    assert!(place.log().is_empty());
    assert!(text.contains("2 done before, 0 done now, 0 failed, 0 skipped"), "{text}");
    place.run("results", &["--seeds", "2", "--first-seed", "2"], 0);
    assert_eq!(place.log(), ["3 resumed=no"]);
    place.run("results", &["--seeds", "2", "--force"], 0);
    assert_eq!(place.log().len(), 2);

    // Missing, damaged, of older sources, of other settings.
    fs::remove_file(place.result(1)).unwrap();
    place.run("results", &["--seeds", "2"], 0);
    assert_eq!(place.log(), ["1 resumed=no"]);
    fs::write(place.result(2), "{").unwrap();
    place.run("results", &["--seeds", "2"], 0);
    assert_eq!(place.log(), ["2 resumed=no"]);
    let replace_digest = |name: &str| {
        let text = fs::read_to_string(place.result(1)).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value[name] = "00000000".into();
        fs::write(place.result(1), value.to_string()).unwrap();
    };
    replace_digest("source_digest");
    place.run("results", &["--seeds", "2", "--keep"], 0);
    assert!(place.log().is_empty());
    place.run("results", &["--seeds", "2"], 0);
    assert_eq!(place.log(), ["1 resumed=no"]);
    replace_digest("config_digest");
    place.run("results", &["--seeds", "2", "--keep"], 0);
    assert_eq!(place.log(), ["1 resumed=no"]);
}

#[test]
fn a_failure_stops_nothing_and_is_reported_last() {
    let place = Place::new();
    fs::write(place.path("bin/fail-2"), "").unwrap();
    let text = place.run("results", &["--seeds", "3"], 1);
    assert_eq!(place.log(), ["1 resumed=no", "2 resumed=no", "3 resumed=no"]);
    assert!(place.result(1).exists() && !place.result(2).exists() && place.result(3).exists());
    let last = text.lines().last().unwrap();
    for part in
        ["error: 1 failed", "ppo on CartPole-v1, seed 2", "exit status: 1", "error: seed 2 has failed"]
    {
        assert!(last.contains(part), "{last}");
    }
    assert!(!last.contains("one line"), "{last}");

    fs::remove_file(place.path("bin/fail-2")).unwrap();
    place.run("results", &["--seeds", "3"], 0);
    assert_eq!(place.log(), ["2 resumed=no"]);
}

/// Somebody may end a program and not its runner: what it has saved is not lost.
#[test]
fn a_run_that_alone_is_interrupted_goes_on_where_it_was() {
    let place = Place::new();
    fs::write(place.path("bin/interrupt-2"), "").unwrap();
    place.run("results", &["--seeds", "2"], 1);
    assert!(place.result(1).exists() && !place.result(2).exists());
    place.log();
    place.run("results", &["--seeds", "2"], 0);
    assert_eq!(place.log(), ["2 resumed=yes"]);
}

#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    let place = Place::new();
    let mut child = place.start_hanging(&["--seeds", "2"]);
    process::send_interrupt(&child);
    assert_eq!(process::wait(&mut child, DEADLINE).unwrap().code(), Some(130));
    assert_eq!(place.log(), ["1 resumed=no"]);
    assert!(!place.result(1).exists());
    // Copies of programs do not stay, only what the run goes on from.
    assert_eq!(fs::read_dir(place.path("work")).unwrap().count(), 1);

    fs::remove_file(place.path("bin/hang")).unwrap();
    let mut list = place.command("results", &["--seeds", "2", "--dry-run"]);
    let list = process::output(&mut list, DEADLINE).unwrap();
    assert!(stdout(&list).contains("seed 1: to be continued"), "{list:?}");
    place.run("results", &["--seeds", "2"], 0);
    assert_eq!(place.log(), ["1 resumed=yes", "2 resumed=no"]);
    assert!(contents(&place.path("work")).is_empty());
}

/// A runner that is killed leaves no program training behind.
#[cfg(target_os = "linux")]
#[test]
fn programs_end_with_the_runner() {
    let place = Place::new();
    let mut child = place.start_hanging(&["--seeds", "1"]);
    let pid = fs::read_to_string(place.path("bin/hanging")).unwrap();
    let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
    child.kill().unwrap();
    process::wait(&mut child, DEADLINE).unwrap();
    // It is gone, or a zombie that nobody has waited for.
    wait_until("the program has ended", || {
        fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))
    });

    // The copy of the program, which nobody removed, goes the next time.
    let copies = || {
        let work = fs::read_dir(place.path("work")).unwrap();
        work.flatten().filter(|item| item.file_name().to_string_lossy().starts_with("programs-")).count()
    };
    assert_eq!(copies(), 1);
    fs::remove_file(place.path("bin/hang")).unwrap();
    place.run("results", &["--seeds", "1"], 0);
    assert_eq!(copies(), 0);
}

/// Two runners may have one folder of work, by mistake or to share it.
#[test]
fn a_run_that_another_runner_has_is_left_alone() {
    let place = Place::new();
    let mut child = place.start_hanging(&["--seeds", "1"]);
    fs::remove_file(place.path("bin/hang")).unwrap();
    let text = place.run("results", &["--seeds", "2"], 1);
    assert!(text.contains("skipped: ppo on CartPole-v1, seed 1: another runner trains it"), "{text}");
    assert!(text.contains("0 done before, 1 done now, 0 failed, 1 skipped"), "{text}");
    assert!(text.ends_with("another runner trains them: ppo on CartPole-v1, seed 1\n"), "{text}");
    assert!(place.result(2).exists());
    // Nor has it taken the program's copy away.
    process::send_interrupt(&child);
    assert_eq!(process::wait(&mut child, DEADLINE).unwrap().code(), Some(130));
    assert_eq!(place.log(), ["1 resumed=no", "2 resumed=no"]);
    place.run("results", &["--seeds", "2"], 0);
    assert_eq!(place.log(), ["1 resumed=yes"]);
}

#[test]
fn what_older_sources_began_goes_unless_another_runner_has_it() {
    let place = Place::new();
    let begun = |name: &str| {
        let folder = place.path(&format!("work/runs/test/ppo__CartPole-v1/{name}"));
        fs::create_dir_all(&folder).unwrap();
        (fs::File::create(folder.join("lock")).unwrap(), folder)
    };
    let [(lock, running), (_, ended), (_, of_another_seed)] = ["1-a", "1-b", "10-c"].map(begun);
    assert!(process::lock(&lock).unwrap());
    place.run("results", &["--seeds", "1"], 0);
    assert!(running.exists() && !ended.exists() && of_another_seed.exists());
}

/// What is built while it trains is of other sources than the results would say.
#[test]
fn programs_stay_what_they_were_when_it_began() {
    let place = Place::new();
    let program = fs::read_to_string(place.path("bin/ppo")).unwrap();
    let replaced = program.replace("resumed=no\n", "resumed=no\necho 'exit 1' > \"$here/ppo\"\n");
    fs::write(place.path("bin/ppo"), replaced).unwrap();
    place.run("results", &["--seeds", "2"], 0);
    assert_eq!(place.log(), ["1 resumed=no", "2 resumed=no"]);
}

#[test]
fn without_mujoco_its_tasks_are_skipped_unless_they_are_required() {
    let place = Place::new();
    fs::copy(place.path("bin/ppo"), place.path("bin/ppo_continuous")).unwrap();
    let run = |required: &str| {
        let mut command = place.command("results", &["ppo_continuous", "--seeds", "1"]);
        command.env_remove("MUJOCO_LIB").env_remove("MUJOCO_MODELS");
        command.env("PLAINRL_PYTHON", "/none").env("REQUIRE_MUJOCO", required);
        process::output(&mut command, DEADLINE).unwrap()
    };
    let output = run("0");
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stderr.contains("skipped: ppo_continuous on InvertedPendulum-v5, seed 1: "), "{stderr}");
    assert!(stderr.contains("2 done now, 0 failed, 1 skipped"), "{stderr}");
    assert_eq!(place.log().len(), 2);
    // Required, it is run, and fails if it cannot do without.
    assert_eq!(run("1").status.code(), Some(0));
    assert_eq!(place.log().len(), 1);
}

#[test]
fn a_dry_run_changes_nothing() {
    let place = Place::new();
    let output = process::output(&mut place.command("results", &["--dry-run"]), DEADLINE).unwrap();
    assert_eq!(stdout(&output).lines().count(), 6, "{output:?}");
    assert!(stdout(&output).contains("ppo on CartPole-v1, seed 5: to do"), "{output:?}");
    assert!(!place.path("results").exists() && !place.path("work").exists());
    assert!(place.log().is_empty());
}

#[test]
fn shards_together_are_the_whole() {
    let place = Place::new();
    place.run("results", &["--seeds", "5"], 0);
    let mut merged = BTreeMap::new();
    for shard in ["1/3", "2/3", "3/3"] {
        let results = format!("shard-{}", &shard[..1]);
        place.run(&results, &["--seeds", "5", "--shard", shard], 0);
        let files = contents(&place.path(&results));
        assert!(files.len() < 5, "{shard}");
        merged.extend(files);
    }
    assert_eq!(merged, contents(&place.path("results")));
    assert_eq!(merged.len(), 5);
}

#[test]
fn the_report_is_a_function_of_the_results() {
    let place = Place::new();
    place.run("results", &["--seeds", "3"], 0);
    let readme = place.path("README.md");
    fs::write(&readme, "before\n<!-- results -->\nold\n<!-- /results -->\nafter\n").unwrap();
    let report = || {
        let (results, readme) = (place.path("results"), readme.to_str().unwrap());
        regression(&["report", "--results", results.to_str().unwrap(), "--readme", readme])
    };
    let output = report();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let first = contents(place.0.path());

    let read = |name: &str| fs::read_to_string(place.path(name)).unwrap();
    let overview = read("results/README.md");
    assert!(overview.contains("\n## Policy gradient and actor-critic\n"), "{overview}");
    assert!(
        overview.contains("](ppo.md) | CartPole-v1 | 100,000 | 402.0 ± 1.0 | 3 | ≥ 475 | 0.2 | 1,600 |"),
        "{overview}"
    );
    let page = read("results/ppo.md");
    assert!(page.contains("| 402.0 | ≥ 475 [1] | 401.0 | ≥ 250 [2] | 3 | 0.2 | 1,600 |"), "{page}");
    assert!(page.contains("cargo run -p ppo -- --env-id CartPole-v1 --total-timesteps 100000\n"), "{page}");
    let curves = place.path("results/curves/test");
    assert!(page.contains("curves/test/ppo__CartPole-v1.png"), "{page}");
    assert!(curves.join("ppo__CartPole-v1.png").exists());
    let csv = fs::read_to_string(curves.join("ppo__CartPole-v1.csv")).unwrap();
    let (header, last) = (csv.lines().next().unwrap(), csv.lines().last().unwrap());
    assert_eq!(header, "step,mean,low,high,seed_1,seed_2,seed_3");
    // The return of 400 steps: the score less 2 · 20.
    assert_eq!(last, "400,362,361,363,361,362,363");
    let text = fs::read_to_string(&readme).unwrap();
    assert!(
        text.starts_with("before\n<!-- results -->\n| algorithm")
            && text.ends_with("<!-- /results -->\nafter\n")
    );
    assert!(
        text.contains("| CartPole-v1 | 100,000 | [402.0 ± 1.0](results/ppo.md) | ≥ 475 |")
            && text.contains("| **Policy gradient and actor-critic** |")
            && !text.contains("old"),
        "{text}"
    );

    fs::write(curves.join("sarsa__CartPole-v1.png"), "of an algorithm that is gone").unwrap();
    let first_line = page.lines().next().unwrap();
    fs::write(place.path("results/sarsa.md"), format!("{first_line}\nof the same")).unwrap();
    assert_eq!(report().status.code(), Some(0));
    assert!(first == contents(place.0.path()), "the second report differs");

    let change = |seed: u64, key: &str, new: serde_json::Value| {
        let text = fs::read_to_string(place.result(seed)).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value[key] = new;
        fs::write(place.result(seed), value.to_string()).unwrap();
    };
    // Other evaluations than most say so.
    for seed in 1..=3 {
        change(seed, "eval", serde_json::json!({"mean": 402, "std": 2, "episodes": 20}));
    }
    assert_eq!(report().status.code(), Some(0));
    let overview = read("results/README.md");
    assert!(overview.contains("100 episodes unless it says otherwise"), "{overview}");
    assert!(overview.contains("| 402.0 ± 1.0 (20 episodes) | 3 |"), "{overview}");
    let page = read("results/ppo.md");
    assert!(page.contains("| evaluation, 20 episodes | 402.0 |"), "{page}");

    // Results of older sources are shown, and counted.
    let is_older = |line: &str| line.contains("of older sources");
    assert!(!is_older(&String::from_utf8(report().stderr).unwrap()));
    for seed in 1..=3 {
        change(seed, "source_digest", "00000000".into());
    }
    let stderr = String::from_utf8(report().stderr).unwrap();
    assert_eq!(
        stderr,
        "of older sources: 1 of 1 entries; `regression run`, with `--tier benchmark` too, renews them\n"
    );

    // A result of settings that are in no list is named and left out.
    change(1, "config_digest", "00000000".into());
    let stderr = String::from_utf8(report().stderr).unwrap();
    assert!(stderr.contains("test ppo__CartPole-v1, seed 1: left out"), "{stderr}");
    let overview = read("results/README.md");
    assert!(overview.contains("| 402.5 ± 0.7 (20 episodes) | 2 |"), "{overview}");
}

#[test]
fn a_comparison_finds_what_became_worse() {
    let place = Place::new();
    place.run("old", &["--seeds", "4"], 0);
    place.run("same", &["--seeds", "4", "--first-seed", "3"], 0);
    fs::write(place.path("bin/bonus"), "-200").unwrap();
    place.run("bad", &["--seeds", "4", "--first-seed", "3"], 0);
    fs::write(place.path("bin/bonus"), "1").unwrap();
    place.run("another", &["--seeds", "4"], 0);
    place.run("single", &["--seeds", "1"], 0);
    let compare = |old: &str, new: &str, more: &[&str]| {
        let (old, new) = (place.path(old), place.path(new));
        let output = regression(&[&["compare", old.to_str().unwrap(), new.to_str().unwrap()], more].concat());
        (output.status.code(), stdout(&output))
    };
    let (code, text) = compare("old", "same", &["--strict"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("eval/episodic_return: 402.5000 ± 1.2910 → 404.5000 ± 1.2910"), "{text}");
    assert!(text.contains("2 scores: 0 worse, 0 better; 1 diagnostics: 0 changed"), "{text}");
    let (code, text) = compare("old", "bad", &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("2 worse, 0 better"), "{text}");
    let (code, text) = compare("bad", "old", &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("0 worse, 2 better"), "{text}");
    // The same seeds, one point more: nothing that counts, but not the same program.
    let (code, text) = compare("old", "another", &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("4 of 4 seeds give another run: CHANGED"), "{text}");
    assert_eq!(compare("old", "another", &["--strict"]).0, Some(1));
    assert_eq!(compare("old", "old", &["--strict"]).0, Some(0));
    let (code, text) = compare("old", "single", &[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("4 and 1 seeds, two are needed"), "{text}");
    // One seed is too few for scores, and enough to tell that its run is another.
    let (code, text) = compare("old", "single", &["--strict"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("ppo__CartPole-v1, 1 of 1 seeds give another run: CHANGED"), "{text}");
    assert_eq!(compare("another", "single", &["--strict"]).0, Some(0));
}

#[test]
fn bad_input_is_refused_in_one_line() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).unwrap();
    place.run("results", &["--seeds", "1"], 0);
    fs::create_dir_all(place.path("broken/runs/test/ppo__CartPole-v1")).unwrap();
    fs::write(place.path("broken/runs/test/ppo__CartPole-v1/1.json"), "{}").unwrap();
    fs::write(place.path("none.md"), "no markers").unwrap();
    fs::write(place.path("broken/far.md"), "<!-- results -->\n<!-- /results -->\n").unwrap();
    let text = |name: &str| place.path(name).to_str().unwrap().to_string();
    let (bin, empty, results, broken) = (text("bin"), text("empty"), text("results"), text("broken"));
    let (none, far, new) = (text("none.md"), text("broken/far.md"), text("new"));
    let before = contents(place.0.path());

    let refuses = |args: &[&str], mentions: &[&str]| {
        let output = regression(args);
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?} {output:?}");
        assert_eq!(stderr.lines().count(), 1, "{args:?} {stderr}");
        assert!(stderr.starts_with("error: "), "{args:?} {stderr}");
        for mention in mentions {
            assert!(stderr.contains(mention), "{args:?} {mention:?} {stderr}");
        }
    };
    refuses(&[], &["subcommand", "run", "report", "compare"]);
    refuses(&["train"], &["train"]);
    refuses(&["run", "pp0"], &["pp0", "ppo, "]);
    refuses(&["run", "cem", "--tier", "benchmark"], &["cem", "benchmark", "ppo_continuous"]);
    refuses(&["run", "--tier", "slow"], &["slow", "--tier", "test", "benchmark"]);
    refuses(&["run", "--seeds", "0"], &["'0'", "--seeds", "at least 1"]);
    refuses(&["run", "--seeds", "two"], &["'two'", "--seeds"]);
    refuses(&["run", "--first-seed", "x"], &["'x'", "--first-seed"]);
    refuses(
        &["run", "--first-seed", "18446744073709551615"],
        &["--first-seed 18446744073709551615", "5 seeds"],
    );
    refuses(&["run", "--jobs", "0"], &["'0'", "--jobs", "at least 1"]);
    refuses(&["run", "--shard", "4/3"], &["'4/3'", "--shard", "i/n"]);
    refuses(&["run", "--force", "--keep"], &["--force", "--keep"]);
    refuses(&["run", "--results", "/proc/none", "--bin-dir", &bin], &["--results /proc/none"]);
    refuses(&["run", "ppo", "--results", &empty, "--work", "/proc/none"], &["--work /proc/none"]);
    let flags = ["run", "es", "--results", &empty, "--work", &empty, "--bin-dir", &bin];
    refuses(&flags, &["--bin-dir", &bin, "no program es"]);
    refuses(&["report", "--results", &new], &[&new, "no results"]);
    refuses(&["report", "--results", &empty], &[&empty, "no results"]);
    refuses(&["report", "--results", &broken], &["1.json", "not the result of a run"]);
    refuses(&["report", "--results", &results, "--readme", &new], &["--readme", &new]);
    refuses(&["report", "--results", &results, "--readme", &none], &["--readme", &none, "<!-- results -->"]);
    refuses(&["report", "--results", &results, "--readme", &far], &["--readme", &far, "below"]);
    refuses(&["compare", &results], &["NEW"]);
    refuses(&["compare", &results, &new], &[&new, "no results"]);
    refuses(&["compare", &broken, &results], &["1.json"]);
    refuses(&["compare", &results, &results, "--alpha", "1"], &["--alpha"]);
    assert_eq!(before, contents(place.0.path()));
}
