//! Class prototypes: the whitened means of the examples, and a linear adapter that is trained between.
//!
//! ```text
//! logit_c = s · cos(A w(x), w(μ_c)),    w the whitening of all tasks so far, A a linear adapter from the identity
//! ```
//!
//! Means and whitening are in closed form and follow every task; A is trained as the adapter before the text anchors
//! is, by rehearsal and retention.

use candle_core::{Result, Tensor};

use super::embedding::{against, normalise};
use super::linear::Linear;
use super::statistics::Statistics;
use super::whitening::{Whitening, means};

/// s. With the whitening's shrinkage it was compared on a validation split of the training rows of four fine-grained
/// data sets, in ten tasks: shrinkages from 0.3 to 0.7 and scales from 10 to 40 are within a point and a half, these two
/// within a third of a point of the best.
pub(super) const SCALE: f64 = 20.0;

/// Prototypes of all classes.
#[derive(Debug, Clone)]
pub struct Prototypes {
    pub(super) whitening: Whitening,
    pub(super) adapter: Linear,
    /// w(μ_c) as unit rows, (C, D).
    pub(super) rows: Tensor,
}

impl Prototypes {
    /// The whitened class means of all classes that `statistics` knows, as unit rows (C, D) in column order.
    pub(super) fn rows(statistics: &Statistics, whitening: &Whitening) -> Result<Tensor> {
        whitening.view(&means(&statistics.classes)?)
    }

    /// Embeddings (n, D) to logits (n, C).
    pub(super) fn logits(&self, embeddings: &Tensor) -> Result<Tensor> {
        let adapted = normalise(&self.adapter.apply(&self.whitening.view(embeddings)?)?)?;
        against(&adapted, &self.rows)? * SCALE
    }

    /// C and D.
    pub(super) fn dims(&self) -> Result<(usize, usize)> {
        let (columns, dim) = self.rows.dims2()?;
        if self.adapter.dim()? != dim || self.whitening.transform.dims2()? != (dim, dim) {
            candle_core::bail!("prototypes of width {dim} behind maps of another");
        }
        Ok((columns, dim))
    }
}
