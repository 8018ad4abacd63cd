//! Multi-head attention over blocks.
//!
//! A head of a block is three groups of panels, and so is its output one: heads of all blocks are computed side by side, and
//! of a head's scores there are never more than a few queries' at a time.

use std::ops::Range;

use rayon::prelude::*;

use crate::blocks::{Aligned, Blocks, Extent, Layout};
use crate::elementwise::Softmax;
use crate::kernel::{Product, Vectors};
use crate::operand::Piecewise;

/// Queries whose scores are held at a time.
const QUERIES: usize = 64;

/// The sequences that lie in blocks, one under another: an image fills a block, and texts share some.
pub(crate) struct Sequences {
    /// The rows of each sequence of each block.
    of_block: Vec<Vec<Range<usize>>>,
}

/// What a token attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// All tokens of its sequence.
    All,
    /// Those before it, and itself.
    Causal,
}

/// Whose attention is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// That of all tokens.
    All,
    /// That of each sequence's first token.
    First,
    /// That of each sequence's last token.
    Last,
}

impl Asked {
    fn of(self, sequence: &Range<usize>) -> Range<usize> {
        match self {
            Self::All => sequence.clone(),
            Self::First => sequence.start..sequence.start + 1,
            Self::Last => sequence.end - 1..sequence.end,
        }
    }
}

impl Sequences {
    /// One of `rows` tokens in each of some blocks.
    pub(crate) fn one_each(rows: usize, blocks: usize) -> Self {
        Self {
            of_block: vec![vec![0..rows]; blocks],
        }
    }

    /// None in any of some blocks.
    pub(crate) fn none(blocks: usize) -> Self {
        Self {
            of_block: vec![Vec::new(); blocks],
        }
    }

    /// Forgets all, but not how many blocks there are.
    pub(crate) fn clear(&mut self) {
        self.of_block.iter_mut().for_each(Vec::clear);
    }

    /// Adds one of `length` tokens behind all others, in blocks of at most `rows` rows; its block and its first row there,
    /// `None` where it does not fit any more.
    pub(crate) fn push(&mut self, length: usize, rows: usize) -> Option<(usize, usize)> {
        let last = self.of_block.iter().rposition(|block| !block.is_empty());
        let (mut block, mut start) = match last {
            Some(block) => (block, self.of_block[block].last().map_or(0, |rows| rows.end)),
            None => (0, 0),
        };
        if start + length > rows {
            (block, start) = (block + 1, 0);
        }
        self.of_block.get_mut(block)?.push(start..start + length);
        Some((block, start))
    }

    /// The part of the blocks that they fill.
    pub(crate) fn extent(&self) -> Extent {
        let ends = self.of_block.iter().filter_map(|block| block.last());
        Extent {
            blocks: ends.clone().count(),
            rows: ends.map(|rows| rows.end).max().unwrap_or(0),
        }
    }

    /// Block and row of the token that is asked of each sequence of the first so many blocks.
    pub(crate) fn tokens(&self, blocks: usize, asked: Asked) -> impl Iterator<Item = (usize, usize)> {
        let blocks = self.of_block[..blocks].iter().enumerate();
        blocks.flat_map(move |(block, sequences)| {
            let rows = sequences.iter().flat_map(move |sequence| asked.of(sequence));
            rows.map(move |row| (block, row))
        })
    }
}

/// How what attention works on lies, and room for what it makes in between.
pub(crate) struct Attention {
    /// Of the output.
    layout: Layout,
    heads: usize,
    sight: Sight,
    /// For each head of each block: keys and values of a sequence as the right sides of products, then scores.
    scratch: Aligned,
}

/// One head of one sequence.
struct Head<'a> {
    vectors: &'a dyn Vectors,
    layout: Layout,
    sight: Sight,
    /// Columns of the head.
    width: usize,
    /// Rows of the block that hold the sequence.
    rows: Range<usize>,
    /// Panels of queries, scaled, of keys and of values.
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
}

impl Attention {
    /// For at most `blocks` blocks of `layout`, whose columns are those of `heads` heads.
    pub(crate) fn new(layout: Layout, heads: usize, sight: Sight, blocks: usize) -> Self {
        let width = layout.panels * layout.panel / heads;
        let room = 2 * Self::keys(layout, width) + Self::scores(layout);
        Self {
            layout,
            heads,
            sight,
            scratch: Aligned::zeros(room * heads * blocks),
        }
    }

    /// Numbers of a head's keys, and of its values.
    fn keys(layout: Layout, width: usize) -> usize {
        layout.stride * width
    }

    fn scores(layout: Layout) -> usize {
        layout.stride * QUERIES.min(layout.stride)
    }

    /// `softmax(q · kᵀ) · v` of each head of each sequence in the first `blocks` blocks, for the tokens that are asked for, into
    /// its columns of `out`. `qkv` has the panels of all queries, all keys and all values.
    pub(crate) fn attend<O: Piecewise>(
        &mut self,
        vectors: &dyn Vectors,
        qkv: &Blocks,
        (sequences, blocks): (&Sequences, usize),
        asked: Asked,
        out: &mut Blocks<O>,
    ) {
        let (layout, heads, sight) = (self.layout, self.heads, self.sight);
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
        let of_keys = Self::keys(layout, width);
        let room = 2 * of_keys + Self::scores(layout);
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
                let (keys, scratch) = scratch.split_at_mut(of_keys);
                let (values, scores) = scratch.split_at_mut(of_keys);
                for rows in &sequences.of_block[block] {
                    let head = Head {
                        vectors,
                        layout,
                        sight,
                        width,
                        rows: rows.clone(),
                        query: part(0),
                        key: part(1),
                        value: part(2),
                    };
                    head.transpose_keys(keys);
                    head.copy_values(values);
                    let asked = asked.of(rows);
                    for from in asked.clone().step_by(QUERIES) {
                        let queries = from..asked.end.min(from + QUERIES);
                        let outputs = output.chunks_exact_mut(out_panel);
                        head.attend(queries, (keys, values), scores, outputs);
                    }
                }
            });
    }
}

impl Head<'_> {
    /// Tokens and what pads them to whole panels.
    fn padded(&self) -> usize {
        self.rows.len().next_multiple_of(self.layout.panel)
    }

    /// The tokens of a panel, and a row of zeros for each that pads them: what lies behind the sequence in its block is another's.
    fn tokens<'p>(&self, panel: &'p [f32]) -> impl Iterator<Item = &'p [f32]> + use<'p> {
        const NOTHING: [f32; 64] = [0.0; 64];
        let columns = self.layout.panel;
        let rows = &panel[self.rows.start * columns..self.rows.end * columns];
        let padding: &'p [f32] = &NOTHING[..columns];
        let padding = std::iter::repeat_n(padding, self.padded() - self.rows.len());
        rows.chunks_exact(columns).chain(padding)
    }

    /// Keys as panels of W tokens: `[tokens / W] [columns] [W]`.
    fn transpose_keys(&self, keys: &mut [f32]) {
        let (panel, width) = (self.layout.panel, self.width);
        for (column, of_panel) in self.key.chunks_exact(self.layout.panel_len()).enumerate() {
            for (token, values) in self.tokens(of_panel).enumerate() {
                let first = (token / panel * width + column * panel) * panel + token % panel;
                let places = keys[first..].iter_mut().step_by(panel);
                places.zip(values).for_each(|(to, from)| *to = *from);
            }
        }
    }

    /// Values as panels of W columns: `[columns / W] [tokens] [W]`.
    fn copy_values(&self, values: &mut [f32]) {
        let panels = values.chunks_exact_mut(self.padded() * self.layout.panel);
        for (to, from) in panels.zip(self.value.chunks_exact(self.layout.panel_len())) {
            let rows = to.chunks_exact_mut(self.layout.panel).zip(self.tokens(from));
            rows.for_each(|(to, from)| to.copy_from_slice(from));
        }
    }

    /// Attends from some queries into the head's panels.
    fn attend<'o, O: Piecewise>(
        &self,
        queries: Range<usize>,
        (keys, values): (&[f32], &[f32]),
        scores: &mut [f32],
        outputs: impl Iterator<Item = &'o mut [O]>,
    ) {
        let (layout, panel, padded) = (self.layout, self.layout.panel, self.padded());
        let stride = QUERIES.min(layout.stride);
        let scores = &mut scores[..padded * stride];
        let panels = scores.chunks_exact_mut(stride * panel);
        for (number, (scores, keys)) in panels.zip(keys.chunks_exact(self.width * panel)).enumerate() {
            let scores = &mut scores[..queries.len() * panel];
            for (query, row) in queries.clone().zip(scores.chunks_exact_mut(panel)) {
                // What pads the tokens gets no attention, nor does what is ahead where nobody looks there.
                let seen = match self.sight {
                    Sight::All => self.rows.len(),
                    Sight::Causal => query + 1 - self.rows.start,
                };
                let tokens = seen.saturating_sub(number * panel).min(panel);
                row[..tokens].fill(0.0);
                row[tokens..].fill(f32::NEG_INFINITY);
            }
            self.vectors.multiply(Product {
                left: self.query,
                spans: &[],
                stride: layout.stride,
                rows: queries.clone(),
                panel: keys,
                scales: &[],
                next: &[],
                output: scores,
            });
        }
        self.vectors.softmax(Softmax {
            block: scores,
            stride,
            rows: 0..queries.len(),
        });
        for (output, values) in outputs.zip(values.chunks_exact(padded * panel)) {
            let panel_of_output = output.len() / layout.stride;
            let output = &mut output[queries.start * panel_of_output..queries.end * panel_of_output];
            O::filled(output, self.vectors, |output| {
                output.fill(0.0);
                self.vectors.multiply(Product {
                    left: scores,
                    spans: &[],
                    stride,
                    rows: 0..queries.len(),
                    panel: values,
                    scales: &[],
                    next: &[],
                    output,
                });
            });
        }
    }
}
