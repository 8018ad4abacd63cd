//! An image tower whose weights are of one type, from bytes to features. Source: `transformers`' `CLIPVisionModel` with
//! `visual_projection`. Each thread has images of its own where there are enough; otherwise all compute in step, in every product.

use rayon::prelude::*;

use crate::attention::{Asked, Sequences, Sight};
use crate::blocks::{Blocks, Extent, in_panels, read_row};
use crate::kernel::{Kernel, groups};
use crate::layers::{Attending, LayerNorm, Layers, Pass, Stream};
use crate::matrix::{Matrix, Output};
use crate::operand::{Left, Operand, Piecewise as _};
use crate::rooms::Rooms;
use crate::{ImageShape, MIDDLE, Pause, TOKENS, Take};

/// The weights, packed, and room for activations.
pub(crate) struct Packed<T: Operand> {
    kernel: Kernel<T>,
    shape: ImageShape,
    /// Whole: of halves, the class token's row of zeros would get what rounding makes of a patch.
    patches: Matrix<T>,
    /// A block: the class token with its position, then the positions of patches.
    positions: Blocks,
    pre_norm: LayerNorm,
    layers: Layers<T>,
    post_norm: LayerNorm,
    projection: Matrix<T>,
    /// Images that a thread computes at a time.
    chunk: usize,
    /// Threads that compute in step.
    threads: usize,
    /// Each in a block of its own.
    sequences: Sequences,
    /// Of a thread alone.
    rooms: Rooms<Room<T>>,
    /// Of all threads.
    rooms_in_step: Rooms<Room<T>>,
}

/// Memory that forwards use again.
struct Room<T: Operand> {
    /// Threads that compute in it together.
    threads: usize,
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

/// Images, and where what becomes of them goes.
struct Part<'a> {
    images: &'a [&'a [u8]],
    /// `(n, dim)`.
    features: &'a mut [f32],
    /// `(n, t, width)`, if they are wanted.
    states: Option<&'a mut [f32]>,
}

impl<'a> Part<'a> {
    /// The first `count` images, and the others.
    fn split(self, count: usize) -> (Self, Self) {
        let n = self.images.len().max(1);
        let (images, images_after) = self.images.split_at(count);
        let (features, features_after) = self.features.split_at_mut(self.features.len() / n * count);
        let of_states = |states: &'a mut [f32]| states.split_at_mut(states.len() / n * count);
        let (states, states_after) = self.states.map(of_states).unzip();
        let part = |images, features, states| Self {
            images,
            features,
            states,
        };
        (
            part(images, features, states),
            part(images_after, features_after, states_after),
        )
    }

    /// Parts of as many images as each of `counts` says.
    fn cut(self, counts: impl Iterator<Item = usize>) -> Vec<Self> {
        let mut rest = Some(self);
        let next = |count| {
            let (part, after) = rest.take()?.split(count);
            rest = Some(after);
            Some(part)
        };
        counts.filter_map(next).collect()
    }
}

/// The tower, whatever the type of its weights.
pub(crate) trait Forward: Send + Sync {
    /// See [`ImageTower::forward_pausing`](crate::ImageTower::forward_pausing).
    fn forward(&self, images: &[&[u8]], states: Option<&mut Vec<f32>>, pause: Option<Pause<'_>>) -> Vec<f32>;
}

impl<T: Operand> Forward for Packed<T> {
    fn forward(&self, images: &[&[u8]], states: Option<&mut Vec<f32>>, pause: Option<Pause<'_>>) -> Vec<f32> {
        let (n, threads) = (images.len(), rayon::current_num_threads());
        let mut features = vec![0.0; n * self.shape.dim];
        let states = states.map(|states| {
            let before = states.len();
            states.resize(
                before + n * self.shape.tokens() * self.shape.transformer.width,
                0.0,
            );
            &mut states[before..]
        });
        let whole = Part {
            images,
            features: &mut features,
            states,
        };
        // As many for each thread alone, from the first layer to the last; what is left over in step, and everything where others
        // come in between.
        let each = if pause.is_none() { n / threads } else { 0 };
        let (alone, in_step) = whole.split(each * threads);
        let of_a_thread = |_| groups(each, self.chunk).map(|part| part.len());
        let alone = alone.cut((0..threads).flat_map(of_a_thread));
        alone.into_par_iter().for_each(|part| {
            let room = || self.new_room(1);
            let work = |room: &mut Room<T>| self.forward_part(part, room, &|| ());
            self.rooms.with(room, work);
        });
        let pause = pause.unwrap_or(&|| ());
        let of_all = groups(n - each * threads, self.chunk * self.threads);
        for part in in_step.cut(of_all.map(|part| part.len())) {
            let room = || self.new_room(self.threads);
            let work = |room: &mut Room<T>| self.forward_part(part, room, pause);
            self.rooms_in_step.with(room, work);
        }
        features
    }
}

impl<T: Operand> Packed<T> {
    pub(crate) fn load<E>(shape: ImageShape, kernel: Kernel<T>, take: &mut Take<'_, E>) -> Result<Self, E> {
        let of = &shape.transformer;
        let (width, patch, tokens) = (of.width, shape.patch_size, shape.tokens());
        let (panel, inputs) = (kernel.columns(), 3 * patch * patch);
        let patches = take(
            "vision_model.embeddings.patch_embedding.weight",
            &[width, 3, patch, patch],
        )?;
        let positions = shape.positions(take)?;
        let projection = take("visual_projection.weight", &[shape.dim, width])?;
        let chunk = TOKENS.div_ceil(tokens);
        let threads = rayon::current_num_threads();
        Ok(Self {
            patches: Matrix::pack(&patches, inputs, &[], panel),
            positions: in_panels(&positions, width, panel),
            // The missing letters are in the checkpoints.
            pre_norm: LayerNorm::load(take, "vision_model.pre_layrnorm", of)?,
            layers: Layers::load(take, "vision_model.encoder", of, &kernel)?,
            post_norm: LayerNorm::load(take, "vision_model.post_layernorm", of)?,
            projection: Matrix::pack(&projection, width, &[], panel),
            chunk,
            threads,
            sequences: Sequences::one_each(tokens, chunk * threads),
            rooms: Rooms::default(),
            rooms_in_step: Rooms::default(),
            shape,
            kernel,
        })
    }

    /// For as many images as so many threads compute at a time.
    fn new_room(&self, threads: usize) -> Room<T> {
        let (shape, panel, chunk) = (&self.shape, self.kernel.columns(), self.chunk * threads);
        let (of, tokens) = (&shape.transformer, shape.tokens());
        Room {
            threads,
            patches: Left::zeros(panel, tokens, 3 * shape.patch_size.pow(2), chunk),
            embedded: Blocks::zeros(panel, tokens, of.width, chunk),
            stream: Stream::new(of, panel, tokens, chunk),
            attending: Attending::new(of, panel, tokens, Sight::All, chunk),
            pooled: Stream::new(of, panel, chunk, 1),
            features: Blocks::zeros(panel, chunk, shape.dim, 1),
        }
    }

    fn forward_part(&self, part: Part<'_>, room: &mut Room<T>, pause: Pause<'_>) {
        let kernel = &self.kernel;
        let vectors = kernel.vectors.as_ref();
        let Part {
            images,
            features,
            states,
        } = part;
        let Room {
            threads,
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
            threads: *threads,
        };
        let of_images = embedded.values.par_chunks_mut(self.positions.layout.len());
        of_images
            .take(images)
            .for_each(|block| block.copy_from_slice(&self.positions.values));
        self.patches
            .product(kernel, patches, extent, Output::residual(embedded));
        self.pre_norm.forward(vectors, embedded, extent, &mut stream.x);
        let pass = Pass {
            extent,
            sequences: &self.sequences,
            pause,
        };
        match states {
            None => {
                let asked = Asked::First;
                self.layers
                    .forward_pooled(kernel, pass, asked, stream, attending, pooled);
            }
            Some(states) => {
                self.layers.forward(kernel, pass, stream, attending);
                let of_tokens = states.chunks_exact_mut(self.shape.transformer.width);
                for (index, state) in of_tokens.enumerate() {
                    let (image, token) = (index / extent.rows, index % extent.rows);
                    read_row(state, stream.x.row(image, token));
                }
                pooled.pool(stream, self.sequences.tokens(images, Asked::First));
            }
        }
        let rows = Extent {
            blocks: 1,
            rows: images,
            ..extent
        };
        self.post_norm
            .forward(vectors, &pooled.x, rows, &mut pooled.normed.pieces);
        self.projection
            .product(kernel, &mut pooled.normed, rows, Output::new(projected));
        for (image, features) in features.chunks_exact_mut(self.shape.dim).enumerate() {
            read_row(features, projected.row(0, image));
        }
    }

    /// Patches as rows behind an empty one for the class token, each in the order of the convolution's weights: panel by panel.
    fn unfold(&self, images: &[&[u8]], patches: &mut Blocks<T::Piece>) {
        let layout = patches.layout;
        let (width, rows) = (
            self.kernel.columns(),
            layout.row(1).start..layout.row(self.shape.tokens()).start,
        );
        let blocks = patches.values.par_chunks_mut(layout.len());
        blocks.zip(images.par_iter()).for_each(|(block, image)| {
            for (number, panel) in block.chunks_exact_mut(layout.panel_len()).enumerate() {
                T::Piece::filled(&mut panel[rows.clone()], self.kernel.vectors.as_ref(), |values| {
                    self.read_patches(image, number * width, width, values);
                });
            }
        });
    }

    /// Reads `width` columns of all patches of an image, those from `first` on, and zeros behind their last.
    fn read_patches(&self, image: &[u8], first: usize, width: usize, values: &mut [f32]) {
        let (size, patch, grid) = (self.shape.image_size, self.shape.patch_size, self.shape.grid());
        let columns = first..(first + width).min(3 * patch * patch);
        for (place, values) in values.chunks_exact_mut(width).enumerate() {
            let (top, left) = (place / grid * patch, place % grid * patch);
            let (mut column, mut rest) = (columns.start, values);
            while column < columns.end {
                // As far as a line of a patch reaches.
                let (line, x) = (column / patch, column % patch);
                let len = (patch - x).min(columns.end - column);
                let (channel, y) = (line / patch, line % patch);
                let from = &image[(channel * size + top + y) * size + left + x..][..len];
                let (to, after) = rest.split_at_mut(len);
                to.iter_mut()
                    .zip(from)
                    .for_each(|(to, byte)| *to = f32::from(*byte) - f32::from(MIDDLE));
                (column, rest) = (column + len, after);
            }
            rest.fill(0.0);
        }
    }
}
