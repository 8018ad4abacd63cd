//! A matrix with its bias, packed for the products it takes part in: once where it is frozen.

use rayon::prelude::*;

use crate::Activation;
use crate::blocks::{Aligned, Blocks, Extent};
use crate::elementwise::Activate;
use crate::kernel::{Kernel, Product};
use crate::operand::{Left, Operand, Piecewise, Side};
use crate::prefetch::spread;

/// `x ↦ x · Wᵀ + b`.
pub(crate) struct Matrix<T: Operand> {
    /// Panels `[outputs / W] [inputs] [W]`, padded with zeros.
    panels: Aligned<T>,
    /// Inputs, those that pad them to whole panels included.
    inputs: usize,
    /// Where columns are scaled, for each panel what its W columns are times, and then W sums of what they hold, as scaled.
    scales: Aligned,
    /// One value an output, padded with zeros.
    bias: Aligned,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// The bias alone.
    Bias,
    /// What is there already, and the bias.
    Residual,
    /// This block.
    Block(&'a [f32]),
}

/// What the pieces of a product have in common.
struct Factors<'a, T: Operand> {
    kernel: &'a Kernel<T>,
    left: Side<'a, T>,
    start: Start<'a>,
    activation: Option<Activation>,
}

/// Where a piece of a product is.
#[derive(Clone, Copy)]
struct Place {
    block: usize,
    /// Its panel.
    column: usize,
    /// Which one it is of those that read the same weights, one after another.
    turn: usize,
    turns: usize,
}

impl<T: Operand> Matrix<T> {
    /// From weights `(outputs, inputs)`, row by row, as checkpoints have them, and a bias of `outputs` values, or none, in
    /// panels of `width` columns.
    pub(crate) fn pack(weights: &[f32], inputs: usize, bias: &[f32], width: usize) -> Self {
        let outputs = (weights.len() / inputs).next_multiple_of(width);
        let padded = inputs.next_multiple_of(width);
        let mut packed = Self {
            panels: Aligned::zeros(outputs * padded / T::VALUES),
            inputs: padded,
            scales: Aligned::zeros(0),
            bias: Aligned::zeros(outputs),
        };
        packed.repack(weights, inputs, bias, width);
        packed
    }

    /// As [`Self::pack`], of other values of the same shape.
    pub(crate) fn repack(&mut self, weights: &[f32], inputs: usize, bias: &[f32], width: usize) {
        let pieces = self.panels.par_chunks_mut(width * self.inputs / T::VALUES);
        let scales: Vec<Vec<f32>> = pieces
            .zip(weights.par_chunks(width * inputs))
            .map(|(piece, rows)| {
                let (rows, scales) = T::scaled(rows, inputs, width);
                // W inputs of all its columns, by turns: they stay in the first cache.
                let mut column = vec![T::default(); width / T::VALUES];
                for (part, piece) in piece.chunks_exact_mut(width * column.len()).enumerate() {
                    for (output, row) in rows.chunks_exact(inputs).enumerate() {
                        let values = &row[part * width..inputs.min((part + 1) * width)];
                        column.fill(T::default());
                        T::put(&mut column, 0, values);
                        let places = piece.iter_mut().skip(output).step_by(width);
                        places.zip(&column).for_each(|(to, from)| *to = *from);
                    }
                }
                scales
            })
            .collect();
        let scales = scales.concat();
        if self.scales.len() == scales.len() {
            self.scales.copy_from_slice(&scales);
        } else {
            self.scales = Aligned::from(scales.as_slice());
        }
        self.bias[..bias.len()].copy_from_slice(bias);
    }

    /// Multiplies rows of blocks of `left` into the same rows of `out`. Rows beyond stay as they are.
    pub(crate) fn product<O: Piecewise>(
        &self,
        kernel: &Kernel<T>,
        left: &mut Left<T>,
        extent: Extent,
        out: &mut Blocks<O>,
        start: Start<'_>,
        activation: Option<Activation>,
    ) {
        let layout = out.layout;
        assert!(
            O::VALUES == 1 || !matches!(start, Start::Residual),
            "what is rounded is no sum to go on with"
        );
        let left = left.side(kernel.vectors.as_ref(), extent);
        let from = left.blocks.layout;
        assert_eq!(
            (from.panels * kernel.columns(), from.stride),
            (self.inputs, layout.stride)
        );
        assert_eq!(layout.panels * kernel.columns(), self.bias.len());
        let factors = Factors {
            kernel,
            left,
            start,
            activation,
        };
        let piece = |at: Place, output: &mut [O]| {
            let output = &mut output[..extent.rows * layout.panel];
            O::filled(output, kernel.vectors.as_ref(), |output| {
                self.piece(&factors, at, output);
            });
        };
        // Where a matrix is read faster than it is multiplied, a thread reads it once for all its blocks.
        let together = if T::VALUES > 1 {
            (extent.blocks / extent.threads).max(1)
        } else {
            1
        };
        let blocks = out.values[..extent.blocks * layout.len()].par_chunks_mut(together * layout.len());
        blocks.enumerate().for_each(|(number, blocks)| {
            let turns = blocks.len() / layout.len();
            let at = |turn, column| Place {
                block: number * together + turn,
                column,
                turn,
                turns,
            };
            if turns == 1 {
                let pieces = blocks.par_chunks_mut(layout.panel_len()).enumerate();
                return pieces.for_each(|(column, output)| piece(at(0, column), output));
            }
            for column in 0..layout.panels {
                let outputs = blocks.chunks_exact_mut(layout.panel_len());
                let outputs = outputs.skip(column).step_by(layout.panels).enumerate();
                outputs.for_each(|(turn, output)| piece(at(turn, column), output));
            }
        });
    }

    /// A panel of a block.
    fn piece(&self, factors: &Factors<'_, T>, at: Place, output: &mut [f32]) {
        let Factors {
            kernel,
            left,
            start,
            activation,
        } = factors;
        let (width, stride, column) = (kernel.columns(), left.blocks.layout.stride, at.column);
        let bias = &self.bias[column * width..(column + 1) * width];
        let of_rows = output.chunks_exact_mut(width);
        match start {
            Start::Bias => of_rows.for_each(|row| row.copy_from_slice(bias)),
            Start::Residual => {
                of_rows.for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
            }
            Start::Block(block) => {
                output.copy_from_slice(&block[column * stride * width..][..output.len()]);
            }
        }
        let panel = self.inputs / T::VALUES * width;
        let (panel, behind) = self.panels[column * panel..].split_at(panel);
        let next = &behind[..behind.len().min(panel.len())];
        let (left, spans) = left.block(at.block);
        kernel.products.multiply(Product {
            left,
            spans,
            stride,
            rows: 0..output.len() / width,
            panel,
            scales: self
                .scales
                .chunks_exact(2 * width)
                .nth(column)
                .unwrap_or_default(),
            next: spread(next, at.turns).nth(at.turn).unwrap_or_default(),
            output,
        });
        if let Some(activation) = activation {
            kernel.vectors.activate(Activate {
                values: output,
                activation: *activation,
            });
        }
    }
}
