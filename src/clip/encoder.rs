//! The transformer stack that both towers share.
//!
//! Owner: the towers. Source: `transformers`' `CLIPEncoder` (pre-norm layers, biases everywhere), with query, key and
//! value as one product and the attention scale folded into the query's weights. Invariants: inputs are contiguous
//! `(n, t, width)`; weights never change after load. A gradient flows through to the input, never into a matrix.

use candle_core::{D, Result, Tensor};

use super::config::{Activation, EncoderConfig};
use super::error::BackboneError;
use super::weights::Weights;
use super::{frozen, fused};

/// All layers of a tower.
pub(super) struct Encoder {
    layers: Vec<Layer>,
}

impl Encoder {
    /// Takes `{prefix}.layers.{i}.…` for every layer.
    pub(super) fn load(
        weights: &mut Weights,
        prefix: &str,
        config: &EncoderConfig,
    ) -> std::result::Result<Self, BackboneError> {
        let layer = |i| Layer::load(weights, &format!("{prefix}.layers.{i}"), config);
        Ok(Self {
            layers: (0..config.layers)
                .map(layer)
                .collect::<std::result::Result<_, _>>()?,
        })
    }

    /// Runs `x` `(n, t, width)` through all layers. `mask`, contiguous `(t, t)`, is added to the attention's logits.
    pub(super) fn forward(&self, x: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        self.layers.iter().try_fold(x, |x, layer| layer.forward(&x, mask))
    }
}

/// A layer norm's parameters, each `(width)`.
pub(super) struct LayerNorm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) eps: f32,
}

impl LayerNorm {
    /// Takes `{prefix}.weight` and `{prefix}.bias`.
    pub(super) fn load(
        weights: &mut Weights,
        prefix: &str,
        config: &EncoderConfig,
    ) -> std::result::Result<Self, BackboneError> {
        Ok(Self {
            weight: weights.take(&format!("{prefix}.weight"), &[config.width])?,
            bias: weights.take(&format!("{prefix}.bias"), &[config.width])?,
            eps: config.layer_norm_eps,
        })
    }

    /// Normalises the last dimension of `x`, which must be contiguous.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        fused::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// A matrix `(outputs, inputs)`, as checkpoints hold it, with its bias.
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn load(
        weights: &mut Weights,
        prefix: &str,
        inputs: usize,
        outputs: usize,
    ) -> std::result::Result<Self, BackboneError> {
        let weight = weights.take(&format!("{prefix}.weight"), &[outputs, inputs])?;
        let bias = weights.take(&format!("{prefix}.bias"), &[outputs])?;
        Ok(Self { weight, bias })
    }

    /// The product of `x` and the matrix, without the bias.
    fn product(&self, x: &Tensor) -> Result<Tensor> {
        frozen::product(x, &self.weight.t()?)
    }
}

struct Layer {
    norm1: LayerNorm,
    /// Query (scaled), key and value side by side.
    qkv: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    activation: Activation,
}

impl Layer {
    fn load(
        weights: &mut Weights,
        prefix: &str,
        config: &EncoderConfig,
    ) -> std::result::Result<Self, BackboneError> {
        let width = config.width;
        let mut attention =
            |name: &str| Linear::load(weights, &format!("{prefix}.self_attn.{name}"), width, width);
        let (query, key, value) = (attention("q_proj")?, attention("k_proj")?, attention("v_proj")?);
        let out = attention("out_proj")?;
        let scale = ((width / config.heads) as f64).sqrt().recip();
        Ok(Self {
            norm1: LayerNorm::load(weights, &format!("{prefix}.layer_norm1"), config)?,
            qkv: Linear {
                weight: Tensor::cat(&[&(query.weight * scale)?, &key.weight, &value.weight], 0)?,
                bias: Tensor::cat(&[&(query.bias * scale)?, &key.bias, &value.bias], 0)?,
            },
            out,
            norm2: LayerNorm::load(weights, &format!("{prefix}.layer_norm2"), config)?,
            fc1: Linear::load(weights, &format!("{prefix}.mlp.fc1"), width, config.mlp_width)?,
            fc2: Linear::load(weights, &format!("{prefix}.mlp.fc2"), config.mlp_width, width)?,
            heads: config.heads,
            activation: config.activation,
        })
    }

    fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let attended = self.attend(&self.norm1.forward(x)?, mask)?;
        let x = fused::bias_residual(self.out.product(&attended)?, &self.out.bias, x)?;
        let hidden = self.fc1.product(&self.norm2.forward(&x)?)?;
        let hidden = fused::bias_activation(hidden, &self.fc1.bias, self.activation)?;
        fused::bias_residual(self.fc2.product(&hidden)?, &self.fc2.bias, &x)
    }

    /// Multi-head attention without the output projection, `(n, t, width)` to the same.
    fn attend(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (n, t, width) = x.dims3()?;
        let qkv = fused::add_repeated(self.qkv.product(x)?, &self.qkv.bias)?;
        // (n, t, 3, heads, d) to three of (n, heads, t, d).
        let qkv = qkv
            .reshape((n, t, 3, self.heads, width / self.heads))?
            .permute((2, 0, 3, 1, 4))?
            .contiguous()?;
        let (query, key, value) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
        let logits = query.matmul(&key.transpose(D::Minus2, D::Minus1)?)?;
        let logits = match mask {
            Some(mask) => fused::add_repeated(logits, mask)?,
            None => logits,
        };
        fused::softmax(&logits)?
            .matmul(&value)?
            .transpose(1, 2)?
            .reshape((n, t, width))
    }
}
