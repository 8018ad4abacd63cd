//! Encoded images to normalised pixels, as `preprocessor_config.json` says, or the part of
//! `processor_config.json` that stands in its place.
//!
//! Owner: shared by the threads that decode; it has no state. Source: `transformers`' `CLIPImageProcessor`: to RGB,
//! resize, centre crop, rescale, normalise. Invariant: the output has the size that the image tower takes; this is
//! checked at load, so no request can fail over it.

use serde::Deserialize;

use super::decode::{ImageError, Limits, decode, open};
use super::error::BackboneError;
use super::resize::{Filter, Size, Window, resize};

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
    /// The output for each byte, per channel.
    levels: Box<[[f32; 256]; 3]>,
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

    /// Decodes one image and returns its normalised pixels, channel by channel, row by row: `3 · height · width`
    /// numbers. A picture smaller than the crop is centred on black.
    pub fn process(&self, bytes: &[u8], limits: Limits) -> Result<Vec<f32>, ImageError> {
        let (image, target) = decode(bytes, limits, |size| self.resize.target(size))?;
        let size = Size {
            width: image.width() as usize,
            height: image.height() as usize,
        };
        let columns = Cut::center(target.width, self.crop.width);
        let rows = Cut::center(target.height, self.crop.height);
        let window = Window {
            columns: columns.kept(),
            rows: rows.kept(),
        };
        let kept = resize::<3>(&image, size, target, &window, self.filter);
        Ok(self.normalise(&kept, &columns, &rows))
    }

    fn normalise(&self, kept: &[u8], columns: &Cut, rows: &Cut) -> Vec<f32> {
        let area = self.crop.width * self.crop.height;
        let mut out = Vec::with_capacity(3 * area);
        for (channel, levels) in self.levels.iter().enumerate() {
            out.resize(out.len() + area, levels[0]);
            let plane = &mut out[channel * area..];
            let lines = plane.chunks_exact_mut(self.crop.width).skip(rows.padding);
            for (line, row) in lines.zip(kept.chunks_exact(columns.length.max(1) * 3)) {
                for (out, pixel) in line[columns.padding..].iter_mut().zip(row.chunks_exact(3)) {
                    *out = levels[usize::from(pixel[channel])];
                }
            }
        }
        out
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

/// `preprocessor_config.json` as it lies on disk. Omitted fields, and fields that are null, take
/// `CLIPImageProcessor`'s defaults. `do_convert_rgb` is not read: the tower takes RGB only, so the conversion always
/// happens, and where it is not asked for it would change nothing but turn failures into results.
#[derive(Deserialize)]
struct PreprocessorFile {
    do_resize: Option<bool>,
    size: Option<SizeField>,
    default_to_square: Option<bool>,
    resample: Option<u64>,
    do_center_crop: Option<bool>,
    crop_size: Option<SizeField>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<PerChannel>,
    image_std: Option<PerChannel>,
    do_pad: Option<bool>,
}

/// The part of `processor_config.json` that is read.
#[derive(Deserialize)]
struct ProcessorFile {
    image_processor: PreprocessorFile,
}

impl PreprocessorFile {
    fn check(self) -> Result<ImageProcessor, BackboneError> {
        let number = self.resample.unwrap_or(3);
        let filter = Filter::from_pillow(number)
            .ok_or_else(|| invalid(format!("resample {number} is none of Pillow's filters (0 to 5)")))?;
        if self.do_pad == Some(true) {
            return Err(invalid("do_pad is not supported".to_owned()));
        }
        let resize = if self.do_resize.unwrap_or(true) {
            self.resize()
        } else {
            Resize::Keep
        };
        let crop = if self.do_center_crop.unwrap_or(true) {
            self.crop()?
        } else {
            uncropped(resize)?
        };
        let edges = match resize {
            Resize::Keep => vec![crop.width, crop.height],
            Resize::ShortestEdge(edge) => vec![edge, crop.width, crop.height],
            Resize::Exact(size) => vec![size.width, size.height, crop.width, crop.height],
        };
        if let Some(edge) = edges.into_iter().find(|edge| !(1..=MAX_EDGE).contains(edge)) {
            return Err(invalid(format!(
                "size or crop_size {edge} is not between 1 and {MAX_EDGE}"
            )));
        }
        Ok(ImageProcessor {
            resize,
            filter,
            crop,
            levels: self.levels()?,
        })
    }

    fn resize(&self) -> Resize {
        match self.size.unwrap_or(SizeField::Edge(224)) {
            SizeField::Edge(edge) if self.default_to_square == Some(true) => Resize::Exact(square(edge)),
            SizeField::Edge(shortest_edge) | SizeField::Shortest(ShortestEdge { shortest_edge }) => {
                Resize::ShortestEdge(shortest_edge)
            }
            SizeField::Pair([height, width]) | SizeField::Exact(ExactSize { height, width }) => {
                Resize::Exact(Size { width, height })
            }
        }
    }

    fn crop(&self) -> Result<Size, BackboneError> {
        match self.crop_size.unwrap_or(SizeField::Edge(224)) {
            SizeField::Edge(edge) => Ok(square(edge)),
            SizeField::Pair([height, width]) | SizeField::Exact(ExactSize { height, width }) => {
                Ok(Size { width, height })
            }
            SizeField::Shortest(_) => Err(invalid(
                "crop_size needs height and width, not shortest_edge".to_owned(),
            )),
        }
    }

    fn levels(&self) -> Result<Box<[[f32; 256]; 3]>, BackboneError> {
        let factor = if self.do_rescale.unwrap_or(true) {
            self.rescale_factor.unwrap_or(1.0 / 255.0)
        } else {
            1.0
        };
        let (mean, std) = if self.do_normalize.unwrap_or(true) {
            (
                self.image_mean.as_ref().map_or(OPENAI_MEAN, PerChannel::values),
                self.image_std.as_ref().map_or(OPENAI_STD, PerChannel::values),
            )
        } else {
            ([0.0; 3], [1.0; 3])
        };
        let level =
            |channel: usize, byte: usize| ((byte as f64 * factor - mean[channel]) / std[channel]) as f32;
        let levels: [[f32; 256]; 3] =
            std::array::from_fn(|channel| std::array::from_fn(|byte| level(channel, byte)));
        if levels.iter().flatten().any(|level| !level.is_finite()) {
            return Err(invalid(format!(
                "rescale_factor {factor}, image_mean {mean:?} and image_std {std:?} give pixels that are not finite"
            )));
        }
        Ok(Box::new(levels))
    }
}

/// No CLIP comes near this; it keeps a damaged file from asking for gigabytes.
const MAX_EDGE: usize = 8192;

/// `transformers`' `OPENAI_CLIP_MEAN`.
const OPENAI_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// `transformers`' `OPENAI_CLIP_STD`.
const OPENAI_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// A size in any of the forms that transformers' `get_size_dict` takes and CLIP's processor knows.
#[derive(Clone, Copy, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number, [height, width], {height, width} or {shortest_edge}"
)]
enum SizeField {
    Edge(usize),
    Pair([usize; 2]),
    Exact(ExactSize),
    Shortest(ShortestEdge),
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExactSize {
    height: usize,
    width: usize,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShortestEdge {
    shortest_edge: usize,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PerChannel {
    One(f64),
    Three([f64; 3]),
}

impl PerChannel {
    fn values(&self) -> [f64; 3] {
        match self {
            Self::One(value) => [*value; 3],
            Self::Three(values) => *values,
        }
    }
}

/// Without a crop, only an exact size gives images of one size.
fn uncropped(resize: Resize) -> Result<Size, BackboneError> {
    match resize {
        Resize::Exact(size) => Ok(size),
        Resize::Keep | Resize::ShortestEdge(_) => Err(invalid(
            "without do_center_crop, size needs height and width: images would differ in size".to_owned(),
        )),
    }
}

fn square(edge: usize) -> Size {
    Size {
        width: edge,
        height: edge,
    }
}

fn invalid(reason: String) -> BackboneError {
    BackboneError::Invalid { file: FILE, reason }
}
