//! The bridge to Python's Gymnasium, with a stand-in for Gymnasium (`fake_gymnasium.py`) whose
//! environments print, raise, crash and hang. Needs a Python 3 and nothing else.

#![cfg(unix)]

use envs::gymnasium::{self, Bridge, Purpose, Python, Single};
use envs::{Action, Actions, Env, Episode, InvalidInput, Space, VecEnv, rng};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

/// Long enough for any machine; a test that fails waits this long instead of for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder that holds the stand-in as the module `gymnasium`.
fn modules() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake_gymnasium");
        std::fs::create_dir_all(folder.join("gymnasium")).unwrap();
        // Whole or not at all: the Python of another test may be reading it.
        let written = folder.join(format!("{}.py", std::process::id()));
        std::fs::write(&written, include_str!("fake_gymnasium.py")).unwrap();
        std::fs::rename(&written, folder.join("gymnasium/__init__.py")).unwrap();
        folder
    })
}

/// The Python to test with; `None`, which is printed, where there is none.
fn python() -> Option<Python> {
    let python =
        Python { module_paths: vec![modules().into()], timeout: PATIENCE, ..Python::from_env().unwrap() };
    let found = Command::new(&python.interpreter).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        // Past the test harness, which shows what is printed by tests that fail only.
        let line = format!("SKIPPED: cannot run {}, install Python 3\n", python.interpreter.display());
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    found.then_some(python)
}

/// The message of a result that must be a mistake of the caller's, on one line.
fn refusal<T>(result: envs::Result<T>) -> String {
    let error = result.err().expect("an error");
    let message = error.downcast_ref::<InvalidInput>().expect("InvalidInput").to_string();
    assert!(!message.contains('\n'), "{message:?}");
    message
}

/// Three numbers an observation, as in most of the stand-in's environments.
struct Stepped {
    observations: Vec<f32>,
    finals: Vec<f32>,
    terminated: Vec<bool>,
    truncated: Vec<bool>,
    rewards: Vec<f64>,
}

fn step(bridge: &mut Bridge, actions: &[u32]) -> envs::Result<Stepped> {
    let n = actions.len();
    let zeros = vec![0.0; n * bridge.spec().observation_space.size()];
    let (mut observations, mut finals) = (zeros.clone(), zeros);
    let (mut terminated, mut truncated) = (vec![false; n], vec![false; n]);
    let rewards = bridge
        .step(Actions::Discrete(actions), &mut observations, &mut finals, &mut terminated, &mut truncated)?
        .to_vec();
    Ok(Stepped { observations, finals, terminated, truncated, rewards })
}

/// A bridge that was reset with seed 0 and has a single copy.
fn started(id: &str, python: &Python) -> Bridge {
    let mut bridge = Bridge::start(id, 1, python).unwrap();
    let mut observations = vec![0.0; bridge.spec().observation_space.size()];
    bridge.reset(0, &mut observations).unwrap();
    bridge
}

#[test]
fn spaces_and_limits_are_described() {
    let Some(python) = python() else { return };
    let count = Bridge::start("Count-v0", 1, &python).unwrap();
    let spec = count.spec();
    assert_eq!(spec.id, "gym:Count-v0");
    let (low, high) = ([f32::NEG_INFINITY, 0.0, 5.0], [f32::INFINITY, 4.0, 7.0]);
    assert_eq!(spec.observation_space, Space::bounded(&low, &high));
    assert_eq!(spec.action_space, Space::Discrete { n: 3 });
    assert_eq!((spec.max_episode_steps, spec.reward_threshold), (Some(4), Some(2.5)));

    let vector = Bridge::start("Vector-v0", 1, &python).unwrap();
    assert_eq!(vector.spec().observation_space, Space::bounded(&[-2.5, -2.5], &[2.5, 0.1]));
    assert_eq!(vector.spec().action_space, Space::uniform(2, -1.0, 1.0));
}

#[test]
fn copies_are_seeded_and_reset_in_the_same_step() {
    let Some(python) = python() else { return };
    let mut bridge = Bridge::start("Count-v0", 2, &python).unwrap();
    let mut observations = [0.0; 6];
    bridge.reset(7, &mut observations).unwrap();
    assert_eq!(observations, [70.0, 0.0, 5.0, 80.0, 0.0, 5.0]);
    for episode in 0..4 {
        let (now, next) = (episode as f32, (episode + 1) as f32);
        for t in 1..=4_u8 {
            let Stepped { observations, finals, terminated, truncated, rewards } =
                step(&mut bridge, &[0, 2]).unwrap();
            let reached = [70.0 + now, t.into(), 5.0, 80.0 + now, t.into(), 7.0];
            let shown = if t < 4 { reached } else { [70.0 + next, 0.0, 5.0, 80.0 + next, 0.0, 5.0] };
            assert_eq!(finals, reached);
            assert_eq!(observations, shown);
            assert_eq!(rewards, [f64::from(t) + 0.125; 2]);
            assert_eq!(terminated, [t == 4 && episode % 2 == 0; 2]);
            assert_eq!(truncated, [t == 4 && episode % 2 == 1; 2]);
        }
    }
    bridge.reset(u64::from(u32::MAX), &mut observations).unwrap();
    assert_eq!(observations[0], 10.0 * u32::MAX as f32);
}

#[test]
fn bytes_offsets_and_vectors_arrive() {
    let Some(python) = python() else { return };
    let mut pixels = started("Pixels-v0", &python);
    let Space::Box { shape, high, .. } = &pixels.spec().observation_space else { panic!("not a Box") };
    assert_eq!((shape.as_slice(), high[0]), (&[2, 2, 1][..], 255.0));
    assert_eq!(step(&mut pixels, &[0]).unwrap().observations, [0.0, 127.0, 128.0, 254.0]);

    let mut state = started("State-v0", &python);
    assert_eq!(state.spec().observation_space, Space::Discrete { n: 5 });
    assert_eq!(step(&mut state, &[0]).unwrap().observations, [1.0]);

    let mut vector = Bridge::start("Vector-v0", 2, &python).unwrap();
    vector.reset(0, &mut [0.0; 4]).unwrap();
    let (mut observations, mut finals) = ([0.0; 4], [0.0; 4]);
    let actions = [0.1, -0.2, 0.3, 1.0];
    vector
        .step(Actions::Continuous(&actions), &mut observations, &mut finals, &mut [false; 2], &mut [false; 2])
        .unwrap();
    assert_eq!(observations, actions);
}

#[test]
fn prints_stay_off_the_socket() {
    let Some(python) = python() else { return };
    let mut noisy = started("Noisy-v0", &python);
    for t in 1..=3_u8 {
        assert_eq!(step(&mut noisy, &[1]).unwrap().observations, [0.0, t.into(), 6.0]);
    }
}

#[test]
fn a_snapshot_is_the_whole_state() {
    let Some(python) = python() else { return };
    for id in ["Count-v0", "CountEz-v0"] {
        let mut bridge = started(id, &python);
        (0..5).for_each(|_| drop(step(&mut bridge, &[1]).unwrap()));
        let snapshot = bridge.snapshot().unwrap();
        let next = step(&mut bridge, &[2]).unwrap().observations;
        assert_eq!(next, [1.0, 2.0, 7.0]);
        (0..4).for_each(|_| drop(step(&mut bridge, &[0]).unwrap()));
        bridge.restore(&snapshot).unwrap();
        assert_eq!(step(&mut bridge, &[2]).unwrap().observations, next);
        // In another process too.
        let mut other = Bridge::start(id, 1, &python).unwrap();
        other.restore(&snapshot).unwrap();
        assert_eq!(step(&mut other, &[2]).unwrap().observations, next);
    }
}

#[test]
fn what_cannot_be_saved_or_restored_says_so_and_goes_on() {
    let Some(python) = python() else { return };
    let mut lambda = started("Lambda-v0", &python);
    let message = refusal(lambda.snapshot());
    let expected = "gym:Lambda-v0: Python cannot pickle this environment, so no checkpoint can hold it: ";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(step(&mut lambda, &[0]).unwrap().observations, [0.0, 1.0, 5.0]);

    let mut count = started("Count-v0", &python);
    let two = Bridge::start("Count-v0", 2, &python).unwrap().snapshot().unwrap();
    assert_eq!(
        refusal(count.restore(&two)),
        "gym:Count-v0: the state is not of 1 copies of this environment"
    );
    assert!(refusal(count.restore(b"no pickle")).starts_with("gym:Count-v0: UnpicklingError: "));
    assert_eq!(step(&mut count, &[0]).unwrap().observations, [0.0, 1.0, 5.0]);
}

#[test]
fn a_single_environment_leaves_resets_to_the_caller() {
    let Some(python) = python() else { return };
    let mut env = Single::start("Count-v0", &python).unwrap();
    let mut generator = rng(3, 0);
    let mut observation = [0.0; 3];
    env.reset(&mut generator).unwrap();
    env.observe(&mut observation);
    let seed = observation[0];
    let mut state = None;
    for t in 1..=4_u8 {
        let result = env.step(Action::Discrete(1), &mut generator).unwrap();
        assert_eq!((result.terminated, result.truncated), (t == 4, false));
        env.observe(&mut observation);
        assert_eq!(observation, [seed, t.into(), 6.0]);
        if t == 2 {
            state = Some(env.state().unwrap());
        }
    }
    env.set_state(&state.unwrap()).unwrap();
    env.observe(&mut observation);
    assert_eq!(observation, [seed, 2.0, 6.0]);
    assert_eq!(env.step(Action::Discrete(0), &mut generator).unwrap().reward, 3.125);
    env.reset(&mut generator).unwrap();
    env.observe(&mut observation);
    assert_ne!(observation[0], seed, "each episode has its own seed");
    assert!(
        refusal(env.set_state(&envs::State(vec![0.0, 0.0, 0.0, 256.0]))).contains("a state is 3 numbers")
    );
}

#[test]
fn starting_fails_in_one_line() {
    let Some(python) = python() else { return };
    let start = |id: &str| refusal(Bridge::start(id, 1, &python));
    assert_eq!(
        start("Cuont-v0"),
        "--env-id gym:Cuont-v0: Environment `Cuont-v0` doesn't exist. Did you mean: `Count`?"
    );
    assert_eq!(
        start("Needy-v0"),
        "--env-id gym:Needy-v0: Box2D is not installed, you can install it with `pip install swig`, then `pip install it`"
    );
    let broken = start("Broken-v0");
    assert!(
        broken.starts_with("--env-id gym:Broken-v0: RuntimeError: no display (__init__.py, line "),
        "{broken}"
    );
    assert_eq!(
        start("Dictionary-v0"),
        "--env-id gym:Dictionary-v0: its observation space Dict('a': Discrete(2), 'b': Discrete(3)) is not supported; \
         supported are Discrete and Box of float16, float32, float64, uint8"
    );
    assert!(start("Integers-v0").ends_with("supported are Discrete and Box of float16, float32, float64"));
}

#[test]
fn what_is_not_installed_is_named() {
    let Some(python) = python() else { return };
    let none = Python { interpreter: "no-such-python".into(), ..python.clone() };
    let message = refusal(Bridge::start("Count-v0", 1, &none));
    assert!(message.starts_with("--env-id gym:Count-v0: cannot run Python as no-such-python: "), "{message}");
    assert!(message.ends_with("name an interpreter in PLAINRL_PYTHON"), "{message}");

    // Without site-packages and PYTHONPATH no package is found.
    let script = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bare_python");
    std::fs::write(&script, format!("#!/bin/sh\nexec {} -S -E \"$@\"\n", python.interpreter.display()))
        .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let bare = Python { interpreter: script.into(), ..python.clone() };
    let message = refusal(Bridge::start("Count-v0", 1, &bare));
    assert!(message.contains("has no package gymnasium; install it with `"), "{message}");

    let other = Python { interpreter: "false".into(), ..python };
    assert_eq!(
        refusal(Bridge::start("Count-v0", 1, &other)),
        "gym:Count-v0: Python ended during its start: exit status: 1"
    );
}

/// Modules beside the stand-in: each is there, with what is asked of one of them, or is not.
fn with_modules(python: &Python, name: &str, modules: [(&str, bool); 2]) -> Python {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    for (module, exists) in modules {
        let missing = format!("raise ModuleNotFoundError(\"no {module}\", name=\"{module}\")\n");
        std::fs::create_dir_all(folder.join(module)).unwrap();
        let logger = "from types import SimpleNamespace\nLoggerMode = SimpleNamespace(Error=2)\n\
                      ALEInterface = SimpleNamespace(setLoggerMode=lambda mode: None)\n";
        let text = if exists { logger } else { &missing };
        std::fs::write(folder.join(module).join("__init__.py"), text).unwrap();
    }
    let mut python = python.clone();
    python.module_paths.push(folder);
    python
}

#[test]
fn what_atari_games_need_is_named() {
    let Some(python) = python() else { return };
    for (missing, modules) in
        [("ale_py", [("ale_py", false), ("cv2", true)]), ("cv2", [("ale_py", true), ("cv2", false)])]
    {
        let python = with_modules(&python, &format!("without_{missing}"), modules);
        let message = refusal(Bridge::start("ALE/Game-v5", 1, &python));
        assert!(
            message.contains(&format!("has no package {missing}; install what Atari games")),
            "{message}"
        );
        assert!(message.contains("-m pip install gymnasium==1.4.0 ale-py=="), "{message}");
    }
}

/// An observation in which every pixel has these four values.
fn stack(frames: [u8; 4]) -> Vec<f32> {
    frames.map(f32::from).repeat(84 * 84)
}

#[test]
fn an_atari_episode_is_a_life_while_training_and_a_game_in_an_evaluation() {
    const NOOP: [u32; 1] = [0];
    const DIE: [u32; 1] = [2];
    let Some(python) = python() else { return };
    let python = with_modules(&python, "atari", [("ale_py", true), ("cv2", true)]);
    let start = |purpose: Purpose, id: &str| {
        let mut bridge = Bridge::start_for(purpose, id, 1, &python).unwrap();
        let mut observations = stack([9; 4]);
        bridge.reset(0, &mut observations).unwrap();
        (bridge, observations)
    };
    let check = |stepped: Stepped, reward: f64, ended: bool, last: [u8; 4], shown: [u8; 4]| {
        assert_eq!((stepped.rewards[0], stepped.terminated[0], stepped.truncated[0]), (reward, ended, false));
        assert!(stepped.finals == stack(last) && stepped.observations == stack(shown), "{last:?} {shown:?}");
    };

    let (mut training, first) = start(Purpose::Training, "ALE/Game-v5");
    let Space::Box { shape, high, .. } = &training.spec().observation_space else { panic!("not a Box") };
    assert_eq!((shape.as_slice(), high[0]), (&[84, 84, 4][..], 255.0));
    assert_eq!(gymnasium::stacked_frames(&training.spec().id), 4);
    assert!(first == stack([1; 4]), "FIRE was not pressed");
    check(step(&mut training, &NOOP).unwrap(), 1.0, false, [1, 1, 1, 2], [1, 1, 1, 2]);
    let snapshot = training.snapshot().unwrap();
    for _ in 0..2 {
        // A life is lost, and the game goes on with the next one; then it is over.
        check(step(&mut training, &DIE).unwrap(), -1.0, true, [1, 1, 2, 3], [4; 4]);
        check(step(&mut training, &NOOP).unwrap(), 1.0, false, [4, 4, 4, 5], [4, 4, 4, 5]);
        check(step(&mut training, &DIE).unwrap(), -1.0, true, [4, 4, 5, 6], [51; 4]);
        training.restore(&snapshot).unwrap();
    }

    let (mut evaluation, first) = start(Purpose::Evaluation, "ALE/Game-v5");
    assert!(first == stack([1; 4]), "FIRE was not pressed");
    check(step(&mut evaluation, &NOOP).unwrap(), 7.0, false, [1, 1, 1, 2], [1, 1, 1, 2]);
    // With the reward of FIRE, after which the next life looks as it did while training.
    check(step(&mut evaluation, &DIE).unwrap(), -1.0, false, [4; 4], [4; 4]);
    check(step(&mut evaluation, &DIE).unwrap(), -3.0, true, [4, 4, 4, 5], [51; 4]);

    let (mut calm, first) = start(Purpose::Training, "ALE/Calm-v5");
    assert!(first == stack([0; 4]), "FIRE was pressed");
    check(step(&mut calm, &DIE).unwrap(), -1.0, true, [0, 0, 0, 1], [1; 4]);
}

#[test]
fn failures_in_the_middle_are_reported() {
    let Some(python) = python() else { return };
    let fails = |id: &str| {
        let mut bridge = started(id, &python);
        let message = refusal(step(&mut bridge, &[0]));
        (message, bridge)
    };
    let (message, mut bridge) = fails("Raises-v0");
    assert!(
        message.starts_with(
            "gym:Raises-v0: step failed: ValueError: the second line matters too (__init__.py, line "
        ),
        "{message}"
    );
    bridge.reset(1, &mut [0.0; 3]).expect("the process serves on");
    assert!(fails("Exits-v0").0.starts_with("gym:Exits-v0: step failed: SystemExit: 3"));

    let (message, mut bridge) = fails("Dies-v0");
    assert_eq!(message, "gym:Dies-v0: Python ended during a step: exit status: 7");
    assert_eq!(refusal(bridge.reset(0, &mut [0.0; 3])), message, "it stays ended");
    let (message, _) = fails("Crashes-v0");
    assert!(message.starts_with("gym:Crashes-v0: Python ended during a step: "), "{message}");
    // A shell script that stands for the interpreter reports the signal as 128 + 11.
    assert!(message.contains("signal: 11") || message.ends_with("exit status: 139"), "{message}");

    let mut outside = Bridge::start("Outside-v0", 1, &python).unwrap();
    let message = refusal(outside.reset(0, &mut [0.0]));
    assert!(
        message.contains("reset failed: ValueError: observation 15 is not in Discrete(5, start=10)"),
        "{message}"
    );
    let mut short = Bridge::start("Short-v0", 1, &python).unwrap();
    let message = refusal(short.reset(0, &mut [0.0; 3]));
    assert!(message.contains("reset failed: ValueError: an observation of 8 bytes where "), "{message}");
}

#[test]
fn malformed_answers_are_reported() {
    let Some(python) = python() else { return };
    let mut scribbles = started("Scribbles-v0", &python);
    assert_eq!(
        refusal(step(&mut scribbles, &[0])),
        "gym:Scribbles-v0: malformed answer from Python during a step: \"not a frame at all\""
    );
    let other = Python { interpreter: "echo".into(), ..python };
    let message = refusal(Bridge::start("Count-v0", 1, &other));
    assert!(
        message.starts_with("gym:Count-v0: malformed answer from Python during its start: "),
        "{message}"
    );
}

#[test]
fn an_environment_that_hangs_is_stopped() {
    let Some(python) = python() else { return };
    let impatient = |milliseconds| Python { timeout: Duration::from_millis(milliseconds), ..python.clone() };
    let message = refusal(Bridge::start("StuckStart-v0", 1, &impatient(200)));
    assert_eq!(
        message,
        "gym:StuckStart-v0: stopped after 0.2 s without an answer during its start; --env-timeout or PLAINRL_ENV_TIMEOUT allows more"
    );
    // Python itself must start within this.
    let mut bridge = started("Stuck-v0", &impatient(5000));
    let message = refusal(step(&mut bridge, &[0]));
    assert!(
        message.starts_with("gym:Stuck-v0: stopped after 5 s without an answer during a step; "),
        "{message}"
    );
    assert_eq!(refusal(bridge.snapshot()), message, "it stays ended");
}

/// Starts this program again to run the ignored test `name` alone, with the stand-in and with
/// `variables` in its environment; its standard error is a pipe.
fn run_again(name: &str, variables: &[(&str, &str)]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("PYTHONPATH", modules())
        .env("BRIDGE_TEST", "1")
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Whether [`run_again`] started this program.
fn is_run_again() -> bool {
    std::env::var_os("BRIDGE_TEST").is_some()
}

fn assert_success(mut child: Child) {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
}

/// Every process that a run starts shares its standard error, so that its end comes when the
/// last of them has ended.
#[test]
fn no_process_outlives_the_program() {
    if python().is_none() {
        return;
    }
    for (ending, kill) in [("killed", true), ("panic", false), ("exit", false), ("drop", false)] {
        let mut child = run_again("run_with_an_environment", &[("ENDING", ending)]);
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        if kill {
            let stuck = (&mut stderr).lines().any(|line| line.unwrap() == "stuck");
            assert!(stuck, "the environment never began to hang");
            child.kill().unwrap();
        }
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(stderr.read_to_end(&mut Vec::new()).is_ok()));
        let ended = receiver.recv_timeout(PATIENCE);
        assert_eq!(ended, Ok(true), "{ending}: a process is left behind");
        let status = child.wait().unwrap();
        assert_eq!(status.success(), ending == "drop", "{ending}: {status}");
    }
}

#[test]
#[ignore = "run by no_process_outlives_the_program"]
fn run_with_an_environment() {
    let Ok(ending) = std::env::var("ENDING") else { return };
    let id = if ending == "killed" { "Stuck-v0" } else { "Count-v0" };
    let mut bridge = Bridge::new(id, 1).unwrap();
    bridge.reset(0, &mut [0.0; 3]).unwrap();
    step(&mut bridge, &[0]).unwrap();
    match ending.as_str() {
        "panic" => panic!("on purpose"),
        "exit" => std::process::exit(9), // nothing is dropped
        _ => {}
    }
}

#[test]
fn vec_env_runs_a_bridge() {
    if python().is_some() {
        assert_success(run_again("run_a_vec_env", &[]));
    }
}

#[test]
#[ignore = "run by vec_env_runs_a_bridge"]
fn run_a_vec_env() {
    if !is_run_again() {
        return;
    }
    let mut envs = VecEnv::make("gym:Count-v0", 2, 7).unwrap();
    assert_eq!(envs.observations(), [70.0, 0.0, 5.0, 80.0, 0.0, 5.0]);
    (0..3).for_each(|_| envs.step(&[1, 2]).unwrap());
    let snapshot = envs.snapshot().unwrap();
    let finish = |envs: &mut VecEnv| {
        envs.step(&[1, 2]).unwrap();
        assert_eq!(envs.observations(), [71.0, 0.0, 5.0, 81.0, 0.0, 5.0]);
        assert_eq!(envs.final_observations(), [70.0, 4.0, 6.0, 80.0, 4.0, 7.0]);
        assert_eq!((envs.terminated(), envs.truncated()), (&[true, true][..], &[false, false][..]));
        let episode = |env| Episode { env, episodic_return: 10.5, length: 4 };
        assert_eq!(envs.episodes(), [episode(0), episode(1)]);
    };
    finish(&mut envs);
    envs.restore(&snapshot).unwrap();
    finish(&mut envs);
    let mut other = VecEnv::make("gym:Count-v0", 2, 1).unwrap();
    other.restore(&snapshot).unwrap();
    finish(&mut other);
    assert_eq!(
        refusal(other.step(&[1, 3])),
        "gym:Count-v0: action 3 is not in Discrete(3)",
        "checked before Python sees it"
    );
    let spec = envs::make("gym:Count-v0").unwrap().spec().clone();
    assert_eq!(&spec, other.spec());
}

#[test]
fn the_variables_are_read() {
    let variables = [("PLAINRL_PYTHON", "python-of-mine"), ("PLAINRL_ENV_TIMEOUT", "7.5")];
    assert_success(run_again("read_the_variables", &variables));
}

#[test]
#[ignore = "run by the_variables_are_read"]
fn read_the_variables() {
    if !is_run_again() {
        return;
    }
    let read = || Python::from_env().unwrap();
    let timeout = Duration::from_millis(7500);
    assert_eq!(read(), Python { interpreter: "python-of-mine".into(), module_paths: vec![], timeout });
    let message = refusal(Bridge::new("Count-v0", 1));
    assert!(message.contains("cannot run Python as python-of-mine: "), "{message}");
    gymnasium::set_timeout(Duration::from_secs(9));
    assert_eq!(read().timeout, Duration::from_secs(9), "the flag comes before the variable");
}
