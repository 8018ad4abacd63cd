//! A client of the server, and what it was answered.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;

/// Longer than any job of these tests takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(5);

/// Who calls the server at an address.
#[derive(Clone)]
pub(crate) struct Caller {
    /// Where the server is: `http://` and its address.
    pub(crate) origin: String,
    client: Client,
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Caller {
    pub(crate) fn new(origin: String) -> Self {
        let client = Client::builder()
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client");
        Self { origin, client }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.origin))
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    /// The JSON at a path that must exist.
    pub(crate) async fn get(&self, path: &str) -> Value {
        Answer::to(self.request(Method::GET, path)).await.json(200)
    }

    /// Teaches a task and sees its job to the end, whatever that is.
    pub(crate) async fn teach(&self, model: &str, task: &str, archive: Vec<u8>) -> Value {
        let accepted = Answer::to(self.submit(model, task, archive)).await.json(202);
        self.end_of(accepted["job"].as_str().expect("a job's id")).await
    }

    /// A request that teaches an archive.
    pub(crate) fn submit(&self, model: &str, task: &str, archive: Vec<u8>) -> RequestBuilder {
        self.post(&format!("/v1/models/{model}/tasks"))
            .query(&[("name", task)])
            .body(archive)
    }

    /// The job once it has ended.
    pub(crate) async fn end_of(&self, job: &str) -> Value {
        let asked = self
            .request(Method::GET, &format!("/v1/jobs/{job}"))
            .header("prefer", "wait=240");
        let job = Answer::to(asked).await.json(200);
        let state = job["state"].as_str().expect("a state");
        assert!(!matches!(state, "queued" | "running"), "not at its end: {job}");
        job
    }

    /// Classifies one image with all classes in the answer.
    pub(crate) async fn classify(&self, path: &str, image: Vec<u8>) -> Value {
        Answer::to(self.post(path).query(&[("top_k", "1000")]).body(image))
            .await
            .json(200)
    }
}

impl Answer {
    /// What a request is answered.
    pub(crate) async fn to(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("the server answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a whole body");
        Self {
            status,
            headers,
            text,
        }
    }

    /// The body of an answer with this status.
    pub(crate) fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let kind = self.headers["content-type"].to_str().expect("text");
        assert!(kind.ends_with("json"), "{kind}: {}", self.text);
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}
