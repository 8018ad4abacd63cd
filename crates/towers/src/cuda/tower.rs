//! The image tower's weights on the device, and what is computed with them. Source: `transformers`' `CLIPVisionModel` with
//! `visual_projection`.
//!
//! Owner: the tower. Invariants: weights never change; a forward is the same launches with the same addresses each time, and takes
//! no memory.

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, DriverError};
use half::bf16;
use pulp::Arch;

use super::kernels::{Kernels, Norm};
use super::memory::{Matrix, Memory};
use super::products::{Linear, Onto, Products};
use super::{Error, Kind, Wanted};
use crate::operand;
use crate::{ImageShape, Take};

pub(super) struct Tower {
    kernels: Kernels,
    products: Products,
    shape: ImageShape,
    /// Inputs: a patch, with zeros behind it.
    patches: Linear,
    /// `(t, width)`: the class token with its position, then the positions of patches.
    positions: Memory<f32>,
    pre_norm: Norm,
    layers: Vec<Layer>,
    post_norm: Norm,
    projection: Linear,
}

struct Layer {
    first_norm: Norm,
    /// To queries, keys and values, side by side.
    mixing: Linear,
    mixed: Linear,
    second_norm: Norm,
    rise: Linear,
    fall: Linear,
}

/// Memory for what is computed for so many images.
pub(super) struct Activations {
    /// `(n · t, width)`: the residual stream.
    x: Memory<bf16>,
    /// `(n · t, width)`: normalised.
    normed: Memory<bf16>,
    /// `(n · t, 3 · width)`: queries, keys and values; before that, patches, projected.
    mixing: Memory<bf16>,
    /// `(n · t, mlp_width)`: inside the MLP; before that, patches.
    risen: Memory<bf16>,
    /// `(n, dim)`.
    features: Memory<f32>,
    /// `(n · t, width)`: what is read of the residual stream.
    states: Memory<f32>,
}

/// Values of a patch, and zeros up to a multiple of eight: what products read at a time.
fn inputs(shape: &ImageShape) -> usize {
    (3 * shape.patch_size.pow(2)).next_multiple_of(8)
}

impl Activations {
    pub(super) fn new(shape: &ImageShape, stream: &Arc<CudaStream>, images: usize) -> Result<Self, Error> {
        let (of, tokens) = (&shape.transformer, images * shape.tokens());
        let patches = images * shape.grid().pow(2) * inputs(shape);
        Ok(Self {
            x: Memory::zeros(stream, tokens * of.width)?,
            normed: Memory::zeros(stream, tokens * of.width)?,
            mixing: Memory::zeros(stream, tokens * 3 * of.width)?,
            risen: Memory::zeros(stream, patches.max(tokens * of.mlp_width))?,
            features: Memory::zeros(stream, images * shape.dim)?,
            states: Memory::zeros(stream, tokens * of.width)?,
        })
    }

    pub(super) fn features(&self, count: usize) -> CudaView<'_, f32> {
        self.features.values().slice(..count)
    }

    pub(super) fn states(&self, count: usize) -> CudaView<'_, f32> {
        self.states.values().slice(..count)
    }
}

impl Tower {
    pub(super) fn load<E: From<Error>>(
        shape: ImageShape,
        stream: &Arc<CudaStream>,
        take: &mut Take<'_, E>,
    ) -> Result<Self, E> {
        let of = shape.transformer;
        let (width, patch) = (of.width, shape.patch_size);
        let mut weights = Weights {
            stream,
            epsilon: of.layer_norm_epsilon,
            take,
        };
        let patches = (weights.take)(
            "vision_model.embeddings.patch_embedding.weight",
            &[width, 3, patch, patch],
        )?;
        let zeros = vec![0.0; inputs(&shape) - 3 * patch * patch];
        let patches = patches.chunks_exact(3 * patch * patch);
        let patches: Vec<f32> = patches
            .flat_map(|patch| patch.iter().chain(&zeros))
            .copied()
            .collect();
        let positions = shape.positions(weights.take)?;
        let layers = (0..of.layers).map(|layer| {
            let prefix = format!("vision_model.encoder.layers.{layer}");
            let attention = ["q_proj", "k_proj", "v_proj"].map(|name| format!("{prefix}.self_attn.{name}"));
            Ok(Layer {
                first_norm: weights.norm(&format!("{prefix}.layer_norm1"), width)?,
                mixing: weights.linear(&attention, width, width)?,
                mixed: weights.linear(&[format!("{prefix}.self_attn.out_proj")], width, width)?,
                second_norm: weights.norm(&format!("{prefix}.layer_norm2"), width)?,
                rise: weights.linear(&[format!("{prefix}.mlp.fc1")], of.mlp_width, width)?,
                fall: weights.linear(&[format!("{prefix}.mlp.fc2")], width, of.mlp_width)?,
            })
        });
        let layers: Vec<Layer> = layers.collect::<Result<_, E>>()?;
        let projection = (weights.take)("visual_projection.weight", &[shape.dim, width])?;
        let linear =
            |weight: &[f32], inputs| Linear::load(stream, &rounded(weight), &[], inputs).map_err(Error::from);
        Ok(Self {
            patches: linear(&patches, inputs(&shape))?,
            positions: Memory::of(stream, &positions).map_err(Error::from)?,
            // The missing letters are in the checkpoints.
            pre_norm: weights.norm("vision_model.pre_layrnorm", width)?,
            layers,
            post_norm: weights.norm("vision_model.post_layernorm", width)?,
            projection: linear(&projection, width)?,
            kernels: Kernels::load(Arc::clone(stream), &shape).map_err(Error::from)?,
            products: Products::new(Arc::clone(stream))?,
            shape,
        })
    }

    /// Bytes `(n · 3 · size, size)` to patches.
    pub(super) fn unfold(&self, pixels: Matrix<u8>, to: &Activations) -> Result<(), DriverError> {
        let images = pixels.rows / (3 * self.shape.image_size);
        let patches = to
            .risen
            .matrix(images * self.shape.grid().pow(2), inputs(&self.shape));
        self.kernels.unfold(&self.shape, pixels, patches)
    }

    /// Patches to features, and to states if they are asked for.
    pub(super) fn forward(&self, room: &Activations, kind: Kind) -> Result<(), Error> {
        let Self {
            kernels,
            products,
            shape,
            ..
        } = self;
        let (images, tokens, width) = (kind.images, shape.tokens(), shape.transformer.width);
        let [x, normed] = [&room.x, &room.normed].map(|of| of.matrix(images * tokens, width));
        let patches = images * (tokens - 1);
        let embedded = room.mixing.matrix(patches, width);
        let unfolded = room.risen.matrix(patches, inputs(shape));
        products.product(unfolded, self.patches.all(), embedded, Onto::Nothing)?;
        kernels.embed(embedded, self.positions.matrix(tokens, width), &self.pre_norm, x)?;
        for (place, layer) in self.layers.iter().enumerate() {
            // Of the last layer nothing but the class token is read, unless states are asked for.
            let are_all_read = kind.wanted == Wanted::States || place + 1 < self.layers.len();
            self.layer(layer, room, images, if are_all_read { tokens } else { 1 })?;
        }
        if kind.wanted == Wanted::States {
            kernels.widen(x, room.states.matrix(images * tokens, width))?;
        }
        let pooled = normed.rows(0, images);
        kernels.layer_norm(x.firsts(tokens), &self.post_norm, pooled)?;
        let features = room.features.matrix(images, shape.dim);
        products.product(pooled, self.projection.all(), features, Onto::Nothing)
    }

    /// A layer, for the first `read` tokens of each image: one, or all of them.
    fn layer(&self, layer: &Layer, room: &Activations, images: usize, read: usize) -> Result<(), Error> {
        let Self {
            kernels, products, ..
        } = self;
        let of = &self.shape.transformer;
        let (tokens, width) = (self.shape.tokens(), of.width);
        let [x, normed] = [&room.x, &room.normed].map(|of| of.matrix(images * tokens, width));
        let mixing = room.mixing.matrix(images * tokens, 3 * width);
        let every = tokens / read;

        kernels.layer_norm(x, &layer.first_norm, normed)?;
        if read == tokens {
            products.product(normed, layer.mixing.all(), mixing, Onto::Nothing)?;
        } else {
            // Queries of those alone, keys and values of all.
            let (weights, queries) = (layer.mixing.outputs(0, width), mixing.columns(0, width));
            products.product(
                normed.firsts(every),
                weights,
                queries.firsts(every),
                Onto::Nothing,
            )?;
            let weights = layer.mixing.outputs(width, 2 * width);
            products.product(normed, weights, mixing.columns(width, 2 * width), Onto::Nothing)?;
        }
        // What was normalised is not needed any more.
        let mixed = normed;
        kernels.attend(mixing, mixed, tokens, read)?;
        let x = x.firsts(every);
        products.product(mixed.firsts(every), layer.mixed.all(), x, Onto::Itself)?;
        let normed = normed.rows(0, x.rows);
        kernels.layer_norm(x, &layer.second_norm, normed)?;
        let risen = room.risen.matrix(x.rows, of.mlp_width);
        products.product(normed, layer.rise.all(), risen, Onto::Nothing)?;
        kernels.activation(risen)?;
        products.product(risen, layer.fall.all(), x, Onto::Itself)
    }
}

/// Where weights come from, and where they go.
struct Weights<'a, 'b, E> {
    stream: &'a Arc<CudaStream>,
    epsilon: f32,
    take: &'a mut Take<'b, E>,
}

impl<E: From<Error>> Weights<'_, '_, E> {
    fn norm(&mut self, name: &str, width: usize) -> Result<Norm, E> {
        let mut take = |part: &str| -> Result<Memory<f32>, E> {
            let values = (self.take)(&format!("{name}.{part}"), &[width])?;
            Ok(Memory::of(self.stream, &values).map_err(Error::from)?)
        };
        Ok(Norm {
            weight: take("weight")?,
            bias: take("bias")?,
            epsilon: self.epsilon,
        })
    }

    /// Layers with the same inputs, as one: their outputs lie side by side.
    fn linear(&mut self, names: &[String], outputs: usize, inputs: usize) -> Result<Linear, E> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            weight.extend(rounded(&(self.take)(
                &format!("{name}.weight"),
                &[outputs, inputs],
            )?));
            bias.extend(rounded(&(self.take)(&format!("{name}.bias"), &[outputs])?));
        }
        Ok(Linear::load(self.stream, &weight, &bias, inputs).map_err(Error::from)?)
    }
}

/// To the nearest bfloat16, by whatever vectors the processor has.
fn rounded(values: &[f32]) -> Vec<bf16> {
    let bits = |value: &f32| (operand::rounded(*value) >> 16) as u16;
    Arch::new().dispatch(|| values.iter().map(|value| bf16::from_bits(bits(value))).collect())
}
