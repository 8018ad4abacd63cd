//! A matrix as a tower multiplies with it: whole, or in halves.

use crate::blocks::Extent;
use crate::kernel::Kernel;
use crate::matrix::{Matrix, Output};
use crate::operand::{Left, Operand, Piecewise};
use crate::strassen::Halves;

/// What the rows of a block are to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kin {
    /// Tokens of one sequence: what becomes of one may depend on another.
    Related,
    /// Of several.
    Strangers,
}

/// `x ↦ x · Wᵀ + b`.
pub(crate) enum Linear<T: Operand> {
    Whole(Matrix<T>),
    Halves(Halves<T::Piece>),
}

impl<T: Operand> Linear<T> {
    /// As [`Matrix::pack`], for the products of a kernel and rows that are so to one another.
    pub(crate) fn pack(
        weights: &[f32],
        inputs: usize,
        bias: &[f32],
        (kernel, kin): (&Kernel<T>, Kin),
    ) -> Self {
        let width = kernel.columns();
        if kin == Kin::Related && kernel.cuts(inputs, weights.len() / inputs) {
            Self::Halves(Halves::pack(weights, inputs, bias, width))
        } else {
            Self::Whole(Matrix::pack(weights, inputs, bias, width))
        }
    }

    /// As [`Matrix::product`], or [`Halves::product`].
    pub(crate) fn product<O: Piecewise>(
        &self,
        kernel: &Kernel<T>,
        left: &mut Left<T>,
        extent: Extent,
        into: Output<'_, O>,
    ) {
        match self {
            Self::Whole(matrix) => matrix.product(kernel, left, extent, into),
            Self::Halves(halves) => halves.product(kernel, left, extent, into),
        }
    }
}
