//! Gaussian discriminant analysis in closed form (arXiv 2402.04087): one Gaussian a class, one covariance for all.
//!
//! ```text
//! logit_c = w_c · x + b_c,   w_c = Σ̂⁻¹ μ_c,   b_c = −½ μ_c · w_c
//! Σ̂⁻¹ = D ((N − C) Σ + tr Σ · I)⁻¹        equation 5 there, with N − C for their N − 1: Σ is already pooled
//! ```
//!
//! Its logits are log-likelihoods under that model, which is surer of itself than it is right: their order is what counts,
//! and as probabilities they are not calibrated.
//!
//! Means and scatter are additive, so nothing depends on the order of tasks, and leaving a task's out unlearns it.

use candle_core::{DType, Result, Tensor};
use faer::linalg::solvers::Solve as _;

use super::embedding::against;
use super::statistics::Statistics;
use super::whitening::{Scatter, means};

/// `x ↦ w_c · x + b_c` on embeddings.
#[derive(Debug, Clone)]
pub struct Affine {
    /// w, (C, D).
    pub weight: Tensor,
    /// b, (C).
    pub bias: Tensor,
}

impl Affine {
    /// The discriminant of all classes that `statistics` knows, in column order.
    ///
    /// # Errors
    /// When the statistics have no scatter, or no class.
    pub(super) fn discriminant(statistics: &Statistics) -> Result<Self> {
        let Statistics { classes, scatter, .. } = statistics;
        let Some(scatter) = scatter else {
            candle_core::bail!("a discriminant needs the spread within classes")
        };
        let means = means(classes)?.to_dtype(DType::F64)?;
        let weight = precision_times(scatter, &means)?;
        let bias = ((&weight * &means)?.sum(1)? * -0.5)?;
        Ok(Self {
            weight: weight.to_dtype(DType::F32)?,
            bias: bias.to_dtype(DType::F32)?,
        })
    }

    /// Embeddings (n, D) to logits (n, C).
    pub(super) fn logits(&self, embeddings: &Tensor) -> Result<Tensor> {
        against(embeddings, &self.weight)?.broadcast_add(&self.bias)
    }

    /// C and D.
    pub(super) fn dims(&self) -> Result<(usize, usize)> {
        let (columns, dim) = self.weight.dims2()?;
        if self.bias.dims1()? != columns {
            candle_core::bail!("{columns} weights and {} biases", self.bias.dims1()?);
        }
        Ok((columns, dim))
    }
}

/// `means` Σ̂⁻¹, (C, D), by Cholesky.
fn precision_times(scatter: &Scatter, means: &Tensor) -> Result<Tensor> {
    let (covariance, variance) = scatter.covariance()?;
    let (columns, dim) = means.dims2()?;
    let rows = means.to_vec2::<f64>()?;
    let freedom = scatter.freedom().max(1) as f64;
    // Of classes with one example each nothing is known; a spread as wide as the embeddings are long assumes little.
    let trace = if scatter.freedom() == 0 {
        1.0
    } else {
        variance * dim as f64
    };
    let matrix = faer::Mat::from_fn(dim, dim, |i, j| {
        let even = if i == j { trace + FLOOR } else { 0.0 };
        (freedom * covariance[i][j] + even) / dim as f64
    });
    let cholesky = matrix
        .llt(faer::Side::Lower)
        .map_err(|error| candle_core::Error::msg(format!("a covariance that is none: {error:?}")))?;
    let solved = cholesky.solve(faer::Mat::from_fn(dim, columns, |i, c| rows[c][i]));
    let values: Vec<f64> = (0..columns)
        .flat_map(|c| (0..dim).map(move |i| (i, c)))
        .map(|(i, c)| solved[(i, c)])
        .collect();
    Tensor::from_vec(values, (columns, dim), means.device())
}

/// Keeps the covariance of equal examples invertible.
const FLOOR: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::adapter::ClassStatistics;
    use crate::adapter::embedding::normalise;
    use crate::adapter::rehearsal::tests::features;

    fn statistics(rows: &[Tensor]) -> Result<Statistics> {
        let classes = rows.iter().map(|rows| ClassStatistics::estimate(rows, 0));
        Ok(Statistics {
            classes: classes.collect::<Result<_>>()?,
            scatter: Some(Scatter::of(rows)?),
            gram: None,
            sample: None,
        })
    }

    #[test]
    fn the_order_of_tasks_does_not_matter() -> Result<()> {
        let tasks = [9, 4, 6].map(|count| {
            let rows = (features(count, 8) * if count == 4 { -1.0 } else { 1.0 }).expect("moved");
            statistics(&[normalise(&rows).expect("normalised")]).expect("estimated")
        });
        let learned = |order: [usize; 3]| {
            let mut all = Statistics::default();
            for task in order {
                all.extend(tasks[task].clone())?;
            }
            Affine::discriminant(&all)
        };
        let (one, other) = (learned([0, 1, 2])?, learned([2, 0, 1])?);
        let moved = Tensor::new(&[2_u32, 0, 1], &Device::Cpu)?;
        let apart = (one.weight.index_select(&moved, 0)? - &other.weight)?
            .abs()?
            .max_all()?;
        let size = one.weight.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(apart.to_scalar::<f32>()? <= 1e-6 * size);
        Ok(())
    }

    #[test]
    fn it_scores_as_its_formula_says() -> Result<()> {
        // Two classes of two examples in two dimensions, by hand.
        let class = |angles: [f32; 2]| {
            let rows = angles.map(|a| [a.cos(), a.sin()]);
            Tensor::new(&rows, &Device::Cpu)
        };
        let rows = [class([0.1, 0.3])?, class([1.0, 1.4])?];
        let statistics = statistics(&rows)?;
        let affine = Affine::discriminant(&statistics)?;

        let mut scatter = [[0.0_f64; 2]; 2];
        let mut means = [[0.0_f64; 2]; 2];
        for (rows, mean) in rows.iter().zip(&mut means) {
            let rows = rows.to_dtype(DType::F64)?.to_vec2::<f64>()?;
            *mean = [0, 1].map(|i| f64::midpoint(rows[0][i], rows[1][i]));
            for row in &rows {
                for i in 0..2 {
                    for j in 0..2 {
                        scatter[i][j] += (row[i] - mean[i]) * (row[j] - mean[j]);
                    }
                }
            }
        }
        // N − C = 2, so (N − C) Σ is the scatter, and tr Σ half of its trace.
        let trace = f64::midpoint(scatter[0][0], scatter[1][1]);
        let [first, mixed, second] =
            [scatter[0][0] + trace, scatter[0][1], scatter[1][1] + trace].map(|value| value / 2.0);
        let determinant = first * second - mixed * mixed;
        let row = normalise(&Tensor::new(&[[0.8_f32, 0.6]], &Device::Cpu)?)?;
        let logits = affine.logits(&row)?.to_vec2::<f32>()?;
        for (logit, [u, v]) in logits[0].iter().zip(means) {
            let weight = [
                (second * u - mixed * v) / determinant,
                (first * v - mixed * u) / determinant,
            ];
            let expected = weight[0] * 0.8 + weight[1] * 0.6 - 0.5 * (u * weight[0] + v * weight[1]);
            assert!(
                (f64::from(*logit) / expected - 1.0).abs() < 1e-3,
                "{logit} and {expected}"
            );
        }
        Ok(())
    }
}
