//! The epochs of a fit: batches of new examples, each joined by pseudo-embeddings of old classes.

use std::ops::ControlFlow;

use candle_core::Tensor;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::fit::{FitError, FitProgress, TrainingReport};
use super::linear::Linear;
use super::objective::Targets;
use super::optimiser::{Adam, cosine, peak_rate};
use super::rehearsal::Rehearsal;
use super::statistics::ClassStatistics;
use super::whitening::Whitening;
use crate::domain::{self, ModelConfig};

/// What one adapter is trained on.
pub(super) struct Lesson<'a> {
    /// Unit embeddings (n, D) of the new examples.
    pub(super) embeddings: &'a Tensor,
    /// Their columns (n).
    pub(super) labels: &'a [u32],
    /// The old classes, in column order, to be rehearsed.
    pub(super) old: &'a [ClassStatistics],
    /// What the adapter stands behind; `None` for the embeddings as they are.
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

/// A training under way. Owns the only adapter that changes; each step replaces its tensors.
pub(super) struct Training<'a> {
    lesson: &'a Lesson<'a>,
    /// The new examples as the adapter sees them (n, D).
    inputs: Tensor,
    rehearsal: Option<(Rehearsal, f64)>,
    adapter: Linear,
    weight: Adam,
    bias: Adam,
    rng: &'a mut ChaCha8Rng,
    pseudo_features: usize,
}

impl<'a> Training<'a> {
    pub(super) fn new(
        lesson: &'a Lesson<'a>,
        adapter: Linear,
        rng: &'a mut ChaCha8Rng,
    ) -> candle_core::Result<Self> {
        let rehearsal = match lesson.config.rehearsal {
            domain::Rehearsal::Gaussian { per_example, .. } if !lesson.old.is_empty() => {
                Some((Rehearsal::new(lesson.old)?, per_example))
            }
            _ => None,
        };
        Ok(Self {
            inputs: lesson.seen(lesson.embeddings)?,
            lesson,
            rehearsal,
            weight: Adam::new(&adapter.weight)?,
            bias: Adam::new(&adapter.bias)?,
            adapter,
            rng,
            pseudo_features: 0,
        })
    }

    pub(super) fn run(
        mut self,
        part: Part,
        observe: &mut dyn FnMut(FitProgress) -> ControlFlow<()>,
    ) -> Result<(Linear, TrainingReport), FitError> {
        let examples = self.lesson.labels.len();
        let config = self.lesson.config;
        let per_epoch = examples.div_ceil(config.batch_size);
        let epochs = config.epochs.max(config.min_steps.div_ceil(per_epoch));
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
            pseudo_features: self.pseudo_features,
        };
        Ok((self.adapter, report))
    }

    /// A loss is measured before its update, so the last update has none.
    fn check_last_update(&self, step: usize) -> Result<(), FitError> {
        let sum = self.adapter.weight.sum_all()?.to_scalar::<f32>()?
            + self.adapter.bias.sum_all()?.to_scalar::<f32>()?;
        if sum.is_finite() {
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
        if let Some((rehearsal, per_example)) = &mut self.rehearsal {
            let count = (rows.len() as f64 * *per_example).ceil() as usize;
            let (pseudo, old) = rehearsal.draw(count, self.rng)?;
            x = Tensor::cat(&[x, self.lesson.seen(&pseudo)?], 0)?;
            columns.extend(old);
            self.pseudo_features += count;
        }
        let targets = Targets {
            anchors: self.lesson.anchors,
            scale: self.lesson.scale,
        };
        let evaluated = targets.evaluate(&self.adapter, &x, &columns)?;
        self.adapter = Linear {
            weight: self.weight.step(&self.adapter.weight, &evaluated.weight, rate)?,
            bias: self.bias.step(&self.adapter.bias, &evaluated.bias, rate)?,
        };
        Ok(evaluated.loss)
    }
}

impl Lesson<'_> {
    /// Embeddings as the adapter is given them.
    fn seen(&self, embeddings: &Tensor) -> candle_core::Result<Tensor> {
        match self.view {
            Some(whitening) => whitening.view(embeddings),
            None => Ok(embeddings.clone()),
        }
    }
}
