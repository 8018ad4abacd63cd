//! Products of rows with vectors as they lie in memory, such as a head's anchors, which are asked about a few rows at a time: too few
//! to read the vectors twice, as packing them would.
//!
//! Invariant: a product is the same bits whatever rows and vectors are beside it.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use std::array;
use std::sync::LazyLock;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::kernel::Kernel;
use crate::processor;

/// Rows and vectors that are multiplied at a time: their eight sums, and what is added to them, stay in sixteen registers.
const ROWS: usize = 2;
const VECTORS: usize = 4;

/// Rows and vectors that a thread takes at a time: the rows stay in the second cache while it goes over the vectors.
const PIECE: (usize, usize) = (64, 256);

static KERNEL: LazyLock<Kernel<f32>> = LazyLock::new(|| processor::all().swap_remove(0));

/// The products of rows (n, `dim`) with each of C `vectors` (C, `dim`), as (n, C).
///
/// # Panics
/// When rows or vectors are not of `dim` values.
pub fn scores(rows: &[f32], vectors: &[f32], dim: usize) -> Vec<f32> {
    scores_by(&KERNEL, rows, vectors, dim)
}

pub(crate) fn scores_by(kernel: &Kernel<f32>, rows: &[f32], vectors: &[f32], dim: usize) -> Vec<f32> {
    if rows.is_empty() || vectors.is_empty() {
        return Vec::new();
    }
    assert!(
        rows.len().is_multiple_of(dim) && vectors.len().is_multiple_of(dim),
        "rows and vectors of {dim} values"
    );
    let size = rows.len() / dim * (vectors.len() / dim);
    let rows: Vec<&[f32]> = rows.chunks(PIECE.0 * dim).collect();
    let vectors: Vec<&[f32]> = vectors.chunks(PIECE.1 * dim).collect();
    let piece = |rows: &[f32], vectors: &[f32]| {
        let mut output = vec![0.0; rows.len() / dim * (vectors.len() / dim)];
        kernel.vectors.score(Scores {
            rows,
            vectors,
            dim,
            output: &mut output,
        });
        output
    };
    if let ([rows], [vectors]) = (rows.as_slice(), vectors.as_slice()) {
        return piece(rows, vectors);
    }
    let pieces = rows
        .par_iter()
        .flat_map(|rows| vectors.par_iter().map(move |vectors| piece(rows, vectors)));
    let pieces: Vec<Vec<f32>> = pieces.collect();
    // What the pieces have of a row, side by side.
    let mut scores = Vec::with_capacity(size);
    for (rows, pieces) in rows.iter().zip(pieces.chunks(vectors.len())) {
        let count = rows.len() / dim;
        for row in 0..count {
            for piece in pieces {
                let width = piece.len() / count;
                scores.extend_from_slice(&piece[row * width..][..width]);
            }
        }
    }
    scores
}

/// The products of some rows with some vectors.
pub(crate) struct Scores<'a> {
    /// (n, `dim`).
    rows: &'a [f32],
    /// (C, `dim`).
    vectors: &'a [f32],
    /// Values of a row.
    dim: usize,
    /// (n, C).
    output: &'a mut [f32],
}

impl WithSimd for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let vectors = self.vectors.len() / self.dim;
        let tiled = vectors - vectors % VECTORS;
        for vector in (0..tiled).step_by(VECTORS) {
            self.with_vectors::<S, VECTORS>(simd, vector);
        }
        for vector in tiled..vectors {
            self.with_vectors::<S, 1>(simd, vector);
        }
    }
}

impl<'a> Scores<'a> {
    /// All rows with C vectors.
    #[inline(always)]
    fn with_vectors<S: Simd, const C: usize>(&mut self, simd: S, vector: usize) {
        let rows = self.rows.len() / self.dim;
        let tiled = rows - rows % ROWS;
        for row in (0..tiled).step_by(ROWS) {
            self.tile::<S, ROWS, C>(simd, row, vector);
        }
        for row in tiled..rows {
            self.tile::<S, 1, C>(simd, row, vector);
        }
    }

    /// R rows with C vectors.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const C: usize>(&mut self, simd: S, row: usize, vector: usize) {
        let of = |values: &'a [f32], place: usize| S::as_simd_f32s(&values[place * self.dim..][..self.dim]);
        let rows: [_; R] = array::from_fn(|place| of(self.rows, row + place));
        let vectors: [_; C] = array::from_fn(|place| of(self.vectors, vector + place));
        let mut sums = [[simd.splat_f32s(0.0); C]; R];
        for k in 0..self.dim / S::F32_LANES {
            for (sums, row) in sums.iter_mut().zip(&rows) {
                for (sum, vector) in sums.iter_mut().zip(&vectors) {
                    *sum = simd.mul_add_e_f32s(row.0[k], vector.0[k], *sum);
                }
            }
        }
        if !self.dim.is_multiple_of(S::F32_LANES) {
            for (sums, row) in sums.iter_mut().zip(&rows) {
                for (sum, vector) in sums.iter_mut().zip(&vectors) {
                    let [row, vector] = [row.1, vector.1].map(|rest| simd.partial_load_f32s(rest));
                    *sum = simd.mul_add_e_f32s(row, vector, *sum);
                }
            }
        }
        let width = self.vectors.len() / self.dim;
        for (place, sums) in sums.into_iter().enumerate() {
            let output = &mut self.output[(row + place) * width + vector..][..C];
            for (output, sum) in output.iter_mut().zip(sums) {
                *output = simd.reduce_sum_f32s(sum);
            }
        }
    }
}
