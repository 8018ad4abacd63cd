//! The strategies in closed form as terms of a head, calibrated: their scores are no log-probabilities, so they get the
//! weight under which examples that were not learned from are predicted best.
//!
//! Where all rows are kept, these examples are a [`Sample`] of everything that is known, and a head is the same whatever
//! the order in which it was learned. Where they are not, they are the newest task's.

use candle_core::{Result, Tensor};

use super::affine::Affine;
use super::calibration::Scores;
use super::gram::{best_lambda, doubles};
use super::head::{Adapter, Scorer, Term};
use super::ridge::{Ridge, whole_features};
use super::sample::Sample;
use super::statistics::Statistics;

/// Rows that λ is chosen and scores are calibrated by, unless there are more classes.
const ROWS: usize = 512;

/// What a ridge regression's scores, which are near 1 for the right class, are multiplied with where nothing says better.
const RIDGE_TEMPERATURE: f64 = 10.0;

/// What closed forms are made of.
pub(super) struct ClosedForms<'a> {
    /// What is known of all classes.
    pub(super) known: &'a Statistics,
    /// Some of their rows.
    pub(super) sample: &'a Sample,
    /// What stands for the classes beside them, (C, D).
    pub(super) anchors: &'a Tensor,
    /// The backbone's logit scale.
    pub(super) scale: f64,
    /// Whether the bare backbone stands beside the closed form.
    pub(super) beside_backbone: bool,
}

/// A closed form, ready to score.
pub(super) struct Made {
    pub(super) terms: Vec<Term>,
    /// λ, of a regression.
    pub(super) lambda: Option<f64>,
    /// What its scores are multiplied with.
    pub(super) temperature: f64,
}

impl ClosedForms<'_> {
    /// The regression of all classes on the random features of `projection`, calibrated by leaving examples out. λ is
    /// chosen by the sample where it is not given.
    ///
    /// # Errors
    /// When the sums over random features are missing.
    pub(super) fn regression(&self, projection: &Tensor, lambda: Option<f64>) -> Result<Made> {
        let Some(gram) = &self.known.gram else {
            candle_core::bail!("a regression needs the sums over random features")
        };
        let chosen_by = stacked(self.sample.by_class(ROWS, |count| count)?)?;
        let features = match &chosen_by {
            None => None,
            Some((rows, _)) => Some(whole_features(rows, projection)?),
        };
        let sampled = features.as_ref().zip(chosen_by.as_ref());
        let lambda = match (lambda, sampled) {
            (Some(lambda), _) => lambda,
            (None, Some((features, (_, columns)))) => best_lambda(features, columns)?,
            (None, None) => gram.mean_square(self.known.classes.iter().map(|class| class.count).sum()),
        };
        let (ridge, solution) = Ridge::of(gram, projection.clone(), lambda)?;
        let left_out = match sampled {
            None => None,
            Some((features, (rows, columns))) => {
                Some((solution.left_out(features, columns)?, rows, columns.as_slice()))
            }
        };
        let made = self.calibrated(Scorer::Ridge(ridge), left_out, RIDGE_TEMPERATURE)?;
        Ok(Made {
            lambda: Some(lambda),
            ..made
        })
    }

    /// The discriminant of all classes, calibrated by examples that another one did not see.
    ///
    /// # Errors
    /// When the spread within classes is missing.
    pub(super) fn discriminant(&self) -> Result<Made> {
        let held_back = self.sample.by_class(ROWS, |count| count.div_ceil(4))?;
        let seen = self.known.without_examples(&held_back)?;
        let held_back = stacked(held_back)?;
        let unseen = match &held_back {
            None => None,
            Some((rows, columns)) => {
                let scores = doubles(&Affine::discriminant(&seen)?.logits(rows)?)?;
                Some((scores, rows, columns.as_slice()))
            }
        };
        self.calibrated(Scorer::Affine(Affine::discriminant(self.known)?), unseen, 1.0)
    }

    /// A closed form as terms: beside the bare backbone where that is wished, each with the weight under which some
    /// examples are predicted best: the closed form's scores of them (n, C) that have not seen them, their rows (n, D) and
    /// their columns. Without examples the closed form has the weight `otherwise`.
    fn calibrated(
        &self,
        scorer: Scorer,
        examples: Option<(Vec<f64>, &Tensor, &[u32])>,
        otherwise: f64,
    ) -> Result<Made> {
        let found = match examples {
            None => None,
            Some((scores, rows, columns)) => {
                let mut terms = vec![scores];
                if self.beside_backbone {
                    let cosines = rows.matmul(&self.anchors.t()?)?;
                    terms.push(doubles(&(cosines * self.scale)?)?);
                }
                let scores = Scores {
                    terms,
                    columns,
                    width: self.anchors.dim(0)?,
                };
                scores.weights()
            }
        };
        let weight = |place: usize, otherwise: f64| {
            let found = found.as_ref().and_then(|weights| weights.get(place).copied());
            found.unwrap_or(otherwise)
        };
        let temperature = weight(0, otherwise);
        let mut terms = vec![Term {
            weight: temperature,
            scorer,
        }];
        if self.beside_backbone {
            terms.push(Term {
                weight: weight(1, 1.0),
                scorer: Scorer::Anchors(Adapter::Identity),
            });
        }
        Ok(Made {
            terms,
            lambda: None,
            temperature,
        })
    }
}

/// The rows (n, D) of all classes and their columns; `None` where there are none.
fn stacked(classes: Vec<(usize, Tensor)>) -> Result<Option<(Tensor, Vec<u32>)>> {
    let mut columns = Vec::new();
    let mut rows = Vec::with_capacity(classes.len());
    for (column, of_class) in classes {
        columns.extend(std::iter::repeat_n(column as u32, of_class.dim(0)?));
        rows.push(of_class);
    }
    Ok(match rows.as_slice() {
        [] => None,
        rows => Some((Tensor::cat(rows, 0)?, columns)),
    })
}
