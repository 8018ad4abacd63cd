//! Learning one task: the inner loop.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::affine::Affine;
use super::embedding::normalise;
use super::head::{Adapter, Head, Scorer, Term};
use super::linear::Linear;
use super::prototypes::{self, Prototypes};
use super::retention;
use super::statistics::{ClassStatistics, Statistics};
use super::towers::Towers;
use super::training::{Lesson, Part, Training};
use super::whitening::Whitening;
use crate::domain::{Anchors, ModelConfig, Rehearsal, Strategy, VersionNumber};

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
    /// The new classes' features (n, D).
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Examples fitted on.
    pub examples: usize,
    /// The training of the linear adapter before the anchors, where the strategy has one.
    pub linear: Option<TrainingReport>,
    /// The training of the adapter before the prototypes, where the strategy has one.
    pub prototypes: Option<TrainingReport>,
    /// Time it took.
    pub seconds: f64,
}

/// What training an adapter did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingReport {
    /// Passes over the examples.
    pub epochs: usize,
    /// Optimiser updates.
    pub steps: usize,
    /// Mean loss over the first epoch's steps, in nats.
    pub first_loss: f64,
    /// Mean loss over the last epoch's steps.
    pub last_loss: f64,
    /// Pseudo-features of old classes drawn.
    pub pseudo_features: usize,
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
    let statistics = input.statistics()?;
    let mut known = input
        .base
        .map_or_else(Statistics::default, |base| base.statistics.clone());
    known.extend(statistics.clone())?;
    let mut strategies = Strategies {
        input,
        known: &known,
        embeddings: normalise(input.features)?,
        observe,
        report: FitReport {
            examples: input.labels.len(),
            linear: None,
            prototypes: None,
            seconds: 0.0,
        },
    };
    let terms = strategies.terms()?;
    let mut report = strategies.report;
    let head = Head::of_terms(terms, input.anchors.clone(), input.scale)?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(Fitted {
        head,
        statistics,
        report,
    })
}

/// A fit under way.
struct Strategies<'a, 'b> {
    input: &'a FitInput<'a>,
    /// What is remembered of all classes, the new ones included.
    known: &'a Statistics,
    /// The new examples' embeddings (n, D).
    embeddings: Tensor,
    observe: &'b mut dyn FnMut(FitProgress) -> ControlFlow<()>,
    report: FitReport,
}

impl Strategies<'_, '_> {
    /// The terms of the next version's head.
    fn terms(&mut self) -> Result<Vec<Term>, FitError> {
        const ONE: Part = Part { number: 0, of: 1 };
        let ModelConfig {
            strategy,
            anchors,
            weights,
            ..
        } = self.input.config;
        let term = |weight, scorer| Term { weight, scorer };
        Ok(match (strategy, anchors) {
            (Strategy::ZeroShot, _) => vec![term(1.0, Scorer::Anchors(Adapter::Identity))],
            (Strategy::Linear, _) => vec![term(1.0, self.linear(ONE)?)],
            (Strategy::SelfAttention | Strategy::Prompt | Strategy::Ridge, _) => {
                return Err(FitError::Input("the strategy is not built yet"));
            }
            (Strategy::Gda, _) => vec![term(1.0, Scorer::Affine(Affine::discriminant(self.known)?))],
            (Strategy::Ensemble, Anchors::Examples) => vec![term(1.0, self.prototypes(ONE)?)],
            (Strategy::Ensemble, Anchors::Text) => vec![
                term(weights.zero_shot, Scorer::Anchors(Adapter::Identity)),
                term(weights.linear, self.linear(Part { number: 0, of: 2 })?),
                term(weights.prototypes, self.prototypes(Part { number: 1, of: 2 })?),
            ],
        })
    }

    /// Trains the base's adapter before the anchors on the new examples and rehearsed old classes, then applies
    /// retention.
    fn linear(&mut self, part: Part) -> Result<Scorer, FitError> {
        let base = self.input.base.and_then(|base| base.head.linear());
        let lesson = Lesson {
            embeddings: &self.embeddings,
            labels: self.input.labels,
            old: self.input.old(),
            view: None,
            anchors: self.input.anchors,
            scale: self.input.scale,
            config: self.input.config,
        };
        let (adapter, report) = self.input.train(&lesson, base, part, self.observe)?;
        self.report.linear = Some(report);
        Ok(Scorer::Anchors(Adapter::Linear(adapter)))
    }

    /// The prototypes of all classes, and the same for the adapter before them.
    fn prototypes(&mut self, part: Part) -> Result<Scorer, FitError> {
        let base = self.input.base.and_then(|base| base.head.prototypes());
        let whitening = Whitening::of(self.known)?;
        let rows = Prototypes::rows(self.known, &whitening)?;
        let lesson = Lesson {
            embeddings: &self.embeddings,
            labels: self.input.labels,
            old: self.input.old(),
            view: Some(&whitening),
            anchors: &rows,
            scale: prototypes::SCALE,
            config: self.input.config,
        };
        let base = base.map(|base| &base.adapter);
        let (adapter, report) = self.input.train(&lesson, base, part, self.observe)?;
        self.report.prototypes = Some(report);
        Ok(Scorer::Prototypes(Prototypes {
            whitening,
            adapter,
            rows,
        }))
    }
}

impl<'a> FitInput<'a> {
    fn check(&self) -> Result<(), FitError> {
        let (columns, dim) = self.anchors.dims2()?;
        let known = self.known();
        let new = known as u32..columns as u32;
        let complaint = if self.features.dims2()? != (self.labels.len(), dim) {
            "features do not match labels and anchors"
        } else if !self.labels.iter().all(|label| new.contains(label)) {
            "a label is not a new class's column"
        } else if new.is_empty() || !new.clone().all(|column| self.labels.contains(&column)) {
            "a new class has no examples"
        } else if self.base.is_some_and(|base| base.head.dim() != dim) {
            "the base is for features of another width"
        } else if self.remembers()
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

    /// Whether it looks at what is kept of old classes.
    fn remembers(&self) -> bool {
        self.config.rehearsal != Rehearsal::None || self.config.strategy.needs_scatter()
    }

    /// What is remembered of the base's classes.
    fn old(&self) -> &'a [ClassStatistics] {
        self.base.map_or(&[], |base| &base.statistics.classes)
    }

    /// Columns of the base.
    fn known(&self) -> usize {
        self.base.map_or(0, |base| base.head.columns())
    }

    /// An adapter from `base`, or from the beginning where there is none, after `lesson` and retention.
    fn train(
        &self,
        lesson: &Lesson<'_>,
        base: Option<&Linear>,
        part: Part,
        observe: &mut dyn FnMut(FitProgress) -> ControlFlow<()>,
    ) -> Result<(Linear, TrainingReport), FitError> {
        let mut rng = self.random(part);
        let old = match base {
            Some(base) => base.clone(),
            None => self.initial(part)?,
        };
        let (new, report) = Training::new(lesson, old.clone(), &mut rng)?.run(part, observe)?;
        let kept = match base {
            Some(_) => retention::apply(self.config.retention, &old, new, &mut rng)?,
            None => new,
        };
        Ok((kept, report))
    }

    /// An adapter that has learned nothing.
    fn initial(&self, part: Part) -> candle_core::Result<Linear> {
        let mut rng = self.random(part);
        rng.set_stream(u64::MAX - part.number as u64);
        let device = self.anchors.device();
        Linear::initial(self.config.initialisation, self.anchors.dim(1)?, &mut rng, device)
    }

    /// The random numbers of one training: no two trainings on top of one another share theirs.
    fn random(&self, part: Part) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        let base = self.base.map_or(0, |base| u64::from(base.version.0));
        rng.set_stream((part.number as u64) << 32 | base);
        rng
    }

    /// Statistics of the new classes, for later fits.
    fn statistics(&self) -> candle_core::Result<Statistics> {
        let rank = match self.config.rehearsal {
            Rehearsal::Gaussian { rank, .. } => rank,
            Rehearsal::None if self.config.strategy.needs_scatter() => 0,
            Rehearsal::None => return Ok(Statistics::default()),
        };
        let mut rows = vec![Vec::new(); self.anchors.dim(0)? - self.known()];
        for (row, &label) in (0_u32..).zip(self.labels) {
            rows[label as usize - self.known()].push(row);
        }
        let of_class = |rows: Vec<u32>| {
            let index = Tensor::new(rows, self.features.device())?;
            self.features.index_select(&index, 0)
        };
        let rows: Vec<Tensor> = rows
            .into_iter()
            .map(of_class)
            .collect::<candle_core::Result<_>>()?;
        Statistics::estimate(&rows, rank, self.config.strategy.needs_scatter())
    }
}
