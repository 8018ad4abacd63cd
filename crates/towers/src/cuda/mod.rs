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
//! Invariants: weights never change; all memory is taken at load; everything that touches it is in the order of one stream, but
//! for pixels, which are copied in another while the images before them are computed.

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
use cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream, CudaView, DriverError};

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
    graphs: HashMap<Asked, Kept>,
}

/// A forward that can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Asked {
    images: usize,
    wanted: Wanted,
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

/// Images to be encoded, each `(3, image_size, image_size)`.
pub enum Pixels<'a> {
    /// In the host's memory, wherever they are.
    Host(&'a [&'a [f32]]),
    /// On the device, one after another.
    Device(CudaView<'a, f32>),
}

/// What is wanted of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Features alone.
    Features,
    /// The last layer's hidden states, too.
    States,
}

/// What the tower makes of n images, on the device: in the making, for whoever does not wait for it.
pub struct Encoded {
    /// Features `(n, dim)`, not normalised.
    pub features: CudaSlice<f32>,
    /// The last layer's hidden states `(n, t, width)`, class token first, if they were asked for.
    pub states: Option<CudaSlice<f32>>,
}

impl ImageTower {
    /// Whether there are kernels for a tower.
    pub fn suits(shape: &ImageShape) -> bool {
        let of = &shape.transformer;
        let heads = of.width / of.heads;
        let in_eights = [
            of.width,
            of.mlp_width,
            shape.dim,
            shape.image_size * shape.image_size,
        ];
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

    /// What it computes in.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Puts the encoding of images into the stream.
    ///
    /// # Errors
    /// What the device says, perhaps of what it computed before.
    ///
    /// # Panics
    /// When an image has not as many pixels as it should.
    pub fn forward(&self, pixels: &Pixels<'_>, wanted: Wanted) -> Result<Encoded, Error> {
        let image = self.shape.pixels();
        let images = match pixels {
            Pixels::Host(images) => images.len(),
            Pixels::Device(values) => values.len() / image,
        };
        let states = self.shape.tokens() * self.shape.transformer.width;
        let mut features = self.stream.alloc_zeros(images * self.shape.dim)?;
        let mut all_states = match wanted {
            Wanted::Features => None,
            Wanted::States => Some(self.stream.alloc_zeros(images * states)?),
        };
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        // Parts of one size: a last one of few images would keep the device waiting for its host.
        let part = images.div_ceil(images.div_ceil(self.chunk).max(1)).max(1);
        for first in (0..images).step_by(part) {
            let asked = Asked {
                images: part.min(images - first),
                wanted,
            };
            let (dim, to) = (self.shape.dim, first..first + asked.images);
            match pixels {
                Pixels::Host(images) => room.staging.send(&images[to.clone()])?,
                Pixels::Device(values) => {
                    let values = values.slice(to.start * image..to.end * image);
                    let values = Matrix::lent(&self.stream, &values, self.shape.image_size);
                    self.tower.narrow(values, room.staging.pixels(asked.images))?;
                }
            }
            self.compute(&mut room, asked)?;
            let done = room.activations.features(asked.images * dim);
            let mut of = features.slice_mut(to.start * dim..to.end * dim);
            self.stream.memcpy_dtod(&done, &mut of)?;
            if let Some(all) = &mut all_states {
                let mut of = all.slice_mut(to.start * states..to.end * states);
                let done = room.activations.states(asked.images * states);
                self.stream.memcpy_dtod(&done, &mut of)?;
            }
        }
        Ok(Encoded {
            features,
            states: all_states,
        })
    }

    /// Puts the encoding of the images that were staged into the stream.
    fn compute(&self, room: &mut Room, asked: Asked) -> Result<(), Error> {
        let Room {
            staging,
            activations,
            graphs,
        } = room;
        self.tower.unfold(staging.pixels(asked.images), activations)?;
        staging.release()?;
        if asked.images * self.shape.tokens() > GRAPH_TOKENS {
            return self.tower.forward(activations, asked);
        }
        match graphs.get(&asked) {
            Some(Kept::Graph(graph)) => graph.0.launch()?,
            // The first time what it needs is loaded, which must not be recorded.
            None => {
                self.tower.forward(activations, asked)?;
                graphs.insert(asked, Kept::Ran);
            }
            Some(Kept::Ran) => {
                let graph = self.recorded(|| self.tower.forward(activations, asked))?;
                graph.0.launch()?;
                graphs.insert(asked, Kept::Graph(graph));
            }
        }
        Ok(())
    }

    /// What `work` puts into the stream, recorded and not done.
    fn recorded(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        self.stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)?;
        let worked = work();
        // Ended in any case: a stream that records computes nothing.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        worked?;
        Ok(Graph(graph?.expect("a graph of what was recorded")))
    }
}

impl fmt::Display for ImageTower {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("CUDA kernels bf16")
    }
}
