//! A step of every registered environment, vectorised, with random actions:
//! `cargo bench -p envs --bench envs`. MuJoCo's are left out where it is not installed.

use divan::Bencher;
use divan::counter::ItemsCount;
use envs::{Actions, Result, Space, VecEnv, invalid, registry, rng};
use rand::RngExt;

fn main() {
    divan::main();
}

/// The ids of all environments that can be made here.
fn ids() -> Vec<&'static str> {
    registry().iter().filter(|entry| (entry.make)().is_ok()).map(|entry| entry.id).collect()
}

/// `NUM_ENVS` copies; the items counted are steps, those of each copy.
#[divan::bench(args = ids(), consts = [1, 64])]
fn step<const NUM_ENVS: usize>(bencher: Bencher, id: &str) {
    measure(bencher, id, NUM_ENVS).expect(id);
}

fn measure(bencher: Bencher, id: &str, num_envs: usize) -> Result<()> {
    const CALLS: usize = 256; // for so many calls actions are drawn, then used again
    let mut envs = VecEnv::make(id, num_envs, 1)?;
    let mut rng = rng(1, 1);
    let size = envs.spec().action_space.size();
    let (mut indices, mut numbers) = (Vec::new(), Vec::new());
    for _ in 0..CALLS * num_envs {
        match &envs.spec().action_space {
            Space::Discrete { n } => indices.push(rng.random_range(0..*n as u32)),
            Space::Box { low, high, .. } => {
                numbers.extend(
                    low.iter().zip(high).map(|(low, high)| rng.random_range(low.max(-10.0)..=high.min(10.0))),
                );
            }
            space @ Space::Tuple(_) => return invalid(format!("{id}: no actions are drawn from {space}")),
        }
    }
    let mut call = 0;
    let mut step = || {
        let first = call % CALLS * num_envs;
        call += 1;
        match numbers.is_empty() {
            true => envs.step(Actions::Discrete(&indices[first..first + num_envs])),
            false => envs.step(Actions::Continuous(&numbers[first * size..(first + num_envs) * size])),
        }
    };
    bencher.counter(ItemsCount::new(num_envs)).bench_local(|| step().expect(id));
    Ok(())
}
