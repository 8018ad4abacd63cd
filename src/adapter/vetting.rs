//! Whether a version out of a file can serve a model, and be learned on top of.
//!
//! The codecs have seen to form: shapes that fit together and finite numbers. Here is asked whether the classes are
//! classes, whether the head is what the model's strategy makes, whether what is kept of the classes is enough for the
//! next task, and whether all of it is of a size that embeddings have. Whoever made the file may have meant harm.

use std::collections::HashSet;

use candle_core::Tensor;

use super::export::Imported;
use super::head::{Adapter, Head, Scorer};
use super::snapshot::Snapshot;
use super::statistics::{ClassStatistics, Statistics};
use crate::domain::{
    Anchors, Class, EnsembleWeights, Label, ModelConfig, NameError, Prompt, Rehearsal, Strategy,
};

/// Most of the classes' anchors that a head is tried on; every class is among the answers to each.
const TRIED: usize = 16;
/// How much longer than 1 the mean of unit embeddings may be for being rounded.
const ROUNDING: f32 = 1.01;
/// The most that unit embeddings vary, over all directions, with room for rounding and shrinkage.
const WIDEST: f64 = 4.0;
/// Most principal directions of a class; no configuration asks for more.
const MOST_DIRECTIONS: usize = 1024;

/// Why a version cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum VettingError {
    /// It knows nothing.
    #[error("it has no classes")]
    NoClasses,
    /// It is for embeddings of another width than the backbone's.
    #[error("it is for embeddings of {found} values, and the backbone's have {expected}")]
    Width {
        /// Its width.
        found: usize,
        /// The backbone's.
        expected: usize,
    },
    /// Two classes have the same label.
    #[error("the label {0} occurs twice")]
    LabelTwice(Label),
    /// Two classes have the same id.
    #[error("the class {0} has the id of another one")]
    IdTwice(Label),
    /// A class's description is none.
    #[error("the prompt of class {label} cannot be used")]
    Prompt {
        /// The class.
        label: Label,
        /// What is wrong with it.
        #[source]
        source: NameError,
    },
    /// Its head is not what the model's strategy makes.
    #[error("it adds up {found}, and the model's strategy {strategy:?} adds up {expected}")]
    Strategy {
        /// The model's strategy.
        strategy: Strategy,
        /// What it makes.
        expected: String,
        /// What was found.
        found: String,
    },
    /// What the model's configuration learns with is not there.
    #[error(
        "the model learns with {0}, which the file does not hold; models that do not keep it export none"
    )]
    StatisticsMissing(&'static str),
    /// A number is of no size that it could have.
    #[error("{0} cannot be right")]
    Unsound(&'static str),
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

impl Imported {
    /// The version as a model with this configuration keeps it, over a backbone of `dim` values: statistics that it does
    /// not look at are left out.
    ///
    /// # Errors
    /// [`VettingError`] when it cannot serve the model, or nothing could be learned on top of it.
    pub fn vetted(self, config: &ModelConfig, dim: usize) -> Result<Self, VettingError> {
        let Self { snapshot, statistics } = self;
        let head = snapshot.head();
        if head.dim() != dim {
            return Err(VettingError::Width {
                found: head.dim(),
                expected: dim,
            });
        }
        check_classes(snapshot.classes())?;
        check_strategy(head, config)?;
        check_scores(&snapshot)?;
        let statistics = needed(statistics, snapshot.classes().len(), config)?;
        check_statistics(&statistics)?;
        Ok(Self { snapshot, statistics })
    }
}

fn check_classes(classes: &[Class]) -> Result<(), VettingError> {
    if classes.is_empty() {
        return Err(VettingError::NoClasses);
    }
    let (mut labels, mut ids) = (HashSet::new(), HashSet::new());
    for class in classes {
        if !labels.insert(&class.label) {
            return Err(VettingError::LabelTwice(class.label.clone()));
        }
        if !ids.insert(class.id) {
            return Err(VettingError::IdTwice(class.label.clone()));
        }
        if let Some(prompt) = &class.prompt {
            prompt.parse::<Prompt>().map_err(|source| VettingError::Prompt {
                label: class.label.clone(),
                source,
            })?;
        }
    }
    Ok(())
}

/// The head must be what a fit of this configuration makes: the next one starts from its parts.
fn check_strategy(head: &Head, config: &ModelConfig) -> Result<(), VettingError> {
    let found: Vec<(f64, &str)> = head
        .terms()
        .iter()
        .map(|term| (term.weight, kind(&term.scorer)))
        .collect();
    let expected = made_by(config);
    if found == expected {
        return Ok(());
    }
    Err(VettingError::Strategy {
        strategy: config.strategy,
        expected: in_words(&expected),
        found: in_words(&found),
    })
}

const ZERO_SHOT: &str = "the bare backbone";
const LINEAR: &str = "a linear adapter before the anchors";
const PROTOTYPES: &str = "prototypes";
const AFFINE: &str = "a discriminant";

fn kind(scorer: &Scorer) -> &'static str {
    match scorer {
        Scorer::Anchors(Adapter::Identity) => ZERO_SHOT,
        Scorer::Anchors(Adapter::Linear(_)) => LINEAR,
        Scorer::Prototypes(_) => PROTOTYPES,
        Scorer::Affine(_) => AFFINE,
    }
}

/// The terms of the heads that a model with this configuration learns.
fn made_by(config: &ModelConfig) -> Vec<(f64, &'static str)> {
    let EnsembleWeights {
        zero_shot,
        linear,
        prototypes,
    } = config.weights;
    match (config.strategy, config.anchors) {
        (Strategy::ZeroShot, _) => vec![(1.0, ZERO_SHOT)],
        (Strategy::Linear, _) => vec![(1.0, LINEAR)],
        (Strategy::Gda, _) => vec![(1.0, AFFINE)],
        (Strategy::Ensemble, Anchors::Examples) => vec![(1.0, PROTOTYPES)],
        (Strategy::Ensemble, Anchors::Text) => {
            vec![(zero_shot, ZERO_SHOT), (linear, LINEAR), (prototypes, PROTOTYPES)]
        }
        // Nothing makes such heads yet, so none can be right.
        (Strategy::SelfAttention | Strategy::Prompt | Strategy::Ridge, _) => Vec::new(),
    }
}

fn in_words(terms: &[(f64, &str)]) -> String {
    if terms.is_empty() {
        return "nothing".to_owned();
    }
    let terms: Vec<String> = terms
        .iter()
        .map(|(weight, kind)| format!("{weight} × {kind}"))
        .collect();
    terms.join(" + ")
}

/// Tries the head on what stands for its own classes.
fn check_scores(snapshot: &Snapshot) -> Result<(), VettingError> {
    let head = snapshot.head();
    if !(head.scale() > 0.0 && head.scale() <= 1e4) {
        return Err(VettingError::Unsound("the logit scale"));
    }
    let anchors = head.anchors();
    if longest(anchors)? > ROUNDING {
        return Err(VettingError::Unsound("an anchor longer than 1"));
    }
    let tried = anchors.narrow(0, 0, TRIED.min(head.columns()))?;
    let sum = head.logits(&tried)?.abs()?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() {
        Ok(())
    } else {
        Err(VettingError::Unsound("a score that is not finite"))
    }
}

/// What the configuration learns with, of exactly the snapshot's classes.
fn needed(found: Statistics, classes: usize, config: &ModelConfig) -> Result<Statistics, VettingError> {
    let needs_scatter = config.strategy.needs_scatter();
    if config.rehearsal == Rehearsal::None && !needs_scatter {
        return Ok(Statistics::default());
    }
    let Statistics {
        classes: known,
        scatter,
    } = found;
    if known.len() != classes {
        return Err(VettingError::StatisticsMissing("statistics of every class"));
    }
    if needs_scatter && scatter.is_none() {
        return Err(VettingError::StatisticsMissing(
            "the spread that all classes share",
        ));
    }
    Ok(Statistics {
        classes: known,
        scatter: scatter.filter(|_| needs_scatter),
    })
}

fn check_statistics(statistics: &Statistics) -> Result<(), VettingError> {
    let mut freedom = 0_usize;
    for class in &statistics.classes {
        check_class(class)?;
        freedom = freedom.saturating_add(class.count - 1);
    }
    let Some(scatter) = &statistics.scatter else {
        return Ok(());
    };
    if scatter.freedom() != freedom {
        return Err(VettingError::Unsound("the number of examples"));
    }
    let (rows, variance) = scatter.covariance()?;
    let is_small = |value: &f64| value.abs() <= WIDEST;
    if (0.0..=WIDEST).contains(&(variance * rows.len() as f64)) && rows.iter().flatten().all(is_small) {
        Ok(())
    } else {
        Err(VettingError::Unsound("the spread that all classes share"))
    }
}

fn check_class(class: &ClassStatistics) -> Result<(), VettingError> {
    let dim = class.mean.elem_count();
    let directions = class.components.dim(0)?;
    let unsound = if class.count == 0 || class.count > u32::MAX as usize {
        "a class's number of examples"
    } else if longest(&class.mean.unsqueeze(0)?)? > ROUNDING {
        "a class's mean longer than 1"
    } else if directions > dim.min(MOST_DIRECTIONS) {
        "a class's number of principal directions"
    } else if !(0.0..=WIDEST).contains(&(class.residual * dim as f64)) {
        "a class's residual variance"
    } else if f64::from(longest(&class.components)?).powi(2) > WIDEST {
        "a class's variance"
    } else {
        return Ok(());
    };
    Err(VettingError::Unsound(unsound))
}

/// The length of the longest row; 0 where there is none.
fn longest(rows: &Tensor) -> candle_core::Result<f32> {
    if rows.elem_count() == 0 {
        return Ok(0.0);
    }
    rows.sqr()?.sum(1)?.sqrt()?.max_all()?.to_scalar()
}
