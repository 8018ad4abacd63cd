//! Pixels on their way to the device.
//!
//! They are brought together on all threads in memory that the device reads by itself, and copied in a stream of their own: the
//! next images are on their way while those before them are computed.
//!
//! Owner: the tower's room. Invariants: page-locked memory is written when it was copied, and pixels on the device when they were
//! read.

#![expect(
    unsafe_code,
    reason = "page-locked memory has no safe form; the block says why it is sound"
)]

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, DriverError, PinnedHostSlice};
use rayon::prelude::*;

use super::Error;
use super::memory::{Matrix, Memory};
use crate::ImageShape;

pub(super) struct Staging {
    /// Used in turn.
    staged: [Staged; 2],
    turn: usize,
    pixels: Memory<u8>,
    /// Computes.
    stream: Arc<CudaStream>,
    /// Copies.
    copying: Arc<CudaStream>,
    /// In `stream`: pixels were read.
    read: CudaEvent,
    size: usize,
}

/// Page-locked memory.
struct Staged {
    bytes: PinnedHostSlice<u8>,
    /// In `copying`: they were copied.
    copied: CudaEvent,
}

impl Staged {
    fn new(stream: &CudaStream, len: usize) -> Result<Self, DriverError> {
        let context = stream.context();
        // SAFETY: whatever is there, it is bytes; and only what was written is copied.
        let bytes = unsafe { context.alloc_pinned(len) }?;
        Ok(Self {
            bytes,
            copied: context.new_event(None)?,
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The memory must outlive the copies out of it.
        let _ = self.copying.synchronize();
    }
}

impl Staging {
    /// For so many images at a time.
    pub(super) fn new(shape: &ImageShape, stream: &Arc<CudaStream>, images: usize) -> Result<Self, Error> {
        let len = images * shape.bytes();
        let context = stream.context();
        Ok(Self {
            staged: [Staged::new(stream, len)?, Staged::new(stream, len)?],
            turn: 0,
            pixels: Memory::zeros(stream, len)?,
            copying: context.new_stream()?,
            read: context.new_event(None)?,
            stream: Arc::clone(stream),
            size: shape.image_size,
        })
    }

    /// Sends images; what is put into the stream next finds them.
    pub(super) fn send(&mut self, images: &[&[u8]]) -> Result<(), DriverError> {
        self.turn = 1 - self.turn;
        let Staged { bytes, copied } = &mut self.staged[self.turn];
        // Once it was recorded, what it was recorded behind is over.
        copied.synchronize()?;
        let image = 3 * self.size.pow(2);
        assert!(
            images.iter().all(|bytes| bytes.len() == image),
            "images of another size"
        );
        let bytes = &mut bytes.as_mut_slice()?[..images.len() * image];
        let of_images = bytes.par_chunks_mut(image).zip(images);
        of_images.for_each(|(to, from)| to.copy_from_slice(from));
        self.copying.wait(&self.read)?;
        self.copying.memcpy_htod(&*bytes, self.pixels.values_mut())?;
        copied.record(&self.copying)?;
        self.stream.wait(copied)
    }

    /// Where the pixels of so many images are, `(n · 3 · size, size)`.
    pub(super) fn pixels(&self, images: usize) -> Matrix<u8> {
        self.pixels.matrix(images * 3 * self.size, self.size)
    }

    /// Says that what reads the pixels is in the stream: others may follow.
    pub(super) fn release(&self) -> Result<(), DriverError> {
        self.read.record(&self.stream)
    }
}
