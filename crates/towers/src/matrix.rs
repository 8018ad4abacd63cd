//! A matrix with its bias, packed for the products it takes part in: once where it is frozen.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::Activation;
use crate::blocks::{Aligned, Blocks, Extent, Place};
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
    /// Operands of a panel.
    panel_len: usize,
    /// Where columns are scaled, for each panel what its W columns are times, and then W sums of what they hold, as scaled.
    scales: Aligned,
    /// One value an output, padded with zeros.
    bias: Aligned,
}

/// What a product is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// The bias alone.
    Bias,
    /// What is there already, and the bias.
    Residual,
}

/// Where a product goes.
pub(crate) struct Output<'a, O> {
    pub(crate) blocks: &'a mut Blocks<O>,
    pub(crate) start: Start,
    pub(crate) activation: Option<Activation>,
    /// So many panels, the first ones, are wanted of a block's first row alone: their other rows may stay as they are.
    pub(crate) of_first_row: usize,
}

impl<'a, O: Operand> Output<'a, O> {
    /// `blocks`, which become the product and the bias.
    pub(crate) fn new(blocks: &'a mut Blocks<O>) -> Self {
        Self {
            blocks,
            start: Start::Bias,
            activation: None,
            of_first_row: 0,
        }
    }
}

impl<'a> Output<'a, f32> {
    /// `blocks`, to which the product and the bias are added.
    pub(crate) fn residual(blocks: &'a mut Blocks) -> Self {
        Self {
            start: Start::Residual,
            ..Self::new(blocks)
        }
    }
}

/// What the pieces of a product have in common.
struct Factors<'a, T: Operand> {
    kernel: &'a Kernel<T>,
    left: Side<'a, T>,
    start: Start,
    activation: Option<Activation>,
}

impl<T: Operand> Matrix<T> {
    /// From weights `(outputs, inputs)`, row by row, as checkpoints have them, and a bias of `outputs` values, or none, in
    /// panels of `width` columns.
    pub(crate) fn pack(weights: &[f32], inputs: usize, bias: &[f32], width: usize) -> Self {
        let mut packed = Self::zeros(weights.len() / inputs, inputs, width);
        packed.repack(weights, inputs, bias, width);
        packed
    }

    /// As [`Self::pack`], of other values of the same shape.
    pub(crate) fn repack(&mut self, weights: &[f32], inputs: usize, bias: &[f32], width: usize) {
        let len = width * inputs;
        self.fill(inputs, width, |panel| {
            weights[panel * len..weights.len().min((panel + 1) * len)].into()
        });
        self.bias[..bias.len()].copy_from_slice(bias);
    }

    /// As [`Self::pack`], of so many outputs, without a bias. `of_panel` gives the weights of a panel's outputs, row by row.
    pub(crate) fn of_panels(
        outputs: usize,
        inputs: usize,
        width: usize,
        of_panel: impl Fn(usize) -> Vec<f32> + Sync,
    ) -> Self {
        let mut packed = Self::zeros(outputs, inputs, width);
        packed.fill(inputs, width, |panel| of_panel(panel).into());
        packed
    }

    fn zeros(outputs: usize, inputs: usize, width: usize) -> Self {
        let (outputs, padded) = (outputs.next_multiple_of(width), inputs.next_multiple_of(width));
        Self {
            panels: Aligned::zeros(outputs * padded / T::VALUES),
            inputs: padded,
            panel_len: padded / T::VALUES * width,
            scales: Aligned::zeros(0),
            bias: Aligned::zeros(outputs),
        }
    }

    fn fill<'a>(&mut self, inputs: usize, width: usize, of_panel: impl Fn(usize) -> Cow<'a, [f32]> + Sync) {
        let pieces = self.panels.par_chunks_mut(self.panel_len).enumerate();
        let scales: Vec<Vec<f32>> = pieces
            .map(|(panel, piece)| {
                let weights = of_panel(panel);
                let (rows, scales) = T::scaled(&weights, inputs, width);
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
    }

    /// Multiplies rows of blocks of `left` into the same rows of others. Rows beyond stay as they are.
    pub(crate) fn product<O: Piecewise>(
        &self,
        kernel: &Kernel<T>,
        left: &mut Left<T>,
        extent: Extent,
        Output {
            blocks: out,
            start,
            activation,
            of_first_row,
        }: Output<'_, O>,
    ) {
        let layout = out.layout;
        assert!(
            O::VALUES == 1 || start == Start::Bias,
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
        // Where a matrix is read faster than it is multiplied, a thread reads it once for all its blocks.
        let together = if T::VALUES > 1 { extent.of_a_thread() } else { 1 };
        out.fill(extent, 1, together, |at, output| {
            let rows = if at.number < of_first_row { 1 } else { extent.rows };
            let output = &mut output[..rows * layout.panel];
            O::filled(output, kernel.vectors.as_ref(), |output| {
                self.piece(&factors, at, output);
            });
        });
    }

    /// Inputs, those that pad them included.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// The panel of some columns, and the one so many panels behind it, where there is one.
    pub(crate) fn panel(&self, column: usize, behind: usize) -> (&[T], &[T]) {
        let len = self.panel_len;
        let behind = self.panels.chunks_exact(len).nth(column + behind);
        (&self.panels[column * len..][..len], behind.unwrap_or_default())
    }

    /// A panel of a block.
    fn piece(&self, factors: &Factors<'_, T>, at: Place, output: &mut [f32]) {
        let Factors {
            kernel,
            left,
            start,
            activation,
        } = factors;
        let (width, stride, column) = (kernel.columns(), left.blocks.layout.stride, at.number);
        let bias = &self.bias[column * width..(column + 1) * width];
        let start = match start {
            Start::Bias => bias,
            Start::Residual => {
                let rows = output.chunks_exact_mut(width);
                rows.for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
                &[]
            }
        };
        let (panel, next) = self.panel(column, 1);
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
            start,
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
