//! Products of columns: both sides lie in panels, row k of which holds what is multiplied for that k.
//!
//! ```text
//! output[i, j] = Σ_k left[k, i] · right[k, j]
//! ```

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use bytemuck::cast_slice;
use pulp::{NullaryFnOnce, Simd, WithSimd};

use crate::dots::{Dots, WholeProducts};
use crate::integer::Shorts;
use crate::kernel::{ROWS, by_rows, groups};
use crate::lanes::Lanes;

/// Rows between two visits to the output: so many of both sides stay in the first cache.
const DEPTH: usize = 128;

/// The columns of two panels, and the sum of their products: W rows of W values.
pub(crate) struct Crossed<'a, T, O> {
    /// Rows of W operands.
    pub(crate) left: &'a [T],
    /// As many.
    pub(crate) right: &'a [T],
    /// What products are added to.
    pub(crate) output: &'a mut [O],
}

/// Products of the columns of panels. Of whole numbers, sums must fill 32 bits at most.
pub(crate) trait Cross<T, O>: Send + Sync {
    /// Adds them.
    fn cross(&self, crossed: Crossed<'_, T, O>);
}

impl<S: Simd, const W: usize, const HALF: usize, const VECTORS: usize> Cross<f32, f32>
    for Lanes<S, W, HALF, VECTORS>
{
    fn cross(&self, crossed: Crossed<'_, f32, f32>) {
        self.0.vectorize(InFloats::<'_, W, VECTORS>(crossed));
    }
}

struct InFloats<'a, const W: usize, const VECTORS: usize>(Crossed<'a, f32, f32>);

impl<const W: usize, const VECTORS: usize> WithSimd for InFloats<'_, W, VECTORS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Crossed { left, right, output } = self.0;
        let add = |sum, value, right| {
            let value = simd.splat_f32s(f32::from_bits(value));
            simd.mul_add_e_f32s(value, simd.transmute_f32s_u32s(right), sum)
        };
        Sides::<'_, W>::of(cast_slice(left), cast_slice(right)).multiply::<S, _, _, VECTORS>(
            output,
            |row| S::as_mut_simd_f32s(row).0,
            add,
        );
    }
}

impl<S, D, const W: usize, const WORDS: usize, const VECTORS: usize> Cross<Shorts, i32>
    for WholeProducts<S, D, W, WORDS, VECTORS>
where
    S: Simd,
    D: Dots<S>,
{
    fn cross(&self, crossed: Crossed<'_, Shorts, i32>) {
        let Self(simd, dots) = *self;
        dots.run(InShorts::<'_, S, D, W, VECTORS> { simd, dots, crossed });
    }
}

struct InShorts<'a, S, D, const W: usize, const VECTORS: usize> {
    simd: S,
    dots: D,
    crossed: Crossed<'a, Shorts, i32>,
}

impl<S: Simd, D: Dots<S>, const W: usize, const VECTORS: usize> NullaryFnOnce
    for InShorts<'_, S, D, W, VECTORS>
{
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, dots, crossed } = self;
        let Crossed { left, right, output } = crossed;
        Sides::<'_, W>::of(cast_slice(left), cast_slice(right)).multiply::<S, _, _, VECTORS>(
            output,
            |row| S::as_mut_simd_i32s(row).0,
            |sum, pair, right| dots.shorts(sum, simd.splat_u32s(pair), right),
        );
    }
}

/// Both sides, as lanes of 32 bits.
struct Sides<'a, const W: usize> {
    left: &'a [[u32; W]],
    right: &'a [[u32; W]],
}

impl<'a, const W: usize> Sides<'a, W> {
    #[inline(always)]
    fn of(left: &'a [u32], right: &'a [u32]) -> Self {
        Self {
            left: left.as_chunks().0,
            right: right.as_chunks().0,
        }
    }

    /// Adds their products to rows of W lanes, given what vectors of sums a row is, and how a product is added to one.
    #[inline(always)]
    fn multiply<S: Simd, O, X: Copy, const VECTORS: usize>(
        &self,
        output: &mut [O],
        vectors: impl Fn(&mut [O; W]) -> &mut [X],
        add: impl Fn(X, u32, S::u32s) -> X,
    ) {
        assert_eq!(VECTORS * S::F32_LANES, W, "all columns of a panel");
        let output = &mut output.as_chunks_mut::<W>().0[..W];
        let parts = self.left.chunks(DEPTH).zip(self.right.chunks(DEPTH));
        for part in parts.map(|(left, right)| Sides { left, right }) {
            for group in groups(W, ROWS) {
                let (first, output) = (group.start, &mut output[group]);
                by_rows!(output.len(), M => part.micro::<S, O, X, VECTORS, M>(first, output, &vectors, &add));
            }
        }
    }

    /// `M` columns of the left against all of the right.
    #[inline(always)]
    fn micro<S: Simd, O, X: Copy, const VECTORS: usize, const M: usize>(
        &self,
        first: usize,
        output: &mut [[O; W]],
        vectors: &impl Fn(&mut [O; W]) -> &mut [X],
        add: &impl Fn(X, u32, S::u32s) -> X,
    ) {
        let Some(output) = output.first_chunk_mut::<M>() else {
            return;
        };
        let mut sums = output.each_mut().map(|row| {
            let row: &mut [X; VECTORS] = vectors(row).first_chunk_mut().expect("a row of whole vectors");
            *row
        });
        for (left, right) in self.left.iter().zip(self.right) {
            let Some(left) = left.get(first..).and_then(<[_]>::first_chunk::<M>) else {
                return;
            };
            let right = S::as_simd_u32s(right).0;
            for m in 0..M {
                for v in 0..VECTORS {
                    sums[m][v] = add(sums[m][v], left[m], right[v]);
                }
            }
        }
        for (sums, row) in sums.iter().zip(output) {
            vectors(row).copy_from_slice(sums);
        }
    }
}
