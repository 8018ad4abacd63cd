//! Pillow's 8-bit resampling, bit for bit, of only the window that will be kept.
//!
//! Owner: the image processor. Source: Pillow's `libImaging/Resample.c` (coefficients in double precision, rounded to
//! 22 fractional bits; a horizontal pass into 8 bits, then a vertical one) and, for `Nearest`, the affine transform of
//! `libImaging/Geometry.c`. Invariant: memory and time are bounded by the window and by the source pixels under it,
//! not by the size of the whole target: a picture of 1×20000 pixels may well be enlarged to 224×4480000.

use std::ops::Range;

#[cfg(test)]
mod tests;

/// Bits behind the binary point: 32, less 8 for the pixel and 2 for sums above one.
const PRECISION: u32 = 32 - 8 - 2;

/// Pillow's filters, by the numbers that `preprocessor_config.json` has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// The filter with Pillow's number.
    pub(super) fn from_pillow(number: u64) -> Option<Self> {
        [
            Self::Nearest,
            Self::Lanczos,
            Self::Bilinear,
            Self::Bicubic,
            Self::Box,
            Self::Hamming,
        ]
        .get(usize::try_from(number).ok()?)
        .copied()
    }

    /// Half the filter's width, in source pixels when nothing is scaled down.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight at distance `x` from the centre.
    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming => hamming(x.abs()),
            Self::Bicubic => bicubic(x.abs()),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos | Self::Nearest => 0.0,
        }
    }
}

/// Catmull-Rom, the cubic convolution with a = -1/2.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn hamming(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    let x = x * std::f64::consts::PI;
    // Pillow's constants are floats.
    x.sin() / x * (f64::from(0.54_f32) + f64::from(0.46_f32) * x.cos())
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// The part of the target that is computed, in target pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// Resizes `pixels` (rows of `size.width` pixels of `CHANNELS` bytes) to `target`, and returns the pixels of `window`,
/// row by row. `pixels` must hold exactly `size`, sizes must not be zero, and the window must lie inside the target.
pub(super) fn resize<const CHANNELS: usize>(
    pixels: &[u8],
    size: Size,
    target: Size,
    window: &Window,
    filter: Filter,
) -> Vec<u8> {
    assert_eq!(
        pixels.len(),
        size.width * size.height * CHANNELS,
        "the pixels do not fill the size"
    );
    assert!(
        window.columns.end <= target.width && window.rows.end <= target.height,
        "the window leaves the target"
    );
    let columns = Taps::of(filter, size.width, target.width, window.columns.clone());
    let rows = Taps::of(filter, size.height, target.height, window.rows.clone());
    let first = rows.iter().map(|tap| tap.start).min().unwrap_or(0);
    let last = rows
        .iter()
        .map(|tap| tap.start + tap.weights.len())
        .max()
        .unwrap_or(0);

    // Only the source rows that the vertical pass will look at.
    let stride = columns.len() * CHANNELS;
    let mut narrowed = vec![0; (last - first) * stride];
    let source = pixels.chunks_exact(size.width * CHANNELS).skip(first);
    for (row, out) in source.zip(narrowed.chunks_exact_mut(stride.max(1))) {
        horizontal::<CHANNELS>(row, &columns, out);
    }
    let mut out = vec![0; rows.len() * stride];
    let mut sums = vec![0; stride];
    for (tap, out) in rows.iter().zip(out.chunks_exact_mut(stride.max(1))) {
        vertical(
            &narrowed[(tap.start - first) * stride..],
            tap.weights,
            &mut sums,
            out,
        );
    }
    out
}

fn horizontal<const CHANNELS: usize>(row: &[u8], columns: &Taps, out: &mut [u8]) {
    let (row, _) = row.as_chunks::<CHANNELS>();
    let (out, _) = out.as_chunks_mut::<CHANNELS>();
    for (tap, out) in columns.iter().zip(out) {
        let mut sums = [HALF; CHANNELS];
        for (pixel, weight) in row[tap.start..].iter().zip(tap.weights) {
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(*value) * weight;
            }
        }
        *out = sums.map(to_byte);
    }
}

fn vertical(rows: &[u8], weights: &[i32], sums: &mut [i32], out: &mut [u8]) {
    sums.fill(HALF);
    for (row, weight) in rows.chunks_exact(out.len().max(1)).zip(weights) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += i32::from(*value) * weight;
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = to_byte(*sum);
    }
}

/// One half, in fixed point: sums start with it so that cutting off rounds.
const HALF: i32 = 1 << (PRECISION - 1);

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// For each target pixel of a range along one axis, the first source pixel it looks at and the weights.
struct Taps {
    /// Start in the source, and the range in `weights`.
    spans: Vec<(usize, Range<usize>)>,
    weights: Vec<i32>,
}

/// One target pixel's view of the source.
struct Tap<'a> {
    start: usize,
    weights: &'a [i32],
}

impl Taps {
    fn of(filter: Filter, source: usize, target: usize, range: Range<usize>) -> Self {
        let mut taps = Self {
            spans: Vec::with_capacity(range.len()),
            weights: Vec::new(),
        };
        let scale = source as f64 / target as f64;
        if filter == Filter::Nearest {
            // Pillow adds up the scale pixel by pixel, and where that falls on an edge its rounding errors decide.
            let centers = std::iter::successors(Some(0.5 * scale), |center| Some(center + scale));
            for center in centers.take(range.end).skip(range.start) {
                taps.push((center as usize).min(source - 1), &[1.0]);
            }
        } else if source == target {
            range.for_each(|index| taps.push(index, &[1.0]));
        } else {
            range.for_each(|index| taps.push_filtered(filter, (index as f64 + 0.5) * scale, scale, source));
        }
        taps
    }

    fn push_filtered(&mut self, filter: Filter, center: f64, scale: f64, source: usize) {
        // When shrinking, the filter widens with the scale: this is the antialiasing.
        let widening = scale.max(1.0);
        let support = filter.support() * widening;
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(source);
        let narrowing = 1.0 / widening;
        let mut weights: Vec<f64> = (start..end)
            .map(|x| filter.weight((x as f64 - center + 0.5) * narrowing))
            .collect();
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            for weight in &mut weights {
                *weight /= sum;
            }
        }
        self.push(start, &weights);
    }

    fn push(&mut self, start: usize, weights: &[f64]) {
        let from = self.weights.len();
        // Half away from zero, as in C: add a half with the sign, then cut off.
        self.weights.extend(weights.iter().map(|weight| {
            let scaled = weight * f64::from(1 << PRECISION);
            (scaled + 0.5_f64.copysign(scaled)) as i32
        }));
        self.spans.push((start, from..self.weights.len()));
    }

    fn len(&self) -> usize {
        self.spans.len()
    }

    fn iter(&self) -> impl Iterator<Item = Tap<'_>> {
        self.spans.iter().map(|(start, range)| Tap {
            start: *start,
            weights: &self.weights[range.clone()],
        })
    }
}
