//! Which Python interpreter is asked for what only Python has.

use std::ffi::OsString;

/// The interpreter that `PLAINRL_PYTHON` names; an empty name counts as none.
pub fn named() -> Option<OsString> {
    std::env::var_os("PLAINRL_PYTHON").filter(|name| !name.is_empty())
}

/// The interpreter that `PLAINRL_PYTHON` names, or `python3`.
pub fn interpreter() -> OsString {
    named().unwrap_or_else(|| "python3".into())
}
