//! Products and the steps between them by any vectors, in f32 and in pairs: one source for all of them, written over `pulp`.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use pulp::{Simd, WithSimd};

use crate::elementwise::{Activate, Add, AddPairs, InPairs, InPanels, LayerNorm, Round, Softmax};
use crate::integer::{Measure, Narrow};
use crate::kernel::{Multiply, Product, ROWS, Vectors, by_rows, groups};
use crate::objective::{ByOutputs, CrossEntropy, Normalise};
use crate::operand::{Pair, UPPER};
use crate::prefetch::{prefetch, spread};
use crate::regression::Steps;
use crate::scores::Scores;

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

    fn add(&self, add: Add<'_>) {
        self.0.vectorize(add);
    }

    fn add_pairs(&self, add: AddPairs<'_>) {
        self.0.vectorize(add);
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

    fn score(&self, scores: Scores<'_>) {
        self.0.vectorize(scores);
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
            start,
            output,
            ..
        } = self.0;
        let (left, panel) = (left.as_chunks::<W>().0, panel.as_chunks::<W>().0);
        let mut start = start.as_chunks::<W>().0.first();
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
                let part = Part {
                    left,
                    stride,
                    first,
                    panel,
                    start,
                };
                by_rows!(output.len(), M => part.micro::<S, VECTORS, M>(simd, output));
            }
            start = None;
        }
    }
}

/// A part of a panel, and of the rows that it is multiplied with.
struct Part<'a, const W: usize> {
    left: &'a [[f32; W]],
    stride: usize,
    first: usize,
    panel: &'a [[f32; W]],
    start: Option<&'a [f32; W]>,
}

impl<const W: usize> Part<'_, W> {
    /// `M` rows against it.
    #[inline(always)]
    fn micro<S: Simd, const VECTORS: usize, const M: usize>(&self, simd: S, output: &mut [[f32; W]]) {
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; M];
        for (sums, output) in sums.iter_mut().zip(&*output) {
            sums.copy_from_slice(S::as_simd_f32s(self.start.unwrap_or(output)).0);
        }
        let panels = self
            .left
            .chunks_exact(self.stride)
            .zip(self.panel.chunks_exact(W));
        for (left, panel) in panels {
            let left: &[[f32; W]; M] = match left.get(self.first..).and_then(<[_]>::first_chunk) {
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
}

/// Pairs against pairs where no instruction multiplies them: as two products in f32 each.
struct ByHalves<'a, const VECTORS: usize>(Product<'a, Pair>);

impl<const W: usize, const HALF: usize, const VECTORS: usize> WithSimd
    for InPairs<ByHalves<'_, VECTORS>, W, HALF>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        self.0.0.begin();
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
                    let value = unpaired(simd, simd.splat_u32s(*pair));
                    for (sum, right) in sums.iter_mut().zip(S::as_simd_u32s(right).0) {
                        let right = unpaired(simd, *right);
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
pub(crate) fn unpaired<S: Simd>(simd: S, pairs: S::u32s) -> [S::f32s; 2] {
    let lower = simd.wrapping_dyn_shl_u32s(pairs, simd.splat_u32s(16));
    let upper = simd.and_u32s(pairs, simd.splat_u32s(UPPER));
    [simd.transmute_f32s_u32s(lower), simd.transmute_f32s_u32s(upper)]
}
