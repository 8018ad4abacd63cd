//! The transformer layers of a tower on the CPU.
//!
//! Source: `transformers`' `CLIPEncoder` (pre-norm layers, biases everywhere), with query, key and value as one product and
//! the attention scale folded into the query's weights.

use rayon::prelude::*;

use crate::attention::Attention;
use crate::blocks::{Aligned, Blocks, Layout};
use crate::elementwise;
use crate::kernel::Kernel;
use crate::matrix::{Matrix, Start};
use crate::{Activation, Shape, Take};

/// A layer norm's parameters, one value a column each.
pub(crate) struct LayerNorm {
    weight: Aligned,
    bias: Aligned,
    epsilon: f32,
}

impl LayerNorm {
    /// Takes `{prefix}.weight` and `{prefix}.bias`.
    pub(crate) fn load<E>(take: &mut Take<'_, E>, prefix: &str, shape: &Shape) -> Result<Self, E> {
        let mut aligned = |name: &str| {
            let values = take(&format!("{prefix}.{name}"), &[shape.width])?;
            let mut aligned = Aligned::zeros(values.len());
            aligned.copy_from_slice(&values);
            Ok::<_, E>(aligned)
        };
        Ok(Self {
            weight: aligned("weight")?,
            bias: aligned("bias")?,
            epsilon: shape.layer_norm_epsilon,
        })
    }

    /// Normalises the first rows of each block of `input` into `output`, which has its shape.
    pub(crate) fn forward(&self, kernel: &dyn Kernel, input: &Blocks, rows: &[usize], output: &mut Blocks) {
        let layout = input.layout;
        assert_eq!(
            (output.layout, layout.panels * layout.panel),
            (layout, self.weight.len())
        );
        let outputs = output.values[..rows.len() * layout.len()].par_chunks_mut(layout.len());
        outputs.enumerate().for_each(|(block, output)| {
            kernel.layer_norm(elementwise::LayerNorm {
                input: input.block(block),
                output,
                stride: layout.stride,
                rows: 0..rows[block],
                weight: &self.weight,
                bias: &self.bias,
                epsilon: self.epsilon,
            });
        });
    }
}

/// All layers of a tower.
pub(crate) struct Layers {
    layers: Vec<Layer>,
    activation: Activation,
}

struct Layer {
    norm1: LayerNorm,
    /// Query (scaled), key and value side by side.
    qkv: Matrix,
    out: Matrix,
    norm2: LayerNorm,
    fc1: Matrix,
    fc2: Matrix,
}

/// Room for the activations of a layer.
pub(crate) struct Activations {
    /// The residual stream: what goes in, and comes out.
    pub(crate) x: Blocks,
    pub(crate) normed: Blocks,
    qkv: Blocks,
    attended: Blocks,
    attention: Attention,
    hidden: Blocks,
}

impl Activations {
    /// For at most `blocks` images.
    pub(crate) fn new(shape: &Shape, panel: usize, blocks: usize) -> Self {
        let layout = |columns| Layout::new(panel, shape.tokens(), columns);
        let of = |columns| Blocks::zeros(layout(columns), blocks);
        Self {
            x: of(shape.width),
            normed: of(shape.width),
            qkv: of(3 * shape.width),
            attended: of(shape.width),
            attention: Attention::new(layout(shape.width), shape.heads, blocks),
            hidden: of(shape.mlp_width),
        }
    }
}

/// Room for one row of each block, behind the attention of the last layer.
pub(crate) struct Pooled {
    /// One block with a row for each block of the tower: the residual stream.
    pub(crate) x: Blocks,
    pub(crate) normed: Blocks,
    attended: Blocks,
    hidden: Blocks,
}

impl Pooled {
    /// For at most `blocks` rows.
    pub(crate) fn new(shape: &Shape, panel: usize, blocks: usize) -> Self {
        let of = |columns| Blocks::zeros(Layout::new(panel, blocks, columns), 1);
        Self {
            x: of(shape.width),
            normed: of(shape.width),
            attended: of(shape.width),
            hidden: of(shape.mlp_width),
        }
    }
}

impl Layers {
    /// Takes `{prefix}.layers.{i}.…` for every layer.
    pub(crate) fn load<E>(
        take: &mut Take<'_, E>,
        prefix: &str,
        shape: &Shape,
        panel: usize,
    ) -> Result<Self, E> {
        let layer = |i| Layer::load(take, &format!("{prefix}.layers.{i}"), shape, panel);
        Ok(Self {
            layers: (0..shape.layers).map(layer).collect::<Result<_, _>>()?,
            activation: shape.activation,
        })
    }

    /// Takes the first rows of each block of `room.x` through all layers.
    pub(crate) fn forward(&self, kernel: &dyn Kernel, rows: &[usize], room: &mut Activations) {
        for layer in &self.layers {
            layer.attend(kernel, rows, |block| 0..rows[block], room);
            let Activations {
                x,
                normed,
                attended,
                hidden,
                ..
            } = room;
            layer.finish(kernel, rows, self.activation, [x, normed, attended, hidden]);
        }
    }

    /// As [`Self::forward`], but of the last layer only the first row of each block is wanted, into `pooled.x`. `room.x` is
    /// left as it came into that layer.
    pub(crate) fn forward_first(
        &self,
        kernel: &dyn Kernel,
        rows: &[usize],
        room: &mut Activations,
        pooled: &mut Pooled,
    ) {
        let Some((last, before)) = self.layers.split_last() else {
            return pooled.take(&room.x, rows.len());
        };
        for layer in before {
            layer.attend(kernel, rows, |block| 0..rows[block], room);
            let Activations {
                x,
                normed,
                attended,
                hidden,
                ..
            } = room;
            layer.finish(kernel, rows, self.activation, [x, normed, attended, hidden]);
        }
        last.attend(kernel, rows, |_| 0..1, room);
        pooled.take(&room.x, rows.len());
        for block in 0..rows.len() {
            pooled.attended.copy_row(block, &room.attended, block, 0);
        }
        let Pooled {
            x,
            normed,
            attended,
            hidden,
        } = pooled;
        last.finish(
            kernel,
            &[rows.len()],
            self.activation,
            [x, normed, attended, hidden],
        );
    }
}

impl Pooled {
    /// Takes the first row of each of the first blocks of the residual stream.
    pub(crate) fn take(&mut self, x: &Blocks, blocks: usize) {
        for block in 0..blocks {
            self.x.copy_row(block, x, block, 0);
        }
    }
}

impl Layer {
    fn load<E>(take: &mut Take<'_, E>, prefix: &str, shape: &Shape, panel: usize) -> Result<Self, E> {
        let width = shape.width;
        let scale = ((width / shape.heads) as f64).sqrt().recip() as f32;
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for (name, scale) in [("q_proj", scale), ("k_proj", 1.0), ("v_proj", 1.0)] {
            let name = format!("{prefix}.self_attn.{name}");
            let part = take(&format!("{name}.weight"), &[width, width])?;
            weights.extend(part.into_iter().map(|value| value * scale));
            let part = take(&format!("{name}.bias"), &[width])?;
            biases.extend(part.into_iter().map(|value| value * scale));
        }
        let qkv = Matrix::pack(&weights, width, &biases, panel);
        let mut matrix = |name: &str, inputs: usize, outputs: usize| {
            let weights = take(&format!("{prefix}.{name}.weight"), &[outputs, inputs])?;
            let bias = take(&format!("{prefix}.{name}.bias"), &[outputs])?;
            Ok::<_, E>(Matrix::pack(&weights, inputs, &bias, panel))
        };
        Ok(Self {
            qkv,
            out: matrix("self_attn.out_proj", width, width)?,
            fc1: matrix("mlp.fc1", width, shape.mlp_width)?,
            fc2: matrix("mlp.fc2", shape.mlp_width, width)?,
            norm1: LayerNorm::load(take, &format!("{prefix}.layer_norm1"), shape)?,
            norm2: LayerNorm::load(take, &format!("{prefix}.layer_norm2"), shape)?,
        })
    }

    /// Attention before the output projection, from the `queries` of each block, into `room.attended`.
    fn attend(
        &self,
        kernel: &dyn Kernel,
        rows: &[usize],
        queries: impl Fn(usize) -> std::ops::Range<usize> + Sync,
        room: &mut Activations,
    ) {
        self.norm1.forward(kernel, &room.x, rows, &mut room.normed);
        self.qkv
            .product(kernel, &room.normed, rows, &mut room.qkv, Start::Bias, None);
        room.attention
            .attend(kernel, &room.qkv, rows, queries, &mut room.attended);
    }

    /// The output projection and the MLP.
    fn finish(
        &self,
        kernel: &dyn Kernel,
        rows: &[usize],
        activation: Activation,
        [x, normed, attended, hidden]: [&mut Blocks; 4],
    ) {
        self.out.product(kernel, attended, rows, x, Start::Residual, None);
        self.norm2.forward(kernel, x, rows, normed);
        self.fc1
            .product(kernel, normed, rows, hidden, Start::Bias, Some(activation));
        self.fc2.product(kernel, hidden, rows, x, Start::Residual, None);
    }
}
