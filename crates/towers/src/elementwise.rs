//! The steps of a layer between its products, over vectors of any width.
//!
//! Owner: the kernels. Sources: layer norm, softmax and the two activations as `transformers`' CLIP has them.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::Activation;
use crate::integer::WHOLE;
use crate::lanes::unpaired;
use crate::operand::{Pair, UPPER};

/// `(x − mean) / √(variance + ε) · weight + bias` of rows of a block, into the same rows of another.
pub(crate) struct LayerNorm<'a, T> {
    /// Panels of `stride` rows.
    pub(crate) input: &'a [f32],
    /// As `input`.
    pub(crate) output: &'a mut [T],
    /// Rows of a panel.
    pub(crate) stride: usize,
    /// The rows to normalise.
    pub(crate) rows: Range<usize>,
    /// γ, one value a column.
    pub(crate) weight: &'a [f32],
    /// β.
    pub(crate) bias: &'a [f32],
    /// ε.
    pub(crate) epsilon: f32,
}

/// A step on panels of `W` columns.
pub(crate) struct InPanels<T, const W: usize>(pub(crate) T);

/// A step from panels of `W` columns to panels of `HALF` pairs.
pub(crate) struct InPairs<T, const W: usize, const HALF: usize>(pub(crate) T);

/// Rows of W values to pairs.
pub(crate) struct Round<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) operands: &'a mut [Pair],
}

/// `one + times · other` of pairs, rounded. There must be a whole number of vectors.
pub(crate) struct AddPairs<'a> {
    pub(crate) one: &'a [Pair],
    pub(crate) times: f32,
    pub(crate) other: &'a [Pair],
    pub(crate) output: &'a mut [Pair],
}

/// Adds `times · values` to `to`. There must be a whole number of vectors.
pub(crate) struct Add<'a> {
    pub(crate) to: &'a mut [f32],
    pub(crate) times: f32,
    pub(crate) values: &'a [f32],
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { to, times, values } = self;
        let times = simd.splat_f32s(times);
        for (to, value) in S::as_mut_simd_f32s(to)
            .0
            .iter_mut()
            .zip(S::as_simd_f32s(values).0)
        {
            *to = simd.mul_add_e_f32s(times, *value, *to);
        }
    }
}

impl WithSimd for AddPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            one,
            times,
            other,
            output,
        } = self;
        let times = simd.splat_f32s(times);
        let both = S::as_simd_u32s(one).0.iter().zip(S::as_simd_u32s(other).0);
        let (output, rest) = S::as_mut_simd_u32s(output);
        assert!(rest.is_empty(), "whole vectors");
        for (output, (one, other)) in output.iter_mut().zip(both) {
            let (one, other) = (unpaired(simd, *one), unpaired(simd, *other));
            let lower = simd.mul_add_e_f32s(times, other[0], one[0]);
            let upper = simd.mul_add_e_f32s(times, other[1], one[1]);
            *output = paired(simd, [lower, upper]);
        }
    }
}

impl<const W: usize> WithSimd for InPanels<LayerNorm<'_, f32>, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let norm = Norm::<W>::of(&self.0);
        let outputs = self.0.output.as_chunks_mut::<W>().0;
        for row in self.0.rows {
            let pieces = norm.row(simd, row);
            let outputs = outputs.iter_mut().skip(row).step_by(norm.stride);
            for (piece, out) in pieces.zip(outputs) {
                let vectors = S::as_mut_simd_f32s(out).0.iter_mut().enumerate();
                vectors.for_each(|(vector, out)| *out = piece.vector(simd, vector));
            }
        }
    }
}

impl<const W: usize, const HALF: usize> WithSimd for InPairs<LayerNorm<'_, Pair>, W, HALF> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const { assert!(2 * HALF == W) };
        assert_whole::<S>(HALF);
        let norm = Norm::<W>::of(&self.0);
        let outputs = self.0.output.as_chunks_mut::<HALF>().0;
        for row in self.0.rows {
            let pieces = norm.row(simd, row);
            let outputs = outputs.iter_mut().skip(row).step_by(norm.stride);
            for (piece, out) in pieces.zip(outputs) {
                let out = S::as_mut_simd_u32s(out).0;
                let half = out.len();
                for (vector, out) in out.iter_mut().enumerate() {
                    let values = [vector, vector + half].map(|vector| piece.vector(simd, vector));
                    *out = paired(simd, values);
                }
            }
        }
    }
}

impl<const W: usize, const HALF: usize> WithSimd for InPairs<Round<'_>, W, HALF> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const { assert!(2 * HALF == W) };
        assert_whole::<S>(HALF);
        let rows = self.0.values.as_chunks::<W>().0;
        for (row, out) in rows.iter().zip(self.0.operands.as_chunks_mut::<HALF>().0) {
            let (lower, upper) = row.split_at(HALF);
            let halves = S::as_simd_f32s(lower).0.iter().zip(S::as_simd_f32s(upper).0);
            for ((lower, upper), out) in halves.zip(S::as_mut_simd_u32s(out).0) {
                *out = paired(simd, [*lower, *upper]);
            }
        }
    }
}

/// A layer norm over panels.
struct Norm<'a, const W: usize> {
    input: &'a [[f32; W]],
    stride: usize,
    weight: &'a [[f32; W]],
    bias: &'a [[f32; W]],
    epsilon: f32,
}

/// A panel's part of a row, with what it is normalised by.
struct Piece<'a, S: Simd> {
    x: &'a [S::f32s],
    weight: &'a [S::f32s],
    bias: &'a [S::f32s],
    mean: S::f32s,
    scale: S::f32s,
}

/// Half a row must be whole vectors: what is left over would be left out.
#[inline(always)]
fn assert_whole<S: Simd>(half: usize) {
    assert!(half.is_multiple_of(S::F32_LANES));
}

impl<'a, const W: usize> Norm<'a, W> {
    fn of<T>(norm: &LayerNorm<'a, T>) -> Self {
        Self {
            input: norm.input.as_chunks().0,
            stride: norm.stride,
            weight: norm.weight.as_chunks().0,
            bias: norm.bias.as_chunks().0,
            epsilon: norm.epsilon,
        }
    }

    /// A row, panel by panel.
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, row: usize) -> impl Iterator<Item = Piece<'a, S>> + use<'a, S, W> {
        let width = (self.weight.len() * W) as f32;
        let pieces = self.input.iter().skip(row).step_by(self.stride);
        // Two passes: the variance in one pass loses digits where the mean is far from zero, and CLIP's residual stream
        // has channels of that kind.
        let mut sum = simd.splat_f32s(0.0);
        for piece in pieces.clone() {
            for x in S::as_simd_f32s(piece).0 {
                sum = simd.add_f32s(sum, *x);
            }
        }
        let mean = simd.splat_f32s(simd.reduce_sum_f32s(sum) / width);
        let mut squares = simd.splat_f32s(0.0);
        for piece in pieces.clone() {
            for x in S::as_simd_f32s(piece).0 {
                let apart = simd.sub_f32s(*x, mean);
                squares = simd.mul_add_e_f32s(apart, apart, squares);
            }
        }
        let variance = simd.reduce_sum_f32s(squares) / width;
        let scale = simd.splat_f32s((variance + self.epsilon).sqrt().recip());
        let parameters = self.weight.iter().zip(self.bias);
        pieces.zip(parameters).map(move |(x, (weight, bias))| Piece {
            x: S::as_simd_f32s(x).0,
            weight: S::as_simd_f32s(weight).0,
            bias: S::as_simd_f32s(bias).0,
            mean,
            scale,
        })
    }
}

impl<S: Simd> Piece<'_, S> {
    /// A vector of the result.
    #[inline(always)]
    fn vector(&self, simd: S, number: usize) -> S::f32s {
        let normal = simd.mul_f32s(simd.sub_f32s(self.x[number], self.mean), self.scale);
        simd.mul_add_e_f32s(normal, self.weight[number], self.bias[number])
    }
}

/// Two vectors as pairs: each value rounded to the nearest bfloat16, and to even. What is no number stays none,
/// as arithmetic on numbers makes it.
#[inline(always)]
fn paired<S: Simd>(simd: S, [lower, upper]: [S::f32s; 2]) -> S::u32s {
    let lower = simd.wrapping_dyn_shr_u32s(nearest(simd, lower), simd.splat_u32s(16));
    simd.or_u32s(lower, simd.and_u32s(nearest(simd, upper), simd.splat_u32s(UPPER)))
}

/// The bits of the nearest bfloat16s, and others behind them.
#[inline(always)]
fn nearest<S: Simd>(simd: S, values: S::f32s) -> S::u32s {
    let bits = simd.transmute_u32s_f32s(values);
    let odd = simd.and_u32s(
        simd.wrapping_dyn_shr_u32s(bits, simd.splat_u32s(16)),
        simd.splat_u32s(1),
    );
    simd.add_u32s(bits, simd.add_u32s(odd, simd.splat_u32s(0x7fff)))
}

/// The softmax of rows of a block over all its panels, in place.
pub(crate) struct Softmax<'a> {
    /// Panels of `stride` rows.
    pub(crate) block: &'a mut [f32],
    /// Rows of a panel.
    pub(crate) stride: usize,
    /// The rows.
    pub(crate) rows: Range<usize>,
}

impl<const W: usize> WithSimd for InPanels<Softmax<'_>, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Softmax { block, stride, rows } = self.0;
        let block = block.as_chunks_mut::<W>().0;
        for row in rows {
            let mut most = simd.splat_f32s(f32::NEG_INFINITY);
            for piece in block.iter().skip(row).step_by(stride) {
                for x in S::as_simd_f32s(piece).0 {
                    most = simd.max_f32s(most, *x);
                }
            }
            let most = simd.splat_f32s(simd.reduce_max_f32s(most));
            let mut sum = simd.splat_f32s(0.0);
            for piece in block.iter_mut().skip(row).step_by(stride) {
                for x in S::as_mut_simd_f32s(piece).0 {
                    *x = exp(simd, simd.sub_f32s(*x, most));
                    sum = simd.add_f32s(sum, *x);
                }
            }
            let share = simd.splat_f32s(simd.reduce_sum_f32s(sum).recip());
            for piece in block.iter_mut().skip(row).step_by(stride) {
                for x in S::as_mut_simd_f32s(piece).0 {
                    *x = simd.mul_f32s(*x, share);
                }
            }
        }
    }
}

/// An activation of every value, in place. There must be a whole number of vectors.
pub(crate) struct Activate<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) activation: Activation,
}

impl WithSimd for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (values, rest) = S::as_mut_simd_f32s(self.values);
        debug_assert!(rest.is_empty(), "panels are whole vectors");
        match self.activation {
            Activation::QuickGelu => values.iter_mut().for_each(|x| *x = quick_gelu(simd, *x)),
            Activation::Gelu => values.iter_mut().for_each(|x| *x = gelu(simd, *x)),
        }
    }
}

/// `x · sigmoid(1.702 x)` (<https://github.com/hendrycks/GELUs>).
#[inline(always)]
fn quick_gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let e = exp(simd, simd.mul_f32s(x, simd.splat_f32s(-1.702)));
    simd.div_f32s(x, simd.add_f32s(e, simd.splat_f32s(1.0)))
}

/// `x · Φ(x)`, with the error function by Abramowitz and Stegun's formula 7.1.26, which is off by at most 1.5e-7.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const P: f32 = 0.327_591_1;
    const TERMS: [f32; 5] = [1.061_405_4, -1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6];
    let one = simd.splat_f32s(1.0);
    let z = simd.mul_f32s(simd.abs_f32s(x), simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2));
    let t = simd.div_f32s(one, simd.mul_add_e_f32s(z, simd.splat_f32s(P), one));
    let mut series = simd.splat_f32s(0.0);
    for term in TERMS {
        series = simd.mul_add_e_f32s(series, t, simd.splat_f32s(term));
    }
    let e = exp(simd, simd.neg_f32s(simd.mul_f32s(z, z)));
    // x Φ(x) = (x + |x| erf(|x| / √2)) / 2
    let erf = simd.sub_f32s(one, simd.mul_f32s(simd.mul_f32s(series, t), e));
    let sum = simd.mul_add_e_f32s(simd.abs_f32s(x), erf, x);
    simd.mul_f32s(sum, simd.splat_f32s(0.5))
}

/// e^x, to a few units in the last place; below -87 what it is there, and above 88.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// ln 2 in two parts, of which the first has few enough bits that its product with such a number is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// 1/k!, from the seventh power down: within ±ln 2 / 2 the rest of the series is below 1e-8.
    const TERMS: [f32; 8] = [
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    // By comparisons, which leave what is no number as it is: it must reach whoever looks for it in the result.
    let [least, most] = [-87.0, 88.0].map(|bound| simd.splat_f32s(bound));
    let x = simd.select_f32s(simd.less_than_f32s(x, least), least, x);
    let x = simd.select_f32s(simd.less_than_f32s(most, x), most, x);
    let shifted = simd.mul_add_e_f32s(
        x,
        simd.splat_f32s(std::f32::consts::LOG2_E),
        simd.splat_f32s(WHOLE),
    );
    let n = simd.sub_f32s(shifted, simd.splat_f32s(WHOLE));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2[0]), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2[1]), r);
    let mut series = simd.splat_f32s(TERMS[0]);
    for term in &TERMS[1..] {
        series = simd.mul_add_e_f32s(series, r, simd.splat_f32s(*term));
    }
    // 2ⁿ, whose bits are n + 127 above 23 others.
    let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(n, simd.splat_u32s(127 << 23)));
    simd.mul_f32s(series, power)
}
