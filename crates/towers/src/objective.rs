//! Steps of a loss and its gradient between products, over vectors of any width.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use pulp::{Simd, WithSimd};

use crate::elementwise::{InPanels, exp};

/// Lengths below this count as this, so that a row of zeros stays one.
const SHORTEST: f32 = 1e-12;

/// Chances below this, in parts of the best, are none. Numbers that are too small to be normal would take a processor longer.
const NOTHING: f32 = 1e-30;

/// Makes rows of a block unit rows.
pub(crate) struct Normalise<'a> {
    /// Panels of `stride` rows.
    pub(crate) block: &'a mut [f32],
    /// Rows of a panel.
    pub(crate) stride: usize,
    /// What their lengths were: of the first so many rows.
    pub(crate) lengths: &'a mut [f32],
}

impl<const W: usize> WithSimd for InPanels<Normalise<'_>, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Normalise {
            block,
            stride,
            lengths,
        } = self.0;
        let block = block.as_chunks_mut::<W>().0;
        for (row, length) in lengths.iter_mut().enumerate() {
            let mut squares = simd.splat_f32s(0.0);
            for piece in block.iter().skip(row).step_by(stride) {
                for x in S::as_simd_f32s(piece).0 {
                    squares = simd.mul_add_e_f32s(*x, *x, squares);
                }
            }
            *length = simd.reduce_sum_f32s(squares).sqrt().max(SHORTEST);
            let share = simd.splat_f32s(length.recip());
            for piece in block.iter_mut().skip(row).step_by(stride) {
                for x in S::as_mut_simd_f32s(piece).0 {
                    *x = simd.mul_f32s(*x, share);
                }
            }
        }
    }
}

/// Makes rows of cosines the slope of their mean cross-entropy.
pub(crate) struct CrossEntropy<'a> {
    /// Panels of `stride` rows.
    pub(crate) block: &'a mut [f32],
    /// Rows of a panel.
    pub(crate) stride: usize,
    /// C, of which what pads panels is no part.
    pub(crate) classes: usize,
    /// The class of each of the first rows. Those of the others have no slope.
    pub(crate) columns: &'a [u32],
    /// s.
    pub(crate) scale: f32,
    /// s / n.
    pub(crate) share: f32,
    /// The cross-entropy of each row.
    pub(crate) losses: &'a mut [f32],
}

impl<const W: usize> WithSimd for InPanels<CrossEntropy<'_>, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let CrossEntropy {
            block,
            stride,
            classes,
            columns,
            scale,
            share,
            losses,
        } = self.0;
        let block = block.as_chunks_mut::<W>().0;
        let beyond = classes % W;
        let [times, nothing, none] = [scale, NOTHING, 0.0].map(|value| simd.splat_f32s(value));
        for (row, (own, loss)) in columns.iter().zip(losses).enumerate() {
            if let (Some(last), 1..) = (block.iter_mut().skip(row).step_by(stride).last(), beyond) {
                last[beyond..].fill(f32::NEG_INFINITY);
            }
            let mut most = simd.splat_f32s(f32::NEG_INFINITY);
            for piece in block.iter().skip(row).step_by(stride) {
                for x in S::as_simd_f32s(piece).0 {
                    most = simd.max_f32s(most, *x);
                }
            }
            let highest = simd.reduce_max_f32s(most);
            let most = simd.splat_f32s(highest);
            let (panel, lane) = (*own as usize / W, *own as usize % W);
            let below = (highest - block[panel * stride + row][lane]) * scale;
            let mut sum = simd.splat_f32s(0.0);
            for piece in block.iter_mut().skip(row).step_by(stride) {
                for x in S::as_mut_simd_f32s(piece).0 {
                    *x = exp(simd, simd.mul_f32s(simd.sub_f32s(*x, most), times));
                    sum = simd.add_f32s(sum, *x);
                }
            }
            let sum = simd.reduce_sum_f32s(sum);
            *loss = sum.ln() + below;
            let factor = simd.splat_f32s(share / sum);
            for piece in block.iter_mut().skip(row).step_by(stride) {
                for x in S::as_mut_simd_f32s(piece).0 {
                    let is_nothing = simd.less_than_f32s(*x, nothing);
                    *x = simd.select_f32s(is_nothing, none, simd.mul_f32s(*x, factor));
                }
            }
            block[panel * stride + row][lane] -= share;
        }
        for panel in block.chunks_exact_mut(stride) {
            panel[columns.len()..].as_flattened_mut().fill(0.0);
        }
    }
}

/// Makes rows of ∂u what they are by y.
pub(crate) struct ByOutputs<'a> {
    /// ∂u, in panels of `stride` rows.
    pub(crate) block: &'a mut [f32],
    /// u, likewise.
    pub(crate) unit: &'a [f32],
    /// Rows of a panel.
    pub(crate) stride: usize,
    /// |y| of the first rows.
    pub(crate) lengths: &'a [f32],
}

impl<const W: usize> WithSimd for InPanels<ByOutputs<'_>, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let ByOutputs {
            block,
            unit,
            stride,
            lengths,
        } = self.0;
        let (block, unit) = (block.as_chunks_mut::<W>().0, unit.as_chunks::<W>().0);
        for (row, length) in lengths.iter().enumerate() {
            let units = unit.iter().skip(row).step_by(stride);
            let mut along = simd.splat_f32s(0.0);
            for (piece, unit) in block.iter().skip(row).step_by(stride).zip(units.clone()) {
                for (x, unit) in S::as_simd_f32s(piece).0.iter().zip(S::as_simd_f32s(unit).0) {
                    along = simd.mul_add_e_f32s(*x, *unit, along);
                }
            }
            let back = simd.splat_f32s(-simd.reduce_sum_f32s(along));
            let share = simd.splat_f32s(length.recip());
            for (piece, unit) in block.iter_mut().skip(row).step_by(stride).zip(units) {
                let pairs = S::as_mut_simd_f32s(piece)
                    .0
                    .iter_mut()
                    .zip(S::as_simd_f32s(unit).0);
                for (x, unit) in pairs {
                    *x = simd.mul_f32s(simd.mul_add_e_f32s(back, *unit, *x), share);
                }
            }
        }
    }
}
