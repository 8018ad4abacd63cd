//! Whether a JPEG is all there, and large ones decoded smaller.
//!
//! Owner: `decode`. The decoder fills with grey what a cut-off file lacks, and a server that classifies, or learns
//! from, half a picture is wrong without anyone noticing. So the markers are walked first, as libjpeg (and with it
//! Pillow, which refuses what lacks its end) walks them: ITU-T T.81, annex B.
//!
//! Of a block of 8 × 8 pixels its lower frequencies alone make one of 4 × 4, 2 × 2 or 1 × 1. A photograph of 12 megapixels
//! is brought to a few hundred pixels a side in any case; that way most of the decoding and of the resizing is saved. What
//! `draft` does in Pillow.

use image::RgbImage;
use jpeg_decoder::{Decoder, PixelFormat};

use super::resize::Size;

/// How many times as large as what it is brought to a picture must be after it was decoded smaller, so that it is the
/// resizing that decides on the pixels.
const MARGIN: usize = 2;

/// The bytes that every JPEG starts with, and nothing else that is decoded here.
const START: [u8; 3] = [0xff, SOI, 0xff];

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
/// Stands alone, as restarts do; used by arithmetic coding.
const TEM: u8 = 0x01;

/// A JPEG of `size` at a half, a quarter or an eighth of it, rounded up, whichever is the smallest that leaves twice `wanted`;
/// `None` where none does, where the content is something else, or a JPEG that is decoded in another way: of inks, of more
/// than 8 bits, damaged, or in need of more than `most` bytes.
pub(super) fn reduced(bytes: &[u8], size: Size, wanted: Size, most: u64) -> Option<RgbImage> {
    if !bytes.starts_with(&START) {
        return None;
    }
    let eighths = eighths(size, wanted)?;
    let side = |pixels: usize| u16::try_from((pixels * eighths).div_ceil(8)).ok();
    let mut decoder = Decoder::new(bytes);
    decoder.set_max_decoding_buffer_size(usize::try_from(most).unwrap_or(usize::MAX));
    let (width, height) = decoder.scale(side(size.width)?, side(size.height)?).ok()?;
    let channels = match decoder.info()?.pixel_format {
        PixelFormat::L8 => 1,
        PixelFormat::RGB24 => 3,
        PixelFormat::L16 | PixelFormat::CMYK32 => return None,
    };
    let pixels = decoder.decode().ok()?;
    let pixels = if channels == 1 {
        pixels.into_iter().flat_map(|grey| [grey; 3]).collect()
    } else {
        pixels
    };
    RgbImage::from_raw(width.into(), height.into(), pixels)
}

/// The least part of a picture's sides, in eighths, that is still [`MARGIN`] times what is wanted; `None` if only the whole is.
fn eighths(size: Size, wanted: Size) -> Option<usize> {
    let leaves_enough = |eighths: &usize| {
        let sides = [(size.width, wanted.width), (size.height, wanted.height)];
        sides
            .into_iter()
            .all(|(side, wanted)| side * eighths >= 8 * MARGIN * wanted)
    };
    [1, 2, 4].into_iter().find(leaves_enough)
}

/// Whether `bytes` are a JPEG whose end of image does not follow its last scan. What lies behind the end is not
/// looked at: cameras put a second picture there.
pub(super) fn ends_early(bytes: &[u8]) -> bool {
    bytes.starts_with(&START) && !reaches_end(&bytes[2..])
}

fn reaches_end(mut rest: &[u8]) -> bool {
    while let Some((marker, after)) = next_marker(rest) {
        rest = match marker {
            EOI => return true,
            SOI | TEM | 0xd0..=0xd7 => after,
            // The coded data of a scan follows its header and holds no markers but restarts, so that the search for
            // the next marker passes over it.
            _ => match segment(after) {
                Some(after) => after,
                None => return false,
            },
        };
    }
    false
}

/// The next marker and what follows it. Bytes that belong to none are passed over: stuffed zeros, fill bytes, the coded
/// data of a scan.
fn next_marker(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let mut rest = bytes;
    loop {
        let at = rest.iter().position(|byte| *byte == 0xff)?;
        rest = &rest[at + 1..];
        match rest.first()? {
            0x00 | 0xff => {}
            marker => return Some((*marker, &rest[1..])),
        }
    }
}

/// What follows a segment; `None` where it is longer than the file, or shorter than its own length field.
fn segment(bytes: &[u8]) -> Option<&[u8]> {
    let length = u16::from_be_bytes(*bytes.first_chunk()?);
    (length >= 2).then_some(())?;
    bytes.get(usize::from(length)..)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with an embedded end of image (as thumbnails have), and a scan with a stuffed byte, a restart and fill.
    const WHOLE: &[u8] = &[
        0xff, SOI, 0xff, 0xe0, 0, 4, 0xff, EOI, 0xff, 0xda, 0, 3, 1, 7, 0xff, 0, 0xff, 0xd0, 9, 0xff, 0xff,
        EOI,
    ];

    #[test]
    fn only_the_end_of_the_picture_itself_counts() {
        assert!(!ends_early(WHOLE));
        assert!(!ends_early(&[WHOLE, b"another picture".as_slice()].concat()));
        for length in 3..WHOLE.len() {
            assert!(ends_early(&WHOLE[..length]), "{length} bytes");
        }
    }

    fn size(width: usize, height: usize) -> Size {
        Size { width, height }
    }

    #[test]
    fn pictures_are_decoded_smaller_as_long_as_twice_the_target_is_left() {
        let of = |width, height| eighths(size(width, height), size(298, 224));
        assert_eq!(of(4768, 3584), Some(1));
        assert_eq!(of(4767, 3584), Some(2));
        assert_eq!(of(2384, 1792), Some(2));
        assert_eq!(of(2383, 1792), Some(4));
        assert_eq!(of(1192, 896), Some(4));
        assert_eq!(of(1192, 895), None, "both sides count");
    }

    /// A soft pattern as a JPEG, and the picture that it is of.
    fn pattern(width: u32, height: u32, channels: usize) -> Vec<u8> {
        let wave = |x: u32, y: u32, phase: f32| {
            let angle = (x as f32 * 0.013 + y as f32 * 0.021 + phase).sin();
            (128.0 + 100.0 * angle) as u8
        };
        let mut jpeg = std::io::Cursor::new(Vec::new());
        let written = match channels {
            1 => image::GrayImage::from_fn(width, height, |x, y| image::Luma([wave(x, y, 0.0)]))
                .write_to(&mut jpeg, image::ImageFormat::Jpeg),
            _ => RgbImage::from_fn(width, height, |x, y| {
                image::Rgb([0.0, 1.0, 2.0].map(|phase| wave(x, y, phase)))
            })
            .write_to(&mut jpeg, image::ImageFormat::Jpeg),
        };
        written.expect("a JPEG");
        jpeg.into_inner()
    }

    #[test]
    fn what_is_decoded_smaller_is_the_picture() {
        for (eighths, channels) in [(1, 3), (2, 3), (4, 3), (2, 1)] {
            let whole = size(803, 605);
            let jpeg = pattern(803, 605, channels);
            let full = image::load_from_memory(&jpeg).expect("decoded").into_rgb8();
            let wanted = size(803 * eighths / 16, 605 * eighths / 16);
            let found = reduced(&jpeg, whole, wanted, 1 << 24).expect("decoded smaller");
            let sides = [803, 605].map(|side: usize| (side * eighths).div_ceil(8) as u32);
            assert_eq!([found.width(), found.height()], sides);
            let edge = 8 / eighths as u32;
            let mut worst = 0.0_f64;
            for (x, y, pixel) in found.enumerate_pixels() {
                // The mean of the pixels that it stands for, where all of these exist.
                if (x + 1) * edge > 803 || (y + 1) * edge > 605 {
                    continue;
                }
                for channel in 0..3 {
                    let places = (0..edge * edge).map(|i| (x * edge + i % edge, y * edge + i / edge));
                    let sum: u32 = places.map(|(x, y)| u32::from(full[(x, y)].0[channel])).sum();
                    let mean = f64::from(sum) / f64::from(edge * edge);
                    worst = worst.max((f64::from(pixel.0[channel]) - mean).abs());
                }
            }
            assert!(worst < 4.0, "{worst} of 255 at {eighths}/8");
        }
    }

    #[test]
    fn what_cannot_be_decoded_smaller_is_left_to_others() {
        let jpeg = pattern(160, 120, 3);
        let (whole, small, near) = (size(160, 120), size(20, 15), size(80, 60));
        assert!(reduced(&jpeg, whole, small, 1 << 20).is_some());
        assert!(reduced(&jpeg, whole, near, 1 << 20).is_none(), "not large enough");
        assert!(reduced(&jpeg, whole, small, 100).is_none(), "not enough memory");
        assert!(reduced(&jpeg[..200], whole, small, 1 << 20).is_none(), "damaged");
        assert!(
            reduced(b"GIF89a", whole, small, 1 << 20).is_none(),
            "another format"
        );
    }

    #[test]
    fn other_formats_have_other_ends() {
        assert!(!ends_early(b""));
        assert!(!ends_early(b"\x89PNG\r\n\x1a\n"));
    }
}
