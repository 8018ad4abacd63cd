//! Each check, on sources that break its rule and on sources that do not.

use crate::checks;
use crate::rules::{BANNED_TEXT, MOST_LINES};
use crate::source::Source;

fn source(path: &str, text: &str) -> Source {
    let (path, text) = (path.to_owned(), text.to_owned());
    Source { path, text }
}

/// What `imports` finds in a source, as `line path`.
fn imports(path: &str, text: &str) -> Vec<String> {
    let findings = checks::imports(&source(path, text));
    findings
        .iter()
        .map(|finding| {
            let words: Vec<&str> = finding.split([':', ' ']).collect();
            let import = finding
                .split("import ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next());
            format!("{} {}", words[1], import.expect("the import"))
        })
        .collect()
}

#[test]
fn a_use_of_a_foreign_module_is_found() {
    let text = "//! x\n\nuse crate::domain::Digest;\nuse crate::store::Store;\n";
    assert_eq!(imports("src/engine/mod.rs", text), ["4 store::Store"]);
}

#[test]
fn every_branch_of_a_use_is_looked_at() {
    let text = "use crate::{domain::{Class, Label}, store::{self, Store as S}, http::*};";
    let found = imports("src/adapter/fit.rs", text);
    assert_eq!(found, ["1 store::self", "1 store::Store", "1 http::*"]);
}

#[test]
fn a_path_in_code_or_in_a_macro_is_an_import() {
    let text = "fn f() {\n    crate::store::open();\n    info!(\"{}\", crate::http::name());\n}";
    let found = imports("src/clip/text.rs", text);
    assert_eq!(found, ["2 store::open", "3 http::name"]);
}

#[test]
fn super_leads_out_of_a_module_as_crate_does() {
    assert_eq!(
        imports("src/http/classify.rs", "use super::super::clip::Backbone;"),
        ["1 clip::Backbone"]
    );
    assert_eq!(
        imports("src/registry.rs", "use super::engine::Engine;"),
        ["1 engine::Engine"]
    );
    assert_eq!(
        imports(
            "src/registry.rs",
            "mod inner { use super::super::engine::Engine; }"
        ),
        ["1 engine::Engine"]
    );
    let inside = "use super::problem::Problem; mod inner { use super::super::page; }";
    assert!(imports("src/http/classify.rs", inside).is_empty());
}

#[test]
fn the_binary_may_only_call_the_command_line() {
    let text = "fn main() { clipkeep::cli::run(); clipkeep::app::run(); }";
    assert_eq!(imports("src/main.rs", text), ["1 app::run"]);
}

#[test]
fn an_exception_is_for_one_item() {
    let text = "use crate::clip::{Backbone, ImageError};";
    assert_eq!(imports("src/http/problem.rs", text), ["1 clip::Backbone"]);
    let used = checks::exceptions_used(&source("src/http/problem.rs", text));
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].1, "clip::ImageError");
}

#[test]
fn tests_inside_a_module_import_what_they_like() {
    let text =
        "#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}\n#[cfg(not(test))]\nuse crate::http::A;";
    assert_eq!(imports("src/domain/job.rs", text), ["6 http::A"]);
    assert!(imports("src/domain/job/tests.rs", "use crate::store::Store;").is_empty());
}

#[test]
fn a_module_without_a_row_and_a_row_that_looks_up_are_found() {
    let rows: &[(&str, &[&str])] = &[("a", &["b"]), ("b", &["a", "c"])];
    let problems = checks::table(rows, &["a.rs".to_owned(), "b".to_owned(), "d".to_owned()]);
    assert_eq!(
        problems,
        [
            "d has no row in the table of imports",
            "a is not a row below b",
            "c is not a row below b"
        ]
    );
}

#[test]
fn a_long_file_is_found_and_its_tests_do_not_count() {
    let long = "const A: u8 = 0;\n".repeat(MOST_LINES);
    let with_tests = format!("{long}#[cfg(test)]\nmod tests {{\n\n}}\n");
    assert!(checks::size(&source("src/domain/a.rs", &with_tests)).is_empty());
    let longer = format!("{with_tests}const B: u8 = 0;\n");
    assert_eq!(checks::size(&source("src/domain/a.rs", &longer)).len(), 1);
}

#[test]
fn names_that_say_nothing_are_found() {
    let named = |path| checks::name(&source(path, "mod fine {}")).len();
    assert_eq!(named("src/http/helpers.rs"), 1);
    assert_eq!(named("tests/common/mod.rs"), 1);
    assert_eq!(named("src/http/tasks.rs"), 0);
    let inline = source("src/http/tasks.rs", "\nmod utils {}");
    assert_eq!(
        checks::name(&inline),
        ["src/http/tasks.rs:2: utils says nothing about what is in it"]
    );
}

#[test]
fn a_module_without_its_purpose_is_found() {
    assert_eq!(
        checks::purpose(&source("src/a.rs", "use std::fs;\n//! late\n")).len(),
        1
    );
    assert!(checks::purpose(&source("src/a.rs", "//! What for.\n")).is_empty());
}

#[test]
fn banned_words_are_found_in_code_but_not_in_comments() {
    let found = |text: &str| checks::words(&source("src/a.rs", text)).len();
    assert_eq!(found("fn f() { unsafe { g() } }"), 1);
    let allowed = |text: &str| checks::words(&source("crates/towers/src/x86.rs", text)).len();
    assert_eq!(allowed("fn f() { unsafe { g(); todo!() } }"), 1);
    assert_eq!(found("fn f() { todo!(); dbg!(1); unimplemented!() }"), 3);
    assert_eq!(found("#![allow(dead_code)]"), 1);
    assert_eq!(found("#[cfg_attr(test, allow(dead_code))] fn f() {}"), 1);
    assert_eq!(found("#[expect(dead_code)] fn f() {}"), 1);
    assert_eq!(
        found("#[expect(dead_code, reason = \"why\")] fn f() { x.expect(\"y\"); allow(1); }"),
        0
    );
    assert_eq!(
        found("// unsafe, todo!\n/// dbg!(1)\nconst A: &str = \"unsafe\";"),
        0
    );
}

#[test]
fn sql_outside_the_store_is_found() {
    let text = "#[derive(sqlx::FromRow)] struct Row;";
    assert_eq!(checks::sql(&source("src/http/a.rs", text)).len(), 1);
    assert!(checks::sql(&source("src/store/a.rs", text)).is_empty());
}

#[test]
fn machine_paths_and_notes_to_oneself_are_found() {
    for banned in BANNED_TEXT {
        let text = format!("fine\nsee {banned} here\n");
        let findings = checks::text(&source("docs/a.md", &text));
        assert_eq!(findings, [format!("docs/a.md:2: {banned} does not belong here")]);
    }
}
