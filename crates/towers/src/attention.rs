//! Multi-head attention over blocks.
//!
//! A head of a block is three groups of panels, and so is its output one: heads of all blocks are computed side by side, and
//! of a head's scores there are never more than a few queries' at a time.

use std::ops::Range;

use rayon::prelude::*;

use crate::blocks::{Aligned, Blocks, Extent, Layout};
use crate::elementwise::Softmax;
use crate::kernel::{Kernel, Multiply, Product, Vectors, ZEROS, groups};
use crate::operand::{Operand, Piecewise};

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

    /// Whether each of the first so many blocks has one, from its first row on.
    pub(crate) fn are_one_each(&self, blocks: usize) -> bool {
        let mut blocks = self.of_block[..blocks].iter();
        blocks.all(|sequences| matches!(sequences.as_slice(), [rows] if rows.start == 0))
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
        let blocks = ends.clone().count();
        Extent::new(blocks, ends.map(|rows| rows.end).max().unwrap_or(0))
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
pub(crate) struct Attention<A: Piecewise> {
    /// Of the output.
    layout: Layout,
    heads: usize,
    sight: Sight,
    /// For each head of each block: keys, values and weights of a sequence as sides of products.
    sides: Aligned<A>,
    /// For each head of each block: scores, and then weights.
    scores: Aligned,
}

/// What a head multiplies.
struct Sides<'a, A> {
    keys: &'a mut [A],
    values: &'a mut [A],
    weights: &'a mut [A],
    scores: &'a mut [f32],
}

/// One head of one sequence.
struct Head<'a, A> {
    vectors: &'a dyn Vectors,
    products: &'a dyn Multiply<A>,
    layout: Layout,
    sight: Sight,
    /// Operands of a token.
    depth: usize,
    /// Rows of the block that hold the sequence.
    rows: Range<usize>,
    /// Panels of queries, scaled, of keys and of values.
    query: &'a [A],
    key: &'a [A],
    value: &'a [A],
}

impl<A: Piecewise> Attention<A> {
    /// For at most `blocks` blocks of `layout`, whose columns are those of `heads` heads.
    pub(crate) fn new(layout: Layout, heads: usize, sight: Sight, blocks: usize) -> Self {
        let count = heads * blocks;
        Self {
            layout,
            heads,
            sight,
            sides: Aligned::zeros(Self::sides_len(layout, heads) * count),
            scores: Aligned::zeros(Self::scores_len(layout) * count),
        }
    }

    /// Operands of a head's keys, values and weights.
    fn sides_len(layout: Layout, heads: usize) -> usize {
        2 * layout.len() / heads + A::rounded_len(Self::scores_len(layout))
    }

    fn scores_len(layout: Layout) -> usize {
        layout.stride * QUERIES.min(layout.stride)
    }

    /// `softmax(q · kᵀ) · v` of each head of each sequence in the first `blocks` blocks, for the tokens that are asked for, into
    /// its columns of `out`. `qkv` has the panels of all queries, all keys and all values.
    pub(crate) fn attend<T: Operand<Piece = A>>(
        &mut self,
        kernel: &Kernel<T>,
        qkv: &Blocks<A>,
        (sequences, blocks): (&Sequences, usize),
        asked: Asked,
        out: &mut Blocks<A>,
    ) {
        let (layout, heads, sight) = (self.layout, self.heads, self.sight);
        let (vectors, products) = (kernel.vectors.as_ref(), T::pieces(kernel));
        assert_eq!(
            (out.layout.panels, out.layout.stride),
            (layout.panels, layout.stride)
        );
        assert_eq!(
            (qkv.layout.panels, qkv.layout.stride),
            (3 * layout.panels, layout.stride)
        );
        let head_len = layout.len() / heads;
        let outputs = out.values[..blocks * layout.len()].par_chunks_mut(head_len);
        let sides = self.sides.par_chunks_mut(Self::sides_len(layout, heads));
        let scores = self.scores.par_chunks_mut(Self::scores_len(layout));
        let heads_of_blocks = outputs.zip(sides).zip(scores).enumerate().with_max_len(1);
        heads_of_blocks.for_each(|(index, ((output, sides), scores))| {
            let (block, number) = (index / heads, index % heads);
            let part = |which: usize| &qkv.block(block)[(which * heads + number) * head_len..][..head_len];
            let (keys, sides) = sides.split_at_mut(head_len);
            let (values, weights) = sides.split_at_mut(head_len);
            let mut sides = Sides {
                keys,
                values,
                weights,
                scores,
            };
            for rows in &sequences.of_block[block] {
                let head = Head {
                    vectors,
                    products,
                    layout,
                    sight,
                    depth: head_len / layout.stride,
                    rows: rows.clone(),
                    query: part(0),
                    key: part(1),
                    value: part(2),
                };
                head.transpose_keys(sides.keys);
                head.join_values(sides.values);
                let asked = asked.of(rows);
                for queries in groups(asked.len(), QUERIES) {
                    let queries = asked.start + queries.start..asked.start + queries.end;
                    head.attend(queries, &mut sides, output);
                }
            }
        });
    }
}

impl<A: Piecewise> Head<'_, A> {
    /// W.
    fn columns(&self) -> usize {
        self.layout.panel * A::VALUES
    }

    /// Tokens and what pads them to whole panels.
    fn padded(&self) -> usize {
        self.rows.len().next_multiple_of(self.columns())
    }

    /// The tokens of a panel: what lies behind the sequence in its block is another's.
    fn tokens<'p>(&self, panel: &'p [A]) -> impl Iterator<Item = &'p [A]> + use<'p, A> {
        let (first, last) = (self.layout.row(self.rows.start), self.layout.row(self.rows.end));
        panel[first.start..last.start].chunks_exact(self.layout.panel)
    }

    /// Keys as panels of W tokens: `[tokens / W] [depth] [W]`, padded with zeros.
    fn transpose_keys(&self, keys: &mut [A]) {
        let (columns, panel) = (self.columns(), self.layout.panel);
        keys[(self.padded() - columns) * self.depth..self.padded() * self.depth].fill(A::default());
        for (number, of_panel) in self.key.chunks_exact(self.layout.panel_len()).enumerate() {
            for (token, values) in self.tokens(of_panel).enumerate() {
                let first = (token / columns * self.depth + number * panel) * columns + token % columns;
                let places = keys[first..].iter_mut().step_by(columns);
                places.zip(values).for_each(|(to, from)| *to = *from);
            }
        }
    }

    /// Values as panels of W columns, whose sums run over tokens: `[columns / W] [tokens / VALUES] [W]`, padded with zeros.
    fn join_values(&self, values: &mut [A]) {
        let (columns, together) = (self.columns(), self.layout.panel);
        let panels = values.chunks_exact_mut(self.padded() * together);
        for (to, from) in panels.zip(self.value.chunks_exact(self.layout.panel_len())) {
            to[(self.padded() - columns) * together..].fill(A::default());
            for (token, from) in self.tokens(from).enumerate() {
                let within = token % columns;
                let row = token / columns * together + within % together;
                A::join(
                    &mut to[row * columns..(row + 1) * columns],
                    within / together,
                    from,
                );
            }
        }
    }

    /// Attends from some queries into the head's panels.
    fn attend(&self, queries: Range<usize>, sides: &mut Sides<'_, A>, output: &mut [A]) {
        let (layout, columns, padded) = (self.layout, self.columns(), self.padded());
        let stride = queries.len();
        let scores = &mut sides.scores[..padded * stride];
        let panels = scores.chunks_exact_mut(stride * columns);
        for (number, (scores, keys)) in panels
            .zip(sides.keys.chunks_exact(self.depth * columns))
            .enumerate()
        {
            for (query, row) in queries.clone().zip(scores.chunks_exact_mut(columns)) {
                // What pads the tokens gets no attention, nor does what is ahead where nobody looks there.
                let seen = match self.sight {
                    Sight::All => self.rows.len(),
                    Sight::Causal => query + 1 - self.rows.start,
                };
                let tokens = seen.saturating_sub(number * columns).min(columns);
                row[..tokens].fill(0.0);
                row[tokens..].fill(f32::NEG_INFINITY);
            }
            self.products.multiply(Product {
                left: self.query,
                spans: &[],
                stride: layout.stride,
                rows: queries.clone(),
                panel: keys,
                scales: &[],
                next: &[],
                start: &[],
                output: scores,
            });
        }
        self.vectors.softmax(Softmax {
            block: scores,
            stride,
            rows: 0..stride,
        });
        let weights = A::rounded(self.vectors, scores, sides.weights);
        let outputs = output.chunks_exact_mut(layout.panel_len());
        for (output, values) in outputs.zip(sides.values.chunks_exact(padded * layout.panel)) {
            let rows = layout.row(queries.start).start..layout.row(queries.end).start;
            A::filled(&mut output[rows], self.vectors, |output| {
                self.products.multiply(Product {
                    left: weights,
                    spans: &[],
                    stride,
                    rows: 0..stride,
                    panel: values,
                    scales: &[],
                    next: &[],
                    start: &ZEROS[..columns],
                    output,
                });
            });
        }
    }
}
