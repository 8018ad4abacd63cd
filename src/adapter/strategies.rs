//! What each strategy makes of a task: the terms of the next head, and what is remembered of the new classes.

use std::ops::ControlFlow;

use candle_core::Tensor;

use super::closed_forms::ClosedForms;
use super::fit::{FitError, FitInput, FitProgress, FitReport, Purpose, TrainingReport};
use super::head::{Adapter, Scorer, Term};
use super::linear::Linear;
use super::prompt::Context;
use super::prototypes::{self, Prototypes};
use super::retention;
use super::ridge::{self, Ridge};
use super::sample::Sample;
use super::self_attention::SelfAttention;
use super::statistics::{Kept, Statistics};
use super::trainable::Trainable;
use super::training::{Lesson, Part, Start, Training};
use super::whitening::{Scatter, Whitening};
use crate::domain::{Anchors, Keep, ModelConfig, Rehearsal, Strategy};

/// A fit under way.
pub(super) struct Strategies<'a, 'b> {
    input: &'a FitInput<'a>,
    /// The new examples: unit embeddings (n, D), or tokens (n, t · w).
    rows: &'a Tensor,
    /// R, where the strategy regresses on random features.
    projection: Option<Tensor>,
    /// Rows that a closed form chooses by: of all classes where they are kept, otherwise of the new ones.
    sample: Sample,
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
        let sample = match &known.sample {
            Some(sample) => sample.clone(),
            None if input.config.strategy.adds_up() => Sample::of(&classes, input.known())?,
            None => Sample::default(),
        };
        Ok(Self {
            input,
            rows,
            projection,
            sample,
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
            (Strategy::Ridge | Strategy::Gda, _) => self.closed_form()?,
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

    /// The regression or discriminant of all classes.
    fn closed_form(&mut self) -> Result<Vec<Term>, FitError> {
        let config = self.input.config;
        let forms = ClosedForms {
            known: &self.known,
            sample: &self.sample,
            anchors: self.input.anchors,
            scale: self.input.scale,
            beside_backbone: config.beside_backbone(),
        };
        let made = match &self.projection {
            None => forms.discriminant()?,
            Some(projection) => {
                let base = self.input.base.and_then(|base| base.head.ridge());
                let fixed = base.filter(|_| self.known.sample.is_none());
                forms.regression(projection, config.lambda.or(fixed.map(|base| base.lambda)))?
            }
        };
        self.report.lambda = made.lambda;
        self.report.temperature = Some(made.temperature);
        Ok(made.terms)
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
            let kept = retention::apply(input.config.retention, &old, &new, &mut rng)?;
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
    pub(super) fn statistics(
        &self,
        classes: &[Tensor],
        projection: Option<&Tensor>,
    ) -> candle_core::Result<Statistics> {
        let ModelConfig {
            strategy,
            rehearsal,
            keep,
            ..
        } = self.config;
        let (rank, exemplars) = match rehearsal {
            Rehearsal::Gaussian { rank, .. } => (*rank, None),
            Rehearsal::Exemplars {
                per_class, choice, ..
            } => (0, Some((*per_class, *choice))),
            Rehearsal::None if strategy.needs_scatter() || strategy.needs_gram() => (0, None),
            Rehearsal::None => return Ok(Statistics::default()),
        };
        let kept = Kept {
            rank,
            exemplars,
            rows: *keep == Keep::All,
        };
        let mut statistics = Statistics::estimate(classes, kept, &mut self.random(Purpose::Exemplars))?;
        if strategy.needs_scatter() {
            statistics.scatter = Some(Scatter::of(classes)?);
        }
        if let Some(projection) = projection {
            statistics.gram = Some(ridge::gram(classes, projection)?);
        }
        Ok(statistics)
    }
}
