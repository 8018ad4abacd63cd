//! The image tower in tensors, bytes to features: where [`clipkeep_towers`] does not suit its shape, and on a GPU in f32.
//!
//! Owner: the backbone. Source: `transformers`' `CLIPVisionModel` with `visual_projection`. Invariant: an image's
//! features do not depend on the images that share its batch; on the CPU bit for bit, because each image is computed
//! alone (see `Backbone::encode_images`).

use std::fmt;

use candle_core::{DType, Result, Tensor};
use clipkeep_towers::MIDDLE;

use super::config::ClipConfig;
use super::encoder::{Encoder, LayerNorm};
use super::error::BackboneError;
use super::fused;
use super::weights::Weights;

/// The end of the image tower: how hidden states become features.
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

impl ImageReadout {
    /// Takes `vision_model.post_layernorm` and `visual_projection`.
    pub(super) fn load(weights: &mut Weights, clip: &ClipConfig) -> std::result::Result<Self, BackboneError> {
        let encoder = &clip.vision.encoder;
        let norm = LayerNorm::load(weights, "vision_model.post_layernorm", encoder)?;
        let projection = weights.take("visual_projection.weight", &[clip.projection_dim, encoder.width])?;
        Ok(Self {
            tokens: clip.vision.tokens(),
            heads: encoder.heads,
            norm_weight: norm.weight,
            norm_bias: norm.bias,
            norm_epsilon: norm.eps,
            projection: projection.t()?,
        })
    }

    /// Hidden states `(n, t, width)` to features `(n, dim)`: the class token, normalised and projected.
    pub(super) fn features(&self, states: &Tensor) -> Result<Tensor> {
        let pooled = states.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        fused::layer_norm(&pooled, &self.norm_weight, &self.norm_bias, self.norm_epsilon)?
            .matmul(&self.projection)
    }
}

/// The image tower's weights, up to the readout.
pub(super) struct VisionTower {
    patch_size: usize,
    grid: usize,
    /// `(3 · patch², width)`: the patch convolution as a matrix.
    patch_weight: Tensor,
    /// `(1, 1, width)`: the class token with its position added.
    class_token: Tensor,
    /// `(patches, width)`.
    positions: Tensor,
    pre_norm: LayerNorm,
    encoder: Encoder,
}

impl VisionTower {
    /// Takes `vision_model.…`, except what [`ImageReadout`] takes.
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
        Ok(Self {
            patch_size: patch,
            grid,
            patch_weight: patch_weight.reshape((width, ()))?.t()?,
            class_token: (class + positions.get(0)?)?.reshape((1, 1, width))?,
            positions: positions.narrow(0, 1, patches)?.contiguous()?,
            // The missing letters are in the checkpoints.
            pre_norm: LayerNorm::load(weights, "vision_model.pre_layrnorm", &config.encoder)?,
            encoder: Encoder::load(weights, "vision_model.encoder", &config.encoder)?,
        })
    }

    /// What it computes in, residuals and norms included.
    pub(super) fn dtype(&self) -> DType {
        self.patch_weight.dtype()
    }

    /// `(n, 3, image_size, image_size)` bytes to the last layer's hidden states `(n, t, width)`, class token first, in f32
    /// whatever the weights are in.
    pub(super) fn states(&self, pixels: &Tensor) -> Result<Tensor> {
        let n = pixels.dim(0)?;
        let pixels = &(pixels.to_dtype(self.dtype())? - f64::from(MIDDLE))?;
        let patches = self.unfold(pixels)?.broadcast_matmul(&self.patch_weight)?;
        let patches = fused::add_repeated(patches, &self.positions)?;
        let class = self.class_token.broadcast_as((n, 1, self.class_token.dim(2)?))?;
        let tokens = Tensor::cat(&[&class, &patches], 1)?;
        self.encoder
            .forward(self.pre_norm.forward(&tokens)?, None)?
            .to_dtype(DType::F32)
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

impl fmt::Display for VisionTower {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "tensors {}", self.dtype().as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use candle_core::Device;
    use clipkeep_towers::{ImageTower, Instructions, Precision};

    use super::*;
    use crate::clip::dtype::{Dtype, noise};
    use crate::clip::folded::fold;
    use crate::clip::image_processor::Normalisation;
    use crate::clip::source::BackboneFiles;

    /// Weights as a tower takes them.
    fn weights<'a>(files: &'a BackboneFiles, config: &ClipConfig) -> Weights<'a> {
        let mut weights = files.tensors(&Device::Cpu).expect("weights");
        let of_range = Normalisation {
            scale: [1.0 / 128.0; 3],
            shift: [-1.0; 3],
        };
        fold(&mut weights, config, ("test", of_range)).expect("as they should be");
        weights
    }

    /// As it is on a GPU that has no kernels for its shape, by candle's slow products.
    #[test]
    fn tensors_in_bfloat16_keep_the_directions_of_features_and_are_chosen_for_it() -> Result<()> {
        let files = BackboneFiles::embedded();
        let config = ClipConfig::parse(&files.config).expect("a configuration");
        let mut weights = weights(&files, &config);
        let readout = ImageReadout::load(&mut weights, &config).expect("its end");
        let size = config.vision.image_size;
        let pixels = Tensor::from_vec(noise(3 * 3 * size * size), (3, 3, size, size), &Device::Cpu)?;
        let mut load = |dtype| {
            weights.in_dtype(dtype, |weights| {
                VisionTower::load(weights, &config).expect("a tower")
            })
        };
        let features = |tower: &VisionTower, images: &Tensor| readout.features(&tower.states(images)?);
        let wanted = features(&load(DType::F32), &pixels)?;
        let found = features(&load(DType::BF16), &pixels)?;
        let lengths = (wanted.sqr()?.sum(1)?.sqrt()? * found.sqr()?.sum(1)?.sqrt()?)?;
        for cosine in ((wanted * found)?.sum(1)? / lengths)?.to_vec1::<f32>()? {
            assert!((0.999..=1.0 + 1e-6).contains(&cosine), "{cosine}");
        }
        let values = |tower: &VisionTower, images: &Tensor| features(tower, images)?.flatten_all()?.to_vec1();
        let load = RefCell::new(load);
        let choice = |dtype: Dtype, fast, is_wrong: bool| {
            let exact = || Ok(load.borrow_mut()(DType::F32));
            let load = |found| {
                // Where it is wrong, what is asked for in bfloat16 has the weights of another.
                let mut tower = load.borrow_mut()(found);
                if is_wrong && found == DType::BF16 {
                    tower.patch_weight = (tower.patch_weight * -1.0).expect("another");
                }
                Ok::<_, candle_core::Error>(tower)
            };
            let tower = dtype.tower(fast, config.image_shape(), load, exact, values);
            tower.expect("a tower").to_string()
        };
        assert_eq!(choice(Dtype::Auto, DType::BF16, false), "tensors bf16");
        assert_eq!(choice(Dtype::Auto, DType::BF16, true), "tensors f32");
        assert_eq!(choice(Dtype::Bf16, DType::BF16, true), "tensors bf16");
        assert_eq!(choice(Dtype::Auto, DType::F32, false), "tensors f32");
        assert_eq!(choice(Dtype::F32, DType::BF16, false), "tensors f32");
        Ok(())
    }

    #[test]
    fn packed_towers_give_what_tensors_give() -> Result<()> {
        let files = BackboneFiles::embedded();
        let config = ClipConfig::parse(&files.config).expect("a configuration");
        let mut weights = weights(&files, &config);
        let reference = VisionTower::load(&mut weights, &config).expect("a tower");
        let readout = ImageReadout::load(&mut weights, &config).expect("its end");
        let (count, size) = (5, config.vision.image_size);
        let pixels = noise(count * 3 * size * size);
        let wanted_states = reference.states(&Tensor::from_slice(
            &pixels,
            (count, 3, size, size),
            &Device::Cpu,
        )?)?;
        let wanted: Vec<f32> = readout.features(&wanted_states)?.flatten_all()?.to_vec1()?;
        let wanted_states: Vec<f32> = wanted_states.flatten_all()?.to_vec1()?;
        // Of the largest value.
        let apart = |a: &[f32], b: &[f32]| {
            let largest = b.iter().fold(0.0_f32, |most, b| most.max(b.abs()));
            a.iter()
                .zip(b)
                .map(|(a, b)| (a - b).abs() / largest)
                .fold(0.0, |most, apart| if apart <= most { most } else { apart })
        };
        let shape = config.image_shape();
        let towers = [
            (Precision::F32, 1e-5),
            (Precision::Bf16, 2e-2),
            (Precision::Int16, 1e-2),
            (Precision::Int8, 0.1),
        ];
        let towers = towers.into_iter().flat_map(|(precision, most)| {
            let instructions = Instructions::suiting(&shape.transformer, precision).into_iter();
            instructions.map(move |instructions| (instructions, most))
        });
        for (instructions, most) in towers {
            let name = instructions.to_string();
            let mut take = |key: &str, shape: &[usize]| weights.values(key, shape);
            let tower = ImageTower::load(shape, instructions, &mut take).expect("a tower");
            let mut states = Vec::new();
            let features = tower.forward(&pixels, Some(&mut states));
            assert_eq!(
                (features.len(), states.len()),
                (wanted.len(), wanted_states.len())
            );
            let found = [apart(&features, &wanted), apart(&states, &wanted_states)];
            assert!(found.iter().all(|apart| *apart < most), "{name}: {found:?}");
        }
        Ok(())
    }
}
