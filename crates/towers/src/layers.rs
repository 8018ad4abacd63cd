//! The transformer layers of a tower on the CPU.
//!
//! Source: `transformers`' `CLIPEncoder` (pre-norm layers, biases everywhere), with query, key and value as one product and
//! the attention scale folded into the query's weights.

use rayon::prelude::*;

use crate::attention::{Asked, Attention, Sequences, Sight};
use crate::blocks::{Aligned, Blocks, Extent, Layout};
use crate::elementwise;
use crate::kernel::{Kernel, Vectors};
use crate::linear::Linear;
use crate::matrix::Output;
use crate::operand::{Left, Operand, Piecewise};
use crate::{Activation, Pause, Take, Transformer};

/// A layer norm's parameters, one value a column each.
pub(crate) struct LayerNorm {
    weight: Aligned,
    bias: Aligned,
    epsilon: f32,
}

impl LayerNorm {
    /// Takes `{prefix}.weight` and `{prefix}.bias`.
    pub(crate) fn load<E>(take: &mut Take<'_, E>, prefix: &str, of: &Transformer) -> Result<Self, E> {
        let mut aligned = |name: &str| {
            let values = take(&format!("{prefix}.{name}"), &[of.width])?;
            Ok::<_, E>(Aligned::from(&*values))
        };
        Ok(Self {
            weight: aligned("weight")?,
            bias: aligned("bias")?,
            epsilon: of.layer_norm_epsilon,
        })
    }

    /// Normalises rows of blocks of `input` into `output`, which has its layout.
    pub(crate) fn forward<O: Piecewise>(
        &self,
        vectors: &dyn Vectors,
        input: &Blocks,
        Extent { blocks, rows, .. }: Extent,
        output: &mut Blocks<O>,
    ) {
        let (from, to) = (input.layout, output.layout);
        assert_eq!((from.panels, from.stride), (to.panels, to.stride));
        assert_eq!(from.panels * from.panel, self.weight.len());
        let outputs = output.values[..blocks * to.len()].par_chunks_mut(to.len());
        outputs.enumerate().for_each(|(block, output)| {
            let norm = elementwise::LayerNorm {
                input: input.block(block),
                output,
                stride: from.stride,
                rows: 0..rows,
                weight: &self.weight,
                bias: &self.bias,
                epsilon: self.epsilon,
            };
            O::layer_norm(vectors, norm);
        });
    }
}

/// All layers of a tower.
pub(crate) struct Layers<T: Operand>(Vec<Layer<T>>);

/// How a matrix is packed: from weights, inputs and a bias, for a kernel.
type Pack<T> = fn(&[f32], usize, &[f32], &Kernel<T>) -> Linear<T>;

struct Layer<T: Operand> {
    norm1: LayerNorm,
    /// Query (scaled), key and value side by side.
    qkv: Linear<T>,
    out: Linear<T>,
    norm2: LayerNorm,
    fc1: Linear<T>,
    activation: Activation,
    fc2: Linear<T>,
}

/// Room for what flows through a layer.
pub(crate) struct Stream<T: Operand> {
    /// The residual stream: what goes in, and comes out.
    pub(crate) x: Blocks,
    pub(crate) normed: Left<T>,
    attended: Left<T>,
    hidden: Left<T>,
}

impl<T: Operand> Stream<T> {
    /// For at most `blocks` blocks of `rows` rows, in panels of `panel` columns.
    pub(crate) fn new(of: &Transformer, panel: usize, rows: usize, blocks: usize) -> Self {
        let room = |columns| Left::zeros(panel, rows, columns, blocks);
        Self {
            x: Blocks::zeros(panel, rows, of.width, blocks),
            normed: room(of.width),
            attended: room(of.width),
            hidden: room(of.mlp_width),
        }
    }

    /// Takes some tokens, each by its block and row, of the residual stream of `other` as rows of one block.
    pub(crate) fn pool(&mut self, other: &Self, tokens: impl Iterator<Item = (usize, usize)>) {
        for (to, (block, row)) in tokens.enumerate() {
            self.x.copy_row(to, &other.x, block, row);
        }
    }
}

/// Room for attention.
pub(crate) struct Attending<A: Piecewise> {
    qkv: Blocks<A>,
    attention: Attention<A>,
}

impl<A: Piecewise> Attending<A> {
    /// For at most `blocks` blocks of `rows` rows.
    pub(crate) fn new(of: &Transformer, panel: usize, rows: usize, sight: Sight, blocks: usize) -> Self {
        let layout = Layout::new::<A>(panel, rows, of.width);
        Self {
            qkv: Blocks::zeros(panel, rows, 3 * of.width, blocks),
            attention: Attention::new(layout, of.heads, sight, blocks),
        }
    }
}

/// What a pass is over.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) extent: Extent,
    /// Those of the extent's blocks.
    pub(crate) sequences: &'a Sequences,
    /// Called between its steps, two in a layer.
    pub(crate) pause: Pause<'a>,
}

impl<T: Operand> Layers<T> {
    /// Takes `{prefix}.layers.{i}.…` for every layer. What follows attention in the last one is whole: its rows may be of several
    /// sequences.
    pub(crate) fn load<E>(
        take: &mut Take<'_, E>,
        prefix: &str,
        of: &Transformer,
        kernel: &Kernel<T>,
    ) -> Result<Self, E> {
        let layer = |i| {
            let pack = if i + 1 == of.layers {
                Linear::whole
            } else {
                Linear::pack
            };
            Layer::load(take, &format!("{prefix}.layers.{i}"), of, (kernel, pack))
        };
        (0..of.layers).map(layer).collect::<Result<_, _>>().map(Self)
    }

    /// Takes all tokens of `stream.x` through all layers.
    pub(crate) fn forward(
        &self,
        kernel: &Kernel<T>,
        pass: Pass<'_>,
        stream: &mut Stream<T>,
        attending: &mut Attending<T::Piece>,
    ) {
        through(&self.0, kernel, pass, stream, attending);
    }

    /// As [`Self::forward`], but of the last layer only the token that is asked of each sequence is wanted, into a row of
    /// `pooled.x`. `stream.x` is left as it came into that layer.
    pub(crate) fn forward_pooled(
        &self,
        kernel: &Kernel<T>,
        pass: Pass<'_>,
        asked: Asked,
        stream: &mut Stream<T>,
        attending: &mut Attending<T::Piece>,
        pooled: &mut Stream<T>,
    ) {
        let tokens = || pass.sequences.tokens(pass.extent.blocks, asked);
        let Some((last, before)) = self.0.split_last() else {
            return pooled.pool(stream, tokens());
        };
        through(before, kernel, pass, stream, attending);
        last.attend(kernel, pass, asked, stream, attending);
        (pass.pause)();
        pooled.pool(stream, tokens());
        for (to, (block, row)) in tokens().enumerate() {
            let pieces = &mut pooled.attended.pieces;
            pieces.copy_row(to, &stream.attended.pieces, block, row);
        }
        let rows = Extent {
            blocks: 1,
            rows: tokens().count(),
            ..pass.extent
        };
        last.finish(kernel, rows, pooled);
    }
}

/// Takes all tokens through some layers.
fn through<T: Operand>(
    layers: &[Layer<T>],
    kernel: &Kernel<T>,
    pass: Pass<'_>,
    stream: &mut Stream<T>,
    attending: &mut Attending<T::Piece>,
) {
    for layer in layers {
        layer.attend(kernel, pass, Asked::All, stream, attending);
        (pass.pause)();
        layer.finish(kernel, pass.extent, stream);
        (pass.pause)();
    }
}

impl<T: Operand> Layer<T> {
    /// What follows attention is packed by `pack`.
    fn load<E>(
        take: &mut Take<'_, E>,
        prefix: &str,
        of: &Transformer,
        (kernel, pack): (&Kernel<T>, Pack<T>),
    ) -> Result<Self, E> {
        let width = of.width;
        let scale = ((width / of.heads) as f64).sqrt().recip() as f32;
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for (name, scale) in [("q_proj", scale), ("k_proj", 1.0), ("v_proj", 1.0)] {
            let name = format!("{prefix}.self_attn.{name}");
            let part = take(&format!("{name}.weight"), &[width, width])?;
            weights.extend(part.iter().map(|value| value * scale));
            let part = take(&format!("{name}.bias"), &[width])?;
            biases.extend(part.iter().map(|value| value * scale));
        }
        let qkv = Linear::pack(&weights, width, &biases, kernel);
        let mut matrix = |name: &str, inputs: usize, outputs: usize| {
            let weights = take(&format!("{prefix}.{name}.weight"), &[outputs, inputs])?;
            let bias = take(&format!("{prefix}.{name}.bias"), &[outputs])?;
            Ok::<_, E>(pack(&weights, inputs, &bias, kernel))
        };
        Ok(Self {
            qkv,
            out: matrix("self_attn.out_proj", width, width)?,
            fc1: matrix("mlp.fc1", width, of.mlp_width)?,
            activation: of.activation,
            fc2: matrix("mlp.fc2", of.mlp_width, width)?,
            norm1: LayerNorm::load(take, &format!("{prefix}.layer_norm1"), of)?,
            norm2: LayerNorm::load(take, &format!("{prefix}.layer_norm2"), of)?,
        })
    }

    /// Attention before the output projection, for the tokens that are asked for, into `stream.attended`.
    fn attend(
        &self,
        kernel: &Kernel<T>,
        Pass {
            extent, sequences, ..
        }: Pass<'_>,
        asked: Asked,
        stream: &mut Stream<T>,
        Attending { qkv, attention }: &mut Attending<T::Piece>,
    ) {
        let Stream {
            x, normed, attended, ..
        } = stream;
        let vectors = kernel.vectors.as_ref();
        self.norm1.forward(vectors, x, extent, &mut normed.pieces);
        // Queries that nobody reads.
        let are_first = asked == Asked::First && sequences.are_one_each(extent.blocks);
        let mixed = Output {
            of_first_row: if are_first { qkv.layout.panels / 3 } else { 0 },
            ..Output::new(qkv)
        };
        self.qkv.product(kernel, normed, extent, mixed);
        let sequences = (sequences, extent.blocks);
        attention.attend(kernel, qkv, sequences, asked, &mut attended.pieces);
    }

    /// The output projection and the MLP.
    fn finish(&self, kernel: &Kernel<T>, extent: Extent, stream: &mut Stream<T>) {
        let Stream {
            x,
            normed,
            attended,
            hidden,
        } = stream;
        self.out.product(kernel, attended, extent, Output::residual(x));
        let vectors = kernel.vectors.as_ref();
        self.norm2.forward(vectors, x, extent, &mut normed.pieces);
        let activated = Output {
            activation: Some(self.activation),
            ..Output::new(&mut hidden.pieces)
        };
        self.fc1.product(kernel, normed, extent, activated);
        self.fc2.product(kernel, hidden, extent, Output::residual(x));
    }
}
