//! Whether a JPEG is all there, and large ones decoded smaller.
//!
//! Owner: `decode`. The decoder fills with grey what a cut-off file lacks, and a server that classifies, or learns
//! from, half a picture is wrong without anyone noticing. So the markers are walked first, as libjpeg (and with it
//! Pillow, which refuses what lacks its end) walks them: ITU-T T.81, annex B.
//!
//! Of a block of 8 × 8 pixels its lower frequencies alone make one of 4 × 4, 2 × 2 or 1 × 1. A photograph of 12 megapixels
//! is brought to a few hundred pixels a side in any case; that way most of the decoding and of the resizing is saved. Pillow's
//! `draft` does the same. `image` cannot, and `jpeg-decoder` can: it decodes these and no others. Sides of what it decodes are
//! rounded up, so that where eight does not divide a picture's, it comes out stretched by less than one pixel of the smaller one.

use image::RgbImage;
use jpeg_decoder::{Decoder, PixelFormat};

use super::resize::Size;

/// How many times as large as what it is brought to a picture must be after it was decoded smaller, so that it is the
/// resizing that decides on the pixels.
const MARGIN: usize = 2;

/// Most scans of a picture that is decoded smaller. Each is a pass over all its blocks, however little it says.
const SCANS: usize = 100;

/// The bytes that every JPEG starts with, and nothing else that is decoded here.
const START: [u8; 3] = [0xff, SOI, 0xff];

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP14: u8 = 0xee;
/// Stands alone, as restarts do; used by arithmetic coding.
const TEM: u8 = 0x01;

/// What the markers of a JPEG say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Markers {
    /// Whether there is an end behind the last scan. What lies behind the end is not looked at: cameras put a second picture
    /// there.
    pub(super) is_whole: bool,
    scans: usize,
    /// Whether Adobe's segment says that its three components are red, green and blue, which decoders disagree on.
    is_plain_rgb: bool,
}

/// Walks the markers of a JPEG; `None` where `bytes` are something else.
pub(super) fn markers(bytes: &[u8]) -> Option<Markers> {
    if !bytes.starts_with(&START) {
        return None;
    }
    let mut found = Markers {
        is_whole: false,
        scans: 0,
        is_plain_rgb: false,
    };
    let mut rest = &bytes[2..];
    while let Some((marker, after)) = next_marker(rest) {
        rest = match marker {
            EOI => {
                found.is_whole = true;
                return Some(found);
            }
            SOI | TEM | 0xd0..=0xd7 => after,
            // The coded data of a scan follows its header and holds no markers but restarts, so that the search for
            // the next marker passes over it.
            _ => {
                let Some((segment, after)) = segment(after) else {
                    break;
                };
                found.scans += usize::from(marker == SOS);
                found.is_plain_rgb |= marker == APP14 && is_without_transform(segment);
                after
            }
        };
    }
    Some(found)
}

/// A whole JPEG of `size` at a half, a quarter or an eighth of it, rounded up, whichever is the smallest that leaves twice
/// `wanted`; `None` where none does, or where it is one that is decoded in another way: of inks, of more than 8 bits, of many
/// scans, damaged. At most 9 bytes are allocated for each of its pixels: coefficients, where they come in several scans.
pub(super) fn reduced(bytes: &[u8], markers: Markers, size: Size, wanted: Size) -> Option<RgbImage> {
    if markers.scans > SCANS || markers.is_plain_rgb {
        return None;
    }
    let eighths = eighths(size, wanted)?;
    let side = |pixels: usize| u16::try_from((pixels * eighths).div_ceil(8)).ok();
    let sides = (side(size.width)?, side(size.height)?);
    let mut decoder = Decoder::new(bytes);
    if decoder.scale(sides.0, sides.1).ok()? != sides {
        return None;
    }
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
    RgbImage::from_raw(sides.0.into(), sides.1.into(), pixels)
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

/// A segment's content and what follows it; `None` where it is longer than the file, or shorter than its own length field.
fn segment(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(u16::from_be_bytes(*bytes.first_chunk()?));
    let (segment, after) = bytes.split_at_checked(length)?;
    Some((segment.get(2..)?, after))
}

/// Whether a segment is Adobe's and says that colours were not transformed.
fn is_without_transform(segment: &[u8]) -> bool {
    segment.starts_with(b"Adobe") && segment.get(11) == Some(&0)
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
        let is_whole = |bytes: &[u8]| markers(bytes).expect("a JPEG").is_whole;
        assert!(is_whole(WHOLE));
        assert!(is_whole(&[WHOLE, b"another picture".as_slice()].concat()));
        for length in 3..WHOLE.len() {
            assert!(!is_whole(&WHOLE[..length]), "{length} bytes");
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

    fn smaller(jpeg: &[u8], whole: Size, wanted: Size) -> Option<RgbImage> {
        reduced(jpeg, markers(jpeg)?, whole, wanted)
    }

    /// The largest distance of a pixel at a part of a picture's size from the mean of those that it stands for, where all of
    /// them exist.
    fn furthest_from_means(jpeg: &[u8], eighths: usize) -> f64 {
        let full = image::load_from_memory(jpeg).expect("decoded").into_rgb8();
        let [width, height] = [full.width() as usize, full.height() as usize];
        let wanted = size(width * eighths / 16, height * eighths / 16);
        let found = smaller(jpeg, size(width, height), wanted).expect("decoded smaller");
        let sides = [width, height].map(|side| (side * eighths).div_ceil(8) as u32);
        assert_eq!([found.width(), found.height()], sides);
        let edge = 8 / eighths as u32;
        let mut furthest = 0.0_f64;
        for (x, y, pixel) in found.enumerate_pixels() {
            if (x + 1) * edge > full.width() || (y + 1) * edge > full.height() {
                continue;
            }
            for channel in 0..3 {
                let places = (0..edge * edge).map(|i| (x * edge + i % edge, y * edge + i / edge));
                let sum: u32 = places.map(|(x, y)| u32::from(full[(x, y)].0[channel])).sum();
                let mean = f64::from(sum) / f64::from(edge * edge);
                furthest = furthest.max((f64::from(pixel.0[channel]) - mean).abs());
            }
        }
        furthest
    }

    #[test]
    fn what_is_decoded_smaller_is_the_picture() {
        for (eighths, channels) in [(1, 3), (2, 3), (4, 3), (2, 1)] {
            let furthest = furthest_from_means(&pattern(803, 605, channels), eighths);
            assert!(furthest < 4.0, "{furthest} of 255 at {eighths}/8");
        }
    }

    fn pinned(name: &str) -> Vec<u8> {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/backbone/data/images");
        std::fs::read(std::path::Path::new(directory).join(name)).expect("a picture")
    }

    #[test]
    fn subsampled_progressive_and_grey_pictures_are_decoded_smaller() {
        // Hard edges, which lower frequencies alone cannot follow, next to which the mean of few pixels is one of many.
        for name in ["photo-444.jpg", "photo.jpg", "progressive.jpg", "grey.jpg"] {
            for eighths in [1, 2, 4] {
                let furthest = furthest_from_means(&pinned(name), eighths);
                assert!(furthest < 24.0, "{name}: {furthest} of 255 at {eighths}/8");
            }
        }
    }

    /// A JPEG with a segment behind its start.
    fn with_segment(jpeg: &[u8], segment: &[u8]) -> Vec<u8> {
        [&jpeg[..2], segment, &jpeg[2..]].concat()
    }

    #[test]
    fn what_cannot_be_decoded_smaller_is_left_to_others() {
        let jpeg = pattern(160, 120, 3);
        let (whole, small, near) = (size(160, 120), size(20, 15), size(80, 60));
        assert!(smaller(&jpeg, whole, small).is_some());
        assert!(smaller(&jpeg, whole, near).is_none(), "not large enough");
        assert!(smaller(&jpeg, size(168, 120), small).is_none(), "another picture");
        assert!(smaller(&jpeg[..200], whole, small).is_none(), "damaged");
        assert!(smaller(b"GIF89a", whole, small).is_none(), "another format");
        let cmyk = pinned("cmyk.jpg");
        let picture = image::load_from_memory(&cmyk).expect("decoded");
        let inks = size(picture.width() as usize, picture.height() as usize);
        assert!(smaller(&cmyk, inks, size(1, 1)).is_none(), "inks");
        let adobe = |transform| {
            [
                b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00".as_slice(),
                &[transform],
            ]
            .concat()
        };
        assert!(smaller(&with_segment(&jpeg, &adobe(1)), whole, small).is_some());
        assert!(
            smaller(&with_segment(&jpeg, &adobe(0)), whole, small).is_none(),
            "no transform"
        );
    }

    #[test]
    fn a_picture_of_many_scans_is_left_to_others() {
        let jpeg = pinned("progressive.jpg");
        let picture = image::load_from_memory(&jpeg).expect("decoded");
        let whole = size(picture.width() as usize, picture.height() as usize);
        assert!(smaller(&jpeg, whole, size(4, 4)).is_some());
        // Says nothing, of one component, and is a pass over all its blocks.
        let scan = [0xff, SOS, 0, 8, 1, 1, 0, 1, 5, 0x10];
        let end = jpeg.len() - 2;
        let many = [&jpeg[..end], &scan.repeat(SCANS), &jpeg[end..]].concat();
        assert!(markers(&many).is_some_and(|found| found.is_whole && found.scans > SCANS));
        assert!(smaller(&many, whole, size(4, 4)).is_none());
    }

    #[test]
    fn other_formats_have_other_ends() {
        assert_eq!(markers(b""), None);
        assert_eq!(markers(b"\x89PNG\r\n\x1a\n"), None);
    }
}
