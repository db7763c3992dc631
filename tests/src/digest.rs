//! The digest by which a result is known to be of the present sources: a checksum of what decides
//! how an algorithm behaves on an environment, and of as little else as possible. A new algorithm,
//! a new environment, a test, a comment or another crate in Cargo.lock makes no result stale.

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

/// A source without comments, blank lines, indentation and its unit tests, which stand last.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Of `envs`, what the environment depends on: what lies outside of the families' folders, the
/// wrappers, and in the family's folder everything but the files of other environments.
fn environment(folder: &Path, env_id: &str) -> Result<Vec<(PathBuf, String)>> {
    let own_id = env_id.split_once(':').map_or(env_id, |(prefix, _)| prefix); // gym:ID
    let (mut parts, mut others, mut found) = (Vec::new(), Vec::new(), false);
    for path in files(folder)? {
        let family = path.strip_prefix(folder).ok().and_then(Path::parent);
        let family = family.filter(|family| !family.as_os_str().is_empty()).map(Path::to_path_buf);
        let code = code(&read(&path)?);
        match family {
            None if path.ends_with("lib.rs") => {} // a list of modules
            None => parts.push((path, code)),
            Some(family) if family.ends_with("wrappers") => parts.push((path, code)),
            Some(family) => others.push((family, path, code)),
        }
    }
    let is_own = |family: &Path, code: &str| match own_id {
        "gym" => family.starts_with("gymnasium"),
        id => ids(code).contains(id),
    };
    let families: BTreeSet<PathBuf> = others
        .iter()
        .filter(|(family, _, code)| is_own(family, code))
        .map(|(family, _, _)| family.clone())
        .collect();
    for (family, path, code) in &others {
        let ids = ids(code);
        if families.contains(family) && (ids.is_empty() || ids.contains(own_id) || own_id == "gym") {
            found = true;
            parts.push((path.clone(), lines_of(code, own_id)));
        }
    }
    if !found {
        // An environment that cannot be found may be anywhere.
        parts.extend(others.into_iter().map(|(_, path, code)| (path, code)));
    }
    Ok(parts)
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
        ] {
            let files: Vec<PathBuf> =
                environment(&folder, id).unwrap().into_iter().map(|(path, _)| path).collect();
            let has = |name: &str| files.iter().any(|path| path.ends_with(name));
            assert!(has(file) && has("vec_env.rs") && !has(other), "{id}: {files:?}");
        }
    }
}
