//! The gradient of a linear adapter before anchors, by hand, on all threads.
//!
//! ```text
//! y = x Wᵀ + b,   u = y / |y|,   cos = u Tᵀ,   loss = mean cross-entropy of s · cos
//! ∂cos = s · (softmax(s · cos) − onehot) / n,   ∂u = ∂cos T,   ∂y = (∂u − (∂u·u) u) / |y|,   ∂W = ∂yᵀ x,   ∂b = Σ ∂y
//! ```
//!
//! Anchors are packed once, memory for a batch is taken once, and all of a step lies in panels: see `blocks`.

use rayon::prelude::*;

use crate::blocks::{Blocks, Extent, copy_columns};
use crate::crossed::Crossed;
use crate::kernel::Kernel;
use crate::matrix::{Matrix, Output};
use crate::objective::{ByOutputs, CrossEntropy, Normalise};
use crate::operand::Left;
use crate::processor;

/// Most rows of a block: so many, and what they are multiplied with, stay in the second cache.
const BLOCK: usize = 128;

/// A linear adapter, D values to D values.
#[derive(Debug, Clone, Copy)]
pub struct LinearAdapter<'a> {
    /// W, (D, D) row by row.
    pub weight: &'a [f32],
    /// b, (D).
    pub bias: &'a [f32],
}

/// The loss of a batch, and its gradient.
#[derive(Debug, Clone)]
pub struct LinearGradient {
    /// In nats.
    pub loss: f64,
    /// ∂W, (D, D) row by row.
    pub weight: Vec<f32>,
    /// ∂b, (D).
    pub bias: Vec<f32>,
}

/// What such an adapter stands before, ready for its gradients.
pub struct LinearObjective {
    kernel: Kernel<f32>,
    /// D.
    dim: usize,
    /// C.
    classes: usize,
    /// s.
    scale: f32,
    /// T, which makes cosines.
    cosines: Matrix<f32>,
    /// Tᵀ, which takes their slopes back.
    back: Matrix<f32>,
    /// W.
    weight: Matrix<f32>,
    batch: Batch,
}

/// What a batch becomes, in blocks.
struct Batch {
    /// Blocks that there is room for.
    room: usize,
    x: Left<f32>,
    /// y, and then u.
    u: Left<f32>,
    /// |y| of each row.
    lengths: Vec<f32>,
    /// Cosines, and then their slopes.
    cosines: Left<f32>,
    /// The loss of each row.
    losses: Vec<f32>,
    /// ∂u, and then ∂y.
    slopes: Blocks,
}

impl Batch {
    fn with_room(room: usize, width: usize, dim: usize, classes: usize) -> Self {
        Self {
            room,
            x: Left::zeros(width, BLOCK, dim, room),
            u: Left::zeros(width, BLOCK, dim, room),
            lengths: vec![0.0; room * BLOCK],
            cosines: Left::zeros(width, BLOCK, classes, room),
            losses: vec![0.0; room * BLOCK],
            slopes: Blocks::zeros(width, BLOCK, dim, room),
        }
    }
}

impl LinearObjective {
    /// Before unit `anchors` (C, D), row by row, whose cosines are multiplied with `scale`.
    pub fn new(anchors: &[f32], dim: usize, scale: f32) -> Self {
        Self::by(processor::all().swap_remove(0), anchors, dim, scale)
    }

    pub(crate) fn by(kernel: Kernel<f32>, anchors: &[f32], dim: usize, scale: f32) -> Self {
        let (width, classes) = (kernel.columns(), anchors.len() / dim);
        let mut turned = vec![0.0; anchors.len()];
        for (class, anchor) in anchors.chunks_exact(dim).enumerate() {
            let places = turned[class..].iter_mut().step_by(classes);
            places.zip(anchor).for_each(|(to, from)| *to = *from);
        }
        Self {
            cosines: Matrix::pack(anchors, dim, &[], width),
            back: Matrix::pack(&turned, classes, &[], width),
            weight: Matrix::pack(&vec![0.0; dim * dim], dim, &[], width),
            batch: Batch::with_room(0, width, dim, classes),
            kernel,
            dim,
            classes,
            scale,
        }
    }

    /// Of rows x (n, D), whose classes are the `columns` (n).
    ///
    /// # Panics
    /// When there is no row, or lengths do not match.
    pub fn gradient(&mut self, adapter: LinearAdapter<'_>, x: &[f32], columns: &[u32]) -> LinearGradient {
        let (dim, width) = (self.dim, self.kernel.columns());
        assert_eq!((adapter.weight.len(), adapter.bias.len()), (dim * dim, dim));
        assert!(!columns.is_empty() && x.len() == columns.len() * dim);
        let blocks = columns.len().div_ceil(BLOCK);
        let extent = Extent::new(blocks, columns.len().div_ceil(blocks));
        if blocks > self.batch.room {
            self.batch = Batch::with_room(blocks, width, dim, self.classes);
        }
        self.weight.repack(adapter.weight, dim, adapter.bias, width);
        self.fill(x, extent);
        self.outputs(extent);
        let loss = self.cross_entropy(extent, columns);
        self.by_outputs(extent);
        let (weight, bias) = self.by_parameters(extent);
        LinearGradient { loss, weight, bias }
    }

    /// Puts rows (n, D) into blocks. What an earlier batch left behind the last one stays: its slopes are zero.
    fn fill(&mut self, x: &[f32], extent: Extent) {
        let blocks = &mut self.batch.x.pieces;
        let layout = blocks.layout;
        let blocks = blocks.values.par_chunks_mut(layout.len());
        let parts = x.par_chunks(extent.rows * self.dim);
        blocks.zip(parts).for_each(|(block, rows)| {
            for (row, values) in rows.chunks_exact(self.dim).enumerate() {
                copy_columns(block, layout, row, 0, values);
            }
        });
    }

    /// u and |y|.
    fn outputs(&mut self, extent: Extent) {
        let Self {
            kernel,
            batch,
            weight,
            ..
        } = self;
        let Batch { x, u, lengths, .. } = batch;
        weight.product(kernel, x, extent, Output::new(&mut u.pieces));
        let layout = u.pieces.layout;
        let blocks = u.pieces.values.par_chunks_mut(layout.len());
        let blocks = blocks.zip(lengths.par_chunks_mut(extent.rows));
        blocks.take(extent.blocks).for_each(|(block, lengths)| {
            kernel.vectors.normalise(Normalise {
                block,
                stride: layout.stride,
                lengths,
            });
        });
    }

    /// The mean loss, and ∂cos.
    fn cross_entropy(&mut self, extent: Extent, columns: &[u32]) -> f64 {
        let Self {
            kernel,
            batch,
            cosines: anchors,
            classes,
            scale,
            ..
        } = self;
        let Batch {
            u, cosines, losses, ..
        } = batch;
        anchors.product(kernel, u, extent, Output::new(&mut cosines.pieces));
        let layout = cosines.pieces.layout;
        let blocks = cosines.pieces.values.par_chunks_mut(layout.len());
        let blocks = blocks.zip(losses.par_chunks_mut(extent.rows));
        let share = *scale / columns.len() as f32;
        blocks
            .zip(columns.par_chunks(extent.rows))
            .for_each(|((block, losses), columns)| {
                kernel.vectors.cross_entropy(CrossEntropy {
                    block,
                    stride: layout.stride,
                    classes: *classes,
                    columns,
                    scale: *scale,
                    share,
                    losses,
                });
            });
        let losses = losses[..columns.len()].iter();
        losses.map(|loss| f64::from(*loss)).sum::<f64>() / columns.len() as f64
    }

    /// ∂y.
    fn by_outputs(&mut self, extent: Extent) {
        let Self {
            kernel, batch, back, ..
        } = self;
        let Batch {
            u,
            lengths,
            cosines,
            slopes,
            ..
        } = batch;
        back.product(kernel, cosines, extent, Output::new(slopes));
        let layout = slopes.layout;
        let blocks = slopes.values.par_chunks_mut(layout.len());
        let beside = u.pieces.values.par_chunks(layout.len());
        let beside = beside.zip(lengths.par_chunks(extent.rows));
        blocks
            .zip(beside)
            .take(extent.blocks)
            .for_each(|(block, (unit, lengths))| {
                kernel.vectors.by_outputs(ByOutputs {
                    block,
                    unit,
                    stride: layout.stride,
                    lengths,
                });
            });
    }

    /// ∂W and ∂b.
    fn by_parameters(&self, extent: Extent) -> (Vec<f32>, Vec<f32>) {
        let (width, dim) = (self.kernel.columns(), self.dim);
        let (x, slopes) = (&self.batch.x.pieces, &self.batch.slopes);
        let panels = slopes.layout.panels;
        let mut weight = vec![0.0; dim * dim];
        let mut bias = vec![0.0; dim];
        let taken = extent.rows * width;
        let rows = weight.par_chunks_mut(width * dim).zip(bias.par_chunks_mut(width));
        rows.enumerate().for_each(|(row, (weight, bias))| {
            let mut tile = vec![0.0; width * width];
            for column in 0..panels {
                tile.fill(0.0);
                for block in 0..extent.blocks {
                    self.kernel.vectors.cross(Crossed {
                        left: &slopes.panel(block, row)[..taken],
                        right: &x.panel(block, column)[..taken],
                        output: &mut tile,
                    });
                }
                for (weights, sums) in weight.chunks_exact_mut(dim).zip(tile.chunks_exact(width)) {
                    let weights = &mut weights[column * width..];
                    let count = weights.len().min(width);
                    weights[..count].copy_from_slice(&sums[..count]);
                }
            }
            for block in 0..extent.blocks {
                for slopes in slopes.panel(block, row)[..taken].chunks_exact(width) {
                    let pairs = bias.iter_mut().zip(slopes);
                    pairs.for_each(|(sum, slope)| *sum += slope);
                }
            }
        });
        (weight, bias)
    }
}
