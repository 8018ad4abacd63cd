//! The calls of the story, over HTTP.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, Url};
use serde_json::{Value, json};

pub(super) struct Client {
    http: reqwest::Client,
    server: Url,
}

impl Client {
    pub(super) fn new(server: &str) -> anyhow::Result<Self> {
        let server = Url::parse(server).with_context(|| format!("{server:?} is no URL"))?;
        let http = reqwest::Client::builder()
            .timeout(Duration::from_mins(1))
            .build()?;
        Ok(Self { http, server })
    }

    pub(super) async fn create_model(&self, name: &str) -> anyhow::Result<()> {
        let request = self
            .http
            .post(self.url(&["v1", "models"])?)
            .json(&json!({ "name": name }));
        answer(request).await.map(|_| ())
    }

    pub(super) async fn classify(
        &self,
        model: &str,
        picture: &[u8],
        query: &[(&str, String)],
    ) -> anyhow::Result<Value> {
        let mut url = self.url(&["v1", "models", model, "classify"])?;
        url.query_pairs_mut().extend_pairs(query);
        answer(
            self.http
                .post(url)
                .header("content-type", "image/png")
                .body(picture.to_vec()),
        )
        .await
    }

    /// Posts a task; returns its job's id.
    pub(super) async fn teach(
        &self,
        model: &str,
        task: &str,
        examples: Vec<(&'static str, Vec<u8>)>,
    ) -> anyhow::Result<String> {
        let mut form = Form::new().text("name", task.to_owned());
        for (number, (label, picture)) in examples.into_iter().enumerate() {
            form = form.part(
                label,
                Part::bytes(picture).file_name(format!("{label}-{number}.png")),
            );
        }
        let url = self.url(&["v1", "models", model, "tasks"])?;
        let accepted = answer(self.http.post(url).multipart(form)).await?;
        accepted["job"]
            .as_str()
            .map(str::to_owned)
            .context("the server named no job")
    }

    pub(super) async fn job(&self, id: &str) -> anyhow::Result<Value> {
        answer(self.http.get(self.url(&["v1", "jobs", id])?)).await
    }

    pub(super) async fn accuracy(&self, model: &str) -> anyhow::Result<Value> {
        answer(self.http.get(self.url(&["v1", "models", model, "accuracy"])?)).await
    }

    pub(super) async fn rollback(&self, model: &str, version: u32, reason: &str) -> anyhow::Result<()> {
        let body = json!({ "version": version, "reason": reason });
        answer(
            self.http
                .post(self.url(&["v1", "models", model, "rollback"])?)
                .json(&body),
        )
        .await
        .map(|_| ())
    }

    fn url(&self, path: &[&str]) -> anyhow::Result<Url> {
        let mut url = self.server.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => bail!("{} cannot be the address of a server", self.server),
        };
        Ok(url)
    }
}

/// The body of a good answer; of a bad one, what the server said was wrong.
async fn answer(request: RequestBuilder) -> anyhow::Result<Value> {
    let response = request.send().await?;
    let status = response.status();
    let body: Value = response
        .json()
        .await
        .with_context(|| format!("the server answered {status} without JSON"))?;
    if !status.is_success() {
        bail!(
            "the server answered {status}: {}",
            body["detail"].as_str().unwrap_or("no detail")
        );
    }
    Ok(body)
}
