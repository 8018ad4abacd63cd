//! Every strategy beside the default one, through the whole of a version's life: two tasks, rollback, a move to another
//! model, a third task there, and forgetting.

use reqwest::Method;
use serde_json::{Value, json};

use crate::caller::{Answer, Caller};
use crate::database::{Database, on_both};
use crate::lessons::{FIELDS, lesson};
use crate::pictures::{FLORA, SKIES, png};
use crate::records::{Record, record_of};
use crate::test_app::TestApp;

on_both!(
    linear_with_exemplars_learns_moves_and_forgets,
    prompt_learns_moves_and_forgets,
    ridge_learns_moves_and_forgets,
);

/// A model, by name.
struct Model<'a> {
    caller: &'a Caller,
    name: String,
}

impl<'a> Model<'a> {
    async fn create(caller: &'a Caller, name: &str, config: &Value) -> Self {
        let body = json!({"name": name, "config": config});
        Answer::to(caller.post("/v1/models").json(&body)).await.json(201);
        Self {
            caller,
            name: name.to_owned(),
        }
    }

    fn path(&self, tail: &str) -> String {
        format!("/v1/models/{}/{tail}", self.name)
    }

    async fn page(&self, tail: &str) -> Value {
        self.caller.get(&self.path(tail)).await
    }

    async fn record(&self) -> Record {
        record_of(self.caller, &self.name, None).await
    }

    /// Teaches a task that must be learned; gives what the new version answers.
    async fn taught(&self, task: &str, classes: &[&str]) -> Record {
        let job = self.caller.teach(&self.name, task, lesson(classes)).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        let record = self.record().await;
        assert_eq!(job["version"], record.version);
        record.assert_neighbours_do_not_matter();
        record
    }

    async fn roll_back(&self, version: u64) {
        let request = self.caller.post(&self.path("rollback"));
        Answer::to(request.json(&json!({"version": version})))
            .await
            .json(200);
    }

    /// Unlearns a task or class, by its path; gives the job's report.
    async fn unlearned(&self, what: &str) -> Value {
        let request = self.caller.request(Method::DELETE, &self.path(what));
        let accepted = Answer::to(request).await.json(202);
        let job = self.caller.end_of(accepted["job"].as_str().expect("an id")).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        job["report"].clone()
    }

    async fn exported(&self, version: u64) -> Vec<u8> {
        let path = self.path(&format!("versions/{version}/weights"));
        let response = self.caller.request(Method::GET, &path).send().await;
        let response = response.expect("the server answers");
        assert_eq!(response.status(), 200);
        response.bytes().await.expect("a whole body").to_vec()
    }

    async fn imported(&self, task: &str, file: Vec<u8>) {
        let request = self.caller.post(&self.path("versions"));
        let request = request.query(&[("task", task)]).body(file);
        Answer::to(request).await.json(201);
    }

    /// Fails unless the version that answers knows these classes, in any order, and takes most held-out pictures for what
    /// they are.
    async fn assert_knows(&self, record: &Record, classes: &[&str]) {
        assert!(
            record.labels().iter().eq(sorted(classes)),
            "{:?}",
            record.labels()
        );
        let accuracy = self.page("accuracy").await;
        let last = accuracy["last"].as_f64();
        assert!(last >= Some(0.7), "{}, {classes:?}: {accuracy}", self.name);
    }
}

fn sorted<'a>(classes: &[&'a str]) -> Vec<&'a str> {
    let mut classes = classes.to_vec();
    classes.sort_unstable();
    classes
}

/// What follows the header of a safetensors file.
fn tensors(file: &[u8]) -> &[u8] {
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    &file[8 + length..]
}

/// What a strategy's models say of themselves.
struct Strategy {
    name: &'static str,
    config: Value,
    /// Whether a task is unlearned without a trace.
    is_exact: bool,
}

/// Two tasks and a rollback; gives the model and what its second version answers.
async fn two_tasks<'a>(caller: &'a Caller, strategy: &Strategy) -> (Model<'a>, Record) {
    let model = Model::create(caller, strategy.name, &strategy.config).await;
    let first = model.taught("flora", &FLORA).await;
    model.assert_knows(&first, &FLORA).await;
    let second = model.taught("skies", &SKIES).await;
    model.assert_knows(&second, &[FLORA, SKIES].concat()).await;
    let accuracy = model.page("accuracy").await;
    assert_eq!(accuracy["tasks"], json!(["flora", "skies"]));
    assert_eq!(accuracy["n"], json!([8, 8]));
    let row = |row: usize| [0, 1].map(|task: usize| accuracy["matrix"][row][task].is_f64());
    assert_eq!([row(0), row(1)], [[true, false], [true, true]], "{accuracy}");
    let answer = caller.classify(&model.path("classify"), png("rainbow", 60)).await;
    assert_eq!(answer["version"], 2);

    model.roll_back(1).await;
    assert_eq!(model.record().await, first, "to the bit");
    model.roll_back(2).await;
    assert_eq!(model.record().await, second);
    (model, second)
}

/// The second version of `home` in a model of its own, a third task there, and forgetting.
async fn moved(home: &Model<'_>, both: &Record, strategy: &Strategy) {
    let name = format!("{}-elsewhere", strategy.name);
    let model = Model::create(home.caller, &name, &strategy.config).await;
    let file = home.exported(2).await;
    model.imported("from home", file.clone()).await;
    model.record().await.assert_same_probabilities(both);
    assert!(
        tensors(&model.exported(1).await) == tensors(&file),
        "{name}: what is remembered came along"
    );
    let third = model.taught("fields", &FIELDS).await;
    model.assert_knows(&third, &[FLORA, SKIES, FIELDS].concat()).await;
    assert!(third.hits() >= 5, "older classes are kept: {third:?}");
    let accuracy = model.page("accuracy").await;
    assert_eq!(accuracy["tasks"], json!(["from home", "fields"]));
    assert_eq!(accuracy["n"], json!([0, 8]), "held-out pictures stayed at home");

    let report = model.unlearned("tasks/from home").await;
    assert_eq!(report["exact"], strategy.is_exact, "{name}: {report}");
    let after = model.record().await;
    assert_eq!(after.version, 3);
    model.assert_knows(&after, &FIELDS).await;
    model.roll_back(2).await;
    assert_eq!(model.record().await, third);
}

/// One class fewer, and what is left goes on in a model of its own.
async fn without_a_class(home: &Model<'_>, strategy: &Strategy) {
    let report = home.unlearned(&format!("classes/{}", SKIES[0])).await;
    assert_eq!(report["exact"], strategy.is_exact, "{report}");
    let rest = home.record().await;
    home.assert_knows(&rest, &SKIES[1..]).await;
    let name = format!("{}-without", strategy.name);
    let model = Model::create(home.caller, &name, &strategy.config).await;
    let file = home.exported(rest.version).await;
    model.imported("the rest", file.clone()).await;
    model.record().await.assert_same_probabilities(&rest);
    assert!(tensors(&model.exported(1).await) == tensors(&file), "{name}");
    let more = model.taught("flora", &FLORA).await;
    model
        .assert_knows(&more, &[&FLORA[..], &SKIES[1..]].concat())
        .await;
}

async fn live(database: Database, strategy: Strategy) {
    let app = TestApp::start(&database, &[]).await;
    let (home, second) = two_tasks(&app, &strategy).await;
    moved(&home, &second, &strategy).await;
    let report = home.unlearned("tasks/flora").await;
    assert_eq!(report["exact"], strategy.is_exact, "{report}");
    let third = home.record().await;
    home.assert_knows(&third, &SKIES).await;
    without_a_class(&home, &strategy).await;

    // What is read back from the database answers as what was learned.
    let app = app.restart().await;
    for record in [second, third] {
        let version = Some(record.version);
        assert_eq!(record_of(&app, strategy.name, version).await, record);
    }
}

/// What so few steps move may stay.
fn most_may_move() -> Value {
    json!({"kind": "importance", "ratio": 0.4})
}

async fn linear_with_exemplars_learns_moves_and_forgets(database: Database) {
    let exemplars = json!({"kind": "exemplars", "per_class": 4, "choice": "herding", "per_example": 2.0});
    let strategy = Strategy {
        name: "linear",
        config: json!({
            "strategy": "linear", "retention": most_may_move(), "rehearsal": exemplars, "epochs": 30, "min_steps": 0
        }),
        is_exact: false,
    };
    live(database, strategy).await;
}

async fn prompt_learns_moves_and_forgets(database: Database) {
    let strategy = Strategy {
        name: "prompt",
        config: json!({"strategy": "prompt", "epochs": 10, "min_steps": 0, "learning_rate": 5e-3}),
        is_exact: false,
    };
    live(database, strategy).await;
}

async fn ridge_learns_moves_and_forgets(database: Database) {
    let strategy = Strategy {
        name: "ridge",
        config: json!({"strategy": "ridge", "random_features": 128}),
        is_exact: true,
    };
    live(database, strategy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn self_attention_learns_moves_and_forgets() {
    let rehearsal = json!({"kind": "gaussian", "rank": 4, "per_example": 1.0});
    let retention = most_may_move();
    let strategy = Strategy {
        name: "self_attention",
        config: json!({
            "strategy": "self_attention", "retention": retention, "rehearsal": rehearsal, "epochs": 8, "min_steps": 0
        }),
        is_exact: false,
    };
    live(Database::sqlite(), strategy).await;
}
