//! What a training moves: an adapter as a list of parameters, and the gradient of a batch's loss by each of them.

use candle_core::{DType, Result, Tensor, Var};

use super::objective::Targets;

/// Weights that are trained by gradient. Never changed in place: every step makes a new value.
pub(super) trait Trainable: Clone + Send {
    /// Its parameters, always in the same order. Those of rank two are what retention is about; vectors stay new.
    fn parameters(&self) -> Vec<&Tensor>;

    /// The same adapter with other `parameters`, in that order.
    fn with(&self, parameters: Vec<Tensor>) -> Self;

    /// The loss of rows x (n, …) whose classes are the `columns` (n), and its gradient by each parameter.
    fn gradient(&self, targets: &Targets<'_>, x: &Tensor, columns: &[u32]) -> Result<Gradient>;

    /// What makes its gradients for these targets faster, if there is something.
    fn fused(&self, _targets: &Targets<'_>) -> Result<Option<Box<dyn Fused<Self>>>> {
        Ok(None)
    }
}

/// Gradients of an adapter for targets that are prepared once.
pub(super) trait Fused<A>: Send {
    /// As [`Trainable::gradient`], but for the rounding.
    fn gradient(&mut self, adapter: &A, x: &Tensor, columns: &[u32]) -> Result<Gradient>;
}

/// A batch's loss and its gradient.
pub(super) struct Gradient {
    /// In nats.
    pub(super) loss: f64,
    /// By each parameter, in their order.
    pub(super) parameters: Vec<Tensor>,
}

/// The gradient of a loss by each of the `parameters`: automatic differentiation of `outputs(parameters)` alone, whose own
/// slope is known by hand. `slope` is asked for it with the outputs, of which nothing is tracked.
pub(super) fn pulled_back(
    parameters: &[&Tensor],
    outputs: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    slope: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let variables: Vec<Var> = parameters
        .iter()
        .map(|parameter| Var::from_tensor(parameter))
        .collect::<Result<_>>()?;
    let tracked: Vec<Tensor> = variables.iter().map(|var| var.as_tensor().clone()).collect();
    let outputs = outputs(&tracked)?;
    let slope = slope(&outputs.detach())?;
    let gradients = (outputs * slope)?.sum_all()?.backward()?;
    let of = |var: &Var| match gradients.get(var) {
        Some(gradient) => Ok(gradient.clone()),
        // A parameter that the outputs do not depend on.
        None => var.zeros_like(),
    };
    variables.iter().map(of).collect()
}

/// The sum of all values, which is finite only if each of them is.
pub(super) fn total(parameters: &[&Tensor]) -> Result<f64> {
    parameters.iter().try_fold(0.0, |sum, parameter| {
        let part = parameter.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        Ok(sum + part)
    })
}
