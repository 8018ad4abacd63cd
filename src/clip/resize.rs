//! Pillow's 8-bit resampling, bit for bit, of only the window that will be kept.
//!
//! Owner: the image processor. Source: Pillow's `libImaging/Resample.c` (coefficients in double precision, rounded to
//! 22 fractional bits; a horizontal pass into 8 bits, then a vertical one) and, for `Nearest`, the affine transform of
//! `libImaging/Geometry.c`. Invariants: memory is bounded by the window and by the longer side of the picture; time
//! by the window and the source pixels under it, and by 2²⁴ sums for `Nearest` at most, not by the size of the whole
//! target: a picture of 1×20000 pixels may well be enlarged to 224×4480000, and one of 1×50000000 squeezed into 224×224.

use std::collections::VecDeque;
use std::ops::Range;

mod vectors;

#[cfg(test)]
mod tests;

use vectors::Column;
pub(super) use vectors::Vectors;

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

impl Size {
    /// With the sides exchanged.
    pub(super) fn turned(self) -> Self {
        Self {
            width: self.height,
            height: self.width,
        }
    }
}

/// What is done to a picture's size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scaling {
    pub(super) from: Size,
    pub(super) to: Size,
    pub(super) filter: Filter,
}

/// The part of the target that is computed, in target pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// Resizes `pixels`, rows of pixels of `CHANNELS` bytes, and hands those of `window` to `write`: pixels side by side, and the row and
/// column of the window where they begin. There must be exactly as many as the scaling begins with, sizes must not be zero, and
/// the window must lie inside the target.
pub(super) fn resize<const CHANNELS: usize>(
    pixels: &[u8],
    scaling: Scaling,
    window: &Window,
    mut write: impl FnMut((usize, usize), &[[u8; CHANNELS]]),
) {
    let Scaling {
        from: size,
        to: target,
        filter,
    } = scaling;
    assert_eq!(
        pixels.len(),
        size.width * size.height * CHANNELS,
        "the pixels do not fill the size"
    );
    assert!(
        window.columns.end <= target.width && window.rows.end <= target.height,
        "the window leaves the target"
    );
    let vectors = Vectors::new();
    let mut columns = taps(filter, size.width, target.width, window.columns.clone());
    let mut left = 0;
    loop {
        let strip = Strip::next(&mut columns);
        if strip.columns.is_empty() {
            return;
        }
        let rows = taps(filter, size.height, target.height, window.rows.clone());
        resize_strip::<CHANNELS>(vectors, (pixels, size), &strip, rows, |row, pixels| {
            write((row, left), pixels);
        });
        left += strip.width;
    }
}

/// Weights that a strip holds at a time, of 16 bytes, unless a single column has more.
const STRIP_WEIGHTS: usize = 1 << 18;

/// Columns of the window, side by side, that are computed together.
struct Strip {
    /// Each column that differs from the one before it, and how many of its kind there are.
    columns: Vec<(Column, usize)>,
    /// How many there are in all.
    width: usize,
}

impl Strip {
    /// As many of the next columns as fit. A usual picture is one strip; a very wide one has more weights than pixels.
    fn next(columns: &mut impl Iterator<Item = Tap>) -> Self {
        let mut strip = Self {
            columns: Vec::new(),
            width: 0,
        };
        let mut weights = 0;
        while weights < STRIP_WEIGHTS {
            let Some(tap) = columns.next() else { break };
            strip.width += 1;
            let column = Column::new(tap.start, &tap.weights);
            match strip.columns.last_mut() {
                Some((last, count)) if *last == column => *count += 1,
                _ => {
                    weights += tap.weights.len();
                    strip.columns.push((column, 1));
                }
            }
        }
        strip
    }
}

/// A row of the window that has seen the source's rows from its tap's start to the current one.
struct Row {
    index: usize,
    tap: Tap,
    sums: Vec<i32>,
}

/// Computes the window's `rows` of one strip and hands each to `write` with its index. Source rows are narrowed one
/// after the other and added to the rows that look at them, so that none has to be kept.
fn resize_strip<const CHANNELS: usize>(
    vectors: Vectors,
    (pixels, size): (&[u8], Size),
    strip: &Strip,
    rows: impl Iterator<Item = Tap>,
    mut write: impl FnMut(usize, &[[u8; CHANNELS]]),
) {
    let mut waiting = rows.enumerate().peekable();
    let first = waiting.peek().map_or(size.height, |(_, tap)| tap.start);
    let mut open: VecDeque<Row> = VecDeque::new();
    let mut narrowed = vec![0; strip.columns.len() * CHANNELS];
    let mut rounded = narrowed.clone();
    let mut finished = Vec::with_capacity(strip.width);
    for y in first..size.height {
        // Starts and ends of the taps never fall from one row to the next.
        while let Some((index, tap)) = waiting.next_if(|(_, tap)| tap.start <= y) {
            let sums = vec![HALF; narrowed.len()];
            open.push_back(Row { index, tap, sums });
        }
        if open.is_empty() {
            if waiting.peek().is_some() {
                // `Nearest` leaves out rows.
                continue;
            }
            break;
        }
        vectors.narrow::<CHANNELS>(
            &pixels[y * size.width * CHANNELS..],
            &strip.columns,
            &mut narrowed,
        );
        for Row { tap, sums, .. } in &mut open {
            vectors.add(sums, tap.weights[y - tap.start], &narrowed);
        }
        while let Some(row) = open.pop_front_if(|row| row.tap.end() <= y + 1) {
            vectors.round(&row.sums, &mut rounded);
            let pixels = rounded.as_chunks::<CHANNELS>().0;
            if strip.columns.len() == strip.width {
                write(row.index, pixels);
                continue;
            }
            finished.clear();
            for (pixel, (_, count)) in pixels.iter().zip(&strip.columns) {
                finished.extend(std::iter::repeat_n(*pixel, *count));
            }
            write(row.index, &finished);
        }
    }
}

/// One half, in fixed point: sums start with it so that cutting off rounds.
const HALF: i32 = 1 << (PRECISION - 1);

/// One target pixel's view of the source along one axis: the first source pixel it looks at, and the weights from
/// there; at least one.
struct Tap {
    start: usize,
    weights: Vec<i32>,
}

/// How far into a target `Nearest` adds up as Pillow does: farther than an image of Pillow's, which holds all of its pixels, goes in
/// practice, and not so far that it takes long.
const ADDED_UP: usize = 1 << 24;

/// The taps of a range of target pixels, made as they are asked for: all of a very long side's would need more memory
/// than its pixels.
fn taps(filter: Filter, source: usize, target: usize, range: Range<usize>) -> impl Iterator<Item = Tap> {
    let scale = source as f64 / target as f64;
    // Pillow adds up the scale pixel by pixel, and where that falls on an edge its rounding errors decide.
    let added_up = match filter {
        Filter::Nearest if range.start < ADDED_UP => range.start,
        _ => 0,
    };
    let from = (range.start - added_up) as f64 + 0.5;
    let mut nearest =
        std::iter::successors(Some(from * scale), move |center| Some(center + scale)).skip(added_up);
    range.map(move |index| match filter {
        Filter::Nearest => {
            let center = nearest.next().unwrap_or_default();
            Tap::new((center as usize).min(source - 1), &[1.0])
        }
        _ if source == target => Tap::new(index, &[1.0]),
        _ => Tap::filtered(filter, (index as f64 + 0.5) * scale, scale, source),
    })
}

impl Tap {
    fn filtered(filter: Filter, center: f64, scale: f64, source: usize) -> Self {
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
        Self::new(start, &weights)
    }

    fn new(start: usize, weights: &[f64]) -> Self {
        // Half away from zero, as in C: add a half with the sign, then cut off.
        let fixed = |weight: &f64| {
            let scaled = weight * f64::from(1 << PRECISION);
            (scaled + 0.5_f64.copysign(scaled)) as i32
        };
        Self {
            start,
            weights: weights.iter().map(fixed).collect(),
        }
    }

    fn end(&self) -> usize {
        self.start + self.weights.len()
    }
}
