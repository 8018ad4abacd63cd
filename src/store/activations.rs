//! Which version answers, and the log of it.

use jiff::Timestamp;
use sqlx::{Any, AnyConnection, Executor};

use super::Store;
use super::codec::{micros, parse, timestamp, to_column, version, version_or_none};
use super::error::{ActivateError, StoreError};
use crate::domain::{Activation, ModelName, VersionNumber};

/// A wish to make a version answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activate {
    /// The model.
    pub model: ModelName,
    /// The version that is to answer from now on.
    pub version: VersionNumber,
    /// The version that must be active for the wish to hold; `None` for any.
    pub expected: Option<VersionNumber>,
    /// Who wishes it.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// The time.
    pub now: Timestamp,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activated {
    /// Another version answers now.
    Changed(Activation),
    /// The version was active already, since this entry of the log. Nothing was written, so that a request that is
    /// sent again leaves one entry.
    Unchanged(Activation),
}

/// An entry of the log with its place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivationEntry {
    /// Grows from entry to entry.
    pub id: i64,
    /// The entry.
    pub activation: Activation,
}

impl Store {
    /// Makes a version of a model answer, newer or older than the active one, and writes it to the log.
    ///
    /// # Errors
    /// [`ActivateError`] when there is no such model or version, or when another version is active than expected.
    pub async fn activate(&self, wish: Activate) -> Result<Activated, ActivateError> {
        let mut tx = self.write().await?;
        // Writes the row to lock it until the end of the transaction.
        let model: Option<(Option<i64>,)> =
            sqlx::query_as("update model set active = active where name = $1 returning active")
                .bind(wish.model.as_str())
                .fetch_optional(&mut *tx)
                .await?;
        let Some((active,)) = model else {
            return Err(ActivateError::UnknownModel(wish.model));
        };
        let active = version_or_none(active)?;
        let known = sqlx::query("select 1 from version where model = $1 and number = $2")
            .bind(wish.model.as_str())
            .bind(i64::from(wish.version.0))
            .fetch_optional(&mut *tx)
            .await?;
        if known.is_none() {
            return Err(ActivateError::UnknownVersion(wish.version));
        }
        if wish.expected.is_some() && wish.expected != active {
            return Err(ActivateError::ActiveMoved { active });
        }
        if active == Some(wish.version) {
            return match entries(&mut *tx, &wish.model, None, 1).await?.pop() {
                Some(entry) => Ok(Activated::Unchanged(entry.activation)),
                None => Err(StoreError::corrupt("activation log", "the active version is not in it").into()),
            };
        }
        let activation = Activation {
            model: wish.model,
            version: wish.version,
            previous: active,
            actor: wish.actor,
            reason: wish.reason,
            at: timestamp(micros(wish.now))?,
        };
        insert(&mut tx, &activation).await?;
        tx.commit().await?;
        Ok(Activated::Changed(activation))
    }

    /// At most `limit` entries of a model's log, newest first: those `before` an entry or from the newest.
    pub async fn activations(
        &self,
        model: &ModelName,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<ActivationEntry>, StoreError> {
        entries(&self.reader, model, before, limit).await
    }
}

async fn entries<'e>(
    executor: impl Executor<'e, Database = Any>,
    model: &ModelName,
    before: Option<i64>,
    limit: u32,
) -> Result<Vec<ActivationEntry>, StoreError> {
    let rows: Vec<ActivationRow> = sqlx::query_as(
        "select id, model, version, previous, actor, reason, at from activation
         where model = $1 and id < $2 order by id desc limit $3",
    )
    .bind(model.as_str())
    .bind(before.unwrap_or(i64::MAX))
    .bind(i64::from(limit))
    .fetch_all(executor)
    .await?;
    rows.into_iter().map(ActivationEntry::try_from).collect()
}

/// Makes the version active and logs it. The caller's transaction has locked the model's row.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    activation: &Activation,
) -> Result<(), StoreError> {
    sqlx::query("update model set active = $2 where name = $1")
        .bind(activation.model.as_str())
        .bind(i64::from(activation.version.0))
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "insert into activation (model, version, previous, actor, reason, at) values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(activation.model.as_str())
    .bind(i64::from(activation.version.0))
    .bind(to_column(activation.previous))
    .bind(activation.actor.as_str())
    .bind(activation.reason.as_deref())
    .bind(micros(activation.at))
    .execute(connection)
    .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct ActivationRow {
    id: i64,
    model: String,
    version: i64,
    previous: Option<i64>,
    actor: String,
    reason: Option<String>,
    at: i64,
}

impl TryFrom<ActivationRow> for ActivationEntry {
    type Error = StoreError;

    fn try_from(row: ActivationRow) -> Result<Self, StoreError> {
        let activation = Activation {
            model: parse("model's name", &row.model)?,
            version: version(row.version)?,
            previous: version_or_none(row.previous)?,
            actor: row.actor,
            reason: row.reason,
            at: timestamp(row.at)?,
        };
        Ok(Self {
            id: row.id,
            activation,
        })
    }
}
