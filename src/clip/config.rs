//! `config.json` of a Hugging Face CLIP directory, checked before any tensor is touched.
//!
//! Owner: the loader; nothing else parses these files. Invariant: a `ClipConfig` that exists is consistent in
//! itself (head counts divide widths, sizes are positive), so that the towers compute without checks. Omitted
//! fields take the defaults of `transformers`' `CLIPConfig`, which are those of ViT-B/32.

use clipkeep_towers::{ImageShape, TextShape, Transformer};
use serde::Deserialize;

use super::error::BackboneError;

/// The file this module parses, as messages name it.
pub(super) const FILE: &str = "config.json";

/// The value of `eos_token_id` that marks checkpoints from before transformers' correction of it: their texts are
/// pooled at the largest token id instead.
const LEGACY_EOS: u32 = 2;

/// A CLIP model's dimensions.
#[derive(Clone, Debug)]
pub(super) struct ClipConfig {
    pub(super) vision: VisionConfig,
    pub(super) text: TextConfig,
    /// Width of features and embeddings.
    pub(super) projection_dim: usize,
}

/// What both transformer stacks share.
#[derive(Clone, Copy, Debug)]
pub(super) struct EncoderConfig {
    pub(super) width: usize,
    pub(super) mlp_width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) activation: Activation,
    pub(super) layer_norm_eps: f32,
}

impl EncoderConfig {
    fn transformer(&self) -> Transformer {
        Transformer {
            width: self.width,
            mlp_width: self.mlp_width,
            layers: self.layers,
            heads: self.heads,
            activation: match self.activation {
                Activation::QuickGelu => clipkeep_towers::Activation::QuickGelu,
                Activation::Gelu => clipkeep_towers::Activation::Gelu,
            },
            layer_norm_epsilon: self.layer_norm_eps,
        }
    }
}

/// The image tower's dimensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct VisionConfig {
    pub(super) encoder: EncoderConfig,
    /// Edge of the square input, in pixels.
    pub(super) image_size: usize,
    /// Edge of a square patch, in pixels.
    pub(super) patch_size: usize,
}

impl VisionConfig {
    /// Patches along one edge; a remainder of the image is not seen, as with a convolution without padding.
    pub(super) fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens an image: the class token and the patches.
    pub(super) fn tokens(&self) -> usize {
        self.grid().pow(2) + 1
    }
}

/// The text tower's dimensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextConfig {
    pub(super) encoder: EncoderConfig,
    pub(super) vocabulary: usize,
    /// Longest sequence in tokens, start and end included.
    pub(super) context_length: usize,
    pub(super) pooling: Pooling,
}

/// Which token's state stands for the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    /// The first token with this id.
    FirstOf(u32),
    /// The first token with the largest id (checkpoints whose `eos_token_id` is 2).
    LargestId,
}

/// The activation between the two layers of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Activation {
    /// `x · sigmoid(1.702 x)`, OpenAI's.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// `x · Φ(x)` with the exact error function, as LAION's checkpoints use it.
    #[serde(rename = "gelu")]
    Gelu,
}

impl ClipConfig {
    /// The image tower's dimensions, as [`clipkeep_towers`] wants them.
    pub(super) fn image_shape(&self) -> ImageShape {
        ImageShape {
            image_size: self.vision.image_size,
            patch_size: self.vision.patch_size,
            transformer: self.vision.encoder.transformer(),
            dim: self.projection_dim,
        }
    }

    /// The text tower's.
    pub(super) fn text_shape(&self) -> TextShape {
        TextShape {
            context_length: self.text.context_length,
            transformer: self.text.encoder.transformer(),
            dim: self.projection_dim,
        }
    }

    /// Parses and checks `config.json`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BackboneError> {
        let file: ConfigFile =
            serde_json::from_slice(bytes).map_err(|source| BackboneError::Json { file: FILE, source })?;
        if let Some(kind) = file.model_type.as_deref().filter(|kind| *kind != "clip") {
            return Err(invalid(format!("model_type is `{kind}`, not `clip`")));
        }
        // Old files hold a `*_config_dict` beside each `*_config`; transformers lets the former win.
        let vision = file.vision_config_dict.or(file.vision_config).unwrap_or_default();
        let text = file.text_config_dict.or(file.text_config).unwrap_or_default();
        if file.projection_dim == 0 {
            return Err(invalid("projection_dim is 0".to_owned()));
        }
        Ok(Self {
            vision: vision.check()?,
            text: text.check()?,
            projection_dim: file.projection_dim,
        })
    }
}

/// `config.json` as it lies on disk.
#[derive(Deserialize)]
struct ConfigFile {
    model_type: Option<String>,
    vision_config: Option<VisionSection>,
    vision_config_dict: Option<VisionSection>,
    text_config: Option<TextSection>,
    text_config_dict: Option<TextSection>,
    #[serde(default = "default_projection_dim")]
    projection_dim: usize,
}

fn default_projection_dim() -> usize {
    512
}

/// `vision_config`, with transformers' defaults.
#[derive(Deserialize)]
#[serde(default)]
struct VisionSection {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    image_size: Edge,
    patch_size: Edge,
    hidden_act: Activation,
    layer_norm_eps: f32,
}

impl Default for VisionSection {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: Edge::One(224),
            patch_size: Edge::One(32),
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl VisionSection {
    fn check(self) -> Result<VisionConfig, BackboneError> {
        let image_size = self.image_size.square("vision_config.image_size")?;
        let patch_size = self.patch_size.square("vision_config.patch_size")?;
        if patch_size == 0 || patch_size > image_size {
            return Err(invalid(format!(
                "vision_config.patch_size {patch_size} does not fit into image_size {image_size}"
            )));
        }
        if self.num_channels != 3 {
            return Err(invalid(format!(
                "vision_config.num_channels is {}; only 3 (RGB) is supported",
                self.num_channels
            )));
        }
        let encoder = EncoderConfig {
            width: self.hidden_size,
            mlp_width: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        };
        encoder.check("vision_config")?;
        Ok(VisionConfig {
            encoder,
            image_size,
            patch_size,
        })
    }
}

/// `text_config`, with transformers' defaults.
#[derive(Deserialize)]
#[serde(default)]
struct TextSection {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: Activation,
    layer_norm_eps: f32,
    eos_token_id: u32,
}

impl Default for TextSection {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl TextSection {
    fn check(self) -> Result<TextConfig, BackboneError> {
        // A start, an end and at least one token between them.
        if self.max_position_embeddings < 3 {
            return Err(invalid(format!(
                "text_config.max_position_embeddings is {}; at least 3 are needed",
                self.max_position_embeddings
            )));
        }
        let pooling = match self.eos_token_id {
            LEGACY_EOS => Pooling::LargestId,
            id => Pooling::FirstOf(id),
        };
        if let Pooling::FirstOf(id) = pooling
            && id as usize >= self.vocab_size
        {
            return Err(invalid(format!(
                "text_config.eos_token_id {id} lies outside the vocabulary of {}",
                self.vocab_size
            )));
        }
        let encoder = EncoderConfig {
            width: self.hidden_size,
            mlp_width: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        };
        encoder.check("text_config")?;
        Ok(TextConfig {
            encoder,
            vocabulary: self.vocab_size,
            context_length: self.max_position_embeddings,
            pooling,
        })
    }
}

impl EncoderConfig {
    fn check(&self, section: &str) -> Result<(), BackboneError> {
        let Self {
            width,
            mlp_width,
            layers,
            heads,
            layer_norm_eps,
            ..
        } = *self;
        if width == 0 || mlp_width == 0 || layers == 0 || heads == 0 {
            return Err(invalid(format!(
                "{section}: hidden_size {width}, intermediate_size {mlp_width}, num_hidden_layers {layers} and \
                 num_attention_heads {heads} must all be positive"
            )));
        }
        if !width.is_multiple_of(heads) {
            return Err(invalid(format!(
                "{section}.hidden_size {width} is not a multiple of num_attention_heads {heads}"
            )));
        }
        if !(layer_norm_eps.is_finite() && layer_norm_eps >= 0.0) {
            return Err(invalid(format!(
                "{section}.layer_norm_eps {layer_norm_eps} is not a small positive number"
            )));
        }
        Ok(())
    }
}

/// A length, or height and width; only squares are supported.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Edge {
    One(usize),
    Two([usize; 2]),
}

impl Edge {
    fn square(self, field: &str) -> Result<usize, BackboneError> {
        match self {
            Self::One(edge) => Ok(edge),
            Self::Two([height, width]) if height == width => Ok(height),
            Self::Two([height, width]) => Err(invalid(format!("{field} {height}×{width} is not square"))),
        }
    }
}

fn invalid(reason: String) -> BackboneError {
    BackboneError::Invalid { file: FILE, reason }
}
