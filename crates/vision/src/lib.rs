//! CLIP's image tower on the CPU.
//!
//! Weights are packed once into what the processor's vector instructions read in order; bias, activation and residual are
//! part of the products; memory for activations is taken once. Source of the model: `transformers`' `CLIPVisionModel` with
//! `visual_projection`. Map:
//!
//! | module | holds |
//! |---|---|
//! | `blocks` | how activations and weights lie in memory |
//! | `kernel` | products of rows and panels, by the processor's instructions |
//! | `elementwise` | layer norm, softmax, activations, by the same |
//! | `matrix` | a packed matrix and its products, on all threads |
//! | `attention` | the heads of a layer, on all threads |
//! | `layers` | the transformer |
//!
//! Invariants: weights never change; an image's features depend on it alone, bit for bit, whatever shares its batch and
//! however many threads there are; slices bound every access. Threads are those of the rayon pool that the caller runs in.

mod attention;
mod blocks;
mod elementwise;
mod kernel;
mod layers;
mod matrix;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::blocks::{Blocks, Extent, Layout};
use crate::kernel::Kernel;
use crate::layers::{Attending, LayerNorm, Layers, Stream};
use crate::matrix::{Matrix, Start};

/// The dimensions of an image tower.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Edge of the square input, in pixels.
    pub image_size: usize,
    /// Edge of a square patch, in pixels.
    pub patch_size: usize,
    /// Values of a token.
    pub width: usize,
    /// Values of a token inside the MLP.
    pub mlp_width: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads; they divide the width.
    pub heads: usize,
    /// Between the two layers of the MLP.
    pub activation: Activation,
    /// ε of the layer norms.
    pub layer_norm_epsilon: f32,
    /// Values of a feature row.
    pub dim: usize,
}

impl Shape {
    /// Patches along one edge; a remainder of the image is not seen, as with a convolution without padding.
    fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens an image: the class token and the patches.
    fn tokens(&self) -> usize {
        self.grid().pow(2) + 1
    }
}

/// The activation between the two layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(1.702 x)`, OpenAI's.
    QuickGelu,
    /// `x · Φ(x)`, as LAION's checkpoints use it.
    Gelu,
}

/// Instructions of this processor, and how wide the panels are that they multiply.
pub struct Instructions(Box<dyn Kernel>);

impl Instructions {
    /// Those that suit a tower, the best first. None do where its heads or its MLP are no multiple of eight values wide.
    pub fn for_shape(shape: &Shape) -> Vec<Self> {
        let columns = [shape.width / shape.heads, shape.mlp_width];
        let suits = |found: &Self| columns.iter().all(|of| of.is_multiple_of(found.0.columns()));
        kernel::all().into_iter().map(Self).filter(suits).collect()
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}×{}", self.0.name(), self.0.columns())
    }
}

/// Where weights come from: the values of the tensor with a name and exactly this shape, row by row. Names are those of
/// Hugging Face's checkpoints.
pub type Take<'a, E> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>, E> + 'a;

/// Tokens of the images that are computed at a time, for each thread: their activations stay in the caches.
const TOKENS: usize = 256;

/// The image tower's weights, packed, and room for its activations.
pub struct Tower {
    instructions: Instructions,
    shape: Shape,
    patches: Matrix,
    /// A block: the class token with its position, then the positions of patches.
    positions: Blocks,
    pre_norm: LayerNorm,
    layers: Layers,
    post_norm: LayerNorm,
    projection: Matrix,
    /// Images that are computed at a time.
    chunk: usize,
    room: Mutex<Room>,
}

/// Memory that forwards use again.
struct Room {
    patches: Blocks,
    /// A block an image.
    stream: Stream,
    attending: Attending,
    /// One block with a row an image: its class token.
    pooled: Stream,
    features: Blocks,
}

impl Tower {
    /// Takes `vision_model.…` and `visual_projection`.
    ///
    /// # Errors
    /// Whatever `take` says.
    pub fn load<E>(shape: Shape, instructions: Instructions, take: &mut Take<'_, E>) -> Result<Self, E> {
        let (width, patch, tokens) = (shape.width, shape.patch_size, shape.tokens());
        let (panel, inputs) = (instructions.0.columns(), 3 * patch * patch);
        let embeddings = "vision_model.embeddings";
        let patches = take(
            &format!("{embeddings}.patch_embedding.weight"),
            &[width, 3, patch, patch],
        )?;
        let class = take(&format!("{embeddings}.class_embedding"), &[width])?;
        let mut positions = take(
            &format!("{embeddings}.position_embedding.weight"),
            &[tokens, width],
        )?;
        let first = positions.iter_mut().zip(class);
        first.for_each(|(position, class)| *position += class);
        let projection = take("visual_projection.weight", &[shape.dim, width])?;
        let chunk = (TOKENS * rayon::current_num_threads()).div_ceil(tokens);
        Ok(Self {
            patches: Matrix::pack(&patches, inputs, &[], panel),
            positions: in_panels(&positions, width, panel),
            // The missing letters are in the checkpoints.
            pre_norm: LayerNorm::load(take, "vision_model.pre_layrnorm", &shape)?,
            layers: Layers::load(take, "vision_model.encoder", &shape, panel)?,
            post_norm: LayerNorm::load(take, "vision_model.post_layernorm", &shape)?,
            projection: Matrix::pack(&projection, width, &[], panel),
            chunk,
            room: Mutex::new(Room {
                patches: Blocks::zeros(Layout::new(panel, tokens, inputs), chunk),
                stream: Stream::new(&shape, panel, tokens, chunk),
                attending: Attending::new(&shape, panel, chunk),
                pooled: Stream::new(&shape, panel, chunk, 1),
                features: Blocks::zeros(Layout::new(panel, chunk, shape.dim), 1),
            }),
            shape,
            instructions,
        })
    }

    /// The instructions it uses.
    pub fn instructions(&self) -> &Instructions {
        &self.instructions
    }

    /// `(n, 3, image_size, image_size)` pixels, one after another, to features `(n, dim)`, not normalised. Where `states` is
    /// given, the last layer's hidden states `(n, t, width)`, class token first, are put behind what it holds.
    pub fn forward(&self, pixels: &[f32], mut states: Option<&mut Vec<f32>>) -> Vec<f32> {
        let image = 3 * self.shape.image_size.pow(2);
        let mut features = Vec::with_capacity(pixels.len() / image * self.shape.dim);
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        for images in pixels.chunks(self.chunk * image) {
            self.forward_chunk(images, &mut room, &mut features, states.as_deref_mut());
        }
        features
    }

    fn forward_chunk(
        &self,
        pixels: &[f32],
        room: &mut Room,
        features: &mut Vec<f32>,
        states: Option<&mut Vec<f32>>,
    ) {
        let kernel = self.instructions.0.as_ref();
        let Room {
            patches,
            stream,
            attending,
            pooled,
            features: projected,
        } = room;
        let images = self.unfold(pixels, patches);
        let extent = Extent {
            blocks: images,
            rows: self.shape.tokens(),
        };
        let positions = Start::Block(self.positions.block(0));
        self.patches
            .product(kernel, patches, extent, &mut stream.normed, positions, None);
        self.pre_norm
            .forward(kernel, &stream.normed, extent, &mut stream.x);
        match states {
            None => self
                .layers
                .forward_first(kernel, extent, stream, attending, pooled),
            Some(states) => {
                self.layers.forward(kernel, extent, stream, attending);
                for image in 0..images {
                    for token in 0..extent.rows {
                        states.extend(stream.x.row(image, token).flatten());
                    }
                }
                pooled.pool(stream, images);
            }
        }
        let rows = Extent {
            blocks: 1,
            rows: images,
        };
        self.post_norm
            .forward(kernel, &pooled.x, rows, &mut pooled.normed);
        self.projection
            .product(kernel, &pooled.normed, rows, projected, Start::Bias, None);
        for image in 0..images {
            features.extend(projected.row(0, image).flatten().take(self.shape.dim));
        }
    }

    /// Patches as rows behind an empty one for the class token, each in the order of the convolution's weights; how many
    /// images they are of.
    fn unfold(&self, pixels: &[f32], patches: &mut Blocks) -> usize {
        let (size, patch, grid) = (self.shape.image_size, self.shape.patch_size, self.shape.grid());
        let layout = patches.layout;
        let images = pixels.par_chunks_exact(3 * size * size);
        let count = images.len();
        let blocks = patches.values.par_chunks_mut(layout.len());
        blocks.zip(images).for_each(|(block, image)| {
            for (channel, plane) in image.chunks_exact(size * size).enumerate() {
                for (y, line) in plane.chunks_exact(size).take(grid * patch).enumerate() {
                    let first = (channel * patch + y % patch) * patch;
                    for (x, piece) in line.chunks_exact(patch).enumerate() {
                        let token = 1 + y / patch * grid + x;
                        copy_columns(block, layout, token, first, piece);
                    }
                }
            }
        });
        count
    }
}

/// Copies `values` into a row of a block, from column `first` on.
fn copy_columns(block: &mut [f32], layout: Layout, row: usize, first: usize, values: &[f32]) {
    let (mut column, mut rest) = (first, values);
    while !rest.is_empty() {
        let within = column % layout.panel;
        let (piece, after) = rest.split_at(rest.len().min(layout.panel - within));
        let start = column / layout.panel * layout.panel_len() + row * layout.panel + within;
        block[start..start + piece.len()].copy_from_slice(piece);
        column += piece.len();
        rest = after;
    }
}

/// Rows of `width` values as a block.
fn in_panels(values: &[f32], width: usize, panel: usize) -> Blocks {
    let layout = Layout::new(panel, values.len() / width, width);
    let mut blocks = Blocks::zeros(layout, 1);
    for (row, values) in values.chunks_exact(width).enumerate() {
        copy_columns(&mut blocks.values, layout, row, 0, values);
    }
    blocks
}
