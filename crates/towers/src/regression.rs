//! What a ridge regression on random features knows of its examples: sums of whole numbers, which are exact.
//!
//! ```text
//! φ(x) = max(0, R x), in steps of 1/256 up to 8,   G = Σ φ φᵀ,   S_c = Σ φ over the examples of class c
//! ```
//!
//! Of a unit vector x and R of standard normal numbers each feature is normal, too: none in 10¹⁵ is above 8, and a step is far
//! below the noise of any. What is summed is whole, so that sums are the same in any order: f64 holds them exactly up to 2³¹
//! examples. The rounding of R x itself, which decides between two steps once in many thousand times, is that of the
//! processor's vectors.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use bytemuck::cast_slice_mut;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::blocks::{Aligned, Blocks, Extent, copy_columns};
use crate::crossed::{Cross, Crossed};
use crate::elementwise::InPanels;
use crate::integer::{Shorts, WHOLE};
use crate::kernel::Kernel;
use crate::matrix::{Matrix, Output};
use crate::operand::{Left, UPPER};
use crate::processor;

/// Steps to 1.
pub(crate) const STEPS: f32 = 256.0;

/// The most steps of a feature: those of [`RandomFeatures::MOST`].
pub(crate) const MOST: f32 = 2047.0;

/// Examples whose φ is held at a time: so many products of two φ fill 32 bits.
const CHUNK: usize = 512;

/// Examples of a block: one and its products stay in the second cache.
const BLOCK: usize = 128;

/// Panels of columns that are multiplied with one panel while it is in the first cache, from the second.
const TOGETHER: usize = 8;

/// A product of two steps.
const UNIT: f64 = 1.0 / (STEPS as f64 * STEPS as f64);

/// R, ready to be multiplied.
pub struct RandomFeatures {
    kernel: Kernel<f32>,
    squares: Box<dyn Cross<Shorts, i32>>,
    projection: Matrix<f32>,
    /// M.
    size: usize,
    /// D.
    dim: usize,
}

/// φ of some examples.
struct Chunk {
    /// Their embeddings.
    rows: Left<f32>,
    /// R x.
    projected: Blocks,
    /// φ in steps, of two examples in one operand: panels `[M / W] [CHUNK / 2] [W]`.
    steps: Aligned<Shorts>,
    /// The first so many of CHUNK / 2 are there.
    filled: usize,
}

impl RandomFeatures {
    /// The largest φ: what is above is cut off.
    pub const MOST: f32 = MOST / STEPS;

    /// Of R (M, D), row by row, all finite.
    pub fn new(projection: &[f32], dim: usize) -> Self {
        let (kernel, squares) = processor::whole_squares().swap_remove(0);
        Self::by(kernel, squares, projection, dim)
    }

    pub(crate) fn by(
        kernel: Kernel<f32>,
        squares: Box<dyn Cross<Shorts, i32>>,
        projection: &[f32],
        dim: usize,
    ) -> Self {
        Self {
            projection: Matrix::pack(projection, dim, &[], kernel.columns()),
            size: projection.len() / dim,
            kernel,
            squares,
            dim,
        }
    }

    /// M.
    pub fn size(&self) -> usize {
        self.size
    }

    /// φ of rows (n, D), as (n, M) row by row.
    pub fn of(&self, rows: &[f32]) -> Vec<f32> {
        let mut chunk = self.chunk();
        let mut features = vec![0.0; rows.len() / self.dim * self.size];
        let parts = rows.chunks(CHUNK * self.dim);
        for (rows, features) in parts.zip(features.chunks_mut(CHUNK * self.size)) {
            self.fill(&mut chunk, rows);
            let rows = features.par_chunks_mut(self.size).enumerate();
            rows.for_each(|(row, features)| {
                let steps = self.row(&chunk, row).flatten();
                features
                    .iter_mut()
                    .zip(steps)
                    .for_each(|(feature, steps)| *feature = f32::from(steps) / STEPS);
            });
        }
        features
    }

    /// Adds the lower triangle of φ φᵀ, row by row M(M + 1)/2 values, to `squares` for each of `rows` (n, D), and φ to row
    /// `classes` (n) of `sums` (C, M).
    ///
    /// # Panics
    /// When lengths do not match, or a class has no row in `sums`.
    pub fn add(&self, rows: &[f32], classes: &[usize], squares: &mut [f64], sums: &mut [f64]) {
        assert_eq!(rows.len(), classes.len() * self.dim, "a class for each row");
        assert_eq!(squares.len(), self.size * (self.size + 1) / 2, "a lower triangle");
        let (mut chunk, width) = (self.chunk(), self.kernel.columns());
        let panels = self.size.div_ceil(width);
        let mut tiles = vec![0.0; panels * (panels + 1) / 2 * width * width];
        let parts = rows.chunks(CHUNK * self.dim).zip(classes.chunks(CHUNK));
        for (rows, classes) in parts {
            self.fill(&mut chunk, rows);
            rayon::join(
                || self.add_tiles(&chunk, &mut tiles),
                || self.add_sums(&chunk, classes, sums),
            );
        }
        self.add_triangle(&tiles, squares);
    }

    fn chunk(&self) -> Chunk {
        let (width, blocks) = (self.kernel.columns(), CHUNK / BLOCK);
        Chunk {
            rows: Left::zeros(width, BLOCK, self.dim, blocks),
            projected: Blocks::zeros(width, BLOCK, self.size, blocks),
            steps: Aligned::zeros(self.size.next_multiple_of(width) * CHUNK / 2),
            filled: 0,
        }
    }

    /// Of at most [`CHUNK`] rows (n, D). In the last block, the φ of what is not there is zero.
    fn fill(&self, chunk: &mut Chunk, rows: &[f32]) {
        let width = self.kernel.columns();
        let blocks = &mut chunk.rows.pieces;
        let layout = blocks.layout;
        let blocks = blocks.values.par_chunks_mut(layout.len());
        let parts = rows.par_chunks(BLOCK * self.dim);
        let extent = Extent::new(parts.len(), BLOCK);
        blocks.zip(parts).for_each(|(block, rows)| {
            block.fill(0.0);
            for (row, values) in rows.chunks_exact(self.dim).enumerate() {
                copy_columns(block, layout, row, 0, values);
            }
        });
        let Chunk {
            rows,
            projected,
            steps,
            filled,
        } = chunk;
        *filled = extent.blocks * BLOCK / 2;
        self.projection
            .product(&self.kernel, rows, extent, Output::new(projected));
        let panels = steps.par_chunks_mut(CHUNK / 2 * width).enumerate();
        panels.for_each(|(panel, steps)| {
            let blocks = steps.chunks_exact_mut(BLOCK / 2 * width).enumerate();
            for (block, steps) in blocks.take(extent.blocks) {
                let values = projected.panel(block, panel);
                self.kernel.vectors.steps(Steps { values, steps });
            }
        });
    }

    /// The steps of φ of an example of a chunk, panel by panel.
    fn row<'a>(
        &self,
        chunk: &'a Chunk,
        row: usize,
    ) -> impl Iterator<Item = impl Iterator<Item = u16> + use<'a>> + use<'a> {
        let width = self.kernel.columns();
        let panels = chunk.steps.chunks_exact(CHUNK / 2 * width);
        panels.map(move |panel| {
            let pairs = &panel[row / 2 * width..][..width];
            pairs.iter().map(move |pair| pair[row % 2])
        })
    }

    /// Adds products to tiles of W rows and columns: for each panel of rows one for each of columns, up to its own.
    fn add_tiles(&self, chunk: &Chunk, tiles: &mut [f64]) {
        let width = self.kernel.columns();
        let panels = chunk.steps.chunks_exact(CHUNK / 2 * width);
        let panels: Vec<&[Shorts]> = panels.map(|panel| &panel[..chunk.filled * width]).collect();
        let mut rest = tiles;
        let rows = (1..=panels.len()).map(|columns| {
            let (tiles, after) = std::mem::take(&mut rest).split_at_mut(columns * width * width);
            rest = after;
            tiles
        });
        let mut rows: Vec<&mut [f64]> = rows.collect();
        // The longest first: what is left to wait for in the end is short.
        let groups = rows.par_chunks_mut(TOGETHER).enumerate().rev().with_max_len(1);
        groups.for_each(|(group, rows)| {
            let first = group * TOGETHER;
            let mut products = vec![0; width * width];
            for (column, right) in panels[..first + rows.len()].iter().enumerate() {
                let lefts = panels[first..].iter().zip(&mut *rows);
                for (left, tiles) in lefts.skip(column.saturating_sub(first)) {
                    products.fill(0);
                    self.squares.cross(Crossed {
                        left,
                        right,
                        output: &mut products,
                    });
                    let tile = tiles[column * products.len()..].iter_mut().zip(&products);
                    tile.for_each(|(sum, product)| *sum += f64::from(*product) * UNIT);
                }
            }
        });
    }

    /// Adds tiles to the lower triangle, row by row.
    fn add_triangle(&self, tiles: &[f64], triangle: &mut [f64]) {
        let width = self.kernel.columns();
        let (mut tiles, mut rest) = (tiles, triangle);
        for row in 0..self.size {
            let (sums, after) = rest.split_at_mut(row + 1);
            let of_row = tiles.chunks_exact(width).skip(row % width).step_by(width);
            for (sums, tile) in sums.chunks_mut(width).zip(of_row) {
                sums.iter_mut()
                    .zip(tile)
                    .for_each(|(sum, product)| *sum += product);
            }
            rest = after;
            if (row + 1).is_multiple_of(width) {
                tiles = &tiles[(row + 1) * width..];
            }
        }
    }

    fn add_sums(&self, chunk: &Chunk, classes: &[usize], sums: &mut [f64]) {
        for (row, class) in classes.iter().enumerate() {
            let sums = sums[class * self.size..][..self.size].chunks_mut(self.kernel.columns());
            for (sums, steps) in sums.zip(self.row(chunk, row)) {
                let pairs = sums.iter_mut().zip(steps);
                pairs.for_each(|(sum, steps)| *sum += f64::from(steps) / f64::from(STEPS));
            }
        }
    }
}

/// Makes φ of projections, in whole steps, of two rows at a time.
pub(crate) struct Steps<'a> {
    /// Rows of W values of a panel.
    values: &'a [f32],
    /// Half as many rows of W operands.
    steps: &'a mut [Shorts],
}

impl<const W: usize> WithSimd for InPanels<Steps<'_>, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Steps { values, steps } = self.0;
        let [none, most, to_one, whole] = [0.0, MOST, STEPS, WHOLE].map(|value| simd.splat_f32s(value));
        let of = |values: S::f32s| {
            let steps = simd.min_f32s(simd.max_f32s(simd.mul_f32s(values, to_one), none), most);
            simd.transmute_u32s_f32s(simd.add_f32s(steps, whole))
        };
        let pairs = cast_slice_mut::<_, u32>(steps).as_chunks_mut::<W>().0;
        for ([lower, upper], pairs) in values.as_chunks::<W>().0.as_chunks::<2>().0.iter().zip(pairs) {
            let rows = S::as_simd_f32s(lower).0.iter().zip(S::as_simd_f32s(upper).0);
            for ((lower, upper), pair) in rows.zip(S::as_mut_simd_u32s(pairs).0) {
                let lower = simd.and_u32s(of(*lower), simd.splat_u32s(!UPPER));
                let upper = simd.wrapping_dyn_shl_u32s(of(*upper), simd.splat_u32s(16));
                *pair = simd.or_u32s(lower, upper);
            }
        }
    }
}
