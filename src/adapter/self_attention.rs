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
use candle_nn::ops;
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
                let Some(row) = self.tokens.checked_mul(width) else {
                    candle_core::bail!("{} tokens of {width} values", self.tokens)
                };
                Ok((row, dim))
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
        // candle's other layer norm cannot be differentiated.
        let epsilon = self.epsilon as f32;
        let seen = ops::layer_norm_slow(&states, norm1, norm1_bias, epsilon)?;
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
        let attended = ops::softmax(&scores, D::Minus1)?
            .matmul(&values)?
            .reshape((n, width))?;
        let class = (class + attended.matmul(out)?.broadcast_add(out_bias)?)?;
        ops::layer_norm_slow(&class, norm2, norm2_bias, epsilon)?.matmul(projection)
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
        let mut loss = 0.0;
        let parameters = pulled_back(
            &self.parameters(),
            |parameters| self.forward(x, parameters),
            |outputs| {
                let slope = targets.slope(outputs, columns)?;
                loss = slope.loss;
                slope.by_outputs(targets.anchors)
            },
        )?;
        Ok(Gradient { loss, parameters })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::adapter::embedding::normalise;

    const TOKENS: usize = 5;
    const WIDTH: usize = 8;
    const DIM: usize = 6;
    const COLUMNS: [u32; 3] = [1, 3, 0];

    /// The numbers that `tests/learning_core/make_reference.py` makes.
    fn sines(seed: f64, shape: &[usize]) -> Result<Tensor> {
        let count: usize = shape.iter().product();
        let values = (0..count).map(|i| (i as f64 * 12.9898 + seed).sin());
        Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)
    }

    fn adapter() -> Result<SelfAttention> {
        let shapes = SelfAttention::shapes(WIDTH, DIM);
        let parameters = shapes
            .iter()
            .enumerate()
            .map(|(place, shape)| sines(place as f64, shape));
        Ok(SelfAttention {
            tokens: TOKENS,
            heads: 2,
            epsilon: 1e-5,
            parameters: parameters.collect::<Result<_>>()?,
        })
    }

    fn rows() -> Result<Tensor> {
        sines(0.5, &[3, TOKENS * WIDTH])
    }

    fn gradient(adapter: &SelfAttention) -> Result<Gradient> {
        let anchors = normalise(&sines(0.25, &[4, DIM])?)?;
        let targets = Targets {
            anchors: &anchors,
            scale: 7.0,
            pairs: None,
        };
        adapter.gradient(&targets, &rows()?, &COLUMNS)
    }

    /// PyTorch 2, `tests/learning_core/make_reference.py`: name, next to last value of the gradient, its length.
    const REFERENCE: [(&str, f64, f64); COUNT] = [
        ("norm1.weight", 4.2782386e-05, 0.038792915677),
        ("norm1.bias", 0.034502358634, 0.08411042814),
        ("query.weight", -0.00013808485, 0.002181655988),
        ("query.bias", 0.000244149508, 0.00136728169),
        ("key.weight", -0.000301559974, 0.011081489408),
        ("key.bias", 0.0, 0.0),
        ("value.weight", 0.060678931037, 0.906424445408),
        ("value.bias", -0.088190236568, 0.476715774846),
        ("out.weight", -0.002852081361, 4.09757654483),
        ("out.bias", 0.003860129726, 1.42762040714),
        ("norm2.weight", -0.484854929493, 2.01017952056),
        ("norm2.bias", 0.979759464448, 2.19289983949),
        ("projection", -0.245794584226, 2.19058488772),
    ];

    #[test]
    fn outputs_loss_and_gradients_are_pytorchs() -> Result<()> {
        let adapter = adapter()?;
        let outputs = adapter.apply(&rows()?)?.to_vec2::<f64>()?;
        let expected = [
            -0.434603066,
            -0.896814902,
            -1.200622692,
            -1.29236499,
            -1.155837392,
            -0.815154711,
        ];
        for (found, expected) in outputs[2].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-8, "{found} and {expected}");
        }
        let found = gradient(&adapter)?;
        assert!((found.loss - 7.282114000519).abs() < 1e-10, "{}", found.loss);
        for ((name, value, length), (slope, known)) in
            REFERENCE.iter().zip(found.parameters.iter().zip(NAMES))
        {
            assert_eq!(*name, known);
            let slope = slope.flatten_all()?.to_vec1::<f64>()?;
            let norm = slope.iter().map(|v| v * v).sum::<f64>().sqrt();
            let next_to_last = slope[slope.len() - 2];
            assert!(
                (next_to_last - value).abs() < 1e-9,
                "{name}: {next_to_last} and {value}"
            );
            assert!((norm - length).abs() < 1e-9, "{name}: {norm} and {length}");
        }
        Ok(())
    }

    #[test]
    fn gradients_agree_with_finite_differences() -> Result<()> {
        let adapter = adapter()?;
        let exact = gradient(&adapter)?;
        let step = 1e-5;
        for (place, name) in NAMES.iter().enumerate() {
            let shape = adapter.parameters[place].shape();
            let moved = |offset: f64| {
                let mut values = adapter.parameters[place].flatten_all()?.to_vec1::<f64>()?;
                values[3] += offset;
                let mut parameters = adapter.parameters.clone();
                parameters[place] = Tensor::from_vec(values, shape, &Device::Cpu)?;
                gradient(&adapter.with(parameters)).map(|found| found.loss)
            };
            let slope = (moved(step)? - moved(-step)?) / (2.0 * step);
            let exact = exact.parameters[place].flatten_all()?.to_vec1::<f64>()?[3];
            assert!((slope - exact).abs() < 1e-6, "{name}: {slope} and {exact}");
        }
        Ok(())
    }

    #[test]
    fn untrained_it_is_the_end_of_the_tower() -> Result<()> {
        let single = |tensor: Tensor| tensor.to_dtype(DType::F32);
        let readout = Readout {
            tokens: TOKENS,
            heads: 2,
            norm_weight: single(sines(1.0, &[WIDTH])?)?,
            norm_bias: single(sines(2.0, &[WIDTH])?)?,
            norm_epsilon: 1e-5,
            projection: single(sines(3.0, &[WIDTH, DIM])?)?,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let adapter = SelfAttention::initial(&readout, &mut rng)?;
        let rows = single(rows()?)?;
        let class = rows.narrow(1, 0, WIDTH)?.contiguous()?;
        let read = ops::layer_norm_slow(&class, &readout.norm_weight, &readout.norm_bias, 1e-5)?;
        let expected = read.matmul(&readout.projection)?.to_vec2::<f32>()?;
        assert_eq!(adapter.apply(&rows)?.to_vec2::<f32>()?, expected);
        assert_eq!(adapter.dims()?, (TOKENS * WIDTH, DIM));
        Ok(())
    }
}
