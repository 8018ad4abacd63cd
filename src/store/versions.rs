//! Versions, one by one.

use super::Store;
use super::codec::{from_json, number, parse, timestamp, to_column, version, version_or_none};
use super::error::StoreError;
use crate::blocking;
use crate::domain::{Content, Digest, ModelName, Version, VersionNumber};

/// The columns of [`VersionRow`]: all but the large ones.
macro_rules! select_version {
    ($rest:literal) => {
        concat!(
            "select number, parent, task, job, digest, bytes, config, report, created_at,
                 (select kind from job where job.id = version.job) as kind
             from version ",
            $rest
        )
    };
}

impl Store {
    /// A version's entry in its model's history.
    pub async fn version(
        &self,
        model: &ModelName,
        number: VersionNumber,
    ) -> Result<Option<Version>, StoreError> {
        let row: Option<VersionRow> = sqlx::query_as(select_version!("where model = $1 and number = $2"))
            .bind(model.as_str())
            .bind(i64::from(number.0))
            .fetch_optional(&self.reader)
            .await?;
        row.map(Version::try_from).transpose()
    }

    /// At most `limit` versions of a model, newest first: those `before` a number or from the newest.
    pub async fn versions(
        &self,
        model: &ModelName,
        before: Option<VersionNumber>,
        limit: u32,
    ) -> Result<Vec<Version>, StoreError> {
        let rows: Vec<VersionRow> = sqlx::query_as(select_version!(
            "where model = $1 and number < $2 order by number desc limit $3"
        ))
        .bind(model.as_str())
        .bind(to_column(before).unwrap_or(i64::MAX))
        .bind(i64::from(limit))
        .fetch_all(&self.reader)
        .await?;
        rows.into_iter().map(Version::try_from).collect()
    }

    /// A version's snapshot, which has the digest that was written down.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when they do not have it.
    pub async fn snapshot(
        &self,
        model: &ModelName,
        number: VersionNumber,
    ) -> Result<Option<Content>, StoreError> {
        let row: Option<(Vec<u8>, String)> =
            sqlx::query_as("select snapshot, digest from version where model = $1 and number = $2")
                .bind(model.as_str())
                .bind(i64::from(number.0))
                .fetch_optional(&self.reader)
                .await?;
        let Some((bytes, digest)) = row else {
            return Ok(None);
        };
        let digest: Digest = parse("digest", &digest)?;
        let content = blocking::run(move || Content::of(bytes)).await;
        let found = content.digest();
        if found != digest {
            let why = format!("version {number} of {model} has {found} where {digest} was written");
            return Err(StoreError::corrupt("snapshot", why));
        }
        Ok(Some(content))
    }
}

#[derive(sqlx::FromRow)]
struct VersionRow {
    number: i64,
    parent: Option<i64>,
    kind: String,
    task: String,
    job: String,
    digest: String,
    bytes: i64,
    config: String,
    report: String,
    created_at: i64,
}

impl TryFrom<VersionRow> for Version {
    type Error = StoreError;

    fn try_from(row: VersionRow) -> Result<Self, StoreError> {
        Ok(Self {
            number: version(row.number)?,
            parent: version_or_none(row.parent)?,
            kind: parse("job's kind", &row.kind)?,
            task: parse("task's name", &row.task)?,
            job: parse("job's id", &row.job)?,
            digest: parse("digest", &row.digest)?,
            bytes: number("snapshot's size", row.bytes)?,
            created_at: timestamp(row.created_at)?,
            config: from_json("version's configuration", &row.config)?,
            report: from_json("version's report", &row.report)?,
        })
    }
}
