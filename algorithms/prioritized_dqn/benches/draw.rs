//! A draw from the sum tree and a change of a priority, which grow with the logarithm of the buffer's
//! size: `cargo bench -p prioritized_dqn --bench draw`.

use common::envs::{Rng, rng};
use divan::{Bencher, black_box};
use program::SumTree;
use rand::RngExt;

// The algorithm is a program and not a library: its file is included whole.
#[allow(dead_code, unused_imports)]
#[path = "../src/main.rs"]
mod program;

fn main() {
    divan::main();
}

/// Numbers of transitions in the buffer.
const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// A full tree of random numbers, their sum, and a generator to draw with.
fn filled(len: usize) -> (SumTree, f64, Rng) {
    let (mut tree, mut total, mut rng) = (SumTree::new(len), 0.0, rng(1, 0));
    for i in 0..len {
        let number = rng.random::<f64>();
        tree.set(i, number);
        total += number;
    }
    (tree, total, rng)
}

#[divan::bench(args = SIZES)]
fn draw(bencher: Bencher, len: usize) {
    let (tree, total, mut rng) = filled(len);
    bencher.bench_local(|| tree.find(black_box(rng.random::<f64>() * total)));
}

#[divan::bench(args = SIZES)]
fn change(bencher: Bencher, len: usize) {
    let (mut tree, _, mut rng) = filled(len);
    bencher.bench_local(|| tree.set(rng.random_range(0..len), black_box(0.5)));
}
