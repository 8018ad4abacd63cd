//! What a processor does fast, by run-time choice of its instructions: AVX-512, AVX2 with FMA, NEON, or whatever the
//! compiler makes of portable code.
//!
//! Owner: the CPU tower. One source for all of them: [`Lanes`] is written over `pulp`'s vectors, and `pulp` looks at the
//! processor. Everything is laid out in *panels* of W columns (see [`super::blocks`]). Invariant: a row's result depends on
//! that row alone, bit for bit: whatever rows are computed beside it, its sums run in the same order.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use std::ops::Range;

use pulp::{Scalar, Simd, WithSimd};

use crate::elementwise::{Activate, InPanels, LayerNorm, Softmax};

/// Instructions, and the width of the panels they like.
pub(crate) trait Kernel: Send + Sync {
    /// The name of the instructions.
    fn name(&self) -> &'static str;

    /// W, columns of a panel.
    fn columns(&self) -> usize;

    /// Adds a product to a panel of the output.
    fn multiply(&self, product: Product<'_>);

    /// Normalises rows of a block.
    fn layer_norm(&self, norm: LayerNorm<'_>);

    /// Applies an activation to every value of whole panels.
    fn activate(&self, activate: Activate<'_>);

    /// Makes rows of a block their softmax.
    fn softmax(&self, softmax: Softmax<'_>);
}

/// `output[r] += Σ_k left[r, k] · panel[k]` for some rows r.
pub(crate) struct Product<'a> {
    /// A block: panels of `stride` rows.
    pub(crate) left: &'a [f32],
    /// Rows of a panel of `left`.
    pub(crate) stride: usize,
    /// The rows to multiply.
    pub(crate) rows: Range<usize>,
    /// The columns of the right matrix that the output's panel has: a row of W values for each k.
    pub(crate) panel: &'a [f32],
    /// A row of W values for each of `rows`.
    pub(crate) output: &'a mut [f32],
}

/// All that runs here, the best first.
pub(crate) fn all() -> Vec<Box<dyn Kernel>> {
    let mut all: Vec<Box<dyn Kernel>> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = pulp::x86::V4::try_new() {
            all.push(Box::new(Lanes::<_, 64, 4>("avx512", simd)));
            all.push(Box::new(Lanes::<_, 32, 2>("avx512", simd)));
            all.push(Box::new(Lanes::<_, 16, 1>("avx512", simd)));
        }
        if let Some(simd) = pulp::x86::V3::try_new() {
            all.push(Box::new(Lanes::<_, 16, 2>("avx2", simd)));
            all.push(Box::new(Lanes::<_, 8, 1>("avx2", simd)));
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(simd) = pulp::aarch64::Neon::try_new() {
        all.push(Box::new(Lanes::<_, 16, 4>("neon", simd)));
        all.push(Box::new(Lanes::<_, 8, 2>("neon", simd)));
    }
    all.push(Box::new(Lanes::<_, 8, 8>("portable", Scalar)));
    if cfg!(test) {
        // The panels of processors that tests may not run on.
        all.push(Box::new(Lanes::<_, 32, 32>("portable", Scalar)));
        all.push(Box::new(Lanes::<_, 64, 64>("portable", Scalar)));
    }
    all
}

/// Panels of `W` columns in `VECTORS` vectors.
struct Lanes<S, const W: usize, const VECTORS: usize>(&'static str, S);

impl<S: Simd, const W: usize, const VECTORS: usize> Kernel for Lanes<S, W, VECTORS> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn columns(&self) -> usize {
        W
    }

    fn multiply(&self, product: Product<'_>) {
        self.1.vectorize(Multiply::<'_, W, VECTORS>(product));
    }

    fn layer_norm(&self, norm: LayerNorm<'_>) {
        self.1.vectorize(InPanels::<_, W>(norm));
    }

    fn activate(&self, activate: Activate<'_>) {
        self.1.vectorize(activate);
    }

    fn softmax(&self, softmax: Softmax<'_>) {
        self.1.vectorize(InPanels::<_, W>(softmax));
    }
}

/// Rows that are multiplied at a time: with two vectors of sixteen registers, or four of thirty-two, their sums stay in
/// registers.
const ROWS: usize = 6;

/// Values of k between two visits to the output: such a part of a panel stays in the first cache while all rows pass.
const DEPTH: usize = 256;

struct Multiply<'a, const W: usize, const VECTORS: usize>(Product<'a>);

impl<const W: usize, const VECTORS: usize> WithSimd for Multiply<'_, W, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const { assert!(W.is_multiple_of(VECTORS)) };
        let Product {
            left,
            stride,
            rows,
            panel,
            output,
        } = self.0;
        let (left, panel) = (left.as_chunks::<W>().0, panel.as_chunks::<W>().0);
        let output = &mut output.as_chunks_mut::<W>().0[..rows.len()];
        let parts = (DEPTH / W).max(1);
        // Equal groups: a last one of a single row would wait for each of its sums.
        let groups = rows.len().div_ceil(ROWS);
        for (left, panel) in left.chunks(parts * stride).zip(panel.chunks(parts * W)) {
            for group in 0..groups {
                let [from, to] = [group, group + 1].map(|group| group * rows.len() / groups);
                let (output, first) = (&mut output[from..to], rows.start + from);
                match output.len() {
                    6 => micro::<S, W, VECTORS, 6>(simd, left, stride, first, panel, output),
                    5 => micro::<S, W, VECTORS, 5>(simd, left, stride, first, panel, output),
                    4 => micro::<S, W, VECTORS, 4>(simd, left, stride, first, panel, output),
                    3 => micro::<S, W, VECTORS, 3>(simd, left, stride, first, panel, output),
                    2 => micro::<S, W, VECTORS, 2>(simd, left, stride, first, panel, output),
                    _ => micro::<S, W, VECTORS, 1>(simd, left, stride, first, panel, output),
                }
            }
        }
    }
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
