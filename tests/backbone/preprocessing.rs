//! Pictures of every kind against `CLIPImageProcessor`'s pixels, as bytes.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use clipkeep::clip::{ImageError, ImageProcessor, Limits};
use proptest::prelude::*;
use serde_json::Value;

use crate::directory::pinned;

const LIMITS: Limits = Limits { max_pixels: 1 << 20 };

#[test]
fn pixels_agree_with_reference() {
    let expected =
        candle_core::safetensors::load(pinned("images/expected.safetensors"), &Device::Cpu).unwrap();
    let expected: BTreeMap<String, Tensor> = expected.into_iter().collect();
    assert!(expected.len() > 150, "only {} expectations", expected.len());
    let mut failures = Vec::new();
    for (key, pixels) in &expected {
        let (processor, picture) = key.split_once('/').unwrap();
        let pixels = pixels.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let worst = worst_difference(&processor_named(processor), picture, &pixels);
        // Where Pillow itself decoded and resized, large JPEGs at a part of their size, not a bit may differ; the others were resized by
        // torchvision.
        let tolerance = u8::from(!processor.starts_with("pillow-"));
        eprintln!("{key}: {worst}");
        if worst > tolerance {
            failures.push(format!("{key}: differs by {worst}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// A processor of `processors.json`.
fn processor_named(name: &str) -> ImageProcessor {
    let all = std::fs::read(pinned("images/processors.json")).unwrap();
    let all: Value = serde_json::from_slice(&all).unwrap();
    ImageProcessor::from_json(&serde_json::to_vec(&all[name]).unwrap()).unwrap()
}

fn worst_difference(processor: &ImageProcessor, picture: &str, expected: &[u8]) -> u8 {
    let bytes = std::fs::read(pinned("images").join(picture)).unwrap();
    let ours = processor
        .process(&bytes, LIMITS)
        .unwrap_or_else(|error| panic!("{picture}: {error:?}"));
    assert_eq!(ours.len(), expected.len(), "{picture}");
    assert_eq!(
        ours.len(),
        processor.output_shape().iter().product::<usize>(),
        "{picture}"
    );
    let apart = ours
        .iter()
        .zip(expected)
        .map(|(ours, expected)| ours.abs_diff(*expected));
    apart.max().unwrap()
}

#[test]
fn too_many_pixels_are_refused_before_decoding() {
    let processor = clip_processor();
    let bytes = std::fs::read(pinned("images/downscale-landscape.png")).unwrap();
    // Cut off where the pixels begin: to decode would fail.
    let header = &bytes[..bytes.windows(4).position(|chunk| chunk == b"IDAT").unwrap() + 4];
    match processor.process(
        header,
        Limits {
            max_pixels: 301 * 200 - 1,
        },
    ) {
        Err(ImageError::TooManyPixels {
            width: 301,
            height: 200,
            limit,
        }) => assert_eq!(limit, 301 * 200 - 1),
        other => panic!("{other:?}"),
    }
    assert!(
        processor
            .process(
                &bytes,
                Limits {
                    max_pixels: 301 * 200
                }
            )
            .is_ok()
    );
}

#[test]
fn what_is_no_image_is_unsupported() {
    for bytes in [
        &b""[..],
        b"not an image",
        b"%PDF-1.7",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ] {
        match clip_processor().process(bytes, LIMITS) {
            Err(ImageError::Unsupported) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_truncated_or_damaged_image_is_undecodable() {
    for picture in ["photo.webp", "palette.gif", "alpha.png", "color.tiff"] {
        let bytes = std::fs::read(pinned("images").join(picture)).unwrap();
        match clip_processor().process(&bytes[..bytes.len() / 2], LIMITS) {
            Err(ImageError::Undecodable(_)) => {}
            other => panic!("{picture}: {other:?}"),
        }
    }
}

/// The decoder would fill what is missing with grey; Pillow says "image file is truncated".
#[test]
fn a_jpeg_that_ends_early_is_truncated() {
    for picture in [
        "photo.jpg",
        "photo-444.jpg",
        "progressive.jpg",
        "grey.jpg",
        "cmyk.jpg",
    ] {
        let bytes = std::fs::read(pinned("images").join(picture)).unwrap();
        let cuts = [80, 60, 40, 20].map(|percent| bytes.len() * percent / 100);
        // Without its end marker alone, all of the picture is there; Pillow refuses it all the same.
        for cut in cuts.into_iter().chain([bytes.len() - 2]) {
            match clip_processor().process(&bytes[..cut], LIMITS) {
                Err(ImageError::Truncated | ImageError::Undecodable(_)) => {}
                other => panic!("{picture} cut at {cut} of {}: {other:?}", bytes.len()),
            }
        }
    }
}

#[test]
fn what_follows_the_end_of_a_jpeg_is_no_part_of_it() {
    let bytes = std::fs::read(pinned("images/photo.jpg")).unwrap();
    let padded = [bytes.as_slice(), &[0xff, 0xd8, 0xff, 0xe0, 0, 0, 1, 2, 3]].concat();
    let [plain, padded] = [bytes, padded].map(|bytes| clip_processor().process(&bytes, LIMITS).unwrap());
    assert_eq!(plain, padded);
}

#[test]
fn elongated_pictures_cost_no_more_than_their_pixels() {
    // Resized as a whole this would be 32 pixels wide and 640,000 high.
    let tall = image::RgbImage::from_fn(1, 20_000, |_, y| image::Rgb([(y / 79) as u8, 7, 200]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    tall.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let pixels = clip_processor().process(bytes.get_ref(), LIMITS).unwrap();
    assert_eq!(pixels.len(), 3 * 32 * 32);
    assert!(pixels[2 * 32 * 32..].iter().all(|blue| *blue == 200));
}

proptest! {
    /// Whatever arrives, decoding ends in pixels or in an error.
    #[test]
    fn a_damaged_picture_does_no_harm(picture in 0..64_usize, damage: Vec<(prop::sample::Index, u8)>) {
        let mut pictures: Vec<_> = std::fs::read_dir(pinned("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
        pictures.retain(|path| !path.to_string_lossy().contains("expected") && path.extension().unwrap() != "json");
        pictures.sort();
        let mut bytes = std::fs::read(&pictures[picture % pictures.len()]).unwrap();
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if let Ok(pixels) = clip_processor().process(&bytes, LIMITS) {
            prop_assert_eq!(pixels.len(), 3 * 32 * 32);
        }
    }
}

fn clip_processor() -> ImageProcessor {
    processor_named("clip")
}
