//! The histories of many versions of one model, read at once.

use std::collections::{HashMap, HashSet};

use super::Store;
use super::codec::{number, version, version_or_none};
use super::error::StoreError;
use super::held_out::History;
use crate::domain::{AccuracyMatrix, ModelName, Tally, VersionNumber};

/// How the versions of a model did, and which was learned on top of which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histories {
    parents: HashMap<VersionNumber, Option<VersionNumber>>,
    /// By the version that does without a task or one of its classes: the version that brought it, and whether all of it
    /// goes.
    removals: HashMap<VersionNumber, (VersionNumber, bool)>,
    /// By version and by the version that brought the task: its own right answers and the bare backbone's.
    tallies: HashMap<(VersionNumber, VersionNumber), (Tally, Tally)>,
}

impl Store {
    /// The histories of a model's versions up to `newest`.
    pub async fn histories(&self, model: &ModelName, newest: VersionNumber) -> Result<Histories, StoreError> {
        let parents: Vec<(i64, Option<i64>)> =
            sqlx::query_as("select number, parent from version where model = $1 and number <= $2")
                .bind(model.as_str())
                .bind(i64::from(newest.0))
                .fetch_all(&self.reader)
                .await?;
        let removals: Vec<(i64, i64, Option<String>)> = sqlx::query_as(
            "select version, task_version, class from removal where model = $1 and version <= $2",
        )
        .bind(model.as_str())
        .bind(i64::from(newest.0))
        .fetch_all(&self.reader)
        .await?;
        let tallies: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(
            "select version, task_version, correct, zero_shot_correct, total from tally
             where model = $1 and version <= $2",
        )
        .bind(model.as_str())
        .bind(i64::from(newest.0))
        .fetch_all(&self.reader)
        .await?;
        let parent = |(number, parent)| Ok((version(number)?, version_or_none(parent)?));
        let tally = |(of, task, correct, zero_shot, total)| {
            let tally = |correct| {
                Ok::<_, StoreError>(Tally {
                    correct: number("count", correct)?,
                    total: number("count", total)?,
                })
            };
            Ok((
                (version(of)?, version(task)?),
                (tally(correct)?, tally(zero_shot)?),
            ))
        };
        let removal =
            |(of, task, class): (_, _, Option<_>)| Ok((version(of)?, (version(task)?, class.is_none())));
        Ok(Histories {
            removals: removals
                .into_iter()
                .map(removal)
                .collect::<Result<_, StoreError>>()?,
            parents: parents
                .into_iter()
                .map(parent)
                .collect::<Result<_, StoreError>>()?,
            tallies: tallies
                .into_iter()
                .map(tally)
                .collect::<Result<_, StoreError>>()?,
        })
    }
}

impl Histories {
    /// The line of versions that ends in this one, as [`Store::accuracy`] gives it. Empty for an unknown version.
    pub fn of(&self, version: VersionNumber) -> History {
        let mut line = Vec::new();
        let mut next = Some(version);
        // A parent has a smaller number, so this ends.
        while let Some((version, parent)) = next.and_then(|v| self.parents.get_key_value(&v)) {
            line.push(*version);
            next = *parent;
        }
        line.reverse();
        let removed: HashSet<VersionNumber> = line
            .iter()
            .filter_map(|version| self.removals.get(version))
            .filter_map(|(task, whole)| whole.then_some(*task))
            .collect();
        let changed: HashMap<VersionNumber, VersionNumber> = line
            .iter()
            .filter_map(|version| Some((version, self.removals.get(version)?)))
            .filter_map(|(version, (task, whole))| (!whole).then_some((*task, *version)))
            .collect();
        let compares = |version, task: VersionNumber| changed.get(&task).is_none_or(|at| version >= *at);
        let is_known =
            |version: &&VersionNumber| !removed.contains(*version) && !self.removals.contains_key(*version);
        let known: Vec<VersionNumber> = line.iter().filter(is_known).copied().collect();
        let matrix = |pick: fn(&(Tally, Tally)) -> Tally| {
            let tally = |version, task| {
                let found = self.tallies.get(&(version, task));
                found
                    .filter(|_| compares(version, task))
                    .map(pick)
                    .unwrap_or_default()
            };
            let row = |&version: &VersionNumber| {
                let tasks = known.iter().filter(|&&task| task <= version);
                tasks.map(|&task| tally(version, task)).collect()
            };
            // Always a staircase.
            AccuracyMatrix::new(line.iter().map(row).collect()).unwrap_or_default()
        };
        History {
            matrix: matrix(|(own, _)| *own),
            zero_shot: matrix(|(_, zero_shot)| *zero_shot),
            versions: line,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_leaves_out_what_was_learned_beside_it() {
        let number = VersionNumber;
        let tally = |correct| {
            (
                Tally { correct, total: 10 },
                Tally {
                    correct: 1,
                    total: 10,
                },
            )
        };
        let histories = Histories {
            // 3 was learned on top of 1 after a rollback from 2.
            parents: [
                (number(1), None),
                (number(2), Some(number(1))),
                (number(3), Some(number(1))),
            ]
            .into(),
            removals: HashMap::new(),
            tallies: [
                ((number(1), number(1)), tally(9)),
                ((number(2), number(1)), tally(5)),
                ((number(2), number(2)), tally(6)),
                ((number(3), number(1)), tally(8)),
            ]
            .into(),
        };
        let rows = |version| histories.of(number(version)).matrix.rows().to_vec();
        let (nine, eight) = (tally(9).0, tally(8).0);
        assert_eq!(rows(3), [vec![nine], vec![eight, Tally::default()]]);
        assert_eq!(rows(1), [vec![nine]]);
        assert!(rows(4).is_empty(), "an unknown version");
        assert_eq!(histories.of(number(1)).zero_shot.rows(), [vec![tally(1).1]]);
    }

    #[test]
    fn what_a_line_has_unlearned_is_no_column() {
        let number = VersionNumber;
        let tally = |correct| Tally { correct, total: 10 };
        let both = |correct| (tally(correct), tally(0));
        let histories = Histories {
            parents: (1..=4)
                .map(|n| (number(n), (n > 1).then(|| number(n - 1))))
                .collect(),
            // 3 does without what 1 brought.
            removals: [(number(3), (number(1), true))].into(),
            tallies: [
                ((number(1), number(1)), both(9)),
                ((number(2), number(1)), both(8)),
                ((number(2), number(2)), both(7)),
                ((number(3), number(2)), both(6)),
                ((number(4), number(2)), both(5)),
                ((number(4), number(4)), both(4)),
            ]
            .into(),
        };
        let rows = |version| histories.of(number(version)).matrix.rows().to_vec();
        assert_eq!(rows(2), [vec![tally(9)], vec![tally(8), tally(7)]]);
        assert_eq!(rows(3), [vec![], vec![tally(7)], vec![tally(6)]]);
        assert_eq!(
            rows(4),
            [vec![], vec![tally(7)], vec![tally(6)], vec![tally(5), tally(4)]]
        );
    }
}
