//! What ridge regression needs to know of its examples: sums over their random features φ, in f64.
//!
//! ```text
//! G = Σ φ φᵀ over all examples (M, M),   S_c = Σ φ over those of class c (M)
//! ```
//!
//! Both are additive: that of several tasks is the sum of theirs, in any order, and a task that is left out has never been
//! there. Of G the lower triangle is kept.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};
use faer::linalg::solvers::DenseSolveCore as _;
use faer::{Mat, MatMut, MatRef, Side};
use rayon::prelude::*;

use super::cholesky::{Cholesky, add_products};

/// Examples whose φ is held in f64 at a time: a pass over G costs as much as some hundred do.
const CHUNK: usize = 256;

/// Columns of f32 that a line of the cache holds.
const LINE: usize = 16;

/// Examples that one thread leaves out at a time.
const ROWS: usize = 128;

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
    /// Of the examples of classes (n, D) each, with what makes φ (n, M) of some; there must be at least one class.
    /// How φ of an example is rounded, in f32, may depend on those before it.
    pub(super) fn of(
        classes: &[Tensor],
        size: usize,
        features: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let examples = Tensor::cat(classes, 0)?;
        let counts = classes.iter().map(|class| class.dim(0));
        let counts = counts.collect::<Result<Vec<_>>>()?.into_iter().enumerate();
        let mut class_of = counts.flat_map(|(class, count)| std::iter::repeat_n(class, count));
        let mut square = vec![0.0; size * size];
        let mut sums = vec![0.0; classes.len() * size];
        let mut columns = vec![0.0; CHUNK * size];
        let all = examples.dim(0)?;
        for start in (0..all).step_by(CHUNK) {
            let count = CHUNK.min(all - start);
            let rows = features(&examples.narrow(0, start, count)?)?;
            let rows = rows.flatten_all()?.to_vec1::<f32>()?;
            columns
                .par_chunks_mut(LINE * CHUNK)
                .enumerate()
                .for_each(|(line, columns)| {
                    for (place, row) in rows.chunks_exact(size).enumerate() {
                        let places = columns[place..].iter_mut().step_by(CHUNK);
                        let values = places.zip(&row[line * LINE..]);
                        values.for_each(|(place, value)| *place = f64::from(*value));
                    }
                });
            let columns = MatRef::from_column_major_slice(&columns, CHUNK, size).subrows(0, count);
            rayon::join(
                || {
                    let square = MatMut::from_row_major_slice_mut(&mut square, size, size);
                    add_products(square, columns, 1.0);
                },
                || {
                    for (row, class) in rows.chunks_exact(size).zip(&mut class_of) {
                        let sum = sums[class * size..].iter_mut().zip(row);
                        sum.for_each(|(sum, value)| *sum += f64::from(*value));
                    }
                },
            );
        }
        let rows = square.chunks_exact(size).enumerate();
        Ok(Self {
            packed: rows.flat_map(|(row, values)| &values[..=row]).copied().collect(),
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
        let mut square = vec![0.0; self.size * self.size];
        let mut packed = self.packed.as_slice();
        for (row, values) in square.chunks_exact_mut(self.size).enumerate() {
            let (known, rest) = packed.split_at(row + 1);
            values[..=row].copy_from_slice(known);
            values[row] += lambda;
            packed = rest;
        }
        let factor = Cholesky::of(square, self.size)
            .map_err(|error| error.context("λ is too small for these random features"))?;
        let mut weights = MatRef::from_column_major_slice(&self.sums, self.size, self.classes()).to_owned();
        factor.solve(weights.as_mut());
        Ok(Solution { factor, weights })
    }
}

/// The regression of all classes.
pub(super) struct Solution {
    factor: Cholesky,
    /// W, (M, C).
    weights: Mat<f64>,
}

impl Solution {
    /// Wᵀ, (C, M), in f64.
    pub(super) fn weights(&self, device: &Device) -> Result<Tensor> {
        let (size, classes) = (self.weights.nrows(), self.weights.ncols());
        let rows: Vec<&[f64]> = (0..classes)
            .map(|class| self.weights.col_as_slice(class))
            .collect();
        Tensor::from_vec(rows.concat(), (classes, size), device)
    }

    /// What each of some examples would have scored had it alone been left out, (n, C) row by row. Their φ (n, M) is part
    /// of G, and their `columns` of S.
    ///
    /// ```text
    /// left out: (Wᵀ φ − h · onehot) / (1 − h),   h = φᵀ (G + λ I)⁻¹ φ = ‖L⁻¹ φ‖²,   L Lᵀ = G + λ I        Allen 1974
    /// ```
    pub(super) fn left_out(&self, features: &Tensor, columns: &[u32]) -> Result<Vec<f64>> {
        let rows = matrix(features)?;
        let blocks = columns.par_chunks(ROWS).enumerate().map(|(block, columns)| {
            let rows = rows.as_ref().subrows(block * ROWS, columns.len());
            let scores = self.weights.transpose() * rows.transpose();
            let mut halves = rows.transpose().to_owned();
            self.factor.solve_half(halves.as_mut());
            let mut left_out = Vec::with_capacity(columns.len() * scores.nrows());
            for (row, own) in columns.iter().enumerate() {
                let leverage = halves.col(row).squared_norm_l2();
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
    Ok(MatRef::from_row_major_slice(&values, count, size).to_owned())
}

/// The λ with which examples are predicted best by the others: the least squared error of leaving each out in turn (PRESS,
/// Allen 1974), over powers of √10 times the mean square of a feature. `features` are φ (n, M); at least two examples of a
/// class say something.
///
/// ```text
/// B = (Φ Φᵀ + λ I)⁻¹, (n, n),   error of example i: Σ_c ((B Y)_ic / B_ii)²,   Y one-hot (n, C)
/// ```
pub(super) fn best_lambda(features: &Tensor, columns: &[u32]) -> Result<f64> {
    let rows = matrix(features)?;
    let count = rows.nrows();
    let mut kernel = Mat::zeros(count, count);
    add_products(kernel.as_mut(), rows.transpose(), 1.0);
    let trace: f64 = (0..count).map(|i| kernel[(i, i)]).sum();
    let unit = trace / (count * rows.ncols()).max(1) as f64;
    let mut classes: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (row, column) in columns.iter().enumerate() {
        classes.entry(*column).or_default().push(row);
    }
    let error = |lambda: f64| {
        let mut square = kernel.clone();
        (0..count).for_each(|i| square[(i, i)] += lambda);
        let inverse = square.llt(Side::Lower).ok()?.inverse();
        let mut squares = vec![0.0; count];
        for of_class in classes.values() {
            let sums = (0..count).map(|row| of_class.iter().map(|own| inverse[(row, *own)]).sum::<f64>());
            squares
                .iter_mut()
                .zip(sums)
                .for_each(|(square, sum)| *square += sum * sum);
        }
        let several = classes.values().filter(|rows| rows.len() > 1).flatten();
        let errors = several.map(|row| squares[*row] / inverse[(*row, *row)].powi(2));
        Some(errors.sum::<f64>()).filter(|error| *error > 0.0)
    };
    let tried: Vec<(f64, Option<f64>)> = (-4..=10)
        .into_par_iter()
        .map(|step| unit * 10_f64.powf(f64::from(step) / 2.0))
        .map(|lambda| (lambda, error(lambda)))
        .collect();
    let found = tried
        .into_iter()
        .filter_map(|(lambda, error)| Some((lambda, error?)));
    let best = found.min_by(|(_, a), (_, b)| a.total_cmp(b));
    Ok(best.map_or(unit, |(lambda, _)| lambda))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::rehearsal::tests::features;

    #[test]
    fn sums_are_those_of_all_examples_whatever_the_chunks() -> Result<()> {
        const SIZE: usize = 2 * LINE + 5;
        let classes = [features(7, SIZE), features(CHUNK, SIZE), features(300, SIZE)];
        let gram = Gram::of(&classes, SIZE, |rows| Ok(rows.clone()))?;
        let rows = classes.iter().map(|rows| rows.to_dtype(DType::F64)?.to_vec2());
        let rows: Vec<Vec<Vec<f64>>> = rows.collect::<Result<_>>()?;
        let all: Vec<&Vec<f64>> = rows.iter().flatten().collect();
        let places = (0..SIZE).flat_map(|row| (0..=row).map(move |column| (row, column)));
        for ((row, column), found) in places.zip(&gram.packed) {
            let expected: f64 = all.iter().map(|values| values[row] * values[column]).sum();
            assert!(
                (found - expected).abs() < 1e-9 * expected.abs().max(1.0),
                "{row}, {column}"
            );
        }
        for (rows, found) in rows.iter().zip(gram.sums.chunks_exact(SIZE)) {
            for (column, found) in found.iter().enumerate() {
                let expected: f64 = rows.iter().map(|values| values[column]).sum();
                assert!((found - expected).abs() < 1e-9 * expected.abs().max(1.0));
            }
        }
        Ok(())
    }

    #[test]
    fn the_best_lambda_is_that_of_leaving_out_one_by_one() -> Result<()> {
        let rows = features(30, 12);
        let columns: Vec<u32> = (0..30).map(|row| row % 4).collect();
        let found = best_lambda(&rows, &columns)?;
        let values = rows.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let unit = values.iter().flatten().map(|value| value * value).sum::<f64>() / 360.0;
        let error = |lambda: f64| -> Result<f64> {
            let left_out = (0..30_u32).map(|out| {
                let of_class = |class: u32| {
                    let rest: Vec<u32> = (0..30).filter(|row| *row != out && row % 4 == class).collect();
                    rows.index_select(&Tensor::new(rest, &Device::Cpu)?, 0)
                };
                let classes: Vec<Tensor> = (0..4).map(of_class).collect::<Result<_>>()?;
                let gram = Gram::of(&classes, 12, |rows| Ok(rows.clone()))?;
                let weights = gram.solve(lambda)?.weights(&Device::Cpu)?.to_vec2::<f64>()?;
                let squares = (0_u32..).zip(&weights).map(|(class, weights)| {
                    let score: f64 = weights
                        .iter()
                        .zip(&values[out as usize])
                        .map(|(a, b)| a * b)
                        .sum();
                    (score - f64::from(u8::from(class == out % 4))).powi(2)
                });
                Ok(squares.sum::<f64>())
            });
            left_out.sum()
        };
        let tried = (-4..=10).map(|step| {
            let lambda = unit * 10_f64.powf(f64::from(step) / 2.0);
            Ok((lambda, error(lambda)?))
        });
        let tried: Vec<(f64, f64)> = tried.collect::<Result<_>>()?;
        let best = tried.iter().min_by(|(_, a), (_, b)| a.total_cmp(b));
        let (expected, _) = best.expect("some were tried");
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} of {tried:?}");
        Ok(())
    }
}
