//! Products in bfloat16 and of whole numbers of 8 bits by AMX's tiles.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use std::ops::Range;

use bytemuck::cast_slice;
use pulp::{NullaryFnOnce, Simd};

use crate::dots::{Dots, add_scaled, begin};
use crate::integer::{Bytes, Span, Whole};
use crate::kernel::{Multiply, Product};
use crate::operand::Pair;
use crate::tiles::{Factors, LANES, ROWS, SUMS, TILE, Tiles};
use crate::x86::COLUMNS;

/// W of whole numbers of 8 bits: as of pairs, a row of a panel of the left side is a row of a tile.
pub(crate) const COLUMNS_OF_BYTES: usize = LANES * 4;

/// Panels of the left side in bfloat16 between two visits to the output: such a part of the right side, 24 KiB, and that of the rows
/// that pass stay in the first cache. From the second, tiles would be loaded slower than they are multiplied.
const PARTS: usize = 12;
/// As `PARTS`, of whole numbers: as far as their sums are exact in f32.
const PARTS_OF_BYTES: usize = u8::DEPTH / COLUMNS_OF_BYTES;

/// Of pairs.
pub(crate) struct PairProducts(pub(crate) Tiles);

/// Of whole numbers of 8 bits, whose sums are scaled by the vectors of `S`.
pub(crate) struct ByteProducts<S, D>(pub(crate) Tiles, pub(crate) S, pub(crate) D);

impl Multiply<Pair> for PairProducts {
    fn multiply(&self, mut product: Product<'_, Pair>) {
        product.begin();
        let Product {
            left,
            stride,
            rows,
            panel,
            output,
            ..
        } = product;
        let left = left.as_chunks().0;
        let output = &mut output.as_chunks_mut().0[..rows.len()];
        let tiles = self.0.take();
        for (left, right) in left
            .chunks(PARTS * stride)
            .zip(panel.chunks(PARTS * TILE * COLUMNS))
        {
            for group in groups(rows.len()) {
                let factors = Factors {
                    left,
                    stride,
                    first: rows.start + group.start,
                    right,
                    columns: COLUMNS,
                    column: 0,
                };
                tiles.multiply(&factors, &mut output[group]);
            }
        }
    }
}

impl<S: Simd, D: Dots<S>> Multiply<Bytes> for ByteProducts<S, D> {
    fn multiply(&self, mut product: Product<'_, Bytes>) {
        let Self(tiles, simd, dots) = *self;
        dots.run(Begin::<'_, '_, S> {
            simd,
            product: &mut product,
        });
        let Product {
            left,
            spans,
            stride,
            rows,
            panel,
            scales,
            output,
            ..
        } = product;
        let left = cast_slice::<_, u32>(left).as_chunks().0;
        let right: &[u32] = cast_slice(panel);
        let spans = &spans[rows.clone()];
        let output = &mut output.as_chunks_mut::<COLUMNS_OF_BYTES>().0[..rows.len()];
        let mut sums = [[0_i32; SUMS]; ROWS];
        let tiles = tiles.take();
        for (left, right) in left
            .chunks(PARTS_OF_BYTES * stride)
            .zip(right.chunks(PARTS_OF_BYTES * TILE * COLUMNS_OF_BYTES))
        {
            for column in (0..COLUMNS_OF_BYTES).step_by(SUMS) {
                for group in groups(rows.len()) {
                    let factors = Factors {
                        left,
                        stride,
                        first: rows.start + group.start,
                        right,
                        columns: COLUMNS_OF_BYTES,
                        column,
                    };
                    let sums = &mut sums[..group.len()];
                    tiles.multiply(&factors, sums);
                    dots.run(Scaled {
                        simd,
                        dots,
                        sums,
                        spans: &spans[group.clone()],
                        scales: &scales[column..][..SUMS],
                        output: &mut output[group],
                        column,
                    });
                }
            }
        }
    }
}

/// What a product of whole numbers begins with, by the vectors of `S`.
struct Begin<'a, 'b, S> {
    simd: S,
    product: &'a mut Product<'b, Bytes>,
}

impl<S: Simd> NullaryFnOnce for Begin<'_, '_, S> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        begin::<_, _, COLUMNS_OF_BYTES>(self.simd, self.product);
    }
}

/// Adds sums to the columns of an output that begin with `column`.
struct Scaled<'a, S, D> {
    simd: S,
    dots: D,
    sums: &'a [[i32; SUMS]],
    spans: &'a [Span],
    /// One a column.
    scales: &'a [f32],
    output: &'a mut [[f32; COLUMNS_OF_BYTES]],
    column: usize,
}

impl<S: Simd, D: Dots<S>> NullaryFnOnce for Scaled<'_, S, D> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let scales = S::as_simd_f32s(self.scales).0;
        let rows = self.sums.iter().zip(self.spans).zip(self.output);
        for ((sums, span), output) in rows {
            let output = S::as_mut_simd_f32s(&mut output[self.column..][..SUMS]).0;
            let factors = (self.simd.splat_f32s(span.scale), scales);
            add_scaled((self.simd, self.dots), S::as_simd_i32s(sums).0, factors, output);
        }
    }
}

/// So many rows in groups of at most [`ROWS`]: as many in all but the last, so that tiles are seldom configured for others. What a
/// tile costs is its rows.
fn groups(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let of_group = rows.div_ceil(rows.div_ceil(ROWS).max(1)).max(1);
    (0..rows)
        .step_by(of_group)
        .map(move |first| first..rows.min(first + of_group))
}
