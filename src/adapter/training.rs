//! The epochs of a fit: batches of new examples, each joined by pseudo-features of old classes.

use std::ops::ControlFlow;

use candle_core::Tensor;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::embedding::normalise;
use super::fit::{FitError, FitInput, FitProgress, FitReport};
use super::linear::Linear;
use super::objective::Targets;
use super::optimiser::{Adam, cosine, peak_rate};
use super::rehearsal::Rehearsal;
use crate::domain;

/// A fit under way. Owns the only adapter that changes; each step replaces its tensors.
pub(super) struct Training<'a> {
    input: &'a FitInput<'a>,
    /// The new examples' embeddings (n, D).
    embeddings: Tensor,
    rehearsal: Option<(Rehearsal, f64)>,
    adapter: Linear,
    weight: Adam,
    bias: Adam,
    rng: &'a mut ChaCha8Rng,
    pseudo_features: usize,
}

impl<'a> Training<'a> {
    pub(super) fn new(
        input: &'a FitInput<'a>,
        adapter: Linear,
        rng: &'a mut ChaCha8Rng,
    ) -> candle_core::Result<Self> {
        let rehearsal = match (input.base, input.config.rehearsal) {
            (Some(base), domain::Rehearsal::Gaussian { per_example, .. }) if !base.statistics.is_empty() => {
                Some((Rehearsal::new(base.statistics)?, per_example))
            }
            _ => None,
        };
        Ok(Self {
            input,
            embeddings: normalise(input.features)?,
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
        observe: &mut dyn FnMut(FitProgress) -> ControlFlow<()>,
    ) -> Result<(Linear, FitReport), FitError> {
        let examples = self.input.labels.len();
        let config = self.input.config;
        let per_epoch = examples.div_ceil(config.batch_size);
        let epochs = config.epochs.max(config.min_steps.div_ceil(per_epoch));
        let steps = epochs * per_epoch;
        let peak = peak_rate(self.input.config.learning_rate, self.input.scale);
        let mut order: Vec<u32> = (0..examples as u32).collect();
        let mut losses = Vec::with_capacity(steps);
        for epoch in 0..epochs {
            order.shuffle(self.rng);
            for batch in order.chunks(self.input.config.batch_size) {
                let rate = cosine(peak, losses.len(), steps);
                let loss = self.step(batch, rate)?;
                losses.push(loss);
                let step = losses.len();
                if !loss.is_finite() {
                    return Err(FitError::NotFinite { step, loss });
                }
                if observe(FitProgress {
                    epoch: epoch + 1,
                    epochs,
                    step,
                    steps,
                    loss,
                })
                .is_break()
                {
                    return Err(FitError::Stopped);
                }
            }
        }
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let report = FitReport {
            epochs,
            steps,
            first_loss: mean(&losses[..per_epoch]),
            last_loss: mean(&losses[steps - per_epoch..]),
            examples,
            pseudo_features: self.pseudo_features,
            seconds: 0.0,
        };
        Ok((self.adapter, report))
    }

    /// One optimiser update on the examples `rows`; its loss before the update.
    fn step(&mut self, rows: &[u32], rate: f64) -> candle_core::Result<f64> {
        let index = Tensor::new(rows, self.embeddings.device())?;
        let mut x = self.embeddings.index_select(&index, 0)?;
        let mut columns: Vec<u32> = rows.iter().map(|&row| self.input.labels[row as usize]).collect();
        if let Some((rehearsal, per_example)) = &mut self.rehearsal {
            let count = (rows.len() as f64 * *per_example).ceil() as usize;
            let (pseudo, old) = rehearsal.draw(count, self.rng)?;
            x = Tensor::cat(&[x, pseudo], 0)?;
            columns.extend(old);
            self.pseudo_features += count;
        }
        let targets = Targets {
            anchors: self.input.anchors,
            scale: self.input.scale,
        };
        let evaluated = targets.evaluate(&self.adapter, &x, &columns)?;
        self.adapter = Linear {
            weight: self.weight.step(&self.adapter.weight, &evaluated.weight, rate)?,
            bias: self.bias.step(&self.adapter.bias, &evaluated.bias, rate)?,
        };
        Ok(evaluated.loss)
    }
}
