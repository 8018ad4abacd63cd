//! What ridge regression needs to know of its examples: sums over their random features φ, in f64.
//!
//! ```text
//! G = Σ φ φᵀ over all examples (M, M),   S_c = Σ φ over those of class c (M)
//! ```
//!
//! Both are additive: that of several tasks is the sum of theirs, in any order, and a task that is left out has never been
//! there. As φ is in whole steps, sums are exact, and the same to the last bit on processors of one kind. Of G the lower triangle
//! is kept.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use clipkeep_towers::RandomFeatures;
use faer::linalg::solvers::DenseSolveCore as _;
use faer::{Mat, MatMut, MatRef, Side};
use rayon::prelude::*;

use super::cholesky::{Cholesky, add_products};
use super::host::read;

/// Examples that one thread leaves out at a time.
const ROWS: usize = 128;

/// Columns that are transposed at a time.
const SIDE: usize = 8;

/// The powers of √10 among which λ is chosen.
const POWERS: RangeInclusive<i32> = -4..=10;

/// G and S.
#[derive(Debug, Clone)]
pub struct Gram {
    /// M.
    size: usize,
    /// The lower triangle of G, row by row. Versions share it.
    packed: Arc<Vec<f64>>,
    /// S_c one after another, in column order.
    sums: Vec<f64>,
}

impl Gram {
    /// Of the examples of classes, (n, D) each, there being at least one class.
    pub(super) fn of(classes: &[Tensor], features: &RandomFeatures) -> Result<Self> {
        let counts = classes.iter().map(|class| class.dim(0));
        let counts = counts.collect::<Result<Vec<_>>>()?.into_iter().enumerate();
        let class_of = counts.flat_map(|(class, count)| std::iter::repeat_n(class, count));
        let class_of: Vec<usize> = class_of.collect();
        let size = features.size();
        let mut packed = vec![0.0; size * (size + 1) / 2];
        let mut sums = vec![0.0; classes.len() * size];
        let rows = Tensor::cat(classes, 0)?.to_device(&Device::Cpu)?;
        read(&rows.contiguous()?, |rows| {
            features.add(rows, &class_of, &mut packed, &mut sums);
            Ok(())
        })?;
        Ok(Self {
            size,
            packed: Arc::new(packed),
            sums,
        })
    }

    /// From its parts, as [`Self::packed`] and [`Self::sums`] give them.
    pub(super) fn unpack(packed: Vec<f64>, sums: &[f64], size: usize) -> Self {
        Self {
            size,
            packed: Arc::new(packed),
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
        let pairs = Arc::make_mut(&mut self.packed)
            .par_iter_mut()
            .zip(next.packed.par_iter());
        pairs.for_each(|(sum, next)| *sum += next);
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
        let rows = square.par_chunks_exact_mut(self.size).enumerate();
        rows.for_each(|(row, values)| {
            values[..=row].copy_from_slice(&self.packed[row * (row + 1) / 2..][..=row]);
            values[row] += lambda;
        });
        let factor = Cholesky::of(square, self.size)
            .map_err(|error| error.context("λ is too small for these random features"))?;
        let mut weights = self.sums.clone();
        factor.solve(MatMut::from_column_major_slice_mut(
            &mut weights,
            self.size,
            self.classes(),
        ));
        Ok(Solution {
            factor,
            weights,
            classes: self.classes(),
        })
    }
}

/// The regression of all classes.
pub(super) struct Solution {
    factor: Cholesky,
    /// W, (C, M) row by row.
    weights: Vec<f64>,
    /// C.
    classes: usize,
}

impl Solution {
    /// W, (C, M), in f64.
    pub(super) fn weights(&self, device: &Device) -> Result<Tensor> {
        let size = self.weights.len() / self.classes.max(1);
        Tensor::from_slice(&self.weights, (self.classes, size), device)
    }

    /// What each of some examples would have scored had it alone been left out, (n, C) row by row. Their φ (n, M) is part
    /// of G, and their `columns` of S.
    ///
    /// ```text
    /// left out: (W φ − h · onehot) / (1 − h),   h = φᵀ (G + λ I)⁻¹ φ = ‖L⁻¹ φ‖²,   L Lᵀ = G + λ I        Allen 1974
    /// ```
    pub(super) fn left_out(&self, features: &Tensor, columns: &[u32]) -> Result<Vec<f64>> {
        let size = features.dim(1)?;
        let rows = doubles(features)?;
        let weights = MatRef::from_row_major_slice(&self.weights, self.classes, size);
        let blocks = columns.par_chunks(ROWS).zip(rows.par_chunks(ROWS * size));
        let blocks = blocks.map(|(columns, rows)| {
            let features = MatRef::from_row_major_slice(rows, columns.len(), size);
            let scores = weights * features.transpose();
            let mut halves = transposed(rows, size);
            let view = MatMut::from_row_major_slice_mut(&mut halves, size, columns.len());
            self.factor.solve_half(view);
            let mut leverages = vec![0.0; columns.len()];
            for values in halves.chunks_exact(columns.len()) {
                let pairs = leverages.iter_mut().zip(values);
                pairs.for_each(|(sum, value)| *sum += value * value);
            }
            let mut left_out = Vec::with_capacity(columns.len() * self.classes);
            for (row, (own, leverage)) in columns.iter().zip(leverages).enumerate() {
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

/// All values row by row, in f64.
pub(super) fn doubles(rows: &Tensor) -> Result<Vec<f64>> {
    rows.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Columns of rows of `width` values, one after another.
fn transposed(rows: &[f64], width: usize) -> Vec<f64> {
    let count = rows.len() / width;
    let mut columns = vec![0.0; rows.len()];
    // So few columns at a time that the lines of the cache that they are read from stay there.
    let parts = columns.par_chunks_mut((SIDE * count).max(1)).enumerate();
    parts.for_each(|(part, columns)| {
        for (place, row) in rows.chunks_exact(width).enumerate() {
            let places = columns[place..].iter_mut().step_by(count);
            places.zip(&row[part * SIDE..]).for_each(|(to, from)| *to = *from);
        }
    });
    columns
}

/// The λ with which examples are predicted best by the others: the least squared error of leaving each out in turn (PRESS,
/// Allen 1974), over powers of √10 times the mean square of a feature. `features` are φ (n, M); at least two examples of a
/// class say something.
///
/// Every other power is tried, and then those beside the best: of an error with two low points the narrower may be missed.
///
/// ```text
/// B = (Φ Φᵀ + λ I)⁻¹, (n, n),   error of example i: Σ_c ((B Y)_ic / B_ii)²,   Y one-hot (n, C)
/// ```
pub(super) fn best_lambda(features: &Tensor, columns: &[u32]) -> Result<f64> {
    let (count, size) = features.dims2()?;
    let rows = doubles(features)?;
    let rows = MatRef::from_row_major_slice(&rows, count, size);
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
    let least = |powers: Vec<i32>| {
        let lambdas = powers.into_par_iter().filter(|power| POWERS.contains(power));
        let lambdas = lambdas.map(|power| (power, unit * 10_f64.powf(f64::from(power) / 2.0)));
        let errors = lambdas.filter_map(|(power, lambda)| Some((error(lambda)?, power, lambda)));
        errors.min_by(|(a, ..), (b, ..)| a.total_cmp(b))
    };
    let Some((error, power, lambda)) = least(POWERS.step_by(2).collect()) else {
        return Ok(unit);
    };
    let finer = least(vec![power - 1, power + 1]).filter(|(finer, ..)| *finer < error);
    Ok(finer.map_or(lambda, |(.., lambda)| lambda))
}

#[cfg(test)]
pub(super) mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::adapter::embedding::normalise;
    use crate::adapter::rehearsal::tests::features;
    use crate::adapter::ridge::{Ridge, gram, random_features, whole_features};

    /// The sums over φ (n, M) of classes, in the plainest way.
    pub(in crate::adapter) fn plain(classes: &[Tensor]) -> Result<Gram> {
        let size = classes[0].dim(1)?;
        let mut packed = vec![0.0; size * (size + 1) / 2];
        let mut sums = vec![0.0; classes.len() * size];
        for (rows, sums) in classes.iter().zip(sums.chunks_exact_mut(size)) {
            for row in rows.to_dtype(DType::F64)?.to_vec2::<f64>()? {
                let places = (0..size).flat_map(|i| (0..=i).map(move |j| (i, j)));
                packed
                    .iter_mut()
                    .zip(places)
                    .for_each(|(sum, (i, j))| *sum += row[i] * row[j]);
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        Ok(Gram::unpack(packed, &sums, size))
    }

    #[test]
    fn sums_are_those_of_whole_features_to_the_last_bit() -> Result<()> {
        const SIZE: usize = 37;
        let projection = Ridge::draw(SIZE, 9, &mut ChaCha8Rng::seed_from_u64(4), &Device::Cpu)?;
        let classes = [(0, 7), (7, 1), (8, 600)].map(|(start, count)| {
            let rows = normalise(&features(608, 9)).and_then(|rows| rows.narrow(0, start, count));
            rows.expect("rows")
        });
        let whole = classes
            .clone()
            .map(|rows| whole_features(&rows, &projection).expect("features"));
        let (found, expected) = (gram(&classes, &projection)?, plain(&whole)?);
        assert!(found.packed == expected.packed && found.sums == expected.sums);
        let near = (&whole[2] - random_features(&classes[2], &projection)?)?;
        assert!(near.abs()?.max_all()?.to_scalar::<f32>()? < 1.0 / 256.0);

        let [a, b, c] = classes.map(|class| gram(&[class], &projection).expect("sums"));
        for others in [[&b, &c], [&c, &b]] {
            let mut sum = a.clone();
            others.iter().try_for_each(|other| sum.merge(other))?;
            assert!(sum.packed == found.packed, "in any order");
        }
        Ok(())
    }

    /// The squared error of leaving each row (n, M) out in turn, with this λ.
    fn error_left_out(rows: &Tensor, columns: &[u32], lambda: f64) -> Result<f64> {
        let values = rows.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let all = 0..columns.len();
        let left_out = all.clone().map(|out| {
            let of_class = |class: u32| {
                let rest = all.clone().filter(|row| *row != out && columns[*row] == class);
                let rest: Vec<u32> = rest.map(|row| row as u32).collect();
                rows.index_select(&Tensor::new(rest, &Device::Cpu)?, 0)
            };
            let classes: Vec<Tensor> = (0..4).map(of_class).collect::<Result<_>>()?;
            let weights = plain(&classes)?.solve(lambda)?.weights(&Device::Cpu)?;
            let squares = (0_u32..).zip(weights.to_vec2::<f64>()?).map(|(class, weights)| {
                let score: f64 = weights.iter().zip(&values[out]).map(|(a, b)| a * b).sum();
                (score - f64::from(u8::from(class == columns[out]))).powi(2)
            });
            Ok(squares.sum::<f64>())
        });
        left_out.sum()
    }

    #[test]
    fn the_best_lambda_is_that_of_leaving_out_one_by_one() -> Result<()> {
        const COUNT: usize = 30;
        let noise = features(COUNT, 12);
        let columns: Vec<u32> = (0..COUNT as u32).map(|row| row % 4).collect();
        let own: Vec<f32> = columns.iter().map(|column| *column as f32).collect();
        let own = Tensor::from_vec(own, (COUNT, 1), &Device::Cpu)?;
        let mut powers = Vec::new();
        for clear in [0.0, 1.0, 3.0, 10.0, 100.0] {
            let rows = noise.broadcast_add(&(&own * clear)?)?;
            let found = best_lambda(&rows, &columns)?;
            let unit = rows.sqr()?.mean_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            let tried = POWERS.map(|power| {
                let lambda = unit * 10_f64.powf(f64::from(power) / 2.0);
                Ok((power, lambda, error_left_out(&rows, &columns, lambda)?))
            });
            let tried: Vec<(i32, f64, f64)> = tried.collect::<Result<_>>()?;
            let best = tried.iter().min_by(|(.., a), (.., b)| a.total_cmp(b));
            let (power, expected, _) = best.expect("some were tried");
            assert!(
                (found / expected - 1.0).abs() < 1e-4,
                "{clear}: {found} of {tried:?}"
            );
            powers.push(*power);
        }
        for rest in [0, 1] {
            assert!(
                powers.iter().any(|power| power.rem_euclid(2) == rest),
                "{powers:?}"
            );
        }
        Ok(())
    }
}
