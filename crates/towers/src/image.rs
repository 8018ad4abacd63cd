//! An image tower whose weights are of one type, from pixels to features. Source: `transformers`' `CLIPVisionModel` with
//! `visual_projection`.

use rayon::prelude::*;

use crate::attention::{Asked, Sequences, Sight};
use crate::blocks::{Blocks, Extent, copy_columns, in_panels};
use crate::kernel::Kernel;
use crate::layers::{Attending, LayerNorm, Layers, Pass, Stream};
use crate::matrix::{Matrix, Start};
use crate::operand::{Left, Operand};
use crate::rooms::Rooms;
use crate::{ImageShape, TOKENS, Take};

/// The weights, packed, and room for activations.
pub(crate) struct Packed<T: Operand> {
    kernel: Kernel<T>,
    shape: ImageShape,
    patches: Matrix<T>,
    /// A block: the class token with its position, then the positions of patches.
    positions: Blocks,
    pre_norm: LayerNorm,
    layers: Layers<T>,
    post_norm: LayerNorm,
    projection: Matrix<T>,
    /// Images that are computed at a time.
    chunk: usize,
    /// Each in a block of its own.
    sequences: Sequences,
    rooms: Rooms<Room<T>>,
}

/// Memory that forwards use again.
struct Room<T: Operand> {
    patches: Left<T>,
    /// Patches, projected.
    embedded: Blocks,
    /// A block an image.
    stream: Stream<T>,
    attending: Attending<T::Piece>,
    /// One block with a row an image: its class token.
    pooled: Stream<T>,
    features: Blocks,
}

/// Images that are computed at a time, and where what becomes of them goes.
struct Chunk<'a, T: Operand> {
    room: &'a mut Room<T>,
    features: &'a mut Vec<f32>,
    states: Option<&'a mut Vec<f32>>,
    pause: &'a dyn Fn(),
}

/// The tower, whatever the type of its weights.
pub(crate) trait Forward: Send + Sync {
    /// See [`ImageTower::forward_pausing`](crate::ImageTower::forward_pausing).
    fn forward(&self, images: &[&[f32]], states: Option<&mut Vec<f32>>, pause: &dyn Fn()) -> Vec<f32>;
}

impl<T: Operand> Forward for Packed<T> {
    fn forward(&self, images: &[&[f32]], mut states: Option<&mut Vec<f32>>, pause: &dyn Fn()) -> Vec<f32> {
        let mut features = Vec::with_capacity(images.len() * self.shape.dim);
        let work = |room: &mut Room<T>| {
            for images in images.chunks(self.chunk) {
                let mut chunk = Chunk {
                    room,
                    features: &mut features,
                    states: states.as_deref_mut(),
                    pause,
                };
                self.forward_chunk(images, &mut chunk);
            }
        };
        self.rooms.with(|| self.new_room(), work);
        features
    }
}

impl<T: Operand> Packed<T> {
    pub(crate) fn load<E>(shape: ImageShape, kernel: Kernel<T>, take: &mut Take<'_, E>) -> Result<Self, E> {
        let of = &shape.transformer;
        let (width, patch, tokens) = (of.width, shape.patch_size, shape.tokens());
        let (panel, inputs) = (kernel.columns(), 3 * patch * patch);
        let embeddings = "vision_model.embeddings";
        let patches = take(
            &format!("{embeddings}.patch_embedding.weight"),
            &[width, 3, patch, patch],
        )?;
        let class = take(&format!("{embeddings}.class_embedding"), &[width])?;
        let positions = take(
            &format!("{embeddings}.position_embedding.weight"),
            &[tokens, width],
        )?;
        let mut positions = positions.into_owned();
        let first = positions.iter_mut().zip(class.iter());
        first.for_each(|(position, class)| *position += class);
        let projection = take("visual_projection.weight", &[shape.dim, width])?;
        let chunk = (TOKENS * rayon::current_num_threads()).div_ceil(tokens);
        Ok(Self {
            patches: Matrix::pack(&patches, inputs, &[], panel),
            positions: in_panels(&positions, width, panel),
            // The missing letters are in the checkpoints.
            pre_norm: LayerNorm::load(take, "vision_model.pre_layrnorm", of)?,
            layers: Layers::load(take, "vision_model.encoder", of, panel)?,
            post_norm: LayerNorm::load(take, "vision_model.post_layernorm", of)?,
            projection: Matrix::pack(&projection, width, &[], panel),
            chunk,
            sequences: Sequences::one_each(tokens, chunk),
            rooms: Rooms::default(),
            shape,
            kernel,
        })
    }

    fn new_room(&self) -> Room<T> {
        let (shape, panel, chunk) = (&self.shape, self.kernel.columns(), self.chunk);
        let (of, tokens) = (&shape.transformer, shape.tokens());
        Room {
            patches: Left::zeros(panel, tokens, 3 * shape.patch_size.pow(2), chunk),
            embedded: Blocks::zeros(panel, tokens, of.width, chunk),
            stream: Stream::new(of, panel, tokens, chunk),
            attending: Attending::new(of, panel, tokens, Sight::All, chunk),
            pooled: Stream::new(of, panel, chunk, 1),
            features: Blocks::zeros(panel, chunk, shape.dim, 1),
        }
    }

    fn forward_chunk(&self, images: &[&[f32]], chunk: &mut Chunk<'_, T>) {
        let kernel = &self.kernel;
        let vectors = kernel.vectors.as_ref();
        let Chunk {
            room,
            features,
            states,
            pause,
        } = chunk;
        let Room {
            patches,
            embedded,
            stream,
            attending,
            pooled,
            features: projected,
        } = room;
        self.unfold(images, &mut patches.pieces);
        let images = images.len();
        let extent = Extent {
            blocks: images,
            rows: self.shape.tokens(),
        };
        let positions = Start::Block(self.positions.block(0));
        self.patches
            .product(kernel, patches, extent, embedded, positions, None);
        self.pre_norm.forward(vectors, embedded, extent, &mut stream.x);
        let pass = Pass {
            extent,
            sequences: &self.sequences,
            pause: *pause,
        };
        match states {
            None => {
                let asked = Asked::First;
                self.layers
                    .forward_pooled(kernel, pass, asked, stream, attending, pooled);
            }
            Some(states) => {
                self.layers.forward(kernel, pass, stream, attending);
                for image in 0..images {
                    for token in 0..extent.rows {
                        states.extend(stream.x.row(image, token).flatten());
                    }
                }
                pooled.pool(stream, self.sequences.tokens(images, Asked::First));
            }
        }
        let rows = Extent {
            blocks: 1,
            rows: images,
        };
        self.post_norm
            .forward(vectors, &pooled.x, rows, &mut pooled.normed.pieces);
        self.projection
            .product(kernel, &mut pooled.normed, rows, projected, Start::Bias, None);
        for image in 0..images {
            features.extend(projected.row(0, image).flatten().take(self.shape.dim));
        }
    }

    /// Patches as rows behind an empty one for the class token, each in the order of the convolution's weights.
    fn unfold(&self, images: &[&[f32]], patches: &mut Blocks<T::Piece>) {
        let (size, patch, grid) = (self.shape.image_size, self.shape.patch_size, self.shape.grid());
        let layout = patches.layout;
        let blocks = patches.values.par_chunks_mut(layout.len());
        blocks.zip(images.par_iter()).for_each(|(block, image)| {
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
    }
}
