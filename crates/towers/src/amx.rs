//! Products in bfloat16 and of whole numbers of 8 bits by AMX's tiles.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use std::ops::Range;

use bytemuck::cast_slice;
use pulp::x86::V4;
use pulp::{NullaryFnOnce, Simd};

use crate::dots::{add_scaled, begin};
use crate::integer::{Bytes, Whole};
use crate::kernel::{Multiply, Product};
use crate::operand::Pair;
use crate::tiles::{Factors, LANES, ROWS, SUMS, Tiles};
use crate::x86::COLUMNS;

/// W of whole numbers of 8 bits: as of pairs, a row of a panel of the left side is a row of a tile.
pub(crate) const COLUMNS_OF_BYTES: usize = LANES * 4;

/// Panels of the left side in bfloat16 between two visits to the output: such a part of the right side, 16 KiB, can stay in a first cache
/// of 48 while all rows pass, beside a group of those. By arithmetic, not timed.
const PARTS: usize = 8;
/// As `PARTS`, of whole numbers: as many as their sums are exact for in f32, since each visit scales those.
const PARTS_OF_BYTES: usize = u8::DEPTH / COLUMNS_OF_BYTES;

/// Products of pairs by tiles.
pub(crate) struct PairProducts(pub(crate) Tiles<f32>);

/// Products of whole numbers of 8 bits by tiles, whose sums are scaled by vectors.
pub(crate) struct ByteProducts(pub(crate) Tiles<i32>, pub(crate) V4);

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
        let output = &mut output.as_chunks_mut().0[..rows.len()];
        let tiles = self.0.take();
        for part in Factors::parts((left, stride), (panel, COLUMNS), PARTS) {
            for group in tall_groups(rows.len()) {
                let first = rows.start + group.start;
                tiles.multiply(part.starting(first, 0), &mut output[group]);
            }
        }
    }
}

impl Multiply<Bytes> for ByteProducts {
    fn multiply(&self, product: Product<'_, Bytes>) {
        let Self(tiles, simd) = *self;
        simd.vectorize(Scaled { simd, tiles, product });
    }
}

/// A product of whole numbers, by vectors where it is not by tiles.
struct Scaled<'a> {
    simd: V4,
    tiles: Tiles<i32>,
    product: Product<'a, Bytes>,
}

impl NullaryFnOnce for Scaled<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            simd,
            tiles,
            mut product,
        } = self;
        begin::<_, _, COLUMNS_OF_BYTES>(simd, &mut product);
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
        let (left, right) = ((cast_slice(left), stride), (cast_slice(panel), COLUMNS_OF_BYTES));
        let (spans, scales) = (&spans[rows.clone()], &scales[..COLUMNS_OF_BYTES]);
        let output = &mut output.as_chunks_mut::<COLUMNS_OF_BYTES>().0[..rows.len()];
        let mut sums = [[0; SUMS]; ROWS];
        let tiles = tiles.take();
        for part in Factors::parts(left, right, PARTS_OF_BYTES) {
            for column in (0..COLUMNS_OF_BYTES).step_by(SUMS) {
                let scales = V4::as_simd_f32s(&scales[column..][..SUMS]).0;
                for group in tall_groups(rows.len()) {
                    let first = rows.start + group.start;
                    let sums = &mut sums[..group.len()];
                    tiles.multiply(part.starting(first, column), sums);
                    let rows = sums.iter().zip(&spans[group.clone()]).zip(&mut output[group]);
                    for ((sums, span), output) in rows {
                        let output = V4::as_mut_simd_f32s(&mut output[column..][..SUMS]).0;
                        let factors = (simd.splat_f32s(span.scale), scales);
                        add_scaled((simd, simd), V4::as_simd_i32s(sums).0, factors, output);
                    }
                }
            }
        }
    }
}

/// So many rows in groups of at most [`ROWS`]: as many in all but the last, so that tiles are seldom configured for others.
fn tall_groups(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let of_group = rows.div_ceil(rows.div_ceil(ROWS).max(1)).max(1);
    (0..rows)
        .step_by(of_group)
        .map(move |first| first..rows.min(first + of_group))
}
