//! What a processor does fast, in f32 and in pairs, by any of its vectors: one source for all of them.
//!
//! Owners: the towers, and what fits repeat. `Lanes` is written over `pulp`'s vectors. Everything is laid out in *panels* of W columns (see
//! [`super::blocks`]). Invariant: a row's result depends on that row alone, bit for bit: whatever rows are computed beside it,
//! its sums run in the same order.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use std::fmt;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::crossed::Cross;
use crate::elementwise::{Activate, InPairs, InPanels, LayerNorm, Round, Softmax};
use crate::integer::{Measure, Narrow, Span};
use crate::objective::{ByOutputs, CrossEntropy, Normalise};
use crate::operand::{Pair, UPPER};
use crate::prefetch::{prefetch, spread};
use crate::regression::Steps;

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

    /// Finds what whole numbers of rows of a block are to mean.
    fn measure(&self, measure: Measure<'_>);

    /// Makes rows of W values whole numbers of 8 bits.
    fn narrow_to_bytes(&self, narrow: Narrow<'_, u8>);

    /// Makes rows of W values whole numbers of 16 bits.
    fn narrow_to_shorts(&self, narrow: Narrow<'_, u16>);

    /// Makes random features of projections.
    fn steps(&self, steps: Steps<'_>);

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
    /// Adds a product to a panel of the output.
    fn multiply(&self, product: Product<'_, T>);
}

/// What a tower computes with whose weights are of one type.
pub(crate) struct Kernel<T> {
    /// The name of the instructions that its products are made with.
    pub(crate) name: &'static str,
    pub(crate) vectors: Box<dyn Vectors>,
    pub(crate) products: Box<dyn Multiply<T>>,
}

impl<T> Kernel<T> {
    /// W, columns of a panel.
    pub(crate) fn columns(&self) -> usize {
        self.vectors.columns()
    }
}

impl<T> fmt::Display for Kernel<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}×{}", self.name, self.columns())
    }
}

/// `output[r] += Σ_k left[r, k] · panel[k]` for some rows r.
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
    /// A hint that changes no result: what is read soon, of the panel behind. Dot products and whole numbers fetch it meanwhile,
    /// products in f32 its beginning by vectors of fewer than sixteen lanes, and others nothing.
    pub(crate) next: &'a [T],
    /// A row of W values for each of `rows`.
    pub(crate) output: &'a mut [f32],
}

/// Panels of `W` columns, or `HALF` pairs, in `VECTORS` vectors.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S, const W: usize, const HALF: usize, const VECTORS: usize>(pub(crate) S);

impl<S: Simd, const W: usize, const HALF: usize, const VECTORS: usize> Vectors
    for Lanes<S, W, HALF, VECTORS>
{
    fn columns(&self) -> usize {
        W
    }

    fn layer_norm(&self, norm: LayerNorm<'_, f32>) {
        self.0.vectorize(InPanels::<_, W>(norm));
    }

    fn layer_norm_pairs(&self, norm: LayerNorm<'_, Pair>) {
        self.0.vectorize(InPairs::<_, W, HALF>(norm));
    }

    fn round(&self, round: Round<'_>) {
        self.0.vectorize(InPairs::<_, W, HALF>(round));
    }

    fn measure(&self, measure: Measure<'_>) {
        self.0.vectorize(InPanels::<_, W>(measure));
    }

    fn narrow_to_bytes(&self, narrow: Narrow<'_, u8>) {
        self.0.vectorize(InPanels::<_, W>(narrow));
    }

    fn narrow_to_shorts(&self, narrow: Narrow<'_, u16>) {
        self.0.vectorize(InPanels::<_, W>(narrow));
    }

    fn steps(&self, steps: Steps<'_>) {
        self.0.vectorize(InPanels::<_, W>(steps));
    }

    fn normalise(&self, normalise: Normalise<'_>) {
        self.0.vectorize(InPanels::<_, W>(normalise));
    }

    fn cross_entropy(&self, cross_entropy: CrossEntropy<'_>) {
        self.0.vectorize(InPanels::<_, W>(cross_entropy));
    }

    fn by_outputs(&self, by_outputs: ByOutputs<'_>) {
        self.0.vectorize(InPanels::<_, W>(by_outputs));
    }

    fn activate(&self, activate: Activate<'_>) {
        self.0.vectorize(activate);
    }

    fn softmax(&self, softmax: Softmax<'_>) {
        self.0.vectorize(InPanels::<_, W>(softmax));
    }
}

impl<S: Simd, const W: usize, const HALF: usize, const VECTORS: usize> Multiply<f32>
    for Lanes<S, W, HALF, VECTORS>
{
    fn multiply(&self, product: Product<'_, f32>) {
        self.0.vectorize(Singly::<'_, W, VECTORS>(product));
    }
}

impl<S: Simd, const W: usize, const HALF: usize, const VECTORS: usize> Multiply<Pair>
    for Lanes<S, W, HALF, VECTORS>
{
    fn multiply(&self, product: Product<'_, Pair>) {
        self.0
            .vectorize(InPairs::<_, W, HALF>(ByHalves::<'_, VECTORS>(product)));
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

/// Values of k between two visits to the output: such a part of a panel stays in the first cache while all rows pass.
const DEPTH: usize = 256;

/// f32 against f32.
struct Singly<'a, const W: usize, const VECTORS: usize>(Product<'a, f32>);

impl<const W: usize, const VECTORS: usize> WithSimd for Singly<'_, W, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const { assert!(W.is_multiple_of(VECTORS)) };
        let Product {
            left,
            stride,
            rows,
            panel,
            next,
            output,
            ..
        } = self.0;
        let (left, panel) = (left.as_chunks::<W>().0, panel.as_chunks::<W>().0);
        let output = &mut output.as_chunks_mut::<W>().0[..rows.len()];
        let parts = (DEPTH / W).max(1);
        let following = panel.chunks(parts * W).skip(1).chain([next.as_chunks::<W>().0]);
        let panels = panel.chunks(parts * W).zip(following);
        for (left, (panel, next)) in left.chunks(parts * stride).zip(panels) {
            let mut next = spread(&next[..next.len().min(parts * W)], rows.len().div_ceil(ROWS));
            for group in groups(rows.len(), ROWS) {
                // Zen 4 loses 8 % by it: processors with wider vectors are left to their own guesses.
                if S::F32_LANES < 16 {
                    prefetch(next.next().unwrap_or_default().as_flattened());
                }
                let (first, output) = (rows.start + group.start, &mut output[group]);
                by_rows!(output.len(), M => micro::<S, W, VECTORS, M>(simd, left, stride, first, panel, output));
            }
        }
    }
}

/// So many rows in groups of at most `most`, as equal as can be: a last one of a single row would wait for each of its sums, and
/// what a tile costs is its rows.
#[inline(always)]
pub(crate) fn groups(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let groups = rows.div_ceil(most);
    (0..groups).map(move |group| group * rows / groups..(group + 1) * rows / groups)
}

/// `M` rows against a part of a panel.
#[inline(always)]
fn micro<S: Simd, const W: usize, const VECTORS: usize, const M: usize>(
    simd: S,
    left: &[[f32; W]],
    stride: usize,
    first: usize,
    panel: &[[f32; W]],
    output: &mut [[f32; W]],
) {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; M];
    for (sums, output) in sums.iter_mut().zip(&*output) {
        sums.copy_from_slice(S::as_simd_f32s(output).0);
    }
    for (left, panel) in left.chunks_exact(stride).zip(panel.chunks_exact(W)) {
        let left: &[[f32; W]; M] = match left.get(first..).and_then(<[_]>::first_chunk) {
            Some(left) => left,
            None => return,
        };
        for k in 0..W {
            let right = S::as_simd_f32s(&panel[k]).0;
            for m in 0..M {
                let value = simd.splat_f32s(left[m][k]);
                for v in 0..VECTORS {
                    sums[m][v] = simd.mul_add_e_f32s(value, right[v], sums[m][v]);
                }
            }
        }
    }
    for (sums, output) in sums.iter().zip(output) {
        S::as_mut_simd_f32s(output).0.copy_from_slice(sums);
    }
}

/// Pairs against pairs where no instruction multiplies them: as two products in f32 each.
struct ByHalves<'a, const VECTORS: usize>(Product<'a, Pair>);

impl<const W: usize, const HALF: usize, const VECTORS: usize> WithSimd
    for InPairs<ByHalves<'_, VECTORS>, W, HALF>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Product {
            left,
            stride,
            rows,
            panel,
            output,
            ..
        } = self.0.0;
        let (left, panel) = (left.as_chunks::<HALF>().0, panel.as_chunks::<W>().0);
        let output = output.as_chunks_mut::<W>().0;
        for (row, output) in rows.zip(output) {
            let mut sums = [simd.splat_f32s(0.0); VECTORS];
            sums.copy_from_slice(S::as_simd_f32s(output).0);
            for (left, panel) in left
                .iter()
                .skip(row)
                .step_by(stride)
                .zip(panel.chunks_exact(HALF))
            {
                for (pair, right) in left.iter().zip(panel) {
                    let value = halves(simd, simd.splat_u32s(*pair));
                    for (sum, right) in sums.iter_mut().zip(S::as_simd_u32s(right).0) {
                        let right = halves(simd, *right);
                        *sum = simd.mul_add_e_f32s(value[0], right[0], *sum);
                        *sum = simd.mul_add_e_f32s(value[1], right[1], *sum);
                    }
                }
            }
            S::as_mut_simd_f32s(output).0.copy_from_slice(&sums);
        }
    }
}

/// The two values of each pair.
#[inline(always)]
fn halves<S: Simd>(simd: S, pairs: S::u32s) -> [S::f32s; 2] {
    let lower = simd.wrapping_dyn_shl_u32s(pairs, simd.splat_u32s(16));
    let upper = simd.and_u32s(pairs, simd.splat_u32s(UPPER));
    [lower, upper].map(|bits| simd.transmute_f32s_u32s(bits))
}
