//! CLIP's towers on the CPU, the image tower on an NVIDIA GPU, what fits repeat most, a linear adapter's gradient and a regression's
//! sums, and the products that heads score rows by.
//!
//! Weights are packed once into what the processor's vector instructions read in order; bias, activation and residual are
//! part of the products; memory for activations is taken once. Map:
//!
//! | module | holds |
//! |---|---|
//! | `operand` | what products multiply: f32, bfloat16 in pairs, or whole numbers |
//! | `blocks` | how activations and weights lie in memory |
//! | `instructions` | those that suit a tower |
//! | `processor` | which kernels run here |
//! | `kernel` | what products and the steps between them are |
//! | `lanes` | both, in f32 and in pairs, by any vectors |
//! | `prefetch` | memory that is asked for before it is read |
//! | `integer` | whole numbers, and how activations and weights become such |
//! | `dots` | products of whole numbers |
//! | `crossed` | products of columns |
//! | `x86` | products by vector instructions of x86 alone |
//! | `amx` | products by tiles of x86 |
//! | `tiles` | those tiles |
//! | `elementwise` | layer norm, softmax, activations, by any vectors |
//! | `matrix` | a packed matrix and its products, on threads that are free |
//! | `strassen` | a matrix in halves, which takes seven products instead of eight |
//! | `linear` | a matrix, whole or in halves |
//! | `attention` | the heads of a layer, on threads that are free |
//! | `layers` | the transformer |
//! | `rooms` | memory that forwards use again |
//! | `image` | the image tower, from bytes to features |
//! | `text` | the text tower, from token embeddings to features |
//! | `objective` | the steps of a loss and its gradient |
//! | `adapter` | the gradient of a linear adapter |
//! | `regression` | sums over random features |
//! | `scores` | products of rows with vectors that are not packed |
//! | `cuda` | the image tower on an NVIDIA GPU |
//!
//! Invariants: weights of towers never change. On the CPU the features of an image or of a text depend on it alone, bit for bit, whatever
//! shares its batch and however many threads there are; slices bound every access, and in `tiles` lengths that are asserted; a prefetch is
//! a hint. Threads are those of the rayon pool that the caller runs in, or of the global one; towers compute on one of them, whoever
//! calls. What holds on a GPU stands in `cuda`.

mod adapter;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod blocks;
mod crossed;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dots;
mod elementwise;
mod image;
mod instructions;
mod integer;
mod kernel;
mod lanes;
mod layers;
mod linear;
mod matrix;
mod objective;
mod operand;
mod prefetch;
mod processor;
mod regression;
mod rooms;
mod scores;
mod strassen;
mod text;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;

use crate::instructions::By;

pub use adapter::{LinearAdapter, LinearGradient, LinearObjective};
pub use instructions::{Instructions, Precision};
pub use regression::RandomFeatures;
pub use scores::scores;

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

    /// Bytes an image: red, green and blue.
    pub fn bytes(&self) -> usize {
        3 * self.image_size.pow(2)
    }

    /// Tokens an image: the class token and the patches.
    pub fn tokens(&self) -> usize {
        self.grid().pow(2) + 1
    }

    /// What is added to each token's place, `(tokens, width)`: its position's embedding, and to the first the class token's, which is
    /// all that this place has.
    fn positions<E>(&self, take: &mut Take<'_, E>) -> Result<Vec<f32>, E> {
        let (embeddings, width) = ("vision_model.embeddings", self.transformer.width);
        let class = take(&format!("{embeddings}.class_embedding"), &[width])?;
        let name = format!("{embeddings}.position_embedding.weight");
        let mut positions = take(&name, &[self.tokens(), width])?.into_owned();
        for (position, class) in positions.iter_mut().zip(class.iter()) {
            *position += class;
        }
        Ok(positions)
    }
}

/// What image towers count bytes from: they multiply a byte less this, which is exact in bfloat16 as it is in f32. So what they
/// take for `patch_embedding` are weights for that, and for `position_embedding` positions with what those make of this.
pub const MIDDLE: u8 = 128;

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

/// Where weights come from: the values, all finite, of the tensor with a name and exactly this shape, row by row. Names are
/// those of Hugging Face's checkpoints.
pub type Take<'a, E> = dyn FnMut(&str, &[usize]) -> Result<Cow<'a, [f32]>, E> + 'a;

/// What is called now and then while a tower computes, on a thread of the pool: it may have forwards of its own, each with memory
/// of its own, which the tower keeps.
pub type Pause<'a> = &'a (dyn Fn() + Sync);

/// Does `work` on a thread of the pool: from elsewhere every step of it would be handed over to one, and waited for asleep.
fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
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
    packed: Box<dyn image::Forward>,
}

impl ImageTower {
    /// Takes `vision_model.…` and `visual_projection`.
    ///
    /// # Errors
    /// Whatever `take` says.
    pub fn load<E>(shape: ImageShape, instructions: Instructions, take: &mut Take<'_, E>) -> Result<Self, E> {
        let chosen = Chosen::of(&instructions);
        let packed: Box<dyn image::Forward> = match instructions.0 {
            By::F32(kernel) => Box::new(image::Packed::load(shape, kernel, take)?),
            By::Bf16(kernel) => Box::new(image::Packed::load(shape, kernel, take)?),
            By::Int16(kernel) => Box::new(image::Packed::load(shape, kernel, take)?),
            By::Int8(kernel) => Box::new(image::Packed::load(shape, kernel, take)?),
        };
        Ok(Self {
            shape,
            chosen,
            packed,
        })
    }

    /// What its products are in.
    pub fn precision(&self) -> Precision {
        self.chosen.precision
    }

    /// `(n, 3, image_size, image_size)` bytes, one after another, to features `(n, dim)`, not normalised. Where `states` is
    /// given, the last layer's hidden states `(n, t, width)`, class token first, are put behind what it holds.
    pub fn forward(&self, bytes: &[u8], states: Option<&mut Vec<f32>>) -> Vec<f32> {
        let images: Vec<&[u8]> = bytes.chunks(self.shape.bytes()).collect();
        self.forward_pausing(&images, states, None)
    }

    /// As [`Self::forward`], of images wherever they are, with a `pause` about twice in a layer, if there is one: then all
    /// threads compute in step, and otherwise each has images of its own, as far as there are enough.
    ///
    /// # Panics
    /// When an image has not as many bytes as it should.
    pub fn forward_pausing(
        &self,
        images: &[&[u8]],
        states: Option<&mut Vec<f32>>,
        pause: Option<Pause<'_>>,
    ) -> Vec<f32> {
        let bytes = self.shape.bytes();
        assert!(
            images.iter().all(|image| image.len() == bytes),
            "images of another size"
        );
        in_pool(|| self.packed.forward(images, states, pause))
    }
}

/// A text tower, ready to be used.
pub struct TextTower {
    chosen: Chosen,
    packed: Box<dyn text::Forward>,
}

impl TextTower {
    /// Takes `text_model.…` but for the embeddings of tokens, and `text_projection`.
    ///
    /// # Errors
    /// Whatever `take` says.
    pub fn load<E>(shape: TextShape, instructions: Instructions, take: &mut Take<'_, E>) -> Result<Self, E> {
        let instructions = instructions.whole();
        let chosen = Chosen::of(&instructions);
        let packed: Box<dyn text::Forward> = match instructions.0 {
            By::F32(kernel) => Box::new(text::Packed::load(shape, kernel, take)?),
            By::Bf16(kernel) => Box::new(text::Packed::load(shape, kernel, take)?),
            By::Int16(kernel) => Box::new(text::Packed::load(shape, kernel, take)?),
            By::Int8(kernel) => Box::new(text::Packed::load(shape, kernel, take)?),
        };
        Ok(Self { chosen, packed })
    }

    /// What its products are in.
    pub fn precision(&self) -> Precision {
        self.chosen.precision
    }

    /// The embeddings of all tokens of n texts, without positions, one after another `(Σ lengths, width)`, to features
    /// `(n, dim)`, not normalised: what the tower makes of each text's last token.
    ///
    /// # Panics
    /// When a text has no token or more than `context_length`, or `lengths` are not those of the texts.
    pub fn forward(&self, embeddings: &[f32], lengths: &[usize]) -> Vec<f32> {
        self.forward_pausing(embeddings, lengths, None)
    }

    /// As [`Self::forward`], with a [`Pause`] about twice in a layer, if there is one. All threads compute in step.
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn forward_pausing(
        &self,
        embeddings: &[f32],
        lengths: &[usize],
        pause: Option<Pause<'_>>,
    ) -> Vec<f32> {
        in_pool(|| self.packed.forward(embeddings, lengths, pause))
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
