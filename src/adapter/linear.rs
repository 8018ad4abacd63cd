//! The linear adapter: one matrix and bias, carried on from task to task (arXiv 2310.20348).

use candle_core::{Device, Result, Tensor};
use rand::Rng;
use rand_distr::{Distribution, Normal};

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
        rows.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }

    /// D.
    pub fn dim(&self) -> Result<usize> {
        self.bias.dims1()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

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
