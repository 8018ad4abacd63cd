//! The strategies in closed form as terms of a head, calibrated: their scores are no log-probabilities, so they get the
//! weight under which examples that were not learned from are predicted best.

use candle_core::{DType, Tensor};
use rand::seq::SliceRandom;

use super::affine::Affine;
use super::calibration::Scores;
use super::fit::{FitError, Purpose};
use super::head::{Adapter, Scorer, Term};
use super::ridge::{Ridge, random_features};
use super::statistics::Statistics;
use super::strategies::Strategies;

/// Most examples that logits are calibrated by.
const CALIBRATION_ROWS: usize = 256;

/// What a ridge regression's scores, which are near 1 for the right class, are multiplied with where nothing says better.
const RIDGE_TEMPERATURE: f64 = 10.0;

impl Strategies<'_, '_> {
    /// The regression of all classes, calibrated by leaving new examples out.
    pub(super) fn ridge(&mut self) -> Result<Vec<Term>, FitError> {
        let (Some(gram), Some(projection)) = (&self.known.gram, &self.projection) else {
            return Err(FitError::Input(
                "a regression needs the sums over random features",
            ));
        };
        let sample = self.sample(self.input.labels.len())?;
        let of = |rows: &[u32]| random_features(&self.embeddings(rows)?, projection);
        let base = self.input.base.and_then(|base| base.head.ridge());
        let lambda = match (base, self.input.config.lambda) {
            (Some(base), _) => base.lambda,
            (None, Some(lambda)) => lambda,
            (None, None) => Ridge::lambda(&of(&sample)?, &self.labels(&sample))?,
        };
        let (ridge, solution) = Ridge::of(gram, projection.clone(), lambda)?;

        // An example says nothing about its class when there is no other.
        let several = self.several()?;
        let mut chosen: Vec<u32> = sample;
        chosen.retain(|row| several[*row as usize]);
        chosen.truncate(CALIBRATION_ROWS);
        let scores = match chosen.as_slice() {
            [] => Vec::new(),
            chosen => solution.left_out(&of(chosen)?, &self.labels(chosen))?,
        };
        self.report.lambda = Some(lambda);
        self.calibrated(Scorer::Ridge(ridge), scores, (&chosen, RIDGE_TEMPERATURE))
    }

    /// The discriminant of all classes, calibrated by new examples that another one did not see.
    pub(super) fn discriminant(&mut self) -> Result<Vec<Term>, FitError> {
        let affine = Affine::discriminant(&self.known)?;
        let several = self.several()?;
        let mut unseen: Vec<Vec<u32>> = self.input.by_class()?;
        let mut rng = self.input.random(Purpose::Calibration);
        let mut seen = Vec::new();
        for rows in &mut unseen {
            rows.shuffle(&mut rng);
            let share = if rows.iter().all(|row| several[*row as usize]) {
                rows.len().div_ceil(4)
            } else {
                0
            };
            seen.push(self.embeddings(&rows.split_off(share))?);
        }
        let mut unseen: Vec<u32> = unseen.concat();
        unseen.shuffle(&mut rng);
        unseen.truncate(CALIBRATION_ROWS);
        let mut before = self
            .input
            .base
            .map_or_else(Statistics::default, |base| base.statistics.clone());
        before.extend(self.input.statistics(&seen, None)?)?;
        let scores = match unseen.as_slice() {
            [] => Vec::new(),
            unseen => doubles(&Affine::discriminant(&before)?.logits(&self.embeddings(unseen)?)?)?,
        };
        self.calibrated(Scorer::Affine(affine), scores, (&unseen, 1.0))
    }

    /// A closed form as terms: beside the bare backbone where the configuration says so, each with the weight under which
    /// the examples `chosen` are predicted best. `scores` (n, C) is what a closed form says of them that did not see them.
    /// Without examples the closed form has the weight `otherwise`.
    fn calibrated(
        &mut self,
        scorer: Scorer,
        scores: Vec<f64>,
        (chosen, otherwise): (&[u32], f64),
    ) -> Result<Vec<Term>, FitError> {
        let beside_backbone = self.input.config.beside_backbone();
        let mut terms = vec![scores];
        if beside_backbone && !chosen.is_empty() {
            let cosines = self.embeddings(chosen)?.matmul(&self.input.anchors.t()?)?;
            terms.push(doubles(&(cosines * self.input.scale)?)?);
        }
        let scores = Scores {
            terms,
            columns: &self.labels(chosen),
            width: self.input.anchors.dim(0)?,
        };
        let found = scores.weights();
        let weight = |place: usize, otherwise: f64| {
            found
                .as_ref()
                .and_then(|weights| weights.get(place).copied())
                .unwrap_or(otherwise)
        };
        let temperature = weight(0, otherwise);
        self.report.temperature = Some(temperature);
        let mut terms = vec![Term {
            weight: temperature,
            scorer,
        }];
        if beside_backbone {
            terms.push(Term {
                weight: weight(1, 1.0),
                scorer: Scorer::Anchors(Adapter::Identity),
            });
        }
        Ok(terms)
    }

    /// At most `count` of the new examples, in an order that nobody chose.
    fn sample(&self, count: usize) -> candle_core::Result<Vec<u32>> {
        let mut rows: Vec<u32> = (0..self.rows.dim(0)? as u32).collect();
        rows.shuffle(&mut self.input.random(Purpose::Calibration));
        rows.truncate(count);
        Ok(rows)
    }

    /// Whether there is more than one example of each example's class.
    fn several(&self) -> candle_core::Result<Vec<bool>> {
        let mut several = vec![false; self.input.labels.len()];
        for rows in self.input.by_class()?.iter().filter(|rows| rows.len() > 1) {
            for row in rows {
                several[*row as usize] = true;
            }
        }
        Ok(several)
    }

    fn embeddings(&self, rows: &[u32]) -> candle_core::Result<Tensor> {
        self.rows.index_select(&Tensor::new(rows, self.rows.device())?, 0)
    }

    fn labels(&self, rows: &[u32]) -> Vec<u32> {
        rows.iter().map(|row| self.input.labels[*row as usize]).collect()
    }
}

/// All values row by row.
fn doubles(rows: &Tensor) -> candle_core::Result<Vec<f64>> {
    rows.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}
