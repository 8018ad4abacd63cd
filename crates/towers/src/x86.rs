//! Products by vector instructions of x86 that `pulp` has not: those for bfloat16, and for whole numbers.
//!
//! Invariant: slices bound every access; unsafe are the instructions themselves, and arrays seen as vectors.

#![expect(
    unsafe_code,
    reason = "instructions that have no safe form; each block says why it is sound"
)]
#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_set1_epi32,
};
use std::mem::transmute;

use bytemuck::cast;
use pulp::x86::V4;
use pulp::{NullaryFnOnce, f32x16, i32x16, u32x16};

use crate::dots::Dots;
use crate::kernel::{Multiply, Product, groups};
use crate::operand::Pair;
use crate::prefetch::{prefetch, spread};

/// AVX512-VNNI's sums of products of whole numbers.
#[derive(Clone, Copy)]
pub(crate) struct Vnni(V4);

impl Vnni {
    /// `None` where the processor has none.
    pub(crate) fn try_new() -> Option<Self> {
        let simd = V4::try_new()?;
        std::arch::is_x86_feature_detected!("avx512vnni").then_some(Self(simd))
    }
}

impl Dots<V4> for Vnni {
    #[inline(always)]
    fn run<F: NullaryFnOnce>(self, run: F) -> F::Output {
        #[target_feature(
            enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni"
        )]
        fn compiled<F: NullaryFnOnce>(run: F) -> F::Output {
            run.call()
        }
        // SAFETY: there is no value of this type where the processor lacks the instructions.
        unsafe { compiled(run) }
    }

    #[inline(always)]
    fn bytes(self, sums: i32x16, left: u32x16, right: u32x16) -> i32x16 {
        // SAFETY: as above.
        cast(unsafe { _mm512_dpbusd_epi32(cast(sums), cast(left), cast(right)) })
    }

    #[inline(always)]
    fn shorts(self, sums: i32x16, left: u32x16, right: u32x16) -> i32x16 {
        // SAFETY: as above.
        cast(unsafe { _mm512_dpwssd_epi32(cast(sums), cast(left), cast(right)) })
    }

    #[inline(always)]
    fn floats(self, numbers: i32x16) -> f32x16 {
        self.0.floats(numbers)
    }
}

/// W: a row of a panel of pairs is a cache line, and a row of a tile.
pub(crate) const COLUMNS: usize = 32;
/// Pairs of a row of a panel.
pub(crate) const PAIRS: usize = COLUMNS / 2;

/// By AVX512-BF16's dot products.
pub(crate) struct DotProducts(());

impl DotProducts {
    /// `None` where the processor has none.
    pub(crate) fn try_new() -> Option<Self> {
        std::arch::is_x86_feature_detected!("avx512bf16").then_some(Self(()))
    }
}

impl Multiply<Pair> for DotProducts {
    fn multiply(&self, product: Product<'_, Pair>) {
        // SAFETY: there is no value of this type where the processor lacks the instructions.
        unsafe { dot_products(product) }
    }
}

/// Rows that are multiplied at a time: their sums, two vectors each, and the two of the panel fill thirty-two registers.
const ROWS: usize = 12;

/// Panels of the left side between two visits to the output: such a part of the right side stays in the first cache while all
/// rows pass.
const PARTS: usize = 12;

#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_products(product: Product<'_, Pair>) {
    let Product {
        left,
        stride,
        rows,
        panel,
        next,
        start,
        output,
        ..
    } = product;
    let (left, panel) = (left.as_chunks::<PAIRS>().0, panel.as_chunks::<COLUMNS>().0);
    let visits = panel.len().div_ceil(PARTS * PAIRS) * rows.len().div_ceil(ROWS);
    let mut next = spread(next, visits);
    let mut start = start.as_chunks::<COLUMNS>().0.first();
    assert!(rows.end <= stride && left.len() >= panel.len() / PAIRS * stride);
    let output = &mut output.as_chunks_mut::<COLUMNS>().0[..rows.len()];
    for (left, panel) in left.chunks(PARTS * stride).zip(panel.chunks(PARTS * PAIRS)) {
        for group in groups(rows.len(), ROWS) {
            let part = Part {
                left,
                stride,
                first: rows.start + group.start,
                panel,
                next: next.next().unwrap_or_default(),
                start,
            };
            let output = &mut output[group];
            match output.len() {
                12 => micro::<12>(part, output),
                11 => micro::<11>(part, output),
                10 => micro::<10>(part, output),
                9 => micro::<9>(part, output),
                8 => micro::<8>(part, output),
                7 => micro::<7>(part, output),
                6 => micro::<6>(part, output),
                5 => micro::<5>(part, output),
                4 => micro::<4>(part, output),
                3 => micro::<3>(part, output),
                2 => micro::<2>(part, output),
                _ => micro::<1>(part, output),
            }
        }
        start = None;
    }
}

/// A part of a panel, and of the rows that it is multiplied with.
#[derive(Clone, Copy)]
struct Part<'a> {
    left: &'a [[Pair; PAIRS]],
    stride: usize,
    first: usize,
    panel: &'a [[Pair; COLUMNS]],
    /// What is fetched meanwhile.
    next: &'a [Pair],
    /// What the sums begin with, if it is not what the output holds.
    start: Option<&'a [f32; COLUMNS]>,
}

/// `M` rows against it.
#[target_feature(enable = "avx512f,avx512bf16")]
fn micro<const M: usize>(part: Part<'_>, output: &mut [[f32; COLUMNS]]) {
    // SAFETY: both sides are as large, and any bits are a value of either.
    let sums_of = |row: [f32; COLUMNS]| unsafe { transmute::<[f32; COLUMNS], [__m512; 2]>(row) };
    // SAFETY: as above.
    let pairs_of = |row: [Pair; COLUMNS]| unsafe { transmute::<[Pair; COLUMNS], [__m512bh; 2]>(row) };
    let mut next = spread(part.next, part.panel.len() / PAIRS);
    let mut sums = [[0.0; COLUMNS]; M].map(sums_of);
    for (sums, output) in sums.iter_mut().zip(&*output) {
        *sums = sums_of(*part.start.unwrap_or(output));
    }
    let panels = part.left.chunks_exact(part.stride);
    for (left, panel) in panels.zip(part.panel.chunks_exact(PAIRS)) {
        prefetch(next.next().unwrap_or_default());
        let Some(left) = left.get(part.first..).and_then(<[_]>::first_chunk::<M>) else {
            return;
        };
        for k in 0..PAIRS {
            let right = pairs_of(panel[k]);
            for m in 0..M {
                let pair = _mm512_set1_epi32(left[m][k].cast_signed());
                // SAFETY: as above.
                let pair = unsafe { transmute::<__m512i, __m512bh>(pair) };
                for v in 0..2 {
                    sums[m][v] = _mm512_dpbf16_ps(sums[m][v], pair, right[v]);
                }
            }
        }
    }
    for (sums, output) in sums.iter().zip(output) {
        // SAFETY: as above.
        *output = unsafe { transmute::<[__m512; 2], [f32; COLUMNS]>(*sums) };
    }
}
