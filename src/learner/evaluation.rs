//! The third phase of a job: the new version is scored on the held-out features of every task it knows, beside the
//! bare backbone.

use std::collections::HashMap;
use std::sync::Arc;

use super::learn::{Examples, Learn};
use super::stop::Stop;
use super::submit::joined;
use crate::adapter::{Head, embedding, evaluate};
use crate::domain::{Class, ClassId, Features, Phase, Tally, VersionNumber};
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
        scores.push(self.score(head, &beside(head)?, own).await?);
        Ok(scores)
    }

    /// Scores the new head on the held-out examples of the tasks that these versions brought.
    pub(super) async fn evaluate_known(
        &mut self,
        head: &Head,
        columns: &[Class],
        known: &[VersionNumber],
    ) -> Result<Vec<TaskScore>, Stop> {
        let zero_shot = beside(head)?;
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
            scores.push(self.score(head, &zero_shot, task).await?);
        }
        Ok(scores)
    }

    async fn score(&self, head: &Head, zero_shot: &Head, task: HeldOutTask) -> Result<TaskScore, Stop> {
        let (head, zero_shot) = (head.clone(), zero_shot.clone());
        let pool = Arc::clone(&self.learner.fit_pool);
        let scored = tokio::task::spawn_blocking(move || pool.install(|| score(&head, &zero_shot, &task)));
        joined(scored).await.map_err(|e| Stop::failed("evaluation", &e))
    }
}

/// The bare backbone among the classes of `head`.
fn beside(head: &Head) -> Result<Head, Stop> {
    Head::zero_shot(head.anchors().clone(), head.scale()).map_err(|e| Stop::failed("evaluation", &e))
}

/// How `head`, and `zero_shot` among the same classes, do on one task.
fn score(head: &Head, zero_shot: &Head, task: &HeldOutTask) -> candle_core::Result<TaskScore> {
    let none = TaskScore {
        task: task.task,
        tally: Tally::default(),
        zero_shot: Tally::default(),
    };
    if task.examples.is_empty() {
        return Ok(none);
    }
    let (labels, features): (Vec<u32>, Vec<Features>) = task.examples.iter().cloned().unzip();
    let features = embedding::stack(&features, head.device())?;
    Ok(TaskScore {
        tally: evaluate::correct(head, &features, &labels)?,
        zero_shot: evaluate::correct(zero_shot, &features, &labels)?,
        ..none
    })
}
