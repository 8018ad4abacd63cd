//! What products multiply: f32, or bfloat16 in pairs.
//!
//! bfloat16 is the upper half of an f32, rounded to the nearest and to even. What stands together in a pair is value i and
//! value i + W / 2 of W that follow one another: so two vectors become one of pairs lane by lane, and as both sides of a product
//! pair alike, its sums are the same, in another order. The instructions for it want pairs of the summed dimension:
//! `vdpbf16ps` and `tdpbf16ps` of Intel's manual, volume 2.

use std::cell::RefCell;

use bytemuck::Pod;

use crate::blocks::Aligned;
use crate::elementwise::{LayerNorm, Round};
use crate::kernel::Vectors;

/// One operand: as many values as it holds.
pub(crate) trait Operand: Pod + Default + Send + Sync {
    /// Values that one holds.
    const VALUES: usize;

    /// Puts `values` into a row of a panel, from column `first` on.
    fn put(row: &mut [Self], first: usize, values: &[f32]);

    /// Fills `output` with what `fill` makes in f32.
    fn filled(output: &mut [Self], vectors: &dyn Vectors, fill: impl FnOnce(&mut [f32]));

    /// Normalises rows of a block.
    fn layer_norm(vectors: &dyn Vectors, norm: LayerNorm<'_, Self>);
}

impl Operand for f32 {
    const VALUES: usize = 1;

    fn put(row: &mut [Self], first: usize, values: &[f32]) {
        row[first..first + values.len()].copy_from_slice(values);
    }

    fn filled(output: &mut [Self], _: &dyn Vectors, fill: impl FnOnce(&mut [f32])) {
        fill(output);
    }

    fn layer_norm(vectors: &dyn Vectors, norm: LayerNorm<'_, Self>) {
        vectors.layer_norm(norm);
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
}

/// The half of a pair, and of an f32, that counts more.
pub(crate) const UPPER: u32 = 0xffff_0000;

/// The bits of the nearest bfloat16 as an f32. What is no number stays none.
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits | 1 << 22) & UPPER;
    }
    (bits + 0x7fff + (bits >> 16 & 1)) & UPPER
}
