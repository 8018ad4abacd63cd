//! Element-wise steps of a transformer layer that are one pass on the CPU.
//!
//! Owner: the encoder. candle's own operators take a pass (and fresh memory) for each of bias, activation and
//! residual, and hand large tensors to threads of their own that no setting of ours bounds; here they are one loop over
//! memory that is already ours, on the thread that asks. On other devices, in other types than f32, and where a gradient
//! is to flow through them, the same formulas are composed of candle's operators. Invariants: a row's result depends on
//! that row alone; what a gradient is asked of is never written in place.

use candle_core::{CpuStorage, D, DType, InplaceOp2, InplaceOp3, Layout, Result, Tensor, bail};
use candle_nn::{Module as _, ops};
use candle_transformers::models::clip;

use super::config::Activation;

/// `LayerNorm(x) · weight + bias` over the last dimension of `x`, contiguous.
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    if x.track_op() {
        // candle's fast layer norm has no gradient.
        return ops::layer_norm_slow(x, weight, bias, eps);
    }
    if !is_one_loop(x) {
        return ops::layer_norm(x, weight, bias, eps);
    }
    let out = x.copy()?;
    out.inplace_op3(weight, bias, &LayerNorm { eps })?;
    Ok(out)
}

/// The softmax over the last dimension of `x`, contiguous.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    if x.track_op() {
        // candle's fast softmax has no gradient.
        return ops::softmax(x, D::Minus1);
    }
    ops::softmax_last_dim(x)
}

/// `x + repeated`, whose dimensions are the last ones of `x`: a bias, positions, a mask. Takes `x`, which must be
/// nobody else's.
pub(super) fn add_repeated(x: Tensor, repeated: &Tensor) -> Result<Tensor> {
    if is_one_loop(&x) {
        x.inplace_op2(repeated, &AddRepeated)?;
        return Ok(x);
    }
    x.broadcast_add(repeated)
}

/// `activation(x + bias)`; takes `x`, which must be nobody else's.
pub(super) fn bias_activation(x: Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    if is_one_loop(&x) {
        x.inplace_op2(bias, &BiasActivation(activation))?;
        return Ok(x);
    }
    let x = x.broadcast_add(bias)?;
    match activation {
        Activation::QuickGelu => clip::text_model::Activation::QuickGelu.forward(&x),
        Activation::Gelu => x.gelu_erf(),
    }
}

/// `x + bias + residual`; takes `x`, which must be nobody else's.
pub(super) fn bias_residual(x: Tensor, bias: &Tensor, residual: &Tensor) -> Result<Tensor> {
    if is_one_loop(&x) && !residual.track_op() {
        x.inplace_op3(bias, residual, &BiasResidual)?;
        return Ok(x);
    }
    x.broadcast_add(bias)? + residual
}

/// The slope inside OpenAI's `x · sigmoid(1.702 x)` (<https://github.com/hendrycks/GELUs>).
const QUICK_GELU_SLOPE: f32 = 1.702;

fn is_one_loop(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32 && !x.track_op()
}

struct AddRepeated;

impl InplaceOp2 for AddRepeated {
    fn name(&self) -> &'static str {
        "add-repeated"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        repeated: &CpuStorage,
        repeated_layout: &Layout,
    ) -> Result<()> {
        let repeated = values(repeated, repeated_layout)?;
        for part in values_mut(x, x_layout)?.chunks_exact_mut(repeated.len()) {
            part.iter_mut().zip(repeated).for_each(|(x, r)| *x += r);
        }
        Ok(())
    }
}

struct BiasActivation(Activation);

impl InplaceOp2 for BiasActivation {
    fn name(&self) -> &'static str {
        "bias-activation"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        let bias = values(bias, bias_layout)?;
        let x = values_mut(x, x_layout)?;
        for row in x.chunks_exact_mut(bias.len()) {
            match self.0 {
                Activation::QuickGelu => row
                    .iter_mut()
                    .zip(bias)
                    .for_each(|(x, b)| *x = quick_gelu(*x + b)),
                Activation::Gelu => row.iter_mut().zip(bias).for_each(|(x, b)| *x = gelu(*x + b)),
            }
        }
        Ok(())
    }
}

fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + (-QUICK_GELU_SLOPE * x).exp())
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}

struct BiasResidual;

impl InplaceOp3 for BiasResidual {
    fn name(&self) -> &'static str {
        "bias-residual"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<()> {
        let bias = values(bias, bias_layout)?;
        let residual = values(residual, residual_layout)?;
        let x = values_mut(x, x_layout)?;
        for (row, residual) in x
            .chunks_exact_mut(bias.len())
            .zip(residual.chunks_exact(bias.len()))
        {
            row.iter_mut()
                .zip(bias)
                .zip(residual)
                .for_each(|((x, b), r)| *x += b + r);
        }
        Ok(())
    }
}

struct LayerNorm {
    eps: f32,
}

impl InplaceOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        let weight = values(weight, weight_layout)?;
        let bias = values(bias, bias_layout)?;
        let x = values_mut(x, x_layout)?;
        let width = weight.len() as f32;
        for row in x.chunks_exact_mut(weight.len()) {
            // Two passes: the one-pass variance loses digits when the mean is far from zero, and CLIP's residual
            // stream has channels of that kind.
            let mean = sum(row.iter().copied()) / width;
            let variance = sum(row.iter().map(|x| (x - mean) * (x - mean))) / width;
            let scale = (variance + self.eps).sqrt().recip();
            for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
                *x = (*x - mean) * scale * w + b;
            }
        }
        Ok(())
    }
}

fn sum(values: impl Iterator<Item = f32>) -> f32 {
    values.sum()
}

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused step needs contiguous memory"),
    }
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("a fused step needs contiguous f32 memory"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// Of x, bias and residual.
    type Step = fn(Tensor, &Tensor, &Tensor) -> Result<Tensor>;

    fn noise(rows: usize, width: usize, widest: f64) -> Tensor {
        let values = (0..rows * width).map(|i| (i as f64 * 12.9898).sin() * widest);
        Tensor::from_iter(values, &Device::Cpu)
            .and_then(|t| t.reshape((rows, width)))
            .expect("noise")
    }

    /// In f64 the steps are composed of operators, as they are on other devices.
    #[test]
    fn fused_steps_are_the_composed_ones() -> Result<()> {
        let (x, residual) = (noise(5, 16, 4.0), noise(5, 16, 2.0));
        let bias = noise(1, 16, 1.5).squeeze(0)?;
        let steps: [Step; 5] = [
            |x, bias, _| add_repeated(x, bias),
            |x, _, residual| add_repeated(x.reshape((1, 5, 16))?, residual),
            |x, bias, _| bias_activation(x, bias, Activation::QuickGelu),
            |x, bias, _| bias_activation(x, bias, Activation::Gelu),
            bias_residual,
        ];
        for step in steps {
            let composed = step(x.copy()?, &bias, &residual)?;
            let narrow = |tensor: &Tensor| tensor.to_dtype(DType::F32);
            let fused = step(narrow(&x)?, &narrow(&bias)?, &narrow(&residual)?)?;
            let apart = (fused.to_dtype(DType::F64)? - composed)?.abs()?.max_all()?;
            assert!(apart.to_scalar::<f64>()? < 2e-6);
        }
        Ok(())
    }

    #[test]
    fn steps_that_a_gradient_flows_through_leave_what_they_are_given_alone() -> Result<()> {
        let (bias, residual) = (noise(1, 16, 1.5).squeeze(0)?, noise(5, 16, 2.0));
        let narrow = |tensor: &Tensor| tensor.to_dtype(DType::F32);
        let (bias, residual) = (narrow(&bias)?, narrow(&residual)?);
        let steps: [Step; 6] = [
            |x, bias, _| add_repeated(x, bias),
            |x, bias, _| bias_activation(x, bias, Activation::QuickGelu),
            |x, bias, _| bias_activation(x, bias, Activation::Gelu),
            bias_residual,
            |x, bias, _| layer_norm(&x, bias, bias, 1e-5),
            |x, _, _| softmax(&x),
        ];
        for step in steps {
            let values = narrow(&noise(5, 16, 4.0))?;
            let x = Var::from_tensor(&values)?;
            let tracked = step(x.as_tensor().clone(), &bias, &residual)?;
            assert!(tracked.backward()?.get(&x).is_some());
            let apart = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
            assert!(apart(&x, &values)? == 0.0);
            assert!(apart(&tracked, &step(values.copy()?, &bias, &residual)?)? < 2e-6);
        }
        Ok(())
    }
}
