//! CLIP's image tower on an NVIDIA GPU, in bfloat16.
//!
//! | module | holds |
//! |---|---|
//! | `memory` | memory on the device, and matrices in it |
//! | `kernels` | what is between the products: norms, attention, activation |
//! | `products` | products with the weights |
//! | `tower` | the weights, and what is computed with them |
//! | `staging` | pixels on their way to the device |
//!
//! Weights, activations and residuals are bfloat16, sums f32. A forward is put into a stream and not waited for. Where batches
//! are so small that launches would take longer than what they launch, the same forward is kept as a graph.
//!
//! Owner: whoever holds the tower; forwards take turns. Invariants: weights never change; memory is taken at load, and results go
//! where the caller has room for them; everything that touches the tower's memory is in the order of one stream of its own, which
//! nobody else uses, but for pixels, which are copied in another while the images before them are computed.

mod kernels;
mod memory;
mod products;
mod staging;
mod tower;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaGraph, CudaSlice, CudaStream, CudaView, DeviceSlice as _, DriverError,
};

use crate::{ImageShape, Take};
use memory::Matrix;
use staging::Staging;
use tower::{Activations, Tower};

/// Tokens that are computed at a time: enough to keep a large device busy.
const TOKENS: usize = 16384;
/// Tokens up to which a forward is kept as a graph: with more, a device computes longer than its host launches.
const GRAPH_TOKENS: usize = 4096;

/// Why a tower does not load or compute.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver's reason.
    #[error("CUDA: {0}")]
    Driver(#[from] DriverError),
    /// cuBLASLt's reason.
    #[error("cuBLASLt: {0}")]
    Products(#[from] CublasError),
}

/// An image tower on a device, ready to be used.
pub struct ImageTower {
    shape: ImageShape,
    tower: Tower,
    stream: Arc<CudaStream>,
    /// Images that are computed at a time, at most.
    chunk: usize,
    room: Mutex<Room>,
}

/// Memory that forwards use again.
struct Room {
    staging: Staging,
    activations: Activations,
    graphs: HashMap<Kind, Kept>,
}

/// A forward that can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    images: usize,
    wanted: Wanted,
}

/// What is wanted of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wanted {
    /// Features alone.
    Features,
    /// The last layer's hidden states, too.
    States,
}

/// What is kept of one.
enum Kept {
    /// That it ran: what it needed is loaded.
    Ran,
    Graph(Graph),
}

struct Graph(CudaGraph);

// SAFETY: a graph may be used by any thread, one at a time: it lies behind the room's mutex.
#[expect(unsafe_code, reason = "the type has a pointer of the driver's")]
unsafe impl Send for Graph {}

/// Images to be encoded, each `(3, image_size, image_size)` bytes.
pub enum Pixels<'a> {
    /// In the host's memory, wherever they are.
    Host(&'a [&'a [u8]]),
    /// On the device, one after another.
    Device(CudaView<'a, u8>),
}

impl ImageTower {
    /// Whether there are kernels for a tower.
    pub fn suits(shape: &ImageShape) -> bool {
        let of = &shape.transformer;
        let heads = of.width / of.heads;
        let in_eights = [of.width, of.mlp_width, shape.dim];
        shape.patch_size.is_multiple_of(2)
            && shape.image_size.is_multiple_of(2)
            && kernels::HEADS.contains(&heads)
            && of.width <= kernels::WIDEST
            && in_eights.iter().all(|of| of.is_multiple_of(8))
    }

    /// Takes `vision_model.…` and `visual_projection` to the device of a context.
    ///
    /// # Errors
    /// Whatever `take` or the device says.
    ///
    /// # Panics
    /// When the shape does not suit it.
    pub fn load<E: From<Error>>(
        shape: ImageShape,
        context: &Arc<CudaContext>,
        take: &mut Take<'_, E>,
    ) -> Result<Self, E> {
        assert!(Self::suits(&shape), "no kernels for this shape");
        let stream = context.new_stream().map_err(Error::from)?;
        let chunk = TOKENS.div_ceil(shape.tokens());
        let tower = Tower::load(shape, &stream, take)?;
        let room = Room {
            staging: Staging::new(&shape, &stream, chunk)?,
            activations: Activations::new(&shape, &stream, chunk)?,
            graphs: HashMap::new(),
        };
        Ok(Self {
            shape,
            tower,
            stream,
            chunk,
            room: Mutex::new(room),
        })
    }

    /// Puts the encoding of images into the stream: `features` `(n, dim)`, not normalised, and, where they are asked for, the last
    /// layer's hidden `states` `(n, t, width)`, class token first. What reads them in another stream waits for them, by the context's
    /// tracking of events.
    ///
    /// # Errors
    /// What the device says, perhaps of what it computed before.
    ///
    /// # Panics
    /// When an image has not as many bytes as it should, or there is no room for all results.
    pub fn forward(
        &self,
        pixels: &Pixels<'_>,
        features: &mut CudaSlice<f32>,
        mut states: Option<&mut CudaSlice<f32>>,
    ) -> Result<(), Error> {
        let image = self.shape.bytes();
        let images = match pixels {
            Pixels::Host(images) => images.len(),
            Pixels::Device(values) => {
                assert!(values.len().is_multiple_of(image), "images of another size");
                values.len() / image
            }
        };
        let (dim, of_states) = (self.shape.dim, self.shape.tokens() * self.shape.transformer.width);
        let wanted = match states {
            None => Wanted::Features,
            Some(_) => Wanted::States,
        };
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if let Pixels::Device(values) = pixels {
            // Not all who launch kernels say what those write.
            self.stream.join(values.stream())?;
        }
        // Parts of one size: a last one of few images would keep the device waiting for its host.
        let part = images.div_ceil(images.div_ceil(self.chunk).max(1)).max(1);
        for first in (0..images).step_by(part) {
            let part = first..images.min(first + part);
            let kind = Kind {
                images: part.len(),
                wanted,
            };
            match pixels {
                Pixels::Host(images) => {
                    room.staging.send(&images[part.clone()])?;
                    let pixels = room.staging.pixels(kind.images);
                    self.tower.unfold(pixels, &room.activations)?;
                    room.staging.release()?;
                }
                Pixels::Device(values) => {
                    let values = values.slice(part.start * image..part.end * image);
                    let (values, _until_it_is_read) =
                        Matrix::lent(&self.stream, &values, self.shape.image_size);
                    self.tower.unfold(values, &room.activations)?;
                }
            }
            self.compute(&mut room, kind)?;
            let done = room.activations.features(kind.images * dim);
            let mut to = features.slice_mut(part.start * dim..part.end * dim);
            self.stream.memcpy_dtod(&done, &mut to)?;
            if let Some(states) = states.as_deref_mut() {
                let done = room.activations.states(kind.images * of_states);
                let mut to = states.slice_mut(part.start * of_states..part.end * of_states);
                self.stream.memcpy_dtod(&done, &mut to)?;
            }
        }
        Ok(())
    }

    /// Puts the encoding of patches into the stream.
    fn compute(&self, room: &mut Room, kind: Kind) -> Result<(), Error> {
        let Room {
            activations, graphs, ..
        } = room;
        if kind.images * self.shape.tokens() > GRAPH_TOKENS {
            return self.tower.forward(activations, kind);
        }
        match graphs.get(&kind) {
            Some(Kept::Graph(graph)) => graph.0.launch()?,
            // The first time what it needs is loaded, which must not be recorded.
            None => {
                self.tower.forward(activations, kind)?;
                graphs.insert(kind, Kept::Ran);
            }
            Some(Kept::Ran) => {
                let graph = self.recorded(|| self.tower.forward(activations, kind))?;
                graph.0.launch()?;
                graphs.insert(kind, Kept::Graph(graph));
            }
        }
        Ok(())
    }

    /// What `work` puts into the stream, recorded and not done.
    fn recorded(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        let recording = Recording::begin(&self.stream)?;
        work()?;
        recording.end()
    }
}

/// A stream that records. It ends in any case: until then it computes nothing.
struct Recording<'a>(&'a Arc<CudaStream>);

impl<'a> Recording<'a> {
    fn begin(stream: &'a Arc<CudaStream>) -> Result<Self, DriverError> {
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
        Ok(Self(stream))
    }

    fn end(self) -> Result<Graph, Error> {
        // Where that fails before it has ended, it ends with `self`.
        let graph = self.0.end_capture(CUgraphInstantiate_flags(0))?;
        std::mem::forget(self);
        Ok(Graph(graph.expect("a graph of what was recorded")))
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let _ = self.0.end_capture(CUgraphInstantiate_flags(0));
    }
}

impl fmt::Display for ImageTower {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("CUDA kernels bf16")
    }
}
