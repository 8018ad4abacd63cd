//! What ridge regression needs to know of its examples: sums over their random features φ, in f64.
//!
//! ```text
//! G = Σ φ φᵀ over all examples (M, M),   S_c = Σ φ over those of class c (M)
//! ```
//!
//! Both are additive: that of several tasks is the sum of theirs, in any order, and a task that is left out has never been
//! there. Of G the lower triangle is kept.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::{Llt, Solve as _};
use faer::reborrow::ReborrowMut as _;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use rayon::prelude::*;

/// The largest triangle that is not cut into two and a square.
const BLOCK: usize = 256;

/// Most columns that one thread solves for at a time.
const COLUMNS: usize = 64;

/// Examples whose φ is held in f64 at a time.
const CHUNK: usize = 256;

/// G and S.
#[derive(Debug, Clone)]
pub struct Gram {
    /// M.
    size: usize,
    /// The lower triangle of G, row by row.
    packed: Vec<f64>,
    /// S_c one after another, in column order.
    sums: Vec<f64>,
}

impl Gram {
    /// Of classes from their φ, each (n, M).
    pub(super) fn of(classes: &[Tensor], size: usize) -> Result<Self> {
        let mut square = Mat::<f64>::zeros(size, size);
        let mut sums = Vec::with_capacity(classes.len() * size);
        // Each pass over G costs as much as some hundred examples do, so that small classes share one.
        let mut chunk = vec![0.0; CHUNK * size];
        let mut filled = 0;
        for class in classes {
            let mut sum = vec![0.0; size];
            let count = class.dim(0)?;
            let mut done = 0;
            while done < count {
                let taken = (CHUNK - filled).min(count - done);
                let rows = class.narrow(0, done, taken)?.flatten_all()?.to_vec1::<f32>()?;
                let columns = chunk.par_chunks_exact_mut(CHUNK).zip(&mut sum).enumerate();
                columns.for_each(|(column, (values, sum))| {
                    let rows = rows.iter().skip(column).step_by(size).copied();
                    for (place, value) in values[filled..].iter_mut().zip(rows.map(f64::from)) {
                        *sum += value;
                        *place = value;
                    }
                });
                done += taken;
                filled += taken;
                if filled == CHUNK {
                    let rows = MatRef::from_column_major_slice(&chunk, CHUNK, size);
                    add_products(square.as_mut(), rows);
                    filled = 0;
                }
            }
            sums.extend(sum);
        }
        let rows = MatRef::from_column_major_slice(&chunk, CHUNK, size);
        add_products(square.as_mut(), rows.subrows(0, filled));
        let packed = (0..size).flat_map(|row| (0..=row).map(move |column| (row, column)));
        Ok(Self {
            packed: packed.map(|place| square[place]).collect(),
            size,
            sums,
        })
    }

    /// From its parts, as [`Self::packed`] and [`Self::sums`] give them.
    pub(super) fn unpack(packed: Vec<f64>, sums: &[f64], size: usize) -> Self {
        Self {
            size,
            packed,
            sums: sums.to_vec(),
        }
    }

    /// The lower triangle of G row by row, M(M + 1)/2 values.
    pub(super) fn packed(&self) -> Result<Tensor> {
        Tensor::new(self.packed.as_slice(), &Device::Cpu)
    }

    /// S, (C, M).
    pub(super) fn sums(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.sums, (self.classes(), self.size), &Device::Cpu)
    }

    /// M.
    pub(super) fn random_features(&self) -> usize {
        self.size
    }

    /// C.
    fn classes(&self) -> usize {
        self.sums.len() / self.size.max(1)
    }

    /// Adds that of the next task.
    pub(super) fn merge(&mut self, next: &Self) -> Result<()> {
        if next.size != self.size {
            candle_core::bail!("{} random features after {}", next.size, self.size);
        }
        for (sum, next) in self.packed.iter_mut().zip(&next.packed) {
            *sum += next;
        }
        self.sums.extend_from_slice(&next.sums);
        Ok(())
    }

    /// The mean square of a feature over `examples` examples.
    pub(super) fn mean_square(&self, examples: usize) -> f64 {
        let diagonal = (0..self.size).map(|row| self.packed[row * (row + 3) / 2]);
        diagonal.sum::<f64>() / (examples * self.size).max(1) as f64
    }

    /// Without the sums of the class at `place`. What its examples added to G stays.
    pub(super) fn forget_sums(&mut self, place: usize) {
        let from = place * self.size;
        self.sums.drain(from..from + self.size);
    }

    /// (G + λ I)⁻¹ S.
    ///
    /// # Errors
    /// When λ is too small for G to be told from a singular matrix.
    pub(super) fn solve(&self, lambda: f64) -> Result<Solution> {
        let mut square = Mat::<f64>::zeros(self.size, self.size);
        let mut values = self.packed.iter();
        for row in 0..self.size {
            for (column, value) in (0..=row).zip(&mut values) {
                square[(row, column)] = *value;
            }
            square[(row, row)] += lambda;
        }
        let factor = square
            .llt(Side::Lower)
            .map_err(|error| candle_core::Error::msg(format!("random features are singular: {error:?}")))?;
        drop(square);
        let mut weights = MatRef::from_column_major_slice(&self.sums, self.size, self.classes()).to_owned();
        solve_columns(&factor, weights.as_mut());
        Ok(Solution { factor, weights })
    }
}

/// Adds Φᵀ Φ of rows Φ (n, M) to the lower triangle of `square`, on the threads of the pool that it is called in. Cut the same
/// way whatever their number, so that it does not matter.
fn add_products(mut square: MatMut<'_, f64>, rows: MatRef<'_, f64>) {
    let size = square.nrows();
    if size <= BLOCK {
        triangular::matmul(
            square,
            BlockStructure::TriangularLower,
            Accum::Add,
            rows.transpose(),
            BlockStructure::Rectangular,
            rows,
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
        return;
    }
    let half = size / 2;
    let (left, right) = rows.split_at_col(half);
    let (upper, _, lower, corner) = square.rb_mut().split_at_mut(half, half);
    rayon::join(
        || rayon::join(|| add_products(upper, left), || add_products(corner, right)),
        || matmul(lower, Accum::Add, right.transpose(), left, 1.0, Par::Seq),
    );
}

/// Solves for columns in place, on the threads of the pool that it is called in, in the same blocks whatever their number.
fn solve_columns(factor: &Llt<f64>, columns: MatMut<'_, f64>) {
    let count = columns.ncols();
    if count <= COLUMNS {
        factor.solve_in_place(columns);
        return;
    }
    let (left, right) = columns.split_at_col_mut(count / 2);
    rayon::join(|| solve_columns(factor, left), || solve_columns(factor, right));
}

/// The regression of all classes.
pub(super) struct Solution {
    factor: Llt<f64>,
    /// W, (M, C).
    weights: Mat<f64>,
}

impl Solution {
    /// Wᵀ, (C, M), in f64.
    pub(super) fn weights(&self, device: &Device) -> Result<Tensor> {
        let (size, classes) = (self.weights.nrows(), self.weights.ncols());
        let values = (0..classes).flat_map(|column| self.weights.col(column).iter().copied());
        Tensor::from_iter(values, device)?.reshape((classes, size))
    }

    /// What each of some examples would have scored had it alone been left out, (n, C) row by row. Their φ (n, M) is part
    /// of G, and their `columns` of S.
    ///
    /// ```text
    /// h = φᵀ (G + λ I)⁻¹ φ,   left out: (Wᵀ φ − h · onehot) / (1 − h)        Allen 1974
    /// ```
    pub(super) fn left_out(&self, features: &Tensor, columns: &[u32]) -> Result<Vec<f64>> {
        let rows = matrix(features)?;
        let blocks = columns.par_chunks(COLUMNS).enumerate().map(|(block, columns)| {
            let rows = rows.as_ref().subrows(block * COLUMNS, columns.len());
            let inverse = self.factor.solve(rows.transpose());
            let scores = self.weights.transpose() * rows.transpose();
            let mut left_out = Vec::with_capacity(columns.len() * scores.nrows());
            for (row, own) in columns.iter().enumerate() {
                let products = rows.row(row).iter().zip(inverse.col(row).iter());
                let leverage: f64 = products.map(|(a, b)| a * b).sum();
                let left = (1.0 - leverage).max(f64::EPSILON);
                left_out.extend(scores.col(row).iter().enumerate().map(|(column, score)| {
                    let own = if column == *own as usize { leverage } else { 0.0 };
                    (score - own) / left
                }));
            }
            left_out
        });
        Ok(blocks.collect::<Vec<_>>().concat())
    }
}

/// Rows (n, M) in f64.
fn matrix(rows: &Tensor) -> Result<Mat<f64>> {
    let (count, size) = rows.dims2()?;
    let values = rows.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(Mat::from_fn(count, size, |row, column| {
        values[row * size + column]
    }))
}

/// The λ with which examples are predicted best by the others: the least squared error of leaving each out in turn (PRESS,
/// Allen 1974), over powers of √10 times the mean square of a feature. `features` are φ (n, M); at least two examples of a
/// class say something.
///
/// Works on K = Φ Φᵀ = U diag(s) Uᵀ, (n, n), in which the prediction is U diag(s / (s + λ)) Uᵀ Y.
pub(super) fn best_lambda(features: &Tensor, columns: &[u32]) -> Result<f64> {
    let rows = matrix(features)?;
    let count = rows.nrows();
    let kernel = &rows * rows.transpose();
    let trace: f64 = (0..count).map(|i| kernel[(i, i)]).sum();
    let unit = trace / (count * rows.ncols()).max(1) as f64;
    let eigen = kernel
        .self_adjoint_eigen(Side::Lower)
        .map_err(|error| candle_core::Error::msg(format!("eigenvectors of examples: {error:?}")))?;
    // Classes in order of appearance: most columns have no example among these.
    let mut places: HashMap<u32, usize> = HashMap::new();
    let mut sizes = Vec::new();
    let class_of: Vec<usize> = columns
        .iter()
        .map(|column| {
            let place = *places.entry(*column).or_insert_with(|| {
                sizes.push(0_usize);
                sizes.len() - 1
            });
            sizes[place] += 1;
            place
        })
        .collect();
    let classes = sizes.len();
    let onehot = Mat::from_fn(count, classes, |row, class| {
        f64::from(u8::from(class_of[row] == class))
    });
    let turned = eigen.U().transpose() * &onehot;
    let mut best = (f64::INFINITY, unit);
    for step in -4..=10 {
        let lambda = unit * 10_f64.powf(f64::from(step) / 2.0);
        let share = |i: usize| {
            let value = eigen.S()[i].max(0.0);
            value / (value + lambda)
        };
        let shrunk = Mat::from_fn(count, classes, |i, class| share(i) * turned[(i, class)]);
        let predicted = eigen.U() * &shrunk;
        let mut error = 0.0;
        for (row, class) in class_of.iter().enumerate() {
            if sizes[*class] < 2 {
                continue;
            }
            let leverage: f64 = (0..count).map(|i| eigen.U()[(row, i)].powi(2) * share(i)).sum();
            let residuals = (0..classes).map(|class| onehot[(row, class)] - predicted[(row, class)]);
            let squares: f64 = residuals.map(|residual| residual * residual).sum();
            error += squares / (1.0 - leverage).max(f64::EPSILON).powi(2);
        }
        if error > 0.0 && error < best.0 {
            best = (error, lambda);
        }
    }
    Ok(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::rehearsal::tests::features;

    #[test]
    fn products_are_the_same_on_any_number_of_threads() {
        const SIZE: usize = 2 * BLOCK + 37;
        let classes = [features(7, SIZE), features(300, SIZE)];
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let gram = pool.expect("threads").install(|| Gram::of(&classes, SIZE));
            gram.expect("sums").packed
        };
        let found = on(1);
        assert!(found == on(3));
        let all: Vec<Vec<f64>> = classes
            .iter()
            .flat_map(|rows| rows.to_dtype(DType::F64).and_then(|rows| rows.to_vec2()))
            .flatten()
            .collect();
        let places = (0..SIZE).flat_map(|row| (0..=row).map(move |column| (row, column)));
        for ((row, column), found) in places.zip(&found) {
            let expected: f64 = all.iter().map(|values| values[row] * values[column]).sum();
            assert!(
                (found - expected).abs() < 1e-9,
                "{row}, {column}: {found} and {expected}"
            );
        }
    }
}
