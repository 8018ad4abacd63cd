//! What a processor does fast, whatever its instructions.
//!
//! Owners: the towers, and what fits repeat. Everything is laid out in *panels* of W columns (see [`super::blocks`]). Invariant: a
//! row's result depends on that row alone, bit for bit: whatever rows are computed beside it, its sums run in the same order.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use std::fmt;
use std::ops::Range;

use crate::crossed::Cross;
use crate::elementwise::{Activate, Add, AddPairs, LayerNorm, Round, Softmax};
use crate::integer::{Measure, Narrow, Span};
use crate::objective::{ByOutputs, CrossEntropy, Normalise};
use crate::operand::Pair;
use crate::regression::Steps;
use crate::scores::Scores;

/// Instructions, and the width of the panels they like: all but products in other types than f32.
pub(crate) trait Vectors: Multiply<f32> + Cross<f32, f32> {
    /// W, columns of a panel.
    fn columns(&self) -> usize;

    /// Normalises rows of a block.
    fn layer_norm(&self, norm: LayerNorm<'_, f32>);

    /// Normalises rows of a block to pairs.
    fn layer_norm_pairs(&self, norm: LayerNorm<'_, Pair>);

    /// Makes rows of W values rows of pairs.
    fn round(&self, round: Round<'_>);

    /// Adds values to others.
    fn add(&self, add: Add<'_>);

    /// Adds pairs.
    fn add_pairs(&self, add: AddPairs<'_>);

    /// Finds what whole numbers of rows of a block are to mean.
    fn measure(&self, measure: Measure<'_>);

    /// Makes rows of W values whole numbers of 8 bits.
    fn narrow_to_bytes(&self, narrow: Narrow<'_, u8>);

    /// Makes rows of W values whole numbers of 16 bits.
    fn narrow_to_shorts(&self, narrow: Narrow<'_, u16>);

    /// Makes random features of projections.
    fn steps(&self, steps: Steps<'_>);

    /// Multiplies rows with vectors as they lie.
    fn score(&self, scores: Scores<'_>);

    /// Makes rows of a block unit rows.
    fn normalise(&self, normalise: Normalise<'_>);

    /// Makes rows of cosines the slope of their mean cross-entropy.
    fn cross_entropy(&self, cross_entropy: CrossEntropy<'_>);

    /// Makes slopes of unit rows those of what they were made of.
    fn by_outputs(&self, by_outputs: ByOutputs<'_>);

    /// Applies an activation to every value of whole panels.
    fn activate(&self, activate: Activate<'_>);

    /// Makes rows of a block their softmax.
    fn softmax(&self, softmax: Softmax<'_>);
}

/// Products of operands of one type.
pub(crate) trait Multiply<T>: Send + Sync {
    /// Makes a panel of the output a product, or adds one to it.
    fn multiply(&self, product: Product<'_, T>);
}

/// What a tower computes with whose weights are of one type.
pub(crate) struct Kernel<T> {
    /// The name of the instructions that its products are made with.
    pub(crate) name: &'static str,
    pub(crate) vectors: Box<dyn Vectors>,
    pub(crate) products: Box<dyn Multiply<T>>,
    /// The fewest inputs and outputs of a matrix that is multiplied in halves where it can be (see [`crate::strassen`]). `None`
    /// where that gains nothing.
    pub(crate) halves_from: Option<usize>,
}

impl<T> Kernel<T> {
    /// W, columns of a panel.
    pub(crate) fn columns(&self) -> usize {
        self.vectors.columns()
    }

    /// Whether it multiplies by a matrix of such sides in halves.
    pub(crate) fn cuts(&self, inputs: usize, outputs: usize) -> bool {
        let is_cut = |side: usize, from| side >= from && side.is_multiple_of(2 * self.columns());
        self.halves_from
            .is_some_and(|from| is_cut(inputs, from) && is_cut(outputs, from))
    }
}

impl<T> fmt::Display for Kernel<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strassen = if self.halves_from.is_some() {
            "strassen "
        } else {
            ""
        };
        write!(out, "{strassen}{}×{}", self.name, self.columns())
    }
}

/// What sums begin with that begin with nothing, for panels of any width.
pub(crate) static ZEROS: [f32; 64] = [0.0; 64];

/// `output[r] += Σ_k left[r, k] · panel[k]` for some rows r, or `start` and that sum.
pub(crate) struct Product<'a, T> {
    /// A block: panels of `stride` rows.
    pub(crate) left: &'a [T],
    /// What whole numbers of its rows mean. Empty for other operands.
    pub(crate) spans: &'a [Span],
    /// Rows of a panel of `left`.
    pub(crate) stride: usize,
    /// The rows to multiply.
    pub(crate) rows: Range<usize>,
    /// The columns of the right matrix that the output's panel has: a row of W operands for each k, or for the several that
    /// an operand holds.
    pub(crate) panel: &'a [T],
    /// What whole numbers of those columns are times, and sums of each column, times it. Empty for other operands.
    pub(crate) scales: &'a [f32],
    /// A hint that changes no result: what is read soon, of the panel behind. Dot products, and whole numbers by vectors, fetch
    /// it meanwhile, products in f32 its beginning by vectors of fewer than sixteen lanes, and others nothing.
    pub(crate) next: &'a [T],
    /// W values that every row of the output begins with. Empty where it goes on with what it holds.
    pub(crate) start: &'a [f32],
    /// A row of W values for each of `rows`.
    pub(crate) output: &'a mut [f32],
}

impl<T> Product<'_, T> {
    /// Writes what the output begins with.
    pub(crate) fn begin(&mut self) {
        let start = std::mem::take(&mut self.start);
        if !start.is_empty() {
            let rows = self.output.chunks_exact_mut(start.len());
            rows.for_each(|row| row.copy_from_slice(start));
        }
    }
}

/// Rows that are multiplied at a time: with two vectors of sixteen registers, or four of thirty-two, their sums stay in
/// registers.
pub(crate) const ROWS: usize = 6;

/// Runs what is compiled for each number of rows `$m` of a group, up to [`ROWS`], for the one that there are.
macro_rules! by_rows {
    ($rows:expr, $m:ident => $run:expr) => {
        by_rows!(@ $rows, $m => $run, 6, 5, 4, 3, 2, 1)
    };
    (@ $rows:expr, $m:ident => $run:expr, $($number:literal),+) => {
        match $rows {
            $($number => {
                const $m: usize = $number;
                $run
            })+
            _ => unreachable!("groups are of one to {} rows", $crate::kernel::ROWS),
        }
    };
}
pub(crate) use by_rows;

/// So many rows in groups of at most `most`, as equal as can be: a last one of a single row would wait for each of its sums.
#[inline(always)]
pub(crate) fn groups(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let groups = rows.div_ceil(most);
    (0..groups).map(move |group| group * rows / groups..(group + 1) * rows / groups)
}
