//! What each strategy makes of a task: the terms of the next head, and what is remembered of the new classes.

use std::ops::ControlFlow;

use candle_core::{DType, Tensor};
use rand::seq::SliceRandom;

use super::affine::Affine;
use super::calibration::Scores;
use super::fit::{FitError, FitInput, FitProgress, FitReport, Purpose, TrainingReport};
use super::gram::Gram;
use super::head::{Adapter, Scorer, Term};
use super::linear::Linear;
use super::prompt::Context;
use super::prototypes::{self, Prototypes};
use super::retention;
use super::ridge::{Ridge, random_features};
use super::self_attention::SelfAttention;
use super::statistics::{Kept, Statistics};
use super::trainable::Trainable;
use super::training::{Lesson, Part, Start, Training};
use super::whitening::{Scatter, Whitening};
use crate::domain::{Anchors, ModelConfig, Rehearsal, Strategy};

/// Most examples that logits are calibrated by.
const CALIBRATION_ROWS: usize = 256;

/// What a ridge regression's scores, which are near 1 for the right class, are multiplied with where nothing says better.
const RIDGE_TEMPERATURE: f64 = 10.0;

/// A fit under way.
pub(super) struct Strategies<'a, 'b> {
    input: &'a FitInput<'a>,
    /// The new examples: unit embeddings (n, D), or tokens (n, t · w).
    rows: &'a Tensor,
    /// R, where the strategy regresses on random features.
    projection: Option<Tensor>,
    /// What is remembered of the new classes.
    new: Statistics,
    /// The same of all classes.
    known: Statistics,
    observe: &'b mut dyn FnMut(FitProgress) -> ControlFlow<()>,
    report: FitReport,
}

impl<'a, 'b> Strategies<'a, 'b> {
    pub(super) fn new(
        input: &'a FitInput<'a>,
        rows: &'a Tensor,
        observe: &'b mut dyn FnMut(FitProgress) -> ControlFlow<()>,
    ) -> Result<Self, FitError> {
        let projection = input.projection()?;
        let classes: Vec<Tensor> = input
            .by_class()?
            .into_iter()
            .map(|of| rows.index_select(&Tensor::new(of, rows.device())?, 0))
            .collect::<candle_core::Result<_>>()?;
        let new = input.statistics(&classes, projection.as_ref())?;
        let mut known = input
            .base
            .map_or_else(Statistics::default, |base| base.statistics.clone());
        known.extend(new.clone())?;
        Ok(Self {
            input,
            rows,
            projection,
            new,
            known,
            observe,
            report: FitReport {
                examples: input.labels.len(),
                adapter: None,
                prototypes: None,
                lambda: None,
                temperature: None,
                seconds: 0.0,
            },
        })
    }

    /// What is remembered of the new classes, and what happened.
    pub(super) fn finish(self) -> (Statistics, FitReport) {
        (self.new, self.report)
    }

    /// The terms of the next version's head.
    pub(super) fn terms(&mut self) -> Result<Vec<Term>, FitError> {
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
            (Strategy::SelfAttention, _) => vec![term(1.0, self.self_attention()?)],
            (Strategy::Prompt, _) => vec![term(1.0, self.prompts()?)],
            (Strategy::Ridge, _) => self.ridge()?,
            (Strategy::Gda, _) => self.discriminant()?,
            (Strategy::Ensemble, Anchors::Examples) => vec![term(1.0, self.prototypes(ONE)?)],
            (Strategy::Ensemble, Anchors::Text | Anchors::Blend) => vec![
                term(weights.zero_shot, Scorer::Anchors(Adapter::Identity)),
                term(weights.linear, self.linear(Part { number: 0, of: 2 })?),
                term(weights.prototypes, self.prototypes(Part { number: 1, of: 2 })?),
            ],
        })
    }

    /// The linear adapter before the anchors.
    fn linear(&mut self, part: Part) -> Result<Scorer, FitError> {
        let base = self.input.base.and_then(|base| base.head.linear()).cloned();
        let lesson = self.input.lesson(self.rows, self.input.anchors);
        let initial = || self.input.initial(part);
        let (adapter, report) = train(self.input, &lesson, (base, initial), part, self.observe)?;
        self.report.adapter = Some(report);
        Ok(Scorer::Anchors(Adapter::Linear(adapter)))
    }

    /// The self-attention adapter before the anchors.
    fn self_attention(&mut self) -> Result<Scorer, FitError> {
        const PART: Part = Part { number: 0, of: 1 };
        let base = self.input.base.and_then(|base| base.head.self_attention());
        let Some(readout) = self.input.towers.readout else {
            return Err(FitError::Input("self-attention needs the end of the image tower"));
        };
        let initial = || SelfAttention::initial(readout, &mut self.input.random(Purpose::Start(0)));
        let lesson = self.input.lesson(self.rows, self.input.anchors);
        let (adapter, report) = train(self.input, &lesson, (base.cloned(), initial), PART, self.observe)?;
        self.report.adapter = Some(report);
        Ok(Scorer::Anchors(Adapter::SelfAttention(adapter)))
    }

    /// The context before all classes' names.
    fn prompts(&mut self) -> Result<Scorer, FitError> {
        const PART: Part = Part { number: 0, of: 1 };
        let Some(prompts) = self.input.towers.prompts else {
            return Err(FitError::Input("prompts need the text tower"));
        };
        if prompts.classes() != self.input.anchors.dim(0)? {
            return Err(FitError::Input("the text tower stands before other classes"));
        }
        let base = self.input.base.and_then(|base| base.head.prompts());
        let base = base.map(|base| Context::new(base.context.clone(), prompts));
        let initialisation = self.input.config.initialisation;
        let initial = || {
            let mut rng = self.input.random(Purpose::Start(0));
            Context::initial(initialisation, prompts, &mut rng)
        };
        let lesson = self.input.lesson(self.rows, self.input.anchors);
        let (context, report) = train(self.input, &lesson, (base, initial), PART, self.observe)?;
        self.report.adapter = Some(report);
        Ok(Scorer::Prompts(context.prompted()?))
    }

    /// The prototypes of all classes, and the adapter before them.
    fn prototypes(&mut self, part: Part) -> Result<Scorer, FitError> {
        let base = self.input.base.and_then(|base| base.head.prototypes());
        let whitening = Whitening::of(&self.known)?;
        let rows = Prototypes::rows(&self.known, &whitening)?;
        let lesson = Lesson {
            view: Some(&whitening),
            scale: prototypes::SCALE,
            ..self.input.lesson(self.rows, &rows)
        };
        let base = base.map(|base| base.adapter.clone());
        let initial = || self.input.initial(part);
        let (adapter, report) = train(self.input, &lesson, (base, initial), part, self.observe)?;
        self.report.prototypes = Some(report);
        Ok(Scorer::Prototypes(Prototypes {
            whitening,
            adapter,
            rows,
        }))
    }

    /// The regression of all classes, calibrated by leaving new examples out.
    fn ridge(&mut self) -> Result<Vec<Term>, FitError> {
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
    fn discriminant(&mut self) -> Result<Vec<Term>, FitError> {
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
        let ModelConfig {
            zero_shot_term,
            anchors,
            ..
        } = self.input.config;
        // Means of examples have seen them all.
        let beside_backbone = *zero_shot_term && *anchors == Anchors::Text;
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
            rows.iter().for_each(|row| several[*row as usize] = true);
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

/// An adapter from the base's, or from the beginning where there is none, after `lesson` and retention.
fn train<A: Trainable>(
    input: &FitInput<'_>,
    lesson: &Lesson<'_>,
    (base, initial): (Option<A>, impl FnOnce() -> candle_core::Result<A>),
    part: Part,
    observe: &mut dyn FnMut(FitProgress) -> ControlFlow<()>,
) -> Result<(A, TrainingReport), FitError> {
    let mut rng = input.random(Purpose::Training(part.number));
    match base {
        Some(old) => {
            let training = Training::new(lesson, old.clone(), Start::Trained, &mut rng)?;
            let (new, report) = training.run(part, observe)?;
            let kept = retention::apply(input.config.retention, &old, new, &mut rng)?;
            Ok((kept, report))
        }
        None => Training::new(lesson, initial()?, Start::Untrained, &mut rng)?.run(part, observe),
    }
}

impl FitInput<'_> {
    fn lesson<'c>(&'c self, rows: &'c Tensor, anchors: &'c Tensor) -> Lesson<'c> {
        Lesson {
            rows,
            labels: self.labels,
            old: self.old(),
            view: None,
            anchors,
            scale: self.scale,
            config: self.config,
        }
    }

    /// A linear adapter that has learned nothing.
    fn initial(&self, part: Part) -> candle_core::Result<Linear> {
        let mut rng = self.random(Purpose::Start(part.number));
        let device = self.anchors.device();
        Linear::initial(self.config.initialisation, self.anchors.dim(1)?, &mut rng, device)
    }

    /// R of the base, or a new one; `None` where the strategy has no use for it.
    fn projection(&self) -> candle_core::Result<Option<Tensor>> {
        if !self.config.strategy.needs_gram() {
            return Ok(None);
        }
        if let Some(base) = self.base.and_then(|base| base.head.ridge()) {
            return Ok(Some(base.projection.clone()));
        }
        let mut rng = self.random(Purpose::Start(0));
        let (size, dim) = (self.config.random_features, self.anchors.dim(1)?);
        Ridge::draw(size, dim, &mut rng, self.anchors.device()).map(Some)
    }

    /// What is remembered of new classes, from the rows of each, for this fit and later ones.
    fn statistics(&self, classes: &[Tensor], projection: Option<&Tensor>) -> candle_core::Result<Statistics> {
        let ModelConfig {
            strategy, rehearsal, ..
        } = self.config;
        let kept = match rehearsal {
            Rehearsal::Gaussian { rank, .. } => Kept {
                rank: *rank,
                exemplars: None,
            },
            Rehearsal::Exemplars {
                per_class, choice, ..
            } => Kept {
                rank: 0,
                exemplars: Some((*per_class, *choice)),
            },
            Rehearsal::None if strategy.needs_scatter() || strategy.needs_gram() => Kept {
                rank: 0,
                exemplars: None,
            },
            Rehearsal::None => return Ok(Statistics::default()),
        };
        let mut statistics = Statistics::estimate(classes, kept, &mut self.random(Purpose::Exemplars))?;
        if strategy.needs_scatter() {
            statistics.scatter = Some(Scatter::of(classes)?);
        }
        if let Some(projection) = projection {
            let features: Vec<Tensor> = classes
                .iter()
                .map(|rows| random_features(rows, projection))
                .collect::<candle_core::Result<_>>()?;
            statistics.gram = Some(Gram::of(&features, projection.dim(0)?)?);
        }
        Ok(statistics)
    }
}

/// All values row by row.
fn doubles(rows: &Tensor) -> candle_core::Result<Vec<f64>> {
    rows.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}
