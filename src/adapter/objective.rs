//! The loss of a batch and its gradient, written out by hand: it costs a quarter of what automatic differentiation
//! costs, because nothing but the four products is kept.
//!
//! ```text
//! y = W x + b,  u = y / |y|,  logits = s · T u,  loss = mean cross-entropy
//! ∂logits = (softmax(logits) − onehot) / n
//! ∂u = s · ∂logits T,   ∂y = (∂u − (∂u·u) u) / |y|,   ∂W = ∂yᵀ x,   ∂b = Σ ∂y
//! ```

use candle_core::{D, DType, Result, Tensor};

use super::embedding::lengths;
use super::linear::Linear;

/// A batch's loss, and its gradient with respect to the adapter.
pub(super) struct Evaluated {
    /// Mean cross-entropy in nats.
    pub(super) loss: f64,
    /// ∂W, (D, D).
    pub(super) weight: Tensor,
    /// ∂b, (D).
    pub(super) bias: Tensor,
}

/// What embeddings are compared with.
pub(super) struct Targets<'a> {
    /// T, (C, D), unit rows.
    pub(super) anchors: &'a Tensor,
    /// s.
    pub(super) scale: f64,
}

impl Targets<'_> {
    /// Mean cross-entropy of embeddings x (n, D) against their `columns` (n), and its gradient at `adapter`.
    pub(super) fn evaluate(&self, adapter: &Linear, x: &Tensor, columns: &[u32]) -> Result<Evaluated> {
        let y = adapter.apply(x)?;
        let length = lengths(&y)?;
        let u = y.broadcast_div(&length)?;
        let logits = (u.matmul(&self.anchors.t()?)? * self.scale)?;

        let index = Tensor::new(columns, x.device())?.unsqueeze(1)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        let exponentials = shifted.exp()?;
        let sums = exponentials.sum_keepdim(D::Minus1)?;
        let loss = (sums.log()? - shifted.gather(&index, 1)?)?
            .mean_all()?
            .to_dtype(DType::F64)?
            .to_scalar()?;

        let minus_one = (index.ones_like()?.to_dtype(x.dtype())? * -1.0)?;
        let d_logits = exponentials
            .broadcast_div(&sums)?
            .scatter_add(&index, &minus_one, 1)?;
        let d_u = (d_logits.matmul(self.anchors)? * (self.scale / columns.len() as f64))?;
        let along = (&d_u * &u)?.sum_keepdim(D::Minus1)?;
        let d_y = (d_u - u.broadcast_mul(&along)?)?.broadcast_div(&length)?;
        Ok(Evaluated {
            loss,
            weight: d_y.t()?.matmul(x)?,
            bias: d_y.sum(0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::adapter::embedding::normalise;
    use crate::domain::Initialisation;

    const DIM: usize = 12;
    const COLUMNS: [u32; 5] = [0, 3, 6, 3, 2];

    fn random(seed: u64) -> Result<Linear> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let Linear { weight, .. } = Linear::initial(Initialisation::Kaiming, DIM, &mut rng, &Device::Cpu)?;
        let bias = weight.get(0)?.copy()?;
        Ok(Linear { weight, bias })
    }

    fn problem() -> Result<(Linear, Tensor, Tensor)> {
        let x = random(2)?.weight.narrow(0, 0, COLUMNS.len())?;
        Ok((random(1)?, x, normalise(&random(3)?.weight.narrow(0, 0, 7)?)?))
    }

    fn furthest(a: &Tensor, b: &Tensor) -> Result<f64> {
        (a - b)?.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar()
    }

    #[test]
    fn loss_and_gradient_agree_with_automatic_differentiation() -> Result<()> {
        let (adapter, x, anchors) = problem()?;
        let weight = Var::from_tensor(&adapter.weight)?;
        let bias = Var::from_tensor(&adapter.bias)?;
        let y = x.matmul(&weight.t()?)?.broadcast_add(&bias)?;
        let u = y.broadcast_div(&y.sqr()?.sum_keepdim(1)?.sqrt()?)?;
        let logits = (u.matmul(&anchors.t()?)? * 5.0)?;
        let loss = candle_nn::loss::cross_entropy(&logits, &Tensor::new(&COLUMNS, &Device::Cpu)?)?;
        let gradients = loss.backward()?;

        let by_hand = Targets {
            anchors: &anchors,
            scale: 5.0,
        }
        .evaluate(&adapter, &x, &COLUMNS)?;
        assert!((by_hand.loss - f64::from(loss.to_scalar::<f32>()?)).abs() < 1e-5);
        let found = |var: &Var| gradients.get(var).cloned().expect("a gradient");
        assert!(furthest(&by_hand.weight, &found(&weight))? < 1e-5);
        assert!(furthest(&by_hand.bias, &found(&bias))? < 1e-5);
        Ok(())
    }

    #[test]
    fn gradient_agrees_with_finite_differences() -> Result<()> {
        let (adapter, x, anchors) = problem()?;
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
        let (x, anchors) = (wide(&x)?, wide(&anchors)?);
        let targets = Targets {
            anchors: &anchors,
            scale: 5.0,
        };
        let (weight, bias) = (wide(&adapter.weight)?, wide(&adapter.bias)?);
        let adapter = Linear {
            weight: weight.clone(),
            bias: bias.clone(),
        };
        let gradient = targets.evaluate(&adapter, &x, &COLUMNS)?;
        let step = 1e-5;
        for (row, column) in [(0, 0), (3, 7), (11, 2)] {
            let mut values = weight.to_vec2::<f64>()?;
            let mut loss_at = |offset: f64| {
                values[row][column] += offset;
                let weight = Tensor::new(values.clone(), &Device::Cpu)?;
                targets
                    .evaluate(
                        &Linear {
                            weight,
                            bias: bias.clone(),
                        },
                        &x,
                        &COLUMNS,
                    )
                    .map(|found| found.loss)
            };
            let slope = (loss_at(step)? - loss_at(-2.0 * step)?) / (2.0 * step);
            let exact = gradient.weight.get(row)?.get(column)?.to_scalar::<f64>()?;
            assert!((slope - exact).abs() < 1e-7, "{slope} and {exact}");
        }
        Ok(())
    }
}
