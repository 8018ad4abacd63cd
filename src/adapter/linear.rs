//! The linear adapter: one matrix and bias, carried on from task to task (arXiv 2310.20348).

use candle_core::{Device, Result, Tensor};
use rand::Rng;
use rand_distr::{Distribution, Normal};

use super::embedding::against;
use super::objective::Targets;
use super::rowwise::{Number, Pass, each_row_beside};
use super::trainable::{Gradient, Trainable};
use crate::domain::Initialisation;

/// `x ↦ W x + b` on embeddings.
#[derive(Debug, Clone)]
pub struct Linear {
    /// W, (D, D).
    pub weight: Tensor,
    /// b, (D).
    pub bias: Tensor,
}

impl Linear {
    /// An adapter that has learned nothing, for features of `dim` values. The bias starts at zero.
    pub fn initial(
        initialisation: Initialisation,
        dim: usize,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Result<Self> {
        let weight = match initialisation {
            Initialisation::Identity => Tensor::eye(dim, candle_core::DType::F32, device)?,
            Initialisation::Kaiming => {
                // Normal with variance 2 / fan-in: He et al. 2015, equation 10.
                let deviation = (2.0 / dim as f32).sqrt();
                let normal = Normal::new(0.0_f32, deviation).map_err(candle_core::Error::wrap)?;
                let values: Vec<f32> = normal.sample_iter(rng).take(dim * dim).collect();
                Tensor::from_vec(values, (dim, dim), device)?
            }
        };
        Ok(Self {
            weight,
            bias: Tensor::zeros(dim, candle_core::DType::F32, device)?,
        })
    }

    /// Rows (n, D) to rows (n, D).
    pub fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let moved = against(rows, &self.weight)?;
        if !moved.device().is_cpu() {
            return moved.broadcast_add(&self.bias);
        }
        each_row_beside(&moved, &self.bias.unsqueeze(0)?, &Add)?;
        Ok(moved)
    }

    /// D.
    pub fn dim(&self) -> Result<usize> {
        self.bias.dims1()
    }
}

/// Adds the row beside it.
struct Add;

impl Pass for Add {
    fn row<T: Number>(&self, _: usize, row: &mut [T], other: &[T]) -> f64 {
        row.iter_mut()
            .zip(other)
            .for_each(|(value, other)| *value += *other);
        0.0
    }
}

impl Trainable for Linear {
    fn parameters(&self) -> Vec<&Tensor> {
        vec![&self.weight, &self.bias]
    }

    fn with(&self, mut parameters: Vec<Tensor>) -> Self {
        let bias = parameters.pop().unwrap_or_else(|| self.bias.clone());
        let weight = parameters.pop().unwrap_or_else(|| self.weight.clone());
        Self { weight, bias }
    }

    /// ∂W = ∂yᵀ x, ∂b = Σ ∂y.
    fn gradient(&self, targets: &Targets<'_>, x: &Tensor, columns: &[u32]) -> Result<Gradient> {
        let slope = targets.slope(&self.apply(x)?, columns)?;
        let by_outputs = slope.by_outputs(targets.anchors)?;
        // A product with ones: candle sums over rows column by column, far from value to value.
        let ones = Tensor::ones((1, columns.len()), by_outputs.dtype(), by_outputs.device())?;
        Ok(Gradient {
            loss: slope.loss,
            parameters: vec![by_outputs.t()?.matmul(x)?, ones.matmul(&by_outputs)?.squeeze(0)?],
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::adapter::embedding::normalise;

    #[test]
    fn the_gradient_agrees_with_finite_differences() -> Result<()> {
        let random = |seed, rows| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let linear = Linear::initial(Initialisation::Kaiming, 12, &mut rng, &Device::Cpu)?;
            linear.weight.narrow(0, 0, rows)?.to_dtype(DType::F64)
        };
        let adapter = Linear {
            weight: random(1, 12)?,
            bias: random(4, 1)?.squeeze(0)?,
        };
        let (x, anchors) = (random(2, 3)?, normalise(&random(3, 7)?)?);
        let loss_at = |adapter: &Linear| {
            let targets = Targets {
                anchors: &anchors,
                scale: 5.0,
                pairs: None,
            };
            adapter.gradient(&targets, &x, &[0, 6, 2])
        };
        let exact = loss_at(&adapter)?;
        let step = 1e-5;
        for (row, column) in [(0, 0), (3, 7), (11, 2)] {
            let moved = |offset: f64| {
                let mut values = adapter.weight.to_vec2::<f64>()?;
                values[row][column] += offset;
                let weight = Tensor::new(values, &Device::Cpu)?;
                loss_at(&adapter.with(vec![weight, adapter.bias.clone()])).map(|found| found.loss)
            };
            let slope = (moved(step)? - moved(-step)?) / (2.0 * step);
            let exact = exact.parameters[0].get(row)?.get(column)?.to_scalar::<f64>()?;
            assert!((slope - exact).abs() < 1e-7, "{slope} and {exact}");
        }
        for place in [0, 5] {
            let moved = |offset: f64| {
                let mut values = adapter.bias.to_vec1::<f64>()?;
                values[place] += offset;
                let bias = Tensor::new(values, &Device::Cpu)?;
                loss_at(&adapter.with(vec![adapter.weight.clone(), bias])).map(|found| found.loss)
            };
            let slope = (moved(step)? - moved(-step)?) / (2.0 * step);
            let exact = exact.parameters[1].get(place)?.to_scalar::<f64>()?;
            assert!((slope - exact).abs() < 1e-7, "{slope} and {exact}");
        }
        Ok(())
    }

    #[test]
    fn identity_changes_nothing() -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let adapter = Linear::initial(Initialisation::Identity, 3, &mut rng, &Device::Cpu)?;
        let rows = Tensor::new(&[[1.5_f32, -2.0, 0.25]], &Device::Cpu)?;
        assert_eq!(adapter.apply(&rows)?.to_vec2::<f32>()?, rows.to_vec2::<f32>()?);
        Ok(())
    }

    #[test]
    fn kaiming_has_the_variance_of_its_formula_and_follows_its_seed() -> Result<()> {
        let draw = |seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let adapter = Linear::initial(Initialisation::Kaiming, 64, &mut rng, &Device::Cpu)?;
            adapter.weight.flatten_all()?.to_vec1::<f32>()
        };
        let values = draw(7)?;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(
            (variance * 32.0 - 1.0).abs() < 0.1,
            "{variance} should be near 2 / 64"
        );
        assert_eq!(values, draw(7)?);
        assert_ne!(values, draw(8)?);
        Ok(())
    }
}
