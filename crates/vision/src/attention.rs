//! Multi-head attention over blocks.
//!
//! A head of a block is three groups of panels, and so is its output one: heads of all blocks are computed side by side, and
//! of a head's scores there are never more than a few queries' at a time.

use std::ops::Range;

use rayon::prelude::*;

use crate::blocks::{Aligned, Blocks, Extent, Layout};
use crate::elementwise::Softmax;
use crate::kernel::{Product, Vectors};
use crate::operand::Operand;

/// Queries whose scores are held at a time.
const QUERIES: usize = 64;

/// How what attention works on lies, and room for what it makes in between.
pub(crate) struct Attention {
    /// Of the output.
    layout: Layout,
    heads: usize,
    /// For each head of each block: keys as the right side of a product, then scores.
    scratch: Aligned,
}

/// One head of one block.
struct Head<'a> {
    vectors: &'a dyn Vectors,
    layout: Layout,
    /// Columns of the head.
    width: usize,
    /// Rows of the block that hold tokens.
    rows: usize,
    /// Panels of queries, scaled, of keys and of values.
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
}

impl Attention {
    /// For at most `blocks` blocks of `layout`, whose columns are those of `heads` heads.
    pub(crate) fn new(layout: Layout, heads: usize, blocks: usize) -> Self {
        let width = layout.panels * layout.panel / heads;
        let room = Self::keys(layout, width) + Self::scores(layout);
        Self {
            layout,
            heads,
            scratch: Aligned::zeros(room * heads * blocks),
        }
    }

    fn keys(layout: Layout, width: usize) -> usize {
        layout.stride * width
    }

    fn scores(layout: Layout) -> usize {
        layout.stride * QUERIES.min(layout.stride)
    }

    /// `softmax(q · kᵀ) · v` of each head of each block into its columns of `out`. `qkv` has the panels of all queries, all
    /// keys and all values. Of each block the first `queries` rows are asked for.
    pub(crate) fn attend<O: Operand>(
        &mut self,
        vectors: &dyn Vectors,
        qkv: &Blocks,
        Extent { blocks, rows }: Extent,
        queries: usize,
        out: &mut Blocks<O>,
    ) {
        let (layout, heads) = (self.layout, self.heads);
        assert_eq!(
            (out.layout.panels, out.layout.stride),
            (layout.panels, layout.stride)
        );
        assert_eq!(
            (qkv.layout.panels, qkv.layout.stride),
            (3 * layout.panels, layout.stride)
        );
        let head_len = layout.len() / heads;
        let width = head_len / layout.stride;
        let room = Self::keys(layout, width) + Self::scores(layout);
        let (out_len, out_panel) = (out.layout.len(), out.layout.panel_len());
        let outputs = out.values[..blocks * out_len].par_chunks_mut(out_len / heads);
        let scratch = self.scratch.par_chunks_mut(room);
        outputs
            .zip(scratch)
            .enumerate()
            .for_each(|(index, (output, scratch))| {
                let (block, number) = (index / heads, index % heads);
                let part =
                    |which: usize| &qkv.block(block)[(which * heads + number) * head_len..][..head_len];
                let head = Head {
                    vectors,
                    layout,
                    width,
                    rows,
                    query: part(0),
                    key: part(1),
                    value: part(2),
                };
                let (keys, scores) = scratch.split_at_mut(Self::keys(layout, width));
                head.transpose_keys(keys);
                for from in (0..queries).step_by(QUERIES) {
                    let outputs = output.chunks_exact_mut(out_panel);
                    head.attend(from..queries.min(from + QUERIES), keys, scores, outputs);
                }
            });
    }
}

impl Head<'_> {
    /// Tokens and what pads them to whole panels.
    fn padded(&self) -> usize {
        self.rows.next_multiple_of(self.layout.panel)
    }

    /// Keys as panels of W tokens: `[tokens / W] [columns] [W]`.
    fn transpose_keys(&self, keys: &mut [f32]) {
        let (panel, width) = (self.layout.panel, self.width);
        for (column, of_panel) in self.key.chunks_exact(self.layout.panel_len()).enumerate() {
            let tokens = of_panel.chunks_exact(panel).take(self.padded());
            for (token, values) in tokens.enumerate() {
                let first = (token / panel * width + column * panel) * panel + token % panel;
                let places = keys[first..].iter_mut().step_by(panel);
                places.zip(values).for_each(|(to, from)| *to = *from);
            }
        }
    }

    /// Attends from some queries into the head's panels.
    fn attend<'o, O: Operand>(
        &self,
        queries: Range<usize>,
        keys: &[f32],
        scores: &mut [f32],
        outputs: impl Iterator<Item = &'o mut [O]>,
    ) {
        let (layout, panel, padded) = (self.layout, self.layout.panel, self.padded());
        let stride = QUERIES.min(layout.stride);
        let scores = &mut scores[..padded * stride];
        let panels = scores.chunks_exact_mut(stride * panel);
        for (number, (scores, keys)) in panels.zip(keys.chunks_exact(self.width * panel)).enumerate() {
            let scores = &mut scores[..queries.len() * panel];
            // What pads the tokens gets no attention.
            let tokens = (self.rows - number * panel).min(panel);
            for row in scores.chunks_exact_mut(panel) {
                row[..tokens].fill(0.0);
                row[tokens..].fill(f32::NEG_INFINITY);
            }
            self.vectors.multiply(Product {
                left: self.query,
                stride: layout.stride,
                rows: queries.clone(),
                panel: keys,
                output: scores,
            });
        }
        self.vectors.softmax(Softmax {
            block: scores,
            stride,
            rows: 0..queries.len(),
        });
        for (output, values) in outputs.zip(self.value.chunks_exact(layout.panel_len())) {
            let panel_of_output = output.len() / layout.stride;
            let output = &mut output[queries.start * panel_of_output..queries.end * panel_of_output];
            O::filled(output, self.vectors, |output| {
                output.fill(0.0);
                self.vectors.multiply(Product {
                    left: scores,
                    stride,
                    rows: 0..queries.len(),
                    panel: &values[..padded * panel],
                    output,
                });
            });
        }
    }
}
