//! Whether a version out of a file can serve a model, and be learned on top of.
//!
//! The codecs have seen to form: shapes that fit together and finite numbers. Here is asked whether the classes are
//! classes, whether the head is what the model's strategy makes, whether what is kept of the classes is enough for the
//! next task, and whether all of it is of a size that embeddings have. Whoever made the file may have meant harm.

use std::collections::HashSet;

use candle_core::Tensor;

use super::export::Imported;
use super::gram::Gram;
use super::head::{Adapter, Head, Scorer};
use super::snapshot::Snapshot;
use super::statistics::{ClassStatistics, Statistics};
use crate::domain::{
    Anchors, Class, EnsembleWeights, Keep, Label, ModelConfig, NameError, Prompt, Reads, Strategy,
};

/// Most of the classes' anchors that a head is tried on; every class is among the answers to each.
const TRIED: usize = 16;
/// How much longer than 1 the mean of unit embeddings may be for being rounded.
const ROUNDING: f32 = 1.01;
/// The most that unit embeddings vary, over all directions, with room for rounding and shrinkage.
const WIDEST: f64 = 4.0;
/// Most principal directions of a class; no configuration asks for more.
const MOST_DIRECTIONS: usize = 1024;
/// Most exemplars of a class; no configuration asks for more.
const MOST_EXEMPLARS: usize = 1000;
/// The most that a closed form's scores are multiplied with.
const HIGHEST_TEMPERATURE: f64 = 1e6;

/// Why a version cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum VettingError {
    /// It knows nothing.
    #[error("it has no classes")]
    NoClasses,
    /// It is for rows of another width than the backbone's.
    #[error("it is for rows of {found} values, and the backbone's have {expected}")]
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

/// How many values the backbone's rows have.
#[derive(Debug, Clone, Copy)]
pub struct Widths {
    /// D.
    pub features: usize,
    /// t · w.
    pub tokens: usize,
}

impl Imported {
    /// The version as a model with this configuration keeps it, over a backbone with rows of these `widths`: statistics
    /// that it does not look at are left out.
    ///
    /// # Errors
    /// [`VettingError`] when it cannot serve the model, or nothing could be learned on top of it.
    pub fn vetted(self, config: &ModelConfig, widths: Widths) -> Result<Self, VettingError> {
        let Self { snapshot, statistics } = self;
        let head = snapshot.head();
        let read = match head.reads() {
            Reads::Features => widths.features,
            Reads::Tokens => widths.tokens,
        };
        for (found, expected) in [(head.dim(), widths.features), (head.width(), read)] {
            if found != expected {
                return Err(VettingError::Width { found, expected });
            }
        }
        check_classes(snapshot.classes())?;
        check_strategy(head, config)?;
        check_scores(&snapshot)?;
        let statistics = needed(statistics, head, config)?;
        check_statistics(&statistics, head)?;
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
    let fits = |((weight, kind), (wanted, made)): (&(f64, &str), &(Option<f64>, &str))| {
        let is_right = match wanted {
            Some(wanted) => weight.total_cmp(wanted).is_eq(),
            None => (0.0..=HIGHEST_TEMPERATURE).contains(weight),
        };
        is_right && kind == made
    };
    if found.len() == expected.len() && found.iter().zip(&expected).all(fits) {
        return Ok(());
    }
    Err(VettingError::Strategy {
        strategy: config.strategy,
        expected: in_words(&expected),
        found: in_words(
            &found
                .iter()
                .map(|(weight, kind)| (Some(*weight), *kind))
                .collect::<Vec<_>>(),
        ),
    })
}

const ZERO_SHOT: &str = "the bare backbone";
const LINEAR: &str = "a linear adapter before the anchors";
const PROTOTYPES: &str = "prototypes";
const AFFINE: &str = "a discriminant";
const SELF_ATTENTION: &str = "a self-attention adapter before the anchors";
const PROMPTS: &str = "learned prompts";
const RIDGE: &str = "a ridge regression";

fn kind(scorer: &Scorer) -> &'static str {
    match scorer {
        Scorer::Anchors(Adapter::Identity) => ZERO_SHOT,
        Scorer::Anchors(Adapter::Linear(_)) => LINEAR,
        Scorer::Prototypes(_) => PROTOTYPES,
        Scorer::Affine(_) => AFFINE,
        Scorer::Anchors(Adapter::SelfAttention(_)) => SELF_ATTENTION,
        Scorer::Prompts(_) => PROMPTS,
        Scorer::Ridge(_) => RIDGE,
    }
}

/// The terms of the heads that a model with this configuration learns, with their weights where those are not calibrated.
fn made_by(config: &ModelConfig) -> Vec<(Option<f64>, &'static str)> {
    let EnsembleWeights {
        zero_shot,
        linear,
        prototypes,
    } = config.weights;
    let closed_form = |kind| {
        let mut terms = vec![(None, kind)];
        if config.beside_backbone() {
            terms.push((None, ZERO_SHOT));
        }
        terms
    };
    match (config.strategy, config.anchors) {
        (Strategy::ZeroShot, _) => vec![(Some(1.0), ZERO_SHOT)],
        (Strategy::Linear, _) => vec![(Some(1.0), LINEAR)],
        (Strategy::SelfAttention, _) => vec![(Some(1.0), SELF_ATTENTION)],
        (Strategy::Prompt, _) => vec![(Some(1.0), PROMPTS)],
        (Strategy::Gda, _) => closed_form(AFFINE),
        (Strategy::Ridge, _) => closed_form(RIDGE),
        (Strategy::Ensemble, Anchors::Examples) => vec![(Some(1.0), PROTOTYPES)],
        (Strategy::Ensemble, Anchors::Text | Anchors::Blend) => vec![
            (Some(zero_shot), ZERO_SHOT),
            (Some(linear), LINEAR),
            (Some(prototypes), PROTOTYPES),
        ],
    }
}

fn in_words(terms: &[(Option<f64>, &str)]) -> String {
    if terms.is_empty() {
        return "nothing".to_owned();
    }
    let terms: Vec<String> = terms
        .iter()
        .map(|(weight, kind)| match weight {
            Some(weight) => format!("{weight} × {kind}"),
            None => format!("any × {kind}"),
        })
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
    if let Some(ridge) = head.ridge() {
        let is_positive = ridge.lambda > 0.0 && ridge.lambda.is_finite();
        if !is_positive {
            return Err(VettingError::Unsound("the regression's λ"));
        }
    }
    let tried = match head.reads() {
        Reads::Features => anchors.narrow(0, 0, TRIED.min(head.columns()))?,
        // Any tokens will do.
        Reads::Tokens => {
            let values = (0..head.width()).map(|place| (place as f32).sin());
            Tensor::from_iter(values, head.device())?.reshape((1, head.width()))?
        }
    };
    let sum = head.logits(&tried)?.abs()?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() {
        Ok(())
    } else {
        Err(VettingError::Unsound("a score that is not finite"))
    }
}

/// What the configuration learns with, of exactly the head's classes.
fn needed(found: Statistics, head: &Head, config: &ModelConfig) -> Result<Statistics, VettingError> {
    if !config.remembers() {
        return Ok(Statistics::default());
    }
    let (needs_scatter, needs_gram) = (config.strategy.needs_scatter(), config.strategy.needs_gram());
    let Statistics {
        classes,
        scatter,
        gram,
        sample: _,
    } = found;
    if classes.len() != head.columns() {
        return Err(VettingError::StatisticsMissing("statistics of every class"));
    }
    if needs_scatter && scatter.is_none() {
        return Err(VettingError::StatisticsMissing(
            "the spread that all classes share",
        ));
    }
    let keeps_rows = config.keep == Keep::All && classes.iter().all(|class| class.rows.is_some());
    let features = head.ridge().map(|ridge| ridge.projection.dims()[0]);
    if needs_gram && gram.as_ref().map(Gram::random_features) != features {
        return Err(VettingError::StatisticsMissing("the sums over random features"));
    }
    let needed = Statistics {
        classes,
        scatter: scatter.filter(|_| needs_scatter),
        gram: gram.filter(|_| needs_gram),
        sample: None,
    };
    Ok(if keeps_rows {
        needed.sampled()?
    } else {
        needed.without_rows()
    })
}

fn check_statistics(statistics: &Statistics, head: &Head) -> Result<(), VettingError> {
    let mut freedom = 0_usize;
    for class in &statistics.classes {
        if class.mean.elem_count() != head.width() {
            return Err(VettingError::Unsound("the width of a class's mean"));
        }
        check_class(class)?;
        if head.reads() == Reads::Features {
            check_unit_class(class)?;
        }
        freedom = freedom.saturating_add(class.count - 1);
    }
    let Some(scatter) = &statistics.scatter else {
        return Ok(());
    };
    // A class that was unlearned without its rows has left its part of the scatter.
    let most = if statistics.sample.is_some() {
        freedom
    } else {
        u32::MAX as usize
    };
    if !(freedom..=most).contains(&scatter.freedom()) {
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
    let unsound = if class.count == 0 || class.count > u32::MAX as usize {
        "a class's number of examples"
    } else if class.components.dim(0)? > dim.min(MOST_DIRECTIONS) {
        "a class's number of principal directions"
    } else if class
        .exemplars
        .as_ref()
        .is_some_and(|rows| rows.dims()[0] > class.count.min(MOST_EXEMPLARS))
    {
        "a class's number of exemplars"
    } else if class
        .rows
        .as_ref()
        .is_some_and(|rows| rows.dims()[0] != class.count)
    {
        "rows of a class that are not as many as its examples"
    } else if !(class.residual >= 0.0 && class.residual.is_finite()) {
        "a class's residual variance"
    } else {
        return Ok(());
    };
    Err(VettingError::Unsound(unsound))
}

/// What holds besides for a class of unit embeddings.
fn check_unit_class(class: &ClassStatistics) -> Result<(), VettingError> {
    let dim = class.mean.elem_count();
    let exemplars = class.exemplars.as_ref().map_or(Ok(0.0), longest)?;
    let rows = class.rows.as_ref().map_or(Ok(0.0), longest)?;
    let unsound = if longest(&class.mean.unsqueeze(0)?)? > ROUNDING {
        "a class's mean longer than 1"
    } else if exemplars > ROUNDING {
        "an exemplar longer than 1"
    } else if rows > ROUNDING {
        "a row longer than 1"
    } else if class.residual * dim as f64 > WIDEST {
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
