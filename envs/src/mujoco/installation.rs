//! Where libmujoco and the models of the tasks lie on this machine.
//!
//! Both come with Python packages, which are never run: Python is asked once for their folders,
//! and not at all where environment variables name the files.

use crate::{Result, invalid, python};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The command that installs what the MuJoCo tasks need: the library and the models.
pub const INSTALL: &str = "python3 -m pip install --no-deps gymnasium==1.4.0 mujoco-core==4.0.0";

/// Prints the folders of the two packages, a line each, empty where one is missing. Finding a
/// package does not import it; the current folder, where `mujoco` may be anything, is left out.
const QUESTION: &str = "
import importlib.util, sys
sys.path = [p for p in sys.path if p]
for name in ('mujoco', 'gymnasium'):
    spec = importlib.util.find_spec(name)
    print(list(spec.submodule_search_locations)[0] if spec and spec.origin else '')
";

/// What the environment variables say.
#[derive(Debug, Clone, Default)]
pub(super) struct Overrides {
    /// `PLAINRL_PYTHON`: the interpreter that has the packages; `python3`, then `python`, without.
    pub python: Option<OsString>,
    /// `MUJOCO_LIB`: the file of libmujoco.
    pub library: Option<PathBuf>,
    /// `MUJOCO_MODELS`: the folder of Gymnasium's models (`half_cheetah.xml` and others).
    pub models: Option<PathBuf>,
}

impl Overrides {
    /// Reads the variables; an empty one counts as not set.
    pub fn from_env() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            python: python::named(),
            library: variable("MUJOCO_LIB").map(PathBuf::from),
            models: variable("MUJOCO_MODELS").map(PathBuf::from),
        }
    }
}

/// The files found.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    /// Files that may be libmujoco: at least one.
    pub libraries: Vec<PathBuf>,
    /// Folder of the models.
    pub models: PathBuf,
}

impl Installation {
    /// Finds both.
    ///
    /// # Errors
    /// Whatever is missing, in one line with the command that installs it.
    pub fn find(overrides: &Overrides) -> Result<Self> {
        let (library, models) = (overrides.library.clone(), overrides.models.clone());
        let asked = match (&library, &models) {
            (Some(_), Some(_)) => None,
            _ => Some(ask_python(overrides.python.as_ref())?),
        };
        let libraries = match (library, &asked) {
            // A bare name would be looked for in the system's folders instead of here.
            (Some(file), _) if file.is_file() => vec![std::path::absolute(file)?],
            (Some(file), _) => return invalid(format!("MUJOCO_LIB={}: no such file", file.display())),
            (None, Some(Packages { mujoco: Some(folder), .. })) => libraries_in(folder),
            (None, _) => Vec::new(),
        };
        if libraries.is_empty() {
            return missing("libmujoco", &asked);
        }
        let models = match (models, &asked) {
            (Some(folder), _) if folder.is_dir() => folder,
            (Some(folder), _) => {
                return invalid(format!("MUJOCO_MODELS={}: no such folder", folder.display()));
            }
            (None, Some(Packages { gymnasium: Some(folder), .. })) => folder.join("envs/mujoco/assets"),
            (None, _) => return missing("the Python package gymnasium, which holds the models,", &asked),
        };
        Ok(Self { libraries, models })
    }
}

/// What Python answered.
struct Packages {
    python: String,
    mujoco: Option<PathBuf>,
    gymnasium: Option<PathBuf>,
}

fn missing<T>(what: &str, asked: &Option<Packages>) -> Result<T> {
    let python = asked.as_ref().map_or("python3", |packages| &packages.python);
    let install = INSTALL.replacen("python3", python, 1);
    invalid(format!("MuJoCo tasks: {what} is not installed for {python}; install it with: {install}"))
}

fn ask_python(python: Option<&OsString>) -> Result<Packages> {
    let candidates = match python {
        Some(python) => vec![python.clone()],
        None => vec!["python3".into(), "python".into()],
    };
    let mut problem = String::new();
    for python in candidates {
        let name = python.to_string_lossy().into_owned();
        match Command::new(&python).args(["-c", QUESTION]).output() {
            Ok(answer) if answer.status.success() => {
                let text = String::from_utf8_lossy(&answer.stdout).into_owned();
                let mut lines =
                    text.lines().map(|line| Some(PathBuf::from(line)).filter(|_| !line.is_empty()));
                let mut folder = || lines.next().flatten();
                return Ok(Packages { python: name, mujoco: folder(), gymnasium: folder() });
            }
            Ok(answer) => problem = format!("{name} failed ({})", answer.status),
            Err(error) => problem = format!("{name} cannot be run ({error})"),
        }
    }
    invalid(format!(
        "MuJoCo tasks: {problem}; PLAINRL_PYTHON may name another interpreter; what they need is installed with: {INSTALL}"
    ))
}

/// Files in `folder` that are named as libmujoco is on Linux, macOS or Windows, in order.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let is_library = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libmujoco.so")
            || (name.starts_with("libmujoco.") && name.ends_with(".dylib"))
            || name == "mujoco.dll"
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut libraries: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_library).collect();
    libraries.sort();
    libraries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InvalidInput;

    fn refusal(overrides: &Overrides) -> String {
        let error = Installation::find(overrides).unwrap_err();
        let InvalidInput(message) = error.downcast_ref().expect("an InvalidInput");
        assert_eq!(message.lines().count(), 1, "{message}");
        message.clone()
    }

    #[test]
    fn an_interpreter_that_cannot_run_is_named_with_the_install_command() {
        let python = Some(OsString::from("/nowhere/python3"));
        let message = refusal(&Overrides { python, ..Overrides::default() });
        assert!(message.contains("/nowhere/python3") && message.contains(INSTALL), "{message}");
    }

    #[test]
    fn overrides_that_do_not_exist_are_named() {
        let models = Some(PathBuf::from("/nowhere/assets"));
        let library = Some(PathBuf::from("/nowhere/libmujoco.so"));
        let message = refusal(&Overrides { python: None, library, models: models.clone() });
        assert!(message.contains("MUJOCO_LIB=/nowhere/libmujoco.so"), "{message}");
        let library = std::env::current_exe().ok(); // any file: it is not opened yet
        let message = refusal(&Overrides { python: None, library, models });
        assert!(message.contains("MUJOCO_MODELS=/nowhere/assets"), "{message}");
    }

    #[test]
    fn an_interpreter_without_the_packages_gets_the_install_command() {
        // `true` succeeds and prints nothing, like a Python that has neither package.
        let message = refusal(&Overrides { python: Some("true".into()), ..Overrides::default() });
        let install = INSTALL.replacen("python3", "true", 1); // for this interpreter
        assert!(message.contains("libmujoco is not installed") && message.contains(&install), "{message}");
    }
}
