//! Pictures of every kind against `CLIPImageProcessor`'s pixels, in units of 1/255.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use clipkeep::clip::{ImageError, ImageProcessor, Limits};
use proptest::prelude::*;
use serde_json::Value;

use crate::directory::pinned;

/// JPEGs with 4:2:0 chroma.
const SUBSAMPLED: [&str; 3] = ["photo.jpg", "progressive.jpg", "small.jpg"];

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
        let worst = Preprocessing::named(processor).worst_difference(picture, &pixels);
        let tolerance = match () {
            // Where Pillow itself resized, not a bit may differ.
            () if processor.starts_with("pillow-") => 0.0,
            // zune-jpeg and libjpeg-turbo round differently where they enlarge subsampled chroma.
            () if SUBSAMPLED.contains(&picture) => 4.0,
            () => 2.0,
        };
        eprintln!("{key}: {worst:.3}");
        if worst > tolerance + 1e-3 {
            failures.push(format!("{key}: differs by {worst}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// A processor of `processors.json`, and what takes its output back to bytes.
struct Preprocessing {
    processor: ImageProcessor,
    factor: f64,
    mean: [f64; 3],
    std: [f64; 3],
}

impl Preprocessing {
    fn named(name: &str) -> Self {
        let all: Value =
            serde_json::from_slice(&std::fs::read(pinned("images/processors.json")).unwrap()).unwrap();
        let config = &all[name];
        let numbers =
            |field: &str, default: [f64; 3]| serde_json::from_value(config[field].clone()).unwrap_or(default);
        let switch = |field: &str| config[field].as_bool().unwrap_or(true);
        let (mean, std) = if switch("do_normalize") {
            // CLIPImageProcessor's defaults.
            (
                numbers("image_mean", [0.481_454_66, 0.457_827_5, 0.408_210_73]),
                numbers("image_std", [0.268_629_54, 0.261_302_58, 0.275_777_11]),
            )
        } else {
            ([0.0; 3], [1.0; 3])
        };
        let factor = config["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0);
        Self {
            processor: ImageProcessor::from_json(&serde_json::to_vec(config).unwrap()).unwrap(),
            factor: if switch("do_rescale") { factor } else { 1.0 },
            mean,
            std,
        }
    }

    fn worst_difference(&self, picture: &str, expected: &[u8]) -> f64 {
        let bytes = std::fs::read(pinned("images").join(picture)).unwrap();
        let ours = self
            .processor
            .process(&bytes, LIMITS)
            .unwrap_or_else(|error| panic!("{picture}: {error:?}"));
        assert_eq!(ours.len(), expected.len(), "{picture}");
        assert_eq!(
            ours.len(),
            self.processor.output_shape().iter().product::<usize>(),
            "{picture}"
        );
        let area = ours.len() / 3;
        let difference = |(i, (ours, expected)): (usize, (&f32, &u8))| {
            let channel = i / area;
            let byte = (f64::from(*ours) * self.std[channel] + self.mean[channel]) / self.factor;
            (byte - f64::from(*expected)).abs()
        };
        ours.iter()
            .zip(expected)
            .enumerate()
            .map(difference)
            .fold(0.0, f64::max)
    }
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
    // The mean and deviation of CLIP's blue.
    let blue = (200.0 / 255.0 - 0.408_21) / 0.275_777;
    assert!(
        pixels[2 * 32 * 32..]
            .iter()
            .all(|value| (value - blue).abs() < 1e-4)
    );
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
            prop_assert!(pixels.iter().all(|value| value.is_finite()));
        }
    }
}

fn clip_processor() -> ImageProcessor {
    Preprocessing::named("clip").processor
}
