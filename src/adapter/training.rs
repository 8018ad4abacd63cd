//! The epochs of a fit: batches of new examples, each joined by rehearsed rows of old classes.

use std::collections::HashSet;
use std::ops::ControlFlow;

use candle_core::Tensor;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::fit::{FitError, FitProgress, TrainingReport};
use super::objective::{Pairs, Targets};
use super::optimiser::{Adam, cosine, peak_rate};
use super::penalty::Penalty;
use super::rehearsal::Rehearsal;
use super::statistics::ClassStatistics;
use super::trainable::{Fused, Trainable, total};
use super::whitening::Whitening;
use crate::domain::{self, ModelConfig, Retention};

/// How often a class's examples are gone over, all together, before passes are saved.
const VIEWS: usize = 100;

/// What one adapter is trained on.
pub(super) struct Lesson<'a> {
    /// The new examples (n, …): unit embeddings, or tokens.
    pub(super) rows: &'a Tensor,
    /// Their columns (n).
    pub(super) labels: &'a [u32],
    /// The old classes, in column order, to be rehearsed.
    pub(super) old: &'a [ClassStatistics],
    /// What the adapter stands behind; `None` for the rows as they are.
    pub(super) view: Option<&'a Whitening>,
    /// What it stands before, unit rows (C, D).
    pub(super) anchors: &'a Tensor,
    /// What cosines are multiplied with.
    pub(super) scale: f64,
    /// How to train.
    pub(super) config: &'a ModelConfig,
}

/// Which of a fit's trainings it is, for its progress.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// From 0.
    pub(super) number: usize,
    /// In all.
    pub(super) of: usize,
}

/// Where an adapter starts from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// It has learned nothing yet.
    Untrained,
    /// It knows earlier tasks, which a penalty holds it to.
    Trained,
}

/// A training under way. Owns the only adapter that changes; each step replaces its tensors.
pub(super) struct Training<'a, A> {
    batches: Batches<'a>,
    learner: Learner<'a, A>,
}

/// Where batches come from.
struct Batches<'a> {
    lesson: &'a Lesson<'a>,
    /// The new examples as the adapter sees them (n, …).
    inputs: Tensor,
    rehearsal: Option<Rehearsal>,
    rng: &'a mut ChaCha8Rng,
}

/// New examples with rehearsed rows of old classes behind them.
struct Batch {
    /// As the adapter sees them (n, …).
    rows: Tensor,
    /// Their columns (n).
    columns: Vec<u32>,
    /// How many of them are rehearsed.
    rehearsed: usize,
}

/// What learns from batches.
struct Learner<'a, A> {
    lesson: &'a Lesson<'a>,
    pairs: Option<Pairs>,
    penalty: Option<Penalty>,
    adapter: A,
    fused: Option<Box<dyn Fused<A>>>,
    optimisers: Vec<Adam>,
}

impl<'a, A: Trainable> Training<'a, A> {
    pub(super) fn new(
        lesson: &'a Lesson<'a>,
        adapter: A,
        start: Start,
        rng: &'a mut ChaCha8Rng,
    ) -> candle_core::Result<Self> {
        let config = lesson.config;
        let rehearsal = match config.rehearsal {
            domain::Rehearsal::None => None,
            _ if lesson.old.is_empty() => None,
            _ => Some(Rehearsal::new(lesson.old, rng)?),
        };
        let pairs = config
            .hinge
            .map(|hinge| Pairs::among(lesson.anchors, lesson.old.len(), hinge));
        let optimisers = adapter.parameters().into_iter().map(Adam::new);
        let mut batches = Batches {
            inputs: lesson.seen(lesson.rows)?,
            lesson,
            rehearsal,
            rng,
        };
        let mut learner = Learner {
            lesson,
            pairs: pairs.transpose()?,
            penalty: None,
            optimisers: optimisers.collect::<candle_core::Result<_>>()?,
            adapter,
            fused: None,
        };
        learner.fused = learner.adapter.fused(&learner.targets())?;
        if let (Retention::Penalty { strength }, Start::Trained) = (config.retention, start) {
            // Measured on rehearsed rows; without any there is nothing to hold on to.
            if let Some((rows, columns)) = batches.rehearse(Penalty::ROWS)? {
                let measured =
                    Penalty::measure(&learner.adapter, &learner.targets(), (&rows, &columns), strength)?;
                learner.penalty = Some(measured);
            }
        }
        Ok(Self { batches, learner })
    }

    pub(super) fn run(
        mut self,
        part: Part,
        observe: &mut dyn FnMut(FitProgress) -> ControlFlow<()>,
    ) -> Result<(A, TrainingReport), FitError> {
        let lesson = self.batches.lesson;
        let (examples, config) = (lesson.labels.len(), lesson.config);
        let per_epoch = examples.div_ceil(config.batch_size);
        let epochs = epochs(config, lesson.labels);
        let steps = epochs * per_epoch;
        let peak = peak_rate(config.learning_rate, lesson.scale);
        let mut order: Vec<u32> = (0..examples as u32).collect();
        let mut losses = Vec::with_capacity(steps);
        let mut rehearsed = 0;
        for epoch in 0..epochs {
            order.shuffle(self.batches.rng);
            let mut pending = order.chunks(config.batch_size);
            let mut drawn = self.batches.next(pending.next())?;
            while let Some(batch) = drawn {
                let rate = cosine(peak, losses.len(), steps);
                // The next batch does not depend on what is learned from this one.
                let following = pending.next();
                let (loss, next) = rayon::join(
                    || self.learner.step(&batch, rate),
                    || self.batches.next(following),
                );
                let loss = loss?;
                drawn = next?;
                losses.push(loss);
                rehearsed += batch.rehearsed;
                let step = losses.len();
                if !loss.is_finite() {
                    return Err(FitError::NotFinite { step, loss });
                }
                if observe(FitProgress {
                    epoch: part.number * epochs + epoch + 1,
                    epochs: part.of * epochs,
                    step: part.number * steps + step,
                    steps: part.of * steps,
                    loss,
                })
                .is_break()
                {
                    return Err(FitError::Stopped);
                }
            }
        }
        self.check_last_update(losses.len())?;
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let report = TrainingReport {
            epochs,
            steps,
            first_loss: mean(&losses[..per_epoch]),
            last_loss: mean(&losses[steps - per_epoch..]),
            rehearsed,
        };
        Ok((self.learner.adapter, report))
    }

    /// A loss is measured before its update, so the last update has none.
    fn check_last_update(&self, step: usize) -> Result<(), FitError> {
        if total(&self.learner.adapter.parameters())?.is_finite() {
            Ok(())
        } else {
            Err(FitError::NotFinite { step, loss: f64::NAN })
        }
    }
}

impl Batches<'_> {
    /// The batch of the examples `rows`; `None` where there are none.
    fn next(&mut self, rows: Option<&[u32]>) -> candle_core::Result<Option<Batch>> {
        let Some(rows) = rows else {
            return Ok(None);
        };
        let index = Tensor::new(rows, self.inputs.device())?;
        let mut batch = Batch {
            rows: self.inputs.index_select(&index, 0)?,
            columns: rows.iter().map(|&row| self.lesson.labels[row as usize]).collect(),
            rehearsed: 0,
        };
        let count = (rows.len() as f64 * self.lesson.config.rehearsal.per_example()).ceil() as usize;
        if let Some((old, columns)) = self.rehearse(count)? {
            batch.rows = Tensor::cat(&[batch.rows, old], 0)?;
            batch.columns.extend(columns);
            batch.rehearsed = count;
        }
        Ok(Some(batch))
    }

    /// `count` rows of old classes as the adapter sees them, and their columns; `None` where none are rehearsed.
    fn rehearse(&mut self, count: usize) -> candle_core::Result<Option<(Tensor, Vec<u32>)>> {
        let Some(rehearsal) = &mut self.rehearsal else {
            return Ok(None);
        };
        let (rows, columns) = rehearsal.draw(count, self.rng)?;
        Ok(Some((self.lesson.seen(&rows)?, columns)))
    }
}

impl<A: Trainable> Learner<'_, A> {
    /// One optimiser update; the batch's loss before it.
    fn step(&mut self, batch: &Batch, rate: f64) -> candle_core::Result<f64> {
        let mut gradient = match &mut self.fused {
            Some(fused) => fused.gradient(&self.adapter, &batch.rows, &batch.columns),
            None => {
                let targets = self.targets();
                self.adapter.gradient(&targets, &batch.rows, &batch.columns)
            }
        }?;
        if let Some(penalty) = &self.penalty {
            penalty.add(&self.adapter, &mut gradient)?;
        }
        let parameters = self.adapter.parameters().into_iter().zip(&gradient.parameters);
        let next = parameters.zip(&mut self.optimisers);
        let next = next.map(|((parameter, slope), adam)| adam.step(parameter, slope, rate));
        self.adapter = self.adapter.with(next.collect::<candle_core::Result<_>>()?);
        Ok(gradient.loss)
    }

    fn targets(&self) -> Targets<'_> {
        Targets {
            anchors: self.lesson.anchors,
            scale: self.lesson.scale,
            pairs: self.pairs.as_ref(),
        }
    }
}

/// Passes over a task with these labels.
fn epochs(config: &ModelConfig, labels: &[u32]) -> usize {
    let per_epoch = labels.len().div_ceil(config.batch_size);
    let classes = labels.iter().collect::<HashSet<_>>().len();
    let often_enough = (VIEWS * classes).div_ceil(labels.len());
    let most = often_enough.max(config.max_steps / per_epoch);
    config.epochs.min(most).max(config.min_steps.div_ceil(per_epoch))
}

impl Lesson<'_> {
    /// Rows as the adapter is given them.
    fn seen(&self, rows: &Tensor) -> candle_core::Result<Tensor> {
        match self.view {
            Some(whitening) => whitening.view(rows),
            None => Ok(rows.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Strategy;

    #[test]
    fn passes_suit_the_number_of_examples() {
        let config = ModelConfig::of(Strategy::Linear);
        assert_eq!(
            (
                config.epochs,
                config.min_steps,
                config.max_steps,
                config.batch_size
            ),
            (10, 60, 160, 64)
        );
        let passes = |classes: u32, each: usize| {
            let labels: Vec<u32> = (0..classes)
                .flat_map(|class| std::iter::repeat_n(class, each))
                .collect();
            epochs(&config, &labels)
        };
        assert_eq!(passes(3, 10), 60, "few examples take a step a pass");
        assert_eq!(passes(100, 4), 10);
        assert_eq!(passes(5, 160), 10);
        assert_eq!(passes(10, 1000), 1, "many take as few as there can be");
        assert_eq!(passes(1000, 4), 10, "but not where classes have few each");
        assert_eq!(passes(1000, 50), 2);
    }
}
