//! Prompt tuning (arXiv 2310.20348, as CoOp, arXiv 2109.01134): context vectors before the names of all classes, learned
//! through the frozen text tower.
//!
//! ```text
//! T_c = E([start] V [name of c] [end]) / |…|,   logit_c = s · cos(f, T_c)
//! ```
//!
//! What serves is T alone; V is kept so that the next task goes on from it. The text tower is run a few classes at a time,
//! first for T, then, once the loss's slope by T is known, again with its intermediate results for the slope by V: memory
//! does not grow with the number of classes.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rand::Rng;
use rand_distr::{Distribution, Normal};

use super::embedding::normalise;
use super::objective::Targets;
use super::towers::Prompts;
use super::trainable::{Gradient, Trainable, pulled_back};
use crate::domain::Initialisation;

/// Context vectors of a random start, and their standard deviation (CoOp, section 4.1).
const RANDOM_CONTEXT: (usize, f32) = (16, 0.02);

/// Classes that go through the text tower at a time.
const CHUNK: usize = 16;

/// Learned context and what it makes of the classes.
#[derive(Debug, Clone)]
pub struct Prompted {
    /// V, (k, w).
    pub(super) context: Tensor,
    /// T, unit rows (C, D).
    pub(super) rows: Tensor,
}

impl Prompted {
    /// Embeddings (n, D) to cosines (n, C).
    pub(super) fn cosines(&self, embeddings: &Tensor) -> Result<Tensor> {
        embeddings.matmul(&self.rows.t()?)
    }

    /// C and D.
    pub(super) fn dims(&self) -> Result<(usize, usize)> {
        self.rows.dims2()
    }
}

/// Context vectors under training.
#[derive(Clone)]
pub(super) struct Context<'a> {
    /// V, (k, w).
    vectors: Tensor,
    prompts: &'a dyn Prompts,
}

impl<'a> Context<'a> {
    /// Goes on from `vectors`.
    pub(super) fn new(vectors: Tensor, prompts: &'a dyn Prompts) -> Self {
        Self { vectors, prompts }
    }

    /// Context that has learned nothing.
    pub(super) fn initial(
        initialisation: Initialisation,
        prompts: &'a dyn Prompts,
        rng: &mut impl Rng,
    ) -> Result<Self> {
        let template = prompts.template()?;
        let vectors = match initialisation {
            // A template without words before the name has nothing to start from.
            Initialisation::Identity if template.dim(0)? > 0 => template,
            Initialisation::Identity | Initialisation::Kaiming => {
                let (count, deviation) = RANDOM_CONTEXT;
                let width = template.dim(1)?;
                let normal = Normal::new(0.0, deviation).map_err(candle_core::Error::wrap)?;
                let values: Vec<f32> = normal.sample_iter(rng).take(count * width).collect();
                Tensor::from_vec(values, (count, width), template.device())?
            }
        };
        Ok(Self { vectors, prompts })
    }

    /// What it makes of all classes.
    pub(super) fn prompted(self) -> Result<Prompted> {
        Ok(Prompted {
            rows: self.rows()?,
            context: self.vectors,
        })
    }

    /// T, (C, D).
    fn rows(&self) -> Result<Tensor> {
        let chunks: Vec<Tensor> = self
            .chunks()
            .map(|chunk| normalise(&self.prompts.encode(&self.vectors, chunk)?))
            .collect::<Result<_>>()?;
        Tensor::cat(&chunks, 0)
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let classes = self.prompts.classes();
        (0..classes)
            .step_by(CHUNK)
            .map(move |start| start..(start + CHUNK).min(classes))
    }
}

impl Trainable for Context<'_> {
    fn parameters(&self) -> Vec<&Tensor> {
        vec![&self.vectors]
    }

    fn with(&self, mut parameters: Vec<Tensor>) -> Self {
        Self {
            vectors: parameters.pop().unwrap_or_else(|| self.vectors.clone()),
            prompts: self.prompts,
        }
    }

    /// Of embeddings x (n, D); the targets' anchors are none of its business, for it makes its own.
    fn gradient(&self, targets: &Targets<'_>, x: &Tensor, columns: &[u32]) -> Result<Gradient> {
        let rows = self.rows()?;
        let slope = Targets {
            anchors: &rows,
            ..*targets
        }
        .slope(x, columns)?;
        let by_rows = slope.by_anchors()?;
        let mut sum = Tensor::zeros(self.vectors.shape(), self.vectors.dtype(), self.vectors.device())?;
        for chunk in self.chunks() {
            let part = by_rows.narrow(0, chunk.start, chunk.len())?;
            let gradients = pulled_back(&[&self.vectors], &part, |parameters| {
                normalise(&self.prompts.encode(&parameters[0], chunk)?)
            })?;
            for gradient in gradients {
                sum = (sum + gradient)?;
            }
        }
        Ok(Gradient {
            loss: slope.loss,
            parameters: vec![sum],
        })
    }
}
