//! Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796): moving a weight costs as much as old classes
//! depend on it.
//!
//! ```text
//! loss + λ Σ F_i (θ_i − θ_old,i)²,   F_i = mean over rehearsed rows of (∂ −log p(class of the row) / ∂θ_i)²
//! ```

use candle_core::{DType, Result, Tensor};

use super::objective::Targets;
use super::trainable::{Gradient, Trainable};

/// Where an adapter was, and what leaving it costs.
pub(super) struct Penalty {
    /// λ.
    strength: f64,
    /// θ_old and F of each parameter.
    held: Vec<(Tensor, Tensor)>,
}

impl Penalty {
    /// Rows that F is measured on. A square of the mean is not the mean of the squares, so each takes a gradient of its own.
    pub(super) const ROWS: usize = 256;

    /// Measures F at `adapter` on `rows` (n, …) and their columns. The hinge is no part of a likelihood and is left out.
    pub(super) fn measure<A: Trainable>(
        adapter: &A,
        targets: &Targets<'_>,
        (rows, columns): (&Tensor, &[u32]),
        strength: f64,
    ) -> Result<Self> {
        let likelihood = Targets {
            pairs: None,
            ..*targets
        };
        let old = adapter.parameters();
        let mut squares: Vec<Tensor> = old
            .iter()
            .map(|parameter| parameter.zeros_like())
            .collect::<Result<_>>()?;
        for (place, column) in columns.iter().enumerate() {
            let gradient = adapter.gradient(&likelihood, &rows.narrow(0, place, 1)?, &[*column])?;
            for (sum, slope) in squares.iter_mut().zip(&gradient.parameters) {
                *sum = (&*sum + slope.sqr()?)?;
            }
        }
        let held = old.into_iter().zip(squares).map(|(parameter, sum)| {
            let fisher = (sum / columns.len().max(1) as f64)?;
            Ok((parameter.clone(), fisher))
        });
        Ok(Self {
            strength,
            held: held.collect::<Result<_>>()?,
        })
    }

    /// Adds it to a batch's loss and gradient at `adapter`.
    pub(super) fn add<A: Trainable>(&self, adapter: &A, gradient: &mut Gradient) -> Result<()> {
        let parameters = adapter.parameters().into_iter().zip(&mut gradient.parameters);
        for ((parameter, slope), (old, fisher)) in parameters.zip(&self.held) {
            let moved = (parameter - old)?;
            let pull = (fisher * &moved)?;
            let cost = (&pull * &moved)?.sum_all()?.to_dtype(DType::F64)?;
            gradient.loss += self.strength * cost.to_scalar::<f64>()?;
            *slope = (&*slope + (pull * (2.0 * self.strength))?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::adapter::embedding::normalise;
    use crate::adapter::linear::Linear;

    fn tensor(rows: usize, seed: f64) -> Tensor {
        let values = (0..rows * 4).map(|i| (i as f64 * 12.9898 + seed).sin());
        let tensor = Tensor::from_iter(values, &Device::Cpu).and_then(|t| t.reshape((rows, 4)));
        tensor.expect("numbers")
    }

    #[test]
    fn what_moves_pays_by_its_fisher_information() -> Result<()> {
        let bias = tensor(1, 0.3).squeeze(0)?;
        let old = Linear {
            weight: tensor(4, 0.1),
            bias: bias.clone(),
        };
        let (rows, anchors) = (tensor(3, 0.2), normalise(&tensor(5, 0.4))?);
        let targets = Targets {
            anchors: &anchors,
            scale: 3.0,
            pairs: None,
        };
        let columns = [0, 4, 2];
        let penalty = Penalty::measure(&old, &targets, (&rows, &columns), 0.7)?;

        let mut fisher = 0.0;
        for (place, column) in columns.iter().enumerate() {
            let alone = old.gradient(&targets, &rows.narrow(0, place, 1)?, &[*column])?;
            fisher += alone.parameters[0].get(1)?.get(2)?.to_scalar::<f64>()?.powi(2) / 3.0;
        }
        let mut values = old.weight.to_vec2::<f64>()?;
        values[1][2] += 0.5;
        let moved = old.with(vec![Tensor::new(values, &Device::Cpu)?, bias]);
        let mut gradient = Gradient {
            loss: 1.0,
            parameters: vec![old.weight.zeros_like()?, old.bias.zeros_like()?],
        };
        penalty.add(&moved, &mut gradient)?;
        assert!((gradient.loss - (1.0 + 0.7 * fisher * 0.25)).abs() < 1e-12);
        let slope = gradient.parameters[0].to_vec2::<f64>()?;
        assert!((slope[1][2] - 2.0 * 0.7 * fisher * 0.5).abs() < 1e-12);
        let others: f64 = slope.iter().flatten().map(|value| value.abs()).sum();
        assert!(
            (others - slope[1][2].abs()).abs() < 1e-12,
            "what did not move is free"
        );
        Ok(())
    }
}
