//! What a version knows: its own task and those of its ancestors, root first, less the tasks and classes that the line has
//! unlearned.
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
/// brought the tasks which `$2` knows, as the table `known`. The classes of these that `$2` does not know are the table
/// `unlearned`. What goes is told here and nowhere else.
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
                         where model = $1 and class is null and version in (select number from lineage))),
             unlearned (class) as (
                 select class from removal
                 where model = $1 and class is not null and version in (select number from lineage)) ",
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
             where model = $1 and version in (select number from known)
                 and id not in (select class from unlearned)
             order by version, position"
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

    /// The statistics that `number` knows of the classes which the version `task` brought: those of that version, or of the
    /// last one on the line that did without one of them. `None` where there is no such task.
    pub async fn statistics(
        &self,
        model: &ModelName,
        number: VersionNumber,
        task: VersionNumber,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let row: Option<(Vec<u8>,)> = sqlx::query_as(along_lineage!(
            "select statistics from version
             where model = $1 and $3 in (select number from known) and number in (
                 select max(number) from lineage
                 where number = $3
                     or number in (select version from removal where model = $1 and task_version = $3))"
        ))
        .bind(model.as_str())
        .bind(i64::from(number.0))
        .bind(i64::from(task.0))
        .fetch_optional(&self.reader)
        .await?;
        Ok(row.map(|(bytes,)| bytes))
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
        "select label from class
         where model = $1 and version in (select number from known) and id not in (select class from unlearned)"
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

/// What unlearning a job's task, or its class, comes to.
pub(super) enum Removal {
    /// These go.
    Of(Removed),
    /// There is no such task.
    UnknownTask,
    /// The task has no such class.
    UnknownClass(Label),
    /// Nothing would be left.
    OfAll,
}

/// What a version does without.
#[derive(Debug, Clone)]
pub(super) struct Removed {
    /// The version that brought the task.
    pub(super) task: VersionNumber,
    /// The id of the class that goes; `None` where the whole task does.
    pub(super) class: Option<String>,
}

/// What unlearning a job's task, or the class that the job names, comes to on top of the version `base` of its model.
pub(super) async fn removal(
    connection: &mut AnyConnection,
    job: &Job,
    base: VersionNumber,
) -> Result<Removal, StoreError> {
    let tasks = known_tasks(connection, &job.model, base).await?;
    let Some((task, _)) = tasks.iter().find(|(_, task)| task == job.task.as_str()) else {
        return Ok(Removal::UnknownTask);
    };
    let named: Option<(String,)> = sqlx::query_as("select label from job_class where job = $1")
        .bind(job.id.to_string())
        .fetch_optional(&mut *connection)
        .await?;
    let Some((label,)) = named else {
        return Ok(match tasks.len() {
            1 => Removal::OfAll,
            _ => Removal::Of(Removed {
                task: *task,
                class: None,
            }),
        });
    };
    let classes: Vec<(String, String)> = sqlx::query_as(along_lineage!(
        "select id, label from class
         where model = $1 and version = $3 and id not in (select class from unlearned)"
    ))
    .bind(job.model.as_str())
    .bind(i64::from(base.0))
    .bind(i64::from(task.0))
    .fetch_all(connection)
    .await?;
    let is_only = classes.len() == 1;
    Ok(match classes.into_iter().find(|(_, known)| *known == label) {
        None => Removal::UnknownClass(parse("label", &label)?),
        Some(_) if is_only && tasks.len() == 1 => Removal::OfAll,
        Some((id, _)) => Removal::Of(Removed {
            task: *task,
            class: (!is_only).then_some(id),
        }),
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
