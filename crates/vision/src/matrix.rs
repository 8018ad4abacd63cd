//! A frozen matrix with its bias, packed once for the products it takes part in.

use rayon::prelude::*;

use crate::Activation;
use crate::blocks::{Aligned, Blocks, Extent};
use crate::elementwise::Activate;
use crate::kernel::{Kernel, Product};

/// `x ↦ x · Wᵀ + b`.
pub(crate) struct Matrix {
    /// Panels `[outputs / W] [inputs] [W]`, padded with zeros.
    panels: Aligned,
    /// Inputs, those that pad them to whole panels included.
    inputs: usize,
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

impl Matrix {
    /// From weights `(outputs, inputs)`, row by row, as checkpoints have them, and a bias of `outputs` values, or none.
    pub(crate) fn pack(weights: &[f32], inputs: usize, bias: &[f32], panel: usize) -> Self {
        let outputs = weights.len() / inputs;
        let padded = inputs.next_multiple_of(panel);
        let mut panels = Aligned::zeros(outputs.next_multiple_of(panel) * padded);
        let pieces = panels.par_chunks_mut(panel * padded);
        pieces
            .zip(weights.par_chunks(panel * inputs))
            .for_each(|(piece, rows)| {
                for (output, row) in rows.chunks_exact(inputs).enumerate() {
                    let column = piece.iter_mut().skip(output).step_by(panel);
                    column.zip(row).for_each(|(to, from)| *to = *from);
                }
            });
        let mut padded_bias = Aligned::zeros(outputs.next_multiple_of(panel));
        padded_bias[..bias.len()].copy_from_slice(bias);
        Self {
            panels,
            inputs: padded,
            bias: padded_bias,
        }
    }

    /// Multiplies rows of blocks of `left` into the same rows of `out`. Rows beyond stay as they are.
    pub(crate) fn product(
        &self,
        kernel: &dyn Kernel,
        left: &Blocks,
        Extent { blocks, rows }: Extent,
        out: &mut Blocks,
        start: Start<'_>,
        activation: Option<Activation>,
    ) {
        let layout = out.layout;
        let (panel, panels) = (layout.panel, layout.panels);
        assert_eq!(
            (left.layout.panels * panel, left.layout.stride),
            (self.inputs, layout.stride)
        );
        assert_eq!(panels * panel, self.bias.len());
        let pieces = out.values[..blocks * layout.len()].par_chunks_mut(layout.panel_len());
        pieces.enumerate().for_each(|(index, piece)| {
            let (block, column) = (index / panels, index % panels);
            let output = &mut piece[..rows * panel];
            let bias = &self.bias[column * panel..(column + 1) * panel];
            let of_rows = output.chunks_exact_mut(panel);
            match start {
                Start::Bias => of_rows.for_each(|row| row.copy_from_slice(bias)),
                Start::Residual => {
                    of_rows.for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
                }
                Start::Block(block) => {
                    output.copy_from_slice(&block[column * layout.panel_len()..][..rows * panel]);
                }
            }
            kernel.multiply(Product {
                left: left.block(block),
                stride: left.layout.stride,
                rows: 0..rows,
                panel: &self.panels[column * self.inputs * panel..][..self.inputs * panel],
                output,
            });
            if let Some(activation) = activation {
                kernel.activate(Activate {
                    values: output,
                    activation,
                });
            }
        });
    }
}
