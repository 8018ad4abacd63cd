//! Embeddings as seen through the spread that all classes share.
//!
//! Within a class, CLIP's embeddings vary far more in some directions than in others, and cosines count all alike.
//! Dividing by the pooled within-class covariance evens that out; it is what Gaussian discriminant analysis does
//! (arXiv 2402.04087), kept here as a map of embeddings so that an adapter can be trained behind it.
//!
//! ```text
//! Σ  = Σ_tasks Σ_classes Σ_x (x − μ_c)(x − μ_c)ᵀ / (N − C)         pooled over all tasks, so the order does not matter
//! Σ̂  = (1 − a) Σ + a · tr Σ / D · I + ε I,   a = 1/2
//! w(x) = √(tr Σ / D) · Σ̂^(−1/2) (x − m),      m the mean of the class means
//! ```

use candle_core::{DType, Device, Result, Tensor};

use super::embedding::{against, normalise};
use super::statistics::{ClassStatistics, Statistics};

/// a: the share of the covariance that is spread evenly. There are few examples for D² numbers.
const SHRINKAGE: f64 = 0.5;

/// ε: keeps a covariance of nothing invertible.
const FLOOR: f64 = 1e-6;

/// Sums of squared deviations within classes. Additive: that of several tasks is the sum of theirs.
#[derive(Debug, Clone)]
pub struct Scatter {
    /// Σ_x (x − μ_c)(x − μ_c)ᵀ over all classes, (D, D), f64.
    sum: Tensor,
    /// N − C: examples less classes.
    freedom: usize,
}

impl Scatter {
    /// Of nothing.
    pub(super) fn empty(dim: usize, device: &Device) -> Result<Self> {
        Ok(Self {
            sum: Tensor::zeros((dim, dim), DType::F64, device)?,
            freedom: 0,
        })
    }

    /// Of classes, from the unit embeddings (n, D) of each; there must be at least one.
    pub(super) fn of(classes: &[Tensor]) -> Result<Self> {
        let Some(first) = classes.first() else {
            candle_core::bail!("the spread within no classes")
        };
        let mut scatter = Self::empty(first.dim(1)?, first.device())?;
        for rows in classes {
            scatter.add_class(&rows.to_dtype(DType::F64)?)?;
        }
        Ok(scatter)
    }

    /// From its parts, as [`Self::packed`] gives them.
    pub(super) fn unpack(packed: &[f32], dim: usize, freedom: usize, device: &Device) -> Result<Self> {
        let mut values = vec![0.0_f64; dim * dim];
        let places = (0..dim).flat_map(|row| (row..dim).map(move |column| (row, column)));
        for ((row, column), value) in places.zip(packed) {
            values[row * dim + column] = f64::from(*value);
            values[column * dim + row] = f64::from(*value);
        }
        Ok(Self {
            sum: Tensor::from_vec(values, (dim, dim), device)?,
            freedom,
        })
    }

    /// The upper triangle row by row, D(D + 1)/2 values rounded to f32.
    pub(super) fn packed(&self) -> Result<Vec<f32>> {
        let rows = self.sum.to_vec2::<f64>()?;
        let upper = rows.iter().enumerate().flat_map(|(place, row)| &row[place..]);
        Ok(upper.map(|value| *value as f32).collect())
    }

    /// N − C.
    pub(super) fn freedom(&self) -> usize {
        self.freedom
    }

    /// Adds a class's embeddings (n, D), f64.
    pub(super) fn add_class(&mut self, embeddings: &Tensor) -> Result<()> {
        let deviations = embeddings.broadcast_sub(&embeddings.mean_keepdim(0)?)?;
        self.sum = (&self.sum + deviations.t()?.contiguous()?.matmul(&deviations)?)?;
        self.freedom += embeddings.dim(0)? - 1;
        Ok(())
    }

    /// Takes `examples` out: less the products of these rows (n, D), f64, with themselves. What rows they are,
    /// [`Statistics::without_examples`] says.
    pub(super) fn take_out(&mut self, rows: &Tensor, examples: usize) -> Result<()> {
        self.sum = (&self.sum - rows.t()?.contiguous()?.matmul(rows)?)?;
        self.freedom -= examples;
        Ok(())
    }

    /// Adds another one.
    pub(super) fn merge(&mut self, other: &Self) -> Result<()> {
        let Some(freedom) = self.freedom.checked_add(other.freedom) else {
            candle_core::bail!("more examples than can be counted")
        };
        self.sum = (&self.sum + &other.sum)?;
        self.freedom = freedom;
        Ok(())
    }

    /// Σ as rows, and tr Σ / D.
    pub(super) fn covariance(&self) -> Result<(Vec<Vec<f64>>, f64)> {
        let covariance = (&self.sum / self.freedom.max(1) as f64)?.to_vec2::<f64>()?;
        let trace: f64 = (0..covariance.len()).map(|i| covariance[i][i]).sum();
        let mean = trace / covariance.len().max(1) as f64;
        Ok((covariance, mean))
    }
}

/// The map w.
#[derive(Debug, Clone)]
pub(super) struct Whitening {
    /// m, (1, D).
    pub(super) centre: Tensor,
    /// √(tr Σ / D) · Σ̂^(−1/2), (D, D), symmetric.
    pub(super) transform: Tensor,
}

impl Whitening {
    /// From what is known of all classes.
    ///
    /// # Errors
    /// When there is no class, or the spread within them is not kept.
    pub(super) fn of(statistics: &Statistics) -> Result<Self> {
        let Statistics { classes, scatter, .. } = statistics;
        let Some(scatter) = scatter else {
            candle_core::bail!("a whitening needs the spread within classes")
        };
        let means = means(classes)?;
        let (covariance, variance) = scatter.covariance()?;
        let dim = covariance.len();
        let shrunk = faer::Mat::from_fn(dim, dim, |i, j| {
            let even = if i == j { SHRINKAGE * variance + FLOOR } else { 0.0 };
            (1.0 - SHRINKAGE) * covariance[i][j] + even
        });
        let eigen = shrunk
            .self_adjoint_eigen(faer::Side::Lower)
            .map_err(|error| candle_core::Error::msg(format!("eigenvectors of a covariance: {error:?}")))?;
        // V diag(f(λ)) Vᵀ, as a product of V scaled by the fourth root's square.
        let root = |i: usize| ((variance + FLOOR) / eigen.S()[i].max(FLOOR)).sqrt().sqrt();
        let half: Vec<f64> = (0..dim)
            .flat_map(|i| (0..dim).map(move |j| (i, j)))
            .map(|(i, j)| eigen.U()[(i, j)] * root(j))
            .collect();
        let half = Tensor::from_vec(half, (dim, dim), means.device())?;
        Ok(Self {
            centre: means.mean_keepdim(0)?,
            transform: half.matmul(&half.t()?.contiguous()?)?.to_dtype(DType::F32)?,
        })
    }

    /// Embeddings (n, D) as an adapter is given them: whitened unit rows.
    pub(super) fn view(&self, embeddings: &Tensor) -> Result<Tensor> {
        normalise(&self.apply(embeddings)?)
    }

    /// Embeddings (n, D) as seen through it, not normalised. The map is symmetric: rows are multiplied with its rows.
    fn apply(&self, embeddings: &Tensor) -> Result<Tensor> {
        against(&embeddings.broadcast_sub(&self.centre)?, &self.transform)
    }
}

/// The class means (C, D).
pub(super) fn means(classes: &[ClassStatistics]) -> Result<Tensor> {
    let means: Vec<&Tensor> = classes.iter().map(|class| &class.mean).collect();
    Tensor::stack(&means, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::rehearsal::tests::{features, moments};

    fn embeddings(count: usize, dim: usize) -> Tensor {
        normalise(&features(count, dim))
            .and_then(|rows| rows.to_dtype(DType::F64))
            .expect("embeddings")
    }

    fn furthest(a: &Tensor, b: &Tensor) -> f64 {
        let apart = (a - b).and_then(|d| d.abs()?.max_all()?.to_scalar::<f64>());
        apart.expect("a number")
    }

    #[test]
    fn the_scatter_of_tasks_is_the_sum_of_theirs_in_any_order() {
        let classes = [embeddings(7, 6), embeddings(1, 6), embeddings(12, 6)];
        let scatter = |order: &[usize]| {
            let mut sum = Scatter::empty(6, &Device::Cpu).expect("zeros");
            for &place in order {
                let mut one = Scatter::empty(6, &Device::Cpu).expect("zeros");
                one.add_class(&classes[place]).expect("added");
                sum.merge(&one).expect("merged");
            }
            sum
        };
        let (one, other) = (scatter(&[0, 1, 2]), scatter(&[2, 0, 1]));
        assert!(furthest(&one.sum, &other.sum) < 1e-15);
        assert_eq!((one.freedom, other.freedom), (6 + 11, 17));

        let packed = one.packed().expect("packed");
        let back = Scatter::unpack(&packed, 6, one.freedom, &Device::Cpu).expect("unpacked");
        assert_eq!(packed.len(), 21);
        assert!(furthest(&one.sum, &back.sum) < 1e-7, "f32 keeps 24 bits");
    }

    #[test]
    fn what_is_whitened_varies_alike_in_all_directions() {
        let dim = 5;
        let unit = normalise(&features(4000, dim)).expect("normalised");
        let statistics = ClassStatistics::estimate(&unit, dim).expect("estimated");
        let scatter = Scatter::of(std::slice::from_ref(&unit)).expect("a scatter");
        let statistics = Statistics {
            classes: vec![statistics],
            scatter: Some(scatter),
            gram: None,
            sample: None,
        };
        let whitening = Whitening::of(&statistics).expect("a whitening");
        let (_, before) = moments(&unit);
        let (centre, after) = moments(&whitening.apply(&unit).expect("applied"));
        assert!(centre.iter().all(|value| value.abs() < 1e-4), "{centre:?}");
        let spread = |covariance: &[Vec<f64>]| {
            let diagonal: Vec<f64> = (0..dim).map(|i| covariance[i][i]).collect();
            let widest = diagonal.iter().copied().fold(0.0, f64::max);
            widest / diagonal.iter().copied().fold(f64::INFINITY, f64::min)
        };
        // Half of the covariance is spread evenly, so a wide direction stays wider, by less than a factor of two.
        assert!(spread(&before) > 4.0, "{}", spread(&before));
        assert!(spread(&after) < 0.5 * spread(&before), "{}", spread(&after));
    }

    #[test]
    fn classes_of_one_example_each_are_only_centred() {
        let one = ClassStatistics::estimate(&features(1, 4), 4).expect("estimated");
        let scatter = Scatter::empty(4, &Device::Cpu).expect("zeros");
        let statistics = Statistics {
            classes: vec![one.clone(), one],
            scatter: Some(scatter),
            gram: None,
            sample: None,
        };
        let whitening = Whitening::of(&statistics).expect("a whitening");
        let transform = whitening.transform.to_vec2::<f32>().expect("rows");
        for (i, row) in transform.iter().enumerate() {
            for (j, value) in row.iter().enumerate() {
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((value - expected).abs() < 1e-5, "{transform:?}");
            }
        }
    }
}
