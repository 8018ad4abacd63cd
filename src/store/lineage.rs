//! What a version knows: its own task and those of its ancestors, root first.
//!
//! A version's parent has a smaller number, so the order of numbers is the order of learning.

use std::collections::{HashMap, HashSet};

use sqlx::AnyConnection;

use super::Store;
use super::codec::{number, parse, timestamp, version};
use super::error::StoreError;
use crate::domain::{Class, Job, Label, ModelName, Task, TaskName, VersionNumber};

/// A statement about the versions from the root to `$2` of model `$1`, as the table `lineage`.
macro_rules! along_lineage {
    ($statement:literal) => {
        concat!(
            "with recursive lineage (number, parent) as (
                 select number, parent from version where model = $1 and number = $2
                 union all
                 select version.number, version.parent from version
                 join lineage on version.number = lineage.parent where version.model = $1) ",
            $statement
        )
    };
}
pub(super) use along_lineage;

impl Store {
    /// The versions from the root to `number`. Empty when the model has no such version.
    pub async fn lineage(
        &self,
        model: &ModelName,
        number: VersionNumber,
    ) -> Result<Vec<VersionNumber>, StoreError> {
        let rows: Vec<(i64,)> = sqlx::query_as(along_lineage!("select number from lineage order by number"))
            .bind(model.as_str())
            .bind(i64::from(number.0))
            .fetch_all(&self.reader)
            .await?;
        rows.into_iter().map(|(number,)| version(number)).collect()
    }

    /// The tasks that a version knows with their classes, in the order of learning: the order of its columns.
    pub async fn tasks(&self, model: &ModelName, number: VersionNumber) -> Result<Vec<Task>, StoreError> {
        let tasks: Vec<TaskRow> = sqlx::query_as(along_lineage!(
            "select number, task, job, train, held_out, created_at from version
             where model = $1 and number in (select number from lineage) order by number"
        ))
        .bind(model.as_str())
        .bind(i64::from(number.0))
        .fetch_all(&self.reader)
        .await?;
        let classes: Vec<ClassRow> = sqlx::query_as(along_lineage!(
            "select version, id, label, prompt from class
             where model = $1 and version in (select number from lineage) order by version, position"
        ))
        .bind(model.as_str())
        .bind(i64::from(number.0))
        .fetch_all(&self.reader)
        .await?;
        let mut of_version: HashMap<i64, Vec<ClassRow>> = HashMap::new();
        for class in classes {
            of_version.entry(class.version).or_default().push(class);
        }
        tasks
            .into_iter()
            .map(|task| {
                let classes = of_version.remove(&task.number).unwrap_or_default();
                task.with_classes(classes)
            })
            .collect()
    }

    /// The statistics kept with each version from the root to `number`.
    pub async fn statistics(
        &self,
        model: &ModelName,
        number: VersionNumber,
    ) -> Result<Vec<(VersionNumber, Vec<u8>)>, StoreError> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(along_lineage!(
            "select number, statistics from version
             where model = $1 and number in (select number from lineage) order by number"
        ))
        .bind(model.as_str())
        .bind(i64::from(number.0))
        .fetch_all(&self.reader)
        .await?;
        rows.into_iter()
            .map(|(number, bytes)| Ok((version(number)?, bytes)))
            .collect()
    }
}

/// Something new that a version knows already.
pub(super) enum Clash {
    Task,
    Label(Label),
}

/// What of a job's task and `labels` the version `base` of its model knows already.
pub(super) async fn clash(
    connection: &mut AnyConnection,
    job: &Job,
    base: VersionNumber,
    labels: impl Iterator<Item = &Label>,
) -> Result<Option<Clash>, StoreError> {
    let task = sqlx::query(along_lineage!(
        "select 1 from version where model = $1 and task = $3 and number in (select number from lineage)"
    ))
    .bind(job.model.as_str())
    .bind(i64::from(base.0))
    .bind(job.task.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    if task.is_some() {
        return Ok(Some(Clash::Task));
    }
    let rows: Vec<(String,)> = sqlx::query_as(along_lineage!(
        "select label from class where model = $1 and version in (select number from lineage)"
    ))
    .bind(job.model.as_str())
    .bind(i64::from(base.0))
    .fetch_all(connection)
    .await?;
    let known: HashSet<String> = rows.into_iter().map(|(label,)| label).collect();
    let mut labels = labels;
    Ok(labels
        .find(|label| known.contains(label.as_str()))
        .map(|label| Clash::Label(label.clone())))
}

#[derive(sqlx::FromRow)]
struct TaskRow {
    number: i64,
    task: String,
    job: String,
    train: i64,
    held_out: i64,
    created_at: i64,
}

impl TaskRow {
    fn with_classes(self, classes: Vec<ClassRow>) -> Result<Task, StoreError> {
        let name: TaskName = parse("task's name", &self.task)?;
        Ok(Task {
            version: version(self.number)?,
            job: parse("job's id", &self.job)?,
            classes: classes
                .into_iter()
                .map(|class| class.of_task(&name))
                .collect::<Result<_, _>>()?,
            train: number("count", self.train)?,
            held_out: number("count", self.held_out)?,
            learned_at: timestamp(self.created_at)?,
            name,
        })
    }
}

#[derive(sqlx::FromRow)]
struct ClassRow {
    version: i64,
    id: String,
    label: String,
    prompt: Option<String>,
}

impl ClassRow {
    fn of_task(self, task: &TaskName) -> Result<Class, StoreError> {
        Ok(Class {
            id: parse("class's id", &self.id)?,
            label: parse("label", &self.label)?,
            prompt: self.prompt,
            task: task.clone(),
        })
    }
}
