//! Whole numbers: each column of weights and each row of activations is scaled to what its numbers can hold.
//!
//! ```text
//! w ≈ s_c · q,         q in ±Q,       s_c = max |w| / Q of a column
//! x ≈ s_r · u + l_r,   u in 0..=U,    l_r = min x and s_r = (max x − l_r) / U of a row
//! Σ_k x_k w_k ≈ s_r · s_c · Σ_k u_k q_k + l_r · s_c · Σ_k q_k
//! ```
//!
//! The scheme is that of Jacob et al. 2018 (arXiv 1712.05877), with scales for each column and for each row. Sums of products
//! are exact, and added to f32 before they could overflow 32 bits (of 8 bits, while each is exact in f32, too).
//!
//! | numbers | Q | U | why |
//! |---|---|---|---|
//! | 8 bits | 64 | 255 | `vpmaddubsw` adds two products in 16 bits |
//! | 16 bits | 2047 | 4095 | 256 products fill 32 bits |

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use std::borrow::Cow;

use bytemuck::Pod;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::blocks::{Blocks, Extent, Layout};
use crate::dots::Dots;
use crate::elementwise::InPanels;
use crate::kernel::{Kernel, Multiply, Vectors};
use crate::operand::{Operand, Side};

/// 1.5 · 2²³: what is added to it is rounded to a whole number, to even, which stands in the lowest bits.
pub(crate) const WHOLE: f32 = 12_582_912.0;

/// Four numbers of 8 bits.
pub(crate) type Bytes = [u8; 4];

/// Two of 16 bits.
pub(crate) type Shorts = [u16; 2];

/// A whole number: u of an activation, or q of a weight in two's complement.
pub(crate) trait Whole: Pod + Default + Send + Sync {
    /// Q.
    const WEIGHT: f32;
    /// U.
    const LEVELS: f32;
    /// Products that are summed before they are added in f32, at most.
    const DEPTH: usize;

    /// The lowest bits of a number's two's complement.
    fn low(bits: u32) -> Self;

    /// Adds the products of the numbers of each lane.
    fn multiply_add<S: Simd>(by: impl Dots<S>, sums: S::i32s, left: S::u32s, right: S::u32s) -> S::i32s;

    /// Makes rows of a block of activations whole numbers.
    fn narrow(vectors: &dyn Vectors, narrow: Narrow<'_, Self>);
}

impl Whole for u8 {
    const WEIGHT: f32 = 64.0;
    const LEVELS: f32 = 255.0;
    const DEPTH: usize = 1024;

    #[inline(always)]
    fn low(bits: u32) -> Self {
        bits as u8
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(by: impl Dots<S>, sums: S::i32s, left: S::u32s, right: S::u32s) -> S::i32s {
        by.bytes(sums, left, right)
    }

    fn narrow(vectors: &dyn Vectors, narrow: Narrow<'_, Self>) {
        vectors.narrow_to_bytes(narrow);
    }
}

impl Whole for u16 {
    const WEIGHT: f32 = 2047.0;
    const LEVELS: f32 = 4095.0;
    const DEPTH: usize = 256;

    #[inline(always)]
    fn low(bits: u32) -> Self {
        bits as u16
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(by: impl Dots<S>, sums: S::i32s, left: S::u32s, right: S::u32s) -> S::i32s {
        by.shorts(sums, left, right)
    }

    fn narrow(vectors: &dyn Vectors, narrow: Narrow<'_, Self>) {
        vectors.narrow_to_shorts(narrow);
    }
}

/// What the numbers of a row of activations mean.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Span {
    /// l, the least value.
    pub(crate) least: f32,
    /// s, the distance of two numbers. No number where a value of the row is none, or infinite.
    pub(crate) scale: f32,
}

/// The rows of activations as whole numbers.
pub(crate) struct Rows<T> {
    numbers: Blocks<T>,
    /// Of each row of each block.
    spans: Vec<Span>,
}

impl<T: Whole, const N: usize> Operand for [T; N]
where
    [T; N]: Pod + Default,
{
    const VALUES: usize = N;
    type Piece = f32;
    type Rows = Rows<Self>;

    fn scaled(weights: &[f32], inputs: usize, width: usize) -> (Cow<'_, [f32]>, Vec<f32>) {
        let mut numbers = weights.to_vec();
        let mut scales = vec![0.0; 2 * width];
        let (of_columns, sums) = scales.split_at_mut(width);
        let of_columns = of_columns.iter_mut().zip(sums);
        for (column, (scale, sum)) in numbers.chunks_exact_mut(inputs).zip(of_columns) {
            let most = column.iter().fold(0.0_f32, |most, weight| most.max(weight.abs()));
            *scale = most / T::WEIGHT;
            let share = if scale.is_normal() { scale.recip() } else { 0.0 };
            let mut whole = 0;
            for weight in column {
                *weight = *weight * share + WHOLE - WHOLE;
                whole += *weight as i32;
            }
            *sum = *scale * whole as f32;
        }
        (Cow::Owned(numbers), scales)
    }

    fn put(row: &mut [Self], first: usize, values: &[f32]) {
        let places = row.as_flattened_mut()[first..].iter_mut();
        places
            .zip(values)
            .for_each(|(place, value)| *place = T::low((*value as i32).cast_unsigned()));
    }

    fn pieces(kernel: &Kernel<Self>) -> &dyn Multiply<f32> {
        kernel.vectors.as_ref()
    }

    fn rows(layout: Layout, blocks: usize) -> Rows<Self> {
        Rows {
            numbers: Blocks::of(layout, blocks),
            spans: vec![Span::default(); layout.stride * blocks],
        }
    }

    fn side<'a>(
        pieces: &'a Blocks,
        Rows { numbers, spans }: &'a mut Rows<Self>,
        vectors: &dyn Vectors,
        extent: Extent,
    ) -> Side<'a, Self> {
        let (from, to) = (pieces.layout, numbers.layout);
        let of_blocks = spans.par_chunks_mut(to.stride).take(extent.blocks);
        of_blocks.enumerate().for_each(|(block, spans)| {
            let some = spans[..extent.rows].par_chunks_mut(MEASURED).enumerate();
            some.for_each(|(number, spans)| {
                vectors.measure(Measure {
                    block: pieces.block(block),
                    stride: from.stride,
                    first: number * MEASURED,
                    levels: T::LEVELS,
                    spans,
                });
            });
        });
        let panels = numbers.values.par_chunks_mut(to.panel_len());
        let panels = panels.take(extent.blocks * to.panels).enumerate();
        panels.for_each(|(number, output)| {
            let start = number / to.panels * to.stride;
            T::narrow(
                vectors,
                Narrow {
                    panel: &pieces.values[number * from.panel_len()..][..extent.rows * from.panel],
                    spans: &spans[start..][..extent.rows],
                    output: output[..extent.rows * to.panel].as_flattened_mut(),
                },
            );
        });
        Side {
            blocks: numbers,
            spans,
        }
    }
}

/// Rows that are measured side by side, as they lie in a panel.
const MEASURED: usize = 32;

/// Finds the spans of some rows of a block, at most [`MEASURED`].
pub(crate) struct Measure<'a> {
    /// Panels of `stride` rows.
    block: &'a [f32],
    /// Rows of a panel.
    stride: usize,
    /// The first of the rows.
    first: usize,
    /// U.
    levels: f32,
    /// One a row.
    spans: &'a mut [Span],
}

impl<const W: usize> WithSimd for InPanels<Measure<'_>, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Measure {
            block,
            stride,
            first,
            levels,
            spans,
        } = self.0;
        let mut least = [simd.splat_f32s(f32::INFINITY); MEASURED];
        let mut most = [simd.splat_f32s(f32::NEG_INFINITY); MEASURED];
        // 0, or no number where one of the row is none or infinite: a comparison can lose it.
        let mut nothing = [simd.splat_f32s(0.0); MEASURED];
        for panel in block.as_chunks::<W>().0.chunks_exact(stride) {
            let rows = least.iter_mut().zip(&mut most).zip(&mut nothing);
            for (piece, ((least, most), nothing)) in panel[first..][..spans.len()].iter().zip(rows) {
                for x in S::as_simd_f32s(piece).0 {
                    *least = simd.min_f32s(*least, *x);
                    *most = simd.max_f32s(*most, *x);
                    *nothing = simd.add_f32s(*nothing, simd.sub_f32s(*x, *x));
                }
            }
        }
        for (row, span) in spans.iter_mut().enumerate() {
            let least = simd.reduce_min_f32s(least[row]);
            let range = simd.reduce_max_f32s(most[row]) - least;
            *span = Span {
                least,
                scale: range / levels + simd.reduce_sum_f32s(nothing[row]),
            };
        }
    }
}

/// Makes rows of a panel whole numbers.
pub(crate) struct Narrow<'a, T> {
    /// Rows of W values.
    panel: &'a [f32],
    /// Of each row.
    spans: &'a [Span],
    /// As `panel`.
    output: &'a mut [T],
}

impl<T: Whole, const W: usize> WithSimd for InPanels<Narrow<'_, T>, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Narrow { panel, spans, output } = self.0;
        let rows = panel.as_chunks::<W>().0.iter().zip(output.as_chunks_mut::<W>().0);
        for ((values, numbers), span) in rows.zip(spans) {
            // A row of one value is that value.
            let share = if span.scale.is_normal() {
                span.scale.recip()
            } else {
                0.0
            };
            let [least, share, round] = [span.least, share, WHOLE].map(|value| simd.splat_f32s(value));
            let mut bits = [0; W];
            let vectors = S::as_simd_f32s(values).0.iter();
            for (value, bits) in vectors.zip(S::as_mut_simd_u32s(&mut bits).0) {
                let steps = simd.mul_f32s(simd.sub_f32s(*value, least), share);
                *bits = simd.transmute_u32s_f32s(simd.add_f32s(steps, round));
            }
            for (number, bits) in numbers.iter_mut().zip(bits) {
                *number = T::low(bits);
            }
        }
    }
}
