//! CLIP's towers on the CPU.
//!
//! Weights are packed once into what the processor's vector instructions read in order; bias, activation and residual are
//! part of the products; memory for activations is taken once. Map:
//!
//! | module | holds |
//! |---|---|
//! | `operand` | what products multiply: f32, or bfloat16 in pairs |
//! | `blocks` | how activations and weights lie in memory |
//! | `kernel` | products of rows and panels, by the processor's instructions |
//! | `prefetch` | memory that is asked for before it is read |
//! | `bf16` | those of pairs, by the instructions that x86 has for them |
//! | `elementwise` | layer norm, softmax, activations, by the same |
//! | `matrix` | a packed matrix and its products, on all threads |
//! | `attention` | the heads of a layer, on all threads |
//! | `layers` | the transformer |
//! | `image` | the image tower, from pixels to features |
//! | `text` | the text tower, from token embeddings to features |
//!
//! Invariants: weights never change; the features of an image or of a text depend on it alone, bit for bit, whatever shares its
//! batch and however many threads there are; slices bound every access, and in `bf16` lengths that are asserted; a prefetch is
//! a hint. Threads are those of the rayon pool that the caller runs in.

mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod blocks;
mod elementwise;
mod image;
mod kernel;
mod layers;
mod matrix;
mod operand;
mod prefetch;
mod text;

#[cfg(test)]
mod tests;

use std::fmt;

use crate::kernel::Kernel;
use crate::operand::Pair;

/// Tokens that are computed at a time, for each thread: their activations stay in the caches.
const TOKENS: usize = 256;

/// The dimensions of the transformer of a tower.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transformer {
    /// Values of a token.
    pub width: usize,
    /// Values of a token inside the MLP.
    pub mlp_width: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads; they divide the width.
    pub heads: usize,
    /// Between the two layers of the MLP.
    pub activation: Activation,
    /// ε of the layer norms.
    pub layer_norm_epsilon: f32,
}

/// The dimensions of an image tower.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageShape {
    /// Edge of the square input, in pixels.
    pub image_size: usize,
    /// Edge of a square patch, in pixels.
    pub patch_size: usize,
    /// Of its transformer.
    pub transformer: Transformer,
    /// Values of a feature row.
    pub dim: usize,
}

impl ImageShape {
    /// Patches along one edge; a remainder of the image is not seen, as with a convolution without padding.
    fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens an image: the class token and the patches.
    fn tokens(&self) -> usize {
        self.grid().pow(2) + 1
    }
}

/// The dimensions of a text tower.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextShape {
    /// Tokens of the longest text.
    pub context_length: usize,
    /// Of its transformer.
    pub transformer: Transformer,
    /// Values of a feature row.
    pub dim: usize,
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
    pub fn suiting(tower: &Transformer, precision: Precision) -> Vec<Self> {
        match precision {
            Precision::F32 => suiting(tower, kernel::all(), By::F32),
            Precision::Bf16 => suiting(tower, kernel::all_bf16(), By::Bf16),
        }
    }

    /// Those that suit a tower and that the processor has for this precision, the best first: where there are none, there is
    /// no gain in it.
    pub fn made_for(tower: &Transformer, precision: Precision) -> Vec<Self> {
        match precision {
            Precision::F32 => Self::suiting(tower, precision),
            Precision::Bf16 => suiting(tower, kernel::made_for_bf16(), By::Bf16),
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

fn suiting<T>(tower: &Transformer, kernels: Vec<Kernel<T>>, by: fn(Kernel<T>) -> By) -> Vec<Instructions> {
    let columns = [tower.width / tower.heads, tower.mlp_width];
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

/// Weights of a type that was chosen at load.
enum Either<F, B> {
    F32(F),
    Bf16(B),
}

/// What a tower's instructions were.
struct Chosen {
    name: String,
    precision: Precision,
}

impl Chosen {
    fn of(instructions: &Instructions) -> Self {
        Self {
            name: instructions.to_string(),
            precision: instructions.precision(),
        }
    }
}

/// An image tower, ready to be used.
pub struct ImageTower {
    shape: ImageShape,
    chosen: Chosen,
    by: Either<image::Packed<f32>, image::Packed<Pair>>,
}

impl ImageTower {
    /// Takes `vision_model.…` and `visual_projection`.
    ///
    /// # Errors
    /// Whatever `take` says.
    pub fn load<E>(shape: ImageShape, instructions: Instructions, take: &mut Take<'_, E>) -> Result<Self, E> {
        let chosen = Chosen::of(&instructions);
        let by = match instructions.0 {
            By::F32(kernel) => Either::F32(image::Packed::load(shape, kernel, take)?),
            By::Bf16(kernel) => Either::Bf16(image::Packed::load(shape, kernel, take)?),
        };
        Ok(Self { shape, chosen, by })
    }

    /// The precision of products with weights.
    pub fn precision(&self) -> Precision {
        self.chosen.precision
    }

    /// `(n, 3, image_size, image_size)` pixels, one after another, to features `(n, dim)`, not normalised. Where `states` is
    /// given, the last layer's hidden states `(n, t, width)`, class token first, are put behind what it holds.
    pub fn forward(&self, pixels: &[f32], states: Option<&mut Vec<f32>>) -> Vec<f32> {
        match &self.by {
            Either::F32(packed) => packed.forward(pixels, states),
            Either::Bf16(packed) => packed.forward(pixels, states),
        }
    }

    /// The dimensions.
    pub fn shape(&self) -> &ImageShape {
        &self.shape
    }
}

/// A text tower, ready to be used.
pub struct TextTower {
    chosen: Chosen,
    by: Either<text::Packed<f32>, text::Packed<Pair>>,
}

impl TextTower {
    /// Takes `text_model.…` but for the embeddings of tokens, and `text_projection`.
    ///
    /// # Errors
    /// Whatever `take` says.
    pub fn load<E>(shape: TextShape, instructions: Instructions, take: &mut Take<'_, E>) -> Result<Self, E> {
        let chosen = Chosen::of(&instructions);
        let by = match instructions.0 {
            By::F32(kernel) => Either::F32(text::Packed::load(shape, kernel, take)?),
            By::Bf16(kernel) => Either::Bf16(text::Packed::load(shape, kernel, take)?),
        };
        Ok(Self { chosen, by })
    }

    /// The precision of products with weights.
    pub fn precision(&self) -> Precision {
        self.chosen.precision
    }

    /// The embeddings of all tokens of n texts, without positions, one after another `(Σ lengths, width)`, to features
    /// `(n, dim)`, not normalised: what the tower makes of each text's last token.
    ///
    /// # Panics
    /// When a text has no token or more than `context_length`, or `lengths` are not those of the texts.
    pub fn forward(&self, embeddings: &[f32], lengths: &[usize]) -> Vec<f32> {
        match &self.by {
            Either::F32(packed) => packed.forward(embeddings, lengths),
            Either::Bf16(packed) => packed.forward(embeddings, lengths),
        }
    }
}

impl fmt::Display for ImageTower {
    /// The instructions it uses.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.chosen.name)
    }
}

impl fmt::Display for TextTower {
    /// The instructions it uses.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.chosen.name)
    }
}
