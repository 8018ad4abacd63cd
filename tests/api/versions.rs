//! `/v1/models/{model}/versions`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::caller::Answer;
use crate::database::{Database, on_both};
use crate::scene::{TASKS, with_both};

const VERSIONS: &str = "/v1/models/default/versions";

on_both!(versions_are_listed_and_described, pages_are_linked);

async fn versions_are_listed_and_described(database: Database) {
    let app = with_both(&database).await;
    let list = app.get(VERSIONS).await;
    assert_eq!((&list["active"], &list["next"]), (&json!(2), &Value::Null));
    let versions = list["versions"].as_array().expect("versions");
    assert_eq!(versions.len(), 2);
    for (version, (number, parent, task)) in versions
        .iter()
        .zip([(2, json!(1), "skies"), (1, Value::Null, "flora")])
    {
        assert_eq!(
            (&version["number"], &version["parent"]),
            (&json!(number), &parent)
        );
        assert_eq!(
            (&version["task"], &version["strategy"]),
            (&json!(task), &json!("ensemble"))
        );
        assert!(
            version["digest"]
                .as_str()
                .is_some_and(|digest| digest.len() == 71),
            "{version}"
        );
        assert!(
            version["bytes"].as_u64().is_some_and(|bytes| bytes > 1000),
            "{version}"
        );
        assert!(version["metrics"]["accuracy"]["value"].is_f64(), "{version}");
        assert!(version["metrics"]["average"].is_f64(), "{version}");
        assert!(version["metrics"]["forgetting"].is_f64(), "{version}");
        let job = version["job"].as_str().expect("an id");
        assert_eq!(app.get(&format!("/v1/jobs/{job}")).await["version"], number);

        let full = app.get(&format!("{VERSIONS}/{number}")).await;
        for (field, value) in version.as_object().expect("an object") {
            assert_eq!(&full[field], value, "{field}");
        }
        assert_eq!(full["active"], number == 2);
        assert_eq!(full["config"]["strategy"], "ensemble");
        assert_eq!(full["report"]["examples"]["train"], 8);
        assert_eq!(full["classes"].as_array().expect("classes").len(), number * 2);
    }
    for (number, status, code) in [
        ("3", 404, "unknown_version"),
        ("0", 404, "unknown_version"),
        ("two", 400, "invalid_path"),
        ("-1", 400, "invalid_path"),
        ("4294967296", 400, "invalid_path"),
    ] {
        let asked = app.request(Method::GET, &format!("{VERSIONS}/{number}"));
        Answer::to(asked).await.problem(status, code);
    }
}

async fn pages_are_linked(database: Database) {
    let app = with_both(&database).await;
    for (path, list) in [
        (VERSIONS, "versions"),
        ("/v1/models/default/activations", "activations"),
        (TASKS, "tasks"),
    ] {
        let first = Answer::to(app.request(Method::GET, &format!("{path}?limit=1"))).await;
        let link = first.headers["link"].to_str().expect("text");
        let next = link
            .strip_prefix('<')
            .and_then(|link| link.strip_suffix(">; rel=\"next\""))
            .unwrap_or_else(|| panic!("a link to the next page: {link}"));
        let second = Answer::to(app.request(Method::GET, next)).await;
        assert!(!second.headers.contains_key("link"), "the last page");
        let (first, second) = (first.json(200), second.json(200));
        assert!(first["next"].is_number() && second["next"].is_null());
        let whole = app.get(path).await;
        let paged = [&first[list][0], &second[list][0]];
        assert_eq!(
            whole[list].as_array().expect("a list").iter().collect::<Vec<_>>(),
            paged
        );
        for (query, status, code) in [
            ("limit=0", 422, "invalid_limit"),
            ("limit=501", 422, "invalid_limit"),
            ("limit=-1", 400, "invalid_query"),
            ("limit=ten", 400, "invalid_query"),
            ("cursor=heron", 400, "invalid_query"),
            ("page=2", 400, "invalid_query"),
        ] {
            let asked = app.request(Method::GET, &format!("{path}?{query}"));
            Answer::to(asked).await.problem(status, code);
        }
    }
}
