//! Models.

use jiff::Timestamp;

use super::Store;
use super::codec::{from_json, micros, parse, timestamp, to_json, version_or_none};
use super::error::{CreateModelError, StoreError};
use crate::domain::{Model, ModelConfig, ModelName};

impl Store {
    /// Creates a model without versions.
    ///
    /// # Errors
    /// [`CreateModelError::Exists`] when the name is taken.
    pub async fn create_model(
        &self,
        name: &ModelName,
        config: &ModelConfig,
        now: Timestamp,
    ) -> Result<Model, CreateModelError> {
        match self.insert_model(name, config, now).await? {
            Some(model) => Ok(model),
            None => Err(CreateModelError::Exists(name.clone())),
        }
    }

    /// The model of this name, created with `config` when it is missing. The configuration of one that exists stays.
    pub async fn ensure_model(
        &self,
        name: &ModelName,
        config: &ModelConfig,
        now: Timestamp,
    ) -> Result<Model, StoreError> {
        if let Some(model) = self.insert_model(name, config, now).await? {
            return Ok(model);
        }
        match self.model(name).await? {
            Some(model) => Ok(model),
            None => Err(StoreError::corrupt("model", "it exists and does not")),
        }
    }

    /// The model of this name.
    pub async fn model(&self, name: &ModelName) -> Result<Option<Model>, StoreError> {
        let row: Option<ModelRow> =
            sqlx::query_as("select name, config, backbone, active, created_at from model where name = $1")
                .bind(name.as_str())
                .fetch_optional(&self.reader)
                .await?;
        row.map(Model::try_from).transpose()
    }

    /// At most `limit` models by name, those `after` a name or from the first.
    pub async fn models(&self, after: Option<&ModelName>, limit: u32) -> Result<Vec<Model>, StoreError> {
        let rows: Vec<ModelRow> = sqlx::query_as(
            "select name, config, backbone, active, created_at from model where name > $1 order by name limit $2",
        )
        .bind(after.map_or("", ModelName::as_str))
        .bind(i64::from(limit))
        .fetch_all(&self.reader)
        .await?;
        rows.into_iter().map(Model::try_from).collect()
    }

    /// `None` when the name is taken.
    async fn insert_model(
        &self,
        name: &ModelName,
        config: &ModelConfig,
        now: Timestamp,
    ) -> Result<Option<Model>, StoreError> {
        let mut tx = self.write().await?;
        let row: Option<ModelRow> = sqlx::query_as(
            "insert into model (name, config, created_at) values ($1, $2, $3) on conflict (name) do nothing
             returning name, config, backbone, active, created_at",
        )
        .bind(name.as_str())
        .bind(to_json("model's configuration", config)?)
        .bind(micros(now))
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        row.map(Model::try_from).transpose()
    }
}

#[derive(sqlx::FromRow)]
struct ModelRow {
    name: String,
    config: String,
    backbone: Option<String>,
    active: Option<i64>,
    created_at: i64,
}

impl TryFrom<ModelRow> for Model {
    type Error = StoreError;

    fn try_from(row: ModelRow) -> Result<Self, StoreError> {
        Ok(Self {
            name: parse("model's name", &row.name)?,
            config: from_json("model's configuration", &row.config)?,
            backbone: row
                .backbone
                .map(|digest| parse("backbone's digest", &digest))
                .transpose()?,
            active: version_or_none(row.active)?,
            created_at: timestamp(row.created_at)?,
        })
    }
}
