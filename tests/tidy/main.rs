//! The rules of the house, checked: who may import whom, how long a file may be, which words stay out.
//!
//! [`rules`] is the data, [`checks`] finds what breaks a rule in one file, and this file applies each check to the
//! project. Every finding reads `path:line: what is wrong`. [`failing`] shows each check failing.

mod checks;
mod failing;
mod rules;
mod source;

use std::path::Path;

use source::{Source, file_names, files_under};

/// Fails with everything that `check` finds in `files`.
fn none_of(files: &[Source], check: impl Fn(&Source) -> Vec<String>) {
    assert!(!files.is_empty(), "there are no files to check");
    let findings: Vec<String> = files.iter().flat_map(check).collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

fn rust(directories: &[&str]) -> Vec<Source> {
    let mut files = files_under(directories);
    files.retain(|file| {
        Path::new(&file.path)
            .extension()
            .is_some_and(|extension| extension == "rs")
    });
    files
}

#[test]
fn modules_import_only_what_the_table_allows() {
    none_of(&rust(&["src"]), checks::imports);
}

#[test]
fn every_module_has_a_row_and_imports_only_rows_below_it() {
    let problems = checks::table(rules::IMPORTS, &file_names("src"));
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn every_exception_is_needed() {
    let sources = rust(&["src"]);
    let used: Vec<_> = sources.iter().flat_map(checks::exceptions_used).collect();
    for exception in rules::IMPORT_EXCEPTIONS {
        assert!(used.contains(exception), "nothing needs {exception:?} any more");
    }
    for (path, reason) in rules::LONG_FILES {
        let long = |file: &Source| file.path == *path && checks::code_lines(file) > rules::MOST_LINES;
        assert!(sources.iter().any(long), "{path} is not long any more: {reason}");
    }
}

#[test]
fn files_are_short_or_have_a_reason() {
    none_of(&rust(&["src", "crates"]), checks::size);
}

#[test]
fn names_say_what_a_module_is_for() {
    none_of(&rust(&["src", "crates", "tests", "benches"]), checks::name);
}

#[test]
fn modules_open_with_their_purpose() {
    none_of(&rust(&["src", "crates"]), checks::purpose);
}

#[test]
fn code_has_no_unsafe_no_placeholders_and_no_silent_lint_exceptions() {
    none_of(&rust(&["src", "crates", "tests", "benches"]), checks::words);
}

#[test]
fn only_the_store_knows_sql() {
    none_of(&rust(&["src", "crates"]), checks::sql);
}

#[test]
fn text_names_no_machine_and_leaves_nothing_to_fix() {
    none_of(&files_under(rules::TEXT), checks::text);
}

#[test]
fn the_image_is_built_from_every_crate() {
    let read = |path: &str| std::fs::read_to_string(path).expect("a file of the project");
    let ignored = read(".dockerignore");
    let manifest = read("Cargo.toml");
    let members = manifest
        .lines()
        .find_map(|line| line.strip_prefix("members = ["))
        .expect("the workspace's members");
    for member in members.trim_end_matches(']').split(", ") {
        let folder = member.trim_matches('"').split('/').next().expect("a folder");
        let kept = format!("!{folder}");
        assert!(
            ignored.lines().any(|line| line == kept),
            "{kept} is missing in .dockerignore"
        );
    }
}

#[test]
fn both_databases_have_the_same_migrations() {
    let (sqlite, postgres) = (file_names("migrations/sqlite"), file_names("migrations/postgres"));
    assert!(!sqlite.is_empty());
    assert_eq!(sqlite, postgres);
}
