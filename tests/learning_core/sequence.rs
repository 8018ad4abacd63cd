//! Learning a sequence of tasks and scoring every version on every task so far.

use std::ops::ControlFlow;

use candle_core::Tensor;
use clipkeep::adapter::{Base, ClassStatistics, FitInput, Head, evaluate, fit};
use clipkeep::domain::{AccuracyMatrix, ModelConfig, Summary, Tally, VersionNumber};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::data::ImageNet;

/// Tasks of equally many classes, in an order drawn from a seed.
pub(crate) struct Sequence<'a> {
    data: &'a ImageNet,
    /// Column to class.
    order: Vec<u32>,
    per_task: usize,
}

/// What came of a sequence.
pub(crate) struct Outcome {
    pub(crate) summary: Summary,
    /// Time of the last fit.
    pub(crate) last_fit_seconds: f64,
}

/// One task's rows.
struct Rows {
    features: Tensor,
    labels: Vec<u32>,
}

impl<'a> Sequence<'a> {
    pub(crate) fn new(data: &'a ImageNet, tasks: usize, per_task: usize, seed: u64) -> Self {
        let mut order: Vec<u32> = (0..data.anchors.dims()[0] as u32).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        order.truncate(tasks * per_task);
        Self {
            data,
            order,
            per_task,
        }
    }

    /// Every task learned in turn.
    pub(crate) fn learn(&self, config: &ModelConfig) -> Outcome {
        let mut head: Option<Head> = None;
        let mut statistics: Vec<ClassStatistics> = Vec::new();
        let mut last_fit_seconds = 0.0;
        let matrix = (0..self.tasks()).map(|task| {
            let Rows { features, labels } = self.rows(task, &self.data.train, &self.data.train_labels);
            let version = VersionNumber(task as u32);
            let input = FitInput {
                base: head.as_ref().map(|head| Base {
                    version,
                    head,
                    statistics: &statistics,
                }),
                anchors: &self.anchors(task),
                features: &features,
                labels: &labels,
                scale: 100.0,
                config,
            };
            let fitted = fit(&input, &mut |_| ControlFlow::Continue(())).expect("fitted");
            last_fit_seconds = fitted.report.seconds;
            statistics.extend(fitted.statistics);
            let row = self.score(task, &fitted.head);
            head = Some(fitted.head);
            row
        });
        Outcome {
            summary: summary(matrix.collect()),
            last_fit_seconds,
        }
    }

    /// No task learned: the backbone as it is.
    pub(crate) fn zero_shot(&self) -> Summary {
        let head = |task| Head::zero_shot(self.anchors(task), 100.0).expect("a head");
        summary(
            (0..self.tasks())
                .map(|task| self.score(task, &head(task)))
                .collect(),
        )
    }

    fn tasks(&self) -> usize {
        self.order.len() / self.per_task
    }

    /// Anchors of all classes up to `task`.
    fn anchors(&self, task: usize) -> Tensor {
        let known = Tensor::new(
            &self.order[..(task + 1) * self.per_task],
            self.data.anchors.device(),
        );
        known
            .and_then(|known| self.data.anchors.index_select(&known, 0))
            .expect("anchors")
    }

    /// The rows of `task`'s classes, with columns for labels.
    fn rows(&self, task: usize, features: &Tensor, labels: &[u32]) -> Rows {
        let columns = task * self.per_task..(task + 1) * self.per_task;
        let column = |class: &u32| columns.clone().find(|&column| self.order[column] == *class);
        let (rows, labels): (Vec<u32>, Vec<u32>) = (0..)
            .zip(labels)
            .filter_map(|(row, class)| Some((row, column(class)? as u32)))
            .unzip();
        let index = Tensor::new(rows, features.device()).expect("an index");
        Rows {
            features: features.index_select(&index, 0).expect("rows"),
            labels,
        }
    }

    /// The accuracy of `task`'s version on every task so far.
    fn score(&self, task: usize, head: &Head) -> Vec<Tally> {
        let tally = |earlier| {
            let rows = self.rows(earlier, &self.data.test, &self.data.test_labels);
            evaluate::correct(head, &rows.features, &rows.labels).expect("scored")
        };
        (0..=task).map(tally).collect()
    }
}

fn summary(rows: Vec<Vec<Tally>>) -> Summary {
    AccuracyMatrix::new(rows)
        .and_then(|matrix| matrix.summary())
        .expect("a triangle of tallies")
}
