//! Encoded images to the bytes that the image tower takes, as `preprocessor_config.json` says, or the part of
//! `processor_config.json` that stands in its place.
//!
//! Owner: shared by the threads that decode; it has no state. Source: `transformers`' `CLIPImageProcessor`: to RGB,
//! resize, centre crop. What that does then, to rescale and to normalise, is one product and one sum for each channel: they are
//! part of the tower's weights (see [`super::folded`]). Invariant: the output has the size that the image tower takes; this is
//! checked at load, so no request can fail over it.

mod file;

use super::decode::{ImageError, Limits, decode, open};
use super::error::BackboneError;
use super::resize::{Filter, Scaling, Size, Vectors, Window, resize};
use file::{PreprocessorFile, ProcessorFile, invalid};

/// The file this module parses, as messages name it.
pub(super) const FILE: &str = "preprocessor_config.json";

/// The file that stands in its place where transformers 5 saved: its `image_processor` is what the other file holds.
pub(super) const NESTED_FILE: &str = "processor_config.json";

/// The checked preprocessing of one backbone.
#[derive(Clone, Debug)]
pub struct ImageProcessor {
    resize: Resize,
    filter: Filter,
    /// What is kept around the centre.
    crop: Size,
    normalisation: Normalisation,
}

/// What a byte of each channel stands for: `scale · byte + shift`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Normalisation {
    pub(super) scale: [f64; 3],
    pub(super) shift: [f64; 3],
}

/// The size that a picture is brought to before the crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resize {
    Keep,
    ShortestEdge(usize),
    Exact(Size),
}

impl ImageProcessor {
    /// Parses a `preprocessor_config.json`.
    pub fn from_json(bytes: &[u8]) -> Result<Self, BackboneError> {
        let file: PreprocessorFile =
            serde_json::from_slice(bytes).map_err(|source| BackboneError::Json { file: FILE, source })?;
        file.check()
    }

    /// Parses a `processor_config.json`.
    fn from_nested_json(bytes: &[u8]) -> Result<Self, BackboneError> {
        let file: ProcessorFile = serde_json::from_slice(bytes).map_err(|source| BackboneError::Json {
            file: NESTED_FILE,
            source,
        })?;
        file.image_processor.check()
    }

    /// Parses [`FILE`] or [`NESTED_FILE`], whichever `file` is, and checks that its output fits a tower for
    /// `image_size`.
    pub(super) fn parse(file: &'static str, bytes: &[u8], image_size: usize) -> Result<Self, BackboneError> {
        let parsed = match file {
            NESTED_FILE => Self::from_nested_json(bytes),
            _ => Self::from_json(bytes),
        };
        let checked = parsed.and_then(|processor| processor.fits(image_size));
        checked.map_err(|error| match error {
            BackboneError::Invalid { reason, .. } => BackboneError::Invalid { file, reason },
            other => other,
        })
    }

    fn fits(self, image_size: usize) -> Result<Self, BackboneError> {
        match self.crop {
            Size { width, height } if width == image_size && height == image_size => Ok(self),
            Size { width, height } => Err(invalid(format!(
                "images come out {width}×{height}, but vision_config.image_size in config.json is {image_size}"
            ))),
        }
    }

    /// The output's channels, height and width.
    pub fn output_shape(&self) -> [usize; 3] {
        [3, self.crop.height, self.crop.width]
    }

    /// Checks from the header alone that an image is of a known format and within the limits. What follows the header
    /// may still turn out damaged.
    pub fn inspect(&self, bytes: &[u8], limits: Limits) -> Result<(), ImageError> {
        open(bytes, limits).map(drop)
    }

    /// What the bytes that come out stand for.
    pub(super) fn normalisation(&self) -> Normalisation {
        self.normalisation
    }

    /// Decodes one image and returns what the tower sees of it, channel by channel, row by row: `3 · height · width`
    /// bytes. A picture smaller than the crop is centred on black.
    pub fn process(&self, bytes: &[u8], limits: Limits) -> Result<Vec<u8>, ImageError> {
        let (image, target) = decode(bytes, limits, |size| self.resize.target(size))?;
        let from = Size {
            width: image.width() as usize,
            height: image.height() as usize,
        };
        let columns = Cut::center(target.width, self.crop.width);
        let rows = Cut::center(target.height, self.crop.height);
        let window = Window {
            columns: columns.kept(),
            rows: rows.kept(),
        };
        let area = self.crop.width * self.crop.height;
        let mut out = vec![0; 3 * area];
        let scaling = Scaling {
            from,
            to: target,
            filter: self.filter,
        };
        let (red, others) = out.split_at_mut(area);
        let (green, blue) = others.split_at_mut(area);
        let vectors = Vectors::new();
        resize(&image, scaling, &window, |(row, column), pixels| {
            let start = (rows.padding + row) * self.crop.width + columns.padding + column;
            let at = start..start + pixels.len();
            vectors.split(
                pixels,
                [&mut red[at.clone()], &mut green[at.clone()], &mut blue[at]],
            );
        });
        Ok(out)
    }
}

impl Resize {
    fn target(self, size: Size) -> Size {
        match self {
            Self::Keep => size,
            Self::Exact(target) => target,
            Self::ShortestEdge(edge) => {
                // transformers computes `int(edge * long / short)`: the product is exact, the quotient is cut off.
                let long = |long: usize, short: usize| (edge as u64 * long as u64 / short as u64) as usize;
                if size.width <= size.height {
                    Size {
                        width: edge,
                        height: long(size.height, size.width),
                    }
                } else {
                    Size {
                        width: long(size.width, size.height),
                        height: edge,
                    }
                }
            }
        }
    }
}

/// Along one axis, what a centre crop keeps of a picture and where it puts it.
struct Cut {
    start: usize,
    length: usize,
    padding: usize,
}

impl Cut {
    fn center(available: usize, wanted: usize) -> Self {
        Self {
            start: available.saturating_sub(wanted) / 2,
            length: available.min(wanted),
            padding: wanted.saturating_sub(available) / 2,
        }
    }

    fn kept(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.length
    }
}

impl Normalisation {
    /// Whether all that bytes stand for is finite in f32.
    fn is_finite(&self) -> bool {
        let of_channels = self.scale.iter().zip(&self.shift);
        let mut ends = of_channels.flat_map(|(scale, shift)| [*shift, 255.0 * scale + shift]);
        ends.all(|value| (value as f32).is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::file::{OPENAI_MEAN, OPENAI_STD};
    use super::*;

    /// What bytes stand for, as `transformers` would have it: rescaled, then normalised.
    fn assert_stands_for(config: &str, factor: f64, mean: [f64; 3], std: [f64; 3]) {
        let processor = ImageProcessor::from_json(config.as_bytes()).expect(config);
        let Normalisation { scale, shift } = processor.normalisation();
        for channel in 0..3 {
            for byte in [0.0, 1.0, 128.0, 255.0] {
                let wanted = (byte * factor - mean[channel]) / std[channel];
                let found = scale[channel] * byte + shift[channel];
                assert!((found - wanted).abs() < 1e-9, "{config}: {found}, not {wanted}");
            }
        }
    }

    #[test]
    fn bytes_stand_for_what_the_configuration_says() {
        assert_stands_for("{}", 1.0 / 255.0, OPENAI_MEAN, OPENAI_STD);
        assert_stands_for(r#"{"do_normalize": false}"#, 1.0 / 255.0, [0.0; 3], [1.0; 3]);
        let config =
            r#"{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "rescale_factor": 0.0078}"#;
        assert_stands_for(config, 0.0078, [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]);
        let config =
            r#"{"do_rescale": false, "rescale_factor": 7, "image_mean": 120, "image_std": [60, 70, 80]}"#;
        assert_stands_for(config, 1.0, [120.0; 3], [60.0, 70.0, 80.0]);
    }

    #[test]
    fn bytes_that_would_stand_for_nothing_finite_are_refused() {
        for config in [
            r#"{"image_std": [0.3, 0.0, 0.3]}"#,
            r#"{"image_mean": 0, "image_std": 0}"#,
            r#"{"rescale_factor": 1e37, "image_std": 0.001}"#,
            r#"{"rescale_factor": 0, "image_mean": 1e30, "image_std": 1e-30}"#,
        ] {
            let error = ImageProcessor::from_json(config.as_bytes()).expect_err(config);
            assert!(error.to_string().contains("not finite"), "{config}: {error}");
        }
    }
}
