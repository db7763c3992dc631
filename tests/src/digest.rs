//! The digest by which a result is known to be of the present sources: a checksum of what decides
//! how an algorithm behaves on an environment, and of as little else as possible. A new algorithm, an
//! environment of another family, a test, a comment or another crate in Cargo.lock makes no result stale.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files of `common` and `envs` that no number depends on: pictures, logs, where things are found, and
/// lists to which every new environment adds a line.
const NO_NUMBERS: [&str; 13] = [
    "plot.rs",
    "heatmap.rs",
    "gif.rs",
    "tensorboard.rs",
    "records.rs",
    "console.rs",
    "timer.rs",
    "interrupt.rs",
    "write_atomically.rs",
    "canvas.rs",
    "python.rs",
    "registry.rs",
    "tests.rs",
];

/// Crates that compute, or draw random numbers.
const NUMERICS: [&str; 12] = [
    "candle-core",
    "candle-nn",
    "gemm",
    "gemm-common",
    "gemm-f32",
    "half",
    "libm",
    "pulp",
    "rand",
    "rand_core",
    "rand_distr",
    "rand_xoshiro",
];

/// A checksum of the algorithm's own folder, `common`, the parts of `envs` that every environment
/// needs, this environment's own files, and the versions of the crates that compute.
///
/// # Errors
/// A folder that is missing.
pub fn source_digest(root: &Path, algorithm: &str, env_id: &str) -> Result<String> {
    let own = root.join("algorithms").join(algorithm);
    let mut parts: Vec<(PathBuf, String)> = Vec::new();
    for folder in [own.join("src"), root.join("common/src")] {
        for path in files(&folder)? {
            parts.push((path.clone(), code(&read(&path)?)));
        }
    }
    parts.extend(environment(&root.join("envs/src"), env_id)?);
    // The same on every machine, whatever order the folders are listed in.
    parts.sort();
    let mut text = versions(&read(&root.join("Cargo.lock"))?, &read(&own.join("Cargo.toml"))?)?;
    for (path, code) in parts {
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        text += &format!("{relative}\n{}\n{code}", code.len());
    }
    Ok(format!("{:08x}", crc32c::crc32c(text.as_bytes())))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Every file below `folder` that numbers may depend on.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for item in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = item?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "tests") {
                all.extend(files(&path)?);
            }
        } else if !NO_NUMBERS.iter().any(|name| path.ends_with(name)) {
            all.push(path);
        }
    }
    Ok(all)
}

/// A source without comments, blank lines, indentation and its unit tests: a file of their own, or a module
/// that stands last.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let text = text.replace("#[cfg(test)]\nmod tests;", "");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// A file of one of the families of `envs`.
struct Source {
    family: PathBuf,
    path: PathBuf,
    code: String,
}

/// Of `envs`, what the environment depends on: what lies outside of the families' folders, the
/// wrappers, in the family's folder everything but the files of other environments, and whatever
/// else these name.
fn environment(folder: &Path, env_id: &str) -> Result<Vec<(PathBuf, String)>> {
    let own_id = env_id.split_once(':').map_or(env_id, |(prefix, _)| prefix); // gym:ID
    let (mut parts, mut others) = (Vec::new(), Vec::new());
    for path in files(folder)? {
        let family = path.strip_prefix(folder).ok().and_then(Path::parent);
        let family = family.filter(|family| !family.as_os_str().is_empty()).map(Path::to_path_buf);
        let code = code(&read(&path)?);
        match family {
            None if path.ends_with("lib.rs") => {} // a list of modules
            None => parts.push((path, code)),
            Some(family) if family.ends_with("wrappers") => parts.push((path, code)),
            Some(family) => others.push(Source { family, path, code }),
        }
    }
    let is_own = |source: &&Source| match own_id {
        "gym" => source.family.starts_with("gymnasium"),
        id => ids(&source.code).contains(id),
    };
    let families: BTreeSet<&Path> = others.iter().filter(is_own).map(|source| &*source.family).collect();
    let is_needed = |source: &Source| {
        let ids = ids(&source.code);
        families.contains(&*source.family) && (ids.is_empty() || ids.contains(own_id) || own_id == "gym")
    };
    let mut needed: BTreeSet<usize> = (0..others.len()).filter(|&i| is_needed(&others[i])).collect();
    if needed.is_empty() {
        // An environment that cannot be found may be anywhere.
        parts.extend(others.into_iter().map(|source| (source.path, source.code)));
        return Ok(parts);
    }
    let mut unread: Vec<usize> = needed.iter().copied().collect();
    while let Some(i) = unread.pop() {
        unread.extend(named_in(&others, i).into_iter().filter(|&named| needed.insert(named)));
    }
    for i in needed {
        parts.push((others[i].path.clone(), lines_of(&others[i].code, own_id)));
    }
    Ok(parts)
}

/// The files of `sources` in which is what the file with this index names of its own family,
/// `super::NAME`, and of others, `FAMILY::NAME`.
fn named_in(sources: &[Source], index: usize) -> BTreeSet<usize> {
    let user = &sources[index];
    let mut found = BTreeSet::new();
    if !user.path.ends_with("mod.rs") {
        let is_module = |&i: &usize| sources[i].family == user.family && sources[i].path.ends_with("mod.rs");
        for name in names_after(&user.code, "super::") {
            let module = || (0..sources.len()).filter(is_module).collect();
            found.extend(home_of(sources, &user.family, name).unwrap_or_else(module));
        }
    }
    let families: BTreeSet<&Path> = sources.iter().map(|source| &*source.family).collect();
    for family in families {
        for name in names_after(&user.code, &format!("{}::", family.display())) {
            let whole = || (0..sources.len()).filter(|&i| sources[i].family == family).collect();
            found.extend(home_of(sources, family, name).unwrap_or_else(whole));
        }
    }
    found
}

fn is_in_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What stands after `path` wherever it occurs in `code`: a name, or all that are in braces.
fn names_after<'a>(code: &'a str, path: &str) -> Vec<&'a str> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(path) {
        if code[..at].ends_with(is_in_name) {
            continue; // the end of a longer name
        }
        let after = &code[at + path.len()..];
        let mut depth = 0;
        let end = after.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth <= 0 && !is_in_name(c)
        });
        let words = after[..end.unwrap_or(after.len())].split(|c| !is_in_name(c));
        names.extend(words.filter(|word| !after.starts_with('{') || !word.is_empty()));
    }
    names
}

/// The files in which `family` has what is called `name`: a module, or whatever is defined under it. None for
/// a function that only draws, `fn NAME(canvas: …)`; nothing if it is not found.
fn home_of(sources: &[Source], family: &Path, name: &str) -> Option<Vec<usize>> {
    let in_family = || (0..sources.len()).filter(|&i| sources[i].family == family);
    let is_module = |&i: &usize| sources[i].path.file_stem().is_some_and(|stem| stem == name);
    if let Some(module) = in_family().find(is_module) {
        return Some(vec![module]);
    }
    // What follows the name wherever it is defined in a file.
    let definitions = |i: usize| {
        let code = &sources[i].code;
        code.match_indices(name).filter_map(|(at, _)| {
            let after = &code[at + name.len()..];
            let keyword = code[..at].strip_suffix(' ')?.rsplit(|c| !is_in_name(c)).next()?;
            let defines = ["struct", "enum", "trait", "fn", "const", "static", "type"].contains(&keyword);
            (defines && !after.starts_with(is_in_name)).then_some(after)
        })
    };
    let draws = |after: &str| after.trim_start_matches(['(', '\n']).starts_with("canvas:");
    let defining: Vec<usize> = in_family().filter(|&i| definitions(i).next().is_some()).collect();
    let counts = |&i: &usize| definitions(i).any(|after| !draws(after));
    (!defining.is_empty()).then(|| defining.into_iter().filter(counts).collect())
}

/// `code` without the lines that name other environments only, and without lists of modules.
fn lines_of(code: &str, id: &str) -> String {
    let is_list = |line: &str| {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        line.starts_with("mod ") || line.starts_with("use ")
    };
    let is_of_another = |line: &str| {
        let ids = ids(line);
        !ids.is_empty() && !ids.contains(id)
    };
    code.lines()
        .filter(|line| !is_list(line) && !is_of_another(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The ids of environments that stand in `code` as strings: they end in a version, `-v1` or `_v3`,
/// or in that and what makes a variant of it.
fn ids(code: &str) -> BTreeSet<&str> {
    let is_version = |i: usize, text: &str| {
        let after = text[i..].trim_start_matches(['-', '_']).strip_prefix('v');
        after.is_some_and(|after| after.starts_with(|c: char| c.is_ascii_digit()))
    };
    let is_id = |text: &&str| {
        text.char_indices().any(|(i, c)| i > 0 && (c == '-' || c == '_') && is_version(i, text))
            && !text.contains(' ')
    };
    code.lines().flat_map(|line| line.split('"').skip(1).step_by(2)).filter(is_id).collect()
}

/// The versions of [`NUMERICS`] and of whatever else the algorithm itself depends on.
fn versions(lock: &str, manifest: &str) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(serde::Deserialize)]
    struct Package {
        name: String,
        version: String,
        source: Option<String>,
    }
    let lock: Lock = toml::from_str(lock).context("Cargo.lock")?;
    let manifest: toml::Table = manifest.parse().context("Cargo.toml")?;
    // What every algorithm has computes nothing.
    let plain = |name: &str| ["anyhow", "clap", "serde"].contains(&name);
    let own: BTreeSet<&str> = manifest
        .get("dependencies")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flat_map(|table| table.keys().map(String::as_str))
        .filter(|name| !plain(name))
        .collect();
    let wanted = |package: &&Package| {
        // What has no source lies in this folder and is read itself.
        package.source.is_some() && (NUMERICS.contains(&&*package.name) || own.contains(&*package.name))
    };
    Ok(lock
        .package
        .iter()
        .filter(wanted)
        .map(|package| format!("{} {}\n", package.name, package.version))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A project with two algorithms and three environments.
    struct Project(tempfile::TempDir);

    const LOCK: &str = "[[package]]\nname = \"candle-core\"\nversion = \"1\"\nsource = \"registry\"\n\
        [[package]]\nname = \"statrs\"\nversion = \"1\"\nsource = \"registry\"\n\
        [[package]]\nname = \"special\"\nversion = \"1\"\nsource = \"registry\"\n\
        [[package]]\nname = \"ppo\"\nversion = \"1\"\n";
    /// Its tests are a file of their own, and the module is not the last one.
    const RUN: &str = "mod log;\n#[cfg(test)]\nmod tests;\nmod time;\n\nlet x = 1;\n";
    const CARTPOLE: &str = "//! Cart and pole.\nstruct CartPole;\nconst ID: &str = \"CartPole-v1\";\n";
    const FAMILY: &str =
        "mod cartpole;\nlet list = [\n    (\"CartPole-v1\", 500),\n    (\"Acrobot-v1\", 500),\n];\n";

    impl Project {
        fn new() -> Self {
            let this = Self(tempfile::tempdir().unwrap());
            this.write("Cargo.lock", LOCK);
            this.write("algorithms/ppo/Cargo.toml", "[dependencies]\nspecial = \"1\"\nclap = \"4\"\n");
            for file in [
                "algorithms/ppo/src/main.rs",
                "algorithms/dqn/src/main.rs",
                "common/src/nn/adam.rs",
                "common/src/plot.rs",
                "envs/src/lib.rs",
                "envs/src/env.rs",
                "envs/src/registry.rs",
                "envs/src/wrappers/time_limit.rs",
                "envs/src/classic_control/physics.rs",
                "envs/src/minatar/board.rs",
            ] {
                this.write(file, "let x = 1;\n");
            }
            this.write("common/src/run.rs", RUN);
            this.write("envs/src/classic_control/mod.rs", FAMILY);
            this.write("envs/src/classic_control/cartpole.rs", CARTPOLE);
            this.write("envs/src/classic_control/acrobot.rs", "const ID: &str = \"Acrobot-v1\";\n");
            this
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn digest(&self, env_id: &str) -> String {
            source_digest(self.0.path(), "ppo", env_id).unwrap()
        }
    }

    #[test]
    fn what_decides_a_result_changes_the_digest() {
        let project = Project::new();
        let mut seen = vec![project.digest("CartPole-v1")];
        assert_eq!(seen[0], project.digest("CartPole-v1"));
        let mut changes = |path: &str, text: &str| {
            project.write(path, text);
            let now = project.digest("CartPole-v1");
            assert!(!seen.contains(&now), "{path}");
            seen.push(now);
        };
        for file in [
            "algorithms/ppo/src/main.rs",
            "common/src/nn/adam.rs",
            "envs/src/env.rs",
            "envs/src/wrappers/time_limit.rs",
            "envs/src/classic_control/physics.rs",
        ] {
            changes(file, "let x = 2;\n");
        }
        changes("common/src/run.rs", &RUN.replace("x = 1", "x = 2"));
        changes("common/src/new.rs", "");
        changes("envs/src/classic_control/cartpole.rs", &CARTPOLE.replace("struct", "pub struct"));
        changes(
            "envs/src/classic_control/mod.rs",
            &FAMILY.replace("(\"CartPole-v1\", 500)", "(\"CartPole-v1\", 200)"),
        );
        changes("Cargo.lock", &LOCK.replacen("version = \"1\"", "version = \"2\"", 1));
        changes("Cargo.lock", &LOCK.replace("special\"\nversion = \"1\"", "special\"\nversion = \"2\""));
        assert!(source_digest(project.0.path(), "sac", "CartPole-v1").is_err());
    }

    #[test]
    fn what_does_not_leaves_it() {
        let project = Project::new();
        let before = project.digest("CartPole-v1");
        for (path, text) in [
            ("algorithms/sac/src/main.rs", "another algorithm"),
            ("algorithms/dqn/src/main.rs", "another algorithm"),
            ("algorithms/ppo/src/tests.rs", "its tests"),
            ("algorithms/ppo/tests/learning_curve.rs", "its tests"),
            ("algorithms/ppo/src/main.rs", "// words\n\n   let x = 1;\n\n#[cfg(test)]\nmod tests;\n"),
            ("common/src/plot.rs", "another colour"),
            ("envs/src/registry.rs", "another line"),
            ("envs/src/lib.rs", "pub mod textbook;"),
            ("envs/src/classic_control/acrobot.rs", "const ID: &str = \"Acrobot-v1\"; // heavier"),
            ("envs/src/classic_control/pendulum.rs", "const ID: &str = \"Pendulum-v1\";"),
            (
                "envs/src/classic_control/mod.rs",
                "mod cartpole;\npub mod pendulum;\nlet list = [\n(\"CartPole-v1\", 500),\n(\"Pendulum-v1\", 9),\n];",
            ),
            ("envs/src/minatar/board.rs", "another family"),
            ("Cargo.lock", &LOCK.replace("statrs\"\nversion = \"1\"", "statrs\"\nversion = \"2\"")),
            ("README.md", "words"),
        ] {
            project.write(path, text);
            assert_eq!(before, project.digest("CartPole-v1"), "{path}");
        }
    }

    #[test]
    fn an_environment_that_is_not_found_may_be_anywhere() {
        let project = Project::new();
        let before = project.digest("Unknown-v0");
        project.write("envs/src/minatar/board.rs", "let x = 2;");
        assert_ne!(before, project.digest("Unknown-v0"));
    }

    #[test]
    fn what_a_file_names_elsewhere_is_found() {
        let code = "use super::walk::{Foot, Leg};\nuse crate::{a::b, games::{Board, parts::Die}, games::Coin};\n\
            let x = games::flip(y) + board_games::roll();\nuse crate::games::*;\n";
        assert_eq!(names_after(code, "super::"), ["walk"]);
        assert_eq!(names_after(code, "games::"), ["Board", "parts", "Die", "Coin", "flip", ""]);

        let source = |family: &str, file: &str, code: &str| Source {
            family: family.into(),
            path: Path::new(family).join(file),
            code: code.into(),
        };
        let sources = [
            source("games", "mod.rs", "pub use coin::Coin;\nfn limit() {}\n"),
            source("games", "coin.rs", "use super::{limit, Thing};\npub struct Coin;\nstruct Coins;\n"),
            source("games", "board.rs", "fn draw_board(\ncanvas: &mut Canvas) {}\n"),
            source("games", "die.rs", "pub struct Die;\n"),
            source("walks", "mod.rs", "use crate::games::draw_board;\n"),
            source("walks", "drunk.rs", "use crate::games::Coin;\nuse super::sober::Leg;\n"),
            source("walks", "sober.rs", "use crate::games::unknown;\n"),
        ];
        let named: Vec<Vec<usize>> =
            (0..sources.len()).map(|i| named_in(&sources, i).into_iter().collect()).collect();
        let (none, all) = (vec![], vec![0, 1, 2, 3]);
        assert_eq!(named, [none.clone(), vec![0], none.clone(), none.clone(), none, vec![1, 6], all]);
    }

    #[test]
    fn ids_are_told_from_other_strings() {
        let code = r#"id: "CartPole-v1", ["MinAtar/Breakout-v0", "simple_v3"], "FrozenLake-v1-deterministic"
            "a version v1", "-v1", "conv1", "x_values""#;
        let expected = ["CartPole-v1", "FrozenLake-v1-deterministic", "MinAtar/Breakout-v0", "simple_v3"];
        assert_eq!(ids(code).into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn environments_of_this_project_are_found() {
        let folder = regression::paths::root().join("envs/src");
        for (id, file, other) in [
            ("CartPole-v1", "cartpole.rs", "pendulum.rs"),
            ("FrozenLake-v1-deterministic", "frozen_lake.rs", "taxi.rs"),
            ("simple_speaker_listener_v4", "simple_speaker_listener.rs", "simple_tag.rs"),
            ("Hopper-v5", "hopper.rs", "ant.rs"),
            ("gym:LunarLander-v3", "process.rs", "hopper.rs"),
            ("MinAtar/Breakout-v1", "breakout.rs", "ant.rs"),
            // What lies in another family, or in the file of another environment.
            ("PartialPendulum-v0", "pendulum.rs", "cartpole.rs"),
            ("RandomWalk5-v0", "tabular.rs", "taxi.rs"),
            ("BlackjackState-v0", "blackjack.rs", "tabular.rs"),
            ("MountainCarTextbook-v0", "textbook/mountain_car.rs", "classic_control/mountain_car.rs"),
            ("HumanoidStandup-v5", "humanoid.rs", "ant.rs"),
            ("Humanoid-v5", "humanoid.rs", "humanoid_standup.rs"),
        ] {
            let files: Vec<PathBuf> =
                environment(&folder, id).unwrap().into_iter().map(|(path, _)| path).collect();
            let has = |name: &str| files.iter().any(|path| path.ends_with(name));
            assert!(has(file) && has("vec_env.rs") && !has(other), "{id}: {files:?}");
        }
    }
}
