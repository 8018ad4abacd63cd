//! A head turns features into scores over the classes of a version.

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use super::affine::Affine;
use super::embedding::{against, normalise};
use super::linear::Linear;
use super::prompt::Prompted;
use super::prototypes::Prototypes;
use super::ridge::Ridge;
use super::self_attention::SelfAttention;
use crate::domain::Reads;

/// Rows scored by one product of tensors, on a GPU and where tokens are read.
///
/// Every such product has exactly this many rows, the last one padded: matrix kernels order their sums by the shapes they
/// are given, so a fixed shape makes a row's scores the same bits whatever shares its batch.
const BLOCK: usize = 16;

/// Rows scored at a time where each is scored by itself.
const ROWS: usize = 64;

/// What stands between the embedding and the anchors.
#[derive(Debug, Clone)]
pub enum Adapter {
    /// Nothing: zero-shot CLIP.
    Identity,
    /// The linear adapter.
    Linear(Linear),
    /// The self-attention adapter, which makes the embedding from tokens.
    SelfAttention(SelfAttention),
}

/// One way of scoring.
#[derive(Debug, Clone)]
pub enum Scorer {
    /// `scale · cos(adapt(x), anchor_c)`, with the head's anchors and scale.
    Anchors(Adapter),
    /// Cosines to class prototypes among whitened embeddings.
    Prototypes(Prototypes),
    /// `w_c · x + b_c`.
    Affine(Affine),
    /// `scale · cos(x, t_c)`, with the head's scale and anchors of its own, made by learned prompts.
    Prompts(Prompted),
    /// `w_c · φ(x)`, φ random features.
    Ridge(Ridge),
}

/// A scorer, and what its logits are multiplied with.
#[derive(Debug, Clone)]
pub struct Term {
    /// The factor.
    pub weight: f64,
    /// The scorer.
    pub scorer: Scorer,
}

/// Scores features against classes: the weighted logits of its terms, added up. The plainest head has one term,
/// `logit_c = scale · cos(adapt(f), anchor_c)`.
#[derive(Debug, Clone)]
pub struct Head {
    terms: Vec<Term>,
    anchors: Tensor,
    scale: f64,
}

impl Head {
    /// A head of one term over `anchors` (C, D), unit rows, with the backbone's logit `scale` (100 for OpenAI's CLIP).
    ///
    /// # Errors
    /// When the adapter's width is not the anchors'.
    pub fn new(adapter: Adapter, anchors: Tensor, scale: f64) -> Result<Self> {
        let term = Term {
            weight: 1.0,
            scorer: Scorer::Anchors(adapter),
        };
        Self::of_terms(vec![term], anchors, scale)
    }

    /// A head of several terms over the classes of `anchors` (C, D).
    ///
    /// # Errors
    /// When a term is for another number of classes or embeddings of another width, or terms read different things.
    pub fn of_terms(terms: Vec<Term>, anchors: Tensor, scale: f64) -> Result<Self> {
        let (columns, dim) = anchors.dims2()?;
        for term in &terms {
            let found = match &term.scorer {
                Scorer::Anchors(Adapter::Identity) => (columns, dim),
                Scorer::Anchors(Adapter::Linear(linear)) => (columns, linear.dim()?),
                Scorer::Anchors(Adapter::SelfAttention(attention)) => (columns, attention.dims()?.1),
                Scorer::Prototypes(prototypes) => prototypes.dims()?,
                Scorer::Affine(affine) => affine.dims()?,
                Scorer::Prompts(prompted) => prompted.dims()?,
                Scorer::Ridge(ridge) => ridge.dims()?,
            };
            if found != (columns, dim) {
                candle_core::bail!("a term for {found:?} and anchors of {:?}", (columns, dim));
            }
        }
        let reading_tokens = terms.iter().filter(|term| term.scorer.reads() == Reads::Tokens);
        if terms.len() > 1 && reading_tokens.count() > 0 {
            candle_core::bail!("a term that reads tokens stands alone");
        }
        Ok(Self {
            terms,
            anchors,
            scale,
        })
    }

    /// The backbone's own classifier over `anchors` (C, D): no adapter is applied.
    pub fn zero_shot(anchors: Tensor, scale: f64) -> Result<Self> {
        Self::new(Adapter::Identity, anchors, scale)
    }

    /// What is added up.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The linear adapter before the anchors, where one was trained.
    pub fn linear(&self) -> Option<&Linear> {
        self.find(|scorer| match scorer {
            Scorer::Anchors(Adapter::Linear(linear)) => Some(linear),
            _ => None,
        })
    }

    /// The self-attention adapter, where one was trained.
    pub fn self_attention(&self) -> Option<&SelfAttention> {
        self.find(|scorer| match scorer {
            Scorer::Anchors(Adapter::SelfAttention(attention)) => Some(attention),
            _ => None,
        })
    }

    /// The learned prompts, where there are any.
    pub fn prompts(&self) -> Option<&Prompted> {
        self.find(|scorer| match scorer {
            Scorer::Prompts(prompted) => Some(prompted),
            _ => None,
        })
    }

    /// The prototypes, where they score.
    pub fn prototypes(&self) -> Option<&Prototypes> {
        self.find(|scorer| match scorer {
            Scorer::Prototypes(prototypes) => Some(prototypes),
            _ => None,
        })
    }

    /// The ridge regression, where it scores.
    pub fn ridge(&self) -> Option<&Ridge> {
        self.find(|scorer| match scorer {
            Scorer::Ridge(ridge) => Some(ridge),
            _ => None,
        })
    }

    fn find<'a, T>(&'a self, part: impl Fn(&'a Scorer) -> Option<T>) -> Option<T> {
        self.terms.iter().find_map(|term| part(&term.scorer))
    }

    /// The classes' anchors (C, D), one row a column of the scores.
    pub fn anchors(&self) -> &Tensor {
        &self.anchors
    }

    /// What cosines with the anchors are multiplied with.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// C, the number of columns.
    pub fn columns(&self) -> usize {
        self.anchors.dims()[0]
    }

    /// What it scores: features, or the last layer's tokens.
    pub fn reads(&self) -> Reads {
        match self.self_attention() {
            Some(_) => Reads::Tokens,
            None => Reads::Features,
        }
    }

    /// Values in a row that it scores: D, or t · w for tokens.
    pub fn width(&self) -> usize {
        match self.self_attention().map(SelfAttention::dims) {
            Some(Ok((width, _))) => width,
            _ => self.dim(),
        }
    }

    /// D, the number of values in a feature row.
    pub fn dim(&self) -> usize {
        self.anchors.dims()[1]
    }

    /// Where its tensors are.
    pub fn device(&self) -> &Device {
        self.anchors.device()
    }

    /// Rows of what it reads, such as features (n, D), to logits (n, C). A row's logits do not depend on the other rows, down to
    /// the last bit.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        let rows = features.dim(0)?;
        if rows == 0 {
            return Tensor::zeros((0, self.columns()), features.dtype(), features.device());
        }
        let is_cpu = features.device().is_cpu();
        // Then all products are those of `against`.
        let are_apart = is_cpu && self.reads() == Reads::Features;
        let size = if are_apart { ROWS } else { BLOCK };
        let block = |number: usize| {
            let (start, length) = (number * size, size.min(rows - number * size));
            let block = features.narrow(0, start, length)?;
            if are_apart {
                return self.scores(&block);
            }
            let padded = block.pad_with_zeros(0, 0, BLOCK - length)?;
            self.scores(&padded)?.narrow(0, 0, length)
        };
        let numbers = 0..rows.div_ceil(size);
        let blocks: Result<Vec<Tensor>> = if is_cpu {
            numbers.into_par_iter().map(block).collect()
        } else {
            numbers.map(block).collect()
        };
        Tensor::cat(&blocks?, 0)
    }

    /// Rows of what it reads to n rows of C probabilities: the softmax of [`Self::logits`].
    pub fn probabilities(&self, features: &Tensor) -> Result<Vec<Vec<f32>>> {
        let logits = self.logits(features)?;
        if logits.elem_count() == 0 {
            return Ok(vec![Vec::new(); features.dim(0)?]);
        }
        candle_nn::ops::softmax(&logits, D::Minus1)?.to_vec2()
    }

    /// The weighted logits of the terms, added up, of rows of what it reads.
    fn scores(&self, rows: &Tensor) -> Result<Tensor> {
        let rows = match self.reads() {
            Reads::Features => normalise(rows)?,
            Reads::Tokens => rows.clone(),
        };
        // Terms that look at the same anchors share one product: their directions add up before it.
        let mut directions = None;
        let mut logits = None;
        for Term { weight, scorer } in &self.terms {
            match scorer {
                Scorer::Anchors(Adapter::Identity) => add(&mut directions, (&rows * *weight)?)?,
                Scorer::Anchors(Adapter::Linear(linear)) => {
                    let adapted = normalise(&linear.apply(&rows)?)?;
                    add(&mut directions, (adapted * *weight)?)?;
                }
                Scorer::Anchors(Adapter::SelfAttention(attention)) => {
                    let adapted = normalise(&attention.apply(&rows)?)?;
                    add(&mut directions, (adapted * *weight)?)?;
                }
                Scorer::Prompts(prompted) => {
                    add(&mut logits, (prompted.cosines(&rows)? * (weight * self.scale))?)?;
                }
                Scorer::Ridge(ridge) => add(&mut logits, (ridge.scores(&rows)? * *weight)?)?,
                Scorer::Prototypes(prototypes) => {
                    add(&mut logits, (prototypes.logits(&rows)? * *weight)?)?;
                }
                Scorer::Affine(affine) => add(&mut logits, (affine.logits(&rows)? * *weight)?)?,
            }
        }
        if let Some(directions) = directions {
            add(&mut logits, (against(&directions, &self.anchors)? * self.scale)?)?;
        }
        match logits {
            Some(logits) => Ok(logits),
            None => Tensor::zeros((rows.dim(0)?, self.columns()), rows.dtype(), rows.device()),
        }
    }
}

impl Scorer {
    fn reads(&self) -> Reads {
        match self {
            Self::Anchors(Adapter::SelfAttention(_)) => Reads::Tokens,
            _ => Reads::Features,
        }
    }
}

fn add(sum: &mut Option<Tensor>, next: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => (sum + next)?,
        None => next,
    });
    Ok(())
}

#[cfg(test)]
mod tests;
