//! What ranks promise, as threads and as processes of MPI.
//!
//! `cargo test -p common --features mpi --test dist` runs both; the tests of MPI are ignored
//! without the feature, and say that they were skipped where there is no `mpirun`.

use anyhow::{Result, bail, ensure};
use common::dist::{World, launch};
use common::envs::InvalidInput;
use std::sync::Mutex;

/// Every operation once, each checked against what it must give. Returns what rounding could tell
/// apart: a sum.
fn collectives(world: &World) -> Result<Vec<f32>> {
    let (rank, size) = (world.rank(), world.size());

    // Around a ring, twice, in order; even ranks send first.
    let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
    if size > 1 {
        for round in 0..2_u32 {
            let message = (round, vec![rank as f32; 100_000]);
            if rank.is_multiple_of(2) {
                world.send(next, &message)?;
            }
            let (from_round, values): (u32, Vec<f32>) = world.receive(previous)?;
            ensure!(from_round == round && values == vec![previous as f32; 100_000], "ring");
            if !rank.is_multiple_of(2) {
                world.send(next, &message)?;
            }
        }
    }

    let mut text = format!("from rank {rank}");
    world.broadcast(&mut text)?;
    ensure!(text == "from rank 0", "broadcast: {text}");

    let gathered = world.all_gather((rank, "x".repeat(rank)))?;
    let expected: Vec<(usize, String)> = (0..size).map(|rank| (rank, "x".repeat(rank))).collect();
    ensure!(gathered == expected, "all_gather: {gathered:?}");

    // Large enough that MPI makes a sender wait for its receiver.
    let to_each = (0..size).map(|to| vec![10 * rank + to; 20_000]).collect();
    let received = world.all_to_all(to_each)?;
    let expected: Vec<_> = (0..size).map(|from| vec![10 * from + rank; 20_000]).collect();
    ensure!(received == expected, "all_to_all: something else came");
    let error = world.all_to_all(vec![0; size + 1]).err().map(|error| error.to_string());
    ensure!(error == Some(format!("{} values for {size} ranks", size + 1)), "all_to_all: {error:?}");

    let mut whole = vec![rank as f32, 1.0];
    world.all_reduce_sum(&mut whole)?;
    ensure!(whole == [(size * (size - 1) / 2) as f32, size as f32], "all_reduce_sum: {whole:?}");

    let mut rounded: Vec<f32> = (1..=1000).map(|i| ((rank + 1) as f32 / i as f32).sin()).collect();
    world.all_reduce_sum(&mut rounded)?;
    let everyones = world.all_gather(rounded.clone())?;
    ensure!(everyones.iter().all(|other| *other == rounded), "all_reduce_sum: ranks disagree");
    Ok(rounded)
}

/// The job of the tests below, `what` being one of its arms; see `rank_program` for processes.
fn job(what: &str, world: &World) -> Result<()> {
    match what {
        "collectives" => {
            let sum = collectives(world)?;
            if world.rank() == 0 {
                println!("SUM {:?}", sum.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            }
        }
        // Rank 2 fails while all others wait: for it, for each other, or for ever.
        "error" if world.rank() == 2 => bail!("the cable is cut"),
        "panic" if world.rank() == 2 => panic!("the cable is cut"),
        _ => drop(world.all_gather(world.rank())?),
    }
    Ok(())
}

#[test]
fn collectives_of_threads() {
    for workers in [1, 2, 3, 4, 5, 8] {
        let sums = Mutex::new(Vec::new());
        launch(workers, |world| {
            let sum = collectives(world)?;
            sums.lock().unwrap().push(sum);
            Ok(())
        })
        .unwrap();
        let sums = sums.into_inner().unwrap();
        assert!(sums.len() == workers && sums.iter().all(|sum| *sum == sums[0]));
    }
}

#[test]
fn a_sum_does_not_depend_on_which_rank_is_faster() {
    let sums = || {
        let sum = Mutex::new(Vec::new());
        launch(5, |world| {
            let rounded = collectives(world)?;
            *sum.lock().unwrap() = rounded;
            Ok(())
        })
        .unwrap();
        sum.into_inner().unwrap()
    };
    let first = sums();
    assert!((0..20).all(|_| sums() == first));
}

#[test]
fn an_error_on_one_thread_is_the_error_of_all() {
    let error = launch(4, |world| job("error", world)).unwrap_err();
    assert_eq!(error.to_string(), "the cable is cut");
}

#[test]
fn a_panic_on_one_thread_is_passed_on() {
    let panic = std::panic::catch_unwind(|| launch(4, |world| job("panic", world))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the cable is cut"));
}

#[test]
fn a_rank_that_ends_early_is_not_waited_for() {
    let error = launch(3, |world| if world.rank() == 1 { Ok(()) } else { job("gather", world) }).unwrap_err();
    assert_eq!(error.to_string(), "rank 1 ended while another waited for it");
}

#[test]
fn messages_and_sums_that_do_not_match_are_refused() {
    let two_types = |world: &World| match world.rank() {
        0 => world.send(1, &vec![1.5_f32; 3]),
        _ => world.receive::<Vec<String>>(0).map(drop),
    };
    let error = launch(2, two_types).unwrap_err().to_string();
    assert!(error.contains("rank 0 sent something else than"), "{error}");

    let error = launch(2, |world| world.all_reduce_sum(&mut vec![0.0; 2 + world.rank()])).unwrap_err();
    assert_eq!(error.to_string(), "sum over ranks: rank 1 gave 3 numbers, not 2");
}

/// This test program under `mpirun`, where every process runs `rank_program` alone.
#[cfg(feature = "mpi")]
mod processes {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Output};

    const WHAT: &str = "DIST_TEST";

    /// Not a test of its own: what each process does that the tests below start.
    #[test]
    #[ignore = "the tests of MPI run it"]
    fn rank_program() {
        let Ok(what) = std::env::var(WHAT) else { return };
        launch(4, |world| job(&what, world)).unwrap();
    }

    /// What four processes did, or `None`, with a line that says so, where there is no `mpirun`.
    fn mpirun(what: &str) -> Option<Output> {
        let program = std::env::current_exe().unwrap();
        // MPI wants the main thread, which runs the tests if there is one thread for them.
        let arguments =
            ["processes::rank_program", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
        let command = Command::new("mpirun")
            .args(["--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "-n", "4"])
            .arg(program)
            .args(arguments)
            .env(WHAT, what)
            .output();
        if let Err(error) = &command {
            // Not `eprintln!`: the test harness swallows what a passing test prints with it.
            let _ = writeln!(std::io::stderr(), "SKIPPED processes: mpirun: {error}");
        }
        command.ok()
    }

    fn text(output: &Output) -> String {
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
    }

    #[test]
    fn collectives_of_processes_equal_those_of_threads_bit_for_bit() {
        let Some(output) = mpirun("collectives") else { return };
        assert!(output.status.success(), "{}", text(&output));
        let sum = Mutex::new(Vec::new());
        launch(4, |world| {
            let rounded = collectives(world)?;
            *sum.lock().unwrap() = rounded;
            Ok(())
        })
        .unwrap();
        let bits: Vec<u32> = sum.into_inner().unwrap().iter().map(|x| x.to_bits()).collect();
        assert!(text(&output).contains(&format!("SUM {bits:?}")), "{}", text(&output));
    }

    #[test]
    fn an_error_in_one_process_ends_all() {
        let Some(output) = mpirun("error") else { return };
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("error: the cable is cut"), "{}", text(&output));
    }

    #[test]
    fn a_panic_in_one_process_ends_all() {
        let Some(output) = mpirun("panic") else { return };
        assert_eq!(output.status.code(), Some(101), "{}", text(&output));
        assert!(text(&output).contains("the cable is cut"), "{}", text(&output));
    }
}

/// Shows in the list of tests what a build without MPI leaves out.
#[cfg(not(feature = "mpi"))]
#[test]
#[ignore = "needs --features mpi"]
fn processes() {}

#[test]
fn more_workers_than_any_machine_has_cores_are_refused() {
    let error = launch(257, |_| -> Result<()> { panic!("a rank was started") }).unwrap_err();
    assert!(error.is::<InvalidInput>());
    assert_eq!(error.to_string(), "--workers 257: at most 256 in one process; mpirun starts more of them");
    launch(256, |_| Ok(())).unwrap();
}
