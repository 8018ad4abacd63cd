//! A frozen matrix with its bias, packed once for the products it takes part in.

use rayon::prelude::*;

use crate::Activation;
use crate::blocks::{Aligned, Blocks};
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

    /// Multiplies the first rows of each block of `left`, as many as `rows` has for it, into the same rows of `out`.
    pub(crate) fn product(
        &self,
        kernel: &dyn Kernel,
        left: &Blocks,
        rows: &[usize],
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
        let out = &mut out.values[..rows.len() * layout.len()];
        let pieces = out.par_chunks_mut(layout.panel_len()).enumerate();
        pieces.for_each(|(index, piece)| {
            let (block, column) = (index / panels, index % panels);
            let rows = rows[block];
            let (output, padding) = piece.split_at_mut(rows * panel);
            let bias = &self.bias[column * panel..(column + 1) * panel];
            match start {
                Start::Bias => {
                    output
                        .chunks_exact_mut(panel)
                        .for_each(|row| row.copy_from_slice(bias));
                    // What lay here may have been longer.
                    padding.fill(0.0);
                }
                Start::Residual => {
                    let rows = output.chunks_exact_mut(panel);
                    rows.for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
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
