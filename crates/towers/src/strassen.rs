//! Products of halves: seven where there would be eight.
//!
//! Source: Strassen, "Gaussian elimination is not optimal", Numerische Mathematik 13 (1969). Where all three matrices of a product
//! are cut in quarters,
//!
//! ```text
//! M1 = (A11 + A22)(B11 + B22)   M4 = A22 (B21 − B11)   M6 = (A21 − A11)(B11 + B12)
//! M2 = (A21 + A22) B11          M5 = (A11 + A12) B22   M7 = (A12 − A22)(B21 + B22)
//! M3 = A11 (B12 − B22)
//!
//! C11 = M1 + M4 − M5 + M7       C12 = M3 + M5
//! C21 = M2 + M4                 C22 = M1 − M2 + M3 + M6
//! ```
//!
//! A is a block. Its upper half are the first rows, and where their number is odd, a row of zeros pads the lower one. Columns are
//! cut by turns: the left half are the first panel, the third, and so on, so that both halves of an output lie side by side. So
//! are those of B, weights, whose sums are made once. What becomes of a row depends on the one in the other half, too, and sums
//! are rounded as what they are made of: in bfloat16 the result is about twice as far off as that of a whole product.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::Activation;
use crate::blocks::{Aligned, Blocks, Extent, Layout, Place};
use crate::elementwise::{Activate, Add};
use crate::kernel::{Kernel, Multiply, Product, Vectors, ZEROS};
use crate::matrix::{Matrix, Output, Start};
use crate::operand::{Left, Operand, Piecewise};
use crate::prefetch::spread;

/// A quarter of a matrix: 1 for its lower half, and 1 for its right one.
type Quarter = (usize, usize);

/// A side of a product: a quarter, or one and so many times another.
type Side = (Quarter, Option<(f32, Quarter)>);

/// M1 to M7.
const PRODUCTS: usize = 7;

/// The left side of each.
const LEFT: [Side; PRODUCTS] = [
    ((0, 0), Some((1.0, (1, 1)))),
    ((1, 0), Some((1.0, (1, 1)))),
    ((0, 0), None),
    ((1, 1), None),
    ((0, 0), Some((1.0, (0, 1)))),
    ((1, 0), Some((-1.0, (0, 0)))),
    ((0, 1), Some((-1.0, (1, 1)))),
];

/// The right side of each.
const RIGHT: [Side; PRODUCTS] = [
    ((0, 0), Some((1.0, (1, 1)))),
    ((0, 0), None),
    ((0, 1), Some((-1.0, (1, 1)))),
    ((1, 0), Some((-1.0, (0, 0)))),
    ((1, 1), None),
    ((0, 0), Some((1.0, (0, 1)))),
    ((1, 0), Some((1.0, (1, 1)))),
];

thread_local! {
    /// The quarters of a piece of an output while it is computed, and a product that goes into two of them, on each thread.
    static ROOM: RefCell<Aligned> = RefCell::new(Aligned::zeros(0));
}

/// The left sides of products, in the order of these, for each block. There is no room for them before the first.
pub(crate) struct Lefts<P>(Option<Blocks<P>>);

impl<P> Default for Lefts<P> {
    fn default() -> Self {
        Self(None)
    }
}

impl<P: Piecewise> Lefts<P> {
    /// Those of some blocks, always of as many rows. They lie without a gap, one panel behind another, which is read faster than
    /// quarters are where they are: so these are copied.
    fn of(&mut self, vectors: &dyn Vectors, blocks: &Blocks<P>, extent: Extent) -> &Blocks<P> {
        let from = blocks.layout;
        let (rows, panels) = (extent.rows.div_ceil(2), from.panels / 2);
        let layout = Layout {
            panel: from.panel,
            stride: rows,
            panels: PRODUCTS * panels,
        };
        let count = blocks.values.len() / from.len();
        let lefts = self.0.get_or_insert_with(|| Blocks::of(layout, count));
        assert_eq!(lefts.layout, layout, "as many rows as before");
        let of_products =
            lefts.values[..extent.blocks * layout.len()].par_chunks_mut(layout.len() / PRODUCTS);
        let of_products = of_products.enumerate().with_max_len(1);
        of_products.for_each(|(number, left)| {
            let (block, (one, other)) = (number / PRODUCTS, LEFT[number % PRODUCTS]);
            for (number, left) in left.chunks_exact_mut(layout.panel_len()).enumerate() {
                let quarter = |(lower, right)| {
                    let panel = blocks.panel(block, 2 * number + right);
                    &panel[from.row(lower * rows).start..from.row((lower + 1) * rows).start]
                };
                match other {
                    None => left.copy_from_slice(quarter(one)),
                    Some((times, other)) => P::add(vectors, (quarter(one), times, quarter(other)), left),
                }
            }
        });
        lefts
    }
}

/// `x ↦ x · Wᵀ + b`, of which all sides are cut in halves.
pub(crate) struct Halves<P: Piecewise> {
    /// For each two panels of outputs, the right sides of the products that these take.
    right: Matrix<P>,
    /// One value an output.
    bias: Aligned,
}

/// What the pieces of a product have in common.
struct Factors<'a, P: Piecewise> {
    vectors: &'a dyn Vectors,
    products: &'a dyn Multiply<P>,
    lefts: &'a Blocks<P>,
    rows: usize,
    start: Start,
    activation: Option<Activation>,
}

impl<P: Piecewise> Halves<P> {
    /// As [`Matrix::pack`].
    ///
    /// # Panics
    /// Where inputs or outputs are no even number of panels.
    pub(crate) fn pack(weights: &[f32], inputs: usize, bias: &[f32], width: usize) -> Self {
        let outputs = weights.len() / inputs;
        let sides = [inputs, outputs];
        assert!(sides.iter().all(|side| side.is_multiple_of(2 * width)));
        // Weights of a panel of outputs.
        let len = width * inputs;
        // For two panels of outputs, a panel each product.
        let right = Matrix::of_panels(PRODUCTS * outputs / 2, inputs / 2, width, |panel| {
            let both = &weights[panel / PRODUCTS * 2 * len..][..2 * len];
            // Weights lie output by output: B's columns are their rows.
            let quarter = |(lower, right): Quarter| {
                let parts = both[right * len..][..len].chunks_exact(width);
                parts.skip(lower).step_by(2)
            };
            let (one, other) = RIGHT[panel % PRODUCTS];
            let mut made = Vec::with_capacity(len / 2);
            match other {
                None => quarter(one).for_each(|one| made.extend_from_slice(one)),
                Some((times, other)) => quarter(one).zip(quarter(other)).for_each(|(one, other)| {
                    let pairs = one.iter().zip(other);
                    made.extend(pairs.map(|(one, other)| one + times * other));
                }),
            }
            made
        });
        let mut padded = Aligned::zeros(outputs);
        padded[..bias.len()].copy_from_slice(bias);
        Self { right, bias: padded }
    }

    /// As [`Matrix::product`]. Where the number of rows is odd, the row behind the last one must be zeros in `left`.
    ///
    /// # Panics
    /// When `left` has been multiplied in halves before, and had another number of rows then.
    pub(crate) fn product<T: Operand<Piece = P>, O: Piecewise>(
        &self,
        kernel: &Kernel<T>,
        left: &mut Left<T>,
        extent: Extent,
        Output {
            blocks,
            start,
            activation,
            of_first_row,
        }: Output<'_, O>,
    ) {
        let layout = blocks.layout;
        let from = left.pieces.layout;
        let inputs = self.right.inputs() * 2;
        assert_eq!(
            (from.panels * kernel.columns(), from.stride),
            (inputs, layout.stride)
        );
        assert_eq!(layout.panels * kernel.columns(), self.bias.len());
        let vectors = kernel.vectors.as_ref();
        let factors = Factors {
            vectors,
            products: T::pieces(kernel),
            lefts: left.halves.of(vectors, &left.pieces, extent),
            rows: extent.rows,
            start,
            activation,
        };
        let half = factors.lefts.layout.stride;
        blocks.fill(extent, 2, extent.of_a_thread(), |at, output| {
            ROOM.with_borrow_mut(|room| {
                let rows = if 2 * at.number + 1 < of_first_row { 1 } else { half };
                let quarter = rows * vectors.columns();
                if room.len() < 5 * quarter {
                    *room = Aligned::zeros(5 * quarter);
                }
                let quarters = parts(room, quarter);
                self.combine(&factors, at, quarters);
                let [c11, c12, c21, c22, _] = parts(room, quarter);
                let [left, right] = parts(output, layout.panel_len());
                factors.finish(layout, [c11, c21], left);
                factors.finish(layout, [c12, c22], right);
            });
        });
    }

    /// The quarters of two panels of a block, with the bias, by way of M4 and M5.
    fn combine(&self, factors: &Factors<'_, P>, at: Place, [c11, c12, c21, c22, m]: [&mut [f32]; 5]) {
        let width = factors.vectors.columns();
        let nothing = &ZEROS[..width];
        let (left, right) = self.bias[2 * at.number * width..][..2 * width].split_at(width);
        let multiply = |product, start, output: &mut [f32]| {
            let (panel, next) = self.right.panel(PRODUCTS * at.number + product, PRODUCTS);
            let lefts = factors.lefts.block(at.block);
            let len = lefts.len() / PRODUCTS;
            factors.products.multiply(Product {
                left: &lefts[product * len..(product + 1) * len],
                spans: &[],
                stride: factors.lefts.layout.stride,
                rows: 0..output.len() / width,
                panel,
                scales: &[],
                next: spread(next, at.turns).nth(at.turn).unwrap_or_default(),
                start,
                output,
            });
        };
        let add = |to: &mut [f32], times, values: &[f32]| factors.vectors.add(Add { to, times, values });
        // C22 has the left bias, without it, and with the right one.
        multiply(0, left, c11);
        c22.copy_from_slice(c11);
        multiply(1, left, c21);
        add(c22, -1.0, c21);
        multiply(2, right, c12);
        add(c22, 1.0, c12);
        multiply(3, nothing, m);
        add(c11, 1.0, m);
        add(c21, 1.0, m);
        multiply(4, nothing, m);
        add(c11, -1.0, m);
        add(c12, 1.0, m);
        multiply(5, &[], c22);
        multiply(6, &[], c11);
    }
}

impl<P: Piecewise> Factors<'_, P> {
    /// Makes the upper and the lower half of a panel of a block the output.
    fn finish<O: Piecewise>(&self, layout: Layout, halves: [&mut [f32]; 2], output: &mut [O]) {
        let (vectors, width, half) = (self.vectors, self.vectors.columns(), self.lefts.layout.stride);
        let output = output.chunks_mut(half * layout.panel);
        let mut first = 0;
        for (values, output) in halves.into_iter().zip(output) {
            let rows = (self.rows - first).min(values.len() / width);
            let (values, output) = (&mut values[..rows * width], &mut output[..rows * layout.panel]);
            if self.start == Start::Residual {
                O::add_to(vectors, values, output);
            }
            if let Some(activation) = self.activation {
                vectors.activate(Activate { values, activation });
            }
            O::write(vectors, values, output);
            first += half;
        }
    }
}

/// The first so many values, as many behind them, and so on.
fn parts<T, const N: usize>(values: &mut [T], len: usize) -> [&mut [T]; N] {
    let mut parts = values.chunks_exact_mut(len);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}
