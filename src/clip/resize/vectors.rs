//! What resizing and splitting into planes repeat most, by the processor's vectors: by AVX2, and what the compiler makes of portable code for whatever there is.
//!
//! Invariant: the same bytes by any of them, since sums are whole numbers.

#![expect(
    clippy::inline_always,
    reason = "a step is compiled for the instructions of whoever calls it, which it has to be part of"
)]

#[cfg(target_arch = "x86_64")]
use bytemuck::cast;
use pulp::{Arch, Simd, WithSimd};
#[cfg(target_arch = "x86_64")]
use pulp::{NullaryFnOnce, x86::V3};

use super::{HALF, PRECISION};

/// The weights of two source pixels that follow one another, each as often as a pixel may have channels; zeros for one that
/// counts no more.
pub(super) type Two = [[i32; LANES]; 2];

/// Channels of a pixel, at most.
const LANES: usize = 4;

/// One target column's view of a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// The first source pixel that it looks at.
    start: usize,
    weights: Vec<Two>,
}

impl Column {
    pub(super) fn new(start: usize, weights: &[i32]) -> Self {
        let two = |weights: &[i32]| -> Two {
            std::array::from_fn(|which| [weights.get(which).copied().unwrap_or(0); LANES])
        };
        Self {
            start,
            weights: weights.chunks(2).map(two).collect(),
        }
    }
}

/// Whose vectors.
#[derive(Clone, Copy)]
pub(in crate::clip) struct Vectors {
    arch: Arch,
    #[cfg(target_arch = "x86_64")]
    avx2: Option<V3>,
}

impl Vectors {
    /// The best that this processor has.
    pub(in crate::clip) fn new() -> Self {
        Self {
            arch: Arch::new(),
            #[cfg(target_arch = "x86_64")]
            avx2: V3::try_new(),
        }
    }

    /// None but what all processors have.
    #[cfg(test)]
    pub(super) fn portable() -> Self {
        Self {
            arch: Arch::Scalar,
            #[cfg(target_arch = "x86_64")]
            avx2: None,
        }
    }

    /// Makes each pixel of `narrowed` what a column sees of the row that `pixels` begin with. What follows the row does not count,
    /// and may be read.
    pub(super) fn narrow<const CHANNELS: usize>(
        self,
        pixels: &[u8],
        columns: &[(Column, usize)],
        narrowed: &mut [u8],
    ) {
        const { assert!(CHANNELS <= LANES) };
        let (narrowed, _) = narrowed.as_chunks_mut();
        let narrow = Narrow::<'_, CHANNELS> {
            pixels,
            columns,
            narrowed,
        };
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = self.avx2 {
            return simd.vectorize(ByAvx2(simd, narrow));
        }
        narrow.portable();
    }

    /// Adds `weight` times each byte to its sum.
    pub(super) fn add(self, sums: &mut [i32], weight: i32, bytes: &[u8]) {
        self.arch.dispatch(Add { sums, weight, bytes });
    }

    /// Makes sums bytes.
    pub(super) fn round(self, sums: &[i32], bytes: &mut [u8]) {
        self.arch.dispatch(Round { sums, bytes });
    }

    /// Writes pixels, channel by channel, to where they begin in the planes.
    pub(in crate::clip) fn split(self, pixels: &[[u8; 3]], planes: [&mut [u8]; 3]) {
        self.arch.dispatch(Split { pixels, planes });
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

struct Narrow<'a, const CHANNELS: usize> {
    pixels: &'a [u8],
    columns: &'a [(Column, usize)],
    narrowed: &'a mut [[u8; CHANNELS]],
}

impl<'a, const CHANNELS: usize> Narrow<'a, CHANNELS> {
    /// Each column with the pixels from its first one on, and where it goes.
    #[inline(always)]
    fn steps(self) -> impl Iterator<Item = (&'a [Two], &'a [u8], &'a mut [u8; CHANNELS])> {
        let columns = self.columns.iter().zip(self.narrowed);
        columns.map(|((column, _), narrowed)| {
            let pixels = &self.pixels[column.start * CHANNELS..];
            (column.weights.as_slice(), pixels, narrowed)
        })
    }

    fn portable(self) {
        for (weights, pixels, narrowed) in self.steps() {
            let mut sums = [HALF; CHANNELS];
            let pixels = pixels.as_chunks::<CHANNELS>().0;
            for (pixel, weights) in pixels.iter().zip(weights.as_flattened()) {
                for ((sum, value), weight) in sums.iter_mut().zip(pixel).zip(weights) {
                    *sum += i32::from(*value) * weight;
                }
            }
            *narrowed = sums.map(to_byte);
        }
    }
}

/// Two pixels at a time, each in four lanes of 32 bits.
#[cfg(target_arch = "x86_64")]
struct ByAvx2<'a, const CHANNELS: usize>(V3, Narrow<'a, CHANNELS>);

#[cfg(target_arch = "x86_64")]
impl<const CHANNELS: usize> NullaryFnOnce for ByAvx2<'_, CHANNELS> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self(
            V3 {
                sse2,
                ssse3,
                avx,
                avx2,
                ..
            },
            narrow,
        ) = self;
        // The upper bit makes a zero.
        let apart: [[u8; LANES]; 2] = std::array::from_fn(|pixel| {
            std::array::from_fn(|lane| {
                if lane < CHANNELS {
                    (pixel * CHANNELS + lane) as u8
                } else {
                    0x80
                }
            })
        });
        let apart = cast([apart, [[0x80; LANES]; 2]]);
        let half = sse2._mm_set1_epi32(HALF);
        for (weights, mut pixels, narrowed) in narrow.steps() {
            let mut sums = avx._mm256_setzero_si256();
            for weights in weights {
                // Eight bytes hold two pixels. Nothing follows the last one of a picture.
                let two = pixels.first_chunk().copied().unwrap_or_else(|| padded(pixels));
                let two = ssse3._mm_shuffle_epi8(cast([two, [0; 8]]), apart);
                let products = avx2._mm256_mullo_epi32(avx2._mm256_cvtepu8_epi32(two), cast(*weights));
                sums = avx2._mm256_add_epi32(sums, products);
                pixels = pixels.get(2 * CHANNELS..).unwrap_or_default();
            }
            let (first, second) = (
                avx._mm256_castsi256_si128(sums),
                avx2._mm256_extracti128_si256::<1>(sums),
            );
            let sums = sse2._mm_add_epi32(half, sse2._mm_add_epi32(first, second));
            let whole = sse2._mm_srai_epi32::<{ PRECISION.cast_signed() }>(sums);
            // What does not fit becomes the nearest that does.
            let words = sse2._mm_packs_epi32(whole, whole);
            let bytes: [u8; 16] = cast(sse2._mm_packus_epi16(words, words));
            narrowed.copy_from_slice(&bytes[..CHANNELS]);
        }
    }
}

/// With zeros behind.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn padded(values: &[u8]) -> [u8; 8] {
    std::array::from_fn(|place| values.get(place).copied().unwrap_or(0))
}

struct Add<'a> {
    sums: &'a mut [i32],
    weight: i32,
    bytes: &'a [u8],
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (sum, byte) in self.sums.iter_mut().zip(self.bytes) {
            *sum += i32::from(*byte) * self.weight;
        }
    }
}

struct Round<'a> {
    sums: &'a [i32],
    bytes: &'a mut [u8],
}

impl WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (byte, sum) in self.bytes.iter_mut().zip(self.sums) {
            *byte = to_byte(*sum);
        }
    }
}

struct Split<'a> {
    pixels: &'a [[u8; 3]],
    planes: [&'a mut [u8]; 3],
}

impl WithSimd for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [red, green, blue] = self.planes;
        let of_planes = red.iter_mut().zip(green).zip(blue);
        for (((red, green), blue), pixel) in of_planes.zip(self.pixels) {
            [*red, *green, *blue] = *pixel;
        }
    }
}
