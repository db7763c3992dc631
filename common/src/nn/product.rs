//! Matrix products that are the same on every x86-64 CPU with AVX2.

use super::parallel;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
#[cfg(target_arch = "x86_64")]
use pulp::{Simd, x86::V3};
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

/// So many elements of a product are few.
const FEW: usize = 256;

/// The product of matrices `[m, k]` and `[k, n]`, or of as many in batches `[batch, m, k]` and
/// `[batch, k, n]`, without a gradient. That of [`Tensor::matmul`] depends in its last bits on how wide the
/// CPU's vectors are.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.device().is_cpu() { a.apply_op2_no_bwd(b, &MatrixProduct) } else { a.matmul(b) }
}

struct MatrixProduct;

impl CustomOp2 for MatrixProduct {
    fn name(&self) -> &'static str {
        "matrix-product"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(a), CpuStorage::F32(b)) = (a, b) else {
            bail!("a matrix product wants f32 tensors");
        };
        let (batch, m, k, n) = match (a_layout.dims(), b_layout.dims()) {
            (&[m, k], &[same, n]) if k == same => (None, m, k, n),
            (&[batch, m, k], &[as_many, same, n]) if (batch, k) == (as_many, same) => (Some(batch), m, k, n),
            (a, b) => bail!("there is no product of matrices {a:?} and {b:?}"),
        };
        let mut out = Vec::with_capacity(batch.unwrap_or(1) * m * n);
        for i in 0..batch.unwrap_or(1) {
            out.extend(product(m, n, k, Matrix::of(a, a_layout, i), Matrix::of(b, b_layout, i)));
        }
        let shape = batch.map_or((m, n).into(), |batch| (batch, m, n).into());
        Ok((CpuStorage::F32(out), shape))
    }
}

/// A matrix in a slice, by its strides.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    row_stride: isize,
    column_stride: isize,
}

impl<'a> Matrix<'a> {
    /// Stored row after row of `columns` values.
    pub(super) fn rows(values: &'a [f32], columns: usize) -> Self {
        Self { values, row_stride: columns as isize, column_stride: 1 }
    }

    /// The transpose of a matrix stored row after row of `rows` values.
    pub(super) fn columns(values: &'a [f32], rows: usize) -> Self {
        Self { values, row_stride: 1, column_stride: rows as isize }
    }

    /// Number `index` of those in a tensor of two dimensions or, in batches, three.
    fn of(values: &'a [f32], layout: &Layout, index: usize) -> Self {
        let stride = layout.stride();
        let (batch, matrix) = stride.split_at(stride.len() - 2);
        let start = layout.start_offset() + index * batch.first().unwrap_or(&0);
        Self { values: &values[start..], row_stride: matrix[0] as isize, column_stride: matrix[1] as isize }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        let last = (rows - 1) * self.row_stride as usize + (columns - 1) * self.column_stride as usize;
        last < self.values.len()
    }
}

/// out += a b, with out `[m, n]` row-major, a `[m, k]`, b `[k, n]`.
pub(super) fn add_product(m: usize, n: usize, k: usize, out: &mut [f32], a: Matrix, b: Matrix) {
    // SAFETY: `out` is a slice, initialised and borrowed by nobody else; `multiply` checks its length.
    unsafe { multiply(m, n, k, out.as_mut_ptr(), out.len(), true, a, b) };
}

/// a b, with a `[m, k]` and b `[k, n]`, as `[m, n]` row-major.
pub(super) fn product(m: usize, n: usize, k: usize, a: Matrix, b: Matrix) -> Vec<f32> {
    if k == 0 {
        return vec![0.0; m * n];
    }
    let len = m.checked_mul(n).expect("a matrix product in memory");
    let mut out: Vec<f32> = Vec::with_capacity(len);
    // SAFETY: the capacity is m n, in memory of its own, and nothing is added to what is there.
    unsafe { multiply(m, n, k, out.as_mut_ptr(), len, false, a, b) };
    // SAFETY: `multiply` has written all of these elements (k > 0).
    unsafe { out.set_len(len) };
    out
}

/// out ← a b, or out ← out + a b where it is to `add`, with out `[m, n]` row-major.
///
/// # Safety
/// `out` is valid for writes of `len` elements, which are initialised where it is to `add`, and
/// overlaps neither a nor b.
#[allow(clippy::too_many_arguments)]
unsafe fn multiply(m: usize, n: usize, k: usize, out: *mut f32, len: usize, add: bool, a: Matrix, b: Matrix) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let len_of_product = m.checked_mul(n);
    assert!(len_of_product == Some(len) && a.holds(m, k) && b.holds(k, n), "matrix product out of bounds");
    // `gemm` sums in the order of k on every such CPU, except where rows of a and columns of b, both without
    // gaps, make few products: there it has as many sums side by side as the CPU's vectors are wide, and
    // with AVX-512 a seed would give another run than without.
    if a.column_stride == 1 && b.row_stride == 1 && (m * n <= FEW || (k > 2 && (m == 1 || n == 1))) {
        // SAFETY: i n + j < m n = len, for which the caller vouches.
        let set = |i: usize, j: usize, sum: f32| unsafe {
            let out = out.add(i * n + j);
            *out = if add { *out + sum } else { sum };
        };
        if dots(m, n, k, a, b, set) {
            return;
        }
    }
    // Smaller products take less time than handing half of them to another thread.
    let parallelism = match parallel::threads() {
        2.. if m * n * k >= 1 << 24 => gemm::Parallelism::Rayon(parallel::threads()),
        _ => gemm::Parallelism::None,
    };
    // Larger ones `gemm` divides along k by the sizes of the CPU's caches, but no parts of 512 or fewer.
    let part = if m > 64 || n > 64 { k.div_ceil(k.div_ceil(512)) } else { k };
    for start in (0..k).step_by(part) {
        // SAFETY: the caller vouches for `out`, and the assertion above keeps every element of a and b
        // that the strides reach inside its slice.
        unsafe {
            gemm::gemm(
                m,
                n,
                part.min(k - start),
                out,
                1,
                n as isize,
                add || start > 0,
                a.values.as_ptr().offset(start as isize * a.column_stride),
                a.column_stride,
                a.row_stride,
                b.values.as_ptr().offset(start as isize * b.row_stride),
                b.column_stride,
                b.row_stride,
                1.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// Calls `set(i, j, Σ_l a_il b_lj)` for each i and j, where a's rows and b's columns have no gaps. The sums
/// are eight side by side, as AVX2 has them, also on a CPU with wider vectors; false where there is no AVX2.
#[cfg(target_arch = "x86_64")]
fn dots(m: usize, n: usize, k: usize, a: Matrix, b: Matrix, set: impl FnMut(usize, usize, f32)) -> bool {
    static AVX2: LazyLock<Option<V3>> = LazyLock::new(V3::try_new);
    AVX2.map(|simd| simd.vectorize(Dots { simd, m, n, k, a, b, set })).is_some()
}

#[cfg(not(target_arch = "x86_64"))]
fn dots(_: usize, _: usize, _: usize, _: Matrix, _: Matrix, _: impl FnMut(usize, usize, f32)) -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
struct Dots<'a, F> {
    simd: V3,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'a>,
    b: Matrix<'a>,
    set: F,
}

#[cfg(target_arch = "x86_64")]
impl<F: FnMut(usize, usize, f32)> pulp::NullaryFnOnce for Dots<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        for i in 0..self.m {
            let row = &self.a.values[i * self.a.row_stride as usize..][..self.k];
            for j in 0..self.n {
                let column = &self.b.values[j * self.b.column_stride as usize..][..self.k];
                let sum = match self.m * self.n {
                    ..=FEW => dot(self.simd, row, column),
                    _ => long_dot(self.simd, row, column),
                };
                (self.set)(i, j, sum);
            }
        }
    }
}

/// Σ x_i y_i, in parts of 1024, which lose less to rounding than one sum.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn dot(simd: V3, x: &[f32], y: &[f32]) -> f32 {
    let mut total = 0.0;
    for (x, y) in x.chunks(1024).zip(y.chunks(1024)) {
        let ((xs, x_rest), (ys, y_rest)) = (V3::as_simd_f32s(x), V3::as_simd_f32s(y));
        let mut sums = simd.splat_f32s(0.0);
        for (x, y) in xs.iter().zip(ys) {
            sums = simd.mul_add_f32s(*x, *y, sums);
        }
        if !x_rest.is_empty() {
            sums = simd.mul_add_f32s(simd.partial_load_f32s(x_rest), simd.partial_load_f32s(y_rest), sums);
        }
        total += simd.reduce_sum_f32s(sums);
    }
    total
}

/// Σ x_i y_i, where there are many such sums: eight times eight side by side.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn long_dot(simd: V3, x: &[f32], y: &[f32]) -> f32 {
    let ((xs, x_rest), (ys, y_rest)) = (V3::as_simd_f32s(x), V3::as_simd_f32s(y));
    let ((x_blocks, xs), (y_blocks, ys)) = (xs.as_chunks::<8>(), ys.as_chunks::<8>());
    let mut sums = [simd.splat_f32s(0.0); 8];
    for (x, y) in x_blocks.iter().zip(y_blocks) {
        for i in 0..8 {
            sums[i] = simd.mul_add_f32s(x[i], y[i], sums[i]);
        }
    }
    for step in [1, 2, 4] {
        for i in (0..8).step_by(2 * step) {
            sums[i] = simd.add_f32s(sums[i], sums[i + step]);
        }
    }
    for (x, y) in xs.iter().zip(ys) {
        sums[0] = simd.mul_add_f32s(*x, *y, sums[0]);
    }
    let lanes: [f32; 8] = pulp::cast(sums[0]);
    let mut total = lanes.into_iter().fold(0.0, |total, lane| total + lane);
    for (x, y) in x_rest.iter().zip(y_rest) {
        total = x.mul_add(*y, total);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Wherever vectors are wider or narrower than eight numbers, the last bits would be others.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn few_products_are_sums_of_eight_lanes() {
        let x: Vec<f32> = (0..100).map(|i| (i * 37 % 101) as f32 / 31.0 - 1.6).collect();
        let y: Vec<f32> = (0..100).map(|i| (i * 53 % 97) as f32 / 29.0 - 1.7).collect();
        let mut lanes = [0.0_f32; 8];
        for (i, (x, y)) in x.iter().zip(&y).enumerate() {
            lanes[i % 8] = x.mul_add(*y, lanes[i % 8]);
        }
        let [a, b, c, d, e, f, g, h] = lanes;
        let expected = ((a + e) + (c + g)) + ((b + f) + (d + h));
        let found = product(1, 1, 100, Matrix::rows(&x, 100), Matrix::columns(&y, 100));
        assert_eq!(found, [expected]);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn more_products_are_sums_of_eight_times_eight_lanes() {
        let x: Vec<f32> = (0..150).map(|i| (i * 37 % 101) as f32 / 31.0 - 1.6).collect();
        let y: Vec<f32> = (0..150).map(|i| (i * 53 % 97) as f32 / 29.0 - 1.7).collect();
        let mut lanes = [[0.0_f32; 8]; 8];
        for i in 0..128 {
            let lane = &mut lanes[i % 64 / 8][i % 8];
            *lane = x[i].mul_add(y[i], *lane);
        }
        let [a, b, c, d, e, f, g, h] = lanes;
        let mut sums: [f32; 8] =
            std::array::from_fn(|i| ((a[i] + b[i]) + (c[i] + d[i])) + ((e[i] + f[i]) + (g[i] + h[i])));
        for i in 128..144 {
            sums[i % 8] = x[i].mul_add(y[i], sums[i % 8]);
        }
        let total = sums.into_iter().fold(0.0, |total, sum| total + sum);
        let expected = (144..150).fold(total, |total, i| x[i].mul_add(y[i], total));
        let rows = x.repeat(257);
        let found = product(257, 1, 150, Matrix::rows(&rows, 150), Matrix::columns(&y, 150));
        assert_eq!(found, [expected; 257]);
    }

    #[test]
    fn products_are_those_of_candle() {
        let random = |shape: &[usize]| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu).unwrap();
        let check = |a: &Tensor, b: &Tensor| {
            let (found, expected) = (matmul(a, b).unwrap(), a.matmul(b).unwrap());
            assert_eq!(found.dims(), expected.dims());
            let difference = (found - expected).unwrap().abs().unwrap().flatten_all().unwrap();
            let greatest = difference.max(0).unwrap().to_scalar::<f32>().unwrap();
            assert!(greatest < 1e-3, "{:?} {:?}: {greatest}", a.dims(), b.dims());
        };
        for (m, n, k) in
            [(1, 1, 1), (1, 1, 3000), (3, 5, 7), (1, 300, 75), (300, 1, 75), (20, 20, 64), (2, 3, 9)]
        {
            check(&random(&[m, k]), &random(&[k, n]));
            check(&random(&[m, k]), &random(&[n, k]).t().unwrap());
            check(&random(&[k, m]).t().unwrap(), &random(&[k, n]));
            check(&random(&[k, m]).t().unwrap(), &random(&[n, k]).t().unwrap());
            check(&random(&[3, m, k]), &random(&[3, k, n]));
            check(&random(&[4, m, k]).narrow(0, 1, 2).unwrap(), &random(&[2, n, k]).transpose(1, 2).unwrap());
        }
        let error = matmul(&random(&[2, 3]), &random(&[4, 2])).unwrap_err().to_string();
        assert!(error.starts_with("there is no product of matrices [2, 3] and [4, 2]"), "{error}");
    }

    /// Where there is something already, products are added to it.
    #[test]
    fn products_are_added() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let mut out = [10.0, 20.0, 30.0, 40.0];
        add_product(2, 2, 2, &mut out, Matrix::rows(&a, 2), Matrix::columns(&b, 2));
        assert_eq!(out, [27.0, 43.0, 69.0, 93.0]);
    }
}
