//! Values of tensors in the host's memory, read where they lie.

use candle_core::{Result, Storage, Tensor, WithDType};

/// What `look` sees in the values of a tensor, row by row.
///
/// # Errors
/// When they are of another type, lie on a device, or have gaps between them.
pub(super) fn read<T: WithDType, R>(tensor: &Tensor, look: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(values), Some((start, end))) => look(&values.as_slice::<T>()?[start..end]),
        _ => candle_core::bail!("values that do not lie in the host's memory one after another"),
    }
}
