//! Products of whole numbers, whose sums are exact, by whatever instructions there are for them.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use bytemuck::{Pod, cast, cast_slice};
use pulp::{NullaryFnOnce, Scalar, Simd};
#[cfg(target_arch = "x86_64")]
use pulp::{f32x8, f32x16, i32x8, i32x16, u32x8, u32x16, x86::V3, x86::V4};

use crate::integer::{Span, Whole};
use crate::kernel::{Multiply, Product, ROWS, by_rows, groups};
use crate::prefetch::{prefetch, spread};

/// Instructions that sum products of whole numbers, in lanes of 32 bits of the vectors of `S`.
pub(crate) trait Dots<S: Simd>: Copy + Send + Sync {
    /// Runs what is compiled for these instructions.
    fn run<F: NullaryFnOnce>(self, run: F) -> F::Output;

    /// Adds the products of four unsigned numbers on the left and four signed ones on the right. Two products may be summed in
    /// 16 bits.
    fn bytes(self, sums: S::i32s, left: S::u32s, right: S::u32s) -> S::i32s;

    /// Adds the products of two signed numbers.
    fn shorts(self, sums: S::i32s, left: S::u32s, right: S::u32s) -> S::i32s;

    /// As f32, rounded to the nearest.
    fn floats(self, numbers: S::i32s) -> S::f32s;
}

#[cfg(target_arch = "x86_64")]
impl Dots<Self> for V3 {
    #[inline(always)]
    fn run<F: NullaryFnOnce>(self, run: F) -> F::Output {
        self.vectorize(run)
    }

    #[inline(always)]
    fn bytes(self, sums: i32x8, left: u32x8, right: u32x8) -> i32x8 {
        let pairs = self.avx2._mm256_maddubs_epi16(cast(left), cast(right));
        let fours = self.avx2._mm256_madd_epi16(pairs, self.avx._mm256_set1_epi16(1));
        cast(self.avx2._mm256_add_epi32(cast(sums), fours))
    }

    #[inline(always)]
    fn shorts(self, sums: i32x8, left: u32x8, right: u32x8) -> i32x8 {
        let pairs = self.avx2._mm256_madd_epi16(cast(left), cast(right));
        cast(self.avx2._mm256_add_epi32(cast(sums), pairs))
    }

    #[inline(always)]
    fn floats(self, numbers: i32x8) -> f32x8 {
        self.convert_i32x8_to_f32x8(numbers)
    }
}

#[cfg(target_arch = "x86_64")]
impl Dots<Self> for V4 {
    #[inline(always)]
    fn run<F: NullaryFnOnce>(self, run: F) -> F::Output {
        self.vectorize(run)
    }

    #[inline(always)]
    fn bytes(self, sums: i32x16, left: u32x16, right: u32x16) -> i32x16 {
        let pairs = self.avx512bw._mm512_maddubs_epi16(cast(left), cast(right));
        let fours = self
            .avx512bw
            ._mm512_madd_epi16(pairs, self.avx512f._mm512_set1_epi16(1));
        cast(self.avx512f._mm512_add_epi32(cast(sums), fours))
    }

    #[inline(always)]
    fn shorts(self, sums: i32x16, left: u32x16, right: u32x16) -> i32x16 {
        let pairs = self.avx512bw._mm512_madd_epi16(cast(left), cast(right));
        cast(self.avx512f._mm512_add_epi32(cast(sums), pairs))
    }

    #[inline(always)]
    fn floats(self, numbers: i32x16) -> f32x16 {
        self.convert_i32x16_to_f32x16(numbers)
    }
}

impl Dots<Self> for Scalar {
    #[inline(always)]
    fn run<F: NullaryFnOnce>(self, run: F) -> F::Output {
        run.call()
    }

    #[inline(always)]
    fn bytes(self, sums: i32, left: u32, right: u32) -> i32 {
        let (left, right) = (left.to_ne_bytes(), right.to_ne_bytes());
        let products = left.iter().zip(right);
        products.fold(sums, |sum, (l, r)| {
            sum + i32::from(*l) * i32::from(r.cast_signed())
        })
    }

    #[inline(always)]
    fn shorts(self, sums: i32, left: u32, right: u32) -> i32 {
        let [left, right] = [left, right].map(cast::<u32, [i16; 2]>);
        let products = left.iter().zip(right);
        products.fold(sums, |sum, (l, r)| sum + i32::from(*l) * i32::from(r))
    }

    #[inline(always)]
    fn floats(self, numbers: i32) -> f32 {
        numbers as f32
    }
}

/// Products of whole numbers in panels of `W` columns, in `VECTORS` vectors, and how their sums are computed; a row of the left
/// side is `WORDS` lanes.
pub(crate) struct WholeProducts<S, D, const W: usize, const WORDS: usize, const VECTORS: usize>(
    pub(crate) S,
    pub(crate) D,
);

impl<S, D, T, const N: usize, const W: usize, const WORDS: usize, const VECTORS: usize> Multiply<[T; N]>
    for WholeProducts<S, D, W, WORDS, VECTORS>
where
    S: Simd,
    D: Dots<S>,
    T: Whole,
    [T; N]: Pod,
{
    fn multiply(&self, product: Product<'_, [T; N]>) {
        const {
            assert!(WORDS * N == W && N * size_of::<T>() == size_of::<u32>());
            assert!(
                T::DEPTH.is_multiple_of(W) && T::LEVELS * T::WEIGHT <= (i32::MAX as usize / T::DEPTH) as f32
            );
        };
        assert_eq!(VECTORS * S::F32_LANES, W, "all columns of a panel");
        let Self(simd, dots) = *self;
        dots.run(Sums::<'_, S, D, T, N, W, WORDS, VECTORS> { simd, dots, product });
    }
}

/// Writes what a product in panels of `W` columns begins with, and what the least values of its rows add.
#[inline(always)]
pub(crate) fn begin<S: Simd, T, const W: usize>(simd: S, product: &mut Product<'_, T>) {
    product.begin();
    let sums = S::as_simd_f32s(&product.scales[W..]).0;
    let rows = product.output.as_chunks_mut::<W>().0;
    for (output, span) in rows.iter_mut().zip(&product.spans[product.rows.clone()]) {
        let least = simd.splat_f32s(span.least);
        for (output, sum) in S::as_mut_simd_f32s(output).0.iter_mut().zip(sums) {
            *output = simd.mul_add_e_f32s(least, *sum, *output);
        }
    }
}

/// Adds sums of whole numbers to a row of an output: times what its numbers are times, and what those of each column are.
#[inline(always)]
pub(crate) fn add_scaled<S: Simd, D: Dots<S>>(
    (simd, dots): (S, D),
    sums: &[S::i32s],
    (of_row, of_columns): (S::f32s, &[S::f32s]),
    output: &mut [S::f32s],
) {
    for ((output, sum), of_column) in output.iter_mut().zip(sums).zip(of_columns) {
        let sum = simd.mul_f32s(dots.floats(*sum), of_row);
        *output = simd.mul_add_e_f32s(sum, *of_column, *output);
    }
}

/// A product, to be computed by `dots`.
struct Sums<'a, S, D, T, const N: usize, const W: usize, const WORDS: usize, const VECTORS: usize> {
    simd: S,
    dots: D,
    product: Product<'a, [T; N]>,
}

impl<S, D, T, const N: usize, const W: usize, const WORDS: usize, const VECTORS: usize> NullaryFnOnce
    for Sums<'_, S, D, T, N, W, WORDS, VECTORS>
where
    S: Simd,
    D: Dots<S>,
    T: Whole,
    [T; N]: Pod,
{
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            simd,
            dots,
            mut product,
        } = self;
        begin::<_, _, W>(simd, &mut product);
        let Product {
            left,
            spans,
            stride,
            rows,
            panel,
            scales,
            next,
            output,
            ..
        } = product;
        let left: &[[u32; WORDS]] = cast_slice::<_, u32>(left).as_chunks().0;
        let panel: &[[u32; W]] = cast_slice::<_, u32>(panel).as_chunks().0;
        let scales = &scales[..W];
        let spans = &spans[rows.clone()];
        let output = &mut output.as_chunks_mut::<W>().0[..rows.len()];
        let parts = T::DEPTH / W;
        let visits = panel.len().div_ceil(parts * WORDS) * rows.len().div_ceil(ROWS);
        let mut next = spread(cast_slice::<_, u8>(next), visits);
        for (left, panel) in left.chunks(parts * stride).zip(panel.chunks(parts * WORDS)) {
            for group in groups(rows.len(), ROWS) {
                let part = Part::<W, WORDS> {
                    left,
                    stride,
                    first: rows.start + group.start,
                    panel,
                    next: next.next().unwrap_or_default(),
                    scales,
                    words: WORDS.min(panel.len()),
                };
                let (spans, output) = (&spans[group.clone()], &mut output[group]);
                by_rows!(output.len(), M => part.micro::<S, D, T, VECTORS, M>((simd, dots), spans, output));
            }
        }
    }
}

/// A part of a panel, and of the rows that it is multiplied with.
struct Part<'a, const W: usize, const WORDS: usize> {
    left: &'a [[u32; WORDS]],
    stride: usize,
    first: usize,
    panel: &'a [[u32; W]],
    /// What is fetched meanwhile.
    next: &'a [u8],
    scales: &'a [f32],
    /// `WORDS`, at run time: the compiler would take a loop of that length apart, add in another order, and have more sums
    /// than there are registers.
    words: usize,
}

impl<const W: usize, const WORDS: usize> Part<'_, W, WORDS> {
    /// `M` rows against it.
    #[inline(always)]
    fn micro<S: Simd, D: Dots<S>, T: Whole, const VECTORS: usize, const M: usize>(
        &self,
        (simd, dots): (S, D),
        spans: &[Span],
        output: &mut [[f32; W]],
    ) {
        let mut sums = [[simd.splat_i32s(0); VECTORS]; M];
        let panels = self
            .left
            .chunks_exact(self.stride)
            .zip(self.panel.chunks_exact(WORDS));
        let mut next = spread(self.next, self.panel.len() / WORDS);
        for (left, panel) in panels {
            prefetch(next.next().unwrap_or_default());
            let left: &[[u32; WORDS]; M] = match left.get(self.first..).and_then(<[_]>::first_chunk) {
                Some(left) => left,
                None => return,
            };
            for k in 0..self.words {
                let right = S::as_simd_u32s(&panel[k]).0;
                for m in 0..M {
                    let numbers = simd.splat_u32s(left[m][k]);
                    for v in 0..VECTORS {
                        sums[m][v] = T::multiply_add(dots, sums[m][v], numbers, right[v]);
                    }
                }
            }
        }
        let scales = S::as_simd_f32s(self.scales).0;
        for ((sums, span), output) in sums.iter().zip(spans).zip(output) {
            let scale = simd.splat_f32s(span.scale);
            let output = S::as_mut_simd_f32s(output).0;
            add_scaled((simd, dots), sums, (scale, scales), output);
        }
    }
}
