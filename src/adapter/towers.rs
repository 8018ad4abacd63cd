//! What of the frozen backbone a fit may look at, beyond features and anchors.
//!
//! The self-attention adapter stands where the image tower ends, and prompts are trained through the text tower. Whoever
//! holds the backbone hands both in; nothing here changes them.

use std::ops::Range;

use candle_core::{Result, Tensor};

/// The parts of the backbone that strategies train behind or before; each is `None` where no strategy needs it.
#[derive(Clone, Copy, Default)]
pub struct Towers<'a> {
    /// The end of the image tower, for self-attention.
    pub readout: Option<&'a Readout>,
    /// The text tower before the version's classes, for prompts.
    pub prompts: Option<&'a dyn Prompts>,
}

impl std::fmt::Debug for Towers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Towers")
            .field("readout", &self.readout.is_some())
            .field("prompts", &self.prompts.is_some())
            .finish()
    }
}

/// How the image tower makes features of its last layer's tokens: the class token, which comes first, goes through a
/// layer norm and a projection.
#[derive(Debug, Clone)]
pub struct Readout {
    /// t, tokens an image.
    pub tokens: usize,
    /// Attention heads of the tower.
    pub heads: usize,
    /// γ of the layer norm, (w).
    pub norm_weight: Tensor,
    /// β of the layer norm, (w).
    pub norm_bias: Tensor,
    /// ε of the layer norm.
    pub norm_epsilon: f64,
    /// (w, D): features are its product with the normalised class token.
    pub projection: Tensor,
}

/// The text tower before a list of classes: context vectors take the place of a template's words.
pub trait Prompts: Send + Sync {
    /// How many classes there are.
    fn classes(&self) -> usize;

    /// The context (k, w) that stands for the words of the first template: behind it every class has its zero-shot
    /// embedding.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn template(&self) -> Result<Tensor>;

    /// Features (n, D), not normalised, of some of the classes behind `context` (k, w), for any k that leaves room for a
    /// name. Differentiable in `context`.
    ///
    /// # Errors
    /// When `context` is of another width or leaves no room.
    fn encode(&self, context: &Tensor, classes: Range<usize>) -> Result<Tensor>;
}
