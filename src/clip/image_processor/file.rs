//! The configuration of an image processor as it lies on disk, and what it comes to.
//!
//! Owner: the image processor. Invariant: what was checked gives images of one size, of finite pixels.

use serde::Deserialize;

use super::{FILE, ImageProcessor, Normalisation, Resize};
use crate::clip::error::BackboneError;
use crate::clip::resize::{Filter, Size};

/// `preprocessor_config.json` as it lies on disk. Omitted fields, and fields that are null, take
/// `CLIPImageProcessor`'s defaults. `do_convert_rgb` is not read: the tower takes RGB only, so the conversion always
/// happens, and where it is not asked for it would change nothing but turn failures into results.
#[derive(Deserialize)]
pub(super) struct PreprocessorFile {
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
pub(super) struct ProcessorFile {
    pub(super) image_processor: PreprocessorFile,
}

impl PreprocessorFile {
    /// What it says, if that can be done.
    pub(super) fn check(self) -> Result<ImageProcessor, BackboneError> {
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
            normalisation: self.normalisation()?,
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

    fn normalisation(&self) -> Result<Normalisation, BackboneError> {
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
        let normalisation = Normalisation {
            scale: std.map(|std| factor / std),
            shift: std::array::from_fn(|channel| -mean[channel] / std[channel]),
        };
        if normalisation.is_finite() {
            return Ok(normalisation);
        }
        Err(invalid(format!(
            "rescale_factor {factor}, image_mean {mean:?} and image_std {std:?} give pixels that are not finite"
        )))
    }
}

/// No CLIP comes near this; it keeps a damaged file from asking for gigabytes.
const MAX_EDGE: usize = 8192;

/// `transformers`' `OPENAI_CLIP_MEAN`.
pub(super) const OPENAI_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// `transformers`' `OPENAI_CLIP_STD`.
pub(super) const OPENAI_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

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

pub(super) fn invalid(reason: String) -> BackboneError {
    BackboneError::Invalid { file: FILE, reason }
}
