//! Python libraries, each in a process of its own that makes a run whenever it is asked to.

use super::Run;
use super::process::Process;
use crate::paths;
use anyhow::bail;
use envs::{Result, invalid};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How what is missing is installed.
const INSTALL: &str = "python -m pip install -r tests/peers/requirements.txt";
/// And mbrl-lib after it.
const INSTALL_MBRL_LIB: &str = "python -m pip install --no-deps -r tests/peers/mbrl.txt";

/// A library that PlainRL is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Peer {
    Sb3,
    Sbx,
    /// PyTorch in a script of this project's own, where no library has the algorithm.
    Torch,
    MbrlLib,
    Gymnasium,
    EnvPool,
}

impl Peer {
    pub const ALL: [Peer; 6] =
        [Peer::Sb3, Peer::Sbx, Peer::Torch, Peer::MbrlLib, Peer::Gymnasium, Peer::EnvPool];

    pub fn name(self) -> &'static str {
        match self {
            Peer::Sb3 => "Stable-Baselines3",
            Peer::Sbx => "SBX",
            Peer::Torch => "torch, a script after CleanRL",
            Peer::MbrlLib => "mbrl-lib",
            Peer::Gymnasium => "Gymnasium SyncVectorEnv",
            Peer::EnvPool => "EnvPool",
        }
    }

    /// Its script, and what it is called on that script's command line, where it shares one.
    fn script(self) -> &'static [&'static str] {
        match self {
            Peer::Sb3 => &["train.py", "sb3"],
            Peer::Sbx => &["train.py", "sbx"],
            Peer::Torch => &["train_torch.py"],
            Peer::MbrlLib => &["mbrl_lib.py"],
            Peer::Gymnasium => &["step.py", "gymnasium"],
            Peer::EnvPool => &["step.py", "envpool"],
        }
    }

    /// The packages that its measurement imports.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Peer::Sb3 => &["torch", "stable-baselines3", "gymnasium"],
            Peer::Sbx => &["jax", "sbx-rl", "stable-baselines3", "gymnasium"],
            Peer::Torch => &["torch", "gymnasium"],
            Peer::MbrlLib => &["torch", "gymnasium", "mbrl", "omegaconf", "hydra-core"],
            Peer::Gymnasium => &["gymnasium", "mujoco", "imageio"],
            Peer::EnvPool => &["envpool"],
        }
    }
}

/// The interpreter and what is installed for it.
pub struct Python {
    interpreter: OsString,
    /// Of Python itself, `python`, and of the peers' packages; `None` where one is not installed.
    versions: BTreeMap<String, Option<String>>,
}

impl Python {
    /// The interpreter given, the one that `PLAINRL_PYTHON` names, or `python3`. Says which peers
    /// cannot be measured.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn find(interpreter: Option<OsString>) -> Result<Self> {
        let interpreter = interpreter.unwrap_or_else(envs::python::interpreter);
        // Peers run in folders of their own, where a relative path would mean another file.
        let is_path = Path::new(&interpreter).components().count() > 1;
        let interpreter = if is_path { std::path::absolute(interpreter)?.into() } else { interpreter };
        let mut packages: Vec<&str> = Peer::ALL.iter().flat_map(|peer| peer.packages()).copied().collect();
        packages.sort_unstable();
        packages.dedup();
        let shown = interpreter.to_string_lossy().into_owned();
        let answer = Command::new(&interpreter).arg("-B").arg(script("versions.py")).args(packages).output();
        let versions = match answer {
            Ok(output) if output.status.success() => serde_json::from_slice(&output.stdout).ok(),
            Ok(_) => None,
            Err(error) => return invalid(format!("--python {shown}: cannot be started: {error}")),
        };
        let Some(versions) = versions else {
            return invalid(format!("--python {shown}: a Python of version 3.9 or newer is needed"));
        };
        let this = Self { interpreter, versions };
        for peer in Peer::ALL {
            if let Some(missing) = this.missing(peer) {
                eprintln!("{}: {missing}", peer.name());
            }
        }
        Ok(this)
    }

    /// The version of a package, or of Python itself, `python`.
    pub fn version(&self, package: &str) -> Option<&str> {
        self.versions.get(package)?.as_deref()
    }

    /// What `peer` lacks.
    fn missing(&self, peer: Peer) -> Option<String> {
        let package = peer.packages().iter().find(|package| self.version(package).is_none())?;
        let interpreter = self.interpreter.to_string_lossy();
        let install = match *package {
            "mbrl" | "omegaconf" | "hydra-core" => INSTALL_MBRL_LIB,
            _ => INSTALL,
        };
        Some(format!("{package} is not installed for {interpreter}; {install}"))
    }
}

fn script(name: &str) -> PathBuf {
    paths::root().join("tests/peers").join(name)
}

/// What a peer does. Steps are those of one run.
pub enum Workload {
    /// Trains.
    Train { peer: Peer, algorithm: &'static str, steps: usize, threads: usize },
    /// Steps environments with random actions.
    Step { peer: Peer, env_id: &'static str, num_envs: usize, steps: usize },
}

impl Workload {
    fn peer(&self) -> Peer {
        match self {
            Workload::Train { peer, .. } | Workload::Step { peer, .. } => *peer,
        }
    }

    /// Whose work it is.
    pub fn name(&self) -> String {
        self.peer().name().into()
    }

    /// Starts the process. A run's result is steps per second.
    ///
    /// # Errors
    /// Peers were not asked for, or a package is missing.
    pub fn start<'a>(&self, python: Option<&Python>) -> Result<Run<'a>> {
        let Some(python) = python else { bail!("measured with --peers only") };
        let peer = self.peer();
        if let Some(missing) = python.missing(peer) {
            bail!(missing);
        }
        let mut command = Command::new(&python.interpreter);
        let (file, argument) = (script(peer.script()[0]), &peer.script()[1..]);
        command.arg("-B").arg(file).args(argument);
        let threads = match self {
            Workload::Train { algorithm, steps, threads, .. } => {
                command.arg(algorithm).args([steps, threads].map(usize::to_string));
                *threads
            }
            Workload::Step { env_id, num_envs, steps, .. } => {
                command.arg(env_id).args([num_envs, steps].map(usize::to_string));
                1
            }
        };
        limit_threads(&mut command, threads);
        let mut process = Process::start(command)?;
        Ok(Box::new(move || {
            let done = process.run()?;
            Ok(done.steps / done.seconds)
        }))
    }
}

/// Keeps OpenMP, the linear algebra of NumPy and torch, and XLA to `threads`, and all on the CPU.
fn limit_threads(command: &mut Command, threads: usize) {
    for variable in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"] {
        command.env(variable, threads.to_string());
    }
    let eigen = threads > 1;
    let flags = format!("--xla_cpu_multi_thread_eigen={eigen} intra_op_parallelism_threads={threads}");
    command.env("XLA_FLAGS", flags).env("JAX_PLATFORMS", "cpu").env("CUDA_VISIBLE_DEVICES", "");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_command_that_installs_it() {
        let versions = [("python", Some("3.11")), ("gymnasium", Some("1")), ("envpool", None)];
        let versions = versions.map(|(name, version)| (name.to_string(), version.map(String::from)));
        let python = Python { interpreter: "py".into(), versions: versions.into() };
        let missing = python.missing(Peer::EnvPool).unwrap();
        assert!(missing.starts_with("envpool is not installed for py;"), "{missing}");
        assert!(missing.ends_with(INSTALL), "{missing}");
        let versions = ["torch", "gymnasium", "omegaconf"].map(|name| (name.to_string(), Some("1".into())));
        let python = Python { interpreter: "py".into(), versions: versions.into() };
        let lacks = format!("mbrl is not installed for py; {INSTALL_MBRL_LIB}");
        assert_eq!(python.missing(Peer::MbrlLib).unwrap(), lacks);
    }

    #[test]
    fn a_peer_that_is_missing_does_no_work() {
        let python = Python { interpreter: "py".into(), versions: BTreeMap::new() };
        let missing = python.missing(Peer::EnvPool).unwrap();
        let workload = Workload::Step { peer: Peer::EnvPool, env_id: "X", num_envs: 1, steps: 1 };
        assert_eq!(workload.start(Some(&python)).err().unwrap().to_string(), missing);
    }

    #[test]
    fn an_interpreter_that_is_none_is_refused() {
        for (interpreter, wanted) in [("/nowhere/python", "cannot be started"), ("false", "version 3.9")] {
            let error = Python::find(Some(interpreter.into())).err().unwrap();
            assert!(error.is::<envs::InvalidInput>());
            let error = error.to_string();
            assert!(error.contains(&format!("--python {interpreter}")) && error.contains(wanted), "{error}");
        }
    }
}
