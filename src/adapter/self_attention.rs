//! The self-attention adapter (arXiv 2310.20348): a residual block over the image tower's last-layer tokens, then a layer
//! norm and a projection of the class token.
//!
//! ```text
//! z = LN₁(h),   q = z₀ Wq + bq,   K = z Wk + bk,   V = z Wv + bv          h (t, w), z₀ its class token; heads apart
//! c = h₀ + softmax(q Kᵀ / √d) V Wo + bo,   y = LN₂(c) P
//! ```
//!
//! Only the class token is read out, so only its query is asked. Wo and bo start at zero, LN₂ and P as the backbone's own:
//! untrained it is the end of the image tower, and its outputs are the backbone's features.

use candle_core::{D, DType, Result, Tensor};
use rand::Rng;
use rand_distr::{Distribution, Normal};

use super::objective::Targets;
use super::towers::Readout;
use super::trainable::{Gradient, Trainable, pulled_back};

/// How many parameters it has, in the order of [`NAMES`].
const COUNT: usize = 13;

/// What its parameters are called in a snapshot.
pub(super) const NAMES: [&str; COUNT] = [
    "norm1.weight",
    "norm1.bias",
    "query.weight",
    "query.bias",
    "key.weight",
    "key.bias",
    "value.weight",
    "value.bias",
    "out.weight",
    "out.bias",
    "norm2.weight",
    "norm2.bias",
    "projection",
];

/// The adapter. Matrices are (inputs, outputs).
#[derive(Debug, Clone)]
pub struct SelfAttention {
    /// t, tokens an image.
    pub(super) tokens: usize,
    /// Attention heads.
    pub(super) heads: usize,
    /// ε of both layer norms.
    pub(super) epsilon: f64,
    /// In the order of [`NAMES`].
    pub(super) parameters: Vec<Tensor>,
}

impl SelfAttention {
    /// An adapter that adds nothing to the backbone's end.
    pub(super) fn initial(readout: &Readout, rng: &mut impl Rng) -> Result<Self> {
        let (width, _) = readout.projection.dims2()?;
        let device = readout.projection.device();
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device);
        // Variance 1 / fan-in: what is normalised keeps its size.
        let normal = Normal::new(0.0_f32, (width as f32).sqrt().recip()).map_err(candle_core::Error::wrap)?;
        let mut matrix = || {
            let values: Vec<f32> = normal.sample_iter(&mut *rng).take(width * width).collect();
            Tensor::from_vec(values, (width, width), device)
        };
        let (query, key, value) = (matrix()?, matrix()?, matrix()?);
        Ok(Self {
            tokens: readout.tokens,
            heads: readout.heads,
            epsilon: readout.norm_epsilon,
            parameters: vec![
                Tensor::ones(width, DType::F32, device)?,
                zeros(&[width])?,
                query,
                zeros(&[width])?,
                key,
                zeros(&[width])?,
                value,
                zeros(&[width])?,
                zeros(&[width, width])?,
                zeros(&[width])?,
                readout.norm_weight.clone(),
                readout.norm_bias.clone(),
                readout.projection.clone(),
            ],
        })
    }

    /// Shapes of the parameters for tokens of `width` values and features of `dim`, in the order of [`NAMES`].
    pub(super) fn shapes(width: usize, dim: usize) -> [Vec<usize>; COUNT] {
        std::array::from_fn(|place| match NAMES[place] {
            "projection" => vec![width, dim],
            name if name.ends_with(".weight") && !name.starts_with("norm") => vec![width, width],
            _ => vec![width],
        })
    }

    /// Tokens (n, t · w) to features (n, D), not normalised.
    pub(super) fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        self.forward(rows, &self.parameters)
    }

    /// t · w and D.
    pub(super) fn dims(&self) -> Result<(usize, usize)> {
        match self.parameters.last() {
            Some(projection) if self.parameters.len() == COUNT => {
                let (width, dim) = projection.dims2()?;
                if self.heads == 0 || !width.is_multiple_of(self.heads) {
                    candle_core::bail!("{} heads of {width} values", self.heads);
                }
                Ok((self.tokens * width, dim))
            }
            _ => candle_core::bail!("{} parameters of a self-attention adapter", self.parameters.len()),
        }
    }

    fn forward(&self, rows: &Tensor, parameters: &[Tensor]) -> Result<Tensor> {
        let [
            norm1,
            norm1_bias,
            query,
            query_bias,
            key,
            key_bias,
            value,
            value_bias,
            out,
            out_bias,
            norm2,
            norm2_bias,
            projection,
        ] = parameters
        else {
            candle_core::bail!("{} parameters of a self-attention adapter", parameters.len());
        };
        let (n, width) = (rows.dim(0)?, query.dim(0)?);
        let head_width = width / self.heads;
        let states = rows.reshape((n, self.tokens, width))?;
        let class = states.narrow(1, 0, 1)?.squeeze(1)?;
        let seen = layer_norm(&states, norm1, norm1_bias, self.epsilon)?;
        // (n, t, w) to (n, heads, t, d).
        let apart = |x: Tensor, tokens: usize| {
            x.reshape((n, tokens, self.heads, head_width))?
                .transpose(1, 2)?
                .contiguous()
        };
        let asked = seen
            .narrow(1, 0, 1)?
            .squeeze(1)?
            .matmul(query)?
            .broadcast_add(query_bias)?;
        let flat = seen.reshape((n * self.tokens, width))?;
        let keys = flat.matmul(key)?.broadcast_add(key_bias)?;
        let values = flat.matmul(value)?.broadcast_add(value_bias)?;
        let (asked, keys, values) = (
            apart(asked, 1)?,
            apart(keys, self.tokens)?,
            apart(values, self.tokens)?,
        );
        let scores = (asked.matmul(&keys.transpose(2, 3)?.contiguous()?)? / (head_width as f64).sqrt())?;
        let attended = candle_nn::ops::softmax(&scores, D::Minus1)?
            .matmul(&values)?
            .reshape((n, width))?;
        let class = (class + attended.matmul(out)?.broadcast_add(out_bias)?)?;
        layer_norm(&class, norm2, norm2_bias, self.epsilon)?.matmul(projection)
    }
}

impl Trainable for SelfAttention {
    fn parameters(&self) -> Vec<&Tensor> {
        self.parameters.iter().collect()
    }

    fn with(&self, parameters: Vec<Tensor>) -> Self {
        Self {
            parameters,
            ..self.clone()
        }
    }

    fn gradient(&self, targets: &Targets<'_>, x: &Tensor, columns: &[u32]) -> Result<Gradient> {
        let slope = targets.slope(&self.apply(x)?, columns)?;
        let by_outputs = slope.by_outputs(targets.anchors)?;
        Ok(Gradient {
            loss: slope.loss,
            parameters: pulled_back(&self.parameters(), &by_outputs, |parameters| {
                self.forward(x, parameters)
            })?,
        })
    }
}

/// Composed of operators that can be differentiated, over the last dimension.
fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    centred
        .broadcast_div(&deviation)?
        .broadcast_mul(weight)?
        .broadcast_add(bias)
}
