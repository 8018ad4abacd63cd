//! JPEGs: whether one is all there, and its pixels, of large ones fewer.
//!
//! Owner: `decode`. Decoders fill with grey what a cut-off file lacks, and a server that classifies, or learns
//! from, half a picture is wrong without anyone noticing. So the markers are walked first, as libjpeg (and with it
//! Pillow, which refuses what lacks its end) walks them: ITU-T T.81, annex B.
//!
//! Pixels are libjpeg-turbo's, and so Pillow's. Of a block of 8 × 8 pixels its lower frequencies alone make one of 4 × 4,
//! 2 × 2 or 1 × 1. A photograph of 12 megapixels is brought to a few hundred pixels a side in any case; that way most of
//! the decoding and of the resizing is saved, as by Pillow's `draft`. Sides of what is decoded smaller are rounded up, so that
//! where eight does not divide a picture's, it comes out stretched by less than one pixel of the smaller one.

use image::RgbImage;
use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat, ScalingFactor};

use super::resize::Size;

/// How many times as large as what it is brought to a picture must be after it was decoded smaller, so that it is the
/// resizing that decides on the pixels.
const MARGIN: usize = 2;

/// Most scans of a picture. Each is a pass over all its blocks, however little it says.
const SCANS: u32 = 100;

/// The bytes that every JPEG starts with, and nothing else that is decoded here.
const START: [u8; 3] = [0xff, SOI, 0xff];

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
/// Stands alone, as restarts do; used by arithmetic coding.
const TEM: u8 = 0x01;

/// Whether there is an end behind the last scan of a JPEG; `None` where `bytes` are something else. What lies behind the end is not
/// looked at: cameras put a second picture there.
pub(super) fn is_whole(bytes: &[u8]) -> Option<bool> {
    if !bytes.starts_with(&START) {
        return None;
    }
    let mut rest = &bytes[2..];
    while let Some((marker, after)) = next_marker(rest) {
        rest = match marker {
            EOI => return Some(true),
            SOI | TEM | 0xd0..=0xd7 => after,
            // The coded data of a scan follows its header and holds no markers but restarts, so that the search for
            // the next marker passes over it.
            _ => {
                let Some(after) = behind_segment(after) else {
                    break;
                };
                after
            }
        };
    }
    Some(false)
}

/// A whole JPEG of `size`; or at a half, a quarter or an eighth of it, rounded up, where that leaves [`MARGIN`] times `wanted`.
/// `None` where it is of inks, of more than [`SCANS`] scans, or one that libjpeg-turbo refuses or warns of. At most 9 bytes are
/// allocated for each of its pixels, besides what fills up its last blocks: 6 of coefficients, where they come in several scans.
pub(super) fn decoded(bytes: &[u8], size: Size, wanted: Size) -> Option<RgbImage> {
    let scale = ScalingFactor::new(eighths(size, wanted), 8);
    let mut decoder = Decompressor::new().ok()?;
    decoder.set_scan_limit(SCANS).ok()?;
    let header = decoder.read_header(bytes).ok()?;
    let has_colors = matches!(
        header.colorspace,
        Colorspace::RGB | Colorspace::YCbCr | Colorspace::Gray
    );
    if !has_colors || [header.width, header.height] != [size.width, size.height] {
        return None;
    }
    decoder.set_scaling_factor(scale).ok()?;
    let [width, height] = [size.width, size.height].map(|side| scale.scale(side));
    let mut picture = RgbImage::new(width.try_into().ok()?, height.try_into().ok()?);
    let pixels = Image {
        pixels: &mut *picture,
        width,
        pitch: 3 * width,
        height,
        format: PixelFormat::RGB,
    };
    decoder.decompress(bytes, pixels).ok()?;
    Some(picture)
}

/// The least part of a picture's sides, in eighths, that is still [`MARGIN`] times what is wanted; all of it where none is.
fn eighths(size: Size, wanted: Size) -> usize {
    let leaves_enough = |eighths: &usize| {
        let sides = [(size.width, wanted.width), (size.height, wanted.height)];
        sides
            .into_iter()
            .all(|(side, wanted)| side * eighths >= 8 * MARGIN * wanted)
    };
    [1, 2, 4].into_iter().find(leaves_enough).unwrap_or(8)
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
fn behind_segment(bytes: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes(*bytes.first_chunk()?));
    if length < 2 { None } else { bytes.get(length..) }
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
        let is_whole = |bytes: &[u8]| is_whole(bytes).expect("a JPEG");
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
        assert_eq!(of(4768, 3584), 1);
        assert_eq!(of(4767, 3584), 2);
        assert_eq!(of(2384, 1792), 2);
        assert_eq!(of(2383, 1792), 4);
        assert_eq!(of(1192, 896), 4);
        assert_eq!(of(1192, 895), 8, "both sides count");
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

    /// The largest distance of a pixel at a part of a picture's size from the mean of those that it stands for by `image`'s
    /// decoder, where all of them exist.
    fn furthest_from_means(jpeg: &[u8], eighths: usize) -> f64 {
        let full = image::load_from_memory(jpeg).expect("decoded").into_rgb8();
        let [width, height] = [full.width() as usize, full.height() as usize];
        let wanted = size(width * eighths / 16, height * eighths / 16);
        let found = decoded(jpeg, size(width, height), wanted).expect("decoded smaller");
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
    fn what_is_decoded_is_the_picture() {
        for (eighths, channels) in [(1, 3), (2, 3), (4, 3), (2, 1), (8, 3), (8, 1)] {
            let furthest = furthest_from_means(&pattern(803, 605, channels), eighths);
            assert!(furthest < 4.0, "{furthest} of 255 at {eighths}/8");
        }
    }

    fn pinned(name: &str) -> Vec<u8> {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/backbone/data/images");
        std::fs::read(std::path::Path::new(directory).join(name)).expect("a picture")
    }

    #[test]
    fn subsampled_progressive_and_grey_pictures_are_decoded() {
        for name in ["photo-444.jpg", "photo.jpg", "progressive.jpg", "grey.jpg"] {
            // Of a part there are hard edges, which lower frequencies alone cannot follow, next to which the mean of few
            // pixels is one of many.
            for (eighths, bound) in [(1, 24.0), (2, 24.0), (4, 24.0), (8, 5.0)] {
                let furthest = furthest_from_means(&pinned(name), eighths);
                assert!(furthest < bound, "{name}: {furthest} of 255 at {eighths}/8");
            }
        }
    }

    /// A JPEG with a segment behind its start.
    fn with_segment(jpeg: &[u8], segment: &[u8]) -> Vec<u8> {
        [&jpeg[..2], segment, &jpeg[2..]].concat()
    }

    #[test]
    fn adobe_says_whether_three_components_are_red_green_and_blue() {
        let adobe = |transform| {
            [
                b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00".as_slice(),
                &[transform],
            ]
            .concat()
        };
        // A grey picture in three components: by luminance, or as red with two middling colors.
        let grey = RgbImage::from_pixel(16, 16, image::Rgb([200; 3]));
        let mut jpeg = std::io::Cursor::new(Vec::new());
        grey.write_to(&mut jpeg, image::ImageFormat::Jpeg)
            .expect("a JPEG");
        let jpeg = without_jfif(jpeg.get_ref());
        let pixel = |transform| {
            let jpeg = with_segment(&jpeg, &adobe(transform));
            let whole = size(16, 16);
            decoded(&jpeg, whole, whole).expect("decoded")[(8, 8)].0
        };
        let near = |found: [u8; 3], wanted: [u8; 3]| {
            let apart = found.iter().zip(wanted).map(|(a, b)| a.abs_diff(b)).max();
            assert!(apart < Some(3), "{found:?} instead of {wanted:?}");
        };
        near(pixel(1), [200; 3]);
        near(pixel(0), [200, 128, 128]);
    }

    /// A JPEG without its JFIF segment, which comes first, and says for itself what components are.
    fn without_jfif(jpeg: &[u8]) -> Vec<u8> {
        assert_eq!(jpeg[2..4], [0xff, 0xe0]);
        let length = usize::from(u16::from_be_bytes([jpeg[4], jpeg[5]]));
        [&jpeg[..2], &jpeg[4 + length..]].concat()
    }

    #[test]
    fn what_cannot_be_decoded_here_is_left_to_others() {
        let jpeg = pattern(160, 120, 3);
        let (whole, small) = (size(160, 120), size(20, 15));
        for wanted in [small, whole] {
            assert!(decoded(&jpeg, whole, wanted).is_some());
            assert!(
                decoded(&jpeg, size(168, 120), wanted).is_none(),
                "another picture"
            );
            assert!(decoded(&jpeg[..200], whole, wanted).is_none(), "damaged");
            assert!(decoded(b"GIF89a", whole, wanted).is_none(), "another format");
        }
        let cmyk = pinned("cmyk.jpg");
        let picture = image::load_from_memory(&cmyk).expect("decoded");
        let inks = size(picture.width() as usize, picture.height() as usize);
        assert!(decoded(&cmyk, inks, size(1, 1)).is_none(), "inks");
    }

    #[test]
    fn what_is_warned_of_is_left_to_others() {
        let jpeg = pattern(160, 120, 3);
        let whole = size(160, 120);
        // Bytes between two segments, which are passed over.
        let between = [&jpeg[..2], &[0, 0], &jpeg[2..]].concat();
        assert!(decoded(&between, whole, whole).is_none());
        assert!(decoded(&jpeg, whole, whole).is_some());
    }

    #[test]
    fn a_picture_of_many_scans_is_left_to_others() {
        let jpeg = pinned("progressive.jpg");
        let picture = image::load_from_memory(&jpeg).expect("decoded");
        let whole = size(picture.width() as usize, picture.height() as usize);
        assert!(decoded(&jpeg, whole, size(4, 4)).is_some());
        // Says nothing, of one component, and is a pass over all its blocks.
        let scan = [0xff, 0xda, 0, 8, 1, 1, 0, 1, 5, 0x10];
        let end = jpeg.len() - 2;
        let many = [&jpeg[..end], &scan.repeat(SCANS as usize), &jpeg[end..]].concat();
        assert_eq!(is_whole(&many), Some(true));
        assert!(decoded(&many, whole, size(4, 4)).is_none());
    }

    #[test]
    fn other_formats_have_other_ends() {
        assert_eq!(is_whole(b""), None);
        assert_eq!(is_whole(b"\x89PNG\r\n\x1a\n"), None);
    }
}
