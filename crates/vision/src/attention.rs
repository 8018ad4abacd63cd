//! Multi-head attention over blocks.
//!
//! A head of a block is three groups of panels, and so is its output one: heads of all blocks are computed side by side, and
//! of a head's scores there are never more than a few queries' at a time.

use std::ops::Range;

use rayon::prelude::*;

use crate::blocks::{Aligned, Blocks, Extent, Layout};
use crate::elementwise::Softmax;
use crate::kernel::{Kernel, Product};

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
    kernel: &'a dyn Kernel,
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
    pub(crate) fn attend(
        &mut self,
        kernel: &dyn Kernel,
        qkv: &Blocks,
        Extent { blocks, rows }: Extent,
        queries: usize,
        out: &mut Blocks,
    ) {
        let (layout, heads) = (self.layout, self.heads);
        assert_eq!((out.layout, qkv.layout.stride), (layout, layout.stride));
        assert_eq!(qkv.layout.panels, 3 * layout.panels);
        let head_len = layout.len() / heads;
        let width = head_len / layout.stride;
        let room = Self::keys(layout, width) + Self::scores(layout);
        let outputs = out.values[..blocks * layout.len()].par_chunks_mut(head_len);
        let scratch = self.scratch.par_chunks_mut(room);
        outputs
            .zip(scratch)
            .enumerate()
            .for_each(|(index, (output, scratch))| {
                let (block, number) = (index / heads, index % heads);
                let part =
                    |which: usize| &qkv.block(block)[(which * heads + number) * head_len..][..head_len];
                let head = Head {
                    kernel,
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
                    head.attend(from..queries.min(from + QUERIES), keys, scores, output);
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

    /// Attends from some queries.
    fn attend(&self, queries: Range<usize>, keys: &[f32], scores: &mut [f32], output: &mut [f32]) {
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
            self.kernel.multiply(Product {
                left: self.query,
                stride: layout.stride,
                rows: queries.clone(),
                panel: keys,
                output: scores,
            });
        }
        self.kernel.softmax(Softmax {
            block: scores,
            stride,
            rows: 0..queries.len(),
        });
        let outputs = output.chunks_exact_mut(layout.panel_len());
        for (output, values) in outputs.zip(self.value.chunks_exact(layout.panel_len())) {
            let output = &mut output[queries.start * panel..queries.end * panel];
            output.fill(0.0);
            self.kernel.multiply(Product {
                left: scores,
                stride,
                rows: 0..queries.len(),
                panel: &values[..padded * panel],
                output,
            });
        }
    }
}
