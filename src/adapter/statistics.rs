//! What is kept of a class instead of its examples: a Gaussian over its embeddings.
//!
//! With few examples the sample covariance is singular and noisy, so it is kept in the form of probabilistic
//! principal components (Tipping & Bishop 1999): the `r` widest directions, and everything else spread evenly.
//!
//! ```text
//! S  = Σ (x − μ)(x − μ)ᵀ / (n − 1)              the sample covariance, eigenvalues λ₁ ≥ λ₂ ≥ …
//! σ² = (tr S − Σ_{i≤r} λᵢ) / D + α · tr S / D + ε
//! Σ̂  = Σ_{i≤r} λᵢ vᵢ vᵢᵀ + σ² I                  what is sampled from: μ + Aᵀ z₁ + σ z₂, rows of A = √λᵢ vᵢ
//! ```
//!
//! α is [`SHRINKAGE`] while n ≤ D and 0 after, when S has full rank. ε is [`FLOOR`].
//! A class needs (r + 1) · D + 1 numbers, whatever the number of its examples, and k · D more where k exemplars are kept.
//! Beside them a task keeps one [`Scatter`], D(D + 1)/2 numbers, where the strategy looks at the spread that all classes
//! share, or one [`Gram`], M(M + 1)/2 + C · M numbers, where it regresses on M random features. Where all rows of classes are
//! kept, n · D more, a class can be taken out of these sums: they are made anew from the rows of the others.
//!
//! What a row is, its strategy says: a unit embedding, or an image's tokens one after another.

mod stored;

use candle_core::{DType, Device, Tensor};
use rand::Rng;
use rayon::prelude::*;

use super::exemplars;
use super::gram::Gram;
use super::host::read;
use super::principal::principal_directions;
use super::ridge;
use super::sample::Sample;
use super::whitening::Scatter;
use crate::domain::Choice;

pub(super) use stored::decode_of;
pub use stored::{decode, encode};

/// Share of the mean variance added to every direction while there are too few examples to span the space.
pub const SHRINKAGE: f64 = 0.5;

/// Variance added to every direction, for embeddings of length 1. The method's 1e-4 is meant for CLIP's raw
/// features, whose length is about 10: the same share of the squared length.
pub const FLOOR: f64 = 1e-6;

/// A Gaussian over one class's rows.
#[derive(Debug, Clone)]
pub struct ClassStatistics {
    /// Examples seen.
    pub count: usize,
    /// μ, (D): the exact mean of the rows.
    pub mean: Tensor,
    /// A, (r, D): principal directions, each as long as its standard deviation.
    pub components: Tensor,
    /// σ², the variance in every direction beyond the components'.
    pub residual: f64,
    /// Some of the rows themselves, (k, D), where exemplars are kept.
    pub exemplars: Option<Tensor>,
    /// All of them, (n, D), where a class is to be unlearned exactly.
    pub rows: Option<Tensor>,
}

/// What is kept of each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    /// Most principal directions.
    pub(super) rank: usize,
    /// How many exemplars, and which.
    pub(super) exemplars: Option<(usize, Choice)>,
    /// Whether all rows.
    pub(super) rows: bool,
}

/// What is kept of classes, in column order: of one task, or of all tasks up to a version.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Each class's Gaussian.
    pub classes: Vec<ClassStatistics>,
    /// The spread within all of them, where it is kept.
    pub scatter: Option<Scatter>,
    /// What ridge regression needs of all of them, where it is kept.
    pub gram: Option<Gram>,
    /// Some of their rows, where all are kept of every class.
    pub sample: Option<Sample>,
}

impl Statistics {
    /// Of classes from their rows, each (n, D). `rng` draws exemplars where they are drawn.
    ///
    /// # Errors
    /// When there is a class without rows.
    pub(super) fn estimate(rows: &[Tensor], kept: Kept, rng: &mut impl Rng) -> candle_core::Result<Self> {
        let estimated: Vec<_> = rows
            .par_iter()
            .map(|rows| ClassStatistics::estimate(rows, kept.rank))
            .collect();
        let mut classes = Vec::with_capacity(rows.len());
        for (rows, class) in rows.iter().zip(estimated) {
            let mut class = class?;
            if let Some((count, choice)) = kept.exemplars {
                class.exemplars = Some(exemplars::choose(rows, count, choice, rng)?);
            }
            class.rows = kept.rows.then(|| rows.clone());
            classes.push(class);
        }
        Self {
            classes,
            ..Self::default()
        }
        .sampled()
    }

    /// With the sample of the rows that are kept.
    pub(super) fn sampled(mut self) -> candle_core::Result<Self> {
        let rows: Option<Vec<&Tensor>> = self.classes.iter().map(|class| class.rows.as_ref()).collect();
        self.sample = match rows.as_deref() {
            None | Some([]) => None,
            Some(rows) => Some(Sample::of(rows.iter().copied(), 0)?),
        };
        Ok(self)
    }

    /// Without the rows of classes, which only unlearning looks at. The sample of them stays.
    #[must_use]
    pub fn without_rows(mut self) -> Self {
        for class in &mut self.classes {
            class.rows = None;
        }
        self
    }

    /// Those of a task without the class at `place`. `projection` is R, where there is a [`Gram`].
    ///
    /// Where all rows are kept, it is what the statistics would be had the task never had the class. Where they are not,
    /// its part of what all classes share stays. Of nothing, nothing is left.
    ///
    /// # Errors
    /// When there is no such class, or a [`Gram`] and no R.
    pub fn without(mut self, place: usize, projection: Option<&Tensor>) -> candle_core::Result<Remaining> {
        if self.classes.is_empty() {
            return Ok(Remaining {
                statistics: self,
                is_exact: true,
            });
        }
        if place >= self.classes.len() {
            candle_core::bail!("no class {place} among {}", self.classes.len());
        }
        self.classes.remove(place);
        let rows: Option<Vec<Tensor>> = self.classes.iter().map(|class| class.rows.clone()).collect();
        let Some(rows) = rows else {
            if let Some(gram) = &mut self.gram {
                gram.forget_sums(place);
            }
            return Ok(Remaining {
                is_exact: self.scatter.is_none() && self.gram.is_none(),
                statistics: self,
            });
        };
        if self.scatter.is_some() {
            self.scatter = Some(Scatter::of(&rows)?);
        }
        if self.gram.is_some() {
            let Some(projection) = projection else {
                candle_core::bail!("sums over random features without their projection")
            };
            self.gram = Some(ridge::gram(&rows, projection)?);
        }
        Ok(Remaining {
            statistics: self.sampled()?,
            is_exact: true,
        })
    }

    /// Without some examples of some classes, each given by its column and the rows (n, D): their means and what they
    /// share, exactly; their principal directions stay.
    ///
    /// ```text
    /// μ' = (n μ − Σ x) / (n − k),   S' = S − Σ (x − μ)(x − μ)ᵀ − (n − k) (μ' − μ)(μ' − μ)ᵀ
    /// ```
    ///
    /// # Errors
    /// When a class would have no example left.
    pub(super) fn without_examples(&self, examples: &[(usize, Tensor)]) -> candle_core::Result<Self> {
        let mut left = Self {
            classes: self.classes.clone(),
            scatter: self.scatter.clone(),
            ..Self::default()
        };
        // As the scatter's formula subtracts them.
        let (mut out, mut taken) = (Vec::new(), 0);
        for (column, rows) in examples {
            let class = &mut left.classes[*column];
            let gone = rows.dim(0)?;
            if gone >= class.count {
                candle_core::bail!("a class without examples");
            }
            let stay = class.count - gone;
            let mean = class.mean.to_dtype(DType::F64)?.unsqueeze(0)?;
            let deviations = rows.to_dtype(DType::F64)?.broadcast_sub(&mean)?;
            let shift = (deviations.sum_keepdim(0)? / -(stay as f64))?;
            class.mean = (mean + &shift)?.squeeze(0)?.to_dtype(DType::F32)?;
            class.count = stay;
            taken += gone;
            out.extend([deviations, (shift * (stay as f64).sqrt())?]);
        }
        if let (Some(scatter), [_, ..]) = (&mut left.scatter, out.as_slice()) {
            scatter.take_out(&Tensor::cat(&out, 0)?, taken)?;
        }
        Ok(left)
    }

    /// Adds those of the next task.
    ///
    /// # Errors
    /// When rows are of another width, or only one of the two keeps what is common to its classes.
    pub fn extend(&mut self, next: Self) -> candle_core::Result<()> {
        if !next.classes.is_empty() {
            let is_first = self.classes.is_empty();
            join(&mut self.scatter, next.scatter, is_first, Scatter::merge)?;
            join(&mut self.gram, next.gram, is_first, Gram::merge)?;
            self.sample = match (self.sample.take(), next.sample) {
                (Some(mut sample), Some(next)) => {
                    sample.merge(next, self.classes.len());
                    Some(sample)
                }
                (_, next) => next.filter(|_| is_first),
            };
        }
        self.classes.extend(next.classes);
        Ok(())
    }
}

/// What is left of a task's statistics without one of its classes.
#[derive(Debug, Clone)]
pub struct Remaining {
    /// Of the other classes.
    pub statistics: Statistics,
    /// Whether they are what they would be had the task never had the class.
    pub is_exact: bool,
}

/// What all tasks so far have in common, and the next one's part of it.
fn join<T>(
    sum: &mut Option<T>,
    next: Option<T>,
    is_first: bool,
    merge: impl FnOnce(&mut T, &T) -> candle_core::Result<()>,
) -> candle_core::Result<()> {
    match (sum, next) {
        (Some(sum), Some(next)) => merge(sum, &next),
        (sum @ None, next) if is_first => {
            *sum = next;
            Ok(())
        }
        (None, None) => Ok(()),
        (Some(_), None) | (None, Some(_)) => {
            candle_core::bail!("what classes have in common is kept of some tasks only")
        }
    }
}

impl ClassStatistics {
    /// From the rows (n, D) of one class, with at most `rank` components and never more than n − 1.
    ///
    /// # Errors
    /// When there is no row.
    pub fn estimate(rows: &Tensor, rank: usize) -> candle_core::Result<Self> {
        let (count, dim) = rows.dims2()?;
        if count == 0 {
            candle_core::bail!("statistics of a class without examples");
        }
        let device = rows.device();
        let rows = rows.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
        let (mean, deviations) = read(&rows, |rows| Ok(centred(rows, dim)))?;
        let total = deviations
            .iter()
            .map(|value| f64::from(*value).powi(2))
            .sum::<f64>();
        let found = principal_directions(&deviations, dim, rank.min(count - 1))?;
        let shrinkage = if count <= dim { SHRINKAGE * total } else { 0.0 };
        let spread = (total - found.variance).max(0.0) + shrinkage;
        let directions = found.vectors.len() / dim;
        Ok(Self {
            count,
            mean: Tensor::from_vec(mean, dim, device)?,
            components: Tensor::from_vec(found.vectors, (directions, dim), device)?,
            residual: spread / dim as f64 + FLOOR,
            exemplars: None,
            rows: None,
        })
    }
}

/// The mean (D) of rows (n, D), and (x − μ) / √(n − 1), row by row.
fn centred(rows: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let count = rows.len() / dim;
    let mut mean = vec![0.0; dim];
    for row in rows.chunks_exact(dim) {
        let pairs = mean.iter_mut().zip(row);
        pairs.for_each(|(sum, value)| *sum += f64::from(*value));
    }
    for sum in &mut mean {
        *sum /= count as f64;
    }
    let share = (count.saturating_sub(1).max(1) as f64).sqrt().recip();
    let mut deviations = rows.to_vec();
    for row in deviations.chunks_exact_mut(dim) {
        let pairs = row.iter_mut().zip(&mean);
        pairs.for_each(|(value, mean)| *value = ((f64::from(*value) - mean) * share) as f32);
    }
    (mean.into_iter().map(|mean| mean as f32).collect(), deviations)
}

#[cfg(test)]
mod tests;
