//! What a version knows: its own task and those of its ancestors, root first, less what the line has unlearned.
//!
//! A version's parent has a smaller number, so the order of numbers is the order of learning.
//!
//! ```text
//! 1 A ─▶ 2 B ─▶ 3 C ─▶ 4 less B ─▶ 5 D        the lineage of 5 is 1 to 5; it knows what 1, 3 and 5 brought
//! ```

use std::collections::{HashMap, HashSet};

use sqlx::AnyConnection;

use super::Store;
use super::codec::{number, parse, timestamp, version};
use super::error::StoreError;
use crate::domain::{Class, Job, Label, ModelName, Task, TaskName, VersionNumber};

/// A statement about the versions from the root to `$2` of model `$1`, as the table `lineage`, and those of them that
/// brought the tasks which `$2` knows, as the table `known`. What is unlearned is left out here and nowhere else.
macro_rules! along_lineage {
    ($statement:literal) => {
        concat!(
            "with recursive lineage (number, parent) as (
                 select number, parent from version where model = $1 and number = $2
                 union all
                 select version.number, version.parent from version
                 join lineage on version.number = lineage.parent where version.model = $1),
             known (number) as (
                 select number from lineage
                 where number not in (select version from removal where model = $1)
                     and number not in (
                         select task_version from removal
                         where model = $1 and version in (select number from lineage))) ",
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
             where model = $1 and number in (select number from known) order by number"
        ))
        .bind(model.as_str())
        .bind(i64::from(number.0))
        .fetch_all(&self.reader)
        .await?;
        let classes: Vec<ClassRow> = sqlx::query_as(along_lineage!(
            "select version, id, label, prompt from class
             where model = $1 and version in (select number from known) order by version, position"
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

    /// The versions that brought the tasks which `number` knows, in the order of learning.
    pub async fn known(
        &self,
        model: &ModelName,
        number: VersionNumber,
    ) -> Result<Vec<VersionNumber>, StoreError> {
        let mut connection = self.reader.acquire().await?;
        let tasks = known_tasks(&mut connection, model, number).await?;
        Ok(tasks.into_iter().map(|(version, _)| version).collect())
    }

    /// The statistics kept with each version that brought a task which `number` knows, in the order of learning.
    pub async fn statistics(
        &self,
        model: &ModelName,
        number: VersionNumber,
    ) -> Result<Vec<(VersionNumber, Vec<u8>)>, StoreError> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(along_lineage!(
            "select number, statistics from version
             where model = $1 and number in (select number from known) order by number"
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
    let tasks = known_tasks(connection, &job.model, base).await?;
    if tasks.iter().any(|(_, task)| task == job.task.as_str()) {
        return Ok(Some(Clash::Task));
    }
    let rows: Vec<(String,)> = sqlx::query_as(along_lineage!(
        "select label from class where model = $1 and version in (select number from known)"
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

/// What unlearning a job's task comes to.
pub(super) enum Removal {
    /// The version that brought the task.
    Of(VersionNumber),
    /// There is no such task.
    Unknown,
    /// Nothing would be left.
    OfAll,
}

/// What unlearning a job's task on top of the version `base` of its model comes to.
pub(super) async fn removal(
    connection: &mut AnyConnection,
    job: &Job,
    base: VersionNumber,
) -> Result<Removal, StoreError> {
    let tasks = known_tasks(connection, &job.model, base).await?;
    let brought = tasks.iter().find(|(_, task)| task == job.task.as_str());
    Ok(match brought {
        None => Removal::Unknown,
        Some(_) if tasks.len() == 1 => Removal::OfAll,
        Some((version, _)) => Removal::Of(*version),
    })
}

/// The tasks that a version knows, each with the version that brought it, in the order of learning.
async fn known_tasks(
    connection: &mut AnyConnection,
    model: &ModelName,
    number: VersionNumber,
) -> Result<Vec<(VersionNumber, String)>, StoreError> {
    let rows: Vec<(i64, String)> = sqlx::query_as(along_lineage!(
        "select number, task from version
         where model = $1 and number in (select number from known) order by number"
    ))
    .bind(model.as_str())
    .bind(i64::from(number.0))
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(number, task)| Ok((version(number)?, task)))
        .collect()
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
