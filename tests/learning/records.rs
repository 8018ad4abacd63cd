//! What a version answers, kept to be compared bit by bit.
//!
//! A probability is a float32, written in the shortest form that reads back as the same bits: equal JSON numbers are
//! equal bits.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::multipart::{Form, Part};
use serde_json::Value;

use crate::caller::{Answer, Caller};
use crate::lessons::{FIELDS, PUPIL};
use crate::pictures::{FLORA, SKIES, png};

/// The answers of one version to the same pictures, one at a time and in batches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) version: u64,
    pub(crate) digest: String,
    singly: Vec<Value>,
    in_batches: Vec<Vec<Value>>,
}

/// Pictures that no lesson shows, of every class.
fn unseen() -> Vec<Vec<u8>> {
    let shown = shown();
    shown.iter().map(|class| png(class, 100)).collect()
}

/// The classes of those pictures.
fn shown() -> Vec<&'static str> {
    [FLORA, SKIES, FIELDS].concat()
}

/// Records what the pupil's active version answers, or the one that `pin` names.
pub(crate) async fn record(caller: &Caller, pin: Option<u64>) -> Record {
    record_of(caller, PUPIL, pin).await
}

/// The same of any model.
pub(crate) async fn record_of(caller: &Caller, model: &str, pin: Option<u64>) -> Record {
    let path = format!("/v1/models/{model}/classify");
    let path = pin.map_or(path.clone(), |version| format!("{path}?version={version}"));
    let pictures = unseen();
    let mut answers = Vec::new();
    for picture in &pictures {
        answers.push(batch(caller, &path, std::slice::from_ref(picture)).await);
    }
    let singles = answers.len();
    for size in [2, 3, pictures.len()] {
        answers.push(batch(caller, &path, &pictures[..size]).await);
    }
    let (version, digest) = provenance(&answers[0]);
    for answer in &answers {
        assert_eq!(provenance(answer), (version, digest.clone()));
    }
    let mut in_batches: Vec<Vec<Value>> = answers.iter().map(classes).collect();
    let singly = in_batches.drain(..singles).flatten().collect();
    Record {
        version,
        digest,
        singly,
        in_batches,
    }
}

impl Record {
    /// The labels that the version knows.
    pub(crate) fn labels(&self) -> BTreeSet<String> {
        labels(&self.singly[0])
    }

    /// How many of the six pictures are taken for what they are.
    pub(crate) fn hits(&self) -> usize {
        let pairs = self.singly.iter().zip(shown());
        pairs.filter(|(found, class)| found[0]["label"] == *class).count()
    }

    /// Fails unless another version gives every class of every picture the same probability, to the bit. Its task may have
    /// another name.
    pub(crate) fn assert_same_probabilities(&self, other: &Self) {
        let all = |record: &Self| -> Vec<_> { record.singly.iter().map(probabilities).collect() };
        assert_eq!(all(self), all(other));
    }

    /// Fails unless another version gives every class of every picture the same probability, to 1e-5.
    pub(crate) fn assert_near(&self, other: &Self) {
        assert_eq!(self.singly.len(), other.singly.len());
        for (one, other) in self.singly.iter().zip(&other.singly) {
            let (one, other) = (probabilities(one), probabilities(other));
            assert!(one.keys().eq(other.keys()), "{one:?} and {other:?}");
            let apart = one.iter().map(|(label, p)| (p - other[label]).abs());
            assert!(apart.fold(0.0, f64::max) < 1e-5, "{one:?} and {other:?}");
        }
    }

    /// Fails unless a picture's neighbours in a batch leave its probabilities as they are.
    pub(crate) fn assert_neighbours_do_not_matter(&self) {
        for batch in &self.in_batches {
            assert_eq!(
                batch[..],
                self.singly[..batch.len()],
                "in a batch of {}",
                batch.len()
            );
        }
    }
}

/// Classifies pictures in one request.
pub(crate) async fn batch(caller: &Caller, path: &str, pictures: &[Vec<u8>]) -> Value {
    let form = pictures.iter().fold(Form::new(), |form, picture| {
        form.part("image", Part::bytes(picture.clone()))
    });
    let request = caller.post(path).query(&[("top_k", "1000")]).multipart(form);
    Answer::to(request).await.json(200)
}

/// The version and digest of an answer.
pub(crate) fn provenance(answer: &Value) -> (u64, String) {
    let digest = answer["digest"].as_str().expect("a digest").to_owned();
    (answer["version"].as_u64().expect("a version"), digest)
}

/// The classes of each prediction of an answer.
pub(crate) fn classes(answer: &Value) -> Vec<Value> {
    let predictions = answer["predictions"].as_array().expect("predictions");
    predictions
        .iter()
        .map(|prediction| prediction["classes"].clone())
        .collect()
}

/// The labels among the classes of a prediction.
pub(crate) fn labels(classes: &Value) -> BTreeSet<String> {
    let classes = classes.as_array().expect("classes");
    classes
        .iter()
        .map(|class| class["label"].as_str().expect("a label").to_owned())
        .collect()
}

/// The probability of each label among the classes of a prediction.
fn probabilities(classes: &Value) -> BTreeMap<String, f64> {
    let classes = classes.as_array().expect("classes");
    classes
        .iter()
        .map(|class| {
            let label = class["label"].as_str().expect("a label").to_owned();
            (label, class["probability"].as_f64().expect("a number"))
        })
        .collect()
}
