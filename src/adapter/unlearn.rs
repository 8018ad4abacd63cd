//! A head without some of its classes.
//!
//! What is in closed form is made anew from the statistics of the classes that stay, and is what it would be had the
//! others never been learned: statistics are additive, and each task's are kept apart. What was trained keeps its
//! weights, which the others' examples have moved; only its rows for their classes go.
//!
//! | scorer | the classes that stay | exact |
//! |---|---|---|
//! | anchors | their rows | yes |
//! | a linear or self-attention adapter before the anchors | the adapter as it was trained | no |
//! | prompts | the context as it was trained, the rows of what it makes of the classes | no |
//! | prototypes | whitening and rows from statistics, the adapter between as it was trained | no |
//! | affine, ridge | everything from statistics | where all rows are kept |
//!
//! The random features of a regression stay: no example had a part in them. Where rows are not kept, what was chosen by examples stays: λ, and the weights by which scores became logits.

use candle_core::{Result, Tensor};

use super::affine::Affine;
use super::closed_forms::ClosedForms;
use super::head::{Adapter, Head, Scorer, Term};
use super::prompt::Prompted;
use super::prototypes::Prototypes;
use super::ridge::Ridge;
use super::statistics::Statistics;
use super::whitening::Whitening;
use crate::domain::ModelConfig;

/// What is left of a head.
#[derive(Debug, Clone)]
pub struct Unlearned {
    /// Scores the classes that stay.
    pub head: Head,
    /// Whether it is what it would be had the others never been learned.
    pub exact: bool,
}

/// `head`, which a model with this configuration has learned, with the columns `keep` alone, in that order, which must be the
/// order of the classes in `remaining`. Terms in closed form need `remaining`; others do not look at it.
///
/// # Errors
/// When a column is not the head's, or statistics that the configuration learns with are missing or of another number of
/// classes.
pub fn unlearn(head: &Head, remaining: &Statistics, keep: &[u32], config: &ModelConfig) -> Result<Unlearned> {
    let index = Tensor::new(keep, head.device())?;
    let anchors = head.anchors().index_select(&index, 0)?;
    if config.remembers() && remaining.classes.len() != keep.len() {
        candle_core::bail!(
            "statistics of {} classes for {}",
            remaining.classes.len(),
            keep.len()
        );
    }
    if let (Some(sample), true) = (&remaining.sample, config.strategy.adds_up()) {
        let forms = ClosedForms {
            known: remaining,
            sample,
            anchors: &anchors,
            scale: head.scale(),
            beside_backbone: config.beside_backbone(),
        };
        let made = match head.ridge() {
            Some(ridge) => forms.regression(&ridge.projection, config.lambda)?,
            None => forms.discriminant()?,
        };
        return Ok(Unlearned {
            head: Head::of_terms(made.terms, anchors, head.scale())?,
            exact: true,
        });
    }
    let mut exact = true;
    let mut terms = Vec::with_capacity(head.terms().len());
    for Term { weight, scorer } in head.terms() {
        let (scorer, is_exact) = without_the_others(scorer, remaining, &index)?;
        exact &= is_exact;
        terms.push(Term {
            weight: *weight,
            scorer,
        });
    }
    Ok(Unlearned {
        head: Head::of_terms(terms, anchors, head.scale())?,
        exact,
    })
}

/// A scorer of the classes in `remaining`, and whether it is what it would be without the others.
fn without_the_others(scorer: &Scorer, remaining: &Statistics, keep: &Tensor) -> Result<(Scorer, bool)> {
    Ok(match scorer {
        Scorer::Anchors(Adapter::Identity) => (Scorer::Anchors(Adapter::Identity), true),
        Scorer::Anchors(Adapter::Linear(linear)) => (Scorer::Anchors(Adapter::Linear(linear.clone())), false),
        Scorer::Anchors(Adapter::SelfAttention(attention)) => {
            (Scorer::Anchors(Adapter::SelfAttention(attention.clone())), false)
        }
        Scorer::Prompts(Prompted { context, rows }) => {
            let prompted = Prompted {
                context: context.clone(),
                rows: rows.index_select(keep, 0)?,
            };
            (Scorer::Prompts(prompted), false)
        }
        Scorer::Ridge(ridge) => {
            let Some(gram) = &remaining.gram else {
                candle_core::bail!("a regression needs the sums over random features")
            };
            let (ridge, _) = Ridge::of(gram, ridge.projection.clone(), ridge.lambda)?;
            (Scorer::Ridge(ridge), false)
        }
        Scorer::Prototypes(Prototypes { adapter, .. }) => {
            let whitening = Whitening::of(remaining)?;
            let rows = Prototypes::rows(remaining, &whitening)?;
            let prototypes = Prototypes {
                whitening,
                adapter: adapter.clone(),
                rows,
            };
            (Scorer::Prototypes(prototypes), false)
        }
        Scorer::Affine(_) => (Scorer::Affine(Affine::discriminant(remaining)?), false),
    })
}
