//! The held-out examples of a version's tasks, and how versions do on them.

use std::collections::HashMap;

use futures::{StreamExt as _, TryStreamExt as _};

use super::Store;
use super::codec::{features, number, parse, version};
use super::error::StoreError;
use super::lineage::along_lineage;
use crate::domain::{AccuracyMatrix, ClassId, Digest, Features, ModelName, Tally, VersionNumber};

/// A held-out example.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    /// Its class.
    pub class: ClassId,
    /// Of the content that the features came of.
    pub digest: Digest,
    /// Its features.
    pub features: Features,
}

/// How a version does on one task, against the bare backbone choosing among the same classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskTally {
    /// The version that brought the task.
    pub task: VersionNumber,
    /// The version's right answers.
    pub tally: Tally,
    /// The bare backbone's.
    pub zero_shot: Tally,
}

/// How a version does on every task that it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionTallies {
    /// The version.
    pub version: VersionNumber,
    /// One tally for each task that it shares with the last version of the line: a row of an accuracy matrix.
    pub tasks: Vec<TaskTally>,
}

/// How a line of versions did over time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// The versions, root first.
    pub versions: Vec<VersionNumber>,
    /// Each version on each task that it shares with the last one.
    pub matrix: AccuracyMatrix,
    /// The bare backbone on the same examples among the same classes.
    pub zero_shot: AccuracyMatrix,
}

impl Store {
    /// The held-out examples of the one task that a version brought, in the order in which they were published. For
    /// all that a version knows, ask for each of [`Store::known`].
    pub async fn held_out_of(
        &self,
        model: &ModelName,
        number: VersionNumber,
    ) -> Result<Vec<HeldOut>, StoreError> {
        let rows = sqlx::query_as::<_, (String, String, Vec<u8>)>(
            "select class, digest, features from held_out
             where model = $1 and version = $2 order by position",
        );
        let rows = rows
            .bind(model.as_str())
            .bind(i64::from(number.0))
            .fetch(&self.reader);
        // Each is converted as it arrives, and not all of them at once on a thread that answers requests.
        rows.map(|row| {
            let (class, digest, bytes) = row?;
            Ok(HeldOut {
                class: parse("class's id", &class)?,
                digest: parse("digest", &digest)?,
                features: features(&bytes)?,
            })
        })
        .try_collect()
        .await
    }

    /// [`Store::tallies`] as two matrices, the versions' own and the bare backbone's.
    pub async fn accuracy(&self, model: &ModelName, number: VersionNumber) -> Result<History, StoreError> {
        let tallies = self.tallies(model, number).await?;
        let matrix = |pick: fn(&TaskTally) -> Tally| {
            let rows = tallies
                .iter()
                .map(|row| row.tasks.iter().map(pick).collect())
                .collect();
            AccuracyMatrix::new(rows).ok_or_else(|| StoreError::corrupt("tallies", "they form no matrix"))
        };
        Ok(History {
            versions: tallies.iter().map(|row| row.version).collect(),
            matrix: matrix(|task| task.tally)?,
            zero_shot: matrix(|task| task.zero_shot)?,
        })
    }

    /// How each version from the root to `number` did on those of its tasks that `number` still knows. A task without
    /// tally counts 0 of 0, and so does one of which a class was unlearned later: what versions did among other classes does
    /// not compare.
    pub async fn tallies(
        &self,
        model: &ModelName,
        number: VersionNumber,
    ) -> Result<Vec<VersionTallies>, StoreError> {
        let lineage = self.lineage(model, number).await?;
        let known = self.known(model, number).await?;
        let rows: Vec<TallyRow> = sqlx::query_as(along_lineage!(
            "select version, task_version, correct, zero_shot_correct, total from tally
             where model = $1 and version in (select number from lineage)"
        ))
        .bind(model.as_str())
        .bind(i64::from(number.0))
        .fetch_all(&self.reader)
        .await?;
        let changes: Vec<(i64, i64)> = sqlx::query_as(along_lineage!(
            "select task_version, max(version) from removal
             where model = $1 and class is not null and version in (select number from lineage)
             group by task_version"
        ))
        .bind(model.as_str())
        .bind(i64::from(number.0))
        .fetch_all(&self.reader)
        .await?;
        let changed: HashMap<VersionNumber, VersionNumber> = changes
            .into_iter()
            .map(|(task, at)| Ok((version(task)?, version(at)?)))
            .collect::<Result<_, StoreError>>()?;
        let compares = |version: VersionNumber, task| changed.get(&task).is_none_or(|at| version >= *at);
        let mut found = HashMap::with_capacity(rows.len());
        for row in rows {
            let tally = row.tally()?;
            found.insert((version(row.version)?, tally.task), tally);
        }
        let row = |&version: &VersionNumber| VersionTallies {
            version,
            tasks: known
                .iter()
                .filter(|&&task| task <= version)
                .map(|&task| {
                    let none = TaskTally {
                        task,
                        tally: Tally::default(),
                        zero_shot: Tally::default(),
                    };
                    let found = found.get(&(version, task)).filter(|_| compares(version, task));
                    found.copied().unwrap_or(none)
                })
                .collect(),
        };
        Ok(lineage.iter().map(row).collect())
    }
}

#[derive(sqlx::FromRow)]
struct TallyRow {
    version: i64,
    task_version: i64,
    correct: i64,
    zero_shot_correct: i64,
    total: i64,
}

impl TallyRow {
    fn tally(&self) -> Result<TaskTally, StoreError> {
        let total = number("count", self.total)?;
        Ok(TaskTally {
            task: version(self.task_version)?,
            tally: Tally {
                correct: number("count", self.correct)?,
                total,
            },
            zero_shot: Tally {
                correct: number("count", self.zero_shot_correct)?,
                total,
            },
        })
    }
}
