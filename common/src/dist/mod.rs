//! One algorithm on many cores or machines: ranks that pass messages.
//!
//! ```ignore
//! dist::launch(args.workers, |world| train(&args, world))
//! ```
//!
//! runs `train` once on every rank; `world.rank()` tells them apart. The ranks are threads of this
//! process, or, where the program was built with the feature `mpi` and is started by `mpirun`,
//! processes on any number of machines:
//!
//! ```text
//! apt-get install openmpi-bin libopenmpi-dev libclang1-14 libclang-common-14-dev
//! cargo build -p es --features common/mpi
//! mpirun -n 8 target/debug/es --workers 8                                        one machine
//! mpirun -n 64 --hostfile hosts /shared/es --workers 64 --run-dir /shared/run    a cluster
//! ```
//!
//! Building needs libclang, which reads MPI's header; where it is not found, set `LIBCLANG_PATH` to
//! its folder, such as `/usr/lib/llvm-14/lib`. A rank that waits keeps its core busy, unless
//! `mpirun --mca mpi_yield_when_idle 1` lets others have it; use that where ranks share cores.
//!
//! All ranks receive from ranks that they name, and sums are taken in one fixed order, so that
//! nothing depends on which rank is faster: threads and processes give the same bits.
//!
//! Whatever goes wrong on one rank ends them all: [`launch`] returns its error or passes on its
//! panic, and `mpirun` ends with the exit code that the program would have had. A rank notices at
//! its next message. A rank that returns without an error while another still waits for it is a fault
//! of the program: threads end with an error, processes wait for each other forever. Where machines may
//! fail, start it again from its last checkpoint until it is done:
//!
//! ```text
//! RUN=/shared/run; JOB="mpirun -n 64 --hostfile hosts /shared/es --workers 64"
//! $JOB --run-dir $RUN || until $JOB --resume $RUN; do sleep 10; done
//! ```

#[cfg(feature = "mpi")]
mod mpi;
mod threads;

use anyhow::Context;
use envs::{Result, invalid};
use serde::{Serialize, de::DeserializeOwned};

/// Passes messages between ranks. Messages from one rank to another arrive in the order in which
/// they were sent.
trait Link {
    fn send(&self, to: usize, message: Vec<u8>) -> Result<()>;
    fn receive(&self, from: usize) -> Result<Vec<u8>>;
}

/// The ranks of a job, as one of them sees it.
pub struct World {
    rank: usize,
    size: usize,
    link: Box<dyn Link>,
}

impl World {
    /// Which rank this is, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Sends `value` to rank `to`, which must [`World::receive`] the same type. Large messages may
    /// wait for that: two ranks that both send first could wait for each other forever.
    ///
    /// # Errors
    /// Rank `to` is a thread that has ended. With processes this is not noticed here.
    pub fn send<T: Serialize + ?Sized>(&self, to: usize, value: &T) -> Result<()> {
        self.link.send(to, postcard::to_stdvec(value)?)
    }

    /// Waits for the next message from rank `from`.
    ///
    /// # Errors
    /// Rank `from` has ended, or sent another type.
    pub fn receive<T: DeserializeOwned>(&self, from: usize) -> Result<T> {
        let message = self.link.receive(from)?;
        let expected = || format!("rank {from} sent something else than {}", std::any::type_name::<T>());
        let (value, rest) = postcard::take_from_bytes(&message).with_context(expected)?;
        anyhow::ensure!(rest.is_empty(), expected());
        Ok(value)
    }

    /// Gives every rank the `value` of rank 0. All ranks call it.
    pub fn broadcast<T: Serialize + DeserializeOwned>(&self, value: &mut T) -> Result<()> {
        // In round k the ranks below 2ᵏ, which have the value, pass it on to those 2ᵏ above.
        let mut have = 1;
        while have < self.size {
            if self.rank < have && self.rank + have < self.size {
                self.send(self.rank + have, value)?;
            } else if (have..2 * have).contains(&self.rank) {
                *value = self.receive(self.rank - have)?;
            }
            have *= 2;
        }
        Ok(())
    }

    /// Replaces `values`, of the same length on all ranks, by their sum over the ranks, element by
    /// element. The order of the additions depends on the number of ranks alone. All ranks call it.
    ///
    /// # Errors
    /// A rank that has ended or gave another length.
    pub fn all_reduce_sum(&self, values: &mut Vec<f32>) -> Result<()> {
        // In round k the odd multiples of 2ᵏ hand their sums to the even ones below, up to rank 0.
        let mut distance = 1;
        while distance < self.size && self.rank.is_multiple_of(distance) {
            if !self.rank.is_multiple_of(2 * distance) {
                self.send(self.rank - distance, values)?;
            } else if self.rank + distance < self.size {
                let from = self.rank + distance;
                let others: Vec<f32> = self.receive(from)?;
                let (own, len) = (values.len(), others.len());
                anyhow::ensure!(own == len, "sum over ranks: rank {from} gave {len} numbers, not {own}");
                values.iter_mut().zip(others).for_each(|(value, other)| *value += other);
            }
            distance *= 2;
        }
        self.broadcast(values)
    }

    /// The `value` of every rank, in the order of ranks. All ranks call it.
    pub fn all_gather<T: Serialize + DeserializeOwned>(&self, value: T) -> Result<Vec<T>> {
        let mut values = Vec::new();
        if self.rank == 0 {
            values.push(value);
            for rank in 1..self.size {
                values.push(self.receive(rank)?);
            }
        } else {
            self.send(0, &value)?;
        }
        self.broadcast(&mut values)?;
        Ok(values)
    }

    /// Sends `values[r]` to rank r, for each rank, and returns what each rank sent to this one, in the
    /// order of ranks. All ranks call it.
    ///
    /// # Errors
    /// Another number of values than of ranks; a rank that has ended.
    pub fn all_to_all<T: Serialize + DeserializeOwned>(&self, mut values: Vec<T>) -> Result<Vec<T>> {
        anyhow::ensure!(values.len() == self.size, "{} values for {} ranks", values.len(), self.size);
        let mut received = Vec::with_capacity(self.size);
        // One rank sends at a time, so that no two wait for each other.
        for sender in 0..self.size {
            if sender != self.rank {
                received.push(self.receive(sender)?);
                continue;
            }
            for (to, value) in std::mem::take(&mut values).into_iter().enumerate() {
                match to == self.rank {
                    true => received.push(value),
                    false => self.send(to, &value)?,
                }
            }
        }
        Ok(received)
    }
}

/// Most ranks of one process: there is a channel from each to each.
const MAX_THREADS: usize = 256;

/// Runs `job` on every rank and waits for them all. Without `mpirun` that is `workers` threads;
/// with it every process is a rank, and `workers` must say how many they are.
///
/// What a user can get wrong is best checked before, while there is but one thread.
///
/// # Errors
/// The first error of a rank, by which all ranks end; more than 256 threads; a number of processes
/// other than `workers`; processes in a program that was built without the feature `mpi`.
///
/// # Panics
/// A panic on any rank is passed on.
pub fn launch(workers: usize, job: impl Fn(&World) -> Result<()> + Sync) -> Result<()> {
    let processes = processes();
    if processes <= 1 {
        if workers > MAX_THREADS {
            return invalid(format!(
                "--workers {workers}: at most {MAX_THREADS} in one process; mpirun starts more of them"
            ));
        }
        return threads::launch(workers, job);
    }
    if workers != processes {
        return invalid(format!(
            "--workers {workers}: mpirun started {processes} processes; give --workers {processes}"
        ));
    }
    #[cfg(feature = "mpi")]
    return mpi::launch(job);
    #[cfg(not(feature = "mpi"))]
    invalid(format!(
        "mpirun started {processes} processes, but this program knows only threads; build it with --features common/mpi"
    ))
}

/// How many processes `mpirun` started, as it tells each of them; 1 without `mpirun`.
fn processes() -> usize {
    // Open MPI's name; MPICH's, Intel's and Microsoft's.
    let told = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].iter().find_map(|name| std::env::var(name).ok());
    told.and_then(|size| size.parse().ok()).unwrap_or(1)
}
