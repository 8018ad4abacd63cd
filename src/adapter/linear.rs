//! The linear adapter: one matrix and bias, carried on from task to task (arXiv 2310.20348).

use candle_core::{DType, Device, Result, Tensor};
use clipkeep_towers::{LinearAdapter, LinearObjective};
use rand::Rng;
use rand_distr::{Distribution, Normal};

use super::embedding::against;
use super::host::read;
use super::objective::Targets;
use super::trainable::{Fused, Gradient, Trainable};
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
        against(rows, &self.weight)?.broadcast_add(&self.bias)
    }

    /// D.
    pub fn dim(&self) -> Result<usize> {
        self.bias.dims1()
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

    /// On the CPU, without a hinge.
    fn fused(&self, targets: &Targets<'_>) -> Result<Option<Box<dyn Fused<Self>>>> {
        let anchors = targets.anchors;
        if targets.pairs.is_some() || !anchors.device().is_cpu() || anchors.dtype() != DType::F32 {
            return Ok(None);
        }
        let (dim, scale) = (self.dim()?, targets.scale as f32);
        let objective = read(&anchors.contiguous()?, |anchors| {
            Ok(LinearObjective::new(anchors, dim, scale))
        })?;
        Ok(Some(Box::new(objective)))
    }
}

impl Fused<Linear> for LinearObjective {
    fn gradient(&mut self, adapter: &Linear, x: &Tensor, columns: &[u32]) -> Result<Gradient> {
        let [weight, bias, x] = [&adapter.weight, &adapter.bias, x].map(Tensor::contiguous);
        let (weight, bias) = (weight?, bias?);
        let found = read(&weight, |weight| {
            read(&bias, |bias| {
                let adapter = LinearAdapter { weight, bias };
                read(&x?, |x| Ok(self.gradient(adapter, x, columns)))
            })
        })?;
        let of = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
        Ok(Gradient {
            loss: found.loss,
            parameters: vec![of(found.weight, &weight)?, of(found.bias, &bias)?],
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::adapter::embedding::normalise;
    use crate::adapter::objective::Pairs;
    use crate::domain::Hinge;

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
    fn the_fused_gradient_is_the_same() -> Result<()> {
        const DIM: usize = 20;
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut random = || Linear::initial(Initialisation::Kaiming, DIM, &mut rng, &Device::Cpu);
        let adapter = Linear {
            bias: random()?.weight.get(0)?,
            ..random()?
        };
        let (x, anchors) = (random()?.weight, normalise(&random()?.weight)?);
        let targets = Targets {
            anchors: &anchors,
            scale: 5.0,
            pairs: None,
        };
        let mut fused = adapter.fused(&targets)?.expect("on the CPU there is one");
        // A batch, a smaller one behind it.
        for count in [DIM, 3] {
            let columns: Vec<u32> = (0..count as u32).map(|row| row * 7 % 20).collect();
            let x = x.narrow(0, 0, count)?;
            let expected = adapter.gradient(&targets, &x, &columns)?;
            let found = fused.gradient(&adapter, &x, &columns)?;
            assert!((found.loss - expected.loss).abs() < 1e-5 * expected.loss);
            for (found, expected) in found.parameters.iter().zip(&expected.parameters) {
                let apart = (found - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
                let largest = expected.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(apart < 1e-5 * largest, "{apart} of {largest}");
            }
        }
        let hinge = Hinge {
            threshold: 1.0,
            margin: 0.1,
            weight: 1.0,
        };
        let pairs = Pairs::among(&anchors, 4, hinge)?;
        let hinged = Targets {
            pairs: Some(&pairs),
            ..targets
        };
        assert!(adapter.fused(&hinged)?.is_none(), "a hinge is no part of it");
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
