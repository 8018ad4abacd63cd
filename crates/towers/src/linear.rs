//! A matrix as a tower multiplies with it: whole, or in halves.

use crate::blocks::Extent;
use crate::kernel::Kernel;
use crate::matrix::{Matrix, Output};
use crate::operand::{Left, Operand, Piecewise};
use crate::strassen::Halves;

/// `x ↦ x · Wᵀ + b`.
pub(crate) enum Linear<T: Operand> {
    Whole(Matrix<T>),
    Halves(Halves<T::Piece>),
}

impl<T: Operand> Linear<T> {
    /// As [`Matrix::pack`], in halves where the kernel multiplies such a matrix so: the rows of a block must be of one sequence.
    pub(crate) fn pack(weights: &[f32], inputs: usize, bias: &[f32], kernel: &Kernel<T>) -> Self {
        if kernel.cuts(inputs, weights.len() / inputs) {
            Self::Halves(Halves::pack(weights, inputs, bias, kernel.columns()))
        } else {
            Self::whole(weights, inputs, bias, kernel)
        }
    }

    /// As [`Matrix::pack`], for any rows.
    pub(crate) fn whole(weights: &[f32], inputs: usize, bias: &[f32], kernel: &Kernel<T>) -> Self {
        Self::Whole(Matrix::pack(weights, inputs, bias, kernel.columns()))
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
