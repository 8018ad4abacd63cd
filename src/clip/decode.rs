//! Encoded bytes to upright 8-bit RGB, as Pillow and `transformers` do it. What is much larger than it will be needed is decoded
//! smaller where its format allows for that.
//!
//! Owner: the image processor. Invariants: the format is read from the content, never from what a client claims; the
//! pixel limit holds before a pixel is decoded, and what decoders allocate is bounded by it; of an animation only the
//! first frame is looked at.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};
use thiserror::Error;

use super::jpeg;
use super::resize::Size;

/// What a client may make the server decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels (width times height) of an image.
    pub max_pixels: u64,
}

/// Bytes that a decoder may allocate for each pixel: the picture in its widest type (four channels of 16 bits), and
/// as much again for its own planes and buffers.
const DECODER_BYTES_PER_PIXEL: u64 = 16;
/// What a decoder needs besides pixels: tables, metadata, the color profile.
const DECODER_OVERHEAD: u64 = 16 << 20;

/// An image that cannot be processed.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The content is none of the known formats.
    #[error("the content is no image of a known format (bmp, gif, jpeg, png, tiff, webp)")]
    Unsupported,
    /// The image has more pixels than is allowed. Nothing was decoded.
    #[error("the image has {width}×{height} pixels, more than the {limit} that are allowed")]
    TooManyPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit on their product.
        limit: u64,
    },
    /// The image has no pixels.
    #[error("the image is empty")]
    Empty,
    /// The pixels are of a kind that has no agreed meaning as a photograph.
    #[error("the image's pixels are {0}, which is not supported")]
    UnsupportedPixels(&'static str),
    /// The file ends before the picture does.
    #[error("the image is cut off")]
    Truncated,
    /// The content is damaged, or uses a part of its format that is not supported.
    #[error("the image cannot be decoded")]
    Undecodable(#[source] image::ImageError),
    /// A decoder panicked over the content.
    #[error("the image cannot be decoded: the decoder failed")]
    Panicked,
}

/// Decodes to RGB with the EXIF orientation applied, of a picture that `target` says the future size of from its own; that
/// size as well. What comes out shows all of the picture, either as it is stored or at least twice as large as it will be.
pub(super) fn decode(
    bytes: &[u8],
    limits: Limits,
    target: impl FnOnce(Size) -> Size,
) -> Result<(RgbImage, Size), ImageError> {
    let mut decoder = open(bytes, limits)?;
    let is_whole_jpeg = jpeg::is_whole(bytes);
    if is_whole_jpeg == Some(false) {
        return Err(ImageError::Truncated);
    }
    // A damaged orientation is no reason to refuse a picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let (width, height) = decoder.dimensions();
    let stored = Size {
        width: width as usize,
        height: height as usize,
    };
    let turned = |size: Size| if lies(orientation) { size.turned() } else { size };
    let target = target(turned(stored));
    let from_jpeg = is_whole_jpeg.and_then(|_| jpeg::decoded(bytes, stored, turned(target)));
    let picture = match from_jpeg {
        Some(picture) => picture,
        None => to_rgb(DynamicImage::from_decoder(decoder).map_err(ImageError::Undecodable)?)?,
    };
    let mut upright = DynamicImage::ImageRgb8(picture);
    upright.apply_orientation(orientation);
    Ok((upright.into_rgb8(), target))
}

/// Whether a picture is stored on its side.
fn lies(orientation: Orientation) -> bool {
    match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => true,
        Orientation::NoTransforms
        | Orientation::Rotate180
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical => false,
    }
}

/// Reads the header and checks it against the limits, before anything is decoded.
pub(super) fn open(bytes: &[u8], limits: Limits) -> Result<impl ImageDecoder + '_, ImageError> {
    let mut reader = ImageReader::new(Cursor::new(bytes));
    // The reader's own limits hold while headers are parsed.
    let mut allocations = image::Limits::no_limits();
    allocations.max_alloc = Some(
        limits
            .max_pixels
            .saturating_mul(DECODER_BYTES_PER_PIXEL)
            .saturating_add(DECODER_OVERHEAD),
    );
    reader.limits(allocations);
    let reader = reader
        .with_guessed_format()
        .map_err(|error| ImageError::Undecodable(error.into()))?;
    if !reader.format().is_some_and(|format| format.reading_enabled()) {
        return Err(ImageError::Unsupported);
    }
    let decoder = reader.into_decoder().map_err(ImageError::Undecodable)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(ImageError::TooManyPixels {
            width,
            height,
            limit: limits.max_pixels,
        });
    }
    if width == 0 || height == 0 {
        return Err(ImageError::Empty);
    }
    Ok(decoder)
}

/// To 8-bit RGB. Transparency is laid over white, as in `transformers`' `convert_to_rgb`. Of 16 bits the high byte
/// counts, except in grey pictures without alpha: there Pillow cuts off at 255 what is above, and so do we, because
/// the features must be those of the reference.
fn to_rgb(decoded: DynamicImage) -> Result<RgbImage, ImageError> {
    let (width, height) = (decoded.width(), decoded.height());
    let pixels: Vec<u8> = match decoded {
        DynamicImage::ImageRgb8(image) => return Ok(image),
        DynamicImage::ImageLuma8(image) => image.iter().flat_map(|v| [*v; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => image
            .pixels()
            .flat_map(|p| [over_white(p.0[0], p.0[1]); 3])
            .collect(),
        DynamicImage::ImageRgba8(image) => image.pixels().flat_map(|p| composite(p.0)).collect(),
        DynamicImage::ImageLuma16(image) => image.iter().flat_map(|v| [(*v).min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(image) => image
            .pixels()
            .flat_map(|p| [over_white(high_byte(p.0[0]), high_byte(p.0[1])); 3])
            .collect(),
        DynamicImage::ImageRgb16(image) => image.iter().map(|v| high_byte(*v)).collect(),
        DynamicImage::ImageRgba16(image) => image
            .pixels()
            .flat_map(|p| composite(p.0.map(high_byte)))
            .collect(),
        _ => return Err(ImageError::UnsupportedPixels("floating-point numbers")),
    };
    RgbImage::from_raw(width, height, pixels).ok_or(ImageError::Empty)
}

fn high_byte(value: u16) -> u8 {
    value.to_be_bytes()[0]
}

fn composite([red, green, blue, alpha]: [u8; 4]) -> [u8; 3] {
    [
        over_white(red, alpha),
        over_white(green, alpha),
        over_white(blue, alpha),
    ]
}

/// `value` over white, in the fixed point of Pillow's `libImaging/AlphaComposite.c` for an opaque background.
fn over_white(value: u8, alpha: u8) -> u8 {
    const PRECISION: u32 = 7;
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let sum = ((value * alpha + 255 * (255 - alpha)) << PRECISION) + (0x80 << PRECISION);
    // Divides by 255.
    ((((sum >> 8) + sum) >> 8) >> PRECISION) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_pixels: 1 << 20 };

    /// A picture with a corner that is unlike the others, as a JPEG with this EXIF orientation.
    fn turned(orientation: u8) -> Vec<u8> {
        let corner = |x, y| if x < 160 && y < 96 { 250 } else { 20 };
        let picture = RgbImage::from_fn(640, 384, |x, y| image::Rgb([corner(x, y); 3]));
        let mut jpeg = Cursor::new(Vec::new());
        picture
            .write_to(&mut jpeg, image::ImageFormat::Jpeg)
            .expect("a JPEG");
        let mut exif = b"\xff\xe1\x00\x22Exif\x00\x00MM\x00*\x00\x00\x00\x08".to_vec();
        exif.extend([
            0,
            1,
            0x01,
            0x12,
            0,
            3,
            0,
            0,
            0,
            1,
            0,
            orientation,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
        let jpeg = jpeg.into_inner();
        [&jpeg[..2], &exif, &jpeg[2..]].concat()
    }

    #[test]
    fn what_is_decoded_smaller_is_turned_as_the_whole_is() {
        for orientation in 1..=8 {
            let jpeg = turned(orientation);
            let (whole, _) = decode(&jpeg, LIMITS, |size| size).expect("decoded");
            let mut own = None;
            let (smaller, target) = decode(&jpeg, LIMITS, |size| {
                own = Some(size);
                Size {
                    width: size.width / 16,
                    height: size.height / 16,
                }
            })
            .expect("decoded");
            let own = own.expect("was asked for");
            assert_eq!(
                [own.width as u32, own.height as u32],
                [whole.width(), whole.height()]
            );
            assert_eq!([target.width, target.height], [own.width / 16, own.height / 16]);
            assert_eq!(
                [8 * smaller.width(), 8 * smaller.height()],
                [whole.width(), whole.height()]
            );
            for (x, y, pixel) in smaller.enumerate_pixels() {
                let apart = pixel.0[0].abs_diff(whole[(8 * x + 4, 8 * y + 4)].0[0]);
                assert!(apart < 4, "{apart} at {x}, {y} with orientation {orientation}");
            }
        }
    }
}
