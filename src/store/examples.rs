//! The examples of an open job: images that wait, features that came of them.

use futures::{StreamExt as _, TryStreamExt as _};
use sqlx::AnyConnection;

use super::Store;
use super::codec::{features, number, parse, split};
use super::error::StoreError;
use super::jobs::Lease;
use super::owner::Owner;
use crate::domain::{Digest, Features, JobId, NewClass, Split};

/// An image that is not encoded yet.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingExample {
    /// Its place among the job's examples.
    pub position: u32,
    /// Position of its class among the job's.
    pub class: u32,
    /// Its part of the task, where the caller chose one.
    pub split: Option<Split>,
    /// Of the image's bytes.
    pub digest: Digest,
    /// The image as it was uploaded.
    pub image: Vec<u8>,
}

/// An example ready to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedExample {
    /// Its place among the job's examples.
    pub position: u32,
    /// Position of its class among the job's.
    pub class: u32,
    /// Its part of the task, where the caller chose one.
    pub split: Option<Split>,
    /// Of the content that the features came of.
    pub digest: Digest,
    /// Its features.
    pub features: Features,
}

/// How far a job's examples are. All 0 once the job has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExampleCounts {
    /// All of them.
    pub total: u32,
    /// Those with features.
    pub encoded: u32,
    /// Those whose image could not be read.
    pub discarded: u32,
}

impl Store {
    /// The classes of a job's task in order.
    pub async fn job_classes(&self, job: JobId) -> Result<Vec<NewClass>, StoreError> {
        let rows: Vec<(String, Option<String>)> =
            sqlx::query_as("select label, prompt from job_class where job = $1 order by position")
                .bind(job.to_string())
                .fetch_all(&self.reader)
                .await?;
        rows.into_iter()
            .map(|(label, prompt)| {
                Ok(NewClass {
                    label: parse("label", &label)?,
                    prompt,
                })
            })
            .collect()
    }

    /// How far a job's examples are.
    pub async fn example_counts(&self, job: JobId) -> Result<ExampleCounts, StoreError> {
        let (total, encoded, discarded): (i64, i64, i64) =
            sqlx::query_as("select count(*), count(features), count(error) from job_example where job = $1")
                .bind(job.to_string())
                .fetch_one(&self.reader)
                .await?;
        Ok(ExampleCounts {
            total: number("count", total)?,
            encoded: number("count", encoded)?,
            discarded: number("count", discarded)?,
        })
    }

    /// The first images of a job that wait to be encoded, of those at position `from` and behind it, in order: at most `limit`, and
    /// no more than `bytes` of them together unless the first alone is larger.
    pub async fn pending_images(
        &self,
        job: JobId,
        from: u32,
        limit: u32,
        bytes: u64,
    ) -> Result<Vec<PendingExample>, StoreError> {
        let rows: Vec<PendingRow> = sqlx::query_as(
            "with waiting as (
                 select position, length(image) as size from job_example
                 where job = $1 and position >= $4 and image is not null order by position limit $2),
             summed as (
                 select position, size, sum(size) over (order by position) as total from waiting)
             select position, class, split, digest, image from job_example
             where job = $1 and position in (
                 select position from summed where total <= $3 or total = size)
             order by position",
        )
        .bind(job.to_string())
        .bind(i64::from(limit))
        .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
        .bind(i64::from(from))
        .fetch_all(&self.reader)
        .await?;
        rows.into_iter().map(PendingExample::try_from).collect()
    }

    /// Puts features in the place of their images, by position. Positions without a waiting image are passed over.
    pub async fn save_features(
        &self,
        job: JobId,
        owner: &Owner,
        features: &[(u32, Features)],
    ) -> Result<Lease, StoreError> {
        let mut tx = self.write().await?;
        if !holds(&mut tx, job, owner).await? {
            return Ok(Lease::Lost);
        }
        for (position, features) in features {
            sqlx::query(
                "update job_example set features = $3, image = null
                 where job = $1 and position = $2 and image is not null",
            )
            .bind(job.to_string())
            .bind(i64::from(*position))
            .bind(features.to_le_bytes())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(Lease::Held)
    }

    /// Drops an image that cannot be read, and keeps why.
    pub async fn discard_example(
        &self,
        job: JobId,
        owner: &Owner,
        position: u32,
        error: &str,
    ) -> Result<Lease, StoreError> {
        let mut tx = self.write().await?;
        if !holds(&mut tx, job, owner).await? {
            return Ok(Lease::Lost);
        }
        sqlx::query(
            "update job_example set error = $3, image = null
             where job = $1 and position = $2 and image is not null",
        )
        .bind(job.to_string())
        .bind(i64::from(position))
        .bind(error)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Lease::Held)
    }

    /// The images of a job that were discarded, in order: what the caller calls them, and why.
    pub async fn discarded_examples(&self, job: JobId) -> Result<Vec<(String, String)>, StoreError> {
        Ok(sqlx::query_as(
            "select name, error from job_example where job = $1 and error is not null order by position",
        )
        .bind(job.to_string())
        .fetch_all(&self.reader)
        .await?)
    }

    /// The examples of a job that have features, in order.
    pub async fn encoded_examples(&self, job: JobId) -> Result<Vec<EncodedExample>, StoreError> {
        let rows = sqlx::query_as::<_, EncodedRow>(
            "select position, class, split, digest, features from job_example
             where job = $1 and features is not null order by position",
        );
        // Each is converted as it arrives, and not all of them at once on a thread that answers requests.
        let rows = rows.bind(job.to_string()).fetch(&self.reader);
        rows.map(|row| EncodedExample::try_from(row?)).try_collect().await
    }
}

/// Removes a job's examples, images and features alike.
pub(super) async fn delete(connection: &mut AnyConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query("delete from job_example where job = $1")
        .bind(job.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// Whether `owner` holds the job's lease. Locks the job's row until the transaction ends, so that it stays so.
async fn holds(connection: &mut AnyConnection, job: JobId, owner: &Owner) -> Result<bool, StoreError> {
    let held = sqlx::query("update job set owner = owner where id = $1 and owner = $2")
        .bind(job.to_string())
        .bind(owner.to_string())
        .execute(connection)
        .await?
        .rows_affected();
    Ok(held > 0)
}

#[derive(sqlx::FromRow)]
struct PendingRow {
    position: i64,
    class: i64,
    split: Option<String>,
    digest: String,
    image: Vec<u8>,
}

impl TryFrom<PendingRow> for PendingExample {
    type Error = StoreError;

    fn try_from(row: PendingRow) -> Result<Self, StoreError> {
        Ok(Self {
            position: number("position", row.position)?,
            class: number("class", row.class)?,
            split: split(row.split.as_deref())?,
            digest: parse("digest", &row.digest)?,
            image: row.image,
        })
    }
}

#[derive(sqlx::FromRow)]
struct EncodedRow {
    position: i64,
    class: i64,
    split: Option<String>,
    digest: String,
    features: Vec<u8>,
}

impl TryFrom<EncodedRow> for EncodedExample {
    type Error = StoreError;

    fn try_from(row: EncodedRow) -> Result<Self, StoreError> {
        Ok(Self {
            position: number("position", row.position)?,
            class: number("class", row.class)?,
            split: split(row.split.as_deref())?,
            digest: parse("digest", &row.digest)?,
            features: features(&row.features)?,
        })
    }
}
