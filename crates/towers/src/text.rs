//! A text tower whose weights are of one type, from token embeddings to features. Source: `transformers`' `CLIPTextModel`
//! with `text_projection`.
//!
//! Texts lie one under another in blocks, so that short ones share a pass over the weights.

use crate::attention::{Asked, Sequences, Sight};
use crate::blocks::{Blocks, Extent, copy_columns};
use crate::kernel::Kernel;
use crate::layers::{Attending, LayerNorm, Layers, Pass, Stream};
use crate::matrix::{Matrix, Output};
use crate::operand::Operand;
use crate::rooms::Rooms;
use crate::{Pause, TOKENS, Take, TextShape};

/// Rows of a block, unless the longest text has more.
const ROWS: usize = 128;

/// Texts that are computed at a time.
const TEXTS: usize = 128;

/// The weights, packed, and room for activations.
pub(crate) struct Packed<T: Operand> {
    kernel: Kernel<T>,
    shape: TextShape,
    /// `(context_length, width)`.
    positions: Vec<f32>,
    layers: Layers<T>,
    final_norm: LayerNorm,
    projection: Matrix<T>,
    /// Blocks that are computed at a time.
    blocks: usize,
    rooms: Rooms<Room<T>>,
}

/// Memory that forwards use again.
struct Room<T: Operand> {
    sequences: Sequences,
    /// A token's embedding with its position.
    token: Vec<f32>,
    stream: Stream<T>,
    attending: Attending<T::Piece>,
    /// One block with a row a text: its last token.
    pooled: Stream<T>,
    features: Blocks,
}

/// The tower, whatever the type of its weights.
pub(crate) trait Forward: Send + Sync {
    /// See [`TextTower::forward_pausing`](crate::TextTower::forward_pausing).
    fn forward(&self, embeddings: &[f32], lengths: &[usize], pause: Option<Pause<'_>>) -> Vec<f32>;
}

impl<T: Operand> Forward for Packed<T> {
    fn forward(&self, embeddings: &[f32], lengths: &[usize], pause: Option<Pause<'_>>) -> Vec<f32> {
        let pause = pause.unwrap_or(&|| ());
        let width = self.shape.transformer.width;
        assert_eq!(embeddings.len(), lengths.iter().sum::<usize>() * width);
        let longest = self.shape.context_length;
        for length in lengths {
            assert!((1..=longest).contains(length), "{length} tokens");
        }
        let mut features = Vec::with_capacity(lengths.len() * self.shape.dim);
        let work = |room: &mut Room<T>| {
            room.sequences.clear();
            let (mut rest, mut waiting) = (embeddings, 0);
            for &length in lengths {
                let (text, after) = rest.split_at(length * width);
                rest = after;
                if waiting == TEXTS || !self.put(text, length, room) {
                    self.forward_chunk(room, &mut features, pause);
                    waiting = 0;
                    assert!(self.put(text, length, room), "every text fits alone");
                }
                waiting += 1;
            }
            if waiting > 0 {
                self.forward_chunk(room, &mut features, pause);
            }
        };
        self.rooms.with(|| self.new_room(), work);
        features
    }
}

impl<T: Operand> Packed<T> {
    pub(crate) fn load<E>(shape: TextShape, kernel: Kernel<T>, take: &mut Take<'_, E>) -> Result<Self, E> {
        // Rows of a block are tokens of several texts.
        assert!(kernel.halves_from.is_none(), "whole products");
        let of = &shape.transformer;
        let panel = kernel.columns();
        let positions = take(
            "text_model.embeddings.position_embedding.weight",
            &[shape.context_length, of.width],
        )?
        .into_owned();
        let projection = take("text_projection.weight", &[shape.dim, of.width])?;
        Ok(Self {
            positions,
            layers: Layers::load(take, "text_model.encoder", of, &kernel)?,
            final_norm: LayerNorm::load(take, "text_model.final_layer_norm", of)?,
            projection: Matrix::pack(&projection, of.width, &[], panel),
            blocks: (TOKENS * rayon::current_num_threads()).div_ceil(shape.rows()),
            rooms: Rooms::default(),
            shape,
            kernel,
        })
    }

    fn new_room(&self) -> Room<T> {
        let (shape, panel, blocks) = (&self.shape, self.kernel.columns(), self.blocks);
        let (of, rows) = (&shape.transformer, shape.rows());
        Room {
            sequences: Sequences::none(blocks),
            token: vec![0.0; of.width],
            stream: Stream::new(of, panel, rows, blocks),
            attending: Attending::new(of, panel, rows, Sight::Causal, blocks),
            pooled: Stream::new(of, panel, TEXTS, 1),
            features: Blocks::zeros(panel, TEXTS, shape.dim, 1),
        }
    }

    /// Puts a text behind those that are in the stream; whether there was room.
    fn put(&self, embeddings: &[f32], length: usize, room: &mut Room<T>) -> bool {
        let Some((block, first)) = room.sequences.push(length, self.shape.rows()) else {
            return false;
        };
        let width = self.shape.transformer.width;
        let x = &mut room.stream.x;
        let layout = x.layout;
        let block = &mut x.values[block * layout.len()..][..layout.len()];
        let tokens = embeddings
            .chunks_exact(width)
            .zip(self.positions.chunks_exact(width));
        for (row, (embedding, position)) in (first..).zip(tokens) {
            let sums = room.token.iter_mut().zip(embedding).zip(position);
            sums.for_each(|((sum, embedding), position)| *sum = embedding + position);
            copy_columns(block, layout, row, 0, &room.token);
        }
        true
    }

    /// Takes what is in the stream to features, and the stream is empty again.
    fn forward_chunk(&self, room: &mut Room<T>, features: &mut Vec<f32>, pause: Pause<'_>) {
        let kernel = &self.kernel;
        let Room {
            sequences,
            stream,
            attending,
            pooled,
            features: projected,
            ..
        } = room;
        let pass = Pass {
            extent: sequences.extent(),
            sequences,
            pause,
        };
        self.layers
            .forward_pooled(kernel, pass, Asked::Last, stream, attending, pooled);
        let rows = Extent {
            blocks: 1,
            rows: sequences.tokens(pass.extent.blocks, Asked::Last).count(),
            ..pass.extent
        };
        let (vectors, normed) = (kernel.vectors.as_ref(), &mut pooled.normed);
        self.final_norm
            .forward(vectors, &pooled.x, rows, &mut normed.pieces);
        self.projection
            .product(kernel, normed, rows, Output::new(projected));
        for text in 0..rows.rows {
            features.extend(projected.row(0, text).flatten().take(self.shape.dim));
        }
        sequences.clear();
    }
}

impl TextShape {
    /// Rows of a block.
    fn rows(&self) -> usize {
        self.context_length.max(ROWS)
    }
}
