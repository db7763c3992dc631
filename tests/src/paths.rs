//! Where things are: the project, a Python interpreter.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The folder of the whole project.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// The Python interpreter: the one that `PLAINRL_PYTHON` names, or `python3`.
pub fn python() -> OsString {
    std::env::var_os("PLAINRL_PYTHON").filter(|name| !name.is_empty()).unwrap_or_else(|| "python3".into())
}
