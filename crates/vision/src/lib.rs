//! CLIP's image tower on the CPU.
//!
//! Weights are packed once into what the processor's vector instructions read in order; bias, activation and residual are
//! part of the products; memory for activations is taken once. Source of the model: `transformers`' `CLIPVisionModel` with
//! `visual_projection`. Map:
//!
//! | module | holds |
//! |---|---|
//! | `operand` | what products multiply: f32, or bfloat16 in pairs |
//! | `blocks` | how activations and weights lie in memory |
//! | `kernel` | products of rows and panels, by the processor's instructions |
//! | `bf16` | those of pairs, by the instructions that x86 has for them |
//! | `elementwise` | layer norm, softmax, activations, by the same |
//! | `matrix` | a packed matrix and its products, on all threads |
//! | `attention` | the heads of a layer, on all threads |
//! | `layers` | the transformer |
//! | `tower` | all of it, from pixels to features |
//!
//! Invariants: weights never change; an image's features depend on it alone, bit for bit, whatever shares its batch and
//! however many threads there are; slices bound every access, and in `bf16` lengths that are asserted. Threads are those of the rayon pool that the caller runs in.

mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod blocks;
mod elementwise;
mod kernel;
mod layers;
mod matrix;
mod operand;
mod tower;

#[cfg(test)]
mod tests;

use std::fmt;

use crate::kernel::Kernel;
use crate::operand::Pair;
use crate::tower::Packed;

/// The dimensions of an image tower.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Edge of the square input, in pixels.
    pub image_size: usize,
    /// Edge of a square patch, in pixels.
    pub patch_size: usize,
    /// Values of a token.
    pub width: usize,
    /// Values of a token inside the MLP.
    pub mlp_width: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads; they divide the width.
    pub heads: usize,
    /// Between the two layers of the MLP.
    pub activation: Activation,
    /// ε of the layer norms.
    pub layer_norm_epsilon: f32,
    /// Values of a feature row.
    pub dim: usize,
}

impl Shape {
    /// Patches along one edge; a remainder of the image is not seen, as with a convolution without padding.
    fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens an image: the class token and the patches.
    fn tokens(&self) -> usize {
        self.grid().pow(2) + 1
    }
}

/// The activation between the two layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(1.702 x)`, OpenAI's.
    QuickGelu,
    /// `x · Φ(x)`, as LAION's checkpoints use it.
    Gelu,
}

/// The type that weights are multiplied in. What is between the products, and their sums, is f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// bfloat16: 16 bits, of which 8 are the exponent, as in f32.
    Bf16,
}

/// Instructions of this processor, and how wide the panels are that they multiply.
pub struct Instructions(By);

enum By {
    F32(Kernel<f32>),
    Bf16(Kernel<Pair>),
}

impl Instructions {
    /// Those that suit a tower, the best first. None do where its heads or its MLP are no multiple of eight values wide.
    pub fn for_shape(shape: &Shape, precision: Precision) -> Vec<Self> {
        match precision {
            Precision::F32 => suiting(shape, kernel::all(), By::F32),
            Precision::Bf16 => suiting(shape, kernel::all_bf16(), By::Bf16),
        }
    }

    /// Those that suit a tower and that the processor has for this precision, the best first: where there are none, there is
    /// no gain in it.
    pub fn made_for(shape: &Shape, precision: Precision) -> Vec<Self> {
        match precision {
            Precision::F32 => Self::for_shape(shape, precision),
            Precision::Bf16 => suiting(shape, kernel::made_for_bf16(), By::Bf16),
        }
    }

    /// The precision of products with weights.
    pub fn precision(&self) -> Precision {
        match self.0 {
            By::F32(_) => Precision::F32,
            By::Bf16(_) => Precision::Bf16,
        }
    }
}

fn suiting<T>(shape: &Shape, kernels: Vec<Kernel<T>>, by: fn(Kernel<T>) -> By) -> Vec<Instructions> {
    let columns = [shape.width / shape.heads, shape.mlp_width];
    let suits = |found: &Kernel<T>| columns.iter().all(|of| of.is_multiple_of(found.columns()));
    let kernels = kernels.into_iter().filter(suits);
    kernels.map(|kernel| Instructions(by(kernel))).collect()
}

impl fmt::Display for Instructions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            By::F32(kernel) => write!(out, "{kernel} f32"),
            By::Bf16(kernel) => write!(out, "{kernel} bf16"),
        }
    }
}

/// Where weights come from: the values of the tensor with a name and exactly this shape, row by row. Names are those of
/// Hugging Face's checkpoints.
pub type Take<'a, E> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>, E> + 'a;

/// An image tower, ready to be used.
pub struct Tower {
    shape: Shape,
    by: Weights,
}

enum Weights {
    F32(Packed<f32>),
    Bf16(Packed<Pair>),
}

impl Tower {
    /// Takes `vision_model.…` and `visual_projection`.
    ///
    /// # Errors
    /// Whatever `take` says.
    pub fn load<E>(shape: Shape, instructions: Instructions, take: &mut Take<'_, E>) -> Result<Self, E> {
        let by = match instructions.0 {
            By::F32(kernel) => Weights::F32(Packed::load(shape, kernel, take)?),
            By::Bf16(kernel) => Weights::Bf16(Packed::load(shape, kernel, take)?),
        };
        Ok(Self { shape, by })
    }

    /// The precision of products with weights.
    pub fn precision(&self) -> Precision {
        match self.by {
            Weights::F32(_) => Precision::F32,
            Weights::Bf16(_) => Precision::Bf16,
        }
    }

    /// `(n, 3, image_size, image_size)` pixels, one after another, to features `(n, dim)`, not normalised. Where `states` is
    /// given, the last layer's hidden states `(n, t, width)`, class token first, are put behind what it holds.
    pub fn forward(&self, pixels: &[f32], states: Option<&mut Vec<f32>>) -> Vec<f32> {
        match &self.by {
            Weights::F32(packed) => packed.forward(pixels, states),
            Weights::Bf16(packed) => packed.forward(pixels, states),
        }
    }

    /// The dimensions.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
}

impl fmt::Display for Tower {
    /// The instructions it uses.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            Weights::F32(packed) => write!(out, "{} f32", packed.kernel()),
            Weights::Bf16(packed) => write!(out, "{} bf16", packed.kernel()),
        }
    }
}
