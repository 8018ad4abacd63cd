//! Images to rows through the engine, once each, as a job encodes its examples.
//!
//! ```text
//! pictures ─▶ read ─▶ decode pool ─▶ chunks ─▶ device, at low priority ─▶ float16 rows
//! ```
//!
//! As in a job, an image that cannot be used is left out and named; the rest is evaluated. Files in memory are bounded by
//! the images under decoding, pixels by two chunks; what stays is a row an image.

use candle_core::{Device, Tensor};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use half::f16;

use super::data::{Data, Rows};
use super::order::ClassOrder;
use super::pictures::{Picture, Pictures, PicturesError};
use crate::adapter::{Prompts, embedding};
use crate::domain::{Anchors, Features, Label, Reads, Split};
use crate::engine::{Asked, Engine, EngineError, Looked, Priority};

/// Images that are decoded at a time, or wait for it.
const DECODING: usize = 16;

/// Images that are handed to the device together.
const CHUNK: usize = 32;

/// Why images were not encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodingError {
    /// They cannot be read.
    #[error(transparent)]
    Pictures(#[from] PicturesError),
    /// The engine failed.
    #[error("cannot encode")]
    Engine(#[from] EngineError),
    /// No image of a class could be used.
    #[error("no image of class {class} can be used; of {first}: {why}")]
    Unusable {
        /// The class.
        class: Label,
        /// One of its images.
        first: String,
        /// What is wrong with it.
        why: String,
    },
    /// No test image could be used.
    #[error("no test image can be used")]
    NoTest,
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

/// What is wanted of images.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Beside features, which are always encoded, tokens where a strategy reads them.
    pub reads: Reads,
    /// What stands for a class.
    pub anchors: Anchors,
    /// Prompt templates; each holds `{}` once.
    pub templates: &'a [String],
}

/// Encoded images.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Their rows.
    pub data: Data,
    /// The images that were left out, each with the reason.
    pub left_out: Vec<String>,
}

/// Encodes all images and what stands for their classes; `encoded` hears how many more are done.
///
/// # Errors
/// [`EncodingError`]; not when an image cannot be decoded, but when no image of a class is left.
pub async fn encode(
    mut pictures: Pictures,
    engine: &Engine,
    wanted: &Wanted<'_>,
    encoded: &mut dyn FnMut(u64),
) -> Result<Encoded, EncodingError> {
    let classes = pictures.classes().to_vec();
    let asked = &match wanted.reads {
        Reads::Features => Asked::Row(Reads::Features),
        Reads::Tokens => Asked::Rows,
    };
    let decoded = stream::iter(pictures.all())
        .map(|picture| {
            let read = pictures.read(picture);
            async move {
                let (name, bytes) = read?;
                let image = match engine.look(bytes.into(), asked).await {
                    Ok(image) => Ok(image),
                    Err(EngineError::Image(error)) => Err(causes(&error)),
                    Err(error) => return Err(EncodingError::Engine(error)),
                };
                Ok(Decoded { picture, name, image })
            }
        })
        .buffered(DECODING);
    let chunks = decoded
        .chunks(CHUNK)
        .map(|chunk| async move { rows(engine, chunk.into_iter().collect::<Result<_, _>>()?).await })
        .buffered(2);
    let mut chunks = std::pin::pin!(chunks);
    let mut sorted = Sorted {
        dim: engine.row_width(Reads::Features),
        ..Sorted::default()
    };
    while let Some(chunk) = chunks.try_next().await? {
        encoded(chunk.len() as u64);
        for row in chunk {
            sorted.add(row);
        }
    }
    sorted.finish(engine, &classes, wanted).await
}

/// The text tower before all classes in an order, in the words of the first template.
///
/// # Errors
/// As [`Engine::prompts`].
pub async fn prompts(
    engine: &Engine,
    classes: &[Label],
    order: ClassOrder,
    template: &str,
) -> Result<std::sync::Arc<dyn Prompts>, EngineError> {
    let permutation = order.permutation(classes.len());
    let words = permutation.iter().map(|class| classes[*class as usize].words());
    engine.prompts(words.collect(), template.to_owned()).await
}

/// An image, or why it is none.
struct Decoded {
    picture: Picture,
    name: String,
    image: Result<Looked, String>,
}

/// An image's features, then its tokens where they are wanted; or why it has none.
struct Row {
    picture: Picture,
    name: String,
    values: Result<Features, String>,
}

async fn rows(engine: &Engine, chunk: Vec<Decoded>) -> Result<Vec<Row>, EncodingError> {
    let mut images = Vec::with_capacity(chunk.len());
    let mut waiting = Vec::with_capacity(chunk.len());
    for decoded in chunk {
        let why = decoded.image.map(|image| images.push(image));
        waiting.push((decoded.picture, decoded.name, why));
    }
    let outputs = engine.encode(images, Priority::Background).await?;
    let mut outputs = outputs.into_iter();
    let row = |(picture, name, why): (Picture, String, Result<(), String>)| {
        let values = why.and_then(|()| {
            let values = outputs.next().map(|output| output.values).unwrap_or_default();
            let out_of_range = || "its features leave the range of float16".to_owned();
            Features::from_f32(&values).ok_or_else(out_of_range)
        });
        Row {
            picture,
            name,
            values,
        }
    };
    Ok(waiting.into_iter().map(row).collect())
}

/// Rows of both parts.
#[derive(Default)]
struct Sorted {
    /// D.
    dim: usize,
    train: Part,
    test: Part,
    left_out: Vec<LeftOut>,
}

struct LeftOut {
    picture: Picture,
    name: String,
    why: String,
}

#[derive(Default)]
struct Part {
    features: Vec<f16>,
    tokens: Vec<f16>,
    labels: Vec<u32>,
}

impl Sorted {
    fn add(&mut self, row: Row) {
        let Row {
            picture,
            name,
            values,
        } = row;
        let part = match picture.part {
            Split::Train => &mut self.train,
            Split::HeldOut => &mut self.test,
        };
        match values {
            Ok(values) => {
                let mut values = values.values().map(f16::from_f32);
                part.features.extend(values.by_ref().take(self.dim));
                part.tokens.extend(values);
                part.labels.push(picture.class);
            }
            Err(why) => self.left_out.push(LeftOut { picture, name, why }),
        }
    }

    async fn finish(
        self,
        engine: &Engine,
        classes: &[Label],
        wanted: &Wanted<'_>,
    ) -> Result<Encoded, EncodingError> {
        let train = self.train.rows()?;
        if let Some(class) = train.absent(classes.len()) {
            let example = self
                .left_out
                .into_iter()
                .find(|left| left.picture.class as usize == class && left.picture.part == Split::Train);
            let (first, why) = example.map(|left| (left.name, left.why)).unwrap_or_default();
            let class = classes[class].clone();
            return Err(EncodingError::Unusable { class, first, why });
        }
        if self.test.labels.is_empty() {
            return Err(EncodingError::NoTest);
        }
        let data = Data {
            anchors: anchors(engine, classes, &train, wanted).await?,
            scale: engine.info().logit_scale,
            readout: Some(engine.readout().clone()),
            test: self.test.rows()?,
            train,
        };
        let left_out = self.left_out.into_iter();
        Ok(Encoded {
            data,
            left_out: left_out
                .map(|left| format!("{}: {}", left.name, left.why))
                .collect(),
        })
    }
}

impl Part {
    fn rows(self) -> candle_core::Result<Rows> {
        let count = self.labels.len();
        let matrix = |values: Vec<f16>| {
            let width = values.len() / count.max(1);
            Tensor::from_vec(values, (count, width), &Device::Cpu)
        };
        let tokens = (!self.tokens.is_empty()).then_some(self.tokens);
        Ok(Rows {
            features: matrix(self.features)?,
            tokens: tokens.map(matrix).transpose()?,
            labels: self.labels,
        })
    }
}

/// What stands for the classes, as unit rows (C, D) on the engine's device.
async fn anchors(
    engine: &Engine,
    classes: &[Label],
    train: &Rows,
    wanted: &Wanted<'_>,
) -> Result<Tensor, EncodingError> {
    let means = || {
        let features = train.features.to_dtype(candle_core::DType::F32)?;
        embedding::class_means(&features, &train.labels, classes.len())?.to_device(engine.device())
    };
    if wanted.anchors == Anchors::Examples {
        return Ok(means()?);
    }
    let words: Vec<String> = classes.iter().map(Label::words).collect();
    let texts = engine
        .anchors(&words, wanted.templates, Priority::Background)
        .await?;
    let texts = Tensor::new(texts, engine.device())?;
    Ok(match wanted.anchors {
        Anchors::Blend => embedding::blend(&texts, &means()?)?,
        Anchors::Text | Anchors::Examples => texts,
    })
}

/// An error and what caused it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
