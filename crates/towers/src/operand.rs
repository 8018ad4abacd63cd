//! What products multiply: f32, bfloat16 in pairs, or whole numbers, two or four together.
//!
//! bfloat16 is the upper half of an f32, rounded to the nearest and to even. What stands together in a pair is value i and
//! value i + W / 2 of W that follow one another: so two vectors become one of pairs lane by lane, and as both sides of a product
//! pair alike, its sums are the same, in another order. The instructions for it want pairs of the summed dimension:
//! `vdpbf16ps` and `tdpbf16ps` of Intel's manual, volume 2. Whole numbers (see [`crate::integer`]) stand in their order.

use std::borrow::Cow;
use std::cell::RefCell;

use bytemuck::Pod;

use crate::blocks::{Aligned, Blocks, Extent, Layout};
use crate::elementwise::{Add, AddPairs, LayerNorm, Round};
use crate::integer::Span;
use crate::kernel::{Kernel, Multiply, Vectors};
use crate::strassen::Lefts;

/// One operand: as many values as it holds.
pub(crate) trait Operand: Pod + Default + Send + Sync {
    /// Values that one holds.
    const VALUES: usize;

    /// What the left side of a product is written as, piece by piece, and what attention multiplies.
    type Piece: Piecewise;

    /// What its rows become when all pieces are there, if that is another thing.
    type Rows: Send;

    /// The weights `(outputs, inputs)` of a panel of `width` columns such as it can hold, and what these are times: nothing,
    /// unless columns are scaled. See [`Product::scales`](crate::kernel::Product::scales).
    fn scaled(weights: &[f32], _inputs: usize, _width: usize) -> (Cow<'_, [f32]>, Vec<f32>) {
        (Cow::Borrowed(weights), Vec::new())
    }

    /// Puts `values` into a row of a panel, from column `first` on.
    fn put(row: &mut [Self], first: usize, values: &[f32]);

    /// What multiplies pieces.
    fn pieces(kernel: &Kernel<Self>) -> &dyn Multiply<Self::Piece>;

    /// Room for the rows of blocks.
    fn rows(layout: Layout, blocks: usize) -> Self::Rows;

    /// Rows of which all pieces are there, as products read them.
    fn side<'a>(
        pieces: &'a Blocks<Self::Piece>,
        rows: &'a mut Self::Rows,
        vectors: &dyn Vectors,
        extent: Extent,
    ) -> Side<'a, Self>;
}

/// What can be written piece by piece.
pub(crate) trait Piecewise: Operand<Piece = Self> {
    /// Fills `output` with what `fill` makes in f32.
    fn filled(output: &mut [Self], vectors: &dyn Vectors, fill: impl FnOnce(&mut [f32]));

    /// Normalises rows of a block.
    fn layer_norm(vectors: &dyn Vectors, norm: LayerNorm<'_, Self>);

    /// Puts `number` of the rows that are summed together, W values, into the row of a right side that holds them, the first of
    /// them first.
    fn join(together: &mut [Self], number: usize, row: &[Self]);

    /// Makes `output` one and so many times another.
    fn add(vectors: &dyn Vectors, sum: (&[Self], f32, &[Self]), output: &mut [Self]);

    /// Adds pieces to rows of W values.
    fn add_to(vectors: &dyn Vectors, values: &mut [f32], pieces: &[Self]);

    /// Makes rows of W values pieces.
    fn write(vectors: &dyn Vectors, values: &[f32], output: &mut [Self]);

    /// The room that [`Self::rounded`] takes for so many values.
    fn rounded_len(values: usize) -> usize;

    /// Rows of W values as pieces, into `room` if they are not the same.
    fn rounded<'a>(vectors: &dyn Vectors, values: &'a [f32], room: &'a mut [Self]) -> &'a [Self];
}

/// Blocks that are the left side of a product.
pub(crate) struct Left<T: Operand> {
    pub(crate) pieces: Blocks<T::Piece>,
    rows: T::Rows,
    /// For products in halves.
    pub(crate) halves: Lefts<T::Piece>,
}

impl<T: Operand> Left<T> {
    /// As [`Blocks::zeros`].
    pub(crate) fn zeros(width: usize, rows: usize, columns: usize, count: usize) -> Self {
        Self {
            pieces: Blocks::zeros(width, rows, columns, count),
            rows: T::rows(Layout::new::<T>(width, rows, columns), count),
            halves: Lefts::default(),
        }
    }

    /// As products read it.
    pub(crate) fn side(&mut self, vectors: &dyn Vectors, extent: Extent) -> Side<'_, T> {
        T::side(&self.pieces, &mut self.rows, vectors, extent)
    }
}

/// The left side of a product.
pub(crate) struct Side<'a, T> {
    pub(crate) blocks: &'a Blocks<T>,
    /// Of each row of each block; empty where values are what they are.
    pub(crate) spans: &'a [Span],
}

impl<'a, T: Operand> Side<'a, T> {
    /// One block and the spans of its rows.
    pub(crate) fn block(&self, index: usize) -> (&'a [T], &'a [Span]) {
        let spans = self.spans.chunks_exact(self.blocks.layout.stride).nth(index);
        (self.blocks.block(index), spans.unwrap_or_default())
    }
}

impl Operand for f32 {
    const VALUES: usize = 1;
    type Piece = Self;
    type Rows = ();

    fn put(row: &mut [Self], first: usize, values: &[f32]) {
        row[first..first + values.len()].copy_from_slice(values);
    }

    fn pieces(kernel: &Kernel<Self>) -> &dyn Multiply<Self> {
        kernel.products.as_ref()
    }

    fn rows(_: Layout, _: usize) {}

    fn side<'a>(blocks: &'a Blocks, (): &'a mut (), _: &dyn Vectors, _: Extent) -> Side<'a, Self> {
        Side { blocks, spans: &[] }
    }
}

impl Piecewise for f32 {
    fn filled(output: &mut [Self], _: &dyn Vectors, fill: impl FnOnce(&mut [f32])) {
        fill(output);
    }

    fn layer_norm(vectors: &dyn Vectors, norm: LayerNorm<'_, Self>) {
        vectors.layer_norm(norm);
    }

    fn join(together: &mut [Self], _: usize, row: &[Self]) {
        together.copy_from_slice(row);
    }

    fn add(vectors: &dyn Vectors, (one, times, other): (&[Self], f32, &[Self]), output: &mut [Self]) {
        output.copy_from_slice(one);
        vectors.add(Add {
            to: output,
            times,
            values: other,
        });
    }

    fn add_to(vectors: &dyn Vectors, values: &mut [f32], pieces: &[Self]) {
        vectors.add(Add {
            to: values,
            times: 1.0,
            values: pieces,
        });
    }

    fn write(_: &dyn Vectors, values: &[f32], output: &mut [Self]) {
        output.copy_from_slice(values);
    }

    fn rounded_len(_: usize) -> usize {
        0
    }

    fn rounded<'a>(_: &dyn Vectors, values: &'a [f32], _: &'a mut [Self]) -> &'a [Self] {
        values
    }
}

/// Two bfloat16, the first in the lower half.
pub(crate) type Pair = u32;

thread_local! {
    /// What is rounded next, on each thread.
    static ROOM: RefCell<Aligned> = RefCell::new(Aligned::zeros(0));
}

impl Operand for Pair {
    const VALUES: usize = 2;
    type Piece = Self;
    type Rows = ();

    fn put(row: &mut [Self], first: usize, values: &[f32]) {
        let half = row.len();
        for (column, value) in (first..).zip(values) {
            let pair = &mut row[column % half];
            *pair = match column / half {
                0 => *pair & UPPER | rounded(*value) >> 16,
                _ => *pair & !UPPER | rounded(*value),
            };
        }
    }

    fn pieces(kernel: &Kernel<Self>) -> &dyn Multiply<Self> {
        kernel.products.as_ref()
    }

    fn rows(_: Layout, _: usize) {}

    fn side<'a>(blocks: &'a Blocks<Pair>, (): &'a mut (), _: &dyn Vectors, _: Extent) -> Side<'a, Self> {
        Side { blocks, spans: &[] }
    }
}

impl Piecewise for Pair {
    fn filled(output: &mut [Self], vectors: &dyn Vectors, fill: impl FnOnce(&mut [f32])) {
        ROOM.with_borrow_mut(|room| {
            let len = 2 * output.len();
            if room.len() < len {
                *room = Aligned::zeros(len);
            }
            let values = &mut room[..len];
            fill(values);
            vectors.round(Round {
                values,
                operands: output,
            });
        });
    }

    fn layer_norm(vectors: &dyn Vectors, norm: LayerNorm<'_, Self>) {
        vectors.layer_norm_pairs(norm);
    }

    fn join(together: &mut [Self], number: usize, row: &[Self]) {
        let (lower, upper) = together.split_at_mut(row.len());
        let columns = lower.iter_mut().zip(upper).zip(row);
        match number {
            0 => columns.for_each(|((lower, upper), pair)| (*lower, *upper) = (pair & !UPPER, pair >> 16)),
            _ => columns.for_each(|((lower, upper), pair)| {
                *lower |= pair << 16;
                *upper |= pair & UPPER;
            }),
        }
    }

    fn add(vectors: &dyn Vectors, (one, times, other): (&[Self], f32, &[Self]), output: &mut [Self]) {
        vectors.add_pairs(AddPairs {
            one,
            times,
            other,
            output,
        });
    }

    fn add_to(_: &dyn Vectors, _: &mut [f32], _: &[Self]) {
        panic!("what is rounded is no sum to go on with");
    }

    fn write(vectors: &dyn Vectors, values: &[f32], operands: &mut [Self]) {
        vectors.round(Round { values, operands });
    }

    fn rounded_len(values: usize) -> usize {
        values / Self::VALUES
    }

    fn rounded<'a>(vectors: &dyn Vectors, values: &'a [f32], room: &'a mut [Self]) -> &'a [Self] {
        let operands = &mut room[..Self::rounded_len(values.len())];
        Self::write(vectors, values, operands);
        operands
    }
}

/// The half of a pair, and of an f32, that counts more.
pub(crate) const UPPER: u32 = 0xffff_0000;

/// The bits of the nearest bfloat16 as an f32. What is no number stays none.
#[inline]
pub(crate) fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits | 1 << 22) & UPPER;
    }
    (bits + 0x7fff + (bits >> 16 & 1)) & UPPER
}
