//! Learning one task: the inner loop.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::embedding::normalise;
use super::head::Head;
use super::statistics::{ClassStatistics, Statistics};
use super::strategies::Strategies;
use super::towers::Towers;
use crate::domain::{ModelConfig, Reads, VersionNumber};

/// The version a task is learned on top of.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    /// Its number; mixed into the seed, so that no two tasks of a model share their random numbers.
    pub version: VersionNumber,
    /// Its head, left as it is.
    pub head: &'a Head,
    /// What it remembers of its classes. Of each of them where they are rehearsed or the strategy is in closed form.
    pub statistics: &'a Statistics,
}

/// What a fit needs. All tensors on one device, in f32.
#[derive(Debug, Clone, Copy)]
pub struct FitInput<'a> {
    /// What to learn on top of; `None` for a model's first task.
    pub base: Option<Base<'a>>,
    /// What stands for all classes, as unit rows (C, D): the base's, then the new ones.
    pub anchors: &'a Tensor,
    /// The new examples: features (n, D), or for a strategy that reads them, tokens (n, t · w).
    pub features: &'a Tensor,
    /// Each row's column (n); all of them beyond the base's.
    pub labels: &'a [u32],
    /// The backbone's logit scale.
    pub scale: f64,
    /// The parts of the backbone that the strategy trains behind or before.
    pub towers: Towers<'a>,
    /// How to learn.
    pub config: &'a ModelConfig,
}

/// What a fit made.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// The next version's head.
    pub head: Head,
    /// What is remembered of the new classes, in column order.
    pub statistics: Statistics,
    /// What happened.
    pub report: FitReport,
}

/// Where a fit stands; sent after every step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FitProgress {
    /// The epoch under way, from 1.
    pub epoch: usize,
    /// Epochs in all.
    pub epochs: usize,
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// The newest step's loss.
    pub loss: f64,
}

/// What a fit did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FitReport {
    /// Examples fitted on.
    pub examples: usize,
    /// The training of what stands before the anchors, or makes them, where the strategy has any: the linear or
    /// self-attention adapter, or prompts.
    pub adapter: Option<TrainingReport>,
    /// The training of the adapter before the prototypes, where the strategy has one.
    pub prototypes: Option<TrainingReport>,
    /// λ of the ridge regression, where there is one.
    pub lambda: Option<f64>,
    /// What the closed form's scores are multiplied with to be logits, where it was calibrated.
    pub temperature: Option<f64>,
    /// Time it took.
    pub seconds: f64,
}

/// What training an adapter did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainingReport {
    /// Passes over the examples.
    pub epochs: usize,
    /// Optimiser updates.
    pub steps: usize,
    /// Mean loss over the first epoch's steps, in nats.
    pub first_loss: f64,
    /// Mean loss over the last epoch's steps.
    pub last_loss: f64,
    /// Rows of old classes drawn.
    pub rehearsed: usize,
}

/// Why a fit came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// The input does not fit together.
    #[error("cannot fit: {0}")]
    Input(&'static str),
    /// The observer said to stop.
    #[error("the fit was stopped")]
    Stopped,
    /// The weights ran away.
    #[error("the loss became {loss} at step {step}")]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// Its loss.
        loss: f64,
    },
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

/// Learns a task on top of the base, as the configured strategy does.
///
/// The same input gives the same weights, byte for byte, on the same device and build. `observe` is called after every
/// step and may stop the fit.
pub fn fit(
    input: &FitInput<'_>,
    observe: &mut dyn FnMut(FitProgress) -> ControlFlow<()>,
) -> Result<Fitted, FitError> {
    let started = Instant::now();
    input.check()?;
    let rows = input.rows()?;
    let mut strategies = Strategies::new(input, &rows, observe)?;
    let terms = strategies.terms()?;
    let (statistics, mut report) = strategies.finish();
    let head = Head::of_terms(terms, input.anchors.clone(), input.scale)?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(Fitted {
        head,
        statistics,
        report,
    })
}

impl<'a> FitInput<'a> {
    fn check(&self) -> Result<(), FitError> {
        let (columns, dim) = self.anchors.dims2()?;
        let known = self.known();
        let new = known as u32..columns as u32;
        let reads = self.config.strategy.reads();
        let (rows, width) = self.features.dims2()?;
        let complaint = if rows != self.labels.len() || (reads == Reads::Features && width != dim) {
            "features do not match labels and anchors"
        } else if !self.labels.iter().all(|label| new.contains(label)) {
            "a label is not a new class's column"
        } else if new.is_empty() || !new.clone().all(|column| self.labels.contains(&column)) {
            "a new class has no examples"
        } else if self.base.is_some_and(|base| base.head.dim() != dim) {
            "the base is for features of another width"
        } else if self
            .base
            .is_some_and(|base| (base.head.reads(), base.head.width()) != (reads, width))
        {
            "the base reads something else of an image"
        } else if self.config.remembers()
            && self
                .base
                .is_some_and(|base| base.statistics.classes.len() != known)
        {
            "statistics do not match the base's classes"
        } else {
            return Ok(());
        };
        Err(FitError::Input(complaint))
    }

    /// The new examples as adapters and statistics take them: unit embeddings, or tokens as they are.
    fn rows(&self) -> candle_core::Result<Tensor> {
        match self.config.strategy.reads() {
            Reads::Features => normalise(self.features),
            Reads::Tokens => Ok(self.features.clone()),
        }
    }

    /// What is remembered of the base's classes.
    pub(super) fn old(&self) -> &'a [ClassStatistics] {
        self.base.map_or(&[], |base| &base.statistics.classes)
    }

    /// Columns of the base.
    pub(super) fn known(&self) -> usize {
        self.base.map_or(0, |base| base.head.columns())
    }

    /// The random numbers of one purpose: no two of a fit, and no two fits on top of one another, share theirs.
    pub(super) fn random(&self, purpose: Purpose) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        let base = self.base.map_or(0, |base| u64::from(base.version.0));
        rng.set_stream(match purpose {
            Purpose::Training(number) => (number as u64) << 32 | base,
            // A start has no base.
            Purpose::Start(number) => u64::MAX - number as u64,
            Purpose::Exemplars => 1 << 48 | base,
        });
        rng
    }

    /// The rows of each new class, by number.
    pub(super) fn by_class(&self) -> candle_core::Result<Vec<Vec<u32>>> {
        let mut rows = vec![Vec::new(); self.anchors.dim(0)? - self.known()];
        for (row, &label) in (0_u32..).zip(self.labels) {
            rows[label as usize - self.known()].push(row);
        }
        Ok(rows)
    }
}

/// What random numbers are drawn for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// The training with this number.
    Training(usize),
    /// What the training with this number starts from.
    Start(usize),
    /// Which examples are kept.
    Exemplars,
}
