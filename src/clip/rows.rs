//! Rows of tensors, and who computes them together.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

/// Runs a tower over `n` rows and gives its results in order. On the CPU every row is computed alone, rows side by
/// side on all cores: that keeps its working set in the cache, and its result free of its neighbours (the matrix
/// kernel's blocking, and with it the order of its sums, may depend on the number of rows).
pub(super) fn each<T, F>(device: &Device, n: usize, tower: F) -> Result<Vec<T>>
where
    T: Send,
    F: Fn(Range<usize>) -> Result<T> + Sync,
{
    if n == 0 {
        return Ok(Vec::new());
    }
    if !device.is_cpu() {
        return Ok(vec![tower(0..n)?]);
    }
    let rows = (0..n).into_par_iter().map(|row| tower(row..row + 1));
    rows.collect()
}

/// Rows of `width` values under one another.
pub(super) fn stacked(parts: &[Tensor], width: usize, device: &Device) -> Result<Tensor> {
    if parts.is_empty() {
        return Tensor::zeros((0, width), DType::F32, device);
    }
    Tensor::cat(parts, 0)
}

/// All bytes of a tensor of them, in order, on the processor.
pub(super) fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    tensor.flatten_all()?.to_vec1()
}

/// All values of a tensor, in order, on the processor.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
