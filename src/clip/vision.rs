//! The image tower: pixels to features.
//!
//! Owner: the backbone. Source: `transformers`' `CLIPVisionModel` with `visual_projection`. Invariant: an image's
//! features do not depend on the images that share its batch; on the CPU bit for bit, because each image is computed
//! alone (see `Backbone::encode_images`).

use candle_core::{Result, Tensor};

use super::config::ClipConfig;
use super::encoder::{Encoder, LayerNorm};
use super::error::BackboneError;
use super::fused;
use super::weights::Weights;

/// The end of the image tower: how hidden states become features. The tensors are the tower's own.
#[derive(Debug, Clone)]
pub struct ImageReadout {
    /// t, tokens an image: the class token, then the patches.
    pub tokens: usize,
    /// Attention heads of the tower's layers.
    pub heads: usize,
    /// γ of the layer norm, `(width)`.
    pub norm_weight: Tensor,
    /// β of the layer norm, `(width)`.
    pub norm_bias: Tensor,
    /// ε of the layer norm.
    pub norm_epsilon: f32,
    /// `(width, dim)`: features are its product with the normalised class token.
    pub projection: Tensor,
}

/// The image tower's weights.
pub(super) struct VisionTower {
    patch_size: usize,
    grid: usize,
    tokens: usize,
    heads: usize,
    /// `(3 · patch², width)`: the patch convolution as a matrix.
    patch_weight: Tensor,
    /// `(1, 1, width)`: the class token with its position added.
    class_token: Tensor,
    /// `(patches, width)`.
    positions: Tensor,
    pre_norm: LayerNorm,
    encoder: Encoder,
    post_norm: LayerNorm,
    /// `(width, dim)`.
    projection: Tensor,
}

impl VisionTower {
    /// Takes `vision_model.…` and `visual_projection`.
    pub(super) fn load(weights: &mut Weights, clip: &ClipConfig) -> std::result::Result<Self, BackboneError> {
        let config = &clip.vision;
        let (width, patch, grid) = (config.encoder.width, config.patch_size, config.grid());
        let patches = grid * grid;
        let patch_weight = weights.take(
            "vision_model.embeddings.patch_embedding.weight",
            &[width, 3, patch, patch],
        )?;
        let class = weights.take("vision_model.embeddings.class_embedding", &[width])?;
        let positions = weights.take(
            "vision_model.embeddings.position_embedding.weight",
            &[patches + 1, width],
        )?;
        let projection = weights.take("visual_projection.weight", &[clip.projection_dim, width])?;
        Ok(Self {
            patch_size: patch,
            grid,
            tokens: config.tokens(),
            heads: config.encoder.heads,
            patch_weight: patch_weight.reshape((width, ()))?.t()?.contiguous()?,
            class_token: (class + positions.get(0)?)?.reshape((1, 1, width))?,
            positions: positions.narrow(0, 1, patches)?.contiguous()?,
            // The missing letters are in the checkpoints.
            pre_norm: LayerNorm::load(weights, "vision_model.pre_layrnorm", &config.encoder)?,
            encoder: Encoder::load(weights, "vision_model.encoder", &config.encoder)?,
            post_norm: LayerNorm::load(weights, "vision_model.post_layernorm", &config.encoder)?,
            projection: projection.t()?.contiguous()?,
        })
    }

    /// `(n, 3, image_size, image_size)` pixels to the last layer's hidden states `(n, t, width)`, class token first.
    pub(super) fn states(&self, pixels: &Tensor) -> Result<Tensor> {
        let n = pixels.dim(0)?;
        let patches = self.unfold(pixels)?.broadcast_matmul(&self.patch_weight)?;
        let patches = fused::add_repeated(patches, &self.positions)?;
        let class = self.class_token.broadcast_as((n, 1, self.class_token.dim(2)?))?;
        let tokens = Tensor::cat(&[&class, &patches], 1)?;
        self.encoder.forward(self.pre_norm.forward(&tokens)?, None)
    }

    /// Hidden states `(n, t, width)` to features `(n, dim)`: the class token, normalised and projected.
    pub(super) fn features(&self, states: &Tensor) -> Result<Tensor> {
        let pooled = states.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        self.post_norm.forward(&pooled)?.matmul(&self.projection)
    }

    /// What [`Self::features`] does, for whoever trains in its place.
    pub(super) fn readout(&self) -> ImageReadout {
        ImageReadout {
            tokens: self.tokens,
            heads: self.heads,
            norm_weight: self.post_norm.weight.clone(),
            norm_bias: self.post_norm.bias.clone(),
            norm_epsilon: self.post_norm.eps,
            projection: self.projection.clone(),
        }
    }

    /// Patches as rows, `(n, grid², 3 · patch²)`, each in the order of the convolution's weights. A product with
    /// these is the convolution, and much faster on the CPU.
    fn unfold(&self, pixels: &Tensor) -> Result<Tensor> {
        let (n, patch, grid) = (pixels.dim(0)?, self.patch_size, self.grid);
        let seen = pixels.narrow(2, 0, grid * patch)?.narrow(3, 0, grid * patch)?;
        let blocks = seen
            .reshape((n, 3, grid, patch, grid, patch))?
            .permute((0, 2, 4, 1, 3, 5))?;
        blocks.reshape((n, grid * grid, 3 * patch * patch))
    }
}
