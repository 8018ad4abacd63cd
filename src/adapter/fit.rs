//! Learning one task: the inner loop.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::head::{Adapter, Head};
use super::linear::Linear;
use super::retention;
use super::statistics::ClassStatistics;
use super::training::Training;
use crate::domain::{ModelConfig, Rehearsal, VersionNumber};

/// The version a task is learned on top of.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    /// Its number; mixed into the seed, so that no two tasks of a model share their random numbers.
    pub version: VersionNumber,
    /// Its head, left as it is.
    pub head: &'a Head,
    /// What it remembers of its classes, in column order. Not needed without rehearsal.
    pub statistics: &'a [ClassStatistics],
}

/// What a fit needs. All tensors on one device, in f32.
#[derive(Debug, Clone, Copy)]
pub struct FitInput<'a> {
    /// What to learn on top of; `None` for a model's first task.
    pub base: Option<Base<'a>>,
    /// Text embeddings (C, D) of all classes as unit rows: the base's, then the new ones.
    pub anchors: &'a Tensor,
    /// The new classes' features (n, D).
    pub features: &'a Tensor,
    /// Each row's column (n); all of them beyond the base's.
    pub labels: &'a [u32],
    /// The backbone's logit scale.
    pub scale: f64,
    /// How to learn.
    pub config: &'a ModelConfig,
}

/// What a fit made.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// The next version's head.
    pub head: Head,
    /// Statistics of the new classes, in column order; empty without rehearsal.
    pub statistics: Vec<ClassStatistics>,
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
    /// Passes over the examples.
    pub epochs: usize,
    /// Optimiser updates.
    pub steps: usize,
    /// Mean loss over the first epoch's steps, in nats.
    pub first_loss: f64,
    /// Mean loss over the last epoch's steps.
    pub last_loss: f64,
    /// Examples fitted on.
    pub examples: usize,
    /// Pseudo-features of old classes drawn.
    pub pseudo_features: usize,
    /// Time it took.
    pub seconds: f64,
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

/// Learns a task: trains the base's adapter on the new examples and rehearsed old classes, then applies retention.
///
/// The same input gives the same weights, byte for byte, on the same device and build. `observe` is called after every
/// step and may stop the fit.
pub fn fit(
    input: &FitInput<'_>,
    observe: &mut dyn FnMut(FitProgress) -> ControlFlow<()>,
) -> Result<Fitted, FitError> {
    let started = Instant::now();
    input.check()?;
    let mut rng = ChaCha8Rng::seed_from_u64(input.config.seed);
    rng.set_stream(input.base.map_or(0, |base| u64::from(base.version.0)));
    let old = input.starting_point(&mut rng)?;
    let (new, mut report) = Training::new(input, old.clone(), &mut rng)?.run(observe)?;
    let kept = match input.base {
        Some(_) => retention::apply(input.config.retention, &old, new)?,
        None => new,
    };
    let head = Head::new(Adapter::Linear(kept), input.anchors.clone(), input.scale)?;
    let statistics = input.statistics()?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(Fitted {
        head,
        statistics,
        report,
    })
}

impl FitInput<'_> {
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
        } else if self.rehearses() && self.base.is_some_and(|base| base.statistics.len() != known) {
            "statistics do not match the base's classes"
        } else {
            return Ok(());
        };
        Err(FitError::Input(complaint))
    }

    fn rehearses(&self) -> bool {
        self.config.rehearsal != Rehearsal::None
    }

    /// Columns of the base.
    fn known(&self) -> usize {
        self.base.map_or(0, |base| base.head.columns())
    }

    fn starting_point(&self, rng: &mut ChaCha8Rng) -> candle_core::Result<Linear> {
        if let Some(Adapter::Linear(linear)) = self.base.map(|base| base.head.adapter()) {
            return Ok(linear.clone());
        }
        let device = self.anchors.device();
        Linear::initial(self.config.initialisation, self.anchors.dim(1)?, rng, device)
    }

    /// Statistics of the new classes, to be rehearsed by later fits.
    fn statistics(&self) -> candle_core::Result<Vec<ClassStatistics>> {
        let Rehearsal::Gaussian { rank, .. } = self.config.rehearsal else {
            return Ok(Vec::new());
        };
        let mut rows = vec![Vec::new(); self.anchors.dim(0)? - self.known()];
        for (row, &label) in (0_u32..).zip(self.labels) {
            rows[label as usize - self.known()].push(row);
        }
        let class = |rows: Vec<u32>| {
            let index = Tensor::new(rows, self.features.device())?;
            ClassStatistics::estimate(&self.features.index_select(&index, 0)?, rank)
        };
        rows.into_iter().map(class).collect()
    }
}
