//! One strategy through one order of tasks.

use std::ops::{ControlFlow, Range};

use candle_core::Tensor;

use super::contender::Contender;
use super::data::{FeatureSet, Rows};
use super::order::{ClassOrder, Tasks};
use crate::adapter::{
    Base, FitError, FitInput, Fitted, Head, Snapshot, Statistics, Towers, evaluate, fit, statistics,
};
use crate::domain::{AccuracyMatrix, Class, ClassId, Summary, Tally, VersionNumber};

/// Which classes come when, and how they are scored.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// The order.
    pub order: ClassOrder,
    /// The tasks, as ranges of the order.
    pub tasks: Tasks,
    /// What cosines are multiplied with: the backbone's logit scale.
    pub scale: f64,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Run {
    /// The contender's name.
    pub name: String,
    /// The order of classes.
    pub order: ClassOrder,
    /// The accuracy of every version on every task so far.
    pub matrix: AccuracyMatrix,
    /// Its figures.
    pub summary: Summary,
    /// Mean time of a task's fit.
    pub seconds_per_task: f64,
    /// What is stored in the end: the last snapshot, and the statistics of all tasks.
    pub bytes: u64,
}

/// A sequence of versions under way.
struct Sequence<'a> {
    data: &'a FeatureSet,
    contender: &'a Contender,
    scale: f64,
    tasks: Tasks,
    /// Column to class.
    order: Vec<u32>,
    /// The rows of each column, in training and in test.
    train: Vec<Vec<u32>>,
    test: Vec<Vec<u32>>,
}

impl Protocol {
    /// Takes a contender through all tasks; `learned` hears of each.
    ///
    /// # Errors
    /// What a fit says, in words.
    pub fn run(
        &self,
        contender: &Contender,
        data: &FeatureSet,
        learned: &mut dyn FnMut(),
    ) -> Result<Run, FitError> {
        let order = self.order.permutation(data.classes());
        // Every label is a class: the features were checked when they were read.
        let mut column_of = vec![0; order.len()];
        order
            .iter()
            .zip(0..)
            .for_each(|(class, column)| column_of[*class as usize] = column);
        let by_column = |rows: &Rows| {
            let mut found = vec![Vec::new(); order.len()];
            for (label, row) in rows.labels.iter().zip(0_u32..) {
                found[column_of[*label as usize]].push(row);
            }
            found
        };
        let sequence = Sequence {
            data,
            contender,
            scale: self.scale,
            tasks: if contender.is_joint {
                Tasks::joint(order.len())
            } else {
                self.tasks.clone()
            },
            train: by_column(&data.train),
            test: by_column(&data.test),
            order,
        };
        sequence.run(self.order, learned)
    }
}

impl Sequence<'_> {
    fn run(&self, order: ClassOrder, learned: &mut dyn FnMut()) -> Result<Run, FitError> {
        let mut known = Statistics::default();
        let mut head: Option<Head> = None;
        let (mut seconds, mut bytes) = (0.0, 0);
        let mut rows = Vec::with_capacity(self.tasks.count());
        for task in 0..self.tasks.count() {
            let fitted = self.fit(task, head.as_ref(), &known)?;
            seconds += fitted.report.seconds;
            bytes += statistics::encode(&fitted.statistics).map_or(0, |bytes| bytes.len() as u64);
            known.extend(fitted.statistics)?;
            rows.push(self.score(task, &fitted.head)?);
            head = Some(fitted.head);
            learned();
        }
        bytes += head.map_or(0, snapshot_bytes);
        let matrix = AccuracyMatrix::new(rows).ok_or(FitError::Input("there are no tasks"))?;
        let summary = matrix
            .summary()
            .ok_or(FitError::Input("there are no test rows"))?;
        Ok(Run {
            name: self.contender.name.clone(),
            order,
            matrix,
            summary,
            seconds_per_task: seconds / self.tasks.count() as f64,
            bytes,
        })
    }

    fn fit(&self, task: usize, base: Option<&Head>, known: &Statistics) -> Result<Fitted, FitError> {
        let columns = self.tasks.columns(task);
        let (features, labels) = gather(&self.data.train.embeddings, &self.train, columns.clone())?;
        let seen = Tensor::new(&self.order[..columns.end], self.data.anchors.device())?;
        let input = FitInput {
            base: base.map(|head| Base {
                version: VersionNumber(task as u32),
                head,
                statistics: known,
            }),
            anchors: &self.data.anchors.index_select(&seen, 0)?,
            features: &features,
            labels: &labels,
            scale: self.scale,
            towers: Towers::default(),
            config: &self.contender.config,
        };
        fit(&input, &mut |_| ControlFlow::Continue(()))
    }

    /// The accuracy of `task`'s version on every task so far.
    fn score(&self, task: usize, head: &Head) -> Result<Vec<Tally>, FitError> {
        let tally = |earlier| {
            let columns = self.tasks.columns(earlier);
            let (features, labels) = gather(&self.data.test.embeddings, &self.test, columns)?;
            Ok(evaluate::correct(head, &features, &labels)?)
        };
        (0..=task).map(tally).collect()
    }
}

/// The rows of some columns, and each row's column.
fn gather(
    embeddings: &Tensor,
    rows: &[Vec<u32>],
    columns: Range<usize>,
) -> candle_core::Result<(Tensor, Vec<u32>)> {
    let labelled = columns.flat_map(|column| rows[column].iter().map(move |row| (*row, column as u32)));
    let (rows, labels): (Vec<u32>, Vec<u32>) = labelled.unzip();
    let index = Tensor::new(rows, embeddings.device())?;
    Ok((embeddings.index_select(&index, 0)?, labels))
}

/// The size of a head as a version is stored.
fn snapshot_bytes(head: Head) -> u64 {
    let class = |column: usize| {
        Some(Class {
            id: ClassId::new(),
            label: format!("class {column}").parse().ok()?,
            prompt: None,
            task: "evaluation".parse().ok()?,
        })
    };
    let classes: Option<Vec<Class>> = (0..head.columns()).map(class).collect();
    let snapshot = classes.and_then(|classes| Snapshot::new(classes, head, String::new()).ok());
    snapshot
        .and_then(|snapshot| snapshot.encode().ok())
        .map_or(0, |bytes| bytes.len() as u64)
}
