//! The frozen CLIP: both towers, their tokenizer and image processor.
//!
//! Owner: one device thread; everybody else holds the tokenizer, the image processor, or a handle to that thread. A fit
//! besides holds handles on weights that it reads and cannot change: [`PromptTower`], [`ImageReadout`].
//! Invariants: weights never change; on the CPU a row of output depends on its own input alone, bit for bit, whatever
//! shares the batch: predictions that were recorded can be repeated exactly.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use clipkeep_towers::{self as packed, Pause};

use super::config::ClipConfig;
use super::dtype::Dtype;
use super::error::{BackboneError, EncodeError};
use super::folded::fold;
use super::hub;
use super::image_processor::ImageProcessor;
use super::images::Images;
use super::prompt::PromptTower;
use super::rows::{self, bytes, values};
use super::source::{BackboneFiles, BackboneSource};
use super::text::TextTower;
use super::tokenizer::ClipTokenizer;
use super::vision::ImageReadout;
use super::weights::Weights;
use crate::domain::{Digest, Reads};

/// The embedded backbone's name.
const EMBEDDED_NAME: &str = "clipkeep/mini-clip";

/// The frozen CLIP on its device.
pub struct Backbone {
    name: String,
    digest: Digest,
    config: ClipConfig,
    logit_scale: f32,
    images: Images,
    /// Packed weights, on a processor that they suit.
    packed_text: Option<Box<packed::TextTower>>,
    text: Arc<TextTower>,
    tokenizer: ClipTokenizer,
    image_processor: Arc<ImageProcessor>,
    device: Device,
}

/// What the image tower makes of n images of t tokens.
pub struct ImageStates {
    /// Features, not normalised, `(n, dim)`.
    pub features: Tensor,
    /// The last layer's hidden states before the closing norm, one after another, class token first: `(n, t · width)`.
    pub tokens: Tensor,
}

/// What is made of a checkpoint's tensors.
struct Parts {
    images: Images,
    texts: Texts,
    logit_scale: f32,
}

/// The text tower, and the same one packed, on a processor that it suits.
struct Texts {
    tower: TextTower,
    packed: Option<packed::TextTower>,
}

impl Parts {
    /// Both towers, beside one another.
    fn load(
        mut weights: Weights<'_>,
        config: &ClipConfig,
        device: &Device,
        dtype: Dtype,
    ) -> Result<Self, BackboneError> {
        let exponent = weights.scalar("logit_scale")?;
        let logit_scale = exponent.exp();
        if !(logit_scale.is_finite() && logit_scale > 0.0) {
            return Err(BackboneError::LogitScale(exponent));
        }
        let (mut of_images, mut of_texts) = weights.apart();
        let (images, texts) = rayon::join(
            || Images::load(&mut of_images, config, device, dtype),
            || Texts::load(&mut of_texts, config, device, dtype),
        );
        let (images, texts) = (images?, texts?);
        of_images.finish()?;
        of_texts.finish()?;
        Ok(Self {
            images,
            texts,
            logit_scale,
        })
    }
}

impl Texts {
    /// Takes `text_model.…` and `text_projection`.
    fn load(
        weights: &mut Weights<'_>,
        config: &ClipConfig,
        device: &Device,
        dtype: Dtype,
    ) -> Result<Self, BackboneError> {
        let tower = TextTower::load(weights, config)?;
        let mut packed = None;
        if device.is_cpu() {
            let tokens = values(&tower.spread_embeddings()?)?;
            let mut take = |key: &str, shape: &[usize]| weights.values(key, shape);
            packed = dtype.text_tower(config.text_shape(), &tokens, &mut take)?;
            if dtype.rounds() && packed.is_none() {
                tracing::warn!("the text tower's shape does not suit packed weights: it computes in f32");
            }
        }
        Ok(Self { tower, packed })
    }
}

impl Backbone {
    /// Loads a backbone that computes on `device`, images in `dtype`, and texts too where
    /// that is the processor; elsewhere these in f32. Weights are converted from whatever the file holds.
    pub async fn load(source: &BackboneSource, device: &Device, dtype: Dtype) -> Result<Self, BackboneError> {
        if dtype.is_whole() && !device.is_cpu() {
            return Err(BackboneError::WholeNumbers);
        }
        let name = name(source);
        let read: Box<dyn FnOnce() -> Result<BackboneFiles, BackboneError> + Send> = match source {
            BackboneSource::Embedded => Box::new(|| Ok(BackboneFiles::embedded())),
            BackboneSource::Directory(directory) => {
                let directory = directory.clone();
                Box::new(move || BackboneFiles::read(&directory))
            }
            BackboneSource::Hub(id) => {
                let fetched = hub::fetch(id).await.map_err(|source| BackboneError::Hub {
                    id: id.clone(),
                    source,
                })?;
                Box::new(move || BackboneFiles::read(&fetched))
            }
            BackboneSource::Random(shape) => {
                let dimensions = shape.dimensions();
                Box::new(move || BackboneFiles::random(&dimensions))
            }
        };
        let device = device.clone();
        // Reading, hashing and converting take seconds for a large model.
        let build = move || Self::build(name, &read()?, device, dtype);
        tokio::task::spawn_blocking(build)
            .await
            .unwrap_or(Err(BackboneError::Cancelled))
    }

    pub(super) fn build(
        name: String,
        files: &BackboneFiles,
        device: Device,
        dtype: Dtype,
    ) -> Result<Self, BackboneError> {
        let config = ClipConfig::parse(&files.config)?;
        let tokenizer = ClipTokenizer::parse(&files.tokenizer, &config.text)?;
        let (file, preprocessor) = &files.preprocessor;
        let image_processor = ImageProcessor::parse(file, preprocessor, config.vision.image_size)?;
        let load = || {
            let mut weights = files.tensors(&device)?;
            fold(&mut weights, &config, (file, image_processor.normalisation()))?;
            Parts::load(weights, &config, &device, dtype)
        };
        // Beside one another: each takes about a second for a large model.
        let (digest, parts) = rayon::join(|| files.digest(), load);
        // First of all: a file that is written to as it is read looks damaged, too.
        files.check_unchanged()?;
        let (parts, digest) = (parts?, digest?);
        let Parts {
            images,
            texts: Texts { tower, packed },
            logit_scale,
        } = parts;
        Ok(Self {
            name,
            digest,
            config,
            logit_scale,
            images,
            packed_text: packed.map(Box::new),
            text: Arc::new(tower),
            tokenizer,
            image_processor: Arc::new(image_processor),
            device,
        })
    }

    /// What people call it: the hub id, the directory's name, or `clipkeep/mini-clip`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 over weights, configuration, tokenizer and preprocessing: equal digests mean equal features
    /// on one machine, in one dtype.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Width of features and embeddings (`projection_dim`).
    pub fn dim(&self) -> usize {
        self.config.projection_dim
    }

    /// The factor from cosine similarity to logit: the exponential of the checkpoint's parameter.
    pub fn logit_scale(&self) -> f32 {
        self.logit_scale
    }

    /// Edge of the square input image, in pixels.
    pub fn image_size(&self) -> usize {
        self.config.vision.image_size
    }

    /// Longest text in tokens, start and end included.
    pub fn context_length(&self) -> usize {
        self.config.text.context_length
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The tokenizer, for whoever parses prompts.
    pub fn tokenizer(&self) -> ClipTokenizer {
        self.tokenizer.clone()
    }

    /// The image processor, for the pool that decodes.
    pub fn image_processor(&self) -> Arc<ImageProcessor> {
        Arc::clone(&self.image_processor)
    }

    /// Features of images, not normalised: `(n, 3, image_size, image_size)` bytes, as [`ImageProcessor::process`] gives them, to
    /// `(n, dim)` f32.
    pub fn encode_images(&self, pixels: &Tensor) -> Result<Tensor, EncodeError> {
        Ok(self.encode_tensor(pixels, Reads::Features)?.0)
    }

    /// What [`Self::encode_images`] gives, bit for bit, and what the image tower made of it, in one pass.
    pub fn encode_images_and_tokens(&self, pixels: &Tensor) -> Result<ImageStates, EncodeError> {
        let (features, tokens) = self.encode_tensor(pixels, Reads::Tokens)?;
        let tokens = tokens.expect("they were asked for");
        Ok(ImageStates { features, tokens })
    }

    fn encode_tensor(&self, pixels: &Tensor, reads: Reads) -> Result<(Tensor, Option<Tensor>), EncodeError> {
        let size = self.image_size();
        if !matches!(pixels.dims(), &[_, 3, height, width] if height == size && width == size) {
            return Err(EncodeError::PixelShape {
                found: pixels.dims().to_vec(),
                size,
            });
        }
        if pixels.dtype() != DType::U8 {
            return Err(EncodeError::PixelType(pixels.dtype()));
        }
        if let Some(encoded) = self.images.encode_resident(pixels, reads)? {
            return Ok(encoded);
        }
        let pixels = bytes(pixels)?;
        let images: Vec<&[u8]> = pixels.chunks_exact(3 * size * size).collect();
        self.encode_pixels(&images, reads, None)
    }

    /// Features of images, `(3, image_size, image_size)` bytes wherever they are, `(n, dim)`, and what the tower made of their tokens,
    /// `(n, t · width)`, if that is read. With a `pause` now and then, if there is one, where packed weights compute, in which
    /// others may be encoded.
    pub fn encode_pixels(
        &self,
        images: &[&[u8]],
        reads: Reads,
        pause: Option<Pause<'_>>,
    ) -> Result<(Tensor, Option<Tensor>), EncodeError> {
        let (n, size) = (images.len(), self.image_size());
        if let Some(wrong) = images.iter().find(|image| image.len() != 3 * size * size) {
            return Err(EncodeError::PixelShape {
                found: vec![n, wrong.len()],
                size,
            });
        }
        Ok(self.images.encode(images, reads, pause)?)
    }

    /// Whether images are encoded beside what else is computed: whoever begins some may use the features of others meanwhile, and
    /// does not wait for these.
    pub fn encodes_aside(&self) -> bool {
        self.images.is_aside()
    }

    /// Images that are encoded side by side, each by a thread of its own; one, where whatever computes does all of them together.
    pub fn images_abreast(&self) -> usize {
        self.images.abreast()
    }

    /// The end of the image tower, for whoever trains behind its last layer.
    pub fn image_readout(&self) -> ImageReadout {
        self.images.readout().clone()
    }

    /// What the image tower computes with: instructions of the processor, kernels of a GPU, or tensors. On a processor the text tower has
    /// the same ones wherever its shape suits them.
    pub fn instructions(&self) -> String {
        self.images.to_string()
    }

    /// The text tower, for whoever trains what stands before class names.
    pub fn prompt_tower(&self) -> PromptTower {
        PromptTower::new(Arc::clone(&self.text), self.tokenizer.clone())
    }

    /// Features of texts, not normalised: `n` lists of token ids to `(n, dim)` f32. Each list ends with the end token
    /// and holds at most `context_length` ids; see [`ClipTokenizer::encode`].
    pub fn encode_tokens(&self, ids: &[Vec<u32>]) -> Result<Tensor, EncodeError> {
        self.encode_tokens_pausing(ids, None)
    }

    /// As [`Self::encode_tokens`], with a `pause` now and then, if there is one, where packed weights compute, in which others
    /// may be encoded.
    pub fn encode_tokens_pausing(
        &self,
        ids: &[Vec<u32>],
        pause: Option<Pause<'_>>,
    ) -> Result<Tensor, EncodeError> {
        let pooled = ids
            .iter()
            .enumerate()
            .map(|(row, ids)| self.text.pooled_position(row, ids))
            .collect::<Result<Vec<_>, _>>()?;
        // What follows the pooled token has no influence.
        let texts: Vec<&[u32]> = ids
            .iter()
            .zip(&pooled)
            .map(|(ids, pooled)| &ids[..=*pooled])
            .collect();
        if let Some(tower) = &self.packed_text {
            let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
            let embeddings = values(&self.text.embeddings(&texts.concat())?)?;
            let features = tower.forward_pausing(&embeddings, &lengths, pause);
            return Ok(Tensor::from_vec(
                features,
                (texts.len(), self.dim()),
                &self.device,
            )?);
        }
        let features = rows::each(&self.device, texts.len(), |rows| {
            self.text.forward(&texts[rows.clone()], &pooled[rows])
        })?;
        Ok(rows::stacked(&features, self.dim(), &self.device)?)
    }
}

fn name(source: &BackboneSource) -> String {
    match source {
        BackboneSource::Embedded => EMBEDDED_NAME.to_owned(),
        BackboneSource::Hub(id) => id.clone(),
        BackboneSource::Random(_) => source.to_string(),
        BackboneSource::Directory(directory) => {
            let resolved = directory.canonicalize();
            let directory: &Path = resolved.as_deref().unwrap_or(directory);
            directory
                .file_name()
                .map_or_else(|| "local".to_owned(), |name| name.to_string_lossy().into_owned())
        }
    }
}
