//! The third phase of a job: the new version is scored on the held-out features of every task it knows, beside the
//! bare backbone.

use std::collections::HashMap;
use std::sync::Arc;

use super::learn::{Examples, Learn};
use super::stop::Stop;
use crate::adapter::{Head, Readout, embedding, evaluate};
use crate::blocking;
use crate::domain::{Class, ClassId, Features, Phase, Reads, Tally, VersionNumber};
use crate::engine::read_out;
use crate::registry::Serving;
use crate::store::TaskScore;

/// The held-out examples of one task.
struct HeldOutTask {
    /// The version that brought it; `None` for the one being learned.
    task: Option<VersionNumber>,
    /// Each example's column and features.
    examples: Vec<(u32, Features)>,
}

impl Learn<'_> {
    /// Scores the new head on the held-out examples of every task, task by task.
    pub(super) async fn evaluate(
        &mut self,
        head: &Head,
        base: Option<&Serving>,
        columns: &[Class],
        examples: &Examples,
    ) -> Result<Vec<TaskScore>, Stop> {
        let known = match base {
            Some(base) => self.learner.store.known(&self.job.model, base.number).await?,
            None => Vec::new(),
        };
        let mut scores = self.evaluate_known(head, columns, &known).await?;
        let known = base.map_or(0, |base| base.snapshot.classes().len() as u32);
        let own = examples
            .held_out
            .iter()
            .map(|e| (known + e.class, e.features.clone()))
            .collect();
        let own = HeldOutTask {
            task: None,
            examples: own,
        };
        scores.push(self.score(&self.rivals(head)?, own).await?);
        Ok(scores)
    }

    /// Scores the new head on the held-out examples of the tasks that these versions brought.
    pub(super) async fn evaluate_known(
        &mut self,
        head: &Head,
        columns: &[Class],
        known: &[VersionNumber],
    ) -> Result<Vec<TaskScore>, Stop> {
        let rivals = self.rivals(head)?;
        let column_of: HashMap<ClassId, u32> = columns
            .iter()
            .zip(0_u32..)
            .map(|(class, column)| (class.id, column))
            .collect();
        let mut scores = Vec::with_capacity(known.len() + 1);
        for (done, &version) in known.iter().enumerate() {
            self.report(Phase::Evaluate, done as f64 / (known.len() + 1) as f64, None)
                .await?;
            let held_out = self.learner.store.held_out_of(&self.job.model, version).await?;
            let examples = held_out
                .into_iter()
                .filter_map(|e| Some((*column_of.get(&e.class)?, e.features)));
            let task = HeldOutTask {
                task: Some(version),
                examples: examples.collect(),
            };
            scores.push(self.score(&rivals, task).await?);
        }
        Ok(scores)
    }

    fn rivals(&self, head: &Head) -> Result<Rivals, Stop> {
        let zero_shot = Head::zero_shot(head.anchors().clone(), head.scale());
        Ok(Rivals {
            head: head.clone(),
            zero_shot: zero_shot.map_err(|e| Stop::failed("evaluation", &e))?,
            readout: self.learner.engine.readout().clone(),
        })
    }

    async fn score(&self, rivals: &Rivals, task: HeldOutTask) -> Result<TaskScore, Stop> {
        let rivals = rivals.clone();
        let pool = Arc::clone(&self.learner.fit_pool);
        let scored = blocking::run(move || pool.install(|| rivals.score(&task))).await;
        scored.map_err(|e| Stop::failed("evaluation", &e))
    }
}

/// The version's head and, among the same classes, the bare backbone.
#[derive(Clone)]
struct Rivals {
    head: Head,
    zero_shot: Head,
    /// The backbone's own way from tokens to the features that it scores.
    readout: Readout,
}

/// Values that are widened to f32 at a time: 64 MiB.
const MOST_VALUES: usize = 1 << 24;

impl Rivals {
    /// How they do on one task.
    fn score(&self, task: &HeldOutTask) -> candle_core::Result<TaskScore> {
        let mut score = TaskScore {
            task: task.task,
            tally: Tally::default(),
            zero_shot: Tally::default(),
        };
        let at_once = (MOST_VALUES / self.head.width().max(1)).max(1);
        for examples in task.examples.chunks(at_once) {
            let labels: Vec<u32> = examples.iter().map(|(label, _)| *label).collect();
            let rows = embedding::stack(examples.iter().map(|(_, row)| row), self.head.device())?;
            let features = match self.head.reads() {
                Reads::Features => rows.clone(),
                Reads::Tokens => read_out(&self.readout, &rows)?,
            };
            score.tally = score.tally + evaluate::correct(&self.head, &rows, &labels)?;
            score.zero_shot = score.zero_shot + evaluate::correct(&self.zero_shot, &features, &labels)?;
        }
        Ok(score)
    }
}
