//! Versions as files: `GET …/versions/{number}/weights` and `POST …/versions`.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::caller::Answer;
use crate::database::{Database, on_both};
use crate::pictures::png;
use crate::refusals::assert_refused;
use crate::scene::{CLASSIFY, with_both, with_flora};
use crate::test_app::TestApp;

const VERSIONS: &str = "/v1/models/default/versions";

on_both!(
    a_version_is_one_file,
    a_version_comes_back_as_another,
    a_version_is_kept_aside,
);

/// The file of a version of the default model.
async fn weights(app: &TestApp, number: u32) -> Vec<u8> {
    let request = app.request(Method::GET, &format!("{VERSIONS}/{number}/weights"));
    let response = request.send().await.expect("the server answers");
    assert_eq!(response.status(), 200);
    response.bytes().await.expect("a whole body").to_vec()
}

/// The header of a safetensors file.
fn header(file: &[u8]) -> Value {
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    serde_json::from_slice(&file[8..8 + length]).expect("a header")
}

/// The file with another header before the same tensors.
fn with_header(file: &[u8], header: &Value) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let text = header.to_string().into_bytes();
    [&(text.len() as u64).to_le_bytes()[..], &text, &file[8 + length..]].concat()
}

/// The file with a changed snapshot header, or one of the statistics.
fn with_entry(file: &[u8], entry: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut whole = header(file);
    let text = whole["__metadata__"][entry].as_str().expect("an entry");
    let mut own: Value = serde_json::from_str(text).expect("JSON");
    change(&mut own);
    whole["__metadata__"][entry] = own.to_string().into();
    with_header(file, &whole)
}

/// The file with the first value of a tensor replaced.
fn with_value(file: &[u8], tensor: &str, value: f32) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let offset = header(file)[tensor]["data_offsets"][0]
        .as_u64()
        .expect("an offset");
    let at = 8 + length + offset as usize;
    let mut file = file.to_vec();
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    file
}

async fn a_version_is_one_file(database: Database) {
    let app = with_both(&database).await;
    let path = format!("{VERSIONS}/2/weights");
    let response = app.request(Method::GET, &path).send().await.expect("answered");
    let headers = response.headers().clone();
    let version = app.get(&format!("{VERSIONS}/2")).await;
    let tag = format!("\"{}\"", version["digest"].as_str().expect("a digest"));
    assert_eq!(headers["etag"], tag);
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert_eq!(
        headers["content-disposition"],
        "attachment; filename=\"default-2.safetensors\""
    );
    let file = response.bytes().await.expect("a whole body").to_vec();
    assert_eq!(headers["content-length"], file.len().to_string());
    assert_eq!(file, weights(&app, 2).await, "the same file each time");

    let header = header(&file);
    let known = header.as_object().expect("an object");
    for name in ["anchors", "statistics/000003.mean", "statistics/scatter"] {
        assert!(known.contains_key(name), "{name} of {known:?}");
    }
    for (entry, format) in [
        ("clipkeep", "clipkeep snapshot 1"),
        ("clipkeep.statistics", "clipkeep statistics 1"),
    ] {
        let text = header["__metadata__"][entry].as_str().expect("an entry");
        let own: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(own["format"], format);
        assert_eq!(
            own["classes"].as_array().map(Vec::len),
            Some(4),
            "of the whole line"
        );
    }

    let if_none_match = async |tags: &str| {
        let request = app.request(Method::GET, &path).header("if-none-match", tags);
        request.send().await.expect("answered").status()
    };
    assert_eq!(if_none_match(&tag).await, 304);
    assert_eq!(if_none_match(&format!("\"x\", W/{tag}")).await, 304);
    assert_eq!(if_none_match("*").await, 304);
    assert_eq!(if_none_match("\"sha256:00\"").await, 200);
    let missing = app.request(Method::GET, &format!("{VERSIONS}/3/weights"));
    Answer::to(missing).await.problem(404, "unknown_version");
    let missing = app.request(Method::GET, "/v1/models/nobody/versions/1/weights");
    Answer::to(missing).await.problem(404, "unknown_model");
}

async fn a_version_comes_back_as_another(database: Database) {
    let app = with_both(&database).await;
    let before = app.classify(CLASSIFY, png("poppy", 60)).await;
    let file = weights(&app, 2).await;
    let request = app
        .post(VERSIONS)
        .query(&[("task", "all of it")])
        .body(file.clone());
    let answer = Answer::to(request).await;
    let version = answer.json(201);
    assert_eq!(answer.headers["location"], format!("{VERSIONS}/3"));
    assert_eq!(version, app.get(&format!("{VERSIONS}/3")).await);
    assert_eq!(
        (&version["kind"], &version["task"], &version["parent"]),
        (&json!("import"), &json!("all of it"), &Value::Null)
    );
    assert_eq!(version["active"], true);
    assert_eq!(version["report"]["imported"]["tasks"], json!(["flora", "skies"]));
    assert_eq!(version["report"]["imported"]["digest"], before["digest"]);
    assert_ne!(version["digest"], before["digest"], "its classes have new ids");
    let job = version["job"].as_str().expect("an id");
    let job = app.get(&format!("/v1/jobs/{job}")).await;
    assert_eq!(
        (&job["kind"], &job["state"]),
        (&json!("import"), &json!("succeeded"))
    );

    let after = app.classify(CLASSIFY, png("poppy", 60)).await;
    assert_eq!(after["version"], 3);
    let probabilities = |answer: &Value| -> Vec<(Value, Value)> {
        let classes = answer["predictions"][0]["classes"].as_array().expect("classes");
        classes
            .iter()
            .map(|class| (class["label"].clone(), class["probability"].clone()))
            .collect()
    };
    assert_eq!(probabilities(&after), probabilities(&before), "to the bit");
    assert_eq!(after["predictions"][0]["classes"][0]["task"], "all of it");
    let tasks = app.get("/v1/models/default/tasks").await;
    assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(1));
    assert_eq!(tasks["tasks"][0]["examples"], json!({"train": 16, "held_out": 0}));
    let log = app.get("/v1/models/default/activations").await;
    assert_eq!(
        log["activations"][0]["actor"],
        format!("job:{}", version["job"].as_str().expect("an id"))
    );
}

async fn a_version_is_kept_aside(database: Database) {
    let (app, _) = with_flora(&database, &[]).await;
    let file = weights(&app, 1).await;
    let request = app
        .post(VERSIONS)
        .query(&[("activate", "false")])
        .body(file.clone());
    let version = Answer::to(request).await.json(201);
    assert_eq!(
        (&version["active"], &version["task"]),
        (&json!(false), &json!("imported"))
    );
    assert_eq!(app.get(VERSIONS).await["active"], 1);
    let rollback = app.post("/v1/models/default/rollback");
    Answer::to(rollback.json(&json!({"version": 2}))).await.json(200);
    assert_eq!(app.classify(CLASSIFY, png("poppy", 60)).await["version"], 2);
}

/// A server with a version, and that version's file.
struct Scene {
    app: TestApp,
    file: Vec<u8>,
}

impl Scene {
    async fn new() -> Self {
        let flags = ["--max-weights-mib", "8", "--max-examples", "20"];
        let (app, _) = with_flora(&Database::sqlite(), &flags).await;
        let gda = json!({"name": "gda", "config": {"strategy": "gda"}});
        Answer::to(app.post("/v1/models").json(&gda)).await.json(201);
        let file = weights(&app, 1).await;
        Self { app, file }
    }

    fn send(&self, file: Vec<u8>) -> RequestBuilder {
        self.app.post(VERSIONS).body(file)
    }

    /// The file with another header of the snapshot.
    fn snapshot(&self, change: impl FnOnce(&mut Value)) -> RequestBuilder {
        self.send(with_entry(&self.file, "clipkeep", change))
    }

    /// The file with another header of the statistics.
    fn statistics(&self, change: impl FnOnce(&mut Value)) -> RequestBuilder {
        self.send(with_entry(&self.file, "clipkeep.statistics", change))
    }

    /// The file with something of its first class replaced.
    fn first_class(&self, field: &str, value: Value) -> RequestBuilder {
        self.snapshot(|header| header["classes"][0][field] = value)
    }

    /// The file with something of its first class's statistics replaced.
    fn first_statistics(&self, field: &str, value: Value) -> RequestBuilder {
        self.statistics(|header| header["classes"][0][field] = value)
    }

    /// Fails unless nothing was taken in, and the file as it was still is.
    async fn assert_untouched(&self) {
        let listed = self.app.get(VERSIONS).await;
        assert_eq!(listed["versions"].as_array().map(Vec::len), Some(1));
        Answer::to(self.send(self.file.clone())).await.json(201);
    }
}

fn pop_class(header: &mut Value) {
    header["classes"].as_array_mut().expect("classes").pop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_no_versions() {
    let scene = Scene::new().await;
    let file = &scene.file;
    let value = |tensor: &str, value: f32| scene.send(with_value(file, tensor, value));
    let damaged = vec![
        ("nothing", scene.send(Vec::new())),
        ("text", scene.send(b"a heron".to_vec())),
        ("a length alone", scene.send(u64::MAX.to_le_bytes().to_vec())),
        ("a picture", scene.send(png("poppy", 1))),
        ("half of it", scene.send(file[..file.len() / 2].to_vec())),
        ("all but a byte", scene.send(file[..file.len() - 1].to_vec())),
        ("a byte too many", scene.send([&file[..], &[0]].concat())),
        ("no number", value("anchors", f32::NAN)),
        (
            "no number among the statistics",
            value("statistics/000001.mean", f32::INFINITY),
        ),
        ("a long anchor", value("anchors", 1e30)),
        ("a long mean", value("statistics/000000.mean", -1e30)),
        ("an endless spread", value("statistics/scatter", 1e30)),
    ];
    let format = json!("clipkeep snapshot 99");
    let described = vec![
        ("a format to come", scene.snapshot(|h| h["format"] = format)),
        ("a class too few", scene.snapshot(pop_class)),
        ("another width", scene.snapshot(|h| h["dim"] = json!(7))),
        ("no scale", scene.snapshot(|h| h["scale"] = json!(0))),
        (
            "a width beyond all",
            scene.statistics(|h| h["dim"] = json!(u64::MAX)),
        ),
        (
            "a rank beyond all",
            scene.first_statistics("rank", json!(u64::MAX)),
        ),
        ("no examples", scene.first_statistics("count", json!(0))),
        (
            "examples beyond all",
            scene.statistics(|h| h["freedom"] = json!(u64::MAX)),
        ),
        (
            "rows that are not there",
            scene.first_statistics("rows", json!(u64::MAX)),
        ),
        (
            "a negative variance",
            scene.first_statistics("residual", json!(-1)),
        ),
        ("an empty label", scene.first_class("label", json!(""))),
        (
            "an endless label",
            scene.first_class("label", json!("x".repeat(1000))),
        ),
        (
            "an endless prompt",
            scene.first_class("prompt", json!("x".repeat(1000))),
        ),
        ("a task that is none", scene.first_class("task", json!("a/b"))),
        (
            "one id for two",
            scene.snapshot(|h| h["classes"][0]["id"] = h["classes"][1]["id"].clone()),
        ),
    ];
    let groups = vec![
        (422, "invalid_weights", damaged),
        (422, "invalid_weights", described),
    ];
    assert_refused(&scene.app, groups).await;
    scene.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_do_not_fit() {
    let scene = Scene::new().await;
    let (app, file) = (&scene.app, &scene.file);
    // These are refused before the body is read. A short one is read all the same, so that the connection stays.
    let short = || b"a heron".to_vec();
    let asked = |query: (&str, &str)| scene.send(short()).query(&[query]);
    let backbone = json!(format!("sha256:{}", "0".repeat(64)));
    let one_term = json!([{"weight": 1.0, "scorer": "anchors"}]);
    let mismatched = vec![
        (
            "an ensemble for another strategy",
            app.post("/v1/models/gda/versions").body(file.clone()),
        ),
        (
            "other weights",
            scene.snapshot(|h| h["terms"][0]["weight"] = json!(2.5)),
        ),
        ("another term", scene.snapshot(|h| h["terms"] = one_term)),
    ];
    let mut bare = header(file);
    let metadata = bare["__metadata__"].as_object_mut().expect("metadata");
    metadata.remove("clipkeep.statistics");
    let incomplete = vec![
        ("no statistics", scene.send(with_header(file, &bare))),
        ("statistics of one class", scene.statistics(pop_class)),
        (
            "no shared spread",
            scene.statistics(|h| h["freedom"] = Value::Null),
        ),
    ];
    let twice = scene.snapshot(|h| h["classes"][0]["label"] = h["classes"][1]["label"].clone());
    let elsewhere = scene.snapshot(|h| h["backbone"] = backbone);
    let nobody = app.post("/v1/models/nobody/versions").body(short());
    let groups = vec![
        (422, "duplicate_label", vec![("a label twice", twice)]),
        (409, "other_backbone", vec![("another backbone", elsewhere)]),
        (422, "strategy_mismatch", mismatched),
        (422, "statistics_missing", incomplete),
        (
            415,
            "unsupported_media_type",
            vec![("JSON", app.post(VERSIONS).json(&json!({})))],
        ),
        (
            413,
            "body_too_large",
            vec![("a byte too many", scene.send(vec![0; (8 << 20) + 1]))],
        ),
        (
            422,
            "invalid_name",
            vec![
                ("no task", asked(("task", ""))),
                ("a path", asked(("task", "a/b"))),
            ],
        ),
        (
            400,
            "invalid_query",
            vec![
                ("neither yes nor no", asked(("activate", "perhaps"))),
                ("an unknown wish", asked(("name", "a"))),
            ],
        ),
        (404, "unknown_model", vec![("nobody", nobody)]),
    ];
    assert_refused(app, groups).await;
    scene.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_has_no_more_classes_than_there_may_be_examples() {
    let database = Database::sqlite();
    let file = weights(&with_flora(&database, &[]).await.0, 1).await;
    let other = Database::sqlite();
    let app = TestApp::start(&other, &["--max-examples", "1"]).await;
    let answer = Answer::to(app.post(VERSIONS).body(file)).await;
    answer.problem(413, "too_many_classes");
}
