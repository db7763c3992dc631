//! The algorithms' programs: found in a folder, or built.

use crate::paths;
use anyhow::{Context, bail};
use envs::{Result, invalid};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Programs by name.
pub type Programs = BTreeMap<String, PathBuf>;

/// The programs called `names` in `folder`, the value of `--bin-dir`.
///
/// # Errors
/// One is missing.
pub fn in_folder<'a>(folder: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<Programs> {
    let mut programs = Programs::new();
    for name in names {
        let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
        if !path.is_file() {
            return invalid(format!("--bin-dir {}: holds no program {name}", folder.display()));
        }
        // Relative to the working directory, and not looked for in PATH.
        programs.insert(name.to_string(), std::path::absolute(path)?);
    }
    Ok(programs)
}

/// Builds the programs called `names` as `cargo test` does: with the features of the whole workspace.
///
/// # Errors
/// They do not build.
pub fn build<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Programs> {
    let names: Vec<&str> = names.into_iter().collect();
    let bins = names.iter().flat_map(|name| ["--bin", name]);
    let programs = cargo_build(&["--workspace"].into_iter().chain(bins).collect::<Vec<_>>())?;
    match names.iter().find(|name| !programs.contains_key(**name)) {
        Some(missing) => bail!("cargo build made no program {missing}"),
        None => Ok(programs),
    }
}

/// Copies `programs` to `folder`, which is there: what is built while they are used changes nothing then.
///
/// # Errors
/// One cannot be copied.
pub fn copied(programs: &Programs, folder: &Path) -> anyhow::Result<Programs> {
    let mut copies = Programs::new();
    for (name, path) in programs {
        let copy = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
        std::fs::copy(path, &copy)
            .with_context(|| format!("copying {} to {}", path.display(), copy.display()))?;
        copies.insert(name.clone(), std::path::absolute(copy)?);
    }
    Ok(copies)
}

/// Runs `cargo build` in the project's folder and returns the programs that it made.
///
/// # Errors
/// As [`build`].
pub fn cargo_build(flags: &[&str]) -> Result<Programs> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .arg("build")
        .args(flags)
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(paths::root())
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo; --bin-dir takes programs that are built already")?;
    if !output.status.success() {
        bail!("cargo build {}: {}", flags.join(" "), output.status);
    }
    let mut programs = Programs::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("what cargo build printed")?;
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            programs.insert(name.to_string(), path.into());
        }
    }
    Ok(programs)
}
