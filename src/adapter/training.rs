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
use super::trainable::{Trainable, total};
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
    lesson: &'a Lesson<'a>,
    /// The new examples as the adapter sees them (n, …).
    inputs: Tensor,
    rehearsal: Option<Rehearsal>,
    pairs: Option<Pairs>,
    penalty: Option<Penalty>,
    adapter: A,
    optimisers: Vec<Adam>,
    rng: &'a mut ChaCha8Rng,
    rehearsed: usize,
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
            _ => Some(Rehearsal::new(lesson.old)?),
        };
        let pairs = config
            .hinge
            .map(|hinge| Pairs::among(lesson.anchors, lesson.old.len(), hinge));
        let optimisers = adapter.parameters().into_iter().map(Adam::new);
        let mut training = Self {
            inputs: lesson.seen(lesson.rows)?,
            lesson,
            rehearsal,
            pairs: pairs.transpose()?,
            penalty: None,
            optimisers: optimisers.collect::<candle_core::Result<_>>()?,
            adapter,
            rng,
            rehearsed: 0,
        };
        if let (Retention::Penalty { strength }, Start::Trained) = (config.retention, start) {
            training.penalty = training.penalty(strength)?;
        }
        Ok(training)
    }

    pub(super) fn run(
        mut self,
        part: Part,
        observe: &mut dyn FnMut(FitProgress) -> ControlFlow<()>,
    ) -> Result<(A, TrainingReport), FitError> {
        let examples = self.lesson.labels.len();
        let config = self.lesson.config;
        let per_epoch = examples.div_ceil(config.batch_size);
        let epochs = epochs(config, self.lesson.labels);
        let steps = epochs * per_epoch;
        let peak = peak_rate(config.learning_rate, self.lesson.scale);
        let mut order: Vec<u32> = (0..examples as u32).collect();
        let mut losses = Vec::with_capacity(steps);
        for epoch in 0..epochs {
            order.shuffle(self.rng);
            for batch in order.chunks(config.batch_size) {
                let rate = cosine(peak, losses.len(), steps);
                let loss = self.step(batch, rate)?;
                losses.push(loss);
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
            rehearsed: self.rehearsed,
        };
        Ok((self.adapter, report))
    }

    /// A loss is measured before its update, so the last update has none.
    fn check_last_update(&self, step: usize) -> Result<(), FitError> {
        if total(&self.adapter.parameters())?.is_finite() {
            Ok(())
        } else {
            Err(FitError::NotFinite { step, loss: f64::NAN })
        }
    }

    /// One optimiser update on the examples `rows`; its loss before the update.
    fn step(&mut self, rows: &[u32], rate: f64) -> candle_core::Result<f64> {
        let index = Tensor::new(rows, self.inputs.device())?;
        let mut x = self.inputs.index_select(&index, 0)?;
        let mut columns: Vec<u32> = rows.iter().map(|&row| self.lesson.labels[row as usize]).collect();
        let count = (rows.len() as f64 * self.lesson.config.rehearsal.per_example()).ceil() as usize;
        if let Some((old, of)) = self.rehearse(count)? {
            x = Tensor::cat(&[x, old], 0)?;
            columns.extend(of);
            self.rehearsed += count;
        }
        let mut gradient = self.adapter.gradient(&self.targets(), &x, &columns)?;
        if let Some(penalty) = &self.penalty {
            penalty.add(&self.adapter, &mut gradient)?;
        }
        let parameters = self.adapter.parameters().into_iter().zip(&gradient.parameters);
        let next = parameters.zip(&mut self.optimisers);
        let next = next.map(|((parameter, slope), adam)| adam.step(parameter, slope, rate));
        self.adapter = self.adapter.with(next.collect::<candle_core::Result<_>>()?);
        Ok(gradient.loss)
    }

    /// `count` rows of old classes as the adapter sees them, and their columns; `None` where none are rehearsed.
    fn rehearse(&mut self, count: usize) -> candle_core::Result<Option<(Tensor, Vec<u32>)>> {
        let Some(rehearsal) = &mut self.rehearsal else {
            return Ok(None);
        };
        let (rows, columns) = rehearsal.draw(count, self.rng)?;
        Ok(Some((self.lesson.seen(&rows)?, columns)))
    }

    /// What holds the adapter where it is, measured on rehearsed rows; `None` where none are rehearsed.
    fn penalty(&mut self, strength: f64) -> candle_core::Result<Option<Penalty>> {
        let Some((rows, columns)) = self.rehearse(Penalty::ROWS)? else {
            return Ok(None);
        };
        Penalty::measure(&self.adapter, &self.targets(), (&rows, &columns), strength).map(Some)
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
