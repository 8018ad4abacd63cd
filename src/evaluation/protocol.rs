//! One strategy through one order of tasks.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::contender::Contender;
use super::data::{Data, Rows};
use super::order::{ClassOrder, Tasks};
use crate::adapter::{
    Base, FitError, FitInput, Fitted, Head, Prompts, Scorer, Snapshot, Statistics, Term, Towers, evaluate,
    fit, statistics,
};
use crate::domain::{
    AccuracyMatrix, Anchors, Class, ClassId, Summary, Tally, VersionNumber, forward_transfer,
};

/// Which classes come when.
#[derive(Clone)]
pub struct Protocol {
    /// The order.
    pub order: ClassOrder,
    /// The tasks, as ranges of the order.
    pub tasks: Tasks,
    /// The text tower before all classes in this order, for contenders that train prompts.
    pub prompts: Option<Arc<dyn Prompts>>,
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
    /// What earlier tasks did for later ones; `None` where the head does not know a class by its words alone.
    pub forward_transfer: Option<f64>,
    /// Mean time of a task's fit.
    pub seconds_per_task: f64,
    /// What is stored in the end: the last snapshot, and the statistics of all tasks.
    pub bytes: u64,
}

/// A sequence of versions under way.
struct Sequence<'a> {
    data: &'a Data,
    contender: &'a Contender,
    prompts: Option<&'a dyn Prompts>,
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
        data: &Data,
        learned: &mut dyn FnMut(),
    ) -> Result<Run, FitError> {
        let order = self.order.permutation(data.classes());
        // Every label is a class: the data were checked when they were read.
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
            prompts: self.prompts.as_deref(),
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
        let (mut ahead, mut bare) = (Vec::new(), Vec::new());
        for task in 0..self.tasks.count() {
            if let Some([of_head, of_backbone]) = head
                .as_ref()
                .map(|head| self.ahead(task, head))
                .transpose()?
                .flatten()
            {
                ahead.push(of_head);
                bare.push(of_backbone);
            }
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
            forward_transfer: forward_transfer(&ahead, &bare),
            seconds_per_task: seconds / self.tasks.count() as f64,
            bytes,
        })
    }

    fn fit(&self, task: usize, base: Option<&Head>, known: &Statistics) -> Result<Fitted, FitError> {
        let columns = self.tasks.columns(task);
        let reads = self.contender.config.strategy.reads();
        let examples = labelled(&self.train, columns.clone());
        let (rows, labels) = self.gather(self.data.train.of(reads), &examples)?;
        let prompts = self.prompts.map(|all| Prefix {
            all,
            classes: columns.end,
        });
        let input = FitInput {
            base: base.map(|head| Base {
                version: VersionNumber(task as u32),
                head,
                statistics: known,
            }),
            anchors: &self.anchors(task)?,
            features: &rows,
            labels: &labels,
            scale: self.data.scale,
            towers: Towers {
                readout: self.data.readout.as_ref(),
                prompts: prompts.as_ref().map(|prefix| prefix as &dyn Prompts),
            },
            config: &self.contender.config,
        };
        fit(&input, &mut |_| ControlFlow::Continue(()))
    }

    /// What stands for the classes up to `task`, as unit rows.
    fn anchors(&self, task: usize) -> candle_core::Result<Tensor> {
        let seen = &self.order[..self.tasks.columns(task).end];
        let seen = Tensor::new(seen, self.data.device())?;
        self.data.anchors.index_select(&seen, 0)
    }

    /// The accuracy of `task`'s version on every task so far.
    fn score(&self, task: usize, head: &Head) -> Result<Vec<Tally>, FitError> {
        (0..=task).map(|earlier| self.tally(earlier, head)).collect()
    }

    /// How `head`, of the version before `task`, does on it among all classes up to it, of which it knows the new ones by
    /// their words alone; and how the bare backbone does. `None` for heads that know a class by its examples.
    fn ahead(&self, task: usize, head: &Head) -> Result<Option<[Tally; 2]>, FitError> {
        let adapter = match head.terms() {
            [
                Term {
                    scorer: Scorer::Anchors(adapter),
                    ..
                },
            ] if self.contender.config.anchors == Anchors::Text => adapter.clone(),
            _ => return Ok(None),
        };
        let anchors = self.anchors(task)?;
        let bare = Head::zero_shot(anchors.clone(), self.data.scale)?;
        let head = Head::new(adapter, anchors, self.data.scale)?;
        Ok(Some([self.tally(task, &head)?, self.tally(task, &bare)?]))
    }

    /// The accuracy of `head` on a task.
    fn tally(&self, task: usize, head: &Head) -> Result<Tally, FitError> {
        let examples = labelled(&self.test, self.tasks.columns(task));
        let at_once = (MOST_VALUES / head.width().max(1)).max(1);
        let tallies = examples.chunks(at_once).map(|examples| {
            let (rows, labels) = self.gather(self.data.test.of(head.reads()), examples)?;
            Ok(evaluate::correct(head, &rows, &labels)?)
        });
        tallies.sum()
    }

    /// Rows as a fit takes them, and each one's column.
    fn gather(&self, rows: Option<&Tensor>, examples: &[(u32, u32)]) -> Result<(Tensor, Vec<u32>), FitError> {
        let rows = rows.ok_or(FitError::Input("the strategy reads what these data do not have"))?;
        let (index, labels): (Vec<u32>, Vec<u32>) = examples.iter().copied().unzip();
        let rows = rows.index_select(&Tensor::new(index, rows.device())?, 0)?;
        Ok((rows.to_device(self.data.device())?.to_dtype(DType::F32)?, labels))
    }
}

/// Values that are widened to f32 for scoring at a time: 64 MiB.
const MOST_VALUES: usize = 1 << 24;

/// The rows of some columns, each with its column.
fn labelled(rows: &[Vec<u32>], columns: Range<usize>) -> Vec<(u32, u32)> {
    columns
        .flat_map(|column| rows[column].iter().map(move |row| (*row, column as u32)))
        .collect()
}

/// The text tower before the first classes of an order.
struct Prefix<'a> {
    all: &'a dyn Prompts,
    classes: usize,
}

impl Prompts for Prefix<'_> {
    fn classes(&self) -> usize {
        self.classes
    }

    fn template(&self) -> candle_core::Result<Tensor> {
        self.all.template()
    }

    fn encode(&self, context: &Tensor, classes: Range<usize>) -> candle_core::Result<Tensor> {
        if classes.end > self.classes {
            candle_core::bail!("{classes:?} of {} classes", self.classes);
        }
        self.all.encode(context, classes)
    }
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
