//! Products with weights that nobody trains.
//!
//! Owner: the towers. Invariant: a gradient flows through such a product to its input and never to its weights. candle's
//! own product computes and keeps the gradient of both sides, which through a frozen tower would cost half of the
//! backward pass and as much memory as the tower has weights.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// `x · weight` of `(…, inputs)`, contiguous, and `(inputs, outputs)`, which may be transposed.
pub(super) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if !x.track_op() {
        return x.broadcast_matmul(weight);
    }
    let (inputs, outputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if shape.pop() != Some(inputs) {
        bail!("a product of {:?} and {:?}", x.shape(), weight.shape());
    }
    shape.push(outputs);
    let rows = x.reshape(((), inputs))?;
    rows.apply_op2(weight, Frozen)?.reshape(shape)
}

struct Frozen;

impl CustomOp2 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        multiply((x, x_layout), (weight, weight_layout))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        multiply((x, x_layout), (weight, weight_layout))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        weight: &Tensor,
        _product: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let of_x = gradient.contiguous()?.matmul(&weight.t()?)?;
        Ok((Some(of_x), None))
    }
}

/// The product of two matrices that fit together.
fn multiply<S: BackendStorage>(
    (x, x_layout): (&S, &Layout),
    (weight, weight_layout): (&S, &Layout),
) -> Result<(S, Shape)> {
    let ((rows, inputs), (_, outputs)) = (x_layout.shape().dims2()?, weight_layout.shape().dims2()?);
    let product = x.matmul(weight, (1, rows, outputs, inputs), x_layout, weight_layout)?;
    Ok((product, Shape::from((rows, outputs))))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn it_is_candle_s_product_and_gradient_without_that_of_the_weights() -> Result<()> {
        let x = Var::rand(-1.0_f32, 1.0, (2, 3, 5), &Device::Cpu)?;
        let weight = Tensor::rand(-1.0_f32, 1.0, (5, 4), &Device::Cpu)?;
        let theirs = x.broadcast_matmul(&weight)?;
        let of_theirs = theirs.sqr()?.backward()?;
        let apart = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
        let gradient = |of: &candle_core::backprop::GradStore| of.get(&x).cloned().expect("a gradient");
        for weight in [weight.clone(), weight.t()?.contiguous()?.t()?] {
            let ours = product(&x, &weight)?;
            assert!(apart(&ours, &theirs)? < 1e-6);
            let of_ours = ours.sqr()?.backward()?;
            assert!(apart(&gradient(&of_ours), &gradient(&of_theirs))? < 1e-5);
            assert!(of_ours.get(&weight).is_none());
        }
        assert!(of_theirs.get(&weight).is_some(), "candle computes it");
        assert!(product(&x, &weight.t()?).is_err(), "shapes are compared");
        Ok(())
    }
}
