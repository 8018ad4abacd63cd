//! Cholesky's decomposition of a large symmetric matrix, and sums of products for one, on the threads of the pool that they
//! are called in.
//!
//! Work is cut into the same blocks whatever the number of threads, so that it does not matter. Matrices lie row by row, of
//! which the lower triangle counts.

use candle_core::{Error, Result};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::reborrow::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par, Spec};

/// The largest triangle that is not cut into two and a square.
const BLOCK: usize = 128;

/// Most columns that one thread solves for at a time.
const COLUMNS: usize = 256;

/// L of a positive definite matrix A = L Lᵀ.
pub(super) struct Cholesky {
    size: usize,
    /// Row by row; what is above the diagonal means nothing.
    lower: Vec<f64>,
}

impl Cholesky {
    /// Of A (n, n), row by row.
    ///
    /// # Errors
    /// When A cannot be told from a singular matrix.
    pub(super) fn of(mut matrix: Vec<f64>, size: usize) -> Result<Self> {
        factor(MatMut::from_row_major_slice_mut(&mut matrix, size, size))?;
        Ok(Self { size, lower: matrix })
    }

    fn lower(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.lower, self.size, self.size)
    }

    /// A⁻¹ X of columns X (n, k), in place.
    pub(super) fn solve(&self, mut columns: MatMut<'_, f64>) {
        forward(self.lower(), columns.rb_mut());
        backward(self.lower(), columns);
    }

    /// L⁻¹ X of columns X (n, k), in place.
    pub(super) fn solve_half(&self, columns: MatMut<'_, f64>) {
        forward(self.lower(), columns);
    }
}

/// Adds `share` · Xᵀ X of rows X (n, M) to the lower triangle of `sum` (M, M).
pub(super) fn add_products(mut sum: MatMut<'_, f64>, rows: MatRef<'_, f64>, share: f64) {
    let size = sum.nrows();
    if size <= BLOCK {
        return triangular::matmul(
            sum,
            BlockStructure::TriangularLower,
            Accum::Add,
            rows.transpose(),
            BlockStructure::Rectangular,
            rows,
            BlockStructure::Rectangular,
            share,
            Par::Seq,
        );
    }
    let half = size / 2;
    let (left, right) = rows.split_at_col(half);
    let (upper, _, lower, corner) = sum.rb_mut().split_at_mut(half, half);
    rayon::join(
        || {
            rayon::join(
                || add_products(upper, left, share),
                || add_products(corner, right, share),
            )
        },
        || matmul(lower, Accum::Add, right.transpose(), left, share, Par::Seq),
    );
}

/// Replaces the lower triangle of A by L:
///
/// ```text
/// A = │A₁₁    │   L₁₁ L₁₁ᵀ = A₁₁,   L₂₁ = A₂₁ L₁₁⁻ᵀ,   L₂₂ L₂₂ᵀ = A₂₂ − L₂₁ L₂₁ᵀ
///     │A₂₁ A₂₂│
/// ```
fn factor(mut matrix: MatMut<'_, f64>) -> Result<()> {
    let size = matrix.nrows();
    if size <= BLOCK {
        let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(size, Par::Seq, Spec::default()));
        let stack = MemStack::new(&mut memory);
        let done = cholesky_in_place(
            matrix,
            LltRegularization::default(),
            Par::Seq,
            stack,
            Spec::default(),
        );
        return match done {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::msg(format!("a singular matrix: {error:?}"))),
        };
    }
    let (mut upper, _, mut lower, mut corner) = matrix.rb_mut().split_at_mut(size / 2, size / 2);
    factor(upper.rb_mut())?;
    forward(upper.as_ref(), lower.rb_mut().transpose_mut());
    add_products(corner.rb_mut(), lower.as_ref().transpose(), -1.0);
    factor(corner)
}

/// L⁻¹ X, in place.
fn forward(lower: MatRef<'_, f64>, columns: MatMut<'_, f64>) {
    in_blocks(columns, &|columns| {
        solve_lower_triangular_in_place(lower, columns, Par::Seq);
    });
}

/// L⁻ᵀ X, in place.
fn backward(lower: MatRef<'_, f64>, columns: MatMut<'_, f64>) {
    in_blocks(columns, &|columns| {
        solve_upper_triangular_in_place(lower.transpose(), columns, Par::Seq);
    });
}

fn in_blocks(columns: MatMut<'_, f64>, solve: &(impl Fn(MatMut<'_, f64>) + Sync)) {
    let count = columns.ncols();
    if count <= COLUMNS {
        return solve(columns);
    }
    let (left, right) = columns.split_at_col_mut(count / 2);
    rayon::join(|| in_blocks(left, solve), || in_blocks(right, solve));
}

#[cfg(test)]
mod tests {
    use faer::Mat;
    use rand::{RngExt as _, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn random(rows: usize, columns: usize) -> Mat<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(rows as u64);
        Mat::from_fn(rows, columns, |_, _| rng.random_range(-1.0..1.0))
    }

    fn on<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads").install(work)
    }

    #[test]
    fn products_and_solutions_are_right_and_the_same_on_any_number_of_threads() {
        for size in [1, 5, BLOCK, 2 * BLOCK + 37] {
            let rows = random(size + 9, size);
            let wanted = random(size, COLUMNS + 3);
            let solve = || {
                let mut matrix = vec![0.0; size * size];
                let square = MatMut::from_row_major_slice_mut(&mut matrix, size, size);
                add_products(square, rows.as_ref(), 2.0);
                let products = matrix.clone();
                let cholesky = Cholesky::of(matrix, size).expect("decomposed");
                let mut found = 2.0 * rows.transpose() * &rows * &wanted;
                let mut half = found.clone();
                cholesky.solve(found.as_mut());
                cholesky.solve_half(half.as_mut());
                (products, found, half)
            };
            let (products, found, half) = on(1, solve);
            let expected = 2.0 * rows.transpose() * &rows;
            for row in 0..size {
                for column in 0..=row {
                    let apart = products[row * size + column] - expected[(row, column)];
                    assert!(apart.abs() < 1e-10, "{row}, {column} of {size}");
                }
            }
            assert!((&found - &wanted).norm_max() < 1e-6, "{size}");
            // ‖L⁻¹ A w‖² = wᵀ A w
            let squares = wanted.transpose() * &expected * &wanted;
            for column in 0..wanted.ncols() {
                let square = half.col(column).squared_norm_l2();
                let apart = square - squares[(column, column)];
                assert!(apart.abs() < 1e-9 * square.max(1.0), "{column} of {size}");
            }
            assert!((products, found, half) == on(3, solve));
        }
    }

    #[test]
    fn a_singular_matrix_is_an_error() {
        let size = BLOCK + 3;
        assert!(Cholesky::of(vec![0.0; size * size], size).is_err());
    }
}
